//! Ethernet II headers with at most one 802.1Q tag.

use super::WireError;

/// A MAC address.
pub type Mac = [u8; 6];

/// The MAC address of all stations.
pub const BROADCAST: Mac = [0xff; 6];
/// Bytes of a header without a tag.
pub const HEADER_LEN: usize = 14;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;

/// A link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// What the payload is.
    pub ethertype: u16,
    /// The VLAN tag control information, if the frame is tagged.
    pub vlan: Option<u16>,
}

impl Repr {
    /// Bytes that [`emit`] writes.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        if self.vlan.is_some() { HEADER_LEN + 4 } else { HEADER_LEN }
    }
}

/// The header of `frame` and the offset of its payload.
///
/// # Errors
/// [`WireError::Truncated`].
#[inline]
pub fn parse(frame: &[u8]) -> Result<(Repr, usize), WireError> {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
        frame.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    let mut repr = Repr {
        dst: [d0, d1, d2, d3, d4, d5],
        src: [s0, s1, s2, s3, s4, s5],
        ethertype: u16::from_be_bytes([t0, t1]),
        vlan: None,
    };
    if repr.ethertype != VLAN {
        return Ok((repr, HEADER_LEN));
    }
    let &[.., v0, v1, t0, t1] = frame.first_chunk::<18>().ok_or(WireError::Truncated)?;
    repr.vlan = Some(u16::from_be_bytes([v0, v1]));
    repr.ethertype = u16::from_be_bytes([t0, t1]);
    Ok((repr, HEADER_LEN + 4))
}

/// Writes the header to the start of `out` and returns its length.
///
/// # Errors
/// [`WireError::NoRoom`].
#[inline(always)]
pub fn emit(repr: &Repr, out: &mut [u8]) -> Result<usize, WireError> {
    let [t0, t1] = repr.ethertype.to_be_bytes();
    let [d0, d1, d2, d3, d4, d5] = repr.dst;
    let [s0, s1, s2, s3, s4, s5] = repr.src;
    if let Some(vlan) = repr.vlan {
        let [v0, v1] = vlan.to_be_bytes();
        *out.first_chunk_mut().ok_or(WireError::NoRoom)? =
            [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, 0x81, 0x00, v0, v1, t0, t1];
        return Ok(18);
    }
    *out.first_chunk_mut().ok_or(WireError::NoRoom)? =
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1];
    Ok(HEADER_LEN)
}

/// The multicast MAC of an IPv6 group (RFC 2464 §7).
#[must_use]
pub const fn multicast_v6(group: super::IpAddr) -> Mac {
    let [.., a, b, c, d] = group.0;
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for vlan in [None, Some(0x2064)] {
            let repr = Repr { dst: [1, 2, 3, 4, 5, 6], src: [7, 8, 9, 10, 11, 12], ethertype: IPV6, vlan };
            let mut out = [0; 20];
            let n = emit(&repr, &mut out).expect("room");
            assert_eq!(n, repr.header_len());
            assert_eq!(parse(&out), Ok((repr, n)));
            assert_eq!(parse(&out[..n - 1]), Err(WireError::Truncated));
            assert_eq!(emit(&repr, &mut out[..n - 1]), Err(WireError::NoRoom));
        }
    }
}
