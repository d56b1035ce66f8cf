//! wrk, ab and redis-cli as clients. (curl has a file of its own.)

use utcp_tests::nginx::Nginx;
use utcp_tests::redis::Redis;
use utcp_tests::{Engine, Lab, WAIT, on_kernel};

/// Requests that wrk counted; it only tells of errors when there were some.
fn wrk_requests(report: &str) -> u64 {
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    let line =
        report.lines().find(|line| line.contains(" requests in ")).unwrap_or_else(|| panic!("{report}"));
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{report}"))
}

/// Two threads, 64 connections, two epoll_ctl MOD per request.
#[test]
fn wrk_keeps_its_connections() {
    let lab = Lab::new("wrk");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let wrk = lab.run("wrk").args(["-t2", "-c64", "-d2s"]).arg(nginx.url("hello"));
    let requests = wrk_requests(&wrk.under(&engine).ok().text());
    assert!(requests >= 10_000, "{requests} requests");
    engine.went_through(64);
    engine.wait_until_empty(WAIT);
}

#[test]
fn wrk_closes_each_connection() {
    let lab = Lab::new("wrk-close");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let wrk = lab.run("wrk").args(["-t2", "-c32", "-d2s", "-H", "Connection: close"]).arg(nginx.url("hello"));
    let requests = wrk_requests(&wrk.under(&engine).ok().text());
    assert!(requests >= 1000, "{requests} requests");
    engine.went_through(requests);
    engine.wait_until_empty(WAIT);
}

#[test]
fn wrk_gets_files() {
    let lab = Lab::new("wrk-files");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/file", 100_000);
    let wrk = lab.run("wrk").args(["-t2", "-c16", "-d2s"]).arg(nginx.url("file"));
    assert!(wrk_requests(&wrk.under(&engine).ok().text()) > 500);
    engine.went_through(16);
}

/// Each end alone: wrk on the kernel, nginx under utcp; then the other way round.
#[test]
fn wrk_each_end_alone() {
    let lab = Lab::new("wrk-alone");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let wrk = lab.run("wrk").args(["-t1", "-c8", "-d1s"]).arg(nginx.url("hello"));
    assert!(wrk_requests(&wrk.ok().text()) > 500);
    let plain = Nginx::start_on_kernel(&Lab::new("wrk-alone-server"), None);
    let before = engine.counters();
    let wrk = lab.run("wrk").args(["-t1", "-c8", "-d1s"]).arg(plain.url("hello"));
    assert!(wrk_requests(&wrk.under(&engine).ok().text()) > 500);
    if !on_kernel() {
        assert_eq!(engine.counters().since(&before, "connects"), 0);
    }
}

/// ab connects twice to learn that it is connected.
#[test]
fn ab_posts_and_gets() {
    let lab = Lab::new("ab");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/file", 50_000);
    let ab = lab
        .run("ab")
        .args(["-q", "-n", "2000", "-c", "50"])
        .arg(nginx.url("file"))
        .under(&engine)
        .ok()
        .text();
    assert!(ab.contains("Complete requests:      2000\n"), "{ab}");
    assert!(ab.contains("Failed requests:        0\n") && !ab.contains("Non-2xx"), "{ab}");
    assert!(ab.contains("HTML transferred:       100000000 bytes"), "{ab}");
    engine.went_through(2000);
}

#[test]
fn redis_cli_blocks_for_an_answer() {
    let lab = Lab::new("redis-cli");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    let waiter = redis.cli(&lab, &["blpop", "list", "10"]).under(&engine).spawn();
    utcp_tests::wait_until("redis has a blocked client", WAIT, || {
        let info = redis.cli(&lab, &["info", "clients"]).under(&engine).ok().text();
        info.contains("blocked_clients:1").then_some(())
    });
    assert_eq!(redis.cli(&lab, &["rpush", "list", "x"]).under(&engine).ok().text(), "1\n");
    assert_eq!(waiter.finish().ok().text(), "list\nx\n");
    engine.went_through(3);
}
