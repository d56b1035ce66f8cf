//! A TCB under segments, calls, timers and errors that bytes choose. Its own assertions (`Tcb::check`, those of a debug
//! build) are the oracle, and that what it wants done can be done.

#[path = "../shelf.rs"]
mod shelf;

use shelf::Shelf;
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Actions, Config, CongestionKind, Duration, Endpoint, Flags, FourTuple, HalfOpen, IcmpError, IcmpKind,
    Instant, Segment, SeqNum, SocketError, State, Tcb, Timestamps, TxLimits, UserCall,
};

const ISS: SeqNum = SeqNum::new(0xffff_fc00);
const IRS: SeqNum = SeqNum::new(0x7fff_fe00);
const START: Instant = Instant::from_millis(1_000);

/// What the engine would hold beside the TCB: lengths.
struct Streams {
    /// Bytes queued and not released.
    tx: u64,
    /// Bytes published and not read, and how many fit.
    rx: u32,
    capacity: u32,
}

/// Bytes, eight for each step.
pub fn steps(bytes: &[u8]) {
    let Some((&[bits], rest)) = bytes.split_first_chunk::<1>() else { return };
    let cfg = Config {
        timestamps: bits & 1 != 0,
        sack: bits & 2 != 0,
        nodelay: bits & 4 != 0,
        congestion: [CongestionKind::Cubic, CongestionKind::NewReno, CongestionKind::Bbr]
            [usize::from(bits >> 5) % 3],
        recv_capacity: if bits & 16 != 0 { 3_000 } else { 65_536 },
        ..Config::DEFAULT
    };
    let Some(mut tcb) = established(&cfg, START) else { return };
    live(&cfg, &mut tcb, bits & 8 != 0, rest);
    tcb.end_loan(&mut Shelf);
}

/// `lends`: it may borrow memory for much in flight.
fn live(cfg: &Config, tcb: &mut Tcb, lends: bool, steps: &[u8]) {
    let mut now = START;
    let mut streams = Streams { tx: 0, rx: 0, capacity: cfg.recv_capacity };
    for step in steps.chunks_exact(8).take(300) {
        let Ok(step) = <[u8; 8]>::try_from(step) else { return };
        let small = u32::from(u16::from_be_bytes([step[2], step[3]]));
        let actions = match step[0] % 8 {
            0..3 => {
                let seg = segment(tcb, now, step);
                if lends {
                    tcb.borrow_for(&seg, &mut Shelf);
                }
                Some(tcb.on_segment(now, &seg))
            }
            3 => call(tcb, now, &mut streams, step[1], small),
            4 => {
                now += Duration::from_micros(u64::from(small) << (step[1] % 16));
                Some(tcb.on_timer(now))
            }
            5 => {
                now = tcb.next_deadline().unwrap_or(now).max(now);
                Some(tcb.on_timer(now))
            }
            6 => {
                let kind = match step[1] % 3 {
                    0 => IcmpKind::TooBig { mtu: small },
                    1 => IcmpKind::Hard(SocketError::Refused),
                    _ => IcmpKind::Soft(SocketError::HostUnreachable),
                };
                Some(tcb.on_icmp(now, IcmpError { kind, seq: tcb.snd_una() + u32::from(step[4]) }))
            }
            _ => None,
        };
        if let Some(actions) = actions {
            apply(&mut streams, &actions);
        }
        tcb.give_back(&mut Shelf);
        let limits = TxLimits { payload_max: if step[1] & 1 == 0 { 0 } else { 65_536 } };
        let mut count = 0;
        loop {
            if lends {
                tcb.borrow_to_send(&mut Shelf);
            }
            let Some(tx) = tcb.poll_transmit(now, limits) else { break };
            assert!(u64::from(tx.offset) + u64::from(tx.len) <= streams.tx, "beyond the stream: {tx:?}");
            count += 1;
            assert!(count < 100_000, "it never stops sending");
        }
        tcb.check();
        if matches!(tcb.state(), State::Closed | State::TimeWait) {
            return;
        }
    }
}

fn established(cfg: &Config, now: Instant) -> Option<Tcb> {
    let end = |last: u8, port: u16| Endpoint { addr: IpAddr::v4([10, 0, 0, last]), port };
    let tuple = FourTuple { local: end(1, 80), remote: end(2, 4_000) };
    let mut syn = Segment { seq: IRS, flags: Flags::SYN, wnd: 60_000, ..Segment::default() };
    syn.options.mss = Some(1_460);
    syn.options.wscale = Some(3);
    syn.options.sack_permitted = true;
    syn.options.timestamps = Some(Timestamps { val: 100, ecr: 0 });
    let mut half = HalfOpen::on_syn(cfg, now, tuple, ISS, &syn);
    let answer = half.syn_ack(now);
    let mut ack = Segment { seq: IRS + 1, ack: Some(ISS + 1), wnd: 60_000, ..Segment::default() };
    ack.options.timestamps = answer.options.timestamps.map(|ts| Timestamps { val: 101, ecr: ts.val });
    let _ = half.on_segment(now, &ack);
    Some(Tcb::from_half_open(&half, cfg, now, &ack).0)
}

/// A segment near the truth, where bugs live.
fn segment(tcb: &Tcb, now: Instant, step: [u8; 8]) -> Segment {
    let [kind, flags, a, b, c, d, e, f] = step;
    let near = |byte: u8, unit: u32| u32::from(byte.wrapping_sub(8)).wrapping_mul(unit);
    let seq = if a < 200 { tcb.rcv_nxt() } else { tcb.rcv_nxt() + near(a, 700) - 700 * 230 };
    let ack = tcb.snd_una() + near(b, 724).min(tcb.snd_una().distance_to(tcb.snd_nxt()) + 1);
    let flags = if flags < 230 { Flags::NONE } else { Flags::from_bits(flags & 0x3f) };
    let mut seg = Segment { seq, ack: Some(ack), flags, wnd: u16::from(c) << 8, ..Segment::default() };
    seg.len = match d % 3 {
        0 => 0,
        1 => u32::from(d) * 8,
        _ => 1_448,
    };
    if kind & 0x80 != 0 {
        let start = tcb.snd_una() + u32::from(e) * 724;
        seg.options.sack.push(utcp_proto::SackBlock { start, end: start + u32::from(f) * 100 });
    }
    let ms = (now.as_nanos() / 1_000_000) as u32;
    seg.options.timestamps = Some(Timestamps { val: 200 + ms, ecr: ms });
    seg
}

fn call(tcb: &mut Tcb, now: Instant, streams: &mut Streams, which: u8, n: u32) -> Option<Actions> {
    let call = match which % 16 {
        0..6 => UserCall::Send { added: n.max(1), more: which & 0x80 != 0, urgent: which & 0x40 != 0 },
        6..10 => UserCall::Received { n: n.min(streams.rx) },
        10 => UserCall::Shutdown,
        11 => UserCall::SetMss(n as u16),
        12 => UserCall::SetCork(which & 0x80 != 0),
        13 => UserCall::SetPacingRate(u64::from(n) * 1_000),
        14 => UserCall::SetRecvCapacity(n * 4),
        _ if which & 0x80 != 0 => UserCall::Close,
        _ => UserCall::ShutdownRead,
    };
    let actions = tcb.on_user(now, call).ok()?;
    match call {
        UserCall::Send { added, .. } => streams.tx += u64::from(added),
        UserCall::Received { n } => streams.rx -= n,
        UserCall::SetRecvCapacity(n) => streams.capacity = streams.capacity.max(n),
        _ => {}
    }
    Some(actions)
}

fn apply(streams: &mut Streams, actions: &Actions) {
    assert!(u64::from(actions.released) <= streams.tx, "released what was never queued");
    streams.tx -= u64::from(actions.released);
    if let Some(place) = actions.place {
        assert!(streams.rx + place.at + place.len <= streams.capacity, "placed beyond the stream");
    }
    streams.rx += actions.advanced;
    assert!(streams.rx <= streams.capacity, "more than the stream holds");
}
