//! RFC 3168: Explicit Congestion Notification.

use crate::lab::{Lab, peer_options, plain, seg};
use utcp_proto::{Config, EcnMode, Flags, HalfOpen, Instant, RecoveryState, Segment};

const SETUP: Flags = Flags::ECE.with(Flags::CWR);

fn ecn() -> Config {
    Config { ecn: EcnMode::Active, ..plain() }
}

fn lab() -> Lab {
    Lab::passive_with(&ecn(), peer_options(&ecn()), SETUP)
}

/// §6.1.1: ECE and CWR ask, ECE alone agrees.
#[test]
pub fn section_6_1_1_negotiation() {
    let (mut lab, syn) = Lab::connecting(&ecn());
    assert!(syn.flags.all(SETUP) && !syn.ect);
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN.with(Flags::ECE)));
    assert!(lab.tcb.info(lab.now).ecn);
    let (mut lab, _) = Lab::connecting(&ecn());
    // A peer that reflects the flags has not understood them.
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN.with(SETUP)));
    assert!(!lab.tcb.info(lab.now).ecn);
    let syn = Segment { flags: Flags::SYN.with(SETUP), ..Segment::default() };
    for (mode, agreed) in [(EcnMode::Off, false), (EcnMode::Passive, true), (EcnMode::Active, true)] {
        let cfg = Config { ecn: mode, ..plain() };
        let half = HalfOpen::on_syn(&cfg, Instant::ZERO, crate::lab::tuple(), crate::lab::iss(), &syn);
        let sa = half.syn_ack(Instant::ZERO);
        assert_eq!(sa.flags.any(Flags::ECE), agreed);
        assert!(!sa.flags.any(Flags::CWR) && !sa.ect);
    }
    let (_, syn) = Lab::connecting(&plain());
    assert!(!syn.flags.any(SETUP), "passive does not ask");
}

/// §6.1.1.1: something on the path may drop a SYN that asks, so the next one does not.
#[test]
pub fn section_6_1_1_1_a_repeated_syn_does_not_ask() {
    let (mut lab, syn) = Lab::connecting(&ecn());
    assert!(syn.flags.all(SETUP));
    for _ in 0..3 {
        let (_, again) = lab.next_sent();
        assert_eq!((again.seq, again.flags), (syn.seq, Flags::SYN));
    }
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    assert!(!lab.tcb.info(lab.now).ecn);
}

/// §6.1.2, §6.1.4, §6.1.5: data is ECT, bare ACKs and retransmissions are not.
#[test]
pub fn section_6_1_2_which_segments_are_ect() {
    let mut lab = lab();
    lab.send(1_000);
    assert!(lab.expect_data(1, 1_000).ect);
    let (_, again) = lab.next_sent();
    assert!(again.retransmission && !again.ect);
    lab.get(seg(1, 100).ack(1));
    assert!(!lab.expect_ack(101).ect);
}

/// §6.1.3: a mark is echoed in every ACK until CWR.
#[test]
pub fn section_6_1_3_receiver_echoes() {
    let mut lab = lab();
    lab.get(seg(1, 100).ack(1).ce());
    assert!(lab.expect_ack(101).flags.any(Flags::ECE));
    lab.get(seg(101, 100).ack(1));
    assert!(lab.expect_ack(201).flags.any(Flags::ECE));
    lab.get(seg(201, 100).ack(1).flags(Flags::CWR));
    assert!(!lab.expect_ack(301).flags.any(Flags::ECE));
}

/// §6.1.2: an echo halves the window once per round trip, and CWR says so.
#[test]
pub fn section_6_1_2_sender_reacts_once() {
    let mut lab = lab();
    lab.send(30_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1_001).flags(Flags::ECE));
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Cwr);
    let threshold = lab.tcb.info(lab.now).snd_ssthresh;
    let mut cwr = lab.drain().iter().filter(|tx| tx.flags.any(Flags::CWR)).count();
    for n in 2..=10 {
        lab.get(seg(1, 0).ack(1 + n * 1_000).flags(Flags::ECE));
        cwr += lab.drain().iter().filter(|tx| tx.flags.any(Flags::CWR)).count();
        assert_eq!(lab.tcb.info(lab.now).snd_ssthresh, threshold);
    }
    assert_eq!(cwr, 1);
    assert_eq!(lab.tcb.info(lab.now).total_retrans, 0);
}
