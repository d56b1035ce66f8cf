//! Bytes as fast as they go, one way, on one connection or several.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Meter, Summary, Until};

const CHUNK: usize = 64 * 1024;
const MIB: u64 = 1024 * 1024;

/// Reads and forgets; closes when the sender did.
///
/// # Errors
/// When accepting fails.
pub fn sink(listener: &TcpListener) -> io::Result<()> {
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        });
    }
    Ok(())
}

/// Sends to the sink at `to` on `flows` connections, a thread each; operations are MiB, and they count when the
/// sink has read them.
///
/// # Errors
/// When a connection fails.
pub fn stream(to: SocketAddr, flows: u32, until: Until) -> io::Result<Summary> {
    let mut meter = Meter::new(until)?;
    let until = match until {
        Until::Operations(operations) => Until::Operations(operations.div_ceil(u64::from(flows.max(1)))),
        time @ Until::Time(_) => time,
    };
    let flows: Vec<_> = (0..flows.max(1)).map(|_| thread::spawn(move || flow(to, until))).collect();
    for flow in flows {
        let times = flow.join().map_err(|_| io::Error::other("a sender panicked"))??;
        meter.counts.connections += 1;
        let now = Instant::now();
        for time in times {
            meter.done(now.checked_sub(time).unwrap_or(now), now);
        }
    }
    Ok(meter.summary())
}

/// One connection; how long each MiB took to be written.
fn flow(to: SocketAddr, until: Until) -> io::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![b's'; CHUNK];
    let start = Instant::now();
    let mut times = Vec::new();
    let mut began = start;
    while match until {
        Until::Operations(operations) => (times.len() as u64) < operations,
        Until::Time(time) => began - start < time,
    } {
        for _ in 0..MIB / CHUNK as u64 {
            stream.write_all(&chunk)?;
        }
        let now = Instant::now();
        times.push(now - began);
        began = now;
    }
    // The sink's end of file comes after it read ours, and all that was before it.
    stream.shutdown(Shutdown::Write)?;
    if stream.read(&mut [0])? != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the sink sent something"));
    }
    Ok(times)
}
