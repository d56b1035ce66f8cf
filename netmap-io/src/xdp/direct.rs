//! Frames that fit one of the kernel's buffers: the kernel's rings become slot rings, and nothing is copied.

use super::sys::{Desc, Rings};
use crate::Counters;
use crate::ring::{Slot, SlotRing};

/// Where the exchange with the kernel's rings has got to.
#[derive(Debug)]
pub(super) struct Direct {
    /// First rx slot whose buffer was not given back to the kernel yet.
    rx_returned: u32,
    /// First tx slot that was not handed to the kernel yet.
    tx_handed: u32,
    /// Bits of an address that are the offset in a buffer.
    offset_mask: u64,
    frame_shift: u32,
}

impl Direct {
    /// For buffers of `frame_size` bytes.
    pub(super) fn new(frame_size: u32) -> Self {
        Self {
            rx_returned: 0,
            tx_handed: 0,
            offset_mask: u64::from(frame_size - 1),
            frame_shift: frame_size.trailing_zeros(),
        }
    }

    /// Buffers of the slots that were read go back to the kernel, and arrived frames become slots. Returns the number of
    /// buffers.
    pub(super) fn take_frames(
        &mut self,
        rings: &mut Rings,
        rx: &mut SlotRing,
        counters: &mut Counters,
    ) -> u32 {
        while self.rx_returned != rx.head {
            let slot = rx.slot(self.rx_returned);
            rings.fill.push(u64::from(slot.buf) << self.frame_shift);
            self.rx_returned = rx.next(self.rx_returned);
        }
        let returned = rings.fill.publish();
        let room = rx.num_slots() - 1 - rx.available();
        let frames = rings.rx.refresh().min(room);
        if frames == 0 {
            return returned;
        }
        let mut tail = rx.tail;
        let mut bytes = 0;
        for _ in 0..frames {
            let Some(desc) = rings.rx.pop() else { break };
            let buf = u32::try_from(desc.addr >> self.frame_shift).unwrap_or(u32::MAX);
            let len = u16::try_from(desc.len).unwrap_or(u16::MAX);
            rx.set_slot(tail, Slot { buf, len, flags: 0, ptr: desc.addr & self.offset_mask });
            bytes += u64::from(desc.len);
            tail = rx.next(tail);
        }
        rings.rx.release();
        rx.tail = tail;
        counters.rx_frames += u64::from(frames);
        counters.rx_bytes += bytes;
        returned
    }

    /// Committed slots become descriptors. Returns their number.
    pub(super) fn hand_over(&mut self, rings: &mut Rings, tx: &mut SlotRing, counters: &mut Counters) -> u32 {
        let mut bytes = 0;
        while self.tx_handed != tx.head {
            let slot = tx.slot(self.tx_handed);
            let addr = u64::from(slot.buf) << self.frame_shift | slot.ptr & self.offset_mask;
            rings.tx.push(Desc { addr, len: u32::from(slot.len), options: 0 });
            bytes += u64::from(slot.len);
            self.tx_handed = tx.next(self.tx_handed);
        }
        let frames = rings.tx.publish();
        counters.tx_frames += u64::from(frames);
        counters.tx_bytes += bytes;
        frames
    }

    /// Buffers whose frames have left become free slots.
    pub(super) fn take_sent(&mut self, rings: &mut Rings, tx: &mut SlotRing) {
        let sent = rings.completion.refresh();
        if sent == 0 {
            return;
        }
        let mut tail = tx.tail;
        for _ in 0..sent {
            let Some(addr) = rings.completion.pop() else { break };
            let buf = u32::try_from(addr >> self.frame_shift).unwrap_or(u32::MAX);
            tx.set_slot(tail, Slot { buf, ..Slot::default() });
            tail = tx.next(tail);
        }
        rings.completion.release();
        tx.tail = tail;
    }
}
