//! SEGMENT ARRIVES (RFC 9293 §3.10.7.4) for the states in which both SYNs are known: sequence number, RST, SYN.

use super::Tcb;
#[cfg(debug_assertions)]
use super::state::Timer;
use crate::actions::{Actions, DropReason, Events, SocketError};
use crate::half_open::{paws_rejects, ts_before};
use crate::info::State;
use crate::segment::{Flags, Segment};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// RFC 7323 §5.5: a timestamp that is older than this says nothing any more.
const PAWS_IDLE: Duration = Duration::from_secs(24 * 24 * 3_600);

/// What to do with a segment after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on with the next step.
    Continue,
    /// Forget it.
    Drop(DropReason),
    /// Send an ACK and forget it.
    AckThenDrop(DropReason),
    /// The step has said all (a reset, a challenge).
    Done,
}

/// Flags that take a segment off the fast path.
const SLOW: Flags =
    Flags::FIN.with(Flags::SYN).with(Flags::RST).with(Flags::URG).with(Flags::ECE).with(Flags::CWR);

impl Tcb {
    /// A segment arrived (RFC 9293 §3.10.7).
    #[inline(always)]
    pub fn on_segment(&mut self, now: Instant, seg: &Segment) -> Actions {
        let mut out = Actions::default();
        // Where the caller keeps it: moved, what was just written word by word would be waited for.
        self.react(now, seg, &mut out);
        out
    }

    #[inline(never)]
    fn react(&mut self, now: Instant, seg: &Segment, out: &mut Actions) {
        self.stats.segs_in = self.stats.segs_in.wrapping_add(1);
        if self.state == State::Established && self.is_expected(seg) {
            self.on_expected(now, seg, out);
        } else {
            self.on_unexpected(now, seg, out);
        }
        out.transmit = self.has_output();
        #[cfg(debug_assertions)]
        self.check_input(out, seg);
    }

    /// The common case: the next data in order, or an ACK, with nothing unusual about either end (header prediction).
    #[inline]
    fn is_expected(&self, seg: &Segment) -> bool {
        let ts_ok = match (self.opt.timestamps, seg.options.timestamps) {
            (false, _) => true,
            (true, Some(ts)) => !ts_before(ts.val, self.opt.ts_recent),
            (true, None) => false,
        };
        seg.seq == self.rcv.nxt
            && !seg.flags.any(SLOW)
            && ts_ok
            && seg.len <= self.rcv.nxt.span_to(self.rcv.adv)
            && self.reassembly.is_empty()
            && self.rcv.fin.is_none()
            && seg.options.sack.is_empty()
            && !seg.ce
            && self.soft_error.is_none()
            && seg.ack.is_some_and(|ack| self.snd.una.before_or_eq(ack) && ack.before_or_eq(self.snd.nxt))
            && self.recovery.is_quiet()
    }

    /// As the steps below, with the outcome of each known.
    #[inline]
    fn on_expected(&mut self, now: Instant, seg: &Segment, out: &mut Actions) {
        self.stats.heard_at = now;
        if let (true, Some(ts)) = (self.opt.timestamps, seg.options.timestamps) {
            self.update_ts_recent(now, seg, ts.val);
        }
        if let Some(ack) = seg.ack {
            self.on_plain_ack(now, seg, ack, out);
        }
        if seg.len > 0 {
            self.on_data_in_order(now, seg, out);
        }
    }

    #[inline(never)]
    fn on_unexpected(&mut self, now: Instant, seg: &Segment, out: &mut Actions) {
        let verdict = match self.state {
            State::Closed | State::TimeWait => Verdict::Drop(DropReason::Closed),
            State::SynSent => self.on_segment_syn_sent(now, seg, out),
            _ => self.on_synchronized(now, seg, out),
        };
        match verdict {
            Verdict::Continue | Verdict::Done => {}
            Verdict::Drop(reason) => out.drop = Some(reason),
            Verdict::AckThenDrop(reason) => {
                self.challenge(now, seg, reason, out);
                out.drop = Some(reason);
            }
        }
    }

    fn on_synchronized(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        // RFC 9293 §3.5, simultaneous open: the SYN-ACK repeats the peer's SYN. What is new in it is the ACK.
        let stripped;
        let seg = if self.is_syn_ack_of_simultaneous_open(seg) {
            stripped = Segment { seq: seg.seq + 1, flags: seg.flags.without(Flags::SYN), ..*seg };
            // The SYN in it is there for the second time; Linux says so.
            self.note_duplicate(seg.seq, seg.seq + 1);
            &stripped
        } else {
            seg
        };
        let verdict = self.check_sequence(now, seg);
        if verdict != Verdict::Continue {
            return verdict;
        }
        if seg.flags.any(Flags::RST) {
            return self.on_reset(now, seg, out);
        }
        // Fourth, RFC 5961 §4.2: whatever the sequence number, a SYN is answered by a challenge ACK. If the peer has
        // really restarted, its RST in answer to that is exact.
        if seg.flags.any(Flags::SYN) {
            return Verdict::AckThenDrop(DropReason::SynInWindow);
        }
        let verdict = self.check_ack(now, seg, out);
        if verdict != Verdict::Continue || self.state == State::Closed {
            return verdict;
        }
        // RFC 7323 §4.3 has this before the ACK is looked at; but a timestamp out of a segment whose ACK is impossible would
        // let PAWS drop what the true peer sends (RFC 5961's injections; Linux does the same).
        if let (true, Some(ts)) = (self.opt.timestamps, seg.options.timestamps) {
            self.update_ts_recent(now, seg, ts.val);
        }
        self.check_urgent(seg, out);
        self.on_text(now, seg, out)
    }

    fn is_syn_ack_of_simultaneous_open(&self, seg: &Segment) -> bool {
        self.state == State::SynReceived
            && seg.flags.all(Flags::SYN)
            && !seg.flags.any(Flags::RST)
            && seg.seq + 1 == self.rcv.nxt
            && seg.ack.is_some_and(|ack| ack.after(self.snd.iss) && ack.before_or_eq(self.snd.nxt))
    }

    /// First: check the sequence number. RFC 7323 §5.3 puts PAWS before it.
    fn check_sequence(&mut self, now: Instant, seg: &Segment) -> Verdict {
        let rst = seg.flags.any(Flags::RST);
        if let (true, Some(ts), false) = (self.opt.timestamps, seg.options.timestamps, rst) {
            // RFC 7323 §5.3 R1, unless TS.Recent is outdated (§5.5).
            if paws_rejects(ts.val, self.opt.ts_recent) && now - self.opt.ts_recent_at < PAWS_IDLE {
                return Verdict::AckThenDrop(DropReason::Paws);
            }
        }
        // The table of §3.4, except that what ends between the last ACK sent and RCV.NXT passes to have its ACK read: a
        // pure ACK that was overtaken by data is no reason for an ACK in return.
        let old = seg.end().before(self.rcv.acked);
        let beyond = seg.seq.after(self.rcv.adv)
            || (seg.len > 0 && seg.seq == self.rcv.adv && self.rcv.adv != self.rcv.nxt);
        if old || beyond {
            if rst {
                if self.ends_connection(seg.seq) {
                    return Verdict::Continue;
                }
                return Verdict::Drop(DropReason::RstOutOfWindow);
            }
            if old && seg.len > 0 && !seg.flags.any(Flags::SYN) {
                // RFC 2883 §4.1: tell the sender that it repeated itself.
                self.note_duplicate(seg.seq, seg.seq + seg.len);
            }
            return Verdict::AckThenDrop(if old { DropReason::Duplicate } else { DropReason::OutOfWindow });
        }
        Verdict::Continue
    }

    /// RFC 7323 §4.3 (2): TS.Recent follows the segment that covers the last ACK sent.
    #[inline]
    fn update_ts_recent(&mut self, now: Instant, seg: &Segment, val: u32) {
        if seg.seq.before_or_eq(self.rcv.acked) {
            self.opt.ts_recent = val;
            self.opt.ts_recent_at = now;
        }
    }

    /// RFC 5961 §3.2: a reset has to be at RCV.NXT. Linux takes two other numbers, neither of which is easier to guess.
    fn ends_connection(&self, reset: SeqNum) -> bool {
        // Linux tcp_reset_check: the FIN's own, with which some systems follow the FIN of a program that was killed.
        let at_fin = self.rcv.fin_seen && reset + 1 == self.rcv.nxt;
        // While segments are missing: the end of all that arrived, where the peer's SND.NXT is, as the SACK blocks told it.
        let behind_hole = || self.rcv.fin.map(|at| at + 1).or_else(|| self.reassembly.end());
        reset == self.rcv.nxt || at_fin || (self.opt.sack && behind_hole() == Some(reset))
    }

    /// Second: check the RST bit.
    fn on_reset(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        if !self.ends_connection(seg.seq) {
            self.challenge(now, seg, DropReason::RstNotExact, out);
            return Verdict::Drop(DropReason::RstNotExact);
        }
        let error = match self.state {
            // An active open that was refused half-way (simultaneous open).
            State::SynReceived if !self.opt.early => Some(SocketError::Refused),
            State::CloseWait => Some(SocketError::BrokenPipe),
            State::Closing | State::LastAck | State::TimeWait => None,
            _ => Some(SocketError::Reset),
        };
        self.close(out, error);
        Verdict::Done
    }

    /// An ACK in answer to what is out of order in some way. Its rate is limited unless it answers data or a FIN, which are no
    /// answers themselves (Linux tcp_oow_rate_limited). RFC 5961 §7: what may be a stranger's guess is limited for the whole stack, too.
    /// The rest is not: a probe of the window or of the peer's life, or a FIN whose ACK got lost, has to be answered (RFC 9293
    /// §3.8.4, §3.8.6.1) however many guesses there are elsewhere.
    pub(super) fn challenge(&mut self, now: Instant, seg: &Segment, why: DropReason, out: &mut Actions) {
        let fresh =
            self.ack.challenge_at != Instant::ZERO && now - self.ack.challenge_at < self.cfg.challenge_gap;
        let data = seg.seq_len() > 0 && !seg.flags.any(Flags::SYN.with(Flags::RST));
        let free = data && !why.is_guess();
        if fresh && !free {
            return;
        }
        if !free {
            self.ack.challenge_at = now;
            if !self.ack.now && why.is_guess() {
                out.events.insert(Events::CHALLENGE);
            }
        }
        self.ack.now = true;
    }

    /// RFC 5961 §7: the stack has sent enough challenge ACKs for now, so the one that [`Events::CHALLENGE`] told of does
    /// not leave.
    pub fn withhold_challenge(&mut self) {
        self.ack.now = false;
    }

    #[cfg(debug_assertions)]
    fn check_input(&self, out: &Actions, seg: &Segment) {
        self.check();
        if let Some(place) = out.place {
            debug_assert!(
                place.len > 0 && place.from + place.len <= seg.len,
                "a place outside of the payload"
            );
            debug_assert!(place.at + place.len <= self.rcv.capacity, "a place outside of the stream");
        }
        debug_assert!(
            self.state != State::Closed || !self.timers.is_armed(Timer::Retransmit),
            "a timer of a closed connection"
        );
    }
}
