//! Programs that speak the library's messages themselves and would have the engine hold without end what is theirs: files, channels,
//! answers that nobody reads. It holds little, stays quiet, and serves others meanwhile.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use utcp_abi::message::{Kind, Message, Reply};
use utcp_engine::sys::{self, Wait};
use utcp_tests::{Engine, Lab, cpu_ticks, not_run, on_kernel, wait_until};

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

fn channel(engine: &Engine<'_>) -> std::io::Result<OwnedFd> {
    let name = utcp_engine::config::user_name(Some(engine.stack())).expect("a name");
    sys::connect_seqpacket(&name)
}

/// Others are served as ever, by an engine that has nothing to do otherwise.
#[track_caller]
fn is_well(lab: &Lab, engine: &Engine<'_>) {
    let pid = engine.pid().expect("it runs");
    assert_eq!(lab.python(EXCHANGE).under(engine).ok().text(), "b'served'\n");
    wait_until("the engine is quiet for a second", LIMIT, || {
        let before = cpu_ticks(pid);
        std::thread::sleep(Duration::from_secs(1));
        (cpu_ticks(pid) - before <= 2).then_some(())
    });
}

/// Each report was a thread of the engine's until somebody read it, and one thread too many was the engine's end.
#[test]
fn answers_that_nobody_reads_cost_little() {
    if on_kernel() {
        return not_run("nobody answers");
    }
    let lab = Lab::new("silent-reader");
    let engine = Engine::start(&lab);
    let pid = engine.pid().expect("it runs");
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").count();
    let before = threads();
    let ask = Message { a: 2, ..Message::new(Kind::Report) };
    let mut readers = Vec::new();
    for _ in 0..40 {
        let channel = channel(&engine).expect("the engine listens");
        for _ in 0..500 {
            if sys::send(channel.as_fd(), ask.as_bytes(), &[]).is_err() {
                break;
            }
        }
        assert!(threads() <= before, "a thread for a report");
        readers.push(channel);
    }
    is_well(&lab, &engine);
    // Who reads at last gets all that was asked for, in order.
    let last = readers.pop().expect("one of forty");
    for at in 0..100 {
        let mut bytes = vec![0; 64 * 1024];
        let len = sys::receive(last.as_fd(), &mut bytes, &mut Vec::new(), Wait::Sleep).expect("a reply");
        let reply =
            Reply::from_bytes(&bytes[..len]).unwrap_or_else(|| panic!("{at}: {len} bytes are no reply"));
        let len = sys::receive(last.as_fd(), &mut bytes, &mut Vec::new(), Wait::Sleep).expect("its text");
        assert_eq!(len as u64, reply.a, "{at}");
    }
}

/// Channels on which nobody speaks, more than there are descriptors: who came first goes, and who speaks is heard.
#[test]
fn who_only_knocks_keeps_nobody_out() {
    if on_kernel() {
        return not_run("nobody listens");
    }
    let lab = Lab::new("knocker");
    let engine = Engine::start(&lab);
    let pid = engine.pid().expect("it runs");
    let before = files_of(pid);
    let mut held: Vec<_> = (0..600).map(|_| channel(&engine).expect("the engine listens")).collect();
    wait_until("the first ones are gone", LIMIT, || (files_of(pid) < before + 300).then_some(()));
    is_well(&lab, &engine);
    // Until it has no descriptor left, not even for who comes.
    held.clear();
    wait_until("all are gone", LIMIT, || (files_of(pid) <= before).then_some(()));
    let most = before as u64 + 100;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: sets a limit of another process of ours; an initialised structure, and nothing is written back.
    let set = unsafe {
        libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0);
    held.extend((0..200).map(|_| channel(&engine).expect("the engine listens")));
    let late = channel(&engine).expect("it waits at the door");
    let gone = sys::receive(late.as_fd(), &mut [0; 64], &mut Vec::new(), Wait::Sleep);
    assert!(matches!(gone, Ok(0) | Err(_)), "sent away at once: {gone:?}");
    held.clear();
    is_well(&lab, &engine);
}

/// A forked child's channel may be a channel alone: a socket that was shut down woke the engine for ever, and one that never hangs up
/// kept a dead program's memory.
#[test]
fn no_other_socket_passes_for_a_channel() {
    if on_kernel() {
        return not_run("nobody adopts anything");
    }
    let lab = Lab::new("adopter");
    let engine = Engine::start(&lab);
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.connect(udp.local_addr().expect("bound")).expect("to itself");
    // SAFETY: acts on a descriptor of ours and touches no memory.
    assert_eq!(unsafe { libc::shutdown(udp.as_raw_fd(), libc::SHUT_RDWR) }, 0);
    let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let adopt = Message { b: 1, ..Message::new(Kind::Adopt) };
    let (channel, stand) = client(&engine);
    for fd in [udp.as_raw_fd(), stream.as_raw_fd()] {
        sys::send(channel.as_fd(), adopt.as_bytes(), &[fd]).expect("the engine reads");
    }
    drop((channel, stand));
    wait_until("the client is gone", LIMIT, || {
        let clients = engine.ask("clients").expect("it answers");
        (!clients.contains(&std::process::id().to_string())).then_some(())
    });
    is_well(&lab, &engine);
}
