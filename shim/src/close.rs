//! `close` and its relatives, and `dup`, which decides what a close later means.
//!
//! A socket that only this process and one number refer to is closed without a system call: the engine
//! is told, and the descriptor goes back to the pool. One that may have other references (dup, fork,
//! SCM_RIGHTS) is closed in the kernel, which tells the engine when the last reference is gone.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use utcp_abi::socket::{file, intent, option, status};

use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::pool::Stand;
use crate::sleep;
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{attach, bound, epoll, errno, listen, pair, send, tls};

/// `close(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn close_hook(fd: c_int) -> c_int {
    close(fd)
}

/// Closes one of the program's numbers, whatever stands there.
pub fn close(fd: c_int) -> c_int {
    let entry = fd_table::get(fd);
    // In the child of vfork the table is the parent's: only the kernel may notice.
    if entry == Entry::KERNEL || tls::thread().is_vfork_child() {
        // SAFETY: a plain number.
        return unsafe { real::close(fd) };
    }
    match entry.kind() {
        Kind::Internal | Kind::Pool => errno::fail(Errno(libc::EBADF)),
        Kind::Kernel | Kind::Bound | Kind::Stranger | Kind::Kept => {
            fd_table::replace(fd, entry, Entry::KERNEL);
            errno::into_libc(sys::close(fd).map(|()| 0))
        }
        Kind::Epoll => {
            epoll::closing(fd, entry);
            fd_table::replace(fd, entry, Entry::KERNEL);
            errno::into_libc(sys::close(fd).map(|()| 0))
        }
        Kind::Listener => close_listener(fd, entry),
        Kind::Socket => close_socket(fd, entry),
    }
}

fn close_listener(fd: c_int, entry: Entry) -> c_int {
    if let Some(sock) = handle::at(fd, entry).filter(|_| !another_number(fd, entry)) {
        epoll::forget(&sock);
    }
    if !fd_table::replace(fd, entry, Entry::KERNEL) {
        return errno::fail(Errno(libc::EBADF));
    }
    let result = sys::close(fd);
    if let Some(att) = attach::get(entry.region()).filter(|att| att.is_alive()) {
        listen::closed(att, entry.slot());
    }
    errno::into_libc(result.map(|()| 0))
}

fn close_socket(fd: c_int, entry: Entry) -> c_int {
    let Some(sock) = handle::ours(fd) else {
        return errno::into_libc(sys::close(fd).map(|()| 0));
    };
    linger(&sock);
    if sock.is_shared() || !sock.att.is_alive() {
        if !another_number(fd, entry) {
            epoll::forget(&sock);
        }
        // Of two threads that close it, one wins.
        if !fd_table::replace(fd, sock.entry, Entry::KERNEL) {
            return errno::fail(Errno(libc::EBADF));
        }
        return errno::into_libc(sys::close(fd).map(|()| 0));
    }
    let waiting = Entry::new(Kind::Pool, 0, 0, 0);
    if !fd_table::replace(fd, sock.entry, waiting) {
        return errno::fail(Errno(libc::EBADF));
    }
    epoll::forget(&sock);
    let token = sock.shared.token.load(Relaxed);
    send::flush(&sock);
    // Nobody may be copying into the stream when the engine reuses it.
    let right = sock.take_tx();
    sock.shared.intent.fetch_or(intent::CLOSE, AcqRel);
    drop(right);
    sock.kick();
    if token == 0 || !sock.att.pool().put(Stand { fd, token }) {
        fd_table::set(fd, Entry::KERNEL);
        let _ = sys::close(fd);
    }
    0
}

/// SO_LINGER with a time: a blocking close waits until the peer has everything, or the time is over.
fn linger(sock: &Sock) {
    let options = &sock.shared.options;
    let seconds = options.linger_s.load(Relaxed);
    if !options.has(option::LINGER) || seconds == 0 || sock.is_nonblocking() || sock.is_shared() {
        return;
    }
    if sock.status() & (status::CONNECTED | status::DEAD) != status::CONNECTED {
        return;
    }
    send::flush(sock);
    sock.intend(intent::SHUT_WR | intent::TX_FULL);
    let deadline = sleep::deadline_us(u64::from(seconds).saturating_mul(1_000_000));
    let _ = sleep::until(sock.att, &sock.shared.tx_bell, deadline, || {
        sock.shared.status.load(Acquire) & status::DEAD != 0 || send::queued(sock) == 0 || !sock.is_current()
    });
}

/// Whether another number of this process refers to the same object.
fn another_number(fd: c_int, entry: Entry) -> bool {
    fd_table::used().any(|(other, found)| other != fd && found.same_object(entry))
}

/// `shutdown(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn shutdown(fd: c_int, how: c_int) -> c_int {
    if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    let Some(sock) = handle::stream(fd) else {
        // SAFETY: plain numbers.
        let result = unsafe { real::shutdown(fd, how) };
        if result == 0 && handle::listener(fd).is_some() {
            // The kernel's half listens no more; the engine's must not either.
            if let Some(sock) = handle::listener(fd) {
                listen::closed(sock.att, sock.slot());
            }
        }
        return result;
    };
    let bits = match how {
        libc::SHUT_RD => intent::SHUT_RD,
        libc::SHUT_WR => intent::SHUT_WR,
        libc::SHUT_RDWR => intent::SHUT_RD | intent::SHUT_WR,
        _ => return errno::fail(Errno(libc::EINVAL)),
    };
    let now = sock.status();
    if now & status::CONNECTED == 0 || now & status::DEAD != 0 {
        return errno::fail(Errno(libc::ENOTCONN));
    }
    send::flush(&sock);
    // Not while another thread is copying: its bytes belong before the FIN.
    let right = sock.take_tx();
    sock.shared.intent.fetch_or(bits, AcqRel);
    drop(right);
    sock.kick();
    let (rx_bell, tx_bell) = pair::bells(&sock);
    for bell in [&sock.shared.rx_bell, &sock.shared.tx_bell, rx_bell, tx_bell] {
        if bell.ring() {
            sys::futex_wake_all(bell.word());
        }
    }
    epoll::touch(&sock);
    0
}

/// `dup(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn dup(fd: c_int) -> c_int {
    if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    let entry = fd_table::get(fd);
    // SAFETY: a plain number.
    let new = unsafe { real::dup(fd) };
    adopt(new, entry, false);
    new
}

/// `dup2(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn dup2(old: c_int, new: c_int) -> c_int {
    if fd_table::get(old) == Entry::KERNEL && fd_table::get(new) == Entry::KERNEL || old == new {
        // SAFETY: plain numbers.
        return unsafe { real::dup2(old, new) };
    }
    onto(old, new, 0)
}

/// `dup3(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if fd_table::get(old) == Entry::KERNEL && fd_table::get(new) == Entry::KERNEL || old == new {
        // SAFETY: plain numbers.
        return unsafe { real::dup3(old, new, flags) };
    }
    onto(old, new, flags)
}

fn onto(old: c_int, new: c_int, flags: c_int) -> c_int {
    if tls::thread().is_vfork_child() {
        return errno::into_libc(sys::dup3(old, new, flags).map(|fd| fd as usize));
    }
    let entry = fd_table::get(old);
    if matches!(entry.kind(), Kind::Internal | Kind::Pool) || sys::fcntl(old, libc::F_GETFD, 0).is_err() {
        return errno::fail(Errno(libc::EBADF));
    }
    let listener = match displace(new) {
        Ok(listener) => listener,
        Err(error) => return errno::fail(error),
    };
    match sys::dup3(old, new, flags) {
        Ok(fd) => {
            if let Some(sock) = listener.filter(|sock| sock.att.is_alive()) {
                listen::closed(sock.att, sock.slot());
            }
            adopt(fd, entry, flags & libc::O_CLOEXEC != 0);
            fd
        }
        Err(error) => errno::fail(error),
    }
}

/// The kernel's `dup3` is about to put something else at `new`: what we have there ends now. It is the kernel that closes it, in one step
/// with the copy: a number that were free for a moment could become another thread's. The listener whose number goes.
fn displace(new: c_int) -> Sys<Option<Sock>> {
    let entry = fd_table::get(new);
    match entry.kind() {
        Kind::Kernel => Ok(None),
        Kind::Pool => {
            attach::each(|att| {
                att.pool().remove(new);
            });
            fd_table::set(new, Entry::KERNEL);
            Ok(None)
        }
        Kind::Internal if attach::relocate(new) => Ok(None),
        Kind::Internal => Err(Errno(libc::EBUSY)),
        Kind::Epoll => {
            epoll::closing(new, entry);
            fd_table::replace(new, entry, Entry::KERNEL);
            Ok(None)
        }
        Kind::Bound | Kind::Stranger | Kind::Kept => {
            fd_table::replace(new, entry, Entry::KERNEL);
            Ok(None)
        }
        Kind::Socket | Kind::Listener => {
            let sock = handle::ours(new);
            if let Some(sock) = &sock {
                // Not back into the pool: the engine hears of the end of its descriptor.
                sock.shared.file.fetch_or(file::SHARED, AcqRel);
                if !another_number(new, entry) {
                    epoll::forget(sock);
                }
            }
            fd_table::replace(new, entry, Entry::KERNEL);
            Ok(sock.filter(|_| entry.kind() == Kind::Listener))
        }
    }
}

/// `new` refers to what `entry` says, like the number that it was copied from.
pub fn adopt(new: c_int, entry: Entry, cloexec: bool) {
    if new < 0 || entry == Entry::KERNEL || tls::thread().is_vfork_child() {
        return;
    }
    if let Some(sock) =
        handle::at(new, entry).filter(|_| matches!(entry.kind(), Kind::Socket | Kind::Listener))
    {
        sock.shared.file.fetch_or(file::SHARED, AcqRel);
    }
    if entry.kind() == Kind::Bound {
        fd_table::set(new, entry);
        return bound::settle(new);
    }
    if entry.kind() == Kind::Socket {
        // Its FD_CLOEXEC is kept here; in the kernel it is always set.
        let _ = sys::fcntl(new, libc::F_SETFD, libc::FD_CLOEXEC as usize);
    }
    fd_table::set(new, entry.with_cloexec(cloexec));
}

/// `close_range(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
    if last < first {
        return errno::fail(Errno(libc::EINVAL));
    }
    let unshare = libc::CLOSE_RANGE_UNSHARE as c_int;
    let cloexec = libc::CLOSE_RANGE_CLOEXEC as c_int;
    if flags & !(unshare | cloexec) != 0 {
        return errno::fail(Errno(libc::EINVAL));
    }
    let in_vfork = tls::thread().is_vfork_child();
    // Ours one by one, the gaps between them by the kernel.
    let mut from = first;
    for (fd, entry) in fd_table::used_from(first.min(c_int::MAX as u32) as c_int) {
        if fd as u32 > last {
            break;
        }
        let gap =
            if fd as u32 > from { kernel_range(from, (fd as u32).wrapping_sub(1), flags) } else { Ok(()) };
        if let Err(error) = gap {
            return errno::fail(error);
        }
        from = (fd as u32).wrapping_add(1);
        if in_vfork {
            // The number goes in the child alone; the parent's table stays.
            if flags & cloexec == 0 && !matches!(entry.kind(), Kind::Internal) {
                let _ = sys::close(fd);
            }
        } else if flags & cloexec != 0 {
            crate::control::set_cloexec(fd, entry, true);
        } else {
            close(fd);
        }
    }
    if from > last {
        return 0;
    }
    errno::into_libc(kernel_range(from, last, flags).map(|()| 0))
}

fn kernel_range(first: u32, last: u32, flags: c_int) -> Sys<()> {
    sys::call!(libc::SYS_close_range, first, last, flags).map(|_| ())
}

/// `closefrom(3)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn closefrom(first: c_int) {
    // SAFETY: plain numbers.
    unsafe { close_range(first.max(0) as u32, u32::MAX, 0) };
}
