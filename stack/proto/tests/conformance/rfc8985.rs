//! RFC 8985: RACK-TLP.

use crate::lab::{Lab, iss, seg, with_sack};
use utcp_proto::{Config, CongestionKind, RecoveryState};

/// §6.2: a segment is lost when one sent later was delivered and a quarter of the round trip has passed since.
#[test]
pub fn section_6_2_time_based_loss() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(2_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    // One SACK is no proof: the reordering window has to pass.
    lab.expect_nothing();
    let (ms, tx) = lab.next_sent();
    assert_eq!((tx.seq, tx.len, tx.retransmission), (iss() + 1, 1_000, true));
    assert!((2..=4).contains(&ms), "a quarter of 10 ms, not a timeout: {ms}");
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Recovery);
}

/// §6.2: a loss that the timer finds leaves the window of a controller with a model alone, as one that an ACK tells of does.
#[test]
pub fn section_6_2_the_timer_keeps_the_window_of_a_model() {
    let mut lab = Lab::passive(&Config { congestion: CongestionKind::Bbr, ..with_sack() });
    lab.send(3_000);
    assert_eq!(lab.drain().len(), 3);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    let window = lab.tcb.info(lab.now).snd_cwnd;
    assert!(window >= 10);
    assert!(lab.next_sent().1.retransmission);
    let info = lab.tcb.info(lab.now);
    assert_eq!(info.recovery, RecoveryState::Recovery);
    assert!(info.snd_cwnd >= window, "{} of {window} segments", info.snd_cwnd);
}

/// §6.2 step 4: three segments sacked prove enough while no reordering has been seen.
#[test]
pub fn section_6_2_dupthresh() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(4_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    lab.get(seg(1, 0).ack(1).sack(1_001, 3_001));
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(1).sack(1_001, 4_001));
    lab.expect_data(1, 1_000);
}

/// §6.2 step 3: once reordering has been seen, three are no longer enough.
#[test]
pub fn section_6_2_reordering_is_learnt() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(8_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    // The first one was only late.
    lab.get(seg(1, 0).ack(2_001));
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Open);
    lab.get(seg(1, 0).ack(2_001).sack(3_001, 6_001));
    lab.get(seg(1, 0).ack(2_001).sack(3_001, 7_001));
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(7_001));
    assert_eq!(lab.tcb.info(lab.now).total_retrans, 0);
}

/// §6: a retransmission that is lost is noticed without a timeout.
#[test]
pub fn lost_retransmission() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(30_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 10_001));
    let sent = lab.drain();
    assert!(sent[0].retransmission && sent[0].seq == iss() + 1);
    let new = sent.last().expect("new data").seq + 1_000;
    assert!(sent.len() > 1, "new data follows");
    // The new data arrives, the retransmission did not.
    lab.wait_ms(12);
    let end = iss().distance_to(new);
    lab.get(seg(1, 0).ack(1).sack(1_001, end));
    let mut waited = 0;
    let again = loop {
        let sent = lab.drain();
        if let Some(tx) = sent.iter().find(|tx| tx.retransmission) {
            break *tx;
        }
        waited += lab.fire();
    };
    assert_eq!(again.seq, iss() + 1);
    assert!(waited < 10, "{waited}");
}

/// §7.2, §7.3: the tail of a flight is probed after two round trips, long before the timeout.
#[test]
pub fn section_7_3_tail_loss_probe_repeats_the_last_segment() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(5_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(3_001));
    let (ms, tx) = lab.next_sent();
    assert_eq!((tx.seq, tx.len, tx.retransmission), (iss() + 4_001, 1_000, true));
    assert!((20..60).contains(&ms), "{ms}");
    // Its SACK tells that the one before is missing.
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(3_001).sack(4_001, 5_001));
    let (ms, tx) = lab.next_sent();
    assert_eq!((tx.seq, tx.retransmission), (iss() + 3_001, true));
    assert!(ms < 20, "{ms}");
}

/// §7.3: new data is the better probe.
#[test]
pub fn section_7_3_tail_loss_probe_with_new_data() {
    let mut lab = Lab::passive(&Config { initial_cwnd: 2, ..with_sack() });
    lab.send(10_000);
    assert_eq!(lab.drain().len(), 2);
    let (_, tx) = lab.next_sent();
    assert_eq!((tx.seq, tx.len, tx.retransmission), (iss() + 2_001, 1_000, false));
}

/// §7.4: a probe that filled a hole counts as a loss; one that was superfluous, told by DSACK, does not.
#[test]
pub fn section_7_4_what_a_probe_proves() {
    for superfluous in [false, true] {
        let mut lab = Lab::passive(&with_sack());
        lab.send(3_000);
        lab.drain();
        let (_, probe) = lab.next_sent();
        assert_eq!(probe.seq, iss() + 2_001);
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(3_001));
        if superfluous {
            lab.get(seg(1, 0).ack(3_001).sack(2_001, 3_001));
        }
        lab.send(1_000);
        lab.drain();
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(4_001));
        let reduced = lab.tcb.info(lab.now).snd_ssthresh != u32::MAX;
        assert_eq!(reduced, !superfluous);
    }
}

/// RFC 2883 and RFC 8985 §6.2: when DSACK declares every retransmission superfluous, the window comes back.
#[test]
pub fn undo_by_dsack() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 5_001));
    let again = lab.drain();
    assert!(again[0].retransmission);
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Recovery);
    // The original was only late: its ACK, and then the duplicate is reported.
    lab.get(seg(1, 0).ack(5_001).sack(1, 1_001));
    let info = lab.tcb.info(lab.now);
    assert_eq!(info.recovery, RecoveryState::Open);
    assert!(info.snd_cwnd >= 10, "{info:?}");
}

/// §6.2 step 2: RACK.rtt is that of the last segment that an ACK tells of, also where it tells of one that was sent later (a
/// retransmission). Taken from the latter it would be too short, and what is only late would be lost.
#[test]
pub fn section_6_2_rtt_of_the_last_segment() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    lab.get(seg(1, 0).ack(1).sack(1_001, 3_001));
    lab.get(seg(1, 0).ack(1).sack(8_001, 9_001).sack(1_001, 3_001));
    lab.expect_data(1, 1_000);
    lab.drain();
    lab.wait_ms(12);
    // The retransmission after 12 ms, and the original of 3001 after 22: the segment behind 9001 may still be on its way.
    lab.get(seg(1, 0).ack(4_001).sack(8_001, 9_001));
    assert_eq!(lab.tcb.info(lab.now).lost, 4, "4001 to 8001");
}
