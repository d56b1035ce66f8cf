//! A controller that keeps a model of the path, after BBRv3 (draft-ietf-ccwg-bbr): the bottleneck's rate, the base round
//! trip, and what may be in flight before the queue overflows. It paces by the model; a loss alone does not stop it.
//!
//! ```text
//!   Startup ──► Drain ──► Down ──► Cruise ──► Refill ──► Up ──┐        ProbeRtt, from any of these,
//!    ×2.77       ×0.35     ×0.9     ×1.0       ×1.0    ×1.25  │        when the base round trip is
//!                           ▲─────────────────────────────────┘        older than five seconds
//! ```
//!
//! It differs from the draft in one way: the delivery rate is measured once in a round trip, from what was acknowledged
//! while it lasted, and not for each segment, which would take a record of each. Gains are in percent, rates in bytes
//! per second.

use crate::congestion::Delivery;
use crate::info::PathModel;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// §2.4: pacing and window gains in percent.
const STARTUP_PACING: u64 = 277;
const DRAIN_PACING: u64 = 35;
const WINDOW: u64 = 200;
/// A rate that is measured once in a round is one round old while the window doubles: twice as much again, or it would not double.
const STARTUP_WINDOW: u64 = 400;
const UP_WINDOW: u64 = 225;
/// §5.2: paced below the estimate, so that queues drain; by three percent rather than one, because a rate that is measured
/// in whole ACKs is some percent too high at its maximum.
const PACING_MARGIN: u64 = 97;
/// §2.5: a round with more loss than one in fifty is too much; what it leaves of a bound is 7/10. That is for a queue that
/// overflows. Where no packet has waited in one, a path loses by itself: then one in eight, for queues that are too short to
/// be seen.
const LOSS_THRESH: u64 = 50;
const LOSS_THRESH_QUIET: u64 = 8;
const BETA_TENTHS: u64 = 7;
/// §4.3.1.3: fewer segments lost say nothing.
const STARTUP_LOSSES: u32 = 6;
/// A shorter wait in a queue says nothing.
const QUEUE_MIN: Duration = Duration::from_millis(4);
/// §2.5: what is left free below the bound, for others: 15 %.
const HEADROOM_PERCENT: u64 = 85;
/// §4.3.1.2: rounds without 25 % more than before, after which the pipe is full.
const FULL_ROUNDS: u8 = 3;
/// A probe that delivers more than this many percent of what filled the path has found room …
const ROOM_PERCENT: u64 = 112;
/// … and Startup goes on, so many times.
const RESUMES_MAX: u8 = 4;
/// §5.3.3.5: how long the steady part of a cycle lasts, and the most rounds of it (fairness to Reno).
const CRUISE: Duration = Duration::from_secs(2);
const CRUISE_ROUNDS: u32 = 63;
/// §2.8: how old the base round trip may be, and how long the flight is kept small to measure it anew.
const MIN_RTT_AGE: Duration = Duration::from_secs(5);
const PROBE_RTT: Duration = Duration::from_millis(200);
/// §2.8: no window below four segments.
const WINDOW_MIN_SEGMENTS: u32 = 4;
/// "No bound".
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

/// What a round trip delivered.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// It ends when this is acknowledged.
    end: SeqNum,
    begun: Instant,
    delivered: u32,
    lost: u32,
    /// The shortest and the longest round trip that were measured in it.
    rtt: Duration,
    rtt_max: Duration,
    /// An ECN mark was echoed.
    marked: bool,
    /// The program or the peer's window held the sender back at some time.
    limited: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bbr {
    phase: Phase,
    phase_at: Instant,
    phase_rounds: u32,
    /// The largest rates of this cycle and the one before.
    rates: [u64; 2],
    /// Short-term bounds, after losses since the last probe.
    rate_low: u64,
    flight_low: u32,
    /// Long-term bound: more than this in flight overflowed the queue.
    flight_high: u32,
    /// The base round trip and since when it is taken for that; the shortest since then, and whether the flight was so
    /// small at some time that there was no queue.
    min_rtt: Duration,
    min_rtt_at: Instant,
    recent_rtt: Duration,
    quiet: bool,
    round: Round,
    /// The pipe was found full; the rate then, and rounds without growth.
    full: bool,
    full_rate: u64,
    full_rounds: u8,
    /// One round said that it is full, by a wait or losses; a host that was busy for a moment and a path that reorders make these, too. The first
    /// probe tells. And how often such a probe has found room.
    hasty: bool,
    resumed: u8,
    /// When ProbeRtt may end.
    probe_end: Instant,
    /// Losses in a round that began before this was sent are those of Startup or of a probe: nobody else came. They tell the
    /// bound if it is `untold`, and nothing new otherwise.
    forgiven: SeqNum,
    untold: bool,
    window: u32,
    /// Bytes of the initial window that are not acknowledged yet.
    initial: u32,
    /// The window before it was made small.
    window_before: u32,
    pacing: u64,
}

impl Bbr {
    pub(super) const fn new(cwnd: u32, una: SeqNum) -> Self {
        let round = Round {
            end: una,
            begun: Instant::NEVER,
            delivered: 0,
            lost: 0,
            rtt: Duration::MAX,
            rtt_max: Duration::ZERO,
            marked: false,
            limited: false,
        };
        Self {
            phase: Phase::Startup,
            phase_at: Instant::ZERO,
            phase_rounds: 0,
            rates: [0; 2],
            rate_low: u64::MAX,
            flight_low: NONE,
            flight_high: NONE,
            min_rtt: Duration::MAX,
            min_rtt_at: Instant::ZERO,
            recent_rtt: Duration::MAX,
            quiet: false,
            round,
            full: false,
            full_rate: 0,
            full_rounds: 0,
            hasty: false,
            resumed: 0,
            probe_end: Instant::NEVER,
            forgiven: una,
            untold: false,
            window: cwnd,
            initial: cwnd,
            window_before: 0,
            pacing: u64::MAX,
        }
    }

    /// What it makes of the path.
    pub(super) const fn path_model(&self) -> PathModel {
        let min_rtt =
            if self.min_rtt.as_nanos() == Duration::MAX.as_nanos() { Duration::ZERO } else { self.min_rtt };
        let [now, before] = self.rates;
        PathModel {
            rate: if now > before { now } else { before },
            min_rtt,
            pacing_gain: self.pacing_gain() as u32,
            window_gain: self.window_gain() as u32,
        }
    }

    const fn window_gain(&self) -> u64 {
        match self.phase {
            Phase::Startup => STARTUP_WINDOW,
            Phase::Up => UP_WINDOW,
            _ => WINDOW,
        }
    }

    const fn pacing_gain(&self) -> u64 {
        match self.phase {
            Phase::Startup => STARTUP_PACING,
            Phase::Drain => DRAIN_PACING,
            Phase::Down => 90,
            Phase::Up => 125,
            Phase::Cruise | Phase::Refill | Phase::ProbeRtt => 100,
        }
    }

    /// Bytes per second to send; `u64::MAX` before anything is known.
    pub(super) const fn pacing(&self) -> u64 {
        self.pacing
    }

    /// The window after an ACK; `cwnd` is what it was before.
    pub(super) fn on_delivery(&mut self, d: &Delivery, cwnd: u32) -> u32 {
        self.note_rtt(d);
        self.round.delivered = self.round.delivered.saturating_add(d.bytes);
        self.round.lost = self.round.lost.saturating_add(d.lost);
        self.round.limited |= d.limited;
        if self.round.begun.is_never() {
            // The handshake has set the initial window since.
            self.window = self.window.max(cwnd);
            self.initial = self.window;
            self.begin_round(d);
        } else if d.front.after(self.round.end) || (self.phase == Phase::Startup && self.too_much_lost(d.mss))
        {
            // While the first hole is filled no round ends; a queue that overflows must be noticed before.
            self.on_round(d);
            self.begin_round(d);
        }
        self.notice_queue(d);
        self.advance(d);
        self.set_window(d);
        self.set_pacing(d);
        self.window
    }

    /// RFC 6298's timeout: what was in flight is gone. The model stays.
    pub(super) fn on_timeout(&mut self, mss: u32) {
        self.window_before = self.window_before.max(self.window);
        self.window = mss;
    }

    /// The timeout was spurious.
    pub(super) fn undo(&mut self, cwnd: u32) {
        self.window = self.window.max(cwnd);
        self.flight_low = NONE;
        self.rate_low = u64::MAX;
    }

    /// RFC 3168 §6.1.2: a mark counts for as much as too many losses.
    pub(super) fn on_mark(&mut self) {
        self.round.marked = true;
    }

    fn begin_round(&mut self, d: &Delivery) {
        self.round = Round {
            end: d.nxt,
            begun: d.now,
            delivered: 0,
            lost: 0,
            rtt: Duration::MAX,
            rtt_max: Duration::ZERO,
            marked: false,
            limited: d.limited,
        };
    }

    fn note_rtt(&mut self, d: &Delivery) {
        let Some(rtt) = d.rtt else { return };
        if self.min_rtt == Duration::MAX {
            self.min_rtt_at = d.now;
        }
        self.min_rtt = self.min_rtt.min(rtt);
        self.recent_rtt = self.recent_rtt.min(rtt);
        self.quiet |= d.limited && d.flight <= self.bdp(75);
        self.round.rtt = self.round.rtt.min(rtt);
        self.round.rtt_max = self.round.rtt_max.max(rtt);
    }

    fn rate_max(&self) -> u64 {
        self.rates[0].max(self.rates[1])
    }

    /// Bytes that fill the path without a queue, times `percent`.
    fn bdp(&self, percent: u64) -> u32 {
        if self.min_rtt == Duration::MAX {
            return NONE;
        }
        let rate = self.rate_max().min(self.rate_low);
        let bytes = rate.saturating_mul(self.min_rtt.as_micros()) / 1_000_000;
        (bytes.saturating_mul(percent) / 100).min(1 << 30) as u32
    }

    /// Bytes that path and queue held before the queue overflowed: the rate times the longest round trip (Little's law).
    fn fitted(&self) -> u32 {
        let rate = self.rate_max().min(self.rate_low);
        let held = rate.saturating_mul(self.round.rtt_max.as_micros()) / 1_000_000;
        (held.min(1 << 30) as u32).max(self.bdp(100))
    }

    /// The pipe is full for certain when the last round trip was one and a half times the base. The rate is what has arrived
    /// since the round began: the round before was slower by far.
    fn notice_queue(&mut self, d: &Delivery) {
        let full = self.min_rtt + self.min_rtt.over(2).max(QUEUE_MIN);
        let begun_for = d.now - self.round.begun;
        if self.phase != Phase::Startup
            || d.rtt.is_none_or(|rtt| rtt < full)
            || begun_for < self.min_rtt.over(2)
        {
            return;
        }
        let rate = u64::from(self.round.delivered) * 1_000_000 / begun_for.as_micros().max(1);
        self.rates[0] = self.rates[0].max(rate);
        self.end_startup(true, d);
    }

    /// The path was taken for full too early: a probe of it delivered more, and nothing waited. The start goes on.
    fn resume_startup(&mut self, rate: u64, now: Instant) {
        self.resumed += 1;
        self.hasty = false;
        self.full = false;
        self.full_rate = rate;
        self.full_rounds = 0;
        self.flight_high = NONE;
        self.enter(Phase::Startup, now);
    }

    /// A round trip is over: what it says of the path.
    fn on_round(&mut self, d: &Delivery) {
        let Round { begun, delivered, limited, .. } = self.round;
        let micros = (d.now - begun).as_micros().max(1);
        let rate = u64::from(delivered) * 1_000_000 / micros;
        self.phase_rounds += 1;
        if !limited || rate > self.rate_max() {
            self.rates[0] = self.rates[0].max(rate);
        }
        // What a round finds lost was sent before it began, if it was lost in a queue.
        let old = self.full && self.round.end.before_or_eq(self.forgiven);
        if !old {
            // It stays just behind, or half a circle later it would lie ahead.
            self.forgiven = self.round.end - 1;
        }
        let lost_too_much = self.too_much_lost(d.mss);
        let too_much = self.round.marked || lost_too_much && !old;
        match self.phase {
            Phase::Startup => self.judge_startup(rate, limited, too_much, d),
            Phase::Refill | Phase::Up if too_much => {
                // §5.3.3.6: the probe has found the bound. Headroom below it is left later.
                self.flight_high = self.fitted().max(WINDOW_MIN_SEGMENTS * d.mss);
                self.end_probe(false, d);
            }
            Phase::Down | Phase::Cruise if lost_too_much && !too_much && self.untold => {
                // The probe was over before its losses were known.
                self.flight_high = self.fitted().max(WINDOW_MIN_SEGMENTS * d.mss);
                self.untold = false;
            }
            Phase::Up if self.hasty && self.has_room(rate) => self.resume_startup(rate, d.now),
            Phase::Up => self.raise_bound(d),
            Phase::ProbeRtt => {}
            _ if too_much => {
                // §5.5.10.3: loss without a probe: somebody else came. Give way until the next one.
                let cut = |value: u64| value.saturating_mul(BETA_TENTHS) / 10;
                self.rate_low = rate.max(cut(self.rate_low.min(self.rate_max())));
                self.flight_low = delivered.max(cut(u64::from(self.flight_low.min(self.window))) as u32);
            }
            _ => {}
        }
    }

    /// More arrived in this round than when the path was full, without a queue.
    fn has_room(&self, rate: u64) -> bool {
        rate * 100 >= self.full_rate * ROOM_PERCENT && self.round.rtt <= self.min_rtt + self.queue()
    }

    /// A wait that tells of a queue.
    fn queue(&self) -> Duration {
        self.min_rtt.over(4).max(QUEUE_MIN)
    }

    /// §2.5: more of this round was lost than a path loses by itself.
    fn too_much_lost(&self, mss: u32) -> bool {
        let (lost, delivered) = (u64::from(self.round.lost), u64::from(self.round.delivered));
        let waited = self.min_rtt != Duration::MAX && self.round.rtt_max > self.min_rtt + self.queue();
        let thresh = if waited { LOSS_THRESH } else { LOSS_THRESH_QUIET };
        lost > u64::from(STARTUP_LOSSES * mss) && lost * thresh > lost + delivered
    }

    /// §4.3.1.2 and §4.3.1.3: the pipe is full when the rate stops to grow, or the queue overflows; or when there is a queue
    /// at all times (as HyStart++ has it: the shortest round trip of a round has grown).
    fn judge_startup(&mut self, rate: u64, limited: bool, too_much: bool, d: &Delivery) {
        if rate * 4 >= self.full_rate * 5 {
            self.full_rate = rate;
            self.full_rounds = 0;
        } else if !limited {
            self.full_rounds += 1;
        }
        if too_much {
            self.flight_high = self.fitted();
        }
        let queued = self.round.rtt != Duration::MAX && self.round.rtt > self.min_rtt + self.queue();
        if too_much || queued || self.full_rounds >= FULL_ROUNDS {
            self.end_startup(self.full_rounds < FULL_ROUNDS, d);
        }
    }

    /// The pipe is full; `hasty`: one round says so.
    fn end_startup(&mut self, hasty: bool, d: &Delivery) {
        self.full = true;
        self.full_rate = self.rate_max();
        self.hasty = hasty && self.resumed < RESUMES_MAX;
        self.forgiven = d.nxt;
        self.enter(Phase::Drain, d.now);
    }

    /// What the probe sent is on its way still; `untold`: it may have overflowed the queue.
    fn end_probe(&mut self, untold: bool, d: &Delivery) {
        self.forgiven = d.nxt;
        self.untold = untold;
        self.enter(Phase::Down, d.now);
    }

    /// §5.3.3.4: the bound grows while nothing is lost, faster from round to round.
    fn raise_bound(&mut self, d: &Delivery) {
        if self.flight_high != NONE && d.flight + 2 * d.mss >= self.flight_high {
            let segments = 1u32 << self.phase_rounds.min(10);
            self.flight_high = self.flight_high.saturating_add(segments * d.mss).min(1 << 30);
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        match phase {
            // A cycle in which the program had nothing to send forgets nothing.
            Phase::Down if self.rates[0] > 0 => self.rates = [0, self.rates[0]],
            Phase::Refill => {
                self.rate_low = u64::MAX;
                self.flight_low = NONE;
            }
            _ => {}
        }
        self.phase = phase;
        self.phase_at = now;
        self.phase_rounds = 0;
    }

    /// What time and flight say about the phase.
    fn advance(&mut self, d: &Delivery) {
        let spent = d.now - self.phase_at;
        match self.phase {
            Phase::Drain if d.flight <= self.bdp(100) => self.enter(Phase::Down, d.now),
            Phase::Down => {
                let room = u64::from(self.flight_high) * HEADROOM_PERCENT / 100;
                // A window is used up to a part of a segment.
                if u64::from(d.flight) <= room + u64::from(d.mss) && d.flight <= self.bdp(100) {
                    self.enter(Phase::Cruise, d.now);
                } else if spent >= CRUISE {
                    // It does not drain: the model is wrong, and only a probe tells.
                    self.enter(Phase::Refill, d.now);
                }
            }
            Phase::Cruise => {
                let reno = if self.hasty { 1 } else { (self.bdp(100) / d.mss.max(1)).min(CRUISE_ROUNDS) };
                if spent >= CRUISE || self.phase_rounds >= reno.max(1) {
                    self.enter(Phase::Refill, d.now);
                }
            }
            Phase::Refill if self.phase_rounds >= 1 => self.enter(Phase::Up, d.now),
            // What the probe sends is acknowledged in its second round.
            Phase::Up
                if self.phase_rounds > u32::from(self.hasty)
                    && spent > self.min_rtt
                    && d.flight >= self.bdp(125) =>
            {
                self.hasty = false;
                self.end_probe(true, d);
            }
            _ => {}
        }
        self.probe_rtt(d);
    }

    /// §5.3.4: a small flight for a moment shows the round trip without a queue.
    fn probe_rtt(&mut self, d: &Delivery) {
        if self.phase != Phase::ProbeRtt {
            if self.min_rtt == Duration::MAX || d.now - self.min_rtt_at <= MIN_RTT_AGE {
                return;
            }
            if self.quiet {
                // The program sent so little that there was no queue: no need to make the flight small.
                self.take_recent_rtt(d.now);
            } else {
                self.window_before = self.window_before.max(self.window);
                self.probe_end = Instant::NEVER;
                self.enter(Phase::ProbeRtt, d.now);
            }
            return;
        }
        if self.probe_end.is_never() {
            if d.flight <= self.probe_window(d.mss) {
                self.probe_end = d.now + PROBE_RTT;
                self.recent_rtt = Duration::MAX;
                self.phase_rounds = 0;
            }
        } else if d.now >= self.probe_end && self.phase_rounds >= 1 {
            self.take_recent_rtt(d.now);
            self.window = self.window.max(self.window_before);
            self.window_before = 0;
            self.enter(if self.full { Phase::Cruise } else { Phase::Startup }, d.now);
        }
    }

    /// The base round trip is what was measured lately.
    fn take_recent_rtt(&mut self, now: Instant) {
        if self.recent_rtt != Duration::MAX {
            self.min_rtt = self.recent_rtt;
        }
        self.recent_rtt = Duration::MAX;
        self.min_rtt_at = now;
        self.quiet = false;
    }

    fn probe_window(&self, mss: u32) -> u32 {
        self.bdp(50).min(self.window_before).max(WINDOW_MIN_SEGMENTS * mss)
    }

    /// §5.6.4: towards twice what fills the path, within the bounds.
    fn set_window(&mut self, d: &Delivery) {
        let gain = self.window_gain();
        // A millisecond's worth leaves in one piece, and the peer acknowledges every other segment.
        let slack = (self.pacing_or_zero() / 500).min(1 << 20) as u32 + 3 * d.mss;
        let target = self.bdp(gain).saturating_add(slack).min(1 << 30);
        if self.full {
            self.window = self.window.saturating_add(d.bytes).min(target);
        } else if self.window < target || self.initial > 0 {
            // What came first tells no rate: a handshake, one segment, a program that took its time.
            self.window = self.window.saturating_add(d.bytes).min(1 << 30);
        }
        self.initial = self.initial.saturating_sub(d.bytes);
        let high = match self.phase {
            Phase::Down | Phase::Cruise if self.flight_high != NONE => {
                (u64::from(self.flight_high) * HEADROOM_PERCENT / 100) as u32
            }
            // Room for the probe that tells.
            Phase::Up if self.hasty => self.flight_high.max(self.bdp(150).saturating_add(slack)),
            _ => self.flight_high,
        };
        let mut bound = high.min(self.flight_low);
        if self.phase == Phase::ProbeRtt {
            bound = bound.min(self.probe_window(d.mss));
        }
        self.window = self.window.min(bound.max(WINDOW_MIN_SEGMENTS * d.mss));
    }

    const fn pacing_or_zero(&self) -> u64 {
        if self.pacing == u64::MAX { 0 } else { self.pacing }
    }

    /// §5.6.2.
    fn set_pacing(&mut self, d: &Delivery) {
        let gain = self.pacing_gain();
        let rate = self.rate_max().min(self.rate_low);
        let mut pacing = (rate.saturating_mul(gain) / 100 * PACING_MARGIN / 100).max(u64::from(d.mss));
        if self.phase == Phase::Startup {
            // Twice the window in a round trip, as long as the measured rate is behind.
            pacing = pacing.max(2 * u64::from(self.window) * 1_000_000 / d.srtt.as_micros().max(100));
        }
        // Until the pipe is full a small sample slows nothing down.
        if self.full || self.pacing == u64::MAX || pacing > self.pacing {
            self.pacing = pacing;
        }
    }
}
