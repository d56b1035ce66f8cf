//! How busy a shard is: where there are several, the control thread gives new connections to more of them, or to fewer.
//!
//! A round that found work counts until the next round begins, so the clock that the loop reads anyway is enough. A shard that looks for
//! work in vain, or sleeps, is idle.

use std::sync::atomic::Ordering;

use super::{Shard, ToControl};

/// Over so long a time a shard finds itself busy or not, ns.
pub const WINDOW_NS: u64 = 500_000_000;
/// A shard that works so much of the time is busy, permille.
pub const BUSY_PERMILLE: u64 = 750;

/// What a shard has done lately.
#[derive(Debug)]
pub struct Effort {
    /// When the last round began that found work; none: it found none.
    worked_since: Option<u64>,
    /// ns of work, ever and when the window began.
    total: u64,
    total_then: u64,
    window_since: u64,
}

impl Effort {
    /// Of a shard that begins now.
    pub const fn new(now: u64) -> Self {
        Self { worked_since: None, total: 0, total_then: 0, window_since: now }
    }

    /// A round that began at `now` found work, or not. True at the end of a window in which it was busy.
    pub fn note(&mut self, now: u64, worked: bool) -> bool {
        if let Some(since) = self.worked_since {
            self.total += now.saturating_sub(since);
        }
        self.worked_since = worked.then_some(now);
        let window = now.saturating_sub(self.window_since);
        if window < WINDOW_NS {
            return false;
        }
        let busy = (self.total - self.total_then) * 1000 >= window * BUSY_PERMILLE;
        (self.window_since, self.total_then) = (now, self.total);
        busy
    }

    /// ns of work, ever.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

impl Shard {
    /// Tells the control thread how much was done, and wakes it if that is much and another shard could help.
    pub(super) fn tell_effort(&self, effort: &mut Effort, now: u64, worked: bool) {
        let before = effort.total();
        let busy = effort.note(now, worked);
        if effort.total() != before {
            self.inbox.tell_effort(effort.total());
        }
        if busy && self.life.page().active.load(Ordering::Relaxed) < self.config.count {
            self.outbox.send(ToControl::Busy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Rounds of a millisecond, of which `work` of ten find work.
    #[track_caller]
    fn check(work: u64, busy: bool) {
        let mut effort = Effort::new(0);
        let told = (0..=1000).filter(|&at| effort.note(at * MS, at % 10 < work)).count();
        assert_eq!(told, if busy { 2 } else { 0 }, "{work} of 10");
        assert_eq!(effort.total(), 100 * work * MS);
    }

    #[test]
    fn a_shard_knows_when_it_is_busy() {
        check(0, false);
        check(7, false);
        check(8, true);
        check(10, true);
    }

    /// A sleep is a long round without work.
    #[test]
    fn a_sleeper_is_idle() {
        let mut effort = Effort::new(0);
        assert!(!effort.note(0, true));
        assert!(!effort.note(400 * MS, false));
        assert!(!effort.note(4_000 * MS, true));
        assert_eq!(effort.total(), 400 * MS);
    }
}
