//! ICMP for IPv4 (RFC 792): echo, and the errors that concern TCP.

use core::ops::Range;

use super::{Quoted, WireError, checksum, ipv4, quoted_ports};
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

/// The message in `bytes`, the payload of an IPv4 packet.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::BadChecksum`], and the errors of the quoted header.
pub fn parse(bytes: &[u8]) -> Result<Message, WireError> {
    let &[kind, code, _, _, a, b, c, d] = bytes.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    if checksum::of(bytes) != 0 {
        return Err(WireError::BadChecksum);
    }
    let body = bytes.get(HEADER_LEN..).unwrap_or(&[]);
    let kind = match kind {
        8 => return Ok(Message::EchoRequest { ident_seq: [a, b, c, d], data: HEADER_LEN..bytes.len() }),
        3 => unreachable(code, u16::from_be_bytes([c, d])),
        // RFC 9293 §3.9.2.2, MUST-56: time exceeded and parameter problem are soft.
        11 => Some(IcmpKind::Soft(SocketError::HostUnreachable)),
        12 => Some(IcmpKind::Soft(SocketError::Protocol)),
        // RFC 6633: source quench is dead.
        _ => None,
    };
    match (kind, quoted(body)?) {
        (Some(kind), Some(quoted)) => Ok(Message::TcpError { kind, quoted }),
        _ => Ok(Message::Other),
    }
}

/// Destination unreachable, by code, as Linux' table has it.
fn unreachable(code: u8, mtu: u16) -> Option<IcmpKind> {
    use SocketError as E;
    Some(match code {
        0 | 11 => IcmpKind::Soft(E::NetUnreachable),
        1 | 12 => IcmpKind::Soft(E::HostUnreachable),
        2 => IcmpKind::Hard(E::ProtocolUnreachable),
        3 => IcmpKind::Hard(E::Refused),
        4 => IcmpKind::TooBig { mtu: u32::from(mtu) },
        5 => IcmpKind::Soft(E::SourceRouteFailed),
        6 | 9 => IcmpKind::Hard(E::NetUnreachable),
        7 => IcmpKind::Hard(E::HostDown),
        8 => IcmpKind::Hard(E::NotOnNetwork),
        10 | 13..=15 => IcmpKind::Hard(E::HostUnreachable),
        _ => return None,
    })
}

/// The connection of the quoted packet, as we name it: its source is our end. The quote is cut short, so lengths and
/// checksum are not looked at.
fn quoted(packet: &[u8]) -> Result<Option<Quoted>, WireError> {
    let &[vihl, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        packet.first_chunk::<{ ipv4::HEADER_LEN }>().ok_or(WireError::Truncated)?;
    if vihl >> 4 != 4 || vihl & 15 < 5 {
        return Err(WireError::BadField);
    }
    let first = u16::from_be_bytes([f0, f1]) & 0x1fff == 0;
    if protocol != super::TCP || !first {
        return Ok(None);
    }
    let (src_port, dst_port, seq) = quoted_ports(packet.get(usize::from(vihl & 15) * 4..))?;
    let local = Endpoint { addr: super::IpAddr::v4([s0, s1, s2, s3]), port: src_port };
    let remote = Endpoint { addr: super::IpAddr::v4([d0, d1, d2, d3]), port: dst_port };
    Ok(Some(Quoted { tuple: FourTuple { local, remote }, seq }))
}

/// Writes an echo reply around `data` and returns its length.
///
/// # Errors
/// [`WireError::NoRoom`].
pub fn emit_echo_reply(ident_seq: [u8; 4], data: &[u8], out: &mut [u8]) -> Result<usize, WireError> {
    let len = HEADER_LEN + data.len();
    let out = out.get_mut(..len).ok_or(WireError::NoRoom)?;
    let (header, body) = out.split_at_mut(HEADER_LEN);
    let [a, b, c, d] = ident_seq;
    header.copy_from_slice(&[0, 0, 0, 0, a, b, c, d]);
    body.copy_from_slice(data);
    let sum = checksum::of(out).to_be_bytes();
    if let Some(field) = out.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::SeqNum;
    use crate::wire::IpAddr;

    fn error(kind: u8, code: u8, mtu: u16, quoted_len: usize) -> Result<Message, WireError> {
        let mut bytes = [0u8; HEADER_LEN + 28];
        bytes[0] = kind;
        bytes[1] = code;
        bytes[6..8].copy_from_slice(&mtu.to_be_bytes());
        let repr = ipv4::Repr {
            src: IpAddr::v4([10, 0, 0, 1]),
            dst: IpAddr::v4([10, 0, 0, 2]),
            protocol: 6,
            ttl: 1,
            dscp: 0,
            ecn: 0,
            ident: 0,
            dont_fragment: true,
            fragment: None,
            payload_len: 1_000,
        };
        ipv4::emit(&repr, &mut bytes[8..]).expect("room");
        bytes[28..36].copy_from_slice(&[0, 80, 0x10, 0, 1, 2, 3, 4]);
        let bytes = &mut bytes[..HEADER_LEN + quoted_len];
        let sum = checksum::of(bytes).to_be_bytes();
        bytes[2..4].copy_from_slice(&sum);
        parse(bytes)
    }

    #[test]
    fn errors_name_the_connection_and_the_errno() {
        #[track_caller]
        fn check(kind: u8, code: u8, expected: IcmpKind) {
            match error(kind, code, 1_400, 28) {
                Ok(Message::TcpError { kind, quoted }) => {
                    assert_eq!(kind, expected);
                    assert_eq!((quoted.tuple.local.port, quoted.tuple.remote.port), (80, 4_096));
                    assert_eq!(quoted.tuple.remote.addr, IpAddr::v4([10, 0, 0, 2]));
                    assert_eq!(quoted.seq, SeqNum::new(0x0102_0304));
                }
                other => panic!("{other:?}"),
            }
        }
        check(3, 0, IcmpKind::Soft(SocketError::NetUnreachable));
        check(3, 3, IcmpKind::Hard(SocketError::Refused));
        check(3, 4, IcmpKind::TooBig { mtu: 1_400 });
        check(3, 13, IcmpKind::Hard(SocketError::HostUnreachable));
        check(11, 0, IcmpKind::Soft(SocketError::HostUnreachable));
        assert_eq!(error(4, 0, 0, 28), Ok(Message::Other), "source quench");
        assert_eq!(error(3, 3, 0, 27), Err(WireError::Truncated));
    }

    #[test]
    fn echo() {
        let mut out = [0; 64];
        let n = emit_echo_reply([1, 2, 3, 4], b"ping?", &mut out).expect("room");
        assert_eq!(checksum::of(&out[..n]), 0);
        out[0] = 8;
        let sum = u16::from_be_bytes([out[2], out[3]]) - 0x0800;
        out[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(parse(&out[..n]), Ok(Message::EchoRequest { ident_seq: [1, 2, 3, 4], data: 8..13 }));
        out[9] ^= 4;
        assert_eq!(parse(&out[..n]), Err(WireError::BadChecksum));
    }
}
