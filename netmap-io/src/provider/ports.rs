//! Ports that come and go: those of switches, and what an administrator asks of them.

use std::io;

use super::memory::Memory;
use super::nic::Nic;
use super::vale::{Bridge, is_vale};
use super::{Driver, NicShape, State, errno};
use crate::netmap::abi::{Mode, PortHdr, Register, ValeAttach, ValeDetach, ValeList, ValeNewif, ValePolling};

/// Slots of a switch's port unless it is asked for others, and at most.
const VALE_SLOTS: u32 = 1024;
const VALE_SLOTS_MAX: u32 = 4096;
const VALE_RINGS_MAX: u16 = 16;

impl State {
    /// The number that a memory has towards users.
    pub(super) fn memory_id(place: usize) -> u16 {
        u16::try_from(place + 1).unwrap_or(u16::MAX)
    }

    /// 0: whichever the port has.
    pub(super) fn check_memory(&self, id: u16) -> io::Result<()> {
        let known = id == 0 || self.memories.get(usize::from(id) - 1).is_some_and(Option::is_some);
        if known { Ok(()) } else { Err(errno(libc::EINVAL)) }
    }

    /// A port of that name; one of a switch is made if it is not there.
    pub(super) fn find_or_make(&mut self, name: &str, wanted: &Register) -> io::Result<usize> {
        if let Some(at) = self.find(name) {
            return Ok(at);
        }
        if let Some(end) = self.pipe(name, wanted) {
            return end;
        }
        let (true, Some((switch, port))) = (is_vale(name), name.split_once(':')) else {
            return Err(errno(libc::ENXIO));
        };
        // An interface is put on a switch by a request of its own.
        if self.find(port).is_some() {
            return Err(errno(libc::EINVAL));
        }
        let at = self.make_vale(name, wanted)?;
        let bridge = self.bridge(switch);
        self.bridges[bridge].attach(name, at).ok_or_else(|| errno(libc::ENOMEM))?;
        Ok(at)
    }

    /// Where a switch is.
    fn bridge(&mut self, name: &str) -> usize {
        let known = self.bridges.iter().position(|bridge| bridge.name == name);
        known.unwrap_or_else(|| {
            self.bridges.push(Bridge::new(name));
            self.bridges.len() - 1
        })
    }

    fn make_vale(&mut self, name: &str, wanted: &Register) -> io::Result<usize> {
        let slots = match wanted.tx_slots.max(wanted.rx_slots) {
            0 => VALE_SLOTS,
            asked => asked.min(VALE_SLOTS_MAX),
        };
        let rings = wanted.tx_rings.max(wanted.rx_rings).clamp(1, VALE_RINGS_MAX);
        let shape = NicShape { rings, host_rings: 0, slots, mtu: 0, driver: Driver::Native };
        let buffers = 2 * u32::from(rings) * slots;
        let memory = Memory::for_port(self.shape.buf_size, buffers, wanted.extra_bufs)?;
        self.memories.push(Some(memory));
        let place = self.memories.len() - 1;
        let memory = self.memories[place].as_mut().ok_or_else(|| errno(libc::ENOMEM))?;
        let nic = Nic::new(name, shape, memory, place, true)?;
        self.nics.push(nic);
        Ok(self.nics.len() - 1)
    }

    /// A port that nobody uses any more ends, if it was made by its first user. Its buffers are counted then.
    pub(super) fn end_unused(&mut self, at: usize) {
        let nic = &self.nics[at];
        let idle = |nic: &Nic| nic.users.iter().all(|users| *users == 0);
        let both = idle(nic) && nic.pipe.is_none_or(|other| idle(&self.nics[other]));
        if !nic.vale || nic.persistent || !nic.present || !both {
            return;
        }
        if let Err(wrong) = self.check_memory_of(nic.memory) {
            self.violations.push(format!("{}: {wrong}", self.nics[at].name));
        }
        self.end(at);
    }

    fn end(&mut self, at: usize) {
        for end in [Some(at), self.nics[at].pipe].into_iter().flatten() {
            self.nics[end].present = false;
        }
        let place = self.nics[at].memory;
        self.memories[place] = None;
        for port in self.bridges.iter_mut().flat_map(|bridge| &mut bridge.ports) {
            if port.as_ref().is_some_and(|(_, nic)| *nic == at) {
                *port = None;
            }
        }
    }

    /// `PORT_HDR_SET`: ports of switches alone have it.
    pub(super) fn set_header(&mut self, name: &str, asked: PortHdr) -> io::Result<()> {
        if ![0, 10, 12].contains(&asked.header_len) {
            return Err(errno(libc::EINVAL));
        }
        let at = self.find(name).filter(|_| is_vale(name)).ok_or_else(|| errno(libc::ENXIO))?;
        self.nics[at].header = asked.header_len as usize;
        Ok(())
    }

    /// `VALE_ATTACH`: an interface goes on a switch.
    pub(super) fn attach(&mut self, name: &str, mut asked: ValeAttach) -> io::Result<ValeAttach> {
        self.check_memory(asked.register.mem_id)?;
        let (true, Some((switch, interface))) = (is_vale(name), name.split_once(':')) else {
            return Err(errno(libc::EINVAL));
        };
        let bridge = self.bridge(switch);
        if self.bridges[bridge].find(name).is_some() {
            return Err(errno(libc::EBUSY));
        }
        let at = self.find(interface).ok_or_else(|| errno(libc::ENXIO))?;
        if self.nics[at].attached || self.nics[at].users.iter().any(|users| *users > 0) {
            return Err(errno(libc::EBUSY));
        }
        let port = self.bridges[bridge].attach(name, at).ok_or_else(|| errno(libc::ENOMEM))?;
        if asked.register.mode == Mode::NicAndHost as u32 && !self.nics[at].vale {
            self.bridges[bridge].attach(&format!("{name}^"), at);
        }
        self.nics[at].attached = true;
        asked.port_index = u32::try_from(port).unwrap_or(0);
        Ok(asked)
    }

    /// `VALE_DETACH`.
    pub(super) fn detach(&mut self, name: &str) -> io::Result<ValeDetach> {
        if !is_vale(name) {
            return Err(errno(libc::EINVAL));
        }
        let found = self.bridges.iter().enumerate().find_map(|(at, of)| Some((at, of.find(name)?)));
        let (bridge, port) = found.ok_or_else(|| errno(libc::ENXIO))?;
        let Some((_, nic)) = self.bridges[bridge].ports[port] else { return Err(errno(libc::ENXIO)) };
        if self.nics[nic].polled || self.nics[nic].users.iter().any(|users| *users > 0) {
            return Err(errno(libc::EBUSY));
        }
        self.nics[nic].attached = false;
        for port in &mut self.bridges[bridge].ports {
            if port.as_ref().is_some_and(|(_, of)| *of == nic) {
                *port = None;
            }
        }
        Ok(ValeDetach { port_index: u32::try_from(port).unwrap_or(0), pad: 0 })
    }

    /// `VALE_LIST`: the first port at these indices or behind them; or where a port of that name is.
    pub(super) fn list(&self, name: &str, asked: ValeList) -> io::Result<(String, ValeList)> {
        let reply = |bridge: usize, port: usize| ValeList {
            bridge_index: u16::try_from(bridge).unwrap_or(u16::MAX),
            pad: 0,
            port_index: u32::try_from(port).unwrap_or(u32::MAX),
        };
        if !name.is_empty() {
            let switch = name.split(':').next().unwrap_or_default();
            let bridge = self.bridges.iter().position(|bridge| bridge.name == switch);
            let bridge = bridge.ok_or_else(|| errno(libc::ENOENT))?;
            let port = self.bridges[bridge].find(name).unwrap_or(usize::MAX);
            return Ok((name.to_owned(), reply(bridge, port)));
        }
        let mut first = asked.port_index as usize;
        for (at, bridge) in self.bridges.iter().enumerate().skip(asked.bridge_index.into()) {
            let ports = bridge.ports.iter().enumerate().skip(first);
            if let Some((port, (name, _))) = ports.filter_map(|(at, port)| Some((at, port.as_ref()?))).next()
            {
                return Ok((name.clone(), reply(at, port)));
            }
            first = 0;
        }
        Err(errno(libc::ENOENT))
    }

    /// `VALE_NEWIF`: an interface that outlives its users.
    pub(super) fn new_interface(&mut self, name: &str, mut asked: ValeNewif) -> io::Result<ValeNewif> {
        if name.starts_with("vale") || name.len() >= 16 {
            return Err(errno(libc::EINVAL));
        }
        if self.find(name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        self.check_memory(asked.mem_id)?;
        let ValeNewif { tx_slots, rx_slots, tx_rings, rx_rings, .. } = asked;
        let at = self
            .make_vale(name, &Register { tx_slots, rx_slots, tx_rings, rx_rings, ..Register::default() })?;
        let nic = &mut self.nics[at];
        nic.persistent = true;
        (asked.tx_slots, asked.rx_slots) = (nic.shape.slots, nic.shape.slots);
        (asked.tx_rings, asked.rx_rings) = (nic.shape.rings, nic.shape.rings);
        asked.mem_id = Self::memory_id(nic.memory);
        Ok(asked)
    }

    /// `VALE_DELIF`.
    pub(super) fn delete_interface(&mut self, name: &str) -> io::Result<()> {
        let at = self.find(name).ok_or_else(|| errno(libc::ENXIO))?;
        let nic = &self.nics[at];
        if !nic.persistent {
            return Err(errno(libc::EINVAL));
        }
        if nic.attached || nic.users.iter().any(|users| *users > 0) {
            return Err(errno(libc::EBUSY));
        }
        self.end(at);
        Ok(())
    }

    /// `VALE_POLLING_ENABLE` and `_DISABLE`: of NICs on a switch alone.
    pub(super) fn poll_in_kernel(&mut self, name: &str, start: Option<ValePolling>) -> io::Result<()> {
        if !is_vale(name) {
            return Err(errno(libc::EINVAL));
        }
        let found = self.bridges.iter().find_map(|of| of.ports[of.find(name)?].as_ref().map(|(_, nic)| *nic));
        let nic = found.ok_or_else(|| errno(libc::ENXIO))?;
        if self.nics[nic].vale {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let rings = u32::from(self.nics[nic].shape.rings);
        match start {
            Some(_) if self.nics[nic].polled => return Err(errno(libc::EFAULT)),
            Some(ValePolling { mode: 1, cpus: 1, .. }) => {}
            Some(ValePolling { mode: 2, first_cpu, cpus, .. }) if cpus > 0 && first_cpu + cpus <= rings => {}
            Some(_) => return Err(errno(libc::EINVAL)),
            None if !self.nics[nic].polled => return Err(errno(libc::EFAULT)),
            None => {}
        }
        self.nics[nic].polled = start.is_some();
        Ok(())
    }
}
