//! A program that puts sockets into an io_uring, and does without if it gets none: `utcp-rings early|late`.
//!
//! `early`: the ring comes before the sockets, as in programs made for it. `late`: a connection and a listener are there already.
//! What it prints is the same on the kernel and under utcp, but for the first line where rings are refused.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_ptr_alignment,
    reason = "the kernel's structures, which are small and aligned"
)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

const SEND: u8 = 26;
const RECV: u8 = 27;
const ACCEPT: u8 = 13;

/// io_uring_params: ten numbers, and where things are in the two rings.
#[repr(C)]
#[derive(Default)]
struct Params {
    numbers: [u32; 10],
    submissions: [u32; 10],
    completions: [u32; 10],
}

/// io_uring_sqe.
#[repr(C)]
#[derive(Clone, Copy)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    operation_flags: u32,
    data: u64,
    rest: [u64; 3],
}

struct Ring {
    fd: i32,
    params: Params,
    submissions: *mut u8,
    completions: *mut u8,
    entries: *mut Submission,
}

impl Ring {
    fn new() -> Option<Self> {
        let mut params = Params::default();
        // SAFETY: a place for the parameters; then the mappings that io_uring_setup(2) describes.
        unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, 8, &raw mut params) as i32;
            if fd < 0 {
                println!("no ring: {}", std::io::Error::last_os_error());
                return None;
            }
            let map = |offset: i64| {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                libc::mmap(ptr::null_mut(), 1 << 14, protection, libc::MAP_SHARED, fd, offset).cast::<u8>()
            };
            let (submissions, completions) = (map(0), map(0x800_0000));
            let entries = map(0x1000_0000).cast();
            Some(Self { fd, params, submissions, completions, entries })
        }
    }

    fn word(base: *mut u8, offset: u32) -> &'static AtomicU32 {
        // SAFETY: a word of a ring, which stays mapped to the end.
        unsafe { &*base.add(offset as usize).cast::<AtomicU32>() }
    }

    /// Submits one operation and waits for the completion of one: its number and result.
    fn submit(&self, operations: &[(u8, i32, &mut [u8])]) {
        let [_, tail, mask, _, _, _, array, ..] = self.params.submissions;
        let mask = Self::word(self.submissions, mask).load(Ordering::Relaxed);
        for (number, (opcode, fd, bytes)) in operations.iter().enumerate() {
            let at = Self::word(self.submissions, tail).load(Ordering::Relaxed);
            let (address, len) =
                if *opcode == ACCEPT { (0, 0) } else { (bytes.as_ptr() as u64, bytes.len() as u32) };
            let entry = Submission {
                opcode: *opcode,
                flags: 0,
                ioprio: 0,
                fd: *fd,
                offset: 0,
                address,
                len,
                operation_flags: 0,
                data: number as u64,
                rest: [0; 3],
            };
            // SAFETY: a free entry of the ring.
            unsafe { self.entries.add((at & mask) as usize).write(entry) };
            Self::word(self.submissions, array + (at & mask) * 4).store(at & mask, Ordering::Relaxed);
            Self::word(self.submissions, tail).store(at.wrapping_add(1), Ordering::Release);
        }
        let count = operations.len();
        // SAFETY: numbers only.
        let entered = unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd, count, count, 1u32, 0, 0) };
        assert_eq!(entered as usize, count, "{}", std::io::Error::last_os_error());
        let [head, tail, mask, _, _, entries, ..] = self.params.completions;
        let mask = Self::word(self.completions, mask).load(Ordering::Relaxed);
        let mut results = Vec::new();
        while results.len() < count {
            let at = Self::word(self.completions, head).load(Ordering::Relaxed);
            assert_ne!(at, Self::word(self.completions, tail).load(Ordering::Acquire), "a completion");
            let offset = entries + (at & mask) * 16;
            let (number, result) =
                (Self::word(self.completions, offset), Self::word(self.completions, offset + 8));
            let result = result.load(Ordering::Relaxed).cast_signed();
            results.push((number.load(Ordering::Relaxed), result));
            Self::word(self.completions, head).store(at.wrapping_add(1), Ordering::Release);
        }
        results.sort_unstable();
        for ((number, result), (opcode, _, bytes)) in results.iter().zip(operations) {
            let shown = if *opcode == ACCEPT { "fd".to_owned() } else { result.to_string() };
            let text = if *opcode == RECV { String::from_utf8_lossy(bytes) } else { "".into() };
            println!(
                "{number}: {opcode} {} {}",
                if *result < 0 { result.to_string() } else { shown },
                text.trim_matches('\0')
            );
        }
    }
}

fn sockets() -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (accepted, _) = listener.accept().expect("accepted");
    (listener, client, accepted)
}

fn main() {
    let early = std::env::args().nth(1).is_some_and(|word| word == "early");
    let mut ring = if early { Ring::new() } else { None };
    let (listener, mut client, mut accepted) = sockets();
    client.write_all(b"before ").expect("sent");
    if !early {
        ring = Ring::new();
    }
    let (mut hello, mut answer, mut got, mut back) = (*b"hello", *b"answer", [0u8; 32], [0u8; 32]);
    let Some(ring) = ring else {
        client.write_all(&hello).expect("sent");
        accepted.read_exact(&mut got[..12]).expect("received");
        println!("plain {}", String::from_utf8_lossy(&got).trim_matches('\0'));
        return;
    };
    let (c, a, l) = (client.as_raw_fd(), accepted.as_raw_fd(), listener.as_raw_fd());
    // Who receives first must not wait for ever.
    ring.submit(&[(RECV, a, &mut got)]);
    ring.submit(&[(RECV, a, &mut got[7..]), (SEND, c, &mut hello)]);
    ring.submit(&[(RECV, c, &mut back), (SEND, a, &mut answer)]);
    let address = listener.local_addr().expect("bound");
    let later = std::thread::spawn(move || TcpStream::connect(address).expect("connected"));
    ring.submit(&[(ACCEPT, l, &mut [])]);
    drop(later.join());
    client.write_all(b"after").expect("sent");
    accepted.read_exact(&mut got[..5]).expect("received");
    println!("plain {}", String::from_utf8_lossy(&got[..5]));
}
