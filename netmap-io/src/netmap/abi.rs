//! What a program says to `/dev/netmap`: the requests of its control interface (API 14 and 15), and the one of old
//! modules (API 11 and 12).
//!
//! ```text
//!  ioctl(NIOCCTRL) ─► Header ── body ────► Register, PortInfo, ValeAttach, … (by kind; filled in on return)
//!                        └───── options ─► Opt ─ next ─► Opt ─ next ─► 0
//! ```
//!
//! Sizes and offsets are checked when this is compiled, against the layout that a real module was measured to have.

#![allow(dead_code, reason = "the interface is told as a whole, with what we have no use for")]

use std::mem::offset_of;

/// Checks offsets of fields and the size of a structure when this is compiled.
macro_rules! layout {
    ($name:ty, $size:literal $(, $field:ident @ $at:literal)*) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $at);)*
        };
    };
}

/// `_IOWR('i', number, bytes)`.
const fn read_write(number: u64, bytes: usize) -> u64 {
    3 << 30 | (bytes as u64) << 16 | (b'i' as u64) << 8 | number
}

/// A request with a header.
pub(crate) const NIOCCTRL: u64 = read_write(151, size_of::<Header>());
/// Sends what is committed.
pub(crate) const NIOCTXSYNC: u64 = (b'i' as u64) << 8 | 148;
/// Releases what was read, shows what came.
pub(crate) const NIOCRXSYNC: u64 = (b'i' as u64) << 8 | 149;
/// Old modules: binds rings.
pub(crate) const NIOCREGIF: u64 = read_write(146, size_of::<Legacy>());
/// Old modules: asks about a port.
pub(crate) const NIOCGINFO: u64 = read_write(145, size_of::<Legacy>());

const _: () = {
    assert!(NIOCCTRL == 0xc058_6997);
    assert!(NIOCTXSYNC == 0x6994);
    assert!(NIOCRXSYNC == 0x6995);
    assert!(NIOCREGIF == 0xc03c_6992);
    assert!(NIOCGINFO == 0xc03c_6991);
};

/// Versions of the interface that a module of today takes.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u16> = 14..=15;
/// The one that we speak.
pub(crate) const VERSION: u16 = 14;
/// Versions that stand in a request of the old interface: those of old modules, and those that modules since 2019 want to see
/// there.
pub(crate) const VERSIONS_LEGACY: [u32; 4] = [12, 11, 14, 15];
/// Bytes of a port's name, with the zero at its end.
pub(crate) const NAME_LEN: usize = 64;

/// Kinds of request ([`Header::kind`]).
pub(crate) mod kind {
    pub(crate) const REGISTER: u16 = 1;
    pub(crate) const PORT_INFO_GET: u16 = 2;
    pub(crate) const VALE_ATTACH: u16 = 3;
    pub(crate) const VALE_DETACH: u16 = 4;
    pub(crate) const VALE_LIST: u16 = 5;
    pub(crate) const PORT_HDR_SET: u16 = 6;
    pub(crate) const PORT_HDR_GET: u16 = 7;
    pub(crate) const VALE_NEWIF: u16 = 8;
    pub(crate) const VALE_DELIF: u16 = 9;
    pub(crate) const VALE_POLLING_ENABLE: u16 = 10;
    pub(crate) const VALE_POLLING_DISABLE: u16 = 11;
    pub(crate) const POOLS_INFO_GET: u16 = 12;
    pub(crate) const SYNC_KLOOP_START: u16 = 13;
    pub(crate) const SYNC_KLOOP_STOP: u16 = 14;
    pub(crate) const CSB_ENABLE: u16 = 15;
}

/// Kinds of option ([`Opt::kind`]).
pub(crate) mod option {
    pub(crate) const EXTMEM: u32 = 1;
    pub(crate) const SYNC_KLOOP_EVENTFDS: u32 = 2;
    pub(crate) const CSB: u32 = 3;
    pub(crate) const SYNC_KLOOP_MODE: u32 = 4;
    pub(crate) const OFFSETS: u32 = 5;
}

/// Bits of [`Register::flags`].
pub(crate) mod flag {
    /// Copies of what passes on the tx rings, as a monitor.
    pub(crate) const MONITOR_TX: u64 = 0x100;
    /// Of the rx rings.
    pub(crate) const MONITOR_RX: u64 = 0x200;
    /// A monitor that copies no bytes.
    pub(crate) const ZCOPY_MON: u64 = 0x400;
    /// Nobody else may have these rings.
    pub(crate) const EXCLUSIVE: u64 = 0x800;
    pub(crate) const RX_RINGS_ONLY: u64 = 0x2000;
    pub(crate) const TX_RINGS_ONLY: u64 = 0x4000;
    /// We can deal with a virtio-net header in front of frames.
    pub(crate) const ACCEPT_VNET_HDR: u64 = 0x8000;
    pub(crate) const DO_RX_POLL: u64 = 0x1_0000;
    /// Waiting for frames must not send.
    pub(crate) const NO_TX_POLL: u64 = 0x2_0000;
}

/// Bits of `netmap_ring.flags`.
pub(crate) mod ring_flag {
    /// Each sync writes the time into the ring.
    pub(crate) const TIMESTAMP: u32 = 0x2;
    /// The module itself passes slots that ask for it (`NS_FORWARD`) on to the other side.
    pub(crate) const FORWARD: u32 = 0x4;
}

/// Which rings a descriptor is bound to ([`Register::mode`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mode {
    /// All of the device.
    AllNic = 1,
    /// Those of the host's stack.
    Host = 2,
    /// All of both.
    NicAndHost = 3,
    /// One pair of the device.
    OneNic = 4,
    /// None: memory alone.
    None = 7,
    /// One pair of the host's stack.
    OneHost = 8,
}

/// `struct nmreq_header`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) version: u16,
    pub(crate) kind: u16,
    pub(crate) reserved: u32,
    pub(crate) name: [u8; NAME_LEN],
    /// Address of the first [`Opt`].
    pub(crate) options: u64,
    /// Address of the body.
    pub(crate) body: u64,
}
layout!(Header, 88, version @ 0, kind @ 2, reserved @ 4, name @ 8, options @ 72, body @ 80);

/// `struct nmreq_option`: how every option begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opt {
    /// Address of the next.
    pub(crate) next: u64,
    pub(crate) kind: u32,
    /// Answer: 0, or an errno.
    pub(crate) status: u32,
    /// Bytes of an option of variable length; 0 for the others.
    pub(crate) size: u64,
}
layout!(Opt, 24, next @ 0, kind @ 8, status @ 12, size @ 16);

/// `struct nmreq_register`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// Of the `netmap_if` in the region.
    pub(crate) offset: u64,
    pub(crate) mem_size: u64,
    /// Asked for (0: as they are), and what there is.
    pub(crate) tx_slots: u32,
    pub(crate) rx_slots: u32,
    pub(crate) tx_rings: u16,
    pub(crate) rx_rings: u16,
    pub(crate) host_tx_rings: u16,
    pub(crate) host_rx_rings: u16,
    /// Number of the allocator: ports of one can swap buffers.
    pub(crate) mem_id: u16,
    pub(crate) ring_id: u16,
    /// [`Mode`].
    pub(crate) mode: u32,
    pub(crate) extra_bufs: u32,
    pub(crate) pad: u32,
    /// [`flag`]s.
    pub(crate) flags: u64,
}
layout!(Register, 56, offset @ 0, mem_size @ 8, tx_slots @ 16, rx_slots @ 20, tx_rings @ 24, rx_rings @ 26,
    host_tx_rings @ 28, host_rx_rings @ 30, mem_id @ 32, ring_id @ 34, mode @ 36, extra_bufs @ 40, flags @ 48);

/// `struct nmreq_port_info_get`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortInfo {
    pub(crate) mem_size: u64,
    pub(crate) tx_slots: u32,
    pub(crate) rx_slots: u32,
    pub(crate) tx_rings: u16,
    pub(crate) rx_rings: u16,
    pub(crate) host_tx_rings: u16,
    pub(crate) host_rx_rings: u16,
    pub(crate) mem_id: u16,
    pub(crate) pad: [u16; 3],
}
layout!(PortInfo, 32, mem_size @ 0, tx_slots @ 8, tx_rings @ 16, host_tx_rings @ 20, mem_id @ 24);

/// `struct nmreq_vale_attach`: puts an interface (`vale0:eth0`) on a switch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ValeAttach {
    /// [`Mode::AllNic`], or [`Mode::NicAndHost`] for the host's stack as well.
    pub(crate) register: Register,
    pub(crate) port_index: u32,
    pub(crate) pad: u32,
}
layout!(ValeAttach, 64, register @ 0, port_index @ 56);

/// `struct nmreq_vale_detach`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ValeDetach {
    pub(crate) port_index: u32,
    pub(crate) pad: u32,
}
layout!(ValeDetach, 8, port_index @ 0);

/// `struct nmreq_vale_list`: the port at these indices, or the next behind them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ValeList {
    pub(crate) bridge_index: u16,
    pub(crate) pad: u16,
    pub(crate) port_index: u32,
}
layout!(ValeList, 8, bridge_index @ 0, port_index @ 4);

/// `struct nmreq_port_hdr`: bytes of virtio-net header in front of a port's frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PortHdr {
    pub(crate) header_len: u32,
    pub(crate) pad: u32,
}
layout!(PortHdr, 8, header_len @ 0);

/// `struct nmreq_vale_newif`: a port of VALE that outlives its users.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ValeNewif {
    pub(crate) tx_slots: u32,
    pub(crate) rx_slots: u32,
    pub(crate) tx_rings: u16,
    pub(crate) rx_rings: u16,
    pub(crate) mem_id: u16,
    pub(crate) pad: u16,
}
layout!(ValeNewif, 16, tx_slots @ 0, tx_rings @ 8, mem_id @ 12);

/// `struct nmreq_vale_polling`: threads of the kernel that poll a port of VALE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ValePolling {
    /// 1: one thread; 2: several.
    pub(crate) mode: u32,
    pub(crate) first_cpu: u32,
    pub(crate) cpus: u32,
    pub(crate) pad: u32,
}
layout!(ValePolling, 16, mode @ 0, first_cpu @ 4, cpus @ 8);

/// `struct nmreq_pools_info`: the pools of an allocator.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolsInfo {
    pub(crate) mem_size: u64,
    pub(crate) mem_id: u16,
    pub(crate) pad: [u16; 3],
    pub(crate) if_offset: u64,
    pub(crate) if_total: u32,
    pub(crate) if_size: u32,
    pub(crate) ring_offset: u64,
    pub(crate) ring_total: u32,
    pub(crate) ring_size: u32,
    pub(crate) buf_offset: u64,
    pub(crate) buf_total: u32,
    pub(crate) buf_size: u32,
}
layout!(PoolsInfo, 64, mem_size @ 0, mem_id @ 8, if_offset @ 16, if_total @ 24, ring_offset @ 32, buf_offset @ 48,
    buf_total @ 56, buf_size @ 60);

/// `struct nmreq_sync_kloop_start`: a loop in the kernel that syncs, until [`kind::SYNC_KLOOP_STOP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KloopStart {
    pub(crate) sleep_us: u32,
    pub(crate) pad: u32,
}
layout!(KloopStart, 8, sleep_us @ 0);

/// `struct nm_csb_atok`: our half of a ring's words where they stand outside the ring (CSB).
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct CsbToKernel {
    pub(crate) head: std::sync::atomic::AtomicU32,
    pub(crate) cur: std::sync::atomic::AtomicU32,
    /// We sleep: ring us.
    pub(crate) need_kick: std::sync::atomic::AtomicU32,
    pub(crate) sync_flags: std::sync::atomic::AtomicU32,
    pub(crate) pad: [u32; 12],
}
layout!(CsbToKernel, 64, head @ 0, cur @ 4, need_kick @ 8, sync_flags @ 12);

/// `struct nm_csb_ktoa`: the kernel's half.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct CsbToUser {
    pub(crate) hwcur: std::sync::atomic::AtomicU32,
    pub(crate) hwtail: std::sync::atomic::AtomicU32,
    /// It sleeps: ring it.
    pub(crate) need_kick: std::sync::atomic::AtomicU32,
    pub(crate) pad: [u32; 13],
}
layout!(CsbToUser, 64, hwcur @ 0, hwtail @ 4, need_kick @ 8);

/// `struct nmreq_opt_csb`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OptCsb {
    pub(crate) head: Opt,
    /// Address of [`CsbToKernel`]s, tx rings first.
    pub(crate) to_kernel: u64,
    /// Address of [`CsbToUser`]s.
    pub(crate) to_user: u64,
}
layout!(OptCsb, 40, to_kernel @ 24, to_user @ 32);

/// `struct nmreq_opt_sync_kloop_eventfds`; one [`KloopEventfds`] per ring follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OptKloopEventfds {
    pub(crate) head: Opt,
}
layout!(OptKloopEventfds, 24, head @ 0);

/// See [`OptKloopEventfds`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KloopEventfds {
    /// To the kernel.
    pub(crate) ioeventfd: i32,
    /// From the kernel.
    pub(crate) irqfd: i32,
}
layout!(KloopEventfds, 8, ioeventfd @ 0, irqfd @ 4);

/// `struct nmreq_opt_sync_kloop_mode`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OptKloopMode {
    pub(crate) head: Opt,
    pub(crate) mode: u32,
}
layout!(OptKloopMode, 32, mode @ 24);

/// `struct nmreq_opt_offsets`: frames begin somewhere in their buffers, as the slots say.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OptOffsets {
    pub(crate) head: Opt,
    pub(crate) offset_max: u64,
    pub(crate) offset_initial: u64,
    pub(crate) offset_bits: u32,
    pub(crate) tx_align: u32,
    pub(crate) min_gap: u64,
}
layout!(OptOffsets, 56, offset_max @ 24, offset_initial @ 32, offset_bits @ 40, tx_align @ 44, min_gap @ 48);

/// `struct nmreq_opt_extmem`: the region is memory of ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OptExtmem {
    pub(crate) head: Opt,
    /// Address of the memory.
    pub(crate) memory: u64,
    pub(crate) pools: PoolsInfo,
}
layout!(OptExtmem, 96, memory @ 24, pools @ 32);

/// `struct nmreq`: the whole of the old interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Legacy {
    pub(crate) name: [u8; 16],
    pub(crate) version: u32,
    pub(crate) offset: u32,
    pub(crate) mem_size: u32,
    pub(crate) tx_slots: u32,
    pub(crate) rx_slots: u32,
    pub(crate) tx_rings: u16,
    pub(crate) rx_rings: u16,
    /// Number of the ring, and [`legacy`] bits.
    pub(crate) ring_id: u16,
    pub(crate) command: u16,
    pub(crate) arg1: u16,
    /// The allocator.
    pub(crate) arg2: u16,
    /// Extra buffers.
    pub(crate) arg3: u32,
    /// [`Mode`] and [`flag`]s; those of polling stand in `ring_id`.
    pub(crate) flags: u32,
    pub(crate) spare: [u32; 1],
}
layout!(Legacy, 60, version @ 16, offset @ 20, mem_size @ 24, tx_slots @ 28, tx_rings @ 36, ring_id @ 40,
    command @ 42, arg1 @ 44, arg2 @ 46, arg3 @ 48, flags @ 52);

/// Bits of [`Legacy::ring_id`] and [`Legacy::flags`].
pub(crate) mod legacy {
    pub(crate) const RING_MASK: u16 = 0x0fff;
    pub(crate) const NO_TX_POLL: u16 = 0x1000;
    pub(crate) const DO_RX_POLL: u16 = 0x8000;
    pub(crate) const MODE_MASK: u32 = 0xf;
    /// Modes of a netmap pipe's ends, which the names say in today's interface.
    pub(crate) const PIPE_MASTER: u32 = 5;
    pub(crate) const PIPE_SLAVE: u32 = 6;
}
