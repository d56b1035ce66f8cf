//! The utcp engine: shards, flows, listeners, timers and ports around the pure TCP core.
//!
//! ```text
//!  control thread                                  shard threads, one per core
//!  unix socket ── attach, descriptors, listen ──►  Inbox ─► shard::Shard
//!  descriptors' far ends ── hang-up ────────────►           flows, timers, rings: its own alone
//!  netlink ── addresses, routes, neighbours ────►           ports: its own queue pairs
//! ```
//!
//! A program and its shard meet in shared memory only (see `utcp-abi`); the control thread is on no
//! connection's path. Every word of a program is treated as written by an attacker.

pub mod config;
pub mod control;
pub mod counters;
pub mod host;
pub mod life;
pub mod probe;
pub mod relay;
pub mod shard;
pub mod station;
pub mod sys;

#[cfg(test)]
mod alloc_count;

/// Facts about interfaces and drivers, the device strings, and the switch, for tools.
pub use utcp_netmap_io::{DeviceSpec, OpenOptions, SpecError, inspect, open as open_device, rss, switch};

pub use config::Config;
pub use control::{EngineError, run};
