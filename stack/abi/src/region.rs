//! A mapped region: bounds-checked access to everything in it.

use crate::bits::{Bits, middle_len};
use crate::info::Info;
use crate::layout as at;
use crate::listener::Listener;
use crate::set::{Interest, Set};
use crate::socket::{BufRef, Socket, first_position};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Records of the log ring.
pub const LOG_RECORDS: usize = 64;

/// One thing that a program has to say; the engine puts it into words.
#[repr(C)]
#[derive(Debug)]
pub struct LogRecord {
    /// Ticket + 1 once the record is whole.
    pub ready: AtomicU32,
    /// [`LogCode`] as u32.
    pub code: AtomicU32,
    /// Process id.
    pub pid: AtomicU32,
    /// Descriptor or port, by code.
    pub subject: AtomicU32,
    /// Address words, or other detail.
    pub detail: [AtomicU64; 6],
}

/// What a log record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum LogCode {
    /// A socket went to the kernel: destination not served by utcp. Subject: port.
    ConnectKernel = 1,
    /// A listener could not be registered. Subject: port; detail 0: errno.
    ListenRefused = 2,
    /// No free socket slot, set or interest was left. Subject: what ran out.
    Exhausted = 3,
    /// An unknown socket option was refused. Subject: level << 16 | name.
    UnknownOption = 4,
    /// A socket went to the kernel: utcp can't serve an option of it. Subject: level << 16 | name.
    KernelOption = 5,
    /// A listener is the kernel's alone for the same reason. Subject: port; detail 0: level << 16 | name, or 0 for O_ASYNC, 1 for
    /// io_uring, 2 for a program without the library, 3 for a `shutdown` before.
    KeptListener = 6,
    /// The program uses io_uring: its sockets are the kernel's.
    Rings = 7,
}

/// The first page(s) of a region.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// [`at::MAGIC`].
    pub magic: AtomicU32,
    /// [`crate::ABI_VERSION`].
    pub version: AtomicU32,
    /// Forks of the program so far: a socket of an older epoch may be shared with a child.
    pub fork_epoch: AtomicU32,
    /// This client's number at the engine.
    pub client: AtomicU32,
    /// Set by the engine when it threw this client out (a corrupt word): no more service.
    pub closed: AtomicU32,
    /// How many far ends of this client's descriptors the engine has given up. It counts first and then looks who stands on one: a
    /// descriptor that was found whole at one count, and got a socket before the next, is whole or the engine finds the socket.
    pub stands_gone: AtomicU32,
    /// Line end.
    pub spare: [AtomicU32; 10],
    /// Per shard: the sleep count for which somebody of this client already rang.
    pub rung: [AtomicU32; 16],
    /// Tickets given out for log records.
    pub log_next: AtomicU32,
    /// Line end.
    pub spare2: [AtomicU32; 15],
    /// Log records.
    pub log: [LogRecord; LOG_RECORDS],
}

/// A mapped region. Copying the view copies no memory.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    base: *mut u8,
}

// SAFETY: the view is an address; everything reachable through it is atomic or raw bytes whose
// copying follows the stream protocol.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A view of the region mapped at `base`.
    ///
    /// # Safety
    /// `base` must be the start of a mapping of [`at::REGION_LEN`] bytes, aligned to a page, that
    /// stays mapped as long as any copy of the view is used. A program may map less of the arena, as much as it
    /// told the engine, which names no stream beyond.
    #[must_use]
    pub const unsafe fn new(base: *mut u8) -> Self {
        Self { base }
    }

    /// A structure of atomics at `offset`.
    fn place<T>(&self, offset: usize) -> &T {
        debug_assert!(offset + size_of::<T>() <= at::REGION_LEN && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the callers below pass constant offsets plus checked indices, which lie inside the
        // mapping (`new`'s contract) and are aligned (`T` is one of the crate's repr(C) structures
        // and every table starts on a page). All bit patterns are valid: `T` is made of atomics.
        unsafe { &*self.base.add(offset).cast::<T>() }
    }

    #[allow(clippy::cast_ptr_alignment, reason = "every offset is a multiple of a page")]
    fn bits_at(&self, offset: usize, bits: u32) -> Bits<'_> {
        let words = bits as usize / 64;
        let middle = middle_len(words);
        // SAFETY: `layout` reserves `bits_len` bytes at each of the offsets that are passed here.
        let (words, middle) = unsafe {
            let first = self.base.add(offset).cast::<AtomicU64>();
            (core::slice::from_raw_parts(first, words), core::slice::from_raw_parts(first.add(words), middle))
        };
        // The top level has a line of its own behind the others.
        let top = self.place(offset + (words.len() + middle.len()) * 8);
        Bits::new(words, middle, top)
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        self.place(0)
    }

    /// Free socket slots.
    #[must_use]
    pub fn free_sockets(&self) -> Bits<'_> {
        self.bits_at(at::FREE_SOCKETS, at::SOCKETS_MAX)
    }

    /// Free interests.
    #[must_use]
    pub fn free_interests(&self) -> Bits<'_> {
        self.bits_at(at::FREE_INTERESTS, at::INTERESTS_MAX)
    }

    /// Free sets.
    #[must_use]
    pub fn free_sets(&self) -> Bits<'_> {
        self.bits_at(at::FREE_SETS, at::SETS_MAX)
    }

    /// Sockets that `shard` should look at; beyond the last shard, the last one's.
    #[must_use]
    pub fn dirty(&self, shard: u32) -> Bits<'_> {
        let shard = (shard as usize).min(at::SHARDS_MAX - 1);
        self.bits_at(at::DIRTY + shard * at::DIRTY_STRIDE, at::SOCKETS_MAX)
    }

    /// Set `index`, if there is one.
    #[must_use]
    pub fn set(&self, index: u32) -> Option<&Set> {
        (index < at::SETS_MAX).then(|| self.place(at::SETS + index as usize * at::SET_STRIDE))
    }

    /// The interests of set `index` that have news.
    #[must_use]
    pub fn ready(&self, index: u32) -> Option<Bits<'_>> {
        (index < at::SETS_MAX).then(|| {
            let offset = at::SETS + index as usize * at::SET_STRIDE + size_of::<Set>();
            self.bits_at(offset, at::INTERESTS_MAX)
        })
    }

    /// Interest `index`, if there is one.
    #[must_use]
    pub fn interest(&self, index: u32) -> Option<&Interest> {
        (index < at::INTERESTS_MAX)
            .then(|| self.place(at::INTERESTS + index as usize * size_of::<Interest>()))
    }

    /// Listener `index`, if there is one.
    #[must_use]
    pub fn listener(&self, index: u32) -> Option<&Listener> {
        (index < at::LISTENERS_MAX)
            .then(|| self.place(at::LISTENERS + index as usize * size_of::<Listener>()))
    }

    /// Socket `index`, if there is one.
    #[must_use]
    pub fn socket(&self, index: u32) -> Option<&Socket> {
        (index < at::SOCKETS_MAX).then(|| self.place(at::SOCKETS + index as usize * size_of::<Socket>()))
    }

    /// Takes a free socket slot, ready for a connection; `None`: none is free. Whoever frees it makes it ready for the next.
    #[must_use]
    pub fn claim_socket(&self) -> Option<u32> {
        let number = self.free_sockets().claim()?;
        let socket = self.socket(number)?;
        if socket.generation.load(Ordering::Relaxed) == 0 {
            socket.begin_at(first_position(number, 0));
        }
        Some(number)
    }

    /// Where socket `index` gets its answer for `TCP_INFO`, if there is such a socket.
    #[must_use]
    pub fn info(&self, index: u32) -> Option<&Info> {
        (index < at::SOCKETS_MAX).then(|| self.place(at::INFOS + index as usize * size_of::<Info>()))
    }

    /// The bytes of a stream, or `None` if the reference leads out of the arena.
    #[must_use]
    pub fn stream(&self, buf: BufRef) -> Option<*mut u8> {
        let (offset, capacity) = (buf.offset(), buf.capacity());
        if capacity == 0 || offset.checked_add(capacity)? > at::ARENA_LEN {
            return None;
        }
        // SAFETY: `offset + capacity` lies inside the arena, which lies inside the mapping.
        Some(unsafe { self.base.add(at::ARENA + offset as usize) })
    }
}

/// Lays a fresh, zeroed region out: magic, version and the free lists.
pub fn format(region: Region, client: u32, sockets: u32) {
    use crate::sync::Ordering::{Relaxed, Release};
    let header = region.header();
    header.client.store(client, Relaxed);
    region.free_sockets().fill(sockets.min(at::SOCKETS_MAX));
    region.free_interests().fill(at::INTERESTS_MAX);
    region.free_sets().fill(at::SETS_MAX);
    header.version.store(crate::ABI_VERSION, Relaxed);
    header.magic.store(at::MAGIC, Release);
}
