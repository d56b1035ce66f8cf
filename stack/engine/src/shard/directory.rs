//! Which shard has a flow, where a device has queues in several shards.
//!
//! A NIC spreads frames over its queues by a hash of its own, and may change its mind: the answer to a connection that we
//! began, or a later segment of one that arrived here, can come to another shard's queue.
//!
//! ```text
//!  queue 0 ─► shard 0 ─ not in my table ─► directory: shard 1 ─ the frame, copied ─► shard 1's inbox
//! ```
//!
//! Frames that come to the right shard never look here; a flow costs one entry and one removal under an uncontended
//! lock. Engines with one shard have no directory, nor those with one queue, unless the load decides how many shards are in use: then
//! any shard may take any client port that no other has entered here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use utcp_proto::FourTuple;

use super::{Inbox, Shard, ToShard};
use crate::station::Verdict;

/// Locks: many more than shards, so that two rarely meet.
const STRIPES: usize = 64;
/// Frames on their way to one shard at most; TCP sends again what is dropped.
const ON_THE_WAY_MAX: usize = 4096;

/// Flows of all shards, and how to reach their shards.
#[derive(Debug)]
pub struct Directory {
    stripes: Vec<Mutex<HashMap<FourTuple, u32, ahash::RandomState>>>,
    hasher: ahash::RandomState,
    shards: Vec<(Arc<Inbox>, AtomicUsize)>,
    /// Several of them have queues.
    passes_frames: bool,
}

impl Directory {
    /// For the shards with these inboxes, of which several have queues or not.
    #[must_use]
    pub fn new(inboxes: &[Arc<Inbox>], passes_frames: bool) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: ahash::RandomState::new(),
            shards: inboxes.iter().map(|inbox| (inbox.clone(), AtomicUsize::new(0))).collect(),
            passes_frames,
        }
    }

    /// Whether client ports are for whichever shard claims them.
    pub(super) const fn shares_ports(&self) -> bool {
        !self.passes_frames
    }

    fn at<T>(
        &self,
        tuple: &FourTuple,
        work: impl FnOnce(&mut HashMap<FourTuple, u32, ahash::RandomState>) -> T,
    ) -> T {
        let stripe = &self.stripes[self.hasher.hash_one(tuple) as usize % STRIPES];
        work(&mut stripe.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn enter(&self, tuple: &FourTuple, shard: u32) {
        self.at(tuple, |flows| flows.insert(*tuple, shard));
    }

    /// Enters it unless it is another shard's.
    pub(super) fn claim(&self, tuple: &FourTuple, shard: u32) -> bool {
        self.at(tuple, |flows| *flows.entry(*tuple).or_insert(shard) == shard)
    }

    pub(super) fn remove(&self, tuple: &FourTuple, shard: u32) {
        self.at(tuple, |flows| {
            if flows.get(tuple) == Some(&shard) {
                flows.remove(tuple);
            }
        });
    }

    fn shard_of(&self, tuple: &FourTuple) -> Option<u32> {
        self.at(tuple, |flows| flows.get(tuple).copied())
    }

    /// Sends a frame to a shard; `false`: too many are on the way.
    fn send(&self, shard: u32, interface: Option<u32>, frame: &[u8]) -> bool {
        let Some((inbox, on_the_way)) = self.shards.get(shard as usize) else { return false };
        if on_the_way.fetch_add(1, Ordering::Relaxed) >= ON_THE_WAY_MAX {
            on_the_way.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        inbox.send(ToShard::Frame { interface, frame: frame.into() });
        true
    }

    fn arrived(&self, shard: u32) {
        if let Some((_, on_the_way)) = self.shards.get(shard as usize) {
            on_the_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Shard {
    /// If the frame belongs to a flow of another shard, sends it there; true if it did (or dropped it).
    pub(super) fn hand_over(&mut self, port: u32, tuple: &FourTuple, frame: &[u8]) -> bool {
        let Some(directory) = self.directory.as_ref().filter(|it| it.passes_frames) else { return false };
        if self.table.get(tuple).is_some() {
            return false;
        }
        let own = self.config.index;
        let Some(owner) = directory.shard_of(tuple).filter(|owner| *owner != own) else { return false };
        let interface = self.links.get(port as usize).and_then(|link| link.interface);
        if directory.send(owner, interface, frame) {
            self.counters.frames_handed_over += 1;
        } else {
            self.counters.handover_lost += 1;
        }
        true
    }

    /// What was said of link addresses came to our queue alone, and the other shards' stations want to know it.
    pub(super) fn tell_others(&self, port: u32, frame: &[u8]) {
        let Some(directory) = self.directory.as_ref().filter(|it| it.passes_frames) else { return };
        let interface = self.links.get(port as usize).and_then(|link| link.interface);
        for shard in (0..self.config.count).filter(|shard| *shard != self.config.index) {
            // Who does not keep up asks again.
            let _ = directory.send(shard, interface, frame);
        }
    }

    /// A frame for a flow of ours came to another shard's queue, or one about neighbours of all.
    pub(super) fn on_handed_frame(&mut self, interface: Option<u32>, frame: &[u8]) {
        if let Some(directory) = &self.directory {
            directory.arrived(self.config.index);
        }
        // Answers leave by our own queue of the same interface.
        let Some(port) = self.links.iter().position(|link| link.interface == interface) else {
            self.counters.handover_lost += 1;
            return;
        };
        let now = self.now;
        let station = self.ports.get_mut(port).and_then(|device| device.station_mut());
        if let Some(station) = station
            && station.hear(now, frame) != Verdict::Ours
        {
            if station.take_news() {
                self.find_next_hops();
            }
            return;
        }
        let verify = self.links[port].verify;
        self.on_frame(port as u32, verify, frame);
    }
}
