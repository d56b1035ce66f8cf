//! What we map into the program, and the calls that speak of *all* its memory.
//!
//! A region is sparse: gigabytes of address space, kilobytes of memory. `mlockall` would fill and lock every page of
//! it, and a limit of the address space (RLIMIT_AS, vsftpd sets one) would be spent by it before the program had got a page.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};

use libc::{off_t, rlimit64, size_t};

use crate::sys::{self, Errno, Sys};
use crate::table::{find, real};
use crate::{errno, handle, pool, process};

/// Bytes of address space that we hold in this process.
static MAPPED: AtomicUsize = AtomicUsize::new(0);
/// The program asked that whatever is mapped from now on be filled and locked (MCL_FUTURE).
static LOCKS_WHAT_COMES: AtomicBool = AtomicBool::new(false);
/// What we added to the program's own limit of the address space when it set one: bytes of the soft, of the hard one.
static ADDED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// libc's own `mmap`, or whoever's stands behind ours; null until [`remember_mmap`]. It is looked up before anybody can call, and not by the first
/// call, which may be an allocator's, in the middle of what a look-up needs.
static LIBCS_MMAP: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// When the library starts.
pub fn remember_mmap() {
    LIBCS_MMAP.store(find(c"mmap"), Relaxed);
}

/// Maps `len` bytes of `fd` shared, and leaves them empty whatever the program asked of its memory.
pub fn map_shared(fd: c_int, len: usize, protection: c_int) -> Sys<*mut u8> {
    let base = if LOCKS_WHAT_COMES.load(Relaxed) {
        // What can't be read can't be filled.
        let base = sys::map_shared(fd, len, libc::PROT_NONE)?;
        let opened = sys::call!(libc::SYS_munlock, base, len)
            .and_then(|_| sys::call!(libc::SYS_mprotect, base, len, protection));
        if let Err(errno) = opened {
            sys::unmap(base, len);
            return Err(errno);
        }
        base
    } else {
        sys::map_shared(fd, len, protection)?
    };
    MAPPED.fetch_add(len, Relaxed);
    Ok(base)
}

/// As [`map_shared`], readable and writable, over what it gave for as many bytes before, at `old`; if that is null, anywhere.
pub fn map_shared_over(old: *mut u8, fd: c_int, len: usize) -> Sys<*mut u8> {
    let open = libc::PROT_READ | libc::PROT_WRITE;
    if old.is_null() {
        return map_shared(fd, len, open);
    }
    if !LOCKS_WHAT_COMES.load(Relaxed) {
        return sys::map_shared_at(old, fd, len, open);
    }
    let base = sys::map_shared_at(old, fd, len, libc::PROT_NONE)?;
    sys::call!(libc::SYS_munlock, base, len)
        .and_then(|_| sys::call!(libc::SYS_mprotect, base, len, open))
        .map(|_| base)
}

/// `mmap(2)`. A TCP socket can be mapped, for TCP_ZEROCOPY_RECEIVE; one of ours gets the place that the kernel gives a fresh one of its own, at
/// which nothing ever is: that call says how many bytes are to be received instead.
///
/// # Safety
/// As `mmap`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    type Function = unsafe extern "C" fn(*mut c_void, size_t, c_int, c_int, c_int, off_t) -> *mut c_void;
    let words = |fd: c_int| {
        [at as usize, len, protection as usize, flags as usize, fd as isize as usize, offset as usize]
    };
    if fd >= 0 && flags & libc::MAP_ANONYMOUS == 0 && handle::stream(fd).is_some() {
        let mapped =
            sys::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).and_then(|fresh| {
                // SAFETY: the program's own arguments.
                let mapped = sys::check(unsafe { sys::raw(libc::SYS_mmap, words(fresh)) });
                let _ = sys::close(fresh); // What is mapped lives on.
                mapped
            });
        return errno::into_libc(mapped);
    }
    match NonNull::new(LIBCS_MMAP.load(Relaxed)) {
        // SAFETY: libc's function of this name has this type; the program's own arguments.
        Some(found) => unsafe {
            core::mem::transmute::<*mut (), Function>(found.as_ptr())(at, len, protection, flags, fd, offset)
        },
        // SAFETY: the program's own arguments.
        None => errno::into_libc(sys::check(unsafe { sys::raw(libc::SYS_mmap, words(fd)) })),
    }
}

/// `mmap64`, which is the same on 64-bit machines.
///
/// # Safety
/// As `mmap`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    at: *mut c_void,
    len: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the program's own arguments.
    unsafe { mmap(at, len, protection, flags, fd, offset) }
}

/// Unmaps what [`map_shared`] gave. Nothing may refer to it any more.
pub fn unmap(base: *mut u8, len: usize) {
    sys::unmap(base, len);
    MAPPED.fetch_sub(len, Relaxed);
}

/// `mlockall(2)`. What we have mapped can't be left out, so pages are then locked as they are touched (MCL_ONFAULT) and
/// not all at once; what is mapped later, a region among it, is filled or not as the program says.
///
/// # Safety
/// As `mlockall`.
pub unsafe fn mlockall(flags: c_int) -> c_int {
    let on_fault = if MAPPED.load(Relaxed) == 0 { 0 } else { libc::MCL_ONFAULT as c_int };
    // SAFETY: plain numbers.
    let result = unsafe { real::mlockall(flags | on_fault) };
    if result == 0 {
        LOCKS_WHAT_COMES.store(flags & libc::MCL_FUTURE != 0, Relaxed);
    }
    result
}

/// `munlockall(2)`.
///
/// # Safety
/// As `munlockall`.
pub unsafe fn munlockall() -> c_int {
    LOCKS_WHAT_COMES.store(false, Relaxed);
    // SAFETY: no arguments.
    unsafe { real::munlockall() }
}

/// `setrlimit(2)`, which glibc has under two names; on 64-bit machines they are one.
///
/// # Safety
/// As `setrlimit`.
pub unsafe fn setrlimit(resource: c_uint, new: *const rlimit64) -> c_int {
    // SAFETY: the program's own pointer.
    unsafe { prlimit(0, resource, new, core::ptr::null_mut()) }
}

/// `getrlimit(2)`.
///
/// # Safety
/// As `getrlimit`.
pub unsafe fn getrlimit(resource: c_uint, old: *mut rlimit64) -> c_int {
    // SAFETY: the program's own pointer.
    unsafe { prlimit(0, resource, core::ptr::null(), old) }
}

/// `prlimit(2)`. A limit of the address space is the program's own: what we hold is added when it is set and
/// taken off when it is read.
///
/// # Safety
/// As `prlimit`.
pub unsafe fn prlimit(pid: c_int, resource: c_uint, new: *const rlimit64, old: *mut rlimit64) -> c_int {
    let ours = pid == 0 || pid as u32 == process::pid();
    if !ours || resource != libc::RLIMIT_AS || MAPPED.load(Relaxed) == 0 {
        // SAFETY: the program's own arguments.
        let result = errno::into_libc(sys::check(unsafe {
            sys::raw(libc::SYS_prlimit64, [pid as usize, resource as usize, new as usize, old as usize, 0, 0])
        }));
        if ours && resource == libc::RLIMIT_NOFILE {
            pool::forget_limit();
        }
        return result;
    }
    // SAFETY: as the caller promised for `new`.
    let outcome = unsafe { new.as_ref() }.map_or(Ok(None), |new| limit_space(*new).map(Some));
    match outcome.and_then(|before| before.map_or_else(limit_of_space, Ok)) {
        Ok(before) => {
            // SAFETY: as the caller promised for `old`.
            if let Some(old) = unsafe { old.as_mut() } {
                *old = before;
            }
            0
        }
        Err(errno) => errno::fail(errno),
    }
}

/// The program's own limit of its address space.
fn limit_of_space() -> Sys<rlimit64> {
    let mut limit = rlimit64 { rlim_cur: 0, rlim_max: 0 };
    sys::call!(libc::SYS_prlimit64, 0, libc::RLIMIT_AS, 0, sys::at_mut(&mut limit))?;
    let [soft, hard] = &ADDED;
    limit.rlim_cur = without(limit.rlim_cur, soft.load(Relaxed));
    limit.rlim_max = without(limit.rlim_max, hard.load(Relaxed));
    Ok(limit)
}

/// Sets it; the one before.
fn limit_space(new: rlimit64) -> Sys<rlimit64> {
    if new.rlim_cur > new.rlim_max {
        return Err(Errno(libc::EINVAL));
    }
    let before = limit_of_space()?;
    let mapped = MAPPED.load(Relaxed) as u64;
    let mut now = rlimit64 { rlim_cur: 0, rlim_max: 0 };
    sys::call!(libc::SYS_prlimit64, 0, libc::RLIMIT_AS, 0, sys::at_mut(&mut now))?;
    // Only the privileged may raise the hard limit, and what is above the program's own is refused as it would be without us.
    let hardest = if new.rlim_max <= before.rlim_max { now.rlim_max } else { libc::RLIM64_INFINITY };
    let rlim_max = with(new.rlim_max, mapped).min(hardest);
    let real = rlimit64 { rlim_cur: with(new.rlim_cur, mapped).min(rlim_max), rlim_max };
    sys::call!(libc::SYS_prlimit64, 0, libc::RLIMIT_AS, sys::at(&real), 0)?;
    let [soft, hard] = &ADDED;
    soft.store(real.rlim_cur.wrapping_sub(new.rlim_cur), Relaxed);
    hard.store(real.rlim_max.wrapping_sub(new.rlim_max), Relaxed);
    Ok(before)
}

fn with(limit: u64, added: u64) -> u64 {
    if limit == libc::RLIM64_INFINITY { limit } else { limit.saturating_add(added) }
}

fn without(limit: u64, added: u64) -> u64 {
    if limit == libc::RLIM64_INFINITY { limit } else { limit.saturating_sub(added) }
}
