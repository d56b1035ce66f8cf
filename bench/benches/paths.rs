//! What the engine's single steps take, over the number of flows where that matters:
//!
//! ```text
//! cargo bench -p utcp-bench --bench paths            all, or with a part of a name behind `--`
//! ```
//!
//! Times are of this machine and this moment: compare two builds by turns, or count instructions instead
//! (`tests/tests/instructions.rs`). What a program's calls take is in `calls.rs`.

use std::sync::atomic::{AtomicU32, AtomicU64};

use divan::{Bencher, black_box};
use utcp_abi::bits::{Bits, middle_len};
use utcp_abi::ring::Ring;
use utcp_engine::shard::frame::{self, Headers, Parsed};
use utcp_engine::shard::table::{Entry, FlowTable};
use utcp_engine::shard::wheel::Wheel;
use utcp_netmap_io::{OpenOptions, pipe};
use utcp_proto::wire::IpAddr;
use utcp_proto::wire::checksum::{self, Verify};
use utcp_proto::{
    Config, Duration, Endpoint, FourTuple, HalfOpen, Instant, Segment, SeqNum, Tcb, Transmit, TxLimits,
    UserCall,
};

/// Flows, timers, sockets.
const MANY: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Bytes of a message.
const MESSAGE: u32 = 64;

fn main() {
    divan::main();
}

/// The `n`-th peer of a server.
fn tuple(n: u32) -> FourTuple {
    let [a, b, c, _] = (n >> 8).to_be_bytes();
    let remote = Endpoint { addr: IpAddr::v4([10, a.wrapping_add(1), b, c]), port: 1024 + (n & 0xff) as u16 };
    FourTuple { local: Endpoint { addr: IpAddr::v4([10, 0, 0, 1]), port: 80 }, remote }
}

/// Numbers below `below` in no order that a prefetcher would guess.
fn scattered(below: u32) -> impl FnMut() -> u32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(below)) as u32
    }
}

/// The flow of a segment is found.
#[divan::bench(args = MANY)]
fn flow_lookup(bencher: Bencher<'_, '_>, flows: u32) {
    let mut table = FlowTable::new(flows as usize);
    for n in 0..flows {
        table.insert(tuple(n), Entry::Flow(n));
    }
    let mut next = scattered(flows);
    bencher.bench_local(|| table.get(&tuple(next())));
}

/// A timer is filed and cancelled among others.
#[divan::bench(args = MANY)]
fn wheel_turn(bencher: Bencher<'_, '_>, timers: u32) {
    let mut wheel = Wheel::new(0, timers as usize + 1);
    let mut next = scattered(2_000_000_000);
    for n in 0..timers {
        wheel.insert(1_000_000_000 + u64::from(next()), n);
    }
    bencher.bench_local(|| {
        let handle = wheel.insert(1_000_000_000 + u64::from(next()), 0);
        wheel.remove(handle);
    });
}

/// A timer fires and is filed again.
#[divan::bench(args = MANY)]
fn wheel_fire(bencher: Bencher<'_, '_>, timers: u32) {
    let mut wheel = Wheel::new(0, timers as usize + 1);
    let mut now = 0;
    let period = 200_000_000u64;
    for n in 0..timers {
        wheel.insert(u64::from(n) * period / u64::from(timers), n);
    }
    let mut fired = Vec::with_capacity(timers as usize);
    bencher.bench_local(|| {
        while fired.is_empty() {
            now = wheel.next_ns().unwrap_or(now).max(now + 1);
            wheel.advance(now, |n| fired.push(n));
        }
        fired.pop().map(|n| wheel.insert(now + period, n))
    });
}

/// A socket's bit is set and taken, as a command or an event is, among the sockets of a program.
#[divan::bench]
fn bits_turn(bencher: Bencher<'_, '_>) {
    let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(0)).collect();
    let middle: Vec<AtomicU64> = (0..middle_len(words.len())).map(|_| AtomicU64::new(0)).collect();
    let top = AtomicU64::new(0);
    let bits = Bits::new(&words, &middle, &top);
    let mut next = scattered(131_072);
    bencher.bench_local(|| {
        bits.set(next());
        let mut taken = 0;
        bits.take_all(|index| taken += index);
        taken
    });
}

/// A connection goes through an accept queue.
#[divan::bench]
fn ring_push_pop(bencher: Bencher<'_, '_>) {
    let (head, tail) = (AtomicU32::new(0), AtomicU32::new(0));
    let slots: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
    let ring = Ring::new(&head, &tail, &slots);
    let mut own_tail = 0;
    bencher.bench_local(|| {
        let _ = ring.push(&mut own_tail, black_box(7));
        ring.pop()
    });
}

/// A frame goes through a pipe of netmap-layout rings, alone in its batch.
#[divan::bench]
fn pipe_turn(bencher: Bencher<'_, '_>) {
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let [mut from, mut to] =
        pipe::pair(&format!("bench-paths-{}", std::process::id()), &options).expect("a pipe");
    let bytes = [b'p'; 130];
    bencher.bench_local(|| {
        from.tx().push(&bytes);
        let _ = from.tx_sync();
        let _ = to.rx_sync();
        to.rx().map(|frame| frame.len()).sum::<usize>()
    });
}

fn build(out: &mut [u8], payload: &[u8]) -> usize {
    let own = tuple(1);
    let transmit = Transmit { len: payload.len() as u32, mss: 1448, ..Transmit::default() };
    let headers = Headers { mac: [2; 6], next_hop: [4; 6], tuple: &own, transmit: &transmit, vnet: false };
    let built = frame::build(out, &headers, |body| body.put(payload));
    built.expect("it fits")
}

/// Headers, payload and checksum go into a frame.
#[divan::bench(args = [0, MESSAGE, 1448])]
fn frame_build(bencher: Bencher<'_, '_>, len: u32) {
    let payload = vec![b'p'; len as usize];
    let mut out = [0; 1600];
    bencher.bench_local(|| build(black_box(&mut out), &payload));
}

/// A frame becomes a segment; its checksums are verified.
#[divan::bench(args = [0, MESSAGE, 1448])]
fn frame_parse(bencher: Bencher<'_, '_>, len: u32) {
    let mut out = [0; 1600];
    let whole = build(&mut out, &vec![b'p'; len as usize]);
    let frame = &out[..whole];
    assert!(matches!(frame::parse(frame, Verify::Full), Ok(Parsed::Segment { .. })), "it is well-formed");
    bencher.bench_local(|| frame::parse(black_box(frame), Verify::Full));
}

#[divan::bench(args = [64, 1448, 65_536])]
fn checksum(bencher: Bencher<'_, '_>, len: usize) {
    let bytes = vec![0xa5; len];
    bencher.bench_local(|| checksum::of(black_box(&bytes)));
}

/// Both ends of a connection.
struct Ends {
    client: Tcb,
    server: Tcb,
    now: Instant,
}

impl Ends {
    fn connected() -> Self {
        let cfg = Config { nodelay: true, recv_capacity: 1 << 20, ..Config::DEFAULT };
        let mut now = Instant::from_millis(1);
        let name = tuple(1);
        let mut client = Tcb::connect(&cfg, now, name, SeqNum::new(1));
        let syn = client.poll_transmit(now, TxLimits::WIRE).expect("a SYN");
        let syn = Segment::from_transmit(&syn);
        let half = HalfOpen::on_syn(&cfg, now, name.reversed(), SeqNum::new(2), &syn);
        now += Duration::from_micros(50);
        let _ = client.on_segment(now, &Segment::from_transmit(&half.syn_ack(now)));
        let ack = client.poll_transmit(now, TxLimits::WIRE).expect("an ACK");
        let (server, _) = Tcb::from_half_open(&half, &cfg, now, &Segment::from_transmit(&ack));
        Self { client, server, now }
    }

    /// A message: queued, sent, received, read.
    fn pass(from: &mut Tcb, to: &mut Tcb, now: Instant) {
        let _ = from.on_user(now, UserCall::Send { added: MESSAGE, more: false, urgent: false });
        while let Some(tx) = from.poll_transmit(now, TxLimits::WIRE) {
            let out = to.on_segment(now, &Segment::from_transmit(&tx));
            let _ = to.on_user(now, UserCall::Received { n: out.advanced });
        }
    }
}

/// A request and its answer in the TCBs of both ends: two segments each sends, two that each receives, with their calls.
#[divan::bench]
fn request_and_answer(bencher: Bencher<'_, '_>) {
    let Ends { mut client, mut server, mut now } = Ends::connected();
    bencher.bench_local(|| {
        now += Duration::from_micros(20);
        Ends::pass(&mut client, &mut server, now);
        now += Duration::from_micros(20);
        Ends::pass(&mut server, &mut client, now);
    });
}

/// A segment of a stream, and its part of an ACK: `poll_transmit` and `on_segment` at both ends.
#[divan::bench]
fn stream_segment(bencher: Bencher<'_, '_>) {
    let Ends { mut client, mut server, mut now } = Ends::connected();
    let mut turn = move || {
        now += Duration::from_micros(20);
        let added = 1_448 * 8;
        let _ = client.on_user(now, UserCall::Send { added, more: false, urgent: false });
        while let Some(tx) = client.poll_transmit(now, TxLimits::WIRE) {
            let out = server.on_segment(now, &Segment::from_transmit(&tx));
            let _ = server.on_user(now, UserCall::Received { n: out.advanced });
        }
        while let Some(tx) = server.poll_transmit(now, TxLimits::WIRE) {
            let _ = client.on_segment(now, &Segment::from_transmit(&tx));
        }
    };
    bencher.counter(divan::counter::ItemsCount::new(8usize)).bench_local(&mut turn);
}
