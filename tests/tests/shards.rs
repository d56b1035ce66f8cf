//! The load decides how many shards get new connections: more come while those that do are busy, and go when fewer would do.

use std::time::Duration;

use utcp_tests::{
    Engine, Lab, Running, WAIT, not_run, on_kernel, release_file, voluntary_switches, wait_until,
};

/// A loaded machine takes its time, and each look at the load is half a second.
const LONG: Duration = Duration::from_secs(120);

/// Bytes of a known pattern over connection after connection, each made by a thread of its own (threads spread over the shards): it ends
/// when the file `stop` is there, and says how many connections were whole.
const LOAD: &str = "
import os, socket, sys, threading
stop, over = sys.argv[1:]
block = os.urandom(1 << 20)
whole, broken = [], []

def serve(conn):
    into, at, good = bytearray(1 << 18), 0, True
    with conn:
        while got := conn.recv_into(into):
            end = at + got
            want = block[at:end] if end <= len(block) else block[at:] + block[:end - len(block)]
            good = good and into[:got] == want
            at = end % len(block)
        conn.sendall(b'good' if good and at == 0 else b'bad!')

def accept(listener):
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=serve, args=(conn,), daemon=True).start()

def talk():
    with socket.create_connection(address, 60) as conn:
        for _ in range(2):
            conn.sendall(block)
        conn.shutdown(socket.SHUT_WR)
        (whole if conn.recv(4, socket.MSG_WAITALL) == b'good' else broken).append(1)

def again():
    try:
        while not os.path.exists(stop):
            one = threading.Thread(target=talk)
            one.start()
            one.join()
    except Exception as error:
        broken.append(error)

listener = socket.create_server(('127.0.0.1', 0), backlog=128)
address = listener.getsockname()
threading.Thread(target=accept, args=(listener,), daemon=True).start()
workers = [threading.Thread(target=again) for _ in range(3)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(len(whole), len(broken), broken[:3], flush=True)
open(over, 'w').close()
# Idle, but there: its connections are gone.
threading.Event().wait()
";

/// Servers and clients that keep any shard busy, each a process: connections of a few small messages, as many as go.
fn pressure<'l>(lab: &'l Lab, engine: &Engine<'l>) -> Vec<Running> {
    let run = |words: &[&str]| {
        let run = lab.run(release_file("utcp-load")).args(words);
        run.under(engine).limit(LONG * 3).spawn()
    };
    let ports: Vec<_> = (0..3).map(|_| lab.port()).collect();
    let server = |port: &u16| run(&["echo", "--listen", &format!("127.0.0.1:{port}")]);
    let mut all: Vec<_> = ports.iter().map(server).collect();
    for port in &ports {
        engine.wait_for_listener(*port);
        let to = format!("127.0.0.1:{port}");
        let client =
            || run(&["msg", "--connect", &to, "--messages", "4", "--connections", "128", "--seconds", "600"]);
        all.extend([client(), client()]);
    }
    all
}

#[test]
fn a_shard_comes_with_the_load_and_goes_with_it() {
    if on_kernel() {
        return not_run("the kernel has no shards");
    }
    let lab = Lab::new("shards");
    // By segments, or the bytes would not pass the engine.
    let engine = Engine::new(&lab).set("UTCP_SHARDS", "2").set("UTCP_CUT_THROUGH", "off").run();
    let start = engine.counters();
    let counts = ["shards", "shards_active", "shards_added"].map(|name| start.get(name));
    assert_eq!(counts, [2, 1, 0]);

    let (stop, over) = (lab.path("stop"), lab.path("over"));
    let load = lab.python(LOAD).arg(&stop).arg(&over).under(&engine).limit(LONG * 3);
    let mut load = load.spawn();
    let pressure = pressure(&lab, &engine);
    wait_until("a second shard has work", LONG, || {
        assert!(load.is_alive(), "{}{}", load.stdout(), load.stderr());
        let now = engine.counters();
        (now.get("shards_added") >= 1 && now.get("shard1_busy_ms") > 0).then_some(())
    });
    assert_eq!(engine.counters().get("shards_active"), 2);
    let lines = wait_until("connections in both shards", LONG, || {
        let lines = engine.ask("ss")?;
        let in_shard = |shard: &str| lines.lines().any(|line| line.contains("ESTAB") && line.contains(shard));
        (in_shard("shard:0") && in_shard("shard:1")).then_some(lines)
    });
    assert!(lines.contains("LISTEN"));

    drop(pressure);
    lab.file("stop", "");
    wait_until("the load has ended", LONG, || over.exists().then_some(()));
    let said = load.stdout();
    let counts: Vec<u64> = said.split_whitespace().take(2).filter_map(|word| word.parse().ok()).collect();
    assert!(matches!(counts[..], [whole, 0] if whole > 0), "whole and broken connections: {said}");
    engine.went_through(counts[0]);

    // New connections go to the first shard again.
    wait_until("the second shard has gone", LONG, || {
        let now = engine.counters();
        (now.get("shards_removed") >= 1 && now.get("shards_active") == 1).then_some(())
    });
    // An engine without work has no timer: in some window longer than two looks at the load no thread of it wakes up. (The host's own
    // news wake it: other tests make interfaces.)
    wait_until("an engine that sleeps", LONG, || {
        let pid = engine.pid().expect("it runs");
        let before = voluntary_switches(pid);
        std::thread::sleep(Duration::from_millis(1200));
        (voluntary_switches(pid) == before).then_some(())
    });
    load.signal(libc::SIGTERM);
    let _ = load.end_within(WAIT);
}

/// Each connection is made by a thread of its own, when the one before it is there: they wait in the rings of two shards.
const IN_TURN: &str = "
import socket, threading
listener = socket.create_server(('127.0.0.1', 0), backlog=128)
clients = []
def connect():
    clients.append(socket.create_connection(listener.getsockname()))
for _ in range(3):
    for _ in range(20):
        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
    names = [client.getsockname() for client in clients]
    assert names == [listener.accept()[1] for _ in names]
    clients.clear()
";

/// As in the kernel, whichever shard has them.
#[test]
fn who_came_first_is_accepted_first() {
    let lab = Lab::new("in-turn");
    let engine = Engine::new(&lab).set("UTCP_CORES", "0,1").run();
    let _ = lab.python(IN_TURN).under(&engine).ok();
    engine.went_through(60);
}
