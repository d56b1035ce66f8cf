//! Telling programs, once per batch: however many segments a flow got, its sets get one bit and its
//! sleepers one wake-up (flow-level event aggregation).
#![allow(clippy::cast_sign_loss, reason = "libc's EPOLL bits are signed, epoll_event's are not")]

use utcp_abi::Region;
use utcp_abi::bell::Bell;
use utcp_abi::listener::Listener as SharedListener;
use utcp_abi::set::Member;
use utcp_abi::socket::file;

use super::{Place, Shard, ToControl};
use crate::sys;

/// A set in which a bit was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    client: u32,
    set: u32,
}

/// Events that every interest gets, asked for or not (epoll_ctl(2)).
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

impl Shard {
    /// Notes that `events` became true for a flow.
    pub(super) fn news(&mut self, index: u32, events: i32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.news.events |= events as u32;
        if !flow.news.listed && events != 0 {
            flow.news.listed = true;
            self.with_news.push(index);
        }
    }

    /// Sets readiness bits and rings bells for everything that happened in this batch.
    pub(super) fn tell_programs(&mut self) {
        let mut list = std::mem::take(&mut self.with_news);
        for index in list.drain(..) {
            let Some(flow) = self.flows.get_mut(index) else { continue };
            let (client, sock) = (flow.client, flow.sock);
            let news = std::mem::take(&mut flow.news);
            self.tell_socket(client, sock, news.events);
        }
        self.with_news = list;
        let mut list = std::mem::take(&mut self.listeners_with_news);
        for index in list.drain(..) {
            self.tell_listener(index);
        }
        self.listeners_with_news = list;
        self.ring_touched();
    }

    /// A flow ends with news untold: tell them now, its index may be used again.
    pub(super) fn tell_socket(&mut self, client_index: u32, sock: u32, events: u32) {
        let Some(region) = self.clients.get(client_index).map(|c| c.region) else { return };
        let Some(socket) = region.socket(sock) else { return };
        if socket.file.load(std::sync::atomic::Ordering::Relaxed) & file::ASYNC != 0 && events != 0 {
            self.tell_by_signal(client_index, sock);
        }
        for member in &socket.members {
            // Most sockets are in one set.
            let word = member.load(std::sync::atomic::Ordering::SeqCst);
            if word != 0 {
                self.mark(client_index, region, word, events);
            }
        }
        self.wake_sleepers(&socket.rx_bell, &socket.tx_bell, events);
        if let Some(side) = self.side_of(client_index, sock) {
            self.wake_sleepers(&side.rx_bell, &side.tx_bell, events);
        }
    }

    #[cold]
    fn tell_by_signal(&mut self, client_index: u32, sock: u32) {
        let Some(client) = self.clients.get(client_index).map(|c| c.shared.id) else { return };
        // A program that has so many is signalled anyway, and must not hold up what others ask.
        if !self.outbox.is_crowded() {
            self.outbox.send(ToControl::Signal(Place { client, sock }));
        }
    }

    fn wake_sleepers(&mut self, rx_bell: &Bell, tx_bell: &Bell, events: u32) {
        let input = (libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32 | ALWAYS;
        let output = libc::EPOLLOUT as u32 | ALWAYS;
        if events & input != 0 && rx_bell.ring() {
            self.counters.wakes_socket += 1;
            sys::futex_wake_all(rx_bell.word());
        }
        if events & output != 0 && tx_bell.ring() {
            self.counters.wakes_socket += 1;
            sys::futex_wake_all(tx_bell.word());
        }
    }

    /// Sets the bit of one interest, if it wants any of `events`. Returns the set, if it did.
    fn mark(&mut self, client: u32, region: Region, word: u64, events: u32) -> Option<Member> {
        let member = Member::unpack(word)?;
        if events & (u32::from(member.events) | ALWAYS) == 0 {
            return None;
        }
        region.ready(member.set)?.set(member.interest);
        if !member.exclusive {
            self.touch(client, member.set);
        }
        Some(member)
    }

    fn touch(&mut self, client: u32, set: u32) {
        let touched = Touched { client, set };
        // Few sets per batch, and mostly the same one as just before.
        if self.touched_sets.last() != Some(&touched) && !self.touched_sets.contains(&touched) {
            self.touched_sets.push(touched);
        }
    }

    /// Connections wait: every set hears of it, but of the EXCLUSIVE ones only one sleeper is woken.
    fn tell_listener(&mut self, index: u32) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        listener.news = false;
        let (client, sock, slot) = (listener.client, listener.sock, listener.slot);
        let Some(region) = self.clients.get(client).map(|c| c.region) else { return };
        let (Some(shared), Some(socket)) = (region.listener(slot), region.socket(sock)) else { return };
        let asleep = self.mark_listener(client, region, shared);
        if let Some(set) = asleep {
            self.touch(client, set);
        }
        self.wake_sleepers(&socket.rx_bell, &socket.tx_bell, libc::EPOLLIN as u32);
    }

    /// Sets the bits of a listener's interests; returns one EXCLUSIVE set that sleeps, a different one each time.
    fn mark_listener(&mut self, client: u32, region: Region, shared: &SharedListener) -> Option<u32> {
        let start = self.counters.accepts as usize;
        let count = shared.members.len();
        let mut asleep = None;
        for i in 0..count {
            let word = shared.members[(start + i) % count].load(std::sync::atomic::Ordering::SeqCst);
            let Some(member) = self.mark(client, region, word, libc::EPOLLIN as u32) else { continue };
            if member.exclusive
                && asleep.is_none()
                && region.set(member.set).is_some_and(|s| s.bell.is_armed())
            {
                asleep = Some(member.set);
            }
        }
        asleep
    }

    /// Rings each touched set's bell, if somebody sleeps there.
    pub(super) fn ring_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched_sets);
        for Touched { client, set } in touched.drain(..) {
            let Some(client) = self.clients.get(client) else { continue };
            if client.region.set(set).is_some_and(|s| s.bell.ring()) {
                self.counters.wakes_set += 1;
                client.ring_set(set);
            }
        }
        self.touched_sets = touched;
    }
}
