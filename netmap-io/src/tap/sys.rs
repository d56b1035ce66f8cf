//! The system calls of a TAP device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::{check, ifreq_named, own};

/// Opens the device that makes TAP devices.
pub(super) fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// The kernel may leave UDP uncut, too (Linux 6.2); libc does not know them.
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// Joins `file` to the TAP device `name` as a queue of it, the only one or one of several; in front of every frame nothing,
/// or a virtio-net header.
pub(super) fn attach(file: &File, name: &str, vnet_header: bool, several: bool) -> io::Result<()> {
    let mut request = ifreq_named(name);
    let header = if vnet_header { libc::IFF_VNET_HDR } else { 0 };
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | header | queues;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // What the kernel may leave to us: checksums, and segments as long as it has them.
    let offload = |leave: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(leave)) })
            .map(drop)
    };
    if !vnet_header {
        return offload(0);
    }
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    offload(tcp | TUN_F_USO4 | TUN_F_USO6).or_else(|_| offload(tcp))
}

/// Sets an interface up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    // SAFETY: makes a descriptor, touches no memory.
    let socket = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    let mut request = ifreq_named(name);
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(0);
    // SAFETY: SIOCGIFFLAGS filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }).map(drop)
}
