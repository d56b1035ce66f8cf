//! What a program does with itself as a whole: locks its memory, limits it, gives up its user.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use utcp_tests::{Engine, Lab, is_installed, is_root, not_run, on_kernel};

/// A connection of a program with itself, and how much of its memory is there. `program` runs before and after it.
fn script(before: &str, after: &str) -> String {
    format!(
        "
import ctypes, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def resident():
    line = next(line for line in open('/proc/self/status') if line.startswith('VmRSS'))
    return int(line.split()[1]) >> 10
def talk():
    listener = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(b'x' * 1000)
    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
    return client, server
{before}
kept = talk()
{after}
talk()
assert resident() < 200, resident()
print('done')
"
    )
}

fn runs(name: &str, before: &str, after: &str) {
    let lab = Lab::new(name);
    let engine = Engine::start(&lab);
    let text = lab.python(&script(before, after)).under(&engine).ok().text();
    assert!(text.contains("done"), "{text}");
    engine.went_through(2);
}

/// Regions are sparse; filled, they would be more than the machine has.
#[test]
fn memory_is_locked_before_the_first_socket() {
    if !is_root() {
        return not_run("locking all memory needs root");
    }
    runs("lock-before", "assert libc.mlockall(3) == 0", "");
}

#[test]
fn memory_is_locked_between_sockets() {
    if !is_root() {
        return not_run("locking all memory needs root");
    }
    runs("lock-between", "", "assert libc.mlockall(3) == 0");
}

/// The limit counts the program's own space, and reads as it was set.
#[test]
fn address_space_is_limited() {
    let after = "
wanted = (500 << 20, 600 << 20)
resource.setrlimit(resource.RLIMIT_AS, wanted)
assert resource.getrlimit(resource.RLIMIT_AS) == wanted
fits = bytearray(100 << 20)
del fits
try:
    bytearray(600 << 20)
    raise SystemExit('the limit is none')
except MemoryError:
    pass
";
    runs("limit-space", "", after);
}

/// The limit comes before memory that is shared with another program is mapped: there is no room for that any more.
#[test]
fn address_space_is_limited_before_the_first_connection() {
    runs(
        "limit-first",
        "socket.socket().close()\nresource.setrlimit(resource.RLIMIT_AS, (500 << 20, 600 << 20))",
        "",
    );
}

/// A server of root's that becomes another before it listens is met by root's programs.
#[test]
fn a_server_that_drops_root_first_is_met() {
    if !is_root() {
        return not_run("only root can become another");
    }
    let lab = Lab::new("drops-root");
    let engine = Engine::start(&lab);
    let server = lab.port();
    let program = format!(
        "
import os, socket
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
listener = socket.create_server(('127.0.0.1', {server}))
connection, _ = listener.accept()
connection.sendall(b'hello')
"
    );
    let running = lab.python(&program).under(&engine).spawn();
    if !on_kernel() {
        engine.wait_for_listener(server);
    }
    let client = format!(
        "
import socket, time
while True:
    try:
        print(socket.create_connection(('127.0.0.1', {server})).recv(5).decode())
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
"
    );
    assert_eq!(lab.python(&client).under(&engine).ok().text().trim(), "hello");
    let _ = running.finish();
    engine.went_through(1);
}

/// An inetd under load: the server goes on at once while its child hands the connection to another program, so both let go of it at
/// the same moment. Every program finds its standard streams, and every byte comes back.
#[test]
fn connections_are_handed_to_programs() {
    handed_to_programs("on");
}

#[test]
fn connections_by_segments_are_handed_to_programs() {
    handed_to_programs("off");
}

fn handed_to_programs(cut_through: &str) {
    let lab = Lab::new(&format!("inetd-{cut_through}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
    let program = "
import os, signal, socket, struct, threading
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server(('127.0.0.1', 0), backlog=128)
address, server = listener.getsockname(), os.fork()
while server == 0:
    connection, _ = listener.accept()
    if os.fork() == 0:
        os.dup2(connection.fileno(), 0)
        os.dup2(connection.fileno(), 1)
        os.execvp('cat', ['cat'])
    connection.close()
wrong = []
def client():
    for length in [10, 1000, 60_000] * 20:
        data = os.urandom(length)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            back = b''.join(iter(lambda: connection.recv(65536), b''))
        if back != data:
            wrong.append((length, len(back)))
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(data[:length // 2])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
threads = [threading.Thread(target=client) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
os.kill(server, signal.SIGKILL)
print('wrong:', wrong)
";
    let finished = lab.python(program).under(&engine).ok();
    assert_eq!(finished.text().trim(), "wrong: []", "{}", finished.err);
    // Also a program whose connection is over by then has its standard streams.
    assert!(!finished.err.contains("Bad file descriptor"), "{}", finished.err);
    engine.went_through(720);
}

/// Bytes that somebody wrote to a connection's descriptor without the library, and behind them another holder's request to have it relayed:
/// both wait for an engine that is busy, and the kernel hands them over as one. Only the bytes are the connection's.
#[test]
fn a_request_behind_bytes_is_not_theirs() {
    let lab = Lab::new("glued");
    let engine = Engine::start(&lab);
    let program = "
import ctypes, os, signal, socket, sys, termios, threading, time
engine, raw = int(sys.argv[1]), ctypes.CDLL('libc.so.6')
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname(), timeout=20)
server = listener.accept()[0]
here, there = socket.socketpair()
def unread():
    count = ctypes.c_int()
    assert raw.ioctl(server.fileno(), termios.TIOCOUTQ, ctypes.byref(count)) == 0
    return count.value
os.kill(engine, signal.SIGSTOP)
while open(f'/proc/{engine}/stat').read().rsplit(')', 1)[1].split()[0] != 'T':
    time.sleep(0.001)
assert raw.write(server.fileno(), b'before ', 7) == 7
bytes_alone = unread()
passing = threading.Thread(target=socket.send_fds, args=(here, [b'x'], [server.fileno()]))
passing.start()
while unread() == bytes_alone:
    time.sleep(0.001)
os.kill(engine, signal.SIGCONT)
passing.join()
_, (number,), _, _ = socket.recv_fds(there, 1, 1)
os.write(number, b'after')
got = b''
while not got.endswith(b'after'):
    got += client.recv(1000)
print(got)
";
    let pid = engine.pid().expect("it runs").to_string();
    let got = lab.python(program).arg(pid).under(&engine).ok();
    assert_eq!(got.text().trim(), "b'before after'", "{}", got.err);
}

const THREADS: &str = "import ctypes, os, select, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
server = socket.create_server(('127.0.0.1', 0))
pairs = []
for _ in range(4):
    client = socket.create_connection(server.getsockname()); pairs.append((client, server.accept()[0]))
got, ready = [], threading.Semaphore(0)
def reader(sock):
    ready.release(); got.append(sock.recv(10))
def acceptor():
    ready.release(); got.append(server.accept()[0].recv(10))
def poller(sock):
    p = select.poll(); p.register(sock, select.POLLIN); ready.release(); p.poll(20000); got.append(sock.recv(10))
def busy():
    ready.release()
    for _ in range(300):
        c = socket.create_connection(other.getsockname()); a = other.accept()[0]
        c.sendall(b'x'); assert a.recv(5) == b'x'; c.close(); a.close()
    got.append(b'busy')
other = socket.create_server(('127.0.0.1', 0))
threads = [threading.Thread(target=reader, args=(pairs[0][1],)), threading.Thread(target=acceptor),
           threading.Thread(target=poller, args=(pairs[1][1],)), threading.Thread(target=busy)]
for thread in threads: thread.start()
for _ in threads: ready.acquire()
if sys.argv[1] == 'mlockall':
    assert libc.mlockall(3) == 0, ctypes.get_errno()
else:
    os.setgid(65534); os.setuid(65534)
    assert all('65534' in open(f'/proc/self/task/{t}/status').read().split('Uid:')[1].splitlines()[0] for t in os.listdir('/proc/self/task'))
pairs[0][0].sendall(b'reader'); pairs[1][0].sendall(b'poller')
late = socket.create_connection(server.getsockname()); late.sendall(b'late')
more = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(more.getsockname()); peer = more.accept()[0]
client.sendall(b'after'); assert peer.recv(10) == b'after'
for thread in threads: thread.join(30)
print(sorted(got))
locked = [l for l in open('/proc/self/status') if l.startswith(('VmLck','VmRSS'))]
rss = int(locked[1].split()[1])
assert rss < 400000, locked";

/// What speaks of the whole process (all threads change their user, all memory is locked) comes while other threads are asleep in
/// calls on utcp sockets, or in the middle of them.
#[test]
fn other_threads_go_on() {
    let lab = Lab::new("other-threads");
    for what in ["mlockall", "setuid"] {
        if !is_root() {
            return not_run("needs root to give it up, or to lock memory");
        }
        let engine = Engine::start(&lab);
        let script = lab.file("threads.py", THREADS);
        let run = lab.run("python3").args([script.to_str().expect("plain"), what]);
        let end = run.under(&engine).limit(std::time::Duration::from_secs(40)).ok();
        assert_eq!(end.text(), "[b'busy', b'late', b'poller', b'reader']\n", "{what}");
        engine.went_through(300);
    }
}

const GROUP: &str = "import os, socket, sys
port = socket.socket(); port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); port.bind(('127.0.0.1', 0))
address = port.getsockname()
say, told = os.pipe(), os.pipe()
def serve(number):
    server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(address); server.listen(512); os.write(told[1], b'.')
    kept = []
    if number == 0:
        # It takes none, and gives up.
        os.read(say[0], 1); server.close(); os.write(told[1], b'.'); os.read(say[0], 1); os._exit(0)
    while True:
        peer = server.accept()[0]; peer.sendall(b'%d' % number); kept.append(peer)
children = []
for number in range(4):
    child = os.fork()
    if child == 0: serve(number)
    children.append(child)
for _ in range(4): os.read(told[0], 1)
port.close()
clients = [socket.create_connection(address) for _ in range(200)]
os.write(say[1], b'.'); os.read(told[0], 1)
counts, lost = [0] * 4, 0
for client in clients:
    try:
        answer = client.recv(5); counts[int(answer)] += 1
    except ConnectionResetError: lost += 1
# A fourth of them waited where nobody came; each of the others got its share.
assert 20 <= lost <= 90 and counts[0] == 0 and min(counts[1:]) >= 20, (counts, lost)
for _ in range(200):
    client = socket.create_connection(address); counts[int(client.recv(5))] += 1
assert counts[0] == 0 and sum(counts) == 400 - lost and min(counts[1:]) >= 60, counts
for child in children: os.kill(child, 9)
print('balanced')";

/// A group of listeners in as many processes: each gets its share, and none of what comes after one has gone is lost.
#[test]
fn a_reuseport_group_is_balanced() {
    let lab = Lab::new("reuseport");
    let engine = Engine::start(&lab);
    let end = lab.python(GROUP).under(&engine).ok();
    assert_eq!(end.text(), "balanced\n");
    engine.went_through(300);
}

const CHOSEN: &str = "import ctypes, os, socket, struct, sys
when, CBPF = sys.argv[1], 51
def program(member):
    # Always this one: ret #member.
    code = ctypes.create_string_buffer(struct.pack('HBBI', 0x06, 0, 0, member))
    return struct.pack('HxxxxxxP', 1, ctypes.addressof(code)), code
def attach(server, member):
    words, code = program(member)
    server.setsockopt(socket.SOL_SOCKET, CBPF, words)
def make(address, early=None):
    server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if when == 'fresh' and early is not None: attach(server, early)
    server.bind(address)
    if when == 'bound' and early is not None: attach(server, early)
    server.listen(64)
    return server
first = make(('127.0.0.1', 0), 1)
address = first.getsockname()
# One of the group is another process'.
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    second = make(address); os.write(ready[1], b'.')
    served = []
    for _ in range(24):
        served.append(second.accept()[0]); served[-1].sendall(b'second')
    os.read(go[0], 1); os._exit(0)
os.read(ready[0], 1)
if when == 'late': attach(first, 1)
def ask(count, servers=()):
    answers = []
    for _ in range(count):
        client = socket.create_connection(address)
        for number, server in enumerate(servers):
            server.setblocking(False)
            try: server.accept()[0].sendall(b'number %d' % number)
            except BlockingIOError: pass
        answers.append(client.recv(10)); client.close()
    return sorted(set(answers))
print(ask(12))
# Who joins later belongs to it as well.
third = make(address)
print(ask(12))
attach(third, 2)
print(ask(12, [first, third]))
attach(first, 0)
print(ask(12, [first, third]))
os.write(go[1], b'.'); os.wait(); first.close(); third.close()
# A new group has no program.
fourth = make(address)
print(ask(3, [fourth]))
";

/// Which listener of a group gets a connection is its BPF program's word, whoever of the group set it and whenever.
#[test]
fn a_bpf_program_chooses_in_a_reuseport_group() {
    for when in ["fresh", "bound", "late"] {
        let lab = Lab::new(&format!("reuseport-program-{when}"));
        let engine = Engine::start(&lab);
        let end = lab.python(CHOSEN).arg(when).under(&engine).ok();
        let expected = "[b'second']\n[b'second']\n[b'number 1']\n[b'number 0']\n[b'number 0']\n";
        assert_eq!(end.text(), expected, "{when}");
        // The last three are a group's without a program, and utcp's.
        engine.went_through(3);
    }
}

const FAULTS: &str = "import ctypes, faulthandler, os, signal, socket, sys
what = sys.argv[1]
if what == 'before': faulthandler.enable()
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname()); peer = server.accept()[0]
if what == 'after': faulthandler.enable()
if what == 'sent':
    seen = []
    assert signal.signal(signal.SIGSEGV, lambda *_: seen.append(1)) == signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGSEGV); assert seen == [1]
    signal.signal(signal.SIGSEGV, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGSEGV)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.send(client.fileno(), ctypes.c_void_p(20480), 10, 0) == -1 and ctypes.get_errno() == 14
client.sendall(b'abc'); print(peer.recv(5), flush=True)
if what == 'sent': os.kill(os.getpid(), signal.SIGSEGV)
ctypes.string_at(0)
print('alive')";

/// The library's handler of faults is before the program's: what the program does about its own faults it does as without.
#[test]
fn faults_of_the_program_are_its_own() {
    let lab = Lab::new("faults");
    let script = lab.file("faults.py", FAULTS);
    for what in ["plain", "before", "after", "sent"] {
        let engine = Engine::start(&lab);
        let run = lab.run("python3").args([script.to_str().expect("plain"), what]);
        let end = run.under(&engine).limit(std::time::Duration::from_secs(20)).finish();
        assert_eq!(end.status.signal(), Some(libc::SIGSEGV), "{what}: {}", end.err);
        assert_eq!(end.text(), "b'abc'\n", "{what}");
        let told = matches!(what, "before" | "after");
        assert_eq!(end.err.contains("Fatal Python error: Segmentation fault"), told, "{what}: {}", end.err);
    }
}

/// inetd's "wait", systemd's socket activation, dovecot: one program sees that somebody connects, and starts another with the listener.
#[test]
fn a_program_is_started_for_who_waits() {
    let lab = Lab::new("activation");
    let engine = Engine::start(&lab);
    let program = "
import os, select, socket, subprocess, sys
child = '''
import select, socket, sys
how = sys.argv[1]
# Before anything else is asked of the number.
if how == 'bare select': select.select([3], [], [])
if how == 'bare poll':
    waits = select.poll()
    waits.register(3, select.POLLIN)
    assert waits.poll(10000)
listener = socket.socket(fileno=3)
if how == 'poll': select.select([listener], [], [])
if how == 'epoll':
    with select.epoll() as set:
        set.register(listener, select.EPOLLIN)
        assert set.poll(10)
connection, _ = listener.accept()
connection.sendall(connection.recv(100) + how.encode())
'''
listener = socket.create_server(('127.0.0.1', 0))
os.dup2(listener.fileno(), 3)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
for how in ['accept', 'poll', 'epoll', 'bare select', 'bare poll']:
    client = socket.create_connection(listener.getsockname(), timeout=10)
    client.sendall(b'hello ')
    assert poll.poll(10)
    poll.unregister(listener)
    started = subprocess.Popen([sys.executable, '-c', child, how], pass_fds=[3])
    print(client.recv(100) + client.recv(100))
    assert started.wait() == 0
    poll.register(listener, select.EPOLLIN)
";
    let text = lab.python(program).under(&engine).ok().text();
    assert_eq!(
        text,
        "b'hello accept'\nb'hello poll'\nb'hello epoll'\nb'hello bare select'\nb'hello bare poll'\n"
    );
    engine.went_through(5);
}

/// Threads that all begin to wait for an inherited listener at the same moment, none having used it, all hear.
#[test]
fn threads_meet_an_inherited_listener_together() {
    let lab = Lab::new("met-together");
    let engine = Engine::start(&lab);
    let program = "
import select, socket, subprocess, sys
child = '''
import select, socket, sys, threading
number, threads = int(sys.argv[1]), 4
start, heard = threading.Barrier(threads), []
def wait():
    waits = select.poll()
    waits.register(number, select.POLLIN)
    start.wait()
    heard.append(len(waits.poll(5000)))
all = [threading.Thread(target=wait) for _ in range(threads)]
for thread in all: thread.start()
for thread in all: thread.join()
socket.socket(fileno=number).accept()[0].sendall(str(heard).encode())
'''
listener = socket.create_server(('127.0.0.1', 0))
for _ in range(5):
    started = subprocess.Popen([sys.executable, '-c', child, str(listener.fileno())], pass_fds=[listener.fileno()])
    client = socket.create_connection(listener.getsockname(), timeout=20)
    print(client.recv(100))
    assert started.wait() == 0
";
    assert_eq!(lab.python(program).under(&engine).ok().text(), "b'[1, 1, 1, 1]'\n".repeat(5));
    engine.went_through(5);
}

/// A server that gets its listener over a socket and only waits for it, by `poll` or `select`, hears of clients over utcp. Who keeps a listener for
/// others and passes it on does not become one of those who serve it.
#[test]
fn a_listener_that_was_sent_is_heard_of() {
    let lab = Lab::new("sent-listener");
    let engine = Engine::start(&lab);
    let script = lab.file("sent_listener.py", include_str!("scripts/sent_listener.py"));
    let text = lab.run("python3").arg(&script).under(&engine).ok().text();
    let ways = ["select by recvmsg", "poll by recvmsg", "select by recvmmsg", "poll by recvmmsg"];
    assert_eq!(text, ways.map(|way| format!("b'hello {way}'\n")).concat());
    engine.went_through(4);
    let mut kept = lab.run("python3").arg(&script).arg("keeper").under(&engine).spawn();
    kept.wait_for_output("passed on");
    let listeners = || engine.sockets().iter().filter(|socket| socket.state == "LISTEN").count();
    assert_eq!(listeners(), usize::from(!on_kernel()), "the first program's alone");
    kept.signal(libc::SIGTERM);
    let _ = kept.end_within(Duration::from_secs(20));
}

/// A supervisor that listens, starts a server which inherits the socket, and never accepts itself: who came before the server is
/// served by it, too.
#[test]
fn what_waits_at_a_supervisor_is_its_servers() {
    let lab = Lab::new("supervisor");
    let engine = Engine::start(&lab);
    let program = "
import socket, subprocess, sys
listener = socket.create_server(('127.0.0.1', 0), backlog=8)
early = socket.create_connection(listener.getsockname(), timeout=10)
early.sendall(b'early')
server = '''
import selectors, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
waits = selectors.DefaultSelector()
waits.register(listener, selectors.EVENT_READ)
for _ in range(2):
    assert waits.select(10)
    connection, _ = listener.accept()
    connection.sendall(connection.recv(5))
'''
number = listener.fileno()
child = subprocess.Popen([sys.executable, '-c', server, str(number)], pass_fds=[number])
assert early.recv(5) == b'early'
later = socket.create_connection(listener.getsockname(), timeout=10)
later.sendall(b'later')
assert later.recv(5) == b'later'
assert child.wait() == 0
print('done')
";
    let text = lab.python(program).under(&engine).ok().text();
    assert!(text.contains("done"), "{text}");
    engine.went_through(2);
}

/// systemd-socket-activate, the restart of puma or uwsgi: a program becomes another, which accepts who waited.
#[test]
fn what_waits_at_a_program_is_its_successors() {
    let lab = Lab::new("successor");
    let program = "
import os, socket, subprocess, sys
server = '''
import os, select, socket, sys
listener = socket.create_server((\"127.0.0.1\", 0), backlog=8)
listener.set_inheritable(True)
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
assert select.select([listener], [], [], 10)[0]
os.execv(sys.executable, [sys.executable, \"-c\", sys.argv[1], str(listener.fileno())])
'''
successor = '''
import socket, sys, time
print(\"here\", flush=True)
time.sleep(0.3)
listener = socket.socket(fileno=int(sys.argv[1]))
for _ in range(4):
    connection, peer = listener.accept()
    connection.sendall(connection.recv(100) + b\" \" + peer[0].encode())
'''
def start(successor):
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, '-c', server, successor], stdin=pipe, stdout=pipe, text=True)
    port = int(child.stdout.readline())
    return child, lambda: socket.create_connection(('127.0.0.1', port), timeout=10)
def go_on(child):
    child.stdin.write('now\\n')
    child.stdin.flush()
child, client = start(successor)
some = [client() for _ in range(3)]
some[0].sendall(b'before')
go_on(child)
assert child.stdout.readline() == 'here\\n'
some.append(client())
for one in some[1:]:
    one.sendall(b'after')
for one in some:
    print(one.recv(100))
assert child.wait() == 0
# Nobody will accept this one: the socket is gone.
child, client = start('')
one = client()
go_on(child)
try:
    print(one.recv(1))
except ConnectionResetError:
    print('reset')
";
    let wanted = "b'before 127.0.0.1'\n".to_owned() + &"b'after 127.0.0.1'\n".repeat(3) + "reset\n";
    assert_eq!(lab.python(program).ok().text(), wanted, "the kernel");
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.python(program).under(&engine).ok().text(), wanted, "cut-through {path}");
        engine.went_through(4);
        if !on_kernel() {
            engine.wait_until_empty(Duration::from_secs(10));
        }
    }
}

/// A peer that never reads, on both ways within the host: TCP_USER_TIMEOUT ends the connection, whenever it was set.
#[test]
fn patience_with_a_peer_that_never_reads() {
    const PROGRAM: &str = r"
import errno, select, socket
listener = socket.create_server(('127.0.0.1', 0))
def give_up(when):
    impatient = lambda at, end: end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500) if at == when else None
    impatient('listener', listener)
    client = socket.socket()
    impatient('before', client)
    client.connect(listener.getsockname())
    server = listener.accept()[0]
    writer, reader = (server, client) if when == 'listener' else (client, server)
    writer.sendall(b'abc')
    assert reader.recv(3) == b'abc'
    impatient('after', writer)
    writer.setblocking(False)
    waits = select.poll()
    waits.register(writer, select.POLLOUT)
    try:
        while True:
            try:
                writer.send(b'x' * 65536)
            except BlockingIOError:
                assert waits.poll(20000), 'it never gives up'
    except OSError as error:
        assert error.errno == errno.ETIMEDOUT, error
    reader.settimeout(20)
    try:
        while reader.recv(1 << 20):
            pass
        assert False, 'an end instead of a reset'
    except ConnectionResetError:
        pass
for when in ('after', 'before', 'listener'):
    give_up(when)
print('done')
";
    for path in ["off", "on"] {
        let lab = Lab::new(&format!("patience-{path}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.python(PROGRAM).under(&engine).ok().text(), "done\n");
        engine.went_through(3);
    }
}

/// Programs that share a listener by exec, as postfix's do: each has one client at a time, and with `lock` one alone waits for the next. Nobody's
/// connection waits at a program that is busy, or that waits for its turn, while another one sleeps.
fn servers_take_turns(lock: bool) {
    let lab = Lab::new(&format!("turns-{lock}"));
    let engine = Engine::start(&lab);
    let program = format!(
        "
import socket, subprocess, sys, threading, time
listener = socket.create_server(('127.0.0.1', 0), backlog=64)
listener.set_inheritable(True)
server = '''
import fcntl, select, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(False)
lock = open(sys.argv[2], 'w')
waits = select.epoll()
waits.register(listener, select.EPOLLIN)
print('ready', flush=True)
while True:
    if {lock}: fcntl.flock(lock, fcntl.LOCK_EX)
    waits.poll(5)
    try: peer = listener.accept()[0]
    except BlockingIOError: peer = None
    if {lock}: fcntl.flock(lock, fcntl.LOCK_UN)
    if peer is None: continue
    peer.setblocking(True)
    while data := peer.recv(1000): peer.sendall(data)
    peer.close()
'''
def start():
    words = [sys.executable, '-c', server, str(listener.fileno()), '{file}']
    return subprocess.Popen(words, pass_fds=[listener.fileno()], stdout=subprocess.PIPE)
servers = [start() for _ in range(2)]
for one in servers: one.stdout.readline()
def connect(): return socket.create_connection(listener.getsockname(), timeout=20)
def talk(client):
    client.sendall(b'x')
    assert client.recv(10) == b'x'
for round in range(5):
    crowd = [connect() for _ in range(10)]
    threads = [threading.Thread(target=lambda client: (talk(client), client.close()), args=(client,)) for client in crowd]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
long = connect()
talk(long)
begun = time.monotonic()
for _ in range(20):
    with connect() as short: talk(short)
print('done in time:', time.monotonic() - begun < 4)
long.close()
for one in servers: one.kill()
",
        lock = if lock { "True" } else { "False" },
        file = lab.path("lock").display(),
    );
    let text = lab.python(&program).under(&engine).ok().text();
    assert_eq!(text, "done in time: True\n");
    engine.went_through(70);
}

#[test]
fn servers_with_a_listener_of_both_take_turns() {
    servers_take_turns(false);
}

#[test]
fn servers_with_a_lock_take_turns() {
    servers_take_turns(true);
}

/// A shell by `system` and `popen` inherits what the program leaves open to it, as by exec.
#[test]
fn a_shell_inherits_connections() {
    let lab = Lab::new("shell");
    let engine = Engine::start(&lab);
    let program = "
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
libc.popen.restype = ctypes.c_void_p
listener = socket.create_server(('127.0.0.1', 0))
def pair(inheritable):
    client = socket.create_connection(listener.getsockname(), timeout=20)
    server = listener.accept()[0]
    server.set_inheritable(inheritable)
    return client, server
def system(command): return os.waitstatus_to_exitcode(libc.system(command.encode()))
def popen(command): return os.waitstatus_to_exitcode(libc.pclose(ctypes.c_void_p(libc.popen(command.encode(), b'r'))))
for run in (system, popen):
    client, server = pair(True)
    print(run(f'echo hello >&{server.fileno()}'), client.recv(20))
    client.sendall(b'to the child')
    client.shutdown(socket.SHUT_WR)
    print(run(f'cat <&{server.fileno()} >&{server.fileno()}'), client.recv(20))
    server.close()
    print(client.recv(20))
    client, server = pair(False)
    print(run(f'true 2>/dev/null >&{server.fileno()}') != 0)
    server.sendall(b'still here')
    print(client.recv(20))
print(libc.system(None) != 0)
";
    let text = lab.python(program).under(&engine).ok().text();
    let once = "0 b'hello\\n'\n0 b'to the child'\nb''\nTrue\nb'still here'\n";
    assert_eq!(text, format!("{once}{once}True\n"));
    engine.went_through(4);
}

const READS_STDIN: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, len) < 0 || listen(listener, 5) < 0 || getsockname(listener, (void *)&at, &len) < 0) return 1;
    if (fork() == 0) {
        char line[100];
        int connection = accept(listener, NULL, NULL);
        if (dup2(connection, 0) != 0 || dup2(connection, 1) != 1 || close(connection) < 0) return 1;
        while (fgets(line, sizeof line, stdin)) printf("got %s", line), fflush(stdout);
        return 0;
    }
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, (void *)&at, len) < 0 || send(client, "one\ntwo\n", 8, 0) != 8 || shutdown(client, SHUT_WR) < 0) return 1;
    char bytes[100];
    for (ssize_t got; (got = recv(client, bytes, sizeof bytes, 0)) > 0;) fwrite(bytes, 1, (size_t)got, stdout);
    puts("end");
    return 0;
}
"#;

/// A server that makes a connection its standard streams and uses them by libc's stdio, without another program.
#[test]
fn a_connection_is_read_as_standard_input() {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new("stdin");
    let (source, program) = (lab.file("stdin.c", READS_STDIN), lab.path("stdin"));
    let _ = lab.run("cc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).ok();
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(
            lab.run(&program).under(&engine).ok().text(),
            "got one\ngot two\nend\n",
            "cut-through {path}"
        );
        engine.went_through(1);
    }
}
