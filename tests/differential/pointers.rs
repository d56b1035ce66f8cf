//! Pointers that lead nowhere: the kernel says EFAULT, whoever stands in front of it must too.

use std::ptr;

use libc::{c_int, c_void, iovec, msghdr, sockaddr, socklen_t};

use crate::calls::{message, result};
use crate::words::Words;

/// Addresses at which nothing can be read or written.
fn nowhere() -> [(&'static str, *mut c_void); 4] {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, which nobody may touch.
    let closed = unsafe { libc::mmap(ptr::null_mut(), 1 << 16, libc::PROT_NONE, flags, -1, 0) };
    [
        ("null", ptr::null_mut()),
        ("one", ptr::without_provenance_mut(1)),
        ("highest", ptr::without_provenance_mut(usize::MAX)),
        ("closed", closed),
    ]
}

/// `fault CALL NAME`: the call with each of the bad addresses.
pub fn fault(fd: c_int, words: &Words) -> String {
    let each = nowhere().map(|(name, at)| format!("{name}: {}", one(fd, words.get(1), at)));
    each.join(", ")
}

fn one(fd: c_int, call: &str, at: *mut c_void) -> String {
    let mut good = [0u8; 256];
    let place: *mut c_void = good.as_mut_ptr().cast();
    let (mut len, zero): (socklen_t, c_int) = (256, 0);
    let len: *mut socklen_t = &raw mut len;
    let list = [iovec { iov_base: at, iov_len: 10 }];
    let (level, name) = (libc::SOL_SOCKET, libc::SO_KEEPALIVE);
    let mut header: msghdr = message(&list);
    let mut bad_list = message(&[]);
    (bad_list.msg_iov, bad_list.msg_iovlen) = (at.cast(), 2);
    // SAFETY: the kernel, or who stands in for it, has to find out that these addresses lead nowhere. What leads somewhere is as long
    // as it says.
    let value = unsafe {
        match call {
            "recv" => libc::recv(fd, at, 10, libc::MSG_DONTWAIT),
            "read" => libc::read(fd, at, 10),
            "readv" => libc::readv(fd, list.as_ptr(), 1),
            "readv-list" => libc::readv(fd, at.cast(), 2),
            "recvmsg" => libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT),
            "recvmsg-list" => libc::recvmsg(fd, &raw mut bad_list, libc::MSG_DONTWAIT),
            "recvmsg-header" => libc::recvmsg(fd, at.cast(), libc::MSG_DONTWAIT),
            "send" => libc::send(fd, at, 10, libc::MSG_DONTWAIT),
            "write" => libc::write(fd, at, 10),
            "write-long" => libc::write(fd, at, 5000),
            "writev-list" => libc::writev(fd, at.cast(), 2),
            "sendmsg" => libc::sendmsg(fd, &raw const header, 0),
            "sendmsg-header" => libc::sendmsg(fd, at.cast(), 0),
            "sendmmsg" => libc::sendmmsg(fd, at.cast(), 2, 0) as isize,
            "recvmmsg" => libc::recvmmsg(fd, at.cast(), 2, libc::MSG_DONTWAIT, ptr::null_mut()) as isize,
            "name" => libc::getsockname(fd, at.cast(), len) as isize,
            "name-length" => libc::getsockname(fd, place.cast(), at.cast()) as isize,
            "peer" => libc::getpeername(fd, at.cast(), len) as isize,
            "peer-length" => libc::getpeername(fd, place.cast(), at.cast()) as isize,
            "getopt" => libc::getsockopt(fd, level, name, at, len) as isize,
            "getopt-length" => libc::getsockopt(fd, level, name, place, at.cast()) as isize,
            "getopt-info" => libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, len) as isize,
            "setopt" => libc::setsockopt(fd, level, name, at, 4) as isize,
            "setopt-linger" => libc::setsockopt(fd, level, libc::SO_LINGER, at, 8) as isize,
            "setopt-name" => libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, at, 5) as isize,
            "connect" => libc::connect(fd, at.cast::<sockaddr>(), 16) as isize,
            "bind" => libc::bind(fd, at.cast::<sockaddr>(), 16) as isize,
            "fionread" => libc::ioctl(fd, libc::FIONREAD, at) as isize,
            "fionbio" => libc::ioctl(fd, libc::FIONBIO, at) as isize,
            "sendfile" => libc::sendfile(fd, zero, at.cast(), 10),
            "poll" => libc::poll(at.cast(), 1, 0) as isize,
            "select" => {
                let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
                let none = ptr::null_mut();
                libc::select(fd + 1, at.cast(), none, none, &raw mut now) as isize
            }
            "wait" => libc::epoll_wait(fd, at.cast(), 1, 0) as isize,
            "accept" => libc::accept(fd, at.cast(), len) as isize,
            "recvfrom-address" => libc::recvfrom(fd, place, 1, libc::MSG_PEEK, at.cast(), len),
            "recvfrom-length" => libc::recvfrom(fd, place, 1, libc::MSG_PEEK, place.cast(), at.cast()),
            other => panic!("fault {other}"),
        }
    };
    result(value)
}

/// `edge recv|send NAME HERE COUNT`: a buffer of COUNT bytes of which the last page has but HERE.
pub fn edge(fd: c_int, words: &Words) -> String {
    let size = |at| usize::try_from(words.number(at)).expect("a size");
    let (here, count) = (size(3), size(4));
    // SAFETY: two pages, of which the second may not be touched; the buffer begins in the first.
    let value = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let pages = libc::mmap(ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        let pages: *mut u8 = pages.cast();
        ptr::write_bytes(pages, b'e', 4096);
        libc::mprotect(pages.add(4096).cast(), 4096, libc::PROT_NONE);
        let at = pages.add(4096 - here).cast();
        match words.get(1) {
            "recv" => libc::recv(fd, at, count, 0),
            _ => libc::send(fd, at, count, 0),
        }
    };
    result(value)
}
