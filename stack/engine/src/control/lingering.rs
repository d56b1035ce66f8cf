//! What stays steered to us when its listener serves no more, as long as connections live.
//!
//! - Nobody listens any more: the tuple stays. A segment of no connection gets a reset from us, as it would from the kernel.
//! - The kernel listens: the flow of each connection stays, and all else at the tuple is the kernel's from now on.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::sync::Arc;

use utcp_netmap_io::{Flow, PeerVerdict, Proto, Steering, Tuple};
use utcp_proto::{Endpoint, FourTuple};

use super::Control;
use super::listeners::{ListenerEntry, to_std};
use crate::shard::{SocketLine, ToShard};

/// Steered without a listener: (index of the device, what).
#[derive(Debug, Default)]
pub(super) struct Lingering {
    tuples: Vec<(usize, Tuple)>,
    flows: Vec<(usize, Flow)>,
}

impl Lingering {
    pub(super) fn is_empty(&self) -> bool {
        self.tuples.is_empty() && self.flows.is_empty()
    }

    /// A listener is gone whose tuples these are.
    pub(super) fn keep(&mut self, tuples: Vec<(usize, Tuple)>) {
        self.tuples.extend(tuples);
    }

    pub(super) fn tuples(&self) -> impl Iterator<Item = &(usize, Tuple)> {
        self.tuples.iter()
    }

    /// A device steers nothing any more.
    pub(super) fn forget(&mut self, device: usize) {
        self.tuples.retain(|(of, _)| *of != device);
        self.flows.retain(|(of, _)| *of != device);
    }
}

impl Control {
    /// New connections to some listeners come by the kernel from now on. Those that they have go on here. Returns the listeners' programs
    /// and ports.
    pub(super) fn leave_to_kernel(&mut self, which: impl Fn(u32, &ListenerEntry) -> bool) -> Vec<(u32, u16)> {
        let (mut places, mut told, mut steered) = (Vec::new(), Vec::new(), Vec::new());
        for (number, client) in &mut self.clients {
            for listener in client.listeners.iter_mut().filter(|l| !l.kernels && which(*number, l)) {
                listener.kernels = true;
                steered.append(&mut listener.steered);
                places.push((*number, listener.sock));
                told.push((client.shared.pid, listener.addr.port));
            }
        }
        for (client, sock) in places {
            self.to_all(|| ToShard::LeaveToKernel { client, sock });
        }
        for (_, port) in &told {
            self.publish_port(*port);
        }
        if !steered.is_empty() {
            self.hand_back(steered);
        }
        told
    }

    /// Gives tuples back to the kernel, but for their connections.
    fn hand_back(&mut self, steered: Vec<(usize, Tuple)>) {
        // A shard answers behind what it was told before, so none has a connection that is not among these.
        let flows = self.flows_alive();
        let mut seen = HashSet::new();
        for (device, tuple) in steered {
            let Some(steering) = self.steering_of(device).filter(|_| !self.is_listened(device, tuple)) else {
                continue;
            };
            if !seen.insert((device, tuple)) {
                continue;
            }
            let kept: HashSet<Flow> =
                self.lingering.flows.iter().filter(|(of, _)| *of == device).map(|(_, flow)| *flow).collect();
            let mut entered = Vec::new();
            let all = flows.iter().filter(|flow| flow.local == tuple && !kept.contains(flow)).try_for_each(
                |flow| {
                    steering.register_flow(*flow, PeerVerdict::Take)?;
                    entered.push((device, *flow));
                    Ok(())
                },
            );
            match all.and_then(|()| steering.unregister(tuple)) {
                Ok(()) => self.lingering.flows.extend(entered),
                Err(error) => {
                    tracing::warn!(%tuple, %error, "clients of a device are refused until the last connection there is gone");
                    entered.iter().for_each(|(_, flow)| drop(steering.unregister_flow(*flow)));
                    self.lingering.tuples.push((device, tuple));
                }
            }
        }
    }

    /// Whether a listener of ours has this tuple.
    fn is_listened(&self, device: usize, tuple: Tuple) -> bool {
        self.clients.values().flat_map(|c| &c.listeners).any(|l| l.steered.contains(&(device, tuple)))
    }

    pub(super) fn steering_of(&self, device: usize) -> Option<Arc<dyn Steering>> {
        self.devices.get(device)?.steering.clone()
    }

    fn flows_alive(&self) -> HashSet<Flow> {
        let tuple = |line: SocketLine| Some(FourTuple { local: line.local, remote: line.remote? });
        self.socket_lines().into_iter().filter_map(tuple).map(flow_of).collect()
    }

    /// Gives back to the kernel what no connection needs any more.
    pub(super) fn check_lingering(&mut self) {
        if self.lingering.is_empty() {
            return;
        }
        let alive = self.flows_alive();
        let ports: HashSet<u16> = alive.iter().map(|flow| flow.local.port).collect();
        let Lingering { tuples, flows } = std::mem::take(&mut self.lingering);
        for (device, tuple) in tuples {
            if ports.contains(&tuple.port) {
                self.lingering.tuples.push((device, tuple));
            } else if !self.is_listened(device, tuple)
                && let Some(Err(error)) = self.steering_of(device).map(|steering| steering.unregister(tuple))
            {
                tracing::warn!(%tuple, %error, "a port could not be given back to the kernel");
            }
        }
        for (device, flow) in flows {
            if alive.contains(&flow) {
                self.lingering.flows.push((device, flow));
            } else if let Some(Err(error)) =
                self.steering_of(device).map(|steering| steering.unregister_flow(flow))
            {
                tracing::warn!(%flow, %error, "a connection could not be given back to the kernel");
            }
        }
    }
}

fn flow_of(tuple: FourTuple) -> Flow {
    let Endpoint { addr, port } = tuple.local;
    Flow {
        local: Tuple::new(to_std(addr), port, Proto::TCP),
        peer_addr: Ipv6Addr::from(tuple.remote.addr.0),
        peer_port: tuple.remote.port,
    }
}
