//! Ports over the provider: the conformance suite, the host rings, and what a module may do to us.

use super::*;
use crate::conformance::{self, Pair};
use crate::provider::{NicShape, Provider, Shape, Side};
use crate::{Proto, Tuple};

const ONE: NicShape = NicShape { rings: 1, host_rings: 1, slots: 64 };

fn provider(shape: Shape) -> Provider {
    Provider::new(shape).unwrap()
}

fn open_one(provider: &Provider, device: &str) -> Box<dyn Port> {
    provider.open(device, &OpenOptions::default()).unwrap().ports.remove(0)
}

fn error(provider: &Provider, device: &str) -> String {
    provider.open(device, &OpenOptions::default()).err().unwrap().to_string()
}

#[track_caller]
fn conforms(provider: &Provider, a: &str, b: &str) {
    let (a, b) = (open_one(provider, a), open_one(provider, b));
    let frame = |_, len: usize| (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let skip = &["idle syncs cost no system call"];
    let mut pair =
        Pair { a, b, frame: Box::new(frame), frame_len_min: 14, pushes_back: true, kicks_max: 1, skip };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
    drop(pair);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

fn joined(shape: Shape) -> Provider {
    let provider = provider(shape);
    for nic in ["nma", "nmb"] {
        provider.add_nic(nic, NicShape { rings: 2, ..ONE }).unwrap();
    }
    provider.join("nma", "nmb");
    provider
}

#[test]
fn two_nics_and_a_cable_conform() {
    conforms(&joined(Shape::default()), "netmap:nma-0", "netmap:nmb-0");
}

#[test]
fn the_second_ring_conforms_as_well() {
    conforms(&joined(Shape::default()), "netmap:nma-1", "netmap:nmb-1");
}

#[test]
fn an_old_module_conforms() {
    let provider = joined(Shape { legacy: true, ..Shape::default() });
    assert_eq!(open_one(&provider, "netmap:nma-1").caps().mode, "netmap (old interface)");
    conforms(&provider, "netmap:nma-1", "netmap:nmb-1");
}

#[test]
fn names_lead_to_rings() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { rings: 3, host_rings: 2, slots: 16 }).unwrap();
    let names = |device: &str| {
        let ports = provider.open(device, &OpenOptions::default()).unwrap().ports;
        ports.iter().map(|port| port.caps().name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("netmap:nma"), "netmap:nma-0 netmap:nma-1 netmap:nma-2");
    assert_eq!(names("netmap:nma-2"), "netmap:nma-2");
    assert_eq!(names("netmap:nma^"), "netmap:nma^ netmap:nma^1");
    assert_eq!(names("netmap:nma^1"), "netmap:nma^1");
    assert_eq!(names("netmap:nma*"), "netmap:nma-0 netmap:nma-1 netmap:nma-2 netmap:nma^ netmap:nma^1");
    assert!(error(&provider, "netmap:nma-3").contains("use nma-0 … nma-2"));
    assert!(error(&provider, "netmap:nma^2").contains("has 2 queue(s)"));
    assert!(error(&provider, "netmap:nmx").contains("no interface named \"nmx\""));
    assert!(error(&provider, "netmap:nma@7").contains("Invalid argument"));
    let held = open_one(&provider, "netmap:nma-1/x");
    assert!(error(&provider, "netmap:nma-1").contains("is in use"));
    drop(held);
    let reader = open_one(&provider, "netmap:nma-1/R");
    assert_eq!((reader.caps().rx_slots, reader.caps().tx_slots), (16, 0));
    let mut writer = open_one(&provider, "netmap:nma-1/T");
    assert_eq!((writer.caps().rx_slots, writer.caps().tx_slots), (0, 16));
    assert!(writer.tx().push(b"out") && writer.tx_sync().unwrap() > 0 && writer.rx_sync().unwrap() == 0);
    assert_eq!(provider.receive("nma", Side::Nic), [(1, b"out".to_vec())]);
}

#[test]
fn one_direction_alone_sends_nothing_the_other_way_and_costs_nothing() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut reader = open_one(&provider, "netmap:nma/R");
    assert!(!reader.tx().push(b"never"));
    for _ in 0..10 {
        reader.tx_sync().unwrap();
    }
    assert_eq!(reader.counters().tx_syscalls, 0);
    provider.send("nma", Side::Nic, 0, b"in");
    assert_eq!(reader.rx_sync().unwrap(), 1);
    assert_eq!(reader.rx().next().unwrap().bytes(), b"in");
}

/// A module of VALE writes the number of fragments above the flags.
#[test]
fn bits_above_the_flags_mean_nothing() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    provider.set_high_flags("nma", 0x2300);
    let mut port = open_one(&provider, "netmap:nma");
    provider.send("nma", Side::Nic, 0, b"one");
    provider.send("nma", Side::Nic, 0, b"two");
    port.rx_sync().unwrap();
    let (mut rx, mut tx) = port.rings();
    assert!(!rx.peek().unwrap().more() && rx.forward(&mut tx) && rx.forward(&mut tx));
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nma", Side::Nic), [(0, b"one".to_vec()), (0, b"two".to_vec())]);
    assert_eq!(provider.violations(), Vec::<String>::new());
}

#[test]
fn a_frame_of_several_slots_is_passed_in_pieces_both_ways() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    let long: Vec<u8> = (0..5000).map(|i| u8::try_from(i % 249).unwrap()).collect();
    provider.send("nma", Side::Nic, 0, &long);
    assert_eq!(port.rx_sync().unwrap(), 3);
    let (mut rx, mut tx) = port.rings();
    let more: Vec<bool> = (0..3).map(|_| (rx.peek().unwrap().more(), rx.forward(&mut tx)).0).collect();
    assert_eq!(more, [true, true, false]);
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nma", Side::Nic), [(0, long)]);
}

#[test]
fn a_nic_that_is_removed_is_gone_for_the_port() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    assert!(port.arm().unwrap());
    provider.remove("nma");
    let mut fds =
        [libc::pollfd { fd: port.poll_fds().iter().next().unwrap().fd, events: libc::POLLIN, revents: 0 }];
    assert!(crate::sys::poll(&mut fds, Duration::ZERO), "a sleeper is woken");
    let words = port.rx_sync().unwrap_err().to_string();
    assert!(words.starts_with("netmap:nma-0 is gone (No such device or address"), "{words}");
    assert!(port.tx().push(b"x"));
    assert!(port.tx_sync().is_err());
    drop(port);
    assert!(error(&provider, "netmap:nma").contains("no interface named"));
    provider.add_nic("nma", ONE).unwrap();
    let mut again = open_one(&provider, "netmap:nma");
    provider.send("nma", Side::Nic, 0, b"back");
    assert_eq!(again.rx_sync().unwrap(), 1);
}

#[test]
fn the_time_of_a_sync_is_told_to_who_asks() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut silent = open_one(&provider, "netmap:nma");
    silent.rx_sync().unwrap();
    assert_eq!(silent.rx_time(), None);
    drop(silent);
    let options = OpenOptions { timestamps: true, ..OpenOptions::default() };
    let mut port = provider.open("netmap:nma", &options).unwrap().ports.remove(0);
    let before = std::time::UNIX_EPOCH.elapsed().unwrap();
    port.rx_sync().unwrap();
    let told = port.rx_time().unwrap();
    let after = std::time::UNIX_EPOCH.elapsed().unwrap();
    assert!(before.as_micros() <= told.as_micros() && told <= after, "{before:?} {told:?} {after:?}");
}

/// One sync for a batch, none while the rings have room.
#[test]
fn a_thousand_frames_cost_a_counted_number_of_syncs() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { slots: 256, ..ONE }).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    let before = port.counters();
    for _ in 0..20 {
        for n in 0..50_u8 {
            assert!(provider.send("nma", Side::Nic, 0, &[n; 60]));
        }
        while port.rx_sync().unwrap() > 0 {
            let (mut rx, mut tx) = port.rings();
            while rx.forward(&mut tx) {}
            port.tx_sync().unwrap();
        }
        assert_eq!(provider.receive("nma", Side::Nic).len(), 50);
    }
    let after = port.counters();
    assert_eq!(after.rx_frames, 1000);
    // For each batch of 50, one call shows it, one sends it, one finds the ring empty.
    assert_eq!((after.rx_syscalls - before.rx_syscalls, after.tx_syscalls - before.tx_syscalls), (40, 20));
    for _ in 0..100 {
        port.tx_sync().unwrap();
    }
    assert_eq!(port.counters().tx_syscalls, after.tx_syscalls, "nothing to send, room enough");
}

mod beside_the_kernel {
    use super::*;

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
        assert_eq!(
            (after[1][0], after[2][0]),
            (before[2][0], before[1][0]),
            "host tx and NIC rx changed places"
        );
        assert!(bench.provider.send("nma", Side::Host, 0, &arp(2)));
        (0..20).for_each(|_| assert_eq!(bench.round().len(), 0));
        let last = bench.provider.slot_buffers("nma");
        assert_eq!((last[0][0], last[3][0]), (after[3][0], after[0][0]), "NIC tx and host rx changed places");
        assert_eq!(bench.to_cable().len(), 1);
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
        assert_eq!(bench.round().concat(), ours);
        assert_eq!(bench.to_kernel(), [foreign]);
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
        assert_eq!(
            numbers.collect::<Vec<_>>(),
            (0..15 + 256).collect::<Vec<_>>(),
            "in order, and none twice"
        );
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
        assert!(ours > 300 && theirs > 300, "ours {ours}, the kernel's {theirs}");
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
            let mut bench = Bench::new(NicShape { rings: 3, host_rings, slots: 32 });
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
        assert!(port.tx().push(b"to the kernel"));
        port.tx_sync().unwrap();
        assert_eq!(provider.receive("nma", Side::Host), [(0, b"to the kernel".to_vec())]);
    }
}
