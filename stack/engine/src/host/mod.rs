//! The kernel's view of this host, mirrored by netlink: interfaces, addresses, routes, rules, neighbours.
//!
//! ```text
//!   kernel ──notifications──► HostMirror ──Arc<HostView>──► shards
//!     ▲  └────── dumps ─────►  (control thread)              (read only)
//!     └── "resolve", "in use" ───┘
//! ```

mod mirror;
pub(crate) mod netlink;
mod parse;
mod prefix;
mod routing;
mod source;
mod uapi;
mod view;

pub use mirror::HostMirror;
pub use view::{HostView, Interface, Kind, Neighbour, Route};

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
