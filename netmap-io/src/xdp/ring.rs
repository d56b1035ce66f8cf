//! The rings that AF_XDP shares with the kernel: one writes, the other reads, indices run freely.
//!
//! ```text
//!            consumer                producer
//!   ─────────────┬──────────────────────┬───────────────►  index & mask = entry
//!    read        │ written, not read    │ free
//! ```
//!
//! Ground rules
//!
//! - `producer` is stored with Release after the entries, and loaded with Acquire before reading them;
//!   `consumer` the same the other way round, so an entry is overwritten only after it was read.
//! - Both sides keep copies of the indices and touch the shared words once per batch.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::Mapping;

/// What both sides need.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Keeps the four pointers alive.
    _mapping: Mapping,
    _entry: PhantomData<T>,
}

// SAFETY: the ring has one owner on our side; the other side is the kernel.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// # Safety
    /// `mapping` is a ring of the kernel with `slots` entries of type `T` laid out as `offset` says.
    unsafe fn new(mapping: Mapping, offset: &libc::xdp_ring_offset, slots: u32) -> Self {
        assert!(slots.is_power_of_two(), "the kernel refuses other rings");
        let at = |offset: u64| mapping.at(usize::try_from(offset).unwrap_or(usize::MAX));
        Self {
            producer: at(offset.producer).cast(),
            consumer: at(offset.consumer).cast(),
            flags: at(offset.flags).cast(),
            entries: at(offset.desc).cast(),
            mask: slots - 1,
            _mapping: mapping,
            _entry: PhantomData,
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the mapping that `self` owns, aligned by the kernel's layout.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn need_wakeup(&self) -> bool {
        // SAFETY: as above.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is below the number of entries that the mapping was made for.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }
}

/// Our end of a ring that we write.
#[derive(Debug)]
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// Entries written, published or not.
    written: u32,
    /// Entries published.
    published: u32,
}

impl<T: Copy> Producer<T> {
    /// # Safety
    /// As for [`Shared::new`], and we are its only writer.
    pub(super) unsafe fn new(mapping: Mapping, offset: &libc::xdp_ring_offset, slots: u32) -> Self {
        // SAFETY: by the caller's contract.
        let shared = unsafe { Shared::new(mapping, offset, slots) };
        let start = shared.producer().load(Ordering::Relaxed);
        Self { shared, written: start, published: start }
    }

    /// Writes one entry. The caller knows that there is room: it never has more buffers than entries.
    #[inline]
    pub(super) fn push(&mut self, entry: T) {
        debug_assert!(self.written.wrapping_sub(self.unread_from()) <= self.shared.mask, "ring overrun");
        // SAFETY: the entry is free: the other side has read it (the assertion above), and does not look
        // at it again before it is published.
        unsafe { self.shared.entry(self.written).write(entry) };
        self.written = self.written.wrapping_add(1);
    }

    /// Shows the other side what was written. Returns the number of entries.
    pub(super) fn publish(&mut self) -> u32 {
        let fresh = self.written.wrapping_sub(self.published);
        if fresh > 0 {
            // Release: the entries are visible before the index.
            self.shared.producer().store(self.written, Ordering::Release);
            self.published = self.written;
        }
        fresh
    }

    /// Entries that the other side has not read yet.
    pub(super) fn unread(&self) -> u32 {
        self.published.wrapping_sub(self.unread_from())
    }

    /// Entries that can be written now.
    pub(super) fn room(&self) -> u32 {
        self.shared.mask + 1 - self.written.wrapping_sub(self.unread_from())
    }

    fn unread_from(&self) -> u32 {
        // Acquire: what the other side read, it has done reading.
        self.shared.consumer().load(Ordering::Acquire)
    }

    /// The other side sleeps and wants a system call to look here.
    pub(super) fn need_wakeup(&self) -> bool {
        self.shared.need_wakeup()
    }
}

/// Our end of a ring that we read.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// Entries read, released or not.
    read: u32,
    /// The other side's index as last seen.
    producer_seen: u32,
}

impl<T: Copy> Consumer<T> {
    /// # Safety
    /// As for [`Shared::new`], and we are its only reader.
    pub(super) unsafe fn new(mapping: Mapping, offset: &libc::xdp_ring_offset, slots: u32) -> Self {
        // SAFETY: by the caller's contract.
        let shared = unsafe { Shared::new(mapping, offset, slots) };
        let read = shared.consumer().load(Ordering::Relaxed);
        Self { shared, read, producer_seen: read }
    }

    /// Entries that can be read now; looks at the shared index.
    pub(super) fn refresh(&mut self) -> u32 {
        // Acquire pairs with the other side's Release: entries are visible before the index.
        self.producer_seen = self.shared.producer().load(Ordering::Acquire);
        self.producer_seen.wrapping_sub(self.read)
    }

    /// Reads one entry of those that `refresh` has seen.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.read == self.producer_seen {
            return None;
        }
        // SAFETY: the entry was published and is not overwritten before it is released.
        let entry = unsafe { self.shared.entry(self.read).read() };
        self.read = self.read.wrapping_add(1);
        Some(entry)
    }

    /// Lets the other side overwrite what was read.
    pub(super) fn release(&mut self) {
        self.shared.consumer().store(self.read, Ordering::Release);
    }
}
