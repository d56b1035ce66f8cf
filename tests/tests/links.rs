//! The link below the engine goes down, comes back, and goes for good.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Download, Engine, Host, Lab, Net, WAIT, cpu_ticks, ip, is_root, not_run, on_kernel, wait_until,
};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's own links are not our business");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

/// A connection that is busy for so many seconds: messages of 100 bytes or so many, one after the other. Prints `lived` at its end.
const CHATTER: &str = "
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
s.settimeout(20)
print('connected', flush=True)
size = int((sys.argv + ['100'])[4])
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    s.sendall(b'x' * size)
    left = size
    while left:
        got = len(s.recv(left))
        assert got
        left -= got
    time.sleep(0.005)
print('lived')";

/// Its other end.
const ECHO: &str = "
import socket, sys, threading
def serve(c):
    while data := c.recv(65536): c.sendall(data)
s = socket.socket(socket.AF_INET6)
s.bind(('::', int(sys.argv[1])))
s.listen()
print('listens', flush=True)
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";

#[track_caller]
fn wait_for_state(engine: &Engine<'_>, words: &str) {
    wait_until(&format!("`utcp ss` says {words}"), WAIT, || {
        engine.sockets().iter().any(|socket| socket.line.contains(words)).then_some(())
    });
}

/// What the engine's threads burn in a second without work.
#[track_caller]
fn stays_idle(engine: &Engine<'_>) {
    let pid = engine.pid().expect("it runs");
    wait_until("the engine sleeps", WAIT, || {
        let before = cpu_ticks(pid);
        std::thread::sleep(Duration::from_millis(500));
        (cpu_ticks(pid) - before < 10).then_some(())
    });
}

fn goes_down_and_comes_back(
    lab: &Lab,
    host: &Host,
    client: &Host,
    engine: &Engine<'_>,
    addr: &str,
    interface: &str,
) {
    let nginx = Nginx::start(lab, engine);
    let file = lab.random_file("www/big", 24_000_000);
    let download = Download::start(lab, client, &format!("http://{addr}:{}/big", nginx.port), "got");
    wait_for_state(engine, "ESTAB");
    ip(lab, host, &format!("link set {interface} down"));
    wait_for_state(engine, "link:down");
    let why = engine.ask(&format!("why {}", nginx.port)).expect("it answers");
    assert!(why.contains("(which is down)"), "{why}");
    std::thread::sleep(Duration::from_secs(1));
    ip(lab, host, &format!("link set {interface} up"));
    download.end(&file);
    engine.went_through(1);
}

#[test]
fn connections_outlive_a_link_that_goes_down() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("link-down"), Net::new());
    let host = &net.server;
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run();
    goes_down_and_comes_back(&lab, host, &net.client, &engine, &host.addr, &host.interface);
}

/// The other end of the cable is pulled out: the interface is up, and nothing comes by it.
#[test]
fn connections_outlive_a_lost_carrier() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("carrier"), Net::new());
    let (host, client) = (&net.server, &net.client);
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run();
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 24_000_000);
    let download = Download::start(&lab, client, &format!("http://{}:{}/big", host.addr, nginx.port), "got");
    wait_for_state(&engine, "ESTAB");
    ip(&lab, client, &format!("link set {} down", client.interface));
    wait_for_state(&engine, "link:no-carrier");
    let why = engine.ask(&format!("why {}", nginx.port)).expect("it answers");
    assert!(why.contains("(which has no carrier)"), "{why}");
    ip(&lab, client, &format!("link set {} up", client.interface));
    wait_until("the carrier is back", WAIT, || {
        (!engine.sockets().iter().any(|socket| socket.line.contains("link:"))).then_some(())
    });
    download.end(&file);
    engine.went_through(1);
}

#[test]
fn connections_in_ipv6_outlive_a_link_that_goes_down() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("link-down6"), Net::new());
    let host = &net.server;
    for end in [host, &net.client] {
        let sysctl = format!("net.ipv6.conf.{}.keep_addr_on_down=1", end.interface);
        let _ = lab.run("sysctl").args(["-w", &sysctl]).inside(end).ok();
    }
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run();
    goes_down_and_comes_back(&lab, host, &net.client, &engine, &format!("[{}]", host.addr6), &host.interface);
}

/// A link that goes down takes its IPv6 addresses; whoever sets interfaces up puts them on again. One may also be taken off and put on
/// while all else stays. The first segments come before we can have heard of it.
#[test]
fn connections_outlive_addresses_that_come_back() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("addresses-back"), Net::new());
    let host = &net.server;
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run();
    let port = lab.port().to_string();
    let mut echo = lab.python(ECHO).arg(&port).under(&engine).spawn();
    echo.wait_for_output("listens");
    let talk = |addr: &str| {
        let chatter = lab.python(CHATTER).args([addr, &port, "12"]).inside(&net.client);
        let mut chatter = chatter.limit(Duration::from_secs(40)).spawn();
        chatter.wait_for_output("connected");
        chatter
    };
    let mut both = [talk(&host.addr), talk(&host.addr6)];
    engine.went_through(2);
    let ip = |words: &str| ip(&lab, host, &format!("{words} dev {}", host.interface));
    // The engine sleeps over it, and peers send again meanwhile.
    let unnoticed = |change: &dyn Fn()| {
        let pid = engine.pid().expect("it runs").cast_signed();
        // SAFETY: signals to a process of ours.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        change();
        std::thread::sleep(Duration::from_millis(1500));
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGCONT) };
    };
    ip("link set down");
    wait_for_state(&engine, "link:down");
    unnoticed(&|| {
        ip("link set up");
        ip(&format!("addr add {}/64 nodad", host.addr6));
    });
    std::thread::sleep(Duration::from_secs(1));
    for (address, how) in [(format!("{}/24", host.addr), ""), (format!("{}/64", host.addr6), " nodad")] {
        ip(&format!("addr del {address}"));
        std::thread::sleep(Duration::from_millis(300));
        unnoticed(&|| ip(&format!("addr add {address}{how}")));
        std::thread::sleep(Duration::from_secs(1));
    }
    for chatter in &mut both {
        assert!(chatter.end_within(Duration::from_secs(40)).ok().text().contains("lived"));
    }
}

/// The interface becomes a bridge's member, its addresses move there, and everything is as before again: on the way that frames of a veth
/// pair take, and on AF_XDP's. The bridge has a link address of its own or its member's.
#[test]
fn connections_outlive_a_bridge() {
    needs_utcp_and_root!();
    for faults in [None, Some("loss=0%")] {
        let (lab, net) = (Lab::new("bridged"), Net::new());
        let (host, device) = (&net.server, &net.server.interface);
        let mut engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{device}"));
        if let Some(faults) = faults {
            engine = engine.set("UTCP_FAULTS", faults);
        }
        let engine = engine.run();
        let port = lab.port().to_string();
        let mut echo = lab.python(ECHO).arg(&port).under(&engine).spawn();
        echo.wait_for_output("listens");
        let talk = |addr: &str, bytes: &str| {
            let chatter = lab.python(CHATTER).args([addr, &port, "6", bytes]).inside(&net.client);
            let mut chatter = chatter.limit(Duration::from_secs(40)).spawn();
            chatter.wait_for_output("connected");
            chatter
        };
        let ways = [(&host.addr, "100"), (&host.addr6, "100"), (&host.addr, "30000")];
        let mut all = ways.map(|(addr, bytes)| talk(addr, bytes));
        engine.went_through(3);
        let why = |words: &str| {
            let why = || engine.ask(&format!("why {port}")).filter(|why| why.contains(words)).map(drop);
            wait_until(&format!("`utcp why` says {words:?}"), WAIT, why);
        };
        for own in ["", " address 02:00:00:00:77:b0"] {
            let ip = |words: &str| ip(&lab, host, words);
            let move_addresses = |from: &str, to: &str| {
                for (address, how) in
                    [(format!("{}/24", host.addr), ""), (format!("{}/64", host.addr6), " nodad")]
                {
                    ip(&format!("addr del {address} dev {from}"));
                    ip(&format!("addr add {address} dev {to}{how}"));
                }
            };
            ip(&format!("link add br0{own} type bridge"));
            ip("link set br0 up");
            ip(&format!("link set {device} master br0"));
            move_addresses(device, "br0");
            wait_for_state(&engine, "path:xdp:br0-0");
            why("(a member of br0, a bridge, which this engine drives, too)");
            std::thread::sleep(Duration::from_millis(500));
            ip(&format!("link set {device} nomaster"));
            move_addresses("br0", device);
            wait_for_state(&engine, &format!("path:xdp:{device}-0"));
            std::thread::sleep(Duration::from_millis(500));
            ip("link del br0");
        }
        for chatter in &mut all {
            assert!(chatter.end_within(Duration::from_secs(40)).ok().text().contains("lived"), "{faults:?}");
        }
    }
}

#[test]
fn connections_outlive_a_tap_device_that_goes_down() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("tap-down"), Net::new());
    let host = &net.server;
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", "tap:utcp0,addr=10.9.0.2/24").run();
    ip(&lab, host, "addr add 10.9.0.1/24 dev utcp0");
    goes_down_and_comes_back(&lab, host, host, &engine, "10.9.0.2", "utcp0");
}

/// The device is removed under a running download: the engine says so, sleeps, and serves this host as before.
#[test]
fn the_engine_outlives_its_device() {
    needs_utcp_and_root!();
    for (device, interface, addr) in [("xdp", "veths", "10.77.0.1"), ("tap", "utcp0", "10.9.0.2")] {
        let (lab, net) = (Lab::new("device-gone"), Net::new());
        let host = &net.server;
        let options = if device == "tap" { ",addr=10.9.0.2/24" } else { "" };
        let string = format!("{device}:{interface}{options}");
        let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", string).run();
        let client = if device == "tap" {
            ip(&lab, host, "addr add 10.9.0.1/24 dev utcp0");
            host
        } else {
            &net.client
        };
        let nginx = Nginx::start(&lab, &engine);
        let _ = lab.random_file("www/big", 50_000_000);
        let url = format!("http://{addr}:{}/big", nginx.port);
        let _download = Download::start(&lab, client, &url, "got");
        wait_for_state(&engine, "ESTAB");
        ip(&lab, host, &format!("link del {interface}"));
        wait_for_state(&engine, "link:gone");
        let why = engine.ask(&format!("why {}", nginx.port)).expect("it answers");
        assert!(why.contains("(which is gone"), "{why}");
        stays_idle(&engine);
        let url = format!("http://127.0.0.1:{}/hello", nginx.port);
        let page = lab.run("curl").args(["-sS", "-m", "20", &url]).under(&engine).ok();
        assert_eq!(page.text(), "hello\n");
    }
}
