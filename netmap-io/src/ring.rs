//! A port's view of one ring: slots in netmap's layout, buffers by index, `[head, tail)` is ours.
//!
//! The slots and the buffers may be the device's memory (netmap, pipe) or the port's own (AF_XDP, TAP);
//! the view is the same type for all, so that a loop over frames compiles to loads from memory without
//! a virtual call. `head` and `tail` are private copies; a sync exchanges them with the device.
//!
//! Ground rules
//!
//! - A buffer stands in at most one slot of all rings of its memory. Swapping keeps that true.
//! - Only the thread that holds the port touches slots and buffers in `[head, tail)`.
//! - Frames that were read stay untouched until the next sync: they may be borrowed for as long as the
//!   [`RxRing`].
//! - Index, offset and length of a slot are checked against the memory each time: a slot that lies is
//!   skipped and counted.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::sys;

/// A slot of a ring, byte for byte netmap's `struct netmap_slot`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Index of the buffer.
    pub buf: u32,
    /// Bytes of the frame.
    pub len: u16,
    /// See [`SlotFlags`].
    pub flags: u16,
    /// Offset of the frame in its buffer, where the ring has offsets; otherwise not looked at.
    pub ptr: u64,
}

const _: () = assert!(size_of::<Slot>() == 16);

/// Frames whose work takes about as long as the way from another core's cache.
const AHEAD: u32 = 3;
/// Bytes of a cache line.
const LINE: u32 = 64;

/// The bits of [`Slot::flags`] (netmap's `NS_*`).
pub struct SlotFlags;

impl SlotFlags {
    /// The user put another buffer into the slot.
    pub const BUF_CHANGED: u16 = 0x0001;
    /// Report when this slot was sent.
    pub const REPORT: u16 = 0x0002;
    /// Pass the frame on to the other side (NIC ↔ host).
    pub const FORWARD: u16 = 0x0004;
    /// The frame goes on in the next slot.
    pub const MORE_FRAG: u16 = 0x0020;
}

/// The buffers of one memory: those from `first` up to `count`, `stride` bytes each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    base: NonNull<u8>,
    first: u32,
    count: u32,
    stride: u32,
}

impl Buffers {
    /// # Safety
    /// `base` points to `count * stride` readable and writable bytes that outlive every ring made with it.
    pub(crate) unsafe fn new(base: NonNull<u8>, count: u32, stride: u32) -> Self {
        Self { base, first: 0, count, stride }
    }

    /// The same without the buffers below `first`, which no slot may have.
    pub(crate) fn from(self, first: u32) -> Self {
        Self { first, ..self }
    }

    /// Whether a slot may have buffer `index`.
    pub(crate) fn contains(self, index: u32) -> bool {
        (self.first..self.count).contains(&index)
    }

    /// The first word of a buffer, which links it to the next one of a chain; `None` if there is no such buffer.
    pub(crate) fn link(self, index: u32) -> Option<u32> {
        // SAFETY: the index was checked, and a buffer is longer than a word. Every bit pattern is a value.
        self.contains(index).then(|| unsafe { self.at(index, 0).cast::<u32>().read_unaligned() })
    }

    /// Writes that word. The buffer stands in no slot, and the caller owns it.
    pub(crate) fn set_link(self, index: u32, next: u32) {
        if self.contains(index) {
            // SAFETY: as in `link`.
            unsafe { self.at(index, 0).cast::<u32>().write_unaligned(next) };
        }
    }

    /// Where a checked piece of a buffer starts.
    fn at(self, buf: u32, offset: u32) -> NonNull<u8> {
        debug_assert!(
            buf < self.count && offset <= self.stride,
            "buffer {buf}+{offset} is outside the memory"
        );
        // SAFETY: `buf < count` and `offset <= stride` by the callers' checks, so this stays inside
        // (or at the end of) the `count * stride` bytes that `new` was promised.
        unsafe { self.base.add(buf as usize * self.stride as usize + offset as usize) }
    }
}

/// A ring as its port sees it.
#[derive(Debug)]
pub(crate) struct SlotRing {
    slots: NonNull<Slot>,
    num_slots: u32,
    /// First slot that is ours.
    pub(crate) head: u32,
    /// First slot behind `head` that is not.
    pub(crate) tail: u32,
    bufs: Buffers,
    /// The bits of `Slot::ptr` that are an offset; 0 where the ring has none.
    offset_mask: u64,
    /// Where frames of ours begin in their buffers.
    offset: u32,
    /// Slots that were skipped because they pointed outside the memory.
    pub(crate) bad_slots: u64,
}

// SAFETY: the ring's memory has no thread affinity and, by the ground rules, one user: the owner.
unsafe impl Send for SlotRing {}

impl SlotRing {
    /// # Safety
    /// `slots` points to `num_slots` slots that outlive the ring, as do the buffers; nobody else touches
    /// slots in `[head, tail)` nor the buffers in them. `offset_mask` has the bits of [`Slot::ptr`] that are an
    /// offset, 0 where the ring has none.
    pub(crate) unsafe fn new(slots: NonNull<Slot>, num_slots: u32, bufs: Buffers, offset_mask: u64) -> Self {
        assert!(num_slots >= 2, "a ring needs two slots at least: one is always the device's");
        Self { slots, num_slots, head: 0, tail: 0, bufs, offset_mask, offset: 0, bad_slots: 0 }
    }

    /// Frames begin so many bytes into their buffers, where the ring has offsets: room that others of the ring rely on.
    pub(crate) fn begin_at(&mut self, offset: u32) {
        let fits = u64::from(offset) & self.offset_mask == u64::from(offset) && offset <= self.bufs.stride;
        self.offset = if fits { offset } else { 0 };
    }

    /// A slot whose frame begins where ours do.
    fn at_offset(&self, slot: Slot) -> Slot {
        Slot { ptr: slot.ptr & !self.offset_mask | u64::from(self.offset), ..slot }
    }

    /// Number of slots.
    pub(crate) fn num_slots(&self) -> u32 {
        self.num_slots
    }

    /// The slot after `index`.
    #[inline]
    pub(crate) fn next(&self, index: u32) -> u32 {
        if index + 1 == self.num_slots { 0 } else { index + 1 }
    }

    /// Slots from `from` up to `to`, going round.
    #[inline]
    pub(crate) fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.num_slots - from }
    }

    /// Slots that are ours.
    #[inline]
    pub(crate) fn available(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    /// Reads a slot.
    #[inline]
    pub(crate) fn slot(&self, index: u32) -> Slot {
        assert!(index < self.num_slots, "slot index within the ring");
        // SAFETY: the index was checked against the number of slots that `new` was promised. Volatile:
        // the device's memory may change, so it is read once and only the copy is used.
        unsafe { self.slots.add(index as usize).read_volatile() }
    }

    /// Writes a slot.
    #[inline]
    pub(crate) fn set_slot(&mut self, index: u32, slot: Slot) {
        assert!(index < self.num_slots, "slot index within the ring");
        // SAFETY: as in `slot`; the caller owns the slot by the ring's protocol.
        unsafe { self.slots.add(index as usize).write_volatile(slot) };
    }

    /// Offset and length of the frame in `slot`, if it lies inside its buffer.
    #[inline]
    fn extent(&self, slot: Slot) -> Option<(u32, u32)> {
        let offset = u32::try_from(slot.ptr & self.offset_mask).ok()?;
        let len = u32::from(slot.len);
        // Slot and mask are the other side's words: the sum of what they say may not fit one.
        let end = offset.checked_add(len)?;
        (self.bufs.contains(slot.buf) && end <= self.bufs.stride).then_some((offset, len))
    }

    /// Copies `bytes` to where `slot` says the frame is; `false` if they don't fit there.
    pub(crate) fn write_frame(&mut self, slot: Slot, bytes: &[u8]) -> bool {
        let Some((offset, len)) = self.extent(slot) else { return false };
        if len as usize != bytes.len() {
            return false;
        }
        // SAFETY: `extent` checked that the piece is inside the buffers. The caller owns the slot, and
        // `&mut self` keeps every borrower of its buffer away.
        let room =
            unsafe { std::slice::from_raw_parts_mut(self.bufs.at(slot.buf, offset).as_ptr(), len as usize) };
        room.copy_from_slice(bytes);
        true
    }

    /// Fetches the beginning of a frame that is read a few frames from now: another core has just written it, and its buffer lies
    /// apart from those before it.
    #[inline]
    fn prefetch_ahead(&self) {
        if self.available() <= AHEAD {
            return;
        }
        let slot = self.slot((0..AHEAD).fold(self.head, |index, _| self.next(index)));
        if let Some((offset, len)) = self.extent(slot) {
            sys::prefetch_at(self.bufs.at(slot.buf, offset));
            if len > LINE {
                sys::prefetch_at(self.bufs.at(slot.buf, offset + LINE));
            }
        }
    }

    /// Fetches, to be written, the beginning of a buffer that is filled a few frames from now: whoever read its last frame has it.
    #[inline]
    fn prefetch_room_ahead(&self) {
        if self.available() <= AHEAD {
            return;
        }
        let slot = self.slot((0..AHEAD).fold(self.head, |index, _| self.next(index)));
        if self.bufs.contains(slot.buf) {
            for at in [self.offset, self.offset + LINE] {
                sys::prefetch_to_write_at(self.bufs.at(slot.buf, at.min(self.bufs.stride)));
            }
        }
    }

    /// The buffers that the slots refer to.
    pub(crate) fn buffers(&self) -> Buffers {
        self.bufs
    }

    /// Whether a buffer can change places with one of `other`.
    pub(crate) fn shares_memory(&self, other: &Self) -> bool {
        self.bufs.base == other.bufs.base
            && self.bufs.stride == other.bufs.stride
            && self.offset_mask == other.offset_mask
    }

    /// The frame in a slot leaves with its buffer, and `buf` comes for it. What stays is a slot of no bytes.
    pub(crate) fn take(&mut self, index: u32, buf: u32) -> Slot {
        let slot = self.slot(index);
        let left = Slot { buf, len: 0, flags: SlotFlags::BUF_CHANGED, ptr: 0 };
        self.set_slot(index, self.at_offset(left));
        slot
    }

    /// The buffer in the next slot that can be filled; `None`: there is none.
    pub(crate) fn front_buffer(&mut self) -> Option<u32> {
        if self.head == self.tail {
            return None;
        }
        let buf = self.slot(self.head).buf;
        if !self.bufs.contains(buf) {
            self.bad_slots += 1;
            return None;
        }
        Some(buf)
    }

    /// Commits a frame that was taken out of another ring. Its place is [`Self::front_buffer`]'s, which the caller has
    /// given away.
    pub(crate) fn put(&mut self, frame: Slot) {
        let flags = frame.flags & SlotFlags::MORE_FRAG | SlotFlags::BUF_CHANGED;
        self.set_slot(self.head, Slot { flags, ..frame });
        self.head = self.next(self.head);
    }

    /// Bytes of the longest frame of ours.
    pub(crate) fn room_bytes(&self) -> u32 {
        (self.bufs.stride - self.offset).min(u32::from(u16::MAX))
    }

    /// Room for a frame in a buffer that the caller owns, which stands in no slot or in one of ours; `None`: there is no such
    /// buffer.
    pub(crate) fn room(&mut self, buf: u32) -> Option<&mut [u8]> {
        let (offset, room) = (self.offset as usize, self.room_bytes() as usize);
        self.buffer(Slot { buf, ..Slot::default() })?.get_mut(offset..offset + room)
    }

    /// A slot for the frame of `len` bytes that was written into [`Self::room`].
    pub(crate) fn filled(&self, buf: u32, len: u16) -> Slot {
        self.at_offset(Slot { buf, len, flags: 0, ptr: 0 })
    }

    /// The whole buffer in `slot`; `None` if the slot lies.
    pub(crate) fn buffer(&mut self, slot: Slot) -> Option<&mut [u8]> {
        if !self.bufs.contains(slot.buf) {
            return None;
        }
        // SAFETY: the index was checked. The caller owns the slot, and `&mut self` keeps every borrower
        // of its buffer away.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.bufs.at(slot.buf, 0).as_ptr(), self.bufs.stride as usize)
        })
    }

    /// The frames in `count` slots from `from` on; slots that lie are left out.
    pub(crate) fn frames(&self, from: u32, count: u32) -> impl Iterator<Item = &[u8]> {
        let first = std::iter::successors(Some(from), |index| Some(self.next(*index)));
        first.take(count as usize).filter_map(|index| self.frame(self.slot(index)))
    }

    /// The slot `count` places before `index`.
    pub(crate) fn before(&self, index: u32, count: u32) -> u32 {
        if index >= count { index - count } else { index + self.num_slots - count }
    }

    /// The bytes of the frame in `slot`; `None` if the slot lies.
    #[inline]
    pub(crate) fn frame(&self, slot: Slot) -> Option<&[u8]> {
        let (offset, len) = self.extent(slot)?;
        // SAFETY: `extent` checked that the piece is inside the buffers. By the ground rules nobody
        // writes to it while the ring is borrowed.
        Some(unsafe { std::slice::from_raw_parts(self.bufs.at(slot.buf, offset).as_ptr(), len as usize) })
    }
}

/// A frame that arrived. Derefs to its bytes, from the link header on.
#[derive(Clone, Copy, Debug)]
pub struct RxFrame<'a> {
    bytes: &'a [u8],
    flags: u16,
}

impl<'a> RxFrame<'a> {
    /// The bytes, for as long as the ring is borrowed.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The frame goes on in the next slot.
    #[must_use]
    pub fn more(self) -> bool {
        self.flags & SlotFlags::MORE_FRAG != 0
    }
}

impl Deref for RxFrame<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// The frames that wait in a port. Iterating reads and releases them; the device gets their slots back
/// at the next [`rx_sync`](crate::Port::rx_sync), so all frames of a batch may be held together.
#[derive(Debug)]
pub struct RxRing<'a> {
    ring: &'a mut SlotRing,
}

impl<'a> RxRing<'a> {
    pub(crate) fn new(ring: &'a mut SlotRing) -> Self {
        Self { ring }
    }

    /// Frames that wait.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.ring.available()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.head == self.ring.tail
    }

    /// The frames that wait, without releasing them, but for the first `skip` slots.
    pub fn unread(&self, skip: u32) -> impl Iterator<Item = &[u8]> {
        let skip = skip.min(self.ring.available());
        let from = (0..skip).fold(self.ring.head, |index, _| self.ring.next(index));
        self.ring.frames(from, self.ring.available() - skip)
    }

    /// The next frame without releasing it. Slots that point outside the memory are skipped.
    pub fn peek(&mut self) -> Option<RxFrame<'_>> {
        self.skip_bad();
        let slot = self.front()?;
        self.ring.frame(slot).map(|bytes| RxFrame { bytes, flags: slot.flags })
    }

    /// Moves the next frame to the tail of what `tx` will send: by swapping the two slots' buffers when
    /// both rings share their memory, else by copying. `false` when there is no frame, no room, or the frame is
    /// longer than the other ring's slots.
    pub fn forward(&mut self, tx: &mut TxRing<'_>) -> bool {
        self.skip_bad();
        let (Some(from), Some(mut out)) = (self.front(), tx.slot()) else { return false };
        if self.ring.shares_memory(out.ring) {
            let index = out.ring.head;
            let to = out.ring.slot(index);
            let flags = from.flags & SlotFlags::MORE_FRAG | SlotFlags::BUF_CHANGED;
            out.ring.set_slot(index, Slot { flags, ..from });
            out.ring.head = out.ring.next(index);
            let back = Slot { buf: to.buf, ptr: 0, len: 0, flags: SlotFlags::BUF_CHANGED };
            self.ring.set_slot(self.ring.head, self.ring.at_offset(back));
        } else {
            let Some(bytes) = self.ring.frame(from) else { return false };
            if bytes.len() > out.len() {
                return false;
            }
            out[..bytes.len()].copy_from_slice(bytes);
            out.commit(bytes.len());
        }
        self.ring.head = self.ring.next(self.ring.head);
        true
    }

    /// The slot at head, if it is ours.
    fn front(&self) -> Option<Slot> {
        (!self.is_empty()).then(|| self.ring.slot(self.ring.head))
    }

    /// Moves head to the next slot that holds a frame. One of no bytes never did: its frame went another way.
    fn skip_bad(&mut self) {
        while let Some(slot) = self.front() {
            let good = self.ring.extent(slot).is_some();
            if good && slot.len != 0 {
                return;
            }
            self.ring.bad_slots += u64::from(!good);
            self.ring.head = self.ring.next(self.ring.head);
        }
    }
}

impl<'a> Iterator for RxRing<'a> {
    type Item = RxFrame<'a>;

    #[inline]
    fn next(&mut self) -> Option<RxFrame<'a>> {
        while self.ring.head != self.ring.tail {
            let slot = self.ring.slot(self.ring.head);
            self.ring.head = self.ring.next(self.ring.head);
            self.ring.prefetch_ahead();
            if let Some((offset, len)) = self.ring.extent(slot) {
                if len == 0 {
                    continue;
                }
                // SAFETY: `extent` checked that the piece is inside the buffers. It is borrowed for 'a,
                // longer than `&mut self`: the slot is behind head now, so nothing of this view touches it
                // again, and the device gets it back in a sync, which needs the port and so ends 'a.
                let bytes = unsafe {
                    std::slice::from_raw_parts(self.ring.bufs.at(slot.buf, offset).as_ptr(), len as usize)
                };
                return Some(RxFrame { bytes, flags: slot.flags });
            }
            self.ring.bad_slots += 1;
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.available() as usize))
    }
}

/// The room that a port has for frames to send. Committed slots leave at the next
/// [`tx_sync`](crate::Port::tx_sync).
#[derive(Debug)]
pub struct TxRing<'a> {
    ring: &'a mut SlotRing,
}

impl<'a> TxRing<'a> {
    pub(crate) fn new(ring: &'a mut SlotRing) -> Self {
        Self { ring }
    }

    /// Slots that can be filled.
    #[must_use]
    pub fn space(&self) -> u32 {
        self.ring.available()
    }

    /// Fetches the first lines of the next `count` free buffers, which are about to be written.
    pub(crate) fn prefetch(&self, count: usize) {
        let mut index = self.ring.head;
        for _ in 0..count.min(self.space() as usize) {
            let slot = self.ring.slot(index);
            if self.ring.bufs.contains(slot.buf) {
                sys::prefetch_at(self.ring.bufs.at(slot.buf, 0));
            }
            index = self.ring.next(index);
        }
    }

    /// The next free slot; `None` when the ring is full. Unless it is committed, it stays free.
    #[inline]
    pub fn slot(&mut self) -> Option<TxSlot<'_>> {
        if self.ring.head == self.ring.tail {
            return None;
        }
        let slot = self.ring.slot(self.ring.head);
        if !self.ring.bufs.contains(slot.buf) {
            // Only a peer that writes into our half of a shared ring can do that. A slot without a
            // buffer can't be skipped on the tx side, so the ring counts as full.
            self.ring.bad_slots += 1;
            return None;
        }
        self.ring.prefetch_room_ahead();
        Some(TxSlot { slot: self.ring.at_offset(slot), ring: self.ring })
    }

    /// The last `count` frames that were committed.
    pub(crate) fn committed(&self, count: u32) -> impl Iterator<Item = &[u8]> {
        self.ring.frames(self.ring.before(self.ring.head, count), count)
    }

    /// Copies `frame` into the next free slot. `false` when the ring is full or a slot too small.
    #[inline]
    pub fn push(&mut self, frame: &[u8]) -> bool {
        match self.slot() {
            Some(mut slot) if frame.len() <= slot.len() => {
                slot[..frame.len()].copy_from_slice(frame);
                slot.commit(frame.len());
                true
            }
            _ => false,
        }
    }
}

/// One free slot. Derefs to its buffer, whose old content is arbitrary.
#[derive(Debug)]
pub struct TxSlot<'r> {
    ring: &'r mut SlotRing,
    slot: Slot,
}

impl TxSlot<'_> {
    /// Sends the first `len` bytes at the next sync.
    ///
    /// # Panics
    /// When `len` is longer than the slot.
    pub fn commit(self, len: usize) {
        self.commit_flags(len, 0);
    }

    /// [`TxSlot::commit`] with [`SlotFlags`], e.g. `MORE_FRAG`.
    ///
    /// # Panics
    /// When `len` is longer than the slot.
    pub fn commit_flags(self, len: usize, flags: u16) {
        let (_, room) = self.room();
        assert!(len <= room, "a frame of {len} bytes does not fit its slot");
        let len = u16::try_from(len).expect("a slot's room is a u16");
        let index = self.ring.head;
        let kept = self.slot.flags & SlotFlags::BUF_CHANGED;
        self.ring.set_slot(index, Slot { len, flags: flags | kept, ..self.slot });
        self.ring.head = self.ring.next(index);
    }

    /// Where the frame begins, and how long it may be: a slot says so in 16 bits, and a buffer may have 64 KiB.
    fn room(&self) -> (NonNull<u8>, usize) {
        let SlotRing { bufs, offset, .. } = &*self.ring;
        (bufs.at(self.slot.buf, *offset), self.ring.room_bytes() as usize)
    }
}

impl Deref for TxSlot<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (at, len) = self.room();
        // SAFETY: `TxRing::slot` checked the index; the slot is ours until it is committed and synced.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }
}

impl DerefMut for TxSlot<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (at, len) = self.room();
        // SAFETY: as in `deref`; the buffer stands in this slot alone, so nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
    }
}
