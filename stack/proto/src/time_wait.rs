//! TIME-WAIT (RFC 9293 §3.3.2) as a small record: it acknowledges what is left of the old connection and says when
//! a new one may take its place.

use crate::actions::DropReason;
use crate::half_open::{paws_rejects, ts_before, ts_clock};
use crate::segment::{Flags, FourTuple, Options, Segment, Timestamps, Transmit};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// Shortest time between two ACKs out of one record, so that two ends can't keep each other busy.
const ACK_GAP: Duration = Duration::from_millis(500);

/// The record of one connection in TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWait {
    /// The connection's name.
    pub tuple: FourTuple,
    pub(crate) snd_nxt: SeqNum,
    pub(crate) rcv_nxt: SeqNum,
    /// The window as the last segment carried it.
    pub(crate) wnd: u16,
    pub(crate) rcv_wnd: u32,
    /// The peer's last timestamp and ours, if the connection used them.
    pub(crate) ts: Option<TimeWaitClock>,
    pub(crate) rfc1337: bool,
    pub(crate) length: Duration,
    pub(crate) expires: Instant,
    pub(crate) acked_at: Instant,
}

/// The timestamps that outlive a connection (RFC 6191).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeWaitClock {
    pub(crate) recent: u32,
    pub(crate) recent_at: Instant,
    pub(crate) offset: u32,
}

/// What a segment means for a connection in TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitVerdict {
    /// Nothing to do.
    Drop(DropReason),
    /// Send this ACK, and file the record under its new [`TimeWait::expires`].
    Ack(Transmit, DropReason),
    /// The SYN of a new incarnation that can't be mistaken for the old one: remove the record and let the listener
    /// handle the segment with this ISS, which lies beyond all that the old one sent. Without a listener: [`TimeWait::refuse`].
    Reuse {
        /// Use this instead of [`crate::isn::Secret::isn`].
        iss: SeqNum,
    },
    /// A valid RST: remove the record. Only where the configuration does without RFC 1337.
    Remove,
}

impl TimeWait {
    /// When the record may be forgotten.
    #[must_use]
    pub const fn expires(&self) -> Instant {
        self.expires
    }

    /// The ISS with which a program may connect again over the same four-tuple now (Linux `tcp_tw_reuse`): allowed
    /// when timestamps tell the incarnations apart (RFC 6191 §2 from the other side).
    #[must_use]
    pub fn reuse_for_connect(&self, now: Instant) -> Option<SeqNum> {
        let ts = self.ts?;
        (now - ts.recent_at >= Duration::from_secs(1)).then(|| self.iss_beyond())
    }

    /// RFC 9293 §3.10.7.4 for TIME-WAIT.
    #[must_use]
    pub fn on_segment(&mut self, now: Instant, seg: &Segment) -> TimeWaitVerdict {
        let ts = self.ts.zip(seg.options.timestamps);
        let old_ts = ts.is_some_and(|(mine, theirs)| paws_rejects(theirs.val, mine.recent));
        if seg.flags.any(Flags::RST) {
            // RFC 1337 §3: a reset must not cut TIME-WAIT short. Where it may, it has to be exact (RFC 5961 §3.2).
            return match !self.rfc1337 && !old_ts && seg.seq == self.rcv_nxt {
                true => TimeWaitVerdict::Remove,
                false => TimeWaitVerdict::Drop(DropReason::TimeWaitRst),
            };
        }
        if seg.flags.any(Flags::SYN) && seg.ack.is_none() {
            // RFC 6191 §2: a newer timestamp, or without one a sequence number beyond the old connection's, proves
            // that the SYN is new. An equal timestamp proves nothing by itself.
            let newer_ts = ts.is_some_and(|(mine, theirs)| ts_before(mine.recent, theirs.val));
            if !old_ts && (newer_ts || seg.seq.after(self.rcv_nxt)) {
                return TimeWaitVerdict::Reuse { iss: self.iss_beyond() };
            }
            return self.ack(now, DropReason::SynInWindow);
        }
        if old_ts {
            return self.ack(now, DropReason::Paws);
        }
        // Not what lies before it, as RFC 7323 §4.3 has it: half of all numbers that a stranger may guess do, and a clock that he set
        // ahead would keep the peer's next SYN out. Linux takes the time of nothing else, either.
        if seg.seq == self.rcv_nxt
            && seg.seq_len() == 0
            && let (Some(mine), Some(theirs)) = (&mut self.ts, seg.options.timestamps)
        {
            mine.recent = theirs.val;
            mine.recent_at = now;
        }
        // "The only thing that can arrive in this state is a retransmission of the remote FIN. Acknowledge it, and
        // restart the 2 MSL timeout." All other data is answered likewise so that the peer sees where it stands.
        if seg.flags.any(Flags::FIN) {
            self.expires = now + self.length;
            return self.ack(now, DropReason::Duplicate);
        }
        if seg.len > 0 || seg.flags.any(Flags::SYN) || !self.in_window(seg.seq) {
            return self.ack(now, DropReason::OutOfWindow);
        }
        TimeWaitVerdict::Drop(DropReason::Closed)
    }

    /// What to answer to a SYN that [`TimeWait::on_segment`] found to be new, if nobody listens for it: as if it were not.
    #[must_use]
    pub fn refuse(&mut self, now: Instant) -> TimeWaitVerdict {
        self.ack(now, DropReason::SynInWindow)
    }

    fn in_window(&self, seq: SeqNum) -> bool {
        seq == self.rcv_nxt || seq.within(self.rcv_nxt, self.rcv_wnd)
    }

    /// RFC 9293 §3.4.1: an ISS larger than the largest sequence number that the old incarnation can have used.
    fn iss_beyond(&self) -> SeqNum {
        self.snd_nxt + 65_537
    }

    fn ack(&mut self, now: Instant, why: DropReason) -> TimeWaitVerdict {
        if self.acked_at != Instant::ZERO && now - self.acked_at < ACK_GAP && why != DropReason::Duplicate {
            return TimeWaitVerdict::Drop(why);
        }
        self.acked_at = now;
        let timestamps = self.ts.map(|mine| Timestamps { val: ts_clock(now, mine.offset), ecr: mine.recent });
        let tx = Transmit {
            seq: self.snd_nxt,
            ack: Some(self.rcv_nxt),
            wnd: self.wnd,
            options: Options { timestamps, ..Options::default() },
            ..Transmit::default()
        };
        TimeWaitVerdict::Ack(tx, why)
    }
}
