//! Fast Open for clients (RFC 7413): TCP_FASTOPEN_CONNECT and MSG_FASTOPEN, with the results of Linux.
//!
//! ```text
//!   engine knows a cookie      connect ──► DEFERRED        first bytes into `early_buf`, START ──► SYN with them
//!   it knows none              connect ──► under way (the SYN asks for one), the bytes follow the handshake
//! ```
//!
//! Whoever sets START first, with the right to write, has begun the connection; all others find it connecting.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use libc::{sockaddr, socklen_t};
use utcp_abi::socket::{BufRef, OpCode, RESULT_DEFERRED, RESULT_KERNEL, file, intent, option, status};
use utcp_abi::stream::pieces;

use crate::connect::{self, Served};
use crate::handle::Sock;
use crate::send::{self, Source};
use crate::sys::{Errno, Sys};
use crate::user;

/// Bit of `net.ipv4.tcp_fastopen`.
const CLIENT: u32 = 1;

/// What became of a call with MSG_FASTOPEN.
#[derive(Debug)]
pub enum Sent {
    /// So many bytes.
    Bytes(usize),
    /// The connection is the kernel's to make, and the bytes are its to send.
    ByKernel,
}

/// Whether the administrator allows it.
pub fn is_allowed(sock: &Sock) -> bool {
    sock.att.page().fast_open.load(Relaxed) & CLIENT != 0
}

/// Whether `connect` shall wait for the first bytes.
pub fn is_wanted(sock: &Sock) -> bool {
    sock.shared.options.has(option::FASTOPEN_CONNECT)
}

/// Whether its SYN waits for bytes.
pub fn is_deferred(sock: &Sock) -> bool {
    sock.shared.status.load(Acquire) & status::DEFERRED != 0 && !sock.intends(intent::START)
}

/// Connects `sock`, which is fresh. `Ok(true)`: its SYN waits.
fn begin(sock: &Sock, args: [u64; 6]) -> Sys<Option<bool>> {
    match connect::operate(sock, OpCode::ConnectFast, args)? {
        RESULT_KERNEL => Ok(None),
        RESULT_DEFERRED => Ok(Some(true)),
        0 => Ok(Some(false)),
        error => Err(Errno(error)),
    }
}

/// `connect` with TCP_FASTOPEN_CONNECT: with a cookie it is done at once.
pub fn connect(sock: &Sock, args: [u64; 6]) -> Sys<Served> {
    match begin(sock, args)? {
        None => Ok(Served::ByKernel),
        Some(true) => Ok(Served::Here),
        Some(false) => connect::under_way(sock),
    }
}

/// `sendto` or `sendmsg` with MSG_FASTOPEN (Linux tcp_sendmsg_fastopen).
///
/// # Safety
/// As `sendto`.
pub unsafe fn send_to(
    sock: &Sock,
    to: *const sockaddr,
    len: socklen_t,
    source: &mut impl Source,
    flags: c_int,
) -> Sys<Sent> {
    let unspecified = !to.is_null() && len as usize >= size_of::<libc::sa_family_t>() && {
        // SAFETY: the program's own address.
        unsafe { user::family(to, len) }? == libc::AF_UNSPEC
    };
    if !is_allowed(sock) || unspecified {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if is_deferred(sock) {
        return send_first(sock, source, flags).map(Sent::Bytes);
    }
    let now = sock.status();
    if now & (status::CONNECTING | status::CONNECTED | status::DEAD) != 0 {
        // As with a second `connect`: 0 once after the first one has succeeded.
        if let Served::ByKernel = connect::again(sock, now)? {
            return Ok(Sent::ByKernel);
        }
        return send::send_from(sock, source, flags).map(Sent::Bytes);
    }
    if to.is_null() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the program's own address.
    let addr = unsafe { user::address(to, len, sock.is_inet6()) }?;
    if sock.is_shut() || !connect::is_served(sock.att, &addr) {
        return Ok(Sent::ByKernel);
    }
    let _ = sock.take_error();
    match begin(sock, connect::connect_args(addr))? {
        None => Ok(Sent::ByKernel),
        Some(true) => send_first(sock, source, flags).map(Sent::Bytes),
        Some(false) => {
            sock.shared.file.fetch_or(file::CONNECTING, AcqRel);
            if flags & libc::MSG_DONTWAIT != 0 || sock.is_nonblocking() {
                return Err(Errno(libc::EINPROGRESS));
            }
            connect::wait_connected(sock)?;
            send::send_from(sock, source, flags).map(Sent::Bytes)
        }
    }
}

/// The first bytes of a connection whose SYN waits for them; the rest follows the handshake, if the caller waits for that.
pub fn send_first(sock: &Sock, source: &mut impl Source, flags: c_int) -> Sys<usize> {
    let waits = flags & libc::MSG_DONTWAIT == 0 && !sock.is_nonblocking();
    let Some(early) = put(sock, source, waits)? else {
        // Another thread was faster: it is a connection under way.
        return Err(Errno(libc::EALREADY));
    };
    if !waits {
        return if early > 0 { Ok(early) } else { Err(Errno(libc::EINPROGRESS)) };
    }
    match connect::wait_connected(sock) {
        // SO_SNDTIMEO is over: what went with the SYN counts.
        Err(Errno(libc::EINPROGRESS)) if early > 0 => return Ok(early),
        result => result?,
    };
    if source.left() == 0 {
        return Ok(early);
    }
    match send::send_from(sock, source, flags) {
        Ok(more) => Ok(early.saturating_add(more)),
        Err(_) if early > 0 => Ok(early),
        Err(error) => Err(error),
    }
}

/// Puts what may go with the SYN into the stream, and lets the SYN go; `None` if somebody else has done so.
fn put(sock: &Sock, source: &mut impl Source, waits: bool) -> Sys<Option<usize>> {
    let shared = sock.shared;
    let _right = sock.take_tx()?;
    if !is_deferred(sock) {
        return Ok(None);
    }
    let buf = BufRef(shared.early_buf.load(Acquire));
    let room = u64::from(shared.early_room.load(Relaxed)).min(buf.capacity());
    let len = room.min(source.left() as u64);
    let base = sock.att.region().stream(buf).ok_or(Errno(libc::EIO))?;
    let tail = shared.tx_tail.load(Relaxed);
    let mut done = 0usize;
    for piece in pieces(buf.capacity(), tail, len) {
        if piece.len == 0 {
            break;
        }
        // SAFETY: a piece of the stream's buffer behind `tail`, which is ours by the right to write.
        let count = unsafe { source.put(base.wrapping_add(piece.offset), piece.len) }?;
        done = done.saturating_add(count);
        if count < piece.len {
            break;
        }
    }
    // Release: the bytes before the index, the index before the word that lets them go.
    shared.tx_tail.store(tail.wrapping_add(done as u64), Release);
    shared.file.fetch_or(file::CONNECTING, AcqRel);
    let more = if waits && source.left() > 0 { intent::START_MORE } else { 0 };
    sock.intend(intent::START | more);
    Ok(Some(done))
}
