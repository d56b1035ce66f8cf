//! `/dev/netmap` and its requests, by the control interface of API 14 and 15.
//!
//! Only system calls of our own: the process may itself run under the preload library.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::own;

/// The version that modules of API 14 and 15 accept.
const VERSION: u16 = 14;
const NIOCCTRL: u64 = 0xc058_6997;
const NIOCTXSYNC: u64 = 0x6994;
const NIOCRXSYNC: u64 = 0x6995;

const REQ_REGISTER: u16 = 1;
const REQ_PORT_INFO_GET: u16 = 2;
/// Waiting for frames must not send: sending has a sync of its own.
const NR_NO_TX_POLL: u64 = 0x20000;

/// Which rings a descriptor is bound to.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Mode {
    /// All of the device.
    AllNic = 1,
    /// Those of the host's stack.
    Host = 2,
    /// One pair.
    OneNic = 4,
}

/// `struct nmreq_header`.
#[repr(C)]
struct Header {
    version: u16,
    kind: u16,
    reserved: u32,
    name: [u8; 64],
    options: u64,
    body: u64,
}
const _: () = assert!(size_of::<Header>() == 88);

/// `struct nmreq_register`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Register {
    /// Of the `netmap_if` in the region.
    pub(super) offset: u64,
    pub(super) mem_size: u64,
    tx_slots: u32,
    rx_slots: u32,
    tx_rings: u16,
    rx_rings: u16,
    host_tx_rings: u16,
    host_rx_rings: u16,
    /// Number of the allocator: ports of one can swap buffers.
    pub(super) mem_id: u16,
    ring_id: u16,
    mode: u32,
    extra_bufs: u32,
    pad: u32,
    flags: u64,
}
const _: () = {
    assert!(size_of::<Register>() == 56);
    assert!(std::mem::offset_of!(Register, mode) == 36);
    assert!(std::mem::offset_of!(Register, flags) == 48);
};

/// `struct nmreq_port_info_get`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortInfo {
    mem_size: u64,
    tx_slots: u32,
    rx_slots: u32,
    pub(super) tx_rings: u16,
    pub(super) rx_rings: u16,
    host_tx_rings: u16,
    host_rx_rings: u16,
    mem_id: u16,
    pad: [u16; 3],
}
const _: () = assert!(size_of::<PortInfo>() == 32);

/// A request: its header and body `B`, which is also the reply.
pub(super) struct Request<B> {
    header: Header,
    body: B,
}

impl Request<PortInfo> {
    /// How many rings a port has.
    pub(super) fn port_info(name: &str) -> Self {
        Self { header: header(REQ_PORT_INFO_GET, name), body: PortInfo::default() }
    }
}

impl Request<Register> {
    /// Binds a descriptor to rings.
    pub(super) fn register(name: &str, mode: Mode, ring_id: u16) -> Self {
        let body = Register { mode: mode as u32, ring_id, flags: NR_NO_TX_POLL, ..Register::default() };
        Self { header: header(REQ_REGISTER, name), body }
    }
}

fn header(kind: u16, name: &str) -> Header {
    let mut bytes = [0; 64];
    for (to, from) in bytes[..63].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Header { version: VERSION, kind, reserved: 0, name: bytes, options: 0, body: 0 }
}

impl<B: Copy> Request<B> {
    /// Makes the request; the body comes back filled in.
    pub(super) fn send(mut self, control: &OwnedFd) -> io::Result<B> {
        self.header.body = std::ptr::from_mut(&mut self.body).addr() as u64;
        ioctl(control, NIOCCTRL, std::ptr::from_mut(&mut self.header).addr())?;
        Ok(self.body)
    }
}

/// Opens a descriptor, not bound to any rings yet.
pub(super) fn open_control() -> io::Result<OwnedFd> {
    let path: &CStr = c"/dev/netmap";
    // SAFETY: reads the path, makes a descriptor.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC)
    };
    own(libc::c_int::try_from(fd).unwrap_or(-1))
}

/// `NIOCTXSYNC`.
pub(super) fn tx_sync(control: &OwnedFd) -> io::Result<()> {
    ioctl(control, NIOCTXSYNC, 0)
}

/// `NIOCRXSYNC`.
pub(super) fn rx_sync(control: &OwnedFd) -> io::Result<()> {
    ioctl(control, NIOCRXSYNC, 0)
}

fn ioctl(control: &OwnedFd, request: u64, argument: usize) -> io::Result<()> {
    // SAFETY: the requests of this module take nothing, or a header whose body is the structure of its
    // kind; both live in the caller's `Request` until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, control.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
