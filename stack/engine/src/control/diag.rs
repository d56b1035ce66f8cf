//! Which sockets the kernel has: `NETLINK_SOCK_DIAG`.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::host::netlink::{Channel, DUMP, Request, u32_at};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
/// As bits: `TCP_ESTABLISHED`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`, `NEW_SYN_RECV`.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Offset of `idiag_inode` in `struct inet_diag_msg`.
const INODE: usize = 68;

/// Whether a TCP socket of this inode listens on `port` in the calling thread's network namespace.
///
/// # Errors
/// The kernel tells neither by netlink nor under `/proc`.
pub fn listening(port: u16, inode: u64) -> io::Result<bool> {
    on_port(port).map(|all| all.contains(&inode))
}

/// Whether another TCP socket than that of this inode listens on `port`, at whatever address.
///
/// # Errors
/// As [`listening`].
pub fn others_listen(port: u16, inode: u64) -> io::Result<bool> {
    on_port(port).map(|all| all.into_iter().any(|other| other != inode))
}

/// Inodes of what listens on `port`.
fn on_port(port: u16) -> io::Result<Vec<u64>> {
    by_netlink(port).or_else(|_| by_proc(port)) // Some containers have only one of them.
}

fn by_netlink(port: u16) -> io::Result<Vec<u64>> {
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let header = request(family, 1 << LISTEN, port);
        channel.dump(Request::new(BY_FAMILY, DUMP, &header), |message| {
            let state = message.body.get(1).copied();
            let source_port = message.body.get(4..6);
            if state == Some(LISTEN) && source_port == Some(&port.to_be_bytes()) {
                found.extend(u32_at(message.body, INODE).map(u64::from));
            }
        })?;
    }
    Ok(found)
}

/// Connections whose port here is `port`: local address, peer's address (IPv4 mapped), peer's port. Not those that have ended and wait.
///
/// # Errors
/// There is no netlink.
pub fn connections(port: u16) -> io::Result<Vec<(Ipv6Addr, Ipv6Addr, u16)>> {
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let header = request(family, CONNECTED, port);
        channel.dump(Request::new(BY_FAMILY, DUMP, &header), |message| {
            found.extend(connection_in(message.body, port));
        })?;
    }
    Ok(found)
}

/// What a `struct inet_diag_msg` says: family, state, then ports and addresses as in a segment.
fn connection_in(body: &[u8], port: u16) -> Option<(Ipv6Addr, Ipv6Addr, u16)> {
    let half = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| {
        let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        let v4 = Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
        Some(if i32::from(*body.first()?) == libc::AF_INET { v4 } else { bytes.into() })
    };
    (half(4)? == port).then_some(())?;
    Some((address(8)?, address(24)?, half(6)?))
}

/// A `struct inet_diag_req_v2`.
fn request(family: i32, states: u32, port: u16) -> [u8; REQUEST] {
    let mut header = [0; REQUEST];
    header[0] = u8::try_from(family).expect("small numbers");
    header[1] = utcp_proto::wire::TCP;
    header[4..8].copy_from_slice(&states.to_ne_bytes());
    header[8..10].copy_from_slice(&port.to_be_bytes());
    header
}

fn by_proc(port: u16) -> io::Result<Vec<u64>> {
    let v4 = fs::read_to_string("/proc/thread-self/net/tcp")?;
    let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default(); // Absent without IPv6.
    Ok(v4.lines().chain(v6.lines()).filter_map(|line| listener_in(line, port)).collect())
}

/// The inode, if the line is about a listener on `port`:
/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`, numbers in hexadecimal but the last.
fn listener_in(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local_port = u16::from_str_radix(fields.next()?.rsplit(':').next()?, 16).ok()?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    ((local_port, state) == (port, LISTEN)).then_some(inode)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::fd::AsRawFd;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        let link =
            fs::read_link(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd())).expect("an open file");
        let name = link.to_string_lossy().into_owned();
        name.trim_start_matches("socket:[").trim_end_matches(']').parse().expect("a socket")
    }

    #[track_caller]
    fn check(port: u16, inode: u64, expected: bool) {
        assert_eq!(by_netlink(port).map_or(expected, |all| all.contains(&inode)), expected, "by netlink");
        assert_eq!(by_proc(port).map_or(expected, |all| all.contains(&inode)), expected, "by /proc");
        assert_eq!(listening(port, inode).expect("one of them works"), expected);
    }

    #[test]
    fn tells_connections_of_both_families() {
        for (bind, to) in [
            ("127.0.0.1:0", [127, 0, 0, 1].into()),
            ("[::]:0", [127, 0, 0, 1].into()),
            ("[::]:0", std::net::IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            let listener = TcpListener::bind(bind).expect("it is there");
            let port = listener.local_addr().expect("it is bound").port();
            assert_eq!(connections(port).expect("netlink"), []);
            let client = TcpStream::connect((to, port)).expect("it listens");
            let from = client.local_addr().expect("connected");
            let addr = utcp_netmap_io::mapped(to);
            assert!(connections(port).expect("netlink").contains(&(addr, addr, from.port())), "{bind}");
        }
    }

    #[test]
    fn tells_listeners_of_both_families_from_all_else() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.starts_with('['), "IPv4 is always there");
                continue;
            };
            let at = listener.local_addr().expect("it is bound");
            let number = inode(&listener);
            check(at.port(), number, true);
            check(at.port(), number + 1_000_000, false);
            check(at.port() ^ 1, number, false);
            if at.ip().is_loopback() {
                let client = TcpStream::connect(at).expect("it listens");
                check(client.local_addr().expect("connected").port(), inode(&client), false);
            }
            drop(listener);
            // A child that another test just forked may hold it until it executes its program.
            let gone = || !listening(at.port(), number).expect("one of them works");
            assert!((0..500).any(|_| gone() || {
                thread::sleep(Duration::from_millis(10));
                false
            }));
            check(at.port(), number, false);
        }
    }
}
