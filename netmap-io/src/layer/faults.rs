//! A seeded bad link around any port: loss, bursts, duplication, reordering, corruption, delay, rate.
//!
//! ```text
//!   user ── tx slots ──► dice ──► queue by due time ──► inner port
//!   user ◄─ rx slots ◄── queue by due time ◄── dice ◄── inner port
//! ```
//!
//! Frames are copied here, which a test can afford. The dice are thrown for each frame in the order in which
//! it passes, from a generator that depends on seed, queue and direction alone: the n-th frame meets the same
//! fate in every run, and only its due time depends on the clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::spec::Chance;
pub use super::spec::{FaultError, FaultSpec, Side};
use crate::memory::SlotMemory;
use crate::ring::{Slot, SlotRing};
use crate::{Caps, Counters, PollFd, PollFds, Port, PortError, RxRing, TxRing};

/// A frame chosen for reordering lets one to three later frames pass, or waits this long for them.
const REORDER_WAIT: Duration = Duration::from_millis(5);
/// When to try again after the inner port, or the user's ring, had no room.
const NO_ROOM_RETRY: Duration = Duration::from_micros(100);
/// Link headers are left alone by corruption: a frame for another station tells nobody anything.
const CORRUPT_FROM: usize = 14;

/// Wraps `port` in the faults that `text` names, as in `loss=1%,reorder=1%,seed=7`.
///
/// # Errors
/// When the text makes no sense, or there is no memory for the copies.
pub fn wrap(port: Box<dyn Port>, text: &str) -> Result<Box<dyn Port>, PortError> {
    wrap_spec(port, &text.parse()?)
}

/// [`wrap`] with faults that were parsed before.
///
/// # Errors
/// When there is no memory for the copies.
pub fn wrap_spec(port: Box<dyn Port>, spec: &FaultSpec) -> Result<Box<dyn Port>, PortError> {
    let start = Instant::now();
    let clock = Box::new(move || start.elapsed());
    Ok(Box::new(FaultPort::new(port, spec, clock)?))
}

/// The time since some start. Tests give their own.
type Clock = Box<dyn FnMut() -> Duration + Send>;

/// A generator of random numbers (`splitmix64`): small, seedable, good enough for dice.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64, queue: u32, out: bool) -> Self {
        let mut dice = Self(seed);
        let salt = dice.next() ^ (u64::from(queue) << 1 | u64::from(out));
        Self(salt)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number in `0..below`.
    fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.next() % below }
    }

    fn hits(&mut self, chance: Chance) -> bool {
        // Drawn also for impossible events, so that switching one fault off leaves the others alone.
        chance.includes(self.next())
    }
}

/// A frame on its way through the bad link. The earliest due, then the earliest come, goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    order: u64,
    /// Due as soon as that many frames have come, too.
    after: Option<u64>,
    bytes: Vec<u8>,
}

/// One direction of the link.
#[derive(Debug)]
struct Link {
    spec: FaultSpec,
    active: bool,
    dice: Dice,
    in_burst: bool,
    /// Frames that have come.
    come: u64,
    /// Frames that were put into the queue.
    queued: u64,
    /// When the last bit of the last frame leaves, at the given rate.
    line_free: Duration,
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Frames held back for reordering.
    overtaken: Vec<Waiting>,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

impl Link {
    fn new(spec: &FaultSpec, queue: u32, out: bool) -> Self {
        let active = match spec.side {
            Side::Both => true,
            Side::In => !out,
            Side::Out => out,
        };
        Self {
            spec: spec.clone(),
            active,
            dice: Dice::new(spec.seed, queue, out),
            in_burst: false,
            come: 0,
            queued: 0,
            line_free: Duration::ZERO,
            waiting: BinaryHeap::new(),
            overtaken: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// A frame comes: it is lost, or queued once or twice.
    fn admit(&mut self, now: Duration, bytes: &[u8], counters: &mut Counters) {
        self.come += 1;
        if !self.active {
            return self.queue(now, None, bytes);
        }
        // Every die is thrown for every frame, in one order, whatever the others show.
        let spec = self.spec.clone();
        let turn = if self.in_burst { spec.burst_leave } else { spec.burst_enter };
        let turns = self.dice.hits(turn);
        let lost = self.dice.hits(spec.loss);
        let twice = self.dice.hits(spec.duplicate);
        let late = self.dice.hits(spec.reorder);
        let spoilt = self.dice.hits(spec.corrupt);
        let (place, gap, jitter) = (self.dice.next(), self.dice.below(3), self.dice.next());

        self.in_burst ^= turns;
        if lost || self.in_burst {
            counters.fault_lost += 1;
            return;
        }
        let copies = if twice { 2 } else { 1 };
        if self.waiting.len() + self.overtaken.len() + copies > spec.queue_frames_max {
            counters.fault_queue_full += 1;
            return;
        }
        let due = self.due(now, bytes.len(), jitter);
        let mut changed = None;
        if spoilt && bytes.len() > CORRUPT_FROM {
            counters.fault_corrupted += 1;
            changed = Some(spoil(bytes, place));
        }
        let bytes = changed.as_deref().unwrap_or(bytes);
        counters.fault_duplicated += u64::from(twice);
        counters.fault_reordered += u64::from(late);
        for _ in 0..copies {
            if late {
                self.queue(due + REORDER_WAIT, Some(self.come + 1 + gap), bytes);
            } else {
                self.queue(due, None, bytes);
            }
        }
    }

    /// When a frame that comes now comes out: behind the frames on the line, and after the delay.
    fn due(&mut self, now: Duration, bytes: usize, jitter: u64) -> Duration {
        let mut due = now;
        if let Some(rate) = self.spec.rate_bits_per_s {
            let nanos = (bytes as u64 * 8).saturating_mul(1_000_000_000) / rate.max(1);
            self.line_free = self.line_free.max(now) + Duration::from_nanos(nanos);
            due = self.line_free;
        }
        let spread = u64::try_from(self.spec.jitter.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
        due + self.spec.delay + Duration::from_nanos(jitter % spread)
    }

    fn queue(&mut self, due: Duration, after: Option<u64>, bytes: &[u8]) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        self.queued += 1;
        let frame = Waiting { due, order: self.queued, after, bytes: copy };
        if after.is_some() {
            self.overtaken.push(frame);
        } else {
            self.waiting.push(Reverse(frame));
        }
    }

    /// The next frame that is due, given to `take`, which may refuse it (no room): then it stays.
    fn pop_due(&mut self, now: Duration, mut take: impl FnMut(&[u8]) -> bool) -> bool {
        let ready =
            |frame: &Waiting, come| frame.due <= now || frame.after.is_some_and(|after| come >= after);
        let plain =
            self.waiting.peek().filter(|Reverse(frame)| frame.due <= now).map(|Reverse(frame)| frame.order);
        let come = self.come;
        // A frame held back goes out behind those that overtake it, which are in the queue by then.
        if plain.is_none() {
            let Some(index) = self.overtaken.iter().position(|frame| ready(frame, come)) else {
                return false;
            };
            if !take(&self.overtaken[index].bytes) {
                return false;
            }
            let frame = self.overtaken.remove(index);
            self.spare.push(frame.bytes);
            return true;
        }
        let Some(Reverse(frame)) = self.waiting.pop() else { return false };
        if take(&frame.bytes) {
            self.spare.push(frame.bytes);
            true
        } else {
            self.waiting.push(Reverse(frame));
            false
        }
    }

    /// When the next frame is due.
    fn next_due(&self) -> Option<Duration> {
        let first = self.waiting.peek().map(|Reverse(frame)| frame.due);
        self.overtaken.iter().map(|frame| frame.due).chain(first).min()
    }
}

/// A copy with one bit flipped.
fn spoil(bytes: &[u8], place: u64) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    let room = (bytes.len() - CORRUPT_FROM) as u64;
    let index = CORRUPT_FROM + usize::try_from((place >> 3) % room).unwrap_or(0);
    copy[index] ^= 1 << (place & 7);
    copy
}

/// The wrapped port.
struct FaultPort {
    caps: Caps,
    inner: Box<dyn Port>,
    clock: Clock,
    rx: SlotRing,
    tx: SlotRing,
    /// First tx slot that was not read yet.
    tx_read: u32,
    incoming: Link,
    outgoing: Link,
    /// The time of the last sync, for [`Port::resync_in`].
    now: Duration,
    counters: Counters,
    _memory: SlotMemory,
}

impl FaultPort {
    fn new(inner: Box<dyn Port>, spec: &FaultSpec, clock: Clock) -> Result<Self, PortError> {
        let mut caps = inner.caps().clone();
        let frame_size = caps.frame_bytes_max.next_power_of_two().max(2048);
        let memory = SlotMemory::new(caps.rx_slots, caps.tx_slots, frame_size)
            .map_err(|error| PortError::io("allocating memory for the fault layer", error))?;
        let (rx, mut tx) = memory.rings();
        tx.tail = caps.tx_slots - 1;
        let (incoming, outgoing) = (Link::new(spec, caps.queue, false), Link::new(spec, caps.queue, true));
        caps.frame_bytes_max = frame_size;
        caps.zero_copy = false;
        caps.mode = format!("{}, faults {spec}", caps.mode);
        let counters = Counters::default();
        let now = Duration::ZERO;
        Ok(Self {
            caps,
            inner,
            clock,
            rx,
            tx,
            tx_read: 0,
            incoming,
            outgoing,
            now,
            counters,
            _memory: memory,
        })
    }

    /// Frames whose time has come go to the inner port.
    fn flush_out(&mut self) {
        let mut tx = self.inner.tx();
        while self.outgoing.pop_due(self.now, |bytes| tx.push(bytes)) {}
    }

    /// Frames whose time has come go to the user.
    fn flush_in(&mut self) {
        let Self { incoming, rx, counters, now, .. } = self;
        let take = |bytes: &[u8]| {
            if rx.next(rx.tail) == rx.head {
                return false;
            }
            let slot = rx.slot(rx.tail);
            let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            // The buffer is as long as the inner port's; a longer frame can't have come from there.
            let slot = Slot { len, flags: 0, ptr: 0, ..slot };
            rx.set_slot(rx.tail, slot);
            let fits = rx.write_frame(slot, bytes);
            if fits {
                rx.tail = rx.next(rx.tail);
                counters.rx_frames += 1;
                counters.rx_bytes += bytes.len() as u64;
            }
            true
        };
        let mut take = take;
        while incoming.pop_due(*now, &mut take) {}
    }
}

impl Port for FaultPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.now = (self.clock)();
        self.inner.rx_sync()?;
        for frame in self.inner.rx() {
            self.incoming.admit(self.now, &frame, &mut self.counters);
        }
        self.flush_in();
        Ok(self.rx.available())
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.now = (self.clock)();
        while self.tx_read != self.tx.head {
            let slot = self.tx.slot(self.tx_read);
            if let Some(bytes) = self.tx.frame(slot) {
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += bytes.len() as u64;
                self.outgoing.admit(self.now, bytes, &mut self.counters);
                // One by one, so that a burst longer than the inner ring is not taken for a full queue.
                if self.outgoing.next_due().is_some_and(|due| due <= self.now) && self.inner.tx().space() == 0
                {
                    self.inner.tx_sync()?;
                }
                self.flush_out();
            }
            self.tx_read = self.tx.next(self.tx_read);
            self.tx.tail = self.tx.next(self.tx.tail);
        }
        self.flush_out();
        self.inner.tx_sync()?;
        Ok(self.tx.available())
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        (RxRing::new(&mut self.rx), TxRing::new(&mut self.tx))
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        Ok(self.inner.arm()? && self.rx.available() == 0)
    }

    fn poll_fds(&self) -> PollFds {
        self.inner.poll_fds()
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.inner.tx_poll_fd()
    }

    fn resync_in(&self) -> Option<Duration> {
        let due = [self.incoming.next_due(), self.outgoing.next_due()].into_iter().flatten().min();
        // What is due and still here had no room: the one who makes some will not ring for us.
        let wait = |due: Duration| due.checked_sub(self.now).filter(|wait| !wait.is_zero());
        let ours = due.map(|due| wait(due).unwrap_or(NO_ROOM_RETRY));
        [ours, self.inner.resync_in()].into_iter().flatten().min()
    }

    fn set_mac(&mut self, mac: [u8; 6]) {
        self.inner.set_mac(mac);
    }

    fn set_up(&mut self, up: bool) -> bool {
        self.inner.set_up(up)
    }

    fn counters(&self) -> Counters {
        let inner = self.inner.counters();
        let Counters { rx_frames, rx_bytes, tx_frames, tx_bytes, .. } = self.counters;
        let Counters { fault_lost, fault_queue_full, fault_duplicated, .. } = self.counters;
        let Counters { fault_reordered, fault_corrupted, .. } = self.counters;
        // What the user saw and what the dice did are ours; the device's losses are the device's.
        Counters {
            rx_frames,
            rx_bytes,
            tx_frames,
            tx_bytes,
            rx_bad_slot: inner.rx_bad_slot + self.rx.bad_slots,
            tx_bad_slot: inner.tx_bad_slot + self.tx.bad_slots,
            fault_lost,
            fault_queue_full,
            fault_duplicated,
            fault_reordered,
            fault_corrupted,
            ..inner
        }
    }
}

#[cfg(test)]
#[path = "faults_tests.rs"]
mod tests;
