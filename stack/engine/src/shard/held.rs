//! What a program holds back in a pair region (TCP_CORK, MSG_MORE) goes out after 200 ms at the latest (tcp(7)).
//!
//! The program does the holding itself ([`utcp_abi::freeze`]) and asks for a look when it begins. While it corks again and again
//! the shard looks ten times a second without being asked, and lets go of what it has seen before.

use std::sync::atomic::{Ordering, fence};

use utcp_abi::Region;
use utcp_abi::freeze::{accepted, advance};
use utcp_abi::pair::{STREAM_MAX, Side};

use super::{Shard, Timer};

/// From the first byte that is held back.
const FIRST_NS: u64 = 200_000_000;
/// From look to look afterwards.
const NEXT_NS: u64 = 100_000_000;
/// The program is just writing.
const BUSY_NS: u64 = 5_000_000;

impl Shard {
    fn held_of(&self, index: u32) -> Option<(&'static Side, Region, u32)> {
        let flow = self.flows.get(index)?;
        let end = flow.pair?;
        let [own, _] = self.slot_of(end)?.from(end.side);
        Some((own, self.clients.get(flow.client)?.region, flow.sock))
    }

    /// Flow `index` holds bytes back.
    pub(super) fn watch_held(&mut self, index: u32) {
        let Some((own, region, sock)) = self.held_of(index) else { return };
        let Some(socket) = region.socket(sock) else { return };
        if self.flows.get(index).is_none_or(|flow| flow.held.is_some()) {
            return;
        }
        socket.held_watched.store(1, Ordering::SeqCst);
        self.look_later(index, own.tail.load(Ordering::Acquire), FIRST_NS);
    }

    fn look_later(&mut self, index: u32, seen: u64, after_ns: u64) {
        let due = self.now.as_nanos() + after_ns;
        if let Some(flow) = self.flows.get_mut(index) {
            flow.held = Some((seen, due));
            self.wheel.insert(due, Timer::Held(index));
        }
    }

    pub(super) fn on_held_timer(&mut self, index: u32) {
        let now = self.now.as_nanos();
        // The timer of an earlier flow at this index comes too soon for this one.
        let known = self.flows.get(index).and_then(|flow| flow.held).filter(|(_, due)| *due <= now);
        let Some((seen, _)) = known else { return };
        let Some((own, region, sock)) = self.held_of(index) else { return };
        let Some(socket) = region.socket(sock) else { return };
        let tail = own.tail.load(Ordering::Acquire);
        let is_held = || accepted(tail, socket.tx_held.load(Ordering::Acquire), STREAM_MAX) != tail;
        if tail != seen {
            return self.look_later(index, tail, NEXT_NS);
        }
        if is_held() {
            // Who is writing decides itself.
            if socket.tx_arbiter.try_take(self.tid).is_err() {
                return self.look_later(index, seen, BUSY_NS);
            }
            self.release_held(index);
            socket.tx_arbiter.give();
            self.nudge(index);
            return self.look_later(index, own.tail.load(Ordering::Acquire), NEXT_NS);
        }
        socket.held_watched.store(0, Ordering::SeqCst);
        // Pairs with the program's: our look at what is held after it may think that nobody looks.
        fence(Ordering::SeqCst);
        if is_held() {
            socket.held_watched.store(1, Ordering::SeqCst);
            return self.look_later(index, tail, NEXT_NS);
        }
        if let Some(flow) = self.flows.get_mut(index) {
            flow.held = None;
        }
    }

    /// What flow `index` holds back goes out now. Nobody writes into its stream meanwhile.
    pub(super) fn release_held(&self, index: u32) {
        let Some((own, region, sock)) = self.held_of(index) else { return };
        let Some(socket) = region.socket(sock) else { return };
        let tail = own.tail.load(Ordering::Acquire);
        let end = accepted(tail, socket.tx_held.load(Ordering::Acquire), STREAM_MAX);
        if end != tail {
            let _ = advance(&own.tail, tail, end);
        }
    }
}
