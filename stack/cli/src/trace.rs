//! `utcp trace`: what passes the ports of a running engine, as pcapng.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use utcp_abi::message::{Kind, Message, Reply};
use utcp_engine::sys::{self, Wait};

use crate::tools::{self, Where};

/// Arguments of `utcp trace`.
#[derive(clap::Args)]
pub struct Trace {
    /// The engine's device or port, such as xdp:eth0 or xdp:eth0-3; `-` for all.
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Write there; `-` for the standard output, as in `utcp trace - -w - | tshark -r -`.
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    #[command(flatten)]
    at: Where,
}

/// Writes until it is interrupted or the engine ends.
pub fn main(trace: &Trace) -> Result<(), String> {
    // First of all: whoever interrupts us later gets a file of whole blocks.
    let signals = sys::termination().map_err(|error| format!("watching for signals: {error}"))?;
    let engine = tools::connect(&trace.at)?;
    let device = if trace.device == "-" { "" } else { &trace.device };
    let message = Message::new(Kind::Trace).with_text(device);
    let failed = |error: io::Error| format!("the engine does not answer: {error}");
    sys::send(engine.as_fd(), message.as_bytes(), &[]).map_err(failed)?;
    let mut bytes = vec![0; 64 * 1024];
    let len = sys::receive(engine.as_fd(), &mut bytes, &mut Vec::new(), Wait::Sleep).map_err(failed)?;
    match Reply::from_bytes(&bytes[..len]).ok_or("the engine is of another version")?.error {
        0 => {}
        libc::EBUSY => return Err("the engine writes another trace already".to_owned()),
        libc::EPERM => return Err("only root and the engine's own user may see its traffic".to_owned()),
        libc::ENODEV if device.is_empty() => return Err("the engine has no device".to_owned()),
        libc::ENODEV => {
            return Err(format!("the engine has no device {device}; `utcp metrics` lists its ports"));
        }
        errno => return Err(io::Error::from_raw_os_error(errno).to_string()),
    }
    let mut out = open(trace)?;
    let mut written = 0;
    let mut asked_to_stop = false;
    loop {
        let mut fds = [&engine, &signals].map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        sys::poll(&mut fds[..if asked_to_stop { 1 } else { 2 }], None);
        if !asked_to_stop && fds[1].revents != 0 {
            asked_to_stop = true;
            // What was captured until now still comes.
            sys::shut_down_writing(engine.as_fd()).map_err(failed)?;
        }
        if fds[0].revents == 0 {
            continue;
        }
        match sys::receive(engine.as_fd(), &mut bytes, &mut Vec::new(), Wait::Never) {
            Ok(0) => break,
            Ok(len) => {
                written += len;
                out.write_all(&bytes[..len])
                    .map_err(|error| format!("{}: {error}", trace.write.display()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The engine ended while we read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(failed(error)),
        }
    }
    eprintln!("utcp: {written} bytes of trace");
    Ok(())
}

fn open(trace: &Trace) -> Result<Box<dyn Write>, String> {
    if trace.write.as_os_str() != "-" {
        let file = File::create(&trace.write);
        return Ok(Box::new(file.map_err(|error| format!("{}: {error}", trace.write.display()))?));
    }
    if io::stdout().is_terminal() {
        return Err("a trace is no text for a terminal: name a file, or pipe it to `tshark -r -`".to_owned());
    }
    Ok(Box::new(io::stdout().lock()))
}
