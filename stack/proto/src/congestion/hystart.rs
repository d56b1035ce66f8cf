//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, before the queue overflows.
//!
//! The shortest round trip of a round tells of a queue only when the queue no longer drains between two rounds, and then
//! the window is twice what the path holds already: too late for a queue of one round trip. So the other sign of HyStart
//! counts, too (Ha and Rhee 2011, as in Linux): ACKs that follow each other closely for half of the base round trip.
//!
//! Either sign will do for CUBIC, which soon finds what it left too early, and for a sender without SACK, to which each
//! segment that overflows costs a round trip. Reno with SACK waits for both: it adds one segment in a round trip, and a
//! loss that halves a window which had stopped at the first sign leaves it far below what the path holds.
//!
//! ```text
//!   sent    |||||||||                 next round |||||||||||||||||||
//!   ACKs              | | | | | | | |            | | | | | | | | | | | | | | | | |
//!                     └── train ──┘ half of the base round trip: twice as much would keep the path busy without a gap
//! ```

use crate::congestion::AckSample;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// RFC 9406 §4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u64 = 8;
const RTT_SAMPLES: u8 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;
/// ACKs of a train are at most this far apart, or 1/8 of the base round trip (Linux `hystart_ack_delta_us`; a fixed
/// time would miss the trains of slow links).
const TRAIN_GAP: Duration = Duration::from_millis(2);
const TRAIN_GAP_DIVISOR: u64 = 8;
/// A shorter train says nothing: what is queued in less time than that does not matter.
const TRAIN_MIN: Duration = Duration::from_millis(4);
/// Segments below which a window is not judged (Linux `hystart_low_window`).
const TRAIN_WINDOW: u32 = 16;

#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// A round ends when this is acknowledged.
    round_end: SeqNum,
    last_min: Duration,
    current_min: Duration,
    samples: u8,
    /// Rounds of conservative slow start so far, and the round trip that led to it.
    css: Option<(u8, Duration)>,
    /// The shortest round trip of all rounds.
    base: Duration,
    /// When the first and the last ACK of the round's train came.
    train: (Instant, Instant),
    /// There has been a train that fills the path.
    filled: bool,
}

/// RFC 9406 §4.2, RttThresh: by how much a round trip grows that tells of a queue.
fn thresh(rtt: Duration) -> Duration {
    rtt.over(MIN_RTT_DIVISOR).max(MIN_RTT_THRESH).min(MAX_RTT_THRESH)
}

impl HyStart {
    pub(super) const fn new(una: SeqNum) -> Self {
        Self {
            round_end: una,
            last_min: Duration::MAX,
            current_min: Duration::MAX,
            samples: 0,
            css: None,
            base: Duration::MAX,
            train: (Instant::NEVER, Instant::NEVER),
            filled: false,
        }
    }

    /// By what to divide the growth of the window; `None` when slow start is over. `by_train`: a train of ACKs suffices.
    #[inline]
    pub(super) fn on_ack(&mut self, ack: &AckSample, cwnd: u32, by_train: bool) -> Option<u32> {
        // It may be far behind: rounds are not counted while the program, and not the window, holds the sender back.
        if !self.round_end.is_between(ack.una - 1, ack.nxt) {
            self.round_end = ack.nxt;
            self.last_min = self.current_min;
            self.current_min = Duration::MAX;
            self.samples = 0;
            self.train = (ack.now, ack.now);
            if let Some((rounds, _)) = &mut self.css {
                *rounds += 1;
                if *rounds >= CSS_ROUNDS {
                    return None;
                }
            }
        }
        if let Some(rtt) = ack.rtt {
            self.current_min = self.current_min.min(rtt);
            self.base = self.base.min(rtt);
            self.samples = self.samples.saturating_add(1);
            if self.samples >= RTT_SAMPLES {
                self.judge();
            }
        }
        if cwnd >= TRAIN_WINDOW * ack.mss && self.train_fills_the_path(ack.now) {
            self.filled = true;
        }
        if self.filled && (by_train || self.queued()) {
            return None;
        }
        Some(if self.css.is_some() { CSS_GROWTH_DIVISOR } else { 1 })
    }

    /// The shortest round trip of this round tells of a queue.
    fn queued(&self) -> bool {
        self.samples >= RTT_SAMPLES && self.current_min >= self.base + thresh(self.base)
    }

    /// True if the ACKs of this round have come without a gap for so long that twice the window fills the path.
    fn train_fills_the_path(&mut self, now: Instant) -> bool {
        let (first, last) = self.train;
        if last.is_never() || self.base == Duration::MAX {
            return false;
        }
        if now - last > TRAIN_GAP.max(self.base.over(TRAIN_GAP_DIVISOR)) {
            // The rest of the round comes too late to tell.
            self.train = (Instant::NEVER, Instant::NEVER);
            return false;
        }
        self.train.1 = now;
        now - first > TRAIN_MIN.max(self.base.over(2))
    }

    /// RFC 9406 §4.2: enters conservative slow start when the round trip has grown, leaves it when that was a false alarm.
    fn judge(&mut self) {
        match self.css {
            Some((_, baseline)) if self.current_min < baseline => self.css = None,
            Some(_) => {}
            None if self.last_min != Duration::MAX
                && self.current_min >= self.last_min + thresh(self.last_min) =>
            {
                self.css = Some((0, self.current_min));
            }
            None => {}
        }
    }
}
