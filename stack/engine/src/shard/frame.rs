//! Frames: from bytes to a segment and back.

use std::ops::Range;

use utcp_proto::wire::checksum::Verify;
use utcp_proto::wire::{Quoted, WireError, ethernet, icmpv4, icmpv6, ipv4, ipv6, tcp};
use utcp_proto::{Endpoint, FourTuple, IcmpError, IcmpKind, Segment, Transmit};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;
const HOP_LIMIT: u8 = 64;
/// Codepoints of the ECN field (RFC 3168 §5).
const ECT0: u8 = 2;
const CE: u8 = 3;

/// A frame's headers, understood.
#[derive(Debug)]
pub enum Parsed {
    /// A TCP segment.
    Segment {
        /// Seen from our side.
        tuple: FourTuple,
        /// Its header.
        segment: Segment,
        /// Where the payload is in the frame.
        payload: Range<usize>,
        /// Link address of whoever handed it to us.
        source_mac: [u8; 6],
    },
    /// An ICMP error about a segment of ours.
    Error {
        /// Whose.
        tuple: FourTuple,
        /// What.
        error: IcmpError,
    },
}

/// Understands a frame that was steered to us.
///
/// # Errors
/// [`WireError`]: it is neither a whole TCP segment nor an error about one. Fragments are the kernel's, which
/// reassembles them; one that strays here is dropped, never parsed.
pub fn parse(bytes: &[u8], verify: Verify) -> Result<Parsed, WireError> {
    let (link, at) = ethernet::parse(bytes)?;
    let packet = bytes.get(at..).ok_or(WireError::Truncated)?;
    match link.ethertype {
        ethernet::IPV4 => {
            let (ip, range) = ipv4::parse(packet)?;
            let body = packet.get(range.clone()).ok_or(WireError::Truncated)?;
            if ip.fragment.is_some() || ip.src.is_multicast() || ip.dst.is_multicast() {
                return Err(WireError::Unsupported);
            }
            match ip.protocol {
                TCP => segment([ip.src, ip.dst], ip.ecn, body, at + range.start, link.src, verify),
                ICMP => match icmpv4::parse(body)? {
                    icmpv4::Message::TcpError { kind, quoted } => Ok(error(kind, &quoted)),
                    _ => Err(WireError::Unsupported),
                },
                _ => Err(WireError::Unsupported),
            }
        }
        ethernet::IPV6 => {
            let (ip, range) = ipv6::parse(packet)?;
            let body = packet.get(range.clone()).ok_or(WireError::Truncated)?;
            if ip.fragment.is_some() || ip.src.is_multicast() || ip.dst.is_multicast() {
                return Err(WireError::Unsupported);
            }
            match ip.protocol {
                TCP => segment([ip.src, ip.dst], ip.ecn, body, at + range.start, link.src, verify),
                ICMP_V6 => match icmpv6::parse(&ip, body)? {
                    icmpv6::Message::TcpError { kind, quoted } => Ok(error(kind, &quoted)),
                    _ => Err(WireError::Unsupported),
                },
                _ => Err(WireError::Unsupported),
            }
        }
        _ => Err(WireError::Unsupported),
    }
}

fn error(kind: IcmpKind, quoted: &Quoted) -> Parsed {
    Parsed::Error { tuple: quoted.tuple, error: IcmpError { kind, seq: quoted.seq } }
}

/// The TCP segment in `bytes`, which begin at `start` of the frame.
fn segment(
    [src, dst]: [utcp_proto::wire::IpAddr; 2],
    ecn: u8,
    bytes: &[u8],
    start: usize,
    source_mac: [u8; 6],
    verify: Verify,
) -> Result<Parsed, WireError> {
    tcp::verify(src, dst, bytes, verify)?;
    let header = tcp::parse(bytes)?;
    let mut segment = header.segment;
    segment.ce = ecn == CE;
    let tuple = FourTuple {
        local: Endpoint { addr: dst, port: header.dst_port },
        remote: Endpoint { addr: src, port: header.src_port },
    };
    Ok(Parsed::Segment { tuple, segment, payload: start + header.payload..start + bytes.len(), source_mac })
}

/// What goes into a frame's headers.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    /// Our link address.
    pub mac: [u8; 6],
    /// The next hop's.
    pub next_hop: [u8; 6],
    /// Whose segment.
    pub tuple: &'a FourTuple,
    /// The segment.
    pub transmit: &'a Transmit,
}

/// Builds a frame in `out`: headers, payload by `fill` (returns its length), checksum. Returns the frame's length,
/// or `None` if it does not fit.
pub fn build(out: &mut [u8], headers: &Headers<'_>, fill: impl FnOnce(&mut [u8]) -> usize) -> Option<usize> {
    let Headers { mac, next_hop, tuple, transmit } = *headers;
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
