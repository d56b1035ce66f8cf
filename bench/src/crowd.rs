//! Many connections to one side: our echo server, loaded by the lean generator.
//!
//! A process has at most so many descriptors, and a connection needs one in the server and one in the engine. Where the limit is
//! below the connections that are asked for, they are spread over several servers, each with an engine of its own; the
//! kernel's side has as many servers.
//!
//! ```text
//!  kernel:  generator ══ veth ══ kernel ── server, server …
//!  utcp:    generator ══ pipe ══ engine ── server
//!           generator ══ pipe ══ engine ── server  …
//! ```

use std::path::Path;
use std::process;
use std::time::Duration;

use crate::child::{Launch, Process};
use crate::engine::{Engine, Files, Setup};
use crate::generator::{Generator, Route};
use crate::load::Summary;
use crate::net::{CLIENT_IP, Net};
use crate::run::{PIPE_CLIENT, PIPE_SERVER, Pinning, RunFolder, Side, listens};
use crate::{Error, cpu, interrupt};

const PORT: u16 = 8080;
const READY_PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(90);
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors that a process needs besides those of connections: its pool, its own.
const DESCRIPTORS_RESERVED: u64 = 1500;

/// How many servers `connections` are spread over.
#[must_use]
pub fn servers(connections: u32) -> u16 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let room = limit.saturating_sub(DESCRIPTORS_RESERVED).max(100);
    u16::try_from(u64::from(connections).div_ceil(room)).unwrap_or(u16::MAX)
}

/// Servers of one side, and who loads them.
#[derive(Debug)]
pub struct Crowd {
    // In this order they are dropped.
    generators: Vec<Generator>,
    servers: Vec<Process>,
    engines: Vec<Engine>,
    _folder: RunFolder,
}

impl Crowd {
    /// Starts `count` servers, all in the control group `group`.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn set(
        side: Side,
        net: &Net,
        pinning: &Pinning,
        files: &Files,
        count: u16,
        group: Option<&Path>,
    ) -> Result<Self, Error> {
        let folder = RunFolder::new()?;
        let mut crowd =
            Self { generators: Vec::new(), servers: Vec::new(), engines: Vec::new(), _folder: folder };
        match side {
            Side::Kernel => crowd.on_kernel(net, pinning, files, count, group)?,
            Side::Utcp => crowd.on_utcp(net, pinning, files, count, group)?,
        }
        Ok(crowd)
    }

    fn on_kernel(
        &mut self,
        net: &Net,
        pinning: &Pinning,
        files: &Files,
        count: u16,
        group: Option<&Path>,
    ) -> Result<(), Error> {
        for number in 0..count {
            let port = PORT + number;
            let launch = server(files, net.server_ip, port, number).group(group);
            self.serve(launch, port, net, pinning)?;
        }
        let route = Route {
            device: net.client_device().unwrap_or_default(),
            address: CLIENT_IP,
            server: net.server_ip,
            port: PORT,
            ports: count,
            next_hop: net.server_mac(),
        };
        self.generate(files, &route, net, pinning)?;
        self.generators.iter_mut().try_for_each(Generator::wait_ready)
    }

    fn on_utcp(
        &mut self,
        net: &Net,
        pinning: &Pinning,
        files: &Files,
        count: u16,
        group: Option<&Path>,
    ) -> Result<(), Error> {
        for number in 0..count {
            let stack = format!("compare-{}-{number}", process::id());
            // Local ports of one generator are enough for what one server holds.
            let route = Route {
                device: format!("pipe:{stack}"),
                address: PIPE_CLIENT,
                server: PIPE_SERVER,
                port: PORT + number,
                ports: 1,
                next_hop: None,
            };
            self.generate(files, &route, net, pinning)?;
            let device = Some(format!("pipe:{stack},addr={PIPE_SERVER}/24"));
            let setup = Setup { device, cores: pinning.server.as_deref(), group, stack };
            let engine = Engine::start(files, net, &setup, self._folder.path())?;
            let port = PORT + number;
            let launch = engine.serve(server(files, "0.0.0.0", port, number)).group(group);
            self.engines.push(engine);
            self.serve(launch, port, net, pinning)?;
        }
        self.generators.iter_mut().try_for_each(Generator::wait_ready)
    }

    fn generate(
        &mut self,
        files: &Files,
        route: &Route<'_>,
        net: &Net,
        pinning: &Pinning,
    ) -> Result<(), Error> {
        let directory = self._folder.path().join(format!("generator-{}", self.generators.len()));
        std::fs::create_dir(&directory).map_err(Error::io("can't make a folder"))?;
        let cores = pinning.client.as_deref();
        self.generators.push(Generator::start(files, route, net.client_netns(), cores, &directory)?);
        Ok(())
    }

    fn serve(&mut self, launch: Launch, port: u16, net: &Net, pinning: &Pinning) -> Result<(), Error> {
        let launch = launch.cores(pinning.server.as_deref()).netns(net.server_netns());
        let mut server = launch.start(self._folder.path())?;
        server.wait_ready(READY_PATIENCE, |pid| Ok(listens(pid, port, net.server_netns())))?;
        self.servers.push(server);
        Ok(())
    }

    /// Tells every generator its share of `connections`: `command` makes the line.
    fn ask(&mut self, connections: u32, command: impl Fn(u32) -> String) -> Result<Vec<Summary>, Error> {
        let count = u32::try_from(self.generators.len()).unwrap_or(1).max(1);
        for (number, generator) in (0..count).zip(&mut self.generators) {
            let share = connections / count + u32::from(number < connections % count);
            generator.tell(&command(share.max(1)))?;
        }
        self.generators.iter_mut().map(|generator| generator.summary(PATIENCE)).collect()
    }

    /// Opens connections and leaves them idle.
    ///
    /// # Errors
    /// When they don't come up, or not all of them through the engines.
    pub fn hold(&mut self, connections: u32) -> Result<(), Error> {
        self.ask(connections, |share| format!("hold --connections {share}"))?;
        // A connection is up for the client before its last ACK is with the server.
        let wanted = u64::from(connections);
        let mut seen = 0;
        interrupt::wait_for(ACCEPT_PATIENCE, || {
            seen = 0;
            for engine in &self.engines {
                seen += engine.counters()?.get("accepts").copied().unwrap_or(0);
            }
            Ok(self.engines.is_empty() || seen >= wanted)
        })?;
        if !self.engines.is_empty() && seen < wanted {
            return Err(Error::FellBack { counter: "accepts", seen, wanted });
        }
        Ok(())
    }

    /// Messages over the connections that are held, `in_flight` at a time in all, for `seconds` and at least `rounds` times
    /// over all of them.
    ///
    /// # Errors
    /// When a generator fails.
    pub fn messages(
        &mut self,
        connections: u32,
        in_flight: u32,
        seconds: u32,
        rounds: u32,
    ) -> Result<Summary, Error> {
        let count = u32::try_from(self.generators.len()).unwrap_or(1).max(1);
        let each = in_flight.div_ceil(count);
        let all = self.ask(connections, |share| {
            let least = share * rounds;
            format!(
                "msg --connections {share} --in-flight {each} --quick-ack --seconds {seconds} --operations {least}"
            )
        })?;
        Ok(all.into_iter().reduce(add).unwrap_or_default())
    }

    /// CPU time of all that serves, as far as it went.
    #[must_use]
    pub fn serving(&self, side: Side, net: &Net) -> Duration {
        let processes = self.servers.iter().map(Process::id).chain(self.engines.iter().map(Engine::id));
        let own: Duration = processes.map(cpu::of_group).sum();
        let receive: Duration = match side {
            Side::Kernel => net.receive_threads()[0].iter().map(|pid| cpu::of_process(*pid)).sum(),
            Side::Utcp => Duration::ZERO,
        };
        own + receive
    }
}

fn server(files: &Files, ip: &str, port: u16, number: u16) -> Launch {
    let name = format!("server-{number}");
    Launch::new(&files.load).named(&name).args(["echo", "--listen", &format!("{ip}:{port}")])
}

fn add(a: Summary, b: Summary) -> Summary {
    Summary {
        operations: a.operations + b.operations,
        connections: a.connections + b.connections,
        per_second: a.per_second + b.per_second,
        errors: a.errors + b.errors,
        ..a
    }
}
