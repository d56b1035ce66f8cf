//! Urgent data (RFC 9293 §3.8.5, with the pointer as RFC 6093 §3.2 and Linux have it): one byte of the stream with a mark on it.
//!
//! ```text
//!   rx_head                 the mark                rx_tail
//!      ▼                       ▼                       ▼
//!    [ b b b b b b b b b b b b U b b b b b b b b b b b ]
//! ```
//!
//! Reading stops before the mark once, then goes on behind the urgent byte, which `recv(MSG_OOB)` alone delivers,
//! or, with SO_OOBINLINE, on it. Whether the mark counts is derived from the positions: one that was passed is no mark.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use utcp_abi::socket::{intent, option, status};

use crate::handle::Sock;
use crate::recv::{self, Marks};
use crate::sys::{Errno, Sys};
use crate::user::Buffers;

/// Bytes from `head` to the urgent byte before `mark`, if there is one and it was not passed.
#[inline]
pub fn ahead(mark: u64, head: u64) -> Option<u64> {
    match mark {
        0 => None,
        word => far(word, head),
    }
}

#[cold]
fn far(word: u64, head: u64) -> Option<u64> {
    let ahead = word.wrapping_sub(1).wrapping_sub(head);
    (ahead < 1 << 32).then_some(ahead)
}

/// SO_OOBINLINE.
pub fn is_inline(sock: &Sock) -> bool {
    sock.shared.options.has(option::OOBINLINE)
}

/// Whether the next byte is the urgent one (`sockatmark`).
pub fn at_mark(sock: &Sock) -> bool {
    let at = recv::marks(sock);
    ahead(at.mark, at.head) == Some(0)
}

/// Whether an urgent byte has come that nobody has taken (POLLPRI).
#[inline]
pub fn waits(sock: &Sock) -> bool {
    let at = recv::marks(sock);
    at.mark != 0 && is_untaken(sock, at)
}

#[cold]
fn is_untaken(sock: &Sock, at: Marks) -> bool {
    far(at.mark, at.head).is_some() && has_come(at) && sock.shared.rx_urgent_taken.load(Relaxed) != at.mark
}

fn has_come(at: Marks) -> bool {
    let behind = at.tail.wrapping_sub(at.mark.wrapping_sub(1));
    behind != 0 && behind < 1 << 32
}

/// `recv` with MSG_OOB.
pub fn take(sock: &Sock, buffers: &mut Buffers<'_>, flags: c_int) -> Sys<usize> {
    let none = Errno(libc::EINVAL);
    let at = recv::marks(sock);
    let word = at.mark;
    let position = word.wrapping_sub(1);
    let passed = far(word, at.head).is_none();
    if word == 0 || passed || is_inline(sock) || sock.shared.rx_urgent_taken.load(Relaxed) == word {
        return Err(none);
    }
    let now = sock.status();
    if !has_come(at) {
        let over = now & (status::RX_FIN | status::DEAD) != 0 || sock.intends(intent::SHUT_RD);
        return if over { Ok(0) } else { Err(Errno(libc::EAGAIN)) };
    }
    let byte = recv::byte_at(sock, position, at.place)?;
    if far(word, recv::marks(sock).head).is_none() {
        return Err(none); // A reader passed it meanwhile, and the byte may be another.
    }
    if flags & libc::MSG_PEEK == 0 {
        let before = sock.shared.rx_urgent_taken.load(Relaxed);
        let taken = &sock.shared.rx_urgent_taken;
        if before == word || taken.compare_exchange(before, word, AcqRel, Relaxed).is_err() {
            return Err(none); // Another thread has it.
        }
    }
    if buffers.left() == 0 {
        return Ok(0);
    }
    // SAFETY: one byte of ours.
    unsafe { buffers.fill(core::ptr::from_ref(&byte), 1) }?;
    Ok(1)
}
