//! MSG_ZEROCOPY: a send that says later when its buffer may be used again.
//!
//! Here it may be at once, because `send` copies; so what the error queue says (SO_EE_CODE_ZEROCOPY_COPIED, "it was copied") is
//! true, and a program that acts on it falls back to plain sends. Sends are counted; those that the program does not know of yet
//! are one range of numbers, as the kernel joins them.
//!
//! ```text
//!   zerocopy_told ──► [ 3  4  5 ] ◄── zerocopy_sent = 6       one message: ee_info = 3, ee_data = 5
//! ```

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use utcp_abi::socket::option;

use crate::control_data::Writer;
use crate::handle::Sock;
use crate::sys::{self, Errno, Sys};
use crate::{epoll, pair};

const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// A send with `flags` has taken `count` bytes.
#[inline]
pub fn note(sock: &Sock, flags: c_int, count: usize) {
    if flags & libc::MSG_ZEROCOPY != 0 && count > 0 && sock.shared.options.has(option::ZEROCOPY) {
        complete(sock);
    }
}

#[cold]
fn complete(sock: &Sock) {
    sock.shared.zerocopy_sent.fetch_add(1, AcqRel);
    // It is news for whoever waits for anything: POLLERR needs not to be asked for.
    let (rx_bell, _) = pair::bells(sock);
    for bell in [&sock.shared.rx_bell, rx_bell] {
        if bell.ring() {
            sys::futex_wake_all(bell.word());
        }
    }
    epoll::touch(sock);
}

/// Whether the error queue has something (POLLERR).
#[inline]
pub fn waits(sock: &Sock) -> bool {
    sock.shared.options.has(option::ZEROCOPY)
        && sock.shared.zerocopy_sent.load(Acquire) != sock.shared.zerocopy_told.load(Acquire)
}

/// Takes what waits in the error queue: the first and the last number.
///
/// # Errors
/// EAGAIN: nothing.
pub fn take(sock: &Sock) -> Sys<(u32, u32)> {
    let told = &sock.shared.zerocopy_told;
    loop {
        let first = told.load(Acquire);
        let next = sock.shared.zerocopy_sent.load(Acquire);
        if first == next {
            return Err(Errno(libc::EAGAIN));
        }
        if told.compare_exchange(first, next, AcqRel, Acquire).is_ok() {
            return Ok((first, next.wrapping_sub(1)));
        }
    }
}

/// sock_extended_err, and an address of nobody behind it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extended<T> {
    errno: u32,
    origin: u8,
    kind: u8,
    code: u8,
    pad: u8,
    info: u32,
    data: u32,
    offender: T,
}

/// Takes what waits in the error queue, as a message.
///
/// # Errors
/// EAGAIN: nothing. EFAULT.
pub fn take_message(sock: &Sock, controls: &mut Writer) -> Sys<()> {
    let (info, data) = take(sock)?;
    let (errno, origin, kind, code, pad) = (0, SO_EE_ORIGIN_ZEROCOPY, 0, SO_EE_CODE_ZEROCOPY_COPIED, 0);
    if sock.is_inet6() {
        // sockaddr_in6.
        let extended = Extended { errno, origin, kind, code, pad, info, data, offender: [0u32; 7] };
        return controls.put(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, extended);
    }
    // sockaddr_in.
    let extended = Extended { errno, origin, kind, code, pad, info, data, offender: [0u32; 4] };
    controls.put(libc::IPPROTO_IP, libc::IP_RECVERR, extended)
}
