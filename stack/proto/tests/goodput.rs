//! How much of a path's capacity a bulk transfer gets, over loss and round trip, as a table.
//!
//! The bound is the smaller of the link's rate and the window that the controller can hold at that loss (Mathis et al. 1997
//! for Reno: MSS/RTT · 1.22/√p). The assertions keep well below what is measured: they catch a sender that stalls, not noise.

mod common;

use common::{Link, World};
use utcp_proto::{Config, CongestionKind, Duration};

const RATE: u64 = 2_500_000;

/// Bytes per second that arrive in `seconds` of bulk transfer after the handshake.
fn goodput(seed: u64, rtt_ms: u64, loss_ppm: u32, kind: CongestionKind, sack: bool, seconds: u64) -> f64 {
    let link = Link {
        delay: Duration::from_micros(rtt_ms * 500),
        rate: RATE,
        queue: (RATE * rtt_ms / 1_000).max(60_000),
        loss: loss_ppm,
        ..Link::PERFECT
    };
    let cfg = Config {
        congestion: kind,
        sack,
        recv_capacity: 16 << 20,
        recv_capacity_max: 16 << 20,
        ..Config::DEFAULT
    };
    let mut world = World::new(seed, link, cfg, cfg);
    world.establish();
    let end = world.now + Duration::from_secs(seconds);
    while world.now < end {
        if world.hosts[0].queued() < 4 << 20 {
            world.send(0, 1 << 20);
        }
        world.run_until((world.now + Duration::from_millis(5)).min(end));
        world.read(1, u64::MAX);
    }
    world.hosts[1].rx_total as f64 / seconds as f64
}

fn mean(rtt_ms: u64, loss_ppm: u32, kind: CongestionKind, sack: bool) -> f64 {
    let runs = 2;
    (0..runs).map(|seed| goodput(seed, rtt_ms, loss_ppm, kind, sack, 5)).sum::<f64>() / runs as f64
}

fn mathis(rtt_ms: u64, loss_ppm: u32) -> f64 {
    if loss_ppm == 0 {
        return RATE as f64;
    }
    let p = f64::from(loss_ppm) / 1e6;
    (1_448.0 / (rtt_ms as f64 / 1e3) * 1.22 / p.sqrt()).min(RATE as f64)
}

#[test]
fn bulk_transfer_fills_what_loss_and_distance_allow() {
    println!("kind     rtt   loss    goodput kB/s   of the bound");
    for kind in [CongestionKind::Cubic, CongestionKind::NewReno] {
        for rtt_ms in [1, 20, 100] {
            for loss_ppm in [0, 1_000, 10_000, 50_000] {
                let got = mean(rtt_ms, loss_ppm, kind, true);
                let share = got / mathis(rtt_ms, loss_ppm);
                println!(
                    "{:<8} {rtt_ms:>4} {:>5.1}% {:>12.0} {share:>12.2}",
                    kind.name(),
                    f64::from(loss_ppm) / 1e4,
                    got / 1e3
                );
                let floor = if loss_ppm > 10_000 { 0.25 } else { 0.45 };
                assert!(share > floor, "{} rtt {rtt_ms} loss {loss_ppm}: {share:.2}", kind.name());
            }
        }
    }
}

#[test]
fn without_sack_a_lossy_path_is_slow_but_alive() {
    for rtt_ms in [1, 50] {
        let share = mean(rtt_ms, 10_000, CongestionKind::NewReno, false) / mathis(rtt_ms, 10_000);
        println!("no sack rtt {rtt_ms}: {share:.2}");
        assert!(share > 0.2, "rtt {rtt_ms}: {share:.2}");
    }
}
