//! The engine on a NIC in netmap mode, with the kernel behind its host rings: `utcp-netmap-host` stands for module and
//! NIC.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Download, Engine, Host, Lab, Net, Run, Running, WAIT, bracketed, ip, is_root, not_run, on_kernel,
    release_file, repository, wait_until,
};

/// Our host's addresses on the NIC, and the other one's at the end of the cable.
const OURS: [&str; 2] = ["10.88.0.1", "fd00:88::1"];
const THEIRS: [&str; 2] = ["10.88.0.2", "fd00:88::2"];

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

/// An engine on `netmap:nm0` of the server, joined to `wire0` of the client.
fn engine<'l>(lab: &'l Lab, net: &Net, rings: u32, device: &str) -> Engine<'l> {
    let cores = if rings > 1 { "0-1" } else { "0" };
    make_nic(lab, net);
    let engine = Engine::new(lab)
        .inside(&net.server)
        .by(release_file("utcp-netmap-host"))
        .set("UTCP_DEVICE", device)
        .set("NETMAP_HOST_CABLE", "wire0")
        .set("NETMAP_HOST_OUT", lab.path("out").display().to_string())
        .set("NETMAP_HOST_RINGS", rings.to_string())
        .set("UTCP_CORES", cores)
        .run();
    plug_in(lab, net);
    engine
}

/// The devices that NIC and cable stand on are there before the engine, as a NIC would be.
fn make_nic(lab: &Lab, net: &Net) {
    for device in ["nm0", "wire0"] {
        ip(lab, &net.server, &format!("tuntap add dev {device} mode tap"));
    }
    for addr in OURS {
        let len = if addr.contains(':') { "64 nodad" } else { "24" };
        let (len, nodad) = len.split_once(' ').unwrap_or((len, ""));
        ip(lab, &net.server, format!("addr add {addr}/{len} dev nm0 {nodad}").trim_end());
    }
    ip(lab, &net.server, "link set nm0 up");
}

/// The client has the device at the cable's end.
fn plug_in(lab: &Lab, net: &Net) {
    ip(lab, &net.server, &format!("link set wire0 netns {}", net.client.namespace()));
    for addr in THEIRS {
        let len = if addr.contains(':') { "64" } else { "24" };
        let nodad = if addr.contains(':') { " nodad" } else { "" };
        ip(lab, &net.client, &format!("addr add {addr}/{len} dev wire0{nodad}"));
    }
    ip(lab, &net.client, "link set wire0 up");
}

/// Five echoes, one after the other.
fn ping(lab: &Lab, from: &Host, to: &str) {
    let script = format!(
        "import socket, struct
to = '{to}'
v6 = ':' in to
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, 58 if v6 else 1)
s.settimeout(5)
for n in range(5):
    ask = struct.pack('!BBHHH', 128 if v6 else 8, 0, 0, 77, n) + b'utcp' * 10
    if not v6: ask = ask[:2] + struct.pack('!H', checksum(ask)) + ask[4:]
    s.sendto(ask, (to, 0))
    while True:
        got = s.recv(200)
        answer = got if v6 else got[20:]
        if answer[0] == (129 if v6 else 0) and answer[4:] == ask[4:]: break
print('answered')"
    );
    assert_eq!(lab.python(&script).inside(from).ok().text(), "answered\n", "{to}");
}

fn curl<'l>(lab: &'l Lab, host: &Host, url: &str) -> Run<'l> {
    lab.run("curl").args(["-sS", "-g", "-m", "30", url]).inside(host)
}

/// A server of the kernel's, for the files of `lab`'s `www`.
fn http_server(lab: &Lab, host: &Host) -> (u16, Running) {
    let port = lab.port();
    let script = format!(
        "import functools, http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory='{}')
server = Server(('::', {port}), handler)
print('listens')
server.serve_forever()",
        lab.path("www").display()
    );
    let mut server = lab.python(&script).inside(host).spawn();
    server.wait_for_output("listens");
    (port, server)
}

/// Programs of utcp and of the kernel, servers and clients, on one address at once.
fn everybody_is_served(lab: &Lab, net: &Net, engine: &Engine<'_>, rings: u32) {
    for (ours, theirs) in OURS.into_iter().zip(THEIRS) {
        ping(lab, &net.client, ours);
        ping(lab, &net.server, theirs);
    }
    let before = engine.counters();
    // What an administrator's ssh would be: a server that utcp has nothing to do with.
    let kernels = http_server(lab, &net.server);
    let nginx = Nginx::start(lab, engine);
    let file = lab.random_file("www/big", 3_000_000);
    let got = lab.path("got");
    for addr in OURS {
        for port in [nginx.port, kernels.0] {
            let url = format!("http://{}:{port}/big", bracketed(addr));
            let _ = curl(lab, &net.client, &url).arg("-o").arg(&got).ok();
            assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
        }
    }
    engine.went_through(2);
    let other = http_server(lab, &net.client);
    for addr in THEIRS {
        let url = format!("http://{}:{}/big", bracketed(addr), other.0);
        let _ = curl(lab, &net.server, &url).arg("-o").arg(&got).under(engine).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}, from utcp");
        let _ = curl(lab, &net.server, &url).arg("-o").arg(&got).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}, from the kernel");
    }
    engine.went_through(2);
    for addr in OURS {
        ping(lab, &net.client, addr);
    }
    let after = engine.counters();
    // Two transfers of the kernel's each way, of at least 2000 segments each.
    for counter in ["to_host", "from_host"] {
        let of = |ring: u32| after.since(&before, &format!("netmap:nm0-{ring}.{counter}"));
        let all: Vec<u64> = (0..rings).map(of).collect();
        assert!(all.iter().sum::<u64>() > 4000, "{counter}: {all:?}");
        assert!(counter == "from_host" || all.iter().all(|ring| *ring > 500), "{counter}: {all:?}");
    }
    assert_eq!(after.get("netmap:nm0-0.ring_resets"), 0);
    engine.wait_until_empty(WAIT);
}

#[test]
fn the_kernel_goes_on_using_a_nic_in_netmap_mode() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap"), Net::new());
    let engine = engine(&lab, &net, 1, "netmap:nm0");
    everybody_is_served(&lab, &net, &engine, 1);
}

#[test]
fn two_rings_are_two_shards_and_one_kernel() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-rings"), Net::new());
    let engine = engine(&lab, &net, 2, "netmap:nm0");
    everybody_is_served(&lab, &net, &engine, 2);
}

/// A connection that says a word, and another when the gate opens.
struct TwoWords {
    _server: Running,
    client: Running,
    gate: std::fs::File,
}

impl TwoWords {
    fn begin(lab: &Lab, net: &Net, engine: &Engine<'_>) -> Self {
        let port = lab.port();
        let script = format!(
            "import socket
s = socket.create_server(('0.0.0.0', {port}))
print('listens')
c, _ = s.accept()
while data := c.recv(100): c.sendall(data)"
        );
        let mut server = lab.python(&script).under(engine).spawn();
        server.wait_for_output("listens");
        let script = format!(
            "import socket, sys
s = socket.create_connection(('{}', {port}), timeout=30)
for word in [b'one', b'two']:
    s.sendall(word); assert s.recv(100) == word
    print(word.decode())
    sys.stdin.readline()",
            OURS[0]
        );
        let pipe = lab.path("gate");
        let _ = lab.run("mkfifo").arg(&pipe).ok();
        let gate = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
        let mut client = lab.python(&script).inside(&net.client).stdin(&pipe).spawn();
        // Both have it open; whoever looks at what a failed test left would wait for a writer.
        std::fs::remove_file(&pipe).expect("it is there");
        client.wait_for_output("one");
        Self { _server: server, client, gate }
    }

    fn open_gate(&mut self) {
        std::io::Write::write_all(&mut self.gate, b"\n").expect("the client reads it");
    }

    /// The second word comes back.
    fn end(mut self) {
        self.client.wait_for_output("two");
        self.open_gate();
    }
}

fn wait_for_link(engine: &Engine<'_>, trouble: &str) {
    wait_until(trouble, WAIT, || {
        let sockets = engine.sockets();
        sockets.iter().any(|socket| socket.line.contains(trouble)).then_some(())
    });
}

/// The NIC is pulled out under a connection and put back: it goes on, and so does the kernel's traffic.
#[test]
fn a_nic_that_was_pulled_out_is_opened_again() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-out"), Net::new());
    let engine = engine(&lab, &net, 1, "netmap:nm0");
    let mut words = TwoWords::begin(&lab, &net, &engine);
    std::fs::write(lab.path("out"), "").expect("a file");
    wait_for_link(&engine, "link:gone");
    words.open_gate();
    std::fs::remove_file(lab.path("out")).expect("it is there");
    words.end();
    ping(&lab, &net.client, OURS[0]);
    engine.went_through(1);
}

/// The module lets whoever syncs an interface that is down wait, not to be interrupted: the engine must not ask then.
#[test]
fn a_nic_that_is_down_stops_nothing_else() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-down"), Net::new());
    let engine = engine(&lab, &net, 1, "netmap:nm0");
    let mut words = TwoWords::begin(&lab, &net, &engine);
    ip(&lab, &net.server, "link set nm0 down");
    wait_for_link(&engine, "link:down");
    wait_until("the NIC goes down", WAIT, || engine.log().contains("nm0 is down").then_some(()));
    words.open_gate();
    // The shard goes on: programs of this host reach each other.
    let port = lab.port();
    let script = format!(
        "import socket
s = socket.create_server(('127.0.0.1', {port}))
c = socket.create_connection(('127.0.0.1', {port}))
d, _ = s.accept()
for n in range(100):
    c.sendall(b'x'); assert d.recv(1) == b'x'
print('served')"
    );
    assert_eq!(lab.python(&script).under(&engine).ok().text(), "served\n");
    ip(&lab, &net.server, "link set nm0 up");
    words.end();
    ping(&lab, &net.client, OURS[0]);
    engine.went_through(2);
}

/// The NIC carries less than before, and more again, under a connection.
#[test]
fn the_mtu_of_a_nic_shrinks_and_grows() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-mtu"), Net::new());
    let engine = engine(&lab, &net, 1, "netmap:nm0");
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 24_000_000);
    let url = format!("http://{}:{}/big", OURS[0], nginx.port);
    let download = Download::start(&lab, &net.client, &url, "got");
    for (mtu, mss) in [(1500, "mss:1448"), (1000, "mss:948"), (1500, "mss:1448")] {
        ip(&lab, &net.server, &format!("link set nm0 mtu {mtu}"));
        wait_for_link(&engine, mss);
    }
    download.end(&file);
    engine.went_through(1);
}

/// The same where `utcp switch` has the NIC, beside the kernel: it answers while the interface is down, and its stack's
/// connections go on when it is up.
#[test]
fn a_shared_nic_goes_down_and_comes_back() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-shared"), Net::new());
    make_nic(&lab, &net);
    let switch = lab.run(release_file("utcp-netmap-host")).inside(&net.server);
    let mut switch = switch.env("NETMAP_HOST_CABLE", "wire0").env("NETMAP_HOST_SHARED", "nm0").spawn();
    switch.wait_for_output("is shared");
    plug_in(&lab, &net);
    let engine = Engine::new(&lab).inside(&net.server).set("UTCP_DEVICE", "switch:nm0").run();
    for addr in OURS {
        ping(&lab, &net.client, addr);
    }
    let mut words = TwoWords::begin(&lab, &net, &engine);
    ip(&lab, &net.server, "link set nm0 down");
    wait_for_link(&engine, "link:down");
    wait_until("the NIC goes down", WAIT, || switch.stderr().contains("nm0 is down").then_some(()));
    words.open_gate();
    let report = || {
        let ask = lab.run(release_file("utcp")).args(["switch", "nm0", "--report"]).inside(&net.server);
        ask.limit(Duration::from_secs(20)).ok().text()
    };
    assert!(report().contains("client-ports"));
    ip(&lab, &net.server, "link set nm0 up");
    words.end();
    ping(&lab, &net.client, OURS[0]);
    assert!(report().contains("client-ports"));
    engine.went_through(1);
}

/// A port of a switch with a virtio-net header: segments leave long and unchecked, and the switch cuts them for whoever has no
/// such header, as the kernel behind the other port.
#[test]
fn a_switch_cuts_what_the_engine_sends() {
    needs_utcp_and_root!();
    for header in [10, 12] {
        let (lab, net) = (Lab::new(&format!("netmap-switch{header}")), Net::new());
        let own = ["10.88.0.3", "fd00:88::3"];
        ip(&lab, &net.server, "tuntap add dev wire0 mode tap");
        let engine = Engine::new(&lab)
            .inside(&net.server)
            .by(release_file("utcp-netmap-host"))
            .set("UTCP_DEVICE", format!("vale0:a@vnet={header},addr={}/24,addr={}/64", own[0], own[1]))
            .set("NETMAP_HOST_CABLE", "wire0")
            .set("NETMAP_HOST_SWITCH", "vale0:wire")
            .set("UTCP_CORES", "0")
            .run();
        plug_in(&lab, &net);
        for addr in own {
            ping(&lab, &net.client, addr);
        }
        let nginx = Nginx::start(&lab, &engine);
        let file = lab.random_file("www/big", 3_000_000);
        let got = lab.path("got");
        let other = http_server(&lab, &net.client);
        for (own, theirs) in own.into_iter().zip(THEIRS) {
            let before = engine.counters();
            let url = format!("http://{}:{}/big", bracketed(own), nginx.port);
            let _ = curl(&lab, &net.client, &url).arg("-o").arg(&got).ok();
            assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
            let sent = engine.counters().since(&before, "vale0:a.tx_frames");
            assert!(sent < 3_000_000 / 1448, "{sent} frames for three megabytes");
            let url = format!("http://{}:{}/big", bracketed(theirs), other.0);
            let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).under(&engine).ok();
            assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
        }
        engine.went_through(2);
        engine.wait_until_empty(WAIT);
    }
}

/// Without the kernel: two rings, an address of the engine's own on both.
#[test]
fn a_host_of_its_own_has_all_rings_of_a_nic() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-station"), Net::new());
    let own = ["10.88.0.3", "fd00:88::3"];
    let device = format!("netmap:nm0,addr={}/24,addr={}/64", own[0], own[1]);
    let engine = engine(&lab, &net, 2, &device);
    for addr in own {
        ping(&lab, &net.client, addr);
    }
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 3_000_000);
    let got = lab.path("got");
    let other = http_server(&lab, &net.client);
    for (own, theirs) in own.into_iter().zip(THEIRS) {
        let url = format!("http://{}:{}/big", bracketed(own), nginx.port);
        let _ = curl(&lab, &net.client, &url).arg("-o").arg(&got).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
        let url = format!("http://{}:{}/big", bracketed(theirs), other.0);
        let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).under(&engine).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
    }
    engine.went_through(2);
    let counters = engine.counters();
    for ring in 0..2 {
        assert!(counters.get(&format!("netmap:nm0-{ring}.rx_frames")) > 500, "frames came to both rings");
        assert_eq!(counters.get(&format!("netmap:nm0-{ring}.to_host")), 0);
    }
    engine.wait_until_empty(WAIT);
}

/// The host's rings alone: a host of its own, whose only neighbour is the kernel of this one.
#[test]
fn the_kernel_is_a_neighbour_by_the_hosts_rings() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("netmap-neighbour"), Net::new());
    let own = ["10.88.0.3", "fd00:88::3"];
    let device = format!("netmap:nm0^,addr={}/24,addr={}/64", own[0], own[1]);
    let engine = engine(&lab, &net, 1, &device);
    for addr in own {
        ping(&lab, &net.server, addr);
    }
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 3_000_000);
    let got = lab.path("got");
    let kernels = http_server(&lab, &net.server);
    for (own, kernel) in own.into_iter().zip(OURS) {
        let url = format!("http://{}:{}/big", bracketed(own), nginx.port);
        let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
        let url = format!("http://{}:{}/big", bracketed(kernel), kernels.0);
        let _ = curl(&lab, &net.server, &url).arg("-o").arg(&got).under(&engine).ok();
        assert_eq!(lab.digest(&got), lab.digest(&file), "{url}");
    }
    engine.went_through(2);
    engine.wait_until_empty(WAIT);
}

/// `netmap-check` as `tests/netmap/run --build` makes it: one file, which an empty root folder is enough for, and being the first
/// process of a container. (The first one of a machine it is by `kthreadd` beside it.)
#[test]
fn the_check_needs_nothing_but_the_kernel() {
    needs_utcp_and_root!();
    let lab = Lab::new("netmap-check");
    let root = lab.path("root");
    std::fs::create_dir_all(&root).expect("a folder");
    // With the environment that cargo needs.
    let mut build = std::process::Command::new(repository().join("tests/netmap/run"));
    let built = build.arg("--build").arg(root.join("netmap-check")).output().expect("it starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let container = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net"];
    for around in [&[][..], &container] {
        let words: Vec<&str> = around.iter().copied().chain(["chroot"]).collect();
        let check = lab.run(words[0]).args(&words[1..]).arg(&root).arg("/netmap-check");
        let told = check.limit(Duration::from_secs(120)).ok().text();
        assert!(told.contains(" passed, 0 failed, "), "{told}");
        assert!(told.contains("ok    the provider: no buffer is lost or in two places"), "{told}");
    }
    let left: Vec<_> =
        std::fs::read_dir(&root).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["netmap-check"], "it made nothing there");
}
