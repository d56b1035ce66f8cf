//! Traces: what passes the engine's ports, as pcapng into a file (`UTCP_TRACE`) or to a tool (`utcp trace`).
//!
//! ```text
//!  shards ─ Tracer ─► Capture ─► Spool ── bounded queue ──► writer thread ─► file, or the tool's channel
//! ```
//!
//! A shard never waits for a disk or a tool: what finds the queue full is lost and counted (`capture_lost`).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use utcp_abi::message::{Message, Reply};
use utcp_netmap_io::Capture;

use super::{Control, EngineError};
use crate::shard::ToShard;
use crate::sys;

/// Batches that wait for the writer at most, and their bytes.
const BATCHES_MAX: usize = 8192;
const BYTES_MAX: usize = 32 << 20;
/// Longest piece in one message to a tool.
const PIECE: usize = 32 * 1024;
/// How long an engine that ends waits for its trace to be written.
const FINISH: Duration = Duration::from_secs(2);

/// A trace that runs.
pub(super) struct Trace {
    capture: Capture,
    /// The channel that it goes to; `None`: a file.
    channel: Option<u32>,
    waiting: Arc<AtomicUsize>,
}

/// The shards' end of the queue.
struct Spool {
    queue: SyncSender<Vec<u8>>,
    /// Bytes in the queue or being written.
    waiting: Arc<AtomicUsize>,
}

impl Write for Spool {
    /// All or nothing: a part of a block would make the rest unreadable.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > BYTES_MAX {
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = self.queue.try_send(bytes.to_vec());
        if result.is_err() {
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        match result {
            Ok(()) => Ok(bytes.len()),
            Err(TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TrySendError::Disconnected(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a writer and the capture in front of it.
fn start(
    channel: Option<u32>,
    mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> io::Result<Trace> {
    let (queue, batches): (_, Receiver<Vec<u8>>) = sync_channel(BATCHES_MAX);
    let waiting = Arc::new(AtomicUsize::new(0));
    let done = waiting.clone();
    std::thread::Builder::new().name("utcp-trace".into()).spawn(move || {
        for batch in batches {
            if let Err(error) = write(&batch) {
                tracing::warn!(%error, "the trace ends here");
                return;
            }
            done.fetch_sub(batch.len(), Ordering::Release);
        }
    })?;
    let capture = Capture::new(Spool { queue, waiting: waiting.clone() })?;
    Ok(Trace { capture, channel, waiting })
}

fn to_channel(channel: u32, fd: Arc<OwnedFd>) -> io::Result<Trace> {
    start(Some(channel), move |batch| {
        batch.chunks(PIECE).try_for_each(|piece| sys::send_waiting(fd.as_fd(), piece))
    })
}

impl Control {
    /// `UTCP_TRACE`: everything from the start on.
    pub(super) fn trace_to_file(&mut self, path: &Path) -> Result<(), EngineError> {
        let failed = |error| EngineError::System { doing: "opening the file of UTCP_TRACE", error };
        let mut file = File::create(path).map_err(failed)?;
        let trace = start(None, move |batch| file.write_all(batch)).map_err(failed)?;
        tracing::warn!(file = %path.display(), "every frame is written down");
        self.begin_trace(trace, "");
        Ok(())
    }

    /// A tool wants to see. Everybody's traffic is in it, so it is for the engine's own user and root.
    pub(super) fn on_trace(&mut self, number: u32, message: &Message) {
        let Some(channel) = self.channels.get(&number) else { return };
        let text = message.text();
        let port = text.split(|&byte| byte == 0).next().unwrap_or(&[]);
        let port = String::from_utf8_lossy(port).into_owned();
        let error = if channel.uid != sys::euid() && channel.uid != 0 {
            libc::EPERM
        } else if self.trace.is_some() {
            libc::EBUSY
        } else if !self.devices.iter().flat_map(|device| &device.port_names).any(|name| is_of(name, &port)) {
            libc::ENODEV
        } else {
            0
        };
        let fd = channel.fd.clone();
        self.reply(number, &Reply { error, ..Reply::default() }, &[]);
        if error != 0 {
            return;
        }
        match to_channel(number, fd) {
            Ok(trace) => self.begin_trace(trace, &port),
            Err(error) => {
                tracing::warn!(%error, "a trace can't start");
                self.on_channel_gone(number);
            }
        }
    }

    fn begin_trace(&mut self, trace: Trace, port: &str) {
        self.to_all(|| ToShard::Trace { capture: trace.capture.clone(), port: port.to_owned() });
        self.trace = Some(trace);
    }

    /// The tool has seen enough, or is gone.
    pub(super) fn end_trace_of(&mut self, channel: u32) {
        if self.trace.as_ref().is_some_and(|trace| trace.channel == Some(channel)) {
            self.to_all(|| ToShard::Untrace);
            self.trace = None;
        }
    }

    /// The engine ends: what was captured is written.
    pub(super) fn finish_trace(&mut self) {
        let Some(trace) = self.trace.take() else { return };
        let until = Instant::now() + FINISH;
        while trace.waiting.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether the port `name` (`xdp:eth0-3`) is one that `wanted` (`xdp:eth0-3`, `xdp:eth0`, nothing for all) means.
pub(crate) fn is_of(name: &str, wanted: &str) -> bool {
    wanted.is_empty()
        || name.strip_prefix(wanted).is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_by_queue_or_device() {
        for (name, wanted, yes) in [
            ("xdp:eth0-3", "", true),
            ("xdp:eth0-3", "xdp:eth0", true),
            ("xdp:eth0-3", "xdp:eth0-3", true),
            ("xdp:eth0-3", "xdp:eth", false),
            ("xdp:eth0-3", "xdp:eth0-4", false),
            ("xdp:eth0-lan", "xdp:eth0", false),
            ("pipe:a", "pipe:a", true),
        ] {
            assert_eq!(is_of(name, wanted), yes, "{name} {wanted}");
        }
    }

    #[test]
    fn a_slow_writer_costs_frames_and_no_time() {
        let (hold, held) = sync_channel::<()>(0);
        let trace = start(None, move |_| held.recv().map_err(|_| io::ErrorKind::BrokenPipe.into())).unwrap();
        let [mut a, _b] = utcp_netmap_io::pipe::pair("slow", &Default::default()).unwrap();
        let mut tracer = trace.capture.tracer(&mut *a);
        for _ in 0..BATCHES_MAX + 10 {
            assert!(a.tx().push(&[0; 60]) || tracer.lost() > 0);
            tracer.tx_sync(&mut *a).unwrap();
            if a.tx().space() == 0 {
                break;
            }
        }
        assert_eq!(trace.capture.error(), None);
        // The writer ends: so does the capture.
        drop(hold);
        let until = Instant::now() + FINISH;
        while trace.capture.error().is_none() && Instant::now() < until {
            trace.capture.comment("x");
            let _again = trace.capture.tracer(&mut *a);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(trace.capture.error().is_some());
    }
}
