//! `fcntl` and `ioctl`.

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use utcp_abi::socket::file;

use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{close, errno, exec, numbers, recv, send, sigio, tls, urgent, user};

/// SIOCINQ is FIONREAD; SIOCOUTQ is TIOCOUTQ.
const SIOCGSTAMP: c_ulong = 0x8906;
const SIOCGSTAMPNS: c_ulong = 0x8907;
/// Their forms with 64-bit time: `_IOR(0x89, …, long long[2])`.
const SIOCGSTAMP_NEW: c_ulong = 0x8010_8906;
const SIOCGSTAMPNS_NEW: c_ulong = 0x8010_8907;
const SIOCPROTOPRIVATE: c_ulong = 0x89e0;
const SIOCPROTOPRIVATE_LAST: c_ulong = 0x89ef;
const SIOCOUTQ: c_ulong = libc::TIOCOUTQ;
const SIOCATMARK: c_ulong = 0x8905;
const FIOSETOWN: c_ulong = 0x8901;
const SIOCSPGRP: c_ulong = 0x8902;
const SIOCOUTQNSD: c_ulong = 0x894B;

/// `fcntl(2)`, its third argument whatever it is.
///
/// # Safety
/// As `fcntl`.
pub unsafe fn fcntl(fd: c_int, command: c_int, arg: usize) -> c_int {
    let entry = fd_table::get(fd);
    let copies = matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC);
    if entry == Entry::KERNEL && copies && !tls::thread().is_vfork_child() {
        // SAFETY: plain numbers.
        return numbers::with(|| unsafe { real::fcntl(fd, command, arg) });
    }
    let borrowed = tls::thread().is_vfork_child();
    if borrowed && matches!(command, libc::F_GETFD | libc::F_SETFD | libc::F_DUPFD_CLOEXEC) {
        exec::tell_in_vfork_child();
    }
    if entry == Entry::KERNEL || borrowed {
        // SAFETY: the program's own arguments.
        return unsafe { real::fcntl(fd, command, arg) };
    }
    if matches!(entry.kind(), Kind::Internal | Kind::Pool) {
        return errno::fail(Errno(libc::EBADF));
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let cloexec = command == libc::F_DUPFD_CLOEXEC;
            // SAFETY: plain numbers.
            close::copy(fd, cloexec, || unsafe { real::fcntl(fd, command, arg) })
        }
        libc::F_SETFD => {
            set_cloexec(fd, entry, arg & libc::FD_CLOEXEC as usize != 0);
            0
        }
        libc::F_GETFD if entry.kind() == Kind::Socket => {
            if entry.cloexec() {
                libc::FD_CLOEXEC
            } else {
                0
            }
        }
        libc::F_GETFL | libc::F_SETFL => flags(fd, command, arg),
        _ if sigio::is_about(command) => {
            // SAFETY: the program's own arguments.
            let result = unsafe { real::fcntl(fd, command, arg) };
            if let Some(sock) = handle::stream(fd).filter(|_| result == 0) {
                sigio::claim(&sock);
            }
            result
        }
        // SAFETY: the program's own arguments.
        _ => unsafe { real::fcntl(fd, command, arg) },
    }
}

/// Sets FD_CLOEXEC: in the table for our sockets, which have it in the kernel in any case.
pub fn set_cloexec(fd: c_int, entry: Entry, on: bool) {
    match entry.kind() {
        Kind::Internal | Kind::Pool => return,
        Kind::Socket => {}
        _ => {
            let _ = sys::fcntl(fd, libc::F_SETFD, if on { libc::FD_CLOEXEC as usize } else { 0 });
        }
    }
    fd_table::replace(fd, entry, entry.with_cloexec(on));
}

/// Makes the kernel half of a listener that blocks one that does not, unseen by the program.
pub fn keep_from_blocking(listener: &handle::Sock) {
    if listener.shared.file.load(Relaxed) & file::KERNEL_NONBLOCK != 0 {
        return;
    }
    if let Ok(flags) = sys::fcntl(listener.fd, libc::F_GETFL, 0) {
        listener.shared.file.fetch_or(file::KERNEL_NONBLOCK, AcqRel);
        let _ = sys::fcntl(listener.fd, libc::F_SETFL, (flags | libc::O_NONBLOCK) as usize);
        // Another thread may have ended it meanwhile, and have looked whether it blocks before us: that is the program's word again.
        if !fd_table::get(listener.fd).same_object(listener.entry) {
            let _ = sys::fcntl(listener.fd, libc::F_SETFL, flags as usize);
        }
    }
}

/// The opposite: the kernel half is all that is left.
pub fn let_block(listener: &handle::Sock) {
    let kept = listener.shared.file.load(Relaxed);
    if kept & file::KERNEL_NONBLOCK == 0 || kept & file::NONBLOCK != 0 {
        return;
    }
    if let Ok(flags) = sys::fcntl(listener.fd, libc::F_GETFL, 0) {
        let _ = sys::fcntl(listener.fd, libc::F_SETFL, (flags & !libc::O_NONBLOCK) as usize);
    }
}

/// What F_SETFL sets, and where it is kept. (O_ASYNC is more than a bit.)
const FLAGS: [(c_int, u32); 3] =
    [(libc::O_NONBLOCK, file::NONBLOCK), (libc::O_APPEND, file::APPEND), (libc::O_NOATIME, file::NOATIME)];

/// Of the bits `kept` of a socket, those of [`FLAGS`] as `fcntl` has them.
pub fn status_flags(kept: u32) -> c_int {
    FLAGS.iter().filter(|(_, bit)| kept & bit != 0).fold(0, |flags, (flag, _)| flags | flag)
}

/// The other way round.
pub fn bits_of(flags: c_int) -> u32 {
    FLAGS.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |bits, (_, bit)| bits | bit)
}

/// The number goes to another program, which is to find it as this one has it. Our next `accept` that sleeps does as before.
pub fn lend(listener: &handle::Sock) {
    let_block(listener);
    listener.shared.file.fetch_and(!file::KERNEL_NONBLOCK, AcqRel);
}

/// F_GETFL and F_SETFL.
fn flags(fd: c_int, command: c_int, arg: usize) -> c_int {
    let sock = handle::ours(fd);
    let Some(sock) = sock else {
        // SAFETY: plain numbers.
        return unsafe { real::fcntl(fd, command, arg) };
    };
    let listens = sock.entry.kind() == Kind::Listener;
    let held = sock.shared.file.load(Relaxed) & file::KERNEL_NONBLOCK != 0;
    if listens && command == libc::F_GETFL {
        // SAFETY: plain numbers.
        let kept = unsafe { real::fcntl(fd, command, arg) };
        return if held && kept >= 0 && !sock.is_nonblocking() { kept & !libc::O_NONBLOCK } else { kept };
    }
    if command == libc::F_GETFL {
        let kept = sock.shared.file.load(Relaxed);
        let asynchronous = if kept & file::ASYNC != 0 { libc::O_ASYNC } else { 0 };
        return libc::O_RDWR | asynchronous | status_flags(kept);
    }
    if listens {
        let kernel = if held { arg | libc::O_NONBLOCK as usize } else { arg };
        // SAFETY: plain numbers.
        let result = unsafe { real::fcntl(fd, command, kernel) };
        if result != 0 {
            return result;
        }
    }
    if !listens && arg & libc::O_DIRECT as usize != 0 {
        return errno::fail(Errno(libc::EINVAL)); // fcntl(2): the file has no such way.
    }
    for (flag, bit) in FLAGS {
        set_bit(&sock, bit, arg & flag as usize != 0);
    }
    let asynchronous = arg & libc::O_ASYNC as usize != 0;
    if listens {
        sigio::set_listener(&sock, asynchronous);
    } else {
        sigio::set(&sock, asynchronous);
    }
    0
}

fn set_bit(sock: &Sock, bit: u32, on: bool) {
    if on {
        sock.shared.file.fetch_or(bit, AcqRel);
    } else {
        sock.shared.file.fetch_and(!bit, AcqRel);
    }
}

/// `ioctl(2)`, its third argument whatever it is.
///
/// # Safety
/// As `ioctl`.
pub unsafe fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
    let Some(sock) = handle::ours(fd) else {
        if matches!(fd_table::get(fd).kind(), Kind::Internal | Kind::Pool) {
            return errno::fail(Errno(libc::EBADF));
        }
        if matches!(request, libc::FIOCLEX | libc::FIONCLEX) && tls::thread().is_vfork_child() {
            exec::tell_in_vfork_child();
        }
        // SAFETY: the program's own arguments.
        return unsafe { real::ioctl(fd, request, arg) };
    };
    // SAFETY: the program's own arguments.
    match unsafe { answer(&sock, request, arg) } {
        Some(result) => errno::into_libc(result.map(|()| 0)),
        // SAFETY: as above. An interface question or the like: any socket will do.
        None => unsafe { real::ioctl(fd, request, arg) },
    }
}

/// What we know ourselves; `None` is the kernel's to answer.
///
/// # Safety
/// As `ioctl`.
unsafe fn answer(sock: &Sock, request: c_ulong, arg: usize) -> Option<Sys<()>> {
    let listens = sock.entry.kind() == Kind::Listener;
    match request {
        libc::FIONBIO | libc::FIOASYNC => {
            // SAFETY: the program's own int.
            let on = match unsafe { user::fetch(arg as *const c_int) } {
                Ok(value) => value != 0,
                Err(error) => return Some(Err(error)),
            };
            if request == libc::FIOASYNC {
                if listens {
                    sigio::set_listener(sock, on);
                    return None;
                }
                sigio::set(sock, on);
                return Some(Ok(()));
            }
            set_bit(sock, file::NONBLOCK, on);
            // A listener's kernel half keeps step, unless it is kept from blocking.
            let held = sock.shared.file.load(Relaxed) & file::KERNEL_NONBLOCK != 0;
            if listens && !held { None } else { Some(Ok(())) }
        }
        libc::FIOCLEX | libc::FIONCLEX => {
            set_cloexec(sock.fd, sock.entry, request == libc::FIOCLEX);
            Some(Ok(()))
        }
        FIOSETOWN | SIOCSPGRP => {
            if !listens {
                sigio::claim(sock);
            }
            None
        }
        _ if listens => None,
        // No segment carries the time at which it came (socket(7)); what would be protocols' own, TCP has none of.
        SIOCGSTAMP | SIOCGSTAMPNS | SIOCGSTAMP_NEW | SIOCGSTAMPNS_NEW => Some(Err(Errno(libc::ENOENT))),
        SIOCPROTOPRIVATE..=SIOCPROTOPRIVATE_LAST => Some(Err(Errno(libc::ENOTTY))),
        // SAFETY: the program's own int.
        libc::FIONREAD => Some(unsafe { put(arg, recv::waiting(sock)) }),
        // SAFETY: as above.
        SIOCOUTQ | SIOCOUTQNSD => Some(unsafe { put(arg, send::queued(sock) as usize) }),
        // SAFETY: as above.
        SIOCATMARK => Some(unsafe { put(arg, usize::from(urgent::at_mark(sock))) }),
        _ => None,
    }
}

/// # Safety
/// `arg` is 0 or the address of an int.
unsafe fn put(arg: usize, value: usize) -> Sys<()> {
    // SAFETY: the caller's promise.
    unsafe { user::give(arg as *mut c_int, value.min(c_int::MAX as usize) as c_int) }
}
