//! What is known of the bytes in flight (RFC 6675 §3 "scoreboard", RFC 8985 §5.2 "per-segment variables").
//!
//! ```text
//!   snd.una                                                        snd.nxt
//!     │ lost │ sacked │ lost, resent │ sacked │   sent at t1   │ sent at t2 │
//!     └ a record is the run of neighbouring bytes of which the same is known ┘
//! ```
//!
//! Segments of equal fate share a record, so the board has a fixed size: bytes sent at (nearly) the same time are one
//! record, and so is a run of bytes that are selectively acknowledged. When it is full, neighbours merge, which blurs the
//! times a little; a SACK that would need another record is ignored, which costs a retransmission, never data.
//!
//! Most connections have next to nothing in flight at any time. So a board has a few records of its own, and borrows many
//! while it needs them ([`SentRecords`]).

mod tick;

use crate::seq::SeqNum;

use tick::Span;
pub(crate) use tick::{Tick, ticks_to_nanos};

/// Records on the board; a power of two. A sender that overruns a queue loses every other segment for a while, and each hole takes two
/// records: with 128 of them, a lost window of 400 segments was sent again in vain, again and again.
pub(crate) const RECORDS_MAX: usize = 512;
const MASK: usize = RECORDS_MAX - 1;
/// One record in so many is not for SACKs: what is sent again needs one to tell the part that was sent from the rest.
const RESERVE_DIVISOR: usize = 32;
/// Records of its own; a power of two.
const FEW: usize = 4;
const FEW_MASK: usize = FEW - 1;

/// Selectively acknowledged.
const SACKED: u8 = 1;
/// Held for lost.
const LOST: u8 = 2;
/// Sent again since it was held for lost.
const RESENT: u8 = 4;
/// Sent more than once: gives no RTT sample (Karn's algorithm, RFC 6298 §3).
const AMBIGUOUS: u8 = 8;

/// A run of bytes, from the end of the record before it to `end`. Packed, as it is most of a TCB's memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
struct Record {
    end: SeqNum,
    /// When the first of the bytes was last sent.
    sent_at: Tick,
    /// Until the last of them was.
    late: Span,
    flags: u8,
}

impl Record {
    const EMPTY: Self = Self { end: SeqNum::new(0), sent_at: Tick(0), late: Span::NONE, flags: 0 };

    const fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// When the last of the bytes was last sent. What was sent after that was sent after all of them.
    fn sent_by(&self) -> Tick {
        Tick(self.sent_at.0.wrapping_add(self.late.ticks()))
    }

    /// Bytes that were sent at `at` join it.
    fn cover(&mut self, at: Tick) {
        let (late, ticks) = (self.late, at.since(self.sent_at));
        if ticks > late.ticks() {
            self.late = Span::covering(ticks);
        }
    }
}

/// Room for what is known of many segments in flight, which a connection borrows: see [`crate::Lender`].
#[derive(Debug)]
pub struct SentRecords([Record; RECORDS_MAX]);

impl SentRecords {
    /// Ready to be lent.
    #[must_use]
    pub const fn new() -> Self {
        Self([Record::EMPTY; RECORDS_MAX])
    }
}

impl Default for SentRecords {
    fn default() -> Self {
        Self::new()
    }
}

/// The board.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Scoreboard {
    /// SND.UNA: the first record starts here.
    start: SeqNum,
    /// SND.NXT: the last record ends here.
    end: SeqNum,
    head: u16,
    len: u16,
    /// Merge bytes sent within so many ticks of each other.
    grain: u32,
    /// Bytes in records that are SACKED.
    sacked: u32,
    /// Bytes in records that are LOST.
    lost: u32,
    /// Bytes in records that are RESENT.
    resent: u32,
    /// What is borrowed, in place of its own.
    many: Option<&'static mut SentRecords>,
    few: [Record; FEW],
}

/// A run of bytes that was delivered: the end of it, and how it had been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// When the last of the bytes was, as far as it is known.
    pub(crate) by: Tick,
    /// When the first of them was.
    pub(crate) first: Tick,
    pub(crate) end: SeqNum,
    /// More than once.
    pub(crate) ambiguous: bool,
}

impl Sent {
    fn of(record: &Record, end: SeqNum) -> Self {
        Self { by: record.sent_by(), first: record.sent_at, end, ambiguous: record.is(AMBIGUOUS) }
    }

    /// What [`Scoreboard::detect_lost`] compares. Of a run that was sent over some time, its front may be delivered alone: that it was
    /// sent when the run began is sure, and no more.
    pub(crate) const fn surely(&self) -> (Tick, SeqNum) {
        (self.first, self.end)
    }
}

/// What an acknowledgement, cumulative or selective, told about segments delivered just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Bytes that had not been acknowledged in either way.
    pub(crate) bytes: u32,
    /// When those that were sent once were sent: the first, and the last.
    pub(crate) oldest_once: Option<Tick>,
    pub(crate) newest_once: Option<Tick>,
    /// The most recently sent of all.
    pub(crate) newest: Option<Sent>,
    /// The one that was looked at last, if that is another.
    pub(crate) last: Option<Sent>,
    /// Lowest sequence number that was delivered here for the first time and had been sent once only.
    pub(crate) lowest_once: Option<SeqNum>,
    /// Bytes were delivered that had been sent once although all was held for lost (RFC 5682: a spurious timeout).
    pub(crate) original: bool,
}

impl Delivered {
    fn note(&mut self, record: &Record, start: SeqNum, bytes: u32) {
        self.bytes += bytes;
        let ambiguous = record.is(AMBIGUOUS);
        let sent = Sent::of(record, record.end);
        self.last = Some(sent);
        if !ambiguous {
            // Lost records merge, which blurs their times: no sample from those.
            if !record.is(LOST) {
                if self.oldest_once.is_none_or(|t| record.sent_at.before(t)) {
                    self.oldest_once = Some(record.sent_at);
                }
                if self.newest_once.is_none_or(|t| !record.sent_at.before(t)) {
                    self.newest_once = Some(record.sent_at);
                }
            }
            if self.lowest_once.is_none_or(|s| start.before(s)) {
                self.lowest_once = Some(start);
            }
            self.original |= record.is(LOST);
        }
        if self.newest.is_none_or(|newest| sent_after(sent.surely(), newest.surely())) {
            self.newest = Some(sent);
        }
    }
}

/// RFC 8985 §6.2, RACK_sent_after: later sent, or at the same time and later in sequence.
pub(crate) fn sent_after(a: (Tick, SeqNum), b: (Tick, SeqNum)) -> bool {
    b.0.before(a.0) || (a.0 == b.0 && b.1.before(a.1))
}

impl Scoreboard {
    pub(crate) const fn new(una: SeqNum) -> Self {
        Self {
            start: una,
            end: una,
            head: 0,
            len: 0,
            grain: 0,
            sacked: 0,
            lost: 0,
            resent: 0,
            many: None,
            few: [Record::EMPTY; FEW],
        }
    }

    /// Records that there is room for.
    #[inline]
    const fn room(&self) -> usize {
        if self.many.is_some() { RECORDS_MAX } else { FEW }
    }

    /// Its own records may soon be too few: one more is to be appended, or, with `marks`, some are to be cut into pieces.
    #[inline]
    pub(crate) const fn wants_many(&self, marks: bool) -> bool {
        self.many.is_none() && (self.len as usize + 1 >= FEW || !self.is_clean() || (marks && self.len > 0))
    }

    /// Borrows `many`.
    pub(crate) fn lend(&mut self, many: &'static mut SentRecords) {
        for (i, to) in many.0.iter_mut().take(usize::from(self.len)).enumerate() {
            *to = *self.get(i);
        }
        self.head = 0;
        self.many = Some(many);
    }

    /// Gives back what it borrowed and needs no more: nothing is in flight.
    #[inline]
    pub(crate) const fn give_back(&mut self) -> Option<&'static mut SentRecords> {
        if self.len == 0 { self.many.take() } else { None }
    }

    /// Gives back what it borrowed; it is never used again.
    pub(crate) const fn end_loan(&mut self) -> Option<&'static mut SentRecords> {
        self.len = 0;
        self.many.take()
    }

    /// Bytes selectively acknowledged.
    #[inline]
    pub(crate) const fn sacked(&self) -> u32 {
        self.sacked
    }

    /// Bytes held for lost, sent again or not.
    #[inline]
    pub(crate) const fn lost(&self) -> u32 {
        self.lost
    }

    /// Bytes sent again and not acknowledged since.
    #[inline]
    pub(crate) const fn resent(&self) -> u32 {
        self.resent
    }

    /// Bytes that wait to be sent again.
    #[inline]
    pub(crate) const fn to_resend(&self) -> u32 {
        self.lost.saturating_sub(self.resent)
    }

    /// True if nothing was ever marked: all bytes are simply in flight.
    #[inline]
    pub(crate) const fn is_clean(&self) -> bool {
        self.sacked | self.lost | self.resent == 0
    }

    /// SND.NXT as the board knows it.
    #[inline]
    pub(crate) fn end(&self) -> SeqNum {
        self.end
    }

    /// RFC 6675 §4 "pipe": bytes that are believed to be in the network.
    #[inline]
    pub(crate) fn pipe(&self) -> u32 {
        let flight = self.start.distance_to(self.end());
        (flight + self.resent).saturating_sub(self.sacked + self.lost)
    }

    /// Sets the resolution of times to a sixteenth of the shortest round trip.
    pub(crate) fn set_grain(&mut self, min_rtt_ns: u64) {
        self.grain = (min_rtt_ns >> 14).min(1 << 16) as u32;
    }

    #[inline]
    fn get(&self, i: usize) -> &Record {
        let at = usize::from(self.head) + i;
        match &self.many {
            None => &self.few[at & FEW_MASK],
            Some(many) => &many.0[at & MASK],
        }
    }

    #[inline]
    fn get_mut(&mut self, i: usize) -> &mut Record {
        let at = usize::from(self.head) + i;
        match &mut self.many {
            None => &mut self.few[at & FEW_MASK],
            Some(many) => &mut many.0[at & MASK],
        }
    }

    fn start_of(&self, i: usize) -> SeqNum {
        if i == 0 { self.start } else { self.get(i - 1).end }
    }

    /// New bytes, from the end of the board to `end`, were sent at `now`.
    #[inline]
    pub(crate) fn append(&mut self, end: SeqNum, now: Tick) {
        debug_assert!(end.after(self.end), "nothing was sent");
        let before = core::mem::replace(&mut self.end, end);
        let len = usize::from(self.len);
        if len > 0 {
            let grain = self.grain;
            let last = self.get_mut(len - 1);
            let since = now.since(last.sent_at);
            if last.flags == 0 && since <= grain {
                last.end = end;
                if since != 0 {
                    last.cover(now);
                }
                return;
            }
        }
        if len == self.room() {
            self.append_to_full(before, end, now);
            return;
        }
        *self.get_mut(len) = Record { end, sent_at: now, late: Span::NONE, flags: 0 };
        self.len += 1;
    }

    /// What is appended next does not join the last record, which gives no RTT sample any more.
    pub(crate) fn seal(&mut self) {
        if let Some(last) = usize::from(self.len).checked_sub(1) {
            self.get_mut(last).flags |= AMBIGUOUS;
        }
    }

    #[cold]
    fn append_to_full(&mut self, before: SeqNum, end: SeqNum, now: Tick) {
        self.thin_out();
        let len = usize::from(self.len);
        if len < self.room() {
            *self.get_mut(len) = Record { end, sent_at: now, late: Span::NONE, flags: 0 };
            self.len += 1;
            return;
        }
        // No two neighbours are alike: let the last one grow. If that was sacked or lost, the new bytes count for lost,
        // to be sent again: bytes may never be taken for delivered by mistake.
        let grown = before.distance_to(end);
        let old = *self.get(len - 1);
        self.account(&old, false, self.start_of(len - 1).distance_to(old.end));
        let flags = if old.flags == 0 { 0 } else { LOST | AMBIGUOUS };
        let mut merged = Record { end, flags, ..old };
        merged.cover(now);
        *self.get_mut(len - 1) = merged;
        self.account(&merged, true, self.start_of(len - 1).distance_to(end));
        debug_assert!(grown > 0);
    }

    /// Halves the number of records that only tell times, of what is in flight or was sent again, by merging neighbours.
    fn thin_out(&mut self) {
        let times = |a: &Record, b: &Record| a.flags == b.flags && (a.flags == 0 || a.is(RESENT));
        self.merge(|a, b, odd| (times(a, b) && odd) || alike(a, b));
    }

    /// Merges neighbours of which the same is known.
    fn coalesce(&mut self) {
        self.merge(|a, b, _| alike(a, b));
    }

    /// Merges each record into the one before it where `may` says so; the third argument is true if that one has not
    /// taken in another yet.
    fn merge(&mut self, may: impl Fn(&Record, &Record, bool) -> bool) {
        let len = usize::from(self.len);
        let mut kept = 0;
        let mut fresh = true;
        for i in 1..len {
            let next = *self.get(i);
            let last = *self.get(kept);
            if may(&last, &next, fresh) {
                let grown = self.get_mut(kept);
                grown.end = next.end;
                grown.cover(next.sent_by());
                fresh = false;
            } else {
                kept += 1;
                *self.get_mut(kept) = next;
                fresh = true;
            }
        }
        if len > 0 {
            self.len = (kept + 1) as u16;
        }
    }

    /// Cumulative acknowledgement up to `ack`, which lies after the start and not after the end.
    #[inline]
    pub(crate) fn ack_to(&mut self, ack: SeqNum, delivered: &mut Delivered) {
        debug_assert!(ack.after(self.start) && ack.before_or_eq(self.end()), "ACK outside of the board");
        if self.is_clean() && self.get(0).flags == 0 && delivered.bytes == 0 {
            let last = self.ack_clean(ack, delivered);
            delivered.newest = Some(Sent::of(&last, last.end.earlier(ack)));
            return;
        }
        self.ack_marked(ack, delivered);
    }

    /// [`Scoreboard::ack_to`] for who does not ask what was sent last.
    #[inline]
    pub(crate) fn ack_plain(&mut self, ack: SeqNum, delivered: &mut Delivered) {
        debug_assert!(ack.after(self.start) && ack.before_or_eq(self.end()), "ACK outside of the board");
        if self.is_clean() && self.get(0).flags == 0 {
            self.ack_clean(ack, delivered);
        } else {
            self.ack_marked(ack, delivered);
        }
    }

    fn ack_marked(&mut self, ack: SeqNum, delivered: &mut Delivered) {
        let mut repeated = false;
        while self.len > 0 {
            let record = *self.get(0);
            let end = record.end.earlier(ack);
            let bytes = self.start.distance_to(end);
            if !record.is(SACKED) {
                delivered.note(&Record { end, ..record }, self.start, bytes);
                repeated |= record.is(AMBIGUOUS);
            }
            if record.flags != 0 {
                self.account(&record, false, bytes);
            }
            self.start = end;
            if record.end.after(ack) {
                break;
            }
            self.head = (self.head + 1) & MASK as u16;
            self.len -= 1;
            if end == ack {
                break;
            }
        }
        self.start = ack;
        self.rewind();
        if repeated {
            // What lies behind a hole may have waited there for long: once the hole is filled, no time can be told.
            delivered.oldest_once = None;
            delivered.newest_once = None;
        }
    }

    /// [`Scoreboard::ack_to`] while nothing is marked: records lie in the order in which they were sent, so the first is the
    /// oldest and the last that is touched the newest.
    #[inline]
    fn ack_clean(&mut self, ack: SeqNum, delivered: &mut Delivered) -> Record {
        let first = *self.get(0);
        let mut last = first;
        let mut ambiguous = first.flags != 0;
        while !last.end.after(ack) {
            self.head = (self.head + 1) & MASK as u16;
            self.len -= 1;
            if self.len == 0 || !last.end.before(ack) {
                break;
            }
            last = *self.get(0);
            ambiguous |= last.flags != 0;
        }
        delivered.bytes = self.start.distance_to(ack);
        delivered.oldest_once = (!ambiguous).then_some(first.sent_at);
        delivered.newest_once = (!ambiguous).then_some(last.sent_at);
        delivered.lowest_once = Some(self.start);
        self.start = ack;
        self.rewind();
        last
    }

    /// An empty board begins at its first record again, so that a connection with little in flight touches one place only.
    #[inline]
    fn rewind(&mut self) {
        if self.len == 0 {
            self.head = 0;
        }
    }

    /// Adds or takes away `bytes` of a record in the sums.
    fn account(&mut self, record: &Record, add: bool, bytes: u32) {
        let apply = |sum: &mut u32, flag: u8| {
            if record.is(flag) {
                *sum = if add { *sum + bytes } else { sum.saturating_sub(bytes) };
            }
        };
        apply(&mut self.sacked, SACKED);
        apply(&mut self.lost, LOST);
        apply(&mut self.resent, RESENT);
    }

    /// Puts a boundary at `at`, which lies inside record `i`; false if there is no room for it.
    fn split(&mut self, i: usize, at: SeqNum) -> bool {
        let mut len = usize::from(self.len);
        if len == self.room() {
            // Neighbours before `i` might merge and shift it: only try when nothing else helps.
            return false;
        }
        while len > i {
            let moved = *self.get(len - 1);
            *self.get_mut(len) = moved;
            len -= 1;
        }
        self.get_mut(i).end = at;
        self.len += 1;
        true
    }

    /// Selective acknowledgement of `start..end`; what lies outside of the board is cut off.
    pub(crate) fn sack(&mut self, start: SeqNum, end: SeqNum, delivered: &mut Delivered) {
        let (start, end) = (start.later(self.start), end.earlier(self.end()));
        if !start.before(end) {
            return;
        }
        let room = self.room() - self.room() / RESERVE_DIVISOR;
        if usize::from(self.len) + 2 > room {
            self.thin_out();
        }
        let mut i = 0;
        while i < usize::from(self.len) {
            let from = self.start_of(i);
            if from.after_or_eq(end) {
                break;
            }
            let record = *self.get(i);
            if record.end.before_or_eq(start) || record.is(SACKED) {
                i += 1;
                continue;
            }
            if from.before(start) {
                // The part before the block stays as it is; look at the rest in the next round.
                if usize::from(self.len) >= room || !self.split(i, start) {
                    break;
                }
                i += 1;
                continue;
            }
            if record.end.after(end) && (usize::from(self.len) >= room || !self.split(i, end)) {
                break;
            }
            let record = *self.get(i);
            let bytes = from.distance_to(record.end);
            delivered.note(&record, from, bytes);
            self.account(&record, false, bytes);
            let sacked = Record { flags: SACKED | record.flags & AMBIGUOUS, ..record };
            *self.get_mut(i) = sacked;
            self.account(&sacked, true, bytes);
            i += 1;
        }
        self.coalesce();
    }

    /// RFC 8985 §6.2 step 5, RACK_detect_loss: holds for lost what was sent long enough before `newest` (see [`Sent::surely`]) was. Returns
    /// the ticks until the next record would be lost, if one is on its way to that.
    pub(crate) fn detect_lost(
        &mut self,
        now: Tick,
        newest: (Tick, SeqNum),
        wait_ticks: u32,
    ) -> (u32, Option<u32>) {
        let mut marked = 0;
        let mut timeout: Option<u32> = None;
        for i in 0..usize::from(self.len) {
            let record = *self.get(i);
            let waits = record.is(LOST) && !record.is(RESENT);
            // Of one run the bytes were sent in their order; of two, all of one before the other.
            let same_run = { record.sent_at } == newest.0 && { record.end }.before(newest.1);
            if record.is(SACKED) || waits || !(same_run || record.sent_by().before(newest.0)) {
                continue;
            }
            let age = now.since(record.sent_by());
            if age >= wait_ticks {
                marked += self.mark_lost(i);
            } else {
                let left = wait_ticks - age;
                timeout = Some(timeout.map_or(left, |t| t.max(left)));
            }
        }
        if marked > 0 {
            self.coalesce();
        }
        (marked, timeout)
    }

    /// Holds record `i` for lost, also if it was sent again already; returns its bytes.
    fn mark_lost(&mut self, i: usize) -> u32 {
        let record = *self.get(i);
        let bytes = self.start_of(i).distance_to(record.end);
        self.account(&record, false, bytes);
        let lost = Record { flags: LOST | record.flags & AMBIGUOUS, ..record };
        *self.get_mut(i) = lost;
        self.account(&lost, true, bytes);
        bytes
    }

    /// A retransmission timeout: everything that is not sacked is lost (RFC 6675 §5.1).
    pub(crate) fn lose_all(&mut self) {
        for i in 0..usize::from(self.len) {
            if !self.get(i).is(SACKED) {
                self.mark_lost(i);
            }
        }
        self.coalesce();
    }

    /// RFC 2018 §8: after a timeout what was sacked may have been thrown away; forget it.
    pub(crate) fn forget_sacks(&mut self) {
        for i in 0..usize::from(self.len) {
            let record = *self.get(i);
            if record.is(SACKED) {
                let bytes = self.start_of(i).distance_to(record.end);
                self.account(&record, false, bytes);
                *self.get_mut(i) = Record { flags: record.flags & AMBIGUOUS, ..record };
            }
        }
    }

    /// True if the first byte in flight is sacked: the receiver reneged, as else SND.UNA would have passed it.
    pub(crate) fn head_is_sacked(&self) -> bool {
        self.len > 0 && self.get(0).is(SACKED)
    }

    /// What was held for lost was not (undo): it counts as in flight again.
    pub(crate) fn unlose_all(&mut self) {
        for i in 0..usize::from(self.len) {
            let record = *self.get(i);
            if record.is(LOST | RESENT) {
                let bytes = self.start_of(i).distance_to(record.end);
                self.account(&record, false, bytes);
                *self.get_mut(i) = Record { flags: record.flags & AMBIGUOUS, ..record };
            }
        }
    }

    /// Holds the first `bytes` for lost unless they were sent again already: NewReno has no better information
    /// (RFC 6582 §3.2). Returns how many were marked.
    pub(crate) fn lose_head(&mut self, bytes: u32) -> u32 {
        if self.len == 0 || self.get(0).is(LOST) {
            return 0;
        }
        let end = self.start + bytes;
        if self.get(0).end.after(end) && !self.split(0, end) {
            self.thin_out();
            if self.get(0).end.after(end) && !self.split(0, end) {
                return 0;
            }
        }
        self.mark_lost(0)
    }

    /// The first run of bytes that waits to be sent again.
    pub(crate) fn next_to_resend(&self) -> Option<(SeqNum, u32)> {
        if self.to_resend() == 0 {
            return None;
        }
        for i in 0..usize::from(self.len) {
            let record = self.get(i);
            if record.is(LOST) && !record.is(RESENT) {
                let start = self.start_of(i);
                return Some((start, start.distance_to(record.end)));
            }
        }
        None
    }

    /// The last bytes in flight, at most `max`: what a tail loss probe repeats (RFC 8985 §7.3).
    pub(crate) fn tail(&self, max: u32) -> Option<(SeqNum, u32)> {
        let last = usize::from(self.len).checked_sub(1)?;
        let start = self.start_of(last);
        let end = self.get(last).end;
        let len = start.distance_to(end).min(max);
        Some((end - len, len))
    }

    /// When the oldest byte in flight was last sent.
    pub(crate) fn oldest_sent_at(&self) -> Option<Tick> {
        (self.len > 0).then(|| self.get(0).sent_at)
    }

    /// `len` bytes from `start` on, all within one record, were sent again.
    pub(crate) fn resend(&mut self, start: SeqNum, len: u32, now: Tick) {
        if usize::from(self.len) + 2 > self.room() {
            self.thin_out();
        }
        let end = start + len;
        let mut i = 0;
        while i < usize::from(self.len) {
            let from = self.start_of(i);
            let record = *self.get(i);
            if record.end.before_or_eq(start) {
                i += 1;
                continue;
            }
            if from.before(start) && self.split(i, start) {
                i += 1;
                continue;
            }
            let front = self.start_of(i) == start;
            if record.end.after(end) && !self.split(i, end) && front && self.grow_resent(i, end, now) {
                return;
            }
            // Without room to split, the whole record counts as sent again; if it is lost, the timer finds out.
            let from = self.start_of(i);
            let record = *self.get(i);
            let bytes = from.distance_to(record.end);
            self.account(&record, false, bytes);
            let resent_flag = if record.is(LOST) { LOST | RESENT } else { record.flags & SACKED };
            let again = Record { sent_at: now, late: Span::NONE, flags: resent_flag | AMBIGUOUS, ..record };
            *self.get_mut(i) = again;
            self.account(&again, true, bytes);
            break;
        }
        self.coalesce_resent(i);
    }

    /// The front of the lost record `i`, up to `end`, joins the record before it, which was sent again as well; false if it was not.
    fn grow_resent(&mut self, i: usize, end: SeqNum, now: Tick) -> bool {
        let Some(before) = i.checked_sub(1) else { return false };
        let (grown, waits) = (*self.get(before), *self.get(i));
        if !grown.is(RESENT) || !waits.is(LOST) || waits.is(RESENT) {
            return false;
        }
        self.resent += grown.end.distance_to(end);
        let grown = self.get_mut(before);
        grown.end = end;
        grown.flags |= AMBIGUOUS;
        grown.cover(now);
        true
    }

    /// A run that is sent again piece by piece at the same time stays one record.
    fn coalesce_resent(&mut self, i: usize) {
        if i == 0 || i >= usize::from(self.len) {
            return;
        }
        let (a, b) = (*self.get(i - 1), *self.get(i));
        if a.flags != b.flags || b.sent_at.since(a.sent_at) > self.grain {
            return;
        }
        self.get_mut(i - 1).end = b.end;
        self.get_mut(i - 1).cover(b.sent_by());
        for j in i + 1..usize::from(self.len) {
            let moved = *self.get(j);
            *self.get_mut(j - 1) = moved;
        }
        self.len -= 1;
    }

    /// Where the highest sacked byte ends.
    pub(crate) fn highest_sacked(&self) -> Option<SeqNum> {
        if self.sacked == 0 {
            return None;
        }
        (0..usize::from(self.len)).rev().map(|i| self.get(i)).find(|r| r.is(SACKED)).map(|r| r.end)
    }

    /// Checks what must always hold; see [`crate::Tcb::check`].
    #[inline]
    pub(crate) fn check(&self) {
        let (mut sacked, mut lost, mut resent) = (0, 0, 0);
        let last = usize::from(self.len).checked_sub(1).map_or(self.start, |last| self.get(last).end);
        assert_eq!(last, self.end, "the last record ends elsewhere");
        for i in 0..usize::from(self.len) {
            let record = self.get(i);
            let bytes = self.start_of(i).distance_to(record.end);
            assert!(self.start_of(i).before(record.end), "an empty record");
            sacked += if record.is(SACKED) { bytes } else { 0 };
            lost += if record.is(LOST) { bytes } else { 0 };
            resent += if record.is(RESENT) { bytes } else { 0 };
            assert!(!(record.is(SACKED) && record.is(LOST)), "both sacked and lost");
            assert!(!record.is(RESENT) || record.is(LOST), "resent but not lost");
        }
        assert_eq!((sacked, lost, resent), (self.sacked, self.lost, self.resent), "the sums are off");
    }
}

/// True if two neighbouring records may become one without loss of what matters.
fn alike(a: &Record, b: &Record) -> bool {
    let (a_sent, b_sent) = (a.sent_at, b.sent_at);
    let same = a.flags & !AMBIGUOUS == b.flags & !AMBIGUOUS;
    same && (a.is(SACKED) || (a.is(LOST) && !a.is(RESENT) && a.flags == b.flags))
        || (a.flags == b.flags && a_sent == b_sent)
}

#[cfg(test)]
mod tests;
