//! RFC 4987: SYN cookies from end to end.

use crate::lab::{Lab, irs, plain, tuple};
use utcp_proto::isn::Secret;
use utcp_proto::{
    Config, Events, Flags, Instant, Options, Segment, State, Tcb, Timestamps, UserCall, cookie,
};

/// A connection of which nothing was kept between SYN and ACK works like any other: data with the ACK, scaled windows,
/// SACK, the full initial window, and no RTT made up.
#[test]
pub fn a_connection_out_of_a_cookie() {
    let secret = Secret::new(7, 9);
    let cfg = Config {
        timestamps: true,
        window_scaling: true,
        sack: true,
        recv_capacity: 1 << 20,
        recv_capacity_max: 1 << 20,
        ..plain()
    };
    let now = Instant::from_millis(1_000_000);
    let options = Options {
        mss: Some(1_460),
        wscale: Some(7),
        sack_permitted: true,
        timestamps: Some(Timestamps { val: 50, ecr: 0 }),
        ..Options::default()
    };
    let syn = Segment { seq: irs(), flags: Flags::SYN, wnd: 500, options, ..Segment::default() };
    let sa = cookie::encode(&secret, &cfg, now, tuple(), &syn);
    let ts = sa.options.timestamps.expect("a timestamp");
    let later = now + utcp_proto::Duration::from_millis(30);
    let options = Options { timestamps: Some(Timestamps { val: 80, ecr: ts.val }), ..Options::default() };
    let ack =
        Segment { seq: irs() + 1, ack: Some(sa.seq + 1), wnd: 500, len: 10, options, ..Segment::default() };
    let half = cookie::decode(&secret, &cfg, later, tuple(), &ack).expect("our cookie");
    let (tcb, last) = Tcb::from_half_open(&half, &cfg, later, &ack);
    assert_eq!((tcb.state(), last.advanced), (State::Established, 10));
    assert!(last.events.any(Events::CONNECTED));
    let mut lab = Lab { tcb, now: later, wnd: 500, last };
    let info = lab.tcb.info(lab.now);
    assert_eq!((info.snd_wscale, info.snd_wnd, info.sack, info.timestamps), (7, 64_000, true, true));
    assert_eq!(info.snd_cwnd, 10);
    assert!(info.rtt.as_millis() < 100, "from the echo, or none at all: {:?}", info.rtt);
    lab.user(UserCall::Send { added: 3_000, more: false, urgent: false });
    assert!(
        lab.drain()
            .iter()
            .all(|tx| tx.options.timestamps.is_some_and(|t| t.val.wrapping_sub(ts.val) < 1_000))
    );
}
