//! Whose a frame is, told by a few bytes: nearly all are TCP or UDP without options, tags and fragments.

use super::places::Key;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Bytes of a frame at most that [`leaving`](crate::frame::leaving) looks at: link header with a tag, the longest IPv4 header, ports.
pub(super) const HEAD: usize = 96;

/// The local end of a TCP or UDP packet without options, tags and fragments; `sent`: by us. `None`: [`arriving`](crate::frame::arriving)
/// and [`leaving`](crate::frame::leaving) know more. What it says is what they say.
#[inline]
pub(super) fn plain(frame: &[u8], sent: bool) -> Option<Key> {
    let v4: &[u8; 38] = frame.first_chunk()?;
    if !sent && v4[0] & 1 != 0 {
        return None;
    }
    let port =
        |at: usize, bytes: &[u8]| bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    match [v4[12], v4[13]] {
        [0x08, 0x00] => {
            let fragment = u16::from_be_bytes([v4[20], v4[21]]) & 0x3fff != 0;
            if v4[14] != 0x45 || fragment || !matches!(v4[23], TCP | UDP) {
                return None;
            }
            let (addr, end) = if sent { (26, 34) } else { (30, 36) };
            let four: [u8; 4] = v4[addr..addr + 4].try_into().ok()?;
            Some(Key::v4(u32::from_be_bytes(four), port(end, v4)?, v4[23]))
        }
        [0x86, 0xdd] => {
            let v6: &[u8; 58] = frame.first_chunk()?;
            if !matches!(v6[20], TCP | UDP) {
                return None;
            }
            let (addr, end) = if sent { (22, 54) } else { (38, 56) };
            let sixteen: [u8; 16] = v6[addr..addr + 16].try_into().ok()?;
            Some(Key::v6(u128::from_be_bytes(sixteen), port(end, v6)?, v6[20]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Arriving, arriving, leaving};

    /// Bytes at random, with the words that matter set to what matters.
    #[test]
    fn what_is_plain_is_what_the_long_way_finds() {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 33
        };
        let mut plain_ones = 0;
        for _ in 0..20_000 {
            let mut frame: Vec<u8> = (0..next() % 120).map(|_| next() as u8).collect();
            let mut set = |at: usize, bytes: &[u8]| {
                if let Some(room) = frame.get_mut(at..at + bytes.len()) {
                    room.copy_from_slice(bytes);
                }
            };
            let v4 = next() % 2 == 0;
            set(0, &[if next() % 8 == 0 { 1 } else { 2 }]);
            set(12, if v4 { &[8, 0] } else { &[0x86, 0xdd] });
            set(14, &[if next() % 8 == 0 { 0x46 } else { 0x45 }]);
            set(20, if next() % 4 == 0 { &[0x20, 1] } else { &[0x40, 0] });
            set(if v4 { 23 } else { 20 }, &[[TCP, UDP, 1, 44][next() as usize % 4]]);
            for sent in [false, true] {
                let Some(key) = plain(&frame, sent) else { continue };
                plain_ones += 1;
                let flow = match arriving(&frame) {
                    _ if sent => leaving(&frame),
                    Some(Arriving::Flow(flow)) => Some(flow),
                    _ => None,
                };
                assert_eq!(flow.map(|flow| Key::from(flow.local)), Some(key), "{frame:?}");
            }
            // A judgement needs no more than the head.
            let head = frame.get(..HEAD).unwrap_or(&frame);
            assert_eq!(leaving(head), leaving(&frame));
        }
        assert!(plain_ones > 5000, "{plain_ones}");
    }
}
