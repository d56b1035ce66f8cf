//! The lean generator: many connections of a message client, at a fraction of what the kernel's sockets cost,
//! so that the server is what is measured.
//!
//! It is a TCP client like any other on the wire (handshake, ACKs, retransmission, FIN), made of the parts of the
//! engine without programs, regions and streams: a port, `proto`'s TCBs, and payload that is counted and compared
//! instead of kept.
//!
//! ```text
//!   load ── which connection sends when ── flows ── TCB ── frame ── port ═══ the server's device
//! ```
//!
//! Left out on purpose, the same for every server: TIME-WAIT (a local port comes round again after all
//! others), fragments, ICMP.

mod link;
mod load;

use std::collections::VecDeque;

use utcp_engine::shard::table::Slab;
use utcp_engine::shard::wheel::{Handle, Wheel};
use utcp_engine::sys;
use utcp_proto::isn::Secret;
use utcp_proto::{
    Actions, Config, Events, FourTuple, Instant, Segment, Tcb, Transmit, TxLimits, UserCall, reset_for,
};

pub use link::{Link, LinkError, Place};
pub use load::{Load, RunError};

/// The byte that messages are made of; an answer has to be the same.
const BYTE: u8 = b'm';
/// Local ports in use: all that a kernel client could have with `ip_local_port_range` widened.
const PORTS: std::ops::Range<u16> = 10_000..65_000;
/// Handshakes under way at a time while a load's connections come up: below every SYN queue and ring.
const OPENING_MAX: usize = 256;
/// Connections at most, in one generator.
pub const CONNECTIONS_MAX: u32 = 131_072;
const NONE: u32 = u32::MAX;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Opening,
    /// Nothing is under way.
    Idle,
    /// A message is.
    Asking,
    /// We closed it, or it failed; no load counts it any more.
    Ending,
}

struct Flow {
    tcb: Tcb,
    tuple: FourTuple,
    /// Its place in `by_ports`.
    key: usize,
    doing: Doing,
    /// When the message under way began (or should have begun), ns.
    began_ns: u64,
    /// Bytes of the answer that are here.
    received: u32,
    /// Messages that this connection still sends.
    messages_left: u32,
    timer: Option<(Handle, u64)>,
    listed: bool,
    /// The TCB is done once it has nothing more to send.
    finished: bool,
}

/// What became of a connection in a turn, for the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Open(u32),
    Answered(u32),
    /// It was doing this.
    Failed(u32, Doing),
}

/// A client host with one link.
pub struct Generator {
    link: Link,
    settings: Config,
    secret: Secret,
    now: Instant,
    flows: Slab<Flow>,
    /// Flow by (server port, local port).
    by_ports: Vec<u32>,
    next_key: usize,
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    to_transmit: VecDeque<u32>,
    headers: VecDeque<(FourTuple, Transmit)>,
    events: VecDeque<Event>,
    /// Open connections that wait for a load, after [`Generator::hold`].
    held: VecDeque<u32>,
    /// Bytes of an answer.
    answer: u32,
    /// Segments that had to be sent again.
    retransmits: u64,
    /// Whoever shares our thread.
    beside: Option<Box<dyn FnMut()>>,
}

impl Generator {
    /// A client on `link`.
    pub fn new(link: Link) -> Self {
        let now = sys::now_ns();
        let settings = Config { mss: link.mss(), nodelay: true, ..Config::DEFAULT };
        Self {
            by_ports: vec![NONE; usize::from(link.place().ports) * PORTS.len()],
            link,
            settings,
            // Known to all and the same in every run: a server still remembers the last run's connections in TIME-WAIT, and
            // takes a new one on the same ports only if sequence numbers and timestamps went on (RFC 6191), as one host's do.
            secret: Secret::new(1, 2),
            now: Instant::from_nanos(now),
            flows: Slab::new(1024),
            next_key: 0,
            wheel: Wheel::new(now, 1024),
            fired: Vec::new(),
            to_transmit: VecDeque::new(),
            headers: VecDeque::new(),
            events: VecDeque::new(),
            held: VecDeque::new(),
            answer: 0,
            retransmits: 0,
            beside: None,
        }
    }

    /// Lets `other` have its turn before each of ours: a server in the same thread.
    pub fn beside(&mut self, other: Box<dyn FnMut()>) {
        self.beside = Some(other);
    }

    /// What arrived and what is due. True if there was anything.
    fn take_in(&mut self) -> Result<bool, LinkError> {
        if let Some(other) = &mut self.beside {
            other();
        }
        self.now = Instant::from_nanos(sys::now_ns());
        let received = self.receive()?;
        Ok(self.run_timers() || received)
    }

    /// What is to be sent. True if there was anything.
    fn send_out(&mut self) -> Result<bool, LinkError> {
        let any = self.transmit_all();
        self.link.flush()?;
        Ok(any)
    }

    /// Both. True if there was anything.
    fn turn(&mut self) -> Result<bool, LinkError> {
        let work = self.take_in()?;
        Ok(self.send_out()? || work)
    }

    /// Keeps connections alive for as long as `more` says, and sleeps in between.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn idle(&mut self, mut more: impl FnMut() -> bool) -> Result<(), LinkError> {
        while more() {
            while self.turn()? {}
            self.link.sleep(std::time::Duration::from_millis(10))?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<bool, LinkError> {
        // The link stands aside while its frames are borrowed.
        let Some(mut batch) = self.link.receive()? else { return Ok(false) };
        while let Some((tuple, segment, payload)) = batch.next() {
            let Some(key) = self.key_of(&tuple) else { continue };
            let index = self.by_ports[key];
            match self.flows.get(index).filter(|flow| flow.tuple == tuple) {
                Some(_) => self.on_segment(index, &segment, payload),
                None => self.headers.extend(reset_for(&segment).map(|reset| (tuple, reset))),
            }
        }
        self.link.give_back(batch);
        Ok(true)
    }

    fn key_of(&self, tuple: &FourTuple) -> Option<usize> {
        let place = self.link.place();
        let local = usize::from(tuple.local.port.checked_sub(PORTS.start)?);
        let server = usize::from(tuple.remote.port.checked_sub(place.port)?);
        let ours = local < PORTS.len() && server < usize::from(place.ports);
        ours.then(|| server * PORTS.len() + local)
    }

    fn on_segment(&mut self, index: u32, segment: &Segment, payload: &[u8]) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        let actions = flow.tcb.on_segment(now, segment);
        if let Some(place) = actions.place {
            let (from, to) = (place.from as usize, (place.from + place.len) as usize);
            // An echo sends back what it got.
            if payload.get(from..to).is_none_or(|bytes| bytes.iter().any(|byte| *byte != BYTE)) {
                return self.fail(index);
            }
        }
        self.act(index, &actions);
    }

    fn act(&mut self, index: u32, actions: &Actions) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if actions.advanced > 0 {
            flow.received += actions.advanced;
            let _ = flow.tcb.on_user(now, UserCall::Received { n: actions.advanced });
        }
        flow.finished |= actions.events.any(Events::CLOSED.with(Events::TIME_WAIT));
        if actions.events.any(Events::CONNECTED) && flow.doing == Doing::Opening {
            flow.doing = Doing::Idle;
            self.events.push_back(Event::Open(index));
        }
        if flow.doing == Doing::Asking && flow.received >= self.answer {
            flow.received -= self.answer;
            flow.doing = Doing::Idle;
            self.events.push_back(Event::Answered(index));
        } else if actions.error.is_some() || actions.events.any(Events::PEER_FIN.with(Events::CLOSED)) {
            self.fail(index);
        }
        self.list(index);
    }

    /// The server ended a connection that we did not, or answered wrongly.
    fn fail(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let was = std::mem::replace(&mut flow.doing, Doing::Ending);
        if was != Doing::Ending {
            self.events.push_back(Event::Failed(index, was));
        }
    }

    /// Begins a connection; `None` if every pair of ports is in use.
    fn open(&mut self, messages: u32) -> Option<u32> {
        let place = self.link.place();
        for _ in 0..self.by_ports.len() {
            let key = self.next_key;
            // Neighbours in time use different server ports, or one listener would get all.
            self.next_key = (self.next_key + PORTS.len()) % self.by_ports.len();
            if self.next_key < PORTS.len() {
                self.next_key = (self.next_key + 1) % PORTS.len();
            }
            if self.by_ports[key] != NONE {
                continue;
            }
            let (server, local) = (key / PORTS.len(), key % PORTS.len());
            let tuple = place.tuple(PORTS.start + local as u16, place.port + server as u16);
            let iss = self.secret.isn(&tuple, self.now);
            let settings = Config { ts_offset: self.secret.ts_offset(&tuple), ..self.settings };
            let flow = Flow {
                tcb: Tcb::connect(&settings, self.now, tuple, iss),
                tuple,
                key,
                doing: Doing::Opening,
                began_ns: self.now.as_nanos(),
                received: 0,
                messages_left: messages,
                timer: None,
                listed: false,
                finished: false,
            };
            let index = self.flows.insert(flow);
            self.by_ports[key] = index;
            self.list(index);
            return Some(index);
        }
        None
    }

    fn user(&mut self, index: u32, call: UserCall) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if let Ok(actions) = flow.tcb.on_user(now, call) {
            flow.finished |= actions.events.any(Events::CLOSED.with(Events::TIME_WAIT));
        }
        self.list(index);
    }

    /// Sends a message that began (or was due) at `began_ns`.
    fn ask(&mut self, index: u32, bytes: u32, began_ns: u64) {
        if let Some(flow) = self.flows.get_mut(index) {
            (flow.doing, flow.began_ns) = (Doing::Asking, began_ns);
        }
        self.user(index, UserCall::Send { added: bytes, more: false, urgent: false });
    }

    /// Ends a connection: as `close` does, or at once and without ceremony.
    fn end(&mut self, index: u32, call: UserCall) {
        if let Some(flow) = self.flows.get_mut(index) {
            flow.doing = Doing::Ending;
        }
        self.user(index, call);
    }

    /// Resets what is left of every connection.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn end_all(&mut self) -> Result<(), LinkError> {
        let all: Vec<u32> = self.flows.iter().map(|(index, _)| index).collect();
        for index in all {
            self.end(index, UserCall::Abort);
            if let Some(flow) = self.flows.get_mut(index) {
                flow.finished = true;
            }
        }
        while !self.flows.is_empty() {
            self.turn()?;
        }
        self.events.clear();
        self.held.clear();
        Ok(())
    }

    fn run_timers(&mut self) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(self.now.as_nanos(), |index| fired.push(index));
        let any = !fired.is_empty();
        for index in fired.drain(..) {
            let now = self.now;
            let Some(flow) = self.flows.get_mut(index) else { continue };
            flow.timer = None;
            let actions = flow.tcb.on_timer(now);
            self.act(index, &actions);
        }
        self.fired = fired;
        any
    }

    fn list(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index).filter(|flow| !flow.listed) {
            flow.listed = true;
            self.to_transmit.push_back(index);
        }
    }

    fn transmit_all(&mut self) -> bool {
        let any = !self.to_transmit.is_empty() || !self.headers.is_empty();
        while self.link.has_room() {
            let Some((tuple, reset)) = self.headers.pop_front() else { break };
            self.link.send(&tuple, &reset);
        }
        for _ in 0..self.to_transmit.len() {
            let Some(index) = self.to_transmit.pop_front() else { break };
            if let Some(flow) = self.flows.get_mut(index) {
                flow.listed = false;
            }
            if !self.transmit(index) {
                // The ring is full: its turn comes again after the flush.
                self.list(index);
                break;
            }
        }
        any
    }

    /// Sends what a TCB has to send; false if there is no room for it.
    fn transmit(&mut self, index: u32) -> bool {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return true };
        loop {
            if !self.link.has_room() {
                return false;
            }
            let mut transmit = Transmit::default();
            if !flow.tcb.poll_into(now, TxLimits::WIRE, &mut transmit) {
                break;
            }
            self.retransmits += u64::from(transmit.retransmission);
            self.link.send(&flow.tuple, &transmit);
        }
        if flow.finished {
            self.forget(index);
            return true;
        }
        let due = flow.tcb.next_deadline().filter(|due| !due.is_never()).map(Instant::as_nanos);
        if let Some(due) = due
            && flow.timer.is_none_or(|(_, filed)| due < filed)
        {
            if let Some((handle, _)) = flow.timer {
                self.wheel.remove(handle);
            }
            flow.timer = Some((self.wheel.insert(due, index), due));
        }
        true
    }

    fn forget(&mut self, index: u32) {
        let Some(flow) = self.flows.remove(index) else { return };
        self.by_ports[flow.key] = NONE;
        if let Some((handle, _)) = flow.timer {
            self.wheel.remove(handle);
        }
        // The load hears of it by an event that stands in the queue already, or it ended it itself.
    }
}
