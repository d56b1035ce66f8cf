//! The clock by which events are put in order: a counter that all processors share.
//!
//! A few nanoseconds to read, and it never goes back. Who connects two events by it (a byte was sent before another) need not be
//! the same process.

/// Its value now.
#[inline]
#[must_use]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction; where a process may not use it, libc's clocks don't work either.
    let now = unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(target_arch = "aarch64")]
    let now = {
        let now: u64;
        // SAFETY: reads the counter that the vdso reads.
        unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) now, options(nomem, nostack)) };
        now
    };
    now
}
