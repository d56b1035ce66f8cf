//! Who may write into a socket's tx stream just now, among the threads and forked processes that
//! share the socket.
//!
//! The word holds the owner's thread id, 0 when free: one uncontended compare-and-swap takes it, a
//! plain store gives it back. It is held only while bytes are copied, never while anybody sleeps.
//! - A contender that finds an owner who is dead takes over: nothing of the dead owner's copy was
//!   published, so nothing has to be undone.
//! - A signal handler that interrupts its own thread's copy finds its own id: it is told
//!   [`Busy::Nested`] and reports "would block" rather than wait for itself.

use crate::sync::{AtomicU32, Ordering};

/// The arbiter's word. All zero bytes are a free one.
#[repr(transparent)]
#[derive(Debug)]
pub struct Arbiter(AtomicU32);

/// Why the arbiter could not be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// The calling thread itself holds it: we run in its signal handler.
    Nested,
    /// Another thread, of this id, holds it.
    Other(u32),
}

impl Arbiter {
    /// A free arbiter.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes it for thread `tid` (not 0).
    ///
    /// # Errors
    /// [`Busy`] names who holds it.
    pub fn try_take(&self, tid: u32) -> Result<(), Busy> {
        // Acquire pairs with `give`: the previous owner's published indices are visible to us.
        match self.0.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(owner) if owner == tid => Err(Busy::Nested),
            Err(owner) => Err(Busy::Other(owner)),
        }
    }

    /// Takes it over from `dead`, a thread that the caller knows to be gone.
    #[must_use]
    pub fn take_over(&self, dead: u32, tid: u32) -> bool {
        self.0.compare_exchange(dead, tid, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives it back. Only its owner calls this.
    pub fn give(&self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Default for Arbiter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn names_its_owner_and_survives_its_death() {
        let arbiter = Arbiter::new();
        assert_eq!(arbiter.try_take(7), Ok(()));
        assert_eq!(arbiter.try_take(7), Err(Busy::Nested));
        assert_eq!(arbiter.try_take(8), Err(Busy::Other(7)));
        assert!(!arbiter.take_over(9, 8));
        assert!(arbiter.take_over(7, 8));
        arbiter.give();
        assert_eq!(arbiter.try_take(9), Ok(()));
    }
}
