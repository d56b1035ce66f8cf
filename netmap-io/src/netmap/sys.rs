//! `/dev/netmap`, and the seam above it.
//!
//! Everything of this crate that speaks netmap does so through a [`Handle`]: the module's, or that of the
//! [`provider`](crate::provider), which is another process's memory away from being one.
//!
//! Only system calls of our own: the process may itself run under the preload library.

use std::ffi::CStr;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::sys::{Mapping, own};

/// Whoever makes handles: the module, or something that does its work.
pub(crate) trait Module: Send + Sync {
    /// A handle that is bound to no rings yet.
    fn open(&self) -> io::Result<Box<dyn Handle>>;
}

/// An open `/dev/netmap`.
pub(crate) trait Handle: Send + Sync + Debug {
    /// ioctl(2).
    ///
    /// # Safety
    /// `argument` is what `request` takes: nothing, or the address of its structure, whose own addresses (body, options)
    /// are those of the structures that their kinds say, all of them ours to write until the call returns.
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()>;

    /// Maps the memory of the rings that the handle is bound to.
    fn map(&self, bytes: usize) -> io::Result<Mapping>;

    /// To sleep on: readable when a sync would show frames, which waiting has then done.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether the descriptor reports an error although nothing else does: no rings any more.
    fn in_error(&self) -> bool {
        let mut fds = [libc::pollfd { fd: self.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        crate::sys::poll(&mut fds, std::time::Duration::ZERO)
            && fds[0].revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
    }
}

/// The module of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

impl Module for Kernel {
    fn open(&self) -> io::Result<Box<dyn Handle>> {
        let path: &CStr = c"/dev/netmap";
        // SAFETY: reads the path, makes a descriptor.
        let fd = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC)
        };
        let fd = own(libc::c_int::try_from(fd).unwrap_or(-1))?;
        Ok(Box::new(Device(fd)))
    }
}

#[derive(Debug)]
struct Device(OwnedFd);

impl Handle for Device {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        // SAFETY: by the caller's contract.
        let result = unsafe { libc::syscall(libc::SYS_ioctl, self.0.as_raw_fd(), request, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn map(&self, bytes: usize) -> io::Result<Mapping> {
        Mapping::shared(self.0.as_fd(), 0, bytes)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
