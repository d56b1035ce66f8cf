//! From a port's name to its rings: registration, memory, and a port for each ring pair.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use super::NetmapPort;
use super::abi::{Mode, OptExtmem, OptOffsets, PoolsInfo, PortHdr, PortInfo, Register, flag};
use super::beside::{Beside, EXTRA_BUFFERS, ToHost};
use super::control::{self, Dialect, Options};
use super::name::{Conf, Extmem, NetmapOptions, Rings};
use super::region::{Region, Side};
use super::sides::{Memory, Sides};
use super::steering::SoftSteering;
use super::sys::{Handle, Module};
use crate::rss::Rss;
use crate::sys::{Interface, Mapping, interface};
use crate::{Caps, Device, DeviceSpec, OpenOptions, Port, PortError, Steering};

/// IP packet size where no interface says another.
const MTU: u32 = 1500;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;

/// Opens the rings that `spec` names with `module`.
pub(crate) fn open(
    module: &dyn Module,
    spec: &DeviceSpec,
    options: &OpenOptions,
) -> Result<Device, PortError> {
    let DeviceSpec::Netmap { name, rings, options: wishes } = spec else {
        let reason = "not a netmap port".to_owned();
        return Err(PortError::Option { option: spec.to_string(), reason });
    };
    let mut opener =
        Opener { module, name, wishes, options, dialect: Dialect::Today, memories: Vec::new(), extmem: None };
    opener.dialect = opener.ask_dialect()?;
    opener.open(*rings)
}

/// Which directions of a pair a handle is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    Both,
    Rx,
    Tx,
}

/// What one handle is bound to.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    mode: Mode,
    ring: u32,
    side: Side,
    ways: Ways,
    extra_buffers: u32,
}

/// What is to be opened, and the memory that its ports share.
pub(super) struct Opener<'a> {
    module: &'a dyn Module,
    pub(super) name: &'a str,
    wishes: &'a NetmapOptions,
    options: &'a OpenOptions,
    pub(super) dialect: Dialect,
    /// By number of the allocator.
    memories: Vec<(u16, Memory)>,
    /// The file that the memory is to be in.
    extmem: Option<Memory>,
}

impl Opener<'_> {
    fn open(mut self, rings: Rings) -> Result<Device, PortError> {
        if self.options.beside_kernel
            && !self.is_virtual()
            && !matches!(rings, Rings::Host | Rings::OneHost(_))
        {
            return self.open_beside(rings);
        }
        let mut ports = Vec::new();
        let held = self.hold_nic(rings)?;
        if matches!(rings, Rings::All | Rings::AllAndHost) && self.is_virtual() && self.pairs_made() == 1 {
            ports.push(self.port(self.nic(Mode::AllNic, 0))?);
        } else if matches!(rings, Rings::All | Rings::One(_) | Rings::AllAndHost) {
            for ring in self.nic_rings(rings)? {
                ports.push(self.port(self.nic(Mode::OneNic, ring))?);
            }
        }
        match rings {
            Rings::Host | Rings::AllAndHost => {
                for ring in 0..self.host_pairs()? {
                    ports.push(self.port(self.host(ring, Ways::Both))?);
                }
            }
            Rings::OneHost(ring) => {
                let pairs = self.host_pairs()?;
                self.check_ring(ring, pairs)?;
                ports.push(self.port(self.host(ring, Ways::Both))?);
            }
            Rings::All | Rings::One(_) => {}
        }
        if let Some(first) = ports.first_mut() {
            first._held = held;
        }
        let ports = ports.into_iter().map(finished).collect::<Result<_, _>>()?;
        Ok(Device { ports, steering: None })
    }

    /// With the host's rings alone: binds the NIC's for sending, and leaves them alone. What the kernel sends comes to the host's rings only
    /// while those of the NIC that it would leave by are in netmap mode.
    fn hold_nic(&mut self, rings: Rings) -> Result<Option<Box<dyn Handle>>, PortError> {
        let NetmapOptions { tx_only, monitor_rx, monitor_tx, .. } = *self.wishes;
        let alone = matches!(rings, Rings::Host | Rings::OneHost(_));
        if !alone || self.is_virtual() || tx_only || monitor_rx || monitor_tx {
            return Ok(None);
        }
        let handle = self.handle()?;
        let wanted = Wanted { ways: Ways::Tx, ..self.nic(Mode::AllNic, 0) };
        self.register(&*handle, wanted)?;
        Ok(Some(handle))
    }

    /// The NIC's rings with the kernel's behind them.
    fn open_beside(&mut self, rings: Rings) -> Result<Device, PortError> {
        if self.wished_ways() != Ways::Both {
            let reason = "beside the kernel both directions are needed: leave /R, /T, /r and /t out".into();
            return Err(PortError::Option { option: self.device(), reason });
        }
        let steering = Arc::new(SoftSteering::new(self.device()));
        let nics = self.nic_rings(rings)?;
        let mut nic_ports = Vec::new();
        // First the NIC's: the kernel's rings get frames only while some of those are in netmap mode.
        for &ring in &nics {
            nic_ports.push(self.port(self.nic(Mode::OneNic, ring))?);
        }
        if nic_ports.iter().any(|port| port.header > 0) {
            let reason = "its frames begin with a virtio-net header, which the kernel's do not: it can't stand beside \
                          the kernel; give it an address of its own (addr=)";
            return Err(PortError::Option { option: self.device(), reason: reason.into() });
        }
        let pairs = self.host_pairs()?.max(1);
        let mut ways: Vec<Arc<Mutex<ToHost>>> = Vec::new();
        for ring in 0..pairs.min(u32::try_from(nics.len()).unwrap_or(1)) {
            let wanted = Wanted { extra_buffers: EXTRA_BUFFERS, ..self.host(ring, Ways::Tx) };
            let (sides, reply) = self.sides(wanted)?;
            self.check_shared(&nic_ports[0].sides, &sides)?;
            ways.push(Arc::new(Mutex::new(ToHost::new(sides, reply.extra_bufs))));
        }
        let mut ports: Vec<Box<dyn Port>> = Vec::new();
        for (place, mut port) in nic_ports.into_iter().enumerate() {
            // Every pair of the kernel's has an owner; with fewer rings of the NIC, some own several: not yet met.
            let from_host = if place < ways.len() {
                let ring = u32::try_from(place).unwrap_or(0);
                Some(self.sides(self.host(ring, Ways::Rx))?.0)
            } else {
                None
            };
            let to_host = ways[place % ways.len()].clone();
            port.beside = Some(Beside::new(steering.clone(), to_host, from_host));
            port.caps.mode.push_str(", beside the kernel");
            ports.push(finished(port)?);
        }
        Ok(Device { ports, steering: Some(steering as Arc<dyn Steering>) })
    }

    /// Buffers can change places only within one memory.
    fn check_shared(&self, nic: &Sides, host: &Sides) -> Result<(), PortError> {
        if nic.rx.slots.shares_memory(&host.tx.slots) {
            return Ok(());
        }
        let reason =
            "its rings and the host's are in two memories, so frames can't pass between them; leave @… out";
        Err(PortError::Option { option: self.device(), reason: reason.into() })
    }

    fn nic(&self, mode: Mode, ring: u32) -> Wanted {
        Wanted { mode, ring, side: Side::Nic, ways: self.wished_ways(), extra_buffers: 0 }
    }

    fn host(&self, ring: u32, ways: Ways) -> Wanted {
        let mode = if self.dialect == Dialect::Today { Mode::OneHost } else { Mode::Host };
        let ways = if ways == Ways::Both { self.wished_ways() } else { ways };
        Wanted { mode, ring, side: Side::Host, ways, extra_buffers: 0 }
    }

    fn wished_ways(&self) -> Ways {
        let NetmapOptions { rx_only, tx_only, monitor_rx, monitor_tx, .. } = *self.wishes;
        match (rx_only || monitor_rx || monitor_tx, tx_only) {
            (true, _) => Ways::Rx,
            (false, true) => Ways::Tx,
            (false, false) => Ways::Both,
        }
    }

    /// As a device string has it.
    pub(super) fn device(&self) -> String {
        let kind = if self.name.contains(':') { "" } else { "netmap:" };
        format!("{kind}{}", self.name)
    }

    /// A port that the module makes, rather than an interface of the kernel.
    pub(super) fn is_virtual(&self) -> bool {
        self.name.contains([':', '{', '}'])
    }

    /// Ring pairs that a port has which is made for us: as many as asked for.
    fn pairs_made(&self) -> u16 {
        let Conf { tx_rings, rx_rings, .. } = self.wishes.conf;
        tx_rings.max(1).min(rx_rings.max(1))
    }

    fn info(&self) -> Result<PortInfo, PortError> {
        let handle = self.handle()?;
        control::port_info(&*handle, self.dialect, self.name)
            .map_err(|error| self.refused("asking netmap", error))
    }

    /// Ring pairs of the device, as it will have them.
    fn ring_pairs(&self) -> Result<u32, PortError> {
        let info = self.info()?;
        let Conf { tx_rings, rx_rings, .. } = self.wishes.conf;
        let of = |wished: u16, now: u16| u32::from(if wished > 0 { wished } else { now });
        Ok(of(tx_rings, info.tx_rings).min(of(rx_rings, info.rx_rings)).max(1))
    }

    /// Pairs of the host's rings; old modules have one, and don't say so.
    fn host_pairs(&self) -> Result<u32, PortError> {
        let info = self.info()?;
        let Conf { host_tx_rings, host_rx_rings, .. } = self.wishes.conf;
        let of = |wished: u16, now: u16| u32::from(if wished > 0 { wished } else { now });
        Ok(of(host_tx_rings, info.host_tx_rings).min(of(host_rx_rings, info.host_rx_rings)).max(1))
    }

    fn nic_rings(&self, rings: Rings) -> Result<Vec<u32>, PortError> {
        let pairs = self.ring_pairs()?;
        match rings {
            Rings::One(ring) => self.check_ring(ring, pairs).map(|()| vec![ring]),
            _ => Ok((0..pairs).collect()),
        }
    }

    fn check_ring(&self, queue: u32, queues: u32) -> Result<(), PortError> {
        if queue < queues {
            return Ok(());
        }
        Err(PortError::NoQueue { name: self.name.into(), queue, queues })
    }

    fn handle(&self) -> Result<Box<dyn Handle>, PortError> {
        self.module.open().map_err(|error| self.refused("opening /dev/netmap", error))
    }

    fn ask_dialect(&self) -> Result<Dialect, PortError> {
        let ask = if self.options.old_interface { control::old_dialect } else { control::dialect };
        ask(&*self.handle()?).map_err(|error| self.refused("asking netmap", error))
    }

    fn port(&mut self, wanted: Wanted) -> Result<NetmapPort, PortError> {
        let (mut sides, reply) = self.sides(wanted)?;
        if self.options.timestamps {
            sides.rx.ask_for_time();
        }
        let interface = if self.is_virtual() {
            None
        } else {
            let asked = interface(self.name);
            asked.map_err(|error| PortError::io(format!("asking for interface {}", self.name), error))?
        };
        let header = self.header(&*sides.handle)?;
        let mut caps = self.caps(wanted, &sides, &reply, interface.as_ref());
        if header > 0 {
            caps.mtu = interface.as_ref().map_or(MTU, |interface| interface.mtu);
            caps.mtu_max = caps.mtu_max.max(caps.mtu);
        }
        // The kernel beside us asks for the groups of its own addresses; ours nobody knows. Without the right to, IPv4 is left.
        let station = wanted.side == Side::Nic && wanted.ways != Ways::Tx && !self.options.beside_kernel;
        let groups = caps.ifindex.filter(|_| station).and_then(|index| crate::sys::all_groups(index).ok());
        let flags = caps.ifindex.map(crate::sys::Flags::of).transpose();
        let flags = flags.map_err(|error| PortError::io("making a socket to ask for flags by", error))?;
        Ok(NetmapPort {
            caps,
            sides,
            beside: None,
            _held: None,
            _groups: groups,
            armed: false,
            down: false,
            flags,
            doubt: false,
            header,
        })
    }

    /// Whether frames may begin with a virtio-net header.
    fn takes_header(&self) -> bool {
        self.dialect == Dialect::Today && (self.options.vnet_header || self.wishes.vnet.is_some())
    }

    /// Bytes of virtio-net header in front of the port's frames, set before where that was asked for.
    fn header(&self, handle: &dyn Handle) -> Result<usize, PortError> {
        if !self.takes_header() {
            return Ok(0);
        }
        let ask = |set: Option<u32>| -> io::Result<u32> {
            let mut body = PortHdr { header_len: set.unwrap_or(0), pad: 0 };
            if set.is_some() {
                control::ask::<control::SetPortHeader>(
                    handle,
                    self.name,
                    &mut body,
                    &mut Options::default(),
                )?;
            }
            control::ask::<control::GetPortHeader>(handle, self.name, &mut body, &mut Options::default())?;
            Ok(body.header_len)
        };
        match (ask(self.wishes.vnet), self.wishes.vnet) {
            (Ok(len @ (0 | 10 | 12)), _) => Ok(len as usize),
            // A module without VALE answers no such question.
            (Err(_), None) => Ok(0),
            (Ok(len), _) => Err(PortError::Option {
                option: self.device(),
                reason: format!("its virtio-net header has {len} bytes; 0, 10 and 12 are known"),
            }),
            (Err(error), Some(_)) => Err(PortError::Option {
                option: format!("{}@vnet", self.name),
                reason: format!("the module refuses it ({error}): ports of VALE alone have such headers"),
            }),
        }
    }

    /// Binds a handle and finds its rings.
    fn sides(&mut self, wanted: Wanted) -> Result<(Sides, Register), PortError> {
        let handle = self.handle()?;
        let reply = self.register(&*handle, wanted)?;
        let memory = self.memory(&*handle, &reply)?;
        let bad = |what| {
            PortError::io(
                format!("netmap's memory for {}", self.name),
                io::Error::new(io::ErrorKind::InvalidData, what),
            )
        };
        let region = Region::new(memory, usize::try_from(reply.offset).unwrap_or(usize::MAX)).map_err(bad)?;
        let region = if self.dialect == Dialect::Today { region } else { region.with_one_host_pair() };
        let Wanted { ring, side, ways, .. } = wanted;
        let find = |tx: bool, absent: Ways| {
            (ways != absent).then(|| region.ring(tx, side, ring)).transpose().map_err(bad)
        };
        let (mut tx, mut rx) = (find(true, Ways::Rx)?, find(false, Ways::Tx)?);
        if let Some(offset) = self.wishes.offset {
            tx.iter_mut().chain(&mut rx).for_each(|ring| ring.slots.begin_at(offset.initial));
        }
        let name = self.ring_name(wanted);
        let sides = Sides::new(name, handle, region, rx, tx);
        Ok((sides.map_err(|error| PortError::io("making a ring", error))?, reply))
    }

    fn register(&mut self, handle: &dyn Handle, wanted: Wanted) -> Result<Register, PortError> {
        let Wanted { mode, ring, ways, extra_buffers, .. } = wanted;
        let NetmapOptions { exclusive, zero_copy_monitor, monitor_tx, monitor_rx, .. } = *self.wishes;
        let mut flags = flag::NO_TX_POLL;
        for (set, bit) in [
            (exclusive, flag::EXCLUSIVE),
            (zero_copy_monitor, flag::ZCOPY_MON),
            (monitor_tx, flag::MONITOR_TX),
            (monitor_rx, flag::MONITOR_RX),
            (ways == Ways::Rx && !monitor_rx && !monitor_tx, flag::RX_RINGS_ONLY),
            (ways == Ways::Tx, flag::TX_RINGS_ONLY),
            (self.takes_header(), flag::ACCEPT_VNET_HDR),
        ] {
            flags |= if set { bit } else { 0 };
        }
        let Conf { tx_rings, rx_rings, host_tx_rings, host_rx_rings, tx_slots, rx_slots } = self.wishes.conf;
        let body = Register {
            tx_slots,
            rx_slots,
            tx_rings,
            rx_rings,
            host_tx_rings,
            host_rx_rings,
            mem_id: self.mem_id()?,
            ring_id: u16::try_from(ring).unwrap_or(u16::MAX),
            mode: mode as u32,
            extra_bufs: extra_buffers,
            flags,
            ..Register::default()
        };
        let mut extras = Options::default();
        if let Some(offset) = self.wishes.offset {
            extras.offsets = Some(OptOffsets {
                offset_max: offset.initial.into(),
                offset_initial: offset.initial.into(),
                offset_bits: offset.bits,
                ..OptOffsets::default()
            });
        }
        extras.extmem = self.extmem_option()?;
        let reply = control::register(handle, self.dialect, self.name, &body, &mut extras);
        reply.map_err(|error| match extras.refused() {
            Some((option, error)) => PortError::Option {
                option: format!("{}@{option}", self.name),
                reason: format!("the module refuses it: {error}"),
            },
            None => self.refused("registering with netmap", error),
        })
    }

    /// The memory that is asked for by number, by another port's name, or because a ring before is in it.
    fn mem_id(&self) -> Result<u16, PortError> {
        if let Some(port) = &self.wishes.share {
            let failed = |error| PortError::io(format!("asking netmap for the memory of {port}"), error);
            let spec = port.parse::<DeviceSpec>()?;
            let DeviceSpec::Netmap { name, .. } = spec else {
                return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
            };
            let handle = self.handle()?;
            return Ok(control::port_info(&*handle, self.dialect, &name).map_err(failed)?.mem_id);
        }
        Ok(self.wishes.mem_id.unwrap_or(0))
    }

    fn extmem_option(&mut self) -> Result<Option<OptExtmem>, PortError> {
        let Some(Extmem { file, pools: [interfaces, rings, buffers] }) = &self.wishes.extmem else {
            return Ok(None);
        };
        let failed = |error| PortError::io(format!("mapping {file}"), error);
        let memory = match &self.extmem {
            Some(memory) => memory.clone(),
            None => {
                let opened = File::options().read(true).write(true).open(file).map_err(failed)?;
                let bytes = usize::try_from(opened.metadata().map_err(failed)?.len()).unwrap_or(0);
                let memory = Arc::new(Mapping::shared(opened.as_fd(), 0, bytes).map_err(failed)?);
                self.extmem = Some(memory.clone());
                memory
            }
        };
        Ok(Some(OptExtmem {
            memory: memory.base().addr().get() as u64,
            pools: PoolsInfo {
                mem_size: memory.len() as u64,
                if_total: interfaces.0,
                if_size: interfaces.1,
                ring_total: rings.0,
                ring_size: rings.1,
                buf_total: buffers.0,
                buf_size: buffers.1,
                ..PoolsInfo::default()
            },
            ..OptExtmem::default()
        }))
    }

    /// The region of the reply, mapped once for all ports of one allocator.
    fn memory(&mut self, handle: &dyn Handle, reply: &Register) -> Result<Memory, PortError> {
        if let Some(memory) = &self.extmem {
            return Ok(memory.clone());
        }
        if let Some((_, memory)) = self.memories.iter().find(|(id, _)| *id == reply.mem_id) {
            return Ok(memory.clone());
        }
        let bytes = usize::try_from(reply.mem_size).unwrap_or(usize::MAX);
        let mapping = handle.map(bytes).map_err(|error| self.refused("mapping netmap's memory", error))?;
        let memory = Arc::new(mapping);
        self.memories.push((reply.mem_id, memory.clone()));
        Ok(memory)
    }

    fn ring_name(&self, Wanted { mode, ring, side, .. }: Wanted) -> String {
        let rings = match (side, mode) {
            (Side::Host, _) if ring == 0 => Rings::Host,
            (Side::Host, _) => Rings::OneHost(ring),
            (Side::Nic, Mode::OneNic) => Rings::One(ring),
            (Side::Nic, _) => Rings::All,
        };
        format!("{}{rings}", self.device())
    }

    fn caps(&self, wanted: Wanted, sides: &Sides, reply: &Register, interface: Option<&Interface>) -> Caps {
        let name = self.ring_name(wanted);
        let some = if sides.has_tx { &sides.tx } else { &sides.rx };
        let buf_size = some.slots.room_bytes();
        let mtu = interface.map_or(MTU, |interface| interface.mtu);
        // The module binds such an interface only if its driver can put a frame into several slots.
        let long = mtu > buf_size && wanted.side == Side::Nic && self.options.frame_size.is_none();
        let buf_room = self.options.frame_size.unwrap_or(buf_size).min(buf_size).saturating_sub(LINK_HEADER);
        let long_room = u32::from(u16::MAX) - LINK_HEADER;
        let old = if self.dialect == Dialect::Today { "" } else { " (old interface)" };
        let slots =
            |there: bool, ring: &super::user::UserRing| if there { ring.slots.num_slots() } else { 0 };
        debug_assert!(reply.mem_size > 0, "a memory of no bytes was mapped");
        let told =
            interface.filter(|_| wanted.side == Side::Nic).and_then(|i| Rss::of(&i.name).ok().flatten());
        Caps {
            interface: interface.map(|interface| interface.name.clone()),
            ifindex: interface.map(|interface| interface.index),
            queue: wanted.ring,
            // At the host's rings the interface's own address is the kernel's, at the other side.
            mac: interface
                .filter(|_| wanted.side == Side::Nic)
                .map_or_else(|| station(&name), |interface| interface.mac),
            mtu: mtu.min(if long { long_room } else { buf_room }),
            mtu_max: if long { long_room } else { buf_size.saturating_sub(LINK_HEADER) },
            frame_bytes_max: buf_size,
            rx_slots: slots(sides.has_rx, &sides.rx),
            tx_slots: slots(sides.has_tx, &sides.tx),
            local: interface.is_none_or(|interface| interface.driver == "veth") || wanted.side == Side::Host,
            zero_copy: true,
            rss: told.map(Arc::new),
            mode: format!("netmap{old}"),
            name,
            ..Caps::default()
        }
    }
}

/// A port for users.
fn finished(port: NetmapPort) -> Result<Box<dyn Port>, PortError> {
    port.finished().map_err(|error| PortError::io("allocating packet memory", error))
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
            assert!(error.contains(": the netmap module is not loaded"), "{device}: {error}");
            let own = device.trim_end_matches(['-', '3', '^']);
            assert!(error.starts_with(own) && !error.contains("netmap:vale"), "{device}: {error}");
        }
    }

    #[test]
    fn stations_are_local_unicast_and_differ() {
        let (a, b) = (station("vale0:a"), station("vale0:b"));
        assert_ne!(a, b);
        assert_eq!((a[0], b[0]), (2, 2));
    }
}
