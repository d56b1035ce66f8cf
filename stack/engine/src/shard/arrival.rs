//! When things come to sockets.
//!
//! A program hears of its sockets by bits, which have no order ([`super::notify`]); the kernel reports them in the order in which they
//! became ready, and programs rely on that. So each socket says when something last came to it while nothing waited
//! ([`utcp_abi::socket::Socket::news_at`]). One look at the clock serves a whole round of the shard: what comes in it is counted.
//!
//! What one program of this host sends to another comes when it was sent: in which order the shard finds the bits of several sockets
//! means nothing. That time is the program's word ([`utcp_abi::socket::Socket::asked_at`]); a liar puts its own bytes elsewhere among what
//! waits at the same epoll set.

use std::sync::atomic::Ordering;

use utcp_abi::Region;
use utcp_abi::socket::Socket;

use super::Shard;

/// So few commands are put in the order in which they were given: it decides what a reader who is awake sees first, and what goes first
/// over a device. A crowd would cost more than that is worth.
const SORTED: usize = 8;

/// The clock of a shard.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// When this round began, and what came in it since.
    now: u64,
    /// When the last one began: what was asked for before that was looked at in it.
    before: u64,
    /// Where a program of this host sent what comes: when.
    sent: Option<u64>,
}

impl Arrival {
    /// A round begins.
    pub(super) fn look(&mut self) {
        self.before = self.now;
        self.now = utcp_abi::ticks();
    }

    /// What follows was sent from `socket`.
    pub(super) fn begin_from(&mut self, socket: &Socket) {
        self.sent = Some(socket.asked_at.load(Ordering::Relaxed).max(self.before));
    }

    /// What follows was not.
    pub(super) fn end_from(&mut self) {
        self.sent = None;
    }

    /// Something comes to `socket`, at which nothing waits.
    #[inline]
    pub(super) fn stamp(&mut self, socket: &Socket) {
        let at = self.sent.unwrap_or_else(|| {
            self.now += 1;
            self.now
        });
        socket.news_at.store(at, Ordering::Relaxed);
    }
}

impl Shard {
    /// Whether bytes, or their end, wait for the program of flow `index`.
    pub(super) fn waits_at(&self, index: u32) -> bool {
        let Some(flow) = self.flows.get(index) else { return false };
        let in_slot = || flow.pair.and_then(|end| Some(self.slot_of(end)?.waiting(end.side) > 0));
        let in_stream = || {
            let client = self.clients.get(flow.client)?;
            Some(client.region.socket(flow.sock)?.rx_head.load(Ordering::Relaxed) != flow.rx.tail)
        };
        flow.rx_fin || in_stream() == Some(true) || in_slot() == Some(true)
    }
}

/// Puts the sockets of `region` that ask for a look in the order in which they did, if they are few.
pub(super) fn in_order(region: Region, socks: &mut [u32]) {
    let mut asked = [(0, 0); SORTED];
    let Some(asked) = asked.get_mut(..socks.len()).filter(|asked| asked.len() > 1) else { return };
    for (to, sock) in asked.iter_mut().zip(socks.iter()) {
        // Copied, as the program may change it while we compare.
        let at = region.socket(*sock).map_or(0, |socket| socket.asked_at.load(Ordering::Relaxed));
        *to = (at, *sock);
    }
    asked.sort_unstable();
    for (to, (_, sock)) in socks.iter_mut().zip(asked.iter()) {
        *to = *sock;
    }
}
