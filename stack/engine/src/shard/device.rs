//! Frames in and out of ports.
//!
//! In: link, network and transport headers are parsed once, the payload is copied from the ring's buffer
//! straight into the flow's rx stream. Out: headers and payload are written straight into a slot of the
//! tx ring. A port is driven by its shard alone; one sync per batch in each direction.

use std::sync::Arc;

use utcp_netmap_io::{Port, RxFrame};
use utcp_proto::wire::checksum::Verify;
use utcp_proto::wire::{IpAddr, ethernet, ipv4, ipv6, tcp};
use utcp_proto::{Endpoint, FourTuple, Transmit};

use super::flow::Path;
use super::segments::Payload;
use super::{Shard, ToControl};
use crate::host::HostView;

/// Client ports of connections over a device: above the kernel's own range, reserved for the engine.
pub const DEVICE_PORTS: std::ops::Range<u32> = 61_000..65_536;
/// Next hop of a flow whose neighbour is not resolved yet.
pub(super) const UNRESOLVED: [u8; 6] = [0; 6];
const TCP: u8 = 6;
const HOP_LIMIT: u8 = 64;
/// Tables of ECN codepoints (RFC 3168 §5).
const ECT0: u8 = 2;
const CE: u8 = 3;

/// An open port of this shard.
pub struct DevicePort {
    pub(super) port: Box<dyn Port>,
    pub(super) link: Link,
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
        Self { link, port }
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

/// A frame's headers, understood.
struct Parsed {
    tuple: FourTuple,
    segment: utcp_proto::Segment,
    payload: std::ops::Range<usize>,
    source_mac: [u8; 6],
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
        match device.port.rx_sync() {
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
        let Some(parsed) = parse(bytes, verify) else {
            self.counters.dropped_frames += 1;
            return;
        };
        let payload = bytes.get(parsed.payload).map_or(Payload::None, Payload::Frame);
        let path = Path::Device { port, next_hop: parsed.source_mac };
        self.on_segment(&parsed.tuple, &parsed.segment, payload, path);
    }

    /// Whether the port could take another frame.
    pub(super) fn port_has_room(&mut self, port: u32) -> bool {
        let Some(device) = self.ports.get_mut(port as usize) else { return false };
        if device.port.tx().space() > 0 {
            return true;
        }
        // Send what is committed and take back what has left.
        matches!(device.port.tx_sync(), Ok(space) if space > 0)
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
        if let Some(len) = build(&mut slot, mac, next_hop, tuple, transmit, fill) {
            slot.commit(len);
            self.counters.tx_frames += 1;
        } else {
            self.counters.dropped_tx_full += 1;
        }
    }

    /// One kick per port and batch.
    pub(super) fn flush_ports(&mut self) {
        for device in &mut self.ports {
            if let Err(error) = device.port.tx_sync() {
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

/// Understands a frame that was steered to us; `None`: it is not a whole TCP segment.
fn parse(bytes: &[u8], verify: Verify) -> Option<Parsed> {
    let (link, at) = ethernet::parse(bytes).ok()?;
    let packet = bytes.get(at..)?;
    let (src, dst, protocol, ecn, fragment, range) = match link.ethertype {
        ethernet::IPV4 => {
            let (ip, range) = ipv4::parse(packet).ok()?;
            (ip.src, ip.dst, ip.protocol, ip.ecn, ip.fragment.is_some(), range)
        }
        ethernet::IPV6 => {
            let (ip, range) = ipv6::parse(packet).ok()?;
            (ip.src, ip.dst, ip.protocol, ip.ecn, ip.fragment.is_some(), range)
        }
        _ => return None,
    };
    if protocol != TCP || fragment || src.is_multicast() || dst.is_multicast() {
        return None;
    }
    let start = at + range.start;
    let bytes = packet.get(range)?;
    tcp::verify(src, dst, bytes, verify).ok()?;
    let header = tcp::parse(bytes).ok()?;
    let mut segment = header.segment;
    segment.ce = ecn == CE;
    let tuple = FourTuple {
        local: Endpoint { addr: dst, port: header.dst_port },
        remote: Endpoint { addr: src, port: header.src_port },
    };
    let payload = start + header.payload..start + bytes.len();
    Some(Parsed { tuple, segment, payload, source_mac: link.src })
}

/// Builds a frame in `out`; returns its length, or `None` if it does not fit.
fn build(
    out: &mut [u8],
    mac: [u8; 6],
    next_hop: [u8; 6],
    tuple: &FourTuple,
    transmit: &Transmit,
    fill: impl FnOnce(&mut [u8]) -> usize,
) -> Option<usize> {
    let (src, dst) = (tuple.local.addr, tuple.remote.addr);
    let v4 = dst.is_v4();
    let ethertype = if v4 { ethernet::IPV4 } else { ethernet::IPV6 };
    let link =
        ethernet::emit(&ethernet::Repr { dst: next_hop, src: mac, ethertype, vlan: None }, out).ok()?;
    let (head, rest) = out.split_at_mut_checked(link + if v4 { 20 } else { 40 })?;
    let header_len = tcp::emit(transmit, tuple.local.port, tuple.remote.port, rest).ok()?;
    let (header, body) = rest.split_at_mut_checked(header_len)?;
    let len = fill(body.get_mut(..transmit.len as usize)?);
    tcp::fill_checksum(src, dst, header, [body.get(..len)?, &[]]);
    let payload_len = u16::try_from(header_len + len).ok()?;
    let ecn = if transmit.ect { ECT0 } else { 0 };
    let network = head.get_mut(link..)?;
    if v4 {
        let repr = ipv4::Repr {
            src,
            dst,
            protocol: TCP,
            ttl: HOP_LIMIT,
            dscp: 0,
            ecn,
            ident: 0, // RFC 6864 §4.1: an atomic datagram's identification means nothing.
            dont_fragment: true,
            fragment: None,
            payload_len,
        };
        ipv4::emit(&repr, network).ok()?;
    } else {
        let repr = ipv6::Repr {
            src,
            dst,
            protocol: TCP,
            hop_limit: HOP_LIMIT,
            dscp: 0,
            ecn,
            flow_label: 0,
            fragment: None,
            payload_len,
        };
        ipv6::emit(&repr, network).ok()?;
    }
    Some(head.len() + header_len + len)
}
