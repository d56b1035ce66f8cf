//! NIC and kernel over the provider: who gets which frame, by which buffers, and what happens when one side is full.

use super::*;
use crate::{Proto, Tuple, whose};

/// TCP from 10.0.0.9:`peer` to 10.0.0.1:`port`.
fn segment(port: u16, peer: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 20 + len];
    frame[12] = 8;
    frame[14] = 0x45;
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 1]);
    frame[34..36].copy_from_slice(&peer.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame
}

fn arp(n: u8) -> Vec<u8> {
    let mut frame = vec![n; 60];
    frame[12..14].copy_from_slice(&[8, 6]);
    frame
}

struct Bench {
    provider: Provider,
    device: Device,
}

impl Bench {
    fn new(shape: NicShape) -> Self {
        Self::on(Shape::default(), shape, "netmap:nma")
    }

    fn on(memory: Shape, shape: NicShape, name: &str) -> Self {
        let provider = provider(memory);
        provider.add_nic("nma", shape).unwrap();
        let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
        let device = provider.open(name, &options).unwrap();
        let steering = device.steering.as_ref().unwrap();
        steering.register(Tuple::new([10, 0, 0, 1], 80, Proto::TCP)).unwrap();
        Self { provider, device }
    }

    fn arrive(&self, ring: u16, frame: &[u8]) {
        assert!(self.provider.send("nma", Side::Nic, ring, frame));
    }

    /// One round of every shard: what is ours.
    fn round(&mut self) -> Vec<Vec<u8>> {
        let mut ours = Vec::new();
        for port in &mut self.device.ports {
            let said = port.rx_sync().unwrap() as usize;
            let before = ours.len();
            ours.extend(port.rx().map(|frame| frame.to_vec()));
            assert_eq!(ours.len() - before, said, "as many frames as it says");
            port.tx_sync().unwrap();
        }
        ours
    }

    fn to_kernel(&self) -> Vec<Vec<u8>> {
        self.provider.receive("nma", Side::Host).into_iter().map(|(_, frame)| frame).collect()
    }

    fn to_cable(&self) -> Vec<(u16, Vec<u8>)> {
        self.provider.receive("nma", Side::Nic)
    }

    fn counters(&self) -> Counters {
        self.device.ports[0].counters()
    }

    #[track_caller]
    fn end(self) {
        drop(self.device);
        assert_eq!((self.provider.violations(), self.provider.check_buffers()), (vec![], Ok(())));
    }
}

#[test]
fn what_is_ours_stays_and_the_rest_goes_to_the_kernel_and_back() {
    let mut bench = Bench::new(ONE);
    for round in 0..200_u8 {
        let (ours, ping, ssh) = (segment(80, u16::from(round), 30), arp(round), segment(22, 7, 99));
        for frame in [&ping, &ours, &ssh] {
            bench.arrive(0, frame);
        }
        let answer = arp(round.wrapping_add(1));
        assert!(bench.provider.send("nma", Side::Host, 0, &answer));
        let mut seen = bench.round();
        // The kernel's ring is looked at now and then.
        (0..20).for_each(|_| seen.extend(bench.round()));
        assert_eq!(seen, [ours]);
        assert_eq!(bench.to_kernel(), [ping, ssh]);
        assert_eq!(bench.to_cable(), [(0, answer)]);
    }
    let counters = bench.counters();
    assert_eq!((counters.rx_frames, counters.to_host, counters.from_host), (200, 400, 200));
    assert_eq!(counters.rx_bytes, 200 * 84);
    assert_eq!((counters.to_host_waited, counters.to_host_dropped, counters.from_host_waited), (0, 0, 0));
    bench.end();
}

#[test]
fn frames_move_with_their_buffers_and_are_not_copied() {
    let mut bench = Bench::new(ONE);
    let before = bench.provider.slot_buffers("nma");
    bench.arrive(0, &arp(1));
    assert_eq!(bench.round().len(), 0);
    let after = bench.provider.slot_buffers("nma");
    // tx rings: NIC, host; then rx rings: NIC, host.
    assert_eq!((after[1][0], after[2][0]), (before[2][0], before[1][0]), "host tx and NIC rx changed places");
    assert!(bench.provider.send("nma", Side::Host, 0, &arp(2)));
    (0..20).for_each(|_| assert_eq!(bench.round().len(), 0));
    let last = bench.provider.slot_buffers("nma");
    assert_eq!((last[0][0], last[3][0]), (after[3][0], after[0][0]), "NIC tx and host rx changed places");
    assert_eq!(bench.to_cable().len(), 1);
    bench.end();
}

/// Frames that begin somewhere in their buffers go with those, and what is built in a slot that has been elsewhere is found there.
#[test]
fn frames_at_offsets_pass_both_ways() {
    let mut bench = Bench::on(Shape::default(), NicShape { slots: 16, ..ONE }, "netmap:nma@offset=64");
    for round in 0..100_u8 {
        let (ours, ping, answer) = (segment(80, u16::from(round), 30), arp(round), arp(!round));
        bench.arrive(0, &ping);
        bench.arrive(0, &ours);
        assert!(bench.provider.send("nma", Side::Host, 0, &answer));
        // Not in every round, so that both meet in the same slots.
        let own = (round % 3 > 0).then(|| segment(1000 + u16::from(round), 80, 20));
        assert!(own.iter().all(|own| bench.device.ports[0].tx().push(own)));
        let mut seen = Vec::new();
        (0..20).for_each(|_| seen.extend(bench.round()));
        assert_eq!((seen, bench.to_kernel()), (vec![ours], vec![ping]));
        let mut left = bench.to_cable();
        left.sort();
        let mut want: Vec<_> = own.into_iter().chain([answer]).map(|frame| (0, frame)).collect();
        want.sort();
        assert_eq!(left, want);
    }
    bench.end();
}

#[test]
fn registering_decides_from_the_next_frame_on() {
    let mut bench = Bench::new(ONE);
    bench.arrive(0, &segment(81, 5, 1));
    assert_eq!((bench.round().len(), bench.to_kernel().len()), (0, 1));
    let tuple = Tuple::new([10, 0, 0, 1], 81, Proto::TCP);
    bench.device.steering.as_ref().unwrap().register(tuple).unwrap();
    bench.arrive(0, &segment(81, 5, 1));
    assert_eq!((bench.round().len(), bench.to_kernel().len()), (1, 0));
    bench.device.steering.as_ref().unwrap().unregister(tuple).unwrap();
    bench.arrive(0, &segment(81, 5, 1));
    assert_eq!((bench.round().len(), bench.to_kernel().len()), (0, 1));
    bench.end();
}

#[test]
fn fragments_of_ours_follow_their_first() {
    let mut bench = Bench::new(ONE);
    let fragment = |port: u16, ident: u8, offset: u8, more: bool| {
        let mut frame = segment(port, 5, 40);
        frame[19] = ident;
        (frame[20], frame[21]) = (if more { 0x20 } else { 0 }, offset);
        frame
    };
    for frame in [fragment(80, 1, 0, true), fragment(22, 2, 0, true), fragment(0, 1, 5, false)] {
        bench.arrive(0, &frame);
    }
    bench.arrive(0, &fragment(0, 2, 5, false));
    assert_eq!((bench.round().len(), bench.to_kernel().len()), (2, 2));
    bench.end();
}

/// The table of all that steers; by several rings, as a NIC may spread fragments.
#[test]
fn everybody_gets_what_is_his() {
    for rings in [1, 2] {
        let mut bench = Bench::new(NicShape { rings, ..ONE });
        let steering = bench.device.steering.clone().unwrap();
        steering.unregister(Tuple::new([10, 0, 0, 1], 80, Proto::TCP)).unwrap();
        whose::register(&*steering).unwrap();
        for (case, ring) in whose::cases().iter().zip((0..rings).cycle()) {
            bench.arrive(ring, &case.frame);
            let (ours, theirs) = (bench.round(), bench.to_kernel());
            let want = std::slice::from_ref(&case.frame);
            let want = match (case.ours, case.unknown) {
                (true, _) => (want, &[][..]),
                (_, true) => (want, want),
                _ => (&[][..], want),
            };
            assert_eq!((&ours[..], &theirs[..]), want, "{}, {rings} rings", case.what);
        }
        bench.end();
    }
}

#[test]
fn a_frame_of_several_slots_goes_one_way() {
    let mut bench = Bench::new(ONE);
    // The second slot of the kernel's frame begins with what reads as a segment of ours.
    let mut foreign = arp(3);
    foreign.resize(2048, 0);
    foreign.extend(segment(80, 5, 10));
    bench.arrive(0, &foreign);
    let ours = segment(80, 5, 3000);
    bench.arrive(0, &ours);
    bench.arrive(0, &arp(4));
    assert_eq!(bench.round().concat(), ours);
    // The module makes a frame of every slot that goes to the host, and this one is no packet that could be cut.
    assert_eq!(bench.to_kernel(), [arp(4)]);
    assert_eq!((bench.counters().to_host, bench.counters().to_host_dropped), (1, 1));
    bench.end();
}

/// A datagram to port 53 of 10.0.0.1, in a packet of that many bytes behind the header, whose first are its ports.
fn datagram(number: u8, len: usize) -> Vec<u8> {
    let mut frame = segment(53, 5, 0);
    frame.truncate(38);
    frame[23] = 17;
    frame[16..18].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
    frame[19] = number;
    frame.extend((4..len).map(|n| u8::try_from(n % 251).unwrap() ^ number));
    frame
}

/// What a kernel makes of fragments that came one packet after the other: packets.
fn joined_up(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for frame in frames {
        let word = u16::from_be_bytes([frame[20], frame[21]]);
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        assert_eq!(total, frame.len() - 14);
        if word & 0x1fff == 0 {
            all.push(frame.clone());
            continue;
        }
        let packet = all.last_mut().unwrap();
        assert_eq!(usize::from(word & 0x1fff) * 8, packet.len() - 34, "in order, and nothing is missing");
        assert_eq!(packet[18..20], frame[18..20], "of one packet");
        packet.extend(&frame[34..]);
    }
    for packet in &mut all {
        let total = u16::try_from(packet.len() - 14).unwrap();
        packet[16..18].copy_from_slice(&total.to_be_bytes());
        packet[20..22].fill(0);
        packet[24..26].fill(0);
    }
    all
}

/// What is longer than a buffer and not ours: the kernel gets every byte, in fragments that fit its ring.
#[test]
fn long_packets_reach_the_kernel_whole() {
    let mut bench = Bench::new(NicShape { mtu: 9000, slots: 64, ..ONE });
    for number in 0..100 {
        let (foreign, ours) = (datagram(number, 8000), segment(80, 5, 3000));
        for frame in [&arp(1), &foreign, &ours, &arp(2)] {
            bench.arrive(0, frame);
        }
        assert_eq!(bench.round(), [ours]);
        let mut to_kernel = bench.to_kernel();
        assert_eq!((to_kernel.remove(0), to_kernel.pop()), (arp(1), Some(arp(2))));
        assert!(to_kernel.len() > 3 && to_kernel.iter().all(|frame| frame.len() <= 2048));
        assert_eq!(joined_up(&to_kernel), [foreign]);
    }
    let counters = bench.counters();
    assert_eq!((counters.to_host, counters.to_host_dropped, counters.to_host_waited), (300, 0, 0));
    bench.end();
}

/// All of a packet waits for the kernel, or is dropped: some of its fragments are of no use.
#[test]
fn long_packets_wait_whole_or_are_dropped_whole() {
    let mut bench = Bench::new(NicShape { slots: 18, ..ONE });
    bench.provider.set_room("nma", Side::Host, 0);
    for number in 0..100 {
        bench.arrive(0, &datagram(number, 9000));
        assert_eq!(bench.round().len(), 0);
    }
    // Five fragments each: three times in seventeen slots, of which two are left over; 51 times in 256 buffers.
    let counters = bench.counters();
    assert_eq!((counters.to_host, counters.to_host_waited, counters.to_host_dropped), (54, 51, 46));
    bench.provider.set_room("nma", Side::Host, 10_000);
    let mut seen = Vec::new();
    for _ in 0..100 {
        assert_eq!(bench.round().len(), 0);
        seen.extend(bench.to_kernel());
    }
    assert_eq!(joined_up(&seen), (0..54).map(|number| datagram(number, 9000)).collect::<Vec<_>>());
    bench.end();
}

/// The kernel takes nothing for a while: frames wait in extra buffers, then are dropped, and ours are not held up.
#[test]
fn a_kernel_that_takes_nothing_holds_nobody_up() {
    let mut bench = Bench::new(NicShape { slots: 16, ..ONE });
    bench.provider.set_room("nma", Side::Host, 0);
    let total = 16 + 256 + 40;
    let mut ours = 0;
    for n in 0..total {
        let mut frame = arp(1);
        frame[50..54].copy_from_slice(&u32::try_from(n).unwrap().to_be_bytes());
        bench.arrive(0, &frame);
        bench.arrive(0, &segment(80, 5, 1));
        ours += bench.round().len();
    }
    assert_eq!(ours, total);
    let counters = bench.counters();
    assert_eq!((counters.to_host, counters.to_host_waited), (15 + 256, 256));
    assert_eq!(counters.to_host_dropped, total as u64 - 15 - 256);
    assert!(bench.device.ports[0].resync_in().is_some(), "somebody has to look again");
    bench.provider.set_room("nma", Side::Host, 10_000);
    let mut seen = Vec::new();
    for _ in 0..100 {
        bench.round();
        seen.extend(bench.to_kernel());
    }
    let numbers = seen.iter().map(|f| u32::from_be_bytes(f[50..54].try_into().unwrap()));
    assert_eq!(numbers.collect::<Vec<_>>(), (0..15 + 256).collect::<Vec<_>>(), "in order, and none twice");
    assert_eq!(bench.device.ports[0].resync_in(), None);
    bench.end();
}

#[test]
fn what_still_waits_at_the_end_gives_its_buffers_back() {
    let mut bench = Bench::new(NicShape { slots: 16, ..ONE });
    bench.provider.set_room("nma", Side::Host, 0);
    for n in 0..40 {
        bench.arrive(0, &arp(n));
        bench.round();
    }
    assert_eq!(bench.counters().to_host_waited, 25);
    bench.end();
}

/// The NIC is stuck: frames of the kernel stay in its ring, which then pushes back; nothing is lost here.
#[test]
fn a_nic_without_room_pushes_back_to_the_kernel() {
    let mut bench = Bench::new(NicShape { slots: 16, ..ONE });
    bench.provider.set_room("nma", Side::Nic, 0);
    let mut accepted = 0;
    for n in 0..200 {
        accepted += usize::from(bench.provider.send("nma", Side::Host, 0, &arp(n)));
        bench.round();
    }
    assert!(accepted < 60, "{accepted} frames were taken from the kernel");
    let waited = bench.counters().from_host_waited;
    assert!(waited > 0 && waited < 5, "counted {waited} times, not for every round");
    assert!(bench.device.ports[0].resync_in().is_some());
    assert!(!bench.device.ports[0].arm().unwrap() || bench.device.ports[0].resync_in().is_some());
    bench.provider.set_room("nma", Side::Nic, 10_000);
    let mut seen = 0;
    for _ in 0..100 {
        bench.round();
        seen += bench.to_cable().len();
    }
    assert_eq!(seen, accepted);
    bench.end();
}

/// Whoever floods, the kernel or us, leaves the other its share of the NIC.
#[test]
fn both_sides_get_their_share_of_the_nic() {
    let mut bench = Bench::new(NicShape { slots: 64, ..ONE });
    let (mut ours, mut theirs) = (0, 0);
    for _ in 0..200 {
        while bench.provider.send("nma", Side::Host, 0, &arp(9)) {}
        bench.provider.set_room("nma", Side::Nic, 8);
        let port = &mut bench.device.ports[0];
        port.rx_sync().unwrap();
        while port.tx().push(&segment(1000, 80, 10)) {}
        port.tx_sync().unwrap();
        for (_, frame) in bench.to_cable() {
            *if frame.len() == 60 { &mut theirs } else { &mut ours } += 1;
        }
    }
    // Sixteen hundred left, and who sent first had a ring full of them.
    assert!(ours > 600 && theirs > 600, "ours {ours}, the kernel's {theirs}");
    bench.end();
}

#[test]
fn a_sleeper_is_woken_by_the_cable_and_by_the_kernel() {
    let mut bench = Bench::new(ONE);
    let woken = |port: &dyn Port| {
        let mut fds: Vec<_> = port
            .poll_fds()
            .iter()
            .map(|poll| libc::pollfd { fd: poll.fd, events: poll.events, revents: 0 })
            .collect();
        crate::sys::poll(&mut fds, Duration::ZERO)
    };
    for _ in 0..3 {
        for side in [Side::Nic, Side::Host] {
            bench.round();
            assert!(bench.device.ports[0].arm().unwrap());
            assert!(!woken(&*bench.device.ports[0]));
            assert!(bench.provider.send("nma", side, 0, &arp(1)));
            assert!(woken(&*bench.device.ports[0]), "{side:?}");
            bench.round();
            assert_eq!(
                (bench.to_cable().len(), bench.to_kernel().len()),
                match side {
                    Side::Nic => (0, 1),
                    Side::Host => (1, 0),
                }
            );
        }
    }
    bench.end();
}

#[test]
fn several_shards_share_the_kernels_rings() {
    for host_rings in [1, 2, 3] {
        let mut bench = Bench::new(NicShape { rings: 3, host_rings, slots: 32, ..ONE });
        assert_eq!(bench.device.ports.len(), 3);
        for n in 0..50 {
            for ring in 0..3 {
                bench.arrive(ring, &arp(n));
                bench.arrive(ring, &segment(80, ring, 1));
            }
            assert!(bench.provider.send("nma", Side::Host, u16::from(n) % host_rings, &arp(n)));
            assert_eq!(bench.round().len(), 3);
            assert_eq!(bench.to_kernel().len(), 3);
        }
        (0..40).for_each(|_| assert_eq!(bench.round().len(), 0));
        assert_eq!(bench.to_cable().len(), 50, "{host_rings} host rings");
        bench.end();
    }
}

#[test]
fn one_ring_of_a_nic_and_an_old_module_serve_as_well() {
    for (legacy, name) in [(false, "netmap:nma-1"), (true, "netmap:nma")] {
        let shape = Shape { legacy, ..Shape::default() };
        let mut bench = Bench::on(shape, NicShape { rings: 2, ..ONE }, name);
        bench.arrive(1, &arp(1));
        bench.arrive(1, &segment(80, 5, 1));
        assert_eq!((bench.round().len(), bench.to_kernel().len()), (1, 1), "{name}");
        bench.end();
    }
}

#[test]
fn one_direction_alone_is_refused() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    for name in ["netmap:nma/R", "netmap:nma/T", "netmap:nma/t"] {
        let error = provider.open(name, &options).err().unwrap().to_string();
        assert!(error.contains("both directions are needed"), "{name}: {error}");
    }
}

#[test]
fn the_kernels_rings_alone_make_a_port() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let mut device = provider.open("netmap:nma^", &options).unwrap();
    assert!(device.steering.is_none());
    assert!(provider.send("nma", Side::Host, 0, b"from the kernel"));
    let port = &mut device.ports[0];
    port.rx_sync().unwrap();
    assert_eq!(port.rx().next().unwrap().bytes(), b"from the kernel");
    assert!(port.tx().push(b"a frame to the kernel"));
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nma", Side::Host), [(0, b"a frame to the kernel".to_vec())]);
}
