//! Between `Result` and the -1 and `errno` of C: the only place where the one becomes the other.

use core::ffi::{c_int, c_long, c_void};

pub use crate::sys::Errno;

/// Sets the calling thread's `errno`.
pub fn set(errno: Errno) {
    // SAFETY: libc gives every thread a valid address.
    unsafe { *libc::__errno_location() = errno.0 };
}

/// The calling thread's `errno`.
pub fn get() -> Errno {
    // SAFETY: libc gives every thread a valid address.
    Errno(unsafe { *libc::__errno_location() })
}

/// A type that a C function returns with -1 for failure.
pub trait Outcome {
    /// -1 of that type.
    fn failure() -> Self;
    /// The value of a system call as that type.
    fn success(value: usize) -> Self;
}

impl Outcome for c_int {
    fn failure() -> Self {
        -1
    }
    fn success(value: usize) -> Self {
        value as Self
    }
}

impl Outcome for c_long {
    fn failure() -> Self {
        -1
    }
    fn success(value: usize) -> Self {
        value as Self
    }
}

impl Outcome for isize {
    fn failure() -> Self {
        -1
    }
    fn success(value: usize) -> Self {
        value as Self
    }
}

impl Outcome for *mut c_void {
    fn failure() -> Self {
        libc::MAP_FAILED
    }
    fn success(value: usize) -> Self {
        value as Self
    }
}

/// What a hook hands back to C.
pub fn into_libc<T: Outcome>(result: Result<usize, Errno>) -> T {
    match result {
        Ok(value) => T::success(value),
        Err(errno) => fail(errno),
    }
}

/// -1 with `errno` set.
pub fn fail<T: Outcome>(errno: Errno) -> T {
    set(errno);
    T::failure()
}
