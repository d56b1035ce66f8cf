//! Whose frames are whose.

use std::collections::HashMap;

use super::places::{Key, Look, Places};
use crate::{Flow, PeerVerdict, Tuple};

/// Number of a stack; 0 is nobody: what a stack that is gone had, and that was not given back to the kernel yet.
pub(super) type Owner = u32;
/// See [`Owner`].
pub(super) const NOBODY: Owner = 0;

/// Registered tuples and flows, first come, first served.
#[derive(Debug, Default)]
pub(super) struct Table {
    tuples: Places,
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
        let entered = match self.tuples.get(tuple) {
            None => Entered::New,
            Some(NOBODY) => Entered::Inherited,
            Some(_) => return Entered::Taken,
        };
        self.tuples.insert(tuple, owner);
        entered
    }

    /// Takes a tuple out; `false` when `owner` does not have it.
    pub(super) fn remove(&mut self, tuple: Tuple, owner: Owner) -> bool {
        let own = self.tuples.get(tuple) == Some(owner);
        if own {
            self.tuples.remove(tuple);
        }
        own
    }

    /// A flow of a tuple that nobody else has; `false` otherwise, or when there is one already.
    pub(super) fn enter_flow(&mut self, flow: Flow, owner: Owner, verdict: PeerVerdict) -> bool {
        let foreign = self.tuples.get(flow.local).is_some_and(|of| of != owner && of != NOBODY);
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
            None => self.tuples.get(flow.local)?,
        };
        (owner != NOBODY).then_some(owner)
    }

    /// The first half of [`Table::owner`] for a whole batch: what the second half reads is on its way.
    #[inline]
    pub(super) fn look(&self, local: Key) -> Look {
        self.tuples.look(local)
    }

    /// The second half. Not for who [has exceptions](Table::has_exceptions).
    #[inline]
    pub(super) fn owner_at(&self, look: Look) -> Option<Owner> {
        self.tuples.owner(look).filter(|owner| *owner != NOBODY)
    }

    /// Whether the local end of a flow does not tell whose it is.
    #[inline]
    pub(super) fn has_exceptions(&self) -> bool {
        !self.flows.is_empty()
    }

    /// A stack is gone: from now on nobody has its tuples. Returns them, and its flows.
    pub(super) fn orphan(&mut self, owner: Owner) -> (Vec<Tuple>, Vec<Flow>) {
        let tuples = self.tuples.inherit(owner, NOBODY);
        let flows: Vec<Flow> =
            self.flows.iter().filter(|(_, (of, _))| *of == owner).map(|(f, _)| *f).collect();
        for flow in &flows {
            self.flows.remove(flow);
        }
        (tuples, flows)
    }

    /// How many tuples a stack has.
    pub(super) fn count(&self, owner: Owner) -> usize {
        self.tuples.count(owner)
    }
}
