//! memcached: accepted by one thread, served by four, sendmsg with many pieces.
//!
//! memcached started by root becomes another user before it makes its first socket, and so would look for
//! that user's engine. The tests run it as an ordinary user, clients and engine as the same one.

use utcp_tests::{Engine, Lab, Run, Running, WAIT, is_root};

const NOBODY: u32 = 65_534;

fn engine_of_nobody(lab: &Lab) -> Engine<'_> {
    let engine = Engine::new(lab);
    if is_root() { engine.owned_by(NOBODY).run() } else { engine.run() }
}

fn as_nobody(run: Run<'_>) -> Run<'_> {
    if is_root() { run.as_user(NOBODY, NOBODY) } else { run }
}

fn start(lab: &Lab, engine: &Engine<'_>) -> (Running, u16) {
    let port = lab.port();
    let run = lab.run("memcached").args(["-t", "4", "-m", "128", "-I", "12m", "-l", "127.0.0.1"]);
    let run = run.args(["-p", &port.to_string(), "-U", "0"]);
    let mut server = as_nobody(run).under(engine).spawn();
    server.wait_for_listener(port);
    engine.wait_for_listener(port);
    (server, port)
}

/// 40 clients in 4 threads, values up to 1 MB, pipelined gets of many keys (answered by one sendmsg).
#[test]
fn four_threads_serve() {
    let lab = Lab::new("memcached");
    let engine = engine_of_nobody(&lab);
    let (mut server, port) = start(&lab, &engine);
    let script = format!(
        "import os, socket, threading
def client(number):
    f = socket.create_connection(('127.0.0.1', {port}), timeout=20).makefile('rwb')
    values = {{}}
    for n in range(30):
        key, value = f'k-{{number}}-{{n}}', os.urandom([1, 100, 5000, 70000, 1000000][n % 5 if number % 10 == 0 else n % 4])
        values[key] = value
        f.write(f'set {{key}} 0 0 {{len(value)}}\\r\\n'.encode() + value + b'\\r\\n')
    f.flush()
    for n in range(30):
        assert f.readline() == b'STORED\\r\\n'
    f.write(('get ' + ' '.join(values) + '\\r\\n').encode())
    f.flush()
    seen = 0
    while (line := f.readline()) != b'END\\r\\n':
        _, key, _, length = line.split()
        assert f.read(int(length)) == values[key.decode()], key
        f.readline()
        seen += 1
    assert seen == 30, seen
    done.append(1)
done = []
threads = [threading.Thread(target=client, args=(n,)) for n in range(40)]
for t in threads: t.start()
for t in threads: t.join(40)
print(len(done))"
    );
    assert_eq!(as_nobody(lab.python(&script)).under(&engine).ok().text(), "40\n");
    engine.went_through(40);
    assert!(server.is_alive(), "{}", server.stderr());
    engine.wait_until_empty(WAIT);
}

/// Both ends alone: a kernel client of the server under utcp, one after the other with a utcp client.
#[test]
fn kernel_and_utcp_clients_in_turn() {
    let lab = Lab::new("memcached-mixed");
    let engine = engine_of_nobody(&lab);
    let (_server, port) = start(&lab, &engine);
    let script = format!(
        "import socket
for n in range(50):
    s = socket.create_connection(('127.0.0.1', {port}), timeout=10)
    s.sendall(b'incr n 1\\r\\n' if n else b'add n 0 0 1\\r\\n0\\r\\n')
    assert s.recv(100).endswith(b'\\r\\n')
    s.close()
print('done')"
    );
    for _ in 0..3 {
        assert_eq!(lab.python(&script).ok().text(), "done\n");
        assert_eq!(as_nobody(lab.python(&script)).under(&engine).ok().text(), "done\n");
    }
    engine.went_through(150);
}
