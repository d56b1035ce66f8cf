//! The switch: one thread that moves frames between a device and the pipes of stacks.
//!
//! ```text
//!  round:  frames of the device ─► pipes   frames of the pipes ─► device, a budget each, taking turns
//!          sync everything                 questions, a few tuples each; tuples of the dead, a few
//!          nothing to do? spin a little, then sleep on all of it
//! ```

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::STACKS_MAX;
use super::bed::Bed;
use super::early::Early;
use super::guest::{Counts, Guest};
use super::link::Link;
use super::message::{LEN, Question, Welcome};
use super::plain::{HEAD, plain};
use super::table::{NOBODY, Owner, Table};
use crate::frame::{Arriving, Fragmented, arriving, leaving};
use crate::pipe::{self, sys};
use crate::{Caps, Device, Flow, OpenOptions, Port, PortError, Steering, Tuple};

/// Frames that are looked at together, and frames of one stack that leave in one round.
const BATCH: usize = 64;
/// Buffers of one stack that are fetched before frames are copied there: its share of a batch, mostly.
const DELIVERED_AHEAD: usize = 16;
/// Bytes of one stack after which no more leave in a round.
const BUDGET_BYTES: usize = 96 * 1024;
/// Tuples of dead stacks that are given back to the kernel in one round.
const BURIED: usize = 32;
/// Fragmented packets that are remembered.
const FRAGMENTED_MAX: usize = 64;
/// Slots of a pipe: a few round trips of a fast flow; fewer where they are long.
const PIPE_SLOTS: u32 = 1024;
const PIPE_RING_BYTES: u32 = 16 << 20;
/// Busy rounds in which nobody looks for questions.
const BUSY_MAX: u32 = 8;
/// How long to look for more work before sleeping.
const SPIN: Duration = Duration::from_micros(50);
/// How long stacks of a switch before us have to come back: they look twice a second.
const SETTLE: Duration = Duration::from_millis(1200);
/// How long to sleep while a ring is full that nobody tells of.
const NAP: Duration = Duration::from_millis(1);

/// A device that stacks share.
pub struct Switch {
    nics: Vec<Box<dyn Port>>,
    steering: Option<Arc<dyn Steering>>,
    listener: UnixListener,
    name: String,
    guests: Vec<Guest>,
    table: Table,
    /// What dead stacks had.
    orphans: VecDeque<Tuple>,
    orphan_flows: VecDeque<Flow>,
    /// Who is the first to send.
    turn: usize,
    /// Packets whose first fragment came lately, and whose they are, if anybody's.
    fragments: VecDeque<(Fragmented, Owner)>,
    early: Early,
    /// Frames for nobody.
    foreign: u64,
    /// A frame waits for room on the device.
    blocked: bool,
    /// The device's interface, if it has one.
    link: Option<Link>,
    /// It is down, and its ports may not be waited on: what stacks send is lost, as on a NIC.
    unplugged: bool,
    /// Copies of what leaves, to be judged.
    heads: Box<[[u8; HEAD]; BATCH]>,
    /// Busy rounds since questions were last looked for; at none, the link is looked at as well.
    busy: u32,
    /// Until then a switch before us is still steering, and stacks register again.
    settles: Option<Instant>,
    /// Listener, link, guests and their pipes, the device unless it is unplugged.
    bed: Bed,
}

impl Switch {
    /// Makes `device` a switch that stacks find as `switch:NAME`.
    ///
    /// # Errors
    /// The device has no port, or the name is taken.
    pub fn new(device: Device, name: &str) -> Result<Self, PortError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => PortError::InUse {
                what: format!("switch:{name}"),
                detail: "a switch of that name runs in this network namespace already".into(),
            },
            _ => PortError::io(format!("making switch:{name}"), error),
        };
        let listener = super::address(name).and_then(|at| UnixListener::bind_addr(&at)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        if device.ports.is_empty() {
            return Err(failed(io::Error::other("its device has no port")));
        }
        let inherited = device.steering.as_ref().is_some_and(|steering| steering.is_inherited());
        let interface = device.ports.first().and_then(|port| port.caps().ifindex);
        let link = interface.map(Link::new).transpose().map_err(failed)?;
        let settles = inherited.then(|| Instant::now() + SETTLE);
        let bed = Bed::new().map_err(failed)?;
        bed.add(listener.as_raw_fd()).map_err(failed)?;
        link.iter().try_for_each(|link| bed.add(link.fd())).map_err(failed)?;
        device.ports.iter().try_for_each(|nic| bed.add_nic(&**nic)).map_err(failed)?;
        let mut switch = Self {
            nics: device.ports,
            steering: device.steering,
            listener,
            name: name.to_owned(),
            guests: Vec::new(),
            table: Table::default(),
            orphans: VecDeque::new(),
            orphan_flows: VecDeque::new(),
            turn: 0,
            fragments: VecDeque::new(),
            early: Early::default(),
            foreign: 0,
            blocked: false,
            link,
            unplugged: false,
            heads: Box::new([[0; HEAD]; BATCH]),
            busy: 0,
            settles,
            bed,
        };
        switch.look_at_link(true)?;
        Ok(switch)
    }

    /// Moves frames until `stop` is readable.
    ///
    /// # Errors
    /// The device is gone.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), PortError> {
        let failed = |error| PortError::io("sleeping until the end", error);
        self.bed.add_stop(stop.as_raw_fd()).map_err(failed)?;
        let end = self.run_until_stopped();
        self.bed.remove(stop.as_raw_fd());
        end
    }

    fn run_until_stopped(&mut self) -> Result<(), PortError> {
        let mut idle_since = Instant::now();
        loop {
            if self.round()? {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= SPIN {
                if self.sleep()? {
                    return Ok(());
                }
                idle_since = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// One turn; true if there was work.
    ///
    /// # Errors
    /// The device is gone.
    pub fn round(&mut self) -> Result<bool, PortError> {
        // Before anything is asked of the device, and behind every pause: who asks a port of an interface that is down may
        // wait in the kernel until it is up ([`Port::set_up`]).
        let mut work = self.busy == 0 && self.look_at_link(false)?;
        work |= self.receive()?;
        work |= self.send();
        for nic in &mut self.nics {
            nic.tx_sync()?;
        }
        for guest in &mut self.guests {
            let synced = guest.port.as_mut().map(|port| port.tx_sync());
            guest.dead |= matches!(synced, Some(Err(_)));
        }
        // Looking for questions costs a system call for each stack: in busy times not with every round.
        self.busy += 1;
        if !work || self.busy >= BUSY_MAX || self.guests.iter().any(Guest::is_busy) {
            self.busy = 0;
            work |= self.listen();
            work |= self.bury();
            self.settle()?;
        }
        Ok(work)
    }

    /// The interface may have gone down, or come up.
    fn look_at_link(&mut self, first: bool) -> Result<bool, PortError> {
        let Some(up) = self.link.as_mut().and_then(|link| link.changed(first)) else { return Ok(false) };
        let alone = self.nics.iter_mut().fold(false, |alone, nic| nic.set_up(up) | alone);
        let before = std::mem::replace(&mut self.unplugged, alone && !up);
        let Self { nics, bed, .. } = self;
        match (before, self.unplugged) {
            (false, true) => nics.iter().for_each(|nic| bed.remove_port(&**nic)),
            (true, false) => {
                let failed = |error| PortError::io("waiting for frames again", error);
                nics.iter().try_for_each(|nic| bed.add_nic(&**nic)).map_err(failed)?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Once who was there before has had time to register again, our registrations count.
    fn settle(&mut self) -> Result<(), PortError> {
        if self.settles.is_none_or(|due| Instant::now() < due) {
            return Ok(());
        }
        self.settles = None;
        self.steering.as_ref().map_or(Ok(()), |steering| steering.take_over())
    }

    /// Frames of the device go to whoever registered for them.
    fn receive(&mut self) -> Result<bool, PortError> {
        let Self { nics, guests, table, foreign, fragments, early, .. } = self;
        let mut work = false;
        for nic in nics {
            if nic.rx_sync()? == 0 {
                continue;
            }
            work = true;
            let mut rx = nic.rx();
            while !rx.is_empty() {
                let mut frames: [&[u8]; BATCH] = [&[]; BATCH];
                let mut count = 0;
                for (place, frame) in frames.iter_mut().zip(&mut rx) {
                    *place = frame.bytes();
                    crate::sys::prefetch(place.first());
                    count += 1;
                }
                let frames = &frames[..count];
                let owners = owners(table, frames, false, |frame| long_way(table, fragments, early, frame));
                let mut delivered = 0;
                let present = owners[..count].iter().fold(0u64, |all, owner| all | 1 << (owner & 63));
                for guest in
                    guests.iter_mut().filter(|guest| !guest.dead && present >> (guest.owner & 63) & 1 == 1)
                {
                    let own = frames.iter().zip(owners).filter(|(_, owner)| *owner == guest.owner);
                    if let Some(port) = &mut guest.port {
                        delivered += deliver(&mut **port, &mut guest.counts, own.map(|(frame, _)| *frame));
                    }
                }
                // What waited for one of these comes behind them.
                for (owner, frame) in early.take() {
                    let guest = guests.iter_mut().find(|guest| guest.owner == owner && !guest.dead);
                    let Some(Guest { port: Some(port), counts, .. }) = guest else { continue };
                    delivered += deliver(&mut **port, counts, std::iter::once(&frame[..]));
                }
                *foreign = (*foreign + count as u64).saturating_sub(delivered);
            }
        }
        Ok(work)
    }

    /// Frames of stacks leave, taking turns.
    fn send(&mut self) -> bool {
        let Self { nics, guests, table, turn, blocked, heads, unplugged, link, .. } = self;
        let mac = link.as_ref().map(Link::mac);
        let mut work = false;
        *blocked = false;
        *turn = (*turn + 1) % guests.len().max(1);
        let (late, early) = guests.split_at_mut(*turn);
        for guest in early.iter_mut().chain(late) {
            let queue = guest.owner as usize % nics.len();
            let owner = guest.owner;
            let Guest { port: Some(port), counts, dead, .. } = guest else { continue };
            match port.rx_sync() {
                Ok(0) => continue,
                Ok(_) => work = true,
                Err(_) => {
                    *dead = true;
                    continue;
                }
            }
            if *unplugged {
                port.rx().for_each(drop);
                continue;
            }
            *blocked |= !forward(&mut *nics[queue], &mut **port, counts, (table, owner), (heads, mac));
        }
        work
    }

    /// What stacks ask for.
    fn listen(&mut self) -> bool {
        let mut work = self.accept();
        for index in 0..self.guests.len() {
            let guest = &mut self.guests[index];
            work |= guest.step(&mut self.table, self.steering.as_deref());
            if let Some(question) = guest.question() {
                work = true;
                self.on_question(index, question);
            }
        }
        for guest in self.guests.extract_if(.., |guest| guest.dead) {
            self.bed.remove(guest.stream.as_raw_fd());
            guest.port.iter().for_each(|port| self.bed.remove_port(&**port));
            let (tuples, flows) = self.table.orphan(guest.owner);
            self.orphans.extend(tuples);
            self.orphan_flows.extend(flows);
            work = true;
        }
        work
    }

    fn accept(&mut self) -> bool {
        let Ok((stream, _)) = self.listener.accept() else { return false };
        let allowed = sys::peer_user(&stream).is_ok_and(|user| user == 0 || user == sys::effective_user());
        let free = (1..).find(|owner| self.guests.iter().all(|guest| guest.owner != *owner));
        // Beside the stacks, room for tools that ask.
        let room = self.guests.len() < 2 * STACKS_MAX;
        if let (true, true, Some(owner)) = (allowed, room, free)
            && stream.set_nonblocking(true).and_then(|()| self.bed.add(stream.as_raw_fd())).is_ok()
        {
            self.guests.push(Guest::new(owner, stream));
        }
        true
    }

    fn on_question(&mut self, index: usize, question: Question) {
        let nothing = Welcome::default();
        let Self { guests, table, steering, .. } = self;
        let steering = steering.as_deref();
        let guest = &mut guests[index];
        match (question, guest.port.is_some()) {
            (Question::Hello(name, port), false) => self.welcome(index, name, port),
            (Question::Report, _) => self.report(index),
            (Question::Register(tuple, ports), true) => {
                guest.begin(true, tuple, *ports.start(), *ports.end());
            }
            (Question::Unregister(tuple, ports), true) => {
                guest.begin(false, tuple, *ports.start(), *ports.end());
            }
            (Question::RegisterFlow(flow, verdict), true) => {
                let errno = guest.enter_flow(flow, verdict, table, steering);
                guest.answer(errno, &nothing);
            }
            (Question::UnregisterFlow(flow), true) => {
                guest.take_flow_out(flow, table, steering);
                guest.answer(0, &nothing);
            }
            _ => guest.dead = true,
        }
    }

    /// A stack takes part: it gets a pipe and a block of client ports.
    fn welcome(&mut self, index: usize, name: String, had: u16) {
        let Some(caps) = self.nics.first().map(|nic| nic.caps().clone()) else { return };
        let taken: Vec<Owner> =
            self.guests.iter().filter(|guest| guest.port.is_some()).map(|guest| guest.owner).collect();
        // Who had a block before gets it again, so that its connections have their ports.
        let before = Guest::owner_of(had).into_iter();
        let free = before.chain((1..).take(STACKS_MAX)).find(|owner| !taken.contains(owner));
        let Some(owner) = free else { return self.guests[index].answer(libc::EUSERS, &Welcome::default()) };
        // Whoever had this number and is no stack yet gets the one that becomes free.
        let old = self.guests[index].owner;
        if let Some(other) = self.guests.iter_mut().find(|guest| guest.owner == owner) {
            other.owner = old;
        }
        let Self { guests, steering, bed, .. } = self;
        let guest = &mut guests[index];
        guest.owner = owner;
        let frame_size = caps.frame_bytes_max.next_power_of_two().clamp(2048, 65_536);
        let slots = PIPE_SLOTS.min(PIPE_RING_BYTES / frame_size);
        let options = OpenOptions {
            rx_slots: slots,
            tx_slots: slots,
            frame_size: Some(frame_size),
            ..OpenOptions::default()
        };
        let Ok((port, fds)) = pipe::lend(&name, &options) else {
            return guest.answer(libc::ENOMEM, &Welcome::default());
        };
        let link = steering.as_ref().and_then(|steering| steering.hold());
        guest.answer(0, &Welcome { holds: link.is_some(), ..welcome_of(&caps, guest.client_ports()) });
        let [a, b, c, d] = &fds;
        guest.dead |= sys::send_descriptors(&guest.stream, [a, b, c, d]).is_err();
        if let Some(link) = link {
            guest.dead |= sys::send_descriptors(&guest.stream, [&link]).is_err();
        }
        guest.dead |= bed.add_port(&*port).is_err();
        guest.name = name;
        guest.port = Some(port);
    }

    /// Text for a tool, which reads to the end.
    fn report(&mut self, index: usize) {
        let mut text = String::new();
        let _ = writeln!(text, "switch:{} frames-for-nobody:{}", self.name, self.foreign);
        for guest in self.guests.iter().filter(|guest| guest.port.is_some()) {
            let Counts { rx_frames, rx_no_room, tx_frames, tx_spoofed } = guest.counts;
            let (first, last) = guest.client_ports();
            let tuples = self.table.count(guest.owner);
            let _ = writeln!(
                text,
                "stack {:?} client-ports:{first}-{last} tuples:{tuples} rx_frames:{rx_frames} \
                 rx_no_room:{rx_no_room} tx_frames:{tx_frames} tx_spoofed:{tx_spoofed}",
                guest.name
            );
        }
        let guest = &mut self.guests[index];
        let _ = guest.stream.write_all(text.as_bytes());
        guest.dead = true;
    }

    /// Some tuples of dead stacks go back to the kernel.
    fn bury(&mut self) -> bool {
        let work = !self.orphans.is_empty() || !self.orphan_flows.is_empty();
        for _ in 0..BURIED {
            let Some(tuple) = self.orphans.pop_front() else { break };
            // Unless another stack has inherited it.
            if self.table.remove(tuple, NOBODY) {
                let _ = self.steering.as_ref().map(|steering| steering.unregister(tuple));
            }
        }
        for _ in 0..BURIED {
            let Some(flow) = self.orphan_flows.pop_front() else { break };
            let _ = self.steering.as_ref().map(|steering| steering.unregister_flow(flow));
        }
        work
    }

    #[cfg(test)]
    pub(super) const fn bed(&self) -> &Bed {
        &self.bed
    }

    /// Sleeps until something happens; true if that is the end.
    fn sleep(&mut self) -> Result<bool, PortError> {
        let mut quiet = true;
        let nics = if self.unplugged { &mut [][..] } else { &mut self.nics };
        for nic in &mut *nics {
            quiet &= nic.arm()?;
        }
        let mut timeout = if self.blocked { NAP } else { Duration::from_secs(3600) };
        if let Some(due) = self.settles {
            timeout = timeout.min(due.saturating_duration_since(Instant::now()));
        }
        for nic in &*nics {
            timeout = timeout.min(nic.resync_in().unwrap_or(timeout));
        }
        for port in self.guests.iter_mut().filter_map(|guest| guest.port.as_mut()) {
            quiet &= port.arm().unwrap_or(false);
        }
        let woken = self.bed.sleep(if quiet { timeout } else { Duration::ZERO });
        if woken.broken {
            let device = self.nics.first().map_or_else(String::new, |nic| nic.caps().name.clone());
            return Err(PortError::Gone { device, reason: "its interface was removed or is down".into() });
        }
        Ok(woken.stop)
    }
}

fn welcome_of(caps: &Caps, client_ports: (u16, u16)) -> Welcome {
    Welcome {
        ifindex: caps.ifindex.unwrap_or(0),
        mtu: caps.mtu,
        mtu_max: caps.mtu_max,
        mac: caps.mac,
        local: caps.local,
        rx_checksum: caps.rx_checksum,
        holds: false,
        client_ports,
        interface: caps.interface.clone().unwrap_or_default(),
    }
}

/// Whose `frames` are ([`NOBODY`] for those that nobody registered for), all of them at a time, so that they wait for memory
/// together. `sent`: by stacks. What is not plain is asked the long way.
fn owners(
    table: &Table,
    frames: &[&[u8]],
    sent: bool,
    mut long_way: impl FnMut(&[u8]) -> Option<Owner>,
) -> [Owner; BATCH] {
    let mut looks = [None; BATCH];
    // A flow that is an exception is told by both of its ends.
    if !table.has_exceptions() {
        for (look, frame) in looks.iter_mut().zip(frames) {
            *look = plain(frame, sent).map(|local| table.look(local));
        }
    }
    let mut owners = [NOBODY; BATCH];
    for ((owner, look), frame) in owners.iter_mut().zip(looks).zip(frames) {
        let found = match look {
            Some(look) => table.owner_at(look),
            None => long_way(frame),
        };
        *owner = found.unwrap_or(NOBODY);
    }
    owners
}

/// Whose a frame is that arrived with options, a tag, in a fragment or as an error.
fn long_way(
    table: &Table,
    fragments: &mut VecDeque<(Fragmented, Owner)>,
    early: &mut Early,
    frame: &[u8],
) -> Option<Owner> {
    match arriving(frame)? {
        Arriving::Flow(flow) => table.owner(&flow),
        Arriving::First(flow, name) => {
            let owner = table.owner(&flow);
            // Names come again: one that was somebody's before may be another's now, or the kernel's.
            fragments.retain(|(known, _)| *known != name);
            fragments.push_back((name, owner.unwrap_or(NOBODY)));
            if fragments.len() > FRAGMENTED_MAX {
                fragments.pop_front();
            }
            early.settle(&name, owner);
            owner
        }
        Arriving::Rest(name) => {
            let known = fragments.iter().rev().find(|(of, _)| *of == name).map(|(_, owner)| *owner);
            if known.is_none() {
                early.put(name, frame);
            }
            known
        }
    }
}

/// Copies a stack's frames into its pipe; returns how many there were.
fn deliver<'a>(port: &mut dyn Port, counts: &mut Counts, frames: impl Iterator<Item = &'a [u8]>) -> u64 {
    let before = *counts;
    let mut tx = port.tx();
    tx.prefetch(DELIVERED_AHEAD);
    for frame in frames {
        if tx.space() == 0 {
            // A full ring is synced once more: the stack may have read meanwhile.
            // Who broke its ring is found out at the end of the round.
            let _ = port.tx_sync();
            tx = port.tx();
        }
        if tx.push(frame) {
            counts.rx_frames += 1;
        } else {
            counts.rx_no_room += 1;
        }
    }
    counts.rx_frames - before.rx_frames + counts.rx_no_room - before.rx_no_room
}

/// A stack's frames that may leave go to the device, up to the budget; `false` if the device has no room.
fn forward(
    nic: &mut dyn Port,
    port: &mut dyn Port,
    counts: &mut Counts,
    (table, own): (&Table, Owner),
    (heads, mac): (&mut [[u8; HEAD]; BATCH], Option<[u8; 6]>),
) -> bool {
    let (mut rx, mut tx) = (port.rx(), nic.tx());
    let mut frames: [&[u8]; BATCH] = [&[]; BATCH];
    let (mut count, mut bytes) = (0, 0);
    let room = BATCH.min(tx.space() as usize);
    while count < room && bytes < BUDGET_BYTES {
        let Some(frame) = rx.next() else { break };
        frames[count] = frame.bytes();
        crate::sys::prefetch(frames[count].first());
        bytes += frame.bytes().len();
        count += 1;
    }
    tx.prefetch(count);
    // What is judged is copied first, and what was judged is sent: the stack may write to its memory at any time.
    let frames = &frames[..count];
    let mut judged: [&[u8]; BATCH] = [&[]; BATCH];
    for ((head, judged), frame) in heads.iter_mut().zip(&mut judged).zip(frames) {
        let head = &mut head[..frame.len().min(HEAD)];
        head.copy_from_slice(&frame[..head.len()]);
        *judged = head;
    }
    let judged = &judged[..count];
    let owners = owners(table, judged, true, |head| leaving(head).and_then(|flow| table.owner(&flow)));
    for ((frame, head), owner) in frames.iter().zip(judged).zip(owners) {
        let (Some(mut slot), true) = (tx.slot(), owner == own) else {
            counts.tx_spoofed += 1;
            continue;
        };
        let Some(copy) = slot.get_mut(..frame.len()) else {
            counts.tx_spoofed += 1;
            continue;
        };
        let (first, rest) = copy.split_at_mut(head.len());
        first.copy_from_slice(head);
        rest.copy_from_slice(&frame[head.len()..]);
        // Nobody is another station on the link than we are.
        if let (Some(source), Some(mac)) = (first.get_mut(6..12), mac) {
            source.copy_from_slice(&mac);
        }
        slot.commit(frame.len());
        counts.tx_frames += 1;
    }
    rx.is_empty() || tx.space() > 0
}

/// What the switch `name` says of its stacks.
///
/// # Errors
/// None runs, or it is another user's.
pub fn report(name: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect_addr(&super::address(name)?)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let question: [u8; LEN] = Question::Report.to_bytes();
    stream.write_all(&question)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
