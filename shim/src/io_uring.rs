//! io_uring: rings whose operations reach sockets without a call that we could take over.
//!
//! The kernel would work on the descriptor that stands under a utcp socket, so a program that may put sockets into rings can't have
//! both. `UTCP_IO_URING` says which: `kernel` (the default): rings work, and from a process's first ring on its sockets are the
//! kernel's; `refuse`: io_uring_setup fails with ENOSYS, as on a kernel without it, programs do without, and their sockets stay
//! utcp's.
//!
//! Rings are made by `syscall(2)` or by liburing, whose own system calls can't be seen: its functions that make rings are in our table.

use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use utcp_abi::region::LogCode;

use crate::fd_table::{self, Kind};
use crate::notice::{self, Topic};
use crate::table::real;
use crate::{attach, bound, config, handle, listen, log, relayed, tls};

/// 1: this process, or one that it was forked from, has made a ring.
static RINGS: AtomicU32 = AtomicU32::new(0);

/// Whether the process's sockets are the kernel's because of its rings.
#[inline]
pub fn in_use() -> bool {
    RINGS.load(Relaxed) != 0
}

/// A socket is the kernel's for this reason.
#[cold]
pub fn say() {
    notice::say(
        Topic::Rings,
        &[b"this process uses io_uring: its sockets use the kernel (UTCP_IO_URING=refuse: no rings, but utcp)"],
    );
}

/// Whether a ring may be made; then every socket that is ours becomes one that can be put into it.
pub fn admit() -> bool {
    if config::disabled() || tls::thread().is_vfork_child() {
        return true;
    }
    if config::refuses_rings() {
        return false;
    }
    if RINGS.swap(1, AcqRel) == 0 {
        give_up_all();
    }
    true
}

#[cold]
fn give_up_all() {
    if let Some(att) = attach::existing() {
        log::record(att, LogCode::Rings, 0);
    }
    for (fd, entry) in fd_table::used() {
        match entry.kind() {
            // Its bytes go through its descriptor from now on.
            Kind::Socket => relayed::pass(fd),
            Kind::Listener => {
                if let Some(listener) = handle::listener(fd) {
                    listen::withdraw(&listener, listen::RINGS);
                }
            }
            Kind::Bound => bound::settle(fd),
            _ => {}
        }
    }
}

/// What liburing's functions return instead of -1.
const REFUSED: c_int = -libc::ENOSYS;

/// `io_uring_setup(2)` as liburing exports it.
///
/// # Safety
/// As that.
pub unsafe fn setup(entries: c_uint, params: *mut c_void) -> c_int {
    // SAFETY: the program's own arguments.
    if admit() { unsafe { real::io_uring_setup(entries, params) } } else { REFUSED }
}

/// `io_uring_queue_init(3)`.
///
/// # Safety
/// As that.
pub unsafe fn queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int {
    // SAFETY: the program's own arguments.
    if admit() { unsafe { real::io_uring_queue_init(entries, ring, flags) } } else { REFUSED }
}

/// `io_uring_queue_init_params(3)`.
///
/// # Safety
/// As that.
pub unsafe fn queue_init_params(entries: c_uint, ring: *mut c_void, params: *mut c_void) -> c_int {
    // SAFETY: the program's own arguments.
    if admit() { unsafe { real::io_uring_queue_init_params(entries, ring, params) } } else { REFUSED }
}

/// `io_uring_queue_init_mem(3)`.
///
/// # Safety
/// As that.
pub unsafe fn queue_init_mem(
    entries: c_uint,
    ring: *mut c_void,
    params: *mut c_void,
    memory: *mut c_void,
    len: usize,
) -> c_int {
    if admit() {
        // SAFETY: the program's own arguments.
        unsafe { real::io_uring_queue_init_mem(entries, ring, params, memory, len) }
    } else {
        REFUSED
    }
}
