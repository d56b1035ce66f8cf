//! nginx answering five bytes or a file, plain or by TLS, loaded by wrk (a time) or ab (a count).

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Endpoint;
use crate::Error;
use crate::case::Work;
use crate::child::Launch;

/// Connections that are open at a time.
pub const CONNECTIONS: u32 = 50;
const WORKERS: u32 = 1;

/// What to print beside the figures.
pub fn words() -> String {
    format!(
        "{WORKERS} worker, access_log off, `return 200 \"hello\"` or a file by sendfile, keepalive_requests unlimited; wrk: 1 \
         thread, {CONNECTIONS} connections; close: a connection for each request (`Connection: close`); tls: \
         nginx's defaults, a P-256 key"
    )
}

/// The server for `work`; its files go to `directory`.
pub fn server(work: Work, at: Endpoint, directory: &Path) -> Result<Launch, Error> {
    let Work::Http { bytes, tls, .. } = work else { return start("", at, directory) };
    let failed = || Error::io("can't write what nginx serves");
    fs::create_dir_all(directory.join("www")).map_err(failed())?;
    if bytes > 0 {
        fs::write(directory.join("www/file"), vec![b'f'; bytes as usize]).map_err(failed())?;
    }
    if !tls {
        return start("", at, directory);
    }
    key(directory)?;
    start(" ssl", at, directory)
}

/// A key and a certificate of its own.
fn key(directory: &Path) -> Result<(), Error> {
    let file = |name: &str| directory.join(name).into_os_string();
    Launch::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=utcp-compare", "-days", "2", "-keyout"])
        .args([file("key.pem"), "-out".into(), file("cert.pem")])
        .run(directory, Duration::from_secs(10))
        .map(drop)
}

fn start(ssl: &str, at: Endpoint, directory: &Path) -> Result<Launch, Error> {
    let path = directory.join("nginx.conf");
    fs::write(&path, config(ssl, at, directory)).map_err(Error::io("can't write nginx.conf"))?;
    Ok(Launch::new("nginx").args(["-p".as_ref(), directory.as_os_str(), "-c".as_ref(), path.as_os_str()]))
}

fn config(ssl: &str, at: Endpoint, directory: &Path) -> String {
    let Endpoint { listen: ip, port, .. } = at;
    let dir = directory.display();
    // Workers keep the master's user: `nobody` could not reach an engine of this user.
    let user = if crate::net::is_root() { "user root;" } else { "" };
    let certificate = if ssl.is_empty() {
        String::new()
    } else {
        format!("ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;")
    };
    format!(
        "{user}
daemon off;
worker_processes {WORKERS};
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen {ip}:{port}{ssl} backlog=4096;
        {certificate}
        location / {{ return 200 \"hello\"; }}
        location /file {{ root {dir}/www; }}
    }}
}}
"
    )
}

pub fn wrk(work: Work, at: Endpoint, seconds: u32) -> Launch {
    let launch = Launch::new("wrk").args([
        "-t1".to_owned(),
        format!("-c{CONNECTIONS}"),
        format!("-d{seconds}s"),
        "--latency".to_owned(),
    ]);
    let launch = if closes(work) { launch.args(["-H", "Connection: close"]) } else { launch };
    launch.args([url(work, at)])
}

pub fn ab(work: Work, at: Endpoint, operations: u64) -> Launch {
    let launch =
        Launch::new("ab").args(["-q", "-n", &operations.to_string(), "-c", &CONNECTIONS.to_string()]);
    let launch = if closes(work) { launch } else { launch.args(["-k"]) };
    launch.args([url(work, at)])
}

fn closes(work: Work) -> bool {
    matches!(work, Work::Http { close: true, .. } | Work::Proxy { close: true, .. })
}

fn url(work: Work, at: Endpoint) -> String {
    let (tls, bytes) = match work {
        Work::Http { tls, bytes, .. } => (tls, bytes),
        _ => (false, 0),
    };
    let scheme = if tls { "https" } else { "http" };
    let path = if bytes > 0 { "file" } else { "" };
    format!("{scheme}://{}:{}/{path}", at.ip, at.port)
}
