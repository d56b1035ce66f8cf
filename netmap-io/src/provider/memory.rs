//! The region: interfaces, rings, buffers.
//!
//! ```text
//!  0           interfaces, 1024 bytes each
//!  64 KiB      rings, each from a page on
//!  …           buffers
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use super::Shape;
use crate::netmap::abi::PoolsInfo;
use crate::netmap::layout::{FIRST_BUF, NetmapIf, NetmapRing, SLOTS_OFFSET};
use crate::ring::{Slot, SlotFlags};
use crate::sys::Mapping;

const PAGE: usize = 4096;
pub(super) const INTERFACE_BYTES: usize = 1024;
const INTERFACES: usize = 64;
const RINGS_AT: usize = INTERFACES * INTERFACE_BYTES;
const RINGS_BYTES: usize = 8 << 20;

/// A region and what of it is given out.
#[derive(Debug)]
pub(super) struct Memory {
    mapping: Mapping,
    file: OwnedFd,
    shape: Shape,
    interfaces: [bool; INTERFACES],
    rings_end: usize,
    free: Vec<u32>,
}

impl Memory {
    pub(super) fn new(shape: Shape) -> io::Result<Self> {
        use std::os::fd::AsFd;
        let bytes = RINGS_AT + RINGS_BYTES + shape.buffers as usize * shape.buf_size as usize;
        let file = crate::pipe::sys::memory_file(bytes)?;
        let mapping = Mapping::shared(file.as_fd(), 0, bytes)?;
        let free = (FIRST_BUF..shape.buffers).rev().collect();
        Ok(Self { mapping, file, shape, interfaces: [false; INTERFACES], rings_end: RINGS_AT, free })
    }

    /// Maps it for a user.
    pub(super) fn map(&self, bytes: usize) -> io::Result<Mapping> {
        use std::os::fd::AsFd;
        if bytes > self.mapping.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Mapping::shared(self.file.as_fd(), 0, bytes)
    }

    pub(super) fn bytes(&self) -> usize {
        self.mapping.len()
    }

    pub(super) fn free_buffers(&self) -> impl Iterator<Item = u32> {
        self.free.iter().copied()
    }

    pub(super) fn take_buffer(&mut self) -> io::Result<u32> {
        self.free.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// A chain of up to `count` buffers: its head and length.
    pub(super) fn take_chain(&mut self, count: u32) -> (u32, u32) {
        let (mut head, mut got) = (0_u32, 0);
        while got < count
            && let Some(buf) = self.free.pop()
        {
            self.write_buffer(buf, &head.to_ne_bytes());
            (head, got) = (buf, got + 1);
        }
        (head, got)
    }

    /// Frees a chain, as the module does at close; how many there were.
    pub(super) fn give_chain(&mut self, mut head: u32) -> u32 {
        let mut count = 0;
        while (FIRST_BUF..self.shape.buffers).contains(&head) && !self.free.contains(&head) {
            self.free.push(head);
            count += 1;
            let next = self.read_buffer(head, 4);
            head = u32::from_ne_bytes(next.try_into().unwrap_or_default());
        }
        count
    }

    fn buffers_at(&self) -> usize {
        RINGS_AT + RINGS_BYTES
    }

    /// Where `len` bytes of a buffer begin, from `offset` on.
    fn buffer(&self, buf: u32, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let size = self.shape.buf_size as usize;
        let good = buf < self.shape.buffers && offset.checked_add(len).is_some_and(|end| end <= size);
        good.then(|| self.mapping.at(self.buffers_at() + buf as usize * size + offset))
    }

    /// A copy of the first `len` bytes of a buffer; nothing of one that there is not.
    pub(super) fn read_buffer(&self, buf: u32, len: usize) -> Vec<u8> {
        self.read_at(buf, 0, len)
    }

    /// The same from `offset` on.
    pub(super) fn read_at(&self, buf: u32, offset: usize, len: usize) -> Vec<u8> {
        // SAFETY: `buffer` checked number and length against the mapping; users are other threads of this process at most,
        // which own no buffer that the provider reads.
        let read = |at: NonNull<u8>| unsafe { std::slice::from_raw_parts(at.as_ptr(), len).to_vec() };
        self.buffer(buf, offset, len).map_or_else(Vec::new, read)
    }

    pub(super) fn write_buffer(&self, buf: u32, bytes: &[u8]) {
        self.write_at(buf, 0, bytes);
    }

    pub(super) fn write_at(&self, buf: u32, offset: usize, bytes: &[u8]) {
        if let Some(at) = self.buffer(buf, offset, bytes.len()) {
            // SAFETY: as in `read_at`.
            unsafe { at.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
    }

    /// A ring of `slots` slots with a buffer in each: fresh ones, or those of `like`.
    pub(super) fn make_ring(
        &mut self,
        (slots, ring_id, dir, tail): (u32, u16, u16, u32),
        like: Option<RingAt>,
    ) -> io::Result<RingAt> {
        let bytes = (SLOTS_OFFSET + slots as usize * size_of::<Slot>()).next_multiple_of(PAGE);
        let at = self.rings_end;
        if at + bytes > self.buffers_at() {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.rings_end += bytes;
        let ring = RingAt { at, slots };
        let header = NetmapRing {
            buf_ofs: i64::try_from(self.buffers_at() - at).unwrap_or(0),
            num_slots: slots,
            buf_size: self.shape.buf_size,
            ring_id,
            dir,
            head: 0,
            cur: 0,
            tail,
            flags: 0,
            pad: 0,
            time: [0; 2],
            offset_mask: 0,
            buf_align: 0,
            pad2: [0; 56],
            sem: [0; 128],
        };
        // SAFETY: inside the mapping, from a page on; nobody knows of it yet.
        unsafe { self.mapping.at(at).cast().write(header) };
        for index in 0..slots {
            let buf = match like {
                Some(other) => self.slot(other, index).buf,
                None => self.take_buffer()?,
            };
            self.set_slot(ring, index, Slot { buf, ..Slot::default() });
        }
        Ok(ring)
    }

    pub(super) fn header(&self, ring: RingAt) -> NonNull<NetmapRing> {
        self.mapping.at(ring.at).cast()
    }

    pub(super) fn slot(&self, ring: RingAt, index: u32) -> Slot {
        // SAFETY: `slot_at` is inside the mapping; every bit pattern is a slot. Volatile: its user may write at any time.
        unsafe { self.slot_at(ring, index).read_volatile() }
    }

    pub(super) fn set_slot(&self, ring: RingAt, index: u32, slot: Slot) {
        // SAFETY: as in `slot`.
        unsafe { self.slot_at(ring, index).write_volatile(slot) };
    }

    fn slot_at(&self, ring: RingAt, index: u32) -> NonNull<Slot> {
        assert!(index < ring.slots, "slot within the ring");
        self.mapping.at(ring.at + SLOTS_OFFSET + index as usize * size_of::<Slot>()).cast()
    }

    /// An interface whose rings are at these offsets of the region; 0 for those that the user does not have.
    pub(super) fn make_interface(&mut self, interface: NetmapIf, rings: &[usize]) -> io::Result<usize> {
        let free = self.interfaces.iter().position(|used| !used);
        let place = free.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let at = place * INTERFACE_BYTES;
        if size_of::<NetmapIf>() + size_of_val(rings) > INTERFACE_BYTES {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.interfaces[place] = true;
        // SAFETY: the interface and its table are inside its own part of the mapping.
        unsafe {
            self.mapping.at(at).cast().write(interface);
            for (index, ring) in rings.iter().enumerate() {
                let offset = if *ring == 0 { 0 } else { i64::try_from(*ring - at).unwrap_or(0) };
                let entry = at + size_of::<NetmapIf>() + index * size_of::<i64>();
                self.mapping.at(entry).cast().write(offset);
            }
        }
        Ok(at)
    }

    /// Ends an interface; the chain of extra buffers that stands in it is freed.
    pub(super) fn end_interface(&mut self, at: usize) {
        // SAFETY: `make_interface` made it; its user wrote the word.
        let head = unsafe {
            (&raw const (*self.mapping.at(at).cast::<NetmapIf>().as_ptr()).bufs_head).read_volatile()
        };
        self.give_chain(head);
        self.interfaces[at / INTERFACE_BYTES] = false;
    }

    pub(super) fn set_bufs_head(&self, at: usize, head: u32) {
        // SAFETY: as in `end_interface`.
        unsafe {
            (&raw mut (*self.mapping.at(at).cast::<NetmapIf>().as_ptr()).bufs_head).write_volatile(head);
        }
    }

    /// Writes a word somewhere.
    #[cfg(test)]
    pub(super) fn scribble(&self, at: usize, word: u32) {
        let at = at.min(self.mapping.len() - 4) & !3;
        // SAFETY: inside the mapping and aligned. Volatile: users of the memory are to see it.
        unsafe { self.mapping.at(at).cast::<u32>().write_volatile(word) };
    }

    pub(super) fn buffers(&self) -> u32 {
        self.shape.buffers
    }

    /// What it is made of: interfaces, rings, buffers, one behind the other.
    pub(super) fn pools(&self, mem_id: u16) -> PoolsInfo {
        let total = |bytes: usize, each: usize| u32::try_from(bytes / each).unwrap_or(0);
        PoolsInfo {
            mem_size: self.bytes() as u64,
            mem_id,
            if_total: total(RINGS_AT, INTERFACE_BYTES),
            if_size: total(INTERFACE_BYTES, 1),
            ring_offset: RINGS_AT as u64,
            ring_total: total(RINGS_BYTES, PAGE),
            ring_size: total(PAGE, 1),
            buf_offset: self.buffers_at() as u64,
            buf_total: self.shape.buffers,
            buf_size: self.shape.buf_size,
            ..PoolsInfo::default()
        }
    }

    pub(super) fn buf_size(&self) -> u32 {
        self.shape.buf_size
    }

    pub(super) fn is_buffer(&self, buf: u32) -> bool {
        (FIRST_BUF..self.shape.buffers).contains(&buf)
    }

    /// Clears the mark of a changed buffer.
    pub(super) fn unmark(&self, ring: RingAt, index: u32) -> Slot {
        let slot = self.slot(ring, index);
        let clean = Slot { flags: slot.flags & !SlotFlags::BUF_CHANGED, ..slot };
        if clean != slot {
            self.set_slot(ring, index, clean);
        }
        slot
    }
}

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingAt {
    pub(super) at: usize,
    pub(super) slots: u32,
}
