//! `sendfile`, `splice` and `tee`: bytes that go between a socket and a file or pipe.

use core::ffi::{c_int, c_uint};

use libc::{off_t, size_t, ssize_t};

use crate::fd_table::Kind;
use crate::handle::{self, Sock};
use crate::io::{foreign, pass};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{errno, poll, recv, send, urgent, user};

/// Bytes of a file, for the tx stream.
struct FromFile {
    fd: c_int,
    /// Position, or `None` to read from (and move) the file's own.
    offset: Option<i64>,
    left: usize,
}

impl send::Source for FromFile {
    fn left(&self) -> usize {
        self.left
    }

    unsafe fn put(&mut self, to: *mut u8, len: usize) -> Sys<usize> {
        let len = len.min(self.left);
        let count = match self.offset {
            Some(offset) => sys::call!(libc::SYS_pread64, self.fd, to, len, offset),
            None => sys::call!(libc::SYS_read, self.fd, to, len),
        }?;
        self.offset = self.offset.map(|offset| offset.wrapping_add(count as i64));
        // The end of the file is the end of the source.
        self.left = if count == 0 { 0 } else { self.left.saturating_sub(count) };
        Ok(count)
    }

    fn put_back(&mut self, len: usize, _left: usize) {
        let back = (len as i64).wrapping_neg();
        if self.offset.is_none() {
            let _ = sys::call!(libc::SYS_lseek, self.fd, back, libc::SEEK_CUR);
        }
        self.offset = self.offset.map(|offset| offset.wrapping_add(back));
        self.left = self.left.saturating_add(len);
    }
}

/// `sendfile(2)`: file → tx stream without a buffer between.
///
/// # Safety
/// As `sendfile`.
pub unsafe fn sendfile(out: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    let (source, sink) = (handle::stream(from), handle::stream(out));
    if source.is_none() && sink.is_none() {
        return foreign!(out, sendfile(out, from, offset, count));
    }
    // SAFETY: the program's own offset.
    let start = match unsafe { user::fetch(offset) } {
        _ if offset.is_null() => None,
        Ok(start) => Some(start),
        Err(error) => return errno::fail(error),
    };
    let plain =
        sys::mode(from).is_ok_and(|mode| matches!(mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK));
    let usual = plain && (1..=COUNT_MAX).contains(&count) && start.is_none_or(|at| (0..FAR).contains(&at));
    let ready = sink.is_some_and(|sock| !send::is_closed(&sock) && send::room(&sock) > 0);
    if !(usual && ready) {
        match check(from, out, start, count) {
            Ok(true) => {}
            Ok(false) => return 0,
            Err(error) => return errno::fail(error),
        }
    }
    let Some(sock) = sink.filter(|_| source.is_none()) else {
        // Out of a socket it goes into a pipe only, as `splice` does it.
        let is_pipe = sys::mode(out).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFIFO);
        let Some(sock) = source.filter(|_| is_pipe) else { return errno::fail(Errno(libc::EINVAL)) };
        return errno::into_libc(into_pipe(&sock, out, count, 0));
    };
    // What has no pages (a socket, a pipe) is no source, as in the kernel.
    if !plain {
        return errno::fail(Errno(libc::EINVAL));
    }
    let mut source = FromFile { fd: from, offset: start, left: count.min(COUNT_MAX) };
    let result = send::send_from(&sock, &mut source, 0);
    let result = match (source.offset, result) {
        // SAFETY: as above.
        (Some(now), Ok(count)) => unsafe { user::give(offset, now) }.map(|()| count),
        (_, result) => result,
    };
    errno::into_libc(result)
}

/// More is not moved at a time (MAX_RW_COUNT).
const COUNT_MAX: usize = 0x7fff_f000;
/// From here on the kernel is asked whether a file may be so long.
const FAR: i64 = 1 << 40;

/// What Linux judges before the socket has its say (do_sendfile), in its order. False: there is nothing to send.
fn check(from: c_int, out: c_int, start: Option<i64>, count: usize) -> Sys<bool> {
    let access = |fd| Ok(sys::fcntl(fd, libc::F_GETFL, 0)? & libc::O_ACCMODE);
    if access(from)? == libc::O_WRONLY {
        return Err(Errno(libc::EBADF));
    }
    if start.is_some() {
        sys::call!(libc::SYS_lseek, from, 0, libc::SEEK_CUR)?;
    }
    let signed = i64::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
    let at = start.unwrap_or(0);
    if at < 0 || at.checked_add(signed).is_none() {
        return Err(Errno(libc::EINVAL));
    }
    if access(out)? == libc::O_RDONLY {
        return Err(Errno(libc::EBADF));
    }
    if at >= FAR {
        let judge = sys::eventfd(0)?; // Writable, and no place for a file.
        let mut copy = at;
        let said = sys::call!(libc::SYS_sendfile, judge, from, sys::at_mut(&mut copy), count);
        let _ = sys::close(judge);
        if said == Err(Errno(libc::EOVERFLOW)) {
            return Err(Errno(libc::EOVERFLOW));
        }
    }
    if count == 0 {
        let into_pipe = sys::mode(out).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFIFO);
        let has_places = sys::call!(libc::SYS_lseek, from, 0, libc::SEEK_CUR).is_ok();
        return if into_pipe || has_places { Ok(false) } else { Err(Errno(libc::EINVAL)) };
    }
    // A file that ends there is read before anything is written.
    let mut byte = 0u8;
    let here = match start {
        Some(at) => at,
        None => sys::call!(libc::SYS_lseek, from, 0, libc::SEEK_CUR).map_or(0, |at| at as i64),
    };
    Ok(sys::call!(libc::SYS_pread64, from, sys::at_mut(&mut byte), 1, here) != Ok(0))
}

/// Bytes that `splice` moves at a time.
const BOUNCE: usize = 65536;

/// `splice(2)` with one of our sockets at one end and a pipe at the other. SPLICE_F_NONBLOCK is about the pipe, O_NONBLOCK about the
/// socket.
///
/// # Safety
/// As `splice`.
pub unsafe fn splice(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let (source, sink) = (handle::stream(from), handle::stream(to));
    if source.is_none() && sink.is_none() {
        return pass!(splice(from, from_offset, to, to_offset, len, flags));
    }
    if len == 0 {
        return 0;
    }
    if flags & !FLAGS != 0 {
        return errno::fail(Errno(libc::EINVAL));
    }
    let (pipe, pipe_offset, socket_offset) =
        if source.is_some() { (to, to_offset, from_offset) } else { (from, from_offset, to_offset) };
    let is_pipe = sys::mode(pipe).map(|mode| mode & libc::S_IFMT == libc::S_IFIFO);
    // SAFETY: the program's own offset.
    let reachable = unsafe { user::fetch(socket_offset) };
    let result = match (source, sink, is_pipe) {
        (_, _, Err(error)) => Err(error),
        (_, _, Ok(true)) if !pipe_offset.is_null() => Err(Errno(libc::ESPIPE)),
        _ if !socket_offset.is_null() && reachable.is_err() => Err(Errno(libc::EFAULT)),
        (Some(_), Some(_), _) | (None, None, _) | (_, _, Ok(false)) => Err(Errno(libc::EINVAL)),
        _ if !socket_offset.is_null() => Err(Errno(libc::EINVAL)),
        (Some(sock), _, _) => into_pipe(&sock, to, len, flags),
        (_, Some(sock), _) => out_of_pipe(from, &sock, len, flags),
    };
    errno::into_libc(result)
}

/// Every flag of `splice`: MOVE, NONBLOCK, MORE, GIFT.
const FLAGS: c_uint = 15;

fn into_pipe(sock: &Sock, pipe: c_int, len: usize, flags: c_uint) -> Sys<usize> {
    if urgent::at_mark(sock) {
        // Linux: a splice neither takes the urgent byte nor goes over it.
        return if sock.is_nonblocking() { Err(Errno(libc::EAGAIN)) } else { Ok(0) };
    }
    let free = loop {
        let room = sys::fcntl(pipe, libc::F_GETPIPE_SZ, 0)? as usize;
        let mut used: c_int = 0;
        sys::call!(libc::SYS_ioctl, pipe, libc::FIONREAD, sys::at_mut(&mut used))?;
        let free = room.saturating_sub(used.max(0) as usize);
        // A pipe counts pages, not bytes: keep a page of distance.
        if free > 4096 || used == 0 {
            break free;
        }
        if flags & libc::SPLICE_F_NONBLOCK != 0 {
            return Err(Errno(libc::EAGAIN));
        }
        let mut list = [libc::pollfd { fd: pipe, events: libc::POLLOUT, revents: 0 }];
        sys::poll(&mut list, 1000)?;
    };
    let mut bounce = [0u8; BOUNCE];
    let part = len.min(free).min(BOUNCE);
    let count = recv::recv(sock, &user::buffer(bounce.as_mut_ptr().cast(), part), libc::MSG_PEEK)?;
    let Some(bytes) = bounce.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(0) };
    let written = sys::write(pipe, bytes)?;
    // What the pipe took is taken from the stream; the rest stays there.
    let list = user::buffer(bounce.as_ptr().cast(), written);
    loop {
        match recv::recv(sock, &list, libc::MSG_TRUNC | libc::MSG_DONTWAIT) {
            // The stream moves to another place just now; it is not empty.
            Err(Errno(libc::EAGAIN)) if sock.att.is_alive() && sock.is_current() => sys::sched_yield(),
            result => return result,
        }
    }
}

fn out_of_pipe(pipe: c_int, sock: &Sock, len: usize, flags: c_uint) -> Sys<usize> {
    // Space first: what was read from the pipe can't be put back.
    let free = loop {
        if let Some(error) = send::refusal(sock, 0) {
            return Err(error);
        }
        let free = send::room(sock);
        if free > 0 {
            break free;
        }
        if sock.is_nonblocking() {
            crate::ready::watch(sock, crate::ready::OUT);
            return Err(Errno(libc::EAGAIN));
        }
        let mut list = [libc::pollfd { fd: sock.fd, events: libc::POLLOUT, revents: 0 }];
        poll::wait(&mut list, None, core::ptr::null())?;
    };
    if flags & libc::SPLICE_F_NONBLOCK != 0 {
        let mut list = [libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 }];
        if sys::poll(&mut list, 0)? == 0 {
            return Err(Errno(libc::EAGAIN));
        }
    }
    // Not straight into the stream: whoever waits for the pipe must keep nobody from the socket.
    let mut bounce = [0u8; BOUNCE];
    let part = len.min(free).min(BOUNCE);
    let count = sys::call!(libc::SYS_read, pipe, sys::at_mut(&mut bounce), part)?;
    match bounce.get(..count) {
        Some(bytes) if count > 0 => send::send_taken(sock, bytes),
        _ => Ok(0),
    }
}

/// `tee(2)` works on pipes alone.
///
/// # Safety
/// None beyond C's.
pub unsafe fn tee(from: c_int, to: c_int, len: size_t, flags: c_uint) -> ssize_t {
    if handle::ours(from).or_else(|| handle::ours(to)).is_some_and(|sock| sock.entry.kind() == Kind::Socket) {
        return errno::fail(Errno(libc::EINVAL));
    }
    pass!(tee(from, to, len, flags))
}
