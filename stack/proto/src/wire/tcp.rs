//! TCP headers and options (RFC 9293 §3.1, §3.2).

use super::checksum::{Sum, Verify};
use super::{IpAddr, TCP, WireError};
use crate::segment::{FastOpenCookie, Flags, Options, SackBlock, SackBlocks, Segment, Timestamps, Transmit};
use crate::seq::SeqNum;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const HEADER_LEN_MAX: usize = 60;

const ACK: u8 = 0x10;

const OPT_END: u8 = 0;
const OPT_NOP: u8 = 1;
const OPT_MSS: u8 = 2;
const OPT_WSCALE: u8 = 3;
const OPT_SACK_PERMITTED: u8 = 4;
const OPT_SACK: u8 = 5;
const OPT_TIMESTAMPS: u8 = 8;
const OPT_FAST_OPEN: u8 = 34;
/// RFC 6994 §3: the option that experiments share, and Fast Open's number there.
const OPT_EXPERIMENT: u8 = 254;
const EXPERIMENT_FAST_OPEN: [u8; 2] = [0xf9, 0x89];

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// All else. `segment.ce` is false: set it from the IP header.
    pub segment: Segment,
    /// Where the payload starts.
    pub payload: usize,
}

/// The header of `bytes`, which are the payload of an IP packet that is no fragment. Does not verify: see [`verify`].
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::BadLength`]; [`WireError::BadOption`] if an option runs over the end.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Repr, WireError> {
    let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, off, flags, w0, w1, _, _, u0, u1] =
        bytes.first_chunk::<HEADER_LEN>().ok_or(WireError::Truncated)?;
    let payload = usize::from(off >> 4) * 4;
    if payload < HEADER_LEN {
        return Err(WireError::BadLength);
    }
    let raw = bytes.get(HEADER_LEN..payload).ok_or(WireError::Truncated)?;
    let options = match raw {
        [] => Options::default(),
        // RFC 7323 appendix A: the layout that nearly every segment has.
        &[OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10, v0, v1, v2, v3, e0, e1, e2, e3] => Options {
            timestamps: Some(Timestamps {
                val: u32::from_be_bytes([v0, v1, v2, v3]),
                ecr: u32::from_be_bytes([e0, e1, e2, e3]),
            }),
            ..Options::default()
        },
        _ => parse_options(raw)?,
    };
    let ack = SeqNum::new(u32::from_be_bytes([a0, a1, a2, a3]));
    Ok(Repr {
        src_port: u16::from_be_bytes([s0, s1]),
        dst_port: u16::from_be_bytes([d0, d1]),
        segment: Segment {
            seq: SeqNum::new(u32::from_be_bytes([q0, q1, q2, q3])),
            ack: (flags & ACK != 0).then_some(ack),
            flags: Flags::from_bits(flags),
            wnd: u16::from_be_bytes([w0, w1]),
            urg: u16::from_be_bytes([u0, u1]),
            len: (bytes.len() - payload) as u32,
            options,
            ce: false,
        },
        payload,
    })
}

/// RFC 9293 §3.2, MUST-4 to MUST-7: options in any order, unknown ones skipped, impossible lengths refused.
fn parse_options(mut raw: &[u8]) -> Result<Options, WireError> {
    let mut options = Options::default();
    loop {
        match *raw {
            [] | [OPT_END, ..] => return Ok(options),
            [OPT_NOP, ref rest @ ..] => raw = rest,
            [kind, len, ..] => {
                let len = usize::from(len);
                let body = raw.get(2..len).ok_or(WireError::BadOption)?;
                parse_option(&mut options, kind, body);
                raw = raw.get(len..).ok_or(WireError::BadOption)?;
            }
            [_] => return Err(WireError::BadOption),
        }
    }
}

/// One option. A known kind with a length that it can't have is skipped like an unknown one, as Linux does.
fn parse_option(options: &mut Options, kind: u8, body: &[u8]) {
    match (kind, body) {
        (OPT_MSS, &[a, b]) => options.mss = Some(u16::from_be_bytes([a, b])).filter(|&mss| mss != 0),
        // RFC 7323 §2.3: a shift over 14 counts as 14.
        (OPT_WSCALE, &[shift]) => options.wscale = Some(shift.min(14)),
        (OPT_SACK_PERMITTED, []) => options.sack_permitted = true,
        (OPT_TIMESTAMPS, &[v0, v1, v2, v3, e0, e1, e2, e3]) => {
            options.timestamps = Some(Timestamps {
                val: u32::from_be_bytes([v0, v1, v2, v3]),
                ecr: u32::from_be_bytes([e0, e1, e2, e3]),
            });
        }
        (OPT_SACK, blocks) if blocks.len() % 8 == 0 => {
            for block in blocks.chunks_exact(8) {
                if let &[a, b, c, d, e, f, g, h] = block {
                    options.sack.push(SackBlock {
                        start: SeqNum::new(u32::from_be_bytes([a, b, c, d])),
                        end: SeqNum::new(u32::from_be_bytes([e, f, g, h])),
                    });
                }
            }
        }
        (OPT_FAST_OPEN, cookie) => options.fast_open = FastOpenCookie::new(cookie),
        (OPT_EXPERIMENT, [a, b, cookie @ ..]) if [*a, *b] == EXPERIMENT_FAST_OPEN => {
            options.fast_open = FastOpenCookie::new(cookie).map(|cookie| cookie.experimental(true));
        }
        _ => {}
    }
}

/// Judges the checksum of the TCP segment `bytes` (header and payload) between the two addresses.
///
/// # Errors
/// [`WireError::BadChecksum`], [`WireError::Truncated`].
#[inline(always)]
pub fn verify(src: IpAddr, dst: IpAddr, bytes: &[u8], mode: Verify) -> Result<(), WireError> {
    if mode == Verify::Trust {
        return Ok(());
    }
    let pseudo = Sum::pseudo_header(src, dst, TCP, bytes.len() as u32);
    let field = bytes.get(16..18).and_then(|s| s.try_into().ok()).ok_or(WireError::Truncated)?;
    // First: of a neighbour on this machine nearly all are partial, and then the payload need not be read for a sum.
    if mode == Verify::AllowPartial && u16::from_be_bytes(field) == pseudo.folded() {
        return Ok(());
    }
    let mut sum = pseudo;
    sum.add(bytes);
    if sum.folded() == 0xffff { Ok(()) } else { Err(WireError::BadChecksum) }
}

/// Bytes of a header with these options.
#[inline]
#[must_use]
pub fn header_len(options: &Options) -> usize {
    HEADER_LEN + options_len(options)
}

/// Bytes that these options take, padded to words.
#[inline]
#[must_use]
pub fn options_len(options: &Options) -> usize {
    let mut len = 0;
    if options.mss.is_some() {
        len += 4;
    }
    if options.wscale.is_some() {
        len += 4;
    }
    if options.timestamps.is_some() {
        len += 12;
    } else if options.sack_permitted {
        len += 4;
    }
    if !options.sack.is_empty() {
        len += 4 + 8 * options.sack.len();
    }
    if let Some(cookie) = &options.fast_open {
        let in_front = if cookie.is_experimental() { 4 } else { 2 };
        len += (in_front + cookie.as_slice().len()).next_multiple_of(4);
    }
    len
}

/// Writes the header of `tx`, checksum zero, and returns its length. Then put the payload behind it and call
/// [`fill_checksum`], or [`fill_partial_checksum`] if the port computes it.
///
/// # Errors
/// [`WireError::NoRoom`]; [`WireError::BadOption`] if the options need more than 40 bytes.
#[inline]
pub fn emit(tx: &Transmit, src_port: u16, dst_port: u16, out: &mut [u8]) -> Result<usize, WireError> {
    emit_with(tx, src_port, dst_port, out, |_| 0)
}

/// The same, with the checksum: `field` makes the field from the sum of the header, in which the field is zero. That sum comes from the
/// fields themselves: reading a header back waits until every store of it is in the cache, which another core may have.
///
/// # Errors
/// As [`emit`].
#[inline]
pub fn emit_with(
    tx: &Transmit,
    src_port: u16,
    dst_port: u16,
    out: &mut [u8],
    field: impl FnOnce(Sum) -> u16,
) -> Result<usize, WireError> {
    let len = header_len(&tx.options);
    if len > HEADER_LEN_MAX {
        return Err(WireError::BadOption);
    }
    let (head, options) =
        out.get_mut(..len).and_then(<[u8]>::split_first_chunk_mut::<HEADER_LEN>).ok_or(WireError::NoRoom)?;
    let flags = tx.flags.bits() | if tx.ack.is_some() { ACK } else { 0 };
    let offset = ((len / 4) << 4) as u8;
    let first = u64::from(src_port) << 48 | u64::from(dst_port) << 32 | u64::from(tx.seq.raw());
    let second = u64::from(tx.ack.map_or(0, SeqNum::raw)) << 32
        | u64::from(offset) << 24
        | u64::from(flags) << 16
        | u64::from(tx.wnd);
    let mut sum = Sum::new();
    sum.add_u64(first);
    sum.add_u64(second);
    sum.add_u16(tx.urg);
    if let (Some(ts), 12, false) = (tx.options.timestamps, options.len(), tx.options.sack_permitted) {
        let kind = u32::from_be_bytes([OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10]);
        let times = u64::from(ts.val) << 32 | u64::from(ts.ecr);
        sum.add_u64(u64::from(kind));
        sum.add_u64(times);
        if let Some((first, rest)) = options.split_first_chunk_mut::<4>() {
            *first = kind.to_be_bytes();
            rest.copy_from_slice(&times.to_be_bytes());
        }
    } else if !options.is_empty() {
        emit_options(&tx.options, options, &mut sum);
    }
    let last = u32::from(field(sum)) << 16 | u32::from(tx.urg);
    let (whole, rest) = head.split_at_mut(16);
    rest.copy_from_slice(&last.to_be_bytes());
    let (one, two) = whole.split_at_mut(8);
    one.copy_from_slice(&first.to_be_bytes());
    two.copy_from_slice(&second.to_be_bytes());
    Ok(len)
}

/// Writes all options into `out`, which has exactly [`options_len`] bytes, in the order that Linux uses; adds them to `sum`.
fn emit_options(options: &Options, out: &mut [u8], sum: &mut Sum) {
    let mut out = Cursor { out, sum };
    if let Some(mss) = options.mss {
        let [a, b] = mss.to_be_bytes();
        out.put([OPT_MSS, 4, a, b]);
    }
    match (options.timestamps, options.sack_permitted) {
        (Some(ts), sack) => {
            let [a, b] = if sack { [OPT_SACK_PERMITTED, 2] } else { [OPT_NOP; 2] };
            out.put([a, b, OPT_TIMESTAMPS, 10]);
            out.put(ts.val.to_be_bytes());
            out.put(ts.ecr.to_be_bytes());
        }
        (None, true) => out.put([OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2]),
        (None, false) => {}
    }
    if let Some(shift) = options.wscale {
        out.put([OPT_NOP, OPT_WSCALE, 3, shift]);
    }
    if !options.sack.is_empty() {
        out.put([OPT_NOP, OPT_NOP, OPT_SACK, 2 + 8 * options.sack.len() as u8]);
        for block in options.sack.as_slice() {
            out.put(block.start.raw().to_be_bytes());
            out.put(block.end.raw().to_be_bytes());
        }
    }
    if let Some(cookie) = &options.fast_open {
        if cookie.is_experimental() {
            let [a, b] = EXPERIMENT_FAST_OPEN;
            out.put([OPT_EXPERIMENT, 4 + cookie.as_slice().len() as u8, a, b]);
        }
        let own = [OPT_FAST_OPEN, 2 + cookie.as_slice().len() as u8];
        let own = own.into_iter().filter(|_| !cookie.is_experimental());
        let mut bytes = own.chain(cookie.as_slice().iter().copied());
        while let Some(first) = bytes.next() {
            let mut next = || bytes.next().unwrap_or(OPT_NOP);
            out.put([first, next(), next(), next()]);
        }
    }
    debug_assert!(out.out.is_empty(), "options_len and emit_options disagree");
}

/// A slice that gets shorter as it is written, word by word, and the sum of what was.
struct Cursor<'a> {
    out: &'a mut [u8],
    sum: &'a mut Sum,
}

impl Cursor<'_> {
    fn put(&mut self, word: [u8; 4]) {
        let whole = core::mem::take(&mut self.out);
        if let Some((head, tail)) = whole.split_first_chunk_mut::<4>() {
            *head = word;
            self.out = tail;
        }
        self.sum.add_u64(u64::from(u32::from_be_bytes(word)));
    }
}

/// Computes the checksum over `header` and the payload, given in up to two pieces (a byte stream is a ring), and
/// writes it into `header`.
#[inline]
pub fn fill_checksum(src: IpAddr, dst: IpAddr, header: &mut [u8], payload: [&[u8]; 2]) {
    let [first, second] = payload;
    let len = header.len() + first.len() + second.len();
    let mut sum = Sum::pseudo_header(src, dst, TCP, len as u32);
    set_field(header, 0);
    sum.add(header);
    for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
        sum.add(piece);
    }
    set_field(header, sum.finish());
}

/// Writes what checksum offload expects in the field: the folded pseudo-header sum, not complemented. `len` counts
/// header and payload.
#[inline]
pub fn fill_partial_checksum(src: IpAddr, dst: IpAddr, header: &mut [u8], len: u32) {
    set_field(header, Sum::pseudo_header(src, dst, TCP, len).folded());
}

#[inline]
fn set_field(header: &mut [u8], value: u16) {
    if let Some(field) = header.get_mut(16..18) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// The largest number of SACK blocks that fit beside the other options of a segment (RFC 2018 §3).
#[must_use]
pub const fn sack_blocks_max(timestamps: bool) -> usize {
    if timestamps { 3 } else { 4 }
}

/// No SACK block, for callers that build options by hand.
pub const NO_SACK: SackBlocks = SackBlocks::NONE;

#[cfg(test)]
mod tests;
