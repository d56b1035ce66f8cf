//! What a stack keeps of a switch that is gone, so that one that comes soon finds everything as it was.
//!
//! ```text
//!  switch ── link ──► XDP program          killed: the link lives on in the stacks; frames for them are dropped, and not
//!     └─ a copy ──► stack "a"              answered with resets by a kernel that knows nothing of their connections
//!     └─ a copy ──► stack "b"              next one: binds the queues, lets stacks register, puts its program into the link
//! ```
//!
//! After [`HOLD`] without a switch the link is let go, and with it the program: the kernel's half of the listeners serves.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a switch may be away.
const HOLD: Duration = Duration::from_secs(5);

/// Of one switch.
#[derive(Debug)]
struct Held {
    name: String,
    /// First of the client ports that it gave us.
    client_port: u16,
    link: Option<OwnedFd>,
    /// Since when it was not there.
    missed: Option<Instant>,
}

/// A process takes part in few switches, and asks rarely.
static ALL: Mutex<Vec<Held>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Held>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers what a switch gave.
pub(super) fn keep(name: &str, client_port: u16, link: Option<OwnedFd>) {
    let mut all = all();
    all.retain(|held| held.name != name);
    all.push(Held { name: name.to_owned(), client_port, link, missed: None });
}

/// The first client port that a switch gave; 0: none.
pub(super) fn client_port(name: &str) -> u16 {
    all().iter().find(|held| held.name == name).map_or(0, |held| held.client_port)
}

/// No switch of that name is there. What was held for too long is let go.
pub(super) fn missed(name: &str) {
    for held in all().iter_mut().filter(|held| held.name == name) {
        let since = *held.missed.get_or_insert_with(Instant::now);
        if since.elapsed() > HOLD {
            held.link = None;
        }
    }
}
