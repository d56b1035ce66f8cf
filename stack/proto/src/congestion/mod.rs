//! Congestion control behind one small interface: what an ACK delivered goes in, a window in bytes comes out.
//!
//! Loss recovery (what is lost, what to send again, PRR) is not here: it is the same for all controllers.

mod bbr;
mod cubic;
mod hystart;

use crate::config::CongestionKind;
use crate::info::PathModel;
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

use bbr::Bbr;
use cubic::{Cubic, Growth};
use hystart::HyStart;

/// "No threshold yet": slow start goes on until the first loss.
pub(crate) const SSTHRESH_NONE: u32 = u32::MAX;
/// Windows stop here: far beyond any stream, far below where sums of two overflow.
const CWND_MAX: u32 = 1 << 30;

/// What an ACK says to the controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckSample {
    pub(crate) now: Instant,
    /// Bytes that it acknowledged.
    pub(crate) acked: u32,
    /// Bytes of a full segment.
    pub(crate) mss: u32,
    pub(crate) srtt: Duration,
    /// The round trip that this ACK measured.
    pub(crate) rtt: Option<Duration>,
    pub(crate) una: SeqNum,
    pub(crate) nxt: SeqNum,
    /// The peer tells which segments have arrived.
    pub(crate) sack: bool,
}

/// What any ACK says to a controller that keeps a model of the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) now: Instant,
    /// Bytes that it acknowledged, in either way.
    pub(crate) bytes: u32,
    /// Bytes that are held for lost since.
    pub(crate) lost: u32,
    /// Bytes in flight after it.
    pub(crate) flight: u32,
    /// The program, or the peer's window, leaves nothing to send.
    pub(crate) limited: bool,
    /// Bytes of a full segment.
    pub(crate) mss: u32,
    pub(crate) srtt: Duration,
    /// The round trip that this ACK measured.
    pub(crate) rtt: Option<Duration>,
    /// Where the highest byte that has arrived ends.
    pub(crate) front: SeqNum,
    pub(crate) nxt: SeqNum,
}

#[derive(Clone, Copy, Debug)]
enum Algorithm {
    NewReno,
    Cubic(Cubic),
    Bbr(Bbr),
}

/// The window and the controller that moves it. In memory what every segment reads comes first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Congestion {
    /// The congestion window in bytes.
    pub(crate) cwnd: u32,
    /// The slow start threshold in bytes.
    pub(crate) ssthresh: u32,
    /// The controller keeps a model: it paces, and hears of every ACK.
    model: bool,
    /// Acknowledged bytes that did not make a whole byte of window yet, times the window.
    credit: u64,
    algorithm: Algorithm,
    hystart: HyStart,
}

impl Congestion {
    pub(crate) fn new(kind: CongestionKind, cwnd: u32, una: SeqNum) -> Self {
        let mut new = Self {
            cwnd,
            ssthresh: SSTHRESH_NONE,
            model: false,
            credit: 0,
            hystart: HyStart::new(una),
            algorithm: Algorithm::NewReno,
        };
        new.set_kind(kind, una);
        new
    }

    pub(crate) const fn kind(&self) -> CongestionKind {
        match self.algorithm {
            Algorithm::NewReno => CongestionKind::NewReno,
            Algorithm::Cubic(_) => CongestionKind::Cubic,
            Algorithm::Bbr(_) => CongestionKind::Bbr,
        }
    }

    /// The controller keeps a model: it has to hear of every ACK, and recovery does not lower its window.
    #[inline]
    pub(crate) const fn is_model(&self) -> bool {
        self.model
    }

    /// Bytes per second at which segments may leave; `u64::MAX` for no limit.
    #[inline]
    pub(crate) const fn pacing(&self) -> u64 {
        if !self.model {
            return u64::MAX;
        }
        match &self.algorithm {
            Algorithm::Bbr(bbr) => bbr.pacing(),
            _ => u64::MAX,
        }
    }

    /// The model, if the controller keeps one.
    pub(crate) const fn path_model(&self) -> Option<PathModel> {
        match &self.algorithm {
            Algorithm::Bbr(bbr) => Some(bbr.path_model()),
            _ => None,
        }
    }

    /// Every ACK, for a controller that keeps a model; the last word about the window.
    pub(crate) fn on_delivery(&mut self, delivery: &Delivery) {
        if let Algorithm::Bbr(bbr) = &mut self.algorithm {
            self.cwnd = bbr.on_delivery(delivery, self.cwnd);
        }
    }

    /// The peer echoed an ECN mark; [`Congestion::on_congestion`] follows.
    pub(crate) fn on_mark(&mut self) {
        if let Algorithm::Bbr(bbr) = &mut self.algorithm {
            bbr.on_mark();
        }
    }

    /// Changes the controller; window and threshold stay.
    pub(crate) fn set_kind(&mut self, kind: CongestionKind, una: SeqNum) {
        self.model = kind == CongestionKind::Bbr;
        self.algorithm = match kind {
            CongestionKind::NewReno => Algorithm::NewReno,
            CongestionKind::Cubic => Algorithm::Cubic(Cubic::new()),
            CongestionKind::Bbr => Algorithm::Bbr(Bbr::new(self.cwnd, una)),
        };
    }

    #[inline]
    pub(crate) const fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// New data was acknowledged outside of recovery, and the window was what limited the sender (RFC 7661 §4.1).
    #[inline]
    pub(crate) fn on_ack(&mut self, ack: &AckSample) {
        if self.is_model() {
            return;
        }
        let mut acked = ack.acked;
        if self.in_slow_start() {
            acked = self.slow_start(ack);
            if acked == 0 {
                return;
            }
        }
        let grow = match &mut self.algorithm {
            // RFC 5681 §3.1: one segment for each window acknowledged.
            Algorithm::NewReno => ack.mss,
            Algorithm::Cubic(cubic) => match cubic.on_ack(ack, self.cwnd, acked) {
                Growth::To(window) => {
                    self.cwnd = window.min(CWND_MAX);
                    return;
                }
                Growth::PerWindow(bytes) => bytes,
            },
            Algorithm::Bbr(_) => return,
        };
        self.credit += u64::from(grow) * u64::from(acked);
        let cwnd = u64::from(self.cwnd.max(1));
        if self.credit >= cwnd {
            let bytes = (self.credit / cwnd) as u32;
            self.credit %= cwnd;
            self.cwnd = self.cwnd.saturating_add(bytes).min(CWND_MAX);
        }
    }

    /// RFC 5681 §3.1 with HyStart++ (RFC 9406); returns the acknowledged bytes that are left for congestion avoidance.
    fn slow_start(&mut self, ack: &AckSample) -> u32 {
        let divisor = if self.ssthresh == SSTHRESH_NONE {
            let by_train = !ack.sack || !matches!(self.algorithm, Algorithm::NewReno);
            self.hystart.on_ack(ack, self.cwnd, by_train)
        } else {
            Some(1)
        };
        let Some(divisor) = divisor else {
            // RFC 9406 §4.2: conservative slow start is over.
            self.ssthresh = self.cwnd;
            return ack.acked;
        };
        let room = self.ssthresh.min(CWND_MAX).saturating_sub(self.cwnd);
        let grow = (ack.acked / divisor).min(room);
        self.cwnd += grow;
        if divisor > 1 { 0 } else { ack.acked - grow }
    }

    /// A loss or an ECN mark: sets the threshold to which recovery lowers the window.
    pub(crate) fn on_congestion(&mut self, flight: u32, mss: u32) {
        self.credit = 0;
        self.ssthresh = match &mut self.algorithm {
            // RFC 5681 §3.1 equation 4; what limited transmit added to the flight does not count (§3.2 step 2).
            Algorithm::NewReno => flight.min(self.cwnd) / 2,
            Algorithm::Cubic(cubic) => cubic.on_congestion(self.cwnd),
            Algorithm::Bbr(_) => SSTHRESH_NONE,
        }
        .max(2 * mss);
    }

    /// RFC 5681 §3.1 after a retransmission timeout: the window is one segment.
    pub(crate) fn on_timeout(&mut self, mss: u32) {
        self.cwnd = mss;
        self.credit = 0;
        match &mut self.algorithm {
            Algorithm::Cubic(cubic) => cubic.restart(),
            Algorithm::Bbr(bbr) => bbr.on_timeout(mss),
            Algorithm::NewReno => {}
        }
    }

    /// RFC 4015, RFC 9438 §4.9: the loss was none; takes the reduction back.
    pub(crate) fn undo(&mut self, cwnd: u32, ssthresh: u32) {
        self.cwnd = self.cwnd.max(cwnd);
        self.ssthresh = self.ssthresh.max(ssthresh);
        match &mut self.algorithm {
            Algorithm::Cubic(cubic) => cubic.undo(self.cwnd),
            Algorithm::Bbr(bbr) => bbr.undo(self.cwnd),
            Algorithm::NewReno => {}
        }
    }

    /// RFC 5681 §4.1: nothing was sent for `rtos` timeouts; halves the window for each, down to `restart`.
    pub(crate) fn on_idle(&mut self, now: Instant, idle: Duration, rtos: u64, restart: u32) {
        if self.is_model() {
            return; // It is paced: no burst follows.
        }
        let kept = self.cwnd.checked_shr(rtos.min(31) as u32).unwrap_or(0);
        if self.cwnd > restart {
            self.ssthresh = if self.ssthresh == SSTHRESH_NONE {
                SSTHRESH_NONE
            } else {
                self.ssthresh.max(self.cwnd / 4 * 3)
            };
            self.cwnd = kept.max(restart);
        }
        if let Algorithm::Cubic(cubic) = &mut self.algorithm {
            cubic.on_idle(now, idle);
        }
    }
}

#[cfg(test)]
mod tests;
