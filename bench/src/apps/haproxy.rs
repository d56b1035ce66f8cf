//! haproxy in front of nginx, both on the side that is measured; loaded by wrk.

use std::fs;
use std::path::Path;

use super::{Endpoint, nginx};
use crate::Error;
use crate::case::Work;
use crate::child::Launch;

/// What to print beside the figures.
pub const WORDS: &str = "1 thread, no log, http-reuse always; nginx answers `hello` behind it, on the same side and core; client by \
    wrk as for nginx";

/// The server behind the proxy.
pub fn behind(at: Endpoint, directory: &Path) -> Result<Launch, Error> {
    nginx::server(Work::Proxy { http: true, close: false }, backend(at), directory)
}

/// Where it listens.
pub fn backend(at: Endpoint) -> Endpoint {
    Endpoint { listen: "127.0.0.1", ip: "127.0.0.1", port: at.port.wrapping_add(1), ..at }
}

/// The proxy.
pub fn server(work: Work, at: Endpoint, directory: &Path) -> Result<Launch, Error> {
    let mode = if matches!(work, Work::Proxy { http: true, .. }) { "http" } else { "tcp" };
    let behind = backend(at);
    let reuse = if mode == "http" { "http-reuse always" } else { "" };
    let config = format!(
        "global
    nbthread 1
    maxconn 8192
defaults
    mode {mode}
    timeout connect 5s
    timeout client 600s
    timeout server 600s
listen proxy
    bind {}:{} backlog 4096
    {reuse}
    server behind {}:{}
",
        at.listen, at.port, behind.ip, behind.port
    );
    let path = directory.join("haproxy.cfg");
    fs::write(&path, config).map_err(Error::io("can't write haproxy.cfg"))?;
    Ok(Launch::new("haproxy").args(["-db".as_ref(), "-f".as_ref(), path.as_os_str()]))
}
