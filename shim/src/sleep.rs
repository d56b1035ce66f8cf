//! Waiting on a bell in shared memory: spin a little, arm, look again, sleep.
//!
//! Who sleeps does so on three words at once: the bell's; the engine's life, so that the death of the engine wakes it; and the
//! thread's count of signal handlers, so that one which ran just before ends the sleep. Where a sandbox forbids `futex_waitv`, the
//! others are looked at ten times a second instead.
//!
//! How long to spin is this module's business alone. A wake-up through the kernel costs 3 µs on one core and
//! 20 µs across cores; spinning costs the core. So a thread spins only while that has paid lately:
//! success doubles its budget up to the limit, failure halves it. With only one or two CPUs the
//! engine needs the one that we would burn, so we yield between looks. A yield that comes back late went to somebody with work
//! of his own, who keeps the processor for a slice each time, where a sleeper that is woken would get it at once: then we
//! sleep without a spin for a while.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use utcp_abi::bell::{ARMED, Bell};
use utcp_abi::page::OWNER_DIED;

use crate::attach::Attachment;
use crate::signals::Calm;
use crate::sys::{self, Errno, FutexWaiter};
use crate::{config, death, tls};

/// Longest spin before a sleep, nanoseconds, unless `UTCP_SPIN_US` says otherwise: as the engine's.
const SPIN_NS: u64 = 50_000;
/// The budget never falls below this share of the limit, so that it can grow again.
const SPIN_FLOOR: u64 = 16;
/// A yield that takes longer has fed somebody who has work of his own …
const CROWDED_NS: u64 = 1_000_000;
/// … and for so long we don't spin.
const CALM_NS: u64 = 50_000_000;
/// How often the engine's life is looked at where we cannot sleep on it.
const SLICE_NS: u64 = 100_000_000;

/// Why a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// What was waited for is there (or the engine is gone, which the caller finds in the status).
    News,
    /// The deadline passed.
    Timeout,
    /// A signal handler ran.
    Signal,
}

static NO_WAITV: AtomicU32 = AtomicU32::new(0);

/// Waits until `ready` says so, or `calm` is over. `bell` is the one that is rung whenever that may have changed; where another one takes its place, it is
/// rung once more (a handshake that ends may bring a socket's place in a pair region).
pub fn until<'a>(
    att: &'static Attachment,
    bell: impl Fn() -> &'a Bell,
    deadline_ns: Option<u64>,
    calm: &Calm<'_>,
    mut ready: impl FnMut() -> bool,
) -> Woken {
    if spin(deadline_ns, &mut ready) {
        return Woken::News;
    }
    loop {
        let armed = bell();
        armed.arm();
        if ready() {
            return Woken::News;
        }
        if !core::ptr::eq(armed, bell()) {
            continue;
        }
        if calm.is_over() {
            return Woken::Signal;
        }
        let life = att.page().life.load(Relaxed);
        if life & OWNER_DIED != 0 || !att.is_alive() {
            death::notice(att);
            return Woken::News;
        }
        match doze(|| sleep_once(armed, &att.page().life, life, calm, deadline_ns)) {
            Err(Errno(libc::EINTR)) => return if ready() { Woken::News } else { Woken::Signal },
            Err(Errno(libc::ETIMEDOUT)) => return if ready() { Woken::News } else { Woken::Timeout },
            _ => {}
        }
    }
}

unsafe extern "C" {
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
}

/// PTHREAD_CANCEL_DEFERRED and PTHREAD_CANCEL_ASYNCHRONOUS.
const DEFERRED: c_int = 0;
const ASYNCHRONOUS: c_int = 1;

/// Sleeps once, as a cancellation point: a thread that is cancelled while it sleeps ends there, as it would in the
/// kernel's call. Nothing is held here, and nothing on the stack needs to be cleaned up.
fn doze(sleep: impl FnOnce() -> sys::Sys<usize>) -> sys::Sys<usize> {
    let mut kind = DEFERRED;
    // SAFETY: between the two calls are only system calls, which may be cut short at any point.
    unsafe { pthread_setcanceltype(ASYNCHRONOUS, &raw mut kind) };
    let result = sleep();
    // SAFETY: as it was.
    unsafe { pthread_setcanceltype(kind, core::ptr::null_mut()) };
    result
}

/// Sleeps once.
fn sleep_once(
    bell: &Bell,
    life: &AtomicU32,
    alive: u32,
    calm: &Calm<'_>,
    deadline_ns: Option<u64>,
) -> sys::Sys<usize> {
    if NO_WAITV.load(Relaxed) == 0 {
        let waiters = [FutexWaiter::new(bell.word(), ARMED), FutexWaiter::new(life, alive), calm.waiter()];
        match sys::futex_waitv(&waiters, deadline_ns) {
            Err(Errno(libc::ENOSYS | libc::EPERM)) => NO_WAITV.store(1, Relaxed),
            result => return result,
        }
    }
    let left = deadline_ns.map_or(u64::MAX, |deadline| deadline.saturating_sub(sys::now_ns()));
    match sys::futex_wait(bell.word(), ARMED, left.min(SLICE_NS)) {
        Err(Errno(libc::ETIMEDOUT)) if left > SLICE_NS => Ok(0),
        result => result,
    }
}

/// Spins for what this thread's experience allows, and not past the deadline; true as soon as `ready` is.
pub fn spin(deadline_ns: Option<u64>, ready: &mut impl FnMut() -> bool) -> bool {
    if ready() {
        return true;
    }
    let limit = config::spin_ns().unwrap_or(SPIN_NS);
    if limit == 0 {
        return false;
    }
    let crowded = config::cpus() <= 2;
    let start = sys::now_ns();
    if crowded && start < tls::thread().crowded_until_ns.load(Relaxed) {
        return false;
    }
    let memory = &tls::thread().spin_ns;
    // 0 is a thread that has not waited yet.
    let budget = match u64::from(memory.load(Relaxed)) {
        0 => limit / 4,
        learned => learned.min(limit),
    };
    let mut before = start;
    loop {
        if crowded {
            sys::sched_yield();
            let now = sys::now_ns();
            if now.wrapping_sub(before) > CROWDED_NS {
                tls::thread().crowded_until_ns.store(now.saturating_add(CALM_NS), Relaxed);
                return ready();
            }
            before = now;
        } else {
            for _ in 0..16 {
                core::hint::spin_loop();
            }
        }
        if ready() {
            memory.store((budget * 2).min(limit) as u32, Relaxed);
            return true;
        }
        let now = sys::now_ns();
        if deadline_ns.is_some_and(|deadline| now >= deadline) {
            return false; // Which says nothing about how long it would have paid.
        }
        if now.wrapping_sub(start) >= budget {
            memory.store((budget / 2).max(limit / SPIN_FLOOR).max(1) as u32, Relaxed);
            return false;
        }
    }
}

/// The deadline that a timeout in microseconds means; 0 is none.
pub fn deadline_us(timeout_us: u64) -> Option<u64> {
    (timeout_us != 0).then(|| sys::now_ns().saturating_add(timeout_us.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who waits for microseconds does not look for longer, and has learned nothing.
    #[test]
    fn a_spin_ends_at_the_deadline() {
        let (mut looks, learned) = (0, tls::thread().spin_ns.load(Relaxed));
        let mut look = || {
            looks += 1;
            false
        };
        assert!(!spin(Some(sys::now_ns()), &mut look));
        assert!(looks <= 2, "{looks}");
        assert_eq!(tls::thread().spin_ns.load(Relaxed), learned);
    }
}
