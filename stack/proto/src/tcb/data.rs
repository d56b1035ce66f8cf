//! Segment text, URG and FIN (RFC 9293 §3.10.7.4, sixth to eighth); when to acknowledge; the receive window.

use super::Tcb;
use super::arrives::Verdict;
use super::state::{QUICK_ACKS, Timer};
use crate::actions::{Actions, DropReason, Events, Place, SocketError};
use crate::half_open::ts_clock;
use crate::info::State;
use crate::reassembly::Insert;
use crate::segment::{Flags, Options, SackBlock, SackBlocks, Segment, Timestamps};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};
use crate::wire::tcp::sack_blocks_max;

/// The shortest delay of an ACK (Linux TCP_ATO_MIN).
const ATO_MIN: Duration = Duration::from_millis(40);
/// Bytes of what may be a request.
const REQUEST_MAX: u32 = 4096;
/// The same in an exchange to and fro, full-sized segments: what any peer may send unasked (RFC 6928), so that none is kept waiting by
/// its congestion window.
const REQUEST_SEGMENTS_MAX: u32 = 10;
/// How long the ACK of a request waits for the answer where it would go at once otherwise.
const ANSWER_TIME: Duration = Duration::from_millis(1);
/// Long requests whose ACKs go at once after one that waited in vain.
const HASTY_ACKS: u8 = 16;

impl Tcb {
    /// The next bytes in order, which fit: the fast path of [`Tcb::on_text`].
    #[inline]
    pub(super) fn on_data_in_order(&mut self, now: Instant, seg: &Segment, out: &mut Actions) {
        out.place = Some(Place { from: 0, at: 0, len: seg.len });
        out.advanced = seg.len;
        out.events.insert(Events::READABLE);
        self.rcv.nxt += seg.len;
        self.note_data(now, seg, seg.len);
        self.schedule_ack(now, seg);
    }

    /// Statistics and estimates that each data segment feeds.
    #[inline]
    fn note_data(&mut self, now: Instant, seg: &Segment, len: u32) {
        self.look_at_round(now, seg);
        self.stats.data_segs_in = self.stats.data_segs_in.wrapping_add(1);
        self.stats.bytes_received += u64::from(len);
        // Linux tcp_measure_rcv_mss: the largest segment seen, within what we offered.
        if len > self.rcv.mss {
            self.rcv.mss = len.min(u32::from(self.cfg.mss));
        }
        // After an idle period the exchange may have changed its nature, and the peer's window may have to open again.
        let gap = now - self.ack.data_at;
        if gap > self.rtt.rto(&self.cfg) {
            self.ack.quick = QUICK_ACKS;
        }
        self.ack.data_at = now;
    }

    /// RFC 9293 §3.8.6.3 and RFC 5681 §4.2: which ACK to send when, for data that arrived in order.
    #[inline]
    fn schedule_ack(&mut self, now: Instant, seg: &Segment) {
        let unacked = self.rcv.acked.distance_to(self.rcv.nxt);
        // SHLD-19: at least every second full-sized segment; and at once while the peer's slow start depends on it.
        let quick = self.ack.always_quick || (self.ack.quick > 0 && !self.ack.interactive);
        if unacked > self.rcv.mss || quick {
            let first = self.ack.quick == QUICK_ACKS && !self.ack.always_quick;
            self.ack.quick = self.ack.quick.saturating_sub(1);
            // The first bytes, if they are few and end a write of the peer's, ask for an answer more often than not, and that
            // brings the ACK along. Slow start can wait for it a moment; Linux sends a segment of its own.
            if first && unacked <= self.rcv.mss.min(REQUEST_MAX) && seg.flags.any(Flags::PSH) {
                return self.delay_ack_for(now, ANSWER_TIME.min(self.ack.ato));
            }
            if !quick && self.ack.interactive && seg.flags.any(Flags::PSH) {
                return self.await_answer(now, unacked);
            }
            self.ack.now = true;
        } else {
            self.ack.pushed |= seg.len < self.rcv.mss || seg.flags.any(Flags::PSH);
            self.delay_ack(now);
        }
    }

    /// RFC 5681 §4.2 would have an ACK for every second full-sized segment, to keep the peer's window moving. Where the exchange goes to
    /// and fro and this is the end of a write of the peer's, it is a request: the answer brings the ACK, and a frame less leaves. One
    /// answer that was late, and the next ACKs go at once again.
    #[inline(never)]
    fn await_answer(&mut self, now: Instant, unacked: u32) {
        let few = unacked <= self.rcv.mss.saturating_mul(REQUEST_SEGMENTS_MAX);
        if few && self.ack.hasty == 0 {
            self.ack.long = true;
            return self.delay_ack_for(now, ANSWER_TIME.min(self.ack.ato));
        }
        self.ack.hasty = self.ack.hasty.saturating_sub(u8::from(few));
        self.ack.now = true;
    }

    /// Whether the ACK that is pending goes as soon as the program has read everything (Linux tcp_cleanup_rbuf): a sender with
    /// Nagle's algorithm may be waiting for it, and the exchange does not go to and fro, so no answer will bring it. Linux lets it go
    /// in an exchange to and fro, too, after a second small segment: who sends two at once does not wait, and the answer follows.
    #[inline]
    #[must_use]
    pub const fn acks_when_read(&self) -> bool {
        self.ack.pending && self.ack.pushed && !self.ack.interactive && !self.rcv.fin_seen
    }

    /// MUST-40: the ACK goes with data, or in less than half a second.
    #[inline]
    pub(super) fn delay_ack(&mut self, now: Instant) {
        self.delay_ack_for(now, self.ack.ato);
    }

    #[inline]
    fn delay_ack_for(&mut self, now: Instant, time: Duration) {
        self.ack.pending = true;
        // Never is later than any deadline; and what waits a while already may have to be told sooner now.
        if now + time < self.timers.at(Timer::DelayedAck) {
            self.timers.set(Timer::DelayedAck, now + time);
        }
    }

    /// Sixth: check the URG bit.
    pub(super) fn check_urgent(&mut self, seg: &Segment, out: &mut Actions) {
        if !seg.flags.any(Flags::URG) || self.rcv.fin_seen {
            return;
        }
        // RFC 6093 §3.2 and Linux: the pointer names the byte after the urgent one; the urgent byte is the one before.
        let up = seg.seq + u32::from(seg.urg);
        let known = self.rcv.urgent.is_some_and(|old| old.after(self.rcv.nxt) && up.before_or_eq(old));
        // Linux: "do not replay urg ptr": a pointer at what has arrived already is a repetition, or a fault of the peer.
        if seg.urg == 0 || known || (up - 1).before(self.rcv.nxt) {
            return;
        }
        self.rcv.urgent = Some(up);
        out.events.insert(Events::URGENT);
        out.urgent = Some(self.rcv.nxt.span_to(up - 1));
    }

    /// Seventh: process the segment text; eighth: check the FIN bit.
    pub(super) fn on_text(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        self.note_ecn(seg);
        let fin = seg.flags.any(Flags::FIN);
        if seg.len == 0 && !fin {
            return Verdict::Continue;
        }
        if self.rcv.fin_seen || self.rcv.fin.is_some_and(|at| (seg.seq + seg.len).after(at)) {
            // CLOSE-WAIT and later: nothing can follow the peer's FIN, except the FIN again.
            return Verdict::AckThenDrop(DropReason::AfterFin);
        }
        let end = seg.seq + seg.len;
        // RFC 9293 §3.6.1, RFC 1122 §4.2.2.13: data for a program that is gone resets the connection.
        // The reset is that of a segment for no connection: its number is what the peer expects, whatever of ours is in flight.
        if self.orphan && end.after(self.rcv.nxt) && seg.len > 0 {
            self.snd.rst_for = seg.ack;
            self.close(out, None);
            return Verdict::Drop(DropReason::Orphan);
        }
        // The same for a program that wants to neither send nor receive (Linux: "RFC 1122 says we MUST send a reset").
        let deaf = self.read_shut && matches!(self.state, State::FinWait1 | State::FinWait2);
        if deaf && end.after(self.rcv.nxt) && seg.len > 0 {
            self.snd.rst_for = seg.ack;
            self.close(out, Some(SocketError::Reset));
            return Verdict::Drop(DropReason::Orphan);
        }
        let before = self.rcv.nxt;
        let verdict = self.take_text(now, seg, out);
        let taken = self.rcv.nxt;
        if fin {
            self.note_fin(end);
        }
        if self.rcv.fin == Some(self.rcv.nxt) {
            self.on_fin(now, out);
        }
        out.advanced = before.distance_to(taken);
        if out.advanced > 0 {
            out.events.insert(Events::READABLE);
        }
        verdict
    }

    /// Trims the text to the window, says where it belongs, and joins what is in order now.
    fn take_text(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        let nxt = self.rcv.nxt;
        let end = seg.seq + seg.len;
        let start = seg.seq.later(nxt);
        let kept_end = end.earlier(self.rcv.adv);
        if seg.len == 0 {
            return Verdict::Continue;
        }
        if seg.seq.before(nxt) {
            // RFC 2883 §4: some of it has been received before.
            self.note_duplicate(seg.seq, end.earlier(nxt));
        }
        if end.before_or_eq(nxt) {
            self.ack.now = true;
            return Verdict::Drop(DropReason::Duplicate);
        }
        if !start.before(kept_end) {
            // A zero-window probe: answer with the window as it is.
            self.ack.now = true;
            return Verdict::Drop(DropReason::NoSpace);
        }
        let len = start.distance_to(kept_end);
        let place = Place { from: seg.seq.distance_to(start), at: nxt.distance_to(start), len };
        if start == nxt {
            out.place = Some(place);
            self.note_data(now, seg, len);
            self.rcv.nxt = kept_end;
            if self.reassembly.is_empty() {
                self.schedule_ack(now, seg);
            } else {
                if let Some((from, to)) = self.reassembly.first_below(kept_end) {
                    // RFC 2883 §4: it repeats some of what had come out of order.
                    self.note_duplicate(from, to);
                }
                self.rcv.nxt = self.reassembly.advance(kept_end);
                // RFC 5681 §4.2: at once when a segment fills a gap in full or in part.
                self.ack.now = true;
            }
        } else {
            // RFC 5681 §4.2: at once when a segment arrives out of order.
            self.ack.now = true;
            self.stats.out_of_order = self.stats.out_of_order.wrapping_add(1);
            match self.reassembly.insert(start, kept_end) {
                Insert::Stored => {
                    out.place = Some(place);
                    self.note_data(now, seg, len);
                }
                Insert::Duplicate => {
                    self.note_duplicate(start, kept_end);
                    return Verdict::Drop(DropReason::Duplicate);
                }
                Insert::Full => return Verdict::Drop(DropReason::ReassemblyFull),
            }
        }
        Verdict::Continue
    }

    /// The peer's FIN has been seen; it counts when RCV.NXT reaches it. One beyond the window is sent again. One that lies
    /// below what has arrived already, or that is another than the first, is none: RCV.NXT would step over it.
    fn note_fin(&mut self, at: SeqNum) {
        let possible = self.rcv.fin.is_none() && !self.reassembly.reaches_beyond(at);
        if possible && at.before_or_eq(self.rcv.adv) && at.after_or_eq(self.rcv.nxt) {
            self.rcv.fin = Some(at);
        }
        // One that is not in order yet is answered at once, as what arrives out of order is.
        self.ack.now |= at != self.rcv.nxt;
    }

    /// Eighth: the peer has sent all. RCV.NXT goes over the FIN.
    fn on_fin(&mut self, now: Instant, out: &mut Actions) {
        self.rcv.nxt += 1;
        self.rcv.adv = self.rcv.adv.later(self.rcv.nxt);
        self.rcv.fin = None;
        self.rcv.fin_seen = true;
        // As in Linux's tcp_fin: nothing can lie behind the FIN, and what is to be told of duplicates is forgotten.
        self.ack.dsack = None;
        out.events.insert(Events::PEER_FIN);
        match self.state {
            State::SynReceived | State::Established => {
                self.state = State::CloseWait;
                // The program is about to close its side, too: the ACK may go with its FIN. Not so where no data ever came,
                // as Linux knows no delay yet.
                if self.ack.data_at != Instant::ZERO {
                    self.delay_ack(now);
                } else {
                    self.ack.now = true;
                }
            }
            // Our FIN is not acknowledged yet, or `on_fin_acked` would have moved on.
            State::FinWait1 => {
                self.state = State::Closing;
                self.ack.now = true;
            }
            State::FinWait2 => {
                self.ack.now = true;
                self.enter_time_wait(out);
            }
            _ => self.ack.now = true,
        }
    }

    /// RFC 2883 §4: remembers a range to report in the first SACK block of the next ACK.
    pub(super) fn note_duplicate(&mut self, start: SeqNum, end: SeqNum) {
        if self.opt.sack && start.before(end) {
            self.ack.dsack = Some((start, end));
        }
        self.ack.now = true;
    }

    /// RFC 3168 §6.1.3: a mark is echoed until CWR says that the sender has heard.
    fn note_ecn(&mut self, seg: &Segment) {
        if !self.opt.ecn {
            return;
        }
        if seg.flags.any(Flags::CWR) {
            self.ack.ecn_echo = false;
        }
        if seg.ce && seg.len > 0 {
            self.ack.ecn_echo = true;
            self.ack.now = true;
        }
    }

    /// The right edge of the window to advertise now, and SEG.WND for it.
    ///
    /// RFC 9293 §3.8.6.2.2: the edge moves only by a full segment or half the stream, whichever is less, and never back.
    /// The window is kept short of the capacity by one unit of the scale, so that rounding a window up is covered.
    pub(super) fn select_window(&mut self) -> u16 {
        let shift = self.rcv.wscale;
        let unit = 1u32 << shift;
        let nxt = self.rcv.nxt;
        let room = self.rcv.consumed + self.rcv.capacity;
        let target = if self.rcv.capacity > 2 * unit { room - (unit - 1) } else { room };
        let current = nxt.span_to(self.rcv.adv);
        let wanted = nxt.span_to(target).min(65_535u32 << shift);
        // Half the stream is enough although the window is kept a unit short of it: whoever reads half tells us once.
        let step = self.rcv.mss.min((self.rcv.capacity / 2).saturating_sub(unit - 1)).max(1);
        let mut raw = if wanted >= current.saturating_add(step) || (current == 0 && wanted >= step) {
            wanted >> shift
        } else {
            // RFC 7323 §2.4: rounding must not shrink the window; up if there is room, else down, and accept what was offered.
            let up = (current + (unit - 1)) >> shift;
            let covered = (nxt + (up << shift)).before_or_eq(room);
            if covered { up } else { current >> shift }
        };
        raw = raw.min(65_535);
        let told = nxt + (raw << shift);
        self.rcv.adv = self.rcv.adv.later(told);
        self.rcv.told_less = told.before(self.rcv.adv);
        raw as u16
    }

    /// True if the window that an ACK would offer now is so much larger that the peer should hear of it.
    pub(super) fn window_update_due(&self) -> bool {
        let mut current = self.rcv.nxt.span_to(self.rcv.adv);
        if self.rcv.told_less {
            // What counts is what the peer heard last, which rounding made less than is accepted.
            current = current.saturating_sub((1u32 << self.rcv.wscale) - 1);
        }
        let room = self.rcv.nxt.span_to(self.rcv.consumed + self.rcv.capacity);
        let grown = room.saturating_sub(current);
        // Linux tcp_cleanup_rbuf: when the window at least doubles. A window of less than a segment hurts at once.
        let tight = current < self.rcv.mss.saturating_mul(2);
        grown >= self.rcv.mss.min(self.rcv.capacity / 2).max(1)
            && (tight || room >= current.saturating_mul(2))
    }

    /// The timestamps of a segment that is not a SYN.
    #[inline]
    pub(super) fn timestamps(&self, now: Instant) -> Option<Timestamps> {
        let val = ts_clock(now, self.cfg.ts_offset);
        self.opt.timestamps.then_some(Timestamps { val, ecr: self.opt.ts_recent })
    }

    /// The options of a segment that is not a SYN, into fresh ones. With `sack`, blocks for what arrived out of order.
    #[inline]
    pub(super) fn put_options(&self, now: Instant, options: &mut Options) {
        options.timestamps = self.timestamps(now);
        if self.opt.sack && (self.ack.dsack.is_some() || !self.reassembly.is_empty()) {
            options.sack = self.sack_option();
        }
    }

    #[cold]
    fn sack_option(&self) -> SackBlocks {
        let mut blocks = SackBlocks::NONE;
        if let Some((start, end)) = self.ack.dsack {
            blocks.push(SackBlock { start, end });
            // RFC 2883 §4: if the duplicate lies within a block that is reported, that block comes second.
            if let Some(block) = self.reassembly.covering(start) {
                blocks.push(block);
            }
        }
        self.reassembly.sack_blocks(&mut blocks, sack_blocks_max(self.opt.timestamps));
        blocks
    }

    /// Every segment that leaves carries the ACK: nothing is pending any more.
    #[inline]
    pub(super) fn note_ack_sent(&mut self) {
        self.rcv.acked = self.rcv.nxt;
        self.ack.now = false;
        self.ack.dsack = None;
        if self.ack.pending {
            self.ack.pending = false;
            self.ack.pushed = false;
            self.ack.long = false;
            self.timers.clear(Timer::DelayedAck);
        }
    }

    /// Data leaves soon after data arrived: the exchange goes to and fro (Linux "pingpong").
    #[inline]
    pub(super) fn note_data_sent(&mut self, now: Instant) {
        if now - self.ack.data_at < self.ack.ato {
            self.ack.interactive = true;
        }
    }

    /// The delayed ACK is due: nothing came along that could have carried it.
    pub(super) fn on_delayed_ack(&mut self) {
        self.ack.now = self.ack.pending;
        if core::mem::take(&mut self.ack.long) {
            self.ack.hasty = HASTY_ACKS;
        }
        if self.ack.interactive {
            self.ack.interactive = false;
            self.ack.ato = ATO_MIN.min(self.cfg.delayed_ack);
        } else {
            self.ack.ato = self.ack.ato.times(2).min(self.cfg.delayed_ack);
        }
    }
}
