//! Memory of byte streams: small at first, larger when the window limits the flow.
//!
//! ```text
//!  arena  [ 16 KiB × 2 per socket slot, at a fixed place ][ shard 0: 64K.. | 256K.. | 1M.. | 4M.. ][ shard 1 … ]
//! ```
//!
//! A flow begins in the two buffers of its slot, so a connection costs no allocation and an idle one the pages
//! that it touched. A larger buffer comes from the shard's part of the client's arena. Moving keeps every
//! position: the bytes between head and tail (and those that came out of order) are copied, then the
//! reference is published; a reader that copied from the old place meanwhile sees that the reference
//! changed and reads again.

use std::sync::atomic::Ordering;

use utcp_abi::layout::{SHARDS_MAX, SOCKETS_MAX};
use utcp_abi::socket::{BufRef, Options, Socket, first_position};
use utcp_proto::{State, UserCall};

use super::flow::{Flow, Stream};
use super::{Shard, client::Client};

/// log2 of the bytes of a slot's own buffers.
pub const STREAM_LOG2: u32 = 14;
/// log2 of the largest buffer.
pub const STREAM_LOG2_MAX: u32 = 22;
/// Bytes that a connection's streams begin with at most, whoever asks for more: they grow as they are used.
pub const FIRST_MAX: u32 = 1 << 17;
/// log2 of the buffer sizes above the first.
const CLASSES: [u32; 4] = [16, 18, 20, STREAM_LOG2_MAX];

/// Where the shards' parts of the arena begin: behind the slots' own buffers.
const SHARED_START: u64 = (SOCKETS_MAX as u64 * 2) << STREAM_LOG2;
/// Bytes of one class in one shard's part of an arena of `arena` bytes.
const fn class_len(arena: u64) -> u64 {
    (arena.saturating_sub(SHARED_START) / SHARDS_MAX as u64 / CLASSES.len() as u64)
        & !((1 << STREAM_LOG2_MAX) - 1)
}

/// The larger buffers of one client that one shard gives out.
#[derive(Debug)]
pub struct Buffers {
    shard: u64,
    /// Bytes of one class.
    class_len: u64,
    /// Per class: buffers given back, and how many were ever taken.
    free: [Vec<u32>; CLASSES.len()],
    used: [u32; CLASSES.len()],
}

impl Buffers {
    /// Nothing is given out yet of an arena of `arena` bytes.
    #[must_use]
    pub fn new(shard: u32, arena: u64) -> Self {
        let class_len = class_len(arena);
        Self { shard: u64::from(shard), class_len, free: Default::default(), used: [0; CLASSES.len()] }
    }

    /// Where `class` begins in this shard's part.
    fn base(&self, class: usize) -> u64 {
        SHARED_START + (self.shard * CLASSES.len() as u64 + class as u64) * self.class_len
    }

    /// A buffer of at least `wanted` bytes, of the largest class if it is more; `None`: all are in use.
    pub(super) fn take(&mut self, wanted: u64) -> Option<BufRef> {
        let fits = |log2: &u32| 1u64 << log2 >= wanted;
        let class = CLASSES.iter().position(fits).unwrap_or(CLASSES.len() - 1);
        let log2 = CLASSES[class];
        let index = match self.free[class].pop() {
            Some(index) => index,
            None if (u64::from(self.used[class]) + 1) << log2 <= self.class_len => {
                self.used[class] += 1;
                self.used[class] - 1
            }
            None => return None,
        };
        Some(BufRef::new(self.base(class) + (u64::from(index) << log2), log2))
    }

    /// Gives a buffer back; a slot's own buffer stays where it is.
    pub fn give(&mut self, buf: BufRef) {
        let Some(class) = CLASSES.iter().position(|&log2| 1u64 << log2 == buf.capacity()) else { return };
        if let Some(offset) = buf.offset().checked_sub(self.base(class)) {
            self.free[class].push((offset >> CLASSES[class]) as u32);
        }
    }
}

/// The own buffers of slot `sock`: (rx, tx).
#[must_use]
pub fn own_buffers(sock: u32) -> (BufRef, BufRef) {
    let at = |n: u64| BufRef::new(n << STREAM_LOG2, STREAM_LOG2);
    (at(u64::from(sock) * 2), at(u64::from(sock) * 2 + 1))
}

/// Bytes that a program may queue at most: SO_SNDBUF, if it was set.
pub fn send_limit(options: &Options) -> Option<u64> {
    Some(u64::from(options.sndbuf.load(Ordering::Relaxed))).filter(|&bytes| bytes > 0)
}

impl Client {
    /// The buffers that a new flow on slot `sock` begins with: the slot's own if they do, larger ones if there are any.
    pub fn first_buffers(&mut self, sock: u32, rx: u64, tx: u64) -> Option<(BufRef, BufRef)> {
        let (own_rx, own_tx) = own_buffers(sock);
        let rx_buf = if rx <= own_rx.capacity() { own_rx } else { self.buffers.take(rx)? };
        // The TCB was promised room for what it advertises; what the program queues waits if need be.
        if rx_buf.capacity() < rx {
            self.buffers.give(rx_buf);
            return None;
        }
        let tx_buf = if tx <= own_tx.capacity() { None } else { self.buffers.take(tx) };
        Some((rx_buf, tx_buf.unwrap_or(own_tx)))
    }

    /// Streams for slot `sock` with room for what two others have, and the rx stream's bytes: (rx, tx). `None`: there is
    /// no such room.
    pub(super) fn streams_like(&mut self, sock: u32, old: &Stream, tx: u64) -> Option<(Stream, Stream)> {
        let first = first_position(sock, self.region.socket(sock)?.generation.load(Ordering::Relaxed));
        let (rx, tx) = self.first_buffers(sock, old.capacity(), tx)?;
        let stream = |buf| {
            let base = self.region.stream(buf)?;
            // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which this entry keeps mapped.
            Some(unsafe { Stream::new(buf, base, first) })
        };
        let (mut rx, tx) = (stream(rx)?, stream(tx)?);
        // Out-of-order bytes lie anywhere behind the tail.
        let mut at = first;
        old.read(old.head, old.capacity() as u32, |bytes| {
            rx.write(at, bytes);
            at = at.wrapping_add(bytes.len() as u64);
        });
        rx.tail = first.wrapping_add(old.len());
        Some((rx, tx))
    }

    /// A buffer for `wanted` bytes, larger than `now`, and the stream over it with `now`'s positions and bytes.
    fn larger(&mut self, now: &Stream, wanted: u64, kept: u64) -> Option<(BufRef, Stream)> {
        if wanted <= now.capacity() || now.capacity() >= 1 << STREAM_LOG2_MAX {
            return None;
        }
        let buf = self.buffers.take(wanted)?;
        if buf.capacity() <= now.capacity() {
            self.buffers.give(buf);
            return None;
        }
        let base = self.region.stream(buf)?;
        // SAFETY: `Region::stream` checked that the buffer lies in the mapping, which this entry keeps mapped.
        let new = unsafe { now.moved(buf, base) };
        let mut at = now.head;
        now.read(now.head, kept as u32, |bytes| {
            new.write(at, bytes);
            at = at.wrapping_add(bytes.len() as u64);
        });
        Some((buf, new))
    }
}

impl Shard {
    /// The window limits the peer: a larger rx stream, if there is one.
    pub(super) fn grow_rx(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.pair.is_none() && flow.uncounted == 0)
        else {
            return;
        };
        let (most, asked) = (flow.tcb.config().recv_capacity_max, u64::from(flow.tcb.recv_capacity_wanted()));
        let Some(client) = self.clients.get_mut(flow.client) else { return };
        let region = client.region;
        let Some(socket) = region.socket(flow.sock) else { return };
        // One that took over what was under way in a pair region is larger than the window that was told, also where it
        // can't grow.
        if asked > flow.rx.capacity() {
            let wanted = asked.max(flow.rx.capacity() * 2);
            // Out-of-order bytes lie anywhere in the buffer: all of it is kept.
            if let Some((buf, stream)) = client.larger(&flow.rx, wanted, flow.rx.capacity()) {
                let old = std::mem::replace(&mut flow.rx, stream);
                // SeqCst: a reader compares the reference after its copy.
                socket.rx_buf.store(buf.0, Ordering::SeqCst);
                client.buffers.give(old.buf());
            }
        }
        let capacity = (flow.rx.capacity() as u32).min(most);
        self.user(index, UserCall::SetRecvCapacity(capacity));
    }

    /// The program met a full tx stream while the connection could carry more: a larger one, if there is one.
    pub(super) fn grow_tx(&mut self, index: u32) {
        let tid = self.tid;
        // Where the bytes go is decided when the connection stands, and may be elsewhere (see `pairs`).
        let here = |flow: &&mut Flow| flow.pair.is_none() && flow.tcb.state() != State::SynSent;
        let Some(flow) = self.flows.get_mut(index).filter(here) else { return };
        let Some(client) = self.clients.get_mut(flow.client) else { return };
        let region = client.region;
        let Some(socket) = region.socket(flow.sock) else { return };
        let wanted =
            send_limit(&socket.options).unwrap_or_else(|| u64::from(flow.tcb.send_capacity_wanted()));
        if wanted <= flow.tx.capacity() || flow.closed_by_program {
            return;
        }
        // The program must not write meanwhile. If it does just now, another time will do: we never wait for it.
        if socket.tx_arbiter.try_take(tid).is_err() {
            return;
        }
        move_tx(client, flow, socket, wanted);
        socket.tx_arbiter.give();
    }
}

fn move_tx(client: &mut Client, flow: &mut Flow, socket: &Socket, wanted: u64) {
    // What was queued since the last look is in the old buffer, too.
    let tail = socket.tx_tail.load(Ordering::Acquire);
    let kept = tail.wrapping_sub(flow.tx.head);
    if kept > flow.tx.capacity() {
        return; // The next look at this socket finds the lie.
    }
    let Some((buf, stream)) = client.larger(&flow.tx, wanted, kept) else {
        return;
    };
    let old = std::mem::replace(&mut flow.tx, stream);
    socket.tx_buf.store(buf.0, Ordering::SeqCst);
    client.buffers.give(old.buf());
}
