//! RFC 5961: Improving TCP's Robustness to Blind In-Window Attacks.

use crate::lab::{Lab, plain, seg};
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
    let out = lab.get(seg(1, 10).ack(3_001u32.wrapping_sub(50_000)));
    assert_eq!(out.advanced, 10, "an old ACK within the largest window does not spoil the data");
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
