//! memcached, loaded by memcaslap.

use super::Endpoint;
use crate::child::Launch;

/// What to print beside the figures.
pub const WORDS: &str =
    "1 worker thread; memcaslap: 1 thread, text protocol, 9 GET for each SET, 64-byte values";

/// What makes memcaslap warm.
pub const VALUES: &str = "1k";

pub fn server(at: Endpoint) -> Launch {
    let launch = Launch::new("memcached");
    // As any other user it could not reach an engine of this one.
    let launch = if crate::net::is_root() { launch.args(["-u", "root"]) } else { launch };
    launch.args([
        "-l",
        at.listen,
        "-p",
        &at.port.to_string(),
        "-U",
        "0",
        "-t",
        "1",
        "-c",
        "4096",
        "-b",
        "4096",
    ])
}

pub fn client(at: Endpoint, connections: u32, seconds: u32) -> Launch {
    Launch::new("memcaslap")
        .args(["-s", &format!("{}:{}", at.ip, at.port), "-T", "1", "-c", &connections.to_string()])
        .args(["-w", VALUES, "-X", "64", "-t", &format!("{seconds}s")])
}
