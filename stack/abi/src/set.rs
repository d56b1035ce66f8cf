//! Epoll sets: which socket interests which set, and the bitmap of those with news.
//!
//! ```text
//!  Socket.members[i] = (set 3, interest 41, EPOLLIN)      engine: bytes came → set bit 41 of set 3,
//!  Interest 41       = {socket, fd, events, data}                  ring set 3's bell at the batch's end
//!  Set 3             = {bell, readiness bitmap}           epoll_wait: look at the set bits only
//! ```
//!
//! A bit says "look", not "ready": readiness is derived from the socket when the program looks.

use crate::bell::Bell;
use crate::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Pair regions whose programs can reach one set by a lane; those of others go through the engine.
pub const LANES: usize = 48;

/// One epoll set (or a thread inside `poll`), followed by its readiness bitmap.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Set {
    /// Rung when a bit was set while somebody slept. The engine writes the set's eventfd.
    pub bell: Bell,
    /// Interests in it.
    pub count: AtomicU32,
    /// Where the next `epoll_wait` begins, so that no member starves.
    pub cursor: AtomicU32,
    /// Process (pid) that made it; a dead owner's set is reclaimed.
    pub owner_pid: AtomicU32,
    /// Forks of the owner since it was made: whoever was forked may use it, too.
    pub sharers: AtomicU32,
    /// How often this slot was used.
    pub generation: AtomicU32,
    /// Kernel descriptors in it besides the utcp sockets: 0 lets `epoll_wait` skip the kernel's look.
    pub kernel_members: AtomicU32,
    /// Lanes ever in use are below this.
    pub lanes_used: AtomicU32,
    /// Threads that sleep on it in `epoll_wait`, in every process. Only a hint: a killed one stays counted.
    pub waiters: AtomicU32,
    /// 1: it is a thread's inside `poll`, which has interests as long as it sleeps.
    pub polls: AtomicU32,
    /// Room.
    pub spare: [AtomicU32; 6],
    /// Pair regions with a lane into this set: number + 1 and side << 32, 0 = unused. Written by the program alone.
    pub lanes: [AtomicU64; LANES],
}

impl Set {
    /// Whether somebody sleeps on it, whom nothing has woken yet. A hint, the more so as a program says it.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        let polls = self.polls.load(Ordering::Relaxed) != 0;
        polls || self.waiters.load(Ordering::Relaxed) != 0 && self.bell.is_armed()
    }
}

/// What a set wants of one descriptor. Written by the program.
#[repr(C)]
#[derive(Debug)]
pub struct Interest {
    /// The user's `epoll_data`.
    pub data: AtomicU64,
    /// Socket slot.
    pub socket: AtomicU32,
    /// Generation of the slot: a different one means the socket is gone, and with it this interest.
    pub generation: AtomicU32,
    /// The descriptor that was registered.
    pub fd: AtomicI32,
    /// The user's events and flags (EPOLLIN | EPOLLET …); 0 after EPOLLONESHOT fired.
    pub events: AtomicU32,
    /// The set it belongs to + 1; 0 = unused.
    pub set: AtomicU32,
    /// Room.
    pub spare: AtomicU32,
}

/// One word of a socket's member list: which interest of which set wants which events.
///
/// ```text
///  63     62         50 .. 61   34 .. 49   18 .. 33   0 .. 17
///  valid  exclusive  –          set        events     interest
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Set slot.
    pub set: u32,
    /// Interest slot.
    pub interest: u32,
    /// The low 16 bits of the epoll events (IN, OUT, PRI, ERR, HUP, RDHUP …).
    pub events: u16,
    /// EPOLLEXCLUSIVE: ring one of these sets, not all.
    pub exclusive: bool,
}

impl Member {
    /// The word.
    #[must_use]
    pub fn pack(self) -> u64 {
        1 << 63
            | u64::from(self.exclusive) << 62
            | u64::from(self.set & 0xffff) << 34
            | u64::from(self.events) << 18
            | u64::from(self.interest & 0x3_ffff)
    }

    /// From the word; `None` for an unused one. Indices may still be out of range.
    #[must_use]
    pub fn unpack(word: u64) -> Option<Self> {
        (word >> 63 == 1).then_some(Self {
            set: (word >> 34 & 0xffff) as u32,
            interest: (word & 0x3_ffff) as u32,
            events: (word >> 18 & 0xffff) as u16,
            exclusive: word >> 62 & 1 == 1,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn members_pack() {
        let member = Member { set: 1023, interest: (1 << 18) - 1, events: 0x201f, exclusive: true };
        assert_eq!(Member::unpack(member.pack()), Some(member));
        assert_eq!(Member::unpack(0), None);
    }
}
