//! Errors from the network (RFC 1122 §4.2.3.9, RFC 5927, RFC 1191, RFC 8201).

use super::Tcb;
use crate::actions::{Actions, DropReason, Events, IcmpError, IcmpKind};
use crate::info::{RecoveryState, State};
use crate::time::Instant;

/// Headers of IPv4 or IPv6 and TCP without options.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;
/// Linux `ip_no_pmtu_disc` aside, no router is believed that asks for less: 552 (`min_pmtu`), and 1 280 (RFC 8200 §5).
const MTU_MIN_V4: u32 = 552;
const MTU_MIN_V6: u32 = 1_280;
/// RFC 1191 §7: likely MTUs for a router that does not say.
const PLATEAUS: [u32; 8] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 552];

impl Tcb {
    /// An ICMP error came in that quotes a segment of ours.
    pub fn on_icmp(&mut self, now: Instant, error: IcmpError) -> Actions {
        let mut out = Actions::default();
        // RFC 5927 §4.1: what it quotes must be in flight, or anybody could have made it up.
        let over = matches!(self.state, State::Closed | State::TimeWait);
        if over || !error.seq.within(self.snd.una, self.snd.flight()) {
            out.drop = Some(DropReason::IcmpNotInFlight);
            return out;
        }
        let connecting = matches!(self.state, State::SynSent | State::SynReceived);
        match error.kind {
            // RFC 5927 §5.2, RFC 1122 §4.2.3.9: an attempt ends; an established connection takes it for a hint.
            IcmpKind::Hard(reason) if connecting => self.close(&mut out, Some(reason)),
            IcmpKind::Hard(reason) | IcmpKind::Soft(reason) => self.soft_error = Some(reason),
            // RFC 8201 §4: what asks for less than every IPv6 link carries is discarded.
            IcmpKind::TooBig { mtu } if mtu < MTU_MIN_V6 && !self.tuple.remote.addr.is_v4() => {
                out.drop = Some(DropReason::IcmpMtuTooSmall);
            }
            IcmpKind::TooBig { mtu } => {
                let told = self.on_too_big(now, mtu, &mut out);
                self.date_path(now, told);
            }
        }
        out.transmit = self.has_output();
        out
    }

    /// The link that our segments leave by carries packets of `mtu` bytes at most from now on. Nobody has to be believed:
    /// it is our own (RFC 1191 §6.1: the first hop's MTU). A link that grows again lets segments grow that it had kept small; what a
    /// router said, or a search found, stays.
    pub fn on_link_mtu(&mut self, now: Instant, mtu: u32) -> Actions {
        let mut out = Actions::default();
        if !matches!(self.state, State::Closed | State::TimeWait) {
            let (payload, before) = (self.payload_of(mtu.max(1)), self.snd.path_mss);
            let link_before = core::mem::replace(&mut self.snd.link_mss, payload);
            let links_own = before == link_before && self.timers.path_until_s == 0 && !self.search.on;
            if links_own && payload > before {
                self.snd.path_mss = payload;
                self.update_mss();
                out.events.insert(Events::MSS_CHANGED);
            } else {
                self.on_too_big(now, mtu.max(1), &mut out);
                if self.snd.path_mss == payload {
                    // It is the link's word now, which does not age.
                    self.timers.path_until_s = 0;
                }
            }
        }
        out.transmit = self.has_output();
        out
    }

    /// Bytes of headers, and the smallest MTU that is believed.
    fn headers_and_floor(&self) -> (u32, u32) {
        if self.tuple.remote.addr.is_v4() { (HEADERS_V4, MTU_MIN_V4) } else { (HEADERS_V6, MTU_MIN_V6) }
    }

    /// What packets of `mtu` bytes carry.
    fn payload_of(&self, mtu: u32) -> u16 {
        let (headers, floor) = self.headers_and_floor();
        (mtu.max(floor) - headers).min(65_535) as u16
    }

    /// Returns what such packets carry, as far as it is believed.
    fn on_too_big(&mut self, now: Instant, mtu: u32, out: &mut Actions) -> u16 {
        let (headers, floor) = self.headers_and_floor();
        let current = u32::from(self.path_payload()) + headers;
        let mtu = if mtu == 0 { PLATEAUS.into_iter().find(|&p| p < current).unwrap_or(floor) } else { mtu };
        let payload = self.payload_of(mtu);
        self.bound_search(payload);
        if payload < self.path_payload() {
            self.snd.path_mss = payload;
            self.shrink_segments(now, out);
        }
        payload
    }

    /// RFC 1191 §6.5: what is in flight is sent again in smaller pieces; that is no sign of congestion.
    fn shrink_segments(&mut self, now: Instant, out: &mut Actions) {
        self.update_mss();
        out.events.insert(Events::MSS_CHANGED);
        if matches!(self.state, State::SynSent | State::SynReceived) {
            if core::mem::take(&mut self.opt.syn_data) {
                // The data made the SYN too large: it goes again without, and not only after a timeout.
                self.board.lose_all();
                self.snd.syn_due = true;
            }
            return;
        }
        self.board.lose_all();
        if self.recovery.state != RecoveryState::Loss {
            self.begin_repair(now);
        }
    }
}
