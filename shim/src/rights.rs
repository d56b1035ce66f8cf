//! Descriptors that messages carry to other processes (SCM_RIGHTS, unix(7)).
//!
//! One that goes is no longer ours alone. One that comes may be a listener that utcp serves: the program may only ever wait for it, so it is
//! marked where it arrives, as an inherited one is ([`crate::relayed`]).

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::AcqRel;

use libc::{cmsghdr, msghdr};
use utcp_abi::socket::file;

use crate::{bound, guard, handle, listen, relayed, user};

/// The descriptors in the control data of a message that the program sends.
///
/// # Safety
/// As `sendmsg`.
pub unsafe fn go(header: *const msghdr) {
    if !guard::stands() {
        return; // Nothing is ours yet.
    }
    // SAFETY: the program's own header.
    unsafe { for_each(header, pass_on) };
}

/// Those of a message that it has received.
///
/// # Safety
/// As `recvmsg`, which succeeded: the kernel has just filled header and control data, so they can be read even before the guard stands.
pub unsafe fn come(header: *const msghdr) {
    // SAFETY: the caller's promise.
    if unsafe { (*header).msg_controllen } == 0 {
        return;
    }
    listen::expect_strangers();
    // SAFETY: the caller's promise.
    unsafe { for_each(header, relayed::receive) };
}

/// Calls `each` with every descriptor; what can't be read is the kernel's to refuse.
///
/// # Safety
/// The header is the program's.
unsafe fn for_each(header: *const msghdr, each: fn(c_int)) {
    // SAFETY: the program's own header.
    let Ok(header) = (unsafe { user::fetch(header) }) else { return };
    let start: *const c_void = header.msg_control;
    let (total, mut at) = (header.msg_controllen, 0usize);
    if start.is_null() {
        return;
    }
    while let Some(room) = total.checked_sub(at).filter(|room| *room >= size_of::<cmsghdr>()) {
        // SAFETY: inside what the program says it has there.
        let Ok(one) = (unsafe { user::fetch(start.wrapping_byte_add(at).cast::<cmsghdr>()) }) else { return };
        let len = one.cmsg_len;
        if !(size_of::<cmsghdr>()..=room).contains(&len) {
            return;
        }
        if one.cmsg_level == libc::SOL_SOCKET && one.cmsg_type == libc::SCM_RIGHTS {
            let (mut next, end) = (at + size_of::<cmsghdr>(), at + len);
            while next + size_of::<c_int>() <= end {
                // SAFETY: as above.
                let Ok(fd) = (unsafe { user::fetch(start.wrapping_byte_add(next).cast::<c_int>()) }) else {
                    return;
                };
                each(fd);
                next += size_of::<c_int>();
            }
        }
        at = at.saturating_add(len.next_multiple_of(align_of::<usize>()));
    }
}

fn pass_on(fd: c_int) {
    if relayed::is_unused_listener(fd) {
        return; // Somebody else's, which this program keeps for a third. Were it ours for that, clients would wait here in vain.
    }
    bound::settle(fd);
    relayed::pass(fd);
    if let Some(sock) = handle::ours(fd) {
        sock.shared.file.fetch_or(file::SHARED, AcqRel);
    }
}
