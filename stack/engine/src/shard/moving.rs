//! A socket changes its client: from the program whose region it was in to the engine's own [`crate::relay`].
//!
//! The connection notices nothing. Positions keep their lower bits, so the bytes stand at the same offsets in the
//! new buffers, those that came out of order too. The old slot says [`status::MOVED`] until the last descriptor is gone.

use std::sync::atomic::Ordering;

use utcp_abi::Region;
use utcp_abi::freeze::{FROZEN, advance, freeze};
use utcp_abi::set::Member;
use utcp_abi::socket::{BufRef, Socket, first_position, intent, option, status};

use super::Shard;
use super::client::{Client, SlotUse};
use super::flow::Stream;
use super::streams::own_buffers;

/// One socket of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Client number.
    pub client: u32,
    /// Socket slot.
    pub sock: u32,
}

/// Whether `socket` stands on the descriptor with `token`: one that was closed has left it to another.
pub fn stands_on(socket: &Socket, token: u32) -> bool {
    socket.token.load(Ordering::Acquire) == token
        && socket.intent.load(Ordering::Acquire) & intent::CLOSE == 0
}

impl Shard {
    /// Moves the socket at `from`, whose descriptor has `token`, to the free slot at `to`; false if there is nothing to move.
    pub(super) fn move_socket(&mut self, from: Place, token: u32, to: Place) -> bool {
        let index = |number| self.by_number.get(&number).copied();
        let (Some(from_client), Some(to_client)) = (index(from.client), index(to.client)) else {
            return false;
        };
        // What the program did until now comes first.
        self.take_commands();
        let Some(old_region) = self.clients.get(from_client).map(|c| c.region) else { return false };
        let Some(old) = old_region.socket(from.sock).filter(|socket| stands_on(socket, token)) else {
            return false;
        };
        self.on_dirty(from_client, from.sock);
        if let Some(end) = self.clients.get(from_client).and_then(|client| client.end(from.sock)) {
            self.uncut(end); // The relay can't reach what is cut through.
        }
        let Some(used) = self.clients.get(from_client).map(|c| c.slot(from.sock)) else { return false };
        // Programs that hold it may be reading and writing: from here on nothing of that counts.
        let positions = [freeze(&old.tx_tail), freeze(&old.rx_head)];
        // Of a program that closes it and the engine that gives its descriptor away one sees the other (`shim/src/close.rs`).
        let closed = old.intent.load(Ordering::SeqCst) & intent::CLOSE != 0;
        let moved = match used {
            _ if closed => false,
            SlotUse::Flow(flow) => {
                self.catch_up_to(flow, old, positions) && self.move_flow(flow, old, to_client, to.sock)
            }
            SlotUse::Ended(rx) => {
                self.move_rest((from_client, from.sock, positions[1]), rx, old, to_client, to.sock)
            }
            SlotUse::Unknown | SlotUse::Listener => false,
        };
        if moved {
            // Programs that still hold it find the kernel's descriptor in its place.
            old.status.fetch_or(status::MOVED, Ordering::AcqRel);
        } else {
            let _ = advance(&old.tx_tail, FROZEN, positions[0]);
            let _ = advance(&old.rx_head, FROZEN, positions[1]);
        }
        self.tell_socket(from_client, from.sock, u32::MAX);
        self.ring_touched();
        moved
    }

    /// Frees the slot that a moved socket left behind.
    pub(super) fn on_left(&mut self, place: Place, generation: u32) {
        let Some(client) = self.by_number.get(&place.client).and_then(|&index| self.clients.get_mut(index))
        else {
            return;
        };
        let is_same = client.region.socket(place.sock).is_some_and(|old| generation_of(old) == generation);
        if is_same && matches!(client.slot(place.sock), SlotUse::Ended(_)) {
            let end = client.free_slot(place.sock);
            self.release(end);
        }
    }

    fn move_flow(&mut self, index: u32, old: &Socket, to_client: u32, to_sock: u32) -> bool {
        let Some(flow) = self.flows.get(index) else { return false };
        let (from_client, from_sock, was_rx, was_tx) = (flow.client, flow.sock, flow.rx, flow.tx);
        let Some(client) = self.clients.get_mut(to_client) else { return false };
        let (own_rx, own_tx) = own_buffers(to_sock);
        let shift = first_position(to_sock, generation(client.region, to_sock))
            .wrapping_sub(first_position(from_sock, generation_of(old)));
        let Some(rx) = client.copy_of(&was_rx, own_rx, shift) else { return false };
        let Some(tx) = client.copy_of(&was_tx, own_tx, shift) else {
            client.buffers.give(rx.buf());
            return false;
        };
        let Some(new) = client.region.socket(to_sock) else { return false };
        copy_words(old, new, to_sock);
        publish_rx(new, &rx);
        new.tx_buf.store(tx.buf().0, Ordering::Relaxed);
        new.tx_head.store(tx.head, Ordering::Relaxed);
        new.tx_tail.store(tx.tail, Ordering::Relaxed);
        client.flows += 1;
        client.set_slot(to_sock, SlotUse::Flow(index));
        if let Some(flow) = self.flows.get_mut(index) {
            (flow.client, flow.sock, flow.rx, flow.tx, flow.tx_urgent) = (to_client, to_sock, rx, tx, 0);
            (flow.waiting, flow.by_segments) = (None, true);
        }
        if let Some(client) = self.clients.get_mut(from_client) {
            client.flows -= 1;
            client.buffers.give(was_tx.buf());
            client.set_slot(from_sock, SlotUse::Ended(was_rx.buf()));
        }
        true
    }

    /// The connection is over, but the program has not read all.
    fn move_rest(
        &mut self,
        (from_client, from_sock, head): (u32, u32, u64),
        buf: BufRef,
        old: &Socket,
        to_client: u32,
        to_sock: u32,
    ) -> bool {
        let Some(region) = self.clients.get(from_client).map(|c| c.region) else { return false };
        let buf = if buf == BufRef::NONE { own_buffers(from_sock).0 } else { buf };
        let Some(base) = region.stream(buf) else { return false };
        let tail = old.rx_tail.load(Ordering::Acquire);
        if tail.wrapping_sub(head) > buf.capacity() {
            return false; // Nonsense of the program's: it gets nothing moved.
        }
        // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which the client keeps.
        let mut was = unsafe { Stream::new(buf, base, head) };
        was.tail = tail;
        let Some(client) = self.clients.get_mut(to_client) else { return false };
        let shift = first_position(to_sock, generation(client.region, to_sock))
            .wrapping_sub(first_position(from_sock, generation_of(old)));
        let Some(rx) = client.copy_of(&was, own_buffers(to_sock).0, shift) else { return false };
        let Some(new) = client.region.socket(to_sock) else { return false };
        copy_words(old, new, to_sock);
        publish_rx(new, &rx);
        client.set_slot(to_sock, SlotUse::Ended(rx.buf()));
        true
    }
}

fn generation(region: Region, sock: u32) -> u32 {
    region.socket(sock).map_or(0, generation_of)
}

fn generation_of(socket: &Socket) -> u32 {
    socket.generation.load(Ordering::Relaxed)
}

impl Client {
    /// A stream like `was` in memory of this client, `own` if that is large enough, its positions moved on by `shift`.
    fn copy_of(&mut self, was: &Stream, own: BufRef, shift: u64) -> Option<Stream> {
        let buf = if was.capacity() <= own.capacity() { own } else { self.buffers.take(was.capacity())? };
        if buf.capacity() != was.capacity() {
            self.buffers.give(buf);
            return None;
        }
        let base = self.region.stream(buf)?;
        // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which the client keeps.
        let mut new = unsafe { Stream::new(buf, base, was.head.wrapping_add(shift)) };
        new.tail = was.tail.wrapping_add(shift);
        let mut at = new.head;
        was.read(was.head, was.capacity() as u32, |bytes| {
            new.write(at, bytes);
            at = at.wrapping_add(bytes.len() as u64);
        });
        Some(new)
    }
}

/// What a socket is, apart from its streams. The relay is its only set.
fn copy_words(old: &Socket, new: &Socket, to_sock: u32) {
    new.options.copy_from(&old.options);
    // The relay's bytes have waited already, and nobody can ask for it afterwards.
    new.options.flags.fetch_or(option::NODELAY, Ordering::Relaxed);
    new.local.store(old.local.load());
    new.remote.store(old.remote.load());
    for (to, from) in [(&new.file, &old.file), (&new.shard, &old.shard), (&new.owner_pid, &old.owner_pid)] {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    new.error.store(old.error.load(Ordering::Relaxed), Ordering::Relaxed);
    new.cause.store(old.cause.load(Ordering::Relaxed), Ordering::Relaxed);
    let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLERR | libc::EPOLLHUP) as u16;
    let member = Member { set: crate::relay::SET, interest: to_sock, events, exclusive: false };
    new.members[0].store(member.pack(), Ordering::SeqCst);
    let shut = old.intent.load(Ordering::Acquire) & (intent::SHUT_RD | intent::SHUT_WR);
    let wanted = intent::OWNED | intent::OPTIONS | shut;
    new.intent.store(intent::of(new.generation.load(Ordering::Relaxed), wanted), Ordering::Release);
    new.status.store(old.status.load(Ordering::Acquire), Ordering::Release);
}

fn publish_rx(new: &Socket, rx: &Stream) {
    new.rx_buf.store(rx.buf().0, Ordering::Relaxed);
    new.rx_head.store(rx.head, Ordering::Relaxed);
    new.rx_seen.store(rx.head, Ordering::Relaxed);
    new.rx_tail.store(rx.tail, Ordering::Release);
}
