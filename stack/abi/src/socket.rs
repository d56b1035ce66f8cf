//! One socket as both ends see it: 512 bytes, each cache line written by one side.
//!
//! A slot's **generation** sits in the upper bits of its stream positions ([`first_position`]):
//! a `recv` that was overtaken by a close and the slot's next use fails at its final
//! compare-and-swap and delivers nothing.

use crate::arbiter::Arbiter;
use crate::bell::Bell;
use crate::freeze::FROZEN;
use crate::sync::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Epoll interests that one connected socket can be in at once. (A listener has more: see
/// [`crate::listener::Listener::members`].)
pub const MEMBERS: usize = 8;

/// Bits of [`Socket::status`]: what is true now, written by the engine.
pub mod status {
    /// A `connect` is under way.
    pub const CONNECTING: u32 = 1;
    /// The handshake is done; streams exist.
    pub const CONNECTED: u32 = 2;
    /// The peer's FIN was received and everything before it delivered: end of file.
    pub const RX_FIN: u32 = 4;
    /// Our FIN is queued or sent: `send` fails with EPIPE.
    pub const TX_FIN: u32 = 8;
    /// The connection ended by an error (reset, time-out, refused …): no byte moves any more.
    pub const DEAD: u32 = 16;
    /// The socket listens.
    pub const LISTENING: u32 = 32;
    /// Both directions ended: EPOLLHUP.
    pub const HUP: u32 = 64;
    /// The connection was moved out of this region: its bytes go through the kernel's descriptor that stands under it.
    pub const MOVED: u32 = 128;
    /// With [`CONNECTING`]: a fast open, whose SYN waits for what the first `send` puts into [`super::Socket::early_buf`].
    pub const DEFERRED: u32 = 256;
    /// With [`LISTENING`]: other programs have the same listener. The engine wants to know who begins to wait there, and who ceases to.
    pub const SHARED: u32 = 512;
    /// An acknowledgement waits for the program to read: whoever takes the last byte makes the engine look. Set before the bytes
    /// that it is about are published, so nobody takes them unawares.
    pub const ACK_WAITS: u32 = 1024;
    /// The connection ended in order, and the peer has our FIN: what Linux calls TCP_CLOSE.
    pub const CLOSED: u32 = 2048;
}

/// Bits of [`Socket::intent`]: what the program wants, read by the engine when the dirty bit is set. The bits above [`ALL`](intent::ALL) are
/// the slot's generation: a thread that is late wants nothing of the slot's next use ([`Socket::intend`]).
pub mod intent {
    /// A descriptor stands on this socket (it was accepted, or made by `socket`).
    pub const OWNED: u32 = 1;
    /// `shutdown(SHUT_WR)`: FIN after the queued bytes.
    pub const SHUT_WR: u32 = 2;
    /// `shutdown(SHUT_RD)`.
    pub const SHUT_RD: u32 = 4;
    /// The last descriptor was closed.
    pub const CLOSE: u32 = 8;
    /// An option changed: read [`super::Options`] again.
    pub const OPTIONS: u32 = 16;
    /// The program met a full tx stream: tell it when there is space (EPOLLOUT's edge).
    pub const TX_FULL: u32 = 32;
    /// The last `send` had MSG_MORE: a partial segment waits. Where a pair region is used: bytes are held back.
    pub const MORE: u32 = 64;
    /// What the SYN of a fast open shall bring is in the tx stream.
    pub const START: u32 = 128;
    /// With [`START`]: the call waits for the connection, and has more to send.
    pub const START_MORE: u32 = 256;
    /// The program can't map its place in a pair region: the connection shall go by segments.
    pub const UNCUT: u32 = 512;
    /// Every bit that says what is wanted; the others are the generation.
    pub const ALL: u32 = (1 << super::GENERATION_BIT) - 1;

    /// The word of a slot's `generation`-th use that wants `bits`.
    #[must_use]
    pub const fn of(generation: u32, bits: u32) -> u32 {
        generation << super::GENERATION_BIT | bits & ALL
    }
}

/// The lowest bit of the generation in [`Socket::intent`]: generations have 20 bits.
const GENERATION_BIT: u32 = 12;

/// What a program asks of the engine and waits for, one at a time per socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum OpCode {
    /// Connect to `args[0..2]` (address), `args[2]` (port | scope << 32), from `args[3..5]` and
    /// `args[5]` (0: any). Result: 0 (under way), [`RESULT_KERNEL`] or an errno.
    Connect = 1,
    /// Fill [`crate::info::Info`]. Result: 0.
    Info = 2,
    /// As `Connect`, for a destination that [`crate::page::EnginePage::serves_loopback`]: nobody waits for the
    /// answer. The program sets [`status::CONNECTING`] itself; a failure shows in status and error.
    ConnectLoopback = 3,
    /// As `Connect`, by Fast Open if it can be. One more result: [`RESULT_DEFERRED`].
    ConnectFast = 4,
    /// `connect` to AF_UNSPEC on a socket that other processes have, too: a reset, and the socket is dead for them.
    /// Result: 0.
    Reset = 5,
}

impl OpCode {
    /// What asks for it of a slot in its `generation`-th use: a thread that is late asks nothing of the next use.
    #[must_use]
    pub fn of(self, generation: u32) -> u32 {
        self as u32 | generation << OP_BITS
    }
}

/// Bits of [`Socket::op_code`] that say what is asked; the rest are the slot's generation.
const OP_BITS: u32 = 8;

/// An [`OpCode::Connect`] that is the kernel's to serve.
pub const RESULT_KERNEL: i32 = -1;
/// An [`OpCode::ConnectFast`] whose SYN waits for the first `send`.
pub const RESULT_DEFERRED: i32 = -2;

/// An address and port in shared memory, written by one side while nobody reads.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedAddr {
    /// The 16 address bytes in two big-endian words; IPv4 as ::ffff:a.b.c.d.
    pub ip: [AtomicU64; 2],
    /// Port (low 16 bits), IPv6 scope id (high 32 bits).
    pub port_scope: AtomicU64,
}

/// An address and port as plain values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Addr {
    /// 16 bytes; IPv4 as ::ffff:a.b.c.d.
    pub ip: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// IPv6 scope id (interface index), else 0.
    pub scope: u32,
}

impl Addr {
    /// From the three words that cross.
    #[must_use]
    pub fn from_words(words: [u64; 3]) -> Self {
        let mut ip = [0; 16];
        let (high, low) = ip.split_at_mut(8);
        high.copy_from_slice(&words[0].to_be_bytes());
        low.copy_from_slice(&words[1].to_be_bytes());
        Self { ip, port: (words[2] & 0xffff) as u16, scope: (words[2] >> 32) as u32 }
    }

    /// The three words that cross.
    #[must_use]
    pub fn to_words(self) -> [u64; 3] {
        let mut halves = [[0; 8]; 2];
        halves[0].copy_from_slice(&self.ip[..8]);
        halves[1].copy_from_slice(&self.ip[8..]);
        [
            u64::from_be_bytes(halves[0]),
            u64::from_be_bytes(halves[1]),
            u64::from(self.port) | u64::from(self.scope) << 32,
        ]
    }
}

impl SharedAddr {
    /// Reads it.
    #[must_use]
    pub fn load(&self) -> Addr {
        Addr::from_words([
            self.ip[0].load(Ordering::Acquire),
            self.ip[1].load(Ordering::Relaxed),
            self.port_scope.load(Ordering::Relaxed),
        ])
    }

    /// Writes it.
    pub fn store(&self, addr: Addr) {
        let words = addr.to_words();
        self.port_scope.store(words[2], Ordering::Relaxed);
        self.ip[1].store(words[1], Ordering::Relaxed);
        self.ip[0].store(words[0], Ordering::Release);
    }
}

/// Socket options as `setsockopt` set them. Zero means "the default" where 0 is not a value.
/// An accepted socket starts with its listener's.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Options {
    /// Bits of [`option`].
    pub flags: AtomicU32,
    /// SO_SNDBUF and SO_RCVBUF as `getsockopt` reports them (bytes, doubled as Linux does).
    pub sndbuf: AtomicU32,
    /// See [`Options::sndbuf`].
    pub rcvbuf: AtomicU32,
    /// SO_RCVLOWAT.
    pub rcvlowat: AtomicU32,
    /// SO_RCVTIMEO in microseconds, 0 = none.
    pub rcvtimeo_us: AtomicU64,
    /// SO_SNDTIMEO in microseconds, 0 = none.
    pub sndtimeo_us: AtomicU64,
    /// SO_LINGER's seconds, valid with [`option::LINGER`].
    pub linger_s: AtomicU32,
    /// TCP_KEEPIDLE, seconds.
    pub keepidle_s: AtomicU32,
    /// TCP_KEEPINTVL, seconds.
    pub keepintvl_s: AtomicU32,
    /// TCP_KEEPCNT.
    pub keepcnt: AtomicU32,
    /// TCP_USER_TIMEOUT, milliseconds.
    pub user_timeout_ms: AtomicU32,
    /// TCP_DEFER_ACCEPT, seconds.
    pub defer_accept_s: AtomicU32,
    /// TCP_MAXSEG.
    pub maxseg: AtomicU32,
    /// TCP_NOTSENT_LOWAT.
    pub notsent_lowat: AtomicU32,
    /// TCP_CONGESTION: see [`congestion`].
    pub congestion: AtomicU32,
    /// IP_TOS | IPV6_TCLASS << 8.
    pub tos: AtomicU32,
    /// TCP_LINGER2 (seconds), 0 = default.
    pub linger2_s: AtomicI32,
    /// TCP_FASTOPEN's queue length.
    pub fastopen: AtomicU32,
    /// SO_PRIORITY.
    pub priority: AtomicU32,
    /// IP_TTL | IPV6_UNICAST_HOPS << 16; 0 = default.
    pub ttl: AtomicU32,
    /// SO_MARK.
    pub mark: AtomicU32,
    /// TCP_SYNCNT.
    pub syncnt: AtomicU32,
    /// TCP_WINDOW_CLAMP.
    pub window_clamp: AtomicU32,
    /// Bits of [`quiet`].
    pub quiet: AtomicU32,
    /// SO_MAX_PACING_RATE, bytes per second, every bit turned over: 0 = none.
    pub max_pacing: AtomicU64,
    /// IP_MTU_DISCOVER | IPV6_MTU_DISCOVER << 8, each plus one; 0 = default.
    pub mtu_discover: AtomicU32,
    /// TCP_FASTOPEN_KEY: how many of the keys at [`crate::info::FAST_OPEN_KEYS`] the socket has of its own, 0 to 2.
    pub fastopen_keys: AtomicU32,
    /// SO_PEEK_OFF plus one, modulo 2^32: 0 = off.
    pub peek_off: AtomicU32,
    /// SO_INCOMING_CPU plus two (-1 is a value), modulo 2^32, as somebody set it: 0 = nobody.
    pub incoming_cpu: AtomicU32,
}

impl Options {
    /// Copies every option from `other`, but for keys and the CPU: those whom a listener accepts do not have its own.
    pub fn copy_from(&self, other: &Self) {
        // Both are 128 bytes of plain words; the fields are listed once, in `fields`.
        for (to, from) in self.fields().into_iter().zip(other.fields()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.rcvtimeo_us.store(other.rcvtimeo_us.load(Ordering::Relaxed), Ordering::Relaxed);
        self.sndtimeo_us.store(other.sndtimeo_us.load(Ordering::Relaxed), Ordering::Relaxed);
        self.max_pacing.store(other.max_pacing.load(Ordering::Relaxed), Ordering::Relaxed);
        self.linger2_s.store(other.linger2_s.load(Ordering::Relaxed), Ordering::Relaxed);
        self.fastopen_keys.store(0, Ordering::Relaxed);
        self.incoming_cpu.store(0, Ordering::Relaxed);
    }

    fn fields(&self) -> [&AtomicU32; 23] {
        [
            &self.flags,
            &self.sndbuf,
            &self.rcvbuf,
            &self.rcvlowat,
            &self.linger_s,
            &self.keepidle_s,
            &self.keepintvl_s,
            &self.keepcnt,
            &self.user_timeout_ms,
            &self.defer_accept_s,
            &self.maxseg,
            &self.notsent_lowat,
            &self.congestion,
            &self.tos,
            &self.fastopen,
            &self.priority,
            &self.ttl,
            &self.mark,
            &self.syncnt,
            &self.window_clamp,
            &self.quiet,
            &self.mtu_discover,
            &self.peek_off,
        ]
    }

    /// Back to the defaults of a new socket.
    pub fn reset(&self) {
        for field in self.fields() {
            field.store(0, Ordering::Relaxed);
        }
        self.rcvtimeo_us.store(0, Ordering::Relaxed);
        self.sndtimeo_us.store(0, Ordering::Relaxed);
        self.max_pacing.store(0, Ordering::Relaxed);
        self.linger2_s.store(0, Ordering::Relaxed);
        self.fastopen_keys.store(0, Ordering::Relaxed);
        self.incoming_cpu.store(0, Ordering::Relaxed);
    }

    /// Whether every bit of `flag` is set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag == flag
    }
}

/// Bits of [`Options::flags`].
pub mod option {
    /// TCP_NODELAY.
    pub const NODELAY: u32 = 1;
    /// TCP_CORK.
    pub const CORK: u32 = 2;
    /// SO_KEEPALIVE.
    pub const KEEPALIVE: u32 = 4;
    /// SO_LINGER is on.
    pub const LINGER: u32 = 8;
    /// TCP_QUICKACK.
    pub const QUICKACK: u32 = 16;
    /// SO_REUSEADDR.
    pub const REUSEADDR: u32 = 32;
    /// SO_REUSEPORT.
    pub const REUSEPORT: u32 = 64;
    /// IPV6_V6ONLY.
    pub const V6ONLY: u32 = 128;
    /// SO_OOBINLINE.
    pub const OOBINLINE: u32 = 256;
    /// IP_FREEBIND.
    pub const FREEBIND: u32 = 512;
    /// IP_TRANSPARENT.
    pub const TRANSPARENT: u32 = 1024;
    /// SO_ZEROCOPY.
    pub const ZEROCOPY: u32 = 2048;
    /// TCP_QUICKACK was turned off.
    pub const NO_QUICKACK: u32 = 4096;
    /// SO_BROADCAST and other flags without meaning for TCP, kept for `getsockopt`.
    pub const BROADCAST: u32 = 8192;
    /// SO_DONTROUTE.
    pub const DONTROUTE: u32 = 1 << 14;
    /// TCP_INQ.
    pub const INQ: u32 = 1 << 15;
    /// TCP_FASTOPEN_CONNECT.
    pub const FASTOPEN_CONNECT: u32 = 1 << 16;
    /// TCP_FASTOPEN_NO_COOKIE.
    pub const FASTOPEN_NO_COOKIE: u32 = 1 << 17;
    /// IP_BIND_ADDRESS_NO_PORT.
    pub const BIND_ADDRESS_NO_PORT: u32 = 1 << 18;
}

/// Bits of [`Options::quiet`]: options that change nothing about a TCP connection, kept for `getsockopt`.
pub mod quiet {
    /// SO_SELECT_ERR_QUEUE: what waits in the error queue is POLLPRI, too.
    pub const SELECT_ERR_QUEUE: u32 = 1;
}

/// Values of [`Options::congestion`].
pub mod congestion {
    /// The system's default, if the stack has it, else CUBIC.
    pub const DEFAULT: u32 = 0;
    /// "cubic".
    pub const CUBIC: u32 = 1;
    /// "reno".
    pub const RENO: u32 = 2;
    /// "bbr".
    pub const BBR: u32 = 3;
}

/// Bits of [`Socket::file`]: what the kernel keeps in an open file description, shared by dup and fork.
pub mod file {
    /// O_NONBLOCK.
    pub const NONBLOCK: u32 = 1;
    /// O_ASYNC.
    pub const ASYNC: u32 = 2;
    /// AF_INET6 (else AF_INET).
    pub const INET6: u32 = 4;
    /// More than one descriptor may refer to it (dup, SCM_RIGHTS): close goes through the kernel.
    pub const SHARED: u32 = 8;
    /// A `connect` was begun and no call has reported its end yet: the next one returns 0 or the error.
    pub const CONNECTING: u32 = 16;
    /// A program said who gets signals of it, or which (F_SETOWN, F_SETSIG): the descriptor is used for this socket alone.
    pub const SIGNALS: u32 = 128;
    /// A thread throws away the bytes that made signals: none that mean something may come yet.
    pub const HEARING: u32 = 256;
    /// SO_PEEK_OFF is not negative: readers and those who peek move it.
    pub const PEEK_OFF: u32 = 512;
    /// Its local address was chosen by `bind`.
    pub const BOUND: u32 = 1024;
    /// O_APPEND, which means nothing to a socket.
    pub const APPEND: u32 = 2048;
    /// O_NOATIME, which means as little.
    pub const NOATIME: u32 = 4096;
    /// What a socket keeps when its connection is dissolved.
    pub const KEPT: u32 = NONBLOCK | ASYNC | INET6 | APPEND | NOATIME;
    /// A listener that blocks, as its program sees it, has a kernel half that does not: a thread asleep in the
    /// kernel's accept would not hear of connections of ours.
    pub const KERNEL_NONBLOCK: u32 = 64;
}

/// Where a stream's bytes are: offset in the arena (40 bits), log2 of the capacity (8 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufRef(pub u64);

impl BufRef {
    /// No buffer.
    pub const NONE: Self = Self(0);

    /// From an offset in the arena (bytes) and log2 of a capacity.
    #[must_use]
    pub fn new(offset: u64, capacity_log2: u32) -> Self {
        Self(offset << 8 | u64::from(capacity_log2))
    }

    /// Offset in the arena, bytes.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 >> 8
    }

    /// Capacity in bytes; 0 for [`BufRef::NONE`] or nonsense.
    #[must_use]
    pub fn capacity(self) -> u64 {
        match self.0 & 0xff {
            log2 @ 12..=32 => 1 << log2,
            _ => 0,
        }
    }
}

/// One socket.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Socket {
    // Line 0: the engine writes, the program reads.
    /// Position behind the last byte received in order.
    pub rx_tail: AtomicU64,
    /// Position of the first byte not yet acknowledged by the peer: below it is free space.
    pub tx_head: AtomicU64,
    /// Bits of [`status`].
    pub status: AtomicU32,
    /// SO_ERROR: an errno; the program takes it by a swap with 0.
    pub error: AtomicI32,
    /// How often this slot was used.
    pub generation: AtomicU32,
    /// Shard that serves it.
    pub shard: AtomicU32,
    /// [`BufRef`] of the rx stream.
    pub rx_buf: AtomicU64,
    /// [`BufRef`] of the tx stream.
    pub tx_buf: AtomicU64,
    /// When something last came to a socket at which nothing waited (bytes, an end, a connection to accept), in [`crate::ticks`]:
    /// epoll reports in this order.
    pub news_at: AtomicU64,
    /// `rx_head` as the engine last read it: what it offers the peer rests on this.
    pub rx_seen: AtomicU64,

    // Line 1: the program writes, the engine reads (and checks).
    /// Position of the first byte that `recv` has not taken. Moved by compare-and-swap.
    pub rx_head: AtomicU64,
    /// Position behind the last byte that `send` queued.
    pub tx_tail: AtomicU64,
    /// Who copies into the tx stream now.
    pub tx_arbiter: Arbiter,
    /// Bits of [`intent`].
    pub intent: AtomicU32,
    /// Token of the descriptor that stands on this socket, 0 = none; until it is accepted what [`crate::waiting`] says.
    pub token: AtomicU32,
    /// Bits of [`file`].
    pub file: AtomicU32,
    /// When the program last asked the engine to look, in [`crate::ticks`].
    pub asked_at: AtomicU64,
    /// Position behind the last urgent byte of the tx stream (`send` with MSG_OOB); 0: none yet.
    pub tx_urgent: AtomicU64,
    /// Position of the last urgent byte of the rx stream + 1, written by the engine before the byte itself; 0: none.
    pub rx_urgent: AtomicU64,
    /// The `rx_urgent` whose byte the program has taken by MSG_OOB.
    pub rx_urgent_taken: AtomicU64,

    // Lines 2 and 3: sleeping, and the one-at-a-time operations.
    /// Rung when bytes, an end of file, an error or the result of an operation arrive.
    pub rx_bell: Bell,
    /// Rung when space in the tx stream or the end of a handshake arrives.
    pub tx_bell: Bell,
    /// Count of operations asked for (program).
    pub op_asked: AtomicU32,
    /// Count of operations answered (engine).
    pub op_done: AtomicU32,
    /// What was asked last, see [`OpCode::of`] and [`Socket::op`].
    pub op_code: AtomicU32,
    /// Result of the last operation.
    pub op_result: AtomicI32,
    /// Sleeps on the answer.
    pub op_bell: Bell,
    /// Who may ask.
    pub op_arbiter: Arbiter,
    /// Arguments of the operation.
    pub op_args: [AtomicU64; 6],
    /// Local address, written by the engine when it is known.
    pub local: SharedAddr,
    /// Peer's address.
    pub remote: SharedAddr,

    // Line 4: who wants to know.
    /// Epoll interests in this socket: [`crate::set::Member`] words, 0 = unused.
    pub members: [AtomicU64; MEMBERS],

    // Lines 5 and 6.
    /// Options, written by the program.
    pub options: Options,

    // Line 7.
    /// [`BufRef`] of the tx stream while the connection is [`status::DEFERRED`]: `tx_buf` has it when there is a connection.
    pub early_buf: AtomicU64,
    /// Position behind the last byte that `send` has accepted and holds back from the other end of a pair region; valid if
    /// ahead of that side's tail (see [`crate::freeze`]).
    pub tx_held: AtomicU64,
    /// Position of the first byte of the tx stream that was never sent, while TCP_NOTSENT_LOWAT bounds those: the engine's word.
    pub tx_sent: AtomicU64,
    /// Bytes that may go with the SYN of a deferred connection.
    pub early_room: AtomicU32,
    /// 1: the engine looks after what is held back, written by it.
    pub held_watched: AtomicU32,
    /// How many sends with MSG_ZEROCOPY there were: the program's word.
    pub zerocopy_sent: AtomicU32,
    /// How many of them the program knows the completion of, by its error queue.
    pub zerocopy_told: AtomicU32,
    /// [`crate::region::Header::stands_gone`] when the descriptor under this socket was found whole: the program's word.
    pub stand_seen: AtomicU32,
    /// Index of its [`crate::listener::Listener`], while it listens.
    pub listener: AtomicU32,
    /// First errno that ended the connection, kept for `utcp why` after SO_ERROR was read.
    pub cause: AtomicI32,
    /// The client's fork epoch when this socket got its descriptor.
    pub epoch: AtomicU32,
    /// Process id of the program that uses it, for `utcp ss`.
    pub owner_pid: AtomicU32,
    /// SO_BUSY_POLL plus one (microseconds), as somebody set it: 0 = nobody. An accepted socket starts with its listener's.
    pub busy_poll: AtomicU32,
}

/// Bits of a position below those of its generation.
const GENERATION_SHIFT: u32 = 44;

/// Whether a position that a stream of the `generation`-th use was found at belongs to another use: the slot's own word, `now`, says so.
/// The position alone does not, as a stream of more than 16 TiB runs on into the positions of uses to come.
#[inline]
#[must_use]
pub fn is_anothers(position: u64, generation: u32, now: &AtomicU32) -> bool {
    position >> GENERATION_SHIFT != u64::from(generation) && now.load(Ordering::Acquire) != generation
}

/// How many uses to come lose their positions to a stream that began at `first` and ended at `last`: they are left out, or who is late
/// could take a position of theirs for the one that he saw.
#[must_use]
pub fn uses_overrun(first: u64, last: u64) -> u32 {
    /// Fewer than there are, by far: whoever lies about his positions gets no generation twice in turn.
    const MOST: u64 = 1 << 12;
    // One that was taken away stood where it stands in another place now.
    if last == FROZEN {
        return 0;
    }
    (last.wrapping_sub(first) >> GENERATION_SHIFT).min(MOST) as u32
}

/// The first position of both streams of slot `number` in its `generation`-th use.
///
/// Streams lie a power of two apart. Beginning at the same place they would meet in a few sets of every cache, and connections that
/// say much the same would throw each other out: neighbours begin on different lines of their first page.
#[must_use]
pub fn first_position(number: u32, generation: u32) -> u64 {
    /// Half a page of 4 KiB: a connection that says little needs no second one.
    const LINES: u32 = 32;
    const LINE: u64 = 64;
    (u64::from(generation) << GENERATION_SHIFT) + u64::from(number % LINES) * LINE
}

impl Socket {
    /// Both streams are empty, and begin at `first`.
    pub fn begin_at(&self, first: u64) {
        for position in [&self.rx_tail, &self.tx_head, &self.rx_head, &self.rx_seen, &self.tx_tail] {
            // Release: who reads one of this use sees that the generation is another.
            position.store(first, Ordering::Release);
        }
    }

    /// How many bytes a program may take before the engine must hear of it: a quarter of what the peer may have under way
    /// at most, which is the stream of `capacity` bytes, or less by SO_RCVBUF. A peer that has filled the window sends nothing until then.
    #[must_use]
    pub fn taken_step(&self, capacity: u64) -> u64 {
        let window = match self.options.rcvbuf.load(Ordering::Relaxed) {
            0 => capacity,
            bytes => capacity.min(u64::from(bytes) / 2),
        };
        (window / 4).max(1)
    }

    /// Whether the engine must hear that a reader has moved [`Socket::rx_head`] to `head` in a stream of `capacity` bytes, and
    /// thereby taken all that it saw (`drained`): it is behind by [`Socket::taken_step`], or a sender may wait for an
    /// acknowledgement that waits for this ([`status::ACK_WAITS`]).
    #[inline]
    #[must_use]
    pub fn awaits_reader(&self, head: u64, capacity: u64, drained: bool) -> bool {
        let behind = head.wrapping_sub(self.rx_seen.load(Ordering::Acquire));
        behind >= self.taken_step(capacity)
            || drained && self.status.load(Ordering::Relaxed) & status::ACK_WAITS != 0
    }

    /// Adds `bits` to what the program wants of the slot's `generation`-th use: what it wanted before. `None`: the slot is in another use,
    /// of which nothing was said.
    pub fn intend(&self, generation: u32, bits: u32) -> Option<u32> {
        self.change_intent(generation, |wanted| wanted | bits)
    }

    /// The opposite of [`Self::intend`].
    pub fn renounce(&self, generation: u32, bits: u32) -> Option<u32> {
        self.change_intent(generation, |wanted| wanted & !bits)
    }

    fn change_intent(&self, generation: u32, change: impl Fn(u32) -> u32) -> Option<u32> {
        let mut word = self.intent.load(Ordering::Relaxed);
        loop {
            if word & !intent::ALL != intent::of(generation, 0) {
                return None;
            }
            let wanted = word & intent::ALL;
            let new = intent::of(generation, change(wanted));
            // SeqCst: the engine freezes positions and then looks at what was wanted, or the other way round.
            match self.intent.compare_exchange_weak(word, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return Some(wanted),
                Err(now) => word = now,
            }
        }
    }

    /// What was asked last, an [`OpCode`] as u32; 0 if it was asked of another use of the slot.
    #[must_use]
    pub fn op(&self) -> u32 {
        let (word, generation) =
            (self.op_code.load(Ordering::Relaxed), self.generation.load(Ordering::Relaxed));
        if word >> OP_BITS == generation & (u32::MAX >> OP_BITS) { word & ((1 << OP_BITS) - 1) } else { 0 }
    }

    /// Bytes that `recv` could take now.
    #[must_use]
    pub fn rx_available(&self) -> u64 {
        let tail = self.rx_tail.load(Ordering::Acquire);
        tail.saturating_sub(self.rx_head.load(Ordering::Relaxed))
    }

    /// Bytes that wait in the tx stream, acknowledged ones excluded.
    #[must_use]
    pub fn tx_queued(&self) -> u64 {
        let head = self.tx_head.load(Ordering::Acquire);
        self.tx_tail.load(Ordering::Relaxed).saturating_sub(head)
    }

    /// Whether every bit of `bits` is set in the status.
    #[must_use]
    pub fn is(&self, bits: u32) -> bool {
        self.status.load(Ordering::Acquire) & bits == bits
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn streams_of_neighbours_begin_on_lines_of_their_own() {
        let lines: std::collections::HashSet<u64> =
            (100..132).map(|n| first_position(n, 7) % 4096 / 64).collect();
        assert_eq!(lines.len(), 32);
        assert!(lines.iter().all(|line| *line < 32), "half of a page is left");
        assert!((0..1000).all(|n| first_position(n, 7) >> 44 == 7));
    }

    #[test]
    fn a_stream_outgrows_the_positions_of_its_use() {
        let (first, now) = (first_position(3, 7), AtomicU32::new(7));
        for carried in [0, 1 << 40, 1 << 44, 5 << 44] {
            assert!(!is_anothers(first + carried, 7, &now), "{carried} bytes");
            assert_eq!(u64::from(uses_overrun(first, first + carried)), carried >> 44);
        }
        now.store(8, Ordering::Relaxed);
        assert!(is_anothers(first_position(3, 8), 7, &now));
        assert!(uses_overrun(first, 0) < 1 << 20, "a lie");
        assert_eq!(uses_overrun(first, FROZEN), 0);
    }

    #[test]
    fn addresses_cross_whole() {
        let addr = Addr { ip: *b"0123456789abcdef", port: 65535, scope: u32::MAX };
        assert_eq!(Addr::from_words(addr.to_words()), addr);
        let shared = SharedAddr::default();
        shared.store(addr);
        assert_eq!(shared.load(), addr);
    }

    /// A thread that closes, or shuts down, what the engine has taken back meanwhile does nothing to who has the slot by then.
    #[test]
    fn who_is_late_wants_nothing() {
        // SAFETY: plain words; all zero is what a fresh region has.
        let socket: Box<Socket> = unsafe { Box::new(std::mem::zeroed()) };
        assert_eq!(socket.intend(0, intent::OWNED), Some(0));
        assert_eq!(socket.intend(0, intent::CLOSE), Some(intent::OWNED));
        for generation in [1, 2, 0xf_ffff] {
            let begun = intent::of(generation, intent::OWNED);
            socket.intent.store(begun, Ordering::Relaxed);
            for late in [0, generation - 1, generation ^ 0x8_0000] {
                let changed = [
                    socket.intend(late, intent::CLOSE | intent::SHUT_WR),
                    socket.renounce(late, intent::OWNED),
                ];
                assert_eq!((changed, socket.intent.load(Ordering::Relaxed)), ([None; 2], begun), "{late}");
            }
            assert_eq!(socket.intend(generation, intent::MORE), Some(intent::OWNED));
            assert_eq!(socket.renounce(generation, intent::OWNED), Some(intent::OWNED | intent::MORE));
            assert_eq!(socket.intent.load(Ordering::Relaxed) & intent::ALL, intent::MORE);
        }
    }

    #[test]
    fn nonsense_buffers_have_no_room() {
        assert_eq!(BufRef::NONE.capacity(), 0);
        assert_eq!(BufRef(63).capacity(), 0);
        let buf = BufRef::new(1 << 35, 18);
        assert_eq!((buf.offset(), buf.capacity()), (1 << 35, 1 << 18));
    }
}
