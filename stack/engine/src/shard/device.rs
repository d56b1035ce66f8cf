//! Frames in and out of ports.
//!
//! In: link, network and transport headers are parsed once, the payload is copied from the ring's buffer
//! straight into the flow's rx stream. Out: headers and payload are written straight into a slot of the
//! tx ring. A port is driven by its shard alone; one sync per batch in each direction.

use std::sync::Arc;

use utcp_netmap_io::rss::Rss;
use utcp_netmap_io::{Caps, Capture, Counters, PollFds, Port, PortError, Tracer};
use utcp_proto::wire::IpAddr;
use utcp_proto::wire::checksum::Verify;
use utcp_proto::{Duration, FourTuple, IcmpError, Instant, SocketError, State, Transmit, TxLimits, UserCall};

use super::ahead::{Batch, LOOK_AHEAD};
use super::flow::{Flow, Path};
use super::fragments::Put;
use super::frame::{self, Parsed};
use super::report::endpoint;
use super::segments::Payload;
use super::table::Entry;
use super::{Shard, Timer, ToControl};
use crate::station::{Hop, Station, Verdict};

/// Client ports of connections over a device: above the kernel's own range, reserved for the engine.
pub const DEVICE_PORTS: std::ops::Range<u32> = 61_000..65_536;
/// Bytes of payload in one frame for a device that cuts segments: frame and headers stay below 64 KiB.
const VNET_PAYLOAD_MAX: u32 = 65_000;
/// How long a connection waits for its next hop's address: three questions of a second each.
const RESOLVE_TIME: Duration = Duration::from_millis(3_100);
/// Next hop of a flow whose neighbour is not resolved yet.
pub(super) const UNRESOLVED: [u8; 6] = [0; 6];
/// Next hop of a flow whose way the host's routes or rules bar; no station has a group's address.
pub(super) const BARRED: [u8; 6] = [1, 0, 0, 0, 0, 0];

/// An open port of this shard.
pub struct DevicePort {
    pub(super) port: Box<dyn Port>,
    pub(super) link: Link,
    /// The device went away. Flows live on as behind a cut cable, until they time out.
    pub(super) gone: bool,
    /// It is not slept on any more.
    pub(super) buried: bool,
    /// Its interface is down, and nobody may ask it anything before it is up again: what is sent is lost as in a cut cable.
    pub(super) unplugged: bool,
    /// We are a host of our own there.
    station: Option<Station>,
    /// Its queue of the device, and how that spreads frames.
    pub(super) queue: u32,
    pub(super) rss: Option<Arc<Rss>>,
    /// The last slot's frame goes on in the next one.
    goes_on: bool,
    /// Writes down what passes, while somebody wants to see it.
    pub(super) tracer: Option<Tracer>,
}

/// What to do about a next hop whose link address nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Ask for it.
    Ask,
    /// Nothing.
    Leave,
}

/// What has to be known of a port, also while its rings are in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Largest IP packet, bytes.
    pub mtu: u32,
    pub mac: [u8; 6],
    /// The link address of the bridge that the interface is a member of: what is for that, and for us, comes here first.
    pub bridge_mac: Option<[u8; 6]>,
    /// Whether the peer may leave the TCP checksum partial (veth, TAP).
    pub verify: Verify,
    /// The interface whose routes lead here.
    pub ifindex: Option<u32>,
    /// The kernel's interface below, if there is one.
    pub interface: Option<u32>,
    /// A virtio-net header stands in front of every frame.
    vnet: bool,
    /// Largest IP packet that the port's buffers hold, whatever the interface carries.
    pub mtu_max: u32,
    /// Client ports of connections over it.
    pub client_ports: (u16, u16),
}

/// First and last client port of connections over a port.
pub(crate) fn client_ports(caps: &Caps) -> (u16, u16) {
    caps.client_ports.unwrap_or((DEVICE_PORTS.start as u16, (DEVICE_PORTS.end - 1) as u16))
}

impl Link {
    /// An interface of the host.
    #[cfg(test)]
    pub(super) fn of_interface(ifindex: u32, mtu: u32) -> Self {
        Self {
            mtu,
            mac: [2, 0, 0, 0, 0, 1],
            bridge_mac: None,
            verify: Verify::Full,
            ifindex: Some(ifindex),
            interface: Some(ifindex),
            vnet: false,
            mtu_max: mtu,
            client_ports: (DEVICE_PORTS.start as u16, (DEVICE_PORTS.end - 1) as u16),
        }
    }

    /// How much one [`Transmit`] may cover: with a virtio-net header the device cuts.
    pub(super) fn limits(&self) -> TxLimits {
        if self.vnet { TxLimits { payload_max: VNET_PAYLOAD_MAX } } else { TxLimits::WIRE }
    }
}

impl DevicePort {
    /// Wraps an open port.
    #[must_use]
    pub fn new(port: Box<dyn Port>, station: Option<Station>) -> Self {
        let caps = port.caps();
        let verify = if caps.rx_checksum {
            Verify::Trust
        } else if caps.local {
            Verify::AllowPartial
        } else {
            Verify::Full
        };
        // Where we are a host of our own, the kernel's routes over that interface are its own as well.
        let ifindex = caps.ifindex.filter(|_| station.is_none());
        let vnet = usize::from(caps.vnet_header) == frame::VNET_HEADER;
        debug_assert!(vnet || caps.vnet_header == 0, "a virtio-net header of another length");
        let mtu_max = caps.mtu_max.max(caps.mtu);
        let link = Link {
            mtu: caps.mtu,
            mac: caps.mac,
            bridge_mac: None,
            verify,
            ifindex,
            interface: caps.ifindex,
            vnet,
            mtu_max,
            client_ports: client_ports(caps),
        };
        let (queue, rss) = (caps.queue, caps.rss.clone());
        Self {
            link,
            port,
            gone: false,
            buried: false,
            unplugged: false,
            station,
            queue,
            rss,
            goes_on: false,
            tracer: None,
        }
    }

    /// Our addresses there, if we are a host of our own, which has one at least.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        self.station.as_ref().map_or(Vec::new(), |station| station.addresses().collect())
    }

    /// Who we are there, if we are a host of our own.
    pub(super) fn station_mut(&mut self) -> Option<&mut Station> {
        self.station.as_mut()
    }

    /// Frames that can be read now.
    fn rx_sync(&mut self) -> u32 {
        let result = match &mut self.tracer {
            _ if self.gone || self.unplugged => return 0,
            None => self.port.rx_sync(),
            Some(tracer) => tracer.rx_sync(&mut *self.port),
        };
        result.unwrap_or_else(|error| self.failed(&error))
    }

    /// Slots that can be filled now.
    fn tx_sync(&mut self) -> u32 {
        let result = match &mut self.tracer {
            _ if self.gone || self.unplugged => return 0,
            None => self.port.tx_sync(),
            Some(tracer) => tracer.tx_sync(&mut *self.port),
        };
        result.unwrap_or_else(|error| self.failed(&error))
    }

    fn failed(&mut self, error: &PortError) -> u32 {
        self.gone |= matches!(error, PortError::Gone { .. });
        tracing::error!(%error, port = self.port.caps().name, "frames can't pass");
        0
    }

    /// What to sleep on.
    pub(super) fn poll_fds(&self) -> PollFds {
        self.port.poll_fds()
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.port.caps().name
    }

    /// Once, after the device went away: what must not be slept on any more, or nobody would sleep again.
    pub(super) fn take_dead_fds(&mut self) -> PollFds {
        let fresh = self.gone && !std::mem::replace(&mut self.buried, true);
        if fresh { self.port.poll_fds() } else { PollFds::default() }
    }

    /// How long the shard may sleep at most.
    pub(super) fn resync_in(&self) -> Option<std::time::Duration> {
        if self.gone || self.unplugged { None } else { self.port.resync_in() }
    }

    pub(super) fn counters(&self) -> Counters {
        let capture_lost = self.tracer.as_ref().map_or(0, Tracer::lost);
        Counters { capture_lost, ..self.port.counters() }
    }
}

impl std::fmt::Debug for DevicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevicePort").field("name", &self.port.caps().name).field("gone", &self.gone).finish()
    }
}

/// A segment without payload that waits for the transmit phase, and where what it answers came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderOnly {
    port: u32,
    next_hop: [u8; 6],
    tuple: FourTuple,
    pub(super) transmit: Transmit,
}

impl Shard {
    /// Reads every port's batch; true if there was a frame.
    pub(super) fn receive_frames(&mut self) -> bool {
        let mut work = false;
        for index in 0..self.ports.len() {
            // The ports stand aside while their frames are borrowed.
            let mut ports = std::mem::take(&mut self.ports);
            let mut moved = false;
            if let Some(port) = ports.get_mut(index) {
                work |= self.receive_from(index as u32, port);
                moved = port.station.as_mut().is_some_and(Station::take_news);
            }
            self.ports = ports;
            if moved {
                self.find_next_hops();
            }
        }
        work
    }

    fn receive_from(&mut self, index: u32, device: &mut DevicePort) -> bool {
        if device.rx_sync() == 0 {
            return false;
        }
        let Link { verify, vnet, mac, bridge_mac, .. } = device.link;
        let for_us =
            |bytes: &[u8]| bytes.starts_with(&mac) || bridge_mac.is_some_and(|mac| bytes.starts_with(&mac));
        let at = if vnet { frame::VNET_HEADER } else { 0 };
        let DevicePort { port, station, goes_on, .. } = device;
        let (mut rx, mut tx) = port.rings();
        let mut batch = Batch::default();
        while !rx.is_empty() {
            for frame in rx.by_ref().take(LOOK_AHEAD) {
                self.counters.rx_frames += 1;
                // A piece of a frame that is longer than our buffers; what is in it would else pass for a frame.
                let is_piece = std::mem::replace(goes_on, frame.more()) || frame.more();
                if is_piece {
                    self.counters.dropped_frames += 1;
                    continue;
                }
                let bytes = frame.bytes().get(at..).unwrap_or_default();
                let verdict = station.as_mut().map(|station| {
                    let plain = station.is_plainly_ours(bytes);
                    if plain { Verdict::Ours } else { station.on_frame(self.now, bytes, &mut tx) }
                });
                // A device that listens to other stations' frames (promiscuous mode) hands them over as well.
                let verdict = verdict.or_else(|| (!for_us(bytes)).then_some(Verdict::Foreign));
                match verdict {
                    None | Some(Verdict::Ours) => match frame::parse(bytes, verify) {
                        Ok(parsed) => batch.push(parsed, bytes),
                        Err(_) => self.counters.dropped_frames += 1,
                    },
                    Some(Verdict::Done) => self.counters.neighbour_frames += 1,
                    Some(Verdict::Neighbours) => {
                        self.counters.neighbour_frames += 1;
                        self.tell_others(index, bytes);
                    }
                    Some(Verdict::Foreign) => self.counters.dropped_frames += 1,
                }
            }
            self.look_ahead(batch.tuples());
            for (parsed, bytes) in batch.iter() {
                self.on_parsed(index, verify, parsed, bytes);
            }
            batch.clear();
        }
        true
    }

    /// A frame of a port, without a virtio-net header.
    pub(super) fn on_frame(&mut self, port: u32, verify: Verify, bytes: &[u8]) {
        match frame::parse(bytes, verify) {
            Ok(parsed) => self.on_parsed(port, verify, &parsed, bytes),
            Err(_) => self.counters.dropped_frames += 1,
        }
    }

    /// The same, understood.
    fn on_parsed(&mut self, port: u32, verify: Verify, parsed: &Parsed, bytes: &[u8]) {
        match parsed {
            Parsed::Segment { tuple, segment, payload, source_mac } => {
                if self.hand_over(port, tuple, bytes) {
                    return;
                }
                let payload = bytes.get(payload.clone()).map_or(Payload::None, Payload::Frame);
                let path = Path::Device { port, next_hop: *source_mac };
                self.on_segment(tuple, segment, payload, path);
            }
            Parsed::Fragment => {
                self.counters.fragments += 1;
                match self.fragments.put(self.now, bytes) {
                    Put::Kept => {}
                    Put::Whole(frame) => self.on_frame(port, verify, &frame),
                    Put::Dropped => self.counters.dropped_fragments += 1,
                }
            }
            Parsed::Error { tuple, error } => {
                if !self.hand_over(port, tuple, bytes) {
                    self.on_icmp(tuple, *error);
                }
            }
        }
    }

    /// An ICMP error quotes a segment of ours. What the TCB believes of it is its own business (RFC 5927).
    fn on_icmp(&mut self, tuple: &FourTuple, error: IcmpError) {
        self.counters.icmp_errors += 1;
        let Some(Entry::Flow(index)) = self.table.get(tuple) else { return };
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        let actions = flow.tcb.on_icmp(now, error);
        self.act(index, &actions, Payload::None);
    }

    /// Begins a trace of the ports that `port` means.
    pub(super) fn trace(&mut self, capture: &Capture, port: &str) {
        for device in &mut self.ports {
            if crate::control::is_of(&device.port.caps().name, port) {
                device.tracer = Some(capture.tracer(&mut *device.port));
            }
        }
        self.traced = Some((capture.clone(), port.to_owned()));
        for (_, flow) in self.flows.iter() {
            self.trace_flow(flow);
        }
    }

    pub(super) fn untrace(&mut self) {
        self.traced = None;
        for DevicePort { tracer, port, .. } in &mut self.ports {
            if let Some(tracer) = tracer.take() {
                tracer.finish(&**port);
            }
        }
    }

    /// Says in the trace whose flow it is; the words stand beside the next packet.
    pub(super) fn trace_flow(&self, flow: &Flow) {
        let (Some((capture, _)), Path::Device { .. }) = (&self.traced, flow.path) else { return };
        let program = self.clients.get(flow.client).map_or("?", |client| &client.shared.name);
        let [local, remote] = [flow.tuple.local, flow.tuple.remote].map(|end| endpoint(end.addr, end.port));
        capture.comment(&format!("{program}: {local} to {remote}"));
    }

    /// Whether the port could take another frame.
    pub(super) fn port_has_room(&mut self, port: u32) -> bool {
        let Some(device) = self.ports.get_mut(port as usize) else { return false };
        // What goes to a device that is gone takes no room.
        if device.gone || device.unplugged || device.port.tx().space() > 0 {
            return true;
        }
        // Send what is committed and take back what has left.
        device.tx_sync() > 0
    }

    /// Queues an answer to a segment that came by this port from this link address; the transmit phase finds the way and puts it on
    /// the ring.
    pub(super) fn send_header(
        &mut self,
        port: u32,
        next_hop: [u8; 6],
        tuple: &FourTuple,
        transmit: &Transmit,
    ) {
        self.headers.push_back(HeaderOnly { port, next_hop, tuple: *tuple, transmit: *transmit });
    }

    /// Puts the queued answers on their rings.
    pub(super) fn send_headers(&mut self) {
        while let Some(HeaderOnly { port, next_hop, tuple, transmit }) = self.headers.pop_front() {
            let came = Path::Device { port, next_hop };
            let Path::Device { port, next_hop } = self.way_back(&tuple, came) else { continue };
            if !self.port_has_room(port) {
                // The peer asks again for whatever this said.
                self.counters.dropped_tx_full += 1;
                continue;
            }
            self.write_frame(port, next_hop, &tuple, &transmit, |_| ());
        }
    }

    /// Puts a segment of a flow on the ring.
    pub(super) fn send_segment(&mut self, index: u32, port: u32, next_hop: [u8; 6], transmit: &Transmit) {
        let Some(flow) = self.flows.get(index) else { return };
        let (tuple, stream) = (flow.tuple, flow.tx);
        let position = stream.head.wrapping_add(u64::from(transmit.offset));
        self.write_frame(port, next_hop, &tuple, transmit, |body| {
            stream.read(position, transmit.len, |bytes| body.put(bytes));
        });
    }

    /// Writes one frame into the next slot: headers, payload by `fill`, checksum.
    fn write_frame(
        &mut self,
        port: u32,
        next_hop: [u8; 6],
        tuple: &FourTuple,
        transmit: &Transmit,
        fill: impl FnOnce(&mut frame::Body<'_>),
    ) {
        let Some(device) = self.ports.get_mut(port as usize) else { return };
        if device.gone || device.unplugged {
            self.counters.dropped_no_device += 1;
            return;
        }
        if next_hop == BARRED {
            self.counters.dropped_barred += 1;
            return;
        }
        let Link { mac, vnet, .. } = device.link;
        let mut tx = device.port.tx();
        let Some(mut slot) = tx.slot() else {
            self.counters.dropped_tx_full += 1;
            return;
        };
        let headers = frame::Headers { mac, next_hop, tuple, transmit, vnet };
        if let Some(len) = frame::build(&mut slot, &headers, fill) {
            slot.commit(len);
            self.counters.tx_frames += 1;
        } else {
            self.counters.dropped_tx_full += 1;
        }
    }

    /// One kick per port and batch.
    pub(super) fn flush_ports(&mut self) {
        for device in &mut self.ports {
            device.tx_sync();
        }
    }

    /// Tells the ports that the shard is about to sleep; false: frames wait.
    pub(super) fn arm_ports(&mut self) -> bool {
        self.ports
            .iter_mut()
            .all(|device| device.gone || device.unplugged || device.port.arm().unwrap_or(true))
    }

    /// The way to a destination that is not this host; `None`: no device of ours leads there.
    /// `scope` is the interface of a link-local destination, else 0.
    pub(super) fn device_path(
        &mut self,
        to: IpAddr,
        wanted: IpAddr,
        scope: u32,
        unknown: Unknown,
    ) -> Option<(Path, IpAddr)> {
        let near = self.station_path(wanted, unknown, |station| station.on_link(to));
        near.or_else(|| self.host_path(to, wanted, scope, unknown))
            .or_else(|| self.station_path(wanted, unknown, |station| station.by_gateway(to)))
    }

    /// The way over a device where we are a host of our own.
    fn station_path(
        &mut self,
        wanted: IpAddr,
        unknown: Unknown,
        way: impl Fn(&Station) -> Option<Hop>,
    ) -> Option<(Path, IpAddr)> {
        let now = self.now;
        for (index, device) in self.ports.iter_mut().enumerate() {
            let Some(station) = &mut device.station else { continue };
            let Some(hop) = way(station) else { continue };
            if !wanted.is_unspecified() && !station.owns(wanted) {
                continue;
            }
            let known = match unknown {
                Unknown::Ask => station.resolve(now, hop.next),
                Unknown::Leave => station.link_address(hop.next),
            };
            let next_hop = known.unwrap_or(UNRESOLVED);
            let source = if wanted.is_unspecified() { hop.source } else { wanted };
            return Some((Path::Device { port: index as u32, next_hop }, source));
        }
        None
    }

    /// Whether `addr` is one of our own, on a device where we are a host of our own.
    pub(super) fn is_own(&self, addr: IpAddr) -> bool {
        self.own.iter().flatten().any(|own| *own == addr)
    }

    /// Whether we are a host of our own behind a port.
    pub(super) fn is_station(&self, port: u32) -> bool {
        self.own.get(port as usize).is_some_and(|own| !own.is_empty())
    }

    /// Whether `addr` is a neighbour on such a device.
    pub(super) fn is_near(&self, addr: IpAddr) -> bool {
        let mut stations = self.ports.iter().filter_map(|device| device.station.as_ref());
        stations.any(|station| station.on_link(addr).is_some())
    }

    /// Asks after neighbours whose time has come; true if there was something to do.
    pub(super) fn run_stations(&mut self) -> bool {
        let now = self.now;
        let mut work = false;
        for device in &mut self.ports {
            if let Some(station) = &mut device.station
                && station.next_deadline().is_some_and(|due| due <= now)
            {
                station.poll(now, &mut device.port.tx());
                work = true;
            }
        }
        work
    }

    /// When [`Self::run_stations`] has work.
    pub(super) fn stations_due_ns(&self) -> Option<u64> {
        let stations = self.ports.iter().filter_map(|device| device.station.as_ref());
        stations.filter_map(Station::next_deadline).min().map(Instant::as_nanos)
    }

    /// A segment of a flow had to be sent again: its next hop may have moved.
    pub(super) fn doubt_next_hop(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let (to, path) = (flow.tuple.remote.addr, flow.path);
        self.doubt_at_station(to, path);
    }

    /// Where we are a host of our own: whoever takes what goes to `to` may have moved. False: we are none there.
    pub(super) fn doubt_at_station(&mut self, to: IpAddr, path: Path) -> bool {
        let (Path::Device { port, .. }, now) = (path, self.now) else { return false };
        let station = self.ports.get_mut(port as usize).and_then(|device| device.station.as_mut());
        station.map(|station| station.doubt(now, to)).is_some()
    }

    /// A connection whose next hop nobody knows waits so long for an answer; as long as the kernel does.
    pub(super) fn expect_next_hop(&mut self, index: u32) {
        let due = self.now + RESOLVE_TIME;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if matches!(flow.path, Path::Device { next_hop: UNRESOLVED, .. }) && flow.timer.is_none() {
            let due = due.as_nanos();
            flow.timer = Some((self.wheel.insert(due, Timer::Flow(index)), due));
        }
    }

    /// No answer came: what the kernel says then.
    pub(super) fn give_up_next_hop(&mut self, index: u32) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        let waits = matches!(flow.path, Path::Device { next_hop: UNRESOLVED, .. });
        if !waits || flow.tcb.state() != State::SynSent {
            return;
        }
        if let Ok(mut actions) = flow.tcb.on_user(now, UserCall::Abort) {
            actions.error = Some(SocketError::HostUnreachable);
            self.act(index, &actions, Payload::None);
        }
    }

    /// The way by the host's routes and neighbours.
    fn host_path(
        &mut self,
        to: IpAddr,
        wanted: IpAddr,
        scope: u32,
        unknown: Unknown,
    ) -> Option<(Path, IpAddr)> {
        let from = (!wanted.is_unspecified()).then_some(wanted);
        let route = self.host.route_by(to, from, (scope != 0).then_some(scope))?;
        let port = self.links.iter().position(|link| link.ifindex == Some(route.ifindex))? as u32;
        let neighbour = self.host.neighbour(route.ifindex, route.next_hop).filter(|n| n.usable);
        if neighbour.is_none() && unknown == Unknown::Ask {
            self.outbox.send(ToControl::Resolve { ifindex: route.ifindex, next_hop: route.next_hop });
        }
        let next_hop = neighbour.map_or(UNRESOLVED, |n| n.mac);
        Some((Path::Device { port, next_hop }, from.unwrap_or(route.source)))
    }

    /// Client ports for connections over a port.
    pub(super) fn device_ports(&self, port: u32) -> std::ops::Range<u32> {
        let (first, last) = self.links.get(port as usize).map_or((0, 0), |link| link.client_ports);
        u32::from(first)..u32::from(last) + 1
    }
}
