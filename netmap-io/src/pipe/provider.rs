//! What the netmap module does below the system call, for a pipe: the memory and the two syncs.
//!
//! The memory begins with a page of our own ([`Control`]), which a program that knows netmap alone never
//! looks at; behind it everything is netmap's layout.
//!
//! ```text
//!  0        control page: shape, published indices of both directions, armed flags
//!  4096     netmap_if of end 0, of end 1
//!  8192     tx ring 0 │ rx ring 0 │ tx ring 1 │ rx ring 1
//!  …        buffers: 0 and 1 unused, then a buffer for every slot of both tx rings
//! ```
//!
//! Slot `k` of a tx ring and slot `k` of the rx ring at the other end stand for the same place in the
//! pipe. Sending copies the slot across, so the buffer is lent; releasing lends it back, and a slot
//! whose buffer was swapped meanwhile (`NS_BUF_CHANGED`) is copied back.
//!
//! Ground rules
//!
//! - `sent` is written by the sending end alone, with Release after the slots; `released` by the receiving
//!   end alone. Each loads the other's word with Acquire before it touches slots.
//! - A ring header is touched by its own end alone.
//! - Every word that the other end can write is read once, then checked.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netmap::layout::{DIR_RX, DIR_TX, FIRST_BUF, NetmapIf, NetmapRing, SLOTS_OFFSET};
use crate::netmap::user::UserRing;
use crate::ring::{Buffers, Slot, SlotFlags};
use crate::sys::Mapping;

/// Bit of an armed flag: ring when a frame comes.
pub(super) const ARM_RX: u32 = 1;
/// Bit of an armed flag: ring when a slot is released.
pub(super) const ARM_TX: u32 = 2;

const MAGIC: u32 = u32::from_be_bytes(*b"utcp");
const VERSION: u32 = 2;
const PAGE: usize = 4096;
const IF_OFFSET: usize = PAGE;
const IF_STRIDE: usize = 1024;
const RINGS_OFFSET: usize = 2 * PAGE;

/// Whether a buffer may have so many bytes: whole cache lines.
pub(super) fn is_buffer_size(bytes: u32) -> bool {
    bytes.is_multiple_of(64) && (128..=65_536).contains(&bytes)
}

/// The sizes that both ends agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Slots of each ring.
    pub(super) slots: u32,
    /// Bytes of a buffer.
    pub(super) buf_size: u32,
    /// Largest IP packet.
    pub(super) mtu: u32,
}

impl Shape {
    fn ring_bytes(self) -> usize {
        (SLOTS_OFFSET + self.slots as usize * size_of::<Slot>()).next_multiple_of(PAGE)
    }

    fn ring_offset(self, ring: u32) -> usize {
        RINGS_OFFSET + ring as usize * self.ring_bytes()
    }

    fn buffers_offset(self) -> usize {
        self.ring_offset(4)
    }

    fn buffer_count(self) -> u32 {
        FIRST_BUF + 2 * self.slots
    }

    /// Bytes of the whole memory.
    pub(super) fn bytes(self) -> usize {
        self.buffers_offset() + self.buffer_count() as usize * self.buf_size as usize
    }
}

/// A word on a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
struct Line(AtomicU32);

/// The first page.
#[repr(C)]
#[derive(Debug)]
struct Control {
    magic: AtomicU32,
    version: AtomicU32,
    slots: AtomicU32,
    buf_size: AtomicU32,
    mtu: AtomicU32,
    /// By sending end: first slot that it has not sent.
    sent: [Line; 2],
    /// By sending end: first slot that the receiving end has not released.
    released: [Line; 2],
    /// By sleeping end: what to ring for.
    armed: [Line; 2],
}
const _: () = assert!(size_of::<Control>() <= PAGE);

/// The other end published an index outside the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// The memory of a pipe, mapped.
#[derive(Debug)]
pub(super) struct SharedMemory {
    mapping: Mapping,
    shape: Shape,
    /// The memory file, to be passed to the other end.
    file: std::os::fd::OwnedFd,
}

impl SharedMemory {
    /// Makes and fills a memory.
    pub(super) fn create(shape: Shape) -> io::Result<Self> {
        let file = super::sys::memory_file(shape.bytes())?;
        let memory = Self::map(file, shape)?;
        memory.fill();
        Ok(memory)
    }

    /// Maps the memory that the other end made, after checking that it can't shrink and what it says.
    pub(super) fn join(file: std::os::fd::OwnedFd) -> io::Result<Self> {
        let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let bytes = super::sys::sealed_size(&file)?
            .ok_or_else(|| bad("its memory is not sealed against shrinking"))?;
        if bytes < PAGE {
            return Err(bad("its memory is smaller than a page"));
        }
        let shape = {
            let probe = Self::map_bytes(&file, PAGE)?;
            // SAFETY: the probe is one page, the size of the control page; its words are atomics, for
            // which every bit pattern is a value.
            let control = unsafe { probe.base().cast::<Control>().as_ref() };
            let word = |word: &AtomicU32| word.load(Ordering::Acquire);
            if (word(&control.magic), word(&control.version)) != (MAGIC, VERSION) {
                return Err(bad("it is another version of utcp"));
            }
            Shape { slots: word(&control.slots), buf_size: word(&control.buf_size), mtu: word(&control.mtu) }
        };
        let sane = (2..=65_536).contains(&shape.slots)
            && is_buffer_size(shape.buf_size)
            && shape.mtu < shape.buf_size
            && shape.bytes() <= bytes;
        if !sane {
            return Err(bad("its memory has another size than it says"));
        }
        Self::map(file, shape)
    }

    fn map(file: std::os::fd::OwnedFd, shape: Shape) -> io::Result<Self> {
        let mapping = Self::map_bytes(&file, shape.bytes())?.in_large_pages();
        Ok(Self { mapping, shape, file })
    }

    fn map_bytes(file: &std::os::fd::OwnedFd, bytes: usize) -> io::Result<Mapping> {
        use std::os::fd::AsFd;
        Mapping::shared(file.as_fd(), 0, bytes)
    }

    /// The file behind the memory.
    pub(super) fn file(&self) -> &std::os::fd::OwnedFd {
        &self.file
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    fn control(&self) -> &Control {
        // SAFETY: the mapping is longer than the control page and starts with it; its words are atomics.
        unsafe { self.mapping.base().cast::<Control>().as_ref() }
    }

    /// What `end` wants to be rung for.
    pub(super) fn armed(&self, end: u32) -> &AtomicU32 {
        &self.control().armed[end as usize].0
    }

    /// Ring 0 is end 0's tx, ring 1 its rx, 2 and 3 the same of end 1.
    fn ring_at(&self, ring: u32) -> NonNull<NetmapRing> {
        self.mapping.at(self.shape.ring_offset(ring)).cast()
    }

    fn slot_at(&self, ring: u32, slot: u32) -> NonNull<Slot> {
        debug_assert!(slot < self.shape.slots, "slot within the ring");
        self.mapping
            .at(self.shape.ring_offset(ring) + SLOTS_OFFSET + slot as usize * size_of::<Slot>())
            .cast()
    }

    /// Reads a slot of any ring.
    pub(super) fn slot(&self, ring: u32, slot: u32) -> Slot {
        // SAFETY: `slot_at` is inside the mapping; every bit pattern is a slot. Volatile: the memory is shared.
        unsafe { self.slot_at(ring, slot).read_volatile() }
    }

    /// Writes a slot of any ring.
    pub(super) fn set_slot(&self, ring: u32, index: u32, slot: Slot) {
        // SAFETY: `slot_at` is inside the mapping, and by the ground rules the slot is this end's now.
        unsafe { self.slot_at(ring, index).write_volatile(slot) };
    }

    /// Writes control page, interfaces, rings and slots; the magic last.
    fn fill(&self) {
        let Shape { slots, buf_size, mtu } = self.shape;
        for end in 0..2 {
            self.fill_interface(end);
            for (ring, dir) in [(2 * end, DIR_TX), (2 * end + 1, DIR_RX)] {
                self.fill_ring(ring, dir);
            }
        }
        let control = self.control();
        for (word, value) in [
            (&control.slots, slots),
            (&control.buf_size, buf_size),
            (&control.mtu, mtu),
            (&control.version, VERSION),
            (&control.magic, MAGIC),
        ] {
            word.store(value, Ordering::Release);
        }
    }

    /// `netmap_if` with one ring pair and, as the module says for pipes, one host ring pair without memory.
    fn fill_interface(&self, end: u32) {
        let at = IF_OFFSET + end as usize * IF_STRIDE;
        let mut name = [0; 16];
        name[..6].copy_from_slice(if end == 0 { b"pipe{0" } else { b"pipe}0" });
        let interface = NetmapIf {
            name,
            version: 0,
            flags: 0,
            tx_rings: 1,
            rx_rings: 1,
            bufs_head: 0,
            host_tx_rings: 1,
            host_rx_rings: 1,
            spare: [0; 3],
        };
        let from_here = |ring| i64::try_from(self.shape.ring_offset(ring) - at).unwrap_or(0);
        let offsets = [from_here(2 * end), 0, from_here(2 * end + 1), 0];
        // SAFETY: both are inside the second page, which nobody else looks at before the magic is written.
        unsafe {
            self.mapping.at(at).cast().write(interface);
            self.mapping.at(at + size_of::<NetmapIf>()).cast().write(offsets);
        }
    }

    fn fill_ring(&self, ring: u32, dir: u16) {
        let Shape { slots, buf_size, .. } = self.shape;
        let buf_ofs = i64::try_from(self.shape.buffers_offset() - self.shape.ring_offset(ring)).unwrap_or(0);
        let header = NetmapRing {
            buf_ofs,
            num_slots: slots,
            buf_size,
            ring_id: 0,
            dir,
            head: 0,
            cur: 0,
            tail: if dir == DIR_TX { slots - 1 } else { 0 },
            flags: 0,
            pad: 0,
            time: [0; 2],
            offset_mask: 0,
            buf_align: 0,
            pad2: [0; 56],
            sem: [0; 128],
        };
        // SAFETY: inside the mapping, page-aligned, and nobody else looks before the magic is written.
        unsafe { self.ring_at(ring).write(header) };
        // End 0's tx ring and end 1's rx ring share the first half of the buffers, the other two the rest.
        let first = FIRST_BUF + if ring.is_multiple_of(3) { 0 } else { slots };
        for index in 0..slots {
            self.set_slot(ring, index, Slot { buf: first + index, ..Slot::default() });
        }
    }

    fn buffers(&self) -> Buffers {
        let base = self.mapping.at(self.shape.buffers_offset());
        // SAFETY: the mapping ends behind `buffer_count` buffers; rings and memory are dropped together.
        unsafe { Buffers::new(base, self.shape.buffer_count(), self.shape.buf_size) }
    }

    fn user_ring(&self, ring: u32) -> UserRing {
        // SAFETY: `ring_at` is a ring of `slots` slots in this memory; a port takes each ring of its end once.
        unsafe { UserRing::new(self.ring_at(ring), self.shape.slots, self.buffers(), 0) }
    }

    /// The two halves of `end`'s tx ring.
    pub(super) fn tx_ring(&self, end: u32) -> (UserRing, Kring) {
        (
            self.user_ring(2 * end),
            Kring::new(end, 2 * end, 2 * (1 - end) + 1, self.shape.slots, self.shape.slots - 1),
        )
    }

    /// The two halves of `end`'s rx ring.
    pub(super) fn rx_ring(&self, end: u32) -> (UserRing, Kring) {
        (self.user_ring(2 * end + 1), Kring::new(1 - end, 2 * end + 1, 2 * (1 - end), self.shape.slots, 0))
    }
}

/// What a tx sync moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) slots: u64,
    pub(super) bytes: u64,
}

/// What an rx sync did for the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) released: bool,
}

/// The module's half of a ring: what it remembers between two syncs, in private memory.
#[derive(Debug)]
pub(super) struct Kring {
    /// The end that sends in this direction.
    sender: u32,
    /// This ring, and the one at the other end of the direction.
    ring: u32,
    other: u32,
    num_slots: u32,
    /// First slot that was not handed on (tx) or taken back (rx).
    hw_cur: u32,
    /// End of what the user may have.
    hw_tail: u32,
    /// tx: end of the last whole frame; the slots behind it are fragments of one that goes on.
    whole: u32,
    /// The user's head and cur, and the tail that it was told, at the last sync that made sense.
    head: u32,
    cur: u32,
    tail: u32,
    /// Rings set back because head or cur made no sense.
    pub(super) resets: u64,
    /// Slots sent with a buffer or length outside the memory.
    pub(super) bad_slots: u64,
}

impl Kring {
    fn new(sender: u32, ring: u32, other: u32, num_slots: u32, tail: u32) -> Self {
        Self {
            sender,
            ring,
            other,
            num_slots,
            hw_cur: 0,
            hw_tail: tail,
            whole: 0,
            head: 0,
            cur: 0,
            tail,
            resets: 0,
            bad_slots: 0,
        }
    }

    fn next(&self, index: u32) -> u32 {
        if index + 1 == self.num_slots { 0 } else { index + 1 }
    }

    fn prev(&self, index: u32) -> u32 {
        if index == 0 { self.num_slots - 1 } else { index - 1 }
    }

    /// Whether `index` lies in `first ..= last`, going round.
    fn within(first: u32, index: u32, last: u32) -> bool {
        if first <= last { (first..=last).contains(&index) } else { index >= first || index <= last }
    }

    /// Reads head and cur and checks them as the module does: both in `first ..= self.tail`, cur not
    /// before head. Nonsense is set back to the last good values and moves nothing.
    fn prologue(&mut self, memory: &SharedMemory, first: u32) -> u32 {
        let header = memory.ring_at(self.ring);
        // SAFETY: the ring is inside the mapping; its header is this end's alone. Volatile: its user is
        // someone else's code in principle.
        let NetmapRing { head, cur, tail, .. } = unsafe { header.read_volatile() };
        let in_ring = head < self.num_slots && cur < self.num_slots;
        let sane = in_ring && Self::within(first, head, self.tail) && Self::within(head, cur, self.tail);
        if !sane {
            self.resets += 1;
            self.write_header(memory, self.head, self.cur, self.tail);
            return self.head;
        }
        if tail != self.tail {
            self.write_header(memory, head, cur, self.tail);
        }
        (self.head, self.cur) = (head, cur);
        head
    }

    fn write_header(&self, memory: &SharedMemory, head: u32, cur: u32, tail: u32) {
        let header = memory.ring_at(self.ring).as_ptr();
        // SAFETY: as in `prologue`.
        unsafe {
            (&raw mut (*header).head).write_volatile(head);
            (&raw mut (*header).cur).write_volatile(cur);
            (&raw mut (*header).tail).write_volatile(tail);
        }
    }

    /// Tells the user the new tail.
    fn finish(&mut self, memory: &SharedMemory) {
        if self.tail != self.hw_tail {
            self.tail = self.hw_tail;
            let header = memory.ring_at(self.ring).as_ptr();
            // SAFETY: as in `prologue`.
            unsafe { (&raw mut (*header).tail).write_volatile(self.tail) };
        }
    }

    fn load(&self, word: &Line) -> Result<u32, Nonsense> {
        let index = word.0.load(Ordering::Acquire);
        if index < self.num_slots { Ok(index) } else { Err(Nonsense) }
    }

    /// A slot that goes to the other end: index and length are inside the memory afterwards.
    fn sanitise(&mut self, memory: &SharedMemory, slot: Slot) -> Slot {
        let shape = memory.shape;
        let good =
            (FIRST_BUF..shape.buffer_count()).contains(&slot.buf) && u32::from(slot.len) <= shape.buf_size;
        if good {
            return slot;
        }
        self.bad_slots += 1;
        // The module lets such a buffer leak; buffer 0 is nobody's, and no bytes of it are shown.
        Slot { buf: 0, len: 0, ..slot }
    }

    /// `NIOCTXSYNC`: hands `[hw_cur, head)` to the other end and takes back what it released.
    pub(super) fn tx_sync(&mut self, memory: &SharedMemory) -> Result<Sent, Nonsense> {
        let head = self.prologue(memory, self.head);
        let control = memory.control();
        let mut sent = Sent::default();
        while self.hw_cur != head {
            let mut slot = memory.slot(self.ring, self.hw_cur);
            if slot.flags & SlotFlags::BUF_CHANGED != 0 {
                slot.flags &= !SlotFlags::BUF_CHANGED;
                memory.set_slot(self.ring, self.hw_cur, slot);
            }
            let slot = self.sanitise(memory, slot);
            memory.set_slot(self.other, self.hw_cur, slot);
            sent.slots += 1;
            sent.bytes += u64::from(slot.len);
            self.hw_cur = self.next(self.hw_cur);
            if slot.flags & SlotFlags::MORE_FRAG == 0 {
                self.whole = self.hw_cur;
            }
        }
        if sent.slots > 0 {
            // The other end sees whole frames only. Release: the slots, and the bytes that the user
            // wrote before, are visible before the index.
            control.sent[self.sender as usize].0.store(self.whole, Ordering::Release);
        }
        let released = self.load(&control.released[self.sender as usize])?;
        self.hw_tail = self.prev(released);
        self.finish(memory);
        Ok(sent)
    }

    /// `NIOCRXSYNC`: releases `[hw_cur, head)` and shows what has arrived.
    pub(super) fn rx_sync(&mut self, memory: &SharedMemory) -> Result<Released, Nonsense> {
        let head = self.prologue(memory, self.hw_cur);
        let control = memory.control();
        let released = self.hw_cur != head;
        while self.hw_cur != head {
            let mut slot = memory.slot(self.ring, self.hw_cur);
            if slot.flags & SlotFlags::BUF_CHANGED != 0 {
                slot.flags &= !SlotFlags::BUF_CHANGED;
                memory.set_slot(self.ring, self.hw_cur, slot);
                let slot = self.sanitise(memory, slot);
                memory.set_slot(self.other, self.hw_cur, Slot { flags: SlotFlags::BUF_CHANGED, ..slot });
            }
            self.hw_cur = self.next(self.hw_cur);
        }
        if released {
            // Release: the swapped slots, and the user's last look at the bytes, come before the index.
            control.released[self.sender as usize].0.store(self.hw_cur, Ordering::Release);
        }
        self.hw_tail = self.load(&control.sent[self.sender as usize])?;
        self.finish(memory);
        Ok(Released { released })
    }

    /// Whether a sync would move the tail.
    pub(super) fn has_news(&self, memory: &SharedMemory) -> bool {
        let control = memory.control();
        let is_tx = self.ring.is_multiple_of(2);
        let word = if is_tx { &control.released } else { &control.sent }[self.sender as usize]
            .0
            .load(Ordering::Acquire);
        if is_tx { word != self.next(self.hw_tail) } else { word != self.hw_tail }
    }
}

/// What tests do to the memory from below.
#[cfg(test)]
impl SharedMemory {
    pub(super) fn set_indices(&self, ring: u32, head: u32, cur: u32) {
        let header = self.ring_at(ring).as_ptr();
        // SAFETY: the ring is inside the mapping and the test is its only user.
        unsafe {
            (*header).head = head;
            (*header).cur = cur;
        }
    }

    pub(super) fn indices(&self, ring: u32) -> (u32, u32, u32) {
        // SAFETY: as above.
        let header = unsafe { self.ring_at(ring).read_volatile() };
        (header.head, header.cur, header.tail)
    }

    pub(super) fn lie(&self, sender: usize, index: u32) {
        self.control().sent[sender].0.store(index, Ordering::Release);
        self.control().released[sender].0.store(index, Ordering::Release);
    }

    /// The memory as a program sees it that knows netmap alone.
    pub(super) fn region(&self, end: u32) -> crate::netmap::region::Region {
        let mapping = Self::map_bytes(&self.file, self.shape.bytes()).unwrap();
        let offset = IF_OFFSET + end as usize * IF_STRIDE;
        crate::netmap::region::Region::new(std::sync::Arc::new(mapping), offset).unwrap()
    }
}
