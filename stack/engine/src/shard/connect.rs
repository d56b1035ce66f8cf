//! Who serves a destination: another program of this host, a device of ours, or the kernel.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use utcp_abi::socket::{
    Addr, BufRef, OpCode, Options, RESULT_DEFERRED, RESULT_KERNEL, Socket, option, status,
};
use utcp_netmap_io::rss::Rss;
use utcp_proto::wire::IpAddr;
use utcp_proto::{Config, Endpoint, FourTuple, MtuProbing, Tcb};

use super::client::SlotUse;
use super::commands::tcb_config;
use super::device::Unknown;
use super::flow::Path;
use super::table::Entry;
use super::{PassedConnect, Shard, ToControl, ToShard};

/// Client ports of same-host connections: the kernel's default range.
pub(super) const LOCAL_PORTS: std::ops::Range<u32> = 32_768..61_000;
/// Destinations of the kernel's that one shard remembers, so that each is explained once.
pub(super) const LEFT_REMEMBERED: usize = 64;
/// Largest segment between two programs of one host, as on the kernel's loopback device.
const LOCAL_MSS: u16 = 65_483;

/// Whether operation `code` may go from shard to shard.
const fn is_passable(code: u32) -> bool {
    code == OpCode::Connect as u32 || code == OpCode::ConnectFast as u32
}

/// Ports that are tried for one whose replies come to a queue of ours: enough for devices of hundreds of queues.
const HASHED_TRIES: u32 = 2048;

/// Which queue the replies to a connection come to.
struct Replies {
    rss: Arc<Rss>,
    /// This shard's, as bits.
    queues: u128,
}

impl Replies {
    /// Whether they come to this shard; what is not known is not in the way.
    fn come_here(&self, tuple: &FourTuple) -> bool {
        let [from, to] = [tuple.remote, tuple.local].map(|end| (Ipv6Addr::from(end.addr.0), end.port));
        self.rss.queue(from, to).is_none_or(|queue| self.queues & queue_bit(queue) != 0)
    }
}

/// A queue's bit; the last one stands for all that have none of their own.
fn queue_bit(queue: u32) -> u128 {
    1 << queue.min(127)
}

impl Shard {
    /// The program asked to connect the fresh socket `sock`.
    pub(super) fn on_connect(&mut self, client_index: u32, sock: u32) {
        let Some(region) = self.clients.get(client_index).map(|c| c.region) else { return };
        let Some(socket) = region.socket(sock) else { return };
        let waits = socket.op() != OpCode::ConnectLoopback as u32;
        let result = self.try_connect(client_index, sock);
        if result == RESULT_KERNEL && !waits && self.inbox.has_more() {
            // The page told the program of a listener whose message is still in the inbox: it came behind this round's
            // look, or a message before it (a hang-up, say) had the commands taken. The next look knows the listener.
            if let Some(client) = self.clients.get_mut(client_index) {
                client.untake_op(sock);
            }
            region.dirty(self.config.index).set(sock);
            return;
        }
        let left = self.config.count.saturating_sub(1);
        if result == RESULT_KERNEL && waits && self.pass_connect_on(client_index, sock, socket, left) {
            return;
        }
        self.finish_connect(client_index, sock, socket, result, waits);
    }

    /// Counts and answers a connect.
    fn finish_connect(&mut self, client_index: u32, sock: u32, socket: &Socket, result: i32, waits: bool) {
        match result {
            0 | RESULT_DEFERRED => self.counters.connects += 1,
            RESULT_KERNEL => {
                self.counters.connects_kernel += 1;
                self.tell_why_kernel(client_index, socket);
            }
            _ => {}
        }
        if result != 0 && !waits && result != RESULT_DEFERRED {
            self.fail_connect(
                client_index,
                sock,
                if result == RESULT_KERNEL { libc::ECONNREFUSED } else { result },
            );
        }
        if let Some(client) = self.clients.get(client_index) {
            client.answer_op(sock, socket, result);
        }
    }

    /// No port of ours leads there: perhaps one of the next shard's does. `left` have not been asked.
    fn pass_connect_on(&self, client_index: u32, sock: u32, socket: &Socket, left: u32) -> bool {
        let Some(client) = self.clients.get(client_index).map(|client| client.shared.id) else {
            return false;
        };
        let Some(number) = self.next_shard.filter(|_| left > 0) else { return false };
        let Some(next) = self.inbox_of(number) else { return false };
        let generation = socket.generation.load(Ordering::Acquire);
        // From here on the slot is the next shard's, so one shard alone decides what becomes of it: see `on_misdirected`.
        socket.shard.store(number, Ordering::Release);
        next.send(ToShard::Connect(PassedConnect { client, sock, generation, left }));
        true
    }

    /// A connection that led to no port of the shards before us.
    pub(super) fn on_passed_connect(&mut self, passed: PassedConnect) {
        let PassedConnect { client, sock, generation, left } = passed;
        let Some(&client_index) = self.by_number.get(&client) else { return };
        let Some(client) = self.clients.get_mut(client_index).filter(|client| !client.corrupt) else {
            return;
        };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return };
        // The program may have died meanwhile, and the slot may be another socket's.
        let same = socket.generation.load(Ordering::Acquire) == generation && is_passable(socket.op());
        if !same || client.slot(sock) != SlotUse::Unknown || !client.take_op(sock, socket) {
            return;
        }
        let result = self.try_connect(client_index, sock);
        if result == RESULT_KERNEL && self.pass_connect_on(client_index, sock, socket, left - 1) {
            return;
        }
        self.counters.connects_passed += u64::from(matches!(result, 0 | RESULT_DEFERRED));
        self.finish_connect(client_index, sock, socket, result, true);
    }

    /// The listener that the program saw is gone: what the kernel would say then.
    fn fail_connect(&mut self, client_index: u32, sock: u32, errno: i32) {
        let Some(client) = self.clients.get_mut(client_index) else { return };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return };
        client.set_slot(sock, SlotUse::Ended(BufRef::NONE));
        socket.cause.store(errno, Ordering::Relaxed);
        socket.error.store(errno, Ordering::Release);
        socket.status.fetch_and(!status::CONNECTING, Ordering::AcqRel);
        socket.status.fetch_or(status::DEAD | status::HUP, Ordering::AcqRel);
        self.tell_socket(client_index, sock, u32::MAX);
    }

    /// 0, [`RESULT_DEFERRED`], [`RESULT_KERNEL`] or an errno.
    fn try_connect(&mut self, client_index: u32, sock: u32) -> i32 {
        let now = self.now;
        let Some(client) = self.clients.get(client_index) else { return libc::EINVAL };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return libc::EINVAL };
        let word = |i: usize| socket.op_args[i].load(Ordering::Relaxed);
        let to = Addr::from_words([word(0), word(1), word(2)]);
        let from = Addr::from_words([word(3), word(4), word(5)]);
        let mut remote = Endpoint { addr: IpAddr(to.ip), port: to.port };
        // Linux connects "any address" to the host itself.
        if remote.addr == IpAddr::UNSPECIFIED_V4 {
            remote.addr = IpAddr::v4([127, 0, 0, 1]);
        } else if remote.addr == IpAddr::UNSPECIFIED_V6 {
            remote.addr = IpAddr::v6(std::net::Ipv6Addr::LOCALHOST.octets());
        }
        let wanted = Endpoint { addr: IpAddr(from.ip), port: from.port };
        let Some((path, source)) = self.path_to(remote, wanted.addr, to.scope) else { return RESULT_KERNEL };
        if self.is_left(path, Endpoint { addr: source, port: wanted.port }, &socket.options).is_some() {
            return RESULT_KERNEL;
        }
        let Some(tuple) = self.choose_port(source, wanted.port, remote, path) else {
            return libc::EADDRNOTAVAIL;
        };
        let config = tcb_config(&socket.options, self.base_config(path, &tuple), path);
        let iss = self.config.secret.isn(&tuple, now);
        let fast = socket.op() == OpCode::ConnectFast as u32;
        let (tcb, room) = match fast {
            true => self.open_as_client(&config, tuple, iss, &socket.options),
            false => (Tcb::connect(&config, now, tuple, iss), None),
        };
        socket.status.store(status::CONNECTING, Ordering::Release);
        let Some(flow) = self.add_flow(client_index, sock, tcb, tuple, path) else {
            self.unclaim(&tuple);
            return libc::ENOBUFS;
        };
        if let Some(room) = room {
            self.defer(flow, socket, room);
        }
        self.list_transmit(flow);
        self.refile(flow);
        self.expect_next_hop(flow);
        if room.is_some() { RESULT_DEFERRED } else { 0 }
    }

    /// Why a connection by `path` from `source` (whose port may be open) is the kernel's all the same, if it is.
    fn is_left(&self, path: Path, source: Endpoint, options: &Options) -> Option<&'static str> {
        let Path::Device { port, .. } = path else { return None };
        let set = |option: &AtomicU32| option.load(Ordering::Relaxed) != 0;
        if set(&options.mark) {
            return Some("its socket has a mark (SO_MARK), for which the host may have another way");
        }
        if options.has(option::DONTROUTE) && !self.is_station(port) {
            return Some("its socket takes no gateway (SO_DONTROUTE)");
        }
        if source.port != 0 && !self.device_ports(port).contains(&u32::from(source.port)) {
            return Some("its socket is bound to a port, whose frames are the kernel's");
        }
        // What is sent there would not come to us.
        if self.sources.binary_search(&source.addr).is_err() && !self.is_own(source.addr) {
            return Some("it comes from an address of an interface that is no device of this engine");
        }
        None
    }

    /// The way to `remote` and the address to come from; `None`: the kernel's business.
    fn path_to(&mut self, remote: Endpoint, wanted: IpAddr, scope: u32) -> Option<(Path, IpAddr)> {
        let any = wanted.is_unspecified();
        if self.host.is_local(remote.addr) || self.is_own(remote.addr) {
            let source = if any { remote.addr } else { wanted };
            let probe = FourTuple { local: remote, remote: Endpoint { addr: source, port: 0 } };
            let served = self.config.local && self.find_listener(&probe).is_some();
            // The kernel's end of a TAP device is a neighbour there, though it is this host's address.
            let elsewhere = !self.is_own(remote.addr) && self.is_near(remote.addr);
            if served || !elsewhere {
                return served.then_some((Path::Local(u32::MAX), source));
            }
        }
        self.device_path(remote.addr, wanted, scope, Unknown::Ask)
    }

    /// `utcp why` says why a connection went to the kernel. Said once in a while for each destination: a program may
    /// connect there all day.
    fn tell_why_kernel(&mut self, client_index: u32, socket: &Socket) {
        let word = |i: usize| socket.op_args[i].load(Ordering::Relaxed);
        let to = Addr::from_words([word(0), word(1), word(2)]);
        let end = Endpoint { addr: IpAddr(to.ip), port: to.port };
        let wanted = Addr::from_words([word(3), word(4), word(5)]);
        let epoch = self.host.epoch();
        if self.left_to_kernel.contains(&(end, epoch)) {
            return;
        }
        if self.left_to_kernel.len() >= LEFT_REMEMBERED {
            self.left_to_kernel.pop_front();
        }
        self.left_to_kernel.push_back((end, epoch));
        let owner = socket.owner_pid.load(Ordering::Relaxed);
        let pid = self.clients.get(client_index).map_or(owner, |c| c.shared.pid);
        let pid = if owner == 0 { pid } else { owner };
        let way = self.path_to(end, IpAddr(wanted.ip), to.scope);
        let reason = way.and_then(|(path, addr)| {
            self.is_left(path, Endpoint { addr, port: wanted.port }, &socket.options)
        });
        self.outbox.send(ToControl::LeftToKernel { pid, to: end, scope: to.scope, reason });
    }

    /// A local port that makes the four-tuple unique (RFC 6056 §3.3.3, algorithm 3). None that somebody listens on, as in
    /// Linux: with the listener's own port a program would connect to itself. Over a NIC whose hash is known: one whose
    /// replies come to a queue of this shard.
    pub(super) fn choose_port(
        &mut self,
        source: IpAddr,
        wanted: u16,
        remote: Endpoint,
        path: Path,
    ) -> Option<FourTuple> {
        let at = |port: u16| FourTuple { local: Endpoint { addr: source, port }, remote };
        if wanted != 0 {
            let free = self.table.get(&at(wanted)).is_none() && self.claim(&at(wanted));
            return free.then(|| at(wanted));
        }
        let range = match path {
            Path::Local(_) => LOCAL_PORTS,
            Path::Device { port, .. } => self.device_ports(port),
        };
        if let Some(replies) = self.replies(path) {
            let tuple = self.free_port(&at(0), &range, HASHED_TRIES, |tuple| replies.come_here(tuple));
            if tuple.is_some() {
                self.counters.connects_hashed += 1;
                return tuple;
            }
        }
        self.free_port(&at(0), &range, u32::MAX, |_| true)
    }

    /// `tuple` with a port of ours that `fits`; tries so many at most.
    fn free_port(
        &mut self,
        tuple: &FourTuple,
        range: &std::ops::Range<u32>,
        tries: u32,
        fits: impl Fn(&FourTuple) -> bool,
    ) -> Option<FourTuple> {
        // Each shard has its share of the ports, as two would not know of the same four-tuple; where the load decides how many shards
        // are in use one alone would have few, so a port is whose claims it.
        let all = range.end - range.start;
        let (count, stride, first) = match self.shares_ports() {
            true => (all, 1, 0),
            false => (all / self.config.count.max(1), self.config.count.max(1), self.config.index),
        };
        let offset = self.config.secret.port_offset(tuple);
        for _ in 0..count.min(tries) {
            self.next_port = self.next_port.wrapping_add(1);
            let step = offset.wrapping_add(self.next_port) % count;
            let port = (range.start + step * stride + first) as u16;
            let tuple = FourTuple { local: Endpoint { port, ..tuple.local }, ..*tuple };
            if self.by_port.contains_key(&port) || !fits(&tuple) {
                continue;
            }
            match self.table.get(&tuple) {
                None if self.claim(&tuple) => return Some(tuple),
                Some(Entry::TimeWait(index)) => {
                    // RFC 6191: the old incarnation is far enough behind.
                    let reusable =
                        self.time_wait.get(index).and_then(|r| r.record.reuse_for_connect(self.now));
                    if reusable.is_some() {
                        self.end_time_wait_now(index);
                        if self.claim(&tuple) {
                            return Some(tuple);
                        }
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn shares_ports(&self) -> bool {
        self.directory.as_ref().is_some_and(|directory| directory.shares_ports())
    }

    /// Whether no other shard has it; none takes it from now on.
    fn claim(&self, tuple: &FourTuple) -> bool {
        let directory = self.directory.as_ref().filter(|it| it.shares_ports());
        directory.is_none_or(|it| it.claim(tuple, self.config.index))
    }

    /// No flow came of it.
    pub(super) fn unclaim(&self, tuple: &FourTuple) {
        if let Some(directory) = &self.directory {
            directory.remove(tuple, self.config.index);
        }
    }

    /// How the device on `path` chooses a queue, where that is known and there are several.
    fn replies(&self, path: Path) -> Option<Replies> {
        let Path::Device { port, .. } = path else { return None };
        let rss = self.ports.get(port as usize)?.rss.clone()?;
        let interface = self.links.get(port as usize)?.interface;
        let of_interface = self.ports.iter().filter(|device| device.link.interface == interface);
        let queues = of_interface.fold(0, |queues, device| queues | queue_bit(device.queue));
        Some(Replies { rss, queues })
    }

    /// The stack's own settings for a connection on `path`.
    pub(super) fn base_config(&self, path: Path, tuple: &FourTuple) -> Config {
        self.config_of(path, tuple, self.config.secret.ts_offset(tuple))
    }

    /// The same, where the offset of the timestamps is known.
    pub(super) fn config_of(&self, path: Path, tuple: &FourTuple, ts_offset: u32) -> Config {
        let common = Config { ts_offset, ..self.config.tcp.config };
        match path {
            // Nothing is lost or reordered inside the engine, so timestamps and SACK would be idle words.
            Path::Local(_) => {
                let mtu_probing = MtuProbing::Off;
                Config { mss: LOCAL_MSS, timestamps: false, sack: false, mtu_probing, ..common }
            }
            Path::Device { port, .. } => {
                let headers = if tuple.remote.addr.is_v4() { 40 } else { 60 };
                let mtu = self.links.get(port as usize).map_or(1500, |link| link.mtu);
                Config { mss: mtu.saturating_sub(headers).clamp(88, 65_495) as u16, ..common }
            }
        }
    }
}
