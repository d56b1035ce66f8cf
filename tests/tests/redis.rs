//! redis: server, redis-cli and redis-benchmark, both ends under utcp and each end alone.

use std::time::Duration;

use utcp_tests::redis::Redis;
use utcp_tests::{Engine, Lab, WAIT, on_kernel, wait_until};

const SIZES: [usize; 8] = [1, 100, 1448, 16_384, 65_537, 1_000_000, 4_194_304, 10_000_000];

/// SET and GET of values from 1 byte to 10 MB through redis-cli.
fn values_come_back(lab: &Lab, redis: &Redis, client: Option<&Engine<'_>>) {
    for len in SIZES {
        let file = lab.random_file("value", len);
        let with = |run: utcp_tests::Run<'_>| match client {
            Some(engine) => run.under(engine).ok(),
            None => run.ok(),
        };
        let set = with(redis.cli(lab, &["-x", "set", "k"]).stdin(&file));
        assert_eq!(set.text(), "OK\n", "{len} bytes");
        let got = with(redis.cli(lab, &["--raw", "get", "k"]));
        let (value, end) = got.out.split_at(len);
        assert!(value == std::fs::read(&file).expect("ours"), "{len} bytes come back changed");
        assert_eq!(end, b"\n", "{len} bytes");
    }
}

#[test]
fn values_both_ends() {
    let lab = Lab::new("redis-values");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    values_come_back(&lab, &redis, Some(&engine));
    engine.went_through(2 * SIZES.len() as u64);
    engine.wait_until_empty(WAIT);
}

#[test]
fn values_server_alone() {
    let lab = Lab::new("redis-server-alone");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    values_come_back(&lab, &redis, None);
}

#[test]
fn values_client_alone() {
    let lab = Lab::new("redis-client-alone");
    let engine = Engine::start(&lab);
    let redis = Redis::start_on_kernel(&lab);
    let before = engine.counters();
    values_come_back(&lab, &redis, Some(&engine));
    if !on_kernel() {
        assert_eq!(engine.counters().since(&before, "connects"), 0);
    }
}

/// 20 000 commands without waiting for an answer.
#[test]
fn pipelining() {
    let lab = Lab::new("redis-pipeline");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    let commands: String = (0..20_000)
        .map(|n| {
            let (key, value) = (format!("k{n}"), format!("value-{n}").repeat(n % 20 + 1));
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len())
        })
        .collect();
    let file = lab.file("commands", commands);
    let report = redis.cli(&lab, &["--pipe"]).stdin(file).under(&engine).ok().text();
    assert!(report.contains("errors: 0, replies: 20000"), "{report}");
    assert_eq!(redis.cli(&lab, &["dbsize"]).under(&engine).ok().text(), "20000\n");
    assert_eq!(
        redis.cli(&lab, &["get", "k10019"]).under(&engine).ok().text().trim(),
        "value-10019".repeat(20)
    );
    engine.went_through(3);
}

#[test]
fn publish_reaches_every_subscriber() {
    let lab = Lab::new("redis-pubsub");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    let mut subscribers: Vec<_> =
        (0..5).map(|_| redis.cli(&lab, &["subscribe", "news"]).under(&engine).spawn()).collect();
    for subscriber in &mut subscribers {
        subscriber.wait_for_output("subscribe\nnews\n1\n");
    }
    for number in 0..20 {
        let reached = redis.cli(&lab, &["publish", "news", &format!("item-{number}")]).under(&engine).ok();
        assert_eq!(reached.text(), "5\n");
    }
    for subscriber in &mut subscribers {
        subscriber.wait_for_output("item-19\n");
        let seen = subscriber.stdout();
        assert!((0..20).all(|n| seen.contains(&format!("message\nnews\nitem-{n}\n"))), "{seen}");
    }
    engine.went_through(25);
}

/// The child of BGSAVE closes its inherited sockets at once; clients notice nothing.
#[test]
fn bgsave_under_load() {
    let lab = Lab::new("redis-bgsave");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    let args = ["-q", "-n", "60000", "-c", "20", "-r", "20000", "-d", "100", "-t", "set,get"];
    let mut load = redis.benchmark(&lab, &args).under(&engine).spawn();
    let mut saves = 0;
    while load.is_alive() && saves < 3 {
        let answer = redis.cli(&lab, &["bgsave"]).under(&engine).ok().text();
        assert!(answer.contains("Background saving started"), "{answer}");
        wait_until("BGSAVE ends", WAIT, || {
            let info = redis.cli(&lab, &["info", "persistence"]).under(&engine).ok().text();
            assert!(info.contains("rdb_last_bgsave_status:ok"), "{info}");
            info.contains("rdb_bgsave_in_progress:0").then_some(())
        });
        saves += 1;
    }
    assert!(saves > 0);
    let report = load.end_within(Duration::from_secs(60)).ok();
    assert!(report.text().contains("SET: ") && report.text().contains("GET: "), "{}", report.text());
    assert!(!report.text().contains("rror") && !report.err.contains("rror"), "{}", report.err);
    engine.went_through(40);
    engine.wait_until_empty(WAIT);
}

fn benchmark_runs_to_the_end(lab: &Lab, redis: &Redis, client: Option<&Engine<'_>>) {
    let run = redis.benchmark(lab, &["-q", "-n", "2000", "-c", "20"]);
    let report = match client {
        Some(engine) => run.under(engine).ok(),
        None => run.ok(),
    };
    let text = report.text();
    // "-q" rewrites its line with carriage returns; the last word of each test is its rate.
    for test in
        ["PING_INLINE", "SET", "GET", "INCR", "LPUSH", "LRANGE_600 (first 600 elements)", "MSET (10 keys)"]
    {
        assert!(text.contains(&format!("{test}: ")), "{test} is missing in {text}");
    }
    assert!(text.contains("requests per second") && !text.contains("rror"), "{text}");
}

#[test]
fn benchmark_both_ends() {
    let lab = Lab::new("redis-bench-both");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    benchmark_runs_to_the_end(&lab, &redis, Some(&engine));
    engine.went_through(20 * 15);
    engine.wait_until_empty(WAIT);
}

#[test]
fn benchmark_server_alone() {
    let lab = Lab::new("redis-bench-server");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    benchmark_runs_to_the_end(&lab, &redis, None);
}

#[test]
fn benchmark_client_alone() {
    let lab = Lab::new("redis-bench-client");
    let engine = Engine::start(&lab);
    let redis = Redis::start_on_kernel(&lab);
    let before = engine.counters();
    benchmark_runs_to_the_end(&lab, &redis, Some(&engine));
    if !on_kernel() {
        assert_eq!(engine.counters().since(&before, "connects"), 0);
    }
}

/// io-threads read and write the sockets that the main thread accepted.
#[test]
fn io_threads() {
    let lab = Lab::new("redis-io-threads");
    let engine = Engine::start(&lab);
    let redis = Redis::start_with(&lab, |run| {
        run.args(["--io-threads", "3", "--io-threads-do-reads", "yes"]).under(&engine)
    });
    engine.wait_for_listener(redis.port);
    let args = ["-q", "-n", "10000", "-c", "30", "-P", "8", "-d", "1000", "-t", "set,get"];
    let report = redis.benchmark(&lab, &args).under(&engine).ok();
    assert!(report.text().contains("GET: ") && !report.text().contains("rror"), "{}", report.text());
    values_come_back(&lab, &redis, Some(&engine));
    engine.went_through(60);
}

/// `kill -9` of the server: every client sees the close within a second, nothing is left in the engine.
#[test]
fn killed_server_closes_its_connections() {
    let lab = Lab::new("redis-kill");
    let engine = Engine::start(&lab);
    let redis = Redis::start(&lab, &engine);
    let mut subscribers: Vec<_> = (0..10)
        .map(|_| {
            // Python: redis-cli would connect again and again.
            let script = format!(
                "import socket
s = socket.create_connection(('127.0.0.1', {}))
s.sendall(b'SUBSCRIBE news\\r\\n')
s.recv(1000)
print('subscribed')
try:
    assert s.recv(1000) == b''
except ConnectionResetError:
    pass
print('closed')",
                redis.port
            );
            lab.python(&script).under(&engine).spawn()
        })
        .collect();
    for subscriber in &mut subscribers {
        subscriber.wait_for_output("subscribed");
    }
    redis.server.signal(libc::SIGKILL);
    for subscriber in &mut subscribers {
        let end = subscriber.end_within(Duration::from_secs(1)).ok();
        assert!(end.text().contains("closed"), "{}", end.err);
    }
    engine.went_through(10);
    drop(redis);
    engine.wait_until_gone("sockets", WAIT, |socket| socket.state != "TIME-WAIT");
    // The port is free again.
    let again = Redis::start(&lab, &engine);
    assert_eq!(again.cli(&lab, &["ping"]).under(&engine).ok().text(), "PONG\n");
}
