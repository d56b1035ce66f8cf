//! Programs that became another by exec while connections waited at a listener of theirs, which the new one inherits (socket activation,
//! the restart of puma or uwsgi).
//!
//! In the kernel they wait in the socket. Here they wait in the region of a program that is gone, so that stays for a while, for its listeners
//! alone: until the new program asks for them, nobody has the kernel's socket any more, or patience is over. What comes meanwhile comes by the
//! kernel.

use std::time::{Duration, Instant};

use super::listeners::ListenerEntry;
use super::{Control, diag};
use crate::shard::ToShard;

/// How long a program may take to begin, and to ask for what it inherited.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the kernel is asked whether the socket is still there.
pub(super) const CHECK: Duration = Duration::from_millis(100);

/// Clients whose last process is gone, and until when they stay.
#[derive(Debug, Default)]
pub(super) struct Heirs {
    waiting: Vec<(u32, Instant)>,
}

impl Heirs {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Control {
    /// The last process of `client` is gone, and with it the client, unless somebody may inherit what waits at its listeners.
    pub(super) fn on_client_gone(&mut self, client: u32) {
        let Some(entry) = self.clients.get(&client) else { return };
        let region = entry.shared.region();
        let waits = |l: &ListenerEntry| {
            region.listener(l.slot).is_some_and(|shared| shared.queues.iter().any(|q| !q.ring().is_empty()))
        };
        let shared = |l: &ListenerEntry| {
            let mut others = self.clients.iter().filter(|(number, _)| **number != client);
            others.any(|(_, other)| other.listeners.iter().any(|o| o.inode == l.inode))
        };
        // In this order: the kernel is asked where it matters. A listener that was left to it has nobody here who could inherit.
        let stays = |l: &ListenerEntry| !l.kernels && waits(l) && !shared(l) && is_listening(l);
        let (stay, go): (Vec<_>, Vec<_>) = entry.listeners.iter().partition(|l| stays(l));
        let (any, go) = (!stay.is_empty(), go.iter().map(|l| l.sock).collect::<Vec<_>>());
        if !any {
            return self.end_client(client);
        }
        for sock in go {
            self.drop_listener(client, sock);
        }
        let _ = self.leave_to_kernel(|of, _| of == client);
        self.heirs.waiting.push((client, Instant::now() + PATIENCE));
    }

    fn end_client(&mut self, client: u32) {
        self.drop_all_listeners(client);
        self.clients.remove(&client);
        self.to_all(|| ToShard::Detach(client));
    }

    /// A program has a listener for the kernel's socket `inode`, so the shards know who inherits.
    pub(super) fn on_heir(&mut self, inode: u64) {
        let waiting: Vec<u32> = self.heirs.waiting.iter().map(|(client, _)| *client).collect();
        for client in waiting {
            let Some(entry) = self.clients.get(&client) else { continue };
            let left = entry.listeners.iter().find(|l| l.inode == inode).map(|l| l.sock);
            if let Some(sock) = left {
                self.drop_listener(client, sock);
            }
        }
        self.check_heirs();
    }

    /// Ends clients for which nobody comes any more, or whose listeners were all inherited.
    pub(super) fn check_heirs(&mut self) {
        let now = Instant::now();
        let over = |(client, until): &(u32, Instant)| {
            let listens =
                self.clients.get(client).is_some_and(|entry| entry.listeners.iter().any(is_listening));
            !listens || *until <= now
        };
        let (over, waiting) = self.heirs.waiting.iter().partition(|one| over(one));
        self.heirs.waiting = waiting;
        let over: Vec<(u32, Instant)> = over;
        for (client, _) in over {
            self.end_client(client);
        }
    }
}

fn is_listening(listener: &ListenerEntry) -> bool {
    matches!(diag::listening(listener.addr.port, listener.inode), Ok(true))
}
