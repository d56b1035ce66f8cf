//! Packet I/O for utcp: netmap rings, AF_XDP, TAP and an in-memory pipe behind one [`Port`] trait.
//!
//! A *port* is one queue pair of a device: one ring that receives and one that sends, after netmap's
//! model. The user owns the slots in `[head, tail)`, everything else belongs to the device, and the
//! border between the two moves only in a *sync*:
//!
//! ```text
//!            released   head              tail     free for the device
//!   rx ring  ──────────┬──────────────────┬──────────────────────────►
//!            given back│ frames to read   │ being filled
//!            at sync   └──── user owns ───┘
//!
//!            committed  head              tail     on their way out
//!   tx ring  ──────────┬──────────────────┬──────────────────────────►
//!            sent at   │ room to write    │
//!            sync      └──── user owns ───┘
//! ```
//!
//! The engine's loop is `rx_sync`, one pass over [`RxRing`], then [`TxRing`] slots built in place, then
//! `tx_sync`. Virtual calls happen once per batch; a frame costs a few loads, whatever the device.
//!
//! Frames are bytes. Nothing here knows TCP; the one place that looks at headers is the XDP program
//! ([`Steering`]) that decides which of the device's frames are ours at all.
//!
//! | device string | module | what it is |
//! |---|---|---|
//! | `xdp:eth0`, `xdp:eth0-3` | `xdp` | AF_XDP sockets and the steering program, any driver |
//! | `pipe:NAME` | `pipe` | netmap's memory layout in shared memory, two ends joined |
//! | `tap:utcp0` | `tap` | a TAP device of the kernel |
//! | `netmap:eth0`, `vale0:a` | `netmap` | the netmap module |
//! | `switch:eth0` | `switch` | one stack's share of a device that several have |

pub mod conformance;
mod error;
mod frame;
pub mod inspect;
mod layer;
mod memory;
mod netmap;
pub mod pipe;
mod port;
pub mod provider;
mod ring;
pub mod rss;
mod spec;
mod steering;
pub mod switch;
mod sys;
mod tap;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod whose;
mod xdp;

pub use error::PortError;
pub use layer::{Capture, FaultError, FaultSpec, Tracer, capture, faults};
pub use netmap::admin;
pub use netmap::name::{Conf, Extmem, NetmapOptions, Offset, Rings};
pub use port::{Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, XdpMode, ZeroCopy};
pub use ring::{RxFrame, RxRing, Slot, SlotFlags, TxRing, TxSlot};
pub use spec::{DeviceSpec, SpecError};
pub use steering::{Flow, PeerVerdict, Proto, Steering, Tuple, mapped};

/// Opens every queue that `device` names, in the order of their numbers.
///
/// Errors say what is wrong with the string, the interface or the privilege, and what to do about it.
pub fn open(device: &str, options: &OpenOptions) -> Result<Device, PortError> {
    let spec: DeviceSpec = device.parse()?;
    open_spec(&spec, options)
}

/// [`open`] for a device string that was parsed before.
pub fn open_spec(spec: &DeviceSpec, options: &OpenOptions) -> Result<Device, PortError> {
    match spec {
        DeviceSpec::Xdp { interface, queue } => xdp::open(interface, *queue, options),
        DeviceSpec::Tap { name } => tap::open(name, options),
        DeviceSpec::Pipe { name } => pipe::open(name, options),
        DeviceSpec::Netmap { .. } => netmap::open(spec, options),
        DeviceSpec::Switch { name } => switch::open(name, options),
    }
}
