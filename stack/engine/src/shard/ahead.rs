//! What the next steps will touch is fetched before it is needed.
//!
//! With many flows each segment finds its flow, its socket's words and its streams far from the processor: some twenty
//! cache lines, a hundred nanoseconds each if one waits for the other. A batch is therefore gone through three times before
//! it is worked on, and the lines arrive together:
//!
//! ```text
//!  frames   parse, hash ──► table ──► flow ──► words of the socket, streams │ work on the first, the second …
//!                    all of them   all of them   all of them                │
//!  commands          slots of the client ──► flow ──► words, streams        │ the same
//! ```
//!
//! Nothing here changes anything: what is fetched by a wrong guess is fetched in vain.

use utcp_abi::Region;
use utcp_proto::FourTuple;

use super::client::SlotUse;
use super::flow::Flow;
use super::frame::Parsed;
use super::{Shard, Timer};
use crate::sys;

/// Frames, or sockets, that are looked at together: enough to keep every miss that a core can have under way busy, few enough
/// that what was fetched is there still when its turn comes.
pub(super) const LOOK_AHEAD: usize = 32;
/// So few flows stay in the cache by themselves.
const FLOWS_CACHED: usize = 256;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Frames of one look.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    frames: [Option<(Parsed, &'a [u8])>; LOOK_AHEAD],
    len: usize,
}

impl<'a> Batch<'a> {
    /// Adds one; at most [`LOOK_AHEAD`] of them.
    pub(super) fn push(&mut self, parsed: Parsed, bytes: &'a [u8]) {
        if let Some(free) = self.frames.get_mut(self.len) {
            *free = Some((parsed, bytes));
            self.len += 1;
        }
    }

    /// Whose segments they are.
    pub(super) fn tuples(&self) -> impl ExactSizeIterator<Item = Option<&FourTuple>> {
        self.frames[..self.len].iter().map(|frame| match frame {
            Some((Parsed::Segment { tuple, .. }, _)) => Some(tuple),
            _ => None,
        })
    }

    /// What it holds, first come, first served.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(Parsed, &'a [u8])> {
        self.frames[..self.len].iter().flatten()
    }

    /// Makes room for the next.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}

impl Shard {
    /// Fetches what segments of these flows will touch.
    pub(super) fn look_ahead<'a>(&self, tuples: impl ExactSizeIterator<Item = Option<&'a FourTuple>>) {
        if tuples.len() < 2 || self.flows.len() < FLOWS_CACHED {
            return;
        }
        let mut tags = [None; LOOK_AHEAD];
        for (tag, tuple) in tags.iter_mut().zip(tuples) {
            *tag = tuple.map(|tuple| self.table.tag(tuple));
            tag.iter().for_each(|tag| self.table.prefetch(*tag));
        }
        let flows = tags.map(|tag| tag.and_then(|tag| self.table.guess(tag)));
        self.fetch_flows(&flows, |flow| flow.rx.address(flow.rx.tail));
    }

    /// Fetches what commands of these sockets will touch.
    pub(super) fn look_ahead_at(&self, client: u32, socks: &[u32]) {
        if socks.len() < 2 || self.flows.len() < FLOWS_CACHED {
            return;
        }
        let Some(client) = self.clients.get(client) else { return };
        for sock in socks.iter().take(LOOK_AHEAD) {
            client.prefetch(*sock);
        }
        let mut flows = [None; LOOK_AHEAD];
        for (flow, sock) in flows.iter_mut().zip(socks) {
            if let SlotUse::Flow(index) = client.slot(*sock) {
                *flow = Some(index);
            }
        }
        self.fetch_flows(&flows, |flow| flow.tx.address(flow.tx.tail));
    }

    /// Fetches what timers of these flows will touch: most were put off since they were filed, and need no more than to be filed
    /// anew.
    pub(super) fn look_ahead_to(&self, timers: &[Timer]) {
        if timers.len() < 2 || self.flows.len() < FLOWS_CACHED {
            return;
        }
        for timer in timers {
            if let Timer::Flow(index) = timer {
                self.fetch_flow(*index, Flow::TIMING);
            }
        }
    }

    fn fetch_flow(&self, index: u32, parts: impl IntoIterator<Item = usize>) {
        if let Some(place) = self.flows.place(index) {
            let start = std::ptr::from_ref(place).cast::<u8>();
            for at in parts {
                sys::prefetch_at(start.wrapping_add(at));
            }
        }
    }

    /// `byte`: of the stream that will be read or written.
    fn fetch_flows(&self, flows: &[Option<u32>; LOOK_AHEAD], byte: impl Fn(&Flow) -> *const u8) {
        for index in flows.iter().flatten() {
            self.fetch_flow(*index, Flow::HOT.into_iter().flat_map(|run| run.step_by(LINE)));
        }
        for flow in flows.iter().flatten().filter_map(|index| self.flows.get(*index)) {
            sys::prefetch_at(byte(flow));
            if let Some(region) = self.clients.get(flow.client).map(|client| client.region) {
                fetch_socket(region, flow.sock);
            }
        }
    }
}

/// Fetches the words of a socket that change with every message.
fn fetch_socket(region: Region, sock: u32) {
    let Some(socket) = region.socket(sock) else { return };
    sys::prefetch(Some(&socket.rx_tail));
    sys::prefetch(Some(&socket.rx_head));
    sys::prefetch(Some(&socket.rx_bell));
    sys::prefetch(Some(&socket.members));
}
