//! A NIC: its rings, and what is on their other side.

use std::collections::VecDeque;
use std::io;

use super::kring::{Behind, Kring};
use super::memory::Memory;
use super::{Driver, NicShape, Side, errno};
use crate::netmap::abi::{Mode, Register};

/// What the cable or the kernel takes unless a test says otherwise.
const ROOM: usize = 4096;

/// A NIC.
#[derive(Debug)]
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) shape: NicShape,
    /// NIC's, then the host's.
    pub(super) tx: Vec<Kring>,
    pub(super) rx: Vec<Kring>,
    /// Which memory its rings are in.
    pub(super) memory: usize,
    /// It is a port of a switch, or an interface that can be one.
    pub(super) vale: bool,
    /// The other end of the netmap pipe that it is an end of.
    pub(super) pipe: Option<usize>,
    /// It outlives its users.
    pub(super) persistent: bool,
    /// It is on a switch.
    pub(super) attached: bool,
    /// Threads of the kernel poll it there.
    pub(super) polled: bool,
    /// Bytes of virtio-net header in front of its frames.
    pub(super) header: usize,
    pub(super) present: bool,
    /// The interface is up. While it is not, whoever syncs waits.
    pub(super) up: bool,
    /// Bytes of a buffer.
    memory_bytes: usize,
    /// The NIC at the other end of the cable.
    pub(super) cable: Option<usize>,
    pub(super) high_flags: u16,
    /// Frames on the cable, and those passed on to the kernel; how many of each may be.
    outs: [VecDeque<(u16, Vec<u8>)>; 2],
    rooms: [usize; 2],
    /// Exclusively registered rings, by index of tx ring.
    pub(super) exclusive: Vec<bool>,
    pub(super) users: Vec<u32>,
    /// Who of them sends, and who reads.
    pub(super) senders: Vec<u32>,
    pub(super) readers: Vec<u32>,
}

fn at(side: Side) -> usize {
    usize::from(side == Side::Host)
}

impl Nic {
    pub(super) fn new(
        name: &str,
        shape: NicShape,
        memory: &mut Memory,
        place: usize,
        vale: bool,
    ) -> io::Result<Self> {
        let count = shape.rings + shape.host_rings;
        let nic = match shape.driver {
            _ if vale => Behind::Vale,
            Driver::Native => Behind::Hardware,
            Driver::Emulated => Behind::Emulated,
        };
        let mut make = |tx: bool| -> io::Result<Vec<Kring>> {
            let behind = |id| if id < shape.rings { nic } else { Behind::Host };
            (0..count).map(|id| Kring::new(memory, shape.slots, id, tx, behind(id), None)).collect()
        };
        let rings = [make(true)?, make(false)?];
        Ok(Self::with_rings(name, shape, rings, place, vale, memory.buf_size()))
    }

    /// One end of a netmap pipe; the other one's rings, if it is there already, say which buffers.
    pub(super) fn pipe_end(
        name: &str,
        shape: NicShape,
        memory: &mut Memory,
        place: usize,
        other: Option<&Self>,
    ) -> io::Result<Self> {
        let mut make = |tx: bool| -> io::Result<Vec<Kring>> {
            let opposite =
                |id: u16| Some(if tx { &other?.rx[usize::from(id)] } else { &other?.tx[usize::from(id)] });
            let ring = |id| Kring::new(memory, shape.slots, id, tx, Behind::Pipe, opposite(id));
            (0..shape.rings).map(ring).collect()
        };
        let rings = [make(true)?, make(false)?];
        Ok(Self::with_rings(name, shape, rings, place, true, memory.buf_size()))
    }

    fn with_rings(
        name: &str,
        shape: NicShape,
        [tx, rx]: [Vec<Kring>; 2],
        place: usize,
        vale: bool,
        buf_size: u32,
    ) -> Self {
        let count = usize::from(shape.rings + shape.host_rings);
        Self {
            name: name.into(),
            shape,
            tx,
            rx,
            pipe: None,
            memory: place,
            vale,
            persistent: false,
            attached: false,
            polled: false,
            header: 0,
            present: true,
            up: true,
            memory_bytes: buf_size as usize,
            cable: None,
            high_flags: 0,
            outs: [VecDeque::new(), VecDeque::new()],
            rooms: [ROOM; 2],
            exclusive: vec![false; count],
            users: vec![0; count],
            senders: vec![0; count],
            readers: vec![0; count],
        }
    }

    /// Indices of the rings that a registration means.
    pub(super) fn rings_of(&self, wanted: &Register, old: bool) -> io::Result<Vec<usize>> {
        let shape = self.shape;
        let (nics, all) = (usize::from(shape.rings), usize::from(shape.rings + shape.host_rings));
        let one = usize::from(wanted.ring_id);
        let host = all > nics;
        Ok(match wanted.mode {
            mode if mode == Mode::AllNic as u32 => (0..nics).collect(),
            mode if mode == Mode::Host as u32 && host => (nics..all).collect(),
            mode if mode == Mode::NicAndHost as u32 && host => (0..all).collect(),
            mode if mode == Mode::OneNic as u32 && one < nics => vec![one],
            mode if mode == Mode::OneHost as u32 && one < all - nics && !old => vec![nics + one],
            _ => return Err(errno(libc::EINVAL)),
        })
    }

    /// Whether a packet of the interface fits: one buffer, unless the driver can use several.
    pub(super) fn fits_mtu(&self) -> bool {
        self.vale || self.shape.driver == Driver::Native || self.shape.mtu as usize <= self.memory_bytes
    }

    /// Index of a ring among all of its direction.
    pub(super) fn index(&self, side: Side, ring: u16) -> usize {
        match side {
            Side::Nic => (ring % self.shape.rings).into(),
            Side::Host => (self.shape.rings + ring % self.shape.host_rings.max(1)).into(),
        }
    }

    /// Whether a ring of the NIC that a frame from the cable comes by, or one from the kernel leaves by, is somebody's.
    pub(super) fn has_user(&self, side: Side, ring: u16) -> bool {
        let of = if side == Side::Nic { &self.readers } else { &self.senders };
        of[self.index(Side::Nic, ring)] > 0
    }

    pub(super) fn arrive(&mut self, side: Side, ring: u16, frame: Vec<u8>) -> bool {
        let index = self.index(side, ring);
        let (most, long) = (self.memory_bytes, side == Side::Host);
        let Some(kring) = self.rx.get_mut(index) else { return false };
        // A frame of the host's stack has to fit a slot.
        if long && frame.len() > most {
            kring.wake();
            return false;
        }
        // As much as the ring has slots waits outside of it.
        if kring.queue.len() >= kring.at.slots as usize {
            return false;
        }
        kring.queue.push_back(frame);
        kring.wake();
        true
    }

    /// Whether ring `index` can take another frame from the cable.
    pub(super) fn has_room(&self, ring: u16) -> bool {
        let kring = &self.rx[self.index(Side::Nic, ring)];
        kring.queue.len() < kring.at.slots as usize
    }

    pub(super) fn out(&mut self, side: Side) -> &mut VecDeque<(u16, Vec<u8>)> {
        &mut self.outs[at(side)]
    }

    pub(super) fn room(&self, side: Side) -> usize {
        self.rooms[at(side)].saturating_sub(self.outs[at(side)].len())
    }

    pub(super) fn set_room(&mut self, side: Side, frames: usize) {
        self.rooms[at(side)] = frames;
    }

    pub(super) fn wake_all(&mut self) {
        self.rx.iter_mut().chain(&mut self.tx).for_each(Kring::wake);
    }

    /// Ring by ring.
    pub(super) fn slot_buffers(&self, memory: &Memory) -> Vec<Vec<u32>> {
        let of = |ring: &Kring| (0..ring.at.slots).map(|index| memory.slot(ring.at, index).buf).collect();
        self.tx.iter().chain(&self.rx).map(of).collect()
    }

    /// Every buffer that stands in a slot. Of a pipe's two rings, each has those that are its user's now.
    pub(super) fn buffers<'a>(&'a self, memory: &'a Memory) -> impl Iterator<Item = u32> + 'a {
        let rings = self.tx.iter().chain(&self.rx);
        rings.flat_map(|ring| {
            (0..ring.at.slots)
                .filter(|index| ring.is_users(*index))
                .map(|index| memory.slot(ring.at, index).buf)
        })
    }
}
