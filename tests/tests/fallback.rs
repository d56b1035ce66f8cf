//! What can't be served runs on the kernel and says so; what was served by an engine that dies hears of it.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Finished, Lab, Net, WAIT, is_root, not_run, on_kernel, release_file, wait_until};

const NOBODY: u32 = 65_534;

/// What utcp itself said.
fn lines_of_utcp(end: &Finished) -> Vec<&str> {
    end.err.lines().filter(|line| line.starts_with("utcp: ")).collect()
}

const TALK: &str = "import socket, threading
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
for _ in range(3):
    client.sendall(b'abc'); assert peer.recv(10) == b'abc'
more = [socket.create_connection(server.getsockname()) for _ in range(5)]
for _ in more: server.accept()
print('talked')";

/// No engine runs and none can be started: everything works, one line says what happened.
#[test]
fn no_engine_can_start() {
    let lab = Lab::new("no-engine");
    let engine = Engine::new(&lab);
    let end = lab.python(TALK).under(&engine).env("UTCP_BIN", "/nonexistent/utcp").ok();
    assert_eq!(end.text(), "talked\n");
    if !on_kernel() {
        assert_eq!(lines_of_utcp(&end).len(), 1, "{}", end.err);
        assert!(end.err.contains("kernel"), "{}", end.err);
    }
}

/// The engine starts, but can't do what it is told: the line names the cause.
#[test]
fn the_device_does_not_exist() {
    let lab = Lab::new("no-device");
    let engine = Engine::new(&lab).set("UTCP_DEVICE", "xdp:nosuch0");
    let end = lab.python(TALK).under(&engine).ok();
    assert_eq!(end.text(), "talked\n");
    if !on_kernel() {
        assert_eq!(lines_of_utcp(&end).len(), 1, "{}", end.err);
        assert!(end.err.contains("nosuch0"), "the line does not name the cause: {}", end.err);
    }
}

/// An ordinary user asks for a device: no privilege, so the kernel serves, and one line says so.
#[test]
fn the_device_is_not_permitted() {
    if !is_root() {
        return not_run("needs root to become another user");
    }
    let lab = Lab::new("no-privilege");
    let engine = Engine::new(&lab).owned_by(NOBODY).set("UTCP_DEVICE", "xdp:lo");
    let end = lab.python(TALK).as_user(NOBODY, NOBODY).under(&engine).ok();
    assert_eq!(end.text(), "talked\n");
    if !on_kernel() {
        assert_eq!(lines_of_utcp(&end).len(), 1, "{}", end.err);
    }
}

#[test]
fn switched_off_it_is_silent() {
    let lab = Lab::new("off");
    for (name, value) in [("UTCP_DISABLE", "1"), ("UTCP_ENGINE", "off")] {
        let engine = Engine::new(&lab);
        let end = lab.python(TALK).under(&engine).env(name, value).ok();
        assert_eq!((end.text().as_str(), end.err.as_str()), ("talked\n", ""), "{name}");
        if !on_kernel() {
            assert!(engine.ask("ss").is_none(), "{name}: an engine was started");
        }
    }
}

#[test]
fn an_unknown_variable_is_named() {
    let lab = Lab::new("unknown");
    let engine = Engine::start(&lab);
    for (name, value) in [("UTCP_SPIM_US", "20"), ("UTCP_SPIN_US", "fast")] {
        let end = lab.python(TALK).under(&engine).env(name, value).ok();
        assert_eq!(end.text(), "talked\n");
        if !on_kernel() {
            assert_eq!(lines_of_utcp(&end).len(), 1, "{}", end.err);
            assert!(end.err.contains(name), "{}", end.err);
        }
    }
}

/// Ends with an error whose text has all `words`.
#[track_caller]
fn engine_refuses(args: &[&str], envs: &[(&str, &str)], words: &[&str]) {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("refuses");
    let mut run =
        lab.run(release_file("utcp")).arg("engine").args(args).env("UTCP_STACK", Engine::new(&lab).stack());
    for (name, value) in envs {
        run = run.env(name, value);
    }
    let end = run.limit(Duration::from_secs(5)).finish().no_crash();
    assert!(!end.status.success(), "{args:?} {envs:?}: it started");
    let missing: Vec<&&str> = words.iter().filter(|word| !end.err.contains(**word)).collect();
    assert!(missing.is_empty(), "{args:?} {envs:?}: no {missing:?} in {}", end.err);
}

#[test]
fn the_engine_says_what_is_wrong() {
    engine_refuses(&["--device", "xdp:nosuch0"], &[], &["nosuch0"]);
    engine_refuses(&["--device", "foo:bar"], &[], &["foo", "xdp:"]);
    engine_refuses(&["--device", "xdp:"], &[], &["xdp:"]);
    engine_refuses(&[], &[("UTCP_SPIN_US", "fast")], &["UTCP_SPIN_US", "fast", "microseconds"]);
    engine_refuses(&[], &[("UTCP_CORES", "x")], &["UTCP_CORES", "x"]);
    engine_refuses(&[], &[("UTCP_STACK", "a/b")], &["a/b"]);
}

#[test]
fn the_engine_names_wrong_faults() {
    if !is_root() {
        return not_run("needs root for network namespaces");
    }
    if on_kernel() {
        return;
    }
    let (lab, net) = (Lab::new("faults"), Net::new());
    let run = lab
        .run(release_file("utcp"))
        .args(["engine", "--device"])
        .arg(format!("xdp:{}", net.server.interface));
    let run = run.inside(&net.server).env("UTCP_STACK", "faults").env("UTCP_FAULTS", "los=1%");
    let end = run.limit(Duration::from_secs(5)).finish().no_crash();
    assert!(
        !end.status.success() && end.err.contains("UTCP_FAULTS") && end.err.contains("los"),
        "{}",
        end.err
    );
}

/// The engine runs, but says that somebody mistyped a setting.
#[test]
fn the_engine_names_an_unknown_variable() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("mistyped");
    let engine = Engine::new(&lab).set("UTCP_SPIM_US", "20").run();
    wait_until("its log names the variable", Duration::from_secs(2), || {
        engine.log().contains("UTCP_SPIM_US").then_some(())
    });
}

/// Two engines of one name: the second says that there is one.
#[test]
fn the_engine_runs_already() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("twice");
    let engine = Engine::start(&lab);
    let second = lab.run(release_file("utcp")).arg("engine").env("UTCP_STACK", engine.stack());
    let end = second.limit(Duration::from_secs(5)).finish().no_crash();
    assert!(!end.status.success() && end.err.contains("running already"), "{}", end.err);
    assert!(engine.ask("ss").is_some());
}

/// Errors that a program prints are the kernel's own.
#[test]
fn port_in_use() {
    let lab = Lab::new("in-use");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let bind = format!("import socket; socket.create_server(('127.0.0.1', {}))", nginx.port);
    // Second server under utcp, second server on the kernel.
    for end in [lab.python(&bind).under(&engine).finish(), lab.python(&bind).finish()] {
        assert!(!end.status.success() && end.err.contains("Address already in use"), "{}", end.err);
    }
    // A server on the kernel, the second under utcp; within one program, too.
    let plain = Nginx::start_on_kernel(&Lab::new("in-use-kernel"), None);
    let bind = format!("import socket; socket.create_server(('127.0.0.1', {}))", plain.port);
    let end = lab.python(&bind).under(&engine).finish();
    assert!(!end.status.success() && end.err.contains("Address already in use"), "{}", end.err);
    let twice = "import socket
a = socket.create_server(('127.0.0.1', 0))
b = socket.create_server(a.getsockname())";
    let end = lab.python(twice).under(&engine).finish();
    assert!(!end.status.success() && end.err.contains("Address already in use"), "{}", end.err);
}

#[test]
fn privileged_port() {
    if !is_root() {
        return not_run("needs root to become another user");
    }
    let lab = Lab::new("privileged");
    let engine = Engine::new(&lab).owned_by(NOBODY).run();
    let bind = "import socket; socket.create_server(('127.0.0.1', 81))";
    let end = lab.python(bind).as_user(NOBODY, NOBODY).under(&engine).finish();
    assert!(!end.status.success() && end.err.contains("Permission denied"), "{}", end.err);
}

/// A client that blocks in recv, one that blocks in send, one in epoll: all are woken by the engine's death.
#[test]
fn a_killed_engine_resets_its_connections() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("engine-killed");
    let engine = Engine::start(&lab);
    let script = "import errno, os, select, socket, threading
server = socket.create_server(('127.0.0.1', 0))
def pair():
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0]
ends = [pair() for _ in range(6)]
def expect(name, call):
    try:
        while True:
            if not call():
                os.write(1, f'{name} end of file\\n'.encode())
                return
    except OSError as error:
        os.write(1, f'{name} {errno.errorcode[error.errno]}\\n'.encode())
def ready(s):
    e = select.epoll(); e.register(s, select.EPOLLIN)
    assert e.poll(20), 'epoll slept on'
    return s.recv(1)
def polled(s):
    p = select.poll(); p.register(s, select.POLLIN)
    assert p.poll(20000), 'poll slept on'
    return s.recv(1)
def selected(s):
    assert select.select([s], [], [], 20)[0], 'select slept on'
    return s.recv(1)
calls = [lambda: ends[0][0].recv(1), lambda: ends[1][1].recv(1), lambda: ends[2][0].send(bytes(10_000_000)),
         lambda: ready(ends[3][0]), lambda: polled(ends[4][0]), lambda: selected(ends[5][1])]
threads = [threading.Thread(target=expect, args=(str(n), call)) for n, call in enumerate(calls)]
for t in threads: t.start()
print('blocked')
for t in threads: t.join()
# New sockets work, be it with the kernel or with a new engine.
again = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(again.getsockname())
peer, _ = again.accept()
client.sendall(b'x'); assert peer.recv(1) == b'x'
# The old listener still listens.
late = socket.create_connection(server.getsockname(), timeout=5)
late.sendall(b'y'); assert server.accept()[0].recv(1) == b'y'
print('works')";
    let mut program = lab.python(script).under(&engine).spawn();
    program.wait_for_output("blocked");
    engine.went_through(6);
    engine.kill();
    let end = program.end_within(Duration::from_secs(5)).no_crash().ok();
    let text = end.text();
    for number in 0..6 {
        assert!(text.contains(&format!("{number} ECONNRESET")), "{number}: {text}{}", end.err);
    }
    assert!(text.contains("works"), "{text}{}", end.err);
}

/// A listener on which a program has slept in `accept` blocks for whoever gets it from there.
#[test]
fn a_listener_that_blocks_is_passed_on_as_such() {
    let lab = Lab::new("passed-on");
    let engine = Engine::start(&lab);
    let script = lab.file("passed_on.py", include_str!("scripts/passed_on.py"));
    let run = || lab.run("python3").arg(&script).arg(lab.port().to_string()).limit(Duration::from_secs(120));
    let kernel = run().ok().text();
    assert_eq!(kernel.matches("child 0").count(), 4, "{kernel}");
    assert_eq!(run().under(&engine).ok().text(), kernel);
}

/// Who sleeps in `accept` when the engine dies goes on there, with the kernel's clients and with those of a new engine.
#[test]
fn a_blocking_accept_survives_its_engine() {
    let lab = Lab::new("accept-engine-killed");
    let engine = Engine::start(&lab);
    let port = lab.port().to_string();
    let serve = "import socket, sys
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('listens')
while True:
    one = server.accept()[0]
    one.sendall(one.recv(1))
    one.close()";
    let mut server = lab.python(serve).arg(&port).under(&engine).spawn();
    server.wait_for_output("listens");
    let ask = "import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)
s.settimeout(10)
s.sendall(b'x'); print(s.recv(1))";
    let ask = || lab.python(ask).arg(&port);
    assert_eq!(ask().ok().text(), "b'x'\n");
    engine.kill();
    for round in 0..4 {
        assert_eq!(ask().ok().text(), "b'x'\n", "{round}");
        assert_eq!(ask().under(&engine).ok().text(), "b'x'\n", "{round}");
        assert!(server.is_alive(), "{}", server.stderr());
    }
}

/// Who sleeps on a listener alone when its engine dies sleeps on: in `accept`, `poll`, `select` and epoll, without a client. Be there another
/// engine to be had or none.
#[test]
fn sleepers_at_a_listener_sleep_on_without_their_engine() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("sleep-on");
    let serve = "import os, select, socket, sys, threading, time
ways = {}
def way(f):
    listener = socket.create_server(('127.0.0.1', 0))
    def serve():
        f(listener)
        listener.accept()[0].sendall(f.__name__.encode())
    thread = threading.Thread(target=serve)
    thread.start()
    ways[thread] = listener.getsockname()
@way
def accept(l): pass
@way
def poll(l):
    p = select.poll(); p.register(l, select.POLLIN); assert p.poll(30000)
@way
def selects(l): assert select.select([l], [], [], 30)[0]
@way
def epoll(l):
    e = select.epoll(); e.register(l, select.EPOLLIN); assert e.poll(30)
print('sleeps')
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
before = time.process_time()
time.sleep(1)
print('busy' if time.process_time() - before > 0.2 else 'idle')
for thread, address in ways.items():
    s = socket.create_connection(address, 10); s.settimeout(10)
    print(s.recv(20)); thread.join(10)";
    for successor in [true, false] {
        let engine = Engine::start(&lab);
        let dead = lab.path(&format!("dead-{successor}"));
        let mut program = lab.python(serve).arg(&dead).under(&engine);
        if !successor {
            program = program.env("UTCP_BIN", lab.path("none"));
        }
        let mut program = program.spawn();
        program.wait_for_output("sleeps");
        engine.kill();
        std::fs::write(&dead, "").unwrap();
        let end = program.end_within(Duration::from_secs(60)).no_crash().ok();
        let text = end.text();
        assert_eq!(
            text, "sleeps\nidle\nb'accept'\nb'poll'\nb'selects'\nb'epoll'\n",
            "{successor}: {}",
            end.err
        );
    }
}

/// nginx survives the death of its engine: the kernel's side of its listeners serves, then a new engine.
#[test]
fn nginx_survives_its_engine() {
    let lab = Lab::new("nginx-engine-killed");
    let engine = Engine::start(&lab);
    let mut nginx = Nginx::start(&lab, &engine);
    let get = || lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello"));
    assert_eq!(get().under(&engine).ok().text(), "hello\n");
    engine.went_through(1);
    engine.kill();
    for _ in 0..5 {
        assert_eq!(get().ok().text(), "hello\n");
        assert_eq!(get().under(&engine).ok().text(), "hello\n");
    }
    assert!(nginx.master.is_alive());
}

/// The engine that a program's shim started leaves after its last program, and two programs share one.
#[test]
fn an_engine_of_programs_leaves_with_the_last() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("embedded");
    let engine = Engine::new(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let page = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok();
    assert_eq!((page.text().as_str(), page.err.as_str()), ("hello\n", ""));
    engine.went_through(1);
    drop(nginx);
    // Asking it must not keep it alive.
    wait_until("the engine leaves", WAIT, || engine.ask("ss").is_none().then_some(()));
}

/// Ten programs that start at the same moment: one engine, all are served.
#[test]
fn programs_race_for_an_engine() {
    let lab = Lab::new("race");
    let engine = Engine::new(&lab);
    let all: Vec<_> = (0..10).map(|_| lab.python(TALK).under(&engine).spawn()).collect();
    for program in all {
        let end = program.finish().ok();
        assert_eq!((end.text().as_str(), end.err.as_str()), ("talked\n", ""));
    }
}

/// A system's engine at /run/utcp serves another user's programs.
#[test]
fn a_system_engine_serves_another_user() {
    if !is_root() {
        return not_run("needs root for /run/utcp");
    }
    if on_kernel() {
        return;
    }
    let lab = Lab::new("system");
    // In a namespace of its own: an engine at /run/utcp takes every program of its namespace.
    let net = Net::new();
    let utcp = |what: &str| lab.run(release_file("utcp")).args(what.split(' ')).inside(&net.server);
    let mut engine = utcp("engine --system").spawn();
    wait_until("the engine answers", WAIT, || utcp("metrics").finish().status.success().then_some(()));
    let copy = Engine::new(&lab).owned_by(NOBODY);
    let end = lab
        .python(TALK)
        .inside(&net.server)
        .by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .preload(copy.program("libutcp.so"))
        .ok();
    assert_eq!((end.text().as_str(), end.err.as_str()), ("talked\n", ""));
    let metrics = utcp("metrics").ok().text();
    assert!(
        metrics.lines().any(|line| line.starts_with("accepts ") && !line.starts_with("accepts 0 ")),
        "{metrics}"
    );
    // By SIGTERM, so that it takes its socket with it.
    engine.signal(libc::SIGTERM);
    let _ = engine.end_within(WAIT).ok();
}

const SAVES_SYN: &str = "import signal, socket
server = socket.socket(); server.bind(('127.0.0.1', 0))
server.setsockopt(socket.IPPROTO_TCP, 27, 1)
server.listen()
print(server.getsockname()[1], flush=True)
client = socket.create_connection(server.getsockname()); peer, _ = server.accept()
client.sendall(b'abc'); assert peer.recv(10) == b'abc'
assert len(peer.getsockopt(socket.IPPROTO_TCP, 28, 200)) > 40, 'no SYN'
late = socket.create_server(('127.0.0.1', 0))
print(late.getsockname()[1], flush=True)
client = socket.create_connection(late.getsockname()); late.accept()
late.setsockopt(socket.IPPROTO_TCP, 27, 1)
client = socket.create_connection(late.getsockname()); peer, _ = late.accept()
assert len(peer.getsockopt(socket.IPPROTO_TCP, 28, 200)) > 40, 'no SYN'
print('ready', flush=True)
signal.pause()";

/// A listener with an option that utcp can't serve is the kernel's alone, and `utcp why` says so.
#[test]
fn a_listener_with_an_option_of_the_kernels() {
    let lab = Lab::new("save-syn");
    let engine = Engine::start(&lab);
    let mut program = lab.python(SAVES_SYN).under(&engine).spawn();
    program.wait_for_output("ready");
    for port in program.stdout().lines().filter(|line| *line != "ready") {
        wait_until(&format!("`utcp why {port}` names the option"), WAIT, || {
            let why = engine.ask(&format!("why {port}")).unwrap_or_default();
            (on_kernel() || why.contains("can't serve option 27 of level 6")).then_some(())
        });
    }
    program.signal(libc::SIGTERM);
}

const POLLS_BUSILY: &str = "import socket
listener = socket.create_server(('127.0.0.1', 0))
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, 46, 50)
client.setsockopt(socket.SOL_SOCKET, 69, 1)
client.connect(listener.getsockname())
server = listener.accept()[0]
server.setsockopt(socket.SOL_SOCKET, 46, 20)
print([end.getsockopt(socket.SOL_SOCKET, 46) for end in (client, server, listener)])";

/// SO_BUSY_POLL, which those set who want it fast, makes no socket the kernel's.
#[test]
fn busy_polling_is_no_reason() {
    if !is_root() {
        return not_run("SO_BUSY_POLL needs root");
    }
    let lab = Lab::new("busy-poll");
    let engine = Engine::start(&lab);
    assert_eq!(lab.python(POLLS_BUSILY).under(&engine).ok().text().trim(), "[50, 20, 0]");
    engine.went_through(1);
    assert_eq!(engine.counters().get("connects_kernel"), 0);
}
