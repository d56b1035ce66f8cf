//! Connections that live long. Numbers and clocks on a circle come round: what was noted once and not looked at since (the end of a
//! recovery, of a round, an urgent byte) must not look as if it lay ahead when half the circle has passed.

use crate::lab::{Lab, irs, iss, peer_options, plain, seg, with_sack};
use utcp_proto::{Config, CongestionKind, Flags, Options, RecoveryState};

const MSS: u32 = 60_000;
/// A little more than half of sequence space.
const HALF: u64 = (1 << 31) + 3_000_000;

/// Long segments, and a peer whose window holds many of them.
fn long(cfg: Config) -> Lab {
    let cfg = Config { mss: MSS as u16, window_scaling: true, ..cfg };
    let options = Options { wscale: Some(10), ..peer_options(&cfg) };
    Lab::passive_with(&cfg, options, Flags::NONE)
}

/// Sends `bytes` and has them acknowledged, a burst at a time; nothing unusual happens.
fn carry(lab: &mut Lab, bytes: u64) {
    for _ in 0..bytes.div_ceil(3_000_000) {
        burst(lab, 3_000_000);
    }
}

fn burst(lab: &mut Lab, bytes: u32) {
    lab.send(bytes);
    while lab.tcb.unsent() > 0 || lab.tcb.info(lab.now).unacked > 0 {
        lab.drain();
        lab.wait_ms(10);
        let sent = iss().distance_to(lab.tcb.snd_nxt());
        lab.get(seg(1, 0).ack(sent));
    }
}

/// SND.UNA comes to ISS again after 4 GiB. That is no SYN: no byte of the stream is left out there.
#[test]
fn a_stream_that_comes_round() {
    let mut lab = long(plain());
    carry(&mut lab, (1 << 32) - 6_000_000);
    let sent = iss().distance_to(lab.tcb.snd_nxt());
    // So that the ACK is ISS itself.
    let n = sent.wrapping_neg();
    lab.send(n);
    while lab.tcb.unsent() > 0 {
        lab.drain();
        lab.wait_ms(10);
        let almost = iss().distance_to(lab.tcb.snd_nxt()).wrapping_sub(1);
        lab.get(seg(1, 0).ack(almost));
    }
    assert_eq!(lab.tcb.snd_nxt(), iss());
    assert_eq!(lab.get(seg(1, 0).ack(0)).released, 1);
    lab.send(100);
    let tx = lab.expect_data(0, 100);
    assert_eq!(tx.offset, 0);
    let (_, again) = lab.next_sent();
    assert_eq!((again.seq, again.offset, again.len), (iss(), 0, 100));
    assert_eq!(lab.get(seg(1, 0).ack(40)).released, 40);
    let (_, again) = lab.next_sent();
    assert_eq!((again.seq, again.offset, again.len), (iss() + 40, 0, 60));
    assert_eq!(lab.get(seg(1, 0).ack(100)).released, 60);
}

/// RFC 6582 §3.2 step 1: "recover" lies behind, and does not stand in the way of the first loss in 2 GiB.
#[test]
fn fast_retransmit_without_sack() {
    let mut lab = long(plain());
    carry(&mut lab, HALF);
    let at = iss().distance_to(lab.tcb.snd_nxt());
    lab.send(5 * MSS);
    assert_eq!(lab.drain().len(), 5);
    lab.wait_ms(10);
    for _ in 0..3 {
        lab.get(seg(1, 0).ack(at));
    }
    let again = lab.drain();
    assert!(again.iter().any(|tx| tx.retransmission && tx.seq == iss() + at), "{again:?}");
}

/// RFC 8985 §6.2 step 3: RACK.fack lies behind, so a hole is no reordering.
#[test]
fn a_hole_is_no_reordering() {
    let mut lab = long(with_sack());
    carry(&mut lab, HALF);
    let at = iss().distance_to(lab.tcb.snd_nxt());
    lab.send(5 * MSS);
    assert_eq!(lab.drain().len(), 5);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(at).sack(at + MSS, at + 2 * MSS));
    let info = lab.tcb.info(lab.now);
    assert_eq!((info.recovery, info.reord_seen), (RecoveryState::Disorder, 0));
}

/// The rounds of a model go on to end, and to tell of the path.
#[test]
fn the_rounds_of_a_model() {
    let mut lab = long(Config { congestion: CongestionKind::Bbr, ..with_sack() });
    carry(&mut lab, HALF);
    let before = lab.tcb.info(lab.now).model.expect("a model").rate;
    // The program sends more at a time.
    for _ in 0..10 {
        burst(&mut lab, 9_000_000);
    }
    let after = lab.tcb.info(lab.now).model.expect("a model").rate;
    assert!(after > before * 3 / 2, "{before} bytes per second, then {after}");
}

/// Minshall's variant of Nagle's algorithm: the last small segment arrived 2 GiB ago.
#[test]
fn a_small_segment_behind_full_ones() {
    let mut lab = long(plain());
    lab.send(10);
    lab.drain();
    lab.get(seg(1, 0).ack(11));
    carry(&mut lab, HALF);
    lab.send(MSS + 10);
    let lens: Vec<u32> = lab.drain().iter().map(|tx| tx.len).collect();
    assert_eq!(lens, [MSS, 10]);
}

/// RFC 9293 §3.8.5: an urgent byte is one, however long ago the last was.
#[test]
fn urgent_bytes_far_apart() {
    let capacity = 1 << 29;
    let cfg =
        Config { recv_capacity: capacity, recv_capacity_max: capacity, window_scaling: true, ..plain() };
    let mut lab = Lab::passive(&cfg);
    assert_eq!(lab.get(seg(1, 100).ack(1).urg(50)).urgent, Some(49));
    lab.received(100);
    lab.drain();
    let mut at = 101u32;
    for passed in [3u64 << 30, 5 << 30, 6 << 30] {
        let end = (passed & 0xffff_ffff) as u32;
        while at != end {
            let n = at.wrapping_neg().wrapping_add(end).min(400_000_000);
            assert_eq!(lab.get(seg(at, n).ack(1)).advanced, n);
            lab.received(n);
            lab.drain();
            at = at.wrapping_add(n);
        }
        let out = lab.get(seg(at, 100).ack(1).urg(50));
        assert_eq!(out.urgent, Some(49), "after {passed} bytes");
        lab.received(100);
        lab.drain();
        at = at.wrapping_add(100);
        // It is told once.
        assert_eq!(lab.get(seg(at, 10).ack(1).urg(0)).urgent, None);
        at = at.wrapping_add(10);
        lab.received(10);
        lab.drain();
    }
    assert_eq!(irs() + at, lab.tcb.rcv_nxt());
}

/// RFC 8985 §6.2 step 2: RACK.xmit_ts is that of the segment that was delivered just now, not of one of three quarters of an hour ago,
/// and what was sent after it is not lost because a round trip has passed.
#[test]
fn what_is_lost_after_a_long_time_without_a_loss() {
    let mut lab = Lab::passive(&with_sack());
    // A loss, for the marks that it leaves.
    lab.send(4_000);
    assert_eq!(lab.drain().len(), 4);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 4_001));
    assert!(lab.expect_data(1, 1_000).retransmission);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(4_001));
    let mut at = 4_001;
    for _ in 0..270 {
        lab.send(1_000);
        assert_eq!(lab.drain().len(), 1);
        lab.wait_ms(10);
        at += 1_000;
        lab.get(seg(1, 0).ack(at));
        lab.wait_ms(10_000);
    }
    lab.send(3_000);
    assert_eq!(lab.drain().len(), 3);
    lab.wait_ms(9);
    lab.send(1_000);
    lab.expect_data(at + 3_000, 1_000);
    lab.wait_ms(1);
    lab.get(seg(1, 0).ack(at).sack(at + 1_000, at + 2_000));
    let end = lab.now + utcp_proto::Duration::from_millis(80);
    let mut again = Vec::new();
    while lab.tcb.next_deadline().is_some_and(|due| due < end) {
        lab.fire();
        again.extend(lab.drain().iter().filter(|tx| tx.retransmission).map(|tx| iss().distance_to(tx.seq)));
    }
    assert_eq!(again, [at], "the hole, and not what nobody has told anything of");
    assert_eq!(lab.tcb.info(lab.now).lost, 1);
}
