//! What the kernel would say: a fresh socket of it is asked, and closed again.
//!
//! For questions whose answer is the same for every socket of a family, and for options that mean nothing to utcp: whether this
//! kernel knows them, and whether the program may set them.

use core::ffi::{c_int, c_void};

use libc::socklen_t;

use super::Line;
use crate::sys::{self, Sys};

/// Calls `ask` with a fresh TCP socket of the kernel's.
fn fresh<T>(domain: c_int, ask: impl FnOnce(c_int) -> Sys<T>) -> Sys<T> {
    let fresh = sys::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)?;
    let answer = ask(fresh);
    let _ = sys::close(fresh);
    answer
}

/// `setsockopt` of an option in the table.
///
/// # Safety
/// As `setsockopt`.
pub unsafe fn set(line: &Line, value: *const c_void, len: socklen_t) -> Sys<()> {
    let domain = if line.level == libc::IPPROTO_IPV6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: the caller's promise.
    unsafe { set_any(domain, line.level, line.name, value, len) }
}

/// `setsockopt` of any option on a socket of `domain`.
///
/// # Safety
/// As `setsockopt`.
pub unsafe fn set_any(
    domain: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Sys<()> {
    fresh(domain, |fd| sys::call!(libc::SYS_setsockopt, fd, level, name, value, len).map(|_| ()))
}

/// As [`set_any`]; whether it made a difference, as far as the kernel tells: what leaves everything as it was can be
/// done on any socket.
///
/// # Safety
/// As `setsockopt`.
pub unsafe fn changes(
    domain: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Sys<bool> {
    let told = |fd| {
        let (mut told, mut len) = ([0u8; 64], 64 as socklen_t);
        let result =
            sys::call!(libc::SYS_getsockopt, fd, level, name, sys::at_mut(&mut told), sys::at_mut(&mut len));
        result.ok().map(|_| (told, len))
    };
    fresh(domain, |fd| {
        let before = told(fd);
        sys::call!(libc::SYS_setsockopt, fd, level, name, value, len)?;
        Ok(before.is_none() || before != told(fd))
    })
}

/// `getsockopt` into `room` bytes at `value`; how many were given.
///
/// # Safety
/// `value` is the program's own buffer.
pub unsafe fn get(domain: c_int, level: c_int, name: c_int, value: *mut u8, room: usize) -> Sys<usize> {
    fresh(domain, |fd| {
        let mut len = room as socklen_t;
        sys::call!(libc::SYS_getsockopt, fd, level, name, value, sys::at_mut(&mut len))?;
        Ok(len as usize)
    })
}
