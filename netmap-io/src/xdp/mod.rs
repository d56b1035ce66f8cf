//! `xdp:`: AF_XDP sockets, one per queue, and the program that steers our frames to them.
//!
//! ```text
//!            fill ring ◄── released slots ──┐
//!  kernel ─► rx ring ────► rx slots ────────┴► user      one packet memory, a buffer
//!            tx ring ◄──── committed slots ◄── user      stands in one ring at a time
//!            completion ─► free slots
//! ```
//!
//! The kernel's four descriptor rings are turned into netmap's two slot rings at each sync; frames
//! themselves are not copied here. In copy mode the kernel copies between its socket buffers and our
//! memory, in zero-copy mode the NIC writes into it.

mod asm;
mod bpf;
mod program;
mod ring;
mod steer;
mod sys;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::memory::SlotMemory;
use crate::ring::SlotRing;
use crate::sys::{Interface, interface, raise_memlock};
use crate::{
    Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, Slot, TxRing, ZeroCopy,
};
use steer::{XdpSteering, refused};
use sys::{Desc, Kick, Rings, Sizes, Socket};

/// Bytes that the kernel leaves free in front of every received frame.
const XDP_HEADROOM: u32 = 256;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;
/// How long frames may wait in the tx ring after the kernel had no room for them.
const TX_RETRY: Duration = Duration::from_millis(1);
/// Calls per sync at most: on kernels that send 32 frames per call, this is 1024 frames.
const KICKS_MAX: u32 = 32;
/// How often, and how far apart, a busy queue is tried again.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Opens `queue` of an interface, or all of them.
pub(crate) fn open(name: &str, queue: Option<u32>, options: &OpenOptions) -> Result<Device, PortError> {
    let (device, queue) = find(name, queue)?;
    if !device.ethernet {
        return Err(PortError::Option {
            option: format!("xdp:{}", device.name),
            reason: "not an Ethernet interface; utcp serves Ethernet, veth and TAP".into(),
        });
    }
    if let Some(queue) = queue.filter(|queue| *queue >= device.queues) {
        return Err(PortError::NoQueue { name: device.name, queue, queues: device.queues });
    }
    let sizes = sizes(&device, options)?;
    let mut steering = XdpSteering::load(device.queues, options.tuples_max)?;
    let native = steering.attach(&device.name, device.index, options.xdp_mode)?;
    let steering = Arc::new(steering);
    let queues = queue.map_or(0..device.queues, |queue| queue..queue + 1);
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for queue in queues {
        let port = XdpPort::open(&device, queue, sizes, native, options, &steering)?;
        ports.push(Box::new(port));
    }
    Ok(Device { ports, steering: Some(steering) })
}

pub(crate) use steer::PROGRAM_NAME as STEERING_PROGRAM;

/// Makes an AF_XDP socket and drops it.
pub(crate) fn probe_socket() -> io::Result<()> {
    Socket::new().map(drop)
}

/// Makes a BPF map and drops it.
pub(crate) fn probe_bpf() -> io::Result<()> {
    bpf::Map::<u32, u32>::new(bpf::MapType::Array, "utcp_probe", 1, 0).map(drop)
}

/// Name of the BPF program with that number.
pub(crate) fn program_name(id: u32) -> Option<String> {
    bpf::program_name(id)
}

/// Looks the interface up. A name that itself ends like a queue (`br-12`) is found as a whole.
fn find(name: &str, queue: Option<u32>) -> Result<(Interface, Option<u32>), PortError> {
    let ask = |name: &str| {
        interface(name).map_err(|error| PortError::io(format!("asking for interface {name}"), error))
    };
    if let Some(device) = ask(name)? {
        return Ok((device, queue));
    }
    let whole = match queue {
        Some(queue) => ask(&format!("{name}-{queue}"))?,
        None => None,
    };
    whole.map(|device| (device, None)).ok_or_else(|| PortError::NoInterface { name: name.into() })
}

fn sizes(device: &Interface, options: &OpenOptions) -> Result<Sizes, PortError> {
    let fits_2048 = device.mtu + LINK_HEADER + XDP_HEADROOM <= 2048;
    let frame_size = options.frame_size.unwrap_or(if fits_2048 { 2048 } else { 4096 });
    if !matches!(frame_size, 2048 | 4096) {
        return Err(PortError::Option {
            option: format!("frame_size {frame_size}"),
            reason: "AF_XDP has buffers of 2048 or 4096 bytes".into(),
        });
    }
    for (what, slots) in [("rx_slots", options.rx_slots), ("tx_slots", options.tx_slots)] {
        if !slots.is_power_of_two() || !(2..=32_768).contains(&slots) {
            return Err(PortError::Option {
                option: format!("{what} {slots}"),
                reason: "a ring has a power of two of slots, 2 to 32768".into(),
            });
        }
    }
    Ok(Sizes { rx_slots: options.rx_slots, tx_slots: options.tx_slots, frame_size })
}

/// One AF_XDP socket on one queue.
#[derive(Debug)]
struct XdpPort {
    caps: Caps,
    socket: Socket,
    rings: Rings,
    rx: SlotRing,
    tx: SlotRing,
    /// First rx slot whose buffer was not given back to the kernel yet.
    rx_returned: u32,
    /// First tx slot that was not handed to the kernel yet.
    tx_handed: u32,
    /// The kernel had no room for everything at the last kick.
    tx_stuck: bool,
    counters: Counters,
    /// Bits of an address that are the offset in a buffer.
    offset_mask: u64,
    frame_shift: u32,
    /// Detaches the program with the last port.
    _steering: Arc<XdpSteering>,
    /// Slots and buffers of both rings; behind the socket, which is closed first.
    _memory: SlotMemory,
}

impl XdpPort {
    fn open(
        device: &Interface,
        queue: u32,
        sizes: Sizes,
        native: bool,
        options: &OpenOptions,
        steering: &Arc<XdpSteering>,
    ) -> Result<Self, PortError> {
        let socket = Socket::new().map_err(|error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => PortError::Option {
                option: "xdp:".into(),
                reason: "this kernel was built without AF_XDP; use a tap: port".into(),
            },
            _ => refused("making an AF_XDP socket", error),
        })?;
        let memory = SlotMemory::new(sizes.rx_slots, sizes.tx_slots, sizes.frame_size)
            .map_err(|error| PortError::io("allocating packet memory", error))?;
        let rings = set_up(&socket, &memory, sizes)?;
        let (rx, tx) = memory.rings();
        let zero_copy = bind(&socket, device, queue, native, options.zero_copy)?;
        steering.set_socket(queue, socket.as_fd())?;
        let copy = if zero_copy { "zero-copy" } else { "copy" };
        let mode = if native { "native" } else { "generic" };
        let frame_room = sizes.frame_size - XDP_HEADROOM - LINK_HEADER;
        let caps = Caps {
            name: format!("xdp:{}-{queue}", device.name),
            interface: Some(device.name.clone()),
            ifindex: Some(device.index),
            queue,
            mac: device.mac,
            mtu: device.mtu.min(frame_room),
            mtu_max: frame_room,
            frame_bytes_max: sizes.frame_size,
            rx_slots: sizes.rx_slots,
            tx_slots: sizes.tx_slots,
            // A bridge joins what may be all of these.
            local: matches!(device.driver.as_str(), "veth" | "tun" | "bridge"),
            zero_copy,
            mode: format!("AF_XDP, {copy}, {mode}"),
            ..Caps::default()
        };
        let mut port = Self {
            caps,
            socket,
            rings,
            rx,
            tx,
            rx_returned: 0,
            tx_handed: 0,
            tx_stuck: false,
            counters: Counters::default(),
            offset_mask: u64::from(sizes.frame_size - 1),
            frame_shift: sizes.frame_size.trailing_zeros(),
            _steering: steering.clone(),
            _memory: memory,
        };
        port.prime(sizes);
        Ok(port)
    }

    /// Gives the kernel a buffer for every rx slot. Tx slots are all free but the one that netmap's
    /// rings leave out to tell full from empty; they have their buffers already.
    fn prime(&mut self, sizes: Sizes) {
        for slot in 0..sizes.rx_slots {
            let buf = self.rx.slot(slot).buf;
            self.rings.fill.push(u64::from(buf) << self.frame_shift);
        }
        self.rings.fill.publish();
        self.tx.tail = sizes.tx_slots - 1;
    }

    /// Buffers of the slots that were read go back to the kernel.
    fn return_buffers(&mut self) -> u32 {
        while self.rx_returned != self.rx.head {
            let slot = self.rx.slot(self.rx_returned);
            self.rings.fill.push(u64::from(slot.buf) << self.frame_shift);
            self.rx_returned = self.rx.next(self.rx_returned);
        }
        self.rings.fill.publish()
    }

    /// Arrived frames become slots.
    fn take_frames(&mut self) {
        let room = self.rx.num_slots() - 1 - self.rx.available();
        let frames = self.rings.rx.refresh().min(room);
        if frames == 0 {
            return;
        }
        let mut tail = self.rx.tail;
        let mut bytes = 0;
        for _ in 0..frames {
            let Some(desc) = self.rings.rx.pop() else { break };
            let buf = u32::try_from(desc.addr >> self.frame_shift).unwrap_or(u32::MAX);
            let len = u16::try_from(desc.len).unwrap_or(u16::MAX);
            self.rx.set_slot(tail, Slot { buf, len, flags: 0, ptr: desc.addr & self.offset_mask });
            bytes += u64::from(desc.len);
            tail = self.rx.next(tail);
        }
        self.rings.rx.release();
        self.rx.tail = tail;
        self.counters.rx_frames += u64::from(frames);
        self.counters.rx_bytes += bytes;
    }

    /// Committed slots become descriptors. Returns their number.
    fn hand_over(&mut self) -> u32 {
        let mut bytes = 0;
        while self.tx_handed != self.tx.head {
            let slot = self.tx.slot(self.tx_handed);
            let addr = u64::from(slot.buf) << self.frame_shift | slot.ptr & self.offset_mask;
            self.rings.tx.push(Desc { addr, len: u32::from(slot.len), options: 0 });
            bytes += u64::from(slot.len);
            self.tx_handed = self.tx.next(self.tx_handed);
        }
        let frames = self.rings.tx.publish();
        self.counters.tx_frames += u64::from(frames);
        self.counters.tx_bytes += bytes;
        frames
    }

    /// One call for the whole batch; more only on kernels with a smaller budget per call.
    fn kick(&mut self) -> Result<(), PortError> {
        self.tx_stuck = false;
        for _ in 0..KICKS_MAX {
            if !self.rings.tx.need_wakeup() {
                return Ok(());
            }
            let before = self.rings.tx.unread();
            self.counters.tx_syscalls += 1;
            match self.socket.kick_tx().map_err(|error| self.gone(error))? {
                Kick::Done => return Ok(()),
                Kick::Again if self.rings.tx.unread() < before => {}
                Kick::Again | Kick::Down => break,
            }
        }
        self.tx_stuck = self.rings.tx.unread() > 0;
        Ok(())
    }

    fn gone(&self, error: io::Error) -> PortError {
        match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => {
                PortError::Gone { device: self.caps.name.clone(), reason: error.to_string() }
            }
            _ => PortError::io(format!("sending on {}", self.caps.name), error),
        }
    }

    /// Buffers whose frames have left become free slots.
    fn take_sent(&mut self) {
        let sent = self.rings.completion.refresh();
        if sent == 0 {
            return;
        }
        let mut tail = self.tx.tail;
        for _ in 0..sent {
            let Some(addr) = self.rings.completion.pop() else { break };
            let buf = u32::try_from(addr >> self.frame_shift).unwrap_or(u32::MAX);
            self.tx.set_slot(tail, Slot { buf, ..Slot::default() });
            tail = self.tx.next(tail);
        }
        self.rings.completion.release();
        self.tx.tail = tail;
    }
}

fn set_up(socket: &Socket, memory: &SlotMemory, sizes: Sizes) -> Result<Rings, PortError> {
    let bytes = memory.buffers().len();
    let result = match socket.set_up(memory.buffers(), sizes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            raise_memlock(bytes as u64);
            socket.set_up(memory.buffers(), sizes)
        }
        other => other,
    };
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOBUFS) => PortError::LockedMemory { need_bytes: bytes as u64 },
        _ => refused("setting up an AF_XDP socket", error),
    })
}

/// Joins the socket to its queue; returns whether it is zero-copy.
fn bind(
    socket: &Socket,
    device: &Interface,
    queue: u32,
    native: bool,
    zero_copy: ZeroCopy,
) -> Result<bool, PortError> {
    let flags = match zero_copy {
        // A generic program runs behind the driver, where only copies are left.
        ZeroCopy::Off => libc::XDP_COPY,
        ZeroCopy::Auto if !native => libc::XDP_COPY,
        ZeroCopy::Auto => 0,
        ZeroCopy::Force => libc::XDP_ZEROCOPY,
    };
    let bind = |flags| bind_when_free(socket, device.index, queue, flags | libc::XDP_USE_NEED_WAKEUP);
    let bound = match bind(flags) {
        // Some drivers have the mode but refuse it for this queue or MTU.
        Err(error) if flags == 0 && error.raw_os_error() != Some(libc::EBUSY) => bind(libc::XDP_COPY),
        other => other,
    };
    bound.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => PortError::InUse {
            what: format!("queue {queue} of {}", device.name),
            detail: "another AF_XDP socket is bound to it; stop that program or name another queue".into(),
        },
        Some(libc::EOPNOTSUPP | libc::EINVAL) if zero_copy == ZeroCopy::Force => PortError::Option {
            option: "zero_copy force".into(),
            reason: format!(
                "the driver {:?} of {} has no zero-copy mode for this queue",
                device.driver, device.name
            ),
        },
        _ => refused("binding an AF_XDP socket to its queue", error),
    })?;
    Ok(socket.zero_copy())
}

/// The kernel frees the queue of a closed socket some time after the close, so an engine that is
/// restarted finds it busy for a moment.
fn bind_when_free(socket: &Socket, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    for _ in 0..BUSY_RETRIES {
        match socket.bind(ifindex, queue, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    socket.bind(ifindex, queue, flags)
}

impl Port for XdpPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        let returned = self.return_buffers();
        self.take_frames();
        if returned > 0 && self.rings.fill.need_wakeup() {
            self.counters.rx_syscalls += 1;
            self.socket.kick_rx();
        }
        Ok(self.rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        if self.hand_over() > 0 || self.tx_stuck {
            self.kick()?;
        }
        self.take_sent();
        Ok(self.tx.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx), TxRing::new(&mut self.tx))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        // The kernel wakes the descriptor for every frame, armed or not: there is nothing to announce.
        Ok(self.rx.available() == 0 && self.rings.rx.refresh() == 0)
    }

    fn poll_fds(&self) -> PollFds {
        PollFds::readable(self.socket.as_fd().as_raw_fd())
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        Some(PollFd { fd: self.socket.as_fd().as_raw_fd(), events: libc::POLLOUT })
    }

    fn resync_in(&self) -> Option<Duration> {
        self.tx_stuck.then_some(TX_RETRY)
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.rx_bad_slot = self.rx.bad_slots;
        counters.tx_bad_slot = self.tx.bad_slots;
        if let Ok(kernel) = self.socket.statistics() {
            counters.rx_ring_full = kernel.rx_ring_full;
            counters.rx_dropped = kernel.rx_dropped;
            counters.rx_bad_slot += kernel.rx_invalid_descs;
            counters.tx_bad_slot += kernel.tx_invalid_descs;
        }
        counters
    }
}

#[cfg(test)]
mod tests;
