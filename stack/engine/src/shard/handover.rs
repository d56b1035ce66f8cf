//! Listeners that several programs share: one kernel socket whose descriptor went from an old program to a new one, by exec
//! or over a unix socket (a reload, a binary upgrade). In the kernel they share the accept queue. Here each program has a
//! queue in its own region, so
//! - a connection goes to a program that sleeps until one comes, or else to one that waits for it and is busy ([`Shard::representatives`]); one that came before
//!   anybody waited, or while somebody waited who started another program for it (dovecot, inetd), goes on to the first that does, and one that
//!   came to a busy program goes on to one that falls asleep meanwhile (postfix, where a lock says who waits) ([`Shard::share_out`]);
//! - what waits in the queue of a program that goes, or closes its descriptor, waits in another's from then on. Nobody has
//!   accepted it, so no program's word about its streams counts: there is only what the peer sent.

use std::sync::atomic::Ordering;

use utcp_abi::layout::ACCEPT_RING;
use utcp_abi::set::{Member, Set};
use utcp_abi::socket::{Addr, status};
use utcp_abi::waiting;

use super::Shard;
use super::client::SlotUse;
use super::listen::Listener;
use super::segments::shared_addr;

impl Shard {
    /// Whether some epoll set or a sleeper of the listener's program waits for its connections.
    fn is_awaited(&self, index: u32) -> bool {
        let Some(listener) = self.listeners.get(index) else { return false };
        let client = self.clients.get(listener.client);
        let shared = client.and_then(|client| client.region.listener(listener.slot));
        shared.is_some_and(|shared| shared.members.iter().any(|member| member.load(Ordering::Relaxed) != 0))
    }

    /// Whether somebody sleeps until a connection comes to the listener.
    fn is_slept_on(&self, index: u32) -> bool {
        let Some(listener) = self.listeners.get(index) else { return false };
        let Some(region) = self.clients.get(listener.client).map(|client| client.region) else {
            return false;
        };
        let Some(shared) = region.listener(listener.slot) else { return false };
        let sets = shared.members.iter().filter_map(|word| Member::unpack(word.load(Ordering::SeqCst)));
        sets.filter(|member| i32::from(member.events) & libc::EPOLLIN != 0)
            .any(|member| region.set(member.set).is_some_and(Set::is_asleep))
    }

    /// Of the listeners of one kernel socket the one that serves: the first on which somebody sleeps, else the first that is awaited, else the
    /// newest.
    fn serving(&self, port: u16, inode: u64, may: impl Fn(u32, &Listener) -> bool) -> Option<u32> {
        let same =
            |index: &u32| self.listeners.get(*index).is_some_and(|l| l.inode == inode && may(*index, l));
        let list = self.by_port.get(&port)?;
        let all = || list.iter().copied().filter(same);
        let slept_on = all().find(|&index| self.is_slept_on(index));
        let awaited = slept_on.or_else(|| all().find(|&index| self.is_awaited(index)));
        awaited.or_else(|| all().last())
    }

    /// Of the listeners in `list` those that get new connections, one of each kernel socket. Each of these is asked about once: programs say who
    /// waits, and may say something else the next moment.
    pub(super) fn representatives(&self, list: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut chosen = Vec::new();
        let mut seen = Vec::new();
        for index in list {
            let Some(listener) = self.listeners.get(index) else { continue };
            if !listener.shared {
                chosen.push(index);
            } else if !seen.contains(&listener.inode) {
                seen.push(listener.inode);
                chosen.extend(self.serving(listener.tcp_port, listener.inode, |_, l| !l.kernels));
            }
        }
        chosen
    }

    /// Who takes over from listener `index`.
    pub(super) fn heir(&self, index: u32) -> Option<u32> {
        let listener = self.listeners.get(index).filter(|listener| listener.shared)?;
        self.serving(listener.tcp_port, listener.inode, |other, _| other != index)
    }

    /// A process of a client gave up a listener that other programs have, too: perhaps the last one that accepted.
    pub(super) fn on_yield(&mut self, number: u32, sock: u32) {
        let Some(index) = self.listener_of(number, sock) else { return };
        // Its other processes may accept yet.
        if !self.is_awaited(index)
            && let Some(heir) = self.heir(index)
        {
            self.pass_on(index, Some(heir));
        }
    }

    /// Has the program at `place` (client index and socket slot) tell who begins and who ceases to wait there.
    pub(super) fn say_shared(&self, (client, sock): (u32, u32)) {
        if let Some(socket) = self.clients.get(client).and_then(|client| client.region.socket(sock)) {
            // SeqCst: a program that does not see it has its interest in place before our look.
            socket.status.fetch_or(status::SHARED, Ordering::SeqCst);
        }
    }

    /// A program began or ceased to wait for connections of the listener in its slot `sock`, or falls asleep on it.
    pub(super) fn on_listener_command(&mut self, client: u32, sock: u32) {
        let found = self.listeners.iter().find(|(_, l)| l.client == client && l.sock == sock);
        if let Some((index, _)) = found.filter(|(_, listener)| listener.shared) {
            self.share_out(index);
        }
    }

    /// What waits where nobody waits for it goes where somebody does: to listener `index` from others of its kernel socket, or
    /// from it to another. Of what waits for a busy program one goes where somebody sleeps: he may be busy with it for long.
    pub(super) fn share_out(&mut self, index: u32) {
        let Some(listener) = self.listeners.get(index) else { return };
        if !self.is_awaited(index) {
            if let Some(heir) = self.heir(index).filter(|&heir| self.is_awaited(heir)) {
                self.hand_on(index, heir, ACCEPT_RING as u32);
            }
            return;
        }
        let (inode, port) = (listener.inode, listener.tcp_port);
        let same =
            |other: &u32| *other != index && self.listeners.get(*other).is_some_and(|l| l.inode == inode);
        let idle = |other: &u32| same(other) && !self.is_awaited(*other);
        let idle: Vec<u32> =
            self.by_port.get(&port).map_or(Vec::new(), |list| list.iter().copied().filter(idle).collect());
        for other in idle {
            self.hand_on(other, index, ACCEPT_RING as u32);
        }
        if self.has_some(index) || !self.is_slept_on(index) {
            return;
        }
        let same = |other: u32| other != index && self.listeners.get(other).is_some_and(|l| l.inode == inode);
        let mut list = self.by_port.get(&port).into_iter().flatten().copied();
        let busy = list.find(|&other| same(other) && self.has_some(other) && !self.is_slept_on(other));
        if let Some(busy) = busy {
            self.hand_on(busy, index, 1);
        }
    }

    /// Whether connections wait at listener `index`.
    fn has_some(&self, index: u32) -> bool {
        self.listeners.get(index).is_some_and(|listener| self.accept_queue_len(listener) > 0)
    }

    /// Moves what waits at listener `from` to `to`, the oldest `most` and as much as there is room for.
    fn hand_on(&mut self, from: u32, to: u32, most: u32) {
        let Some((client_index, slot)) = self.listeners.get(from).map(|l| (l.client, l.slot)) else { return };
        // What does not fit stands in the queue again behind the rest.
        let waiting = self.listeners.get(from).map_or(0, |listener| self.accept_queue_len(listener));
        for _ in 0..waiting.min(most) {
            let Some(sock) = self.take_queued(from) else { return };
            let Some(client) = self.clients.get_mut(client_index) else { return };
            let used = client.slot(sock);
            if let SlotUse::Ended(_) = used {
                let end = client.free_slot(sock);
                self.release(end);
            } else if let SlotUse::Flow(flow) = used
                && self.flows.get(flow).is_some_and(|flow| flow.waiting.is_some())
                && self.rehome(flow, to).is_none()
            {
                self.queue_accepted(from, client_index, slot, sock);
            }
        }
    }

    /// What waits at listener `index`, half-open or not, goes to the heir; without one it is reset, as the kernel does.
    pub(super) fn pass_on(&mut self, index: u32, heir: Option<u32>) {
        let halves: Vec<u32> =
            self.half_open.iter().filter(|(_, h)| h.listener == index).map(|(i, _)| i).collect();
        for half in halves {
            match heir {
                Some(heir) => self.pass_half_open(half, heir),
                None => self.drop_half_open(half),
            }
        }
        // Bounded by the ring's length: a lying index can't keep us here.
        let waiting: Vec<u32> = std::iter::from_fn(|| self.take_queued(index)).take(ACCEPT_RING).collect();
        for sock in waiting {
            let Some(client_index) = self.listeners.get(index).map(|l| l.client) else { return };
            let Some(client) = self.clients.get_mut(client_index) else { return };
            match client.slot(sock) {
                SlotUse::Flow(flow) if self.flows.get(flow).is_some_and(|f| f.waiting.is_some()) => {
                    let passed = heir.is_some_and(|heir| self.rehome(flow, heir).is_some());
                    if !passed {
                        self.abort(flow);
                    }
                }
                SlotUse::Ended(_) => {
                    let end = client.free_slot(sock);
                    self.release(end);
                }
                _ => {}
            }
        }
    }

    /// Takes the oldest connection out of a listener's accept queue: its slot.
    fn take_queued(&self, index: u32) -> Option<u32> {
        let listener = self.listeners.get(index)?;
        let shared = self.clients.get(listener.client)?.region.listener(listener.slot)?;
        shared.queues[self.config.index as usize].ring().pop().map(waiting::slot_of)
    }

    fn pass_half_open(&mut self, half: u32, heir: u32) {
        let Some(record) = self.half_open.get_mut(half) else { return };
        let from = std::mem::replace(&mut record.listener, heir);
        if let Some(listener) = self.listeners.get_mut(from) {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
        if let Some(listener) = self.listeners.get_mut(heir) {
            listener.half_open += 1;
        }
    }

    /// Moves a flow that nobody has accepted into the region and the queue of listener `heir`. `None`: there is no room.
    fn rehome(&mut self, index: u32, heir: u32) -> Option<()> {
        let listener = self.listeners.get(heir)?;
        let (to, parent, slot) = (listener.client, listener.sock, listener.slot);
        if self.is_full(listener) {
            self.counters.listen_overflows += 1;
            return None;
        }
        if let Some(end) = self.flows.get(index).and_then(|flow| flow.pair) {
            self.uncut(end); // Its bytes are in memory that only the old program shares with the peer.
        }
        let flow = self.flows.get(index).filter(|flow| !flow.finished)?;
        let (from, old_sock, path, tuple) = (flow.client, flow.sock, flow.path, flow.tuple);
        let (old_rx, old_tx, rx_fin) = (flow.rx, flow.tx, flow.rx_fin);
        let mark = self.clients.get(from)?.region.socket(old_sock)?.rx_urgent.load(Ordering::Relaxed);
        let local_scope = self.scope_of(tuple.local.addr, path);
        let remote_scope = self.scope_of(tuple.remote.addr, path);

        let client = self.clients.get_mut(to)?;
        let Some(sock) = client.claim_slot() else {
            self.counters.out_of_sockets += 1;
            return None;
        };
        let Some((rx, tx)) = client.streams_like(sock, &old_rx, old_tx.capacity()) else {
            let end = client.free_slot(sock);
            self.release(end);
            return None;
        };
        let region = client.region;
        let (socket, parent) = (region.socket(sock)?, region.socket(parent)?);
        socket.options.copy_from(&parent.options);
        socket.rx_buf.store(rx.buf().0, Ordering::Relaxed);
        socket.tx_buf.store(tx.buf().0, Ordering::Relaxed);
        let ahead = mark.wrapping_sub(old_rx.head);
        if mark != 0 && ahead <= old_rx.capacity() {
            socket.rx_urgent.store(rx.head.wrapping_add(ahead), Ordering::Relaxed);
        }
        socket.shard.store(self.config.index, Ordering::Relaxed);
        socket.local.store(Addr { scope: local_scope, ..shared_addr(tuple.local) });
        socket.remote.store(Addr { scope: remote_scope, ..shared_addr(tuple.remote) });
        socket.rx_tail.store(rx.tail, Ordering::Release);
        let fin = if rx_fin { status::RX_FIN } else { 0 };
        socket.status.store(status::CONNECTED | fin, Ordering::Release);
        client.flows += 1;
        client.set_slot(sock, SlotUse::Flow(index));

        let flow = self.flows.get_mut(index)?;
        (flow.client, flow.sock, flow.rx, flow.tx) = (to, sock, rx, tx);
        (flow.waiting, flow.done) = (Some(heir), 0);
        if let Some(client) = self.clients.get_mut(from) {
            client.buffers.give(old_rx.buf());
            client.buffers.give(old_tx.buf());
            client.flows -= 1;
            client.set_slot(old_sock, SlotUse::Unknown);
            let end = client.free_slot(old_sock);
            self.release(end);
        }
        self.queue_accepted(heir, to, slot, sock);
        self.forget_client_if_done(from);
        Some(())
    }
}
