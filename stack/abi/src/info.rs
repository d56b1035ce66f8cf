//! The answer to [`crate::socket::OpCode::Info`]: what `TCP_INFO` is made of.
//!
//! It stands apart from the socket, in pages of its own that nobody touches who does not ask.

use crate::sync::AtomicU64;

/// Words of an answer.
pub const WORDS: usize = 64;

/// The answer for one socket, written by the engine: words by the indices below.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    /// See the indices.
    pub words: [AtomicU64; WORDS],
}

macro_rules! indices {
    ($($(#[$doc:meta])* $name:ident = $index:expr;)*) => { $($(#[$doc])* pub const $name: usize = $index;)* };
}

indices! {
    /// State as Linux numbers them (TCP_ESTABLISHED = 1 …).
    STATE = 0;
    /// Smoothed round-trip time, µs.
    RTT_US = 1;
    /// Its variation, µs.
    RTTVAR_US = 2;
    /// Congestion window, segments.
    CWND = 3;
    /// Slow-start threshold, segments; `u32::MAX` if there is none.
    SSTHRESH = 4;
    /// Sender's MSS, bytes.
    SND_MSS = 5;
    /// Receiver's MSS, bytes.
    RCV_MSS = 6;
    /// Retransmission time-out, µs.
    RTO_US = 7;
    /// Segments retransmitted since the beginning.
    TOTAL_RETRANS = 8;
    /// Segments sent and not acknowledged.
    UNACKED = 9;
    /// Bytes queued and not sent.
    NOTSENT = 10;
    /// Option bits as Linux's TCPI_OPT_*, window scales in bits 8..12 and 12..16.
    OPTIONS = 11;
    /// Lowest round-trip time seen, µs.
    MIN_RTT_US = 12;
    /// Segments in.
    SEGS_IN = 13;
    /// Segments out.
    SEGS_OUT = 14;
    /// Receive window's space, bytes.
    RCV_SPACE = 15;
    /// State of loss recovery as Linux numbers them (TCP_CA_Open = 0 …).
    CA_STATE = 16;
    /// Timeouts in a row.
    RETRANSMITS = 17;
    /// Unanswered window or keep-alive probes.
    PROBES = 18;
    /// How often the timeout was doubled.
    BACKOFF = 19;
    /// Delay of the next delayed ACK, µs.
    ATO_US = 20;
    /// Segments selectively acknowledged.
    SACKED = 21;
    /// Segments held for lost.
    LOST = 22;
    /// Segments retransmitted and not acknowledged.
    RETRANS = 23;
    /// Since data was sent, ms.
    LAST_DATA_SENT_MS = 24;
    /// Since data was received, ms.
    LAST_DATA_RECV_MS = 25;
    /// Since an ACK was received, ms.
    LAST_ACK_RECV_MS = 26;
    /// Path MTU, bytes.
    PMTU = 27;
    /// Receiver's slow-start threshold, bytes.
    RCV_SSTHRESH = 28;
    /// MSS that we offered, bytes.
    ADVMSS = 29;
    /// Segments that may come out of order before one counts as lost.
    REORDERING = 30;
    /// Receiver's estimate of the round trip, µs.
    RCV_RTT_US = 31;
    /// Pacing rate, bytes per second; `u64::MAX` if not paced.
    PACING_RATE = 32;
    /// Its ceiling.
    PACING_RATE_MAX = 33;
    /// Bytes acknowledged.
    BYTES_ACKED = 34;
    /// Bytes received in order.
    BYTES_RECEIVED = 35;
    /// Segments with data received.
    DATA_SEGS_IN = 36;
    /// Segments with data sent.
    DATA_SEGS_OUT = 37;
    /// Delivery rate, bytes per second.
    DELIVERY_RATE = 38;
    /// Time with data in flight or queued, µs.
    BUSY_US = 39;
    /// Of it, time that the peer's window held data back, µs.
    RWND_LIMITED_US = 40;
    /// Of it, time that the program could not queue enough, µs.
    SNDBUF_LIMITED_US = 41;
    /// Segments delivered.
    DELIVERED = 42;
    /// Segments delivered with an ECN mark.
    DELIVERED_CE = 43;
    /// Bytes sent, retransmissions included.
    BYTES_SENT = 44;
    /// Bytes retransmitted.
    BYTES_RETRANS = 45;
    /// Duplicates reported by the peer.
    DSACK_DUPS = 46;
    /// Reorderings seen.
    REORD_SEEN = 47;
    /// Segments received out of order.
    RCV_OOOPACK = 48;
    /// The peer's window, bytes.
    SND_WND = 49;
    /// Our window, bytes.
    RCV_WND = 50;
    /// What a controller with a model of the path makes of it (Linux tcp_bbr_info): bytes per second.
    MODEL_RATE = 51;
    /// The round trip without a queue, µs.
    MODEL_RTT_US = 52;
    /// The gain of its pace (upper half) and of its window, in 1/256.
    MODEL_GAINS = 53;
    /// Written by the program: its keys of TCP_FASTOPEN_KEY, the one in use and the one before it, of two words each
    /// (see [`crate::socket::Options::fastopen_keys`]).
    FAST_OPEN_KEYS = 56;
}
