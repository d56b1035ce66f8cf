//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How long the usual condition may take. Generous: two cores may be busy with something else.
pub const WAIT: Duration = Duration::from_secs(15);

/// Looks until `look` finds something.
///
/// # Panics
/// If nothing was found within `limit`; `what` says what was waited for.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
