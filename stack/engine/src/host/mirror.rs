//! Follows the kernel and makes new views.
//!
//! Interfaces and neighbours are followed message by message: each message replaces or removes what its key names.
//! Addresses, rules and routes are read anew after any message about them: their order matters and messages don't tell
//! it, and the kernel removes IPv4 routes of an interface or address that goes without a word. Messages of one burst
//! cost one reading. A part that came out as it was keeps its place in the view, so that noise (a neighbour going from
//! REACHABLE to STALE, a route of another daemon's private table replaced by itself) makes no new view.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::{debug, warn};
use utcp_proto::wire::IpAddr;

use super::HostView;
use super::netlink::{ACK, CREATE, Channel, DUMP, Message, Read, Request};
use super::parse::{self, NeighbourRecord};
use super::routing::{Family, Routing};
use super::source::Addresses;
use super::uapi::*;
use super::view::{Interface, LOOPBACK};

/// Datagrams that one call of `on_readable` takes: a flood must not hold up the control thread.
const READS_MAX: usize = 1024;
/// Datagrams that one call discards after a loss: many times what fits a socket's buffer.
const DISCARDS_MAX: usize = 1 << 16;
/// Readings of one thing, when the kernel says each time that it changed meanwhile. The last one counts then: a message
/// about the change is on its way and causes another.
const DUMPS_MAX: usize = 4;

const GROUPS: [u32; 8] = [
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_RULE,
];

/// Keeps a [`HostView`] up to date. Owned by the control thread.
#[derive(Debug)]
pub struct HostMirror {
    events: Channel,
    dumps: Channel,
    requests: RefCell<Channel>,
    /// The kernel refused to take requests about neighbours from us.
    refused: Cell<bool>,
    interfaces: BTreeMap<u32, Interface>,
    neighbours: BTreeMap<(u32, IpAddr), NeighbourRecord>,
    changed: Changed,
    /// Times that everything was read anew.
    resyncs: u64,
    view: Arc<HostView>,
}

/// What the view lacks.
#[derive(Debug, Clone, Copy, Default)]
struct Changed {
    /// Messages were lost: interfaces and neighbours are to be read anew too.
    all: bool,
    interfaces: bool,
    neighbours: bool,
    addresses: bool,
    routing: bool,
}

impl HostMirror {
    /// Subscribes to changes and reads everything once, in the calling thread's network namespace.
    pub fn open() -> io::Result<(Self, Arc<HostView>)> {
        // First subscribe, then read: what changes in between is told.
        let mut mirror = Self {
            events: Channel::subscribe(NETLINK_ROUTE, &GROUPS)?,
            dumps: Channel::open(NETLINK_ROUTE)?,
            requests: RefCell::new(Channel::subscribe(NETLINK_ROUTE, &[])?),
            refused: Cell::new(false),
            interfaces: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            changed: Changed { all: true, ..Changed::default() },
            resyncs: 0,
            view: Arc::default(),
        };
        let view = mirror.update()?;
        mirror.view = Arc::new(HostView { epoch: 1, ..view });
        let view = Arc::clone(&mirror.view);
        Ok((mirror, view))
    }

    /// Readable (level-triggered) when [`Self::on_readable`] has work.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Takes in what the kernel told. `None`: nothing that matters changed. May leave work for the next call, the
    /// descriptor is readable then.
    pub fn on_readable(&mut self) -> Option<Arc<HostView>> {
        self.drain();
        let view = match self.update() {
            Ok(view) => view,
            Err(error) => {
                // What is missing stays marked; the next message brings the next attempt.
                warn!(%error, "can't read the host's addresses and routes from the kernel; the last ones stay");
                return None;
            }
        };
        let same = Arc::ptr_eq(&view.interfaces, &self.view.interfaces)
            && Arc::ptr_eq(&view.addresses, &self.view.addresses)
            && Arc::ptr_eq(&view.routing, &self.view.routing)
            && Arc::ptr_eq(&view.neighbours, &self.view.neighbours);
        if same {
            return None;
        }
        self.view = Arc::new(HostView { epoch: self.view.epoch.wrapping_add(1), ..view });
        Some(Arc::clone(&self.view))
    }

    /// Times that messages were lost and everything was read anew.
    #[must_use]
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// Makes the next burst overrun.
    #[cfg(test)]
    pub(super) fn shrink_buffer(&self) {
        self.events.set_buffer(0);
    }

    /// Asks the kernel to resolve the neighbour; the answer comes as a new view.
    pub fn resolve(&self, ifindex: u32, next_hop: IpAddr) {
        self.use_neighbour(ifindex, next_hop);
    }

    /// Tells the kernel that the neighbour is in use, so that it keeps it fresh instead of letting it expire under
    /// our traffic, which the kernel does not see. Every few seconds per neighbour is plenty.
    pub fn touch(&self, ifindex: u32, next_hop: IpAddr) {
        self.use_neighbour(ifindex, next_hop);
    }

    /// Does what a packet to the neighbour does: a missing or failed entry is resolved, a stale one probed.
    fn use_neighbour(&self, ifindex: u32, next_hop: IpAddr) {
        let fixed = self.neighbours.get(&(ifindex, next_hop)).is_some_and(|record| record.fixed);
        let noarp = self.interfaces.get(&ifindex).is_some_and(|interface| interface.noarp);
        // "Use" of a permanent entry would make it an ordinary one, which expires (Linux 5.16 and later).
        if fixed || noarp {
            return;
        }
        let result = if self.refused.get() {
            send_nothing(ifindex, next_hop)
        } else {
            match self.ask(ifindex, next_hop) {
                // Needs CAP_NET_ADMIN. Whoever has not sends a packet instead.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.refused.set(true);
                    send_nothing(ifindex, next_hop)
                }
                result => result,
            }
        };
        if let Err(error) = result {
            debug!(%error, ifindex, %next_hop, "the kernel does not resolve a neighbour");
        }
    }

    fn ask(&self, ifindex: u32, next_hop: IpAddr) -> io::Result<()> {
        let family = if next_hop.is_v4() { AF_INET } else { AF_INET6 };
        let mut header = [0; NDMSG];
        header[0] = family;
        header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        header[10] = NTF_USE;
        let request = Request::new(RTM_NEWNEIGH, CREATE, &header);
        let request = if next_hop.is_v4() {
            request.with(NDA_DST, &next_hop.v4_bytes())
        } else {
            request.with(NDA_DST, &next_hop.0)
        };
        self.requests.borrow_mut().tell(request)
    }

    fn drain(&mut self) {
        let Self { events, interfaces, neighbours, changed, resyncs, .. } = self;
        for read in 0..DISCARDS_MAX {
            if read >= READS_MAX && !changed.all {
                break;
            }
            match events.read() {
                // The loss is told first, then come messages from before it: reading anew has to wait for their end,
                // or they would undo it. The kernel queues no others until then, so that the end comes.
                Ok(Read::Messages(_)) if changed.all => {}
                Ok(Read::Messages(messages)) => {
                    messages.for_each(|message| note(&message, interfaces, neighbours, changed));
                }
                Ok(Read::Lost) => {
                    changed.all = true;
                    *resyncs += 1;
                }
                Ok(Read::Empty) => break,
                Err(error) => {
                    warn!(%error, "can't read what the kernel tells of the host; reading everything anew");
                    changed.all = true;
                    break;
                }
            }
        }
    }

    /// The next view, without its epoch: unchanged parts are those of the view before.
    fn update(&mut self) -> io::Result<HostView> {
        let mut view = (*self.view).clone();
        if self.changed.all {
            self.interfaces = dump_interfaces(&mut self.dumps)?;
            self.neighbours = dump_neighbours(&mut self.dumps)?;
            let rest = true;
            self.changed =
                Changed { all: false, interfaces: rest, neighbours: rest, addresses: rest, routing: rest };
        }
        if self.changed.interfaces {
            replace(&mut view.interfaces, self.interfaces.values().cloned().collect());
        }
        if self.changed.neighbours {
            let all = self.neighbours.iter().map(|(key, record)| (*key, record.neighbour)).collect();
            replace(&mut view.neighbours, all);
        }
        if self.changed.interfaces || self.changed.addresses {
            wait_for_the_kernel(&mut self.dumps)?;
        }
        if self.changed.addresses {
            replace(&mut view.addresses, dump_addresses(&mut self.dumps)?);
        }
        if self.changed.routing {
            replace(&mut view.routing, dump_routing(&mut self.dumps)?);
        }
        self.changed = Changed::default();
        Ok(view)
    }
}

/// Puts the new part in place of the old one if it differs.
fn replace<T: PartialEq>(part: &mut Arc<T>, new: T) {
    if **part != new {
        *part = Arc::new(new);
    }
}

/// Applies one message.
fn note(
    message: &Message<'_>,
    interfaces: &mut BTreeMap<u32, Interface>,
    neighbours: &mut BTreeMap<(u32, IpAddr), NeighbourRecord>,
    changed: &mut Changed,
) {
    match message.kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let Some(interface) = parse::interface(message) else { return };
            let old = if message.kind == RTM_DELLINK {
                interfaces.remove(&interface.index).is_some()
            } else {
                let index = interface.index;
                interfaces.insert(index, interface.clone()).as_ref() != Some(&interface)
            };
            if old {
                changed.interfaces = true;
                changed.addresses = true;
                changed.routing = true;
            }
        }
        RTM_NEWADDR | RTM_DELADDR => {
            changed.addresses = true;
            changed.routing = true;
        }
        RTM_NEWROUTE | RTM_DELROUTE => changed.routing |= parse::concerns_us(message),
        RTM_NEWRULE | RTM_DELRULE => changed.routing = true,
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            let Some((key, record)) = parse::neighbour(message) else { return };
            if message.kind == RTM_DELNEIGH {
                neighbours.remove(&key);
            } else {
                neighbours.insert(key, record);
            }
            changed.neighbours = true;
        }
        _ => {}
    }
}

/// Waits until the kernel is through with the change that it told of: it tells that an interface goes down or an address
/// goes first and removes their IPv4 routes then, without a word, and since Linux 6.9 reading routes waits for nobody.
/// A request about one interface takes the lock (RTNL) that the change holds to its end.
fn wait_for_the_kernel(dumps: &mut Channel) -> io::Result<()> {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    dumps.dump(Request::new(RTM_GETLINK, ACK, &header), |_| ()).map(drop)
}

fn dump_interfaces(dumps: &mut Channel) -> io::Result<BTreeMap<u32, Interface>> {
    let request = || {
        let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
        Request::new(RTM_GETLINK, DUMP, &[0; IFINFOMSG]).with(IFLA_EXT_MASK, &mask)
    };
    let all = collect(dumps, request, parse::interface)?;
    Ok(all.into_iter().map(|interface| (interface.index, interface)).collect())
}

fn dump_neighbours(dumps: &mut Channel) -> io::Result<BTreeMap<(u32, IpAddr), NeighbourRecord>> {
    let mut all = BTreeMap::new();
    for family in [AF_INET, AF_INET6] {
        all.extend(collect(dumps, || about::<NDMSG>(RTM_GETNEIGH, family), parse::neighbour)?);
    }
    Ok(all)
}

fn dump_addresses(dumps: &mut Channel) -> io::Result<Addresses> {
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        all.extend(collect(
            dumps,
            || about::<IFADDRMSG>(RTM_GETADDR, family),
            |m| parse::address(m, family),
        )?);
    }
    // Labels don't announce their changes: they count from the next change of an address on.
    let labels = collect(dumps, || about::<IFADDRLBLMSG>(RTM_GETADDRLABEL, AF_INET6), parse::label);
    Ok(Addresses::new(all, labels.unwrap_or_default()))
}

fn dump_routing(dumps: &mut Channel) -> io::Result<Routing> {
    let mut family = |family| {
        let rules = collect(dumps, || about::<FIB_RULE_HDR>(RTM_GETRULE, family), |m| parse::rule(m, family));
        let rules = match rules {
            // A kernel without policy routing.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Family::default_rules(),
            rules => rules?,
        };
        let routes = collect(dumps, || about::<RTMSG>(RTM_GETROUTE, family), |m| parse::route(m, family))?;
        io::Result::Ok(Family::new(rules, routes))
    };
    Ok(Routing::new(family(AF_INET)?, family(AF_INET6)?))
}

/// A dump request whose structure of `N` bytes starts with the address family.
fn about<const N: usize>(kind: u16, family: u8) -> Request {
    let mut header = [0; N];
    header[0] = family;
    Request::new(kind, DUMP, &header)
}

/// Everything of one kind, in the kernel's order.
fn collect<T>(
    dumps: &mut Channel,
    request: impl Fn() -> Request,
    parse: impl Fn(&Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut all = Vec::new();
    for _ in 0..DUMPS_MAX {
        all.clear();
        if dumps.dump(request(), |message| all.extend(parse(message)))? {
            break;
        }
    }
    Ok(all)
}

/// Makes the kernel resolve a neighbour without privilege: an empty datagram to its discard port (RFC 863).
fn send_nothing(ifindex: u32, next_hop: IpAddr) -> io::Result<()> {
    const DISCARD: u16 = 9;
    let (from, to): (SocketAddr, SocketAddr) = if next_hop.is_v4() {
        let to = SocketAddrV4::new(next_hop.v4_bytes().into(), DISCARD);
        ((Ipv4Addr::UNSPECIFIED, 0).into(), to.into())
    } else {
        let to = SocketAddrV6::new(next_hop.0.into(), DISCARD, 0, ifindex);
        ((Ipv6Addr::UNSPECIFIED, 0).into(), to.into())
    };
    UdpSocket::bind(from)?.send_to(&[], to).map(drop)
}
