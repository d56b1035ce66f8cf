//! Both directions of one handle's rings, and when they are synced.
//!
//! A sync is a system call, so there is one for a batch: sending costs one when something was committed, or when the ring
//! is getting full; receiving costs one when the ring is empty, or when half of it waits to be given back.

use std::io;
use std::sync::Arc;

use super::control;
use super::region::Region;
use super::sys::Handle;
use super::user::UserRing;
use crate::sys::Mapping;
use crate::{Counters, PortError};

/// The rings of one handle. A direction that it was not bound to is an empty ring that stays so.
#[derive(Debug)]
pub(crate) struct Sides {
    pub(crate) name: String,
    pub(crate) handle: Box<dyn Handle>,
    pub(crate) rx: UserRing,
    pub(crate) tx: UserRing,
    pub(crate) has_rx: bool,
    pub(crate) has_tx: bool,
    /// Our head at the last sync that the module saw.
    rx_synced: u32,
    tx_synced: u32,
    /// Frames and bytes are whole here; the port that sorts them takes out what is not its own.
    pub(crate) counters: Counters,
    pub(crate) region: Region,
    _absent: Option<Mapping>,
}

impl Sides {
    /// Rings of `region`; the handle stays bound as long as they are in use.
    pub(crate) fn new(
        name: String,
        handle: Box<dyn Handle>,
        region: Region,
        rx: Option<UserRing>,
        tx: Option<UserRing>,
    ) -> io::Result<Self> {
        let (has_rx, has_tx) = (rx.is_some(), tx.is_some());
        let absent = if has_rx && has_tx { None } else { Some(UserRing::absent_memory()?) };
        let stand_in = |ring: Option<UserRing>| match (ring, &absent) {
            (Some(ring), _) => Ok(ring),
            (None, Some(memory)) => Ok(UserRing::absent(memory)),
            (None, None) => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        let (rx, tx) = (stand_in(rx)?, stand_in(tx)?);
        let (rx_synced, tx_synced) = (rx.slots.head, tx.slots.head);
        let counters = Counters::default();
        Ok(Self {
            name,
            handle,
            rx,
            tx,
            has_rx,
            has_tx,
            rx_synced,
            tx_synced,
            counters,
            region,
            _absent: absent,
        })
    }

    /// Errors of a sync: only a device that went away. The module returns 0 also when it has reset a ring.
    fn gone(&self, error: &io::Error) -> PortError {
        PortError::Gone { device: self.name.clone(), reason: error.to_string() }
    }

    /// An rx sync; the first slot that is new. `now`: although frames wait.
    pub(crate) fn rx_sync(&mut self, now: bool) -> Result<u32, PortError> {
        if !self.has_rx {
            return Ok(self.rx.slots.tail);
        }
        self.rx.publish();
        let released = self.rx.slots.distance(self.rx_synced, self.rx.slots.head);
        // Frames that wait, or came while the caller slept on the descriptor, need no call; a module that
        // runs out of slots does.
        let first = self.rx.refresh();
        let empty = self.rx.slots.available() == 0;
        if now || empty || released > self.rx.slots.num_slots() / 2 {
            self.counters.rx_syscalls += 1;
            control::rx_sync(&*self.handle).map_err(|error| self.gone(&error))?;
            self.rx_synced = self.rx.slots.head;
        }
        let second = self.rx.refresh();
        self.counters.ring_resets += u64::from(first.reset) + u64::from(second.reset);
        Ok(if first.reset || second.reset { self.rx.slots.head } else { first.old_tail })
    }

    /// Whether slots were read that the module does not know of yet.
    pub(crate) fn owes_slots(&self) -> bool {
        self.rx_synced != self.rx.slots.head
    }

    /// Looks at what a sync by somebody else (waiting is one) has shown; no system call.
    pub(crate) fn rx_look(&mut self) {
        self.rx.publish();
        let done = self.rx.refresh();
        self.counters.ring_resets += u64::from(done.reset);
    }

    /// A tx sync if it is worth one. Returns whether the module was asked.
    pub(crate) fn tx_sync(&mut self) -> Result<bool, PortError> {
        let committed = self.tx_synced != self.tx.slots.head;
        let scarce = self.has_tx && self.tx.slots.available() < self.tx.slots.num_slots() / 2;
        if !committed && !scarce {
            return Ok(false);
        }
        let (frames, bytes) = self.tx.count_between(self.tx_synced, self.tx.slots.head);
        self.counters.tx_frames += frames;
        self.counters.tx_bytes += bytes;
        self.tx.publish();
        self.counters.tx_syscalls += 1;
        control::tx_sync(&*self.handle).map_err(|error| self.gone(&error))?;
        let done = self.tx.refresh();
        self.counters.ring_resets += u64::from(done.reset);
        self.tx_synced = self.tx.slots.head;
        Ok(true)
    }

    /// After waking for nothing: whether the rings are gone without a word.
    pub(crate) fn check_alive(&mut self) -> Result<(), PortError> {
        self.counters.rx_syscalls += 1;
        if self.handle.in_error() {
            let reason = "its descriptor reports an error: the interface left netmap mode, or was removed";
            return Err(PortError::Gone { device: self.name.clone(), reason: reason.into() });
        }
        Ok(())
    }

    /// What it counted, with the slots that lied.
    pub(crate) fn counters(&self) -> Counters {
        let (rx_bad_slot, tx_bad_slot) = (self.rx.slots.bad_slots, self.tx.slots.bad_slots);
        Counters { rx_bad_slot, tx_bad_slot, ..self.counters }
    }
}

/// Memory of one allocator, mapped once for all who use it.
pub(crate) type Memory = Arc<Mapping>;
