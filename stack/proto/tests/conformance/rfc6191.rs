//! RFC 6191 (timestamps and TIME-WAIT), RFC 1337 (TIME-WAIT assassination), RFC 9293 §3.10.7.4 for TIME-WAIT.

use crate::lab::{Lab, irs, iss, plain, seg};
use utcp_proto::{Config, DropReason, Duration, Flags, TimeWait, TimeWaitVerdict, UserCall};

fn time_wait(cfg: &Config) -> (TimeWait, Lab) {
    let mut lab = Lab::passive(cfg);
    let ts = |s: crate::lab::Seg, val| if cfg.timestamps { s.ts(val, 0) } else { s };
    lab.user(UserCall::Shutdown);
    lab.drain();
    lab.get(ts(seg(1, 0).ack(2).flags(Flags::FIN), 2_000));
    lab.drain();
    (lab.tcb.time_wait(lab.now).expect("TIME-WAIT"), lab)
}

/// "Acknowledge it, and restart the 2 MSL timeout."
#[test]
pub fn a_repeated_fin_is_acknowledged_and_restarts_the_wait() {
    let (mut wait, lab) = time_wait(&plain());
    let later = lab.now + Duration::from_secs(30);
    let verdict = wait.on_segment(later, &seg(1, 0).ack(2).flags(Flags::FIN).0);
    let TimeWaitVerdict::Ack(tx, DropReason::Duplicate) = verdict else { panic!("{verdict:?}") };
    assert_eq!((tx.seq, tx.ack), (iss() + 2, Some(irs() + 2)));
    assert_eq!((wait.expires() - later).as_millis(), 60_000);
}

/// RFC 6191 §2: a newer timestamp makes a SYN new, even with an older sequence number; an older never.
#[test]
pub fn section_2_reuse_by_timestamp() {
    #[track_caller]
    fn check(seq: u32, val: u32, reused: bool) {
        let (mut wait, lab) = time_wait(&Config { timestamps: true, ..plain() });
        let verdict = wait.on_segment(lab.now, &seg(seq, 0).flags(Flags::SYN).ts(val, 0).0);
        assert_eq!(matches!(verdict, TimeWaitVerdict::Reuse { .. }), reused, "{verdict:?}");
        if let TimeWaitVerdict::Reuse { iss } = verdict {
            assert!(iss.after(crate::lab::iss() + 2 + 65_535), "beyond all that the old one sent");
        }
    }
    check(100, 2_001, true);
    check(0u32.wrapping_sub(500), 2_001, true);
    check(100, 2_000, true);
    check(2, 2_000, false);
    check(100, 1_999, false);
}

/// A stranger who knows the addresses and ports alone must not move the peer's clock ahead, or its next SYN would be refused for as
/// long as TIME-WAIT lasts. As in Linux only an empty segment at RCV.NXT tells the time.
#[test]
pub fn section_2_a_guess_does_not_set_the_clock() {
    let cfg = Config { timestamps: true, ..plain() };
    let (guess, ahead) = (0u32.wrapping_sub(90_000), 2_000 + 0x7000_0000);
    for forged in [
        seg(guess, 0).ack(2),
        seg(guess, 10).ack(2),
        seg(guess, 0).ack(2).flags(Flags::FIN),
        seg(1, 0).ack(2),
    ] {
        let (mut wait, lab) = time_wait(&cfg);
        let _ = wait.on_segment(lab.now, &forged.ts(ahead, 0).0);
        let verdict = wait.on_segment(lab.now, &seg(100, 0).flags(Flags::SYN).ts(2_001, 0).0);
        assert!(matches!(verdict, TimeWaitVerdict::Reuse { .. }), "{verdict:?}");
    }
    let (mut wait, lab) = time_wait(&cfg);
    let _ = wait.on_segment(lab.now, &seg(2, 0).ack(2).ts(3_000, 0).0);
    let verdict = wait.on_segment(lab.now, &seg(100, 0).flags(Flags::SYN).ts(2_001, 0).0);
    assert!(!matches!(verdict, TimeWaitVerdict::Reuse { .. }), "what the peer said counts: {verdict:?}");
}

/// RFC 6191 §2: without timestamps the sequence number decides.
#[test]
pub fn section_2_reuse_by_sequence_number() {
    let (mut wait, lab) = time_wait(&plain());
    assert!(matches!(wait.on_segment(lab.now, &seg(2, 0).flags(Flags::SYN).0), TimeWaitVerdict::Ack(..)));
    assert!(matches!(
        wait.on_segment(lab.now, &seg(3, 0).flags(Flags::SYN).0),
        TimeWaitVerdict::Reuse { .. }
    ));
}

/// RFC 1337 §3: a reset does not end TIME-WAIT, unless the configuration says so and it is exact.
#[test]
pub fn rfc_1337_assassination() {
    let (mut wait, lab) = time_wait(&plain());
    let exact = seg(2, 0).flags(Flags::RST).0;
    assert_eq!(wait.on_segment(lab.now, &exact), TimeWaitVerdict::Drop(DropReason::TimeWaitRst));
    let (mut wait, lab) = time_wait(&Config { rfc1337: false, ..plain() });
    let inexact = seg(3, 0).flags(Flags::RST).0;
    assert_eq!(wait.on_segment(lab.now, &inexact), TimeWaitVerdict::Drop(DropReason::TimeWaitRst));
    assert_eq!(wait.on_segment(lab.now, &exact), TimeWaitVerdict::Remove);
}

/// Two ends in TIME-WAIT can't keep each other busy with ACKs.
#[test]
pub fn answers_are_limited() {
    let (mut wait, lab) = time_wait(&plain());
    let stray = seg(50_000, 0).ack(2).0;
    let answers =
        (0..100).filter(|_| matches!(wait.on_segment(lab.now, &stray), TimeWaitVerdict::Ack(..))).count();
    assert_eq!(answers, 1);
}

/// Linux `tcp_tw_reuse`: our own next connection over the same four-tuple.
#[test]
pub fn connecting_again_needs_timestamps_and_a_second() {
    let (wait, lab) = time_wait(&plain());
    assert_eq!(wait.reuse_for_connect(lab.now + Duration::from_secs(10)), None);
    let (wait, lab) = time_wait(&Config { timestamps: true, ..plain() });
    assert_eq!(wait.reuse_for_connect(lab.now), None);
    assert!(wait.reuse_for_connect(lab.now + Duration::from_secs(1)).is_some());
}
