//! Calls by which other programs and processes get a script's descriptors.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use crate::Fds;
use crate::calls::{descriptor, message, result};
use crate::words::Words;

/// `serve NAME [bare]`: a child whose standard input and output NAME is sends back what it gets, `bare` without the
/// environment that this program was given.
pub fn serve(fd: c_int, words: &Words) -> String {
    // SAFETY: the script's own descriptor, which stays open in it.
    let stream = || unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
    let (Ok(input), Ok(output)) = (stream(), stream()) else { return result(-1) };
    let mut child = std::process::Command::new("/bin/cat");
    if words.has("bare") {
        // What a preload can't follow: a program that cleans up for good.
        child.arg("-u").env_clear().env("LD_PRELOAD", "");
    }
    match child.stdin(input).stdout(output).spawn() {
        Ok(_) => "a child".to_owned(),
        Err(error) => format!("no child: {error}"),
    }
}

/// `pass NAME NEW [many]`: NAME travels through a unix socket and is received as NEW; `many`: by the calls for many messages.
pub fn pass(fds: &mut Fds, words: &Words) -> String {
    let Ok((ours, theirs)) = std::os::unix::net::UnixDatagram::pair() else { return result(-1) };
    let mut control = [0u64; 4];
    let mut byte = [0u8; 1];
    let mut list = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut header = message(&[]);
    header.msg_iov = &raw mut list;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    let mut got: c_int = -1;
    // SAFETY: the control buffer has room for one descriptor, and outlives the calls; what comes back is such a message, too.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let one = libc::CMSG_FIRSTHDR(&raw const header);
        (*one).cmsg_level = libc::SOL_SOCKET;
        (*one).cmsg_type = libc::SCM_RIGHTS;
        (*one).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(one).cast::<c_int>().write_unaligned(fds.number(words.get(1)));
        let gone = if words.has("many") {
            let mut list = [libc::mmsghdr { msg_hdr: header, msg_len: 0 }];
            let gone = libc::sendmmsg(ours.as_raw_fd(), list.as_mut_ptr(), 1, 0) == 1
                && libc::recvmmsg(theirs.as_raw_fd(), list.as_mut_ptr(), 1, 0, std::ptr::null_mut()) == 1;
            header = list[0].msg_hdr;
            gone
        } else {
            libc::sendmsg(ours.as_raw_fd(), &raw const header, 0) >= 0
                && libc::recvmsg(theirs.as_raw_fd(), &raw mut header, 0) >= 0
        };
        if !gone {
            return result(-1);
        }
        let one = libc::CMSG_FIRSTHDR(&raw const header);
        if !one.is_null() {
            got = libc::CMSG_DATA(one).cast::<c_int>().read_unaligned();
        }
    }
    descriptor(fds, words.get(2), got)
}

/// `reap`: waits for a child's end.
pub fn reap() -> String {
    let mut status = 0;
    // SAFETY: a place for a status.
    let child = unsafe { libc::wait(&raw mut status) };
    if child < 0 { result(-1) } else { format!("a child, {status}") }
}
