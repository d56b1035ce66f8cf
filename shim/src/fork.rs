//! `vfork`, whose child runs on its parent's memory and stack, and `_Fork`, which calls no handlers.

use core::ffi::c_int;

use crate::table::{find, real};
use crate::{process, tls};

/// `_Fork`: as `fork`, but libc calls nobody. So we do what libc would have us called for.
///
/// # Safety
/// As `_Fork`.
pub unsafe fn low_fork() -> c_int {
    process::before_fork();
    // SAFETY: no arguments.
    let pid = unsafe { real::_Fork() };
    if pid == 0 {
        process::in_child();
    } else {
        process::in_parent();
    }
    pid
}

/// Marks this thread as one whose child borrows its memory, and finds libc's `vfork`.
extern "C" fn before_vfork() -> *mut () {
    process::before_vfork();
    tls::thread().vforking();
    find(c"vfork")
}

/// `vfork(2)`. It returns twice on the same stack, so no frame of ours may be on it: a jump, not a call, with
/// the program's return address untouched.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn vfork() -> c_int {
    core::arch::naked_asm!(
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "jmp rax",
        before = sym before_vfork,
    )
}

/// `vfork(2)`. It returns twice on the same stack, so no frame of ours may be on it: a jump, not a call, with
/// the program's return address untouched.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn vfork() -> c_int {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, -16]!",
        "bl {before}",
        "ldp x29, x30, [sp], 16",
        "br x0",
        before = sym before_vfork,
    )
}
