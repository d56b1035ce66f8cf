//! The programs that are compared: how server and client are started, and what the client says.

mod haproxy;
mod memcached;
mod nginx;
mod own;
mod redis;

use std::path::{Path, PathBuf};

use crate::Error;
use crate::case::{App, Case, Scenario, Work};
use crate::child::Launch;
use crate::engine::Files;
use crate::parse::Load;

/// Where the server is.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Where it listens.
    pub listen: &'static str,
    /// Where clients find it.
    pub ip: &'static str,
    /// Its port.
    pub port: u16,
    /// How many ports, one after the other, for our own servers.
    pub ports: u16,
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// For so long.
    Seconds(u32),
    /// So many operations.
    Operations(u64),
}

/// What a client is asked to do.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// What.
    pub work: Work,
    /// How much of it.
    pub amount: Amount,
    /// Operations per second; none: as many as go.
    pub rate: Option<f64>,
}

/// A load: a program to run to its end, or a line for the lean generator.
#[derive(Debug, Clone)]
pub enum Client {
    /// An ordinary program.
    Program(Launch),
    /// What the generator is told.
    Lean(String),
}

/// The program of a case, with what it needs to know.
#[derive(Debug, Clone)]
pub struct Application<'a> {
    case: Case,
    at: Endpoint,
    /// A Unix socket to use instead, for programs that can.
    unix: Option<PathBuf>,
    lean: bool,
    files: &'a Files,
}

impl<'a> Application<'a> {
    /// For a case; `unix` is a socket to use instead of `at`; `lean`: the generator is the client.
    #[must_use]
    pub fn new(case: Case, at: Endpoint, unix: Option<PathBuf>, lean: bool, files: &'a Files) -> Self {
        Self { case, at, unix, lean, files }
    }

    /// The server; what it needs is written to `directory`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn server(&self, directory: &Path) -> Result<Launch, Error> {
        match self.case.app {
            App::Nginx => nginx::server(self.case.work, self.at, directory),
            App::Haproxy => haproxy::server(self.case.work, self.at, directory),
            App::Redis => Ok(redis::server(self.redis(), directory)),
            App::Memcached => Ok(memcached::server(self.at)),
            _ => Ok(own::server(self.case, self.at, self.unix.as_deref(), self.files)),
        }
    }

    /// A server that the server needs, and where it listens.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn behind(&self, directory: &Path) -> Result<Option<(Launch, Endpoint)>, Error> {
        match self.case.app {
            App::Haproxy => Ok(Some((haproxy::behind(self.at, directory)?, haproxy::backend(self.at)))),
            _ => Ok(None),
        }
    }

    /// The load to run before anything is measured: warms caches and puts in what the case reads.
    #[must_use]
    pub fn warm_up(&self) -> Vec<(Client, Amount)> {
        let amount = match (self.case.app, self.case.work) {
            (App::Redis, Work::Get { close: true, .. }) => Amount::Operations(5000),
            (App::Redis, Work::Get { depth, connections, .. }) => {
                Amount::Operations(if connections == 1 { 3000 } else { 20_000 * u64::from(depth) })
            }
            _ => Amount::Seconds(1),
        };
        let mut all = Vec::new();
        if self.case.app == App::Redis {
            let fill = Client::Program(redis::fill(self.redis()));
            all.push((fill, Amount::Operations(redis::FILL_OPERATIONS)));
        }
        all.push((self.client(amount, None), amount));
        all
    }

    /// The load to measure for about `seconds`, when the warm-up ran as `warm`; at `rate`, if one is asked for.
    #[must_use]
    pub fn measured(&self, warm: &Load, seconds: u32, rate: Option<f64>) -> (Client, Amount) {
        let amount = match self.case.app {
            App::Redis => {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a rate; `as` saturates"
                )]
                let operations = (warm.per_second * f64::from(seconds)) as u64;
                Amount::Operations(operations.clamp(1000, 50_000_000))
            }
            _ => Amount::Seconds(seconds),
        };
        (self.client(amount, rate), amount)
    }

    fn redis(&self) -> redis::At<'_> {
        redis::At { tcp: self.at, unix: self.unix.as_deref() }
    }

    fn client(&self, amount: Amount, rate: Option<f64>) -> Client {
        let work = self.case.work;
        let asked = Asked { work, amount, rate };
        if self.lean {
            return Client::Lean(own::line(asked));
        }
        Client::Program(match (self.case.app, work, amount) {
            (App::Nginx | App::Haproxy, _, Amount::Seconds(seconds)) => nginx::wrk(work, self.at, seconds),
            (App::Nginx | App::Haproxy, _, Amount::Operations(n)) => nginx::ab(work, self.at, n),
            (App::Memcached, Work::Get { connections, .. }, amount) => {
                memcached::client(self.at, connections, seconds(amount))
            }
            (App::Redis, Work::Get { depth, connections, close }, amount) => {
                redis::get(self.redis(), depth, connections, close, operations(amount))
            }
            _ => own::client(asked, self.at, self.unix.as_deref(), self.files),
        })
    }

    /// What the client's output says.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn parse(&self, text: &str, amount: Amount) -> Result<Load, Error> {
        match (self.case.app, amount) {
            (App::Nginx | App::Haproxy, Amount::Seconds(_)) => crate::parse::wrk(text),
            (App::Nginx | App::Haproxy, Amount::Operations(_)) => crate::parse::ab(text),
            (App::Redis, amount) => crate::parse::redis_benchmark(text, operations(amount)),
            (App::Memcached, _) => crate::parse::memcaslap(text),
            _ => own::parse(text),
        }
    }

    /// Whether a load goes on over the connections of the last.
    #[must_use]
    pub fn keeps_connections(&self) -> bool {
        self.lean && matches!(self.case.work, Work::Messages { messages: 0, .. })
    }

    /// How many connections a load of this result must have made at least.
    #[must_use]
    pub fn connections(&self, load: &Load) -> u64 {
        match self.case.work {
            Work::Http { close: true, .. }
            | Work::Proxy { close: true, .. }
            | Work::Get { close: true, .. }
            | Work::Connect { .. } => load.operations,
            Work::Http { .. } | Work::Proxy { .. } => nginx::CONNECTIONS.into(),
            Work::Get { connections, .. } | Work::Messages { messages: 0, connections, .. } => {
                connections.into()
            }
            Work::Messages { messages, .. } => load.operations / u64::from(messages),
            Work::Stream { flows } => flows.into(),
            _ => 1,
        }
    }

    /// What to print beside the figures of a case.
    #[must_use]
    pub fn settings(case: &Case) -> Vec<(&'static str, String)> {
        let mut words = match case.app {
            App::Nginx => vec![("nginx", nginx::words())],
            App::Redis => vec![("redis", redis::WORDS.to_owned())],
            App::Haproxy => vec![("haproxy", haproxy::WORDS.to_owned())],
            App::Memcached => vec![("memcached", memcached::WORDS.to_owned())],
            App::Engine => vec![("engine", crate::solo::WORDS.to_owned())],
            App::Demux => vec![("demux", crate::demux::WORDS.to_owned())],
            _ => vec![("utcp-load", own::WORDS.to_owned())],
        };
        if case.is_lean() || matches!(case.scenario, Scenario::Idle | Scenario::Scale) {
            words.push(("utcp-lean", own::LEAN_WORDS.to_owned()));
        }
        words
    }
}

/// For a load that is told a count, where a time is asked for.
fn operations(amount: Amount) -> u64 {
    match amount {
        Amount::Operations(operations) => operations,
        Amount::Seconds(seconds) => u64::from(seconds) * 10_000,
    }
}

/// For a load that is told a time, where a count is asked for.
fn seconds(amount: Amount) -> u32 {
    match amount {
        Amount::Operations(_) => 1,
        Amount::Seconds(seconds) => seconds,
    }
}
