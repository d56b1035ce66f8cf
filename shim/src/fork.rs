//! `vfork`, whose child runs on its parent's memory and stack, `_Fork`, which calls no handlers, and `clone`, which can be either.

use core::ffi::c_int;

use crate::table::{find, real};
use crate::{process, tls};

/// Puts every register that holds an argument away: libc's function wants them as the program gave them.
#[cfg(target_arch = "x86_64")]
macro_rules! save_arguments {
    () => {
        concat!(
            "push rdi\n",
            "push rsi\n",
            "push rdx\n",
            "push rcx\n",
            "push r8\n",
            "push r9\n",
            "sub rsp, 8\n",
        )
    };
}
/// Puts every register that holds an argument away: libc's function wants them as the program gave them.
#[cfg(target_arch = "aarch64")]
macro_rules! save_arguments {
    () => {
        concat!(
            "stp x29, x30, [sp, -80]!\n",
            "stp x0, x1, [sp, 16]\n",
            "stp x2, x3, [sp, 32]\n",
            "stp x4, x5, [sp, 48]\n",
            "str x6, [sp, 64]\n",
        )
    };
}
/// Takes them back, and jumps to the function that the call between has found: no frame of ours is left.
#[cfg(target_arch = "x86_64")]
macro_rules! restore_and_jump {
    () => {
        concat!(
            "add rsp, 8\n",
            "pop r9\n",
            "pop r8\n",
            "pop rcx\n",
            "pop rdx\n",
            "pop rsi\n",
            "pop rdi\n",
            "jmp rax\n",
        )
    };
}
/// Takes them back, and jumps to the function that the call between has found: no frame of ours is left.
#[cfg(target_arch = "aarch64")]
macro_rules! restore_and_jump {
    () => {
        concat!(
            "mov x16, x0\n",
            "ldp x0, x1, [sp, 16]\n",
            "ldp x2, x3, [sp, 32]\n",
            "ldp x4, x5, [sp, 48]\n",
            "ldr x6, [sp, 64]\n",
            "ldp x29, x30, [sp], 80\n",
            "br x16\n",
        )
    };
}
pub(crate) use {restore_and_jump, save_arguments};

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
        save_arguments!(),
        "mov edi, edx",
        "call {before}",
        restore_and_jump!(),
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
        save_arguments!(),
        "mov w0, w2",
        "bl {before}",
        restore_and_jump!(),
        before = sym before_clone,
    )
}
