//! Whose a frame is: the same questions as the steering program's (`xdp/program.rs`), asked of bytes in memory.

use std::net::Ipv6Addr;

use crate::{Flow, Proto, Tuple};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;
/// IPv6's header of a fragment.
const FRAGMENT_V6: u8 = 44;
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
    let packet = Packet::of_frame(frame)?;
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
    let packet = Packet::of_frame(frame)?;
    (packet.fragment.is_none() && matches!(packet.proto, TCP | UDP)).then(|| packet.flow(true))?
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
    fn of_frame(frame: &'a [u8]) -> Option<Self> {
        match half(frame, 12)? {
            // IEEE 802.1Q: VLAN 0 is a priority tag on the interface's own traffic.
            0x8100 if half(frame, 14)? & 0x0fff == 0 => Self::of_type(half(frame, 16)?, frame.get(18..)?),
            ethertype => Self::of_type(ethertype, frame.get(14..)?),
        }
    }

    fn of_type(ethertype: u16, bytes: &'a [u8]) -> Option<Self> {
        match ethertype {
            0x0800 => Self::v4(bytes),
            0x86dd => Self::v6(bytes),
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

    /// RFC 8200. Extension headers but the one of fragments are the kernel's.
    fn v6(bytes: &'a [u8]) -> Option<Self> {
        let addr = |at: usize| {
            let sixteen: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(sixteen))
        };
        let (proto, body) = (*bytes.get(6)?, bytes.get(40..)?);
        let whole = Self { src: addr(8)?, dst: addr(24)?, proto, fragment: None, body };
        if proto != FRAGMENT_V6 {
            return Some(whole);
        }
        let word = half(body, 2)?;
        let ident = u32::from(half(body, 4)?) << 16 | u32::from(half(body, 6)?);
        let fragment = (word & 0xfff9 != 0).then_some((ident, word >> 3));
        Some(Self { proto: *body.first()?, fragment, body: body.get(8..)?, ..whole })
    }

    /// The packet that an ICMP error (RFC 792, RFC 4443) is about: one that we sent.
    fn quoted(self) -> Option<Self> {
        let kind = *self.body.first()?;
        let quoted = self.body.get(ICMP_HEADER..)?;
        let quoted = match self.proto {
            ICMPV4 if matches!(kind, 3 | 11 | 12) => Self::v4(quoted)?,
            ICMPV6 if (1..=4).contains(&kind) => Self::v6(quoted)?,
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
