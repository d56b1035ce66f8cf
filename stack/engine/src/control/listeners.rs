//! Listening sockets: the kernel's socket really listens, and the shards serve the same address.
//!
//! The kernel stays the judge of who may listen where, and of when a listener is gone: the engine keeps no
//! reference to the kernel's socket, it asks for its inode (sock_diag) when a descriptor was closed or a
//! process ended. What of a port stays steered then: [`super::lingering`]. What the kernel has when a port becomes ours: [`super::left`].

use std::collections::HashSet;
use std::net::{IpAddr as StdAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use utcp_abi::message::{Message, Reply};
use utcp_abi::socket::{Addr, status};
use utcp_netmap_io::{PortError, Proto, Steering, Tuple};
use utcp_proto::wire::IpAddr;

use super::devices::steered_addresses;
use super::left::Left;
use super::{Control, diag};
use crate::host::HostView;
use crate::shard::{DEVICE_PORTS, ListenRequest, ToShard};
use crate::sys::{self, Bound};

/// A listener of a client.
#[derive(Debug, Clone)]
pub(super) struct ListenerEntry {
    pub sock: u32,
    pub slot: u32,
    pub addr: Addr,
    pub inode: u64,
    pub one_family: bool,
    /// It shares its address with others.
    pub reuseport: bool,
    /// New connections come by the kernel: see [`super::groups`], and [`Control::leave_to_kernel`].
    pub kernels: bool,
    /// What is registered with the devices' steering: (index of the device, tuple).
    pub steered: Vec<(usize, Tuple)>,
    /// Another stack on one of the devices has its port.
    pub refused: bool,
    /// See [`ListenRequest::holders`].
    pub holders: Arc<AtomicU32>,
}

impl super::ClientEntry {
    /// Whether socket slot `sock` was a listener until a moment ago, which another process of the program may have ended, and is the shards'
    /// still.
    fn has_left(&self, sock: u32) -> bool {
        self.leaving.iter().any(|(left, by)| *left == sock && by.load(Ordering::Acquire) != 0)
            && !self.listeners.iter().any(|l| l.sock == sock)
    }
}

impl Control {
    pub(super) fn on_listen(&mut self, client: u32, message: &Message, fd: &OwnedFd) -> Reply {
        let refuse = |error| Reply { error, ..Reply::default() };
        let Ok(inode) = sys::inode(fd.as_fd()) else { return refuse(libc::EBADF) };
        let sock = message.a as u32;
        // The kernel's word, not the program's: where it is bound, and that it really listens there.
        let Bound { addr, one_family, reuseport } = match sys::bound(fd.as_fd()) {
            Ok(bound) => bound,
            Err(error) => return refuse(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let Some(entry) = self.clients.get_mut(&client) else { return refuse(libc::EPROTO) };
        let region = entry.shared.region();
        let Some(socket) = region.socket(sock) else { return refuse(libc::EINVAL) };
        match diag::listening(addr.port, inode) {
            Ok(true) => {}
            Ok(false) => return refuse(libc::EINVAL),
            Err(error) => return refuse(error.raw_os_error().unwrap_or(libc::EIO)),
        }
        if entry.has_left(sock) || u64::from(socket.generation.load(Ordering::Acquire)) != message.c {
            return refuse(libc::ESTALE);
        }
        // It came back to its own program (SCM_RIGHTS): one kernel socket is one listener.
        if let Some(known) = entry.listeners.iter().find(|l| l.inode == inode && l.sock != sock) {
            return Reply { a: u64::from(known.slot), b: u64::from(known.sock) + 1, ..Reply::default() };
        }
        let kernels = reuseport && self.is_chosen_for(addr, inode);
        let Some(entry) = self.clients.get_mut(&client) else { return refuse(libc::EPROTO) };
        let (slot, holders) = match entry.listeners.iter().find(|l| l.sock == sock) {
            Some(known) => (known.slot, known.holders.clone()),
            None => {
                let Some(slot) = entry.free_listener_slots.pop() else { return refuse(libc::ENOBUFS) };
                // Whoever ended the last one of this place may not have known every set that it was in.
                let members = region.listener(slot).into_iter().flat_map(|listener| &listener.members);
                members.for_each(|member| member.store(0, Ordering::Relaxed));
                let (steered, refused) = (Vec::new(), false);
                let holders = Arc::new(AtomicU32::new(self.inboxes.len() as u32));
                entry.listeners.push(ListenerEntry {
                    sock,
                    slot,
                    addr,
                    inode,
                    one_family,
                    reuseport,
                    kernels,
                    steered,
                    refused,
                    holders: holders.clone(),
                });
                (slot, holders)
            }
        };
        socket.listener.store(slot, Ordering::Relaxed);
        socket.local.store(addr);
        socket.status.fetch_or(status::LISTENING, Ordering::Release);
        let request = ListenRequest {
            client,
            sock,
            slot,
            addr,
            backlog: (message.b.min(4096) as u32).min(somaxconn()),
            one_family,
            reuseport,
            kernels,
            inode,
            holders,
        };
        self.to_all(|| ToShard::Listen(request.clone()));
        self.on_heir(inode);
        self.publish_port(addr.port);
        self.steer_all();
        let refused =
            |entry: &super::ClientEntry| entry.listeners.iter().any(|l| l.sock == sock && l.refused);
        if self.clients.get(&client).is_some_and(refused) {
            self.drop_listener(client, sock);
            return refuse(libc::EADDRINUSE);
        }
        Reply { a: u64::from(slot), ..Reply::default() }
    }

    /// Tells programs what listens on `port`.
    pub(super) fn publish_port(&self, port: u16) {
        let all = || self.clients.values().flat_map(|c| &c.listeners);
        let here = || all().filter(|l| l.addr.port == port && !l.kernels);
        let serves = |addr: IpAddr| self.config.local && here().any(|l| covers(l, addr));
        let v4 = serves(IpAddr::v4([127, 0, 0, 1]));
        let v6 = serves(IpAddr::v6(Ipv6Addr::LOCALHOST.octets()));
        self.life.set_listening(port, here().next().is_some(), v4, v6);
    }

    /// Registers every listener with every device, once per local address that it covers; addresses that are gone are
    /// given back.
    pub(super) fn steer_all(&mut self) {
        let host = self.host.clone();
        let addresses = steered_addresses(&self.devices, &host);
        for (index, (device, addresses)) in self.devices.iter_mut().zip(addresses).enumerate() {
            let Some(steering) = device.steering.clone() else { continue };
            if let Err(error) = device.steer_clients(&addresses) {
                tracing::error!(device = device.text, %error, "client ports can't be steered to us");
            }
            let own = self.clients.values().flat_map(|client| &client.listeners).map(|l| &l.steered);
            let own = own.flatten().chain(self.lingering.tuples());
            let mut own: HashSet<Tuple> =
                own.filter(|(of, _)| *of == index).map(|(_, tuple)| *tuple).collect();
            for listener in self.clients.values_mut().flat_map(|client| &mut client.listeners) {
                let kernels = (&mut self.left, &*host);
                steer(index, &*steering, &addresses, &mut own, listener, kernels);
            }
        }
        self.tell_sources();
    }

    /// A process closed its descriptor of a listener, or (without `sock`) ended. What the kernel has still, other programs
    /// may have, too.
    pub(super) fn on_listen_check(&mut self, client: u32, sock: Option<u32>) {
        self.check_listeners(client, sock);
        let Some(entry) = self.clients.get(&client) else { return };
        let others = self.clients.iter().filter(|(number, _)| **number != client);
        let others: HashSet<u64> = others.flat_map(|(_, other)| &other.listeners).map(|l| l.inode).collect();
        let own = entry.listeners.iter().filter(|l| sock.is_none_or(|sock| l.sock == sock));
        for listener in own.filter(|l| others.contains(&l.inode)) {
            self.to_all(|| ToShard::Yield { client, sock: listener.sock });
        }
    }

    /// Looks whether the kernel still has a client's listeners (or one of them).
    fn check_listeners(&mut self, client: u32, sock: Option<u32>) {
        let Some(entry) = self.clients.get(&client) else { return };
        let gone: Vec<u32> = entry
            .listeners
            .iter()
            .filter(|l| sock.is_none_or(|sock| l.sock == sock))
            .filter(|l| matches!(diag::listening(l.addr.port, l.inode), Ok(false)))
            .map(|l| l.sock)
            .collect();
        for sock in gone {
            self.drop_listener(client, sock);
        }
    }

    pub(super) fn drop_all_listeners(&mut self, client: u32) {
        let socks: Vec<u32> =
            self.clients.get(&client).map_or(Vec::new(), |e| e.listeners.iter().map(|l| l.sock).collect());
        for sock in socks {
            self.drop_listener(client, sock);
        }
    }

    pub(super) fn drop_listener(&mut self, client: u32, sock: u32) {
        let Some(entry) = self.clients.get_mut(&client) else { return };
        let Some(at) = entry.listeners.iter().position(|l| l.sock == sock) else { return };
        let listener = entry.listeners.swap_remove(at);
        entry.free_listener_slots.push(listener.slot);
        entry.leaving.retain(|(_, by)| by.load(Ordering::Acquire) != 0);
        entry.leaving.push((sock, listener.holders));
        let port = listener.addr.port;
        self.publish_port(port);
        self.to_all(|| ToShard::Unlisten { client, sock });
        self.lingering.keep(listener.steered);
    }
}

/// Makes what is steered on one device for one listener what its `addresses` ask for. `own`: what listeners of this
/// engine have there; they share it. `kernels`: what the kernel has there stays its own.
fn steer(
    device: usize,
    steering: &dyn Steering,
    addresses: &[IpAddr],
    own: &mut HashSet<Tuple>,
    listener: &mut ListenerEntry,
    (left, host): (&mut Left, &HostView),
) {
    let wanted: Vec<Tuple> = addresses
        .iter()
        .filter(|addr| covers(listener, **addr))
        .map(|addr| Tuple::new(to_std(*addr), listener.addr.port, Proto::TCP))
        .collect();
    listener.steered.retain(|(of, tuple)| {
        let stays = *of != device || wanted.contains(tuple);
        if !stays && let Err(error) = steering.unregister(*tuple) {
            tracing::warn!(%tuple, %error, "a port could not be given back to the kernel");
        }
        stays
    });
    let is_new = |tuple: &&Tuple| !own.contains(tuple) && !listener.steered.contains(&(device, **tuple));
    let new: Vec<Tuple> = wanted.iter().filter(is_new).copied().collect();
    left.leave(device, steering, &new, host);
    for tuple in wanted {
        if listener.steered.contains(&(device, tuple)) {
            continue;
        }
        match steering.register(tuple) {
            Ok(()) => {
                own.insert(tuple);
                listener.steered.push((device, tuple));
            }
            Err(PortError::InUse { .. }) if own.contains(&tuple) => listener.steered.push((device, tuple)),
            // Client ports: what comes there for a listener comes to us, or to the kernel's half of it.
            Err(PortError::InUse { .. }) if DEVICE_PORTS.contains(&u32::from(tuple.port)) => {}
            Err(error @ PortError::InUse { .. }) => {
                tracing::warn!(%tuple, %error, "frames can't be steered to us");
                listener.refused = true;
            }
            Err(error) => tracing::error!(%tuple, %error, "frames can't be steered to us"),
        }
    }
    // Those that began meanwhile.
    left.leave(device, steering, &new, host);
}

fn covers(listener: &ListenerEntry, addr: IpAddr) -> bool {
    let bound = IpAddr(listener.addr.ip);
    if listener.kernels {
        return false;
    }
    if !bound.is_unspecified() {
        return bound == addr;
    }
    bound.is_v4() == addr.is_v4() || (addr.is_v4() && !listener.one_family)
}

/// An address for netmap-io.
pub(super) fn to_std(addr: IpAddr) -> StdAddr {
    let v6 = Ipv6Addr::from(addr.0);
    v6.to_ipv4_mapped().map_or(StdAddr::V6(v6), StdAddr::V4)
}

/// The kernel's bound of every backlog.
fn somaxconn() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(4096)
}
