//! Sets for threads that sleep in `poll`, `select` or a blocking `accept`: each is borrowed for the
//! time of the sleep and kept for the next sleeper, so no thread owns one. A thread that is cancelled in its sleep gives nothing back, nor
//! does one whose handler leaves it by longjmp: who finds no set free looks whether those who have one still live, and whether its own
//! earlier sleeps still stand on its stack.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, AtomicUsize};

use utcp_abi::layout::SETS_MAX;

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry};
use crate::set::{self, SetRef};
use crate::sys::{self, Sys};
use crate::{epoll, tls};

/// Threads that can sleep at once with a kept set; further ones make and destroy theirs.
const LEN: usize = 64;

/// Room for a set that is kept.
#[derive(Debug)]
struct Place {
    /// Bit 63: there is a set. Bit 62: it is borrowed. Attachment in bits 32.., by which thread in bits 10.., set in the rest.
    word: AtomicU64,
    /// Where the borrower's stack was; [`UNKNOWN`] while nobody has it, or has it and a handler may come before that was said.
    depth: AtomicUsize,
}

/// Higher than any stack: nobody has left it.
const UNKNOWN: usize = usize::MAX;
static KEPT: [Place; LEN] =
    [const { Place { word: AtomicU64::new(0), depth: AtomicUsize::new(UNKNOWN) } }; LEN];
/// The frames of two calls into this library differ by less, and what the kernel puts on the stack for a handler takes more
/// (`struct rt_sigframe`), bytes.
const FRAMES: usize = 1024;
const PRESENT: u64 = 1 << 63;
const BORROWED: u64 = 1 << 62;
const SET_BITS: u32 = SETS_MAX.trailing_zeros();
/// Thread ids are below PID_MAX_LIMIT (proc(5)).
const THREAD_BITS: u32 = 22;
const _: () = assert!(SETS_MAX.is_power_of_two() && SET_BITS + THREAD_BITS <= 32);

/// A set for the caller alone, until dropped.
#[derive(Debug)]
pub struct Borrowed {
    /// The set.
    pub set: SetRef,
    place: Option<&'static Place>,
}

fn word(set: &SetRef) -> u64 {
    PRESENT | u64::from(set.att.index()) << 32 | u64::from(set.index)
}

/// The word of a set that the calling thread has borrowed.
fn borrowed(word: u64) -> u64 {
    let free = word & !(u64::from((1u32 << THREAD_BITS) - 1) << SET_BITS);
    free | BORROWED | u64::from(tls::thread().tid() & ((1 << THREAD_BITS) - 1)) << SET_BITS
}

/// Whose set it is.
fn owner(word: u64) -> u32 {
    (word >> SET_BITS) as u32 & ((1 << THREAD_BITS) - 1)
}

/// The set that a word names.
fn set_in(word: u64) -> Option<SetRef> {
    let att = attach::get((word >> 32 & 0xff) as u32)?;
    set::at(att, word as u32 & ((1 << SET_BITS) - 1))
}

/// Borrows a set of `att`.
pub fn borrow(att: &'static Attachment) -> Sys<Borrowed> {
    for place in &KEPT {
        let found = place.word.load(Relaxed);
        let fits = found & (PRESENT | BORROWED) == PRESENT && is_of(found, att);
        if fits
            && place.word.compare_exchange(found, borrowed(found), AcqRel, Relaxed).is_ok()
            && let Some(set) = set_in(found)
        {
            place.depth.store(depth(), Relaxed);
            return Ok(Borrowed { set, place: Some(place) });
        }
    }
    if let Some(left) = left_behind(att, None) {
        return Ok(left);
    }
    let set = SetRef::create(att)?;
    set.shared.polls.store(1, Relaxed);
    let mine = borrowed(word(&set));
    let place = KEPT.iter().find(|place| place.word.compare_exchange(0, mine, AcqRel, Relaxed).is_ok());
    if let Some(place) = place {
        place.depth.store(depth(), Relaxed);
    }
    Ok(Borrowed { set, place })
}

/// Where the caller's stack is.
#[inline(never)]
fn depth() -> usize {
    let here = 0u8;
    core::ptr::from_ref(&here).addr()
}

fn is_of(word: u64, att: &'static Attachment) -> bool {
    (word >> 32 & 0xff) as u32 == att.index()
}

/// Takes the interests of sleeps that are over out of the sockets, where others need the room; those of set `but` stay.
#[cold]
pub fn clear_out(att: &'static Attachment, but: u32) {
    for _ in 0..LEN {
        if left_behind(att, Some(but)).is_none() {
            break;
        }
    }
}

/// A set, other than `but`, whose borrower lives no more or is we, and has left the sleep that it was for.
#[cold]
fn left_behind(att: &'static Attachment, but: Option<u32>) -> Option<Borrowed> {
    let us = tls::thread().tid() & ((1 << THREAD_BITS) - 1);
    let here = depth();
    KEPT.iter().find_map(|place| {
        let found = place.word.load(Acquire);
        let is_borrowed = found & (PRESENT | BORROWED) == PRESENT | BORROWED && is_of(found, att);
        if !is_borrowed || but.is_some_and(|but| found as u32 & ((1 << SET_BITS) - 1) == but) {
            return None;
        }
        let is_left = if owner(found) == us {
            // Frames of ours that still stand lie above the one that the kernel made for the handler that we are in, if we are in one.
            place.depth.load(Relaxed) < here.saturating_add(FRAMES) && !sys::is_on_signal_stack()
        } else {
            !sys::thread_exists(owner(found))
        };
        if !is_left {
            return None;
        }
        // Should another be faster, nobody looks whether it has left: it is not taken from it, at worst.
        place.depth.store(UNKNOWN, Release);
        if place.word.compare_exchange(found, borrowed(found), AcqRel, Relaxed).is_err() {
            return None;
        }
        place.depth.store(here, Relaxed);
        let set = set_in(found)?;
        epoll::empty(&set);
        Some(Borrowed { set, place: Some(place) })
    })
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        match self.place {
            Some(place) => {
                place.depth.store(UNKNOWN, Release);
                place.word.store(word(&self.set), Release);
            }
            None => self.set.destroy(),
        }
    }
}

/// In the child of a fork: the parent's sets are not ours, nor are their bells.
pub fn forked() {
    for place in &KEPT {
        place.depth.store(UNKNOWN, Relaxed);
        let found = place.word.swap(0, AcqRel);
        if found & PRESENT == 0 {
            continue;
        }
        let Some(set) = set_in(found) else { continue };
        let bell = set.local.bell.swap(-1, Acquire);
        if bell >= 0 {
            fd_table::set(bell, Entry::KERNEL);
            let _ = sys::close(bell);
        }
    }
}
