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

/// A structure of the interface: words without holes but at its end, each at the offset that a real module was measured to have.
macro_rules! structure {
    ($(#[$meta:meta])* $name:ident: $size:literal { $($(#[$doc:meta])* $field:ident: $kind:ty = $at:literal,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name {
            $($(#[$doc])* pub(crate) $field: $kind,)*
        }
        layout!($name, $size $(, $field @ $at)*);
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

structure! {
    /// `struct nmreq_header`.
    Header: 88 {
        version: u16 = 0,
        kind: u16 = 2,
        reserved: u32 = 4,
        name: [u8; NAME_LEN] = 8,
        /// Address of the first [`Opt`].
        options: u64 = 72,
        /// Address of the body.
        body: u64 = 80,
    }
}

structure! {
    /// `struct nmreq_option`: how every option begins.
    #[derive(Default)]
    Opt: 24 {
        /// Address of the next.
        next: u64 = 0,
        kind: u32 = 8,
        /// Answer: 0, or an errno.
        status: u32 = 12,
        /// Bytes of an option of variable length; 0 for the others.
        size: u64 = 16,
    }
}

structure! {
    /// `struct nmreq_register`.
    #[derive(Default)]
    Register: 56 {
        /// Of the `netmap_if` in the region.
        offset: u64 = 0,
        mem_size: u64 = 8,
        /// Asked for (0: as they are), and what there is.
        tx_slots: u32 = 16,
        rx_slots: u32 = 20,
        tx_rings: u16 = 24,
        rx_rings: u16 = 26,
        host_tx_rings: u16 = 28,
        host_rx_rings: u16 = 30,
        /// Number of the allocator: ports of one can swap buffers.
        mem_id: u16 = 32,
        ring_id: u16 = 34,
        /// [`Mode`].
        mode: u32 = 36,
        extra_bufs: u32 = 40,
        pad: u32 = 44,
        /// [`flag`]s.
        flags: u64 = 48,
    }
}

structure! {
    /// `struct nmreq_port_info_get`.
    #[derive(Default)]
    PortInfo: 32 {
        mem_size: u64 = 0,
        tx_slots: u32 = 8,
        rx_slots: u32 = 12,
        tx_rings: u16 = 16,
        rx_rings: u16 = 18,
        host_tx_rings: u16 = 20,
        host_rx_rings: u16 = 22,
        mem_id: u16 = 24,
        pad: [u16; 3] = 26,
    }
}

structure! {
    /// `struct nmreq_vale_attach`: puts an interface (`vale0:eth0`) on a switch.
    #[derive(Default)]
    ValeAttach: 64 {
        /// [`Mode::AllNic`], or [`Mode::NicAndHost`] for the host's stack as well.
        register: Register = 0,
        port_index: u32 = 56,
        pad: u32 = 60,
    }
}

structure! {
    /// `struct nmreq_vale_detach`.
    #[derive(Default)]
    ValeDetach: 8 {
        port_index: u32 = 0,
        pad: u32 = 4,
    }
}

structure! {
    /// `struct nmreq_vale_list`: the port at these indices, or the next behind them.
    #[derive(Default)]
    ValeList: 8 {
        bridge_index: u16 = 0,
        pad: u16 = 2,
        port_index: u32 = 4,
    }
}

structure! {
    /// `struct nmreq_port_hdr`: bytes of virtio-net header in front of a port's frames.
    #[derive(Default)]
    PortHdr: 8 {
        header_len: u32 = 0,
        pad: u32 = 4,
    }
}

structure! {
    /// `struct nmreq_vale_newif`: a port of VALE that outlives its users.
    #[derive(Default)]
    ValeNewif: 16 {
        tx_slots: u32 = 0,
        rx_slots: u32 = 4,
        tx_rings: u16 = 8,
        rx_rings: u16 = 10,
        mem_id: u16 = 12,
        pad: u16 = 14,
    }
}

structure! {
    /// `struct nmreq_vale_polling`: threads of the kernel that poll a port of VALE.
    #[derive(Default)]
    ValePolling: 16 {
        /// 1: one thread; 2: several.
        mode: u32 = 0,
        first_cpu: u32 = 4,
        cpus: u32 = 8,
        pad: u32 = 12,
    }
}

structure! {
    /// `struct nmreq_pools_info`: the pools of an allocator.
    #[derive(Default)]
    PoolsInfo: 64 {
        mem_size: u64 = 0,
        mem_id: u16 = 8,
        pad: [u16; 3] = 10,
        if_offset: u64 = 16,
        if_total: u32 = 24,
        if_size: u32 = 28,
        ring_offset: u64 = 32,
        ring_total: u32 = 40,
        ring_size: u32 = 44,
        buf_offset: u64 = 48,
        buf_total: u32 = 56,
        buf_size: u32 = 60,
    }
}

structure! {
    /// `struct nmreq_sync_kloop_start`: a loop in the kernel that syncs, until [`kind::SYNC_KLOOP_STOP`].
    #[derive(Default)]
    KloopStart: 8 {
        sleep_us: u32 = 0,
        pad: u32 = 4,
    }
}

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

structure! {
    /// `struct nmreq_opt_csb`.
    #[derive(Default)]
    OptCsb: 40 {
        head: Opt = 0,
        /// Address of [`CsbToKernel`]s, tx rings first.
        to_kernel: u64 = 24,
        /// Address of [`CsbToUser`]s.
        to_user: u64 = 32,
    }
}

structure! {
    /// `struct nmreq_opt_sync_kloop_eventfds`; one [`KloopEventfds`] per ring follows.
    #[derive(Default)]
    OptKloopEventfds: 24 {
        head: Opt = 0,
    }
}

structure! {
    /// See [`OptKloopEventfds`].
    #[derive(Default)]
    KloopEventfds: 8 {
        /// To the kernel.
        ioeventfd: i32 = 0,
        /// From the kernel.
        irqfd: i32 = 4,
    }
}

structure! {
    /// `struct nmreq_opt_sync_kloop_mode`.
    #[derive(Default)]
    OptKloopMode: 32 {
        head: Opt = 0,
        mode: u32 = 24,
    }
}

structure! {
    /// `struct nmreq_opt_offsets`: frames begin somewhere in their buffers, as the slots say.
    #[derive(Default)]
    OptOffsets: 56 {
        head: Opt = 0,
        offset_max: u64 = 24,
        offset_initial: u64 = 32,
        offset_bits: u32 = 40,
        tx_align: u32 = 44,
        min_gap: u64 = 48,
    }
}

structure! {
    /// `struct nmreq_opt_extmem`: the region is memory of ours.
    #[derive(Default)]
    OptExtmem: 96 {
        head: Opt = 0,
        /// Address of the memory.
        memory: u64 = 24,
        pools: PoolsInfo = 32,
    }
}

structure! {
    /// `struct nmreq`: the whole of the old interface.
    #[derive(Default)]
    Legacy: 60 {
        name: [u8; 16] = 0,
        version: u32 = 16,
        offset: u32 = 20,
        mem_size: u32 = 24,
        tx_slots: u32 = 28,
        rx_slots: u32 = 32,
        tx_rings: u16 = 36,
        rx_rings: u16 = 38,
        /// Number of the ring, and [`legacy`] bits.
        ring_id: u16 = 40,
        command: u16 = 42,
        arg1: u16 = 44,
        /// The allocator.
        arg2: u16 = 46,
        /// Extra buffers.
        arg3: u32 = 48,
        /// [`Mode`] and [`flag`]s; those of polling stand in `ring_id`.
        flags: u32 = 52,
        spare: [u32; 1] = 56,
    }
}

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
