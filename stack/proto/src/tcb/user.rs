//! Calls of the program (RFC 9293 §3.10.2 to §3.10.6) and its settings.

use super::Tcb;
use super::state::Work;
use crate::actions::{Actions, Events, UserCall, UserError};
use crate::info::State;
use crate::scoreboard::Tick;
use crate::time::Instant;

/// A stream may hold no more than a window can cover (RFC 7323 §2.3).
const STREAM_MAX: u32 = 1 << 30;

impl Tcb {
    /// The program called (RFC 9293 §3.10.2 to §3.10.6).
    ///
    /// # Errors
    /// When the state of the connection does not allow the call.
    pub fn on_user(&mut self, now: Instant, call: UserCall) -> Result<Actions, UserError> {
        let mut out = Actions::default();
        if matches!(self.state, State::Closed | State::TimeWait) {
            // What is over stays over; closing it once more does no harm.
            return match call {
                UserCall::Send { .. } | UserCall::Shutdown => Err(UserError::NotConnected),
                _ => Ok(out),
            };
        }
        match call {
            UserCall::Send { added, more, urgent } => self.on_send(now, added, more, urgent)?,
            UserCall::Received { n } => self.on_received(now, n, &mut out)?,
            UserCall::Start { more_waits } => self.on_start(more_waits),
            UserCall::Shutdown => self.on_shutdown(&mut out),
            UserCall::ShutdownRead => self.read_shut = true,
            UserCall::Close => self.on_close(now, &mut out),
            UserCall::Abort => self.abort(&mut out, None),
            other => self.on_setting(now, other, &mut out),
        }
        out.transmit = self.has_output();
        #[cfg(debug_assertions)]
        self.check();
        Ok(out)
    }

    /// RFC 9293 §3.10.2, SEND.
    fn on_send(&mut self, now: Instant, added: u32, more: bool, urgent: bool) -> Result<(), UserError> {
        match self.state {
            State::SynSent | State::SynReceived | State::Established | State::CloseWait => {}
            _ => return Err(UserError::NotWritable),
        }
        if self.snd.fin_queued {
            return Err(UserError::NotWritable);
        }
        if added > STREAM_MAX || self.snd.una.distance_to(self.snd.end) + added > STREAM_MAX {
            return Err(UserError::TooMuch);
        }
        if self.chrono.work == Work::Idle && added > 0 {
            self.chrono.turn(now, Work::Busy);
        }
        self.snd.end += added;
        self.snd.more = more;
        if !more {
            self.snd.push_end = self.snd.end;
        }
        if urgent && added > 0 {
            self.snd.urgent = Some(self.snd.end);
        }
        Ok(())
    }

    /// RFC 7413 §4.2.1: what the SYN shall bring is in the transmit stream.
    fn on_start(&mut self, more_waits: bool) {
        if self.state == State::SynSent && self.snd.nxt == self.snd.iss {
            self.snd.syn_due = true;
            self.opt.writer_waits = more_waits;
        }
    }

    /// RFC 9293 §3.10.3, RECEIVE: the program took bytes out of the stream.
    fn on_received(&mut self, now: Instant, n: u32, out: &mut Actions) -> Result<(), UserError> {
        if n > self.rcv.unread() {
            return Err(UserError::Overrun);
        }
        self.rcv.consumed += n;
        // Before the circle comes round to it again.
        if self.rcv.urgent.is_some_and(|up| up.before_or_eq(self.rcv.consumed)) {
            self.rcv.urgent = None;
        }
        self.right_size(now, out);
        let peer_sends = matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        // Linux tcp_cleanup_rbuf: a program that has read everything and does not answer lets the ACK go, as a sender
        // with Nagle may be waiting for it.
        let drained = self.ack.pending && !self.ack.interactive && self.rcv.unread() == 0;
        if peer_sends && !self.rcv.fin_seen && (drained || self.window_update_due()) {
            self.ack.now = true;
        }
        Ok(())
    }

    /// Dynamic right-sizing: the stream should hold twice what the program consumes in a round trip.
    fn right_size(&mut self, now: Instant, out: &mut Actions) {
        // On the circle: after an idle time of any length it may look like a short one, and is waited for once.
        if Tick::at(now).ticks_from(self.rcv.drs_at) < self.ticks_of_round() {
            return;
        }
        let copied = self.rcv.drs_start.span_to(self.rcv.consumed);
        self.rcv.drs_start = self.rcv.consumed;
        self.rcv.drs_at = Tick::at(now);
        self.rcv.drs_copied = self.rcv.drs_copied.max(copied);
        let wanted = copied.saturating_mul(2).min(self.cfg.recv_capacity_max);
        if wanted > self.rcv.capacity {
            // Said again in each round trip until the engine has found the memory.
            self.rcv.wanted = self.rcv.wanted.max(wanted);
            out.events.insert(Events::RECV_LIMITED);
        }
    }

    /// RFC 9293 §3.10.4, CLOSE: FIN follows on what is queued.
    fn on_shutdown(&mut self, out: &mut Actions) {
        match self.state {
            // "Delete the TCB."
            State::SynSent => self.close(out, None),
            // "Queue for processing after entering ESTABLISHED state."
            State::SynReceived => self.snd.fin_queued = true,
            State::Established => {
                self.snd.fin_queued = true;
                self.state = State::FinWait1;
            }
            State::CloseWait => {
                self.snd.fin_queued = true;
                self.state = State::LastAck;
            }
            _ => {}
        }
    }

    /// The last descriptor is gone.
    fn on_close(&mut self, now: Instant, out: &mut Actions) {
        self.orphan = true;
        self.read_shut = true;
        // RFC 1122 §4.2.2.13: a RST tells the peer that its data is lost.
        if self.rcv.unread() > 0 {
            self.abort(out, None);
            return;
        }
        self.on_shutdown(out);
        self.arm_fin_wait(now);
    }

    fn on_setting(&mut self, now: Instant, call: UserCall, out: &mut Actions) {
        match call {
            UserCall::SetNoDelay(on) => {
                self.cfg.nodelay = on;
                // Linux lets go what cork holds, too.
                self.snd.push_out |= on && self.has_small();
            }
            UserCall::SetCork(on) => {
                self.cfg.cork = on;
                self.snd.push_out |= !on && self.has_small();
            }
            UserCall::SetQuickAck(on) => {
                self.ack.always_quick = on;
                self.ack.interactive = !on;
                self.ack.now |= on && self.ack.pending;
            }
            UserCall::SetKeepalive(keepalive) => {
                self.cfg.keepalive = keepalive;
                self.arm_keepalive(now);
            }
            UserCall::SetUserTimeout(timeout) => self.cfg.user_timeout = timeout,
            UserCall::SetCongestion(kind) if kind != self.cc.kind() => {
                self.cfg.congestion = kind;
                self.cc.set_kind(kind, self.snd.una);
            }
            UserCall::SetFinTimeout(timeout) => self.cfg.fin_timeout = timeout,
            UserCall::SetMss(mss) => {
                self.cfg.mss = mss.max(48);
                self.update_mss();
                out.events.insert(Events::MSS_CHANGED);
            }
            UserCall::SetSynRetries(n) => self.cfg.syn_retries = n,
            UserCall::SetPacingRate(rate) => self.cfg.pacing_rate_max = rate,
            UserCall::SetRecvCapacity(capacity) => self.set_recv_capacity(capacity),
            // The calls that are no settings are handled by the caller.
            _ => {}
        }
    }

    /// RFC 9293 §3.8.6, SHLD-14: the window does not shrink, so the stream keeps what was promised.
    fn set_recv_capacity(&mut self, capacity: u32) {
        let promised = self.rcv.consumed.span_to(self.rcv.adv);
        self.rcv.capacity = capacity.min(STREAM_MAX).max(promised);
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.cfg.recv_capacity = self.rcv.capacity;
        } else if !self.rcv.fin_seen && self.state == State::Established && self.window_update_due() {
            self.ack.now = true;
        }
    }

    /// True if the stream ends in less than a full segment that has not been sent.
    fn has_small(&self) -> bool {
        self.snd.nxt.before(self.snd.end)
    }
}
