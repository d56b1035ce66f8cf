//! A client program as a shard sees it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use utcp_abi::Region;
use utcp_abi::layout::{ARENA, ARENA_LEN, INFOS, REGION_LEN, SETS_MAX, SOCKETS_MANY, SOCKETS_MAX};
use utcp_abi::socket::{Addr, BufRef, Socket, first_position, intent, uses_overrun};

use super::pairs::End;
use super::streams::Buffers;
use crate::sys;

/// A client's region as the whole engine shares it.
#[derive(Debug)]
pub struct ClientRegion {
    mapping: sys::Mapping,
    fd: OwnedFd,
    /// What the client rings, per shard. Its own, so that a client which drains or fills its bell hurts itself alone;
    /// shards sleep on it edge-triggered and never read it.
    doorbells: Vec<OwnedFd>,
    /// The client's number.
    pub id: u32,
    /// Process id of the program that attached.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// The program's name.
    pub name: String,
    /// Bytes of the arena that the program maps.
    pub arena: u64,
}

impl ClientRegion {
    /// Makes and lays out a region.
    pub fn new(id: u32, pid: u32, uid: u32, name: String, shards: usize) -> std::io::Result<Self> {
        let fd = sys::memfd(c"utcp-region", REGION_LEN)?;
        sys::seal(&fd, libc::F_SEAL_SEAL)?;
        let mapping = sys::Mapping::new(&fd, REGION_LEN)?;
        sys::advise_large_pages(mapping.base().wrapping_add(SOCKETS_MANY), INFOS - SOCKETS_MANY);
        let doorbells = (0..shards).map(|_| sys::eventfd()).collect::<Result<_, _>>()?;
        let this = Self { mapping, fd, doorbells, id, pid, uid, name, arena: ARENA_LEN };
        let region = this.region();
        utcp_abi::region::format(region, id, SOCKETS_MAX);
        Ok(this)
    }

    /// The same for a program that maps no more than `len` bytes of it.
    #[must_use]
    pub fn of_len(self, len: usize) -> Self {
        Self { arena: len.saturating_sub(ARENA) as u64, ..self }
    }

    /// The view.
    #[must_use]
    pub fn region(&self) -> Region {
        // SAFETY: the mapping has REGION_LEN bytes, starts on a page, and lives as long as `self`; the
        // shard keeps `self` by Arc as long as it uses the view.
        unsafe { Region::new(self.mapping.base()) }
    }

    /// What the program rings, per shard.
    #[must_use]
    pub fn doorbells(&self) -> &[OwnedFd] {
        &self.doorbells
    }

    /// What the program maps.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// What a socket slot is to this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotUse {
    /// Nothing that this shard knows of: free, or fresh from `socket()`.
    #[default]
    Unknown,
    /// A flow.
    Flow(u32),
    /// A flow that ended; the program has not closed the socket yet and may read what is in this buffer.
    Ended(BufRef),
    /// A listener of this client.
    Listener,
}

impl SlotUse {
    /// A number that is 0 for [`SlotUse::Unknown`]: a table of many starts as untouched memory.
    const fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Flow(index) => 1 << KIND_SHIFT | index as u64,
            Self::Ended(buf) => 2 << KIND_SHIFT | buf.0,
            Self::Listener => 3 << KIND_SHIFT,
        }
    }

    /// From the number.
    const fn unpack(word: u64) -> Self {
        match word >> KIND_SHIFT {
            0 => Self::Unknown,
            1 => Self::Flow(word as u32),
            2 => Self::Ended(BufRef(word & ((1 << KIND_SHIFT) - 1))),
            _ => Self::Listener,
        }
    }
}

/// Above the 48 bits of a [`BufRef`].
const KIND_SHIFT: u32 = 62;

/// A connection that was popped from an accept queue and not taken: perhaps by a process that died.
#[derive(Debug, Clone, Copy)]
pub struct Suspect {
    /// Socket slot.
    pub sock: u32,
    /// Its generation.
    pub generation: u32,
    /// When it is closed if nobody takes it before, nanoseconds.
    pub due_ns: u64,
}

/// A client as one shard keeps it.
#[derive(Debug)]
pub struct Client {
    /// The shared region.
    pub shared: Arc<ClientRegion>,
    /// Its view.
    pub region: Region,
    /// Use of each socket slot, as [`SlotUse::pack`] has it.
    slots: Vec<u64>,
    /// Count of operations answered, per slot that ever asked.
    ops_done: Vec<u32>,
    /// Per slot: its place in a pair region, as [`End::pack`] has it, and how many have one.
    ends: Vec<u64>,
    ends_count: u32,
    /// The bells of its epoll sets.
    pub set_bells: Vec<Option<Arc<sys::Bell>>>,
    /// Larger buffers for its streams.
    pub buffers: Buffers,
    /// Flows of this client in this shard.
    pub flows: u32,
    /// Connections that nobody had taken when a process died, though they had left the accept queue.
    pub suspects: Vec<Suspect>,
    /// No process of it is left.
    pub gone: bool,
    /// It wrote nonsense: serve it no more.
    pub corrupt: bool,
}

impl Client {
    /// A new client.
    #[must_use]
    pub fn new(shared: Arc<ClientRegion>, shard: u32) -> Self {
        let (region, arena) = (shared.region(), shared.arena);
        Self {
            shared,
            region,
            slots: vec![SlotUse::Unknown.pack(); SOCKETS_MAX as usize],
            ops_done: vec![0; SOCKETS_MAX as usize],
            ends: vec![0; SOCKETS_MAX as usize],
            ends_count: 0,
            set_bells: (0..SETS_MAX).map(|_| None).collect(),
            buffers: Buffers::new(shard, arena),
            flows: 0,
            suspects: Vec::new(),
            gone: false,
            corrupt: false,
        }
    }

    /// What slot `sock` is used for.
    #[must_use]
    pub fn slot(&self, sock: u32) -> SlotUse {
        self.slots.get(sock as usize).map_or(SlotUse::Unknown, |&word| SlotUse::unpack(word))
    }

    /// Fetches what is kept of slot `sock`, here and in the region.
    pub(super) fn prefetch(&self, sock: u32) {
        sys::prefetch(self.slots.get(sock as usize));
        sys::prefetch(self.ops_done.get(sock as usize));
        sys::prefetch(self.region.socket(sock).map(|socket| &socket.intent));
        sys::prefetch(self.region.socket(sock).map(|socket| &socket.op_asked));
    }

    /// Notes what slot `sock` is used for.
    pub fn set_slot(&mut self, sock: u32, to: SlotUse) {
        if let Some(slot) = self.slots.get_mut(sock as usize) {
            *slot = to.pack();
        }
    }

    /// Whether the program asked for an operation on `sock` that was not answered yet; counts it as seen.
    pub fn take_op(&mut self, sock: u32, socket: &Socket) -> bool {
        let asked = socket.op_asked.load(Ordering::Acquire);
        match self.ops_done.get_mut(sock as usize) {
            Some(done) if *done != asked => {
                *done = asked;
                // Another shard may have answered it, when the slot was a socket of its own: the words of the next one may be
                // half written. (Who lies about it waits for ever.)
                socket.op_done.load(Ordering::Acquire) != asked
            }
            _ => false,
        }
    }

    /// Forgets that the last operation on `sock` was taken: the next look takes it again.
    pub fn untake_op(&mut self, sock: u32) {
        if let Some(done) = self.ops_done.get_mut(sock as usize) {
            *done = done.wrapping_sub(1);
        }
    }

    /// Answers the last operation taken on `sock`.
    pub fn answer_op(&self, sock: u32, socket: &Socket, result: i32) {
        socket.op_result.store(result, Ordering::Relaxed);
        let done = self.ops_done.get(sock as usize).copied().unwrap_or(0);
        socket.op_done.store(done, Ordering::Release);
        if socket.op_bell.ring() {
            sys::futex_wake_all(socket.op_bell.word());
        }
    }

    /// Claims a free slot for a connection that arrived. `None`: the program has used all.
    pub fn claim_slot(&mut self) -> Option<u32> {
        let sock = self.region.claim_socket()?;
        // A program that marks slots of live flows as free hurts itself only: we leave them alone.
        if self.slot(sock) == SlotUse::Unknown { Some(sock) } else { None }
    }

    /// The place of socket `sock` in a pair region.
    pub(super) fn end(&self, sock: u32) -> Option<End> {
        self.ends.get(sock as usize).copied().and_then(End::unpack)
    }

    /// Notes it.
    pub(super) fn set_end(&mut self, sock: u32, end: Option<End>) {
        let Some(word) = self.ends.get_mut(sock as usize) else { return };
        self.ends_count -= u32::from(*word != 0);
        *word = end.map_or(0, End::pack);
        self.ends_count += u32::from(*word != 0);
    }

    /// Every place that its sockets still have; they have none any more.
    pub(super) fn take_ends(&mut self) -> Vec<End> {
        if std::mem::take(&mut self.ends_count) == 0 {
            return Vec::new();
        }
        self.ends.iter_mut().filter_map(|word| End::unpack(std::mem::take(word))).collect()
    }

    /// Gives a slot back: everything of its last use is wiped, its generation moves on. The place in a pair region that
    /// it had is the caller's to release.
    #[must_use]
    pub(super) fn free_slot(&mut self, sock: u32) -> Option<End> {
        let socket = self.region.socket(sock)?;
        let last = socket.generation.load(Ordering::Relaxed);
        let overrun = [&socket.rx_tail, &socket.tx_tail]
            .map(|tail| uses_overrun(first_position(sock, last), tail.load(Ordering::Relaxed)));
        let generation = last.wrapping_add(1 + overrun[0].max(overrun[1])) & 0xf_ffff;
        socket.generation.store(generation, Ordering::Release);
        // From here on nobody who means the last use wants anything.
        socket.intent.store(intent::of(generation, 0), Ordering::Release);
        for word in [
            &socket.status,
            &socket.shard,
            &socket.listener,
            &socket.token,
            &socket.file,
            &socket.epoch,
            &socket.owner_pid,
            &socket.op_code,
            &socket.busy_poll,
        ] {
            // Release: who reads a word of the next use sees that the generation is another.
            word.store(0, Ordering::Release);
        }
        for word in [&socket.zerocopy_sent, &socket.zerocopy_told] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [&socket.tx_sent, &socket.news_at, &socket.asked_at] {
            word.store(0, Ordering::Relaxed);
        }
        socket.error.store(0, Ordering::Relaxed);
        socket.cause.store(0, Ordering::Relaxed);
        socket.rx_buf.store(0, Ordering::Relaxed);
        socket.tx_buf.store(0, Ordering::Relaxed);
        for member in &socket.members {
            member.store(0, Ordering::Relaxed);
        }
        socket.options.reset();
        socket.local.store(Addr::default());
        socket.remote.store(Addr::default());
        for word in [&socket.tx_urgent, &socket.rx_urgent, &socket.rx_urgent_taken, &socket.tx_held] {
            word.store(0, Ordering::Relaxed);
        }
        socket.held_watched.store(0, Ordering::Relaxed);
        socket.begin_at(first_position(sock, generation));
        if let SlotUse::Ended(rx) = self.slot(sock) {
            self.buffers.give(rx);
        }
        self.set_slot(sock, SlotUse::Unknown);
        let end = self.end(sock);
        self.set_end(sock, None);
        self.region.free_sockets().set(sock);
        end
    }

    /// Rings the bell of a set.
    pub fn ring_set(&self, set: u32) {
        if let Some(Some(bell)) = self.set_bells.get(set as usize) {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_has_a_number_and_nothing_is_zero() {
        let buf = BufRef::new((1 << 40) - 1, 32);
        let uses =
            [SlotUse::Flow(0), SlotUse::Flow(u32::MAX), SlotUse::Ended(BufRef::NONE), SlotUse::Ended(buf)];
        for slot in uses.into_iter().chain([SlotUse::Unknown, SlotUse::Listener]) {
            assert_eq!(SlotUse::unpack(slot.pack()), slot);
        }
        assert_eq!(SlotUse::Unknown.pack(), 0);
    }

    /// A slot goes from shard to shard with its uses, its count of operations stays.
    #[test]
    fn what_another_shard_has_answered_is_not_asked() {
        let shared = Arc::new(ClientRegion::new(1, 1, 0, String::new(), 2).expect("a region"));
        let [mut first, mut second] = [0, 1].map(|shard| Client::new(shared.clone(), shard));
        let region = shared.region();
        let socket = region.socket(5).expect("a slot");
        socket.op_asked.store(1, Ordering::Relaxed);
        assert!(first.take_op(5, socket) && !first.take_op(5, socket));
        first.answer_op(5, socket, 0);
        assert!(!second.take_op(5, socket));
        socket.op_asked.store(2, Ordering::Relaxed);
        assert!(second.take_op(5, socket) && !second.take_op(5, socket));
    }
}
