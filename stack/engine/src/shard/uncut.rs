//! The end of cut-through before the end of the connection: from now on its bytes go by segments.
//!
//! It is needed when one of its sockets becomes another program's (exec, SCM_RIGHTS, a shared listener that changes hands): the new
//! holder can't reach the slot.
//!
//! ```text
//!  slot:   freeze both tails and heads (abi::freeze) ── what lies between is read out of the region's memfd
//!  reader: those bytes into its rx stream ── publish rx_buf, then tx_buf ── ring everybody
//! ```
//!
//! The bytes have been received already, as far as the sender was ever told, so they go into the reader's rx stream at once, whatever
//! has become of the sender. The TCBs never counted them ([`Flow::uncounted`]): the stream has room for them beside the window.
//! The slot stays taken until both sockets are free, because a program that was stopped in the middle of a copy may go on
//! writing there.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use utcp_abi::Region;
use utcp_abi::freeze::{FROZEN, accepted, freeze};
use utcp_abi::pair::{CLASSES, STREAM_MAX, Slot, stream_offset};
use utcp_abi::socket::{BufRef, Socket, status};
use utcp_abi::stream::pieces;
use utcp_proto::{State, UserCall};

use super::Shard;
use super::client::{Client, SlotUse};
use super::flow::{Flow, Stream};
use super::pairs::End;
use super::streams::own_buffers;
use crate::sys;

/// What was under way to one side, and where it stood.
#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    /// Bytes from the first of these to the urgent one, if that is among them.
    urgent: Option<u64>,
    /// The mark as the reader knows it.
    mark: u64,
    /// What its side had sent and received before.
    carried: [u64; 2],
}

/// A socket at one side.
type Holder = Option<(u32, u32)>;

impl Shard {
    /// The connection at `end` goes by segments from now on; nothing that it carries is lost. Without memory for what is under way,
    /// or if that makes no sense, it is reset.
    pub(super) fn uncut(&mut self, end: End) {
        let holders = self.pairs.get(end.pair).map_or([None; 2], |pair| pair.holders(end.slot));
        self.uncut_for(end, holders);
    }

    /// As [`Self::uncut`] of the connection of flow `connected`; the other side is flow `accepted`'s, which is not at the slot: its
    /// listener has changed hands during the handshake.
    pub(super) fn uncut_into(&mut self, connected: u32, accepted: u32) {
        let Some(end) = self.flows.get(connected).and_then(|flow| flow.pair) else { return };
        let Some(holder) = self.flows.get(accepted).map(|flow| (flow.client, flow.sock)) else { return };
        let [zero, _] = self.pairs.get(end.pair).map_or([None; 2], |pair| pair.holders(end.slot));
        self.uncut_for(end, [zero, Some(holder)]);
    }

    fn uncut_for(&mut self, end: End, holders: [Holder; 2]) {
        let Some(pair) = self.pairs.get_mut(end.pair) else { return };
        let Some(slot) = pair.uncut(end.slot) else { return };
        let (region, first) = (pair.region(), pair.reference(end).first_position());
        let regions = holders.map(|holder| {
            let (client, sock) = holder?;
            Some((self.clients.get(client)?.region, sock))
        });
        let rests = take_rests(region.fd(), (end.slot, first), slot, &regions);
        self.counters.uncut += 1;
        let (mut fits, is_sane) = (true, rests.is_some());
        for (holder, rest) in holders.into_iter().zip(rests.unwrap_or_default()) {
            fits &= self.take_over(holder, &rest);
        }
        if fits && is_sane {
            return;
        }
        for (client, sock) in holders.into_iter().flatten() {
            if let Some(SlotUse::Flow(flow)) = self.clients.get(client).map(|c| c.slot(sock)) {
                self.break_off(flow);
            }
        }
    }

    /// Ends a flow by a reset, of which its program hears, too.
    fn break_off(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        if let Some(socket) = region.socket(flow.sock) {
            socket.cause.store(libc::ECONNRESET, Ordering::Relaxed);
            socket.error.store(libc::ECONNRESET, Ordering::Release);
            socket.status.fetch_and(!status::CONNECTING, Ordering::AcqRel);
            socket.status.fetch_or(status::DEAD | status::HUP, Ordering::AcqRel);
        }
        self.news(index, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP);
        self.user(index, UserCall::Abort);
        self.list_transmit(index);
    }

    /// The window is what the stream has room for beside what was under way.
    fn widen(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index).filter(|flow| flow.uncounted > 0) else { return };
        let room = flow.rx.capacity().saturating_sub(flow.uncounted) as u32;
        let capacity = room.min(flow.tcb.config().recv_capacity_max);
        self.user(index, UserCall::SetRecvCapacity(capacity));
    }

    /// The socket of one side gets what was under way to it. False: there is no room.
    fn take_over(&mut self, holder: Holder, rest: &Rest) -> bool {
        let Some((client_index, sock)) = holder else { return true };
        let Some(client) = self.clients.get_mut(client_index) else { return true };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return true };
        let fits = match client.slot(sock) {
            SlotUse::Flow(index) => {
                let Some(flow) = self.flows.get_mut(index) else { return true };
                let unread = flow.closed_by_program && !rest.bytes.is_empty();
                let fits = flow.closed_by_program || receive(client, flow, socket, rest);
                flow.pair = None;
                flow.by_segments = true;
                flow.deaf_at = None;
                let [sent, received] = rest.carried;
                flow.carried = [flow.carried[0] + sent, flow.carried[1] + received];
                publish(socket, flow);
                if unread {
                    self.abort(index); // RFC 1122 §4.2.2.13, as if we had been asked in time.
                }
                self.widen(index);
                self.news(index, libc::EPOLLOUT | libc::EPOLLWRNORM | input_events(rest));
                fits
            }
            SlotUse::Ended(rx) => receive_ended(client, sock, rx, socket, rest),
            SlotUse::Unknown | SlotUse::Listener => true,
        };
        // Those asleep on the bells of the slot, too.
        self.tell_socket(client_index, sock, u32::MAX);
        fits
    }
}

fn input_events(rest: &Rest) -> i32 {
    let input = if rest.bytes.is_empty() { 0 } else { libc::EPOLLIN | libc::EPOLLRDNORM };
    input | if rest.urgent.is_some() { libc::EPOLLPRI } else { 0 }
}

/// Freezes a slot, whose streams began at `first`, and reads what lies in it: for side 0, for side 1. `None`: the programs wrote
/// nonsense.
fn take_rests(
    fd: &OwnedFd,
    (slot_index, first): (u32, u64),
    slot: &Slot,
    regions: &[Option<(Region, u32)>; 2],
) -> Option<[Rest; 2]> {
    let tails = [0, 1].map(|side| freeze(&slot.sides[side].tail));
    let held = [0, 1].map(|side| {
        let socket = regions[side].as_ref().and_then(|(region, sock)| region.socket(*sock));
        socket.map_or(0, |socket| freeze(&socket.tx_held))
    });
    let heads = [0, 1].map(|side| freeze(&slot.sides[side].head));
    let mut rests = [Rest::default(), Rest::default()];
    for (reader, rest) in rests.iter_mut().enumerate() {
        let writer = 1 - reader;
        let head = heads[reader];
        let end = accepted(tails[writer], held[writer], STREAM_MAX);
        let class = slot.sides[writer].class.load(Ordering::Acquire);
        let len = end.wrapping_sub(head);
        if head == FROZEN || end == FROZEN || !CLASSES.contains(&class) || len > 1 << class {
            return None;
        }
        let base = stream_offset(slot_index, writer as u32, class)?;
        rest.bytes = vec![0; len as usize];
        let mut into = rest.bytes.as_mut_slice();
        for piece in pieces(1 << class, head, len) {
            let (now, later) = into.split_at_mut(piece.len);
            sys::read_at(fd, now, base + piece.offset).ok()?;
            into = later;
        }
        rest.mark = slot.sides[writer].urgent.load(Ordering::Acquire);
        let ahead = rest.mark.wrapping_sub(1).wrapping_sub(head);
        rest.urgent = (rest.mark != 0 && ahead < len).then_some(ahead);
        rest.carried[1] = end.wrapping_sub(first);
    }
    let [zero, one] = &mut rests;
    (zero.carried[0], one.carried[0]) = (one.carried[1], zero.carried[1]);
    Some(rests)
}

/// Puts `rest` into the rx stream of a flow, a larger one if need be. False: there is none.
fn receive(client: &mut Client, flow: &mut Flow, socket: &Socket, rest: &Rest) -> bool {
    let len = rest.bytes.len() as u64;
    if len == 0 {
        return true;
    }
    // Beside what the window promises the peer, and at least as much again: a reader tells what it took once that is a quarter of
    // the stream ([`Socket::taken_step`]), and the window must be more than that, or each one ends in a probe's time.
    let window = u64::from(flow.tcb.config().recv_capacity).min(flow.rx.capacity());
    let sizes = [window.max(len) + len, window + len].into_iter();
    let larger =
        sizes.take_while(|wanted| *wanted > flow.rx.capacity()).find_map(|wanted| room(client, wanted));
    if let Some((buf, base)) = larger {
        // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which the client keeps.
        let stream = unsafe { flow.rx.moved(buf, base) };
        client.buffers.give(std::mem::replace(&mut flow.rx, stream).buf());
    } else if window + len > flow.rx.capacity() {
        return false;
    }
    fill(&mut flow.rx, socket, rest);
    flow.uncounted = len;
    true
}

/// As [`receive`], where the connection is over and its program has not read all.
fn receive_ended(client: &mut Client, sock: u32, rx: BufRef, socket: &Socket, rest: &Rest) -> bool {
    let region = client.region;
    let mut buf = if rx == BufRef::NONE { own_buffers(sock).0 } else { rx };
    if rest.bytes.len() as u64 > buf.capacity() {
        let Some((larger, _)) = room(client, rest.bytes.len() as u64) else { return false };
        client.buffers.give(std::mem::replace(&mut buf, larger));
    }
    client.set_slot(sock, SlotUse::Ended(buf));
    let Some(base) = region.stream(buf) else { return false };
    // SAFETY: as in `receive`.
    let mut stream = unsafe { Stream::new(buf, base, socket.rx_tail.load(Ordering::Relaxed)) };
    fill(&mut stream, socket, rest);
    socket.rx_buf.store(buf.0, Ordering::SeqCst);
    socket.tx_buf.store(0, Ordering::SeqCst);
    true
}

fn room(client: &mut Client, wanted: u64) -> Option<(BufRef, *mut u8)> {
    let buf = client.buffers.take(wanted)?;
    match client.region.stream(buf).filter(|_| buf.capacity() >= wanted) {
        Some(base) => Some((buf, base)),
        None => {
            client.buffers.give(buf);
            None
        }
    }
}

/// Bytes and marks, not yet where they are.
fn fill(stream: &mut Stream, socket: &Socket, rest: &Rest) {
    stream.write(stream.tail, &rest.bytes);
    if let Some(ahead) = rest.urgent {
        let mark = stream.tail.wrapping_add(ahead).wrapping_add(1);
        // A byte that was taken by MSG_OOB stays taken.
        let taken = &socket.rx_urgent_taken;
        let _ = taken.compare_exchange(rest.mark, mark, Ordering::AcqRel, Ordering::Relaxed);
        socket.rx_urgent.store(mark, Ordering::Release);
    }
    stream.tail = stream.tail.wrapping_add(rest.bytes.len() as u64);
    socket.rx_seen.store(stream.head, Ordering::Release);
    socket.rx_tail.store(stream.tail, Ordering::Release);
}

/// Says to a program where its streams are.
fn publish(socket: &Socket, flow: &Flow) {
    // First where the answer comes: who finds the new tx stream must tell the engine of bytes, not the peer.
    socket.rx_buf.store(flow.rx.buf().0, Ordering::SeqCst);
    let undecided = flow.tcb.state() == State::SynSent && !socket.is(status::CONNECTED);
    socket.tx_buf.store(if undecided { 0 } else { flow.tx.buf().0 }, Ordering::SeqCst);
}
