//! Frames in and out of ports.
//!
//! In: link, network and transport headers are parsed once, the payload is copied from the ring's buffer
//! straight into the flow's rx stream. Out: headers and payload are written straight into a slot of the
//! tx ring. A port is driven by its shard alone; one sync per batch in each direction.

use std::sync::Arc;

use utcp_netmap_io::{Capture, Counters, Port, PortError, RxFrame, Tracer};
use utcp_proto::wire::IpAddr;
use utcp_proto::wire::checksum::Verify;
use utcp_proto::{FourTuple, IcmpError, Transmit};

use super::flow::{Flow, Path};
use super::frame::{self, Parsed};
use super::report::endpoint;
use super::segments::Payload;
use super::table::Entry;
use super::{Shard, ToControl};
use crate::host::HostView;

/// Client ports of connections over a device: above the kernel's own range, reserved for the engine.
pub const DEVICE_PORTS: std::ops::Range<u32> = 61_000..65_536;
/// Next hop of a flow whose neighbour is not resolved yet.
pub(super) const UNRESOLVED: [u8; 6] = [0; 6];

/// An open port of this shard.
pub struct DevicePort {
    pub(super) port: Box<dyn Port>,
    pub(super) link: Link,
    /// Writes down what passes, while somebody wants to see it.
    tracer: Option<Tracer>,
}

/// What has to be known of a port, also while its rings are in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Largest IP packet, bytes.
    pub mtu: u32,
    mac: [u8; 6],
    /// Whether the peer may leave the TCP checksum partial (veth, TAP).
    verify: Verify,
    ifindex: Option<u32>,
}

impl DevicePort {
    /// Wraps an open port.
    #[must_use]
    pub fn new(port: Box<dyn Port>) -> Self {
        let caps = port.caps();
        let verify = if caps.rx_checksum {
            Verify::Trust
        } else if caps.local {
            Verify::AllowPartial
        } else {
            Verify::Full
        };
        let link = Link { mtu: caps.mtu, mac: caps.mac, verify, ifindex: caps.ifindex };
        Self { link, port, tracer: None }
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        match &mut self.tracer {
            None => self.port.rx_sync(),
            Some(tracer) => tracer.rx_sync(&mut *self.port),
        }
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        match &mut self.tracer {
            None => self.port.tx_sync(),
            Some(tracer) => tracer.tx_sync(&mut *self.port),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let capture_lost = self.tracer.as_ref().map_or(0, Tracer::lost);
        Counters { capture_lost, ..self.port.counters() }
    }
}

/// A segment without payload that waits for the transmit phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderOnly {
    port: u32,
    next_hop: [u8; 6],
    tuple: FourTuple,
    transmit: Transmit,
}

impl Shard {
    /// Reads every port's batch; true if there was a frame.
    pub(super) fn receive_frames(&mut self) -> bool {
        let mut work = false;
        for index in 0..self.ports.len() {
            // The ports stand aside while their frames are borrowed.
            let mut ports = std::mem::take(&mut self.ports);
            if let Some(port) = ports.get_mut(index) {
                work |= self.receive_from(index as u32, port);
            }
            self.ports = ports;
        }
        work
    }

    fn receive_from(&mut self, index: u32, device: &mut DevicePort) -> bool {
        match device.rx_sync() {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, port = index, "receiving failed");
                return false;
            }
        }
        let verify = device.link.verify;
        for frame in device.port.rx() {
            self.counters.rx_frames += 1;
            self.on_frame(index, verify, frame);
        }
        true
    }

    fn on_frame(&mut self, port: u32, verify: Verify, frame: RxFrame<'_>) {
        let bytes = frame.bytes();
        match frame::parse(bytes, verify) {
            Ok(Parsed::Segment { tuple, segment, payload, source_mac }) => {
                let payload = bytes.get(payload).map_or(Payload::None, Payload::Frame);
                let path = Path::Device { port, next_hop: source_mac };
                self.on_segment(&tuple, &segment, payload, path);
            }
            Ok(Parsed::Error { tuple, error }) => self.on_icmp(&tuple, error),
            Err(_) => self.counters.dropped_frames += 1,
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
        self.traced = Some(capture.clone());
        for (_, flow) in self.flows.iter() {
            self.trace_flow(flow);
        }
    }

    pub(super) fn untrace(&mut self) {
        self.traced = None;
        for device in &mut self.ports {
            device.tracer = None;
        }
    }

    /// Says in the trace whose flow it is; the words stand beside the next packet.
    pub(super) fn trace_flow(&self, flow: &Flow) {
        let (Some(capture), Path::Device { .. }) = (&self.traced, flow.path) else { return };
        let program = self.clients.get(flow.client).map_or("?", |client| &client.shared.name);
        let [local, remote] = [flow.tuple.local, flow.tuple.remote].map(|end| endpoint(end.addr, end.port));
        capture.comment(&format!("{program}: {local} to {remote}"));
    }

    /// Whether the port could take another frame.
    pub(super) fn port_has_room(&mut self, port: u32) -> bool {
        let Some(device) = self.ports.get_mut(port as usize) else { return false };
        if device.port.tx().space() > 0 {
            return true;
        }
        // Send what is committed and take back what has left.
        matches!(device.tx_sync(), Ok(space) if space > 0)
    }

    /// Queues a segment without payload; the transmit phase puts it on the ring.
    pub(super) fn send_header(
        &mut self,
        port: u32,
        next_hop: [u8; 6],
        tuple: &FourTuple,
        transmit: &Transmit,
    ) {
        self.headers.push_back(HeaderOnly { port, next_hop, tuple: *tuple, transmit: *transmit });
    }

    /// Puts the queued header-only segments on their rings.
    pub(super) fn send_headers(&mut self) {
        while let Some(header) = self.headers.pop_front() {
            if !self.port_has_room(header.port) {
                // The peer asks again for whatever this said.
                self.counters.dropped_tx_full += 1;
                continue;
            }
            self.write_frame(header.port, header.next_hop, &header.tuple, &header.transmit, |_| 0);
        }
    }

    /// Puts a segment of a flow on the ring.
    pub(super) fn send_segment(&mut self, index: u32, port: u32, next_hop: [u8; 6], transmit: &Transmit) {
        let Some(flow) = self.flows.get(index) else { return };
        let (tuple, stream) = (flow.tuple, flow.tx);
        let position = stream.head.wrapping_add(u64::from(transmit.offset));
        self.write_frame(port, next_hop, &tuple, transmit, |mut out| {
            let mut written = 0;
            stream.read(position, transmit.len, |bytes| {
                let room = std::mem::take(&mut out);
                if let Some((here, rest)) = room.split_at_mut_checked(bytes.len()) {
                    here.copy_from_slice(bytes);
                    written += bytes.len();
                    out = rest;
                }
            });
            written
        });
    }

    /// Writes one frame into the next slot: headers, payload by `fill` (returns its length), checksum.
    fn write_frame(
        &mut self,
        port: u32,
        next_hop: [u8; 6],
        tuple: &FourTuple,
        transmit: &Transmit,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let Some(device) = self.ports.get_mut(port as usize) else { return };
        let mac = device.link.mac;
        let mut tx = device.port.tx();
        let Some(mut slot) = tx.slot() else {
            self.counters.dropped_tx_full += 1;
            return;
        };
        let headers = frame::Headers { mac, next_hop, tuple, transmit };
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
            if let Err(error) = device.tx_sync() {
                tracing::error!(%error, "sending failed");
            }
        }
    }

    /// Tells the ports that the shard is about to sleep; false: frames wait.
    pub(super) fn arm_ports(&mut self) -> bool {
        self.ports.iter_mut().all(|device| device.port.arm().unwrap_or(true))
    }

    /// The way to a destination that is not this host; `None`: no device of ours leads there.
    pub(super) fn device_path(&mut self, to: IpAddr, wanted: IpAddr) -> Option<(Path, IpAddr)> {
        let from = (!wanted.is_unspecified()).then_some(wanted);
        let route = self.host.route(to, from)?;
        let port = self.links.iter().position(|link| link.ifindex == Some(route.ifindex))? as u32;
        let neighbour = self.host.neighbour(route.ifindex, route.next_hop).filter(|n| n.usable);
        if neighbour.is_none() {
            self.outbox.send(ToControl::Resolve { ifindex: route.ifindex, next_hop: route.next_hop });
        }
        let next_hop = neighbour.map_or(UNRESOLVED, |n| n.mac);
        Some((Path::Device { port, next_hop }, from.unwrap_or(route.source)))
    }

    /// Client ports for connections over a device.
    pub(super) fn device_ports(&self) -> std::ops::Range<u32> {
        DEVICE_PORTS
    }

    /// The host changed: flows over a device may have another next hop, or have one at last.
    pub(super) fn on_host(&mut self, host: Arc<HostView>) {
        self.host = host;
        let over_devices: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, flow)| matches!(flow.path, Path::Device { .. }))
            .map(|(index, _)| index)
            .collect();
        for index in over_devices {
            let Some(flow) = self.flows.get(index) else { continue };
            let (to, from, old) = (flow.tuple.remote.addr, flow.tuple.local.addr, flow.path);
            let Some((new, _)) = self.device_path(to, from) else { continue };
            // A neighbour that is being looked up anew keeps its old address until then.
            let known = !matches!(new, Path::Device { next_hop: UNRESOLVED, .. });
            if known && new != old {
                if let Some(flow) = self.flows.get_mut(index) {
                    flow.path = new;
                }
                self.list_transmit(index);
            }
        }
    }
}
