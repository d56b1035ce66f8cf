//! The few words that each thread has of its own.
//!
//! Stable Rust has thread-local variables only in `std`, and a `std` one may register a destructor,
//! which kills a program that calls us from its own thread-exit handlers. So the block is laid
//! out by hand in `.tbss` and found by the initial-exec model: one load from the global offset
//! table, one addition, no call and no allocation, in signal handlers as well as elsewhere. All zero bytes are
//! its valid first state.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::sys;

/// One thread's block.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Thread {
    /// Thread id, 0 = not asked yet (or forked since).
    tid: AtomicU32,
    /// Process id of the caller of `vfork`, while its child may be running on this thread's memory.
    vfork_pid: AtomicU32,
    /// Process id of its child that told the kernel the truth about FD_CLOEXEC ([`crate::exec::tell_in_vfork_child`]).
    told_pid: AtomicU32,
    /// Learned by [`crate::sleep`]: how long this thread spins before it sleeps.
    pub spin_ns: AtomicU32,
    /// Until when (monotonic clock, nanoseconds) it does not spin at all: others want the processor.
    pub crowded_until_ns: AtomicU64,
    /// Handlers of the program's that have run, and those among them that don't ask for a restart ([`crate::signals`]).
    pub handlers: AtomicU32,
    /// See above.
    pub breaking_handlers: AtomicU32,
    /// Whose sleep the next handler has to end: 1 + the number of a set ([`crate::set::wake`]), or 0.
    pub sleeps_on: AtomicU32,
}

core::arch::global_asm!(
    ".pushsection .tbss.utcp, \"awT\", %nobits",
    ".balign 64",
    ".globl utcp_thread_block",
    ".hidden utcp_thread_block",
    ".type utcp_thread_block, %object",
    ".size utcp_thread_block, 64",
    "utcp_thread_block:",
    ".zero 64",
    ".popsection",
);

const _: () = assert!(size_of::<Thread>() == 64);

#[cfg(target_arch = "x86_64")]
#[inline]
fn block() -> *const Thread {
    let address: *const Thread;
    // SAFETY: reads the offset that the loader stored and the thread pointer (fs:0 points to itself).
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr [rip + utcp_thread_block@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) address,
            options(pure, readonly, nostack),
        );
    }
    address
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn block() -> *const Thread {
    let address: *const Thread;
    // SAFETY: reads the offset that the loader stored and the thread pointer.
    unsafe {
        core::arch::asm!(
            "mrs {0}, tpidr_el0",
            "adrp {1}, :gottprel:utcp_thread_block",
            "ldr {1}, [{1}, :gottprel_lo12:utcp_thread_block]",
            "add {0}, {0}, {1}",
            out(reg) address,
            out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    address
}

/// The calling thread's block. Must not be handed to another thread.
#[inline]
pub fn thread<'a>() -> &'a Thread {
    // SAFETY: the block exists as long as the thread does, and consists of atomics.
    unsafe { &*block() }
}

impl Thread {
    /// The thread's id.
    #[inline]
    pub fn tid(&self) -> u32 {
        match self.tid.load(Relaxed) {
            0 => {
                let tid = sys::gettid();
                self.tid.store(tid, Relaxed);
                tid
            }
            tid => tid,
        }
    }

    /// In the child of a fork: the thread has a new id.
    pub fn forked(&self) {
        self.tid.store(0, Relaxed);
        self.vfork_pid.store(0, Relaxed);
    }

    /// `vfork` is about to be called.
    pub fn vforking(&self) {
        self.vfork_pid.store(sys::getpid(), Relaxed);
        self.told_pid.store(0, Relaxed);
    }

    /// Whether this process, the child of a `vfork`, says so for the first time.
    pub fn tells_first(&self) -> bool {
        let child = sys::getpid();
        self.told_pid.swap(child, Relaxed) != child
    }

    /// Whether we are the child of a `vfork`: we run on the parent's memory, and may change
    /// none of it.
    #[inline]
    pub fn is_vfork_child(&self) -> bool {
        let parent = self.vfork_pid.load(Relaxed);
        if parent == 0 {
            return false;
        }
        if parent != sys::getpid() {
            return true;
        }
        // The parent again: its child has exited or called exec.
        self.vfork_pid.store(0, Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own() {
        let mine = thread().tid();
        assert_eq!(mine, sys::gettid());
        let other = std::thread::spawn(|| (thread().tid(), sys::gettid())).join().expect("thread");
        assert_eq!(other.0, other.1);
        assert_ne!(other.0, mine);
        thread().forked();
        assert_eq!(thread().tid(), mine);
        assert!(!thread().is_vfork_child());
        thread().vforking();
        assert!(!thread().is_vfork_child(), "the same process");
    }
}
