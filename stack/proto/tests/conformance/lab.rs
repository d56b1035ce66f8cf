//! One TCB on the bench: the test plays the peer by hand, segment by segment.
//!
//! Numbers are relative: ours count from ISS, the peer's from IRS, so that the first stream byte is 1 on both sides.

use std::cell::Cell;

use crate::shelf::Shelf;
use utcp_proto::wire::IpAddr;
use utcp_proto::{
    Actions, Config, Duration, Endpoint, Flags, FourTuple, HalfOpen, HalfOpenVerdict, Instant, Options,
    SackBlock, Segment, SeqNum, State, Tcb, Timestamps, Transmit, TxLimits, UserCall, UserError,
};

thread_local! {
    static NUMBERS: Cell<[SeqNum; 2]> = const { Cell::new([SeqNum::new(0xffff_ff00), SeqNum::new(0x7fff_fff0)]) };
}

/// Our initial sequence number.
pub fn iss() -> SeqNum {
    NUMBERS.get()[0]
}

/// The peer's.
pub fn irs() -> SeqNum {
    NUMBERS.get()[1]
}

/// Plays `scenario` with other initial sequence numbers: ours, and the peer's.
pub fn with_numbers(numbers: [u32; 2], scenario: impl FnOnce()) {
    let before = NUMBERS.replace(numbers.map(SeqNum::new));
    scenario();
    NUMBERS.set(before);
}

pub fn tuple() -> FourTuple {
    FourTuple {
        local: Endpoint { addr: IpAddr::v4([192, 0, 2, 1]), port: 80 },
        remote: Endpoint { addr: IpAddr::v4([192, 0, 2, 2]), port: 4_000 },
    }
}

/// No options at all: segments mean what they say.
pub fn plain() -> Config {
    Config {
        mss: 1_000,
        recv_capacity: 10_000,
        recv_capacity_max: 10_000,
        window_scaling: false,
        timestamps: false,
        sack: false,
        ..Config::DEFAULT
    }
}

pub fn with_sack() -> Config {
    Config { sack: true, ..plain() }
}

pub struct Lab {
    pub tcb: Tcb,
    pub now: Instant,
    /// What the peer offers as its window.
    pub wnd: u16,
    pub last: Actions,
}

/// A segment under construction.
#[derive(Clone, Copy)]
pub struct Seg(pub Segment);

/// The peer's segment with sequence number `seq` and `len` bytes, ACK and window to be filled in.
pub fn seg(seq: u32, len: u32) -> Seg {
    Seg(Segment { seq: irs() + seq, len, ..Segment::default() })
}

impl Seg {
    pub fn ack(mut self, ack: u32) -> Self {
        self.0.ack = Some(iss() + ack);
        self
    }
    pub fn flags(mut self, flags: Flags) -> Self {
        self.0.flags = self.0.flags.with(flags);
        self
    }
    pub fn wnd(mut self, wnd: u16) -> Self {
        self.0.wnd = wnd;
        self
    }
    pub fn ts(mut self, val: u32, ecr: u32) -> Self {
        self.0.options.timestamps = Some(Timestamps { val, ecr });
        self
    }
    pub fn sack(mut self, start: u32, end: u32) -> Self {
        self.0.options.sack.push(SackBlock { start: iss() + start, end: iss() + end });
        self
    }
    pub fn ce(mut self) -> Self {
        self.0.ce = true;
        self
    }
    pub fn urg(mut self, up: u16) -> Self {
        self.0.urg = up;
        self.flags(Flags::URG)
    }
}

/// What a peer offers in its SYN by default.
pub fn peer_options(cfg: &Config) -> Options {
    Options {
        mss: Some(cfg.mss),
        wscale: cfg.window_scaling.then_some(0),
        sack_permitted: cfg.sack,
        timestamps: cfg.timestamps.then_some(Timestamps { val: 1_000, ecr: 0 }),
        ..Options::default()
    }
}

impl Lab {
    /// A connection that a peer opened to us.
    pub fn passive(cfg: &Config) -> Self {
        Self::passive_with(cfg, peer_options(cfg), Flags::NONE)
    }

    pub fn passive_with(cfg: &Config, options: Options, flags: Flags) -> Self {
        let now = Instant::from_millis(1_000_000);
        let syn =
            Segment { seq: irs(), flags: Flags::SYN.with(flags), wnd: 50_000, options, ..Segment::default() };
        let mut half = HalfOpen::on_syn(cfg, now, tuple(), iss(), &syn);
        let sa = half.syn_ack(now);
        assert_eq!((sa.seq, sa.ack), (iss(), Some(irs() + 1)));
        let now = now + Duration::from_millis(10);
        let mut ack = seg(1, 0).ack(1).wnd(50_000);
        if let Some(ts) = sa.options.timestamps {
            ack = ack.ts(1_010, ts.val);
        }
        assert_eq!(half.on_segment(now, &ack.0), HalfOpenVerdict::Established);
        let (tcb, last) = Tcb::from_half_open(&half, cfg, now, &ack.0);
        let mut lab = Self { tcb, now, wnd: 50_000, last };
        assert_eq!(lab.state(), State::Established);
        assert_eq!(lab.sent(), None);
        lab
    }

    /// SYN-SENT, the SYN taken.
    pub fn connecting(cfg: &Config) -> (Self, Transmit) {
        let now = Instant::from_millis(1_000_000);
        let tcb = Tcb::connect(cfg, now, tuple(), iss());
        let mut lab = Self { tcb, now, wnd: 50_000, last: Actions::default() };
        let syn = lab.expect();
        (lab, syn)
    }

    pub fn state(&self) -> State {
        self.tcb.state()
    }

    pub fn wait_ms(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// The segment arrives. A window of zero in it stands for the usual one; say `get_raw` to mean zero.
    pub fn get(&mut self, mut seg: Seg) -> Actions {
        if seg.0.wnd == 0 {
            seg.0.wnd = self.wnd;
        }
        self.get_raw(seg)
    }

    pub fn get_raw(&mut self, seg: Seg) -> Actions {
        self.tcb.borrow_for(&seg.0, &mut Shelf);
        self.last = self.tcb.on_segment(self.now, &seg.0);
        self.tcb.give_back(&mut Shelf);
        self.tcb.check();
        self.last
    }

    pub fn user(&mut self, call: UserCall) -> Actions {
        self.try_user(call).expect("a call that is allowed")
    }

    pub fn try_user(&mut self, call: UserCall) -> Result<Actions, UserError> {
        let result = self.tcb.on_user(self.now, call);
        self.tcb.check();
        result
    }

    pub fn send(&mut self, n: u32) {
        self.user(UserCall::Send { added: n, more: false, urgent: false });
    }

    pub fn received(&mut self, n: u32) {
        self.user(UserCall::Received { n });
    }

    /// The next segment that leaves, if one does.
    pub fn sent(&mut self) -> Option<Transmit> {
        self.tcb.borrow_to_send(&mut Shelf);
        let tx = self.tcb.poll_transmit(self.now, TxLimits::WIRE);
        self.tcb.check();
        tx
    }

    #[track_caller]
    pub fn expect(&mut self) -> Transmit {
        self.sent().expect("a segment should leave")
    }

    /// All that leaves now.
    pub fn drain(&mut self) -> Vec<Transmit> {
        std::iter::from_fn(|| self.sent()).collect()
    }

    /// Data leaves: relative sequence number and length.
    #[track_caller]
    pub fn expect_data(&mut self, seq: u32, len: u32) -> Transmit {
        let tx = self.expect();
        assert_eq!((iss().distance_to(tx.seq), tx.len), (seq, len), "{tx:?}");
        tx
    }

    /// A bare ACK of `ack` leaves.
    #[track_caller]
    pub fn expect_ack(&mut self, ack: u32) -> Transmit {
        let tx = self.expect();
        let control = tx.flags.any(Flags::SYN.with(Flags::FIN).with(Flags::RST));
        assert!(!control && tx.len == 0, "{tx:?}");
        assert_eq!(tx.ack.map(|a| irs().distance_to(a)), Some(ack), "{tx:?}");
        tx
    }

    #[track_caller]
    pub fn expect_nothing(&mut self) {
        assert_eq!(self.sent(), None);
    }

    #[track_caller]
    pub fn expect_rst(&mut self, seq: u32) -> Transmit {
        let tx = self.expect();
        assert!(tx.flags.any(Flags::RST), "{tx:?}");
        assert_eq!(iss().distance_to(tx.seq), seq);
        tx
    }

    /// Goes to the next deadline and fires it; returns the milliseconds that it took.
    #[track_caller]
    pub fn fire(&mut self) -> u64 {
        let at = self.tcb.next_deadline().expect("a timer should run");
        let waited = at - self.now;
        self.now = self.now.max(at);
        self.last = self.tcb.on_timer(self.now);
        waited.as_millis()
    }

    /// Fires timers until something leaves, and returns it with the milliseconds that passed.
    #[track_caller]
    pub fn next_sent(&mut self) -> (u64, Transmit) {
        let from = self.now;
        for _ in 0..20 {
            if let Some(tx) = self.sent() {
                return ((self.now - from).as_millis(), tx);
            }
            self.fire();
        }
        panic!("nothing ever leaves");
    }
}
