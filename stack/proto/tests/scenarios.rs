//! Whole connections in particular trouble, each with some seeds.

mod common;

use common::{Link, Peer, Rng, World};
use utcp_proto::{
    Config, CongestionKind, Duration, EcnMode, Events, Keepalive, MtuProbing, SocketError, State, TxLimits,
    UserCall,
};

/// Sends `total` bytes from side 0 and reads them on side 1, until all are there or an error ends it.
#[track_caller]
fn bulk(world: &mut World, total: u64, limit: Duration) {
    let end = world.now + limit;
    while world.hosts[1].rx_total < total {
        if world.hosts[0].tx_total < total && world.hosts[0].queued() < 200_000 {
            let n = (total - world.hosts[0].tx_total).min(50_000);
            world.send(0, n as u32);
        }
        let next = world.next_event();
        assert!(!next.is_never(), "stalled at {} of {total}", world.hosts[1].rx_total);
        assert!(next < end, "too slow: {} of {total}", world.hosts[1].rx_total);
        world.run_until(next);
        world.read(1, u64::MAX);
    }
}

fn link(ms: u64) -> Link {
    Link { delay: Duration::from_millis(ms), rate: 1_000_000, queue: 100_000, ..Link::PERFECT }
}

fn cfg() -> Config {
    Config { recv_capacity: 200_000, recv_capacity_max: 200_000, ..Config::DEFAULT }
}

#[test]
fn an_outage_is_survived() {
    for seed in 0..20 {
        let mut world = World::new(seed, Link { loss: 5_000, ..link(20) }, cfg(), cfg());
        world.establish();
        bulk(&mut world, 100_000, Duration::from_secs(60));
        world.down_until = world.now + Duration::from_secs(1 + seed * 3);
        bulk(&mut world, 400_000, Duration::from_secs(400));
        assert_eq!(world.hosts[0].error, None);
        assert_eq!(world.hosts[0].tcb().info(world.now).snd_mss, 1_448, "an outage is no black hole");
    }
}

/// The start runs over the end of a long path's queue, which leaves hundreds of holes. What was lost goes again, once and not as often as
/// there is time for, and none of it waits for a timeout: of 14 MB that the path carries in six seconds, most arrive.
#[test]
fn an_overrun_is_repeated_once() {
    for (kind, most, least) in [
        (CongestionKind::Cubic, 400, 10_000_000),
        (CongestionKind::NewReno, 400, 8_000_000),
        (CongestionKind::Bbr, 600, 10_000_000),
    ] {
        let link =
            Link { delay: Duration::from_millis(100), rate: 2_500_000, queue: 150_000, ..Link::PERFECT };
        let config = Config {
            congestion: kind,
            recv_capacity: 4 << 20,
            recv_capacity_max: 4 << 20,
            ..Config::DEFAULT
        };
        let mut world = World::new(1, link, config, config);
        world.establish();
        let end = world.now + Duration::from_secs(6);
        while world.now < end {
            if world.hosts[0].queued() < 1 << 20 {
                world.send(0, 1 << 19);
            }
            world.run_until((world.now + Duration::from_millis(5)).min(end));
            world.read(1, u64::MAX);
        }
        assert!((100..most).contains(&world.lost), "{kind:?}: {} frames found the queue full", world.lost);
        let arrived = world.hosts[1].rx_total;
        assert!(arrived > least, "{kind:?}: {arrived} bytes arrived");
    }
}

/// A path that swallows large packets without a word (RFC 4821 §7.7).
#[test]
fn an_mtu_black_hole_is_found() {
    for seed in 0..5 {
        let mut world = World::new(seed, Link { mtu: 1_280, ..link(10) }, cfg(), cfg());
        world.establish();
        bulk(&mut world, 300_000, Duration::from_secs(120));
        let info = world.hosts[0].tcb().info(world.now);
        assert!(info.snd_mss <= 1_024, "{}", info.snd_mss);
    }
}

/// RFC 1191, RFC 8201: a router that says what the path carries is believed, at once.
#[test]
fn a_router_tells_the_mtu() {
    for (v6, mtu, mss) in
        [(false, 1_300, 1_248), (false, 576, 524), (true, 1_400, 1_328), (true, 1_280, 1_208)]
    {
        let mut world = World::new(7, Link { mtu, tells: 1_000_000, ..link(10) }, cfg(), cfg());
        if v6 {
            world.use_v6();
        }
        world.establish();
        bulk(&mut world, 300_000, Duration::from_secs(3));
        let info = world.hosts[0].tcb().info(world.now);
        assert_eq!((info.snd_mss, world.hosts[0].told_too_big > 0), (mss, true), "v6 {v6}, MTU {mtu}");
        assert!(info.bytes_retrans <= 14_480, "more than the first window, again: {}", info.bytes_retrans);
    }
}

/// RFC 3168 end to end: on a path that marks and loses nothing, the sender slows down and sends nothing twice.
#[test]
fn a_path_that_marks() {
    for v6 in [false, true] {
        let ecn = Config { ecn: EcnMode::Active, ..cfg() };
        let mut world = World::new(8, Link { mark: 20_000, ..link(10) }, ecn, ecn);
        if v6 {
            world.use_v6();
        }
        world.establish();
        bulk(&mut world, 2_000_000, Duration::from_secs(60));
        let info = world.hosts[0].tcb().info(world.now);
        assert!(info.snd_ssthresh < 100, "it never slowed down: {}", info.snd_ssthresh);
        assert_eq!((info.total_retrans, world.lost), (0, 0));
    }
}

/// RFC 4821: from below, or after a black hole, the largest size that the path carries is found, give or take eight bytes.
#[test]
fn probing_finds_the_mtu_of_the_path() {
    for probing in [MtuProbing::AfterBlackHole, MtuProbing::Always] {
        for (seed, mtu) in [(0, 1_280), (1, 1_100), (2, 1_500), (3, 576)] {
            let client = Config { mtu_probing: probing, ..cfg() };
            let mut world = World::new(seed, Link { mtu, ..link(10) }, client, cfg());
            world.establish();
            bulk(&mut world, 2_000_000, Duration::from_secs(300));
            let info = world.hosts[0].tcb().info(world.now);
            // Headers without options, and the timestamps that are in every segment.
            let largest = (mtu as u32).min(1_500) - 40 - 12;
            let found = largest - 8..=largest;
            assert!(found.contains(&info.snd_mss), "{probing:?} {mtu}: {}", info.snd_mss);
        }
    }
}

/// The same on a path that loses every hundredth packet: sizes are found late or not at all, but nothing stalls.
#[test]
fn probing_on_a_lossy_path() {
    for seed in 0..5 {
        let client = Config { mtu_probing: MtuProbing::Always, ..cfg() };
        let mut world = World::new(seed, Link { mtu: 1_280, loss: 10_000, ..link(10) }, client, cfg());
        world.establish();
        bulk(&mut world, 2_000_000, Duration::from_secs(300));
        let info = world.hosts[0].tcb().info(world.now);
        assert!((1_000..=1_228).contains(&info.snd_mss), "seed {seed}: {}", info.snd_mss);
    }
}

/// Linux, sysctl tcp_retries2 and the user timeout: a link that is gone ends both connections.
#[test]
fn a_dead_link_ends_the_connection() {
    let client = Config { user_timeout: Duration::from_secs(30), ..cfg() };
    let keep = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(5), probes: 4 };
    let mut world = World::new(1, link(10), client, Config { keepalive: Some(keep), ..cfg() });
    world.establish();
    bulk(&mut world, 100_000, Duration::from_secs(60));
    world.down_until = utcp_proto::Instant::NEVER;
    let from = world.now;
    world.send(0, 1_000);
    world.run_for(Duration::from_secs(31));
    assert_eq!(world.hosts[0].error, Some(SocketError::TimedOut));
    world.run_until(from + Duration::from_secs(100));
    assert_eq!(world.hosts[1].error, Some(SocketError::TimedOut));
    assert!(world.next_event().is_never());
}

/// RFC 9293 §3.5.1: one end forgot everything; the other learns of it as soon as it sends.
#[test]
fn a_reboot_resets_the_survivor() {
    for seed in 0..10 {
        let mut world = World::new(seed, link(10), cfg(), cfg());
        world.establish();
        bulk(&mut world, 50_000, Duration::from_secs(60));
        world.run_for(Duration::from_secs(1));
        world.hosts[1].peer = Peer::Listen;
        world.send(0, 100);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.hosts[0].error, Some(SocketError::Reset), "seed {seed}");
    }
}

/// RFC 9293 §3.5.1, figure 9: the rebooted end connects again over the same four-tuple while the other holds the old
/// connection: challenge ACK, reset, and the new connection stands.
#[test]
fn a_reboot_and_a_new_connection() {
    let mut world = World::new(3, link(10), cfg(), cfg());
    world.establish();
    bulk(&mut world, 50_000, Duration::from_secs(60));
    world.run_for(Duration::from_secs(1));
    world.hosts[0].peer = Peer::None;
    world.connect();
    world.run_for(Duration::from_millis(100));
    // The old connection is gone; a listener is there for the next SYN.
    assert_eq!(world.hosts[1].error, Some(SocketError::Reset));
    assert_eq!(world.hosts[0].state(), State::SynSent);
    world.hosts[1].peer = Peer::Listen;
    world.hosts[1].closed = false;
    world.run_for(Duration::from_secs(2));
    assert_eq!((world.hosts[0].state(), world.hosts[1].state()), (State::Established, State::Established));
}

/// RFC 9293 §3.5, figure 7, with loss on top.
#[test]
fn simultaneous_open_over_a_lossy_link() {
    for seed in 0..50 {
        let lossy = Link { loss: 200_000, ..link(30) };
        let mut world = World::new(seed, lossy, cfg(), cfg());
        world.connect_from(0);
        world.connect_from(1);
        let end = world.now + Duration::from_secs(100);
        while !world.hosts.iter().all(|h| h.events.any(Events::CONNECTED)) && world.now < end {
            assert!(world.step(), "seed {seed}: stalled");
        }
        if world.hosts.iter().any(|h| h.error.is_some()) {
            continue;
        }
        bulk(&mut world, 5_000, Duration::from_secs(1_000));
    }
}

/// ABORT at any moment: the other end hears of it or times out, and nothing is left.
#[test]
fn abort_at_any_moment() {
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let lossy = Link { loss: rng.pick(&[0, 100_000]), reorder: 50_000, ..link(10) };
        let server = Config { user_timeout: Duration::from_secs(20), ..cfg() };
        let mut world = World::new(seed, lossy, cfg(), server);
        world.establish();
        world.send(0, 100_000);
        world.send(1, 100_000);
        world.run_for(Duration::from_millis(rng.below(400)));
        world.call(0, UserCall::Abort);
        world.run_for(Duration::from_secs(1));
        // Where the RST was lost and nothing is in flight, only the next segment brings the truth.
        if world.hosts[1].has_tcb() {
            world.send(1, 10);
        }
        world.run_for(Duration::from_secs(100));
        assert!(world.hosts[0].closed && world.hosts[1].closed, "seed {seed}");
        assert_eq!(world.hosts[0].error, None);
        let expected = [Some(SocketError::Reset), Some(SocketError::TimedOut)];
        assert!(expected.contains(&world.hosts[1].error), "seed {seed}: {:?}", world.hosts[1].error);
        assert!(world.next_event().is_never());
    }
}

/// A receiver that does not read for an hour, then reads: the window opens, the sender goes on.
#[test]
fn a_long_zero_window() {
    for seed in 0..10 {
        let mut world = World::new(seed, Link { loss: 50_000, ..link(10) }, cfg(), cfg());
        world.establish();
        world.send(0, 400_000);
        world.run_for(Duration::from_secs(3_600));
        assert_eq!(world.hosts[1].readable() / 1_000, 199, "a full stream");
        assert_eq!(world.hosts[0].error, None);
        bulk(&mut world, 600_000, Duration::from_secs(600));
    }
}

/// One byte at a time, each way, with Nagle on and off.
#[test]
fn one_byte_writes() {
    for nodelay in [false, true] {
        let small = Config { nodelay, ..cfg() };
        let mut world = World::new(7, Link { loss: 20_000, ..link(5) }, small, small);
        world.establish();
        for n in 0..2_000u64 {
            world.send((n % 2) as usize, 1);
            world.run_for(Duration::from_micros(300));
            world.read(0, 10);
            world.read(1, 10);
        }
        world.run_for(Duration::from_secs(20));
        world.read(0, 10_000);
        world.read(1, 10_000);
        assert_eq!((world.hosts[0].rx_total, world.hosts[1].rx_total), (1_000, 1_000));
        let segments = world.hosts[0].tcb().info(world.now).data_segs_out;
        assert_eq!(segments < 900, !nodelay, "{segments} segments");
    }
}

/// Every combination of the options, with a little of every fault.
#[test]
fn all_combinations_of_options() {
    for bits in 0..256u32 {
        let side = |b: u32| Config {
            window_scaling: b & 1 != 0,
            timestamps: b & 2 != 0,
            sack: b & 4 != 0,
            ecn: if b & 8 != 0 { EcnMode::Active } else { EcnMode::Off },
            ..cfg()
        };
        let faults = Link { loss: 20_000, duplicate: 10_000, reorder: 20_000, corrupt: 5_000, ..link(5) };
        let mut world = World::new(u64::from(bits), faults, side(bits & 15), side(bits >> 4));
        world.hosts[0].limits = TxLimits { payload_max: 30_000 };
        world.establish();
        bulk(&mut world, 60_000, Duration::from_secs(600));
    }
}

/// A smallest MSS and a largest.
#[test]
fn tiny_and_huge_segments() {
    for mss in [48, 100, 9_000, 65_483] {
        let sized = Config { mss, ..cfg() };
        let faults = Link { loss: 10_000, ..link(5) };
        let mut world = World::new(u64::from(mss), Link { queue: u64::MAX, ..faults }, sized, sized);
        world.establish();
        bulk(&mut world, 200_000, Duration::from_secs(600));
    }
}

/// Bytes per second of a stream to a program whose receive stream starts small, and how large that becomes.
fn grow_the_window(mut world: World, after_ms: u64) -> (u64, u32) {
    world.establish();
    world.link.delay = Duration::from_millis(after_ms);
    let mut capacity = 16_384;
    for _ in 0..2_000 {
        if world.hosts[0].queued() < 500_000 {
            world.send(0, 100_000);
        }
        world.run_for(Duration::from_millis(2));
        world.read(1, u64::MAX);
        if world.hosts[1].events.any(Events::RECV_LIMITED) {
            world.hosts[1].events = Events::NONE;
            let wanted = world.hosts[1].tcb().recv_capacity_wanted();
            if wanted > capacity {
                capacity = wanted.next_power_of_two();
                world.call(1, UserCall::SetRecvCapacity(capacity));
            }
        }
    }
    (world.hosts[1].rx_total / 4, capacity)
}

/// The receive stream starts small and grows with what the program consumes; also where a round trip takes longer than the handshake
/// did, with timestamps and without.
#[test]
fn the_window_grows_with_the_flow() {
    // Nothing but the receiver holds the sender back.
    let sender = Config { initial_cwnd: 250, ..cfg() };
    for timestamps in [true, false] {
        let server =
            Config { recv_capacity: 16_384, recv_capacity_max: 4 << 20, timestamps, ..Config::DEFAULT };
        for (handshake_ms, after_ms) in [(20, 20), (5, 50), (50, 5)] {
            let path = Link { rate: 10_000_000, queue: u64::MAX, ..link(handshake_ms) };
            let (rate, capacity) = grow_the_window(World::new(1, path, sender, server), after_ms);
            let what = format!("timestamps {timestamps}, {handshake_ms} ms, then {after_ms}");
            assert!(capacity >= 20_000 * after_ms as u32, "{what}: {capacity}");
            assert!(rate > 3_500_000, "{what}: {rate} bytes/s of 10 MB/s");
        }
    }
}

/// RFC 5961: an attacker who knows the four-tuple and nothing else can neither break the connection nor put bytes into it.
#[test]
fn a_blind_attacker_gets_nowhere() {
    for seed in 0..10 {
        let mut rng = Rng::new(seed + 1_000);
        let mut world = World::new(seed, link(10), cfg(), cfg());
        world.establish();
        for _ in 0..200 {
            for _ in 0..20 {
                let flags = rng.pick(&[0u8, 0x01, 0x02, 0x04, 0x14, 0x20, 0xff]);
                let len = rng.pick(&[0u32, 1, 1_400]);
                let forged = utcp_proto::Segment {
                    seq: utcp_proto::SeqNum::new(rng.next() as u32),
                    ack: (rng.below(4) > 0).then(|| utcp_proto::SeqNum::new(rng.next() as u32)),
                    flags: utcp_proto::Flags::from_bits(flags),
                    wnd: rng.next() as u16,
                    len,
                    ..utcp_proto::Segment::default()
                };
                let side = rng.below(2) as usize;
                world.deliver(side, &forged, &vec![0xee; len as usize]);
            }
            world.send(0, 2_000);
            world.run_for(Duration::from_millis(10));
            world.read(1, u64::MAX);
        }
        bulk(&mut world, 500_000, Duration::from_secs(60));
        assert!(world.hosts.iter().all(|h| h.error.is_none()), "seed {seed}");
    }
}

/// How fast a bulk transfer is and how long the round trip is on average meanwhile, in the seconds `from..to` after the handshake.
fn steady(world: &mut World, from: u64, to: u64) -> (f64, Duration) {
    let start = world.now;
    let (mut at_from, mut sum, mut count) = (0, Duration::ZERO, 0);
    while world.now - start < Duration::from_secs(to) {
        if world.hosts[0].queued() < 400_000 {
            world.send(0, 200_000);
        }
        world.run_for(Duration::from_millis(5));
        world.read(1, u64::MAX);
        if world.now - start < Duration::from_secs(from) {
            at_from = world.hosts[1].rx_total;
        } else {
            sum = sum + world.hosts[0].tcb().info(world.now).rtt;
            count += 1;
        }
    }
    ((world.hosts[1].rx_total - at_from) as f64 / (to - from) as f64, sum.over(count))
}

fn model_based() -> Config {
    Config {
        congestion: CongestionKind::Bbr,
        recv_capacity: 1 << 20,
        recv_capacity_max: 1 << 20,
        ..Config::DEFAULT
    }
}

/// A model-based sender fills the path, with random loss too, and leaves the queue nearly empty.
#[test]
fn bbr_fills_the_path_and_not_the_queue() {
    for (seed, loss) in [(1, 0), (2, 1_000), (3, 10_000)] {
        let mut world = World::new(seed, Link { loss, ..link(20) }, model_based(), model_based());
        world.establish();
        let (rate, mean) = steady(&mut world, 3, 12);
        assert!(rate > 850_000.0, "loss {loss} ppm: {rate} of 1 000 000 bytes/s");
        // 40 ms without a queue, 140 ms with a full one.
        assert!(mean < Duration::from_millis(60), "loss {loss} ppm: a round trip of {mean:?}");
    }
}

/// The path becomes longer, then shorter: the model follows within the age of a base round trip.
/// The window doubles from the first round on, whoever connected: the first acknowledgement tells a rate of next to nothing to the side that
/// answered, whose round began with the handshake.
#[test]
fn bbr_starts_at_once_on_either_side() {
    for side in 0..2 {
        for wait in [0, 3_000] {
            let link = Link { delay: Duration::from_millis(100), ..Link::PERFECT };
            let mut world = World::new(1, link, model_based(), model_based());
            world.establish();
            world.run_for(Duration::from_millis(wait));
            let begun = world.hosts[side].tcb().info(world.now).snd_cwnd;
            for round in 1..=4 {
                world.send(side, 400_000);
                world.run_for(Duration::from_millis(210));
                world.read(1 - side, u64::MAX);
                let window = world.hosts[side].tcb().info(world.now).snd_cwnd;
                let least = begun << (round - 1);
                assert!(window > least, "side {side}, round {round}: {window} segments");
            }
        }
    }
}

#[test]
fn bbr_follows_a_path_that_changes() {
    let mut world = World::new(4, link(10), model_based(), model_based());
    world.establish();
    let _ = steady(&mut world, 1, 3);
    world.link.delay = Duration::from_millis(60);
    let (rate, _) = steady(&mut world, 12, 18);
    assert!(rate > 800_000.0, "after the path became longer: {rate}");
    world.link.delay = Duration::from_millis(10);
    // Each look at the base round trip halves what is in flight: four of them, five seconds apart.
    let (rate, mean) = steady(&mut world, 21, 27);
    assert!(rate > 850_000.0 && mean < Duration::from_millis(40), "shorter again: {rate}, {mean:?}");
}

/// A host that is busy for a moment, or a path that overtakes itself, looks like a queue in Startup: the first probe shows that there is none,
/// and the start goes on.
#[test]
fn bbr_starts_again_where_one_round_misled_it() {
    let path = Link { rate: 2_500_000, queue: 300_000, ..link(50) };
    for at in [60, 100, 110, 220, 350] {
        for (late, during) in [(60, 30), (90, 60), (150, 10), (150, 30)] {
            let mut world = World::new(5, path, model_based(), model_based());
            world.establish();
            world.send(0, 400_000);
            world.run_for(Duration::from_millis(at));
            world.link.delay = Duration::from_millis(50 + late);
            world.run_for(Duration::from_millis(during));
            world.link.delay = path.delay;
            let (rate, _) = steady(&mut world, 1, 5);
            assert!(
                rate > 1_500_000.0,
                "{late} ms late for {during} ms, {at} ms from the start: {rate} bytes/s"
            );
        }
    }
}
