//! RFC 5961: Improving TCP's Robustness to Blind In-Window Attacks.

use crate::lab::{Lab, plain, seg, with_sack};
use utcp_proto::{DropReason, Events, Flags, SocketError, State};

/// §3.2: a reset in the window but not at RCV.NXT is challenged; an exact one counts; one outside is dropped.
#[test]
pub fn section_3_2_reset() {
    let mut lab = Lab::passive(&plain());
    for seq in [2, 5_000, 10_000] {
        lab.wait_ms(600);
        let out = lab.get(seg(seq, 0).flags(Flags::RST));
        assert_eq!(out.drop, Some(DropReason::RstNotExact));
        lab.expect_ack(1);
    }
    lab.wait_ms(600);
    let out = lab.get(seg(10_002, 0).flags(Flags::RST));
    assert_eq!(out.drop, Some(DropReason::RstOutOfWindow));
    lab.expect_nothing();
    let out = lab.get(seg(1, 0).flags(Flags::RST));
    assert_eq!(out.error, Some(SocketError::Reset));
}

/// §3.2 as Linux extends it: while segments are missing, who aborts resets at the end of what it sent, which is where our last SACK block
/// ends. Without SACK nobody can know.
#[test]
pub fn section_3_2_reset_behind_a_hole() {
    for (cfg, counts) in [(with_sack(), true), (plain(), false)] {
        let mut lab = Lab::passive(&cfg);
        lab.get(seg(1_001, 500).ack(1));
        lab.get(seg(2_001, 500).ack(1));
        lab.drain();
        for wrong in [1_501, 2_500, 2_502] {
            lab.wait_ms(600);
            assert_eq!(
                lab.get(seg(wrong, 0).flags(Flags::RST)).drop,
                Some(DropReason::RstNotExact),
                "{wrong}"
            );
        }
        assert_eq!(lab.get(seg(2_501, 0).flags(Flags::RST)).error.is_some(), counts);
    }
    // With a FIN behind the last block the reset comes after that.
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(1_001, 500).ack(1).flags(Flags::FIN));
    assert_eq!(lab.get(seg(1_502, 0).flags(Flags::RST)).error, Some(SocketError::Reset));
}

/// Linux tcp_reset_check: some systems end a program with a FIN and a RST that has the FIN's own number.
#[test]
pub fn section_3_2_reset_with_the_number_of_the_fin() {
    for acknowledged in [false, true] {
        let mut lab = Lab::passive(&plain());
        lab.get(seg(1, 100).ack(1));
        lab.drain();
        assert_eq!(lab.get(seg(100, 0).flags(Flags::RST)).error, None, "not before the FIN");
        lab.get(seg(101, 0).ack(1).flags(Flags::FIN));
        if acknowledged {
            lab.fire();
            lab.expect_ack(102);
        }
        assert_eq!(lab.get(seg(100, 0).flags(Flags::RST)).error, None);
        assert_eq!(lab.get(seg(101, 0).flags(Flags::RST)).error, Some(SocketError::BrokenPipe));
        assert_eq!(lab.state(), State::Closed);
    }
}

/// §4.2: a SYN in a synchronized state is challenged, whatever its number.
#[test]
pub fn section_4_2_syn() {
    let mut lab = Lab::passive(&plain());
    for seq in [1, 3, 9_000] {
        lab.wait_ms(600);
        let out = lab.get(seg(seq, 0).flags(Flags::SYN));
        assert_eq!(out.drop, Some(DropReason::SynInWindow));
        assert_eq!(lab.state(), State::Established);
        lab.expect_ack(1);
    }
}

/// §5.2: SND.UNA - MAX.SND.WND =< SEG.ACK =< SND.NXT, else challenge and drop the data.
#[test]
pub fn section_5_2_ack() {
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    lab.drain();
    lab.get(seg(1, 0).ack(3_001));
    for ack in [3_002, 3_001 + 0x8000_0000 - 10, 3_001u32.wrapping_sub(50_001)] {
        lab.wait_ms(600);
        let out = lab.get(seg(1, 10).ack(ack));
        assert_eq!((out.place, out.drop.is_some()), (None, true), "{ack}");
        lab.expect_ack(1);
    }
    let out = lab.get(seg(1, 10).ack(1));
    assert_eq!(out.advanced, 10, "an old ACK within the largest window does not spoil the data");
    // The largest window ever offered, once more than that has been sent.
    let mut una = 3_001;
    for _ in 0..20 {
        lab.drain();
        lab.send(3_000);
        lab.drain();
        una += 3_000;
        lab.get(seg(11, 0).ack(una));
    }
    lab.wait_ms(600);
    assert_eq!(lab.get(seg(11, 10).ack(una - 50_001)).drop, Some(DropReason::AckTooOld));
    assert_eq!(lab.get(seg(11, 10).ack(una - 50_000)).advanced, 10);
}

/// "Ghost ACKs": what was never sent can't be acknowledged, so a young connection leaves a stranger little to guess.
#[test]
pub fn section_5_2_ack_of_what_was_never_sent() {
    let mut lab = Lab::passive(&plain());
    for ack in [0u32.wrapping_sub(40_000), 0u32.wrapping_sub(1), 0] {
        lab.wait_ms(600);
        let out = lab.get(seg(1, 10).ack(ack));
        assert_eq!((out.place, out.drop), (None, Some(DropReason::AckTooOld)), "{ack}");
        assert!(out.events.any(Events::CHALLENGE));
        lab.expect_ack(1);
        // However many come.
        lab.get(seg(1, 10).ack(ack));
        lab.expect_nothing();
    }
    assert_eq!(lab.get(seg(1, 10).ack(1)).advanced, 10);
}

/// §7: challenge ACKs are limited.
#[test]
pub fn section_7_rate_limit() {
    let mut lab = Lab::passive(&plain());
    let mut answers = 0;
    for n in 0..1_000 {
        lab.wait_ms(1);
        lab.get(seg(2 + n, 0).flags(Flags::RST));
        answers += lab.drain().len();
    }
    assert!((1..=3).contains(&answers), "{answers}");
    lab.wait_ms(600);
    let out = lab.get(seg(2, 0).flags(Flags::SYN));
    assert!(out.events.any(Events::CHALLENGE), "the engine may limit them for all flows together");
}

/// §7 is about guesses. A peer that asks whether we live, for our window, or repeats a FIN has to be answered however many of
/// those there are elsewhere; else a stranger who can make the stack spend its challenges could end all its idle connections.
#[test]
pub fn section_7_probes_are_no_challenges() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 100).ack(1));
    lab.drain();
    for keep_alive in [seg(100, 0).ack(1), seg(100, 1).ack(1)] {
        lab.wait_ms(600);
        let out = lab.get(keep_alive);
        assert!(!out.events.any(Events::CHALLENGE));
        lab.expect_ack(101);
    }
    // A FIN, and again while the last answer may still be on its way or was lost.
    lab.get(seg(101, 0).ack(1).flags(Flags::FIN));
    lab.wait_ms(50);
    lab.tcb.on_timer(lab.now);
    lab.expect_ack(102);
    for _ in 0..3 {
        lab.wait_ms(1);
        let out = lab.get(seg(101, 0).ack(1).flags(Flags::FIN));
        assert_eq!((out.drop, out.events.any(Events::CHALLENGE)), (Some(DropReason::AfterFin), false));
        lab.expect_ack(102);
    }
    // A SYN that brings bytes is one all the same.
    lab.wait_ms(600);
    let answers = (0..50).filter(|_| {
        lab.get(seg(50, 10).flags(Flags::SYN));
        lab.sent().is_some()
    });
    assert_eq!(answers.count(), 1);
}
