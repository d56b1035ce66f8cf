//! Frames of several slots in one piece: virtio-net headers on a switch, and packets longer than a buffer on a NIC.

use super::*;

fn open_with_header(provider: &Provider, device: &str) -> Box<dyn Port> {
    let options = OpenOptions { vnet_header: true, ..OpenOptions::default() };
    provider.open(device, &options).unwrap().ports.remove(0)
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

fn pseudo(frame: &[u8]) -> Vec<u8> {
    let len = u16::try_from(frame.len() - 34).unwrap();
    [&frame[26..34], &[0, 6], &len.to_be_bytes()].concat()
}

/// A TCP segment with a partial checksum, behind a header that asks for the rest; `size`: into what it is to be cut.
fn segment(payload: usize, size: u16) -> Vec<u8> {
    let mut frame = vec![0; 54 + payload];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    let total = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let ip = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    frame[38..42].copy_from_slice(&1000_u32.to_be_bytes());
    (frame[46], frame[47]) = (0x50, 0x18);
    frame[54..].iter_mut().enumerate().for_each(|(at, byte)| *byte = u8::try_from(at % 251).unwrap());
    let partial = sum(&pseudo(&frame));
    frame[50..52].copy_from_slice(&partial.to_be_bytes());
    let [s0, s1] = size.to_ne_bytes();
    let [c0, c1] = 34_u16.to_ne_bytes();
    let [o0, o1] = 16_u16.to_ne_bytes();
    let kind = u8::from(size > 0);
    [&[1, kind, 54, 0, s0, s1, c0, c1, o0, o1], &frame[..]].concat()
}

fn receive(port: &mut dyn Port) -> Vec<Vec<u8>> {
    port.rx_sync().unwrap();
    let frames = port.rx().map(|frame| frame.to_vec()).collect();
    port.rx_sync().unwrap();
    frames
}

#[test]
fn a_long_segment_passes_a_switch_in_one_piece() {
    for header in [10, 12] {
        let provider = provider(Shape::default());
        let mut a = open_with_header(&provider, &format!("vale0:a@vnet={header}"));
        let mut b = open_with_header(&provider, "vale0:b@vnet=10");
        assert_eq!((a.caps().vnet_header, a.caps().mtu, a.caps().tx_checksum), (10, 1500, true));
        for payload in [0, 1, 1400, 1983, 1984, 1985, 1986, 4030, 4031, 4032, 4033, 65_000, 65_471] {
            let frame = segment(payload, 1448);
            assert!(a.tx().push(&frame), "{payload}");
            a.tx_sync().unwrap();
            assert_eq!(receive(&mut *b), std::slice::from_ref(&frame), "header of {header}, {payload} bytes");
            assert!(b.tx().push(&frame));
            b.tx_sync().unwrap();
            assert_eq!(receive(&mut *a), [frame], "and back");
        }
        let counters = a.counters();
        assert_eq!((counters.tx_frames, counters.rx_frames, counters.rx_dropped), (13, 13, 0));
        drop((a, b));
        assert_eq!(provider.violations(), Vec::<String>::new());
    }
}

/// A port without a header gets what it can take: the switch cuts and sums up.
#[test]
fn the_switch_cuts_for_a_port_without_a_header() {
    let provider = provider(Shape::default());
    let mut a = open_with_header(&provider, "vale0:a@vnet=12");
    let mut plain = open_one(&provider, "vale0:plain");
    assert!(a.tx().push(&segment(20_000, 1448)) && a.tx().push(&segment(100, 0)));
    a.tx_sync().unwrap();
    let frames = receive(&mut *plain);
    let whole = segment(20_000, 1448);
    let mut payload = Vec::new();
    for frame in &frames[..frames.len() - 1] {
        assert!(frame.len() <= 1514);
        assert_eq!(sum(&[pseudo(frame), frame[34..].to_vec()].concat()), 0xffff, "checksum");
        assert_eq!(sum(&frame[14..34]), 0xffff, "header checksum");
        payload.extend_from_slice(&frame[54..]);
    }
    assert_eq!(payload, whole[64..]);
    let short = frames.last().unwrap();
    assert_eq!(sum(&[pseudo(short), short[34..].to_vec()].concat()), 0xffff);
    // What comes from there has a header of zeroes.
    assert!(plain.tx().push(short) && plain.tx_sync().is_ok());
    assert_eq!(receive(&mut *a), [[&[0; 10], &short[..]].concat()]);
    drop((a, plain));
    assert_eq!(provider.violations(), Vec::<String>::new());
}

#[test]
fn whoever_does_not_know_the_header_is_refused() {
    let provider = provider(Shape::default());
    let _a = open_with_header(&provider, "vale0:a@vnet=12");
    let words = error(&provider, "vale0:a");
    assert!(words.contains("begin with a virtio-net header"), "{words}");
    // Whoever knows it is told how long it is.
    assert_eq!(open_with_header(&provider, "vale0:a").caps().vnet_header, 10);
    provider.add_nic("nma", ONE).unwrap();
    assert_eq!(open_with_header(&provider, "netmap:nma").caps().vnet_header, 0);
    let words = error(&provider, "netmap:nma@vnet=12");
    assert!(words.contains("ports of VALE alone"), "{words}");
    assert!(error(&provider, "vale0:b@vnet=11").contains("10 or 12 bytes"));
}

/// An interface that carries more than a buffer holds, and exists on every machine.
const LO: &str = "lo";

#[test]
fn packets_longer_than_a_buffer_come_and_go_in_one_piece() {
    let provider = provider(Shape::default());
    provider.add_nic(LO, NicShape { mtu: 65_536, ..ONE }).unwrap();
    let mut port = open_one(&provider, "netmap:lo");
    assert_eq!((port.caps().mtu, port.caps().frame_bytes_max), (65_517, 65_535));
    let frame = |len: usize| (0..len).map(|at| u8::try_from(at % 249).unwrap()).collect::<Vec<_>>();
    for len in [14, 2047, 2048, 2049, 4096, 9014, 65_535] {
        assert!(provider.send(LO, Side::Nic, 0, &frame(len)));
        assert_eq!(receive(&mut *port), [frame(len)], "{len}");
        assert!(port.tx().push(&frame(len)), "{len}");
        port.tx_sync().unwrap();
        assert_eq!(provider.receive(LO, Side::Nic), [(0, frame(len))]);
    }
    // More than a slot can say, and what follows is not hurt.
    assert!(provider.send(LO, Side::Nic, 0, &frame(65_536)));
    assert!(provider.send(LO, Side::Nic, 0, &frame(70_000)));
    assert!(provider.send(LO, Side::Nic, 0, &frame(60)));
    let came: Vec<_> = (0..3).flat_map(|_| receive(&mut *port)).collect();
    assert_eq!((came, port.counters().rx_dropped), (vec![frame(60)], 2));
    drop(port);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

/// The ring is too short for two long frames at once: the second waits, and so does a third that comes.
#[test]
fn long_frames_wait_for_room_both_ways() {
    let provider = provider(Shape::default());
    provider.add_nic(LO, NicShape { mtu: 65_536, slots: 32, ..ONE }).unwrap();
    let mut port = open_one(&provider, "netmap:lo");
    let frame = |n: u8| vec![n; 40_000];
    provider.set_room(LO, Side::Nic, 0);
    for n in 0..3 {
        assert!(port.tx().push(&frame(n)));
        port.tx_sync().unwrap();
    }
    assert!(port.resync_in().is_some(), "somebody has to look again");
    provider.set_room(LO, Side::Nic, 10);
    let mut sent = Vec::new();
    for _ in 0..5 {
        port.tx_sync().unwrap();
        sent.extend(provider.receive(LO, Side::Nic).into_iter().map(|(_, frame)| frame));
    }
    assert_eq!(sent, [frame(0), frame(1), frame(2)]);
    assert_eq!(port.resync_in(), None);
    for n in 0..3 {
        assert!(provider.send(LO, Side::Nic, 0, &frame(n)));
    }
    let mut came = Vec::new();
    for _ in 0..5 {
        came.extend(receive(&mut *port));
    }
    assert_eq!(came, [frame(0), frame(1), frame(2)]);
    drop(port);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

/// Long frames of ours stay whole beside the kernel, too.
#[test]
fn beside_the_kernel_long_frames_of_ours_are_whole() {
    let provider = provider(Shape::default());
    provider.add_nic(LO, NicShape { mtu: 65_536, ..ONE }).unwrap();
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let mut device = provider.open("netmap:lo", &options).unwrap();
    let ours = crate::Tuple::new([10, 0, 0, 2], 0, crate::Proto::TCP);
    device.steering.as_ref().unwrap().register(ours).unwrap();
    let long = segment(9000, 0)[10..].to_vec();
    let mut foreign = long.clone();
    foreign[33] = 99;
    for frame in [&foreign, &long, &foreign] {
        assert!(provider.send(LO, Side::Nic, 0, frame));
    }
    assert!(provider.send(LO, Side::Nic, 0, &[7; 60]));
    assert_eq!(receive(&mut *device.ports[0]), [long]);
    // The kernel's go there in fragments.
    let to_kernel = provider.receive(LO, Side::Host);
    assert_eq!(to_kernel.last(), Some(&(0, vec![7; 60])));
    let bodies: Vec<u8> = to_kernel.iter().flat_map(|(_, frame)| frame[34..].to_vec()).collect();
    assert_eq!(bodies, [&foreign[34..], &foreign[34..], &[7; 26]].concat());
    let counters = device.ports[0].counters();
    assert_eq!((counters.to_host, counters.to_host_dropped), (3, 0));
    drop(device);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

/// A frame of many small pieces: as many as the module can tell of (`NETMAP_MAX_FRAGS`), and no more.
#[test]
fn a_frame_of_too_many_pieces_is_dropped() {
    let provider = provider(Shape::default());
    let [mut a, mut b] = ["netmap:x{1", "netmap:x}1"].map(|name| open_one(&provider, name));
    for (pieces, dropped) in [(64, 0), (65, 1), (300, 2), (64, 2)] {
        for piece in 1..=pieces {
            let mut tx = a.tx();
            let mut slot = tx.slot().unwrap();
            slot[..20].fill(7);
            slot.commit_flags(20, if piece < pieces { crate::SlotFlags::MORE_FRAG } else { 0 });
        }
        a.tx_sync().unwrap();
        let want = if pieces > 64 { vec![] } else { vec![vec![7; 20 * pieces]] };
        assert_eq!((receive(&mut *b), b.counters().rx_dropped), (want, dropped), "{pieces} pieces");
    }
    drop((a, b));
    assert_eq!(provider.violations(), Vec::<String>::new());
}
