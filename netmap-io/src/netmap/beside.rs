//! A NIC's ring beside the kernel: what is ours stays, everything else goes on by changing places of buffers.
//!
//! ```text
//!                 ┌─ ours ────────────────────────► engine
//!  NIC rx ring ───┤
//!                 └─ the rest ── swap ──► host tx ring ──► kernel    (one for all shards, behind a lock)
//!  NIC tx ring ◄──┬─ engine's
//!                 └────────────── swap ── host rx ring ◄── kernel    (its owner's alone)
//! ```
//!
//! - No byte is copied: the two slots exchange their buffers, and both say so (`NS_BUF_CHANGED`).
//! - A frame that is gone leaves a slot of no bytes behind, which whoever reads the ring passes over.
//! - The kernel is never waited for. When its ring is full, frames to it move into extra buffers, in order; when those are
//!   used up, they are dropped and counted, as a NIC drops what a slow host leaves in its ring.
//! - A frame of several slots is copied, in fragments of its packet: the module would make a frame of each slot ([`Cut`]). What
//!   can't be cut is dropped and counted.
//! - A fragment that came before its packet's first one, whose it may be, is copied to the kernel and stays.
//! - Frames of the kernel wait in its ring while the NIC has no room; when that is full, the module drops what the kernel sends.
//!   They get at most half of the room there is, and at least one slot, so neither side starves the other.
//! - Of a host ring, the two directions are two handles: the one that sends is used by every shard under a lock, the one
//!   that receives is one shard's own, who also sleeps on it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cut::Cut;
use super::extra::ExtraBuffers;
use super::sides::Sides;
use super::steering::{SoftSteering, Table, Whose};
use crate::ring::{Slot, SlotFlags, SlotRing};
use crate::{Counters, PortError};

/// Extra buffers for frames that find the kernel's ring full.
pub(crate) const EXTRA_BUFFERS: u32 = 256;
/// Bytes of a frame of several slots: the longest packet, and tags.
const LONG_MAX: usize = 65_536 + 32;
/// While the kernel is quiet, its ring is asked for frames in every so manieth round; waiting asks, too.
const QUIET_ROUNDS: u32 = 16;

/// The way to the kernel.
#[derive(Debug)]
pub(crate) struct ToHost {
    sides: Sides,
    extra: ExtraBuffers,
    /// Frames in extra buffers, oldest first.
    waiting: VecDeque<Slot>,
    /// The last number that was given to a packet without one.
    ident: u32,
}

impl ToHost {
    pub(crate) fn new(sides: Sides, extra_buffers: u32) -> Self {
        let extra = ExtraBuffers::new(&sides.region, sides.tx.slots.buffers(), extra_buffers);
        Self { sides, extra, waiting: VecDeque::new(), ident: 0 }
    }

    /// Frames that waited go first.
    fn serve_waiting(&mut self) {
        while let Some(frame) = self.waiting.front().copied() {
            let Some(room) = self.sides.tx.slots.front_buffer() else { return };
            self.waiting.pop_front();
            self.sides.tx.slots.put(frame);
            self.extra.give(room);
        }
    }

    /// Takes over the frame in slot `index` of `rx`.
    fn pass(&mut self, rx: &mut SlotRing, index: u32, counters: &mut Counters) -> Result<(), PortError> {
        self.serve_waiting();
        let mut room = if self.waiting.is_empty() { self.sides.tx.slots.front_buffer() } else { None };
        if room.is_none() && self.sides.tx_sync()? {
            self.serve_waiting();
            room = if self.waiting.is_empty() { self.sides.tx.slots.front_buffer() } else { None };
        }
        if let Some(room) = room {
            let frame = rx.take(index, room);
            self.sides.tx.slots.put(frame);
            counters.to_host += 1;
        } else if let Some(room) = self.extra.take() {
            let frame = rx.take(index, room);
            self.waiting.push_back(frame);
            counters.to_host += 1;
            counters.to_host_waited += 1;
        } else {
            let slot = rx.slot(index);
            rx.set_slot(index, Slot { len: 0, ..slot });
            counters.to_host_dropped += 1;
        }
        Ok(())
    }

    /// Takes a copy of a frame, as it is.
    fn pass_copy(&mut self, frame: &[u8], counters: &mut Counters) -> Result<(), PortError> {
        self.serve_waiting();
        let direct = |host: &Self| host.waiting.is_empty() && host.sides.tx.slots.available() > 0;
        if !direct(self) && self.sides.tx_sync()? {
            self.serve_waiting();
        }
        let direct = direct(self);
        let ring = &mut self.sides.tx.slots;
        let buf = if direct { ring.front_buffer() } else { self.extra.take() };
        let room = if let Some(buf) = buf { ring.room(buf) } else { None };
        let copy = match (buf, room.and_then(|room| room.get_mut(..frame.len())), u16::try_from(frame.len()))
        {
            (Some(buf), Some(room), Ok(len)) => {
                room.copy_from_slice(frame);
                ring.filled(buf, len)
            }
            _ => {
                buf.into_iter().filter(|_| !direct).for_each(|buf| self.extra.give(buf));
                counters.to_host_dropped += 1;
                return Ok(());
            }
        };
        if direct {
            ring.put(copy);
        } else {
            self.waiting.push_back(copy);
        }
        counters.to_host += 1;
        counters.to_host_waited += u64::from(!direct);
        Ok(())
    }

    /// Takes a frame that is longer than a buffer: all of its fragments, or none, with which the kernel could do nothing.
    fn pass_long(&mut self, frame: &[u8], counters: &mut Counters) -> Result<(), PortError> {
        let Some(cut) = Cut::new(frame, self.sides.tx.slots.room_bytes() as usize, &mut self.ident) else {
            counters.to_host_dropped += 1;
            return Ok(());
        };
        self.serve_waiting();
        let direct =
            |host: &Self| host.waiting.is_empty() && host.sides.tx.slots.available() as usize >= cut.count();
        if !direct(self) && self.sides.tx_sync()? {
            self.serve_waiting();
        }
        let direct = direct(self);
        if !direct && self.extra.count() < cut.count() {
            counters.to_host_dropped += 1;
            return Ok(());
        }
        for number in 0..cut.count() {
            let ring = &mut self.sides.tx.slots;
            let Some(buf) = (if direct { ring.front_buffer() } else { self.extra.take() }) else { break };
            let len = ring.room(buf).and_then(|room| cut.write(number, room));
            match (len.and_then(|len| u16::try_from(len).ok()), direct) {
                (Some(len), true) => ring.put(ring.filled(buf, len)),
                (Some(len), false) => self.waiting.push_back(ring.filled(buf, len)),
                (None, true) => {}
                (None, false) => self.extra.give(buf),
            }
        }
        counters.to_host += 1;
        counters.to_host_waited += u64::from(!direct);
        Ok(())
    }
}

impl Drop for ToHost {
    fn drop(&mut self) {
        // A frame that is still waiting is lost; its buffer is not.
        for frame in self.waiting.drain(..) {
            self.extra.give(frame.buf);
        }
        let Self { sides, extra, .. } = self;
        extra.give_back(&sides.region);
    }
}

/// One ring's share of the work.
#[derive(Debug)]
pub(crate) struct Beside {
    steering: Arc<SoftSteering>,
    to_host: Arc<Mutex<ToHost>>,
    /// `None`: another ring's shard takes the kernel's frames.
    pub(crate) from_host: Option<Sides>,
    judge: Judge,
    long: Long,
    /// Rounds until the kernel's ring is asked again.
    quiet_for: u32,
    /// Frames of the kernel wait for room.
    blocked: bool,
    counters: Counters,
}

impl Beside {
    pub(crate) fn new(
        steering: Arc<SoftSteering>,
        to_host: Arc<Mutex<ToHost>>,
        from_host: Option<Sides>,
    ) -> Self {
        let (judge, long, counters) = (Judge::default(), Long::default(), Counters::default());
        Self { steering, to_host, from_host, judge, long, quiet_for: 0, blocked: false, counters }
    }

    fn lock(to_host: &Mutex<ToHost>) -> MutexGuard<'_, ToHost> {
        to_host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the frames from slot `from` on, and passes on what is not ours. Returns number and bytes of those that are.
    pub(crate) fn sort(&mut self, rx: &mut SlotRing, from: u32) -> Result<(u64, u64), PortError> {
        let Self { steering, to_host, judge, long, counters, .. } = self;
        let mut host: Option<MutexGuard<'_, ToHost>> = None;
        let (mut frames, mut bytes) = (0, 0);
        if from != rx.tail {
            let table = steering.read();
            let mut index = from;
            while index != rx.tail {
                let slot = rx.slot(index);
                let is_piece = judge.going_on.is_some() || slot.flags & SlotFlags::MORE_FRAG != 0;
                let frame = rx.frame(slot);
                let lies = frame.is_none();
                // A slot that lies is left to whoever reads the ring, who counts it.
                let whose = judge.whose(steering, &table, frame, slot.flags);
                if whose != Whose::Kernels {
                    frames += 1;
                    bytes += u64::from(slot.len);
                }
                if whose == Whose::Ours {
                    // It stays.
                } else if is_piece {
                    long.add(frame);
                    if !lies && whose == Whose::Kernels {
                        rx.set_slot(
                            index,
                            Slot { len: 0, flags: slot.flags & !SlotFlags::MORE_FRAG, ..slot },
                        );
                    }
                    if judge.going_on.is_none() {
                        let host = host.get_or_insert_with(|| Self::lock(to_host));
                        match long.take() {
                            Some(frame) => host.pass_long(frame, counters)?,
                            None => counters.to_host_dropped += 1,
                        }
                    }
                } else if slot.len != 0 {
                    let host = host.get_or_insert_with(|| Self::lock(to_host));
                    match frame.filter(|_| whose == Whose::Anybodys) {
                        Some(frame) => host.pass_copy(frame, counters)?,
                        None => host.pass(rx, index, counters)?,
                    }
                }
                index = rx.next(index);
            }
        }
        if let Some(mut host) = host {
            host.sides.tx_sync()?;
        }
        // Slots of no bytes at the front hold nobody up.
        while rx.head != rx.tail && rx.slot(rx.head).len == 0 {
            rx.head = rx.next(rx.head);
        }
        Ok((frames, bytes))
    }

    /// Frames of ours that can be read.
    pub(crate) fn readable(rx: &SlotRing) -> u32 {
        let mut count = 0;
        let mut index = rx.head;
        while index != rx.tail {
            count += u32::from(rx.slot(index).len != 0);
            index = rx.next(index);
        }
        count
    }

    /// Frames that wait for the kernel get another chance.
    pub(crate) fn retry(&mut self) -> Result<(), PortError> {
        // Whoever has the lock does it.
        let Ok(mut host) = self.to_host.try_lock() else { return Ok(()) };
        if !host.waiting.is_empty() {
            host.serve_waiting();
            host.sides.tx_sync()?;
            host.serve_waiting();
            // The last of them would wait for the next frame otherwise.
            host.sides.tx_sync()?;
        }
        Ok(())
    }

    /// Moves frames of the kernel to the NIC's tx ring; how many. `woken`: the caller slept, and may have been woken for
    /// them.
    pub(crate) fn serve_host(&mut self, nic: &mut SlotRing, woken: bool) -> Result<u32, PortError> {
        let Some(host) = &mut self.from_host else { return Ok(0) };
        host.rx_look();
        // The module fills slots first and takes what is given back then: after a full ring was read, one sync shows nothing.
        let full_before = host.owes_slots();
        if host.rx.slots.available() == 0 {
            self.quiet_for = self.quiet_for.saturating_sub(1);
            if self.quiet_for > 0 && !woken {
                return Ok(0);
            }
            host.rx_sync(false)?;
        }
        let waiting = host.rx.slots.available();
        self.quiet_for = if waiting == 0 && !full_before { QUIET_ROUNDS } else { 0 };
        let room = nic.available();
        let budget = waiting.min((room / 2).max(room.min(1)));
        let moved = move_frames(&mut host.rx.slots, nic, budget);
        self.counters.from_host += u64::from(moved);
        let blocked = host.rx.slots.available() > 0 && nic.available() <= 1;
        self.counters.from_host_waited += u64::from(blocked && !self.blocked);
        self.blocked = blocked;
        // What was moved is given back with the next sync; a ring that is half used up needs one now.
        if moved > host.rx.slots.num_slots() / 2 {
            host.rx_sync(true)?;
        }
        Ok(moved)
    }

    /// Before sleeping; `false`: frames of the kernel are there.
    pub(crate) fn arm(&mut self) -> bool {
        let Some(host) = &mut self.from_host else { return true };
        host.rx.publish();
        self.blocked || host.rx.slots.available() == 0
    }

    /// Something waits that no descriptor tells of.
    pub(crate) fn waits(&self) -> bool {
        self.blocked || self.to_host.try_lock().is_ok_and(|host| !host.waiting.is_empty())
    }

    /// Its own counters, and the system calls that it made for the kernel's frames.
    pub(crate) fn counters(&self, of_nic: Counters) -> Counters {
        let Counters { to_host, to_host_waited, to_host_dropped, from_host, from_host_waited, .. } =
            self.counters;
        let mut all =
            Counters { to_host, to_host_waited, to_host_dropped, from_host, from_host_waited, ..of_nic };
        if let Some(host) = &self.from_host {
            let Counters { rx_syscalls, ring_resets, rx_bad_slot, .. } = host.counters();
            all.rx_syscalls += rx_syscalls;
            all.ring_resets += ring_resets;
            all.rx_bad_slot += rx_bad_slot;
            // The shared direction is counted once, with the ring whose shard has the other.
            let Counters { tx_syscalls, ring_resets, tx_bad_slot, .. } =
                Self::lock(&self.to_host).sides.counters();
            all.tx_syscalls += tx_syscalls;
            all.ring_resets += ring_resets;
            all.tx_bad_slot += tx_bad_slot;
        }
        all
    }
}

/// Moves up to `budget` frames by changing places of buffers; how many.
fn move_frames(from: &mut SlotRing, to: &mut SlotRing, budget: u32) -> u32 {
    let mut moved = 0;
    while moved < budget && from.head != from.tail {
        let slot = from.slot(from.head);
        if from.frame(slot).is_none() {
            from.bad_slots += 1;
        } else if slot.len != 0 {
            let Some(room) = to.front_buffer() else { break };
            let frame = from.take(from.head, room);
            to.put(frame);
        }
        from.head = from.next(from.head);
        moved += 1;
    }
    moved
}

/// A frame of several slots that is the kernel's, as far as it has come.
#[derive(Debug, Default)]
struct Long {
    bytes: Vec<u8>,
    /// A slot of it lied, or it is longer than a packet can be.
    spoiled: bool,
    /// What is there was given away: the next piece begins another one.
    taken: bool,
}

impl Long {
    /// The next piece; `None`: its slot lies.
    fn add(&mut self, piece: Option<&[u8]>) {
        if std::mem::take(&mut self.taken) {
            self.bytes.clear();
            self.spoiled = false;
        }
        match piece {
            Some(piece) if self.bytes.len() + piece.len() <= LONG_MAX => self.bytes.extend_from_slice(piece),
            _ => self.spoiled = true,
        }
    }

    /// All of it; `None`: some is missing.
    fn take(&mut self) -> Option<&[u8]> {
        self.taken = true;
        (!self.spoiled).then_some(&self.bytes)
    }
}

/// Tells whose frames are, one after the other.
#[derive(Debug, Default)]
struct Judge {
    /// The frame goes on in the next slot, and whose it is.
    going_on: Option<Whose>,
}

impl Judge {
    /// `frame` is the next slot's; `None`: the slot lies.
    fn whose(&mut self, steering: &SoftSteering, table: &Table, frame: Option<&[u8]>, flags: u16) -> Whose {
        let whose = match self.going_on {
            Some(whose) => whose,
            None => frame.map_or(Whose::Ours, |frame| steering.whose(table, frame)),
        };
        self.going_on = (flags & SlotFlags::MORE_FRAG != 0).then_some(whose);
        whose
    }
}
