//! One run: a server and its load, on one side.

use std::fs::{self, DirBuilder};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::apps::{Amount, Application, Endpoint};
use crate::case::{Case, Scenario, Setting};
use crate::child::{Launch, Process};
use crate::engine::{self, Counters, Engine, Files};
use crate::net::Net;
use crate::parse::Load;
use crate::{Error, cpu};

const READY_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// What a load may take longer than it was told to.
const LOAD_SLACK: Duration = Duration::from_secs(15);

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
        match case.setting {
            Setting::SameCore => {
                let core = self.server.clone().or_else(|| Some("0".to_owned()));
                Self { server: core.clone(), client: core.clone(), engine: core, ..*self }
            }
            _ => self.clone(),
        }
    }
}

/// What one run gave.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What the client says.
    pub load: Load,
    /// CPU time of all cores during the load.
    pub machine: cpu::Machine,
    /// CPU time of the server.
    pub server: Duration,
    /// CPU time of the client.
    pub client: Duration,
    /// CPU time of the engine.
    pub engine: Duration,
    /// CPU time of the threads that receive from a device.
    pub receive: Duration,
    /// What the engine counted.
    pub counters: Counters,
}

impl Sample {
    /// The share of the machine's CPU time that belongs to nothing of ours: near 0 on a quiet machine.
    #[must_use]
    pub fn foreign_share(&self) -> f64 {
        // Softirq work is charged to whomever it interrupts, or to nobody; either way it is not foreign.
        let ours = self.server + self.client + self.engine + self.receive + self.machine.softirq;
        let busy = self.machine.busy.as_secs_f64();
        if busy > 0.0 { (busy - ours.as_secs_f64()).max(0.0) / busy } else { 0.0 }
    }

    /// CPU time of all cores per operation, µs.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    pub fn cpu_us_per_op(&self) -> f64 {
        self.machine.busy.as_secs_f64() * 1e6 / self.load.operations.max(1) as f64
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
    // In this order they are dropped: the server before its engine, the folder last.
    server: Process,
    engine: Option<Engine>,
    application: Application<'a>,
    net: &'a Net,
    pinning: Pinning,
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
        let at = Endpoint { ip: net.server_ip, port: free_port(net)? };
        let by_unix = side == Side::Kernel && case.setting == Setting::KernelByUnix;
        let unix = by_unix.then(|| folder.path().join("unix.sock"));
        let application = Application::new(case, at, unix, files);
        let engine = match side {
            Side::Kernel => None,
            Side::Utcp => {
                let stack = format!("compare-{}", process::id());
                Some(Engine::start(files, net, &stack, pinning.engine.as_deref(), folder.path())?)
            }
        };
        let launch = application.server(folder.path())?;
        let launch = engine.iter().fold(launch, |launch, engine| engine.serve(launch));
        let launch = launch.cores(pinning.server.as_deref()).netns(net.server_netns());
        let mut server = launch.start(folder.path())?;
        server.wait_ready(READY_PATIENCE, |pid| Ok(listens(pid, at.port, net.server_netns())))?;
        Ok(Self { server, engine, application, net, pinning, folder })
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
    pub fn load(&self, launch: Launch, amount: Amount) -> Result<Load, Error> {
        let same_host = self.net.scenario == Scenario::SameHost;
        let under = self.engine.iter().filter(|_| same_host);
        let launch = under.fold(launch, |launch, engine| engine.serve(launch));
        let launch = launch.cores(self.pinning.client.as_deref()).netns(self.net.client_netns());
        let told = match amount {
            Amount::Seconds(seconds) => Duration::from_secs(seconds.into()),
            Amount::Operations(_) => Duration::from_secs(15),
        };
        let text = launch.run(self.folder.path(), told + LOAD_SLACK)?;
        self.application.parse(&text, amount)
    }

    /// Warms up; the last load's result.
    ///
    /// # Errors
    /// When a client fails.
    pub fn warm_up(&self) -> Result<Load, Error> {
        let mut last = Load::default();
        for (launch, amount) in self.application.warm_up() {
            last = self.load(launch, amount)?;
        }
        Ok(last)
    }

    /// # Errors
    /// [`Error::FellBack`] if the connections of `load` did not go through the engine.
    pub fn expect_utcp(&self, load: &Load, growth: &Counters) -> Result<(), Error> {
        if self.engine.is_none() {
            return Ok(());
        }
        let wanted = self.application.connections(load);
        engine::expect_growth(growth, "accepts", wanted)?;
        if self.net.scenario == Scenario::SameHost {
            engine::expect_growth(growth, "connects", wanted)?;
        }
        Ok(())
    }

    /// Ends server and engine.
    ///
    /// # Errors
    /// When one of them crashed or has to be killed.
    pub fn end(self) -> Result<(), Error> {
        let Self { mut server, engine, folder, .. } = self;
        if let Some(status) = server.ended()? {
            return Err(server.failure(status));
        }
        server.stop(STOP_PATIENCE)?;
        if let Some(engine) = engine {
            engine.stop()?;
        }
        drop(folder);
        Ok(())
    }
}

/// Runs one side of a case for about `seconds`.
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
) -> Result<Sample, Error> {
    let stage = Stage::set(case, side, net, pinning, files)?;
    let warm = stage.warm_up()?;
    let (launch, amount) = stage.application().measured(&warm, seconds);

    let counters = stage.counters()?;
    let engine_id = stage.engine.as_ref().map(Engine::id);
    let cpu_of = |group: Option<u32>| group.map_or(Duration::ZERO, cpu::of_group);
    let (server, engine) = (cpu_of(Some(stage.server_id())), cpu_of(engine_id));
    let receive_time = || net.receive_threads().iter().map(|pid| cpu::of_process(*pid)).sum::<Duration>();
    let receive = receive_time();
    let (client, machine) = (cpu::of_ended_children(), cpu::Machine::now()?);
    let load = stage.load(launch, amount)?;
    let machine = cpu::Machine::now()?.since(machine);
    let client = cpu::of_ended_children().saturating_sub(client);
    let server = cpu_of(Some(stage.server_id())).saturating_sub(server);
    let engine = cpu_of(engine_id).saturating_sub(engine);
    let receive = receive_time().saturating_sub(receive);
    let counters = engine::growth(&counters, &stage.counters()?);

    stage.expect_utcp(&load, &counters)?;
    stage.end()?;
    Ok(Sample { load, machine, server, client, engine, receive, counters })
}

/// A port of our own: any in a namespace of our own, a free one on the host.
fn free_port(net: &Net) -> Result<u16, Error> {
    if net.server_netns().is_some() {
        return Ok(8080);
    }
    let failed = || Error::io("no free port");
    let probe = TcpListener::bind((net.server_ip, 0)).map_err(failed())?;
    Ok(probe.local_addr().map_err(failed())?.port())
}

/// Whether a TCP socket in the server's network namespace listens on `port`, `pid` being there already
/// (the command that enters the namespace starts outside, where a stranger may use the port).
fn listens(pid: u32, port: u16, netns: Option<&str>) -> bool {
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
