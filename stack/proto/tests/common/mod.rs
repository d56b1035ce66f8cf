//! Two endpoints on virtual time over a seeded faulty link.
//!
//! Every segment is emitted to a packet of either IP version, may be lost, repeated, delayed, damaged or marked, and is parsed
//! again. Stream bytes are a function of their position, so that every byte can be checked where it arrives.
#![allow(dead_code)]

mod ip;
mod link;
#[path = "../shelf.rs"]
mod shelf;
mod trace;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

pub use link::{Link, Rng, byte_at};
use shelf::Shelf;
use trace::describe;
use utcp_proto::wire::checksum::Verify;
use utcp_proto::wire::tcp;
use utcp_proto::{
    Actions, Config, Duration, Events, FourTuple, HalfOpen, HalfOpenTimer, HalfOpenVerdict, IcmpError,
    Instant, Segment, SeqNum, SocketError, State, Tcb, TimeWait, TimeWaitVerdict, Transmit, TxLimits,
    UserCall, reset_for,
};

pub enum Peer {
    None,
    Listen,
    Half(HalfOpen),
    Flow(Box<Tcb>),
    Wait(TimeWait),
}

/// One end: what the engine would hold.
pub struct Host {
    pub side: usize,
    pub cfg: Config,
    pub peer: Peer,
    pub limits: TxLimits,
    pub tuple: FourTuple,
    /// Bytes sent into the stream and not released: from SND.UNA on.
    tx: VecDeque<u8>,
    pub tx_total: u64,
    /// Receive stream, a ring: `rx[rx_start]` is the first byte that the program has not read.
    rx: Vec<u8>,
    rx_start: usize,
    rx_ready: u64,
    pub rx_total: u64,
    pub events: Events,
    pub error: Option<SocketError>,
    pub eof: bool,
    pub closed: bool,
    pub drops: u64,
    pub resets_sent: u64,
    /// Routers that said that a packet was too large.
    pub told_too_big: u64,
}

impl Host {
    /// Before any connection: side 1 listens.
    fn new(side: usize, cfg: Config, tuple: FourTuple) -> Self {
        Self {
            side,
            cfg,
            peer: if side == 1 { Peer::Listen } else { Peer::None },
            limits: TxLimits::WIRE,
            tuple,
            tx: VecDeque::new(),
            tx_total: 0,
            rx: vec![0; cfg.recv_capacity as usize],
            rx_start: 0,
            rx_ready: 0,
            rx_total: 0,
            events: Events::NONE,
            error: None,
            eof: false,
            closed: false,
            drops: 0,
            resets_sent: 0,
            told_too_big: 0,
        }
    }

    pub fn tcb(&self) -> &Tcb {
        match &self.peer {
            Peer::Flow(tcb) => tcb,
            _ => panic!("side {} has no TCB", self.side),
        }
    }

    pub fn has_tcb(&self) -> bool {
        matches!(self.peer, Peer::Flow(_))
    }

    pub fn state(&self) -> State {
        match &self.peer {
            Peer::Flow(tcb) => tcb.state(),
            Peer::Wait(_) => State::TimeWait,
            Peer::Half(_) => State::SynReceived,
            _ => State::Closed,
        }
    }

    /// Bytes that the program could read.
    pub fn readable(&self) -> u64 {
        self.rx_ready
    }

    pub fn queued(&self) -> usize {
        self.tx.len()
    }
}

struct Flying {
    at: Instant,
    order: u64,
    to: usize,
    bytes: Vec<u8>,
    /// Handed over as it is, without headers: `bytes` are the payload.
    direct: Option<Segment>,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Flying {}
impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flying {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub now: Instant,
    pub rng: Rng,
    pub link: Link,
    pub hosts: [Host; 2],
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    busy_until: [Instant; 2],
    burst_since: [Option<Instant>; 2],
    /// Nothing gets through until then.
    pub down_until: Instant,
    pub trace: bool,
    pub packets: u64,
    pub lost: u64,
    /// Every transmit of each side, if wanted.
    pub log: Option<Vec<(Instant, usize, Transmit)>>,
    /// Overrides the fate of packets: side, transmit, count of this side's packets; `true` drops.
    #[allow(clippy::type_complexity)]
    pub filter: Option<Box<dyn FnMut(usize, &Transmit, u64) -> bool>>,
    sent: [u64; 2],
    /// Both ends are on one host: a transmit of any size goes over as a segment, and nothing goes wrong on the way.
    pub direct: bool,
    /// The initial sequence numbers of each side, if they are not the dice's.
    pub isns: [Option<SeqNum>; 2],
    /// What came after the first seeds were kept has dice of its own: congestion marks, routers' answers.
    extra: Rng,
}

impl World {
    /// Side 0 will connect, side 1 listens.
    pub fn new(seed: u64, link: Link, client: Config, server: Config) -> Self {
        Self {
            now: Instant::from_millis(1_000),
            rng: Rng::new(seed),
            link,
            hosts: [Host::new(0, client, ip::tuple(false, 0)), Host::new(1, server, ip::tuple(false, 1))],
            flying: BinaryHeap::new(),
            order: 0,
            busy_until: [Instant::ZERO; 2],
            burst_since: [None; 2],
            down_until: Instant::ZERO,
            trace: std::env::var_os("UTCP_SIM_TRACE").is_some(),
            packets: 0,
            lost: 0,
            log: None,
            filter: None,
            sent: [0; 2],
            direct: false,
            isns: [None; 2],
            extra: Rng::new(seed ^ 0xe07a),
        }
    }

    /// The two talk IPv6. The MSS gives way as an engine's does (RFC 8200 §5: 20 bytes more of header).
    pub fn use_v6(&mut self) {
        for host in &mut self.hosts {
            host.tuple = ip::tuple(true, host.side);
            if host.cfg.mss >= 1_220 {
                host.cfg.mss = host.cfg.mss.saturating_sub(20).max(1_220);
            }
        }
        // RFC 8200 §5: every link carries so much.
        self.link.mtu = self.link.mtu.max(1_280);
    }

    /// `side` knows nothing of any connection any more: a crash, or a program that begins anew.
    pub fn forget(&mut self, side: usize) {
        let host = &self.hosts[side];
        self.hosts[side] = Host::new(side, host.cfg, host.tuple);
    }

    /// Dice are thrown in any case, so that all else stays as it is.
    fn isn(&mut self, side: usize) -> SeqNum {
        let thrown = SeqNum::new(self.rng.next() as u32);
        self.isns[side].unwrap_or(thrown)
    }

    pub fn connect(&mut self) {
        self.connect_from(0);
    }

    pub fn connect_from(&mut self, side: usize) {
        let iss = self.isn(side);
        let host = &mut self.hosts[side];
        host.peer = Peer::Flow(Box::new(Tcb::connect(&host.cfg, self.now, host.tuple, iss)));
        self.pump(side);
    }

    /// The program of `side` queues `n` bytes.
    pub fn send(&mut self, side: usize, n: u32) {
        self.send_with(side, n, false);
    }

    pub fn send_with(&mut self, side: usize, n: u32, more: bool) {
        let host = &mut self.hosts[side];
        for i in 0..u64::from(n) {
            host.tx.push_back(byte_at(side, host.tx_total + i));
        }
        host.tx_total += u64::from(n);
        self.call(side, UserCall::Send { added: n, more, urgent: false });
    }

    /// The program of `side` reads up to `n` bytes and checks them.
    pub fn read(&mut self, side: usize, n: u64) -> u64 {
        let host = &mut self.hosts[side];
        let n = n.min(host.rx_ready);
        if n == 0 {
            return 0;
        }
        let len = host.rx.len();
        for i in 0..n {
            let at = host.rx_total + i;
            let byte = host.rx[(host.rx_start + i as usize) % len];
            assert_eq!(byte, byte_at(1 - side, at), "side {side}: wrong byte at {at}");
        }
        host.rx_start = (host.rx_start + n as usize) % len;
        host.rx_ready -= n;
        host.rx_total += n;
        if host.has_tcb() {
            self.call(side, UserCall::Received { n: n as u32 });
        }
        n
    }

    pub fn call(&mut self, side: usize, call: UserCall) {
        let host = &mut self.hosts[side];
        let Peer::Flow(tcb) = &mut host.peer else { return };
        if let UserCall::SetRecvCapacity(n) = call {
            host.rx.rotate_left(host.rx_start);
            host.rx_start = 0;
            let len = host.rx.len().max(n as usize);
            host.rx.resize(len, 0);
        }
        match tcb.on_user(self.now, call) {
            Ok(actions) => self.apply(side, &actions, &[]),
            Err(error) => panic!("side {side}: {call:?}: {error:?}"),
        }
        self.pump(side);
    }

    fn apply(&mut self, side: usize, actions: &Actions, payload: &[u8]) {
        let host = &mut self.hosts[side];
        if let Some(place) = actions.place {
            let from = place.from as usize;
            let to = (host.rx_ready + u64::from(place.at)) as usize;
            let len = place.len as usize;
            let size = host.rx.len();
            assert!(to + len <= size, "side {side}: placed beyond the stream");
            let at = (host.rx_start + to) % size;
            let first = len.min(size - at);
            host.rx[at..at + first].copy_from_slice(&payload[from..from + first]);
            host.rx[..len - first].copy_from_slice(&payload[from + first..from + len]);
        }
        host.tx.drain(..actions.released as usize);
        host.rx_ready += u64::from(actions.advanced);
        assert!(host.rx_ready <= host.rx.len() as u64, "side {side}: more than the stream holds");
        host.events.insert(actions.events);
        host.error = actions.error.or(host.error);
        if actions.events.any(Events::PEER_FIN) {
            assert!(!host.eof, "side {side}: two FINs");
            host.eof = true;
        }
        if actions.drop.is_some() {
            host.drops += 1;
        }
        assert!(!host.closed, "side {side}: actions after CLOSED");
    }

    /// Sends what there is to send, and retires the TCB if it is done.
    pub fn pump(&mut self, side: usize) {
        loop {
            let host = &mut self.hosts[side];
            let limits = host.limits;
            let Peer::Flow(tcb) = &mut host.peer else { return };
            tcb.borrow_to_send(&mut Shelf);
            let Some(tx) = tcb.poll_transmit(self.now, limits) else { break };
            tcb.check();
            let start = tx.offset as usize;
            let bytes: Vec<u8> = host.tx.iter().skip(start).take(tx.len as usize).copied().collect();
            assert_eq!(bytes.len(), tx.len as usize, "side {side}: a transmit beyond the stream: {tx:?}");
            self.transmit(side, &tx, &bytes);
        }
        let host = &mut self.hosts[side];
        let Peer::Flow(tcb) = &mut host.peer else { return };
        if matches!(tcb.state(), State::TimeWait | State::Closed) {
            tcb.end_loan(&mut Shelf);
        }
        if let Some(wait) = tcb.time_wait(self.now) {
            host.peer = Peer::Wait(wait);
        } else if tcb.state() == State::Closed {
            host.peer = Peer::None;
            host.closed = true;
        }
    }

    /// Puts a transmit on the wire, cut to segments as offload would.
    fn transmit(&mut self, side: usize, tx: &Transmit, payload: &[u8]) {
        if let Some(log) = &mut self.log {
            log.push((self.now, side, *tx));
        }
        if self.direct {
            if self.trace {
                eprintln!("{:>12} {side}> {}", self.now.as_micros(), describe(tx, payload.len()));
            }
            self.order += 1;
            let (at, to, bytes) = (self.now + self.link.delay, 1 - side, payload.to_vec());
            let direct = Some(Segment::from_transmit(tx));
            self.flying.push(Reverse(Flying { at, order: self.order, to, bytes, direct }));
            return;
        }
        let mss = usize::from(tx.mss.max(1));
        if payload.len() <= mss {
            self.wire(side, tx, payload);
            return;
        }
        for (i, piece) in payload.chunks(mss).enumerate() {
            let last = (i + 1) * mss >= payload.len();
            let mut cut = *tx;
            cut.seq = tx.seq + (i * mss) as u32;
            if !last {
                cut.flags = tx.flags.without(utcp_proto::Flags::FIN.with(utcp_proto::Flags::PSH));
            }
            self.wire(side, &cut, piece);
        }
    }

    fn wire(&mut self, side: usize, tx: &Transmit, payload: &[u8]) {
        let tuple = self.hosts[side].tuple;
        let (src, dst) = (tuple.local, tuple.remote);
        let mut bytes = vec![0; tcp::header_len(&tx.options) + payload.len()];
        let n = tcp::emit(tx, src.port, dst.port, &mut bytes).expect("room for the header");
        bytes[n..].copy_from_slice(payload);
        let (header, body) = bytes.split_at_mut(n);
        tcp::fill_checksum(src.addr, dst.addr, header, [body, &[]]);
        if self.trace {
            eprintln!("{:>12} {side}> {}", self.now.as_micros(), describe(tx, payload.len()));
        }
        self.packets += 1;
        self.sent[side] += 1;
        let count = self.sent[side];
        let forced = self.filter.as_mut().is_some_and(|f| f(side, tx, count)) || self.now < self.down_until;
        let (begin, end) = self.link.burst;
        // A burst counts packets, but it does not outlast half a second, or it would swallow every timeout's one packet.
        self.burst_since[side] = match self.burst_since[side] {
            Some(since) if self.now - since < Duration::from_millis(500) && !self.rng.hits(end) => {
                Some(since)
            }
            Some(_) => None,
            None => self.rng.hits(begin).then_some(self.now),
        };
        let too_big = bytes.len() + ip::header_len(src.addr) > self.link.mtu;
        if forced || self.burst_since[side].is_some() || self.rng.hits(self.link.loss) || too_big {
            self.lost += 1;
            if self.trace {
                eprintln!("{:>12} {side}x lost", self.now.as_micros());
            }
            if too_big && !forced && self.extra.hits(self.link.tells) {
                let told = ip::too_big(&ip::packet(&tuple, tx.ect, false, &bytes), self.link.mtu as u32);
                self.fly(self.now + self.link.delay, side, told);
            }
            return;
        }
        if self.rng.hits(self.link.corrupt) {
            let bit = self.rng.below(bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        let marked = tx.ect && self.link.mark > 0 && self.extra.hits(self.link.mark);
        let packet = ip::packet(&tuple, tx.ect, marked, &bytes);
        let copies = 1 + usize::from(self.rng.hits(self.link.duplicate));
        for _ in 0..copies {
            self.launch(side, packet.clone());
        }
    }

    fn launch(&mut self, side: usize, packet: Vec<u8>) {
        let mut at = self.now;
        if self.link.rate > 0 {
            let busy = self.busy_until[side].max(self.now);
            let backlog = (busy - self.now).as_nanos() * self.link.rate / 1_000_000_000;
            // The kept seeds count the queue without, and the wire with 20 bytes of headers more.
            let len = packet.len() as u64;
            if backlog + len - 20 > self.link.queue {
                self.lost += 1;
                return;
            }
            let ns = (len + 20) * 1_000_000_000 / self.link.rate;
            self.busy_until[side] = busy + Duration::from_nanos(ns);
            at = self.busy_until[side];
        }
        at += self.link.delay;
        at += Duration::from_nanos(self.rng.below(self.link.jitter.as_nanos()));
        if self.rng.hits(self.link.reorder) {
            at += Duration::from_nanos(self.link.delay.as_nanos() + 1_000_000);
        }
        self.fly(at, 1 - side, packet);
    }

    fn fly(&mut self, at: Instant, to: usize, bytes: Vec<u8>) {
        self.order += 1;
        self.flying.push(Reverse(Flying { at, order: self.order, to, bytes, direct: None }));
    }

    /// Delivers one packet.
    fn arrive(&mut self, side: usize, packet: &[u8]) {
        let tuple = self.hosts[side].tuple;
        match ip::open(packet) {
            ip::Got::Segment(bytes, ce) => {
                if tcp::verify(tuple.remote.addr, tuple.local.addr, bytes, Verify::Full).is_err() {
                    self.hosts[side].drops += 1;
                    return;
                }
                let repr = tcp::parse(bytes).expect("a header with a good checksum");
                let seg = Segment { ce, ..repr.segment };
                self.deliver(side, &seg, &bytes[repr.payload..]);
            }
            ip::Got::Error(kind, quoted) => {
                assert_eq!(quoted.tuple, tuple, "side {side}: an error about somebody else's segment");
                let (now, host) = (self.now, &mut self.hosts[side]);
                host.told_too_big += 1;
                let Peer::Flow(tcb) = &mut host.peer else { return };
                let actions = tcb.on_icmp(now, IcmpError { kind, seq: quoted.seq });
                self.apply(side, &actions, &[]);
                self.pump(side);
            }
            ip::Got::Nothing => panic!("side {side}: a packet that is none"),
        }
    }

    /// Hands a segment to a host as its engine would.
    pub fn deliver(&mut self, side: usize, seg: &Segment, payload: &[u8]) {
        let now = self.now;
        let host = &mut self.hosts[side];
        match &mut host.peer {
            Peer::Flow(tcb) => {
                tcb.borrow_for(seg, &mut Shelf);
                let actions = tcb.on_segment(now, seg);
                tcb.give_back(&mut Shelf);
                if self.trace && actions.drop.is_some() {
                    eprintln!("{:>12} {side}! {:?}", now.as_micros(), actions.drop);
                }
                self.apply(side, &actions, payload);
                self.pump(side);
            }
            Peer::Half(half) => match half.on_segment(now, seg) {
                HalfOpenVerdict::Established => {
                    let (tcb, actions) = Tcb::from_half_open(half, &host.cfg, now, seg);
                    host.peer = Peer::Flow(Box::new(tcb));
                    self.apply(side, &actions, payload);
                    self.pump(side);
                }
                HalfOpenVerdict::ResendSynAck => {
                    let tx = half.syn_ack(now);
                    self.transmit(side, &tx, &[]);
                }
                HalfOpenVerdict::Ack(tx, _) | HalfOpenVerdict::Reset(tx, _) => self.transmit(side, &tx, &[]),
                HalfOpenVerdict::Remove(_) => host.peer = Peer::Listen,
                HalfOpenVerdict::Drop(_) => {}
            },
            Peer::Wait(wait) => match wait.on_segment(now, seg) {
                TimeWaitVerdict::Ack(tx, _) => self.transmit(side, &tx, &[]),
                TimeWaitVerdict::Reuse { iss } => self.passive_open(side, seg, iss),
                TimeWaitVerdict::Remove => host.peer = Peer::None,
                TimeWaitVerdict::Drop(_) => {}
            },
            Peer::Listen if seg.flags.any(utcp_proto::Flags::SYN) && seg.ack.is_none() => {
                let iss = self.isn(side);
                self.passive_open(side, seg, iss);
            }
            Peer::Listen | Peer::None => {
                if let Some(tx) = reset_for(seg) {
                    host.resets_sent += 1;
                    self.transmit(side, &tx, &[]);
                }
            }
        }
    }

    fn passive_open(&mut self, side: usize, seg: &Segment, iss: SeqNum) {
        let host = &mut self.hosts[side];
        let half = HalfOpen::on_syn(&host.cfg, self.now, host.tuple, iss, seg);
        let tx = half.syn_ack(self.now);
        host.peer = Peer::Half(half);
        self.transmit(side, &tx, &[]);
    }

    fn deadline(&self, side: usize) -> Instant {
        match &self.hosts[side].peer {
            Peer::Flow(tcb) => tcb.next_deadline().unwrap_or(Instant::NEVER),
            Peer::Half(half) => half.next_deadline(),
            Peer::Wait(wait) => wait.expires(),
            _ => Instant::NEVER,
        }
    }

    fn fire(&mut self, side: usize) {
        let now = self.now;
        let host = &mut self.hosts[side];
        match &mut host.peer {
            Peer::Flow(tcb) => {
                let actions = tcb.on_timer(now);
                self.apply(side, &actions, &[]);
                self.pump(side);
            }
            Peer::Half(half) => match half.on_timer(now) {
                HalfOpenTimer::Resend => {
                    let tx = half.syn_ack(now);
                    self.transmit(side, &tx, &[]);
                }
                HalfOpenTimer::GiveUp => host.peer = Peer::Listen,
                HalfOpenTimer::Wait => panic!("a deadline that is none"),
            },
            Peer::Wait(_) => {
                host.peer = Peer::None;
                host.closed = true;
            }
            _ => {}
        }
    }

    /// When something happens next on its own.
    pub fn next_event(&self) -> Instant {
        let packet = self.flying.peek().map_or(Instant::NEVER, |f| f.0.at);
        packet.min(self.deadline(0)).min(self.deadline(1))
    }

    /// Goes to `until`, handling all that happens before.
    pub fn run_until(&mut self, until: Instant) {
        loop {
            let next = self.next_event();
            if next > until || next.is_never() {
                break;
            }
            self.step();
        }
        if !until.is_never() && self.now < until {
            self.now = until;
        }
    }

    pub fn run_for(&mut self, d: Duration) {
        self.run_until(self.now + d);
    }

    /// Handles the next event; false if there is none.
    pub fn step(&mut self) -> bool {
        let next = self.next_event();
        if next.is_never() {
            return false;
        }
        self.now = self.now.max(next);
        if self.flying.peek().is_some_and(|f| f.0.at <= self.now) {
            let Some(Reverse(packet)) = self.flying.pop() else { return false };
            match packet.direct {
                Some(seg) => self.deliver(packet.to, &seg, &packet.bytes),
                None => self.arrive(packet.to, &packet.bytes),
            }
            return true;
        }
        for side in 0..2 {
            if self.deadline(side) <= self.now {
                self.fire(side);
                assert!(self.deadline(side) > self.now, "side {side}: a timer that fires without end");
                return true;
            }
        }
        true
    }

    /// Forgets all packets on the way.
    pub fn drop_all(&mut self) {
        self.flying.clear();
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Connects and runs until both ends are established.
    pub fn establish(&mut self) {
        self.connect();
        for _ in 0..10_000 {
            if self.hosts.iter().all(|h| h.has_tcb() && h.tcb().state() == State::Established) {
                return;
            }
            assert!(self.step(), "the handshake stalled");
        }
        panic!("no handshake");
    }
}
