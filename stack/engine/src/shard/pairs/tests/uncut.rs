//! Connections that stop being cut through: with bytes on both ways, in every state, whatever the programs wrote.

use std::sync::atomic::Ordering;

use utcp_abi::freeze::FROZEN;
use utcp_abi::pair::{CLASSES, PairRef};
use utcp_abi::socket::{BufRef, Socket, intent, status};

use super::{End, connected, world};
use crate::shard::tests::{PORT, Program, World, loopback};
use crate::shard::{Place, ToShard};

/// A program without the slot's memory, as the relay is.
const RELAY: u32 = 3;

fn three() -> World {
    let mut world = World::with(3, true);
    world.listen(1, 16);
    world
}

/// Moves socket `sock` of `client` to [`RELAY`]: its slot there.
fn relayed(world: &mut World, client: u32, sock: u32) -> u32 {
    let token = world.program(client).socket(sock).token.load(Ordering::Relaxed);
    let to = Place { client: RELAY, sock: world.region(RELAY).claim_socket().expect("a slot") };
    assert!(world.shard.move_socket(Place { client, sock }, token, to));
    world.settle();
    assert!(world.program(client).socket(sock).is(status::MOVED));
    to.sock
}

fn is_cut(socket: &Socket) -> bool {
    PairRef::unpack(socket.rx_buf.load(Ordering::Relaxed)).is_some()
}

#[test]
fn what_is_under_way_both_ways_arrives_before_what_follows() {
    // The one that connected moves, or the one that accepted; the last sizes need larger buffers than a slot begins with.
    for (mover, sizes) in [(2, [5usize, 7]), (1, [5, 7]), (2, [0, 0]), (1, [2048, 2000]), (2, [1, 2048])] {
        let mut world = three();
        let (a, b, from, to) = connected(&mut world);
        let bytes = |count: usize, salt: u8| (0..count).map(|i| i as u8 ^ salt).collect::<Vec<u8>>();
        let [there, back] = [bytes(sizes[0], 1), bytes(sizes[1], 2)];
        // Positions that wrap.
        from.put(&[0; 1500]);
        let _ = to.get();
        from.put(&there);
        to.put(&back);
        let (own, sock) = if mover == 2 { (a, b) } else { (b, a) };
        let moved = relayed(&mut world, mover, own);
        let (stays, relay) = (world.program(3 - mover), world.program(RELAY));
        assert!(!is_cut(stays.socket(sock)) && !is_cut(relay.socket(moved)));
        let [to_relay, to_other] = if mover == 2 { [&back, &there] } else { [&there, &back] };
        relay.send(moved, b" and more");
        stays.send(sock, b" and so on");
        world.settle();
        assert_eq!(relay.recv(moved), [to_relay.as_slice(), b" and so on"].concat());
        assert_eq!(stays.recv(sock), [to_other.as_slice(), b" and more"].concat());
        relay.intend(moved, intent::CLOSE);
        world.settle();
        assert!(stays.socket(sock).is(status::RX_FIN) && !stays.socket(sock).is(status::DEAD));
        stays.intend(sock, intent::CLOSE);
        world.settle();
        assert_eq!(world.shard.flows.len(), 0);
        assert_eq!((world.shard.counters.uncut, world.shard.counters.corrupt_clients), (1, 0));
    }
}

/// The stream that takes over what was in a full slot has a window beside it, which is told at once.
#[test]
fn a_stream_behind_a_full_slot_flows() {
    let mut world = three();
    let (a, b, from, to) = connected(&mut world);
    let [own, _] = from.sides();
    let [.., largest] = CLASSES;
    own.class.store(largest, Ordering::Release);
    own.tail.store(own.tail.load(Ordering::Relaxed) + (1 << largest), Ordering::Release);
    let moved = relayed(&mut world, 2, a);
    let (server, relay) = (world.program(1), world.program(RELAY));
    let mut left = 1 << largest;
    let (mut sent, whole) = (0, 24 << 20);
    for _ in 0..2_000 {
        let room = BufRef(relay.socket(moved).tx_buf.load(Ordering::Relaxed)).capacity();
        let now = (room - relay.socket(moved).tx_queued()).min(whole - sent);
        relay.send(moved, &vec![9; now as usize]);
        sent += now;
        world.settle();
        relay.intend(moved, intent::TX_FULL);
        let got = server.recv_quietly(b);
        left = left + now - got.len() as u64;
        if left == 0 && sent == whole {
            break;
        }
    }
    assert_eq!((left, sent), (0, whole), "without time passing");
    drop(to);
}

#[test]
fn the_place_is_taken_until_nobody_can_write_there() {
    let mut world = three();
    let (a, b, from, _) = connected(&mut world);
    let generation = world.program(2).socket(a).generation.load(Ordering::Relaxed);
    let moved = relayed(&mut world, 2, a);
    world.program(RELAY).intend(moved, intent::CLOSE);
    world.program(1).intend(b, intent::CLOSE);
    world.settle();
    let (_, _, second, _) = connected(&mut world);
    assert_ne!(second.at.slot, from.at.slot, "a stopped process may be in the middle of a copy");
    world.shard.on_message(ToShard::Left { place: Place { client: 2, sock: a }, generation });
    let (_, _, third, _) = connected(&mut world);
    assert_eq!(third.at.slot, from.at.slot);
}

#[test]
fn what_is_left_behind_a_connections_end_moves_too() {
    for reset in [false, true] {
        let mut world = three();
        let (a, b, from, to) = connected(&mut world);
        if reset {
            from.put(b"unread by the one who closes");
        }
        to.put(b"last words");
        world.program(1).intend(b, intent::CLOSE);
        world.settle();
        if !reset {
            world.program(2).intend(a, intent::SHUT_WR);
            world.settle();
        }
        let moved = relayed(&mut world, 2, a);
        let relay = world.program(RELAY);
        assert_eq!(relay.recv(moved), b"last words");
        assert_eq!(relay.socket(moved).is(status::DEAD), reset);
    }
}

#[test]
fn unread_bytes_that_came_by_the_slot_make_a_close_a_reset() {
    let mut world = three();
    let (a, b, _, to) = connected(&mut world);
    to.put(b"never read");
    let moved = relayed(&mut world, 2, a);
    world.program(RELAY).intend(moved, intent::CLOSE);
    world.settle();
    assert!(world.program(1).socket(b).is(status::DEAD));
}

#[test]
fn the_urgent_byte_keeps_its_mark() {
    let mut world = three();
    let (a, b, from, _) = connected(&mut world);
    from.put(b"12");
    let [own, _] = from.sides();
    own.urgent.store(own.tail.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    from.put(b"!34");
    let moved = relayed(&mut world, 2, a);
    let socket = world.program(1);
    let socket = socket.socket(b);
    let ahead = socket.rx_urgent.load(Ordering::Relaxed) - socket.rx_head.load(Ordering::Relaxed);
    assert_eq!(ahead, 3, "position of the byte, and one");
    assert_eq!(world.program(1).recv(b), b"12!34");
    let _ = moved;
}

#[test]
fn what_is_held_back_is_sent() {
    let mut world = three();
    let (a, b, from, _) = connected(&mut world);
    hold(&world.program(2), a, &from, b"corked");
    let _ = relayed(&mut world, 2, a);
    assert_eq!(world.program(1).recv(b), b"corked");
}

/// What `send` under a cork does.
fn hold(program: &Program, sock: u32, end: &End, bytes: &[u8]) {
    let [own, _] = end.sides();
    let tail = own.tail.load(Ordering::Relaxed);
    end.put(bytes);
    own.tail.store(tail, Ordering::Relaxed);
    program.socket(sock).tx_held.store(tail + bytes.len() as u64, Ordering::Relaxed);
    program.intend(sock, intent::MORE);
}

#[test]
fn a_cork_gives_way_after_a_while() {
    let mut world = three();
    let (a, _, from, to) = connected(&mut world);
    let client = world.program(2);
    hold(&client, a, &from, b"first");
    world.settle();
    world.pass(150);
    assert_eq!(to.get(), b"");
    world.pass(60);
    assert_eq!(to.get(), b"first");
    // While it is looked after nobody has to ask, and no wait is longer.
    assert_eq!(client.socket(a).held_watched.load(Ordering::Relaxed), 1);
    hold(&client, a, &from, b"second");
    world.pass(205);
    assert_eq!(to.get(), b"second");
    world.pass(205);
    assert_eq!(client.socket(a).held_watched.load(Ordering::Relaxed), 0);
    assert!(world.shard.flows.iter().all(|(_, flow)| flow.held.is_none()));
}

#[test]
fn what_a_dead_program_held_back_is_sent() {
    let mut world = three();
    let (a, b, from, to) = connected(&mut world);
    hold(&world.program(2), a, &from, b"will");
    world.shard.on_message(ToShard::Detach(2));
    world.settle();
    assert!(world.program(1).socket(b).is(status::RX_FIN));
    assert_eq!(to.get(), b"will");
}

#[test]
fn who_waits_unaccepted_changes_programs_with_its_bytes() {
    let mut world = World::with(3, true);
    let old = world.listen_as(1, PORT, 16, 77);
    let (heir, client) = (world.program(2), world.program(3));
    let first = world.connect(3);
    let early = End::of(&world, &client, first);
    early.put(b"early");
    world.listen_as(2, PORT, 16, 77);
    world.shard.on_message(ToShard::Unlisten { client: 1, sock: old });
    world.settle();
    let accepted = heir.accept().expect("the connection waits here now");
    assert_eq!(heir.recv(accepted), b"early");
    client.send(first, b" and late");
    heir.send(accepted, b"answer");
    world.settle();
    assert_eq!(heir.recv(accepted), b" and late");
    assert_eq!(client.recv(first), b"answer");
}

/// The connecting program is told that it is connected by the SYN-ACK; the listener's queue may be full then.
#[test]
fn a_listener_changes_hands_in_the_middle_of_a_handshake() {
    let mut world = World::with(3, true);
    let old = world.listen_as(1, PORT, 1, 77);
    let client = world.program(3);
    // Both handshakes begin while there is room for both in the queue.
    let asked = [client.ask_connect(loopback(PORT)), client.ask_connect(loopback(PORT))];
    world.shard.take_commands();
    world.shard.transmit_all();
    let shrink = world.shard.listeners.iter().next().expect("one").0;
    world.shard.listeners.get_mut(shrink).expect("it").backlog = 0;
    world.settle();
    let heir = world.program(2);
    world.listen_as(2, PORT, 16, 77);
    let connected: Vec<u32> =
        asked.into_iter().filter(|&sock| client.socket(sock).is(status::CONNECTED)).collect();
    for &sock in &connected {
        End::of(&world, &client, sock).put(b"early");
    }
    world.shard.on_message(ToShard::Unlisten { client: 1, sock: old });
    world.settle();
    world.pass(3_000);
    let mut got = 0;
    while let Some(sock) = heir.accept() {
        world.settle();
        assert_eq!(heir.recv(sock), if got < connected.len() { &b"early"[..] } else { b"" });
        got += 1;
    }
    assert_eq!(got, 2);
    assert!(asked.iter().all(|&sock| !client.socket(sock).is(status::DEAD)));
}

#[test]
fn programs_that_lie_get_a_reset() {
    for lie in 0..4 {
        let mut world = three();
        let (a, b, from, to) = connected(&mut world);
        let [own, other] = from.sides();
        match lie {
            0 => own.tail.store(FROZEN, Ordering::Relaxed),
            1 => other.head.store(FROZEN, Ordering::Relaxed),
            2 => own.class.store(63, Ordering::Relaxed),
            _ => own.tail.store(own.tail.load(Ordering::Relaxed) + 1_000_000, Ordering::Relaxed),
        }
        if lie < 2 {
            world.program(1).kick(b); // Who finds such a word asks.
            world.settle();
        } else {
            let _ = relayed(&mut world, 2, a);
        }
        let server = world.program(1);
        assert!(server.socket(b).is(status::DEAD) && !is_cut(server.socket(b)), "lie {lie}");
        assert_eq!(world.shard.counters.corrupt_clients, 0);
        drop(to);
    }
}

#[test]
fn a_connection_that_is_not_one_yet_goes_by_segments_when_it_moves() {
    let mut world = World::with(3, true);
    world.listen(1, 0);
    let _first = world.connect(2);
    let client = world.program(2);
    let second = client.ask_connect(loopback(PORT));
    world.settle();
    assert!(!client.socket(second).is(status::CONNECTED));
    let moved = relayed(&mut world, 2, second);
    let server = world.program(1);
    let _ = server.accept().expect("the first");
    world.pass(2_500);
    let relay = world.program(RELAY);
    assert!(relay.socket(moved).is(status::CONNECTED));
    let b = server.accept().expect("the second");
    relay.send(moved, b"by segment");
    world.settle();
    assert_eq!(server.recv(b), b"by segment");
}

#[test]
fn the_engines_words_survive_random_ones() {
    let mut state = 11u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    for _ in 0..60 {
        let mut world = three();
        let (a, b, from, to) = connected(&mut world);
        for _ in 0..8 {
            let end = if random() % 2 == 0 { &from } else { &to };
            let [own, _] = end.sides();
            match random() % 6 {
                0 => own.tail.store(random() << (random() % 40), Ordering::Relaxed),
                1 => own.head.store(random() << (random() % 40), Ordering::Relaxed),
                2 => own.class.store(random() as u32 % 64, Ordering::Relaxed),
                3 => own.urgent.store(random() << (random() % 40), Ordering::Relaxed),
                4 => world.program(2).socket(a).tx_held.store(random(), Ordering::Relaxed),
                _ => own.tail.store(FROZEN, Ordering::Relaxed),
            }
        }
        let moved = relayed(&mut world, 2, a);
        world.program(1).intend(b, intent::CLOSE);
        world.program(RELAY).intend(moved, intent::CLOSE);
        world.pass(1_000);
        assert_eq!((world.shard.flows.len(), world.shard.counters.corrupt_clients), (0, 0));
    }
    drop(world());
}
