//! The netmap module's work, done in this process: what stands below the ioctl, for tests, `netmap-check` and machines
//! without the module.
//!
//! ```text
//!   port (netmap/…) ── ioctl, mmap, poll ──► Handle ─┬─ requests   register, port info, …, old and new
//!                                                    └─ sync ─► kernel's half of each ring
//!                                                                 │ NIC rings        │ host rings
//!                                              cable to another NIC, or Wire     Wire: the kernel's side
//! ```
//!
//! It gives nothing that the real one does not give, and takes nothing more (`netmap.c`, `netmap_vale.c`, `netmap_generic.c`
//! of 2026): what a sync does with head and cur is in [`kring`]; a slot whose buffer changed without saying so sends the
//! buffer that the "hardware" knows, as a NIC would; a frame of several slots is one to a NIC whose driver can, and several to
//! everybody else; a request has a body or none and zeroes where they have to be; descriptors without rings have ENXIO, those
//! of a NIC that is gone EIO, and those of an interface that is down *wait*. What no correct user does is noted
//! ([`Provider::violations`]).
//!
//! What it does not imitate: `epoll_wait` does no sync here, so a woken port makes a call of its own; offsets on switches and pipes;
//! what monitors see; frames between a switch and the NICs on it.

mod handle;
mod kloop;
mod kring;
mod memory;
mod nic;
mod pipes;
mod ports;
mod request;
mod vale;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::netmap::open;
use crate::netmap::sys::{Handle, Module};
use crate::{Device, DeviceSpec, OpenOptions, PortError};
use memory::Memory;
use nic::Nic;
use vale::Bridge;

/// Sizes of a NIC.
#[derive(Clone, Copy, Debug)]
pub struct NicShape {
    /// Ring pairs.
    pub rings: u16,
    /// Pairs of host rings.
    pub host_rings: u16,
    /// Slots of each ring.
    pub slots: u32,
    /// Largest IP packet of the interface.
    pub mtu: u32,
    /// Who drives it.
    pub driver: Driver,
}

/// How a NIC comes by its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// A driver that knows netmap: a frame may have several slots.
    #[default]
    Native,
    /// Any driver, through socket buffers: a slot is a frame, and which have left is seen at a later sync.
    Emulated,
}

impl Default for NicShape {
    fn default() -> Self {
        Self { rings: 1, host_rings: 1, slots: 64, mtu: 1500, driver: Driver::Native }
    }
}

/// Sizes of the memory, and the interface that is spoken.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of a buffer.
    pub buf_size: u32,
    /// Buffers of the whole memory.
    pub buffers: u32,
    /// Speaks API 11 and 12 alone, as modules of before 2019.
    pub legacy: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { buf_size: 2048, buffers: 4096, legacy: false }
    }
}

/// Which end of a NIC's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The cable.
    Nic,
    /// The kernel's stack.
    Host,
}

/// Everything, behind one lock: what is quick is the memory, and a lock keeps what it imitates honest.
#[derive(Debug)]
pub(crate) struct State {
    shape: Shape,
    /// The first is that of all NICs; ports of switches have their own, as long as they last.
    memories: Vec<Option<Memory>>,
    nics: Vec<Nic>,
    bridges: Vec<Bridge>,
    /// Things that no correct user does.
    violations: Vec<String>,
}

/// A netmap of our own. Cheap to clone: it stays one.
#[derive(Clone, Debug)]
pub struct Provider {
    state: Arc<Mutex<State>>,
    /// A NIC came up, or went away.
    up: Arc<Condvar>,
}

impl Provider {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn new(shape: Shape) -> io::Result<Self> {
        let memory = Memory::new(shape)?;
        let (nics, bridges, violations) = (Vec::new(), Vec::new(), Vec::new());
        let state = State { shape, memories: vec![Some(memory)], nics, bridges, violations };
        Ok(Self { state: Arc::new(Mutex::new(state)), up: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A NIC of that name, without a cable: what it sends waits for [`Self::receive`].
    ///
    /// # Errors
    /// The memory is used up, or the name taken.
    pub fn add_nic(&self, name: &str, shape: NicShape) -> io::Result<()> {
        let mut state = self.lock();
        if state.find(name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let State { memories, .. } = &mut *state;
        let memory = memories[0].as_mut().ok_or_else(|| errno(libc::ENOMEM))?;
        let nic = Nic::new(name, shape, memory, 0, false)?;
        state.nics.push(nic);
        Ok(())
    }

    /// A cable between two NICs: ring `i` of one leads to ring `i` of the other, which pushes back when it is full.
    pub fn join(&self, a: &str, b: &str) {
        let mut state = self.lock();
        if let (Some(a), Some(b)) = (state.find(a), state.find(b)) {
            state.nics[a].cable = Some(b);
            state.nics[b].cable = Some(a);
        }
    }

    /// `ip link set … up` or `down`. While it is down the module lets nobody sync: they wait, and can't be interrupted.
    pub fn set_up(&self, name: &str, up: bool) {
        let mut state = self.lock();
        if let Some(at) = state.find(name) {
            state.nics[at].up = up;
        }
        self.up.notify_all();
    }

    /// The NIC is pulled out.
    pub fn remove(&self, name: &str) {
        let mut state = self.lock();
        if let Some(at) = state.find(name) {
            let nic = &mut state.nics[at];
            nic.present = false;
            nic.wake_all();
        }
        self.up.notify_all();
    }

    /// Opens a port of it by a name as [`crate::open`] takes it.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(&self, device: &str, options: &OpenOptions) -> Result<Device, PortError> {
        let spec: DeviceSpec = device.parse()?;
        open::open(self, &spec, options)
    }

    /// A frame arrives from the cable (`Nic`) or is sent by the kernel (`Host`); `false`: there is no room, and it is lost. Of a ring
    /// that nobody has, netmap takes nothing: what comes by it reaches the kernel, and what the kernel sends by it goes out, whatever is
    /// done with the host's rings (`netmap_transmit`, `netmap_common_irq`).
    pub fn send(&self, name: &str, side: Side, ring: u16, frame: &[u8]) -> bool {
        let mut state = self.lock();
        let Some(at) = state.find(name) else { return false };
        let nic = &mut state.nics[at];
        if nic.has_user(side, ring) {
            return nic.arrive(side, ring, frame.to_vec());
        }
        let (other, ring) = match side {
            Side::Nic => (Side::Host, ring),
            Side::Host => (Side::Nic, ring % nic.shape.rings),
        };
        match nic.cable.filter(|_| other == Side::Nic) {
            Some(peer) => state.nics[peer].arrive(Side::Nic, ring, frame.to_vec()),
            None => {
                let room = nic.room(other) > 0;
                if room {
                    nic.out(other).push_back((ring, frame.to_vec()));
                }
                room
            }
        }
    }

    /// Whether somebody reads rings of the NIC.
    #[must_use]
    pub fn is_read(&self, name: &str) -> bool {
        let state = self.lock();
        state.find(name).is_some_and(|at| state.nics[at].readers.iter().any(|readers| *readers > 0))
    }

    /// What went out on the cable, or was passed on to the kernel, since the last time: ring and frame.
    pub fn receive(&self, name: &str, side: Side) -> Vec<(u16, Vec<u8>)> {
        let mut state = self.lock();
        let Some(at) = state.find(name) else { return Vec::new() };
        state.nics[at].out(side).drain(..).collect()
    }

    /// How many frames the cable, or the kernel, takes before [`Self::receive`] has to make room.
    pub fn set_room(&self, name: &str, side: Side, frames: usize) {
        let mut state = self.lock();
        if let Some(at) = state.find(name) {
            state.nics[at].set_room(side, frames);
        }
    }

    /// The bits above the flags that a VALE switch writes into received slots.
    pub fn set_high_flags(&self, name: &str, bits: u16) {
        let mut state = self.lock();
        if let Some(at) = state.find(name) {
            state.nics[at].high_flags = bits;
        }
    }

    /// The buffer in each slot of each ring: tx rings of the NIC and the host, then rx rings.
    #[must_use]
    pub fn slot_buffers(&self, name: &str) -> Vec<Vec<u32>> {
        let state = self.lock();
        let nic = state.find(name).map(|at| &state.nics[at]);
        nic.and_then(|nic| Some(nic.slot_buffers(state.memories[nic.memory].as_ref()?))).unwrap_or_default()
    }

    /// Writes a word into the region, as whoever else maps it might: interfaces from its start on, then rings.
    #[cfg(test)]
    pub(crate) fn scribble(&self, at: usize, word: u32) {
        if let Some(memory) = &mut self.lock().memories[0] {
            memory.scribble(at, word);
        }
    }

    /// What users did wrong.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Checks that every buffer is in one place alone, of those that should be somewhere; what is wrong.
    ///
    /// # Errors
    /// In words.
    pub fn check_buffers(&self) -> Result<(), String> {
        let state = self.lock();
        (0..state.memories.len()).try_for_each(|place| state.check_memory_of(place))
    }

    /// The state, once the NIC is up or away. The module waits so for an interface that is down.
    fn when_up(&self, nic: usize) -> MutexGuard<'_, State> {
        let waits = |state: &mut State| !state.nics[nic].up && state.nics[nic].present;
        self.up.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, name: &str) -> Option<usize> {
        self.nics.iter().position(|nic| nic.name == name && nic.present)
    }

    /// Every buffer of a memory is in one place alone.
    fn check_memory_of(&self, place: usize) -> Result<(), String> {
        let Some(memory) = &self.memories[place] else { return Ok(()) };
        let mut seen = vec![0_u32; memory.buffers() as usize];
        let mut note = |buf: u32| match seen.get_mut(buf as usize) {
            Some(count) => *count += 1,
            None => seen[0] += 1,
        };
        memory.free_buffers().for_each(&mut note);
        for nic in self.nics.iter().filter(|nic| nic.memory == place) {
            nic.buffers(memory).for_each(&mut note);
        }
        let wrong = |at: usize, count: u32| count != u32::from(at >= 2);
        match seen.iter().enumerate().find(|(at, count)| wrong(*at, **count)) {
            None => Ok(()),
            Some((at, count)) => Err(format!("buffer {at} is in {count} places")),
        }
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Module for Provider {
    fn open(&self) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(handle::Open::new(self.clone())?))
    }
}
