//! Far ends that are no more: of descriptors that were closed for the last time, and of those that were spoiled by a `shutdown` or the
//! like from outside (a thread may use a number that another has just closed), which nobody hears of again.
//!
//! The count in the region moves before the look at the sockets. So whoever puts a socket on such a descriptor meanwhile sees the count
//! move, or is found (`shim/src/pool.rs`).

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use super::Control;
use crate::shard::ToShard;

impl Control {
    /// Descriptors under sockets (or in pools) whose last reference is gone.
    pub(super) fn on_hangups(&mut self, hung_up: &[u32]) {
        let mut by_client: HashMap<u32, Vec<u32>> = HashMap::new();
        for token in hung_up {
            if let Some(entry) = self.tokens.remove(token) {
                if let Some(client) = self.clients.get_mut(&entry.client) {
                    client.tokens = client.tokens.saturating_sub(1);
                }
                by_client.entry(entry.client).or_default().push(*token);
            }
        }
        for (client, mut gone) in by_client {
            gone.sort_unstable();
            self.tell_of_gone(client, &gone);
        }
    }

    /// The far ends with these tokens (in order) of descriptors of `client` are no more: sockets on them are as good as closed.
    pub(super) fn tell_of_gone(&self, client: u32, gone: &[u32]) {
        let Some(entry) = self.clients.get(&client) else { return };
        let region = entry.shared.region();
        region.header().stands_gone.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        region.free_sockets().for_each_clear(|sock| {
            let Some(socket) = region.socket(sock) else { return };
            let token = socket.token.load(Ordering::Acquire);
            if token != 0 && gone.binary_search(&token).is_ok() {
                let shard = socket.shard.load(Ordering::Relaxed) as usize;
                let inbox = self.inboxes.get(shard).or(self.inboxes.first());
                if let Some(inbox) = inbox {
                    inbox.send(ToShard::Hangup { client, sock, token });
                }
            }
        });
    }
}
