use super::*;

const MSS: u32 = 1_000;

/// Steps whole windows of ACKs with the given round trip, one ACK per segment.
fn round(cc: &mut Congestion, now: &mut Instant, una: &mut SeqNum, rtt: Duration) {
    *now += rtt;
    let nxt = *una + 2 * cc.cwnd;
    for _ in 0..cc.cwnd / MSS {
        *una += MSS;
        cc.on_ack(&AckSample {
            now: *now,
            acked: MSS,
            mss: MSS,
            srtt: rtt,
            rtt: Some(rtt),
            una: *una,
            nxt,
            sack: true,
        });
    }
}

fn start(kind: CongestionKind) -> (Congestion, Instant, SeqNum) {
    (Congestion::new(kind, 10 * MSS, SeqNum::new(0)), Instant::from_millis(1), SeqNum::new(0))
}

#[test]
fn slow_start_doubles_each_round() {
    for kind in [CongestionKind::NewReno, CongestionKind::Cubic] {
        let (mut cc, mut now, mut una) = start(kind);
        for expected in [20, 40, 80, 160] {
            round(&mut cc, &mut now, &mut una, Duration::from_millis(10));
            assert_eq!(cc.cwnd, expected * MSS, "{kind:?}");
        }
    }
}

/// HyStart++ counts rounds while the window is what holds the sender back. When it is again after more than 2 GiB, a round trip
/// that grows ends slow start as ever.
#[test]
fn rounds_are_counted_again_after_long() {
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    round(&mut cc, &mut now, &mut una, Duration::from_millis(10));
    una += (1 << 31) + 1_000 * MSS;
    for ms in [10, 10, 10, 30, 30, 30, 30, 30, 30, 30] {
        round(&mut cc, &mut now, &mut una, Duration::from_millis(ms));
    }
    assert!(!cc.in_slow_start(), "{}", cc.cwnd);
}

#[test]
fn reno_adds_a_segment_per_round_and_halves_on_loss() {
    let (mut cc, mut now, mut una) = start(CongestionKind::NewReno);
    cc.on_congestion(10 * MSS, MSS);
    cc.cwnd = cc.ssthresh;
    assert_eq!(cc.cwnd, 5 * MSS);
    round(&mut cc, &mut now, &mut una, Duration::from_millis(10));
    assert!((5 * MSS + 900..=6 * MSS).contains(&cc.cwnd), "{}", cc.cwnd);
}

/// RFC 9438 §4.3: on a short path CUBIC does at least as well as a Reno with the same average.
#[test]
fn cubic_is_friendly_on_short_paths() {
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    cc.cwnd = 20 * MSS;
    cc.on_congestion(20 * MSS, MSS);
    cc.cwnd = cc.ssthresh;
    assert_eq!(cc.cwnd, 14 * MSS);
    for _ in 0..20 {
        round(&mut cc, &mut now, &mut una, Duration::from_millis(1));
    }
    assert!(cc.cwnd >= 22 * MSS && cc.cwnd <= 30 * MSS, "{}", cc.cwnd);
}

#[test]
fn cubic_returns_to_the_old_window_and_waits_there() {
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    cc.cwnd = 1_000 * MSS;
    cc.on_congestion(1_000 * MSS, MSS);
    cc.cwnd = cc.ssthresh;
    for _ in 0..90 {
        round(&mut cc, &mut now, &mut una, Duration::from_millis(100));
    }
    assert!((970 * MSS..=1_010 * MSS).contains(&cc.cwnd), "{}", cc.cwnd);
}

/// RFC 9406: a round trip that grows ends slow start in five rounds; one that falls back resumes it.
#[test]
fn hystart_leaves_slow_start_before_a_loss() {
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    for _ in 0..4 {
        round(&mut cc, &mut now, &mut una, Duration::from_millis(20));
    }
    for n in 0..8 {
        round(&mut cc, &mut now, &mut una, Duration::from_millis(30 + n));
    }
    assert!(!cc.in_slow_start());
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    for n in 0..8 {
        let rtt = if n == 4 { 30 } else { 20 };
        round(&mut cc, &mut now, &mut una, Duration::from_millis(rtt));
    }
    assert!(cc.in_slow_start(), "a false alarm");
}

#[test]
fn undo_takes_the_reduction_back() {
    let (mut cc, ..) = start(CongestionKind::Cubic);
    let before = (cc.cwnd, cc.ssthresh);
    cc.on_congestion(10 * MSS, MSS);
    cc.on_timeout(MSS);
    assert_eq!((cc.cwnd, cc.ssthresh), (MSS, 7 * MSS));
    cc.undo(before.0, before.1);
    assert_eq!((cc.cwnd, cc.ssthresh), before);
}

/// Ha and Rhee 2011: ACKs without a gap for half of the base round trip. `gap_us` parts them, `waits` tells whether each waits
/// in a queue behind those of its window; whether slow start has ended after `rounds` windows is returned.
fn train(kind: CongestionKind, sack: bool, gap_us: u64, waits: bool, rounds: u32) -> bool {
    let (mut cc, mut now, mut una) = start(kind);
    for n in 0..rounds {
        now += Duration::from_millis(100);
        let waited = if waits && n + 1 == rounds { 30 } else { 0 };
        let rtt = Duration::from_millis(100 + waited);
        for _ in 0..cc.cwnd / MSS {
            una += MSS;
            now += Duration::from_micros(gap_us);
            let nxt = una + cc.cwnd;
            cc.on_ack(&AckSample { now, acked: MSS, mss: MSS, srtt: rtt, rtt: Some(rtt), una, nxt, sack });
        }
    }
    !cc.in_slow_start()
}

#[test]
fn a_train_of_acks_ends_slow_start() {
    for (kind, sack) in [(CongestionKind::Cubic, true), (CongestionKind::NewReno, false)] {
        // 40 ACKs, 1 ms apart, don't last for 50 ms; 80 do.
        assert!(!train(kind, sack, 1_000, false, 3));
        assert!(train(kind, sack, 1_000, false, 4));
        // With gaps of 15 ms the path is not busy between them, however long they go on.
        assert!(!train(kind, sack, 15_000, false, 4));
    }
}

#[test]
fn reno_with_sack_leaves_slow_start_by_a_train_and_a_queue() {
    assert!(!train(CongestionKind::NewReno, true, 1_000, false, 4));
    assert!(train(CongestionKind::NewReno, true, 1_000, true, 5));
    // A queue alone begins conservative slow start.
    assert!(!train(CongestionKind::NewReno, true, 15_000, true, 4));
}
