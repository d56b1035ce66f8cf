//! Another socket under a socket's number, with the same options: a kernel socket, or a fresh one of ours.
//!
//! The one end of the socket pair that stood there is closed by `dup3`, so the engine hears that
//! the utcp socket is gone. Epoll sets that had it get the kernel's socket as an ordinary member.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use utcp_abi::socket::{file, intent, option};

use crate::fd_table::{self, Entry};
use crate::handle::Sock;
use crate::sigio::Signals;
use crate::sys::{self, Errno, Sys};
use crate::{bound, control, epoll, listen, options, pool};

/// Puts a kernel socket at `sock`'s number.
pub fn to_kernel(sock: &Sock) -> Sys<()> {
    let flags = sock.shared.file.load(Acquire);
    let domain = if flags & file::INET6 != 0 { libc::AF_INET6 } else { libc::AF_INET };
    let kernel = sys::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)?;
    if let flags @ 1.. = control::status_flags(flags) {
        let _ = sys::fcntl(kernel, libc::F_SETFL, flags as usize);
    }
    options::replay(sock, kernel, domain == libc::AF_INET6);
    // Before the number is the kernel's: from then on the slot is the engine's to give away.
    let shut = |bit| i32::from(sock.intends(bit));
    let how = shut(intent::SHUT_RD) + 2 * shut(intent::SHUT_WR) - 1;
    if how >= 0 {
        // It says ENOTCONN, as it did here, and shuts it.
        let _ = sys::call!(libc::SYS_shutdown, kernel, how);
    }
    let result = put_at(sock, kernel);
    if how >= 0 && result.is_ok() {
        bound::keep(sock.fd, listen::SHUT);
    }
    let _ = sys::close(kernel);
    result
}

fn put_at(sock: &Sock, kernel: c_int) -> Sys<()> {
    let cloexec = if sock.entry.cloexec() { libc::O_CLOEXEC } else { 0 };
    if !fd_table::replace(sock.fd, sock.entry, Entry::CHANGING) {
        return Err(Errno(libc::EBADF)); // Closed by another thread meanwhile.
    }
    // With the last reference to the pair's end the engine frees the slot, and it may be another socket's before we have
    // done with it. A socket that is ours alone is taken from the hang-up beforehand; others are held until the end.
    let signals = Signals::of(sock);
    let private = !sock.is_shared();
    let token = if private { sock.detach() } else { None };
    let mut held = None;
    if !private {
        held = sys::fcntl(sock.fd, libc::F_DUPFD_CLOEXEC, 3).ok();
    }
    let swapped = sys::dup3(kernel, sock.fd, cloexec);
    match swapped {
        Ok(_) => {
            fd_table::set(sock.fd, Entry::KERNEL);
            if let Some(signals) = signals {
                signals.put(sock.fd);
            }
            epoll::hand_over(sock);
            if private {
                sock.intend(intent::CLOSE);
            }
        }
        Err(_) => {
            if let Some(token) = token {
                sock.shared.token.store(token, Release);
            }
            fd_table::set(sock.fd, sock.entry);
        }
    }
    if let Some(held) = held {
        let _ = sys::close(held);
    }
    swapped.map(|_| ())
}

/// Puts the fresh socket `new` (under a number of its own) at `sock`'s number and at every other that the process has for
/// it, with `error` pending; the connection of `sock` is reset, once no other process has it.
pub fn anew(sock: &Sock, new: &Sock, error: c_int) -> Sys<()> {
    new.shared.options.copy_from(&sock.shared.options);
    new.shared.busy_poll.store(sock.shared.busy_poll.load(Relaxed), Relaxed);
    options::keep_keys(sock, new);
    new.shared.error.store(error, Relaxed);
    let signals = Signals::of(sock);
    if !fd_table::replace(sock.fd, sock.entry, Entry::CHANGING) {
        return Err(Errno(libc::EBADF)); // Closed by another thread meanwhile.
    }
    let private = !sock.is_shared();
    epoll::move_members(sock, &Sock { fd: sock.fd, ..*new });
    // Before the kernel tells the engine that its descriptor is gone.
    sock.shared.options.linger_s.store(0, Relaxed);
    sock.shared.options.flags.fetch_or(option::LINGER, Relaxed);
    if private {
        let _ = sock.detach();
        sock.intend(intent::CLOSE);
    }
    let placed = sys::dup3(new.fd, sock.fd, libc::O_CLOEXEC);
    fd_table::set(sock.fd, new.entry.with_cloexec(sock.entry.cloexec()));
    if let Some(signals) = signals.filter(|_| placed.is_ok()) {
        signals.put_on(&Sock { fd: sock.fd, ..*new });
    }
    for (other, entry) in fd_table::used().filter(|(_, entry)| entry.same_object(sock.entry)) {
        if fd_table::replace(other, entry, Entry::CHANGING) {
            new.shared.file.fetch_or(file::SHARED, AcqRel);
            let _ = sys::dup3(new.fd, other, libc::O_CLOEXEC);
            fd_table::set(other, new.entry.with_cloexec(entry.cloexec()));
        }
    }
    pool::throw_away(new.fd);
    // Another thread may wait for the connection that was to be.
    if sock.shared.tx_bell.ring() {
        sys::futex_wake_all(sock.shared.tx_bell.word());
    }
    new.kick();
    placed.map(|_| ())
}
