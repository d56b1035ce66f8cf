//! `bind`, then `connect`: a client that chooses its source.
//!
//! `bind` makes a socket the kernel's, so that the kernel judges permission and EADDRINUSE. When it connects after
//! all, and the engine serves the destination, a utcp socket takes the number. The kernel's bound socket must live as
//! long as the connection, or the port would be given to somebody else: it is sent into the socket pair under the new socket,
//! where nobody ever reads it, and goes when the engine closes its end.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use libc::{sockaddr, socklen_t};
use utcp_abi::message::{Kind as Ask, Message};
use utcp_abi::socket::{Addr, OpCode, RESULT_KERNEL, file, intent};

use crate::attach::{self, Attachment};
use crate::connect::{self, Served};
use crate::fd_table::{self, Entry, Kind};
use crate::handle::Sock;
use crate::pool::{self, Stand};
use crate::sigio::Signals;
use crate::sys::{self, Errno, Sys};
use crate::{channel, control, listen, options, process, tls, user};

/// Tells bound sockets apart, so that copies of one are found.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The socket at `fd` was ours and becomes the kernel's to be bound.
pub fn remember(fd: c_int) {
    let forks = process::forks() & 0xf_ffff;
    fd_table::set(fd, Entry::new(Kind::Bound, 0, forks, NEXT.fetch_add(1, Relaxed)));
}

/// Something was done with `fd` that only the kernel's socket can bear (a copy, a place in the kernel's epoll set): if it is a
/// bound one, it and its copies stay the kernel's.
pub fn settle(fd: c_int) {
    let entry = fd_table::get(fd);
    if entry.kind() != Kind::Bound {
        return;
    }
    for (number, found) in fd_table::used() {
        if found.same_object(entry) {
            fd_table::replace(number, found, Entry::KERNEL);
        }
    }
}

/// The program set an option (`why`, see [`Kind::Kept`]) on the kernel's socket `fd` that utcp can't serve: it stays the kernel's
/// if it listens, too.
pub fn keep(fd: c_int, why: u32) {
    let entry = fd_table::get(fd);
    if tls::thread().is_vfork_child() || !matches!(entry.kind(), Kind::Kernel | Kind::Bound) {
        return;
    }
    let plain = sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP);
    if plain {
        settle(fd);
        fd_table::set(fd, Entry::new(Kind::Kept, 0, 0, why));
    }
}

/// `connect` of the kernel's socket `fd`. `None`: it is the kernel's to do.
///
/// # Safety
/// As `connect`.
pub unsafe fn connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> Option<Sys<Served>> {
    let entry = fd_table::get(fd);
    if entry.kind() != Kind::Bound || tls::thread().is_vfork_child() {
        return None;
    }
    process::notice_fork();
    // SAFETY: the program's own address.
    let family = unsafe { user::family(to, len) }.ok()?;
    let inherited = entry.slot() != process::forks() & 0xf_ffff;
    if family == libc::AF_UNSPEC || inherited || !is_plain_tcp(fd) {
        return None;
    }
    let att = attach::current()?;
    let inet6 = sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_INET6);
    // SAFETY: as above.
    let remote = unsafe { user::address(to, len, inet6) }.ok()?;
    if !connect::is_served(att, &remote) {
        return None;
    }
    let local = listen::bound_address(fd, inet6).ok()?;
    begin(fd, entry, att, inet6, remote, local)
}

/// Whether `fd` is a TCP socket of the kernel's that neither listens nor is connected.
fn is_plain_tcp(fd: c_int) -> bool {
    let is = |name, value| sys::getsockopt_int(fd, libc::SOL_SOCKET, name) == Ok(value);
    is(libc::SO_PROTOCOL, libc::IPPROTO_TCP) && is(libc::SO_ACCEPTCONN, 0) && !sys::has_peer(fd)
}

fn begin(
    fd: c_int,
    entry: Entry,
    att: &'static Attachment,
    inet6: bool,
    remote: Addr,
    local: Addr,
) -> Option<Sys<Served>> {
    let kept = control::bits_of(sys::fcntl(fd, libc::F_GETFL, 0).ok()?);
    let family = if inet6 { file::INET6 } else { 0 };
    // SHARED: its descriptor holds the bound socket, so it must not go back into the pool.
    let flags = family | file::SHARED | file::BOUND | kept;
    let sock = connect::fresh(att, flags)?;
    options::import(&sock, fd, inet6);
    let ([high, low, port], [from_high, from_low, from_port]) = (remote.to_words(), local.to_words());
    let args = [high, low, port, from_high, from_low, from_port];
    match connect::operate(&sock, OpCode::Connect, args) {
        Ok(0) => {}
        Ok(RESULT_KERNEL) => {
            give_up(&sock, true);
            return None;
        }
        Ok(error) | Err(Errno(error)) => {
            give_up(&sock, true);
            return Some(Err(Errno(error)));
        }
    }
    match take_place(fd, entry, &sock) {
        Ok(sock) => Some(connect::under_way(&sock)),
        Err(error) => {
            give_up(&sock, false);
            Some(Err(error))
        }
    }
}

/// Puts `sock` (under a number of its own) at `fd`'s number, and the kernel's socket that is there into its keeping.
fn take_place(fd: c_int, entry: Entry, sock: &Sock) -> Sys<Sock> {
    channel::send(sock.fd, &Message::new(Ask::Hold), Some(fd))?;
    let cloexec = sys::fcntl(fd, libc::F_GETFD, 0)? & libc::FD_CLOEXEC != 0;
    let signals = Signals::of_kernel(fd);
    let new = sock.entry.with_cloexec(cloexec);
    if !fd_table::replace(fd, entry, Entry::CHANGING) {
        return Err(Errno(libc::EBADF)); // Closed by another thread meanwhile.
    }
    if let Err(error) = sys::dup3(sock.fd, fd, libc::O_CLOEXEC) {
        fd_table::set(fd, entry);
        return Err(error);
    }
    fd_table::set(fd, new);
    pool::throw_away(sock.fd);
    let sock = Sock { fd, entry: new, ..*sock };
    if let Some(signals) = signals {
        signals.put_on(&sock);
    }
    Ok(sock)
}

/// The socket is not needed after all; whether its descriptor is as it was.
pub fn give_up(sock: &Sock, pristine: bool) {
    let seen = sock.shared.stand_seen.load(Relaxed);
    let token = sock.detach();
    sock.intend(intent::CLOSE);
    match token {
        Some(token) if pristine => sock.att.pool().give(sock.att, Stand { fd: sock.fd, token, seen }),
        _ => pool::throw_away(sock.fd),
    }
}
