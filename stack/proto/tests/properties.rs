//! A TCB under arbitrary segments, calls, timers and ICMP errors: no panic, and what it says always makes sense.

#[path = "shelf.rs"]
mod shelf;

use proptest::prelude::*;
use shelf::Shelf;
use utcp_proto::wire::{IpAddr, checksum, ethernet, icmpv4, icmpv6, ipv4, ipv6, tcp};
use utcp_proto::{
    Actions, Config, CongestionKind, Duration, EcnMode, Endpoint, Events, Flags, FourTuple, HalfOpen,
    IcmpError, IcmpKind, Instant, Keepalive, Options, SackBlock, Segment, SeqNum, SocketError, State, Tcb,
    Timestamps, TxLimits, UserCall,
};

const ISS: SeqNum = SeqNum::new(0xffff_fc00);
const IRS: SeqNum = SeqNum::new(0x7fff_fe00);

#[derive(Clone, Debug)]
enum Op {
    /// Sequence number relative to RCV.NXT, ACK relative to SND.UNA and so on: near the truth, where bugs live.
    Segment {
        seq: i32,
        ack: Option<i32>,
        flags: u8,
        wnd: u16,
        len: u32,
        ts: Option<(i32, i32)>,
        sack: Vec<(i32, i32)>,
        ce: bool,
    },
    User(UserCall),
    Read(u32),
    Wait(u64),
    Timer,
    Poll {
        max: u32,
        times: usize,
    },
    Icmp(IcmpKind, i32),
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![5 => Just(0), 4 => -3_000i32..3_000, 1 => any::<i32>()]
}

fn segment() -> impl Strategy<Value = Op> {
    let flags = prop_oneof![12 => Just(0u8), 2 => Just(0x08), 2 => Just(0x01), 1 => any::<u8>()];
    let len = prop_oneof![3 => Just(0u32), 5 => 1u32..1_500, 1 => 1u32..70_000];
    let wnd = prop_oneof![6 => 1_000u16..65_535, 1 => Just(0), 1 => 1u16..100];
    let sack = proptest::collection::vec((-100i32..6_000, 0i32..2_000), 0..4);
    (
        near(),
        prop::option::weighted(0.95, near()),
        flags,
        wnd,
        len,
        prop::option::weighted(0.9, (0i32..50, -50i32..5)),
        sack,
        any::<bool>(),
    )
        .prop_map(|(seq, ack, flags, wnd, len, ts, sack, ce)| Op::Segment {
            seq,
            ack,
            flags,
            wnd,
            len,
            ts,
            sack,
            ce,
        })
}

fn user() -> impl Strategy<Value = UserCall> {
    prop_oneof![
        8 => (1u32..5_000, any::<bool>(), prop::bool::weighted(0.05))
            .prop_map(|(added, more, urgent)| UserCall::Send { added, more, urgent }),
        1 => Just(UserCall::Shutdown),
        1 => Just(UserCall::ShutdownRead),
        1 => any::<bool>().prop_map(UserCall::SetNoDelay),
        1 => any::<bool>().prop_map(UserCall::SetCork),
        1 => any::<bool>().prop_map(UserCall::SetQuickAck),
        1 => prop::option::of((1u64..100).prop_map(|s| Keepalive {
            idle: Duration::from_secs(s), interval: Duration::from_secs(1), probes: 3
        })).prop_map(UserCall::SetKeepalive),
        1 => (0u64..100).prop_map(|s| UserCall::SetUserTimeout(Duration::from_secs(s))),
        1 => prop_oneof![Just(CongestionKind::Cubic), Just(CongestionKind::NewReno), Just(CongestionKind::Bbr)].prop_map(UserCall::SetCongestion),
        1 => (0u16..3_000).prop_map(UserCall::SetMss),
        1 => (1u64..10_000_000).prop_map(UserCall::SetPacingRate),
        1 => (0u32..200_000).prop_map(UserCall::SetRecvCapacity),
        1 => prop::bool::weighted(0.3).prop_map(|abort| if abort { UserCall::Abort } else { UserCall::Close }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => segment(),
        4 => user().prop_map(Op::User),
        3 => (1u32..5_000).prop_map(Op::Read),
        3 => prop_oneof![1u64..1_000, 1u64..500_000_000].prop_map(Op::Wait),
        3 => Just(Op::Timer),
        6 => (prop_oneof![Just(0u32), Just(65_536u32)], 1usize..20).prop_map(|(max, times)| Op::Poll { max, times }),
        1 => (prop_oneof![
            Just(IcmpKind::Hard(SocketError::Refused)),
            Just(IcmpKind::Soft(SocketError::HostUnreachable)),
            (0u32..2_000).prop_map(|mtu| IcmpKind::TooBig { mtu }),
        ], near()).prop_map(|(kind, seq)| Op::Icmp(kind, seq)),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    (
        prop_oneof![Just(100u16), Just(536), Just(1_460), Just(65_483)],
        prop_oneof![Just(1u32), Just(500), Just(4_096), Just(65_536), Just(1_000_000)],
        any::<[bool; 6]>(),
        prop_oneof![Just(EcnMode::Off), Just(EcnMode::Passive), Just(EcnMode::Active)],
    )
        .prop_map(
            |(mss, recv_capacity, [window_scaling, timestamps, sack, nodelay, reno, cork], ecn)| Config {
                mss,
                recv_capacity,
                recv_capacity_max: recv_capacity.saturating_mul(4),
                window_scaling,
                timestamps,
                sack,
                nodelay,
                cork,
                ecn,
                congestion: if reno { CongestionKind::NewReno } else { CongestionKind::Cubic },
                ..Config::DEFAULT
            },
        )
}

/// What the engine would know of the connection.
struct Model {
    tcb: Tcb,
    now: Instant,
    queued: u64,
    unread: u64,
    capacity: u32,
    over: bool,
    /// It may borrow memory for much in flight.
    lends: bool,
}

impl Model {
    fn take(&mut self, out: &Actions, len: u32) {
        self.tcb.check();
        assert!(
            !self.over || *out == Actions { drop: out.drop, transmit: out.transmit, ..Actions::default() }
        );
        assert!(u64::from(out.released) <= self.queued, "released more than there is");
        self.queued -= u64::from(out.released);
        if let Some(place) = out.place {
            assert!(place.len > 0 && place.from + place.len <= len, "a place outside of the payload");
            assert!(self.unread + u64::from(place.at) + u64::from(place.len) <= u64::from(self.capacity));
        }
        self.unread += u64::from(out.advanced);
        assert!(self.unread <= u64::from(self.capacity), "more than the stream holds");
        assert_eq!(out.events.any(Events::READABLE), out.advanced > 0);
        assert_eq!(out.events.any(Events::WRITABLE), out.released > 0);
        if out.events.any(Events::CLOSED.with(Events::TIME_WAIT)) {
            assert!(!self.over, "two ends");
            self.over = true;
        }
        assert_eq!(self.over, matches!(self.tcb.state(), State::Closed | State::TimeWait));
        if self.over {
            assert_eq!(self.tcb.next_deadline(), None, "a timer after the end");
        }
    }

    fn poll(&mut self, max: u32, times: usize) {
        for _ in 0..times {
            if self.lends {
                self.tcb.borrow_to_send(&mut Shelf);
            }
            let Some(tx) = self.tcb.poll_transmit(self.now, TxLimits { payload_max: max }) else { return };
            self.tcb.check();
            assert!(
                u64::from(tx.offset) + u64::from(tx.len) <= self.queued,
                "bytes that nobody queued: {tx:?}"
            );
            assert!(tx.len <= max.max(u32::from(tx.mss)).max(1), "{tx:?}");
            let info = self.tcb.info(self.now);
            assert!(info.snd_cwnd > 0 && info.snd_mss > 0);
            let options = tcp::header_len(&tx.options);
            assert!(options <= 60);
            let mut out = [0; 60];
            let n = tcp::emit(&tx, 1, 2, &mut out).expect("a header");
            let parsed = tcp::parse(&out[..n]).expect("what was emitted");
            assert_eq!(parsed.segment, Segment { len: 0, ..Segment::from_transmit(&tx) });
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Segment { seq, ack, flags, wnd, len, ts, sack, ce } => {
                let mut options = Options::default();
                if let Some((val, ecr)) = ts {
                    let clock = self.now.as_millis() as u32;
                    options.timestamps = Some(Timestamps {
                        val: clock.wrapping_add_signed(*val),
                        ecr: clock.wrapping_add_signed(*ecr),
                    });
                }
                for (start, n) in sack {
                    let start = relative(self.tcb.snd_una(), *start);
                    options.sack.push(SackBlock { start, end: relative(start, *n) });
                }
                let seg = Segment {
                    seq: relative(self.tcb.rcv_nxt(), *seq),
                    ack: ack.map(|a| relative(self.tcb.snd_nxt(), a.min(0).max(a / 2))),
                    flags: Flags::from_bits(*flags),
                    wnd: *wnd,
                    urg: *wnd % 100,
                    len: *len,
                    options,
                    ce: *ce,
                };
                if self.lends {
                    self.tcb.borrow_for(&seg, &mut Shelf);
                }
                let out = self.tcb.on_segment(self.now, &seg);
                self.tcb.give_back(&mut Shelf);
                self.take(&out, *len);
            }
            Op::User(call) => {
                if let Ok(out) = self.tcb.on_user(self.now, *call) {
                    match call {
                        UserCall::Send { added, .. } => self.queued += u64::from(*added),
                        UserCall::SetRecvCapacity(n) => self.capacity = self.capacity.max(*n),
                        _ => {}
                    }
                    self.take(&out, 0);
                }
            }
            Op::Read(n) => {
                let n = u64::from(*n).min(self.unread);
                if let Ok(out) = self.tcb.on_user(self.now, UserCall::Received { n: n as u32 }) {
                    self.unread -= n;
                    self.take(&out, 0);
                }
            }
            Op::Wait(us) => self.now += Duration::from_micros(*us),
            Op::Timer => {
                if let Some(at) = self.tcb.next_deadline() {
                    self.now = self.now.max(at);
                }
                // A timer that comes late may leave another that is due; a few rounds must settle it.
                for _ in 0..8 {
                    if self.tcb.next_deadline().is_none_or(|at| at > self.now) {
                        break;
                    }
                    let out = self.tcb.on_timer(self.now);
                    self.take(&out, 0);
                    self.poll(0, 1_000);
                }
                assert!(
                    self.tcb.next_deadline().is_none_or(|at| at > self.now),
                    "a timer that fires without end"
                );
            }
            Op::Poll { max, times } => self.poll(*max, *times),
            Op::Icmp(kind, seq) => {
                let seq = relative(self.tcb.snd_una(), *seq);
                let out = self.tcb.on_icmp(self.now, IcmpError { kind: *kind, seq });
                self.take(&out, 0);
            }
        }
    }
}

fn relative(from: SeqNum, by: i32) -> SeqNum {
    SeqNum::new(from.raw().wrapping_add_signed(by))
}

fn tuple() -> FourTuple {
    let end = |n| Endpoint { addr: IpAddr::v4([10, 0, 0, n]), port: 80 };
    FourTuple { local: end(1), remote: end(2) }
}

fn established(cfg: &Config, wscale: u8, lends: bool) -> Model {
    let now = Instant::from_millis(77_777);
    let options = Options {
        mss: Some(1_460),
        wscale: Some(wscale),
        sack_permitted: true,
        timestamps: Some(Timestamps { val: 77_777, ecr: 0 }),
        ..Options::default()
    };
    let flags = Flags::SYN.with(Flags::ECE).with(Flags::CWR);
    let syn = Segment { seq: IRS, flags, wnd: 20_000, options, ..Segment::default() };
    let half = HalfOpen::on_syn(cfg, now, tuple(), ISS, &syn);
    let options = Options { timestamps: Some(Timestamps { val: 77_777, ecr: 77_777 }), ..Options::default() };
    let ack = Segment { seq: IRS + 1, ack: Some(ISS + 1), wnd: 20_000, options, ..Segment::default() };
    let (tcb, _) = Tcb::from_half_open(&half, cfg, now, &ack);
    assert_eq!(tcb.state(), State::Established);
    Model { tcb, now, queued: 0, unread: 0, capacity: cfg.recv_capacity, over: false, lends }
}

/// `UTCP_PROP_CASES` runs more of them.
fn settings() -> ProptestConfig {
    let cases = std::env::var("UTCP_PROP_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_500);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn established_tcb_keeps_its_invariants(
        cfg in config(),
        wscale in 0u8..15,
        lends in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut model = established(&cfg, wscale, lends);
        for op in &ops {
            model.apply(op);
        }
        model.tcb.end_loan(&mut Shelf);
    }

    #[test]
    fn connecting_tcb_keeps_its_invariants(cfg in config(), ops in proptest::collection::vec(op(), 1..40)) {
        let now = Instant::from_millis(77_777);
        let tcb = Tcb::connect(&cfg, now, tuple(), ISS);
        let mut model =
            Model { tcb, now, queued: 0, unread: 0, capacity: cfg.recv_capacity, over: false, lends: true };
        model.poll(0, 10);
        for op in &ops {
            model.apply(op);
        }
        model.tcb.end_loan(&mut Shelf);
    }

    /// Bytes from the network: any parser may refuse them, none may panic, and ranges lie within the input.
    #[test]
    fn parsers_take_anything(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok((_, at)) = ethernet::parse(&bytes) {
            prop_assert!(at <= bytes.len());
        }
        let _ = utcp_proto::wire::arp::parse(&bytes);
        if let Ok(repr) = tcp::parse(&bytes) {
            prop_assert_eq!(repr.payload + repr.segment.len as usize, bytes.len());
        }
        let mut packet = bytes.clone();
        if packet.len() >= 20 {
            packet[0] = 0x40 | packet[0] & 15;
            packet[2..4].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
            packet[10..12].fill(0);
            let n = (usize::from(packet[0] & 15) * 4).min(packet.len());
            let sum = checksum::of(&packet[..n]).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
        }
        if let Ok((_, range)) = ipv4::parse(&packet) {
            prop_assert!(range.end <= packet.len());
        }
        let mut message = bytes.clone();
        if message.len() >= 8 {
            message[2..4].fill(0);
            let sum = checksum::of(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        let _ = icmpv4::parse(&message);
        let mut packet = bytes;
        if packet.len() >= 40 {
            packet[0] = 0x60;
            let len = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        if let Ok((ip, range)) = ipv6::parse(&packet) {
            prop_assert!(range.end <= packet.len());
            let _ = icmpv6::parse(&ip, &packet[range]);
        }
    }
}
