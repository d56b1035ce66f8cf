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
