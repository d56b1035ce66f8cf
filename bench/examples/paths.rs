//! The engine's paths that every segment takes, to count instructions:
//!
//! ```text
//! cargo build -p utcp-bench --example paths --release
//! valgrind --tool=callgrind --toggle-collect='paths::frame_parse' target/release/examples/paths
//! ```
//!
//! Each function named below does one thing and is never inlined; the program prints how often each was called. The
//! TCB's own are in `stack/proto/examples/segments.rs`.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64};

use utcp_abi::bits::{Bits, middle_len};
use utcp_abi::ring::Ring;
use utcp_engine::shard::frame::{self, Headers, Parsed};
use utcp_engine::shard::table::{Entry, FlowTable};
use utcp_engine::shard::wheel::Wheel;
use utcp_netmap_io::{OpenOptions, Port, pipe};
use utcp_proto::wire::IpAddr;
use utcp_proto::wire::checksum::{self, Verify};
use utcp_proto::{Endpoint, FourTuple, Transmit};

const PAYLOAD: usize = 64;
const FLOWS: u32 = 1000;

/// Headers, 64 bytes of payload and the checksum go into a frame.
#[inline(never)]
pub fn frame_build(out: &mut [u8], headers: &Headers<'_>, payload: &[u8]) -> Option<usize> {
    black_box(0);
    frame::build(out, headers, |body| body.put(payload))
}

/// A frame with 64 bytes of payload becomes a segment; its checksums are verified.
#[inline(never)]
pub fn frame_parse(bytes: &[u8]) -> bool {
    black_box(1);
    matches!(frame::parse(bytes, Verify::Full), Ok(Parsed::Segment { .. }))
}

/// The flow of a segment is found.
#[inline(never)]
pub fn flow_get(table: &FlowTable, tuple: &FourTuple) -> Option<Entry> {
    black_box(2);
    table.get(tuple)
}

/// A timer is filed and cancelled.
#[inline(never)]
pub fn wheel_turn(wheel: &mut Wheel<u32>, due_ns: u64) {
    black_box(3);
    let handle = wheel.insert(due_ns, 7);
    wheel.remove(handle);
}

/// A socket's bit is set and taken, among 131 072.
#[inline(never)]
pub fn bits_turn(bits: &Bits<'_>, index: u32) -> u32 {
    black_box(4);
    bits.set(index);
    let mut taken = 0;
    bits.take_all(|index| taken += index);
    taken
}

/// A connection goes through an accept queue.
#[inline(never)]
pub fn ring_turn(ring: &Ring<'_>, tail: &mut u32, value: u32) -> Option<u32> {
    black_box(5);
    let _ = ring.push(tail, value);
    ring.pop()
}

/// A frame goes through a pipe of netmap-layout rings, alone in its batch.
#[inline(never)]
pub fn pipe_turn(from: &mut dyn Port, to: &mut dyn Port, bytes: &[u8]) -> usize {
    black_box(6);
    from.tx().push(bytes);
    let _ = from.tx_sync();
    let _ = to.rx_sync();
    to.rx().map(|frame| frame.len()).sum()
}

/// The checksum of a full segment.
#[inline(never)]
pub fn checksum_full(bytes: &[u8]) -> u16 {
    black_box(7);
    checksum::of(bytes)
}

fn main() {
    let rounds: u32 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(20_000);
    let end = |n: u8, port| Endpoint { addr: IpAddr::v4([10, 0, 0, n]), port };
    let tuple = |port| FourTuple { local: end(1, 80), remote: end(2, port) };
    let transmit = Transmit { len: PAYLOAD as u32, mss: 1448, ..Transmit::default() };
    let own = tuple(1024);
    let headers = Headers { mac: [2; 6], next_hop: [4; 6], tuple: &own, transmit: &transmit, vnet: false };
    let payload = [b'p'; PAYLOAD];
    let full = [b'f'; 1448];
    let mut bytes = [0; 256];
    let mut table = FlowTable::new(FLOWS as usize);
    for flow in 0..FLOWS {
        table.insert(tuple(1024 + flow as u16), Entry::Flow(flow));
    }
    let mut wheel = Wheel::new(0, 16);
    let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(0)).collect();
    let middle: Vec<AtomicU64> = (0..middle_len(words.len())).map(|_| AtomicU64::new(0)).collect();
    let top = AtomicU64::new(0);
    let bits = Bits::new(&words, &middle, &top);
    let (head, tail) = (AtomicU32::new(0), AtomicU32::new(0));
    let slots: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
    let ring = Ring::new(&head, &tail, &slots);
    let mut own_tail = 0;
    let [mut from, mut to] =
        pipe::pair("paths", &OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() })
            .expect("a pipe");
    for round in 0..rounds {
        let len = frame_build(&mut bytes, &headers, &payload).expect("it fits");
        assert!(frame_parse(&bytes[..len]), "what we build is well-formed");
        let found = flow_get(&table, &tuple(1024 + (round % FLOWS) as u16));
        assert_eq!(found, Some(Entry::Flow(round % FLOWS)));
        wheel_turn(&mut wheel, 200_000_000 + u64::from(round));
        assert_eq!(bits_turn(&bits, round % 131_072), round % 131_072);
        assert_eq!(ring_turn(&ring, &mut own_tail, round), Some(round));
        assert_eq!(pipe_turn(&mut *from, &mut *to, &bytes[..len]), len);
        black_box(checksum_full(&full));
    }
    for name in [
        "frame_build",
        "frame_parse",
        "flow_get",
        "wheel_turn",
        "bits_turn",
        "ring_turn",
        "pipe_turn",
        "checksum_full",
    ] {
        print!("{name} {rounds} ");
    }
    println!();
}
