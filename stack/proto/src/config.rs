//! What a stack, a listener or a socket may choose. Defaults are those of Linux unless a comment says why not.

use crate::time::Duration;

/// Which congestion controller a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CongestionKind {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// Reno with the NewReno recovery (RFC 5681, RFC 6582).
    NewReno,
    /// A model of the path, after BBRv3 (draft-ietf-ccwg-bbr).
    Bbr,
}

impl CongestionKind {
    /// The controller by the name that `TCP_CONGESTION` uses.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"cubic" => Some(Self::Cubic),
            b"reno" => Some(Self::NewReno),
            b"bbr" => Some(Self::Bbr),
            _ => None,
        }
    }

    /// The name that `TCP_CONGESTION` reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::NewReno => "reno",
            Self::Bbr => "bbr",
        }
    }
}

/// Whether a connection uses ECN (RFC 3168).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EcnMode {
    /// Never.
    Off,
    /// When the peer asks for it.
    #[default]
    Passive,
    /// Ask for it, and accept it.
    Active,
}

/// Whether a connection probes for the largest segments that its path carries (RFC 4821; `tcp_mtu_probing`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtuProbing {
    /// Never. A path that seems to swallow large segments gets smaller ones, and larger ones once more.
    #[default]
    Off,
    /// Upwards, after a path seemed to swallow large segments.
    AfterBlackHole,
    /// Upwards from [`Config::base_mss`], from the beginning.
    Always,
}

/// Keep-alive (RFC 1122 §4.2.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Idle time before the first probe (`TCP_KEEPIDLE`).
    pub idle: Duration,
    /// Time between probes (`TCP_KEEPINTVL`).
    pub interval: Duration,
    /// Unanswered probes before the connection is given up (`TCP_KEEPCNT`).
    pub probes: u8,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(7_200), interval: Duration::from_secs(75), probes: 9 }
    }
}

/// The settings of a connection. In memory what every segment asks for comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Floor of the retransmission timeout. RFC 6298 §2.4 says one second; Linux and all else use 200 ms.
    pub rto_min: Duration,
    /// Ceiling of the retransmission timeout.
    pub rto_max: Duration,
    /// Ceiling of the sending rate in bytes per second (`SO_MAX_PACING_RATE`); `u64::MAX` is no ceiling.
    pub pacing_rate_max: u64,
    /// Added to the millisecond clock in TSval, so that it tells nothing about the host (RFC 7323 §5.4). Take it
    /// from [`crate::isn::Secret::ts_offset`].
    pub ts_offset: u32,
    /// Bytes that the receive stream may grow to. Chooses the window scale, which is fixed at the SYN.
    pub recv_capacity_max: u32,
    /// Largest payload in bytes that we accept in a segment and send in one, before options: MTU − 40 (IPv4) or
    /// MTU − 60 (IPv6), lowered by `TCP_MAXSEG`. Sent in the MSS option.
    pub mss: u16,
    /// Send small segments at once (`TCP_NODELAY`, Nagle off).
    pub nodelay: bool,
    /// Send full segments only (`TCP_CORK`), with a 200 ms ceiling.
    pub cork: bool,
    /// Fall back to a small window after an idle period (RFC 5681 §4.1).
    pub slow_start_after_idle: bool,
    /// Probe an idle peer, and how.
    pub keepalive: Option<Keepalive>,
    /// How long data may stay unacknowledged (RFC 5482, `TCP_USER_TIMEOUT`). Zero: `retries` decides.
    pub user_timeout: Duration,
    /// Retransmission timeout before the first measurement (RFC 6298 §2.1).
    pub rto_initial: Duration,
    /// Longest delay of an ACK (RFC 1122 §4.2.3.2 allows half a second).
    pub delayed_ack: Duration,
    /// How long an orphan stays in FIN-WAIT-2 (`tcp_fin_timeout`, `TCP_LINGER2`).
    pub fin_timeout: Duration,
    /// How long TIME-WAIT lasts. RFC 9293 says 2 MSL; Linux counts 60 s.
    pub time_wait: Duration,
    /// At most one answer to out-of-window segments without data in this time (RFC 5961 §7, `tcp_invalid_ratelimit`).
    pub challenge_gap: Duration,
    /// Bytes that the receive stream can hold now. Raise it later with `UserCall::SetRecvCapacity`.
    pub recv_capacity: u32,
    /// A size that is nearly certain to get through (RFC 4821 §7.2, `tcp_base_mss`).
    pub base_mss: u16,
    /// For how many seconds a router's word that packets are too large for the path counts (`net.ipv4.route.mtu_expires`).
    pub path_mtu_age_s: u16,
    /// Offer window scaling (RFC 7323).
    pub window_scaling: bool,
    /// Offer timestamps (RFC 7323).
    pub timestamps: bool,
    /// Offer selective acknowledgement (RFC 2018).
    pub sack: bool,
    /// Explicit congestion notification.
    pub ecn: EcnMode,
    /// The congestion controller.
    pub congestion: CongestionKind,
    /// SYN retransmissions before connect gives up (`tcp_syn_retries`, `TCP_SYNCNT`).
    pub syn_retries: u8,
    /// SYN-ACK retransmissions before a half-open connection is dropped (`tcp_synack_retries`).
    pub synack_retries: u8,
    /// For how many time-outs of the SYN-ACK an ACK without data does not complete a handshake (`TCP_DEFER_ACCEPT`).
    pub defer_accept: u8,
    /// Retransmissions before an established connection is given up (`tcp_retries2`).
    pub retries: u8,
    /// The same for a connection that no program owns any more (`tcp_orphan_retries`).
    pub orphan_retries: u8,
    /// Ignore RST in TIME-WAIT (RFC 1337). Linux by default does not.
    pub rfc1337: bool,
    /// Initial congestion window in segments (RFC 6928).
    pub initial_cwnd: u8,
    /// Probing for the path's MTU.
    pub mtu_probing: MtuProbing,
}

impl Config {
    /// The defaults as a constant.
    pub const DEFAULT: Self = Self {
        mss: 1_460,
        recv_capacity: 65_536,
        recv_capacity_max: 6 * 1024 * 1024,
        window_scaling: true,
        timestamps: true,
        sack: true,
        ecn: EcnMode::Passive,
        congestion: CongestionKind::Cubic,
        nodelay: false,
        cork: false,
        keepalive: None,
        user_timeout: Duration::ZERO,
        rto_min: Duration::from_millis(200),
        rto_max: Duration::from_secs(120),
        rto_initial: Duration::from_secs(1),
        delayed_ack: Duration::from_millis(40),
        syn_retries: 6,
        synack_retries: 5,
        defer_accept: 0,
        retries: 15,
        orphan_retries: 8,
        fin_timeout: Duration::from_secs(60),
        time_wait: Duration::from_secs(60),
        challenge_gap: Duration::from_millis(500),
        rfc1337: true,
        initial_cwnd: 10,
        slow_start_after_idle: true,
        mtu_probing: MtuProbing::Off,
        base_mss: 1_024,
        path_mtu_age_s: 600,
        pacing_rate_max: u64::MAX,
        ts_offset: 0,
    };

    /// The window of a SYN, which is not scaled (RFC 7323 §2.2): as many whole segments as the stream holds, as Linux has it.
    #[must_use]
    pub const fn syn_window(&self) -> u16 {
        let (capacity, mss) = (self.recv_capacity, self.mss as u32);
        let whole = if capacity > mss && mss > 0 { capacity - capacity % mss } else { capacity };
        if whole > 65_535 { 65_535 } else { whole as u16 }
    }

    /// The window scale that lets `recv_capacity_max` be advertised (RFC 7323 §2.3), 0 to 14.
    #[must_use]
    pub const fn wscale(&self) -> u8 {
        let mut shift = 0;
        while shift < 14 && (self.recv_capacity_max >> shift) > 65_535 {
            shift += 1;
        }
        shift
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}
