//! What `TCP_INFO` and `ss` show, and what the engine asks about sizes.

use super::Tcb;
use super::state::{Timer, Watch};
use crate::congestion::SSTHRESH_NONE;
use crate::info::TcpInfo;
use crate::time::{Duration, Instant};

impl Tcb {
    /// What `TCP_INFO` shows.
    #[must_use]
    pub fn info(&self, now: Instant) -> TcpInfo {
        let mss = u32::from(self.snd.mss).max(1);
        let segments = |bytes: u32| bytes.div_ceil(mss);
        let (snd, rcv, stats) = (&self.snd, &self.rcv, &self.stats);
        let worked = self.chrono.sums(now);
        let probing = self.timers.is_armed(Timer::Retransmit) && self.timers.watch == Watch::Persist;
        TcpInfo {
            state: self.state,
            recovery: self.recovery.state,
            retransmits: self.recovery.retransmits,
            probes: self.recovery.probes,
            backoff: if probing || self.recovery.retransmits > 0 { self.rtt.backoff } else { 0 },
            timestamps: self.opt.timestamps,
            sack: self.opt.sack,
            ecn: self.opt.ecn,
            window_scaling: self.opt.wscale,
            syn_data_acked: self.opt.syn_data_acked,
            snd_wscale: snd.wscale,
            rcv_wscale: rcv.wscale,
            rto: self.rtt.rto(&self.cfg),
            ato: self.ack.ato,
            snd_mss: mss,
            rcv_mss: rcv.mss,
            advmss: u32::from(self.cfg.mss),
            pmtu_payload: u32::from(snd.path_mss.min(self.cfg.mss)),
            unacked: segments(snd.flight()),
            sacked: segments(self.board.sacked()),
            lost: segments(self.board.lost()),
            retrans: segments(self.board.resent()),
            rtt: self.rtt.smoothed,
            rttvar: self.rtt.var,
            min_rtt: if self.rtt.is_known() { self.rtt.min } else { Duration::ZERO },
            rcv_rtt: self.round_trip_received(),
            snd_ssthresh: if self.cc.ssthresh == SSTHRESH_NONE { u32::MAX } else { self.cc.ssthresh / mss },
            snd_cwnd: (self.cc.cwnd / mss).max(1),
            snd_wnd: snd.wnd,
            rcv_wnd: rcv.nxt.span_to(rcv.adv),
            rcv_space: if rcv.drs_copied > 0 { rcv.drs_copied } else { rcv.capacity },
            rcv_ssthresh: rcv.capacity,
            reordering: stats.reordering,
            reord_seen: stats.reordered,
            total_retrans: stats.total_retrans,
            bytes_acked: stats.bytes_acked,
            bytes_received: stats.bytes_received,
            bytes_sent: stats.bytes_sent,
            bytes_retrans: stats.bytes_retrans,
            segs_out: stats.segs_out,
            segs_in: stats.segs_in,
            data_segs_out: stats.data_segs_out,
            data_segs_in: stats.data_segs_in,
            notsent_bytes: snd.nxt.span_to(snd.end),
            delivery_rate: stats.rate,
            pacing_rate: self.pacing_rate(),
            model: self.cc.path_model(),
            // The SYN, or SYN-ACK, is one of them.
            delivered: match stats.delivered_bytes {
                0 => 0,
                bytes => 1 + ((bytes - 1).div_ceil(u64::from(mss))) as u32,
            },
            delivered_ce: stats.delivered_ce,
            busy: worked.busy,
            rwnd_limited: worked.window,
            sndbuf_limited: worked.buffer,
            dsack_dups: stats.dsack_dups,
            rcv_ooopack: stats.out_of_order,
            last_data_sent: now - stats.sent_at,
            last_data_recv: now
                - if self.ack.data_at != Instant::ZERO { self.ack.data_at } else { stats.opened_at },
            last_ack_recv: now - stats.acked_at,
        }
    }

    /// How many bytes the receive stream should hold so that the window does not limit the peer (dynamic right-sizing).
    /// Look at it after [`crate::Events::RECV_LIMITED`]; answer with `UserCall::SetRecvCapacity`.
    #[must_use]
    pub const fn recv_capacity_wanted(&self) -> u32 {
        self.rcv.wanted
    }

    /// How many bytes the transmit stream should hold so that it does not limit the congestion window: two windows
    /// (Linux `tcp_sndbuf_expand`).
    #[must_use]
    pub const fn send_capacity_wanted(&self) -> u32 {
        self.cc.cwnd.saturating_mul(2)
    }

    /// Settings as they are now.
    #[must_use]
    pub const fn config(&self) -> &crate::Config {
        &self.cfg
    }
}
