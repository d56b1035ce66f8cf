//! The variables of a connection (RFC 9293 §3.3.1).
//!
//! ```text
//!    send       una ──────── nxt ─────── una + wnd            limit (all that is queued, FIN included)
//!                │ in flight │  may go   │   has to wait       │
//!    receive    consumed ─── nxt ─────── adv ──── consumed + capacity
//!                │ unread    │ window    │ not advertised yet │
//! ```

use crate::config::Config;
use crate::scoreboard::Tick;
use crate::segment::FastOpenCookie;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// The send side.
#[derive(Clone, Debug)]
pub(super) struct Send {
    /// SND.UNA.
    pub(super) una: SeqNum,
    /// SND.NXT.
    pub(super) nxt: SeqNum,
    /// After the last byte that the program queued; FIN comes here.
    pub(super) end: SeqNum,
    /// SND.WND in bytes, scaled.
    pub(super) wnd: u32,
    /// The largest window ever offered (RFC 9293 §3.8.6.2.1, RFC 5961 §5.2).
    pub(super) wnd_max: u32,
    /// SND.WL1 and SND.WL2.
    pub(super) wl1: SeqNum,
    pub(super) wl2: SeqNum,
    /// Bytes of payload in a full segment.
    pub(super) mss: u16,
    pub(super) peer_mss: u16,
    /// What the path carries, by ICMP or probing; `u16::MAX` if nothing is known.
    pub(super) path_mss: u16,
    /// What our own link carries, if that has changed; `u16::MAX` if not.
    pub(super) link_mss: u16,
    /// What `path_mss` was before it was lowered on suspicion (zero if it was not), and whether suspicion may strike again.
    pub(super) path_mss_before: u16,
    pub(super) path_trusted: bool,
    pub(super) wscale: u8,
    /// The program closed its side: FIN follows on `end`.
    pub(super) fin_queued: bool,
    pub(super) syn_due: bool,
    pub(super) rst_due: bool,
    /// A RST with this sequence number is due, for a segment of another incarnation; this connection lives on.
    pub(super) rst_for: Option<SeqNum>,
    /// A tail loss probe repeats this: sequence number and length.
    pub(super) repeat: Option<(SeqNum, u32)>,
    /// A window probe or keep-alive is due.
    pub(super) probe_due: bool,
    /// The next small segment leaves whatever Nagle or cork say (RFC 9293 §3.8.6.2.1, the override timeout).
    pub(super) push_out: bool,
    /// The last call said that more follows (`MSG_MORE`).
    pub(super) more: bool,
    /// After the last byte of a call that did not say that more follows: PSH goes there.
    pub(super) push_end: SeqNum,
    /// When new data was last sent.
    pub(super) fresh_at: Instant,
    /// SND.UP: after the urgent byte.
    pub(super) urgent: Option<SeqNum>,
    /// The end of the last segment shorter than a full one (Minshall's variant of Nagle, as in Linux).
    pub(super) small_end: SeqNum,
    /// The largest flight since `max_flight_end` was sent: tells whether the window was used (RFC 7661 §4.1).
    pub(super) max_flight: u32,
    pub(super) max_flight_end: SeqNum,
    /// With pacing: no segment before this.
    pub(super) pace_next: Instant,
    pub(super) iss: SeqNum,
    /// SND.UNA is the SYN. (It is also ISS once in 4 GiB.)
    pub(super) syn_unacked: bool,
}

impl Send {
    pub(super) const fn new(iss: SeqNum, mss: u16) -> Self {
        let first = SeqNum::new(iss.raw().wrapping_add(1));
        Self {
            una: iss,
            nxt: iss,
            end: first,
            wnd: 0,
            wnd_max: 0,
            wl1: iss,
            wl2: iss,
            mss,
            peer_mss: mss,
            path_mss: u16::MAX,
            link_mss: u16::MAX,
            path_mss_before: 0,
            path_trusted: true,
            wscale: 0,
            fin_queued: false,
            syn_due: false,
            rst_due: false,
            rst_for: None,
            repeat: None,
            probe_due: false,
            push_out: false,
            more: false,
            push_end: first,
            fresh_at: Instant::ZERO,
            urgent: None,
            small_end: iss,
            max_flight: 0,
            max_flight_end: iss,
            pace_next: Instant::ZERO,
            iss,
            syn_unacked: true,
        }
    }

    /// After all that is queued, FIN included.
    #[inline]
    pub(super) fn limit(&self) -> SeqNum {
        self.end + u32::from(self.fin_queued)
    }

    /// The first stream byte that is not released.
    #[inline]
    pub(super) fn stream_start(&self) -> SeqNum {
        self.una + u32::from(self.syn_unacked)
    }

    /// Bytes (and SYN, FIN) in flight.
    #[inline]
    pub(super) fn flight(&self) -> u32 {
        self.una.distance_to(self.nxt)
    }

    /// True if FIN has left at least once.
    #[inline]
    pub(super) fn fin_sent(&self) -> bool {
        self.nxt.after(self.end)
    }
}

/// The receive side.
#[derive(Clone, Debug)]
pub(super) struct Receive {
    /// RCV.NXT.
    pub(super) nxt: SeqNum,
    /// The right edge of the window as the peer knows it: RCV.NXT + RCV.WND.
    pub(super) adv: SeqNum,
    /// What the program has consumed.
    pub(super) consumed: SeqNum,
    /// Bytes that the receive stream holds.
    pub(super) capacity: u32,
    /// The ACK number that was last sent (RFC 7323 "Last.ACK.sent").
    pub(super) acked: SeqNum,
    pub(super) wscale: u8,
    /// The window that was last told ends before `adv`.
    pub(super) told_less: bool,
    /// The peer's FIN has been taken in: RCV.NXT counts it.
    pub(super) fin_seen: bool,
    /// Where the peer's FIN lies, if it came before the data ahead of it.
    pub(super) fin: Option<SeqNum>,
    /// What the peer's segments are estimated to hold (Linux `rcv_mss`).
    pub(super) mss: u32,
    /// RCV.UP: after the urgent byte.
    pub(super) urgent: Option<SeqNum>,
    /// Dynamic right-sizing: what was consumed up to this moment, and what to ask for.
    pub(super) drs_start: SeqNum,
    pub(super) drs_at: Tick,
    pub(super) drs_copied: u32,
    pub(super) wanted: u32,
    /// The round trip as who receives sees it, in ticks, and how it is measured: see `round.rs`.
    pub(super) rtt: u32,
    pub(super) round_mark: u32,
    pub(super) round_at: Tick,
    pub(super) round_runs: bool,
    pub(super) irs: SeqNum,
}

impl Receive {
    pub(super) const fn new(capacity: u32) -> Self {
        const ZERO: SeqNum = SeqNum::new(0);
        Self {
            nxt: ZERO,
            adv: ZERO,
            consumed: ZERO,
            capacity,
            acked: ZERO,
            wscale: 0,
            told_less: false,
            fin_seen: false,
            fin: None,
            mss: 536,
            urgent: None,
            drs_start: ZERO,
            drs_at: Tick::at(Instant::ZERO),
            drs_copied: 0,
            wanted: capacity,
            rtt: 0,
            round_mark: 0,
            round_at: Tick::at(Instant::ZERO),
            round_runs: false,
            irs: ZERO,
        }
    }

    /// The peer's SYN has arrived.
    pub(super) fn start(&mut self, irs: SeqNum) {
        self.irs = irs;
        self.nxt = irs + 1;
        self.adv = self.nxt;
        self.consumed = self.nxt;
        self.acked = irs;
        self.drs_start = self.nxt;
    }

    /// Bytes that the program has not consumed.
    #[inline]
    pub(super) fn unread(&self) -> u32 {
        self.consumed.distance_to(self.nxt) - u32::from(self.fin_seen)
    }
}

/// When to send an ACK.
#[derive(Clone, Debug)]
pub(super) struct AckState {
    /// An ACK is due at once.
    pub(super) now: bool,
    /// Data has arrived that no ACK covers yet.
    pub(super) pending: bool,
    /// Some of it ended a write of the peer's: a small segment, or one that says so (Linux ICSK_ACK_PUSHED).
    pub(super) pushed: bool,
    /// The exchange goes to and fro: an ACK is likely to ride on data, so wait for it (Linux "pingpong").
    pub(super) interactive: bool,
    /// What is pending is for a request of several segments.
    pub(super) long: bool,
    /// Such requests that are acknowledged at once, because an answer was late.
    pub(super) hasty: u8,
    /// ACKs that are still sent at once, at the start and after idle periods.
    pub(super) quick: u8,
    /// `TCP_QUICKACK` is set.
    pub(super) always_quick: bool,
    /// The delay of the next delayed ACK.
    pub(super) ato: Duration,
    /// When data last arrived.
    pub(super) data_at: Instant,
    /// A duplicate range to report (RFC 2883).
    pub(super) dsack: Option<(SeqNum, SeqNum)>,
    /// The latest out-of-window segment that was answered; for the rate limit.
    pub(super) challenge_at: Instant,
    /// RFC 3168 §6.1.3: echo congestion until CWR arrives.
    pub(super) ecn_echo: bool,
}

/// Quick ACKs at the start of a connection, so that slow start gets going.
pub(super) const QUICK_ACKS: u8 = 16;

impl AckState {
    pub(super) const fn new(cfg: &Config) -> Self {
        Self {
            now: false,
            pending: false,
            pushed: false,
            interactive: false,
            long: false,
            hasty: 0,
            quick: QUICK_ACKS,
            always_quick: false,
            ato: cfg.delayed_ack,
            data_at: Instant::ZERO,
            dsack: None,
            challenge_at: Instant::ZERO,
            ecn_echo: false,
        }
    }
}

/// What was agreed on, and the timestamps.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) wscale: bool,
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) ecn: bool,
    /// RFC 7413: what the SYN asks for or brings, and how many bytes of data it may carry.
    pub(super) fast_open: Option<FastOpenCookie>,
    pub(super) syn_data_max: u16,
    /// RFC 7413 §4.2.2: data flows in both directions although our SYN-ACK is not acknowledged.
    pub(super) early: bool,
    pub(super) syn_data_acked: bool,
    /// Data went with our SYN; and somebody waits to send more as soon as it is answered.
    pub(super) syn_data: bool,
    pub(super) writer_waits: bool,
    /// RFC 3168 §6.1.2: the next new data carries CWR.
    pub(super) cwr_due: bool,
    /// TS.Recent and when it was set (RFC 7323 §4.3).
    pub(super) ts_recent: u32,
    pub(super) ts_recent_at: Instant,
}

/// The timers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Retransmission, tail loss probe, reordering, or zero-window probe: see [`Watch`].
    Retransmit = 0,
    DelayedAck = 1,
    Keepalive = 2,
    /// FIN-WAIT-2 of an orphan.
    FinWait = 3,
    Pace = 4,
}

const TIMERS: usize = 5;

/// What the retransmission timer waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watch {
    /// RFC 6298.
    #[default]
    Rto,
    /// RFC 8985 §7: tail loss probe.
    Probe,
    /// RFC 8985 §6.2: reordering settles.
    Reorder,
    /// RFC 9293 §3.8.6.1: zero-window probe, or the override timeout of §3.8.6.2.1.
    Persist,
}

/// Deadlines by timer.
#[derive(Clone, Debug)]
pub(super) struct Timers {
    at: [Instant; TIMERS],
    pub(super) watch: Watch,
    /// Until when a router's word about the path counts, in seconds; zero if none does. No timer is needed: ACKs look at it.
    pub(super) path_until_s: u32,
}

impl Timers {
    pub(super) const fn new() -> Self {
        Self { at: [Instant::NEVER; TIMERS], watch: Watch::Rto, path_until_s: 0 }
    }

    #[inline]
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.at[timer as usize] = at;
    }

    #[inline]
    pub(super) fn clear(&mut self, timer: Timer) {
        self.at[timer as usize] = Instant::NEVER;
    }

    pub(super) fn clear_all(&mut self) {
        self.at = [Instant::NEVER; TIMERS];
    }

    #[inline]
    pub(super) fn at(&self, timer: Timer) -> Instant {
        self.at[timer as usize]
    }

    #[inline]
    pub(super) fn is_armed(&self, timer: Timer) -> bool {
        !self.at(timer).is_never()
    }

    #[inline]
    pub(super) fn expired(&self, timer: Timer, now: Instant) -> bool {
        self.at(timer) <= now
    }

    #[inline]
    pub(super) fn next(&self) -> Instant {
        let [a, b, c, d, e] = self.at;
        a.min(b).min(c.min(d)).min(e)
    }
}

/// What a sender with something to send is doing (Linux `tcp_chrono`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Work {
    /// There is nothing to send, and nothing in flight.
    #[default]
    Idle,
    /// It sends, or waits for ACKs.
    Busy,
    /// The peer's window is what holds it back.
    Window,
    /// The program can't queue more, and the windows would take it.
    Buffer,
}

/// How long it has been doing so, by a clock of one millisecond (Linux: of one tick), which is no one's hot path.
#[derive(Clone, Debug, Default)]
pub(super) struct Chrono {
    pub(super) work: Work,
    since_ms: u32,
    busy_ms: u32,
    window_ms: u32,
    buffer_ms: u32,
}

/// Sums of a [`Chrono`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Worked {
    /// In all.
    pub(super) busy: Duration,
    /// Of it, held back by the peer's window.
    pub(super) window: Duration,
    /// Of it, held back for want of a larger stream.
    pub(super) buffer: Duration,
}

impl Chrono {
    /// It does something else from `now` on.
    pub(super) fn turn(&mut self, now: Instant, work: Work) {
        [self.busy_ms, self.window_ms, self.buffer_ms] = self.sums_ms(now);
        self.since_ms = now.as_millis() as u32;
        self.work = work;
    }

    /// What has come together until `now`.
    pub(super) fn sums(&self, now: Instant) -> Worked {
        let [busy, window, buffer] = self.sums_ms(now).map(|ms| Duration::from_millis(u64::from(ms)));
        Worked { busy, window, buffer }
    }

    fn sums_ms(&self, now: Instant) -> [u32; 3] {
        let time = (now.as_millis() as u32).wrapping_sub(self.since_ms);
        let more = |sum: u32, counts: bool| if counts { sum.saturating_add(time) } else { sum };
        [
            more(self.busy_ms, self.work != Work::Idle),
            more(self.window_ms, self.work == Work::Window),
            more(self.buffer_ms, self.work == Work::Buffer),
        ]
    }
}

/// What is counted. In memory what every segment touches comes last.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Stats {
    pub(super) bytes_retrans: u64,
    pub(super) opened_at: Instant,
    pub(super) total_retrans: u32,
    pub(super) delivered_ce: u32,
    pub(super) dsack_dups: u32,
    pub(super) out_of_order: u32,
    pub(super) reordered: u32,
    /// By how many segments the furthest of them was late.
    pub(super) reordering: u32,
    pub(super) rate: u64,

    /// Delivery rate: bytes delivered at the start of the current round, and its start.
    pub(super) rate_from: u64,
    pub(super) rate_at: Instant,
    pub(super) delivered_bytes: u64,
    pub(super) bytes_acked: u64,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    /// When the last segment of any kind arrived.
    pub(super) heard_at: Instant,
    pub(super) acked_at: Instant,
    pub(super) sent_at: Instant,
    pub(super) segs_in: u32,
    pub(super) segs_out: u32,
    pub(super) data_segs_in: u32,
    pub(super) data_segs_out: u32,
}

impl Stats {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            bytes_acked: 0,
            bytes_received: 0,
            bytes_sent: 0,
            bytes_retrans: 0,
            opened_at: now,
            segs_in: 0,
            segs_out: 0,
            data_segs_in: 0,
            data_segs_out: 0,
            total_retrans: 0,
            delivered_bytes: 0,
            delivered_ce: 0,
            dsack_dups: 0,
            out_of_order: 0,
            reordered: 0,
            reordering: 3,
            heard_at: now,
            acked_at: now,
            sent_at: now,
            rate_from: 0,
            rate_at: now,
            rate: 0,
        }
    }
}
