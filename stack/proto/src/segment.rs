//! What travels between two TCBs: [`Segment`] comes in, [`Transmit`] goes out. Neither holds payload.
//!
//! On the wire the engine builds headers from a [`Transmit`] and parses a frame to a [`Segment`]. Between
//! two sockets of one host nothing is built or parsed: [`Segment::from_transmit`] is all there is.

use crate::seq::SeqNum;
use crate::wire::IpAddr;

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address; IPv4 as `::ffff:a.b.c.d`.
    pub addr: IpAddr,
    /// The TCP port number in host order.
    pub port: u16,
}

/// The name of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FourTuple {
    /// Our end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
}

impl FourTuple {
    /// The same connection as the peer names it.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }
}

/// The control bits of a segment (RFC 9293 §3.1) except ACK, which is implied by a present `ack` field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Deliver without waiting for more.
    pub const PSH: Self = Self(0x08);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// The flags in the bits of a TCP header's byte 13; the ACK bit is dropped.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & !0x10)
    }

    /// The bits for byte 13 of a TCP header, without ACK.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Both sets together.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if any flag of `other` is set here.
    #[inline]
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if all flags of `other` are set here.
    #[inline]
    #[must_use]
    pub const fn all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The timestamps option (RFC 7323 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub val: u32,
    /// TSecr: the clock of the other side, echoed. Valid with ACK only.
    pub ecr: u32,
}

/// One SACK block (RFC 2018 §3): bytes `start..end` have been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SackBlock {
    /// The first sequence number of the block.
    pub start: SeqNum,
    /// The sequence number after the last of the block.
    pub end: SeqNum,
}

/// Up to four SACK blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [SackBlock; 4],
    len: u8,
}

impl SackBlocks {
    /// No block.
    pub const NONE: Self =
        Self { blocks: [SackBlock { start: SeqNum::new(0), end: SeqNum::new(0) }; 4], len: 0 };

    /// Appends a block; a fifth is dropped silently, as the option has no room for it.
    pub fn push(&mut self, block: SackBlock) {
        if let Some(slot) = self.blocks.get_mut(usize::from(self.len)) {
            *slot = block;
            self.len += 1;
        }
    }

    /// The blocks in the order of the option.
    #[must_use]
    pub fn as_slice(&self) -> &[SackBlock] {
        self.blocks.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// True if there is no block.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }
}

/// A Fast Open cookie (RFC 7413 §4.1.1): empty as a request, else 4 to 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastOpenCookie {
    bytes: [u8; 16],
    len: u8,
    experimental: bool,
}

impl FastOpenCookie {
    /// The empty option with which a client asks for a cookie.
    pub const REQUEST: Self = Self { bytes: [0; 16], len: 0, experimental: false };

    /// A cookie of these bytes: none, or an even number from 4 to 16.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let len = bytes.len();
        if len != 0 && (!(4..=16).contains(&len) || !len.is_multiple_of(2)) {
            return None;
        }
        let mut cookie = Self::REQUEST;
        cookie.bytes.get_mut(..len)?.copy_from_slice(bytes);
        cookie.len = len as u8;
        Some(cookie)
    }

    /// The same in the option that Fast Open had before its own, or not: the experimental one with Fast Open's number in front (RFC 6994).
    #[must_use]
    pub const fn experimental(self, experimental: bool) -> Self {
        Self { experimental, ..self }
    }

    /// Whether it is in that option: whoever speaks so is answered so.
    #[must_use]
    pub const fn is_experimental(&self) -> bool {
        self.experimental
    }

    /// The cookie's bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// The options of a segment that this stack understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size (RFC 9293 §3.7.1), on SYN only.
    pub mss: Option<u16>,
    /// Window scale shift (RFC 7323 §2.2), on SYN only, at most 14.
    pub wscale: Option<u8>,
    /// SACK permitted (RFC 2018 §2), on SYN only.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// Selective acknowledgements.
    pub sack: SackBlocks,
    /// Fast Open cookie or the request for one, on SYN only.
    pub fast_open: Option<FastOpenCookie>,
}

/// A received segment without its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// SEG.SEQ.
    pub seq: SeqNum,
    /// SEG.ACK if the ACK bit is set.
    pub ack: Option<SeqNum>,
    /// The other control bits.
    pub flags: Flags,
    /// SEG.WND as in the header, not scaled.
    pub wnd: u16,
    /// SEG.UP, an offset from `seq`; significant with URG.
    pub urg: u16,
    /// Payload bytes. SYN and FIN do not count here.
    pub len: u32,
    /// The options.
    pub options: Options,
    /// The IP header said "congestion experienced" (RFC 3168 §5).
    pub ce: bool,
}

impl Segment {
    /// The segment that the peer on the same host receives when `tx` is handed to it directly.
    #[inline]
    #[must_use]
    pub fn from_transmit(tx: &Transmit) -> Self {
        Self {
            seq: tx.seq,
            ack: tx.ack,
            flags: tx.flags,
            wnd: tx.wnd,
            urg: tx.urg,
            len: tx.len,
            options: tx.options,
            ce: false,
        }
    }

    /// SEG.LEN: sequence numbers that the segment occupies, SYN and FIN included (RFC 9293 §3.4).
    #[inline]
    #[must_use]
    pub const fn seq_len(&self) -> u32 {
        self.len
            .wrapping_add(self.flags.any(Flags::SYN) as u32)
            .wrapping_add(self.flags.any(Flags::FIN) as u32)
    }

    /// The sequence number after the last that the segment occupies.
    #[inline]
    #[must_use]
    pub fn end(&self) -> SeqNum {
        self.seq + self.seq_len()
    }
}

/// How much one [`Transmit`] may cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxLimits {
    /// Largest payload of one `Transmit` in bytes. Below one MSS it counts as one MSS: the wire uses
    /// `TxLimits::WIRE`, a port with segmentation offload or a peer on the same host up to 64 KiB and more.
    /// With offload, cut the payload into pieces of [`Transmit::mss`].
    pub payload_max: u32,
}

impl TxLimits {
    /// One MSS for each `Transmit`.
    pub const WIRE: Self = Self { payload_max: 0 };
}

/// A segment to send, without its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmit {
    /// SEG.SEQ.
    pub seq: SeqNum,
    /// SEG.ACK; present means that the ACK bit is set.
    pub ack: Option<SeqNum>,
    /// The other control bits.
    pub flags: Flags,
    /// SEG.WND for the header, already scaled.
    pub wnd: u16,
    /// SEG.UP; significant with URG.
    pub urg: u16,
    /// The options.
    pub options: Options,
    /// Where the payload starts, in stream bytes counted from SND.UNA: the first byte that the engine has not
    /// released yet is 0. SYN and FIN do not count.
    pub offset: u32,
    /// Payload bytes.
    pub len: u32,
    /// Cut the payload into pieces of this many bytes if `len` is larger and the frame goes to a wire.
    pub mss: u16,
    /// The IP header carries ECT(0) (RFC 3168 §6.1.1).
    pub ect: bool,
    /// These bytes were sent before; for traces and counters.
    pub retransmission: bool,
}
