//! TCP_INFO: the engine's figures in the structure that Linux gives.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use utcp_abi::socket::{info, status};

use crate::handle::Sock;

/// linux/tcp.h, up to `tcpi_segs_in`; what follows there is zero here.
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
    rest: [u64; 16],
}

/// Linux's number for a closed socket.
const TCP_CLOSE: u8 = 7;

fn word(sock: &Sock, index: usize) -> u32 {
    sock.shared.info.get(index).map_or(0, |word| word.load(Relaxed))
}

/// The sender's MSS, as last asked.
pub fn snd_mss(sock: &Sock) -> c_int {
    word(sock, info::SND_MSS) as c_int
}

/// The structure, from what the engine wrote last; `now` is the socket's status.
pub fn tcp_info(sock: &Sock, now: u32) -> TcpInfo {
    let of = |index| word(sock, index);
    let options = of(info::OPTIONS);
    let begun = now & (status::CONNECTED | status::CONNECTING) != 0 && now & status::DEAD == 0;
    TcpInfo {
        state: if begun { of(info::STATE) as u8 } else { TCP_CLOSE },
        options: options as u8,
        // Two fields of four bits: the peer's scale below, ours above.
        wscale: (options >> 8) as u8,
        rto: of(info::RTO_US),
        snd_mss: of(info::SND_MSS),
        rcv_mss: of(info::RCV_MSS),
        unacked: of(info::UNACKED),
        pmtu: of(info::SND_MSS).saturating_add(40),
        rtt: of(info::RTT_US),
        rttvar: of(info::RTTVAR_US),
        snd_ssthresh: of(info::SSTHRESH),
        snd_cwnd: of(info::CWND),
        advmss: of(info::RCV_MSS),
        reordering: 3,
        rcv_space: of(info::RCV_SPACE),
        total_retrans: of(info::TOTAL_RETRANS),
        pacing_rate: u64::MAX,
        max_pacing_rate: u64::MAX,
        bytes_acked: sock.shared.tx_head.load(Relaxed) & 0xfff_ffff_ffff,
        bytes_received: sock.shared.rx_tail.load(Relaxed) & 0xfff_ffff_ffff,
        segs_out: of(info::SEGS_OUT),
        segs_in: of(info::SEGS_IN),
        notsent_bytes: of(info::NOTSENT),
        min_rtt: of(info::MIN_RTT_US),
        ..TcpInfo::default()
    }
}

const _: () =
    assert!(core::mem::offset_of!(TcpInfo, rtt) == 68 && core::mem::offset_of!(TcpInfo, segs_out) == 136);
