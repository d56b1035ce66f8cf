//! SEGMENT ARRIVES, fifth: check the ACK field (RFC 9293 §3.10.7.4).

use super::Tcb;
use super::arrives::Verdict;
use super::recovery::AckFacts;
use super::state::{Timer, Watch, Work};
use crate::actions::{Actions, DropReason, Events};
use crate::congestion::{AckSample, Delivery};
use crate::half_open::{ts_before, ts_clock};
use crate::info::{RecoveryState, State};
use crate::scoreboard::{Delivered, Tick, ticks_to_nanos};
use crate::segment::{Flags, Segment};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

impl Tcb {
    /// The full check, for every synchronized state.
    pub(super) fn check_ack(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        let Some(ack) = seg.ack else { return Verdict::Drop(DropReason::AckMissing) };
        if self.state == State::SynReceived {
            // SND.UNA < SEG.ACK =< SND.NXT, otherwise <SEQ=SEG.ACK><CTL=RST>.
            if ack.before_or_eq(self.snd.una) || ack.after(self.snd.nxt) {
                self.snd.rst_for = Some(ack);
                return Verdict::Drop(DropReason::AckOfUnsent);
            }
            self.establish(now, out);
            if self.snd.fin_queued {
                self.state = State::FinWait1;
            }
        }
        // Acks something not yet sent: send an ACK, drop the segment.
        if ack.after(self.snd.nxt) {
            return Verdict::AckThenDrop(DropReason::AckOfUnsent);
        }
        // RFC 5961 §5.2: older than any window we were ever given is an injection; so is what acknowledges bytes before our first
        // ("ghost ACKs", Pan and Rossow 2023; Linux tcp_ack), which leaves a stranger next to nothing to guess on a young connection.
        if ack.before(self.snd.una - self.sent_before_una()) {
            return Verdict::AckThenDrop(DropReason::AckTooOld);
        }
        self.stats.heard_at = now;
        self.soft_error = None;
        self.recovery.probes = 0;
        let mut delivered = Delivered::default();
        let mut facts = AckFacts::of(self, seg, ack);
        if facts.advanced > 0 {
            self.board.ack_to(ack, &mut delivered);
            self.release(now, ack, out);
            self.sample_rtt(now, seg, &delivered);
        }
        if self.opt.sack && !seg.options.sack.is_empty() {
            facts.dsack = self.take_sacks(seg, ack, &mut delivered);
        }
        self.stats.delivered_bytes += u64::from(delivered.bytes);
        let lost_before = self.board.lost();
        self.update_send_window(seg, ack);
        facts.ece = self.opt.ecn && seg.flags.any(Flags::ECE) && !seg.flags.any(Flags::SYN);
        if facts.ece {
            let segments = delivered.bytes.div_ceil(u32::from(self.snd.mss).max(1));
            self.stats.delivered_ce = self.stats.delivered_ce.wrapping_add(segments);
        }
        let reducing = self.recovery.is_reducing();
        // What had been reported as arrived before says nothing of the window now (Linux tcp_cong_avoid takes what is newly
        // delivered).
        let newly = match self.opt.sack {
            true => delivered.bytes,
            false => facts.advanced.saturating_sub(self.recovery.reno_sacked),
        };
        self.on_ack_recovery(now, seg, &facts, &delivered);
        if facts.advanced > 0 && !reducing && self.grows_window() {
            let acked = match self.recovery.state {
                // RFC 3465 §2.3: after a timeout an ACK may jump over much that arrived long ago. That is no reason for a burst.
                RecoveryState::Loss => facts.advanced.min(2 * u32::from(self.snd.mss)),
                _ => newly,
            };
            self.grow_window(now, acked, &delivered);
        }
        if self.cc.is_model() {
            let lost = self.board.lost().saturating_sub(lost_before);
            self.feed_model(now, &delivered, lost);
        }
        self.after_ack(now, facts.advanced > 0 || delivered.bytes > 0);
        self.on_fin_acked(now, out);
        debug_assert!(self.snd.una.before_or_eq(self.snd.nxt), "SND.UNA ran past SND.NXT");
        Verdict::Continue
    }

    /// An acceptable ACK while nothing is lost, sacked, probed or repeated.
    #[inline]
    pub(super) fn on_plain_ack(&mut self, now: Instant, seg: &Segment, ack: SeqNum, out: &mut Actions) {
        self.recovery.probes = 0;
        if ack == self.snd.una {
            let same = u32::from(seg.wnd) << self.snd.wscale == self.snd.wnd;
            self.update_send_window(seg, ack);
            if same && seg.len == 0 && self.snd.flight() > 0 && !self.opt.sack {
                self.on_duplicate_ack(now);
            }
            return;
        }
        let mut delivered = Delivered::default();
        let advanced = self.snd.una.distance_to(ack);
        self.board.ack_plain(ack, &mut delivered);
        self.release(now, ack, out);
        self.sample_rtt(now, seg, &delivered);
        self.stats.delivered_bytes += u64::from(delivered.bytes);
        self.update_send_window(seg, ack);
        if self.cc.is_model() {
            self.feed_model(now, &delivered, 0);
        } else {
            self.grow_window(now, advanced, &delivered);
        }
        self.after_ack(now, true);
    }

    /// A controller that keeps a model of the path hears of every ACK, and of a flight that became less without one.
    #[cold]
    pub(super) fn feed_model(&mut self, now: Instant, delivered: &Delivered, lost: u32) {
        let mss = u32::from(self.snd.mss);
        let window = self.snd.nxt.span_to(self.snd.una + self.snd.wnd);
        let rtt = delivered.newest_once.map(|t| Duration::from_nanos(ticks_to_nanos(Tick::at(now).since(t))));
        self.cc.on_delivery(&Delivery {
            now,
            bytes: delivered.bytes,
            lost,
            flight: self.pipe(),
            limited: !self.snd.nxt.before(self.snd.end) || window < mss,
            mss,
            srtt: self.rtt.smoothed,
            rtt,
            front: self.delivered_up_to(),
            nxt: self.snd.nxt,
        });
    }

    /// Where the highest byte that has arrived ends. RACK.fack is not kept up on the fast path.
    fn delivered_up_to(&self) -> SeqNum {
        let fack = self.recovery.fack;
        if fack.is_between(self.snd.una, self.snd.nxt) { fack } else { self.snd.una }
    }

    /// SND.UNA moves to `ack`: the engine forgets the bytes.
    #[inline]
    pub(super) fn release(&mut self, now: Instant, ack: SeqNum, out: &mut Actions) {
        let bytes = self.snd.stream_start().span_to(ack.earlier(self.snd.end));
        self.snd.una = ack;
        self.snd.syn_unacked = false;
        self.stats.acked_at = now;
        self.stats.bytes_acked += u64::from(bytes);
        self.recovery.retransmits = 0;
        self.recovery.waiting_since = now;
        if bytes > 0 {
            out.released = bytes;
            out.events.insert(Events::WRITABLE);
        }
        if self.search.on {
            self.note_probe_arrived(out);
        }
        if self.snd.urgent.is_some_and(|up| up.before_or_eq(ack)) {
            self.snd.urgent = None;
        }
    }

    /// RFC 9293 §3.10.7.4: the send window follows the newest segment, told by WL1 and WL2.
    #[inline]
    pub(super) fn update_send_window(&mut self, seg: &Segment, ack: SeqNum) {
        let newer =
            self.snd.wl1.before(seg.seq) || (self.snd.wl1 == seg.seq && self.snd.wl2.before_or_eq(ack));
        if newer && ack.after_or_eq(self.snd.una) {
            self.snd.wnd = u32::from(seg.wnd) << self.snd.wscale;
            self.snd.wnd_max = self.snd.wnd_max.max(self.snd.wnd);
            self.snd.wl1 = seg.seq;
            self.snd.wl2 = ack;
        }
    }

    /// Takes an RTT sample: from the time of the transmission if the bytes were sent once (Karn's algorithm), else from
    /// the echoed timestamp (RFC 7323 §4.1).
    #[inline]
    pub(super) fn sample_rtt(&mut self, now: Instant, seg: &Segment, delivered: &Delivered) {
        let rtt = if let Some(sent_at) = delivered.oldest_once {
            Duration::from_nanos(ticks_to_nanos(Tick::at(now).since(sent_at)))
        } else if let (true, Some(ts)) = (self.opt.timestamps, seg.options.timestamps) {
            let clock = ts_clock(now, self.cfg.ts_offset);
            // An echo of zero, or one from the future, is a fault of the peer.
            if ts.ecr == 0 || ts_before(clock, ts.ecr) {
                return;
            }
            Duration::from_millis(u64::from(clock.wrapping_sub(ts.ecr)))
        } else {
            return;
        };
        self.rtt.sample(now, rtt, &self.cfg);
        self.board.set_grain(self.rtt.min.as_nanos());
    }

    /// True if ACKs open the congestion window in this state of recovery.
    fn grows_window(&self) -> bool {
        matches!(self.recovery.state, RecoveryState::Open | RecoveryState::Disorder | RecoveryState::Loss)
    }

    /// RFC 7661 §4.1: the window grows only if it was what held the sender back.
    #[inline(always)]
    fn grow_window(&mut self, now: Instant, advanced: u32, delivered: &Delivered) {
        let mss = u32::from(self.snd.mss);
        let used = if self.cc.in_slow_start() {
            self.cc.cwnd < self.snd.max_flight.saturating_mul(2)
        } else {
            self.cc.cwnd < self.snd.max_flight + 2 * mss
        };
        if self.snd.una.after(self.snd.max_flight_end) {
            self.snd.max_flight = self.snd.flight();
            self.snd.max_flight_end = self.snd.nxt;
        }
        if used {
            self.open_window(now, advanced, delivered);
        }
    }

    /// Of its own, so that an ACK which opens no window, as most are for who sends little, pays for no more than the look.
    #[inline(never)]
    fn open_window(&mut self, now: Instant, advanced: u32, delivered: &Delivered) {
        let rtt = delivered.newest_once.map(|t| Duration::from_nanos(ticks_to_nanos(Tick::at(now).since(t))));
        self.cc.on_ack(&AckSample {
            now,
            acked: advanced,
            mss: u32::from(self.snd.mss),
            srtt: self.rtt.smoothed,
            rtt,
            una: self.snd.una,
            nxt: self.snd.nxt,
            sack: self.opt.sack,
        });
    }

    /// RFC 6298 §5.2, §5.3: stops the timer when all is acknowledged, restarts it when some is.
    #[inline]
    fn after_ack(&mut self, now: Instant, progress: bool) {
        self.measure_rate(now);
        if !progress {
            return;
        }
        // MSG_MORE is a matter of the call's own time: what an ACK lets go, goes (Linux tcp_data_snd_check).
        self.snd.more = false;
        if self.snd.una == self.snd.nxt {
            if self.chrono.work != Work::Idle && !self.snd.nxt.before(self.snd.end) {
                self.chrono.turn(now, Work::Idle);
            }
            self.timers.clear(Timer::Retransmit);
            return;
        }
        let armed = self.timers.is_armed(Timer::Retransmit);
        let hands_off = self.timers.watch == Watch::Reorder || self.recovery.is_impatient(self.opt.sack);
        if !(armed && hands_off) {
            self.set_loss_timer(now);
        }
    }

    /// The delivery rate over about one round trip, for `TCP_INFO`; and what else is looked at so often.
    #[inline]
    fn measure_rate(&mut self, now: Instant) {
        let elapsed = now - self.stats.rate_at;
        if elapsed > self.rtt.smoothed && elapsed.as_nanos() > 1_000_000 {
            let bytes = self.stats.delivered_bytes - self.stats.rate_from;
            self.stats.rate = bytes.saturating_mul(1_000_000) / elapsed.as_micros().max(1);
            self.stats.rate_from = self.stats.delivered_bytes;
            self.stats.rate_at = now;
            self.age_path(now);
        }
    }

    /// "If our FIN is now acknowledged": the transitions of FIN-WAIT-1, CLOSING and LAST-ACK.
    fn on_fin_acked(&mut self, now: Instant, out: &mut Actions) {
        if !self.snd.fin_sent() || self.snd.una != self.snd.nxt {
            return;
        }
        match self.state {
            State::FinWait1 => {
                self.state = State::FinWait2;
                out.events.insert(Events::FIN_ACKED);
                self.arm_fin_wait(now);
            }
            State::Closing => {
                out.events.insert(Events::FIN_ACKED);
                self.enter_time_wait(out);
            }
            State::LastAck => {
                out.events.insert(Events::FIN_ACKED);
                self.close(out, None);
            }
            _ => {}
        }
    }
}
