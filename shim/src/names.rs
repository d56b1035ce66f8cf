//! Who a socket is and whom it talks to: `getsockname`, `getpeername`, and small questions.

use core::ffi::c_int;

use libc::{sockaddr, socklen_t};
use utcp_abi::socket::status;

use crate::handle::Sock;
use crate::sys::{Errno, Sys};
use crate::table::real;
use crate::{connect, errno, handle, listen, relayed, urgent, user};

/// `getsockname(2)`.
///
/// # Safety
/// As `getsockname`.
pub unsafe fn getsockname(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // A program that got its listeners by exec asks them who they are, while it still has its privileges.
    listen::meet(fd);
    let Some(sock) = handle::stream(fd) else {
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own arguments.
        return unsafe { kernels(fd, false, to, len) };
    };
    if sock.status() & status::CONNECTING != 0 {
        connect::settle(&sock); // The local port is chosen by then.
    }
    // SAFETY: the program's own pointers.
    let given = unsafe { user::give_name(sock.shared.local.load(), sock.is_inet6(), to, len) };
    errno::into_libc(given.map(|()| 0))
}

/// A name of the kernel's socket `fd`, unless that is the end of a pair by which a connection of ours is relayed.
///
/// # Safety
/// As `getsockname`.
unsafe fn kernels(fd: c_int, remote: bool, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe {
        let room = user::fetch(len).unwrap_or(0);
        let result = if remote { real::getpeername(fd, to, len) } else { real::getsockname(fd, to, len) };
        if result != 0 {
            return result;
        }
        errno::into_libc(relayed::rename(fd, remote, to, len, room).map(|()| 0))
    }
}

/// `getpeername(2)`.
///
/// # Safety
/// As `getpeername`.
pub unsafe fn getpeername(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let Some(sock) = handle::stream(fd) else {
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own arguments.
        return unsafe { kernels(fd, true, to, len) };
    };
    if sock.status() & status::CONNECTED == 0 || sock.has_ended() {
        return errno::fail(Errno(libc::ENOTCONN));
    }
    // SAFETY: the program's own pointers.
    let given = unsafe { user::give_name(sock.shared.remote.load(), sock.is_inet6(), to, len) };
    errno::into_libc(given.map(|()| 0))
}

/// The peer's name in a place of our own, and its length: also of one that is tried, or that was there.
pub fn peer(sock: &Sock) -> Sys<(libc::sockaddr_storage, socklen_t)> {
    let now = sock.status();
    if now & (status::CONNECTING | status::CONNECTED | status::DEAD) == 0 || sock.is_as_new(now) {
        return Err(Errno(libc::ENOTCONN));
    }
    if now & status::CONNECTING != 0 {
        connect::settle(sock);
    }
    // SAFETY: zero bytes are a valid sockaddr_storage.
    let mut name: libc::sockaddr_storage = unsafe { core::mem::zeroed() };
    let mut len = size_of_val(&name) as socklen_t;
    // SAFETY: a place of ours with its length.
    unsafe {
        user::give_address(sock.shared.remote.load(), sock.is_inet6(), (&raw mut name).cast(), &raw mut len)
    }?;
    Ok((name, len))
}

/// `isfdtype(3)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn isfdtype(fd: c_int, kind: c_int) -> c_int {
    if handle::stream(fd).is_some() {
        return c_int::from(kind as u32 == libc::S_IFSOCK);
    }
    // SAFETY: plain numbers.
    unsafe { real::isfdtype(fd, kind) }
}

/// `sockatmark(3)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn sockatmark(fd: c_int) -> c_int {
    if let Some(sock) = handle::stream(fd) {
        return c_int::from(urgent::at_mark(&sock));
    }
    // SAFETY: a plain number.
    unsafe { real::sockatmark(fd) }
}
