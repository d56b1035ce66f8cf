//! TAP devices joined by a bridge, and one with the kernel as its peer.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::*;
use crate::Proto;
use crate::conformance::{self, Pair};
use crate::testing::{Frame, Host, skip_without};

/// A host without IPv6, which would send frames of its own.
fn quiet_host() -> Host {
    let host = Host::new();
    host.run(|| {
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
    });
    host
}

fn open_on(host: &Host, device: &'static str) -> Result<Box<dyn Port>, PortError> {
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    host.run(move || crate::open(device, &options).map(|mut device| device.ports.remove(0)))
}

#[test]
fn two_behind_a_bridge_conform() {
    skip_without!(namespaces);
    let host = quiet_host();
    host.ip("link add nio-br type bridge mcast_snooping 0");
    host.ip("link set nio-br up");
    let (a, b) = (open_on(&host, "tap:nio-a").unwrap(), open_on(&host, "tap:nio-b").unwrap());
    host.ip("link set nio-a master nio-br");
    host.ip("link set nio-b master nio-br");
    let (mac_a, mac_b) = (a.caps().mac, b.caps().mac);
    let make = move |to_b: bool| {
        let (to, from) = if to_b { (mac_b, mac_a) } else { (mac_a, mac_b) };
        Frame::new(Proto::UDP, ([10, 0, 0, 1].into(), 1), ([10, 0, 0, 2].into(), 2)).macs(to, from)
    };
    let header = make(true).header_len();
    let frame = move |to_b, len: usize| make(to_b).payload(&vec![0x55; len - header]).build();
    let mut pair = Pair {
        a,
        b,
        frame: Box::new(frame),
        frame_len_min: header + 8,
        pushes_back: false,
        kicks_max: 64,
        skip: &[
            // Only a system call tells whether a frame is there.
            "idle syncs cost no system call",
            // The device's queue drops what nobody reads, in the kernel's counters of the interface.
            "what a slow receiver loses is counted",
            // A bridge sends no frame back to where it came from, and learns who lives where.
            "forwarding swaps buffers without mixing them up",
        ],
    };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_kernel_is_the_peer() {
    skip_without!(namespaces);
    let host = quiet_host();
    let mut port = open_on(&host, "tap:nio-t").unwrap();
    let mac = port.caps().mac;
    host.ip("addr add 10.77.1.1/24 dev nio-t");
    let station = mac.map(|byte| format!("{byte:02x}")).join(":");
    host.ip(&format!("neigh replace 10.77.1.2 dev nio-t lladdr {station} nud permanent"));
    let (us, kernel) = (([10, 77, 1, 2].into(), 5000), ([10, 77, 1, 1].into(), 6000));

    let socket = host.run(|| UdpSocket::bind("10.77.1.1:6000")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.send_to(b"from the kernel", "10.77.1.2:5000").unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    while port.rx_sync().unwrap() == 0 {
        assert!(Instant::now() < until, "nothing came from the kernel");
    }
    let frame = port.rx().next().unwrap();
    assert_eq!((&frame[..6], &frame[42..]), (&mac[..], &b"from the kernel"[..]));
    let kernel_mac: [u8; 6] = frame[6..12].try_into().unwrap();

    let answer = Frame::new(Proto::UDP, us, kernel).macs(kernel_mac, mac).payload(b"from us").build();
    assert!(port.tx().push(&answer));
    port.tx_sync().unwrap();
    let mut word = [0; 64];
    let (len, from) = socket.recv_from(&mut word).unwrap();
    assert_eq!((&word[..len], from.to_string()), (&b"from us"[..], "10.77.1.2:5000".to_owned()));
}

#[test]
fn errors_say_what_to_do() {
    skip_without!(namespaces);
    let host = quiet_host();
    let error = |device| open_on(&host, device).err().unwrap().to_string();
    host.ip("link add nio-v type bridge");
    assert!(error("tap:nio-v").contains("exists and is no TAP device"), "{}", error("tap:nio-v"));
    let _held = open_on(&host, "tap:nio-t").unwrap();
    assert!(error("tap:nio-t").contains("TAP device nio-t is in use: another program has it open"));
}

#[test]
fn a_device_of_the_user_is_used_and_left_there() {
    skip_without!(namespaces);
    let host = quiet_host();
    host.ip("tuntap add nio-p mode tap");
    drop(open_on(&host, "tap:nio-p").unwrap());
    host.ip("link show nio-p");
}

/// As many queues as are asked for, or the one that the user's device has; frames of a flow come back to the queue that sent.
#[test]
fn several_queues() {
    skip_without!(namespaces);
    let host = quiet_host();
    let open = |device: &'static str, queues| {
        let options = OpenOptions { rx_slots: 64, tx_slots: 64, queues, ..OpenOptions::default() };
        let device = host.run(move || crate::open(device, &options)).unwrap();
        let names = device.ports.iter().map(|port| (port.caps().name.clone(), port.caps().queue));
        (names.collect::<Vec<_>>(), device.ports)
    };
    host.ip("tuntap add nio-one mode tap");
    assert_eq!(open("tap:nio-one", 4).0, [("tap:nio-one".to_owned(), 0)]);
    host.ip("tuntap add nio-many mode tap multi_queue");
    assert_eq!(open("tap:nio-many", 1).0, [("tap:nio-many".to_owned(), 0)]);
    let (names, mut ports) = open("tap:nio-t", 2);
    assert_eq!(names, [("tap:nio-t-0".to_owned(), 0), ("tap:nio-t-1".to_owned(), 1)]);

    host.ip("addr add 10.77.1.1/24 dev nio-t");
    let mac = ports[0].caps().mac;
    let station = mac.map(|byte| format!("{byte:02x}")).join(":");
    host.ip(&format!("neigh replace 10.77.1.2 dev nio-t lladdr {station} nud permanent"));
    let kernel = host.run(|| crate::sys::interface("nio-t").unwrap().unwrap().mac);
    let socket = host.run(|| UdpSocket::bind("10.77.1.1:6000")).unwrap();
    for queue in [0, 1, 0] {
        let us = ([10, 77, 1, 2].into(), 5000 + u16::try_from(queue).unwrap());
        let ask = Frame::new(Proto::UDP, us, ([10, 77, 1, 1].into(), 6000)).macs(kernel, mac).payload(b"ask");
        assert!(ports[queue].tx().push(&ask.build()));
        ports[queue].tx_sync().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
        socket.send_to(b"answer", from).unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        while ports[queue].rx_sync().unwrap() == 0 {
            assert!(Instant::now() < until, "no answer came to queue {queue}");
        }
        assert!(ports[queue].rx().next().unwrap().ends_with(b"answer"));
        assert_eq!(ports[1 - queue].rx_sync().unwrap(), 0, "it came to the other queue");
    }
}

/// A virtio-net header in front of frames, on both queues of a device: what one side leaves undone the other one does, or cuts.
#[test]
fn segments_and_sums_are_left_to_the_other_side() {
    const HEADER: usize = VNET_HEADER as usize;
    const NEEDS_CHECKSUM: u8 = 1;
    const GSO_TCP: [u8; 2] = [1, 4];
    const GSO_UDP: u8 = 5;
    skip_without!(namespaces);
    let host = quiet_host();
    let options = OpenOptions { queues: 2, vnet_header: true, ..OpenOptions::default() };
    let mut device = host.run(move || crate::open("tap:nio-t", &options)).unwrap();
    let caps = device.ports[0].caps().clone();
    assert_eq!((device.ports.len(), caps.vnet_header, caps.tx_checksum), (2, VNET_HEADER, true));
    assert!(caps.frame_bytes_max > 65_000);
    let kernel = host.run(|| crate::sys::interface("nio-t").unwrap().unwrap().mac);
    let mut heard = host.run(|| crate::testing::Tap::new("nio-t")).unwrap();

    // Ours: one segment of twenty, to be cut and summed up by whoever takes it. The kernel takes it whole.
    let ends = [
        (([10, 77, 1, 2].into(), 5000), ([10, 77, 1, 1].into(), 6000)),
        (("fd77:1::2".parse().unwrap(), 5000), ("fd77:1::1".parse().unwrap(), 6000)),
    ];
    for queue in 0..2 {
        for ((us, them), kind) in ends.into_iter().zip(GSO_TCP) {
            let frame = Frame::new(Proto::TCP, us, them).macs(kernel, caps.mac);
            let header_len = u16::try_from(frame.header_len()).unwrap();
            let frame = frame.payload(&[7; 20_000]).build();
            let mut bytes = vec![NEEDS_CHECKSUM, kind];
            for word in [header_len, 1000, header_len - 20, 16] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(&frame);
            let port = &mut device.ports[queue];
            assert!(port.tx().push(&bytes));
            port.tx_sync().unwrap();
            assert_eq!(port.counters().tx_dropped, 0, "queue {queue}");
            assert_eq!(heard.receive(Duration::from_secs(2)), Some(frame), "queue {queue}, GSO {kind}");
        }
    }

    // The kernel's: a datagram of which it leaves the sum to us, and five that it leaves uncut (USO, Linux 6.2).
    host.ip("addr add 10.77.1.1/24 dev nio-t");
    let station = caps.mac.map(|byte| format!("{byte:02x}")).join(":");
    host.ip(&format!("neigh replace 10.77.1.2 dev nio-t lladdr {station} nud permanent"));
    let socket = host.run(|| UdpSocket::bind("10.77.1.1:6000")).unwrap();
    let (size, name) = (1000_i32, 103);
    // SAFETY: the kernel reads one number (UDP_SEGMENT), which lives until the call returns.
    let set = unsafe {
        let len = size_of_val(&size) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, name, (&raw const size).cast(), len)
    };
    assert_eq!(set, 0);
    for (bytes, kind) in [(100, 0), (5000, GSO_UDP)] {
        socket.send_to(&vec![9; bytes], "10.77.1.2:5000").unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        let mut came = Vec::new();
        while came.is_empty() && Instant::now() < until {
            for port in &mut device.ports {
                port.rx_sync().unwrap();
                came.extend(port.rx().map(|frame| frame.to_vec()));
            }
        }
        assert_eq!(came.iter().map(Vec::len).collect::<Vec<_>>(), [HEADER + 42 + bytes], "one frame");
        assert_eq!((came[0][0] & NEEDS_CHECKSUM, came[0][1]), (NEEDS_CHECKSUM, kind), "{bytes} bytes");
    }
}

/// Headers that make no sense, by kind and by the dice: the kernel refuses what it can't do, each frame is counted once, and the
/// next good one goes through.
#[test]
fn headers_that_make_no_sense_cost_their_frame_alone() {
    skip_without!(namespaces);
    let host = quiet_host();
    let options = OpenOptions { vnet_header: true, ..OpenOptions::default() };
    let mut port = host.run(move || crate::open("tap:nio-t", &options)).unwrap().ports.remove(0);
    let kernel = host.run(|| crate::sys::interface("nio-t").unwrap().unwrap().mac);
    let mut heard = host.run(|| crate::testing::Tap::new("nio-t")).unwrap();
    let (us, them) = (([10, 77, 1, 2].into(), 5000), ([10, 77, 1, 1].into(), 6000));
    let frame = Frame::new(Proto::TCP, us, them).macs(kernel, port.caps().mac);
    let frame = frame.payload(&[7; 3000]).build();
    // Flags and kind; length of headers, size of a piece, where to sum from, and where the sum goes.
    let header =
        |first: [u8; 2], words: [u16; 4]| [&first[..], &words.map(u16::to_ne_bytes).concat()].concat();
    let counted = |port: &dyn Port| (port.counters().tx_frames, port.counters().tx_dropped);
    let refused = [
        ("an unknown kind", header([1, 0x42], [54, 1000, 34, 16])),
        ("pieces of no bytes", header([1, 1], [54, 0, 34, 16])),
        ("headers longer than the frame", header([1, 1], [u16::MAX, 1000, 34, 16])),
        ("a sum from behind the frame", header([1, 0], [0, 0, 60_000, 16])),
        ("a sum to behind the frame", header([1, 0], [0, 0, 34, 60_000])),
        ("half a header", vec![1, 1, 0]),
    ];
    for (what, header) in &refused {
        let (sent, dropped) = counted(&*port);
        let rest = if header.len() < usize::from(VNET_HEADER) { &[][..] } else { &frame };
        assert!(port.tx().push(&[header, rest].concat()));
        port.tx_sync().unwrap();
        assert_eq!(counted(&*port), (sent, dropped + 1), "{what}");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 1..=2000 {
        let (sent, dropped) = counted(&*port);
        let mut bytes = Vec::new();
        while bytes.len() < usize::from(VNET_HEADER) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend(&state.to_ne_bytes()[4..]);
        }
        bytes.truncate(usize::from(VNET_HEADER));
        bytes.extend(&frame[..frame.len() - state as usize % 3000]);
        assert!(port.tx().push(&bytes));
        port.tx_sync().unwrap();
        let (sent_now, dropped_now) = counted(&*port);
        assert_eq!(sent_now + dropped_now, sent + dropped + 1, "round {round}");
    }
    while heard.receive(Duration::from_millis(1)).is_some() {}
    assert!(port.tx().push(&[header([1, 1], [54, 1000, 34, 16]), frame.clone()].concat()));
    port.tx_sync().unwrap();
    assert_eq!(heard.receive(Duration::from_secs(2)), Some(frame));
}
