//! Connections and nothing else: the server accepts and closes, the client connects and waits for the end.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::epoll::{self, Epoll};
use super::{Meter, Summary, Until};

/// Accepts and closes.
///
/// # Errors
/// When accepting fails for another reason than a client that gave up.
pub fn accept(listener: &TcpListener) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok(connection) => drop(connection),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connection and when it began.
type Attempt = (TcpStream, Instant);

/// Connects to `to` again and again, `connections` at a time.
///
/// # Errors
/// When epoll or making a socket fails; what happens to a connection is counted instead.
pub fn connect(to: SocketAddr, connections: usize, until: Until) -> io::Result<Summary> {
    let mut epoll = Epoll::new()?;
    let mut meter = Meter::new(until)?;
    let mut attempts: Vec<Option<Attempt>> = Vec::new();
    attempts.resize_with(connections, || None);
    let mut ready: Vec<u64> = Vec::new();
    while !meter.enough(Instant::now()) {
        for (at, slot) in attempts.iter_mut().enumerate() {
            if slot.is_none() {
                *slot = begin(to, &epoll, at, &mut meter)?;
            }
        }
        ready.clear();
        ready.extend(epoll.wait(100)?.map(|(token, _)| token));
        for token in &ready {
            let Some(slot) = usize::try_from(*token).ok().and_then(|at| attempts.get_mut(at)) else {
                continue;
            };
            let Some((stream, began)) = slot else { continue };
            match stream.read(&mut [0]) {
                Ok(0) => meter.done(*began, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                _ => meter.counts.errors += 1,
            }
            *slot = None;
        }
    }
    Ok(meter.summary())
}

fn begin(to: SocketAddr, epoll: &Epoll, at: usize, meter: &mut Meter) -> io::Result<Option<Attempt>> {
    let began = Instant::now();
    match epoll::connect(to) {
        Ok(stream) => {
            epoll.add(stream.as_raw_fd(), epoll::IN, at as u64)?;
            meter.counts.connections += 1;
            Ok(Some((stream, began)))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            meter.counts.errors += 1;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
