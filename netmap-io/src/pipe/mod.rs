//! `pipe:`: two ports joined in shared memory, by netmap's rings and netmap's rules.
//!
//! ```text
//!   end 0                 memory                 end 1
//!   tx ring ─ slots ──► same buffers ──► slots ─ rx ring
//!   rx ring ◄ slots ─── same buffers ◄── slots ─ tx ring
//!                doorbells (eventfd, rung when armed)
//! ```
//!
//! It is what the netmap module's pipes are, done by `provider` in the process that syncs: a frame
//! moves by copying its 16-byte slot, never its bytes. Both ends are trusted with each other's bytes (they
//! are one user's), but not with indices: those are checked, so that a broken end costs an error and no
//! memory safety beyond the packet buffers.

mod provider;
mod rendezvous;
pub(crate) mod sys;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::netmap::user::UserRing;
use crate::{Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing};
use provider::{ARM_RX, ARM_TX, Kring, Nonsense, Shape, SharedMemory};

/// IP packet size where the caller doesn't ask for larger buffers: a common Ethernet's.
const MTU: u32 = 1500;
/// Bytes of a buffer. An odd number of cache lines: buffers a power of two apart would meet in a few sets of every cache.
const BUFFER: u32 = 2048 + 64;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;

/// Joins two ports within this process.
///
/// # Errors
/// When the kernel has no memory or descriptors left, or the options name sizes that rings can't have.
pub fn pair(name: &str, options: &OpenOptions) -> Result<[Box<dyn Port>; 2], PortError> {
    let shape = shape(options)?;
    let system = |error| PortError::io(format!("making pipe:{name}"), error);
    let memory = Arc::new(SharedMemory::create(shape).map_err(system)?);
    let [first, second] = sys::doorbells().map_err(system)?;
    let (here, there) = sys::socket_pair().map_err(system)?;
    let second_pair = [second.try_clone().map_err(system)?, first.try_clone().map_err(system)?];
    let a = PipePort::new(name, 0, memory.clone(), [first, second], here);
    let b = PipePort::new(name, 1, memory, second_pair, there);
    Ok([Box::new(a), Box::new(b)])
}

/// One end, and what another process makes the other end of: memory, its doorbell, ours, and a socket that hangs up when
/// one of us is gone.
pub(crate) fn lend(name: &str, options: &OpenOptions) -> Result<(Box<dyn Port>, [OwnedFd; 4]), PortError> {
    let system = |error| PortError::io(format!("making pipe:{name}"), error);
    let memory = SharedMemory::create(shape(options)?).map_err(system)?;
    let file = memory.file().try_clone().map_err(system)?;
    let [ours, theirs] = sys::doorbells().map_err(system)?;
    let copies = [theirs.try_clone().map_err(system)?, ours.try_clone().map_err(system)?];
    let (here, there) = sys::socket_pair().map_err(system)?;
    let port = PipePort::new(name, 0, Arc::new(memory), [ours, theirs], here);
    let [their_bell, our_bell] = copies;
    Ok((Box::new(port), [file, their_bell, our_bell, there]))
}

/// The other end of what [`lend`] made; `describe` says what it is a port of.
pub(crate) fn borrow(
    name: &str,
    fds: [OwnedFd; 4],
    describe: impl FnOnce(&mut Caps),
) -> Result<Box<dyn Port>, PortError> {
    let [file, ours, theirs, peer] = fds;
    let memory =
        SharedMemory::join(file).map_err(|error| PortError::io(format!("joining pipe:{name}"), error))?;
    let mut port = PipePort::new(name, 1, Arc::new(memory), [ours, theirs], peer);
    describe(&mut port.caps);
    Ok(Box::new(port))
}

/// Opens one end of `pipe:NAME` and waits for the other.
pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Device, PortError> {
    let met = rendezvous::meet(name, shape(options)?, options.pipe_wait)?;
    let port = PipePort::new(name, met.end, Arc::new(met.memory), met.doorbells, met.peer);
    Ok(Device { ports: vec![Box::new(port)], steering: None })
}

/// Both ends of a ring pair have as many slots as the larger ring that was asked for.
fn shape(options: &OpenOptions) -> Result<Shape, PortError> {
    let slots = options.rx_slots.max(options.tx_slots);
    let buf_size = options.frame_size.unwrap_or(BUFFER);
    if !(2..=65_536).contains(&slots) {
        return Err(PortError::Option {
            option: format!("slots {slots}"),
            reason: "2 to 65536 will do".into(),
        });
    }
    if !provider::is_buffer_size(buf_size) {
        let reason = "a pipe has buffers of 128 to 65536 bytes, whole cache lines of 64".into();
        return Err(PortError::Option { option: format!("frame_size {buf_size}"), reason });
    }
    Ok(Shape {
        slots,
        buf_size,
        mtu: if options.frame_size.is_some() { buf_size - LINK_HEADER } else { MTU },
    })
}

/// The station address of an end.
fn mac(end: u32) -> [u8; 6] {
    [0x02, b'u', b't', b'c', b'p', u8::try_from(end).unwrap_or(0)]
}

/// One end.
#[derive(Debug)]
struct PipePort {
    caps: Caps,
    end: u32,
    rx: UserRing,
    tx: UserRing,
    rx_kring: Kring,
    tx_kring: Kring,
    /// We may sleep: the other end rings when it has something for us.
    armed: bool,
    counters: Counters,
    memory: Arc<SharedMemory>,
    /// Rung by the other end, and rung by us.
    doorbell: OwnedFd,
    peer_doorbell: OwnedFd,
    /// Hangs up when the other end is gone.
    peer: OwnedFd,
}

impl PipePort {
    fn new(
        name: &str,
        end: u32,
        memory: Arc<SharedMemory>,
        [doorbell, peer_doorbell]: [OwnedFd; 2],
        peer: OwnedFd,
    ) -> Self {
        let shape = memory.shape();
        let caps = Caps {
            name: format!("pipe:{name}"),
            mac: mac(end),
            peer_mac: Some(mac(1 - end)),
            mtu: shape.mtu,
            frame_bytes_max: shape.buf_size,
            rx_slots: shape.slots,
            tx_slots: shape.slots,
            local: true,
            zero_copy: true,
            mode: "netmap rings in shared memory".into(),
            ..Caps::default()
        };
        let (tx, tx_kring) = memory.tx_ring(end);
        let (rx, rx_kring) = memory.rx_ring(end);
        let counters = Counters::default();
        Self {
            caps,
            end,
            rx,
            tx,
            rx_kring,
            tx_kring,
            armed: false,
            counters,
            memory,
            doorbell,
            peer_doorbell,
            peer,
        }
    }

    fn nonsense(&self, _: Nonsense) -> PortError {
        let reason = "its other end wrote ring indices that make no sense".into();
        PortError::Gone { device: self.caps.name.clone(), reason }
    }

    /// Rings the other end's doorbell if it waits for `what`. Returns whether it did.
    fn ring(&self, what: u32) -> bool {
        let armed = self.memory.armed(1 - self.end);
        // The index was published before; the fence keeps it before the look at the flag, as the sleeper
        // keeps its flag before the look at the index. One of the two sees the other.
        std::sync::atomic::fence(Ordering::SeqCst);
        if armed.load(Ordering::Relaxed) & what == 0 || armed.swap(0, Ordering::AcqRel) == 0 {
            return false;
        }
        sys::ring(&self.peer_doorbell);
        true
    }

    /// Ends the announcement of [`Port::arm`].
    fn disarm(&mut self) -> Result<(), PortError> {
        self.armed = false;
        self.memory.armed(self.end).store(0, Ordering::Release);
        // Whatever the flag said: a ring that was begun before may arrive at any time, and a bell that is
        // left rung would never let anyone sleep again.
        sys::clear(&self.doorbell);
        // Only after sleeping: a dead end rings no bell, its socket hangs up.
        self.counters.rx_syscalls += 2;
        if sys::hung_up(&self.peer) {
            let reason = "its other end was closed".into();
            return Err(PortError::Gone { device: self.caps.name.clone(), reason });
        }
        Ok(())
    }
}

impl Port for PipePort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        let gone = if self.armed { self.disarm() } else { Ok(()) };
        self.rx.publish();
        let done = self.rx_kring.rx_sync(&self.memory).map_err(|error| self.nonsense(error))?;
        if done.released && self.ring(ARM_TX) {
            self.counters.rx_syscalls += 1;
        }
        let old_tail = self.rx.refresh().old_tail;
        let (slots, bytes) = self.rx.count_from(old_tail);
        self.counters.rx_frames += slots;
        self.counters.rx_bytes += bytes;
        let frames = self.rx.slots.available();
        // What the other end sent before it left is still worth reading.
        if frames == 0 { gone.map(|()| 0) } else { Ok(frames) }
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.tx.publish();
        let sent = self.tx_kring.tx_sync(&self.memory).map_err(|error| self.nonsense(error))?;
        self.counters.tx_frames += sent.slots;
        self.counters.tx_bytes += sent.bytes;
        if sent.slots > 0 && self.ring(ARM_RX) {
            self.counters.tx_syscalls += 1;
        }
        self.tx.refresh();
        Ok(self.tx.slots.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx.slots), TxRing::new(&mut self.tx.slots))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        self.armed = true;
        let tx_full = self.tx.slots.available() == 0;
        let what = if tx_full { ARM_RX | ARM_TX } else { ARM_RX };
        self.memory.armed(self.end).store(what, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        let frames = self.rx.slots.available() > 0 || self.rx_kring.has_news(&self.memory);
        let space = tx_full && self.tx_kring.has_news(&self.memory);
        Ok(!frames && !space)
    }

    fn poll_fds(&self) -> PollFds {
        let hang_up = PollFd { fd: self.peer.as_raw_fd(), events: libc::POLLIN };
        PollFds::readable(self.doorbell.as_raw_fd()).and(hang_up)
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        None
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.rx_bad_slot = self.rx.slots.bad_slots;
        counters.tx_bad_slot = self.tx.slots.bad_slots + self.tx_kring.bad_slots;
        counters.ring_resets = self.rx_kring.resets + self.tx_kring.resets;
        counters
    }
}

#[cfg(test)]
mod tests;
