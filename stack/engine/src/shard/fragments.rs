//! IP fragments of segments for us, put together again (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! TCP asks routers not to fragment, and few do; but a path whose sender does not ask must not break a connection. What is
//! put together becomes a frame like any other. Packets that stay incomplete are forgotten when they are old or when their
//! place is needed, so that a flood of first fragments costs a fixed amount of memory.

use utcp_proto::wire::{IpAddr, TCP, WireError, ethernet, ipv4, ipv6};
use utcp_proto::{Duration, Instant};

/// Packets that are being put together at a time, and their bytes.
const PACKETS_MAX: usize = 64;
const BYTES_MAX: usize = 1 << 20;
/// Fragments of one packet: the longest packet in pieces of 576 bytes.
const PIECES_MAX: usize = 128;
/// How long a packet may stay incomplete: Linux's `ipfrag_time`.
const LIFETIME: Duration = Duration::from_millis(30_000);
/// RFC 3168 §5: not capable of ECN, and congestion experienced.
const NOT_ECT: u8 = 0;
const CE: u8 = 3;

/// What names a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    ident: u32,
}

/// A header of either version.
#[derive(Debug, Clone, Copy)]
enum Header {
    V4(ipv4::Repr),
    V6(ipv6::Repr),
}

/// A packet of which some is missing.
#[derive(Debug)]
struct Partial {
    key: Key,
    begun: Instant,
    link: ethernet::Repr,
    /// That of the first fragment, once it came.
    header: Option<Header>,
    /// Fragments of it met congestion; and some came from a sender without ECN.
    congested: bool,
    not_capable: bool,
    /// It is not to be put together any more: what is still to come of it goes, too.
    spoilt: bool,
    /// Its pieces by offset, which don't overlap.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Where it ends, once the last fragment came.
    end: Option<usize>,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// The rest of its packet is missing.
    Kept,
    /// The whole packet as one frame.
    Whole(Vec<u8>),
    /// It is not one that may be (overlapping, too long), or there is no room: its packet is dropped.
    Dropped,
}

/// Packets that are being put together.
#[derive(Debug, Default)]
pub struct Fragments {
    partials: Vec<Partial>,
    bytes: usize,
}

impl Fragments {
    /// Takes a frame whose IP packet is a fragment.
    pub fn put(&mut self, now: Instant, frame: &[u8]) -> Put {
        self.forget(|partial| now.since(partial.begun) > LIFETIME);
        self.understand(now, frame).unwrap_or(Put::Dropped)
    }

    fn understand(&mut self, now: Instant, frame: &[u8]) -> Result<Put, WireError> {
        let (link, at) = ethernet::parse(frame)?;
        let packet = frame.get(at..).ok_or(WireError::Truncated)?;
        let (header, range, fragment, src, dst, ecn, protocol) = if link.ethertype == ethernet::IPV4 {
            let (ip, range) = ipv4::parse(packet)?;
            (Header::V4(ip), range, ip.fragment, ip.src, ip.dst, ip.ecn, ip.protocol)
        } else {
            let (ip, range) = ipv6::parse(packet)?;
            (Header::V6(ip), range, ip.fragment, ip.src, ip.dst, ip.ecn, ip.protocol)
        };
        let fragment = fragment.filter(|_| protocol == TCP).ok_or(WireError::Unsupported)?;
        let piece = packet.get(range).ok_or(WireError::Truncated)?;
        let key = Key { src, dst, ident: fragment.ident };
        let offset = fragment.offset as usize;
        let end = offset + piece.len();
        // All but the last carry whole units of eight bytes; no packet is longer than its length field can say.
        if piece.is_empty() || (fragment.more && piece.len() % 8 != 0) || end > usize::from(u16::MAX) - 40 {
            self.forget(|partial| partial.key == key);
            return Ok(Put::Dropped);
        }
        let index = self.find(now, key, &link);
        let Some(partial) = self.partials.get_mut(index).filter(|partial| !partial.spoilt) else {
            return Ok(Put::Dropped);
        };
        partial.congested |= ecn == CE;
        partial.not_capable |= ecn == NOT_ECT;
        if offset == 0 {
            partial.header = Some(header);
            partial.link = link;
        }
        let wrong_end = if fragment.more {
            partial.end.is_some_and(|known| end >= known)
        } else {
            let longest = partial.pieces.iter().map(|(at, bytes)| at + bytes.len()).max().unwrap_or(0);
            partial.end.replace(end).is_some_and(|known| known != end) || longest > end
        };
        let place = partial.pieces.partition_point(|(at, _)| *at < offset);
        let same = partial.pieces.get(place).is_some_and(|(at, bytes)| *at == offset && bytes == piece);
        if same {
            return Ok(Put::Kept);
        }
        // RFC 5722 §4: a packet with overlapping fragments is dropped as a whole, whoever made them, with those that are still to
        // come: or who sends one in between could have the rest put together with pieces of his own. RFC 3168 §5.3: where one says
        // that it met congestion and another that it can't say so, the mark means nothing, and is not to be lost either.
        let before = place.checked_sub(1).and_then(|before| partial.pieces.get(before));
        let overlaps = before.is_some_and(|(at, bytes)| at + bytes.len() > offset)
            || partial.pieces.get(place).is_some_and(|(at, _)| *at < end);
        let untold = partial.congested && partial.not_capable;
        if wrong_end || overlaps || untold || partial.pieces.len() >= PIECES_MAX {
            self.bytes -= partial.spoil();
            return Ok(Put::Dropped);
        }
        partial.pieces.insert(place, (offset, piece.to_vec()));
        self.bytes += piece.len();
        let whole = self.partials.get(index).and_then(Partial::whole);
        if whole.is_some() {
            self.forget(|partial| partial.key == key);
        }
        Ok(whole.map_or(Put::Kept, Put::Whole))
    }

    /// The packet's place; made if it is new, in place of the oldest if there is no room.
    fn find(&mut self, now: Instant, key: Key, link: &ethernet::Repr) -> usize {
        if let Some(index) = self.partials.iter().position(|partial| partial.key == key) {
            return index;
        }
        while self.partials.len() >= PACKETS_MAX || self.bytes >= BYTES_MAX {
            let oldest = self.partials.iter().map(|partial| (partial.begun, partial.key)).min_by_key(|o| o.0);
            let Some((_, oldest)) = oldest else { break };
            self.forget(|partial| partial.key == oldest);
        }
        self.partials.push(Partial {
            key,
            begun: now,
            link: *link,
            header: None,
            congested: false,
            not_capable: false,
            spoilt: false,
            pieces: Vec::new(),
            end: None,
        });
        self.partials.len() - 1
    }

    fn forget(&mut self, which: impl Fn(&Partial) -> bool) {
        let bytes = &mut self.bytes;
        self.partials.retain(|partial| {
            let goes = which(partial);
            if goes {
                *bytes -= partial.bytes();
            }
            !goes
        });
    }
}

impl Partial {
    fn bytes(&self) -> usize {
        self.pieces.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Its name stays, so that the rest of it is known; returns the bytes that go.
    fn spoil(&mut self) -> usize {
        let gone = self.bytes();
        self.pieces = Vec::new();
        self.spoilt = true;
        gone
    }

    /// The packet, if nothing of it is missing, in a frame.
    fn whole(&self) -> Option<Vec<u8>> {
        let (header, end) = (self.header?, self.end?);
        let mut payload = Vec::with_capacity(end);
        for (at, bytes) in &self.pieces {
            if *at != payload.len() {
                return None;
            }
            payload.extend_from_slice(bytes);
        }
        if payload.len() != end {
            return None;
        }
        let payload_len = u16::try_from(end).ok()?;
        let mut front = [0; 64];
        let link = ethernet::Repr { vlan: None, ..self.link };
        let at = ethernet::emit(&link, &mut front).ok()?;
        let room = front.get_mut(at..)?;
        let len = match header {
            // RFC 3168 §5.3: congestion that one fragment met, the packet met.
            Header::V4(ip) => {
                let ecn = if self.congested { CE } else { ip.ecn };
                ipv4::emit(&ipv4::Repr { fragment: None, payload_len, ecn, ..ip }, room).ok()?
            }
            Header::V6(ip) => {
                let ecn = if self.congested { CE } else { ip.ecn };
                ipv6::emit(&ipv6::Repr { fragment: None, payload_len, ecn, ..ip }, room).ok()?
            }
        };
        let mut frame = front.get(..at + len)?.to_vec();
        frame.extend_from_slice(&payload);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: ethernet::Repr =
        ethernet::Repr { dst: [2; 6], src: [4; 6], ethertype: ethernet::IPV4, vlan: None };

    /// The piece `from..to` of a packet whose byte at `n` is `n`, as an IPv4 fragment.
    fn v4(ident: u16, from: usize, to: usize, more: bool) -> Vec<u8> {
        let payload: Vec<u8> = (from..to).map(|n| n as u8).collect();
        let mut frame = vec![0; 34];
        ethernet::emit(&LINK, &mut frame).expect("room");
        let repr = ipv4::Repr {
            src: IpAddr::v4([10, 0, 0, 2]),
            dst: IpAddr::v4([10, 0, 0, 1]),
            protocol: TCP,
            ttl: 64,
            dscp: 0,
            ecn: 0,
            ident,
            dont_fragment: false,
            fragment: None,
            payload_len: payload.len() as u16,
        };
        ipv4::emit(&repr, &mut frame[14..]).expect("room");
        let word = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = utcp_proto::wire::checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(&payload);
        frame
    }

    fn check_whole(put: &Put, len: usize) {
        let Put::Whole(frame) = put else { panic!("{put:?} is not whole") };
        let (ip, range) = ipv4::parse(&frame[14..]).expect("a good header");
        assert_eq!((ip.fragment, range.len()), (None, len));
        assert!(frame[34..].iter().enumerate().all(|(n, byte)| *byte == n as u8));
    }

    #[test]
    fn every_order_makes_the_packet() {
        let pieces = [v4(7, 0, 40, true), v4(7, 40, 80, true), v4(7, 80, 99, false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut fragments = Fragments::default();
            let [first, second, third] = order.map(|n: usize| fragments.put(Instant::ZERO, &pieces[n]));
            assert_eq!((first, second), (Put::Kept, Put::Kept), "{order:?}");
            check_whole(&third, 99);
            assert_eq!((fragments.partials.len(), fragments.bytes), (0, 0));
        }
    }

    #[test]
    fn two_packets_at_a_time_and_a_piece_twice() {
        let mut fragments = Fragments::default();
        let now = Instant::ZERO;
        assert_eq!(fragments.put(now, &v4(1, 0, 40, true)), Put::Kept);
        assert_eq!(fragments.put(now, &v4(2, 0, 16, true)), Put::Kept);
        assert_eq!(fragments.put(now, &v4(1, 0, 40, true)), Put::Kept);
        check_whole(&fragments.put(now, &v4(2, 16, 20, false)), 20);
        check_whole(&fragments.put(now, &v4(1, 40, 41, false)), 41);
    }

    #[test]
    fn what_overlaps_or_has_two_ends_is_dropped() {
        for wrong in [v4(1, 8, 48, true), v4(1, 0, 48, true), v4(1, 16, 30, false), v4(1, 48, 56, true)] {
            let mut fragments = Fragments::default();
            let now = Instant::ZERO;
            assert_eq!(fragments.put(now, &v4(1, 0, 40, true)), Put::Kept);
            assert_eq!(fragments.put(now, &v4(1, 48, 50, false)), Put::Kept);
            assert_eq!(fragments.put(now, &wrong), Put::Dropped);
            assert_eq!((fragments.partials.len(), fragments.bytes), (1, 0));
        }
        let mut fragments = Fragments::default();
        assert_eq!(fragments.put(Instant::ZERO, &v4(1, 0, 41, true)), Put::Dropped, "an odd length");
        assert_eq!(fragments.put(Instant::ZERO, &v4(1, 65_520, 65_536, true)), Put::Dropped, "too long");
        assert_eq!(fragments.put(Instant::ZERO, &[0; 20]), Put::Dropped, "no packet");
    }

    /// RFC 5722 §4: "including those not yet received".
    #[test]
    fn what_is_still_to_come_of_a_spoilt_packet_is_dropped() {
        let mut fragments = Fragments::default();
        let now = Instant::ZERO;
        assert_eq!(fragments.put(now, &v4(1, 40, 80, true)), Put::Kept);
        assert_eq!(fragments.put(now, &v4(1, 48, 88, true)), Put::Dropped);
        for piece in [v4(1, 0, 40, true), v4(1, 40, 80, true), v4(1, 80, 99, false)] {
            assert_eq!(fragments.put(now, &piece), Put::Dropped);
        }
        assert_eq!(fragments.put(now, &v4(2, 0, 40, true)), Put::Kept, "another packet");
        check_whole(&fragments.put(now, &v4(2, 40, 50, false)), 50);
        // Its name may be another packet's by then.
        let later = now + LIFETIME + Duration::from_nanos(1);
        assert_eq!(fragments.put(later, &v4(1, 0, 40, true)), Put::Kept);
        check_whole(&fragments.put(later, &v4(1, 40, 50, false)), 50);
        assert_eq!((fragments.partials.len(), fragments.bytes), (0, 0));
    }

    /// The same fragment with another ECN field.
    fn marked(mut frame: Vec<u8>, ecn: u8) -> Vec<u8> {
        frame[15] = ecn;
        frame[24..26].fill(0);
        let sum = utcp_proto::wire::checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// RFC 3168 §5.3: a mark of one fragment is the packet's, but never that of a packet whose sender knows no ECN.
    #[test]
    fn a_mark_is_kept_or_takes_the_packet_with_it() {
        let ecn = |put: &Put| {
            let Put::Whole(frame) = put else { panic!("{put:?} is not whole") };
            ipv4::parse(&frame[14..]).expect("a good header").0.ecn
        };
        for (first, second, whole) in [(0, 0, 0), (2, 2, 2), (2, CE, CE), (CE, 2, CE), (1, CE, CE)] {
            let mut fragments = Fragments::default();
            assert_eq!(fragments.put(Instant::ZERO, &marked(v4(1, 0, 40, true), first)), Put::Kept);
            assert_eq!(ecn(&fragments.put(Instant::ZERO, &marked(v4(1, 40, 50, false), second))), whole);
        }
        for (first, second) in [(0, CE), (CE, 0)] {
            let mut fragments = Fragments::default();
            assert_eq!(fragments.put(Instant::ZERO, &marked(v4(1, 0, 40, true), first)), Put::Kept);
            assert_eq!(fragments.put(Instant::ZERO, &marked(v4(1, 40, 50, false), second)), Put::Dropped);
        }
    }

    #[test]
    fn a_flood_of_first_fragments_is_bounded_and_forgotten() {
        let mut fragments = Fragments::default();
        for ident in 0..1000 {
            let now = Instant::from_nanos(u64::from(ident));
            assert_eq!(fragments.put(now, &v4(ident, 0, 1400, true)), Put::Kept);
        }
        assert_eq!((fragments.partials.len(), fragments.bytes), (PACKETS_MAX, PACKETS_MAX * 1400));
        check_whole(&fragments.put(Instant::from_nanos(1000), &v4(999, 1400, 1500, false)), 1500);
        let late = Instant::from_nanos(40_000_000_000);
        assert_eq!(fragments.put(late, &v4(998, 1400, 1500, false)), Put::Kept, "its packet was forgotten");
        assert_eq!(fragments.partials.len(), 1);
    }
}
