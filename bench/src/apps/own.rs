//! utcp-load: our own servers and clients on plain sockets.

use super::{Amount, Endpoint};
use crate::Error;
use crate::case::{Case, Work};
use crate::child::Launch;
use crate::engine::Files;
use crate::load::Summary;
use crate::parse::Load;

/// What to print beside the figures.
pub const WORDS: &str =
    "plain sockets and epoll, 1 thread each; msg: 64 connections; pingpong and stream: 1 connection";

/// Connections of the message load.
const MESSAGE_CONNECTIONS: u32 = 64;

pub fn server(case: Case, at: Endpoint, files: &Files) -> Launch {
    let listen = ["--listen".to_owned(), address(at)];
    let launch = Launch::new(&files.load);
    match case.work {
        Work::Stream => launch.args(["sink"]).args(listen),
        _ => launch.args(["echo"]).args(listen),
    }
}

pub fn client(case: Case, at: Endpoint, amount: Amount, files: &Files) -> Launch {
    let launch = Launch::new(&files.load);
    let launch = match case.work {
        Work::Messages { bytes, messages } => launch.args(["msg", "--bytes", &bytes.to_string()]).args([
            "--messages",
            &messages.to_string(),
            "--connections",
            &MESSAGE_CONNECTIONS.to_string(),
        ]),
        Work::Stream => launch.args(["stream"]),
        _ => launch.args(["pingpong", "--bytes", "64"]),
    };
    let launch = launch.args(["--connect".to_owned(), address(at)]);
    match amount {
        Amount::Seconds(seconds) => launch.args(["--seconds", &seconds.to_string()]),
        Amount::Operations(operations) => launch.args(["--operations", &operations.to_string()]),
    }
}

fn address(at: Endpoint) -> String {
    format!("{}:{}", at.ip, at.port)
}

pub fn parse(text: &str) -> Result<Load, Error> {
    let summary: Summary = serde_json::from_str(text.trim()).map_err(|_| Error::Output {
        name: "utcp-load",
        missing: "a summary",
        text: text.to_owned(),
    })?;
    Ok(Load {
        operations: summary.operations,
        per_second: summary.per_second,
        errors: summary.errors,
        p99_us: summary.p99_us,
    })
}
