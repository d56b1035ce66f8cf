//! A snapshot of a connection for `TCP_INFO` and `ss`.

use crate::time::Duration;

/// The states of RFC 9293 §3.3.2. LISTEN belongs to the engine, SYN-RECEIVED mostly to [`crate::HalfOpen`] and
/// TIME-WAIT to [`crate::TimeWait`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// SYN sent, nothing heard.
    SynSent,
    /// SYN received and sent, not acknowledged (simultaneous open, Fast Open).
    SynReceived,
    /// Data flows.
    Established,
    /// We sent FIN first; it is not acknowledged yet.
    FinWait1,
    /// Our FIN is acknowledged; the peer still sends.
    FinWait2,
    /// The peer sent FIN; we still send.
    CloseWait,
    /// Both sent FIN, ours is not acknowledged.
    Closing,
    /// The peer sent FIN first, then we; ours is not acknowledged.
    LastAck,
    /// Both FINs are acknowledged and ours was first.
    TimeWait,
    /// Nothing.
    #[default]
    Closed,
}

/// Where the sender stands in loss recovery (Linux `tcpi_ca_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecoveryState {
    /// Nothing is lost.
    #[default]
    Open,
    /// Duplicate ACKs or SACKs, loss not certain.
    Disorder,
    /// The window was reduced by ECN.
    Cwr,
    /// Fast recovery.
    Recovery,
    /// After a retransmission timeout.
    Loss,
}

/// A path as a controller like BBR sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathModel {
    /// Bytes per second.
    pub rate: u64,
    /// The round trip without a queue; zero if none is known.
    pub min_rtt: Duration,
    /// How much faster than that rate segments leave, in percent.
    pub pacing_gain: u32,
    /// How many times what fills the path may be under way, in percent.
    pub window_gain: u32,
}

/// What `getsockopt(TCP_INFO)` and `utcp ss` show. Bytes, segments and times as the names say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Connection state.
    pub state: State,
    /// Loss recovery state.
    pub recovery: RecoveryState,
    /// Consecutive retransmissions of the same data.
    pub retransmits: u8,
    /// Unanswered zero-window or keep-alive probes.
    pub probes: u8,
    /// Exponent of the RTO's backoff.
    pub backoff: u8,
    /// Timestamps are in use.
    pub timestamps: bool,
    /// SACK is in use.
    pub sack: bool,
    /// ECN is in use.
    pub ecn: bool,
    /// Window scaling is in use.
    pub window_scaling: bool,
    /// Data in the SYN was acknowledged (Fast Open).
    pub syn_data_acked: bool,
    /// The peer's window shift.
    pub snd_wscale: u8,
    /// Our window shift.
    pub rcv_wscale: u8,
    /// Retransmission timeout.
    pub rto: Duration,
    /// Delay of the next delayed ACK.
    pub ato: Duration,
    /// Largest payload that we send.
    pub snd_mss: u32,
    /// Estimate of the payload that the peer sends.
    pub rcv_mss: u32,
    /// Our MSS as offered.
    pub advmss: u32,
    /// Path MTU payload in use, without IP and TCP headers.
    pub pmtu_payload: u32,
    /// Segments in flight, estimated from bytes.
    pub unacked: u32,
    /// Segments selectively acknowledged.
    pub sacked: u32,
    /// Segments held for lost.
    pub lost: u32,
    /// Segments retransmitted and not acknowledged yet.
    pub retrans: u32,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its mean deviation.
    pub rttvar: Duration,
    /// Smallest round-trip time seen.
    pub min_rtt: Duration,
    /// Receiver's estimate of the round-trip time.
    pub rcv_rtt: Duration,
    /// Slow start threshold in segments; `u32::MAX` if none yet.
    pub snd_ssthresh: u32,
    /// Congestion window in segments.
    pub snd_cwnd: u32,
    /// The peer's window in bytes.
    pub snd_wnd: u32,
    /// Our window in bytes.
    pub rcv_wnd: u32,
    /// Bytes that the program reads per round trip, or the stream's capacity before it is known.
    pub rcv_space: u32,
    /// Receiver's slow start threshold.
    pub rcv_ssthresh: u32,
    /// Segments that may come out of order before one counts as lost.
    pub reordering: u32,
    /// How often segments were seen to come out of order.
    pub reord_seen: u32,
    /// Segments retransmitted in the life of the connection.
    pub total_retrans: u32,
    /// Bytes acknowledged by the peer.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Payload bytes sent, retransmissions included.
    pub bytes_sent: u64,
    /// Payload bytes retransmitted.
    pub bytes_retrans: u64,
    /// Segments sent.
    pub segs_out: u32,
    /// Segments received.
    pub segs_in: u32,
    /// Segments with payload sent.
    pub data_segs_out: u32,
    /// Segments with payload received.
    pub data_segs_in: u32,
    /// Bytes queued and never sent.
    pub notsent_bytes: u32,
    /// Delivery rate in bytes per second.
    pub delivery_rate: u64,
    /// Pacing rate in bytes per second; `u64::MAX` if not paced.
    pub pacing_rate: u64,
    /// What the congestion controller makes of the path, if it keeps a model.
    pub model: Option<PathModel>,
    /// Segments delivered.
    pub delivered: u32,
    /// Segments delivered with an ECN mark.
    pub delivered_ce: u32,
    /// Time with data in flight or queued.
    pub busy: Duration,
    /// Of it, time in which the peer's window held data back.
    pub rwnd_limited: Duration,
    /// Of it, time in which the program could not queue what the windows would have taken.
    pub sndbuf_limited: Duration,
    /// Duplicate SACKs received.
    pub dsack_dups: u32,
    /// Out-of-order segments received.
    pub rcv_ooopack: u32,
    /// Time since data was last sent.
    pub last_data_sent: Duration,
    /// Time since data was last received.
    pub last_data_recv: Duration,
    /// Time since an ACK was last received.
    pub last_ack_recv: Duration,
}
