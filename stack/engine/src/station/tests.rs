//! A station answers by a pipe, whose other end the test reads.

use utcp_netmap_io::Port;

use super::*;

const OWN: IpAddr = IpAddr::v4([10, 9, 0, 2]);
const PEER: IpAddr = IpAddr::v4([10, 9, 0, 1]);
const OWN_V6: IpAddr = IpAddr([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
const PEER_V6: IpAddr = IpAddr([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const PEER_MAC: Mac = [2, 0, 0, 0, 0, 9];
const NOW: Instant = Instant::ZERO;

struct Bench {
    station: Station,
    port: Box<dyn Port>,
    other: Box<dyn Port>,
}

impl Bench {
    fn new() -> Self {
        let [port, other] = utcp_netmap_io::pipe::pair("station", &Default::default()).unwrap();
        let config = DeviceConfig::parse("tap:x,addr=10.9.0.2/24,addr=fd09::2/64,gw=10.9.0.254")
            .unwrap()
            .station
            .unwrap();
        let caps = Caps { mac: [2, 0, 0, 0, 0, 1], ..Caps::default() };
        let mut bench = Self { station: Station::new(&config, &caps), port, other };
        bench.poll();
        assert_eq!(bench.answers().len(), 2, "both addresses are announced");
        bench
    }

    fn poll(&mut self) {
        self.station.poll(NOW, &mut self.port.tx());
    }

    fn give(&mut self, frame: &[u8]) -> Verdict {
        self.station.on_frame(NOW, frame, &mut self.port.tx())
    }

    fn answers(&mut self) -> Vec<Vec<u8>> {
        self.port.tx_sync().unwrap();
        self.other.rx_sync().unwrap();
        self.other.rx().map(|frame| frame.to_vec()).collect()
    }
}

fn link(dst: Mac, ethertype: u16, body: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
    let mut frame = vec![0; 200];
    let at =
        ethernet::emit(&ethernet::Repr { dst, src: PEER_MAC, ethertype, vlan: None }, &mut frame).unwrap();
    let len = body(&mut frame[at..]);
    frame.truncate(at + len);
    frame
}

fn ask_arp(target_ip: IpAddr, sender_ip: IpAddr) -> Vec<u8> {
    let ask = arp::Repr {
        operation: Operation::Request,
        sender_mac: PEER_MAC,
        sender_ip,
        target_mac: [0; 6],
        target_ip,
    };
    link(BROADCAST, ethernet::ARP, |out| arp::emit(&ask, out).unwrap())
}

#[test]
fn arp_is_answered_and_learnt_from() {
    let mut bench = Bench::new();
    assert_eq!(bench.give(&ask_arp(OWN, PEER)), Verdict::Neighbours);
    let answers = bench.answers();
    let (header, at) = ethernet::parse(&answers[0]).unwrap();
    let reply = arp::parse(&answers[0][at..]).unwrap();
    assert_eq!((header.dst, reply.operation, reply.sender_ip), (PEER_MAC, Operation::Reply, OWN));
    assert_eq!(reply.sender_mac, bench.station.mac);
    assert_eq!(bench.station.resolve(NOW, PEER), Some(PEER_MAC), "who asks us need not be asked");
    // Questions about others are none of our business; who claims our address is told of.
    bench.give(&ask_arp(IpAddr::v4([10, 9, 0, 3]), IpAddr::v4([10, 9, 0, 4])));
    bench.give(&ask_arp(PEER, OWN));
    assert_eq!((bench.answers().len(), bench.station.conflicts()), (0, 1));
    assert_eq!(bench.station.resolve(NOW, IpAddr::v4([10, 9, 0, 4])), None);
    // A sender that is not on the link is answered, and not believed.
    let far = IpAddr::v4([192, 0, 2, 1]);
    bench.give(&ask_arp(OWN, far));
    assert_eq!((bench.answers().len(), bench.station.resolve(NOW, far)), (1, None));
}

/// On several queues, the one that a question came to answers it; the others learn.
#[test]
fn what_came_to_another_queue_is_heard_and_not_answered() {
    let mut bench = Bench::new();
    let ask = ask_arp(OWN, PEER);
    assert_eq!(bench.station.hear(NOW, &ask), Verdict::Neighbours);
    assert_eq!((bench.answers().len(), bench.station.resolve(NOW, PEER)), (0, Some(PEER_MAC)));
    assert_eq!(bench.station.hear(NOW, &ask[..20]), Verdict::Foreign);
}

#[test]
fn solicitations_are_answered_and_learnt_from() {
    let mut bench = Bench::new();
    let group = ndisc::solicited_node(OWN_V6);
    let solicit = Neighbor::Solicit { target: OWN_V6, source: Some(PEER_MAC) };
    let frame = link(ethernet::multicast_v6(group), ethernet::IPV6, |out| {
        let len = ndisc::emit(PEER_V6, group, &solicit, &mut out[40..]).unwrap();
        ipv6::emit(&ndisc::ip_header(PEER_V6, group, len), out).unwrap() + len
    });
    assert_eq!(bench.give(&frame), Verdict::Neighbours);
    let answers = bench.answers();
    let (ip, range) = ipv6::parse(&answers[0][14..]).unwrap();
    let message = icmpv6::parse(&ip, &answers[0][14..][range]).unwrap();
    let advert = Neighbor::Advert {
        target: OWN_V6,
        mac: Some(bench.station.mac),
        router: false,
        solicited: true,
        overrides: true,
    };
    assert_eq!((message, ip.dst, ip.hop_limit), (icmpv6::Message::Neighbor(advert), PEER_V6, 255));
    assert_eq!(bench.station.resolve(NOW, PEER_V6), Some(PEER_MAC));
}

#[test]
fn questions_go_out_and_answers_count() {
    let mut bench = Bench::new();
    for (target, at) in [(PEER, 14), (PEER_V6, 54)] {
        assert_eq!(bench.station.resolve(NOW, target), None);
        bench.poll();
        let asked = bench.answers();
        assert_eq!(asked.len(), 1);
        if target.is_v4() {
            assert_eq!(arp::parse(&asked[0][at..]).unwrap().target_ip, target);
        } else {
            assert_eq!(asked[0][..6], ethernet::multicast_v6(ndisc::solicited_node(target)));
        }
    }
    let reply = arp::Repr {
        operation: Operation::Reply,
        sender_mac: PEER_MAC,
        sender_ip: PEER,
        target_mac: bench.station.mac,
        target_ip: OWN,
    };
    let mac = bench.station.mac;
    bench.give(&link(mac, ethernet::ARP, |out| arp::emit(&reply, out).unwrap()));
    assert!(bench.station.take_news());
    assert_eq!(bench.station.resolve(NOW, PEER), Some(PEER_MAC));
}

#[test]
fn an_echo_comes_back() {
    let mut bench = Bench::new();
    let mac = bench.station.mac;
    let echo = |dst: Mac, to: IpAddr| {
        link(dst, ethernet::IPV4, |out| {
            let len = icmpv4::emit_echo_reply([1, 2, 3, 4], b"abcdefgh", &mut out[20..]).unwrap();
            // From a reply to a request: type 8 instead of 0, and the checksum that much less.
            out[20] = 8;
            let sum = u16::from_be_bytes([out[22], out[23]]).wrapping_sub(0x0800);
            out[22..24].copy_from_slice(&sum.to_be_bytes());
            let repr = ipv4::Repr {
                src: PEER,
                dst: to,
                protocol: ICMPV4,
                ttl: 64,
                dscp: 0,
                ecn: 0,
                ident: 0,
                dont_fragment: true,
                fragment: None,
                payload_len: u16::try_from(len).unwrap(),
            };
            ipv4::emit(&repr, out).unwrap() + len
        })
    };
    assert_eq!(bench.give(&echo(mac, OWN)), Verdict::Done);
    let answers = bench.answers();
    let (ip, range) = ipv4::parse(&answers[0][14..]).unwrap();
    assert_eq!((ip.src, ip.dst, answers[0][..6].to_vec()), (OWN, PEER, PEER_MAC.to_vec()));
    assert_eq!(answers[0][14..][range][8..], *b"abcdefgh");
    for foreign in [echo(BROADCAST, OWN), echo([2, 0, 0, 0, 0, 7], OWN), echo(mac, PEER)] {
        assert_eq!(bench.give(&foreign), Verdict::Foreign);
    }
    assert_eq!(bench.answers().len(), 0);
}

#[test]
fn routes_lead_to_the_link_or_the_gateway() {
    let bench = Bench::new();
    let station = &bench.station;
    assert_eq!(station.on_link(PEER), Some(Hop { source: OWN, next: PEER }));
    assert_eq!(station.on_link(PEER_V6), Some(Hop { source: OWN_V6, next: PEER_V6 }));
    let far = IpAddr::v4([192, 0, 2, 1]);
    let gateway = IpAddr::v4([10, 9, 0, 254]);
    assert_eq!(
        (station.on_link(far), station.by_gateway(far)),
        (None, Some(Hop { source: OWN, next: gateway }))
    );
    assert_eq!(station.by_gateway(IpAddr([0xfd; 16])), None, "no gateway of that family");
}

#[test]
fn no_frame_is_too_short_or_too_strange() {
    let mut bench = Bench::new();
    let good = ask_arp(OWN, PEER);
    for len in 0..good.len() {
        bench.give(&good[..len]);
    }
    for byte in 0..=255 {
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = byte;
            bench.give(&bad);
            bench.answers();
        }
    }
}
