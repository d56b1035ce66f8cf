//! What this kernel can do, asked without doing anything; for `utcp doctor`.

use std::io;

/// Whether a thread can sleep on several words at a time (Linux 5.16 and later, unless a filter forbids it).
///
/// # Errors
/// `ENOSYS`: the kernel is older. `EPERM`: a seccomp filter of the container's runtime refuses the call.
pub fn futex_waitv() -> io::Result<()> {
    // SAFETY: no words are given, so none are looked at; a kernel that has the call answers EINVAL.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0) };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() != Some(libc::EINVAL) { Err(error) } else { Ok(()) }
}
