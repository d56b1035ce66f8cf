//! `socket` and `connect`.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use libc::{sockaddr, socklen_t};
use utcp_abi::arbiter::Busy;
use utcp_abi::region::LogCode;
use utcp_abi::socket::{Addr, OpCode, RESULT_KERNEL, Socket, file, intent, status};

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::pool::Unsettled;
use crate::signals::{self, Calm, Ending};
use crate::sleep::{self, Woken};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{bound, close, errno, fast_open, listen, log, numbers, process, swap, tls, user};

/// `socket(2)`: TCP is ours if an engine serves us; everything else is the kernel's.
///
/// # Safety
/// None beyond C's.
pub unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let is_tcp = matches!(domain, libc::AF_INET | libc::AF_INET6)
        && kind & !flags == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP);
    if is_tcp
        && !tls::thread().is_vfork_child()
        && let Some(fd) = attach::current().and_then(|att| create(att, domain, kind))
    {
        return fd;
    }
    // SAFETY: plain numbers.
    numbers::with(|| unsafe { real::socket(domain, kind, protocol) })
}

fn create(att: &'static Attachment, domain: c_int, kind: c_int) -> Option<c_int> {
    let family = if domain == libc::AF_INET6 { file::INET6 } else { 0 };
    let nonblocking = if kind & libc::SOCK_NONBLOCK != 0 { file::NONBLOCK } else { 0 };
    let sock = fresh(att, family | nonblocking)?;
    fd_table::set(sock.fd, sock.entry.with_cloexec(kind & libc::SOCK_CLOEXEC != 0));
    // The engine learns of it when it next looks; nobody waits for that.
    att.region().dirty(sock.shared.shard.load(Relaxed)).set(sock.slot());
    Some(sock.fd)
}

/// A slot of the region with a descriptor under it and [`file`] bits `flags`. The table does not know it yet.
pub fn fresh(att: &'static Attachment, flags: u32) -> Option<Sock> {
    loop {
        let stand = att.pool().take(att).ok()?;
        let Some((slot, shared)) = claim(att) else {
            att.pool().give(att, stand);
            return None;
        };
        let entry = Entry::new(Kind::Socket, att.index(), slot, shared.generation.load(Relaxed));
        shared.file.store(flags, Relaxed);
        shared.epoch.store(att.region().header().fork_epoch.load(Relaxed), Relaxed);
        shared.owner_pid.store(process::pid(), Relaxed);
        shared.options.reset();
        // A thread's connections stay together; threads spread over the shards that the load has brought.
        shared.shard.store(tls::thread().tid() % att.active_shards(), Relaxed);
        shared.intent.store(intent::of(entry.generation(), intent::OWNED), Release);
        // Last: with the token the engine may find the slot, and take it back if the descriptor is spoiled.
        shared.token.store(stand.token, Release);
        match att.pool().settle(att, shared, stand) {
            Ok(stand) => return Some(Sock { fd: stand.fd, entry, att, shared }),
            Err(Unsettled::Lost) => {}
            Err(Unsettled::Bare(_)) => {
                abandon(att, slot, shared, entry.generation());
                return None;
            }
        }
    }
}

/// Gives a slot without a descriptor back, in its `generation`-th use, and the connection that it may have.
pub fn abandon(att: &'static Attachment, slot: u32, shared: &Socket, generation: u32) {
    shared.intend(generation, intent::OWNED | intent::CLOSE);
    att.kick(shared.shard.load(Relaxed), slot);
}

/// A free slot of the region.
pub fn claim(att: &'static Attachment) -> Option<(u32, &'static Socket)> {
    let slot = att.region().claim_socket()?;
    Some((slot, att.region().socket(slot)?))
}

/// `connect(2)`.
///
/// # Safety
/// As `connect`.
pub unsafe fn connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    let Some(sock) = handle::stream(fd) else {
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own address.
        if let Some(result) = unsafe { bound::connect(fd, to, len) } {
            return errno::into_libc(result.map(|_| 0));
        }
        // SAFETY: the program's own arguments.
        let result = unsafe { real::connect(fd, to, len) };
        if let (0, Some(sock)) = (result, handle::listener(fd)) {
            listen::ceased(&sock); // AF_UNSPEC: it listens no more.
        }
        return result;
    };
    signals::cancellation_point();
    // SAFETY: the program's own address.
    match unsafe { decide(&sock, to, len) } {
        Ok(Served::Here) => 0,
        Ok(Served::ByKernel) => match swap::to_kernel(&sock) {
            // SAFETY: the program's own arguments; `fd` is the kernel's socket now.
            Ok(()) => unsafe { real::connect(fd, to, len) },
            Err(error) => errno::fail(error),
        },
        Err(error) => errno::fail(error),
    }
}

/// Who has taken a connection on.
#[derive(Debug)]
pub enum Served {
    /// The engine.
    Here,
    /// The kernel shall.
    ByKernel,
}

/// # Safety
/// As `connect`.
unsafe fn decide(sock: &Sock, to: *const sockaddr, len: socklen_t) -> Sys<Served> {
    // SAFETY: the program's own address.
    if unsafe { user::family(to, len) }? == libc::AF_UNSPEC {
        return dissolve(sock);
    }
    let now = sock.status();
    if now & (status::CONNECTING | status::CONNECTED | status::DEAD) != 0 {
        return again(sock, now);
    }
    // SAFETY: the program's own address.
    let addr = unsafe { user::address(to, len, sock.is_inet6()) }?;
    if sock.is_shut() || !is_served(sock.att, &addr) {
        return Ok(Served::ByKernel);
    }
    // What the last attempt left is nothing to this one (Linux tcp_connect_init).
    let _ = sock.take_error();
    if fast_open::is_wanted(sock) {
        return fast_open::connect(sock, connect_args(addr));
    }
    if sock.att.page().serves_loopback(&addr.ip, addr.port) {
        // Ours for certain: nobody waits for the engine's word, only (if at all) for the connection.
        sock.shared.status.fetch_or(status::CONNECTING, AcqRel);
        if !sock.is_current() {
            // Another thread has closed it, and the slot may be in its next use.
            sock.shared.status.fetch_and(!status::CONNECTING, AcqRel);
            return Err(Errno(libc::EBADF));
        }
        submit(sock, OpCode::ConnectLoopback, connect_args(addr))?;
        sock.shared.op_arbiter.give();
    } else {
        match operate(sock, OpCode::Connect, connect_args(addr))? {
            RESULT_KERNEL => return Ok(Served::ByKernel),
            0 => {}
            error => return Err(Errno(error)),
        }
    }
    under_way(sock)
}

/// Whether the engine may serve a connection to `addr`: it has the last word.
pub fn is_served(att: &'static Attachment, addr: &Addr) -> bool {
    let nobody_listens = user::is_loopback(&addr.ip) && !att.page().is_listening(addr.port);
    if nobody_listens {
        log::record(att, LogCode::ConnectKernel, u32::from(addr.port));
    }
    !nobody_listens && att.is_alive()
}

/// The engine connects `sock`: waits for the end of that, unless the socket does not block.
pub fn under_way(sock: &Sock) -> Sys<Served> {
    sock.shared.file.fetch_or(file::CONNECTING, AcqRel);
    if !sock.is_current() {
        sock.shared.file.fetch_and(!file::CONNECTING, AcqRel); // As above.
        return Err(Errno(libc::EBADF));
    }
    if sock.is_nonblocking() {
        return Err(Errno(libc::EINPROGRESS));
    }
    wait_connected(sock)
}

/// `shutdown` of a socket that connects: the attempt is reset, and the socket as new (Linux inet_shutdown).
pub fn give_up(sock: &Sock) -> Sys<()> {
    match dissolve(sock)? {
        Served::Here => Ok(()),
        Served::ByKernel => swap::to_kernel(sock),
    }
}

/// `connect` to AF_UNSPEC: the connection is reset, and the socket as new (Linux tcp_disconnect).
fn dissolve(sock: &Sock) -> Sys<Served> {
    let now = sock.status();
    if now & (status::CONNECTING | status::CONNECTED | status::DEAD) == 0 {
        return Ok(Served::Here);
    }
    let over = now & (status::DEAD | status::HUP) != 0;
    let error = match () {
        () if over => sock.shared.error.load(Acquire),
        // No SYN has left: for Linux nothing was there that could be reset.
        () if fast_open::is_deferred(sock) => 0,
        () => libc::ECONNRESET,
    };
    if sock.is_shared() && !over {
        // The other processes keep a socket that was reset; this one gets a new one.
        operate(sock, OpCode::Reset, [0; 6])?;
    }
    match attach::current().and_then(|att| fresh(att, sock.shared.file.load(Acquire) & file::KEPT)) {
        Some(new) => match swap::anew(sock, &new, error) {
            Ok(()) => Ok(Served::Here),
            Err(error) => {
                bound::give_up(&new, true);
                Err(error)
            }
        },
        None => Ok(Served::ByKernel),
    }
}

/// A `connect` on a socket that has been through one: 0 once after it succeeded in the background.
pub fn again(sock: &Sock, now: u32) -> Sys<Served> {
    if fast_open::is_deferred(sock) {
        return Err(Errno(libc::EISCONN)); // As Linux has it, though no SYN has left.
    }
    let reported = sock.shared.file.load(Acquire) & file::CONNECTING == 0;
    if now & status::DEAD != 0 {
        // A connection that was reset once it stood keeps its error for others to ask.
        if reported && now & status::CONNECTED != 0 {
            return Err(Errno(libc::EISCONN));
        }
        if let Some(error) = sock.take_error() {
            sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
            return Err(error);
        }
        if !reported {
            sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
            return Err(Errno(libc::ECONNABORTED));
        }
        return Ok(Served::ByKernel); // A new attempt after a failure.
    }
    if now & status::CONNECTED != 0 {
        if reported {
            return Err(Errno(libc::EISCONN));
        }
        sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
        return Ok(Served::Here);
    }
    if sock.is_nonblocking() {
        return Err(Errno(libc::EALREADY));
    }
    wait_connected(sock)
}

/// Waits for the end of a connect, as long as SO_SNDTIMEO allows.
pub fn wait_connected(sock: &Sock) -> Sys<Served> {
    let deadline = sleep::deadline_us(sock.shared.options.sndtimeo_us.load(Relaxed));
    let over = status::CONNECTED | status::DEAD;
    let calm = Calm::on(Ending::with_timeout(deadline), sock);
    let woken = sleep::until(
        sock.att,
        || &sock.shared.tx_bell,
        deadline,
        &calm,
        || sock.shared.status.load(Acquire) & over != 0 || !sock.is_current() || sock.intends(intent::CLOSE),
    );
    let now = sock.status();
    if now & status::DEAD != 0 {
        sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
        return Err(sock.take_error().unwrap_or(Errno(libc::ECONNABORTED)));
    }
    if now & status::CONNECTED != 0 {
        sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
        return Ok(Served::Here);
    }
    match woken {
        Woken::Signal => Err(Errno(libc::EINTR)),
        Woken::Timeout => Err(Errno(libc::EINPROGRESS)),
        Woken::News => Err(given_up(sock)),
    }
}

/// Why the attempt that `sock` was ended: another thread gave it up, or closed it.
fn given_up(sock: &Sock) -> Errno {
    let now = close::settled(sock.fd);
    match handle::stream(sock.fd).filter(|_| !now.same_object(sock.entry)) {
        Some(new) => new.take_error().unwrap_or(Errno(libc::ECONNABORTED)),
        None => Errno(libc::EBADF),
    }
}

/// The words of a connect to `addr`, from wherever.
pub fn connect_args(addr: Addr) -> [u64; 6] {
    let [high, low, port] = addr.to_words();
    [high, low, port, 0, 0, 0]
}

/// One operation of the engine on this socket, and its result.
pub fn operate(sock: &Sock, code: OpCode, args: [u64; 6]) -> Sys<i32> {
    let shared = sock.shared;
    let ticket = submit(sock, code, args)?;
    // A signal does not end this: the answer comes in microseconds, and the caller's state depends on it.
    while shared.op_done.load(Acquire) != ticket {
        await_answer(sock, ticket);
        if !sock.att.is_alive() {
            break;
        }
    }
    let answered = shared.op_done.load(Acquire) == ticket;
    let result = shared.op_result.load(Relaxed);
    shared.op_arbiter.give();
    if answered { Ok(result) } else { Ok(RESULT_KERNEL) }
}

/// Sleeps until the operation with `ticket` is answered, or a signal comes.
fn await_answer(sock: &Sock, ticket: u32) {
    let (bell, done) = (&sock.shared.op_bell, &sock.shared.op_done);
    let calm = Calm::now(Ending::Every);
    let _ = sleep::until(sock.att, || bell, None, &calm, || done.load(Acquire) == ticket);
}

/// Hands an operation to the engine; its ticket. The caller gives the arbiter back.
fn submit(sock: &Sock, code: OpCode, args: [u64; 6]) -> Sys<u32> {
    let shared = sock.shared;
    let tid = tls::thread().tid();
    loop {
        match shared.op_arbiter.try_take(tid) {
            Ok(()) => break,
            Err(Busy::Nested) => return Err(Errno(libc::EALREADY)),
            Err(Busy::Other(owner))
                if !sys::thread_exists(owner) && shared.op_arbiter.take_over(owner, tid) =>
            {
                break;
            }
            Err(Busy::Other(_)) => sys::sched_yield(),
        }
    }
    // One that nobody waited for (a connect to loopback) may be under way: its words must not be overwritten.
    if shared.op_done.load(Acquire) != shared.op_asked.load(Relaxed) {
        settle(sock);
    }
    for (to, from) in shared.op_args.iter().zip(args) {
        to.store(from, Relaxed);
    }
    shared.op_code.store(code.of(sock.entry.generation()), Relaxed);
    // Behind both counts: an operation that a signal cut short may still be under way.
    let ticket = shared.op_asked.load(Relaxed).wrapping_add(1);
    shared.op_asked.store(ticket, SeqCst);
    sock.kick();
    Ok(ticket)
}

/// Waits until an operation that was handed over is answered: the local address is known then.
pub fn settle(sock: &Sock) {
    let shared = sock.shared;
    let ticket = shared.op_asked.load(Acquire);
    // A signal does not end this either.
    while shared.op_done.load(Acquire) != ticket && sock.is_current() && sock.att.is_alive() {
        await_answer(sock, ticket);
    }
}
