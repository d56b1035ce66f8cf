//! The message benchmark: N connections, k messages of s bytes on each, then a new connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::epoll::{self, Epoll};
use super::{Meter, Summary, Until};

/// The load.
#[derive(Debug, Clone, Copy)]
pub struct Messages {
    /// Bytes of a message, each way.
    pub bytes: usize,
    /// Messages of a connection.
    pub messages: u32,
    /// Connections at a time.
    pub connections: usize,
}

struct Connection {
    stream: TcpStream,
    /// Of the message under way.
    began: Instant,
    sent: usize,
    received: usize,
    messages_left: u32,
}

enum After {
    Keep,
    /// All messages came back.
    Done,
    Failed,
}

/// Loads the echo server at `to`.
///
/// # Errors
/// When epoll or making a socket fails; what happens to a connection is counted instead.
pub fn msg(to: SocketAddr, load: Messages, until: Until) -> io::Result<Summary> {
    let mut epoll = Epoll::new()?;
    let mut meter = Meter::new(until)?;
    let message = vec![b'm'; load.bytes];
    let mut buffer = vec![0; load.bytes.max(64 * 1024)];
    let mut connections = Vec::with_capacity(load.connections);
    for at in 0..load.connections {
        connections.push(open(to, load, &epoll, at, &mut meter)?);
    }
    let mut ready: Vec<(u64, u32)> = Vec::new();
    while !meter.enough(Instant::now()) {
        for (at, slot) in connections.iter_mut().enumerate() {
            // Only after a connect that failed at once.
            if slot.is_none() {
                *slot = open(to, load, &epoll, at, &mut meter)?;
            }
        }
        ready.clear();
        ready.extend(epoll.wait(100)?);
        for (token, readiness) in &ready {
            let Some(slot) = usize::try_from(*token).ok().and_then(|at| connections.get_mut(at)) else {
                continue;
            };
            let Some(connection) = slot else { continue };
            match step(connection, *readiness, load, &message, &mut buffer, &mut meter) {
                After::Keep => continue,
                After::Done => {}
                After::Failed => meter.errors += 1,
            }
            // Closed first: the slot, and with it the descriptor's number, is free again.
            *slot = None;
            if !meter.enough(Instant::now()) {
                *slot = open(to, load, &epoll, usize::try_from(*token).unwrap_or(0), &mut meter)?;
            }
        }
    }
    Ok(meter.summary())
}

fn open(
    to: SocketAddr,
    load: Messages,
    epoll: &Epoll,
    at: usize,
    meter: &mut Meter,
) -> io::Result<Option<Connection>> {
    let began = Instant::now();
    let stream = match epoll::connect(to) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            meter.errors += 1;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    epoll.add(stream.as_raw_fd(), epoll::IN | epoll::OUT | epoll::EDGE, at as u64)?;
    meter.connections += 1;
    Ok(Some(Connection { stream, began, sent: 0, received: 0, messages_left: load.messages }))
}

/// Goes on until the socket would block.
fn step(
    connection: &mut Connection,
    readiness: u32,
    load: Messages,
    message: &[u8],
    buffer: &mut [u8],
    meter: &mut Meter,
) -> After {
    if readiness & epoll::ERROR != 0 && readiness & epoll::IN == 0 {
        return After::Failed;
    }
    if readiness & (epoll::IN | epoll::OUT) == 0 {
        return After::Keep;
    }
    loop {
        while connection.sent < message.len() {
            match connection.stream.write(&message[connection.sent..]) {
                Ok(sent) => connection.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return After::Failed,
            }
        }
        if connection.received == connection.sent {
            return After::Keep; // Nothing is under way that could come back.
        }
        match connection.stream.read(buffer) {
            Ok(0) => return After::Failed,
            Ok(len) => connection.received += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return After::Keep,
            Err(_) => return After::Failed,
        }
        if connection.received < message.len() {
            continue;
        }
        let now = Instant::now();
        meter.done(connection.began, now);
        connection.messages_left -= 1;
        if connection.messages_left == 0 || load.bytes == 0 {
            return After::Done;
        }
        (connection.began, connection.sent, connection.received) = (now, 0, 0);
    }
}
