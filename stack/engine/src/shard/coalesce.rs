//! When a shard lets frames gather before it looks at them, as NICs coalesce interrupts (`ethtool -C`, *rx-usecs*; the kernel's
//! `gro_flush_timeout`).
//!
//! A shard that sleeps is woken by the first frame, and serves it alone: a wake-up of the shard, one of the program, a call to send, a wake-up of the
//! neighbour's receive thread, for each. Where frames come thick that is most of what a request costs. So a shard without work that has had many frames
//! lately sleeps for a while without being to be woken by anybody: as long as some [`BATCH`] frames take to come, and never past the limit.
//!
//! Not where it is in the way of who waits for an answer. A nap that brought less than half of a batch was in vain, and the next one waits, twice as long
//! after each such: one connection that asks again once it was answered, however fast, brings one frame at a time. And a few connections of that kind do
//! less if each of their answers waits: so frames are counted for a while without naps and for a while with them, and if fewer came with them there are none.

/// So many frames are worth a nap: below some eight the wake-ups decide what a frame costs.
const BATCH: u64 = 8;
/// … and with fewer than so many it was in vain.
const WORTH: u64 = BATCH / 2;
/// How often frames come is measured over so long, ns.
const WINDOW_NS: u64 = 500_000;
/// So long there is no nap after one in vain …
const BACK_OFF_NS: u64 = 1_000_000;
/// … and so long after many.
const BACK_OFF_MAX_NS: u64 = 128_000_000;

/// So long it is tried without naps, and then with them, ns …
const TRIAL_NS: u64 = 16_000_000;
/// … and so long what was better stays.
const VERDICT_NS: u64 = 250_000_000;
/// Of so many frames that came without naps one less may come with them.
const TOLERANCE: u64 = 16;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// To do without naps.
    Without,
    /// Naps, after frames came so fast without, as [`pace`] has it.
    With(u64),
    /// Nothing: this was better.
    Over {
        /// Whether they pay.
        naps: bool,
    },
}

/// What one shard knows of it.
#[derive(Debug)]
pub struct Coalesce {
    /// The longest nap, ns.
    limit: u64,
    /// The next one, ns; 0: frames come too seldom.
    length: u64,
    /// When the window began, and the number of frames then.
    window: (u64, u64),
    /// The number of frames before the nap that has just ended.
    napped_at: Option<u64>,
    /// No nap before.
    not_before: u64,
    /// So long after the next one in vain.
    back_off: u64,
    trial: Trial,
    /// When the trial began, and the number of frames then.
    trial_since: (u64, u64),
}

/// How many frames come in [`TRIAL_NS`] if `frames` came in `took` ns.
const fn pace(frames: u64, took: u64) -> u64 {
    frames.saturating_mul(TRIAL_NS) / took
}

impl Coalesce {
    /// Of a shard that begins at `now`, and naps `limit` ns at most; 0: never.
    pub const fn new(limit: u64, now: u64) -> Self {
        Self {
            limit,
            length: 0,
            window: (now, 0),
            napped_at: None,
            not_before: 0,
            back_off: BACK_OFF_NS,
            trial: Trial::Without,
            trial_since: (now, 0),
        }
    }

    /// A round that began at `now` is over, and there have been `frames` ever.
    pub fn note(&mut self, frames: u64, now: u64) {
        if let Some(before) = self.napped_at.take() {
            if frames - before >= WORTH {
                self.back_off = BACK_OFF_NS;
            } else {
                self.not_before = now + self.back_off;
                self.back_off = (self.back_off * 2).min(BACK_OFF_MAX_NS);
            }
        }
        let (since, before) = self.window;
        let took = now.saturating_sub(since);
        if took >= WINDOW_NS {
            let batch = match frames - before {
                0 => u64::MAX,
                came => BATCH.saturating_mul(took) / came,
            };
            // Half a batch is worth it still.
            self.length = if batch <= self.limit * 2 { batch.min(self.limit) } else { 0 };
            self.window = (now, frames);
        }
        self.try_on(frames, now);
    }

    /// Begins the next trial when this one is over. One that lasted twice its time, because the shard slept, tells of nothing and begins anew.
    fn try_on(&mut self, frames: u64, now: u64) {
        let (since, before) = self.trial_since;
        let took = now.saturating_sub(since);
        let lasts = if matches!(self.trial, Trial::Over { .. }) { VERDICT_NS } else { TRIAL_NS };
        if took < lasts {
            return;
        }
        let came = pace(frames - before, took);
        let was_awake = took < lasts * 2;
        self.trial = match self.trial {
            Trial::Without if was_awake => Trial::With(came),
            Trial::With(without) if was_awake => Trial::Over { naps: came + without / TOLERANCE >= without },
            _ => Trial::Without,
        };
        self.trial_since = (now, frames);
    }

    /// How long a shard without work naps at `now`, ns, if at all; it has had `frames` ever.
    pub fn nap(&mut self, frames: u64, now: u64) -> Option<u64> {
        let tried = matches!(self.trial, Trial::With(_) | Trial::Over { naps: true });
        if self.length == 0 || now < self.not_before || !tried {
            return None;
        }
        self.napped_at = Some(frames);
        Some(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 100_000;

    /// A shard that looks every 10 µs and finds a frame every `gap` ns, whatever it does, until it may nap; the number of frames, and when it is.
    fn after(gap: u64, limit: u64) -> (Coalesce, u64, u64) {
        let mut coalesce = Coalesce::new(limit, 0);
        let end = TRIAL_NS * 2 + WINDOW_NS * 2;
        (0..=end).step_by(10_000).for_each(|now| coalesce.note(now / gap, now));
        (coalesce, end / gap, end)
    }

    #[test]
    fn a_nap_is_as_long_as_a_batch_takes() {
        for (gap, want) in
            [(1_000, Some(8_000)), (10_000, Some(80_000)), (20_000, Some(LIMIT)), (50_000, None)]
        {
            let (mut coalesce, frames, now) = after(gap, LIMIT);
            assert_eq!(coalesce.nap(frames, now), want, "a frame every {gap} ns");
        }
    }

    #[test]
    fn none_where_none_is_wanted_or_nothing_comes() {
        let (mut coalesce, frames, now) = after(1_000, 0);
        assert_eq!(coalesce.nap(frames, now), None);
        let (mut coalesce, frames, now) = after(1_000, LIMIT);
        coalesce.note(frames, now + WINDOW_NS);
        assert_eq!(coalesce.nap(frames, now + WINDOW_NS), None, "an idle window");
    }

    /// Questions and answers in turn, as fast as they may be: few of them wait.
    #[test]
    fn naps_in_vain_are_few() {
        let (mut coalesce, mut frames, begin) = after(10_000, LIMIT);
        let (mut now, mut naps) = (begin, 0);
        while now < begin + VERDICT_NS - TRIAL_NS {
            now += match coalesce.nap(frames, now) {
                Some(ns) => {
                    naps += 1;
                    ns
                }
                None => 10_000,
            };
            frames += 1;
            coalesce.note(frames, now);
        }
        assert!((6..=9).contains(&naps), "{naps}");
    }

    /// Connections that ask again once they were answered: `count` of them, each `think` ns after its answer.
    fn share_of_naps(count: u64, think: u64) -> f64 {
        let mut coalesce = Coalesce::new(LIMIT, 0);
        let (mut frames, mut now, mut naps, mut idle) = (0, 0, 0, 0);
        while now < 3_000_000_000 {
            match coalesce.nap(frames, now) {
                // All have asked by the end of it.
                Some(ns) => {
                    naps += 1;
                    frames += count;
                    now += ns.max(think) + count * 1_000;
                }
                None => {
                    idle += 1;
                    frames += count;
                    now += think + count * 1_000;
                }
            }
            coalesce.note(frames, now);
        }
        f64::from(naps) / f64::from(naps + idle)
    }

    #[test]
    fn naps_that_keep_work_away_are_given_up() {
        // Who has answers to wait for would have asked at once; or after as long as a nap takes.
        let (harmed, unharmed) = (share_of_naps(8, 10_000), share_of_naps(8, 120_000));
        assert!(harmed < 0.1 && unharmed > 0.5, "{harmed} {unharmed}");
    }

    /// Frames of before the shard slept say nothing about now.
    #[test]
    fn a_trial_that_was_slept_through_begins_anew() {
        for phase in [0, TRIAL_NS, TRIAL_NS * 2] {
            let mut coalesce = Coalesce::new(LIMIT, 0);
            (0..=phase).step_by(10_000).for_each(|now| coalesce.note(now / 10_000, now));
            let (frames, mut now) = (phase / 10_000, phase + VERDICT_NS * 2);
            // Many come again: without naps first, whatever was tried before.
            coalesce.note(frames, now);
            for more in 0..TRIAL_NS / 10_000 - 1 {
                now += 10_000;
                coalesce.note(frames + more, now);
                assert_eq!(coalesce.nap(frames + more, now), None, "after {phase} ns");
            }
            now += 10_000;
            coalesce.note(frames + TRIAL_NS / 10_000, now);
            assert!(coalesce.nap(frames, now).is_some(), "after {phase} ns");
        }
    }

    /// Trials last as long as the rounds in them have it: what counts is how fast frames came.
    #[test]
    fn a_longer_trial_is_no_better_one() {
        for (share, pays) in [(60, false), (100, true)] {
            let mut coalesce = Coalesce::new(LIMIT, 0);
            (0..=TRIAL_NS).step_by(10_000).for_each(|now| coalesce.note(now / 10_000, now));
            let took = TRIAL_NS * 18 / 10;
            let (frames, now) = ((TRIAL_NS + took * share / 100) / 10_000, TRIAL_NS + took);
            coalesce.note(frames, now);
            assert_eq!(coalesce.nap(frames, now).is_some(), pays, "{share} % of what came without naps");
        }
    }

    /// Who brings a batch each time goes on, and one nap in vain among them costs a millisecond.
    #[test]
    fn naps_that_pay_go_on() {
        let (mut coalesce, mut frames, mut now) = after(10_000, LIMIT);
        for _ in 0..100 {
            now += coalesce.nap(frames, now).unwrap();
            frames += BATCH;
            coalesce.note(frames, now);
        }
        let length = coalesce.nap(frames, now).unwrap();
        now += length;
        coalesce.note(frames, now);
        assert_eq!(coalesce.nap(frames, now + BACK_OFF_NS - 1), None);
        assert!(coalesce.nap(frames, now + BACK_OFF_NS).is_some());
    }
}
