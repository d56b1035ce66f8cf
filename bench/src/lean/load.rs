//! Which connection sends when.

use std::collections::VecDeque;
use std::time::Duration;

use utcp_engine::sys;
use utcp_proto::UserCall;

use super::{Doing, Event, Generator, LinkError, OPENING_MAX};
use crate::load::Summary;
use crate::meter::Meter;

/// Errors at most before a load is given up: a server that refuses everything is no result.
const ERRORS_MAX: u64 = 10_000;
/// How long the connections of a load may take to come up.
const OPENING_PATIENCE: Duration = Duration::from_secs(60);
/// Turns between looks at the clock's limit; a turn is well below a millisecond.
const TURNS: u32 = 16;

/// A load of messages.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of a message, each way.
    pub bytes: u32,
    /// Messages of a connection, after which it is closed and another one opened; 0: connections stay.
    pub messages: u32,
    /// Connections at a time.
    pub connections: u32,
    /// Messages under way at a time, over the connections in turn; 0: one on each.
    pub in_flight: u32,
    /// Messages per second that are asked for (open loop); none: the next begins when one is done. Latency counts
    /// from when a message should have begun.
    pub rate: Option<f64>,
    /// Every answer is acknowledged at once. Without it that depends on when the connection's next message leaves,
    /// and so on how many connections there are.
    pub quick_ack: bool,
    /// How long at least.
    pub time: Duration,
    /// How many messages at least.
    pub operations: u64,
}

/// A load under way.
struct Run {
    load: Load,
    meter: Meter,
    start_ns: u64,
    /// Open connections without a message under way, in the order of their turns.
    idle: VecDeque<u32>,
    opening: usize,
    open: usize,
    in_flight: u32,
    /// When the next message is due, ns (open loop).
    due_ns: f64,
}

impl Run {
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds below 2^52")]
    fn summary(&self, now_ns: u64) -> Summary {
        self.meter.summary(now_ns.saturating_sub(self.start_ns).max(1) as f64 / 1e9)
    }
}

impl Generator {
    /// Brings connections up and leaves them open, idle.
    ///
    /// # Errors
    /// When the link is gone, or the connections do not come up.
    pub fn hold(&mut self, connections: u32) -> Result<Summary, RunError> {
        let load = Load {
            bytes: 0,
            messages: 0,
            connections,
            in_flight: 0,
            rate: None,
            quick_ack: false,
            time: Duration::ZERO,
            operations: 0,
        };
        self.end_all()?;
        let mut run = self.begin(load)?;
        self.bring_up(&mut run)?;
        run.meter.operations = u64::from(connections);
        let summary = run.summary(self.now.as_nanos());
        self.held = run.idle;
        Ok(summary)
    }

    /// Runs a load, over the connections that are held if they are as many as it wants to stay, else over new ones.
    ///
    /// # Errors
    /// When the link is gone, or the server refuses everything.
    pub fn run(&mut self, load: Load) -> Result<Summary, RunError> {
        let mut run = self.begin(load)?;
        if load.messages == 0 && self.held.len() == load.connections as usize {
            run.idle = std::mem::take(&mut self.held);
            run.open = run.idle.len();
            if load.quick_ack {
                for index in run.idle.clone() {
                    self.user(index, UserCall::SetQuickAck(true));
                }
            }
        } else {
            self.end_all()?;
        }
        if load.messages == 0 {
            self.bring_up(&mut run)?;
        }
        (run.start_ns, run.meter.operations) = (sys::now_ns(), 0);
        run.due_ns = ns(run.start_ns);
        let end_ns = run.start_ns + u64::try_from(load.time.as_nanos()).unwrap_or(u64::MAX);
        let before = self.retransmits;
        loop {
            let mut idle_turns = 0;
            for _ in 0..TURNS {
                let mut work = self.take_in()?;
                if load.quick_ack {
                    work |= self.send_out()?;
                }
                // A message goes with the ACK of the handshake or of the answer before it, as a client sends it that runs to completion.
                self.take_events(&mut run)?;
                self.feed(&mut run);
                work |= self.send_out()?;
                idle_turns = if work { 0 } else { idle_turns + 1 };
            }
            if idle_turns == TURNS {
                // The device's receive thread may want this very core.
                sys::yield_now();
            }
            if self.now.as_nanos() >= end_ns && run.meter.operations >= load.operations {
                break;
            }
        }
        let summary = run.summary(self.now.as_nanos());
        if self.retransmits > before {
            eprintln!("{} segments were sent again", self.retransmits - before);
        }
        if load.messages == 0 && summary.errors == 0 && self.finish(&mut run)? {
            self.held = run.idle;
        } else {
            self.end_all()?;
        }
        Ok(summary)
    }

    /// Waits for the answers that are still under way; whether all came.
    fn finish(&mut self, run: &mut Run) -> Result<bool, RunError> {
        const PATIENCE_NS: u64 = 1_000_000_000;
        let late_ns = self.now.as_nanos() + PATIENCE_NS;
        while run.in_flight > 0 && self.now.as_nanos() < late_ns {
            if !self.turn()? {
                sys::yield_now();
            }
            self.take_events(run)?;
        }
        Ok(run.in_flight == 0)
    }

    fn begin(&mut self, load: Load) -> Result<Run, RunError> {
        if load.connections == 0 || load.connections > super::CONNECTIONS_MAX {
            return Err(RunError::Connections(load.connections));
        }
        self.answer = load.bytes;
        self.now = utcp_proto::Instant::from_nanos(sys::now_ns());
        let meter = Meter::new().map_err(RunError::Io)?;
        let idle = VecDeque::with_capacity(load.connections as usize);
        Ok(Run {
            load,
            meter,
            start_ns: self.now.as_nanos(),
            idle,
            opening: 0,
            open: 0,
            in_flight: 0,
            due_ns: 0.0,
        })
    }

    /// All connections before the first message.
    fn bring_up(&mut self, run: &mut Run) -> Result<(), RunError> {
        let patience = u64::try_from(OPENING_PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        let late_ns = self.now.as_nanos().saturating_add(patience);
        while run.open < run.load.connections as usize {
            self.open_missing(run);
            if !self.turn()? {
                sys::yield_now();
            }
            self.take_events(run)?;
            if self.now.as_nanos() > late_ns {
                return Err(RunError::NotOpen { open: run.open, wanted: run.load.connections });
            }
        }
        Ok(())
    }

    fn open_missing(&mut self, run: &mut Run) {
        while run.opening < OPENING_MAX && run.open + run.opening < run.load.connections as usize {
            if self.open(run.load.messages).is_none() {
                return; // Every pair of ports is in use: some are still closing.
            }
            run.opening += 1;
            run.meter.connections += 1;
        }
    }

    /// Gives idle connections their messages.
    fn feed(&mut self, run: &mut Run) {
        self.open_missing(run);
        let most = if run.load.in_flight == 0 { u32::MAX } else { run.load.in_flight };
        let now_ns = sys::now_ns();
        while run.in_flight < most {
            let began_ns = match run.load.rate {
                None => now_ns,
                Some(_) if run.due_ns > ns(now_ns) => return,
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ns since boot")]
                Some(_) => run.due_ns as u64,
            };
            let Some(index) = run.idle.pop_front() else { return };
            if self.flows.get(index).is_none_or(|flow| flow.doing != Doing::Idle) {
                continue;
            }
            if let Some(rate) = run.load.rate {
                run.due_ns += 1e9 / rate.max(1e-3);
            }
            run.in_flight += 1;
            self.ask(index, run.load.bytes, began_ns);
        }
    }

    fn take_events(&mut self, run: &mut Run) -> Result<(), RunError> {
        let now_ns = self.now.as_nanos();
        while let Some(event) = self.events.pop_front() {
            match event {
                Event::Open(index) => {
                    (run.opening, run.open) = (run.opening.saturating_sub(1), run.open + 1);
                    if run.load.quick_ack {
                        self.user(index, UserCall::SetQuickAck(true));
                    }
                    run.idle.push_back(index);
                }
                Event::Answered(index) => {
                    run.in_flight = run.in_flight.saturating_sub(1);
                    let Some(flow) = self.flows.get_mut(index) else { continue };
                    run.meter.done(now_ns.saturating_sub(flow.began_ns));
                    flow.messages_left = flow.messages_left.saturating_sub(1);
                    if run.load.messages > 0 && flow.messages_left == 0 {
                        run.open = run.open.saturating_sub(1);
                        self.end(index, UserCall::Close);
                    } else {
                        run.idle.push_back(index);
                    }
                }
                Event::Failed(index, was) => {
                    run.meter.errors += 1;
                    match was {
                        Doing::Opening => run.opening = run.opening.saturating_sub(1),
                        Doing::Asking => {
                            run.in_flight = run.in_flight.saturating_sub(1);
                            run.open = run.open.saturating_sub(1);
                        }
                        _ => run.open = run.open.saturating_sub(1),
                    }
                    self.end(index, UserCall::Abort);
                    if run.meter.errors > ERRORS_MAX {
                        return Err(RunError::Refused);
                    }
                }
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds since boot, below 2^53")]
fn ns(at: u64) -> f64 {
    at as f64
}

/// Why a load gave no result.
#[derive(Debug)]
pub enum RunError {
    /// The link is gone.
    Link(LinkError),
    /// Too many connections, or none.
    Connections(u32),
    /// They did not come up in time.
    NotOpen {
        /// So many did.
        open: usize,
        /// Of so many.
        wanted: u32,
    },
    /// The server refused or reset connection after connection.
    Refused,
    /// The system's reason.
    Io(std::io::Error),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Link(error) => error.fmt(f),
            Self::Connections(asked) => {
                write!(f, "{asked} connections: 1 to {} will do", super::CONNECTIONS_MAX)
            }
            Self::NotOpen { open, wanted } => write!(f, "only {open} of {wanted} connections came up"),
            Self::Refused => f.write_str("the server refuses or resets its connections"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RunError {}

impl From<LinkError> for RunError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}
