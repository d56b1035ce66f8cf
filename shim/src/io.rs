//! The calls that move bytes: every name that libc has for receiving and sending.
//!
//! Each is the same three steps: one load decides whose descriptor it is; the program's memory becomes a
//! list of buffers; the result becomes -1 and `errno` where it must.

use core::ffi::{c_int, c_uint, c_void};

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use utcp_abi::socket::{intent, option, status};

use crate::fast_open::{self, Sent};
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{control_data, errno, recv, rights, send, signals, swap, user, zerocopy};

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
pub(crate) use {foreign, pass};

/// The utcp socket that a call is about which moves bytes, and is a cancellation point.
#[inline]
fn stream(fd: c_int) -> Option<Sock> {
    let sock = handle::stream(fd)?;
    signals::cancellation_point();
    Some(sock)
}

/// `read(2)`.
///
/// # Safety
/// As `read`.
#[inline]
pub unsafe fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, read(fd, buf, len)),
        Some(sock) => {
            errno::into_libc(user::whole_buffer(buf, len).and_then(|list| recv::read(&sock, &list, 0)))
        }
    }
}

/// `__read_chk`.
///
/// # Safety
/// As `read`.
pub unsafe fn read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t {
    if handle::stream(fd).is_none() || len > room {
        return foreign!(fd, __read_chk(fd, buf, len, room));
    }
    // SAFETY: the program's own arguments.
    unsafe { read(fd, buf, len) }
}

/// `readv(2)`.
///
/// # Safety
/// As `readv`.
pub unsafe fn readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, readv(fd, list, count)),
        Some(sock) => {
            // SAFETY: the program's own list.
            let list = unsafe { user::vector(list, count) };
            errno::into_libc(list.and_then(|list| recv::read(&sock, list, 0)))
        }
    }
}

/// `recv(2)`.
///
/// # Safety
/// As `recv`.
#[inline]
pub unsafe fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, recv(fd, buf, len, flags)),
        Some(sock) => errno::into_libc(recv::recv(&sock, &user::buffer(buf, len), flags)),
    }
}

/// `__recv_chk`.
///
/// # Safety
/// As `recv`.
pub unsafe fn recv_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
    match stream(fd) {
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
    let Some(sock) = stream(fd) else {
        return foreign!(fd, recvfrom(fd, buf, len, flags, from, from_len));
    };
    let result = recv::recv(&sock, &user::buffer(buf, len), flags);
    let result = result.and_then(|count| match from.is_null() {
        true => Ok(count),
        // SAFETY: the program's own length.
        false => unsafe { user::fetch(from_len) }.and_then(|room| match room.cast_signed() {
            // The bytes are gone all the same, as in Linux.
            ..0 => Err(Errno(libc::EINVAL)),
            // SAFETY: as above.
            _ => unsafe { user::give(from_len, 0) }.map(|()| count),
        }),
    });
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

/// The list of buffers that a header names.
///
/// # Safety
/// The header is the program's own.
unsafe fn buffers_of<'a>(header: &msghdr) -> Sys<&'a [iovec]> {
    let count = c_int::try_from(header.msg_iovlen).unwrap_or(-1);
    // SAFETY: the caller's promise.
    unsafe { user::vector(header.msg_iov, count) }.map_err(|error| match error {
        Errno(libc::EINVAL) => Errno(libc::EMSGSIZE),
        other => other,
    })
}

/// Messages of one call at most (Linux UIO_MAXIOV).
const MESSAGES_MAX: c_uint = 1024;

/// A flag that only the kernel's own 32-bit entry may set (linux/socket.h).
const MSG_CMSG_COMPAT: c_int = 1 << 31;

/// Refuses it, as every call with headers does.
fn forbid_compat(flags: c_int) -> Sys<()> {
    if flags & MSG_CMSG_COMPAT != 0 { Err(Errno(libc::EINVAL)) } else { Ok(()) }
}

/// One message into the program's header.
///
/// # Safety
/// As `recvmsg`.
unsafe fn receive_message(sock: &Sock, place: *mut msghdr, flags: c_int) -> Sys<usize> {
    // SAFETY: the program's own header.
    let header = unsafe { user::fetch(place) }?;
    if !header.msg_name.is_null() && header.msg_namelen.cast_signed() < 0 {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the list that it names.
    let list = unsafe { buffers_of(&header) }?;
    let mut controls = control_data::Writer::new(&header);
    let mut told = flags & (libc::MSG_CMSG_CLOEXEC | libc::MSG_OOB);
    let count = if flags & libc::MSG_ERRQUEUE != 0 {
        zerocopy::take_message(sock, &mut controls)?;
        told |= libc::MSG_ERRQUEUE;
        0
    } else {
        recv::recv(sock, list, flags)?
    };
    if flags & libc::MSG_ERRQUEUE == 0 && sock.shared.options.has(option::INQ) {
        controls.put(libc::IPPROTO_TCP, libc::TCP_CM_INQ, inq(sock))?;
    }
    // SAFETY: the program's own header.
    unsafe {
        user::give(&raw mut (*place).msg_namelen, 0)?;
        user::give(&raw mut (*place).msg_flags, told | controls.flags())?;
        user::give(&raw mut (*place).msg_controllen, controls.written())?;
    }
    Ok(count)
}

/// What TCP_CM_INQ says: bytes that wait behind those of this message; one more at the end of the stream, so that a program knows
/// of it without another read.
fn inq(sock: &Sock) -> c_int {
    let waiting = recv::waiting(sock).min(c_int::MAX as usize) as c_int;
    let over = sock.status() & status::RX_FIN != 0 || sock.intends(intent::SHUT_RD);
    if waiting == 0 && over { 1 } else { waiting }
}

/// `recvmsg(2)`.
///
/// # Safety
/// As `recvmsg`.
pub unsafe fn recvmsg(fd: c_int, header: *mut msghdr, flags: c_int) -> ssize_t {
    if let Some(sock) = stream(fd) {
        // SAFETY: the program's own header.
        let received = || unsafe { receive_message(&sock, header, flags) };
        return errno::into_libc(forbid_compat(flags).and_then(|()| received()));
    }
    let result = foreign!(fd, recvmsg(fd, header, flags));
    if result >= 0 {
        // SAFETY: the kernel has just filled it.
        unsafe { rights::come(header) };
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
    let Some(sock) = stream(fd) else {
        let received = foreign!(fd, recvmmsg(fd, headers, count, flags, timeout));
        for at in 0..received.max(0) as usize {
            // SAFETY: the kernel has just filled so many of them.
            unsafe { rights::come(&raw const (*headers.wrapping_add(at)).msg_hdr) };
        }
        return received;
    };
    let timeout = Timeout(timeout);
    // SAFETY: the program's own list and timeout.
    let received = || unsafe { receive_messages(&sock, headers, count.min(MESSAGES_MAX), flags, &timeout) };
    errno::into_libc(forbid_compat(flags).and_then(|()| received()))
}

/// The `timeout` of `recvmmsg`: how long it goes on after the first message. It is looked at after each.
struct Timeout(*mut timespec);

impl Timeout {
    /// Nanoseconds, if there is one.
    ///
    /// # Safety
    /// The program's own pointer.
    unsafe fn span(&self) -> Sys<Option<u64>> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let time = unsafe { user::fetch(self.0) }?;
        if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Some((time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)))
    }

    /// Says what is left of it.
    ///
    /// # Safety
    /// The program's own pointer.
    unsafe fn leave(&self, left_ns: u64) -> Sys<()> {
        // SAFETY: the caller's promise.
        unsafe { user::give(self.0, sys::timespec(left_ns)) }
    }
}

/// # Safety
/// As `recvmmsg`.
unsafe fn receive_messages(
    sock: &Sock,
    headers: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: &Timeout,
) -> Sys<usize> {
    // SAFETY: the program's own pointer.
    let span = unsafe { timeout.span() }?;
    let end = span.map(|span| sys::now_ns().saturating_add(span));
    // An error of before is told at once, unless it is the queue of errors that is asked for.
    if let Some(error) = if flags & libc::MSG_ERRQUEUE == 0 { sock.take_error() } else { None } {
        return Err(error);
    }
    let mut flags_now = flags & !libc::MSG_WAITFORONE;
    let mut done = 0usize;
    while done < count as usize {
        let one = headers.wrapping_add(done);
        // SAFETY: the program's list has `count` elements.
        let received = unsafe {
            receive_message(sock, &raw mut (*one).msg_hdr, flags_now)
                .and_then(|len| user::give(&raw mut (*one).msg_len, len as c_uint))
        };
        match received {
            Ok(()) => done = done.wrapping_add(1),
            Err(error) if done == 0 => return Err(error),
            Err(Errno(libc::EAGAIN)) => break,
            // The next call tells it.
            Err(error) => {
                recv::report_later(sock, error);
                break;
            }
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags_now |= libc::MSG_DONTWAIT;
        }
        if let Some(end) = end {
            let left = end.saturating_sub(sys::now_ns());
            // SAFETY: the program's own pointer.
            unsafe { timeout.leave(left) }?;
            if left == 0 {
                break;
            }
        }
    }
    Ok(done)
}

/// `write(2)`.
///
/// # Safety
/// As `write`.
#[inline]
pub unsafe fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, write(fd, buf, len)),
        Some(sock) => {
            errno::into_libc(user::whole_buffer(buf, len).and_then(|list| send::send(&sock, &list, 0)))
        }
    }
}

/// `writev(2)`.
///
/// # Safety
/// As `writev`.
pub unsafe fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, writev(fd, list, count)),
        Some(sock) => {
            // SAFETY: the program's own list.
            let list = unsafe { user::vector(list, count) };
            errno::into_libc(list.and_then(|list| send::write(&sock, list, 0)))
        }
    }
}

/// `send(2)`.
///
/// # Safety
/// As `send`.
#[inline]
pub unsafe fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    match stream(fd) {
        None => foreign!(fd, send(fd, buf, len, flags)),
        // SAFETY: the program's own arguments.
        Some(_) if flags & libc::MSG_FASTOPEN != 0 => unsafe {
            sendto(fd, buf, len, flags, core::ptr::null(), 0)
        },
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
    let Some(sock) = stream(fd) else {
        return foreign!(fd, sendto(fd, buf, len, flags, to, to_len));
    };
    let list = user::buffer(buf, len);
    if let Err(error) = user::Buffers::new(&list).and_then(|_| user::check_name(to, to_len)) {
        return errno::fail(error);
    }
    if flags & libc::MSG_FASTOPEN == 0 {
        return errno::into_libc(send::send(&sock, &list, flags));
    }
    // SAFETY: the program's own address.
    let sent = unsafe { send_fast(&sock, to, to_len, &list, flags) };
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
    match sent {
        Sent::ByKernel => swap::to_kernel(sock)?,
        Sent::Bytes(count) => zerocopy::note(sock, flags, count),
    }
    Ok(sent)
}

/// # Safety
/// As `sendmsg`.
unsafe fn send_message(sock: &Sock, header: *const msghdr, flags: c_int) -> Sys<usize> {
    let whole = header;
    // SAFETY: the program's own header.
    let header = unsafe { user::fetch(header) }?;
    if !header.msg_name.is_null() && header.msg_namelen.cast_signed() < 0 {
        return Err(Errno(libc::EINVAL));
    }
    // Too long an address is cut here, and refused by `sendto`.
    let name_len = header.msg_namelen.min(size_of::<libc::sockaddr_storage>() as socklen_t);
    user::check_name(header.msg_name.cast(), name_len)?;
    // SAFETY: the list that it names.
    let list = unsafe { buffers_of(&header) }?;
    user::Buffers::new(list)?;
    if header.msg_controllen != 0 {
        control_data::probe(&header)?;
        // What it says is looked at by those who may send.
        if flags & libc::MSG_FASTOPEN == 0 {
            send::await_connection(sock, flags)?;
        }
        control_data::check(&header)?;
    }
    if flags & libc::MSG_FASTOPEN == 0 {
        return send::send(sock, list, flags);
    }
    // SAFETY: the program's own address.
    let sent = unsafe { send_fast(sock, header.msg_name.cast(), name_len, list, flags) }?;
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
    let Some(sock) = stream(fd) else {
        // SAFETY: the program's own header.
        unsafe { rights::go(header) };
        return foreign!(fd, sendmsg(fd, header, flags));
    };
    // SAFETY: the program's own header.
    errno::into_libc(forbid_compat(flags).and_then(|()| unsafe { send_message(&sock, header, flags) }))
}

/// `sendmmsg(2)`.
///
/// # Safety
/// As `sendmmsg`.
pub unsafe fn sendmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    let Some(sock) = stream(fd) else {
        for at in 0..count.min(MESSAGES_MAX) as usize {
            // SAFETY: the program's list has `count` elements.
            unsafe { rights::go(&raw const (*headers.wrapping_add(at)).msg_hdr) };
        }
        return foreign!(fd, sendmmsg(fd, headers, count, flags));
    };
    if let Err(error) = forbid_compat(flags) {
        return errno::fail(error);
    }
    let mut done = 0usize;
    while done < count.min(MESSAGES_MAX) as usize {
        let one = headers.wrapping_add(done);
        // SAFETY: the program's list has `count` elements.
        let sent = unsafe {
            send_message(&sock, &raw const (*one).msg_hdr, flags)
                .and_then(|len| user::give(&raw mut (*one).msg_len, len as c_uint))
        };
        match sent {
            Ok(()) => done = done.wrapping_add(1),
            Err(error) if done == 0 => return errno::fail(error),
            Err(_) => break,
        }
    }
    done as c_int
}

/// The flags of `recv` and `send` that those of `preadv2` and `pwritev2` mean.
fn flags_of(flags: c_int) -> Sys<c_int> {
    const RWF_NOAPPEND: c_int = 0x20;
    const RWF_NOSIGNAL: c_int = 0x100;
    const KNOWN: c_int = libc::RWF_HIPRI
        | libc::RWF_DSYNC
        | libc::RWF_SYNC
        | libc::RWF_NOWAIT
        | libc::RWF_APPEND
        | RWF_NOAPPEND
        | RWF_NOSIGNAL;
    let both = libc::RWF_APPEND | RWF_NOAPPEND;
    if flags & !KNOWN != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if flags & both == both {
        return Err(Errno(libc::EINVAL));
    }
    let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
    let quiet = if flags & RWF_NOSIGNAL != 0 { libc::MSG_NOSIGNAL } else { 0 };
    Ok(wait | quiet)
}

/// The buffers and flags of `preadv2` and `pwritev2` of a socket, which knows no position but -1 ("where you are"). Linux asks for the flags when
/// there is something to move.
///
/// # Safety
/// As `readv`.
unsafe fn positioned<'a>(
    list: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> Sys<(&'a [iovec], c_int)> {
    match offset {
        ..=-2 => return Err(Errno(libc::EINVAL)),
        0.. => return Err(Errno(libc::ESPIPE)),
        -1 => {}
    }
    // SAFETY: the caller's promise.
    let list = unsafe { user::vector(list, count) }?;
    let nothing = user::Buffers::new(list)?.left() == 0;
    Ok((list, if nothing { 0 } else { flags_of(flags)? }))
}

/// `preadv2(2)`.
///
/// # Safety
/// As `preadv2`.
pub unsafe fn preadv2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    let Some(sock) = stream(fd) else {
        return foreign!(fd, preadv2(fd, list, count, offset, flags));
    };
    // SAFETY: the program's own list.
    let asked = unsafe { positioned(list, count, offset, flags) };
    errno::into_libc(asked.and_then(|(list, flags)| recv::read(&sock, list, flags)))
}

/// `pwritev2(2)`.
///
/// # Safety
/// As `pwritev2`.
pub unsafe fn pwritev2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    let Some(sock) = stream(fd) else {
        return foreign!(fd, pwritev2(fd, list, count, offset, flags));
    };
    // SAFETY: the program's own list.
    let asked = unsafe { positioned(list, count, offset, flags) };
    errno::into_libc(asked.and_then(|(list, flags)| send::write(&sock, list, flags)))
}
