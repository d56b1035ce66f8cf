//! Round-trip time and retransmission timeout (RFC 6298).

use crate::config::Config;
use crate::time::{Duration, Instant};

/// How long the minimum of the round-trip time is remembered (RFC 8985 §6.2 step 1 leaves it open; Linux: 5 min).
const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

/// The estimator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    /// SRTT; zero before the first sample.
    pub(crate) smoothed: Duration,
    /// RTTVAR.
    pub(crate) var: Duration,
    /// The smallest sample of the last minutes.
    pub(crate) min: Duration,
    min_at: Instant,
    /// RTO without backoff.
    rto: Duration,
    /// How often the timeout doubled (RFC 6298 §5.5).
    pub(crate) backoff: u8,
}

impl Rtt {
    pub(crate) const fn new(cfg: &Config) -> Self {
        Self {
            smoothed: Duration::ZERO,
            var: Duration::ZERO,
            min: Duration::MAX,
            min_at: Instant::ZERO,
            rto: cfg.rto_initial,
            backoff: 0,
        }
    }

    /// True if there has been a sample.
    #[inline]
    pub(crate) const fn is_known(&self) -> bool {
        !self.smoothed.is_zero()
    }

    /// RFC 6298 §2.2, §2.3: takes in a sample.
    #[inline]
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration, cfg: &Config) {
        // A sample of zero would pass for "no sample".
        let r = rtt.as_nanos().max(1);
        if self.smoothed.is_zero() {
            self.smoothed = Duration::from_nanos(r);
            self.var = Duration::from_nanos(r / 2);
        } else {
            let srtt = self.smoothed.as_nanos();
            let var = self.var.as_nanos();
            // RTTVAR <- (1 - 1/4) * RTTVAR + 1/4 * |SRTT - R'|, then SRTT <- (1 - 1/8) * SRTT + 1/8 * R'.
            self.var = Duration::from_nanos(var - var / 4 + srtt.abs_diff(r) / 4);
            self.smoothed = Duration::from_nanos((srtt - srtt / 8 + r / 8).max(1));
        }
        // RFC 6298 §2.3 with the floor under the variance, as Linux has it: a floor under the sum alone lets the timeout
        // of a path with a steady 200 ms fall to the round trip itself.
        self.rto = (self.smoothed + self.var.times(4).max(cfg.rto_min)).min(cfg.rto_max);
        self.backoff = 0;
        if r <= self.min.as_nanos() || now - self.min_at > MIN_RTT_WINDOW {
            self.min = Duration::from_nanos(r);
            self.min_at = now;
        }
    }

    /// The timeout with its backoff.
    #[inline]
    pub(crate) fn rto(&self, cfg: &Config) -> Duration {
        if self.backoff == 0 {
            return self.rto;
        }
        Duration::from_nanos(self.rto.as_nanos().saturating_mul(1 << self.backoff.min(20))).min(cfg.rto_max)
    }

    /// RFC 6298 §5.5: doubles the timeout.
    pub(crate) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    /// RFC 6298 §5.7: the SYN had to be repeated, so start data with three seconds.
    pub(crate) fn syn_was_lost(&mut self) {
        if !self.is_known() {
            self.rto = self.rto.max(Duration::from_secs(3));
            self.backoff = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CFG: Config = Config::DEFAULT;

    #[test]
    fn first_sample_and_floor() {
        let mut rtt = Rtt::new(&CFG);
        assert_eq!(rtt.rto(&CFG), Duration::from_secs(1));
        rtt.sample(Instant::ZERO, Duration::from_millis(100), &CFG);
        assert_eq!((rtt.smoothed, rtt.var), (Duration::from_millis(100), Duration::from_millis(50)));
        assert_eq!(rtt.rto(&CFG), Duration::from_millis(300));
        for _ in 0..100 {
            rtt.sample(Instant::ZERO, Duration::from_millis(100), &CFG);
        }
        assert_eq!(rtt.rto(&CFG), Duration::from_millis(300), "SRTT plus the floor");
    }

    #[test]
    fn backoff_doubles_up_to_the_ceiling_and_ends_with_a_sample() {
        let mut rtt = Rtt::new(&CFG);
        for n in 1..=20u64 {
            rtt.back_off();
            assert_eq!(rtt.rto(&CFG), Duration::from_secs(1 << n.min(10)).min(CFG.rto_max));
        }
        rtt.sample(Instant::ZERO, Duration::from_millis(1), &CFG);
        assert_eq!(rtt.rto(&CFG).as_millis(), 201);
    }

    #[test]
    fn minimum_is_forgotten_after_a_while() {
        let mut rtt = Rtt::new(&CFG);
        rtt.sample(Instant::ZERO, Duration::from_millis(10), &CFG);
        rtt.sample(Instant::from_millis(1_000), Duration::from_millis(30), &CFG);
        assert_eq!(rtt.min, Duration::from_millis(10));
        rtt.sample(Instant::from_millis(301_000), Duration::from_millis(30), &CFG);
        assert_eq!(rtt.min, Duration::from_millis(30));
    }
}
