//! `xdp:` on a veth pair, with long frames: packet sockets behind the kernel's own joining and in front of its cutting.
//!
//! ```text
//!  neighbour ─► veth ─► GRO ─► steering program (tcx) ─┬─ ours, short: copied into BPF's ring buffer ──────┬─► rx slots
//!                                                      ├─ ours: marked, "for another host" ─► packet socket ─┘
//!                                                      └─ else: the kernel's stack
//!  neighbour ◄─ veth ◄─┬─ (cut, where the neighbour takes no long ones) ◄─ packet socket ◄──┬─ tx slots
//!                      └─ AF_XDP socket ◄─ short ───────────────────────────────────────────┘
//! ```
//!
//! A frame of a veth pair is a socket buffer from end to end. For an XDP program the kernel copies each one into pages
//! first, and then AF_XDP copies it again; what a neighbour sent as one segment of 64 KiB is cut into forty-five frames
//! before that, because XDP has no long ones. Behind GRO the same bytes are one buffer, copied once. Measured: the same
//! stream takes less than half of the CPU time.
//!
//! The kernel's IP takes no frame that is for another host, so what the program marks reaches our sockets alone. The
//! sockets hear IPv4 and IPv6, each its own (what hears everything stands in front of the program). An AF_XDP socket
//! holds the queue: one engine at a time drives a device, whichever way.
//!
//! What a packet socket costs per frame, a long one bears easily, and a short one need not: [`records`] has its way in,
//! [`short`] its way out.
//!
//! On NICs AF_XDP is better: a driver's frames are no socket buffers there.

mod records;
mod short;
mod sys;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use super::TX_RETRY;
use super::steer::{self, XdpSteering, refused};
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};
use crate::sys::Interface;
use crate::{
    Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing, XdpMode, ZeroCopy,
};
use records::Records;
pub(super) use records::{APART_AT, ASLEEP_AT, FILTERS_AT, FRAME_AT, MARKED_AT, RING, ROOMS, Signs};
use short::{Short, Way};
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
/// The mark of a frame that we have already, and that is to wake us.
pub(super) const WAKE: u32 = 0x7574_6371;

/// Whom frames are for between the program and the sockets (`01:80:c2:00:00:0e`), see [`super::behind`].
pub(super) const NOBODY: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];

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
    let (port, steering) = open_port(device, options, true, &Way::ALL)?;
    Ok(Device { ports: vec![Box::new(port)], steering: Some(steering) })
}

/// The same. `ring`: short frames may come by a ring; `ways`: what the AF_XDP socket may do, the best first.
fn open_port(
    device: &Interface,
    options: &OpenOptions,
    ring: bool,
    ways: &[Way],
) -> Result<(PacketPort, Arc<XdpSteering>), PortError> {
    let no_memory = |error| PortError::io("allocating packet memory", error);
    let out = Short::open(device, ways)?;
    let vnet = usize::from(VNET_HEADER);
    let slots = options.rx_slots.min(KERNEL_SLOTS_MAX);
    let receiver = |protocol| Receiver::new(device.index, protocol, [MARK, WAKE], slots, vnet);
    let [v4, v6] = ETHERTYPES.map(receiver);
    let failed = |error| refused("making a packet socket", error);
    let receivers = [v4.map_err(failed)?, v6.map_err(failed)?];
    let sender = Sender::new(device.index).map_err(failed)?;
    // Where the kernel gives no such ring, everything comes by the sockets.
    let (maps, records) = if ring { short_ring().ok() } else { None }.unzip();
    let steering = Arc::new(XdpSteering::behind(device, options.tuples_max, maps)?);
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
        mode: match (&records, out.sends()) {
            (Some(_), true) => "packet sockets, long frames; short ones by a ring buffer and AF_XDP",
            (Some(_), false) => "packet sockets, long frames; short ones by a ring buffer",
            (None, true) => "packet sockets, long frames; short ones by AF_XDP",
            (None, false) => "packet sockets, long frames",
        }
        .into(),
        ..Caps::default()
    };
    let port = PacketPort {
        caps,
        receivers,
        records,
        sender,
        short: out,
        long_out: false,
        rx,
        tx,
        unsent: 0,
        stuck: false,
        idle: (0, 0),
        counters: Counters::default(),
        dropped: std::sync::atomic::AtomicU64::new(0),
        steering: steering.clone(),
        _memory: memory,
    };
    Ok((port, steering))
}

/// The ring for short frames.
fn short_ring() -> std::io::Result<(steer::Short, Records)> {
    let maps = steer::Short::new()?;
    let records = Records::new(maps.ring.fd(), maps.signs.fd())?;
    Ok((maps, records))
}

/// Whether short frames can come by a ring, and leave by AF_XDP: what this kernel and our limits allow.
pub(super) fn short_ways() -> (bool, bool) {
    (short_ring().is_ok(), Short::can_send())
}

/// A veth device by packet sockets.
#[derive(Debug)]
struct PacketPort {
    caps: Caps,
    /// IPv4's and IPv6's.
    receivers: [Receiver; 2],
    /// Short frames come here.
    records: Option<Records>,
    sender: Sender,
    /// Holds the queue; short frames leave here.
    short: Short,
    /// The packet socket has sent since it was last seen to have nothing on its way.
    long_out: bool,
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
    steering: Arc<XdpSteering>,
    _memory: SlotMemory,
}

/// Makes a frame in the slot at tail visible.
fn enter(rx: &mut SlotRing, len: u16, counters: &mut Counters) {
    let slot = rx.slot(rx.tail);
    rx.set_slot(rx.tail, Slot { len, flags: 0, ptr: 0, ..slot });
    rx.tail = rx.next(rx.tail);
    counters.rx_frames += 1;
    counters.rx_bytes += u64::from(len);
}

/// Copies short frames into free slots; whether that were all.
fn take_short(records: &mut Records, rx: &mut SlotRing, counters: &mut Counters) -> bool {
    const HEADER: usize = VNET_HEADER as usize;
    while rx.next(rx.tail) != rx.head {
        let slot = rx.slot(rx.tail);
        let (Some(frame), Some(room)) = (records.next(), rx.buffer(slot)) else { break };
        let len = HEADER + frame.len();
        let Some((header, body)) = room.get_mut(..len).and_then(|room| room.split_at_mut_checked(HEADER))
        else {
            counters.rx_dropped += 1;
            continue;
        };
        header.fill(0);
        body.copy_from_slice(frame);
        enter(rx, u16::try_from(len).unwrap_or(0), counters);
    }
    records.publish();
    records.is_empty()
}

/// Copies frames of one socket into free slots; whether that were all.
fn take(
    receiver: &mut Receiver,
    records: &mut Option<Records>,
    rx: &mut SlotRing,
    counters: &mut Counters,
    mac: [u8; 6],
) -> bool {
    const HEADER: usize = VNET_HEADER as usize;
    while rx.next(rx.tail) != rx.head {
        let slot = rx.slot(rx.tail);
        let Some(room) = rx.buffer(slot) else { return false };
        let len = match receiver.peek() {
            Next::Nothing => return true,
            Next::Wake => {
                receiver.release();
                continue;
            }
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
        if let Some(station) = room.get_mut(HEADER..HEADER + 6).filter(|station| **station == NOBODY) {
            station.copy_from_slice(&mac);
        }
        if let Some(records) = records {
            records.took();
        }
        // A slot's length has 16 bits: the header in front makes the very longest frames longer than that.
        match u16::try_from(len) {
            Ok(len) => enter(rx, len, counters),
            Err(_) => counters.rx_dropped += 1,
        }
    }
    false
}

impl PacketPort {
    /// One frame less to send: the device has it, or will never have it.
    fn step(&mut self) {
        self.unsent = self.tx.next(self.unsent);
        self.tx.tail = self.tx.next(self.tx.tail);
    }

    /// Sends what is committed; false: the device is full.
    fn send_all(&mut self) -> Result<bool, PortError> {
        if self.unsent == self.tx.head && !self.short.waits() {
            return Ok(true);
        }
        if self.short.waits() && !self.kick()? {
            return Ok(false);
        }
        if self.may_go_short() && !self.send_short()? {
            return Ok(false);
        }
        while self.unsent != self.tx.head {
            self.long_out = true;
            if !self.send_some()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether what waits can go by AF_XDP, and overtakes nothing.
    fn may_go_short(&mut self) -> bool {
        let waiting = self.tx.distance(self.unsent, self.tx.head);
        if !self.short.sends()
            || self.steering.filters()
            || !self.tx.frames(self.unsent, waiting).all(short::fits)
        {
            return false;
        }
        if self.long_out {
            self.counters.tx_syscalls += 1;
            self.long_out = self.sender.has_unsent();
        }
        !self.long_out
    }

    /// Short frames as long as there are buffers; false: the device is full.
    fn send_short(&mut self) -> Result<bool, PortError> {
        let waiting = self.tx.distance(self.unsent, self.tx.head);
        let (count, bytes) = self.short.put(self.tx.frames(self.unsent, waiting));
        (0..count).for_each(|_| self.step());
        self.counters.tx_frames += u64::from(count);
        self.counters.tx_bytes += bytes;
        self.kick()
    }

    /// Makes the kernel send short frames; false: the device is full.
    fn kick(&mut self) -> Result<bool, PortError> {
        match self.short.kick(&mut self.counters) {
            Ok(()) => Ok(!self.short.waits()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => Err(self.gone(&error)),
                _ => Err(PortError::io(format!("sending on {}", self.caps.name), error)),
            },
        }
    }

    fn gone(&self, error: &std::io::Error) -> PortError {
        PortError::Gone { device: self.caps.name.clone(), reason: error.to_string() }
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
                Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => Err(self.gone(&error)),
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
        let Self { receivers, records, rx, counters, caps, .. } = self;
        if rx.head == rx.tail {
            // All was read: begin with the buffers that are in the cache.
            (rx.head, rx.tail) = (0, 0);
        }
        // Before the ring is read: what goes apart later than this has its turn next time.
        let apart = records.as_ref().is_none_or(Records::apart);
        let mut all = true;
        if let Some(records) = records {
            records.disarm();
            all = take_short(records, rx, counters);
        }
        if apart && all {
            for receiver in receivers {
                all &= take(receiver, records, rx, counters, caps.mac);
            }
            if let Some(records) = records.as_mut().filter(|_| all) {
                records.join();
            }
        } else {
            receivers.iter_mut().for_each(Receiver::forget_wakes);
        }
        Ok(rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.stuck = !self.send_all()?;
        if self.unsent == self.tx.head {
            // The kernel has copied all of it: the same for sending.
            (self.tx.head, self.tx.tail, self.unsent) = (0, self.tx.num_slots() - 1, 0);
        }
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
        // The kernel wakes the descriptors for every frame that comes by them, armed or not.
        let nothing = self.rx.available() == 0 && self.receivers.iter().all(|receiver| !receiver.waits());
        Ok(nothing && self.records.as_mut().is_none_or(Records::arm))
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

    fn set_mac(&mut self, mac: [u8; 6]) {
        self.caps.mac = mac;
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
