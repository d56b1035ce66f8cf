//! One connection, bytes as fast as they go, one way.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

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

/// Sends to the sink at `to`; operations are MiB, and they count when the sink has read them.
///
/// # Errors
/// When the connection fails.
pub fn stream(to: SocketAddr, until: Until) -> io::Result<Summary> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![b's'; CHUNK];
    let mut meter = Meter::new(until)?;
    meter.connections = 1;
    let mut began = Instant::now();
    while !meter.enough(began) {
        for _ in 0..MIB / CHUNK as u64 {
            stream.write_all(&chunk)?;
        }
        let now = Instant::now();
        meter.done(began, now);
        began = now;
    }
    // The sink's end of file comes after it read ours, and all that was before it.
    stream.shutdown(Shutdown::Write)?;
    if stream.read(&mut [0])? != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the sink sent something"));
    }
    Ok(meter.summary())
}
