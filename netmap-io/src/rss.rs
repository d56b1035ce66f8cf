//! Receive-side scaling: which of a NIC's queues a frame comes to.
//!
//! ```text
//!  addresses, ports ─► Toeplitz hash with the NIC's key ─► indirection table ─► queue
//! ```
//!
//! The sender of a frame does not choose its queue, but we choose the port that replies come to: a connection takes
//! one whose replies the NIC brings to the shard that connects. Where that can't be known (a veth's queue is the sender's
//! choice, some NICs keep their key for themselves), shards hand frames to each other.
//!
//! Nobody sets a symmetric key: replies' queue is computed from whichever there is, and a connection that arrives is served by the shard of
//! the queue it came to. It would win nothing, and every other program's frames on that NIC would change queues.

use std::io;
use std::net::Ipv6Addr;

use crate::sys;

/// The hash functions of ethtool: Toeplitz alone is known to the bit.
const HASH_TOEPLITZ: u8 = 1;
/// What a NIC may do to addresses and ports first, so that both directions of a connection have one hash.
const SYMMETRIC_XOR: u8 = 1 << 0;
const SYMMETRIC_OR_XOR: u8 = 1 << 1;
const NO_TRANSFORM: u8 = 0xff;
/// Fields of a packet in ethtool's words: both addresses, both ports.
const HASH_ADDRESSES: u64 = 0b11 << 4;
const HASH_PORTS: u64 = 0b11 << 6;
const TCP_V4: u32 = 1;
const TCP_V6: u32 = 5;

/// How one device spreads what it receives.
#[derive(Clone, Debug)]
pub struct Rss {
    key: Vec<u8>,
    /// Queue by the hash's low bits.
    indirection: Vec<u32>,
    transform: u8,
    /// Whether ports are hashed in IPv4 and in IPv6.
    ports: [bool; 2],
}

/// The hash of Microsoft's RSS: of every bit of `input` that is 1, the key's 32 bits from there on, all XORed. `None`: the key
/// is too short.
#[must_use]
pub fn toeplitz(key: &[u8], input: &[u8]) -> Option<u32> {
    if key.len() < input.len() + 4 {
        return None;
    }
    let (first, rest) = key.split_first_chunk::<4>()?;
    let mut window = u32::from_be_bytes(*first);
    let mut hash = 0;
    for (byte, next) in input.iter().zip(rest) {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    Some(hash)
}

impl Rss {
    /// A Toeplitz hash over addresses and ports, as NICs have it when nobody has changed it.
    #[must_use]
    pub fn new(key: Vec<u8>, indirection: Vec<u32>) -> Self {
        Self { key, indirection, transform: 0, ports: [true; 2] }
    }

    /// What the driver of `interface` says; `None`: it has no hash that we could know.
    ///
    /// # Errors
    /// There is no such interface, or the driver does not tell.
    pub fn of(interface: &str) -> io::Result<Option<Self>> {
        let told = sys::rss(interface)?;
        let known = matches!(told.transform, 0 | SYMMETRIC_XOR | SYMMETRIC_OR_XOR | NO_TRANSFORM);
        if told.function & HASH_TOEPLITZ == 0 || !known || told.key.is_empty() || told.indirection.is_empty()
        {
            return Ok(None);
        }
        let transform = if told.transform == NO_TRANSFORM { 0 } else { told.transform };
        let mut ports = [true; 2];
        for (hashed, kind) in ports.iter_mut().zip([TCP_V4, TCP_V6]) {
            // Who doesn't tell hashes TCP by its ports, as the standard wants.
            let fields = sys::rss_fields(interface, kind).unwrap_or(HASH_ADDRESSES | HASH_PORTS);
            *hashed = match fields & (HASH_ADDRESSES | HASH_PORTS) {
                HASH_ADDRESSES => false,
                all if all == HASH_ADDRESSES | HASH_PORTS => true,
                _ => return Ok(None),
            };
        }
        Ok(Some(Self { key: told.key, indirection: told.indirection, transform, ports }))
    }

    /// The queue of a TCP segment from `from` to `to` (address as [`mapped`](crate::mapped), port); `None`: unknown.
    #[must_use]
    pub fn queue(&self, from: (Ipv6Addr, u16), to: (Ipv6Addr, u16)) -> Option<u32> {
        let mut input = [0; 36];
        let (src, dst) = (from.0.to_ipv4_mapped(), to.0.to_ipv4_mapped());
        let (len, hashes_ports) = match (src, dst) {
            (Some(src), Some(dst)) => {
                input[..4].copy_from_slice(&src.octets());
                input[4..8].copy_from_slice(&dst.octets());
                (8, self.ports[0])
            }
            (None, None) => {
                input[..16].copy_from_slice(&from.0.octets());
                input[16..32].copy_from_slice(&to.0.octets());
                (32, self.ports[1])
            }
            _ => return None,
        };
        fold(&mut input[..len], self.transform);
        let len = if hashes_ports {
            let ports = &mut input[len..len + 4];
            ports[..2].copy_from_slice(&from.1.to_be_bytes());
            ports[2..].copy_from_slice(&to.1.to_be_bytes());
            fold(ports, self.transform);
            len + 4
        } else {
            len
        };
        let hash = toeplitz(&self.key, input.get(..len)?)?;
        let place = (hash as usize).checked_rem(self.indirection.len())?;
        self.indirection.get(place).copied()
    }

    /// Both directions of a connection have the same hash: by the NIC's own doing, or because the key repeats every two bytes.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        let repeats = self.key.len() >= 4 && self.key.chunks(2).all(|pair| self.key.starts_with(pair));
        self.transform != 0 || repeats
    }

    /// For people: `Toeplitz over 8 queues, symmetric`.
    #[must_use]
    pub fn describe(&self) -> String {
        let queues = self.indirection.iter().max().map_or(0, |last| last + 1);
        let what =
            if self.ports == [true; 2] { "addresses and ports" } else { "addresses, not always ports" };
        let symmetric = if self.is_symmetric() { ", symmetric" } else { "" };
        format!("Toeplitz of {what} over {queues} queue(s){symmetric}")
    }
}

/// What the NIC does to a pair of fields first.
fn fold(pair: &mut [u8], transform: u8) {
    if transform == 0 {
        return;
    }
    let (src, dst) = pair.split_at_mut(pair.len() / 2);
    for (src, dst) in src.iter_mut().zip(dst) {
        let (or, xor) = (*src | *dst, *src ^ *dst);
        (*src, *dst) = if transform == SYMMETRIC_XOR { (xor, xor) } else { (or, xor) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    /// The key of Microsoft's "Verifying the RSS Hash Calculation".
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// Destination and source of a packet, and what the suite says: hash of the addresses, and with the TCP ports.
    #[track_caller]
    fn check(to: (&str, u16), from: (&str, u16), addresses: u32, with_ports: u32) {
        let [to, from] = [to, from].map(|(addr, port)| (mapped(addr.parse().unwrap()), port));
        // A table of all numbers up to a prime tells a hash from its neighbours.
        const SIZE: u32 = 65_521;
        let mut rss = Rss::new(KEY.to_vec(), (0..SIZE).collect());
        assert_eq!(rss.queue(from, to), Some(with_ports % SIZE), "with ports");
        rss.ports = [false; 2];
        assert_eq!(rss.queue(from, to), Some(addresses % SIZE), "addresses alone");
    }

    #[test]
    fn the_published_ipv4_vectors() {
        check(("161.142.100.80", 1766), ("66.9.149.187", 2794), 0x323e_8fc2, 0x51cc_c178);
        check(("65.69.140.83", 4739), ("199.92.111.2", 14230), 0xd718_262a, 0xc626_b0ea);
        check(("12.22.207.184", 38024), ("24.19.198.95", 12898), 0xd2d0_a5de, 0x5c2b_394a);
        check(("209.142.163.6", 2217), ("38.27.205.30", 48228), 0x8298_9176, 0xafc7_327f);
        check(("202.188.127.2", 1303), ("153.39.163.191", 44251), 0x5d18_09c5, 0x10e8_28a2);
    }

    #[test]
    fn the_published_ipv6_vectors() {
        check(("3ffe:2501:200:3::1", 1766), ("3ffe:2501:200:1fff::7", 2794), 0x2cc1_8cd5, 0x4020_7d3d);
        check(("ff02::1", 4739), ("3ffe:501:8::260:97ff:fe40:efab", 14230), 0x0f0c_461c, 0xdde5_1bbf);
        check(
            ("fe80::200:f8ff:fe21:67cf", 38024),
            ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
            0x4b61_e985,
            0x02d1_feef,
        );
    }

    #[test]
    fn a_hash_that_is_symmetric_is_so_both_ways() {
        let [a, b] = [("10.0.0.1", 80), ("10.3.2.1", 61_017)]
            .map(|(addr, port): (&str, u16)| (mapped(addr.parse().unwrap()), port));
        let one_way = Rss::new(KEY.to_vec(), (0..1024).collect());
        assert!(!one_way.is_symmetric() && one_way.queue(a, b) != one_way.queue(b, a));
        let by_key = Rss::new([0x6d, 0x5a].repeat(26), (0..1024).collect());
        let by_xor = Rss { transform: SYMMETRIC_XOR, ..one_way.clone() };
        let by_or_xor = Rss { transform: SYMMETRIC_OR_XOR, ..one_way };
        for rss in [by_key, by_xor, by_or_xor] {
            assert!(rss.is_symmetric(), "{rss:?}");
            assert_eq!(rss.queue(a, b), rss.queue(b, a), "{rss:?}");
            assert!(rss.queue(a, b).is_some());
        }
    }

    #[test]
    fn what_can_not_be_known_is_not_said() {
        let (a, b) = ((mapped([10, 0, 0, 1].into()), 80), (mapped([10, 0, 0, 2].into()), 90));
        assert_eq!(Rss::new(KEY[..15].to_vec(), vec![0; 128]).queue(a, b), None, "a short key");
        assert_eq!(Rss::new(KEY.to_vec(), Vec::new()).queue(a, b), None, "no table");
        let v6 = ("fd00::1".parse().unwrap(), 80);
        assert_eq!(Rss::new(KEY.to_vec(), vec![0; 128]).queue(a, v6), None, "two families");
        assert_eq!(toeplitz(&KEY, &[0; 36]), Some(0));
        assert_eq!(toeplitz(&KEY, &[0; 37]), None);
    }

    /// A veth and a TAP device choose queues by other means, and their drivers say so.
    #[test]
    fn a_virtual_device_has_no_hash() {
        crate::testing::skip_without!(namespaces);
        let net = crate::testing::Network::new(2, 1500);
        let told = net.a.run(|| Rss::of("nio-a").map(|rss| rss.is_some()));
        assert!(!matches!(told, Ok(true)), "{told:?}");
    }
}
