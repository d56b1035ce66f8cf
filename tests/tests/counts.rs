//! Counts, not times: system calls per request, allocations per connection, CPU of idle connections.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use utcp_tests::nginx::{Nginx, Settings};
use utcp_tests::redis::Redis;
use utcp_tests::{Engine, Lab, children, cpu_ticks, measured, on_kernel, strace, wait_until};

/// One at a time: a neighbour's load would change how often a server sleeps.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn one_worker() -> Settings {
    Settings { workers: 1, ..Settings::default() }
}

/// As [`at_most`], where the program itself wakes those at the other end who sleep: one call for each answer at most, which comes
/// on top of the limit.
#[track_caller]
fn at_most_beside_waking(what: &str, calls: &strace::Calls, operations: u64, limit: f64) {
    let mut others = calls.clone();
    let waking = strace::Calls(
        others.0.remove("write").map(|count| ("write".to_owned(), count)).into_iter().collect(),
    );
    at_most(&format!("{what}, waking apart"), &others, operations, limit);
    at_most(&format!("{what}, waking"), &waking, operations, 1.0);
}

/// Prints a count, and holds it against the limit (which the kernel's sockets can't keep).
#[track_caller]
fn at_most(what: &str, calls: &strace::Calls, operations: u64, limit: f64) {
    let (each, words) = calls.per(operations);
    measured(&format!("{what}: {words}; at most {limit}"));
    assert!(on_kernel() || each <= limit, "{what}: {words}");
}

/// How often a server sleeps, and wakes others, depends on who else wants its processor; the rest is the code's own. So the load is
/// repeated, a few times at most, until a round keeps the `limit` of calls, those named `apart` not counted; the fewest of a round.
fn calmest(
    limit: f64,
    operations: u64,
    apart: &str,
    mut round: impl FnMut() -> strace::Calls,
) -> strace::Calls {
    const ROUNDS: usize = 12;
    let counted = |calls: &strace::Calls| calls.total() - calls.0.get(apart).copied().unwrap_or(0);
    let mut fewest = round();
    for _ in 1..ROUNDS {
        #[allow(clippy::cast_precision_loss, reason = "some thousands of calls")]
        if counted(&fewest) as f64 <= limit * operations as f64 {
            break;
        }
        let calls = round();
        if counted(&calls) < counted(&fewest) {
            fewest = calls;
        }
    }
    fewest
}

#[test]
fn system_calls_of_a_keep_alive_request_nginx() {
    let calls = keep_alive_requests("off", "", 0.1);
    at_most("nginx, keep-alive request", &calls, 20_000, 0.1);
    let calls = keep_alive_requests("on", "write", 0.2);
    at_most_beside_waking("nginx, keep-alive request, cut through", &calls, 20_000, 0.2);
}

fn keep_alive_requests(cut_through: &str, apart: &str, limit: f64) -> strace::Calls {
    let _alone = alone();
    let lab = Lab::new(&format!("calls-nginx-{cut_through}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
    let nginx = Nginx::start_with(&lab, &engine, &one_worker(), |run| run.under(&engine));
    let url = nginx.url("hello");
    let load = || lab.run("ab").args(["-q", "-k", "-n", "20000", "-c", "64", &url]).under(&engine).ok();
    let _ = load(); // Whatever is made once is made now.
    let calls = calmest(limit, 20_000, apart, || {
        strace::count(&lab, &nginx.workers(), || {
            assert!(load().text().contains("Failed requests:        0\n"));
        })
    });
    engine.went_through(128);
    calls
}

#[test]
fn system_calls_of_a_get_redis() {
    at_most("redis, GET", &gets("off", "", 0.1), 30_000, 0.1);
    at_most_beside_waking("redis, GET, cut through", &gets("on", "write", 0.1), 30_000, 0.1);
}

fn gets(cut_through: &str, apart: &str, limit: f64) -> strace::Calls {
    let _alone = alone();
    let lab = Lab::new(&format!("calls-redis-{cut_through}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
    let redis = Redis::start(&lab, &engine);
    let load = || redis.benchmark(&lab, &["-q", "-n", "30000", "-c", "50", "-t", "get"]).under(&engine).ok();
    let _ = load();
    let calls = calmest(limit, 30_000, apart, || {
        strace::count(&lab, &[redis.server.pid()], || {
            let _ = load();
        })
    });
    engine.went_through(100);
    calls
}

#[test]
fn system_calls_of_a_connection() {
    let _alone = alone();
    let lab = Lab::new("calls-connection");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start_with(&lab, &engine, &one_worker(), |run| run.under(&engine));
    let url = nginx.url("hello");
    let load = || lab.run("ab").args(["-q", "-n", "5000", "-c", "16", &url]).under(&engine).ok();
    let _ = load();
    let calls = calmest(2.0, 5000, "", || {
        strace::count(&lab, &nginx.workers(), || {
            assert!(load().text().contains("Failed requests:        0\n"));
        })
    });
    engine.went_through(10_000);
    at_most("nginx, accept + serve + close", &calls, 5000, 2.0);
}

/// The library that counts allocations, which cargo builds beside the tests.
fn counting_library() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let debug = test.ancestors().nth(2).expect("deps is in a folder").to_owned();
    let library = debug.join("examples/libcount_allocations.so");
    assert!(library.exists(), "{} is missing: cargo build -p utcp-tests --examples", library.display());
    library
}

/// After a first round the engine makes neither a connection nor a segment out of fresh memory.
#[test]
fn the_engine_allocates_nothing_per_connection() {
    let _alone = alone();
    if on_kernel() {
        return;
    }
    let lab = Lab::new("allocations");
    let count_file = lab.file("count", [0; 4096]);
    let count = || {
        let bytes = std::fs::read(&count_file).expect("ours");
        u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"))
    };
    let counting =
        Engine::new(&lab).preload(counting_library()).set("COUNT_FILE", count_file.to_str().expect("plain"));
    let engine = counting.run();
    let nginx = Nginx::start(&lab, &engine);
    let load = |keep: &[&str], n: &str| {
        let run = lab.run("ab").arg("-q").args(keep).args(["-n", n, "-c", "32", &nginx.url("hello")]);
        assert!(run.under(&engine).ok().text().contains("Failed requests:        0\n"));
    };
    load(&[], "3000");
    assert!(count() > 0, "nothing is counted");
    let before = count();
    load(&[], "5000");
    let connections = count() - before;
    let before = count();
    load(&["-k"], "20000");
    let requests = count() - before;
    engine.went_through(8032);
    measured(&format!(
        "engine: {connections} allocations in 5000 connections, {requests} in 20000 requests (attaching ab makes some); \
         at most 500 each"
    ));
    assert!(
        connections <= 500 && requests <= 500,
        "{connections} in 5000 connections, {requests} in 20000 requests"
    );
}

/// No polling loop is left on: 1 000 open idle connections, 5 s.
#[test]
fn idle_costs_no_cpu() {
    let _alone = alone();
    let lab = Lab::new("idle");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let script = format!(
        "import resource, signal, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
all = [socket.create_connection(('127.0.0.1', {})) for _ in range(1000)]
for s in all:
    s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    assert s.recv(1000).startswith(b'HTTP/1.1 200')
print('connected')
signal.pause()",
        nginx.port
    );
    let mut client = lab.python(&script).under(&engine).spawn();
    client.wait_for_output("connected");
    engine.went_through(1000);
    let mut pids = vec![nginx.master.pid(), client.pid()];
    pids.extend(children(nginx.master.pid()));
    pids.extend(engine.pid());
    // What the last connection left to do is done soon; then it must be quiet.
    let ticks = || -> Vec<u64> { pids.iter().map(|pid| cpu_ticks(*pid)).collect() };
    let mut last = ticks();
    wait_until("everybody is quiet for 300 ms", Duration::from_secs(5), || {
        std::thread::sleep(Duration::from_millis(300));
        let now = ticks();
        (std::mem::replace(&mut last, now.clone()) == now).then_some(())
    });
    let before = ticks();
    std::thread::sleep(Duration::from_secs(5));
    let used: Vec<u64> = ticks().iter().zip(&before).map(|(now, then)| now - then).collect();
    measured(&format!(
        "idle, 1000 connections, 5 s: {used:?} ticks of 10 ms (master, client, workers, engine); at most 2 each"
    ));
    assert!(used.iter().all(|ticks| *ticks <= 2), "{used:?}");
}

/// A utcp program that waits in poll with a timeout sleeps; so does a server in epoll_wait, with no connections.
#[test]
fn an_empty_server_sleeps() {
    let _alone = alone();
    let lab = Lab::new("sleeps");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let calls = strace::count(&lab, &nginx.workers(), || std::thread::sleep(Duration::from_secs(2)));
    measured(&format!("nginx without connections: {} system calls in 2 s; at most 10", calls.total()));
    // strace itself interrupts each worker's sleep twice; a poll of once in 100 ms would make 40.
    assert!(calls.total() <= 10, "{calls:?}");
}

/// One thread has both ends: it sends a byte, and the next when that was read (first argument: in one direction), or answered.
const ROUNDS: &str = r"
import signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
server = socket.create_server(('127.0.0.1', 0))
a = socket.create_connection(server.getsockname())
b = server.accept()[0]
answered = sys.argv[1] == 'answered'
for one in (a, b):
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, answered)
def rounds(count):
    began = time.monotonic()
    for _ in range(count):
        a.sendall(b'x')
        b.recv(10)
        if answered:
            b.sendall(b'y')
            a.recv(10)
    return time.monotonic() - began
rounds(100)
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
print('took', int(rounds(500) * 1000), flush=True)
signal.sigwait([signal.SIGUSR1])
";

/// By segments: milliseconds, commands and segments of 500 rounds.
fn rounds(kind: &str) -> [u64; 3] {
    let _alone = alone();
    let lab = Lab::new(&format!("rounds-{kind}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", "off").run();
    let mut program = lab.python(ROUNDS).args([kind]).under(&engine).spawn();
    program.wait_for_output("ready");
    let before = engine.counters();
    program.signal(libc::SIGUSR1);
    let took = wait_until("the rounds are over", Duration::from_secs(60), || {
        program.stdout().split_once("took ")?.1.trim().parse().ok()
    });
    let after = engine.counters();
    [took, after.since(&before, "commands"), after.since(&before, "local_segments")]
}

/// A small write waits until the one before is acknowledged (Nagle). Whoever reads that one to the end makes the engine acknowledge it, as in
/// Linux; a delayed ACK for each would make 20 s of this.
#[test]
fn a_reader_that_drained_lets_the_next_small_write_go() {
    let [ms, commands, segments] = rounds("one-way");
    measured(&format!(
        "500 small writes in one direction: {ms} ms, {commands} commands, {segments} segments; at most 10000, 1100, 1100"
    ));
    assert!(ms <= 10_000 && commands <= 1100 && segments <= 1100);
}

/// Where an answer brings the acknowledgement, a reader has nothing to say: two sends make two commands and two segments.
#[test]
fn a_reader_that_answers_says_nothing() {
    let [ms, commands, segments] = rounds("answered");
    measured(&format!(
        "500 answers to small writes: {ms} ms, {commands} commands, {segments} segments; at most 1050 commands and segments"
    ));
    assert!(commands <= 1050 && segments <= 1050);
}

/// Somebody else wants the processor all the time: a yield would hand him a time slice for every message, so nobody yields.
#[test]
fn nobody_yields_to_a_busy_neighbour() {
    let _alone = alone();
    let lab = Lab::new("crowded");
    let engine = Engine::new(&lab).set("UTCP_CORES", "0").run();
    let redis = Redis::start(&lab, &engine);
    let server = redis.server.pid();
    let on_one_core = |pid: u32| {
        let _ = lab.run("taskset").args(["-a", "-c", "-p", "0", &pid.to_string()]).ok();
    };
    on_one_core(server);
    let mut neighbour = lab.run("/bin/sh").args(["-c", "while :; do :; done"]).spawn();
    on_one_core(neighbour.pid());
    let port = redis.port.to_string();
    let load = |n: &str| {
        let benchmark = ["redis-benchmark", "-p", &port, "-q", "-n", n, "-c", "1", "-t", "get"];
        lab.run("taskset").args(["-c", "0"]).args(benchmark).under(&engine).ok();
    };
    load("100"); // They learn.
    let calls = strace::count(&lab, &[server], || load("1000"));
    assert!(neighbour.is_alive());
    engine.went_through(2);
    let yields = calls.0.get("sched_yield").copied().unwrap_or(0);
    measured(&format!("redis beside a busy neighbour: {yields} yields in 1000 GETs; at most 300"));
    assert!(yields <= 300, "{calls:?}");
}
