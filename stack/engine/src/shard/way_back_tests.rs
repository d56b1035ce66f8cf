//! Which way answers go: by the host's routes and neighbours, whoever wrote the frame.

use std::sync::Arc;

use utcp_proto::wire::IpAddr;
use utcp_proto::{Endpoint, Flags, FourTuple, Segment, SeqNum};

use super::device::Link;
use super::flow::Path;
use super::segments::Payload;
use super::tests::{PORT, World, loopback};
use super::{Shard, ToControl};
use crate::host::tests::{behind_a_router, ip};

const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];
const WRITER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const CAME: Path = Path::Device { port: 0, next_hop: WRITER };

/// Port 0 is eth0, port 1 is eth1 with shorter packets.
fn world(interface: u32, router: Option<[u8; 6]>) -> World {
    let mut world = World::new(1);
    world.listen(1, 8);
    world.shard.links = vec![Link::of_interface(2, 1500), Link::of_interface(3, 1280)];
    world.shard.host = Arc::new(behind_a_router(interface, router));
    world
}

fn from(remote: &str) -> FourTuple {
    let local = Endpoint { addr: IpAddr(loopback(PORT).ip), port: PORT };
    FourTuple { local, remote: Endpoint { addr: ip(remote), port: 4_000 } }
}

/// Someone connects, by frames from [`WRITER`]; the path of the flow.
fn come_in(shard: &mut Shard, tuple: &FourTuple) -> Path {
    let mut seg = Segment { seq: SeqNum::new(7_000), flags: Flags::SYN, wnd: 60_000, ..Segment::default() };
    seg.options.mss = Some(1_460);
    shard.on_segment(tuple, &seg, Payload::None, CAME);
    let answer = shard.headers.pop_back().expect("a SYN-ACK").transmit;
    let ack = Segment { seq: seg.seq + 1, ack: Some(answer.seq + 1), wnd: 60_000, ..Segment::default() };
    shard.on_segment(tuple, &ack, Payload::None, CAME);
    shard.turn(shard.now());
    shard.flows.iter().next().expect("a flow").1.path
}

fn told(world: &World) -> Vec<(bool, u32, IpAddr)> {
    let mut told = Vec::new();
    while let Some(message) = world.outbox.receive() {
        match message {
            ToControl::Resolve { ifindex, next_hop } => told.push((true, ifindex, next_hop)),
            ToControl::Touch { ifindex, next_hop } => told.push((false, ifindex, next_hop)),
            _ => {}
        }
    }
    told
}

/// VRRP (RFC 9568 §8.1.2): a router that forwards from an address of its own has only the virtual one in common with its successor.
#[test]
fn a_connection_goes_by_the_neighbour_that_the_host_knows() {
    let mut world = world(2, Some(VIRTUAL));
    let far = from("198.51.100.7");
    let right = Path::Device { port: 0, next_hop: VIRTUAL };
    assert_eq!(world.shard.way_back(&far, CAME), right, "what no connection sends");
    assert_eq!(come_in(&mut world.shard, &far), right);
}

/// The frames are not those of the neighbour that is known: the kernel is to look whether he has moved, now and then.
#[test]
fn who_seems_to_have_moved_is_looked_for_and_not_believed() {
    let mut world = world(2, Some(VIRTUAL));
    let near = from("10.0.0.1");
    let right = Path::Device { port: 0, next_hop: VIRTUAL };
    for _ in 0..100 {
        assert_eq!(world.shard.way_back(&near, CAME), right);
    }
    assert_eq!(told(&world), [(false, 2, ip("10.0.0.1"))]);
    assert_eq!(world.shard.way_back(&near, right), right);
    world.pass(1_100);
    told(&world);
    world.shard.way_back(&near, CAME);
    assert_eq!(told(&world), [(false, 2, ip("10.0.0.1"))]);
}

/// Made-up sources are many; who completes a handshake is one.
#[test]
fn strangers_are_answered_and_asked_for_once_they_are_connected() {
    let mut world = world(2, Some(VIRTUAL));
    for n in 0..100 {
        let near = from(&format!("10.0.0.{}", 100 + n));
        assert_eq!(world.shard.way_back(&near, CAME), CAME);
    }
    assert_eq!(told(&world), []);
    assert_eq!(come_in(&mut world.shard, &from("10.0.0.99")), CAME);
    assert_eq!(told(&world), [(true, 2, ip("10.0.0.99"))]);
}

/// The way back may be another interface's, whose packets are shorter.
#[test]
fn the_other_interface_is_the_way_back() {
    let mut world = world(3, None);
    let far = from("198.51.100.7");
    assert_eq!(world.shard.way_back(&far, CAME), CAME, "until the router is known");
    assert_eq!(come_in(&mut world.shard, &far), CAME);
    let mss = |world: &World| {
        world.shard.flows.iter().next().map(|(_, flow)| flow.tcb.info(world.shard.now()).snd_mss)
    };
    assert_eq!(mss(&world), Some(1_460));
    world.shard.on_host(Arc::new(behind_a_router(3, Some(VIRTUAL))));
    let path = world.shard.flows.iter().next().map(|(_, flow)| flow.path);
    assert_eq!(path, Some(Path::Device { port: 1, next_hop: VIRTUAL }));
    assert_eq!(mss(&world), Some(1_240));
}
