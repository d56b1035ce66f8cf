//! IP packets that are longer than a buffer, on their way to the kernel: in fragments, as a router would send them.
//!
//! The module makes a frame of every slot that is sent to a host ring. So what came in several slots goes there in frames
//! of one slot each, whose packets the kernel puts together again (RFC 791 §3.2, RFC 8200 §4.5): what a socket hears is what
//! was sent. Only IP has such a thing; anything else that is too long can't be cut.

const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// IPv6's extension headers, and the one of fragments.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const FRAGMENT_HEADER: usize = 8;
/// More extension headers, or VLAN tags, than these nobody has.
const EXTENSIONS_MAX: usize = 8;
const TAGS_MAX: usize = 2;
/// The longest packet that fragments can make.
const PACKET_MAX: usize = 65_535;

/// Bits of IPv4's word of flags and offset.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// A packet that is to be cut.
#[derive(Debug)]
pub(super) struct Cut<'f> {
    /// Link and IP headers, which every fragment repeats.
    head: &'f [u8],
    /// Where the IP header begins.
    link: usize,
    /// What is spread over the fragments.
    body: &'f [u8],
    /// The packet is a fragment itself: of what is in front of it, in units of eight bytes; more follows it.
    offset: u16,
    more: bool,
    ident: u32,
    version: Version,
    /// Bytes of the body in every fragment but the last.
    step: usize,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    V4,
    /// Where in the head the number of the next header stands, and which it is behind the fragment header.
    V6 {
        next_at: usize,
        next: u8,
    },
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl<'f> Cut<'f> {
    /// A plan for a frame, in frames of at most `room` bytes. `fresh` numbers packets that have no identification.
    pub(super) fn new(frame: &'f [u8], room: usize, fresh: &mut u32) -> Option<Self> {
        let mut link = 14;
        for _ in 0..TAGS_MAX {
            if VLAN.contains(&half(frame, link - 2)?) {
                link += 4;
            }
        }
        let packet = frame.get(link..)?;
        let mut cut = match half(frame, link - 2)? {
            IPV4 => Self::v4(frame, packet, link, fresh)?,
            IPV6 => Self::v6(frame, packet, link, fresh)?,
            _ => return None,
        };
        cut.step = room.checked_sub(cut.headers())? & !7;
        let end = usize::from(cut.offset) * 8 + cut.body.len();
        (cut.step > 0 && !cut.body.is_empty() && end <= PACKET_MAX).then_some(cut)
    }

    fn v4(frame: &'f [u8], packet: &'f [u8], link: usize, fresh: &mut u32) -> Option<Self> {
        let first = *packet.first()?;
        let (header, total) = (usize::from(first & 0x0f) * 4, usize::from(half(packet, 2)?));
        if first >> 4 != 4 || header < IPV4_HEADER {
            return None;
        }
        let body = packet.get(header..total)?;
        let word = half(packet, 6)?;
        let whole = word & (MORE | OFFSET) == 0;
        // RFC 6864 §4.1: where the packet may not be cut and was not, its identification means nothing, and may be that of
        // the next one as well.
        let ident =
            if whole && word & DONT_FRAGMENT != 0 { next(fresh) & 0xffff } else { half(packet, 4)?.into() };
        Some(Self {
            head: frame.get(..link + header)?,
            link,
            body,
            offset: word & OFFSET,
            more: word & MORE != 0,
            ident,
            version: Version::V4,
            step: 0,
        })
    }

    fn v6(frame: &'f [u8], packet: &'f [u8], link: usize, fresh: &mut u32) -> Option<Self> {
        let end = IPV6_HEADER + usize::from(half(packet, 4)?);
        let packet = packet.get(..end).filter(|packet| packet.len() > IPV6_HEADER && packet[0] >> 4 == 6)?;
        // RFC 8200 §4.5: repeated are the headers up to the one of routing, or the one of hops.
        let (mut at, mut next_at) = (IPV6_HEADER, 6);
        let mut repeated = (at, next_at);
        for _ in 0..EXTENSIONS_MAX {
            let kind = packet[next_at];
            if !matches!(kind, HOP_BY_HOP | ROUTING | DESTINATION) {
                break;
            }
            next_at = at;
            at += 8 + usize::from(*packet.get(at + 1)?) * 8;
            packet.get(at)?;
            if kind != DESTINATION {
                repeated = (at, next_at);
            }
        }
        let whole = |at: usize, next_at: usize, ident| {
            let version = Version::V6 { next_at, next: packet[next_at] };
            let (head, body) = (frame.get(..link + at)?, packet.get(at..)?);
            Some(Self { head, link, body, offset: 0, more: false, ident, version, step: 0 })
        };
        if packet[next_at] != FRAGMENT {
            return whole(repeated.0, repeated.1, next(fresh));
        }
        let word = half(packet, at + 2)?;
        let ident = u32::from(half(packet, at + 4)?) << 16 | u32::from(half(packet, at + 6)?);
        let version = Version::V6 { next_at, next: packet[at] };
        let body = packet.get(at + FRAGMENT_HEADER..)?;
        Some(Self { version, body, offset: word >> 3, more: word & 1 != 0, ..whole(at, next_at, ident)? })
    }

    /// Bytes in front of a fragment's part of the body.
    fn headers(&self) -> usize {
        self.head.len() + if matches!(self.version, Version::V4) { 0 } else { FRAGMENT_HEADER }
    }

    /// How many frames it becomes.
    pub(super) fn count(&self) -> usize {
        self.body.len().div_ceil(self.step)
    }

    /// Writes the frame with that number; its length. `None`: there is no such frame, or no room for it.
    pub(super) fn write(&self, number: usize, room: &mut [u8]) -> Option<usize> {
        let from = number * self.step;
        let part = self.body.get(from..(from + self.step).min(self.body.len()))?;
        let room = room.get_mut(..self.headers() + part.len())?;
        let (head, rest) = room.split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        let offset = self.offset + u16::try_from(from / 8).ok()?;
        let more = self.more || from + part.len() < self.body.len();
        let ip = head.get_mut(self.link..)?;
        match self.version {
            Version::V4 => {
                self.write_v4(ip, offset, more, part.len())?;
                rest.copy_from_slice(part);
            }
            Version::V6 { next_at, next } => {
                ip[next_at] = FRAGMENT;
                let len = u16::try_from(ip.len() - IPV6_HEADER + rest.len()).ok()?;
                ip[4..6].copy_from_slice(&len.to_be_bytes());
                let (fragment, body) = rest.split_first_chunk_mut::<FRAGMENT_HEADER>()?;
                let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
                let [i0, i1, i2, i3] = self.ident.to_be_bytes();
                *fragment = [next, 0, o0, o1, i0, i1, i2, i3];
                body.copy_from_slice(part);
            }
        }
        Some(room.len())
    }

    fn write_v4(&self, ip: &mut [u8], offset: u16, more: bool, part: usize) -> Option<()> {
        let word = half(ip, 6)? & !(MORE | OFFSET) | offset | if more { MORE } else { 0 };
        let total = u16::try_from(ip.len() + part).ok()?;
        for (at, value) in [(2, total), (4, u16::try_from(self.ident).ok()?), (6, word), (10, 0)] {
            ip.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
        }
        if offset != self.offset {
            leave_out_options(ip.get_mut(IPV4_HEADER..)?);
        }
        let words = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).ok()?;
        ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
        Some(())
    }
}

/// RFC 791 §3.1: an option without the bit "copied" stands in the first fragment alone. In the others it becomes "no operation".
fn leave_out_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const COPIED: u8 = 0x80;
    while let Some(&kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (END, _) => return,
            (NOTHING, _) => 1,
            (_, Some(&len)) => usize::from(len),
            (_, None) => return,
        };
        // One that makes no sense is the kernel's to complain of.
        if len == 0 || len > options.len() {
            return;
        }
        let (option, rest) = options.split_at_mut(len);
        if kind & COPIED == 0 {
            option.fill(NOTHING);
        }
        options = rest;
    }
}

fn next(fresh: &mut u32) -> u32 {
    *fresh = fresh.wrapping_add(1);
    *fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn body(len: usize) -> Vec<u8> {
        (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn v4(word: u16, options: &[u8], len: usize) -> Vec<u8> {
        let header = 20 + options.len();
        let mut ip = vec![0; 20];
        ip[0] = 0x40 | u8::try_from(header / 4).unwrap();
        ip[2..4].copy_from_slice(&u16::try_from(header + len).unwrap().to_be_bytes());
        ip[4..6].copy_from_slice(&[7, 7]);
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        (ip[8], ip[9]) = (64, 17);
        [&LINK[..], &[8, 0], &ip, options, &body(len)].concat()
    }

    fn v6(headers: &[u8], first: u8, len: usize) -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[6], ip[7]) = (0x60, first, 64);
        ip[4..6].copy_from_slice(&u16::try_from(headers.len() + len).unwrap().to_be_bytes());
        [&LINK[..], &[0x86, 0xdd], &ip, headers, &body(len)].concat()
    }

    fn pieces(frame: &[u8], room: usize) -> Vec<Vec<u8>> {
        let cut = Cut::new(frame, room, &mut 40).expect("it can be cut");
        let write = |n| {
            let mut piece = vec![0xee; room];
            let len = cut.write(n, &mut piece).expect("it fits");
            piece.truncate(len);
            piece
        };
        assert_eq!(cut.write(cut.count(), &mut vec![0; room]), None);
        (0..cut.count()).map(write).collect()
    }

    #[test]
    fn an_ipv4_packet_becomes_fragments() {
        let pieces = pieces(&v4(0, &[], 5000), 2048);
        // 2048 less 34 of headers, in units of eight.
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [34 + 2008, 34 + 2008, 34 + 984]);
        let mut whole = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let ip = &piece[14..34];
            assert_eq!(usize::from(half(ip, 2).unwrap()), piece.len() - 14);
            assert_eq!(half(ip, 4), Some(0x0707), "its own identification");
            let more = if n < 2 { MORE } else { 0 };
            assert_eq!(half(ip, 6), Some(more | u16::try_from(whole.len() / 8).unwrap()));
            let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "a good checksum");
            assert_eq!((&piece[..14], &ip[8..10]), (&v4(0, &[], 0)[..14], &[64, 17][..]));
            whole.extend_from_slice(&piece[34..]);
        }
        assert_eq!(whole, body(5000));
    }

    #[test]
    fn a_fragment_is_cut_further() {
        for (word, last) in [(MORE | 185, MORE), (185, 0)] {
            let pieces = pieces(&v4(word, &[], 3000), 1514);
            let words: Vec<_> = pieces.iter().map(|piece| half(piece, 20).unwrap()).collect();
            assert_eq!(words, [MORE | 185, MORE | (185 + 185), last | (185 + 370)]);
        }
    }

    #[test]
    fn packets_that_may_not_be_cut_get_numbers_of_their_own() {
        let piece = &pieces(&v4(DONT_FRAGMENT, &[], 3000), 1514)[1];
        assert_eq!((half(piece, 18), half(piece, 20)), (Some(41), Some(DONT_FRAGMENT | MORE | 185)));
    }

    #[test]
    fn options_that_are_not_copied_stand_in_the_first() {
        // Record route is not copied, the security option is; then the end, and padding.
        let options = [&[7, 7, 4, 1, 2, 3, 4][..], &[0x82, 4, 9, 9], &[0]].concat();
        let pieces = pieces(&v4(0, &options, 3000), 1514);
        assert_eq!(&pieces[0][34..46], options);
        assert_eq!(&pieces[1][34..46], [&[1; 7][..], &[0x82, 4, 9, 9], &[0]].concat());
        // Those that make no sense are left alone.
        for odd in [[7, 0, 0, 0], [7, 9, 0, 0], [1, 1, 1, 7]] {
            let mut options = odd;
            leave_out_options(&mut options);
            assert_eq!(options, odd);
        }
    }

    #[test]
    fn an_ipv6_packet_becomes_fragments() {
        let hops = [&[ROUTING, 0, 1, 4, 0, 0, 0, 0][..], &[DESTINATION, 0, 0, 0, 0, 0, 0, 0]].concat();
        let options = [17, 0, 1, 4, 0, 0, 0, 0];
        let frame = v6(&[&hops[..], &options].concat(), HOP_BY_HOP, 3000);
        let pieces = pieces(&frame, 1514);
        let mut whole = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            assert_eq!(usize::from(half(piece, 18).unwrap()), piece.len() - 54);
            assert_eq!(&piece[54..62], &hops[..8], "hops are repeated");
            assert_eq!((piece[20], piece[62]), (HOP_BY_HOP, FRAGMENT), "and so is routing");
            let more = u16::from(n + 1 < pieces.len());
            let [o0, o1] = (u16::try_from(whole.len()).unwrap() | more).to_be_bytes();
            assert_eq!(piece[70..78], [DESTINATION, 0, o0, o1, 0, 0, 0, 41]);
            whole.extend_from_slice(&piece[78..]);
        }
        assert_eq!(whole, [&options[..], &body(3000)].concat());
    }

    #[test]
    fn an_ipv6_fragment_is_cut_further() {
        let header = [17, 0, 0x05, 0xa9, 1, 2, 3, 4];
        let pieces = pieces(&v6(&header, FRAGMENT, 2000), 1514);
        let at = [0x05a8, 0x05a8 + 1448_u16].map(|offset| (offset | 1).to_be_bytes());
        for (piece, at) in pieces.iter().zip(at) {
            assert_eq!(piece[20], FRAGMENT);
            assert_eq!(piece[54..62], [17, 0, at[0], at[1], 1, 2, 3, 4]);
        }
        assert_eq!([&pieces[0][62..], &pieces[1][62..]].concat(), body(2000));
    }

    #[test]
    fn tags_stay_and_padding_goes() {
        let mut frame = v4(0, &[], 3000);
        frame.extend([0xaa; 7]);
        let tags = [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6];
        frame.splice(12..12, tags);
        let pieces = pieces(&frame, 1514);
        assert!(pieces.iter().all(|piece| piece[12..20] == tags));
        assert_eq!(pieces.iter().map(|piece| piece.len() - 42).sum::<usize>(), 3000);
    }

    #[test]
    fn what_is_no_packet_is_not_cut() {
        let mut fresh = 0;
        let mut refused = |frame: &[u8], room: usize| Cut::new(frame, room, &mut fresh).is_none();
        let mut arp = v4(0, &[], 3000);
        arp[13] = 6;
        assert!(refused(&arp, 1514), "no IP");
        assert!(refused(&v4(0, &[], 3000), 40), "no room for eight bytes");
        assert!(refused(&v4(0, &[], 0), 1514), "nothing in it");
        assert!(refused(&v4(0x1fff, &[], 3000), 1514), "longer than a packet can be");
        let three_tags = [[0x81, 0, 0, 5]; 3].concat();
        let mut tagged = v4(0, &[], 3000);
        tagged.splice(12..12, three_tags);
        assert!(refused(&tagged, 1514));
        for frame in
            [v4(0, &[7, 7, 4, 1], 3000), v6(&[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0], 0, 3000)]
        {
            for len in 0..frame.len() {
                assert!(refused(&frame[..len], 1514), "the first {len} bytes");
            }
            // Whatever stands there, nothing breaks, and no piece is longer than its room.
            for at in 12..80 {
                for value in [0, 1, 6, 43, 44, 0x45, 0x4f, 0x60, 0xff] {
                    let mut odd = frame.clone();
                    odd[at] = value;
                    let Some(cut) = Cut::new(&odd, 1514, &mut 0) else { continue };
                    assert!((0..cut.count()).all(|n| cut.write(n, &mut [0; 1514]).is_some()));
                }
            }
        }
    }
}
