//! SEGMENT ARRIVES in SYN-SENT (RFC 9293 §3.10.7.3).

use super::Tcb;
use super::arrives::Verdict;
use super::state::Timer;
use crate::actions::{Actions, DropReason, Events, SocketError};
use crate::config::EcnMode;
use crate::half_open::{Agreed, ts_before, ts_clock};
use crate::info::State;
use crate::scoreboard::{Delivered, Tick};
use crate::segment::{Flags, Segment};
use crate::time::Instant;

impl Tcb {
    pub(super) fn on_segment_syn_sent(&mut self, now: Instant, seg: &Segment, out: &mut Actions) -> Verdict {
        // First: check the ACK bit: ISS < SEG.ACK =< SND.NXT, which is our SYN and what data went along with it.
        let acceptable = seg.ack.is_some_and(|ack| ack.after(self.snd.iss) && ack.before_or_eq(self.snd.nxt));
        if let (Some(ack), false) = (seg.ack, acceptable) {
            if !seg.flags.any(Flags::RST) {
                // <SEQ=SEG.ACK><CTL=RST>: it belongs to an old incarnation.
                self.snd.rst_for = Some(ack);
            }
            return Verdict::Drop(DropReason::AckOfUnsent);
        }
        // Second: check the RST bit. RFC 5961 §3.2 leaves SYN-SENT to the ACK check above.
        if seg.flags.any(Flags::RST) {
            if acceptable {
                self.close(out, Some(SocketError::Refused));
                return Verdict::Done;
            }
            return Verdict::Drop(DropReason::RstNotExact);
        }
        // RFC 7323 §3.2: TSecr is one of ours, sent since the first SYN; else it answers somebody else's (as Linux: reset).
        if let (true, Some(ts), Some(ack)) = (self.cfg.timestamps, seg.options.timestamps, seg.ack) {
            let (first, last) = (self.recovery.waiting_since, now);
            let clock = |at| ts_clock(at, self.cfg.ts_offset);
            if ts.ecr != 0 && (ts_before(ts.ecr, clock(first)) || ts_before(clock(last), ts.ecr)) {
                self.snd.rst_for = Some(ack);
                return Verdict::Drop(DropReason::Paws);
            }
        }
        // Fourth: check the SYN bit.
        if !seg.flags.any(Flags::SYN) {
            return Verdict::Drop(DropReason::NoSyn);
        }
        self.take_syn(now, seg);
        if seg.ack.is_some() {
            self.complete_connect(now, seg, out);
        } else {
            self.cross_syns(now);
        }
        Verdict::Continue
    }

    /// What the peer's SYN says, whether it acknowledges ours or crossed it.
    fn take_syn(&mut self, now: Instant, seg: &Segment) {
        self.stats.heard_at = now;
        self.rcv.start(seg.seq);
        // RFC 3168 §6.1.1: the answer to an ECN-setup SYN is ECE without CWR; a crossing SYN has both.
        let ece = seg.flags.any(Flags::ECE);
        let cwr = seg.flags.any(Flags::CWR);
        let ecn = ece && cwr != seg.ack.is_some() && self.cfg.ecn == EcnMode::Active;
        let agreed = Agreed::between(&self.cfg, &self.tuple, seg, ecn);
        self.agree(&agreed);
        if let (true, Some(ts)) = (agreed.timestamps, seg.options.timestamps) {
            self.opt.ts_recent = ts.val;
            self.opt.ts_recent_at = now;
        }
        // RFC 7323 §2.2: the window of a SYN is never scaled.
        self.snd.wnd = u32::from(seg.wnd);
        self.snd.wnd_max = self.snd.wnd;
        self.snd.wl1 = seg.seq;
        self.snd.wl2 = seg.ack.unwrap_or(self.snd.iss);
        // The SYN carried this window: it is what the peer may use until it hears more.
        self.rcv.adv = self.rcv.nxt + u32::from(self.cfg.syn_window());
    }

    fn complete_connect(&mut self, now: Instant, seg: &Segment, out: &mut Actions) {
        let ack = seg.ack.unwrap_or(self.snd.nxt);
        let mut delivered = Delivered::default();
        self.board.ack_to(ack, &mut delivered);
        self.sample_rtt(now, seg, &delivered);
        self.release(now, ack, out);
        self.stats.delivered_bytes += 1;
        self.opt.syn_data_acked = out.released > 0 && self.snd.flight() == 0;
        self.establish(now, out);
        if self.snd.flight() > 0 {
            // RFC 7413 §4.2.1: the server did not take the data of the SYN; send it again, as if for the first time.
            self.board.lose_all();
            self.begin_repair(now);
        }
        if core::mem::take(&mut self.opt.writer_waits) {
            // Linux: "Save one ACK. Data will be ready after several ticks, if write_pending is set."
            self.ack.interactive = true;
            self.delay_ack(now);
        } else {
            self.ack.now = true;
        }
        // RFC 9293 §3.10.7.3: "if there are other controls or text in the segment, then continue processing at the sixth
        // step"; what lies ahead of the SYN-ACK's window is left to the peer to repeat.
        if seg.len > 0 || seg.flags.any(Flags::FIN) {
            let rest = Segment { seq: seg.seq + 1, flags: seg.flags.without(Flags::SYN), ..*seg };
            let _ = self.on_text(now, &rest, out);
        }
    }

    /// The handshake is complete, from either side.
    pub(super) fn establish(&mut self, now: Instant, out: &mut Actions) {
        self.state = State::Established;
        self.stats.opened_at = now;
        self.snd.syn_due = false;
        self.timers.clear(Timer::Retransmit);
        self.recovery.retransmits = 0;
        if self.recovery.syn_resent {
            self.rtt.syn_was_lost();
        }
        self.rtt.backoff = 0;
        self.begin_probing();
        // RFC 6928 §2, and RFC 5681 §3.1: one segment if the SYN had to be repeated.
        let segments = if self.recovery.syn_resent { 1 } else { u32::from(self.cfg.initial_cwnd.max(1)) };
        self.cc.cwnd = segments * u32::from(self.snd.mss);
        self.snd.max_flight_end = self.snd.nxt;
        self.recovery.high_seq = self.snd.nxt;
        self.rcv.mss = u32::from(self.snd.mss.min(self.cfg.mss)).max(88);
        self.rcv.drs_at = Tick::at(now);
        self.arm_keepalive(now);
        if !core::mem::take(&mut self.opt.early) {
            out.events.insert(Events::CONNECTED);
        }
    }

    /// RFC 9293 §3.5, figure 7: both ends sent SYN. Answer SYN-ACK with our first ISS.
    fn cross_syns(&mut self, now: Instant) {
        self.state = State::SynReceived;
        self.snd.syn_due = true;
        self.timers.set(Timer::Retransmit, now + self.rtt.rto(&self.cfg));
    }
}
