//! One shard by itself: its device a pipe, its program a few lines that do in its memory what libutcp.so does.
//!
//! ```text
//!  generator ══ pipe ══ shard ── region ── echo
//!                       └ alone on the clock
//! ```
//!
//! What the engine costs for a message, or for a connection of so many messages, without a program, a scheduler or a limit of
//! descriptors: 100 000 connections are as good as any number. All in one thread, which takes turns; the clock is its CPU time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use utcp_abi::Region;
use utcp_abi::set::Member;
use utcp_abi::socket::{Addr, BufRef, Socket, intent, status};
use utcp_abi::stream::pieces;
use utcp_abi::waiting;
use utcp_engine::host::{HostMirror, TcpSettings};
use utcp_engine::life::Life;
use utcp_engine::shard::client::ClientRegion;
use utcp_engine::shard::{DevicePort, Inbox, ListenRequest, Outbox, Shard, ShardConfig, ToShard};
use utcp_engine::station::{DeviceConfig, Station};
use utcp_engine::sys;
use utcp_netmap_io::{OpenOptions, pipe};
use utcp_proto::Instant;
use utcp_proto::isn::Secret;

use crate::Error;
use crate::lean::{Generator, Link, Load, Place};

/// What to print beside the figures.
pub const WORDS: &str = "one shard on a pipe, its program a few lines in its memory: CPU time of the shard alone; a message is three segments: \
    request, answer, ACK; there is nothing of the kernel's to compare with";

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 79, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 79, 2);
const PORT: u16 = 7000;
/// Enough for 100 000 connections from one address.
const PORTS: u16 = 4;
/// The program's number, its listener's slot and its epoll set.
const PROGRAM: u32 = 1;
const SET: u32 = 0;
/// Messages under way at a time.
const IN_FLIGHT: u32 = 64;
/// Bytes of a message at most.
const MESSAGE_MAX: usize = 4096;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Connections at a time.
    pub connections: u32,
    /// Bytes of a message.
    pub bytes: u32,
    /// Messages of a connection, which a new one follows; 0: they stay.
    pub each: u32,
    /// Messages on each connection on the clock, …
    pub rounds: u32,
    /// … and at least in all.
    pub least: u64,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Messages that came back.
    pub messages: u64,
    /// Messages that failed.
    pub errors: u64,
    /// CPU time of the shard for each, ns.
    pub ns_per_message: f64,
    /// Connections that the program had not closed at the end.
    pub open: u64,
}

/// Does `work`.
///
/// # Errors
/// When the parts can't be made, or the connections don't come up.
pub fn run(work: Work) -> Result<Summary, Error> {
    let Work { connections, bytes, each, rounds, least } = work;
    let failed = |what| Error::io(what);
    let options = OpenOptions::default();
    let [ours, theirs] = pipe::pair(&format!("solo-{}", std::process::id()), &options)?;
    let (clock, open) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut server = Server::new(ours).map_err(failed("making a shard"))?;
    server.listen();
    let place = Place { local: CLIENT, server: SERVER, port: PORT, ports: PORTS };
    let link = Link::over(theirs, place).map_err(|error| Error::Missing(error.to_string()))?;
    let mut generator = Generator::new(link);
    let of_server = clock.clone();
    server.program.open = open.clone();
    generator.beside(Box::new(move || server.turn(&of_server)));

    let run_failed = |error: crate::lean::RunError| Error::Missing(error.to_string());
    if each == 0 {
        generator.hold(connections).map_err(run_failed)?;
    }
    let load = |operations| Load {
        bytes,
        messages: each,
        connections,
        in_flight: IN_FLIGHT,
        rate: None,
        quick_ack: each == 0,
        time: Duration::ZERO,
        operations,
    };
    // Every connection's first message touches memory that later ones find there.
    generator.run(load(2 * u64::from(connections))).map_err(run_failed)?;
    clock.store(0, Ordering::Relaxed);
    let summary =
        generator.run(load(least.max(u64::from(rounds) * u64::from(connections)))).map_err(run_failed)?;
    #[allow(clippy::cast_precision_loss, reason = "below 2^52")]
    let ns_per_message = clock.load(Ordering::Relaxed) as f64 / summary.operations.max(1) as f64;
    Ok(Summary {
        messages: summary.operations,
        errors: summary.errors,
        ns_per_message,
        open: open.load(Ordering::Relaxed),
    })
}

/// CPU time of this thread, ns.
fn thread_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock always exists and fills the structure. (Not by rustix, which looks for the vDSO where valgrind has none.)
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// All of the shard's work that there is now.
#[inline(never)]
fn on_the_clock(shard: &mut Shard) {
    while shard.turn(Instant::from_nanos(sys::now_ns())) {}
}

struct Server {
    shard: Shard,
    inbox: Arc<Inbox>,
    program: Echo,
    _region: Arc<ClientRegion>,
}

impl Server {
    fn new(port: Box<dyn utcp_netmap_io::Port>) -> std::io::Result<Self> {
        let (_, host) = HostMirror::open()?;
        let config = ShardConfig {
            index: 0,
            count: 1,
            core: None,
            spin_ns: 0,
            coalesce_ns: 0,
            local: false,
            cut_through: false,
            secret: Secret::new(1, 2),
            tcp: TcpSettings::DEFAULT,
        };
        let name = format!("pipe:solo,addr={SERVER}/24");
        let config_of_station = DeviceConfig::parse(&name).ok().and_then(|config| config.station);
        let station = config_of_station.map(|config| Station::new(&config, port.caps()));
        let (inbox, outbox) = (Arc::new(Inbox::new()?), Arc::new(Outbox::new()?));
        let ports = vec![DevicePort::new(port, station)];
        let shard = Shard::new(config, Arc::new(Life::new(1)?), inbox.clone(), outbox, ports, host)?;
        let region = Arc::new(ClientRegion::new(PROGRAM, std::process::id(), 0, "solo".to_owned(), 1)?);
        inbox.send(ToShard::Attach(region.clone()));
        let program = Echo {
            region: region.region(),
            scratch: vec![0; MESSAGE_MAX],
            listeners: 0,
            open: Arc::default(),
        };
        Ok(Self { shard, inbox, program, _region: region })
    }

    fn listen(&mut self) {
        for number in 0..PORTS {
            let Some(sock) = self.program.region.claim_socket() else { return };
            let mut ip = [0; 16];
            ip[10..12].copy_from_slice(&[0xff, 0xff]);
            self.inbox.send(ToShard::Listen(ListenRequest {
                client: PROGRAM,
                sock,
                slot: number.into(),
                addr: Addr { ip, port: PORT + number, scope: 0 },
                backlog: 4096,
                one_family: true,
                inode: 0,
                reuseport: false,
                kernels: false,
                holders: Arc::new(AtomicU32::new(1)),
            }));
            self.program.listeners += 1;
        }
    }

    fn turn(&mut self, clock: &AtomicU64) {
        let start = thread_ns();
        on_the_clock(&mut self.shard);
        clock.fetch_add(thread_ns() - start, Ordering::Relaxed);
        self.program.turn();
    }
}

/// Sends back what comes.
struct Echo {
    region: Region,
    scratch: Vec<u8>,
    listeners: u32,
    /// Connections that were taken and not closed.
    open: Arc<AtomicU64>,
}

impl Echo {
    fn turn(&mut self) {
        let region = self.region;
        for slot in 0..self.listeners {
            let Some(listener) = region.listener(slot) else { return };
            while let Some(entry) = listener.queues[0].ring().pop() {
                let sock = waiting::slot_of(entry);
                let Some(socket) = region.socket(sock) else { return };
                // No descriptor stands under these: any token will do.
                if waiting::take(socket, entry, waiting::TOKEN_MAX).is_none() {
                    continue;
                }
                self.open.fetch_add(1, Ordering::Relaxed);
                socket.intent.fetch_or(intent::OWNED, Ordering::Relaxed);
                // The interest's number is the socket's: it need not be looked up.
                let member =
                    Member { set: SET, interest: sock, events: libc::EPOLLIN as u16, exclusive: false };
                socket.members[0].store(member.pack(), Ordering::SeqCst);
                region.dirty(0).set(sock);
                self.answer(sock, socket);
            }
        }
        let Some(ready) = region.ready(SET) else { return };
        let mut next = 0;
        while let Some(sock) = ready.next(next) {
            ready.clear(sock);
            next = sock + 1;
            if let Some(socket) = region.socket(sock) {
                self.answer(sock, socket);
            }
        }
    }

    fn answer(&mut self, sock: u32, socket: &Socket) {
        let len = usize::try_from(socket.rx_available()).unwrap_or(0).min(MESSAGE_MAX);
        if len == 0 {
            let closed = || socket.intent.fetch_or(intent::CLOSE, Ordering::AcqRel) & intent::CLOSE != 0;
            if socket.is(status::RX_FIN) && !closed() {
                self.open.fetch_sub(1, Ordering::Relaxed);
                self.region.dirty(0).set(sock);
            }
            return;
        }
        let head = socket.rx_head.load(Ordering::Relaxed);
        self.each_piece(&socket.rx_buf, head, len, |scratch, bytes| {
            // SAFETY: both have the piece's length; the shard writes behind `rx_tail` only.
            unsafe { std::ptr::copy_nonoverlapping(bytes, scratch.as_mut_ptr(), scratch.len()) };
        });
        socket.rx_head.store(head + len as u64, Ordering::Release);
        let tail = socket.tx_tail.load(Ordering::Relaxed);
        self.each_piece(&socket.tx_buf, tail, len, |scratch, bytes| {
            // SAFETY: as above; the shard reads before `tx_tail` only. One message is always shorter than the stream.
            unsafe { std::ptr::copy_nonoverlapping(scratch.as_ptr(), bytes, scratch.len()) };
        });
        socket.tx_tail.store(tail + len as u64, Ordering::Release);
        self.region.dirty(0).set(sock);
    }

    /// `len` bytes of a stream from `position` on, beside as much of the scratch.
    fn each_piece(&mut self, buf: &AtomicU64, position: u64, len: usize, each: impl Fn(&mut [u8], *mut u8)) {
        let buf = BufRef(buf.load(Ordering::Relaxed));
        let Some(base) = self.region.stream(buf) else { return };
        let mut rest = &mut self.scratch[..len];
        for piece in pieces(buf.capacity(), position, len as u64) {
            let (now, later) = rest.split_at_mut(piece.len);
            // SAFETY: `pieces` stays inside the buffer.
            each(now, unsafe { base.add(piece.offset) });
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(each: u32) {
        // Twice the connections before the clock runs, and three times on it.
        let summary = run(Work { connections: 100, bytes: 64, each, rounds: 3, least: 0 }).unwrap();
        assert!(summary.messages >= 300 && summary.ns_per_message > 0.0, "{summary:?}");
        assert_eq!(summary.errors, 0);
        assert!(summary.open <= 100 + u64::from(IN_FLIGHT), "{summary:?}");
    }

    #[test]
    fn messages_come_back_from_a_shard_by_itself() {
        check(0);
    }

    #[test]
    fn so_they_do_over_a_connection_for_each() {
        check(1);
    }
}
