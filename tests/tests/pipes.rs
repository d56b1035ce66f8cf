//! Bytes that go from a pipe into a connection, while the pipe is empty and somebody else uses the connection.

use utcp_tests::{Engine, Lab};

/// A thread waits in `splice` for the pipe. Meanwhile others send on the same connection; then its other end goes to another program,
/// which takes the connection's bytes to another place.
const PROGRAM: &str = r"
import os, socket, subprocess, threading, time
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
server.settimeout(10)
out, into = os.pipe()
moved = []
def sleeps(thread):
    try:
        return 'pipe' in open(f'/proc/self/task/{thread.native_id}/wchan').read()
    except OSError:
        return False
def begin():
    thread = threading.Thread(target=lambda: moved.append(os.splice(out, client.fileno(), 100)))
    thread.start()
    until = time.monotonic() + 1 # Where the kernel does not tell.
    while not sleeps(thread) and time.monotonic() < until:
        time.sleep(0.01)
    return thread
thread = begin()
client.sendall(b'abc')
assert server.recv(10) == b'abc'
os.write(into, b'defg')
thread.join()
assert moved == [4] and server.recv(10) == b'defg'
thread = begin()
server.settimeout(None) # What cat gets waits.
cat = subprocess.Popen(['cat'], stdin=server, stdout=subprocess.PIPE)
client.sendall(b'hi')
assert cat.stdout.read(2) == b'hi'
os.write(into, b'jklmn')
thread.join()
assert moved == [4, 5]
client.shutdown(socket.SHUT_WR)
server.close()
assert cat.stdout.read() == b'jklmn' and cat.wait() == 0
print('done')
";

fn pipes(path: &str) {
    let lab = Lab::new(&format!("pipes-{path}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
    assert_eq!(lab.python(PROGRAM).under(&engine).ok().text(), "done\n");
    engine.went_through(1);
}

#[test]
fn a_splice_that_waits_keeps_nobody_from_the_connection() {
    pipes("off");
}

#[test]
fn a_splice_that_waits_keeps_nobody_from_the_connection_cut_through() {
    pipes("on");
}
