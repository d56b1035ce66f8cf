//! Headers: each module parses a view of bytes into a small `Copy` value plus the range of its payload, and emits
//! the value into bytes. Malformed input is a named [`WireError`], never a guess.

pub mod addr;
pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndisc;
pub mod tcp;

pub use addr::IpAddr;

use crate::segment::FourTuple;
use crate::seq::SeqNum;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of ICMP for IPv4.
pub const ICMPV4: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// What an ICMP error quotes of a TCP segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The connection as we name it: the quoted source is our end.
    pub tuple: FourTuple,
    /// The segment's sequence number.
    pub seq: SeqNum,
}

/// Ports and sequence number: the eight bytes that every ICMP error quotes (RFC 792).
fn quoted_ports(tcp: Option<&[u8]>) -> Result<(u16, u16, SeqNum), WireError> {
    let &[s0, s1, d0, d1, n0, n1, n2, n3] =
        tcp.and_then(|t| t.first_chunk::<8>()).ok_or(WireError::Truncated)?;
    let seq = SeqNum::new(u32::from_be_bytes([n0, n1, n2, n3]));
    Ok((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]), seq))
}

/// Why bytes are not the header they claim to be. Each is a counter of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than the header, or than its length field says.
    Truncated,
    /// The version, hardware type or another constant is not what it has to be.
    Unsupported,
    /// A length field contradicts itself.
    BadLength,
    /// The checksum does not match.
    BadChecksum,
    /// An option runs over the end of the header or has an impossible length.
    BadOption,
    /// A field has a value that the standard forbids.
    BadField,
    /// The output buffer is too small for the header.
    NoRoom,
}
