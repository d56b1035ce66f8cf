//! How large segments may be: a path that swallows large ones without a word, and probing for a larger size (RFC 4821, RFC 8899).
//!
//! ```text
//!   payload   base ──── low ─────────── probe ───────── high
//!                        │ what has     │ one segment    │ what peer and link take; a probe that is lost
//!                        │ arrived      │ of new data    │ alone brings it down
//! ```
//!
//! A probe is data that has to be sent anyway, so nothing is wasted; one that gets lost is sent again in pieces, and that is no
//! sign of congestion (RFC 4821 §7.6). The first one asks for `high` itself: most paths carry what the link does.

use super::Tcb;
use crate::actions::{Actions, Events};
use crate::config::MtuProbing;
use crate::info::{RecoveryState, State};
use crate::segment::Options;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};
use crate::wire::tcp::options_len;

/// Timeouts in a row after which a path is suspected to swallow large segments (RFC 4821 §7.7, RFC 8899 §4.3).
const BLACK_HOLE_TIMEOUTS: u8 = 3;
/// RFC 9293 §3.7.1: what every IPv4 path carries, less the room for options; the last resort after as many timeouts again.
const LAST_MSS_V4: u16 = 512;
/// The search is over when so little is left to gain (Linux `tcp_probe_threshold`).
const SEARCH_END: u16 = 8;
/// A path may have changed after so long (RFC 4821 §7.8; Linux `tcp_probe_interval`).
const SEARCH_AGAIN: Duration = Duration::from_secs(600);
/// Segments that the window holds at least, and that follow a probe (Linux tcp_mtu_probe): its loss must be noticed by the
/// ACKs of others, and cost no round trip.
const WINDOW_MIN: u32 = 11;
const FOLLOWERS: u32 = 4;

/// The state of the search. Sizes are MSSs: payload and options.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Search {
    pub(super) on: bool,
    low: u16,
    high: u16,
    /// A probe of this size is on its way.
    size: u16,
    start: SeqNum,
    end: SeqNum,
    /// When to begin anew, after the search has ended.
    again_at: Instant,
}

/// Whole seconds on the caller's clock.
fn seconds(at: Instant) -> u32 {
    (at.as_millis() / 1_000) as u32
}

impl Tcb {
    /// What peer and link take, path aside.
    fn largest_mss(&self) -> u16 {
        self.snd.peer_mss.min(self.cfg.mss)
    }

    pub(super) fn path_payload(&self) -> u16 {
        self.largest_mss().min(self.snd.path_mss)
    }

    /// Both SYNs are known: with [`MtuProbing::Always`] the search begins at the base size (RFC 4821 §7.2).
    pub(super) fn begin_probing(&mut self) {
        if self.cfg.mtu_probing == MtuProbing::Always && self.cfg.base_mss < self.path_payload() {
            self.search_from(self.cfg.base_mss.max(48));
        }
    }

    /// Segments have `low` from now on, and the search goes on above that.
    fn search_from(&mut self, low: u16) {
        let high = self.path_payload();
        self.search = Search { on: true, low, high, ..Search::default() };
        self.snd.path_mss = low;
        self.update_mss();
    }

    /// A router said what the path carries.
    pub(super) fn bound_search(&mut self, known: u16) {
        self.search.high = self.search.high.min(known);
        self.search.low = self.search.low.min(known);
    }

    /// A router said that the path carries no more than `told`.
    pub(super) fn date_path(&mut self, now: Instant, told: u16) {
        if told == self.snd.path_mss {
            self.timers.path_until_s = seconds(now) + u32::from(self.cfg.path_mtu_age_s).max(1);
        }
    }

    /// RFC 1191 §6.3, RFC 8201 §4: what a router said counts for some minutes; then segments are as long as the link takes them
    /// again, and a path that still does not says so once more. A search has its own times. Called once in a round trip.
    #[inline]
    pub(super) fn age_path(&mut self, now: Instant) {
        if self.timers.path_until_s != 0 && seconds(now) >= self.timers.path_until_s {
            self.forget_path();
        }
    }

    #[cold]
    fn forget_path(&mut self) {
        self.timers.path_until_s = 0;
        if self.search.on {
            return;
        }
        if self.snd.path_mss_before != 0 {
            // The path is under suspicion, and by more than that word.
            self.snd.path_mss_before = self.snd.link_mss;
        } else {
            self.snd.path_mss = self.snd.link_mss;
            self.update_mss();
        }
    }

    /// Repeated timeouts: perhaps only large segments get lost, and no router says so (RFC 4821 §7.7).
    pub(super) fn suspect_path(&mut self, timeouts: u8) {
        if self.search.size != 0 && self.snd.una == self.search.start {
            self.search.high = self.search.size - 1;
        }
        self.search.size = 0;
        let payload = self.path_payload();
        let smaller = if timeouts >= 2 * BLACK_HOLE_TIMEOUTS && self.tuple.remote.addr.is_v4() {
            LAST_MSS_V4
        } else {
            self.cfg.base_mss.max(48)
        };
        if timeouts < BLACK_HOLE_TIMEOUTS || payload <= smaller {
            return;
        }
        if self.cfg.mtu_probing != MtuProbing::Off {
            return self.search_from(smaller);
        }
        if self.snd.path_mss_before == 0 && self.snd.path_trusted {
            self.snd.path_mss_before = self.snd.path_mss;
        }
        self.snd.path_mss = smaller;
        self.update_mss();
    }

    /// The timeouts are over. Perhaps it was an outage and no black hole: go back to full segments, once. If they get lost
    /// again, the suspicion was right.
    pub(super) fn trust_path_again(&mut self) {
        let before = core::mem::take(&mut self.snd.path_mss_before);
        if before != 0 {
            self.snd.path_trusted = false;
            self.snd.path_mss = before;
            self.update_mss();
        }
    }

    /// The size to probe for next; `None`: the search is over for now.
    fn probe_size(&mut self, now: Instant) -> Option<u16> {
        let largest = self.largest_mss();
        let search = &mut self.search;
        if search.high < search.low + SEARCH_END {
            if search.again_at == Instant::ZERO {
                search.again_at = now + SEARCH_AGAIN;
            }
            if now < search.again_at || largest < search.low + SEARCH_END {
                return None;
            }
            search.again_at = Instant::ZERO;
            search.high = largest;
        }
        let first = search.high == largest;
        Some(if first { search.high } else { search.low + (search.high - search.low) / 2 })
    }

    /// RFC 4821 §7.3 to §7.5: a probe, if this is a good moment for one.
    #[cold]
    pub(super) fn mtu_probe(&mut self, now: Instant, options: &Options) -> Option<(SeqNum, u32, bool)> {
        let calm = self.recovery.state == RecoveryState::Open && self.recovery.is_quiet();
        let open = matches!(self.state, State::Established | State::CloseWait);
        if !(calm
            && open
            && self.board.to_resend() == 0
            && self.opt.sack
            && self.search.size == 0
            && self.snd.urgent.is_none())
        {
            return None;
        }
        let mss = u32::from(self.snd.mss);
        let size = self.probe_size(now)?;
        let payload = u32::from(size).saturating_sub(options_len(options) as u32);
        let needed = payload + FOLLOWERS * mss;
        let window = self.snd.nxt.span_to(self.snd.una + self.snd.wnd);
        let room = self.cc.cwnd.saturating_sub(self.pipe());
        let queued = self.snd.nxt.span_to(self.snd.end);
        if self.cc.cwnd < WINDOW_MIN * mss || queued < needed || window < needed || room < payload {
            return None;
        }
        let in_flight = self.snd.flight();
        // A record of its own: its loss must be told from that of its neighbours.
        self.board.seal();
        let span = self.advance(now, payload, in_flight);
        self.board.seal();
        self.search.size = size;
        self.search.start = span.0;
        self.search.end = span.0 + payload;
        Some(span)
    }

    /// An ACK moved SND.UNA: over the probe, perhaps.
    pub(super) fn note_probe_arrived(&mut self, out: &mut Actions) {
        if self.search.size == 0 || self.snd.una.before(self.search.end) {
            return;
        }
        self.search.low = self.search.size;
        self.search.size = 0;
        self.snd.path_mss = self.search.low;
        self.update_mss();
        out.events.insert(Events::MSS_CHANGED);
    }

    /// RFC 4821 §7.6.1: the probe alone is lost. It is sent again in pieces, and the window stays. False: it is not that.
    pub(super) fn probe_was_lost(&mut self, now: Instant) -> bool {
        if self.search.size == 0 {
            return false;
        }
        let alone = self.snd.una == self.search.start
            && self.board.lost() == self.search.start.distance_to(self.search.end);
        // Anything else that is lost is a reason to slow down, and leaves the probe's end open: it says nothing.
        if alone {
            self.search.high = self.search.size - 1;
        }
        self.search.size = 0;
        if alone {
            self.begin_repair(now);
        }
        alone
    }
}
