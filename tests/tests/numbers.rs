//! A number that one thread closes and another uses: what the second does goes to whatever waits there for the next socket. Here it
//! is done on purpose, by libc's own calls.

use std::time::Duration;

use utcp_tests::{Engine, Lab};

/// Connections whose numbers are used after their close; then others, which are copied before they are closed, so that only the kernel
/// can tell of the end of them.
const PROGRAM: &str = r"
import ctypes, os, socket, sys, time
raw = ctypes.CDLL('libc.so.6', use_errno=True)
listener = socket.create_server(('127.0.0.1', 0), backlog=100)
def connect():
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]
later = sys.argv[2] == 'later'
def spoil(number):
    if sys.argv[1] == 'bytes':
        assert raw.write(number, b'stray', 5) == 5
    else:
        assert raw.shutdown(number, int(sys.argv[1])) == 0
for _ in range(3):
    ends = [end for _ in range(4) for end in connect()]
    numbers = [end.fileno() for end in ends]
    for end in ends:
        end.close()
    for number in numbers:
        spoil(number)
    if later:
        time.sleep(0.3)
    # At once, the engine takes a spoiled one for closed at any time: what comes of its calls is open.
    ends = []
    for _ in range(8):
        client = socket.socket()
        client.setblocking(later)
        client.connect_ex(listener.getsockname())
        ends.append(client)
    listener.setblocking(later)
    for client in ends[:8]:
        try:
            server = listener.accept()[0]
        except BlockingIOError:
            continue
        ends.append(server)
        if later:
            client.sendall(b'abc')
            assert server.recv(10) == b'abc'
            server.sendall(b'def')
            assert client.recv(10) == b'def'
    for end in ends:
        os.close(os.dup(end.fileno()))
        end.close()
    time.sleep(0 if later else 0.3)
    listener.setblocking(False)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        listener.setblocking(True)
listener.close()
print('done', flush=True)
time.sleep(100)
";

/// Nothing stays behind. `what` came over the numbers that wait; the next sockets were made when the engine knew (`later`), or at once.
fn nothing_stays(what: &str, when: &str) {
    let lab = Lab::new(&format!("numbers-{what}-{when}"));
    for path in ["off", "on"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let mut program = lab.python(PROGRAM).args([what, when]).under(&engine).spawn();
        program.wait_for_output("done");
        engine.wait_until_gone("sockets", Duration::from_secs(15), |socket| socket.state != "TIME-WAIT");
        engine.went_through(24);
        assert!(program.is_alive(), "{}", program.stderr());
    }
}

#[test]
fn shut_down_for_writing() {
    nothing_stays("1", "later");
}

#[test]
fn shut_down_for_reading() {
    nothing_stays("0", "later");
}

#[test]
fn shut_down() {
    nothing_stays("2", "later");
}

#[test]
fn written_to() {
    nothing_stays("bytes", "later");
}

#[test]
fn shut_down_just_before_the_next() {
    nothing_stays("2", "at-once");
}

#[test]
fn shut_down_for_writing_just_before_the_next() {
    nothing_stays("1", "at-once");
}
