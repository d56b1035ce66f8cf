//! Short frames leave here: by the AF_XDP socket that holds the queue.
//!
//! A packet socket asks for a message header per frame, and a queueing discipline is asked for each; this way a batch is one
//! call, and a frame is copied once more into a buffer of AF_XDP's. What the device takes from both goes into one queue of the
//! neighbour's, so frames stay in order as long as nothing waits on the other way: the port sees to that.
//!
//! The checksum stays partial where the kernel takes it so (tx metadata, Linux 6.8): the neighbour then need not verify what
//! never crossed a wire. Else it is made here.

use std::io;

use super::super::steer::refused;
use super::super::sys::{Desc, Kick, Rings, Sizes, Socket, TX_METADATA};
use super::super::{KICKS_MAX, bind, set_up};
use super::VNET_HEADER;
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};
use crate::sys::Interface;
use crate::{Counters, PortError, ZeroCopy};

/// Bytes of a buffer, and how far in a frame begins: the metadata stand right before it.
const BUFFER: u32 = 2048;
const FRAME_AT: u32 = 64;
/// Buffers to send from, and to receive into: nothing is received, but a socket has all rings.
const TX_BUFFERS: u32 = 256;
const RX_BUFFERS: u32 = 2;
/// For a socket that only holds the queue.
const HOLD: Sizes = Sizes { rx_slots: RX_BUFFERS, tx_slots: 2, frame_size: BUFFER };
const SEND: Sizes = Sizes { tx_slots: TX_BUFFERS, ..HOLD };

/// `struct xsk_tx_metadata` up to and with the request of a checksum.
const METADATA: usize = 16;
/// `XDP_TXMD_FLAGS_CHECKSUM`.
const ASK_CHECKSUM: u64 = 1 << 1;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;

/// The socket, and what it sends from.
#[derive(Debug)]
pub(super) struct Short {
    socket: Socket,
    rings: Rings,
    /// A view of the buffers.
    buffers: SlotRing,
    free: Vec<u32>,
    /// The kernel takes metadata.
    partial: bool,
    /// It holds the queue and does nothing else.
    holds: bool,
    _memory: SlotMemory,
}

/// What a frame says of itself in its virtio-net header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Where the sum begins and where it goes, from the frame's first byte.
    checksum: Option<(u16, u16)>,
}

/// Splits a frame from its virtio-net header; `None`: it is none for this way.
fn understand(bytes: &[u8]) -> Option<(Wanted, &[u8])> {
    let (header, frame) = bytes.split_at_checked(usize::from(VNET_HEADER))?;
    let &[flags, kind, _, _, _, _, s0, s1, o0, o1] = header else { return None };
    if kind != 0 || frame.is_empty() || frame.len() > (BUFFER - FRAME_AT) as usize {
        return None;
    }
    let (start, at) = (u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([o0, o1]));
    let fits = usize::from(start) + usize::from(at) + 2 <= frame.len();
    match flags & NEEDS_CHECKSUM != 0 {
        true if !fits => None,
        needs => Some((Wanted { checksum: needs.then_some((start, at)) }, frame)),
    }
}

/// Whether a frame with its virtio-net header can go this way.
pub(super) fn fits(bytes: &[u8]) -> bool {
    understand(bytes).is_some()
}

/// RFC 1071: the sum's complement. The pseudo header's stands where the result goes.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    };
    let mut sum: u64 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero would say that there is none.
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

impl Short {
    /// Takes the queue of a device, with the first of these ways that its kernel and our limit of locked memory allow.
    pub(super) fn open(device: &Interface, ways: &[Way]) -> Result<Self, PortError> {
        let [better @ .., last] = ways else { return Self::open(device, &Way::ALL) };
        let found = better.iter().find_map(|way| Self::set_up(*way).ok());
        let this = found.map_or_else(|| Self::set_up(*last), Ok)?;
        bind(&this.socket, device, 0, false, false, ZeroCopy::Off)?;
        Ok(this)
    }

    /// The socket, not bound yet.
    fn set_up(way: Way) -> Result<Self, PortError> {
        let sizes = if way == Way::Hold { HOLD } else { SEND };
        let memory = SlotMemory::new(sizes.rx_slots, sizes.tx_slots, sizes.frame_size)
            .map_err(|error| PortError::io("allocating packet memory", error))?;
        let socket = Socket::new().map_err(|error| refused("making an AF_XDP socket", error))?;
        let rings = set_up(&socket, &memory, sizes, if way == Way::Partial { METADATA } else { 0 })?;
        let (buffers, _) = memory.rings();
        let free = if way == Way::Hold { 0..0 } else { RX_BUFFERS..RX_BUFFERS + TX_BUFFERS };
        let (partial, holds) = (way == Way::Partial, way == Way::Hold);
        Ok(Self { socket, rings, buffers, free: free.collect(), partial, holds, _memory: memory })
    }

    /// Whether one can be had that sends.
    pub(super) fn can_send() -> bool {
        Way::ALL.iter().any(|way| *way != Way::Hold && Self::set_up(*way).is_ok())
    }

    /// Whether it sends at all.
    pub(super) fn sends(&self) -> bool {
        !self.holds
    }

    /// Frames stand in the ring that the device had no room for.
    pub(super) fn waits(&self) -> bool {
        self.rings.tx.unread() > 0
    }

    /// Copies frames into buffers, as many as are free, and shows them to the kernel. Their number and bytes.
    pub(super) fn put<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) -> (u32, u64) {
        self.take_sent();
        let (mut count, mut bytes) = (0, 0);
        for whole in frames {
            if self.rings.tx.room() == 0 {
                break;
            }
            let Some((wanted, frame)) = understand(whole) else { break };
            let Some(buf) = self.free.pop() else { break };
            self.write(buf, wanted, frame);
            count += 1;
            bytes += whole.len() as u64;
        }
        self.rings.tx.publish();
        (count, bytes)
    }

    fn write(&mut self, buf: u32, wanted: Wanted, frame: &[u8]) {
        let start = FRAME_AT as usize;
        let Some(buffer) = self.buffers.buffer(Slot { buf, ..Slot::default() }) else { return };
        let Some((before, room)) = buffer.split_at_mut_checked(start) else { return };
        let Some(room) = room.get_mut(..frame.len()) else { return };
        room.copy_from_slice(frame);
        let mut options = 0;
        match wanted.checksum {
            Some((start, at)) if self.partial => {
                let [s0, s1] = start.to_ne_bytes();
                let [o0, o1] = at.to_ne_bytes();
                let metadata = &mut before[FRAME_AT as usize - METADATA..];
                metadata[..8].copy_from_slice(&ASK_CHECKSUM.to_ne_bytes());
                metadata[8..].copy_from_slice(&[s0, s1, o0, o1, 0, 0, 0, 0]);
                options = TX_METADATA;
            }
            Some((start, at)) => {
                let part = room.get_mut(usize::from(start)..).unwrap_or_default();
                let sum = checksum(part).to_be_bytes();
                if let Some(place) = part.get_mut(usize::from(at)..).and_then(|p| p.get_mut(..2)) {
                    place.copy_from_slice(&sum);
                }
            }
            None => {}
        }
        let addr = u64::from(buf) * u64::from(BUFFER) + u64::from(FRAME_AT);
        self.rings.tx.push(Desc { addr, len: u32::try_from(frame.len()).unwrap_or(0), options });
    }

    /// Makes the kernel send what stands in the ring.
    pub(super) fn kick(&mut self, counters: &mut Counters) -> io::Result<()> {
        for _ in 0..KICKS_MAX {
            let before = self.rings.tx.unread();
            if before == 0 {
                break;
            }
            counters.tx_syscalls += 1;
            match self.socket.kick_tx()? {
                Kick::Done => break,
                Kick::Again if self.rings.tx.unread() < before => {}
                Kick::Again | Kick::Down => break,
            }
        }
        Ok(())
    }

    /// Buffers whose frames have left are free.
    fn take_sent(&mut self) {
        if self.rings.completion.refresh() == 0 {
            return;
        }
        while let Some(addr) = self.rings.completion.pop() {
            self.free.push(u32::try_from(addr / u64::from(BUFFER)).unwrap_or(u32::MAX));
        }
        self.rings.completion.release();
    }
}

/// What the socket is to do beside holding the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Send, and leave checksums partial.
    Partial,
    /// Send.
    Whole,
    /// Nothing.
    Hold,
}

impl Way {
    /// The best first.
    pub(super) const ALL: [Self; 3] = [Self::Partial, Self::Whole, Self::Hold];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_whether_it_is_short() {
        let frame = |header: [u8; 10], len: usize| [&header[..], &vec![7; len]].concat();
        let plain = frame([0; 10], 60);
        assert_eq!(
            understand(&plain).map(|(wanted, frame)| (wanted.checksum, frame.len())),
            Some((None, 60))
        );
        let asks = |start: u16, at: u16| {
            let [s0, s1] = start.to_ne_bytes();
            let [o0, o1] = at.to_ne_bytes();
            [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, s0, s1, o0, o1]
        };
        let sum = |bytes: &[u8]| understand(bytes).and_then(|(wanted, _)| wanted.checksum);
        assert_eq!(sum(&frame(asks(34, 16), 60)), Some((34, 16)));
        assert_eq!(sum(&frame(asks(34, 16), 52)), Some((34, 16)));
        assert!(!fits(&frame(asks(34, 16), 51)), "its checksum is outside");
        assert!(!fits(&frame(asks(u16::MAX, u16::MAX), 60)));
        assert!(!fits(&frame([1, 1, 0, 0, 0, 0, 34, 0, 16, 0], 60)), "a segment to be cut");
        assert!(
            fits(&frame([0; 10], 1984)) && !fits(&frame([0; 10], 1985)) && !fits(&[0; 10]) && !fits(&[0; 3])
        );
    }

    #[test]
    fn a_checksum_is_what_rfc_1071_says() {
        // Its example, §3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0x12]), !0x1200);
        assert_eq!(checksum(&[0xff, 0xff]), 0xffff);
    }
}
