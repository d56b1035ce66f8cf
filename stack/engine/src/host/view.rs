//! What the shards read: an immutable snapshot of the host.

use utcp_proto::wire::IpAddr;
use utcp_proto::wire::ethernet::Mac;

/// Immutable snapshot of the host, shared by `Arc` with the shards and replaced when something changes.
/// No lookup allocates.
#[derive(Debug, Default)]
pub struct HostView {
    epoch: u32,
    interfaces: Vec<Interface>,
}

/// How to reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface to leave by.
    pub ifindex: u32,
    /// The source address to use: the caller's, or what the kernel would choose.
    pub source: IpAddr,
    /// Whose neighbour entry to use: the gateway, or the destination itself when it is on the link. A gateway of an
    /// IPv4 route may be an IPv6 address (RFC 5549).
    pub next_hop: IpAddr,
    /// The path's MTU if the route or IPv6 on its interface knows one; otherwise the interface's counts.
    pub mtu: Option<u32>,
}

/// A neighbour on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link address; zero until the kernel has learnt one.
    pub mac: Mac,
    /// Frames may be sent to `mac` now (REACHABLE, STALE, DELAY, PROBE, PERMANENT, NOARP).
    pub usable: bool,
    /// The kernel asked and got no answer (FAILED). Neither usable nor failed: still resolving.
    pub failed: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Bytes of an IP packet that it carries.
    pub mtu: u32,
    /// Its link address; zero if it has none of six bytes.
    pub mac: Mac,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Up and able to carry packets: carrier and so on (`IFF_RUNNING`).
    pub running: bool,
    /// Frames on it are Ethernet frames (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Neighbours are not resolved on it (`IFF_NOARP`, `IFF_LOOPBACK`).
    pub noarp: bool,
    /// The bond, bridge, team or VRF that it is a member of.
    pub master: Option<u32>,
    /// What drives it.
    pub kind: Kind,
}

/// What an interface is made of, as far as it decides who may serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A device with a driver of its own.
    Device,
    /// `lo`.
    Loopback,
    /// One 802.1Q VLAN of the interface `parent`.
    Vlan {
        /// The interface that carries the tagged frames.
        parent: u32,
        /// The VLAN's number.
        id: u16,
    },
    /// A bond or team: packets leave by one of its members.
    Bond,
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A TUN or TAP device.
    Tun,
    /// A VRF.
    Vrf,
    /// Any other virtual interface (macvlan, wireguard, tunnels …).
    Virtual,
}

impl HostView {
    /// True for loopback addresses and for addresses of this host (type `local` in the table `local`).
    #[must_use]
    pub fn is_local(&self, addr: IpAddr) -> bool {
        addr.is_loopback()
    }

    /// Usable addresses of one interface, in the kernel's order.
    pub fn local_addresses_of(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        let _ = ifindex;
        std::iter::empty()
    }

    /// The route to `to`, as the kernel's rules and tables have it for a socket that is bound to `from` or (`None`)
    /// to no address. `None`: there is none, it is a refusal (unreachable, blackhole, prohibit), or it depends on
    /// something that only the kernel can judge.
    #[must_use]
    pub fn route(&self, to: IpAddr, from: Option<IpAddr>) -> Option<Route> {
        self.route_by(to, from, None)
    }

    /// As [`Self::route`], for a socket that is bound to the interface `oif` too: `SO_BINDTODEVICE` or the scope id
    /// of an IPv6 link-local address (which has no route without).
    #[must_use]
    pub fn route_by(&self, to: IpAddr, from: Option<IpAddr>, oif: Option<u32>) -> Option<Route> {
        let _ = (to, from, oif);
        None
    }

    /// What the kernel knows of the neighbour `next_hop`; `None`: nothing, ask [`super::HostMirror::resolve`].
    #[must_use]
    pub fn neighbour(&self, ifindex: u32, next_hop: IpAddr) -> Option<Neighbour> {
        let _ = (ifindex, next_hop);
        None
    }

    /// The interface of that number.
    #[must_use]
    pub fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == ifindex)
    }

    /// The interface of that name.
    #[must_use]
    pub fn interface_named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// All interfaces, by number.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter()
    }

    /// Changes with every new view.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}
