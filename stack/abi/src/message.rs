//! The control channel: fixed-size messages over a SOCK_SEQPACKET unix socket, descriptors beside them.
//!
//! Used when something is set up: attaching, descriptors, listeners, bells of epoll sets. Never on a
//! connection's path. One message, one answer ([`Reply`]); a process that is forked gets a channel
//! of its own by [`Kind::Adopt`], sent with one end of a new socket pair over the inherited channel.

use crate::socket::Addr;

/// SO_MAX_PACING_RATE of the descriptors under utcp sockets (it means nothing to a unix socket): by it, a program knows one
/// that it got by exec or from another process.
pub const STAND_MARK: u32 = 0x7574_6350;
/// How the far end of a relayed socket's pair is called (an abstract unix name): behind this follow the words of the local and
/// the remote address ([`Addr::to_words`], native byte order) and a number that makes the name unique, its lowest bit AF_INET6. So whoever holds the
/// descriptor can tell its addresses by getpeername.
pub const RELAY_NAME: &[u8] = b"utcp-relay:";
/// Bytes of such a name, without its leading zero.
pub const RELAY_NAME_LEN: usize = RELAY_NAME.len() + 6 * 8 + 4;

/// The name of a relayed socket.
#[must_use]
pub fn relay_name(local: Addr, remote: Addr, inet6: bool, unique: u32) -> [u8; RELAY_NAME_LEN] {
    let mut name = [0; RELAY_NAME_LEN];
    let words = [local.to_words(), remote.to_words()];
    let parts = words.as_flattened().iter().flat_map(|word| word.to_ne_bytes());
    let bytes = RELAY_NAME.iter().copied().chain(parts).chain((unique << 1 | u32::from(inet6)).to_ne_bytes());
    for (to, from) in name.iter_mut().zip(bytes) {
        *to = from;
    }
    name
}

/// The local and remote address in a relayed socket's name, and whether it is AF_INET6.
#[must_use]
pub fn relayed_addresses(name: &[u8]) -> Option<(Addr, Addr, bool)> {
    let (words, rest) = name.strip_prefix(RELAY_NAME)?.as_chunks::<8>();
    let inet6 = u32::from_ne_bytes(rest.try_into().ok()?) & 1 == 1;
    let mut words = words.iter().map(|eight| u64::from_ne_bytes(*eight));
    let mut address = || Some(Addr::from_words([words.next()?, words.next()?, words.next()?]));
    Some((address()?, address()?, inet6))
}

/// Bytes of every message and reply.
pub const MESSAGE_LEN: usize = 128;
/// Descriptors in one reply at most.
pub const FDS_MAX: usize = 64;

/// What a message asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// First message of a program: `a` = ABI version, `b` = pid, `c` = bytes of the region that it has room for (0: all),
    /// [`Message::text`] = its UTCP_DEVICE. Reply: `a` =
    /// client, `b` = shards, `c` = bytes of the region to map, [`Reply::text`] = the engine's devices if they are others (else
    /// empty); descriptors: region, engine page, one eventfd per shard.
    Hello = 1,
    /// A forked child's channel: `b` = pid; descriptor: the engine's end. No reply on the old channel.
    Adopt = 2,
    /// `a` descriptors for sockets. Reply: `a` = how many, `tokens`; descriptors.
    Pool = 3,
    /// Bell of set `a`; descriptor: an eventfd, or one end of a socket pair, as it must be (EPERM) for a program of
    /// another user than the engine's. Reply.
    SetBell = 4,
    /// Socket `a` of generation `c` listens with backlog `b`; descriptor: the kernel socket, which says where. Reply: errno (ESTALE: the slot was a listener's that is gone), `a` = listener slot; `b` = slot + 1 of the socket by which this client has that listener already, or 0.
    Listen = 5,
    /// A descriptor of listening socket `a` was closed: look whether the kernel still has it; `b` = 1: it is the kernel's alone
    /// from now on; `b` = 2: new connections come by the kernel, those that wait here may still be accepted. Reply.
    ListenCheck = 6,
    /// Tools: a report. `a` = [`Report`], `b` = argument. Reply: `a` = bytes; the text follows in
    /// messages of up to 32 KiB, as they are read.
    Report = 7,
    /// Over the descriptor under a socket: keep this bound kernel socket as long as it (bind before connect). Descriptor: it.
    /// No reply.
    Hold = 8,
    /// Tools: what passes the engine's ports. [`Message::text`] = the port, empty for all. Reply: errno; then pcapng in messages
    /// of up to 32 KiB until the tool shuts its end down for writing; what was captured until then still comes.
    Trace = 9,
    /// Over the descriptor under a socket: from now on its bytes go through this descriptor; see [`crate::socket::status::MOVED`].
    /// Descriptor: any, so that no program's bytes look like it. No reply.
    Relay = 10,
    /// The pair region of number `a` ([`crate::pair`]). Reply; descriptor: its memory.
    Pair = 11,
    /// Lane of pair region `a` into set `b` of side `c`, the program's own; descriptor: its eventfd. Reply: EPERM if the
    /// other program is another user's, who must not have it.
    Lane = 12,
    /// The bell of the lane of pair region `a` into set `b` of side `c`, the other program's. Reply; descriptor: it.
    LaneBell = 13,
    /// A BPF program chooses among the listeners of a SO_REUSEPORT group. Descriptor: one of them. Reply.
    Group = 14,
}

/// What a tool wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Report {
    /// Every socket.
    Sockets = 1,
    /// Counters.
    Counters = 2,
    /// Why is port or pid `b` (not) accelerated?
    Why = 3,
    /// Clients.
    Clients = 4,
}

impl Kind {
    /// From the number that crossed.
    #[must_use]
    pub fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::Adopt,
            3 => Self::Pool,
            4 => Self::SetBell,
            5 => Self::Listen,
            6 => Self::ListenCheck,
            7 => Self::Report,
            8 => Self::Hold,
            9 => Self::Trace,
            10 => Self::Relay,
            11 => Self::Pair,
            12 => Self::Lane,
            13 => Self::LaneBell,
            14 => Self::Group,
            _ => return None,
        })
    }
}

/// A message: 128 bytes, every pattern valid.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Message {
    /// [`crate::layout::MAGIC`].
    pub magic: u32,
    /// [`Kind`] as u32.
    pub kind: u32,
    /// See [`Kind`].
    pub a: u64,
    /// See [`Kind`].
    pub b: u64,
    /// See [`Kind`].
    pub c: u64,
    /// Program name for people, NUL-padded.
    pub name: [u8; 16],
    /// A longer text, see [`Message::text`].
    pub spare: [u64; 10],
}

/// A reply: 128 bytes without the tokens, which follow for [`Kind::Pool`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// [`crate::layout::MAGIC`].
    pub magic: u32,
    /// 0 or an errno.
    pub error: i32,
    /// See [`Kind`].
    pub a: u64,
    /// See [`Kind`].
    pub b: u64,
    /// See [`Kind`].
    pub c: u64,
    /// Tokens of the descriptors that come with it.
    pub tokens: [u32; FDS_MAX],
}

impl Default for Reply {
    fn default() -> Self {
        Self { magic: crate::layout::MAGIC, error: 0, a: 0, b: 0, c: 0, tokens: [0; FDS_MAX] }
    }
}

impl Message {
    /// A message of `kind`.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { magic: crate::layout::MAGIC, kind: kind as u32, ..Self::default() }
    }

    /// Bytes of the longest text.
    pub const TEXT_MAX: usize = 80;

    /// With a text, cut off behind [`Self::TEXT_MAX`] bytes.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        let mut bytes = [0; Self::TEXT_MAX];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        for (word, eight) in self.spare.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*eight);
        }
        self
    }

    /// The bytes of the text, NUL-padded.
    #[must_use]
    pub fn text(&self) -> [u8; Self::TEXT_MAX] {
        let mut bytes = [0; Self::TEXT_MAX];
        for (eight, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.spare) {
            *eight = word.to_ne_bytes();
        }
        bytes
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: repr(C) without padding (checked below), so every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// From the bytes that came; `None` unless the length and the magic are right.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length matches and every bit pattern is a `Message`.
        let message = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (message.magic == crate::layout::MAGIC).then_some(message)
    }
}

impl Reply {
    /// Bytes of the longest text.
    pub const TEXT_MAX: usize = 4 * FDS_MAX;

    /// With a text in place of tokens, cut off behind [`Self::TEXT_MAX`] bytes.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        let mut bytes = [0; Self::TEXT_MAX];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        for (word, four) in self.tokens.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_ne_bytes(*four);
        }
        self
    }

    /// The bytes of the text, NUL-padded.
    #[must_use]
    pub fn text(&self) -> [u8; Self::TEXT_MAX] {
        let mut bytes = [0; Self::TEXT_MAX];
        for (four, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.tokens) {
            *four = word.to_ne_bytes();
        }
        bytes
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: repr(C) without padding (checked below).
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// From the bytes that came; `None` unless the length and the magic are right.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length matches and every bit pattern is a `Reply`.
        let reply = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (reply.magic == crate::layout::MAGIC).then_some(reply)
    }
}

const _: () = {
    assert!(size_of::<Message>() == MESSAGE_LEN);
    assert!(size_of::<Reply>() == 8 + 24 + 4 * FDS_MAX);
};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_in_names() {
        let (local, remote) =
            (Addr { ip: [1; 16], port: 80, scope: 3 }, Addr { ip: [2; 16], port: 65_535, scope: 0 });
        let name = relay_name(local, remote, true, 7);
        assert_eq!(relayed_addresses(&name), Some((local, remote, true)));
        assert_ne!(name, relay_name(local, remote, true, 8));
        assert_eq!(relayed_addresses(&name[..name.len() - 8]), None);
        assert_eq!(relayed_addresses(b"other"), None);
    }

    #[test]
    fn messages_cross() {
        let mut message = Message::new(Kind::Listen);
        (message.a, message.c) = (7, u64::MAX);
        assert_eq!(Message::from_bytes(message.as_bytes()), Some(message));
        assert_eq!(Message::from_bytes(&message.as_bytes()[1..]), None);
        let text = message.with_text("xdp:eth0").text();
        assert_eq!((&text[..8], text[8]), (&b"xdp:eth0"[..], 0));
        assert_eq!(Message::from_bytes(&[0; MESSAGE_LEN]), None, "no magic");
        let reply = Reply { error: 98, ..Reply::default() }.with_text("tap:t");
        assert_eq!((&reply.text()[..5], reply.text()[5]), (&b"tap:t"[..], 0));
        assert_eq!(Reply::from_bytes(reply.as_bytes()), Some(reply));
    }
}
