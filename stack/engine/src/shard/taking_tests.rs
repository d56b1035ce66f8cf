//! Who a connection belongs to while it changes hands: from the accept queue to a descriptor, from a descriptor to the next socket.

use std::sync::atomic::Ordering;

use utcp_abi::socket::{intent, status};
use utcp_abi::waiting;

use super::tests::World;
use super::{Place, ToShard};

#[test]
fn a_connection_that_a_dead_process_took_is_closed() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let a = world.connect(2);
    // Killed between popping it and standing it on a descriptor.
    world.program(1).pop().expect("a connection waits");
    world.shard.on_message(ToShard::ProcessGone(1));
    world.pass(500);
    assert!(!world.program(2).socket(a).is(status::RX_FIN), "perhaps another process is in the middle of it");
    world.pass(1_000);
    assert!(world.program(2).socket(a).is(status::RX_FIN));
}

/// Many processes end, one after the other: each look gives those that are accepting just then their full time.
#[test]
fn an_earlier_death_does_not_shorten_the_time_of_a_later_accept() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let server = world.program(1);
    world.connect(2);
    let a = world.connect(2);
    server.pop().expect("a connection waits");
    world.shard.on_message(ToShard::ProcessGone(1));
    world.pass(990);
    let entry = server.pop().expect("a connection waits");
    world.shard.on_message(ToShard::ProcessGone(1));
    world.pass(500); // The first one's time is over; this one's is not.
    let b = server.take(entry).expect("it is still to be had");
    server.intend(b, intent::OWNED);
    world.pass(2_000);
    server.send(b, b"here");
    world.settle();
    assert_eq!(world.program(2).recv(a), b"here");
}

/// A process that was stopped in the middle of an accept for very long.
#[test]
fn who_comes_too_late_gets_nothing_and_spoils_nothing() {
    let mut world = World::new(2);
    world.listen(1, 16);
    let server = world.program(1);
    let first = world.connect(2);
    let late = server.pop().expect("a connection waits");
    let slot = waiting::slot_of(late);
    world.shard.on_message(ToShard::ProcessGone(1));
    world.pass(3_000);
    world.program(2).intend(first, intent::CLOSE);
    world.settle();
    assert!(world.region(1).free_sockets().is_set(slot), "given back");
    assert_eq!(server.take(late), None);
    // The slot's next connection.
    let a = world.connect(2);
    let entry = server.pop().expect("a connection waits");
    assert_eq!(waiting::slot_of(entry), slot, "the same slot");
    assert_eq!(server.take(late), None);
    let b = server.take(entry).expect("is accepted");
    world.program(2).send(a, b"whole");
    world.settle();
    assert_eq!(server.recv(b), b"whole");
}

/// A descriptor goes back to the pool when its socket is closed, and its next socket may be handed to another program while the last
/// bytes of the one before are still on their way.
#[test]
fn a_descriptor_is_its_last_sockets() {
    let mut world = World::new(3);
    world.listen(1, 16);
    let (server, client) = (world.program(1), world.program(2));
    let old = world.connect(2);
    client.socket(old).token.store(7, Ordering::Release);
    let b = server.accept().expect("a connection waits");
    // More than the peer takes while nobody reads.
    let bytes = vec![1; 16 * 1024];
    client.send(old, &bytes);
    world.settle();
    client.send(old, &bytes);
    client.intend(old, intent::CLOSE);
    world.settle();
    let new = world.connect(2);
    client.socket(new).token.store(7, Ordering::Release);
    let to = Place { client: 3, sock: world.program(3).claim() };
    assert!(!world.shard.move_socket(Place { client: 2, sock: old }, 7, to));
    assert!(world.shard.move_socket(Place { client: 2, sock: new }, 7, to));
    let mut got = 0;
    for _ in 0..100 {
        got += server.recv(b).len();
        world.settle();
        world.pass(10);
    }
    assert_eq!(got, 2 * bytes.len());
    assert!(server.socket(b).is(status::RX_FIN) && !server.socket(b).is(status::DEAD));
}
