//! Whole connections over a faulty link: every byte arrives once and in order, nothing stalls, nothing is left over.
//!
//! `UTCP_SIM_SEEDS=n` sets how many seeds run (from `UTCP_SIM_FROM` on), `UTCP_SIM_SEED=n` replays one, `UTCP_SIM_TRACE=1` prints the segments.

mod common;

use common::{Link, Peer, Rng, World};
use utcp_proto::{
    Config, CongestionKind, Duration, EcnMode, Instant, Keepalive, MtuProbing, SeqNum, State, TxLimits,
    UserCall,
};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `body` for each seed and names the one that fails.
fn seeds(test: &str, count: u64, body: impl Fn(u64) + std::panic::RefUnwindSafe) {
    if let Some(seed) = env("UTCP_SIM_SEED") {
        return body(seed);
    }
    let from = env("UTCP_SIM_FROM").unwrap_or(0);
    for seed in from..from + env("UTCP_SIM_SEEDS").unwrap_or(count) {
        if let Err(panic) = std::panic::catch_unwind(|| body(seed)) {
            eprintln!(
                "replay: UTCP_SIM_SEED={seed} UTCP_SIM_TRACE=1 cargo test -p utcp-proto --test simulation {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

fn random_config(rng: &mut Rng) -> Config {
    let capacity = rng.pick(&[2_000, 8_192, 65_536, 400_000]);
    Config {
        mss: rng.pick(&[100, 536, 1_220, 1_460, 8_960]),
        recv_capacity: capacity,
        recv_capacity_max: capacity * rng.pick(&[1, 1, 8]),
        window_scaling: rng.below(4) != 0,
        timestamps: rng.below(3) != 0,
        sack: rng.below(4) != 0,
        ecn: rng.pick(&[EcnMode::Off, EcnMode::Passive, EcnMode::Active]),
        congestion: rng.pick(&[CongestionKind::Cubic, CongestionKind::NewReno, CongestionKind::Bbr]),
        nodelay: rng.below(2) == 0,
        mtu_probing: rng.pick(&[MtuProbing::Off, MtuProbing::AfterBlackHole, MtuProbing::Always]),
        base_mss: rng.pick(&[512, 1_024]),
        ..Config::DEFAULT
    }
}

fn random_link(rng: &mut Rng) -> Link {
    let rate = rng.pick(&[0, 0, 100_000, 1_000_000, 12_500_000]);
    Link {
        delay: Duration::from_micros(rng.pick(&[5, 200, 5_000, 40_000, 150_000])),
        jitter: Duration::from_micros(rng.pick(&[0, 0, 100, 10_000])),
        rate,
        queue: rng.pick(&[20_000, 100_000, u64::MAX]),
        loss: rng.pick(&[0, 1_000, 10_000, 50_000, 100_000]),
        duplicate: rng.pick(&[0, 0, 10_000, 100_000]),
        reorder: rng.pick(&[0, 0, 10_000, 100_000]),
        corrupt: rng.pick(&[0, 0, 1_000, 20_000]),
        burst: rng.pick(&[(0, 1_000_000), (0, 1_000_000), (2_000, 200_000), (500, 30_000)]),
        // A black hole: nobody says that larger packets vanish.
        mtu: rng.pick(&[usize::MAX, usize::MAX, usize::MAX, usize::MAX, usize::MAX, 1_280, 1_100, 600]),
        tells: 0,
        mark: 0,
    }
}

/// Every other world has IPv6; some mark congestion, and in some routers say what they drop for its size.
fn vary(world: &mut World, seed: u64) {
    let mut rng = Rng::new(seed ^ 0x6666);
    world.link.tells = rng.pick(&[0, 500_000, 1_000_000]);
    world.link.mark = rng.pick(&[0, 0, 10_000, 200_000, 1_000_000]);
    if seed % 2 == 1 {
        world.use_v6();
    }
}

/// What the program of one side still has to do.
struct App {
    to_send: u64,
    chunk: u64,
    read_max: u64,
    pause: Duration,
    finished: bool,
    /// Has to wait for an event before it can go on.
    waiting: bool,
}

/// What kind of world.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A link with faults.
    Link,
    /// The same, and sequence numbers that pass 2³¹ or 2³² at a point of interest.
    Wrap,
    /// Two sockets of one host.
    SameHost,
}

/// An initial sequence number by which a stream of `len` bytes passes 2³¹ or 2³² at its SYN, its first bytes, somewhere in between, its
/// last, its FIN or just after it.
fn isn_before_a_wrap(rng: &mut Rng, len: u64) -> SeqNum {
    let middle = rng.below(len + 3);
    let after = rng.pick(&[0, 1, 2, middle, middle, middle, len, len + 1, len + 2]);
    let boundary = rng.pick(&[0, 1u32 << 31]);
    SeqNum::new(boundary.wrapping_sub(after as u32))
}

/// Sends `to_send` bytes each way, in pieces, reading at random; then closes and waits for the end.
fn transfer(seed: u64, kind: Kind) {
    let same_host = kind == Kind::SameHost;
    let mut rng = Rng::new(seed);
    let mut link = random_link(&mut rng);
    let (mut client, mut server) = (random_config(&mut rng), random_config(&mut rng));
    if same_host {
        link = Link { delay: Duration::from_nanos(1 + rng.below(3_000)), ..Link::PERFECT };
        client.mss = rng.pick(&[1_460, 65_483]);
        server.mss = client.mss;
    }
    let mut world = World::new(seed, link, client, server);
    world.direct = same_host;
    vary(&mut world, seed);
    if world.trace {
        eprintln!("{link:?}\n{client:?}\n{server:?}");
    }
    for side in 0..2 {
        if same_host || rng.below(3) == 0 {
            world.hosts[side].limits = TxLimits { payload_max: 65_536 };
        }
    }
    let mut apps: [App; 2] = std::array::from_fn(|_| App {
        to_send: rng.pick(&[0, 1, 5_000, 60_000, 300_000]),
        chunk: rng.pick(&[1, 100, 3_000, 100_000]),
        read_max: rng.pick(&[50, 5_000, 1_000_000]),
        pause: Duration::from_micros(rng.pick(&[1, 300, 20_000])),
        finished: false,
        waiting: false,
    });
    for app in &mut apps {
        // One byte at a time for a long stream is a test of patience alone.
        app.chunk = app.chunk.max(app.to_send / 2_000);
        app.read_max = app.read_max.max(app.to_send / 2_000);
    }
    let totals = [apps[0].to_send, apps[1].to_send];
    if kind == Kind::Wrap {
        let mut rng = Rng::new(seed ^ 0x3232);
        world.isns = totals.map(|len| Some(isn_before_a_wrap(&mut rng, len)));
    }
    world.connect();
    let limit = world.now + Duration::from_secs(40_000);
    let mut wake = [world.now; 2];
    while !done(&world, &apps, totals) {
        let next = world.next_event().min(wake[0]).min(wake[1]);
        assert!(!next.is_never(), "seed {seed}: nothing will ever happen, {}", report(&world));
        assert!(next < limit, "seed {seed}: no end in sight, {}", report(&world));
        world.run_until(next);
        for side in 0..2 {
            if wake[side] <= world.now || apps[side].waiting {
                wake[side] = step_app(&mut world, &mut apps[side], side, &mut rng);
            }
        }
    }
    for (side, host) in world.hosts.iter().enumerate() {
        assert_eq!(host.error, None, "seed {seed} side {side}");
        assert_eq!(host.rx_total, totals[1 - side], "seed {seed} side {side}");
    }
    // Nothing is left over: both ends come to rest, one of them by way of TIME-WAIT.
    world.run_until(world.now + Duration::from_secs(4_000));
    assert!(world.hosts.iter().all(|h| h.state() == State::Closed), "seed {seed}: {}", report(&world));
    assert!(world.next_event().is_never(), "seed {seed}: restless after the end");
}

fn report(world: &World) -> String {
    let one = |side: usize| {
        let host = &world.hosts[side];
        let info = if host.has_tcb() { format!("{:?}", host.tcb().info(world.now)) } else { String::new() };
        format!(
            "\nside {side}: {:?} sent {} queued {} read {} readable {} eof {} {info}",
            host.state(),
            host.tx_total,
            host.queued(),
            host.rx_total,
            host.readable(),
            host.eof
        )
    };
    format!("{} {}", one(0), one(1))
}

fn done(world: &World, apps: &[App; 2], totals: [u64; 2]) -> bool {
    (0..2).all(|side| {
        let host = &world.hosts[side];
        apps[side].finished && host.eof && host.rx_total == totals[1 - side]
    })
}

fn step_app(world: &mut World, app: &mut App, side: usize, rng: &mut Rng) -> Instant {
    let connected = matches!(
        world.hosts[side].state(),
        State::Established | State::CloseWait | State::FinWait1 | State::FinWait2
    );
    let readable = world.hosts[side].readable();
    if readable > 0 {
        world.read(side, rng.below(app.read_max) + 1);
    }
    if connected && !app.finished {
        if app.to_send > 0 && world.hosts[side].queued() < 300_000 {
            let n = (rng.below(app.chunk) + 1).min(app.to_send);
            app.to_send -= n;
            world.send(side, n as u32);
        }
        if app.to_send == 0 {
            app.finished = true;
            world.call(side, UserCall::Shutdown);
        }
    }
    let host = &world.hosts[side];
    app.waiting = app.finished && host.readable() == 0 || (!connected && !app.finished);
    if app.waiting {
        Instant::NEVER
    } else {
        world.now + Duration::from_nanos(rng.below(app.pause.as_nanos()) + 1)
    }
}

#[test]
fn streams_survive_a_faulty_link() {
    seeds("streams_survive", 1_300, |seed| transfer(seed, Kind::Link));
}

#[test]
fn streams_pass_the_ends_of_sequence_space() {
    seeds("streams_pass", 300, |seed| transfer(seed, Kind::Wrap));
}

#[test]
fn streams_between_two_sockets_of_one_host() {
    seeds("streams_between", 300, |seed| transfer(seed, Kind::SameHost));
}

/// One host forgets everything in the middle of a conversation. The other one hears of it, and a new connection between the
/// same endpoints works (RFC 9293 §3.5.1, half-open connections).
fn reboot(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut link = random_link(&mut rng);
    link.loss = link.loss.min(50_000);
    let alive = Keepalive { idle: Duration::from_secs(20), interval: Duration::from_secs(5), probes: 6 };
    let mut config = || Config { keepalive: Some(alive), ..random_config(&mut rng) };
    let configs = [config(), config()];
    let mut world = World::new(seed, link, configs[0], configs[1]);
    vary(&mut world, seed);
    world.establish();
    for side in 0..2 {
        world.send(side, rng.below(100_000) as u32);
    }
    let talk = Duration::from_nanos(rng.below(3_000_000_000));
    read_for(&mut world, talk);
    let victim = rng.below(2) as usize;
    world.forget(victim);
    if rng.below(2) == 0 {
        world.down_until = world.now + Duration::from_nanos(rng.below(30_000_000_000));
    }
    let limit = world.now + Duration::from_secs(4_000);
    let mut told = false;
    loop {
        assert!(world.now < limit, "seed {seed}: no end in sight, {}", report(&world));
        // The survivor's program hears of the end and begins anew; the client connects.
        let survivor = &world.hosts[1 - victim];
        if !told && survivor.closed {
            assert!(survivor.error.is_some(), "seed {seed}: an end without a reason, {}", report(&world));
            told = true;
            world.forget(1 - victim);
        }
        if matches!(world.hosts[0].peer, Peer::None) && (victim == 0 || told) {
            world.forget(0);
            world.connect();
        }
        let ready = |side: usize| world.hosts[side].state() == State::Established;
        if told && ready(0) && ready(1) {
            break;
        }
        // An attempt may come to nothing while the link is down: the server's record goes, too.
        if told && world.hosts[1].closed {
            world.forget(1);
        }
        read_for(&mut world, Duration::from_millis(200));
    }
    for side in 0..2 {
        world.send(side, 5_000);
    }
    while world.hosts.iter().any(|host| host.rx_total < 5_000) {
        assert!(world.now < limit, "seed {seed}: the new connection stalls, {}", report(&world));
        read_for(&mut world, Duration::from_millis(200));
    }
}

/// Lets time pass; both programs read what there is.
fn read_for(world: &mut World, time: Duration) {
    world.run_for(time);
    for side in 0..2 {
        world.read(side, u64::MAX);
    }
}

#[test]
fn a_host_reboots() {
    seeds("a_host_reboots", 400, reboot);
}

/// A window closed while a large segment was in flight, its reopening got lost, and the path swallows what is so large.
#[test]
fn seeds_that_failed() {
    reboot(3_002_955);
}
