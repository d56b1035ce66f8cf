//! The calls that move bytes: every name that libc has for receiving and sending.
//!
//! Each is the same three steps: one load decides whose descriptor it is; the program's memory becomes a
//! list of buffers; the result becomes -1 and `errno` where it must.

use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::Ordering::AcqRel;

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use utcp_abi::socket::file;

use crate::fast_open::{self, Sent};
use crate::fd_table::Kind;
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{bound, errno, listen, poll, recv, relayed, send, swap, user};

/// Hands the call on `fd` to libc, untouched; a number that the program does not know of is no descriptor.
macro_rules! foreign {
    ($fd:expr, $name:ident($($arg:expr),* $(,)?)) => {
        if $crate::handle::is_hidden($fd) {
            $crate::errno::fail($crate::sys::Errno(libc::EBADF))
        } else {
            pass!($name($($arg),*))
        }
    };
}

/// Hands the call to libc, untouched.
macro_rules! pass {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the program's own arguments, under the program's own contract with libc.
        unsafe { real::$name($($arg),*) }
    };
}
pub(crate) use pass;

/// `read(2)`.
///
/// # Safety
/// As `read`.
#[inline]
pub unsafe fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, read(fd, buf, len)),
        Some(sock) => errno::into_libc(recv::read(&sock, &user::buffer(buf, len))),
    }
}

/// `__read_chk`.
///
/// # Safety
/// As `read`.
pub unsafe fn read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t {
    match handle::stream(fd) {
        Some(sock) if len <= room => errno::into_libc(recv::read(&sock, &user::buffer(buf, len))),
        _ => foreign!(fd, __read_chk(fd, buf, len, room)),
    }
}

/// `readv(2)`.
///
/// # Safety
/// As `readv`.
pub unsafe fn readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, readv(fd, list, count)),
        Some(sock) => {
            // SAFETY: the program's own list.
            let list = unsafe { user::vector(list, count) };
            errno::into_libc(list.and_then(|list| recv::read(&sock, list)))
        }
    }
}

/// `recv(2)`.
///
/// # Safety
/// As `recv`.
#[inline]
pub unsafe fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, recv(fd, buf, len, flags)),
        Some(sock) => errno::into_libc(recv::recv(&sock, &user::buffer(buf, len), flags)),
    }
}

/// `__recv_chk`.
///
/// # Safety
/// As `recv`.
pub unsafe fn recv_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
    match handle::stream(fd) {
        Some(sock) if len <= room => errno::into_libc(recv::recv(&sock, &user::buffer(buf, len), flags)),
        _ => foreign!(fd, __recv_chk(fd, buf, len, room, flags)),
    }
}

/// `recvfrom(2)`: on a stream, the address stays untouched and its length becomes 0.
///
/// # Safety
/// As `recvfrom`.
pub unsafe fn recvfrom(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    let Some(sock) = handle::stream(fd) else {
        return foreign!(fd, recvfrom(fd, buf, len, flags, from, from_len));
    };
    let result = recv::recv(&sock, &user::buffer(buf, len), flags);
    if result.is_ok() && !from.is_null() && !from_len.is_null() {
        // SAFETY: the program's own length.
        unsafe { from_len.write_unaligned(0) };
    }
    errno::into_libc(result)
}

/// `__recvfrom_chk`.
///
/// # Safety
/// As `recvfrom`.
pub unsafe fn recvfrom_chk(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    if handle::stream(fd).is_none() || len > room {
        return foreign!(fd, __recvfrom_chk(fd, buf, len, room, flags, from, from_len));
    }
    // SAFETY: the program's own arguments.
    unsafe { recvfrom(fd, buf, len, flags, from, from_len) }
}

/// One message into the program's header.
///
/// # Safety
/// As `recvmsg`.
unsafe fn receive_message(sock: &Sock, header: *mut msghdr, flags: c_int) -> Sys<usize> {
    if header.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the program's own header; not null.
    let header = unsafe { &mut *header };
    // SAFETY: the list that it names.
    let list = unsafe { user::vector(header.msg_iov, c_int::try_from(header.msg_iovlen).unwrap_or(-1)) }
        .map_err(|_| Errno(libc::EMSGSIZE))?;
    let count = recv::recv(sock, list, flags)?;
    header.msg_namelen = 0;
    header.msg_controllen = 0;
    header.msg_flags = flags & (libc::MSG_CMSG_CLOEXEC | libc::MSG_OOB);
    Ok(count)
}

/// `recvmsg(2)`.
///
/// # Safety
/// As `recvmsg`.
pub unsafe fn recvmsg(fd: c_int, header: *mut msghdr, flags: c_int) -> ssize_t {
    if let Some(sock) = handle::stream(fd) {
        // SAFETY: the program's own header.
        return errno::into_libc(unsafe { receive_message(&sock, header, flags) });
    }
    let result = foreign!(fd, recvmsg(fd, header, flags));
    // SAFETY: the kernel has just used it.
    if result >= 0 && unsafe { (*header).msg_controllen } != 0 {
        listen::expect_strangers(); // Perhaps descriptors, perhaps listeners among them.
    }
    result
}

/// `recvmmsg(2)`.
///
/// # Safety
/// As `recvmmsg`.
pub unsafe fn recvmmsg(
    fd: c_int,
    headers: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let Some(sock) = handle::stream(fd) else {
        return foreign!(fd, recvmmsg(fd, headers, count, flags, timeout));
    };
    let mut flags_now = flags & !libc::MSG_WAITFORONE;
    let mut done = 0usize;
    for at in 0..count.min(1024) as usize {
        // SAFETY: the program's list has `count` elements.
        let one = unsafe { &mut *headers.add(at) };
        // SAFETY: the program's own header.
        match unsafe { receive_message(&sock, &raw mut one.msg_hdr, flags_now) } {
            Ok(len) => one.msg_len = len as c_uint,
            Err(error) if done == 0 => return errno::fail(error),
            Err(_) => break,
        }
        done += 1;
        if flags & libc::MSG_WAITFORONE != 0 {
            flags_now |= libc::MSG_DONTWAIT;
        }
    }
    done as c_int
}

/// `write(2)`.
///
/// # Safety
/// As `write`.
#[inline]
pub unsafe fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, write(fd, buf, len)),
        Some(sock) => errno::into_libc(send::send(&sock, &user::buffer(buf, len), 0)),
    }
}

/// `writev(2)`.
///
/// # Safety
/// As `writev`.
pub unsafe fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, writev(fd, list, count)),
        Some(sock) => {
            // SAFETY: the program's own list.
            let list = unsafe { user::vector(list, count) };
            errno::into_libc(list.and_then(|list| send::send(&sock, list, 0)))
        }
    }
}

/// `send(2)`.
///
/// # Safety
/// As `send`.
#[inline]
pub unsafe fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, send(fd, buf, len, flags)),
        Some(sock) => errno::into_libc(send::send(&sock, &user::buffer(buf, len), flags)),
    }
}

/// `sendto(2)`: on a stream the address is ignored, unless MSG_FASTOPEN means it.
///
/// # Safety
/// As `sendto`.
pub unsafe fn sendto(
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> ssize_t {
    if handle::stream(fd).is_none() {
        return foreign!(fd, sendto(fd, buf, len, flags, to, to_len));
    }
    let Some(sock) = handle::stream(fd) else { return errno::fail(Errno(libc::EBADF)) };
    if flags & libc::MSG_FASTOPEN == 0 {
        return errno::into_libc(send::send(&sock, &user::buffer(buf, len), flags));
    }
    // SAFETY: the program's own address.
    let sent = unsafe { send_fast(&sock, to, to_len, &user::buffer(buf, len), flags) };
    match sent {
        Ok(Sent::Bytes(count)) => count as ssize_t,
        // SAFETY: the program's own arguments; `fd` is the kernel's socket now.
        Ok(Sent::ByKernel) => unsafe { real::sendto(fd, buf, len, flags, to, to_len) },
        Err(error) => errno::fail(error),
    }
}

/// A send with MSG_FASTOPEN; one that the kernel shall do finds a socket of its own.
///
/// # Safety
/// As `sendto`.
unsafe fn send_fast(
    sock: &Sock,
    to: *const sockaddr,
    len: socklen_t,
    list: &[iovec],
    flags: c_int,
) -> Sys<Sent> {
    let mut buffers = user::Buffers::new(list)?;
    // SAFETY: the program's own address.
    let sent = unsafe { fast_open::send_to(sock, to, len, &mut buffers, flags) }?;
    if let Sent::ByKernel = sent {
        swap::to_kernel(sock)?;
    }
    Ok(sent)
}

/// # Safety
/// As `sendmsg`.
unsafe fn send_message(sock: &Sock, header: *const msghdr, flags: c_int) -> Sys<usize> {
    if header.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    let whole = header;
    // SAFETY: the program's own header; not null.
    let header = unsafe { &*header };
    // SAFETY: the list that it names.
    let list = unsafe { user::vector(header.msg_iov, c_int::try_from(header.msg_iovlen).unwrap_or(-1)) }
        .map_err(|_| Errno(libc::EMSGSIZE))?;
    if flags & libc::MSG_FASTOPEN == 0 {
        return send::send(sock, list, flags);
    }
    // SAFETY: the program's own address.
    let sent = unsafe { send_fast(sock, header.msg_name.cast(), header.msg_namelen, list, flags) }?;
    match sent {
        Sent::Bytes(count) => Ok(count),
        Sent::ByKernel => {
            // SAFETY: the program's own header; the number is the kernel's socket's now.
            let sent = unsafe { real::sendmsg(sock.fd, whole, flags) };
            usize::try_from(sent).map_err(|_| errno::get())
        }
    }
}

/// `sendmsg(2)`.
///
/// # Safety
/// As `sendmsg`.
pub unsafe fn sendmsg(fd: c_int, header: *const msghdr, flags: c_int) -> ssize_t {
    let Some(sock) = handle::stream(fd) else {
        // SAFETY: the program's own header.
        unsafe { mark_passed_on(header) };
        return foreign!(fd, sendmsg(fd, header, flags));
    };
    // SAFETY: the program's own header.
    errno::into_libc(unsafe { send_message(&sock, header, flags) })
}

/// `sendmmsg(2)`.
///
/// # Safety
/// As `sendmmsg`.
pub unsafe fn sendmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    let Some(sock) = handle::stream(fd) else { return foreign!(fd, sendmmsg(fd, headers, count, flags)) };
    let mut done = 0usize;
    for at in 0..count.min(1024) as usize {
        // SAFETY: the program's list has `count` elements.
        let one = unsafe { &mut *headers.add(at) };
        // SAFETY: the program's own header.
        match unsafe { send_message(&sock, &raw const one.msg_hdr, flags) } {
            Ok(len) => one.msg_len = len as c_uint,
            Err(error) if done == 0 => return errno::fail(error),
            Err(_) => break,
        }
        done += 1;
    }
    done as c_int
}

/// Descriptors that travel to another process (SCM_RIGHTS) are no longer ours alone.
///
/// # Safety
/// As `sendmsg`.
unsafe fn mark_passed_on(header: *const msghdr) {
    // SAFETY: the program's own header, walked as libc's macros do.
    unsafe {
        if header.is_null() || (*header).msg_control.is_null() || (*header).msg_controllen == 0 {
            return;
        }
        let mut one = libc::CMSG_FIRSTHDR(header);
        while !one.is_null() {
            if (*one).cmsg_level == libc::SOL_SOCKET && (*one).cmsg_type == libc::SCM_RIGHTS {
                let bytes = ((*one).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let list = libc::CMSG_DATA(one);
                for at in 0..bytes / size_of::<c_int>() {
                    bound::settle(descriptor_at(list, at));
                    relayed::pass(descriptor_at(list, at));
                    if let Some(sock) = handle::ours(descriptor_at(list, at)) {
                        sock.shared.file.fetch_or(file::SHARED, AcqRel);
                    }
                }
            }
            one = libc::CMSG_NXTHDR(header, one);
        }
    }
}

/// # Safety
/// `list` has more than `at` descriptors, wherever it stands.
unsafe fn descriptor_at(list: *const u8, at: usize) -> c_int {
    let mut fd: c_int = -1;
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(list.add(at * 4), (&raw mut fd).cast(), 4) };
    fd
}

/// `preadv2(2)`: with offset -1 it is `readv` with flags; otherwise a socket has no offset.
///
/// # Safety
/// As `preadv2`.
pub unsafe fn preadv2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, preadv2(fd, list, count, offset, flags)),
        Some(_) if offset != -1 => errno::fail(Errno(libc::ESPIPE)),
        Some(sock) => {
            let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
            // SAFETY: the program's own list.
            errno::into_libc(
                unsafe { user::vector(list, count) }.and_then(|list| recv::recv(&sock, list, wait)),
            )
        }
    }
}

/// `pwritev2(2)`.
///
/// # Safety
/// As `pwritev2`.
pub unsafe fn pwritev2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    match handle::stream(fd) {
        None => foreign!(fd, pwritev2(fd, list, count, offset, flags)),
        Some(_) if offset != -1 => errno::fail(Errno(libc::ESPIPE)),
        Some(sock) => {
            let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
            // SAFETY: the program's own list.
            errno::into_libc(
                unsafe { user::vector(list, count) }.and_then(|list| send::send(&sock, list, wait)),
            )
        }
    }
}

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
}

/// `sendfile(2)`: file → tx stream without a buffer between.
///
/// # Safety
/// As `sendfile`.
pub unsafe fn sendfile(out: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    if let Some(sock) = handle::stream(from) {
        // Out of a socket it goes into a pipe only, as `splice` does it.
        let is_pipe = sys::mode(out).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFIFO);
        if !is_pipe {
            return errno::fail(Errno(libc::EINVAL));
        }
        return errno::into_libc(into_pipe(&sock, out, count, 0));
    }
    let Some(sock) = handle::stream(out) else { return foreign!(out, sendfile(out, from, offset, count)) };
    // What has no pages (a socket, a pipe) is no source, as in the kernel.
    match sys::mode(from) {
        Ok(mode) if matches!(mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK) => {}
        Ok(_) => return errno::fail(Errno(libc::EINVAL)),
        Err(error) => return errno::fail(error),
    }
    // SAFETY: the program's own offset.
    let start = if offset.is_null() { None } else { Some(unsafe { offset.read_unaligned() }) };
    let mut source = FromFile { fd: from, offset: start, left: count.min(0x7fff_f000) };
    let result = send::send_from(&sock, &mut source, 0);
    if let (Some(now), Ok(_)) = (source.offset, result) {
        // SAFETY: as above.
        unsafe { offset.write_unaligned(now) };
    }
    errno::into_libc(result)
}

/// Bytes that `splice` moves at a time.
const BOUNCE: usize = 65536;

/// `splice(2)` with one of our sockets at one end and a pipe at the other.
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
    let pipe = if source.is_some() { to } else { from };
    let is_pipe = sys::mode(pipe).map(|mode| mode & libc::S_IFMT == libc::S_IFIFO);
    let result = match (source, sink, is_pipe) {
        (_, _, Err(error)) => Err(error),
        (Some(_), Some(_), _) | (_, _, Ok(false)) => Err(Errno(libc::EINVAL)),
        _ if !from_offset.is_null() || !to_offset.is_null() => Err(Errno(libc::ESPIPE)),
        (Some(sock), _, _) => into_pipe(&sock, to, len, flags),
        (_, Some(sock), _) => out_of_pipe(from, &sock, len, flags),
        (None, None, _) => Err(Errno(libc::EINVAL)),
    };
    errno::into_libc(result)
}

/// Whether a splice may not wait at its socket's end.
fn splice_flags(flags: c_uint) -> c_int {
    if flags & libc::SPLICE_F_NONBLOCK != 0 { libc::MSG_DONTWAIT } else { 0 }
}

fn into_pipe(sock: &Sock, pipe: c_int, len: usize, flags: c_uint) -> Sys<usize> {
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
    let count = recv::recv(
        sock,
        &user::buffer(bounce.as_mut_ptr().cast(), part),
        splice_flags(flags) | libc::MSG_PEEK,
    )?;
    let Some(bytes) = bounce.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(0) };
    let written = sys::write(pipe, bytes)?;
    // What the pipe took is taken from the stream; the rest stays there.
    recv::recv(sock, &user::buffer(bounce.as_mut_ptr().cast(), written), libc::MSG_TRUNC | libc::MSG_DONTWAIT)
}

fn out_of_pipe(pipe: c_int, sock: &Sock, len: usize, flags: c_uint) -> Sys<usize> {
    let wait = splice_flags(flags);
    // Space first: what was read from the pipe can't be put back.
    loop {
        if send::has_room(sock) || crate::ready::of(sock) & (crate::ready::ERR | crate::ready::HUP) != 0 {
            break;
        }
        if wait != 0 || sock.is_nonblocking() {
            crate::ready::watch(sock, crate::ready::OUT);
            return Err(Errno(libc::EAGAIN));
        }
        let mut list = [libc::pollfd { fd: sock.fd, events: libc::POLLOUT, revents: 0 }];
        poll::wait(&mut list, None, core::ptr::null())?;
    }
    if flags & libc::SPLICE_F_NONBLOCK != 0 {
        let mut list = [libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 }];
        if sys::poll(&mut list, 0)? == 0 {
            return Err(Errno(libc::EAGAIN));
        }
    }
    let mut source = FromFile { fd: pipe, offset: None, left: len.min(BOUNCE) };
    send::send_some(sock, &mut source)
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
