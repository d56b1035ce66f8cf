//! Ranges of bytes that arrived out of order (RFC 9293 §3.10.7.4, seventh). The bytes lie in the receive stream
//! already; here is where.
//!
//! The list is bounded. A peer can make it full by sending every other byte; then new ranges are refused, and the peer
//! has to send them again.

use crate::segment::{SackBlock, SackBlocks};
use crate::seq::SeqNum;

/// Ranges on the list: as many holes as a sender of ours keeps account of.
pub(crate) const RANGES_MAX: usize = 256;
/// Ranges that it has place for itself.
const FEW: usize = 2;

/// Packed, as the list is a good part of a TCB's memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
struct Run {
    start: SeqNum,
    end: SeqNum,
    /// Larger for what changed later.
    stamp: u16,
}

impl Run {
    const EMPTY: Self = Self { start: SeqNum::new(0), end: SeqNum::new(0), stamp: 0 };
}

/// Room for many ranges that arrived out of order, which a connection borrows: see [`crate::Lender`].
#[derive(Debug)]
pub struct ArrivedRuns([Run; RANGES_MAX]);

impl ArrivedRuns {
    /// Ready to be lent.
    #[must_use]
    pub const fn new() -> Self {
        Self([Run::EMPTY; RANGES_MAX])
    }
}

impl Default for ArrivedRuns {
    fn default() -> Self {
        Self::new()
    }
}

/// The list: sorted, disjoint, not touching, all after RCV.NXT.
#[derive(Debug)]
pub(crate) struct Reassembly {
    /// What is borrowed, in place of its own.
    many: Option<&'static mut ArrivedRuns>,
    few: [Run; FEW],
    len: u16,
    clock: u16,
}

/// What became of an out-of-order segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insert {
    /// It is on the list.
    Stored,
    /// All of it was there already.
    Duplicate,
    /// There is no room for another range.
    Full,
}

impl Reassembly {
    pub(crate) const fn new() -> Self {
        Self { many: None, few: [Run::EMPTY; FEW], len: 0, clock: 0 }
    }

    /// Another range may be one too many for its own places.
    #[inline]
    pub(crate) const fn wants_many(&self) -> bool {
        self.many.is_none() && self.len as usize + 1 >= FEW
    }

    /// Borrows `many`.
    pub(crate) fn lend(&mut self, many: &'static mut ArrivedRuns) {
        for (to, run) in many.0.iter_mut().zip(self.runs()) {
            *to = *run;
        }
        self.many = Some(many);
    }

    /// Gives back what it borrowed and needs no more.
    #[inline]
    pub(crate) const fn give_back(&mut self) -> Option<&'static mut ArrivedRuns> {
        if self.len == 0 { self.many.take() } else { None }
    }

    /// Gives back what it borrowed; it is never used again.
    pub(crate) const fn end_loan(&mut self) -> Option<&'static mut ArrivedRuns> {
        self.len = 0;
        self.many.take()
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn runs(&self) -> &[Run] {
        let all: &[Run] = match &self.many {
            None => &self.few,
            Some(many) => &many.0,
        };
        all.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// All places, also those that are free.
    fn places(&mut self) -> &mut [Run] {
        match &mut self.many {
            None => &mut self.few,
            Some(many) => &mut many.0,
        }
    }

    /// Adds `start..end`, which is not empty and lies after RCV.NXT.
    pub(crate) fn insert(&mut self, start: SeqNum, end: SeqNum) -> Insert {
        debug_assert!(start.before(end));
        let len = usize::from(self.len);
        // The runs that touch the new one are first..last.
        let first = self.runs().iter().position(|r| r.end.after_or_eq(start)).unwrap_or(len);
        let touching = self.runs().iter().skip(first).take_while(|r| r.start.before_or_eq(end)).count();
        let last = first + touching;
        self.clock = self.clock.wrapping_add(1);
        let mut merged = Run { start, end, stamp: self.clock };
        if touching == 0 {
            if len == self.places().len() {
                return Insert::Full;
            }
            self.make_room(first);
        } else {
            for run in self.runs().iter().take(last).skip(first) {
                if run.start.before_or_eq(start) && run.end.after_or_eq(end) {
                    return Insert::Duplicate;
                }
                merged.start = merged.start.earlier(run.start);
                merged.end = merged.end.later(run.end);
            }
            self.take_out(first + 1, touching - 1);
        }
        if let Some(slot) = self.places().get_mut(first) {
            *slot = merged;
        }
        Insert::Stored
    }

    /// RCV.NXT moved to `nxt`: forgets what lies before it and returns where the in-order bytes now end.
    pub(crate) fn advance(&mut self, nxt: SeqNum) -> SeqNum {
        let gone = self.runs().iter().take_while(|r| r.start.before_or_eq(nxt)).count();
        let end = self.runs().iter().take(gone).fold(nxt, |end, r| end.later(r.end));
        if gone > 0 {
            self.take_out(0, gone);
        }
        end
    }

    /// Shifts the runs from `at` on by one place; the caller has checked that there is one.
    fn make_room(&mut self, at: usize) {
        self.len += 1;
        let len = usize::from(self.len);
        let mut carried = Run::default();
        for run in self.places().iter_mut().take(len).skip(at) {
            core::mem::swap(run, &mut carried);
        }
    }

    /// Closes the gap of `n` runs from `at` on.
    fn take_out(&mut self, at: usize, n: usize) {
        for i in at + n..usize::from(self.len) {
            let moved = self.places().get(i).copied().unwrap_or_default();
            if let Some(slot) = self.places().get_mut(i - n) {
                *slot = moved;
            }
        }
        self.len = self.len.saturating_sub(n as u16);
    }

    /// Whether something lies on the list that `at` does not end.
    pub(crate) fn reaches_beyond(&self, at: SeqNum) -> bool {
        self.end().is_some_and(|end| end.after(at))
    }

    /// Where the last run ends.
    pub(crate) fn end(&self) -> Option<SeqNum> {
        self.runs().last().map(|run| run.end)
    }

    /// What lies before `end` of the first run.
    pub(crate) fn first_below(&self, end: SeqNum) -> Option<(SeqNum, SeqNum)> {
        let run = self.runs().first().copied()?;
        let (from, to) = (run.start, run.end);
        from.before(end).then(|| (from, to.earlier(end)))
    }

    /// The run that covers `seq`.
    pub(crate) fn covering(&self, seq: SeqNum) -> Option<SackBlock> {
        let run = self.runs().iter().find(|r| r.start.before_or_eq(seq) && r.end.after(seq))?;
        Some(SackBlock { start: run.start, end: run.end })
    }

    /// RFC 2018 §4: the block with the most recent segment first, then those reported before it, up to `max` in all.
    pub(crate) fn sack_blocks(&self, blocks: &mut SackBlocks, max: usize) {
        let mut below = None;
        while blocks.len() < max {
            let age = |r: &Run| self.clock.wrapping_sub(r.stamp);
            let next = self.runs().iter().filter(|r| below.is_none_or(|b| age(r) > b)).min_by_key(|r| age(r));
            let Some(run) = next else { return };
            below = Some(age(run));
            let block = SackBlock { start: run.start, end: run.end };
            if !blocks.as_slice().contains(&block) {
                blocks.push(block);
            }
        }
    }

    /// Bytes on the list, for `TCP_INFO` and tests.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u32 {
        self.runs().iter().map(|r| r.start.distance_to(r.end)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    const BASE: SeqNum = SeqNum::new(0xffff_ff00);

    fn roomy() -> Reassembly {
        let mut list = Reassembly::new();
        list.lend(Box::leak(Box::default()));
        list
    }

    #[track_caller]
    fn check(list: &Reassembly, expected: &[(u32, u32)]) {
        let runs = list.runs();
        assert_eq!(runs.len(), expected.len());
        for (run, &(start, end)) in runs.iter().zip(expected) {
            assert_eq!((BASE.distance_to(run.start), BASE.distance_to(run.end)), (start, end));
        }
    }

    #[test]
    fn ranges_merge_across_the_wrap() {
        let mut list = roomy();
        assert_eq!(list.insert(BASE + 300, BASE + 400), Insert::Stored);
        assert_eq!(list.insert(BASE + 100, BASE + 200), Insert::Stored);
        check(&list, &[(100, 200), (300, 400)]);
        assert_eq!(list.insert(BASE + 320, BASE + 400), Insert::Duplicate);
        assert_eq!(list.insert(BASE + 200, BASE + 250), Insert::Stored);
        check(&list, &[(100, 250), (300, 400)]);
        assert_eq!(list.insert(BASE + 50, BASE + 500), Insert::Stored);
        check(&list, &[(50, 500)]);
        assert_eq!(list.bytes(), 450);
        assert_eq!(list.advance(BASE + 40), BASE + 40);
        assert_eq!(list.advance(BASE + 50), BASE + 500);
        assert!(list.is_empty());
    }

    #[test]
    fn sack_reports_the_latest_first() {
        let mut list = roomy();
        for n in [5, 1, 3, 7, 9] {
            list.insert(BASE + n * 100, BASE + n * 100 + 50);
        }
        list.insert(BASE + 350, BASE + 360);
        let mut blocks = SackBlocks::NONE;
        list.sack_blocks(&mut blocks, 3);
        let starts: [u32; 3] = core::array::from_fn(|i| BASE.distance_to(blocks.as_slice()[i].start));
        assert_eq!(starts, [300, 900, 700]);
        assert_eq!(blocks.as_slice()[0].end, BASE + 360);
    }

    #[test]
    fn a_full_list_refuses_and_recovers() {
        let mut list = roomy();
        for n in 0..RANGES_MAX as u32 {
            assert_eq!(list.insert(BASE + 10 + 4 * n, BASE + 11 + 4 * n), Insert::Stored);
        }
        assert_eq!(list.insert(BASE + 5_000, BASE + 5_001), Insert::Full);
        assert_eq!(list.insert(BASE + 9, BASE + 10), Insert::Stored, "it merges");
        assert_eq!(list.advance(BASE + 10), BASE + 11);
        assert_eq!(list.insert(BASE + 5_000, BASE + 5_001), Insert::Stored);
    }

    #[test]
    fn it_borrows_for_the_second_range_and_gives_back_when_the_holes_are_filled() {
        let mut list = Reassembly::new();
        assert!(!list.wants_many());
        assert_eq!(list.insert(BASE + 10, BASE + 20), Insert::Stored);
        assert!(list.wants_many());
        assert_eq!(list.insert(BASE + 30, BASE + 40), Insert::Stored);
        assert_eq!(list.insert(BASE + 50, BASE + 60), Insert::Full, "it has two places");
        list.lend(Box::leak(Box::default()));
        assert_eq!(list.insert(BASE + 50, BASE + 60), Insert::Stored);
        check(&list, &[(10, 20), (30, 40), (50, 60)]);
        assert!(!list.wants_many() && list.give_back().is_none());
        list.insert(BASE + 20, BASE + 50);
        assert_eq!(list.advance(BASE + 10), BASE + 60);
        assert!(list.give_back().is_some() && list.give_back().is_none());
        assert_eq!(list.insert(BASE + 70, BASE + 80), Insert::Stored);
        check(&list, &[(70, 80)]);
    }
}
