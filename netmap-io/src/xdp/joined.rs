//! Frames that are longer than one of the kernel's buffers: jumbo frames, and in generic mode what the kernel has joined.
//!
//! ```text
//!  kernel ─► rx ring ─► piece │ piece │ piece ──copy──► one long slot ─► user
//!  kernel ◄─ tx ring ◄─ piece │ piece │ piece ◄─copy─── one long slot ◄─ user
//! ```
//!
//! A buffer of AF_XDP holds at most a page. A longer frame comes and goes as a chain of descriptors, all but the last marked
//! `XDP_PKT_CONTD`. Users of a port want a frame in one piece (its payload is copied once more anyway), so it is put
//! together here, and taken apart; a buffer of the kernel's goes back at once. The copy costs less than the frames that a
//! jumbo frame saves. Ports of ordinary MTU in native mode don't come here.

use super::sys::{Desc, Rings};
use crate::Counters;
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};

/// Bytes of one of the kernel's buffers: the most that AF_XDP has.
pub(super) const PIECE: u32 = 4096;
/// Long slots of a ring at most.
pub(super) const SLOTS_MAX: u32 = 256;
/// Pieces of one frame to send at most: what the oldest kernels' socket buffers take (`MAX_SKB_FRAGS`).
const PIECES_MAX: usize = 17;

/// The kernel's buffers behind long slots.
#[derive(Debug)]
pub(super) struct Joined {
    /// A view of them; which ring's is all the same.
    pieces: SlotRing,
    /// Buffers that nobody uses; frames to send go there.
    free: Vec<u32>,
    /// Bytes of the frame at the rx ring's tail that have come; its last piece has not.
    come: usize,
    /// What is coming fits no slot.
    too_long: bool,
    /// First tx slot that was not handed to the kernel yet.
    handed: u32,
    /// Frames that fitted no slot.
    dropped: u64,
    _memory: SlotMemory,
}

impl Joined {
    /// `memory` is what the kernel was told: the first `fill_slots` buffers are for receiving.
    pub(super) fn new(memory: SlotMemory, fill_slots: u32, tx_slots: u32) -> Self {
        let (pieces, _) = memory.rings();
        Self {
            pieces,
            free: (fill_slots..fill_slots + tx_slots).collect(),
            come: 0,
            too_long: false,
            handed: 0,
            dropped: 0,
            _memory: memory,
        }
    }

    /// Arrived pieces become frames, and their buffers go back. Returns the number of those.
    pub(super) fn take_frames(
        &mut self,
        rings: &mut Rings,
        rx: &mut SlotRing,
        counters: &mut Counters,
    ) -> u32 {
        let mut left = rings.rx.refresh();
        if left == 0 {
            return 0;
        }
        while left > 0 && rx.next(rx.tail) != rx.head {
            let Some(desc) = rings.rx.pop() else { break };
            left -= 1;
            self.append(desc, rx);
            rings.fill.push(desc.addr & !u64::from(PIECE - 1));
            if desc.options & libc::XDP_PKT_CONTD == 0 {
                self.finish(rx, counters);
            }
        }
        rings.rx.release();
        rings.fill.publish()
    }

    /// Copies one piece to the end of the frame at tail.
    fn append(&mut self, desc: Desc, rx: &mut SlotRing) {
        let buf = u32::try_from(desc.addr / u64::from(PIECE)).unwrap_or(u32::MAX);
        let len = u16::try_from(desc.len).unwrap_or(u16::MAX);
        let piece = self.pieces.frame(Slot { buf, len, flags: 0, ptr: desc.addr });
        let end = self.come + desc.len as usize;
        let room = rx.buffer(rx.slot(rx.tail)).and_then(|buffer| buffer.get_mut(self.come..end));
        match (piece, room) {
            (Some(piece), Some(room)) if end <= usize::from(u16::MAX) => room.copy_from_slice(piece),
            _ => self.too_long = true,
        }
        self.come = end;
    }

    /// The frame at tail is whole.
    fn finish(&mut self, rx: &mut SlotRing, counters: &mut Counters) {
        let len = std::mem::take(&mut self.come);
        if std::mem::take(&mut self.too_long) {
            self.dropped += 1;
            return;
        }
        let slot = rx.slot(rx.tail);
        rx.set_slot(rx.tail, Slot { len: u16::try_from(len).unwrap_or(0), flags: 0, ptr: 0, ..slot });
        rx.tail = rx.next(rx.tail);
        counters.rx_frames += 1;
        counters.rx_bytes += len as u64;
    }

    /// Committed slots become pieces, as many as there are buffers for. Returns the number of frames.
    pub(super) fn hand_over(&mut self, rings: &mut Rings, tx: &mut SlotRing, counters: &mut Counters) -> u32 {
        let mut frames = 0;
        while self.waits(tx) {
            match tx.frame(tx.slot(self.handed)) {
                Some(frame) if !frame.is_empty() && frame.len() <= PIECES_MAX * PIECE as usize => {
                    let count = frame.len().div_ceil(PIECE as usize);
                    if count > self.free.len() || count > rings.tx.room() as usize {
                        break;
                    }
                    self.cut(frame, rings);
                    frames += 1;
                    counters.tx_frames += 1;
                    counters.tx_bytes += frame.len() as u64;
                }
                _ => tx.bad_slots += 1,
            }
            self.handed = tx.next(self.handed);
            tx.tail = tx.next(tx.tail);
        }
        rings.tx.publish();
        frames
    }

    /// Copies a frame into free buffers and writes their descriptors.
    fn cut(&mut self, frame: &[u8], rings: &mut Rings) {
        let mut left = frame.len();
        for piece in frame.chunks(PIECE as usize) {
            left -= piece.len();
            let Some(buf) = self.free.pop() else { return };
            let room = self.pieces.buffer(Slot { buf, ..Slot::default() });
            if let Some(room) = room.and_then(|room| room.get_mut(..piece.len())) {
                room.copy_from_slice(piece);
            }
            let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
            let len = u32::try_from(piece.len()).unwrap_or(0);
            rings.tx.push(Desc { addr: u64::from(buf) * u64::from(PIECE), len, options });
        }
    }

    /// Whether committed frames wait for buffers.
    pub(super) fn waits(&self, tx: &SlotRing) -> bool {
        self.handed != tx.head
    }

    /// Buffers whose frames have left are free.
    pub(super) fn take_sent(&mut self, rings: &mut Rings) {
        if rings.completion.refresh() == 0 {
            return;
        }
        while let Some(addr) = rings.completion.pop() {
            self.free.push(u32::try_from(addr / u64::from(PIECE)).unwrap_or(u32::MAX));
        }
        rings.completion.release();
    }

    /// Frames that came and fitted no slot.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
