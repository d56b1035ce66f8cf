//! A bulk transfer between two TCBs without anything in between, to count instructions:
//!
//! ```text
//! cargo build -p utcp-proto --example segments --release
//! valgrind --tool=callgrind --toggle-collect='*on_data*' target/release/examples/segments
//! ```
//!
//! The argument is the number of rounds of four segments. Each function named below does one thing and is never inlined (the number in it keeps equal ones apart); the program prints how often each was called.

use std::hint::black_box;

use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Actions, Config, Duration, Endpoint, FourTuple, HalfOpen, Instant, Segment, SeqNum, Tcb, Transmit,
    TxLimits, UserCall,
};

/// An in-order data segment arrives.
#[inline(never)]
pub fn on_data(tcb: &mut Tcb, now: Instant, seg: &Segment) -> Actions {
    black_box(0);
    tcb.on_segment(now, seg)
}

/// An ACK of one or two segments arrives.
#[inline(never)]
pub fn on_ack(tcb: &mut Tcb, now: Instant, seg: &Segment) -> Actions {
    black_box(1);
    tcb.on_segment(now, seg)
}

/// A data segment leaves.
#[inline(never)]
pub fn poll_data(tcb: &mut Tcb, now: Instant) -> Option<Transmit> {
    black_box(2);
    tcb.poll_transmit(now, TxLimits::WIRE)
}

/// A bare ACK leaves.
#[inline(never)]
pub fn poll_ack(tcb: &mut Tcb, now: Instant) -> Option<Transmit> {
    black_box(3);
    tcb.poll_transmit(now, TxLimits::WIRE)
}

/// The program queues bytes.
#[inline(never)]
pub fn on_send(tcb: &mut Tcb, now: Instant, n: u32) {
    black_box(4);
    let _ = black_box(tcb.on_user(now, UserCall::Send { added: n, more: false, urgent: false }));
}

/// The program consumes bytes.
#[inline(never)]
pub fn on_received(tcb: &mut Tcb, now: Instant, n: u32) {
    black_box(5);
    let _ = black_box(tcb.on_user(now, UserCall::Received { n }));
}

fn main() {
    let cfg = Config { recv_capacity: 1 << 20, ..Config::DEFAULT };
    let end = |n: u8| Endpoint { addr: IpAddr::v4([10, 0, 0, n]), port: 80 };
    let tuple = FourTuple { local: end(1), remote: end(2) };
    let mut now = Instant::from_millis(1);
    let mut client = Tcb::connect(&cfg, now, tuple, SeqNum::new(1));
    let syn = client.poll_transmit(now, TxLimits::WIRE).expect("a SYN");
    let half = HalfOpen::on_syn(&cfg, now, tuple.reversed(), SeqNum::new(2), &Segment::from_transmit(&syn));
    now += Duration::from_micros(50);
    let _ = client.on_segment(now, &Segment::from_transmit(&half.syn_ack(now)));
    let ack = client.poll_transmit(now, TxLimits::WIRE).expect("an ACK");
    let (mut server, _) = Tcb::from_half_open(&half, &cfg, now, &Segment::from_transmit(&ack));

    let mut calls = [0u64; 4];
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    for _ in 0..rounds {
        now += Duration::from_micros(20);
        on_send(&mut client, now, 1_448 * 4);
        let mut consumed = 0;
        while let Some(tx) = poll_data(&mut client, now) {
            calls[0] += 1;
            let out = on_data(&mut server, now, &Segment::from_transmit(&tx));
            calls[1] += 1;
            consumed += out.advanced;
        }
        on_received(&mut server, now, consumed);
        while let Some(tx) = poll_ack(&mut server, now) {
            calls[2] += 1;
            black_box(on_ack(&mut client, now, &Segment::from_transmit(&tx)));
            calls[3] += 1;
        }
    }
    println!(
        "poll_data {} on_data {} poll_ack {} on_ack {}; a TCB has {} bytes",
        calls[0],
        calls[1],
        calls[2],
        calls[3],
        size_of::<Tcb>()
    );
}
