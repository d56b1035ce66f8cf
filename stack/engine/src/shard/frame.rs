//! Frames: from bytes to a segment and back.

use std::ops::Range;

use utcp_proto::wire::checksum::{Sum, Verify};
use utcp_proto::wire::{IpAddr, Quoted, WireError, ethernet, icmpv4, icmpv6, ipv4, ipv6, tcp};
use utcp_proto::{Endpoint, Flags, FourTuple, IcmpError, IcmpKind, Segment, Transmit};

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
    /// A part of an IP packet, to be put together with the rest.
    Fragment,
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
/// [`WireError`]: it is neither a TCP segment nor an error about one.
#[inline]
pub fn parse(bytes: &[u8], verify: Verify) -> Result<Parsed, WireError> {
    let (link, at) = ethernet::parse(bytes)?;
    let packet = bytes.get(at..).ok_or(WireError::Truncated)?;
    match link.ethertype {
        ethernet::IPV4 => {
            let (ip, range) = ipv4::parse(packet)?;
            let body = packet.get(range.clone()).ok_or(WireError::Truncated)?;
            let is_multicast = |addr: IpAddr| addr.v4_bytes()[0] >> 4 == 0xe;
            if is_multicast(ip.src) || is_multicast(ip.dst) {
                return Err(WireError::Unsupported);
            }
            if ip.fragment.is_some() {
                return if ip.protocol == TCP { Ok(Parsed::Fragment) } else { Err(WireError::Unsupported) };
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
        ethernet::IPV6 => parse_v6(packet, at, link.src, verify),
        _ => Err(WireError::Unsupported),
    }
}

/// An IPv6 packet, which begins at `at` of the frame.
fn parse_v6(packet: &[u8], at: usize, source_mac: [u8; 6], verify: Verify) -> Result<Parsed, WireError> {
    let (ip, range) = ipv6::parse(packet)?;
    let body = packet.get(range.clone()).ok_or(WireError::Truncated)?;
    if ip.src.is_multicast() || ip.dst.is_multicast() {
        return Err(WireError::Unsupported);
    }
    if ip.fragment.is_some() {
        return if ip.protocol == TCP { Ok(Parsed::Fragment) } else { Err(WireError::Unsupported) };
    }
    match ip.protocol {
        TCP => segment([ip.src, ip.dst], ip.ecn, body, at + range.start, source_mac, verify),
        ICMP_V6 => match icmpv6::parse(&ip, body)? {
            icmpv6::Message::TcpError { kind, quoted } => Ok(error(kind, &quoted)),
            _ => Err(WireError::Unsupported),
        },
        _ => Err(WireError::Unsupported),
    }
}

fn error(kind: IcmpKind, quoted: &Quoted) -> Parsed {
    Parsed::Error { tuple: quoted.tuple, error: IcmpError { kind, seq: quoted.seq } }
}

/// The TCP segment in `bytes`, which begin at `start` of the frame. It goes straight to where the parsed frame is kept.
#[inline(always)]
fn segment(
    [src, dst]: [IpAddr; 2],
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
    /// A virtio-net header stands in front, which leaves checksum and cutting to the device.
    pub vnet: bool,
}

/// `struct virtio_net_hdr`, in the machine's byte order.
pub const VNET_HEADER: usize = 10;
const VNET_NEEDS_CHECKSUM: u8 = 1;
const VNET_TCP_V4: u8 = 1;
const VNET_TCP_V6: u8 = 4;
const VNET_ECN: u8 = 0x80;
/// Where the checksum stands in a TCP header.
const CHECKSUM_AT: u16 = 16;

/// Tells the device where the checksum goes and into what pieces the segment is cut.
fn vnet_header(transmit: &Transmit, v4: bool, tcp_at: u16, headers: u16) -> [u8; VNET_HEADER] {
    let long = transmit.len > u32::from(transmit.mss);
    let kind = match (long, v4) {
        (false, _) => 0,
        (true, true) => VNET_TCP_V4,
        (true, false) => VNET_TCP_V6,
    };
    // RFC 3168 §6.1.2: CWR belongs to the first piece alone, which the device has to be told.
    let ecn = if long && transmit.flags.any(Flags::CWR) { VNET_ECN } else { 0 };
    let size = if long { transmit.mss } else { 0 };
    let [h0, h1] = headers.to_ne_bytes();
    let [s0, s1] = size.to_ne_bytes();
    let [c0, c1] = tcp_at.to_ne_bytes();
    let [o0, o1] = CHECKSUM_AT.to_ne_bytes();
    [VNET_NEEDS_CHECKSUM, kind | ecn, h0, h1, s0, s1, c0, c1, o0, o1]
}

/// Where a frame's payload goes.
#[derive(Debug)]
pub struct Body<'a> {
    room: &'a mut [u8],
    len: usize,
    /// That of the payload so far, unless the device sums it.
    sum: Option<Sum>,
}

impl Body<'_> {
    /// Bytes that it has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room.len() - self.len
    }

    /// Adds `bytes`, as far as there is room.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.room())];
        let Some(room) = self.room.get_mut(self.len..self.len + bytes.len()) else { return };
        match &mut self.sum {
            Some(sum) => sum.copy(bytes, room),
            None => room.copy_from_slice(bytes),
        }
        self.len += bytes.len();
    }
}

/// Builds a frame in `out`: headers, payload by `fill`, checksum. Returns the frame's length, or `None` if it does not fit.
pub fn build(out: &mut [u8], headers: &Headers<'_>, fill: impl FnOnce(&mut Body<'_>)) -> Option<usize> {
    let Headers { mac, next_hop, tuple, transmit, vnet } = *headers;
    let (front, out) = out.split_at_mut_checked(if vnet { VNET_HEADER } else { 0 })?;
    let (src, dst) = (tuple.local.addr, tuple.remote.addr);
    let v4 = dst.is_v4();
    let ethertype = if v4 { ethernet::IPV4 } else { ethernet::IPV6 };
    let link =
        ethernet::emit(&ethernet::Repr { dst: next_hop, src: mac, ethertype, vlan: None }, out).ok()?;
    let (head, rest) = out.split_at_mut_checked(link + if v4 { 20 } else { 40 })?;
    let header_len = tcp::header_len(&transmit.options);
    let room = rest.get_mut(header_len..)?.get_mut(..transmit.len as usize)?;
    let mut payload = Body { room, len: 0, sum: (!vnet).then(Sum::new) };
    fill(&mut payload);
    let Body { len, sum: payload, .. } = payload;
    let payload_len = u16::try_from(header_len + len).ok()?;
    let mut sum = Sum::pseudo_header(src, dst, TCP, u32::from(payload_len));
    let tcp_at = head.len() as u16;
    let (ports, body) = ((tuple.local.port, tuple.remote.port), rest.get_mut(..header_len + len)?);
    if vnet {
        front.copy_from_slice(&vnet_header(transmit, v4, tcp_at, tcp_at + header_len as u16));
        tcp::emit_with(transmit, ports.0, ports.1, body, |_| sum.folded()).ok()?;
    } else {
        sum.join(payload.unwrap_or_default());
        tcp::emit_with(transmit, ports.0, ports.1, body, |header| {
            // The header has an even number of bytes.
            let mut whole = header;
            whole.join(sum);
            whole.finish()
        })
        .ok()?;
    }
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
    Some(front.len() + head.len() + header_len + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_segment_says_how_it_is_to_be_cut() {
        let long = Transmit { len: 5000, mss: 1448, flags: Flags::CWR, ..Transmit::default() };
        let header = vnet_header(&long, true, 34, 66);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        assert_eq!(header[..2], [VNET_NEEDS_CHECKSUM, VNET_TCP_V4 | VNET_ECN]);
        assert_eq!([2, 4, 6, 8].map(half), [66, 1448, 34, CHECKSUM_AT]);
        let short = Transmit { len: 1448, ..long };
        let header = vnet_header(&short, false, 54, 86);
        assert_eq!((header[0], header[1], &header[4..6]), (VNET_NEEDS_CHECKSUM, 0, &[0, 0][..]));
        assert_eq!(vnet_header(&long, false, 54, 86)[1], VNET_TCP_V6 | VNET_ECN);
    }
}
