//! Sequence numbers (RFC 9293 §3.4): 32-bit numbers on a circle.
//!
//! "Less than" has no meaning on a circle, so [`SeqNum`] has no `Ord`. It offers [`SeqNum::before`] and
//! its relatives, which hold while the two numbers lie within half the circle of each other.

use core::ops::{Add, AddAssign, Sub};

/// A position in a TCP sequence space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SeqNum(u32);

impl SeqNum {
    /// The number as it stands in a header.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number for a header.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// True if `self` lies strictly before `other`.
    #[inline]
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) & 0x8000_0000 != 0
    }

    /// True if `self` lies strictly after `other`.
    #[inline]
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// True if `self` lies before `other` or is equal to it.
    #[inline]
    #[must_use]
    pub const fn before_or_eq(self, other: Self) -> bool {
        !other.before(self)
    }

    /// True if `self` lies after `other` or is equal to it.
    #[inline]
    #[must_use]
    pub const fn after_or_eq(self, other: Self) -> bool {
        !self.before(other)
    }

    /// How many numbers lie from here (included) to `end` (excluded), going forward round the circle.
    #[inline]
    #[must_use]
    pub const fn distance_to(self, end: Self) -> u32 {
        end.0.wrapping_sub(self.0)
    }

    /// Like [`SeqNum::distance_to`], but zero when `end` lies before `self`.
    #[inline]
    #[must_use]
    pub const fn span_to(self, end: Self) -> u32 {
        if end.before(self) { 0 } else { end.0.wrapping_sub(self.0) }
    }

    /// True if `self` lies in `start..start + len`.
    #[inline]
    #[must_use]
    pub const fn within(self, start: Self, len: u32) -> bool {
        start.distance_to(self) < len
    }

    /// True if `self` lies after `start` and not after `end`, which is not before `start`.
    ///
    /// For a mark that may be much older than both: one that was left behind by half the circle would look to
    /// [`SeqNum::before`] as if it lay ahead.
    #[inline]
    #[must_use]
    pub const fn is_between(self, start: Self, end: Self) -> bool {
        start.distance_to(self).wrapping_sub(1) < start.distance_to(end)
    }

    /// The later of the two.
    #[inline]
    #[must_use]
    pub const fn later(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of the two.
    #[inline]
    #[must_use]
    pub const fn earlier(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for SeqNum {
    type Output = Self;
    #[inline]
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for SeqNum {
    #[inline]
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for SeqNum {
    type Output = Self;
    #[inline]
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}
