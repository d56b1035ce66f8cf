//! The harness of the system tests in `tests/tests`: unmodified programs, once under utcp and, with
//! `UTCP_TEST_ON=kernel`, once on the kernel to prove that the test itself is right.
//!
//! ```text
//!  Lab            one test: temporary folder, ports, logs that are printed if it fails
//!   ├─ Engine     a private engine (UTCP_STACK=test-…), its sockets and counters
//!   ├─ Net        two network namespaces joined by a veth pair
//!   └─ Run ─► Running   a program on the kernel or under an engine, killed by its id at the end
//! ```
//!
//! Ground rules:
//! - Nothing outlives its owner: programs die, namespaces and folders go when the value is dropped, also
//!   when a test panics, and children die with the test process.
//! - Nothing sleeps in the hope that something happened meanwhile: [`wait_until`] looks for it.
//! - A program that silently used the kernel passes no test: [`Engine::went_through`].
//! - What can't run here (no root …) is told by [`not_run`] and is not counted as passed.

mod download;
mod engine;
mod lab;
pub mod mirror;
mod net;
pub mod nginx;
mod path;
pub mod redis;
mod run;
pub mod strace;
pub mod transcript;
mod wait;

pub use download::Download;
pub use engine::{Counters, Engine, Socket};
pub use lab::{Lab, ip, is_installed, is_root, measured, not_run, on_kernel, release_file, repository};
pub use net::{Host, Net, bracketed};
pub use path::Path;
pub use run::{Finished, Run, Running, children, cpu_ticks, signal_pid, voluntary_switches};
pub use wait::{WAIT, wait_until};
