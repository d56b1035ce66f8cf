//! What segments do: to flows, to half-open and TIME-WAIT records, and to nothing at all.
//!
//! A segment comes off a device or straight from another flow of this host; the way back is the same
//! ([`Path`]). Everything here works on numbers; the only bytes moved are the payload's, once.

use std::sync::atomic::Ordering;

use utcp_abi::socket::{Addr, intent, status};
use utcp_proto::{
    Actions, DropReason, Endpoint, Events, Flags, FourTuple, HalfOpenTimer, HalfOpenVerdict, Segment,
    SocketError, TimeWait, TimeWaitVerdict, Transmit, UserCall, reset_for,
};

use super::client::SlotUse;
use super::flow::{Path, Stream};
use super::report;
use super::streams::send_limit;
use super::table::Entry;
use super::{Shard, TIME_WAIT_MAX, TimeWaitRecord, Timer};
use crate::sys;

/// Where a segment's payload is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Payload<'a> {
    /// It has none.
    None,
    /// In a frame.
    Frame(&'a [u8]),
    /// In the sender's tx stream, at this position.
    Stream(Stream, u64),
}

impl Shard {
    /// A segment arrived for `tuple` (our side is `local`); `path` leads back to its sender.
    pub(super) fn on_segment(&mut self, tuple: &FourTuple, seg: &Segment, payload: Payload<'_>, path: Path) {
        match self.table.get(tuple) {
            Some(Entry::Flow(index)) if self.is_over(index) => {
                // It ended in this batch. What comes now is for nobody, or the beginning of something new.
                self.end_flow(index);
                self.on_segment(tuple, seg, payload, path);
            }
            Some(Entry::Flow(index)) => self.on_flow_segment(index, seg, payload),
            Some(Entry::HalfOpen(index)) => self.on_half_open_segment(index, seg, payload),
            Some(Entry::TimeWait(index)) => self.on_time_wait_segment(index, seg, payload, path),
            None => self.on_new_segment(tuple, seg, payload, path),
        }
    }

    /// A flow that waits for nothing but the end of the batch.
    fn is_over(&self, index: u32) -> bool {
        self.flows.get(index).is_some_and(|flow| flow.finished && !flow.tcb.has_output())
    }

    /// A segment for a flow.
    pub(super) fn on_flow_segment(&mut self, index: u32, seg: &Segment, payload: Payload<'_>) {
        let now = self.now;
        if seg.len > 0 || self.flows.get(index).is_some_and(|flow| flow.tcb.is_probe(seg)) {
            self.take_consumed(index);
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.tcb.borrow_for(seg, &mut self.loans);
        let mut actions = flow.tcb.on_segment(now, seg);
        flow.tcb.give_back(&mut self.loans);
        if actions.events.any(Events::CHALLENGE.with(Events::CONNECTED)) {
            self.before_act(index, seg, &mut actions);
        }
        self.act(index, &actions, payload);
    }

    /// What a TCB may not decide alone, and what is to be learned from the answer to a SYN.
    #[cold]
    fn before_act(&mut self, index: u32, seg: &Segment, actions: &mut Actions) {
        if actions.events.any(Events::CONNECTED) {
            self.learn_from_answer(index, seg, actions);
        }
        if actions.events.any(Events::CHALLENGE) && !self.admit_challenge() {
            let Some(flow) = self.flows.get_mut(index) else { return };
            flow.tcb.withhold_challenge();
            actions.transmit = flow.tcb.has_output();
        }
    }

    /// RFC 5961 §7: whether another challenge ACK may leave, counted either way.
    fn admit_challenge(&mut self) -> bool {
        let admitted = self.challenges.admit(&self.config.secret, self.now);
        if admitted {
            self.counters.challenge_acks += 1;
        } else {
            self.counters.challenge_acks_withheld += 1;
        }
        admitted
    }

    fn count_drop(&mut self, reason: DropReason) {
        let counters = &mut self.counters;
        counters.dropped_segments += 1;
        match reason {
            DropReason::RstNotExact
            | DropReason::RstOutOfWindow
            | DropReason::SynInWindow
            | DropReason::AckOfUnsent
            | DropReason::AckTooOld => counters.dropped_blind += 1,
            DropReason::Paws => counters.dropped_paws += 1,
            DropReason::ReassemblyFull => counters.dropped_reassembly_full += 1,
            _ => {}
        }
    }

    /// Tells the TCB what the program read since the last segment, so that its window is true.
    fn take_consumed(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let client = flow.client;
        let Some(region) = self.clients.get(client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        match flow.take_consumed(socket) {
            Ok(0) => {}
            Ok(n) => self.user(index, UserCall::Received { n }),
            Err(error) => self.throw_out(client, error),
        }
    }

    /// Carries out what a TCB decided: copy, release, publish, report.
    pub(super) fn act(&mut self, index: u32, actions: &Actions, payload: Payload<'_>) {
        if let Some(reason) = actions.drop {
            self.count_drop(reason);
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        if let Some(place) = actions.place {
            let at = flow.rx.tail.wrapping_add(u64::from(place.at));
            match payload {
                Payload::Frame(bytes) => {
                    if let Some(part) = bytes.get(place.from as usize..(place.from + place.len) as usize) {
                        flow.rx.write(at, part);
                    }
                }
                Payload::Stream(from, position) => {
                    let mut at = at;
                    from.read(position.wrapping_add(u64::from(place.from)), place.len, |bytes| {
                        flow.rx.write(at, bytes);
                        at = at.wrapping_add(bytes.len() as u64);
                    });
                }
                Payload::None => {}
            }
        }
        if actions.released > 0 {
            flow.tx.head = flow.tx.head.wrapping_add(u64::from(actions.released));
            socket.tx_head.store(flow.tx.head, Ordering::Release);
        }
        if let Some(ahead) = actions.urgent {
            // The mark before the byte: nobody may read past it unawares.
            socket
                .rx_urgent
                .store(flow.rx.tail.wrapping_add(u64::from(ahead)).wrapping_add(1), Ordering::Release);
            self.news(index, libc::EPOLLPRI);
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        if actions.advanced > 0 {
            if flow.tcb.acks_when_read() {
                socket.status.fetch_or(status::ACK_WAITS, Ordering::AcqRel);
            }
            if flow.rx.len() == 0 {
                self.arrival.stamp(socket);
            }
            flow.rx.tail = flow.rx.tail.wrapping_add(u64::from(actions.advanced));
            // Release: the bytes before the index that publishes them.
            socket.rx_tail.store(flow.rx.tail, Ordering::Release);
            // The urgent byte may be among them, its mark long told.
            let urgent = if socket.rx_urgent.load(Ordering::Relaxed) != 0 { libc::EPOLLPRI } else { 0 };
            self.news(index, libc::EPOLLIN | libc::EPOLLRDNORM | urgent);
        }
        if actions.released > 0 {
            self.offer_space(index);
        }
        if actions.events.any(Events::RECV_LIMITED) {
            self.grow_rx(index);
        }
        // Bytes that came and went are said above; but for who was opened early any segment may complete the handshake.
        let routine = actions.events.without(Events::READABLE.with(Events::WRITABLE)).is_empty();
        if !routine
            || actions.error.is_some()
            || self.flows.get(index).is_some_and(|flow| flow.early.is_some())
        {
            self.on_events(index, actions);
        }
        self.act_quietly(index, actions.transmit);
    }

    /// What is left of a TCB's decision that asks for no more than, perhaps, to `transmit`.
    #[inline]
    pub(super) fn act_quietly(&mut self, index: u32, transmit: bool) {
        if transmit {
            self.list_transmit(index);
        }
        // Who is listed is filed anew when it has sent what it has.
        if self.flows.get(index).is_some_and(|flow| !flow.transmit_listed) {
            self.refile(index);
        }
    }

    /// The tx stream has room: tells a program that met it full, once a third of it is free.
    pub(super) fn offer_space(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        if socket.intent.load(Ordering::SeqCst) & intent::TX_FULL == 0 {
            return;
        }
        let limit = send_limit(&socket.options).map_or(flow.tx.capacity(), |set| set.min(flow.tx.capacity()));
        let free = limit.saturating_sub(flow.tx.len());
        // Linux tcp_stream_memory_free, when it is about waking a writer.
        let sent_enough = flow.lowat == u32::MAX || u64::from(flow.tcb.unsent()) * 2 < u64::from(flow.lowat);
        let granted = free * 3 >= limit && sent_enough;
        if granted {
            socket.intent.fetch_and(!intent::TX_FULL, Ordering::SeqCst);
            if flow.rx.len() == 0 && !flow.rx_fin {
                self.arrival.stamp(socket);
            }
            self.news(index, libc::EPOLLOUT | libc::EPOLLWRNORM);
        }
        if let Some(flow) = self.flows.get_mut(index) {
            flow.waits_for_room = !granted;
        }
    }

    fn on_events(&mut self, index: u32, actions: &Actions) {
        let events = actions.events;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if flow.early.is_some() && flow.tcb.state() != utcp_proto::State::SynReceived {
            let listener = flow.early.take();
            listener.into_iter().for_each(|listener| self.no_longer_early(listener));
        }
        let waits = self.waits_at(index);
        let Some(flow) = self.flows.get_mut(index) else { return };
        let Some(region) = self.clients.get(flow.client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(flow.sock) else { return };
        let mut news = 0;
        if events.any(Events::CONNECTED) {
            if flow.pair.is_none() {
                socket.tx_buf.store(flow.tx.buf().0, Ordering::Release);
            }
            // Who came by a listener is connected before anybody knows of it.
            if socket.status.load(Ordering::Relaxed) & (status::CONNECTED | status::CONNECTING)
                != status::CONNECTED
            {
                socket.status.fetch_or(status::CONNECTED, Ordering::AcqRel);
                socket.status.fetch_and(!status::CONNECTING, Ordering::AcqRel);
            }
            // Who waited for bytes did so on the bell of a socket without a place in a pair region.
            if flow.pair.is_some() && socket.rx_bell.ring() {
                sys::futex_wake_all(socket.rx_bell.word());
            }
            news |= libc::EPOLLOUT | libc::EPOLLWRNORM;
        }
        if events.any(Events::PEER_FIN) {
            flow.rx_fin = true;
            let both = socket.status.load(Ordering::Relaxed) & status::TX_FIN != 0;
            let hup = if both { status::HUP } else { 0 };
            socket.status.fetch_or(status::RX_FIN | hup, Ordering::AcqRel);
            news |= libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDHUP;
            news |= if both { libc::EPOLLHUP } else { 0 };
        }
        let over = events.any(Events::CLOSED) || events.any(Events::TIME_WAIT);
        if let Some(error) = actions.error.filter(|_| events.any(Events::CLOSED)) {
            let errno = errno(error);
            let unborn = socket.status.load(Ordering::Relaxed) & status::CONNECTED == 0;
            socket.cause.store(errno, Ordering::Relaxed);
            socket.error.store(errno, Ordering::Release);
            socket.status.fetch_and(!status::CONNECTING, Ordering::AcqRel);
            socket.status.fetch_or(status::DEAD | status::HUP, Ordering::AcqRel);
            news |= libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP;
            if unborn {
                self.learn_from_silence(index, actions);
            }
        } else if over {
            socket.status.fetch_or(status::HUP | status::CLOSED, Ordering::AcqRel);
            news |= libc::EPOLLHUP;
        }
        if news != 0 && !waits {
            self.arrival.stamp(socket);
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        if over {
            flow.finished = true;
            // Between two programs of one host nothing can be delayed or lost on its way, so there is no
            // old duplicate to wait for.
            flow.time_wait = events.any(Events::TIME_WAIT) && matches!(flow.path, Path::Device { .. });
            self.list_transmit(index);
        }
        self.news(index, news);
    }

    /// Drops a flow whose last segment is out.
    pub(super) fn end_flow(&mut self, index: u32) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.tcb.end_loan(&mut self.loans);
        let (client_index, sock, tuple, closed) =
            (flow.client, flow.sock, flow.tuple, flow.closed_by_program);
        let (rx, tx) = (flow.rx.buf(), flow.tx.buf());
        let (early, news, timer) = (flow.early, flow.news, flow.timer);
        let time_wait = flow.tcb.time_wait(now).filter(|_| flow.time_wait);
        if !closed && let Some(info) = self.clients.get(client_index).and_then(|c| c.region.info(sock)) {
            // TCP_INFO goes on to say how it ended.
            report::fill_info(&flow.tcb.info(now), report::headers(&tuple), info);
        }
        self.flows.discard(index);
        self.counters.closed += 1;
        if let Some(listener) = early {
            self.no_longer_early(listener);
        }
        if news.listed && !closed {
            // The index may be used again before the batch ends.
            self.tell_socket(client_index, sock, news.events);
        }
        if let Some((handle, _)) = timer {
            self.wheel.remove(handle);
        }
        self.table.remove(&tuple, Entry::Flow(index));
        if let Some(record) = time_wait {
            self.enter_time_wait(tuple, record);
        }
        let Some(client) = self.clients.get_mut(client_index) else { return };
        client.buffers.give(tx);
        client.flows -= 1;
        // The program may still read what arrived.
        client.set_slot(sock, SlotUse::Ended(rx));
        if closed {
            let end = client.free_slot(sock);
            self.release(end);
        }
        self.forget_client_if_done(client_index);
    }

    pub(super) fn enter_time_wait(&mut self, tuple: FourTuple, record: TimeWait) {
        if self.time_wait.len() >= TIME_WAIT_MAX {
            self.counters.time_wait_overflows += 1;
            self.forget_ended_time_waits();
            if let Some(&(oldest, _)) = self.time_wait_order.front() {
                self.end_time_wait_now(oldest);
            }
        }
        self.time_wait_count = self.time_wait_count.wrapping_add(1);
        let number = self.time_wait_count;
        let timer_slot = self.time_wait.insert(TimeWaitRecord {
            record,
            number,
            timer: self.wheel.insert(record.expires().as_nanos(), Timer::TimeWait(u32::MAX)),
        });
        self.file_time_wait(timer_slot);
        if self.time_wait_order.len() >= 2 * TIME_WAIT_MAX {
            // One at the front lives on, by FINs that are sent again, and keeps the place of those behind it that are long gone.
            let time_wait = &self.time_wait;
            self.time_wait_order
                .retain(|&(index, number)| time_wait.get(index).is_some_and(|r| r.number == number));
        }
        self.time_wait_order.push_back((timer_slot, number));
        self.table.insert(tuple, Entry::TimeWait(timer_slot));
    }

    /// Those at the front of the order whose records are gone. A record's place may be another's by now, hence the numbers.
    fn forget_ended_time_waits(&mut self) {
        while let Some(&(index, number)) = self.time_wait_order.front() {
            if self.time_wait.get(index).is_some_and(|record| record.number == number) {
                return;
            }
            self.time_wait_order.pop_front();
        }
    }

    fn file_time_wait(&mut self, index: u32) {
        if let Some(record) = self.time_wait.get_mut(index) {
            self.wheel.remove(record.timer);
            let due = record.record.expires().as_nanos();
            record.timer = self.wheel.insert(due, Timer::TimeWait(index));
        }
    }

    /// A TIME-WAIT record's timer fired.
    pub(super) fn end_time_wait(&mut self, index: u32) {
        if let Some(record) = self.time_wait.remove(index) {
            self.table.remove(&record.record.tuple, Entry::TimeWait(index));
            self.forget_ended_time_waits();
        }
    }

    /// Drops a TIME-WAIT record before its time.
    pub(super) fn end_time_wait_now(&mut self, index: u32) {
        if let Some(record) = self.time_wait.get(index) {
            self.wheel.remove(record.timer);
            self.end_time_wait(index);
        }
    }

    fn on_time_wait_segment(&mut self, index: u32, seg: &Segment, payload: Payload<'_>, path: Path) {
        let now = self.now;
        let Some(record) = self.time_wait.get_mut(index) else { return };
        let tuple = record.record.tuple;
        match record.record.on_segment(now, seg) {
            TimeWaitVerdict::Drop(reason) => self.count_drop(reason),
            TimeWaitVerdict::Ack(transmit, reason) => {
                self.answer_for_time_wait(index, &transmit, reason, path);
            }
            // RFC 9293 §3.10.7.4: it "may accept a new SYN from the remote TCP endpoint": where nobody accepts anything, nothing may
            // end the wait either.
            TimeWaitVerdict::Reuse { .. } if self.find_listener(&tuple).is_none() => {
                let Some(record) = self.time_wait.get_mut(index) else { return };
                match record.record.refuse(now) {
                    TimeWaitVerdict::Ack(transmit, reason) => {
                        self.answer_for_time_wait(index, &transmit, reason, path);
                    }
                    _ => self.count_drop(DropReason::SynInWindow),
                }
            }
            TimeWaitVerdict::Reuse { iss } => {
                self.end_time_wait_now(index);
                self.on_syn(&tuple, seg, payload, path, Some(iss));
            }
            TimeWaitVerdict::Remove => self.end_time_wait_now(index),
        }
    }

    /// The ACK out of a TIME-WAIT record, whose time may begin anew.
    fn answer_for_time_wait(&mut self, index: u32, transmit: &Transmit, reason: DropReason, path: Path) {
        self.file_time_wait(index);
        let Some(tuple) = self.time_wait.get(index).map(|record| record.record.tuple) else { return };
        if !reason.is_guess() || self.admit_challenge() {
            self.send_for(&tuple, transmit, path);
        }
    }

    /// A segment for a four-tuple that nothing stands at.
    fn on_new_segment(&mut self, tuple: &FourTuple, seg: &Segment, payload: Payload<'_>, path: Path) {
        // Whoever may not be sent to gets no answer, as from the kernel.
        if matches!(path, Path::Device { .. }) && self.is_barred(tuple, path) {
            self.counters.dropped_barred += 1;
            return;
        }
        if self.is_martian(tuple, path) {
            self.counters.dropped_martians += 1;
            return;
        }
        if seg.flags.any(Flags::SYN) && seg.ack.is_none() && !seg.flags.any(Flags::RST) {
            self.on_syn(tuple, seg, payload, path, None);
        } else if !self.on_cookie(tuple, seg, payload, path) {
            self.refuse(tuple, seg, path);
        }
    }

    /// Whether a segment that came over a device has a source that none can have there (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3): this host
    /// itself, a group, nobody. The kernel throws such packets away before anybody looks at them; here they come to us first, and
    /// whoever is near enough to get the answer would pass for a program of this host.
    fn is_martian(&self, tuple: &FourTuple, path: Path) -> bool {
        let Path::Device { port, .. } = path else { return false };
        let from = tuple.remote.addr;
        // The kernel's end of a TAP device is a neighbour of the station there, though it is this host's address.
        let own = self.is_own(from) || !self.is_station(port) && self.host.is_local(from);
        own || from.is_loopback() || from.is_unspecified() || from.is_multicast() || from.is_broadcast()
    }

    /// RFC 9293 §3.10.7.1: a segment for no connection is answered by a reset.
    pub(super) fn refuse(&mut self, tuple: &FourTuple, seg: &Segment, path: Path) {
        if let Some(reset) = reset_for(seg) {
            self.counters.resets_sent += 1;
            self.send_for(tuple, &reset, path);
        }
    }

    fn on_half_open_segment(&mut self, index: u32, seg: &Segment, payload: Payload<'_>) {
        let now = self.now;
        let Some(half) = self.half_open.get_mut(index) else { return };
        let (tuple, path) = (half.record.tuple, half.path);
        match half.record.on_segment(now, seg) {
            HalfOpenVerdict::Established => self.establish(index, seg, payload),
            HalfOpenVerdict::ResendSynAck => {
                let transmit = half.record.syn_ack(now);
                self.send_for(&tuple, &transmit, path);
            }
            HalfOpenVerdict::Ack(transmit, reason) => {
                if !reason.is_guess() || self.admit_challenge() {
                    self.send_for(&tuple, &transmit, path);
                }
            }
            HalfOpenVerdict::Reset(transmit, _) => self.send_for(&tuple, &transmit, path),
            HalfOpenVerdict::Remove(_) => self.drop_half_open(index),
            HalfOpenVerdict::Drop(reason) => self.count_drop(reason),
        }
    }

    pub(super) fn on_half_open_timer(&mut self, index: u32) {
        let now = self.now;
        let Some(half) = self.half_open.get_mut(index) else { return };
        half.timer = None;
        let (tuple, path) = (half.record.tuple, half.path);
        match half.record.on_timer(now) {
            HalfOpenTimer::Resend => {
                let transmit = half.record.syn_ack(now);
                self.file_half_open(index);
                self.send_for(&tuple, &transmit, path);
            }
            HalfOpenTimer::GiveUp => {
                self.drop_half_open(index);
                if let Path::Local(connected) = path {
                    self.nudge(connected);
                }
            }
            HalfOpenTimer::Wait => self.file_half_open(index),
        }
    }

    /// Sends a segment that no TCB made (a SYN-ACK, a reset, an ACK out of TIME-WAIT).
    pub(super) fn send_for(&mut self, tuple: &FourTuple, transmit: &Transmit, path: Path) {
        match path {
            Path::Local(_) => {
                let seg = Segment::from_transmit(transmit);
                self.counters.local_segments += 1;
                self.on_segment(&tuple.reversed(), &seg, Payload::None, Path::Local(u32::MAX));
            }
            Path::Device { port, next_hop } => self.send_header(port, next_hop, tuple, transmit),
        }
    }
}

/// An address in shared memory's form.
pub(super) fn shared_addr(endpoint: Endpoint) -> Addr {
    Addr { ip: endpoint.addr.0, port: endpoint.port, scope: 0 }
}

/// The errno that stands for a connection's end.
pub(super) fn errno(error: SocketError) -> i32 {
    match error {
        SocketError::Refused => libc::ECONNREFUSED,
        SocketError::BrokenPipe => libc::EPIPE,
        SocketError::TimedOut => libc::ETIMEDOUT,
        SocketError::Aborted => libc::ECONNABORTED,
        SocketError::HostUnreachable => libc::EHOSTUNREACH,
        SocketError::NetUnreachable => libc::ENETUNREACH,
        SocketError::ProtocolUnreachable => libc::ENOPROTOOPT,
        SocketError::HostDown => libc::EHOSTDOWN,
        SocketError::NotOnNetwork => libc::ENONET,
        SocketError::SourceRouteFailed => libc::EOPNOTSUPP,
        SocketError::MessageSize => libc::EMSGSIZE,
        SocketError::Protocol => libc::EPROTO,
        SocketError::AccessDenied => libc::EACCES,
        _ => libc::ECONNRESET,
    }
}
