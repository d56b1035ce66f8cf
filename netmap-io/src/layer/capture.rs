//! Writes every frame of a port to a pcapng file, as Wireshark and tcpdump read it.
//!
//! ```text
//!  section header │ interface 0 │ interface 1 │ packet │ packet │ … │ statistics of 0 │ packet │ …
//! ```
//!
//! Frames are read in place: received ones when they become visible, sent ones just before they leave. One
//! write per batch. A sink that has no room now (`WouldBlock`) loses that batch, a file that can't be written ends
//! the capture; both are counted, and traffic goes on. Format: `draft-ietf-opsawg-pcapng`.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::{Caps, Counters, PollFd, PollFds, Port, PortError, RxRing, TxRing};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_MACADDR: u16 = 6;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// Frames that came, and those of them that the device dropped, since the port was opened; frames that are missing here.
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_OSDROP: u16 = 7;
/// How far apart statistics stand, while frames pass.
const STATISTICS_EVERY: Duration = Duration::from_secs(1);
/// Bytes of comments that wait for a packet.
const COMMENT_MAX: usize = 4096;

/// A capture file, shared by the ports that are written to it.
#[derive(Clone)]
pub struct Capture {
    file: Arc<Mutex<File>>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("error", &self.error()).finish_non_exhaustive()
    }
}

struct File {
    sink: Box<dyn Write + Send>,
    interfaces: u32,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
    /// Goes with the next packet.
    comment: Option<String>,
}

impl File {
    /// Whether the blocks were written.
    fn write(&mut self, blocks: &[u8]) -> bool {
        if self.error.is_some() {
            return false;
        }
        match self.sink.write_all(blocks).and_then(|()| self.sink.flush()) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }
}

/// Which way a frame went; the values of `epb_flags`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Direction {
    In = 1,
    Out = 2,
}

/// Appends a block: `body` writes what stands between the two lengths.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_ne_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start + 4).unwrap_or(u32::MAX).to_ne_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX - 3))];
    out.extend(code.to_ne_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(0).to_ne_bytes());
    out.extend(value);
    pad(out);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

/// Blocks begin at multiples of four, and so does everything in them.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The upper and the lower half of a time in nanoseconds.
fn timestamp(out: &mut Vec<u8>, time: Duration) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    out.extend(u32::try_from(nanos >> 32).unwrap_or(0).to_ne_bytes());
    out.extend(u32::try_from(nanos & 0xffff_ffff).unwrap_or(0).to_ne_bytes());
}

fn statistics(out: &mut Vec<u8>, interface: u32, time: Duration, counters: &Counters, lost: u64) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(interface.to_ne_bytes());
        timestamp(out, time);
        let dropped = counters.rx_ring_full + counters.rx_dropped + counters.rx_bad_slot;
        option(out, ISB_IFRECV, &(counters.rx_frames + dropped).to_ne_bytes());
        option(out, ISB_IFDROP, &dropped.to_ne_bytes());
        option(out, ISB_OSDROP, &lost.to_ne_bytes());
        end_of_options(out);
    });
}

fn packet(
    out: &mut Vec<u8>,
    interface: u32,
    time: Duration,
    way: Direction,
    bytes: &[u8],
    comment: Option<&str>,
) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_ne_bytes();
    block(out, ENHANCED_PACKET, |out| {
        out.extend(interface.to_ne_bytes());
        timestamp(out, time);
        out.extend(length);
        out.extend(length);
        out.extend(bytes);
        pad(out);
        option(out, EPB_FLAGS, &(way as u32).to_ne_bytes());
        if let Some(comment) = comment {
            option(out, OPT_COMMENT, comment.as_bytes());
        }
        end_of_options(out);
    });
}

impl Capture {
    /// Starts a capture that is written to `sink` (a file, a pipe to Wireshark).
    ///
    /// # Errors
    /// When its first block can't be written.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let mut out = Vec::new();
        block(&mut out, SECTION_HEADER, |out| {
            out.extend(BYTE_ORDER_MAGIC.to_ne_bytes());
            out.extend(1_u16.to_ne_bytes());
            out.extend(0_u16.to_ne_bytes());
            // The length of the section is not known in advance.
            out.extend((-1_i64).to_ne_bytes());
            option(out, SHB_USERAPPL, concat!("utcp ", env!("CARGO_PKG_VERSION")).as_bytes());
            end_of_options(out);
        });
        let mut file = File { sink: Box::new(sink), interfaces: 0, error: None, comment: None };
        file.write(&out);
        match file.error.take() {
            Some(error) => Err(error),
            None => Ok(Self { file: Arc::new(Mutex::new(file)) }),
        }
    }

    /// The words stand beside the next packet that is captured, a line for each call.
    pub fn comment(&self, words: &str) {
        let mut file = self.lock();
        let comment = file.comment.get_or_insert_default();
        if comment.len() + words.len() < COMMENT_MAX {
            if !comment.is_empty() {
                comment.push('\n');
            }
            comment.push_str(words);
        }
    }

    /// Why the capture ended, if it did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.lock().error.as_ref().map(ToString::to_string)
    }

    /// Captures what passes through `port` from now on.
    #[must_use]
    pub fn wrap(&self, mut port: Box<dyn Port>) -> Box<dyn Port> {
        let tracer = self.tracer(&mut *port);
        Box::new(CapturePort { tracer, inner: port })
    }

    /// Begins to capture a port whose owner calls the tracer's syncs instead of the port's own from now on.
    #[must_use]
    pub fn tracer(&self, port: &mut dyn Port) -> Tracer {
        let caps = port.caps();
        let mut out = Vec::new();
        block(&mut out, INTERFACE, |out| {
            out.extend(LINKTYPE_ETHERNET.to_ne_bytes());
            out.extend([0; 2]);
            // No limit on the length of a packet.
            out.extend(0_u32.to_ne_bytes());
            option(out, IF_NAME, caps.name.as_bytes());
            option(out, IF_MACADDR, &caps.mac);
            // Timestamps count nanoseconds.
            option(out, IF_TSRESOL, &[9]);
            end_of_options(out);
        });
        let frame_at = usize::from(caps.vnet_header);
        let interface = {
            let mut file = self.lock();
            // Packets of an interface that the file does not describe would make it unreadable.
            file.write(&out).then(|| {
                file.interfaces += 1;
                file.interfaces - 1
            })
        };
        let tx_space = port.tx().space();
        let capture = self.clone();
        Tracer { capture, interface, frame_at, tx_space, lost: 0, statistics_due: Duration::ZERO, batch: out }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes down what passes one port, until it is dropped.
pub struct Tracer {
    capture: Capture,
    /// Its number in the file; `None` when even its description found no room.
    interface: Option<u32>,
    /// Where the link header starts: behind a virtio-net header.
    frame_at: usize,
    /// Free tx slots after the last sync: what is missing now was committed since.
    tx_space: u32,
    lost: u64,
    /// When statistics are due again.
    statistics_due: Duration,
    /// Blocks of one batch.
    batch: Vec<u8>,
}

impl Tracer {
    /// [`Port::rx_sync`], and what it made visible is written down.
    pub fn rx_sync(&mut self, port: &mut dyn Port) -> Result<u32, PortError> {
        let unread = port.rx().available();
        let frames = port.rx_sync()?;
        if frames > unread {
            self.write(port, Direction::In, unread, 0);
        }
        Ok(frames)
    }

    /// [`Port::tx_sync`], and what it sends is written down.
    pub fn tx_sync(&mut self, port: &mut dyn Port) -> Result<u32, PortError> {
        let committed = self.tx_space.saturating_sub(port.tx().space());
        if committed > 0 {
            self.write(port, Direction::Out, 0, committed);
        }
        // Also after an error: the same frames are not written twice.
        self.tx_space = port.tx().space();
        let space = port.tx_sync()?;
        self.tx_space = space;
        Ok(space)
    }

    /// Frames that were not written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The capture that it writes to.
    #[must_use]
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    fn write(&mut self, port: &mut dyn Port, way: Direction, skip: u32, count: u32) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.batch.clear();
        let mut file = self.capture.lock();
        let mut comment = file.comment.take();
        let mut frames = 0;
        let (rx, tx) = port.rings();
        let mut put = |bytes: &[u8]| {
            let bytes = bytes.get(self.frame_at..).unwrap_or(bytes);
            let interface = self.interface.unwrap_or(0);
            packet(&mut self.batch, interface, time, way, bytes, comment.take().as_deref());
            frames += 1;
        };
        match way {
            Direction::In => rx.unread(skip).for_each(&mut put),
            Direction::Out => tx.committed(count).for_each(&mut put),
        }
        if self.interface.is_none() || !file.write(&self.batch) {
            self.lost += frames;
        }
        drop(file);
        if time >= self.statistics_due {
            self.statistics_due = time + STATISTICS_EVERY;
            self.count(port, time);
        }
    }

    /// The last words: what the port has counted until now.
    pub fn finish(mut self, port: &dyn Port) {
        self.count(port, SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    }

    fn count(&mut self, port: &dyn Port, time: Duration) {
        let Some(interface) = self.interface else { return };
        self.batch.clear();
        statistics(&mut self.batch, interface, time, &port.counters(), self.lost);
        self.capture.lock().write(&self.batch);
    }
}

/// A port whose frames are written down.
struct CapturePort {
    tracer: Tracer,
    inner: Box<dyn Port>,
}

impl Port for CapturePort {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.tracer.rx_sync(&mut *self.inner)
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.tracer.tx_sync(&mut *self.inner)
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        self.inner.rings()
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        self.inner.arm()
    }

    fn poll_fds(&self) -> PollFds {
        self.inner.poll_fds()
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.inner.tx_poll_fd()
    }

    fn resync_in(&self) -> Option<Duration> {
        self.inner.resync_in()
    }

    fn set_mac(&mut self, mac: [u8; 6]) {
        self.inner.set_mac(mac);
    }

    fn set_up(&mut self, up: bool) -> bool {
        self.inner.set_up(up)
    }

    fn counters(&self) -> Counters {
        Counters { capture_lost: self.tracer.lost, ..self.inner.counters() }
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
