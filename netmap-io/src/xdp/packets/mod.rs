//! `xdp:` on a veth pair, with long frames: packet sockets behind the kernel's own joining and in front of its cutting.
//!
//! ```text
//!  neighbour ─► veth ─► GRO ─► steering program (tcx) ─┬─ ours: marked, "for another host" ─► packet socket's ring ─► rx slots
//!                                                      └─ else: the kernel's stack
//!  neighbour ◄─ veth ◄─ (cut, where the neighbour takes no long ones) ◄─ packet socket ◄─ tx slots
//! ```
//!
//! A frame of a veth pair is a socket buffer from end to end. For an XDP program the kernel copies each one into pages
//! first, and then AF_XDP copies it again; what a neighbour sent as one segment of 64 KiB is cut into forty-five frames
//! before that, because XDP has no long ones. Behind GRO the same bytes are one buffer, copied once. Measured: the same
//! stream takes less than half of the CPU time.
//!
//! The kernel's IP takes no frame that is for another host, so what the program marks reaches our sockets alone. The
//! sockets hear IPv4 and IPv6, each its own (what hears everything stands in front of the program). An AF_XDP socket
//! that sends and receives nothing holds the queue: one engine at a time drives a device, whichever way.
//!
//! On NICs AF_XDP is better: a driver's frames are no socket buffers there.

mod sys;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use super::steer::{XdpSteering, refused};
use super::{Rings, Sizes, Socket, TX_RETRY, bind, set_up};
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};
use crate::sys::Interface;
use crate::{
    Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing, XdpMode, ZeroCopy,
};
use sys::{CALL_MAX, Next, Receiver, Sender};

/// `struct virtio_net_hdr`.
const VNET_HEADER: u8 = 10;
/// Buffers for the longest segments of the kernel, and so many of them.
const FRAME: u32 = 65_536;
const SLOTS: u32 = 256;
/// Slots of each of the kernel's rings at most.
const KERNEL_SLOTS_MAX: u32 = 1024;
const LINK_HEADER: u32 = 18;
const ETHERTYPES: [u16; 2] = [0x0800, 0x86dd];
/// So often a sleep may end without a frame before the sockets are asked for an error: of an interface that goes down
/// they tell until somebody asks, and nobody would sleep.
const IDLE_MAX: u32 = 16;
/// What our frames are marked with between the program and the sockets; "utcp" in ASCII.
pub(super) const MARK: u32 = 0x7574_6370;

/// Whether these options leave the choice, and the device is one for it.
pub(super) fn fits(device: &Interface, options: &OpenOptions) -> bool {
    options.vnet_header
        && device.driver == "veth"
        && device.queues == 1
        && options.xdp_mode == XdpMode::Auto
        && options.zero_copy == ZeroCopy::Auto
        && options.frame_size.is_none()
}

/// Opens the device. Kernels before 6.6 have no tcx and refuse.
pub(super) fn open(device: &Interface, options: &OpenOptions) -> Result<Device, PortError> {
    let no_memory = |error| PortError::io("allocating packet memory", error);
    let hold = Hold::new(device)?;
    let vnet = usize::from(VNET_HEADER);
    let slots = options.rx_slots.min(KERNEL_SLOTS_MAX);
    let receiver = |protocol| Receiver::new(device.index, protocol, MARK, slots, vnet);
    let [v4, v6] = ETHERTYPES.map(receiver);
    let failed = |error| refused("making a packet socket", error);
    let receivers = [v4.map_err(failed)?, v6.map_err(failed)?];
    let sender = Sender::new(device.index).map_err(failed)?;
    let steering = Arc::new(XdpSteering::behind(device, options.tuples_max)?);
    let memory = SlotMemory::on_demand(SLOTS, SLOTS, FRAME).map_err(no_memory)?;
    let (rx, mut tx) = memory.rings();
    tx.tail = SLOTS - 1;
    let caps = Caps {
        name: format!("xdp:{}-0", device.name),
        interface: Some(device.name.clone()),
        ifindex: Some(device.index),
        mac: device.mac,
        mtu: device.mtu.min(FRAME - LINK_HEADER),
        mtu_max: FRAME - LINK_HEADER,
        frame_bytes_max: FRAME,
        rx_slots: SLOTS,
        tx_slots: SLOTS,
        local: true,
        tx_checksum: true,
        vnet_header: VNET_HEADER,
        mode: "packet sockets, long frames".into(),
        ..Caps::default()
    };
    let port = PacketPort {
        caps,
        receivers,
        sender,
        rx,
        tx,
        unsent: 0,
        stuck: false,
        idle: (0, 0),
        counters: Counters::default(),
        dropped: std::sync::atomic::AtomicU64::new(0),
        _steering: steering.clone(),
        _memory: memory,
        _hold: hold,
    };
    Ok(Device { ports: vec![Box::new(port)], steering: Some(steering) })
}

/// The queue is ours.
#[derive(Debug)]
struct Hold {
    _socket: Socket,
    _rings: Rings,
    _memory: SlotMemory,
}

impl Hold {
    fn new(device: &Interface) -> Result<Self, PortError> {
        let sizes = Sizes { rx_slots: 2, tx_slots: 2, frame_size: 2048 };
        let socket = Socket::new().map_err(|error| refused("making an AF_XDP socket", error))?;
        let memory = SlotMemory::new(sizes.rx_slots, sizes.tx_slots, sizes.frame_size)
            .map_err(|error| PortError::io("allocating packet memory", error))?;
        let rings = set_up(&socket, &memory, sizes)?;
        bind(&socket, device, 0, false, false, ZeroCopy::Off)?;
        Ok(Self { _socket: socket, _rings: rings, _memory: memory })
    }
}

/// A veth device by packet sockets.
#[derive(Debug)]
struct PacketPort {
    caps: Caps,
    /// IPv4's and IPv6's.
    receivers: [Receiver; 2],
    sender: Sender,
    rx: SlotRing,
    tx: SlotRing,
    /// First tx slot that was not sent yet.
    unsent: u32,
    /// The device took less than all.
    stuck: bool,
    /// Times that we went to sleep since frames came, and the number of frames then.
    idle: (u32, u64),
    counters: Counters,
    /// Frames that the kernel told that it had dropped.
    dropped: std::sync::atomic::AtomicU64,
    /// Detaches the program with the last port.
    _steering: Arc<XdpSteering>,
    _memory: SlotMemory,
    _hold: Hold,
}

/// Copies frames of one socket into free slots.
fn take(receiver: &mut Receiver, rx: &mut SlotRing, counters: &mut Counters) {
    while rx.next(rx.tail) != rx.head {
        let slot = rx.slot(rx.tail);
        let Some(room) = rx.buffer(slot) else { return };
        let len = match receiver.peek() {
            Next::Nothing => return,
            Next::Frame(frame) => {
                room[..frame.len()].copy_from_slice(frame);
                frame.len()
            }
            Next::Long => {
                counters.rx_syscalls += 1;
                receiver.receive_long(room).unwrap_or(usize::MAX)
            }
            Next::Cut => usize::MAX,
        };
        receiver.release();
        // A slot's length has 16 bits: the header in front makes the very longest frames longer than that.
        let Ok(len) = u16::try_from(len) else {
            counters.rx_dropped += 1;
            continue;
        };
        rx.set_slot(rx.tail, Slot { len, flags: 0, ptr: 0, ..slot });
        rx.tail = rx.next(rx.tail);
        counters.rx_frames += 1;
        counters.rx_bytes += u64::from(len);
    }
}

impl PacketPort {
    /// One frame less to send: the device has it, or will never have it.
    fn step(&mut self) {
        self.unsent = self.tx.next(self.unsent);
        self.tx.tail = self.tx.next(self.tx.tail);
    }

    /// What one call takes; false: the device is full.
    fn send_some(&mut self) -> Result<bool, PortError> {
        let waiting = self.tx.distance(self.unsent, self.tx.head);
        let count = waiting.min(CALL_MAX as u32);
        let mut bytes = 0;
        self.counters.tx_syscalls += 1;
        match self.sender.send(self.tx.frames(self.unsent, count)) {
            Ok(sent) => {
                for _ in 0..sent {
                    bytes += u64::from(self.tx.slot(self.unsent).len);
                    self.step();
                }
                self.counters.tx_frames += sent as u64;
                self.counters.tx_bytes += bytes;
                Ok(true)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR | libc::ENOMEM | libc::ENETDOWN) => Ok(false),
                Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => {
                    Err(PortError::Gone { device: self.caps.name.clone(), reason: error.to_string() })
                }
                // It finds something wrong with this frame.
                _ => {
                    self.counters.tx_dropped += 1;
                    self.step();
                    Ok(true)
                }
            },
        }
    }
}

impl Port for PacketPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        let Self { receivers, rx, counters, .. } = self;
        if rx.head == rx.tail {
            // All was read: begin with the buffers that are in the cache.
            (rx.head, rx.tail) = (0, 0);
        }
        for receiver in receivers {
            take(receiver, rx, counters);
        }
        Ok(rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.stuck = false;
        while self.unsent != self.tx.head {
            if !self.send_some()? {
                self.stuck = true;
                return Ok(self.tx.available());
            }
        }
        // The kernel has copied all of it: the same for sending.
        (self.tx.head, self.tx.tail, self.unsent) = (0, self.tx.num_slots() - 1, 0);
        Ok(self.tx.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx), TxRing::new(&mut self.tx))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        let (times, frames) = &mut self.idle;
        *times = if *frames == self.counters.rx_frames { *times + 1 } else { 0 };
        *frames = self.counters.rx_frames;
        if *times >= IDLE_MAX {
            *times = 0;
            self.receivers.iter().for_each(Receiver::forget_error);
        }
        // The kernel wakes the descriptors for every frame, armed or not.
        Ok(self.rx.available() == 0 && self.receivers.iter().all(|receiver| !receiver.waits()))
    }

    fn poll_fds(&self) -> PollFds {
        let [v4, v6] = &self.receivers;
        let readable = |receiver: &Receiver| receiver.as_fd().as_raw_fd();
        PollFds::readable(readable(v4)).and(PollFd { fd: readable(v6), events: libc::POLLIN })
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        Some(PollFd { fd: self.sender.as_fd().as_raw_fd(), events: libc::POLLOUT })
    }

    fn resync_in(&self) -> Option<Duration> {
        self.stuck.then_some(TX_RETRY)
    }

    fn counters(&self) -> Counters {
        let fresh: u64 = self.receivers.iter().map(|receiver| u64::from(receiver.dropped())).sum();
        let dropped = self.dropped.fetch_add(fresh, std::sync::atomic::Ordering::Relaxed) + fresh;
        let (rx_bad_slot, tx_bad_slot) = (self.rx.bad_slots, self.tx.bad_slots);
        Counters { rx_ring_full: dropped, rx_bad_slot, tx_bad_slot, ..self.counters }
    }
}

/// The kernel has no tcx, or no packet sockets: the other way is left.
pub(super) fn unknown(error: &PortError) -> bool {
    let PortError::System { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests;
