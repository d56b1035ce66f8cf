//! redis, loaded by redis-benchmark.

use std::path::Path;

use super::Endpoint;
use crate::child::Launch;

/// What to print beside the figures.
pub const WORDS: &str = "no persistence, 1 thread; redis-benchmark: 1 thread, GET of a 3-byte value";

/// SETs that put the value in.
pub const FILL_OPERATIONS: u64 = 100;

/// Where redis listens: TCP, and a Unix socket if the client is to use that.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub tcp: Endpoint,
    pub unix: Option<&'a Path>,
}

pub fn server(at: At<'_>, directory: &Path) -> Launch {
    let launch = Launch::new("redis-server");
    let launch = at.unix.iter().fold(launch, |l, path| l.args(["--unixsocket".as_ref(), path.as_os_str()]));
    launch
        .args(["--bind", at.tcp.listen, "--port", &at.tcp.port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--daemonize", "no"])
        .args(["--tcp-backlog", "4096", "--dir"])
        .args([directory.as_os_str()])
}

/// The value that GET finds: without `-r` every request names the same key.
pub fn fill(at: At<'_>) -> Launch {
    benchmark(at, "set", FILL_OPERATIONS, 1, 1)
}

pub fn get(at: At<'_>, depth: u32, connections: u32, close: bool, operations: u64) -> Launch {
    let launch = benchmark(at, "get", operations, depth, connections);
    if close { launch.args(["-k", "0"]) } else { launch }
}

fn benchmark(at: At<'_>, test: &str, operations: u64, depth: u32, connections: u32) -> Launch {
    let launch = Launch::new("redis-benchmark");
    let launch = match at.unix {
        Some(path) => launch.args(["-s".as_ref(), path.as_os_str()]),
        None => launch.args(["-h", at.tcp.ip, "-p", &at.tcp.port.to_string()]),
    };
    launch.args(["-t", test, "-n", &operations.to_string()]).args([
        "-d",
        "3",
        "-P",
        &depth.to_string(),
        "-c",
        &connections.to_string(),
        "--csv",
    ])
}
