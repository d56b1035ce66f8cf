//! redis, loaded by redis-benchmark.

use std::path::Path;

use super::Endpoint;
use crate::child::Launch;

/// What to print beside the figures.
pub const WORDS: &str = "no persistence, 1 thread; redis-benchmark: 1 thread, GET of a 3-byte value";

/// SETs that put the value in.
pub const FILL_OPERATIONS: u64 = 100;

pub fn server(at: Endpoint, directory: &Path) -> Launch {
    Launch::new("redis-server")
        .args(["--bind", at.ip, "--port", &at.port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--daemonize", "no"])
        .args(["--tcp-backlog", "4096", "--dir"])
        .args([directory.as_os_str()])
}

/// The value that GET finds: without `-r` every request names the same key.
pub fn fill(at: Endpoint) -> Launch {
    benchmark(at, "set", FILL_OPERATIONS, 1, 1)
}

pub fn get(at: Endpoint, depth: u32, connections: u32, operations: u64) -> Launch {
    benchmark(at, "get", operations, depth, connections)
}

fn benchmark(at: Endpoint, test: &str, operations: u64, depth: u32, connections: u32) -> Launch {
    Launch::new("redis-benchmark")
        .args(["-h", at.ip, "-p", &at.port.to_string(), "-t", test, "-n", &operations.to_string()])
        .args(["-d", "3", "-P", &depth.to_string(), "-c", &connections.to_string(), "--csv"])
}
