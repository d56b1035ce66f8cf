//! Fast Open at listeners (RFC 7413): a SYN that brings the cookie we once gave its sender makes a connection at once,
//! with the data that it carries; the program can answer before the handshake is complete.
//!
//! `net.ipv4.tcp_fastopen` and the keys of the kernel's cookies count as on the kernel, so that a cookie that one of them
//! gave is good for the other; a listener may have keys of its own (TCP_FASTOPEN_KEY). Of two keys the second is the one
//! before: its cookies still count, and whoever brings one gets a new one. What an attacker with a valid cookie can make us
//! hold is bounded by the listener's TCP_FASTOPEN, the connections whose handshake is not complete.

use std::sync::atomic::Ordering;

use utcp_abi::info;
use utcp_abi::region::Region;
use utcp_abi::socket::{option, status};
use utcp_proto::{Config, FastOpenCookie, FourTuple, HalfOpen, Segment, Tcb, siphash};

use super::Shard;
use super::flow::Path;
use super::segments::Payload;

/// Bits of `net.ipv4.tcp_fastopen`.
pub(super) const CLIENT: u32 = 1;
pub(super) const CLIENT_NO_COOKIE: u32 = 4;
const SERVER: u32 = 2;
const COOKIE_NOT_REQUIRED: u32 = 0x200;
const EVERY_LISTENER: u32 = 0x400;

/// What the administrator says of Fast Open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastOpenSettings {
    /// `net.ipv4.tcp_fastopen`.
    pub flags: u32,
    /// `net.ipv4.tcp_fastopen_key`; none if the kernel has not made one, or does not tell.
    pub keys: FastOpenKeys,
}

/// What cookies are made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastOpenKeys {
    /// Those that are given out.
    pub current: Option<siphash::Key>,
    /// Those that were given out before the key was changed.
    pub before: Option<siphash::Key>,
}

impl FastOpenKeys {
    /// No key.
    pub const NONE: Self = Self { current: None, before: None };

    /// Those that a program has set on a socket of its own.
    fn of(region: Region, sock: u32) -> Option<Self> {
        let count = region.socket(sock)?.options.fastopen_keys.load(Ordering::Acquire);
        let words = region.info(sock)?.words.get(info::FAST_OPEN_KEYS..)?;
        let key = |at: usize| {
            let word = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
            Some(siphash::Key([word(at)?, word(at + 1)?]))
        };
        match count {
            0 => None,
            1 => Some(Self { current: key(0), before: None }),
            _ => Some(Self { current: key(0), before: key(2) }),
        }
    }

    /// The cookie under `key` for the peer of `tuple`, as Linux makes it.
    fn cookie(key: siphash::Key, tuple: &FourTuple) -> Option<FastOpenCookie> {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        let (from, to): ([u8; 16], [u8; 16]) = (tuple.remote.addr.0, tuple.local.addr.0);
        let hash = if tuple.remote.addr.is_v4() {
            let mut pair = [0; 8];
            pair[..4].copy_from_slice(&from[12..]);
            pair[4..].copy_from_slice(&to[12..]);
            siphash::hash(key, &[word(&pair)])
        } else {
            let half = |ip: &[u8; 16], at: usize| word(&ip[at..at + 8]);
            siphash::hash(key, &[half(&from, 0), half(&from, 8), half(&to, 0), half(&to, 8)])
        };
        FastOpenCookie::new(&hash.to_le_bytes())
    }
}

/// What to do with a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FastOpen {
    /// As with any SYN.
    No,
    /// The same, and give it this cookie.
    Offer(FastOpenCookie),
    /// A connection at once; and a new cookie, if the one that came is an old one.
    Accept(Option<FastOpenCookie>),
}

impl Shard {
    /// RFC 7413 §4.2.2 for a SYN to a listener.
    pub(super) fn fast_open_verdict(&self, listener: u32, tuple: &FourTuple, seg: &Segment) -> FastOpen {
        let settings = &self.config.tcp.fast_open;
        let asked = seg.options.fast_open;
        if settings.flags & SERVER == 0 || asked.is_none() && seg.len == 0 {
            return FastOpen::No;
        }
        let Some(listener) = self.listeners.get(listener) else { return FastOpen::No };
        let own = self.clients.get(listener.client).and_then(|client| client.region.socket(listener.sock));
        let most = match own.map_or(0, |socket| socket.options.fastopen.load(Ordering::Relaxed)) {
            0 if settings.flags & EVERY_LISTENER != 0 => listener.backlog,
            set => set,
        };
        if listener.early >= most {
            return FastOpen::No;
        }
        let trusts = own.is_some_and(|socket| socket.options.has(option::FASTOPEN_NO_COOKIE));
        if settings.flags & COOKIE_NOT_REQUIRED != 0 || trusts {
            return FastOpen::Accept(None);
        }
        let Some(asked) = asked else { return FastOpen::No };
        let region = self.clients.get(listener.client).map(|client| client.region);
        let keys = region.and_then(|region| FastOpenKeys::of(region, listener.sock)).unwrap_or(settings.keys);
        let under = |key: Option<siphash::Key>| key.and_then(|key| FastOpenKeys::cookie(key, tuple));
        let cookie = under(keys.current).unwrap_or_else(|| self.config.secret.fast_open_cookie(tuple));
        let is_asked = |cookie: FastOpenCookie| cookie.as_slice() == asked.as_slice();
        if is_asked(cookie) {
            return FastOpen::Accept(None);
        }
        // Who asks by the experimental option understands no other.
        let answer = cookie.experimental(asked.is_experimental());
        match under(keys.before) {
            Some(old) if is_asked(old) => FastOpen::Accept(Some(answer)),
            _ => FastOpen::Offer(answer),
        }
    }

    /// Makes the connection of a SYN with a valid cookie and puts it into the accept queue; false: there is no room, the
    /// SYN is one as any other.
    pub(super) fn open_fast(
        &mut self,
        (listener_index, config): (u32, &Config),
        half: &HalfOpen,
        seg: &Segment,
        payload: Payload<'_>,
        path: Path,
    ) -> bool {
        let now = self.now;
        let Some(listener) = self.listeners.get(listener_index) else { return false };
        let (client_index, listener_sock, slot) = (listener.client, listener.sock, listener.slot);
        let Some(client) = self.clients.get_mut(client_index) else { return false };
        let Some(sock) = client.claim_slot() else {
            self.counters.out_of_sockets += 1;
            return false;
        };
        let region = client.region;
        let (Some(socket), Some(parent)) = (region.socket(sock), region.socket(listener_sock)) else {
            return false;
        };
        socket.options.copy_from(&parent.options);
        let (tcb, actions) = Tcb::fast_open(half, config, now, seg);
        let Some(flow) = self.add_flow(client_index, sock, tcb, half.tuple, path) else {
            let end = self.clients.get_mut(client_index).and_then(|client| client.free_slot(sock));
            self.release(end);
            return false;
        };
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.waiting = Some(listener_index);
            flow.early = Some(listener_index);
        }
        if matches!(path, Path::Device { .. }) {
            self.came_in.push(flow);
        }
        if let Some(listener) = self.listeners.get_mut(listener_index) {
            listener.early += 1;
        }
        self.counters.fast_opens += 1;
        self.join(flow, path);
        socket.status.store(status::CONNECTED, Ordering::Release);
        self.act(flow, &actions, payload);
        self.queue_accepted(listener_index, client_index, slot, sock);
        self.list_transmit(flow);
        true
    }

    /// The handshake of a connection that was opened fast is complete, or will never be.
    pub(super) fn no_longer_early(&mut self, listener: u32) {
        if let Some(listener) = self.listeners.get_mut(listener) {
            listener.early = listener.early.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use utcp_proto::Endpoint;
    use utcp_proto::wire::IpAddr;

    /// What the kernel answers under this key (seen with packetdrill's addresses).
    #[test]
    fn cookies_are_those_of_the_kernel() {
        let word = |half: [u32; 2]| u64::from(half[0].swap_bytes()) | u64::from(half[1].swap_bytes()) << 32;
        let key = siphash::Key([word([0xa1a1_a1a1, 0xb2b2_b2b2]), word([0xc3c3_c3c3, 0xd4d4_d4d4])]);
        let end = |addr| Endpoint { addr, port: 80 };
        let cookie = |local, remote| {
            let tuple = FourTuple { local: end(local), remote: end(remote) };
            FastOpenKeys::cookie(key, &tuple).expect("a cookie").as_slice().to_vec()
        };
        let v4 = cookie(IpAddr::v4([192, 168, 0, 1]), IpAddr::v4([192, 0, 2, 1]));
        assert_eq!(v4, [0x30, 0x21, 0xb9, 0xd8, 0x89, 0x01, 0x7e, 0xeb]);
        let v6 = |text: &str| IpAddr::v6(text.parse::<std::net::Ipv6Addr>().expect("an address").octets());
        let v6 = cookie(v6("fd3d:a0b:17d6::1"), v6("fd3d:fa7b:d17d::1"));
        assert_eq!(v6, [0xc1, 0xd1, 0xe9, 0x74, 0x2a, 0x47, 0xa9, 0xbc]);
    }
}
