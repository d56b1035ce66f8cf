//! Packet sockets over a veth pair between two network namespaces.

use std::time::{Duration, Instant};

use super::VNET_HEADER;
use crate::conformance::{self, Pair};
use crate::testing::{Frame, IP_A, IP_B, MAC_B, Network, skip_without};
use crate::{Device, OpenOptions, Port, Proto, Tuple};

const PORT: u16 = 4000;
const HEADER: usize = VNET_HEADER as usize;

fn options() -> OpenOptions {
    OpenOptions { vnet_header: true, rx_slots: 256, ..OpenOptions::default() }
}

/// Both ends, each with one tuple registered. They have the same address on the link: frames that are sent back as they came are
/// for who gets them, too.
fn ends(net: &Network) -> [Box<dyn Port>; 2] {
    net.a.ip(&format!("link set nio-a address {}", MAC_B.map(|byte| format!("{byte:02x}")).join(":")));
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
    let [a, b] = ends(&net);
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
