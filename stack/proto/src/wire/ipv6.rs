//! IPv6 headers (RFC 8200). Extension headers are walked, fragments are reported.

use core::ops::Range;

use super::ipv4::Fragment;
use super::{IpAddr, WireError};

/// Bytes of the fixed header, the only one that is emitted.
pub const HEADER_LEN: usize = 40;
/// More extension headers than this are refused: nobody needs them, and each costs time.
const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const PAD_1: u8 = 0;

/// An IPv6 header together with what its extension headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The protocol after all extension headers (6 is TCP, 58 is ICMPv6).
    pub protocol: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// ECN field, 2 bits.
    pub ecn: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Present if the packet is a fragment of a larger one: then the payload must not be parsed. An atomic fragment
    /// (RFC 6946) is a whole packet and leaves this empty.
    pub fragment: Option<Fragment>,
    /// Bytes after the extension headers.
    pub payload_len: u16,
}

/// The header of `packet` and the range of the payload after all extension headers.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::Unsupported`] (version, a routing header that is not used up, headers in the wrong place,
/// too many extension headers), [`WireError::BadOption`] (an option that must be understood, or runs over its header's end).
#[inline]
pub fn parse(packet: &[u8]) -> Result<(Repr, Range<usize>), WireError> {
    let &[v0, v1, v2, v3, l0, l1, next, hop_limit, ..] =
        packet.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    let word = u32::from_be_bytes([v0, v1, v2, v3]);
    if word >> 28 != 6 {
        return Err(WireError::Unsupported);
    }
    let src = packet.get(8..24).and_then(|s| s.try_into().ok()).ok_or(WireError::Truncated)?;
    let dst = packet.get(24..40).and_then(|s| s.try_into().ok()).ok_or(WireError::Truncated)?;
    let end = HEADER_LEN + usize::from(u16::from_be_bytes([l0, l1]));
    let body = packet.get(..end).ok_or(WireError::Truncated)?;
    let mut repr = Repr {
        src: IpAddr(src),
        dst: IpAddr(dst),
        protocol: next,
        hop_limit,
        dscp: (word >> 22) as u8 & 0x3f,
        ecn: (word >> 20) as u8 & 3,
        flow_label: word & 0xf_ffff,
        fragment: None,
        payload_len: 0,
    };
    // RFC 4291 §2.5.5.2 and RFC 2765: a mapped address on the wire would pass for IPv4 in this stack.
    if repr.src.is_v4() || repr.dst.is_v4() {
        return Err(WireError::BadField);
    }
    let start = match next {
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION => walk(&mut repr, body)?,
        _ => HEADER_LEN,
    };
    repr.payload_len = (end - start) as u16;
    Ok((repr, start..end))
}

/// RFC 8200 §4: walks the extension headers, sets protocol and fragment, returns where the payload starts.
fn walk(repr: &mut Repr, body: &[u8]) -> Result<usize, WireError> {
    let mut at = HEADER_LEN;
    for _ in 0..EXTENSIONS_MAX {
        let header = repr.protocol;
        if !matches!(header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            return Ok(at);
        }
        let rest = body.get(at..).ok_or(WireError::Truncated)?;
        let &[next, len, b2, b3, b4, b5, b6, b7] = rest.first_chunk::<8>().ok_or(WireError::Truncated)?;
        repr.protocol = next;
        if header == FRAGMENT {
            at += 8;
            let field = u16::from_be_bytes([b2, b3]);
            let (offset, more) = (u32::from(field & 0xfff8), field & 1 != 0);
            if more || offset != 0 {
                let ident = u32::from_be_bytes([b4, b5, b6, b7]);
                repr.fragment = Some(Fragment { offset, more, ident });
                return Ok(at);
            }
            continue;
        }
        // RFC 8200 §4.1: nowhere but at the front; elsewhere it is a next header that nobody knows.
        if header == HOP_BY_HOP && at != HEADER_LEN {
            return Err(WireError::Unsupported);
        }
        // RFC 8200 §4.4: with segments left, an unknown routing type is an error; type 0 is dead (RFC 5095).
        if header == ROUTING && b3 != 0 {
            return Err(WireError::Unsupported);
        }
        let end = at + 8 + usize::from(len) * 8;
        let whole = body.get(at..end).ok_or(WireError::Truncated)?;
        if header != ROUTING {
            look_through(whole.get(2..).unwrap_or(&[]))?;
        }
        at = end;
    }
    Err(WireError::Unsupported)
}

/// RFC 8200 §4.2: options of which none is known here may be skipped, or must not, as their own upper two bits say.
fn look_through(mut options: &[u8]) -> Result<(), WireError> {
    loop {
        options = match *options {
            [] => return Ok(()),
            [PAD_1, ref rest @ ..] => rest,
            [kind, len, ref rest @ ..] if kind >> 6 == 0 => {
                rest.get(usize::from(len)..).ok_or(WireError::BadOption)?
            }
            _ => return Err(WireError::BadOption),
        };
    }
}

/// Writes the fixed header and returns its length.
///
/// # Errors
/// [`WireError::NoRoom`].
#[inline]
pub fn emit(repr: &Repr, out: &mut [u8]) -> Result<usize, WireError> {
    let out = out.get_mut(..HEADER_LEN).ok_or(WireError::NoRoom)?;
    let class = u32::from(repr.dscp) << 2 | u32::from(repr.ecn & 3);
    let word = 6 << 28 | class << 20 | repr.flow_label & 0xf_ffff;
    let (fixed, addresses) = out.split_at_mut(8);
    let [v0, v1, v2, v3] = word.to_be_bytes();
    let [l0, l1] = repr.payload_len.to_be_bytes();
    fixed.copy_from_slice(&[v0, v1, v2, v3, l0, l1, repr.protocol, repr.hop_limit]);
    let (src, dst) = addresses.split_at_mut(16);
    src.copy_from_slice(&repr.src.0);
    dst.copy_from_slice(&repr.dst.0);
    Ok(HEADER_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(payload_len: u16) -> Repr {
        let mut a = [0; 16];
        a[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        let mut b = a;
        b[15] = 2;
        Repr {
            src: IpAddr(a),
            dst: IpAddr(b),
            protocol: 6,
            hop_limit: 64,
            dscp: 46,
            ecn: 1,
            flow_label: 0xabcde,
            fragment: None,
            payload_len,
        }
    }

    fn packet(first: u8, body: &[u8]) -> ([u8; 200], usize) {
        let mut out = [0; 200];
        let repr = Repr { protocol: first, ..sample(body.len() as u16) };
        emit(&repr, &mut out).expect("room");
        out[40..40 + body.len()].copy_from_slice(body);
        (out, 40 + body.len())
    }

    #[test]
    fn round_trip() {
        let (out, n) = packet(6, &[1, 2, 3]);
        assert_eq!(parse(&out), Ok((sample(3), 40..43)), "padding is ignored");
        assert_eq!(parse(&out[..n - 1]), Err(WireError::Truncated));
    }

    #[test]
    fn extension_headers_are_walked() {
        let body = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 9, 9, 9, 9, 1, 2, 3];
        let (out, n) = packet(HOP_BY_HOP, &body);
        assert_eq!(parse(&out[..n]), Ok((sample(3), 64..67)), "an atomic fragment is whole");
    }

    /// RFC 8200 §4.2: the upper bits of an option say what to do with a packet by whoever does not know it.
    #[test]
    fn options_may_be_skipped_or_not() {
        #[track_caller]
        fn check(header: u8, options: [u8; 6], skipped: bool) {
            let [a, b, c, d, e, f] = options;
            let (out, n) = packet(header, &[6, 0, a, b, c, d, e, f, 1, 2, 3]);
            let expected = if skipped { Ok((sample(3), 48..51)) } else { Err(WireError::BadOption) };
            assert_eq!(parse(&out[..n]), expected, "{options:?}");
        }
        for header in [HOP_BY_HOP, DESTINATION] {
            check(header, [0; 6], true);
            check(header, [0, 1, 3, 0, 0, 0], true);
            // Router alert, and something new that may be skipped.
            check(header, [5, 2, 0, 0, 1, 0], true);
            check(header, [0x3e, 4, 1, 2, 3, 4], true);
            for kind in [0x40, 0x80, 0xc2, 0xc9] {
                check(header, [kind, 4, 0, 0, 0, 0], false);
                check(header, [1, 1, 0, kind, 1, 0], false);
            }
            // Over the end.
            check(header, [0x3e, 5, 0, 0, 0, 0], false);
            check(header, [0, 0, 0, 0, 0, 1], false);
        }
    }

    #[test]
    fn fragments_and_oddities_are_named() {
        let (out, n) = packet(FRAGMENT, &[6, 0, 0, 9, 0, 0, 0, 7, 1, 2]);
        let (repr, payload) = parse(&out[..n]).expect("a header");
        assert_eq!(repr.fragment, Some(Fragment { offset: 8, more: true, ident: 7 }));
        assert_eq!(payload, 48..50);
        let (out, n) = packet(ROUTING, &[6, 0, 4, 1, 0, 0, 0, 0]);
        assert_eq!(parse(&out[..n]), Err(WireError::Unsupported));
        let (out, n) = packet(DESTINATION, &[6, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse(&out[..n]), Err(WireError::Truncated));
        // A hop-by-hop header that is not the first.
        let (out, n) = packet(DESTINATION, &[0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(parse(&out[..n]), Err(WireError::Unsupported));
        let loops: [u8; 80] = core::array::from_fn(|i| if i % 8 == 0 { 60 } else { 0 });
        let (out, n) = packet(DESTINATION, &loops);
        assert_eq!(parse(&out[..n]), Err(WireError::Unsupported));
    }
}
