//! Whose a frame is, where the module hands us all of them: the registered tuples in memory of ours.
//!
//! The same answers as the XDP program's. Shards look here once for each frame, and take the lock once for a batch; the
//! control thread changes it when a program listens, or an address comes or goes.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::frame::{Arriving, Fragmented, arriving};
use crate::{Flow, PeerVerdict, PortError, Steering, Tuple};

/// Fragmented packets that are remembered.
const FRAGMENTED_MAX: usize = 64;

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Kernels,
    /// A fragment that came before the first one of its packet: both get it, and whoever gets the rest puts the packet together.
    Anybodys,
}

impl Whose {
    fn ours_if(ours: bool) -> Self {
        if ours { Self::Ours } else { Self::Kernels }
    }
}

/// A bit for each port.
type Ports = Box<[u64; 1024]>;

/// What is registered.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Few addresses, so a list in order.
    tuples: Vec<((Ipv6Addr, u8), Ports)>,
    flows: HashMap<Flow, PeerVerdict>,
}

fn bit(port: u16) -> (usize, u64) {
    (usize::from(port / 64), 1 << (port % 64))
}

impl Table {
    fn place(&self, tuple: &Tuple) -> Result<usize, usize> {
        self.tuples.binary_search_by_key(&(tuple.addr, tuple.proto.0), |(key, _)| *key)
    }

    fn has(&self, tuple: &Tuple) -> bool {
        let (word, bit) = bit(tuple.port);
        self.place(tuple).is_ok_and(|at| self.tuples[at].1[word] & bit != 0)
    }

    /// Whether frames of this flow are ours.
    pub(crate) fn takes(&self, flow: &Flow) -> bool {
        let special = if self.flows.is_empty() { None } else { self.flows.get(flow) };
        match special {
            Some(PeerVerdict::Take) => true,
            Some(PeerVerdict::LeaveToKernel) => false,
            None => self.has(&flow.local),
        }
    }

    fn add(&mut self, tuple: &Tuple) {
        let at = match self.place(tuple) {
            Ok(at) => at,
            Err(at) => {
                self.tuples.insert(at, ((tuple.addr, tuple.proto.0), Box::new([0; 1024])));
                at
            }
        };
        let (word, bit) = bit(tuple.port);
        self.tuples[at].1[word] |= bit;
    }

    fn remove(&mut self, tuple: &Tuple) {
        let Ok(at) = self.place(tuple) else { return };
        let (word, bit) = bit(tuple.port);
        let ports = &mut self.tuples[at].1;
        ports[word] &= !bit;
        if ports.iter().all(|word| *word == 0) {
            self.tuples.remove(at);
        }
    }
}

/// The steering of one device.
#[derive(Debug)]
pub(crate) struct SoftSteering {
    device: String,
    table: RwLock<Table>,
    /// Packets whose first fragment came lately, by whichever ring, and whose they are: a NIC may hash it by its ports, and the
    /// others by addresses.
    fragments: Mutex<VecDeque<(Fragmented, Whose)>>,
}

impl SoftSteering {
    pub(crate) fn new(device: String) -> Self {
        Self { device, table: RwLock::default(), fragments: Mutex::default() }
    }

    /// Whose a frame is that came.
    pub(crate) fn whose(&self, table: &Table, frame: &[u8]) -> Whose {
        let fragments = || self.fragments.lock().unwrap_or_else(PoisonError::into_inner);
        match arriving(frame) {
            Some(Arriving::Flow(flow)) => Whose::ours_if(table.takes(&flow)),
            Some(Arriving::First(flow, name)) => {
                let (whose, mut fragments) = (Whose::ours_if(table.takes(&flow)), fragments());
                // Names come again: whose it was before may not be whose it is now.
                fragments.retain(|(known, _)| *known != name);
                fragments.push_back((name, whose));
                if fragments.len() > FRAGMENTED_MAX {
                    fragments.pop_front();
                }
                whose
            }
            Some(Arriving::Rest(name)) => {
                fragments().iter().find(|(of, _)| *of == name).map_or(Whose::Anybodys, |(_, whose)| *whose)
            }
            None => Whose::Kernels,
        }
    }

    /// For a batch.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_use(&self, what: &dyn std::fmt::Display) -> PortError {
        PortError::InUse { what: what.to_string(), detail: format!("it is registered on {}", self.device) }
    }
}

impl Steering for SoftSteering {
    fn register(&self, tuple: Tuple) -> Result<(), PortError> {
        self.register_range(tuple, tuple.port..=tuple.port)
    }

    fn unregister(&self, tuple: Tuple) -> Result<(), PortError> {
        self.unregister_range(tuple, tuple.port..=tuple.port)
    }

    fn register_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        let all = |port| Tuple { port, ..first };
        self.change(|table| match ports.clone().map(all).find(|tuple| table.has(tuple)) {
            Some(taken) => Err(self.in_use(&taken)),
            None => {
                ports.map(all).for_each(|tuple| table.add(&tuple));
                Ok(())
            }
        })
    }

    fn unregister_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        self.change(|table| ports.for_each(|port| table.remove(&Tuple { port, ..first })));
        Ok(())
    }

    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        self.change(|table| match table.flows.insert(flow, verdict) {
            None => Ok(()),
            Some(old) => {
                table.flows.insert(flow, old);
                Err(self.in_use(&flow))
            }
        })
    }

    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.change(|table| table.flows.remove(&flow));
        Ok(())
    }

    fn describe(&self) -> String {
        format!("the engine's own eyes, {} passing the rest on to the kernel", self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proto;

    fn tuple(addr: [u8; 4], port: u16) -> Tuple {
        Tuple::new(addr, port, Proto::TCP)
    }

    fn flow(local: Tuple, peer_port: u16) -> Flow {
        Flow { local, peer_addr: crate::mapped([10, 0, 0, 9].into()), peer_port }
    }

    #[test]
    fn tuples_flows_and_ranges_decide() {
        let steering = SoftSteering::new("netmap:eth0".into());
        let web = tuple([10, 0, 0, 1], 80);
        let takes = |flow: Flow| steering.read().takes(&flow);
        assert!(!takes(flow(web, 5)));
        steering.register(web).unwrap();
        assert!(takes(flow(web, 5)));
        assert!(!takes(flow(Tuple { proto: Proto::UDP, ..web }, 5)));
        assert!(!takes(flow(tuple([10, 0, 0, 2], 80), 5)));
        let error = steering.register(web).unwrap_err().to_string();
        assert_eq!(error, "tcp 10.0.0.1:80 is in use: it is registered on netmap:eth0");
        steering.register_flow(flow(web, 5), PeerVerdict::LeaveToKernel).unwrap();
        assert!(steering.register_flow(flow(web, 5), PeerVerdict::Take).is_err());
        assert!(!takes(flow(web, 5)) && takes(flow(web, 6)));
        steering.unregister_flow(flow(web, 5)).unwrap();
        steering.unregister(web).unwrap();
        steering.unregister(web).unwrap();
        assert!(!takes(flow(web, 5)));
        assert!(steering.read().tuples.is_empty(), "an address without ports takes no room");
    }

    #[test]
    fn a_range_is_taken_whole_or_not_at_all() {
        let steering = SoftSteering::new("netmap:eth0".into());
        let at = |port| tuple([10, 0, 0, 1], port);
        steering.register(at(61_500)).unwrap();
        assert!(steering.register_range(at(0), 61_000..=65_535).is_err());
        assert!(!steering.read().has(&at(61_000)));
        steering.unregister(at(61_500)).unwrap();
        steering.register_range(at(0), 61_000..=65_535).unwrap();
        assert!(steering.read().has(&at(61_000)) && steering.read().has(&at(65_535)));
        assert!(!steering.read().has(&at(60_999)));
        steering.unregister_range(at(0), 61_000..=65_535).unwrap();
        assert!(!steering.read().has(&at(65_535)));
    }
}
