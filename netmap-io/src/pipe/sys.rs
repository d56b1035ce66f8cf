//! The system calls of a pipe: sealed memory, doorbells, and descriptors passed between processes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::{check, own};

/// A file of `bytes` zeroes that nobody can shrink, so that no mapping of it can fault.
pub(crate) fn memory_file(bytes: usize) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: reads the name, makes a descriptor.
    let file = own(unsafe { libc::memfd_create(c"utcp-pipe".as_ptr(), flags) })?;
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: both act on our descriptor and touch no memory.
    unsafe {
        check(libc::ftruncate(file.as_raw_fd(), bytes))?;
        check(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS))?;
    }
    Ok(file)
}

const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Size of a file that someone else gave us; `None` unless it is sealed against shrinking.
pub(super) fn sealed_size(file: &OwnedFd) -> io::Result<Option<usize>> {
    // SAFETY: asks about our descriptor and touches no memory.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Ok(None);
    }
    // SAFETY: zeroes are a value of every member of `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure that we own.
    check(unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) })?;
    Ok(usize::try_from(stat.st_size).ok())
}

/// The two doorbells of a pipe.
pub(crate) fn doorbells() -> io::Result<[OwnedFd; 2]> {
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
    // SAFETY: makes a descriptor, touches no memory.
    let bell = || own(unsafe { libc::eventfd(0, flags) });
    Ok([bell()?, bell()?])
}

/// Wakes whoever sleeps on a doorbell.
pub(crate) fn ring(bell: &OwnedFd) {
    ring_fd(bell.as_raw_fd());
}

/// [`ring`] by number.
pub(super) fn ring_fd(bell: libc::c_int) {
    let one = 1_u64;
    // SAFETY: the kernel reads eight bytes of a value that lives until the call returns. It can fail only
    // when the doorbell is rung already.
    let _ = unsafe { libc::write(bell, (&raw const one).cast(), size_of_val(&one)) };
}

/// Takes a ring back.
pub(crate) fn clear(bell: &OwnedFd) {
    let mut count = 0_u64;
    // SAFETY: the kernel writes eight bytes to a value that lives until the call returns. It can fail only
    // when the doorbell was not rung.
    let _ = unsafe { libc::read(bell.as_raw_fd(), (&raw mut count).cast(), size_of_val(&count)) };
}

/// Two joined sockets, by which each end sees the other leave.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: fills the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// Whether the other end of a socket, which never sends anything, was closed.
pub(super) fn hung_up(socket: &OwnedFd) -> bool {
    let mut byte = 0_u8;
    // SAFETY: the kernel writes at most one byte to a value that lives until the call returns.
    let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) };
    got == 0 || (got < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock)
}

/// Room for a control message with up to ten descriptors, aligned as the kernel wants.
#[repr(C, align(8))]
struct ControlBuffer([u8; 64]);

/// Builds the message around one byte and a control buffer, and hands it to `call`.
fn with_message<const N: usize, T>(
    control: &mut ControlBuffer,
    call: impl FnOnce(&mut libc::msghdr) -> T,
) -> T {
    const { assert!(N <= 10, "the control buffer has room for ten descriptors") };
    let mut byte = 0_u8;
    let mut piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: zeroes are a value of every member of `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control.0).cast();
    message.msg_controllen = control_space::<N>();
    call(&mut message)
}

#[allow(clippy::cast_possible_truncation, reason = "a few bytes")]
fn control_space<const N: usize>() -> usize {
    // SAFETY: arithmetic only.
    unsafe { libc::CMSG_SPACE((N * size_of::<libc::c_int>()) as libc::c_uint) as usize }
}

/// Passes descriptors to the process at the other end of `socket`.
pub(crate) fn send_descriptors<const N: usize>(socket: &impl AsRawFd, fds: [&OwnedFd; N]) -> io::Result<()> {
    let mut control = ControlBuffer([0; 64]);
    let numbers = fds.map(AsRawFd::as_raw_fd);
    with_message::<N, _>(&mut control, |message| {
        // SAFETY: the control buffer is aligned and longer than CMSG_SPACE, so the first header and the
        // descriptors behind it lie inside.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(u32::try_from(size_of_val(&numbers)).unwrap_or(0)) as usize;
            libc::CMSG_DATA(header).cast::<[libc::c_int; N]>().write_unaligned(numbers);
        }
        // SAFETY: every pointer in the message is valid until the call returns.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), message, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

/// Receives what [`send_descriptors`] sent.
pub(crate) fn receive_descriptors<const N: usize>(socket: &impl AsRawFd) -> io::Result<[OwnedFd; N]> {
    let mut control = ControlBuffer([0; 64]);
    with_message::<N, _>(&mut control, |message| {
        // SAFETY: every pointer in the message is valid until the call returns.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel filled the control buffer up to `msg_controllen`; the header is checked before
        // its data is read, and each descriptor in it is a new one that nobody else owns.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            let wanted = libc::CMSG_LEN(u32::try_from(N * size_of::<libc::c_int>()).unwrap_or(0)) as usize;
            if got == 0
                || header.is_null()
                || (*header).cmsg_type != libc::SCM_RIGHTS
                || (*header).cmsg_len != wanted
            {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the other end sent no descriptors"));
            }
            let numbers = libc::CMSG_DATA(header).cast::<[libc::c_int; N]>().read_unaligned();
            Ok(numbers.map(|fd| OwnedFd::from_raw_fd(fd)))
        }
    })
}

/// The user whose files this process makes.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: has no arguments and can't fail.
    unsafe { libc::geteuid() }
}

/// The user at the other end of a socket, as it was when they were joined.
pub(crate) fn peer_user(socket: &impl AsRawFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes to a structure that we own.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    })?;
    Ok(peer.uid)
}
