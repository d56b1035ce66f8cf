//! Prefixes and longest-prefix match.
//!
//! A table is a sorted array cut into levels of equal prefix length. A lookup does one binary search per length that
//! occurs, longest first: a handful on a host with a few routes, about 25 searches of 20 steps with the Internet's whole
//! table. Nothing is allocated, and an array is cheap to build anew and to compare with the one before.
//!
//! ```text
//! keys    10.1.0.7 │ 10.1.0.0 10.2.0.0 │ 0.0.0.0
//! levels  /32 ──── │ /24 ───────────── │ /0 ────     each searched for (address & mask)
//! ```

use std::ops::Range;

use utcp_proto::wire::IpAddr;

/// Bits of the `::ffff:0:0/96` that an IPv4 address carries in front.
const V4_OFFSET: u8 = 96;

/// An IPv6 prefix, or an IPv4 one under `::ffff:0:0/96`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits, counted in `addr`'s own family; too many bits are the whole address.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        let len = len.saturating_add(if addr.is_v4() { V4_OFFSET } else { 0 }).min(128);
        Self { bits: bits_of(addr) & mask(len), len }
    }

    /// True if `addr` lies in it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        bits_of(addr) & mask(self.len) == self.bits
    }

    /// Bits of the prefix in its own family, where `v4` says which that is.
    pub fn len_in(len: u8, v4: bool) -> u8 {
        if v4 { len.saturating_sub(V4_OFFSET) } else { len }
    }

    /// Its length; an IPv4 prefix counts 96 more.
    pub fn len(&self) -> u8 {
        self.len
    }
}

fn bits_of(addr: IpAddr) -> u128 {
    u128::from_be_bytes(addr.0)
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// Values by prefix, of one address family. A prefix may have several.
#[derive(Debug, PartialEq)]
pub struct PrefixTable<T> {
    keys: Vec<u128>,
    values: Vec<T>,
    levels: Vec<(u8, Range<usize>)>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), levels: Vec::new() }
    }
}

impl<T> PrefixTable<T> {
    /// Values of the same prefix come out by `rank`, equal ones in the order given.
    pub fn new<R: Ord>(mut entries: Vec<(Prefix, T)>, rank: impl Fn(&T) -> R) -> Self {
        entries.sort_by(|(a, x), (b, y)| {
            b.len.cmp(&a.len).then(a.bits.cmp(&b.bits)).then_with(|| rank(x).cmp(&rank(y)))
        });
        let mut table = Self::default();
        for (at, (prefix, value)) in entries.into_iter().enumerate() {
            match table.levels.last_mut() {
                Some((len, range)) if *len == prefix.len => range.end = at + 1,
                _ => table.levels.push((prefix.len, at..at + 1)),
            }
            table.keys.push(prefix.bits);
            table.values.push(value);
        }
        table
    }

    /// The values of each prefix that holds `addr`, longest prefix first, with its length as [`Prefix::len`] has it.
    pub fn matches(&self, addr: IpAddr) -> impl Iterator<Item = (u8, &[T])> {
        let addr = bits_of(addr);
        self.levels.iter().filter_map(move |(len, level)| {
            let key = addr & mask(*len);
            let keys = &self.keys[level.clone()];
            let from = level.start + keys.partition_point(|&k| k < key);
            let count = self.keys[from..level.end].iter().take_while(|&&k| k == key).count();
            (count > 0).then(|| (*len, &self.values[from..from + count]))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        match text.parse().expect("an address") {
            net::IpAddr::V4(a) => IpAddr::v4(a.octets()),
            net::IpAddr::V6(a) => IpAddr::v6(a.octets()),
        }
    }

    #[track_caller]
    fn check(prefix: (&str, u8), inside: &[&str], outside: &[&str]) {
        let prefix = Prefix::new(ip(prefix.0), prefix.1);
        for addr in inside {
            assert!(prefix.contains(ip(addr)), "{addr} lies in {prefix:?}");
        }
        for addr in outside {
            assert!(!prefix.contains(ip(addr)), "{addr} lies outside {prefix:?}");
        }
    }

    #[test]
    fn containment() {
        check(("10.1.2.3", 8), &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.255.255.255", "a00::"]);
        check(("10.1.2.3", 32), &["10.1.2.3"], &["10.1.2.2"]);
        check(("10.1.2.3", 99), &["10.1.2.3"], &["10.1.2.2"]);
        check(("0.0.0.0", 0), &["1.2.3.4", "255.255.255.255"], &["::1", "fe80::1"]);
        check(("fe80::", 10), &["fe80::1", "febf::"], &["fec0::", "1.2.3.4"]);
        check(("::", 0), &["::", "ffff::"], &[]);
        check(("2001:db8::1", 128), &["2001:db8::1"], &["2001:db8::"]);
    }

    #[test]
    fn longest_match_comes_first_and_equal_prefixes_by_rank() {
        let entries = [("10.0.0.0", 8, 5), ("0.0.0.0", 0, 9), ("10.1.0.0", 16, 7), ("10.1.0.0", 16, 3)];
        let entries = entries.map(|(addr, len, value)| (Prefix::new(ip(addr), len), value));
        let table = PrefixTable::new(entries.to_vec(), |&value| value);
        let of = |addr| table.matches(ip(addr)).map(|(len, v)| (len - 96, v.to_vec())).collect::<Vec<_>>();
        assert_eq!(of("10.1.255.1"), [(16, vec![3, 7]), (8, vec![5]), (0, vec![9])]);
        assert_eq!(of("10.2.0.1"), [(8, vec![5]), (0, vec![9])]);
        assert_eq!(of("192.0.2.1"), [(0, vec![9])]);
    }

    #[test]
    fn agrees_with_a_linear_search() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // Few distinct bits, so that prefixes nest and collide.
        let mut addr =
            || IpAddr::v6((u128::from(next() & 0x3333) << 64 | u128::from(next() & 7)).to_be_bytes());
        let mut entries = Vec::new();
        for value in 0..400_u32 {
            let len = u8::try_from(value * 37 % 129).expect("at most 128");
            entries.push((Prefix::new(addr(), len), value));
        }
        let table = PrefixTable::new(entries.clone(), |&value| value);
        for _ in 0..2000 {
            let addr = addr();
            let mut expected: Vec<_> =
                entries.iter().filter(|(p, _)| p.contains(addr)).map(|(p, v)| (128 - p.len(), *v)).collect();
            expected.sort_unstable();
            let got: Vec<_> = table
                .matches(addr)
                .flat_map(|(len, values)| values.iter().map(move |&v| (128 - len, v)))
                .collect();
            assert_eq!(got, expected);
        }
    }
}
