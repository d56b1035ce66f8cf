//! The contract in shared memory between a program and the utcp engine.
//!
//! One sealed memfd **region** per client program; its forked children share it. The engine makes
//! it, lays it out as [`layout`] says and passes it over the control channel ([`message`]); both
//! ends then work on the same structures:
//!
//! ```text
//!  program (shim)                      region                              engine (shard)
//!  send ── copies into ──► tx stream ── read in place, kept until acknowledged ──► frames
//!  recv ◄─ copies out of ─ rx stream ◄─ written in place, also out of order ────── frames
//!  any change ── sets a bit ──► dirty[shard]  ("look at socket 17") ─── taken in batches ──►
//!  epoll_wait ◄─ scans ─── set.ready ("interest 4 has news") ◄── sets a bit, once per batch ──
//!  sleeps on a bell ◄────── armed? ────── rung once per batch ─────────────────────────────
//! ```
//!
//! Ground rules:
//! - Offsets and indices cross, pointers never. Every field is an atomic, so that a peer that
//!   writes at a bad moment costs a wrong value and never undefined behaviour.
//! - The engine copies a word out once, checks it, then uses it. [`PeerCorrupt`] closes the client.
//! - Commands and events are *bits*, not messages: setting one is idempotent (N writes before the
//!   shard looks are one command), needs no owner (any thread, a signal handler, a forked child),
//!   can't overflow and isn't lost when its setter dies. What changed is derived from the stream
//!   indices and the socket's words, so it can't go stale. ARCHITECTURE.md has the comparison with
//!   per-thread rings that led here.
#![cfg_attr(not(any(test, loom)), no_std)]

pub mod arbiter;
pub mod bell;
pub mod bits;
pub mod freeze;
pub mod info;
pub mod layout;
pub mod listener;
pub mod message;
pub mod page;
pub mod pair;
pub mod region;
pub mod ring;
pub mod set;
pub mod socket;
pub mod stream;
mod sync;
mod ticks;
pub mod waiting;

pub use layout::ABI_VERSION;
pub use region::Region;
pub use ticks::ticks;

/// A word in shared memory that no correct peer can have written. The engine closes that client
/// and counts it; no other client notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCorrupt {
    /// What was wrong, in words for the log.
    pub what: &'static str,
    /// The value that was read.
    pub value: u64,
}
