//! How the engine takes a connection's positions away from the programs that move them, at any moment.
//!
//! ```text
//!  writer:  look at tail ── copy behind it ── compare-and-swap tail forward ── failed? nothing was sent
//!  reader:  look at head ── copy ──────────── compare-and-swap head forward ── failed? nothing was taken
//!  engine:  swap [`FROZEN`] into both: what it finds there is the whole truth
//! ```
//!
//! A connection changes its place (its bytes go by segments from now on, or its socket becomes another program's) while threads
//! of several programs may be in the middle of a copy, asleep or stopped by a debugger. Nobody is waited for: a copy counts only by
//! its swap, and after the engine's own swap none succeeds. Who finds a frozen position has nothing to read and no room to write for
//! the moment; the engine says where to go on, and then rings everybody.
//!
//! A writer that holds bytes back (TCP_CORK, MSG_MORE) has a second position, `held`: behind the last byte that `send` has
//! accepted, while `tail` stays behind the last that the reader may see. It moves `held` first, so that bytes whose `send` is going to
//! succeed are in one of the two.

use crate::sync::{AtomicU64, Ordering};

/// A position that the engine has taken.
pub const FROZEN: u64 = u64::MAX;

/// Moves a position from `from`, where the caller saw it, to `to`. False: somebody else has moved it, or it is frozen.
#[inline]
#[must_use]
pub fn advance(position: &AtomicU64, from: u64, to: u64) -> bool {
    // Release: the copy before the position that announces it (or gives its place back).
    position.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Takes a position away: where it was.
#[must_use]
pub fn freeze(position: &AtomicU64) -> u64 {
    // Acquire: the bytes that the position announces.
    position.swap(FROZEN, Ordering::AcqRel)
}

/// Position behind the last byte that a writer has accepted: `held`, if that is ahead of `tail` by no more than `capacity`.
#[inline]
#[must_use]
pub fn accepted(tail: u64, held: u64, capacity: u64) -> u64 {
    let ahead = held.wrapping_sub(tail);
    if held != FROZEN && tail != FROZEN && (1..=capacity).contains(&ahead) { held } else { tail }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_position_stays() {
        let position = AtomicU64::new(7);
        assert!(advance(&position, 7, 9));
        assert!(!advance(&position, 7, 10), "somebody else was faster");
        assert_eq!(freeze(&position), 9);
        assert!(!advance(&position, 9, 10));
        assert_eq!(freeze(&position), FROZEN);
    }

    #[test]
    fn what_is_held_back_counts() {
        assert_eq!(accepted(10, 15, 100), 15);
        for held in [0, 9, 10, 111, FROZEN] {
            assert_eq!(accepted(10, held, 100), 10, "held {held}");
        }
        assert_eq!(accepted(FROZEN, 5, 100), FROZEN);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::AtomicU32;
    use loom::sync::Arc;
    use loom::thread;

    struct Stream {
        tail: AtomicU64,
        held: AtomicU64,
        head: AtomicU64,
        bytes: [AtomicU32; 3],
    }

    impl Stream {
        fn put(&self, at: u64) {
            self.bytes[at as usize].store(at as u32 + 1, Ordering::Relaxed);
        }

        /// What stands in `[from, to)`, if it is what was sent.
        fn check(&self, from: u64, to: u64) {
            for at in from..to {
                assert_eq!(u64::from(self.bytes[at as usize].load(Ordering::Relaxed)), at + 1, "byte {at}");
            }
        }
    }

    /// A writer sends a byte, holds one back and lets both go with a third; a reader takes; the engine freezes in between. Every
    /// byte whose `send` succeeded was taken by the reader or found by the engine, once and whole, and no other.
    #[test]
    fn no_byte_is_lost_or_doubled() {
        loom::model(|| {
            let bytes = core::array::from_fn(|_| AtomicU32::new(0));
            let (tail, held, head) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            let shared = Arc::new(Stream { tail, held, head, bytes });
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.put(0);
                    if !advance(&shared.tail, 0, 1) {
                        return 0;
                    }
                    shared.put(1);
                    if !advance(&shared.held, 0, 2) {
                        return 1;
                    }
                    shared.put(2);
                    if !advance(&shared.held, 2, 3) {
                        return 2;
                    }
                    // If this fails the engine has taken all three.
                    let _ = advance(&shared.tail, 1, 3);
                    3
                })
            };
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let head = shared.head.load(Ordering::Acquire);
                    let tail = shared.tail.load(Ordering::Acquire);
                    if head == FROZEN || tail == FROZEN || tail == head {
                        return 0;
                    }
                    shared.check(head, tail);
                    if advance(&shared.head, head, tail) { tail - head } else { 0 }
                })
            };
            let tail = freeze(&shared.tail);
            let held = freeze(&shared.held);
            let head = freeze(&shared.head);
            let end = accepted(tail, held, 3);
            shared.check(head, end);
            let (sent, taken) = (writer.join().unwrap(), reader.join().unwrap());
            assert_eq!((taken, sent), (head, end));
        });
    }
}
