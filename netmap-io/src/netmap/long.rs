//! Frames that are longer than a slot: segments that a virtio-net header lets the other side cut, and packets of an interface
//! whose MTU is larger than netmap's buffers.
//!
//! ```text
//!  netmap rx ring ─► piece │ piece │ piece ──copy──► one long slot ─► user        (NS_MOREFRAG on all but the last)
//!  netmap tx ring ◄─ piece │ piece │ piece ◄─copy─── one long slot ◄─ user
//! ```
//!
//! Users of a port want a frame in one piece, so it is put together here, and taken apart. The copy costs less than the frames
//! that a long one saves. What comes is read in netmap's own ring until the first frame of several slots comes: any port of a
//! switch may send one, and a NIC in emulated mode passes on what the kernel has joined (GRO, or a veth's peer that leaves
//! cutting to others). What goes out needs long slots only behind a header, or with an MTU above netmap's buffers.
//!
//! - Frames that find no long slot free stay in netmap's ring, and so push back.
//! - A frame of more than [`LONG`] bytes, or of more pieces than the module tells of, is dropped and counted.
//! - Headers of 12 bytes carry two more than ours; they are left out, and sent as zeroes.
//! - Pieces are copied, though a switch could fetch them from our own memory (`NS_INDIRECT`): where the ports of a switch differ in
//!   their headers, the module reads such a frame's headers without asking whether the address may be read, which stops a
//!   kernel whose processor keeps it from that.

use std::time::Duration;

use super::NetmapPort;
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotFlags, SlotRing};
use crate::{Caps, Counters, PollFd, PollFds, Port, PortError, RxRing, TxRing};

/// Bytes of a long slot.
const LONG: u32 = 65_536;
/// Slots of the long rings.
const SLOTS: u32 = 256;
/// Pieces of one frame at most (`NETMAP_MAX_FRAGS`).
const PIECES_MAX: usize = 64;
/// The virtio-net header that users of the port see.
pub(super) const HEADER: usize = 10;

/// A netmap port with long slots in front.
#[derive(Debug)]
pub(super) struct LongPort {
    inner: NetmapPort,
    caps: Caps,
    /// Frames go out by long slots.
    long_tx: bool,
    /// Frames are put together.
    joins: bool,
    rx: SlotRing,
    tx: SlotRing,
    /// Bytes of the frame at the long rx ring's tail that have come; its last piece has not.
    come: usize,
    /// Pieces of it.
    pieces: usize,
    /// What is coming fits no slot.
    too_long: bool,
    /// Bytes that a header of the module's has more than ours.
    surplus: usize,
    /// First long tx slot that was not handed to the module yet.
    handed: u32,
    counters: Counters,
    /// Frames and bytes that were read before any was put together.
    read_before: (u64, u64),
    _memory: SlotMemory,
}

impl LongPort {
    /// `long`: frames that go out may be longer than a slot.
    pub(super) fn new(inner: NetmapPort, long: bool) -> std::io::Result<Self> {
        let header = inner.header;
        let memory = SlotMemory::on_demand(SLOTS, SLOTS, LONG)?;
        let (rx, mut tx) = memory.rings();
        tx.tail = SLOTS - 1;
        let mut caps = inner.caps.clone();
        if long {
            let way = |slots: u32| if slots > 0 { SLOTS } else { 0 };
            (caps.rx_slots, caps.tx_slots) = (way(caps.rx_slots), way(caps.tx_slots));
            caps.frame_bytes_max = u32::from(u16::MAX);
        }
        if header > 0 {
            caps.vnet_header = u8::try_from(HEADER).unwrap_or(0);
            caps.tx_checksum = true;
            caps.mode.push_str(", virtio-net header");
        }
        Ok(Self {
            inner,
            caps,
            long_tx: long,
            joins: long,
            rx,
            tx,
            come: 0,
            pieces: 0,
            too_long: false,
            surplus: header.saturating_sub(HEADER),
            handed: 0,
            counters: Counters::default(),
            read_before: (0, 0),
            _memory: memory,
        })
    }

    /// Whether a frame of several slots is among those that wait.
    fn meets_piece(&self) -> bool {
        let ring = &self.inner.sides.rx.slots;
        let mut index = ring.head;
        while index != ring.tail {
            if ring.slot(index).flags & SlotFlags::MORE_FRAG != 0 {
                return true;
            }
            index = ring.next(index);
        }
        false
    }

    /// From now on frames are put together: also those that were counted, and are not read yet.
    fn begin_to_join(&mut self) {
        self.joins = true;
        let sides = &self.inner.sides;
        let Counters { rx_frames, rx_bytes, .. } = sides.counters;
        let lens = sides.rx.slots.frames(sides.rx.slots.head, sides.rx.slots.available()).map(<[u8]>::len);
        let (count, bytes) =
            lens.filter(|len| *len > 0).fold((0, 0), |(n, sum), len| (n + 1, sum + len as u64));
        self.read_before = (rx_frames.saturating_sub(count), rx_bytes.saturating_sub(bytes));
    }

    /// Arrived pieces become frames, as long as there are long slots.
    fn take_frames(&mut self) {
        loop {
            let ring = &mut self.inner.sides.rx.slots;
            if ring.head == ring.tail || self.rx.next(self.rx.tail) == self.rx.head {
                return;
            }
            let slot = ring.slot(ring.head);
            let last = slot.flags & SlotFlags::MORE_FRAG == 0;
            match ring.frame(slot) {
                // Its frame went another way.
                Some([]) if self.pieces == 0 => {}
                Some(piece) => {
                    append(&mut self.rx, &mut self.come, &mut self.too_long, piece, self.surplus);
                    self.pieces += 1;
                }
                None => {
                    ring.bad_slots += 1;
                    self.too_long = true;
                    self.pieces += 1;
                }
            }
            ring.head = ring.next(ring.head);
            if last && self.pieces > 0 {
                self.finish();
            }
        }
    }

    /// The frame at tail is whole.
    fn finish(&mut self) {
        let (len, pieces) = (std::mem::take(&mut self.come), std::mem::take(&mut self.pieces));
        let too_long = std::mem::take(&mut self.too_long) || pieces > PIECES_MAX;
        let Some(len) = u16::try_from(len).ok().filter(|len| *len > 0 && !too_long) else {
            self.counters.rx_dropped += 1;
            return;
        };
        let slot = self.rx.slot(self.rx.tail);
        self.rx.set_slot(self.rx.tail, Slot { len, flags: 0, ptr: 0, ..slot });
        self.rx.tail = self.rx.next(self.rx.tail);
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += u64::from(len);
    }

    /// Committed frames become pieces, as long as netmap's ring has room.
    fn hand_over(&mut self) -> Result<(), PortError> {
        while self.handed != self.tx.head {
            let Some(frame) = self.tx.frame(self.tx.slot(self.handed)).filter(|frame| !frame.is_empty())
            else {
                self.tx.bad_slots += 1;
                self.release();
                continue;
            };
            let (head, rest) =
                if self.surplus > 0 { frame.split_at(HEADER.min(frame.len())) } else { (&[][..], frame) };
            let zeroes = [0; 2];
            let surplus = if self.surplus > 0 { &zeroes[..] } else { &[] };
            let mut frame = Pieces { parts: [head, surplus, rest] };
            let ring = &mut self.inner.sides.tx.slots;
            let size = TxRing::new(ring).slot().map_or(0, |slot| slot.len());
            let count = if size == 0 { usize::MAX } else { frame.len().div_ceil(size) };
            if count > PIECES_MAX && size > 0 {
                self.counters.tx_dropped += 1;
                self.release();
                continue;
            }
            if count > ring.available() as usize {
                let before = ring.available();
                self.inner.tx_sync()?;
                if self.inner.sides.tx.slots.available() == before {
                    return Ok(());
                }
                continue;
            }
            let len = frame.len() as u64;
            let mut tx = TxRing::new(ring);
            while let Some(mut slot) = tx.slot().filter(|_| frame.len() > 0) {
                let taken = frame.take(&mut slot);
                slot.commit_flags(taken, if frame.len() > 0 { SlotFlags::MORE_FRAG } else { 0 });
            }
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += len;
            self.release();
        }
        Ok(())
    }

    /// The first long tx slot is free again.
    fn release(&mut self) {
        self.handed = self.tx.next(self.handed);
        self.tx.tail = self.tx.next(self.tx.tail);
    }
}

/// Copies a piece to the end of the frame at tail, without the bytes that our header has not.
fn append(rx: &mut SlotRing, come: &mut usize, too_long: &mut bool, piece: &[u8], surplus: usize) {
    // A header that is cut by the end of a piece is nobody's.
    let (head, rest) = match (surplus, *come) {
        (0, _) => (&[][..], piece),
        (_, 0) if piece.len() >= HEADER + surplus => (&piece[..HEADER], &piece[HEADER + surplus..]),
        (_, 0) => {
            *too_long = true;
            (&[][..], &[][..])
        }
        _ => (&[][..], piece),
    };
    for part in [head, rest] {
        let end = *come + part.len();
        let room = rx.buffer(rx.slot(rx.tail)).and_then(|buffer| buffer.get_mut(*come..end));
        match room {
            Some(room) if end <= usize::from(u16::MAX) => room.copy_from_slice(part),
            _ => *too_long = true,
        }
        // Far enough to be too long, and no further.
        *come = end.min(LONG as usize);
    }
}

/// A frame that is taken apart: our header, what the module's has more, and the rest.
struct Pieces<'f> {
    parts: [&'f [u8]; 3],
}

impl Pieces<'_> {
    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Fills `room` as far as there is something; how far.
    fn take(&mut self, room: &mut [u8]) -> usize {
        let mut filled = 0;
        for part in &mut self.parts {
            let count = part.len().min(room.len() - filled);
            let (now, later) = part.split_at(count);
            room[filled..filled + count].copy_from_slice(now);
            *part = later;
            filled += count;
        }
        filled
    }
}

impl Port for LongPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        let readable = self.inner.rx_sync()?;
        if !self.joins {
            if readable == 0 || !self.meets_piece() {
                return Ok(readable);
            }
            self.begin_to_join();
        }
        self.take_frames();
        Ok(self.rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        if !self.long_tx {
            return self.inner.tx_sync();
        }
        self.hand_over()?;
        self.inner.tx_sync()?;
        Ok(self.tx.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        let sides = &mut self.inner.sides;
        let rx = if self.joins { &mut self.rx } else { &mut sides.rx.slots };
        let tx = if self.long_tx { &mut self.tx } else { &mut sides.tx.slots };
        (RxRing::new(rx), TxRing::new(tx))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        if self.joins {
            // What waits for a long slot is read when one is free.
            self.take_frames();
        }
        Ok(self.inner.arm()? && self.rx.available() == 0)
    }

    fn poll_fds(&self) -> PollFds {
        self.inner.poll_fds()
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.inner.tx_poll_fd()
    }

    fn set_up(&mut self, up: bool) -> bool {
        self.inner.set_up(up)
    }

    fn rx_time(&self) -> Option<Duration> {
        self.inner.rx_time()
    }

    fn resync_in(&self) -> Option<Duration> {
        let waits = self.handed != self.tx.head && !self.inner.down;
        if waits { Some(super::RETRY) } else { self.inner.resync_in() }
    }

    fn counters(&self) -> Counters {
        let mut all = self.inner.counters();
        let Counters { rx_frames, rx_bytes, tx_frames, tx_bytes, rx_dropped, tx_dropped, .. } = self.counters;
        if self.joins {
            let (frames, bytes) = self.read_before;
            (all.rx_frames, all.rx_bytes) = (frames + rx_frames, bytes + rx_bytes);
        }
        if self.long_tx {
            (all.tx_frames, all.tx_bytes) = (tx_frames, tx_bytes);
        }
        all.tx_bad_slot += self.tx.bad_slots;
        Counters { rx_dropped, tx_dropped, ..all }
    }
}
