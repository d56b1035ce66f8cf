//! A shard: one thread with its own flows, timers, ports and rings. Nothing in here is shared on the
//! fast path; the control thread talks to it through [`Inbox`].
//!
//! ```text
//!  loop: clock ─ rx batch ─ client commands ─ expired timers ─ transmit ─ flush ports ─ tell programs
//!          └── nothing to do? spin while it pays (yielding), then sleep with the doorbell armed ──┘
//! ```
//!
//! | module      | job |
//! |-------------|-----|
//! | `commands`  | what programs ask for: bytes queued, bytes consumed, connect, shutdown, close, options |
//! | `segments`  | what segments do: flows, half-open and TIME-WAIT records, resets |
//! | `listen`, `fast_open` | listeners and their accept queues |
//! | `connect`, `fast_client` | who serves a destination, and with which local port; data in SYNs |
//! | `transmit`  | from a TCB's decision to a frame, or straight into the peer on this host |
//! | `device`, `frame`, `fragments` | frames in and out of ports |
//! | `ahead`   | what the next steps touch is fetched before |
//! | `arrival` | when things come to sockets, so that programs hear of them in that order |
//! | `directory` | flows of other shards whose frames come to our queue |
//! | `effort`  | how busy it is, where the load decides how many shards get new connections |
//! | `spin`    | how long to look for work before a sleep |
//! | `coalesce` | when to let frames gather instead |
//! | `links`   | links that go down, away and come back, and their neighbours |
//! | `streams`   | memory of byte streams, and its growth |
//! | `pairs`, `held`, `uncut` | cut-through: connections of this host whose bytes don't pass here |
//! | `notify`    | readiness bits and bells, once per batch |
//! | `messages`  | what it and the control thread tell each other |
//! | `flow`, `client`, `table`, `wheel`, `loans` | what the others keep |

mod ahead;
mod arrival;
pub mod client;
mod coalesce;
mod commands;
mod connect;
mod device;
mod directory;
mod effort;
mod fast_client;
pub mod fast_open;
mod flow;
mod fragments;
pub mod frame;
mod handover;
mod held;
mod links;
mod listen;
mod loans;
mod messages;
mod moving;
mod notify;
mod pairs;
mod report;
mod segments;
mod spin;
pub mod streams;
pub mod table;
mod transmit;
mod uncut;
pub mod wheel;

#[cfg(test)]
mod rss_tests;
#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod taking_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod way_back_tests;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use utcp_abi::PeerCorrupt;
use utcp_netmap_io::Capture;
use utcp_proto::isn::Secret;
use utcp_proto::{ChallengeLimit, Instant, TimeWait};

use crate::counters::Counters;
use crate::host::{HostView, TcpSettings};
use crate::life::Life;
use crate::sys;
use client::Client;
use connect::LOCAL_PORTS;
use flow::Flow;
use table::{FlowTable, Slab};
use wheel::{Handle, Wheel};

/// TIME-WAIT records that one shard keeps; the oldest goes when there are more (counted).
const TIME_WAIT_MAX: usize = 1 << 16;
/// Room that is reserved up front, so that connections allocate nothing. Untouched, it costs no memory.
const FLOWS_RESERVED: usize = 1 << 17;
/// So many flows are kept in pages of the usual size: an engine with little to do stays small.
const FLOWS_FEW: usize = 1024;
/// Segments that one transmit phase sends at most before the loop looks around again.
const TRANSMIT_BUDGET: u32 = 2048;

/// What a timer is for.
#[derive(Debug, Clone, Copy)]
enum Timer {
    Flow(u32),
    HalfOpen(u32),
    TimeWait(u32),
    /// Look for connections of this client that a dead process took and never owned.
    Sweep(u32),
    /// Bytes of this flow are held back in a pair region.
    Held(u32),
}

/// A TIME-WAIT record and its timer.
#[derive(Debug)]
struct TimeWaitRecord {
    record: TimeWait,
    /// One for each record there ever was: its place in the order.
    number: u64,
    timer: Handle,
}

/// Settings of one shard.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Its number.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// Core to pin to.
    pub core: Option<usize>,
    /// Longest spin before a sleep, ns (module `spin`).
    pub spin_ns: u64,
    /// Longest time that frames may gather in, ns (module `coalesce`).
    pub coalesce_ns: u64,
    /// Same-host connections are served without a device.
    pub local: bool,
    /// Their bytes go from program to program.
    pub cut_through: bool,
    /// Random key of the engine.
    pub secret: Secret,
    /// Settings of a connection before those of its path and of its socket's options.
    pub tcp: TcpSettings,
}

/// One shard.
pub struct Shard {
    config: ShardConfig,
    life: Arc<Life>,
    inbox: Arc<Inbox>,
    /// What it sleeps on: inbox, clients' doorbells, ports.
    epoll: sys::Epoll,
    now: Instant,
    arrival: arrival::Arrival,
    clients: Slab<Client>,
    by_number: HashMap<u32, u32>,
    flows: Slab<Flow>,
    loans: loans::Loans,
    table: FlowTable,
    half_open: Slab<listen::HalfOpenRecord>,
    time_wait: Slab<TimeWaitRecord>,
    /// Oldest first: place and number. Some may be gone.
    time_wait_order: VecDeque<(u32, u64)>,
    time_wait_count: u64,
    wheel: Wheel<Timer>,
    pairs: Slab<pairs::Pair>,
    /// By the clients that connect and listen.
    pairs_of: HashMap<(u32, u32), Vec<u32>>,
    pair_numbers: pairs::Numbers,
    listeners: Slab<listen::Listener>,
    by_port: HashMap<u16, Vec<u32>>,
    ports: Vec<DevicePort>,
    links: Vec<device::Link>,
    /// By port: our addresses there, where we are a host of our own. Beside the ports, which stand aside while their frames are read.
    own: Vec<Vec<utcp_proto::wire::IpAddr>>,
    /// What passes the ports that the name means is written there.
    traced: Option<(Capture, String)>,
    headers: VecDeque<device::HeaderOnly>,
    outbox: Arc<Outbox>,
    host: Arc<HostView>,
    /// See [`ToShard::Sources`].
    sources: Arc<[utcp_proto::wire::IpAddr]>,
    to_transmit: VecDeque<u32>,
    with_news: Vec<u32>,
    listeners_with_news: Vec<u32>,
    touched_sets: Vec<notify::Touched>,
    dirty_scratch: Vec<u32>,
    fired_scratch: Vec<Timer>,
    next_port: u32,
    /// Destinations that were left to the kernel lately, under which view of the host.
    left_to_kernel: VecDeque<(utcp_proto::Endpoint, u32)>,
    /// Packets that came in parts.
    fragments: fragments::Fragments,
    /// Flows of all shards, where frames may come to the wrong one.
    directory: Option<Arc<Directory>>,
    /// Who takes a connection on that leads to no port of ours, by number.
    next_shard: Option<u32>,
    /// All shards.
    shards: Arc<[Arc<Inbox>]>,
    /// When neighbours are to be touched next, ns, and the flow to begin with.
    touch: (u64, u32),
    /// When the next neighbour may be touched because his frames come from elsewhere, ns.
    doubt_due: u64,
    /// Connections that came by a listener since the last round, whose way back is to be found.
    came_in: Vec<u32>,
    /// Our thread id, as arbiters know us.
    tid: u32,
    counters: Counters,
    challenges: ChallengeLimit,
    /// SYN cookies that we gave are good for so long.
    cookies_until: Instant,
    cookies: fast_client::Cookies,
}

impl Shard {
    /// A shard that serves `ports`.
    ///
    /// # Errors
    /// No epoll can be made, or a port can't be slept on.
    pub fn new(
        config: ShardConfig,
        life: Arc<Life>,
        inbox: Arc<Inbox>,
        outbox: Arc<Outbox>,
        ports: Vec<DevicePort>,
        host: Arc<HostView>,
    ) -> std::io::Result<Self> {
        let now = sys::now_ns();
        let epoll = sys::Epoll::new()?;
        epoll.add(inbox.doorbell().as_fd(), libc::EPOLLIN | libc::EPOLLET, 0)?;
        for port in &ports {
            for poll in port.poll_fds().iter() {
                epoll.add_port(poll.fd, i32::from(poll.events))?;
            }
        }
        let pair_numbers = pairs::Numbers::new(config.index);
        let mut flows = Slab::new(FLOWS_RESERVED);
        flows.advise_large_pages(FLOWS_FEW);
        Ok(Self {
            config,
            life,
            inbox,
            epoll,
            now: Instant::from_nanos(now),
            arrival: arrival::Arrival::default(),
            clients: Slab::new(16),
            by_number: HashMap::new(),
            flows,
            table: FlowTable::new(FLOWS_RESERVED),
            half_open: Slab::new(listen::HALF_OPEN_MAX),
            time_wait: Slab::new(TIME_WAIT_MAX),
            time_wait_order: VecDeque::with_capacity(TIME_WAIT_MAX),
            time_wait_count: 0,
            cookies_until: Instant::ZERO,
            wheel: Wheel::new(now, FLOWS_RESERVED),
            pairs: Slab::new(64),
            pairs_of: HashMap::new(),
            pair_numbers,
            listeners: Slab::new(64),
            by_port: HashMap::new(),
            links: ports.iter().map(|port| port.link).collect(),
            own: ports.iter().map(DevicePort::own_addresses).collect(),
            ports,
            traced: None,
            headers: VecDeque::with_capacity(1024),
            outbox,
            host,
            sources: Arc::default(),
            loans: loans::Loans::new(),
            to_transmit: VecDeque::with_capacity(FLOWS_RESERVED),
            with_news: Vec::with_capacity(4096),
            listeners_with_news: Vec::with_capacity(64),
            touched_sets: Vec::with_capacity(1024),
            dirty_scratch: Vec::with_capacity(4096),
            fired_scratch: Vec::with_capacity(4096),
            next_port: 0,
            left_to_kernel: VecDeque::with_capacity(connect::LEFT_REMEMBERED),
            fragments: fragments::Fragments::default(),
            directory: None,
            next_shard: None,
            shards: Arc::new([]),
            touch: (0, 0),
            doubt_due: 0,
            came_in: Vec::with_capacity(1024),
            tid: sys::gettid(),
            counters: Counters::default(),
            challenges: ChallengeLimit::default(),
            cookies: fast_client::Cookies::default(),
        })
    }

    /// There are others, with these inboxes: `directory` tells whose a flow is (where two have a port of the same device, or share
    /// client ports), and shard `next` is asked to take on connections over ports that we don't have.
    #[must_use]
    pub fn among_others(
        mut self,
        shards: Arc<[Arc<Inbox>]>,
        directory: Option<Arc<Directory>>,
        next: Option<u32>,
    ) -> Self {
        if let Some(directory) = &directory {
            self.table.enter_into(directory.clone(), self.config.index);
        }
        // They take the same ports, and begin in different places.
        self.next_port = (LOCAL_PORTS.end - LOCAL_PORTS.start) / self.config.count.max(1) * self.config.index;
        self.directory = directory;
        self.next_shard = next;
        self.shards = shards;
        self
    }

    /// The inbox of shard `index`.
    fn inbox_of(&self, index: u32) -> Option<&Inbox> {
        self.shards.get(index as usize).map(|inbox| &**inbox)
    }

    /// Sleeps on a client's doorbell, too.
    fn watch(&self, bell: BorrowedFd<'_>) {
        // Edge-triggered: nobody has to read it, and who fills or drains it changes nothing.
        if let Err(error) = self.epoll.add(bell, libc::EPOLLIN | libc::EPOLLET, 0) {
            tracing::error!(%error, "a client's doorbell can't be watched: it will be served late");
        }
    }

    /// Runs until the process ends.
    pub fn run(&mut self) {
        self.tid = sys::gettid();
        if let Some(core) = self.config.core
            && let Err(error) = sys::pin(core)
        {
            tracing::warn!(core, %error, "shard can't be pinned");
        }
        let mut idle_since = None;
        let mut spin = spin::Spin::new(self.config.spin_ns);
        let mut effort = effort::Effort::new(sys::now_ns());
        let mut coalesce = coalesce::Coalesce::new(self.config.coalesce_ns, sys::now_ns());
        sys::sleep_exactly();
        loop {
            let now = sys::now_ns();
            self.now = Instant::from_nanos(now);
            let worked = self.round();
            coalesce.note(self.counters.rx_frames, now);
            if self.config.count > 1 {
                self.tell_effort(&mut effort, now, worked);
            }
            if worked {
                self.counters.rounds += 1;
                if let Some(since) = idle_since.take() {
                    spin.note_gap(now - since, now);
                }
                continue;
            }
            if let Some(ns) = coalesce.nap(self.counters.rx_frames, now) {
                idle_since = None;
                self.nap(now, ns);
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if spin.goes_on(now - since, now) {
                // Whoever waits for this core (the program that we serve, perhaps) goes first.
                sys::yield_now();
                spin.note_yield(now, sys::now_ns());
            } else {
                self.sleep();
            }
        }
    }

    /// One turn at a given time, for who drives a shard by hand; true if there was work. Time never goes back.
    pub fn turn(&mut self, now: Instant) -> bool {
        self.now = if now > self.now { now } else { self.now };
        self.round()
    }

    /// When [`Self::turn`] has something to do at the latest, if nothing arrives before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let wheel = self.wheel.next_ns().map(Instant::from_nanos);
        let stations = self.stations_due_ns().map(Instant::from_nanos);
        wheel.into_iter().chain(stations).min()
    }

    /// The time of the last turn.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Settings of the connections to come.
    pub fn set_tcp(&mut self, tcp: TcpSettings) {
        self.config.tcp = tcp;
        self.life.page().fast_open.store(tcp.fast_open.flags, Ordering::Relaxed);
    }

    /// One turn of the loop; true if there was work.
    fn round(&mut self) -> bool {
        let mut work = false;
        self.arrival.look();
        if self.inbox.take_waiting() {
            while let Some(message) = self.inbox.receive() {
                let is_report = matches!(message, ToShard::Report(..));
                self.on_message(message);
                if is_report {
                    // Connections have their turn between two parts of a long one.
                    self.inbox.leave_rest();
                    break;
                }
            }
            work = true;
        }
        work |= self.receive_frames();
        work |= self.take_commands();
        work |= self.run_timers();
        work |= self.run_stations();
        if work {
            self.touch_neighbours();
        }
        self.find_ways_back();
        self.send_headers();
        work |= self.transmit_all();
        self.send_headers();
        self.flush_ports();
        self.tell_programs();
        work
    }

    fn run_timers(&mut self) -> bool {
        let now = self.now.as_nanos();
        let mut fired = std::mem::take(&mut self.fired_scratch);
        self.wheel.advance(now, |what| fired.push(what));
        let any = !fired.is_empty();
        for timers in fired.chunks(ahead::LOOK_AHEAD) {
            self.look_ahead_to(timers);
            for timer in timers {
                match *timer {
                    Timer::Flow(index) => self.on_flow_timer(index),
                    Timer::HalfOpen(index) => self.on_half_open_timer(index),
                    Timer::TimeWait(index) => self.end_time_wait(index),
                    Timer::Sweep(client) => self.sweep(client),
                    Timer::Held(index) => self.on_held_timer(index),
                }
            }
        }
        fired.clear();
        self.fired_scratch = fired;
        any
    }

    fn on_flow_timer(&mut self, index: u32) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.timer = None;
        let resolving = matches!(flow.path, flow::Path::Device { next_hop: device::UNRESOLVED, .. });
        if !resolving && flow.tcb.next_deadline().is_none_or(|due| due > now) {
            // It was put off, or is not wanted any more, since it was filed.
            return self.refile(index);
        }
        let actions = flow.tcb.on_timer(now);
        self.act(index, &actions, segments::Payload::None);
        self.give_up_next_hop(index);
        self.list_transmit(index);
        self.refile(index);
    }

    /// Files the flow under its TCB's next deadline. A later deadline than the filed one is left alone: the
    /// timer then fires early once and is filed again, which is cheaper than moving it with every segment.
    fn refile(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let due = flow.tcb.next_deadline().filter(|due| !due.is_never()).map(Instant::as_nanos);
        match (due, flow.timer) {
            (None, _) => {}
            (Some(due), Some((_, filed))) if filed <= due => {}
            (Some(due), filed) => {
                if let Some((handle, _)) = filed {
                    self.wheel.remove(handle);
                }
                flow.timer = Some((self.wheel.insert(due, Timer::Flow(index)), due));
            }
        }
    }

    /// Sleeps `ns` from `now` on, or until a timer is due: nobody is told to wake us.
    fn nap(&mut self, now: u64, ns: u64) {
        let timer = self.next_deadline().map_or(u64::MAX, |due| due.as_nanos().saturating_sub(now));
        self.counters.naps += 1;
        sys::nap(ns.min(timer));
    }

    /// Sleeps until somebody rings, a frame arrives or a timer is due.
    fn sleep(&mut self) {
        let life = self.life.clone();
        let Some(asleep) = life.page().asleep.get(self.config.index as usize) else { return };
        let count = asleep.count.load(Ordering::Relaxed) | 1;
        asleep.count.store(count, Ordering::SeqCst);
        // Pairs with the ringer's: our "asleep" before our last look, its news before its look.
        fence(Ordering::SeqCst);
        let shard = self.config.index;
        let quiet = !self.inbox.is_waiting()
            && self.clients.iter().all(|(_, c)| c.corrupt || c.gone || c.region.dirty(shard).is_empty())
            && self.to_transmit.is_empty()
            && self.arm_ports();
        if quiet {
            self.counters.sleeps += 1;
            self.wait();
        }
        // Even again, and different from last time: nobody takes an old ring for a new one.
        asleep.count.store(count.wrapping_add(1), Ordering::SeqCst);
    }

    fn wait(&mut self) {
        for port in &mut self.ports {
            let dead = port.take_dead_fds();
            if dead.iter().next().is_some() {
                self.outbox.send(ToControl::PortGone { name: port.name().to_owned() });
            }
            for poll in dead.iter() {
                self.epoll.remove_port(poll.fd);
            }
        }
        let mut due = self.wheel.next_ns();
        if let Some(at) = self.stations_due_ns() {
            due = Some(due.map_or(at, |d| d.min(at)));
        }
        let now = sys::now_ns();
        for port in &self.ports {
            if let Some(within) = port.resync_in() {
                let at = now.saturating_add(u64::try_from(within.as_nanos()).unwrap_or(u64::MAX));
                due = Some(due.map_or(at, |d| d.min(at)));
            }
        }
        self.epoll.sleep(due.map(|due| due.saturating_sub(now)));
    }

    fn on_message(&mut self, message: ToShard) {
        match message {
            ToShard::Attach(shared) => {
                let number = shared.id;
                if let Some(bell) = shared.doorbells().get(self.config.index as usize) {
                    self.watch(bell.as_fd());
                }
                let index = self.clients.insert(Client::new(shared, self.config.index));
                self.by_number.insert(number, index);
            }
            ToShard::Detach(number) => self.on_detach(number),
            ToShard::Listen(request) => self.on_listen(&request),
            ToShard::Unlisten { client, sock } => self.on_unlisten(client, sock),
            ToShard::LeaveToKernel { client, sock } => self.on_leave_to_kernel(client, sock),
            ToShard::Yield { client, sock } => self.on_yield(client, sock),
            ToShard::Hangup { client, sock, token } => self.on_hangup(client, sock, token),
            ToShard::Left { place, generation } => self.on_left(place, generation),
            ToShard::Move { from, token, to, decided, done } => {
                // The slot at `to` is the relay's no longer if nobody waits.
                if !decided.swap(true, Ordering::AcqRel) {
                    let _ = done.try_send(self.move_socket(from, token, to));
                }
            }
            ToShard::ProcessGone(number) => {
                if let Some(&index) = self.by_number.get(&number) {
                    self.on_process_gone(index);
                }
            }
            ToShard::SetBell { client, set, bell } => {
                let client = self.by_number.get(&client).and_then(|&i| self.clients.get_mut(i));
                let Some(client) = client else { return };
                // Its program may have slept on it before this message was looked at, and been rung by the bell before it. Without
                // news it sleeps well: whoever watches the set from outside must not see it stir.
                if client.region.ready(set).is_some_and(|ready| !ready.is_empty()) {
                    bell.ring();
                }
                if let Some(slot) = client.set_bells.get_mut(set as usize) {
                    *slot = Some(bell);
                }
            }
            ToShard::Host(host) => self.on_host(host),
            ToShard::Sources(sources) => self.sources = sources,
            ToShard::Frame { interface, frame } => self.on_handed_frame(interface, &frame),
            ToShard::Connect(passed) => self.on_passed_connect(passed),
            ToShard::Misdirected { client, sock, token, left } => {
                self.on_misdirected(client, sock, token, left);
            }
            ToShard::Lesson(lesson, left) => self.on_lesson(lesson, left),
            ToShard::Port { place, port } => self.place_port(place, *port),
            ToShard::Trace { capture, port } => self.trace(&capture, &port),
            ToShard::Untrace => self.untrace(),
            ToShard::Report(request, to) => {
                // An accept rings nobody.
                self.take_commands();
                let _ = to.try_send(self.report(request));
            }
        }
    }

    /// A client wrote a word that no correct client can have written: it is served no more.
    fn throw_out(&mut self, index: u32, error: PeerCorrupt) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if client.corrupt {
            return;
        }
        client.corrupt = true;
        client.region.header().closed.store(1, Ordering::Release);
        let (pid, name) = (client.shared.pid, client.shared.name.clone());
        tracing::warn!(pid, name, what = error.what, value = error.value, "client thrown out");
        self.counters.corrupt_clients += 1;
        self.abort_all(index);
    }

    /// Resets every flow and drops every listener of a client.
    fn abort_all(&mut self, index: u32) {
        let listeners: Vec<u32> =
            self.listeners.iter().filter(|(_, l)| l.client == index).map(|(i, _)| i).collect();
        for listener in listeners {
            self.drop_listener(listener);
        }
        let flows: Vec<u32> = self.flows.iter().filter(|(_, f)| f.client == index).map(|(i, _)| i).collect();
        for flow in flows {
            self.abort(flow);
        }
    }

    fn on_detach(&mut self, number: u32) {
        let Some(&index) = self.by_number.get(&number) else { return };
        // What its programs did before they ended still counts, and goes out: a connection that began later would have nobody
        // to end it. Then the region is given up.
        self.take_commands();
        let listeners: Vec<u32> =
            self.listeners.iter().filter(|(_, l)| l.client == index).map(|(i, _)| i).collect();
        for listener in listeners {
            self.drop_listener(listener);
        }
        // What closes in order looks at what was written, which this one is not believed in.
        if self.clients.get(index).is_some_and(|client| client.corrupt) {
            self.abort_all(index);
        }
        let flows: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, f)| f.client == index && !f.closed_by_program)
            .map(|(i, _)| i)
            .collect();
        for flow in flows {
            self.close_flow(flow);
        }
        if let Some(client) = self.clients.get_mut(index) {
            client.gone = true;
        }
        self.forget_client_if_done(index);
    }

    pub(super) fn forget_client_if_done(&mut self, index: u32) {
        let Some(client) = self.clients.get(index) else { return };
        if client.gone && client.flows == 0 {
            let shared = client.shared.clone();
            if let Some(bell) = shared.doorbells().get(self.config.index as usize) {
                self.epoll.remove(bell.as_fd());
            }
            self.drop_pairs_of(index);
            self.clients.remove(index);
            self.by_number.remove(&shared.id);
        }
    }
}

pub(crate) use device::client_ports;
pub use device::{DEVICE_PORTS, DevicePort};
pub use directory::Directory;
pub use effort::{BUSY_PERMILLE, WINDOW_NS};
pub use messages::{Inbox, ListenRequest, Outbox, PassedConnect, Report, ReportRequest, ToControl, ToShard};
pub use moving::{Place, stands_on};
pub use pairs::PairRegion;
pub(crate) use report::endpoint;
pub use report::{Cursor, SocketLine};
