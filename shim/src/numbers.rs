//! Calls that make a descriptor of the kernel's, for a program that has no number left.
//!
//! The numbers that wait in a [`crate::pool`] are free in the program's eyes. It may use every one of RLIMIT_NOFILE, so a
//! call that fails with EMFILE is done once more when they have been closed. One number is kept back for the bell of
//! the first epoll set, which a program may make when it has used all others.

use core::ffi::{c_char, c_int, c_uint};
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use crate::fd_table::{self, Entry};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{errno, pool, tls};

/// A descriptor that is there for its number alone, or -1.
static KEPT: AtomicI32 = AtomicI32::new(-1);

/// Keeps the number of the hidden descriptor `fd` back, if none is kept yet. False: one is.
pub fn keep_back(fd: c_int) -> bool {
    KEPT.compare_exchange(-1, fd, AcqRel, Relaxed).is_ok()
}

/// The program wants number `fd` for itself; what was kept there is `copy` now.
pub fn relocate(fd: c_int, copy: c_int) {
    let _ = KEPT.compare_exchange(fd, copy, AcqRel, Relaxed);
}

/// Makes a descriptor of our own, with a number that was kept back if there is no other.
pub fn ours(make: impl Fn() -> Sys<c_int>) -> Sys<c_int> {
    make().or_else(|errno| {
        if errno != Errno(libc::EMFILE) || tls::thread().is_vfork_child() {
            return Err(errno);
        }
        let kept = KEPT.swap(-1, AcqRel);
        if kept >= 0 {
            fd_table::set(kept, Entry::KERNEL);
            let _ = sys::close(kept);
        } else if !pool::give_numbers_back() {
            return Err(errno);
        }
        make()
    })
}

/// Does `call`, and once more if it fails for want of a number that we have.
#[inline]
pub fn with(mut call: impl FnMut() -> c_int) -> c_int {
    let result = call();
    if result < 0 && errno::get() == Errno(libc::EMFILE) && !tls::thread().is_vfork_child() {
        if pool::give_numbers_back() {
            return call();
        }
        errno::set(Errno(libc::EMFILE));
    }
    result
}

/// `socketpair(2)`.
///
/// # Safety
/// As `socketpair`.
pub unsafe fn socketpair(domain: c_int, kind: c_int, protocol: c_int, to: *mut c_int) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::socketpair(domain, kind, protocol, to) })
}

/// `pipe(2)`.
///
/// # Safety
/// As `pipe`.
pub unsafe fn pipe(to: *mut c_int) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::pipe(to) })
}

/// `pipe2(2)`.
///
/// # Safety
/// As `pipe2`.
pub unsafe fn pipe2(to: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::pipe2(to, flags) })
}

/// `eventfd(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn eventfd(count: c_uint, flags: c_int) -> c_int {
    // SAFETY: plain numbers.
    with(|| unsafe { real::eventfd(count, flags) })
}

/// `open(2)`, its third argument whatever it is.
///
/// # Safety
/// As `open`.
pub unsafe fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::open(path, flags, mode) })
}

/// `open64`, which differs from `open` where files are small.
///
/// # Safety
/// As `open`.
pub unsafe fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::open64(path, flags, mode) })
}

/// `openat(2)`, its fourth argument whatever it is.
///
/// # Safety
/// As `openat`.
pub unsafe fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::openat(folder, path, flags, mode) })
}

/// `openat64`, as [`open64`].
///
/// # Safety
/// As `openat`.
pub unsafe fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    with(|| unsafe { real::openat64(folder, path, flags, mode) })
}
