//! Counts the allocations of a process: preloaded into the engine, it proves that a connection or a
//! segment costs none.
//!
//! The count is a word in a file that `COUNT_FILE` names, mapped shared, so that a test reads it while the
//! process runs. Only libc's own allocator is called, and nothing here allocates.

use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

static COUNT: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: libc calls with literal strings; the mapping is a page of a file of that length.
    unsafe {
        let path: *const c_char = libc::getenv(c"COUNT_FILE".as_ptr());
        if path.is_null() {
            return;
        }
        let fd: c_int = libc::open(path, libc::O_RDWR);
        let page =
            libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0);
        libc::close(fd);
        if page != libc::MAP_FAILED {
            COUNT.store(page.cast(), Ordering::Release);
        }
    }
}

fn count() {
    // SAFETY: null, or the mapping, which stays until the end.
    if let Some(count) = unsafe { COUNT.load(Ordering::Acquire).as_ref() } {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counted malloc(3).
///
/// # Safety
/// As malloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's own arguments.
    unsafe { __libc_malloc(size) }
}

/// Counted calloc(3).
///
/// # Safety
/// As calloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(number: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's own arguments.
    unsafe { __libc_calloc(number, size) }
}

/// Counted realloc(3).
///
/// # Safety
/// As realloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's own arguments.
    unsafe { __libc_realloc(old, size) }
}

/// Counted posix_memalign(3).
///
/// # Safety
/// As posix_memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    count();
    // SAFETY: the caller's own arguments.
    let block = unsafe { __libc_memalign(align, size) };
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller gives a place for the pointer.
    unsafe { *out = block };
    0
}
