//! `bind`, `listen`, and what `close` of a listener has to say to the engine.
//!
//! A bound socket is the kernel's own, so the kernel judges permission and EADDRINUSE. When it listens,
//! the engine is asked to serve the same address and port on its path; the descriptor then is both.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use libc::{sockaddr, socklen_t};
use utcp_abi::message::{Kind as Ask, Message, Reply};
use utcp_abi::region::LogCode;
use utcp_abi::socket::{Addr, file, intent, status};

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{bound, connect, control, death, epoll, errno, log, options, process, swap, tls, user};

/// `bind(2)`.
///
/// # Safety
/// As `bind`.
pub unsafe fn bind(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    if let Some(sock) = handle::stream(fd) {
        if is_taken(&sock) {
            // SAFETY: the program's own address.
            return errno::fail(unsafe { why_not(&sock, to, len) });
        }
        if let Err(error) = swap::to_kernel(&sock) {
            return errno::fail(error);
        }
        if fd_table::get(fd).kind() != Kind::Kept {
            bound::remember(fd);
        }
    } else if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    // SAFETY: the program's own arguments; `fd` is the kernel's.
    unsafe { real::bind(fd, to, len) }
}

/// Whether `sock` is at something that neither `bind` nor `listen` may end: it is connected, was, or is on its way.
fn is_taken(sock: &Sock) -> bool {
    sock.was_connected() || sock.status() & status::CONNECTING != 0
}

/// Why a socket that is taken can't be bound: what is wrong with the address comes first (Linux __sys_bind, inet_bind).
///
/// # Safety
/// As `bind`.
unsafe fn why_not(sock: &Sock, to: *const sockaddr, len: socklen_t) -> Errno {
    // SAFETY: the caller's promise.
    match unsafe { user::address(to, len, sock.is_inet6()) } {
        Err(error) => error,
        Ok(_) => Errno(libc::EINVAL),
    }
}

/// `listen(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn listen(fd: c_int, backlog: c_int) -> c_int {
    if let Some(sock) = handle::stream(fd) {
        if is_taken(&sock) {
            return errno::fail(Errno(libc::EINVAL));
        }
        // Without a bind the kernel chooses the port.
        if let Err(error) = swap::to_kernel(&sock) {
            return errno::fail(error);
        }
    } else if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    // SAFETY: plain numbers; `fd` is the kernel's.
    let result = unsafe { real::listen(fd, backlog) };
    if result == 0 && !tls::thread().is_vfork_child() {
        let before = errno::get();
        death::revive();
        let known = handle::listener(fd).is_some();
        let registered = register(fd, backlog);
        if let Some(sock) = handle::listener(fd).filter(|_| !known) {
            epoll::join(&sock);
        }
        errno::set(before);
        if registered == Err(Errno(libc::EADDRINUSE)) {
            // Another stack serves this port on the same device (SO_REUSEPORT let the kernel allow it): nobody
            // would reach this socket. It is bound and does not listen, as after a failed `listen` of the kernel.
            let _ = sys::call!(libc::SYS_shutdown, fd, libc::SHUT_RD);
            return errno::fail(Errno(libc::EADDRINUSE));
        }
    }
    result
}

/// 1: this process may have listeners that it got by exec or from another process.
static STRANGERS: AtomicU32 = AtomicU32::new(0);

/// Descriptors came from elsewhere.
pub fn expect_strangers() {
    STRANGERS.store(1, Relaxed);
}

/// `fd` is about to be used as a listener perhaps: if it is one that we do not know yet, it gets known.
pub fn meet(fd: c_int) -> Option<Sock> {
    if STRANGERS.load(Relaxed) == 0 || fd_table::get(fd) != Entry::KERNEL || tls::thread().is_vfork_child() {
        return None;
    }
    let before = errno::get();
    let _ = register(fd, libc::SOMAXCONN);
    errno::set(before);
    handle::listener(fd)
}

/// `entry` says that `fd` came from elsewhere, and it is used: if it listens, it gets known. Other threads that use it at the same moment wait for
/// that: who took it for the kernel's would sleep on without hearing of anybody who comes over utcp.
pub fn meet_stranger(fd: c_int, entry: Entry) -> Option<Sock> {
    let before = errno::get();
    let att = attach::current(); // It may take its time, and other threads theirs.
    if fd_table::replace(fd, entry, Entry::CHANGING) {
        if let Some(att) = att.filter(|_| is_tcp_listener(fd)) {
            let _ = enter(fd, att, libc::SOMAXCONN, 0);
        }
        fd_table::replace(fd, Entry::CHANGING, Entry::KERNEL); // Unless it is a listener now.
    }
    errno::set(before);
    handle::listener(fd)
}

/// Tells the engine of a kernel socket that listens; if it can't serve it, the socket stays as it is, and the errno says
/// why.
pub fn register(fd: c_int, backlog: c_int) -> Sys<()> {
    let entry = fd_table::get(fd);
    if let Some(sock) = handle::listener(fd).filter(|sock| sock.att.is_alive()) {
        // The second `listen` of the same socket: a new backlog.
        if announce(&sock, backlog) != Err(Errno(libc::ESTALE)) {
            return Ok(());
        }
        // Another process has just ended it.
    }
    if entry.kind() == Kind::Kept {
        let why = entry.generation();
        say_kept(fd, why);
        if CHOOSERS.iter().any(|name| why == options::word(libc::SOL_SOCKET, *name)) {
            say_chosen(fd);
        }
        return Ok(());
    }
    if !matches!(entry.kind(), Kind::Kernel | Kind::Bound | Kind::Listener) || !fd_table::covers(fd) {
        return Ok(());
    }
    if !is_tcp_listener(fd) {
        return Ok(());
    }
    let Some(att) = attach::current() else { return Ok(()) };
    // A listener whose engine died: that its kernel's half does not block may be our doing.
    let before = handle::listener(fd).map_or(0, |old| old.shared.file.load(Relaxed));
    enter(fd, att, backlog, before)
}

/// Makes `fd`, which listens, a listener at `att`; `before` are the bits of [`file`] that it had as one of ours.
fn enter(fd: c_int, att: &'static Attachment, backlog: c_int, before: u32) -> Sys<()> {
    let Some((slot, shared)) = connect::claim(att) else {
        log::record(att, LogCode::Exhausted, slot_kind::SOCKETS);
        return Ok(());
    };
    let inet6 = sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_INET6);
    let status_flags = sys::fcntl(fd, libc::F_GETFL, 0).unwrap_or(0);
    let nonblocking = match before & (file::NONBLOCK | file::KERNEL_NONBLOCK) {
        file::KERNEL_NONBLOCK => file::KERNEL_NONBLOCK,
        _ if status_flags & libc::O_NONBLOCK != 0 => file::NONBLOCK,
        _ => 0,
    };
    shared.file.store(nonblocking | if inet6 { file::INET6 } else { 0 }, Relaxed);
    shared.epoch.store(att.region().header().fork_epoch.load(Relaxed), Relaxed);
    shared.owner_pid.store(process::pid(), Relaxed);
    let entry = Entry::new(Kind::Listener, att.index(), slot, shared.generation.load(Relaxed));
    let sock = Sock { fd, entry, att, shared };
    options::import(&sock, fd, inet6);
    shared.intent.store(intent::of(entry.generation(), intent::OWNED), Release);
    match announce(&sock, backlog) {
        Ok(reply) => match reply.b.checked_sub(1) {
            None => {
                shared.listener.store(reply.a as u32, Release);
                fd_table::set(fd, entry);
                Ok(())
            }
            // We have it already, by a number that was closed or is another process's.
            Some(known) => {
                sock.intend(intent::CLOSE);
                if let Some(shared) = att.region().socket(known as u32) {
                    shared.file.fetch_or(file::SHARED, AcqRel);
                    let generation = shared.generation.load(Acquire);
                    fd_table::set(fd, Entry::new(Kind::Listener, att.index(), known as u32, generation));
                }
                Ok(())
            }
        },
        Err(error) => {
            log::record_with(att, LogCode::ListenRefused, port_of(&sock), error.0 as u32);
            sock.intend(intent::CLOSE);
            Err(error)
        }
    }
}

/// What ran out, in [`LogCode::Exhausted`].
pub mod slot_kind {
    /// Socket slots.
    pub const SOCKETS: u32 = 1;
    /// Interests, or places for them in a socket.
    pub const INTERESTS: u32 = 2;
    /// Sets.
    pub const SETS: u32 = 3;
}

/// Whether `fd` is a TCP socket of the kernel's that listens.
pub fn is_tcp_listener(fd: c_int) -> bool {
    let is = |name, value| sys::getsockopt_int(fd, libc::SOL_SOCKET, name) == Ok(value);
    is(libc::SO_ACCEPTCONN, 1)
        && is(libc::SO_PROTOCOL, libc::IPPROTO_TCP)
        && (is(libc::SO_DOMAIN, libc::AF_INET) || is(libc::SO_DOMAIN, libc::AF_INET6))
}

/// The address that a kernel socket is bound to.
pub fn bound_address(fd: c_int, inet6: bool) -> Sys<Addr> {
    let (storage, len) = sys::getsockname(fd)?;
    // SAFETY: the kernel filled `len` bytes of a sockaddr_storage.
    unsafe { user::address(ptr::from_ref(&storage).cast(), len, inet6) }
}

fn port_of(sock: &Sock) -> u32 {
    bound_address(sock.fd, sock.is_inet6()).map_or(0, |local| u32::from(local.port))
}

/// Sends the listener to the engine.
fn announce(sock: &Sock, backlog: c_int) -> Sys<Reply> {
    let mut message = Message::new(Ask::Listen);
    message.a = u64::from(sock.slot());
    message.b = u64::from(backlog as u32); // A negative one is more than the host allows, as in Linux.
    message.c = u64::from(sock.entry.generation());
    sock.att.channel().ask(&message, Some(sock.fd))
}

/// Options that set a program which chooses among the listeners of a SO_REUSEPORT group.
pub const CHOOSERS: [c_int; 2] = [libc::SO_ATTACH_REUSEPORT_CBPF, libc::SO_ATTACH_REUSEPORT_EBPF];

/// The kernel socket `fd`, which listens, got such a program, or had it before it listened: the whole group's connections come by the kernel,
/// whose judgement it is.
pub fn say_chosen(fd: c_int) {
    if let Some(att) = attach::current() {
        let _ = att.channel().ask(&Message::new(Ask::Group), Some(fd));
    }
}

/// Tells the engine's log why a listener is the kernel's alone: the option `why` of [`Kind::Kept`].
fn say_kept(fd: c_int, why: u32) {
    let inet6 = sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_INET6);
    if let (Some(att), Ok(local)) = (attach::current(), bound_address(fd, inet6)) {
        log::record_with(att, LogCode::KeptListener, u32::from(local.port), why);
    }
}

/// In place of an option, see [`withdraw`]: it has O_ASYNC.
pub const SIGNALS: u32 = 0;
/// In place of an option, see [`withdraw`]: its process uses io_uring.
pub const RINGS: u32 = 1;
/// In place of an option, see [`leave`]: a program without this library inherits it.
const INHERITED: u32 = 2;
/// In place of an option, see [`bound::keep`]: it was shut before it listened, and whom it accepts begins as shut as it is, which the engine
/// knows nothing of.
pub const SHUT: u32 = 3;

/// A `shutdown` of the kernel's socket `fd` failed with ENOTCONN: its sides are shut all the same (Linux inet_shutdown).
pub fn was_shut(fd: c_int) {
    let before = errno::get();
    bound::keep(fd, SHUT);
    errno::set(before);
}

/// A program that can't have this library inherits a listener: what comes from now on comes by the kernel, to whoever takes it first.
/// What waits already is for those who have the library.
pub fn leave(sock: &Sock) {
    let mut message = Message::new(Ask::ListenCheck);
    (message.a, message.b) = (u64::from(sock.slot()), 2);
    let _ = sock.att.channel().ask(&message, None);
    say_kept(sock.fd, INHERITED);
}

/// A listener got an option (`why`, see [`Kind::Kept`]) that utcp can't serve: from now on it is the kernel's alone.
pub fn withdraw(sock: &Sock, why: u32) {
    // In the kernel's sets it is already. Before the engine takes the slot back: then it is another socket's soon.
    epoll::forget(sock);
    control::let_block(sock);
    let mut message = Message::new(Ask::ListenCheck);
    (message.a, message.b) = (u64::from(sock.slot()), 1);
    let _ = sock.att.channel().ask(&message, None);
    for (number, found) in fd_table::used() {
        if found.same_object(sock.entry) {
            fd_table::replace(number, found, Entry::new(Kind::Kept, 0, 0, why));
        }
    }
    say_kept(sock.fd, why);
}

/// `sock` listens no more, or perhaps no more, and its number stays: `shutdown`, or `connect` to AF_UNSPEC. If so, it is what it was before
/// `listen`: the kernel's, in the kernel's sets too.
pub fn ceased(sock: &Sock) {
    if is_tcp_listener(sock.fd) {
        return; // SHUT_WR is nothing to a listener.
    }
    // First: the slot and what it knows are another socket's soon.
    epoll::forget(sock);
    control::let_block(sock);
    for (number, found) in fd_table::used() {
        if found.same_object(sock.entry) {
            fd_table::replace(number, found, Entry::KERNEL);
        }
    }
    closed(sock.att, sock.slot());
}

/// A descriptor of a listener was closed: the engine shall look whether it was the last.
pub fn closed(att: &'static Attachment, slot: u32) {
    let mut message = Message::new(Ask::ListenCheck);
    message.a = u64::from(slot);
    let _ = att.channel().ask(&message, None);
}
