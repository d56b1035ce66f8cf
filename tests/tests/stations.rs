//! The engine as a host of its own, with addresses by the device string: the kernel at the other side of a TAP
//! device, another engine at the other end of a pipe. And what the tools say about ports and devices.

use std::path::Path;
use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Download, Engine, Host, Lab, Net, Run, Running, WAIT, ip, is_root, not_run, on_kernel, release_file,
    wait_until,
};

const OURS: &str = "10.9.0.2";
const OURS_V6: &str = "fd09::2";
const KERNELS: &str = "10.9.0.1";
const KERNELS_V6: &str = "fd09::1";

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel has no such devices");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

/// An engine with a TAP device on `host`, whose kernel is the neighbour.
fn beside_the_kernel<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    let device = format!("tap:utcp0,addr={OURS}/24,addr={OURS_V6}/64,gw={KERNELS}");
    let engine = Engine::new(lab).inside(host).set("UTCP_DEVICE", device).run();
    ip(lab, host, &format!("addr add {KERNELS}/24 dev utcp0"));
    ip(lab, host, &format!("addr add {KERNELS_V6}/64 dev utcp0 nodad"));
    engine
}

fn curl<'l>(lab: &'l Lab, host: &Host, url: &str) -> Run<'l> {
    lab.run("curl").args(["-sS", "-g", "-m", "20", url]).inside(host)
}

#[test]
fn kernel_clients_reach_us_by_a_tap_device() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-server"), Net::new());
    let engine = beside_the_kernel(&lab, &net.server);
    let nginx = Nginx::start(&lab, &engine);
    for addr in [OURS.to_owned(), format!("[{OURS_V6}]")] {
        let url = format!("http://{addr}:{}/hello", nginx.port);
        assert_eq!(curl(&lab, &net.server, &url).ok().text(), "hello\n");
    }
    let file = lab.random_file("www/big", 50_000_000);
    let got = lab.path("got");
    let url = format!("http://{OURS}:{}/big", nginx.port);
    let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).ok();
    assert_eq!(lab.digest(&got), lab.digest(&file));
    let ab = lab.run("ab").args(["-q", "-n", "2000", "-c", "16", &url.replace("/big", "/hello")]);
    let report = ab.inside(&net.server).ok().text();
    assert!(report.contains("Failed requests:        0\n"), "{report}");
    engine.went_through(2003);
    // Segments leave as long as a virtio-net header lets them: by the MTU there would be 34 500.
    let sent = engine.counters().get("tap:utcp0.tx_frames");
    assert!(sent < 20_000, "{sent} frames sent");
    // Nobody listens there: a reset, not silence.
    let closed = curl(&lab, &net.server, &format!("http://{OURS}:9/")).finish();
    assert_eq!(closed.status.code(), Some(7), "curl's word for a refused connection");
    engine.wait_until_empty(WAIT);
}

#[test]
fn we_reach_kernel_servers_by_a_tap_device() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-client"), Net::new());
    let nginx = Nginx::start_on_kernel(&lab, Some(&net.server));
    let engine = beside_the_kernel(&lab, &net.server);
    for addr in [KERNELS.to_owned(), format!("[{KERNELS_V6}]")] {
        let url = format!("http://{addr}:{}/hello", nginx.port);
        assert_eq!(curl(&lab, &net.server, &url).under(&engine).ok().text(), "hello\n");
    }
    let file = lab.random_file("www/big", 50_000_000);
    let got = lab.path("got");
    for addr in [KERNELS.to_owned(), format!("[{KERNELS_V6}]")] {
        let before = engine.counters();
        let url = format!("http://{addr}:{}/big", nginx.port);
        let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).under(&engine).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file));
        // Segments come as the kernel made them: cut by the MTU there would be 34 500.
        let came = engine.counters().since(&before, "tap:utcp0.rx_frames");
        assert!(came < 20_000, "{addr}: {came} frames came");
    }
    engine.went_through(4);
    assert!(engine.counters().get("neighbour_frames") > 0, "the kernel was found by asking");
}

/// The link below carries less than before, and more again, under a connection.
#[test]
fn the_mtu_of_a_tap_device_shrinks_and_grows() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-mtu"), Net::new());
    let engine = beside_the_kernel(&lab, &net.server);
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 24_000_000);
    let url = format!("http://{OURS}:{}/big", nginx.port);
    let download = Download::start(&lab, &net.server, &url, "got");
    for (mtu, mss) in [(1500, "mss:1448"), (1000, "mss:948"), (1500, "mss:1448")] {
        ip(&lab, &net.server, &format!("link set utcp0 mtu {mtu}"));
        wait_until(mss, WAIT, || {
            engine.sockets().iter().any(|socket| socket.line.contains(mss)).then_some(())
        });
    }
    download.end(&file);
    engine.went_through(1);
}

/// A port where nobody listens, an address of the link where nobody is, twice: what the kernel would say.
#[test]
fn nobody_there() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-nobody"), Net::new());
    let engine = beside_the_kernel(&lab, &net.server);
    let connect = |addr: &str| {
        let script = format!(
            "import errno, socket
s = socket.socket()
s.settimeout(10)
try:
    s.connect(('{addr}', 5))
except OSError as error:
    print(errno.errorcode.get(error.errno, error))"
        );
        lab.python(&script).under(&engine).ok().text()
    };
    assert_eq!(connect(KERNELS), "ECONNREFUSED\n");
    assert_eq!(connect("10.9.0.99"), "EHOSTUNREACH\n");
    assert_eq!(connect("10.9.0.99"), "EHOSTUNREACH\n");
    engine.wait_until_empty(WAIT);
}

/// The neighbour moves to another link address while a connection lives: it goes on.
#[test]
fn a_neighbour_moves() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-moves"), Net::new());
    let engine = beside_the_kernel(&lab, &net.server);
    let port = lab.port();
    let script = format!(
        "import socket
s = socket.create_server(('{KERNELS}', {port}))
print('listens')
c, _ = s.accept()
while data := c.recv(100): c.sendall(data)"
    );
    let mut server = lab.python(&script).inside(&net.server).spawn();
    server.wait_for_output("listens");
    let script = format!(
        "import socket, sys
s = socket.create_connection(('{KERNELS}', {port}), timeout=20)
s.sendall(b'one'); assert s.recv(100) == b'one'
print('one')
sys.stdin.readline()
s.sendall(b'two'); assert s.recv(100) == b'two'
print('two')"
    );
    let gate = lab.path("gate");
    let _ = lab.run("mkfifo").arg(&gate).ok();
    let mut client =
        lab.python(&script.replace("sys.stdin", &format!("open({gate:?})"))).under(&engine).spawn();
    client.wait_for_output("one");
    // As when another machine takes the address over. The kernel says nothing, we have to find out.
    ip(&lab, &net.server, "link set utcp0 address 02:00:00:00:00:77");
    std::fs::write(&gate, "go\n").expect("the client reads");
    let _ = client.end_within(Duration::from_secs(25)).ok();
}

#[test]
fn two_engines_joined_by_a_pipe() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("pipe-stations"), Net::new());
    let name = format!("test-{}", std::process::id());
    let end = |host: &Host, addr: &str| {
        Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("pipe:{name},addr={addr}/30"))
    };
    // Each waits for the other before it answers.
    let servers = end(&net.server, "10.8.0.1");
    let first = lab.run(servers.program("utcp")).arg("engine").env("UTCP_STACK", servers.stack());
    let device = format!("pipe:{name},addr=10.8.0.1/30");
    let _first = first.env("UTCP_DEVICE", device).inside(&net.server).spawn();
    let clients = end(&net.client, "10.8.0.2").run();
    let nginx = Nginx::start(&lab, &servers);
    let url = format!("http://10.8.0.1:{}/hello", nginx.port);
    assert_eq!(curl(&lab, &net.client, &url).under(&clients).ok().text(), "hello\n");
    servers.went_through(1);
}

/// A trace that is begun and ended while the engine runs: whole blocks, and whose flow it is.
#[test]
fn a_trace_of_a_running_engine() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("trace"), Net::new());
    let device = format!("xdp:{}", net.server.interface);
    let engine = Engine::new(&lab).inside(&net.server).set("UTCP_DEVICE", &device).run();
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.path("trace.pcapng");
    let trace = lab.run(engine.program("utcp")).args(["trace", &device, "--stack", engine.stack(), "-w"]);
    let mut trace = trace.arg(&file).inside(&net.server).spawn();
    wait_until("the trace begins", WAIT, || file.metadata().ok().filter(|file| file.len() > 0));
    let url = format!("http://{}:{}/hello", net.server.addr, nginx.port);
    assert_eq!(curl(&lab, &net.client, &url).ok().text(), "hello\n");
    trace.signal(libc::SIGINT);
    let _ = trace.end_within(WAIT).ok();
    let bytes = std::fs::read(&file).expect("the trace was written");
    let mut rest = bytes.as_slice();
    let (mut packets, mut named) = (0, false);
    while !rest.is_empty() {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        let len = word(4) as usize;
        assert_eq!(word(len - 4) as usize, len, "a block is whole");
        let comment = format!("nginx: {}:{} to {}:", net.server.addr, nginx.port, net.client.addr);
        packets += usize::from(word(0) == 6);
        named |= rest[..len].windows(comment.len()).any(|window| window == comment.as_bytes());
        rest = &rest[len..];
    }
    assert!(packets >= 8 && named, "{packets} packets, comment {named}");
    engine.went_through(1);
}

/// An engine whose ports are traced, where its clients are, and what stands behind.
struct Traced<'l> {
    engine: Engine<'l>,
    /// The device, as `utcp trace` has it.
    port: String,
    addr: &'static str,
    client: Client<'l>,
    _behind: Vec<Running>,
}

/// Who asks for pages: the kernel of a host, or another engine.
enum Client<'l> {
    Kernel(Host),
    Engine(Host, Box<Engine<'l>>),
}

/// `xdp:` with faults, which is AF_XDP, and without; `switch:` on it.
fn traced_xdp<'l>(lab: &'l Lab, net: &Net, device: &str, faults: bool) -> Traced<'l> {
    let host = &net.server;
    let behind = device.starts_with("switch:").then(|| {
        let shared = format!("xdp:{}", host.interface);
        let switch = lab.run(release_file("utcp")).args(["switch", &shared]).inside(host).spawn();
        wait_until("the switch runs", WAIT, || switch.stderr().contains("is shared").then_some(()));
        switch
    });
    let mut engine = Engine::new(lab).inside(host).set("UTCP_DEVICE", device);
    if faults {
        engine = engine.set("UTCP_FAULTS", "loss=0%");
    }
    Traced {
        engine: engine.run(),
        port: device.to_owned(),
        addr: "10.77.0.1",
        client: Client::Kernel(net.client.clone()),
        _behind: behind.into_iter().collect(),
    }
}

fn traced_tap<'l>(lab: &'l Lab, net: &Net) -> Traced<'l> {
    let device = "tap:utcp0,addr=10.9.0.2/24";
    let engine = Engine::new(lab).inside(&net.server).set("UTCP_DEVICE", device).run();
    ip(lab, &net.server, "addr add 10.9.0.1/24 dev utcp0");
    let client = Client::Kernel(net.server.clone());
    Traced { engine, port: "tap:utcp0".into(), addr: "10.9.0.2", client, _behind: Vec::new() }
}

fn traced_pipe<'l>(lab: &'l Lab, net: &Net) -> Traced<'l> {
    let name = format!("pipe:traced{}", std::process::id());
    let end = |host: &Host, addr: &str| {
        Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("{name},addr={addr}/24"))
    };
    // Each waits for the other before it answers.
    let engine = end(&net.server, "10.8.0.1");
    let first = lab.run(engine.program("utcp")).arg("engine").env("UTCP_STACK", engine.stack());
    let first = first.env("UTCP_DEVICE", format!("{name},addr=10.8.0.1/24")).inside(&net.server).spawn();
    let client = Client::Engine(net.client.clone(), Box::new(end(&net.client, "10.8.0.2").run()));
    Traced { engine, port: name, addr: "10.8.0.1", client, _behind: vec![first] }
}

fn traced_netmap<'l>(lab: &'l Lab, net: &Net) -> Traced<'l> {
    let (host, peer) = (&net.server, &net.client);
    for device in ["nm0", "wire0"] {
        ip(lab, host, &format!("tuntap add dev {device} mode tap"));
    }
    ip(lab, host, "addr add 10.88.0.1/24 dev nm0");
    ip(lab, host, "link set nm0 up");
    let engine = Engine::new(lab).inside(host).by(release_file("utcp-netmap-host"));
    let engine = engine.set("UTCP_DEVICE", "netmap:nm0").set("NETMAP_HOST_CABLE", "wire0").run();
    ip(lab, host, &format!("link set wire0 netns {}", peer.namespace()));
    ip(lab, peer, "addr add 10.88.0.2/24 dev wire0");
    ip(lab, peer, "link set wire0 up");
    let client = Client::Kernel(peer.clone());
    Traced { engine, port: "netmap:nm0".into(), addr: "10.88.0.1", client, _behind: Vec::new() }
}

/// Wireshark's own reader finds nothing wrong with what `utcp trace` writes of a port, and finds in it what was sent and whose it is.
fn tshark_reads(lab: &Lab, net: &Net, traced: &Traced<'_>) {
    let Traced { engine, port, addr, client, .. } = traced;
    let nginx = Nginx::start(lab, engine);
    let _ = lab.random_file("www/big", 300_000);
    let file = lab.path("trace.pcapng");
    let trace = lab.run(engine.program("utcp")).args(["trace", port, "--stack", engine.stack(), "-w"]);
    let mut trace = trace.arg(&file).inside(&net.server).spawn();
    wait_until("a trace begins", WAIT, || {
        std::fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(())
    });
    for page in ["hello", "big"] {
        let url = format!("http://{addr}:{}/{page}", nginx.port);
        let curl = lab.run("curl").args(["-sS", "-m", "20", "-o", "/dev/null", &url]);
        let _ = match client {
            Client::Kernel(host) => curl.inside(host),
            Client::Engine(host, engine) => curl.inside(host).under(engine),
        }
        .ok();
    }
    engine.went_through(2);
    trace.signal(libc::SIGINT);
    let _ = trace.end_within(WAIT).ok();
    let read = |words: &[&str]| {
        let end = lab.run("tshark").args(["-n", "-r"]).arg(&file).args(words).finish();
        assert!(end.status.success(), "{port}: {}", end.err);
        let complaints = end.err.lines().filter(|line| !line.starts_with("Running as user \"root\""));
        assert_eq!(complaints.collect::<String>(), "", "{port}");
        end.text()
    };
    assert_eq!(read(&["-Y", "_ws.malformed || _ws.expert.severity == error"]), "", "{port}");
    // The comment of a flow stands beside one of its packets.
    let comments = read(&["-T", "fields", "-e", "frame.comment", "-Y", "frame.comment"]);
    let comment = format!("nginx: {addr}:{} to ", nginx.port);
    assert!(comments.contains(&comment), "{port}: {comments}");
    // What tshark puts together is what was sent.
    let lengths = read(&["-T", "fields", "-e", "http.content_length", "-Y", "http.response"]);
    assert_eq!(lengths.split_whitespace().collect::<Vec<_>>(), ["6", "300000"], "{port}");
}

macro_rules! tshark {
    ($($test:ident: $how:expr;)*) => { $(
        #[test]
        fn $test() {
            needs_utcp_and_root!();
            if !utcp_tests::is_installed("tshark") {
                return not_run("needs tshark");
            }
            let (lab, net) = (Lab::new(stringify!($test)), Net::new());
            let how: for<'l> fn(&'l Lab, &Net) -> Traced<'l> = $how;
            tshark_reads(&lab, &net, &how(&lab, &net));
        }
    )* };
}

tshark! {
    tshark_reads_packet_sockets: |lab, net| traced_xdp(lab, net, "xdp:veths", false);
    tshark_reads_af_xdp: |lab, net| traced_xdp(lab, net, "xdp:veths", true);
    tshark_reads_a_switch: |lab, net| traced_xdp(lab, net, "switch:veths", false);
    tshark_reads_tap: traced_tap;
    tshark_reads_a_pipe: traced_pipe;
    tshark_reads_netmap: traced_netmap;
}

/// `utcp doctor` sees an interface that is down and offloads that are in the way, and sets both right.
#[test]
fn the_doctor_sets_right_what_it_can() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("doctor"), Net::new());
    let engine = Engine::new(&lab);
    let netmap = format!("netmap:{}", net.server.interface);
    let doctor =
        |words: &[&str]| lab.run(engine.program("utcp")).arg("doctor").args(words).inside(&net.server);
    ip(&lab, &net.server, &format!("link set {} down", net.server.interface));
    let before = doctor(&[&netmap]).finish();
    assert!(!before.status.success() && before.text().contains("is down; `ip link set"), "{}", before.text());
    assert!(before.text().contains("tso is on"), "{}", before.text());
    let _ = doctor(&[&netmap, "--fix"]).finish();
    wait_until("the interface is up and nothing is in the way", WAIT, || {
        let told = doctor(&[&netmap]).finish().text();
        (told.contains("ok    offloads:") && told.contains("is up, MTU")).then_some(())
    });
    // But a module that is not there: of no use to a device of netmap, and of no account to others.
    let module = Path::new("/dev/netmap").exists();
    let missing = "netmap: no module (/dev/netmap)";
    for (device, bad) in [(netmap, true), (format!("xdp:{}", net.server.interface), false)] {
        let end = doctor(&[&device]).finish();
        let word = if bad { "BAD " } else { "note" };
        assert_eq!(end.text().contains(&format!("{word}  {missing}")), !module, "{}", end.text());
        assert_eq!(end.status.success(), module || !bad, "{}", end.text());
    }
}

/// What an engine would refuse, `utcp doctor` does not call good: a queue that is not there, a second device, an address.
#[test]
fn the_doctor_reads_devices_as_the_engine_does() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("doctor-list"), Net::new());
    let name = &net.server.interface;
    for (devices, words) in [
        (
            format!("xdp:{name}-9"),
            format!("BAD   queue: {name} has none of number 9; name one up to xdp:{name}-"),
        ),
        (format!("xdp:{name},xdp:nowhere"), "BAD   device: no interface \"nowhere\"".to_owned()),
        ("tap:doc,addr=10.0.0.1".to_owned(), "expected an address of the engine's own".to_owned()),
        (format!("xdp:{name},addr=10.0.0.1/8"), "leave addr= and gw= out".to_owned()),
    ] {
        let end = lab.run(release_file("utcp")).args(["doctor", &devices]).inside(&net.server).finish();
        let told = format!("{}{}", end.text(), end.err);
        assert!(!end.status.success() && told.contains(&words), "{devices}: {told}");
    }
    let end = lab.run(release_file("utcp")).args(["doctor", "tap:doc"]).inside(&net.server).finish();
    assert!(end.status.success() && end.text().contains("note  address: tap:doc"), "{}", end.text());
}
