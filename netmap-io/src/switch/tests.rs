//! The switch over a pipe in place of a NIC, driven round by round. Its stacks answer within the same process.

use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::server::Switch;
use crate::conformance::{self, Pair};
use crate::provider::{NicShape, Provider, Shape};
use crate::testing::{Frame, MAC_A, MAC_B, Network, skip_without};
use crate::{Device, Flow, OpenOptions, PeerVerdict, Port, PortError, Proto, Steering, Tuple, whose};

const HERE: [u8; 4] = [10, 0, 0, 1];
const THERE: [u8; 4] = [10, 0, 0, 2];

/// A switch whose thread runs until it is dropped, and the far end of its NIC.
struct Lab {
    name: String,
    wire: Box<dyn Port>,
    stop: Option<std::os::unix::net::UnixStream>,
    thread: Option<thread::JoinHandle<Result<(), PortError>>>,
}

impl Lab {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    fn named(name: &str) -> Self {
        Self::steered(name, None)
    }

    /// With a device that hears what is registered.
    fn steered(name: &str, steering: Option<Arc<dyn Steering>>) -> Self {
        let options = OpenOptions { rx_slots: 256, tx_slots: 256, ..OpenOptions::default() };
        let [nic, wire] = crate::pipe::pair(name, &options).unwrap();
        let device = Device { ports: vec![nic], steering };
        let mut switch = Switch::new(device, name).unwrap();
        let (stop, stopped) = std::os::unix::net::UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            use std::os::fd::AsFd;
            switch.run(stopped.as_fd())
        });
        Self { name: name.to_owned(), wire, stop: Some(stop), thread: Some(thread) }
    }

    fn stack(&self, name: &str) -> Result<Stack, PortError> {
        let options = OpenOptions { stack: name.into(), ..OpenOptions::default() };
        let Device { mut ports, steering } = crate::open(&format!("switch:{}", self.name), &options)?;
        Ok(Stack { port: ports.remove(0), steering: steering.unwrap() })
    }

    fn report(&self) -> String {
        super::report(&self.name).unwrap()
    }

    /// Sends frames in at the NIC, as many at a time as its ring takes.
    fn arrive(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            until("the NIC has room", || self.wire.tx().push(frame) || self.wire.tx_sync().is_err());
        }
        self.wire.tx_sync().unwrap();
    }

    /// The next frame that left.
    fn left(&mut self) -> Vec<u8> {
        next_frame(&mut *self.wire)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let end = thread.join();
            if !thread::panicking() {
                end.unwrap().unwrap();
            }
        }
    }
}

struct Stack {
    port: Box<dyn Port>,
    steering: Arc<dyn Steering>,
}

impl Stack {
    fn send(&mut self, frame: &[u8]) {
        until("the pipe has room", || self.port.tx().push(frame) || self.port.tx_sync().is_err());
        self.port.tx_sync().unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        next_frame(&mut *self.port)
    }

    fn waiting(&mut self) -> u32 {
        self.port.rx_sync().unwrap()
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 20, "{what}");
        thread::yield_now();
    }
}

#[track_caller]
fn next_frame(port: &mut dyn Port) -> Vec<u8> {
    let mut frame = None;
    until("a frame comes", || {
        port.rx_sync().unwrap();
        frame = port.rx().next().map(|frame| frame.bytes().to_vec());
        frame.is_some()
    });
    frame.unwrap()
}

fn tuple(port: u16) -> Tuple {
    Tuple::new(HERE, port, Proto::TCP)
}

fn incoming(port: u16, payload: &[u8]) -> Vec<u8> {
    Frame::new(Proto::TCP, (THERE.into(), 4000), (HERE.into(), port)).payload(payload).build()
}

fn outgoing(port: u16, payload: &[u8]) -> Vec<u8> {
    Frame::new(Proto::TCP, (HERE.into(), port), (THERE.into(), 4000)).payload(payload).build()
}

#[test]
fn frames_go_to_who_registered_and_leave_only_from_there() {
    let mut lab = Lab::new();
    let (mut a, mut b) = (lab.stack("a").unwrap(), lab.stack("b").unwrap());
    a.steering.register(tuple(80)).unwrap();
    b.steering.register(tuple(81)).unwrap();
    lab.arrive(&[incoming(81, b"to b"), incoming(82, b"to nobody"), incoming(80, b"to a")]);
    assert_eq!(a.receive(), incoming(80, b"to a"));
    assert_eq!(b.receive(), incoming(81, b"to b"));
    // What b sends in a's name is dropped and counted; its own leaves.
    b.send(&outgoing(80, b"lie"));
    b.send(&[0xff; 60]);
    b.send(&outgoing(81, b"truth"));
    assert_eq!(lab.left(), outgoing(81, b"truth"));
    let report = lab.report();
    assert!(report.contains("frames-for-nobody:1"), "{report}");
    let of_b = "tuples:1 rx_frames:1 rx_no_room:0 tx_frames:1 tx_spoofed:2";
    assert!(report.lines().any(|line| line.starts_with("stack \"b\"") && line.ends_with(of_b)), "{report}");
    assert_eq!((a.waiting(), b.waiting()), (0, 0));
}

/// The table of all that steers.
#[test]
fn everybody_gets_what_is_his() {
    let mut lab = Lab::new();
    let mut stack = lab.stack("a").unwrap();
    whose::register(&*stack.steering).unwrap();
    let cases = whose::cases();
    for case in &cases {
        lab.arrive(std::slice::from_ref(&case.frame));
    }
    // What came before its first comes some time behind it.
    let is_early = |case: &&whose::Case| case.unknown && case.what.ends_with("before the first");
    let (early, want): (Vec<_>, Vec<_>) =
        cases.iter().filter(|case| case.ours || is_early(case)).partition(is_early);
    let mut late: Vec<&[u8]> = early.iter().map(|case| &case.frame[..]).collect();
    for case in &want {
        let mut got = stack.receive();
        while late.first().is_some_and(|late| got == *late) && got != case.frame {
            late.remove(0);
            got = stack.receive();
        }
        assert_eq!(got, case.frame, "{}", case.what);
    }
    assert_eq!(late.len(), 0, "all of them came");
    let foreign = cases.len() - want.len() - early.len();
    until("all were looked at", || lab.report().contains(&format!("frames-for-nobody:{foreign}\n")));
    assert_eq!(stack.waiting(), 0);
}

/// A piece of a packet by its number; `flags` and `offset` as in IPv4's header.
fn fragment(port: u16, ident: u8, flags: u8, offset: u8) -> Vec<u8> {
    let mut frame = incoming(port, b"part of a packet");
    (frame[19], frame[20], frame[21]) = (ident, flags, offset);
    frame
}

#[test]
fn fragments_follow_the_first() {
    let mut lab = Lab::new();
    let (mut a, mut b) = (lab.stack("a").unwrap(), lab.stack("b").unwrap());
    a.steering.register(tuple(80)).unwrap();
    b.steering.register(tuple(81)).unwrap();
    let of_a = [fragment(80, 1, 0x20, 0), fragment(7, 1, 0x20, 5), fragment(7, 1, 0, 9)];
    let of_b = [fragment(81, 2, 0x20, 0), fragment(7, 2, 0, 9)];
    lab.arrive(&[fragment(80, 3, 0, 9), of_a[0].clone(), of_b[0].clone(), of_a[1].clone(), of_b[1].clone()]);
    lab.arrive(&of_a[2..]);
    for want in of_a {
        assert_eq!(a.receive(), want);
    }
    for want in of_b {
        assert_eq!(b.receive(), want);
    }
    assert!(lab.report().contains("frames-for-nobody:1"), "{}", lab.report());
}

/// A packet's last fragment first: it waits for who gets the first one, and nobody else sees it.
#[test]
fn fragments_wait_for_the_first() {
    let mut lab = Lab::new();
    let (mut a, mut b) = (lab.stack("a").unwrap(), lab.stack("b").unwrap());
    a.steering.register(tuple(80)).unwrap();
    b.steering.register(tuple(81)).unwrap();
    let early = [fragment(7, 1, 0, 9), fragment(7, 2, 0, 9), fragment(7, 1, 0x20, 5)];
    let firsts = [fragment(80, 1, 0x20, 0), fragment(81, 2, 0x20, 0)];
    lab.arrive(&early);
    until("they are nobody's yet", || lab.report().contains("frames-for-nobody:3"));
    lab.arrive(&firsts);
    for want in [&firsts[0], &early[0], &early[2]] {
        assert_eq!(&a.receive(), want);
    }
    for want in [&firsts[1], &early[1]] {
        assert_eq!(&b.receive(), want);
    }
    until("all are somebody's", || lab.report().contains("frames-for-nobody:0"));
    assert_eq!((a.waiting(), b.waiting()), (0, 0));
}

/// A stack's port is a port like any other: towards the wire, and from there.
#[test]
fn a_stacks_port_conforms() {
    const PORT: u16 = 4000;
    for stack_sends in [true, false] {
        let mut lab = Lab::new();
        let stack = lab.stack("a").unwrap();
        // What is sent back as it came is for, and from, the same tuple.
        for addr in [HERE, THERE] {
            stack.steering.register(Tuple::new(addr, PORT, Proto::TCP)).unwrap();
        }
        let [_, unused] = crate::pipe::pair("unused", &OpenOptions::default()).unwrap();
        let wire = std::mem::replace(&mut lab.wire, unused);
        let make = move |to_b: bool| {
            let (from, to) = if to_b == stack_sends { (HERE, THERE) } else { (THERE, HERE) };
            Frame::new(Proto::TCP, (from.into(), PORT), (to.into(), PORT))
        };
        let header = make(true).header_len();
        let frame = move |to_b: bool, len: usize| {
            let payload: Vec<u8> = (0..len - header).map(|i| u8::try_from(i % 251).unwrap()).collect();
            make(to_b).payload(&payload).build()
        };
        // What a slow stack loses the switch counts (`rx_no_room`), and not its port.
        let skip: &[_] = if stack_sends { &[] } else { &["what a slow receiver loses is counted"] };
        let (a, b) = if stack_sends { (stack.port, wire) } else { (wire, stack.port) };
        let frame_len_min = header + 8;
        let frame = Box::new(frame);
        let mut pair = Pair { a, b, frame, frame_len_min, pushes_back: false, kicks_max: 1, skip };
        let mut failures = Vec::new();
        conformance::run(&mut pair, |case, result| {
            if let Err(error) = result {
                failures.push(format!("{}: {error}", case.name));
            }
        });
        assert!(failures.is_empty(), "the stack sends: {stack_sends}: {failures:#?}");
        // The NIC outlives the switch.
        lab.wire = if stack_sends { pair.b } else { pair.a };
    }
}

#[test]
fn one_tuple_has_one_stack() {
    let lab = Lab::new();
    let (a, b) = (lab.stack("a").unwrap(), lab.stack("b").unwrap());
    a.steering.register(tuple(80)).unwrap();
    let error = b.steering.register(tuple(80)).unwrap_err();
    assert!(matches!(error, PortError::InUse { .. }), "{error}");
    // A range is entered whole or not at all.
    assert!(matches!(b.steering.register_range(tuple(70), 70..=90), Err(PortError::InUse { .. })));
    a.steering.register_range(tuple(70), 70..=79).expect("nothing of the range stayed");
    // Each stack has client ports of its own.
    let (first, last) = b.port.caps().client_ports.unwrap();
    assert_ne!(a.port.caps().client_ports, Some((first, last)));
    assert!(matches!(a.steering.register(tuple(first)), Err(PortError::InUse { .. })));
    b.steering.register_range(tuple(first), first..=last).unwrap();
    b.steering.unregister_range(tuple(first), first..=last).unwrap();
    // What is given back is free for others.
    a.steering.unregister(tuple(80)).unwrap();
    b.steering.unregister(tuple(79)).expect("of another: nothing happens");
    b.steering.register(tuple(80)).unwrap();
    assert!(matches!(b.steering.register(tuple(79)), Err(PortError::InUse { .. })));
    let flow = |port| Flow { local: tuple(port), peer_addr: crate::mapped(THERE.into()), peer_port: 4000 };
    a.steering.register_flow(flow(1000), PeerVerdict::Take).unwrap();
    assert!(matches!(b.steering.register_flow(flow(1000), PeerVerdict::Take), Err(PortError::InUse { .. })));
    assert!(matches!(a.steering.register_flow(flow(80), PeerVerdict::Take), Err(PortError::InUse { .. })));
    a.steering.unregister_flow(flow(1000)).unwrap();
}

/// Eight stacks: one dies, one floods with frames, one with registrations, one does not read; each of the others gets and
/// sends every frame.
#[test]
fn a_dead_a_flooding_and_a_deaf_stack_leave_the_others_alone() {
    const FRAMES: u16 = 150;
    let mut lab = Lab::new();
    let mut stacks: Vec<Stack> = (0..8).map(|n| lab.stack(&format!("s{n}")).unwrap()).collect();
    assert!(matches!(lab.stack("ninth"), Err(PortError::InUse { .. })));
    for (port, stack) in (80..).zip(&stacks) {
        stack.steering.register(tuple(port)).unwrap();
    }
    let dead = stacks.remove(0);
    let (mut flooding, registering, deaf) = (stacks.remove(0), stacks.remove(0), stacks.remove(0));
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = over.clone();
    let flood = thread::spawn(move || {
        let (spoofed, own) = (outgoing(9, b"flood"), outgoing(81, b"flood"));
        while !ended.load(Ordering::Relaxed) {
            let full = !flooding.port.tx().push(&spoofed) || !flooding.port.tx().push(&own);
            flooding.port.tx_sync().unwrap();
            if full {
                thread::yield_now();
            }
        }
    });
    let ended = over.clone();
    let register = thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            registering.steering.register_range(tuple(1000), 1000..=3000).unwrap();
            registering.steering.unregister_range(tuple(1000), 1000..=3000).unwrap();
        }
    });
    let mut dead = Some(dead);
    for number in 0..FRAMES {
        let text = number.to_be_bytes();
        for port in 84..88 {
            lab.arrive(&[incoming(83, &text), incoming(83, &text), incoming(port, &text)]);
        }
        for (port, stack) in (84..).zip(&mut stacks) {
            assert_eq!(stack.receive(), incoming(port, &text), "in order, none lost");
            stack.send(&outgoing(port, &text));
        }
        let mut missing: Vec<u16> = (84..88).collect();
        while !missing.is_empty() {
            let frame = lab.left();
            missing.retain(|port| frame != outgoing(*port, &text));
        }
        if number == FRAMES / 2 {
            drop(dead.take());
        }
    }
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    register.join().unwrap();
    // The place and the tuple of the dead one are free again.
    let mut heir = None;
    until("the dead stack's place is free", || {
        heir = lab.stack("heir").ok();
        heir.is_some()
    });
    let mut heir = heir.unwrap();
    heir.steering.register(tuple(80)).unwrap();
    lab.arrive(&[incoming(80, b"to the heir")]);
    assert_eq!(heir.receive(), incoming(80, b"to the heir"));
    let report = lab.report();
    let count = |stack: &str, what: &str| -> u64 {
        let line = report.lines().find(|line| line.starts_with(&format!("stack \"{stack}\""))).unwrap();
        let field = line.split(' ').find_map(|field| field.strip_prefix(what)?.strip_prefix(':'));
        field.unwrap().parse().unwrap()
    };
    for name in ["s4", "s5", "s6", "s7"] {
        let counts = ["rx_frames", "rx_no_room", "tx_frames", "tx_spoofed"].map(|what| count(name, what));
        assert_eq!(counts, [u64::from(FRAMES), 0, u64::from(FRAMES), 0], "{name}");
    }
    assert!(count("s3", "rx_no_room") > 0, "{report}");
    drop(deaf);
}

/// What a device has heard.
#[derive(Default)]
struct Heard(Mutex<HashSet<String>>);

impl Heard {
    fn note(&self, what: &dyn std::fmt::Display, comes: bool) -> Result<(), PortError> {
        let mut all = self.0.lock().unwrap();
        let new = if comes { all.insert(what.to_string()) } else { all.remove(&what.to_string()) };
        assert!(new, "{what} comes {comes} twice");
        Ok(())
    }
}

impl Steering for Heard {
    fn register(&self, tuple: Tuple) -> Result<(), PortError> {
        self.note(&tuple, true)
    }
    fn unregister(&self, tuple: Tuple) -> Result<(), PortError> {
        self.note(&tuple, false)
    }
    fn register_flow(&self, flow: Flow, _: PeerVerdict) -> Result<(), PortError> {
        self.note(&flow, true)
    }
    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.note(&flow, false)
    }
    fn describe(&self) -> String {
        "what was heard".into()
    }
}

/// The device hears of what stacks register, once, and takes back for the kernel what a dead one had; the others keep theirs.
#[test]
fn what_the_dead_had_is_the_kernels_again() {
    let heard = Arc::new(Heard::default());
    let lab = Lab::steered(&format!("test-dead-{}", std::process::id()), Some(heard.clone()));
    let (a, b) = (lab.stack("a").unwrap(), lab.stack("b").unwrap());
    let flow = Flow { local: tuple(7), peer_addr: crate::mapped(THERE.into()), peer_port: 9 };
    for stack in [&a, &b] {
        let (first, last) = stack.port.caps().client_ports.unwrap();
        stack.steering.register_range(tuple(first), first..=last).unwrap();
    }
    a.steering.register(tuple(80)).unwrap();
    a.steering.register_flow(flow, PeerVerdict::Take).unwrap();
    b.steering.register(tuple(81)).unwrap();
    let all = heard.0.lock().unwrap().clone();
    assert_eq!(all.len(), 2 * 512 + 3);
    let of_b: HashSet<String> = {
        let (first, last) = b.port.caps().client_ports.unwrap();
        (first..=last).chain([81]).map(|port| tuple(port).to_string()).collect()
    };
    drop(a);
    until("what it had is given back", || *heard.0.lock().unwrap() == of_b);
    b.steering.register(tuple(80)).unwrap();
    drop(b);
    until("nothing is left", || heard.0.lock().unwrap().is_empty());
}

#[test]
fn a_switch_that_ends_is_gone_for_its_stacks() {
    let lab = Lab::new();
    let name = lab.name.clone();
    let mut a = lab.stack("a").unwrap();
    a.steering.register(tuple(80)).unwrap();
    drop(lab);
    let mut error = None;
    until("the port is gone", || {
        a.port.arm().unwrap();
        error = a.port.rx_sync().err();
        error.is_some()
    });
    assert!(matches!(error, Some(PortError::Gone { .. })));
    assert!(matches!(a.steering.register(tuple(81)), Err(PortError::Gone { .. })));
    let error = crate::open(&format!("switch:{name}"), &OpenOptions::default()).err().unwrap().to_string();
    assert!(error.contains("start `utcp switch xdp:"), "{error}");
}

/// Stacks that come back to a switch that was started again have the client ports of before, whoever comes first.
#[test]
fn a_switch_that_is_started_again_gives_everybody_his_ports() {
    let first = Lab::new();
    let name = first.name.clone();
    let ports = |stack: &Stack| stack.port.caps().client_ports.unwrap();
    let (a, b) = (first.stack("a").unwrap(), first.stack("b").unwrap());
    assert_eq!([ports(&a), ports(&b)], [(61_000, 61_511), (61_512, 62_023)]);
    drop((a, b, first));
    // This process remembers what it was given last: b's.
    let again = Lab::named(&name);
    let b = again.stack("b").unwrap();
    assert_eq!(ports(&b), (61_512, 62_023));
    // It has them, so the next gets the first that are free.
    assert_eq!(ports(&again.stack("c").unwrap()), (61_000, 61_511));
}

/// An interface that went down while the switch slept: its port is told before it is asked for frames, which would wait.
#[test]
fn a_nic_that_went_down_is_not_asked() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let provider = Provider::new(Shape::default()).unwrap();
    provider.add_nic("nio-a", NicShape::default()).unwrap();
    let (nic, name) = (provider.clone(), format!("test-down-{}", std::process::id()));
    let mut switch = net.a.run(move || {
        let device = nic.open("netmap:nio-a", &OpenOptions::default()).unwrap();
        Switch::new(device, &name).unwrap()
    });
    assert!(!switch.round().unwrap());
    let awake = switch.bed().watched().len();
    net.a.ip("link set nio-a down");
    provider.set_up("nio-a", false);
    let (say, heard) = std::sync::mpsc::channel();
    net.a.start(move || {
        let _ = say.send((switch.round().unwrap(), switch));
    });
    let answer = heard.recv_timeout(std::time::Duration::from_secs(15));
    provider.set_up("nio-a", true);
    let (work, mut switch) = answer.expect("it does not wait");
    assert!(work);
    // To put it to bed again would be to ask it.
    assert_eq!(switch.bed().watched().len(), awake - 1);
    net.a.ip("link set nio-a up");
    until("it looks at the link", || switch.round().unwrap());
    assert_eq!(switch.bed().watched().len(), awake);
}

/// What a stack says of the station that it is does not count: frames leave with the interface's address of now.
#[test]
fn a_stack_is_no_other_station_on_the_link() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let provider = Provider::new(Shape::default()).unwrap();
    for nic in ["nio-a", "far"] {
        provider.add_nic(nic, NicShape::default()).unwrap();
    }
    provider.join("nio-a", "far");
    let mut far = provider.open("netmap:far", &OpenOptions::default()).unwrap().ports.remove(0);
    let (nic, name) = (provider.clone(), format!("test-station-{}", std::process::id()));
    let device = format!("switch:{name}");
    let mut switch = net.a.run(move || {
        let device = nic.open("netmap:nio-a", &OpenOptions::default()).unwrap();
        Switch::new(device, &name).unwrap()
    });
    let (say, heard) = std::sync::mpsc::channel();
    net.a.start(move || {
        let device = crate::open(&device, &OpenOptions::default()).unwrap();
        device.steering.as_ref().unwrap().register(tuple(80)).unwrap();
        say.send(device).unwrap();
    });
    let mut stack = None;
    until("it registers", || {
        switch.round().unwrap();
        stack = heard.try_recv().ok();
        stack.is_some()
    });
    let Device { mut ports, steering: _steering } = stack.unwrap();
    for mac in [MAC_A, [2, 0, 0, 0, 0, 0x77]] {
        net.a.ip(&format!("link set nio-a address {}", mac.map(|byte| format!("{byte:02x}")).join(":")));
        // Questions and the link have their turn now and then.
        for _ in 0..10 {
            switch.round().unwrap();
        }
        let forged =
            Frame::new(Proto::TCP, (HERE.into(), 80), (THERE.into(), 4000)).macs(MAC_B, [2, 9, 9, 9, 9, 9]);
        assert!(ports[0].tx().push(&forged.build()));
        ports[0].tx_sync().unwrap();
        let mut got = None;
        until("a frame leaves", || {
            switch.round().unwrap();
            far.rx_sync().unwrap();
            got = far.rx().next().map(|frame| frame.bytes().to_vec());
            got.is_some()
        });
        assert_eq!(got.unwrap(), forged.macs(MAC_B, mac).build());
    }
}

/// A dead stack's bell may live on elsewhere (whoever it gave it to): it wakes nobody any more.
#[test]
fn nobody_sleeps_on_what_the_dead_had() {
    let name = format!("test-bed-{}", std::process::id());
    let [nic, _wire] = crate::pipe::pair(&name, &OpenOptions::default()).unwrap();
    let mut switch = Switch::new(Device { ports: vec![nic], steering: None }, &name).unwrap();
    let alone = switch.bed().watched();
    let device = format!("switch:{name}");
    let opening = thread::spawn(move || crate::open(&device, &OpenOptions::default()));
    while !opening.is_finished() {
        switch.round().unwrap();
    }
    let Device { ports, steering } = opening.join().unwrap().unwrap();
    let with_stack = switch.bed().watched();
    assert_eq!(with_stack.len(), alone.len() + 3, "its connection, its bell and what hangs up");
    // Held open, as by another process.
    let hold = |fd: &RawFd| {
        // SAFETY: the switch has it open, of which this thread drives the rounds.
        unsafe { BorrowedFd::borrow_raw(*fd) }.try_clone_to_owned().unwrap()
    };
    let held: Vec<OwnedFd> = with_stack.iter().filter(|fd| !alone.contains(fd)).map(hold).collect();
    drop((ports, steering));
    until("the switch has noticed", || {
        switch.round().unwrap();
        switch.bed().watched() == alone
    });
    drop(held);
}
