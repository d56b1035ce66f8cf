//! What strangers send over a device: cookies, sources that none can have, SYNs and FINs for what waits to be forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use utcp_abi::layout::{ARENA, REGION_LEN};
use utcp_abi::socket::{intent, status};
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    DropReason, Endpoint, Flags, FourTuple, HalfOpen, Segment, SeqNum, Tcb, TimeWait, Timestamps, Transmit,
    UserCall, cookie,
};

use super::TIME_WAIT_MAX;
use super::client::ClientRegion;
use super::flow::Path;
use super::segments::Payload;
use super::tests::{PORT, World, loopback};

/// There is no such port: what leaves is lost.
const DEVICE: Path = Path::Device { port: 0, next_hop: [2; 6] };
const PEER: IpAddr = IpAddr::v4([198, 51, 100, 7]);

fn tuple(addr: IpAddr, port: u16) -> FourTuple {
    let local = Endpoint { addr: IpAddr(loopback(PORT).ip), port: PORT };
    FourTuple { local, remote: Endpoint { addr, port } }
}

fn syn() -> Segment {
    let mut syn = Segment { seq: SeqNum::new(7_000), flags: Flags::SYN, wnd: 60_000, ..Segment::default() };
    syn.options.mss = Some(1_460);
    syn.options.timestamps = Some(Timestamps { val: 100, ecr: 0 });
    syn
}

/// The peer's answer to our SYN-ACK, with so many bytes.
fn ack_of(answer: &Transmit, len: u32) -> Segment {
    let mut ack =
        Segment { seq: syn().seq + 1, ack: Some(answer.seq + 1), len, wnd: 60_000, ..Segment::default() };
    ack.options.timestamps = answer.options.timestamps.map(|ts| Timestamps { val: 101, ecr: ts.val });
    ack
}

/// A SYN from `from`; the last of what leaves, if something does.
fn answer_to(world: &mut World, from: FourTuple, seg: &Segment) -> Option<Transmit> {
    world.shard.headers.clear();
    world.shard.on_segment(&from, seg, Payload::None, DEVICE);
    world.shard.headers.pop_back().map(|header| header.transmit)
}

/// As many half-open connections as there may be: from here on SYNs are answered by cookies.
fn fill_the_syn_queue(world: &mut World) {
    for port in 0..128 {
        assert!(answer_to(world, tuple(PEER, 10_000 + port), &syn()).is_some());
    }
    assert_eq!(world.shard.counters.syn_cookies, 0);
}

/// The bare ACK got lost, or found the accept queue full; the first one that counts brings the first bytes. They are the peer's, not
/// what lay there before.
#[test]
fn a_cookie_comes_back_with_data() {
    let mut world = World::new(1);
    world.listen(1, 1);
    fill_the_syn_queue(&mut world);
    let from = tuple(PEER, 4_000);
    let answer = answer_to(&mut world, from, &syn()).expect("a SYN-ACK");
    assert_eq!(world.shard.counters.syn_cookies, 1);
    world.shard.on_segment(&from, &ack_of(&answer, 5), Payload::Frame(b"hello"), DEVICE);
    let sock = world.program(1).accept().expect("a connection waits");
    assert_eq!(world.program(1).recv(sock), b"hello");
}

/// RFC 4987 §3.6: a cookie is proof of a SYN only while we gave some. (One in 2²⁴ guesses is right.)
#[test]
fn cookies_count_while_some_are_under_way() {
    let mut world = World::new(1);
    world.listen(1, 1);
    let from = tuple(PEER, 4_000);
    let guessed = |world: &World| {
        let config = world.shard.base_config(DEVICE, &from);
        let answer = cookie::encode(&world.shard.config.secret, &config, world.shard.now, from, &syn());
        ack_of(&answer, 0)
    };
    let ack = guessed(&world);
    assert!(answer_to(&mut world, from, &ack).is_some_and(|rst| rst.flags.any(Flags::RST)));
    fill_the_syn_queue(&mut world);
    answer_to(&mut world, tuple(PEER, 5_000), &syn()).expect("a cookie");
    world.pass(200_000);
    let ack = guessed(&world);
    assert!(answer_to(&mut world, from, &ack).is_some_and(|rst| rst.flags.any(Flags::RST)));
    assert!(world.program(1).accept().is_none());
    fill_the_syn_queue_again(&mut world);
    let ack = guessed(&world);
    assert_eq!(answer_to(&mut world, from, &ack), None);
    assert!(world.program(1).accept().is_some(), "a flood is going on");
}

/// Whatever is left of it.
fn fill_the_syn_queue_again(world: &mut World) {
    let before = world.shard.counters.syn_cookies;
    for port in 0..200 {
        answer_to(world, tuple(PEER, 20_000 + port), &syn()).expect("a SYN-ACK");
    }
    assert!(world.shard.counters.syn_cookies > before);
}

/// No memory for the streams of a connection that is complete: its slot is not lost with it.
#[test]
fn a_slot_without_streams_is_given_back() {
    let mut world = World::new(0);
    // A program that maps no more than the slots' own buffers.
    let region = ClientRegion::new(1, 101, 0, "small".to_owned(), 1).expect("a region");
    let client = Arc::new(region.of_len(ARENA.min(REGION_LEN)));
    world.attach(client);
    let listener = world.listen(1, 8);
    world.program(1).socket(listener).options.rcvbuf.store(1 << 20, Ordering::Relaxed);
    for port in 0..4 {
        let from = tuple(PEER, 4_000 + port);
        let answer = answer_to(&mut world, from, &syn()).expect("a SYN-ACK");
        assert_eq!(answer_to(&mut world, from, &ack_of(&answer, 0)), None);
    }
    assert_eq!((world.shard.flows.len(), world.shard.counters.out_of_sockets), (0, 4));
    let mut taken = 0;
    world.region(1).free_sockets().for_each_clear(|_| taken += 1);
    assert_eq!(taken, 1, "the listener's");
}

/// RFC 1122 §3.2.1.3: whoever is near enough to write frames must not pass for this host, or for nobody.
#[test]
fn sources_that_none_can_have() {
    let mut world = World::new(1);
    world.listen(1, 8);
    let mut v6_loopback = [0; 16];
    v6_loopback[15] = 1;
    for (n, source) in [
        IpAddr::v4([127, 0, 0, 1]),
        IpAddr::v4([127, 9, 9, 9]),
        IpAddr::UNSPECIFIED_V4,
        IpAddr::v4([255; 4]),
        IpAddr::v4([224, 0, 0, 1]),
        IpAddr::v6(v6_loopback),
        IpAddr::UNSPECIFIED_V6,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(answer_to(&mut world, tuple(source, 4_000), &syn()), None, "{source}");
        assert_eq!(world.shard.counters.dropped_martians, 1 + n as u64, "{source}");
        // Not even a reset.
        let stray = Segment { ack: Some(SeqNum::new(1)), ..Segment::default() };
        assert_eq!(answer_to(&mut world, tuple(source, 4_001), &stray), None, "{source}");
        world.shard.counters.dropped_martians -= 1;
    }
    assert!(answer_to(&mut world, tuple(PEER, 4_000), &syn()).is_some(), "a peer like any other");
    // Between programs of this host it is the address that there is.
    world.connect(1);
}

/// The record of a connection that we ended first.
fn time_wait(world: &World, tuple: FourTuple) -> TimeWait {
    let (cfg, now) = (utcp_proto::Config::DEFAULT, world.shard.now);
    let mut half = HalfOpen::on_syn(&cfg, now, tuple, SeqNum::new(90_000), &syn());
    let ack = ack_of(&half.syn_ack(now), 0);
    let _ = half.on_segment(now, &ack);
    let (mut tcb, _) = Tcb::from_half_open(&half, &cfg, now, &ack);
    tcb.on_user(now, UserCall::Shutdown).expect("it is open");
    let fin = tcb.poll_transmit(now, utcp_proto::TxLimits::WIRE).expect("a FIN");
    let last = Segment { ack: Some(fin.seq + 1), flags: Flags::FIN, ..ack };
    tcb.on_segment(now, &last);
    tcb.time_wait(now).expect("TIME-WAIT")
}

fn renamed(record: &TimeWait, tuple: FourTuple) -> TimeWait {
    let mut other = *record;
    other.tuple = tuple;
    other
}

/// The new SYN of a peer ends a wait where somebody listens. Where nobody does, anybody could end it with one that he made up.
#[test]
fn a_syn_ends_a_wait_only_for_a_listener() {
    let mut world = World::new(1);
    for listens in [false, true] {
        if listens {
            world.listen(1, 8);
        }
        let from = tuple(PEER, 4_000);
        let record = time_wait(&world, from);
        world.shard.enter_time_wait(from, record);
        let mut new = syn();
        new.seq += 100_000;
        new.options.timestamps = Some(Timestamps { val: 9_000, ecr: 0 });
        let answer = answer_to(&mut world, from, &new).expect("an answer");
        assert!(!answer.flags.any(Flags::RST), "{answer:?}");
        assert_eq!(answer.flags.any(Flags::SYN), listens);
        assert_eq!(world.shard.time_wait.len(), usize::from(!listens));
        if !listens {
            // Not too often.
            assert_eq!(answer_to(&mut world, from, &new), None);
            world.pass(70_000);
            assert_eq!(world.shard.time_wait.len(), 0);
        }
    }
}

/// Waits that end out of their order, by new connections, and one that a peer keeps up for ever by its FIN: what is noted of the order is
/// bounded, and the oldest is still known.
#[test]
fn the_order_of_waits_is_bounded() {
    let mut world = World::new(1);
    let stays = tuple(PEER, 1);
    let record = time_wait(&world, stays);
    world.shard.enter_time_wait(stays, record);
    for n in 0..3 * TIME_WAIT_MAX {
        let other = tuple(PEER, 2 + (n % 60_000) as u16);
        world.shard.enter_time_wait(other, renamed(&record, other));
        let Some(super::table::Entry::TimeWait(index)) = world.shard.table.get(&other) else {
            panic!("no record");
        };
        world.shard.end_time_wait_now(index);
    }
    assert_eq!(world.shard.time_wait.len(), 1);
    assert!(world.shard.time_wait_order.len() <= 2 * TIME_WAIT_MAX);
    // Full: the oldest goes.
    for n in 0..TIME_WAIT_MAX {
        let other = tuple(IpAddr::v4([198, 51, 101, (n >> 15) as u8]), (n & 0x7fff) as u16);
        world.shard.enter_time_wait(other, renamed(&record, other));
    }
    assert_eq!((world.shard.time_wait.len(), world.shard.counters.time_wait_overflows), (TIME_WAIT_MAX, 1));
    assert!(world.shard.table.get(&stays).is_none());
    world.pass(61_000);
    assert_eq!((world.shard.time_wait.len(), world.shard.time_wait_order.len()), (0, 0));
}

/// RFC 5961 §7: somebody has us spend all challenges. Who asks for a sign of life, or sends its FIN again, is answered all the same.
#[test]
fn challenges_that_are_spent_silence_nobody() {
    let mut world = World::new(1);
    world.listen(1, 8);
    let from = tuple(PEER, 4_000);
    let answer = answer_to(&mut world, from, &syn()).expect("a SYN-ACK");
    assert_eq!(answer_to(&mut world, from, &ack_of(&answer, 0)), None);
    let sock = world.program(1).accept().expect("a connection waits");
    while world.shard.challenges.admit(&world.shard.config.secret, world.shard.now) {}
    let Some(super::table::Entry::Flow(index)) = world.shard.table.get(&from) else { panic!("no flow") };
    let acks = |world: &mut World, seg: Segment| {
        world.shard.on_segment(&from, &seg, Payload::None, DEVICE);
        let now = world.shard.now;
        let tcb = &mut world.shard.flows.get_mut(index).expect("a flow").tcb;
        tcb.poll_transmit(now, utcp_proto::TxLimits::WIRE).is_some()
    };
    let mut keep_alive = ack_of(&answer, 0);
    keep_alive.seq = syn().seq;
    assert!(acks(&mut world, keep_alive));
    let guess = Segment { flags: Flags::RST, seq: syn().seq + 100, ..ack_of(&answer, 0) };
    world.pass(600);
    while world.shard.challenges.admit(&world.shard.config.secret, world.shard.now) {}
    assert!(!acks(&mut world, guess));
    assert_eq!(world.shard.counters.challenge_acks_withheld, 1);
    let fin = Segment { flags: Flags::FIN, ..ack_of(&answer, 0) };
    acks(&mut world, fin);
    assert!(world.program(1).socket(sock).is(status::RX_FIN));
    for _ in 0..3 {
        assert!(acks(&mut world, fin));
    }
    assert!(!DropReason::AfterFin.is_guess());
    world.program(1).intend(sock, intent::CLOSE);
    world.settle();
}
