//! AF_XDP over a veth pair between two network namespaces.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::conformance::{self, Pair};
use crate::testing::{Frame, IP_A, IP_B, MAC_A, MAC_B, Network, Tap, skip_without};
use crate::{Device, OpenOptions, Port, Proto, Tuple, XdpMode, whose};

mod displaced;

const PORT: u16 = 4000;

/// Both ends under AF_XDP, each with one tuple registered.
fn pair(net: &Network, options: &OpenOptions) -> Pair {
    let end = |host, device| {
        let Device { mut ports, steering } = net.open(host, device, options).unwrap();
        let steering = steering.unwrap();
        // Forwarded frames keep their destination, so both ends take both addresses.
        for addr in [IP_A, IP_B] {
            steering.register(Tuple::new(addr, PORT, Proto::TCP)).unwrap();
        }
        ports.remove(0)
    };
    let (a, b) = (end(&net.a, "xdp:nio-a"), end(&net.b, "xdp:nio-b"));
    let make = |to_b: bool| {
        let (from, to) = if to_b { (IP_A, IP_B) } else { (IP_B, IP_A) };
        let (to_mac, from_mac) = if to_b { (MAC_B, MAC_A) } else { (MAC_A, MAC_B) };
        Frame::new(Proto::TCP, (from.into(), PORT), (to.into(), PORT)).macs(to_mac, from_mac)
    };
    let header = make(true).header_len();
    let frame = move |to_b, len: usize| {
        let payload: Vec<u8> = (0..len - header).map(|i| u8::try_from(i % 251).unwrap()).collect();
        make(to_b).payload(&payload).build()
    };
    Pair {
        a,
        b,
        frame: Box::new(frame),
        frame_len_min: header + 8,
        pushes_back: false,
        kicks_max: 1,
        skip: &[],
    }
}

#[track_caller]
fn conforms(mode: XdpMode, mtu: u32, rx_slots: u32) {
    let net = Network::new(1, mtu);
    let options = OpenOptions { xdp_mode: mode, rx_slots, tx_slots: rx_slots, ..OpenOptions::default() };
    let mut pair = pair(&net, &options);
    println!("{} and {}: {}", pair.a.caps().name, pair.b.caps().name, pair.a.caps().mode);
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        println!("  {}: {result:?}", case.name);
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn native_mode_conforms() {
    skip_without!(namespaces);
    conforms(XdpMode::Native, 1500, 256);
}

#[test]
fn generic_mode_conforms() {
    skip_without!(namespaces);
    conforms(XdpMode::Generic, 1500, 256);
}

#[test]
fn large_buffers_conform() {
    skip_without!(namespaces);
    conforms(XdpMode::Native, 3000, 64);
}

/// Frames in pieces, in the driver and behind it; few buffers, so that they run out.
#[test]
fn jumbo_frames_conform() {
    skip_without!(namespaces);
    for mode in [XdpMode::Native, XdpMode::Generic] {
        conforms(mode, 9000, 64);
        conforms(mode, 9000, 1024);
    }
}

#[test]
fn the_kernel_may_know_no_chains() {
    use super::{first_that_binds, ways_to_bind};
    use crate::ZeroCopy;
    const COPY: u16 = libc::XDP_COPY;
    const CHAINS: u16 = libc::XDP_USE_SG;
    let auto = ways_to_bind(true, true, ZeroCopy::Auto);
    assert_eq!(auto, [CHAINS, COPY | CHAINS, 0, COPY]);
    assert_eq!(ways_to_bind(true, false, ZeroCopy::Auto), [0, COPY]);
    assert_eq!(ways_to_bind(false, true, ZeroCopy::Auto), [COPY | CHAINS, COPY]);
    assert_eq!(ways_to_bind(true, false, ZeroCopy::Force), [libc::XDP_ZEROCOPY]);
    let refuse = |code| Err(std::io::Error::from_raw_os_error(code));
    let old_kernel = |flags| if flags & CHAINS == 0 { Ok(()) } else { refuse(libc::EINVAL) };
    assert_eq!(first_that_binds(&auto, old_kernel).unwrap(), 0);
    // A driver whose zero-copy does not work at this MTU, without saying so by falling back itself.
    let copy_only = |flags| if flags & COPY != 0 { Ok(()) } else { refuse(libc::EOPNOTSUPP) };
    assert_eq!(first_that_binds(&auto, copy_only).unwrap(), COPY | CHAINS);
    let mut asked = 0;
    let busy = |_| {
        asked += 1;
        refuse(libc::EBUSY)
    };
    let error = first_that_binds(&auto, busy).unwrap_err();
    assert_eq!((error.raw_os_error(), asked), (Some(libc::EBUSY), 1), "a busy queue is busy for all");
}

/// The kernel of host `b` talks to host `a`, whose port 80 is ours.
#[test]
fn registered_tuples_reach_us_and_all_else_the_kernel() {
    skip_without!(namespaces);
    for (mode, vnet_header) in [(XdpMode::Native, false), (XdpMode::Generic, false), (XdpMode::Auto, true)] {
        let net = Network::new(1, 1500);
        let options = OpenOptions { xdp_mode: mode, vnet_header, ..OpenOptions::default() };
        let device = net.open(&net.a, "xdp:nio-a", &options).unwrap();
        let steering = device.steering.unwrap();
        let [mut port]: [Box<dyn Port>; 1] = device.ports.try_into().ok().unwrap();
        let ours6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
        steering.register(Tuple::new(IP_A, 80, Proto::TCP)).unwrap();
        steering.register(Tuple::new(ours6, 80, Proto::TCP)).unwrap();

        for (what, addr) in [("IPv4", SocketAddr::from((IP_A, 0))), ("IPv6", SocketAddr::from((ours6, 0)))] {
            let to = move |port| SocketAddr::new(addr.ip(), port);
            // Another kernel server on the same address, before, while and after frames are taken.
            assert_eq!(talk(&net, to(81)), "hello", "{what} to the kernel");
            let connect = move || TcpStream::connect_timeout(&to(80), Duration::from_millis(50)).map(drop);
            let error = net.b.run(connect).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{what}: nobody answered for us");
            port.rx_sync().unwrap();
            let at = usize::from(port.caps().vnet_header);
            assert_eq!(at > 0, vnet_header);
            let frame = port.rx().next().expect("the SYN").bytes().to_vec();
            let ip = &frame[at + 14..];
            let tcp = if addr.is_ipv4() { &ip[20..] } else { &ip[40..] };
            assert_eq!(tcp[2..4], 80_u16.to_be_bytes(), "{what}: destination port");
            assert_eq!(tcp[13] & 0x3f, 0x02, "{what}: SYN");
            assert_eq!(talk(&net, to(81)), "hello", "{what} to the kernel");
        }
        net.b.run(|| ping(IP_A));

        steering.unregister(Tuple::new(IP_A, 80, Proto::TCP)).unwrap();
        assert_eq!(talk(&net, SocketAddr::from((IP_A, 80))), "hello", "after unregister");
        let counters = port.counters();
        assert_eq!((counters.rx_dropped, counters.rx_ring_full), (0, 0));
    }
}

/// The table of all that steers, over a wire: to the port comes what is ours, to the kernel the rest, byte for byte.
#[test]
fn everybody_gets_what_is_his() {
    skip_without!(namespaces);
    for (mode, vnet_header) in [(XdpMode::Native, false), (XdpMode::Generic, false), (XdpMode::Auto, true)] {
        let net = Network::new(1, 1500);
        let options = OpenOptions { xdp_mode: mode, vnet_header, ..OpenOptions::default() };
        let device = net.open(&net.a, "xdp:nio-a", &options).unwrap();
        whose::register(&*device.steering.unwrap()).unwrap();
        let [mut port]: [Box<dyn Port>; 1] = device.ports.try_into().ok().unwrap();
        // Behind XDP and in front of tcx: there it hears what is ours as well.
        let mut kernel = net.a.run(|| Tap::new("nio-a").unwrap());
        let wire = net.b.run(|| Tap::new("nio-b").unwrap());
        let words = format!("{}: ", port.caps().mode);
        for case in whose::cases() {
            let frame = case.to(MAC_A);
            wire.send(&frame).unwrap();
            // The kernel takes the first tag off, for whoever stands behind it.
            let mut untagged = frame.clone();
            if matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) {
                untagged.drain(12..16);
            }
            if !case.ours || vnet_header {
                let heard = kernel.receive(Duration::from_secs(2));
                assert_eq!(heard.as_ref(), Some(&untagged), "{words}{}", case.what);
            }
            if case.ours || (case.unknown && vnet_header) {
                let got = next_frame(&mut *port);
                let at = usize::from(port.caps().vnet_header);
                let want = if vnet_header { &untagged } else { &frame };
                assert_eq!(got.as_deref().map(|got| &got[at..]), Some(&want[..]), "{words}{}", case.what);
            }
        }
        // What the last ones were would have come by now.
        assert_eq!(port.rx_sync().unwrap(), 0, "{words}what is not ours came to us");
        assert_eq!(kernel.receive(Duration::ZERO), None, "{words}what is ours went to the kernel");
    }
}

fn next_frame(port: &mut dyn Port) -> Option<Vec<u8>> {
    let until = Instant::now() + Duration::from_secs(2);
    while port.rx_sync().unwrap() == 0 {
        if Instant::now() > until {
            return None;
        }
    }
    port.rx().next().map(|frame| frame.bytes().to_vec())
}

/// A kernel client on `b` and a kernel server on `a` exchange a word.
fn talk(net: &Network, server: SocketAddr) -> String {
    let listener = net.a.run(move || TcpListener::bind(server)).unwrap();
    net.a.start(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    net.b.run(move || {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2)).unwrap();
        let mut word = String::new();
        stream.read_to_string(&mut word).unwrap();
        word
    })
}

/// One ICMP echo to the kernel behind `addr`.
fn ping(addr: [u8; 4]) {
    let answered = crate::sys::ping(addr, Duration::from_secs(2)).unwrap();
    assert!(answered, "the kernel answers pings");
}

#[test]
fn each_queue_is_a_port_and_one_can_be_picked() {
    skip_without!(namespaces);
    let net = Network::new(4, 1500);
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let all = net.open(&net.a, "xdp:nio-a", &options).unwrap();
    let names: Vec<_> = all.ports.iter().map(|port| port.caps().name.clone()).collect();
    assert_eq!(names, ["xdp:nio-a-0", "xdp:nio-a-1", "xdp:nio-a-2", "xdp:nio-a-3"]);
    drop(all);
    let one = net.open(&net.a, "xdp:nio-a-2", &options).unwrap();
    assert_eq!(one.ports.len(), 1);
    let caps = one.ports[0].caps();
    assert_eq!((caps.queue, caps.mac, caps.mtu, caps.local), (2, MAC_A, 1500, true));
    drop(one);
    let error = net.open(&net.a, "xdp:nio-a-4", &options).err().unwrap();
    assert_eq!(error.to_string(), "nio-a has 4 queue(s), so queue 4 does not exist; use nio-a-0 … nio-a-3");
}

/// The kernel of `b` spreads flows over its tx queues, and the veth maps them to ours.
#[test]
fn frames_reach_the_port_of_their_queue() {
    skip_without!(namespaces);
    let net = Network::new(2, 1500);
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let mut a = net.open(&net.a, "xdp:nio-a", &options).unwrap();
    let mut b = net.open(&net.b, "xdp:nio-b", &options).unwrap();
    a.steering.as_ref().unwrap().register(Tuple::new(IP_A, PORT, Proto::TCP)).unwrap();
    let frame = Frame::new(Proto::TCP, (IP_B.into(), PORT), (IP_A.into(), PORT)).macs(MAC_A, MAC_B);
    for queue in 0..2 {
        assert!(b.ports[queue].tx().push(&frame.build()));
        b.ports[queue].tx_sync().unwrap();
    }
    let mut seen = 0;
    for _ in 0..1000 {
        seen = 0;
        for port in &mut a.ports {
            seen += port.rx_sync().unwrap();
        }
        if seen == 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let each: Vec<_> = a.ports.iter().map(|port| port.counters().rx_frames).collect();
    assert_eq!((seen, each.as_slice()), (2, &[1, 1][..]), "frames per queue");
}

#[test]
fn errors_say_what_to_do() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let error = |device: &str| net.open(&net.a, device, &options).err().unwrap().to_string();
    assert!(error("xdp:nio-x").starts_with("no interface named \"nio-x\" in this network namespace"));
    assert!(error("xdp:lo").contains("not an Ethernet interface"));
    let _held = net.open(&net.a, "xdp:nio-a", &options).unwrap();
    let busy = error("xdp:nio-a");
    assert!(
        busy.contains("the XDP hook of nio-a is in use: another utcp engine drives it (program "),
        "{busy}"
    );
    let odd = OpenOptions { rx_slots: 100, ..options.clone() };
    let odd = net.open(&net.b, "xdp:nio-b", &odd).err().unwrap().to_string();
    assert_eq!(odd, "rx_slots 100: a ring has a power of two of slots, 2 to 32768");
    let zero_copy = OpenOptions { zero_copy: crate::ZeroCopy::Force, ..options.clone() };
    let zero_copy = net.open(&net.b, "xdp:nio-b", &zero_copy).err().unwrap().to_string();
    assert!(zero_copy.contains("the driver \"veth\" of nio-b has no zero-copy mode"), "{zero_copy}");
}

/// Waits until no program is attached to the interface. A child that another test forks holds our descriptors until it runs its
/// program, and a link is there as long as anybody has its descriptor.
fn wait_until_free(net: &Network, ifindex: u32) {
    net.a.run(move || {
        let until = Instant::now() + Duration::from_secs(10);
        while super::steer::attached(ifindex).is_some() {
            assert!(Instant::now() < until, "a program stays attached");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Somebody else's program holds the hook: it is named and left alone, in both modes.
#[test]
fn a_foreign_program_is_named_and_stays() {
    skip_without!(namespaces);
    use super::asm::{Asm, Reg};
    let net = Network::new(1, 1500);
    let mut asm = Asm::default();
    asm.mov_imm(Reg::R0, super::program::XDP_PASS);
    asm.exit();
    let insns = asm.finish();
    let firewall = |id| format!("XDP program \"firewall\" (number {id}) is attached");
    let chained = |id| format!("libxdp's dispatcher (program {id}) has it; `xdp-loader status nio-a` shows");
    for (name, native) in [("firewall", true), ("firewall", false), ("xdp_dispatcher", true)] {
        let words = |id| if name == "firewall" { firewall(id) } else { chained(id) };
        let program = super::bpf::Program::load(name, super::bpf::Kind::Xdp, &insns).unwrap();
        let ifindex = net.a.run(|| crate::sys::interface("nio-a").unwrap().unwrap().index);
        let id = program.id();
        let (program, link) = net.a.run(move || {
            let link = program.attach(ifindex, native).unwrap();
            (program, link)
        });
        let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
        let error = net.open(&net.a, "xdp:nio-a", &options).err().unwrap().to_string();
        assert!(error.contains("is in use") && error.contains(&words(id)), "{error}");
        // One that would inherit a link inherits none of a stranger's.
        let kept = OpenOptions { kept: true, ..options.clone() };
        assert!(net.open(&net.a, "xdp:nio-a", &kept).err().unwrap().to_string().contains(&words(id)));
        let attached = net.a.run(move || super::steer::attached(ifindex));
        assert_eq!(attached, Some((id, name.to_owned())));
        drop(link);
        wait_until_free(&net, ifindex);
        // Detached: now it is ours.
        drop(net.open(&net.a, "xdp:nio-a", &options).unwrap());
        wait_until_free(&net, ifindex);
        // The same for one that no link holds, as `ip link set … xdp` leaves it.
        let program = net.a.run(move || {
            super::hook::put(ifindex, program.raw_fd(), native).unwrap();
            program
        });
        let error = net.open(&net.a, "xdp:nio-a", &options).err().unwrap().to_string();
        assert!(error.contains("is in use") && error.contains(&words(id)), "{error}");
        net.a.run(move || super::hook::put(ifindex, -1, native).unwrap());
        drop(net.open(&net.a, "xdp:nio-a", &options).unwrap());
        wait_until_free(&net, ifindex);
        drop(program);
    }
}

/// Whoever holds the link keeps the program where it is; the next device of the same kind takes its place without a gap.
#[test]
fn a_link_that_is_held_is_inherited() {
    skip_without!(namespaces);
    for mode in [crate::XdpMode::Native, crate::XdpMode::Generic] {
        let net = Network::new(1, 1500);
        let ifindex = net.a.run(|| crate::sys::interface("nio-a").unwrap().unwrap().index);
        let attached = || net.a.run(move || super::steer::attached(ifindex)).map(|(id, _)| id);
        let options = OpenOptions { rx_slots: 64, tx_slots: 64, xdp_mode: mode, ..OpenOptions::default() };
        let kept = OpenOptions { kept: true, ..options.clone() };
        let first = net.open(&net.a, "xdp:nio-a", &kept).unwrap();
        let steering = first.steering.clone().unwrap();
        let (held, before) = (steering.hold().unwrap(), attached().unwrap());
        assert!(!steering.is_inherited());
        // While the first one lives, its queue is its own, and so is the hook.
        assert!(net.open(&net.a, "xdp:nio-a", &kept).err().unwrap().to_string().contains("is in use"));
        assert_eq!(attached(), Some(before));
        drop((first, steering));
        assert_eq!(attached(), Some(before), "it is held");
        // Nobody else takes it.
        assert!(
            net.open(&net.a, "xdp:nio-a", &options)
                .err()
                .unwrap()
                .to_string()
                .contains("another utcp engine")
        );
        let second = net.open(&net.a, "xdp:nio-a", &kept).unwrap();
        let steering = second.steering.clone().unwrap();
        assert!(
            steering.is_inherited() && steering.describe().starts_with(&format!("{mode:?}").to_lowercase())
        );
        assert_eq!(attached(), Some(before), "not before it is said");
        steering.take_over().unwrap();
        assert!(!steering.is_inherited() && attached() != Some(before));
        steering.take_over().unwrap();
        drop((second, steering));
        assert!(attached().is_some(), "still held");
        drop(held);
        // A child of another test may have a copy until it executes its program.
        let until = Instant::now() + Duration::from_secs(5);
        while attached().is_some() && Instant::now() < until {}
        assert_eq!(attached(), None);
        // Of a device that is not to be kept, nothing can be held.
        let plain = net.open(&net.a, "xdp:nio-a", &options).unwrap();
        assert!(plain.steering.unwrap().hold().is_none());
    }
    // Nor of one queue of several.
    let net = Network::new(2, 1500);
    let kept = OpenOptions { rx_slots: 64, tx_slots: 64, kept: true, ..OpenOptions::default() };
    assert!(net.open(&net.a, "xdp:nio-a-1", &kept).unwrap().steering.unwrap().hold().is_none());
    assert!(net.open(&net.a, "xdp:nio-a", &kept).unwrap().steering.unwrap().hold().is_some());
}

/// An interface whose own name ends like a queue is found.
#[test]
fn a_name_that_ends_like_a_queue_is_an_interface() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    net.a.ip("link set nio-a name br-12");
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let device = net.open(&net.a, "xdp:br-12", &options).unwrap();
    assert_eq!(device.ports[0].caps().name, "xdp:br-12-0");
    drop(device);
    assert_eq!(net.open(&net.a, "xdp:br-12-0", &options).unwrap().ports.len(), 1);
}

/// Opens the device in its namespace and waits to be killed; started by the test below.
#[test]
#[ignore = "a helper process of another test"]
fn victim() {
    let _device = crate::open("xdp:nio-a", &OpenOptions::default()).unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn a_killed_engine_leaves_nothing_on_the_interface() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let attached = || {
        net.a.run(|| {
            let output = std::process::Command::new("ip").args(["link", "show", "nio-a"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("xdp")
        })
    };
    let wait_for = |want: bool| {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            attached() == want
        })
    };
    assert!(!attached());
    let mut child = net.a.victim("xdp::tests::victim");
    let came = wait_for(true);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(came, "the program was attached");
    assert!(wait_for(false), "the program was detached");
    drop(net.open(&net.a, "xdp:nio-a", &OpenOptions::default()).unwrap());
    assert!(wait_for(false), "the program is detached when the device is closed");
}

/// Prints what opening the device says; started by the tests below with fewer privileges.
#[test]
#[ignore = "a helper process of other tests"]
fn open_and_tell() {
    match crate::open("xdp:nio-a", &OpenOptions::default()) {
        Ok(device) => println!("opened {}", device.ports[0].caps().name),
        Err(error) => println!("refused: {error}"),
    }
}

/// What `open_and_tell` prints when it is started by `launcher`.
fn told_under(net: &Network, launcher: &'static str) -> String {
    let output = net.a.run(move || {
        let mut words = launcher.split_whitespace();
        let mut command = std::process::Command::new(words.next().unwrap());
        command.args(words).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "xdp::tests::open_and_tell", "--ignored", "--nocapture"]);
        command.output().expect("setpriv and prlimit (util-linux)")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text
        .lines()
        .find_map(|line| line.find("opened").or(line.find("refused")).map(|at| line[at..].to_owned()));
    told.unwrap_or_else(|| panic!("{launcher}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_user_without_privilege_is_told_what_is_missing() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let told = told_under(&net, "setpriv --bounding-set=-bpf,-sys_admin --inh-caps=-bpf,-sys_admin");
    assert!(told.contains("needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"), "{told}");
    assert!(told.contains("setcap cap_net_admin,cap_net_raw,cap_bpf+ep"), "{told}");
}

#[test]
fn a_small_limit_of_locked_memory_is_raised_or_named() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let told =
        told_under(&net, "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock prlimit --memlock=65536:");
    assert_eq!(told, "opened xdp:nio-a-0", "the soft limit is raised to the hard one");
    let capless = "setpriv --bounding-set=-ipc_lock,-sys_resource --inh-caps=-ipc_lock,-sys_resource prlimit --memlock=65536:65536";
    let told = told_under(&net, capless);
    assert!(told.contains("8388608 bytes of packet memory exceed the locked-memory limit"), "{told}");
}

#[test]
fn sending_on_a_removed_interface_says_that_it_is_gone() {
    skip_without!(namespaces);
    let net = Network::new(1, 1500);
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let mut pair = pair(&net, &options);
    let frame = (pair.frame)(true, 100);
    let mut send = || {
        assert!(pair.a.tx().push(&frame));
        pair.a.tx_sync()
    };
    send().unwrap();
    net.a.ip("link set nio-a down");
    send().expect("an interface that is down may come up again");
    net.a.ip("link set nio-a up");
    net.a.ip("link del nio-a");
    let error = send().unwrap_err().to_string();
    assert!(error.starts_with("xdp:nio-a-0 is gone ("), "{error}");
    assert_eq!(pair.b.rx_sync().map_err(|e| e.to_string()), Ok(1), "what arrived before is there");
}

/// A measurement, not a test: `cargo test --release -- --ignored --nocapture rate`.
#[test]
#[ignore = "a measurement"]
fn rate() {
    skip_without!(namespaces);
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let net = Network::new(1, 1500);
        let mut pair = pair(&net, &OpenOptions { xdp_mode: mode, ..OpenOptions::default() });
        for (len, batch) in [(64, 1), (64, 16), (64, 64), (64, 256), (1514, 64)] {
            let rate = conformance::rate(&mut pair, len, batch, 200_000).unwrap();
            println!("{}: {rate:?}", pair.a.caps().mode);
        }
    }
}
