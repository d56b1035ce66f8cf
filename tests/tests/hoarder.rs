//! A program that speaks the library's messages itself and would have the engine hold files of its own without end.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use utcp_abi::message::{Kind, Message, Reply};
use utcp_engine::sys::{self, Wait};
use utcp_tests::{Engine, Lab, not_run, on_kernel, wait_until};

const EXCHANGE: &str = "
import socket
server = socket.create_server(('127.0.0.1', 0))
with socket.create_connection(server.getsockname(), timeout=10) as client:
    client.sendall(b'served')
    print(server.accept()[0].recv(10))
";

/// How long what must happen may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Files that a process has open.
fn files_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
}

/// A client that has one descriptor of the engine's: its channel, and the descriptor.
fn client(engine: &Engine<'_>) -> (OwnedFd, OwnedFd) {
    let name = utcp_engine::config::user_name(Some(engine.stack())).expect("a name");
    let channel = sys::connect_seqpacket(&name).expect("the engine listens");
    let ask = |message: Message| {
        sys::send(channel.as_fd(), message.as_bytes(), &[]).expect("the engine reads");
        let (mut bytes, mut fds) = ([0; size_of::<Reply>()], Vec::new());
        let _ = sys::receive(channel.as_fd(), &mut bytes, &mut fds, Wait::Sleep).expect("a reply");
        fds
    };
    let _region = ask(Message { a: u64::from(utcp_abi::ABI_VERSION), ..Message::new(Kind::Hello) });
    let stand = ask(Message { a: 1, ..Message::new(Kind::Pool) }).pop().expect("a descriptor");
    (channel, stand)
}

/// Sends `count` files at once to be held, again and again, until the descriptor is gone.
fn hoard(engine: &Engine<'_>, count: usize) {
    let pid = engine.pid().expect("it runs");
    let (_channel, stand) = client(engine);
    let attached = files_of(pid);
    let file = File::open("/dev/null").expect("there is one");
    let files = vec![file.as_raw_fd(); count];
    let hold = Message::new(Kind::Hold);
    wait_until("the descriptor is closed", LIMIT, || {
        let held = files_of(pid).saturating_sub(attached);
        assert!(held < 200, "{held} files are held for one descriptor");
        let is_closed = |error: std::io::Error| error.kind() != std::io::ErrorKind::WouldBlock;
        let mut messages = (0..50).map(|_| sys::send(stand.as_fd(), hold.as_bytes(), &files));
        messages.any(|sent| sent.is_err_and(is_closed)).then_some(())
    });
    // Its own far end went, too.
    wait_until("nothing is held any more", LIMIT, || (files_of(pid) < attached).then_some(()));
    assert!(engine.log().contains("hold more than one file"), "{}", engine.log());
}

#[test]
fn one_file_is_held_for_a_descriptor() {
    if on_kernel() {
        return not_run("nobody holds anything");
    }
    let lab = Lab::new("hoarder");
    for count in [1, 2, 64] {
        let engine = Engine::start(&lab);
        hoard(&engine, count);
        // It serves others as before.
        assert_eq!(lab.python(EXCHANGE).under(&engine).ok().text(), "b'served'\n");
        engine.went_through(1);
    }
}
