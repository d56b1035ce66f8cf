//! What a program's calls take, on whatever stack serves them; both ends of each connection are in this thread:
//!
//! ```text
//! cargo bench -p utcp-bench --bench calls                              on the kernel
//! LD_PRELOAD=$PWD/target/release/libutcp.so cargo bench -p utcp-bench --bench calls      on utcp
//! ```
//!
//! Compare the two by turns. What wakes another thread is not here: see `utcp-compare --app pingpong`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use divan::Bencher;

/// Bytes that a new connection brings at a time before it is measured.
const WARM: usize = 2048;

fn main() {
    divan::main();
}

fn connected() -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (server, _) = listener.accept().expect("its other end");
    // What is new takes other ways at first: a connection gets on its own only when it has brought some bytes.
    let warm = vec![7; WARM];
    for (from, to) in [(&client, &server), (&server, &client)] {
        from.set_nodelay(true).expect("no delay");
        for _ in 0..4 {
            let (mut from, mut to) = (from, to);
            from.write_all(&warm).expect("they go out");
            to.read_exact(&mut [0; WARM]).expect("they come in");
        }
    }
    (listener, client, server)
}

/// Some bytes are sent and received.
#[divan::bench(args = [1, 64, 1448, 16_384])]
fn send_recv(bencher: Bencher<'_, '_>, len: usize) {
    let (_listener, mut client, mut server) = connected();
    let (bytes, mut room) = (vec![7; len], vec![0; len]);
    bencher.bench_local(|| {
        client.write_all(&bytes).expect("they go out");
        server.read_exact(&mut room).expect("they come in");
    });
}

/// There is nothing to receive.
#[divan::bench]
fn recv_nothing(bencher: Bencher<'_, '_>) {
    let (_listener, _client, mut server) = connected();
    server.set_nonblocking(true).expect("no waiting");
    bencher.bench_local(|| server.read(&mut [0; 64]).is_err());
}

/// A set of so many connections, one of which becomes ready each time.
#[divan::bench(args = [1, 100, 1_000])]
fn send_epoll_recv(bencher: Bencher<'_, '_>, connections: usize) {
    // SAFETY: no pointers; a fresh descriptor, or -1, which `OwnedFd` must not get.
    let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(set >= 0, "an epoll set");
    // SAFETY: just made, and nobody else's.
    let set = unsafe { OwnedFd::from_raw_fd(set) };
    let all: Vec<_> = (0..connections).map(|_| connected()).collect();
    for (number, (_, _, server)) in (0u64..).zip(&all) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number };
        // SAFETY: `event` is valid for the call.
        let added = unsafe {
            libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, server.as_raw_fd(), &raw mut event)
        };
        assert_eq!(added, 0, "an interest");
    }
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 7) % connections;
        (&all[next].1).write_all(&[7; 64]).expect("they go out");
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for the one event that is asked for.
        let ready = unsafe { libc::epoll_wait(set.as_raw_fd(), &raw mut event, 1, 1000) };
        assert_eq!((ready, { event.u64 }), (1, next as u64), "it is ready");
        (&all[next].2).read_exact(&mut [0; 64]).expect("they come in");
    });
}

/// A connection is made, accepted and closed.
#[divan::bench(max_time = 0.5)]
fn connect_accept_close(bencher: Bencher<'_, '_>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    bencher.bench_local(|| {
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("its other end");
        drop(client);
        drop(server);
    });
}
