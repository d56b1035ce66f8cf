//! What happens to the links below ports: down, gone and back, another MTU, other neighbours.
//!
//! A flow whose link is away waits as behind a cut cable, and goes on or times out by TCP's own rules.

use std::sync::Arc;

use utcp_netmap_io::Port;
use utcp_proto::FourTuple;
use utcp_proto::wire::IpAddr;

use super::device::{BARRED, DevicePort, UNRESOLVED, Unknown};
use super::flow::{Flow, Path};
use super::segments::Payload;
use super::{Shard, ToControl};
use crate::host::{HostView, Kind, is_link_local_v6};

/// How often a part of the flows has its neighbours touched, and how many flows are looked at then.
const TOUCH_NS: u64 = 5_000_000_000;
const TOUCHED_FLOWS_MAX: u32 = 512;
/// How often a neighbour is touched because his frames come from another link address.
const DOUBT_NS: u64 = 1_000_000_000;

impl Shard {
    /// What is wrong with the link below a port, in a word for `utcp ss`.
    pub(super) fn link_trouble(&self, port: u32) -> Option<&'static str> {
        let device = self.ports.get(port as usize)?;
        if device.gone {
            return Some("gone");
        }
        let interface = self.host.interface(device.link.interface?);
        match interface {
            None => Some("gone"),
            Some(interface) if !interface.up => Some("down"),
            Some(interface) if !interface.running => Some("no-carrier"),
            Some(_) => None,
        }
    }

    /// The host changed: flows over a device may have another next hop, or have one at last; links may carry more or
    /// less, or be gone.
    pub(super) fn on_host(&mut self, host: Arc<HostView>) {
        self.host = host;
        for index in 0..self.ports.len() {
            self.look_at_link(index as u32);
        }
        self.find_next_hops();
    }

    /// The interface below a port may have gone, or have another MTU or link address.
    fn look_at_link(&mut self, index: u32) {
        let Some(device) = self.ports.get_mut(index as usize) else { return };
        let Some(ifindex) = device.link.interface.filter(|_| !device.gone) else { return };
        let Some(interface) = self.host.interface(ifindex) else {
            device.gone = true;
            return;
        };
        let unplugged = !interface.up && (device.unplugged || device.port.set_up(false));
        if unplugged != device.unplugged {
            device.unplugged = unplugged;
            if !unplugged {
                device.port.set_up(true);
            }
            watch(&self.epoll, &*device.port, !unplugged);
        }
        let bridge = interface.master.and_then(|master| self.host.interface(master));
        let link = &mut device.link;
        if link.ifindex.is_some() {
            if link.mac != interface.mac {
                link.mac = interface.mac;
                device.port.set_mac(interface.mac);
            }
            link.bridge_mac = bridge.filter(|bridge| bridge.kind == Kind::Bridge).map(|bridge| bridge.mac);
        }
        let mtu = interface.mtu.min(link.mtu_max);
        let changed = mtu != link.mtu;
        link.mtu = mtu;
        if let Some(copy) = self.links.get_mut(index as usize) {
            *copy = *link;
        }
        if changed {
            self.fit_segments(index, mtu);
        }
    }

    /// Segments of this port's flows that are longer than its new MTU would not leave the host; those that the old one kept short may be longer.
    fn fit_segments(&mut self, port: u32, mtu: u32) {
        let now = self.now;
        let over = |flow: &Flow| matches!(flow.path, Path::Device { port: of, .. } if of == port);
        let flows: Vec<u32> = self.flows.iter().filter(|(_, flow)| over(flow)).map(|(i, _)| i).collect();
        for index in flows {
            let Some(flow) = self.flows.get_mut(index) else { continue };
            let actions = flow.tcb.on_link_mtu(now, mtu);
            self.act(index, &actions, Payload::None);
            self.refile(index);
        }
    }

    /// A device that was away is back: its new port takes the place of the old one, and flows go on. Or it is one more device.
    pub(super) fn place_port(&mut self, place: usize, mut port: DevicePort) {
        if let Some(old) = self.ports.get(place).filter(|old| !old.buried && !old.unplugged) {
            watch(&self.epoll, &*old.port, false);
        }
        watch(&self.epoll, &*port.port, true);
        if let Some((capture, wanted)) = &self.traced
            && crate::control::is_of(&port.port.caps().name, wanted)
        {
            port.tracer = Some(capture.tracer(&mut *port.port));
        }
        let (link, own) = (port.link, port.own_addresses());
        match (self.ports.get_mut(place), self.links.get_mut(place), self.own.get_mut(place)) {
            (Some(old), Some(old_link), Some(old_own)) => (*old, *old_link, *old_own) = (port, link, own),
            _ => {
                self.ports.push(port);
                self.links.push(link);
                self.own.push(own);
            }
        }
        self.look_at_link(place as u32);
        self.find_next_hops();
    }

    /// The interface that a link-local address of a flow means; 0 for other addresses.
    pub(super) fn scope_of(&self, addr: IpAddr, path: Path) -> u32 {
        let Path::Device { port, .. } = path else { return 0 };
        let link = self.links.get(port as usize).filter(|_| is_link_local_v6(addr));
        link.and_then(|link| link.ifindex).unwrap_or(0)
    }

    /// Lets the kernel know whom flows send to, now and then: it does not see them, and would forget those neighbours
    /// or take long to notice that one has moved.
    pub(super) fn touch_neighbours(&mut self) {
        let now = self.now.as_nanos();
        let (due, from) = self.touch;
        if now < due {
            return;
        }
        let until = from.saturating_add(TOUCHED_FLOWS_MAX);
        self.touch = (now + TOUCH_NS, if until < self.flows.capacity_used() as u32 { until } else { 0 });
        let mut touched: Vec<(u32, IpAddr)> = Vec::new();
        for index in from..until.min(self.flows.capacity_used() as u32) {
            let Some(flow) = self.flows.get(index) else { continue };
            let (to, local, path) = (flow.tuple.remote.addr, flow.tuple.local.addr, flow.path);
            let Path::Device { port, .. } = path else { continue };
            let Some(own) = self.links.get(port as usize).and_then(|link| link.ifindex) else { continue };
            let scope = self.scope_of(to, path);
            let route = self.host.route_by(to, Some(local), (scope != 0).then_some(scope));
            let Some(route) = route.filter(|route| route.ifindex == own) else { continue };
            if !touched.contains(&(own, route.next_hop)) {
                touched.push((own, route.next_hop));
            }
        }
        for (ifindex, next_hop) in touched {
            self.outbox.send(ToControl::Touch { ifindex, next_hop });
        }
    }

    /// `new`, but by the same queue as before if that is one of the same interface.
    fn stay_on_queue(&self, new: Path, old: Path) -> Path {
        let (Path::Device { port: to, next_hop }, Path::Device { port: from, .. }) = (new, old) else {
            return new;
        };
        let interface = |port: u32| self.links.get(port as usize).and_then(|link| link.interface);
        let same = interface(to).is_some() && interface(to) == interface(from);
        Path::Device { port: if same { from } else { to }, next_hop }
    }

    /// Whether the host's routes or rules bar the way to the other end.
    pub(super) fn is_barred(&self, tuple: &FourTuple, path: Path) -> bool {
        let (to, from) = (tuple.remote.addr, tuple.local.addr);
        let scope = self.scope_of(to, path);
        // A station has routes of its own.
        self.host.bars(to, from, (scope != 0).then_some(scope)) && !self.is_own(from)
    }

    /// Flows over a device get the next hops of now.
    pub(super) fn find_next_hops(&mut self) {
        let over_devices: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, flow)| matches!(flow.path, Path::Device { .. }))
            .map(|(index, _)| index)
            .collect();
        for index in over_devices {
            self.find_next_hop(index);
        }
    }

    /// Connections that came by a listener go, from their first segment on, where the host's routes lead.
    pub(super) fn find_ways_back(&mut self) {
        while let Some(index) = self.came_in.pop() {
            self.find_next_hop(index);
        }
    }

    fn find_next_hop(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let (tuple, old) = (flow.tuple, flow.path);
        let Some(new) = self.way_of_now(&tuple, old, Unknown::Ask).filter(|new| *new != old) else { return };
        let barred = matches!(new, Path::Device { next_hop: BARRED, .. });
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.path = new;
        if barred {
            return;
        }
        if let (false, Path::Device { port, .. }) = (same_port(new, old), new)
            && let Some(link) = self.links.get(port as usize)
        {
            // Segments for the link that it leaves may be too long for the one that it comes to.
            let actions = flow.tcb.on_link_mtu(now, link.mtu);
            self.act(index, &actions, Payload::None);
        }
        self.list_transmit(index);
    }

    /// Where routes and neighbours lead now what went, or came, by `old`; `None`: they don't say, or nobody knows the link
    /// address yet.
    fn way_of_now(&mut self, tuple: &FourTuple, old: Path, unknown: Unknown) -> Option<Path> {
        let Path::Device { port, .. } = old else { return None };
        let (to, from) = (tuple.remote.addr, tuple.local.addr);
        if self.is_barred(tuple, old) {
            return Some(Path::Device { port, next_hop: BARRED });
        }
        let scope = self.scope_of(to, old);
        let (new, _) = self.device_path(to, from, scope, unknown)?;
        let new = self.stay_on_queue(new, old);
        // A neighbour that is being looked up anew keeps its old address until then.
        let known = !matches!(new, Path::Device { next_hop: UNRESOLVED, .. });
        // An address of a station stays on its device, whatever the host's routes say.
        (known && (same_port(new, old) || !self.is_own(from))).then_some(new)
    }

    /// Where an answer goes to what `came`: by routes and neighbours, as from the kernel, and not simply back. A router that shares
    /// its neighbour's link address with a successor (VRRP, RFC 9568 §8.1.2) may forward from one of its own, which goes down with it; another
    /// may be the way that the administrator wants; and who writes frames in a neighbour's name gets none of what that one is sent.
    ///
    /// A neighbour that nobody knows is answered where the frame came from, and not asked for: a flood of made-up sources would
    /// be one of questions. Who completes a handshake is (`find_ways_back`).
    pub(super) fn way_back(&mut self, tuple: &FourTuple, came: Path) -> Path {
        let way = self.way_of_now(tuple, came, Unknown::Leave).unwrap_or(came);
        if way != came {
            self.doubt_neighbour(tuple, way);
        }
        way
    }

    /// Somebody's frames come from elsewhere than his are sent to. He may have moved; whoever knows neighbours looks, as
    /// the kernel does when it has sent something.
    fn doubt_neighbour(&mut self, tuple: &FourTuple, path: Path) {
        let (to, now) = (tuple.remote.addr, self.now);
        if self.doubt_at_station(to, path) || now.as_nanos() < self.doubt_due {
            return;
        }
        let scope = self.scope_of(to, path);
        let Some(route) = self.host.route_by(to, Some(tuple.local.addr), (scope != 0).then_some(scope))
        else {
            return;
        };
        self.doubt_due = now.as_nanos() + DOUBT_NS;
        self.outbox.send(ToControl::Touch { ifindex: route.ifindex, next_hop: route.next_hop });
    }
}

/// Sleeps on a port from now on, or no more.
fn watch(epoll: &crate::sys::Epoll, port: &dyn Port, on: bool) {
    for poll in port.poll_fds().iter() {
        if !on {
            epoll.remove_port(poll.fd);
        } else if let Err(error) = epoll.add_port(poll.fd, i32::from(poll.events)) {
            tracing::error!(%error, "a port can't be slept on: its frames will be late");
        }
    }
}

fn same_port(a: Path, b: Path) -> bool {
    matches!((a, b), (Path::Device { port: a, .. }, Path::Device { port: b, .. }) if a == b)
}
