//! What two programs of one host share: the byte streams of the connections between them.
//!
//! A connection inside one host needs no segments: the sender copies into a stream that the receiver
//! copies out of, and each rings the other itself. The engine makes the connection and ends it; it
//! is not in the way of the bytes.
//!
//! ```text
//!  program A            pair region (sealed memfd)             program B
//!  send ── copy ──► slot 7: stream 0→1 ──────────── copy ──► recv
//!       tail moves ─► side 0 │ side 1 ◄─ head moves
//!       B's epoll set 3 sleeps? ── lane (side 1, set 3): bit 7 ── armed? ── its eventfd
//!       B sleeps in recv? ──────── side 1: rx_bell ────────────── armed? ── futex
//! ```
//!
//! A **slot** is one connection with two **sides**; side `s` writes the stream that begins in its own area and
//! reads the other's. A **lane** is the way from one program into an epoll set of the other: a bit per slot that
//! says "look", a bell, and an eventfd that the engine passes on.
//!
//! Ground rules:
//! - Everything in here can be written by both programs. Neither believes the other: what comes out of a word is cut
//!   to the buffer before it is used, so that a liar spoils connections between these two programs and no more.
//! - Positions count bytes for ever and carry the slot's generation in the upper bits, as in [`crate::socket`].
//! - Who publishes (a tail, a head) does so before it looks whom to tell ([`Side::notify`], bells); who changes whom to
//!   tell looks at the positions afterwards. Both sides fence in between (see [`crate::bell`]).
//! - A stream starts in 2 KiB beside its twin, so that an idle connection has one page. The writer, who alone knows
//!   that it is full, moves it to a larger place; the old one is never written again.

use crate::bell::Bell;
use crate::layout::{ABI_VERSION, MAGIC, SETS_MAX};
use crate::set::Member;
use crate::socket::first_position;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Pair regions of one engine at once.
pub const PAIRS_MAX: u32 = 1 << 12;
/// Connections in one pair region; two programs may have several regions.
pub const SLOTS_MAX: u32 = 1 << 12;
/// log2 of the bytes that a stream may have, smallest first.
pub const CLASSES: [u32; 5] = [11, 14, 16, 18, 21];
/// Bytes that a stream can hold at most.
pub const STREAM_MAX: u64 = 1 << 21;

const PAGE: usize = 4096;
const LANE_WORDS: usize = SLOTS_MAX as usize / 64;
const LANES: usize = PAGE;
const SLOTS: usize = page_up(LANES + 2 * SETS_MAX as usize * size_of::<Lane>());
/// Both smallest streams of every slot.
const SMALL: usize = page_up(SLOTS + SLOTS_MAX as usize * size_of::<Slot>());
/// Bytes before the streams: as much as the engine maps.
pub const HEAD_LEN: usize = SMALL;
/// The larger places of one stream: 2^n bytes at offset 2^n.
const AREA_LOG2: u32 = 22;
const LARGE: usize = SMALL + SLOTS_MAX as usize * PAGE;
/// Bytes of a pair region. Sparse: only what is touched costs memory.
pub const PAIR_LEN: usize = LARGE + ((SLOTS_MAX as usize * 2) << AREA_LOG2);

const fn page_up(offset: usize) -> usize {
    (offset + PAGE - 1) & !(PAGE - 1)
}

/// The first page.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PairHeader {
    /// [`MAGIC`].
    pub magic: AtomicU32,
    /// [`ABI_VERSION`].
    pub version: AtomicU32,
    /// Its number, see [`PairRef::number`].
    pub number: AtomicU32,
    /// Slots that were ever used: nobody has to look beyond. A hint, like everything here.
    pub slots: AtomicU32,
}

/// The way into one epoll set of one side.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Lane {
    /// Armed while somebody sleeps on the set.
    pub bell: Bell,
    /// Which use of the set this is; 0: nobody listens here. Another one means another eventfd.
    pub generation: AtomicU32,
    /// Line end.
    pub pad: [AtomicU32; 14],
    /// A bit per slot that has news.
    pub words: [AtomicU64; LANE_WORDS],
}

impl Lane {
    /// Says that `slot` has news. True: somebody may sleep, and the caller must write the lane's eventfd.
    #[must_use]
    pub fn mark(&self, slot: u32) -> bool {
        if let Some(word) = self.words.get(slot as usize / 64) {
            word.fetch_or(1 << (slot % 64), Ordering::Release);
        }
        self.bell.ring()
    }

    /// Whether none of the first `slots` slots has news.
    #[must_use]
    pub fn is_empty(&self, slots: u32) -> bool {
        self.words.iter().take(slots.div_ceil(64) as usize).all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Takes the news of the first `slots` slots.
    pub fn take(&self, slots: u32, mut each: impl FnMut(u32)) {
        for (index, word) in self.words.iter().take(slots.div_ceil(64) as usize).enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: what was published before the bit was set is visible to who looks because of it.
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                each((index as u32) << 6 | bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }
}

/// Whom to tell that a side's connection has news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// Nobody but those who sleep on the bells.
    None,
    /// This interest, by the lane of its set.
    Lane(Member),
    /// The engine: it knows all the sets.
    Engine,
    /// The engine, until the program has said something better.
    Fresh,
}

/// Bits beside a [`Member`]'s.
const ENGINE: u64 = 1 << 60;
const FRESH: u64 = 1 << 61;

impl Notify {
    /// The word.
    #[must_use]
    pub fn pack(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Lane(member) => member.pack(),
            Self::Engine => ENGINE,
            Self::Fresh => ENGINE | FRESH,
        }
    }

    /// From the word.
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        if word & FRESH != 0 {
            return Self::Fresh;
        }
        if word & ENGINE != 0 {
            return Self::Engine;
        }
        Member::unpack(word).map_or(Self::None, Self::Lane)
    }
}

/// One end of a connection: three cache lines, so that publishing disturbs only who waits for just that.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Side {
    /// Position behind the last byte that this side sent.
    pub tail: AtomicU64,
    /// Position behind the last urgent byte that this side sent (MSG_OOB), written before the byte's own; 0: none yet.
    pub urgent: AtomicU64,
    /// When this side's stream last stopped being empty, in [`crate::ticks`]: epoll reports in this order.
    pub sent_at: AtomicU64,
    /// log2 of the bytes of the stream that this side writes.
    pub class: AtomicU32,
    /// Line end.
    pub pad: [AtomicU32; 9],

    /// Position of the first byte that this side has not taken from the other's stream.
    pub head: AtomicU64,
    /// Line end.
    pub pad2: [AtomicU64; 7],

    /// [`Notify`]: whom of this side to tell of news.
    pub notify: AtomicU64,
    /// Rung when bytes come, or the end.
    pub rx_bell: Bell,
    /// Rung when there is space, or the end.
    pub tx_bell: Bell,
    /// 1: this side met a full stream and wants to hear of space.
    pub wish: AtomicU32,
    /// 1: the program of this side has closed; whoever sends to it must ask the engine what becomes of that.
    pub closed: AtomicU32,
    /// CPU + 1 on which this side last waited or sent; 0: unknown.
    pub cpu: AtomicU32,
    /// SO_RCVBUF of this side, 0: not set. Written by the engine.
    pub rcvbuf: AtomicU32,
    /// Which use of the slot this is. Written by the engine.
    pub generation: AtomicU32,
    /// Line end.
    pub pad3: [AtomicU32; 7],
}

/// One connection.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    /// Side 0 connected, side 1 accepted.
    pub sides: [Side; 2],
}

impl Slot {
    /// Ready, as slot `number`, for its `generation`-th use.
    pub fn wipe(&self, number: u32, generation: u32) {
        let first = first_position(number, generation);
        for side in &self.sides {
            side.generation.store(generation, Ordering::Release);
            // Release: who reads one of this use sees that the generation is another.
            side.tail.store(first, Ordering::Release);
            side.head.store(first, Ordering::Release);
            side.class.store(CLASSES[0], Ordering::Relaxed);
            side.urgent.store(0, Ordering::Relaxed);
            side.sent_at.store(0, Ordering::Relaxed);
            for word in
                [&side.wish, &side.closed, &side.cpu, &side.rcvbuf, side.rx_bell.word(), side.tx_bell.word()]
            {
                word.store(0, Ordering::Relaxed);
            }
            side.notify.store(Notify::Fresh.pack(), Ordering::Release);
        }
    }

    /// Bytes that wait for side `reader`, as the indices say; nonsense is cut to the largest buffer.
    #[must_use]
    pub fn waiting(&self, reader: u32) -> u64 {
        let [own, other] = self.from(reader);
        let head = own.head.load(Ordering::Acquire);
        other.tail.load(Ordering::Acquire).saturating_sub(head).min(STREAM_MAX)
    }

    /// The sides as `side` sees them: its own, the other.
    #[must_use]
    pub fn from(&self, side: u32) -> [&Side; 2] {
        let [zero, one] = &self.sides;
        if side == 0 { [zero, one] } else { [one, zero] }
    }
}

/// What a socket's block says of its place in a pair region. It stands where a stream's [`crate::socket::BufRef`]
/// would, and as such means "no buffer".
///
/// ```text
///  63     62    46 .. 61     34 .. 45   22 .. 33   10 .. 21   0 .. 9
///  valid  side  generation   turn       index      slot       0
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairRef {
    /// Which side.
    pub side: u32,
    /// Which use of the slot, 16 bits.
    pub generation: u32,
    /// Which use of the index, 12 bits: a program that still maps another region there must map anew.
    pub turn: u32,
    /// Index of the region, below [`PAIRS_MAX`].
    pub index: u32,
    /// Slot, below [`SLOTS_MAX`].
    pub slot: u32,
}

impl PairRef {
    /// The word.
    #[must_use]
    pub fn pack(self) -> u64 {
        1 << 63
            | u64::from(self.side & 1) << 62
            | u64::from(self.generation & 0xffff) << 46
            | u64::from(self.turn & 0xfff) << 34
            | u64::from(self.index & 0xfff) << 22
            | u64::from(self.slot & 0xfff) << 10
    }

    /// From the word; `None` if it is none.
    #[inline]
    #[must_use]
    pub fn unpack(word: u64) -> Option<Self> {
        (word >> 63 == 1).then_some(Self {
            side: (word >> 62 & 1) as u32,
            generation: (word >> 46 & 0xffff) as u32,
            turn: (word >> 34 & 0xfff) as u32,
            index: (word >> 22 & 0xfff) as u32,
            slot: (word >> 10 & 0xfff) as u32,
        })
    }

    /// Where both streams of this use began.
    #[inline]
    #[must_use]
    pub fn first_position(self) -> u64 {
        first_position(self.slot, self.generation)
    }

    /// The region's name: index and turn.
    #[inline]
    #[must_use]
    pub fn number(self) -> u32 {
        self.turn << 12 | self.index
    }
}

/// A mapped pair region. Copying the view copies no memory.
#[derive(Debug, Clone, Copy)]
pub struct PairView {
    base: *mut u8,
}

// SAFETY: the view is an address; everything reachable through it is atomic or raw bytes whose copying follows the
// stream protocol.
unsafe impl Send for PairView {}
// SAFETY: as above.
unsafe impl Sync for PairView {}

impl PairView {
    /// A view of the region mapped at `base`.
    ///
    /// # Safety
    /// `base` must be the start of a shared mapping of at least [`HEAD_LEN`] bytes, aligned to a page, that stays as long
    /// as any copy of the view is used; and of [`PAIR_LEN`] bytes if [`PairView::stream`] is used.
    #[must_use]
    pub const unsafe fn new(base: *mut u8) -> Self {
        Self { base }
    }

    fn place<T>(&self, offset: usize) -> &'static T {
        debug_assert!(offset + size_of::<T>() <= HEAD_LEN && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the callers below pass constant offsets plus checked indices inside the head of the mapping, which
        // stays (`new`'s contract); `T` is one of this module's structures of atomics, for which every bit pattern is
        // valid, and aligned.
        unsafe { &*self.base.add(offset).cast::<T>() }
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &'static PairHeader {
        self.place(0)
    }

    /// The lane into set `set` of `side`, if there can be one.
    #[must_use]
    pub fn lane(&self, side: u32, set: u32) -> Option<&'static Lane> {
        let index = (side & 1) as usize * SETS_MAX as usize + set as usize;
        (set < SETS_MAX).then(|| self.place(LANES + index * size_of::<Lane>()))
    }

    /// Slot `index`, if there is one.
    #[inline]
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<&'static Slot> {
        (index < SLOTS_MAX).then(|| self.place(SLOTS + index as usize * size_of::<Slot>()))
    }

    /// Slots that anybody has to look at.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.header().slots.load(Ordering::Acquire).min(SLOTS_MAX)
    }

    /// The bytes of the stream that `side` of `slot` writes, of 2^`class` bytes; `None` for what can't be.
    #[inline]
    #[must_use]
    pub fn stream(&self, slot: u32, side: u32, class: u32) -> Option<*mut u8> {
        let offset = stream_offset(slot, side, class)?;
        // SAFETY: `stream_offset` stays inside PAIR_LEN, which `new` was promised.
        Some(unsafe { self.base.add(offset) })
    }

    /// Lays a fresh, zeroed region out.
    pub fn format(&self, number: u32) {
        let header = self.header();
        header.number.store(number, Ordering::Relaxed);
        header.version.store(ABI_VERSION, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    /// Whether it is laid out as region `number`.
    #[must_use]
    pub fn is(&self, number: u32) -> bool {
        let header = self.header();
        header.magic.load(Ordering::Acquire) == MAGIC
            && header.version.load(Ordering::Relaxed) == ABI_VERSION
            && header.number.load(Ordering::Relaxed) == number
    }
}

/// Where a stream stands in its region.
#[inline]
#[must_use]
pub fn stream_offset(slot: u32, side: u32, class: u32) -> Option<usize> {
    if slot >= SLOTS_MAX {
        return None;
    }
    let (slot, side) = (slot as usize, (side & 1) as usize);
    if class == CLASSES[0] {
        return Some(SMALL + slot * PAGE + (side << CLASSES[0]));
    }
    CLASSES.contains(&class).then(|| LARGE + ((slot * 2 + side) << AREA_LOG2) + (1 << class))
}

/// The larger places of both streams of a slot: offset and length.
#[must_use]
pub fn large_range(slot: u32) -> (usize, usize) {
    (LARGE + (((slot % SLOTS_MAX) as usize * 2) << AREA_LOG2), 2 << AREA_LOG2)
}

/// The smallest class with room for `bytes`, or the largest.
#[must_use]
pub fn class_for(bytes: u64) -> u32 {
    let [.., largest] = CLASSES;
    CLASSES.into_iter().find(|class| 1 << class >= bytes).unwrap_or(largest)
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Side>() == 192 && size_of::<Slot>() == 384);
    assert!(size_of::<Lane>() == 64 + LANE_WORDS * 8);
    assert!(size_of::<PairHeader>() <= PAGE && 2 << CLASSES[0] <= PAGE);
    assert!(1 << CLASSES[4] == STREAM_MAX && (STREAM_MAX << 1) as usize == 1 << AREA_LOG2);
};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn references_and_words_pack() {
        let whole = PairRef { side: 1, generation: 0xffff, turn: 0xfff, index: 0xfff, slot: 0xfff };
        assert_eq!(PairRef::unpack(whole.pack()), Some(whole));
        assert_eq!(PairRef::unpack(crate::socket::BufRef::new(crate::layout::ARENA_LEN, 22).0), None);
        assert_eq!(crate::socket::BufRef(whole.pack()).capacity(), 0, "as a buffer it is none");
        let member = Member { set: 1023, interest: (1 << 18) - 1, events: 0xffff, exclusive: false };
        for notify in [Notify::None, Notify::Lane(member), Notify::Engine, Notify::Fresh] {
            assert_eq!(Notify::unpack(notify.pack()), notify);
        }
    }

    #[test]
    fn no_two_streams_overlap_and_none_leaves_the_region() {
        let mut ranges = Vec::new();
        for slot in [0, 1, SLOTS_MAX - 1] {
            for side in 0..2 {
                for class in CLASSES {
                    let start = stream_offset(slot, side, class).expect("a class");
                    ranges.push((start, start + (1 << class)));
                }
            }
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|two| two[0].1 <= two[1].0));
        assert!(ranges.iter().all(|range| range.0 >= HEAD_LEN && range.1 <= PAIR_LEN));
        for class in [0, 10, 12, 13, 15, 20, 22, 32, u32::MAX] {
            assert_eq!(stream_offset(0, 0, class), None);
        }
        assert_eq!(stream_offset(SLOTS_MAX, 0, 11), None);
        let (large, len) = large_range(1);
        assert!(stream_offset(1, 0, 14).is_some_and(|at| at >= large) && large + len <= PAIR_LEN);
        assert_eq!((class_for(0), class_for(2049), class_for(1 << 40)), (11, 14, 21));
    }

    #[test]
    fn hostile_indices_are_cut() {
        let slot = Slot {
            sides: core::array::from_fn(|_| Side {
                tail: AtomicU64::new(0),
                urgent: AtomicU64::new(0),
                sent_at: AtomicU64::new(0),
                class: AtomicU32::new(0),
                pad: core::array::from_fn(|_| AtomicU32::new(0)),
                head: AtomicU64::new(0),
                pad2: core::array::from_fn(|_| AtomicU64::new(0)),
                notify: AtomicU64::new(0),
                rx_bell: Bell::new(),
                tx_bell: Bell::new(),
                wish: AtomicU32::new(0),
                closed: AtomicU32::new(0),
                cpu: AtomicU32::new(0),
                rcvbuf: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                pad3: core::array::from_fn(|_| AtomicU32::new(0)),
            }),
        };
        slot.wipe(0, 3);
        assert_eq!((slot.waiting(0), slot.waiting(1)), (0, 0));
        slot.sides[0].tail.fetch_add(5, Ordering::Relaxed);
        assert_eq!((slot.waiting(0), slot.waiting(1)), (0, 5));
        slot.sides[0].tail.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(slot.waiting(1), STREAM_MAX);
        slot.sides[1].head.store(u64::MAX, Ordering::Relaxed);
        slot.sides[0].tail.store(0, Ordering::Relaxed);
        assert_eq!(slot.waiting(1), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::fence;
    use loom::sync::Arc;
    use loom::thread;

    /// The parts of a lane and a side that the protocol rests on.
    struct Parts {
        tail: AtomicU64,
        notify: AtomicU64,
        word: AtomicU64,
        bell: Bell,
    }

    fn parts(notify: u64) -> Arc<Parts> {
        let tail = AtomicU64::new(0);
        let (notify, word) = (AtomicU64::new(notify), AtomicU64::new(0));
        Arc::new(Parts { tail, notify, word, bell: Bell::new() })
    }

    /// A sender; what it told: 1 nobody, 2 the lane without a ring, 3 the lane with a ring.
    fn send(parts: &Parts) -> u32 {
        parts.tail.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if parts.notify.load(Ordering::Relaxed) == 0 {
            return 1;
        }
        parts.word.fetch_or(1, Ordering::Release);
        2 + u32::from(parts.bell.ring())
    }

    /// Bytes come while the receiver goes to sleep on its set: it sees the bit, or is rung.
    #[test]
    fn no_byte_is_slept_through() {
        loom::model(|| {
            let shared = parts(1);
            let sender = {
                let shared = shared.clone();
                thread::spawn(move || send(&shared))
            };
            let early = shared.word.swap(0, Ordering::AcqRel) != 0;
            shared.bell.arm();
            let late = shared.word.load(Ordering::Relaxed) != 0;
            let told = sender.join().unwrap();
            assert!(early || late || told == 3, "the receiver sleeps and nobody will wake it");
            if early {
                assert_eq!(shared.tail.load(Ordering::Relaxed), 1, "a bit without its bytes");
            }
        });
    }

    /// Bytes come while the receiver puts the connection into a set: the sender tells the lane, or the receiver, who
    /// looks after it said whom to tell, finds the bytes.
    #[test]
    fn no_byte_comes_before_the_interest() {
        loom::model(|| {
            let shared = parts(0);
            let sender = {
                let shared = shared.clone();
                thread::spawn(move || send(&shared))
            };
            shared.notify.store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let seen = shared.tail.load(Ordering::Acquire) == 1;
            let told = sender.join().unwrap();
            assert!(seen || told > 1, "neither was told nor saw it");
        });
    }

    /// The reader frees space while the writer, who met a full stream, wishes to hear of it.
    #[test]
    fn no_space_is_missed() {
        loom::model(|| {
            let shared = Arc::new((AtomicU64::new(0), AtomicU32::new(0)));
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.0.store(1, Ordering::Release);
                    fence(Ordering::SeqCst);
                    shared.1.load(Ordering::Relaxed) == 1
                })
            };
            shared.1.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let seen = shared.0.load(Ordering::Acquire) == 1;
            assert!(seen || reader.join().unwrap(), "the writer waits for space that is there");
        });
    }

    /// The writer moves a stream to a larger place while the reader copies: what the reader takes is never what the
    /// writer put elsewhere. Bytes 1 (old place, then copied) and 2 (written to the new place alone).
    #[test]
    fn a_move_loses_nothing() {
        loom::model(|| {
            // class, tail, old place, new place (one cell per byte).
            let shared = Arc::new((
                AtomicU32::new(0),
                AtomicU64::new(1),
                [AtomicU32::new(1), AtomicU32::new(0)],
                [AtomicU32::new(0), AtomicU32::new(0)],
            ));
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.3[0].store(1, Ordering::Relaxed);
                    shared.0.store(1, Ordering::SeqCst);
                    shared.3[1].store(2, Ordering::Relaxed);
                    shared.1.store(2, Ordering::Release);
                })
            };
            for _ in 0..2 {
                let class = shared.0.load(Ordering::Acquire);
                let tail = shared.1.load(Ordering::Acquire);
                let place = if class == 0 { &shared.2 } else { &shared.3 };
                let got: Vec<u32> =
                    place.iter().take(tail as usize).map(|cell| cell.load(Ordering::Relaxed)).collect();
                fence(Ordering::SeqCst);
                if shared.0.load(Ordering::Acquire) == class {
                    assert!(got == [1] || got == [1, 2], "{got:?}");
                    break;
                }
            }
            writer.join().unwrap();
        });
    }
}
