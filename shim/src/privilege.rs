//! A program that gives up its privilege before it has opened a socket (`memcached -u`, database servers).
//!
//! Programs meet in the engine of their user, and a program that was started by root is root's to those who talk to it. So it attaches
//! as long as it is root; afterwards it would find, or start, an engine of its own for a user that nobody else is.

use core::ffi::c_int;

use crate::table::real;
use crate::{attach, sys};

/// Nobody's id: the calls leave such an id as it is.
const UNCHANGED: u32 = u32::MAX;

/// This process (or thread, which `syscall` speaks for alone) is about to be `effective`.
pub fn before(effective: u32) {
    if effective != 0 && effective != UNCHANGED && sys::geteuid() == 0 {
        attach::current();
    }
}

/// `setuid(2)`.
///
/// # Safety
/// As `setuid`.
pub unsafe fn setuid(id: u32) -> c_int {
    before(id);
    // SAFETY: plain numbers.
    unsafe { real::setuid(id) }
}

/// `seteuid(3)`.
///
/// # Safety
/// As `seteuid`.
pub unsafe fn seteuid(id: u32) -> c_int {
    before(id);
    // SAFETY: plain numbers.
    unsafe { real::seteuid(id) }
}

/// `setreuid(2)`.
///
/// # Safety
/// As `setreuid`.
pub unsafe fn setreuid(id: u32, effective: u32) -> c_int {
    before(effective);
    // SAFETY: plain numbers.
    unsafe { real::setreuid(id, effective) }
}

/// `setresuid(2)`.
///
/// # Safety
/// As `setresuid`.
pub unsafe fn setresuid(id: u32, effective: u32, saved: u32) -> c_int {
    before(effective);
    // SAFETY: plain numbers.
    unsafe { real::setresuid(id, effective, saved) }
}
