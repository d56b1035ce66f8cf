//! The kernel's half of a ring, by the module's own rules.
//!
//! ```text
//!  tx   hw_cur ≤ old head ≤ head ≤ cur ≤ tail          [hw_cur, head) is to be sent, [head, tail) the user's
//!  rx   hw_cur ≤ head ≤ cur ≤ hw_tail                  [hw_cur, head) goes back, [head, tail) the user's
//! ```
//!
//! - A tx sync that finds head or cur elsewhere sends nothing; an rx sync goes on with what there is. Both succeed.
//! - After that, only an index outside the ring sets all three back. One inside is *believed*: its user has lost frames or
//!   buffers, and nobody says so. Here it is noted.
//! - A slot that names no buffer gets buffer 0 and no length then; one that is too long, no length.
//! - A tail that the user wrote over is put right, without a word.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::time::{SystemTime, UNIX_EPOCH};

use super::memory::{Memory, RingAt};
use crate::netmap::abi::ring_flag;
use crate::netmap::layout::{DIR_RX, DIR_TX, NetmapRing};
use crate::ring::{Slot, SlotFlags};

/// What is behind a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// A NIC whose driver knows netmap.
    Hardware,
    /// Any driver, by socket buffers: a slot is a frame, whatever its flags say, and has left when a later sync says so.
    Emulated,
    /// The host's stack.
    Host,
    /// A switch.
    Vale,
    /// The other end of a netmap pipe: slots change places with those of its ring.
    Pipe,
}

/// The kernel's half of a ring.
#[derive(Debug)]
pub(super) struct Kring {
    pub(super) at: RingAt,
    tx: bool,
    pub(super) behind: Behind,
    /// First slot that was not sent (tx) or given back (rx).
    pub(super) hw_cur: u32,
    /// End of what the user may have.
    pub(super) hw_tail: u32,
    /// A pipe's: how far the other end has come.
    pub(super) pipe_tail: u32,
    /// Head, cur and tail of the last sync that made sense.
    pub(super) head: u32,
    cur: u32,
    tail: u32,
    /// The buffer of each slot as the hardware knows it.
    known: Vec<u32>,
    /// The bits of a slot's `ptr` that say where its frame begins, and the largest offset; 0 where frames begin with their buffers.
    offset_mask: u64,
    offset_max: u64,
    /// rx: frames that have no slot yet.
    pub(super) queue: VecDeque<Vec<u8>>,
    /// Rung when a frame comes: descriptors that are bound to it.
    pub(super) bells: Vec<Weak<OwnedFd>>,
}

/// Whether `at` is met on the way from `from` to `to`, both included.
fn lies_between(from: u32, to: u32, at: u32) -> bool {
    if from <= to { (from..=to).contains(&at) } else { at >= from || at <= to }
}

impl Kring {
    pub(super) fn new(
        memory: &mut Memory,
        slots: u32,
        ring_id: u16,
        tx: bool,
        behind: Behind,
        like: Option<&Self>,
    ) -> io::Result<Self> {
        let tail = if tx { slots - 1 } else { 0 };
        let shape = (slots, ring_id, if tx { DIR_TX } else { DIR_RX }, tail);
        let at = memory.make_ring(shape, like.map(|other| other.at))?;
        let known = (0..slots).map(|index| memory.slot(at, index).buf).collect();
        let (queue, bells) = (VecDeque::new(), Vec::new());
        let (hw_tail, pipe_tail) = (tail, tail);
        Ok(Self {
            at,
            tx,
            behind,
            hw_cur: 0,
            hw_tail,
            pipe_tail,
            head: 0,
            cur: 0,
            tail,
            known,
            offset_mask: 0,
            offset_max: 0,
            queue,
            bells,
        })
    }

    /// Frames begin at offsets from now on, those of all slots at `first` if that is said; the largest that there is.
    ///
    /// # Errors
    /// EBUSY: others use the ring with less.
    pub(super) fn set_offsets(
        &mut self,
        memory: &Memory,
        (mask, max): (u64, u64),
        first: Option<u64>,
    ) -> io::Result<u64> {
        if self.offset_mask == 0 {
            self.agree_on_offsets(memory, mask, max);
        } else if self.offset_mask & mask != mask || self.offset_max < max {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if let Some(first) = first {
            self.begin_at(memory, first);
        }
        Ok(self.offset_max)
    }

    /// Nobody uses the ring: its next user finds none.
    pub(super) fn end_offsets(&mut self, memory: &Memory) {
        if self.offset_mask != 0 {
            self.begin_at(memory, 0);
            self.agree_on_offsets(memory, 0, 0);
        }
    }

    fn agree_on_offsets(&mut self, memory: &Memory, mask: u64, max: u64) {
        (self.offset_mask, self.offset_max) = (mask, max);
        // SAFETY: as in `header`; the mask is the kernel's to write.
        unsafe { (&raw mut (*memory.header(self.at).as_ptr()).offset_mask).write_volatile(mask) };
    }

    fn begin_at(&self, memory: &Memory, offset: u64) {
        for index in 0..self.at.slots {
            let slot = memory.slot(self.at, index);
            memory.set_slot(self.at, index, Slot { ptr: slot.ptr & !self.offset_mask | offset, ..slot });
        }
    }

    /// Where the frame of a slot begins: no further than was agreed, whatever it says.
    fn offset(&self, slot: Slot) -> usize {
        usize::try_from((slot.ptr & self.offset_mask).min(self.offset_max)).unwrap_or(0)
    }

    pub(super) fn next(&self, index: u32) -> u32 {
        (index + 1) % self.at.slots
    }

    pub(super) fn before(&self, index: u32) -> u32 {
        (index + self.at.slots - 1) % self.at.slots
    }

    /// Whether a slot's buffer counts as this ring's: always, but for a pipe's, whose other end has the rest.
    pub(super) fn is_users(&self, index: u32) -> bool {
        let slots = self.at.slots;
        let away = (index + slots - self.hw_cur) % slots;
        let end = (self.pipe_tail + slots - self.hw_cur) % slots;
        self.behind != Behind::Pipe || away < end || (self.tx && away == end)
    }

    /// Free slots that the kernel has for frames that come; one always stays empty.
    pub(super) fn room(&self) -> u32 {
        (self.before(self.hw_cur) + self.at.slots - self.hw_tail) % self.at.slots
    }

    pub(super) fn wake(&mut self) {
        self.bells.retain(|bell| match bell.upgrade() {
            Some(bell) => {
                crate::pipe::sys::ring(&bell);
                true
            }
            None => false,
        });
    }

    fn header(&self, memory: &Memory) -> NetmapRing {
        // SAFETY: the header is in the mapping; every bit pattern is a value. Volatile: its user writes it.
        unsafe { memory.header(self.at).read_volatile() }
    }

    fn write(&self, memory: &Memory, head: u32, cur: u32, tail: u32) {
        let header = memory.header(self.at).as_ptr();
        // SAFETY: as in `header`.
        unsafe {
            (&raw mut (*header).head).write_volatile(head);
            (&raw mut (*header).cur).write_volatile(cur);
            (&raw mut (*header).tail).write_volatile(tail);
        }
    }

    /// Writes the user's words in its place, where they stand outside of the ring.
    pub(super) fn set_words(&self, memory: &Memory, head: u32, cur: u32) {
        let NetmapRing { tail, .. } = self.header(memory);
        self.write(memory, head, cur, tail);
    }

    /// Takes over head and cur, if they make sense.
    pub(super) fn prologue(&mut self, memory: &Memory, violations: &mut Vec<String>) -> bool {
        let NetmapRing { head, cur, tail, .. } = self.header(memory);
        let (from, to) = if self.tx { (self.head, self.tail) } else { (self.hw_cur, self.hw_tail) };
        let good = head < self.at.slots && lies_between(from, to, head) && lies_between(head, to, cur);
        if good || !self.tx {
            (self.head, self.cur) = (head, cur);
        }
        if !good {
            let words = format!("{}: head {head}, cur {cur}, tail {tail}", self.name());
            violations.push(words);
            self.reinit(memory, violations);
            return false;
        }
        if tail != self.tail {
            violations.push(format!("{}: tail {tail} stands where {} was", self.name(), self.tail));
            self.write(memory, head, cur, self.tail);
        }
        true
    }

    /// What the module does to a ring that makes no sense.
    fn reinit(&mut self, memory: &Memory, violations: &mut Vec<String>) {
        let NetmapRing { head, cur, tail, .. } = self.header(memory);
        (self.head, self.cur, self.tail) = (head, cur, tail);
        for index in 0..self.at.slots {
            let slot = memory.slot(self.at, index);
            if !memory.is_buffer(slot.buf) {
                violations.push(format!("{}: slot {index} has buffer {}", self.name(), slot.buf));
                memory.set_slot(self.at, index, Slot { buf: 0, len: 0, ..slot });
            } else if u32::from(slot.len) > memory.buf_size() {
                violations.push(format!("{}: slot {index} has {} bytes", self.name(), slot.len));
                memory.set_slot(self.at, index, Slot { len: 0, ..slot });
            }
        }
        let slots = self.at.slots;
        if head >= slots || cur >= slots || tail >= slots {
            (self.head, self.cur, self.tail) = (self.hw_cur, self.hw_cur, self.hw_tail);
            self.write(memory, self.head, self.cur, self.tail);
        }
    }

    fn name(&self) -> String {
        format!("{} ring of {} slots", if self.tx { "tx" } else { "rx" }, self.at.slots)
    }

    pub(super) fn finish(&mut self, memory: &Memory) {
        self.tail = self.hw_tail;
        // SAFETY: as in `header`.
        unsafe { (&raw mut (*memory.header(self.at).as_ptr()).tail).write_volatile(self.tail) };
    }

    /// Writes the time, for whoever asks for it. (The module asks nobody, unless `no_timestamp` is set.)
    pub(super) fn stamp(&self, memory: &Memory) {
        if self.header(memory).flags & ring_flag::TIMESTAMP == 0 {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = [i64::try_from(now.as_secs()).unwrap_or(0), i64::from(now.subsec_micros())];
        // SAFETY: as in `header`; the time is the kernel's to write.
        unsafe { (&raw mut (*memory.header(self.at).as_ptr()).time).write_volatile(time) };
    }

    /// The slot as whatever is behind the ring sees it. A NIC has the buffer that it was told of, everything else reads
    /// the slot.
    pub(super) fn taken(&mut self, memory: &Memory, index: u32, violations: &mut Vec<String>) -> Slot {
        let slot = memory.unmark(self.at, index);
        let known = &mut self.known[index as usize];
        if slot.flags & SlotFlags::BUF_CHANGED != 0 {
            *known = slot.buf;
        } else if *known != slot.buf {
            violations.push(format!("slot {index}: buffer {known} became {} without a word", slot.buf));
        }
        let buf = if self.behind == Behind::Hardware { *known } else { slot.buf };
        if !memory.is_buffer(buf) {
            violations.push(format!("slot {index}: buffer {buf} is none"));
        }
        Slot { buf, ..slot }
    }

    /// `NIOCTXSYNC`: frames that are whole, as long as `take` takes them.
    pub(super) fn tx_sync(
        &mut self,
        memory: &Memory,
        violations: &mut Vec<String>,
        mut take: impl FnMut(&mut Vec<u8>) -> bool,
    ) {
        if !self.prologue(memory, violations) {
            return;
        }
        let (head, sent_before) = (self.head, self.hw_cur);
        while self.hw_cur != head {
            let (mut frame, mut end, mut whole) = (Vec::new(), self.hw_cur, false);
            while end != head && !whole {
                let slot = self.taken(memory, end, violations);
                let offset = self.offset(slot);
                let room = memory.buf_size() as usize - offset;
                if slot.len == 0 || usize::from(slot.len) > room {
                    violations.push(format!("slot {end}: {} bytes to send from {offset} on", slot.len));
                }
                frame.extend(memory.read_at(slot.buf, offset, usize::from(slot.len).min(room)));
                let more = slot.flags & SlotFlags::MORE_FRAG != 0;
                whole = !more || self.behind != Behind::Hardware;
                if more && whole {
                    violations.push(format!("slot {end}: a piece of a frame, where every slot is a frame"));
                }
                end = self.next(end);
            }
            // Of what is not even a link header long, the host's stack gets nothing.
            let too_short = self.behind == Behind::Host && frame.len() < 14;
            if !whole || (!too_short && !take(&mut frame)) {
                break;
            }
            self.hw_cur = end;
        }
        let left = if self.behind == Behind::Emulated { sent_before } else { self.hw_cur };
        self.hw_tail = self.before(left);
        self.finish(memory);
    }

    /// `NIOCTXSYNC` of a port of a switch, which takes all there is: what was committed, and the buffers are free again.
    pub(super) fn tx_sync_whole(&mut self, memory: &Memory, violations: &mut Vec<String>) -> Vec<Slot> {
        if !self.prologue(memory, violations) {
            return Vec::new();
        }
        let mut slots = Vec::new();
        while self.hw_cur != self.head {
            slots.push(self.taken(memory, self.hw_cur, violations));
            self.hw_cur = self.next(self.hw_cur);
        }
        self.hw_tail = self.before(self.hw_cur);
        self.finish(memory);
        slots
    }

    /// `NIOCRXSYNC`: gives slots back and fills them from the queue. Only an emulated NIC does it in this order: everything
    /// else fills what was given back before.
    pub(super) fn rx_sync(&mut self, memory: &Memory, high_flags: u16, violations: &mut Vec<String>) {
        // An rx ring that was set right is synced all the same.
        self.prologue(memory, violations);
        if self.behind == Behind::Emulated {
            self.release(memory, violations);
            self.fill(memory, high_flags);
        } else {
            self.fill(memory, high_flags);
            self.release(memory, violations);
        }
        self.finish(memory);
        self.stamp(memory);
    }

    fn release(&mut self, memory: &Memory, violations: &mut Vec<String>) {
        while self.hw_cur != self.head {
            self.taken(memory, self.hw_cur, violations);
            self.hw_cur = self.next(self.hw_cur);
        }
    }

    fn fill(&mut self, memory: &Memory, high_flags: u16) {
        let chunk = memory.buf_size() as usize - usize::try_from(self.offset_max).unwrap_or(0);
        while let Some(frame) = self.queue.pop_front() {
            let pieces: Vec<&[u8]> = frame.chunks(chunk).collect();
            if !self.put(memory, &pieces, high_flags) {
                self.queue.push_front(frame);
                break;
            }
        }
    }

    /// Places a frame in the next slots; `false`: there are too few.
    pub(super) fn put(&mut self, memory: &Memory, pieces: &[&[u8]], high_flags: u16) -> bool {
        if (self.room() as usize) < pieces.len() {
            return false;
        }
        for (place, piece) in pieces.iter().enumerate() {
            let old = memory.slot(self.at, self.hw_tail);
            let buf =
                if self.behind == Behind::Hardware { self.known[self.hw_tail as usize] } else { old.buf };
            memory.write_at(buf, self.offset(old), piece);
            let more = if place + 1 < pieces.len() { SlotFlags::MORE_FRAG } else { 0 };
            let len = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            memory.set_slot(self.at, self.hw_tail, Slot { len, flags: more | high_flags, ..old });
            self.hw_tail = self.next(self.hw_tail);
        }
        true
    }
}
