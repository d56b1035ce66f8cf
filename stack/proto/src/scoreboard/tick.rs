//! The clock of the scoreboard: small, and as exact as a round trip needs.

use crate::time::Instant;

/// A time in units of 1 024 ns on a circle of 73 minutes: no record lives that long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tick(pub(super) u32);

impl Tick {
    #[inline]
    pub(crate) const fn at(now: Instant) -> Self {
        Self((now.as_nanos() >> 10) as u32)
    }

    /// Ticks since `earlier`, zero if that lies ahead.
    #[inline]
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        let d = self.0.wrapping_sub(earlier.0);
        if d & 0x8000_0000 != 0 { 0 } else { d }
    }

    #[inline]
    pub(super) const fn before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) & 0x8000_0000 != 0
    }
}

/// Ticks as nanoseconds.
pub(crate) const fn ticks_to_nanos(ticks: u32) -> u64 {
    (ticks as u64) << 10
}
