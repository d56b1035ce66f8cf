//! Signals of what happens to a socket: O_ASYNC, F_SETOWN and its kin (fcntl(2)).
//!
//! The kernel sends them: the descriptor under a utcp socket is one of its own, with an owner, a signal and O_ASYNC as the
//! program said, and the engine sends a byte over it when something happens. So the kernel is the judge of who may be
//! signalled, by the credentials of whoever called F_SETOWN, and `si_fd` and `si_band` are what it makes them.
//!
//! The bytes mean nothing and are thrown away when the program receives. Before a socket is given to the relay, whose bytes do mean
//! something, the engine is told to send no more, and the last are taken out.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use utcp_abi::message::{Kind as Ask, Message};
use utcp_abi::socket::file;

use crate::handle::Sock;
use crate::sys::{self, at, at_mut, call};
use crate::{lane, listen, relayed};

const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;
const F_SETOWN_EX: c_int = 15;
const F_GETOWN_EX: c_int = 16;

/// Whether an `fcntl` says who gets signals, or which.
pub fn is_about(command: c_int) -> bool {
    matches!(command, libc::F_SETOWN | F_SETSIG | F_SETOWN_EX)
}

/// The descriptor under `sock` has an owner or a signal of its own: no other socket may get it.
pub fn claim(sock: &Sock) {
    sock.shared.file.fetch_or(file::SIGNALS | file::SHARED, AcqRel);
}

/// O_ASYNC of a socket.
pub fn set(sock: &Sock, on: bool) {
    if on == (sock.shared.file.load(Acquire) & file::ASYNC != 0) {
        return;
    }
    claim(sock);
    set_flag(sock.fd, on);
    if on {
        sock.shared.file.fetch_or(file::ASYNC, AcqRel);
    } else {
        sock.shared.file.fetch_and(!file::ASYNC, AcqRel);
    }
    // News that goes past the engine has to pass it from now on.
    lane::refresh(sock);
}

fn set_flag(fd: c_int, on: bool) {
    if let Ok(flags) = sys::fcntl(fd, libc::F_GETFL, 0) {
        let flags = if on { flags | libc::O_ASYNC } else { flags & !libc::O_ASYNC };
        let _ = sys::fcntl(fd, libc::F_SETFL, flags as usize);
    }
}

/// A listener with O_ASYNC is the kernel's alone: nothing can make its descriptor signal a connection of ours.
pub fn set_listener(listener: &Sock, on: bool) {
    if on {
        listen::withdraw(listener, listen::SIGNALS);
    }
}

/// Throws away the bytes that made signals.
#[inline]
pub fn hear(sock: &Sock) {
    if sock.shared.file.load(Relaxed) & file::ASYNC != 0 {
        throw_away(sock);
    }
}

#[cold]
fn throw_away(sock: &Sock) {
    // Whoever stops the signals waits for us, so that what we take was sent before.
    let before = sock.shared.file.fetch_or(file::HEARING, AcqRel);
    if before & file::HEARING != 0 {
        return; // Another thread does it.
    }
    if sock.shared.file.load(Acquire) & file::ASYNC != 0 && !relayed::is_moved(sock) {
        drain(sock.fd);
    }
    sock.shared.file.fetch_and(!file::HEARING, AcqRel);
}

/// How long a thread may be in the middle of throwing bytes away, milliseconds; one that died there is not waited for.
const PATIENCE_MS: u32 = 200;

fn drain(fd: c_int) {
    let mut bytes = [0u8; 512];
    while call!(libc::SYS_recvfrom, fd, bytes.as_mut_ptr(), bytes.len(), libc::MSG_DONTWAIT, 0, 0)
        == Ok(bytes.len())
    {}
}

/// No byte of ours may be left in, or come into, the descriptor under `sock`: it is about to be relayed.
pub fn stop(sock: &Sock) {
    if sock.shared.file.load(Acquire) & file::ASYNC == 0 || relayed::is_moved(sock) {
        return;
    }
    sock.shared.file.fetch_and(!file::ASYNC, AcqRel);
    for _ in 0..PATIENCE_MS {
        if sock.shared.file.load(Acquire) & file::HEARING == 0 {
            break;
        }
        sys::nap_ms(1);
    }
    // The engine's thread that sends them looks at the flag first, and answers this when it does not send any.
    let mut message = Message::new(Ask::ListenCheck);
    message.a = u64::from(sock.slot());
    let _ = sock.att.channel().ask(&message, None);
    drain(sock.fd);
}

/// Who gets signals of a descriptor, and which.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    kind: c_int,
    pid: c_int,
}

/// The signals of a socket that gets another descriptor under its number.
#[derive(Debug, Clone, Copy)]
pub struct Signals {
    owner: Owner,
    signal: c_int,
    on: bool,
}

impl Signals {
    /// Those of `sock`, if it has any.
    pub fn of(sock: &Sock) -> Option<Self> {
        let kept = sock.shared.file.load(Acquire);
        if kept & (file::SIGNALS | file::ASYNC) == 0 { None } else { Self::read(sock.fd) }
    }

    /// Those of the kernel's socket `fd`, if it has any.
    pub fn of_kernel(fd: c_int) -> Option<Self> {
        Self::read(fd).filter(|found| found.on || found.signal != 0 || found.owner.pid != 0)
    }

    fn read(fd: c_int) -> Option<Self> {
        let mut owner = Owner::default();
        call!(libc::SYS_fcntl, fd, F_GETOWN_EX, at_mut(&mut owner)).ok()?;
        let signal = sys::fcntl(fd, F_GETSIG, 0).ok()?;
        let on = sys::fcntl(fd, libc::F_GETFL, 0).ok()? & libc::O_ASYNC != 0;
        Some(Self { owner, signal, on })
    }

    /// Gives them to the descriptor `fd`.
    pub fn put(&self, fd: c_int) {
        if self.owner.pid != 0 {
            let _ = call!(libc::SYS_fcntl, fd, F_SETOWN_EX, at(&self.owner));
        }
        let _ = sys::fcntl(fd, F_SETSIG, self.signal as usize);
        set_flag(fd, self.on);
    }

    /// Gives them to `sock`.
    pub fn put_on(&self, sock: &Sock) {
        claim(sock);
        self.put(sock.fd);
        if self.on {
            sock.shared.file.fetch_or(file::ASYNC, AcqRel);
        }
    }
}
