//! From a TCB's decision to a frame on a device, or straight into the peer's rx stream on this host.

use std::sync::atomic::Ordering;

use utcp_abi::socket::status;
use utcp_proto::{FourTuple, Segment, Transmit, TxLimits};

use super::device::UNRESOLVED;
use super::flow::Path;
use super::segments::Payload;
use super::table::Entry;
use super::{Shard, TRANSMIT_BUDGET};

/// Bytes that one same-host segment carries at most: long enough that headers don't matter, short enough
/// that reader and writer overlap.
const LOCAL_SEGMENT_MAX: u32 = 65_536;
/// Segments of one flow before the next flow has its turn.
const FLOW_BUDGET: u32 = 64;

impl Shard {
    /// Puts a flow on the list of those that may have something to send.
    pub(super) fn list_transmit(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index).filter(|f| !f.transmit_listed) {
            flow.transmit_listed = true;
            self.to_transmit.push_back(index);
        }
    }

    /// Sends for every listed flow, within the budget; true if there was one.
    pub(super) fn transmit_all(&mut self) -> bool {
        let mut sent = 0;
        let any = !self.to_transmit.is_empty();
        let mut blocked = 0;
        while sent < TRANSMIT_BUDGET && blocked < self.to_transmit.len() {
            let Some(index) = self.to_transmit.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(index) else { continue };
            flow.transmit_listed = false;
            match self.transmit_flow(index) {
                Some(n) => sent += n.max(1),
                None => {
                    // No room in its port's tx ring: its turn comes again after the flush.
                    self.list_transmit(index);
                    blocked += 1;
                }
            }
        }
        any && sent > 0
    }

    /// Sends what the flow's TCB wants to send. `None`: the port is full.
    pub(super) fn transmit_flow(&mut self, index: u32) -> Option<u32> {
        let now = self.now;
        let mut sent = 0;
        loop {
            let flow = self.flows.get_mut(index)?;
            let path = flow.path;
            if sent > 0 && !flow.tcb.has_output() {
                break;
            }
            let limits = match path {
                Path::Local(_) => TxLimits { payload_max: LOCAL_SEGMENT_MAX },
                Path::Device { port, .. } => {
                    self.links.get(port as usize).map_or(TxLimits::WIRE, super::device::Link::limits)
                }
            };
            if let Path::Device { port, next_hop } = path {
                if next_hop == UNRESOLVED {
                    // Listed again when the next hop's address is known. What ends before has nobody to say it to.
                    if self.flows.get(index).is_some_and(|flow| flow.finished) {
                        self.end_flow(index);
                    } else {
                        self.refile(index);
                    }
                    return Some(sent);
                }
                if !self.port_has_room(port) {
                    return None;
                }
            }
            let flow = self.flows.get_mut(index)?;
            let waited = flow.tcb.acks_when_read();
            flow.tcb.borrow_to_send(&mut self.loans);
            let mut transmit = Transmit::default();
            if !flow.tcb.poll_into(now, limits, &mut transmit) {
                break;
            }
            if waited {
                self.ack_waits_no_more(index);
            }
            if transmit.retransmission {
                self.counters.retransmits += 1;
                self.doubt_next_hop(index);
            }
            match path {
                Path::Local(peer) => self.deliver(index, peer, &transmit),
                Path::Device { port, next_hop } => self.send_segment(index, port, next_hop, &transmit),
            }
            sent += 1;
            if sent >= FLOW_BUDGET {
                self.tell_unsent(index);
                self.list_transmit(index);
                return Some(sent);
            }
        }
        if sent > 0 {
            self.tell_unsent(index);
        }
        if let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.waits_for_room) {
            flow.tcb.note_full_stream(now);
        }
        self.refile(index);
        if self.flows.get(index).is_some_and(|f| f.finished && !f.transmit_listed) {
            self.end_flow(index);
        }
        Some(sent)
    }

    /// Every segment brings the ACK: readers need not tell any more that they have read.
    fn ack_waits_no_more(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        socket.status.fetch_and(!status::ACK_WAITS, Ordering::AcqRel);
    }

    /// TCP_NOTSENT_LOWAT: the program learns where the bytes begin that were never sent.
    pub(super) fn tell_unsent(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index).filter(|flow| flow.lowat != u32::MAX) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        let first = flow.tx.tail.wrapping_sub(u64::from(flow.tcb.unsent()));
        socket.tx_sent.store(first, Ordering::Release);
        self.offer_space(index);
    }

    /// Hands a segment of flow `index` to its peer on this host.
    fn deliver(&mut self, index: u32, peer: u32, transmit: &Transmit) {
        self.counters.local_segments += 1;
        self.counters.local_bytes += u64::from(transmit.len);
        let Some(flow) = self.flows.get(index) else { return };
        let tuple = flow.tuple.reversed();
        if let Some(from) = self.clients.get(flow.client).and_then(|client| client.region.socket(flow.sock)) {
            self.arrival.begin_from(from);
        }
        let payload = if transmit.len == 0 {
            Payload::None
        } else {
            Payload::Stream(flow.tx, flow.tx.head.wrapping_add(u64::from(transmit.offset)))
        };
        let seg = Segment::from_transmit(transmit);
        self.deliver_to(index, peer, &tuple, &seg, payload);
        self.arrival.end_from();
    }

    fn deliver_to(&mut self, index: u32, peer: u32, tuple: &FourTuple, seg: &Segment, payload: Payload<'_>) {
        if self.flows.get(peer).is_some_and(|f| f.tuple == *tuple) {
            return self.on_flow_segment(peer, seg, payload);
        }
        if let Some(Entry::Flow(found)) = self.table.get(tuple) {
            if let Some(flow) = self.flows.get_mut(index) {
                flow.path = Path::Local(found);
            }
            return self.on_flow_segment(found, seg, payload);
        }
        self.on_segment(tuple, seg, payload, Path::Local(index));
    }
}
