//! The structures of netmap's shared memory, by its published API (version 14).
//!
//! ```text
//!  memory ─► netmap_if ── ring_ofs[] ─┬► netmap_ring │ slot │ slot │ …
//!                                     ├► netmap_ring │ slot │ …       slot.buf_idx ─┐
//!                                     └► …                                          │
//!            buffers: ring + buf_ofs + buf_idx × nr_buf_size  ◄─────────────────────┘
//! ```
//!
//! Offsets count from the structure that holds them, so every process may map the memory elsewhere.

use crate::ring::Slot;

/// `struct netmap_if`; `ring_ofs` follows it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetmapIf {
    pub(crate) name: [u8; 16],
    /// 0 in today's module.
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) tx_rings: u32,
    pub(crate) rx_rings: u32,
    /// First of the chain of extra buffers; 0 for none.
    pub(crate) bufs_head: u32,
    pub(crate) host_tx_rings: u32,
    pub(crate) host_rx_rings: u32,
    pub(crate) spare: [u32; 3],
}

const _: () = {
    assert!(size_of::<NetmapIf>() == 56);
    assert!(std::mem::offset_of!(NetmapIf, version) == 16);
    assert!(std::mem::offset_of!(NetmapIf, flags) == 20);
    assert!(std::mem::offset_of!(NetmapIf, tx_rings) == 24);
    assert!(std::mem::offset_of!(NetmapIf, rx_rings) == 28);
    assert!(std::mem::offset_of!(NetmapIf, bufs_head) == 32);
    assert!(std::mem::offset_of!(NetmapIf, host_tx_rings) == 36);
    assert!(std::mem::offset_of!(NetmapIf, host_rx_rings) == 40);
};

/// The part of `struct netmap_ring` in front of its slots. The published one is aligned to 128 bytes, on which nothing depends
/// here: where a ring begins is told by memory that others may write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetmapRing {
    /// From this structure to buffer 0.
    pub(crate) buf_ofs: i64,
    pub(crate) num_slots: u32,
    pub(crate) buf_size: u32,
    pub(crate) ring_id: u16,
    /// [`DIR_TX`] or [`DIR_RX`].
    pub(crate) dir: u16,
    /// User: first slot that it keeps.
    pub(crate) head: u32,
    /// User: wake me when there is something at or behind this slot.
    pub(crate) cur: u32,
    /// Kernel: first slot that it keeps.
    pub(crate) tail: u32,
    pub(crate) flags: u32,
    pub(crate) pad: u32,
    /// Time of the last rxsync: seconds, microseconds.
    pub(crate) time: [i64; 2],
    /// The bits of [`Slot::ptr`] that are an offset in the buffer.
    pub(crate) offset_mask: u64,
    /// Alignment that the device wants for a frame in its buffer.
    pub(crate) buf_align: u64,
    pub(crate) pad2: [u8; 56],
    /// The kernel's.
    pub(crate) sem: [u8; 128],
}

const _: () = {
    assert!(size_of::<NetmapRing>() == SLOTS_OFFSET);
    assert!(align_of::<NetmapRing>() == align_of::<u64>());
    assert!(std::mem::offset_of!(NetmapRing, num_slots) == 8);
    assert!(std::mem::offset_of!(NetmapRing, buf_size) == 12);
    assert!(std::mem::offset_of!(NetmapRing, ring_id) == 16);
    assert!(std::mem::offset_of!(NetmapRing, dir) == 18);
    assert!(std::mem::offset_of!(NetmapRing, head) == 20);
    assert!(std::mem::offset_of!(NetmapRing, cur) == 24);
    assert!(std::mem::offset_of!(NetmapRing, tail) == 28);
    assert!(std::mem::offset_of!(NetmapRing, flags) == 32);
    assert!(std::mem::offset_of!(NetmapRing, time) == 40);
    assert!(std::mem::offset_of!(NetmapRing, offset_mask) == 56);
    assert!(std::mem::offset_of!(NetmapRing, buf_align) == 64);
    assert!(std::mem::offset_of!(NetmapRing, sem) == 128);
    assert!(std::mem::offset_of!(Slot, len) == 4);
    assert!(std::mem::offset_of!(Slot, flags) == 6);
    assert!(std::mem::offset_of!(Slot, ptr) == 8);
};

/// Where the slots of a ring begin.
pub(crate) const SLOTS_OFFSET: usize = 256;
/// [`NetmapRing::dir`] of a transmit ring, as the module fills it (its header's comment says the opposite).
pub(crate) const DIR_TX: u16 = 1;
/// [`NetmapRing::dir`] of a receive ring.
pub(crate) const DIR_RX: u16 = 0;
/// Buffers 0 and 1 are the module's own; no slot of a user's has them.
pub(crate) const FIRST_BUF: u32 = 2;
