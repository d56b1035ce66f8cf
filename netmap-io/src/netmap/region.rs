//! Finds the rings in a region of netmap's memory.

use std::sync::Arc;

use super::layout::{DIR_RX, DIR_TX, FIRST_BUF, NetmapIf, NetmapRing, SLOTS_OFFSET};
use super::user::UserRing;
use crate::ring::{Buffers, Slot};
use crate::sys::Mapping;

/// Which rings of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The device's.
    Nic,
    /// Those of the host's stack.
    Host,
}

/// A mapped region and the interface in it.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) memory: Arc<Mapping>,
    interface: NetmapIf,
    offset: usize,
}

impl Region {
    /// The interface at `offset`, as the register request returned it.
    ///
    /// # Errors
    /// What makes no sense about it.
    pub(crate) fn new(memory: Arc<Mapping>, offset: usize) -> Result<Self, &'static str> {
        let end = offset.checked_add(size_of::<NetmapIf>()).ok_or("the interface's offset overflows")?;
        if end > memory.len() || !offset.is_multiple_of(align_of::<u64>()) {
            return Err("the interface is outside the region");
        }
        // SAFETY: in the mapping by the check above; every bit pattern is a value of the structure.
        let interface = unsafe { memory.at(offset).cast::<NetmapIf>().read_volatile() };
        Ok(Self { memory, interface, offset })
    }

    /// By the rules of API 11 and 12: there is one pair of host rings, and the interface says nothing of it.
    pub(crate) fn with_one_host_pair(mut self) -> Self {
        (self.interface.host_tx_rings, self.interface.host_rx_rings) = (1, 1);
        self
    }

    /// First of the extra buffers; 0 for none.
    pub(crate) fn bufs_head(&self) -> u32 {
        self.interface.bufs_head
    }

    /// Gives a chain of extra buffers back: the module frees it when the handle is closed.
    pub(crate) fn set_bufs_head(&self, head: u32) {
        // SAFETY: `new` found the interface to be in the mapping; this word of it is the user's.
        unsafe {
            let interface = self.memory.at(self.offset).cast::<NetmapIf>().as_ptr();
            (&raw mut (*interface).bufs_head).write_volatile(head);
        }
    }

    /// Where the `index`-th entry of `ring_ofs` points.
    fn ring_offset(&self, index: usize) -> Result<usize, &'static str> {
        let at = self.offset + size_of::<NetmapIf>() + index * size_of::<i64>();
        if at + size_of::<i64>() > self.memory.len() {
            return Err("the table of rings is outside the region");
        }
        // SAFETY: in the mapping by the check above.
        let from_interface = unsafe { self.memory.at(at).cast::<i64>().read_volatile() };
        if from_interface == 0 {
            return Err("the ring has no memory");
        }
        let start = i64::try_from(self.offset).map_err(|_| "the interface's offset overflows")?;
        let ring = start.checked_add(from_interface).and_then(|ring| usize::try_from(ring).ok());
        let ring = ring.filter(|ring| ring.is_multiple_of(align_of::<u64>()));
        ring.filter(|ring| ring + SLOTS_OFFSET <= self.memory.len()).ok_or("a ring is outside the region")
    }

    /// The user's half of ring `number` of one direction and side.
    ///
    /// # Errors
    /// What makes no sense about it.
    pub(crate) fn ring(&self, tx: bool, side: Side, number: u32) -> Result<UserRing, &'static str> {
        let NetmapIf { tx_rings, host_tx_rings, rx_rings, .. } = self.interface;
        // tx rings of the device, then of the host, then rx rings of the device, then of the host.
        let base = match (tx, side) {
            (true, Side::Nic) => 0,
            (true, Side::Host) => tx_rings,
            (false, Side::Nic) => tx_rings.saturating_add(host_tx_rings),
            (false, Side::Host) => tx_rings.saturating_add(host_tx_rings).saturating_add(rx_rings),
        };
        let at = self.ring_offset(base.saturating_add(number) as usize)?;
        // SAFETY: `ring_offset` checked that the header is in the mapping.
        let header = unsafe { self.memory.at(at).cast::<NetmapRing>().as_ptr().read_volatile() };
        if header.dir != if tx { DIR_TX } else { DIR_RX } {
            return Err("a ring has the other direction");
        }
        let slots_end = at + SLOTS_OFFSET + header.num_slots as usize * size_of::<Slot>();
        if !(2..=1 << 20).contains(&header.num_slots) || slots_end > self.memory.len() {
            return Err("a ring's slots are outside the region");
        }
        if header.buf_size < 64 || header.buf_size > 1 << 16 {
            return Err("a ring's buffers have an odd size");
        }
        let start = i64::try_from(at).ok().and_then(|at| at.checked_add(header.buf_ofs));
        let start =
            start.and_then(|start| usize::try_from(start).ok()).filter(|start| *start < self.memory.len());
        let start = start.ok_or("a ring's buffers are outside the region")?;
        let count = (self.memory.len() - start) / header.buf_size as usize;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // SAFETY: slots and `count` buffers were found to be in the mapping, which outlives the ring in the
        // port that holds both. Registration made us the ring's only user.
        unsafe {
            let buffers = Buffers::new(self.memory.at(start), count, header.buf_size).from(FIRST_BUF);
            Ok(UserRing::new(self.memory.at(at).cast(), header.num_slots, buffers, header.offset_mask))
        }
    }
}
