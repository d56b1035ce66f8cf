//! The message benchmark: N connections, k messages of s bytes on each, then a new connection; or
//! connections that stay.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::epoll::{self, Epoll};
use super::{Meter, Summary, Until};

/// The load.
#[derive(Debug, Clone, Copy)]
pub struct Messages {
    /// Bytes of a message, each way.
    pub bytes: usize,
    /// Messages of a connection; 0: it stays.
    pub messages: u32,
    /// Connections at a time.
    pub connections: usize,
    /// Messages per second that are asked for, over all connections (open loop); none: each connection sends
    /// its next when the last is answered. Latency counts from when a message should have begun.
    pub rate: Option<f64>,
}

/// A look at the clock that ends it, at the least.
const WAIT_MS: u16 = 100;

struct Connection {
    stream: TcpStream,
    /// Of the message under way.
    began: Instant,
    /// In an open loop between two messages.
    idle: bool,
    sent: usize,
    received: usize,
    messages_left: u32,
}

enum After {
    Keep,
    /// A message came back and the next is not due.
    Idle,
    /// All messages came back.
    Done,
    Failed,
}

/// Loads the echo server at `to`.
///
/// # Errors
/// When epoll or making a socket fails; what happens to a connection is counted instead.
pub fn msg(to: SocketAddr, load: Messages, until: Until) -> io::Result<Summary> {
    if load.rate.is_some() {
        epoll::wake_in_time();
    }
    let meter = Meter::new(until)?;
    let mut client = Client {
        to,
        load,
        epoll: Epoll::new()?,
        message: vec![b'm'; load.bytes],
        buffer: vec![0; load.bytes.max(64 * 1024)],
        idle: VecDeque::new(),
        due: Instant::now(),
        meter,
    };
    let mut connections = Vec::with_capacity(load.connections);
    for at in 0..load.connections {
        connections.push(client.open(at)?);
    }
    let mut ready: Vec<(u64, u32)> = Vec::new();
    while !client.meter.enough(Instant::now()) {
        for (at, slot) in connections.iter_mut().enumerate() {
            // Only after a connect that failed at once.
            if slot.is_none() {
                *slot = client.open(at)?;
            }
        }
        ready.clear();
        client.wait(&mut ready)?;
        for (token, readiness) in &ready {
            client.on_ready(&mut connections, *token, *readiness)?;
        }
        client.begin_due(&mut connections)?;
    }
    Ok(client.meter.summary())
}

struct Client {
    to: SocketAddr,
    load: Messages,
    epoll: Epoll,
    message: Vec<u8>,
    buffer: Vec<u8>,
    /// Connections without a message under way (open loop).
    idle: VecDeque<usize>,
    /// When the next message should begin (open loop).
    due: Instant,
    meter: Meter,
}

impl Client {
    fn open(&mut self, at: usize) -> io::Result<Option<Connection>> {
        let began = Instant::now();
        let stream = match epoll::connect(self.to) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.meter.counts.errors += 1;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.epoll.add(stream.as_raw_fd(), epoll::IN | epoll::OUT | epoll::EDGE, at as u64)?;
        self.meter.counts.connections += 1;
        let idle = self.load.rate.is_some();
        if idle {
            self.idle.push_back(at);
        }
        let messages_left = self.load.messages;
        Ok(Some(Connection { stream, began, idle, sent: 0, received: 0, messages_left }))
    }

    fn on_ready(
        &mut self,
        connections: &mut [Option<Connection>],
        token: u64,
        readiness: u32,
    ) -> io::Result<()> {
        let at = usize::try_from(token).unwrap_or(usize::MAX);
        let Some(slot) = connections.get_mut(at) else { return Ok(()) };
        let Some(connection) = slot else { return Ok(()) };
        match self.step(connection, readiness) {
            After::Keep => return Ok(()),
            After::Idle => {
                self.idle.push_back(at);
                return Ok(());
            }
            After::Done => {}
            After::Failed => self.meter.counts.errors += 1,
        }
        // Closed first: the slot, and with it the descriptor's number, is free again.
        *slot = None;
        if !self.meter.enough(Instant::now()) {
            *slot = self.open(at)?;
        }
        Ok(())
    }

    /// Waits for answers; in an open loop no longer than until the next message is due. It sleeps there, too: a client that looks
    /// all the time is in the way of the kernel's thread that brings it the answers over a device.
    fn wait(&mut self, ready: &mut Vec<(u64, u32)>) -> io::Result<()> {
        if self.load.rate.is_some() && !self.idle.is_empty() {
            let left = self.due.saturating_duration_since(Instant::now());
            ready.extend(self.epoll.wait_for(left.min(Duration::from_millis(WAIT_MS.into())))?);
        } else {
            ready.extend(self.epoll.wait(WAIT_MS.into())?);
        }
        Ok(())
    }

    /// Begins the messages that are due, on idle connections in turn.
    fn begin_due(&mut self, connections: &mut [Option<Connection>]) -> io::Result<()> {
        let Some(rate) = self.load.rate else { return Ok(()) };
        let interval = Duration::from_secs_f64(1.0 / rate.max(1e-6));
        while self.due <= Instant::now() {
            let Some(at) = self.idle.pop_front() else { return Ok(()) };
            let Some(connection) = connections.get_mut(at).and_then(Option::as_mut) else { continue };
            if !connection.idle {
                continue; // A new one, which stands in the queue once more.
            }
            (connection.idle, connection.began) = (false, self.due);
            self.due += interval;
            self.on_ready(connections, at as u64, epoll::OUT)?;
        }
        Ok(())
    }

    /// Goes on until the socket would block.
    fn step(&mut self, connection: &mut Connection, readiness: u32) -> After {
        if readiness & epoll::ERROR != 0 && readiness & epoll::IN == 0 {
            return After::Failed;
        }
        if connection.idle || readiness & (epoll::IN | epoll::OUT) == 0 {
            return After::Keep;
        }
        loop {
            while connection.sent < self.message.len() {
                match connection.stream.write(&self.message[connection.sent..]) {
                    Ok(sent) => connection.sent += sent,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => return After::Failed,
                }
            }
            if connection.received == connection.sent {
                return After::Keep; // Nothing is under way that could come back.
            }
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => return After::Failed,
                Ok(len) => connection.received += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return After::Keep,
                Err(_) => return After::Failed,
            }
            if connection.received < self.message.len() {
                continue;
            }
            let now = Instant::now();
            self.meter.done(connection.began, now);
            connection.messages_left = connection.messages_left.saturating_sub(1);
            if self.load.messages > 0 && connection.messages_left == 0 {
                return After::Done;
            }
            (connection.began, connection.sent, connection.received) = (now, 0, 0);
            if self.load.rate.is_some() {
                connection.idle = true;
                return After::Idle;
            }
        }
    }
}
