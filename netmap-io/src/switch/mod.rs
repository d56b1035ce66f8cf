//! `switch:`: several stacks share one device, each with memory, tuples and a process of its own.
//!
//! ```text
//!  NIC ══ xdp:eth0 ══ Switch ══ pipe (netmap rings, memory of its own) ══ stack "a"
//!                      │  ╚════ pipe ═════════════════════════════════════ stack "b"
//!                      └ tuple → pipe                                      …
//! ```
//!
//! A frame can be redirected only to an AF_XDP socket of the queue that it came in on, and a queue takes one packet
//! memory; stacks that shared it could read and spoil each other's frames. So one process, the [`Switch`], owns the
//! device and copies each frame once.
//!
//! | file | what |
//! |---|---|
//! | `message` | what a stack and the switch say to each other |
//! | `plain` | whose a frame is, of those that most are |
//! | `table`, `places` | who registered what |
//! | `server` | the switch: its loop |
//! | `bed` | what it sleeps on |
//! | `guest` | one stack's connection, seen from the switch |
//! | `stack` | the same, seen from the stack: a port and its steering |
//! | `held` | what a stack keeps of a switch that is gone |
//!
//! Ground rules
//!
//! - A stack's memory is mapped by the switch and by that stack, by nobody else. Every index in it is checked.
//! - A frame that leaves is copied first and judged then, so that it can't change in between. It leaves only if the stack
//!   registered its source.
//! - No stack is waited for. One without room loses its own frames; one that floods has its turn and a budget like the
//!   others; one that dies has its tuples freed, a few at a time.

mod bed;
mod early;
mod guest;
mod held;
mod link;
mod message;
mod places;
mod plain;
mod server;
mod stack;
mod table;

#[cfg(test)]
mod tests;

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

pub use server::{Switch, report};
pub(crate) use stack::open;

/// Stacks on one switch at most: each has a block of the client ports.
pub const STACKS_MAX: usize = 8;
/// TCP ports that connections of stacks come from.
const CLIENT_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// Client ports of one stack.
const BLOCK: u16 = 512;

/// Tuples of one stack at most.
const STACK_TUPLES_MAX: u32 = 1 << 17;
/// Those of them that may be client ports: hundreds of addresses have many, and listeners need room, too.
const CLIENT_TUPLES_MAX: u32 = STACK_TUPLES_MAX / 8 * 7;
/// Tuples that a switch registers with its device at most: what one stack has, no other one misses.
pub const TUPLES_MAX: u32 = STACK_TUPLES_MAX * STACKS_MAX as u32;

/// Where a switch listens: a name of the network namespace, like the device itself.
fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("utcp/switch/{name}"))
}
