//! How much of a path's capacity a bulk transfer gets, over loss, round trip and controller: a table that is kept in
//! `goodput.txt` and reviewed when it changes.
//!
//! The bound is the smaller of the link's rate and the window that Reno can hold at that loss (Mathis et al. 1997:
//! MSS/RTT · 1.22/√p). Time is virtual and the link seeded, so the table is exact. `UTCP_BLESS=1` writes it anew;
//! `UTCP_GOODPUT="bbr 200"` prints the lines of one controller (and round trip) only.

mod common;

use std::fmt::Write as _;

use common::{Link, World};
use utcp_proto::{Config, CongestionKind, Duration};

/// Bytes per second: ten megabits.
const RATE: u64 = 1_250_000;
const SECONDS: u64 = 5;
/// Worlds of a cell. Where every tenth or twentieth packet is lost, one timeout more or less is a good part of the five seconds: with
/// two worlds a cell of reno at 1 ms and 10 % read 483 before a change and 379 behind it, with sixty 371 both times.
const fn seeds(loss_ppm: u32) -> u64 {
    if loss_ppm >= 50_000 { 8 } else { 2 }
}
const RTT_MS: [u64; 4] = [1, 20, 100, 200];
const LOSS_PPM: [u32; 5] = [0, 1_000, 10_000, 50_000, 100_000];

/// Bytes per second that arrive after the handshake.
fn goodput(seed: u64, rtt_ms: u64, loss_ppm: u32, kind: CongestionKind, sack: bool) -> f64 {
    let link = Link {
        delay: Duration::from_micros(rtt_ms * 500),
        rate: RATE,
        queue: (RATE * rtt_ms / 1_000).max(60_000),
        loss: loss_ppm,
        ..Link::PERFECT
    };
    let window = 4 << 20;
    let cfg = Config {
        congestion: kind,
        sack,
        recv_capacity: window,
        recv_capacity_max: window,
        ..Config::DEFAULT
    };
    let mut world = World::new(seed, link, cfg, cfg);
    world.establish();
    let end = world.now + Duration::from_secs(SECONDS);
    while world.now < end {
        if world.hosts[0].queued() < 1 << 20 {
            world.send(0, 1 << 19);
        }
        world.run_until((world.now + Duration::from_millis(5)).min(end));
        world.read(1, u64::MAX);
    }
    world.hosts[1].rx_total as f64 / SECONDS as f64
}

fn mathis(rtt_ms: u64, loss_ppm: u32) -> f64 {
    if loss_ppm == 0 {
        return RATE as f64;
    }
    let p = f64::from(loss_ppm) / 1e6;
    (1_448.0 / (rtt_ms as f64 / 1e3) * 1.22 / p.sqrt()).min(RATE as f64)
}

#[test]
fn table_of_goodput() {
    let only = std::env::var("UTCP_GOODPUT").unwrap_or_default();
    let mut table = String::from("controller  rtt ms  loss %  goodput kB/s  of the bound\n");
    for (name, kind, sack) in [
        ("cubic", CongestionKind::Cubic, true),
        ("reno", CongestionKind::NewReno, true),
        ("bbr", CongestionKind::Bbr, true),
        ("no-sack", CongestionKind::NewReno, false),
    ] {
        for rtt_ms in RTT_MS {
            if !format!("{name} {rtt_ms} ").starts_with(&only) {
                continue;
            }
            for loss_ppm in LOSS_PPM {
                let seeds = seeds(loss_ppm);
                let sum: f64 = (0..seeds).map(|seed| goodput(seed, rtt_ms, loss_ppm, kind, sack)).sum();
                let mean = sum / seeds as f64;
                let share = mean / mathis(rtt_ms, loss_ppm);
                let loss = f64::from(loss_ppm) / 1e4;
                writeln!(table, "{name:<10} {rtt_ms:>7} {loss:>7.1} {:>13.0} {share:>13.2}", mean / 1e3)
                    .expect("a string");
                // Far below what the table holds: a sender that stalls must not be blessed by accident.
                let floor = if sack { 0.25 } else { 0.05 };
                let long = rtt_ms >= 200 && loss_ppm >= 50_000;
                assert!(share > floor || long, "{name} rtt {rtt_ms} loss {loss}: {share:.2}");
            }
        }
    }
    println!("{table}");
    if !only.is_empty() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goodput.txt");
    if std::env::var_os("UTCP_BLESS").is_some() {
        std::fs::write(path, &table).expect("the table is written");
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(kept, table, "the table changed: look at it, then run with UTCP_BLESS=1");
}
