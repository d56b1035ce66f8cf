//! The system calls of packet sockets, and the ring that the kernel writes frames into.
//!
//! ```text
//!  slot of the ring:  [ tpacket2_hdr │ address │ … │ virtio_net_hdr │ frame, or its first bytes ]
//!                       status: the kernel's ──► ours ──► the kernel's
//! ```
//!
//! Ground rules
//!
//! - A slot is ours from when its status says so (Acquire) until we give it back (Release).
//! - Offsets and lengths in a slot are the kernel's, and checked against the slot all the same.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::{Mapping, check, own};

const PACKET_RX_RING: libc::c_int = 5;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_COPY_THRESH: libc::c_int = 7;
const PACKET_VERSION: libc::c_int = 10;
const PACKET_VNET_HDR: libc::c_int = 15;
const TPACKET_V2: libc::c_int = 1;
const STATUS_KERNEL: u32 = 0;
const STATUS_USER: u32 = 1;
/// The slot has the first bytes alone; all of the frame waits in the socket.
const STATUS_COPY: u32 = 2;

/// What is kept of a frame that is to wake us; fewer than any frame has.
const WAKE_BYTES: u32 = 1;

/// Bytes of a slot: a frame of the usual MTU fits.
const SLOT: u32 = 2048;
/// Bytes that the kernel allocates in one piece.
const BLOCK: u32 = 65_536;
/// Bytes of memory for frames that wait in a socket: what the kernel takes for some hundred long ones.
const QUEUE_BYTES: libc::c_int = 64 << 20;

/// `struct tpacket2_hdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    sec: u32,
    nsec: u32,
    vlan: [u16; 2],
    padding: [u8; 4],
}
const _: () = assert!(size_of::<Header>() == 32);

/// `struct tpacket_req`.
#[repr(C)]
struct RingRequest {
    block_size: u32,
    block_nr: u32,
    frame_size: u32,
    frame_nr: u32,
}

/// `struct tpacket_stats`.
#[repr(C)]
#[derive(Default)]
struct Statistics {
    packets: u32,
    drops: u32,
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of a value that lives until the call returns.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) })
        .map(drop)
}

/// A packet socket without a protocol: no frame reaches it yet.
fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, touches no memory.
    own(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })
}

/// Joins a socket to an interface, for frames of `protocol` (an Ethernet type; 0: none).
fn bind(fd: &OwnedFd, ifindex: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(0),
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the kernel reads one `sockaddr_ll`, which lives until the call returns.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// Takes frames alone that bear `mark`, and of those with `wake` one byte.
fn take_marked(fd: &OwnedFd, mark: u32, wake: u32) -> io::Result<()> {
    // SKF_AD_OFF + SKF_AD_MARK.
    let at_mark = (-0x1000_i32 + 20).cast_unsigned();
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at_mark),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, mark),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, wake),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, WAKE_BYTES),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: 6, filter: filter.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// What is in the next slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Nothing came.
    Nothing,
    /// A frame with its virtio-net header.
    Frame(&'a [u8]),
    /// One that is longer than a slot: [`Receiver::receive_long`] has it.
    Long,
    /// One of which the kernel kept the first bytes alone: its memory for long ones is full.
    Cut,
    /// One that came another way, and was to wake us.
    Wake,
}

/// A socket that receives marked frames of one protocol into a ring.
#[derive(Debug)]
pub(super) struct Receiver {
    fd: OwnedFd,
    ring: Mapping,
    slots: u32,
    next: u32,
    vnet: usize,
}

impl Receiver {
    /// For frames with the first mark, and what wakes us with the second. `vnet`: bytes of the virtio-net header in front of
    /// each frame.
    pub(super) fn new(
        ifindex: u32,
        protocol: u16,
        [mark, wake]: [u32; 2],
        slots: u32,
        vnet: usize,
    ) -> io::Result<Self> {
        let fd = socket()?;
        take_marked(&fd, mark, wake)?;
        set(&fd, libc::SOL_PACKET, PACKET_VERSION, &TPACKET_V2)?;
        set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1_i32)?;
        set(&fd, libc::SOL_PACKET, PACKET_COPY_THRESH, &1_i32)?;
        for option in [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
            let _ = set(&fd, libc::SOL_SOCKET, option, &QUEUE_BYTES);
        }
        let blocks = (slots * SLOT).div_ceil(BLOCK);
        let slots = blocks * BLOCK / SLOT;
        let request = RingRequest { block_size: BLOCK, block_nr: blocks, frame_size: SLOT, frame_nr: slots };
        set(&fd, libc::SOL_PACKET, PACKET_RX_RING, &request)?;
        let ring = Mapping::shared(fd.as_fd(), 0, (blocks * BLOCK) as usize)?;
        bind(&fd, ifindex, protocol)?;
        Ok(Self { fd, ring, slots, next: 0, vnet })
    }

    fn slot(&self) -> NonNull<u8> {
        self.ring.at(self.next as usize * SLOT as usize)
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the first word of a slot of our ring, aligned as slots are; the kernel writes it as we do, whole.
        unsafe { AtomicU32::from_ptr(self.slot().cast().as_ptr()) }
    }

    /// Whether a frame waits.
    pub(super) fn waits(&self) -> bool {
        // Acquire: the slot was written before its status.
        self.status().load(Ordering::Acquire) & STATUS_USER != 0
    }

    /// Looks at the next slot, which stays ours until [`Self::release`].
    pub(super) fn peek(&self) -> Next<'_> {
        if !self.waits() {
            return Next::Nothing;
        }
        // SAFETY: the slot is ours, and a header of plain integers stands at its start.
        let header = unsafe { self.slot().cast::<Header>().read_volatile() };
        if header.status & STATUS_COPY != 0 {
            return Next::Long;
        }
        if header.snaplen == WAKE_BYTES {
            return Next::Wake;
        }
        let start = usize::from(header.mac).saturating_sub(self.vnet);
        let end = usize::from(header.mac) + header.snaplen as usize;
        if header.snaplen != header.len || start < size_of::<Header>() || end > SLOT as usize {
            return Next::Cut;
        }
        // SAFETY: inside the slot by the checks, which the kernel does not write to while it is ours.
        Next::Frame(unsafe { std::slice::from_raw_parts(self.slot().add(start).as_ptr(), end - start) })
    }

    /// Gives back what only woke us.
    pub(super) fn forget_wakes(&mut self) {
        while self.peek() == Next::Wake {
            self.release();
        }
    }

    /// Gives the slot back.
    pub(super) fn release(&mut self) {
        // Release: what we read of it, we have read.
        self.status().store(STATUS_KERNEL, Ordering::Release);
        self.next = if self.next + 1 == self.slots { 0 } else { self.next + 1 };
    }

    /// The frame of a slot that is [`Next::Long`], with its virtio-net header; its length, which may be more than there is
    /// room for.
    pub(super) fn receive_long(&self, room: &mut [u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the kernel writes at most `room.len()` bytes.
        let len = unsafe { libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), flags) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// What it has to say beside frames (the interface went down) is heard, and no reason to wake any more.
    pub(super) fn forget_error(&self) {
        let mut error: libc::c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
        let at = (&raw mut error).cast();
        // SAFETY: the kernel writes one integer.
        let _ = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, at, &raw mut len)
        };
    }

    /// Frames that the kernel had no slot for since the last look.
    pub(super) fn dropped(&self) -> u32 {
        let mut told = Statistics::default();
        let mut len = libc::socklen_t::try_from(size_of::<Statistics>()).unwrap_or(0);
        let at = (&raw mut told).cast();
        // SAFETY: the kernel writes at most `len` bytes of plain integers.
        let result = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, PACKET_STATISTICS, at, &raw mut len)
        };
        if result == 0 { told.drops } else { 0 }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket that sends frames with a virtio-net header in front.
#[derive(Debug)]
pub(super) struct Sender {
    fd: OwnedFd,
}

/// Frames of one call at most.
pub(super) const CALL_MAX: usize = 64;

impl Sender {
    pub(super) fn new(ifindex: u32) -> io::Result<Self> {
        let fd = socket()?;
        set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1_i32)?;
        // Not past the queueing discipline: that way the kernel cuts nothing.
        for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
            let _ = set(&fd, libc::SOL_SOCKET, option, &QUEUE_BYTES);
        }
        bind(&fd, ifindex, 0)?;
        Ok(Self { fd })
    }

    /// Sends frames, as many as the device takes of the first [`CALL_MAX`]; their number. The error is the first one's.
    pub(super) fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; CALL_MAX];
        let mut count = 0;
        for (piece, frame) in pieces.iter_mut().zip(frames) {
            *piece = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            count += 1;
        }
        // SAFETY: a header of zeros is one that names nothing.
        let mut messages: [libc::mmsghdr; CALL_MAX] = unsafe { std::mem::zeroed() };
        for (message, piece) in messages.iter_mut().zip(&mut pieces[..count]) {
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (piece, 1);
        }
        let number = libc::c_uint::try_from(count).unwrap_or(0);
        // SAFETY: the kernel reads `count` messages, whose pieces are borrowed frames; it writes their lengths.
        let sent =
            unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), number, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Whether frames that it sent are on their way still: in the queueing discipline, or in the device.
    pub(super) fn has_unsent(&self) -> bool {
        let mut bytes: libc::c_int = 0;
        // SAFETY: SIOCOUTQ (by its other name) writes one integer.
        let asked = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        asked != 0 || bytes > 0
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
