//! `tap:`: a TAP device, whose other side is the kernel's own stack.
//!
//! The port for kernels without AF_XDP, and the one with the kernel as peer on the same host. The kernel
//! takes and gives one frame per system call, so a batch costs as many calls as frames, and only a call
//! tells whether a frame is there.
//!
//! With several queues the kernel sends a flow's frames to the queue that sent its last one, so that they stay with
//! their shard; what belongs to no flow comes to any.

mod sys;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};
use crate::sys::{Interface, interface};
use crate::{Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing};

/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;
/// `struct virtio_net_hdr`.
const VNET_HEADER: u8 = 10;
/// Buffers for the longest segments of the kernel, and so many of them: 32 MiB for both rings.
const VNET_FRAME: u32 = 65_536;
const VNET_SLOTS: u32 = 256;
/// Frames per sync: as many as a batch is worth, then the other work of the loop.
const READ_MAX: u32 = 256;

/// Opens the TAP device `name`; makes it when it is not there.
pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Device, PortError> {
    let vnet = options.vnet_header;
    let (taps, device) = attach(name, vnet, options.queues.max(1))?;
    let fitting = if vnet { VNET_FRAME } else { (device.mtu + LINK_HEADER).next_power_of_two().max(2048) };
    let frame_size = options.frame_size.unwrap_or(fitting);
    if !frame_size.is_power_of_two() || !(128..=fitting.max(32_768)).contains(&frame_size) {
        let reason = "a TAP device has buffers of 128 to 32768 bytes, a power of two".into();
        return Err(PortError::Option { option: format!("frame_size {frame_size}"), reason });
    }
    for (what, slots) in [("rx_slots", options.rx_slots), ("tx_slots", options.tx_slots)] {
        if !(2..=65_536).contains(&slots) {
            let reason = "2 to 65536 will do".into();
            return Err(PortError::Option { option: format!("{what} {slots}"), reason });
        }
    }
    let slots_max = if vnet { VNET_SLOTS } else { u32::MAX };
    let (rx_slots, tx_slots) = (options.rx_slots.min(slots_max), options.tx_slots.min(slots_max));
    let several = taps.len() > 1;
    let caps = Caps {
        name: format!("tap:{name}"),
        interface: Some(device.name.clone()),
        ifindex: Some(device.index),
        mac: station(device.mac),
        mtu: device.mtu.min(frame_size - LINK_HEADER),
        mtu_max: frame_size - LINK_HEADER,
        frame_bytes_max: frame_size,
        rx_slots,
        tx_slots,
        local: true,
        tx_checksum: vnet,
        vnet_header: if vnet { VNET_HEADER } else { 0 },
        mode: "TAP, a system call per frame".into(),
        ..Caps::default()
    };
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for (tap, queue) in taps.into_iter().zip(0..) {
        let name = if several { format!("tap:{name}-{queue}") } else { caps.name.clone() };
        ports.push(Box::new(TapPort::new(tap, Caps { name, queue, ..caps.clone() })?));
    }
    Ok(Device { ports, steering: None })
}

/// Our station behind the device: the kernel's side has the address that `ip link` shows.
fn station(kernel: [u8; 6]) -> [u8; 6] {
    let mut mac = kernel;
    mac[0] = mac[0] & 0xfe | 0x02;
    mac[5] ^= 0x80;
    mac
}

/// The queues of a TAP device: one each for so many users, or one where the device has no more.
fn attach(name: &str, vnet_header: bool, queues: u32) -> Result<(Vec<File>, Interface), PortError> {
    let refused = |what: &'static str, error: io::Error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PortError::Privilege {
            what,
            need: "CAP_NET_ADMIN (or a TAP device made for this user with `ip tuntap`)",
            setcap: "cap_net_admin",
        },
        Some(libc::ENOENT | libc::ENODEV) => PortError::Option {
            option: format!("tap:{name}"),
            reason:
                "/dev/net/tun is missing; load the module (`modprobe tun`) or give the container the device"
                    .into(),
        },
        Some(libc::EBUSY) => PortError::InUse {
            what: format!("TAP device {name}"),
            detail: "another program has it open; stop that one or choose another name".into(),
        },
        Some(libc::EINVAL) => PortError::Option {
            option: format!("tap:{name}"),
            reason: "an interface of that name exists and is no TAP device".into(),
        },
        _ => PortError::io(what, error),
    };
    let attach_one = |several: bool| {
        let open = sys::open_tun().map_err(|error| refused("opening /dev/net/tun", error))?;
        match sys::attach(&open, name, vnet_header, several) {
            Ok(()) => Ok(Some(open)),
            // A device that the user made is of the other kind.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(refused("attaching to a TAP device", error)),
        }
    };
    let mut several = queues > 1;
    let mut first = attach_one(several)?;
    if first.is_none() {
        several = !several;
        first = attach_one(several)?;
    }
    let none = || refused("attaching to a TAP device", io::Error::from_raw_os_error(libc::EINVAL));
    let mut taps = vec![first.ok_or_else(none)?];
    for _ in 1..if several { queues } else { 1 } {
        taps.push(attach_one(true)?.ok_or_else(none)?);
    }
    // A device of the user's own may be up already, and then this needs no privilege.
    let up = sys::set_up(name);
    let asked =
        interface(name).map_err(|error| PortError::io(format!("asking for interface {name}"), error))?;
    let device = asked.ok_or_else(|| PortError::NoInterface { name: name.into() })?;
    match up {
        Err(error) if !device.up => Err(refused("setting a TAP device up", error)),
        _ => Ok((taps, device)),
    }
}

/// A queue of a TAP device.
#[derive(Debug)]
struct TapPort {
    caps: Caps,
    tap: File,
    rx: SlotRing,
    tx: SlotRing,
    /// First tx slot that was not written yet.
    tx_written: u32,
    counters: Counters,
    _memory: SlotMemory,
}

impl TapPort {
    fn new(tap: File, caps: Caps) -> Result<Self, PortError> {
        let memory = SlotMemory::on_demand(caps.rx_slots, caps.tx_slots, caps.frame_bytes_max)
            .map_err(|error| PortError::io("allocating packet memory", error))?;
        let (rx, mut tx) = memory.rings();
        tx.tail = caps.tx_slots - 1;
        Ok(Self { caps, tap, rx, tx, tx_written: 0, counters: Counters::default(), _memory: memory })
    }

    fn gone(&self, error: &io::Error) -> PortError {
        PortError::Gone { device: self.caps.name.clone(), reason: error.to_string() }
    }
}

impl Port for TapPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        for _ in 0..READ_MAX {
            let next = self.rx.next(self.rx.tail);
            if next == self.rx.head {
                break;
            }
            let slot = self.rx.slot(self.rx.tail);
            let Some(room) = self.rx.buffer(slot) else {
                self.rx.bad_slots += 1;
                break;
            };
            self.counters.rx_syscalls += 1;
            match self.tap.read(room) {
                Ok(len) => {
                    self.counters.rx_frames += 1;
                    self.counters.rx_bytes += len as u64;
                    let len = u16::try_from(len).unwrap_or(u16::MAX);
                    self.rx.set_slot(self.rx.tail, Slot { len, flags: 0, ptr: 0, ..slot });
                    self.rx.tail = next;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(self.gone(&error)),
                },
            }
        }
        Ok(self.rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        while self.tx_written != self.tx.head {
            let slot = self.tx.slot(self.tx_written);
            let result = match self.tx.frame(slot) {
                Some(bytes) => {
                    self.counters.tx_syscalls += 1;
                    self.tap.write(bytes)
                }
                None => {
                    self.tx.bad_slots += 1;
                    Ok(0)
                }
            };
            match result {
                Ok(0) => {}
                Ok(bytes) => {
                    self.counters.tx_frames += 1;
                    self.counters.tx_bytes += bytes as u64;
                }
                // The kernel's side is down, has no memory, or finds the frame too short.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(self.gone(&error)),
                Err(_) => self.counters.tx_dropped += 1,
            }
            self.tx_written = self.tx.next(self.tx_written);
            self.tx.tail = self.tx.next(self.tx.tail);
        }
        Ok(self.tx.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx), TxRing::new(&mut self.tx))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        // The descriptor is readable as long as a frame waits.
        Ok(self.rx_sync()? == 0)
    }

    fn poll_fds(&self) -> PollFds {
        PollFds::readable(self.tap.as_raw_fd())
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        Some(PollFd { fd: self.tap.as_raw_fd(), events: libc::POLLOUT })
    }

    fn counters(&self) -> Counters {
        let (rx_bad_slot, tx_bad_slot) = (self.rx.bad_slots, self.tx.bad_slots);
        Counters { rx_bad_slot, tx_bad_slot, ..self.counters }
    }
}

#[cfg(test)]
mod tests;
