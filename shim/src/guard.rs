//! Copies between the program's memory and ours that survive a pointer which leads nowhere.
//!
//! A system call says EFAULT then; a load of ours would end the program. So every copy is made by one routine,
//! whose instructions this library's handler of SIGSEGV and SIGBUS knows:
//!
//! ```text
//!   copy ── fault ──► handler: inside `copy`?  yes: go on at its exit, with "failed"
//!                                              no:  whatever the program has asked for
//! ```
//!
//! The handler stands between the kernel and the program from the first engine on, and the program does not see it:
//! `sigaction` and `signal` are answered from what is kept here, and the program's own handler runs with its own mask, flags and
//! stack. A thread that blocks SIGSEGV is ended by the kernel all the same; addresses that no program can have are refused
//! before.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use libc::{sigaction as Action, siginfo_t};

use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::tls;

/// `sigset`: the signal is blocked, its handler stays.
const SIG_HOLD: usize = 2;
/// Below it nothing is ever mapped.
const FIRST: usize = 4096;
/// Addresses from here on are the kernel's, on every machine.
const LAST: usize = 1 << 56;

/// Whether `len` bytes at `address` are on the program's side of the address space. The kernel looks at that before anything else.
#[inline]
pub fn is_possible(address: usize, len: usize) -> bool {
    address < LAST && len < LAST
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    // rdi: to, rsi: from, rdx: length; eax: 0, or 1 after a fault. No stack, no register that a caller keeps.
    ".hidden utcp_copy",
    ".globl utcp_copy",
    ".type utcp_copy, @function",
    "utcp_copy:",
    "cmp rdx, 16",
    "jbe 2f",
    "cmp rdx, 32",
    "jbe 3f",
    "cmp rdx, 64",
    "jbe 4f",
    "cmp rdx, 2048",
    "jae 5f",
    // 65 to 2047: whole pieces of 64, and the last 64 bytes, which may overlap them.
    "lea r8, [rsi + rdx - 64]",
    "lea r9, [rdi + rdx - 64]",
    "12:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "cmp rsi, r8",
    "jb 12b",
    "movups xmm0, [r8]",
    "movups xmm1, [r8 + 16]",
    "movups xmm2, [r8 + 32]",
    "movups xmm3, [r8 + 48]",
    "movups [r9], xmm0",
    "movups [r9 + 16], xmm1",
    "movups [r9 + 32], xmm2",
    "movups [r9 + 48], xmm3",
    "xor eax, eax",
    "ret",
    // 33 to 64.
    "4:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + rdx - 32]",
    "movups xmm3, [rsi + rdx - 16]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + rdx - 32], xmm2",
    "movups [rdi + rdx - 16], xmm3",
    "xor eax, eax",
    "ret",
    // 17 to 32.
    "3:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + rdx - 16]",
    "movups [rdi], xmm0",
    "movups [rdi + rdx - 16], xmm1",
    "xor eax, eax",
    "ret",
    // Up to 16.
    "2:",
    "cmp edx, 8",
    "jae 6f",
    "cmp edx, 4",
    "jae 7f",
    "test edx, edx",
    "jz 8f",
    "movzx eax, byte ptr [rsi]",
    "movzx ecx, byte ptr [rsi + rdx - 1]",
    "cmp edx, 3",
    "jne 9f",
    "movzx r8d, byte ptr [rsi + 1]",
    "mov byte ptr [rdi + 1], r8b",
    "9:",
    "mov byte ptr [rdi], al",
    "mov byte ptr [rdi + rdx - 1], cl",
    "8:",
    "xor eax, eax",
    "ret",
    "7:",
    "mov eax, dword ptr [rsi]",
    "mov ecx, dword ptr [rsi + rdx - 4]",
    "mov dword ptr [rdi], eax",
    "mov dword ptr [rdi + rdx - 4], ecx",
    "xor eax, eax",
    "ret",
    "6:",
    "mov rax, qword ptr [rsi]",
    "mov rcx, qword ptr [rsi + rdx - 8]",
    "mov qword ptr [rdi], rax",
    "mov qword ptr [rdi + rdx - 8], rcx",
    "xor eax, eax",
    "ret",
    "5:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    ".hidden utcp_copy_failed",
    ".globl utcp_copy_failed",
    "utcp_copy_failed:",
    "mov eax, 1",
    "ret",
    ".size utcp_copy, . - utcp_copy",
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    // x0: to, x1: from, x2: length; w0: 0, or 1 after a fault. No stack, no register that a caller keeps.
    ".hidden utcp_copy",
    ".globl utcp_copy",
    ".type utcp_copy, %function",
    "utcp_copy:",
    "4:",
    "cmp x2, 16",
    "b.lo 2f",
    "ldp x3, x4, [x1], 16",
    "stp x3, x4, [x0], 16",
    "sub x2, x2, 16",
    "b 4b",
    "2:",
    "cbz x2, 3f",
    "ldrb w3, [x1], 1",
    "strb w3, [x0], 1",
    "sub x2, x2, 1",
    "b 2b",
    "3:",
    "mov w0, 0",
    "ret",
    ".hidden utcp_copy_failed",
    ".globl utcp_copy_failed",
    "utcp_copy_failed:",
    "mov w0, 1",
    "ret",
    ".size utcp_copy, . - utcp_copy",
);

unsafe extern "C" {
    fn utcp_copy(to: *mut u8, from: *const u8, len: usize) -> u32;
    fn utcp_copy_failed();
}

/// Copies `len` bytes. EFAULT if one of the two can't be reached; some may have been copied then.
///
/// # Safety
/// What is *reachable* of `from` and `to` is as the caller's contract with the program says; the two don't overlap.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) -> Sys<()> {
    if len != 0 && ((from as usize) < FIRST || (to as usize) < FIRST) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: a copy of bytes, of which the caller knows that they may be read and written; a fault is caught.
    match unsafe { utcp_copy(to, from, len) } {
        0 => Ok(()),
        _ => Err(Errno(libc::EFAULT)),
    }
}

/// What the program has asked to be done at a signal.
struct Disposition {
    handler: AtomicUsize,
    flags: AtomicU32,
    mask: AtomicU64,
}

impl Disposition {
    const fn new() -> Self {
        Self { handler: AtomicUsize::new(libc::SIG_DFL), flags: AtomicU32::new(0), mask: AtomicU64::new(0) }
    }

    fn keep(&self, action: &Action) {
        self.mask.store(mask_word(&action.sa_mask), Relaxed);
        self.flags.store(action.sa_flags as u32, Relaxed);
        self.handler.store(action.sa_sigaction, Release);
    }

    fn action(&self) -> Action {
        // SAFETY: zero bytes are a valid sigaction.
        let mut action: Action = unsafe { core::mem::zeroed() };
        action.sa_sigaction = self.handler.load(Acquire);
        action.sa_flags = self.flags.load(Relaxed) as c_int;
        let word = self.mask.load(Relaxed);
        // SAFETY: a signal set begins with the word of the first 64 signals.
        unsafe { (&raw mut action.sa_mask).cast::<u64>().write_unaligned(word) };
        action
    }

    /// What the kernel is told instead: our handler, under the program's conditions.
    fn ours(&self) -> Action {
        let mut action = self.action();
        let own = libc::SA_ONSTACK | libc::SA_RESTART;
        if matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
            action.sa_flags = own;
        }
        action.sa_flags = action.sa_flags & !libc::SA_RESETHAND | libc::SA_SIGINFO;
        action.sa_sigaction = on_fault as *const () as usize;
        action
    }
}

fn mask_word(mask: &libc::sigset_t) -> u64 {
    // SAFETY: a signal set begins with the word of the first 64 signals.
    unsafe { core::ptr::from_ref(mask).cast::<u64>().read_unaligned() }
}

static SEGV: Disposition = Disposition::new();
static BUS: Disposition = Disposition::new();
/// 1: our handler stands.
static STANDS: AtomicU32 = AtomicU32::new(0);

fn disposition(signal: c_int) -> Option<&'static Disposition> {
    match signal {
        libc::SIGSEGV => Some(&SEGV),
        libc::SIGBUS => Some(&BUS),
        _ => None,
    }
}

/// Whether `signal` is one of those that this module answers for.
pub fn owns(signal: c_int) -> bool {
    disposition(signal).is_some()
}

/// Whether it stands: until then nothing of ours is there to be waited for, and a pointer of the program's is not to be met.
#[inline]
pub fn stands() -> bool {
    STANDS.load(Relaxed) == 1
}

/// Puts our handler before the program's. Once, when the first engine is attached.
pub fn stand() {
    if STANDS.swap(1, AcqRel) == 1 {
        return;
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        let Some(kept) = disposition(signal) else { continue };
        let mut before = kept.action();
        // SAFETY: two structures of ours.
        if unsafe { real::sigaction(signal, core::ptr::null(), &raw mut before) } == 0 {
            kept.keep(&before);
            let ours = kept.ours();
            // SAFETY: as above; the handler is made for this.
            let _ = unsafe { real::sigaction(signal, &raw const ours, core::ptr::null_mut()) };
        }
    }
}

/// `sigaction(2)`.
///
/// # Safety
/// As `sigaction`.
pub unsafe fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    let kept = disposition(signal).filter(|_| STANDS.load(Relaxed) == 1 && !tls::thread().is_vfork_child());
    let Some(kept) = kept else {
        // SAFETY: the program's own arguments.
        return unsafe { real::sigaction(signal, new, old) };
    };
    let before = kept.action();
    // SAFETY: null, or the program's own structure.
    if let Some(new) = unsafe { new.as_ref() } {
        let new = *new;
        kept.keep(&new);
        let ours = kept.ours();
        // SAFETY: a structure of ours; the handler is made for this.
        let result = unsafe { real::sigaction(signal, &raw const ours, core::ptr::null_mut()) };
        if result != 0 {
            return result;
        }
    }
    // SAFETY: null, or the program's own place.
    if let Some(old) = unsafe { old.as_mut() } {
        *old = before;
    }
    0
}

/// `signal(2)` and its kin, with what each asks for beside the handler. SIG_ERR is the answer to nonsense.
pub fn signal(signal: c_int, handler: usize, flags: c_int, masks_itself: bool) -> Option<usize> {
    let kept =
        disposition(signal).filter(|_| STANDS.load(Relaxed) == 1 && !tls::thread().is_vfork_child())?;
    if handler == SIG_HOLD {
        return None; // A mask is all that `sigset` sets then.
    }
    let before = kept.handler.load(Acquire);
    // SAFETY: zero bytes are a valid sigaction.
    let mut new: Action = unsafe { core::mem::zeroed() };
    (new.sa_sigaction, new.sa_flags) = (handler, flags);
    if masks_itself {
        // SAFETY: a signal set of ours.
        let _ = unsafe { libc::sigaddset(&raw mut new.sa_mask, signal) };
    }
    // SAFETY: a structure of ours.
    if unsafe { sigaction(signal, &raw const new, core::ptr::null_mut()) } != 0 {
        return Some(libc::SIG_ERR);
    }
    Some(before)
}

/// Where a fault happened, as the kernel tells it and takes it back.
#[cfg(target_arch = "x86_64")]
fn place(context: *mut c_void) -> *mut usize {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's frame, ours as long as the handler runs; it has that many registers.
    unsafe { (&raw mut (*context).uc_mcontext.gregs).cast::<usize>().add(libc::REG_RIP as usize) }
}

/// Where a fault happened, as the kernel tells it and takes it back.
#[cfg(target_arch = "aarch64")]
fn place(context: *mut c_void) -> *mut usize {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's frame, ours as long as the handler runs.
    unsafe { (&raw mut (*context).uc_mcontext.pc).cast() }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let at = place(context);
    let (start, exit) = (utcp_copy as *const () as usize, utcp_copy_failed as *const () as usize);
    // SAFETY: the kernel's frame.
    let now = unsafe { at.read() };
    // SAFETY: the kernel's structure.
    let from_kernel = unsafe { (*info).si_code } > 0;
    if from_kernel && (start..exit).contains(&now) {
        // SAFETY: the routine has no frame: its exit can be reached from each of its instructions.
        unsafe { at.write(exit) };
        return;
    }
    hand_on(signal, info, context, from_kernel);
}

/// Does what the program has asked for.
fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, from_kernel: bool) {
    let Some(kept) = disposition(signal) else { return };
    let handler = kept.handler.load(Acquire);
    if handler == libc::SIG_IGN && !from_kernel {
        return;
    }
    let flags = kept.flags.load(Relaxed) as c_int;
    let ends = matches!(handler, libc::SIG_DFL | libc::SIG_IGN);
    if ends || flags & libc::SA_RESETHAND != 0 {
        // SAFETY: zero bytes are a valid sigaction: SIG_DFL.
        let default: Action = unsafe { core::mem::zeroed() };
        kept.keep(&default);
        // SAFETY: a structure of ours.
        let _ = unsafe { real::sigaction(signal, &raw const default, core::ptr::null_mut()) };
    }
    if ends {
        // The instruction is met again and ends the program, with the core that it would have left; a signal that somebody
        // sent comes again.
        if !from_kernel {
            sys::raise(signal);
        }
        return;
    }
    // SAFETY: the program's own handler, which it gave to the kernel for this. One that takes the number alone does not look at
    // the rest.
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { core::mem::transmute(handler) };
    handler(signal, info, context);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_arrives_whole() {
        let from: [u8; 5000] = core::array::from_fn(|at| (at % 251) as u8);
        for len in (0..=300).chain([2046, 2047, 2048, 2049, 4096, 5000]) {
            let mut to = [0xeeu8; 5001];
            // SAFETY: two arrays of this test's that are long enough.
            assert_eq!(unsafe { copy(from.as_ptr(), to.as_mut_ptr(), len) }, Ok(()));
            assert!(to.iter().zip(&from).take(len).all(|(to, from)| to == from), "{len}");
            assert_eq!(to.get(len), Some(&0xee), "{len}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        stand();
        let mut room = [0u8; 4096];
        // SAFETY: a mapping that nobody may touch.
        let nothing = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                8192,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        for len in [1, 3, 7, 16, 32, 33, 700, 4096] {
            // SAFETY: what can't be reached is what is tried here.
            unsafe {
                assert_eq!(copy(nothing.cast(), room.as_mut_ptr(), len), Err(Errno(libc::EFAULT)));
                assert_eq!(copy(room.as_ptr(), nothing.cast(), len), Err(Errno(libc::EFAULT)));
            }
        }
        // SAFETY: the mapping of above.
        unsafe { libc::munmap(nothing, 8192) };
    }

    #[test]
    fn addresses_of_nobody() {
        for (address, possible) in [(1, true), (usize::MAX, false), (1 << 63, false), (1 << 20, true)] {
            assert_eq!(is_possible(address, 10), possible, "{address:x}");
        }
    }
}
