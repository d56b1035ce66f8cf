//! The program's signal handlers: that one ran, and what it asks of interrupted calls.
//!
//! The kernel ends a call when a handler runs while it sleeps. A call of ours is under way between its sleeps, too: a handler that runs
//! there would end nothing, and the thread would go to sleep for good. Who closes a descriptor and then signals the thread that
//! reads from it relies on the opposite. So every handler that libc installs for the program is entered by way of a few
//! instructions of ours, which count:
//!
//! ```text
//!   kernel ──► utcp_on_signal: counts, rings the bell that the thread is about to sleep on ──► the program's handler
//! ```
//!
//! A wait compares the count with what it was when the call began ([`Calm`]). A thread that sleeps on words of memory has its count
//! among them; one that sleeps in the kernel's poll or epoll_wait has said on which bell. The program sees nothing of it: it is
//! told of its own handler, which runs with its own mask, flags and stack, as if the kernel had called it.

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize, compiler_fence};

use libc::sigaction as Action;

use crate::fd_table;
use crate::handle::Sock;
use crate::set::{self, SetRef};
use crate::sys::{Errno, FutexWaiter, Sys, at_mut, call};
use crate::table::real;
use crate::{guard, tls};

/// What the program has asked for at one signal.
struct Kept {
    handler: AtomicUsize,
    /// 1: interrupted calls are restarted (SA_RESTART).
    restarts: AtomicU32,
}

impl Kept {
    fn put(&self, handler: usize, restarts: bool) {
        self.restarts.store(u32::from(restarts), Relaxed);
        self.handler.store(handler, Release);
    }

    fn get(&self) -> (usize, bool) {
        (self.handler.load(Acquire), self.restarts.load(Relaxed) == 1)
    }
}

/// By signal number. What was there when a handler is replaced by SIG_DFL or SIG_IGN stays: another thread may be entering it.
static KEPT: [Kept; 65] =
    [const { Kept { handler: AtomicUsize::new(libc::SIG_DFL), restarts: AtomicU32::new(0) } }; 65];

/// Where those of `signal` are kept; not in the child of `vfork`, which has its parent's memory and the kernel's table to itself.
fn kept(signal: c_int) -> Option<&'static Kept> {
    let kept = usize::try_from(signal).ok().and_then(|signal| KEPT.get(signal));
    kept.filter(|_| !tls::thread().is_vfork_child())
}

/// Whether it is a function: not SIG_DFL, SIG_IGN, SIG_HOLD or SIG_ERR.
fn is_function(handler: usize) -> bool {
    handler > 2 && handler != libc::SIG_ERR
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    // As the kernel calls a handler: rdi: signal, rsi: siginfo, rdx: context. The program's handler finds the stack as it was.
    ".hidden utcp_on_signal",
    ".globl utcp_on_signal",
    ".type utcp_on_signal, @function",
    "utcp_on_signal:",
    ".cfi_startproc",
    "endbr64",
    "push rdi",
    ".cfi_adjust_cfa_offset 8",
    "push rsi",
    ".cfi_adjust_cfa_offset 8",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "call {entered}",
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "pop rsi",
    ".cfi_adjust_cfa_offset -8",
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "jmp rax",
    ".cfi_endproc",
    ".size utcp_on_signal, . - utcp_on_signal",
    entered = sym entered,
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    // As the kernel calls a handler: x0: signal, x1: siginfo, x2: context. The program's handler finds the stack as it was.
    ".hidden utcp_on_signal",
    ".globl utcp_on_signal",
    ".type utcp_on_signal, %function",
    "utcp_on_signal:",
    ".cfi_startproc",
    "hint 34", // bti c
    "stp x0, x1, [sp, -32]!",
    ".cfi_adjust_cfa_offset 32",
    "stp x2, x30, [sp, 16]",
    ".cfi_rel_offset x30, 24",
    "bl {entered}",
    "mov x16, x0",
    "ldp x2, x30, [sp, 16]",
    ".cfi_restore x30",
    "ldp x0, x1, [sp], 32",
    ".cfi_adjust_cfa_offset -32",
    "br x16",
    ".cfi_endproc",
    ".size utcp_on_signal, . - utcp_on_signal",
    entered = sym entered,
);

unsafe extern "C" {
    fn utcp_on_signal();
}

fn entry() -> usize {
    utcp_on_signal as *const () as usize
}

/// A handler is about to run: counts; the handler.
extern "C" fn entered(signal: c_int) -> usize {
    let thread = tls::thread();
    let (handler, restarts) = usize::try_from(signal)
        .ok()
        .and_then(|signal| KEPT.get(signal))
        .map_or((ignore as *const () as usize, true), Kept::get);
    thread.handlers.fetch_add(1, Relaxed);
    if !restarts {
        thread.breaking_handlers.fetch_add(1, Relaxed);
    }
    if let Some(number) = thread.sleeps_on.swap(0, Relaxed).checked_sub(1) {
        set::wake(number);
    }
    handler
}

extern "C" fn ignore() {}

/// `sigaction(2)`.
///
/// # Safety
/// As `sigaction`.
pub unsafe fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    let Some(kept) = kept(signal).filter(|_| !guard::owns(signal)) else {
        // SAFETY: the program's own arguments.
        return unsafe { guard::sigaction(signal, new, old) };
    };
    let before = kept.get();
    // SAFETY: null, or the program's own structure.
    let mut ours = unsafe { new.as_ref() }.copied();
    let is_new = |action: &&mut Action| is_function(action.sa_sigaction) && action.sa_sigaction != entry();
    if let Some(action) = ours.as_mut().filter(is_new) {
        kept.put(action.sa_sigaction, action.sa_flags & libc::SA_RESTART != 0);
        action.sa_sigaction = entry();
    }
    let new = ours.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: a structure of ours, and the program's own place.
    let result = unsafe { real::sigaction(signal, new, old) };
    if result != 0 {
        kept.put(before.0, before.1);
        return result;
    }
    // SAFETY: null, or the program's own place.
    if let Some(old) = unsafe { old.as_mut() }
        && old.sa_sigaction == entry()
    {
        old.sa_sigaction = before.0;
    }
    0
}

/// `signal(2)` and its kin, which ask for `flags`; `install` is libc's function. The handler before.
pub fn signal(signal: c_int, handler: usize, flags: c_int, install: impl FnOnce(usize) -> usize) -> usize {
    let Some(kept) = kept(signal).filter(|_| !guard::owns(signal)) else { return install(handler) };
    let before = kept.get();
    // Ours is what somebody found who asked the kernel: it stands for what is kept.
    if !is_function(handler) || handler == entry() {
        let found = install(handler);
        return if found == entry() { before.0 } else { found };
    }
    kept.put(handler, flags & libc::SA_RESTART != 0);
    let found = install(entry());
    if found == libc::SIG_ERR {
        kept.put(before.0, before.1);
    } else {
        learn(signal); // `siginterrupt` may have been before it.
    }
    if found == entry() { before.0 } else { found }
}

/// `siginterrupt(3)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn siginterrupt(signal: c_int, on: c_int) -> c_int {
    // SAFETY: plain numbers.
    let result = unsafe { real::siginterrupt(signal, on) };
    if kept(signal).is_some() {
        learn(signal);
    }
    result
}

/// Reads from the kernel whether calls are restarted after `signal`.
fn learn(signal: c_int) {
    if let (Some(kept), Some(action)) = (kept(signal), KernelAction::of(signal)) {
        kept.restarts.store(u32::from(action.flags & libc::SA_RESTART as u64 != 0), Relaxed);
    }
}

/// The kernel's sigaction.
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

impl KernelAction {
    fn of(signal: c_int) -> Option<Self> {
        let mut action = Self::default();
        call!(libc::SYS_rt_sigaction, signal, 0, at_mut(&mut action), 8).ok().map(|_| action)
    }
}

/// Whether every handler that the program has installed asks for SA_RESTART. poll is never restarted by the
/// kernel, whatever the handler says, but the calls that we build on poll are. Only where a handler ran that nobody counted, which
/// a program installed without libc.
pub fn all_restart() -> bool {
    (1..=64).filter_map(KernelAction::of).all(|action| {
        let has_handler = action.handler > 1; // 0 is SIG_DFL, 1 is SIG_IGN.
        !has_handler || action.flags & libc::SA_RESTART as u64 != 0
    })
}

/// 1: a thread of this process was, or is being, cancelled.
static CANCELS: AtomicU32 = AtomicU32::new(0);

/// `pthread_cancel(3)`.
///
/// # Safety
/// As `pthread_cancel`.
pub unsafe fn pthread_cancel(thread: c_ulong) -> c_int {
    // First: the thread looks when its cancellation is under way.
    CANCELS.store(1, Relaxed);
    // SAFETY: the program's own thread.
    unsafe { real::pthread_cancel(thread) }
}

unsafe extern "C" {
    fn pthread_testcancel();
}

/// At the head of a call that is a cancellation point (pthreads(7)): a thread that was cancelled ends here, though nothing makes it wait. Nothing
/// may be held.
#[inline]
pub fn cancellation_point() {
    if CANCELS.load(Relaxed) != 0 {
        // SAFETY: it unwinds by the thread's own wish, through frames that have nothing to clean up.
        unsafe { pthread_testcancel() };
    }
}

/// Which handlers end a call that waits (signal(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All: poll and its kin, and what has a timeout.
    Every,
    /// Those that don't ask for a restart.
    Breaking,
}

impl Ending {
    /// Of a call on a socket with the timeout `deadline` (Linux sock_intr_errno).
    pub fn with_timeout(deadline: Option<u64>) -> Self {
        if deadline.is_some() { Self::Every } else { Self::Breaking }
    }
}

/// The calling thread's count of handlers, as it was when a call began.
#[derive(Debug)]
pub struct Calm<'a> {
    count: &'a AtomicU32,
    before: u32,
}

impl Calm<'_> {
    /// From now on.
    pub fn now(ending: Ending) -> Self {
        let thread = tls::thread();
        let count = match ending {
            Ending::Every => &thread.handlers,
            Ending::Breaking => &thread.breaking_handlers,
        };
        let before = count.load(Relaxed);
        compiler_fence(Acquire);
        Self { count, before }
    }

    /// From now on, of a call that began with the look at `sock`'s number. If something else stands there by now, who put it there may have
    /// signalled already: then it is over.
    pub fn on(ending: Ending, sock: &Sock) -> Self {
        let calm = Self::now(ending);
        if fd_table::get(sock.fd).same_object(sock.entry) {
            return calm;
        }
        Self { before: calm.before.wrapping_sub(1), ..calm }
    }

    /// Whether a handler that ends the call has run.
    pub fn is_over(&self) -> bool {
        compiler_fence(Acquire);
        self.count.load(Relaxed) != self.before
    }

    /// Sleeps only while it is not over.
    pub fn waiter(&self) -> FutexWaiter {
        FutexWaiter::own(self.count, self.before)
    }

    /// Sleeps in the kernel, in a call that the bell of `set` ends.
    ///
    /// # Errors
    /// EINTR if it is over; what `sleep` says.
    pub fn asleep<T>(&self, set: &SetRef, sleep: impl FnOnce() -> Sys<T>) -> Sys<T> {
        let told = &tls::thread().sleeps_on;
        // A handler of this thread's may be in the middle of a call, too.
        let outer = told.swap(set.number() + 1, Relaxed);
        let result = if self.is_over() { Err(Errno(libc::EINTR)) } else { sleep() };
        told.store(outer, Relaxed);
        result
    }
}
