//! `close` and its relatives, and `dup`, which decides what a close later means.
//!
//! A socket that only this process and one number refer to is closed without a system call: the engine
//! is told, and the descriptor goes back to the pool. One that may have other references (dup, fork,
//! SCM_RIGHTS) is closed in the kernel, which tells the engine when the last reference is gone.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use utcp_abi::freeze::FROZEN;
use utcp_abi::socket::{file, intent, option, status};

use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::pool::{self, Stand};
use crate::signals::{Calm, Ending};
use crate::sleep;
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{attach, bound, connect, epoll, errno, exec, listen, numbers, pair, relayed, send, tls};

/// `close(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn close_hook(fd: c_int) -> c_int {
    close(fd)
}

/// Closes one of the program's numbers, whatever stands there.
pub fn close(fd: c_int) -> c_int {
    for _ in 0..CHANGES_MAX {
        if let Some(result) = close_now(fd) {
            return result;
        }
    }
    errno::fail(Errno(libc::EBADF))
}

/// Closes what stands at `fd`. `None`: another thread has put something else there meanwhile, which is to be closed instead.
fn close_now(fd: c_int) -> Option<c_int> {
    let entry = settled(fd);
    // In the child of vfork the table is the parent's: only the kernel may notice.
    if entry == Entry::KERNEL || tls::thread().is_vfork_child() {
        // SAFETY: a plain number.
        return Some(unsafe { real::close(fd) });
    }
    match entry.kind() {
        Kind::Internal | Kind::Pool | Kind::Changing => Some(errno::fail(Errno(libc::EBADF))),
        Kind::Kernel | Kind::Bound | Kind::Stranger | Kind::Kept => in_kernel(fd, entry),
        Kind::Epoll => {
            epoll::closing(fd, entry);
            in_kernel(fd, entry)
        }
        Kind::Listener => close_listener(fd, entry),
        Kind::Socket => close_socket(fd, entry),
    }
}

/// Closes `fd`, at which `entry` stands, in the kernel. Of two threads that do, one wins. `None`: it stands there no more.
fn in_kernel(fd: c_int, entry: Entry) -> Option<c_int> {
    if !fd_table::replace(fd, entry, Entry::CHANGING) {
        return None;
    }
    let result = sys::close(fd);
    fd_table::replace(fd, Entry::CHANGING, Entry::KERNEL);
    Some(errno::into_libc(result.map(|()| 0)))
}

/// What stands at `fd`, once no other thread is about to put something else there.
#[inline]
pub fn settled(fd: c_int) -> Entry {
    let mut entry = fd_table::get(fd);
    for look in 0..LOOKS_MAX.saturating_add(NAPS_MAX) {
        if entry != Entry::CHANGING {
            break;
        }
        // Whoever is at it has a system call to do, and may have lost the processor.
        if look < LOOKS_MAX {
            sys::sched_yield();
        } else {
            sys::nap_ms(1);
        }
        entry = fd_table::get(fd);
    }
    entry
}

fn close_listener(fd: c_int, entry: Entry) -> Option<c_int> {
    if let Some(sock) = handle::at(fd, entry).filter(|_| !another_number(fd, entry)) {
        epoll::forget(&sock);
    }
    let result = in_kernel(fd, entry);
    if result == Some(0)
        && let Some(att) = attach::get(entry.region()).filter(|att| att.is_alive())
    {
        listen::closed(att, entry.slot());
    }
    result
}

fn close_socket(fd: c_int, entry: Entry) -> Option<c_int> {
    let Some(sock) = handle::ours(fd) else {
        // Not ours any more; or another thread has just closed it, and it waits in the pool, or puts another one there.
        return match fd_table::get(fd) {
            Entry::KERNEL => in_kernel(fd, Entry::KERNEL),
            now if now == entry => Some(errno::fail(Errno(libc::EBADF))),
            _ => None,
        };
    };
    linger(&sock);
    if sock.is_shared() || !sock.att.is_alive() {
        if !another_number(fd, entry) {
            epoll::forget(&sock);
        }
        return in_kernel(fd, sock.entry);
    }
    let waiting = Entry::new(Kind::Pool, 0, 0, 0);
    if !fd_table::replace(fd, sock.entry, waiting) {
        return None;
    }
    // Who copies a number says so first and then looks whether it still is what it was; a fork counts first.
    if sock.is_shared() {
        if !another_number(fd, entry) {
            epoll::forget(&sock);
        }
        return in_kernel(fd, waiting);
    }
    epoll::forget(&sock);
    send::flush(&sock);
    match leave(&sock) {
        Some(stand) => sock.att.pool().give(sock.att, stand),
        None => pool::throw_away(fd),
    }
    Some(0)
}

/// Tells the engine that `sock` is closed. The descriptor under it, if that can have another socket.
fn leave(sock: &Sock) -> Option<Stand> {
    let shared = sock.shared;
    // Nobody may be copying into the stream when the engine reuses it.
    let right = sock.take_tx();
    // Before the look at the generation: a slot that the engine took back is somebody else's, and so are these.
    let (token, seen) = (shared.token.load(Acquire), shared.stand_seen.load(Relaxed));
    if !sock.is_current() {
        return None;
    }
    // The engine freezes the positions and then looks for this bit, if it gives the socket and its own end to the relay. It may have taken the
    // slot back just now.
    sock.want(intent::CLOSE)?;
    drop(right);
    sock.kick();
    let stays = shared.tx_tail.load(SeqCst) != FROZEN && !relayed::is_moved(sock);
    (token != 0 && stays).then_some(Stand { fd: sock.fd, token, seen })
}

/// SO_LINGER with a time: the close waits until the peer has everything, or the time is over, whether calls on the socket block or not (Linux
/// inet_release, tcp_close).
fn linger(sock: &Sock) {
    let options = &sock.shared.options;
    let seconds = options.linger_s.load(Relaxed);
    if !options.has(option::LINGER) || seconds == 0 || sock.is_shared() {
        return;
    }
    if sock.status() & (status::CONNECTED | status::DEAD) != status::CONNECTED {
        return;
    }
    send::flush(sock);
    sock.intend(intent::SHUT_WR | intent::TX_FULL);
    let deadline = sleep::deadline_us(u64::from(seconds).saturating_mul(1_000_000));
    let _ = sleep::until(
        sock.att,
        || &sock.shared.tx_bell,
        deadline,
        &Calm::now(Ending::Every),
        || {
            sock.shared.status.load(Acquire) & status::DEAD != 0
                || send::queued(sock) == 0
                || !sock.is_current()
        },
    );
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
    let Some(sock) = handle::stream(fd) else {
        // In this order: another thread may just have closed it, and a shutdown would spoil the descriptor for its next socket.
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: plain numbers.
        let result = unsafe { real::shutdown(fd, how) };
        if let (0, Some(sock)) = (result, handle::listener(fd)) {
            // The kernel's half listens no more; the engine's must not either.
            listen::ceased(&sock);
        }
        if result != 0 && errno::get() == Errno(libc::ENOTCONN) {
            listen::was_shut(fd);
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
    if now & (status::CONNECTING | status::CONNECTED | status::DEAD) == status::CONNECTING {
        return errno::into_libc(connect::give_up(&sock).map(|()| 0));
    }
    if now & status::CONNECTED == 0 || sock.has_ended() {
        // It fails, and its sides are shut all the same (Linux inet_shutdown).
        let _ = sock.want(bits);
        tell(&sock);
        return errno::fail(Errno(libc::ENOTCONN));
    }
    // No `connect` reports that it succeeded any more.
    sock.shared.file.fetch_and(!file::CONNECTING, AcqRel);
    send::flush(&sock);
    // Not while another thread is copying: its bytes belong before the FIN.
    let right = sock.take_tx();
    sock.intend(bits);
    drop(right);
    tell(&sock);
    0
}

/// Wakes whoever sleeps on `sock`.
fn tell(sock: &Sock) {
    let (rx_bell, tx_bell) = pair::bells(sock);
    for bell in [&sock.shared.rx_bell, &sock.shared.tx_bell, rx_bell, tx_bell] {
        if bell.ring() {
            sys::futex_wake_all(bell.word());
        }
    }
    epoll::touch(sock);
}

/// `dup(2)`.
///
/// # Safety
/// None beyond C's.
pub unsafe fn dup(fd: c_int) -> c_int {
    // SAFETY: a plain number.
    copy(fd, false, || unsafe { real::dup(fd) })
}

/// A copy of `fd` that `make` makes, under a number of its own.
pub fn copy(fd: c_int, cloexec: bool, make: impl Fn() -> c_int) -> c_int {
    if tls::thread().is_vfork_child() {
        return make();
    }
    for _ in 0..LOOKS_MAX {
        let entry = settled(fd);
        if matches!(entry.kind(), Kind::Internal | Kind::Pool) {
            break;
        }
        share(fd, entry);
        let new = numbers::with(&make);
        if new < 0 || fd_table::get(fd).same_object(entry) {
            adopt(new, entry, cloexec);
            return new;
        }
        let _ = sys::close(new); // Another thread has put something else there: what this is nobody knows.
    }
    errno::fail(Errno(libc::EBADF))
}

/// The socket behind `fd` is about to have another number. Whoever closes this one from now on leaves that to the kernel; who has
/// begun before has taken the number out of the table, which the caller looks at when the copy is made.
fn share(fd: c_int, entry: Entry) {
    if !matches!(entry.kind(), Kind::Socket | Kind::Listener) {
        return;
    }
    if let Some(sock) = handle::at(fd, entry).filter(Sock::is_current) {
        sock.shared.file.fetch_or(file::SHARED, SeqCst);
    }
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
        exec::tell_in_vfork_child(); // What is there now may have another FD_CLOEXEC than what will be.
        return errno::into_libc(sys::dup3(old, new, flags).map(|fd| fd as usize));
    }
    if flags & !libc::O_CLOEXEC != 0 {
        return errno::fail(Errno(libc::EINVAL)); // Before anything is closed.
    }
    let entry = fd_table::get(old);
    if matches!(entry.kind(), Kind::Internal | Kind::Pool) || sys::fcntl(old, libc::F_GETFD, 0).is_err() {
        return errno::fail(Errno(libc::EBADF));
    }
    let listener = match displace(new) {
        Ok(listener) => listener,
        Err(error) => return errno::fail(error),
    };
    share(old, entry);
    let mut placed = sys::dup3(old, new, flags);
    if placed.is_ok() && !fd_table::get(old).same_object(entry) {
        // Another thread has put something else there: what was copied nobody knows.
        let _ = sys::close(new);
        placed = Err(Errno(libc::EBADF));
    }
    if placed.is_err() || matches!(entry.kind(), Kind::Kernel | Kind::Changing) {
        fd_table::replace(new, Entry::CHANGING, Entry::KERNEL);
    }
    match placed {
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

/// How often a close begins again because another thread put something else there.
const CHANGES_MAX: u32 = 100;
/// Looks at a number that another thread has in its hands before it is given up: dup2(2), EBUSY.
const LOOKS_MAX: u32 = 100;
/// Milliseconds for the same, where giving up means that a close fails: that thread may have been ended in the middle.
const NAPS_MAX: u32 = 500;

/// The kernel's `dup3` is about to put something else at `new`: what we have there ends now. It is the kernel that closes it, in one step
/// with the copy: a number that were free for a moment could become another thread's. The listener whose number goes.
fn displace(new: c_int) -> Sys<Option<Sock>> {
    for _ in 0..LOOKS_MAX {
        let entry = fd_table::get(new);
        match entry.kind() {
            Kind::Kernel => return Ok(None),
            Kind::Pool => {
                let mut found = false;
                attach::each(|att| found |= att.pool().remove(new));
                if found {
                    fd_table::set(new, Entry::CHANGING);
                    return Ok(None);
                }
                sys::sched_yield(); // On its way into the pool or out of it.
            }
            Kind::Changing => sys::sched_yield(),
            Kind::Internal if attach::relocate(new) => return Ok(None),
            Kind::Internal => return Err(Errno(libc::EBUSY)),
            Kind::Epoll => {
                epoll::closing(new, entry);
                fd_table::replace(new, entry, Entry::CHANGING);
                return Ok(None);
            }
            Kind::Bound | Kind::Stranger | Kind::Kept => {
                if fd_table::replace(new, entry, Entry::CHANGING) {
                    return Ok(None);
                }
            }
            Kind::Socket | Kind::Listener => {
                let sock = handle::ours(new).filter(|sock| sock.entry.same_object(entry));
                if let Some(sock) = &sock {
                    // Not back into the pool: the engine hears of the end of its descriptor.
                    sock.shared.file.fetch_or(file::SHARED, AcqRel);
                    if !another_number(new, entry) {
                        epoll::forget(sock);
                    }
                }
                // Otherwise another thread closed it meanwhile, and the number is on its way to the pool.
                if fd_table::replace(new, entry, Entry::CHANGING) {
                    return Ok(sock.filter(|_| entry.kind() == Kind::Listener));
                }
            }
        }
    }
    Err(Errno(libc::EBUSY))
}

/// `new` refers to what `entry` says, like the number that it was copied from.
fn adopt(new: c_int, entry: Entry, cloexec: bool) {
    if new < 0 || matches!(entry.kind(), Kind::Kernel | Kind::Changing) || tls::thread().is_vfork_child() {
        return;
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
    if new == libc::STDIN_FILENO {
        // libc's stdio reads it by calls that can't be intercepted. (What it writes by such calls the engine sees.)
        relayed::pass(new);
    }
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
    if in_vfork && flags & cloexec != 0 {
        exec::tell_in_vfork_child();
        return errno::into_libc(kernel_range(first, last, flags).map(|()| 0));
    }
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
            if !matches!(entry.kind(), Kind::Internal) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicUsize};

    use super::*;
    use crate::pool::throw_away;

    /// A copy of `fd` under a number that no other thread of this process is given: the lowest free ones are everybody's.
    fn a_copy(fd: c_int) -> c_int {
        static NEXT: AtomicUsize = AtomicUsize::new(700);
        sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, NEXT.fetch_add(1, SeqCst)).expect("a copy")
    }

    fn a_file() -> c_int {
        let low = sys::eventfd(0).expect("a descriptor");
        let fd = a_copy(low);
        sys::close(low).expect("it is open");
        fd
    }

    fn is_open(fd: c_int) -> bool {
        sys::fcntl(fd, libc::F_GETFD, 0).is_ok()
    }

    /// A socket of an attachment that this process has not: only its entry counts here.
    const SOCKET: fn(u32) -> Entry = |slot| Entry::new(Kind::Socket, 9, slot, 1);

    /// Copies `fd`; while that is done the first time, another thread makes it mean `then`. The copy and how many were made.
    fn copy_while(fd: c_int, then: Entry) -> (c_int, Vec<c_int>) {
        let made = std::cell::RefCell::new(Vec::new());
        let new = copy(fd, false, || {
            if made.borrow().is_empty() {
                fd_table::set(fd, then);
            }
            let new = a_copy(fd);
            made.borrow_mut().push(new);
            new
        });
        (new, made.into_inner())
    }

    #[test]
    fn a_copy_is_what_its_number_was() {
        let fd = a_file();
        fd_table::set(fd, SOCKET(1));
        let (new, made) = copy_while(fd, SOCKET(1));
        assert_eq!((made.len(), fd_table::get(new)), (1, SOCKET(1)));
        for fd in [fd, new] {
            throw_away(fd);
        }
    }

    /// It was closed and is another socket's by the time of the copy: that is what the copy is then.
    #[test]
    fn a_number_that_changes_is_copied_anew() {
        let fd = a_file();
        fd_table::set(fd, SOCKET(2));
        let (new, made) = copy_while(fd, SOCKET(3));
        assert_eq!((made.len(), fd_table::get(new)), (2, SOCKET(3)));
        for fd in [fd, new] {
            throw_away(fd);
        }
    }

    /// It was closed and waits in the pool: nothing may hold what the next socket stands on.
    #[test]
    fn a_number_that_is_closed_meanwhile_is_not_copied() {
        let fd = a_file();
        fd_table::set(fd, SOCKET(4));
        let (new, made) = copy_while(fd, Entry::new(Kind::Pool, 0, 0, 0));
        assert_eq!((new, errno::get()), (-1, Errno(libc::EBADF)));
        assert!(made.iter().all(|copy| !is_open(*copy)), "{made:?}");
        throw_away(fd);
    }

    #[test]
    fn dup2_of_a_number_that_waits_in_the_pool_changes_nothing() {
        let (old, new) = (a_file(), a_file());
        fd_table::set(old, Entry::new(Kind::Pool, 0, 0, 0));
        fd_table::set(new, Entry::new(Kind::Kept, 0, 0, 1));
        assert_eq!((onto(old, new, 0), errno::get()), (-1, Errno(libc::EBADF)));
        assert_eq!(fd_table::get(new).kind(), Kind::Kept);
        for fd in [old, new] {
            throw_away(fd);
        }
    }

    /// A number that another thread is at: whoever closes it waits for what it becomes.
    #[test]
    fn a_close_waits_for_a_number_that_changes() {
        for (then, result) in [(Entry::KERNEL, 0), (Entry::new(Kind::Pool, 0, 0, 0), -1)] {
            let fd = a_file();
            fd_table::set(fd, Entry::CHANGING);
            let turns = AtomicU32::new(0);
            std::thread::scope(|scope| {
                let closer = scope.spawn(|| {
                    turns.store(1, SeqCst);
                    close(fd)
                });
                while turns.load(SeqCst) == 0 {
                    std::thread::yield_now();
                }
                std::thread::sleep(std::time::Duration::from_millis(5)); // Time to do the wrong thing.
                fd_table::set(fd, then);
                assert_eq!(closer.join().expect("it ends"), result);
            });
            assert_eq!(is_open(fd), result != 0);
            fd_table::set(fd, Entry::KERNEL);
        }
    }
}
