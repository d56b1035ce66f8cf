//! The doorbell: how one side sleeps without losing a wake-up, and the other rings only sleepers.
//!
//! ```text
//!  sleeper                              ringer
//!  arm()                                publish the news
//!  news there? ── yes ─► go on           ring() ── not armed ─► nothing to do
//!       │ no                                 └── was armed ──► wake (futex or eventfd)
//!  sleep while armed
//! ```
//!
//! Both sides put a sequentially consistent fence between their store and their load, so at least
//! one of them sees the other: either the sleeper sees the news, or the ringer sees the armed bell.
//! The models below prove it over every interleaving. A sleeper that found news after all leaves the
//! bell armed: taking its mark back could hide a second sleeper, and costs at most one needless ring.

use crate::sync::{AtomicU32, Ordering, fence};

/// Value of the bell's word while somebody sleeps, or is about to; also the futex's expected value.
pub const ARMED: u32 = 1;

/// One doorbell. All zero bytes are a bell at rest.
#[repr(transparent)]
#[derive(Debug)]
pub struct Bell(AtomicU32);

impl Bell {
    /// A bell at rest.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Announces that the caller is going to sleep. It must look for news once more afterwards.
    pub fn arm(&self) {
        self.0.store(ARMED, Ordering::Relaxed);
        // Pairs with the fence in `ring`: our store before our second look.
        fence(Ordering::SeqCst);
    }

    /// Called after the news was published. True: somebody may sleep, and the caller must wake
    /// every sleeper.
    #[must_use]
    pub fn ring(&self) -> bool {
        // Pairs with the fence in `arm`: the news before our look at the bell.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) == ARMED && self.0.swap(0, Ordering::Relaxed) == ARMED
    }

    /// Whether somebody sleeps or is about to. A hint.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ARMED
    }

    /// The word that a futex sleeps on.
    #[must_use]
    pub fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// What `futex_wait(word, ARMED)` would do: sleep if the word still says armed. The model asks
    /// that whoever sleeps is woken: either the news was seen, or the ringer saw the bell armed.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let shared = Arc::new((Bell::new(), AtomicU32::new(0)));
            let ringer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1.store(1, Ordering::Release);
                    shared.0.ring()
                })
            };
            shared.0.arm();
            let saw_news = shared.1.load(Ordering::Acquire) == 1;
            let rung = ringer.join().unwrap();
            assert!(saw_news || rung, "the sleeper sleeps and nobody will wake it");
        });
    }

    /// Two sleepers, one ringer that wakes all: neither may be left asleep.
    #[test]
    fn two_sleepers_one_ring() {
        loom::model(|| {
            let shared = Arc::new((Bell::new(), AtomicU32::new(0)));
            let sleeper = |shared: Arc<(Bell, AtomicU32)>| {
                move || {
                    shared.0.arm();
                    shared.1.load(Ordering::Acquire) == 1
                }
            };
            let first = thread::spawn(sleeper(shared.clone()));
            let second = thread::spawn(sleeper(shared.clone()));
            shared.1.store(1, Ordering::Release);
            let rung = shared.0.ring();
            let (first, second) = (first.join().unwrap(), second.join().unwrap());
            assert!(rung || (first && second));
        });
    }
}
