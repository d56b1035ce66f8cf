//! Slots and buffers of a port that has no slot rings of its own device (AF_XDP, TAP, layers).

use std::io;

use crate::ring::{Buffers, Slot, SlotRing};
use crate::sys::Mapping;

/// An rx and a tx ring over one memory. Buffer `i` starts in slot `i` of the rx ring, those behind in
/// the tx ring.
#[derive(Debug)]
pub(crate) struct SlotMemory {
    slots: Mapping,
    buffers: Mapping,
    rx_slots: u32,
    tx_slots: u32,
    frame_size: u32,
}

impl SlotMemory {
    /// Allocates everything and writes the slots.
    pub(crate) fn new(rx_slots: u32, tx_slots: u32, frame_size: u32) -> io::Result<Self> {
        let bytes = Self::bytes(rx_slots, tx_slots, frame_size);
        Self::over(Mapping::anonymous(bytes)?.in_large_pages(), rx_slots, tx_slots, frame_size)
    }

    /// The same, but buffers take memory only as they are used: for long ones, of which most carry short frames.
    pub(crate) fn on_demand(rx_slots: u32, tx_slots: u32, frame_size: u32) -> io::Result<Self> {
        let bytes = Self::bytes(rx_slots, tx_slots, frame_size);
        Self::over(Mapping::on_demand(bytes)?, rx_slots, tx_slots, frame_size)
    }

    fn bytes(rx_slots: u32, tx_slots: u32, frame_size: u32) -> usize {
        (rx_slots as usize + tx_slots as usize) * frame_size as usize
    }

    fn over(buffers: Mapping, rx_slots: u32, tx_slots: u32, frame_size: u32) -> io::Result<Self> {
        let slots = Mapping::anonymous((rx_slots as usize + tx_slots as usize) * size_of::<Slot>())?;
        let memory = Self { slots, buffers, rx_slots, tx_slots, frame_size };
        let (mut rx, mut tx) = memory.rings();
        for index in 0..rx_slots {
            rx.set_slot(index, Slot { buf: index, ..Slot::default() });
        }
        for index in 0..tx_slots {
            tx.set_slot(index, Slot { buf: rx_slots + index, ..Slot::default() });
        }
        Ok(memory)
    }

    /// The packet memory.
    pub(crate) fn buffers(&self) -> &Mapping {
        &self.buffers
    }

    /// Both rings, empty. The port keeps them together with `self`, once.
    pub(crate) fn rings(&self) -> (SlotRing, SlotRing) {
        let first = self.slots.at(0).cast::<Slot>();
        let second = self.slots.at(self.rx_slots as usize * size_of::<Slot>()).cast::<Slot>();
        let offsets = u64::from(self.frame_size.next_power_of_two() - 1);
        // SAFETY: the mapping has `rx_slots + tx_slots` slots and as many buffers; it is page-aligned, and
        // the port drops its rings together with this memory.
        unsafe {
            let count = self.rx_slots + self.tx_slots;
            let buffers = Buffers::new(self.buffers.base(), count, self.frame_size);
            (
                SlotRing::new(first, self.rx_slots, buffers, offsets),
                SlotRing::new(second, self.tx_slots, buffers, offsets),
            )
        }
    }
}
