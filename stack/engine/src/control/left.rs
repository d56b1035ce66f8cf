//! Connections that the kernel's half of a listener has when the listener's port becomes ours: those of a server that was there before, of the
//! same one while no engine ran, or of one that began while we were being told. They stay the kernel's, flow by flow.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use utcp_netmap_io::{Flow, PeerVerdict, Proto, Steering, Tuple};

use utcp_proto::wire::IpAddr;

use super::{Control, diag};
use crate::host::HostView;

/// How often is looked which of them have ended. (A new connection of the same four-tuple is the kernel's until then.)
const CHECK: Duration = Duration::from_secs(30);
/// So many at most.
const FLOWS_MAX: usize = 1 << 16;

/// Flows that are left to the kernel, by the index of the device.
#[derive(Debug, Default)]
pub(super) struct Left {
    flows: HashSet<(usize, Flow)>,
    next_check: Option<Instant>,
}

impl Left {
    /// How long until the next look.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        self.next_check.map(|at| at.saturating_duration_since(now))
    }

    /// A device steers nothing any more.
    pub(super) fn forget(&mut self, device: usize) {
        self.flows.retain(|(of, _)| *of != device);
    }

    /// Leaves the kernel what it has at `tuples`, which have one port.
    pub(super) fn leave(
        &mut self,
        device: usize,
        steering: &dyn Steering,
        tuples: &[Tuple],
        host: &HostView,
    ) {
        let Some(first) = tuples.first() else { return };
        let flows = match diag::connections(first.port) {
            Ok(flows) => flows,
            Err(error) => {
                return tracing::debug!(port = first.port, %error, "the kernel does not tell its connections");
            }
        };
        for (local, peer, peer_port) in flows {
            let flow = Flow { local: Tuple::new(local, first.port, Proto::TCP), peer_addr: peer, peer_port };
            // Programs of this host don't come by a device.
            if !tuples.contains(&flow.local)
                || host.is_local(IpAddr(peer.octets()))
                || self.flows.contains(&(device, flow))
            {
                continue;
            }
            if self.flows.len() >= FLOWS_MAX {
                return tracing::warn!(
                    port = first.port,
                    "the kernel has more connections than can be left to it"
                );
            }
            match steering.register_flow(flow, PeerVerdict::LeaveToKernel) {
                Ok(()) => _ = self.flows.insert((device, flow)),
                Err(error) => {
                    tracing::warn!(%flow, %error, "a connection of the kernel's can't be left to it");
                }
            }
        }
        if !self.flows.is_empty() && self.next_check.is_none() {
            self.next_check = Some(Instant::now() + CHECK);
        }
    }
}

impl Control {
    /// Forgets what of the kernel's connections has ended.
    pub(super) fn check_left(&mut self) {
        if self.left.next_check.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let mut alive: HashMap<u16, HashSet<(Ipv6Addr, Ipv6Addr, u16)>> = HashMap::new();
        for (device, flow) in std::mem::take(&mut self.left.flows) {
            let port = flow.local.port;
            let of_port = alive
                .entry(port)
                .or_insert_with(|| diag::connections(port).unwrap_or_default().into_iter().collect());
            if of_port.contains(&(flow.local.addr, flow.peer_addr, flow.peer_port)) {
                self.left.flows.insert((device, flow));
            } else if let Some(Err(error)) =
                self.steering_of(device).map(|steering| steering.unregister_flow(flow))
            {
                tracing::warn!(%flow, %error, "a connection of the kernel's can't be forgotten");
            }
        }
        self.left.next_check = (!self.left.flows.is_empty()).then(|| Instant::now() + CHECK);
    }
}
