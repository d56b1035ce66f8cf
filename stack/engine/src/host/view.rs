//! What the shards read: an immutable snapshot of the host.

use std::sync::Arc;

use utcp_proto::wire::IpAddr;
use utcp_proto::wire::ethernet::Mac;

use super::routing::{Query, RouteKind, Routing};
use super::source::Addresses;

/// `LOOPBACK_IFINDEX`: `lo` is the first interface of every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Immutable snapshot of the host, shared by `Arc` with the shards and replaced when something changes.
/// No lookup allocates. Parts that did not change are shared with the view before.
#[derive(Clone, Debug, Default)]
pub struct HostView {
    pub(super) epoch: u32,
    /// By number.
    pub(super) interfaces: Arc<Vec<Interface>>,
    pub(super) addresses: Arc<Addresses>,
    pub(super) routing: Arc<Routing>,
    /// By interface and address.
    pub(super) neighbours: Arc<Vec<((u32, IpAddr), Neighbour)>>,
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
    /// Number of the XDP program in front of it.
    pub xdp: Option<u32>,
    /// What IPv6 takes for its MTU: a router may have told a smaller one (RFC 4861 §4.6.4).
    pub(super) mtu_v6: Option<u32>,
    /// IPv6 prefers temporary source addresses on it (`use_tempaddr`).
    pub(super) temporary_addresses: bool,
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
        addr.is_loopback() || self.routing.is_local(addr)
    }

    /// Usable addresses of one interface, in the kernel's order.
    pub fn local_addresses_of(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        self.addresses.of(ifindex)
    }

    /// The same, but none of a VRF's member: what is sent there the kernel gives to sockets of the VRF alone
    /// (`net.ipv4.tcp_l3mdev_accept` aside).
    pub fn served_addresses_of(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        let served = self.interface(ifindex).is_none_or(|interface| !self.in_vrf(interface));
        self.addresses.of(ifindex).filter(move |_| served)
    }

    /// Usable addresses of no link in particular: those of `lo` that other hosts may know.
    pub fn addresses_of_the_host(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.of(LOOPBACK).filter(|addr| !addr.is_loopback())
    }

    /// The route to `to`, as the kernel's rules and tables have it for a socket that is bound to `from` or (`None`)
    /// to no address. `None`: there is none, it is a refusal (unreachable, blackhole, prohibit), or it depends on
    /// something that only the kernel can judge. Destinations on this host lead to `lo`.
    #[must_use]
    pub fn route(&self, to: IpAddr, from: Option<IpAddr>) -> Option<Route> {
        self.route_by(to, from, None)
    }

    /// As [`Self::route`], for a socket that is bound to the interface `oif` too: `SO_BINDTODEVICE` or the scope id
    /// of an IPv6 link-local address (which has no route without).
    #[must_use]
    pub fn route_by(&self, to: IpAddr, from: Option<IpAddr>, oif: Option<u32>) -> Option<Route> {
        let from = from.filter(|from| !from.is_unspecified());
        if to.is_unspecified() || to.is_multicast() || to.is_broadcast() {
            return None;
        }
        if from.is_some_and(|from| from.is_v4() != to.is_v4()) || (is_link_local_v6(to) && oif.is_none()) {
            return None;
        }
        let oif = match oif.map(|oif| self.interface(oif)) {
            None => None,
            Some(Some(interface)) if !self.in_vrf(interface) => Some((interface.index, &*interface.name)),
            Some(_) => return None,
        };
        let silent = |ifindex, gateway| {
            self.known_neighbour(ifindex, gateway).is_some_and(|neighbour| neighbour.failed)
        };
        let query = Query { to, from, oif, silent: &silent };
        let found = self.look_up(query)?;
        if from.is_some() || !to.is_v4() {
            return Some(found);
        }
        // For IPv4 the kernel looks up again with the source that it found, because rules may select by it.
        let again = self.look_up(Query { from: Some(found.source), ..query })?;
        Some(Route { source: found.source, ..again })
    }

    /// Whether routes or rules bar the way from `from` to `to` (blackhole, unreachable, prohibit); `oif` as in [`Self::route_by`]. The
    /// kernel sends nothing then, on connections that are there, too.
    #[must_use]
    pub fn bars(&self, to: IpAddr, from: IpAddr, oif: Option<u32>) -> bool {
        let interface = oif.and_then(|oif| self.interface(oif));
        let oif = interface.map(|interface| (interface.index, &*interface.name));
        self.routing.bars(Query { to, from: Some(from), oif, silent: &|_, _| false })
    }

    fn look_up(&self, query: Query<'_>) -> Option<Route> {
        let (entry, hop) = self.routing.lookup(query)?;
        let to = query.to;
        if entry.kind == RouteKind::Local {
            let source = query.from.or(entry.source).unwrap_or(to);
            return Some(Route { ifindex: LOOPBACK, source, next_hop: to, mtu: None });
        }
        let interface = self.interface(hop.ifindex)?;
        let source = query.from.or(entry.source).or_else(|| {
            if to.is_v4() {
                let gateway = hop.gateway.filter(IpAddr::is_v4);
                self.addresses.source_v4(hop.ifindex, gateway, entry.scope)
            } else {
                self.addresses.source_v6(to, hop.ifindex, interface.temporary_addresses)
            }
        })?;
        let of_link = interface.mtu_v6.filter(|&mtu| !to.is_v4() && mtu < interface.mtu);
        Some(Route {
            ifindex: hop.ifindex,
            source,
            next_hop: hop.gateway.unwrap_or(to),
            mtu: entry.mtu.or(of_link),
        })
    }

    /// A VRF has tables of its own, which rules find by the interface: left to the kernel.
    fn in_vrf(&self, interface: &Interface) -> bool {
        let master = interface.master.and_then(|master| self.interface(master));
        interface.kind == Kind::Vrf || master.is_some_and(|master| master.kind == Kind::Vrf)
    }

    /// What the kernel knows of the neighbour `next_hop`; `None`: nothing, ask [`super::HostMirror::resolve`].
    /// `failed` tells how the last attempt ended; that a new one fails too is no change and makes no new view.
    #[must_use]
    pub fn neighbour(&self, ifindex: u32, next_hop: IpAddr) -> Option<Neighbour> {
        // The kernel too puts the interface's own address on what is sent without resolution.
        let unresolved = || {
            let interface = self.interface(ifindex).filter(|interface| interface.noarp)?;
            Some(Neighbour { mac: interface.mac, usable: true, failed: false })
        };
        self.known_neighbour(ifindex, next_hop).or_else(unresolved)
    }

    fn known_neighbour(&self, ifindex: u32, next_hop: IpAddr) -> Option<Neighbour> {
        let at = self.neighbours.binary_search_by_key(&(ifindex, next_hop), |(key, _)| *key).ok()?;
        self.neighbours.get(at).map(|(_, neighbour)| *neighbour)
    }

    /// The interface of that number.
    #[must_use]
    pub fn interface(&self, ifindex: u32) -> Option<&Interface> {
        let at = self.interfaces.binary_search_by_key(&ifindex, |interface| interface.index).ok()?;
        self.interfaces.get(at)
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

/// fe80::/10.
pub fn is_link_local_v6(addr: IpAddr) -> bool {
    matches!(addr.0, [0xfe, second, ..] if second & 0xc0 == 0x80)
}
