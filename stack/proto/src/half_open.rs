//! A half-open connection: a SYN has arrived, the SYN-ACK is out (SYN-RECEIVED of RFC 9293 §3.3.2).
//!
//! A small record in the SYN queue rather than a TCB, so that a flood of SYNs costs little (RFC 4987 §3.5).
//! Fast Open and simultaneous open, which need streams in SYN-RECEIVED, use a TCB instead.

use crate::actions::DropReason;
use crate::config::{Config, EcnMode};
use crate::segment::{FastOpenCookie, Flags, FourTuple, Options, Segment, Timestamps, Transmit};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// RFC 9293 §3.7.1, MUST-15: what a peer can take that sent no MSS option, with IPv4 and with IPv6.
pub(crate) const MSS_DEFAULT_V4: u16 = 536;
pub(crate) const MSS_DEFAULT_V6: u16 = 1_220;

/// What the two SYNs agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The peer's MSS option or the default.
    pub(crate) peer_mss: u16,
    /// The shift of windows that we receive; zero without window scaling.
    pub(crate) snd_wscale: u8,
    /// The shift of windows that we send; zero without window scaling.
    pub(crate) rcv_wscale: u8,
    pub(crate) wscale: bool,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    pub(crate) ecn: bool,
}

impl Agreed {
    /// The options that hold if the peer's SYN carried `seg.options` and we answer or asked by `cfg`.
    pub(crate) fn between(cfg: &Config, tuple: &FourTuple, seg: &Segment, ecn: bool) -> Self {
        let default = if tuple.remote.addr.is_v4() { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 };
        let wscale = if cfg.window_scaling { seg.options.wscale } else { None };
        Self {
            // A peer that offers next to nothing would have us send headers only; Linux' floor is 48 as well.
            peer_mss: seg.options.mss.unwrap_or(default).max(48),
            // RFC 7323 §2.3: a shift over 14 is used as 14.
            snd_wscale: wscale.unwrap_or(0).min(14),
            rcv_wscale: if wscale.is_some() { cfg.wscale() } else { 0 },
            wscale: wscale.is_some(),
            timestamps: cfg.timestamps && seg.options.timestamps.is_some(),
            sack: cfg.sack && seg.options.sack_permitted,
            ecn,
        }
    }
}

/// TSval for `now`: a clock of one millisecond (RFC 7323 §5.4).
pub(crate) fn ts_clock(now: Instant, offset: u32) -> u32 {
    (now.as_millis() as u32).wrapping_add(offset)
}

/// True if timestamp `a` is older than `b` (RFC 7323 §5.2).
pub(crate) fn ts_before(a: u32, b: u32) -> bool {
    SeqNum::new(a).before(SeqNum::new(b))
}

/// RFC 7323 §5.3 R1: a segment with timestamp `val` is too old where `recent` has been seen. Zero has not been, as in Linux
/// (tcp_paws_check): some peers send it in their SYN, and what their clock says in all that follows, which may lie "before" it.
pub(crate) fn paws_rejects(val: u32, recent: u32) -> bool {
    recent != 0 && ts_before(val, recent)
}

/// The record of one half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// The connection's name.
    pub tuple: FourTuple,
    pub(crate) iss: SeqNum,
    pub(crate) irs: SeqNum,
    pub(crate) agreed: Agreed,
    pub(crate) ts_recent: u32,
    pub(crate) ts_offset: u32,
    /// When the first SYN-ACK left, for the first RTT sample.
    pub(crate) sent_at: Instant,
    /// The unscaled window of the SYN-ACK.
    pub(crate) rcv_wnd: u16,
    pub(crate) mss: u16,
    /// The peer's window in its SYN, never scaled.
    pub(crate) snd_wnd: u16,
    /// SYN-ACKs sent after the first.
    pub(crate) resent: u8,
    /// Time-outs of the SYN-ACK so far, whether it was sent again or not.
    timeouts: u8,
    /// `TCP_DEFER_ACCEPT`, in such time-outs.
    defer: u8,
    /// An ACK has come, but no data.
    acked: bool,
    /// When something was last answered that may be a stranger's, and how long the next one waits at least.
    answered_at: Instant,
    answer_gap: Duration,
    /// The Fast Open cookie that the SYN-ACK hands out.
    fast_open: Option<FastOpenCookie>,
    /// Made from a cookie: the time of the SYN-ACK is not known, so it gives no RTT sample.
    pub(crate) cookie: bool,
    resent_max: u8,
    rto: Duration,
    rto_max: Duration,
    deadline: Instant,
}

/// What a segment means for a half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOpenVerdict {
    /// The handshake is complete: call `Tcb::from_half_open` with this segment. If the accept queue is full, keep
    /// the record instead; the peer retransmits.
    Established,
    /// The peer sent its SYN again: send `HalfOpen::syn_ack`.
    ResendSynAck,
    /// Send this ACK (RFC 9293 §3.10.7.4, first) and keep the record.
    Ack(Transmit, DropReason),
    /// Send this RST and keep the record: an acknowledgement of something we never sent.
    Reset(Transmit, DropReason),
    /// The peer reset the connection: remove the record.
    Remove(DropReason),
    /// Nothing to do.
    Drop(DropReason),
}

/// What a half-open connection does at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOpenTimer {
    /// Send `HalfOpen::syn_ack` again.
    Resend,
    /// Remove the record.
    GiveUp,
    /// The deadline lies in the future.
    Wait,
}

impl HalfOpen {
    /// RFC 9293 §3.10.7.2, third: the answer of a listener to a SYN. `iss` comes from [`crate::isn::Secret::isn`],
    /// or from [`crate::cookie`] when the SYN queue is full. The caller has checked that `seg` is a SYN without ACK
    /// and RST.
    #[must_use]
    pub fn on_syn(cfg: &Config, now: Instant, tuple: FourTuple, iss: SeqNum, seg: &Segment) -> Self {
        // RFC 3168 §6.1.1: an ECN-setup SYN has both ECE and CWR.
        let ecn = cfg.ecn != EcnMode::Off && seg.flags.all(Flags::ECE.with(Flags::CWR));
        Self {
            tuple,
            iss,
            irs: seg.seq,
            agreed: Agreed::between(cfg, &tuple, seg, ecn),
            ts_recent: seg.options.timestamps.map_or(0, |ts| ts.val),
            ts_offset: cfg.ts_offset,
            sent_at: now,
            rcv_wnd: cfg.syn_window(),
            mss: cfg.mss,
            snd_wnd: seg.wnd,
            resent: 0,
            timeouts: 0,
            defer: cfg.defer_accept,
            acked: false,
            cookie: false,
            answered_at: Instant::ZERO,
            answer_gap: cfg.challenge_gap,
            fast_open: None,
            resent_max: cfg.synack_retries,
            rto: cfg.rto_initial,
            rto_max: cfg.rto_max,
            deadline: now + cfg.rto_initial,
        }
    }

    /// The record for a connection of which nothing was kept but the cookie that came back.
    pub(crate) fn from_cookie(
        cfg: &Config,
        now: Instant,
        tuple: FourTuple,
        numbers: (SeqNum, SeqNum),
        agreed: Agreed,
        seg: &Segment,
    ) -> Self {
        let (iss, irs) = numbers;
        let mut half = Self::on_syn(cfg, now, tuple, iss, seg);
        half.irs = irs;
        half.agreed = agreed;
        half.snd_wnd = seg.wnd;
        half.cookie = true;
        // Nothing was kept that could wait.
        half.defer = 0;
        half
    }

    /// RFC 7413 §4.1.2: the SYN asked for a Fast Open cookie, or brought one that is not ours. The SYN-ACK hands out
    /// `cookie`, from [`crate::isn::Secret::fast_open_cookie`]. A SYN that brings this very cookie may go to
    /// [`crate::Tcb::fast_open`] instead.
    pub const fn offer_fast_open(&mut self, cookie: FastOpenCookie) {
        self.fast_open = Some(cookie);
    }

    /// The cookie that the SYN-ACK hands out.
    pub(crate) const fn offered_cookie(&self) -> Option<FastOpenCookie> {
        self.fast_open
    }

    /// SND.ISS.
    #[must_use]
    pub const fn iss(&self) -> SeqNum {
        self.iss
    }

    /// The SYN-ACK, for the first time and for each time after.
    #[must_use]
    pub fn syn_ack(&self, now: Instant) -> Transmit {
        let a = &self.agreed;
        // RFC 3168 §6.1.1: an ECN-setup SYN-ACK has ECE alone.
        let ecn = if a.ecn { Flags::ECE } else { Flags::NONE };
        Transmit {
            seq: self.iss,
            ack: Some(self.irs + 1),
            flags: Flags::SYN.with(ecn),
            // RFC 7323 §2.2: the window of a SYN is never scaled.
            wnd: self.rcv_wnd,
            options: Options {
                mss: Some(self.mss),
                wscale: a.wscale.then_some(a.rcv_wscale),
                sack_permitted: a.sack,
                timestamps: a
                    .timestamps
                    .then(|| Timestamps { val: ts_clock(now, self.ts_offset), ecr: self.ts_recent }),
                // RFC 7413 §4.1.3: a repeated SYN-ACK goes without, in case the option is what gets lost.
                fast_open: self.fast_open.filter(|_| self.resent == 0),
                ..Options::default()
            },
            retransmission: self.resent > 0,
            ..Transmit::default()
        }
    }

    /// RFC 9293 §3.10.7.4 for SYN-RECEIVED.
    #[must_use]
    pub fn on_segment(&mut self, now: Instant, seg: &Segment) -> HalfOpenVerdict {
        let rcv_nxt = self.irs + 1;
        if seg.flags.any(Flags::SYN) && seg.ack.is_none() && seg.seq == self.irs && !seg.flags.any(Flags::RST)
        {
            return match self.may_answer(now, seg) {
                true => HalfOpenVerdict::ResendSynAck,
                false => HalfOpenVerdict::Drop(DropReason::Duplicate),
            };
        }
        // First: check the sequence number, and RFC 7323 §5.3 R1: PAWS.
        let old_ts = self.agreed.timestamps
            && seg.options.timestamps.is_some_and(|ts| paws_rejects(ts.val, self.ts_recent));
        let in_window = seg.seq == rcv_nxt || seg.seq.within(rcv_nxt, u32::from(self.rcv_wnd));
        if !in_window || (old_ts && !seg.flags.any(Flags::RST)) {
            let reason = if in_window { DropReason::Paws } else { DropReason::OutOfWindow };
            return match seg.flags.any(Flags::RST) {
                true => HalfOpenVerdict::Drop(DropReason::RstOutOfWindow),
                false => self.challenge(now, seg, reason),
            };
        }
        // Second, RFC 5961 §3.2: only a reset at RCV.NXT counts.
        if seg.flags.any(Flags::RST) {
            return match seg.seq == rcv_nxt {
                true => HalfOpenVerdict::Remove(DropReason::Closed),
                false => self.challenge(now, seg, DropReason::RstNotExact),
            };
        }
        // Fourth, RFC 5961 §4.2: a SYN here is answered by a challenge ACK. A peer that really restarted resets us.
        if seg.flags.any(Flags::SYN) {
            return self.challenge(now, seg, DropReason::SynInWindow);
        }
        // Fifth: SND.UNA < SEG.ACK =< SND.NXT, which leaves one number.
        match seg.ack {
            None => HalfOpenVerdict::Drop(DropReason::AckMissing),
            // Linux tcp_check_req: while TCP_DEFER_ACCEPT is active, a bare ACK is dropped.
            Some(ack) if ack == self.iss + 1 && self.is_deferred(seg) => {
                self.acked = true;
                HalfOpenVerdict::Drop(DropReason::Deferred)
            }
            Some(ack) if ack == self.iss + 1 => HalfOpenVerdict::Established,
            Some(ack) => HalfOpenVerdict::Reset(
                Transmit { seq: ack, flags: Flags::RST, ..Transmit::default() },
                DropReason::AckOfUnsent,
            ),
        }
    }

    /// An ACK in answer to what is out of order in some way (RFC 5961 §7: not too often).
    fn challenge(&mut self, now: Instant, seg: &Segment, why: DropReason) -> HalfOpenVerdict {
        if self.may_answer(now, seg) {
            HalfOpenVerdict::Ack(self.ack(now), why)
        } else {
            HalfOpenVerdict::Drop(why)
        }
    }

    /// Linux tcp_oow_rate_limited: without a limit two hosts with half-open records that name each other, which takes two
    /// forged SYNs, would answer each other's answers as fast as they can. Data is no answer.
    fn may_answer(&mut self, now: Instant, seg: &Segment) -> bool {
        if seg.len > 0 && !seg.flags.any(Flags::SYN) {
            return true;
        }
        if self.answered_at != Instant::ZERO && now - self.answered_at < self.answer_gap {
            return false;
        }
        self.answered_at = now;
        true
    }

    /// Whether `seg`, which acknowledges our SYN, does not complete the handshake yet.
    fn is_deferred(&self, seg: &Segment) -> bool {
        self.timeouts < self.defer && seg.len == 0 && !seg.flags.any(Flags::FIN)
    }

    /// The SYN-ACK's retransmission timer: backs off and says what to do. One that was acknowledged, while data is waited for
    /// (`TCP_DEFER_ACCEPT`), is sent again at the end of that time alone: its next ACK will do (Linux syn_ack_recalc).
    #[must_use]
    pub fn on_timer(&mut self, now: Instant) -> HalfOpenTimer {
        if now < self.deadline {
            return HalfOpenTimer::Wait;
        }
        if self.timeouts >= self.resent_max && !(self.acked && self.timeouts < self.defer) {
            return HalfOpenTimer::GiveUp;
        }
        let resend = !self.acked || self.timeouts.saturating_add(1) >= self.defer;
        self.timeouts += 1;
        self.rto = self.rto.times(2).min(self.rto_max);
        self.deadline = now + self.rto;
        if !resend {
            return HalfOpenTimer::Wait;
        }
        self.resent = self.resent.saturating_add(1);
        HalfOpenTimer::Resend
    }

    /// When [`HalfOpen::on_timer`] is due.
    #[must_use]
    pub const fn next_deadline(&self) -> Instant {
        self.deadline
    }

    fn ack(&self, now: Instant) -> Transmit {
        let timestamps = self
            .agreed
            .timestamps
            .then(|| Timestamps { val: ts_clock(now, self.ts_offset), ecr: self.ts_recent });
        Transmit {
            seq: self.iss + 1,
            ack: Some(self.irs + 1),
            wnd: self.rcv_wnd >> self.agreed.rcv_wscale,
            options: Options { timestamps, ..Options::default() },
            ..Transmit::default()
        }
    }
}
