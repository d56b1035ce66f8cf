//! `netmap:` and `vale…:`: the netmap module's rings.
//!
//! | file | what |
//! |---|---|
//! | `layout` | the structures in shared memory |
//! | `region` | finds the rings in a mapped region |
//! | `user` | the user's half of a ring |
//! | `sys` | `/dev/netmap` and its requests |
//!
//! Everything above a sync is the same whether the module or [`pipe`](crate::pipe) stands below it.
//!
//! A descriptor of its own per ring pair, so that each shard polls and syncs alone; the memory is mapped
//! once per allocator, so that buffers can be swapped between the rings of a device.

pub(crate) mod layout;
pub(crate) mod region;
mod sys;
pub(crate) mod user;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::spec::Rings;
use crate::sys::{Interface, Mapping, interface};
use crate::{Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing};
use region::{Region, Side};
use sys::{Mode, Register, Request};
use user::UserRing;

/// IP packet size where no interface says another.
const MTU: u32 = 1500;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;

/// Opens the rings that `name` and `rings` say; see [`DeviceSpec::Netmap`](crate::DeviceSpec::Netmap).
pub(crate) fn open(name: &str, rings: Rings, options: &OpenOptions) -> Result<Device, PortError> {
    let device = Opener { name, options, memory: None };
    device.open(rings)
}

/// Whether a module with a control interface that we know answers.
pub(crate) fn probe() -> io::Result<()> {
    let control = sys::open_control()?;
    match Request::port_info("utcp-no-such").send(&control) {
        // It understood the question.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        other => other.map(drop),
    }
}

/// What is to be opened, and the memory that its ports share.
struct Opener<'a> {
    name: &'a str,
    options: &'a OpenOptions,
    /// By number of the allocator.
    memory: Option<(u16, Arc<Mapping>)>,
}

impl Opener<'_> {
    fn open(mut self, rings: Rings) -> Result<Device, PortError> {
        let ports = match rings {
            Rings::All if self.is_virtual() => {
                vec![self.port(self.name, Mode::AllNic, 0, Side::Nic)?]
            }
            Rings::All => {
                let pairs = self.ring_pairs()?;
                (0..pairs).map(|ring| self.nic_port(ring)).collect::<Result<_, _>>()?
            }
            Rings::One(ring) => {
                let pairs = self.ring_pairs()?;
                if ring >= pairs {
                    return Err(PortError::NoQueue { name: self.name.into(), queue: ring, queues: pairs });
                }
                vec![self.nic_port(ring)?]
            }
            Rings::Host => vec![self.port(self.name, Mode::Host, 0, Side::Host)?],
            Rings::AllAndHost => {
                let pairs = self.ring_pairs()?;
                let mut ports = (0..pairs).map(|ring| self.nic_port(ring)).collect::<Result<Vec<_>, _>>()?;
                ports.push(self.port(self.name, Mode::Host, 0, Side::Host)?);
                ports
            }
            Rings::PipeMaster(id) => {
                vec![self.port(&format!("{}{{{id}", self.name), Mode::AllNic, 0, Side::Nic)?]
            }
            Rings::PipeSlave(id) => {
                vec![self.port(&format!("{}}}{id}", self.name), Mode::AllNic, 0, Side::Nic)?]
            }
        };
        let ports = ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
        Ok(Device { ports, steering: None })
    }

    /// A port that the module makes, rather than an interface of the kernel.
    fn is_virtual(&self) -> bool {
        self.name.contains(':')
    }

    fn ring_pairs(&self) -> Result<u32, PortError> {
        let control = self.control()?;
        let info = Request::port_info(self.name)
            .send(&control)
            .map_err(|error| self.refused("asking netmap", error))?;
        Ok(u32::from(info.tx_rings.min(info.rx_rings)).max(1))
    }

    fn nic_port(&mut self, ring: u32) -> Result<NetmapPort, PortError> {
        self.port(self.name, Mode::OneNic, ring, Side::Nic)
    }

    fn control(&self) -> Result<OwnedFd, PortError> {
        sys::open_control().map_err(|error| self.refused("opening /dev/netmap", error))
    }

    fn port(&mut self, name: &str, mode: Mode, ring: u32, side: Side) -> Result<NetmapPort, PortError> {
        let control = self.control()?;
        let ring_id = u16::try_from(ring).unwrap_or(u16::MAX);
        let reply = Request::register(name, mode, ring_id)
            .send(&control)
            .map_err(|error| self.refused("registering with netmap", error))?;
        let memory = self.memory(&control, &reply)?;
        let bad = |what| {
            PortError::io(
                format!("netmap's memory for {name}"),
                io::Error::new(io::ErrorKind::InvalidData, what),
            )
        };
        let region = Region::new(memory, usize::try_from(reply.offset).unwrap_or(usize::MAX)).map_err(bad)?;
        let (tx, rx) =
            (region.ring(true, side, ring).map_err(bad)?, region.ring(false, side, ring).map_err(bad)?);
        let interface = if self.is_virtual() {
            None
        } else {
            let asked = interface(self.name);
            asked.map_err(|error| PortError::io(format!("asking for interface {}", self.name), error))?
        };
        let caps = self.caps(name, ring, side, &tx, &rx, interface.as_ref());
        let counters = Counters::default();
        Ok(NetmapPort { caps, control, rx, tx, tx_synced: 0, rx_synced: 0, counters, _region: region })
    }

    /// The region of the reply, mapped once for all ports of one allocator.
    fn memory(&mut self, control: &OwnedFd, reply: &Register) -> Result<Arc<Mapping>, PortError> {
        if let Some((id, memory)) = self.memory.as_ref().filter(|(id, _)| *id == reply.mem_id) {
            debug_assert_eq!(*id, reply.mem_id);
            return Ok(memory.clone());
        }
        use std::os::fd::AsFd;
        let bytes = usize::try_from(reply.mem_size).unwrap_or(usize::MAX);
        let mapping = Mapping::shared(control.as_fd(), 0, bytes);
        let mapping = Arc::new(mapping.map_err(|error| self.refused("mapping netmap's memory", error))?);
        self.memory = Some((reply.mem_id, mapping.clone()));
        Ok(mapping)
    }

    fn caps(
        &self,
        name: &str,
        ring: u32,
        side: Side,
        tx: &UserRing,
        rx: &UserRing,
        interface: Option<&Interface>,
    ) -> Caps {
        let suffix = match side {
            Side::Host => "^".to_owned(),
            Side::Nic if self.is_virtual() || name != self.name => String::new(),
            Side::Nic => format!("-{ring}"),
        };
        let kind = if self.is_virtual() { "" } else { "netmap:" };
        let buf_size = tx.buf_size();
        let mtu = interface.map_or(MTU, |interface| interface.mtu);
        Caps {
            name: format!("{kind}{name}{suffix}"),
            interface: interface.map(|interface| interface.name.clone()),
            ifindex: interface.map(|interface| interface.index),
            queue: ring,
            mac: interface.map_or_else(|| station(name), |interface| interface.mac),
            mtu: mtu.min(self.options.frame_size.unwrap_or(buf_size).min(buf_size) - LINK_HEADER),
            mtu_max: buf_size - LINK_HEADER,
            frame_bytes_max: buf_size,
            rx_slots: rx.slots.num_slots(),
            tx_slots: tx.slots.num_slots(),
            local: interface.is_none_or(|interface| interface.driver == "veth") || side == Side::Host,
            zero_copy: true,
            mode: "netmap".into(),
            ..Caps::default()
        }
    }

    fn refused(&self, what: &'static str, error: io::Error) -> PortError {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV) if what.starts_with("opening") => PortError::Option {
                option: format!("netmap:{}", self.name),
                reason: "the netmap module is not loaded (no /dev/netmap); `modprobe netmap`, or use xdp:"
                    .into(),
            },
            Some(libc::EPERM | libc::EACCES) => PortError::Privilege {
                what,
                need: "read and write access to /dev/netmap, and CAP_NET_ADMIN for interfaces",
                setcap: "cap_net_admin",
            },
            Some(libc::ENXIO) => PortError::NoInterface { name: self.name.into() },
            Some(libc::EBUSY) => PortError::InUse {
                what: format!("netmap:{}", self.name),
                detail: "another program has registered these rings; stop that one or name another ring"
                    .into(),
            },
            _ => PortError::io(format!("{what} for {}", self.name), error),
        }
    }
}

/// A station address for a port without an interface: from its name, which no other port has.
fn station(name: &str) -> [u8; 6] {
    // FNV-1a: any hash would do.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// One ring pair of the module.
#[derive(Debug)]
struct NetmapPort {
    caps: Caps,
    control: OwnedFd,
    rx: UserRing,
    tx: UserRing,
    /// Our head at the last sync that the module saw.
    rx_synced: u32,
    tx_synced: u32,
    counters: Counters,
    _region: Region,
}

impl NetmapPort {
    /// Errors of a sync: only a device that went away. The module returns 0 also when it has reset a ring.
    fn gone(&self, error: &io::Error) -> PortError {
        PortError::Gone { device: self.caps.name.clone(), reason: error.to_string() }
    }
}

impl Port for NetmapPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.rx.publish();
        let released = self.rx.slots.distance(self.rx_synced, self.rx.slots.head);
        // Frames that wait, or came while the caller slept on the descriptor, need no call; a module that
        // runs out of slots does.
        let first = self.rx.refresh();
        let empty = self.rx.slots.available() == 0;
        if empty || released > self.rx.slots.num_slots() / 2 {
            self.counters.rx_syscalls += 1;
            sys::rx_sync(&self.control).map_err(|error| self.gone(&error))?;
            self.rx_synced = self.rx.slots.head;
        }
        let second = self.rx.refresh();
        self.counters.ring_resets += u64::from(first.reset) + u64::from(second.reset);
        let (frames, bytes) = self.rx.count_from(first.old_tail);
        self.counters.rx_frames += frames;
        self.counters.rx_bytes += bytes;
        Ok(self.rx.slots.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        let committed = self.tx_synced != self.tx.slots.head;
        let scarce = self.tx.slots.available() < self.tx.slots.num_slots() / 2;
        if !committed && !scarce {
            return Ok(self.tx.slots.available());
        }
        let (frames, bytes) = self.tx.count_between(self.tx_synced, self.tx.slots.head);
        self.counters.tx_frames += frames;
        self.counters.tx_bytes += bytes;
        self.tx.publish();
        self.counters.tx_syscalls += 1;
        sys::tx_sync(&self.control).map_err(|error| self.gone(&error))?;
        let done = self.tx.refresh();
        self.counters.ring_resets += u64::from(done.reset);
        self.tx_synced = self.tx.slots.head;
        Ok(self.tx.slots.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx.slots), TxRing::new(&mut self.tx.slots))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        // Waiting on the descriptor performs the sync, so all that is needed is the module's view of head.
        self.rx.publish();
        Ok(self.rx.slots.available() == 0)
    }

    fn poll_fds(&self) -> PollFds {
        PollFds::readable(self.control.as_raw_fd())
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        Some(PollFd { fd: self.control.as_raw_fd(), events: libc::POLLOUT })
    }

    fn counters(&self) -> Counters {
        let (rx_bad_slot, tx_bad_slot) = (self.rx.slots.bad_slots, self.tx.slots.bad_slots);
        Counters { rx_bad_slot, tx_bad_slot, ..self.counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_module_the_error_says_so() {
        if std::path::Path::new("/dev/netmap").exists() {
            eprintln!("SKIPPED {}: the module is loaded", module_path!());
            return;
        }
        for device in ["netmap:eth0", "netmap:eth0-3", "netmap:eth0^", "vale0:a", "netmap:x{1"] {
            let error = crate::open(device, &OpenOptions::default()).err().unwrap().to_string();
            assert!(error.contains("the netmap module is not loaded"), "{device}: {error}");
        }
    }

    #[test]
    fn stations_are_local_unicast_and_differ() {
        let (a, b) = (station("vale0:a"), station("vale0:b"));
        assert_ne!(a, b);
        assert_eq!((a[0], b[0]), (2, 2));
    }
}
