//! The steering program against a table of frames, run by the kernel without a device.

use std::net::{IpAddr, Ipv6Addr};

use super::*;
use crate::Proto;
use crate::testing::{Frame, skip_without};

/// `XDP_ABORTED … XDP_PASS`: the program runs without sockets, and what it would take gets this verdict.
const TAKEN: u32 = 1;
const PASSED: u32 = 2;

const US4: [u8; 4] = [10, 0, 0, 1];
const PEER4: [u8; 4] = [10, 0, 0, 2];
const US6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// The program as it stands in front of the stack, and behind GRO: what holds for one, holds for the other.
struct Both([XdpSteering; 2]);

impl Both {
    /// What both say.
    fn each<T: std::fmt::Debug>(&self, ask: impl Fn(&XdpSteering) -> T) -> T {
        let [first, second] = self.0.each_ref().map(ask);
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "both hooks");
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

    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        self.each(|s| s.register_flow(flow, verdict))
    }

    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.each(|s| s.unregister_flow(flow))
    }
}

/// The program with `10.0.0.1:80` and `[fd00::1]:80` registered for TCP, `10.0.0.1:53` for UDP.
fn steering() -> Both {
    let load = |hook| XdpSteering::load_with(4, 1024, hook).unwrap();
    let steering = Both([load(Hook::Xdp(i32::from(TAKEN as u8))), load(Hook::Behind(MARK))]);
    steering.register(Tuple::new(US4, 80, Proto::TCP)).unwrap();
    steering.register(Tuple::new(US6, 80, Proto::TCP)).unwrap();
    steering.register(Tuple::new(US4, 53, Proto::UDP)).unwrap();
    steering
}

fn tcp4(port: u16) -> Frame {
    Frame::new(Proto::TCP, (PEER4.into(), 40_000), (US4.into(), port))
}

fn tcp6(port: u16) -> Frame {
    Frame::new(Proto::TCP, (PEER6.into(), 40_000), (US6.into(), port))
}

#[track_caller]
fn check(steering: &Both, what: &str, frame: &[u8], want: u32) {
    let [front, behind] = &steering.0;
    let (verdict, _) = front.program.test_run(frame, 1).unwrap();
    assert_eq!(verdict, want, "{what}");
    // The kernel runs a program behind GRO on nothing shorter than Ethernet and IP header.
    let headers = if frame.get(12..14) == Some(&[0x86, 0xdd]) { 54 } else { 34 };
    if frame.len() >= headers {
        let (verdict, _) = behind.program.test_run(frame, 1).unwrap();
        // Taken: on to the stack, whose IP leaves it to us; else the next program decides.
        let want = if want == TAKEN { 0 } else { u32::MAX };
        assert_eq!(verdict, want, "{what}, behind GRO");
    }
}

#[test]
fn only_whole_registered_frames_are_taken() {
    skip_without!(bpf);
    let s = &steering();
    check(s, "registered IPv4 tuple", &tcp4(80).build(), TAKEN);
    check(s, "another port", &tcp4(81).build(), PASSED);
    check(s, "registered IPv6 tuple", &tcp6(80).build(), TAKEN);
    check(s, "another IPv6 port", &tcp6(81).build(), PASSED);
    let other = Frame::new(Proto::TCP, (PEER4.into(), 40_000), (IpAddr::from([10, 0, 0, 9]), 80));
    check(s, "another address", &other.build(), PASSED);
    let udp = |port| Frame::new(Proto::UDP, (PEER4.into(), 40_000), (US4.into(), port)).build();
    check(s, "the same port of UDP", &udp(80), PASSED);
    check(s, "a registered UDP tuple", &udp(53), TAKEN);
    check(s, "a TCP port registered for UDP", &tcp4(53).build(), PASSED);
    let back = Frame::new(Proto::TCP, (US4.into(), 80), (PEER4.into(), 40_000));
    check(s, "our tuple as the source", &back.build(), PASSED);
}

#[test]
fn what_is_not_plain_tcp_or_udp_passes() {
    skip_without!(bpf);
    let s = &steering();
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = tcp4(80).build();
        change(&mut frame);
        frame
    };
    check(s, "ARP", &edit(&|f| f[12..14].copy_from_slice(&[8, 6])), PASSED);
    check(s, "last fragment of what did not begin", &edit(&|f| f[21] = 1), PASSED);
    check(s, "do not fragment", &edit(&|f| f[20] = 0x40), TAKEN);
    check(s, "ICMP", &edit(&|f| f[23] = 1), PASSED);
    check(s, "SCTP", &edit(&|f| f[23] = 132), PASSED);
    check(s, "IP version 5", &edit(&|f| f[14] = 0x55), PASSED);
    check(s, "header of four words", &edit(&|f| f[14] = 0x44), PASSED);
    let edit6 = |next: u8| {
        let mut frame = tcp6(80).build();
        frame[20] = next;
        frame
    };
    check(s, "IPv6 fragment header", &edit6(44), PASSED);
    check(s, "IPv6 hop-by-hop options", &edit6(0), PASSED);
    check(s, "ICMPv6", &edit6(58), PASSED);
}

/// The fragments of a packet of ours follow the first one; others go to the kernel.
#[test]
fn fragments_follow_the_first() {
    skip_without!(bpf);
    let s = &steering();
    let v4 = |port, ident: u8, flags: u8, offset: u8| {
        let mut frame = tcp4(port).build();
        (frame[19], frame[20], frame[21]) = (ident, flags, offset);
        frame
    };
    const MORE: u8 = 0x20;
    check(s, "the last one, too early", &v4(80, 7, 0, 9), PASSED);
    check(s, "a first one", &v4(80, 7, MORE, 0), TAKEN);
    check(s, "one in the middle", &v4(1, 7, MORE, 4), TAKEN);
    check(s, "the last one", &v4(1, 7, 0, 9), TAKEN);
    check(s, "one of another packet", &v4(80, 8, 0, 9), PASSED);
    check(s, "the first one to another port", &v4(81, 9, MORE, 0), PASSED);
    check(s, "what follows it", &v4(80, 9, 0, 9), PASSED);
    let mut other = v4(80, 7, 0, 9);
    other[29] = 77;
    check(s, "one from somebody else", &other, PASSED);
    let mut udp = v4(53, 10, MORE, 0);
    udp[23] = 17;
    check(s, "UDP", &udp, PASSED);

    let v6 = |port, ident: u8, offset: u16, next: u8| {
        let mut frame = tcp6(port).build();
        frame[20] = 44;
        let [high, low] = offset.to_be_bytes();
        let header = [next, 0, high, low, 0, 0, 0, ident];
        frame.splice(54..54, header);
        frame
    };
    check(s, "IPv6: the last one, too early", &v6(80, 7, 64, 6), PASSED);
    check(s, "IPv6: a first one", &v6(80, 7, 1, 6), TAKEN);
    check(s, "IPv6: the last one", &v6(1, 7, 64, 6), TAKEN);
    check(s, "IPv6: one of another packet", &v6(80, 8, 64, 6), PASSED);
    check(s, "IPv6: to another port", &v6(81, 9, 1, 6), PASSED);
    check(s, "IPv6: what follows it", &v6(80, 9, 64, 6), PASSED);
    check(s, "IPv6: an atomic one", &v6(80, 10, 0, 6), TAKEN);
    check(s, "IPv6: more headers", &v6(80, 11, 1, 60), PASSED);
}

/// An ICMP error of `kind` from a router to us, about a packet that we sent.
fn icmp4(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut frame = Frame::new(Proto::UDP, ([10, 9, 9, 9].into(), 0), (US4.into(), 0)).build();
    frame.truncate(34);
    frame[23] = 1;
    frame.extend([kind, 4, 0, 0, 0, 0, 0, 0]);
    frame.extend(quoted);
    frame
}

fn icmp6(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let router = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
    let mut frame = Frame::new(Proto::UDP, (router.into(), 0), (US6.into(), 0)).build();
    frame.truncate(54);
    frame[20] = 58;
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(quoted);
    frame
}

/// The IP packet of a frame that we sent, as a router quotes it: header and eight bytes.
fn sent(from: IpAddr, port: u16, to: IpAddr) -> Vec<u8> {
    let frame = Frame::new(Proto::TCP, (from, port), (to, 40_000)).build();
    frame[14..if from.is_ipv4() { 42 } else { 62 }].to_vec()
}

#[test]
fn icmp_errors_about_our_packets_are_taken() {
    skip_without!(bpf);
    let s = &steering();
    let ours = sent(US4.into(), 80, PEER4.into());
    for (kind, want) in [(3, TAKEN), (11, TAKEN), (12, TAKEN), (0, PASSED), (8, PASSED), (5, PASSED)] {
        check(s, &format!("ICMP type {kind}"), &icmp4(kind, &ours), want);
    }
    check(s, "about a packet of the kernel", &icmp4(3, &sent(US4.into(), 81, PEER4.into())), PASSED);
    let lie = sent([10, 0, 0, 7].into(), 80, PEER4.into());
    check(s, "about a packet that someone else sent", &icmp4(3, &lie), PASSED);
    let mut options = ours.clone();
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 0]);
    check(s, "about a packet with options", &icmp4(3, &options), TAKEN);
    let mut fragment = ours.clone();
    fragment[7] = 1;
    check(s, "about a later fragment", &icmp4(3, &fragment), PASSED);
    let whole = icmp4(3, &ours);
    for len in 14..whole.len() {
        let want = if len < 34 + 8 + 20 + 4 { PASSED } else { TAKEN };
        check(s, &format!("the first {len} bytes"), &whole[..len], want);
    }

    let ours = sent(US6.into(), 80, PEER6.into());
    for (kind, want) in
        [(1, TAKEN), (2, TAKEN), (3, TAKEN), (4, TAKEN), (0, PASSED), (128, PASSED), (135, PASSED)]
    {
        check(s, &format!("ICMPv6 type {kind}"), &icmp6(kind, &ours), want);
    }
    check(s, "about a packet of the kernel", &icmp6(1, &sent(US6.into(), 81, PEER6.into())), PASSED);
    check(
        s,
        "about a packet that someone else sent",
        &icmp6(1, &sent(PEER6.into(), 80, PEER6.into())),
        PASSED,
    );
    let whole = icmp6(2, &ours);
    for len in 14..whole.len() {
        let want = if len < 54 + 8 + 40 + 4 { PASSED } else { TAKEN };
        check(s, &format!("the first {len} bytes"), &whole[..len], want);
    }
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
fn ip_options_are_stepped_over() {
    skip_without!(bpf);
    let s = &steering();
    let mut frame = tcp4(80).build();
    frame[14] = 0x46;
    frame.splice(34..34, [1, 1, 1, 0]);
    check(s, "one word of options", &frame, TAKEN);
    frame[14] = 0x4f;
    check(s, "options that are not there: ports behind the payload", &frame, PASSED);
}

#[test]
fn only_the_priority_tag_counts_as_untagged() {
    skip_without!(bpf);
    let s = &steering();
    let tagged = |tci: u16| {
        let mut frame = tcp4(80).build();
        let [high, low] = tci.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
        frame
    };
    check(s, "VLAN 0, priority 7", &tagged(0xe000), TAKEN);
    check(s, "VLAN 5", &tagged(5), PASSED);
    check(s, "VLAN 256, whose low byte is 0", &tagged(0x0100), PASSED);
}

#[test]
fn no_truncated_frame_is_taken() {
    skip_without!(bpf);
    let s = &steering();
    for (frame, ports_end) in [(tcp4(80).build(), 38), (tcp6(80).build(), 58)] {
        // The kernel runs no test on less than an Ethernet header.
        for len in 14..frame.len() {
            let want = if len < ports_end { PASSED } else { TAKEN };
            check(s, &format!("the first {len} bytes"), &frame[..len], want);
        }
    }
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
    assert_eq!(s.each(|s| *s.flow_count.lock().unwrap()), 0);
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
    let full = s.register_range(first, 50_000..=52_000).unwrap_err();
    assert!(full.to_string().contains("tuples_max"), "{full}");
    check(s, "nothing of a range that did not fit", &tcp4(50_000).build(), PASSED);
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
        let [front, behind] = &s.0;
        let (_, nanos) = front.program.test_run(&frame, 100_000).unwrap();
        let (_, more) = behind.program.test_run(&frame, 100_000).unwrap();
        println!("{what}: {nanos} ns per frame, {more} ns behind GRO");
        assert!(nanos < 5_000, "{what}: {nanos} ns per frame");
    }
}
