//! IPv4 headers (RFC 791). Options are skipped, fragments are reported.

use core::ops::Range;

use super::checksum::{self, Sum};
use super::{IpAddr, WireError};

/// Bytes of a header without options, the only kind that is emitted.
pub const HEADER_LEN: usize = 20;

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Where its payload belongs, in bytes.
    pub offset: u32,
    /// More fragments follow.
    pub more: bool,
    /// What names the packet.
    pub ident: u32,
}

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The protocol of the payload (6 is TCP, 1 is ICMP).
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// ECN field, 2 bits (RFC 3168 §5): 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.
    pub ecn: u8,
    /// Identification.
    pub ident: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// Present if the packet is a fragment: then the payload is *not* a whole TCP segment and must not be parsed.
    pub fragment: Option<Fragment>,
    /// Bytes after the header.
    pub payload_len: u16,
}

/// The header of `packet` and the range of its payload. Bytes after the total length are link padding.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::Unsupported`] (version), [`WireError::BadLength`],
/// [`WireError::BadChecksum`].
#[inline(always)]
pub fn parse(packet: &[u8]) -> Result<(Repr, Range<usize>), WireError> {
    let fixed = packet.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    let &[vihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = fixed;
    if vihl >> 4 != 4 {
        return Err(WireError::Unsupported);
    }
    let header_len = usize::from(vihl & 15) * 4;
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if header_len < HEADER_LEN || total_len < header_len {
        return Err(WireError::BadLength);
    }
    if total_len > packet.len() {
        return Err(WireError::Truncated);
    }
    // RFC 1122 §3.2.1.2: MUST verify the header checksum and silently discard what fails.
    let sum = if header_len == HEADER_LEN {
        checksum::of_header(fixed)
    } else {
        checksum::of(packet.get(..header_len).ok_or(WireError::Truncated)?)
    };
    if sum != 0 {
        return Err(WireError::BadChecksum);
    }
    let flags = u16::from_be_bytes([f0, f1]);
    let ident = u16::from_be_bytes([i0, i1]);
    let offset = u32::from(flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let fragment = (more || offset != 0).then_some(Fragment { offset, more, ident: u32::from(ident) });
    let repr = Repr {
        src: IpAddr::v4([s0, s1, s2, s3]),
        dst: IpAddr::v4([d0, d1, d2, d3]),
        protocol,
        ttl,
        dscp: tos >> 2,
        ecn: tos & 3,
        ident,
        dont_fragment: flags & 0x4000 != 0,
        fragment,
        payload_len: (total_len - header_len) as u16,
    };
    Ok((repr, header_len..total_len))
}

/// Writes the header, with its checksum, and returns its length. `repr.fragment` is ignored: this stack sends no
/// fragments.
///
/// # Errors
/// [`WireError::NoRoom`], [`WireError::BadLength`] if the packet would be longer than 65 535 bytes.
#[inline(always)]
pub fn emit(repr: &Repr, out: &mut [u8]) -> Result<usize, WireError> {
    let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(WireError::NoRoom)?;
    let total_len = repr.payload_len.checked_add(HEADER_LEN as u16).ok_or(WireError::BadLength)?;
    let tos = repr.dscp << 2 | repr.ecn & 3;
    let flags = if repr.dont_fragment { 0x4000 } else { 0 };
    let first =
        0x45 << 56 | u64::from(tos) << 48 | u64::from(total_len) << 32 | u64::from(repr.ident) << 16 | flags;
    let addr = |addr: IpAddr| u64::from(u32::from_be_bytes(addr.v4_bytes()));
    let second = u64::from(repr.ttl) << 56 | u64::from(repr.protocol) << 48 | addr(repr.src);
    // Of the numbers, not of the bytes that were just written: those would have to be waited for.
    let mut sum = Sum::new();
    [first, second, addr(repr.dst)].into_iter().for_each(|word| sum.add_u64(word));
    let second = second | u64::from(sum.finish()) << 32;
    let (whole, dst) = out.split_at_mut(16);
    let (one, two) = whole.split_at_mut(8);
    one.copy_from_slice(&first.to_be_bytes());
    two.copy_from_slice(&second.to_be_bytes());
    dst.copy_from_slice(&repr.dst.v4_bytes());
    Ok(HEADER_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Repr {
        Repr {
            src: IpAddr::v4([192, 0, 2, 1]),
            dst: IpAddr::v4([198, 51, 100, 2]),
            protocol: 6,
            ttl: 64,
            dscp: 10,
            ecn: 2,
            ident: 0x1234,
            dont_fragment: true,
            fragment: None,
            payload_len: 5,
        }
    }

    fn packet() -> [u8; 27] {
        let mut out = [0; 27];
        assert_eq!(emit(&sample(), &mut out), Ok(20));
        out
    }

    /// Sets a byte and mends the checksum.
    fn patched(changes: &[(usize, u8)]) -> [u8; 27] {
        let mut out = packet();
        for &(at, byte) in changes {
            out[at] = byte;
        }
        out[10..12].fill(0);
        let sum = checksum::of(&out[..20]).to_be_bytes();
        out[10..12].copy_from_slice(&sum);
        out
    }

    #[test]
    fn round_trip_ignores_padding() {
        assert_eq!(parse(&packet()), Ok((sample(), 20..25)));
    }

    #[test]
    fn malformed_headers_are_named() {
        #[track_caller]
        fn check(bytes: &[u8], error: WireError) {
            assert_eq!(parse(bytes), Err(error));
        }
        check(&packet()[..19], WireError::Truncated);
        check(&packet()[..24], WireError::Truncated);
        check(&patched(&[(0, 0x65)]), WireError::Unsupported);
        check(&patched(&[(0, 0x44)]), WireError::BadLength);
        check(&patched(&[(3, 19)]), WireError::BadLength);
        let mut bad = packet();
        bad[8] ^= 1;
        check(&bad, WireError::BadChecksum);
    }

    #[test]
    fn fragments_are_reported() {
        let (first, _) = parse(&patched(&[(6, 0x20)])).expect("a header");
        assert_eq!(first.fragment, Some(Fragment { offset: 0, more: true, ident: 0x1234 }));
        let (last, _) = parse(&patched(&[(6, 0), (7, 3)])).expect("a header");
        assert_eq!(last.fragment, Some(Fragment { offset: 24, more: false, ident: 0x1234 }));
    }
}
