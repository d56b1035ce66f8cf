//! The user's half of a netmap ring: the words of its header that a sync exchanges.

use std::io;
use std::ptr::NonNull;

use super::abi::ring_flag;
use super::layout::{NetmapRing, SLOTS_OFFSET};
use crate::ring::{Buffers, SlotRing};
use crate::sys::Mapping;

/// What a sync changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refreshed {
    /// The tail before: what is behind it is new.
    pub(crate) old_tail: u32,
    /// The other side found our head wrong and set it back.
    pub(crate) reset: bool,
}

/// Bytes of [`UserRing::absent_memory`], and of the one buffer at its end.
const ABSENT_BYTES: usize = 4096;
const ABSENT_BUFFER: u32 = 2048;

/// A ring in netmap's memory. `slots` has our copies of head and tail; the header changes in
/// [`UserRing::publish`] alone.
#[derive(Debug)]
pub(crate) struct UserRing {
    header: NonNull<NetmapRing>,
    /// The slots, and how far we are.
    pub(crate) slots: SlotRing,
}

// SAFETY: as for `SlotRing`: one user, no thread affinity.
unsafe impl Send for UserRing {}

impl UserRing {
    /// # Safety
    /// `header` points to a ring of `num_slots` slots, whose memory and `buffers` outlive `self`; nobody else
    /// plays the user of this ring.
    pub(crate) unsafe fn new(
        header: NonNull<NetmapRing>,
        num_slots: u32,
        buffers: Buffers,
        offset_mask: u64,
    ) -> Self {
        // SAFETY: the slots of a ring follow its header, by the caller's contract.
        let slots = unsafe {
            let first = header.cast::<u8>().add(SLOTS_OFFSET).cast();
            SlotRing::new(first, num_slots, buffers, offset_mask)
        };
        let mut ring = Self { header, slots };
        let now = ring.read();
        (ring.slots.head, ring.slots.tail) = (now.head.min(num_slots - 1), now.tail.min(num_slots - 1));
        ring
    }

    /// Memory for [`Self::absent`].
    pub(crate) fn absent_memory() -> io::Result<Mapping> {
        let memory = Mapping::anonymous(ABSENT_BYTES)?;
        let header = memory.base().cast::<NetmapRing>();
        // SAFETY: the memory is fresh, page-aligned, zero (a value of every field) and longer than the header.
        unsafe {
            (&raw mut (*header.as_ptr()).num_slots).write(2);
            (&raw mut (*header.as_ptr()).buf_size).write(ABSENT_BUFFER);
        }
        Ok(memory)
    }

    /// A ring that is always empty, in the place of one that there is not. It goes with `memory`.
    pub(crate) fn absent(memory: &Mapping) -> Self {
        // SAFETY: `absent_memory` wrote a ring of two slots; it is in the memory, as is its one buffer, of which no
        // slot is ever anybody's.
        unsafe {
            let buffers = Buffers::new(memory.at(ABSENT_BYTES - ABSENT_BUFFER as usize), 1, ABSENT_BUFFER);
            Self::new(memory.base().cast(), 2, buffers, 0)
        }
    }

    /// A copy of the header.
    fn read(&self) -> NetmapRing {
        // SAFETY: `new` was promised a ring. Volatile: the other side of the sync may have written it.
        unsafe { self.header.read_volatile() }
    }

    /// Before a sync: shows how far we are. We want to be woken for whatever is new, so cur is head.
    pub(crate) fn publish(&mut self) {
        // SAFETY: `new` was promised a ring whose user we are: these two words are ours to write.
        unsafe {
            (&raw mut (*self.header.as_ptr()).head).write_volatile(self.slots.head);
            (&raw mut (*self.header.as_ptr()).cur).write_volatile(self.slots.head);
        }
    }

    /// Whether a sync that was not ours (waiting is one) has moved the tail.
    pub(crate) fn has_news(&self) -> bool {
        self.read().tail != self.slots.tail
    }

    /// Asks for the time of each sync (`NR_TIMESTAMP`), to be read by [`Self::synced_at`].
    pub(crate) fn ask_for_time(&mut self) {
        // SAFETY: `new` was promised a ring; its flags are the user's to set.
        unsafe {
            let flags = &raw mut (*self.header.as_ptr()).flags;
            flags.write_volatile(flags.read_volatile() | ring_flag::TIMESTAMP);
        }
    }

    /// When the module last synced the ring: microseconds since 1970. 0: it does not tell.
    pub(crate) fn synced_at(&self) -> u64 {
        let [seconds, micros] = self.read().time.map(|part| u64::try_from(part).unwrap_or(0));
        seconds.saturating_mul(1_000_000).saturating_add(micros)
    }

    /// After a sync: takes over the new tail. A tail behind the ring is nonsense and changes nothing.
    pub(crate) fn refresh(&mut self) -> Refreshed {
        let old_tail = self.slots.tail;
        let now = self.read();
        let reset = now.head != self.slots.head;
        if now.tail < self.slots.num_slots() {
            self.slots.tail = now.tail;
        }
        // The other side resets a head that it found wrong; ours never is, unless the memory was
        // scribbled on. Then it is right and we are wrong.
        if now.head < self.slots.num_slots() {
            self.slots.head = now.head;
        }
        Refreshed { old_tail, reset }
    }

    /// Slots from `from` up to tail, and their bytes.
    pub(crate) fn count_from(&self, from: u32) -> (u64, u64) {
        self.count_between(from, self.slots.tail)
    }

    /// Slots from `from` up to `to`, and their bytes.
    pub(crate) fn count_between(&self, from: u32, to: u32) -> (u64, u64) {
        let (mut index, mut bytes) = (from, 0);
        while index != to {
            bytes += u64::from(self.slots.slot(index).len);
            index = self.slots.next(index);
        }
        (u64::from(self.slots.distance(from, to)), bytes)
    }
}
