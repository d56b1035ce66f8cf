//! One run: a server and its load, on one side.

use std::fs::{self, DirBuilder};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::apps::{Amount, Application, Client, Endpoint};
use crate::case::{Case, Scenario, Setting};
use crate::child::{Launch, Process};
use crate::engine::{self, Counters, Engine, Files, Setup};
use crate::generator::{Generator, Route};
use crate::net::{BusyPoll, CLIENT_IP, LongSegments, Net};
use crate::parse::Load;
use crate::{Error, cpu};

const READY_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// What a load may take longer than it was told to.
const LOAD_SLACK: Duration = Duration::from_secs(15);

/// Ports that a server of ours listens on for the lean generator, so that local ports never run out.
const LEAN_PORTS: u16 = 4;
/// The first of them in a namespace of our own, and runs until it is used again.
const FIRST_PORT: u16 = 8080;
const RUNS_APART: u16 = 4000;
/// The engine's address on a pipe, and the generator's.
pub const PIPE_SERVER: &str = "198.18.78.1";
/// The generator's.
pub const PIPE_CLIENT: &str = "198.18.78.2";

/// Which stack carries the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The kernel's.
    Kernel,
    /// Ours.
    Utcp,
}

/// Which cores each part may use; none: where the scheduler puts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinning {
    /// The server's.
    pub server: Option<String>,
    /// The client's.
    pub client: Option<String>,
    /// The engine's shards.
    pub engine: Option<String>,
    /// Whether the receive work of a device is done on the cores of the receiver.
    pub receive: bool,
}

impl Pinning {
    /// For one case.
    fn of_case(&self, case: Case) -> Self {
        let core = || self.server.clone().or_else(|| Some("0".to_owned()));
        match case.setting {
            Setting::SameCore => Self { server: core(), client: core(), engine: core(), ..*self },
            // What the server's core can do at most: all that serves is there.
            _ if case.is_lean() => Self { server: core(), engine: core(), ..self.clone() },
            _ => self.clone(),
        }
    }
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// What the client says.
    pub load: Load,
    /// How long the load ran.
    pub elapsed: Duration,
    /// CPU time of all cores during the load.
    pub machine: cpu::Machine,
    /// CPU time of the server.
    pub server: Duration,
    /// CPU time of the client.
    pub client: Duration,
    /// CPU time of the engine.
    pub engine: Duration,
    /// CPU time of the threads that receive from the server's device.
    pub receive: Duration,
    /// And from the client's.
    pub client_receive: Duration,
    /// What the engine counted.
    pub counters: Counters,
    /// Frames that the link lost.
    pub lost_frames: u64,
}

impl Sample {
    /// The share of the machine's CPU time that belongs to nothing of ours: near 0 on a quiet machine.
    #[must_use]
    pub fn foreign_share(&self) -> f64 {
        // Softirq work is charged to whomever it interrupts, or to nobody; either way it is not foreign.
        let ours = self.own() + self.machine.softirq;
        let busy = self.machine.busy.as_secs_f64();
        if busy > 0.0 { (busy - ours.as_secs_f64()).max(0.0) / busy } else { 0.0 }
    }

    /// CPU time of every process and thread of the run: what `machine` says on a quiet machine, and the better figure on
    /// one that is not.
    #[must_use]
    pub fn own(&self) -> Duration {
        self.serving() + self.client + self.client_receive
    }

    /// That per operation, µs.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    pub fn own_us_per_op(&self) -> f64 {
        self.own().as_secs_f64() * 1e6 / self.load.operations.max(1) as f64
    }

    /// CPU time of all that serves: server, engine, and the receive work of the server's device.
    #[must_use]
    pub fn serving(&self) -> Duration {
        self.server + self.engine + self.receive
    }

    /// How many cores it kept busy; near 1 where one is all that it may use, and it is the bottleneck.
    #[must_use]
    pub fn serving_cores(&self) -> f64 {
        self.serving().as_secs_f64() / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// CPU time of all cores per operation, µs.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    pub fn cpu_us_per_op(&self) -> f64 {
        self.machine.busy.as_secs_f64() * 1e6 / self.load.operations.max(1) as f64
    }

    /// CPU time of all that serves per operation, µs.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    pub fn serving_us_per_op(&self) -> f64 {
        self.serving().as_secs_f64() * 1e6 / self.load.operations.max(1) as f64
    }
}

/// A folder of this run alone, removed at the end.
#[derive(Debug)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// Makes it.
    ///
    /// # Errors
    /// When there is no place for temporary files.
    pub fn new() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("utcp-compare-{}-{number}", process::id()));
        // Fails if the name exists, whatever it is.
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::io(path.display().to_string()))?;
        Ok(Self(path))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server of one side that is ready for load.
#[derive(Debug)]
pub struct Stage<'a> {
    // In this order they are dropped: whoever uses another one first, the folder last.
    generator: Option<Generator>,
    server: Process,
    behind: Option<Process>,
    engine: Option<Engine>,
    application: Application<'a>,
    net: &'a Net,
    pinning: Pinning,
    _busy_poll: Option<BusyPoll<'a>>,
    _long_segments: Option<LongSegments<'a>>,
    folder: RunFolder,
}

impl<'a> Stage<'a> {
    /// Starts engine (on utcp's side) and server, and waits until it listens.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn set(
        case: Case,
        side: Side,
        net: &'a Net,
        pinning: &Pinning,
        files: &'a Files,
    ) -> Result<Self, Error> {
        let folder = RunFolder::new()?;
        let pinning = pinning.of_case(case);
        let on_pipe = case.scenario == Scenario::StackLimit && side == Side::Utcp;
        let lean = case.is_lean() && (on_pipe || case.scenario == Scenario::Device);
        let ports = if lean { LEAN_PORTS } else { 1 };
        let (listen, ip) = if on_pipe { ("0.0.0.0", PIPE_SERVER) } else { (net.server_ip, net.server_ip) };
        let at = Endpoint { listen, ip, port: free_port(net)?, ports };
        let by_unix = side == Side::Kernel && case.setting == Setting::KernelByUnix;
        let unix = by_unix.then(|| folder.path().join("unix.sock"));
        let application = Application::new(case, at, unix, lean, files);
        let busy_poll = (case.setting == Setting::BusyPoll).then(|| net.busy_poll()).transpose()?;
        let long_segments =
            (case.setting == Setting::LongSegments).then(|| net.long_segments()).transpose()?;
        let stack = format!("compare-{}", process::id());
        let mut generator = None;
        if lean {
            let route = Route {
                device: if on_pipe {
                    format!("pipe:{stack}")
                } else {
                    net.client_device().unwrap_or_default()
                },
                address: if on_pipe { PIPE_CLIENT } else { CLIENT_IP },
                server: ip,
                port: at.port,
                ports,
                next_hop: net.server_mac().filter(|_| !on_pipe),
            };
            let cores = pinning.client.as_deref();
            generator = Some(Generator::start(files, &route, net.client_netns(), cores, folder.path())?);
        }
        let engine = match side {
            Side::Kernel => None,
            Side::Utcp => {
                let pipe = || format!("pipe:{stack},addr={PIPE_SERVER}/24");
                let device = if on_pipe { Some(pipe()) } else { net.device() };
                let setup = Setup { device, cores: pinning.engine.as_deref(), group: None, stack };
                Some(Engine::start(files, net, &setup, folder.path())?)
            }
        };
        let start = |launch: Launch, port: u16| {
            let launch = engine.iter().fold(launch, |launch, engine| engine.serve(launch));
            let launch = launch.cores(pinning.server.as_deref()).netns(net.server_netns());
            let mut server = launch.start(folder.path())?;
            server.wait_ready(READY_PATIENCE, |pid| Ok(listens(pid, port, net.server_netns())))?;
            Ok::<_, Error>(server)
        };
        let behind = application.behind(folder.path())?;
        let behind = behind.map(|(launch, at)| start(launch, at.port)).transpose()?;
        let server = start(application.server(folder.path())?, at.port)?;
        if let Some(generator) = &mut generator {
            generator.wait_ready()?;
        }
        Ok(Self {
            generator,
            server,
            behind,
            engine,
            application,
            net,
            pinning,
            _busy_poll: busy_poll,
            _long_segments: long_segments,
            folder,
        })
    }

    /// The server's process group.
    #[must_use]
    pub fn server_id(&self) -> u32 {
        self.server.id()
    }

    /// The run's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The case's program.
    #[must_use]
    pub fn application(&self) -> &Application<'a> {
        &self.application
    }

    /// The engine's counters; empty on the kernel's side.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.engine.as_ref().map_or_else(|| Ok(Counters::new()), Engine::counters)
    }

    /// Runs a client to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn load(&mut self, client: Client, amount: Amount) -> Result<Load, Error> {
        let told = match amount {
            Amount::Seconds(seconds) => Duration::from_secs(seconds.into()),
            Amount::Operations(_) => Duration::from_secs(15),
        };
        let launch = match (client, &mut self.generator) {
            (Client::Program(launch), _) => launch,
            (Client::Lean(line), Some(generator)) => {
                return Ok(generator.ask(&line, told + LOAD_SLACK)?.into());
            }
            (Client::Lean(_), None) => return Err(Error::Missing("a run without its generator".to_owned())),
        };
        // Over a device the client is on the kernel, whatever the server is on.
        let under = self.engine.iter().filter(|_| self.net.scenario != Scenario::Device);
        let launch = under.fold(launch, |launch, engine| engine.serve(launch));
        let launch = launch.cores(self.pinning.client.as_deref()).netns(self.net.client_netns());
        let text = launch.run(self.folder.path(), told + LOAD_SLACK)?;
        self.application.parse(&text, amount)
    }

    /// Warms up; the last load's result.
    ///
    /// # Errors
    /// When a client fails.
    pub fn warm_up(&mut self) -> Result<Load, Error> {
        let mut last = Load::default();
        for (client, amount) in self.application.warm_up() {
            last = self.load(client, amount)?;
        }
        Ok(last)
    }

    /// # Errors
    /// [`Error::FellBack`] if the connections of `load` did not go through the engine.
    pub fn expect_utcp(&self, load: &Load, growth: &Counters) -> Result<(), Error> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let wanted = self.application.connections(load);
        if self.application.keeps_connections() {
            // The warm-up made them.
            return engine::expect_growth(&engine.counters()?, "accepts", wanted);
        }
        engine::expect_growth(growth, "accepts", wanted)?;
        if self.net.scenario == Scenario::SameHost {
            engine::expect_growth(growth, "connects", wanted)?;
        }
        Ok(())
    }

    /// CPU time used so far.
    fn cpu(&self) -> Result<Sample, Error> {
        let of_group = |group: Option<u32>| group.map_or(Duration::ZERO, cpu::of_group);
        let of_threads = |pids: &[u32]| pids.iter().map(|pid| cpu::of_process(*pid)).sum::<Duration>();
        let [receive, client_receive] = self.net.receive_threads();
        Ok(Sample {
            server: cpu::of_group(self.server.id()) + of_group(self.behind.as_ref().map(Process::id)),
            engine: of_group(self.engine.as_ref().map(Engine::id)),
            client: cpu::of_ended_children() + of_group(self.generator.as_ref().map(Generator::id)),
            receive: of_threads(receive),
            client_receive: of_threads(client_receive),
            machine: cpu::Machine::now()?,
            ..Sample::default()
        })
    }

    /// Measures a load: what it says, and the CPU time that it took.
    ///
    /// # Errors
    /// When it fails, or its connections went another way than they should.
    pub fn measure(&mut self, client: Client, amount: Amount) -> Result<Sample, Error> {
        let counters = self.counters()?;
        let lost = self.net.lost_frames();
        let before = self.cpu()?;
        let start = Instant::now();
        let load = self.load(client, amount)?;
        let elapsed = start.elapsed();
        let after = self.cpu()?;
        let counters = engine::growth(&counters, &self.counters()?);
        self.expect_utcp(&load, &counters)?;
        Ok(Sample {
            load,
            elapsed,
            machine: after.machine.since(before.machine),
            server: after.server.saturating_sub(before.server),
            client: after.client.saturating_sub(before.client),
            engine: after.engine.saturating_sub(before.engine),
            receive: after.receive.saturating_sub(before.receive),
            client_receive: after.client_receive.saturating_sub(before.client_receive),
            counters,
            lost_frames: self.net.lost_frames().saturating_sub(lost),
        })
    }

    /// Ends server and engine.
    ///
    /// # Errors
    /// When one of them crashed or has to be killed.
    pub fn end(self) -> Result<(), Error> {
        let Self { generator, server, behind, engine, folder, .. } = self;
        for mut server in std::iter::once(server).chain(behind) {
            if let Some(status) = server.ended()? {
                return Err(server.failure(status));
            }
            server.stop(STOP_PATIENCE)?;
        }
        if let Some(engine) = engine {
            engine.stop()?;
        }
        drop(generator);
        drop(folder);
        Ok(())
    }
}

/// Runs one side of a case for about `seconds`, at `rate` if one is asked for.
///
/// # Errors
/// When anything about the run is not as it should be: then it is no result.
pub fn once(
    case: Case,
    side: Side,
    net: &Net,
    pinning: &Pinning,
    files: &Files,
    seconds: u32,
    rate: Option<f64>,
) -> Result<Sample, Error> {
    let mut stage = Stage::set(case, side, net, pinning, files)?;
    let warm = stage.warm_up()?;
    let (client, amount) = stage.application().measured(&warm, seconds, rate);
    let sample = stage.measure(client, amount)?;
    stage.end()?;
    Ok(sample)
}

/// A port of our own: in a namespace of our own another than the runs before had, a free one on the host. What a kernel's server left in
/// TIME-WAIT meets the SYNs of a generator that numbers its ports anew, and each costs it a second.
fn free_port(net: &Net) -> Result<u16, Error> {
    static RUNS: AtomicU16 = AtomicU16::new(0);
    if net.server_netns().is_some() {
        let run = RUNS.fetch_add(1, Ordering::Relaxed) % RUNS_APART;
        return Ok(FIRST_PORT + run * LEAN_PORTS);
    }
    let failed = || Error::io("no free port");
    let probe = TcpListener::bind((net.server_ip, 0)).map_err(failed())?;
    Ok(probe.local_addr().map_err(failed())?.port())
}

/// Whether a TCP socket in the server's network namespace listens on `port`, `pid` being there already
/// (the command that enters the namespace starts outside, where a stranger may use the port).
pub(crate) fn listens(pid: u32, port: u16, netns: Option<&str>) -> bool {
    let inode = |path: &str| fs::metadata(path).map(|meta| meta.ino()).ok();
    let own = |name| inode(&format!("/run/netns/{name}")) == inode(&format!("/proc/{pid}/ns/net"));
    if !netns.is_none_or(own) {
        return false;
    }
    let port = format!(":{port:04X}");
    let listening = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
    };
    fs::read_to_string(format!("/proc/{pid}/net/tcp")).is_ok_and(|text| text.lines().any(listening))
}
