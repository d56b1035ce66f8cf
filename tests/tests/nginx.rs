//! nginx as a server on the same host: two workers, sendfile on.

use std::time::Duration;

use utcp_tests::nginx::{Nginx, Settings};
use utcp_tests::{Engine, Lab, WAIT, wait_until};

const BIG: usize = 200_000_000;

/// ab's own words about a run: complete, failed and non-2xx answers.
fn ab_is_clean(report: &str, requests: usize) {
    assert!(report.contains(&format!("Complete requests:      {requests}\n")), "{report}");
    assert!(report.contains("Failed requests:        0\n"), "{report}");
    assert!(!report.contains("Non-2xx"), "{report}");
}

#[test]
fn big_file_arrives_whole() {
    let lab = Lab::new("nginx-big");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", BIG);
    let got = lab.path("got");
    let curl = lab.run("curl").args(["-sS", "-m", "50", "-o"]).arg(&got).arg(nginx.url("big"));
    let _ = curl.under(&engine).ok();
    let sum = |path| lab.run("sha256sum").arg(path).ok().text()[..64].to_owned();
    assert_eq!(sum(&got), sum(&file));
    engine.went_through(1);
}

/// Four downloads at once, one of them slow: none waits for another, none gets another's bytes.
#[test]
fn big_files_side_by_side() {
    let lab = Lab::new("nginx-side");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/middle", 20_000_000);
    let want = std::fs::read(&file).expect("ours");
    let start = |number: usize, rate: &str| {
        let got = lab.path(&format!("got-{number}"));
        let run = lab.run("curl").args(["-sS", "-m", "40", "--limit-rate", rate, "-o"]).arg(&got);
        (run.arg(nginx.url("middle")).under(&engine).spawn(), got)
    };
    let downloads = [start(0, "5M"), start(1, "0"), start(2, "0"), start(3, "0")];
    for (curl, got) in downloads {
        let _ = curl.finish().ok();
        assert!(std::fs::read(got).expect("curl wrote it") == want);
    }
    engine.went_through(4);
}

#[test]
fn ten_thousand_keep_alive_requests() {
    let lab = Lab::new("nginx-keepalive");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let ab = lab.run("ab").args(["-q", "-k", "-n", "10000", "-c", "32"]).arg(nginx.url("hello"));
    let report = ab.under(&engine).ok().text();
    ab_is_clean(&report, 10_000);
    assert!(report.contains("Keep-Alive requests:    10000\n"), "{report}");
    engine.went_through(32);
    engine.wait_until_empty(WAIT);
}

#[test]
fn ten_thousand_connections() {
    let lab = Lab::new("nginx-close");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let ab = lab.run("ab").args(["-q", "-n", "10000", "-c", "32"]).arg(nginx.url("hello"));
    ab_is_clean(&ab.under(&engine).ok().text(), 10_000);
    engine.went_through(10_000);
    engine.wait_until_empty(WAIT);
}

/// A new configuration while connections come and go: each is answered by an old or a new worker.
#[test]
fn reload_loses_no_request() {
    let lab = Lab::new("nginx-reload");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let old = nginx.workers();
    let ab = lab.run("ab").args(["-q", "-n", "8000", "-c", "8"]).arg(nginx.url("hello"));
    let ab = ab.under(&engine).spawn();
    for _ in 0..3 {
        let before = nginx.workers();
        nginx.signal(&lab, "reload");
        wait_until("the old workers are replaced", WAIT, || {
            let now = nginx.workers();
            (now.len() == 2 && now.iter().all(|pid| !before.contains(pid))).then_some(())
        });
    }
    ab_is_clean(&ab.finish().ok().text(), 8000);
    assert!(nginx.workers().iter().all(|pid| !old.contains(pid)));
    engine.went_through(8000);
    let again = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok();
    assert_eq!(again.text(), "hello\n");
    engine.wait_until_empty(WAIT);
}

/// `nginx -s quit`: what is being answered is answered to its end, nothing new is begun.
#[test]
fn quit_finishes_what_it_began() {
    let lab = Lab::new("nginx-quit");
    let engine = Engine::start(&lab);
    let mut nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/slow", 6_000_000);
    let got = lab.path("got");
    let run = lab.run("curl").args(["-sS", "-m", "40", "--limit-rate", "3M", "-o"]).arg(&got);
    let curl = run.arg(nginx.url("slow")).under(&engine).spawn();
    wait_until("the download runs", WAIT, || (std::fs::metadata(&got).ok()?.len() > 100_000).then_some(()));
    nginx.signal(&lab, "quit");
    wait_until("nobody listens any more", WAIT, || {
        let again = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).finish();
        (again.status.code() == Some(7)).then_some(())
    });
    let _ = curl.finish().ok();
    assert!(std::fs::read(&got).expect("curl wrote it") == std::fs::read(&file).expect("ours"));
    let _ = nginx.master.end_within(WAIT).ok();
    engine.went_through(1);
    engine.wait_until_gone("sockets", WAIT, |socket| socket.state != "TIME-WAIT");
}

/// A worker that is killed takes its connections with it, at once and without a trace; its sibling serves on.
#[test]
fn killed_worker_closes_its_connections() {
    let lab = Lab::new("nginx-kill");
    let engine = Engine::start(&lab);
    let settings = Settings { workers: 1, ..Settings::default() };
    let nginx = Nginx::start_with(&lab, &engine, &settings, |run| run.under(&engine));
    let port = nginx.port;
    let script = format!(
        "import socket, time, select, sys
all = [socket.create_connection(('127.0.0.1', {port})) for _ in range(50)]
for s in all:
    s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    assert s.recv(1000).startswith(b'HTTP/1.1 200')
print('connected')
poll = select.poll()
for s in all: poll.register(s, select.POLLIN)
left = {{s.fileno(): s for s in all}}
while left:
    ready = poll.poll(20000)
    assert ready, 'nothing happened'
    for fd, events in ready:
        s = left.pop(fd)
        poll.unregister(fd)
        try:
            assert s.recv(100) == b''
        except ConnectionResetError:
            pass
print('closed')"
    );
    let mut client = lab.python(&script).under(&engine).spawn();
    client.wait_for_output("connected");
    let worker = nginx.workers();
    utcp_tests::signal_pid(worker[0], libc::SIGKILL);
    let _ = client.end_within(Duration::from_secs(1)).ok();
    engine.went_through(50);
    wait_until("another worker comes", WAIT, || {
        nginx.workers().first().is_some_and(|pid| *pid != worker[0]).then_some(())
    });
    let page = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok();
    assert_eq!(page.text(), "hello\n");
    engine.wait_until_empty(WAIT);
}
