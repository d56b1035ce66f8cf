//! One shard, driven by hand: the test is the program, writing the words that the shim would write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use utcp_abi::Region;
use utcp_abi::layout::SOCKETS_MAX;
use utcp_abi::set::Member;
use utcp_abi::socket::{Addr, BufRef, OpCode, RESULT_KERNEL, Socket, intent, option, status};
use utcp_abi::stream::pieces;
use utcp_abi::waiting;
use utcp_proto::isn::Secret;

use super::client::ClientRegion;
use super::connect::LOCAL_PORTS;
use super::flow::Path;
use super::{
    Cursor, Directory, Inbox, ListenRequest, Outbox, Report, ReportRequest, Shard, ShardConfig, ToShard,
};
use crate::host::HostMirror;
use crate::life::Life;

pub(in crate::shard) const PORT: u16 = 8080;
/// Tokens of accepted sockets begin here.
const TOKEN: u32 = 1000;

pub(in crate::shard) fn loopback(port: u16) -> Addr {
    let mut ip = [0; 16];
    ip[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
    Addr { ip, port, scope: 0 }
}

/// A shard and one client program per number.
pub(in crate::shard) struct World {
    pub(in crate::shard) shard: Shard,
    pub(in crate::shard) outbox: Arc<Outbox>,
    clients: Vec<Arc<ClientRegion>>,
}

impl World {
    /// Connections go by segments.
    pub(in crate::shard) fn new(clients: u32) -> Self {
        Self::with(clients, false)
    }

    pub(in crate::shard) fn with(clients: u32, cut_through: bool) -> Self {
        let (_, host) = HostMirror::open().expect("netlink");
        let config = ShardConfig {
            index: 0,
            count: 1,
            core: None,
            spin_ns: 0,
            coalesce_ns: 0,
            local: true,
            cut_through,
            secret: Secret::new(1, 2),
            tcp: crate::host::TcpSettings::DEFAULT,
        };
        let life = Arc::new(Life::new(1).expect("page"));
        let inbox = Arc::new(Inbox::new().expect("eventfd"));
        let outbox = Arc::new(Outbox::new().expect("eventfd"));
        let mut shard = Shard::new(config, life, inbox, outbox.clone(), Vec::new(), host).expect("shard");
        let clients: Vec<_> = (1..=clients)
            .map(|id| Arc::new(ClientRegion::new(id, 100 + id, 0, format!("client{id}"), 1).expect("region")))
            .collect();
        for client in &clients {
            shard.on_message(ToShard::Attach(client.clone()));
        }
        Self { shard, outbox, clients }
    }

    /// One more client, whose number is that of its place.
    pub(in crate::shard) fn attach(&mut self, client: Arc<ClientRegion>) {
        self.shard.on_message(ToShard::Attach(client.clone()));
        self.clients.push(client);
    }

    /// Is shard `index` of those with these inboxes, from the beginning.
    pub(in crate::shard) fn become_one_of(
        &mut self,
        index: u32,
        inboxes: Arc<[Arc<Inbox>]>,
        directory: Option<Arc<Directory>>,
    ) {
        let alone = Self::new(0).shard;
        let mut shard = std::mem::replace(&mut self.shard, alone);
        shard.config.index = index;
        shard.config.count = inboxes.len() as u32;
        self.shard = shard.among_others(inboxes, directory, None);
    }

    pub(in crate::shard) fn region(&self, client: u32) -> Region {
        self.clients[client as usize - 1].region()
    }

    pub(in crate::shard) fn program(&self, client: u32) -> Program {
        Program(self.region(client))
    }

    pub(in crate::shard) fn listen(&mut self, client: u32, backlog: u32) -> u32 {
        self.listen_at(client, PORT, backlog)
    }

    fn listen_at(&mut self, client: u32, port: u16, backlog: u32) -> u32 {
        self.listen_as(client, port, backlog, u64::from(client))
    }

    pub(in crate::shard) fn listen_as(&mut self, client: u32, port: u16, backlog: u32, inode: u64) -> u32 {
        self.listen_held(client, port, (backlog, inode), Arc::new(AtomicU32::new(1)))
    }

    pub(in crate::shard) fn listen_held(
        &mut self,
        client: u32,
        port: u16,
        (backlog, inode): (u32, u64),
        holders: Arc<AtomicU32>,
    ) -> u32 {
        let sock = self.program(client).claim();
        let region = self.region(client);
        region.socket(sock).expect("slot").status.fetch_or(status::LISTENING, Ordering::Relaxed);
        self.shard.on_message(ToShard::Listen(ListenRequest {
            client,
            sock,
            slot: 0,
            addr: loopback(port),
            backlog,
            one_family: true,
            reuseport: false,
            kernels: false,
            inode,
            holders,
        }));
        sock
    }

    /// Rounds until nothing is left to do.
    pub(in crate::shard) fn settle(&mut self) {
        for _ in 0..1000 {
            self.shard.now = utcp_proto::Instant::from_nanos(crate::sys::now_ns());
            if !self.shard.round() {
                return;
            }
        }
        panic!("the shard never comes to rest");
    }

    /// Time passes.
    pub(in crate::shard) fn pass(&mut self, ms: u64) {
        let end = self.shard.now.as_nanos() + ms * 1_000_000;
        while self.shard.now.as_nanos() < end {
            let next = self.shard.now.as_nanos() + 5_000_000;
            self.shard.now = utcp_proto::Instant::from_nanos(next.min(end));
            self.shard.round();
        }
    }

    pub(in crate::shard) fn connect(&mut self, client: u32) -> u32 {
        let sock = self.program(client).ask_connect(loopback(PORT));
        self.settle();
        let socket = self.region(client);
        let socket = socket.socket(sock).expect("slot");
        let asked = socket.op_asked.load(Ordering::Relaxed);
        assert_eq!(socket.op_done.load(Ordering::Relaxed), asked, "answered");
        assert_eq!(socket.op_result.load(Ordering::Relaxed), 0);
        sock
    }
}

/// What the shim does, in a few words each.
#[derive(Clone, Copy)]
pub(in crate::shard) struct Program(Region);

impl Program {
    pub(in crate::shard) fn socket(&self, sock: u32) -> &Socket {
        self.0.socket(sock).expect("slot")
    }

    pub(in crate::shard) fn claim(&self) -> u32 {
        let sock = self.0.claim_socket().expect("a free slot");
        self.socket(sock).intent.fetch_or(intent::OWNED, Ordering::Relaxed);
        sock
    }

    pub(in crate::shard) fn kick(&self, sock: u32) {
        self.kick_at(0, sock);
    }

    /// Has shard `shard` look.
    pub(in crate::shard) fn kick_at(&self, shard: u32, sock: u32) {
        self.0.dirty(shard).set(sock);
    }

    pub(in crate::shard) fn ask_connect(&self, to: Addr) -> u32 {
        self.ask_connect_at(0, 0, to)
    }

    /// On a socket of shard `of`, with the bit that shard `at` sees.
    pub(in crate::shard) fn ask_connect_at(&self, at: u32, of: u32, to: Addr) -> u32 {
        let sock = self.claim();
        let socket = self.socket(sock);
        socket.shard.store(of, Ordering::Relaxed);
        for (word, value) in socket.op_args.iter().zip(to.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        let generation = socket.generation.load(Ordering::Relaxed);
        socket.op_code.store(OpCode::Connect.of(generation), Ordering::Relaxed);
        socket.op_asked.fetch_add(1, Ordering::Release);
        self.kick_at(at, sock);
        sock
    }

    pub(in crate::shard) fn accept(&self) -> Option<u32> {
        let sock = self.take(self.pop()?)?;
        self.socket(sock).intent.fetch_or(intent::OWNED, Ordering::Relaxed);
        self.kick(sock);
        Some(sock)
    }

    /// What `accept` does first.
    pub(in crate::shard) fn pop(&self) -> Option<u32> {
        self.0.listener(0).expect("listener").queues[0].ring().pop()
    }

    /// Stands a connection that was popped on a descriptor.
    pub(in crate::shard) fn take(&self, entry: u32) -> Option<u32> {
        let sock = waiting::slot_of(entry);
        waiting::take(self.socket(sock), entry, TOKEN + sock).map(|_| sock)
    }

    pub(in crate::shard) fn send(&self, sock: u32, bytes: &[u8]) {
        let socket = self.socket(sock);
        let buf = BufRef(socket.tx_buf.load(Ordering::Relaxed));
        let base = self.0.stream(buf).expect("stream");
        let tail = socket.tx_tail.load(Ordering::Relaxed);
        let mut from = bytes;
        for piece in pieces(buf.capacity(), tail, bytes.len() as u64) {
            let (now, later) = from.split_at(piece.len);
            // SAFETY: `pieces` stays inside the buffer.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), base.add(piece.offset), now.len()) };
            from = later;
        }
        socket.tx_tail.store(tail + bytes.len() as u64, Ordering::Release);
        self.kick(sock);
    }

    pub(in crate::shard) fn recv(&self, sock: u32) -> Vec<u8> {
        let out = self.take_unread(sock);
        self.kick(sock);
        out
    }

    /// As [`Self::recv`], but the engine hears of it no sooner than the shim says it.
    pub(in crate::shard) fn recv_quietly(&self, sock: u32) -> Vec<u8> {
        let out = self.take_unread(sock);
        let socket = self.socket(sock);
        let capacity = BufRef(socket.rx_buf.load(Ordering::Relaxed)).capacity();
        if socket.awaits_reader(socket.rx_head.load(Ordering::Relaxed), capacity, true) {
            self.kick(sock);
        }
        out
    }

    fn take_unread(&self, sock: u32) -> Vec<u8> {
        let socket = self.socket(sock);
        let buf = BufRef(socket.rx_buf.load(Ordering::Relaxed));
        let base = self.0.stream(buf).expect("stream");
        let head = socket.rx_head.load(Ordering::Relaxed);
        let len = socket.rx_available();
        let mut out = Vec::new();
        for piece in pieces(buf.capacity(), head, len) {
            // SAFETY: `pieces` stays inside the buffer.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(base.add(piece.offset), piece.len) });
        }
        socket.rx_head.store(head + len, Ordering::Release);
        out
    }

    pub(in crate::shard) fn intend(&self, sock: u32, bits: u32) {
        self.socket(sock).intent.fetch_or(bits, Ordering::Release);
        self.kick(sock);
    }
}

#[test]
fn one_byte_there_and_one_back() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    assert!(client.socket(a).is(status::CONNECTED));
    let b = server.accept().expect("a connection waits");
    client.send(a, b"x");
    world.settle();
    assert_eq!(server.recv(b), b"x");
    server.send(b, b"y");
    world.settle();
    assert_eq!(client.recv(a), b"y");
    assert_eq!(server.socket(b).remote.load(), client.socket(a).local.load());
    assert_eq!(server.socket(b).local.load(), loopback(PORT));
}

/// A thread that asks for a connection when another has closed the socket: the slot may be free, or in its next use.
#[test]
fn an_operation_is_of_one_use_of_its_slot() {
    for reused in [false, true] {
        let mut world = World::new(2);
        world.listen(1, 16);
        let client = world.program(2);
        let sock = world.connect(2);
        let late = OpCode::Connect.of(client.socket(sock).generation.load(Ordering::Relaxed));
        client.intend(sock, intent::CLOSE);
        let other = world.program(1).accept().expect("a connection waits");
        world.program(1).intend(other, intent::CLOSE);
        world.settle();
        world.pass(1);
        assert!(client.0.free_sockets().is_set(sock), "free again");
        if reused {
            assert_eq!(client.claim(), sock);
        }
        let socket = client.socket(sock);
        for (word, value) in socket.op_args.iter().zip(loopback(PORT).to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        socket.op_code.store(late, Ordering::Relaxed);
        let asked = socket.op_asked.fetch_add(1, Ordering::Release) + 1;
        client.kick(sock);
        world.settle();
        assert_eq!(socket.op_done.load(Ordering::Relaxed), asked, "it is answered");
        assert_eq!(socket.op_result.load(Ordering::Relaxed), libc::EBADF);
        assert!(world.program(1).accept().is_none() && !socket.is(status::CONNECTING));
        assert_eq!(client.0.free_sockets().is_set(sock), !reused);
        assert_eq!(world.shard.flows.len(), 0);
    }
}

/// One byte after another in one direction: the engine says when an acknowledgement waits for the reader, before the byte can be read, and
/// sends it as soon as it hears that it was. In an exchange to and fro nothing is said.
#[test]
fn an_acknowledgement_waits_for_the_reader() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    let mut waited = 0;
    // The very first ACK waits a moment for an answer.
    client.send(a, b"x");
    world.settle();
    assert_eq!(server.recv(b), b"x");
    world.pass(2);
    for _ in 0..40 {
        client.send(a, b"x");
        world.settle();
        let waits = server.socket(b).is(status::ACK_WAITS);
        assert_eq!(
            server.socket(b).awaits_reader(server.socket(b).rx_tail.load(Ordering::Relaxed), 1 << 14, true),
            waits
        );
        assert_eq!(
            waits,
            client.socket(a).tx_queued() > 0,
            "it is acknowledged, or that waits for the reader"
        );
        waited += u32::from(waits);
        assert_eq!(server.recv(b), b"x");
        world.settle();
        assert_eq!(client.socket(a).tx_queued(), 0);
        assert!(!server.socket(b).is(status::ACK_WAITS));
    }
    assert!((20..40).contains(&waited), "the first ones need nobody: {waited}");
    for _ in 0..40 {
        server.send(b, b"y");
        world.settle();
        assert_eq!(client.recv(a), b"y");
        client.send(a, b"x");
        world.settle();
        assert!(!server.socket(b).is(status::ACK_WAITS) && !client.socket(a).is(status::ACK_WAITS));
        assert_eq!(server.recv(b), b"x");
    }
}

#[test]
fn bulk_arrives_whole_and_the_window_closes_and_opens() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut sent, mut got, mut idle, mut largest) = (0, Vec::new(), 0, 0);
    while got.len() < data.len() {
        let socket = client.socket(a);
        let capacity = BufRef(socket.tx_buf.load(Ordering::Relaxed)).capacity() as usize;
        largest = largest.max(capacity);
        let room = capacity - socket.tx_queued() as usize;
        let n = room.min(data.len() - sent);
        if n > 0 {
            client.send(a, &data[sent..sent + n]);
            sent += n;
        }
        client.intend(a, intent::TX_FULL);
        world.settle();
        // A reader that is late every other time.
        let before = got.len();
        if idle % 2 == 0 {
            got.extend(server.recv(b));
            world.settle();
        }
        idle = if got.len() > before { 0 } else { idle + 1 };
        if idle > 4 {
            world.pass(250);
        }
        assert!(idle < 40, "stalled at {} of {}", got.len(), data.len());
    }
    assert!(got == data, "bytes differ");
    assert!(largest > 1 << 14, "the tx stream grew");
    let rx = BufRef(server.socket(b).rx_buf.load(Ordering::Relaxed)).capacity();
    assert!(rx > 1 << 14, "the rx stream grew");
}

#[test]
fn close_ends_both_sides_and_frees_the_slots() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    client.send(a, b"last words");
    client.intend(a, intent::CLOSE);
    world.settle();
    assert!(server.socket(b).is(status::RX_FIN));
    assert_eq!(server.recv(b), b"last words");
    server.intend(b, intent::CLOSE);
    world.settle();
    assert_eq!(world.shard.flows.len(), 0, "no flow is left");
    assert!(world.region(1).free_sockets().is_set(b) && world.region(2).free_sockets().is_set(a));
    assert_eq!(client.socket(a).generation.load(Ordering::Relaxed), 1);
}

#[test]
fn unread_bytes_make_a_close_a_reset() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    client.send(a, b"never read");
    world.settle();
    server.intend(b, intent::CLOSE);
    world.settle();
    assert!(client.socket(a).is(status::DEAD));
    assert_eq!(client.socket(a).error.load(Ordering::Relaxed), libc::ECONNRESET);
    client.intend(a, intent::CLOSE);
    world.settle();
    assert_eq!(world.shard.flows.len(), 0);
    assert!(world.region(2).free_sockets().is_set(a));
}

#[test]
fn linger_zero_resets() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    client.socket(a).options.flags.fetch_or(option::LINGER, Ordering::Relaxed);
    client.intend(a, intent::CLOSE);
    world.settle();
    assert_eq!(server.socket(b).error.load(Ordering::Relaxed), libc::ECONNRESET);
}

/// Bytes and the close that resets may come in one look of the shard's.
#[test]
fn what_was_sent_before_a_reset_arrives() {
    let mut world = World::new(1);
    world.listen(1, 5);
    let client = world.connect(1);
    let program = world.program(1);
    let server = program.accept().expect("a connection");
    world.settle();
    let options = &program.socket(client).options;
    options.flags.fetch_or(option::LINGER, Ordering::Relaxed);
    program.send(client, b"abc");
    program.intend(client, intent::CLOSE);
    world.settle();
    assert_eq!(program.recv(server), b"abc");
    assert_eq!(program.socket(server).error.load(Ordering::Relaxed), libc::ECONNRESET);
}

/// A connection from a listener's own port to that port would be one of the program with itself.
#[test]
fn client_ports_are_none_that_somebody_listens_on() {
    let mut world = World::new(1);
    let port = LOCAL_PORTS.start as u16 + 1000;
    world.listen_at(1, port, 5);
    let remote = utcp_proto::Endpoint { addr: utcp_proto::wire::IpAddr(loopback(port).ip), port };
    for _ in LOCAL_PORTS {
        let tuple = world.shard.choose_port(remote.addr, 0, remote, Path::Local(u32::MAX)).expect("a port");
        assert_ne!(tuple.local, remote);
    }
}

/// A report on many sockets comes in parts, one in a round, so that connections have their turn in between. Each socket is in one of them.
#[test]
fn a_long_report_comes_in_parts() {
    let mut world = World::new(2);
    world.listen(1, 1024);
    for _ in 0..300 {
        world.connect(2);
    }
    let ask = |world: &World, from| {
        let (to, answer) = std::sync::mpsc::sync_channel(1);
        world.shard.inbox.send(ToShard::Report(ReportRequest::Sockets(from), to));
        answer
    };
    let (mut at, mut parts, mut seen) = (Some(Cursor::default()), 0, std::collections::HashSet::new());
    while let Some(from) = at {
        let (first, second) = (ask(&world, from), ask(&world, from));
        world.shard.round();
        let Ok(Report::Sockets(lines, rest)) = first.try_recv() else { panic!("no answer") };
        assert!(second.try_recv().is_err(), "a part and no more in a round");
        world.shard.round();
        assert!(second.try_recv().is_ok(), "and the next in the next");
        assert!(lines.len() <= super::report::LINES_MAX);
        parts += 1;
        for line in lines {
            assert!(seen.insert((line.state, line.local, line.remote)), "{:?} twice", line.ends());
        }
        at = rest;
    }
    assert_eq!((seen.len(), parts), (601, 5));
}

#[test]
fn nobody_listens_means_the_kernel() {
    let mut world = World::new(1);
    let program = world.program(1);
    let sock = program.ask_connect(loopback(PORT));
    world.settle();
    assert_eq!(program.socket(sock).op_result.load(Ordering::Relaxed), RESULT_KERNEL);
    assert_eq!(program.socket(sock).op_done.load(Ordering::Relaxed), 1);
}

#[test]
fn readiness_bits_and_nothing_else() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let a = world.connect(2);
    let b = server.accept().expect("a connection waits");
    let member = |interest, events| Member { set: 3, interest, events, exclusive: false }.pack();
    server.socket(b).members[0].store(member(77, libc::EPOLLIN as u16), Ordering::SeqCst);
    server.socket(b).members[1].store(member(78, libc::EPOLLOUT as u16), Ordering::SeqCst);
    let ready = world.region(1);
    let ready = ready.ready(3).expect("set");
    client.send(a, b"news");
    world.settle();
    assert_eq!(ready.next(0), Some(77), "the reader hears of it");
    assert!(!ready.is_set(78), "the writer does not");
}

#[test]
fn the_accept_queue_is_bounded() {
    let mut world = World::new(2);
    world.listen(1, 2); // One more than that may wait, as in Linux.
    let client = world.program(2);
    let socks: Vec<u32> = (0..6).map(|_| client.ask_connect(loopback(PORT))).collect();
    world.settle();
    let connected = socks.iter().filter(|&&s| client.socket(s).is(status::CONNECTED)).count();
    assert_eq!(connected, 3);
    assert!(world.shard.counters.listen_overflows > 0);
    let server = world.program(1);
    assert_eq!(std::iter::from_fn(|| server.accept()).count(), 3);
    // The others try again and get in.
    world.pass(2_500);
    let connected = socks.iter().filter(|&&s| client.socket(s).is(status::CONNECTED)).count();
    assert!(connected >= 5, "{connected} connected");
}

#[test]
fn a_listener_that_goes_resets_what_waits() {
    let mut world = World::new(2);
    let listener = world.listen(1, 16);
    let client = world.program(2);
    let a = world.connect(2);
    world.shard.on_message(ToShard::Unlisten { client: 1, sock: listener });
    world.settle();
    assert!(client.socket(a).is(status::DEAD));
    let sock = client.ask_connect(loopback(PORT));
    world.settle();
    assert_eq!(client.socket(sock).op_result.load(Ordering::Relaxed), RESULT_KERNEL);
}

/// The slot of a listener may be another socket's only when no shard knows it as a listener: whoever gives it up last frees it.
#[test]
fn the_last_shard_frees_the_slot_of_a_listener() {
    for shards in 1..=2 {
        let mut world = World::new(1);
        let holders = Arc::new(AtomicU32::new(shards));
        let sock = world.listen_held(1, PORT, (16, 1), holders.clone());
        let generation = |world: &World| world.program(1).socket(sock).generation.load(Ordering::Relaxed);
        let before = generation(&world);
        world.shard.on_message(ToShard::Unlisten { client: 1, sock });
        assert_eq!(holders.load(Ordering::Relaxed), shards - 1);
        assert_eq!(generation(&world) != before, shards == 1, "{shards} shards");
        assert_eq!(world.region(1).free_sockets().is_set(sock), shards == 1);
    }
}

/// A program that ends has not told the engine what it read and wrote last: its peer gets all of it, and no reset.
#[test]
fn the_end_of_a_program_is_an_orderly_close() {
    for (ends, writes) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut world = World::new(2);
        world.listen(1, 16);
        let (server, client) = (world.program(1), world.program(2));
        let a = world.connect(2);
        let b = server.accept().expect("a connection waits");
        server.socket(b).token.store(7, Ordering::Relaxed);
        world.settle();
        client.send(a, b"request");
        world.settle();
        assert_eq!(server.recv(b), b"request");
        // `recv` tells the engine only now and then.
        world.region(1).dirty(0).take_all(|_| {});
        if writes {
            server.send(b, b"answer");
        }
        world.shard.on_message(if ends {
            ToShard::Detach(1)
        } else {
            ToShard::Hangup { client: 1, sock: b, token: 7 }
        });
        world.settle();
        assert_eq!(client.recv(a), if writes { &b"answer"[..] } else { b"" });
        assert!(client.socket(a).is(status::RX_FIN) && !client.socket(a).is(status::DEAD));
        assert_eq!(client.socket(a).error.load(Ordering::Relaxed), 0);
    }
}

/// Two programs with descriptors of one kernel socket: what waits at the one that goes (or closes its descriptor) is
/// accepted by the other, with the bytes that came.
#[test]
fn what_waits_goes_to_the_other_program_of_the_same_socket() {
    for yields in [false, true] {
        let mut world = World::new(3);
        let old = world.listen_as(1, PORT, 16, 77);
        let (heir, client) = (world.program(2), world.program(3));
        let first = world.connect(3);
        client.send(first, b"early");
        world.settle();
        let new = world.listen_as(2, PORT, 16, 77);
        assert!(heir.accept().is_none());
        let message = if yields {
            ToShard::Yield { client: 1, sock: old }
        } else {
            ToShard::Unlisten { client: 1, sock: old }
        };
        world.shard.on_message(message);
        world.settle();
        assert!(world.program(1).accept().is_none());
        let accepted = heir.accept().expect("the connection waits here now");
        assert_eq!(heir.recv(accepted), b"early");
        heir.send(accepted, b"answer");
        client.send(first, b"more");
        world.settle();
        assert_eq!(client.recv(first), b"answer");
        assert_eq!(heir.recv(accepted), b"more");
        // Later ones come here at once.
        world.connect(3);
        assert!(heir.accept().is_some());
        world.shard.on_message(ToShard::Unlisten { client: 2, sock: new });
        if !yields {
            assert_eq!(world.shard.clients.get(0).expect("the old program").flows, 0);
        }
    }
}

#[test]
fn hostile_indices_end_their_client_alone() {
    for lie in [1u64 << 60, u64::MAX, 1 << 44 | 1 << 30] {
        for which in 0..2 {
            let mut world = World::new(3);
            world.listen(1, 16);
            let (server, good, bad) = (world.program(1), world.program(2), world.program(3));
            let a = world.connect(2);
            let b = server.accept().expect("a connection waits");
            let x = world.connect(3);
            let socket = bad.socket(x);
            if which == 0 { &socket.tx_tail } else { &socket.rx_head }.store(lie, Ordering::Relaxed);
            bad.kick(x);
            // What it asks behind that, in the same look, is not looked at.
            bad.ask_connect(loopback(PORT));
            world.settle();
            assert_eq!(world.region(3).header().closed.load(Ordering::Relaxed), 1, "thrown out");
            assert_eq!(world.shard.counters.corrupt_clients, 1);
            let its = world.shard.by_number[&3];
            assert!(world.shard.flows.iter().all(|(_, flow)| flow.client != its), "none of its own is left");
            good.send(a, b"still here");
            world.settle();
            assert_eq!(server.recv(b), b"still here");
            world.shard.on_message(ToShard::Detach(3));
            world.settle();
            assert_eq!(world.shard.flows.len(), 2, "the connection of the others");
            assert_eq!(world.shard.clients.iter().count(), 2);
        }
    }
}

/// Every word that a program can write, at random, while another client goes on.
#[test]
fn random_words_never_harm_the_engine() {
    let mut state = 42u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    for _ in 0..60 {
        let mut world = World::new(3);
        world.listen(1, 16);
        let (server, good, bad) = (world.program(1), world.program(2), world.program(3));
        let a = world.connect(2);
        let b = server.accept().expect("a connection waits");
        world.connect(3);
        for _ in 0..200 {
            let sock = (random() % 6) as u32;
            let socket = bad.socket(sock);
            match random() % 8 {
                0 => socket.tx_tail.store(random() << (random() % 40), Ordering::Relaxed),
                1 => socket.rx_head.store(random() << (random() % 40), Ordering::Relaxed),
                2 => socket.intent.store(random() as u32, Ordering::Relaxed),
                3 => {
                    socket.members[(random() % 8) as usize]
                        .store(random() << 16 | 1 << 63, Ordering::Relaxed);
                }
                4 => {
                    let generation = socket.generation.load(Ordering::Relaxed) << 8;
                    socket.op_code.store((random() as u32 % 6) | generation, Ordering::Relaxed);
                    socket.op_asked.store(random() as u32, Ordering::Relaxed);
                }
                5 => socket.options.flags.store(random() as u32, Ordering::Relaxed),
                6 => {
                    bad.0.free_sockets().set((random() % u64::from(SOCKETS_MAX)) as u32);
                }
                _ => {
                    let queue = &bad.0.listener((random() % 4) as u32).expect("listener").queues[0];
                    queue.head.store(random() as u32, Ordering::Relaxed);
                }
            }
            bad.kick(sock);
            world.shard.round();
        }
        good.send(a, b"unharmed");
        world.settle();
        assert_eq!(server.recv(b), b"unharmed");
        world.shard.on_message(ToShard::Detach(3));
        world.pass(1000);
    }
}

#[test]
fn nothing_is_allocated_per_connection_or_segment() {
    let mut world = World::new(2);
    world.listen(1, 64);
    let (server, client) = (world.program(1), world.program(2));
    let serve = |world: &mut World| {
        let a = client.ask_connect(loopback(PORT));
        world.settle();
        let b = server.accept().expect("a connection waits");
        for _ in 0..10 {
            client.send(a, b"request");
            world.settle();
            server
                .socket(b)
                .rx_head
                .store(server.socket(b).rx_tail.load(Ordering::Relaxed), Ordering::Release);
            server.send(b, b"answer");
            world.settle();
        }
        client.socket(a).rx_head.store(client.socket(a).rx_tail.load(Ordering::Relaxed), Ordering::Release);
        client.intend(a, intent::CLOSE);
        world.settle();
        server.intend(b, intent::CLOSE);
        world.settle();
    };
    serve(&mut world); // The first one may warm something up.
    let before = crate::alloc_count::allocations();
    for _ in 0..200 {
        serve(&mut world);
    }
    assert_eq!(crate::alloc_count::allocations() - before, 0);
    assert_eq!(world.shard.flows.len(), 0);
}
