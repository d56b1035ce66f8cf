//! Sets that somebody else watches: another epoll set, or a thread in poll or select.
//!
//! ```text
//!  outer set, poll ──► inner epoll file ──► the kernel's members
//!                             └───────────► the set's bell, level-triggered: readable while a utcp member is ready
//! ```
//!
//! The kernel's own nesting does the rest, with its rules for depth, cycles and wake-ups: nothing is copied here. A
//! set that nobody watches has its bell as before (edge-triggered, rung for sleepers, never read) and pays nothing.
//!
//! Ground rules for a watched set:
//! - Its bell is armed at all times but between a ring and the next look, so that every news makes it readable and
//!   is an edge to an outer set.
//! - Who finds no member ready takes the rings out *first*, then arms, then looks again: what came meanwhile
//!   is seen by this look or rings.
//! - Only a look takes rings out. Members may stop being ready without one (a plain `recv`), so whoever is
//!   about to wait, or was just woken, in this process looks at every watched set of it: a stale level costs one needless
//!   wake-up and is never waited on twice.
//! - `lit` (shared, as the bell is) remembers that the bell was left readable. It is a hint: where it is wrong, an
//!   outer set sees one edge too many.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use libc::epoll_event;

use crate::epolls::{self, OBJECTS, Object};
use crate::fd_table::{self, Entry};
use crate::set::SetRef;
use crate::{epoll, epoll_wait, lane, sys};

/// Objects that are watched.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Which ones.
static WATCHED: [AtomicU64; OBJECTS / 64] = [const { AtomicU64::new(0) }; OBJECTS / 64];

/// Whether this process has any watched set.
#[inline]
pub fn any() -> bool {
    COUNT.load(Relaxed) != 0
}

fn bit(index: u32) -> Option<(&'static AtomicU64, u64)> {
    Some((WATCHED.get(index as usize / 64)?, 1 << (index % 64)))
}

/// If `fd` is an epoll descriptor: from now on its readiness can be seen from outside, and is right at this moment.
pub fn watch(fd: c_int) {
    let Some((index, object)) = epolls::object(fd_table::get(fd)) else { return };
    if object.watched.swap(1, SeqCst) == 0
        && let Some((cell, bit)) = bit(index)
    {
        cell.fetch_or(bit, SeqCst);
        COUNT.fetch_add(1, SeqCst);
    }
    tend(object, true);
}

/// Whether `fd` is an epoll descriptor that has no utcp member (which it may get while somebody watches it).
pub fn is_plain(fd: c_int, entry: Entry) -> bool {
    let Some((_, object)) = epolls::object(entry) else { return false };
    if object.watched.load(Relaxed) == 0 {
        watch(fd);
    }
    object.word() == 0
}

/// The object in place `index` is no more.
pub fn forget(index: u32, object: &Object) {
    if object.watched.swap(0, SeqCst) == 0 {
        return;
    }
    if let Some((cell, bit)) = bit(index) {
        cell.fetch_and(!bit, SeqCst);
        COUNT.fetch_sub(1, SeqCst);
    }
}

/// `object`'s set is new: if the object is watched, the set is.
pub fn inherit(object: &Object) {
    if object.watched.load(SeqCst) != 0 {
        tend(object, true);
    }
}

/// Looks at every watched set of this process: before a wait, and (`woken`) after one that had something to report.
#[inline]
pub fn settle(woken: bool) {
    if any() {
        settle_all(woken);
    }
}

#[cold]
fn settle_all(woken: bool) {
    for (at, cell) in WATCHED.iter().enumerate() {
        let mut bits = cell.load(Relaxed);
        while bits != 0 {
            let index = (at as u32) << 6 | bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            if let Some(object) = epolls::at(index) {
                tend(object, woken);
            }
        }
    }
}

/// Before a poll of `fd`, if it is an epoll descriptor, and after it. True: it seemed ready, and is not.
pub fn look(fd: c_int) -> bool {
    epolls::object(fd_table::get(fd)).is_some_and(|(_, object)| tend(object, true))
}

/// Puts the bells of `object`'s sets right; true if one rang for nothing.
fn tend(object: &Object, thorough: bool) -> bool {
    let mut stale = false;
    let mut next = object.set();
    while let Some(set) = next {
        stale |= if is_watched(&set) { refresh(&set, thorough) } else { light(&set) };
        next = epoll::older(&set);
    }
    stale
}

/// Whether somebody watches `set`, in this process or one that shares it by fork.
#[inline]
pub fn is_watched(set: &SetRef) -> bool {
    set.watched().load(Relaxed) != 0
}

/// The first watcher: the bell becomes a member of the epoll file that counts while it is readable.
#[cold]
fn light(set: &SetRef) -> bool {
    set.watched().store(1, SeqCst);
    lane::refresh_all(set);
    rekindle(set);
    count_bell(set);
    false
}

/// The bell of `set`, a member of its epoll file, counts from now on: while it is readable, or, if nobody watches, once per ring.
pub fn count_bell(set: &SetRef) {
    let tell = |trigger: u32| {
        let event = epoll_event { events: libc::EPOLLIN as u32 | trigger, u64: epoll::BELL };
        let (epfd, bell) = (set.local.epfd.load(Relaxed), set.local.bell.load(Relaxed));
        let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, bell, &event);
    };
    if !is_watched(set) {
        tell(epoll::ET);
    }
    // Another thread may have begun to watch meanwhile.
    if is_watched(set) {
        tell(0);
    }
}

/// Makes the bell of a watched set readable exactly if a member is ready; true if it was so without reason.
pub fn refresh(set: &SetRef, thorough: bool) -> bool {
    let (bell, lit) = (&set.shared.bell, set.lit());
    if !thorough && bell.is_armed() && lit.load(Relaxed) == 0 && set.is_quiet() {
        return false;
    }
    if !epoll_wait::is_ready(set) {
        return rekindle(set);
    }
    if !bell.is_armed() {
        lit.store(1, Relaxed); // It rang for this.
    } else if lit.swap(1, AcqRel) == 0 {
        set.ring();
    }
    bell.arm();
    false
}

/// Takes the rings out, arms, looks again; true if there was a ring and no reason for it.
fn rekindle(set: &SetRef) -> bool {
    set.lit().store(0, Relaxed);
    let rang = sys::bell_reset(set.local.bell.load(Relaxed));
    set.shared.bell.arm();
    if !epoll_wait::is_ready(set) {
        return rang;
    }
    set.lit().store(1, Relaxed);
    set.ring();
    set.shared.bell.arm();
    false
}
