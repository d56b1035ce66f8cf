//! Whose a frame is: the same questions as the steering program's (`xdp/program.rs`), asked of bytes in memory.

use std::net::Ipv6Addr;

use crate::{Flow, Proto, Tuple};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;
/// IPv6's header of a fragment, and those that are stepped over: options, and a route that is used up.
const FRAGMENT_V6: u8 = 44;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
/// So many of them. Packets with more are the kernel's.
pub(crate) const EXTENSIONS_MAX: usize = 4;
/// Type, code, checksum and four bytes more; behind it the packet that was refused.
const ICMP_HEADER: usize = 8;

/// What names a TCP packet that comes in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fragmented {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    ident: u32,
}

/// What a frame that arrived says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arriving {
    /// Its flow, seen from this host.
    Flow(Flow),
    /// The same; the rest of the packet will be [`Arriving::Rest`] of this name.
    First(Flow, Fragmented),
    /// A fragment without ports.
    Rest(Fragmented),
}

/// Whose a frame that arrived is. `None`: nothing that a stack can have registered.
pub(crate) fn arriving(frame: &[u8]) -> Option<Arriving> {
    // RFC 1122 §3.3.6: what is for a group on the link and for one of us above it, IP may discard, and TCP does so.
    if frame.first()? & 1 != 0 {
        return None;
    }
    let packet = Packet::of_frame(frame, Extensions::Walked)?;
    match (packet.fragment, packet.proto) {
        (Some((ident, 0)), TCP) => Some(Arriving::First(packet.flow(false)?, packet.named(ident))),
        (Some((ident, _)), TCP) => Some(Arriving::Rest(packet.named(ident))),
        (None, TCP | UDP) => packet.flow(false).map(Arriving::Flow),
        (None, ICMPV4 | ICMPV6) => packet.quoted()?.flow(true).map(Arriving::Flow),
        _ => None,
    }
}

/// The flow of a frame that leaves, seen from this host. `None`: nothing that a stack may send.
pub(crate) fn leaving(frame: &[u8]) -> Option<Flow> {
    let packet = Packet::of_frame(frame, Extensions::Foreign)?;
    (packet.fragment.is_none() && matches!(packet.proto, TCP | UDP)).then(|| packet.flow(true))?
}

/// What IPv6's extension headers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extensions {
    /// They are stepped over.
    Walked,
    /// Of a packet that a stack of ours sent: it sends none.
    Foreign,
}

/// An IP packet, or a fragment of one.
#[derive(Clone, Copy, Debug)]
struct Packet<'a> {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    proto: u8,
    /// Identification and offset of a fragment.
    fragment: Option<(u32, u16)>,
    /// What is behind the IP header.
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    fn of_frame(frame: &'a [u8], extensions: Extensions) -> Option<Self> {
        let (ethertype, at) = match half(frame, 12)? {
            // IEEE 802.1Q: VLAN 0 is a priority tag on the interface's own traffic.
            0x8100 if half(frame, 14)? & 0x0fff == 0 => (half(frame, 16)?, 18),
            ethertype => (ethertype, 14),
        };
        let bytes = frame.get(at..)?;
        match ethertype {
            0x0800 => Self::v4(bytes),
            0x86dd => Self::v6(bytes, extensions),
            _ => None,
        }
    }

    /// RFC 791.
    fn v4(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        if !(0x45..=0x4f).contains(&first) {
            return None;
        }
        let word = half(bytes, 6)?;
        let ident = u32::from(half(bytes, 4)?);
        let fragment = (word & 0x3fff != 0).then_some((ident, word & 0x1fff));
        let addr = |at: usize| {
            let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(std::net::Ipv4Addr::from(four).to_ipv6_mapped())
        };
        let body = bytes.get(usize::from(first & 0x0f) * 4..)?;
        Some(Self { src: addr(12)?, dst: addr(16)?, proto: *bytes.get(9)?, fragment, body })
    }

    /// RFC 8200.
    fn v6(bytes: &'a [u8], extensions: Extensions) -> Option<Self> {
        let addr = |at: usize| {
            let sixteen: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(sixteen))
        };
        let (src, dst) = (addr(8)?, addr(24)?);
        let (mut proto, mut body) = (*bytes.get(6)?, bytes.get(40..)?);
        if extensions == Extensions::Foreign {
            return Some(Self { src, dst, proto, fragment: None, body });
        }
        for _ in 0..EXTENSIONS_MAX {
            match proto {
                HOP_BY_HOP | DESTINATION => {}
                // RFC 8200 §4.4: where the route goes on, the packet is not for us.
                ROUTING if *body.get(3)? == 0 => {}
                _ => break,
            }
            proto = *body.first()?;
            body = body.get(8 + usize::from(*body.get(1)?) * 8..)?;
        }
        if proto != FRAGMENT_V6 {
            return Some(Self { src, dst, proto, fragment: None, body });
        }
        let word = half(body, 2)?;
        let ident = u32::from(half(body, 4)?) << 16 | u32::from(half(body, 6)?);
        let fragment = (word & 0xfff9 != 0).then_some((ident, word >> 3));
        // What stands behind that header is for whoever puts the packet together.
        let proto = *body.first()?;
        let known = proto == TCP;
        known.then_some(Self { src, dst, proto, fragment, body: body.get(8..)? })
    }

    /// The packet that an ICMP error (RFC 792, RFC 4443) is about: one that we sent.
    fn quoted(self) -> Option<Self> {
        let kind = *self.body.first()?;
        let quoted = self.body.get(ICMP_HEADER..)?;
        let quoted = match self.proto {
            ICMPV4 if matches!(kind, 3 | 11 | 12) => Self::v4(quoted)?,
            ICMPV6 if (1..=4).contains(&kind) => Self::v6(quoted, Extensions::Foreign)?,
            _ => return None,
        };
        // Only the first fragment has ports.
        if quoted.fragment.is_some_and(|(_, offset)| offset != 0) {
            return None;
        }
        // Errors go to who sent the packet: a quote of someone else's is a lie.
        (quoted.src == self.dst && matches!(quoted.proto, TCP | UDP)).then_some(quoted)
    }

    fn named(self, ident: u32) -> Fragmented {
        Fragmented { src: self.src, dst: self.dst, ident }
    }

    /// Its flow; `sent`: by us.
    fn flow(self, sent: bool) -> Option<Flow> {
        let (from, to) = (half(self.body, 0)?, half(self.body, 2)?);
        let (local, port, peer_addr, peer_port) =
            if sent { (self.src, from, self.dst, to) } else { (self.dst, to, self.src, from) };
        let local = Tuple { addr: local, port, proto: Proto(self.proto) };
        Some(Flow { local, peer_addr, peer_port })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let two: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(two))
}
