//! RFC 7413: TCP Fast Open.

use crate::lab::{Lab, irs, iss, plain, seg, tuple};
use utcp_proto::isn::Secret;
use utcp_proto::{
    Actions, Config, Events, FastOpenCookie, Flags, HalfOpen, IcmpError, IcmpKind, Instant, Options, Segment,
    State, Tcb, UserCall,
};

/// Bytes that the SYN may bring.
const ROOM: u16 = 520;

fn cookie() -> FastOpenCookie {
    Secret::new(1, 2).fast_open_cookie(&tuple())
}

fn client(cookie: FastOpenCookie, queued: u32) -> Lab {
    let now = Instant::from_millis(1_000_000);
    let tcb = if cookie == FastOpenCookie::REQUEST {
        Tcb::connect_asking(&plain(), now, tuple(), iss(), cookie)
    } else {
        Tcb::connect_fast(&plain(), now, tuple(), iss(), Some(cookie), ROOM)
    };
    let mut lab = Lab { tcb, now, wnd: 50_000, last: Actions::default() };
    if cookie != FastOpenCookie::REQUEST {
        lab.expect_nothing();
    }
    lab.send(queued);
    lab.user(UserCall::Start { more_waits: false });
    lab
}

/// §4.1.2: the cookie is bound to the addresses, and to the secret.
#[test]
pub fn section_4_1_2_cookie() {
    let mut other_port = tuple();
    other_port.remote.port += 1;
    let mut other_host = tuple();
    other_host.remote.addr.0[15] += 1;
    assert_eq!(Secret::new(1, 2).fast_open_cookie(&other_port), cookie());
    assert_ne!(Secret::new(1, 2).fast_open_cookie(&other_host), cookie());
    assert_ne!(Secret::new(1, 3).fast_open_cookie(&tuple()), cookie());
}

/// §4.1.1, §4.1.2: a client asks, the SYN-ACK tells; a repeated one goes without.
#[test]
pub fn section_4_1_1_request() {
    let mut lab = client(FastOpenCookie::REQUEST, 100);
    let syn = lab.expect();
    assert_eq!((syn.options.fast_open, syn.len), (Some(FastOpenCookie::REQUEST), 0));
    let mut half = HalfOpen::on_syn(&plain(), lab.now, tuple(), irs(), &Segment::from_transmit(&syn));
    half.offer_fast_open(cookie());
    assert_eq!(half.syn_ack(lab.now).options.fast_open, Some(cookie()));
    let _ = half.on_timer(half.next_deadline());
    assert_eq!(half.syn_ack(lab.now).options.fast_open, None);
    // The data follows the handshake as ever.
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    lab.expect_data(1, 100);
}

/// §4.2.1: with a cookie the SYN carries data, and the SYN-ACK may acknowledge it.
#[test]
pub fn section_4_2_1_data_in_the_syn() {
    let mut lab = client(cookie(), 800);
    let syn = lab.expect();
    let room = u32::from(ROOM);
    assert_eq!((syn.seq, syn.offset, syn.len, syn.options.fast_open), (iss(), 0, room, Some(cookie())));
    lab.expect_nothing();
    let out = lab.get(seg(0, 0).ack(1 + room).flags(Flags::SYN));
    assert_eq!(out.released, room);
    assert!(out.events.any(Events::CONNECTED));
    assert!(lab.tcb.info(lab.now).syn_data_acked);
    let tx = lab.expect();
    assert_eq!((tx.seq, tx.offset, tx.len), (iss() + 1 + room, 0, 800 - room));
}

/// §4.2.1: a server that acknowledges the SYN alone gets the data again, at once and with no less of a window.
#[test]
pub fn section_4_2_1_data_not_taken() {
    let mut lab = client(cookie(), 400);
    let syn = lab.expect();
    assert_eq!(syn.len, 400);
    lab.wait_ms(10);
    let out = lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    assert_eq!((out.released, lab.state()), (0, State::Established));
    let tx = lab.expect_data(1, 400);
    assert_eq!(tx.offset, 0);
    assert_eq!(lab.tcb.info(lab.now).snd_cwnd, 10);
    assert_eq!(lab.get(seg(1, 0).ack(401)).released, 400);
}

/// §4.1.3: a SYN that is lost is repeated without cookie and data.
#[test]
pub fn section_4_1_3_lost_syn() {
    let mut lab = client(cookie(), 400);
    assert_eq!(lab.expect().len, 400);
    let (_, again) = lab.next_sent();
    assert!(again.flags.any(Flags::SYN));
    assert_eq!((again.seq, again.len, again.options.fast_open), (iss(), 0, None));
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    lab.expect_data(1, 400);
    assert_eq!(lab.get(seg(1, 0).ack(401)).released, 400);
}

fn server(len: u32) -> Lab {
    let now = Instant::from_millis(1_000_000);
    let options = Options { mss: Some(1_000), fast_open: Some(cookie()), ..Options::default() };
    let syn = Segment { seq: irs(), flags: Flags::SYN, wnd: 50_000, len, options, ..Segment::default() };
    let half = HalfOpen::on_syn(&plain(), now, tuple(), iss(), &syn);
    let (tcb, last) = Tcb::fast_open(&half, &plain(), now, &syn);
    Lab { tcb, now, wnd: 50_000, last }
}

/// §4.2.2: the server hands the data to the program, acknowledges it in the SYN-ACK, and may answer at once.
#[test]
pub fn section_4_2_2_server() {
    let mut lab = server(300);
    assert_eq!((lab.last.advanced, lab.state()), (300, State::SynReceived));
    assert!(lab.last.events.any(Events::CONNECTED));
    let sa = lab.expect();
    assert_eq!((sa.seq, sa.ack, sa.flags, sa.wnd), (iss(), Some(irs() + 301), Flags::SYN, 9_700));
    lab.expect_nothing();
    lab.received(300);
    lab.send(2_000);
    assert_eq!(lab.expect_data(1, 1_000).offset, 0);
    assert_eq!(lab.expect_data(1_001, 1_000).offset, 1_000);
    lab.wait_ms(10);
    let out = lab.get(seg(301, 0).ack(1_001));
    assert_eq!((out.released, lab.state()), (1_000, State::Established));
    assert!(!out.events.any(Events::CONNECTED), "said before");
    let out = lab.get(seg(301, 10).ack(2_001));
    assert_eq!((out.released, out.advanced), (1_000, 10));
}

/// The SYN-ACK of such a connection is repeated like any, with what follows it.
#[test]
pub fn server_repeats_the_syn_ack() {
    let mut lab = server(10);
    lab.drain();
    lab.send(100);
    lab.drain();
    let (_, again) = lab.next_sent();
    assert_eq!((again.flags, again.ack), (Flags::SYN, Some(irs() + 11)));
    lab.expect_data(1, 100);
    let out = lab.get(seg(11, 0).ack(101));
    assert_eq!((out.released, lab.state()), (100, State::Established));
}

/// A program that answers and closes at once.
#[test]
pub fn server_closes_before_the_handshake_is_complete() {
    let mut lab = server(10);
    lab.drain();
    lab.received(10);
    lab.send(100);
    lab.user(UserCall::Close);
    let tx = lab.expect_data(1, 100);
    assert!(tx.flags.any(Flags::FIN));
    lab.get(seg(11, 0).ack(1));
    assert_eq!(lab.state(), State::FinWait1);
    lab.get(seg(11, 0).ack(102));
    assert_eq!(lab.state(), State::FinWait2);
    let _ = Config::DEFAULT;
}

/// Linux: a call that waits to send more lets the ACK of the SYN-ACK go with that.
#[test]
pub fn the_ack_goes_with_what_waits() {
    let now = Instant::from_millis(1_000_000);
    let tcb = Tcb::connect_fast(&plain(), now, tuple(), iss(), Some(cookie()), ROOM);
    let mut lab = Lab { tcb, now, wnd: 50_000, last: Actions::default() };
    lab.send(100);
    lab.user(UserCall::Start { more_waits: true });
    assert_eq!(lab.expect().len, 100);
    lab.get(seg(0, 0).ack(101).flags(Flags::SYN));
    lab.expect_nothing();
    lab.send(300);
    assert_eq!(lab.expect_data(101, 300).ack, Some(irs() + 1));
}

/// §4.1.3.1: a router says that the SYN was too large for its data: it goes again without, at once, and offers what fits.
#[test]
pub fn section_4_1_3_1_too_big() {
    let mut lab = client(cookie(), 400);
    assert_eq!(lab.expect().len, 400);
    let error = IcmpError { seq: iss(), kind: IcmpKind::TooBig { mtu: 640 } };
    assert!(lab.tcb.on_icmp(lab.now, error).transmit);
    let again = lab.expect();
    assert!(again.flags.any(Flags::SYN));
    assert_eq!(
        (again.seq, again.len, again.options.mss, again.options.fast_open),
        (iss(), 0, Some(600), None)
    );
    // Once: what the data has to do with it is said.
    let _ = lab.tcb.on_icmp(lab.now, IcmpError { seq: iss(), kind: IcmpKind::TooBig { mtu: 600 } });
    lab.expect_nothing();
    lab.get(seg(0, 0).ack(1).flags(Flags::SYN));
    lab.expect_data(1, 400);
}
