//! A hierarchical timer wheel: filing and cancelling cost a few stores, whatever the number of timers.
//!
//! ```text
//!  level 0   64 slots of 1 tick (65.5 µs)     the next 4.2 ms: reordering timers, tail loss probes
//!  level 1   64 slots of 64 ticks             the next 0.27 s: delayed ACKs, retransmissions
//!  level 2   64 slots of 4096 ticks           the next 17 s
//!  level 3   64 slots of 262144 ticks         the next 18 min
//!  level 4   64 slots of 16777216 ticks       the next 19.5 h; later ones wait in its last slot
//! ```
//!
//! A timer is a node of a doubly linked list, addressed by a [`Handle`]; nodes are recycled, so a
//! connection allocates nothing. Timers fire never early, and at most one tick late at level 0; those
//! of the higher levels are filed anew when their slot comes up.

use std::num::NonZeroU32;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 5;
const TICK_BITS: u32 = 16;
const NONE: u32 = u32::MAX;

/// Names a filed timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(NonZeroU32);

#[derive(Debug, Clone, Copy)]
struct Node<T> {
    next: u32,
    prev: u32,
    /// Level * 64 + slot; NONE while free.
    list: u32,
    due_ns: u64,
    what: T,
}

/// The wheel. `T` says what a timer is for.
#[derive(Debug)]
pub struct Wheel<T> {
    nodes: Vec<Node<T>>,
    free: u32,
    heads: [u32; SLOTS * LEVELS],
    /// Bit i of level l: slot i is not empty.
    filled: [u64; LEVELS],
    /// Every tick up to this one has been run.
    tick: u64,
    len: usize,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel at `now_ns` with room for `capacity` timers before it allocates.
    #[must_use]
    pub fn new(now_ns: u64, capacity: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(capacity),
            free: NONE,
            heads: [NONE; SLOTS * LEVELS],
            filled: [0; LEVELS],
            tick: now_ns >> TICK_BITS,
            len: 0,
        }
    }

    /// Files a timer.
    pub fn insert(&mut self, due_ns: u64, what: T) -> Handle {
        let node = Node { next: NONE, prev: NONE, list: NONE, due_ns, what };
        let index = if self.free == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        self.link(index);
        self.len += 1;
        Handle(NonZeroU32::MIN.saturating_add(index))
    }

    /// Cancels a timer that has not fired.
    pub fn remove(&mut self, handle: Handle) {
        let index = handle.0.get() - 1;
        self.unlink(index);
        self.release(index);
    }

    fn release(&mut self, index: u32) {
        self.nodes[index as usize].list = NONE;
        self.nodes[index as usize].next = self.free;
        self.free = index;
        self.len -= 1;
    }

    fn link(&mut self, index: u32) {
        // Rounded up: never early. At least the next tick, or it would wait a whole turn.
        let due = (self.nodes[index as usize].due_ns >> TICK_BITS).saturating_add(1).max(self.tick + 1);
        let distance = due - self.tick;
        let level = ((63 - distance.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1) as usize;
        let furthest = (SLOTS as u64 - 1) << (level as u32 * SLOT_BITS);
        let due = if distance > furthest { self.tick + furthest } else { due };
        let slot = (due >> (level as u32 * SLOT_BITS)) as usize & (SLOTS - 1);
        let list = level * SLOTS + slot;
        let head = self.heads[list];
        let node = &mut self.nodes[index as usize];
        (node.next, node.prev, node.list) = (head, NONE, list as u32);
        if head != NONE {
            self.nodes[head as usize].prev = index;
        }
        self.heads[list] = index;
        self.filled[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Node { next, prev, list, .. } = self.nodes[index as usize];
        debug_assert!(list != NONE, "a timer that is not filed was cancelled");
        if prev == NONE {
            self.heads[list as usize] = next;
            if next == NONE {
                self.filled[list as usize / SLOTS] &= !(1 << (list as usize % SLOTS));
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
    }

    /// When [`Wheel::advance`] has something to do; `None` if nothing is filed. Never later than the first
    /// timer, perhaps earlier (a slot of a higher level that has to be spread out).
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        let mut best: Option<u64> = None;
        for level in 0..LEVELS {
            let shift = level as u32 * SLOT_BITS;
            let position = self.tick >> shift;
            let turned = self.filled[level].rotate_right((position & (SLOTS as u64 - 1)) as u32);
            if turned != 0 {
                // Slot 0 of the turned word is the present one: it comes up a whole turn later.
                let ahead = match turned & !1 {
                    0 => SLOTS as u64,
                    rest => u64::from(rest.trailing_zeros()),
                };
                let tick = (position + ahead) << shift;
                best = Some(best.map_or(tick, |b| b.min(tick)));
            }
        }
        best.map(|tick| tick << TICK_BITS)
    }

    /// Runs the clock up to `now_ns`; calls `fire` for every timer that is due.
    pub fn advance(&mut self, now_ns: u64, mut fire: impl FnMut(T)) {
        let target = now_ns >> TICK_BITS;
        while self.tick < target {
            if self.len == 0 {
                self.tick = target;
                return;
            }
            // Jump over empty ticks: the next one at which any slot comes up.
            let next = self.next_ns().map_or(target, |ns| ns >> TICK_BITS);
            self.tick = next.min(target);
            if next > target {
                return;
            }
            self.run_tick(&mut fire);
        }
    }

    /// Spreads the slots of the higher levels that come up at this tick, then fires level 0's.
    fn run_tick(&mut self, fire: &mut impl FnMut(T)) {
        for level in (0..LEVELS).rev() {
            let shift = level as u32 * SLOT_BITS;
            if self.tick & ((1 << shift) - 1) != 0 {
                continue;
            }
            let slot = (self.tick >> shift) as usize & (SLOTS - 1);
            let mut index = std::mem::replace(&mut self.heads[level * SLOTS + slot], NONE);
            self.filled[level] &= !(1 << slot);
            while index != NONE {
                let Node { next, due_ns, what, .. } = self.nodes[index as usize];
                if due_ns >> TICK_BITS < self.tick {
                    self.release(index);
                    fire(what);
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const TICK: u64 = 1 << TICK_BITS;

    /// Runs random timers against a sorted list.
    #[test]
    fn fires_all_in_time_and_never_early() {
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut now = 77 * TICK + 5;
        let mut wheel = Wheel::new(now, 16);
        let mut live: Vec<(u64, u32, Handle)> = Vec::new();
        for id in 0..20_000u32 {
            let spread = [TICK, 100 * TICK, 10_000 * TICK, 1_000_000 * TICK][random(4) as usize];
            let due = now + random(spread);
            live.push((due, id, wheel.insert(due, id)));
            if random(3) == 0 {
                let victim = random(live.len() as u64) as usize;
                wheel.remove(live.swap_remove(victim).2);
            }
            if random(4) == 0 {
                now += random(300 * TICK);
                let mut fired = Vec::new();
                assert!(
                    wheel.next_ns().is_none_or(|next| {
                        live.iter().all(|&(due, ..)| next <= due + TICK || next <= now)
                    })
                );
                wheel.advance(now, |id| fired.push(id));
                for id in fired {
                    let at = live.iter().position(|&(_, i, _)| i == id).expect("fired once");
                    let (due, ..) = live.swap_remove(at);
                    assert!(due <= now, "timer {id} fired early");
                }
                let late = live.iter().filter(|&&(due, ..)| due + 2 * TICK < now).count();
                assert_eq!(late, 0, "timers are late");
                assert_eq!(wheel.len, live.len());
            }
        }
    }

    #[test]
    fn a_far_timer_is_not_lost() {
        let mut wheel = Wheel::new(0, 1);
        let due = 30 * 3600 * 1_000_000_000;
        wheel.insert(due, 1);
        let mut fired = 0;
        let mut now = 0;
        while fired == 0 {
            now = wheel.next_ns().expect("still filed").max(now + 1);
            wheel.advance(now, |_| fired += 1);
        }
        assert!(now >= due && now < due + 2 * TICK);
        assert_eq!(wheel.next_ns(), None);
    }
}
