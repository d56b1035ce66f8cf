//! The kernel's view of this host, mirrored by netlink: interfaces, addresses, routes, rules, neighbours.
//!
//! ```text
//!   kernel ──notifications──► HostMirror ──Arc<HostView>──► shards
//!     ▲  └────── dumps ─────►  (control thread)              (read only)
//!     └── "resolve", "in use" ───┘
//! ```
//!
//! Ground rules:
//! - The kernel decides; we repeat its decisions. `live/agreement.rs` compares route and source choice with the kernel's
//!   own over random tables. What can't be repeated (rules by user or port, VRFs, source-specific routes, tunnels by
//!   route) gives no route, so that the connection runs on the kernel stack, which knows.
//! - A view never changes. Shards swap views between batches; nothing here locks.
//! - Only `RTM_NEWNEIGH` with `NTF_USE` is ever asked of the kernel, nothing is configured. All else works for any user.
//!
//! A change of addresses, rules or routes costs one reading of all of them (`mirror.rs` says why): microseconds on a host
//! with a few routes, about a second with the Internet's whole table.

mod mirror;
pub(crate) mod netlink;
mod parse;
mod prefix;
mod routing;
mod source;
mod sysctl;
mod uapi;
mod view;

pub use mirror::HostMirror;
pub(crate) use prefix::Prefix;
pub use sysctl::{TcpSettings, tcp_settings};
pub(crate) use view::is_link_local_v6;
pub use view::{HostView, Interface, Kind, Neighbour, Route};

#[cfg(test)]
mod live;
#[cfg(test)]
pub(crate) mod tests;
