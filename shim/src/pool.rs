//! Descriptors in stock: one end of a socket pair each, whose other end the engine holds.
//!
//! They come in batches over the control channel, `socket` and `accept` take the lowest, `close` puts
//! them back: in the steady state a connection costs no system call. Each has the token by which
//! the engine knows its end.
//!
//! What waits here takes numbers that the program may want for something else. So it is never more than a small
//! part of RLIMIT_NOFILE, and a call that meets the limit gets these numbers ([`give_numbers_back`]).
//!
//! A thread that uses a number which another has just closed can meet what waits here, with a `shutdown` for instance: then the
//! engine sees an end, and gives its own up. A socket on such a descriptor would never be told of as closed. So each says up to which
//! count of ends that the engine gave up ([`Header::stands_gone`](utcp_abi::region::Header::stands_gone)) it was found whole:
//!
//! ```text
//!   program   token into the slot ── count still the same? ── no: ask the kernel, take another one if it is spoiled
//!   engine    count ── who has the token? ── nobody: it is in stock, or about to be taken by somebody who sees the count
//! ```

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, fence};

use utcp_abi::message::{Kind, Message};
use utcp_abi::socket::Socket;

use crate::attach::{self, Attachment};
use crate::channel::Quiet;
use crate::fd_table::{self, Entry};
use crate::sys::{self, Errno, Sys};

/// Descriptors that may wait at once.
const LEN: usize = 128;
/// Asked for at first: most programs have one or two sockets.
const FIRST: u64 = 4;
/// Asked for when those did not last.
const MORE: u64 = 32;
/// Bits of a place that hold a descriptor + 1; those up to the token are the low bits of [`Stand::seen`].
const FD_BITS: u32 = 21;
const SEEN_MASK: u32 = (1 << (32 - FD_BITS)) - 1;

/// The part of RLIMIT_NOFILE that may wait.
const PART: u64 = 16;
/// Descriptors that are closed rather than kept after the program has met its limit.
const SHORT: u32 = 1024;

/// Descriptors that may wait under this process's limit; 0: the limit was not looked at yet.
static ROOM: AtomicUsize = AtomicUsize::new(0);
/// RLIMIT_NOFILE; 0: it was not looked at yet.
static LIMIT: AtomicU64 = AtomicU64::new(0);
/// So many of the next descriptors are closed.
static SCARCE: AtomicU32 = AtomicU32::new(0);

/// The limit of descriptors is (or will be) another one.
pub fn forget_limit() {
    ROOM.store(0, Relaxed);
    LIMIT.store(0, Relaxed);
}

/// How many descriptors the process may have.
pub fn limit() -> u64 {
    match LIMIT.load(Relaxed) {
        0 => {
            let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
            let asked = sys::call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, sys::at_mut(&mut limit));
            let now = asked.map_or(u64::MAX, |_| limit.rlim_cur);
            LIMIT.store(now, Relaxed);
            now
        }
        limit => limit,
    }
}

/// Descriptors that may wait at once.
fn room() -> usize {
    match ROOM.load(Relaxed) {
        0 => {
            let part = match limit() {
                u64::MAX => FIRST,
                limit => limit / PART,
            };
            let room = (part.max(1) as usize).min(LEN);
            ROOM.store(room, Relaxed);
            room
        }
        room => room,
    }
}

/// The process has no number left (EMFILE): closes what waits. False: nothing did.
#[cold]
pub fn give_numbers_back() -> bool {
    let mut closed = 0;
    attach::each(|attachment| closed += attachment.pool().drain());
    SCARCE.store(SHORT, Relaxed);
    closed > 0
}

/// A stock of descriptors.
#[derive(Debug)]
pub struct Pool {
    /// Token in the upper half, then what was seen, and the descriptor + 1; 0 = empty.
    places: [AtomicU64; LEN],
    refills: AtomicU64,
}

/// A descriptor and its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The number.
    pub fd: c_int,
    /// The engine's name for its end.
    pub token: u32,
    /// How many ends the engine had given up when this one was found whole, modulo 2048.
    pub seen: u32,
}

fn pack(stand: Stand) -> u64 {
    let fd = u64::from((stand.fd as u32).wrapping_add(1));
    u64::from(stand.token) << 32 | u64::from(stand.seen & SEEN_MASK) << FD_BITS | fd
}

fn unpack(word: u64) -> Option<Stand> {
    let fd = (word as u32 & ((1 << FD_BITS) - 1)).checked_sub(1)?;
    Some(Stand { fd: fd as c_int, token: (word >> 32) as u32, seen: word as u32 >> FD_BITS })
}

/// How many ends the engine has given up, if `stand` is whole.
fn whole_at(att: &'static Attachment, stand: Stand) -> Option<u32> {
    let gone = att.region().header().stands_gone.load(Acquire);
    let known = (gone ^ stand.seen) & SEEN_MASK == 0;
    (known || !sys::has_news(stand.fd)).then_some(gone)
}

/// Why a slot got no descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsettled {
    /// The descriptor was spoiled, and the engine has taken the slot back already.
    Lost,
    /// There was no other. The slot is the caller's.
    Bare(Errno),
}

/// Closes a number that is ours alone. Meanwhile nobody takes it for a file of the kernel's.
pub fn throw_away(fd: c_int) {
    fd_table::set(fd, Entry::CHANGING);
    let _ = sys::close(fd);
    // By now it may be another's, who has said so.
    fd_table::replace(fd, Entry::CHANGING, Entry::KERNEL);
}

impl Pool {
    /// An empty one.
    pub const fn new() -> Self {
        Self { places: [const { AtomicU64::new(0) }; LEN], refills: AtomicU64::new(0) }
    }

    /// Takes the lowest number, without asking the engine for more.
    fn try_take(&self) -> Option<Stand> {
        loop {
            let lowest = self
                .places
                .iter()
                .filter_map(|place| {
                    let word = place.load(Relaxed);
                    unpack(word).map(|stand| (stand.fd, word, place))
                })
                .min_by_key(|(fd, ..)| *fd);
            let (_, word, place) = lowest?;
            if place.compare_exchange(word, 0, AcqRel, Relaxed).is_ok() {
                return unpack(word);
            }
        }
    }

    /// Asks for so many that they will do, as nobody can ask any more.
    pub fn stock_up(&self, att: &'static Attachment) {
        let _ = self.refill(att, MORE);
    }

    /// Takes a descriptor; its entry in the table is still that of a waiting one.
    pub fn take(&self, att: &'static Attachment) -> Sys<Stand> {
        if let Some(stand) = self.try_take() {
            return Ok(stand);
        }
        let first = self.refills.fetch_add(1, Relaxed) == 0;
        self.refill(att, if first { FIRST } else { MORE })?;
        // None came, though the engine had some to give: this process may have no more.
        self.try_take().ok_or(Errno(libc::EMFILE))
    }

    /// The token of `stand` has just been put into the slot `shared`: makes sure that it is whole, or takes another.
    pub fn settle(
        &self,
        att: &'static Attachment,
        shared: &Socket,
        mut stand: Stand,
    ) -> Result<Stand, Unsettled> {
        loop {
            // Our token before the look at the count; the engine counts before it looks for the token.
            fence(SeqCst);
            if let Some(gone) = whole_at(att, stand) {
                shared.stand_seen.store(gone, Relaxed);
                return Ok(stand);
            }
            // The engine may have found it and taken the slot as closed: one of us has it.
            let ours = shared.token.compare_exchange(stand.token, 0, AcqRel, Relaxed).is_ok();
            throw_away(stand.fd);
            if !ours {
                return Err(Unsettled::Lost);
            }
            stand = self.take(att).map_err(Unsettled::Bare)?;
            shared.token.store(stand.token, Release);
        }
    }

    /// Puts a descriptor back, or closes it: there is no room, the program needs the number more, or it is spoiled.
    pub fn give(&self, att: &'static Attachment, stand: Stand) {
        let one_less = |left: u32| left.checked_sub(1);
        let wanted = SCARCE.load(Relaxed) != 0 && SCARCE.fetch_update(Relaxed, Relaxed, one_less).is_ok();
        let put = !wanted && whole_at(att, stand).is_some_and(|seen| self.put(Stand { seen, ..stand }));
        if !put {
            throw_away(stand.fd);
        }
    }

    fn put(&self, stand: Stand) -> bool {
        fd_table::set(stand.fd, Entry::new(fd_table::Kind::Pool, 0, 0, 0));
        self.places.iter().take(room()).any(|place| {
            place.load(Relaxed) == 0 && place.compare_exchange(0, pack(stand), AcqRel, Relaxed).is_ok()
        })
    }

    /// Takes `fd` out, if it waits here: the program is about to put something else at its number.
    pub fn remove(&self, fd: c_int) -> bool {
        self.places.iter().any(|place| {
            let word = place.load(Relaxed);
            unpack(word).is_some_and(|stand| stand.fd == fd)
                && place.compare_exchange(word, 0, AcqRel, Relaxed).is_ok()
        })
    }

    /// Closes every descriptor: in a forked child, or when the engine is gone. How many there were.
    pub fn drain(&self) -> u32 {
        let mut closed = 0;
        for place in &self.places {
            if let Some(stand) = unpack(place.swap(0, AcqRel)) {
                throw_away(stand.fd);
                closed += 1;
            }
        }
        closed
    }

    fn refill(&self, att: &'static Attachment, wanted: u64) -> Sys<()> {
        // A handler that jumps away would leave numbers that nobody knows of.
        let _quiet = Quiet::new();
        let mut message = Message::new(Kind::Pool);
        message.a = if SCARCE.load(Relaxed) != 0 { 1 } else { wanted.min(room() as u64) };
        // Before the engine makes them: whole at that count.
        let seen = att.region().header().stands_gone.load(Acquire);
        let (reply, fds) = att.channel().request(&message, None)?;
        if reply.error != 0 {
            fds.close();
            return Err(Errno(reply.error));
        }
        for (fd, token) in fds.as_slice().iter().zip(reply.tokens) {
            let Some(fd) = off_the_standard_streams(*fd) else { continue };
            if !fd_table::covers(fd) || !self.put(Stand { fd, token, seen }) {
                throw_away(fd);
            }
        }
        Ok(())
    }
}

/// Numbers below 3 mean standard input, output and error to whoever opens one by accident.
fn off_the_standard_streams(fd: c_int) -> Option<c_int> {
    if fd >= 3 {
        return Some(fd);
    }
    let moved = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3).ok();
    let _ = sys::close(fd);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_first_and_bounded() {
        let pool = Pool::new();
        ROOM.store(LEN, Relaxed);
        for fd in [900_009, 900_003, 900_007] {
            assert!(pool.put(Stand { fd, token: fd as u32 * 2, seen: 3 }));
        }
        assert_eq!(pool.try_take(), Some(Stand { fd: 900_003, token: 1_800_006, seen: 3 }));
        assert!(pool.remove(900_009) && !pool.remove(900_009));
        assert_eq!(pool.try_take().map(|stand| stand.fd), Some(900_007));
        assert_eq!(pool.try_take(), None);
        for fd in 0..LEN as c_int {
            assert!(pool.put(Stand { fd: 900_100 + fd, token: 1, seen: 0 }));
        }
        assert!(!pool.put(Stand { fd: 900_200, token: 1, seen: 0 }));
    }

    #[test]
    fn places_keep_their_parts() {
        for (fd, token, seen) in
            [(0, 0, 0), (fd_table::NUMBERS as c_int - 1, u32::MAX >> 1, SEEN_MASK), (77, 5, 9)]
        {
            let stand = Stand { fd, token, seen };
            assert_eq!(unpack(pack(stand)), Some(stand));
        }
        let later = Stand { fd: 5, token: 6, seen: SEEN_MASK + 4 };
        assert_eq!(unpack(pack(later)), Some(Stand { seen: 3, ..later }));
        assert_eq!(unpack(0), None);
    }
}
