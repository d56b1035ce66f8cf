//! Timeouts (RFC 9293 §3.10.8): retransmission, probes, delayed ACK, keep-alive, user timeout, FIN-WAIT-2.

use super::Tcb;
use super::state::{Timer, Watch};
use crate::actions::{Actions, SocketError};
use crate::info::{RecoveryState, State};
use crate::scoreboard::Tick;
use crate::time::Instant;

impl Tcb {
    /// A deadline may have passed (RFC 9293 §3.10.8). Harmless when called early or late.
    pub fn on_timer(&mut self, now: Instant) -> Actions {
        let mut out = Actions::default();
        if self.timers.expired(Timer::Pace, now) {
            self.timers.clear(Timer::Pace);
        }
        if self.timers.expired(Timer::DelayedAck, now) {
            self.timers.clear(Timer::DelayedAck);
            self.on_delayed_ack();
        }
        if self.timers.expired(Timer::Retransmit, now) {
            self.timers.clear(Timer::Retransmit);
            self.on_retransmit_timer(now, &mut out);
        }
        if self.timers.expired(Timer::Keepalive, now) {
            self.timers.clear(Timer::Keepalive);
            self.on_keepalive(now, &mut out);
        }
        if self.timers.expired(Timer::FinWait, now) {
            // Linux tcp_fin_timeout: the peer of an orphan does not close. No RST, as it may still do so in peace.
            self.close(&mut out, None);
        }
        out.transmit = self.has_output();
        #[cfg(debug_assertions)]
        self.check();
        out
    }

    fn on_retransmit_timer(&mut self, now: Instant, out: &mut Actions) {
        // RFC 5482: whatever the timer was set for, the time that the user gave is up.
        if self.snd.flight() > 0 && self.user_timeout_passed(now) {
            self.time_out(out);
            return;
        }
        match (self.state, self.timers.watch) {
            (State::SynSent | State::SynReceived, _) => self.on_syn_timeout(now, out),
            (_, Watch::Persist) => self.on_persist(now, out),
            (_, Watch::Reorder) => {
                self.rack_detect(now);
                if self.board.to_resend() > 0 && self.recovery.state != RecoveryState::Loss {
                    self.after_reordering(now);
                }
                if !self.timers.is_armed(Timer::Retransmit) && self.snd.flight() > 0 {
                    self.set_loss_timer(now);
                }
            }
            (_, Watch::Probe) if self.snd.flight() > 0 => self.on_probe_timeout(now),
            (_, Watch::Probe | Watch::Rto) if self.snd.flight() > 0 => self.on_rto(now, out),
            _ => {}
        }
    }

    /// The peer does not answer: the error is the last that a router told, or that time is up.
    fn time_out(&mut self, out: &mut Actions) {
        let error = self.soft_error.take().unwrap_or(SocketError::TimedOut);
        self.close(out, Some(error));
    }

    /// RFC 6298 §5.4 to §5.7 for the SYN and the SYN-ACK.
    fn on_syn_timeout(&mut self, now: Instant, out: &mut Actions) {
        let active = self.state == State::SynSent;
        let retries = if active { self.cfg.syn_retries } else { self.cfg.synack_retries };
        if self.recovery.retransmits >= retries {
            self.time_out(out);
            return;
        }
        self.recovery.retransmits += 1;
        self.recovery.syn_resent = true;
        self.rtt.back_off();
        self.board.lose_all();
        self.snd.syn_due = true;
        let at = self.clamp_to_user_timeout(now + self.rtt.rto(&self.cfg));
        self.timers.set(Timer::Retransmit, at);
    }

    /// RFC 6298 §5.4: the retransmission timeout.
    fn on_rto(&mut self, now: Instant, out: &mut Actions) {
        let retries = if self.orphan { self.cfg.orphan_retries } else { self.cfg.retries };
        // Linux: "receiver dastardly shrinks window. Our retransmits become zero probes, but we should not timeout this
        // connection", as long as it answers; RFC 9293 §3.8.6.1, MUST-37.
        let probing = self.snd.wnd == 0 && !self.orphan && self.heard_lately(now);
        // RFC 1122 §4.2.3.5: R2, unless the user set a time.
        let given = self.cfg.user_timeout.is_zero() || self.orphan;
        if self.recovery.retransmits >= retries && given && !probing {
            self.time_out(out);
            return;
        }
        // A peer that takes no more answers each of them, unless the path swallows what is so large.
        let unanswered = if probing { &mut self.recovery.probes } else { &mut self.recovery.retransmits };
        *unanswered = unanswered.saturating_add(1);
        let timeouts = *unanswered;
        self.on_retransmission_timeout();
        self.rtt.back_off();
        self.timers.watch = Watch::Rto;
        let at = self.clamp_to_user_timeout(now + self.rtt.rto(&self.cfg));
        self.timers.set(Timer::Retransmit, at);
        self.suspect_path(timeouts);
    }

    /// Linux tcp_rtx_probe0_timed_out: a peer that has been silent for two of the longest timeouts is gone.
    fn heard_lately(&self, now: Instant) -> bool {
        now - self.stats.heard_at <= self.cfg.rto_max.times(2)
    }

    /// RFC 8985 §7.3: new data if there is some, else the last segment again. Then the RTO watches.
    fn on_probe_timeout(&mut self, now: Instant) {
        let mss = u32::from(self.snd.mss);
        let window = self.snd.nxt.span_to(self.snd.una + self.snd.wnd);
        let fresh = self.snd.nxt.span_to(self.snd.end).min(window).min(mss);
        if fresh > 0 {
            // One segment beyond the congestion window.
            self.cc.cwnd = self.cc.cwnd.max(self.pipe() + mss);
            self.snd.push_out = true;
            self.note_probe(self.snd.nxt + fresh, false);
        } else if let Some((seq, len)) = self.board.tail(mss) {
            self.note_probe(seq + len, true);
            self.snd.repeat = Some((seq, len));
        }
        self.timers.watch = Watch::Rto;
        let at = self.clamp_to_user_timeout(now + self.rtt.rto(&self.cfg));
        self.timers.set(Timer::Retransmit, at);
    }

    /// RFC 9293 §3.8.6.1: the window is closed, or too small for what waits. Never give up while the peer answers.
    fn on_persist(&mut self, now: Instant, out: &mut Actions) {
        let waiting = self.snd.nxt.before(self.snd.limit());
        if !waiting || self.snd.flight() > 0 {
            if self.snd.flight() > 0 {
                self.set_loss_timer(now);
            }
            return;
        }
        if self.snd.nxt.span_to(self.snd.una + self.snd.wnd) > 0 {
            // RFC 9293 §3.8.6.2.1 (4): the override timeout; also the 200 ms ceiling of cork.
            self.snd.push_out = true;
            self.snd.push_end = self.snd.end;
            return;
        }
        let retries = if self.orphan { self.cfg.orphan_retries } else { self.cfg.retries };
        let timed_out = !self.cfg.user_timeout.is_zero() && self.user_timeout_passed(now);
        // Linux tcp_probe_timer: answers keep no orphan alive whose timeout has reached its ceiling, or a peer could have us
        // hold its data for ever.
        let hopeless = self.orphan && self.rtt.rto(&self.cfg) >= self.cfg.rto_max;
        if self.recovery.probes >= retries || timed_out || hopeless {
            let error = self.soft_error.take().unwrap_or(SocketError::TimedOut);
            self.abort(out, Some(error));
            return;
        }
        self.recovery.probes = self.recovery.probes.saturating_add(1);
        self.snd.probe_due = true;
        // Exponentially (SHLD-30), whatever else the backoff of the RTO stands at.
        self.rtt.back_off();
        let at = self.clamp_to_user_timeout(now + self.rtt.rto(&self.cfg));
        self.timers.set(Timer::Retransmit, at);
    }

    /// RFC 9293 §3.8.4: probes a peer that has been silent.
    fn on_keepalive(&mut self, now: Instant, out: &mut Actions) {
        let Some(keep) = self.cfg.keepalive else { return };
        if matches!(self.state, State::SynSent | State::SynReceived | State::Closed | State::TimeWait) {
            return;
        }
        let busy = self.snd.flight() > 0 || self.snd.nxt.before(self.snd.limit());
        let silent = now - self.stats.heard_at;
        if busy || silent < keep.idle {
            let from = if busy { now } else { self.stats.heard_at };
            self.timers.set(Timer::Keepalive, from + keep.idle);
            return;
        }
        // Linux: with TCP_USER_TIMEOUT set, that decides when to give up, after one probe at least.
        let given_up = if self.cfg.user_timeout.is_zero() {
            self.recovery.probes >= keep.probes
        } else {
            silent >= self.cfg.user_timeout && self.recovery.probes > 0
        };
        if given_up {
            let error = self.soft_error.take().unwrap_or(SocketError::TimedOut);
            self.abort(out, Some(error));
            return;
        }
        self.recovery.probes = self.recovery.probes.saturating_add(1);
        self.snd.probe_due = true;
        self.timers.set(Timer::Keepalive, now + keep.interval);
    }

    /// Starts, restarts or stops the keep-alive timer after a change of its settings.
    pub(super) fn arm_keepalive(&mut self, now: Instant) {
        match self.cfg.keepalive {
            Some(keep) if !matches!(self.state, State::SynSent | State::Closed | State::TimeWait) => {
                let due = self.stats.heard_at + keep.idle;
                self.timers.set(Timer::Keepalive, if due > now { due } else { now });
            }
            _ => self.timers.clear(Timer::Keepalive),
        }
    }

    /// Linux: an orphan does not wait for ever in FIN-WAIT-2.
    pub(super) fn arm_fin_wait(&mut self, now: Instant) {
        if self.orphan && self.state == State::FinWait2 {
            self.timers.set(Timer::FinWait, now + self.cfg.fin_timeout);
        }
    }

    /// A timer never sleeps past the moment at which the user gives up.
    #[inline]
    pub(super) fn clamp_to_user_timeout(&self, at: Instant) -> Instant {
        if self.cfg.user_timeout.is_zero() {
            return at;
        }
        at.min(self.recovery.waiting_since + self.cfg.user_timeout)
    }

    fn user_timeout_passed(&self, now: Instant) -> bool {
        !self.cfg.user_timeout.is_zero() && now - self.recovery.waiting_since >= self.cfg.user_timeout
    }

    /// How long ago the oldest byte in flight was last sent, for traces.
    #[must_use]
    pub fn oldest_in_flight(&self, now: Instant) -> crate::time::Duration {
        self.board.oldest_sent_at().map_or(crate::time::Duration::ZERO, |at| {
            crate::time::Duration::from_nanos(crate::scoreboard::ticks_to_nanos(Tick::at(now).since(at)))
        })
    }
}
