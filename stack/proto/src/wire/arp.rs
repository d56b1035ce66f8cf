//! ARP for IPv4 over Ethernet (RFC 826).

use super::ethernet::Mac;
use super::{IpAddr, WireError};

/// Bytes of an ARP packet.
pub const LEN: usize = 28;

/// What an ARP packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Who has `target_ip`?
    Request,
    /// `sender_mac` has `sender_ip`.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's MAC address.
    pub sender_mac: Mac,
    /// The sender's IPv4 address.
    pub sender_ip: IpAddr,
    /// The target's MAC address; zero in a request.
    pub target_mac: Mac,
    /// The target's IPv4 address.
    pub target_ip: IpAddr,
}

impl Repr {
    /// The reply with which `mac` answers this request.
    #[must_use]
    pub const fn reply(&self, mac: Mac) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }
}

/// The packet in `bytes`; what follows it is padding.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::Unsupported`] for other hardware or protocols, [`WireError::BadField`] for
/// other operations.
pub fn parse(bytes: &[u8]) -> Result<Repr, WireError> {
    let &[h0, h1, p0, p1, hlen, plen, o0, o1, rest @ ..] =
        bytes.first_chunk::<LEN>().ok_or(WireError::Truncated)?;
    if [h0, h1, p0, p1, hlen, plen] != [0, 1, 8, 0, 6, 4] {
        return Err(WireError::Unsupported);
    }
    let operation = match [o0, o1] {
        [0, 1] => Operation::Request,
        [0, 2] => Operation::Reply,
        _ => return Err(WireError::BadField),
    };
    let [a, b, c, d, e, f, w, x, y, z, g, h, i, j, k, l, s, t, u, v] = rest;
    Ok(Repr {
        operation,
        sender_mac: [a, b, c, d, e, f],
        sender_ip: IpAddr::v4([w, x, y, z]),
        target_mac: [g, h, i, j, k, l],
        target_ip: IpAddr::v4([s, t, u, v]),
    })
}

/// Writes the packet and returns its length.
///
/// # Errors
/// [`WireError::NoRoom`].
pub fn emit(repr: &Repr, out: &mut [u8]) -> Result<usize, WireError> {
    let operation = match repr.operation {
        Operation::Request => 1,
        Operation::Reply => 2,
    };
    let [a, b, c, d, e, f] = repr.sender_mac;
    let [w, x, y, z] = repr.sender_ip.v4_bytes();
    let [g, h, i, j, k, l] = repr.target_mac;
    let [s, t, u, v] = repr.target_ip.v4_bytes();
    *out.first_chunk_mut().ok_or(WireError::NoRoom)? =
        [0, 1, 8, 0, 6, 4, 0, operation, a, b, c, d, e, f, w, x, y, z, g, h, i, j, k, l, s, t, u, v];
    Ok(LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_reply() {
        let ask = Repr {
            operation: Operation::Request,
            sender_mac: [1; 6],
            sender_ip: IpAddr::v4([10, 0, 0, 1]),
            target_mac: [0; 6],
            target_ip: IpAddr::v4([10, 0, 0, 2]),
        };
        let reply = ask.reply([2; 6]);
        assert_eq!((reply.sender_ip, reply.target_ip), (ask.target_ip, ask.sender_ip));
        for repr in [ask, reply] {
            let mut out = [0; LEN];
            assert_eq!(emit(&repr, &mut out), Ok(LEN));
            assert_eq!(parse(&out), Ok(repr));
            assert_eq!(parse(&out[..27]), Err(WireError::Truncated));
            out[5] = 16;
            assert_eq!(parse(&out), Err(WireError::Unsupported));
        }
    }
}
