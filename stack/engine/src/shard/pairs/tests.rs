//! Cut-through connections, driven by hand: the test is both programs, who move their bytes themselves.

mod uncut;

use std::sync::atomic::Ordering;

use utcp_abi::pair::{CLASSES, Notify, PAIR_LEN, PairRef, PairView, SLOTS_MAX, Side};
use utcp_abi::set::Member;
use utcp_abi::socket::{first_position, intent, option, status};
use utcp_abi::stream::pieces;

use crate::shard::tests::{PORT, Program, World, loopback};
use crate::shard::{ToControl, ToShard};
use crate::sys;

/// One end of a connection, as a program has it mapped.
struct End {
    _mapping: sys::Mapping,
    view: PairView,
    at: PairRef,
}

impl End {
    /// Socket `sock`'s.
    fn of(world: &World, program: &Program, sock: u32) -> Self {
        let at = PairRef::unpack(program.socket(sock).rx_buf.load(Ordering::Acquire)).expect("cut through");
        assert_eq!(program.socket(sock).tx_buf.load(Ordering::Relaxed), at.pack());
        let pair = world.shard.pairs.iter().find(|(_, pair)| pair.region.number == at.number());
        let mapping = sys::Mapping::new(pair.expect("a pair").1.region.fd(), PAIR_LEN).expect("mapping");
        // SAFETY: the whole region is mapped, as long as this end lives.
        let view = unsafe { PairView::new(mapping.base()) };
        assert!(view.is(at.number()) && view.slots() > at.slot);
        Self { _mapping: mapping, view, at }
    }

    fn sides(&self) -> [&'static Side; 2] {
        let slot: &'static utcp_abi::pair::Slot = self.view.slot(self.at.slot).expect("slot");
        slot.from(self.at.side)
    }

    /// What the shim does, without growing or telling anybody.
    fn put(&self, bytes: &[u8]) {
        let [own, _] = self.sides();
        let base = self.view.stream(self.at.slot, self.at.side, CLASSES[0]).expect("stream");
        let tail = own.tail.load(Ordering::Relaxed);
        let mut from = bytes;
        for piece in pieces(1 << CLASSES[0], tail, bytes.len() as u64) {
            let (now, later) = from.split_at(piece.len);
            // SAFETY: `pieces` stays inside the stream.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), base.add(piece.offset), now.len()) };
            from = later;
        }
        own.tail.store(tail + bytes.len() as u64, Ordering::Release);
    }

    fn get(&self) -> Vec<u8> {
        let [own, other] = self.sides();
        let base = self.view.stream(self.at.slot, 1 - self.at.side, CLASSES[0]).expect("stream");
        let head = own.head.load(Ordering::Relaxed);
        let tail = other.tail.load(Ordering::Acquire);
        let mut out = Vec::new();
        for piece in pieces(1 << CLASSES[0], head, tail - head) {
            // SAFETY: as above.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(base.add(piece.offset), piece.len) });
        }
        own.head.store(tail, Ordering::Release);
        out
    }
}

/// Client 2 connects to client 1: both sockets and both ends.
fn connected(world: &mut World) -> (u32, u32, End, End) {
    let a = world.connect(2);
    let b = world.program(1).accept().expect("a connection waits");
    world.settle();
    let (from, to) = (End::of(world, &world.program(2), a), End::of(world, &world.program(1), b));
    assert_eq!((from.at.side, to.at.side), (0, 1));
    assert_eq!((from.at.slot, from.at.generation), (to.at.slot, to.at.generation));
    (a, b, from, to)
}

fn world() -> World {
    let mut world = World::with(2, true);
    world.listen(1, 16);
    world
}

#[test]
fn bytes_go_past_the_engine() {
    let mut world = world();
    let (a, b, from, to) = connected(&mut world);
    from.put(b"question");
    assert_eq!(to.get(), b"question", "nobody was asked");
    to.put(b"answer");
    assert_eq!(from.get(), b"answer");
    let (server, client) = (world.program(1), world.program(2));
    client.intend(a, intent::CLOSE);
    world.settle();
    assert!(server.socket(b).is(status::RX_FIN) && !server.socket(b).is(status::DEAD));
    server.intend(b, intent::CLOSE);
    world.settle();
    assert_eq!(world.shard.flows.len(), 0);
    assert_eq!((world.shard.counters.local_bytes, world.shard.counters.cut_through_bytes), (0, 14));
    // The slot is used again, under another generation.
    let (_, _, again, _) = connected(&mut world);
    assert_eq!(again.at, PairRef { generation: from.at.generation + 1, ..from.at });
    let [own, _] = again.sides();
    assert_eq!(own.tail.load(Ordering::Relaxed), first_position(again.at.slot, again.at.generation));
}

#[test]
fn what_was_sent_before_the_end_can_be_read_after_it() {
    let mut world = world();
    let (a, b, from, to) = connected(&mut world);
    from.put(b"last words");
    world.program(2).intend(a, intent::CLOSE);
    world.settle();
    assert!(world.program(1).socket(b).is(status::RX_FIN));
    assert_eq!(to.get(), b"last words");
    world.program(1).intend(b, intent::CLOSE);
    world.settle();
    assert!(world.region(1).free_sockets().is_set(b) && world.region(2).free_sockets().is_set(a));
}

#[test]
fn unread_bytes_and_linger_zero_make_a_close_a_reset() {
    for linger in [false, true] {
        let mut world = world();
        let (a, b, from, to) = connected(&mut world);
        if linger {
            world.program(1).socket(b).options.flags.fetch_or(option::LINGER, Ordering::Relaxed);
        } else {
            from.put(b"never read");
        }
        to.put(b"lost? no, delivered");
        world.program(1).intend(b, intent::CLOSE);
        world.settle();
        let client = world.program(2);
        assert!(client.socket(a).is(status::DEAD));
        assert_eq!(client.socket(a).error.load(Ordering::Relaxed), libc::ECONNRESET);
        assert_eq!(from.get(), b"lost? no, delivered");
    }
}

#[test]
fn data_after_close_is_answered_by_a_reset() {
    for gone in [false, true] {
        let mut world = world();
        let (a, b, from, _) = connected(&mut world);
        world.program(1).intend(b, intent::CLOSE);
        world.settle();
        let client = world.program(2);
        assert!(client.socket(a).is(status::RX_FIN) && !client.socket(a).is(status::DEAD));
        if gone {
            world.pass(70_000); // FIN-WAIT-2 without a program ends by itself.
            assert_eq!(world.shard.flows.len(), 1);
        }
        let [_, other] = from.sides();
        assert_eq!(other.closed.load(Ordering::Relaxed), 1, "the sender knows that it must ask");
        from.put(b"too late");
        client.kick(a);
        world.settle();
        assert!(client.socket(a).is(status::DEAD));
        assert_eq!(client.socket(a).error.load(Ordering::Relaxed), libc::EPIPE);
    }
}

#[test]
fn who_has_no_lane_is_told_by_the_engine() {
    let mut world = world();
    let (a, b, from, to) = connected(&mut world);
    let [own, other] = from.sides();
    for side in [own, other] {
        assert_eq!(Notify::unpack(side.notify.load(Ordering::Relaxed)), Notify::Fresh);
    }
    let member = |interest, events| Member { set: 3, interest, events, exclusive: false }.pack();
    let (server, client) = (world.program(1), world.program(2));
    server.socket(b).members[0].store(member(77, libc::EPOLLIN as u16), Ordering::SeqCst);
    client.socket(a).members[0].store(member(78, libc::EPOLLOUT as u16), Ordering::SeqCst);
    from.put(b"news");
    client.kick(a);
    world.settle();
    let ready = |world: &World, client| world.region(client).ready(3).expect("set").next(0);
    assert_eq!(ready(&world, 1), Some(77));
    assert_eq!(ready(&world, 2), None);
    own.wish.store(1, Ordering::SeqCst);
    let _ = to.get();
    server.kick(b);
    world.settle();
    assert_eq!(ready(&world, 2), Some(78));
    assert_eq!(own.wish.load(Ordering::Relaxed), 0);
}

#[test]
fn a_dead_program_ends_its_connections_and_its_regions() {
    let mut world = world();
    let (_, b, from, to) = connected(&mut world);
    from.put(b"will");
    // It asked for one more before it died, and nobody took the request yet.
    world.program(2).ask_connect(loopback(PORT));
    world.shard.on_message(ToShard::Detach(2));
    world.settle();
    let server = world.program(1);
    assert!(server.socket(b).is(status::RX_FIN) && !server.socket(b).is(status::DEAD));
    assert_eq!(to.get(), b"will");
    while let Some(sock) = server.accept() {
        server.intend(sock, intent::CLOSE);
    }
    server.intend(b, intent::CLOSE);
    world.settle();
    assert_eq!((world.shard.flows.len(), world.shard.pairs.iter().count()), (0, 0));
    let mut told = Vec::new();
    while let Some(message) = world.outbox.receive() {
        match message {
            ToControl::PairMade(region) => told.push(region.number),
            ToControl::PairGone(number) => told.push(number),
            _ => {}
        }
    }
    assert_eq!(told, [from.at.number(), from.at.number()]);
}

#[test]
fn the_accept_queue_is_bounded_and_bytes_may_wait_in_front_of_it() {
    let mut world = World::with(2, true);
    world.listen(1, 0);
    let first = world.connect(2);
    let client = world.program(2);
    let second = client.ask_connect(loopback(PORT));
    world.settle();
    assert!(client.socket(first).is(status::CONNECTED) && !client.socket(second).is(status::CONNECTED));
    let early = End::of(&world, &client, first);
    early.put(b"early");
    let server = world.program(1);
    let b = server.accept().expect("a connection waits");
    assert_eq!(End::of(&world, &server, b).get(), b"early");
    world.pass(2_500);
    assert!(client.socket(second).is(status::CONNECTED), "it tried again");
}

#[test]
fn without_slots_connections_go_by_segments() {
    let mut world = world();
    let (_, _, from, _) = connected(&mut world);
    let region = world.shard.pairs.iter().next().expect("a pair").0;
    world.shard.pairs.get_mut(region).expect("it").free.clear();
    world.shard.pair_numbers.free.clear();
    let a = world.connect(2);
    let (server, client) = (world.program(1), world.program(2));
    let b = server.accept().expect("a connection waits");
    client.send(a, b"by segment");
    world.settle();
    assert_eq!(server.recv(b), b"by segment");
    drop(from);
}

/// Both programs of a pair write what they like; the engine and a third program go on.
#[test]
fn random_words_in_a_pair_never_harm_the_engine() {
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    for _ in 0..30 {
        let mut world = World::with(3, true);
        world.listen(1, 16);
        let good = world.connect(3);
        let other = world.program(1).accept().expect("a connection waits");
        let (honest, served) =
            (End::of(&world, &world.program(3), good), End::of(&world, &world.program(1), other));
        let (a, b, from, to) = connected(&mut world);
        for _ in 0..200 {
            let end = if random() % 2 == 0 { &from } else { &to };
            let slot = end.view.slot(random() as u32 % 3).expect("slot");
            let side = &slot.sides[(random() % 2) as usize];
            match random() % 8 {
                0 => side.tail.store(random() << (random() % 40), Ordering::Relaxed),
                1 => side.head.store(random() << (random() % 40), Ordering::Relaxed),
                2 => side.class.store(random() as u32 % 64, Ordering::Relaxed),
                3 => side.notify.store(random() << 20, Ordering::Relaxed),
                4 => side.wish.store(random() as u32, Ordering::Relaxed),
                5 => side.closed.store(random() as u32, Ordering::Relaxed),
                6 => side.rx_bell.word().store(1, Ordering::Relaxed),
                _ => end.view.header().slots.store(random() as u32, Ordering::Relaxed),
            }
            match random() % 16 {
                0 => world.program(2).intend(a, intent::CLOSE),
                1 => world.program(1).intend(b, intent::SHUT_WR),
                2..8 => world.program(2).kick(a),
                _ => world.program(1).kick(b),
            }
            world.shard.round();
        }
        honest.put(b"unharmed");
        assert_eq!(served.get(), b"unharmed");
        world.shard.on_message(ToShard::Detach(2));
        world.pass(1000);
        assert_eq!(world.shard.counters.corrupt_clients, 0, "they harm each other, not the engine's word");
    }
}

#[test]
fn a_connection_allocates_nothing() {
    let mut world = world();
    let (server, client) = (world.program(1), world.program(2));
    let serve = |world: &mut World| {
        let a = client.ask_connect(loopback(PORT));
        world.settle();
        let b = server.accept().expect("a connection waits");
        world.settle();
        client.intend(a, intent::CLOSE);
        world.settle();
        server.intend(b, intent::CLOSE);
        world.settle();
    };
    serve(&mut world); // The first one makes the region.
    let before = crate::alloc_count::allocations();
    for _ in 0..200 {
        serve(&mut world);
    }
    assert_eq!(crate::alloc_count::allocations() - before, 0);
    assert_eq!(world.shard.pairs.iter().next().expect("a pair").1.free.len(), SLOTS_MAX as usize);
}
