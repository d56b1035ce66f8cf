//! The IP layer of a world: both versions, and what a router says of a packet that is too large (RFC 792, RFC 4443).

use utcp_proto::wire::checksum::{self, Sum};
use utcp_proto::wire::{ICMPV4, ICMPV6, IpAddr, Quoted, TCP, icmpv4, icmpv6, ipv4, ipv6};
use utcp_proto::{Endpoint, FourTuple, IcmpKind};

/// What a packet is for the host that gets it.
pub enum Got<'a> {
    /// A segment, and whether the packet carried a congestion mark.
    Segment(&'a [u8], bool),
    /// An error about a segment of the host's own.
    Error(IcmpKind, Quoted),
    /// Nothing that it understands.
    Nothing,
}

/// ECT(0) and CE in the ECN field.
const ECT: u8 = 2;
const CE: u8 = 3;

pub fn endpoint(v6: bool, side: usize) -> Endpoint {
    let last = 1 + side as u8;
    let addr = if v6 {
        IpAddr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
    } else {
        IpAddr::v4([10, 0, 0, last])
    };
    Endpoint { addr, port: 1_000 + side as u16 }
}

pub fn tuple(v6: bool, side: usize) -> FourTuple {
    FourTuple { local: endpoint(v6, side), remote: endpoint(v6, 1 - side) }
}

/// Bytes of the header of a packet between these two.
pub fn header_len(addr: IpAddr) -> usize {
    if addr.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

fn wrap(src: IpAddr, dst: IpAddr, protocol: u8, ecn: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; header_len(src) + payload.len()];
    let payload_len = u16::try_from(payload.len()).expect("a packet of at most 64 KiB");
    let n = if src.is_v4() {
        let (ttl, dscp, ident) = (64, 0, 0);
        let (dont_fragment, fragment) = (true, None);
        let repr =
            ipv4::Repr { src, dst, protocol, ttl, dscp, ecn, ident, dont_fragment, fragment, payload_len };
        ipv4::emit(&repr, &mut packet)
    } else {
        let (hop_limit, dscp, flow_label, fragment) = (64, 0, 0, None);
        let repr = ipv6::Repr { src, dst, protocol, hop_limit, dscp, ecn, flow_label, fragment, payload_len };
        ipv6::emit(&repr, &mut packet)
    };
    packet[n.expect("room for the header")..].copy_from_slice(payload);
    packet
}

/// A segment in a packet; `marked` by a router if it can be.
pub fn packet(tuple: &FourTuple, ect: bool, marked: bool, segment: &[u8]) -> Vec<u8> {
    let ecn = match (ect, marked) {
        (true, true) => CE,
        (true, false) => ECT,
        (false, _) => 0,
    };
    wrap(tuple.local.addr, tuple.remote.addr, TCP, ecn, segment)
}

/// A router's answer to `packet`: it is larger than `mtu`.
pub fn too_big(packet: &[u8], mtu: u32) -> Vec<u8> {
    let [m0, m1, m2, m3] = mtu.to_be_bytes();
    if packet[0] >> 4 == 4 {
        let (ip, _) = ipv4::parse(packet).expect("a packet of ours");
        let router = IpAddr::v4([10, 0, 0, 254]);
        // RFC 1191 §4; RFC 1812 §4.3.2.3: as much of the packet as makes 576 bytes.
        let quote = &packet[..packet.len().min(576 - 28)];
        let mut message = [&[3, 4, 0, 0, 0, 0, m2, m3], quote].concat();
        let sum = checksum::of(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        return wrap(router, ip.src, ICMPV4, 0, &message);
    }
    let (ip, _) = ipv6::parse(packet).expect("a packet of ours");
    let router = endpoint(true, 253).addr;
    // RFC 4443 §3.2: as much of the packet as the minimum MTU takes.
    let quote = &packet[..packet.len().min(1_280 - 48)];
    let mut message = [&[2, 0, 0, 0, m0, m1, m2, m3], quote].concat();
    let mut sum = Sum::pseudo_header(router, ip.src, ICMPV6, message.len() as u32);
    sum.add(&message);
    let sum = sum.finish().to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    wrap(router, ip.src, ICMPV6, 0, &message)
}

/// What a host finds in a packet.
pub fn open(packet: &[u8]) -> Got<'_> {
    if packet[0] >> 4 == 4 {
        let Ok((ip, payload)) = ipv4::parse(packet) else { return Got::Nothing };
        return match ip.protocol {
            TCP => Got::Segment(&packet[payload], ip.ecn == CE),
            _ => match icmpv4::parse(&packet[payload]) {
                Ok(icmpv4::Message::TcpError { kind, quoted }) => Got::Error(kind, quoted),
                _ => Got::Nothing,
            },
        };
    }
    let Ok((ip, payload)) = ipv6::parse(packet) else { return Got::Nothing };
    match ip.protocol {
        TCP => Got::Segment(&packet[payload], ip.ecn == CE),
        _ => match icmpv6::parse(&ip, &packet[payload]) {
            Ok(icmpv6::Message::TcpError { kind, quoted }) => Got::Error(kind, quoted),
            _ => Got::Nothing,
        },
    }
}
