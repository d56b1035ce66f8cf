//! `netmap:` and `vale…:`: the netmap module's rings.
//!
//! | file | what |
//! |---|---|
//! | `name` | what a port's name asks for |
//! | `abi`, `control` | the module's requests, and who may ask them |
//! | `sys` | `/dev/netmap`, and the seam where the [`provider`](crate::provider) takes its place |
//! | `layout` | the structures in shared memory |
//! | `region` | finds the rings in a mapped region |
//! | `user` | the user's half of a ring |
//! | `sides` | both directions of a handle's rings, and when they are synced |
//! | `open`, `refusal` | from a name to ports, or to an error that helps |
//! | `long` | frames of several slots, in one piece |
//! | `beside` | NIC and kernel: what is not ours goes on |
//! | `cut` | the same for what is longer than a buffer |
//! | `steering` | what is ours |
//! | `extra` | extra buffers |
//! | `admin`, `manners` | what is asked of the module besides ports, and how it answers |
//!
//! Everything above a sync is the same whether the module or the provider stands below it.
//!
//! A descriptor of its own per ring pair, so that each shard polls and syncs alone; the memory is mapped
//! once per allocator, so that buffers can be swapped between the rings of a device.

pub(crate) mod abi;
pub mod admin;
mod beside;
pub(crate) mod control;
mod cut;
mod extra;
pub(crate) mod layout;
mod long;
mod manners;
pub(crate) mod name;
pub(crate) mod open;
mod refusal;
pub(crate) mod region;
mod sides;
mod steering;
pub(crate) mod sys;
#[cfg(test)]
mod tests;
pub(crate) mod user;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::sys::Flags;
use crate::{
    Caps, Counters, Device, DeviceSpec, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing,
};
use beside::Beside;
use sides::Sides;
use sys::{Handle, Module};

/// How soon to look again while frames wait for room that no descriptor tells of.
const RETRY: Duration = Duration::from_millis(1);

/// Opens what `spec` says with the kernel's module.
pub(crate) fn open(spec: &DeviceSpec, options: &OpenOptions) -> Result<Device, PortError> {
    open::open(&sys::Kernel, spec, options)
}

/// Whether a module with a control interface that we know answers.
pub(crate) fn probe() -> io::Result<()> {
    control::dialect(&*sys::Kernel.open()?).map(drop)
}

/// A ring pair of the module.
#[derive(Debug)]
struct NetmapPort {
    caps: Caps,
    sides: Sides,
    /// The kernel goes on using the NIC.
    beside: Option<Beside>,
    /// Rings that have to be in netmap mode for ours to get frames.
    _held: Option<Box<dyn Handle>>,
    /// Has the NIC take frames for every group: neighbour discovery asks by groups, and a NIC leaves out those that nobody wants.
    _groups: Option<OwnedFd>,
    /// The caller said that it sleeps.
    armed: bool,
    /// The interface is down: a call would not return.
    down: bool,
    /// Tells whether it is, where there is one.
    flags: Option<Flags>,
    /// It may have gone down while the caller slept, and whoever would say so may not have heard of it yet: it is asked before
    /// the module is.
    doubt: bool,
    /// Bytes of virtio-net header in front of the module's frames.
    header: usize,
}

impl NetmapPort {
    /// The port as users see it: frames of several slots are put together.
    fn finished(self) -> io::Result<Box<dyn Port>> {
        let long = self.header > 0 || self.caps.mtu > self.caps.frame_bytes_max;
        Ok(Box::new(long::LongPort::new(self, long)?))
    }

    /// Whether a call would return.
    fn may_ask(&mut self) -> bool {
        if self.doubt && !self.down {
            self.doubt = self.flags.as_ref().is_some_and(|flags| flags.up() == Some(false));
        }
        !self.doubt && !self.down
    }

    /// Whether frames came while the caller slept, which only a NIC that is up has.
    fn has_frames(&self) -> bool {
        let host = self.beside.as_ref().and_then(|beside| beside.from_host.as_ref());
        self.sides.rx.has_news() || host.is_some_and(|host| host.rx.has_news())
    }
}

impl Port for NetmapPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.doubt = self.doubt && !self.has_frames();
        if !self.may_ask() {
            return Ok(self.sides.rx.slots.available());
        }
        let woken = std::mem::take(&mut self.armed);
        let Self { sides, beside, .. } = self;
        let first_new = sides.rx_sync(false)?;
        let Some(beside) = beside else {
            let (frames, bytes) = sides.rx.count_from(first_new);
            sides.counters.rx_frames += frames;
            sides.counters.rx_bytes += bytes;
            if woken && frames == 0 {
                sides.check_alive()?;
            }
            return Ok(sides.rx.slots.available());
        };
        let (frames, bytes) = beside.sort(&mut sides.rx.slots, first_new)?;
        sides.counters.rx_frames += frames;
        sides.counters.rx_bytes += bytes;
        beside.retry()?;
        let from_host = beside.serve_host(&mut sides.tx.slots, woken)?;
        if woken && from_host == 0 && sides.rx.slots.tail == first_new {
            sides.check_alive()?;
        }
        Ok(Beside::readable(&sides.rx.slots))
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        if self.may_ask() {
            self.sides.tx_sync()?;
        }
        Ok(self.sides.tx.slots.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.sides.rx.slots), TxRing::new(&mut self.sides.tx.slots))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        (self.armed, self.doubt) = (true, true);
        // Waiting on the descriptor performs the sync, so all that is needed is the module's view of head.
        self.sides.rx.publish();
        let quiet = self.beside.as_mut().is_none_or(Beside::arm);
        Ok(quiet && self.sides.rx.slots.available() == 0)
    }

    fn poll_fds(&self) -> PollFds {
        let own = PollFds::readable(self.sides.handle.fd().as_raw_fd());
        match self.beside.as_ref().and_then(|beside| beside.from_host.as_ref()) {
            Some(host) => own.and(PollFd { fd: host.handle.fd().as_raw_fd(), events: libc::POLLIN }),
            None => own,
        }
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        Some(PollFd { fd: self.sides.handle.fd().as_raw_fd(), events: libc::POLLOUT })
    }

    fn set_up(&mut self, up: bool) -> bool {
        (self.down, self.doubt) = (!up, true);
        true
    }

    fn rx_time(&self) -> Option<Duration> {
        Some(self.sides.rx.synced_at()).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    fn resync_in(&self) -> Option<Duration> {
        self.beside.as_ref().filter(|beside| !self.down && beside.waits()).map(|_| RETRY)
    }

    fn counters(&self) -> Counters {
        let counters = self.sides.counters();
        self.beside.as_ref().map_or(counters, |beside| beside.counters(counters))
    }
}
