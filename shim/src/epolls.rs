//! What an epoll descriptor is to us: an object per open file, made when the descriptor is.
//!
//! ```text
//!  numbers of this process        objects                     region
//!   7 ─┐
//!   9 ─┴─ dup of 7 ──────────────► 3: watched? set ──────────► set 12 (once it has a utcp member)
//! ```
//!
//! Numbers copied before the first utcp member comes must find the set that is made then (mio and
//! tokio copy theirs at start: one number registers, the other waits); hence the object between them. A fork copies the objects
//! with the process's memory; the sets are shared.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::attach;
use crate::fd_table::{self, Entry, Kind};
use crate::set::{self, SetRef};
use crate::table::real;
use crate::{errno, nested, numbers, tls};

/// Epoll descriptors of one process that are known from the start; further ones become known with their first utcp
/// member, as long as there is room.
pub const OBJECTS: usize = 4096;
/// Bit 63 of a set word: there is one. Attachment in bits 32.., set in the rest.
const PRESENT: u64 = 1 << 63;

/// One epoll file.
#[derive(Debug)]
pub struct Object {
    /// 1: in use.
    used: AtomicU32,
    /// How often this place was used, as a table entry names it.
    generation: AtomicU32,
    /// Its set, or 0.
    set: AtomicU64,
    /// 1: another set or a poll looks at it, see [`nested`].
    pub watched: AtomicU32,
}

static LIST: [Object; OBJECTS] = [const {
    Object {
        used: AtomicU32::new(0),
        generation: AtomicU32::new(0),
        set: AtomicU64::new(0),
        watched: AtomicU32::new(0),
    }
}; OBJECTS];
/// Where the search for a free place begins.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// `set` as one word.
pub fn pack(set: &SetRef) -> u64 {
    PRESENT | u64::from(set.att.index()) << 32 | u64::from(set.index)
}

/// The set that a word names.
pub fn unpack(word: u64) -> Option<SetRef> {
    (word & PRESENT != 0).then(|| set::at(attach::get((word >> 32) as u32 & 0xff)?, word as u32)).flatten()
}

impl Object {
    /// The word of its set, 0 for none.
    pub fn word(&self) -> u64 {
        self.set.load(SeqCst)
    }

    /// Its set, if it has one.
    #[inline]
    pub fn set(&self) -> Option<SetRef> {
        match self.set.load(Acquire) {
            0 => None,
            word => unpack(word),
        }
    }

    /// Puts `set` in the place of the one that `old` names; false: another thread was faster.
    pub fn replace(&self, old: u64, set: &SetRef) -> bool {
        self.set.compare_exchange(old, pack(set), SeqCst, Relaxed).is_ok()
    }
}

/// The object behind `entry`, if it is an epoll descriptor's.
#[inline]
pub fn object(entry: Entry) -> Option<(u32, &'static Object)> {
    if entry.kind() != Kind::Epoll {
        return None;
    }
    let index = entry.slot();
    let object = LIST.get(index as usize)?;
    (object.generation.load(Relaxed) == entry.generation()).then_some((index, object))
}

/// The object in place `index`.
pub fn at(index: u32) -> Option<&'static Object> {
    LIST.get(index as usize)
}

/// The set behind `entry`.
#[inline]
pub fn set_of(entry: Entry) -> Option<SetRef> {
    object(entry)?.1.set()
}

/// Makes an object for the epoll descriptor `epfd`, of which the table knows nothing; the entry that names it.
pub fn adopt(epfd: c_int) -> Option<Entry> {
    if !fd_table::covers(epfd) {
        return None;
    }
    let start = NEXT.fetch_add(1, Relaxed) as usize;
    let order = (0..OBJECTS).map(|step| start.wrapping_add(step) % OBJECTS);
    let free = |place: &usize| {
        LIST.get(*place).is_some_and(|object| object.used.compare_exchange(0, 1, AcqRel, Relaxed).is_ok())
    };
    let place = order.into_iter().find(free)?;
    let object = LIST.get(place)?;
    object.set.store(0, Relaxed);
    object.watched.store(0, Relaxed);
    let entry = Entry::new(Kind::Epoll, 0, place as u32, object.generation.load(Relaxed));
    fd_table::cover(epfd);
    if fd_table::replace(epfd, Entry::KERNEL, entry) {
        return Some(entry);
    }
    free_object(place as u32, object); // Another thread was faster.
    Some(fd_table::get(epfd)).filter(|entry| entry.kind() == Kind::Epoll)
}

/// The last number of the object behind `entry` is gone.
pub fn retire(entry: Entry) {
    if let Some((index, object)) = object(entry) {
        free_object(index, object);
    }
}

fn free_object(index: u32, object: &Object) {
    nested::forget(index, object);
    object.set.store(0, Relaxed);
    object.generation.fetch_add(1, Relaxed);
    object.used.store(0, SeqCst);
}

/// A new epoll descriptor of the kernel's, `epfd`: a number that was closed behind our back may have an old meaning.
fn born(epfd: c_int) -> c_int {
    if epfd >= 0 && !tls::thread().is_vfork_child() {
        let before = errno::get();
        let old = fd_table::get(epfd);
        if old.kind() == Kind::Epoll && !fd_table::used().any(|(fd, e)| fd != epfd && e.same_object(old)) {
            retire(old);
        }
        if old != Entry::KERNEL {
            fd_table::set(epfd, Entry::KERNEL);
        }
        adopt(epfd);
        errno::set(before);
    }
    epfd
}

/// `epoll_create(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn epoll_create(size: c_int) -> c_int {
    // SAFETY: a plain number.
    born(numbers::with(|| unsafe { real::epoll_create(size) }))
}

/// `epoll_create1(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: a plain number.
    born(numbers::with(|| unsafe { real::epoll_create1(flags) }))
}
