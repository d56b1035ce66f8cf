//! RFC 9293: Transmission Control Protocol.

use crate::lab::{Lab, irs, iss, plain, seg, tuple};
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Config, DropReason, Endpoint, Events, Flags, FourTuple, HalfOpen, HalfOpenVerdict, Instant, Segment,
    SocketError, State, Tcb, TxLimits, UserCall,
};

/// §3.7.1, MUST-15: without an MSS option the peer takes 536 bytes.
#[test]
pub fn must_15_default_mss() {
    let mut lab = Lab::passive_with(&plain(), utcp_proto::Options::default(), Flags::NONE);
    lab.send(2_000);
    lab.expect_data(1, 536);
    // With IPv6 1220.
    let cfg = Config { mss: 1_440, ..plain() };
    let now = Instant::from_millis(1_000_000);
    let v6 = |last| Endpoint {
        addr: IpAddr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        port: 80,
    };
    let tuple = FourTuple { local: v6(1), remote: v6(2) };
    let syn = Segment { seq: irs(), flags: Flags::SYN, wnd: 50_000, ..Segment::default() };
    let half = HalfOpen::on_syn(&cfg, now, tuple, iss(), &syn);
    let (tcb, _) = Tcb::from_half_open(&half, &cfg, now, &seg(1, 0).ack(1).wnd(50_000).0);
    assert_eq!(tcb.info(now).snd_mss, 1_220);
}

/// §3.7.1, MUST-16: the smaller of both, less the options.
#[test]
pub fn must_16_effective_mss() {
    let cfg = Config { timestamps: true, ..plain() };
    let mut options = crate::lab::peer_options(&cfg);
    options.mss = Some(700);
    let mut lab = Lab::passive_with(&cfg, options, Flags::NONE);
    lab.send(2_000);
    lab.expect_data(1, 688);
}

/// §3.4: the four cases of the acceptability test.
#[test]
pub fn segment_acceptability() {
    #[track_caller]
    fn check(seq: u32, len: u32, taken: u32, drop: Option<DropReason>) {
        let mut lab = Lab::passive(&plain());
        lab.get(seg(1, 4_000).ack(1));
        lab.drain();
        let out = lab.get(seg(seq, len).ack(1));
        assert_eq!((out.place.map_or(0, |p| p.len), out.drop), (taken, drop));
    }
    // RCV.NXT is 4 001, the window reaches to 10 001.
    check(4_001, 100, 100, None);
    check(3_901, 200, 100, None);
    check(9_901, 200, 100, None);
    check(10_001, 100, 0, Some(DropReason::OutOfWindow));
    check(3_000, 100, 0, Some(DropReason::Duplicate));
    check(3_901, 100, 0, Some(DropReason::Duplicate));
    check(20_000, 0, 0, Some(DropReason::OutOfWindow));
    check(4_001, 0, 0, None);
}

/// §3.4 with RCV.WND = 0: only an empty segment at RCV.NXT is acceptable; ACK and RST count nevertheless (MUST-66).
#[test]
pub fn must_66_zero_window_still_reads_acks_and_resets() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 10_000).ack(1));
    assert_eq!(lab.expect_ack(10_001).wnd, 0);
    lab.send(100);
    lab.expect_data(1, 100);
    let out = lab.get(seg(10_001, 50).ack(101));
    assert_eq!((out.released, out.place, out.drop), (100, None, Some(DropReason::NoSpace)));
    assert_eq!(lab.expect_ack(10_001).wnd, 0);
    let out = lab.get(seg(10_001, 0).flags(Flags::RST));
    assert_eq!(out.error, Some(SocketError::Reset));
}

/// §3.10.7.4, fifth: an ACK of what was not sent is answered by an ACK and dropped.
#[test]
pub fn ack_of_the_future() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(1, 10).ack(2));
    assert_eq!((out.drop, out.place), (Some(DropReason::AckOfUnsent), None));
    lab.expect_ack(1);
}

/// §3.10.7.4, fifth: no ACK, no service.
#[test]
pub fn segment_without_ack_is_dropped() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(1, 10));
    assert_eq!((out.drop, out.advanced), (Some(DropReason::AckMissing), 0));
    lab.expect_nothing();
}

/// §3.10.7.4, fifth: SND.WL1 and SND.WL2 keep an old segment from turning the window back.
#[test]
pub fn window_follows_the_newest_segment() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 100).ack(1).wnd(3_000));
    lab.get(seg(101, 0).ack(1).wnd(3_000));
    lab.get(seg(1, 0).ack(1).wnd(9_000));
    lab.send(9_000);
    let sent: u32 = lab.drain().iter().map(|tx| tx.len).sum();
    assert_eq!(sent, 3_000);
    lab.get(seg(101, 0).ack(1).wnd(5_000));
    let sent: u32 = lab.drain().iter().map(|tx| tx.len).sum();
    assert_eq!(sent, 2_000);
}

/// §3.10.7.4, seventh, and SHLD-31: out-of-order data is kept and delivered in order, once.
#[test]
pub fn shld_31_reassembly() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(201, 100).ack(1));
    assert_eq!((out.advanced, out.place.map(|p| (p.from, p.at, p.len))), (0, Some((0, 200, 100))));
    lab.expect_ack(1);
    let out = lab.get(seg(151, 100).ack(1));
    assert_eq!((out.advanced, out.place.map(|p| (p.from, p.at, p.len))), (0, Some((0, 150, 100))));
    lab.expect_ack(1);
    let out = lab.get(seg(1, 180).ack(1));
    assert_eq!((out.advanced, out.place.map(|p| (p.from, p.at, p.len))), (300, Some((0, 0, 180))));
    lab.expect_ack(301);
    lab.expect_nothing();
}

/// §3.10.7.4, eighth: a FIN ahead of its data waits for it.
#[test]
pub fn fin_out_of_order_waits_for_the_data() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(101, 50).ack(1).flags(Flags::FIN));
    assert!(!out.events.any(Events::PEER_FIN));
    assert_eq!(lab.state(), State::Established);
    lab.expect_ack(1);
    let out = lab.get(seg(1, 100).ack(1));
    assert_eq!(out.advanced, 150);
    assert!(out.events.any(Events::PEER_FIN));
    assert_eq!(lab.state(), State::CloseWait);
    lab.expect_ack(152);
}

/// §3.8.6.1, MUST-35 to MUST-37, SHLD-29, SHLD-30: zero-window probes, ever slower, for as long as the peer answers.
#[test]
pub fn must_36_zero_window_probing() {
    let mut lab = Lab::passive(&plain());
    lab.get_raw(seg(1, 0).ack(1).wnd(0));
    lab.send(100);
    lab.expect_nothing();
    let mut last = 0;
    for n in 0..30 {
        let (ms, probe) = lab.next_sent();
        assert_eq!((probe.seq, probe.len), (iss(), 0), "an old number: the peer has to answer");
        assert!(n == 0 || ms >= last, "{ms} after {last}");
        last = ms;
        lab.get_raw(seg(1, 0).ack(1).wnd(0));
        assert_eq!(lab.state(), State::Established, "MUST-37: as long as it answers");
    }
    assert_eq!(last, 120_000);
    lab.get(seg(1, 0).ack(1));
    lab.expect_data(1, 100);
}

/// §3.8.3: but a peer that does not answer the probes is given up.
#[test]
pub fn silent_zero_window_peer_times_out() {
    let mut lab = Lab::passive(&Config { retries: 5, ..plain() });
    lab.get_raw(seg(1, 0).ack(1).wnd(0));
    lab.send(100);
    lab.expect_nothing();
    for _ in 0..5 {
        lab.next_sent();
    }
    lab.fire();
    assert_eq!(lab.last.error, Some(SocketError::TimedOut));
}

/// §3.8.6, MUST-34: data beyond a window that shrank is not new, and not lost either.
#[test]
pub fn must_34_shrinking_window() {
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    assert_eq!(lab.drain().len(), 3);
    // The usable window is negative now: what is in flight ends beyond it, and nothing new may leave.
    lab.get(seg(1, 0).ack(1_001).wnd(500));
    lab.send(1_000);
    lab.expect_nothing();
    // What is in flight is watched over all the same.
    let (_, again) = lab.next_sent();
    assert_eq!((again.seq, again.retransmission), (iss() + 1_001, true));
    lab.get(seg(1, 0).ack(3_001).wnd(500));
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(3_001).wnd(2_000));
    lab.expect_data(3_001, 1_000);
}

/// §3.8.6.2.1: the sender's silly window avoidance.
#[test]
pub fn must_38_sender_sws_avoidance() {
    let mut lab = Lab::passive(&Config { nodelay: true, ..plain() });
    lab.get(seg(1, 0).ack(1).wnd(1_100));
    lab.send(5_000);
    lab.expect_data(1, 1_000);
    // 100 bytes of window are left: neither a segment nor half of the largest window.
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(1_001).wnd(100));
    lab.expect_nothing();
    // The override timeout, 0.1 to 1 second.
    let (ms, tx) = lab.next_sent();
    assert_eq!((iss().distance_to(tx.seq), tx.len), (1_001, 100));
    assert!((100..=1_000).contains(&ms), "{ms}");
}

/// §3.8.6.2.2: the receiver's silly window avoidance.
#[test]
pub fn must_39_receiver_sws_avoidance() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 10_000).ack(1));
    assert_eq!(lab.expect_ack(10_001).wnd, 0);
    for _ in 0..9 {
        lab.received(100);
        lab.expect_nothing();
    }
    lab.get(seg(10_001, 1).ack(1));
    assert_eq!(lab.expect_ack(10_001).wnd, 0, "900 bytes are not worth a word");
    lab.received(100);
    assert_eq!(lab.expect_ack(10_001).wnd, 1_000);
}

/// §3.8.6, SHLD-14: the right edge never moves back.
#[test]
pub fn shld_14_window_never_shrinks() {
    let mut lab = Lab::passive(&plain());
    let mut edge = 10_001;
    for n in 0..40u32 {
        lab.get(seg(1 + n * 200, 200).ack(1));
        if n % 3 == 0 {
            lab.received(lab.tcb.info(lab.now).bytes_received.min(150) as u32);
        }
        for tx in lab.drain() {
            let now = irs().distance_to(tx.ack.expect("an ACK")) + u32::from(tx.wnd);
            assert!(now >= edge, "{now} < {edge}");
            edge = now;
        }
    }
}

/// §3.8.5 and RFC 6093: urgent data; the pointer names the byte after it. The receiver is told where it lies, even if it
/// comes before its bytes, and again when it moves on.
#[test]
pub fn must_30_to_33_and_62_urgent_data() {
    let mut lab = Lab::passive(&plain());
    let out = lab.get(seg(1, 10).ack(1).urg(5));
    assert!(out.events.any(Events::URGENT));
    assert_eq!((out.urgent, out.advanced), (Some(4), 10));
    let again = lab.get(seg(11, 10).ack(1));
    assert!(!again.events.any(Events::URGENT));
    lab.drain();
    lab.user(UserCall::Send { added: 3, more: false, urgent: true });
    let tx = lab.expect_data(1, 3);
    assert!(tx.flags.any(Flags::URG));
    assert_eq!(tx.urg, 3);
    // MUST-31: of any length; the pointer runs ahead of the segments.
    lab.get(seg(21, 0).ack(4));
    lab.user(UserCall::Send { added: 2_500, more: false, urgent: true });
    let ups: Vec<u16> = lab.drain().iter().map(|tx| tx.urg).collect();
    assert_eq!(ups, [2_500, 1_500, 500]);
    let out = lab.get(seg(21, 10).ack(4).urg(300));
    assert_eq!(out.urgent, Some(299));
    let out = lab.get(seg(31, 10).ack(4).urg(290));
    assert!(!out.events.any(Events::URGENT), "the same byte");
}

/// §3.8.6, MUST-66: RST and URG count although the window is closed.
#[test]
pub fn must_66_urgent_with_a_closed_window() {
    let mut lab = Lab::passive(&plain());
    lab.get(seg(1, 10_000).ack(1));
    lab.drain();
    assert!(lab.get(seg(10_001, 1).ack(1).urg(1)).events.any(Events::URGENT));
}

/// §3.1, MUST-1: the window is unsigned.
#[test]
pub fn must_1_window_is_unsigned() {
    let mut lab = Lab::passive(&Config { initial_cwnd: 100, ..plain() });
    lab.get(seg(1, 0).ack(1).wnd(65_535));
    lab.send(100_000);
    assert_eq!(lab.drain().iter().map(|tx| tx.len).sum::<u32>(), 65_000);
}

/// §3.2, MUST-65: MSS on SYN segments alone.
#[test]
pub fn must_65_no_mss_on_other_segments() {
    let mut lab = Lab::passive(&plain());
    lab.send(3_000);
    lab.get(seg(1, 1_000).ack(1));
    assert!(lab.drain().iter().all(|tx| tx.options.mss.is_none() && tx.options.wscale.is_none()));
}

/// §3.9.2.2, MUST-56: soft errors, time exceeded and parameter problems leave the connection alone, in any state.
#[test]
pub fn must_56_soft_errors_do_not_abort() {
    let (mut lab, _) = Lab::connecting(&plain());
    for error in [SocketError::NetUnreachable, SocketError::HostUnreachable, SocketError::Protocol] {
        let icmp = utcp_proto::IcmpError { kind: utcp_proto::IcmpKind::Soft(error), seq: iss() };
        let out = lab.tcb.on_icmp(lab.now, icmp);
        assert_eq!((out.error, lab.state()), (None, State::SynSent));
    }
    // With both SYNs known a hard one is no more than that either (RFC 5927 §5.2).
    for kind in [utcp_proto::IcmpKind::Soft, utcp_proto::IcmpKind::Hard] {
        for peer_closed in [false, true] {
            let mut lab = Lab::passive(&plain());
            if peer_closed {
                lab.get(seg(1, 0).ack(1).flags(Flags::FIN));
            }
            lab.send(1_000);
            lab.drain();
            let state = lab.state();
            let icmp = utcp_proto::IcmpError { kind: kind(SocketError::Refused), seq: iss() + 1 };
            let out = lab.tcb.on_icmp(lab.now, icmp);
            assert_eq!((out.error, lab.state()), (None, state));
        }
    }
}

/// §3.9.1.2, MUST-60, MUST-61: nothing is held back for ever, and PSH goes with the last byte queued; with the last full
/// segment of a burst, too, as on Linux.
#[test]
pub fn must_60_61_push() {
    let mut lab = Lab::passive(&plain());
    lab.send(2_500);
    let flags: Vec<bool> = lab.drain().iter().map(|tx| tx.flags.any(Flags::PSH)).collect();
    assert_eq!(flags, [false, true, true]);
}

/// §3.7.4, MUST-17, SHLD-7: Nagle in Minshall's form: one segment that is not full may be in flight, not two.
#[test]
pub fn must_17_nagle() {
    let mut lab = Lab::passive(&plain());
    lab.send(10);
    lab.expect_data(1, 10);
    lab.send(20);
    lab.send(30);
    lab.expect_nothing();
    lab.send(1_000);
    lab.expect_data(11, 1_000);
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(11));
    lab.expect_data(1_011, 50);
    // MUST-17: the application can turn it off.
    lab.send(5);
    lab.expect_nothing();
    lab.user(UserCall::SetNoDelay(true));
    lab.expect_data(1_061, 5);
    lab.send(6);
    lab.expect_data(1_066, 6);
}

/// `TCP_CORK` and `MSG_MORE`: nothing but full segments, for 200 ms at most.
#[test]
pub fn cork_holds_small_segments_for_a_while() {
    let mut lab = Lab::passive(&Config { cork: true, nodelay: true, ..plain() });
    lab.send(1_300);
    lab.expect_data(1, 1_000);
    lab.expect_nothing();
    lab.get(seg(1, 0).ack(1_001));
    let (ms, tx) = lab.next_sent();
    assert_eq!((ms, tx.len), (200, 300));
    lab.send(7);
    lab.expect_nothing();
    lab.user(UserCall::SetCork(false));
    lab.expect_data(1_301, 7);
    lab.user(UserCall::Send { added: 8, more: true, urgent: false });
    lab.expect_nothing();
    lab.user(UserCall::Send { added: 9, more: false, urgent: false });
    lab.expect_data(1_308, 17);
}

/// A `Transmit` handed over as a segment means the same on the other side, in one piece of any size.
#[test]
pub fn same_host_segments_may_be_large() {
    let cfg = Config { mss: 1_000, recv_capacity: 1 << 20, ..Config::DEFAULT };
    let now = Instant::from_millis(1_000);
    let mut client = Tcb::connect(&cfg, now, tuple(), iss());
    let syn = client.poll_transmit(now, TxLimits::WIRE).expect("SYN");
    let mut half = HalfOpen::on_syn(&cfg, now, tuple().reversed(), irs(), &Segment::from_transmit(&syn));
    client.on_segment(now, &Segment::from_transmit(&half.syn_ack(now)));
    let ack = Segment::from_transmit(&client.poll_transmit(now, TxLimits::WIRE).expect("ACK"));
    assert_eq!(half.on_segment(now, &ack), HalfOpenVerdict::Established);
    let (mut server, _) = Tcb::from_half_open(&half, &cfg, now, &ack);
    let limits = TxLimits { payload_max: 65_536 };
    let mut left = 500_000u32;
    client.on_user(now, UserCall::Send { added: left, more: false, urgent: false }).expect("room");
    let mut largest = 0;
    while left > 0 {
        while let Some(tx) = client.poll_transmit(now, limits) {
            largest = largest.max(tx.len);
            let out = server.on_segment(now, &Segment::from_transmit(&tx));
            assert_eq!((out.advanced, out.drop), (tx.len, None));
            left -= tx.len;
        }
        server
            .on_user(now, UserCall::Received { n: server.info(now).bytes_received as u32 - (500_000 - left) })
            .ok();
        while let Some(tx) = server.poll_transmit(now, limits) {
            client.on_segment(now, &Segment::from_transmit(&tx));
        }
    }
    assert!(largest > 60_000, "{largest}");
}

/// Linux `tcpi_busy_time` and `tcpi_rwnd_limited`: how long data waits, and how long for the peer's window.
#[test]
pub fn time_is_kept_of_what_holds_data_back() {
    let mut lab = Lab::passive(&plain());
    let times = |lab: &Lab| {
        let info = lab.tcb.info(lab.now);
        (info.busy.as_millis(), info.rwnd_limited.as_millis())
    };
    lab.wait_ms(50);
    assert_eq!(times(&lab), (0, 0));
    lab.send(1_500);
    lab.drain();
    lab.wait_ms(20);
    assert_eq!(times(&lab), (20, 0));
    lab.get(seg(1, 0).ack(1_001));
    lab.drain();
    lab.get_raw(seg(1, 0).ack(1_501).wnd(0));
    lab.wait_ms(50);
    assert_eq!(times(&lab), (20, 0), "nothing is left to send");
    lab.send(1_000);
    lab.drain();
    lab.wait_ms(100);
    assert_eq!(times(&lab), (120, 100));
    lab.get_raw(seg(1, 0).ack(1_501).wnd(2_000));
    lab.drain();
    lab.wait_ms(10);
    assert_eq!(times(&lab), (130, 100));
    lab.get_raw(seg(1, 0).ack(2_501).wnd(2_000));
    lab.wait_ms(10);
    assert_eq!(times(&lab), (130, 100));
}

/// Linux `tcpi_sndbuf_limited`: the program would queue more, and the windows would take it.
#[test]
pub fn time_is_kept_of_a_stream_that_is_too_short() {
    let mut lab = Lab::passive(&plain());
    let times = |lab: &Lab| {
        let info = lab.tcb.info(lab.now);
        (info.busy.as_millis(), info.sndbuf_limited.as_millis(), info.rwnd_limited.as_millis())
    };
    // Ten segments fill the congestion window: the stream is not to blame.
    lab.send(10_000);
    lab.drain();
    lab.tcb.note_full_stream(lab.now);
    lab.wait_ms(20);
    assert_eq!(times(&lab), (20, 0, 0));
    // Now there is room for more.
    lab.get(seg(1, 0).ack(5_001));
    lab.tcb.note_full_stream(lab.now);
    lab.wait_ms(30);
    assert_eq!(times(&lab), (50, 30, 0));
    lab.send(5_000);
    lab.drain();
    lab.wait_ms(5);
    assert_eq!(times(&lab), (55, 30, 0));
    lab.get(seg(1, 0).ack(15_001));
    lab.tcb.note_full_stream(lab.now);
    lab.wait_ms(5);
    assert_eq!(times(&lab), (55, 30, 0), "nothing is in flight");
}
