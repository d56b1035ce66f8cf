//! Whose frames are whose.

use std::collections::HashMap;

use crate::{Flow, PeerVerdict, Tuple};

/// Number of a stack; 0 is nobody: what a stack that is gone had, and that was not given back to the kernel yet.
pub(super) type Owner = u32;
/// See [`Owner`].
pub(super) const NOBODY: Owner = 0;

/// Registered tuples and flows, first come, first served.
#[derive(Debug, Default)]
pub(super) struct Table {
    tuples: HashMap<Tuple, Owner>,
    flows: HashMap<Flow, (Owner, PeerVerdict)>,
}

/// What came of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is new: the device has to hear of it.
    New,
    /// The device knew it: somebody who is gone had it.
    Inherited,
    /// Another stack has it.
    Taken,
}

impl Table {
    pub(super) fn enter(&mut self, tuple: Tuple, owner: Owner) -> Entered {
        match self.tuples.get_mut(&tuple) {
            None => {
                self.tuples.insert(tuple, owner);
                Entered::New
            }
            Some(old) if *old == NOBODY => {
                *old = owner;
                Entered::Inherited
            }
            Some(_) => Entered::Taken,
        }
    }

    /// Takes a tuple out; `false` when `owner` does not have it.
    pub(super) fn remove(&mut self, tuple: Tuple, owner: Owner) -> bool {
        self.tuples.get(&tuple) == Some(&owner) && self.tuples.remove(&tuple).is_some()
    }

    /// A flow of a tuple that nobody else has; `false` otherwise, or when there is one already.
    pub(super) fn enter_flow(&mut self, flow: Flow, owner: Owner, verdict: PeerVerdict) -> bool {
        let foreign = self.tuples.get(&flow.local).is_some_and(|of| *of != owner && *of != NOBODY);
        if foreign || self.flows.contains_key(&flow) {
            return false;
        }
        self.flows.insert(flow, (owner, verdict));
        true
    }

    pub(super) fn remove_flow(&mut self, flow: Flow, owner: Owner) -> bool {
        let own = self.flows.get(&flow).is_some_and(|(of, _)| *of == owner);
        own && self.flows.remove(&flow).is_some()
    }

    /// Who gets the frames of `flow`, and who may send them.
    pub(super) fn owner(&self, flow: &Flow) -> Option<Owner> {
        let by_flow = if self.flows.is_empty() { None } else { self.flows.get(flow) };
        let owner = match by_flow {
            Some((owner, PeerVerdict::Take)) => *owner,
            Some((_, PeerVerdict::LeaveToKernel)) => return None,
            None => *self.tuples.get(&flow.local)?,
        };
        (owner != NOBODY).then_some(owner)
    }

    /// A stack is gone: from now on nobody has its tuples. Returns them, and its flows.
    pub(super) fn orphan(&mut self, owner: Owner) -> (Vec<Tuple>, Vec<Flow>) {
        let mut tuples = Vec::new();
        for (tuple, of) in self.tuples.iter_mut().filter(|(_, of)| **of == owner) {
            *of = NOBODY;
            tuples.push(*tuple);
        }
        let flows: Vec<Flow> =
            self.flows.iter().filter(|(_, (of, _))| *of == owner).map(|(f, _)| *f).collect();
        for flow in &flows {
            self.flows.remove(flow);
        }
        (tuples, flows)
    }

    /// How many tuples a stack has.
    pub(super) fn count(&self, owner: Owner) -> usize {
        self.tuples.values().filter(|of| **of == owner).count()
    }
}
