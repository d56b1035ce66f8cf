//! The round trip as who only receives sees it: it sizes the receive stream, and `tcpi_rcv_rtt` tells it.
//!
//! Our own estimate ([`crate::rtt`]) is of what we send: a connection that only receives has the handshake's for ever. So a bare ACK
//! is noted, and the first segment that its sender can have sent because of it ends the round:
//!
//! ```text
//!   ACK, TSval v  ────►            or, without timestamps,   ACK, window up to w  ────►
//!                 ◄────  data, TSecr v                                  ◄────  data up to w
//! ```
//!
//! The second is a round trip at least, if the sender fills the window, and more if not: the shortest counts (as in Linux
//! tcp_rcv_rtt_update). A segment that is not full ended a write, so that the next one may have waited for its program and not
//! for us: it ends a round without a result.

use super::Tcb;
use crate::half_open::{ts_before, ts_clock};
use crate::scoreboard::{Tick, ticks_to_nanos};
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

impl Tcb {
    /// A bare ACK leaves.
    #[inline]
    pub(super) fn begin_round(&mut self, now: Instant) {
        if !self.rcv.round_runs {
            self.rcv.round_mark =
                if self.opt.timestamps { ts_clock(now, self.cfg.ts_offset) } else { self.rcv.adv.raw() };
            self.rcv.round_at = Tick::at(now);
            self.rcv.round_runs = true;
        }
    }

    /// `len` bytes of `seg` were taken in, in order or not; RCV.NXT has not moved yet.
    #[inline]
    pub(super) fn look_at_round(&mut self, now: Instant, seg: &Segment) {
        if self.rcv.round_runs && self.round_is_over(seg) {
            self.end_round(now, seg.len);
        }
    }

    #[inline]
    fn round_is_over(&self, seg: &Segment) -> bool {
        match (self.opt.timestamps, seg.options.timestamps) {
            (true, Some(ts)) => !ts_before(ts.ecr, self.rcv.round_mark),
            (true, None) => false,
            (false, _) => SeqNum::new(self.rcv.round_mark).before_or_eq(seg.end()),
        }
    }

    #[inline(never)]
    fn end_round(&mut self, now: Instant, len: u32) {
        self.rcv.round_runs = false;
        let took = Tick::at(now).since(self.rcv.round_at);
        if len < self.rcv.mss || took == 0 {
            return;
        }
        self.rcv.rtt = match self.rcv.rtt {
            0 => took,
            known if !self.opt.timestamps => took.min(known),
            // What took longer may have waited for the sender's program: it counts little, and not for any time.
            known if took > known => known + (took.min(known.saturating_mul(8)) - known).div_ceil(8),
            known => known - (known - took) / 2,
        };
    }

    /// How long it takes, in ticks, by what was measured last: here, or of what we sent.
    pub(super) fn ticks_of_round(&self) -> u32 {
        match self.rcv.rtt {
            0 => (self.rtt.smoothed.as_nanos() >> 10).min(u64::from(u32::MAX)) as u32,
            measured => measured,
        }
    }

    /// What is known of it; zero before the first.
    pub(super) fn round_trip_received(&self) -> Duration {
        Duration::from_nanos(ticks_to_nanos(self.rcv.rtt))
    }
}
