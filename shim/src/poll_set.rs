//! Sets for threads that sleep in `poll`, `select` or a blocking `accept`: each is borrowed for the
//! time of the sleep and kept for the next sleeper, so no thread owns one and none is lost with a thread.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry};
use crate::set::{self, SetRef};
use crate::sys::{self, Sys};

/// Threads that can sleep at once with a kept set; further ones make and destroy theirs.
const LEN: usize = 64;

/// Bit 63: there is a set. Bit 62: it is borrowed. Attachment in bits 32.., set in the rest.
static KEPT: [AtomicU64; LEN] = [const { AtomicU64::new(0) }; LEN];
const PRESENT: u64 = 1 << 63;
const BORROWED: u64 = 1 << 62;

/// A set for the caller alone, until dropped.
#[derive(Debug)]
pub struct Borrowed {
    /// The set.
    pub set: SetRef,
    place: Option<&'static AtomicU64>,
}

fn word(set: &SetRef) -> u64 {
    PRESENT | u64::from(set.att.index()) << 32 | u64::from(set.index)
}

/// Borrows a set of `att`.
pub fn borrow(att: &'static Attachment) -> Sys<Borrowed> {
    for place in &KEPT {
        let found = place.load(Relaxed);
        let fits = found & (PRESENT | BORROWED) == PRESENT && (found >> 32 & 0xff) as u32 == att.index();
        if fits
            && place.compare_exchange(found, found | BORROWED, AcqRel, Relaxed).is_ok()
            && let Some(set) = set::at(att, found as u32)
        {
            return Ok(Borrowed { set, place: Some(place) });
        }
    }
    let set = SetRef::create(att)?;
    let place =
        KEPT.iter().find(|place| place.compare_exchange(0, word(&set) | BORROWED, AcqRel, Relaxed).is_ok());
    Ok(Borrowed { set, place })
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        match self.place {
            Some(place) => place.store(word(&self.set), Release),
            None => self.set.destroy(),
        }
    }
}

/// In the child of a fork: the parent's sets are not ours, nor are their bells.
pub fn forked() {
    for place in &KEPT {
        let found = place.swap(0, AcqRel);
        if found & PRESENT == 0 {
            continue;
        }
        let set = attach::get((found >> 32 & 0xff) as u32).and_then(|att| set::at(att, found as u32));
        let Some(set) = set else { continue };
        let bell = set.local.bell.swap(-1, Acquire);
        if bell >= 0 {
            fd_table::set(bell, Entry::KERNEL);
            let _ = sys::close(bell);
        }
    }
}
