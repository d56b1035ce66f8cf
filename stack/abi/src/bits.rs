//! A bitmap of three levels: commands ("socket 17 has news for you"), readiness and free lists.
//!
//! ```text
//!  top    [................................]  bit i: middle[i] is not empty
//!  middle [....][....] …                      bit j: words[j] is not empty
//!  words  [....][....][....] …                bit k: entry k
//! ```
//!
//! Setting a bit costs one atomic operation when its word already has another bit, three at most.
//! Finding the set ones costs a load per level that is not empty: O(set), never O(entries).
//!
//! Ground rules: a setter goes upwards *after* it found its word empty; a taker goes downwards and
//! empties a level *before* it looks below. Whoever clears a summary bit looks below once more
//! and sets it again if it must. A setter that is killed between two levels leaves a word without
//! its summary; [`Bits::repair`] finds it (the engine calls it when a process of the client dies).

use crate::sync::{AtomicU64, Ordering};

/// Words of the middle level for `words` words.
#[must_use]
pub const fn middle_len(words: usize) -> usize {
    words.div_ceil(64)
}

/// A view of one bitmap in memory that lives elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    words: &'a [AtomicU64],
    middle: &'a [AtomicU64],
    top: &'a AtomicU64,
}

fn split(index: u32) -> (usize, u64) {
    ((index >> 6) as usize, 1 << (index & 63))
}

impl<'a> Bits<'a> {
    /// A view over `words`, with `middle` of [`middle_len`] words, at most 64.
    #[must_use]
    pub fn new(words: &'a [AtomicU64], middle: &'a [AtomicU64], top: &'a AtomicU64) -> Self {
        debug_assert!(middle.len() == middle_len(words.len()) && middle.len() <= 64);
        Self { words, middle, top }
    }

    /// Sets bit `index`; true if it was clear. Everything that the caller wrote before is visible
    /// to whoever takes the bit. An index beyond the map is ignored.
    pub fn set(&self, index: u32) -> bool {
        let (word, bit) = split(index);
        let Some(cell) = self.words.get(word) else { return false };
        // SeqCst: the taker's "empty, now I sleep" check must not overtake us (see `bell`).
        let before = cell.fetch_or(bit, Ordering::SeqCst);
        if before == 0 {
            self.summarise(word);
        }
        before & bit == 0
    }

    /// Marks `words[word]` as not empty in both levels above.
    fn summarise(&self, word: usize) {
        let (mid, bit) = split(word as u32);
        let Some(cell) = self.middle.get(mid) else { return };
        if cell.fetch_or(bit, Ordering::SeqCst) == 0 {
            self.top.fetch_or(1 << mid, Ordering::SeqCst);
        }
    }

    /// Clears bit `index`; true if it was set.
    pub fn clear(&self, index: u32) -> bool {
        let (word, bit) = split(index);
        let Some(cell) = self.words.get(word) else { return false };
        let before = cell.fetch_and(!bit, Ordering::SeqCst);
        if before & !bit == 0 {
            self.unsummarise(word);
        }
        before & bit != 0
    }

    /// `words[word]` became empty: clears its summary, unless it filled again meanwhile.
    fn unsummarise(&self, word: usize) {
        let (mid, bit) = split(word as u32);
        let (Some(cell), Some(below)) = (self.middle.get(mid), self.words.get(word)) else { return };
        if cell.fetch_and(!bit, Ordering::SeqCst) & !bit == 0 {
            self.top.fetch_and(!(1 << mid), Ordering::SeqCst);
            if cell.load(Ordering::SeqCst) != 0 {
                self.top.fetch_or(1 << mid, Ordering::SeqCst);
            }
        }
        if below.load(Ordering::SeqCst) != 0 {
            self.summarise(word);
        }
    }

    /// Whether bit `index` is set. A hint.
    #[must_use]
    pub fn is_set(&self, index: u32) -> bool {
        let (word, bit) = split(index);
        self.words.get(word).is_some_and(|cell| cell.load(Ordering::Acquire) & bit != 0)
    }

    /// Whether no bit is set: one load. Sequentially consistent, for the look before a sleep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::SeqCst) == 0
    }

    /// Takes every set bit and calls `each` with its index.
    pub fn take_all(&self, mut each: impl FnMut(u32)) {
        if self.top.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut mids = self.top.swap(0, Ordering::SeqCst);
        while mids != 0 {
            let mid = mids.trailing_zeros() as usize;
            mids &= mids - 1;
            let Some(cell) = self.middle.get(mid) else { continue };
            let mut words = cell.swap(0, Ordering::SeqCst);
            while words != 0 {
                let word = mid * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                let Some(cell) = self.words.get(word) else { continue };
                let mut bits = cell.swap(0, Ordering::SeqCst);
                while bits != 0 {
                    each((word as u32) << 6 | bits.trailing_zeros());
                    bits &= bits - 1;
                }
            }
        }
    }

    /// The first set bit at or after `from`, without taking it.
    #[must_use]
    pub fn next(&self, from: u32) -> Option<u32> {
        let (word, _) = split(from);
        let rest = self.words.get(word)?.load(Ordering::Acquire) & (u64::MAX << (from & 63));
        if rest != 0 {
            return Some((word as u32) << 6 | rest.trailing_zeros());
        }
        let mut word = self.next_word(word + 1)?;
        loop {
            let bits = self.words.get(word)?.load(Ordering::Acquire);
            if bits != 0 {
                return Some((word as u32) << 6 | bits.trailing_zeros());
            }
            word = self.next_word(word + 1)?; // The summary was late: look on.
        }
    }

    /// The first word at or after `from` whose summary says that it is not empty.
    fn next_word(&self, from: usize) -> Option<usize> {
        let mut mid = from >> 6;
        let mut mask = u64::MAX << (from & 63);
        while let Some(cell) = self.middle.get(mid) {
            let found = cell.load(Ordering::Acquire) & mask;
            if found != 0 {
                return Some(mid * 64 + found.trailing_zeros() as usize);
            }
            mask = u64::MAX;
            let above = if mid + 1 < 64 { u64::MAX << (mid + 1) } else { 0 };
            let mids = self.top.load(Ordering::Acquire) & above;
            if mids == 0 {
                return None;
            }
            mid = mids.trailing_zeros() as usize;
        }
        None
    }

    /// Calls `each` with the index of every clear bit. O(words) and the clear ones: for rare sweeps.
    pub fn for_each_clear(&self, mut each: impl FnMut(u32)) {
        for (word, cell) in self.words.iter().enumerate() {
            let mut clear = !cell.load(Ordering::Acquire);
            while clear != 0 {
                each((word as u32) << 6 | clear.trailing_zeros());
                clear &= clear - 1;
            }
        }
    }

    /// Claims a set bit for the caller alone (a free list): the lowest, or `None` if none is set.
    #[must_use]
    pub fn claim(&self) -> Option<u32> {
        // Each round that loses a race lets another claimer win; the bound is against a hostile peer.
        for _ in 0..64 {
            let index = self.next(0)?;
            if self.clear(index) {
                return Some(index);
            }
        }
        None
    }

    /// Sets the bits `0..count`. Before the region is shared.
    pub fn fill(&self, count: u32) {
        for word in 0..self.words.len() {
            let left = u64::from(count).saturating_sub(word as u64 * 64);
            if left > 0 {
                self.words[word]
                    .store(if left >= 64 { u64::MAX } else { (1 << left) - 1 }, Ordering::Relaxed);
                self.summarise(word);
            }
        }
    }

    /// Restores the summary of every word: after a process died that may have been setting a bit.
    pub fn repair(&self) {
        for (word, cell) in self.words.iter().enumerate() {
            if cell.load(Ordering::SeqCst) != 0 {
                self.summarise(word);
                self.top.fetch_or(1 << (word >> 6), Ordering::SeqCst);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn map(words: usize) -> (Vec<AtomicU64>, Vec<AtomicU64>, AtomicU64) {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        (zeros(words), zeros(middle_len(words)), AtomicU64::new(0))
    }

    #[test]
    fn sets_finds_and_takes() {
        let memory = map(512);
        let bits = Bits::new(&memory.0, &memory.1, &memory.2);
        for index in [0, 1, 63, 64, 4095, 4096, 32767] {
            assert!(bits.set(index));
            assert!(!bits.set(index), "set twice is set once");
        }
        assert!(!bits.set(32768), "beyond the map");
        assert_eq!(bits.next(2), Some(63));
        assert_eq!(bits.next(65), Some(4095));
        assert_eq!(bits.next(4097), Some(32767));
        let mut taken = Vec::new();
        bits.take_all(|index| taken.push(index));
        assert_eq!(taken, [0, 1, 63, 64, 4095, 4096, 32767]);
        assert!(bits.is_empty());
        assert_eq!(bits.next(0), None);
    }

    #[test]
    fn claims_each_once() {
        let memory = map(4);
        let bits = Bits::new(&memory.0, &memory.1, &memory.2);
        bits.fill(200);
        let mut seen = Vec::new();
        while let Some(index) = bits.claim() {
            seen.push(index);
        }
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        assert!(bits.is_empty());
        bits.set(77);
        assert_eq!(bits.claim(), Some(77));
    }

    #[test]
    fn repair_finds_what_a_killed_setter_left() {
        let memory = map(128);
        let bits = Bits::new(&memory.0, &memory.1, &memory.2);
        memory.0[100].store(8, Ordering::Relaxed); // Killed before it reached the summary.
        assert!(bits.is_empty());
        bits.repair();
        let mut taken = Vec::new();
        bits.take_all(|index| taken.push(index));
        assert_eq!(taken, [6403]);
    }

    #[test]
    fn a_lying_summary_costs_nothing_but_time() {
        let memory = map(128);
        let bits = Bits::new(&memory.0, &memory.1, &memory.2);
        memory.2.store(u64::MAX, Ordering::Relaxed);
        for cell in &memory.1 {
            cell.store(u64::MAX, Ordering::Relaxed);
        }
        bits.take_all(|_| panic!("nothing is set"));
        memory.2.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(bits.next(0), None);
        assert_eq!(bits.claim(), None);
    }

    #[test]
    fn threads_lose_nothing() {
        let rounds = if cfg!(miri) { 200 } else { 20_000 };
        let memory = map(64);
        let counted: Vec<AtomicU64> = (0..4096).map(|_| AtomicU64::new(0)).collect();
        let done = AtomicU64::new(0);
        let bits = Bits::new(&memory.0, &memory.1, &memory.2);
        std::thread::scope(|scope| {
            for seed in 0..3u32 {
                let (counted, done) = (&counted, &done);
                scope.spawn(move || {
                    let mut x = seed;
                    for _ in 0..rounds {
                        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let index = x >> 20;
                        counted[index as usize].fetch_add(1, Ordering::Relaxed); // The news …
                        bits.set(index); // … then the bit.
                    }
                    done.fetch_add(1, Ordering::Release);
                });
            }
            // The taker must see every counter's last value by the end.
            let mut seen = vec![0; 4096];
            loop {
                let finished = done.load(Ordering::Acquire) == 3;
                bits.take_all(|index| {
                    seen[index as usize] = counted[index as usize].load(Ordering::Relaxed);
                });
                if finished {
                    break;
                }
            }
            for (index, cell) in counted.iter().enumerate() {
                assert_eq!(seen[index], cell.load(Ordering::Relaxed), "bit {index} was lost");
            }
        });
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Map(Vec<AtomicU64>, Vec<AtomicU64>, AtomicU64);

    impl Map {
        fn new() -> Arc<Self> {
            Arc::new(Self(
                vec![AtomicU64::new(0), AtomicU64::new(0)],
                vec![AtomicU64::new(0)],
                AtomicU64::new(0),
            ))
        }
        fn bits(&self) -> Bits<'_> {
            Bits::new(&self.0, &self.1, &self.2)
        }
    }

    /// Whatever was set is taken now or is visible to the next look; its news with it.
    #[test]
    fn a_set_bit_is_never_lost() {
        loom::model(|| {
            let map = Map::new();
            let news = Arc::new(AtomicU64::new(0));
            let setter = {
                let (map, news) = (map.clone(), news.clone());
                thread::spawn(move || {
                    news.store(1, Ordering::Relaxed);
                    map.bits().set(3);
                })
            };
            let mut seen = 0;
            map.bits().take_all(|_| seen += news.load(Ordering::Relaxed));
            setter.join().unwrap();
            map.bits().take_all(|_| seen += news.load(Ordering::Relaxed));
            assert_eq!(seen, 1);
            assert!(map.bits().is_empty());
        });
    }

    /// A consumer that clears one bit does not hide another that is set in the same word.
    #[test]
    fn clearing_hides_nothing() {
        loom::model(|| {
            let map = Map::new();
            map.bits().set(3);
            let setter = {
                let map = map.clone();
                thread::spawn(move || {
                    map.bits().set(5);
                })
            };
            map.bits().clear(3);
            setter.join().unwrap();
            assert_eq!(map.bits().next(0), Some(5));
            assert!(!map.bits().is_empty());
        });
    }
}
