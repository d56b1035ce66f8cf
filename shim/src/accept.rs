//! `accept`: connections of utcp clients from the shards' rings, those of kernel clients from the kernel.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use libc::{sockaddr, socklen_t};
use utcp_abi::listener::{AcceptQueue, Listener};
use utcp_abi::ring::Ring;
use utcp_abi::socket::{Socket, file, intent};
use utcp_abi::waiting;

use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::pool::{Stand, Unsettled};
use crate::sys::{Errno, Sys};
use crate::table::real;
use crate::{connect, control, death, errno, listen, numbers, poll, process, ready, recv, signals, user};

/// `accept(2)`.
///
/// # Safety
/// As `accept`.
pub unsafe fn accept(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if handle::ours(fd).is_none() && listen::meet(fd).is_none() {
        // SAFETY: the program's own arguments.
        return unsafe { real::accept(fd, to, len) };
    }
    // SAFETY: the program's own arguments.
    unsafe { accept4(fd, to, len, 0) }
}

/// `accept4(2)`.
///
/// # Safety
/// As `accept4`.
pub unsafe fn accept4(fd: c_int, to: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    death::revive();
    let Some(mut listener) = handle::listener(fd).or_else(|| listen::meet(fd)) else {
        if handle::stream(fd).is_some() {
            return errno::fail(Errno(libc::EINVAL)); // Not listening.
        }
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own arguments.
        return unsafe { real::accept4(fd, to, len, flags) };
    };
    signals::cancellation_point();
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return errno::fail(Errno(libc::EINVAL));
    }
    loop {
        match pop(&listener, flags) {
            // SAFETY: the program's own pointers.
            Ok(Some(sock)) => return unsafe { finish(&listener, &sock, to, len) },
            Ok(None) => {}
            Err(error) => return errno::fail(error),
        }
        if listener.is_nonblocking() {
            // SAFETY: the program's own arguments.
            return numbers::with(|| unsafe { real::accept4(fd, to, len, flags) });
        }
        // Whoever may have no more descriptors hears of it at once, and not when somebody comes.
        let pool = listener.att.pool();
        match pool.take(listener.att) {
            Ok(stand) => pool.give(listener.att, stand),
            Err(error) if error == Errno(libc::EMFILE) => return errno::fail(error),
            Err(_) => {}
        }
        match poll::until_readable(fd, listener.shared.options.rcvtimeo_us.load(Relaxed)) {
            Ok(true) if ready::accept_waits(&listener) => continue,
            Ok(true) => {}
            Ok(false) => return errno::fail(Errno(libc::EAGAIN)),
            Err(error) => return errno::fail(error),
        }
        if has_moved(fd, &mut listener) {
            continue;
        }
        // Of many threads that were woken one gets the connection. The others must come back here: asleep in
        // the kernel's accept they would not hear of connections of ours.
        control::keep_from_blocking(&listener);
        // SAFETY: the program's own arguments.
        let accepted = numbers::with(|| unsafe { real::accept4(fd, to, len, flags) });
        if accepted >= 0 || errno::get() != Errno(libc::EAGAIN) {
            return accepted;
        }
    }
}

/// Whether the engine of `listener` died while we slept, and it has found another; there it listens now.
fn has_moved(fd: c_int, listener: &mut Sock) -> bool {
    if listener.att.is_alive() {
        return false;
    }
    death::revive();
    let Some(moved) = handle::listener(fd).filter(|moved| moved.att.is_alive()) else { return false };
    *listener = moved;
    true
}

/// Takes one connection from the rings and stands it on a descriptor.
fn pop(listener: &Sock, flags: c_int) -> Sys<Option<Sock>> {
    if !ready::accept_waits(listener) || !listener.att.is_alive() {
        return Ok(None);
    }
    let Some((slot, shared, generation, stand)) = next_settled(listener)? else { return Ok(None) };
    let cloexec = flags & libc::SOCK_CLOEXEC != 0;
    let entry = Entry::new(Kind::Socket, listener.att.index(), slot, generation).with_cloexec(cloexec);
    let family = listener.shared.file.load(Relaxed) & file::INET6;
    let nonblocking = if flags & libc::SOCK_NONBLOCK != 0 { file::NONBLOCK } else { 0 };
    // The options that Linux does not pass on.
    shared.options.priority.store(0, Relaxed);
    shared.options.defer_accept_s.store(0, Relaxed);
    shared.busy_poll.store(listener.shared.busy_poll.load(Relaxed), Relaxed);
    shared.file.store(family | nonblocking, Relaxed);
    recv::move_peeks_of(shared);
    shared.epoch.store(listener.att.region().header().fork_epoch.load(Relaxed), Relaxed);
    shared.owner_pid.store(process::pid(), Relaxed);
    shared.intend(generation, intent::OWNED);
    fd_table::set(stand.fd, entry);
    let sock = Sock { fd: stand.fd, entry, att: listener.att, shared };
    // The engine learns of it when it next looks; nobody waits for that.
    sock.att.region().dirty(shared.shard.load(Relaxed)).set(slot);
    Ok(Some(sock))
}

/// What [`next_settled`] found: slot, its words, its generation, and the descriptor under it.
type Settled = (u32, &'static Socket, u32, Stand);

/// The next connection, on a descriptor that is whole.
fn next_settled(listener: &Sock) -> Sys<Option<Settled>> {
    let att = listener.att;
    loop {
        // First the descriptor: a connection that was popped could not be put back.
        let stand = att.pool().take(att)?;
        let Some((slot, shared, generation)) = next_connection(listener, stand.token) else {
            att.pool().give(att, stand);
            return Ok(None);
        };
        match att.pool().settle(att, shared, stand) {
            Ok(stand) => return Ok(Some((slot, shared, generation, stand))),
            Err(Unsettled::Lost) => {}
            Err(Unsettled::Bare(error)) => {
                connect::abandon(att, slot, shared, generation);
                return Err(error);
            }
        }
    }
}

/// The next connection for the descriptor with `token`: slot, its words and its generation.
fn next_connection(listener: &Sock, token: u32) -> Option<(u32, &'static Socket, u32)> {
    let queues = listener.queues()?;
    loop {
        let ring = oldest(listener, queues)?;
        let Some(entry) = ring.pop() else { continue }; // Another thread was quicker.
        let slot = waiting::slot_of(entry);
        let Some(shared) = listener.att.region().socket(slot) else { continue };
        // An entry whose connection was taken back meanwhile counts for nothing.
        if let Some(generation) = waiting::take(shared, entry, token) {
            if listener.att.shards() > 1 {
                shared.asked_at.store(0, Relaxed); // It was the engine's; see `oldest`.
            }
            return Some((slot, shared, generation));
        }
    }
}

/// The ring of the connection that has waited longest: shards say of each when it came ([`Socket::asked_at`], which no program has
/// asked by yet).
fn oldest(listener: &Sock, queues: &'static Listener) -> Option<Ring<'static>> {
    let shards = listener.att.shards() as usize;
    if shards <= 1 {
        return queues.queues.first().map(AcceptQueue::ring).filter(|ring| !ring.is_empty());
    }
    let came = |queue: &'static AcceptQueue| {
        let ring = queue.ring();
        let socket = listener.att.region().socket(waiting::slot_of(ring.peek()?));
        Some((socket.map_or(0, |socket| socket.asked_at.load(Relaxed)), ring))
    };
    queues.queues.iter().take(shards).filter_map(came).min_by_key(|(at, _)| *at).map(|(_, ring)| ring)
}

/// Writes the peer's address where the program wants it.
///
/// # Safety
/// As `accept4`.
unsafe fn finish(listener: &Sock, sock: &Sock, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let remote = sock.shared.remote.load();
    // SAFETY: the program's own pointers.
    match unsafe { user::give_address(remote, listener.is_inet6(), to, len) } {
        Ok(()) => sock.fd,
        Err(error) => {
            crate::close::close(sock.fd);
            errno::fail(error)
        }
    }
}
