//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, before the queue overflows.

use crate::congestion::AckSample;
use crate::seq::SeqNum;
use crate::time::Duration;

/// RFC 9406 §4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u64 = 8;
const RTT_SAMPLES: u8 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// A round ends when this is acknowledged.
    round_end: SeqNum,
    last_min: Duration,
    current_min: Duration,
    samples: u8,
    /// Rounds of conservative slow start so far, and the round trip that led to it.
    css: Option<(u8, Duration)>,
}

impl HyStart {
    pub(super) const fn new(una: SeqNum) -> Self {
        Self { round_end: una, last_min: Duration::MAX, current_min: Duration::MAX, samples: 0, css: None }
    }

    /// By what to divide the growth of the window; `None` when slow start is over.
    #[inline]
    pub(super) fn on_ack(&mut self, ack: &AckSample) -> Option<u32> {
        if ack.una.after(self.round_end) {
            self.round_end = ack.nxt;
            self.last_min = self.current_min;
            self.current_min = Duration::MAX;
            self.samples = 0;
            if let Some((rounds, _)) = &mut self.css {
                *rounds += 1;
                if *rounds >= CSS_ROUNDS {
                    return None;
                }
            }
        }
        if let Some(rtt) = ack.rtt {
            self.current_min = self.current_min.min(rtt);
            self.samples = self.samples.saturating_add(1);
            if self.samples >= RTT_SAMPLES {
                self.judge();
            }
        }
        Some(if self.css.is_some() { CSS_GROWTH_DIVISOR } else { 1 })
    }

    /// RFC 9406 §4.2: enters conservative slow start when the round trip has grown, leaves it when that was a false alarm.
    fn judge(&mut self) {
        match self.css {
            Some((_, baseline)) if self.current_min < baseline => self.css = None,
            Some(_) => {}
            None if self.last_min != Duration::MAX => {
                let thresh = self.last_min.over(MIN_RTT_DIVISOR).max(MIN_RTT_THRESH).min(MAX_RTT_THRESH);
                if self.current_min >= self.last_min + thresh {
                    self.css = Some((0, self.current_min));
                }
            }
            None => {}
        }
    }
}
