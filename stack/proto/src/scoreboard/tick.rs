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

    /// Ticks from `earlier` to here, however long ago that was, less whole circles.
    #[inline]
    pub(crate) const fn ticks_from(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
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

/// Some ticks in a byte, rounded up by an eighth at most: four bits, and how far they are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span(u8);

impl Span {
    pub(super) const NONE: Self = Self(0);

    /// The shortest that is not less than `ticks`, or the longest there is.
    pub(super) const fn covering(ticks: u32) -> Self {
        let mut shift = 28u32.saturating_sub(ticks.leading_zeros());
        if shift > 0 && ticks > 15 << shift {
            shift += 1;
        }
        if shift > 15 {
            return Self(0xff);
        }
        Self((ticks.div_ceil(1 << shift) as u8) << 4 | shift as u8)
    }

    #[inline]
    pub(super) const fn ticks(self) -> u32 {
        ((self.0 >> 4) as u32) << (self.0 & 15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_and_not_by_much() {
        for ticks in (0..2_000).chain((2_000..491_520).step_by(97)) {
            let covered = Span::covering(ticks).ticks();
            assert!(ticks <= covered && covered <= ticks + ticks / 8 + 1, "{ticks}: {covered}");
        }
        assert_eq!(Span::covering(u32::MAX).ticks(), 15 << 15);
    }
}
