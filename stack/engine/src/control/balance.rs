//! How many shards get new connections: more when those that do are busy, fewer when fewer would do.
//!
//! ```text
//!  a shard is busy ─► Busy ─► looks, each half second ─ all are busy, twice ─► one more ─┐
//!                     looks ◄────────────────────────────────────────────────────────────┘
//!                       ├ the others could carry it all, ten times ─► one less: it keeps its flows, and sleeps when they do
//!                       └ one is left, and not busy ─► no looks: an engine without work has no timer
//! ```
//!
//! The shards' threads are there from the beginning, which costs little: one that nobody gives a connection sleeps. What changes is a
//! word of the engine's page, by which programs choose the shard of a new socket; a listener is in every shard. Flows stay where they
//! began. A device's queues belong to shards for good, so what comes by devices is the first shard's, unless cores are given.

use std::time::{Duration, Instant};

use crate::shard::{BUSY_PERMILLE, WINDOW_NS};

/// Looks at which all were busy, before there is one more.
const BUSY_LOOKS: u32 = 2;
/// Looks at which fewer would have done, before there is one less.
const IDLE_LOOKS: u32 = 10;
/// What each of fewer shards would have to do at most, permille of its time: far from busy, or they would come and go.
const EASY_PERMILLE: u64 = 350;

/// What is known of the shards' load.
#[derive(Debug)]
pub(super) struct Balance {
    count: u32,
    active: u32,
    /// The last look, and what each shard had worked then, ns; none: nobody was busy.
    last: Option<(Instant, Vec<u64>)>,
    busy_looks: u32,
    idle_looks: u32,
    /// How often there was one more, and one less.
    pub(super) added: u64,
    pub(super) removed: u64,
}

impl Balance {
    /// Of `count` shards; `fixed`: all are in use, whatever the load.
    pub(super) const fn new(count: u32, fixed: bool) -> Self {
        let active = if fixed { count } else { 1 };
        Self { count, active, last: None, busy_looks: 0, idle_looks: 0, added: 0, removed: 0 }
    }

    /// Shards that get new connections: the first ones.
    pub(super) const fn active(&self) -> u32 {
        self.active
    }

    /// When to look, at the latest.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        let (last, _) = self.last.as_ref()?;
        Some(Duration::from_nanos(WINDOW_NS).saturating_sub(now.saturating_duration_since(*last)))
    }

    /// A shard says that it is busy; each has worked for so many ns.
    pub(super) fn on_busy(&mut self, now: Instant, efforts: impl Iterator<Item = u64>) {
        self.last.get_or_insert_with(|| (now, efforts.collect()));
    }

    /// Looks, if it is time to; the new number of active shards, if it changes.
    pub(super) fn look(&mut self, now: Instant, efforts: impl Iterator<Item = u64>) -> Option<u32> {
        if self.due_in(now) != Some(Duration::ZERO) {
            return None;
        }
        let (last, before) = self.last.take()?;
        let window = (now - last).as_nanos().max(1) as u64;
        let efforts: Vec<u64> = efforts.collect();
        let permille = |(now, before): (&u64, &u64)| now.saturating_sub(*before) * 1000 / window;
        let loads: Vec<u64> = efforts.iter().zip(&before).map(permille).collect();
        let active = self.active as usize;
        let busy = loads.iter().take(active).all(|load| *load >= BUSY_PERMILLE);
        // Also what the others still have of flows that began when there were more.
        let easy = loads.iter().sum::<u64>() < (u64::from(self.active) - 1) * EASY_PERMILLE;
        self.busy_looks = if busy { self.busy_looks + 1 } else { 0 };
        self.idle_looks = if easy { self.idle_looks + 1 } else { 0 };
        if busy || self.active > 1 {
            self.last = Some((now, efforts));
        }
        if self.busy_looks >= BUSY_LOOKS && self.active < self.count {
            self.added += 1;
            return self.change(self.active + 1);
        }
        if self.idle_looks >= IDLE_LOOKS {
            self.removed += 1;
            return self.change(self.active - 1);
        }
        None
    }

    fn change(&mut self, active: u32) -> Option<u32> {
        (self.busy_looks, self.idle_looks) = (0, 0);
        self.active = active;
        Some(active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four shards that work so many permille of each half second, from then on; what becomes of them.
    struct World {
        balance: Balance,
        now: Instant,
        efforts: [u64; 4],
    }

    impl World {
        fn new() -> Self {
            Self { balance: Balance::new(4, false), now: Instant::now(), efforts: [0; 4] }
        }

        /// Works for half a second; what the look after it says.
        fn half_second(&mut self, permille: [u64; 4]) -> Option<u32> {
            self.now += Duration::from_nanos(WINDOW_NS);
            for (effort, permille) in self.efforts.iter_mut().zip(permille) {
                *effort += permille * WINDOW_NS / 1000;
            }
            let said = self.balance.look(self.now, self.efforts.into_iter());
            if permille.iter().any(|load| *load >= BUSY_PERMILLE) {
                self.balance.on_busy(self.now, self.efforts.into_iter());
            }
            said
        }

        #[track_caller]
        fn check(&mut self, half_seconds: u32, permille: [u64; 4], active: u32) {
            for _ in 0..half_seconds {
                self.half_second(permille);
            }
            assert_eq!(self.balance.active(), active);
        }
    }

    #[test]
    fn shards_come_while_all_are_busy() {
        let mut world = World::new();
        world.check(2, [1000, 0, 0, 0], 1); // The first tells, the second is looked at.
        world.check(1, [1000, 0, 0, 0], 2);
        world.check(20, [1000, 100, 0, 0], 2); // A thread that makes all the connections has no use for a third.
        world.check(2, [1000, 800, 0, 0], 3);
        world.check(2, [900, 800, 760, 0], 4);
        world.check(20, [1000; 4], 4);
        assert_eq!((world.balance.added, world.balance.removed), (3, 0));
    }

    #[test]
    fn a_burst_changes_nothing() {
        let mut world = World::new();
        for _ in 0..10 {
            world.check(2, [1000, 0, 0, 0], 1);
            world.check(1, [600, 0, 0, 0], 1);
        }
    }

    #[test]
    fn shards_go_when_fewer_would_do_and_no_look_is_due_in_the_end() {
        let mut world = World::new();
        world.check(3, [1000, 0, 0, 0], 2);
        world.check(2, [1000, 1000, 0, 0], 3);
        world.check(100, [400, 400, 0, 0], 3); // Two would be near half.
        world.check(10, [300, 300, 0, 0], 2);
        // What the third still carries counts.
        world.check(100, [150, 100, 150, 0], 2);
        world.check(9, [100, 100, 50, 0], 2);
        assert!(world.balance.due_in(world.now).is_some());
        world.check(1, [100, 100, 50, 0], 1);
        world.check(1, [100, 100, 50, 0], 1);
        assert_eq!(world.balance.due_in(world.now), None);
        assert_eq!((world.balance.added, world.balance.removed), (2, 2));
    }

    #[test]
    fn fixed_ones_stay() {
        let mut balance = Balance::new(4, true);
        assert_eq!((balance.active(), balance.due_in(Instant::now())), (4, None));
        assert_eq!(balance.look(Instant::now(), [0; 4].into_iter()), None);
    }
}
