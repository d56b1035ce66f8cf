//! The transmission control block.

use crate::actions::{Actions, IcmpError, UserCall, UserError};
use crate::config::Config;
use crate::half_open::HalfOpen;
use crate::info::{State, TcpInfo};
use crate::segment::{FourTuple, Segment, Transmit, TxLimits};
use crate::seq::SeqNum;
use crate::time::Instant;
use crate::time_wait::TimeWait;

/// One TCP connection: arithmetic on sequence numbers, no bytes, no clock.
#[derive(Clone, Debug)]
pub struct Tcb {
    tuple: FourTuple,
}

impl Tcb {
    /// OPEN, active (RFC 9293 §3.10.1). `iss` comes from [`crate::isn::Secret::isn`]. The SYN comes out of
    /// [`Tcb::poll_transmit`].
    #[must_use]
    pub fn connect(cfg: &Config, now: Instant, tuple: FourTuple, iss: SeqNum) -> Self {
        let _ = (cfg, now, iss);
        Self { tuple }
    }

    /// The connection that grows out of a half-open record when [`crate::HalfOpenVerdict::Established`] was the
    /// verdict on `seg`; the actions are those of the segment (CONNECTED, and data if it carried some).
    #[must_use]
    pub fn from_half_open(half: &HalfOpen, cfg: &Config, now: Instant, seg: &Segment) -> (Self, Actions) {
        let mut tcb = Self { tuple: half.tuple };
        let actions = tcb.on_segment(now, seg);
        let _ = cfg;
        (tcb, actions)
    }

    /// A segment arrived (RFC 9293 §3.10.7).
    pub fn on_segment(&mut self, now: Instant, seg: &Segment) -> Actions {
        let _ = (now, seg);
        Actions::default()
    }

    /// The program called (RFC 9293 §3.10.2 to §3.10.6).
    ///
    /// # Errors
    /// When the state of the connection does not allow the call.
    pub fn on_user(&mut self, now: Instant, call: UserCall) -> Result<Actions, UserError> {
        let _ = (now, call);
        Ok(Actions::default())
    }

    /// A deadline may have passed (RFC 9293 §3.10.8). Harmless when called early or late.
    pub fn on_timer(&mut self, now: Instant) -> Actions {
        let _ = now;
        Actions::default()
    }

    /// An ICMP error came in that quotes a segment of ours.
    pub fn on_icmp(&mut self, now: Instant, error: IcmpError) -> Actions {
        let _ = (now, error);
        Actions::default()
    }

    /// The next segment to send, until `None`.
    pub fn poll_transmit(&mut self, now: Instant, limits: TxLimits) -> Option<Transmit> {
        let _ = (now, limits);
        None
    }

    /// When [`Tcb::on_timer`] has to be called; `None` if no timer runs.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The record that replaces a TCB after [`crate::Events::TIME_WAIT`]; `None` in any other state.
    #[must_use]
    pub fn time_wait(&self, now: Instant) -> Option<TimeWait> {
        let _ = now;
        None
    }

    /// The connection's name.
    #[must_use]
    pub const fn tuple(&self) -> &FourTuple {
        &self.tuple
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        State::Closed
    }

    /// What `TCP_INFO` shows.
    #[must_use]
    pub fn info(&self, now: Instant) -> TcpInfo {
        let _ = now;
        TcpInfo::default()
    }

    /// How many bytes the receive stream should hold so that the window does not limit the peer (dynamic right-sizing).
    /// Look at it after [`crate::Events::RECV_LIMITED`]; answer with `UserCall::SetRecvCapacity`.
    #[must_use]
    pub const fn recv_capacity_wanted(&self) -> u32 {
        0
    }

    /// How many bytes the transmit stream should hold so that it does not limit the congestion window: two windows.
    #[must_use]
    pub const fn send_capacity_wanted(&self) -> u32 {
        0
    }

    /// SND.UNA, the sequence number of the first byte in the transmit stream; to match ICMP errors and for traces.
    #[must_use]
    pub const fn snd_una(&self) -> SeqNum {
        SeqNum::new(0)
    }

    /// RCV.NXT, for traces.
    #[must_use]
    pub const fn rcv_nxt(&self) -> SeqNum {
        SeqNum::new(0)
    }
}
