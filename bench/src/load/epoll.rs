//! epoll, as thin as it gets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// libc has the bits as `int`, and the structure as `uint32_t`.
#[allow(clippy::cast_sign_loss, reason = "bits")]
const fn bits(of: i32) -> u32 {
    of as u32
}

/// Readable or at its end.
pub const IN: u32 = bits(libc::EPOLLIN);
/// Writable.
pub const OUT: u32 = bits(libc::EPOLLOUT);
/// Edge-triggered.
pub const EDGE: u32 = bits(libc::EPOLLET);
/// Failed.
pub const ERROR: u32 = bits(libc::EPOLLERR | libc::EPOLLHUP);

const BATCH: usize = 256;

/// An epoll set and room for what it says.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed; the new descriptor is ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; BATCH] })
    }

    pub fn add(&self, fd: RawFd, interest: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    pub fn modify(&self, fd: RawFd, interest: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, token)
    }

    fn control(&self, operation: i32, fd: RawFd, interest: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: `event` lives through the call.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// `(token, readiness)` of what is ready; nothing after `timeout_ms`.
    pub fn wait(&mut self, timeout_ms: i32) -> io::Result<impl Iterator<Item = (u64, u32)> + '_> {
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: the vector has that many elements.
        let count =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, timeout_ms) };
        self.found(count)
    }

    /// As [`Self::wait`], to the nanosecond (Linux 5.11).
    pub fn wait_for(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = (u64, u32)> + '_> {
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let (set, events) = (self.fd.as_raw_fd(), self.events.as_mut_ptr());
        // SAFETY: the vector has that many elements, the time lives through the call, and no signal mask is given.
        let count = unsafe { libc::epoll_pwait2(set, events, room, &raw const timeout, std::ptr::null()) };
        self.found(count)
    }

    fn found(&self, count: i32) -> io::Result<impl Iterator<Item = (u64, u32)> + '_> {
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error => return Err(error),
            },
        };
        Ok(self.events[..count].iter().map(|event| (event.u64, event.events)))
    }
}

/// Waits end when they should, not up to 50 µs later (PR_SET_TIMERSLACK, prctl(2)).
pub fn wake_in_time() {
    let nearest_ns: libc::c_ulong = 1;
    // SAFETY: no memory is passed. If it is refused, messages begin late, and their latency says so.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nearest_ns) };
}

/// Begins to connect without waiting.
pub fn connect(to: std::net::SocketAddr) -> io::Result<std::net::TcpStream> {
    let std::net::SocketAddr::V4(to) = to else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only IPv4 addresses"));
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    stream.set_nodelay(true)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address lives through the call, and its size is told.
    let result = unsafe {
        libc::connect(fd, (&raw const address).cast(), size_of::<libc::sockaddr_in>() as libc::socklen_t)
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    Ok(stream)
}
