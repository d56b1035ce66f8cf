//! Requests to netmap, each with the body that belongs to it, and the old interface behind the same words.
//!
//! A module of before 2019 (API 11, 12) knows no `NIOCCTRL`: it answers EINVAL or ENOTTY. Then what can be said in its
//! own words is said so; what can't is an error.

use std::io;

use super::abi::{
    Header, KloopStart, Legacy, Mode, NAME_LEN, NIOCCTRL, NIOCGINFO, NIOCREGIF, NIOCRXSYNC, NIOCTXSYNC, Opt,
    OptCsb, OptExtmem, OptKloopMode, OptOffsets, PoolsInfo, PortHdr, PortInfo, Register, VERSION,
    VERSIONS_LEGACY, ValeAttach, ValeDetach, ValeList, ValeNewif, ValePolling, flag, kind, legacy, option,
};
use super::sys::Handle;

/// A kind of request, and what it carries.
///
/// # Safety
/// `KIND` is the number of the request whose body is `Body`.
pub(crate) unsafe trait Request {
    const KIND: u16;
    type Body: Copy;
}

macro_rules! requests {
    ($($name:ident: $kind:ident => $body:ty;)*) => {$(
        #[derive(Debug)]
        pub(crate) struct $name;
        // SAFETY: kind and body stand together so in netmap's interface.
        unsafe impl Request for $name {
            const KIND: u16 = kind::$kind;
            type Body = $body;
        }
    )*};
}

requests! {
    Bind: REGISTER => Register;
    GetPortInfo: PORT_INFO_GET => PortInfo;
    AttachToVale: VALE_ATTACH => ValeAttach;
    DetachFromVale: VALE_DETACH => ValeDetach;
    ListVale: VALE_LIST => ValeList;
    SetPortHeader: PORT_HDR_SET => PortHdr;
    GetPortHeader: PORT_HDR_GET => PortHdr;
    NewValeInterface: VALE_NEWIF => ValeNewif;
    StartPolling: VALE_POLLING_ENABLE => ValePolling;
    StopPolling: VALE_POLLING_DISABLE => ValePolling;
    GetPools: POOLS_INFO_GET => PoolsInfo;
    StartLoop: SYNC_KLOOP_START => KloopStart;
}

/// What a registration may ask for besides.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) offsets: Option<OptOffsets>,
    pub(crate) extmem: Option<OptExtmem>,
    pub(crate) csb: Option<OptCsb>,
    pub(crate) kloop_mode: Option<OptKloopMode>,
}

/// Puts an option in front of the chain; its address.
macro_rules! chain {
    ($option:expr, $kind:ident, $next:ident) => {
        if let Some(body) = &mut $option {
            body.head = Opt { next: $next, kind: option::$kind, ..Opt::default() };
            $next = std::ptr::from_mut(body).addr() as u64;
        }
    };
}

impl Options {
    /// Links them; the address of the first, 0 for none.
    fn link(&mut self) -> u64 {
        let mut next = 0;
        chain!(self.offsets, OFFSETS, next);
        chain!(self.extmem, EXTMEM, next);
        chain!(self.csb, CSB, next);
        chain!(self.kloop_mode, SYNC_KLOOP_MODE, next);
        next
    }

    /// Which of them the module refused, and why.
    pub(crate) fn refused(&self) -> Option<(&'static str, io::Error)> {
        let Self { offsets, extmem, csb, kloop_mode } = self;
        let all = [
            ("offset", offsets.map(|option| option.head.status)),
            ("extmem", extmem.map(|option| option.head.status)),
            ("csb", csb.map(|option| option.head.status)),
            ("sync-kloop-mode", kloop_mode.map(|option| option.head.status)),
        ];
        let errno = |status: u32| io::Error::from_raw_os_error(i32::try_from(status).unwrap_or(libc::EINVAL));
        all.into_iter().find_map(|(name, status)| Some((name, errno(status.filter(|s| *s != 0)?))))
    }

    fn is_empty(&self) -> bool {
        let Self { offsets, extmem, csb, kloop_mode } = self;
        offsets.is_none() && extmem.is_none() && csb.is_none() && kloop_mode.is_none()
    }
}

/// A name in netmap's field. One that is too long, or has a zero in it, names no port.
fn name_field<const N: usize>(name: &str) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match bytes.get_mut(..name.len()) {
        Some(room) if name.len() < N && !name.contains('\0') => room.copy_from_slice(name.as_bytes()),
        _ => return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)),
    }
    Ok(bytes)
}

/// The name in a field.
fn name_in(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Makes request `R` about the port `name`; the body comes back filled in. Returns the name that came back, too.
pub(crate) fn ask<R: Request>(
    handle: &dyn Handle,
    name: &str,
    body: &mut R::Body,
    options: &mut Options,
) -> io::Result<String> {
    let mut header = Header {
        version: VERSION,
        kind: R::KIND,
        reserved: 0,
        name: name_field::<NAME_LEN>(name)?,
        options: options.link(),
        body: std::ptr::from_mut(body).addr() as u64,
    };
    // SAFETY: header, body and options live until the call returns, and are what `R` promises that belongs together.
    unsafe { handle.ioctl(NIOCCTRL, std::ptr::from_mut(&mut header).addr())? };
    Ok(name_in(&header.name))
}

/// A request without a body.
fn ask_nothing(handle: &dyn Handle, kind: u16, name: &str) -> io::Result<()> {
    let name = name_field::<NAME_LEN>(name)?;
    let mut header = Header { version: VERSION, kind, reserved: 0, name, options: 0, body: 0 };
    // SAFETY: these requests take a header alone, which lives until the call returns.
    unsafe { handle.ioctl(NIOCCTRL, std::ptr::from_mut(&mut header).addr()) }
}

/// Ends a port of VALE that [`NewValeInterface`] made.
pub(crate) fn delete_vale_interface(handle: &dyn Handle, name: &str) -> io::Result<()> {
    ask_nothing(handle, kind::VALE_DELIF, name)
}

/// Ends the loop that another thread is in by [`StartLoop`] on this handle.
pub(crate) fn stop_loop(handle: &dyn Handle) -> io::Result<()> {
    ask_nothing(handle, kind::SYNC_KLOOP_STOP, "")
}

/// Moves the words of the rings to where `csb` says; for a handle that is bound already.
pub(crate) fn enable_csb(handle: &dyn Handle, csb: OptCsb) -> io::Result<()> {
    let mut options = Options { csb: Some(csb), ..Options::default() };
    let mut header = Header {
        version: VERSION,
        kind: kind::CSB_ENABLE,
        reserved: 0,
        name: [0; NAME_LEN],
        options: options.link(),
        body: 0,
    };
    // SAFETY: header and option live until the call returns.
    unsafe { handle.ioctl(NIOCCTRL, std::ptr::from_mut(&mut header).addr()) }
}

/// Sends what is committed.
pub(crate) fn tx_sync(handle: &dyn Handle) -> io::Result<()> {
    // SAFETY: takes nothing.
    unsafe { handle.ioctl(NIOCTXSYNC, 0) }
}

/// Releases what was read, shows what came.
pub(crate) fn rx_sync(handle: &dyn Handle) -> io::Result<()> {
    // SAFETY: takes nothing.
    unsafe { handle.ioctl(NIOCRXSYNC, 0) }
}

/// The words that a module understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// API 14 and 15.
    Today,
    /// The old structure, and the version that is to stand in it.
    Legacy(u32),
}

/// A name that no interface has.
const NOBODY: &str = "utcp-no-such";

/// Finds out which interface answers.
pub(crate) fn dialect(handle: &dyn Handle) -> io::Result<Dialect> {
    let asked = ask::<GetPortInfo>(handle, NOBODY, &mut PortInfo::default(), &mut Options::default());
    match asked.err().and_then(|error| error.raw_os_error()) {
        // It understood the question.
        None | Some(libc::ENXIO) => return Ok(Dialect::Today),
        Some(libc::EINVAL | libc::ENOTTY) => {}
        Some(other) => return Err(io::Error::from_raw_os_error(other)),
    }
    old_dialect(handle)
}

/// The version that is taken in requests of the old interface.
pub(crate) fn old_dialect(handle: &dyn Handle) -> io::Result<Dialect> {
    for version in VERSIONS_LEGACY {
        let mut request = Legacy { name: name_field(NOBODY)?, version, ..Legacy::default() };
        match ask_legacy(handle, NIOCGINFO, &mut request).err().and_then(|error| error.raw_os_error()) {
            // Not this version. An interface that is not there has another errno.
            Some(libc::EINVAL) => {}
            Some(libc::ENOTTY) => return Err(io::Error::from_raw_os_error(libc::ENOTTY)),
            _ => return Ok(Dialect::Legacy(version)),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT))
}

fn ask_legacy(handle: &dyn Handle, request: u64, body: &mut Legacy) -> io::Result<()> {
    // SAFETY: both requests take this structure, which lives until the call returns.
    unsafe { handle.ioctl(request, std::ptr::from_mut(body).addr()) }
}

/// How many rings a port has, and what memory.
pub(crate) fn port_info(handle: &dyn Handle, dialect: Dialect, name: &str) -> io::Result<PortInfo> {
    let Dialect::Legacy(version) = dialect else {
        let mut info = PortInfo::default();
        return ask::<GetPortInfo>(handle, name, &mut info, &mut Options::default()).map(|_| info);
    };
    let mut request = Legacy { name: name_field(name)?, version, ..Legacy::default() };
    ask_legacy(handle, NIOCGINFO, &mut request)?;
    let Legacy { mem_size, tx_slots, rx_slots, tx_rings, rx_rings, arg2, .. } = request;
    Ok(PortInfo {
        mem_size: mem_size.into(),
        tx_slots,
        rx_slots,
        tx_rings,
        rx_rings,
        mem_id: arg2,
        ..PortInfo::default()
    })
}

/// Binds a handle to rings.
pub(crate) fn register(
    handle: &dyn Handle,
    dialect: Dialect,
    name: &str,
    wanted: &Register,
    options: &mut Options,
) -> io::Result<Register> {
    let mut body = *wanted;
    let Dialect::Legacy(version) = dialect else {
        return ask::<Bind>(handle, name, &mut body, options).map(|_| body);
    };
    if !options.is_empty() || wanted.mode == Mode::OneHost as u32 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let mut request = to_legacy(name, version, wanted)?;
    ask_legacy(handle, NIOCREGIF, &mut request)?;
    let Legacy { offset, mem_size, tx_slots, rx_slots, tx_rings, rx_rings, arg2, arg3, .. } = request;
    (body.offset, body.mem_size) = (offset.into(), mem_size.into());
    (body.tx_slots, body.rx_slots, body.tx_rings, body.rx_rings) = (tx_slots, rx_slots, tx_rings, rx_rings);
    (body.mem_id, body.extra_bufs) = (arg2, arg3);
    Ok(body)
}

/// A registration in the words of API 11 and 12, in which a pipe's end is a mode and not a part of the name.
fn to_legacy(name: &str, version: u32, wanted: &Register) -> io::Result<Legacy> {
    let low = |flags: u64| u32::try_from(flags & 0xffff).unwrap_or(0);
    let mut request = Legacy {
        version,
        tx_slots: wanted.tx_slots,
        rx_slots: wanted.rx_slots,
        tx_rings: wanted.tx_rings,
        rx_rings: wanted.rx_rings,
        ring_id: wanted.ring_id & legacy::RING_MASK,
        arg2: wanted.mem_id,
        arg3: wanted.extra_bufs,
        flags: wanted.mode & legacy::MODE_MASK | low(wanted.flags) & !legacy::MODE_MASK,
        ..Legacy::default()
    };
    if wanted.flags & flag::NO_TX_POLL != 0 {
        request.ring_id |= legacy::NO_TX_POLL;
    }
    if wanted.flags & flag::DO_RX_POLL != 0 {
        request.ring_id |= legacy::DO_RX_POLL;
    }
    let mut parent = name;
    if let Some(at) = name.find(['{', '}']) {
        let (mode, id) = match name.as_bytes()[at] {
            b'{' => (legacy::PIPE_MASTER, &name[at + 1..]),
            _ => (legacy::PIPE_SLAVE, &name[at + 1..]),
        };
        // An old module's pipes have numbers.
        let id = id.parse::<u16>().ok().filter(|id| *id <= legacy::RING_MASK);
        let id = id.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        request.flags = request.flags & !legacy::MODE_MASK | mode;
        request.ring_id = request.ring_id & !legacy::RING_MASK | id;
        parent = &name[..at];
    }
    request.name = name_field(parent)?;
    Ok(request)
}
