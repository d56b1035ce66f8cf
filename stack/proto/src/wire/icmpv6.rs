//! ICMPv6 (RFC 4443): echo, and the errors that concern TCP. Neighbour discovery is in [`super::ndisc`].

use core::ops::Range;

use super::checksum::Sum;
use super::ndisc::{self, Neighbor};
use super::{ICMPV6, IpAddr, Quoted, TCP, WireError, ipv6, quoted_ports};
use crate::actions::{IcmpKind, SocketError};
use crate::segment::{Endpoint, FourTuple};

/// Bytes of the header of every message here.
pub const HEADER_LEN: usize = 8;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Echo request: answer with [`emit_echo_reply`].
    EchoRequest {
        /// Identifier and sequence number as they are.
        ident_seq: [u8; 4],
        /// The data to send back.
        data: Range<usize>,
    },
    /// Neighbour discovery.
    Neighbor(Neighbor),
    /// An error about a packet that quotes a TCP segment of ours.
    TcpError {
        /// What kind of error.
        kind: IcmpKind,
        /// Whose.
        quoted: Quoted,
    },
    /// Anything else.
    Other,
}

/// The message in `bytes`, the payload of the IPv6 packet with header `ip`.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::BadChecksum`], [`WireError::BadField`], [`WireError::BadOption`].
pub fn parse(ip: &ipv6::Repr, bytes: &[u8]) -> Result<Message, WireError> {
    use SocketError as E;
    let &[kind, code, _, _, a, b, c, d] = bytes.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    let mut sum = Sum::pseudo_header(ip.src, ip.dst, ICMPV6, bytes.len() as u32);
    sum.add(bytes);
    if sum.folded() != 0xffff {
        return Err(WireError::BadChecksum);
    }
    let kind = match (kind, code) {
        (128, _) => {
            return Ok(Message::EchoRequest { ident_seq: [a, b, c, d], data: HEADER_LEN..bytes.len() });
        }
        (ndisc::SOLICIT | ndisc::ADVERT, 0) => return ndisc::parse(ip, bytes).map(Message::Neighbor),
        // Linux' table tab_unreach: no route, administratively prohibited, beyond scope, address, port, policy, reject.
        (1, 0) => IcmpKind::Soft(E::NetUnreachable),
        (1, 1 | 5 | 6) => IcmpKind::Hard(E::AccessDenied),
        (1, 2 | 3) => IcmpKind::Soft(E::HostUnreachable),
        (1, 4) => IcmpKind::Hard(E::Refused),
        (2, _) => IcmpKind::TooBig { mtu: u32::from_be_bytes([a, b, c, d]) },
        (3, _) => IcmpKind::Soft(E::HostUnreachable),
        (4, _) => IcmpKind::Soft(E::Protocol),
        _ => return Ok(Message::Other),
    };
    let body = bytes.get(HEADER_LEN..).unwrap_or(&[]);
    Ok(match quoted(body)? {
        Some(quoted) => Message::TcpError { kind, quoted },
        None => Message::Other,
    })
}

/// The connection of the quoted packet, as we name it. We never send extension headers, so a quote that has some is
/// not ours.
fn quoted(packet: &[u8]) -> Result<Option<Quoted>, WireError> {
    let header = packet.get(..ipv6::HEADER_LEN).ok_or(WireError::Truncated)?;
    let addr = |at: usize| -> Result<IpAddr, WireError> {
        let bytes = header.get(at..at + 16).and_then(|s| s.try_into().ok()).ok_or(WireError::Truncated)?;
        Ok(IpAddr(bytes))
    };
    if header.first().is_none_or(|v| v >> 4 != 6) {
        return Err(WireError::BadField);
    }
    if header.get(6) != Some(&TCP) {
        return Ok(None);
    }
    let (src_port, dst_port, seq) = quoted_ports(packet.get(ipv6::HEADER_LEN..))?;
    let local = Endpoint { addr: addr(8)?, port: src_port };
    let remote = Endpoint { addr: addr(24)?, port: dst_port };
    Ok(Some(Quoted { tuple: FourTuple { local, remote }, seq }))
}

/// Writes an echo reply from `src` to `dst` around `data` and returns its length.
///
/// # Errors
/// [`WireError::NoRoom`].
pub fn emit_echo_reply(
    src: IpAddr,
    dst: IpAddr,
    ident_seq: [u8; 4],
    data: &[u8],
    out: &mut [u8],
) -> Result<usize, WireError> {
    let len = HEADER_LEN + data.len();
    let out = out.get_mut(..len).ok_or(WireError::NoRoom)?;
    let (header, body) = out.split_at_mut(HEADER_LEN);
    let [a, b, c, d] = ident_seq;
    header.copy_from_slice(&[129, 0, 0, 0, a, b, c, d]);
    body.copy_from_slice(data);
    seal(src, dst, out);
    Ok(len)
}

/// Fills in the checksum of the message in `out`.
pub(super) fn seal(src: IpAddr, dst: IpAddr, out: &mut [u8]) {
    let mut sum = Sum::pseudo_header(src, dst, ICMPV6, out.len() as u32);
    sum.add(out);
    let field = sum.finish().to_be_bytes();
    if let Some(bytes) = out.get_mut(2..4) {
        bytes.copy_from_slice(&field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::SeqNum;

    fn addr(last: u8) -> IpAddr {
        let mut bytes = [0; 16];
        bytes[0] = 0xfd;
        bytes[15] = last;
        IpAddr(bytes)
    }

    fn ip(payload_len: usize) -> ipv6::Repr {
        ipv6::Repr {
            src: addr(1),
            dst: addr(2),
            protocol: ICMPV6,
            hop_limit: 64,
            dscp: 0,
            ecn: 0,
            flow_label: 0,
            fragment: None,
            payload_len: payload_len as u16,
        }
    }

    #[test]
    fn errors_name_the_connection_and_the_errno() {
        #[track_caller]
        fn check(kind: u8, code: u8, expected: IcmpKind) {
            let mut bytes = [0u8; 56];
            bytes[0] = kind;
            bytes[1] = code;
            bytes[6..8].copy_from_slice(&1_280u16.to_be_bytes());
            ipv6::emit(&ipv6::Repr { protocol: TCP, ..ip(999) }, &mut bytes[8..]).expect("room");
            bytes[48..56].copy_from_slice(&[0, 80, 0x10, 0, 1, 2, 3, 4]);
            seal(addr(9), addr(1), &mut bytes);
            let outer = ipv6::Repr { src: addr(9), dst: addr(1), ..ip(56) };
            match parse(&outer, &bytes) {
                Ok(Message::TcpError { kind, quoted }) => {
                    assert_eq!(kind, expected);
                    assert_eq!(quoted.tuple.local, Endpoint { addr: addr(1), port: 80 });
                    assert_eq!(quoted.tuple.remote, Endpoint { addr: addr(2), port: 4_096 });
                    assert_eq!(quoted.seq, SeqNum::new(0x0102_0304));
                }
                other => panic!("{other:?}"),
            }
            bytes[50] ^= 1;
            assert_eq!(parse(&outer, &bytes), Err(WireError::BadChecksum));
        }
        check(1, 0, IcmpKind::Soft(SocketError::NetUnreachable));
        check(1, 1, IcmpKind::Hard(SocketError::AccessDenied));
        check(1, 4, IcmpKind::Hard(SocketError::Refused));
        check(2, 0, IcmpKind::TooBig { mtu: 1_280 });
        check(3, 0, IcmpKind::Soft(SocketError::HostUnreachable));
        check(4, 1, IcmpKind::Soft(SocketError::Protocol));
    }

    #[test]
    fn echo() {
        let mut out = [0; 64];
        let n = emit_echo_reply(addr(1), addr(2), [1, 2, 3, 4], b"ping?", &mut out).expect("room");
        assert_eq!(parse(&ip(n), &out[..n]), Ok(Message::Other));
        out[0] = 128;
        out[2..4].fill(0);
        seal(addr(1), addr(2), &mut out[..n]);
        let expected = Message::EchoRequest { ident_seq: [1, 2, 3, 4], data: 8..13 };
        assert_eq!(parse(&ip(n), &out[..n]), Ok(expected));
    }
}
