//! The seed and what it decides: the link's faults and the bytes of a stream.

use utcp_proto::Duration;

/// A small generator (SplitMix64): the seed is all there is to a run.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// True in `ppm` of a million cases.
    pub fn hits(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(ppm)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What the link does, each direction alike. Rates in parts per million.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub delay: Duration,
    pub jitter: Duration,
    /// Bits do not matter, bytes do: bytes per second, zero for no limit.
    pub rate: u64,
    /// Bytes that the queue before the bottleneck holds.
    pub queue: u64,
    pub loss: u32,
    pub duplicate: u32,
    pub reorder: u32,
    pub corrupt: u32,
    /// Packets larger than this vanish.
    pub mtu: usize,
    /// How often a router says so.
    pub tells: u32,
    /// How often a packet that may be is marked (RFC 3168).
    pub mark: u32,
    /// In parts per million: a burst of loss begins, and one that goes on ends.
    pub burst: (u32, u32),
}

impl Link {
    pub const PERFECT: Self = Self {
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
        rate: 0,
        queue: u64::MAX,
        loss: 0,
        duplicate: 0,
        reorder: 0,
        corrupt: 0,
        mtu: usize::MAX,
        tells: 0,
        mark: 0,
        burst: (0, 1_000_000),
    };
}

/// The byte at a position of the stream that `side` sends.
pub fn byte_at(side: usize, at: u64) -> u8 {
    let x = (at ^ (side as u64) << 60).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 56) as u8
}
