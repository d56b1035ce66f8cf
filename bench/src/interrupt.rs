//! Ctrl-C: a flag that every wait looks at, so that what a run owns is dropped in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP only set the flag; the second of them ends the process.
///
/// # Errors
/// When the system refuses a handler.
pub fn install() -> Result<(), Error> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // In this order: the first signal finds the flag down and raises it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag))
            .map_err(Error::io("can't handle signals"))?;
        signal_hook::flag::register(signal, Arc::clone(flag)).map_err(Error::io("can't handle signals"))?;
    }
    Ok(())
}

/// # Errors
/// [`Error::Interrupted`] once a signal came.
pub fn check() -> Result<(), Error> {
    match FLAG.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Interrupted),
        _ => Ok(()),
    }
}

/// Sleeps in small steps.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn sleep(how_long: Duration) -> Result<(), Error> {
    let end = Instant::now() + how_long;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// Asks `ready` every few milliseconds until it says yes; whether it did before `patience` ran out.
///
/// # Errors
/// [`Error::Interrupted`], or what `ready` returns.
pub fn wait_for(patience: Duration, mut ready: impl FnMut() -> Result<bool, Error>) -> Result<bool, Error> {
    let end = Instant::now() + patience;
    loop {
        check()?;
        if ready()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
