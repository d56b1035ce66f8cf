//! RFC 5681 (congestion control), RFC 6582 (NewReno), RFC 6928 (initial window), RFC 6937 (PRR).

use crate::lab::{Lab, plain, seg, with_sack};
use utcp_proto::{Config, CongestionKind};

fn reno() -> Config {
    Config { congestion: CongestionKind::NewReno, ..plain() }
}

/// RFC 6928 §2: ten segments to begin with.
#[test]
pub fn rfc_6928_initial_window() {
    let mut lab = Lab::passive(&plain());
    lab.send(30_000);
    assert_eq!(lab.drain().len(), 10);
}

/// §3.1: slow start opens the window by what is acknowledged.
#[test]
pub fn section_3_1_slow_start() {
    let mut lab = Lab::passive(&plain());
    lab.send(100_000);
    lab.drain();
    lab.wait_ms(10);
    for n in 1..=5 {
        lab.get(seg(1, 0).ack(1 + n * 2_000));
    }
    assert_eq!(lab.drain().len(), 20);
}

/// RFC 7661 §4.1: a window that is not used does not grow.
#[test]
pub fn rfc_7661_unused_window_does_not_grow() {
    let mut lab = Lab::passive(&plain());
    for n in 0..50 {
        lab.send(1_000);
        lab.expect_data(1 + n * 1_000, 1_000);
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(1 + (n + 1) * 1_000));
    }
    assert!(lab.tcb.info(lab.now).snd_cwnd <= 12);
}

/// §3.2 without SACK: the third duplicate ACK brings the retransmission; RFC 6582 §3.2: each partial ACK the next one.
#[test]
pub fn section_3_2_fast_retransmit_and_newreno() {
    let mut lab = Lab::passive(&reno());
    lab.send(10_000);
    lab.drain();
    lab.wait_ms(10);
    for n in 1..=3 {
        lab.get(seg(1, 0).ack(1));
        let sent = lab.drain();
        let again: Vec<_> = sent.iter().filter(|tx| tx.retransmission).collect();
        assert_eq!(again.len(), usize::from(n == 3), "duplicate {n}");
    }
    assert_eq!(lab.tcb.info(lab.now).snd_ssthresh, 5);
    // Segments 1 and 4 are lost: a partial ACK.
    for _ in 0..5 {
        lab.get(seg(1, 0).ack(1));
    }
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(3_001));
    let tx = lab.expect();
    assert!(tx.retransmission);
    lab.get(seg(1, 0).ack(10_001));
    assert_eq!(lab.tcb.info(lab.now).snd_cwnd, 5);
}

/// RFC 3042: the first two duplicate ACKs let new data out.
#[test]
pub fn rfc_3042_limited_transmit() {
    let mut lab = Lab::passive(&reno());
    lab.send(20_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    for n in 0..2 {
        lab.get(seg(1, 0).ack(1));
        lab.expect_data(10_001 + n * 1_000, 1_000);
        lab.expect_nothing();
    }
}

/// A window update is no duplicate ACK (§2).
#[test]
pub fn section_2_window_updates_are_no_duplicates() {
    let mut lab = Lab::passive(&reno());
    lab.send(10_000);
    lab.drain();
    for n in 1..=6 {
        lab.get(seg(1, 0).ack(1).wnd(50_000 - n));
        lab.get(seg(1, 0).ack(1).wnd(50_000 - n - 100));
    }
    assert!(lab.drain().iter().all(|tx| !tx.retransmission));
}

/// §4.1: after an idle period the window starts over from the restart window.
#[test]
pub fn section_4_1_idle() {
    let mut lab = Lab::passive(&plain());
    let mut acked = 1;
    for _ in 0..4 {
        lab.send(40_000);
        lab.drain();
        lab.wait_ms(10);
        let end = 1 + lab.tcb.info(lab.now).bytes_sent as u32;
        while acked + 1_000 <= end {
            acked += 1_000;
            lab.get(seg(1, 0).ack(acked));
        }
        lab.drain();
    }
    let end = 1 + lab.tcb.info(lab.now).bytes_sent as u32;
    lab.get(seg(1, 0).ack(end));
    lab.drain();
    let end = 1 + lab.tcb.info(lab.now).bytes_sent as u32;
    lab.get(seg(1, 0).ack(end));
    assert!(lab.tcb.info(lab.now).snd_cwnd > 20);
    lab.wait_ms(60_000);
    lab.send(200_000);
    lab.wnd = 60_000;
    lab.get(seg(1, 0).ack(end));
    assert_eq!(lab.drain().len(), 10);
}

/// RFC 6937: during recovery the window comes down to the threshold with the ACKs, neither at once nor in a burst.
#[test]
pub fn rfc_6937_prr() {
    let mut lab = Lab::passive(&Config { congestion: CongestionKind::NewReno, ..with_sack() });
    lab.send(60_000);
    lab.drain();
    lab.wait_ms(10);
    for n in 1..=10 {
        lab.get(seg(1, 0).ack(1 + n * 1_000));
    }
    assert_eq!(lab.drain().len(), 20, "twenty in flight");
    lab.wait_ms(10);
    let base = 10_001;
    let mut sent = 0;
    // The first of them is lost; the others are reported one by one.
    for n in 1..20 {
        lab.get(seg(1, 0).ack(base).sack(base + 1_000, base + (n + 1) * 1_000));
        let now = lab.drain().len();
        assert!(now <= 2, "a burst of {now} at {n}");
        sent += now;
    }
    // Ten segments is the new threshold: about one for every two that were delivered.
    assert!((9..=12).contains(&sent), "{sent}");
    lab.get(seg(1, 0).ack(base + 20_000));
    assert_eq!(lab.tcb.info(lab.now).snd_cwnd, 10);
}
