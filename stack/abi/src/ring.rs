//! A bounded ring of `u32`: one producer (a shard), any number of consumers (the threads and
//! processes that accept from one listener).
//!
//! ```text
//!        head (consumers, compare-and-swap)      tail (producer)
//!          ▼                                       ▼
//!  [ ....  a  b  c  d  e  f  g  h  i  j  k  l  m   ....        ]   index & (capacity − 1)
//! ```
//!
//! A consumer reads the entry first and owns it once it moved `head`: the producer reuses a slot
//! only after `head` passed it, so a consumer that lost the race read a stale number and drops it.
//! The other end may lie: an index out of range is [`PeerCorrupt`], checked before it is used.

use crate::PeerCorrupt;
use crate::sync::{AtomicU32, Ordering};

/// A view of one ring. The indices count entries since the ring was made and wrap at 2³².
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    head: &'a AtomicU32,
    tail: &'a AtomicU32,
    slots: &'a [AtomicU32],
}

impl<'a> Ring<'a> {
    /// A view over `slots`, whose length must be a power of two.
    #[must_use]
    pub fn new(head: &'a AtomicU32, tail: &'a AtomicU32, slots: &'a [AtomicU32]) -> Self {
        debug_assert!(slots.len().is_power_of_two());
        Self { head, tail, slots }
    }

    fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    fn slot(&self, index: u32) -> Option<&AtomicU32> {
        self.slots.get((index & self.capacity().wrapping_sub(1)) as usize)
    }

    /// How many entries wait. A hint to consumers; checked for the producer.
    ///
    /// # Errors
    /// [`PeerCorrupt`] if the indices are further apart than the ring is long.
    pub fn len(&self) -> Result<u32, PeerCorrupt> {
        let head = self.head.load(Ordering::Acquire);
        let used = self.tail.load(Ordering::Acquire).wrapping_sub(head);
        if used > self.capacity() {
            return Err(PeerCorrupt { what: "accept ring: head beyond tail", value: u64::from(used) });
        }
        Ok(used)
    }

    /// Whether nothing waits. A hint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tail.load(Ordering::Acquire) == self.head.load(Ordering::Acquire)
    }

    /// Producer: appends `value`. `tail` is the producer's own copy of its index, since the shared
    /// word could be overwritten by the other end. False: the ring is full.
    ///
    /// # Errors
    /// [`PeerCorrupt`] if a consumer moved `head` beyond `tail`.
    pub fn push(&self, tail: &mut u32, value: u32) -> Result<bool, PeerCorrupt> {
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        if used > self.capacity() {
            return Err(PeerCorrupt { what: "accept ring: head beyond tail", value: u64::from(used) });
        }
        if used == self.capacity() {
            return Ok(false);
        }
        if let Some(slot) = self.slot(*tail) {
            slot.store(value, Ordering::Relaxed);
        }
        *tail = tail.wrapping_add(1);
        // Release: the entry before the index that announces it.
        self.tail.store(*tail, Ordering::Release);
        Ok(true)
    }

    /// Consumer: the oldest entry, which another may take meanwhile.
    #[must_use]
    pub fn peek(&self) -> Option<u32> {
        let head = self.head.load(Ordering::Acquire);
        // Acquire: what the entry names was written before it was announced.
        (self.tail.load(Ordering::Acquire) != head)
            .then(|| self.slot(head))?
            .map(|slot| slot.load(Ordering::Relaxed))
    }

    /// Consumer: takes the oldest entry.
    #[must_use]
    pub fn pop(&self) -> Option<u32> {
        loop {
            let head = self.head.load(Ordering::Acquire);
            let tail = self.tail.load(Ordering::Acquire);
            if head == tail {
                return None;
            }
            let value = self.slot(head)?.load(Ordering::Relaxed);
            let next = head.wrapping_add(1);
            if self.head.compare_exchange(head, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some(value);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn memory() -> (AtomicU32, AtomicU32, Vec<AtomicU32>) {
        (AtomicU32::new(0), AtomicU32::new(0), (0..4).map(|_| AtomicU32::new(0)).collect())
    }

    #[test]
    fn first_in_first_out_and_full() {
        let (head, tail, slots) = memory();
        let ring = Ring::new(&head, &tail, &slots);
        let mut own = 0;
        for value in 0..4 {
            assert_eq!(ring.push(&mut own, value), Ok(true));
        }
        assert_eq!(ring.push(&mut own, 9), Ok(false));
        assert_eq!((ring.peek(), ring.peek()), (Some(0), Some(0)));
        for value in 0..4 {
            assert_eq!(ring.pop(), Some(value));
        }
        assert_eq!((ring.pop(), ring.peek()), (None, None));
    }

    #[test]
    fn a_lying_consumer_is_found_out() {
        let (head, tail, slots) = memory();
        let ring = Ring::new(&head, &tail, &slots);
        let mut own = 0;
        for lie in [1, 5, u32::MAX / 2, u32::MAX - 100] {
            head.store(lie, Ordering::Relaxed);
            assert!(ring.push(&mut own, 1).is_err(), "head = {lie}");
        }
        head.store(0, Ordering::Relaxed);
        tail.store(77, Ordering::Relaxed); // The shared tail is not what the producer believes.
        assert_eq!(ring.push(&mut own, 1), Ok(true));
        assert_eq!(tail.load(Ordering::Relaxed), 1);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// One producer, two consumers: each entry goes to exactly one of them.
    ///
    /// Three preemptions are enough to bring about every race that two compare-and-swaps of one word can
    /// have (a consumer that read, one that overtakes it, the producer that reuses the slot); without the
    /// bound the model takes minutes.
    #[test]
    fn each_entry_once() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let memory =
                Arc::new((AtomicU32::new(0), AtomicU32::new(0), vec![AtomicU32::new(0), AtomicU32::new(0)]));
            let consumer = |memory: Arc<(AtomicU32, AtomicU32, Vec<AtomicU32>)>| {
                move || {
                    let ring = Ring::new(&memory.0, &memory.1, &memory.2);
                    ring.pop().unwrap_or(0)
                }
            };
            let first = thread::spawn(consumer(memory.clone()));
            let second = thread::spawn(consumer(memory.clone()));
            let ring = Ring::new(&memory.0, &memory.1, &memory.2);
            let mut own = 0;
            for value in [1, 2, 4] {
                while ring.push(&mut own, value) == Ok(false) {
                    thread::yield_now();
                    if ring.len() == Ok(2) {
                        break; // Both consumers are done: the third entry has no room.
                    }
                }
            }
            let taken = first.join().unwrap() + second.join().unwrap();
            let mut rest = 0;
            while let Some(value) = ring.pop() {
                rest += value;
            }
            let pushed = if own == 3 { 7 } else { 3 };
            assert_eq!(taken + rest, pushed);
        });
    }
}
