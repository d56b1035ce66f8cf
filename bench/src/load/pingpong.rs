//! One connection, one message in flight, on blocking sockets: what a round trip costs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Meter, Summary, Until};

/// The load.
#[derive(Debug, Clone, Copy)]
pub struct Pingpong {
    /// Bytes of a message, each way.
    pub bytes: usize,
    /// Round trips per second that are asked for; none: the next begins when the last is done. Latency
    /// counts from when a round trip should have begun, so a stall is seen by all whom it delays.
    pub rate: Option<f64>,
}

/// Sleeps for most of the time: a sleep ends up to `SLACK` late, which would be told as latency.
fn wait_until(due: Instant) {
    const SLACK: Duration = Duration::from_micros(200);
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(SLACK) {
            Some(long) if !long.is_zero() => std::thread::sleep(long),
            // The server may want this core.
            _ => std::thread::yield_now(),
        }
    }
}

/// Loads the echo server at `to`.
///
/// # Errors
/// When the connection fails.
pub fn pingpong(to: SocketAddr, load: Pingpong, until: Until) -> io::Result<Summary> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    over(stream, load, until)
}

/// The same over a Unix socket.
///
/// # Errors
/// When the connection fails.
pub fn pingpong_unix(to: &Path, load: Pingpong, until: Until) -> io::Result<Summary> {
    over(UnixStream::connect(to)?, load, until)
}

fn over(mut stream: impl Read + Write, load: Pingpong, until: Until) -> io::Result<Summary> {
    let message = vec![b'p'; load.bytes];
    let mut answer = vec![0; load.bytes];
    let interval = load.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(1e-6)));
    let mut meter = Meter::new(until)?;
    meter.counts.connections = 1;
    let mut now = Instant::now();
    let mut due = now;
    while !meter.enough(now) {
        let began = match interval {
            None => now,
            Some(interval) => {
                due += interval;
                wait_until(due);
                due
            }
        };
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        now = Instant::now();
        meter.done(began, now);
    }
    Ok(meter.summary())
}
