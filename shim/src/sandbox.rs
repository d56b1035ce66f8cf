//! A program that gives up system calls (seccomp) after its start, and is killed or refused if the library makes them then.
//!
//! What is made once is made before: descriptors in stock, and a set to sleep with. From then on connections go by segments, which need
//! no memory of another program (`mmap`) and no descriptors of the engine (`recvmsg`); those that had a place in a mapped pair
//! region keep it. What the steady state needs – futexes, eventfds, epoll – is what a program on sockets has anyway, but for
//! `futex_waitv`.

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use crate::sys::{Errno, Sys};
use crate::table::real;
use crate::{attach, poll_set, tls};

/// 1: the program has said which calls it wants to have.
static CLOSED: AtomicU32 = AtomicU32::new(0);

/// Fails if the program may not ask the engine for something that it can do without.
pub fn permit() -> Sys<()> {
    if CLOSED.load(Relaxed) == 0 { Ok(()) } else { Err(Errno(libc::EPERM)) }
}

/// A filter is about to be installed.
#[cold]
pub fn enter() {
    if tls::thread().is_vfork_child() {
        return; // The parent's memory.
    }
    if let Some(att) = attach::existing() {
        att.pool().stock_up(att);
        // Made and given back, for the next who sleeps.
        drop(poll_set::borrow(att));
    }
    CLOSED.store(1, Relaxed);
}

/// `prctl(2)`.
///
/// # Safety
/// As `prctl`.
pub unsafe fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        enter();
    }
    // SAFETY: the program's own arguments.
    unsafe { real::prctl(option, a, b, c, d) }
}
