//! Neighbour discovery (RFC 4861): solicitations and advertisements.

use super::ethernet::Mac;
use super::{ICMPV6, IpAddr, WireError, icmpv6, ipv6};

pub(super) const SOLICIT: u8 = 135;
pub(super) const ADVERT: u8 = 136;
/// Bytes of a message with one link-layer address option.
pub const LEN: usize = 32;

const SOURCE_LLADDR: u8 = 1;
const TARGET_LLADDR: u8 = 2;

/// A neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// Who has `target`?
    Solicit {
        /// The address that is looked for.
        target: IpAddr,
        /// The asker's MAC address, if it says so.
        source: Option<Mac>,
    },
    /// `target` is here.
    Advert {
        /// The address that is told.
        target: IpAddr,
        /// Its MAC address, if told.
        mac: Option<Mac>,
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces what is cached.
        overrides: bool,
    },
}

/// The message in `bytes`, whose checksum has been verified.
pub(super) fn parse(ip: &ipv6::Repr, bytes: &[u8]) -> Result<Neighbor, WireError> {
    // RFC 4861 §7.1.1, §7.1.2: a hop limit other than 255 means that it crossed a router.
    if ip.hop_limit != 255 {
        return Err(WireError::BadField);
    }
    let &[kind, _, _, _, flags, ..] = bytes.first_chunk::<24>().ok_or(WireError::Truncated)?;
    let target = bytes.get(8..24).and_then(|s| s.try_into().ok()).map(IpAddr).ok_or(WireError::Truncated)?;
    if target.is_multicast() {
        return Err(WireError::BadField);
    }
    let wanted = if kind == SOLICIT { SOURCE_LLADDR } else { TARGET_LLADDR };
    let mac = lladdr(bytes.get(24..).unwrap_or(&[]), wanted)?;
    if kind == SOLICIT {
        // RFC 4861 §7.1.1: a source address must come without this option if the sender has no address yet.
        if ip.src.is_unspecified() && mac.is_some() {
            return Err(WireError::BadOption);
        }
        return Ok(Neighbor::Solicit { target, source: mac });
    }
    Ok(Neighbor::Advert {
        target,
        mac,
        router: flags & 0x80 != 0,
        solicited: flags & 0x40 != 0,
        overrides: flags & 0x20 != 0,
    })
}

/// The link-layer address option of the wanted kind. Each step consumes eight bytes or more.
fn lladdr(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, WireError> {
    let mut found = None;
    while let Some(&[kind, len]) = options.first_chunk::<2>() {
        // RFC 4861 §4.6: a length of zero makes the packet invalid.
        let len = usize::from(len) * 8;
        if len == 0 || len > options.len() {
            return Err(WireError::BadOption);
        }
        if kind == wanted && len == 8 {
            found = options.get(2..8).and_then(|s| s.try_into().ok());
        }
        options = options.get(len..).unwrap_or(&[]);
    }
    Ok(found)
}

/// Writes the message, with its checksum, and returns its length. Send it with hop limit 255.
///
/// # Errors
/// [`WireError::NoRoom`].
pub fn emit(src: IpAddr, dst: IpAddr, message: &Neighbor, out: &mut [u8]) -> Result<usize, WireError> {
    let (kind, flags, target, option, mac) = match *message {
        Neighbor::Solicit { target, source } => (SOLICIT, 0, target, SOURCE_LLADDR, source),
        Neighbor::Advert { target, mac, router, solicited, overrides } => {
            let flags = u8::from(router) << 7 | u8::from(solicited) << 6 | u8::from(overrides) << 5;
            (ADVERT, flags, target, TARGET_LLADDR, mac)
        }
    };
    let len = if mac.is_some() { LEN } else { LEN - 8 };
    let out = out.get_mut(..len).ok_or(WireError::NoRoom)?;
    let (head, tail) = out.split_at_mut(24);
    let (fixed, address) = head.split_at_mut(8);
    fixed.copy_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    address.copy_from_slice(&target.0);
    if let (Some([a, b, c, d, e, f]), 8) = (mac, tail.len()) {
        tail.copy_from_slice(&[option, 1, a, b, c, d, e, f]);
    }
    icmpv6::seal(src, dst, out);
    Ok(len)
}

/// The solicited-node multicast address of `target` (RFC 4291 §2.7.1).
#[must_use]
pub const fn solicited_node(target: IpAddr) -> IpAddr {
    let [.., a, b, c] = target.0;
    IpAddr([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The IPv6 header for a message of `len` bytes.
#[must_use]
pub const fn ip_header(src: IpAddr, dst: IpAddr, len: usize) -> ipv6::Repr {
    ipv6::Repr {
        src,
        dst,
        protocol: ICMPV6,
        hop_limit: 255,
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        fragment: None,
        payload_len: len as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::icmpv6::Message;

    const A: IpAddr = IpAddr([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xbb, 0xcc]);
    const B: IpAddr = IpAddr([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

    #[test]
    fn round_trip() {
        let messages = [
            Neighbor::Solicit { target: A, source: Some([1, 2, 3, 4, 5, 6]) },
            Neighbor::Solicit { target: A, source: None },
            Neighbor::Advert {
                target: A,
                mac: Some([9; 6]),
                router: true,
                solicited: false,
                overrides: true,
            },
        ];
        for message in messages {
            let mut out = [0; LEN];
            let n = emit(B, A, &message, &mut out).expect("room");
            let ip = ip_header(B, A, n);
            assert_eq!(icmpv6::parse(&ip, &out[..n]), Ok(Message::Neighbor(message)));
            let routed = ipv6::Repr { hop_limit: 254, ..ip };
            assert_eq!(icmpv6::parse(&routed, &out[..n]), Err(WireError::BadField));
        }
    }

    #[test]
    fn a_zero_length_option_is_refused() {
        let mut out = [0; LEN];
        let message = Neighbor::Solicit { target: A, source: Some([1; 6]) };
        let n = emit(B, A, &message, &mut out).expect("room");
        out[25] = 0;
        out[2..4].fill(0);
        icmpv6::seal(B, A, &mut out);
        assert_eq!(icmpv6::parse(&ip_header(B, A, n), &out[..n]), Err(WireError::BadOption));
    }

    #[test]
    fn solicited_node_address() {
        let expected = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xaa, 0xbb, 0xcc];
        assert_eq!(solicited_node(A).0, expected);
    }
}
