//! RFC 1122 §4.2: delayed ACKs, keep-alive, ICMP errors; RFC 5482: the user timeout.

use crate::lab::{Lab, irs, iss, plain, seg};
use utcp_proto::{
    Config, DropReason, Duration, Events, Flags, IcmpError, IcmpKind, Keepalive, SocketError, State, UserCall,
};

/// §4.2.3.2 and RFC 9293 MUST-40, SHLD-19: every second full segment at once, a single one within half a second.
#[test]
pub fn must_40_delayed_ack() {
    let mut lab = Lab::passive(&plain());
    lab.user(UserCall::SetQuickAck(false));
    lab.get(seg(1, 1_000).ack(1));
    lab.expect_nothing();
    lab.get(seg(1_001, 1_000).ack(1));
    lab.expect_ack(2_001);
    lab.get(seg(2_001, 1_000).ack(1));
    lab.expect_nothing();
    let (ms, tx) = lab.next_sent();
    assert!(ms <= 40 && tx.len == 0, "{ms}");
}

/// A new connection is acknowledged at once, so that the peer's slow start gets going.
#[test]
pub fn quick_acks_at_the_start() {
    let mut lab = Lab::passive(&plain());
    for n in 0..8 {
        lab.get(seg(1 + n * 100, 100).ack(1));
        lab.expect_ack(101 + n * 100);
    }
}

/// But the first bytes may be a request, whose answer brings the ACK along if it comes within a millisecond.
#[test]
pub fn the_first_ack_waits_for_an_answer() {
    let request = || seg(1, 100).ack(1).flags(Flags::PSH);
    let mut lab = Lab::passive(&plain());
    lab.get(request());
    lab.expect_nothing();
    assert!(!lab.tcb.acks_when_read(), "nobody has to tell that it was read");
    lab.send(50);
    let answer = lab.expect();
    assert_eq!((answer.len, answer.ack), (50, Some(irs() + 101)));
    lab.expect_nothing();

    let mut lab = Lab::passive(&plain());
    lab.get(request());
    let (ms, ack) = lab.next_sent();
    assert!(ms <= 1 && ack.len == 0 && ack.ack == Some(irs() + 101), "{ms} ms: {ack:?}");
    // The next ones don't wait, nor do those that TCP_QUICKACK is set for, or a second segment.
    lab.get(seg(101, 100).ack(1).flags(Flags::PSH));
    lab.expect_ack(201);
    let mut lab = Lab::passive(&plain());
    lab.user(UserCall::SetQuickAck(true));
    lab.get(request());
    lab.expect_ack(101);
    let mut lab = Lab::passive(&plain());
    lab.get(request());
    lab.get(seg(101, 100).ack(1).flags(Flags::PSH));
    lab.expect_ack(201);
}

/// As Linux's tcp_cleanup_rbuf: a small segment that was read to the end is acknowledged at once where nothing is answered, as the peer's
/// Nagle algorithm may be waiting; so is a full one that ends a write. One in the middle of a bulk waits for the next.
#[test]
pub fn read_to_the_end_in_one_direction() {
    for (len, flags, at_once) in
        [(10, Flags::NONE, true), (1_000, Flags::PSH, true), (1_000, Flags::NONE, false)]
    {
        let mut lab = Lab::passive(&plain());
        for n in 1..=16 {
            lab.get(seg(n, 1).ack(1));
            lab.expect_ack(n + 1);
            lab.received(1);
        }
        lab.get(seg(17, len).flags(flags).ack(1));
        lab.expect_nothing();
        assert_eq!(lab.tcb.acks_when_read(), at_once, "{len} {flags:?}");
        lab.received(len);
        if at_once {
            lab.expect_ack(17 + len);
        }
        assert!(!lab.tcb.acks_when_read());
    }
}

/// What goes to and fro is acknowledged by the answer, however soon it was read.
#[test]
pub fn read_to_the_end_to_and_fro() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 50).ack(1));
    lab.drain();
    lab.received(50);
    lab.send(70);
    lab.expect_data(1, 70);
    lab.get(seg(51, 50).ack(71));
    assert!(!lab.tcb.acks_when_read());
    lab.received(50);
    lab.expect_nothing();
}

/// Request and response: the ACK rides on the response.
#[test]
pub fn interactive_exchange_delays_acks() {
    let mut lab = Lab::passive(&Config { nodelay: true, ..plain() });
    for n in 0..3 {
        lab.get(seg(1 + n * 50, 50).ack(1 + n * 70));
        if n == 0 {
            lab.expect_ack(51);
        } else {
            lab.expect_nothing();
        }
        lab.send(70);
        lab.expect_data(1 + n * 70, 70);
        lab.expect_nothing();
    }
}

/// An exchange to and fro whose requests have several segments: the ACK rides on the response there, too. The first may not: nobody
/// knows yet that it is one.
#[test]
pub fn long_requests_are_acknowledged_by_the_response() {
    let mut lab = Lab::passive(&Config { nodelay: true, ..plain() });
    for n in 0..4 {
        let (from, next) = (1 + n * 3_000, 1 + (n + 1) * 3_000);
        lab.get(seg(from, 3_000).ack(1 + n * 70).flags(Flags::PSH));
        if n == 0 {
            lab.expect_ack(next);
        } else {
            lab.expect_nothing();
        }
        lab.received(3_000);
        lab.send(70);
        lab.expect_data(1 + n * 70, 70);
        lab.expect_nothing();
    }
}

/// Who goes to and fro with long requests, up to the fourth of them.
fn talkative() -> Lab {
    let mut lab = Lab::passive(&Config { nodelay: true, recv_capacity: 60_000, ..plain() });
    lab.get(seg(1, 3_000).ack(1).flags(Flags::PSH));
    lab.expect_ack(3_001);
    lab.send(70);
    lab.expect_data(1, 70);
    lab.get(seg(3_001, 1_000).ack(71));
    lab.expect_nothing();
    lab
}

/// It waits for a millisecond, though a small part of the request came before and could have waited longer; and after one
/// such wait in vain sixteen are acknowledged at once.
#[test]
pub fn the_ack_of_a_long_request_waits_for_a_moment() {
    let mut lab = talkative();
    lab.get(seg(4_001, 1_000).ack(71).flags(Flags::PSH));
    lab.expect_nothing();
    let (ms, ack) = lab.next_sent();
    assert!(ms <= 1 && ack.len == 0 && ack.ack == Some(irs() + 5_001), "{ms} ms: {ack:?}");
    for n in 0..20 {
        lab.send(70);
        lab.drain();
        lab.get(seg(5_001 + n * 2_000, 2_000).ack(71 + n * 70).flags(Flags::PSH));
        if n < 16 {
            lab.expect_ack(7_001 + n * 2_000);
        } else {
            lab.expect_nothing();
        }
    }
}

/// Neither waits what does not end a write, nor what is more than a peer may have under way unasked.
#[test]
pub fn the_ack_of_a_bulk_does_not_wait() {
    let mut lab = talkative();
    lab.get(seg(4_001, 1_000).ack(71));
    lab.expect_ack(5_001);
    let mut lab = talkative();
    lab.get(seg(4_001, 9_001).ack(71).flags(Flags::PSH));
    lab.expect_ack(13_002);
    let mut lab = talkative();
    lab.get(seg(4_001, 9_000).ack(71).flags(Flags::PSH));
    lab.expect_nothing();
}

fn keepalive(probes: u8) -> Config {
    let keep = Keepalive { idle: Duration::from_secs(10), interval: Duration::from_secs(2), probes };
    Config { keepalive: Some(keep), ..plain() }
}

/// §4.2.3.6: keep-alive probes, and the peer that answers them.
#[test]
pub fn section_4_2_3_6_keepalive_answered() {
    let mut lab = Lab::passive(&keepalive(3));
    for _ in 0..5 {
        let (ms, probe) = lab.next_sent();
        assert_eq!((ms, probe.seq, probe.len), (10_000, iss(), 0));
        lab.get(seg(1, 0).ack(1));
    }
    assert_eq!(lab.state(), State::Established);
    // Traffic counts as a sign of life.
    lab.wait_ms(9_000);
    lab.get(seg(1, 10).ack(1));
    lab.drain();
    assert_eq!(lab.next_sent().0, 10_000);
}

/// §4.2.3.6: MUST NOT give up for one lost probe; gives up after all.
#[test]
pub fn section_4_2_3_6_keepalive_unanswered() {
    let mut lab = Lab::passive(&keepalive(3));
    let waits: Vec<u64> = (0..3).map(|_| lab.next_sent().0).collect();
    assert_eq!(waits, [10_000, 2_000, 2_000]);
    lab.fire();
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
    lab.expect_rst(1);
}

/// §4.2.3.6, MUST-26: only where no data is outstanding: that has timers of its own.
#[test]
pub fn section_4_2_3_6_keepalive_and_data() {
    let mut lab = Lab::passive(&keepalive(3));
    lab.send(100);
    lab.drain();
    let end = lab.now + Duration::from_secs(120);
    while lab.tcb.next_deadline().is_some_and(|due| due < end) {
        lab.fire();
        for tx in lab.drain() {
            assert_eq!((tx.seq, tx.len), (iss() + 1, 100), "data, and no probe");
        }
    }
    assert_eq!(lab.state(), State::Established);
}

/// §4.2.3.6: MUST default to off, and to two hours where it is on (MUST-28).
#[test]
pub fn keepalive_is_off_by_default() {
    assert!(Keepalive::default().idle >= Duration::from_secs(7_200));
    let lab = Lab::passive(&plain());
    assert_eq!(lab.tcb.next_deadline(), None);
}

/// A keep-alive probe of the peer is answered.
#[test]
pub fn peers_keepalive_is_answered() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 100).ack(1));
    lab.drain();
    lab.wait_ms(10_000);
    lab.get(seg(100, 0).ack(1));
    lab.expect_ack(101);
    lab.get(seg(100, 1).ack(1));
    lab.expect_ack(101);
}

/// RFC 5482 §3: data that stays unacknowledged for so long closes the connection, to the millisecond.
#[test]
pub fn user_timeout() {
    let mut lab = Lab::passive(&Config { user_timeout: Duration::from_secs(5), ..plain() });
    lab.send(100);
    lab.expect_data(1, 100);
    let from = lab.now;
    while lab.last.error.is_none() {
        lab.fire();
        lab.drain();
    }
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
    assert_eq!((lab.now - from).as_millis(), 5_000);
}

/// RFC 5482 §3, MUST-21: the program may also want to wait for longer than R2 allows.
#[test]
pub fn user_timeout_beyond_r2() {
    let hour = Duration::from_secs(3_600);
    let mut lab = Lab::passive(&Config { user_timeout: hour, retries: 4, ..plain() });
    lab.send(100);
    lab.expect_data(1, 100);
    let from = lab.now;
    let mut again = 0;
    while lab.last.error.is_none() {
        lab.fire();
        again += lab.drain().len();
    }
    assert_eq!((lab.last.error, lab.now - from), (Some(SocketError::TimedOut), hour));
    assert!(again > 20, "{again}");
}

/// Without it, R2 counts retransmissions (§4.2.3.5).
#[test]
pub fn section_4_2_3_5_retransmissions_run_out() {
    let mut lab = Lab::passive(&Config { retries: 4, ..plain() });
    lab.send(100);
    lab.expect_data(1, 100);
    for _ in 0..4 {
        let (_, tx) = lab.next_sent();
        assert!(tx.retransmission && tx.len == 100);
    }
    lab.fire();
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
    assert!(lab.last.events.any(Events::CLOSED));
}

/// Linux `tcp_fin_timeout`: an orphan does not wait for the peer's FIN for ever.
#[test]
pub fn orphan_leaves_fin_wait_2() {
    let mut lab = Lab::passive(&plain());
    lab.user(UserCall::Close);
    lab.drain();
    lab.get(seg(1, 0).ack(2));
    assert_eq!(lab.state(), State::FinWait2);
    assert_eq!(lab.fire(), 60_000);
    assert!(lab.last.events.any(Events::CLOSED));
    assert_eq!(lab.last.error, None);
}

/// §4.2.3.9 and RFC 5927 §4.1: an ICMP error must quote something in flight.
#[test]
pub fn icmp_is_checked_against_the_flight() {
    let mut lab = Lab::passive(&plain());
    let hard = IcmpKind::Hard(SocketError::Refused);
    let out = lab.tcb.on_icmp(lab.now, IcmpError { kind: hard, seq: iss() + 1 });
    assert_eq!(out.drop, Some(DropReason::IcmpNotInFlight));
    lab.send(100);
    lab.drain();
    for seq in [0, 101] {
        let out = lab.tcb.on_icmp(lab.now, IcmpError { kind: hard, seq: iss() + seq });
        assert_eq!(out.drop, Some(DropReason::IcmpNotInFlight));
    }
    // RFC 5927 §5.2: an established connection takes a hard error for a soft one.
    let out = lab.tcb.on_icmp(lab.now, IcmpError { kind: hard, seq: iss() + 1 });
    assert_eq!((out.drop, out.error, lab.state()), (None, None, State::Established));
}

/// A soft error is what a time-out is put down to, unless the peer was heard of since (Linux tcp_ack).
#[test]
pub fn soft_errors_are_forgotten_with_progress() {
    for (heard, told) in [(false, SocketError::HostUnreachable), (true, SocketError::TimedOut)] {
        let mut lab = Lab::passive(&plain());
        lab.send(1_000);
        lab.drain();
        let kind = IcmpKind::Soft(SocketError::HostUnreachable);
        lab.tcb.on_icmp(lab.now, IcmpError { kind, seq: iss() + 1 });
        if heard {
            lab.get(seg(1, 0).ack(1_001));
            lab.send(1_000);
            lab.drain();
        }
        while lab.state() != State::Closed {
            lab.fire();
            lab.drain();
        }
        assert_eq!(lab.last.error, Some(told), "heard: {heard}");
    }
}

/// §4.2.3.9: a hard error ends a connection attempt, a soft one is told when it times out.
#[test]
pub fn icmp_while_connecting() {
    let (mut lab, _) = Lab::connecting(&plain());
    let error = IcmpError { kind: IcmpKind::Hard(SocketError::Refused), seq: iss() };
    let out = lab.tcb.on_icmp(lab.now, error);
    assert_eq!(out.error, Some(SocketError::Refused));
    assert!(out.events.any(Events::CLOSED));
    let (mut lab, _) = Lab::connecting(&Config { syn_retries: 1, ..plain() });
    let error = IcmpError { kind: IcmpKind::Soft(SocketError::HostUnreachable), seq: iss() };
    assert_eq!(lab.tcb.on_icmp(lab.now, error).error, None);
    lab.next_sent();
    lab.fire();
    assert_eq!(lab.last.error, Some(SocketError::HostUnreachable));
}

/// RFC 1191 §6.5: smaller segments at once, without a reduction of the window.
#[test]
pub fn rfc_1191_fragmentation_needed() {
    let mut lab = Lab::passive(&plain());
    lab.send(4_000);
    assert_eq!(lab.drain().len(), 4);
    let cwnd = lab.tcb.info(lab.now).snd_cwnd * 1_000;
    let error = IcmpError { kind: IcmpKind::TooBig { mtu: 640 }, seq: iss() + 1 };
    let out = lab.tcb.on_icmp(lab.now, error);
    assert!(out.events.any(Events::MSS_CHANGED) && out.transmit);
    let again = lab.drain();
    assert!(again.iter().all(|tx| tx.len <= 600 && tx.retransmission), "{again:?}");
    assert_eq!(again.iter().map(|tx| tx.len).sum::<u32>(), 4_000);
    let info = lab.tcb.info(lab.now);
    assert!(info.snd_cwnd * info.snd_mss + info.snd_mss > cwnd);
    // A router that claims to know of less than every host must take is not believed.
    let error = IcmpError { kind: IcmpKind::TooBig { mtu: 70 }, seq: iss() + 1 };
    lab.tcb.on_icmp(lab.now, error);
    assert_eq!(lab.tcb.info(lab.now).snd_mss, 512);
}

/// A path that swallows large segments without a word.
#[test]
pub fn rfc_4821_black_hole() {
    let mut lab = Lab::passive(&Config { mss: 1_460, ..plain() });
    lab.send(3_000);
    lab.drain();
    let lens: Vec<u32> = (0..5).map(|_| lab.next_sent().1.len).collect();
    assert_eq!(lens[..2], [1_460, 1_460]);
    assert!(lens[3] <= 1_024, "{lens:?}");
}

/// The same while the peer takes no more. What it answers has arrived; what it does not, the path may have swallowed, although its
/// keep-alives are heard.
#[test]
pub fn rfc_4821_black_hole_behind_a_closed_window() {
    for answers in [true, false] {
        let mut lab = Lab::passive(&Config { mss: 1_460, ..plain() });
        lab.send(1_460);
        lab.drain();
        lab.wnd = 0;
        lab.get(seg(1, 0).ack(1));
        let lens: Vec<u32> = (0..5)
            .map(|_| {
                let len = lab.next_sent().1.len;
                lab.get(seg(u32::from(answers), 0).ack(1));
                lab.drain();
                len
            })
            .collect();
        assert_eq!(lens[..2], [1_460, 1_460]);
        assert_eq!(lens[3] <= 1_024, !answers, "{lens:?}");
    }
}

/// The RST of a listener's flags: nothing answers a reset.
#[test]
pub fn resets_are_not_answered() {
    let rst = seg(0, 0).flags(Flags::RST).0;
    assert_eq!(utcp_proto::reset_for(&rst), None);
}
