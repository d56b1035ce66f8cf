//! Load generators and measurements of utcp.
//!
//! `utcp-compare` runs unmodified programs in turn on the kernel and on utcp and tells the ratio;
//! `utcp-load` is the load of our own: a message server and client, ping-pong and stream, on plain
//! sockets and epoll, so that each runs on either side.
//!
//! ```text
//! bin/compare ── compare ── one run: net ─ engine ─ apps (server, client) ─ cpu ─ parse
//!                   │
//!                 rows ──── report: table, json, html
//! ```
//!
//! Ground rules: everything that a run starts (processes, namespaces, files, settings) is owned by a
//! value whose `Drop` takes it back, so that an error or Ctrl-C anywhere leaves the machine as it was.

pub mod apps;
pub mod case;
pub mod child;
pub mod compare;
pub mod counts;
pub mod cpu;
pub mod crowd;
pub mod demux;
pub mod engine;
pub mod error;
pub mod generator;
pub mod interrupt;
pub mod lean;
pub mod load;
pub mod machine;
pub mod memory;
pub(crate) mod meter;
pub mod net;
pub mod parse;
pub mod report;
pub mod run;
pub mod solo;
pub mod special;
pub mod stats;

pub use error::Error;
