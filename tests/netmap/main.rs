//! The port conformance suite as a program, for machines that have what ours have not: the netmap module, a NIC.
//!
//! It needs nothing but the kernel: linked statically it runs in an initramfs. `tests/netmap/run` builds it so.
//!
//! ```text
//!  netmap-check                       what needs no hardware: our rings, a VALE switch, netmap pipes, a veth pair with a
//!                                     kernel at its other end, and how the module answers
//!  netmap-check DEVICE DEVICE         two ports that are joined: netmap:veth0 netmap:veth1, two NICs and a cable
//!  netmap-check DEVICE                one port: opens it, and each of its rings, and listens for a second
//!  netmap-check --host netmap:        that pair alone
//!  netmap-check --beside NIC SECONDS  a NIC beside the kernel for so long: ping and ssh have to go on meanwhile
//! ```
//!
//! As the first process of a machine (`/init` in an initramfs) it mounts /dev, loads the `*.ko` beside it, checks what needs
//! no hardware, and switches the machine off.

use std::process::ExitCode;
use std::time::{Duration, Instant};

mod cases;
mod host;
mod init;

use utcp_netmap_io::conformance::{self, Pair};
use utcp_netmap_io::{OpenOptions, Port, PortError};

/// Local experimental EtherType 1 (IEEE 802): nobody takes these frames for anything.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = 14;
/// Frames that one measurement sends.
const FRAMES: usize = 1_000_000;
const BATCH: usize = 64;

/// What was seen.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    left_out: usize,
}

impl Tally {
    fn result(&mut self, what: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok    {what}");
            }
            Err(why) => self.failed(what, &why),
        }
    }

    fn failed(&mut self, what: &str, why: &str) {
        self.failed += 1;
        println!("FAIL  {what}: {why}");
    }
}

/// What a kind of device can't do, by what is known of the real module.
#[derive(Clone, Copy)]
struct Kind {
    pushes_back: bool,
    skip: &'static [&'static str],
}

/// Our own provider of netmap's rings.
const PROVIDER: Kind = Kind { pushes_back: true, skip: &[] };
/// Only a system call tells whether the module has a frame.
const MODULE: Kind = Kind { pushes_back: true, skip: &["idle syncs cost no system call"] };
/// A switch drops what a slow port does not take, and counts it nowhere.
const SWITCH: Kind = Kind {
    pushes_back: false,
    skip: &["idle syncs cost no system call", "what a slow receiver loses is counted"],
};
/// So does a wire.
const WIRE: Kind = SWITCH;

fn main() -> ExitCode {
    let mut devices: Vec<String> = std::env::args().skip(1).collect();
    let mut tally = Tally::default();
    if init::is_init() {
        init::set_up();
        // What the kernel passes on from its command line is not for us.
        devices.clear();
    }
    match devices.as_slice() {
        [host, kind] if host == "--host" => host::check(&mut tally, kind),
        [beside, nic, seconds] if beside == "--beside" => stand_beside(&mut tally, nic, seconds),
        [] => without_hardware(&mut tally),
        [one] if !one.starts_with('-') => listen(&mut tally, one),
        [a, b] => {
            let kind = match a.split(':').next() {
                Some(vale) if vale.starts_with("vale") => SWITCH,
                _ if a.contains('{') || a.contains('}') => MODULE,
                _ => WIRE,
            };
            joined(&mut tally, a, b, kind);
        }
        _ => {
            eprintln!(
                "usage: netmap-check [DEVICE [DEVICE]], such as netmap:veth0 netmap:veth1\n       netmap-check --host netmap:\n       netmap-check --beside NIC SECONDS"
            );
            return ExitCode::from(2);
        }
    }
    let Tally { passed, failed, left_out } = tally;
    println!("{passed} passed, {failed} failed, {left_out} left out");
    if init::is_init() {
        init::switch_off();
    }
    ExitCode::from(u8::from(failed > 0))
}

fn without_hardware(tally: &mut Tally) {
    match utcp_netmap_io::pipe::pair("netmap-check", &OpenOptions::default()) {
        Ok([a, b]) => check(tally, a, b, PROVIDER),
        Err(error) => tally.failed("the provider of our own", &error.to_string()),
    }
    cases::over_the_provider(tally);
    if let Err(error) = utcp_netmap_io::inspect::netmap() {
        println!("note  the module is left out: /dev/netmap: {error}");
        tally.left_out += 3;
        return;
    }
    cases::over_the_module(tally);
    host::check(tally, "netmap:");
}

/// A NIC with the kernel behind it, for a while: whoever is logged in by it should notice nothing.
fn stand_beside(tally: &mut Tally, nic: &str, seconds: &str) {
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let device = format!("netmap:{}", nic.trim_start_matches("netmap:"));
    let mut opened = match utcp_netmap_io::open(&device, &options) {
        Ok(opened) => opened,
        Err(error) => return tally.failed(&device, &error.to_string()),
    };
    opened.ports.iter().for_each(|port| describe(&**port));
    let until = Instant::now() + Duration::from_secs(seconds.parse().unwrap_or(10));
    while Instant::now() < until {
        for port in &mut opened.ports {
            if let Err(error) = port.rx_sync().and_then(|_| port.tx_sync()) {
                return tally.failed(&device, &error.to_string());
            }
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    for port in &opened.ports {
        let counters = port.counters();
        println!(
            "note  {}: to the kernel {} (waited {}, dropped {}), from the kernel {} (waited {}), {} rings reset",
            port.caps().name,
            counters.to_host,
            counters.to_host_waited,
            counters.to_host_dropped,
            counters.from_host,
            counters.from_host_waited,
            counters.ring_resets
        );
    }
    tally.result(&format!("{device} stood beside the kernel"), Ok(()));
}

fn open(device: &str) -> Result<Box<dyn Port>, PortError> {
    let mut opened = utcp_netmap_io::open(device, &OpenOptions::default())?;
    Ok(opened.ports.swap_remove(0))
}

fn joined(tally: &mut Tally, a: &str, b: &str, kind: Kind) {
    match (open(a), open(b)) {
        (Ok(a), Ok(b)) => {
            // A NIC that was just opened needs a moment for its link.
            std::thread::sleep(Duration::from_secs(2));
            check(tally, a, b, kind);
        }
        (Err(error), _) => tally.failed(a, &error.to_string()),
        (_, Err(error)) => tally.failed(b, &error.to_string()),
    }
}

fn describe(port: &dyn Port) {
    let caps = port.caps();
    let mac = caps.mac.map(|byte| format!("{byte:02x}")).join(":");
    println!(
        "port  {}: {}, {mac}, MTU {}, {} rx and {} tx slots of {} bytes",
        caps.name, caps.mode, caps.mtu, caps.rx_slots, caps.tx_slots, caps.frame_bytes_max
    );
}

fn check(tally: &mut Tally, a: Box<dyn Port>, b: Box<dyn Port>, kind: Kind) {
    describe(&*a);
    describe(&*b);
    let name = format!("{} and {}", a.caps().name, b.caps().name);
    let (mac_a, mac_b) = (a.caps().mac, b.caps().mac);
    // To everybody: a switch and a NIC's filter let it through in both directions, also when it is sent back.
    let frame = move |to_b: bool, len: usize| {
        let from = if to_b { mac_a } else { mac_b };
        let mut bytes = [[0xff; 6], from].concat();
        bytes.extend(ETHERTYPE);
        bytes.extend((HEADER..len).map(|at| (at % 251) as u8));
        bytes
    };
    let Kind { pushes_back, skip } = kind;
    let frame_len_min = 60;
    let mut pair = Pair { a, b, frame: Box::new(frame), frame_len_min, pushes_back, kicks_max: 1, skip };
    let run = conformance::CASES.len() - skip.len();
    let failed = conformance::run(&mut pair, |case, result| match result {
        Ok(()) => println!("ok    {name}: {}", case.name),
        Err(why) => println!("FAIL  {name}: {}: {why}", case.name),
    });
    tally.failed += failed;
    tally.passed += run - failed;
    tally.left_out += skip.len();
    for case in skip {
        println!("out   {name}: {case}: can't hold for it");
    }
    for len in [60, 1514] {
        match conformance::rate(&mut pair, len, BATCH, FRAMES) {
            Ok(rate) => println!(
                "rate  {name}: {} bytes in batches of {}: {:.2} million frames/s, {:.4} system calls per frame",
                rate.frame_len,
                rate.batch,
                1000.0 / rate.nanos_per_frame.max(1) as f64,
                rate.calls_per_frame
            ),
            Err(why) => tally.failed(&format!("{name}: rate of {len} bytes"), &why),
        }
    }
}

/// A port without a partner can only be listened to: nothing is sent into a network that is not ours.
fn listen(tally: &mut Tally, device: &str) {
    let mut port = match open(device) {
        Ok(port) => port,
        Err(error) => return tally.failed(device, &error.to_string()),
    };
    describe(&*port);
    if port.caps().name.starts_with("netmap:") {
        drop(port);
        cases::ring_by_ring(tally, device);
        port = match open(device) {
            Ok(port) => port,
            Err(error) => return tally.failed(device, &error.to_string()),
        };
    }
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        if let Err(error) = port.rx_sync() {
            return tally.failed(device, &error.to_string());
        }
        port.rx().for_each(drop);
        std::thread::sleep(Duration::from_millis(1));
    }
    let counters = port.counters();
    println!("ok    {device}: {} frames, {} bytes came in a second", counters.rx_frames, counters.rx_bytes);
    tally.passed += 1;
}
