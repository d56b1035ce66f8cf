//! Pair regions as this process maps them, and telling the program at the other end of a connection.
//!
//! The socket's block names the place ([`PairRef`]); the region behind it is mapped when it is first met. An index
//! may come to mean another region when a peer has gone: that one is then mapped over the old one, at the same
//! address, so that a thread which is late finds memory, and in it positions that are not its own.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};

use utcp_abi::bell::Bell;
use utcp_abi::freeze::FROZEN;
use utcp_abi::message::{Kind, Message};
use utcp_abi::pair::{Notify, PAIR_LEN, PAIRS_MAX, PairRef, PairView, STREAM_MAX, Side, Slot};
use utcp_abi::set::Member;
use utcp_abi::socket::{intent, is_anothers};

use crate::attach::{ATTACHMENTS, Attachment};
use crate::channel::{self, Quiet, Word};
use crate::fd_table::{self, Entry};
use crate::handle::Sock;
use crate::sys::{self, Errno, Sys};
use crate::{lane, memory, ready, sandbox, set};

/// Epoll sets of one peer whose bells are kept; further ones are rung by the engine.
const BELLS: usize = 16;

/// Bytes that a connection has brought before its peer tells us of more by a lane: those of one message. Of the second a program must
/// hear as soon as of one on an older connection, or what was sent first is seen last.
const YOUNG: u64 = 1;

/// One place for a region.
struct Place {
    base: AtomicPtr<u8>,
    /// Number of the region that is mapped + 1; 0: none.
    number: AtomicU32,
    /// Bells of the peer's sets, see [`bell_key`]; descriptor + 1 in the lower half.
    bells: [AtomicU64; BELLS],
}

static PLACES: [[Place; PAIRS_MAX as usize]; ATTACHMENTS] = [const {
    [const {
        Place {
            base: AtomicPtr::new(ptr::null_mut()),
            number: AtomicU32::new(0),
            bells: [const { AtomicU64::new(0) }; BELLS],
        }
    }; PAIRS_MAX as usize]
}; ATTACHMENTS];

/// Held while a region is mapped or a bell fetched.
static MAPPING: Word = Word::new();

/// In the child of a fork.
pub fn forked() {
    MAPPING.forked();
}

fn place(att: &'static Attachment, index: u32) -> Option<&'static Place> {
    PLACES.get(att.index() as usize)?.get(index as usize)
}

/// The region of this number, mapped now if it was not.
#[inline]
pub fn view(att: &'static Attachment, number: u32) -> Sys<PairView> {
    let place = place(att, number & (PAIRS_MAX - 1)).ok_or(Errno(libc::EIO))?;
    if place.number.load(Acquire) != number.wrapping_add(1) {
        map(att, number, place)?;
    }
    // SAFETY: a mapping of the whole region, which is never taken away; at most another is put in its place.
    Ok(unsafe { PairView::new(place.base.load(Relaxed)) })
}

#[cold]
fn map(att: &'static Attachment, number: u32, place: &'static Place) -> Sys<()> {
    let _quiet = Quiet::new();
    let _held = MAPPING.take().ok_or(Errno(libc::EAGAIN))?;
    if place.number.load(Acquire) == number.wrapping_add(1) {
        return Ok(()); // Another thread was faster.
    }
    let fd = fetch(att, Kind::Pair, number, 0, 0)?;
    let old = place.base.load(Relaxed);
    let mapped = memory::map_shared_over(old, fd, PAIR_LEN);
    let _ = sys::close(fd);
    let base = mapped?;
    sys::madvise(base, PAIR_LEN, libc::MADV_DONTDUMP);
    // The bells were another program's; their numbers are used again.
    for bell in &place.bells {
        bell.fetch_and(u64::from(u32::MAX), AcqRel);
    }
    place.base.store(base, Release);
    // SAFETY: just mapped in whole.
    if !unsafe { PairView::new(base) }.is(number) {
        place.number.store(0, Release);
        return Err(Errno(libc::EPROTO));
    }
    place.number.store(number.wrapping_add(1), Release);
    Ok(())
}

/// One descriptor from the engine.
fn fetch(att: &'static Attachment, kind: Kind, number: u32, set: u32, side: u32) -> Sys<c_int> {
    sandbox::permit()?;
    let mut message = Message::new(kind);
    (message.a, message.b, message.c) = (u64::from(number), u64::from(set), u64::from(side));
    let (reply, fds) = att.channel().request(&message, None)?;
    match (reply.error, fds.as_slice()) {
        (0, [fd]) => Ok(*fd),
        // No room for a descriptor, say.
        (0, _) => {
            fds.close();
            Err(Errno(libc::ENOBUFS))
        }
        (error, _) => {
            fds.close();
            Err(Errno(error))
        }
    }
}

/// One end of a connection between two programs, as a hook holds it.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Where it is.
    pub at: PairRef,
    /// The region.
    pub view: PairView,
    /// The connection.
    pub slot: &'static Slot,
}

/// The end of `sock` could not be reached, for want of address space or descriptors, say: the engine shall carry the bytes.
#[cold]
pub fn give_up(sock: &Sock, why: Errno) {
    // In a handler of a thread that is just mapping: another time will do.
    if why != Errno(libc::EAGAIN) {
        sock.intend(intent::UNCUT);
    }
}

/// The end that `word` (a socket's rx_buf or tx_buf) names; `None` if it names a buffer.
#[inline]
pub fn named(att: &'static Attachment, word: u64) -> Option<Sys<End>> {
    let at = PairRef::unpack(word)?;
    Some(view(att, at.number()).and_then(|view| {
        let slot = view.slot(at.slot).ok_or(Errno(libc::EIO))?;
        Ok(End { at, view, slot })
    }))
}

/// The end that `sock` has, if it is cut through and can be reached.
#[inline]
pub fn of(sock: &Sock) -> Option<End> {
    named(sock.att, sock.shared.rx_buf.load(Acquire))?.ok()
}

/// The bells on which to wait for bytes and for space.
pub fn bells(sock: &Sock) -> (&'static Bell, &'static Bell) {
    match of(sock) {
        Some(end) => (&end.own().rx_bell, &end.own().tx_bell),
        None => (&sock.shared.rx_bell, &sock.shared.tx_bell),
    }
}

impl End {
    /// This side.
    #[inline]
    pub fn own(&self) -> &'static Side {
        let slot: &'static Slot = self.slot;
        let [own, _] = slot.from(self.at.side);
        own
    }

    /// The other side.
    #[inline]
    pub fn other(&self) -> &'static Side {
        let slot: &'static Slot = self.slot;
        let [_, other] = slot.from(self.at.side);
        other
    }

    /// Whether the place still is this connection's.
    pub fn is_current(&self) -> bool {
        let head = self.own().head.load(Acquire);
        head != FROZEN && !is_anothers(head, self.at.generation, &self.own().generation)
    }

    /// After bytes were sent: tells whoever waits for them.
    #[inline]
    pub fn tell_bytes(&self, sock: &Sock) {
        // Pairs with the fences of those who wait: the bytes before our look at whom to tell.
        fence(SeqCst);
        let other = self.other();
        if other.rx_bell.is_armed() && other.rx_bell.ring() {
            sys::futex_wake_all(other.rx_bell.word());
        }
        if other.closed.load(Relaxed) != 0 {
            sock.kick(); // Perhaps there is nobody to read them.
        }
        match Notify::unpack(other.notify.load(Relaxed)) {
            Notify::None => {}
            Notify::Lane(member) => {
                if u32::from(member.events) & (ready::IN | ready::PRI) != 0 {
                    self.mark(sock, member);
                }
            }
            Notify::Engine | Notify::Fresh => sock.kick(),
        }
    }

    /// After bytes were taken: tells a writer who wished to hear of space, once there is enough of it.
    #[inline]
    pub fn tell_space(&self, sock: &Sock) {
        // As above: the space before our look.
        fence(SeqCst);
        if self.other().wish.load(Relaxed) != 0 {
            self.grant(sock);
        }
    }

    #[cold]
    fn grant(&self, sock: &Sock) {
        if self.slot.waiting(self.at.side) > STREAM_MAX / 3 * 2 {
            return;
        }
        let other = self.other();
        match Notify::unpack(other.notify.load(Relaxed)) {
            // Who sees to it that the wish is fulfilled takes it back.
            Notify::Engine | Notify::Fresh => sock.kick(),
            Notify::None => other.wish.store(0, SeqCst),
            Notify::Lane(member) => {
                other.wish.store(0, SeqCst);
                if u32::from(member.events) & ready::OUT != 0 && !self.mark(sock, member) {
                    other.wish.store(1, SeqCst);
                    sock.kick();
                }
            }
        }
        if other.tx_bell.ring() {
            sys::futex_wake_all(other.tx_bell.word());
        }
    }

    /// Tells the other side's epoll set. False: the engine was asked to.
    fn mark(&self, sock: &Sock, member: Member) -> bool {
        let side = 1 - self.at.side;
        let Some(lane) = self.view.lane(side, member.set) else { return true };
        if !lane.mark(self.at.slot) {
            return true;
        }
        match bell(sock.att, self, side, member.set, lane.generation.load(Acquire)) {
            Ok(bell) => {
                sys::eventfd_ring(bell);
                true
            }
            Err(_) => {
                sock.kick();
                false
            }
        }
    }

    /// Says that this side met a full stream; the caller looks once more.
    pub fn wish(&self) {
        self.own().wish.store(1, Relaxed);
        // Pairs with the one in `tell_space`: our wish before our look at the space.
        fence(SeqCst);
    }

    /// The program has not said yet how it wants to hear of this connection: now it does.
    #[inline]
    pub fn adopt(&self, sock: &Sock) {
        if Notify::unpack(self.own().notify.load(Relaxed)) == Notify::Fresh
            && !(self.is_young() && set::is_member(sock))
        {
            lane::refresh(sock);
        }
    }

    /// Whether so little has come that a lane does not pay yet: for one request and its answer the engine, which is awake to make
    /// and end connections anyhow, wakes up for many at once.
    #[inline]
    pub fn is_young(&self) -> bool {
        self.own().head.load(Relaxed).wrapping_sub(self.at.first_position()) < YOUNG
    }
}

/// Upper half of a kept bell's word: which set of which side in which use.
fn bell_key(side: u32, set: u32, generation: u32) -> u32 {
    1 << 31 | side << 30 | set << 20 | generation & 0xf_ffff
}

/// The eventfd of a lane.
fn bell(att: &'static Attachment, end: &End, side: u32, set: u32, generation: u32) -> Sys<c_int> {
    let place = place(att, end.at.index).ok_or(Errno(libc::EIO))?;
    let key = bell_key(side, set, generation);
    let kept = |bell: &AtomicU64| {
        let word = bell.load(Acquire);
        ((word >> 32) as u32 == key).then_some((word as u32).wrapping_sub(1) as c_int)
    };
    match place.bells.iter().find_map(kept) {
        Some(fd) => Ok(fd),
        None => fetch_bell(att, end, place, key),
    }
}

#[cold]
fn fetch_bell(att: &'static Attachment, end: &End, place: &'static Place, key: u32) -> Sys<c_int> {
    let _quiet = Quiet::new();
    let _held = MAPPING.take().ok_or(Errno(libc::EAGAIN))?;
    let (side, set) = (key >> 30 & 1, key >> 20 & 0x3ff);
    // A bell that may still be wanted is never replaced: who is about to ring it would ring another.
    let is_over = |word: u64| {
        let old = (word >> 32) as u32;
        let lane = end.view.lane(old >> 30 & 1, old >> 20 & 0x3ff);
        old == 0 || lane.is_none_or(|lane| lane.generation.load(Acquire) & 0xf_ffff != old & 0xf_ffff)
    };
    let free = place.bells.iter().find(|bell| is_over(bell.load(Acquire))).ok_or(Errno(libc::ENOSPC))?;
    let fd = fetch(att, Kind::LaneBell, end.at.number(), set, side)?;
    let old = (free.load(Relaxed) as u32).wrapping_sub(1) as c_int;
    let kept = if old >= 0 {
        // Under the same number: a thread that still rings the old one wakes somebody for nothing.
        let moved = sys::dup3(fd, old, libc::O_CLOEXEC);
        let _ = sys::close(fd);
        moved?
    } else {
        channel::hide(fd)
    };
    free.store(u64::from(key) << 32 | u64::from((kept as u32).wrapping_add(1)), Release);
    Ok(kept)
}

/// The program wants number `fd` for itself: `copy` takes its place.
pub fn relocate(fd: c_int, copy: c_int) {
    for place in PLACES.iter().flatten().filter(|place| !place.base.load(Relaxed).is_null()) {
        for bell in &place.bells {
            let word = bell.load(Acquire);
            if word as u32 == (fd as u32).wrapping_add(1) {
                let new = word & !u64::from(u32::MAX) | u64::from((copy as u32).wrapping_add(1));
                let _ = bell.compare_exchange(word, new, AcqRel, Relaxed);
            }
        }
    }
}

/// Takes descriptors of ours out of the table and closes them.
pub fn close_hidden(fd: c_int) {
    fd_table::set(fd, Entry::KERNEL);
    let _ = sys::close(fd);
}
