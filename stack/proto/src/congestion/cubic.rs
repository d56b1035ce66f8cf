//! CUBIC (RFC 9438) in integers: bytes and milliseconds.
//!
//! ```text
//!   window   W_max ─ ─ ─ ─ ─ ─.────────' ─ ─ ─
//!                    .'                     then it probes for more, faster and faster
//!          β W_max  '
//!                   └── K ────┘ time since the loss
//! ```

use crate::congestion::AckSample;
use crate::time::{Duration, Instant};

/// β_cubic = 0.7 (§4.6), in tenths.
const BETA_TENTHS: u64 = 7;
/// Times beyond this one make the cube overflow; a window that has not met a loss for so long is large enough.
const TIME_MAX_MS: u64 = 200_000;

/// How a window grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// To so many bytes, at once.
    To(u32),
    /// By so many bytes while one window is acknowledged.
    PerWindow(u32),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cubic {
    /// The window just before the last reduction, in bytes; zero if there was none.
    w_max: u32,
    /// What an undo restores it to.
    w_max_before: u32,
    /// Start of the current stage of congestion avoidance; `NEVER` before it begins.
    epoch: Instant,
    /// Milliseconds from the epoch until the window is back at `w_max`.
    k_ms: u64,
    /// §4.3: the window that Reno would have, in bytes, and the fraction of a byte times the window.
    w_est: u32,
    est_credit: u64,
}

impl Cubic {
    pub(super) const fn new() -> Self {
        Self { w_max: 0, w_max_before: 0, epoch: Instant::NEVER, k_ms: 0, w_est: 0, est_credit: 0 }
    }

    /// What the window should become: at once, or while one window is acknowledged.
    #[inline]
    pub(super) fn on_ack(&mut self, ack: &AckSample, cwnd: u32, acked: u32) -> Growth {
        if self.epoch.is_never() {
            self.begin_epoch(ack, cwnd);
        }
        let t = (ack.now - self.epoch).as_millis();
        // §4.3: as long as Reno would be faster, be Reno.
        self.est_credit +=
            u64::from(acked) * u64::from(ack.mss) * if self.w_est >= self.w_max { 17 } else { 9 };
        let unit = u64::from(cwnd.max(1)) * 17;
        if self.est_credit >= unit {
            self.w_est = self.w_est.saturating_add((self.est_credit / unit) as u32);
            self.est_credit %= unit;
        }
        // §4.2: the target is where the curve will be after one round trip, within [cwnd, 1.5 cwnd]. That W_est is
        // compared with the curve then rather than now saves a cube.
        let target = self.curve(t + ack.srtt.as_millis(), ack.mss).clamp(cwnd, cwnd.saturating_add(cwnd / 2));
        if self.w_est > target { Growth::To(self.w_est) } else { Growth::PerWindow(target - cwnd) }
    }

    fn begin_epoch(&mut self, ack: &AckSample, cwnd: u32) {
        self.epoch = ack.now;
        self.w_est = cwnd;
        self.est_credit = 0;
        if cwnd >= self.w_max {
            self.w_max = cwnd;
            self.k_ms = 0;
        } else {
            // §4.2: K = cbrt((W_max - cwnd_epoch) / C), C = 0.4 segments/s³; here in ms³, 1/C = 2.5e9 ms³/segment.
            let missing = u64::from(self.w_max - cwnd) * 2_500_000 / u64::from(ack.mss.max(1)) * 1_000;
            self.k_ms = cube_root(missing);
        }
    }

    /// §4.2: W_cubic(t) = C (t - K)³ + W_max, in bytes.
    fn curve(&self, t_ms: u64, mss: u32) -> u32 {
        let offset = t_ms.abs_diff(self.k_ms).min(TIME_MAX_MS);
        // 0.4 segments/s³ is 4e-10 segments/ms³. The cube is below 2^53: divide it first, so that nothing overflows.
        let delta = (offset * offset * offset / 1_000_000).saturating_mul(u64::from(mss) * 4) / 10_000;
        let w_max = u64::from(self.w_max);
        let window =
            if t_ms >= self.k_ms { w_max.saturating_add(delta) } else { w_max.saturating_sub(delta) };
        window.min(u64::from(u32::MAX)) as u32
    }

    /// §4.6 and §4.7: the new threshold; remembers where the loss was.
    pub(super) fn on_congestion(&mut self, cwnd: u32) -> u32 {
        self.w_max_before = self.w_max;
        self.epoch = Instant::NEVER;
        // §4.7, fast convergence: a window that shrinks from loss to loss makes room for others.
        self.w_max =
            if cwnd < self.w_max { (u64::from(cwnd) * (10 + BETA_TENTHS) / 20) as u32 } else { cwnd };
        // §4.6 allows cwnd instead of the flight where a window that is not used does not grow (RFC 7661), as here and in Linux.
        (u64::from(cwnd) * BETA_TENTHS / 10) as u32
    }

    /// The next congestion avoidance starts a new epoch.
    pub(super) fn restart(&mut self) {
        self.epoch = Instant::NEVER;
    }

    /// §4.9: the reduction is taken back.
    pub(super) fn undo(&mut self, cwnd: u32) {
        self.w_max = self.w_max_before.max(cwnd);
        self.epoch = Instant::NEVER;
    }

    /// §5.8: time in which nothing was sent does not count.
    pub(super) fn on_idle(&mut self, now: Instant, idle: Duration) {
        if !self.epoch.is_never() {
            self.epoch = (self.epoch + idle).min(now);
        }
    }
}

/// The integer cube root, rounded down, bit by bit from the top.
fn cube_root(n: u64) -> u64 {
    let mut rest = n;
    let mut root: u64 = 0;
    let mut shift = 63;
    loop {
        root <<= 1;
        let step = (3 * root * (root + 1) + 1) << shift;
        if rest >= step && step >> shift == 3 * root * (root + 1) + 1 {
            rest -= step;
            root += 1;
        }
        if shift == 0 {
            return root;
        }
        shift -= 3;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cube_roots() {
        for n in [0u64, 1, 7, 8, 9, 26, 27, 63, 64, 1_000_000, 2_500_000_000, u64::MAX] {
            let root = u128::from(cube_root(n));
            assert!(root.pow(3) <= u128::from(n) && (root + 1).pow(3) > u128::from(n), "{n} -> {root}");
        }
    }

    /// RFC 9438 §4.2: the curve starts at β W_max, is at W_max after K, and beyond it later.
    #[test]
    fn curve_meets_its_anchors() {
        let mut cubic = Cubic::new();
        let ssthresh = cubic.on_congestion(1_000_000);
        assert_eq!(ssthresh, 700_000);
        let ack = AckSample {
            now: Instant::from_millis(50),
            acked: 1_000,
            mss: 1_000,
            srtt: Duration::ZERO,
            rtt: None,
            una: crate::SeqNum::new(0),
            nxt: crate::SeqNum::new(0),
            sack: true,
        };
        cubic.on_ack(&ack, 700_000, 0);
        assert_eq!(cubic.k_ms, 9_085, "cbrt(300 / 0.4) s");
        let start = cubic.curve(0, 1_000);
        assert!((699_000..=701_000).contains(&start), "{start}");
        assert_eq!(cubic.curve(9_085, 1_000), 1_000_000);
        assert_eq!(cubic.curve(19_085, 1_000), 1_400_000);
    }

    #[test]
    fn fast_convergence_gives_way() {
        let mut cubic = Cubic::new();
        cubic.on_congestion(100_000);
        cubic.on_congestion(80_000);
        assert_eq!(cubic.w_max, 68_000);
    }
}
