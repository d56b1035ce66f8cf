//! The Internet checksum (RFC 1071): a one's-complement sum that can be fed piece by piece.
//!
//! The sum is kept in the machine's byte order over 64 bits and folded at the end: one's-complement addition does
//! not care about byte order as long as all words agree (RFC 1071 §2(B)).

use super::IpAddr;

/// How a TCP checksum is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    /// The field must make the sum come out right.
    Full,
    /// As `Full`, or the field holds the folded pseudo-header sum, not complemented: what a sender on the same
    /// machine leaves for hardware that its segment never met. Only for ports that are local (veth, TAP).
    AllowPartial,
    /// The port has verified it.
    Trust,
}

/// A running one's-complement sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    acc: u64,
    /// An odd number of bytes has been added: the next byte is the low half of a word.
    odd: bool,
}

impl Sum {
    /// The empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self { acc: 0, odd: false }
    }

    /// Adds `bytes`, which follow directly on what was added before.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.put(sum_slice(bytes), bytes.len());
    }

    /// Copies `from` to `to`, which has its length, and adds it: one pass, and no look at what was just written, which would have to be
    /// waited for where a store crosses a cache line.
    #[inline]
    pub fn copy(&mut self, from: &[u8], to: &mut [u8]) {
        let mut piece = 0u128;
        let (words, rest) = from.as_chunks::<8>();
        let (places, room) = to.as_chunks_mut::<8>();
        for (word, place) in words.iter().zip(places) {
            let word = *word;
            piece += u128::from(u64::from_ne_bytes(word));
            *place = word;
        }
        room.copy_from_slice(rest);
        let mut last = [0; 8];
        if let Some(bytes) = last.get_mut(..rest.len()) {
            bytes.copy_from_slice(rest);
        }
        piece += u128::from(u64::from_ne_bytes(last));
        self.put(add_carry(piece as u64, (piece >> 64) as u64), from.len());
    }

    /// Adds the sum of a piece of so many bytes.
    #[inline]
    fn put(&mut self, mut piece: u64, len: usize) {
        if self.odd {
            // RFC 1071 §2(B): bytes at an odd position are added with their halves swapped.
            piece = u64::from(fold(piece).swap_bytes());
        }
        self.acc = add_carry(self.acc, piece);
        self.odd ^= !len.is_multiple_of(2);
    }

    /// Adds a 16-bit word given in host order. Only at an even position.
    #[inline]
    pub fn add_u16(&mut self, word: u16) {
        debug_assert!(!self.odd, "a word at an odd position");
        self.acc = add_carry(self.acc, u64::from(word.to_be()));
    }

    /// Adds eight bytes given as a number in host order. Only at an even position.
    #[inline]
    pub fn add_u64(&mut self, word: u64) {
        debug_assert!(!self.odd, "a word at an odd position");
        self.acc = add_carry(self.acc, word.to_be());
    }

    /// Adds what `other` sums, which begins at an even position.
    #[inline]
    pub fn join(&mut self, other: Self) {
        debug_assert!(!self.odd, "a sum at an odd position");
        self.acc = add_carry(self.acc, other.acc);
        self.odd = other.odd;
    }

    /// The sum of the TCP or ICMPv6 pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
    #[inline]
    #[must_use]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> Self {
        let mut sum = Self::new();
        // The prefix ::ffff:0:0/96 of a mapped address would add 0xffff, which is zero in this arithmetic, but an
        // all-zero sum and an all-ones sum are told apart in one place: the partial checksum. So leave it out.
        if src.is_v4() {
            let word = |addr: IpAddr| u64::from(u32::from_ne_bytes(addr.v4_bytes()));
            sum.acc = word(src) + word(dst);
        } else {
            sum.add(&src.0);
            sum.add(&dst.0);
        }
        sum.add_u16((len >> 16) as u16);
        sum.add_u16(len as u16);
        sum.add_u16(u16::from(protocol));
        sum
    }

    /// The folded sum, not complemented, in host order. A packet with a right checksum folds to 0xffff.
    #[inline]
    #[must_use]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.acc))
    }

    /// The checksum for a header field, in host order.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The checksum of an IPv4 header without options, in host order.
#[inline]
#[must_use]
pub fn of_header(header: &[u8; 20]) -> u16 {
    let &[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = header;
    let first = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let second = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    let third = u32::from_ne_bytes([q, r, s, t]);
    let acc = add_carry(add_carry(first, second), u64::from(third));
    !u16::from_be(fold(acc))
}

/// The checksum of one slice, in host order.
#[must_use]
pub fn of(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

#[inline]
const fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u64
}

#[inline]
const fn fold(acc: u64) -> u16 {
    // A half added to the other: the upper one of the sum has the carry that came out of the lower one.
    let acc = (acc.wrapping_add(acc.rotate_left(32)) >> 32) as u32;
    (acc.wrapping_add(acc.rotate_left(16)) >> 16) as u16
}

#[inline]
fn sum_slice(bytes: &[u8]) -> u64 {
    // The carries gather in the upper half, which is cheaper than to add each where it belongs: two instructions for eight
    // bytes. (Eight lanes of 32 bits are no faster where the compiler makes vector code of them, and far slower where it does not.)
    let mut whole = 0u128;
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        // Four words that the compiler sees: no loop.
        for word in block.as_chunks::<8>().0 {
            whole += u128::from(u64::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        whole += u128::from(u64::from_ne_bytes(*word));
    }
    let mut acc = add_carry(whole as u64, (whole >> 64) as u64);
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        acc = add_carry(acc, u64::from(u32::from_ne_bytes(*word)));
    }
    add_carry(acc, word_of(rest))
}

/// Up to four bytes as they lie in memory, the missing ones zero.
#[inline]
fn word_of(bytes: &[u8]) -> u64 {
    u64::from(match *bytes {
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 §1 in its plainest form.
    fn plain(bytes: &[u8]) -> u16 {
        let mut acc = 0u32;
        for pair in bytes.chunks(2) {
            acc += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
        while acc > 0xffff {
            acc = (acc >> 16) + (acc & 0xffff);
        }
        acc as u16
    }

    #[test]
    fn agrees_with_the_plain_sum_at_every_length_and_cut() {
        let bytes: [u8; 331] = core::array::from_fn(|i| (i * 37 + 11) as u8 | (i as u8 & 1) << 7);
        for len in 0..bytes.len() {
            for cut in [0, 1, 2, 3, 7, 32, 33].into_iter().filter(|&c| c <= len) {
                let mut sum = Sum::new();
                sum.add(&bytes[..cut]);
                sum.add(&bytes[cut..len]);
                assert_eq!(sum.folded(), plain(&bytes[..len]), "len {len} cut {cut}");
                let (mut copied, mut sum) = ([0; 331], Sum::new());
                sum.copy(&bytes[..cut], &mut copied[..cut]);
                sum.copy(&bytes[cut..len], &mut copied[cut..len]);
                assert_eq!(sum.folded(), plain(&bytes[..len]), "copied, len {len} cut {cut}");
                assert_eq!(copied[..len], bytes[..len]);
            }
        }
    }

    #[test]
    fn a_header_is_as_good_as_a_slice() {
        let mut header: [u8; 20] = core::array::from_fn(|i| (i * 89 + 7) as u8);
        for byte in 0..20 {
            header[byte] = 0xff;
            assert_eq!(of_header(&header), of(&header));
        }
    }

    #[test]
    fn numbers_are_as_good_as_their_bytes() {
        for word in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX, 0xffff_0000_ffff_0001] {
            let bytes = [word.to_be_bytes(), (!word).to_be_bytes()].concat();
            let (mut sum, mut rest) = (Sum::new(), Sum::new());
            sum.add_u64(word);
            rest.add(&bytes[8..]);
            sum.join(rest);
            assert_eq!(sum.finish(), of(&bytes));
        }
    }

    #[test]
    fn rfc_1071_example() {
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    #[test]
    fn survives_a_long_run_of_ones() {
        let mut sum = Sum::new();
        for _ in 0..70_000 {
            sum.add(&[0xff; 31]);
        }
        assert_eq!(sum.folded(), 0xffff);
    }
}
