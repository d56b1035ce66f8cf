//! An ordinary user, no privilege, no device: programs of one host talk through their own engine.

use utcp_tests::nginx::{Nginx, Settings};
use utcp_tests::{Engine, Lab, WAIT, is_root, not_run, on_kernel};

const NOBODY: u32 = 65_534;

#[test]
fn nginx_and_curl_of_an_ordinary_user() {
    if !is_root() {
        return not_run("needs root to become another user; the other tests ran as one");
    }
    let lab = Lab::new("nobody");
    lab.give_to(NOBODY);
    let engine = Engine::new(&lab).owned_by(NOBODY); // Started by nginx.
    lab.file("nginx/x", "");
    std::os::unix::fs::chown(lab.path("nginx"), Some(NOBODY), Some(NOBODY)).expect("root may");
    let nginx = Nginx::start_with(&lab, &engine, &Settings::default(), |run| {
        run.under(&engine).as_user(NOBODY, NOBODY)
    });
    for _ in 0..10 {
        let curl = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello"));
        let page = curl.under(&engine).as_user(NOBODY, NOBODY).ok();
        assert_eq!((page.text().as_str(), page.err.as_str()), ("hello\n", ""));
    }
    engine.went_through(10);
    engine.wait_until_empty(WAIT);
}

/// A container of an ordinary user: new user and network namespace.
#[test]
fn inside_a_user_namespace() {
    if !is_root() {
        return not_run("needs root to become another user");
    }
    let lab = Lab::new("unshare");
    lab.give_to(NOBODY);
    let engine = Engine::new(&lab).owned_by(NOBODY);
    let (preload, utcp) = if on_kernel() {
        (String::new(), "true".to_owned())
    } else {
        let path = |name| engine.program(name).display().to_string();
        (format!("LD_PRELOAD={}", path("libutcp.so")), path("utcp"))
    };
    let script = lab.file(
        "talk.py",
        "import socket, subprocess, sys, os
server = socket.create_server(('127.0.0.1', 0))
for _ in range(20):
    client = socket.create_connection(server.getsockname())
    peer, _ = server.accept()
    client.sendall(b'abc'); assert peer.recv(10) == b'abc'
    client.close(); assert peer.recv(10) == b''
    peer.close()
os.environ.pop('LD_PRELOAD', None)
print(subprocess.run([sys.argv[1], 'metrics'], capture_output=True, text=True).stdout)
print('talked')",
    );
    let command = format!("ip link set lo up && {preload} /usr/bin/python3 {} {utcp}", script.display());
    let run = lab.run("unshare").args(["-Urn", "sh", "-c", &command]).env("UTCP_STACK", engine.stack());
    let end = run.as_user(NOBODY, NOBODY).ok();
    let text = end.text();
    assert!(text.contains("talked"), "{text}{}", end.err);
    assert_eq!(end.err, "");
    if !on_kernel() {
        let count = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok())
        };
        assert_eq!((count("connects"), count("accepts")), (Some(20), Some(20)), "{text}");
    }
}
