//! When a socket becomes the relay's: its descriptor is used by somebody who has not the library's memory for it.
//!
//! Three ways lead here: a program says so over the descriptor ([`Kind::Relay`]), bytes come over it, or the last process of
//! its client is gone and the descriptor is not (exec).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use utcp_abi::message::{Kind, MESSAGE_LEN, Message, relay_name};
use utcp_abi::socket::{file, intent};

use super::Control;
use crate::relay::{Left, Line, Relay, without_request};
use crate::shard::{Place, ToShard, stands_on};
use crate::sys::{self, Wait};

/// How long a shard may take before it begins to move a socket.
const PATIENCE: Duration = Duration::from_secs(2);

impl Control {
    /// Something came over the descriptor under a socket.
    pub(super) fn on_stand(&mut self, token: u32) {
        let Some(entry) = self.tokens.get(&token) else { return };
        let mut bytes = [0; MESSAGE_LEN];
        let mut fds = Vec::new();
        let came = match sys::receive(entry.far_end.as_fd(), &mut bytes, &mut fds, Wait::Never) {
            Ok(count) => bytes.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => &[],
        };
        let message = Message::from_bytes(came).filter(|_| !fds.is_empty());
        if message.and_then(|message| Kind::from_u32(message.kind)) == Some(Kind::Hold) {
            return self.hold(token, fds);
        }
        let own = without_request(entry.far_end.as_fd(), came, &fds);
        self.relay(token, came.get(..own).unwrap_or_default());
    }

    /// The kernel's socket of a client that was bound lives as long as the descriptor under the new one. A descriptor ever comes under one such
    /// socket: whoever sends more would have us hold files without end, and loses the descriptor.
    fn hold(&mut self, token: u32, fds: Vec<OwnedFd>) {
        let Some(entry) = self.tokens.get_mut(&token) else { return };
        if let (None, Ok([bound])) = (&entry.held, <[OwnedFd; 1]>::try_from(fds)) {
            entry.held = Some(bound);
            return;
        }
        tracing::warn!(client = entry.client, "a descriptor that was to hold more than one file is closed");
        self.close_stand(token);
    }

    /// The last process of `client` is gone: what others still hold is theirs now.
    pub(super) fn relay_rest(&mut self, client: u32) {
        let held = |(token, entry): (&u32, &super::Token)| {
            (entry.client == client && !sys::is_hung_up(entry.far_end.as_fd())).then_some(*token)
        };
        let rest: Vec<u32> = self.tokens.iter().filter_map(held).collect();
        for token in rest {
            self.relay(token, &[]);
        }
    }

    /// Something happened to a socket with O_ASYNC. A byte comes over its descriptor, and the kernel signals whoever the program
    /// said: it judges who may signal whom, and this engine signals nobody.
    pub(super) fn signal(&mut self, place: Place) {
        let Some(client) = self.clients.get(&place.client) else { return };
        let region = client.shared.region();
        let Some(socket) = region.socket(place.sock) else { return };
        // Asked again: once the program has taken it back, no byte comes any more.
        if socket.file.load(Ordering::Acquire) & file::ASYNC == 0 {
            return;
        }
        let Some(entry) = self.tokens.get_mut(&socket.token.load(Ordering::Acquire)) else { return };
        if entry.client == place.client {
            entry.signalled = true;
            // A program that never looks has been signalled often enough.
            let _ = sys::send(entry.far_end.as_fd(), &[0], &[]);
        }
    }

    /// Moves the socket above `token` to the relay. `first` came over the descriptor already.
    fn relay(&mut self, token: u32, first: &[u8]) {
        let Some(from) = self.socket_of(token) else { return self.close_stand(token) };
        let heard = self.clients.get(&from.client).is_some_and(|client| {
            let region = client.shared.region();
            region.socket(from.sock).is_some_and(|s| s.file.load(Ordering::Acquire) & file::HEARING == 0)
        });
        let stray =
            |entry: &super::Token| entry.signalled && (!heard || sys::unread(entry.far_end.as_fd()) != 0);
        if self.tokens.get(&token).is_some_and(stray) {
            tracing::warn!(
                client = from.client,
                "a socket with O_ASYNC can't be relayed before its signals were heard"
            );
            return self.close_stand(token);
        }
        let Some(shared) = self.clients.get(&from.client).map(|c| c.shared.clone()) else { return };
        let Some(to) = self.relay_slot() else {
            tracing::warn!(
                client = from.client,
                "the relay carries all the sockets that it can: one more is reset"
            );
            return self.close_stand(token);
        };
        let region = shared.region();
        let Some(socket) = region.socket(from.sock) else { return };
        // Bytes that come over the descriptor from now on are the connection's.
        socket.file.fetch_and(!file::ASYNC, Ordering::AcqRel);
        let shard = socket.shard.load(Ordering::Relaxed) as usize;
        let generation = socket.generation.load(Ordering::Acquire);
        let Some(inbox) = self.inboxes.get(shard).or(self.inboxes.first()) else { return };
        let left = Left { inbox: inbox.clone(), place: from, generation };
        let (done, moved) = sync_channel(1);
        let decided = Arc::new(AtomicBool::new(false));
        inbox.send(ToShard::Move { from, token, to, decided: decided.clone(), done });
        let moved = match moved.recv_timeout(PATIENCE) {
            // It has begun: the end is near, and without it nobody could say whose the slot is.
            Err(RecvTimeoutError::Timeout) if decided.swap(true, Ordering::AcqRel) => {
                moved.recv().unwrap_or(false)
            }
            answer => answer.unwrap_or(false),
        };
        if !moved {
            self.give_slot_back(to.sock);
            return self.close_stand(token);
        }
        let Some((far_end, held)) = self.take_stand(token) else { return };
        let inet6 = socket.file.load(Ordering::Relaxed) & file::INET6 != 0;
        let name = relay_name(socket.local.load(), socket.remote.load(), inet6, token);
        if let Err(error) = sys::name_far_end(far_end.as_fd(), &name) {
            tracing::warn!(%error, "a relayed socket gets no name: its holders can't tell its addresses");
        }
        tracing::info!(client = from.client, sock = from.sock, "a socket goes through the relay");
        if let Some(relay) = &self.relay {
            relay.carry(Line::new(to.sock, left, far_end, held, first.to_vec()));
        }
    }

    /// A free slot of the relay, which is started if need be.
    fn relay_slot(&mut self) -> Option<Place> {
        if self.relay.is_none() {
            let id = self.number();
            let relay = Relay::start(id, self.inboxes.len(), self.life.clone())
                .inspect_err(|error| tracing::error!(%error, "the relay can't be started"))
                .ok()?;
            self.to_all(|| ToShard::Attach(relay.shared.clone()));
            let set = crate::relay::SET;
            self.to_all(|| ToShard::SetBell { client: id, set, bell: relay.bell.clone() });
            self.relay = Some(relay);
        }
        let relay = self.relay.as_ref()?;
        let sock = relay.shared.region().claim_socket()?;
        Some(Place { client: relay.shared.id, sock })
    }

    /// A slot of the relay that was not used after all: by the shard, which may be using it late.
    fn give_slot_back(&self, sock: u32) {
        let Some(relay) = &self.relay else { return };
        let region = relay.shared.region();
        if let Some(socket) = region.socket(sock) {
            socket.intent.fetch_or(intent::CLOSE, Ordering::AcqRel);
            region.dirty(0).set(sock);
        }
    }

    /// The socket whose descriptor has `token`.
    fn socket_of(&self, token: u32) -> Option<Place> {
        let client = self.tokens.get(&token)?.client;
        let region = self.clients.get(&client)?.shared.region();
        let mut found = None;
        region.free_sockets().for_each_clear(|sock| {
            if region.socket(sock).is_some_and(|socket| stands_on(socket, token)) {
                found = Some(Place { client, sock });
            }
        });
        found
    }

    /// Nothing stands above this descriptor that could be carried: its holders see the end. A socket that gets there meanwhile, too.
    fn close_stand(&mut self, token: u32) {
        let client = self.tokens.get(&token).map(|entry| entry.client);
        if let (Some((far_end, _)), Some(client)) = (self.take_stand(token), client) {
            drop(far_end);
            self.tell_of_gone(client, &[token]);
            tracing::debug!(token, "a descriptor without a connection was used from outside");
        }
    }

    /// Takes the far end away from the control thread.
    fn take_stand(&mut self, token: u32) -> Option<(OwnedFd, Option<OwnedFd>)> {
        let entry = self.tokens.remove(&token)?;
        self.epoll.remove(entry.far_end.as_fd());
        if let Some(client) = self.clients.get_mut(&entry.client) {
            client.tokens = client.tokens.saturating_sub(1);
        }
        Some((entry.far_end, entry.held))
    }
}
