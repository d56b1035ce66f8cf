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
//! themselves are not copied here (`direct`). In copy mode the kernel copies between its socket buffers and our
//! memory, in zero-copy mode the NIC writes into it. Frames that are longer than a buffer come and go in pieces
//! (`joined`).
//!
//! Each queue has a packet memory of its own: queues belong to shards, which share nothing, so one memory for all of them
//! (`XDP_SHARED_UMEM`) would save no copy.

mod asm;
mod behind;
mod bpf;
mod direct;
mod hook;
mod joined;
mod packets;
mod program;
mod registered;
mod ring;
mod rules;
mod steer;
mod sys;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::memory::SlotMemory;
use crate::ring::SlotRing;
use crate::rss::Rss;
use crate::sys::{Interface, interface, raise_memlock};
use crate::{
    Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing, ZeroCopy,
};
use direct::Direct;
use joined::Joined;
use steer::{XdpSteering, refused};
use sys::{Kick, Rings, Sizes, Socket};

/// Bytes that the kernel leaves free in front of every received frame.
const XDP_HEADROOM: u32 = 256;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;
/// Slots for jumbo frames, and for the longest IP packet.
const JUMBO_FRAME: u32 = 16_384;
const LONGEST_FRAME: u32 = 65_536;
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
    check_options(options)?;
    if packets::fits(&device, options) {
        match packets::open(&device, options) {
            Err(error) if packets::unknown(&error) => {}
            other => return other,
        }
    }
    // With one queue of several, what comes to the others stays the kernel's.
    let kept = options.kept && (queue.is_none() || device.queues == 1);
    let mut steering = XdpSteering::load(device.queues, options.tuples_max, kept)?;
    let native = steering.attach(&device.name, device.index, options.xdp_mode, kept)?;
    let form = form(&device, native, options);
    let steering = Arc::new(steering);
    let rss = Rss::of(&device.name).ok().flatten().map(Arc::new);
    let queues = queue.map_or(0..device.queues, |queue| queue..queue + 1);
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for queue in queues {
        let mut port = XdpPort::open(&device, queue, form, native, options, &steering)?;
        port.caps.rss.clone_from(&rss);
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

/// Whether short frames behind GRO need no packet socket to come, and to leave.
pub(crate) fn short_ways() -> (bool, bool) {
    packets::short_ways()
}

/// Name of the BPF program with that number.
pub(crate) fn program_name(id: u32) -> Option<String> {
    bpf::program_name(id)
}

/// Number of our steering program behind GRO of an interface, and those that are asked before it.
pub(crate) fn steers_behind(ifindex: u32) -> Option<(u32, Vec<u32>)> {
    let mut all = bpf::programs_behind(ifindex);
    let ours = |id: &u32| bpf::program_name(*id).as_deref() == Some(STEERING_PROGRAM);
    let at = all.iter().position(ours)?;
    let id = all[at];
    all.truncate(at);
    Some((id, all))
}

/// Chains of nftables that frames for our packet sockets meet first.
pub(crate) fn rules_before(interface: &str) -> Vec<String> {
    rules::ingress_chains(interface).unwrap_or_default()
}

/// Whether a device of these options stands behind GRO, so that XDP programs of others may be in front of it.
pub(crate) fn stands_behind(interface: &Interface) -> bool {
    packets::fits(interface, &OpenOptions { vnet_header: true, ..OpenOptions::default() })
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

fn check_options(options: &OpenOptions) -> Result<(), PortError> {
    if let Some(frame_size) = options.frame_size.filter(|size| !matches!(size, 2048 | 4096)) {
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
    Ok(())
}

/// How frames stand in memory.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Each in one of the kernel's buffers.
    Direct(Sizes),
    /// In slots of so many bytes, put together from pieces.
    Joined(Sizes, u32),
}

impl Form {
    /// The kernel's rings and buffers.
    fn sizes(self) -> Sizes {
        match self {
            Self::Direct(sizes) | Self::Joined(sizes, _) => sizes,
        }
    }
}

/// Direct where every frame fits. In generic mode frames come that the kernel has joined (GRO, or a local neighbour's GSO).
fn form(device: &Interface, native: bool, options: &OpenOptions) -> Form {
    let room = |frame_size: u32| frame_size - XDP_HEADROOM - LINK_HEADER;
    let fits = |frame_size: &u32| device.mtu <= room(*frame_size);
    let fitting = [2048, joined::PIECE].into_iter().find(fits).filter(|_| native);
    let sizes = |frame_size| Sizes { rx_slots: options.rx_slots, tx_slots: options.tx_slots, frame_size };
    match options.frame_size.or(fitting) {
        Some(frame_size) => Form::Direct(sizes(frame_size)),
        None if native && device.mtu <= JUMBO_FRAME - LINK_HEADER => {
            Form::Joined(sizes(joined::PIECE), JUMBO_FRAME)
        }
        None => Form::Joined(sizes(joined::PIECE), LONGEST_FRAME),
    }
}

/// One AF_XDP socket on one queue.
#[derive(Debug)]
struct XdpPort {
    caps: Caps,
    socket: Socket,
    rings: Rings,
    rx: SlotRing,
    tx: SlotRing,
    exchange: Exchange,
    /// The kernel had no room for everything at the last kick.
    tx_stuck: bool,
    counters: Counters,
    /// Detaches the program with the last port.
    _steering: Arc<XdpSteering>,
    /// Slots and buffers of both rings; behind the socket, which is closed first.
    _memory: SlotMemory,
}

/// How frames get from the kernel's rings into ours and back.
#[derive(Debug)]
enum Exchange {
    Direct(Direct),
    Joined(Joined),
}

impl XdpPort {
    fn open(
        device: &Interface,
        queue: u32,
        form: Form,
        native: bool,
        options: &OpenOptions,
        steering: &Arc<XdpSteering>,
    ) -> Result<Self, PortError> {
        let socket = new_socket()?;
        let no_memory = |error| PortError::io("allocating packet memory", error);
        let sizes = form.sizes();
        let kernel = SlotMemory::new(sizes.rx_slots, sizes.tx_slots, sizes.frame_size).map_err(no_memory)?;
        let mut rings = set_up(&socket, &kernel, sizes, 0)?;
        let joins = matches!(form, Form::Joined(..));
        let Bound { zero_copy, chains } = bind(&socket, device, queue, native, joins, options.zero_copy)?;
        steering.set_socket(queue, socket.as_fd())?;
        prime(&mut rings, sizes);
        let piece_room = sizes.frame_size - XDP_HEADROOM - LINK_HEADER;
        let (exchange, memory, frame_room, frame_bytes_max) = match form {
            Form::Direct(_) => {
                (Exchange::Direct(Direct::new(sizes.frame_size)), kernel, piece_room, sizes.frame_size)
            }
            Form::Joined(_, frame) => {
                let slots = |kernel: u32| kernel.min(joined::SLOTS_MAX);
                let long = SlotMemory::on_demand(slots(sizes.rx_slots), slots(sizes.tx_slots), frame);
                let exchange = Exchange::Joined(Joined::new(kernel, sizes.rx_slots, sizes.tx_slots));
                // Kernels before 6.6 take and give no chains.
                let room = if chains { frame - LINK_HEADER } else { piece_room };
                (exchange, long.map_err(no_memory)?, room, if chains { frame } else { sizes.frame_size })
            }
        };
        let (rx, mut tx) = memory.rings();
        // All tx slots are free but the one that netmap's rings leave out to tell full from empty.
        tx.tail = tx.num_slots() - 1;
        let caps = Caps {
            name: format!("xdp:{}-{queue}", device.name),
            interface: Some(device.name.clone()),
            ifindex: Some(device.index),
            queue,
            mac: device.mac,
            mtu: device.mtu.min(frame_room),
            mtu_max: frame_room,
            frame_bytes_max,
            rx_slots: rx.num_slots(),
            tx_slots: tx.num_slots(),
            // A bridge joins what may be all of these. In generic mode the kernel joins segments first, and leaves the
            // checksum of what it made partial (it has verified the parts).
            local: !native || matches!(device.driver.as_str(), "veth" | "tun" | "bridge"),
            zero_copy,
            mode: mode_in_words(zero_copy, native, joins && chains),
            ..Caps::default()
        };
        Ok(Self {
            caps,
            socket,
            rings,
            rx,
            tx,
            exchange,
            tx_stuck: false,
            counters: Counters::default(),
            _steering: steering.clone(),
            _memory: memory,
        })
    }

    /// Committed frames go to the kernel. Returns their number.
    fn hand_over(&mut self) -> u32 {
        let Self { exchange, rings, tx, counters, .. } = self;
        match exchange {
            Exchange::Direct(direct) => direct.hand_over(rings, tx, counters),
            Exchange::Joined(joined) => joined.hand_over(rings, tx, counters),
        }
    }

    /// What has left becomes room.
    fn take_sent(&mut self) {
        let Self { exchange, rings, tx, .. } = self;
        match exchange {
            Exchange::Direct(direct) => direct.take_sent(rings, tx),
            Exchange::Joined(joined) => joined.take_sent(rings),
        }
    }

    /// Committed frames wait for buffers.
    fn waits(&self) -> bool {
        matches!(&self.exchange, Exchange::Joined(joined) if joined.waits(&self.tx))
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
}

/// Gives the kernel a buffer for every descriptor of its rx ring.
fn prime(rings: &mut Rings, sizes: Sizes) {
    for buf in 0..sizes.rx_slots {
        rings.fill.push(u64::from(buf) * u64::from(sizes.frame_size));
    }
    rings.fill.publish();
}

fn mode_in_words(zero_copy: bool, native: bool, joins: bool) -> String {
    let copy = if zero_copy { "zero-copy" } else { "copy" };
    let mode = if native { "native" } else { "generic" };
    format!("AF_XDP, {copy}, {mode}{}", if joins { ", long frames" } else { "" })
}

fn new_socket() -> Result<Socket, PortError> {
    Socket::new().map_err(|error| match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => PortError::Option {
            option: "xdp:".into(),
            reason: "this kernel was built without AF_XDP; use a tap: port".into(),
        },
        _ => refused("making an AF_XDP socket", error),
    })
}

fn set_up(socket: &Socket, memory: &SlotMemory, sizes: Sizes, metadata: usize) -> Result<Rings, PortError> {
    let bytes = memory.buffers().len();
    let result = match socket.set_up(memory.buffers(), sizes, metadata) {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            raise_memlock(bytes as u64);
            socket.set_up(memory.buffers(), sizes, metadata)
        }
        other => other,
    };
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOBUFS) => PortError::LockedMemory { need_bytes: bytes as u64 },
        _ => refused("setting up an AF_XDP socket", error),
    })
}

/// How a socket was joined to its queue.
#[derive(Clone, Copy, Debug)]
struct Bound {
    zero_copy: bool,
    /// Frames may be chains of buffers.
    chains: bool,
}

/// Joins the socket to its queue.
fn bind(
    socket: &Socket,
    device: &Interface,
    queue: u32,
    native: bool,
    chains: bool,
    zero_copy: ZeroCopy,
) -> Result<Bound, PortError> {
    let bind = |flags| bind_when_free(socket, device.index, queue, flags | libc::XDP_USE_NEED_WAKEUP);
    let bound = first_that_binds(&ways_to_bind(native, chains, zero_copy), bind);
    let flags = bound.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => PortError::InUse {
            what: format!("queue {queue} of {}", device.name),
            detail: if device.queues > 1 {
                "another AF_XDP socket is bound to it; stop that program, name another queue, or share the device by `utcp switch`".into()
            } else {
                "another engine of utcp or AF_XDP socket has it; stop that program, or share the device by `utcp switch`".into()
            },
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
    Ok(Bound { zero_copy: socket.zero_copy(), chains: flags & libc::XDP_USE_SG != 0 })
}

/// Flags to try, the best first.
fn ways_to_bind(native: bool, chains: bool, zero_copy: ZeroCopy) -> Vec<u16> {
    let mut ways = match zero_copy {
        // A generic program runs behind the driver, where only copies are left.
        ZeroCopy::Off => vec![libc::XDP_COPY],
        ZeroCopy::Auto if !native => vec![libc::XDP_COPY],
        // Some drivers have zero-copy but refuse it for this queue or MTU.
        ZeroCopy::Auto => vec![0, libc::XDP_COPY],
        ZeroCopy::Force => vec![libc::XDP_ZEROCOPY],
    };
    if chains {
        // Kernels before 6.6 refuse the flag, and so do drivers whose zero-copy has no chains.
        let with = ways.iter().map(|way| way | libc::XDP_USE_SG);
        ways = with.chain(ways.iter().copied()).collect();
    }
    ways
}

/// Binds with the first flags that are not refused; which they were. A busy queue is busy for all.
fn first_that_binds(ways: &[u16], mut bind: impl FnMut(u16) -> io::Result<()>) -> io::Result<u16> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for &flags in ways {
        match bind(flags) {
            Ok(()) => return Ok(flags),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(error),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
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
        let Self { exchange, rings, rx, counters, .. } = self;
        let returned = match exchange {
            Exchange::Direct(direct) => direct.take_frames(rings, rx, counters),
            Exchange::Joined(joined) => joined.take_frames(rings, rx, counters),
        };
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
        if self.waits() && self.hand_over() > 0 {
            self.kick()?;
            self.take_sent();
        }
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
        (self.tx_stuck || self.waits()).then_some(TX_RETRY)
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
        if let Exchange::Joined(joined) = &self.exchange {
            counters.rx_dropped += joined.dropped();
        }
        counters
    }
}

#[cfg(test)]
mod tests;
