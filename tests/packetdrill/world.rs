//! The stack under test: the engine with its shard in our hand, the shim in this process, and a wire of memory.
//!
//! ```text
//!   script ── calls ──► program thread ── libutcp.so ──┐ shared memory
//!   (main) ── turns ──► shard ◄────────────────────────┘ control thread (descriptors, listeners)
//!     │ ▲                 │
//!     │ └── virtual time  └── pipe port ── frames ── main
//! ```
//!
//! Nothing is modelled: the calls are libutcp.so's exported functions, the engine is the one that `utcp engine` runs.
//! Only its clock is ours. Time stands still while anybody can run: a turn counts as the last of an instant when the
//! shard found nothing to do although program thread and control thread were asleep in the kernel before it and have not
//! run since. What wakes a thread makes it runnable before the waker goes on, so this can't miss one.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as RealTime};

use utcp_engine::config::{Config, user_name};
use utcp_engine::control::{Surroundings, run_in};
use utcp_engine::shard::Shard;
use utcp_netmap_io::{
    Caps, Counters, Device, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, TxRing, pipe,
};
use utcp_proto::{CongestionKind, Instant};

use crate::script::Us;
use crate::threads::Thread;
use crate::wire::{self, Received};

/// The engine's name, besides this process's others.
const STACK: &str = "packetdrill";
/// A stack that has not come to rest by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// What lies between two packets that arrive at once, µs.
const PACKET_US: Us = 5;
/// A tick of the timer wheel: timers fire at most so late.
const TICK_NS: u64 = 1 << 16;

/// Addresses and MTU of the stack's one interface.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub local: IpAddr,
    pub prefix: u8,
    pub gateway: IpAddr,
    pub mtu: u32,
}

/// What a call returned: the value and errno.
pub type Outcome = (i64, i32);
type Job = Box<dyn FnOnce() -> Outcome + Send>;

/// The engine, the program and the wire.
pub struct World {
    shard: Shard,
    port: Box<dyn Port>,
    control: Thread,
    program: Thread,
    jobs: Sender<Job>,
    outcomes: Receiver<Outcome>,
    outcome: Option<Outcome>,
    busy: bool,
    start: Instant,
    now: Instant,
    /// What the stack sent, and when.
    pub sent: VecDeque<(Us, Received)>,
}

/// A pipe port with another MTU than Ethernet's.
struct WithMtu(Box<dyn Port>, Caps);

impl Port for WithMtu {
    fn caps(&self) -> &Caps {
        &self.1
    }
    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.0.rx_sync()
    }
    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.0.tx_sync()
    }
    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        self.0.rings()
    }
    fn arm(&mut self) -> Result<bool, PortError> {
        self.0.arm()
    }
    fn poll_fds(&self) -> PollFds {
        self.0.poll_fds()
    }
    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.0.tx_poll_fd()
    }
    fn counters(&self) -> Counters {
        self.0.counters()
    }
}

impl World {
    /// Starts the engine. The environment must not be read by another thread meanwhile.
    ///
    /// # Errors
    /// Why it can't run here.
    pub fn new(link: Link) -> Result<Self, String> {
        let options =
            OpenOptions { frame_size: Some(65_536), rx_slots: 512, tx_slots: 512, ..OpenOptions::default() };
        let [theirs, port] = pipe::pair(STACK, &options).map_err(|error| error.to_string())?;
        let caps = Caps { mtu: link.mtu, ..theirs.caps().clone() };
        let mut theirs: Option<Box<dyn Port>> = Some(Box::new(WithMtu(theirs, caps)));
        let open = move |_: &str, _: &OpenOptions| {
            let ports = theirs.take().into_iter().collect();
            Ok(Device { ports, steering: None })
        };
        let (give, take) = channel();
        let give = Mutex::new(give);
        let drive = move |shard: Shard| {
            // Only if `new` gave up waiting does nobody listen.
            if let Ok(sender) = give.lock() {
                let _ = sender.send(shard);
            }
        };
        let surroundings = Surroundings { open: Box::new(open), drive: Arc::new(drive) };
        let device = format!("pipe:{STACK},addr={}/{},gw={}", link.local, link.prefix, link.gateway);
        let variables = |name: &str| match name {
            "UTCP_STACK" => Some(STACK.to_owned()),
            "UTCP_DEVICE" => Some(device.clone()),
            _ => None,
        };
        let config = Config::from_variables(variables).map_err(|error| error.to_string())?;
        debug_assert_eq!(Ok(config.name.clone()), user_name(Some(STACK)));
        let (control, failure) = Thread::start("control", move || {
            run_in(config, surroundings).err().map(|error| error.to_string())
        })?;
        let shard = match take.recv_timeout(PATIENCE) {
            Ok(shard) => shard,
            Err(_) => {
                let reason = failure.try_recv().ok().flatten();
                return Err(format!("the engine did not start: {}", reason.unwrap_or_default()));
            }
        };
        let (jobs, asked) = channel::<Job>();
        let (answer, outcomes) = channel();
        let (program, _) = Thread::start("program", move || {
            for job in asked {
                if answer.send(job()).is_err() {
                    return;
                }
            }
        })?;
        let now = shard.now();
        let mut world = Self {
            shard,
            port,
            control,
            program,
            jobs,
            outcomes,
            outcome: None,
            busy: false,
            start: now,
            now,
            sent: VecDeque::new(),
        };
        world.take_settings();
        Ok(world)
    }

    /// Script time zero is now.
    pub fn begin(&mut self) {
        self.start = self.now;
    }

    /// Microseconds since [`Self::begin`].
    pub fn now(&self) -> Us {
        Us::try_from((self.now.as_nanos() - self.start.as_nanos()) / 1000).unwrap_or(Us::MAX)
    }

    /// Settings of the kernel changed.
    pub fn take_settings(&mut self) {
        let mut tcp = utcp_engine::host::tcp_settings();
        // A namespace may be forbidden to choose cubic, whatever its own default is then.
        if tcp.config.congestion != CongestionKind::NewReno {
            tcp.config.congestion = CongestionKind::Cubic;
        }
        self.shard.set_tcp(tcp);
    }

    /// Whether a call is under way.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// What the call returned that ended last, once.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// Lets the program make a call, until it returns or sleeps.
    ///
    /// # Errors
    /// The stack does not come to rest.
    pub fn call(&mut self, job: impl FnOnce() -> Outcome + Send + 'static) -> Result<(), String> {
        self.busy = true;
        self.jobs.send(Box::new(job)).map_err(|_| "the program thread is gone")?;
        self.settle()
    }

    /// Everything that can happen now happens.
    pub fn settle(&mut self) -> Result<(), String> {
        let begun = RealTime::now();
        loop {
            let before = self.at_rest();
            let worked = self.shard.turn(self.now) | self.receive()?;
            let quiet = before.is_some() && !worked && self.at_rest() == before;
            if let Ok(outcome) = self.outcomes.try_recv() {
                (self.busy, self.outcome) = (false, Some(outcome));
            } else if quiet {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err("the stack does not come to rest".into());
            }
            if !worked {
                std::thread::yield_now();
            }
        }
    }

    /// How often the two threads have gone to sleep, if both sleep.
    fn at_rest(&self) -> Option<(u64, u64)> {
        Some((self.program.asleep()?, self.control.asleep()?))
    }

    fn receive(&mut self) -> Result<bool, String> {
        let now = self.now();
        self.port.rx_sync().map_err(|error| error.to_string())?;
        let mut any = false;
        for frame in self.port.rx() {
            any = true;
            if let Some(segment) = wire::received(frame.bytes())? {
                self.sent.push_back((now, segment));
            }
        }
        Ok(any)
    }

    /// Time passes up to `end`, or until `enough`.
    ///
    /// # Errors
    /// The stack does not come to rest.
    pub fn pass(&mut self, end: Us, mut enough: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let end = Instant::from_nanos(self.start.as_nanos() + u64::try_from(end).unwrap_or(0) * 1000);
        loop {
            self.settle()?;
            if enough(self) || self.now >= end {
                return Ok(());
            }
            let next = self.shard.next_deadline().unwrap_or(end);
            let soonest = Instant::from_nanos(self.now.as_nanos() + 1);
            let next = if next > soonest { next } else { Instant::from_nanos(self.now.as_nanos() + TICK_NS) };
            self.now = if next < end { next } else { end };
        }
    }

    /// A packet arrives at the stack.
    ///
    /// # Errors
    /// The stack does not come to rest, or the wire is full.
    pub fn inject(&mut self, packet: &[u8]) -> Result<(), String> {
        // Nothing happens in no time: scripts were written where what they send at once arrives one after the other.
        self.pass(self.now() + PACKET_US, |_| false)?;
        let (own, peer) = (self.port.caps().mac, self.port.caps().peer_mac.unwrap_or_default());
        self.port.tx_sync().map_err(|error| error.to_string())?;
        if !self.port.tx().push(&wire::frame(peer, own, packet)) {
            return Err("the wire is full".into());
        }
        self.port.tx_sync().map_err(|error| error.to_string())?;
        self.settle()
    }
}
