//! Connections of more bytes than positions have room for beside the number of their use.

use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;

use utcp_abi::pair::{PAIR_LEN, PairView, STREAM_MAX};
use utcp_tests::{Engine, Lab};

/// Three connections between two ends, of which the last goes on when `go` is there.
const PROGRAM: &str = r"
import os, select, socket, struct, sys, threading, time
def pair():
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]
def acked(of):
    return struct.unpack_from('Q', of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 120)[0]
def exchange(a, b, size):
    data = os.urandom(1 << 20) * (size >> 20)
    sender = threading.Thread(target=a.sendall, args=(data,))
    sender.start()
    got, poll = bytearray(), select.epoll()
    poll.register(b, select.EPOLLIN)
    while len(got) < size:
        assert poll.poll(20), 'nothing comes'
        got += b.recv(1 << 18)
    sender.join()
    assert bytes(got) == data, 'other bytes'
listener = socket.create_server(('127.0.0.1', 0))
pairs = [pair() for _ in range(3)]
for a, b in pairs:
    exchange(a, b, 1 << 20)
    exchange(b, a, 3 << 20)
    assert (acked(a), acked(b)) == (1 << 20, 3 << 20), (acked(a), acked(b))
print('ready', flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
a, b = pairs[2]
for _ in range(3):
    exchange(a, b, 6 << 20)
    exchange(b, a, 6 << 20)
assert acked(a) == int(sys.argv[2]) + (19 << 20), acked(a)
a.shutdown(socket.SHUT_WR)
assert b.recv(1) == b''
for end in (a, b):
    end.close()
for _ in range(3):
    a, b = pair()
    exchange(a, b, 6 << 20)
    a.close()
    assert b.recv(1) == b''
print('same')
";

/// The memory of the one pair region that the engine has.
fn region_of(engine: u32) -> PairView {
    let folder = format!("/proc/{engine}/fd");
    let named = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|name| name.to_string_lossy().contains("utcp-pair"))
    };
    let mut files = std::fs::read_dir(folder).expect("an engine").flatten().map(|entry| entry.path());
    let path = files.find(|path| named(path)).expect("a pair region");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .expect("its memory");
    // SAFETY: a fresh mapping, of a file that is as long and can't shrink.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAIR_LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(base, libc::MAP_FAILED);
    // SAFETY: it is never unmapped.
    unsafe { PairView::new(base.cast()) }
}

/// Nobody can wait for 16 TiB, so they are put into the positions while the connection rests.
#[test]
fn more_than_16_tib_go_between_two_programs() {
    let lab = Lab::new("ages");
    let engine = Engine::start(&lab);
    let go = lab.path("go");
    let carried = (1 << 44) - STREAM_MAX;
    let run = lab.python(PROGRAM).arg(&go).arg(carried.to_string());
    let mut program = run.under(&engine).spawn();
    program.wait_for_output("ready");
    let slot = region_of(engine.pid().expect("an engine")).slot(2).expect("a slot");
    for side in &slot.sides {
        for position in [&side.tail, &side.head] {
            position.fetch_add(carried, Ordering::SeqCst);
        }
    }
    lab.file("go", "");
    assert!(program.finish().ok().text().ends_with("same\n"));
    assert!(engine.counters().get("cut_through") >= 6, "not the path that was meant");
}
