//! What a socket is that a program sent, and where it is bound: the kernel's word, not the program's.

use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use utcp_abi::socket::Addr;

use super::check;

/// An IPv4 or IPv6 socket's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Its address and port.
    pub addr: Addr,
    /// IPv4, or IPv6 with IPV6_V6ONLY.
    pub one_family: bool,
    /// SO_REUSEPORT.
    pub reuseport: bool,
}

/// Whether it is a unix socket of messages (SOCK_SEQPACKET): of such a one the hang-up is told, and ends every receive.
#[must_use]
pub fn is_channel(fd: BorrowedFd<'_>) -> bool {
    let is = |name, wanted| number(fd, libc::SOL_SOCKET, name).is_ok_and(|value| value == wanted);
    is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_SEQPACKET)
}

fn option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<bool> {
    Ok(number(fd, level, name)? != 0)
}

fn number(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let at = ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes one integer at most.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    Ok(value)
}

/// What the kernel says of `fd`.
///
/// # Errors
/// EINVAL if it is no IP socket; ENOTSOCK.
pub fn bound(fd: BorrowedFd<'_>) -> io::Result<Bound> {
    // SAFETY: zero bytes are a valid address of no family.
    let mut name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), ptr::from_mut(&mut name).cast(), &raw mut len) })?;
    let reuseport = option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    let (addr, one_family) = match libc::c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let port = u16::from_be(name.sin6_port);
            let only = option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
            (Addr { ip: name.sin6_addr.s6_addr, port, scope: name.sin6_scope_id }, only)
        }
        libc::AF_INET => {
            // SAFETY: a sockaddr_in is shorter, as aligned, and any bytes are one.
            let name = unsafe { ptr::from_ref(&name).cast::<libc::sockaddr_in>().read() };
            let ip = std::net::Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)).to_ipv6_mapped().octets();
            (Addr { ip, port: u16::from_be(name.sin_port), scope: 0 }, true)
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    Ok(Bound { addr, one_family, reuseport })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_kernel_says_where() {
        let v4 = TcpListener::bind("127.0.0.2:0").expect("loopback");
        let told = bound(v4.as_fd()).expect("a listener");
        let port = v4.local_addr().expect("bound").port();
        let addr = Addr { ip: Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x7f00, 2]).octets(), port, scope: 0 };
        assert_eq!(told, Bound { addr, one_family: true, reuseport: false });
        if let Ok(v6) = TcpListener::bind("[::]:0") {
            let told = bound(v6.as_fd()).expect("a listener");
            assert_eq!((told.addr.ip, told.one_family), ([0; 16], false), "std leaves IPV6_V6ONLY off");
        }
        let (unix, _other) = UnixDatagram::pair().expect("a pair");
        assert_eq!(bound(unix.as_fd()).expect_err("no IP").raw_os_error(), Some(libc::EINVAL));
        let file = std::fs::File::open("/dev/null").expect("there");
        assert_eq!(bound(file.as_fd()).expect_err("no socket").raw_os_error(), Some(libc::ENOTSOCK));
    }
}
