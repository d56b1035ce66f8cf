//! How long a shard that has nothing to do looks for work before it sleeps: as long as the gaps between arrivals say that it pays.
//!
//! To sleep and be woken costs the core, the one who rings and the one who waits for the answer about as much as [`WAKE_NS`] of looking.
//! Who knew when the next thing arrives would look until then if it is sooner, and sleep at once if it is later. We know how the last
//! gaps were: of the spins that end at a [`bound`](Spin::bound) we take the one that would have cost least in them, sleeps and looks in
//! vain together ("ski rental" with a known distribution: Karlin et al., *Competitive randomized algorithms for nonuniform problems*,
//! Algorithmica 11, 1994). So a spin burns no more than the sleeps that it saves, and a shard whose work comes seldom does not spin.
//! How long a gap was that ended in a sleep can't be told, as waking took its time; so one in [`TRIAL`] looks as long as it may, and
//! these are counted.
//!
//! Each look yields the core. A yield that comes back late went to somebody with work of his own, who keeps the core for a slice each
//! time, where a sleeper that is rung gets it at once: then we sleep without a spin for a while.

/// What a sleep costs all who are concerned, as ns of a core: about 10 µs of work on both sides, and 18 to 30 µs on virtual machines until
/// the sleeper runs. (Half of it cost a server with fifty clients a tenth of what it serves per core.)
const WAKE_NS: u64 = 40_000;
/// A yield that takes longer has fed somebody else …
const CROWDED_NS: u64 = 1_000_000;
/// … and for so long the shard sleeps without a spin.
const CALM_NS: u64 = 50_000_000;
/// Lengths to choose from, the longest first, each half of the one before; and none.
const LENGTHS: usize = 8;
/// After so many gaps of known length the choice is made anew, and what was seen before counts half.
const GAPS: u32 = 16;
/// Of so many gaps one is looked through as long as may be.
const TRIAL: u32 = 32;

/// What one shard has learnt.
#[derive(Debug)]
pub struct Spin {
    /// The longest spin, ns.
    limit: u64,
    /// The one that pays now, ns.
    length: u64,
    /// Gaps by the shortest spin that would have met their end, and how long they were together, ns.
    met: [(u32, u64); LENGTHS],
    /// Gaps that outlast every spin.
    missed: u32,
    /// Gaps of known length since the last choice.
    fresh: u32,
    /// Gaps since the last trial.
    since_trial: u32,
    /// No spin before.
    calm_until: u64,
}

impl Spin {
    /// Of a shard that begins, and spins `limit` ns at most.
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            length: limit,
            met: [(0, 0); LENGTHS],
            missed: 0,
            fresh: 0,
            since_trial: 0,
            calm_until: 0,
        }
    }

    /// Whether a shard that has had nothing to do for `idle` ns looks on, at the time `now`.
    pub const fn goes_on(&self, idle: u64, now: u64) -> bool {
        idle < self.longest() && now >= self.calm_until
    }

    /// How long this gap is looked through, ns.
    const fn longest(&self) -> u64 {
        if self.since_trial == TRIAL { self.limit } else { self.length }
    }

    /// A yield of the core lasted from `left` to `back`.
    pub const fn note_yield(&mut self, left: u64, back: u64) {
        if back - left > CROWDED_NS {
            self.calm_until = back + CALM_NS;
        }
    }

    /// Work arrived at `now`, `gap` ns after the last was done.
    pub fn note_gap(&mut self, gap: u64, now: u64) {
        let is_known = self.longest() == self.limit && now >= self.calm_until;
        self.since_trial = if is_known { 0 } else { TRIAL.min(self.since_trial + 1) };
        if !is_known {
            return;
        }
        match (0..LENGTHS).rev().find(|&at| gap < self.bound(at)) {
            Some(at) => {
                self.met[at].0 += 1;
                self.met[at].1 += gap;
            }
            None => self.missed += 1,
        }
        self.fresh += 1;
        if self.fresh >= GAPS {
            self.choose();
        }
    }

    /// The spin of number `at`, ns.
    const fn bound(&self, at: usize) -> u64 {
        self.limit >> at
    }

    /// Takes the length that would have cost least.
    fn choose(&mut self) {
        let gaps = u64::from(self.met.iter().map(|(count, _)| count).sum::<u32>() + self.missed);
        let (mut met, mut looked) = (0, 0);
        let mut best = (gaps * WAKE_NS, 0);
        for at in (0..LENGTHS).rev() {
            met += u64::from(self.met[at].0);
            looked += self.met[at].1;
            let cost = looked + (gaps - met) * (self.bound(at) + WAKE_NS);
            if cost < best.0 {
                best = (cost, self.bound(at));
            }
        }
        self.length = best.1;
        for (count, sum) in &mut self.met {
            *count /= 2;
            *sum /= 2;
        }
        self.missed /= 2;
        self.fresh = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 50_000;

    /// A gap as the shard finds it that looks through it all.
    fn see(spin: &mut Spin, gap: u64) {
        spin.since_trial = TRIAL;
        spin.note_gap(gap, 0);
    }

    fn after(gaps: impl IntoIterator<Item = u64>) -> u64 {
        let mut spin = Spin::new(LIMIT);
        gaps.into_iter().for_each(|gap| see(&mut spin, gap));
        spin.length
    }

    /// What `gaps` cost with a spin of `length`.
    fn cost(gaps: &[u64], length: u64) -> u64 {
        gaps.iter().map(|&gap| if gap < length { gap } else { length + WAKE_NS }).sum()
    }

    #[test]
    fn a_spin_is_as_long_as_it_pays() {
        assert_eq!(after([3_000; 64]), LIMIT >> 4, "the shortest that meets them");
        assert_eq!(after([18_000; 64]), LIMIT >> 1);
        assert_eq!(after([WAKE_NS + 5_000; 64]), 0, "to sleep is cheaper");
        assert_eq!(after([1_000_000; 64]), 0);
        // Bursts: short gaps, and then a long one.
        assert_eq!(after((0..64).map(|at| if at % 8 == 7 { 500_000 } else { 2_000 })), LIMIT >> 4);
    }

    /// Whatever the gaps, the choice costs no more than to sleep at once, nor than the longest spin, once they are known.
    #[test]
    fn a_choice_is_the_best_of_what_was_seen() {
        let mut random = 1_u64;
        for _ in 0..200 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mean, spread) = (1 + (random >> 40) % 100_000, 1 + (random >> 20) % 100_000);
            let gaps: Vec<u64> =
                (0..u64::from(GAPS)).map(|at| mean + random.rotate_left(at as u32) % spread).collect();
            let chosen = cost(&gaps, after(gaps.iter().copied()));
            for at in 0..LENGTHS {
                assert!(chosen <= cost(&gaps, LIMIT >> at), "{gaps:?}");
            }
            assert!(chosen <= cost(&gaps, 0), "{gaps:?}");
        }
    }

    #[test]
    fn it_learns_anew() {
        let mut spin = Spin::new(LIMIT);
        for (gap, want) in [(1_000_000, 0), (2_000, LIMIT >> 4), (1_000_000, 0)] {
            (0..GAPS * 5 * (TRIAL + 1)).for_each(|_| spin.note_gap(gap, 0));
            assert_eq!(spin.length, want, "gaps of {gap} ns");
        }
    }

    /// A shard that sleeps through every gap still finds out that they have become short: few of its gaps are looked through.
    #[test]
    fn trials_are_few() {
        let mut spin = Spin::new(LIMIT);
        (0..GAPS).for_each(|_| spin.note_gap(1_000_000, 0));
        let gaps = 1000;
        let looked = (0..gaps).filter(|_| {
            let looks = spin.goes_on(LIMIT - 1, 0);
            spin.note_gap(1_000_000, 0);
            looks
        });
        assert_eq!(looked.count() as u32, gaps / (TRIAL + 1));
    }

    #[test]
    fn none_where_others_want_the_core_or_none_is_wanted() {
        let mut spin = Spin::new(LIMIT);
        assert!(spin.goes_on(LIMIT - 1, 0) && !spin.goes_on(LIMIT, 0));
        spin.note_yield(0, CROWDED_NS + 1);
        assert!(!spin.goes_on(0, CROWDED_NS + CALM_NS));
        assert!(spin.goes_on(0, CROWDED_NS + CALM_NS + 1));
        let mut none = Spin::new(0);
        (0..GAPS * 2).for_each(|_| none.note_gap(0, 0));
        assert!(!none.goes_on(0, 0));
    }
}
