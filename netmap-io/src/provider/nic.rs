//! A NIC: the kernel's half of its rings, and what is on their other side.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::time::{SystemTime, UNIX_EPOCH};

use super::memory::{Memory, RingAt};
use super::{NicShape, Side};
use crate::netmap::abi::ring_flag;
use crate::netmap::layout::{DIR_RX, DIR_TX, NetmapRing};
use crate::ring::{Slot, SlotFlags};

/// What the cable or the kernel takes unless a test says otherwise.
const ROOM: usize = 4096;

/// The kernel's half of a ring.
#[derive(Debug)]
pub(super) struct Kring {
    pub(super) at: RingAt,
    tx: bool,
    /// First slot that was not sent (tx) or given back (rx).
    hw_cur: u32,
    /// End of what the user may have.
    hw_tail: u32,
    /// Head, cur and tail of the last sync that made sense.
    head: u32,
    cur: u32,
    tail: u32,
    /// The buffer of each slot as the hardware knows it.
    known: Vec<u32>,
    /// rx: frames that have no slot yet.
    pub(super) queue: VecDeque<Vec<u8>>,
    /// Rung when a frame comes: descriptors that are bound to it.
    pub(super) bells: Vec<Weak<OwnedFd>>,
}

impl Kring {
    fn new(memory: &mut Memory, slots: u32, ring_id: u16, tx: bool) -> io::Result<Self> {
        let tail = if tx { slots - 1 } else { 0 };
        let at = memory.make_ring(slots, ring_id, if tx { DIR_TX } else { DIR_RX }, tail)?;
        let known = (0..slots).map(|index| memory.slot(at, index).buf).collect();
        let (queue, bells) = (VecDeque::new(), Vec::new());
        Ok(Self { at, tx, hw_cur: 0, hw_tail: tail, head: 0, cur: 0, tail, known, queue, bells })
    }

    fn next(&self, index: u32) -> u32 {
        (index + 1) % self.at.slots
    }

    fn wake(&mut self) {
        self.bells.retain(|bell| match bell.upgrade() {
            Some(bell) => {
                crate::pipe::sys::ring(&bell);
                true
            }
            None => false,
        });
    }

    /// Reads head and cur as the module's prologue does: `None` after a reset.
    fn prologue(&mut self, memory: &Memory) -> Option<u32> {
        let header = memory.header(self.at);
        // SAFETY: the header is in the mapping; every bit pattern is a value.
        let NetmapRing { head, cur, tail, flags, .. } = unsafe { header.read_volatile() };
        let n = self.at.slots;
        let from = if self.tx { self.head } else { self.hw_cur };
        let distance = |to: u32| (to + n - from) % n;
        let good = head < n && cur < n && distance(head) <= distance(self.tail);
        let good = good && distance(head) <= distance(cur) && distance(cur) <= distance(self.tail);
        if flags & ring_flag::TIMESTAMP != 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let time = [i64::try_from(now.as_secs()).unwrap_or(0), i64::from(now.subsec_micros())];
            // SAFETY: as above; the time is the kernel's to write.
            unsafe { (&raw mut (*header.as_ptr()).time).write_volatile(time) };
        }
        if !good {
            (self.head, self.cur) = (self.hw_cur, self.hw_cur);
            self.tail = self.hw_tail;
            self.write(memory, self.head, self.cur, self.tail);
            return None;
        }
        if tail != self.tail {
            self.write(memory, head, cur, self.tail);
        }
        (self.head, self.cur) = (head, cur);
        Some(head)
    }

    fn write(&self, memory: &Memory, head: u32, cur: u32, tail: u32) {
        let header = memory.header(self.at).as_ptr();
        // SAFETY: as in `prologue`.
        unsafe {
            (&raw mut (*header).head).write_volatile(head);
            (&raw mut (*header).cur).write_volatile(cur);
            (&raw mut (*header).tail).write_volatile(tail);
        }
    }

    fn finish(&mut self, memory: &Memory) {
        self.tail = self.hw_tail;
        // SAFETY: as in `prologue`.
        unsafe { (&raw mut (*memory.header(self.at).as_ptr()).tail).write_volatile(self.tail) };
    }

    /// The slot as the hardware sees it: the buffer that it knows, unless it was told of another.
    fn hardware_slot(&mut self, memory: &Memory, index: u32, violations: &mut Vec<String>) -> Slot {
        let slot = memory.unmark(self.at, index);
        let known = &mut self.known[index as usize];
        if slot.flags & SlotFlags::BUF_CHANGED != 0 {
            *known = slot.buf;
        } else if *known != slot.buf {
            violations.push(format!("slot {index}: buffer {known} became {} without a word", slot.buf));
        }
        Slot { buf: *known, ..slot }
    }

    /// `NIOCTXSYNC`: frames that are whole, as long as `take` takes them.
    pub(super) fn tx_sync(
        &mut self,
        memory: &Memory,
        violations: &mut Vec<String>,
        mut take: impl FnMut(&mut Vec<u8>) -> bool,
    ) {
        let Some(head) = self.prologue(memory) else { return };
        while self.hw_cur != head {
            let (mut frame, mut end, mut whole) = (Vec::new(), self.hw_cur, false);
            while end != head && !whole {
                let slot = self.hardware_slot(memory, end, violations);
                frame.extend(memory.read_buffer(slot.buf, slot.len.into()));
                if !memory.is_buffer(slot.buf) {
                    violations.push(format!("slot {end}: buffer {} is none", slot.buf));
                }
                whole = slot.flags & SlotFlags::MORE_FRAG == 0;
                end = self.next(end);
            }
            if !whole || !take(&mut frame) {
                break;
            }
            self.hw_cur = end;
        }
        self.hw_tail = (self.hw_cur + self.at.slots - 1) % self.at.slots;
        self.finish(memory);
    }

    /// `NIOCRXSYNC`: gives slots back and fills them from the queue.
    pub(super) fn rx_sync(&mut self, memory: &Memory, high_flags: u16, violations: &mut Vec<String>) {
        let Some(head) = self.prologue(memory) else { return };
        while self.hw_cur != head {
            self.hardware_slot(memory, self.hw_cur, violations);
            self.hw_cur = self.next(self.hw_cur);
        }
        let limit = (self.hw_cur + self.at.slots - 1) % self.at.slots;
        let chunk = memory.buf_size() as usize;
        while let Some(frame) = self.queue.front() {
            let pieces = frame.len().div_ceil(chunk).max(1);
            if ((limit + self.at.slots - self.hw_tail) % self.at.slots)
                < u32::try_from(pieces).unwrap_or(u32::MAX)
            {
                break;
            }
            for (place, piece) in frame.chunks(chunk).enumerate() {
                let buf = self.known[self.hw_tail as usize];
                memory.write_buffer(buf, piece);
                let more = if place + 1 < pieces { SlotFlags::MORE_FRAG } else { 0 };
                let len = u16::try_from(piece.len()).unwrap_or(u16::MAX);
                let old = memory.slot(self.at, self.hw_tail);
                memory.set_slot(self.at, self.hw_tail, Slot { len, flags: more | high_flags, ..old });
                self.hw_tail = (self.hw_tail + 1) % self.at.slots;
            }
            self.queue.pop_front();
        }
        self.finish(memory);
    }
}

/// A NIC.
#[derive(Debug)]
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) shape: NicShape,
    /// NIC's, then the host's.
    pub(super) tx: Vec<Kring>,
    pub(super) rx: Vec<Kring>,
    pub(super) present: bool,
    /// The NIC at the other end of the cable.
    pub(super) cable: Option<usize>,
    pub(super) high_flags: u16,
    /// Frames on the cable, and those passed on to the kernel; how many of each may be.
    outs: [VecDeque<(u16, Vec<u8>)>; 2],
    rooms: [usize; 2],
    /// Exclusively registered rings, by index of tx ring.
    pub(super) exclusive: Vec<bool>,
    pub(super) users: Vec<u32>,
}

fn at(side: Side) -> usize {
    usize::from(side == Side::Host)
}

impl Nic {
    pub(super) fn new(name: &str, shape: NicShape, memory: &mut Memory) -> io::Result<Self> {
        let count = shape.rings + shape.host_rings;
        let mut make = |tx: bool| -> io::Result<Vec<Kring>> {
            (0..count).map(|id| Kring::new(memory, shape.slots, id, tx)).collect()
        };
        Ok(Self {
            name: name.into(),
            shape,
            tx: make(true)?,
            rx: make(false)?,
            present: true,
            cable: None,
            high_flags: 0,
            outs: [VecDeque::new(), VecDeque::new()],
            rooms: [ROOM; 2],
            exclusive: vec![false; count.into()],
            users: vec![0; count.into()],
        })
    }

    /// Index of a ring among all of its direction.
    pub(super) fn index(&self, side: Side, ring: u16) -> usize {
        match side {
            Side::Nic => (ring % self.shape.rings).into(),
            Side::Host => (self.shape.rings + ring % self.shape.host_rings.max(1)).into(),
        }
    }

    pub(super) fn arrive(&mut self, side: Side, ring: u16, frame: Vec<u8>) -> bool {
        let index = self.index(side, ring);
        let Some(kring) = self.rx.get_mut(index) else { return false };
        // As much as the ring has slots waits outside of it.
        if kring.queue.len() >= kring.at.slots as usize {
            return false;
        }
        kring.queue.push_back(frame);
        kring.wake();
        true
    }

    /// Whether ring `index` can take another frame from the cable.
    pub(super) fn has_room(&self, ring: u16) -> bool {
        let kring = &self.rx[self.index(Side::Nic, ring)];
        kring.queue.len() < kring.at.slots as usize
    }

    pub(super) fn out(&mut self, side: Side) -> &mut VecDeque<(u16, Vec<u8>)> {
        &mut self.outs[at(side)]
    }

    pub(super) fn room(&self, side: Side) -> usize {
        self.rooms[at(side)].saturating_sub(self.outs[at(side)].len())
    }

    pub(super) fn set_room(&mut self, side: Side, frames: usize) {
        self.rooms[at(side)] = frames;
    }

    pub(super) fn wake_all(&mut self) {
        self.rx.iter_mut().chain(&mut self.tx).for_each(Kring::wake);
    }

    /// Ring by ring.
    pub(super) fn slot_buffers(&self, memory: &Memory) -> Vec<Vec<u32>> {
        let of = |ring: &Kring| (0..ring.at.slots).map(|index| memory.slot(ring.at, index).buf).collect();
        self.tx.iter().chain(&self.rx).map(of).collect()
    }

    /// Every buffer that stands in a slot.
    pub(super) fn buffers<'a>(&'a self, memory: &'a Memory) -> impl Iterator<Item = u32> + 'a {
        let rings = self.tx.iter().chain(&self.rx);
        rings.flat_map(|ring| (0..ring.at.slots).map(|index| memory.slot(ring.at, index).buf))
    }
}
