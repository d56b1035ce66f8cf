//! Fast Open for programs that connect (RFC 7413 §4.1.1, §4.1.3 and §4.2.1): cookies that servers gave, and servers to
//! which SYNs with data get lost.
//!
//! ```text
//!   connect, no cookie known    SYN asks for one ──► SYN-ACK brings it: learned, with the peer's MSS
//!   connect, cookie known       flow without a SYN, DEFERRED ──► the program's first bytes, START ──► SYN with them
//! ```
//!
//! A program says where it wants this: TCP_FASTOPEN_CONNECT, or MSG_FASTOPEN. Each shard keeps what it has learned and tells
//! the others. What is kept is bounded: only a SYN-ACK that acknowledges a SYN of ours adds an entry, and the oldest one goes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use utcp_abi::socket::{Options, Socket, intent, option, status};
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Actions, Config, Duration, Events, FastOpenCookie, FourTuple, Instant, Segment, SeqNum, SocketError, Tcb,
    UserCall,
};

use super::fast_open::{CLIENT, CLIENT_NO_COOKIE};
use super::{Shard, ToShard};

/// Servers of which one shard remembers something.
const KNOWN_MAX: usize = 1024;
/// Linux's MAX_TCP_OPTION_SPACE: left free in a SYN with data, for options that routers add.
const OPTION_SPACE: u16 = 40;
/// After the second loss in a row a server gets plain SYNs for so long, and twice as long after each further one (RFC 7413
/// §4.1.3.1 leaves the time open; Linux up to 4.11).
const PAUSE: Duration = Duration::from_secs(60);
/// Losses beyond these make a pause no longer.
const LOSSES_MAX: u8 = 10;

/// Whom something is known of: our address and theirs.
type Pair = (IpAddr, IpAddr);

/// What is known of a server.
#[derive(Debug, Clone, Copy)]
struct Known {
    cookie: Option<FastOpenCookie>,
    /// It gave no cookie for a request in Fast Open's own option, and in the experimental one.
    deaf: [bool; 2],
    mss: u16,
    losses: u8,
    lost_at: Instant,
}

impl Known {
    /// RFC 7413 §4.1.3.1: data in SYNs to it got lost, and not long ago.
    fn is_paused(&self, now: Instant) -> bool {
        self.losses > 1 && now - self.lost_at < PAUSE.times(1 << (self.losses - 2).min(LOSSES_MAX))
    }
}

/// What an answer (or none) told of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lesson {
    pair: Pair,
    cookie: Option<FastOpenCookie>,
    /// It gave no cookie for this request.
    refused: Option<FastOpenCookie>,
    mss: Option<u16>,
    lost: bool,
}

/// What is known of servers.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    known: HashMap<Pair, Known>,
    order: VecDeque<Pair>,
}

impl Cookies {
    fn learn(&mut self, now: Instant, lesson: &Lesson) {
        if !self.known.contains_key(&lesson.pair) {
            if self.known.len() >= KNOWN_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(lesson.pair);
        }
        let none = Known { cookie: None, deaf: [false; 2], mss: u16::MAX, losses: 0, lost_at: Instant::ZERO };
        let known = self.known.entry(lesson.pair).or_insert(none);
        known.cookie = lesson.cookie.or(known.cookie);
        if let Some(request) = lesson.refused {
            known.deaf[usize::from(request.is_experimental())] = true;
        }
        known.mss = lesson.mss.unwrap_or(known.mss);
        if lesson.lost {
            known.losses = known.losses.saturating_add(1);
            known.lost_at = now;
        } else {
            known.losses = 0;
        }
    }
}

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// With a SYN as ever.
    Plain,
    /// With one that asks for a cookie, by this empty one.
    Asking(FastOpenCookie),
    /// With one that may bring so many bytes.
    WithData(Option<FastOpenCookie>, u16),
}

impl Shard {
    fn opening(&self, tuple: &FourTuple, config: &Config, options: &Options) -> Opening {
        let flags = self.config.tcp.fast_open.flags;
        if flags & CLIENT == 0 {
            return Opening::Plain;
        }
        let known = self.cookies.known.get(&(tuple.local.addr, tuple.remote.addr));
        if known.is_some_and(|known| known.is_paused(self.now)) {
            return Opening::Plain;
        }
        let mss = known.map_or(u16::MAX, |known| known.mss).min(config.mss);
        let room = mss.saturating_sub(OPTION_SPACE);
        if flags & CLIENT_NO_COOKIE != 0 || options.has(option::FASTOPEN_NO_COOKIE) {
            return Opening::WithData(None, room);
        }
        match known.and_then(|known| known.cookie) {
            Some(cookie) => Opening::WithData(Some(cookie), room),
            // As by Linux: whoever gives none for the option of today is asked once by the experimental one.
            None => {
                let old = known.is_some_and(|known| known.deaf == [true, false]);
                Opening::Asking(FastOpenCookie::REQUEST.experimental(old))
            }
        }
    }

    /// The TCB of a connection that its program wants opened fast; whether its SYN waits for the program's first bytes, and
    /// for how many.
    pub(super) fn open_as_client(
        &self,
        config: &Config,
        tuple: FourTuple,
        iss: SeqNum,
        options: &Options,
    ) -> (Tcb, Option<u16>) {
        let now = self.now;
        match self.opening(&tuple, config, options) {
            Opening::Plain => (Tcb::connect(config, now, tuple, iss), None),
            Opening::Asking(request) => (Tcb::connect_asking(config, now, tuple, iss, request), None),
            Opening::WithData(cookie, room) => {
                (Tcb::connect_fast(config, now, tuple, iss, cookie, room), Some(room))
            }
        }
    }

    /// The flow's SYN waits: tells the program where to put what it shall bring.
    pub(super) fn defer(&mut self, index: u32, socket: &Socket, room: u16) {
        let Some(flow) = self.flows.get(index) else { return };
        socket.tx_buf.store(0, Ordering::Relaxed);
        socket.early_buf.store(flow.tx.buf().0, Ordering::Relaxed);
        socket.early_room.store(u32::from(room), Ordering::Relaxed);
        socket.status.fetch_or(status::DEFERRED, Ordering::AcqRel);
        // Linux: a socket in this state is writable.
        self.news(index, libc::EPOLLOUT | libc::EPOLLWRNORM);
    }

    /// The program has put in what the SYN shall bring; the stream's index has been taken over.
    pub(super) fn start(&mut self, index: u32, socket: &Socket, wants: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let waits = socket.status.load(Ordering::Relaxed) & status::DEFERRED != 0;
        if !waits || flow.done & intent::START != 0 {
            return;
        }
        flow.done |= intent::START;
        socket.status.fetch_and(!status::DEFERRED, Ordering::AcqRel);
        self.counters.fast_connects += 1;
        self.user(index, UserCall::Start { more_waits: wants & intent::START_MORE != 0 });
        if wants & intent::CLOSE != 0 {
            // A `close` behind it in the same look: on Linux the SYN was out by then.
            let _ = self.transmit_flow(index);
        }
    }

    /// The SYN-ACK of a connection that was opened fast, or asked for a cookie.
    pub(super) fn learn_from_answer(&mut self, index: u32, seg: &Segment, actions: &Actions) {
        let Some(flow) = self.flows.get(index).filter(|flow| flow.tcb.is_fast_client()) else { return };
        let cookie = seg.options.fast_open.filter(|cookie| !cookie.as_slice().is_empty());
        let cookie = cookie.filter(|_| flow.tcb.has_asked_for_cookie());
        // Only the SYN without the data got through, as it seems.
        let lost = flow.tcb.fast_open_was_lost() && cookie.is_none() && actions.released == 0;
        let pair = (flow.tuple.local.addr, flow.tuple.remote.addr);
        let refused = flow.tcb.heard_request().filter(|_| cookie.is_none());
        self.teach(Lesson { pair, cookie, refused, mss: seg.options.mss, lost });
    }

    /// A connection ended before it was one.
    pub(super) fn learn_from_silence(&mut self, index: u32, actions: &Actions) {
        let timed_out = actions.events.any(Events::CLOSED) && actions.error == Some(SocketError::TimedOut);
        let Some(flow) = self.flows.get(index).filter(|flow| flow.tcb.fast_open_was_lost()) else { return };
        if timed_out {
            let pair = (flow.tuple.local.addr, flow.tuple.remote.addr);
            self.teach(Lesson { pair, cookie: None, refused: None, mss: None, lost: true });
        }
    }

    fn teach(&mut self, lesson: Lesson) {
        self.on_lesson(lesson, self.config.count.saturating_sub(1));
    }

    /// What a shard has learned; so many others don't know it yet.
    pub(super) fn on_lesson(&mut self, lesson: Lesson, left: u32) {
        self.cookies.learn(self.now, &lesson);
        if let Some(next) = self.next_shard.filter(|_| left > 0).and_then(|next| self.inbox_of(next)) {
            next.send(ToShard::Lesson(lesson, left - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lesson(n: u32, cookie: Option<&[u8]>, lost: bool) -> Lesson {
        let [a, b, c, d] = n.to_be_bytes();
        Lesson {
            pair: (IpAddr::v4([192, 0, 2, 1]), IpAddr::v4([a, b, c, d])),
            cookie: cookie.and_then(FastOpenCookie::new),
            refused: None,
            mss: None,
            lost,
        }
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut cookies = Cookies::default();
        for n in 0..3 * KNOWN_MAX as u32 {
            cookies.learn(Instant::ZERO, &lesson(n, Some(&[1; 8]), false));
            assert!(cookies.known.len() <= KNOWN_MAX && cookies.order.len() == cookies.known.len());
        }
        assert!(!cookies.known.contains_key(&lesson(0, None, false).pair));
        assert!(cookies.known.contains_key(&lesson(3 * KNOWN_MAX as u32 - 1, None, false).pair));
    }

    /// RFC 7413 §4.1.3.1: a second loss in a row pauses, the more the longer; success ends it, and the cookie stays.
    #[test]
    fn losses_pause() {
        let mut cookies = Cookies::default();
        let at = Instant::from_millis(1_000);
        let paused = |cookies: &Cookies, seconds: u64| {
            let known = cookies.known.values().next().expect("one");
            known.is_paused(at + Duration::from_secs(seconds))
        };
        cookies.learn(at, &lesson(1, Some(&[1; 8]), false));
        cookies.learn(at, &lesson(1, None, true));
        assert!(!paused(&cookies, 0), "one may be chance");
        cookies.learn(at, &lesson(1, None, true));
        assert!(paused(&cookies, 59) && !paused(&cookies, 60));
        cookies.learn(at, &lesson(1, None, true));
        assert!(paused(&cookies, 119) && !paused(&cookies, 120));
        cookies.learn(at, &lesson(1, None, false));
        assert!(!paused(&cookies, 0));
        assert!(cookies.known.values().all(|known| known.cookie == FastOpenCookie::new(&[1; 8])));
    }
}
