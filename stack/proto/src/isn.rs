//! Initial sequence numbers (RFC 6528), timestamp offsets (RFC 7323 §5.4) and port offsets (RFC 6056 §3.3.3).

use crate::segment::{FastOpenCookie, FourTuple};
use crate::seq::SeqNum;
use crate::siphash::{self, Key};
use crate::time::Instant;
use crate::wire::IpAddr;

/// The secret of one stack. Draw it once from the system's entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secret(pub Key);

/// Keeps hashes for different purposes apart.
#[derive(Clone, Copy)]
enum Purpose {
    Isn = 1,
    Timestamp = 2,
    Port = 3,
    Cookie = 4,
    FastOpen = 5,
    Challenge = 6,
}

impl Secret {
    /// A secret from 16 random bytes.
    #[must_use]
    pub const fn new(k0: u64, k1: u64) -> Self {
        Self(Key([k0, k1]))
    }

    /// RFC 6528 §3: `ISN = M + F(four-tuple, secret)` with M a clock of 4 µs.
    #[must_use]
    pub fn isn(&self, tuple: &FourTuple, now: Instant) -> SeqNum {
        let clock = (now.as_nanos() >> 12) as u32;
        SeqNum::new(self.hash(tuple, Purpose::Isn, 0) as u32) + clock
    }

    /// The offset of the timestamp clock for a pair of hosts, so that it grows over successive connections
    /// between the two (RFC 6191 needs that) and tells nobody else the uptime.
    #[must_use]
    pub fn ts_offset(&self, tuple: &FourTuple) -> u32 {
        let mut pair = *tuple;
        pair.local.port = 0;
        pair.remote.port = 0;
        self.hash(&pair, Purpose::Timestamp, 0) as u32
    }

    /// Where the search for a free local port towards `tuple.remote` starts (RFC 6056 §3.3.3); reduce it modulo
    /// the size of the range and add a counter. `tuple.local.port` is ignored.
    #[must_use]
    pub fn port_offset(&self, tuple: &FourTuple) -> u32 {
        let mut without = *tuple;
        without.local.port = 0;
        self.hash(&without, Purpose::Port, 0) as u32
    }

    /// The Fast Open cookie for the peer of `tuple` (RFC 7413 §4.1.2): bound to the two addresses, not to the ports.
    #[must_use]
    pub fn fast_open_cookie(&self, tuple: &FourTuple) -> FastOpenCookie {
        let mut pair = *tuple;
        pair.local.port = 0;
        pair.remote.port = 0;
        let bytes = self.hash(&pair, Purpose::FastOpen, 0).to_be_bytes();
        FastOpenCookie::new(&bytes).unwrap_or(FastOpenCookie::REQUEST)
    }

    /// A number for each second that nobody else can tell.
    pub(crate) fn challenge_noise(&self, second: u64) -> u64 {
        siphash::hash(self.0, &[Purpose::Challenge as u64, second])
    }

    /// The keyed hash behind a SYN cookie.
    pub(crate) fn cookie(&self, tuple: &FourTuple, irs: SeqNum, extra: u64) -> u64 {
        self.hash(tuple, Purpose::Cookie, extra << 32 | u64::from(irs.raw()))
    }

    fn hash(&self, tuple: &FourTuple, purpose: Purpose, extra: u64) -> u64 {
        let ports = u64::from(tuple.local.port) | u64::from(tuple.remote.port) << 16 | (purpose as u64) << 32;
        let [a, b] = words(tuple.local.addr);
        let [c, d] = words(tuple.remote.addr);
        if tuple.local.addr.is_v4() && tuple.remote.addr.is_v4() {
            // What all have in common is left out: half of the work. The number of words tells the two apart.
            return siphash::hash(self.0, &[b << 32 | d & 0xffff_ffff, ports, extra]);
        }
        siphash::hash(self.0, &[a, b, c, d, ports, extra])
    }
}

/// An address as two words for hashing.
pub(crate) fn words(addr: IpAddr) -> [u64; 2] {
    let n = u128::from_be_bytes(addr.0);
    [(n >> 64) as u64, n as u64]
}
