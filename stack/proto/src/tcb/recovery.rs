//! Loss recovery: which bytes are lost (RFC 8985 RACK, or RFC 6582 NewReno without SACK), how fast they are sent again
//! (RFC 6937 PRR), and when all of that was a mistake (RFC 3522 Eifel, RFC 5682 F-RTO, RFC 2883 DSACK).
//!
//! ```text
//!              SACK, dup ACK              marked lost               SND.UNA passes high_seq
//!      Open ───────────────► Disorder ───────────────► Recovery ───────────────────────────► Open
//!        │ ECE ──► Cwr ── one round ──► Open               │ timeout
//!        └────────────── timeout ──► Loss ◄────────────────┘        (undo leads from Recovery and Loss to Open)
//! ```

use super::Tcb;
use super::state::{Timer, Watch};
use crate::half_open::{ts_before, ts_clock};
use crate::info::RecoveryState;
use crate::scoreboard::{Delivered, Sent, Tick, sent_after, ticks_to_nanos};
use crate::segment::{Flags, SackBlock, Segment};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// Linux tcp_max_reordering.
const REORDERING_MAX: u32 = 300;
/// RFC 5681 §3.2: duplicate ACKs that count as a loss.
const DUP_THRESH: u32 = 3;
/// RFC 8985 §6.2: how many recoveries a widened reordering window lasts.
const REO_PERSIST: u8 = 16;
/// Slack of a tail loss probe beyond two round trips (Linux: two jiffies).
const PROBE_SLACK: Duration = Duration::from_millis(4);
/// RFC 8985 §7.2: the most by which a receiver delays the ACK of a lone segment.
const PEER_DELAYED_ACK: Duration = Duration::from_millis(200);

/// What to go back to when a loss turns out to have been none.
#[derive(Clone, Copy, Debug)]
struct Undo {
    cwnd: u32,
    ssthresh: u32,
    /// SND.UNA then: what lies before was not sent again since.
    from: SeqNum,
}

/// A tail loss probe in flight (RFC 8985 §7.3).
#[derive(Clone, Copy, Debug)]
struct Tlp {
    end: SeqNum,
    repeated: bool,
}

/// The variables of loss recovery. In memory what every segment touches comes last.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Recovery {
    /// RecoveryPoint (RFC 6675 §2): recovery ends when SND.UNA gets here.
    pub(super) high_seq: SeqNum,
    /// RACK.xmit_ts and RACK.end_seq.
    newest: Option<(Tick, SeqNum)>,
    /// RACK.rtt in ticks.
    rtt: u32,
    /// RACK.fack: the highest byte that was delivered.
    pub(super) fack: SeqNum,
    reordering_seen: bool,
    reo_mult: u8,
    reo_persist: u8,
    /// RACK.dsack_round; behind SND.UNA if there is none.
    dsack_round: SeqNum,
    /// RFC 6937 §3.
    prr_delivered: u32,
    pub(super) prr_out: u32,
    recover_fs: u32,
    /// RFC 6582 §4: a partial ACK has restarted the timer in this recovery; the next ones do not ("impatient").
    partial_seen: bool,
    /// Without SACK: duplicate ACKs, and the bytes that they stand for.
    dupacks: u32,
    pub(super) reno_sacked: u32,
    tlp: Option<Tlp>,
    undo: Option<Undo>,
    /// Bytes sent again in this episode that no DSACK has declared superfluous.
    undo_bytes: u32,
    /// The timeout did not come amid fast recovery: RFC 5682 applies.
    frto: bool,
    /// TSval of the first retransmission of this episode.
    retrans_ts: Option<u32>,

    /// When the oldest byte in flight began to wait, for the user timeout.
    pub(super) waiting_since: Instant,
    pub(super) state: RecoveryState,
    /// Nothing is lost, sacked, probed or repeated: the fast path need not look here.
    quiet: bool,
    /// Timeouts in a row.
    pub(super) retransmits: u8,
    /// Window or keep-alive probes without an answer.
    pub(super) probes: u8,
    /// SYN or SYN-ACK had to be repeated.
    pub(super) syn_resent: bool,
}

/// What an ACK says before anything is concluded from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckFacts {
    /// Sequence numbers by which it moves SND.UNA.
    pub(super) advanced: u32,
    /// RFC 5681 §2: it repeats the previous ACK.
    duplicate: bool,
    /// Range that a DSACK reports.
    pub(super) dsack: u32,
    pub(super) ece: bool,
}

impl AckFacts {
    pub(super) fn of(tcb: &Tcb, seg: &Segment, ack: SeqNum) -> Self {
        let wnd = u32::from(seg.wnd) << tcb.snd.wscale;
        let bare = seg.len == 0 && !seg.flags.any(Flags::SYN.with(Flags::FIN));
        Self {
            advanced: tcb.snd.una.span_to(ack),
            duplicate: ack == tcb.snd.una && bare && wnd == tcb.snd.wnd && tcb.snd.flight() > 0,
            dsack: 0,
            ece: false,
        }
    }
}

impl Recovery {
    pub(super) const fn new(iss: SeqNum) -> Self {
        Self {
            state: RecoveryState::Open,
            quiet: true,
            syn_resent: false,
            retransmits: 0,
            probes: 0,
            high_seq: iss,
            newest: None,
            rtt: 0,
            fack: iss,
            reordering_seen: false,
            reo_mult: 1,
            reo_persist: 0,
            dsack_round: iss,
            prr_delivered: 0,
            prr_out: 0,
            recover_fs: 0,
            partial_seen: false,
            dupacks: 0,
            reno_sacked: 0,
            tlp: None,
            undo: None,
            undo_bytes: 0,
            frto: false,
            retrans_ts: None,
            waiting_since: Instant::ZERO,
        }
    }

    /// RFC 6582 §4: true if this ACK must leave the retransmission timer alone.
    #[inline]
    pub(super) fn is_impatient(&mut self, sack: bool) -> bool {
        if sack || self.state != RecoveryState::Recovery {
            return false;
        }
        core::mem::replace(&mut self.partial_seen, true)
    }

    #[inline]
    pub(super) const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The window is being lowered to the threshold by PRR.
    #[inline]
    pub(super) const fn is_reducing(&self) -> bool {
        matches!(self.state, RecoveryState::Recovery | RecoveryState::Cwr)
    }
}

impl Tcb {
    /// Bytes believed to be in the network (RFC 6675 §4).
    #[inline]
    pub(super) fn pipe(&self) -> u32 {
        self.board.pipe().saturating_sub(self.recovery.reno_sacked)
    }

    fn settle(&mut self) {
        let r = &mut self.recovery;
        r.quiet =
            r.state == RecoveryState::Open && r.tlp.is_none() && r.dupacks == 0 && self.board.is_clean();
        if r.quiet {
            // All that is in flight was sent after it, and the clock of the board may come round before it is asked for again.
            r.newest = None;
        }
    }

    /// A duplicate ACK on the fast path, without SACK.
    #[cold]
    pub(super) fn on_duplicate_ack(&mut self, now: Instant) {
        let facts = AckFacts { advanced: 0, duplicate: true, dsack: 0, ece: false };
        self.on_ack_recovery(now, &Segment::default(), &facts, &Delivered::default());
    }

    /// Reads the SACK option; returns the bytes that its DSACK reports (RFC 2883 §4).
    pub(super) fn take_sacks(&mut self, seg: &Segment, ack: SeqNum, delivered: &mut Delivered) -> u32 {
        let blocks = seg.options.sack.as_slice();
        let mut dsack = 0;
        // Linux looks at the blocks first, and then at what is acknowledged as a whole; its SYN-ACK is not among that.
        let last = delivered.last.or(delivered.newest).filter(|_| self.stats.bytes_acked > 0);
        for (i, block) in blocks.iter().enumerate() {
            if !block.start.before(block.end) || block.end.after(self.snd.nxt) {
                continue;
            }
            let second = blocks.get(1);
            let inside =
                second.is_some_and(|b| b.start.before_or_eq(block.start) && block.end.before_or_eq(b.end));
            // RFC 2883 §4.1: the first block lies below the cumulative ACK, or within the second.
            if i == 0 && (block.start.before(ack) || inside) {
                dsack = self.take_dsack(*block, ack);
                continue;
            }
            self.board.sack(block.start, block.end, delivered);
        }
        delivered.last = last.or(delivered.last);
        dsack
    }

    /// RFC 2883 §5: the bytes that a DSACK says were sent once too often; zero if it can't be true. Anybody who knows the
    /// endpoints can have the peer report a range of his choice, by a segment with an old sequence number; so it has to be one that
    /// we sent, of a window's length at most, and no more may be reported than was sent again (as in Linux tcp_dsack_seen).
    fn take_dsack(&mut self, block: SackBlock, ack: SeqNum) -> u32 {
        let SackBlock { start, end } = block;
        let below = end.before_or_eq(ack) && start.after_or_eq(self.snd.una - self.sent_before_una());
        if start.before(ack) && !below {
            return 0;
        }
        let bytes = start.distance_to(end);
        let segments = bytes.div_ceil(u32::from(self.snd.mss).max(1));
        self.stats.dsack_dups = self.stats.dsack_dups.saturating_add(segments);
        if self.stats.dsack_dups > self.stats.total_retrans {
            return 0;
        }
        let r = &mut self.recovery;
        if r.undo.is_some_and(|undo| end.after(undo.from)) {
            r.undo_bytes = r.undo_bytes.saturating_sub(bytes);
        }
        bytes
    }

    /// How far before SND.UNA a segment of the peer may still speak of: no further than its largest window, and no more than we
    /// ever sent.
    pub(super) fn sent_before_una(&self) -> u32 {
        let fin = self.snd.una.after(self.snd.end);
        let sent = self.stats.bytes_acked.saturating_add(u64::from(fin));
        sent.min(u64::from(self.snd.wnd_max)) as u32
    }

    /// Draws the conclusions from an ACK.
    pub(super) fn on_ack_recovery(
        &mut self,
        now: Instant,
        seg: &Segment,
        facts: &AckFacts,
        delivered: &Delivered,
    ) {
        // The fast path does not keep it up.
        let una_before = self.snd.una - facts.advanced;
        if !self.recovery.fack.is_between(una_before, self.snd.nxt) {
            self.recovery.fack = una_before;
        }
        let prior_flight = self.snd.flight() + facts.advanced;
        let mut prr_bytes = delivered.bytes;
        self.on_dsack(facts.dsack);
        self.end_probe(facts);
        if self.is_spurious(seg, facts, delivered) {
            self.undo(now);
        }
        let lost = if self.opt.sack {
            self.rack(now, seg, delivered)
        } else {
            prr_bytes += self.newreno(facts);
            0
        };
        self.leave_if_done(facts);
        match self.recovery.state {
            RecoveryState::Open | RecoveryState::Disorder | RecoveryState::Cwr => {
                if self.board.to_resend() > 0 {
                    if !self.probe_was_lost(now) {
                        self.enter_recovery(now, prior_flight);
                    }
                } else if facts.ece && self.recovery.state != RecoveryState::Cwr {
                    self.enter_cwr(prior_flight);
                } else if self.recovery.state != RecoveryState::Cwr {
                    let calm = self.board.sacked() == 0 && self.recovery.dupacks == 0;
                    self.recovery.state = if calm { RecoveryState::Open } else { RecoveryState::Disorder };
                }
            }
            RecoveryState::Recovery | RecoveryState::Loss => {}
        }
        if self.recovery.is_reducing() {
            self.prr(prr_bytes, facts.advanced > 0 && lost == 0);
        }
        self.settle();
    }

    /// RFC 8985 §6.2, steps 1 to 5. Returns the bytes that are held for lost now.
    fn rack(&mut self, now: Instant, seg: &Segment, delivered: &Delivered) -> u32 {
        // Step 2: RACK.rtt is that of the last segment that was looked at, RACK.xmit_ts that of the most recently sent one.
        if let Some(last) = delivered.last.or(delivered.newest).filter(|last| self.tells_rtt(now, seg, last))
        {
            // What the board knows of a run that covers many segments may be too late, and no time is exacter than its grain. A round trip
            // shorter than there can be would have every repeat taken for lost at once, over and over.
            let least = if self.rtt.min == Duration::MAX { 0 } else { self.rtt.min.as_nanos() >> 10 };
            self.recovery.rtt = Tick::at(now).since(last.by).max(least as u32);
        }
        if let Some(sent) = delivered.newest.filter(|sent| self.tells_rtt(now, seg, sent))
            && self.recovery.newest.is_none_or(|newest| sent_after(sent.surely(), newest))
        {
            self.recovery.newest = Some(sent.surely());
        }
        let r = &mut self.recovery;
        // Step 3: a segment that was sent once and is delivered below one that was delivered before: reordering.
        if let Some(start) = delivered.lowest_once.filter(|start| start.before(r.fack)) {
            r.reordering_seen = true;
            let late = start.distance_to(r.fack).div_ceil(u32::from(self.snd.mss).max(1));
            self.stats.reordering = self.stats.reordering.max(late.min(REORDERING_MAX));
            self.stats.reordered = self.stats.reordered.wrapping_add(1);
        }
        let top = self.board.highest_sacked().unwrap_or(self.snd.una).later(self.snd.una);
        r.fack = r.fack.later(top);
        self.rack_detect(now)
    }

    /// RFC 8985 §6.2, step 2: whether the time since a delivered segment was sent is a round trip. For a repeated one it is
    /// only if it can't be the original that was acknowledged: by time, or by the echoed timestamp.
    fn tells_rtt(&self, now: Instant, seg: &Segment, sent: &Sent) -> bool {
        if !sent.ambiguous {
            return true;
        }
        let rtt = ticks_to_nanos(Tick::at(now).since(sent.first));
        let clock_then = ts_clock(now, self.cfg.ts_offset).wrapping_sub((rtt / 1_000_000) as u32 + 1);
        let echo_older = seg.options.timestamps.is_some_and(|ts| ts_before(ts.ecr, clock_then));
        let too_fast = rtt < self.rtt.min.as_nanos() && self.rtt.min != Duration::MAX;
        !(echo_older || too_fast)
    }

    /// RFC 8985 §6.2, steps 4 and 5; also when the reordering timer fires.
    pub(super) fn rack_detect(&mut self, now: Instant) -> u32 {
        let Some(newest) = self.recovery.newest else { return 0 };
        if self.board.is_clean() && !self.recovery.reordering_seen {
            return 0;
        }
        let wait = self.recovery.rtt.saturating_add(self.reordering_window());
        let (marked, timeout) = self.board.detect_lost(Tick::at(now), newest, wait.max(1));
        if let (Some(left), false) = (timeout, self.snd.una == self.snd.nxt) {
            let at = now + Duration::from_nanos(ticks_to_nanos(left + 1));
            self.timers.set(Timer::Retransmit, at);
            self.timers.watch = Watch::Reorder;
        } else if self.timers.watch == Watch::Reorder {
            self.set_loss_timer(now);
        }
        marked
    }

    /// RFC 8985 §6.2 step 4: how long to wait for a segment that may just be late, in ticks.
    fn reordering_window(&self) -> u32 {
        let r = &self.recovery;
        if !r.reordering_seen {
            let recovering = matches!(r.state, RecoveryState::Recovery | RecoveryState::Loss);
            if recovering || self.board.sacked() >= DUP_THRESH * u32::from(self.snd.mss) {
                return 0;
            }
        }
        let quarter = if self.rtt.min == Duration::MAX { Duration::ZERO } else { self.rtt.min.over(4) };
        let window = quarter.times(u64::from(r.reo_mult)).min(self.rtt.smoothed);
        (window.as_nanos() >> 10).min(u64::from(u32::MAX >> 2)) as u32
    }

    /// RFC 2883: something that was sent again had arrived already.
    fn on_dsack(&mut self, bytes: u32) {
        if bytes == 0 {
            return;
        }
        let r = &mut self.recovery;
        // RFC 8985 §6.2 step 4: at most once in a round trip, widen the reordering window.
        if !r.dsack_round.is_between(self.snd.una - 1, self.snd.nxt) {
            r.dsack_round = self.snd.nxt;
            r.reo_mult = r.reo_mult.saturating_add(1);
            r.reo_persist = REO_PERSIST;
        }
    }

    /// RFC 6582 §3.2, without SACK. Returns the bytes that left the network by this duplicate ACK.
    fn newreno(&mut self, facts: &AckFacts) -> u32 {
        let mss = u32::from(self.snd.mss);
        let in_flight = self.snd.flight();
        let r = &mut self.recovery;
        if facts.duplicate {
            r.dupacks += 1;
            let before = r.reno_sacked;
            r.reno_sacked = (before + mss).min(in_flight.saturating_sub(mss + self.board.lost()));
            let fresh = r.state != RecoveryState::Loss && !r.high_seq.is_between(self.snd.una, self.snd.nxt);
            if r.dupacks == DUP_THRESH && fresh {
                self.board.lose_head(mss);
            }
            return self.recovery.reno_sacked.saturating_sub(before);
        }
        if facts.advanced > 0 {
            r.reno_sacked = r.reno_sacked.saturating_sub(facts.advanced.saturating_sub(mss));
            match r.state {
                // A partial ACK: the next hole starts at SND.UNA.
                RecoveryState::Recovery if self.snd.una.before(r.high_seq) => {
                    self.board.lose_head(mss);
                }
                RecoveryState::Recovery | RecoveryState::Loss => {}
                _ => {
                    r.dupacks = 0;
                    r.reno_sacked = 0;
                }
            }
        }
        0
    }

    /// RFC 6675 §5 step 4, RFC 5681 §3.2: notes where recovery ends and lowers the threshold once.
    fn enter_recovery(&mut self, now: Instant, flight: u32) {
        if self.recovery.state != RecoveryState::Cwr {
            self.begin_reduction(flight);
        }
        let r = &mut self.recovery;
        r.state = RecoveryState::Recovery;
        r.partial_seen = false;
        r.quiet = false;
        r.high_seq = self.snd.nxt;
        r.retrans_ts = None;
        r.undo_bytes = 0;
        self.set_loss_timer(now);
    }

    /// RFC 3168 §6.1.2: the reaction to a mark is that to a loss, without anything to send again.
    pub(super) fn enter_cwr(&mut self, flight: u32) {
        self.cc.on_mark();
        self.begin_reduction(flight);
        self.recovery.undo = None;
        self.recovery.state = RecoveryState::Cwr;
        self.recovery.high_seq = self.snd.nxt;
    }

    const fn what_to_go_back_to(&self) -> Undo {
        Undo { cwnd: self.cc.cwnd, ssthresh: self.cc.ssthresh, from: self.snd.una }
    }

    fn begin_reduction(&mut self, flight: u32) {
        self.recovery.undo = Some(self.what_to_go_back_to());
        self.cc.on_congestion(flight, u32::from(self.snd.mss));
        self.recovery.prr_delivered = 0;
        self.recovery.prr_out = 0;
        self.recovery.recover_fs = flight.max(1);
        self.opt.cwr_due = self.opt.ecn;
    }

    /// RFC 6937 §3: sends in proportion to what is delivered until the window has come down to the threshold.
    fn prr(&mut self, delivered: u32, safe: bool) {
        let pipe = self.pipe();
        let mss = u32::from(self.snd.mss);
        let ssthresh = self.cc.ssthresh;
        let r = &mut self.recovery;
        r.prr_delivered = r.prr_delivered.saturating_add(delivered);
        let mut send = if pipe > ssthresh {
            let share = u64::from(r.prr_delivered) * u64::from(ssthresh);
            (share.div_ceil(u64::from(r.recover_fs.max(1))) as u32).saturating_sub(r.prr_out)
        } else {
            // The slow start reduction bound if the ACK is safe, as Linux has it: it moves SND.UNA, and no more is lost. Else one
            // byte for each that arrives.
            let behind = r.prr_delivered.saturating_sub(r.prr_out).max(delivered);
            let bound = if safe { behind + mss } else { behind };
            bound.min(ssthresh - pipe)
        };
        if r.prr_out == 0 && r.state == RecoveryState::Recovery {
            // The first retransmission leaves at once.
            send = send.max(mss);
        }
        self.cc.cwnd = pipe + send;
    }

    /// Recovery ends when all that was in flight at its start is acknowledged.
    fn leave_if_done(&mut self, facts: &AckFacts) {
        let r = &mut self.recovery;
        let done = match r.state {
            RecoveryState::Open | RecoveryState::Disorder => return,
            // RFC 3168 §6.1.2: once for a window; an ACK of all of that window may still echo the old mark.
            RecoveryState::Cwr => self.snd.una.after(r.high_seq),
            _ => facts.advanced > 0 && self.snd.una.after_or_eq(r.high_seq),
        };
        if !done {
            return;
        }
        let pipe = self.board.pipe();
        if r.is_reducing() {
            // RFC 6937 §3.1: "at the end of recovery, cwnd = ssthresh"; but where the receiver's window had kept the flight
            // small, not in one burst (RFC 6582 §3.2 step 3): slow start goes the rest of the way.
            let burst = u32::from(self.cfg.initial_cwnd.max(1)) * u32::from(self.snd.mss);
            self.cc.cwnd = self.cc.ssthresh.min(pipe + burst);
            if r.reo_persist > 0 {
                r.reo_persist -= 1;
            } else {
                r.reo_mult = 1;
            }
        }
        let after_timeouts = r.state == RecoveryState::Loss;
        r.state = RecoveryState::Open;
        r.dupacks = 0;
        r.reno_sacked = 0;
        r.undo = None;
        r.retrans_ts = None;
        if after_timeouts {
            self.trust_path_again();
        }
    }

    /// True if what was sent again had not been lost.
    fn is_spurious(&self, seg: &Segment, facts: &AckFacts, delivered: &Delivered) -> bool {
        let r = &self.recovery;
        if r.undo.is_none() || !matches!(r.state, RecoveryState::Recovery | RecoveryState::Loss) {
            return false;
        }
        // RFC 3522 §3.2 (Eifel): the ACK echoes a timestamp older than the first retransmission.
        let echo_older = match (r.retrans_ts, seg.options.timestamps) {
            (Some(first), Some(ts)) if self.opt.timestamps => ts.ecr != 0 && ts_before(ts.ecr, first),
            _ => false,
        };
        // RFC 5682 §3: after a timeout, an ACK for bytes that were held for lost and never sent again.
        let original = r.state == RecoveryState::Loss && r.frto && delivered.original && self.opt.sack;
        // RFC 2883 §5, RFC 3708: every byte that was sent again was superfluous.
        let all_duplicates = facts.dsack > 0 && r.undo_bytes == 0 && r.retrans_ts.is_some();
        (facts.advanced > 0 && echo_older) || original || all_duplicates
    }

    /// RFC 4015: back to the window before the mistake; what was held for lost is in flight.
    fn undo(&mut self, now: Instant) {
        let Some(undo) = self.recovery.undo.take() else { return };
        self.board.unlose_all();
        self.cc.undo(undo.cwnd, undo.ssthresh);
        self.rtt.backoff = 0;
        let r = &mut self.recovery;
        r.state = RecoveryState::Open;
        r.dupacks = 0;
        r.reno_sacked = 0;
        r.retrans_ts = None;
        r.reordering_seen = true;
        self.set_loss_timer(now);
    }

    /// RFC 6298 §5.4 to §5.6, RFC 5681 §3.1: everything is lost, and the window is one segment.
    pub(super) fn on_retransmission_timeout(&mut self) {
        let flight = self.snd.flight();
        let first = self.recovery.state != RecoveryState::Loss;
        if first {
            let repeating = self.recovery.state == RecoveryState::Recovery;
            let kept = self.recovery.undo.filter(|_| repeating);
            self.recovery.undo = kept.or(Some(self.what_to_go_back_to()));
            // RFC 5681 §3.1: once in a window, not for each timeout of the same data.
            if !self.recovery.is_reducing() {
                self.cc.on_congestion(flight, u32::from(self.snd.mss));
            }
            // What was repeated before the timeout may be acknowledged after it: that proves nothing.
            self.recovery.frto = !repeating;
            if !repeating {
                self.recovery.retrans_ts = None;
                self.recovery.undo_bytes = 0;
            }
            self.opt.cwr_due = self.opt.ecn;
        }
        self.cc.on_timeout(u32::from(self.snd.mss));
        if self.board.head_is_sacked() {
            self.board.forget_sacks();
        }
        self.board.lose_all();
        let r = &mut self.recovery;
        r.state = RecoveryState::Loss;
        r.high_seq = self.snd.nxt;
        r.dupacks = 0;
        r.reno_sacked = 0;
        r.tlp = None;
        // What is delivered from here on tells anew; timeouts may go on for longer than the clock of the board.
        r.newest = None;
        self.settle();
    }

    /// Bytes have to be sent again for another reason than congestion: no reduction, nothing to undo.
    pub(super) fn begin_repair(&mut self, now: Instant) {
        let r = &mut self.recovery;
        r.state = RecoveryState::Loss;
        r.undo = None;
        r.high_seq = self.snd.nxt;
        self.settle();
        self.set_loss_timer(now);
    }

    /// The reordering timer held bytes for lost.
    pub(super) fn after_reordering(&mut self, now: Instant) {
        if self.probe_was_lost(now) {
            return;
        }
        if self.recovery.state != RecoveryState::Recovery {
            self.enter_recovery(now, self.snd.flight());
        }
        self.prr(0, true);
        if self.cc.is_model() {
            // No ACK may come for a while: the window is the model's, and what is in flight has become less. What the model makes of losses
            // it makes of those that ACKs tell of: its thresholds are for these.
            self.feed_model(now, &Delivered::default(), 0);
        }
        self.settle();
    }

    /// Bytes were sent again.
    pub(super) fn note_resent(&mut self, now: Instant, bytes: u32) {
        if self.recovery.retrans_ts.is_none() {
            self.recovery.retrans_ts = Some(ts_clock(now, self.cfg.ts_offset));
        }
        self.recovery.undo_bytes = self.recovery.undo_bytes.saturating_add(bytes);
    }

    /// Arms the timer that watches over what is in flight: a tail loss probe if one may be sent, else the RTO.
    #[inline]
    pub(super) fn set_loss_timer(&mut self, now: Instant) {
        let rto = now + self.rtt.rto(&self.cfg);
        let at = match self.probe_timeout() {
            // RFC 8985 §7.2: not after the timeout would have come, and in its place then.
            Some(pto) => {
                self.timers.watch = Watch::Probe;
                if now + pto < rto { now + pto } else { rto }
            }
            None => {
                self.timers.watch = Watch::Rto;
                self.clamp_to_user_timeout(rto)
            }
        };
        self.timers.set(Timer::Retransmit, at);
    }

    /// RFC 8985 §7.2: a probe is for a flight of which nothing is known but that it left.
    #[inline]
    pub(super) fn may_probe(&self) -> bool {
        self.opt.sack && self.recovery.quiet && self.rtt.is_known() && self.rtt.backoff == 0
    }

    /// RFC 8985 §7.2: PTO = 2 SRTT, plus the peer's longest ACK delay for a lone segment.
    #[inline]
    fn probe_timeout(&self) -> Option<Duration> {
        if !self.may_probe() {
            return None;
        }
        let lone = self.snd.flight() <= u32::from(self.snd.mss);
        Some(self.rtt.smoothed.times(2) + if lone { PEER_DELAYED_ACK } else { PROBE_SLACK })
    }

    /// A tail loss probe leaves that ends at `end`.
    pub(super) fn note_probe(&mut self, end: SeqNum, repeated: bool) {
        self.recovery.tlp = Some(Tlp { end, repeated });
        self.recovery.quiet = false;
    }

    /// RFC 8985 §7.4: what the answer to a probe says about the segment it repeated.
    fn end_probe(&mut self, facts: &AckFacts) {
        let Some(tlp) = self.recovery.tlp else { return };
        if self.snd.una.before(tlp.end) {
            return;
        }
        if !tlp.repeated || facts.dsack > 0 {
            self.recovery.tlp = None;
        } else if self.snd.una.after(tlp.end) {
            // The probe filled a hole that nobody noticed: the loss has to have its effect.
            self.recovery.tlp = None;
            if self.recovery.state == RecoveryState::Open || self.recovery.state == RecoveryState::Disorder {
                self.cc.on_congestion(self.snd.flight() + facts.advanced, u32::from(self.snd.mss));
                self.cc.cwnd = self.cc.cwnd.min(self.cc.ssthresh);
            }
        } else if facts.duplicate {
            self.recovery.tlp = None;
        }
    }
}
