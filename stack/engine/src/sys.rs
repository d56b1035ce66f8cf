//! System calls of the engine that std has no safe form for. All of the engine's raw calls are here.
#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_ptr_alignment,
    reason = "the kernel's interfaces mix signs; each cast here is of a value in both ranges"
)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU32;

use utcp_abi::message::FDS_MAX;

mod bound;

pub use bound::{Bound, bound, is_channel};

/// -1 becomes the errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of a descriptor that a system call just made.
fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A memfd of `len` bytes that can't shrink or grow any more; `frozen` also forbids new writable
/// mappings (ours, made before, stays writable).
pub fn memfd(name: &std::ffi::CStr, len: usize) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name and plain flags.
    let fd =
        owned(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    // SAFETY: no memory involved.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) })?;
    seal(&fd, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)?;
    Ok(fd)
}

/// Adds seals to a memfd.
pub fn seal(fd: &OwnedFd, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(())
}

/// Gives memory of a memfd back; it reads as zeros afterwards. A refusal costs memory alone.
pub fn punch(fd: &OwnedFd, offset: usize, len: usize) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory of ours involved.
    unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) };
}

/// Reads all of `into` from a file at `offset`.
///
/// # Errors
/// The system's, or that the file is shorter.
pub fn read_at(fd: &OwnedFd, into: &mut [u8], offset: usize) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is writable for its length.
        let count = unsafe {
            libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), (offset + done) as libc::off_t)
        };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping is not tied to a thread; what is done with its bytes is the user's protocol.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`, readable and writable, shared.
    pub fn new(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped. A core dump of the engine shall not hold gigabytes of holes.
        unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
        Ok(Self { base: base.cast(), len })
    }

    /// Where it starts.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range; its users hold the `Mapping` by Arc.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// An eventfd, non-blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory involved.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Rings an eventfd. A full counter is a rung bell already.
pub fn ring(fd: BorrowedFd<'_>) {
    let one = 1u64;
    // SAFETY: eight readable bytes.
    unsafe { libc::write(fd.as_raw_fd(), ptr::from_ref(&one).cast(), 8) };
}

/// What a program sleeps on in epoll, poll or select: an eventfd, or one end of a socket pair.
///
/// A program can make a write to its eventfd block: it shares the open file, so it can fill the counter and take
/// O_NONBLOCK away. A send can be told not to wait, whatever the file's mode: so a program of another user
/// must come with a socket.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
    is_socket: bool,
}

impl Bell {
    /// From what a program sent.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the kernel fills the structure before it is read.
        let mode = unsafe {
            let mut stat: libc::stat = mem::zeroed();
            check(libc::fstat(fd.as_raw_fd(), &raw mut stat))?;
            stat.st_mode
        };
        Ok(Self { fd, is_socket: mode & libc::S_IFMT == libc::S_IFSOCK })
    }

    /// Whether ringing it can never block.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.is_socket
    }

    /// Rings it. One that is full of rings has been rung.
    pub fn ring(&self) {
        if !self.is_socket {
            return ring(self.fd.as_fd());
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: one readable byte.
        unsafe { libc::send(self.fd.as_raw_fd(), c"".as_ptr().cast(), 1, flags) };
    }
}

/// Takes the count of an eventfd back to zero.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut count = 0u64;
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), ptr::from_mut(&mut count).cast(), 8) };
}

/// Wakes every thread, of any process, that sleeps on `word`.
pub fn futex_wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Asks for the cache line in which `of` begins, so that it is there when it is needed. A hint: nothing waits, and nothing
/// can go wrong with it.
#[inline]
pub fn prefetch<T>(of: Option<&T>) {
    if let Some(of) = of {
        prefetch_at(ptr::from_ref(of).cast());
    }
}

/// The same for the line at an address, whatever is there.
#[inline]
pub fn prefetch_at(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction never faults, whatever the address, and reads nothing that a program could see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for large pages in memory that is not touched yet; where there are none it stays as it is.
pub fn advise_large_pages(start: *mut u8, len: usize) {
    const LARGE: usize = 2 << 20;
    let skip = start.align_offset(LARGE);
    if let Some(whole) = len.checked_sub(skip).map(|len| len & !(LARGE - 1)).filter(|whole| *whole > 0) {
        // SAFETY: the advice changes no byte, and concerns whole pages of the caller's memory alone.
        unsafe { libc::madvise(start.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// The monotonic clock in nanoseconds: the one place where the engine asks for the time.
#[must_use]
pub fn now_ns() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: CLOCK_MONOTONIC always exists and fills the structure.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// `N` random bytes from the kernel.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: `N` writable bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if got == N as isize { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Lets another thread of this core run.
pub fn yield_now() {
    // SAFETY: no memory involved.
    unsafe { libc::sched_yield() };
}

/// Sleeps for `ns`, or until a signal.
pub fn nap(ns: u64) {
    let wait = libc::timespec { tv_sec: 0, tv_nsec: ns.min(999_999_999) as libc::c_long };
    // SAFETY: the time lives through the call, and nobody asks what is left.
    unsafe { libc::nanosleep(&raw const wait, std::ptr::null_mut()) };
}

/// Sleeps of this thread end when they should: the kernel adds 50 µs elsewhere, so as to end several at once (`PR_SET_TIMERSLACK`).
pub fn sleep_exactly() {
    // SAFETY: no memory involved.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Binds the calling thread to `core`.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set; CPU_SET checks its bound.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
    }
    Ok(())
}

/// Cores that this process may run on.
#[must_use]
pub fn cores() -> Vec<usize> {
    // SAFETY: the kernel fills the set; CPU_ISSET stays inside it.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &set)).collect()
    }
}

/// The robust list of the calling thread: one futex word that the kernel marks when the thread ends.
#[repr(C)]
struct RobustList {
    head: *mut RobustEntry,
    futex_offset: libc::c_long,
    pending: *mut RobustEntry,
}

#[repr(C)]
struct RobustEntry {
    next: *mut RobustEntry,
}

/// Makes `word` (which must hold our thread id | FUTEX_WAITERS) a robust futex of the calling thread:
/// at its end, however it comes, the kernel sets FUTEX_OWNER_DIED in it and wakes one sleeper.
pub fn mark_at_death(word: &AtomicU32) -> io::Result<()> {
    let list = Box::into_raw(Box::new(RobustList {
        head: ptr::null_mut(),
        futex_offset: 0,
        pending: ptr::null_mut(),
    }));
    let entry = Box::into_raw(Box::new(RobustEntry { next: list.cast() }));
    // SAFETY: both boxes were leaked on purpose: the kernel reads them when the thread ends. The list is
    // circular (entry → head), as it demands. Rust's runtime uses no robust mutexes in this thread.
    unsafe {
        (*list).head = entry;
        (*list).futex_offset = word.as_ptr() as libc::c_long - entry as libc::c_long;
        let result = libc::syscall(libc::SYS_set_robust_list, list, size_of::<RobustList>());
        check(result as libc::c_int)?;
    }
    Ok(())
}

/// Thread id of the caller.
#[must_use]
pub fn gettid() -> u32 {
    // SAFETY: no memory involved.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// A pair of connected, non-blocking unix stream sockets.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // They block: who inherits one may not expect otherwise, and our own calls say themselves that they don't wait.
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// A name in the unix socket namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixName {
    /// An abstract name: it belongs to the network namespace and vanishes with its socket.
    Abstract(String),
    /// A path.
    Path(std::path::PathBuf),
}

fn unix_address(name: &UnixName) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeroes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let (bytes, at) = match name {
        UnixName::Abstract(name) => (name.as_bytes(), 1),
        UnixName::Path(path) => (path.as_os_str().as_encoded_bytes(), 0),
    };
    if bytes.len() + 1 >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's name is too long"));
    }
    for (to, from) in address.sun_path[at..].iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, len as libc::socklen_t))
}

/// What the other end of a socket pair has not read, in whatever unit; 0: nothing.
pub fn unread(fd: BorrowedFd<'_>) -> u32 {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } < 0 { 0 } else { count as u32 }
}

/// A SOCK_SEQPACKET socket that listens at `name`.
pub fn listen_seqpacket(name: &UnixName) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory involved.
    let fd = owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    let (address, len) = unix_address(name)?;
    // SAFETY: an initialised address of `len` bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), len) })?;
    // SAFETY: no memory involved.
    check(unsafe { libc::listen(fd.as_raw_fd(), 128) })?;
    Ok(fd)
}

/// A blocking SOCK_SEQPACKET connection to `name`.
pub fn connect_seqpacket(name: &UnixName) -> io::Result<OwnedFd> {
    // SAFETY: no memory involved.
    let fd = owned(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) })?;
    let (address, len) = unix_address(name)?;
    // SAFETY: an initialised address of `len` bytes.
    check(unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(&address).cast(), len) })?;
    Ok(fd)
}

/// Accepts one connection, non-blocking.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for.
    owned(unsafe { libc::accept4(fd.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) })
}

/// An open file that stands for another one to come.
pub fn placeholder() -> io::Result<OwnedFd> {
    // SAFETY: a literal that ends in a zero.
    owned(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })
}

/// Who is at the other end of a unix socket: (pid, uid).
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // SAFETY: all zeroes are a valid ucred; the kernel fills at most `len` bytes.
    unsafe {
        let mut cred: libc::ucred = mem::zeroed();
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        check(libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut cred).cast(),
            &raw mut len,
        ))?;
        Ok((cred.pid.unsigned_abs(), cred.uid))
    }
}

const CONTROL_WORDS: usize = 48; // 384 bytes: room for FDS_MAX descriptors and the header, aligned.

/// Sends one message with descriptors.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    assert!(fds.len() <= FDS_MAX, "more descriptors than a message can carry");
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the header points at `iov` and `control`, which outlive the call; CMSG_* stay inside
    // `control`, whose length covers FDS_MAX descriptors.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            let len = size_of_val(fds) as u32;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(len) as usize;
            let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(len) as usize;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(cmsg), len as usize);
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        if libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Tells the other end of a socket that nothing more comes from us.
pub fn shut_down_writing(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: acts on a descriptor and touches no memory.
    if unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a call may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until there is something.
    Sleep,
    /// Never, whatever mode the descriptor is in: somebody else may have made it.
    Never,
}

/// Receives one message into `bytes` and the descriptors that came with it. `Ok(0)`: the other end is gone.
pub fn receive(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    wait: Wait,
) -> io::Result<usize> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send`; each descriptor in an SCM_RIGHTS message is ours from now on.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let flags = if wait == Wait::Never { libc::MSG_DONTWAIT } else { 0 };
        let got = libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | flags);
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let len = (*cmsg).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                for i in 0..len / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
        Ok(got.unsigned_abs())
    }
}

/// Gives a socket what it has room for.
pub fn give(fd: BorrowedFd<'_>, from: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the slice is readable.
    let sent = unsafe { libc::send(fd.as_raw_fd(), from.as_ptr().cast(), from.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether the other end of a pair is closed.
pub fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut list = [libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 }];
    poll(&mut list, Some(0));
    list[0].revents & libc::POLLHUP != 0
}

/// Gives the far end of a pair the abstract name `name` (without its leading zero), which the near end's getpeername shows.
pub fn name_far_end(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    // SAFETY: an all-zero sockaddr_un is valid.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().skip(1).zip(name) {
        *to = *from as libc::c_char;
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len().min(107);
    // SAFETY: an address of at least that length.
    check(unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), len as libc::socklen_t) })?;
    Ok(())
}

/// Marks one end of a pair, so that whoever finds it among descriptors that it got from elsewhere knows what it is.
pub fn mark_stand(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mark = utcp_abi::message::STAND_MARK;
    let (at, len) = (ptr::from_ref(&mark).cast(), size_of_val(&mark) as libc::socklen_t);
    // SAFETY: an option value and its length.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, at, len) })?;
    Ok(())
}

/// Raises the soft limit of open descriptors to the hard one: the engine holds an end per socket.
pub fn raise_descriptor_limit() {
    // SAFETY: the structure is filled before it is used.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Effective user id.
#[must_use]
pub fn euid() -> u32 {
    // SAFETY: no memory involved.
    unsafe { libc::geteuid() }
}

/// Inode of an open file.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: the kernel fills the structure before it is read.
    unsafe {
        let mut stat: libc::stat = mem::zeroed();
        check(libc::fstat(fd.as_raw_fd(), &raw mut stat))?;
        Ok(stat.st_ino)
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory involved.
        Ok(Self(owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?))
    }

    /// Watches `fd` for `events`, told apart by `data`.
    pub fn add(&self, fd: BorrowedFd<'_>, events: i32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: an initialised event.
        check(unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }

    /// Watches a port's descriptor. It stays open as long as the port, which the caller keeps as long as this.
    pub fn add_port(&self, fd: RawFd, events: i32) -> io::Result<()> {
        // SAFETY: borrowed for this call, in which it is open by the caller's promise.
        self.add(unsafe { BorrowedFd::borrow_raw(fd) }, events, 0)
    }

    /// Watches a port's descriptor no more.
    pub fn remove_port(&self, fd: RawFd) {
        // SAFETY: the kernel only looks the number up; no memory is touched.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, ptr::null_mut()) };
    }

    /// Watches `fd` for `events` from now on.
    pub fn change(&self, fd: BorrowedFd<'_>, events: i32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: an initialised event.
        check(unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_MOD, fd.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }

    /// Watches `fd` no more.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: no memory involved. A descriptor that is not watched costs an error that means nothing.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), ptr::null_mut()) };
    }

    /// Sleeps until a watched descriptor has news, for `timeout_ns` at most (`None`: for ever). Which one does
    /// not matter to the caller, who looks at everything.
    pub fn sleep(&self, timeout_ns: Option<u64>) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let time = timeout_ns.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        });
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (room, count) = (events.as_mut_ptr(), events.len());
        let none = ptr::null::<libc::sigset_t>();
        // SAFETY: room for as many events as we say; the time outlives the call; no signal mask.
        unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, self.0.as_raw_fd(), room, count, time, none, 8usize);
        }
    }

    /// Waits up to `timeout_ms` (-1: for ever); calls `each` with data and events.
    pub fn wait(&self, timeout_ms: i32, mut each: impl FnMut(u64, u32)) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 128];
        // SAFETY: room for as many events as we say.
        let got = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, timeout_ms)
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &events[..got.unsigned_abs() as usize] {
            each(event.u64, event.events);
        }
        Ok(())
    }
}

/// Tells whoever started us, and waits at the other end of `fd`, that we are ready (`b"1"`) or why we can't be. Closes
/// it; a number that is no descriptor of ours tells nobody.
pub fn tell_starter(fd: RawFd, words: &[u8]) {
    // SAFETY: whoever started us gave us this descriptor for these words alone; nobody else uses it.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let _ = io::Write::write_all(&mut file, words);
}

/// Blocks SIGTERM and SIGINT in this and all later threads and returns a descriptor that tells of them.
pub fn termination() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; the calls take it by pointer.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        owned(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Sleeps on descriptors, for `timeout_ns` at most (`None`: for ever).
pub fn poll(fds: &mut [libc::pollfd], timeout_ns: Option<u64>) {
    let time = timeout_ns.map(|ns| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as libc::c_long,
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the slice gives pointer and length; the time outlives the call.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, time, ptr::null()) };
}

/// Sends one message, waiting up to five seconds for a reader that dawdles.
pub fn send_waiting(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    loop {
        match send(fd, bytes, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut wait = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
                poll(&mut wait, Some(5_000_000_000));
                if wait[0].revents == 0 {
                    return Err(error);
                }
            }
            other => return other,
        }
    }
}
