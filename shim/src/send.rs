//! Putting bytes into a socket: a copy into the tx stream under its arbiter, and a bit for the engine.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use libc::iovec;
use utcp_abi::socket::{BufRef, intent, status};
use utcp_abi::stream::pieces;

use crate::handle::Sock;
use crate::relayed;
use crate::sleep::{self, Woken};
use crate::sys::{self, Errno, Sys};
use crate::user::Buffers;

/// Where the bytes of a stream come from.
pub trait Source {
    /// Bytes still to come.
    fn left(&self) -> usize;
    /// Puts up to `len` of them at `to`; how many.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes.
    unsafe fn put(&mut self, to: *mut u8, len: usize) -> Sys<usize>;
}

impl Source for Buffers<'_> {
    fn left(&self) -> usize {
        self.left()
    }

    unsafe fn put(&mut self, to: *mut u8, len: usize) -> Sys<usize> {
        // SAFETY: the caller's promise; the program's buffers are readable by its own.
        unsafe { self.drain(to, len) };
        Ok(len)
    }
}

/// Bytes that could be queued now, for whoever holds the right to write.
fn room(sock: &Sock) -> (u64, BufRef, u64) {
    let buf = BufRef(sock.shared.tx_buf.load(Acquire));
    let tail = sock.shared.tx_tail.load(Relaxed);
    let queued = tail.wrapping_sub(sock.shared.tx_head.load(Acquire));
    // SO_SNDBUF, if it was set.
    let limit = match u64::from(sock.shared.options.sndbuf.load(Relaxed)) {
        0 => buf.capacity(),
        set => set.min(buf.capacity()),
    };
    (limit.saturating_sub(queued), buf, tail)
}

/// Whether `send` would take at least a byte; another thread may be faster.
pub fn has_room(sock: &Sock) -> bool {
    room(sock).0 > 0
}

/// Whether poll says "writable": Linux's rule, free space at least half of what is queued.
pub fn is_writable(sock: &Sock) -> bool {
    let (free, ..) = room(sock);
    let queued = sock.shared.tx_queued();
    free > 0 && free >= queued / 2
}

/// Whether nothing can be sent any more, or not yet.
fn is_closed(sock: &Sock) -> bool {
    let now = sock.status();
    let broken = now & (status::DEAD | status::TX_FIN) != 0 || sock.intends(intent::SHUT_WR);
    // Connecting: no buffer yet, so it waits, or would block.
    broken || now & (status::CONNECTED | status::CONNECTING) == 0
}

/// Copies what fits. 0: the stream is full.
fn push(sock: &Sock, source: &mut impl Source, flags: c_int) -> Sys<usize> {
    let _right = sock.take_tx()?;
    let (free, buf, tail) = room(sock);
    let len = free.min(source.left() as u64);
    if len == 0 {
        return Ok(0);
    }
    let Some(base) = sock.att.region().stream(buf) else { return Err(Errno(libc::EIO)) };
    let mut done = 0usize;
    for piece in pieces(buf.capacity(), tail, len) {
        if piece.len == 0 {
            break;
        }
        // SAFETY: a piece of the stream's buffer behind `tail`, which is ours by the right to write.
        let put = unsafe { source.put(base.wrapping_add(piece.offset), piece.len) };
        match put {
            Ok(count) => {
                done = done.saturating_add(count);
                if count < piece.len {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    let end = tail.wrapping_add(done as u64);
    if flags & libc::MSG_OOB != 0 && source.left() == 0 {
        sock.shared.tx_urgent.store(end, Release);
    }
    let more = flags & libc::MSG_MORE != 0;
    if more != sock.intends(intent::MORE) {
        sock.shared.intent.fetch_xor(intent::MORE, AcqRel);
    }
    // Release: the bytes before the index that announces them.
    sock.shared.tx_tail.store(end, Release);
    Ok(done)
}

/// `send` of `list`.
pub fn send(sock: &Sock, list: &[iovec], flags: c_int) -> Sys<usize> {
    let mut buffers = Buffers::new(list)?;
    send_from(sock, &mut buffers, flags)
}

/// Sends all of `source`, or as much as a socket that does not block takes.
pub fn send_from(sock: &Sock, source: &mut impl Source, flags: c_int) -> Sys<usize> {
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || sock.is_nonblocking();
    let mut sent = 0usize;
    let mut deadline = None;
    loop {
        if relayed::is_moved(sock) {
            return if sent > 0 { Ok(sent) } else { Err(Errno(libc::EINTR)) }; // The kernel's, from the next call on.
        }
        if is_closed(sock) {
            // The error stays for the next call if this one has something to tell.
            if sent > 0 {
                return Ok(sent);
            }
            let error = sock.take_error().unwrap_or(Errno(libc::EPIPE));
            if error == Errno(libc::EPIPE) && flags & libc::MSG_NOSIGNAL == 0 {
                sys::raise(libc::SIGPIPE);
            }
            return Err(error);
        }
        match push(sock, source, flags) {
            Ok(count) => {
                if count > 0 {
                    sock.kick();
                }
                sent = sent.saturating_add(count);
                if source.left() == 0 {
                    return Ok(sent);
                }
                if count > 0 && has_room(sock) {
                    continue; // The source gave less than there was room for, or space came.
                }
            }
            Err(_) if sent > 0 => return Ok(sent),
            Err(error) => return Err(error),
        }
        // Full: the engine shall tell when there is space; it may have come just now.
        sock.shared.intent.fetch_or(intent::TX_FULL, AcqRel);
        sock.kick();
        if has_room(sock) {
            continue;
        }
        if nonblocking {
            return if sent > 0 { Ok(sent) } else { Err(Errno(libc::EAGAIN)) };
        }
        if deadline.is_none() {
            deadline = Some(sleep::deadline_us(sock.shared.options.sndtimeo_us.load(Relaxed)));
        }
        match wait_for_room(sock, deadline.flatten()) {
            Woken::News => {}
            _ if sent > 0 => return Ok(sent),
            Woken::Timeout => return Err(Errno(libc::EAGAIN)),
            Woken::Signal => return Err(Errno(libc::EINTR)),
        }
    }
}

fn wait_for_room(sock: &Sock, deadline_ns: Option<u64>) -> Woken {
    sleep::until(sock.att, &sock.shared.tx_bell, deadline_ns, || {
        if sock.shared.status.load(Acquire) & (status::DEAD | status::TX_FIN | status::MOVED) != 0
            || sock.intends(intent::SHUT_WR)
            || !sock.is_current()
            || is_writable(sock)
        {
            return true;
        }
        // Whoever told us of space took the mark back.
        if !sock.intends(intent::TX_FULL) {
            sock.intend(intent::TX_FULL);
        }
        false
    })
}

/// Sends what `source` gives at once, and what there is room for.
pub fn send_some(sock: &Sock, source: &mut impl Source) -> Sys<usize> {
    if is_closed(sock) {
        let error = sock.take_error().unwrap_or(Errno(libc::EPIPE));
        if error == Errno(libc::EPIPE) {
            sys::raise(libc::SIGPIPE);
        }
        return Err(error);
    }
    let count = push(sock, source, 0)?;
    if count > 0 {
        sock.kick();
    }
    Ok(count)
}
