//! Packet sockets over a veth pair between two network namespaces.

use std::time::{Duration, Instant};

use super::super::asm::Reg::{R0, R1, R2};
use super::super::asm::{Asm, Width};
use super::super::bpf::{Kind, Map, MapType, Program, Update};
use super::super::hook;
use super::super::program::XDP_PASS;
use super::short::Way;
use super::{PacketPort, VNET_HEADER};
use crate::conformance::{self, Pair};
use crate::testing::{Frame, IP_A, IP_B, MAC_A, MAC_B, Network, Tap, skip_without};
use crate::{Device, OpenOptions, Port, Proto, Steering, Tuple};

const PORT: u16 = 4000;
const HEADER: usize = VNET_HEADER as usize;

fn options() -> OpenOptions {
    OpenOptions { vnet_header: true, rx_slots: 256, ..OpenOptions::default() }
}

/// Both ends have the same address on the link: frames that are sent back as they came are for who gets them, too.
fn same_address(net: &Network) {
    net.a.ip(&format!("link set nio-a address {}", MAC_B.map(|byte| format!("{byte:02x}")).join(":")));
}

/// Both ends with these ways for short frames, each with one tuple registered.
fn ends_with(net: &Network, ring: bool, ways: &'static [Way]) -> [PacketPort; 2] {
    same_address(net);
    [(&net.a, "nio-a"), (&net.b, "nio-b")].map(|(host, name)| {
        let (port, steering) = host.run(move || {
            let device = crate::sys::interface(name).unwrap().unwrap();
            super::open_port(&device, &options(), ring, ways).unwrap()
        });
        for addr in [IP_A, IP_B] {
            steering.register(Tuple::new(addr, PORT, Proto::TCP)).unwrap();
        }
        port
    })
}

/// Both ends, each with one tuple registered.
fn ends(net: &Network) -> [Box<dyn Port>; 2] {
    same_address(net);
    [(&net.a, "xdp:nio-a"), (&net.b, "xdp:nio-b")].map(|(host, device)| {
        let Device { mut ports, steering } = net.open(host, device, &options()).unwrap();
        let steering = steering.unwrap();
        for addr in [IP_A, IP_B] {
            steering.register(Tuple::new(addr, PORT, Proto::TCP)).unwrap();
        }
        assert_eq!(ports[0].caps().vnet_header, VNET_HEADER);
        ports.remove(0)
    })
}

fn between(to_b: bool) -> Frame {
    let (from, to) = if to_b { (IP_A, IP_B) } else { (IP_B, IP_A) };
    Frame::new(Proto::TCP, (from.into(), PORT), (to.into(), PORT)).macs(MAC_B, MAC_B)
}

#[track_caller]
fn conforms(mtu: u32) {
    let net = Network::new(1, mtu);
    ends_conform(ends(&net));
}

#[track_caller]
fn ends_conform([a, b]: [Box<dyn Port>; 2]) {
    let header = between(true).header_len();
    let frame = move |to_b, len: usize| {
        let payload: Vec<u8> = (0..len - header - HEADER).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let mut bytes = vec![0; HEADER];
        bytes.extend(between(to_b).payload(&payload).build());
        bytes
    };
    let mut pair = Pair {
        a,
        b,
        frame: Box::new(frame),
        frame_len_min: HEADER + header + 8,
        pushes_back: false,
        kicks_max: 4,
        skip: &[],
    };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        println!("  {}: {result:?}", case.name);
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn frames_of_a_slot_conform() {
    skip_without!(namespaces);
    conforms(1500);
}

#[test]
fn frames_that_wait_in_the_socket_conform() {
    skip_without!(namespaces);
    conforms(9000);
}

/// What older kernels and small limits of locked memory leave.
#[test]
fn less_than_the_best_conforms() {
    skip_without!(namespaces);
    for (ring, ways) in [(true, &[Way::Whole]), (false, &[Way::Hold])] {
        let net = Network::new(1, 1500);
        ends_conform(ends_with(&net, ring, ways).map(|port| Box::new(port) as Box<dyn Port>));
    }
}

/// Frames of `port` that came, waiting for `count`.
fn received(port: &mut PacketPort, count: usize) -> Vec<Vec<u8>> {
    let until = Instant::now() + Duration::from_secs(2);
    let mut all: Vec<Vec<u8>> = Vec::new();
    while all.len() < count && Instant::now() < until {
        port.rx_sync().unwrap();
        all.extend(port.rx().map(|frame| frame.to_vec()));
    }
    all
}

/// A frame without and with a wish for its checksum.
fn short_frame(number: u32, wish: bool) -> Vec<u8> {
    let frame = between(true).payload(&number.to_be_bytes()).build();
    let mut bytes = vec![u8::from(wish), 0, 0, 0, 0, 0];
    for word in [34_u16, 16] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(frame);
    bytes
}

#[test]
fn short_frames_pass_no_packet_socket_unless_they_are_to_wake_us() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends_with(&net, true, &Way::ALL);
    assert!(a.caps().mode.ends_with("short ones by a ring buffer and AF_XDP"), "{}", a.caps().mode);
    let marked = |b: &PacketPort| b.records.as_ref().unwrap().marked();
    for round in 0..3 {
        for asleep in [false, true] {
            b.rx_sync().unwrap();
            assert!(!asleep || b.arm().unwrap());
            let frames = [round, round + 100].map(|number| short_frame(number, false));
            for frame in &frames {
                assert!(a.tx().push(frame));
            }
            a.tx_sync().unwrap();
            assert!(!a.long_out, "sent by AF_XDP");
            let until = Instant::now() + Duration::from_secs(2);
            let here = |b: &PacketPort| !b.records.as_ref().unwrap().is_empty();
            while !(here(&b) && b.receivers[0].waits() >= asleep) && Instant::now() < until {}
            assert_eq!(b.receivers[0].waits(), asleep, "a packet socket hears of it");
            let body = |frames: &[Vec<u8>]| frames.iter().map(|f| f[HEADER..].to_vec()).collect::<Vec<_>>();
            assert_eq!(body(&received(&mut b, 2)), body(&frames));
            b.rx_sync().unwrap();
            assert!(!b.receivers[0].waits() && marked(&b) == 0, "two frames and no more");
        }
    }
}

/// What goes different ways arrives in order: one long segment among short frames, then many.
#[test]
fn ways_keep_the_order() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends_with(&net, true, &Way::ALL);
    let (mut sent, mut number) = (Vec::new(), 0);
    for round in 0..300_usize {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for place in 0..round % 7 + 1 {
            if (round + place) % 5 == 0 {
                frames.push(long_segment(1000 + u16::try_from(round % 400).unwrap()));
            } else {
                number += 1;
                frames.push(short_frame(number, false));
            }
        }
        // Some in a batch, some by themselves.
        for frame in &frames {
            assert!(a.tx().push(frame));
            if round % 2 == 0 {
                a.tx_sync().unwrap();
            }
        }
        a.tx_sync().unwrap();
        sent.extend(frames);
        if round % 3 == 0 {
            let _ = b.arm().unwrap();
        }
        if round % 10 == 9 {
            let want = std::mem::take(&mut sent);
            let got = received(&mut b, want.len());
            let lens = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(lens(&got), lens(&want), "round {round}");
            let same = |(got, want): (&Vec<u8>, &Vec<u8>)| got[HEADER..] == want[HEADER..];
            assert!(got.iter().zip(&want).all(same), "round {round}");
            b.rx_sync().unwrap();
            assert!(!b.records.as_ref().unwrap().apart(), "short ones go their own way again");
        }
    }
}

/// Nobody reads: the ring fills, then the socket's; what is lost is counted, and what is not comes in order.
#[test]
fn a_full_ring_loses_what_it_counts() {
    skip_without!(namespaces);
    const RECORD: usize = 8 + super::FRAME_AT as usize + super::ROOMS[0] as usize;
    const FITS: u32 = (super::RING as usize / RECORD) as u32;
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends_with(&net, true, &Way::ALL);
    let records = |b: &PacketPort| b.records.as_ref().unwrap().counts(RECORD);
    let all = FITS + 2 * options().rx_slots;
    for number in 0..all {
        assert!(a.tx().push(&short_frame(number, false)));
        if number % 32 == 31 || number + 1 == all {
            a.tx_sync().unwrap();
            let until = Instant::now() + Duration::from_secs(5);
            while records(&b).iter().sum::<u32>() <= number && Instant::now() < until {}
            assert_eq!(records(&b).iter().sum::<u32>(), number + 1);
        }
    }
    let [inside, apart] = records(&b);
    assert!((FITS - 1..=FITS).contains(&inside) && apart > options().rx_slots, "{inside} and {apart}");
    let lost = u32::try_from(b.counters().rx_ring_full).unwrap();
    assert!(lost > 0 && lost <= apart);
    let got = received(&mut b, (all - lost) as usize);
    let number = |frame: &Vec<u8>| u32::from_be_bytes(*frame[HEADER + 54..].first_chunk().unwrap());
    assert!(got.iter().map(number).eq(0..all - lost), "in order");
    let until = Instant::now() + Duration::from_secs(5);
    while b.records.as_ref().unwrap().apart() && Instant::now() < until {
        assert_eq!(b.rx_sync().unwrap(), 0);
    }
    assert!(a.tx().push(&short_frame(7, false)));
    a.tx_sync().unwrap();
    assert_eq!(received(&mut b, 1).len(), 1);
    assert_eq!(records(&b)[1], apart, "short ones go their own way again");
}

/// Chains at an interface's own hooks judge what packet sockets get and send: while there are any, everything goes that way.
#[test]
fn rules_of_others_are_not_passed_by() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends_with(&net, true, &Way::ALL);
    let nft = |host: &crate::testing::Host, words: &str| {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        host.run(move || std::process::Command::new("nft").args(words).status().is_ok_and(|s| s.success()))
    };
    let send = |a: &mut PacketPort, b: &mut PacketPort| {
        let before = b.records.as_ref().unwrap().marked();
        assert!(a.tx().push(&short_frame(1, false)));
        a.tx_sync().unwrap();
        assert_eq!(received(b, 1).len(), 1);
        (a.long_out, b.records.as_ref().unwrap().marked() != before)
    };
    assert_eq!(send(&mut a, &mut b), (false, false));
    for (host, device, hook, want) in
        [(&net.b, "nio-b", "ingress", (false, true)), (&net.a, "nio-a", "egress", (true, false))]
    {
        let look = |a: &PacketPort, b: &PacketPort| {
            for (host, port) in [(&net.a, a), (&net.b, b)] {
                let steering = port.steering.clone();
                host.run(move || steering.look_again());
            }
        };
        if !nft(host, "add table netdev guard") {
            return;
        }
        assert!(nft(
            host,
            &format!("add chain netdev guard one {{ type filter hook {hook} device {device} priority 0 ; }}")
        ));
        look(&a, &b);
        assert_eq!(send(&mut a, &mut b), want, "{hook}");
        // A port that is opened now finds them by itself.
        let device = host.run(move || crate::sys::interface(device).unwrap().unwrap());
        assert!(host.run(move || super::super::rules::filters(&device.name)));
        assert!(nft(host, "delete table netdev guard"));
        look(&a, &b);
        b.rx_sync().unwrap();
        assert_eq!(send(&mut a, &mut b), (false, false), "{hook} no more");
    }
    // An interface is known by its number, whatever it is called meanwhile.
    for change in ["down", "name nio-other"] {
        net.b.ip(&format!("link set nio-b {change}"));
    }
    let looked = || {
        let steering = b.steering.clone();
        net.b.run(move || {
            steering.look_again();
            (steering.filters(), steering.trouble())
        })
    };
    assert_eq!(looked(), (false, None));
    assert!(nft(&net.b, "add table netdev guard"));
    let chain = "add chain netdev guard late { type filter hook ingress device nio-other priority 0 ; }";
    assert!(nft(&net.b, chain));
    let (filters, trouble) = looked();
    assert!(filters && trouble.is_some_and(|words| words.contains("guard late")));
}

/// Opens the device in its namespace and waits to be killed; started by the test below.
#[test]
#[ignore = "a helper process of another test"]
fn victim() {
    let device = crate::open("xdp:nio-a", &options()).unwrap();
    device.steering.as_ref().unwrap().register(Tuple::new(IP_A, PORT, Proto::TCP)).unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

/// Ring, sockets and program go with whoever held them.
#[test]
fn a_killed_engine_leaves_nothing_on_the_hook() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let ifindex = net.a.run(|| crate::sys::interface("nio-a").unwrap().unwrap().index);
    let wait_for = |want: bool| {
        let until = Instant::now() + Duration::from_secs(10);
        while net.a.run(move || super::super::steers_behind(ifindex).is_some()) != want
            && Instant::now() < until
        {}
        net.a.run(move || super::super::steers_behind(ifindex).is_some()) == want
    };
    let mut child = net.a.victim("xdp::packets::tests::victim");
    let came = wait_for(true);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(came, "the program was attached");
    assert!(wait_for(false), "the program was detached");
    assert_eq!(net.open(&net.a, "xdp:nio-a", &options()).unwrap().ports.len(), 1, "the queue is free");
}

/// What waits in the queueing discipline is not overtaken.
#[test]
fn a_short_frame_waits_for_long_ones() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends_with(&net, true, &Way::ALL);
    net.a.run(|| {
        // The second long one waits for some 20 ms.
        let slow = "qdisc replace dev nio-a root tbf rate 16mbit burst 60kb latency 1s";
        let tc = std::process::Command::new("tc").args(slow.split(' ')).status();
        assert!(tc.unwrap().success(), "this kernel has no token bucket filter");
    });
    let sent = [long_segment(1000), long_segment(1000), short_frame(1, false), short_frame(2, false)];
    for frame in &sent {
        assert!(a.tx().push(frame));
        a.tx_sync().unwrap();
    }
    assert!(a.long_out, "something waits");
    let got = received(&mut b, sent.len());
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), sent.each_ref().map(Vec::len));
    assert!(a.tx().push(&sent[2]));
    a.tx_sync().unwrap();
    assert!(!a.long_out, "nothing waits any more");
}

/// RFC 1071 sum of the TCP segment of a frame with its pseudo header: all ones if it is right.
fn sum_of(frame: &[u8]) -> u32 {
    let tcp = &frame[34..];
    let words = |bytes: &[u8]| {
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum::<u32>()
    };
    let all = words(&frame[26..34]) + 6 + u32::try_from(tcp.len()).unwrap() + words(tcp);
    (all & 0xffff) + (all >> 16)
}

#[test]
fn a_checksum_is_left_to_the_kernel_or_made() {
    skip_without!(namespaces);
    for way in [&[Way::Partial], &[Way::Whole]] {
        let net = Network::new(1, 1500);
        let [mut a, mut b] = ends_with(&net, true, way);
        let mut frame = short_frame(7, true);
        // The pseudo header's sum, not complemented.
        let tcp_len = frame.len() - HEADER - 34;
        let pseudo = sum_of(&{
            let mut zeros = frame[HEADER..].to_vec();
            zeros[34..].fill(0);
            zeros
        });
        assert!(tcp_len == 24 && pseudo <= 0xffff);
        frame[HEADER + 50..HEADER + 52].copy_from_slice(&u16::try_from(pseudo).unwrap().to_be_bytes());
        assert!(a.tx().push(&frame));
        a.tx_sync().unwrap();
        assert!(!a.long_out, "sent by AF_XDP");
        let got = received(&mut b, 1);
        if way == &[Way::Partial] {
            // It never crossed a wire: as it was.
            assert_eq!(got[0][HEADER..], frame[HEADER..], "{way:?}");
        } else {
            assert_eq!(sum_of(&got[0][HEADER..]), 0xffff, "{way:?}");
        }
    }
}

/// A segment of 40 pieces, as the engine hands it over.
fn long_segment(mss: u16) -> Vec<u8> {
    let frame = between(true).payload(&vec![b'x'; usize::from(mss) * 40]).build();
    let header_len = u16::try_from(between(true).header_len()).unwrap();
    let mut bytes = vec![1, 1];
    for word in [header_len, mss, 34, 16] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(frame);
    bytes
}

/// Lengths of the frames that come.
fn lengths(port: &mut dyn Port, bytes: usize) -> Vec<usize> {
    let until = Instant::now() + Duration::from_secs(2);
    let mut all = Vec::new();
    while all.iter().sum::<usize>() < bytes && Instant::now() < until {
        port.rx_sync().unwrap();
        all.extend(port.rx().map(|frame| frame.len()));
    }
    all
}

#[test]
fn a_long_segment_stays_whole_and_is_cut_for_who_takes_none() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, mut b] = ends(&net);
    let segment = long_segment(1000);
    let mut send = |b: &mut dyn Port| {
        assert!(a.tx().push(&segment));
        a.tx_sync().unwrap();
        lengths(b, segment.len())
    };
    assert_eq!(send(&mut *b), [segment.len()], "one segment from end to end");
    net.a.run(|| {
        let off = ["-K", "nio-a", "tso", "off", "gso", "off"];
        assert!(std::process::Command::new("ethtool").args(off).status().unwrap().success());
    });
    let headers = between(true).header_len();
    assert_eq!(send(&mut *b), vec![HEADER + headers + 1000; 40], "its pieces");
}

#[test]
fn one_engine_at_a_time_drives_a_device_whichever_way() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let plain = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let error = |options: &OpenOptions| net.open(&net.a, "xdp:nio-a", options).err().unwrap().to_string();
    let held = net.open(&net.a, "xdp:nio-a", &options()).unwrap();
    for second in [&options(), &plain] {
        let error = error(second);
        assert!(error.starts_with("queue 0 of nio-a is in use"), "{error}");
    }
    drop(held);
    let held = net.open(&net.a, "xdp:nio-a", &plain).unwrap();
    assert!(error(&options()).starts_with("queue 0 of nio-a is in use"));
    drop(held);
    assert_eq!(net.open(&net.a, "xdp:nio-a", &options()).unwrap().ports.len(), 1, "it was given back");
}

/// Of somebody else: counts what it sees, and says what becomes of it.
struct Foreign {
    program: Program,
    seen: Map<u32, u64>,
}

impl Foreign {
    fn new(name: &str, kind: Kind, verdict: i32) -> Self {
        let seen: Map<u32, u64> = Map::new(MapType::Array, name, 1, 0).unwrap();
        let mut asm = Asm::default();
        asm.load_map_value(R1, seen.raw_fd());
        asm.load(Width::Double, R2, R1, 0);
        asm.add_imm(R2, 1);
        asm.store(Width::Double, R1, 0, R2);
        asm.mov_imm(R0, verdict);
        asm.exit();
        Self { program: Program::load(name, kind, &asm.finish()).unwrap(), seen }
    }

    /// Waits until it has seen that much since the last time, and not more.
    #[track_caller]
    fn saw(&self, count: u64) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.seen.get(&0).unwrap() < count && Instant::now() < until {}
        assert_eq!(self.seen.get(&0).unwrap(), count);
        self.forget();
    }

    fn forget(&self) {
        self.seen.update(&0, &0, Update::Any).unwrap();
    }
}

/// A device on `a`, and frames that come to it: one of ours and one of the kernel's.
struct Bench {
    net: Network,
    device: Option<Device>,
    wire: Tap,
    ifindex: u32,
    mac: [u8; 6],
}

impl Bench {
    fn new() -> Self {
        let net = Network::new(1, 1500);
        // What hosts tell each other by themselves would be counted, too.
        for host in [&net.a, &net.b] {
            host.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        }
        let wire = net.b.run(|| Tap::new("nio-b").unwrap());
        let ifindex = net.a.run(|| crate::sys::interface("nio-a").unwrap().unwrap().index);
        Self { net, device: None, wire, ifindex, mac: MAC_A }
    }

    fn open(&mut self) {
        let device = self.net.open(&self.net.a, "xdp:nio-a", &options()).unwrap();
        device.steering.as_ref().unwrap().register(Tuple::new(IP_A, PORT, Proto::TCP)).unwrap();
        assert!(device.ports[0].caps().mode.starts_with("packet sockets"));
        self.device = Some(device);
    }

    fn frame(&self, port: u16) -> Vec<u8> {
        Frame::new(Proto::TCP, (IP_B.into(), 9), (IP_A.into(), port)).macs(self.mac, MAC_B).build()
    }

    /// One that is ours comes, and one that is the kernel's.
    fn send(&self) {
        for port in [PORT, PORT + 1] {
            self.wire.send(&self.frame(port)).unwrap();
        }
    }

    /// Waits for what came to us: the one that is ours, and nothing else.
    fn ours_comes(&mut self) -> bool {
        self.send();
        let ours = self.frame(PORT);
        let port = &mut self.device.as_mut().unwrap().ports[0];
        let until = Instant::now() + Duration::from_secs(5);
        while port.rx_sync().unwrap() == 0 && Instant::now() < until {}
        let came: Vec<Vec<u8>> = port.rx().map(|came| came[HEADER..].to_vec()).collect();
        assert!(came.is_empty() || came == [ours], "{came:?}");
        !came.is_empty()
    }

    fn trouble(&self) -> Option<String> {
        let steering = self.device.as_ref().unwrap().steering.clone().unwrap();
        self.net.a.run(move || steering.trouble())
    }
}

/// Programs of others on the same hook, in front of ours and behind it: whoever was there, and comes later.
#[test]
fn programs_of_others_stand_beside_ours() {
    skip_without!(namespaces);
    const BEFORE: u32 = 1 << 3;
    const AFTER: u32 = 1 << 4;
    const NEXT: i32 = -1;
    const KEEP: i32 = 0;
    let mut bench = Bench::new();
    let attach = |bench: &Bench, foreign: Foreign, flags: u32| {
        let ifindex = bench.ifindex;
        bench.net.a.run(move || {
            let link = foreign.program.attach_among(ifindex, flags).unwrap();
            (foreign, link)
        })
    };
    let (first, _first) = attach(&bench, Foreign::new("first", Kind::Buffers, NEXT), BEFORE);
    bench.open();
    let (last, _last) = attach(&bench, Foreign::new("last", Kind::Buffers, NEXT), AFTER);
    for foreign in [&first, &last] {
        foreign.forget();
    }
    assert!(bench.ours_comes());
    // What is not ours goes on to them, what is ours does not.
    for foreign in [&first, &last] {
        foreign.saw(1);
    }
    assert_eq!(bench.trouble(), None);
    // Who comes later and stands in front sees everything, and may let it go on.
    let (earlier, link) = attach(&bench, Foreign::new("earlier", Kind::Buffers, NEXT), BEFORE);
    assert!(bench.ours_comes());
    earlier.saw(2);
    for foreign in [&first, &last] {
        foreign.saw(1);
    }
    let trouble = bench.trouble().unwrap();
    assert!(trouble.contains("\"earlier\" (number ") && !trouble.contains("first"), "{trouble}");
    drop(link);
    // Or keep it from everybody else: it is the last that saw ours, which came before the kernel's.
    let (keeper, link) = attach(&bench, Foreign::new("keeper", Kind::Buffers, KEEP), BEFORE);
    bench.send();
    keeper.saw(2);
    assert_eq!(bench.device.as_mut().unwrap().ports[0].rx_sync().unwrap(), 0);
    for foreign in [&first, &last] {
        foreign.saw(0);
    }
    assert!(bench.trouble().unwrap().contains("\"keeper\""));
    drop(link);
    assert!(bench.ours_comes());
    assert_eq!(bench.trouble(), None);
    bench.device.as_ref().unwrap().steering.as_ref().unwrap().leave();
    assert!(bench.trouble().unwrap().contains("taken off"));
    bench.device = None;
    let ifindex = bench.ifindex;
    assert!(bench.net.a.run(move || super::super::steers_behind(ifindex).is_none()));
}

/// An XDP program of somebody else's, however it is attached, stands in front of ours: what it passes is sorted here.
#[track_caller]
fn stands_in_front(kind: Kind, native: bool, by_link: bool, before: bool) {
    let mut bench = Bench::new();
    if !before {
        bench.open();
    }
    let (foreign, ifindex) = (Foreign::new("filter", kind, XDP_PASS), bench.ifindex);
    let (foreign, _link) = bench.net.a.run(move || {
        let link = by_link.then(|| foreign.program.attach(ifindex, native).unwrap());
        if link.is_none() {
            hook::put(ifindex, foreign.program.raw_fd(), native).unwrap();
        }
        (foreign, link)
    });
    if before {
        bench.open();
    }
    foreign.forget();
    let words = format!("{kind:?}, native {native}, by a link {by_link}, before {before}");
    assert!(bench.ours_comes(), "{words}");
    foreign.saw(2);
    bench.device = None;
    let attached = bench.net.a.run(move || super::super::steer::attached(ifindex));
    assert_eq!(attached, Some((foreign.program.id(), "filter".to_owned())), "it stays: {words}");
}

/// A link address that begins like an IP header, before frames that do and frames that don't.
#[test]
fn an_address_like_a_packet() {
    skip_without!(namespaces);
    for first in [0x46, 0x60] {
        let mut bench = Bench::new();
        bench.mac[0] = first;
        bench.net.a.ip(&format!("link set nio-a address {first:02x}:00:00:00:77:01"));
        bench.open();
        assert!(bench.ours_comes());
        let (program, ifindex) = (Foreign::new("filter", Kind::Xdp, XDP_PASS), bench.ifindex);
        let _held = bench.net.a.run(move || program.program.attach(ifindex, false).unwrap());
        assert!(bench.ours_comes());
    }
}

#[test]
fn an_xdp_program_of_others_stands_in_front() {
    skip_without!(namespaces);
    for case in 0..16 {
        let [pieces, native, by_link, before] = [1, 2, 4, 8].map(|bit| case & bit != 0);
        stands_in_front(if pieces { Kind::Xdp } else { Kind::XdpWhole }, native, by_link, before);
    }
}

/// Sockets tell of a link that went down until somebody asks; who sleeps on them would never sleep again.
#[test]
fn a_link_that_is_down_lets_us_sleep() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let [mut a, _b] = ends(&net);
    net.a.ip("link set nio-a down");
    for _ in 0..40 {
        a.rx_sync().unwrap();
        assert!(a.arm().unwrap());
    }
    for poll in a.poll_fds().iter() {
        let mut fds = [libc::pollfd { fd: poll.fd, events: poll.events, revents: 0 }];
        assert!(!crate::sys::poll(&mut fds, Duration::from_millis(1)), "woken for nothing");
    }
}
