//! What a machine and its interfaces can do for a port, without opening one: `utcp doctor`'s eyes.

use std::io;

use crate::{netmap, sys, xdp};

/// Something that a NIC or the kernel does to frames on their way, and that can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Large receive offload: the NIC joins segments.
    Lro,
    /// Generic receive offload: the kernel joins segments.
    Gro,
    /// The kernel leaves cutting to the last moment.
    Gso,
    /// The NIC cuts segments.
    Tso,
    /// The NIC fills checksums in.
    TxChecksum,
    /// The NIC verifies checksums.
    RxChecksum,
    /// The NIC takes VLAN tags off received frames.
    RxVlan,
}

/// Bits of `ETHTOOL_GFLAGS`.
const FLAG_RX_VLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;

impl Offload {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Lro, Self::Gro, Self::Gso, Self::Tso, Self::TxChecksum, Self::RxChecksum, Self::RxVlan];

    /// Its name for `ethtool -K`.
    #[must_use]
    pub fn ethtool_name(self) -> &'static str {
        match self {
            Self::Lro => "lro",
            Self::Gro => "gro",
            Self::Gso => "gso",
            Self::Tso => "tso",
            Self::TxChecksum => "tx",
            Self::RxChecksum => "rx",
            Self::RxVlan => "rxvlan",
        }
    }

    /// The commands that read and write it, and its bit of the number.
    fn commands(self) -> (u32, u32, u32) {
        match self {
            Self::Lro => (GET_FLAGS, SET_FLAGS, FLAG_LRO),
            Self::RxVlan => (GET_FLAGS, SET_FLAGS, FLAG_RX_VLAN),
            Self::RxChecksum => (0x14, 0x15, 1),
            Self::TxChecksum => (0x16, 0x17, 1),
            Self::Tso => (0x1e, 0x1f, 1),
            Self::Gso => (0x23, 0x24, 1),
            Self::Gro => (0x2b, 0x2c, 1),
        }
    }

    /// Whether it is on for `interface`; an error when there is no such interface, or it can't say.
    pub fn is_on(self, interface: &str) -> io::Result<bool> {
        let (get, _, bit) = self.commands();
        Ok(sys::ethtool_get(interface, get)? & bit != 0)
    }

    /// Switches it off.
    pub fn switch_off(self, interface: &str) -> io::Result<()> {
        let (get, set, bit) = self.commands();
        let now = sys::ethtool_get(interface, get)?;
        sys::ethtool_set(interface, set, now & !bit)?;
        // What the driver can't change it leaves as it is, without a word.
        match self.is_on(interface)? {
            true => Err(io::Error::new(io::ErrorKind::Unsupported, "the driver leaves it on")),
            false => Ok(()),
        }
    }
}

/// What the driver of an interface says.
#[derive(Clone, Debug)]
pub struct Driver {
    /// Its name; empty when it does not tell.
    pub name: String,
    /// Receive queues in use.
    pub queues: u32,
    /// Slots of its rx and tx rings, now and at most, where it tells.
    pub ring_sizes: Option<RingSizes>,
}

/// Slots of a NIC's own rings.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Receiving, now.
    pub rx: u32,
    /// Sending, now.
    pub tx: u32,
    /// Receiving, at most.
    pub rx_max: u32,
    /// Sending, at most.
    pub tx_max: u32,
}

/// Asks the driver of `interface`; `None` when there is no such interface here.
pub fn driver(interface: &str) -> io::Result<Option<Driver>> {
    let Some(found) = sys::interface(interface)? else { return Ok(None) };
    let sizes = sys::ring_sizes(interface).ok().filter(|sizes| sizes.2 > 0);
    let ring_sizes = sizes.map(|(rx, tx, rx_max, tx_max)| RingSizes { rx, tx, rx_max, tx_max });
    Ok(Some(Driver { name: found.driver, queues: found.queues, ring_sizes }))
}

/// Whether the kernel gives us an AF_XDP socket.
pub fn af_xdp() -> io::Result<()> {
    xdp::probe_socket()
}

/// Whether the kernel gives us BPF maps.
pub fn bpf() -> io::Result<()> {
    xdp::probe_bpf()
}

/// Name of an XDP program, where the kernel lets us ask.
#[must_use]
pub fn xdp_program_name(id: u32) -> Option<String> {
    xdp::program_name(id)
}

/// Name of our own steering program.
pub const STEERING_PROGRAM: &str = xdp::STEERING_PROGRAM;

/// Number of that program on an interface where it stands behind the kernel's GRO instead of being an XDP program, and those of
/// the programs that are asked before it there.
#[must_use]
pub fn steers_behind(ifindex: u32) -> Option<(u32, Vec<u32>)> {
    xdp::steers_behind(ifindex)
}

/// Whether `xdp:` stands behind GRO on that interface (a veth pair of one queue), where XDP programs of others do not hinder it.
#[must_use]
pub fn stands_behind(interface: &str) -> bool {
    sys::interface(interface).is_ok_and(|found| found.is_some_and(|found| xdp::stands_behind(&found)))
}

/// Whether short frames take a shorter way than packet sockets there: those that come, and those that leave. What this kernel and our
/// limits allow; while chains of nftables stand at the interface's hooks, none does.
#[must_use]
pub fn short_ways() -> (bool, bool) {
    xdp::short_ways()
}

/// Chains of nftables at that interface's ingress hook, each as "table chain". Where `xdp:` stands behind GRO, frames of ours meet them.
#[must_use]
pub fn ingress_chains(interface: &str) -> Vec<String> {
    xdp::rules_before(interface)
}

/// Programs by name and number, for people.
#[must_use]
pub fn program_words(ids: &[u32]) -> String {
    let name = |id: &u32| match xdp::program_name(*id).filter(|name| !name.is_empty()) {
        Some(name) => format!("{name:?} (number {id})"),
        None => format!("number {id}"),
    };
    ids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Whether a netmap module answers whose control interface we know (API 14 and 15). `NotFound`: none is loaded.
pub fn netmap() -> io::Result<()> {
    netmap::probe()
}
