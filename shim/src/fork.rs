//! `vfork`, whose child runs on its parent's memory and stack, `_Fork`, which calls no handlers, and `clone`, which can be either.

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

/// `clone` with these flags is about to be called: libc's own, to jump to. The child of one that copies memory notices by itself
/// ([`process::notice_fork`]).
extern "C" fn before_clone(flags: c_int) -> *mut () {
    if flags & libc::CLONE_THREAD == 0 {
        match (flags & libc::CLONE_VM != 0, flags & libc::CLONE_VFORK != 0) {
            (false, _) => process::before_fork(),
            (true, true) => {
                process::before_vfork();
                tls::thread().vforking();
            }
            // A process beside its parent in the same memory: what it does to a descriptor it does to the table of both.
            (true, false) => process::before_vfork(),
        }
    }
    find(c"clone")
}

/// `clone(2)`, as libc has it: function, stack, flags, argument, and three more words.
///
/// # Safety
/// As `clone`.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn clone() -> c_int {
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 8",
        "mov edi, edx",
        "call {before}",
        "add rsp, 8",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        before = sym before_clone,
    )
}

/// `clone(2)`, as libc has it: function, stack, flags, argument, and three more words.
///
/// # Safety
/// As `clone`.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn clone() -> c_int {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, -80]!",
        "stp x0, x1, [sp, 16]",
        "stp x2, x3, [sp, 32]",
        "stp x4, x5, [sp, 48]",
        "str x6, [sp, 64]",
        "mov w0, w2",
        "bl {before}",
        "mov x16, x0",
        "ldp x0, x1, [sp, 16]",
        "ldp x2, x3, [sp, 32]",
        "ldp x4, x5, [sp, 48]",
        "ldr x6, [sp, 64]",
        "ldp x29, x30, [sp], 80",
        "br x16",
        before = sym before_clone,
    )
}
