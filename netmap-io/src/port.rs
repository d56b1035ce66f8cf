//! The one interface of every packet device.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use crate::rss::Rss;
use crate::{PortError, RxRing, Steering, TxRing};

/// What a port is and can do; fixed while it is open.
#[derive(Clone, Debug, Default)]
pub struct Caps {
    /// Device string of this very queue, e.g. `xdp:eth0-0`.
    pub name: String,
    /// Name of the kernel's interface, if there is one.
    pub interface: Option<String>,
    /// Index of that interface in this network namespace.
    pub ifindex: Option<u32>,
    /// Number of the queue on the device, from 0.
    pub queue: u32,
    /// Our own link address.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes (a frame is 14 or 18 longer).
    pub mtu: u32,
    /// Largest IP packet that the buffers hold, in bytes: what `mtu` may grow to while the port is open. 0: `mtu`.
    pub mtu_max: u32,
    /// Most bytes that one slot can carry when sending.
    pub frame_bytes_max: u32,
    /// Slots of the rx ring. One of them is always the device's.
    pub rx_slots: u32,
    /// Slots of the tx ring. One of them is always the device's.
    pub tx_slots: u32,
    /// The frames never crossed a wire (veth, TAP, pipe), so that a peer with transmit checksum
    /// offload may have left the TCP checksum partial; or the kernel may have joined them (generic XDP).
    pub local: bool,
    /// The device has verified the checksums of every frame that it delivers.
    pub rx_checksum: bool,
    /// The device computes the TCP checksum of frames that ask for it.
    pub tx_checksum: bool,
    /// Bytes of virtio-net header in front of every frame, in both directions; 0 for none. With it a frame may
    /// carry a TCP segment longer than the MTU, which the device cuts.
    pub vnet_header: u8,
    /// Frames are written by the driver straight into our buffers.
    pub zero_copy: bool,
    /// Link address of the one station at the other side, where there is exactly one: frames go to it
    /// without ARP or ND.
    pub peer_mac: Option<[u8; 6]>,
    /// TCP ports that connections from here may come from, first and last; `None`: the stack's own choice.
    pub client_ports: Option<(u16, u16)>,
    /// How the device spreads frames over its queues, where that is known.
    pub rss: Option<Arc<Rss>>,
    /// How it is driven, for people: `AF_XDP, copy, native`.
    pub mode: String,
}

/// What a port has done and lost since it was opened. Every lost frame is in one of the named counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames made visible by `rx_sync`.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames handed to the device by `tx_sync`.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// System calls made by `rx_sync`.
    pub rx_syscalls: u64,
    /// System calls made by `tx_sync`.
    pub tx_syscalls: u64,
    /// Dropped by the device because our rx ring had no free slot.
    pub rx_ring_full: u64,
    /// Dropped by the device for another reason (frame longer than a buffer, no memory).
    pub rx_dropped: u64,
    /// Slots whose buffer index or length was outside the memory; skipped.
    pub rx_bad_slot: u64,
    /// Slots that the device refused to send.
    pub tx_bad_slot: u64,
    /// Dropped on the way out by the device.
    pub tx_dropped: u64,
    /// Rings whose indices made no sense and were reset (netmap's prologue check).
    pub ring_resets: u64,
    /// Frames that were not ours and went on to the kernel (netmap's host rings).
    pub to_host: u64,
    /// Those of them that waited in an extra buffer, because the kernel's ring was full.
    pub to_host_waited: u64,
    /// Those that were dropped, because there was no extra buffer either.
    pub to_host_dropped: u64,
    /// Frames of the kernel that went on to the device.
    pub from_host: u64,
    /// Times that frames of the kernel had to wait for room on the device.
    pub from_host_waited: u64,
    /// Dropped by the fault layer: loss.
    pub fault_lost: u64,
    /// Dropped by the fault layer: its queue was full (rate, delay).
    pub fault_queue_full: u64,
    /// Sent twice by the fault layer.
    pub fault_duplicated: u64,
    /// Held back past a later frame by the fault layer.
    pub fault_reordered: u64,
    /// Changed by the fault layer.
    pub fault_corrupted: u64,
    /// Not written by the capture layer: the disk was full, or the reader gone.
    pub capture_lost: u64,
}

impl Counters {
    /// Every counter with its name, in the order of the struct.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 23] {
        let Self {
            rx_frames,
            rx_bytes,
            tx_frames,
            tx_bytes,
            rx_syscalls,
            tx_syscalls,
            rx_ring_full,
            rx_dropped,
            rx_bad_slot,
            tx_bad_slot,
            tx_dropped,
            ring_resets,
            to_host,
            to_host_waited,
            to_host_dropped,
            from_host,
            from_host_waited,
            fault_lost,
            fault_queue_full,
            fault_duplicated,
            fault_reordered,
            fault_corrupted,
            capture_lost,
        } = *self;
        [
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("rx_syscalls", rx_syscalls),
            ("tx_syscalls", tx_syscalls),
            ("rx_ring_full", rx_ring_full),
            ("rx_dropped", rx_dropped),
            ("rx_bad_slot", rx_bad_slot),
            ("tx_bad_slot", tx_bad_slot),
            ("tx_dropped", tx_dropped),
            ("ring_resets", ring_resets),
            ("to_host", to_host),
            ("to_host_waited", to_host_waited),
            ("to_host_dropped", to_host_dropped),
            ("from_host", from_host),
            ("from_host_waited", from_host_waited),
            ("fault_lost", fault_lost),
            ("fault_queue_full", fault_queue_full),
            ("fault_duplicated", fault_duplicated),
            ("fault_reordered", fault_reordered),
            ("fault_corrupted", fault_corrupted),
            ("capture_lost", capture_lost),
        ]
    }
}

/// A descriptor to sleep on, in the words of poll(2) (the same bits serve epoll).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollFd {
    /// Borrowed: it stays the port's, and the same for as long as the port is open.
    pub fd: RawFd,
    /// `POLLIN`, `POLLOUT`.
    pub events: i16,
}

/// At most two descriptors: no port needs more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollFds {
    fds: [Option<PollFd>; 2],
}

impl PollFds {
    /// One descriptor that becomes readable when frames arrive.
    #[must_use]
    pub fn readable(fd: RawFd) -> Self {
        Self { fds: [Some(PollFd { fd, events: libc::POLLIN }), None] }
    }

    /// The same and one more.
    #[must_use]
    pub fn and(mut self, fd: PollFd) -> Self {
        self.fds[1] = Some(fd);
        self
    }

    /// The descriptors.
    pub fn iter(&self) -> impl Iterator<Item = PollFd> + '_ {
        self.fds.iter().flatten().copied()
    }
}

/// One queue pair of a packet device. Driven by one thread.
///
/// ```text
/// port.rx_sync()?;
/// let (mut rx, mut tx) = port.rings();
/// while let Some(frame) = rx.next() { … tx.slot() … slot.commit(len) }
/// port.tx_sync()?;
/// ```
pub trait Port: Send {
    /// What it is and can do.
    fn caps(&self) -> &Caps;

    /// Gives the slots that were read back to the device and makes arrived frames visible. Returns
    /// the number of frames that are readable now. No system call when the device needs none.
    fn rx_sync(&mut self) -> Result<u32, PortError>;

    /// Sends every committed slot, with one kick for all of them, and takes back the slots whose
    /// frames have left. Returns the number of free slots. Costs no system call when nothing was
    /// committed.
    fn tx_sync(&mut self) -> Result<u32, PortError>;

    /// Both rings at once: frames can be answered, or forwarded by swapping buffers, while they are read.
    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>);

    /// The frames that the last `rx_sync` made visible and that were not read yet.
    fn rx(&mut self) -> RxRing<'_> {
        self.rings().0
    }

    /// The slots that can be filled now.
    fn tx(&mut self) -> TxRing<'_> {
        self.rings().1
    }

    /// Announces that the caller is about to sleep on [`Port::poll_fds`]. `false`: frames are waiting
    /// already, don't sleep. The announcement ends at the next `rx_sync`.
    fn arm(&mut self) -> Result<bool, PortError>;

    /// What to sleep on, besides the engine's doorbell. After waking, `rx_sync` clears the cause.
    fn poll_fds(&self) -> PollFds;

    /// What to wait for in addition when the tx ring is full. `None`: [`Port::poll_fds`] wakes for room, too.
    fn tx_poll_fd(&self) -> Option<PollFd>;

    /// When the device synced the rx ring the last time, since 1970, where it tells ([`OpenOptions::timestamps`]).
    fn rx_time(&self) -> Option<Duration> {
        None
    }

    /// Within what time `rx_sync` and `tx_sync` have to be called although no descriptor will tell:
    /// frames that the device had no room for, or that a layer holds back (fault injection).
    fn resync_in(&self) -> Option<Duration> {
        None
    }

    /// The kernel's interface below came up, or went down. Returns whether nobody may wait on [`Port::poll_fds`] while it is
    /// down: the netmap module lets whoever asks it about such an interface wait, not to be interrupted, until it is up
    /// again.
    fn set_up(&mut self, _up: bool) -> bool {
        false
    }

    /// The interface below has another link address from now on.
    fn set_mac(&mut self, _mac: [u8; 6]) {}

    /// What it has done and lost. Asks the device, so not for the fast path.
    fn counters(&self) -> Counters;
}

/// An opened device: a port per queue and, where the kernel goes on using the device, the steering.
pub struct Device {
    /// In the order of the queue numbers; one for each shard.
    pub ports: Vec<Box<dyn Port>>,
    /// `None`: every frame of the device is ours (pipe, TAP).
    pub steering: Option<Arc<dyn Steering>>,
}

/// How to open a device. `..OpenOptions::default()` is right for all but tests and experts.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Slots of each rx ring; a power of two.
    pub rx_slots: u32,
    /// Slots of each tx ring; a power of two.
    pub tx_slots: u32,
    /// Bytes of a buffer; a power of two, 2048 or 4096 for AF_XDP. `None`: the smallest that holds a
    /// frame of the interface's MTU.
    pub frame_size: Option<u32>,
    /// AF_XDP: whether the driver may, must or must not use our buffers directly.
    pub zero_copy: ZeroCopy,
    /// AF_XDP: where the steering program runs.
    pub xdp_mode: XdpMode,
    /// Most tuples that can be registered at a time.
    pub tuples_max: u32,
    /// TAP: queues to make; as many as there are shards.
    pub queues: u32,
    /// How long to wait for the other end of a pipe.
    pub pipe_wait: Duration,
    /// TAP: a virtio-net header in front of every frame ([`Caps::vnet_header`]); rings are shorter then, buffers
    /// longer.
    pub vnet_header: bool,
    /// What the stack calls itself towards a switch.
    pub stack: String,
    /// netmap: speak the interface of API 11 and 12 even to a module that has a newer one.
    pub old_interface: bool,
    /// netmap: the module writes the time of each sync ([`Port::rx_time`]).
    pub timestamps: bool,
    /// netmap: the kernel goes on using the interface, through its host rings; [`Device::steering`] says what is ours.
    pub beside_kernel: bool,
    /// AF_XDP: the program's link is held by others, too ([`Steering::hold`]), and inherited from those who had it.
    pub kept: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            rx_slots: 2048,
            tx_slots: 2048,
            frame_size: None,
            zero_copy: ZeroCopy::Auto,
            xdp_mode: XdpMode::Auto,
            tuples_max: 262_144,
            queues: 1,
            pipe_wait: Duration::from_secs(5),
            vnet_header: false,
            stack: String::new(),
            old_interface: false,
            timestamps: false,
            beside_kernel: false,
            kept: false,
        }
    }
}

/// AF_XDP's zero-copy mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver has it.
    #[default]
    Auto,
    /// Or fail.
    Force,
    /// Copy, as any driver can.
    Off,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, else generic.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// On socket buffers, as any driver can.
    Generic,
}
