//! The transmission control block: one connection.
//!
//! The parts follow RFC 9293:
//!
//! | file | what |
//! |---|---|
//! | `state.rs` | the variables (§3.3.1) |
//! | `arrives.rs` | SEGMENT ARRIVES (§3.10.7) up to the ACK field; `syn_sent.rs` for SYN-SENT |
//! | `ack.rs` | the ACK field: releases data, moves the send window and the congestion window |
//! | `data.rs` | text, URG and FIN; which ACK to send when; the receive window |
//! | `recovery.rs` | what is lost, how fast it is sent again (RFC 6675, 8985, 6937, 6582) |
//! | `timers.rs` | timeouts (§3.10.8) |
//! | `transmit.rs` | what to send next |
//! | `loan.rs` | memory that is borrowed while much is in flight or out of order |
//! | `path.rs` | black holes and probing for the path's MTU (RFC 4821) |
//! | `round.rs` | the round trip as who receives sees it |
//! | `user.rs`, `icmp.rs`, `snapshot.rs` | calls of the program, errors from the network, `TCP_INFO` |

mod ack;
mod arrives;
mod data;
mod icmp;
mod loan;
mod path;
mod recovery;
mod round;
mod snapshot;
mod state;
mod syn_sent;
mod timers;
mod transmit;
mod user;

use crate::actions::{Actions, Events, SocketError};
use crate::config::{Config, EcnMode};
use crate::congestion::Congestion;
use crate::half_open::{Agreed, HalfOpen};
use crate::info::State;
use crate::reassembly::Reassembly;
use crate::rtt::Rtt;
use crate::scoreboard::{Scoreboard, Tick};
use crate::segment::{FastOpenCookie, Flags, FourTuple, Segment};
use crate::seq::SeqNum;
use crate::time::Instant;
use crate::time_wait::{TimeWait, TimeWaitClock};

pub use loan::Lender;
use recovery::Recovery;
use state::{AckState, Options, Receive, Send, Stats, Timers};

/// One TCP connection: arithmetic on sequence numbers, no bytes, no clock.
///
/// In memory what every segment touches comes first, in the order in which it is needed: [`Tcb::HOT`]. What only
/// connections with much in flight need is borrowed: see [`Lender`].
#[derive(Debug)]
#[repr(C)]
pub struct Tcb {
    state: State,
    /// No program has the socket any more.
    orphan: bool,
    /// `shutdown(SHUT_RD)`.
    read_shut: bool,
    /// The last soft ICMP error, reported if the connection times out.
    soft_error: Option<SocketError>,
    opt: Options,
    rcv: Receive,
    snd: Send,
    ack: AckState,
    timers: Timers,
    rtt: Rtt,
    board: Scoreboard,
    reassembly: Reassembly,
    chrono: state::Chrono,
    stats: Stats,
    cc: Congestion,
    recovery: Recovery,
    search: path::Search,
    cfg: Config,
    tuple: FourTuple,
}

impl Tcb {
    /// Bytes of a TCB that segments in order touch: two runs of them.
    pub const HOT: [core::ops::Range<usize>; 2] = [
        0..core::mem::offset_of!(Self, cc) + 16,
        core::mem::offset_of!(Self, search) - 16..core::mem::offset_of!(Self, cfg) + 48,
    ];

    /// Where in a TCB that stands which [`Tcb::next_deadline`] reads.
    pub const TIMERS_AT: usize = core::mem::offset_of!(Self, timers);

    fn new(cfg: &Config, now: Instant, tuple: FourTuple, iss: SeqNum) -> Self {
        Self {
            state: State::Closed,
            orphan: false,
            read_shut: false,
            soft_error: None,
            snd: Send::new(iss, cfg.mss),
            rcv: Receive::new(cfg.recv_capacity),
            ack: AckState::new(cfg),
            opt: Options::default(),
            timers: Timers::new(),
            rtt: Rtt::new(cfg),
            cc: Congestion::new(cfg.congestion, u32::from(cfg.mss), iss),
            recovery: Recovery::new(iss),
            search: path::Search::default(),
            stats: Stats::new(now),
            chrono: state::Chrono::default(),
            cfg: *cfg,
            tuple,
            reassembly: Reassembly::new(),
            board: Scoreboard::new(iss),
        }
    }

    /// OPEN, active (RFC 9293 §3.10.1). `iss` comes from [`crate::isn::Secret::isn`]. The SYN comes out of
    /// [`Tcb::poll_transmit`].
    #[must_use]
    pub fn connect(cfg: &Config, now: Instant, tuple: FourTuple, iss: SeqNum) -> Self {
        let mut tcb = Self::new(cfg, now, tuple, iss);
        tcb.state = State::SynSent;
        tcb.snd.syn_due = true;
        tcb.opt.ecn = cfg.ecn == EcnMode::Active;
        tcb
    }

    /// OPEN with a SYN that asks for a Fast Open cookie (RFC 7413 §4.1.1) by the empty one `request`; the engine finds it in the
    /// options of the SYN-ACK.
    #[must_use]
    pub fn connect_asking(
        cfg: &Config,
        now: Instant,
        tuple: FourTuple,
        iss: SeqNum,
        request: FastOpenCookie,
    ) -> Self {
        let mut tcb = Self::connect(cfg, now, tuple, iss);
        tcb.opt.fast_open = Some(request);
        tcb
    }

    /// OPEN with data in the SYN (RFC 7413 §4.2.1). Nothing leaves before [`UserCall::Start`](crate::UserCall::Start): the SYN
    /// brings `cookie` (`None`: the two sides have agreed to go without, §6.3.2) and the first of the bytes that are in the
    /// transmit stream then, at most `data_max`. §4.2.1 bounds that by the MSS that was cached with the cookie.
    #[must_use]
    pub fn connect_fast(
        cfg: &Config,
        now: Instant,
        tuple: FourTuple,
        iss: SeqNum,
        cookie: Option<FastOpenCookie>,
        data_max: u16,
    ) -> Self {
        let mut tcb = Self::connect(cfg, now, tuple, iss);
        tcb.snd.syn_due = false;
        tcb.opt.fast_open = cookie;
        tcb.opt.syn_data_max = data_max.min(cfg.mss);
        tcb
    }

    /// Whether this side opened fast, or asked for a cookie to do so next time: the SYN-ACK says what is worth keeping.
    #[must_use]
    pub const fn is_fast_client(&self) -> bool {
        self.opt.fast_open.is_some() || self.opt.syn_data_max > 0
    }

    /// Whether our SYN had the Fast Open option: a cookie in answer to one that had not is nobody's (RFC 7413 §4.1.1).
    #[must_use]
    pub const fn has_asked_for_cookie(&self) -> bool {
        self.opt.fast_open.is_some()
    }

    /// The request that went with our only SYN, if it asked for a cookie and brought nothing: whoever answers without one heard it.
    #[must_use]
    pub fn heard_request(&self) -> Option<FastOpenCookie> {
        self.opt.fast_open.filter(|asked| asked.as_slice().is_empty() && !self.recovery.syn_resent)
    }

    /// RFC 7413 §4.1.3.1: data went with our SYN, and a SYN without it had to be sent after all.
    #[must_use]
    pub const fn fast_open_was_lost(&self) -> bool {
        self.opt.syn_data_max > 0 && self.recovery.syn_resent
    }

    /// The connection that grows out of a half-open record when [`crate::HalfOpenVerdict::Established`] was the
    /// verdict on `seg`; the actions are those of the segment (CONNECTED, and data if it carried some).
    #[must_use]
    pub fn from_half_open(half: &HalfOpen, cfg: &Config, now: Instant, seg: &Segment) -> (Self, Actions) {
        let mut tcb = Self::passive(half, cfg, now);
        tcb.snd.nxt = half.iss + 1;
        tcb.board.append(tcb.snd.nxt, Tick::at(half.sent_at));
        tcb.recovery.syn_resent = half.resent > 0;
        if half.resent > 0 || half.cookie {
            tcb.board.resend(half.iss, 1, Tick::at(now));
        }
        tcb.rcv.adv = tcb.rcv.nxt + u32::from(half.rcv_wnd);
        tcb.rcv.acked = tcb.rcv.nxt;
        let actions = tcb.on_segment(now, seg);
        (tcb, actions)
    }

    /// RFC 7413 §4.2.2: the SYN `seg` brought a valid cookie. The connection may be accepted at once, and its data read
    /// and answered, before the handshake is complete; the SYN-ACK comes out of [`Tcb::poll_transmit`], with the cookie that
    /// `half` offers if it does. `half` is the record of this SYN, which is not needed any more.
    #[must_use]
    pub fn fast_open(half: &HalfOpen, cfg: &Config, now: Instant, seg: &Segment) -> (Self, Actions) {
        let mut tcb = Self::passive(half, cfg, now);
        tcb.opt.early = true;
        tcb.opt.fast_open = half.offered_cookie();
        tcb.snd.syn_due = true;
        // Our SYN-ACK is not acknowledged yet, and takes nothing of the window that the peer's SYN offered for data.
        tcb.snd.wnd += 1;
        // The SYN-ACK is in flight, too, but takes nothing of the window of data.
        tcb.cc.cwnd = u32::from(cfg.initial_cwnd.max(1)) * u32::from(tcb.snd.mss) + 1;
        tcb.rcv.adv = tcb.rcv.nxt + u32::from(half.rcv_wnd);
        tcb.rcv.drs_at = Tick::at(now);
        let mut out = Actions::default();
        out.events.insert(Events::CONNECTED);
        let data = Segment { seq: seg.seq + 1, flags: Flags::NONE, ..*seg };
        // What the verdict would say of a SYN's data has no one to hear it.
        let _ = tcb.on_text(now, &data, &mut out);
        tcb.opt.syn_data_acked = out.advanced > 0;
        // What came with the SYN says nothing of how the peer sends.
        tcb.ack.data_at = Instant::ZERO;
        out.transmit = true;
        (tcb, out)
    }

    /// SYN-RECEIVED by way of a listener.
    fn passive(half: &HalfOpen, cfg: &Config, now: Instant) -> Self {
        let mut tcb = Self::new(cfg, now, half.tuple, half.iss);
        tcb.state = State::SynReceived;
        tcb.cfg.ts_offset = half.ts_offset;
        tcb.rcv.start(half.irs);
        tcb.opt.ts_recent = half.ts_recent;
        tcb.opt.ts_recent_at = half.sent_at;
        tcb.agree(&half.agreed);
        tcb.snd.wnd = u32::from(half.snd_wnd);
        tcb.snd.wnd_max = tcb.snd.wnd;
        tcb.snd.wl1 = half.irs;
        tcb.snd.wl2 = half.iss;
        tcb
    }

    /// Takes over what the two SYNs agreed on.
    fn agree(&mut self, agreed: &Agreed) {
        self.snd.wscale = agreed.snd_wscale;
        self.rcv.wscale = agreed.rcv_wscale;
        self.opt.wscale = agreed.wscale;
        self.opt.timestamps = agreed.timestamps;
        self.opt.sack = agreed.sack;
        self.opt.ecn = agreed.ecn;
        self.snd.peer_mss = agreed.peer_mss;
        self.update_mss();
    }

    /// RFC 9293 §3.7.1: Eff.snd.MSS = min(peer's MSS, what the path carries) less the options of every segment.
    fn update_mss(&mut self) {
        let options = if self.opt.timestamps { 12 } else { 0 };
        let whole = self.snd.peer_mss.min(self.cfg.mss).min(self.snd.path_mss);
        self.snd.mss = whole.saturating_sub(options).max(8);
    }

    /// The record that replaces a TCB after [`Events::TIME_WAIT`]; `None` in any other state.
    #[must_use]
    pub fn time_wait(&self, now: Instant) -> Option<TimeWait> {
        if self.state != State::TimeWait {
            return None;
        }
        let ts = self.opt.timestamps.then_some(TimeWaitClock {
            recent: self.opt.ts_recent,
            recent_at: self.opt.ts_recent_at,
            offset: self.cfg.ts_offset,
        });
        let rcv_wnd = self.rcv.nxt.span_to(self.rcv.adv);
        Some(TimeWait {
            tuple: self.tuple,
            snd_nxt: self.snd.nxt,
            rcv_nxt: self.rcv.nxt,
            wnd: (rcv_wnd >> self.rcv.wscale).min(65_535) as u16,
            rcv_wnd,
            ts,
            rfc1337: self.cfg.rfc1337,
            length: self.cfg.time_wait,
            expires: now + self.cfg.time_wait,
            acked_at: Instant::ZERO,
        })
    }

    /// Whether `seg` asks only for our window: RFC 9293 §3.8.6.1, and keep-alive (§3.8.4) looks the same.
    #[must_use]
    pub fn is_probe(&self, seg: &Segment) -> bool {
        seg.len == 0 && seg.seq.before(self.rcv.nxt)
    }

    /// When [`Tcb::on_timer`] has to be called; `None` if no timer runs.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let next = self.timers.next();
        (!next.is_never()).then_some(next)
    }

    /// The connection's name.
    #[must_use]
    pub const fn tuple(&self) -> &FourTuple {
        &self.tuple
    }

    /// The state.
    #[inline]
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// SND.UNA: the first byte in the transmit stream has this number (or the next, while SYN is unacknowledged).
    #[must_use]
    pub const fn snd_una(&self) -> SeqNum {
        self.snd.una
    }

    /// SND.NXT, for traces.
    #[must_use]
    pub const fn snd_nxt(&self) -> SeqNum {
        self.snd.nxt
    }

    /// RCV.NXT, for traces.
    #[must_use]
    pub const fn rcv_nxt(&self) -> SeqNum {
        self.rcv.nxt
    }

    /// The connection is over: no more timers, `CLOSED`, and the error for the program if there is one.
    fn close(&mut self, out: &mut Actions, error: Option<SocketError>) {
        self.state = State::Closed;
        self.timers.clear_all();
        self.snd.syn_due = false;
        self.ack.now = false;
        out.events.insert(Events::CLOSED);
        out.error = error.or(out.error);
        out.transmit = self.snd.rst_due;
    }

    /// Gives the connection up with a RST on the way out.
    fn abort(&mut self, out: &mut Actions, error: Option<SocketError>) {
        // RFC 9293 §3.10.5: reset in the synchronized states; in SYN-SENT the peer has nothing to reset.
        self.snd.rst_due = !matches!(self.state, State::SynSent | State::Closed | State::TimeWait);
        self.close(out, error);
    }

    /// Both FINs are acknowledged and ours was first.
    fn enter_time_wait(&mut self, out: &mut Actions) {
        self.state = State::TimeWait;
        self.timers.clear_all();
        out.events.insert(Events::TIME_WAIT);
    }

    /// Checks what must always hold between the variables, by assertion: for tests and debug builds. It is inlined where
    /// it is used, so that a release build without it holds no panic path.
    #[inline]
    pub fn check(&self) {
        self.board.check();
        if self.state == State::Closed {
            return;
        }
        assert!(self.snd.una.before_or_eq(self.snd.nxt), "SND.UNA ran past SND.NXT");
        assert!(self.snd.nxt.before_or_eq(self.snd.limit()), "SND.NXT ran past what is queued");
        assert_eq!(self.board.end(), self.snd.nxt, "the board and SND.NXT disagree");
        let in_flight = self.snd.una.distance_to(self.snd.nxt);
        assert!(self.board.sacked() + self.board.lost() <= in_flight, "more marked than in flight");
        assert!(self.rcv.consumed.before_or_eq(self.rcv.nxt), "consumed what has not arrived");
        let room = self.rcv.consumed + self.rcv.capacity;
        assert!(self.rcv.adv.before_or_eq(room + 1), "advertised more than there is room for");
        if in_flight > 0 && matches!(self.state, State::Established | State::FinWait1 | State::CloseWait) {
            assert!(self.timers.is_armed(state::Timer::Retransmit), "bytes in flight and no timer");
        }
    }
}

#[cfg(test)]
mod tests;
