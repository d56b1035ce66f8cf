//! What each descriptor number means to us: one atomic word per number, 0 for "the kernel's".
//!
//! ```text
//!  63           32 31         12 11      8 7     4 3    0
//!  generation      slot          region    flags   kind
//! ```
//!
//! The generation is that of the socket's slot: a number whose descriptor was closed behind our back (by
//! `fclose`, say) names a generation that is over, and is the kernel's again.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Numbers that the table covers; higher ones are the kernel's.
pub const NUMBERS: usize = 1 << 20;

static TABLE: [AtomicU64; NUMBERS] = [const { AtomicU64::new(0) }; NUMBERS];
/// One more than the highest number that was ever used.
static HIGH: AtomicU32 = AtomicU32::new(0);

/// What stands behind a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not ours.
    Kernel,
    /// A utcp socket, connected or not yet.
    Socket,
    /// A listener: the kernel's socket, and a slot for those who come over utcp.
    Listener,
    /// An epoll descriptor with a set of utcp sockets.
    Epoll,
    /// A descriptor that the library needs; the program does not know of it.
    Internal,
    /// A descriptor that waits in the pool.
    Pool,
    /// A descriptor under a utcp socket of another program, or a listener, inherited or received and not used yet, see [`crate::relayed`].
    Stranger,
    /// A TCP socket of the kernel's that was ours until it was bound, see [`crate::bound`].
    Bound,
    /// A TCP socket of the kernel's that stays so, because of a socket option that utcp can't serve; its generation says
    /// which ([`utcp_abi::region::LogCode::KernelOption`]).
    Kept,
    /// The number is being closed, or another file put there, by a thread that has not done it yet. Until then nobody else may free
    /// it: the next number of that name may be anybody's, one in the pool for instance.
    Changing,
}

/// One word of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

const CLOEXEC: u64 = 1 << 4;

impl Entry {
    /// The kernel's.
    pub const KERNEL: Self = Self(0);

    /// Whatever it was, it is [`Kind::Changing`].
    pub const CHANGING: Self = Self(9);

    /// An entry of `kind` for `slot` (a socket or set) in its `generation`.
    pub fn new(kind: Kind, region: u32, slot: u32, generation: u32) -> Self {
        let kind = match kind {
            Kind::Kernel => return Self::KERNEL,
            Kind::Socket => 1,
            Kind::Listener => 2,
            Kind::Epoll => 3,
            Kind::Internal => 4,
            Kind::Pool => 5,
            Kind::Bound => 6,
            Kind::Stranger => 7,
            Kind::Kept => 8,
            Kind::Changing => 9,
        };
        let (region, slot) = (u64::from(region & 15) << 8, u64::from(slot & 0xf_ffff) << 12);
        Self(kind | region | slot | u64::from(generation) << 32)
    }

    /// What it is.
    #[inline]
    pub fn kind(self) -> Kind {
        match self.0 & 15 {
            1 => Kind::Socket,
            2 => Kind::Listener,
            3 => Kind::Epoll,
            4 => Kind::Internal,
            5 => Kind::Pool,
            6 => Kind::Bound,
            7 => Kind::Stranger,
            8 => Kind::Kept,
            9 => Kind::Changing,
            _ => Kind::Kernel,
        }
    }

    /// FD_CLOEXEC, which for sockets is kept here alone.
    pub fn cloexec(self) -> bool {
        self.0 & CLOEXEC != 0
    }

    /// The same with FD_CLOEXEC as given.
    pub fn with_cloexec(self, on: bool) -> Self {
        Self(if on { self.0 | CLOEXEC } else { self.0 & !CLOEXEC })
    }

    /// Number of the attachment whose region holds the slot.
    #[inline]
    pub fn region(self) -> u32 {
        (self.0 >> 8 & 15) as u32
    }

    /// Slot in the region.
    #[inline]
    pub fn slot(self) -> u32 {
        (self.0 >> 12 & 0xf_ffff) as u32
    }

    /// Generation of the slot.
    #[inline]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether both name the same socket or set.
    pub fn same_object(self, other: Self) -> bool {
        (self.0 ^ other.0) & !CLOEXEC == 0
    }
}

#[inline]
fn cell(fd: c_int) -> Option<&'static AtomicU64> {
    TABLE.get(fd as u32 as usize) // A negative number is far beyond the table.
}

/// What `fd` is.
#[inline]
pub fn get(fd: c_int) -> Entry {
    cell(fd).map_or(Entry::KERNEL, |cell| Entry(cell.load(Acquire)))
}

/// Whether the table has room for `fd`.
pub fn covers(fd: c_int) -> bool {
    cell(fd).is_some()
}

/// Makes `fd` mean `entry`.
pub fn set(fd: c_int, entry: Entry) {
    if let Some(cell) = cell(fd) {
        cover(fd);
        cell.store(entry.0, Release);
    }
}

/// Lets [`used`] look as far as `fd`. Before a [`replace`] that gives it its first meaning.
pub fn cover(fd: c_int) {
    HIGH.fetch_max((fd as u32).wrapping_add(1), Relaxed);
}

/// Makes `fd` mean `new` if it still means `old`: of two threads that close it, one wins.
pub fn replace(fd: c_int, old: Entry, new: Entry) -> bool {
    cell(fd).is_some_and(|cell| cell.compare_exchange(old.0, new.0, AcqRel, Relaxed).is_ok())
}

/// Every number that is not the kernel's, in order.
pub fn used() -> impl Iterator<Item = (c_int, Entry)> {
    used_from(0)
}

/// Every number from `first` on that is not the kernel's, in order.
pub fn used_from(first: c_int) -> impl Iterator<Item = (c_int, Entry)> {
    let (first, high) = (first.max(0) as u32, HIGH.load(Relaxed));
    (first..high).map(|fd| (fd as c_int, get(fd as c_int))).filter(|(_, entry)| *entry != Entry::KERNEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_parts() {
        let entry = Entry::new(Kind::Epoll, 15, (1 << 17) - 1, u32::MAX);
        assert_eq!(entry.kind(), Kind::Epoll);
        assert_eq!((entry.region(), entry.slot(), entry.generation()), (15, (1 << 17) - 1, u32::MAX));
        assert!(!entry.cloexec());
        let closing = entry.with_cloexec(true);
        assert!(closing.cloexec() && closing.same_object(entry) && !closing.with_cloexec(false).cloexec());
        assert_eq!(Entry::new(Kind::Kernel, 3, 4, 5), Entry::KERNEL);
    }

    #[test]
    fn numbers_beyond_the_table_are_the_kernels() {
        for fd in [-1, c_int::MIN, c_int::MAX, NUMBERS as c_int] {
            set(fd, Entry::new(Kind::Socket, 0, 0, 0));
            assert_eq!(get(fd), Entry::KERNEL);
            assert!(!covers(fd));
        }
        let entry = Entry::new(Kind::Socket, 0, 9, 1);
        set(1000, entry);
        assert!(replace(1000, entry, Entry::KERNEL) && !replace(1000, entry, Entry::KERNEL));
    }
}
