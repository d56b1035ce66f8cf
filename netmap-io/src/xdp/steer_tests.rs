//! The steering program against a table of frames, run by the kernel without a device.

use super::super::packets::APART_AT;
use super::*;
use crate::Proto;
use crate::testing::{Frame, skip_without};
use crate::whose::{self, PEER4, PEER6, US4, US6, icmp4, sent};

/// `XDP_ABORTED … XDP_PASS`: the program runs without sockets, and what it would take gets this verdict.
const TAKEN: u32 = 1;
const PASSED: u32 = 2;

/// The program as it stands in front of the stack, behind GRO, and there with a ring for short frames: what holds for one,
/// holds for the others.
struct All([XdpSteering; 3]);

/// The signs of the third: frames are apart, and their number.
fn signs(all: &All) -> (u32, u32) {
    let signs = &all.0[2].short.as_ref().unwrap().signs;
    let bytes = signs.get(&0).unwrap()[APART_AT as usize / 8].to_ne_bytes();
    let [apart, marked] = [0, 4].map(|at| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i])));
    (apart, marked)
}

fn forget_signs(all: &All) {
    all.0[2].short.as_ref().unwrap().signs.update(&0, &Signs::default(), Update::Any).unwrap();
}

impl All {
    /// What all say.
    fn each<T: std::fmt::Debug>(&self, ask: impl Fn(&XdpSteering) -> T) -> T {
        let [first, second, third] = self.0.each_ref().map(ask);
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "both hooks");
        assert_eq!(format!("{first:?}"), format!("{third:?}"), "with a ring");
        first
    }

    fn register(&self, tuple: Tuple) -> Result<(), PortError> {
        self.each(|s| s.register(tuple))
    }

    fn unregister(&self, tuple: Tuple) -> Result<(), PortError> {
        self.each(|s| s.unregister(tuple))
    }

    fn register_range(&self, first: Tuple, ports: std::ops::RangeInclusive<u16>) -> Result<(), PortError> {
        self.each(|s| s.register_range(first, ports.clone()))
    }

    fn unregister_range(&self, first: Tuple, ports: std::ops::RangeInclusive<u16>) -> Result<(), PortError> {
        self.each(|s| s.unregister_range(first, ports.clone()))
    }

    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        self.each(|s| s.register_flow(flow, verdict))
    }

    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.each(|s| s.unregister_flow(flow))
    }
}

/// The program with `10.0.0.1:80` and `[fd00::1]:80` registered for TCP, `10.0.0.1:53` for UDP.
fn steering() -> All {
    let load = |hook| XdpSteering::load_with(4, 1024, hook).unwrap();
    // A program holds its maps.
    let short = Short::new().unwrap();
    let hooks = [Hook::Xdp(i32::from(TAKEN as u8)), Hook::Behind(None), Hook::Behind(Some(short.maps()))];
    let mut steering = All(hooks.map(load));
    steering.0[2].short = Some(short);
    steering.0.iter().for_each(|one| whose::register(one).unwrap());
    steering
}

fn tcp4(port: u16) -> Frame {
    Frame::new(Proto::TCP, (PEER4.into(), 40_000), (US4.into(), port))
}

fn tcp6(port: u16) -> Frame {
    Frame::new(Proto::TCP, (PEER6.into(), 40_000), (US6.into(), port))
}

#[track_caller]
fn check(steering: &All, what: &str, frame: &[u8], want: u32) {
    let [front, behind, short] = &steering.0;
    let (verdict, _) = front.program.test_run(frame, 1).unwrap();
    assert_eq!(verdict, want, "{what}");
    // The kernel runs a program behind GRO on nothing shorter than Ethernet and IP header.
    let headers = if frame.get(12..14) == Some(&[0x86, 0xdd]) { 54 } else { 34 };
    if frame.len() >= headers {
        // The kernel's test device has the address 0.
        let mut frame = frame.to_vec();
        if frame[0] & 1 == 0 {
            frame[..6].fill(0);
        }
        let (verdict, _) = behind.program.test_run(&frame, 1).unwrap();
        // Taken: on to the stack, whose IP leaves it to us; else the next program decides.
        let marked = if want == TAKEN { 0 } else { u32::MAX };
        assert_eq!(verdict, marked, "{what}, behind GRO");
        let (verdict, _) = short.program.test_run(&frame, 1).unwrap();
        // Copied: the kernel is done with it.
        let copied = if want == TAKEN { 2 } else { u32::MAX };
        assert_eq!(verdict, copied, "{what}, behind GRO with a ring");
    }
}

/// In front of the stack and behind GRO: the same table.
#[test]
fn what_is_ours_is_taken_and_all_else_passes() {
    skip_without!(bpf);
    let s = &steering();
    for case in whose::cases() {
        check(s, &case.what, &case.frame, if case.ours { TAKEN } else { PASSED });
        // Nobody knows yet: both get it, and later ones of ours don't overtake it.
        assert_eq!(signs(s), (u32::from(case.unknown), u32::from(case.unknown)), "{}", case.what);
        forget_signs(s);
    }
    // Behind GRO the kernel says for whom a frame is; to its test device, this one is for somebody else.
    let [_, behind, _] = &s.0;
    assert_eq!(behind.program.test_run(&tcp4(80).build(), 1).unwrap().0, u32::MAX, "for another station");
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    skip_without!(bpf);
    let s = &steering();
    let flow = |port| Flow {
        local: Tuple::new(US4, port, Proto::TCP),
        peer_addr: crate::mapped(PEER4.into()),
        peer_port: 40_000,
    };
    s.register_flow(flow(80), PeerVerdict::LeaveToKernel).unwrap();
    s.register_flow(flow(81), PeerVerdict::Take).unwrap();
    check(s, "left to the kernel", &icmp4(3, &sent(US4.into(), 80, PEER4.into())), PASSED);
    check(s, "taken", &icmp4(3, &sent(US4.into(), 81, PEER4.into())), TAKEN);
    check(s, "another peer", &icmp4(3, &sent(US4.into(), 80, [10, 0, 0, 3].into())), TAKEN);
}

#[test]
fn a_flow_outranks_its_tuple() {
    skip_without!(bpf);
    let s = &steering();
    let flow = |port, peer_port| Flow {
        local: Tuple::new(US4, port, Proto::TCP),
        peer_addr: crate::mapped(PEER4.into()),
        peer_port,
    };
    s.register_flow(flow(80, 40_000), PeerVerdict::LeaveToKernel).unwrap();
    s.register_flow(flow(81, 40_000), PeerVerdict::Take).unwrap();
    let twice = s.register_flow(flow(81, 40_000), PeerVerdict::Take).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "tcp 10.0.0.1:81 from 10.0.0.2:40000 is in use: it is registered already; one stack at a time can have it"
    );
    check(s, "a flow left to the kernel", &tcp4(80).build(), PASSED);
    check(s, "a flow taken", &tcp4(81).build(), TAKEN);
    let other = |port| Frame::new(Proto::TCP, (PEER4.into(), 40_001), (US4.into(), port)).build();
    check(s, "its neighbour goes by the tuple", &other(80), TAKEN);
    check(s, "its neighbour goes by the tuple", &other(81), PASSED);
    s.unregister_flow(flow(80, 40_000)).unwrap();
    s.unregister_flow(flow(80, 40_000)).unwrap();
    s.unregister_flow(flow(81, 40_000)).unwrap();
    check(s, "by the tuple again", &tcp4(80).build(), TAKEN);
    check(s, "by the tuple again", &tcp4(81).build(), PASSED);
    assert_eq!(s.each(|s| s.registered.flow_count()), 0);
}

#[test]
fn ranges_are_taken_whole_or_not_at_all() {
    skip_without!(bpf);
    let s = &steering();
    let first = Tuple::new(US4, 0, Proto::TCP);
    s.register_range(first, 40_000..=40_999).unwrap();
    check(s, "first of the range", &tcp4(40_000).build(), TAKEN);
    check(s, "last of the range", &tcp4(40_999).build(), TAKEN);
    check(s, "behind the range", &tcp4(41_000).build(), PASSED);
    let error = s.register_range(first, 39_990..=40_010).unwrap_err();
    assert!(error.to_string().starts_with("tcp 10.0.0.1:40000 is in use"), "{error}");
    check(s, "nothing of the second range stays", &tcp4(39_990).build(), PASSED);
    check(s, "nor goes from the first", &tcp4(40_005).build(), TAKEN);
    s.register(Tuple::new(US4, 50_500, Proto::TCP)).unwrap();
    check(s, "a port behind the range", &tcp4(50_500).build(), TAKEN);
    s.register(Tuple::new(US4, 40_500, Proto::TCP)).unwrap();
    check(s, "a port of the range that somebody listens on", &tcp4(40_500).build(), TAKEN);
    s.unregister(Tuple::new(US4, 40_500, Proto::TCP)).unwrap();
    check(s, "nobody listens there any more", &tcp4(40_500).build(), TAKEN);
    check(s, "no port at all", &tcp4(0).build(), PASSED);
    check(s, "another address", &tcp6(40_500).build(), PASSED);
    let udp = Frame::new(Proto::UDP, (PEER4.into(), 5), (US4.into(), 40_500)).build();
    check(s, "another protocol", &udp, PASSED);
    let full = s.register_range(first, 52_000..=54_000).unwrap_err();
    assert!(full.to_string().contains("tuples_max"), "{full}");
    check(s, "nothing of a range that did not fit", &tcp4(52_000).build(), PASSED);
    s.unregister_range(first, 40_000..=40_999).unwrap();
    check(s, "given back", &tcp4(40_000).build(), PASSED);
    check(s, "the port behind it stays", &tcp4(50_500).build(), TAKEN);
    s.register_range(first, 50_000..=51_000).unwrap();
    check(s, "a range around it", &tcp4(50_501).build(), TAKEN);
}

/// What stands in a range is ours but for the kernel's own sockets: those that listen, and connections. (The port of its own, for a listener
/// whose other half is ours, outranks that.)
#[test]
fn sockets_of_the_kernels_in_a_range_are_its_own() {
    skip_without!(bpf);
    let s = &steering();
    for local in [std::net::IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()] {
        let listener = std::net::TcpListener::bind((local, 0)).unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let any = Tuple::new(local, 0, Proto::TCP);
        s.register_range(any, 1024..=65_535).unwrap();
        let [listens, connects] =
            [listener.local_addr(), connected.local_addr()].map(|addr| addr.unwrap().port());
        let segment = |from, port, flags: u8| {
            let mut frame = Frame::new(Proto::TCP, (local, from), (local, port)).build();
            let at = if local.is_ipv4() { 47 } else { 67 };
            frame[at] = flags;
            frame
        };
        let [syn, syn_ack, ack] = [0x02, 0x12, 0x10];
        let to = |from, port| segment(from, port, ack);
        check(s, "a SYN to a listener", &segment(999, listens, syn), PASSED);
        check(s, "a connection of ours with that port is answered", &segment(999, listens, syn_ack), TAKEN);
        check(s, "and goes on", &to(999, listens), TAKEN);
        check(s, "a connection", &to(listens, connects), PASSED);
        check(s, "another peer, and nobody listens", &to(999, connects), TAKEN);
        s.register(Tuple { port: listens, ..any }).unwrap();
        check(s, "a listener of both", &segment(999, listens, syn), TAKEN);
        s.unregister(Tuple { port: listens, ..any }).unwrap();
        drop(listener);
        check(s, "no listener any more", &segment(999, listens, syn), TAKEN);
    }
}

/// A host may have hundreds of addresses, and each has thousands of client ports.
#[test]
fn many_addresses_have_ranges() {
    skip_without!(bpf);
    let s = &steering();
    let at = |n: u16| std::net::Ipv4Addr::from(0x0a01_0000 + u32::from(n));
    for n in 0..500 {
        s.register_range(Tuple::new(at(n), 0, Proto::TCP), 61_000..=65_535).unwrap();
    }
    for (port, want) in [(60_999, PASSED), (61_000, TAKEN), (65_535, TAKEN)] {
        let frame = Frame::new(Proto::TCP, (PEER4.into(), 5), (at(499).into(), port)).build();
        check(s, "the last address", &frame, want);
    }
}

#[test]
fn a_tuple_is_registered_once_and_given_back() {
    skip_without!(bpf);
    let s = &steering();
    let tuple = Tuple::new(US6, 80, Proto::TCP);
    let error = s.register(tuple).unwrap_err();
    assert!(error.to_string().starts_with("tcp [fd00::1]:80 is in use"), "{error}");
    s.unregister(tuple).unwrap();
    s.unregister(tuple).unwrap();
    check(s, "after unregister", &tcp6(80).build(), PASSED);
}

/// Not a benchmark, but the figure belongs to the record: printed with `--nocapture`.
#[test]
fn the_program_is_fast_enough_to_stand_in_front_of_everybody() {
    skip_without!(bpf);
    let s = &steering();
    s.register_range(Tuple::new(US4, 0, Proto::TCP), 40_000..=40_999).unwrap();
    for (what, frame) in
        [("taken", tcp4(80).build()), ("passed", tcp4(81).build()), ("IPv6", tcp6(80).build())]
    {
        let [front, behind, short] = &s.0;
        let (_, nanos) = front.program.test_run(&frame, 100_000).unwrap();
        let (_, more) = behind.program.test_run(&frame, 100_000).unwrap();
        let (_, least) = short.program.test_run(&frame, 1000).unwrap();
        println!("{what}: {nanos} ns per frame, {more} ns behind GRO, {least} ns with a ring");
        assert!(nanos < 5_000, "{what}: {nanos} ns per frame");
    }
}
