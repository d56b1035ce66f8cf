//! Slow start overruns a queue and loses every other segment of a window: all of them are sent again, and nothing else (RFC 8985 §6.2,
//! RFC 6675 §5). What is sent again in vain overruns the queue once more, where half of the window just fits.

mod common;

use common::{Link, World};
use utcp_proto::{Config, CongestionKind, Duration};

/// Sends for a second and a half, in which slow start ends; segments that the queue did not take, and those that were sent again.
fn overrun(seed: u64, kind: CongestionKind, rtt: Duration, frames: u64) -> (u64, u64) {
    let link = Link { delay: rtt.over(2), rate: 2_500_000, queue: frames * 1_514, ..Link::PERFECT };
    let window = 4 << 20;
    let cfg =
        Config { congestion: kind, recv_capacity: window, recv_capacity_max: window, ..Config::DEFAULT };
    let mut world = World::new(seed, link, cfg, cfg);
    world.establish();
    let end = world.now + Duration::from_millis(1_500);
    while world.now < end {
        if world.hosts[0].queued() < 1 << 20 {
            world.send(0, 1 << 19);
        }
        world.run_until((world.now + Duration::from_millis(5)).min(end));
        world.read(1, u64::MAX);
    }
    (world.lost, u64::from(world.hosts[0].tcb().info(world.now).total_retrans))
}

#[test]
fn an_overrun_queue_is_repaired_without_a_segment_in_vain() {
    for kind in [CongestionKind::NewReno, CongestionKind::Cubic] {
        for (rtt_ms, frames) in [(20, 30), (50, 60), (100, 100), (100, 150)] {
            for seed in 0..4 {
                let (lost, again) = overrun(seed, kind, Duration::from_millis(rtt_ms), frames);
                let of = format!("{kind:?}, {rtt_ms} ms, {frames} frames, seed {seed}");
                assert!(kind != CongestionKind::NewReno || lost > 20, "{of}: {lost} lost");
                // Some may still wait to be sent again; a probe of the tail may have been for nothing.
                assert!(again <= lost + 1, "{of}: {lost} lost, {again} sent again");
            }
        }
    }
}
