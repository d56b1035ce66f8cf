//! The host changes under a running engine: devices removed and made again, addresses, MTU, neighbours, bridges; and
//! what is said about it.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Download, Engine, Host, Lab, Net, WAIT, bracketed, ip, is_root, not_run, on_kernel, release_file,
    wait_until,
};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's own devices are not our business");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface))
}

/// A download that lasts until [`same_file`].
fn download(lab: &Lab, host: &Host, url: &str) -> Download {
    Download::start(lab, host, url, "got")
}

#[track_caller]
fn wait_for_state(engine: &Engine<'_>, words: &str) {
    wait_until(&format!("`utcp ss` says {words}"), WAIT, || {
        engine.sockets().iter().any(|socket| socket.line.contains(words)).then_some(())
    });
}

#[track_caller]
fn wait_for_why(engine: &Engine<'_>, port: u16, words: &str) {
    let mut last = String::new();
    wait_until(&format!("`utcp why {port}` says {words:?}"), WAIT, || {
        last = engine.ask(&format!("why {port}"))?;
        last.contains(words).then_some(())
    });
}

#[track_caller]
fn same_file(lab: &Lab, download: Download) {
    download.end(&lab.path("www/big"));
}

fn get(lab: &Lab, host: &Host, url: &str) -> String {
    lab.run("curl").args(["-sS", "-m", "20", url]).inside(host).ok().text()
}

/// What `connect` from a program under the engine says.
fn connect(lab: &Lab, engine: &Engine<'_>, addr: &str, port: u16) -> String {
    let script = format!(
        "import errno, socket
s = socket.socket(socket.AF_INET6 if ':' in '{addr}' else socket.AF_INET)
s.settimeout(15)
try:
    s.connect(socket.getaddrinfo('{addr}', {port})[0][4])
    print('connected')
except OSError as error:
    print(errno.errorcode.get(error.errno, error))"
    );
    lab.python(&script).under(engine).ok().text()
}

/// Both ends of the cable as [`Net::new`] makes them.
fn make_again(lab: &Lab, net: &Net) {
    let (server, client) = (&net.server, &net.client);
    let link = format!(
        "link add {} netns {} type veth peer name {} netns {}",
        server.interface,
        server.namespace(),
        client.interface,
        client.namespace()
    );
    ip(lab, server, &link);
    for host in [client, server] {
        ip(lab, host, &format!("link set {} up", host.interface));
        ip(lab, host, &format!("addr add {}/24 dev {}", host.addr, host.interface));
        ip(lab, host, &format!("addr add {}/64 dev {} nodad", host.addr6, host.interface));
    }
}

/// The device is removed under a download. New sockets use the kernel, and `utcp why` says why; when the device is there
/// again the download goes on, and new connections are served.
#[test]
fn a_device_is_removed_and_made_again() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("made-again"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    let hello = format!("http://{}:{}/hello", net.server.addr, nginx.port);
    let file = download(&lab, &net.client, &hello.replace("hello", "big"));
    wait_for_state(&engine, "ESTAB");
    for _ in 0..2 {
        ip(&lab, &net.server, &format!("link del {}", net.server.interface));
        wait_for_state(&engine, "link:gone");
        wait_for_why(&engine, nginx.port, "(which is gone");
        assert_eq!(connect(&lab, &engine, &net.client.addr, 5), "ENETUNREACH\n");
        wait_for_why(&engine, 5, "runs on the kernel: no route leads there");
        make_again(&lab, &net);
        wait_until("the device is back", WAIT, || {
            let why = engine.ask(&format!("why {}", nginx.port))?;
            (!why.contains("gone")).then_some(())
        });
    }
    assert_eq!(get(&lab, &net.client, &hello), "hello\n");
    same_file(&lab, file);
    engine.went_through(2);
    // Out again, too.
    assert_eq!(connect(&lab, &engine, &net.client.addr, 5), "ECONNREFUSED\n");
    let accepted = engine.counters().get("accepts");
    assert_eq!(get(&lab, &net.client, &hello), "hello\n");
    assert_eq!(engine.counters().get("accepts"), accepted + 1, "it went through the kernel");
}

/// The link carries less than before, and more again: segments get shorter while a download runs, and longer.
#[test]
fn the_mtu_shrinks_and_grows() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("mtu"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    let url = format!("http://{}:{}/big", net.server.addr, nginx.port);
    let file = download(&lab, &net.client, &url);
    wait_for_state(&engine, "mss:1448");
    // A veth drops what its peer's MTU does not allow.
    ip(&lab, &net.server, &format!("link set {} mtu 1000", net.server.interface));
    ip(&lab, &net.client, &format!("link set {} mtu 1000", net.client.interface));
    wait_for_state(&engine, "mss:948");
    for host in [&net.client, &net.server] {
        ip(&lab, host, &format!("link set {} mtu 1500", host.interface));
    }
    wait_for_state(&engine, "mss:1448");
    same_file(&lab, file);
    let file = download(&lab, &net.client, &url);
    wait_for_state(&engine, "mss:1448");
    same_file(&lab, file);
    engine.went_through(2);
}

/// An interface gets another name in the middle of a download. Older kernels want it down for that.
#[test]
fn the_interface_is_renamed() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("renamed"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    let url = format!("http://{}:{}/big", net.server.addr, nginx.port);
    let file = download(&lab, &net.client, &url);
    wait_for_state(&engine, "ESTAB");
    let device = &net.server.interface;
    ip(&lab, &net.server, &format!("link set {device} down"));
    ip(&lab, &net.server, &format!("link set {device} name other0"));
    ip(&lab, &net.server, "link set other0 up");
    wait_for_why(&engine, nginx.port, &format!("xdp:{device} (now other0)"));
    same_file(&lab, file);
    let file = download(&lab, &net.client, &url);
    same_file(&lab, file);
    engine.went_through(2);
}

/// A peer to whom nothing may be sent, by a route or a rule: its connections stand still and go on, and new ones get no answer.
#[test]
fn a_peer_is_barred() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("barred"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    for (addr, peer, bar) in [
        (net.server.addr.clone(), &net.client.addr, "route add blackhole"),
        (format!("[{}]", net.server.addr6), &net.client.addr6, "-6 route add unreachable"),
        (net.server.addr.clone(), &net.client.addr, "rule add prohibit to"),
    ] {
        let url = format!("http://{addr}:{}/big", nginx.port);
        let mut file = download(&lab, &net.client, &url);
        wait_for_state(&engine, "ESTAB");
        ip(&lab, &net.server, &format!("{bar} {peer}"));
        wait_for_state(&engine, "next-hop:barred");
        let other = lab.run("curl").args(["-s", "-m", "1", "-o", "/dev/null", &url]).inside(&net.client);
        assert_eq!(other.finish().status.code(), Some(28), "{bar}: it waits in vain");
        assert!(file.goes_on(), "{bar}");
        ip(&lab, &net.server, &format!("{} {peer}", bar.replace("add", "del")));
        same_file(&lab, file);
        engine.went_through(1);
    }
}

/// An address that comes is served, as a server's and as a client's; one that goes is the kernel's.
#[test]
fn addresses_come_and_go() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("addresses"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let device = &net.server.interface;
    ip(&lab, &net.server, &format!("addr add 10.77.1.1/24 dev {device}"));
    ip(&lab, &net.client, &format!("addr add 10.77.1.2/24 dev {}", net.client.interface));
    let url = format!("http://10.77.1.1:{}/hello", nginx.port);
    wait_until("the new address is served", WAIT, || {
        let before = engine.counters().get("accepts");
        assert_eq!(get(&lab, &net.client, &url), "hello\n");
        (engine.counters().get("accepts") > before).then_some(())
    });
    engine.went_through(1);
    let kernel = Nginx::start_on_kernel(&lab, Some(&net.client));
    let url = format!("http://10.77.1.2:{}/hello", kernel.port);
    let page = lab.run("curl").args(["-sS", "-m", "20", &url]).under(&engine).ok();
    assert_eq!(page.text(), "hello\n");
    engine.went_through(1);
    // Gone here, and behind another interface of the client's host: routed there, it is not our business.
    ip(&lab, &net.server, &format!("addr del 10.77.1.1/24 dev {device}"));
    wait_until("its ports are given back", WAIT, || {
        engine.log().contains("no address 10.77.1.1").then_some(())
    });
}

/// A neighbour gets another link address and says so.
#[test]
fn a_neighbour_moves() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("moves"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    let client = &net.client;
    let sysctl = format!("net.ipv4.conf.{}.arp_notify=1", client.interface);
    let _ = lab.run("sysctl").args(["-w", &sysctl]).inside(client).ok();
    let file = download(&lab, client, &format!("http://{}:{}/big", net.server.addr, nginx.port));
    wait_for_state(&engine, "ESTAB");
    // The kernel takes no second news of a neighbour within a second (locktime).
    std::thread::sleep(Duration::from_millis(1100));
    ip(&lab, client, &format!("link set {} address 02:00:00:00:77:99", client.interface));
    same_file(&lab, file);
    engine.went_through(1);
}

/// The same by neighbour discovery: an advertisement that nobody asked for.
#[test]
fn a_neighbour_moves_in_ipv6() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("moves6"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 24_000_000);
    let client = &net.client;
    // The addresses stay, and the link is told of their new place.
    for setting in ["ndisc_notify=1", "keep_addr_on_down=1"] {
        let sysctl = format!("net.ipv6.conf.{}.{setting}", client.interface);
        let _ = lab.run("sysctl").args(["-w", &sysctl]).inside(client).ok();
    }
    let file = download(&lab, client, &format!("http://[{}]:{}/big", net.server.addr6, nginx.port));
    wait_for_state(&engine, "ESTAB");
    ip(&lab, client, &format!("link set {} address 02:00:00:00:77:99", client.interface));
    same_file(&lab, file);
    engine.went_through(1);
}

/// The host has two cables to the client. The route to it changes under a download, and the old cable is cut: segments
/// leave by the other one, and answers to the address of the first are taken there.
fn the_route_changes(name: &str, v6: bool) {
    let (lab, net) = (Lab::new(name), Net::new());
    let (host, client) = (&net.server, &net.client);
    let second = format!(
        "link add second netns {} type veth peer name second netns {}",
        host.namespace(),
        client.namespace()
    );
    ip(&lab, host, &second);
    // The far address, and on the second cable ours and theirs.
    let (far, ours, theirs) =
        if v6 { ("fd00:88::2", "fd00:78::1", "fd00:78::2") } else { ("10.88.0.2", "10.78.0.1", "10.78.0.2") };
    let (at, over) = if v6 { (&host.addr6, &client.addr6) } else { (&host.addr, &client.addr) };
    let (mask, nodad, alone) = if v6 { (64, " nodad", 128) } else { (24, "", 32) };
    let route = if v6 { "-6 route" } else { "route" };
    for (end, addr) in [(host, ours), (client, theirs)] {
        ip(&lab, end, &format!("addr add {addr}/{mask} dev second{nodad}"));
        ip(&lab, end, "link set second up");
    }
    ip(&lab, client, &format!("addr add {far}/{alone} dev lo"));
    ip(&lab, host, &format!("{route} add {far} via {over}"));
    ip(&lab, client, &format!("{route} add {at} via {at} src {far}"));
    let devices = format!("xdp:{},xdp:second", host.interface);
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", devices).run();
    let nginx = Nginx::start(&lab, &engine);
    let _ = lab.random_file("www/big", 48_000_000);
    let url = format!("http://{}:{}", bracketed(at), nginx.port);
    // The very first connection may have come before the engine heard of the listener's other family.
    wait_until("nginx is served", WAIT, || {
        let _ = get(&lab, client, &format!("{url}/hello"));
        (engine.counters().get("accepts") > 0).then_some(())
    });
    let file = download(&lab, client, &format!("{url}/big"));
    wait_for_state(&engine, &format!("path:xdp:{}-0", host.interface));
    ip(&lab, host, &format!("{route} replace {far} via {theirs}"));
    ip(&lab, client, &format!("{route} replace {at} via {ours} src {far}"));
    wait_for_state(&engine, "path:xdp:second-0");
    ip(&lab, client, &format!("link set {} down", client.interface));
    same_file(&lab, file);
    engine.went_through(1);
}

#[test]
fn the_route_changes_to_another_device() {
    needs_utcp_and_root!();
    the_route_changes("route", false);
}

#[test]
fn the_route_changes_to_another_device_in_ipv6() {
    needs_utcp_and_root!();
    the_route_changes("route6", true);
}

/// However the engine ends, nothing of it stays on the interface, and its listeners are the kernel's.
#[test]
fn a_killed_engine_leaves_no_program_behind() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("killed"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let device = format!("xdp:{}", net.server.interface);
    let doctor = || {
        let told = lab.run(engine.program("utcp")).args(["doctor", &device]).inside(&net.server).finish();
        String::from_utf8_lossy(&told.out).contains("an engine of utcp drives")
    };
    assert!(doctor(), "the doctor sees it");
    engine.kill();
    wait_until("the program is detached", WAIT, || (!doctor()).then_some(()));
    let url = format!("http://{}:{}/hello", net.server.addr, nginx.port);
    assert_eq!(get(&lab, &net.client, &url), "hello\n");
}

/// A program that asks for another device than the running engine has is told so, and served.
#[test]
fn another_device_than_the_engines_is_named() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("other-device"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let talk = "import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
print('talked')";
    let end = lab.python(talk).under(&engine).env("UTCP_DEVICE", "xdp:other0").ok();
    assert_eq!(end.text(), "talked\n");
    let line = format!(
        "utcp: UTCP_DEVICE=xdp:other0 has no effect: an engine runs already and has xdp:{}; stop it, or name another \
         with UTCP_STACK\n",
        net.server.interface
    );
    assert_eq!(end.err, line);
    let same = format!(" xdp:{} ,", net.server.interface);
    for devices in ["", &same] {
        let end = lab.python(talk).under(&engine).env("UTCP_DEVICE", devices).ok();
        assert_eq!((end.text().as_str(), end.err.as_str()), ("talked\n", ""));
    }
}

/// A member of a bridge gets no packets of its own: the bridge has the address. An engine with the member drives the bridge as well, unless another
/// engine does; then `utcp why` says so.
#[test]
fn a_member_of_a_bridge_is_served_by_the_bridge() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("bridge"), Net::new());
    let (host, client) = (&net.server, &net.client);
    let commands = [
        "link add br0 type bridge".to_owned(),
        format!("addr flush dev {}", host.interface),
        format!("link set {} master br0", host.interface),
        format!("addr add {}/24 dev br0", host.addr),
        "link set br0 up".to_owned(),
    ];
    for command in &commands {
        ip(&lab, host, command);
    }
    let doctor = lab.run(release_file("utcp")).args(["doctor", &format!("xdp:{}", host.interface)]);
    let told = doctor.inside(host).finish().text();
    let words =
        "note  device: it is a member of br0, a bridge, which has the addresses: the engine drives that, too";
    assert!(told.contains(words) && !told.contains("BAD   device"), "{told}");
    let kernel = Nginx::start_on_kernel(&lab, Some(client));
    let url = format!("http://{}:{}/hello", client.addr, kernel.port);
    let page =
        |engine: &Engine<'_>| lab.run("curl").args(["-sS", "-m", "20", &url]).under(engine).ok().text();
    let member = on_device(&lab, host).run();
    assert_eq!(page(&member), "hello\n");
    member.went_through(1);
    let nginx = Nginx::start(&lab, &member);
    let state = format!("xdp:{} (a member of br0, a bridge, which this engine drives, too)", host.interface);
    wait_for_why(&member, nginx.port, &state);
    assert_eq!(get(&lab, client, &format!("http://{}:{}/hello", host.addr, nginx.port)), "hello\n");
    member.went_through(1);
    drop(nginx);
    member.kill();
    let bridge = Engine::new(&lab).inside(host).set("UTCP_DEVICE", "xdp:br0").run();
    assert_eq!(page(&bridge), "hello\n");
    bridge.went_through(1);
    assert!(bridge.log().contains("runs in generic mode"), "{}", bridge.log());
    let member = on_device(&lab, host).run();
    assert_eq!(page(&member), "hello\n");
    wait_for_why(
        &member,
        kernel.port,
        "its route leaves by br0 (a bridge), which is no device of this engine; xdp:",
    );
    let nginx = Nginx::start(&lab, &member);
    wait_for_why(
        &member,
        nginx.port,
        "packets to its addresses don't come by this interface; device xdp:br0: the XDP hook of br0 is in use",
    );
}

/// Link-local addresses name their interface.
#[test]
fn link_local_addresses() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("link-local"), Net::new());
    for (host, addr) in [(&net.server, "fe80::5"), (&net.client, "fe80::6")] {
        ip(&lab, host, &format!("addr add {addr}/64 dev {} nodad", host.interface));
    }
    let engine = on_device(&lab, &net.server).run();
    let script = |peer: &str, device: &str, port: u16| {
        format!(
            "import socket
s = socket.create_connection(('{peer}%{device}', {port}), 15)
print(s.recv(100).decode(), end='')
print(s.getpeername()[3] == socket.if_nametoindex('{device}'))"
        )
    };
    let port = lab.port();
    let serve = format!(
        "import socket
server = socket.create_server(('::', {port}), family=socket.AF_INET6)
print('listens', flush=True)
c, peer = server.accept()
c.sendall(b'hello ')
print(peer[3] != 0)"
    );
    for (server_host, client_host, addr, ours) in
        [(&net.client, &net.server, "fe80::6", false), (&net.server, &net.client, "fe80::5", true)]
    {
        let server = lab.python(&serve);
        let mut server = if ours { server.under(&engine) } else { server.inside(server_host) }.spawn();
        wait_until("the server listens", WAIT, || server.stdout().contains("listens").then_some(()));
        let client = lab.python(&script(addr, &client_host.interface, port));
        let client = if ours { client.inside(client_host) } else { client.under(&engine) };
        assert_eq!(client.ok().text(), "hello True\n");
        assert_eq!(server.end_within(WAIT).ok().text(), "listens\nTrue\n");
        engine.went_through(1);
    }
}

/// A listener that becomes the kernel's has new connections there at once, while those that it had go on where they are.
#[test]
fn a_listener_becomes_the_kernels_under_its_connections() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("left"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let script = lab.file("left.py", include_str!("scripts/left_to_kernel.py"));
    for how in ["group", "option"] {
        let port = lab.port().to_string();
        let before = engine.counters();
        let server = lab.run("python3").arg(&script).args(["serve", how, &net.server.addr, &port]);
        let mut server = server.under(&engine).spawn();
        server.wait_for_output("listens");
        let ask = lab.run("python3").arg(&script).args(["ask", &net.server.addr, &port]);
        let end = ask.inside(&net.client).limit(Duration::from_secs(60)).ok();
        assert_eq!(end.text(), "b'done'\nb'second'\nb'third'\nb'there' b''\n", "{how}");
        let _ = server.end_within(Duration::from_secs(20)).ok();
        assert_eq!(engine.counters().since(&before, "accepts"), 1, "{how}: utcp's was the first alone");
    }
}

const CONTROLLERS: &str = "import socket
def name(one): return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b'\\0').decode()
def ends(server):
    client = socket.create_connection(server.getsockname()); return name(client), name(server.accept()[0])
plain = socket.create_server(('127.0.0.1', 0)); print(name(plain), *ends(plain))
for late in [False, True]:
    asks = socket.create_server(('127.0.0.1', 0)) if late else socket.socket()
    asks.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b'cubic')
    if not late: asks.bind(('127.0.0.1', 0)); asks.listen(5)
    print(name(asks), *ends(asks))";

/// The system's default of congestion control is a connection's, and told as such; what a listener asks for is its connections'.
#[test]
fn the_default_congestion_control_is_the_systems() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("controllers"), Net::new());
    let set = lab.run("sysctl").args(["-qw", "net.ipv4.tcp_congestion_control=reno"]).inside(&net.server);
    let _ = set.ok();
    let engine = Engine::new(&lab).inside(&net.server).run();
    let end = lab.python(CONTROLLERS).under(&engine).ok();
    assert_eq!(end.text(), "reno reno reno\ncubic reno cubic\ncubic reno cubic\n");
    engine.went_through(3);
}
