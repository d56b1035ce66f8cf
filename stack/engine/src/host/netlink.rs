//! Netlink as bytes: framing, attributes, requests, dumps.
//!
//! Why not typed messages from a crate: those refuse a whole message when a newer kernel adds an attribute, or a value of
//! one, that they don't know. A mirror has to take the dozen attributes it needs and step over the rest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};

/// Bytes that one read takes. The kernel fills dumps to 32 KiB; single notifications are smaller by far.
const READ_BYTES: usize = 64 << 10;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile, so that the dump may lack entries.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// One message: a view of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows the netlink header: a fixed structure, then attributes.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Attributes after the `fixed` bytes of structure that such a message starts with.
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.body.get(align(fixed)..).unwrap_or_default())
    }

    /// The errno of an `NLMSG_ERROR`; `Some(0)` is an acknowledgement.
    fn error(&self) -> Option<i32> {
        (self.kind == ERROR).then(|| i32_at(self.body, 0).unwrap_or(0).saturating_neg())
    }
}

/// The messages of one datagram; stops at the first one that is cut short.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let body = self.0.get(HEADER..len)?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            body,
        };
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes: (type without its flag bits, value). Stops at the first one that is cut short.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff; // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// Native-endian number at an offset, if it is there.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|chunk| u16::from_ne_bytes(*chunk))
}

/// Native-endian number at an offset, if it is there.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|chunk| u32::from_ne_bytes(*chunk))
}

/// Native-endian number at an offset, if it is there.
pub fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|chunk| i32::from_ne_bytes(*chunk))
}

/// A request under construction.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of type `kind` that starts with the structure `fixed`.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        bytes.resize(align(bytes.len()), 0);
        Self(bytes)
    }

    /// Appends an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("attributes of requests are short");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// The finished message.
    #[cfg(test)]
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.seal(0).to_vec()
    }

    fn seal(&mut self, sequence: u32) -> &[u8] {
        let len = u32::try_from(self.0.len()).expect("requests are short");
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// A netlink socket and the buffer that it reads into.
pub struct Channel {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// What a read brought.
#[derive(Debug)]
pub enum Read<'a> {
    /// One datagram of the kernel.
    Messages(Messages<'a>),
    /// Something was lost: the socket's buffer overran or a datagram was larger than ours.
    Lost,
    /// Nothing is there (of a non-blocking socket).
    Empty,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Channel {
    /// A socket of `protocol` in the calling thread's network namespace.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self { socket, buffer: Vec::with_capacity(READ_BYTES), sequence: 0 })
    }

    /// A non-blocking route socket that is a member of multicast `groups`.
    pub fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let channel = Self::open(protocol)?;
        channel.socket.set_non_blocking(true)?;
        // Room for a burst; the system's limit caps it, and an overrun is survived by a resync.
        channel.socket.set_rx_buf_sz(1u32 << 20)?;
        for &group in groups {
            channel.socket.add_membership(group)?;
        }
        Ok(channel)
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes of messages that may wait, as near as the system allows.
    #[cfg(test)]
    pub fn set_buffer(&self, bytes: u32) {
        self.socket.set_rx_buf_sz(bytes).expect("it can always be made smaller");
    }

    /// Reads one datagram.
    pub fn read(&mut self) -> io::Result<Read<'_>> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                // Programs may send to netlink sockets too; only port 0 is the kernel.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((len, _)) if len > self.buffer.len() => return Ok(Read::Lost),
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Read::Lost),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Empty),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Read::Messages(Messages(&self.buffer)))
    }

    /// Sends a request that wants no answer. The kernel judges it before `send` returns, so that a refusal is
    /// already there to be read.
    pub fn tell(&mut self, mut request: Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.socket.send_to(request.seal(sequence), &SocketAddr::new(0, 0), 0)?;
        while let Read::Messages(messages) = self.read()? {
            for message in messages.filter(|message| message.sequence == sequence) {
                if let Some(errno) = message.error().filter(|&errno| errno != 0) {
                    return Err(io::Error::from_raw_os_error(errno));
                }
            }
        }
        Ok(())
    }

    /// Sends a request with `DUMP` or `ACK` and hands each message of the answer to `each`. `Ok(false)`: the kernel says that it
    /// changed meanwhile.
    pub fn dump(&mut self, mut request: Request, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.socket.send_to(request.seal(sequence), &SocketAddr::new(0, 0), 0)?;
        let mut consistent = true;
        loop {
            let messages = match self.read()? {
                Read::Messages(messages) => messages,
                Read::Lost => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                Read::Empty => return Err(io::ErrorKind::WouldBlock.into()),
            };
            for message in messages.filter(|message| message.sequence == sequence) {
                consistent &= message.flags & DUMP_INTERRUPTED == 0;
                match (message.kind, message.error()) {
                    (_, Some(0)) => return Ok(consistent), // The acknowledgement of a request that is no dump.
                    (_, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    (DONE, _) => {
                        // A dump that broke off says so in its last message.
                        let code = i32_at(message.body, 0).unwrap_or(0);
                        return match code {
                            0.. => Ok(consistent),
                            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                        };
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back() {
        let mut request = Request::new(26, DUMP, &[1, 2, 3]).with(7, b"ab").with(8 | 0x8000, &[]);
        let bytes = request.seal(5).to_vec();
        let mut messages = Messages(&bytes);
        let message = messages.next().expect("one message");
        assert_eq!((message.kind, message.flags, message.sequence), (26, DUMP | REQUEST, 5));
        assert_eq!(&message.body[..3], &[1, 2, 3]);
        let attributes: Vec<_> = message.attributes(3).collect();
        assert_eq!(attributes, [(7, &b"ab"[..]), (8, &[][..])]);
        assert!(messages.next().is_none());
    }

    #[test]
    fn whatever_is_cut_short_ends_the_iteration() {
        let mut request = Request::new(26, 0, &[0; 12]).with(7, &[9; 40]);
        let bytes = request.seal(1).to_vec();
        for len in 0..bytes.len() {
            assert!(Messages(&bytes[..len]).next().is_none(), "{len} bytes are no message");
        }
        for len in 0..44 {
            assert!(Attributes(&bytes[28..28 + len]).next().is_none(), "{len} bytes are no attribute");
        }
        for first in 0..4 {
            // Lengths below the header's own must not loop or panic.
            assert_eq!(Attributes(&[first, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        }
        assert_eq!(Messages(&[3; 64]).count(), 0);
    }
}
