//! netmap: the layout of its shared memory, and the user's half of a ring.
//!
//! Everything above a sync is the same whether the module or [`pipe`](crate::pipe) stands below it.

pub(crate) mod layout;
pub(crate) mod user;
