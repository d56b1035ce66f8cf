//! The pipe by the conformance suite, by netmap's rules, and between two processes.

use std::time::Duration;

use super::*;
use crate::conformance::{self, Pair};
use crate::netmap::region::Side;
use crate::ring::{Slot, SlotFlags};

fn small() -> OpenOptions {
    OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() }
}

fn joined(a: Box<dyn Port>, b: Box<dyn Port>) -> Pair {
    let frame = |_, len: usize| (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    Pair { a, b, frame: Box::new(frame), frame_len_min: 14, pushes_back: true, kicks_max: 1, skip: &[] }
}

#[track_caller]
fn conforms(mut pair: Pair) {
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_pair_in_one_process_conforms() {
    let [a, b] = pair("test", &small()).unwrap();
    conforms(joined(a, b));
}

#[test]
fn odd_sizes_conform() {
    let odd = OpenOptions { rx_slots: 37, tx_slots: 2, frame_size: Some(4096), ..OpenOptions::default() };
    let [a, b] = pair("test", &odd).unwrap();
    assert_eq!((a.caps().tx_slots, b.caps().rx_slots, a.caps().mtu), (37, 37, 4096 - 18));
    conforms(joined(a, b));
}

/// A name that no other run of the tests uses.
fn name(what: &str) -> String {
    format!("test-{}-{what}", std::process::id())
}

/// Both ends by name; each maps the memory for itself, as two processes would.
fn open_both(name: &str) -> (Box<dyn Port>, Box<dyn Port>) {
    let other = format!("pipe:{name}");
    let device = other.clone();
    let thread = std::thread::spawn(move || crate::open(&other, &small()).unwrap().ports.remove(0));
    let a = crate::open(&device, &small()).unwrap().ports.remove(0);
    (a, thread.join().unwrap())
}

#[test]
fn ends_that_met_by_name_conform() {
    let (a, b) = open_both(&name("meet"));
    assert_eq!(a.caps().peer_mac, Some(b.caps().mac));
    conforms(joined(a, b));
}

#[test]
fn a_name_can_be_used_again() {
    let name = name("again");
    for _ in 0..5 {
        drop(open_both(&name));
    }
}

#[test]
fn waiting_for_nobody_ends_with_a_clear_error() {
    let options = OpenOptions { pipe_wait: Duration::from_millis(10), ..small() };
    let error = crate::open(&format!("pipe:{}", name("alone")), &options).err().unwrap().to_string();
    assert!(error.contains("nobody opened the other end within 0 s"), "{error}");
}

#[test]
fn the_other_end_sees_a_close_after_the_last_frame() {
    let [mut a, mut b] = pair("test", &small()).unwrap();
    assert!(b.arm().unwrap());
    assert!(a.tx().push(b"last words"));
    a.tx_sync().unwrap();
    drop(a);
    assert_eq!(b.rx_sync().unwrap(), 1);
    assert_eq!(b.rx().next().unwrap().bytes(), b"last words");
    let hang_up: Vec<_> = b.poll_fds().iter().collect();
    let mut fds = hang_up.map_pollfds();
    assert!(crate::sys::poll(&mut fds, Duration::ZERO), "the hang-up wakes a sleeper");
    b.arm().unwrap();
    let error = b.rx_sync().unwrap_err().to_string();
    assert_eq!(error, "pipe:test is gone (its other end was closed); open it again when it is back");
}

trait MapPollFds {
    fn map_pollfds(&self) -> Vec<libc::pollfd>;
}

impl MapPollFds for Vec<PollFd> {
    fn map_pollfds(&self) -> Vec<libc::pollfd> {
        self.iter().map(|p| libc::pollfd { fd: p.fd, events: p.events, revents: 0 }).collect()
    }
}

#[test]
fn a_released_slot_wakes_a_sender_that_is_full() {
    let [mut a, mut b] = pair("test", &small()).unwrap();
    while a.tx().push(b"x") {}
    assert_eq!(a.tx_sync().unwrap(), 0);
    assert!(a.arm().unwrap());
    assert!(!crate::sys::poll(&mut a.poll_fds().iter().collect::<Vec<_>>().map_pollfds(), Duration::ZERO));
    assert_eq!(b.rx_sync().unwrap(), 63);
    b.rx().next().unwrap();
    b.rx_sync().unwrap();
    assert!(crate::sys::poll(&mut a.poll_fds().iter().collect::<Vec<_>>().map_pollfds(), Duration::ZERO));
    a.rx_sync().unwrap();
    assert_eq!(a.tx_sync().unwrap(), 1);
}

/// The other end may clear the armed flag, be interrupted, and ring long after we woke by other means.
#[test]
fn a_late_ring_wakes_once_and_not_forever() {
    let [mut a, _b] = pair("test", &small()).unwrap();
    let bell = a.poll_fds().iter().next().unwrap().fd;
    for _ in 0..3 {
        assert!(a.arm().unwrap());
        sys::ring_fd(bell);
        let mut fds = a.poll_fds().iter().collect::<Vec<_>>().map_pollfds();
        assert!(crate::sys::poll(&mut fds, Duration::ZERO), "woken");
        a.rx_sync().unwrap();
        assert!(a.arm().unwrap());
        assert!(!crate::sys::poll(&mut fds, Duration::ZERO), "asleep again");
        a.rx_sync().unwrap();
    }
}

/// Two rings of 8 slots, driven by hand below the port.
struct Bare {
    memory: SharedMemory,
    tx: Kring,
    rx: Kring,
}

impl Bare {
    fn new() -> Self {
        let memory = SharedMemory::create(Shape { slots: 8, buf_size: 128, mtu: 100 }).unwrap();
        let (tx, rx) = (memory.tx_ring(0).1, memory.rx_ring(1).1);
        Self { memory, tx, rx }
    }

    /// The user of end 0's tx ring (`true`) or end 1's rx ring sets head and cur.
    fn set(&self, tx: bool, head: u32, cur: u32) {
        self.memory.set_indices(if tx { 0 } else { 3 }, head, cur);
    }

    fn indices(&self, tx: bool) -> (u32, u32, u32) {
        self.memory.indices(if tx { 0 } else { 3 })
    }
}

#[test]
fn nonsense_in_head_or_cur_is_set_back_and_moves_nothing() {
    let mut bare = Bare::new();
    assert_eq!(bare.indices(true), (0, 0, 7));
    bare.set(true, 3, 3);
    assert_eq!(bare.tx.tx_sync(&bare.memory).unwrap().slots, 3);
    // Backwards, behind tail (7), outside the ring, cur before head.
    for (resets, (head, cur)) in [(2, 2), (0, 0), (8, 8), (u32::MAX, 4), (5, 4)].into_iter().enumerate() {
        bare.set(true, head, cur);
        assert_eq!(bare.tx.tx_sync(&bare.memory), Ok(provider::Sent::default()), "head {head}, cur {cur}");
        assert_eq!(bare.indices(true), (3, 3, 7), "head {head}, cur {cur}");
        assert_eq!(bare.tx.resets, resets as u64 + 1, "head {head}, cur {cur}");
    }
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!(bare.indices(false), (0, 0, 3));
    bare.set(false, 4, 4);
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!((bare.indices(false), bare.rx.resets), ((0, 0, 3), 1));
    bare.set(false, 2, 3);
    assert!(bare.rx.rx_sync(&bare.memory).unwrap().released, "cur may run ahead of head");
    bare.tx.tx_sync(&bare.memory).unwrap();
    assert_eq!(bare.indices(true), (3, 3, 1), "two slots came back");
}

#[test]
fn a_buffer_outside_the_memory_is_not_shown_to_the_other_end() {
    let mut bare = Bare::new();
    let bad = [(0, 10), (1, 10), (18, 10), (u32::MAX, 10), (2, 129)];
    for (index, (buf, len)) in (0..).zip(bad) {
        bare.memory.set_slot(0, index, Slot { buf, len, ..Slot::default() });
    }
    bare.set(true, 5, 5);
    bare.tx.tx_sync(&bare.memory).unwrap();
    assert_eq!(bare.tx.bad_slots, 5);
    for index in 0..5 {
        let seen = bare.memory.slot(3, index);
        assert_eq!((seen.buf, seen.len), (0, 0), "slot {index}");
        assert_eq!(bare.memory.slot(0, index).buf, bad[index as usize].0, "the sender keeps what it wrote");
    }
}

#[test]
fn a_frame_of_several_slots_appears_whole() {
    let mut bare = Bare::new();
    let put = |bare: &Bare, index, flags| {
        let slot = bare.memory.slot(0, index);
        bare.memory.set_slot(0, index, Slot { len: 100, flags, ..slot });
    };
    put(&bare, 0, 0);
    put(&bare, 1, SlotFlags::MORE_FRAG);
    bare.set(true, 2, 2);
    bare.tx.tx_sync(&bare.memory).unwrap();
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!(bare.indices(false).2, 1, "the open frame is not there yet");
    put(&bare, 2, SlotFlags::MORE_FRAG);
    bare.set(true, 3, 3);
    bare.tx.tx_sync(&bare.memory).unwrap();
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!(bare.indices(false).2, 1, "nor now");
    put(&bare, 3, 0);
    bare.set(true, 4, 4);
    bare.tx.tx_sync(&bare.memory).unwrap();
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!(bare.indices(false).2, 4);
}

#[test]
fn a_swapped_buffer_comes_back_to_the_sender() {
    let mut bare = Bare::new();
    bare.set(true, 1, 1);
    bare.tx.tx_sync(&bare.memory).unwrap();
    bare.rx.rx_sync(&bare.memory).unwrap();
    let lent = bare.memory.slot(3, 0);
    assert_eq!(lent.buf, bare.memory.slot(0, 0).buf, "sending lends the buffer, it copies no bytes");
    // The receiver keeps the frame and gives another buffer back for it.
    bare.memory.set_slot(3, 0, Slot { buf: 10, flags: SlotFlags::BUF_CHANGED, ..lent });
    bare.set(false, 1, 1);
    bare.rx.rx_sync(&bare.memory).unwrap();
    assert_eq!(bare.memory.slot(0, 0).buf, 10);
    assert_eq!(bare.memory.slot(3, 0).flags, 0);
}

#[test]
fn an_index_that_the_other_end_made_up_is_an_error() {
    let [mut a, b] = pair("test", &small()).unwrap();
    // The only way to the words of the other end is through its own memory.
    drop(b);
    let _ = a.rx_sync();
    let mut bare = Bare::new();
    bare.memory.lie(0, 8);
    assert_eq!(bare.rx.rx_sync(&bare.memory), Err(Nonsense));
    assert_eq!(bare.tx.tx_sync(&bare.memory), Err(Nonsense));
}

/// Found the way that any program finds netmap's rings, the pipe's rings are where the pipe has them.
#[test]
fn the_memory_reads_as_netmap_lays_it_out() {
    let memory = SharedMemory::create(Shape { slots: 8, buf_size: 128, mtu: 100 }).unwrap();
    let regions = [0, 1].map(|end| memory.region(end));
    let mut sender = regions[0].ring(true, Side::Nic, 0).unwrap();
    let mut receiver = regions[1].ring(false, Side::Nic, 0).unwrap();
    assert_eq!((sender.slots.room_bytes(), sender.slots.num_slots(), sender.slots.available()), (128, 8, 7));
    let (mut tx, mut rx) = (memory.tx_ring(0).1, memory.rx_ring(1).1);
    assert!(TxRing::new(&mut sender.slots).push(b"through netmap's tables"));
    sender.publish();
    tx.tx_sync(&memory).unwrap();
    rx.rx_sync(&memory).unwrap();
    receiver.refresh();
    let frame = RxRing::new(&mut receiver.slots).next().unwrap().bytes();
    assert_eq!(frame, b"through netmap's tables");
    assert_eq!(regions[0].ring(true, Side::Host, 0).unwrap_err(), "the ring has no memory");
}

/// A measurement, not a test: `cargo test --release -- --ignored --nocapture rate`.
#[test]
#[ignore = "a measurement"]
fn rate() {
    let [a, b] = pair("rate", &OpenOptions::default()).unwrap();
    let mut pair = joined(a, b);
    for (len, batch) in [(64, 1), (64, 16), (64, 64), (64, 256), (1514, 64)] {
        println!("pipe: {:?}", conformance::rate(&mut pair, len, batch, 2_000_000).unwrap());
    }
}
