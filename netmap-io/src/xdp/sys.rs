//! The system calls of an AF_XDP socket and its memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::ring::{Consumer, Producer};
use crate::sys::{Mapping, check, own};

/// A descriptor of the rx or tx ring, `struct xdp_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Desc {
    /// Offset in the packet memory.
    pub(super) addr: u64,
    /// Bytes.
    pub(super) len: u32,
    /// `XDP_PKT_CONTD`: the frame goes on in the next one.
    pub(super) options: u32,
}
const _: () = assert!(size_of::<Desc>() == size_of::<libc::xdp_desc>());

/// Frames that one kick may send in copy mode (Linux 6.17); the default of 32 costs a call each.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// A descriptor's metadata stand before its frame (Linux 6.8).
pub(super) const TX_METADATA: u32 = libc::XDP_TX_METADATA;

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) rx_slots: u32,
    pub(super) tx_slots: u32,
    pub(super) frame_size: u32,
}

/// The four rings between us and the kernel.
#[derive(Debug)]
pub(super) struct Rings {
    /// Frames that arrived.
    pub(super) rx: Consumer<Desc>,
    /// Frames to send.
    pub(super) tx: Producer<Desc>,
    /// Buffers for the kernel to receive into.
    pub(super) fill: Producer<u64>,
    /// Buffers whose frames were sent.
    pub(super) completion: Consumer<u64>,
}

/// What one kick achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kick {
    /// Everything was handed over.
    Done,
    /// Some frames are still in the ring: budget, memory or the driver's queue ran out.
    Again,
    /// The interface is down.
    Down,
}

/// An AF_XDP socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Makes one, not bound yet.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor, touches no memory.
        let fd = own(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        Ok(Self { fd })
    }

    /// Registers `memory` as its packet memory and maps its rings.
    /// `metadata`: bytes in front of a frame to send that say what is to be done to it; older kernels refuse any.
    pub(super) fn set_up(&self, memory: &Mapping, sizes: Sizes, metadata: usize) -> io::Result<Rings> {
        self.register(memory, sizes.frame_size, metadata)?;
        self.set(libc::XDP_UMEM_FILL_RING, &sizes.rx_slots)?;
        self.set(libc::XDP_UMEM_COMPLETION_RING, &sizes.tx_slots)?;
        self.set(libc::XDP_RX_RING, &sizes.rx_slots)?;
        self.set(libc::XDP_TX_RING, &sizes.tx_slots)?;
        // Older kernels don't know it: then a batch takes a call per 32 frames.
        let _ = self.set(XDP_MAX_TX_SKB_BUDGET, &sizes.tx_slots);
        self.widen_send_buffer(sizes);

        let mut offsets =
            libc::xdp_mmap_offsets { rx: ZERO_OFFSET, tx: ZERO_OFFSET, fr: ZERO_OFFSET, cr: ZERO_OFFSET };
        self.get(libc::XDP_MMAP_OFFSETS, &mut offsets)?;
        let map = |offset: &libc::xdp_ring_offset, page: u64, slots: u32, entry: usize| {
            let bytes = usize::try_from(offset.desc).unwrap_or(usize::MAX) + slots as usize * entry;
            let page = libc::off_t::try_from(page).map_err(|_| io::ErrorKind::InvalidInput)?;
            Mapping::shared(self.fd.as_fd(), page, bytes)
        };
        let fill = map(&offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING, sizes.rx_slots, size_of::<u64>())?;
        let completion =
            map(&offsets.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING, sizes.tx_slots, size_of::<u64>())?;
        let rx_page = u64::try_from(libc::XDP_PGOFF_RX_RING).unwrap_or(0);
        let tx_page = u64::try_from(libc::XDP_PGOFF_TX_RING).unwrap_or(0);
        let rx = map(&offsets.rx, rx_page, sizes.rx_slots, size_of::<Desc>())?;
        let tx = map(&offsets.tx, tx_page, sizes.tx_slots, size_of::<Desc>())?;
        // SAFETY: each mapping is the kernel's ring of that kind, sized by the same number of slots, with
        // the offsets that the kernel gave for it.
        unsafe {
            Ok(Rings {
                rx: Consumer::new(rx, &offsets.rx, sizes.rx_slots),
                tx: Producer::new(tx, &offsets.tx, sizes.tx_slots),
                fill: Producer::new(fill, &offsets.fr, sizes.rx_slots),
                completion: Consumer::new(completion, &offsets.cr, sizes.tx_slots),
            })
        }
    }

    fn register(&self, memory: &Mapping, frame_size: u32, metadata: usize) -> io::Result<()> {
        let registration = libc::xdp_umem_reg_v1 {
            addr: memory.base().as_ptr().addr() as u64,
            len: memory.len() as u64,
            chunk_size: frame_size,
            headroom: 0,
        };
        if metadata == 0 {
            // The short form of the structure: flags and all that newer kernels added are zero.
            return self.set(libc::XDP_UMEM_REG, &registration);
        }
        let libc::xdp_umem_reg_v1 { addr, len, chunk_size, headroom } = registration;
        let tx_metadata_len = u32::try_from(metadata).unwrap_or(0);
        let flags = libc::XDP_UMEM_TX_METADATA_LEN;
        let longer = libc::xdp_umem_reg { addr, len, chunk_size, headroom, flags, tx_metadata_len };
        self.set(libc::XDP_UMEM_REG, &longer)
    }

    /// In copy mode every frame in flight is charged to the socket's send buffer: make room for a ring
    /// of them. Best effort; with less, a batch takes more kicks.
    fn widen_send_buffer(&self, sizes: Sizes) {
        let bytes =
            i32::try_from(u64::from(sizes.tx_slots) * u64::from(sizes.frame_size)).unwrap_or(i32::MAX);
        for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
            let _ = self.set_at(libc::SOL_SOCKET, option, &bytes);
        }
    }

    /// Joins the socket to a queue of an interface.
    pub(super) fn bind(&self, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: u16::try_from(libc::AF_XDP).unwrap_or(0),
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
        // SAFETY: the kernel reads one `sockaddr_xdp`, which lives until the call returns.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
    }

    /// Whether the driver uses our buffers directly.
    pub(super) fn zero_copy(&self) -> bool {
        let mut options = libc::xdp_options { flags: 0 };
        let known = self.get(libc::XDP_OPTIONS, &mut options).is_ok();
        known && options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0
    }

    /// The kernel's own counts of what it dropped.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        self.get(libc::XDP_STATISTICS, &mut statistics)?;
        Ok(statistics)
    }

    /// Makes the kernel send what stands in the tx ring.
    pub(super) fn kick_tx(&self) -> io::Result<Kick> {
        // SAFETY: an empty message from nowhere to nowhere: the kernel reads no memory of ours.
        let sent = unsafe {
            libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        if sent >= 0 {
            return Ok(Kick::Done);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(Kick::Again),
            Some(libc::ENETDOWN) => Ok(Kick::Down),
            _ => Err(error),
        }
    }

    /// Makes the driver look at the fill ring again.
    pub(super) fn kick_rx(&self) {
        // SAFETY: an empty buffer: the kernel writes no memory of ours. Its answer says nothing that the
        // ring doesn't.
        let _ = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        self.set_at(libc::SOL_XDP, option, value)
    }

    fn set_at<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
        // SAFETY: the kernel reads `len` bytes of a value that lives until the call returns.
        check(unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len)
        })
        .map(drop)
    }

    fn get<T>(&self, option: libc::c_int, value: &mut T) -> io::Result<()> {
        let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
        // SAFETY: the kernel writes at most `len` bytes; all callers pass structures of plain integers.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                option,
                std::ptr::from_mut(value).cast(),
                &raw mut len,
            )
        })
        .map(drop)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const ZERO_OFFSET: libc::xdp_ring_offset =
    libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
