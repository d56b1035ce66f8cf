//! Listeners: the SYN queue (half-open records), SYN cookies when it is full, and the accept queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use utcp_abi::layout::ACCEPT_RING;
use utcp_abi::socket::{Addr, intent, status};
use utcp_abi::waiting;
use utcp_proto::wire::IpAddr;
use utcp_proto::{Config, FourTuple, HalfOpen, Segment, State, Tcb, cookie};

use super::client::{SlotUse, Suspect};
use super::commands::lowat_of;
use super::commands::tcb_config;
use super::fast_open::FastOpen;
use super::flow::{Flow, News, Path};
use super::segments::{Payload, shared_addr};
use super::table::Entry;
use super::wheel::Handle;
use super::{ListenRequest, Shard, Timer};

/// Half-open records of one shard; beyond them SYNs are answered by cookies.
pub(super) const HALF_OPEN_MAX: usize = 1 << 16;

/// The largest backlog: with the one that comes on top the ring is full.
const BACKLOG_MAX: u32 = ACCEPT_RING as u32 - 1;

/// How long a connection may be on its way from the accept queue to a descriptor when a process of its program has died.
const SUSPECT_NS: u64 = 1_000_000_000;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    /// Client, by its index in the shard.
    pub client: u32,
    /// Socket slot.
    pub sock: u32,
    /// Listener slot in the region.
    pub slot: u32,
    /// Bound address; unspecified: any.
    pub addr: IpAddr,
    /// Port.
    pub tcp_port: u16,
    /// Connections that may wait, half-open ones apart.
    pub backlog: u32,
    /// An IPv6 wildcard that takes no IPv4.
    pub one_family: bool,
    /// Shares its address with other listeners.
    pub reuseport: bool,
    /// Its connections come by the kernel.
    pub kernels: bool,
    /// Inode of the kernel's socket.
    pub inode: u64,
    /// See [`ListenRequest::holders`].
    pub holders: Arc<AtomicU32>,
    /// Other programs have (or had) a listener of the same kernel socket.
    pub shared: bool,
    /// Producer index of the accept ring.
    pub tail: u32,
    /// Half-open records that belong to it.
    pub half_open: u32,
    /// Connections that were opened fast and whose handshake is not complete.
    pub early: u32,
    /// It has news for epoll sets in this batch.
    pub news: bool,
}

impl Listener {
    /// How well it fits a destination: 0 not at all, 1 IPv6 wildcard for IPv4, 2 wildcard, 3 exactly.
    fn fit(&self, addr: IpAddr) -> u32 {
        if self.addr == addr {
            3
        } else if !self.addr.is_unspecified() {
            0
        } else if self.addr.is_v4() == addr.is_v4() {
            2
        } else {
            u32::from(addr.is_v4() && !self.one_family)
        }
    }
}

/// A half-open connection and its listener.
#[derive(Debug)]
pub(super) struct HalfOpenRecord {
    /// The numbers.
    pub record: HalfOpen,
    /// Its listener's index.
    pub listener: u32,
    /// The way back.
    pub path: Path,
    /// Its place in the timer wheel.
    pub timer: Option<Handle>,
}

impl Shard {
    pub(super) fn on_listen(&mut self, request: &ListenRequest) {
        let Some(&client) = self.by_number.get(&request.client) else { return };
        let Some(owner) = self.clients.get_mut(client) else { return };
        let known = self.listeners.iter().find(|(_, l)| l.client == client && l.sock == request.sock);
        if let Some(index) = known.map(|(index, _)| index) {
            // `listen` twice: a new backlog.
            if let Some(listener) = self.listeners.get_mut(index) {
                listener.backlog = request.backlog.min(BACKLOG_MAX);
            }
            return;
        }
        owner.set_slot(request.sock, SlotUse::Listener);
        let ring = owner.region.listener(request.slot).map(|l| &l.queues[self.config.index as usize]);
        let tail = ring.map_or(0, |queue| queue.tail.load(Ordering::Relaxed));
        let others = self.by_port.get(&request.addr.port).cloned().unwrap_or_default();
        let mut shared = false;
        for other in others {
            if let Some(other) = self.listeners.get_mut(other).filter(|l| l.inode == request.inode) {
                other.shared = true;
                shared = true;
                let place = (other.client, other.sock);
                self.say_shared(place);
            }
        }
        let index = self.listeners.insert(Listener {
            client,
            sock: request.sock,
            slot: request.slot,
            addr: IpAddr(request.addr.ip),
            tcp_port: request.addr.port,
            backlog: request.backlog.min(BACKLOG_MAX),
            one_family: request.one_family,
            reuseport: request.reuseport,
            kernels: request.kernels,
            inode: request.inode,
            holders: request.holders.clone(),
            shared,
            tail,
            half_open: 0,
            early: 0,
            news: false,
        });
        self.by_port.entry(request.addr.port).or_default().push(index);
        if shared {
            self.say_shared((client, request.sock));
            self.share_out(index);
        }
    }

    /// A client's listener.
    pub(super) fn listener_of(&self, number: u32, sock: u32) -> Option<u32> {
        let client = *self.by_number.get(&number)?;
        self.listeners.iter().find(|(_, l)| l.client == client && l.sock == sock).map(|(index, _)| index)
    }

    pub(super) fn on_leave_to_kernel(&mut self, number: u32, sock: u32) {
        let index = self.listener_of(number, sock);
        if let Some(listener) = index.and_then(|index| self.listeners.get_mut(index)) {
            listener.kernels = true;
        }
    }

    pub(super) fn on_unlisten(&mut self, number: u32, sock: u32) {
        if let Some(index) = self.listener_of(number, sock) {
            self.drop_listener(index);
        }
    }

    /// Forgets a listener; what waits in its queue goes to another of the same kernel socket, or is reset.
    pub(super) fn drop_listener(&mut self, index: u32) {
        let heir = self.heir(index);
        self.pass_on(index, heir);
        let Some(listener) = self.listeners.remove(index) else { return };
        if let Some(list) = self.by_port.get_mut(&listener.tcp_port) {
            list.retain(|&i| i != index);
            if list.is_empty() {
                self.by_port.remove(&listener.tcp_port);
            }
        }
        let last = listener.holders.fetch_sub(1, Ordering::AcqRel) == 1;
        let Some(client) = self.clients.get_mut(listener.client) else { return };
        if last {
            let end = client.free_slot(listener.sock);
            self.release(end);
        } else {
            client.set_slot(listener.sock, SlotUse::Unknown);
        }
    }

    /// The listener for a destination, the best fit first; members of a SO_REUSEPORT group take turns by hash.
    pub(super) fn find_listener(&self, tuple: &FourTuple) -> Option<u32> {
        let list = self.by_port.get(&tuple.local.port)?;
        let fit = |index: u32| {
            self.listeners.get(index).filter(|l| !l.kernels).map_or(0, |l| l.fit(tuple.local.addr))
        };
        let best = list.iter().map(|&index| fit(index)).max().filter(|&best| best > 0)?;
        let fits = list.iter().copied().filter(|&index| fit(index) == best);
        if fits.clone().any(|index| self.listeners.get(index).is_some_and(|listener| listener.shared)) {
            let chosen = self.representatives(fits);
            return self.take_turns(tuple, chosen.iter().copied());
        }
        self.take_turns(tuple, fits)
    }

    /// One of the listeners `fits`: the first, or whose turn it is, if all are of a SO_REUSEPORT group.
    fn take_turns(&self, tuple: &FourTuple, mut fits: impl Iterator<Item = u32> + Clone) -> Option<u32> {
        let candidates = fits.clone().count();
        let reuse = || fits.clone().all(|index| self.listeners.get(index).is_some_and(|l| l.reuseport));
        if candidates <= 1 || !reuse() {
            return fits.next();
        }
        let pick = self.config.secret.port_offset(tuple) as usize ^ usize::from(tuple.remote.port);
        fits.nth(pick % candidates)
    }

    /// Whether connections to this destination come by the kernel, to a listener of ours.
    fn is_kernels(&self, tuple: &FourTuple) -> bool {
        let mut here = self.by_port.get(&tuple.local.port).into_iter().flatten();
        here.any(|&index| self.listeners.get(index).is_some_and(|l| l.kernels && l.fit(tuple.local.addr) > 0))
    }

    /// A SYN for `tuple`; `iss` is given when it replaces a TIME-WAIT record.
    pub(super) fn on_syn(
        &mut self,
        tuple: &FourTuple,
        seg: &Segment,
        payload: Payload<'_>,
        path: Path,
        iss: Option<utcp_proto::SeqNum>,
    ) {
        let now = self.now;
        let Some(index) = self.find_listener(tuple) else {
            // The kernel listens there, and is about to get such frames: the client tries again.
            if matches!(path, Path::Device { .. }) && self.is_kernels(tuple) {
                self.counters.dropped_segments += 1;
                return;
            }
            return self.refuse(tuple, seg, path);
        };
        let config = self.listener_config(index, self.base_config(path, tuple), path);
        let Some(listener) = self.listeners.get(index) else { return };
        // Linux drops a SYN when the accept queue is full; the client tries again.
        if self.is_full(listener) {
            self.counters.listen_overflows += 1;
            return;
        }
        let (backlog, half_open) = (listener.backlog, listener.half_open);
        self.pair_up(path, index);
        let half_open_max = (backlog * 2).max(128) as usize;
        if half_open as usize >= half_open_max || self.half_open.len() >= HALF_OPEN_MAX {
            self.counters.syn_cookies += 1;
            self.cookies_until = now + cookie::LIFETIME;
            let answer = cookie::encode(&self.config.secret, &config, now, *tuple, seg);
            return self.send_for(tuple, &answer, path);
        }
        let iss = iss.unwrap_or_else(|| self.config.secret.isn(tuple, now));
        let mut record = HalfOpen::on_syn(&config, now, *tuple, iss, seg);
        match self.fast_open_verdict(index, tuple, seg) {
            FastOpen::Accept(renewed) => {
                if let Some(cookie) = renewed {
                    record.offer_fast_open(cookie);
                }
                if self.open_fast((index, &config), &record, seg, payload, path) {
                    return;
                }
            }
            FastOpen::Offer(cookie) => record.offer_fast_open(cookie),
            FastOpen::No => {}
        }
        let syn_ack = record.syn_ack(now);
        let half = self.half_open.insert(HalfOpenRecord { record, listener: index, path, timer: None });
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.half_open += 1;
        }
        self.table.insert(*tuple, Entry::HalfOpen(half));
        self.file_half_open(half);
        self.send_for(tuple, &syn_ack, path);
    }

    /// The ACK that returns a SYN cookie; true if it was one (or could have been, and was dropped).
    pub(super) fn on_cookie(
        &mut self,
        tuple: &FourTuple,
        seg: &Segment,
        payload: Payload<'_>,
        path: Path,
    ) -> bool {
        // Only while some may be under way (Linux tcp_synq_no_recent_overflow): a cookie has 24 bits that have to be guessed, and
        // nobody shall have for ever to do so.
        if self.now > self.cookies_until || seg.ack.is_none() {
            return false;
        }
        let Some(index) = self.find_listener(tuple) else { return false };
        let config = self.listener_config(index, self.base_config(path, tuple), path);
        let Ok(record) = cookie::decode(&self.config.secret, &config, self.now, *tuple, seg) else {
            return false;
        };
        let half = self.half_open.insert(HalfOpenRecord { record, listener: index, path, timer: None });
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.half_open += 1;
        }
        self.table.insert(*tuple, Entry::HalfOpen(half));
        // It may bring the first bytes, if the bare ACK got lost or found the accept queue full.
        self.establish(half, seg, payload);
        self.drop_half_open(half);
        true
    }

    /// The settings of a connection that arrives at a listener.
    #[inline]
    fn listener_config(&self, index: u32, base: Config, path: Path) -> Config {
        let listener = self.listeners.get(index);
        let client = listener.and_then(|l| self.clients.get(l.client).map(|c| (l, c)));
        let socket = client.and_then(|(l, c)| c.region.socket(l.sock));
        socket.map_or(base, |socket| tcb_config(&socket.options, base, path))
    }

    pub(super) fn accept_queue_len(&self, listener: &Listener) -> u32 {
        let Some(client) = self.clients.get(listener.client) else { return u32::MAX };
        let Some(shared) = client.region.listener(listener.slot) else { return u32::MAX };
        let head = shared.queues[self.config.index as usize].head.load(Ordering::Acquire);
        // A lying head looks like a full queue and hurts its own program only.
        listener.tail.wrapping_sub(head)
    }

    /// One more than the backlog may wait (Linux sk_acceptq_is_full).
    pub(super) fn is_full(&self, listener: &Listener) -> bool {
        self.accept_queue_len(listener) > listener.backlog
    }

    pub(super) fn file_half_open(&mut self, index: u32) {
        let Some(half) = self.half_open.get_mut(index) else { return };
        if let Some(handle) = half.timer.take() {
            self.wheel.remove(handle);
        }
        let due = half.record.next_deadline().as_nanos();
        half.timer = Some(self.wheel.insert(due, Timer::HalfOpen(index)));
    }

    pub(super) fn drop_half_open(&mut self, index: u32) {
        let Some(half) = self.half_open.remove(index) else { return };
        if let Some(handle) = half.timer {
            self.wheel.remove(handle);
        }
        self.table.remove(&half.record.tuple, Entry::HalfOpen(index));
        if let Some(listener) = self.listeners.get_mut(half.listener) {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
    }

    /// The handshake is complete: the record becomes a flow in the accept queue. If the queue is full the
    /// record stays; the peer sends again.
    pub(super) fn establish(&mut self, index: u32, seg: &Segment, payload: Payload<'_>) {
        let now = self.now;
        let Some(half) = self.half_open.get(index) else { return };
        let (record, listener_index, path) = (half.record, half.listener, half.path);
        let tuple = record.tuple;
        // The record knows the offset of the timestamps.
        let config = self.listener_config(listener_index, self.config_of(path, &tuple, 0), path);
        let Some(listener) = self.listeners.get(listener_index) else { return };
        let (client_index, listener_sock, slot) = (listener.client, listener.sock, listener.slot);
        if self.is_full(listener) {
            self.counters.listen_overflows += 1;
            return;
        }
        let may_join = self.may_join(path, client_index);
        let Some(client) = self.clients.get_mut(client_index) else { return };
        let Some(sock) = client.claim_slot() else {
            self.counters.out_of_sockets += 1;
            return;
        };
        let region = client.region;
        let (Some(socket), Some(parent)) = (region.socket(sock), region.socket(listener_sock)) else {
            return;
        };
        socket.options.copy_from(&parent.options);
        let (tcb, actions) = Tcb::from_half_open(&record, &config, now, seg);
        self.drop_half_open(index);
        let Some(flow) = self.add_flow(client_index, sock, tcb, tuple, path) else {
            // No memory for its streams: as without a slot.
            self.counters.out_of_sockets += 1;
            let end = self.clients.get_mut(client_index).and_then(|client| client.free_slot(sock));
            return self.release(end);
        };
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.waiting = Some(listener_index);
        }
        if matches!(path, Path::Device { .. }) {
            self.came_in.push(flow);
        }
        match path {
            Path::Local(connected) if !may_join => self.uncut_into(connected, flow),
            _ => self.join(flow, path),
        }
        socket.status.store(status::CONNECTED, Ordering::Release);
        self.act(flow, &actions, payload);
        self.queue_accepted(listener_index, client_index, slot, sock);
        self.list_transmit(flow);
    }

    pub(super) fn queue_accepted(&mut self, listener_index: u32, client_index: u32, slot: u32, sock: u32) {
        let Some(region) = self.clients.get(client_index).map(|c| c.region) else { return };
        let Some(listener) = self.listeners.get_mut(listener_index) else { return };
        let Some(shared) = region.listener(slot) else { return };
        let Some(socket) = region.socket(sock) else { return };
        let ring = shared.queues[self.config.index as usize].ring();
        let generation = socket.generation.load(Ordering::Relaxed);
        if !listener.news
            && ring.is_empty()
            && let Some(parent) = region.socket(listener.sock)
        {
            self.arrival.stamp(parent);
        }
        if self.config.count > 1 {
            // Among those of other shards the oldest is accepted first. A look at the clock of its own: the round may have begun before
            // another shard's connection was there.
            socket.asked_at.store(utcp_abi::ticks(), Ordering::Relaxed);
        }
        // Release: whoever takes it sees the connection's words.
        socket.token.store(waiting::untaken(generation), Ordering::Release);
        match ring.push(&mut listener.tail, waiting::entry(sock, generation)) {
            Ok(_) => {
                self.counters.accepts += 1;
                if !listener.news {
                    listener.news = true;
                    self.listeners_with_news.push(listener_index);
                }
            }
            Err(error) => self.throw_out(client_index, error),
        }
    }

    /// A process of a client died. It may have been setting a bit, or have popped a connection from an accept queue without
    /// getting as far as taking it.
    pub(super) fn on_process_gone(&mut self, index: u32) {
        // Another process may be in the middle of its own accept: a second from now it hardly is.
        let due_ns = self.now.as_nanos() + SUSPECT_NS;
        let popped = self.popped_and_untaken(index);
        let Some(client) = self.clients.get_mut(index) else { return };
        client.region.dirty(self.config.index).repair();
        let mut is_new = false;
        for (sock, generation) in popped {
            if !client.suspects.iter().any(|known| known.sock == sock && known.generation == generation) {
                client.suspects.push(Suspect { sock, generation, due_ns });
                is_new = true;
            }
        }
        self.nudge_all_of(index);
        if is_new {
            self.wheel.insert(due_ns, Timer::Sweep(index));
        }
    }

    /// Closes the suspects that nobody has taken for long enough.
    pub(super) fn sweep(&mut self, index: u32) {
        let now = self.now.as_nanos();
        let Some(client) = self.clients.get_mut(index) else { return };
        let region = client.region;
        let due: Vec<Suspect> = client.suspects.extract_if(.., |suspect| suspect.due_ns <= now).collect();
        for Suspect { sock, generation, .. } in due {
            let Some(socket) = region.socket(sock) else { continue };
            // From here on a program that was only slow finds that it comes too late.
            if !waiting::take_back(socket, generation) {
                continue;
            }
            let Some(client) = self.clients.get_mut(index) else { return };
            match client.slot(sock) {
                SlotUse::Flow(flow) => self.close_flow(flow),
                SlotUse::Ended(_) => {
                    let end = client.free_slot(sock);
                    self.release(end);
                }
                SlotUse::Unknown | SlotUse::Listener => {}
            }
        }
    }

    /// Connections of this shard that left their accept queue and that nobody has taken: slot and generation.
    fn popped_and_untaken(&self, index: u32) -> Vec<(u32, u32)> {
        let Some(client) = self.clients.get(index) else { return Vec::new() };
        let mut queued = Vec::new();
        for (_, listener) in self.listeners.iter().filter(|(_, l)| l.client == index) {
            let Some(shared) = client.region.listener(listener.slot) else { continue };
            let queue = &shared.queues[self.config.index as usize];
            let head = queue.head.load(Ordering::Acquire);
            let waiting = listener.tail.wrapping_sub(head).min(ACCEPT_RING as u32);
            for i in 0..waiting {
                let place = head.wrapping_add(i) as usize % ACCEPT_RING;
                queued.push(waiting::slot_of(queue.slots[place].load(Ordering::Relaxed)));
            }
        }
        queued.sort_unstable();
        let mut popped = Vec::new();
        client.region.free_sockets().for_each_clear(|sock| {
            let Some(socket) = client.region.socket(sock) else { return };
            let ours = matches!(client.slot(sock), SlotUse::Flow(_) | SlotUse::Ended(_));
            if ours
                && waiting::is_untaken(socket.token.load(Ordering::Acquire))
                && queued.binary_search(&sock).is_err()
            {
                popped.push((sock, socket.generation.load(Ordering::Relaxed)));
            }
        });
        popped
    }

    /// Makes a flow on socket slot `sock` with fresh streams.
    pub(super) fn add_flow(
        &mut self,
        client_index: u32,
        sock: u32,
        tcb: Tcb,
        tuple: FourTuple,
        path: Path,
    ) -> Option<u32> {
        let local_scope = self.scope_of(tuple.local.addr, path);
        let remote_scope = self.scope_of(tuple.remote.addr, path);
        let send_capacity = u64::from(self.config.tcp.send_capacity);
        let client = self.clients.get_mut(client_index)?;
        let region = client.region;
        let socket = region.socket(sock)?;
        let (rx, tx) = client.first_buffers(sock, u64::from(tcb.config().recv_capacity), send_capacity)?;
        let first = utcp_abi::socket::first_position(sock, socket.generation.load(Ordering::Relaxed));
        let stream = |buf| {
            let base = region.stream(buf)?;
            // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which the client's
            // entry keeps mapped until its last flow is gone.
            Some(unsafe { super::flow::Stream::new(buf, base, first) })
        };
        let (rx_stream, tx_stream) = (stream(rx)?, stream(tx)?);
        socket.rx_buf.store(rx.0, Ordering::Relaxed);
        // A connection of this host may get a place in a pair region before it is connected: no byte may be queued here then.
        // Nor do others take any: on Linux a `send` before the end of a `connect` waits for it.
        let undecided = tcb.state() == State::SynSent;
        socket.tx_buf.store(if undecided { 0 } else { tx.0 }, Ordering::Relaxed);
        socket.shard.store(self.config.index, Ordering::Relaxed);
        // Linux tells the interface of a link-local address with it.
        socket.local.store(Addr { scope: local_scope, ..shared_addr(tuple.local) });
        socket.remote.store(Addr { scope: remote_scope, ..shared_addr(tuple.remote) });
        let done =
            socket.intent.load(Ordering::Relaxed) & (intent::SHUT_RD | intent::SHUT_WR | intent::CLOSE);
        debug_assert!(done == 0 || done & intent::CLOSE == 0, "a closed socket becomes a flow");
        client.flows += 1;
        let index = self.flows.insert(Flow {
            tcb,
            tuple,
            client: client_index,
            sock,
            path,
            pair: None,
            rx: rx_stream,
            tx: tx_stream,
            timer: None,
            transmit_listed: false,
            news: News::default(),
            done: 0,
            closed_by_program: false,
            finished: false,
            time_wait: false,
            waiting: None,
            early: None,
            deaf_at: None,
            tx_urgent: 0,
            by_segments: false,
            uncounted: 0,
            carried: [0; 2],
            held: None,
            lowat: lowat_of(&socket.options, self.config.tcp.notsent_lowat),
            waits_for_room: false,
            rx_fin: false,
        });
        if let Some(client) = self.clients.get_mut(client_index) {
            client.set_slot(sock, SlotUse::Flow(index));
        }
        self.table.insert(tuple, Entry::Flow(index));
        if let Some(flow) = self.flows.get(index) {
            self.trace_flow(flow);
        }
        Some(index)
    }
}
