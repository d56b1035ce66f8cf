//! What to send next (RFC 9293 §3.8): resets, SYNs, what was lost, new data, probes, bare ACKs, in this order.

use super::Tcb;
use super::state::{Timer, Watch, Work};
use crate::config::EcnMode;
use crate::half_open::ts_clock;
use crate::info::State;
use crate::scoreboard::Tick;
use crate::segment::{Flags, Options, Timestamps, Transmit, TxLimits};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};
use crate::wire::tcp::options_len;

/// How much of the time a paced connection gathers before it sends, and how much it may make up for.
const PACE_QUANTUM: Duration = Duration::from_millis(1);
const PACE_CREDIT: Duration = Duration::from_millis(2);
/// SEG.UP reaches no further (RFC 6093 §2).
const URGENT_MAX: u32 = 65_535;

impl Tcb {
    /// The next segment to send, until `None`.
    #[inline]
    pub fn poll_transmit(&mut self, now: Instant, limits: TxLimits) -> Option<Transmit> {
        if !self.has_output() {
            return None;
        }
        let mut tx = Transmit::default();
        self.poll_into(now, limits, &mut tx).then_some(tx)
    }

    /// The same for who has a place for it, which is [`Transmit::default`] before: moved, what was just written field by field would
    /// be waited for. False: there is none.
    #[inline]
    pub fn poll_into(&mut self, now: Instant, limits: TxLimits, tx: &mut Transmit) -> bool {
        if !self.has_output() || !self.next_segment(now, limits, tx) {
            return false;
        }
        self.stats.segs_out = self.stats.segs_out.wrapping_add(1);
        if tx.len > 0 {
            self.stats.data_segs_out = self.stats.data_segs_out.wrapping_add(1);
            self.stats.bytes_sent += u64::from(tx.len);
        }
        true
    }

    /// Bytes of the transmit stream that were never sent.
    #[must_use]
    pub fn unsent(&self) -> u32 {
        self.snd.nxt.span_to(self.snd.end)
    }

    /// False if there is certainly nothing to send.
    #[inline]
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.ack.now
            || self.snd.nxt.before(self.snd.limit()) && self.state != State::Closed
            || self.board.to_resend() > 0
            || self.snd.rst_due
            || self.snd.syn_due
            || self.snd.probe_due
            || self.snd.repeat.is_some()
            || self.snd.rst_for.is_some()
    }

    fn next_segment(&mut self, now: Instant, limits: TxLimits, tx: &mut Transmit) -> bool {
        match self.state {
            _ if self.snd.rst_for.is_some() => self.first_rare(now, tx),
            State::Closed | State::SynSent => self.first_rare(now, tx),
            State::SynReceived if self.snd.syn_due => self.first_rare(now, tx),
            State::SynReceived if !self.opt.early => self.last(now, tx),
            State::TimeWait => self.last(now, tx),
            _ => self.data(now, limits, tx) || self.last(now, tx),
        }
    }

    /// What goes before data: a reset, or our SYN.
    #[cold]
    fn first_rare(&mut self, now: Instant, tx: &mut Transmit) -> bool {
        let made = if let Some(seq) = self.snd.rst_for.take() {
            Some(Transmit { seq, flags: Flags::RST, ..Transmit::default() })
        } else if self.state == State::Closed {
            self.reset(now)
        } else {
            self.snd.syn_due.then(|| self.syn(now))
        };
        if let Some(made) = made {
            *tx = made;
        }
        made.is_some()
    }

    /// What goes behind it: the ACK by itself, or a probe.
    #[inline]
    fn last(&mut self, now: Instant, tx: &mut Transmit) -> bool {
        if self.ack.now {
            tx.seq = self.acceptable_seq();
            self.put_options(now, &mut tx.options);
            self.finish(tx);
            self.begin_round(now);
            return true;
        }
        let due = core::mem::take(&mut self.snd.probe_due);
        if due {
            self.probe(now, tx);
        }
        due
    }

    /// A window or keep-alive probe (RFC 9293 §3.8.4, §3.8.6.1): an old sequence number, which the peer must answer. It throws
    /// the rest away as it does with anything out of its window, so this is not the ACK that may be due, nor does it offer a window.
    #[cold]
    fn probe(&self, now: Instant, tx: &mut Transmit) {
        tx.seq = self.snd.una - 1;
        tx.ack = Some(self.rcv.nxt);
        tx.wnd = (self.rcv.nxt.span_to(self.rcv.adv) >> self.rcv.wscale).min(65_535) as u16;
        self.put_options(now, &mut tx.options);
        if self.ack.ecn_echo {
            tx.flags = tx.flags.with(Flags::ECE);
        }
    }

    /// SND.NXT, or the end of the peer's window if it has taken back what is in flight already: whatever lies beyond it
    /// would be thrown away with its ACK (RFC 9293 §3.8.6; Linux tcp_acceptable_seq). What rounding of a window may take
    /// back, and a FIN, are none of that.
    #[inline]
    fn acceptable_seq(&self) -> SeqNum {
        let edge = self.snd.una + self.snd.wnd;
        if edge.before(self.snd.nxt) && edge.distance_to(self.snd.nxt) > 1 << self.snd.wscale {
            edge
        } else {
            self.snd.nxt
        }
    }

    /// RFC 9293 §3.10.5: <SEQ=SND.NXT><CTL=RST> (as far as the peer takes it for its own), with an ACK so that a strict peer finds it exact.
    /// RFC 7323 §3.2 recommends the timestamp, so that it is seen to be no old one.
    fn reset(&mut self, now: Instant) -> Option<Transmit> {
        let timestamps = self.timestamps(now);
        core::mem::take(&mut self.snd.rst_due).then(|| Transmit {
            seq: self.acceptable_seq(),
            ack: Some(self.rcv.nxt),
            flags: Flags::RST,
            wnd: self.select_window(),
            options: Options { timestamps, ..Options::default() },
            ..Transmit::default()
        })
    }

    /// Our SYN, or in SYN-RECEIVED the SYN-ACK (simultaneous open, Fast Open); the first and each repetition.
    fn syn(&mut self, now: Instant) -> Transmit {
        self.snd.syn_due = false;
        let first = self.snd.nxt == self.snd.iss;
        let answer = self.state == State::SynReceived;
        let options = self.syn_options(now, first, answer);
        let mut len = 0;
        if first {
            // RFC 7413 §4.2.1: data goes with the first SYN only, if at all.
            let room = u32::from(self.opt.syn_data_max);
            len = if answer { 0 } else { room.min((self.snd.iss + 1).span_to(self.snd.end)) };
            self.opt.syn_data = len > 0;
            self.snd.nxt = self.snd.iss + 1 + len;
            self.board.append(self.snd.nxt, Tick::at(now));
            self.recovery.waiting_since = now;
        } else if self.board.to_resend() > 0 {
            self.board.resend(self.snd.iss, 1, Tick::at(now));
            self.stats.total_retrans = self.stats.total_retrans.wrapping_add(1);
        }
        if !self.timers.is_armed(Timer::Retransmit) {
            self.timers.watch = Watch::Rto;
            self.timers.set(Timer::Retransmit, now + self.rtt.rto(&self.cfg));
        }
        // RFC 7323 §2.2: the window of a SYN is not scaled.
        let mut wnd = u32::from(self.cfg.syn_window());
        if answer {
            wnd = self.rcv.nxt.span_to(self.rcv.consumed + self.rcv.capacity);
            self.rcv.adv = self.rcv.adv.later(self.rcv.nxt + wnd.min(65_535));
            self.note_ack_sent();
        }
        let flags = match (answer, self.opt.ecn) {
            // RFC 3168 §6.1.1.1: what is repeated does not ask, as something on the path may drop who does.
            (false, true) if self.cfg.ecn == EcnMode::Active && first => Flags::ECE.with(Flags::CWR),
            (true, true) => Flags::ECE,
            _ => Flags::NONE,
        };
        Transmit {
            seq: self.snd.iss,
            ack: answer.then_some(self.rcv.nxt),
            flags: Flags::SYN.with(flags),
            wnd: wnd.min(65_535) as u16,
            options,
            len,
            mss: self.cfg.mss,
            retransmission: !first,
            ..Transmit::default()
        }
    }

    /// What our SYN offers, or our SYN-ACK agrees to.
    fn syn_options(&self, now: Instant, first: bool, answer: bool) -> Options {
        let offer = |agreed: bool, wanted: bool| if answer { agreed } else { wanted };
        let ts = offer(self.opt.timestamps, self.cfg.timestamps);
        let val = ts_clock(now, self.cfg.ts_offset);
        Options {
            // RFC 9293 §3.7.1: what a router said of the path meanwhile holds for the way back as well, for all we know.
            mss: Some(self.cfg.mss.min(self.snd.path_mss)),
            wscale: offer(self.opt.wscale, self.cfg.window_scaling).then(|| self.cfg.wscale()),
            sack_permitted: offer(self.opt.sack, self.cfg.sack),
            timestamps: ts.then_some(Timestamps { val, ecr: self.opt.ts_recent }),
            // RFC 7413 §4.1.3: what is repeated goes without, in case the option is what gets lost.
            fast_open: self.opt.fast_open.filter(|_| first),
            ..Options::default()
        }
    }

    /// Data and FIN: first what was lost, then what is new.
    #[inline]
    fn data(&mut self, now: Instant, limits: TxLimits, tx: &mut Transmit) -> bool {
        let idle = !self.snd.nxt.before(self.snd.limit()) && self.snd.repeat.is_none();
        if self.board.to_resend() == 0 && idle {
            return false;
        }
        if self.pace_holds(now) {
            return false;
        }
        self.put_options(now, &mut tx.options);
        let fixed = if self.opt.timestamps { 12 } else { 0 };
        let mss = u32::from(self.snd.mss).saturating_sub(options_len(&tx.options) as u32 - fixed).max(8);
        // A device that cuts a long segment copies the urgent pointer into each piece as it is (Linux tcp_urg_mode).
        let max = if self.snd.urgent.is_some() { mss } else { limits.payload_max.max(mss) };
        let mut unit = mss;
        let mut span = self.repeat_tail(now, mss).or_else(|| self.lost(now, mss, max));
        if self.search.on && span.is_none() {
            span = self.mtu_probe(now, &tx.options);
            unit = span.map_or(mss, |(_, len, _)| len);
        }
        let Some((seq, len, again)) = span.or_else(|| self.fresh(now, mss, max)) else {
            self.note_held(now, mss);
            self.arm_persist(now);
            return false;
        };
        if matches!(self.chrono.work, Work::Window | Work::Buffer) && !again {
            self.chrono.turn(now, Work::Busy);
        }
        self.build(now, tx, seq, len, again, unit);
        true
    }

    /// A tail loss probe that repeats the last segment (RFC 8985 §7.3). It is not held for lost, and the congestion window
    /// does not hold it back.
    #[inline]
    fn repeat_tail(&mut self, now: Instant, mss: u32) -> Option<(SeqNum, u32, bool)> {
        let (seq, len) = self.snd.repeat.take()?;
        // SACK blocks may have come to the options since the probe was planned.
        let (seq, len) = (seq + len.saturating_sub(mss), len.min(mss));
        if seq.before(self.snd.una) {
            return None;
        }
        self.board.resend(seq, len, Tick::at(now));
        self.stats.total_retrans = self.stats.total_retrans.wrapping_add(1);
        self.stats.bytes_retrans += u64::from(len);
        Some((seq, len, true))
    }

    /// The next piece of what is held for lost: sequence number, numbers covered, and that it is a repetition.
    fn lost(&mut self, now: Instant, mss: u32, max: u32) -> Option<(SeqNum, u32, bool)> {
        let (seq, run) = self.board.next_to_resend()?;
        let pipe = self.pipe();
        // One segment may always go when nothing is in flight, or a small window would stall.
        if pipe > 0 && pipe + mss.min(run) > self.cc.cwnd {
            return None;
        }
        let room = self.cc.cwnd.saturating_sub(pipe).max(mss);
        let len = run.min(max).min(whole_segments(room, mss));
        // SYN is sent by `syn` alone; what comes here starts after it.
        debug_assert!(!self.snd.syn_unacked || seq.after(self.snd.iss), "SYN taken for data");
        // FIN goes along with the last byte, but takes no payload.
        let payload = seq.span_to((seq + len).earlier(self.snd.end));
        self.board.resend(seq, len, Tick::at(now));
        self.note_resent(now, len);
        self.stats.total_retrans = self.stats.total_retrans.wrapping_add(payload.div_ceil(mss).max(1));
        self.stats.bytes_retrans += u64::from(payload);
        if !self.timers.is_armed(Timer::Retransmit) {
            self.set_loss_timer(now);
        }
        Some((seq, len, true))
    }

    /// New data or FIN, as far as the windows, Nagle and cork allow.
    #[inline]
    fn fresh(&mut self, now: Instant, mss: u32, max: u32) -> Option<(SeqNum, u32, bool)> {
        let nxt = self.snd.nxt;
        let queued = nxt.span_to(self.snd.end);
        let pipe = self.pipe();
        let in_flight = self.snd.flight();
        let window = nxt.span_to(self.snd.una + self.snd.wnd);
        let fin_next = self.snd.fin_queued && !self.snd.fin_sent();
        if queued == 0 {
            // FIN alone. It takes a number of the window (RFC 9293 §3.4) but may pass a closed one, as Linux has it: the
            // peer can always take it.
            if !fin_next {
                return None;
            }
            return Some(self.advance(now, 1, in_flight));
        }
        if in_flight == 0 {
            self.after_idle(now);
        }
        let cwnd_room = if pipe == 0 { self.cc.cwnd.max(mss) } else { self.cc.cwnd.saturating_sub(pipe) };
        let mut len = queued.min(window).min(max);
        if cwnd_room < len {
            if cwnd_room < mss {
                return None;
            }
            len = whole_segments(cwnd_room, mss);
        }
        if len > mss && len < queued {
            len = whole_segments(len, mss);
        }
        if len == 0 || (len < mss && !self.may_send_small(len, queued, window, in_flight)) {
            return None;
        }
        if len != mss && !len.is_multiple_of(mss) {
            self.snd.small_end = nxt + len;
            self.snd.push_out = false;
        }
        let fin = fin_next && len == queued && len < window;
        Some(self.advance(now, len + u32::from(fin), in_flight))
    }

    /// RFC 9293 §3.8.6.2.1 (sender's silly window avoidance) and §3.7.4 (Nagle), and `TCP_CORK`.
    fn may_send_small(&self, len: u32, queued: u32, window: u32, in_flight: u32) -> bool {
        if self.snd.push_out {
            return true;
        }
        if len < queued {
            // The window cuts it: wait for more window, unless it is half of the largest that the peer ever offered.
            return window < queued && len >= self.snd.wnd_max / 2 && len > 0;
        }
        if self.snd.fin_queued {
            return true;
        }
        if self.cfg.cork || self.snd.more {
            return false;
        }
        // Nagle in Minshall's form, as Linux has it: one small segment may be in flight, not two.
        self.cfg.nodelay || in_flight == 0 || !self.snd.small_end.is_between(self.snd.una, self.snd.nxt)
    }

    /// `len` sequence numbers leave for the first time.
    #[inline]
    pub(super) fn advance(&mut self, now: Instant, len: u32, in_flight: u32) -> (SeqNum, u32, bool) {
        let seq = self.snd.nxt;
        self.snd.nxt = seq + len;
        self.board.append(self.snd.nxt, Tick::at(now));
        if in_flight == 0 {
            self.recovery.waiting_since = now;
        }
        let flight = in_flight + len;
        if flight > self.snd.max_flight {
            self.snd.max_flight = flight;
            self.snd.max_flight_end = self.snd.nxt;
        }
        // RFC 6298 §5.1: start the timer if it does not run; new data must not put off the timeout of the old. A tail loss
        // probe counts from the last segment (RFC 8985 §7.2), and a window probe has become superfluous.
        let waits = match self.timers.watch {
            Watch::Rto => !self.may_probe(),
            Watch::Reorder => true,
            Watch::Probe | Watch::Persist => false,
        };
        if !(waits && self.timers.is_armed(Timer::Retransmit)) {
            self.set_loss_timer(now);
        }
        (seq, len, false)
    }

    /// Turns a span of sequence numbers into a segment; its last may be the FIN.
    #[inline]
    fn build(&mut self, now: Instant, tx: &mut Transmit, seq: SeqNum, len: u32, again: bool, mss: u32) {
        let end = seq + len;
        let fin = self.snd.fin_queued && end.after(self.snd.end);
        let payload = len - u32::from(fin);
        let mut flags = if fin { Flags::FIN } else { Flags::NONE };
        if payload > 0 {
            // RFC 9293 §3.9.1.2, MUST-61: PSH with the last data of a call, and SHLD-28: with nothing that more follows on.
            // Linux has it at the end of a burst, too, so that the receiver's NIC does not wait for the next segment.
            let pushed = self.snd.push_end.after(seq) && self.snd.push_end.before_or_eq(seq + payload);
            // What went with the SYN was all there was then.
            let early = again && self.opt.syn_data && self.stats.bytes_acked == 0 && seq == self.snd.iss + 1;
            if pushed || early || !again && self.ends_burst(now, payload, mss) {
                flags = flags.with(Flags::PSH);
            }
            if !again {
                self.snd.fresh_at = now;
            }
            self.note_data_sent(now);
            self.stats.sent_at = now;
        }
        let urg = self.urgent_pointer(seq);
        if urg > 0 {
            flags = flags.with(Flags::URG);
        }
        // RFC 3168 §6.1.2, §6.1.4: CWR on new data, ECT on new data only.
        let ect = self.opt.ecn && payload > 0 && !again;
        if ect && core::mem::take(&mut self.opt.cwr_due) {
            flags = flags.with(Flags::CWR);
        }
        if self.recovery.is_reducing() {
            self.recovery.prr_out = self.recovery.prr_out.saturating_add(len);
        }
        self.pace(now, payload);
        let offset = self.snd.stream_start().distance_to(seq);
        (tx.seq, tx.flags, tx.urg) = (seq, flags, urg);
        (tx.offset, tx.len, tx.mss) = (offset, payload, mss as u16);
        (tx.ect, tx.retransmission) = (ect, again);
        self.finish(tx);
    }

    /// Whether this full segment, which has been counted already, is the last of several that leave at once.
    #[inline]
    fn ends_burst(&self, now: Instant, payload: u32, mss: u32) -> bool {
        if payload < mss || payload == mss && self.snd.fresh_at != now {
            return false;
        }
        let window = self.snd.nxt.span_to(self.snd.una + self.snd.wnd);
        let queued = self.snd.nxt.span_to(self.snd.end);
        queued.min(window).min(self.cc.cwnd.saturating_sub(self.pipe())) < mss
    }

    /// RFC 9293 §3.8.5: SEG.UP while the urgent byte has not been acknowledged.
    #[inline]
    fn urgent_pointer(&self, seq: SeqNum) -> u16 {
        match self.snd.urgent {
            Some(up) if up.after(seq) => seq.distance_to(up).min(URGENT_MAX) as u16,
            _ => 0,
        }
    }

    /// The ACK field, the window and the ECN echo: the same for all segments of a synchronized connection.
    #[inline]
    fn finish(&mut self, tx: &mut Transmit) {
        tx.wnd = self.select_window();
        tx.ack = Some(self.rcv.nxt);
        if self.ack.ecn_echo {
            tx.flags = tx.flags.with(Flags::ECE);
        }
        self.note_ack_sent();
    }

    /// Nothing may leave: if that is for the peer's window alone, its time is counted (`tcpi_rwnd_limited`).
    fn note_held(&mut self, now: Instant, mss: u32) {
        let queued = self.snd.nxt.span_to(self.snd.end);
        let window = self.snd.nxt.span_to(self.snd.una + self.snd.wnd);
        let narrow = window < queued.min(mss) && self.cc.cwnd.saturating_sub(self.pipe()) >= mss;
        if narrow && self.chrono.work == Work::Busy {
            self.chrono.turn(now, Work::Window);
        }
    }

    /// The program has found the transmit stream full and waits for room. If all that is queued has left and the congestion
    /// window would take more, the stream is what holds it back, until more is queued (Linux `tcpi_sndbuf_limited`).
    pub fn note_full_stream(&mut self, now: Instant) {
        let mss = u32::from(self.snd.mss);
        // What is less than a segment may wait for more.
        let all_sent = self.unsent() < mss && self.snd.flight() > 0;
        let open = self.cc.cwnd.saturating_sub(self.pipe()) >= mss;
        if self.chrono.work == Work::Busy && all_sent && open {
            self.chrono.turn(now, Work::Buffer);
        }
    }

    /// RFC 9293 §3.8.6.1: data waits and nothing is in flight whose ACK could open the window.
    fn arm_persist(&mut self, now: Instant) {
        if self.snd.flight() == 0 && !self.timers.is_armed(Timer::Retransmit) {
            self.recovery.waiting_since = now;
            self.timers.watch = Watch::Persist;
            let wait = if self.snd.wnd == 0 { self.rtt.rto(&self.cfg) } else { self.cfg.rto_min };
            let at = self.clamp_to_user_timeout(now + wait);
            self.timers.set(Timer::Retransmit, at);
        }
    }

    /// RFC 5681 §4.1: after an idle period the window is not trusted.
    #[cold]
    fn after_idle(&mut self, now: Instant) {
        let idle = now - self.stats.sent_at;
        let rto = self.rtt.rto(&self.cfg);
        if idle > rto && self.cfg.slow_start_after_idle && self.stats.bytes_sent > 0 {
            let restart = u32::from(self.cfg.initial_cwnd.max(1)) * u32::from(self.snd.mss);
            // A division, and its result moves a window alone that is above the restart window.
            let above = self.cc.cwnd > restart;
            let rtos = if above { idle.as_nanos() / rto.as_nanos().max(1) } else { 0 };
            self.cc.on_idle(now, idle, rtos, restart.min(self.cc.cwnd));
            self.snd.max_flight = 0;
        }
    }

    /// Bytes per second at which segments may leave; `u64::MAX` for no limit.
    #[inline]
    pub(super) fn pacing_rate(&self) -> u64 {
        self.cfg.pacing_rate_max.min(self.cc.pacing())
    }

    /// True while the pacing rate forbids to send; arms the timer for the moment when a millisecond's worth may leave, so
    /// that a fast connection does not need a timer for each segment.
    #[inline]
    fn pace_holds(&mut self, now: Instant) -> bool {
        if now >= self.snd.pace_next || self.pacing_rate() == u64::MAX {
            return false;
        }
        if !self.timers.is_armed(Timer::Pace) {
            self.timers.set(Timer::Pace, self.snd.pace_next + PACE_QUANTUM);
        }
        true
    }

    #[inline]
    fn pace(&mut self, now: Instant, payload: u32) {
        let rate = self.pacing_rate();
        if rate == u64::MAX {
            return;
        }
        let ns = u64::from(payload).saturating_mul(1_000_000_000) / rate.max(1);
        // What was not sent in time may be made up for, but not what is older than the timer's own delay.
        let credit = Instant::from_nanos(now.as_nanos().saturating_sub(PACE_CREDIT.as_nanos()));
        let from = if self.snd.pace_next > credit { self.snd.pace_next } else { credit };
        self.snd.pace_next = from + Duration::from_nanos(ns);
    }
}

/// `bytes` rounded down to full segments, but at least one.
#[inline]
const fn whole_segments(bytes: u32, mss: u32) -> u32 {
    if bytes < 2 * mss { mss } else { bytes - bytes % mss }
}
