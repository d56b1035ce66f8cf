//! The control thread: attaches programs, hands out descriptors, hears of their death.
//!
//! It sleeps in one epoll on: the unix socket where programs come in, their channels, the far ends of the
//! descriptors that stand under utcp sockets, netlink (routes, nftables), the shards' outbox, and signals.

mod balance;
mod channel;
mod devices;
pub mod diag;
mod door;
mod groups;
mod heirs;
mod left;
mod lingering;
mod listeners;
mod pairs;
mod relays;
mod report;
mod rules;
mod sets;
mod stands;
mod start;
mod telling;
mod trace;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::host::netlink::Channel as Netlink;
use crate::host::{HostMirror, HostView};
use crate::life::Life;
use crate::relay::Relay;
use crate::shard::client::ClientRegion;
use crate::shard::{Cursor, Inbox, Outbox, Report, ReportRequest, SocketLine, ToControl, ToShard};
use crate::sys;
use utcp_proto::wire::IpAddr;

pub use start::{OpenDevice, Surroundings, run, run_in};
pub(crate) use trace::is_of;

/// How long an embedded engine waits for another program before it leaves.
const LINGER: Duration = Duration::from_millis(500);
/// Processes of one client, descriptors of one client, and programs of one user at most: what a program can make
/// the engine hold is bounded.
const CHANNELS_MAX: u32 = 4096;
const TOKENS_MAX: u32 = utcp_abi::layout::SOCKETS_MAX + 4096;
const CLIENTS_PER_USER_MAX: usize = 1024;
/// What is heard of a process.
const CHANNEL_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLRDHUP;
/// How often what stays steered without a listener is looked at again.
const LINGERING_CHECK: Duration = Duration::from_secs(1);

/// Why an engine could not start; the text says what to do.
#[derive(Debug)]
pub enum EngineError {
    /// Another engine has the name already.
    AlreadyRunning(String),
    /// A system call failed.
    System {
        /// What we were doing.
        doing: &'static str,
        /// What came of it.
        error: io::Error,
    },
    /// A device can't be opened.
    Device {
        /// The device string.
        device: String,
        /// Why.
        error: utcp_netmap_io::PortError,
    },
    /// A setting is not usable.
    Setting(String),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning(name) => write!(f, "an engine is running already at {name}"),
            Self::System { doing, error } => write!(f, "{doing}: {error}"),
            Self::Device { device, error } => write!(f, "device {device}: {error}"),
            Self::Setting(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for EngineError {}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Door,
    Channel(u32),
    Token(u32),
    Netlink,
    Outbox,
    Signal,
    Rules,
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Door => (0, 0),
            Self::Channel(index) => (1, index),
            Self::Token(token) => (2, token),
            Self::Netlink => (3, 0),
            Self::Outbox => (4, 0),
            Self::Signal => (5, 0),
            Self::Rules => (6, 0),
        };
        kind << 32 | u64::from(index)
    }

    fn unpack(data: u64) -> Option<Self> {
        let index = data as u32;
        Some(match data >> 32 {
            0 => Self::Door,
            1 => Self::Channel(index),
            2 => Self::Token(index),
            3 => Self::Netlink,
            4 => Self::Outbox,
            5 => Self::Signal,
            6 => Self::Rules,
            _ => return None,
        })
    }
}

/// One process's connection to the engine.
#[derive(Debug)]
struct Channel {
    fd: Arc<OwnedFd>,
    client: Option<u32>,
    pid: u32,
    own_pid: u32,
    uid: u32,
    /// It has said something.
    spoke: bool,
    /// A report that it has not read whole yet.
    telling: Option<telling::Telling>,
}

/// A client program: all processes that share a region.
#[derive(Debug)]
struct ClientEntry {
    shared: Arc<ClientRegion>,
    channels: u32,
    /// Descriptors that it holds.
    tokens: u32,
    listeners: Vec<listeners::ListenerEntry>,
    free_listener_slots: Vec<u32>,
    /// Socket slots of listeners that are gone, with the shards that have them still.
    leaving: Vec<(u32, Arc<AtomicU32>)>,
}

/// The far end of a descriptor that stands under a utcp socket, or waits in a pool.
#[derive(Debug)]
struct Token {
    client: u32,
    /// Kept open: its hang-up is the news.
    far_end: OwnedFd,
    /// What lives as long as it: the kernel's socket of a client that was bound.
    held: Option<OwnedFd>,
    /// Bytes were sent over it that mean nothing, see [`Control::signal`].
    signalled: bool,
}

/// The control thread's state.
struct Control {
    config: Config,
    epoll: sys::Epoll,
    door: OwnedFd,
    spare: door::Spare,
    life: Arc<Life>,
    inboxes: Vec<Arc<Inbox>>,
    outbox: Arc<Outbox>,
    devices: Vec<devices::Device>,
    /// Opens a device by its string.
    open: Box<OpenDevice>,
    trace: Option<trace::Trace>,
    mirror: HostMirror,
    /// Tells that rules of nftables have changed.
    rules: Option<Netlink>,
    host: Arc<HostView>,
    /// See [`ToShard::Sources`].
    sources: Arc<[IpAddr]>,
    channels: HashMap<u32, Channel>,
    clients: HashMap<u32, ClientEntry>,
    tokens: HashMap<u32, Token>,
    relay: Option<Relay>,
    /// By number.
    pairs: HashMap<u32, pairs::PairEntry>,
    lingering: lingering::Lingering,
    heirs: heirs::Heirs,
    left: left::Left,
    balance: balance::Balance,
    /// See [`groups`].
    groups: groups::Groups,
    kernel_log: Vec<report::LogLine>,
    next_number: u32,
    empty_since: Option<Instant>,
    stop: bool,
}

impl Control {
    /// A number that no client, channel or token has.
    fn number(&mut self) -> u32 {
        loop {
            self.next_number = self.next_number.wrapping_add(1) & utcp_abi::waiting::TOKEN_MAX;
            let n = self.next_number;
            if n != 0
                && !self.tokens.contains_key(&n)
                && !self.channels.contains_key(&n)
                && !self.clients.contains_key(&n)
            {
                return n;
            }
        }
    }

    fn to_all(&self, message: impl Fn() -> ToShard) {
        for inbox in &self.inboxes {
            inbox.send(message());
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        while !self.stop {
            let timeout = self.timeout_ms();
            let mut sources = Vec::new();
            self.epoll
                .wait(timeout, |data, what| sources.extend(Source::unpack(data).map(|source| (source, what))))
                .map_err(|error| EngineError::System { doing: "waiting for programs", error })?;
            let mut hung_up = Vec::new();
            for (source, what) in sources {
                match source {
                    Source::Door => self.on_door(),
                    Source::Channel(number) => self.on_channel(number),
                    Source::Token(token) if what & libc::EPOLLHUP as u32 != 0 => hung_up.push(token),
                    Source::Token(token) => self.on_stand(token),
                    Source::Netlink => self.on_netlink(),
                    Source::Rules => self.on_rules(),
                    Source::Outbox => self.on_outbox(),
                    Source::Signal => self.stop = true,
                }
            }
            self.on_hangups(&hung_up);
            self.on_time();
        }
        Ok(())
    }

    fn timeout_ms(&self) -> i32 {
        let other = self.other_timeout_ms();
        let Some(balance) = self.balance.due_in(Instant::now()) else { return other };
        // Rounded up, or the last part of a millisecond would be waited for in circles.
        let balance = balance.as_millis() as i32 + 1;
        if other < 0 { balance } else { other.min(balance) }
    }

    fn other_timeout_ms(&self) -> i32 {
        if !self.heirs.is_empty() {
            return heirs::CHECK.as_millis() as i32;
        }
        if self.devices_wait() {
            return devices::RETRY.as_millis() as i32;
        }
        if !self.lingering.is_empty() {
            return LINGERING_CHECK.as_millis() as i32;
        }
        if self.config.embedded && self.clients.is_empty() {
            return LINGER.as_millis() as i32;
        }
        self.left.due_in(Instant::now()).map_or(-1, |due| due.as_millis() as i32 + 1)
    }

    /// More shards for new connections, or fewer.
    fn balance(&mut self) {
        let efforts = self.inboxes.iter().map(|inbox| inbox.effort());
        if let Some(active) = self.balance.look(Instant::now(), efforts) {
            self.life.page().active.store(active, std::sync::atomic::Ordering::Relaxed);
            tracing::info!(active, of = self.inboxes.len(), "shards that get new connections, by the load");
        }
    }

    fn on_time(&mut self) {
        self.balance();
        self.check_lingering();
        if !self.heirs.is_empty() {
            self.check_heirs();
        }
        self.check_left();
        if self.devices_wait() {
            self.check_devices();
        }
        // Tools that ask (`utcp ss`) are no clients: they don't keep it here.
        if !self.config.embedded || !self.clients.is_empty() {
            self.empty_since = None;
            return;
        }
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        // What programs queued before they ended still has to go out.
        if since.elapsed() >= LINGER && self.alive_flows() == 0 {
            self.stop = true;
        }
    }

    fn alive_flows(&self) -> usize {
        let mut alive = 0;
        for report in self.ask(ReportRequest::Alive) {
            if let Report::Alive { flows } = report {
                alive += flows;
            }
        }
        alive
    }

    /// Asks every shard; those that don't answer within two seconds are left out.
    fn ask(&self, request: ReportRequest) -> Vec<Report> {
        self.inboxes.iter().filter_map(|inbox| ask_one(inbox, request)).collect()
    }

    /// Every socket of every shard, part by part.
    fn socket_lines(&self) -> Vec<SocketLine> {
        let mut all = Vec::new();
        for inbox in &self.inboxes {
            let mut at = Some(Cursor::default());
            while let Some(from) = at.take() {
                if let Some(Report::Sockets(lines, rest)) = ask_one(inbox, ReportRequest::Sockets(from)) {
                    all.extend(lines);
                    at = rest;
                }
            }
        }
        all
    }

    fn on_netlink(&mut self) {
        if let Some(view) = self.mirror.on_readable() {
            self.host = view;
            let page = self.life.page();
            page.route_epoch.fetch_add(1, std::sync::atomic::Ordering::Release);
            let host = self.host.clone();
            self.to_all(|| ToShard::Host(host.clone()));
            self.check_devices();
        }
    }

    pub(super) fn on_outbox(&mut self) {
        sys::drain(self.outbox.doorbell().as_fd());
        while let Some(message) = self.outbox.receive() {
            match message {
                ToControl::Resolve { ifindex, next_hop } => self.mirror.resolve(ifindex, next_hop),
                ToControl::PairMade(region) => self.on_pair_made(region),
                ToControl::PairGone(number) => self.on_pair_gone(number),
                ToControl::Signal(place) => self.signal(place),
                ToControl::PortGone { name } => self.on_port_gone(&name),
                ToControl::Touch { ifindex, next_hop } => self.mirror.touch(ifindex, next_hop),
                ToControl::Busy => {
                    let efforts = self.inboxes.iter().map(|inbox| inbox.effort());
                    self.balance.on_busy(Instant::now(), efforts);
                }
                ToControl::LeftToKernel { pid, to, scope, reason } => {
                    let reason = reason.map_or_else(|| self.reason_for_kernel(to.addr, scope), str::to_owned);
                    self.note_left_to_kernel(pid, to, &reason);
                }
            }
        }
    }

    /// A process is gone. With the last one its client goes.
    fn on_channel_gone(&mut self, number: u32) {
        self.end_trace_of(number);
        let Some(channel) = self.channels.remove(&number) else { return };
        let Some(client) = channel.client else { return };
        let Some(entry) = self.clients.get_mut(&client) else { return };
        entry.channels -= 1;
        let last = entry.channels == 0;
        let shared = entry.shared.clone();
        self.drain_log(&shared);
        if last {
            self.relay_rest(client);
            tracing::info!(client, pid = channel.pid, name = shared.name, "client left");
            self.on_client_gone(client);
        } else {
            let slots: Vec<u32> = self
                .clients
                .get(&client)
                .map_or(Vec::new(), |e| e.listeners.iter().map(|l| l.slot).collect());
            sets::reclaim(shared.region(), &slots, channel.own_pid);
            self.to_all(|| ToShard::ProcessGone(client));
            self.on_listen_check(client, None);
        }
    }
}

fn ask_one(inbox: &Inbox, request: ReportRequest) -> Option<Report> {
    let (to, from) = std::sync::mpsc::sync_channel(1);
    inbox.send(ToShard::Report(request, to));
    from.recv_timeout(Duration::from_secs(2)).ok()
}
