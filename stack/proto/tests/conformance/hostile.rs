//! Peers and strangers that mean harm, or behave as if they did: what no single standard's list of requirements names.

use crate::lab::{Lab, irs, iss, peer_options, plain, seg, tuple, with_sack};
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Config, DropReason, Duration, Endpoint, Events, Flags, FourTuple, HalfOpen, HalfOpenVerdict, IcmpError,
    IcmpKind, Instant, Options, Segment, SocketError, State, Tcb, TxLimits, UserCall,
};

/// Fires timers and answers whatever leaves by `answer`, until `limit` has passed or the connection is closed.
fn answer_for(lab: &mut Lab, limit: Duration, mut answer: impl FnMut() -> crate::lab::Seg) {
    let end = lab.now + limit;
    while lab.state() != State::Closed && lab.now < end {
        if lab.drain().is_empty() {
            let Some(at) = lab.tcb.next_deadline().filter(|&at| at <= end) else { break };
            lab.now = lab.now.max(at);
            lab.last = lab.tcb.on_timer(lab.now);
        } else {
            lab.wait_ms(10);
            lab.get_raw(answer());
        }
    }
}

/// A peer that takes its window back to nothing under data in flight, and lives (Linux: "receiver dastardly shrinks window").
/// RFC 9293 MUST-37: as long as it answers, the connection stays.
#[test]
pub fn a_window_that_shrinks_to_nothing_under_data_in_flight() {
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    assert_eq!(lab.drain().len(), 3);
    answer_for(&mut lab, Duration::from_secs(7_200), || seg(1, 0).ack(1));
    assert_eq!(lab.state(), State::Established);
    // It opens again: everything arrives.
    for _ in 0..8 {
        lab.get(seg(1, 0).ack(1));
        lab.next_sent();
    }
    lab.get(seg(1, 0).ack(3_001));
    assert_eq!(lab.tcb.info(lab.now).unacked, 0);
    // One that does not answer any more is given up.
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    lab.drain();
    lab.get_raw(seg(1, 0).ack(1));
    let limit = lab.now + Duration::from_secs(3_600);
    while lab.state() != State::Closed && lab.now < limit {
        lab.drain();
        lab.fire();
    }
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
}

/// A program is gone, and its peer keeps the window closed and answers every probe: that does not hold memory for ever
/// (Linux tcp_probe_timer: an orphan whose timeout has reached its ceiling).
#[test]
pub fn a_closed_window_does_not_hold_an_orphan_for_ever() {
    for in_flight in [false, true] {
        let mut lab = Lab::passive(&plain());
        if in_flight {
            lab.send(3_000);
            lab.drain();
        }
        lab.get_raw(seg(1, 0).ack(1));
        if !in_flight {
            lab.send(3_000);
        }
        lab.user(UserCall::Close);
        answer_for(&mut lab, Duration::from_secs(1_200), || seg(1, 0).ack(1));
        assert_eq!(lab.state(), State::Closed, "in flight: {in_flight}");
    }
}

/// A stream that is small beside the unit of its window scale: what the peer was told is what counts for telling it more.
#[test]
pub fn a_large_window_scale_and_a_small_stream() {
    let cfg = Config {
        recv_capacity: 16_384,
        recv_capacity_max: 1 << 30,
        window_scaling: true,
        mss: 1_460,
        ..plain()
    };
    let mut lab = Lab::passive(&cfg);
    let (mut at, mut told) = (1, 1);
    for _ in 0..20 {
        lab.get(seg(at, 1_460).ack(1));
        at += 1_460;
        told = lab.drain().last().map_or(told, |tx| tx.wnd);
        lab.received(1_460);
        told = lab.drain().last().map_or(told, |tx| tx.wnd);
        assert_eq!(told, 1, "the peer was told of nothing, and hears of no more");
    }
}

/// An urgent pointer at what has arrived without it (Linux: "do not replay urg ptr").
#[test]
pub fn an_urgent_pointer_at_what_is_there_already() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 100).ack(1));
    let out = lab.get(seg(1, 100).ack(1).urg(50));
    assert_eq!((out.urgent, out.events.any(Events::URGENT)), (None, false));
    let out = lab.get(seg(101, 100).ack(1).urg(1));
    assert_eq!(out.urgent, Some(0), "the next byte is one that can be");
}

/// Two half-open records that name each other, by forged SYNs to both hosts: their answers must not feed on each other
/// (Linux tcp_check_req, tcp_invalid_ratelimit).
#[test]
pub fn two_half_open_connections_do_not_keep_each_other_busy() {
    let now = Instant::from_millis(1_000_000);
    let syn = |seq| Segment { seq, flags: Flags::SYN, wnd: 1_000, ..Segment::default() };
    let mut ends = [
        HalfOpen::on_syn(&plain(), now, tuple(), iss(), &syn(irs())),
        HalfOpen::on_syn(&plain(), now, tuple().reversed(), iss() + 70_000, &syn(irs() + 70_000)),
    ];
    let mut flying = ends[0].syn_ack(now);
    let mut answers = 0;
    for n in 0..1_000 {
        match ends[(n + 1) % 2]
            .on_segment(now + Duration::from_micros(n as u64), &Segment::from_transmit(&flying))
        {
            HalfOpenVerdict::Ack(tx, _) => flying = tx,
            _ => break,
        }
        answers += 1;
    }
    assert!(answers <= 2, "{answers} answers in a millisecond");
    // The SYN again and again: a SYN-ACK for it now and then.
    let mut half = HalfOpen::on_syn(&plain(), now, tuple(), iss(), &syn(irs()));
    let again = (0..1_000).filter(|&n| {
        half.on_segment(now + Duration::from_millis(n), &syn(irs())) == HalfOpenVerdict::ResendSynAck
    });
    let again = again.count();
    assert!((1..=3).contains(&again), "{again} SYN-ACKs in a second");
}

/// A FIN below what has arrived already, and a second one: the stream has one end, and goes on to it.
#[test]
pub fn ends_that_contradict_the_stream() {
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(101, 400).ack(1));
    // A FIN within what lies there.
    lab.get(seg(101, 100).ack(1).flags(Flags::FIN));
    let out = lab.get(seg(1, 100).ack(1));
    assert_eq!((out.advanced, lab.state()), (500, State::Established));
    let out = lab.get(seg(501, 100).ack(1));
    assert_eq!(out.advanced, 100, "it goes on");
    // Two ends: the first counts.
    lab.get(seg(801, 0).ack(1).flags(Flags::FIN));
    lab.get(seg(701, 0).ack(1).flags(Flags::FIN));
    let out = lab.get(seg(601, 200).ack(1));
    assert_eq!((out.advanced, lab.state()), (200, State::CloseWait));
    assert!(out.events.any(Events::PEER_FIN));
}

fn tuple_v6() -> FourTuple {
    let addr = |last| IpAddr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    FourTuple { local: Endpoint { addr: addr(1), port: 80 }, remote: Endpoint { addr: addr(2), port: 4_000 } }
}

/// RFC 8201 §4: "packet too big" with less than every link carries is discarded; from there on it counts.
#[test]
pub fn rfc_8201_packets_too_small_to_be_true() {
    let now = Instant::from_millis(1_000);
    let mut tcb = Tcb::connect(&Config { mss: 1_440, ..plain() }, now, tuple_v6(), iss());
    assert!(tcb.poll_transmit(now, TxLimits::WIRE).is_some());
    for mtu in [0, 68, 552, 1_279] {
        let out = tcb.on_icmp(now, IcmpError { kind: IcmpKind::TooBig { mtu }, seq: iss() });
        assert_eq!(out.drop, Some(DropReason::IcmpMtuTooSmall), "{mtu}");
        assert_eq!(tcb.info(now).pmtu_payload, 1_440, "{mtu}");
    }
    let out = tcb.on_icmp(now, IcmpError { kind: IcmpKind::TooBig { mtu: 1_280 }, seq: iss() });
    assert_eq!((out.drop, tcb.info(now).pmtu_payload), (None, 1_220));
}

/// A reset that is not exact, with data out of order in the queue: nothing is thrown away, and the peer is asked.
#[test]
pub fn a_reset_beside_data_out_of_order() {
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(101, 100).ack(1));
    lab.drain();
    lab.get(seg(202, 0).ack(1).flags(Flags::RST));
    assert_eq!(lab.state(), State::Established);
    lab.expect_ack(1);
    assert_eq!(lab.get(seg(1, 100).ack(1)).advanced, 200);
}

/// A SYN, with data and without, with an ACK and without, in every state that has both SYNs: a challenge and nothing else.
#[test]
pub fn a_syn_in_every_synchronized_state() {
    type Step = fn(&mut Lab);
    let states: [(State, Step); 6] = [
        (State::Established, |_| {}),
        (State::FinWait1, |lab| {
            lab.user(UserCall::Shutdown);
        }),
        (State::FinWait2, |lab| {
            lab.user(UserCall::Shutdown);
            lab.drain();
            lab.get(seg(1, 0).ack(2));
        }),
        (State::CloseWait, |lab| {
            lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
        }),
        (State::Closing, |lab| {
            lab.user(UserCall::Shutdown);
            lab.drain();
            lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
        }),
        (State::LastAck, |lab| {
            lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
            lab.user(UserCall::Shutdown);
        }),
    ];
    for (state, reach) in states {
        for (len, ack) in [(0, false), (500, false), (0, true), (500, true)] {
            let mut lab = Lab::passive(&plain());
            reach(&mut lab);
            lab.drain();
            assert_eq!(lab.state(), state);
            let mut syn = seg(3, len).flags(Flags::SYN);
            if ack {
                syn = syn.ack(1);
            }
            let out = lab.get(syn);
            assert_eq!((lab.state(), out.advanced, out.place), (state, 0, None), "{state:?} {len} {ack}");
            assert_eq!(out.drop, Some(DropReason::SynInWindow), "{state:?} {len} {ack}");
            assert!(lab.drain().iter().all(|tx| tx.len == 0 && !tx.flags.any(Flags::RST)));
        }
    }
}

/// A receiver that takes back what it had selectively acknowledged (RFC 2018 §8): the data is sent again, all of it.
#[test]
pub fn a_receiver_that_reneges() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(20);
    lab.get(seg(1, 0).ack(1).sack(1_001, 10_001));
    let mut una = 1;
    for _ in 0..200 {
        if una > 10_000 {
            break;
        }
        let (_, tx) = lab.next_sent();
        // It keeps nothing but what is next.
        if tx.len > 0 && iss() + una == tx.seq {
            una += tx.len;
            lab.wait_ms(20);
            lab.get(seg(1, 0).ack(una));
        }
    }
    assert_eq!((una, lab.tcb.info(lab.now).unacked), (10_001, 0));
}

/// SACK blocks that claim every other byte, backwards, empty, of nothing sent and of what lies before SND.UNA.
#[test]
pub fn sack_blocks_without_end() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    lab.drain();
    lab.get(seg(1, 0).ack(1_001));
    lab.drain();
    for n in 0..2_000 {
        let at = 1_002 + n * 2;
        let lies = seg(1, 0).ack(1_001).sack(at, at + 1).sack(at + 3, at).sack(90_000, 95_000).sack(1, 500);
        lab.wait_ms(1);
        lab.get(lies);
        lab.drain();
    }
    // Whatever it believes, it ends well.
    let sent = iss().distance_to(lab.tcb.snd_nxt());
    lab.get(seg(1, 0).ack(sent));
    assert_eq!(lab.tcb.info(lab.now).unacked, 0);
    assert_eq!(lab.state(), State::Established);
}

/// A peer that offers segments of one byte, with every option on top: a floor keeps headers from being all there is.
#[test]
pub fn a_peer_with_segments_of_one_byte() {
    let cfg = Config { timestamps: true, sack: true, ..plain() };
    let options = Options { mss: Some(1), ..peer_options(&cfg) };
    let mut lab = Lab::passive_with(&cfg, options, Flags::NONE);
    lab.send(1_000);
    // Something out of order, so that SACK blocks take their room, too.
    lab.get(seg(101, 100).ack(1).ts(1_020, 1));
    let sent = lab.drain();
    assert!(sent.iter().filter(|tx| tx.len > 0).all(|tx| tx.len >= 8), "{sent:?}");
    assert!(lab.tcb.info(lab.now).snd_mss >= 36);
}

/// Timestamps go over the end of their circle, and a segment from before that is old (RFC 7323 §5.2).
#[test]
pub fn timestamps_wrap() {
    let cfg = Config { timestamps: true, ..plain() };
    let mut options = peer_options(&cfg);
    options.timestamps = Some(utcp_proto::Timestamps { val: 0xffff_fff0, ecr: 0 });
    let now = Instant::from_millis(1_000_000);
    let syn = Segment { seq: irs(), flags: Flags::SYN, wnd: 50_000, options, ..Segment::default() };
    let mut half = HalfOpen::on_syn(&cfg, now, tuple(), iss(), &syn);
    let ours = half.syn_ack(now).options.timestamps.expect("agreed").val;
    let ack = seg(1, 0).ack(1).wnd(50_000).ts(0xffff_fff8, ours);
    assert_eq!(half.on_segment(now, &ack.0), HalfOpenVerdict::Established);
    let (tcb, last) = Tcb::from_half_open(&half, &cfg, now, &ack.0);
    let mut lab = Lab { tcb, now, wnd: 50_000, last };
    assert_eq!(lab.get(seg(1, 100).ack(1).ts(5, ours)).advanced, 100);
    let out = lab.get(seg(101, 100).ack(1).ts(0xffff_fffc, ours));
    assert_eq!((out.advanced, out.drop), (0, Some(DropReason::Paws)));
    assert_eq!(lab.get(seg(101, 100).ack(1).ts(6, ours)).advanced, 100);
}

/// Overlaps with other bytes: what the program may have read already is never written again.
#[test]
pub fn overlaps_never_reach_back() {
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(1, 100).ack(1));
    for (start, len) in [(1, 300), (50, 100), (301, 50), (101, 400), (1, 1_000)] {
        let nxt = irs().distance_to(lab.tcb.rcv_nxt());
        let out = lab.get(seg(start, len).ack(1));
        if let Some(place) = out.place {
            assert!(start + place.from >= nxt && place.from + place.len <= len, "{start}+{len}: {place:?}");
            assert_eq!(start + place.from, nxt + place.at);
        }
    }
}

/// A DSACK of what was never sent twice, or never sent: a stranger can have the peer report such a range by a segment with an old
/// number. It takes no reduction back, and widens no reordering window (Linux tcp_is_sackblock_valid, tcp_dsack_seen).
#[test]
pub fn duplicates_that_were_never_sent() {
    let far = 0u32.wrapping_sub(1_000_000);
    for (start, end) in [(far, 1), (far, far + 100_000), (1, 1_001), (500, 4_500), (1, 8_001)] {
        let mut lab = Lab::passive(&with_sack());
        lab.send(3_000);
        lab.drain();
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(3_001));
        lab.send(10_000);
        assert_eq!(lab.drain().len(), 10);
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(3_001).sack(4_001, 8_001));
        assert!(lab.expect_data(3_001, 1_000).retransmission);
        let before = lab.tcb.info(lab.now);
        assert_eq!(before.recovery, utcp_proto::RecoveryState::Recovery);
        lab.get(seg(1, 0).ack(3_001).sack(start, end).sack(4_001, 8_001));
        let after = lab.tcb.info(lab.now);
        assert_eq!((after.recovery, after.snd_ssthresh), (before.recovery, before.snd_ssthresh), "{start}");
    }
}

/// Somebody sends what is not of this connection: that proves no life of the peer.
#[test]
pub fn strangers_do_not_put_off_keepalive() {
    let keep =
        utcp_proto::Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(1), probes: 3 };
    let mut lab = Lab::passive(&Config { keepalive: Some(keep), ..plain() });
    let begun = lab.now;
    while lab.state() != State::Closed && lab.now - begun < Duration::from_secs(30) {
        lab.wait_ms(250);
        lab.get(seg(500_000, 0).ack(1));
        if lab.tcb.next_deadline().is_some_and(|due| due <= lab.now) {
            lab.last = lab.tcb.on_timer(lab.now);
        }
        lab.drain();
    }
    assert_eq!((lab.state(), lab.last.error), (State::Closed, Some(SocketError::TimedOut)));
    assert!(lab.now - begun < Duration::from_secs(9));
}

/// Keep-alive's own count of probes does not matter where TCP_USER_TIMEOUT says how long to wait: there may be hundreds.
#[test]
pub fn hundreds_of_keepalive_probes() {
    let keep =
        utcp_proto::Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(1), probes: 3 };
    let user_timeout = Duration::from_secs(600);
    let mut lab = Lab::passive(&Config { keepalive: Some(keep), user_timeout, ..plain() });
    let begun = lab.now;
    let mut probes = 0;
    while lab.state() != State::Closed {
        lab.fire();
        probes += lab.drain().iter().filter(|tx| !tx.flags.any(Flags::RST)).count();
    }
    assert_eq!((lab.last.error, (lab.now - begun).as_millis()), (Some(SocketError::TimedOut), 600_000));
    assert_eq!(probes, 595);
}

/// A peer that takes its window back while data is in flight: an ACK beyond that window would be thrown away, and a reset, too.
#[test]
pub fn acks_and_resets_under_a_window_that_shrank() {
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    assert_eq!(lab.drain().len(), 3);
    lab.get_raw(seg(1, 0).ack(1).wnd(500));
    lab.get_raw(seg(1, 100).ack(1).wnd(500));
    lab.wait_ms(50);
    lab.tcb.on_timer(lab.now);
    assert_eq!(lab.expect_ack(101).seq, iss() + 501);
    lab.user(UserCall::Abort);
    lab.expect_rst(501);
}

/// A probe has an old number, so the peer throws it away with the ACK that it carries: the ACK that is due is still due.
#[test]
pub fn a_probe_is_no_ack() {
    let mut lab = Lab::passive(&plain());
    // So that ACKs wait.
    lab.user(UserCall::SetQuickAck(false));
    lab.get_raw(seg(1, 0).ack(1));
    lab.send(500);
    lab.expect_nothing();
    let due = lab.tcb.next_deadline().expect("a window probe");
    lab.now = Instant::from_nanos(due.as_nanos() - 10_000_000);
    lab.get_raw(seg(1, 100).ack(1));
    lab.expect_nothing();
    lab.fire();
    let probe = lab.expect();
    assert_eq!((probe.seq, probe.len), (iss(), 0));
    let (ms, ack) = lab.next_sent();
    assert_eq!((ack.seq, ack.ack, ms), (iss() + 1, Some(irs() + 101), 30));
}

/// A long segment is cut by a device that knows nothing of urgent pointers: with one, none is long.
#[test]
pub fn urgent_data_in_long_segments() {
    let mut lab = Lab::passive(&plain());
    lab.send(4_000);
    lab.user(UserCall::Send { added: 1, more: false, urgent: true });
    lab.send(4_000);
    let limits = TxLimits { payload_max: 60_000 };
    let mut at = 1;
    while let Some(tx) = lab.tcb.poll_transmit(lab.now, limits) {
        assert!(tx.len <= 1_000, "{tx:?}");
        let ahead = 4_002u32.saturating_sub(at);
        assert_eq!((u32::from(tx.urg), tx.flags.any(Flags::URG)), (ahead, ahead > 0), "{at}");
        at += tx.len;
    }
    assert_eq!(at, 8_002);
    // It has arrived: long ones again.
    lab.get(seg(1, 0).ack(8_002));
    lab.send(4_000);
    assert_eq!(lab.tcb.poll_transmit(lab.now, limits).map(|tx| tx.len), Some(4_000));
}

/// Keep-alive beside a closed window: probes for the window are enough, and the connection lives as long as they are answered.
#[test]
pub fn keepalive_beside_a_closed_window() {
    let keep =
        utcp_proto::Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(1), probes: 3 };
    let mut lab = Lab::passive(&Config { keepalive: Some(keep), ..plain() });
    lab.get_raw(seg(1, 0).ack(1));
    lab.send(500);
    answer_for(&mut lab, Duration::from_secs(3_600), || seg(1, 0).ack(1));
    assert_eq!(lab.state(), State::Established);
    lab.get(seg(1, 0).ack(1));
    assert_eq!(lab.next_sent().1.len, 500);
}
