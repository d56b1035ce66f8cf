//! Cut-through: connections between two programs of this host whose bytes don't pass the engine.
//!
//! The TCBs of such a connection stand as ever and do what is between them: handshake, FIN, reset, keep-alive. But they
//! carry no byte: the programs exchange those in a slot of a pair region ([`utcp_abi::pair`]), which both map. What
//! the shard does for the bytes is the rest: it gives out slots, tells programs that have no better way to hear of
//! each other ([`Shard::nudge`]), and looks into a slot when a connection ends, because unread bytes make a close a reset.
//!
//! A slot is claimed when the SYN meets its listener, before the connecting program can send; the accepted end joins
//! when the handshake is complete. It is free again when both programs have given their sockets back.

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use utcp_abi::freeze::FROZEN;
use utcp_abi::layout::SHARDS_MAX;
use utcp_abi::pair::{
    CLASSES, HEAD_LEN, PAIR_LEN, PAIRS_MAX, PairRef, PairView, SLOTS_MAX, STREAM_MAX, Side, Slot, large_range,
};
use utcp_abi::socket::{Socket, first_position, uses_overrun};
use utcp_proto::UserCall;

use super::client::Client;
use super::flow::Path;
use super::table::Entry;
use super::{Shard, ToControl};
use crate::sys;

/// Pair regions of one shard.
const OF_A_SHARD: u32 = PAIRS_MAX / SHARDS_MAX as u32;
/// Both sides of a slot.
const BOTH: u8 = 3;

/// A pair region as the whole engine shares it.
#[derive(Debug)]
pub struct PairRegion {
    mapping: sys::Mapping,
    fd: OwnedFd,
    /// See [`PairRef::number`].
    pub number: u32,
    /// Numbers of the client that connects (side 0) and of the one that listens.
    pub clients: [u32; 2],
    /// Their users.
    pub users: [u32; 2],
}

impl PairRegion {
    /// Makes and lays out a region.
    pub fn new(number: u32, connects: &Client, listens: &Client) -> std::io::Result<Self> {
        let fd = sys::memfd(c"utcp-pair", PAIR_LEN)?;
        sys::seal(&fd, libc::F_SEAL_SEAL)?;
        // The bytes are none of our business.
        let mapping = sys::Mapping::new(&fd, HEAD_LEN)?;
        let clients = [connects.shared.id, listens.shared.id];
        let users = [connects.shared.uid, listens.shared.uid];
        let this = Self { mapping, fd, number, clients, users };
        this.view().format(number);
        Ok(this)
    }

    /// The view. Not for streams, which are not mapped here.
    #[must_use]
    pub fn view(&self) -> PairView {
        // SAFETY: HEAD_LEN bytes are mapped, from a page's start; whoever uses the view has `self` by Arc meanwhile.
        unsafe { PairView::new(self.mapping.base()) }
    }

    /// What programs map.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// One side of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Pair region, by its index in the shard.
    pub pair: u32,
    /// Slot.
    pub slot: u32,
    /// 0: connected, 1: accepted.
    pub side: u32,
}

impl End {
    /// A word that is not 0, for tables that start as zeros.
    pub fn pack(self) -> u64 {
        1 << 63 | u64::from(self.side) << 62 | u64::from(self.pair) << 16 | u64::from(self.slot)
    }

    /// From the word.
    pub fn unpack(word: u64) -> Option<Self> {
        (word != 0).then_some(Self {
            pair: (word >> 16) as u32,
            slot: (word & 0xffff) as u32,
            side: (word >> 62 & 1) as u32,
        })
    }
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// Which use this is.
    generation: u16,
    /// Bit per side that holds it.
    held: u8,
    /// No bytes pass here any more.
    uncut: bool,
    /// Socket slots of both sides.
    socks: [u32; 2],
}

/// A pair region as one shard keeps it.
#[derive(Debug)]
pub(super) struct Pair {
    region: Arc<PairRegion>,
    view: PairView,
    /// Clients, by their index in the shard: connects, listens.
    clients: [u32; 2],
    free: Vec<u32>,
    uses: Vec<Use>,
    /// One of the clients is gone: no new connections.
    dead: bool,
}

impl Pair {
    fn new(region: Arc<PairRegion>, clients: [u32; 2]) -> Self {
        let (view, free) = (region.view(), (0..SLOTS_MAX).rev().collect());
        Self { region, view, clients, free, uses: vec![Use::default(); SLOTS_MAX as usize], dead: false }
    }

    /// A slot for side 0, ready for use.
    fn claim(&mut self) -> Option<u32> {
        let slot = self.free.pop()?;
        let used = self.uses.get_mut(slot as usize)?;
        *used = Use { generation: used.generation.wrapping_add(1), held: 1, ..Use::default() };
        self.view.slot(slot)?.wipe(slot, u32::from(used.generation));
        // Only the engine writes it; programs that do hurt each other.
        let slots = &self.view.header().slots;
        if slots.load(Ordering::Relaxed) <= slot {
            slots.store(slot + 1, Ordering::Release);
        }
        Some(slot)
    }

    pub(super) fn reference(&self, end: End) -> PairRef {
        let generation = self.uses.get(end.slot as usize).map_or(0, |used| u32::from(used.generation));
        let number = self.region.number;
        PairRef { side: end.side, generation, turn: number >> 12, index: number & 0xfff, slot: end.slot }
    }

    /// The sockets at both sides of a slot: client, by its index in the shard, and socket slot.
    pub(super) fn holders(&self, slot: u32) -> [Option<(u32, u32)>; 2] {
        let used = self.uses.get(slot as usize).copied().unwrap_or_default();
        [0, 1].map(|side| (used.held & 1 << side != 0).then_some((self.clients[side], used.socks[side])))
    }

    /// Notes that no bytes pass by this slot any more; `None`: that was known.
    pub(super) fn uncut(&mut self, slot: u32) -> Option<&'static Slot> {
        let used = self.uses.get_mut(slot as usize).filter(|used| used.held != 0 && !used.uncut)?;
        used.uncut = true;
        self.view.slot(slot)
    }

    /// The memory.
    pub(super) fn region(&self) -> Arc<PairRegion> {
        self.region.clone()
    }

    fn is_unused(&self) -> bool {
        self.free.len() == SLOTS_MAX as usize
    }
}

/// What a shard knows of all its pair regions beside themselves.
#[derive(Debug)]
pub(super) struct Numbers {
    shard: u32,
    /// Indices that are free, and how often each was used.
    free: Vec<u32>,
    turns: Vec<u32>,
}

impl Numbers {
    pub(super) fn new(shard: u32) -> Self {
        Self { shard, free: (0..OF_A_SHARD).rev().collect(), turns: vec![0; OF_A_SHARD as usize] }
    }

    fn take(&mut self) -> Option<u32> {
        let own = self.free.pop()?;
        let turn = self.turns.get_mut(own as usize)?;
        *turn = (*turn + 1) & 0xfff;
        Some(*turn << 12 | (own * SHARDS_MAX as u32 + self.shard))
    }

    fn give(&mut self, number: u32) {
        self.free.push((number & 0xfff) / SHARDS_MAX as u32);
    }
}

/// TCP_USER_TIMEOUT: how long bytes wait for their acknowledgement is known where they go by segments.
pub(super) fn counts_patience(socket: &Socket) -> bool {
    socket.options.user_timeout_ms.load(Ordering::Relaxed) != 0
}

impl Shard {
    /// The slot of an end.
    pub(super) fn slot_of(&self, end: End) -> Option<&'static Slot> {
        self.pairs.get(end.pair)?.view.slot(end.slot)
    }

    /// The bells of a socket's side, if it has one.
    pub(super) fn side_of(&self, client: u32, sock: u32) -> Option<&'static Side> {
        let end = self.clients.get(client)?.end(sock)?;
        let [own, _] = self.slot_of(end)?.from(end.side);
        Some(own)
    }

    /// A SYN of one of our programs met listener `listener`: the connection gets a slot, unless there is none, or it
    /// is not wanted. It is not connected yet, so no byte went another way.
    pub(super) fn pair_up(&mut self, path: Path, listener: u32) {
        let Path::Local(index) = path else { return };
        if !self.config.cut_through {
            return;
        }
        let Some((listens, parent)) = self.listeners.get(listener).map(|l| (l.client, l.sock)) else {
            return;
        };
        let parent = self.clients.get(listens).and_then(|client| client.region.socket(parent));
        if parent.is_none_or(|socket| socket.options.defer_accept_s.load(Ordering::Relaxed) != 0) {
            return; // TCP_DEFER_ACCEPT waits for data in segments.
        }
        let Some(flow) = self.flows.get(index) else { return };
        if flow.by_segments || flow.tcb.is_fast_client() {
            return; // Fast Open: its first bytes come in segments already.
        }
        let (connects, sock) = (flow.client, flow.sock);
        let child = self.clients.get(connects).and_then(|client| client.region.socket(sock));
        if [parent, child].into_iter().flatten().any(counts_patience) {
            return;
        }
        if let Some(end) = flow.pair {
            if self.pairs.get(end.pair).is_some_and(|pair| pair.clients == [connects, listens]) {
                return; // An earlier SYN of the same connection was here.
            }
            self.leave_pair(index);
        }
        let Some(pair) = self.pair_with_room(connects, listens) else { return };
        let Some(slot) = self.pairs.get_mut(pair).and_then(Pair::claim) else { return };
        self.counters.cut_through += 1;
        self.enter(index, connects, sock, End { pair, slot, side: 0 });
    }

    /// Whether client `accepts` may take the other side of the connection that came over `path`: always, unless the
    /// listener changed hands between SYN and ACK.
    pub(super) fn may_join(&self, path: Path, accepts: u32) -> bool {
        let Path::Local(index) = path else { return true };
        let end = self.flows.get(index).and_then(|flow| flow.pair);
        end.and_then(|end| self.pairs.get(end.pair)).is_none_or(|pair| pair.clients[1] == accepts)
    }

    /// The accepted flow `index` takes the other side of the slot of the connection that came over `path`.
    pub(super) fn join(&mut self, index: u32, path: Path) {
        let Path::Local(connected) = path else { return };
        let Some(end) = self.flows.get(connected).and_then(|flow| flow.pair) else { return };
        let Some(flow) = self.flows.get(index) else { return };
        let (client, sock) = (flow.client, flow.sock);
        if let Some(used) = self.pairs.get_mut(end.pair).and_then(|p| p.uses.get_mut(end.slot as usize)) {
            used.held = BOTH;
            self.enter(index, client, sock, End { side: 1, ..end });
        }
    }

    /// Flow `index` is at `end` from now on; its program learns it before it learns that it is connected.
    fn enter(&mut self, index: u32, client: u32, sock: u32, end: End) {
        let Some(pair) = self.pairs.get_mut(end.pair) else { return };
        let word = pair.reference(end).pack();
        if let Some(used) = pair.uses.get_mut(end.slot as usize) {
            used.socks[end.side as usize & 1] = sock;
        }
        let Some(client) = self.clients.get_mut(client) else { return };
        client.set_end(sock, Some(end));
        if let Some(socket) = client.region.socket(sock) {
            socket.tx_buf.store(word, Ordering::Release);
            socket.rx_buf.store(word, Ordering::Release);
        }
        if let Some(flow) = self.flows.get_mut(index) {
            flow.pair = Some(end);
        }
        self.tell_rcvbuf(index);
    }

    /// Tells the sender what SO_RCVBUF allows.
    pub(super) fn tell_rcvbuf(&self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let socket = self.clients.get(flow.client).and_then(|client| client.region.socket(flow.sock));
        if let (Some(socket), Some(side)) = (socket, self.side_of(flow.client, flow.sock)) {
            side.rcvbuf.store(socket.options.rcvbuf.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// A flow that is not connected yet leaves its slot.
    fn leave_pair(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let end = flow.pair.take();
        let (client, sock, rx) = (flow.client, flow.sock, flow.rx.buf());
        if let Some(client) = self.clients.get_mut(client) {
            client.set_end(sock, None);
            if let Some(socket) = client.region.socket(sock) {
                socket.tx_buf.store(0, Ordering::Release);
                socket.rx_buf.store(rx.0, Ordering::Release);
            }
        }
        self.release(end);
    }

    fn pair_with_room(&mut self, connects: u32, listens: u32) -> Option<u32> {
        let key = (connects, listens);
        let has_room = |pair: &Pair| !pair.dead && !pair.free.is_empty();
        let known = self.pairs_of.get(&key).into_iter().flatten().copied();
        if let Some(found) = known.into_iter().find(|&pair| self.pairs.get(pair).is_some_and(has_room)) {
            return Some(found);
        }
        let number = self.pair_numbers.take()?;
        let made = match (self.clients.get(connects), self.clients.get(listens)) {
            (Some(a), Some(b)) if !a.gone && !b.gone => PairRegion::new(number, a, b),
            _ => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
        };
        let region = match made {
            Ok(region) => Arc::new(region),
            Err(error) => {
                tracing::debug!(%error, "no pair region: the connection goes by segments");
                self.pair_numbers.give(number);
                return None;
            }
        };
        self.outbox.send(ToControl::PairMade(region.clone()));
        let index = self.pairs.insert(Pair::new(region, [connects, listens]));
        self.pairs_of.entry(key).or_default().push(index);
        Some(index)
    }

    /// A socket gave its slot back, or a flow did: the slot is free when both sides have.
    pub(super) fn release(&mut self, end: Option<End>) {
        let Some(end) = end else { return };
        let Some(pair) = self.pairs.get_mut(end.pair) else { return };
        let Some(used) = pair.uses.get_mut(end.slot as usize) else { return };
        let before = used.held;
        used.held &= !(1 << end.side);
        if before == 0 || used.held != 0 {
            return;
        }
        if let Some(slot) = pair.view.slot(end.slot) {
            let first = first_position(end.slot, used.generation.into());
            let mut grown = false;
            for side in &slot.sides {
                // Counters alone rest on these words, and a hole in the liar's own memory.
                let tail = side.tail.load(Ordering::Relaxed);
                let bytes = if tail == FROZEN { 0 } else { tail.wrapping_sub(first) };
                used.generation = used.generation.wrapping_add(uses_overrun(0, bytes) as u16);
                self.counters.cut_through_bytes = self.counters.cut_through_bytes.wrapping_add(bytes);
                grown |= side.class.load(Ordering::Relaxed) > CLASSES[1];
            }
            if grown {
                let (offset, len) = large_range(end.slot);
                sys::punch(&pair.region.fd, offset, len);
            }
        }
        pair.free.push(end.slot);
        self.drop_if_dead(end.pair);
    }

    fn drop_if_dead(&mut self, index: u32) {
        let Some(pair) = self.pairs.get(index).filter(|pair| pair.dead && pair.is_unused()) else { return };
        let number = pair.region.number;
        self.pairs.remove(index);
        self.pair_numbers.give(number);
        self.outbox.send(ToControl::PairGone(number));
    }

    /// A client's entry is about to go: what it held is given back, its pair regions end with their last connection.
    pub(super) fn drop_pairs_of(&mut self, client: u32) {
        let ends = self.clients.get_mut(client).map_or(Vec::new(), Client::take_ends);
        for end in ends {
            self.release(Some(end));
        }
        self.pairs_of.retain(|key, _| key.0 != client && key.1 != client);
        let of_client: Vec<u32> =
            self.pairs.iter().filter(|(_, pair)| pair.clients.contains(&client)).map(|(i, _)| i).collect();
        for index in of_client {
            if let Some(pair) = self.pairs.get_mut(index) {
                pair.dead = true;
                // The index may soon be another client's.
                pair.clients = pair.clients.map(|c| if c == client { u32::MAX } else { c });
            }
            self.drop_if_dead(index);
        }
    }

    /// The flow at the other end.
    fn peer_of(&self, index: u32) -> Option<u32> {
        let flow = self.flows.get(index)?;
        let tuple = flow.tuple.reversed();
        if let Path::Local(peer) = flow.path
            && self.flows.get(peer).is_some_and(|f| f.tuple == tuple)
        {
            return Some(peer);
        }
        match self.table.get(&tuple) {
            Some(Entry::Flow(peer)) => Some(peer),
            _ => None,
        }
    }

    fn has_closed(&self, index: u32) -> bool {
        self.flows.get(index).is_some_and(|flow| flow.closed_by_program)
    }

    /// A program moved an index and asks us to tell the other: what came of it is derived from the slot.
    pub(super) fn nudge(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let (Some(end), tuple) = (flow.pair, flow.tuple.reversed()) else { return };
        let Some(slot) = self.slot_of(end) else { return };
        if slot
            .sides
            .iter()
            .any(|side| [&side.tail, &side.head].map(|p| p.load(Ordering::Relaxed)).contains(&FROZEN))
        {
            return self.uncut(end); // Not by us: the programs of this connection get what they asked for.
        }
        let other = 1 - end.side;
        let waiting = slot.waiting(other);
        match self.peer_of(index) {
            // RFC 1122 §4.2.2.13: data for a program that has closed is answered by a reset.
            Some(peer) if waiting > 0 && self.has_closed(peer) => self.abort(peer),
            // The same for one that wants to neither send nor receive: its TCB knows the rule.
            Some(peer) if self.throw_away_for(peer, slot, other) => self.send_nothing(index),
            Some(peer) => {
                let mut events = if waiting > 0 { libc::EPOLLIN | libc::EPOLLRDNORM } else { 0 };
                let [own, theirs] = slot.from(end.side);
                if events != 0 && own.urgent.load(Ordering::Relaxed) != 0 {
                    events |= libc::EPOLLPRI;
                }
                if theirs.wish.load(Ordering::SeqCst) != 0 && slot.waiting(end.side) <= STREAM_MAX / 3 * 2 {
                    theirs.wish.store(0, Ordering::SeqCst);
                    events |= libc::EPOLLOUT | libc::EPOLLWRNORM;
                }
                self.news(peer, events);
            }
            // The other end is gone altogether: a segment finds that out, as it would on a wire. While a handshake is
            // under way its timers do that.
            None if waiting > 0 && self.table.get(&tuple).is_none() => self.send_nothing(index),
            None => {}
        }
    }

    /// The program of flow `index` wants neither to send nor to receive any more: a sender asks us from now on.
    pub(super) fn deafen(&mut self, index: u32) {
        self.close_side(index);
        let end = self.flows.get(index).and_then(|flow| flow.pair);
        let Some((end, slot)) = end.and_then(|end| Some((end, self.slot_of(end)?))) else { return };
        let [_, other] = slot.from(end.side);
        if let Some(flow) = self.flows.get_mut(index) {
            flow.deaf_at = Some(other.tail.load(Ordering::Acquire));
        }
    }

    /// Takes back what came for a program that had shut both directions down; whether there was something.
    fn throw_away_for(&self, index: u32, slot: &Slot, side: u32) -> bool {
        let [_, sender] = slot.from(side);
        match self.flows.get(index).and_then(|flow| flow.deaf_at) {
            Some(at) if sender.tail.load(Ordering::Acquire) != at => {
                sender.tail.store(at, Ordering::Release);
                true
            }
            _ => false,
        }
    }

    /// Sends a segment to an end that will answer with a reset, so that both TCBs go the way they would on a wire. Its one
    /// byte means nothing: nobody is there to receive it.
    fn send_nothing(&mut self, index: u32) {
        self.user(index, UserCall::Send { added: 1, more: false, urgent: false });
        self.list_transmit(index);
    }

    /// A process of a client died, perhaps between publishing and telling: the others look at everything.
    pub(super) fn nudge_all_of(&mut self, client: u32) {
        let flows: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.client == client && flow.pair.is_some())
            .map(|(index, _)| index)
            .collect();
        for index in flows {
            self.nudge(index);
            if let Some(peer) = self.peer_of(index) {
                self.nudge(peer);
            }
        }
    }

    /// The program of flow `index` closes: whether bytes are left unread. From now on a sender asks us.
    pub(super) fn close_side(&self, index: u32) -> bool {
        let Some(end) = self.flows.get(index).and_then(|flow| flow.pair) else { return false };
        let Some(slot) = self.slot_of(end) else { return false };
        let [own, _] = slot.from(end.side);
        own.closed.store(1, Ordering::SeqCst);
        // Pairs with the sender's: our mark before our look, its bytes before its look.
        fence(Ordering::SeqCst);
        slot.waiting(end.side) > 0
    }
}
