//! Listeners that come and go while their sockets stay.

use std::time::Duration;

use utcp_tests::{Engine, Lab, on_kernel};

/// Each round: a connection waits when its listener is shut down, by the program or a child of it, so it is reset; the socket listens again and serves another. Sockets of
/// both kinds are made between, which would get whatever was given back too early or twice.
const AGAIN: &str = r#"
import os, select, socket
def listener():
    l = socket.socket()
    l.bind(('127.0.0.1', 0))
    l.listen(4)
    return l
def serve(l):
    c = socket.create_connection(l.getsockname())
    a, peer = l.accept()
    assert peer == c.getsockname(), (peer, c.getsockname())
    c.sendall(b'to')
    assert a.recv(2) == b'to'
    a.sendall(b'fro')
    assert c.recv(3) == b'fro'
    return c, a
def shut(l, by_child):
    if not by_child:
        l.shutdown(socket.SHUT_RDWR)
        return
    child = os.fork()
    if child == 0:
        l.shutdown(socket.SHUT_RDWR)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
def reset(c):
    # Whether the program hears of it before or when it reads is nobody's promise; that it does, is.
    try:
        return c.recv(1) == b''
    except ConnectionResetError:
        return True
stays = listener()
for i in range(300):
    l = listener()
    waits = socket.create_connection(l.getsockname())
    assert select.select([l], [], [], 10)[0]
    shut(l, by_child=i % 4 > 1)
    # At once, and after others had time to take what was given back.
    others = serve(stays) if i % 2 else ()
    l.listen(2)
    assert reset(waits)
    for pair in serve(l), serve(stays), others:
        for s in pair:
            s.close()
    waits.close()
    l.close()
print('ok')
"#;

/// With several shards too, which give a listener up one after the other.
#[test]
fn a_socket_listens_again_and_again() {
    let lab = Lab::new("listens-again");
    for cores in ["0", "0,1"] {
        let engine = Engine::new(&lab).set("UTCP_CORES", cores).run();
        let program = lab.python(AGAIN).under(&engine).ok();
        assert!(program.text().contains("ok"), "{}", program.text());
        engine.went_through(1050);
        if !on_kernel() {
            engine.wait_until_empty(Duration::from_secs(10));
        }
    }
}

/// How many wait at a listener with each backlog, of more that come at once; `listen` again counts.
const WAITING: &str = r#"
import select, socket, sys, time
for backlogs in [0], [1], [5], [5, 0], [1, 5], [-1], [0, -1]:
    listener = socket.create_server(('127.0.0.1', 0), backlog=0)
    libc_listen = __import__('ctypes').CDLL(None).listen
    for backlog in backlogs:
        assert libc_listen(listener.fileno(), backlog) == 0
    clients = [socket.socket() for _ in range(9)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
    # What is refused room tries again after a second; the rest has it long before.
    came, until = set(), time.monotonic() + 0.5
    while time.monotonic() < until:
        came.update(select.select([], [c for c in clients if c not in came], [], 0.05)[1])
    print(backlogs, len(came))
    for one in clients + [listener]:
        one.close()
"#;

#[test]
fn as_many_wait_as_on_the_kernel() {
    let lab = Lab::new("backlog");
    let expected = "[0] 1\n[1] 2\n[5] 6\n[5, 0] 1\n[1, 5] 6\n[-1] 9\n[0, -1] 9\n";
    assert_eq!(lab.python(WAITING).ok().text(), expected, "the kernel");
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.python(WAITING).under(&engine).ok().text(), expected, "cut-through {path}");
        engine.went_through(30);
    }
}

/// Workers come and go at a listener that their parent has too (Server::Starter), while clients with a timeout come.
const RELIEVED: &str = r#"
import socket, subprocess, sys, threading
worker = '''
import signal, socket, sys
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
listener = socket.socket(fileno=int(sys.argv[1]))
listener.settimeout(0.1)
print("here", flush=True)
while not stop:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        continue
    with connection:
        connection.settimeout(10)
        connection.sendall(connection.recv(100))
'''
starter = '''
import socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", 0), backlog=100)
fds = [listener.fileno()]
def start():
    command = [sys.executable, "-c", sys.argv[1], str(fds[0])]
    new = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE)
    assert new.stdout.readline() == b"here\\n"
    return new
now = start()
print(listener.getsockname()[1], flush=True)
for _ in range(4):
    time.sleep(0.1)
    old, now = now, start()
    time.sleep(0.4) # Both are there.
    old.terminate()
    assert old.wait() == 0
print("over", flush=True)
sys.stdin.readline()
now.terminate()
assert now.wait() == 0
'''
pipe = subprocess.PIPE
started = subprocess.Popen([sys.executable, '-c', starter, worker], stdin=pipe, stdout=pipe)
port = int(started.stdout.readline())
wrong, served, over = [], [], threading.Event()
def clients():
    while not over.is_set():
        try:
            with socket.create_connection(('127.0.0.1', port), timeout=20) as client:
                client.sendall(b'hello')
                assert client.recv(100) == b'hello'
                served.append(1)
        except Exception as error:
            wrong.append(repr(error))
threads = [threading.Thread(target=clients) for _ in range(6)]
for thread in threads:
    thread.start()
assert started.stdout.readline() == b'over\n'
over.set()
for thread in threads:
    thread.join()
started.communicate(b'end\n')
print(len(served) > 100, wrong, started.returncode)
"#;

/// None of them is told of a timeout that was not: a connection that goes from one program to another, off shared memory, is ready one moment
/// and not the next.
#[test]
fn workers_relieve_each_other() {
    let lab = Lab::new("relieved");
    assert_eq!(lab.python(RELIEVED).ok().text(), "True [] 0\n", "the kernel");
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.python(RELIEVED).under(&engine).ok().text(), "True [] 0\n", "cut-through {path}");
        engine.went_through(100);
    }
}

/// A socket that was shut before it listens is the kernel's alone, however soon the engine gives its place to another: whom it accepts
/// begins as shut as it is.
#[test]
fn who_was_shut_first_is_never_ours() {
    let lab = Lab::new("shut-first");
    let engine = Engine::start(&lab);
    let script = "import socket
hung = 0
for n in range(200):
    l = socket.socket()
    try: l.shutdown(socket.SHUT_RDWR)
    except OSError: pass
    l.listen(5)
    c = socket.create_connection(('127.0.0.1', l.getsockname()[1]))
    c.settimeout(1)
    try: assert c.recv(1) == b''
    except TimeoutError: hung += 1
    c.close(); l.close()
    if hung: break
print(hung)";
    let before = engine.counters();
    // Each may run on the engine's core, where nobody is faster than it, or on another.
    for _ in 0..12 {
        assert_eq!(lab.python(script).under(&engine).ok().text(), "0\n");
    }
    assert_eq!(engine.counters().since(&before, "accepts"), 0);
}
