//! nginx answering five bytes, loaded by wrk (a time) or ab (a count).

use std::fs;
use std::path::Path;

use super::Endpoint;
use crate::Error;
use crate::child::Launch;

/// Connections that are open at a time.
pub const CONNECTIONS: u32 = 50;
const WORKERS: u32 = 1;

/// What to print beside the figures.
pub fn words() -> String {
    format!(
        "{WORKERS} worker, access_log off, `return 200 \"hello\"`, keepalive_requests unlimited; wrk: 1 thread, \
         {CONNECTIONS} connections; close-hello: a connection for each request (`Connection: close`)"
    )
}

pub fn server(at: Endpoint, directory: &Path) -> Result<Launch, Error> {
    let path = directory.join("nginx.conf");
    fs::write(&path, config(at, directory)).map_err(Error::io("can't write nginx.conf"))?;
    Ok(Launch::new("nginx").args(["-p".as_ref(), directory.as_os_str(), "-c".as_ref(), path.as_os_str()]))
}

fn config(at: Endpoint, directory: &Path) -> String {
    let Endpoint { ip, port } = at;
    let dir = directory.display();
    // Workers keep the master's user: `nobody` could not reach an engine of this user.
    let user = if crate::net::is_root() { "user root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes {WORKERS};
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen {ip}:{port} backlog=4096;
        location / {{ return 200 \"hello\"; }}
    }}
}}
"
    )
}

pub fn wrk(at: Endpoint, close: bool, seconds: u32) -> Launch {
    let launch = Launch::new("wrk").args([
        "-t1".to_owned(),
        format!("-c{CONNECTIONS}"),
        format!("-d{seconds}s"),
        "--latency".to_owned(),
    ]);
    let launch = if close { launch.args(["-H", "Connection: close"]) } else { launch };
    launch.args([url(at)])
}

pub fn ab(at: Endpoint, close: bool, operations: u64) -> Launch {
    let launch =
        Launch::new("ab").args(["-q", "-n", &operations.to_string(), "-c", &CONNECTIONS.to_string()]);
    let launch = if close { launch } else { launch.args(["-k"]) };
    launch.args([url(at)])
}

fn url(at: Endpoint) -> String {
    format!("http://{}:{}/", at.ip, at.port)
}
