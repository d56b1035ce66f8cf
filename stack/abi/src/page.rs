//! The engine's page: one read-only page that every client maps.
//!
//! It says whether the engine lives, which shards sleep, and which ports have a utcp listener.
//!
//! Whether it lives: `life` is a robust futex of the engine's main thread. When the engine ends, in
//! whatever way, the kernel sets FUTEX_OWNER_DIED in it and wakes one sleeper, who wakes the rest.
//! So a client that sleeps on its socket's bell *and* on `life` (futex_waitv) hears of it at once.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// FUTEX_OWNER_DIED of linux/futex.h.
pub const OWNER_DIED: u32 = 0x4000_0000;

/// The page. The engine alone can write it.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct EnginePage {
    /// [`crate::layout::MAGIC`].
    pub magic: AtomicU32,
    /// [`crate::ABI_VERSION`].
    pub version: AtomicU32,
    /// Thread id of the engine's main thread | FUTEX_WAITERS; OWNER_DIED after its end.
    pub life: AtomicU32,
    /// Number of shards.
    pub shards: AtomicU32,
    /// Process id of the engine.
    pub pid: AtomicU32,
    /// Changes when an address, route or device of the engine changes: what a program learned about
    /// who serves a destination is stale then.
    pub route_epoch: AtomicU32,
    /// `net.ipv4.tcp_fastopen` in the engine's network namespace.
    pub fast_open: AtomicU32,
    /// `net.ipv4.tcp_notsent_lowat` there.
    pub notsent_lowat: AtomicU32,
    /// How many shards, the first ones, get new connections: changes with the load.
    pub active: AtomicU32,
    /// Line end.
    pub spare: [AtomicU32; 7],
    /// Per shard: odd while it sleeps; changes with every sleep.
    pub asleep: [ShardSleep; crate::layout::SHARDS_MAX],
    /// One bit per TCP port: a utcp listener may be there.
    pub listening: [AtomicU64; 1024],
    /// One bit per TCP port: a utcp listener serves 127.0.0.1 there.
    pub loopback_v4: [AtomicU64; 1024],
    /// One bit per TCP port: a utcp listener serves ::1 there.
    pub loopback_v6: [AtomicU64; 1024],
}

/// Reads a port's bit.
fn has(map: &[AtomicU64; 1024], port: u16) -> bool {
    map.get(usize::from(port >> 6)).is_some_and(|word| word.load(Ordering::Acquire) >> (port & 63) & 1 == 1)
}

/// 127.0.0.1 as ::ffff:127.0.0.1.
const LOOPBACK_V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
/// ::1.
const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A shard's sleep count in a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct ShardSleep {
    /// Odd while the shard sleeps or is about to.
    pub count: AtomicU32,
}

impl EnginePage {
    /// Whether the engine's main thread still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.life.load(Ordering::Relaxed) & OWNER_DIED == 0
    }

    /// Whether some utcp socket of this engine listens on `port`.
    #[must_use]
    pub fn is_listening(&self, port: u16) -> bool {
        has(&self.listening, port)
    }

    /// Whether a connection to this loopback endpoint is utcp's for certain, so that nobody has to ask.
    /// False for every other address.
    #[must_use]
    pub fn serves_loopback(&self, ip: &[u8; 16], port: u16) -> bool {
        match *ip {
            LOOPBACK_V4 => has(&self.loopback_v4, port),
            LOOPBACK_V6 => has(&self.loopback_v6, port),
            _ => false,
        }
    }

    /// The shard's sleep count, if it sleeps. Call it after the dirty bit was set: both are
    /// sequentially consistent, as the shard's "asleep, then look once more" is.
    #[must_use]
    pub fn sleeping(&self, shard: u32) -> Option<u32> {
        let count = self.asleep.get(shard as usize)?.count.load(Ordering::SeqCst);
        (count & 1 == 1).then_some(count)
    }
}
