//! Sockets whose bytes go through their descriptor, by the engine's relay: after exec, in processes that got them by
//! SCM_RIGHTS, for libc's stdio on inherited standard streams.
//!
//! ```text
//!  ours ── exec (0, 1, 2), SCM_RIGHTS, first use of an inherited one ──► asked for ──► the engine moves it (MOVED) ──► the kernel's
//! ```
//!
//! From then on the descriptor is what the kernel says, one end of a socket pair, and works without this library: read, write,
//! poll, epoll, stdio, further exec. What is left for us is its name: the engine's end is called after the connection's
//! addresses.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use libc::{sockaddr, socklen_t};
use utcp_abi::message::{Kind as Ask, Message, STAND_MARK, relayed_addresses};
use utcp_abi::socket::{Addr, file, status};

use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::sys::{self, Sys};
use crate::{channel, control, epoll, guard, listen, sigio, swap, tls, user};

/// Highest inherited number that is looked at.
const INHERITED_MAX: c_int = 255;
/// How long the engine may take to move a socket, milliseconds.
const PATIENCE_MS: u32 = 2000;

/// Whether `fd` stands under a utcp socket, of whatever process.
fn is_stand(fd: c_int) -> bool {
    sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE) == Ok(STAND_MARK as c_int)
        && sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
}

/// The local and remote address of a relayed socket, and whether it is an IPv6 one.
pub fn addresses(fd: c_int) -> Option<(Addr, Addr, bool)> {
    let (name, len) = sys::getpeername(fd).ok()?;
    let start = core::mem::offset_of!(libc::sockaddr_un, sun_path) + 1;
    let storage = core::ptr::from_ref(&name).cast::<u8>();
    let len = (len as usize).min(size_of_val(&name));
    // SAFETY: the kernel filled `len` bytes of the structure.
    let bytes = unsafe { core::slice::from_raw_parts(storage, len) };
    let is_unix = bytes.first_chunk().map(|two| u16::from_ne_bytes(*two)) == Some(libc::AF_UNIX as u16);
    if is_unix { relayed_addresses(bytes.get(start..)?) } else { None }
}

/// Asks for the relay of the socket above `fd`, unless it has it, and waits for it.
fn request(fd: c_int) {
    if addresses(fd).is_some() {
        return;
    }
    let Ok(token) = sys::eventfd(libc::EFD_CLOEXEC) else { return };
    let sent = channel::send(fd, &Message::new(Ask::Relay), Some(token));
    let _ = sys::close(token);
    for _ in 0..if sent.is_ok() { PATIENCE_MS } else { 0 } {
        if addresses(fd).is_some() || sys::has_hung_up(fd) {
            return;
        }
        sys::nap_ms(1);
    }
}

/// O_NONBLOCK as the program has it, which a relayed socket has in the kernel. (O_ASYNC is there in any case.)
fn tell_nonblock(sock: &Sock) {
    let nonblocking = if sock.is_nonblocking() { libc::O_NONBLOCK } else { 0 };
    let kept = sys::fcntl(sock.fd, libc::F_GETFL, 0).unwrap_or(0) & libc::O_ASYNC;
    let _ = sys::fcntl(sock.fd, libc::F_SETFL, (libc::O_RDWR | nonblocking | kept) as usize);
}

/// Before an exec: standard streams that are sockets of ours will be read and written by whatever program it is, and listeners that block do so for it,
/// too. In the child of a vfork as well, where the table is the parent's.
pub fn before_exec() {
    for (fd, entry) in fd_table::used() {
        // As in `before_foreign`.
        let listener = if entry.kind() == Kind::Listener { handle::at(fd, entry) } else { None };
        if let Some(listener) = listener.filter(|listener| listener.is_current() && is_inherited(fd)) {
            control::lend(&listener);
        }
    }
    for fd in 0..3 {
        if is_stand(fd) {
            hand_over(fd);
        }
    }
}

/// Before an exec of a program that can't have this library: every connection that it inherits is relayed, as it may begin by reading one,
/// and new connections to every listener come by the kernel, as it takes them from nobody else.
pub fn before_foreign() {
    for (fd, entry) in fd_table::used() {
        // Not by `handle::listener`, which knows none in the child of a vfork. This is about the listener itself, so it is right for the
        // parent, whose memory it is, too.
        let listener = if entry.kind() == Kind::Listener { handle::at(fd, entry) } else { None };
        if let Some(listener) = listener.filter(|listener| listener.is_current() && is_inherited(fd)) {
            listen::leave(&listener);
        }
    }
    for fd in 3..=INHERITED_MAX {
        if is_inherited(fd) && is_stand(fd) {
            hand_over(fd);
        }
    }
}

/// Whether the next program will have `fd`, if this one has it.
pub fn is_inherited(fd: c_int) -> bool {
    sys::fcntl(fd, libc::F_GETFD, 0).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0)
}

fn hand_over(fd: c_int) {
    if let Some(sock) = handle::stream(fd) {
        tell_nonblock(&sock);
        sigio::stop(&sock);
    }
    request(fd);
}

/// Whether the next program may inherit a socket of ours.
pub fn may_be_inherited() -> bool {
    fd_table::used().any(|(_, entry)| matches!(entry.kind(), Kind::Socket | Kind::Stranger))
}

/// At the start of a program that may have inherited some. Its standard streams are relayed at once, because libc's
/// stdio does not go through us; others when they are used: most programs inherit by accident, and their parent goes on using them.
pub fn inherit() {
    for fd in 0..=INHERITED_MAX {
        let is_unused = match is_stand(fd) {
            true if fd < 3 => {
                request(fd);
                false
            }
            true => addresses(fd).is_none(),
            false => listen::is_tcp_listener(fd),
        };
        if is_unused {
            fd_table::set(fd, Entry::new(Kind::Stranger, 0, 0, fd as u32));
        }
    }
}

/// `fd` came from another process. A connection has been relayed before it went ([`pass`]); a listener is ours when it is used.
pub fn receive(fd: c_int) {
    if !tls::thread().is_vfork_child() && listen::is_tcp_listener(fd) {
        guard::stand(); // Without it, `poll` and `select` look at nothing.
        fd_table::replace(fd, Entry::KERNEL, Entry::new(Kind::Stranger, 0, 0, fd as u32));
    }
}

/// Whether `fd` is a listener of somebody else's that this program has not used yet.
pub fn is_unused_listener(fd: c_int) -> bool {
    fd_table::get(fd).kind() == Kind::Stranger && !is_stand(fd)
}

/// The program uses a socket that it inherited or received. It is ours if it listens: whoever only waits for it (`poll`) may never call it by another name.
#[cold]
pub fn meet(fd: c_int, entry: Entry) -> Option<Sock> {
    if !is_stand(fd) {
        return listen::meet_stranger(fd, entry);
    }
    if fd_table::replace(fd, entry, Entry::KERNEL) {
        request(fd);
    }
    None
}

/// `fd` travels to another process. One that is not connected yet is the kernel's from now on.
pub fn pass(fd: c_int) {
    if let Some(listener) = handle::listener(fd) {
        return control::lend(&listener);
    }
    let Some(sock) = handle::stream(fd) else { return };
    if sock.status() & (status::CONNECTED | status::CONNECTING) == 0 {
        let _ = swap::to_kernel(&sock);
        return;
    }
    tell_nonblock(&sock);
    sigio::stop(&sock);
    request(fd);
    let _ = handle::stream(fd); // It notices that it is not ours any more.
}

/// The slot that `entry` names is another socket's by now: `fd` was closed without our knowledge and may long mean another
/// file, or its socket was moved away and has ended since. What stands there then is still the program's.
#[cold]
pub fn let_go(fd: c_int, entry: Entry) {
    if fd_table::replace(fd, entry, Entry::KERNEL) && !entry.cloexec() && is_stand(fd) {
        let _ = sys::fcntl(fd, libc::F_SETFD, 0);
    }
}

/// The engine moved `sock` away: its number means the kernel's descriptor, in the sets of this process too.
#[cold]
pub fn notice(sock: &Sock) {
    if tls::thread().is_vfork_child() || !fd_table::replace(sock.fd, sock.entry, Entry::KERNEL) {
        return;
    }
    tell_nonblock(sock);
    let cloexec = if sock.entry.cloexec() { libc::FD_CLOEXEC as usize } else { 0 };
    let _ = sys::fcntl(sock.fd, libc::F_SETFD, cloexec);
    // The slot is the engine's to give back: other processes may hold the socket and have not noticed yet.
    epoll::hand_over(sock);
}

/// Whether the engine has moved `sock` away.
#[inline]
pub fn is_moved(sock: &Sock) -> bool {
    sock.shared.status.load(Acquire) & status::MOVED != 0
}

/// Puts an address of the relayed socket `fd` where a name of the kernel's socket pair was put, if it is one.
///
/// # Safety
/// As `getsockname`, which succeeded; `room` is what `len` said before.
pub unsafe fn rename(
    fd: c_int,
    remote: bool,
    to: *mut sockaddr,
    len: *mut socklen_t,
    room: socklen_t,
) -> Sys<()> {
    // SAFETY: the caller's promise.
    let is_unix = room as usize >= size_of::<u16>()
        && unsafe { to.cast::<u16>().read_unaligned() } == libc::AF_UNIX as u16;
    if !is_unix {
        return Ok(());
    }
    let Some((local, peer, inet6)) = addresses(fd) else { return Ok(()) };
    // SAFETY: the program's own length and buffer.
    unsafe {
        len.write_unaligned(room);
        user::give_address(if remote { peer } else { local }, inet6, to, len)
    }
}

/// Whether an option that the kernel refused is one of a relayed socket's connection, which nobody can set any more. TCP_NODELAY
/// is on; the others only tune.
pub fn forgives(fd: c_int, level: c_int) -> bool {
    matches!(level, libc::IPPROTO_TCP | libc::IPPROTO_IP | libc::IPPROTO_IPV6)
        && is_stand(fd)
        && addresses(fd).is_some()
}

/// Sockets that will survive an exec, as the kernel must see them then.
pub fn tell_all() {
    for (fd, entry) in fd_table::used() {
        let sock = if entry.kind() == Kind::Socket { handle::at(fd, entry) } else { None };
        if let Some(sock) =
            sock.filter(|sock| !entry.cloexec() && sock.shared.file.load(Relaxed) & file::NONBLOCK != 0)
        {
            tell_nonblock(&sock);
        }
    }
}
