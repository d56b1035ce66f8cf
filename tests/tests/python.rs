//! Python's blocking http.server (a thread per connection, poll) and asyncio (epoll, vfork).

use utcp_tests::{Engine, Lab, Net, Run, is_root, not_run};

#[test]
fn http_server_serves_files() {
    let lab = Lab::new("python-http");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let file = lab.random_file("www/big", 5_000_000);
    let folder = lab.path("www");
    let run = lab.run("/usr/bin/python3").args(["-u", "-m", "http.server", &port.to_string()]);
    let mut server = run.args(["--bind", "127.0.0.1", "--directory"]).arg(&folder).under(&engine).spawn();
    server.wait_for_listener(port);
    engine.wait_for_listener(port);
    for _ in 0..10 {
        let got = lab.path("got");
        let url = format!("http://127.0.0.1:{port}/big");
        let _ = lab.run("curl").args(["-sS", "-m", "20", "-o"]).arg(&got).arg(url).under(&engine).ok();
        assert!(std::fs::read(&got).expect("a file") == std::fs::read(&file).expect("ours"));
    }
    engine.went_through(10);
    assert!(server.is_alive(), "{}", server.stderr());
    drop(server);
    engine.wait_until_empty(utcp_tests::WAIT);
}

/// The blocking client of the standard library against the blocking server.
#[test]
fn urllib_reads_from_http_server() {
    let lab = Lab::new("python-urllib");
    let engine = Engine::start(&lab);
    let port = lab.port();
    lab.file("www/index.html", "from python");
    let run = lab.run("/usr/bin/python3").args(["-u", "-m", "http.server", &port.to_string()]);
    let mut server = run.arg("--directory").arg(lab.path("www")).under(&engine).spawn();
    server.wait_for_listener(port);
    engine.wait_for_listener(port);
    let script = format!(
        "import urllib.request\n\
         for _ in range(100):\n    \
             assert urllib.request.urlopen('http://127.0.0.1:{port}/index.html', timeout=10).read() == b'from python'\n\
         print('same')"
    );
    assert_eq!(lab.python(&script).under(&engine).ok().text(), "same\n");
    engine.went_through(100);
}

/// Server and 100 clients in one process, a child started meanwhile (vfork), one epoll for all.
#[test]
fn asyncio_echoes() {
    let lab = Lab::new("python-asyncio");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let script = format!(
        "import asyncio, os
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def client(number):
    reader, writer = await asyncio.open_connection('127.0.0.1', {port})
    text = os.urandom(1 + number * 997)
    for _ in range(20):
        writer.write(text)
        await writer.drain()
        assert await reader.readexactly(len(text)) == text
    writer.write_eof()
    assert await reader.read() == b''
    writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', {port})
    clients = asyncio.gather(*(client(n) for n in range(100)))
    child = await asyncio.create_subprocess_exec('/bin/echo', 'child', stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    await clients
    print(out.decode().strip(), 'same')
    server.close()
asyncio.run(asyncio.wait_for(main(), 30))"
    );
    assert_eq!(lab.python(&script).under(&engine).ok().text(), "child same\n");
    engine.went_through(100);
    engine.wait_until_empty(utcp_tests::WAIT);
}

/// accept and recv that block, in 20 threads, for a client that comes late.
#[test]
fn threads_block() {
    let lab = Lab::new("python-threads");
    let engine = Engine::start(&lab);
    let script = "import socket, threading, time
server = socket.create_server(('127.0.0.1', 0), backlog=64)
port = server.getsockname()[1]
got = []
def serve():
    connection, peer = server.accept()
    assert peer[0] == '127.0.0.1'
    while data := connection.recv(100):
        connection.sendall(data.upper())
    connection.close()
    got.append(1)
threads = [threading.Thread(target=serve) for _ in range(20)]
for t in threads: t.start()
clients = [socket.create_connection(('127.0.0.1', port), timeout=10) for _ in range(20)]
for c in clients:
    c.sendall(b'abc')
    assert c.recv(100) == b'ABC'
for c in clients:
    c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b''
for t in threads: t.join(10)
print(len(got))";
    assert_eq!(lab.python(script).under(&engine).ok().text(), "20\n");
    engine.went_through(20);
}

/// Each round swaps a socket for the kernel's (bind) while another thread makes a socket: what the engine frees at the
/// swap must not be freed twice.
#[test]
fn listeners_come_and_go_beside_connects() {
    let lab = Lab::new("python-rounds");
    let engine = Engine::start(&lab);
    let script = "import socket, threading
for number in range(3000):
    server = socket.create_server(('127.0.0.1', 0))
    def connect():
        with socket.socket() as client:
            client.connect(server.getsockname())
            client.send(b'abc')
    thread = threading.Thread(target=connect)
    thread.start()
    connection, _ = server.accept()
    connection.settimeout(30)
    assert connection.recv(10) == b'abc'
    connection.close()
    thread.join()
    server.close()
print('same')";
    assert_eq!(lab.python(script).under(&engine).ok().text(), "same\n");
    engine.went_through(3000);
    engine.wait_until_empty(utcp_tests::WAIT);
}

/// What was sent before a close that resets (SO_LINGER of no time) is there to be read, and then the reset.
#[test]
fn data_comes_before_a_reset() {
    let lab = Lab::new("python-linger");
    let engine = Engine::start(&lab);
    let script = "import socket, struct
listener = socket.create_server(('127.0.0.1', 0))
for number in range(300):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    server.send(b'abc')
    server.close()
    assert client.recv(10) == b'abc'
    try:
        assert False, client.recv(10)
    except ConnectionResetError:
        pass
print('same')";
    assert_eq!(lab.python(script).under(&engine).ok().text(), "same\n");
    engine.went_through(300);
    engine.wait_until_empty(utcp_tests::WAIT);
}

/// A server that shuts its side down and closes at once, with the request unread (haproxy without a backend): the end that it told of first is what
/// the client reads, not the reset.
#[test]
fn an_end_comes_before_a_reset() {
    for path in ["on", "off"] {
        let lab = Lab::new("python-end");
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let script = "import select, socket
listener = socket.create_server(('127.0.0.1', 0))
for number in range(300):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.send(b'abc')
    select.select([server], [], [])
    server.shutdown(socket.SHUT_WR)
    server.close()
    assert client.recv(10) == b'', number
    assert client.recv(10) == b'', number
print('same')";
        assert_eq!(lab.python(script).under(&engine).ok().text(), "same\n");
        engine.went_through(300);
        engine.wait_until_empty(utcp_tests::WAIT);
    }
}

/// The Erlang machine's way: a thread sleeps in epoll_wait when another one adds the set's first socket, each time for one event.
#[test]
fn a_sleeping_set_gets_its_first_socket() {
    let lab = Lab::new("python-first");
    let engine = Engine::start(&lab);
    let script = "import os, select, socket, threading
pipe, _ = os.pipe()
def once():
    ids, seen = [], []
    with select.epoll() as set, socket.create_server(('127.0.0.1', 0)) as listener:
        set.register(pipe, select.EPOLLIN)
        def wait():
            ids.append(threading.get_native_id())
            for timeout in (None, 10):
                seen.append(set.poll(timeout))
        thread = threading.Thread(target=wait)
        thread.start()
        # Asleep in the kernel's call, on the kernel's members alone.
        while not ids or open(f'/proc/self/task/{ids[0]}/syscall').read().split()[0] not in ('232', '22', '281', '441'): pass
        set.register(listener, select.EPOLLIN | select.EPOLLONESHOT)
        first = socket.create_connection(listener.getsockname())
        while not seen: pass
        set.modify(listener, select.EPOLLIN | select.EPOLLONESHOT)
        thread.join()
        first.close()
        assert seen == [[(listener.fileno(), select.EPOLLIN)]] * 2, seen
for number in range(50): once()
print('same')";
    assert_eq!(lab.python(script).under(&engine).ok().text(), "same\n");
    engine.went_through(50);
}

/// Who waits for bytes before the handshake ends, in whatever call, has them when they come: the wait goes on behind the handshake, and
/// where the bytes come by a pair region, on another bell. The queue is full at first, so that handshakes take their time.
#[test]
fn bytes_are_awaited_from_before_the_handshake_ends() {
    let script = "import os, select, socket, threading, time
pipe, _ = os.pipe()
def poll(client, events=select.POLLIN, others=()):
    object = select.poll()
    for one in (client, *others): object.register(one, events)
    assert object.poll() == [(client.fileno(), select.POLLIN)]
def poll_beside(client): poll(client, others=[pipe])
def poll_hang_up(client): poll(client, select.POLLIN | select.POLLRDHUP)
def selects(client): assert select.select([client], [], []) == ([client], [], [])
def epoll(client, events=select.EPOLLIN):
    with select.epoll() as object:
        object.register(client, events)
        assert object.poll() == [(client.fileno(), select.EPOLLIN)]
def edge(client): epoll(client, select.EPOLLIN | select.EPOLLET)
def reads(client):
    client.setblocking(True)
    assert client.recv(1, socket.MSG_PEEK) == b'x'
ways = [poll, poll_beside, poll_hang_up, selects, epoll, edge, reads]
listener = socket.create_server(('127.0.0.1', 0), backlog=0)
first, done = socket.create_connection(listener.getsockname()), []
def run(way, client):
    way(client)
    assert client.recv(10) == b'x'
    done.append(way)
for way in ways:
    client = socket.socket()
    client.setblocking(False)
    try: client.connect(listener.getsockname())
    except BlockingIOError: threading.Thread(target=run, args=(way, client)).start()
time.sleep(0.3) # They are asleep, or the test shows less.
listener.listen(100)
accepted = [listener.accept()[0] for _ in (first, *ways)]
time.sleep(0.3)
for server in accepted: server.send(b'x')
for thread in threading.enumerate():
    if thread is not threading.current_thread(): thread.join()
assert set(done) == set(ways)
print('same')";
    for path in ["on", "off"] {
        let lab = Lab::new(&format!("python-early-{path}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let program = lab.python(script).under(&engine).limit(std::time::Duration::from_secs(60));
        assert_eq!(program.ok().text(), "same\n", "cut-through {path}");
        engine.went_through(8);
    }
}

/// Who waits for bytes and for room at once has either, whichever comes: the two ring different bells.
#[test]
fn bytes_and_room_are_awaited_at_once() {
    let script = "import select, socket, threading, time
def full():
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.setblocking(False)
    # Full for good: the streams may grow behind the first send that found no room.
    while select.select([], [client], [], 0.1)[1]: client.send(bytes(65536))
    return client, server
def poll(client):
    object = select.poll()
    object.register(client, select.POLLIN | select.POLLOUT)
    [(_, events)] = object.poll()
    return events & select.POLLIN != 0, events & select.POLLOUT != 0
def selects(client):
    read, write, _ = select.select([client], [client], [])
    return read != [], write != []
def epoll(client):
    with select.epoll() as object:
        object.register(client, select.EPOLLIN | select.EPOLLOUT)
        [(_, events)] = object.poll()
        return events & select.EPOLLIN != 0, events & select.EPOLLOUT != 0
listener = socket.create_server(('127.0.0.1', 0))
for way in poll, selects, epoll:
    for room in False, True:
        client, server = full()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(way(client)))
        thread.start()
        time.sleep(0.1) # It is asleep, or the test shows less.
        if room:
            server.settimeout(0.2) # All may be read before the thread has said what it saw.
            try:
                while not seen: server.recv(1 << 20)
            except TimeoutError: pass
        else: server.send(b'x')
        thread.join()
        assert seen == [(not room, room)], (way, seen)
        client.close()
        server.close()
print('same')";
    for path in ["on", "off"] {
        let lab = Lab::new(&format!("python-both-{path}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let program = lab.python(script).under(&engine).limit(std::time::Duration::from_secs(60));
        assert_eq!(program.ok().text(), "same\n", "cut-through {path}");
        engine.went_through(6);
    }
}

/// A connection full of bytes whose way changes: by an option that ends the cut, or as somebody gets a descriptor of it, so that the engine's
/// relay carries it. All bytes come, and none waits for a probe's time.
#[test]
fn the_way_changes_in_the_middle_of_a_transfer() {
    let script = "import os, select, socket, threading, time
def option(end): end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30000)
def passed(end):
    left, right = socket.socketpair()
    socket.send_fds(left, [b'x'], [end.fileno()])
    os.close(socket.recv_fds(right, 1, 1)[1][0])
def send(client): client.sendall(data)
def send_by_epoll(client):
    client.setblocking(False)
    sent = 0
    with select.epoll() as object:
        object.register(client, select.EPOLLOUT | select.EPOLLET)
        while sent < len(data):
            try: sent += client.send(data[sent:sent + 65536])
            except BlockingIOError: object.poll()
listener, data = socket.create_server(('127.0.0.1', 0)), os.urandom(20_000_000)
for change, of_reader in [(option, False), (option, True)] + 6 * [(passed, True)]:
    for way in send, send_by_epoll:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        thread = threading.Thread(target=way, args=(client,))
        thread.start()
        time.sleep(0.1) # The stream is full.
        change(server if of_reader else client)
        got = bytearray()
        while len(got) < len(data): got += server.recv(1 << 20)
        assert got == data
        thread.join()
        client.close()
        server.close()
print('same')";
    for path in ["on", "off"] {
        let lab = Lab::new(&format!("python-way-{path}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let program = lab.python(script).under(&engine).limit(std::time::Duration::from_secs(60));
        assert_eq!(program.ok().text(), "same\n", "cut-through {path}");
        engine.went_through(16);
    }
}

/// A program that was exec'd has an epoll descriptor of its parent's, with the library's bell in it, and no word of the set.
#[test]
fn an_inherited_set_tells_nothing_of_the_library() {
    let lab = Lab::new("python-inherited");
    let engine = Engine::start(&lab);
    let script = "import os, select, socket, subprocess, sys
set = select.epoll()
pipe, end = os.pipe()
set.register(pipe, select.EPOLLIN)
listener = socket.create_server(('127.0.0.1', 0))
set.register(listener, select.EPOLLIN)
look = 'import select, sys; print(select.epoll.fromfd(int(sys.argv[1])).poll(float(sys.argv[2])), flush=True)'
def child(timeout):
    subprocess.run([sys.executable, '-c', look, str(set.fileno()), timeout], pass_fds=[set.fileno(), pipe], check=True)
child('0.3')
os.write(end, b'x')
child('-1')
assert set.poll() == [(pipe, select.EPOLLIN)]
first = socket.create_connection(listener.getsockname())
os.read(pipe, 1)
assert set.poll() == [(listener.fileno(), select.EPOLLIN)]";
    let read = lab.python(script).under(&engine).ok().text();
    let lines: Vec<_> = read.lines().collect();
    assert!(lines.len() == 2 && lines[0] == "[]" && lines[1].ends_with(", 1)]"), "{read}");
    assert_eq!(lines[1].matches('(').count(), 1, "{read}");
    engine.went_through(1);
}

/// A server that notes in which order its event loop reports messages, and a client that sends over a new connection first, and
/// then over an old one.
const ORDER: &str = "import os, select, socket, sys
host = ('127.0.0.1', int(sys.argv[1]))
# Before the fork: a connect between the kernel's listen and ours would be the kernel's, whose events stand first.
listener = socket.create_server(host)
child = os.fork()
if child:
    loop, open_ones, log = select.epoll(), {}, b''
    loop.register(listener, select.EPOLLIN)
    while True:
        for number, _ in loop.poll():
            if number == listener.fileno():
                new, _ = listener.accept()
                open_ones[new.fileno()] = new
                loop.register(new, select.EPOLLIN)
                continue
            data = open_ones[number].recv(100)
            if data == b'end':
                sys.exit(os.waitpid(child, 0)[1])
            if not data:
                loop.unregister(number)
                open_ones.pop(number).close()
            elif data == b'log':
                open_ones[number].send(log)
                log = b''
            else:
                log += data
                open_ones[number].send(data)
listener.close()
old = socket.create_connection(host)
for _ in range(20):
    old.send(b'-')
    old.recv(10)
old.send(b'log')
old.recv(100)
wrong = 0
for _ in range(100):
    new = socket.create_connection(host)
    new.send(b'-')
    new.recv(10)
    new.send(b'a')
    old.send(b'b')
    old.recv(10)
    new.recv(10)
    old.send(b'log')
    wrong += old.recv(10) != b'-ab'
    new.close()
print(wrong, flush=True)
old.send(b'end')
os._exit(0)
";

/// Events of one wait stand in the order in which they came, as the kernel's do: redis' tests, for one, rely on it.
#[test]
fn what_was_sent_first_is_reported_first() {
    for cut_through in ["on", "off"] {
        let lab = Lab::new(&format!("python-order-{cut_through}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
        let port = lab.port().to_string();
        let run = lab.run("/usr/bin/python3").args(["-c", ORDER, &port]).under(&engine);
        assert_eq!(run.limit(std::time::Duration::from_secs(20)).ok().text(), "0\n", "{cut_through}");
        engine.went_through(101);
    }
}

/// As above, of bytes, ends of file and new connections that wait together, by segments and over a device too.
#[test]
fn what_came_first_is_reported_first() {
    for cut_through in ["on", "off"] {
        let lab = Lab::new(&format!("python-arrivals-{cut_through}"));
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
        let port = lab.port();
        let server = arrivals(&lab, "serve", "127.0.0.1", port).under(&engine).spawn();
        engine.wait_for_listener(port);
        arrivals(&lab, "send", "127.0.0.1", port).under(&engine).ok();
        assert_eq!(server.finish().text(), "[]\n", "{cut_through}");
        engine.went_through(20);
    }
}

#[test]
fn what_came_first_over_a_device_is_reported_first() {
    if !is_root() {
        return not_run("needs root for network namespaces");
    }
    let (lab, net) = (Lab::new("python-arrivals-device"), Net::new());
    let engine = Engine::new(&lab)
        .inside(&net.server)
        .set("UTCP_DEVICE", format!("xdp:{}", net.server.interface))
        .run();
    let port = lab.port();
    let server = arrivals(&lab, "serve", &net.server.addr, port).under(&engine).spawn();
    engine.wait_for_listener(port);
    // What comes within one batch of the receiving kernel's GRO it may deliver in another order, to whomever.
    arrivals(&lab, "send", &net.server.addr, port).arg("0.001").inside(&net.client).ok();
    assert_eq!(server.finish().text(), "[]\n");
    engine.went_through(20);
}

fn arrivals<'l>(lab: &'l Lab, role: &str, addr: &str, port: u16) -> Run<'l> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/arrivals.py");
    lab.run("/usr/bin/python3").args([script, role, addr]).arg(port.to_string())
}
