//! A listening socket's accept queue: one ring per shard, so that shards share nothing.

use crate::layout::{ACCEPT_RING, SHARDS_MAX};
use crate::ring::Ring;
use crate::sync::{AtomicU32, AtomicU64};

/// Epoll interests in one listener: every worker of a large server has one.
pub const LISTENER_MEMBERS: usize = 256;

/// One shard's ring of established connections: entries of [`crate::waiting`].
#[repr(C, align(64))]
#[derive(Debug)]
pub struct AcceptQueue {
    /// Consumers' index.
    pub head: AtomicU32,
    /// Keeps the producer's index in a line of its own.
    pub pad: [AtomicU32; 15],
    /// Producer's index.
    pub tail: AtomicU32,
    /// Line end.
    pub pad2: [AtomicU32; 15],
    /// Entries.
    pub slots: [AtomicU32; ACCEPT_RING],
}

impl AcceptQueue {
    /// The ring.
    #[must_use]
    pub fn ring(&self) -> Ring<'_> {
        Ring::new(&self.head, &self.tail, &self.slots)
    }
}

/// One listener.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Listener {
    /// Member words like [`crate::socket::Socket::members`], but more of them.
    pub members: [AtomicU64; LISTENER_MEMBERS],
    /// One queue per shard.
    pub queues: [AcceptQueue; SHARDS_MAX],
}
