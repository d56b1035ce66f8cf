//! The server of msg and pingpong: sends back what it gets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::epoll::{self, Epoll};

const BUFFER: usize = 64 * 1024;
/// Tokens from here on are listeners'.
const LISTENERS: u64 = u64::MAX / 2;

/// A connection and what could not be sent back yet.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
}

enum After {
    Keep,
    Close,
}

/// Serves listeners, which are non-blocking, TCP or Unix, until one fails.
///
/// # Errors
/// When a listener or epoll fails.
pub fn echo(listeners: &[OwnedFd]) -> io::Result<()> {
    let mut epoll = Epoll::new()?;
    for (token, listener) in (LISTENERS..).zip(listeners) {
        epoll.add(listener.as_raw_fd(), epoll::IN, token)?;
    }
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut ready: Vec<(u64, u32)> = Vec::new();
    loop {
        ready.clear();
        ready.extend(epoll.wait(-1)?);
        for (token, _) in &ready {
            if let Some(at) = token.checked_sub(LISTENERS) {
                if let Some(listener) = usize::try_from(at).ok().and_then(|at| listeners.get(at)) {
                    accept_all(listener.as_raw_fd(), &epoll, &mut connections)?;
                }
                continue;
            }
            let Some(slot) = usize::try_from(*token).ok().and_then(|at| connections.get_mut(at)) else {
                continue;
            };
            let Some(connection) = slot else { continue };
            if matches!(serve(connection, &epoll, *token, &mut buffer)?, After::Close) {
                *slot = None;
            }
        }
    }
}

fn accept_all(listener: RawFd, epoll: &Epoll, connections: &mut Vec<Option<Connection>>) -> io::Result<()> {
    loop {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no address is asked for.
        let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            match error.kind() {
                ErrorKind::WouldBlock => return Ok(()),
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
        }
        // SAFETY: just accepted, and nobody else's.
        let stream = unsafe { TcpStream::from_raw_fd(fd) };
        // Refused by a Unix socket, which has no such thing.
        let _ = stream.set_nodelay(true);
        // The descriptor's number is the slot: small, and free again when the connection is.
        let at = usize::try_from(fd).map_err(io::Error::other)?;
        if connections.len() <= at {
            connections.resize_with(at + 1, || None);
        }
        epoll.add(fd, epoll::IN, at as u64)?;
        connections[at] = Some(Connection { stream, unsent: Vec::new() });
    }
}

fn serve(connection: &mut Connection, epoll: &Epoll, token: u64, buffer: &mut [u8]) -> io::Result<After> {
    let fd = connection.stream.as_raw_fd();
    if !connection.unsent.is_empty() {
        match connection.stream.write(&connection.unsent) {
            Ok(sent) => drop(connection.unsent.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Ok(After::Close),
        }
        if !connection.unsent.is_empty() {
            return Ok(After::Keep);
        }
        epoll.modify(fd, epoll::IN, token)?;
    }
    let len = match connection.stream.read(buffer) {
        Ok(0) => return Ok(After::Close),
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(After::Keep),
        Err(_) => return Ok(After::Close),
    };
    let sent = match connection.stream.write(&buffer[..len]) {
        Ok(sent) => sent,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(_) => return Ok(After::Close),
    };
    if sent < len {
        // Read no more until it is out: one buffer at most waits for each connection.
        connection.unsent.extend_from_slice(&buffer[sent..len]);
        epoll.modify(fd, epoll::OUT, token)?;
    }
    Ok(After::Keep)
}
