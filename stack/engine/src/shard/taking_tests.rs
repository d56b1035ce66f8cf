//! Who a connection belongs to while it changes hands: from the accept queue to a descriptor, from a descriptor to the next socket.

use std::sync::atomic::Ordering;

use utcp_abi::set::Member;
use utcp_abi::socket::{intent, status};
use utcp_abi::waiting;

use super::tests::{PORT, World};
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

/// A program has this member word at its listener, or (0) none.
fn watch(world: &World, program: u32, word: u64) {
    let region = world.region(program);
    region.listener(0).expect("listener").members[0].store(word, Ordering::SeqCst);
}

/// One program started another for the connection that it saw: dovecot's master, inetd.
#[test]
fn what_waits_goes_to_a_program_that_begins_to_wait() {
    let member = Member { set: 1, interest: 1, events: libc::EPOLLIN as u16, exclusive: false }.pack();
    for ceases in [false, true] {
        let mut world = World::new(3);
        let old = world.listen_as(1, PORT, 16, 77);
        let (starter, started, client) = (world.program(1), world.program(2), world.program(3));
        watch(&world, 1, member);
        let a = world.connect(3);
        client.send(a, b"first words");
        world.settle();
        let new = world.listen_as(2, PORT, 1, 77);
        assert!(
            [(starter, old), (started, new)]
                .iter()
                .all(|(program, sock)| program.socket(*sock).is(status::SHARED))
        );
        // In either order.
        if ceases {
            watch(&world, 2, member);
            started.kick(new);
            world.settle();
            assert!(started.pop().is_none(), "the first waits, too");
            watch(&world, 1, 0);
            starter.kick(old);
        } else {
            watch(&world, 1, 0);
            watch(&world, 2, member);
            started.kick(new);
        }
        world.settle();
        assert!(starter.pop().is_none());
        let b = started.accept().expect("it waits here now");
        assert_eq!(started.recv(b), b"first words");
        started.send(b, b"answer");
        world.settle();
        assert_eq!(client.recv(a), b"answer");
    }
}

/// What does not fit into the queue of the program that waits stays where it is, and is not reset.
#[test]
fn what_does_not_fit_stays() {
    let member = Member { set: 1, interest: 1, events: libc::EPOLLIN as u16, exclusive: false }.pack();
    let mut world = World::new(3);
    world.listen_as(1, PORT, 16, 77);
    let clients: Vec<u32> = (0..5).map(|_| world.connect(3)).collect();
    let new = world.listen_as(2, PORT, 1, 77);
    watch(&world, 2, member);
    world.program(2).kick(new);
    world.settle();
    let accepted = |program: u32| std::iter::from_fn(|| world.program(program).accept()).count();
    assert_eq!((accepted(2), accepted(1)), (2, 3));
    assert!(clients.iter().all(|sock| !world.program(3).socket(*sock).is(status::DEAD)));
}
