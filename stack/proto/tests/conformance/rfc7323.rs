//! RFC 7323: TCP Extensions for High Performance.

use crate::lab::{Lab, irs, iss, peer_options, plain, seg, tuple};
use utcp_proto::{
    Config, DropReason, Duration, Flags, HalfOpen, HalfOpenVerdict, Instant, Options, State, Timestamps,
};

fn ts() -> Config {
    Config { timestamps: true, ..plain() }
}

/// §2.2: the option is sent in the SYN, and the shift covers the largest buffer.
#[test]
pub fn section_2_window_scale_offer() {
    let cfg = Config { window_scaling: true, recv_capacity: 1 << 20, recv_capacity_max: 1 << 20, ..plain() };
    let (_, syn) = Lab::connecting(&cfg);
    assert_eq!((syn.options.wscale, syn.wnd), (Some(5), 65_535), "not scaled in the SYN");
    let lab = Lab::passive_with(&cfg, Options::default(), Flags::NONE);
    assert!(!lab.tcb.info(lab.now).window_scaling, "not unless both ends offer it");
}

/// §2.3: both shifts apply to all windows after the SYNs.
#[test]
pub fn section_2_3_windows_are_scaled() {
    let cfg = Config { window_scaling: true, recv_capacity: 1 << 20, recv_capacity_max: 1 << 20, ..plain() };
    let options = Options { wscale: Some(3), ..peer_options(&cfg) };
    let mut lab = Lab::passive_with(&cfg, options, Flags::NONE);
    assert_eq!(lab.tcb.info(lab.now).snd_wnd, 400_000, "50 000 << 3");
    lab.get(seg(1, 1_000).ack(1));
    lab.get(seg(1_001, 1_000).ack(1));
    let wnd = lab.expect_ack(2_001).wnd;
    assert_eq!(u32::from(wnd) << 5, ((1 << 20) - 31 - 2_000) >> 5 << 5);
}

/// §2.3: a shift over 14 counts as 14.
#[test]
pub fn section_2_3_largest_shift() {
    let cfg = Config { window_scaling: true, ..plain() };
    let options = Options { wscale: Some(15), ..peer_options(&cfg) };
    let lab = Lab::passive_with(&cfg, options, Flags::NONE);
    assert_eq!(lab.tcb.info(lab.now).snd_wscale, 14);
}

/// §2.4: rounding never takes back what was offered, and what was offered is accepted.
#[test]
pub fn section_2_4_rounding() {
    let cfg = Config { window_scaling: true, recv_capacity: 1 << 20, recv_capacity_max: 1 << 20, ..plain() };
    let mut lab = Lab::passive(&cfg);
    let mut edge = 0;
    let mut seq = 1;
    for n in [1_000u32, 1, 1, 1, 7, 33, 500, 1, 1] {
        lab.get(seg(seq, n).ack(1));
        seq += n;
        lab.wait_ms(50);
        lab.tcb.on_timer(lab.now);
        for tx in lab.drain() {
            let right = irs().distance_to(tx.ack.expect("an ACK")) + (u32::from(tx.wnd) << 5);
            assert!(right >= edge, "{right} < {edge}");
            edge = right;
        }
    }
}

/// §3.2: timestamps in all segments once agreed, none if not.
#[test]
pub fn section_3_2_timestamps_on_all_segments() {
    let mut lab = Lab::passive(&ts());
    lab.get(seg(1, 100).ack(1).ts(1_020, 0));
    let tx = lab.expect_ack(101);
    assert_eq!(tx.options.timestamps.map(|ts| ts.ecr), Some(1_020));
    lab.send(10);
    assert!(lab.expect_data(1, 10).options.timestamps.is_some());
    let mut lab = Lab::passive_with(&ts(), Options::default(), Flags::NONE);
    lab.send(10);
    assert_eq!(lab.expect_data(1, 10).options.timestamps, None);
}

/// §4.1: with a repeated segment the echo still gives a round trip.
#[test]
pub fn section_4_1_rtt_from_the_echo() {
    let mut lab = Lab::passive(&ts());
    let before = lab.tcb.info(lab.now).rtt;
    lab.send(10);
    let first = lab.expect_data(1, 10).options.timestamps.expect("a timestamp");
    let (_, again) = lab.next_sent();
    assert!(again.retransmission);
    let second = again.options.timestamps.expect("a timestamp");
    assert!(second.val.wrapping_sub(first.val) >= 200);
    lab.wait_ms(50);
    lab.get(seg(1, 0).ack(11).ts(2_000, second.val));
    let after = lab.tcb.info(lab.now).rtt;
    assert!(after > before && after < Duration::from_millis(60), "{after:?}");
}

/// §4.3: the echo is that of the segment that covers the last ACK sent, so a delayed ACK counts its delay.
#[test]
pub fn section_4_3_which_timestamp_to_echo() {
    let mut lab = Lab::passive(&ts());
    // (A): delayed ACKs echo the earliest.
    lab.user(utcp_proto::UserCall::SetQuickAck(false));
    lab.get(seg(1, 100).ack(1).ts(2_001, 0));
    lab.get(seg(101, 100).ack(1).ts(2_002, 0));
    lab.get(seg(201, 900).ack(1).ts(2_003, 0));
    assert_eq!(echo(&mut lab, 1_101), 2_001);
    // (B): a hole: what lies beyond it is not echoed.
    lab.get(seg(2_101, 100).ack(1).ts(2_005, 0));
    assert_eq!(echo(&mut lab, 1_101), 2_001);
    // (C): the hole is filled: echo the filler.
    lab.get(seg(1_101, 1_000).ack(1).ts(2_004, 0));
    assert_eq!(echo(&mut lab, 2_201), 2_004);
}

fn echo(lab: &mut Lab, ack: u32) -> u32 {
    lab.expect_ack(ack).options.timestamps.map_or(0, |ts: Timestamps| ts.ecr)
}

/// §5.3 R1: PAWS. An old timestamp is acknowledged and dropped, except on a reset.
#[test]
pub fn section_5_3_paws() {
    let mut lab = Lab::passive(&ts());
    lab.get(seg(1, 100).ack(1).ts(5_000, 0));
    lab.drain();
    lab.wait_ms(600);
    let out = lab.get(seg(101, 100).ack(1).ts(4_999, 0));
    assert_eq!((out.drop, out.place), (Some(DropReason::Paws), None));
    lab.expect_ack(101);
    assert_eq!(lab.get(seg(101, 100).ack(1).ts(5_000, 0)).advanced, 100);
    // Across the wrap of the timestamp clock.
    for (n, val) in [0x7fff_0000, 0xf000_0000, 5].into_iter().enumerate() {
        lab.drain();
        assert_eq!(lab.get(seg(201 + n as u32, 1).ack(1).ts(val, 0)).advanced, 1, "{val:#x}");
    }
}

/// Linux tcp_paws_check: a peer whose SYN said zero has said nothing yet, and its clock may stand in the other half of the circle.
#[test]
pub fn section_5_3_a_syn_with_timestamp_zero() {
    for clock in [1, 0x7fff_ffff, 0x8000_0001, 0xffff_fff0] {
        let options = Options { timestamps: Some(Timestamps { val: 0, ecr: 0 }), ..peer_options(&ts()) };
        let mut syn = seg(0, 0).flags(Flags::SYN).0;
        syn.options = options;
        let mut half = HalfOpen::on_syn(&ts(), Instant::from_millis(1_000_000), tuple(), iss(), &syn);
        let now = Instant::from_millis(1_000_010);
        let echo = half.syn_ack(now).options.timestamps.expect("agreed").val;
        let ack = seg(1, 0).ack(1).wnd(50_000).ts(clock, echo).0;
        assert_eq!(half.on_segment(now, &ack), HalfOpenVerdict::Established, "{clock:#x}");

        let (mut lab, syn) = Lab::connecting(&ts());
        let echo = syn.options.timestamps.expect("offered").val;
        lab.get(seg(0, 0).ack(1).flags(Flags::SYN).ts(0, echo));
        lab.drain();
        assert_eq!(lab.get(seg(1, 100).ack(1).ts(clock, echo)).advanced, 100, "{clock:#x}");
        lab.drain();
        let older = lab.get(seg(101, 100).ack(1).ts(clock - 1, echo));
        assert_eq!(older.drop, Some(DropReason::Paws), "from then on the clock is known: {clock:#x}");
    }
}

/// §5.5: after 24 days of silence an old timestamp proves nothing.
#[test]
pub fn section_5_5_outdated_timestamps() {
    let mut lab = Lab::passive(&ts());
    lab.get(seg(1, 100).ack(1).ts(5_000, 0));
    lab.drain();
    lab.wait_ms(25 * 24 * 3_600 * 1_000);
    assert_eq!(lab.get(seg(101, 100).ack(1).ts(10, 0)).advanced, 100);
}

/// §3.2: a SYN-ACK that echoes a timestamp which none of our SYNs had answers somebody else's, and is reset (as Linux does).
#[test]
pub fn section_3_2_echo_of_another_syn() {
    let cfg = Config { timestamps: true, ..plain() };
    let (mut lab, syn) = Lab::connecting(&cfg);
    let val = syn.options.timestamps.expect("offered").val;
    lab.wait_ms(20);
    for wrong in [val.wrapping_sub(1), val.wrapping_add(21)] {
        lab.get(seg(0, 0).ack(1).flags(Flags::SYN).ts(700, wrong));
        assert_eq!(lab.state(), State::SynSent);
        lab.expect_rst(1);
    }
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN).ts(700, val));
    assert_eq!(lab.state(), State::Established);
}

/// Full segments, of which each answers the ACK of `rtt_ms` before; one comes in ten milliseconds.
fn receive_for(lab: &mut Lab, from: &mut u32, rtt_ms: u32, segments: u32) {
    for _ in 0..segments {
        lab.wait_ms(10);
        let clock = lab.now.as_nanos() / 1_000_000;
        let answers = (clock as u32).wrapping_sub(rtt_ms);
        lab.get(seg(*from, 988).ack(1).ts(clock as u32, answers));
        lab.drain();
        lab.received(988);
        lab.drain();
        *from += 988;
    }
}

/// §4.1: an echo tells the round trip to who sends nothing, too (`tcpi_rcv_rtt`).
#[test]
pub fn section_4_1_round_trip_of_a_receiver() {
    let rtt_ms = |lab: &Lab| lab.tcb.info(lab.now).rcv_rtt.as_millis();
    let mut lab = Lab::passive(&ts());
    let mut from = 1;
    lab.get(seg(1, 988).ack(1).ts(1_011, 0));
    lab.drain();
    lab.received(988);
    from += 988;
    assert_eq!(rtt_ms(&lab), 0, "nothing has been measured");
    lab.wait_ms(100);
    receive_for(&mut lab, &mut from, 100, 30);
    assert!((95..=115).contains(&rtt_ms(&lab)), "{}", rtt_ms(&lab));
    // The path becomes a shorter one.
    receive_for(&mut lab, &mut from, 40, 60);
    assert!((35..=60).contains(&rtt_ms(&lab)), "{}", rtt_ms(&lab));
    let before = rtt_ms(&lab);
    // A program that writes little now and then says nothing of the path.
    for n in 0..5u32 {
        lab.wait_ms(5_000);
        let clock = (lab.now.as_nanos() / 1_000_000) as u32;
        lab.get(seg(from + 10 * n, 10).ack(1).ts(clock, clock - 5_000));
        lab.received(10);
        lab.drain();
    }
    assert_eq!(rtt_ms(&lab), before);
    assert!(lab.tcb.info(lab.now).rtt.as_millis() <= 10, "our own is that of the handshake");
}

/// Without timestamps a window's worth takes a round trip at least.
#[test]
pub fn round_trip_of_a_receiver_without_timestamps() {
    let rtt_ms = |lab: &Lab| lab.tcb.info(lab.now).rcv_rtt.as_millis();
    let mut lab = Lab::passive(&plain());
    let mut from = 1;
    for rounds_ms in [300, 80, 500] {
        for _ in 0..6 {
            // As much as the window takes, at the end of a round.
            lab.wait_ms(rounds_ms);
            for _ in 0..10 {
                lab.get(seg(from, 1_000).ack(1));
                from += 1_000;
                lab.drain();
            }
            lab.received(10_000);
            lab.drain();
        }
    }
    assert!((80..=81).contains(&rtt_ms(&lab)), "{}", rtt_ms(&lab));
}
