//! TCP_INFO: the engine's figures in the structure that Linux gives.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use utcp_abi::info;
use utcp_abi::socket::status;

use crate::handle::Sock;

/// linux/tcp.h, up to `tcpi_rehash`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    wscale: u8,
    limited: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    advmss: u32,
    reordering: u32,
    rcv_rtt: u32,
    rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
    rcv_wnd: u32,
    rehash: u32,
}

/// Linux's number for a closed socket.
const TCP_CLOSE: u8 = 7;

fn wide(sock: &Sock, index: usize) -> u64 {
    let answer = sock.att.region().info(sock.slot());
    answer.and_then(|answer| answer.words.get(index)).map_or(0, |word| word.load(Relaxed))
}

fn word(sock: &Sock, index: usize) -> u32 {
    wide(sock, index) as u32
}

/// The sender's MSS, as last asked.
pub fn snd_mss(sock: &Sock) -> c_int {
    word(sock, info::SND_MSS) as c_int
}

/// The path's MTU, as last asked.
pub fn path_mtu(sock: &Sock) -> c_int {
    word(sock, info::PMTU) as c_int
}

/// What Linux tells of BBR (tcp_bbr_info), as last asked: the rate in two halves, the round trip, the gains.
pub fn path_model(sock: &Sock) -> [u32; 5] {
    let (rate, gains) = (wide(sock, info::MODEL_RATE), wide(sock, info::MODEL_GAINS));
    [rate as u32, (rate >> 32) as u32, word(sock, info::MODEL_RTT_US), (gains >> 32) as u32, gains as u32]
}

/// The structure, from what the engine wrote last; `now` is the socket's status.
pub fn tcp_info(sock: &Sock, now: u32) -> TcpInfo {
    let of = |index| word(sock, index);
    let long = |index| wide(sock, index);
    let options = of(info::OPTIONS);
    let begun = now & (status::CONNECTED | status::CONNECTING) != 0 && now & status::DEAD == 0;
    TcpInfo {
        state: if begun { of(info::STATE) as u8 } else { TCP_CLOSE },
        ca_state: of(info::CA_STATE) as u8,
        retransmits: of(info::RETRANSMITS) as u8,
        probes: of(info::PROBES) as u8,
        backoff: of(info::BACKOFF) as u8,
        options: options as u8,
        // Two fields of four bits: the peer's scale below, ours above.
        wscale: (options >> 8) as u8,
        limited: 0,
        rto: of(info::RTO_US),
        ato: of(info::ATO_US),
        snd_mss: of(info::SND_MSS),
        rcv_mss: of(info::RCV_MSS),
        unacked: of(info::UNACKED),
        sacked: of(info::SACKED),
        lost: of(info::LOST),
        retrans: of(info::RETRANS),
        fackets: 0,
        last_data_sent: of(info::LAST_DATA_SENT_MS),
        last_ack_sent: 0,
        last_data_recv: of(info::LAST_DATA_RECV_MS),
        last_ack_recv: of(info::LAST_ACK_RECV_MS),
        pmtu: of(info::PMTU),
        rcv_ssthresh: of(info::RCV_SSTHRESH),
        rtt: of(info::RTT_US),
        rttvar: of(info::RTTVAR_US),
        snd_ssthresh: of(info::SSTHRESH).min(TCP_INFINITE_SSTHRESH),
        snd_cwnd: of(info::CWND),
        advmss: of(info::ADVMSS),
        reordering: of(info::REORDERING),
        rcv_rtt: of(info::RCV_RTT_US),
        rcv_space: of(info::RCV_SPACE),
        total_retrans: of(info::TOTAL_RETRANS),
        pacing_rate: long(info::PACING_RATE),
        max_pacing_rate: long(info::PACING_RATE_MAX),
        bytes_acked: long(info::BYTES_ACKED),
        bytes_received: long(info::BYTES_RECEIVED),
        segs_out: of(info::SEGS_OUT),
        segs_in: of(info::SEGS_IN),
        notsent_bytes: of(info::NOTSENT),
        min_rtt: of(info::MIN_RTT_US),
        data_segs_in: of(info::DATA_SEGS_IN),
        data_segs_out: of(info::DATA_SEGS_OUT),
        delivery_rate: long(info::DELIVERY_RATE),
        busy_time: long(info::BUSY_US),
        rwnd_limited: long(info::RWND_LIMITED_US),
        sndbuf_limited: long(info::SNDBUF_LIMITED_US),
        delivered: of(info::DELIVERED),
        delivered_ce: of(info::DELIVERED_CE),
        bytes_sent: long(info::BYTES_SENT),
        bytes_retrans: long(info::BYTES_RETRANS),
        dsack_dups: of(info::DSACK_DUPS),
        reord_seen: of(info::REORD_SEEN),
        rcv_ooopack: of(info::RCV_OOOPACK),
        snd_wnd: of(info::SND_WND),
        rcv_wnd: of(info::RCV_WND),
        rehash: 0,
    }
}

/// What Linux says instead of "none".
const TCP_INFINITE_SSTHRESH: u32 = 0x7fff_ffff;

const _: () =
    assert!(core::mem::offset_of!(TcpInfo, rtt) == 68 && core::mem::offset_of!(TcpInfo, rehash) == 236);
