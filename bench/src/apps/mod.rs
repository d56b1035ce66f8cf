//! The programs that are compared: how server and client are started, and what the client says.

mod nginx;
mod own;
mod redis;

use std::path::{Path, PathBuf};

use crate::Error;
use crate::case::{App, Case, Work};
use crate::child::Launch;
use crate::engine::Files;
use crate::parse::Load;

/// Where the server listens.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Its address.
    pub ip: &'static str,
    /// Its port.
    pub port: u16,
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// For so long.
    Seconds(u32),
    /// So many operations.
    Operations(u64),
}

/// The program of a case, with what it needs to know.
#[derive(Debug, Clone)]
pub struct Application<'a> {
    case: Case,
    at: Endpoint,
    /// A Unix socket to use instead, for programs that can.
    unix: Option<PathBuf>,
    files: &'a Files,
}

impl<'a> Application<'a> {
    /// For a case; `unix` is a socket to use instead of `at`.
    #[must_use]
    pub fn new(case: Case, at: Endpoint, unix: Option<PathBuf>, files: &'a Files) -> Self {
        Self { case, at, unix, files }
    }

    /// The server; what it needs is written to `directory`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn server(&self, directory: &Path) -> Result<Launch, Error> {
        match self.case.app {
            App::Nginx => nginx::server(self.at, directory),
            App::Redis => Ok(redis::server(self.redis(), directory)),
            App::Msg | App::Pingpong | App::Stream => Ok(own::server(self.case, self.at, self.files)),
        }
    }

    /// The load to run before anything is measured: warms caches and puts in what the case reads.
    #[must_use]
    pub fn warm_up(&self) -> Vec<(Launch, Amount)> {
        let amount = match self.case.work {
            Work::Hello { .. } | Work::Messages { .. } | Work::Pingpong | Work::Stream => Amount::Seconds(1),
            Work::Get { depth, connections } => {
                Amount::Operations(if connections == 1 { 3000 } else { 20_000 * u64::from(depth) })
            }
        };
        let mut all = Vec::new();
        if self.case.app == App::Redis {
            all.push((redis::fill(self.redis()), Amount::Operations(redis::FILL_OPERATIONS)));
        }
        all.push((self.client(amount), amount));
        all
    }

    /// The load to measure for about `seconds`, when the warm-up ran as `warm`.
    #[must_use]
    pub fn measured(&self, warm: &Load, seconds: u32) -> (Launch, Amount) {
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
        (self.client(amount), amount)
    }

    fn redis(&self) -> redis::At<'_> {
        redis::At { tcp: self.at, unix: self.unix.as_deref() }
    }

    fn client(&self, amount: Amount) -> Launch {
        match (self.case.work, amount) {
            (Work::Hello { close }, Amount::Seconds(seconds)) => nginx::wrk(self.at, close, seconds),
            (Work::Hello { close }, Amount::Operations(operations)) => nginx::ab(self.at, close, operations),
            (Work::Get { depth, connections }, Amount::Operations(operations)) => {
                redis::get(self.redis(), depth, connections, operations)
            }
            (Work::Get { depth, connections }, Amount::Seconds(seconds)) => {
                redis::get(self.redis(), depth, connections, u64::from(seconds) * 10_000)
            }
            (_, amount) => own::client(self.case, self.at, amount, self.files),
        }
    }

    /// What the client's output says.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn parse(&self, text: &str, amount: Amount) -> Result<Load, Error> {
        match (self.case.app, amount) {
            (App::Nginx, Amount::Seconds(_)) => crate::parse::wrk(text),
            (App::Nginx, Amount::Operations(_)) => crate::parse::ab(text),
            (App::Redis, Amount::Operations(operations)) => crate::parse::redis_benchmark(text, operations),
            (App::Redis, Amount::Seconds(seconds)) => {
                crate::parse::redis_benchmark(text, u64::from(seconds) * 10_000)
            }
            _ => own::parse(text),
        }
    }

    /// How many connections a load of this result must have made at least.
    #[must_use]
    pub fn connections(&self, load: &Load) -> u64 {
        match self.case.work {
            Work::Hello { close: true } => load.operations,
            Work::Hello { close: false } => nginx::CONNECTIONS.into(),
            Work::Get { connections, .. } => connections.into(),
            Work::Messages { messages, .. } => load.operations / u64::from(messages),
            Work::Pingpong | Work::Stream => 1,
        }
    }

    /// What to print beside the figures.
    #[must_use]
    pub fn settings(app: App) -> Vec<(&'static str, String)> {
        match app {
            App::Nginx => vec![("nginx", nginx::words())],
            App::Redis => vec![("redis", redis::WORDS.to_owned())],
            App::Msg | App::Pingpong | App::Stream => vec![("utcp-load", own::WORDS.to_owned())],
        }
    }
}
