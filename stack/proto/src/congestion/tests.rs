use super::*;

const MSS: u32 = 1_000;

/// Steps whole windows of ACKs with the given round trip, one ACK per segment.
fn round(cc: &mut Congestion, now: &mut Instant, una: &mut SeqNum, rtt: Duration) {
    *now += rtt;
    let nxt = *una + 2 * cc.cwnd;
    for _ in 0..cc.cwnd / MSS {
        *una += MSS;
        cc.on_ack(&AckSample { now: *now, acked: MSS, mss: MSS, srtt: rtt, rtt: Some(rtt), una: *una, nxt });
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

/// Ha and Rhee 2011: ACKs without a gap for half of the base round trip. `gap_us` parts them; returns whether slow start
/// has ended after `rounds` windows.
#[track_caller]
fn check_train(gap_us: u64, rounds: u32, ends: bool) {
    let (mut cc, mut now, mut una) = start(CongestionKind::Cubic);
    let rtt = Duration::from_millis(100);
    for _ in 0..rounds {
        now += rtt;
        for _ in 0..cc.cwnd / MSS {
            una += MSS;
            now += Duration::from_micros(gap_us);
            let nxt = una + cc.cwnd;
            let sample = AckSample { now, acked: MSS, mss: MSS, srtt: rtt, rtt: Some(rtt), una, nxt };
            cc.on_ack(&sample);
        }
    }
    assert_eq!(!cc.in_slow_start(), ends, "gap {gap_us} µs: window {}, threshold {}", cc.cwnd, cc.ssthresh);
}

#[test]
fn a_train_of_acks_ends_slow_start() {
    // 40 ACKs, 1 ms apart, don't last for 50 ms; 80 do.
    check_train(1_000, 3, false);
    check_train(1_000, 4, true);
    // With gaps of 15 ms the path is not busy between them, however long they go on.
    check_train(15_000, 4, false);
}
