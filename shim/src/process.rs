//! Which process we are, and what a fork changes.
//!
//! The state of the library is copied by a fork like everything else. What must not be shared with the
//! parent – the thread's id, the channel to the engine, the pool of descriptors, arbiters that a
//! thread of the parent held – is put right here, in the child, before the program sees it. libc
//! calls us for every fork of its own making (`fork`, `daemon`, `forkpty`); the table has the others.

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::{attach, poll_set, sys, tls};

static PID: AtomicU32 = AtomicU32::new(0);
/// Forks of this process and its forebears.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A page that the kernel empties in a forked child, so that a fork which nobody told us of (by number, or by
/// `clone`) is noticed at the child's first call.
#[repr(C, align(4096))]
struct Mark([AtomicU32; 1024]);

static MARK: Mark = Mark([const { AtomicU32::new(0) }; 1024]);
/// 1: the kernel was asked to empty [`MARK`].
static MARKED: AtomicU32 = AtomicU32::new(0);

fn mark() -> &'static AtomicU32 {
    let Mark([mark, ..]) = &MARK;
    mark
}

/// Asks for the page to be emptied. When the process attaches.
pub fn watch_silent_forks() {
    mark().store(1, Relaxed);
    let advice = libc::MADV_WIPEONFORK;
    let asked = sys::call!(libc::SYS_madvise, sys::at(&MARK), size_of::<Mark>(), advice);
    MARKED.store(u32::from(asked.is_ok()), Relaxed);
}

/// Called at the head of what concerns us: a child that does not know yet that it is one learns it.
#[inline]
pub fn notice_fork() {
    if mark().load(Relaxed) == 0 && MARKED.load(Relaxed) != 0 {
        in_child();
    }
}

/// How often this process or one of its forebears has forked.
pub fn forks() -> u32 {
    FORKS.load(Relaxed)
}

/// This process's id.
#[inline]
pub fn pid() -> u32 {
    match PID.load(Relaxed) {
        0 => {
            let pid = sys::getpid();
            PID.store(pid, Relaxed);
            pid
        }
        pid => pid,
    }
}

unsafe extern "C" {
    fn __register_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
        dso: *mut c_void,
    ) -> c_int;
}

/// Asks libc to call us at each fork. In the constructor.
pub fn watch_forks() {
    // SAFETY: the functions may be called at any fork for ever: a preload is never unloaded, which
    // is also why no handle of the library is needed.
    unsafe { __register_atfork(Some(before_fork), Some(in_parent), Some(in_child), core::ptr::null_mut()) };
}

/// A new process is about to share our descriptors, and to use them beside us.
pub extern "C" fn before_fork() {
    let before = crate::errno::get();
    if !tls::thread().is_vfork_child() {
        attach::each(|attachment| {
            if attachment.is_alive() {
                crate::epoll::before_fork(attachment);
            }
        });
    }
    crate::errno::set(before);
    before_vfork();
}

/// A new process is about to share our descriptors: from now on those that exist count as shared.
pub fn before_vfork() {
    FORKS.fetch_add(1, Relaxed);
    attach::each(|attachment| {
        attachment.region().header().fork_epoch.fetch_add(1, SeqCst);
        crate::set::inherited(attachment);
    });
}

/// The new process is there: what other threads opened between [`before_fork`] and now may be in it, too.
pub extern "C" fn in_parent() {
    attach::each(|attachment| {
        attachment.region().header().fork_epoch.fetch_add(1, SeqCst);
    });
}

/// We are the new process.
pub extern "C" fn in_child() {
    mark().store(1, Relaxed);
    tls::thread().forked();
    PID.store(sys::getpid(), Relaxed);
    attach::forked();
    poll_set::forked();
}
