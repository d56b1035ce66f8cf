//! What goes across the border between a TCB and the engine besides segments: calls of the user in, effects out.

use crate::config::{CongestionKind, Keepalive};
use crate::seq::SeqNum;
use crate::time::Duration;

/// What the engine has to do after a TCB has seen an event. All of it is data; nothing has happened yet.
///
/// Order: copy (`place`), release (`released`), publish (`advanced`), report (`events`, `error`), then, if
/// `transmit`, call `poll_transmit` until `None`, and file the flow under its new `next_deadline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Bytes at the head of the transmit stream that the peer acknowledged: forget them. SND.UNA moved by as much.
    pub released: u32,
    /// The part of the segment's payload that belongs in the receive stream, and where.
    pub place: Option<Place>,
    /// Bytes by which the in-order part of the receive stream grew: publish them to the program.
    pub advanced: u32,
    /// What became true.
    pub events: Events,
    /// The connection failed, or (without [`Events::CLOSED`]) a soft error came in: the value for `SO_ERROR`.
    pub error: Option<SocketError>,
    /// There is something to send: call `poll_transmit` until `None`.
    pub transmit: bool,
    /// The segment was not processed (or not in full), and why. Count it.
    pub drop: Option<DropReason>,
    /// With [`Events::URGENT`]: where the urgent byte lies, in stream bytes from the old RCV.NXT.
    pub urgent: Option<u32>,
}

impl Actions {
    /// True if there is nothing to do, except perhaps to transmit.
    #[inline]
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        let Self { released, place, advanced, events, error, transmit: _, drop, urgent } = self;
        *released == 0
            && place.is_none()
            && *advanced == 0
            && events.is_empty()
            && error.is_none()
            && drop.is_none()
            && urgent.is_none()
    }
}

/// A copy from a segment's payload into the receive stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where to start in the payload of the segment, in bytes.
    pub from: u32,
    /// Where to put it: stream bytes beyond RCV.NXT as it was before this call. Zero for in-order data.
    pub at: u32,
    /// How many bytes.
    pub len: u32,
}

/// A set of things that became true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Events(u16);

impl Events {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The three-way handshake is complete.
    pub const CONNECTED: Self = Self(1 << 0);
    /// In-order data arrived (`advanced` is not zero).
    pub const READABLE: Self = Self(1 << 1);
    /// The peer acknowledged data (`released` is not zero): there may be room in the transmit stream.
    pub const WRITABLE: Self = Self(1 << 2);
    /// The peer sent FIN and all data before it is here: end of file after what is readable.
    pub const PEER_FIN: Self = Self(1 << 3);
    /// Our FIN is acknowledged: everything we sent has arrived.
    pub const FIN_ACKED: Self = Self(1 << 4);
    /// The connection is over. After `poll_transmit` returned `None`, drop the TCB.
    pub const CLOSED: Self = Self(1 << 5);
    /// The connection is in TIME-WAIT. After `poll_transmit` returned `None`, replace the TCB by `Tcb::time_wait`.
    pub const TIME_WAIT: Self = Self(1 << 6);
    /// Urgent data: see [`Actions::urgent`].
    pub const URGENT: Self = Self(1 << 7);
    /// The window limits the sender: a larger receive stream would help (see `Tcb::recv_capacity_wanted`).
    pub const RECV_LIMITED: Self = Self(1 << 8);
    /// The path's maximum segment size changed.
    pub const MSS_CHANGED: Self = Self(1 << 9);
    /// A challenge ACK (RFC 5961) is due and nothing else asks for an ACK: [`crate::ChallengeLimit`] says whether it may
    /// leave; if not, [`crate::Tcb::withhold_challenge`].
    pub const CHALLENGE: Self = Self(1 << 10);

    /// Adds `other`.
    #[inline]
    pub fn insert(&mut self, other: Self) {
        // Stored whole. Of a bit the compiler would make a store of one byte, and who then reads both waits until all stores before
        // are in the cache: a tenth of what a message took.
        self.0 = core::hint::black_box(self.0 | other.0);
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this set and not in `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if any of `other` is in this set.
    #[inline]
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if nothing is in this set.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as bits, for traces.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// Why a connection failed; each has its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketError {
    /// `ECONNREFUSED`: RST in answer to our SYN, or ICMP port unreachable.
    Refused,
    /// `ECONNRESET`: RST from the peer.
    Reset,
    /// `EPIPE`: RST after the peer had sent FIN and we had data to send, as Linux has it.
    BrokenPipe,
    /// `ETIMEDOUT`: retransmissions, keep-alive probes or the user timeout ran out.
    TimedOut,
    /// `ECONNABORTED`: we gave the connection up.
    Aborted,
    /// `EHOSTUNREACH`: ICMP host unreachable or administratively prohibited.
    HostUnreachable,
    /// `ENETUNREACH`: ICMP network unreachable.
    NetUnreachable,
    /// `ENOPROTOOPT`: ICMP protocol unreachable.
    ProtocolUnreachable,
    /// `EHOSTDOWN`: ICMP host unknown.
    HostDown,
    /// `ENONET`: ICMP source host isolated.
    NotOnNetwork,
    /// `EOPNOTSUPP`: ICMP source route failed.
    SourceRouteFailed,
    /// `EMSGSIZE`: ICMP fragmentation needed.
    MessageSize,
    /// `EPROTO`: ICMP parameter problem.
    Protocol,
    /// `EACCES`: ICMPv6 administratively prohibited.
    AccessDenied,
}

/// Why a segment was not processed. Each is a counter of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// RFC 9293 §3.10.7.4, first: outside the receive window.
    OutOfWindow,
    /// All of its bytes had been received before.
    Duplicate,
    /// RFC 7323 §5: the timestamp is older than the last one (PAWS).
    Paws,
    /// The segment has no ACK bit where one is required.
    AckMissing,
    /// It acknowledges something that was never sent.
    AckOfUnsent,
    /// RFC 5961 §5.2: it acknowledges something older than any window we were given.
    AckTooOld,
    /// RFC 5961 §3.2: RST in the window but not at RCV.NXT.
    RstNotExact,
    /// RFC 5961 §4.2: SYN in a synchronized state.
    SynInWindow,
    /// RST outside the window.
    RstOutOfWindow,
    /// A segment in SYN-SENT that carries neither SYN nor RST.
    NoSyn,
    /// The bounded list of out-of-order ranges is full.
    ReassemblyFull,
    /// Data beyond the space of the receive stream (zero-window probe).
    NoSpace,
    /// Data after the peer's FIN.
    AfterFin,
    /// Data for a socket that the program has closed.
    Orphan,
    /// The connection is closed.
    Closed,
    /// A SYN cookie or a half-open record does not match.
    BadCookie,
    /// RFC 1337: RST in TIME-WAIT.
    TimeWaitRst,
    /// The ICMP error does not belong to anything in flight.
    IcmpNotInFlight,
    /// RFC 8201 §4: it asks for packets that are smaller than every link must carry.
    IcmpMtuTooSmall,
    /// `TCP_DEFER_ACCEPT`: the handshake's ACK brought no data.
    Deferred,
}

impl DropReason {
    /// Whether such a segment may be the guess of somebody who can't see the connection (RFC 5961 §3 to §5): the ACK that answers
    /// it is a challenge, and counts for [`crate::ChallengeLimit`].
    #[must_use]
    pub const fn is_guess(self) -> bool {
        matches!(self, Self::RstNotExact | Self::SynInWindow | Self::AckOfUnsent | Self::AckTooOld)
    }
}

/// A call of the program on a socket, as the TCB sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserCall {
    /// SEND: the program appended `added` bytes to the transmit stream.
    Send {
        /// How many.
        added: u32,
        /// `MSG_MORE`: wait for more before a partial segment leaves, as long as cork would.
        more: bool,
        /// `MSG_OOB`: the last of these bytes is urgent.
        urgent: bool,
    },
    /// RECEIVE: the program consumed `n` bytes of the receive stream.
    Received {
        /// How many.
        n: u32,
    },
    /// A connection that was begun by [`crate::Tcb::connect_fast`]: what its SYN shall bring is in the transmit stream.
    Start {
        /// A call waits for the answer to send more: the ACK of the SYN-ACK may go with that.
        more_waits: bool,
    },
    /// `shutdown(SHUT_WR)`: FIN after the data queued so far.
    Shutdown,
    /// `shutdown(SHUT_RD)`: what arrives still is taken, as Linux does; after our FIN, it resets the connection.
    ShutdownRead,
    /// The last descriptor is gone. Unread data makes it a reset (RFC 1122 §4.2.2.13), else FIN after the data.
    Close,
    /// ABORT: send RST and forget everything (`SO_LINGER` with zero, or the process's stack is torn down).
    Abort,
    /// `TCP_NODELAY`.
    SetNoDelay(bool),
    /// `TCP_CORK`.
    SetCork(bool),
    /// `TCP_QUICKACK`.
    SetQuickAck(bool),
    /// `SO_KEEPALIVE` and its times.
    SetKeepalive(Option<Keepalive>),
    /// `TCP_USER_TIMEOUT`; zero is the default.
    SetUserTimeout(Duration),
    /// `TCP_CONGESTION`.
    SetCongestion(CongestionKind),
    /// `TCP_LINGER2`.
    SetFinTimeout(Duration),
    /// `TCP_MAXSEG`, or the MTU of the route changed.
    SetMss(u16),
    /// `TCP_SYNCNT`.
    SetSynRetries(u8),
    /// `SO_MAX_PACING_RATE` in bytes per second.
    SetPacingRate(u64),
    /// The receive stream now holds this many bytes. It never shrinks below what was advertised.
    SetRecvCapacity(u32),
}

/// Why a user call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserError {
    /// `EPIPE`: FIN is queued already, or the connection is closed for sending.
    NotWritable,
    /// `ENOTCONN`: the connection is closed.
    NotConnected,
    /// The call would make the stream longer than 2^30 bytes.
    TooMuch,
    /// The program claims to have consumed more than there was.
    Overrun,
}

/// An ICMP error about a segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// What the router or the peer complained about.
    pub kind: IcmpKind,
    /// The sequence number of the quoted segment; it must be in flight (RFC 5927 §4.1).
    pub seq: SeqNum,
}

/// The ICMP errors that matter to TCP, IPv4's and IPv6's in one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpKind {
    /// A hard error (RFC 1122 §4.2.3.9 as Linux reads it): ends a connection attempt.
    Hard(SocketError),
    /// A soft error: remembered, and reported if the connection times out.
    Soft(SocketError),
    /// RFC 1191, RFC 8201: the packet was larger than this MTU. Zero if the router did not say.
    TooBig {
        /// The next hop's MTU in bytes.
        mtu: u32,
    },
}
