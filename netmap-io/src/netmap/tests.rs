//! Ports over the provider: the conformance suite, the host rings, and what a module may do to us.

mod beside;
mod hostile;
mod long;
mod requests;

use super::*;
use crate::conformance::{self, Pair};
use crate::provider::{Driver, NicShape, Provider, Shape, Side};
use crate::testing::{MAC_A, Network, skip_without};

const ONE: NicShape = NicShape { rings: 1, host_rings: 1, slots: 64, mtu: 1500, driver: Driver::Native };

fn provider(shape: Shape) -> Provider {
    Provider::new(shape).unwrap()
}

fn open_one(provider: &Provider, device: &str) -> Box<dyn Port> {
    provider.open(device, &OpenOptions::default()).unwrap().ports.remove(0)
}

fn error(provider: &Provider, device: &str) -> String {
    provider.open(device, &OpenOptions::default()).err().unwrap().to_string()
}

const NOT_IDLE: &str = "idle syncs cost no system call";
const LOST: &str = "what a slow receiver loses is counted";

#[track_caller]
fn conforms(provider: &Provider, a: &str, b: &str) {
    let (a, b) = (open_one(provider, a), open_one(provider, b));
    let frame = |_, len: usize| (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let switched = a.caps().name.starts_with("vale");
    let skip: &'static [&'static str] = if switched { &[NOT_IDLE, LOST] } else { &[NOT_IDLE] };
    let (frame_len_min, pushes_back) = (if switched { 22 } else { 14 }, !switched);
    let mut pair = Pair { a, b, frame: Box::new(frame), frame_len_min, pushes_back, kicks_max: 1, skip };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
    drop(pair);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

fn joined(shape: Shape) -> Provider {
    let provider = provider(shape);
    for nic in ["nma", "nmb"] {
        provider.add_nic(nic, NicShape { rings: 2, ..ONE }).unwrap();
    }
    provider.join("nma", "nmb");
    provider
}

#[test]
fn two_nics_and_a_cable_conform() {
    conforms(&joined(Shape::default()), "netmap:nma-0", "netmap:nmb-0");
}

#[test]
fn the_second_ring_conforms_as_well() {
    conforms(&joined(Shape::default()), "netmap:nma-1", "netmap:nmb-1");
}

/// Any driver, by socket buffers: what has left is seen later, and buffers are given back first.
#[test]
fn emulated_nics_conform() {
    let provider = provider(Shape::default());
    for nic in ["nma", "nmb"] {
        provider.add_nic(nic, NicShape { driver: Driver::Emulated, ..ONE }).unwrap();
    }
    provider.join("nma", "nmb");
    conforms(&provider, "netmap:nma", "netmap:nmb");
}

#[test]
fn two_ports_of_a_switch_conform() {
    conforms(&provider(Shape::default()), "vale0:a", "vale0:b");
    conforms(&provider(Shape::default()), "vale0:a@conf:slots=64", "vale0:b@conf:slots=64");
}

/// Frames that begin somewhere in their buffers, by one end's wish or by both ends'.
#[test]
fn frames_at_offsets_conform() {
    conforms(&joined(Shape::default()), "netmap:nma-0@offset=64", "netmap:nmb-0");
    conforms(&joined(Shape::default()), "netmap:nma-1", "netmap:nmb-1@offset:initial=101,bits=10");
    conforms(&joined(Shape::default()), "netmap:nma-1@offset=500", "netmap:nmb-1@offset=2");
}

/// What an offset takes from a buffer, a frame has not: longer ones go out and come in several.
#[test]
fn an_offset_leaves_less_room() {
    let provider = joined(Shape::default());
    let mut a = open_one(&provider, "netmap:nma-0@offset=64");
    assert_eq!((a.caps().frame_bytes_max, a.caps().mtu, a.caps().mtu_max), (1984, 1500, 1966));
    assert_eq!(a.tx().slot().unwrap().len(), 1984);
    assert!(a.tx().push(&[7; 1984]) && !a.tx().push(&[7; 1985]));
    let mut b = open_one(&provider, "netmap:nmb-0@offset=1000");
    a.tx_sync().unwrap();
    b.rx_sync().unwrap();
    assert_eq!(b.rx().map(|frame| frame.to_vec()).collect::<Vec<_>>(), [[7; 1984]]);
    drop((a, b));
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
    // Whoever is next finds rings without offsets.
    conforms(&provider, "netmap:nma-0", "netmap:nmb-0");
}

/// From a ring without offsets to one with them a frame is copied, since its buffer says nothing of where it begins.
#[test]
fn between_offsets_and_none_frames_are_copied() {
    let provider = provider(Shape::default());
    for name in ["nma", "nmb"] {
        provider.add_nic(name, ONE).unwrap();
    }
    for names in [["netmap:nma@offset=64", "netmap:nmb"], ["netmap:nma", "netmap:nmb@offset=64"]] {
        let [mut a, mut b] = names.map(|name| open_one(&provider, name));
        assert!(provider.send("nma", Side::Nic, 0, b"goes through"));
        a.rx_sync().unwrap();
        let (mut rx, mut tx) = (a.rx(), b.tx());
        assert!(rx.forward(&mut tx) && rx.is_empty());
        b.tx_sync().unwrap();
        a.rx_sync().unwrap();
        assert_eq!(provider.receive("nmb", Side::Nic), [(0, b"goes through".to_vec())], "{names:?}");
        drop((a, b));
        assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
    }
}

/// Slots change places between the ends: what one end puts into a slot is what the other one gives back.
#[test]
fn the_ends_of_a_pipe_conform() {
    conforms(&provider(Shape::default()), "netmap:x{1", "netmap:x}1");
    conforms(&provider(Shape::default()), "netmap:x}a@conf:slots=64", "netmap:x{a");
}

/// A port that is made for us has a ring of ours for each of its own: what comes to the second is read, too.
#[test]
fn every_ring_of_a_switchs_port_is_a_port() {
    let provider = provider(Shape::default());
    let mut ports = ["vale0:a@conf:rings=2,slots=64", "vale0:b@conf:rings=2,slots=64"]
        .map(|name| provider.open(name, &OpenOptions::default()).unwrap().ports);
    assert_eq!([ports[0].len(), ports[1].len()], [2, 2]);
    let frame =
        |to: u8, from: u8| [[2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, from], [0x88, 0xb5, 1, 2, 3, 4]].concat();
    // A switch sends what is for a station that it knows to the ring of the same number.
    assert!(ports[1][0].tx().push(&frame(9, 2)) && ports[1][0].tx_sync().is_ok());
    assert!(ports[0][1].tx().push(&frame(2, 1)) && ports[0][1].tx_sync().is_ok());
    assert_eq!(ports[1][1].rx_sync().unwrap(), 1);
    assert_eq!(ports[1][1].rx().next().unwrap().bytes(), frame(2, 1));
    assert_eq!(ports[1][0].rx_sync().unwrap(), 0);
    drop(ports);
    assert_eq!(provider.violations(), Vec::<String>::new());
}

/// Every request that an administrator makes, answered as the module answers it.
#[test]
fn switches_are_administrated() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { rings: 2, ..ONE }).unwrap();
    let admin = crate::admin::Admin::from(provider.clone());
    let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
    admin.new_vale_interface("utv", 1, 256).unwrap();
    assert_eq!(errno(admin.new_vale_interface("utv", 1, 256)), libc::EEXIST);
    assert_eq!(errno(admin.new_vale_interface("vale1:utv", 1, 256)), libc::EINVAL);
    assert_eq!(admin.attach("vale0:utv", false).unwrap(), 0);
    assert_eq!(admin.attach("vale0:nma", true).unwrap(), 1);
    assert_eq!(errno(admin.attach("vale0:nma", false).map(drop)), libc::EBUSY);
    assert_eq!(errno(admin.attach("vale0:none", false).map(drop)), libc::ENXIO);
    let held = open_one(&provider, "vale7:p");
    assert_eq!(admin.vale_ports().unwrap(), ["vale0:utv", "vale0:nma", "vale0:nma^", "vale7:p"]);
    // An interface that is on a switch is nobody else's.
    assert!(error(&provider, "netmap:nma").contains("is in use"));
    assert_eq!(errno(admin.delete_vale_interface("utv")), libc::EBUSY);
    admin.poll_in_kernel("vale0:nma", Some((0, 1))).unwrap();
    assert_eq!(errno(admin.detach("vale0:nma")), libc::EBUSY);
    admin.poll_in_kernel("vale0:nma", None).unwrap();
    assert_eq!(errno(admin.poll_in_kernel("vale0:nma", None)), libc::EFAULT);
    assert_eq!(errno(admin.poll_in_kernel("vale0:utv", Some((0, 1)))), libc::EOPNOTSUPP);
    for name in ["vale0:nma", "vale0:utv"] {
        admin.detach(name).unwrap();
    }
    assert_eq!(errno(admin.detach("vale0:nma")), libc::ENXIO);
    admin.delete_vale_interface("utv").unwrap();
    for len in [12, 10, 0] {
        admin.set_header_len("vale7:p", len).unwrap();
        assert_eq!(admin.header_len("vale7:p").unwrap(), len);
    }
    assert_eq!(errno(admin.set_header_len("vale7:p", 11)), libc::EINVAL);
    assert_eq!(errno(admin.set_header_len("vale7:q", 12)), libc::ENXIO);
    assert_eq!(errno(admin.set_header_len("nma", 12)), libc::ENXIO);
    drop(held);
    assert_eq!(admin.vale_ports().unwrap(), Vec::<String>::new());
}

#[test]
fn a_loop_of_the_modules_starts_and_stops() {
    let provider = provider(Shape::default());
    let admin = crate::admin::Admin::from(provider.clone());
    let looped = admin.looped("vale0:k").unwrap();
    let stopper = looped.stopper();
    let thread = std::thread::spawn(move || looped.run(100));
    std::thread::sleep(Duration::from_millis(5));
    stopper.stop().unwrap();
    thread.join().unwrap().unwrap();
    let slow = admin.looped("vale0:l").unwrap();
    assert_eq!(slow.run(1_000_001).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

/// What only a module of the sources says: a long packet in an emulated NIC, options that a port has not.
#[test]
fn what_does_not_fit_is_refused_with_a_reason() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { mtu: 9000, driver: Driver::Emulated, ..ONE }).unwrap();
    let words = error(&provider, "netmap:nma");
    assert!(words.contains("netmap's buffers are shorter than its MTU"), "{words}");
    provider.add_nic("nmb", NicShape { driver: Driver::Emulated, ..ONE }).unwrap();
    let words = error(&provider, "netmap:nmb@offset=64");
    assert!(words.contains("the module refuses it: Operation not supported"), "{words}");
    provider.add_nic("nmc", ONE).unwrap();
    for (option, why) in
        [("offset=2049", "Invalid argument"), ("offset:initial=64,bits=6", "Invalid argument")]
    {
        let words = error(&provider, &format!("netmap:nmc@{option}"));
        assert!(words.contains("netmap:nmc@offset") || words.contains("nmc@offset"), "{words}");
        assert!(words.contains(why), "{option}: {words}");
    }
    let _held = open_one(&provider, "netmap:nmc@offset=64");
    let words = error(&provider, "netmap:nmc@offset=65");
    assert!(words.contains("Device or resource busy"), "{words}");
}

#[test]
fn an_old_module_conforms() {
    let provider = joined(Shape { legacy: true, ..Shape::default() });
    assert_eq!(open_one(&provider, "netmap:nma-1").caps().mode, "netmap (old interface)");
    conforms(&provider, "netmap:nma-1", "netmap:nmb-1");
}

#[test]
fn names_lead_to_rings() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { rings: 3, host_rings: 2, slots: 16, ..ONE }).unwrap();
    let names = |device: &str| {
        let ports = provider.open(device, &OpenOptions::default()).unwrap().ports;
        ports.iter().map(|port| port.caps().name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("netmap:nma"), "netmap:nma-0 netmap:nma-1 netmap:nma-2");
    assert_eq!(names("netmap:nma-2"), "netmap:nma-2");
    assert_eq!(names("netmap:nma^"), "netmap:nma^ netmap:nma^1");
    assert_eq!(names("netmap:nma^1"), "netmap:nma^1");
    assert_eq!(names("netmap:nma*"), "netmap:nma-0 netmap:nma-1 netmap:nma-2 netmap:nma^ netmap:nma^1");
    assert!(error(&provider, "netmap:nma-3").contains("use nma-0 … nma-2"));
    assert!(error(&provider, "netmap:nma^2").contains("has 2 queue(s)"));
    assert!(error(&provider, "netmap:nmx").contains("no interface named \"nmx\""));
    assert!(error(&provider, "netmap:nma@7").contains("no memory of that number"));
    let held = open_one(&provider, "netmap:nma-1/x");
    assert!(error(&provider, "netmap:nma-1").contains("is in use"));
    drop(held);
    let reader = open_one(&provider, "netmap:nma-1/R");
    assert_eq!((reader.caps().rx_slots, reader.caps().tx_slots), (16, 0));
    let mut writer = open_one(&provider, "netmap:nma-1/T");
    assert_eq!((writer.caps().rx_slots, writer.caps().tx_slots), (0, 16));
    assert!(writer.tx().push(b"out") && writer.tx_sync().unwrap() > 0 && writer.rx_sync().unwrap() == 0);
    assert_eq!(provider.receive("nma", Side::Nic), [(1, b"out".to_vec())]);
}

#[test]
fn one_direction_alone_sends_nothing_the_other_way_and_costs_nothing() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut reader = open_one(&provider, "netmap:nma/R");
    assert!(!reader.tx().push(b"never"));
    for _ in 0..10 {
        reader.tx_sync().unwrap();
    }
    assert_eq!(reader.counters().tx_syscalls, 0);
    provider.send("nma", Side::Nic, 0, b"in");
    assert_eq!(reader.rx_sync().unwrap(), 1);
    assert_eq!(reader.rx().next().unwrap().bytes(), b"in");
}

/// A module of VALE writes the number of fragments above the flags.
#[test]
fn bits_above_the_flags_mean_nothing() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    provider.set_high_flags("nma", 0x2300);
    let mut port = open_one(&provider, "netmap:nma");
    provider.send("nma", Side::Nic, 0, b"one");
    provider.send("nma", Side::Nic, 0, b"two");
    port.rx_sync().unwrap();
    let (mut rx, mut tx) = port.rings();
    assert!(!rx.peek().unwrap().more() && rx.forward(&mut tx) && rx.forward(&mut tx));
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nma", Side::Nic), [(0, b"one".to_vec()), (0, b"two".to_vec())]);
    assert_eq!(provider.violations(), Vec::<String>::new());
}

/// What the kernel has joined in front of an emulated NIC, or another port of a switch sends.
#[test]
fn a_frame_of_several_slots_is_read_in_one_piece() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    let long: Vec<u8> = (0..5000).map(|i| u8::try_from(i % 249).unwrap()).collect();
    let mut read = |frames: &[&[u8]]| {
        frames.iter().for_each(|frame| assert!(provider.send("nma", Side::Nic, 0, frame)));
        assert_eq!(port.rx_sync().unwrap() as usize, frames.len());
        assert!(port.rx().map(|frame| frame.bytes().to_vec()).eq(frames.iter().map(|frame| frame.to_vec())));
        port.counters()
    };
    read(&[b"short", b"and short"]);
    let counters = read(&[b"short", &long, b"last"]);
    assert_eq!((counters.rx_frames, counters.rx_bytes), (5, 5 + 9 + 5 + 5000 + 4));
    assert!(port.tx().push(b"back") && port.tx_sync().is_ok());
    assert_eq!(provider.receive("nma", Side::Nic), [(0, b"back".to_vec())]);
    drop(port);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

#[test]
fn a_nic_that_is_removed_is_gone_for_the_port() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    assert!(port.arm().unwrap());
    provider.remove("nma");
    let mut fds =
        [libc::pollfd { fd: port.poll_fds().iter().next().unwrap().fd, events: libc::POLLIN, revents: 0 }];
    assert!(crate::sys::poll(&mut fds, Duration::ZERO), "a sleeper is woken");
    let words = port.rx_sync().unwrap_err().to_string();
    assert!(words.starts_with("netmap:nma-0 is gone (Input/output error"), "{words}");
    assert!(port.tx().push(b"x"));
    assert!(port.tx_sync().is_err());
    drop(port);
    assert!(error(&provider, "netmap:nma").contains("no interface named"));
    provider.add_nic("nma", ONE).unwrap();
    let mut again = open_one(&provider, "netmap:nma");
    provider.send("nma", Side::Nic, 0, b"back");
    assert_eq!(again.rx_sync().unwrap(), 1);
}

/// The module lets whoever syncs an interface that is down wait until it is up. A port that was told makes no call.
#[test]
fn an_interface_that_is_down_is_not_asked() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    provider.set_up("nma", false);
    assert!(port.set_up(false), "nobody may sleep on it");
    let (say, heard) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        assert!(port.tx().push(b"later"));
        let answers = (port.rx_sync().unwrap(), port.tx_sync().unwrap());
        say.send(answers).unwrap();
        port
    });
    let answers = heard.recv_timeout(Duration::from_secs(5));
    provider.set_up("nma", true);
    assert_eq!(answers, Ok((0, 62)));
    let mut port = thread.join().unwrap();
    port.set_up(true);
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nma", Side::Nic), [(0, b"later".to_vec())]);
}

/// Whoever is a host of its own on a NIC is asked for by groups that nobody else wants (RFC 4291 §2.7.1), which the NIC would leave out.
#[test]
fn a_host_of_its_own_hears_every_group() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let provider = provider(Shape::default());
    provider.add_nic("nio-a", ONE).unwrap();
    let all = || {
        let ip = || std::process::Command::new("ip").args(["-d", "link", "show", "nio-a"]).output().unwrap();
        let told = String::from_utf8(net.a.run(ip).stdout).unwrap();
        assert!(told.contains("allmulti "), "this `ip` tells nothing of it: {told}");
        told.contains("allmulti 1")
    };
    let open = |device: &'static str, beside_kernel: bool| {
        let nic = provider.clone();
        let options = OpenOptions { beside_kernel, ..OpenOptions::default() };
        net.a.run(move || nic.open(device, &options).unwrap())
    };
    assert!(!all());
    let port = open("netmap:nio-a", false);
    assert!(all());
    drop(port);
    assert!(!all(), "and no longer than that");
    for (device, beside) in [("netmap:nio-a", true), ("netmap:nio-a/T", false), ("netmap:nio-a^", false)] {
        let opened = open(device, beside);
        assert!(!all(), "{device}");
        // At the host's rings the interface's own address is the kernel's, which answers to nobody of that address.
        assert_eq!(opened.ports[0].caps().mac == MAC_A, !device.ends_with('^'), "{device}");
        drop(opened);
    }
}

/// The kernel's frames come to its rings only while those of the NIC that they would leave by are in netmap mode: a port on the host's
/// rings alone sees to that, and the NIC's frames still reach the kernel.
#[test]
fn the_hosts_rings_alone_are_heard_by_the_kernel() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { rings: 2, ..ONE }).unwrap();
    assert!(provider.send("nma", Side::Host, 1, b"by the NIC, as ever"));
    assert_eq!(provider.receive("nma", Side::Nic), [(1, b"by the NIC, as ever".to_vec())]);
    for name in ["netmap:nma^", "netmap:nma^0"] {
        let mut port = open_one(&provider, name);
        for ring in [0, 1] {
            assert!(provider.send("nma", Side::Host, ring, b"the kernel asks"));
            assert_eq!(port.rx_sync().unwrap(), 1);
            assert_eq!(port.rx().next().unwrap().bytes(), b"the kernel asks");
        }
        assert!(provider.send("nma", Side::Nic, 0, b"from the cable"));
        assert_eq!(provider.receive("nma", Side::Host), [(0, b"from the cable".to_vec())]);
        assert_eq!(provider.receive("nma", Side::Nic), []);
        assert_eq!(port.rx_sync().unwrap(), 0);
    }
    assert!(provider.send("nma", Side::Host, 0, b"by the NIC again"));
    assert_eq!(provider.receive("nma", Side::Nic).len(), 1);
    assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
}

/// It went down while the caller slept, and nobody has told the port of it: the port looks before it asks. When it is up again it
/// goes on, told or not.
#[test]
fn an_interface_that_went_down_meanwhile_is_not_asked() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let provider = provider(Shape::default());
    provider.add_nic("nio-a", ONE).unwrap();
    let nic = provider.clone();
    let mut port = net.a.run(move || open_one(&nic, "netmap:nio-a"));
    assert!(port.arm().unwrap(), "it may sleep");
    net.a.ip("link set nio-a down");
    provider.set_up("nio-a", false);
    let (say, heard) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        assert!(port.tx().push(b"later"));
        let answers = [(); 2].map(|()| (port.rx_sync().unwrap(), port.tx_sync().unwrap()));
        say.send(answers).unwrap();
        port
    });
    let answers = heard.recv_timeout(Duration::from_secs(15));
    // It is the number that is asked for, not the name.
    net.a.ip("link set nio-a name nio-c");
    net.a.ip("link set nio-c up");
    provider.set_up("nio-a", true);
    assert_eq!(answers, Ok([(0, 62); 2]));
    let mut port = thread.join().unwrap();
    port.tx_sync().unwrap();
    assert_eq!(provider.receive("nio-a", Side::Nic), [(0, b"later".to_vec())]);
}

#[test]
fn the_time_of_a_sync_is_told_to_who_asks() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let options = OpenOptions { timestamps: true, ..OpenOptions::default() };
    let mut port = provider.open("netmap:nma", &options).unwrap().ports.remove(0);
    let before = std::time::UNIX_EPOCH.elapsed().unwrap();
    port.rx_sync().unwrap();
    let told = port.rx_time().unwrap();
    let after = std::time::UNIX_EPOCH.elapsed().unwrap();
    assert!(before.as_micros() <= told.as_micros() && told <= after, "{before:?} {told:?} {after:?}");
}

#[test]
fn the_provider_has_the_manners_of_the_module() {
    let provider = provider(Shape { buffers: 400, ..Shape::default() });
    provider.add_nic("nma", ONE).unwrap();
    let admin = crate::admin::Admin::from(provider.clone());
    for (fact, found) in admin.manners("nma") {
        assert_eq!(found, Ok(()), "{fact}");
    }
    assert_eq!(provider.check_buffers(), Ok(()));
    let port = admin.port("nma").unwrap();
    assert_eq!((port.rings, port.host_rings, port.slots, port.mem_id), ((1, 1), (1, 1), (64, 64), 1));
    assert_eq!(admin.pools("nma", 0).unwrap().buffers, (400, 2048));
    assert_eq!(admin.version().unwrap(), "14 and 15");
    let old = Provider::new(Shape { legacy: true, ..Shape::default() }).unwrap();
    assert_eq!(crate::admin::Admin::from(old).version().unwrap(), "12");
}

/// A module of today takes the words of yesterday.
#[test]
fn the_old_interface_leads_to_the_same_rings() {
    let provider = joined(Shape::default());
    let options = OpenOptions { old_interface: true, ..OpenOptions::default() };
    let mut a = provider.open("netmap:nma-1", &options).unwrap().ports.remove(0);
    let mut b = provider.open("netmap:nmb-1", &options).unwrap().ports.remove(0);
    assert_eq!(a.caps().mode, "netmap (old interface)");
    assert!(a.tx().push(b"as ever") && a.tx_sync().is_ok());
    b.rx_sync().unwrap();
    assert_eq!(b.rx().next().unwrap().bytes(), b"as ever");
    let words = provider.open("netmap:nma-1@offset=16", &options).err().unwrap().to_string();
    assert!(words.contains("neither options"), "{words}");
}

/// Frames that wait are read without another call, until half of the ring is to be given back.
#[test]
fn frames_that_wait_cost_no_sync() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { slots: 32, ..ONE }).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    for n in 0..30_u8 {
        assert!(provider.send("nma", Side::Nic, 0, &[n; 60]));
    }
    assert_eq!((port.rx_sync().unwrap(), port.counters().rx_syscalls), (30, 1));
    for n in 0..16_u8 {
        assert_eq!(port.rx().next().unwrap().bytes(), [n; 60]);
        assert_eq!(port.rx_sync().unwrap(), 29 - u32::from(n));
    }
    assert_eq!(port.counters().rx_syscalls, 1);
    // Whoever has read more than half gives it back, so that the module has room.
    assert!(port.rx().next().is_some());
    assert_eq!((port.rx_sync().unwrap(), port.counters().rx_syscalls), (13, 2));
    (0..16).for_each(|_| assert!(provider.send("nma", Side::Nic, 0, &[99; 60])));
    port.rx().for_each(drop);
    assert_eq!((port.rx_sync().unwrap(), port.counters().rx_syscalls), (16, 3));
}

/// One sync for a batch, none while the rings have room.
#[test]
fn a_thousand_frames_cost_a_counted_number_of_syncs() {
    let provider = provider(Shape::default());
    provider.add_nic("nma", NicShape { slots: 256, ..ONE }).unwrap();
    let mut port = open_one(&provider, "netmap:nma");
    let before = port.counters();
    for _ in 0..20 {
        for n in 0..50_u8 {
            assert!(provider.send("nma", Side::Nic, 0, &[n; 60]));
        }
        while port.rx_sync().unwrap() > 0 {
            let (mut rx, mut tx) = port.rings();
            while rx.forward(&mut tx) {}
            port.tx_sync().unwrap();
        }
        assert_eq!(provider.receive("nma", Side::Nic).len(), 50);
    }
    let after = port.counters();
    assert_eq!(after.rx_frames, 1000);
    // For each batch of 50, one call shows it, one sends it, one finds the ring empty.
    assert_eq!((after.rx_syscalls - before.rx_syscalls, after.tx_syscalls - before.tx_syscalls), (40, 20));
    for _ in 0..100 {
        port.tx_sync().unwrap();
    }
    assert_eq!(port.counters().tx_syscalls, after.tx_syscalls, "nothing to send, room enough");
}
