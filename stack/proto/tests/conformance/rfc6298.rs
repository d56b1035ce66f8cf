//! RFC 6298: Computing TCP's Retransmission Timer.

use crate::lab::{Lab, plain, seg, with_sack};
use utcp_proto::{Config, Flags};

/// §5.1, §5.2: the timer runs while something is in flight, and stops when all is acknowledged.
#[test]
pub fn section_5_1_5_2_timer_follows_the_flight() {
    let mut lab = Lab::passive(&plain());
    assert_eq!(lab.tcb.next_deadline(), None);
    lab.send(2_000);
    lab.drain();
    let first = lab.tcb.next_deadline().expect("a timer");
    let wait = (first - lab.now).as_micros();
    assert!(wait.abs_diff(210_000) < 10, "SRTT 10 ms and the floor: {wait}");
    lab.wait_ms(100);
    // §5.3: restarted when new data is acknowledged.
    lab.get(seg(1, 0).ack(1_001));
    assert!(lab.tcb.next_deadline().expect("a timer") > first);
    lab.get(seg(1, 0).ack(2_001));
    assert_eq!(lab.tcb.next_deadline(), None);
}

/// §5.4 to §5.6: the earliest segment again, alone, with twice the timeout.
#[test]
pub fn section_5_4_to_5_6_timeout() {
    let mut lab = Lab::passive(&plain());
    lab.send(5_000);
    assert_eq!(lab.drain().len(), 5);
    let mut last = lab.fire();
    for _ in 0..4 {
        lab.expect_data(1, 1_000);
        lab.expect_nothing();
        let next = lab.fire();
        assert!(next.abs_diff(2 * last) < 10, "{next} after {last}");
        last = next;
    }
    lab.expect_data(1, 1_000);
    // RFC 5681 §3.1: slow start from one segment.
    lab.get(seg(1, 0).ack(1_001));
    lab.expect_data(1_001, 1_000);
    lab.expect_data(2_001, 1_000);
    lab.expect_nothing();
}

/// §3, Karn's algorithm: no sample from a segment sent twice.
#[test]
pub fn section_3_karn() {
    let mut lab = Lab::passive(&plain());
    let before = lab.tcb.info(lab.now).rtt;
    lab.send(10);
    lab.drain();
    lab.next_sent();
    lab.wait_ms(500);
    lab.get(seg(1, 0).ack(11));
    assert_eq!(lab.tcb.info(lab.now).rtt, before);
    // Nor from one that a tail loss probe repeats, which is not held for lost.
    let mut lab = Lab::passive(&with_sack());
    let before = lab.tcb.info(lab.now).rtt;
    lab.send(10);
    lab.drain();
    let (ms, probe) = lab.next_sent();
    assert!(probe.retransmission && ms < 250, "{ms}");
    assert_eq!(lab.tcb.info(lab.now).lost, 0);
    lab.wait_ms(100);
    lab.get(seg(1, 0).ack(11));
    assert_eq!(lab.tcb.info(lab.now).rtt, before);
}

/// §5.7: a SYN that had to be repeated: three seconds, and RFC 5681 §3.1: a window of one segment.
#[test]
pub fn section_5_7_lost_syn() {
    let (mut lab, _) = Lab::connecting(&plain());
    let (ms, tx) = lab.next_sent();
    assert!(ms == 1_000 && tx.flags.any(Flags::SYN));
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    lab.send(5_000);
    let sent: Vec<u32> = lab.drain().iter().map(|tx| tx.len).collect();
    assert_eq!(sent, [536]);
    assert_eq!((lab.tcb.next_deadline().expect("a timer") - lab.now).as_millis(), 3_000);
}

/// §2.4 with the floor that Linux uses, and a floor of one's own.
#[test]
pub fn section_2_4_floor() {
    let cfg = Config { rto_min: utcp_proto::Duration::from_millis(50), ..plain() };
    let mut lab = Lab::passive(&cfg);
    lab.send(10);
    lab.drain();
    let wait = (lab.tcb.next_deadline().expect("a timer") - lab.now).as_micros();
    assert!(wait.abs_diff(60_000) < 10, "{wait}");
}

/// RFC 5682 §3 with SACK: an ACK of what was never sent again proves the timeout wrong, and the window is restored.
#[test]
pub fn rfc_5682_spurious_timeout_with_sack() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    assert_eq!(lab.drain().len(), 10);
    let before = lab.tcb.info(lab.now).snd_cwnd;
    // The tail loss probe, then the timeout.
    lab.next_sent();
    let (_, again) = lab.next_sent();
    assert!(again.retransmission);
    assert_eq!(lab.tcb.info(lab.now).snd_cwnd, 1);
    lab.get(seg(1, 0).ack(1_001));
    lab.get(seg(1, 0).ack(3_001));
    assert!(lab.tcb.info(lab.now).snd_cwnd >= before, "{:?}", lab.tcb.info(lab.now));
    assert!(lab.drain().iter().all(|tx| !tx.retransmission));
}

/// RFC 3522 §3.2 (Eifel): the echoed timestamp is older than the retransmission.
#[test]
pub fn rfc_3522_spurious_timeout_by_timestamp() {
    let mut lab = Lab::passive(&Config { timestamps: true, ..plain() });
    lab.send(10_000);
    let first = lab.drain()[0].options.timestamps.expect("a timestamp");
    let before = lab.tcb.info(lab.now).snd_cwnd;
    let (_, again) = lab.next_sent();
    assert!(again.retransmission);
    lab.wait_ms(5);
    lab.get(seg(1, 0).ack(1_001).ts(2_000, first.val));
    assert!(lab.tcb.info(lab.now).snd_cwnd >= before);
    assert!(lab.drain().iter().all(|tx| !tx.retransmission));
}
