//! Control data of messages (cmsg(3)): read from what a program sends, written where it receives.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;

use libc::{cmsghdr, msghdr};

use crate::sys::{self, Errno, Sys};
use crate::user;

/// Control data is made of pieces of this alignment.
const ALIGN: usize = size_of::<usize>();
/// More than that a kernel does not take (`net.core.optmem_max`).
const CONTROL_MAX: usize = 1 << 17;

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Looks whether what a program sends along can be read.
///
/// # Errors
/// EFAULT, ENOBUFS.
pub fn probe(header: &msghdr) -> Sys<()> {
    if header.msg_controllen > CONTROL_MAX {
        return Err(Errno(libc::ENOBUFS));
    }
    user::probe(header.msg_control.cast(), header.msg_controllen)
}

/// Looks at what a program sends along, of which [`probe`] had nothing to say, as Linux does for a TCP socket: it must be well made and known, and
/// changes nothing here.
///
/// # Errors
/// EINVAL, EPERM, EFAULT.
pub fn check(header: &msghdr) -> Sys<()> {
    let total = header.msg_controllen;
    let start: *const u8 = header.msg_control.cast();
    let mut at = 0usize;
    while at.saturating_add(size_of::<cmsghdr>()) <= total {
        let mut one = MaybeUninit::<cmsghdr>::uninit();
        // SAFETY: inside what was looked at; any bytes are a cmsghdr.
        let one = unsafe {
            user::copy_in(start.wrapping_add(at), one.as_mut_ptr().cast(), size_of::<cmsghdr>())?;
            one.assume_init()
        };
        let len = one.cmsg_len as usize;
        if len < size_of::<cmsghdr>() || len > total.wrapping_sub(at) {
            return Err(Errno(libc::EINVAL));
        }
        check_one(&one, len.wrapping_sub(size_of::<cmsghdr>()))?;
        at = at.saturating_add(aligned(len));
    }
    Ok(())
}

/// Linux' sock_cmsg_send: other levels are not looked at.
fn check_one(one: &cmsghdr, bytes: usize) -> Sys<()> {
    if one.cmsg_level != libc::SOL_SOCKET {
        return Ok(());
    }
    match one.cmsg_type {
        libc::SCM_RIGHTS | libc::SCM_CREDENTIALS => Ok(()),
        libc::SO_MARK if bytes == size_of::<u32>() && sys::geteuid() != 0 => Err(Errno(libc::EPERM)),
        libc::SO_TIMESTAMPING | libc::SO_MARK | libc::SO_PRIORITY if bytes == size_of::<u32>() => Ok(()),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Where a program wants control data.
pub struct Writer {
    place: *mut u8,
    room: usize,
    written: usize,
    flags: c_int,
}

impl Writer {
    /// For a message that is received into `header`.
    pub fn new(header: &msghdr) -> Self {
        Self { place: header.msg_control.cast(), room: header.msg_controllen, written: 0, flags: 0 }
    }

    /// Writes one piece; what has no room is cut, and the flags say so.
    ///
    /// # Errors
    /// EFAULT.
    pub fn put<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) -> Sys<()> {
        let left = self.room.saturating_sub(self.written);
        if self.place.is_null() || left < size_of::<cmsghdr>() {
            self.flags |= libc::MSG_CTRUNC;
            return Ok(());
        }
        let whole = size_of::<cmsghdr>().wrapping_add(size_of::<T>());
        let len = whole.min(left);
        if len < whole {
            self.flags |= libc::MSG_CTRUNC;
        }
        // SAFETY: zero bytes are a valid cmsghdr.
        let mut one: cmsghdr = unsafe { core::mem::zeroed() };
        (one.cmsg_level, one.cmsg_type) = (level, kind);
        one.cmsg_len = len as _;
        let to = self.place.wrapping_add(self.written);
        let data = to.wrapping_add(size_of::<cmsghdr>());
        // SAFETY: the program's own buffer, of which so much is left.
        unsafe {
            user::copy_out(core::ptr::from_ref(&one).cast(), to, size_of::<cmsghdr>())?;
            let value: *const c_void = core::ptr::from_ref(&value).cast();
            user::copy_out(value.cast(), data, len.wrapping_sub(size_of::<cmsghdr>()))?;
        }
        self.written = self.written.saturating_add(aligned(len).min(left));
        Ok(())
    }

    /// Bytes written, padding included.
    pub fn written<T: TryFrom<usize> + Default>(&self) -> T {
        T::try_from(self.written).unwrap_or_default()
    }

    /// MSG_CTRUNC, if something was cut.
    pub fn flags(&self) -> c_int {
        self.flags
    }
}
