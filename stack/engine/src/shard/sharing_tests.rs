//! Two shards, of which the load decides how many are in use: they share client ports, and each socket is one shard's.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use utcp_abi::socket::{RESULT_KERNEL, intent, status};
use utcp_proto::wire::IpAddr;
use utcp_proto::{Endpoint, FourTuple};

use super::connect::LOCAL_PORTS;
use super::flow::Path;
use super::tests::{PORT, World, loopback};
use super::{Directory, Inbox, ToShard};

/// Shard `index` of two, and both inboxes. No test here lets one hear of the other but by hand.
fn one_of_two(index: u32, directory: Option<&Arc<Directory>>) -> (World, Arc<[Arc<Inbox>]>) {
    let mut world = World::new(2);
    let inboxes: Arc<[Arc<Inbox>]> = (0..2).map(|_| Arc::new(Inbox::new().expect("an eventfd"))).collect();
    world.become_one_of(index, inboxes.clone(), directory.cloned());
    (world, inboxes)
}

fn any_directory() -> Arc<Directory> {
    let inboxes: Vec<_> = (0..2).map(|_| Arc::new(Inbox::new().expect("an eventfd"))).collect();
    Arc::new(Directory::new(&inboxes, false))
}

fn server() -> Endpoint {
    Endpoint { addr: IpAddr::v4([127, 0, 0, 1]), port: PORT }
}

fn choose(world: &mut World, wanted: u16) -> Option<FourTuple> {
    world.shard.choose_port(server().addr, wanted, server(), Path::Local(u32::MAX))
}

/// Every port of the range is somebody's, no port is both shards'.
#[test]
fn two_shards_take_all_ports_and_none_twice() {
    let directory = any_directory();
    let [(mut first, _), (mut second, _)] = [0, 1].map(|index| one_of_two(index, Some(&directory)));
    let mut ports = HashSet::new();
    for _ in 0..1000 {
        for world in [&mut first, &mut second] {
            let tuple = choose(world, 0).expect("ports are left");
            assert!(ports.insert(tuple.local.port), "{tuple:?} is both shards'");
        }
    }
    while let Some(tuple) = choose(&mut second, 0) {
        assert!(ports.insert(tuple.local.port), "{tuple:?} is both shards'");
        // Its own, but no flow came of it: the table does not know it.
        if ports.len() == LOCAL_PORTS.len() {
            break;
        }
    }
    assert_eq!(ports.len(), LOCAL_PORTS.len());
    assert_eq!(choose(&mut first, 0).filter(|tuple| !ports.contains(&tuple.local.port)), None);
}

/// A port that a program names, and one that was given back.
#[test]
fn a_port_is_claimed_until_its_connection_is_gone() {
    let directory = any_directory();
    let [(mut first, _), (mut second, _)] = [0, 1].map(|index| one_of_two(index, Some(&directory)));
    let taken = choose(&mut first, 40_000).expect("a free port");
    assert_eq!(choose(&mut second, 40_000), None);
    first.shard.unclaim(&taken);
    assert_eq!(choose(&mut second, 40_000), Some(taken));
}

/// What is another shard's is told to it and otherwise left alone: both would connect it, or free it under the other.
#[test]
fn a_socket_is_one_shards() {
    let (mut world, inboxes) = one_of_two(1, None);
    world.listen(1, 16);
    let program = world.program(2);
    // Shard 0's, by the word in the region; the bit is ours.
    let sock = program.ask_connect_at(1, 0, loopback(PORT));
    world.settle();
    let socket = program.socket(sock);
    assert_ne!(socket.op_done.load(Ordering::Relaxed), socket.op_asked.load(Ordering::Relaxed), "not ours");
    assert!(!socket.is(status::CONNECTED));
    let told = inboxes[0].receive();
    assert!(
        matches!(told, Some(ToShard::Misdirected { sock: of, token: None, .. }) if of == sock),
        "{told:?}"
    );
    // Nor is it freed for who closes it, or hangs up.
    socket.token.store(7, Ordering::Relaxed);
    world.shard.on_message(ToShard::Hangup { client: 2, sock, token: 7 });
    let told = inboxes[0].receive();
    assert!(matches!(told, Some(ToShard::Misdirected { token: Some(7), .. })), "{told:?}");
    socket.intent.fetch_or(intent::CLOSE, Ordering::Relaxed);
    program.kick_at(1, sock);
    world.settle();
    assert!(!world.region(2).free_sockets().is_set(sock));
    assert!(inboxes[0].receive().is_some());
    // Told so to its own shard it counts.
    socket.shard.store(1, Ordering::Relaxed);
    world.shard.on_message(ToShard::Misdirected { client: 2, sock, token: None, left: 0 });
    assert!(world.region(2).free_sockets().is_set(sock));
    // A stale bit of a free slot is nobody's.
    program.kick_at(1, sock);
    world.settle();
    assert!(inboxes[0].receive().is_none());
}

/// Who writes one shard after another keeps nobody busy.
#[test]
fn a_liar_is_not_followed_for_ever() {
    let (mut world, inboxes) = one_of_two(1, None);
    let sock = world.program(2).claim();
    let message = |left| ToShard::Misdirected { client: 2, sock, token: None, left };
    world.shard.on_message(message(1));
    assert!(matches!(inboxes[0].receive(), Some(ToShard::Misdirected { left: 0, .. })));
    world.shard.on_message(message(0));
    assert!(inboxes[0].receive().is_none());
    // A number that no shard has: whoever was asked looks.
    let sock = world.program(2).ask_connect_at(1, 77, loopback(PORT));
    world.settle();
    let program = world.program(2);
    let socket = program.socket(sock);
    assert_eq!(socket.op_done.load(Ordering::Relaxed), socket.op_asked.load(Ordering::Relaxed));
    assert_eq!(socket.op_result.load(Ordering::Relaxed), RESULT_KERNEL);
}

/// A connection that is passed on is the next shard's from then on, before that one has heard of it.
#[test]
fn a_connection_that_is_passed_on_is_the_next_ones() {
    let (mut world, inboxes) = one_of_two(1, None);
    world.shard.next_shard = Some(0);
    let program = world.program(2);
    let sock = program.ask_connect_at(1, 1, loopback(PORT));
    world.settle();
    assert_eq!(program.socket(sock).shard.load(Ordering::Relaxed), 0);
    assert!(matches!(inboxes[0].receive(), Some(ToShard::Connect(passed)) if passed.sock == sock));
    // Its program closes it meanwhile, and has told us.
    program.socket(sock).intent.fetch_or(intent::CLOSE, Ordering::Relaxed);
    program.kick_at(1, sock);
    world.settle();
    assert!(!world.region(2).free_sockets().is_set(sock));
    assert!(matches!(inboxes[0].receive(), Some(ToShard::Misdirected { .. })));
}

/// Its slot goes with the last shard that has the listener, also where its program says that it is closed.
#[test]
fn a_listeners_slot_is_given_back_with_the_listener_alone() {
    let (mut world, _) = one_of_two(0, None);
    let holders = Arc::new(AtomicU32::new(2));
    let sock = world.listen_held(1, PORT, (16, 1), holders);
    world.shard.on_message(ToShard::Unlisten { client: 1, sock });
    world.program(1).intend(sock, intent::CLOSE);
    world.settle();
    assert!(!world.region(1).free_sockets().is_set(sock), "the other shard has it yet");
}
