//! The devices of the configuration: opened at the start, and again when one that was removed is back.
//!
//! ```text
//!  removed ─► ports go dead, new sockets use the kernel ─► an interface of that name is there ─► opened again,
//!             flows wait as behind a cut cable                ports take their old places, flows go on
//! ```
//!
//! What is steered follows the addresses of the interface. While a device is away or its link is down (which takes its IPv6 addresses,
//! unless `keep_addr_on_down` is set), and for [`RETURN`] after, its tuples count as wanted although its addresses are gone: were they
//! registered only when the addresses are back, the first segment of a peer would reach the kernel's half of a listener,
//! which answers with a reset. An address that is taken off a link that is up may come back for a shorter time ([`GAP`]).
//!
//! An interface that is or becomes a bridge's member loses its addresses and routes to the bridge. Then the bridge is driven, too ([`Device::master`]):
//! what comes by the member for its own link address is taken there as before, all else for the bridge's addresses at the bridge, and segments leave
//! by the bridge, which knows the member to take. It stays a device until the bridge is removed, so nothing is reset when the member leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use utcp_netmap_io::{FaultSpec, OpenOptions, PortError, Proto, Steering, Tuple, inspect};
use utcp_proto::wire::IpAddr;

use super::listeners::to_std;
use super::{Control, EngineError, OpenDevice};
use crate::config::Config;
use crate::host::{HostView, Interface, Kind, is_link_local_v6};
use crate::shard::{DevicePort, ToShard};
use crate::station::{DeviceConfig, Station};

/// How long the addresses of a device that is back may take to be back, too.
const RETURN: Duration = Duration::from_secs(10);
/// The same for an address that goes while everything else stays: whoever sets up an interface anew takes off and puts on.
const GAP: Duration = Duration::from_secs(3);
/// How often opening a device that is back is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// A device of the configuration.
pub(super) struct Device {
    /// As the configuration has it.
    pub text: String,
    /// The kernel's interface below, if there is one: its name and number.
    pub interface: Option<(String, u32)>,
    /// Sorts frames between us and the kernel; `None`: all are ours, or the device is away.
    pub steering: Option<Arc<dyn Steering>>,
    /// Addresses whose client ports are registered.
    clients_of: Vec<IpAddr>,
    /// How many addresses found no room for theirs.
    without_clients: usize,
    /// First and last of them.
    client_ports: (u16, u16),
    /// Addresses that were there before, and until when they may come back; without an end while the link is down.
    expected: Vec<IpAddr>,
    expected_until: Option<Instant>,
    /// Names of its ports.
    pub port_names: Vec<String>,
    /// Shard and place there of each port.
    places: Vec<(usize, usize)>,
    /// Why it is not open, if it is not.
    pub away: Option<String>,
    /// When opening it may be tried again.
    next_try: Instant,
    /// It is no device of the configuration, but a bridge that one of those is a member of.
    master: bool,
    /// The bridge of which it is a member and that can't be driven, and why.
    pub master_refused: Option<(u32, String)>,
}

impl Device {
    /// Opens the device that `text` describes.
    pub(super) fn open(
        text: &str,
        config: &Config,
        open: &mut OpenDevice,
    ) -> Result<(Self, Vec<DevicePort>), EngineError> {
        let failed = |error| EngineError::Device { device: text.to_owned(), error };
        let DeviceConfig { device: name, station } =
            DeviceConfig::parse(text).map_err(|error| EngineError::Setting(error.to_string()))?;
        let shards = u32::try_from(config.shards_with_ports()).unwrap_or(1);
        let options = OpenOptions {
            // What is corrupted on purpose has to be found by its checksum, which the device would make behind us.
            vnet_header: config.faults.is_none(),
            queues: shards,
            stack: crate::config::stack_of(&config.name).to_owned(),
            // netmap: without addresses of our own, we are behind the kernel's.
            beside_kernel: station.is_none(),
            ..OpenOptions::default()
        };
        let mut open = open(&name, &options).map_err(failed)?;
        if let Some(faults) = &config.faults {
            let spec = faults
                .parse::<FaultSpec>()
                .map_err(|error| EngineError::Setting(format!("UTCP_FAULTS={faults}: {error}")))?;
            tracing::warn!(device = text, faults, "faults are injected on purpose");
            open = open.with_faults(&spec).map_err(failed)?;
        }
        // Each shard has a station of its own there, which hears of the others' neighbours.
        if station.is_some() && open.ports.len() > shards as usize {
            let words = format!(
                "a host of its own has a ring for each shard, and there are {shards} shard(s): name one (netmap:eth0-0), \
                 let the NIC use fewer, or give the engine more cores"
            );
            return Err(EngineError::Setting(format!("{name}: {words}")));
        }
        let caps = open.ports.first().map(|port| port.caps());
        let interface = caps.and_then(|caps| Some((caps.interface.clone()?, caps.ifindex?)));
        if let Some(caps) = caps.filter(|caps| caps.mode.contains("generic")) {
            tracing::warn!(
                device = text,
                "runs in generic mode ({}), because the driver takes no XDP program, or not at this MTU: every frame \
                 costs more than in the driver",
                caps.mode
            );
        }
        let client_ports = caps.map_or((0, 0), crate::shard::client_ports);
        let port_names = open.ports.iter().map(|port| port.caps().name.clone()).collect();
        let with_station = |port: Box<dyn utcp_netmap_io::Port>| {
            let station = station.as_ref().map(|config| Station::new(config, port.caps()));
            DevicePort::new(port, station)
        };
        let ports = open.ports.into_iter().map(with_station).collect();
        let device = Self {
            text: text.to_owned(),
            interface,
            steering: open.steering,
            clients_of: Vec::new(),
            without_clients: 0,
            client_ports,
            expected: Vec::new(),
            expected_until: None,
            port_names,
            places: Vec::new(),
            away: None,
            next_try: Instant::now(),
            master: false,
            master_refused: None,
        };
        Ok((device, ports))
    }

    /// Notes where the next port of it is.
    pub(super) fn place(&mut self, shard: usize, place: usize) {
        self.places.push((shard, place));
    }

    /// Whether that is its interface.
    pub(super) fn drives(&self, ifindex: u32) -> bool {
        self.interface.as_ref().is_some_and(|(_, own)| *own == ifindex)
    }

    /// Addresses of its interface.
    fn addresses(&self, host: &HostView) -> Vec<IpAddr> {
        self.interface
            .as_ref()
            .map_or(Vec::new(), |(_, ifindex)| host.served_addresses_of(*ifindex).collect())
    }

    /// Registers the client ports of new addresses, and gives back those of addresses that are gone. Connections from addresses
    /// that find no room there are the kernel's.
    ///
    /// # Errors
    /// Another stack has one of them, or the kernel refuses.
    pub(super) fn steer_clients(&mut self, wanted: &[IpAddr]) -> Result<(), PortError> {
        let Some(steering) = self.steering.clone() else { return Ok(()) };
        let (first, last) = self.client_ports;
        let tuple = |addr, port| Tuple::new(to_std(addr), port, Proto::TCP);
        for addr in self.clients_of.iter().filter(|addr| !wanted.contains(addr)) {
            tracing::info!(device = self.text, "no address {addr} any more: its ports are the kernel's");
            steering.unregister_range(tuple(*addr, first), first..=last)?;
        }
        self.clients_of.retain(|addr| wanted.contains(addr));
        let new: Vec<IpAddr> =
            wanted.iter().filter(|addr| !self.clients_of.contains(addr)).copied().collect();
        let mut without = 0;
        for (at, addr) in new.iter().enumerate() {
            match steering.register_range(tuple(*addr, first), first..=last) {
                Ok(()) => self.clients_of.push(*addr),
                Err(error @ PortError::NoRoom { .. }) => {
                    without = new.len() - at;
                    if without != self.without_clients {
                        tracing::warn!(device = self.text, %error, "connections from {without} addresses are the kernel's");
                    }
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.without_clients = without;
        Ok(())
    }

    /// The device is away: nothing is steered any more.
    fn leave(&mut self, why: String) {
        self.away = Some(why);
        if let Some(steering) = self.steering.take() {
            steering.leave();
        }
        self.expected = std::mem::take(&mut self.clients_of);
    }

    /// Takes the place of `old`, which was away.
    fn succeed(&mut self, old: &Self) {
        self.expected = old.expected.clone();
        self.master = old.master;
        self.expected_until = Some(Instant::now() + RETURN);
    }

    /// Addresses that went off the interface are expected back.
    fn expect(&mut self, host: &HostView) {
        let up = self.interface.as_ref().and_then(|(_, i)| host.interface(*i)).is_some_and(|i| i.up);
        let gone = |addr: &&IpAddr| !host.is_local(**addr) && !self.expected.contains(addr);
        let gone: Vec<IpAddr> = self.clients_of.iter().filter(gone).copied().collect();
        if !gone.is_empty() {
            let until = Instant::now() + GAP;
            self.expected_until = Some(self.expected_until.map_or(until, |old| old.max(until)));
        }
        self.expected.extend(gone);
        if !up {
            self.expected_until = None;
        } else if !self.expected.is_empty() && self.expected_until.is_none() {
            self.expected_until = Some(Instant::now() + RETURN);
        }
    }

    /// Addresses that are back are expected no more, nor are those that stay away for long.
    fn stop_expecting(&mut self, host: &HostView) {
        let Some((_, ifindex)) = self.interface else { return };
        let over = self.expected_until.is_some_and(|until| until <= Instant::now());
        self.expected.retain(|addr| !over && host.local_addresses_of(ifindex).all(|own| own != *addr));
        if self.expected.is_empty() {
            self.expected_until = None;
        }
    }

    /// Something is to be done about it soon, whatever the kernel tells.
    fn waits(&self, host: &HostView) -> bool {
        self.expected_until.is_some() || (self.away.is_some() && self.is_back(host))
    }

    /// An interface of its name is there. (A bridge is asked for by its members.)
    fn is_back(&self, host: &HostView) -> bool {
        !self.master && self.interface.as_ref().is_some_and(|(name, _)| host.interface_named(name).is_some())
    }

    /// It was a bridge's, which is gone, and nothing of ours will be its member.
    pub(super) fn is_past(&self) -> bool {
        self.master && self.away.is_some()
    }

    /// The bridge that its interface is a member of, if we can drive that, too.
    fn bridge<'h>(&self, host: &'h HostView) -> Option<&'h Interface> {
        let (_, ifindex) = self.interface.as_ref().filter(|_| self.text.starts_with("xdp:"))?;
        let master = host.interface(host.interface(*ifindex)?.master?)?;
        (master.kind == Kind::Bridge).then_some(master)
    }
}

/// The addresses whose frames are ours on each device: those of the interfaces of all devices, because packets to any
/// address of the host may come by any interface, and answers may return by another way; and those of `lo`, which come by no
/// interface of their own (a router's or a load balancer's, say). A link-local one belongs to its link alone, and so does one that
/// is expected back.
pub(super) fn steered_addresses(devices: &[Device], host: &HostView) -> Vec<Vec<IpAddr>> {
    let mut everywhere: Vec<IpAddr> = devices.iter().flat_map(|device| device.addresses(host)).collect();
    everywhere.extend(host.addresses_of_the_host());
    everywhere.retain(|addr| !is_link_local_v6(*addr));
    let of = |device: &Device| {
        let own = device.addresses(host).into_iter().chain(device.expected.iter().copied());
        let mut all: Vec<IpAddr> = own.chain(everywhere.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    devices.iter().map(of).collect()
}

/// Addresses whose client ports come to us by whichever device they come, in order. A link-local one comes by its link.
fn sources(devices: &[Device]) -> Arc<[IpAddr]> {
    let steering = || devices.iter().filter(|device| device.steering.is_some());
    let everywhere =
        |addr: &IpAddr| is_link_local_v6(*addr) || steering().all(|device| device.clients_of.contains(addr));
    let mut all: Vec<IpAddr> = steering().flat_map(|device| &device.clients_of).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.retain(everywhere);
    all.into()
}

impl Control {
    /// Whether a device has to be looked at again soon.
    pub(super) fn devices_wait(&self) -> bool {
        self.devices.iter().any(|device| device.waits(&self.host))
    }

    /// Notices devices that went away, opens again what is back, and steers what the addresses of now ask for.
    pub(super) fn check_devices(&mut self) {
        for index in 0..self.devices.len() {
            let device = &mut self.devices[index];
            let missing = device.interface.as_ref().is_some_and(|(_, i)| self.host.interface(*i).is_none());
            if device.away.is_none() && missing {
                tracing::warn!(
                    device = device.text,
                    "the device is gone; new sockets use the kernel until it is back"
                );
                device.leave("its interface was removed".to_owned());
                self.forget_steered(index);
            }
            let device = &self.devices[index];
            if device.away.is_some() && device.is_back(&self.host) && device.next_try <= Instant::now() {
                self.reopen(index);
            }
            let device = &mut self.devices[index];
            if device.away.is_none() {
                device.expect(&self.host);
            }
            device.stop_expecting(&self.host);
        }
        self.join_bridges();
        self.steer_all();
    }

    /// Tells the shards from which addresses they may connect.
    pub(super) fn tell_sources(&mut self) {
        let sources = sources(&self.devices);
        if sources != self.sources {
            self.sources = sources.clone();
            self.to_all(|| ToShard::Sources(sources.clone()));
        }
    }

    /// Drives the bridges that devices are members of.
    pub(super) fn join_bridges(&mut self) {
        for index in 0..self.devices.len() {
            self.join_bridge(index);
        }
    }

    /// Drives the bridge that a device has become a member of, if nothing of ours does.
    fn join_bridge(&mut self, index: usize) {
        let member = &self.devices[index];
        let Some(bridge) = member.bridge(&self.host) else {
            self.devices[index].master_refused = None;
            return;
        };
        let drives = |device: &Device| device.away.is_none() && device.drives(bridge.index);
        let refused = member.master_refused.as_ref().is_some_and(|(of, _)| *of == bridge.index);
        if self.devices.iter().any(drives) || refused && member.next_try > Instant::now() {
            return;
        }
        let (text, number) = (format!("xdp:{}", bridge.name), bridge.index);
        let shard = member.places.first().map_or(0, |(shard, _)| *shard);
        let (mut fresh, ports) = match Device::open(&text, &self.config, &mut *self.open) {
            Ok(opened) => opened,
            Err(error) => {
                let device = &mut self.devices[index];
                if !refused {
                    tracing::warn!(device = device.text, bridge = text, %error, "the bridge that it is a member of can't be driven");
                }
                device.master_refused = Some((number, error.to_string()));
                device.next_try = Instant::now() + RETRY;
                return;
            }
        };
        fresh.master = true;
        tracing::info!(
            device = self.devices[index].text,
            bridge = text,
            "a member of a bridge: that is driven, too"
        );
        self.devices[index].master_refused = None;
        let old = self.devices.iter().position(|device| device.master && device.text == text);
        let places = match old {
            Some(old) => {
                fresh.succeed(&self.devices[old]);
                std::mem::take(&mut self.devices[old].places)
            }
            None => {
                let taken = self.devices.iter().flat_map(|device| &device.places);
                let next =
                    taken.filter(|(of, _)| *of == shard).map(|(_, place)| place + 1).max().unwrap_or(0);
                (0..ports.len()).map(|at| (shard, next + at)).collect()
            }
        };
        fresh.places.clone_from(&places);
        match old {
            Some(old) => self.devices[old] = fresh,
            None => self.devices.push(fresh),
        }
        // Before the first frame: listeners and client ports as on the member.
        self.steer_all();
        self.hand_out(ports, &places);
    }

    /// Ports go to their places in the shards.
    fn hand_out(&self, ports: Vec<DevicePort>, places: &[(usize, usize)]) {
        // A device that came back with more queues has no place for them until the engine is restarted.
        for (port, &(shard, place)) in ports.into_iter().zip(places) {
            self.inboxes[shard].send(ToShard::Port { place, port: Box::new(port) });
        }
    }

    /// A shard can't drive a port any more.
    pub(super) fn on_port_gone(&mut self, name: &str) {
        let has = |device: &Device| device.port_names.iter().any(|own| own == name);
        let Some(index) = self.devices.iter().position(has) else { return };
        let device = &mut self.devices[index];
        if device.away.is_none() {
            tracing::warn!(device = device.text, "the device passes no frames any more");
            device.leave("it passes no frames".to_owned());
            // An interface that is there and passes nothing (netmap's rings are stopped while a NIC is set up anew) is
            // tried again now and then; one that was removed at once when it is back.
            if device.interface.as_ref().is_some_and(|(name, _)| matches!(inspect::driver(name), Ok(Some(_))))
            {
                device.next_try = Instant::now() + RETRY;
            }
            self.forget_steered(index);
        }
    }

    /// Opens a device again and hands its ports to the shards that had the old ones.
    fn reopen(&mut self, index: usize) {
        let old = &mut self.devices[index];
        let (mut fresh, ports) = match Device::open(&old.text, &self.config, &mut *self.open) {
            Ok(opened) => opened,
            Err(error) => {
                let why = error.to_string();
                if old.away.as_ref() != Some(&why) {
                    tracing::warn!(%error, "the device is back and can't be opened yet");
                }
                old.away = Some(why);
                old.next_try = Instant::now() + RETRY;
                return;
            }
        };
        fresh.succeed(old);
        let places = std::mem::take(&mut old.places);
        self.devices[index] = fresh;
        // Before the first frame: listeners and client ports as they were.
        self.steer_all();
        self.hand_out(ports, &places);
        self.devices[index].places = places;
        let device = &self.devices[index];
        tracing::info!(device = device.text, ports = ?device.port_names, "the device is back");
    }

    /// Nothing of this device's steering is registered any more.
    fn forget_steered(&mut self, index: usize) {
        for listener in self.clients.values_mut().flat_map(|client| &mut client.listeners) {
            listener.steered.retain(|(device, _)| *device != index);
        }
        self.lingering.forget(index);
        self.left.forget(index);
    }
}
