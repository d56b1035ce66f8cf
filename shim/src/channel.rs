//! The control channel to the engine: one request, one reply, over a SOCK_SEQPACKET socket.
//!
//! Only for setting something up, so it may cost system calls, and takes two more to keep signals
//! away while it is held: a handler that leaves by `longjmp` would leave it held for ever.
//!
//! A forked child must not write on its parent's channel (the replies would mix). At its first need
//! it makes a socket pair, sends one end over the inherited channel – one message, so it can't
//! tear – and talks over the other: no path to open and no permission to ask for, after chroot and setuid too.

use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Release};
use core::sync::atomic::{AtomicI32, AtomicU32};

use utcp_abi::arbiter::{Arbiter, Busy};
use utcp_abi::message::{FDS_MAX, Kind, Message, Reply};

use crate::sys::{self, Errno, Sys, at, at_mut, call};
use crate::{fd_table, process, tls};

/// How long the engine may take to answer.
const PATIENCE_S: i64 = 5;
/// Room for the control message of [`FDS_MAX`] descriptors, in words.
const CONTROL_WORDS: usize = 2 + FDS_MAX / 2;
const CONTROL_HEADER: usize = 16;

/// The descriptors that came with a reply.
#[derive(Debug)]
pub struct Fds {
    list: [c_int; FDS_MAX],
    count: usize,
}

impl Fds {
    /// All of them.
    pub fn as_slice(&self) -> &[c_int] {
        self.list.get(..self.count).unwrap_or_default()
    }

    /// Closes them: the reply was not what it should be.
    pub fn close(&self) {
        for fd in self.as_slice() {
            let _ = sys::close(*fd);
        }
    }
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    fd: AtomicI32,
    /// Process that may use it.
    pid: AtomicU32,
    arbiter: Word,
}

/// An arbiter in a static: the contract's type has no const constructor, but all zero bytes are a free one.
#[repr(transparent)]
#[derive(Debug)]
pub struct Word(AtomicU32);

impl Word {
    /// A free one.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn arbiter(&self) -> &Arbiter {
        // SAFETY: `Arbiter` is a transparent AtomicU32, as is this.
        unsafe { &*core::ptr::from_ref(&self.0).cast::<Arbiter>() }
    }

    /// Takes it, waiting for its owner if need be; `None` if we are a signal handler of the owner.
    pub fn take(&self) -> Option<Held<'_>> {
        let tid = tls::thread().tid();
        for round in 0u32.. {
            match self.arbiter().try_take(tid) {
                Ok(()) => return Some(Held(self)),
                Err(Busy::Nested) => return None,
                Err(Busy::Other(owner)) => {
                    if round % 64 == 63 && !sys::thread_exists(owner) && self.arbiter().take_over(owner, tid)
                    {
                        return Some(Held(self));
                    }
                    sys::sched_yield();
                }
            }
        }
        None
    }

    /// Whoever held it was a thread of the parent process.
    pub fn forked(&self) {
        self.arbiter().give();
    }
}

/// A held [`Word`]; dropping it gives it back.
#[derive(Debug)]
pub struct Held<'a>(&'a Word);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.arbiter().give();
    }
}

/// Keeps signals from the calling thread until dropped.
#[derive(Debug)]
pub struct Quiet {
    before: u64,
}

impl Quiet {
    /// Blocks every signal.
    pub fn new() -> Self {
        let (all, mut before) = (u64::MAX, 0u64);
        let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, at(&all), at_mut(&mut before), 8);
        Self { before }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, at(&self.before), 0, 8);
    }
}

impl Channel {
    /// No channel yet.
    pub const fn new() -> Self {
        Self { fd: AtomicI32::new(-1), pid: AtomicU32::new(0), arbiter: Word::new() }
    }

    /// Uses `fd`, a connected socket, from now on.
    pub fn open(&self, fd: c_int) {
        set_patience(fd);
        self.fd.store(fd, Release);
        self.pid.store(process::pid(), Release);
    }

    /// The descriptor, for those who wait for the engine's end.
    pub fn fd(&self) -> c_int {
        self.fd.load(Acquire)
    }

    /// Where its number is kept.
    pub fn number(&self) -> &AtomicI32 {
        &self.fd
    }

    /// In the child of a fork.
    pub fn forked(&self) {
        self.arbiter.forked();
    }

    /// The channel is closed or useless: requests fail from now on.
    pub fn abandon(&self) {
        let fd = self.fd.swap(-1, Release);
        if fd >= 0 && self.pid.load(Acquire) == process::pid() {
            // Kept open, and its number hidden: the program's epoll sets may have it as a member.
            let _ = call!(libc::SYS_shutdown, fd, libc::SHUT_RDWR);
        }
    }

    /// A forked child's own channel, if it has none yet.
    fn ensure_own(&self) -> Sys<c_int> {
        let fd = self.fd();
        if fd < 0 {
            return Err(Errno(libc::ECONNRESET));
        }
        if self.pid.load(Acquire) == process::pid() {
            return Ok(fd);
        }
        let [ours, theirs] = sys::socketpair(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC)?;
        let mut message = Message::new(Kind::Adopt);
        message.b = u64::from(process::pid());
        message.name = name();
        let sent = send(fd, &message, Some(theirs));
        let _ = sys::close(theirs);
        if let Err(errno) = sent {
            let _ = sys::close(ours);
            return Err(errno);
        }
        let ours = hide(ours);
        self.open(ours);
        // The inherited one is the parent's: only our number for it goes.
        fd_table::set(fd, fd_table::Entry::KERNEL);
        let _ = sys::close(fd);
        Ok(ours)
    }

    /// Gives a forked process its own channel now, if it lacks one.
    pub fn own_fd(&self) -> Sys<c_int> {
        if self.pid.load(Acquire) == process::pid() {
            return Ok(self.fd());
        }
        let _quiet = Quiet::new();
        let _held = self.arbiter.take().ok_or(Errno(libc::EAGAIN))?;
        self.ensure_own()
    }

    /// Sends `message`, and `fd` with it, and waits for the reply and its descriptors.
    pub fn request(&self, message: &Message, fd: Option<c_int>) -> Sys<(Reply, Fds)> {
        let _quiet = Quiet::new();
        let _held = self.arbiter.take().ok_or(Errno(libc::EAGAIN))?;
        let channel = self.ensure_own()?;
        let answer = send(channel, message, fd).and_then(|()| receive(channel));
        if answer.is_err() {
            self.abandon(); // A late reply would be taken for the next request's.
        }
        answer
    }

    /// As [`Channel::request`], but an error in the reply is an error, and no descriptors are wanted.
    pub fn ask(&self, message: &Message, fd: Option<c_int>) -> Sys<Reply> {
        let (reply, fds) = self.request(message, fd)?;
        fds.close();
        if reply.error == 0 { Ok(reply) } else { Err(Errno(reply.error)) }
    }
}

/// The program's name for the engine's lists.
pub fn name() -> [u8; 16] {
    let mut name = [0u8; 16];
    let _ = call!(libc::SYS_prctl, libc::PR_GET_NAME, at_mut(&mut name));
    name
}

/// Bounds how long `fd` may block.
pub fn set_patience(fd: c_int) {
    let limit = libc::timeval { tv_sec: PATIENCE_S, tv_usec: 0 };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, option, &limit);
    }
}

/// Moves `fd` to a high number, out of the program's way, and hides it from the program.
pub fn hide(fd: c_int) -> c_int {
    let mut limit = [0u64; 2];
    let _ = call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, at_mut(&mut limit));
    let [soft, _] = limit;
    let top = soft.min(fd_table::NUMBERS as u64);
    for below in [64, 512, 4096] {
        let from = top.saturating_sub(below).max(3);
        if let Ok(high) = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, from as usize) {
            let _ = sys::close(fd);
            fd_table::set(high, fd_table::Entry::new(fd_table::Kind::Internal, 0, 0, 0));
            return high;
        }
    }
    fd_table::set(fd, fd_table::Entry::new(fd_table::Kind::Internal, 0, 0, 0));
    fd
}

fn empty_header() -> libc::msghdr {
    // SAFETY: zero bytes are a valid msghdr, with every pointer null.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Sends one message, and a descriptor with it.
pub fn send(channel: c_int, message: &Message, fd: Option<c_int>) -> Sys<()> {
    let bytes = message.as_bytes();
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // A control message by hand: length (8 bytes), level and type (4 each), the descriptor.
    let length = (CONTROL_HEADER + size_of::<c_int>()) as u64;
    let kind = (libc::SOL_SOCKET as u64) | (libc::SCM_RIGHTS as u64) << 32;
    let mut control = [length, kind, u64::from(fd.unwrap_or(0) as u32)];
    let mut header = empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if fd.is_some() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
    }
    let sent = call!(libc::SYS_sendmsg, channel, at(&header), libc::MSG_NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno(libc::EIO)) }
}

/// Waits for one reply.
pub fn receive(channel: c_int) -> Sys<(Reply, Fds)> {
    let mut bytes = [0u8; size_of::<Reply>()];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_WORDS];
    let mut header = empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let len = loop {
        match call!(libc::SYS_recvmsg, channel, at_mut(&mut header), libc::MSG_CMSG_CLOEXEC) {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(len) => break len,
        }
    };
    let fds = descriptors(&control, header.msg_controllen);
    if len == 0 {
        return Err(Errno(libc::ECONNRESET));
    }
    match Reply::from_bytes(bytes.get(..len).unwrap_or_default()) {
        Some(reply) => Ok((reply, fds)),
        None => {
            fds.close();
            Err(Errno(libc::EPROTO))
        }
    }
}

/// The descriptors in a received control buffer of `len` bytes: the kernel puts them into one message.
fn descriptors(control: &[u64; CONTROL_WORDS], len: usize) -> Fds {
    let mut fds = Fds { list: [-1; FDS_MAX], count: 0 };
    let [length, kind, rest @ ..] = control;
    let expected = (libc::SOL_SOCKET as u64) | (libc::SCM_RIGHTS as u64) << 32;
    if len < CONTROL_HEADER || *kind != expected {
        return fds;
    }
    fds.count = ((*length as usize).saturating_sub(CONTROL_HEADER) / size_of::<c_int>()).min(FDS_MAX);
    for (at, fd) in fds.list.iter_mut().enumerate().take(fds.count) {
        let word = rest.get(at / 2).copied().unwrap_or(u64::MAX);
        *fd = (word >> (at % 2 * 32)) as u32 as c_int;
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_cross() {
        let [a, b] = sys::socketpair(libc::SOCK_SEQPACKET).expect("pair");
        send(a, &Message::new(Kind::Adopt), Some(2)).expect("send");
        let mut bytes = [0u8; 128];
        assert_eq!(sys::read(b, &mut bytes), Ok(128));
        assert!(Message::from_bytes(&bytes).is_some_and(|m| m.kind == Kind::Adopt as u32));
        let reply = Reply { a: 7, ..Reply::default() };
        sys::write(b, reply.as_bytes()).expect("write");
        let (got, fds) = receive(a).expect("reply");
        assert_eq!((got.a, fds.as_slice().len()), (7, 0));
        let control = {
            let mut words = [0u64; CONTROL_WORDS];
            words[0] = 16 + 12;
            words[1] = 1 | 1 << 32;
            words[2] = 5 | 6 << 32;
            words[3] = 7;
            words
        };
        assert_eq!(descriptors(&control, 32).as_slice(), [5, 6, 7]);
        assert_eq!(descriptors(&control, 0).as_slice(), [0; 0]);
        sys::close(a).expect("close");
        assert_eq!(receive(b).map(|_| ()), Err(Errno(libc::ECONNRESET)));
    }

    #[test]
    fn the_arbiter_is_given_back() {
        let word = Word::new();
        {
            let _held = word.take().expect("free");
            assert!(word.take().is_none(), "nested");
        }
        assert!(word.take().is_some());
    }
}
