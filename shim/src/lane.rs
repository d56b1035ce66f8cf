//! Lanes: how the programs at the other ends of connections reach our epoll sets without the engine.
//!
//! ```text
//!  peer: publishes bytes ── whom to tell? (Side::notify) ── bit in our lane ── armed? ── our eventfd
//!  we:   epoll_wait ── takes the lanes' bits into the set's own ── looks at those sockets ── arms set and lanes, sleeps
//! ```
//!
//! A connection that is in exactly one epoll set, and whose peer may have an eventfd of ours, names that set's lane. Any
//! other (in several sets, in a `poll`, of another user) is told by the engine.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicU64, fence};

use utcp_abi::layout::SETS_MAX;
use utcp_abi::message::{Kind, Message};
use utcp_abi::pair::{Lane, Notify, PairView};
use utcp_abi::set::{LANES, Member};
use utcp_abi::socket::file;

use crate::attach::ATTACHMENTS;
use crate::channel::{self, Quiet, Word};
use crate::fd_table;
use crate::handle::{self, Sock};
use crate::pair::{self, End};
use crate::set::{self, SetRef};
use crate::sys::{self, Errno, Sys};
use crate::{epoll, epolls, nested, process, sandbox};

/// In [`utcp_abi::set::Set::lanes`]: there can be no lane; the engine does it.
const REFUSED: u64 = 1 << 63;
const NUMBER: u64 = u32::MAX as u64;

/// The eventfds of our lanes + 1, beside the words in the sets.
static BELLS: [[[AtomicI32; LANES]; SETS_MAX as usize]; ATTACHMENTS] =
    [const { [const { [const { AtomicI32::new(0) }; LANES] }; SETS_MAX as usize] }; ATTACHMENTS];

/// Held while a lane is opened.
static OPENING: Word = Word::new();

/// In the child of a fork.
pub fn forked() {
    OPENING.forked();
}

fn bells(set: &SetRef) -> &'static [AtomicI32] {
    BELLS.get(set.att.index() as usize).and_then(|sets| sets.get(set.index as usize)).map_or(&[], |list| list)
}

/// What a set's list says of the region with `number`, as side `side`.
fn word(number: u32, side: u32) -> u64 {
    u64::from(number.wrapping_add(1)) | u64::from(side) << 32
}

fn in_use(set: &SetRef) -> impl Iterator<Item = &'static AtomicU64> {
    let shared: &'static utcp_abi::set::Set = set.shared;
    let used = shared.lanes_used.load(Acquire) as usize;
    shared.lanes.iter().take(used)
}

/// The lanes of a set.
fn lanes(set: &SetRef) -> impl Iterator<Item = (PairView, u32, &'static Lane)> {
    let (att, index) = (set.att, set.index);
    in_use(set).filter_map(move |cell| {
        let found = cell.load(Acquire);
        if found == 0 || found & REFUSED != 0 {
            return None;
        }
        let side = (found >> 32 & 1) as u32;
        let number = ((found & NUMBER) as u32).wrapping_sub(1);
        match pair::view(att, number) {
            Ok(view) => Some((view, side, view.lane(side, index)?)),
            Err(Errno(libc::ESRCH)) => {
                // The peer is gone, and the region with it.
                let _ = cell.compare_exchange(found, 0, AcqRel, Relaxed);
                None
            }
            Err(_) => None,
        }
    })
}

/// Takes what peers have put into the set's lanes into the set's own bits.
#[inline]
pub fn gather(set: &SetRef) {
    for (view, side, lane) in lanes(set) {
        lane.take(view.slots(), |slot| {
            let Some(slot) = view.slot(slot) else { return };
            let [own, _] = slot.from(side);
            if let Notify::Lane(member) = Notify::unpack(own.notify.load(Acquire))
                && member.set == set.index
                && let Some(bits) = set.att.region().ready(set.index)
            {
                bits.set(member.interest);
            }
        });
    }
}

/// Announces a sleep on the set, to the engine and to the peers. Another look must follow.
pub fn arm(set: &SetRef) {
    for (_, _, lane) in lanes(set) {
        lane.bell.arm();
    }
    set.shared.bell.arm();
}

/// The sets that watch `sock` changed, or it is new: says to the peer whom to tell from now on.
pub fn refresh(sock: &Sock) {
    let Some(end) = pair::of(sock) else { return };
    let cell = &end.own().notify;
    loop {
        let now = best(sock, &end);
        let before = Notify::unpack(cell.swap(now.pack(), SeqCst));
        // Pairs with the peer's: whom to tell before our look at what he published.
        fence(SeqCst);
        // Another thread may have changed the sets at the same time, and been overtaken by us.
        if best(sock, &end) != now {
            continue;
        }
        if now == Notify::Engine && matches!(before, Notify::Lane(_)) {
            // What stands in the lane can't be told from what the engine will say.
            epoll::touch(sock);
        }
        if !end.is_current() {
            // Closed meanwhile, and the place used again by a connection that we know nothing of.
            cell.store(Notify::Engine.pack(), SeqCst);
        }
        return;
    }
}

fn best(sock: &Sock, end: &End) -> Notify {
    let mut list = set::members(sock).filter_map(|cell| Member::unpack(cell.load(SeqCst)));
    match (list.next(), list.next()) {
        _ if sock.shared.file.load(SeqCst) & file::ASYNC != 0 => Notify::Engine,
        (None, _) => Notify::None,
        _ if end.is_young() => Notify::Fresh,
        (Some(member), None) if !member.exclusive && is_open(sock, end, member.set) => Notify::Lane(member),
        _ => Notify::Engine,
    }
}

/// Whether the peer can reach set `index` by a lane, which is made if need be.
fn is_open(sock: &Sock, end: &End, index: u32) -> bool {
    let Some(set) = set::at(sock.att, index) else { return false };
    if nested::is_watched(&set) {
        return false; // All its news must ring the one bell that can be seen from outside.
    }
    let wanted = word(end.at.number(), end.at.side);
    let find = || in_use(&set).map(|cell| cell.load(Acquire)).find(|word| word & !REFUSED == wanted);
    if let Some(found) = find() {
        return found & REFUSED == 0;
    }
    // Only whoever made the set knows its descriptor, and it may be gone while a copy lives on.
    let behind = epolls::set_of(fd_table::get(set.local.epfd.load(Relaxed)));
    let is_here = behind
        .is_some_and(|found| (found.att.index(), found.index) == (set.att.index(), set.index))
        && set.shared.owner_pid.load(Relaxed) == process::pid();
    if !is_here {
        return false;
    }
    let _quiet = Quiet::new();
    let Some(_held) = OPENING.take() else { return false };
    if let Some(found) = find() {
        return found & REFUSED == 0;
    }
    let Some(place) = set.shared.lanes.iter().position(|cell| cell.load(Acquire) == 0) else { return false };
    let Some(cell) = set.shared.lanes.get(place) else { return false };
    let opened = open(&set, end, place);
    set.shared.lanes_used.fetch_max(place as u32 + 1, AcqRel);
    cell.store(if opened.is_ok() { wanted } else { wanted | REFUSED }, SeqCst);
    opened.is_ok()
}

fn open(set: &SetRef, end: &End, place: usize) -> Sys<()> {
    sandbox::permit()?;
    let kept = bells(set).get(place).ok_or(Errno(libc::ENOSPC))?;
    let lane = end.view.lane(end.at.side, set.index).ok_or(Errno(libc::ENOSPC))?;
    close_bell(set, kept);
    let bell = channel::hide(sys::eventfd(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?);
    kept.store(bell.wrapping_add(1), Release);
    let mut message = Message::new(Kind::Lane);
    (message.a, message.b) = (u64::from(end.at.number()), u64::from(set.index));
    message.c = u64::from(end.at.side);
    let told = epoll::add_bell(set, bell).and_then(|()| set.att.channel().ask(&message, Some(bell)));
    if let Err(error) = told {
        close_bell(set, kept);
        return Err(error);
    }
    // What stands there was for an earlier use of the set.
    lane.take(u32::MAX, |_| {});
    let generation = lane.generation.load(Relaxed).wrapping_add(1) & 0xf_ffff;
    lane.generation.store(generation.max(1), Release);
    Ok(())
}

fn close_bell(set: &SetRef, kept: &AtomicI32) {
    let bell = kept.swap(0, AcqRel).wrapping_sub(1);
    if bell >= 0 {
        let none = libc::epoll_event { events: 0, u64: 0 };
        // The peer may have it still: closing it is not enough to take it out.
        let _ = sys::epoll_ctl(set.local.epfd.load(Relaxed), libc::EPOLL_CTL_DEL, bell, &none);
        pair::close_hidden(bell);
    }
}

/// A set is about to end, or begins.
pub fn close_all(set: &SetRef) {
    for cell in &set.shared.lanes {
        cell.store(0, Release);
    }
    set.shared.lanes_used.store(0, Release);
    bells(set).iter().for_each(|kept| close_bell(set, kept));
}

/// Whoever is told by a lane of `set` shall be told otherwise, if that is not allowed any more.
pub fn refresh_all(set: &SetRef) {
    for (fd, entry) in fd_table::used().filter(|(_, entry)| entry.kind() == fd_table::Kind::Socket) {
        let Some(sock) = handle::at(fd, entry).filter(|sock| sock.att.index() == set.att.index()) else {
            continue;
        };
        let names = |cell: &AtomicU64| Member::unpack(cell.load(Acquire)).is_some_and(|m| m.set == set.index);
        if set::members(&sock).any(names) {
            refresh(&sock);
        }
    }
}

/// The program wants number `fd` for itself: `copy` takes its place.
pub fn relocate(fd: c_int, copy: c_int) {
    for kept in BELLS.iter().flatten().flatten() {
        if kept.load(Relaxed) == fd.wrapping_add(1) {
            let _ = kept.compare_exchange(fd.wrapping_add(1), copy.wrapping_add(1), AcqRel, Relaxed);
            fd_table::set(fd, fd_table::Entry::KERNEL);
        }
    }
}
