//! What is registered, in the maps that the steering program reads.
//!
//! A range of ports is one entry for its address, however many ports it has: client ports are thousands, and a host may have
//! hundreds of addresses. An address has one range; more of them are entered port by port. A port of it may be entered
//! as well: then it is ours, whoever listens there; while of a range nothing is ours for which the kernel has a socket.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bpf::{Map, MapType, NO_PREALLOC, Update};
use super::program::{FLOW_LEAVE, FLOW_TAKE, FlowKey, State, TUPLE_OF_RANGE, TUPLE_OURS, TupleKey};
use super::steer::refused;
use crate::{Flow, PeerVerdict, PortError, Tuple};

/// The maps, and what we know to be in them.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) tuples: Map<TupleKey, u32>,
    pub(super) flows: Map<FlowKey, u32>,
    pub(super) state: Map<u32, State>,
    book: Mutex<Book>,
}

/// What is entered.
#[derive(Debug, Default)]
struct Book {
    /// By the key of its range.
    ports: HashMap<TupleKey, Ports>,
    flows: u32,
}

/// Ports of one address and protocol.
#[derive(Debug, Default)]
struct Ports {
    single: BTreeSet<u16>,
    range: Option<(u16, u16)>,
}

impl Ports {
    /// The first port of `range` that is in the range which is there.
    fn common(&self, range: &RangeInclusive<u16>) -> Option<u16> {
        let (first, last) = self.range?;
        let from = first.max(*range.start());
        (from <= last.min(*range.end())).then_some(from)
    }
}

impl Registered {
    /// Room for so many tuples, and flows.
    pub(super) fn new(max: u32) -> io::Result<Self> {
        let registered = Self {
            tuples: Map::new(MapType::Hash, "utcp_tuples", max, NO_PREALLOC)?,
            flows: Map::new(MapType::Hash, "utcp_flows", max, NO_PREALLOC)?,
            state: Map::new(MapType::Array, "utcp_state", 1, 0)?,
            book: Mutex::default(),
        };
        registered.state.update(&0, &registered.book().state(), Update::Any)?;
        Ok(registered)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program hears of it.
    fn publish(&self, book: &Book) -> Result<(), PortError> {
        let state = self.state.update(&0, &book.state(), Update::Any);
        state.map_err(|error| refused("telling the steering program", error))
    }

    pub(super) fn add(&self, tuple: Tuple) -> Result<(), PortError> {
        self.add_single(&mut self.book(), tuple, TUPLE_OURS)
    }

    fn add_single(&self, book: &mut Book, tuple: Tuple, value: u32) -> Result<(), PortError> {
        let ports = book.ports.entry(range_key(tuple)).or_default();
        match self.tuples.update(&tuple_key(tuple), &value, Update::NoExist) {
            Ok(()) => {
                ports.single.insert(tuple.port);
                Ok(())
            }
            Err(error) => {
                book.forget_empty(tuple);
                Err(register_error(&tuple.to_string(), error))
            }
        }
    }

    pub(super) fn remove(&self, tuple: Tuple) -> Result<(), PortError> {
        self.remove_single(&mut self.book(), tuple)
    }

    fn remove_single(&self, book: &mut Book, tuple: Tuple) -> Result<(), PortError> {
        let Some(ports) = book.ports.get_mut(&range_key(tuple)) else { return Ok(()) };
        if ports.single.contains(&tuple.port) {
            self.tuples.remove(&tuple_key(tuple)).map_err(|e| refused("unregistering a tuple", e))?;
            ports.single.remove(&tuple.port);
        }
        book.forget_empty(tuple);
        Ok(())
    }

    pub(super) fn add_range(&self, any: Tuple, range: RangeInclusive<u16>) -> Result<(), PortError> {
        let mut book = self.book();
        let key = range_key(any);
        let (first, last) = (*range.start(), *range.end());
        let ports = book.ports.entry(key).or_default();
        if let Some(port) = ports.common(&range) {
            let taken = Tuple { port, ..any };
            return Err(register_error(&taken.to_string(), io::Error::from_raw_os_error(libc::EEXIST)));
        }
        if ports.range.is_some() || first >= last {
            return self.add_each(&mut book, any, range);
        }
        let [[a, b], [c, d]] = [first, last].map(u16::to_ne_bytes);
        let value = u32::from_ne_bytes([a, b, c, d]);
        let result = self.tuples.update(&key, &value, Update::NoExist);
        if result.is_ok() {
            ports.range = Some((first, last));
        }
        book.forget_empty(any);
        result.map_err(|error| register_error(&format!("{any}-{last}"), error))?;
        self.publish(&book)
    }

    /// All, or none.
    fn add_each(&self, book: &mut Book, any: Tuple, range: RangeInclusive<u16>) -> Result<(), PortError> {
        let first = *range.start();
        for port in range {
            if let Err(error) = self.add_single(book, Tuple { port, ..any }, TUPLE_OF_RANGE) {
                for done in first..port {
                    self.remove_single(book, Tuple { port: done, ..any })?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn remove_range(&self, any: Tuple, range: RangeInclusive<u16>) -> Result<(), PortError> {
        let mut book = self.book();
        let key = range_key(any);
        let Some(ports) = book.ports.get_mut(&key) else { return Ok(()) };
        if ports.range == Some((*range.start(), *range.end())) {
            self.tuples.remove(&key).map_err(|e| refused("unregistering a range", e))?;
            ports.range = None;
            book.forget_empty(any);
            return self.publish(&book);
        }
        range.into_iter().try_for_each(|port| self.remove_single(&mut book, Tuple { port, ..any }))
    }

    pub(super) fn add_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        let value = match verdict {
            PeerVerdict::Take => FLOW_TAKE,
            PeerVerdict::LeaveToKernel => FLOW_LEAVE,
        };
        let mut book = self.book();
        let result = self.flows.update(&flow_key(flow), &value, Update::NoExist);
        result.map_err(|error| register_error(&flow.to_string(), error))?;
        book.flows += 1;
        self.publish(&book)
    }

    pub(super) fn remove_flow(&self, flow: Flow) -> Result<(), PortError> {
        let mut book = self.book();
        if self.flows.remove(&flow_key(flow)).map_err(|e| refused("unregistering a flow", e))? {
            book.flows = book.flows.saturating_sub(1);
            self.publish(&book)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn flow_count(&self) -> u32 {
        self.book().flows
    }
}

impl Book {
    /// For the program.
    fn state(&self) -> State {
        let firsts = self.ports.values().filter_map(|ports| ports.range).map(|(first, _)| u32::from(first));
        State { flows: self.flows, ranges_from: firsts.min().unwrap_or(u32::MAX) }
    }

    fn forget_empty(&mut self, tuple: Tuple) {
        let key = range_key(tuple);
        if self.ports.get(&key).is_some_and(|ports| ports.range.is_none() && ports.single.is_empty()) {
            self.ports.remove(&key);
        }
    }
}

fn register_error(what: &str, error: io::Error) -> PortError {
    match error.raw_os_error() {
        Some(libc::EEXIST) => PortError::InUse {
            what: what.into(),
            detail: "it is registered already; one stack at a time can have it".into(),
        },
        Some(libc::E2BIG | libc::ENOSPC) => PortError::NoRoom {
            what: what.into(),
            limit: "tuples_max of the device is reached; open it with a larger one".into(),
        },
        _ => refused("registering a tuple", error),
    }
}

fn tuple_key(tuple: Tuple) -> TupleKey {
    TupleKey { addr: tuple.addr.octets(), port: tuple.port.to_be_bytes(), proto: tuple.proto.0, range: 0 }
}

fn range_key(tuple: Tuple) -> TupleKey {
    TupleKey { port: [0; 2], range: 1, ..tuple_key(tuple) }
}

fn flow_key(flow: Flow) -> FlowKey {
    FlowKey {
        local_addr: flow.local.addr.octets(),
        peer_addr: flow.peer_addr.octets(),
        local_port: flow.local.port.to_be_bytes(),
        peer_port: flow.peer_port.to_be_bytes(),
        proto: flow.local.proto.0,
        zero: [0; 3],
    }
}
