//! Programs that go around libc's names: what they call by number is what it is by name.

use utcp_tests::{Engine, Lab, is_root, not_run, on_kernel};

/// Numbers of calls, and `call`.
const CALLS: &str = r#"
import ctypes, errno, os, platform, select, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    'x86_64': dict(setresuid=117, ppoll=271, epoll_pwait=281, execveat=322, epoll_pwait2=441, open=2, openat=257, eventfd2=290),
    'aarch64': dict(setresuid=147, ppoll=73, epoll_pwait=22, execveat=281, epoll_pwait2=441, openat=56, eventfd2=19),
}[platform.machine()]
def call(name, *words):
    words = [ctypes.c_void_p(w) if isinstance(w, int) or w is None else w for w in words]
    got = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    return got if got >= 0 else errno.errorcode[ctypes.get_errno()]
"#;

/// Behind [`CALLS`]: a connection, which a set waits for.
const WAITING: &str = "
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
epoll = select.epoll()
epoll.register(client, select.EPOLLIN)
";

/// The new program has an empty environment, and the library all the same.
#[test]
fn a_program_is_executed() {
    let lab = Lab::new("by-number-exec");
    let engine = Engine::start(&lab);
    let program = format!(
        "{CALLS}
path = os.fsencode(sys.executable)
child = b\"print(any('libutcp.so' in line for line in open('/proc/self/maps')))\"
words = (ctypes.c_char_p * 4)(path, b'-c', child, None)
call('execveat', -100, ctypes.c_char_p(path), words, (ctypes.c_char_p * 1)(None), 0)
"
    );
    let text = lab.python(&program).under(&engine).ok().text();
    assert_eq!(text.trim() == "True", !on_kernel(), "{text}");
}

/// Numbers that wait in the library are free in the program's eyes, whichever way it asks for one.
#[test]
fn the_last_numbers_are_the_programs() {
    let lab = Lab::new("by-number-last");
    let engine = Engine::start(&lab);
    let program = format!(
        "{CALLS}
import resource
path = ctypes.c_char_p(b'/dev/null')
libc.open, libc.openat # Looked up while there are numbers.
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
peer = listener.accept()[0]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
def count(ask):
    opened = []
    while (fd := ask()) != 'EMFILE':
        assert fd < 64, fd
        opened.append(fd)
    for fd in opened: os.close(fd)
    return len(opened)
free = 64 - len(os.listdir('/proc/self/fd')) + 1 if 'libutcp' not in open('/proc/self/maps').read() else None
def by_name():
    fd = libc.openat(-100, path, os.O_RDONLY)
    return fd if fd >= 0 else errno.errorcode[ctypes.get_errno()]
def by_eventfd():
    fd = libc.eventfd(0, 0)
    return fd if fd >= 0 else errno.errorcode[ctypes.get_errno()]
ways = [by_name, lambda: call('openat', -100, path, os.O_RDONLY), by_eventfd, lambda: call('eventfd2', 0, 0)]
if 'open' in NUMBERS: ways.append(lambda: call('open', path, os.O_RDONLY))
counts = []
for ask in ways:
    # Closed connections are what waits.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(8)]
    for a, b in pairs: a.close(), b.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    counts.append(count(ask))
assert len(set(counts)) == 1, counts
assert free is None or free == counts[0], (free, counts)
client.sendall(b'x')
print(peer.recv(5).decode(), 'ok')
"
    );
    assert_eq!(lab.python(&program).under(&engine).ok().text().trim(), "x ok");
    engine.went_through(1);
}

/// Root's server becomes another by number, and is met by root's programs.
#[test]
fn a_server_drops_root() {
    if !is_root() {
        return not_run("only root can become another");
    }
    let lab = Lab::new("by-number-uid");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let program = format!(
        "{CALLS}
assert call('setresuid', 65534, 65534, 65534) == 0
listener = socket.create_server(('127.0.0.1', {port}))
listener.accept()[0].sendall(b'hello')
"
    );
    let server = lab.python(&program).under(&engine).spawn();
    if !on_kernel() {
        engine.wait_for_listener(port);
        let client =
            format!("import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(5).decode())");
        assert_eq!(lab.python(&client).under(&engine).ok().text().trim(), "hello");
        let _ = server.finish();
        engine.went_through(1);
    }
}

/// With a mask of signals goes its length: only that of the kernel's masks is right.
#[test]
fn a_mask_of_another_length_is_refused() {
    let lab = Lab::new("by-number-mask");
    let engine = Engine::start(&lab);
    let program = format!(
        "{CALLS}{WAITING}
room, mask = ctypes.create_string_buffer(12), ctypes.create_string_buffer(8)
one = ctypes.create_string_buffer(client.fileno().to_bytes(4, sys.byteorder) + bytes(4))
for length, right in (8, 0), (0, 'EINVAL'), (4, 'EINVAL'), (16, 'EINVAL'):
    assert call('epoll_pwait', epoll.fileno(), room, 1, 0, mask, length) == right, length
    assert call('epoll_pwait', epoll.fileno(), room, 1, 0, None, length) == 0, length
    time = ctypes.create_string_buffer(16)
    assert call('epoll_pwait2', epoll.fileno(), room, 1, time, mask, length) == right, length
    assert call('ppoll', one, 1, time, mask, length) == right, length
print('ok')
"
    );
    assert_eq!(lab.python(&program).under(&engine).ok().text().trim(), "ok");
    engine.went_through(1);
}

/// A wait of microseconds ends after them and not after the millisecond that they are rounded up to elsewhere.
#[test]
fn a_wait_of_microseconds_takes_no_millisecond() {
    let lab = Lab::new("by-number-microseconds");
    let engine = Engine::start(&lab);
    let program = format!(
        "{CALLS}{WAITING}
import time
room = ctypes.create_string_buffer(12)
wanted = ctypes.create_string_buffer(bytes(8) + (200_000).to_bytes(8, sys.byteorder))
took = []
for _ in range(100):
    before = time.monotonic_ns()
    assert call('epoll_pwait2', epoll.fileno(), room, 1, wanted, None, 8) == 0
    took.append(time.monotonic_ns() - before)
assert min(took) >= 200_000, took
assert min(took) < 900_000, took
print('ok')
"
    );
    assert_eq!(lab.python(&program).under(&engine).ok().text().trim(), "ok");
    engine.went_through(1);
}
