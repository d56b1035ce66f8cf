//! Short frames come here: the steering program copies them into a ring buffer of BPF's, and the kernel is done with them.
//!
//! ```text
//!  ring buffer:  [ busy? │ length │ frame length │ frame, room to the record's end ] [ … ] …
//!                ▲ read, not released              program ──► ▲ producer
//!
//!  signs:        asleep  the port is about to sleep: the next short frame is to wake it
//!                filters somebody filters what packet sockets send and get: nothing is to pass that by
//!                apart   frames wait in packet sockets (they are long, or the ring was full): later ones go there as well
//!                marked  number of frames that went there
//! ```
//!
//! A packet socket costs a frame its filter, a slot, a wake-up of whoever polls, and the way through IP; here it costs one
//! copy. The kernel's own way to wake a reader of such a ring is an interrupt of the core to itself, which is dear in a virtual
//! machine. So to wake us the program lets the frame go on to a packet socket as well, which keeps one byte of it.
//!
//! Ground rules
//!
//! - Frames are read in the order in which they came: all of the ring first, then packet sockets. That is right because
//!   nothing enters the ring while something is apart. `apart` ends when as many frames have come out of the sockets as were
//!   marked for them.
//! - `asleep` is set before the last look into the ring; the program looks at it behind its record: one of both sees the other.
//! - A record is ours once it is not busy (Acquire) until the consumer's index passes it (Release).
//! - Lengths in a record are the program's, and checked against the ring all the same.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use crate::sys::{Mapping, page_bytes};

/// Bytes of the ring; a power of two, and whole pages of any machine.
pub(in crate::xdp) const RING: u32 = 512 * 1024;
/// Room for a frame in a record, short and long ones: the length of the frame stands in front of it.
pub(in crate::xdp) const ROOMS: [u16; 2] = [248, 1592];
/// Where the frame begins in a record.
pub(in crate::xdp) const FRAME_AT: i16 = 8;
/// Where the signs stand. The program writes the two behind, we write the first, and the steering the second.
pub(in crate::xdp) const ASLEEP_AT: i16 = 0;
pub(in crate::xdp) const FILTERS_AT: i16 = 4;
pub(in crate::xdp) const APART_AT: i16 = 64;
pub(in crate::xdp) const MARKED_AT: i16 = 68;
/// The signs as a map's value.
pub(in crate::xdp) type Signs = [u64; 16];
/// So many looks may find the sockets empty before a frame that was marked counts as lost on its way to us.
const LOOKS_MAX: u32 = 64;

/// `struct bpf_ringbuf_hdr`, and what its first word says beside the length.
const HEADER: usize = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// Our end of the ring.
#[derive(Debug)]
pub(super) struct Records {
    consumer: Mapping,
    /// The producer's page, and the ring twice behind it: a record that goes round lies in one piece.
    producer: Mapping,
    signs: Mapping,
    data_at: usize,
    read: usize,
    released: usize,
    /// Frames that came out of packet sockets.
    taken: u32,
    looks: u32,
    armed: bool,
}

impl Records {
    /// `ring` and `signs` are the maps.
    pub(super) fn new(ring: BorrowedFd<'_>, signs: BorrowedFd<'_>) -> io::Result<Self> {
        let page = page_bytes();
        let offset = libc::off_t::try_from(page).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self {
            consumer: Mapping::shared(ring, 0, page)?,
            producer: Mapping::shared_to_read(ring, offset, page + 2 * RING as usize)?,
            signs: Mapping::shared(signs, 0, page)?,
            data_at: page,
            read: 0,
            released: 0,
            taken: 0,
            looks: 0,
            armed: false,
        })
    }

    fn produced(&self) -> usize {
        // SAFETY: the first word of the page, which the kernel writes whole; aligned as pages are.
        let word = unsafe { AtomicUsize::from_ptr(self.producer.base().cast().as_ptr()) };
        // Acquire: records are marked busy before the index passes them.
        word.load(Ordering::Acquire)
    }

    fn sign(&self, at: i16) -> &AtomicU32 {
        let at = usize::try_from(at).unwrap_or(0);
        // SAFETY: an aligned word of the signs' page; program and port change it in one step.
        unsafe { AtomicU32::from_ptr(self.signs.at(at).cast().as_ptr()) }
    }

    /// The record that is read next.
    fn record(&self) -> NonNull<u8> {
        self.producer.at(self.data_at + (self.read & (RING as usize - 1)))
    }

    /// The next frame, which stays ours until [`Self::publish`]; `None`: no whole one is there.
    #[inline]
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        while self.read != self.produced() {
            let record = self.record();
            // SAFETY: the head of a record, aligned to 8 bytes as records are; the kernel writes it whole.
            let head = unsafe { AtomicU32::from_ptr(record.cast().as_ptr()) };
            // Acquire: what is in the record was written before it ceased to be busy.
            let head = head.load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let room = (head & !(BUSY | DISCARDED)).min(RING) as usize;
            self.read = self.read.wrapping_add((HEADER + room).next_multiple_of(8));
            let start = HEADER + FRAME_AT as usize;
            // SAFETY: a word behind the head: no record of ours has less than room for it, and the ring is mapped twice, so that
            // it is inside the mapping wherever the record begins.
            let len = unsafe { record.add(HEADER).cast::<u32>().read_volatile() } as usize;
            if head & DISCARDED != 0 || len + FRAME_AT as usize > room {
                continue;
            }
            // SAFETY: inside the record by the check above, whose room is no more than the ring: inside the mapping. Nobody
            // writes to it before the consumer's index passes it.
            return Some(unsafe { std::slice::from_raw_parts(record.add(start).as_ptr(), len) });
        }
        None
    }

    /// What was read may be overwritten.
    pub(super) fn publish(&mut self) {
        if self.read != self.released {
            self.released = self.read;
            // SAFETY: the first word of the page, which we alone write; aligned as pages are.
            let word = unsafe { AtomicUsize::from_ptr(self.consumer.base().cast().as_ptr()) };
            // Release: what we read of it, we have read.
            word.store(self.read, Ordering::Release);
        }
    }

    /// Whether all was read.
    pub(super) fn is_empty(&self) -> bool {
        self.read == self.produced()
    }

    /// Whether frames go to packet sockets.
    pub(super) fn apart(&self) -> bool {
        self.sign(APART_AT).load(Ordering::Acquire) != 0
    }

    #[cfg(test)]
    /// Frames that went to packet sockets.
    pub(super) fn marked(&self) -> u32 {
        self.sign(MARKED_AT).load(Ordering::Acquire)
    }

    #[cfg(test)]
    /// Records of that size that ever came, and frames that went to packet sockets.
    pub(super) fn counts(&self, record: usize) -> [u32; 2] {
        [u32::try_from(self.produced() / record).unwrap(), self.marked()]
    }

    /// A frame came out of a packet socket.
    pub(super) fn took(&mut self) {
        self.taken = self.taken.wrapping_add(1);
    }

    /// Packet sockets are empty: frames come here again, unless some are still on their way to them.
    pub(super) fn join(&mut self) {
        let marked = self.sign(MARKED_AT).load(Ordering::Acquire);
        self.looks += 1;
        if self.taken == marked || self.looks > LOOKS_MAX {
            (self.taken, self.looks) = (marked, 0);
            self.sign(APART_AT).store(0, Ordering::Release);
        }
    }

    /// The next frame is to wake us; false: one is here already.
    pub(super) fn arm(&mut self) -> bool {
        self.armed = true;
        self.sign(ASLEEP_AT).store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let quiet = self.is_empty();
        if !quiet {
            self.disarm();
        }
        quiet
    }

    /// We are awake.
    #[inline]
    pub(super) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.sign(ASLEEP_AT).store(0, Ordering::Relaxed);
        }
    }
}
