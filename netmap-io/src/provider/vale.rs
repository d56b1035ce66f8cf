//! VALE: switches whose ports have a memory each. A frame is copied, and the switch never pushes back: what the other port
//! has no room for is lost, and counted nowhere.
//!
//! Frames of ports whose virtio-net headers differ are converted: towards a port without one they are cut into frames of
//! [`FRAME_MAX`] bytes and get their checksums; towards one that has a header they get one.

use std::collections::HashMap;

use super::memory::Memory;
use super::nic::Nic;
use super::{Provider, State};
use crate::ring::{Slot, SlotFlags};

/// Ports of a switch.
const PORTS: usize = 254;
/// Longest frame that a port without a virtio-net header is given (`NM_BDG_MFS_DEFAULT`).
const FRAME_MAX: usize = 1514;
/// Pieces that the count above a slot's flags can tell.
const PIECES_MAX: usize = 64;
/// `struct virtio_net_hdr`.
const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;

/// Data is in memory of the user's, where the slot's `ptr` says.
pub(super) const INDIRECT: u16 = 0x10;

/// A switch.
#[derive(Debug, Default)]
pub(super) struct Bridge {
    pub(super) name: String,
    /// Name of each port, and the NIC that it is.
    pub(super) ports: Vec<Option<(String, usize)>>,
    /// Where a station was seen.
    stations: HashMap<[u8; 6], usize>,
}

impl Bridge {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The port's number.
    pub(super) fn attach(&mut self, name: &str, nic: usize) -> Option<usize> {
        let free = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if free >= PORTS {
            return None;
        }
        if free == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[free] = Some((name.to_owned(), nic));
        Some(free)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(|(of, _)| of == name))
    }

    /// Which ports a frame goes to.
    fn learn(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        let station = |at: usize| frame.get(at..at + 6).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let (Some(to), Some(source)) = (station(0), station(6)) else { return Vec::new() };
        if source[0] & 1 == 0 {
            self.stations.insert(source, from);
        }
        let known = if to[0] & 1 == 0 { self.stations.get(&to).copied() } else { None };
        match known {
            Some(port) if port == from => Vec::new(),
            Some(port) => vec![port],
            None => (0..self.ports.len()).filter(|port| *port != from).collect(),
        }
    }
}

/// Where a VALE port's name ends: switch and port.
pub(super) fn is_vale(name: &str) -> bool {
    name.starts_with("vale") && name.contains(':')
}

impl State {
    /// `NIOCTXSYNC` of a switch's port.
    pub(super) fn vale_tx(&mut self, nic: usize, ring: usize) {
        let (memory, header) = (self.nics[nic].memory, self.nics[nic].header);
        let Self { nics, memories, violations, .. } = self;
        let Some(of_port) = &memories[memory] else { return };
        let slots = nics[nic].tx[ring].tx_sync_whole(of_port, violations);
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let last = slots.len().saturating_sub(1);
        for (at, slot) in slots.into_iter().enumerate() {
            pieces.push(self.piece(memory, slot));
            if slot.flags & SlotFlags::MORE_FRAG != 0 && at < last {
                continue;
            }
            if pieces.len() > PIECES_MAX || slot.flags & SlotFlags::MORE_FRAG != 0 {
                self.violations.push(format!("a frame of {} pieces, or without its last", pieces.len()));
            }
            self.switch(nic, ring, header, &std::mem::take(&mut pieces));
        }
    }

    /// What a slot says; nothing of one that lies.
    fn piece(&mut self, memory: usize, slot: Slot) -> Vec<u8> {
        let Some(memory) = &self.memories[memory] else { return Vec::new() };
        if u32::from(slot.len) > memory.buf_size() {
            self.violations.push(format!("a slot of {} bytes", slot.len));
            return Vec::new();
        }
        if slot.flags & INDIRECT != 0 {
            return Provider::copy_in(slot.ptr, slot.len.into()).unwrap_or_default();
        }
        memory.read_buffer(slot.buf, slot.len.into())
    }

    /// Learns, and hands a frame to whom it concerns.
    fn switch(&mut self, nic: usize, ring: usize, header: usize, pieces: &[Vec<u8>]) {
        let Some((bridge, from)) = self.place(nic) else { return };
        let first = pieces.first().map_or(0, Vec::len);
        // The link header is in the first piece, behind the virtio-net header, or opens the second.
        let link = match pieces {
            [whole, ..] if first > header => &whole[header..],
            [_, second, ..] if first == header => &second[..],
            _ => return,
        };
        let to = if link.len() < 14 { Vec::new() } else { self.bridges[bridge].learn(from, link) };
        let broadcast = to.len() != 1;
        for port in to {
            let Some((_, target)) = self.bridges[bridge].ports[port] else { continue };
            self.deliver(target, if broadcast { 0 } else { ring }, header, pieces);
        }
    }

    /// The switch and the port that a NIC is.
    fn place(&self, nic: usize) -> Option<(usize, usize)> {
        self.bridges.iter().enumerate().find_map(|(bridge, of)| {
            let port = of.ports.iter().position(|port| port.as_ref().is_some_and(|(_, at)| *at == nic))?;
            Some((bridge, port))
        })
    }

    fn deliver(&mut self, nic: usize, ring: usize, header: usize, pieces: &[Vec<u8>]) {
        let Self { nics, memories, .. } = self;
        let Nic { memory, header: theirs, rx, .. } = &mut nics[nic];
        let (Some(Some(memory)), false) = (memories.get(*memory), rx.is_empty()) else { return };
        let frames = if *theirs == header {
            vec![pieces.to_vec()]
        } else {
            let whole = convert(&pieces.concat(), header, *theirs);
            let size = memory.buf_size() as usize;
            whole.into_iter().map(|frame| frame.chunks(size).map(<[u8]>::to_vec).collect()).collect()
        };
        let count = rx.len();
        let ring = &mut rx[ring % count];
        for frame in frames {
            let count = u16::try_from(frame.len()).unwrap_or(0) << 8;
            let pieces: Vec<&[u8]> = frame.iter().map(Vec::as_slice).collect();
            // Without room the frame is lost.
            ring.put(memory, &pieces, count);
        }
        ring.wake();
    }
}

/// A frame with a header of `from` bytes, for a port that has one of `to`.
fn convert(frame: &[u8], from: usize, to: usize) -> Vec<Vec<u8>> {
    let Some((old, packet)) = frame.split_at_checked(from) else { return Vec::new() };
    if to > 0 {
        let mut new = vec![0; to];
        let kept = if from > 0 { HEADER } else { 0 };
        new[..kept].copy_from_slice(&old[..kept]);
        new.extend_from_slice(packet);
        return vec![new];
    }
    let half = |at: usize| usize::from(u16::from_ne_bytes([old[at], old[at + 1]]));
    match old[1] & !ECN {
        GSO_TCP_V4 | GSO_TCP_V6 => cut(packet),
        0 if old[0] & NEEDS_CHECKSUM != 0 => {
            let mut packet = packet.to_vec();
            let (start, field) = (half(6), half(6) + half(8));
            if field + 2 <= packet.len() {
                let sum = !checksum(&packet[start..]);
                packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            }
            vec![packet]
        }
        0 => vec![packet.to_vec()],
        _ => Vec::new(),
    }
}

/// The Internet checksum of some bytes, not complemented.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Cuts a TCP segment into frames of [`FRAME_MAX`] bytes.
fn cut(packet: &[u8]) -> Vec<Vec<u8>> {
    const LINK: usize = 14;
    let v4 = packet.get(12) == Some(&8);
    let ip_len = if v4 { packet.get(LINK).map_or(0, |b| usize::from(b & 15) * 4) } else { 40 };
    let tcp_at = LINK + ip_len;
    let Some(offset) = packet.get(tcp_at + 12) else { return Vec::new() };
    let headers = tcp_at + usize::from(offset >> 4) * 4;
    let Some((head, payload)) = packet.split_at_checked(headers) else { return Vec::new() };
    let count = payload.len().div_ceil(FRAME_MAX - headers);
    let seq = u32::from_be_bytes(head[tcp_at + 4..tcp_at + 8].try_into().unwrap_or_default());
    let mut frames = Vec::new();
    for (at, piece) in payload.chunks(FRAME_MAX - headers).enumerate() {
        let mut frame = [head, piece].concat();
        let done = u32::try_from(at * (FRAME_MAX - headers)).unwrap_or(0);
        frame[tcp_at + 4..tcp_at + 8].copy_from_slice(&seq.wrapping_add(done).to_be_bytes());
        if at + 1 < count {
            // Neither PSH nor FIN.
            frame[tcp_at + 13] &= !9;
        }
        let total = u16::try_from(frame.len() - LINK).unwrap_or(0);
        let addresses = if v4 {
            frame[LINK + 2..LINK + 4].copy_from_slice(&total.to_be_bytes());
            frame[LINK + 10..LINK + 12].fill(0);
            let sum = !checksum(&frame[LINK..tcp_at]);
            frame[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
            LINK + 12..LINK + 20
        } else {
            frame[LINK + 4..LINK + 6].copy_from_slice(&(total - 40).to_be_bytes());
            LINK + 8..LINK + 40
        };
        frame[tcp_at + 16..tcp_at + 18].fill(0);
        let len = u16::try_from(frame.len() - tcp_at).unwrap_or(0);
        let pseudo = [&frame[addresses], &[0, 6], &len.to_be_bytes(), &frame[tcp_at..]].concat();
        let sum = !checksum(&pseudo);
        frame[tcp_at + 16..tcp_at + 18].copy_from_slice(&sum.to_be_bytes());
        frames.push(frame);
    }
    frames
}

impl Memory {
    /// A memory for a port of a switch: its own rings and nothing more.
    pub(super) fn for_port(buf_size: u32, slots: u32, extra: u32) -> std::io::Result<Self> {
        Self::new(super::Shape { buf_size, buffers: slots + extra + 8, legacy: false })
    }
}
