//! RFC 9293: Transmission Control Protocol: opening, closing, resets.

use crate::lab::{Lab, irs, iss, plain, seg, tuple};
use utcp_proto::{
    Config, DropReason, Duration, Events, Flags, HalfOpen, HalfOpenVerdict, Instant, Segment, SeqNum,
    SocketError, State, UserCall, UserError, reset_for,
};

/// §3.5, figure 6.
#[test]
pub fn three_way_handshake_active() {
    let (mut lab, syn) = Lab::connecting(&plain());
    assert_eq!((syn.seq, syn.ack, syn.flags), (iss(), None, Flags::SYN));
    assert_eq!(syn.options.mss, Some(1_000), "MUST-14: MSS in every SYN");
    let out = lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    assert!(out.events.any(Events::CONNECTED));
    assert_eq!(lab.state(), State::Established);
    let ack = lab.expect_ack(1);
    assert_eq!(ack.seq, iss() + 1);
    lab.expect_nothing();
}

/// §3.5, figure 7: simultaneous open, MUST-10.
#[test]
pub fn must_10_simultaneous_open() {
    let (mut lab, _) = Lab::connecting(&plain());
    lab.get(seg(0, 0).flags(Flags::SYN));
    assert_eq!(lab.state(), State::SynReceived);
    let sa = lab.expect();
    assert_eq!((sa.seq, sa.ack, sa.flags), (iss(), Some(irs() + 1), Flags::SYN));
    let out = lab.get(seg(0, 0).flags(Flags::SYN).ack(1));
    assert!(out.events.any(Events::CONNECTED), "{out:?}");
    assert_eq!(lab.state(), State::Established);
    lab.send(10);
    lab.expect_data(1, 10);
}

/// §3.5: the same with the peer's ACK rather than its SYN-ACK arriving first.
#[test]
pub fn simultaneous_open_completed_by_a_plain_ack() {
    let (mut lab, _) = Lab::connecting(&plain());
    lab.get(seg(0, 0).flags(Flags::SYN));
    lab.expect();
    lab.get(seg(1, 5).ack(1));
    assert_eq!(lab.state(), State::Established);
    assert_eq!(lab.last.advanced, 5);
}

/// §3.10.7.3, first: an ACK of something else is answered by a reset, and the connection attempt goes on.
#[test]
pub fn syn_sent_answers_a_wrong_ack_with_a_reset() {
    let (mut lab, _) = Lab::connecting(&plain());
    for wrong in [0, 2, 1_000] {
        lab.get(seg(0, 0).ack(wrong).flags(Flags::SYN));
        assert_eq!(lab.last.drop, Some(DropReason::AckOfUnsent));
        let rst = lab.expect_rst(wrong);
        assert_eq!(rst.ack, None);
    }
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    assert_eq!(lab.state(), State::Established);
}

/// §3.10.7.3, second: only a reset that acknowledges our SYN refuses it.
#[test]
pub fn syn_sent_reset() {
    let (mut lab, _) = Lab::connecting(&plain());
    lab.get(seg(0, 0).flags(Flags::RST));
    lab.get(seg(0, 0).ack(2).flags(Flags::RST));
    assert_eq!(lab.state(), State::SynSent);
    lab.expect_nothing();
    let out = lab.get(seg(0, 0).ack(1).flags(Flags::RST));
    assert_eq!(out.error, Some(SocketError::Refused));
    assert!(out.events.any(Events::CLOSED));
    lab.expect_nothing();
}

/// §3.10.7.3: data and FIN in the SYN-ACK are not lost.
#[test]
pub fn syn_ack_with_data_and_fin() {
    let (mut lab, _) = Lab::connecting(&plain());
    let out = lab.get(seg(0, 20).ack(1).flags(Flags::SYN.with(Flags::FIN)));
    assert_eq!(out.advanced, 20);
    assert!(out.events.any(Events::CONNECTED) && out.events.any(Events::PEER_FIN));
    assert_eq!(lab.state(), State::CloseWait);
    lab.expect_ack(22);
}

/// §3.10.7.2, third, and §3.10.7.4: a listener's half-open connection.
#[test]
pub fn half_open_checks_the_third_segment() {
    let now = Instant::from_millis(5_000);
    let syn = Segment { seq: irs(), flags: Flags::SYN, wnd: 100, ..Segment::default() };
    let mut half = HalfOpen::on_syn(&plain(), now, tuple(), iss(), &syn);
    assert_eq!(half.on_segment(now, &syn), HalfOpenVerdict::ResendSynAck);
    let none = seg(1, 0).0;
    assert_eq!(half.on_segment(now, &none), HalfOpenVerdict::Drop(DropReason::AckMissing));
    for wrong in [0, 2] {
        let HalfOpenVerdict::Reset(rst, _) = half.on_segment(now, &seg(1, 0).ack(wrong).0) else {
            panic!("no reset for ACK {wrong}");
        };
        assert_eq!((rst.seq, rst.flags), (iss() + wrong, Flags::RST));
    }
    // RFC 5961 §7: the repeated SYN was answered just now.
    let outside = seg(20_000, 0).ack(1).0;
    assert_eq!(half.on_segment(now, &outside), HalfOpenVerdict::Drop(DropReason::OutOfWindow));
    let now = now + Duration::from_secs(1);
    assert!(matches!(half.on_segment(now, &outside), HalfOpenVerdict::Ack(..)));
    assert_eq!(
        half.on_segment(now, &seg(1, 0).flags(Flags::RST).0),
        HalfOpenVerdict::Remove(DropReason::Closed),
        "back to LISTEN"
    );
    assert_eq!(half.on_segment(now, &seg(1, 0).ack(1).0), HalfOpenVerdict::Established);
}

/// §3.10.7.1: CLOSED.
#[test]
pub fn closed_answers_with_a_reset() {
    let (mut lab, _) = Lab::connecting(&plain());
    lab.user(UserCall::Close);
    assert_eq!(lab.state(), State::Closed);
    let rst = reset_for(&seg(5, 7).0).expect("a reset");
    assert_eq!((rst.seq, rst.ack), (SeqNum::new(0), Some(irs() + 12)));
    assert_eq!(lab.try_user(UserCall::Shutdown), Err(UserError::NotConnected));
}

/// §3.6, figure 12: normal close, from the end that closes first.
#[test]
pub fn active_close_ends_in_time_wait() {
    let mut lab = Lab::passive(&plain());
    lab.send(100);
    lab.user(UserCall::Shutdown);
    let tx = lab.expect_data(1, 100);
    assert!(tx.flags.any(Flags::FIN));
    assert_eq!(lab.state(), State::FinWait1);
    let out = lab.get(seg(1, 0).ack(102));
    assert_eq!((out.released, lab.state()), (100, State::FinWait2));
    assert!(out.events.any(Events::FIN_ACKED));
    // Half-closed: the peer may go on sending (MUST-13 and §3.6, case 1).
    assert_eq!(lab.get(seg(1, 500).ack(102)).advanced, 500);
    let out = lab.get(seg(501, 0).ack(102).flags(Flags::FIN));
    assert!(out.events.any(Events::TIME_WAIT) && out.events.any(Events::PEER_FIN));
    lab.expect_ack(502);
    let wait = lab.tcb.time_wait(lab.now).expect("a record");
    assert_eq!((wait.expires() - lab.now).as_millis(), 60_000);
}

/// §3.6, figure 12: from the other end.
#[test]
pub fn passive_close_ends_in_closed() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
    assert!(out.events.any(Events::PEER_FIN));
    assert_eq!(lab.state(), State::CloseWait);
    lab.expect_ack(2);
    lab.send(10);
    lab.expect_data(1, 10);
    lab.user(UserCall::Shutdown);
    assert_eq!(lab.state(), State::LastAck);
    let fin = lab.expect_data(11, 0);
    assert!(fin.flags.any(Flags::FIN));
    let out = lab.get(seg(2, 0).ack(12));
    assert!(out.events.any(Events::CLOSED));
    assert_eq!((out.released, out.error), (10, None));
}

/// §3.6, figure 13: simultaneous close.
#[test]
pub fn simultaneous_close() {
    let mut lab = Lab::passive(&plain());
    lab.user(UserCall::Shutdown);
    lab.expect_data(1, 0);
    lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
    assert_eq!(lab.state(), State::Closing);
    lab.expect_ack(2);
    let out = lab.get(seg(2, 0).ack(2));
    assert!(out.events.any(Events::TIME_WAIT));
}

/// §3.6.1 and RFC 1122 §4.2.2.13: data for a closed socket resets the connection.
#[test]
pub fn data_after_close_resets() {
    let mut lab = Lab::passive(&plain());
    lab.user(UserCall::Close);
    lab.expect_data(1, 0);
    lab.get(seg(1, 0).ack(2));
    assert_eq!(lab.state(), State::FinWait2);
    let out = lab.get(seg(1, 10).ack(2));
    assert_eq!(out.drop, Some(DropReason::Orphan));
    assert!(out.events.any(Events::CLOSED));
    lab.expect_rst(2);
}

/// RFC 1122 §4.2.2.13 as Linux reads it: a program that shut both sides wants no data either; one that still sends, does.
#[test]
pub fn data_after_both_sides_were_shut_is_reset() {
    for (shut_write, state) in [(true, State::Closed), (false, State::Established)] {
        let mut lab = Lab::passive(&plain());
        lab.user(UserCall::ShutdownRead);
        if shut_write {
            lab.user(UserCall::Shutdown);
        }
        lab.drain();
        let out = lab.get(seg(1, 100).ack(1));
        assert_eq!(lab.state(), state);
        let expected = shut_write.then_some((DropReason::Orphan, SocketError::Reset));
        assert_eq!(out.drop.zip(out.error), expected);
    }
}

/// §3.6.1: close with unread data resets, so that the peer learns of the loss.
#[test]
pub fn close_with_unread_data_resets() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 10).ack(1));
    let out = lab.user(UserCall::Close);
    assert!(out.events.any(Events::CLOSED));
    lab.expect_rst(1);
    lab.expect_nothing();
}

/// §3.10.5: ABORT in the synchronized states sends a reset; in SYN-SENT it just forgets.
#[test]
pub fn abort() {
    let mut lab = Lab::passive(&plain());
    lab.send(5_000);
    lab.expect_data(1, 1_000);
    lab.user(UserCall::Abort);
    lab.expect_rst(1_001);
    lab.expect_nothing();
    assert_eq!(lab.tcb.next_deadline(), None);
    let (mut lab, _) = Lab::connecting(&plain());
    let out = lab.user(UserCall::Abort);
    assert!(out.events.any(Events::CLOSED));
    lab.expect_nothing();
}

/// §3.10.7.4, second: a valid reset in each state.
#[test]
pub fn reset_in_every_state() {
    #[track_caller]
    fn check(mut lab: Lab, seq: u32, state: State, error: Option<SocketError>) {
        assert_eq!(lab.state(), state);
        lab.drain();
        let out = lab.get(seg(seq, 0).flags(Flags::RST));
        assert_eq!(out.error, error, "{state:?}");
        assert!(out.events.any(Events::CLOSED));
        assert_eq!(lab.tcb.next_deadline(), None);
        lab.expect_nothing();
    }
    let established = || Lab::passive(&plain());
    check(established(), 1, State::Established, Some(SocketError::Reset));
    let mut lab = established();
    lab.user(UserCall::Shutdown);
    check(lab, 1, State::FinWait1, Some(SocketError::Reset));
    let mut lab = established();
    lab.user(UserCall::Shutdown);
    lab.drain();
    lab.get(seg(1, 0).ack(2));
    check(lab, 1, State::FinWait2, Some(SocketError::Reset));
    let mut lab = established();
    lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
    check(lab, 2, State::CloseWait, Some(SocketError::BrokenPipe));
    let mut lab = established();
    lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
    lab.user(UserCall::Shutdown);
    check(lab, 2, State::LastAck, None);
    let mut lab = established();
    lab.user(UserCall::Shutdown);
    lab.drain();
    lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
    check(lab, 2, State::Closing, None);
    let (mut lab, _) = Lab::connecting(&plain());
    lab.get(seg(0, 0).flags(Flags::SYN));
    check(lab, 1, State::SynReceived, Some(SocketError::Refused));
}

/// §3.10.2 to §3.10.4: calls that the state does not allow.
#[test]
pub fn calls_in_the_wrong_state() {
    let send = UserCall::Send { added: 1, more: false, urgent: false };
    let mut lab = Lab::passive(&plain());
    assert_eq!(lab.try_user(UserCall::Received { n: 1 }), Err(UserError::Overrun));
    lab.user(UserCall::Shutdown);
    assert_eq!(lab.try_user(send), Err(UserError::NotWritable));
    assert!(lab.try_user(UserCall::Shutdown).is_ok(), "once more does no harm");
    lab.user(UserCall::Abort);
    assert_eq!(lab.try_user(send), Err(UserError::NotConnected));
}

/// §3.4.1, MUST-8 and MUST-9, SHLD-1: the ISN follows a clock of 4 µs plus a keyed hash of the four-tuple.
#[test]
pub fn must_8_9_initial_sequence_numbers() {
    let secret = utcp_proto::isn::Secret::new(1, 2);
    let now = Instant::from_millis(10);
    let first = secret.isn(&tuple(), now);
    let later = secret.isn(&tuple(), Instant::from_millis(1_010));
    assert!(first.distance_to(later).abs_diff(244_140) <= 1, "one tick in 4.096 µs");
    let mut other = tuple();
    other.remote.port += 1;
    assert_ne!(secret.isn(&other, now), first);
    assert_ne!(utcp_proto::isn::Secret::new(1, 3).isn(&tuple(), now), first);
    // Timestamps are shared by the ports of a host pair (RFC 7323 §5.4), ISNs are not.
    assert_eq!(secret.ts_offset(&other), secret.ts_offset(&tuple()));
}

/// §3.8.3, MUST-20 to MUST-23: R2 and the SYN's R2.
#[test]
pub fn must_23_syn_gives_up() {
    let (mut lab, _) = Lab::connecting(&Config { syn_retries: 3, ..plain() });
    let mut waits = Vec::new();
    for _ in 0..3 {
        let (ms, tx) = lab.next_sent();
        assert!(tx.flags.any(Flags::SYN) && tx.seq == iss());
        waits.push(ms);
    }
    assert_eq!(waits, [1_000, 2_000, 4_000]);
    lab.fire();
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
    assert_eq!((lab.now - Instant::from_millis(1_000_000)).as_millis(), 15_000);
}
