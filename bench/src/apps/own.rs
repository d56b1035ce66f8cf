//! utcp-load and utcp-lean: our own servers and clients.

use std::path::Path;

use super::{Amount, Asked, Endpoint};
use crate::Error;
use crate::case::{Case, Work};
use crate::child::Launch;
use crate::engine::Files;
use crate::load::Summary;
use crate::parse::Load;

/// What to print beside the figures.
pub const WORDS: &str = "plain sockets and epoll, 1 thread each (stream: one for each flow), TCP_NODELAY; msg: 64 connections at \
    a time; pingpong: 1 connection on blocking sockets, several on epoll";

/// What to print where the lean generator is the client.
pub const LEAN_WORDS: &str =
    "utcp-lean: 1 thread, AF_XDP or pipe, the same for both servers; TCP with timestamps, SACK, delayed ACK";

pub fn server(case: Case, at: Endpoint, unix: Option<&Path>, files: &Files) -> Launch {
    let listen = ["--listen".to_owned(), format!("{}:{}", at.listen, at.port)];
    let launch = Launch::new(&files.load);
    match case.work {
        Work::Stream { .. } => launch.args(["sink"]).args(listen),
        Work::Connect { .. } => launch.args(["accept"]).args(listen),
        _ => {
            let launch = launch.args(["echo"]).args(listen).args(["--ports", &at.ports.to_string()]);
            unix.iter().fold(launch, |l, path| l.args(["--unix".as_ref(), path.as_os_str()]))
        }
    }
}

pub fn client(asked: Asked, at: Endpoint, unix: Option<&Path>, files: &Files) -> Launch {
    let launch = Launch::new(&files.load);
    let rate = asked.rate.map(|rate| format!("--rate={rate}"));
    let launch = match asked.work {
        Work::Messages { bytes, messages, connections } => launch
            .args(["msg", "--bytes", &bytes.to_string()])
            .args(["--messages", &messages.to_string(), "--connections", &connections.to_string()]),
        Work::Stream { flows } => launch.args(["stream", "--flows", &flows.to_string()]),
        Work::Connect { connections } => launch.args(["connect", "--connections", &connections.to_string()]),
        Work::Pingpong { bytes } => {
            let launch = launch.args(["pingpong", "--bytes", &bytes.to_string()]);
            unix.iter().fold(launch, |l, path| l.args(["--unix".as_ref(), path.as_os_str()]))
        }
        _ => launch,
    };
    let launch = launch.args(rate).args(["--connect".to_owned(), format!("{}:{}", at.ip, at.port)]);
    match asked.amount {
        Amount::Seconds(seconds) => launch.args(["--seconds", &seconds.to_string()]),
        Amount::Operations(operations) => launch.args(["--operations", &operations.to_string()]),
    }
}

/// What the lean generator is told to do.
pub fn line(asked: Asked) -> String {
    let Work::Messages { bytes, messages, connections } = asked.work else { return "end".to_owned() };
    let rate = asked.rate.map_or_else(String::new, |rate| format!(" --rate {rate}"));
    let seconds = match asked.amount {
        Amount::Seconds(seconds) => seconds,
        Amount::Operations(_) => 1,
    };
    format!("msg --bytes {bytes} --messages {messages} --connections {connections} --seconds {seconds}{rate}")
}

pub fn parse(text: &str) -> Result<Load, Error> {
    let summary: Summary = serde_json::from_str(text.trim()).map_err(|_| Error::Output {
        name: "utcp-load",
        missing: "a summary",
        text: text.to_owned(),
    })?;
    Ok(summary.into())
}

impl From<Summary> for Load {
    fn from(summary: Summary) -> Self {
        Self {
            operations: summary.operations,
            per_second: summary.per_second,
            errors: summary.errors,
            p50_us: summary.p50_us,
            p99_us: summary.p99_us,
            p999_us: summary.p999_us,
        }
    }
}
