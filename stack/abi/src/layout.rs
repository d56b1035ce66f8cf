//! Where everything stands in a region, and how much of it there is.
//!
//! ```text
//!  0          header: magic, version, fork epoch, log ring
//!  FREE       free lists (bitmaps): sockets, interests, sets
//!  DIRTY      one bitmap per shard over the sockets: program → engine
//!  SETS       epoll sets, each with its readiness bitmap over the interests
//!  INTERESTS  what an epoll set wants of a socket
//!  LISTENERS  accept rings, one per shard
//!  SOCKETS    512 bytes per socket
//!  INFOS      512 bytes per socket: answers for TCP_INFO
//!  ARENA      byte streams
//! ```
//!
//! The memfd is sparse: untouched pages cost nothing, so the counts are limits, not prices.

use crate::info::Info;
use crate::listener::Listener;
use crate::region::Header;
use crate::set::{Interest, Set};
use crate::socket::Socket;

/// Version of everything in this crate (a hash of its sources, see `build.rs`); both ends must agree exactly.
pub const ABI_VERSION: u32 = match u32::from_str_radix(env!("UTCP_ABI_VERSION"), 10) {
    Ok(version) => version,
    Err(_) => panic!("build.rs gives a number"),
};
/// First word of a region.
pub const MAGIC: u32 = 0x7574_6370;

/// Sockets of one client.
pub const SOCKETS_MAX: u32 = 1 << 17;
/// Pairs of (epoll set, socket) of one client.
pub const INTERESTS_MAX: u32 = 1 << 18;
/// Epoll sets that hold utcp sockets, of one client (threads in `poll` use one each).
pub const SETS_MAX: u32 = 1024;
/// Listening sockets of one client.
pub const LISTENERS_MAX: u32 = 512;
/// Shards of one engine.
pub const SHARDS_MAX: usize = 8;
/// Connections that wait in one shard's accept ring, the bound of every backlog.
pub const ACCEPT_RING: usize = 4096;

/// Bytes of the arena: enough for every size class of streams; sparse like the rest.
pub const ARENA_LEN: u64 = 64 << 30;
/// The part of it that a program gets which has no room for all (valgrind gives programs 64 GiB in all): every socket's own
/// streams, and some hundred of the larger ones.
pub const ARENA_LEN_SMALL: u64 = 8 << 30;

const PAGE: usize = 4096;

const fn page_up(offset: usize) -> usize {
    (offset + PAGE - 1) & !(PAGE - 1)
}

/// Bytes of a three-level bitmap over `bits` entries: words, middle level, top (one cache line).
pub const fn bits_len(bits: u32) -> usize {
    let words = (bits as usize) / 64;
    (words + crate::bits::middle_len(words)) * 8 + 64
}

/// Offset of the free list of sockets.
pub const FREE_SOCKETS: usize = page_up(size_of::<Header>());
/// Offset of the free list of interests.
pub const FREE_INTERESTS: usize = page_up(FREE_SOCKETS + bits_len(SOCKETS_MAX));
/// Offset of the free list of sets.
pub const FREE_SETS: usize = page_up(FREE_INTERESTS + bits_len(INTERESTS_MAX));
/// Offset of the first shard's dirty bitmap.
pub const DIRTY: usize = page_up(FREE_SETS + bits_len(SETS_MAX));
/// Bytes from one shard's dirty bitmap to the next.
pub const DIRTY_STRIDE: usize = page_up(bits_len(SOCKETS_MAX));
/// Offset of the sets.
pub const SETS: usize = DIRTY + SHARDS_MAX * DIRTY_STRIDE;
/// Bytes from one set to the next: the set and its readiness bitmap.
pub const SET_STRIDE: usize = page_up(size_of::<Set>() + bits_len(INTERESTS_MAX));
/// Offset of the interests.
pub const INTERESTS: usize = SETS + SETS_MAX as usize * SET_STRIDE;
/// Offset of the listeners.
pub const LISTENERS: usize = page_up(INTERESTS + INTERESTS_MAX as usize * size_of::<Interest>());
/// Offset of the sockets.
pub const SOCKETS: usize = page_up(LISTENERS + LISTENERS_MAX as usize * size_of::<Listener>());
/// Offset of the sockets of a program that has many of them: from here up to [`INFOS`] large pages are worth their memory,
/// as they are touched in no order.
pub const SOCKETS_MANY: usize = SOCKETS + (SOCKETS_MAX as usize / 32) * size_of::<Socket>();
/// Offset of the answers for `TCP_INFO`.
pub const INFOS: usize = page_up(SOCKETS + SOCKETS_MAX as usize * size_of::<Socket>());
/// Offset of the arena.
pub const ARENA: usize = page_up(INFOS + SOCKETS_MAX as usize * size_of::<Info>());
/// Bytes of a region.
pub const REGION_LEN: usize = ARENA + ARENA_LEN as usize;
/// Bytes that a program maps which has no room for all.
pub const REGION_LEN_SMALL: usize = ARENA + ARENA_LEN_SMALL as usize;

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Socket>() == 512);
    assert!(size_of::<Interest>() == 32);
    assert!(size_of::<Set>() == 64 + crate::set::LANES * 8);
    assert!(INTERESTS_MAX / 64 / 64 <= 64, "three levels of bitmap must suffice");
};
