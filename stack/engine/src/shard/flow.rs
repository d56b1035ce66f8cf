//! A flow: one connection's TCB, its two byte streams, and who owns it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use utcp_abi::PeerCorrupt;
use utcp_abi::socket::{BufRef, Socket};
use utcp_abi::stream::{check_head, check_tail, pieces};
use utcp_proto::{FourTuple, Tcb};

use super::pairs::End;
use super::wheel::Handle;

/// A byte stream's memory and our own copy of both indices. What the program writes is checked against them.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    base: *mut u8,
    buf: BufRef,
    capacity: u64,
    /// First byte that the reader has not released.
    pub head: u64,
    /// Behind the last byte that the writer published.
    pub tail: u64,
}

// SAFETY: the memory is the client's region, which the shard keeps mapped while it has flows in it.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream over buffer `buf`, which is mapped at `base`, empty at `position`.
    ///
    /// # Safety
    /// The buffer's bytes stay mapped at `base` as long as the stream is used.
    #[must_use]
    pub unsafe fn new(buf: BufRef, base: *mut u8, position: u64) -> Self {
        Self { base, buf, capacity: buf.capacity(), head: position, tail: position }
    }

    /// The same positions over another buffer; its bytes are the caller's to copy.
    ///
    /// # Safety
    /// As [`Stream::new`].
    #[must_use]
    pub unsafe fn moved(&self, buf: BufRef, base: *mut u8) -> Self {
        Self { base, buf, capacity: buf.capacity(), ..*self }
    }

    /// Its buffer.
    #[must_use]
    pub fn buf(&self) -> BufRef {
        self.buf
    }

    /// Bytes it can hold.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Where the byte at `position` is.
    #[must_use]
    pub fn address(&self, position: u64) -> *const u8 {
        self.base.wrapping_add((position & self.capacity.wrapping_sub(1)) as usize)
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.tail.wrapping_sub(self.head)
    }

    /// Calls `each` with the (at most two) runs of bytes from `position`.
    pub fn read(&self, position: u64, len: u32, mut each: impl FnMut(&[u8])) {
        for piece in pieces(self.capacity, position, u64::from(len)) {
            if piece.len > 0 {
                // SAFETY: `pieces` stays inside the capacity that `new` was promised. The program may change
                // the bytes meanwhile; they are bytes, any value will do, and they are read once.
                each(unsafe { std::slice::from_raw_parts(self.base.add(piece.offset), piece.len) });
            }
        }
    }

    /// Copies `from` into the stream at `position`.
    pub fn write(&self, position: u64, from: &[u8]) {
        let mut from = from;
        for piece in pieces(self.capacity, position, from.len() as u64) {
            let (now, later) = from.split_at(piece.len);
            // SAFETY: as in `read`; the source is a frame or another client's region, never this buffer.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), self.base.add(piece.offset), now.len()) };
            from = later;
        }
    }
}

/// How a flow's segments travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// To another flow of this shard; the index is where it was last seen.
    Local(u32),
    /// Over a device.
    Device {
        /// Which of the shard's ports.
        port: u32,
        /// Link address of the next hop, once known.
        next_hop: [u8; 6],
    },
}

/// What has to be told to a flow's program at the end of the batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct News {
    /// EPOLL bits that became true.
    pub events: u32,
    /// It stands in the list of flows with news.
    pub listed: bool,
}

/// One connection, a whole number of cache lines. What every segment touches comes first, and the TCB begins with it: see
/// [`Flow::HOT`].
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Flow {
    /// Where the peer's bytes ended when the program had shut both directions down, if they go past the engine. (First of all,
    /// because the slab tells by it whether there is a flow.)
    pub deaf_at: Option<u64>,
    /// Engine → program.
    pub rx: Stream,
    /// Program → engine; bytes stay until they are acknowledged.
    pub tx: Stream,
    /// Client, by its index in the shard.
    pub client: u32,
    /// Socket slot.
    pub sock: u32,
    /// How its segments travel.
    pub path: Path,
    /// Its place in the timer wheel and when it is due there.
    pub timer: Option<(Handle, u64)>,
    /// What to tell.
    pub news: News,
    /// The intent bits that were carried out.
    pub done: u32,
    /// TCP_NOTSENT_LOWAT, bytes.
    pub lowat: u32,
    /// The program has found the tx stream full and waits for room.
    pub waits_for_room: bool,
    /// It stands in the list of flows to transmit for.
    pub transmit_listed: bool,
    /// The program has closed it.
    pub closed_by_program: bool,
    /// The TCB is done: drop the flow after its last segments are out.
    pub finished: bool,
    /// Enter TIME-WAIT instead of vanishing.
    pub time_wait: bool,
    /// The peer's FIN came.
    pub rx_fin: bool,
    /// It has no place in a pair region and never gets one (again).
    pub by_segments: bool,
    /// Its name.
    pub tuple: FourTuple,
    /// It was opened fast at this listener, and its handshake is not complete.
    pub early: Option<u32>,
    /// The program's urgent mark as last seen.
    pub tx_urgent: u64,
    /// First bytes of the rx stream that came by a pair region: the TCB does not know of them.
    pub uncounted: u64,
    /// Its bytes don't: they are there, and both streams stay empty.
    pub(super) pair: Option<End>,
    /// The arithmetic.
    pub tcb: Tcb,
    /// The listener in whose accept queue it waits: (client, socket slot).
    pub waiting: Option<u32>,
    /// Bytes sent and received by a pair region before.
    pub carried: [u64; 2],
    /// Bytes are held back in a pair region: the peer's end of the stream as last seen, and when to look again, ns.
    pub held: Option<(u64, u64)>,
}

impl Flow {
    /// Bytes of a flow that its segments touch: two runs of them.
    pub const HOT: [Range<usize>; 2] = {
        let [first, second] = Tcb::HOT;
        let tcb = std::mem::offset_of!(Self, tcb);
        [0..tcb + first.end, tcb + second.start..tcb + second.end]
    };
    /// Where that stands which tells whether a timer that fired is due.
    pub const TIMING: [usize; 3] = [
        std::mem::offset_of!(Self, timer),
        std::mem::offset_of!(Self, path),
        std::mem::offset_of!(Self, tcb) + Tcb::TIMERS_AT,
    ];

    /// Takes what the program queued since the last look, up to `tail`: bytes added.
    ///
    /// # Errors
    /// [`PeerCorrupt`].
    pub fn take_queued(&mut self, tail: u64) -> Result<u32, PeerCorrupt> {
        let added = check_tail(self.tx.tail, tail, self.tx.head, self.tx.capacity)?;
        self.tx.tail = tail;
        Ok(added as u32)
    }

    /// Of `added` bytes that were just taken, how many end with one that is urgent, if any.
    pub fn take_urgent(&mut self, socket: &Socket, added: u32) -> Option<u32> {
        let mark = socket.tx_urgent.load(Ordering::Acquire);
        if mark == self.tx_urgent {
            return None;
        }
        self.tx_urgent = mark;
        let behind = self.tx.tail.wrapping_sub(mark);
        // A mark outside the new bytes is nonsense, and stands for nothing.
        (behind < u64::from(added)).then(|| added - behind as u32)
    }

    /// Takes what the program consumed since the last look: bytes freed in rx.
    ///
    /// # Errors
    /// [`PeerCorrupt`].
    pub fn take_consumed(&mut self, socket: &Socket) -> Result<u32, PeerCorrupt> {
        let head = socket.rx_head.load(Ordering::Acquire);
        self.take_consumed_to(socket, head)
    }

    /// As [`Self::take_consumed`], up to `head`.
    ///
    /// # Errors
    /// [`PeerCorrupt`].
    pub fn take_consumed_to(&mut self, socket: &Socket, head: u64) -> Result<u32, PeerCorrupt> {
        let freed = check_head(self.rx.head, head, self.rx.tail)?;
        self.rx.head = head;
        socket.rx_seen.store(head, Ordering::Release);
        let uncounted = freed.min(self.uncounted);
        self.uncounted -= uncounted;
        Ok((freed - uncounted) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection costs little more than this in the engine; with many of them a message costs as much as the cache
    /// lines that it touches.
    #[test]
    fn a_flow_is_small() {
        let [first, second] = Flow::HOT;
        let hot = first.end.div_ceil(64) + (second.end.div_ceil(64) - second.start / 64);
        println!("flow {}, TCB {}, hot lines {hot}", size_of::<Flow>(), size_of::<Tcb>());
        assert_eq!(size_of::<Option<Flow>>(), size_of::<Flow>());
        assert!(size_of::<Flow>() <= 1536, "{}", size_of::<Flow>());
        assert!(hot <= 17, "{hot}");
    }
}
