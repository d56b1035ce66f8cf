//! bpf(2): maps, programs and links, without libbpf.
//!
//! Each command has an argument structure of its own here, as long as the fields that we use; the kernel
//! takes whatever follows as zero.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::asm::Insn;
use crate::sys::{number, own};

const MAP_CREATE: libc::c_int = 0;
#[cfg(test)]
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
#[cfg(test)]
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;
const LINK_DETACH: libc::c_int = 34;

const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// Behind GRO, in front of the protocols (Linux 6.6).
const ATTACH_TYPE_TCX_INGRESS: u32 = 46;
const LINK_TYPE_XDP: u32 = 6;
/// Attach to socket buffers, in front of the stack.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// Attach inside the driver.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// The program copes with frames that are chains of buffers: it looks at the first alone (Linux 5.18).
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// In front of all other programs of a tcx hook (`BPF_F_BEFORE` without another program named).
const TCX_FIRST: u32 = 1 << 3;
/// Bytes of a verifier log; a refused program of our size fills a fraction.
const LOG_BYTES: u32 = 256 * 1024;

/// Kinds of maps.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum MapType {
    Hash = 1,
    Array = 2,
    /// The least recently used entry makes room for a new one.
    LruHash = 9,
    XskMap = 17,
    /// Records that programs write and we read.
    RingBuffer = 27,
}

/// A map takes memory for its entries only as they come.
pub(super) const NO_PREALLOC: u32 = 1;
/// Its values may be mapped.
pub(super) const MAPPABLE: u32 = 1 << 10;

/// What an update may find.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(super) enum Update {
    /// Make or replace.
    Any = 0,
    /// Fail with `EEXIST` when the key is there.
    NoExist = 1,
}

#[repr(C)]
#[derive(Default)]
struct MapCreateArgs {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct ElemArgs {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoadArgs {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

#[cfg(test)]
#[repr(C)]
#[derive(Default)]
struct TestRunArgs {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateArgs {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateArgs {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdArgs {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoArgs {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct QueryArgs {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    /// Of programs and links: flags, numbers; then the revision.
    rest: [u64; 4],
}

/// The head of `struct bpf_link_info` for XDP.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    rest: [u32; 3],
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Calls bpf(2) with the argument structure of `command`.
///
/// # Safety
/// `T` is that command's structure, and every address in it is valid for what the command does.
unsafe fn bpf<T>(command: libc::c_int, args: &mut T) -> io::Result<libc::c_int> {
    let size = libc::c_ulong::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: by the caller's contract the kernel finds in `args` what the command expects.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(args), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(libc::c_int::try_from(result).unwrap_or(0)) }
}

fn address<T: ?Sized>(of: &T) -> u64 {
    (std::ptr::from_ref(of).cast::<c_void>().addr()) as u64
}

fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// A BPF map with keys `K` and values `V`, both plain bytes without padding.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    _types: std::marker::PhantomData<fn(K, V)>,
}

impl<K: Copy, V: Copy> Map<K, V> {
    /// Makes a map for `entries` at most.
    pub(super) fn new(kind: MapType, name: &str, entries: u32, flags: u32) -> io::Result<Self> {
        let mut args = MapCreateArgs {
            map_type: kind as u32,
            key_size: u32::try_from(size_of::<K>()).unwrap_or(0),
            value_size: u32::try_from(size_of::<V>()).unwrap_or(0),
            max_entries: entries,
            map_flags: flags,
            name: object_name(name),
            ..MapCreateArgs::default()
        };
        // SAFETY: the command reads its structure only and returns a new descriptor.
        let fd = own(unsafe { bpf(MAP_CREATE, &mut args) }?)?;
        Ok(Self { fd, _types: std::marker::PhantomData })
    }

    /// Its descriptor, for mappings.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its descriptor, for the assembler.
    pub(super) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn elem(&self, key: &K) -> ElemArgs {
        ElemArgs { map_fd: number(&self.fd), key: address(key), ..ElemArgs::default() }
    }

    /// Stores one entry.
    pub(super) fn update(&self, key: &K, value: &V, how: Update) -> io::Result<()> {
        let mut args = ElemArgs { value: address(value), flags: how as u64, ..self.elem(key) };
        // SAFETY: key and value are as long as the map was made for, and live until the call returns.
        unsafe { bpf(MAP_UPDATE, &mut args) }.map(drop)
    }

    #[cfg(test)]
    /// One entry.
    pub(super) fn get(&self, key: &K) -> io::Result<V>
    where
        V: Default,
    {
        let mut value = V::default();
        let mut args = ElemArgs { value: std::ptr::from_mut(&mut value).addr() as u64, ..self.elem(key) };
        // SAFETY: key and value are as long as the map was made for, and live until the call returns.
        unsafe { bpf(MAP_LOOKUP, &mut args) }?;
        Ok(value)
    }

    /// Removes one entry; `false` when there was none.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut args = self.elem(key);
        // SAFETY: the key is as long as the map was made for, and lives until the call returns.
        match unsafe { bpf(MAP_DELETE, &mut args) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What a program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames in front of the stack, also those that come in pieces.
    Xdp,
    /// Frames in front of the stack, of one piece: others' programs.
    #[cfg(test)]
    XdpWhole,
    /// Socket buffers.
    Buffers,
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads `insns`. On refusal loads once more with the verifier's log on, and returns that log.
    pub(super) fn load(name: &str, kind: Kind, insns: &[Insn]) -> Result<Self, (io::Error, String)> {
        let (prog_type, expected_attach_type, prog_flags) = match kind {
            Kind::Xdp => (PROG_TYPE_XDP, ATTACH_TYPE_XDP, XDP_HAS_FRAGS),
            #[cfg(test)]
            Kind::XdpWhole => (PROG_TYPE_XDP, ATTACH_TYPE_XDP, 0),
            Kind::Buffers => (PROG_TYPE_SCHED_CLS, ATTACH_TYPE_TCX_INGRESS, 0),
        };
        let mut args = ProgLoadArgs {
            prog_type,
            insn_cnt: u32::try_from(insns.len()).unwrap_or(0),
            insns: address(insns),
            // None of the helpers that we call asks for a GPL program.
            license: address(c"Dual MIT/GPL"),
            name: object_name(name),
            expected_attach_type,
            prog_flags,
            ..ProgLoadArgs::default()
        };
        // SAFETY: instructions and licence live until the call returns.
        if let Ok(fd) = unsafe { bpf(PROG_LOAD, &mut args) }.and_then(own) {
            return Ok(Self { fd });
        }
        // An older kernel knows no flags.
        args.prog_flags = 0;
        // SAFETY: as above.
        let error = match unsafe { bpf(PROG_LOAD, &mut args) }.and_then(own) {
            Ok(fd) => return Ok(Self { fd }),
            Err(error) => error,
        };
        let mut log = vec![0_u8; LOG_BYTES as usize];
        args.log_level = 1;
        args.log_size = LOG_BYTES;
        args.log_buf = log.as_mut_ptr().addr() as u64;
        // SAFETY: as above; the kernel writes at most `log_size` bytes to the log.
        if let Ok(fd) = unsafe { bpf(PROG_LOAD, &mut args) }.and_then(own) {
            return Ok(Self { fd });
        }
        let text = log.split(|b| *b == 0).next().unwrap_or(&[]);
        Err((error, String::from_utf8_lossy(text).trim_end().to_owned()))
    }

    /// Attaches to an interface for as long as the link lives; nothing stays behind after a `kill -9`.
    pub(super) fn attach(&self, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
        let mut args = LinkCreateArgs {
            prog_fd: number(&self.fd),
            target_ifindex: ifindex,
            attach_type: ATTACH_TYPE_XDP,
            flags: if native { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE },
        };
        // SAFETY: the command reads its structure only and returns a new descriptor.
        own(unsafe { bpf(LINK_CREATE, &mut args) }?)
    }

    /// Attaches behind GRO, in front of whatever stands there already; for as long as the link lives.
    pub(super) fn attach_behind(&self, ifindex: u32) -> io::Result<OwnedFd> {
        self.attach_among(ifindex, TCX_FIRST)
    }

    /// Attaches behind GRO, at the place that `flags` say.
    pub(super) fn attach_among(&self, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
        let mut args = LinkCreateArgs {
            prog_fd: number(&self.fd),
            target_ifindex: ifindex,
            attach_type: ATTACH_TYPE_TCX_INGRESS,
            flags,
        };
        // SAFETY: the command reads its structure only and returns a new descriptor.
        own(unsafe { bpf(LINK_CREATE, &mut args) }?)
    }

    /// Takes the place of the program that `link` holds, from one frame to the next.
    pub(super) fn replace_in(&self, link: &OwnedFd) -> io::Result<()> {
        let mut args = LinkUpdateArgs {
            link_fd: number(link),
            new_prog_fd: number(&self.fd),
            ..LinkUpdateArgs::default()
        };
        // SAFETY: the command reads its structure only.
        unsafe { bpf(LINK_UPDATE, &mut args) }.map(drop)
    }

    #[cfg(test)]
    /// Runs the program on a frame without a device; its verdict and the nanoseconds of one run.
    pub(super) fn test_run(&self, frame: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
        let mut args = TestRunArgs {
            prog_fd: number(&self.fd),
            data_size_in: u32::try_from(frame.len()).unwrap_or(0),
            data_in: address(frame),
            repeat,
            ..TestRunArgs::default()
        };
        // SAFETY: the kernel reads `data_size_in` bytes of the frame and writes none.
        while let Err(error) = unsafe { bpf(PROG_TEST_RUN, &mut args) } {
            // A signal ends many repetitions.
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok((args.retval, args.duration))
    }

    #[cfg(test)]
    /// Its descriptor.
    pub(super) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Its number, as `bpftool prog` shows it.
    pub(super) fn id(&self) -> u32 {
        info::<ProgInfo>(&self.fd).map_or(0, |info| info.id)
    }
}

fn info<T: Default>(fd: &OwnedFd) -> io::Result<T> {
    let mut info = T::default();
    let mut args = InfoArgs {
        fd: number(fd),
        len: u32::try_from(size_of::<T>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut info).addr() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes; both callers pass plain integers.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut args) }?;
    Ok(info)
}

/// The link that holds this program on the hook of an interface. Asking takes CAP_SYS_ADMIN.
pub(super) fn link_of(ifindex: u32, program: u32) -> Option<OwnedFd> {
    let mut ids = IdArgs::default();
    // SAFETY: the command reads and writes its structure only.
    while unsafe { bpf(LINK_GET_NEXT_ID, &mut ids) }.is_ok() {
        ids.id = ids.next_id;
        let Ok(fd) = fd_by_id(LINK_GET_FD_BY_ID, ids.id) else { continue };
        let Ok(link) = info::<LinkInfo>(&fd) else { continue };
        if link.kind == LINK_TYPE_XDP && (link.ifindex, link.prog_id) == (ifindex, program) {
            return Some(fd);
        }
    }
    None
}

/// Takes the program of `link` off its interface, whoever else holds the link (Linux 5.9).
pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    let mut args = number(link);
    // SAFETY: the command reads its structure only, which is this one number.
    unsafe { bpf(LINK_DETACH, &mut args) }.map(drop)
}

/// The interface at which a link is, 0 when it is at none any more, and its program.
pub(super) fn place_of(link: &OwnedFd) -> io::Result<(u32, u32)> {
    info::<LinkInfo>(link).map(|link| (link.ifindex, link.prog_id))
}

/// Numbers of the programs behind GRO of an interface (tcx), in the order in which they are asked.
pub(super) fn programs_behind(ifindex: u32) -> Vec<u32> {
    let mut ids = [0_u32; 64];
    let mut args = QueryArgs {
        target_ifindex: ifindex,
        attach_type: ATTACH_TYPE_TCX_INGRESS,
        ids: ids.as_mut_ptr().addr() as u64,
        count: 64,
        ..QueryArgs::default()
    };
    // SAFETY: the kernel writes at most `count` numbers.
    match unsafe { bpf(PROG_QUERY, &mut args) } {
        Ok(_) => ids.into_iter().take(args.count as usize).collect(),
        Err(_) => Vec::new(),
    }
}

/// Name of the program with that number.
pub(super) fn program_name(id: u32) -> Option<String> {
    let program: ProgInfo = info(&fd_by_id(PROG_GET_FD_BY_ID, id).ok()?).ok()?;
    let name = program.name.split(|b| *b == 0).next().unwrap_or(&[]);
    Some(String::from_utf8_lossy(name).into_owned())
}

fn fd_by_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    let mut args = IdArgs { id, ..IdArgs::default() };
    // SAFETY: the command reads its structure only and returns a new descriptor.
    own(unsafe { bpf(command, &mut args) }?)
}
