//! Two hosts and a cable: the server under utcp on AF_XDP with the interface's own address, clients on the
//! kernel and under utcp, and everybody else on that address as before.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::redis::Redis;
use utcp_tests::{Engine, Host, Lab, Net, Run, WAIT, is_root, not_run, on_kernel, wait_until};

const BIG: usize = 200_000_000;

macro_rules! needs_root {
    () => {
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

/// An engine on `host`'s interface that is not started: the first program does it.
fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface))
}

fn url(host: &Host, nginx: &Nginx, path: &str) -> String {
    format!("http://{}:{}/{path}", host.addr, nginx.port)
}

fn curl<'l>(lab: &'l Lab, host: &Host, url: &str) -> Run<'l> {
    lab.run("curl").args(["-sS", "-m", "20", url]).inside(host)
}

#[track_caller]
fn same_file_arrives(lab: &Lab, len: usize, run: impl Fn(Run<'_>) -> Run<'_>, url: &str) {
    let file = lab.random_file("www/big", len);
    let got = lab.path("got");
    let curl = lab.run("curl").args(["-sS", "-m", "100", "-o"]).arg(&got).arg(url);
    let _ = run(curl).limit(Duration::from_secs(110)).ok();
    let sum = |path| lab.run("sha256sum").arg(path).ok().text()[..64].to_owned();
    assert_eq!(sum(&got), sum(&file));
}

#[test]
fn a_page_for_a_kernel_client() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-page"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let page = curl(&lab, &net.client, &url(&net.server, &nginx, "hello")).ok();
    assert_eq!(page.text(), "hello\n");
    engine.went_through(1);
    if !on_kernel() {
        assert!(engine.counters().get("rx_frames") > 0);
    }
}

#[test]
fn a_page_over_ipv6() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-page6"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let url = format!("http://[{}]:{}/hello", net.server.addr6, nginx.port);
    assert_eq!(curl(&lab, &net.client, &url).ok().text(), "hello\n");
    engine.went_through(1);
}

/// The engine that nginx's own shim starts drives the device, too.
#[test]
fn the_server_brings_its_engine() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-embedded"), Net::new());
    let engine = on_device(&lab, &net.server);
    let nginx = Nginx::start(&lab, &engine);
    assert_eq!(curl(&lab, &net.client, &url(&net.server, &nginx, "hello")).ok().text(), "hello\n");
    engine.went_through(1);
}

#[test]
fn big_file_to_a_kernel_client() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-big"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    same_file_arrives(&lab, BIG, |run| run.inside(&net.client), &url(&net.server, &nginx, "big"));
    engine.went_through(1);
}

/// Between neighbours on a veth pair a segment is as long as the sender made it: forty-five frames in one.
#[test]
fn bulk_passes_in_long_segments() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-long"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    same_file_arrives(&lab, BIG / 4, |run| run.inside(&net.client), &url(&net.server, &nginx, "big"));
    engine.went_through(1);
    if !on_kernel() {
        let count = |what: &str| engine.counters().get(what);
        let mean = BIG as u64 / 4 / count("tx_frames").max(1);
        assert!(mean > 8000, "{} frames of {mean} bytes", count("tx_frames"));
    }
}

/// 1 % of the frames is lost, 1 % comes late, both ways.
#[test]
fn big_file_over_a_bad_link() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-faults"), Net::new());
    let engine = on_device(&lab, &net.server).set("UTCP_FAULTS", "loss=1%,reorder=1%,seed=7").run();
    let nginx = Nginx::start(&lab, &engine);
    same_file_arrives(&lab, BIG, |run| run.inside(&net.client), &url(&net.server, &nginx, "big"));
    engine.went_through(1);
    if !on_kernel() {
        assert!(engine.counters().get("retransmits") > 100, "no faults were injected");
    }
}

/// The other direction: utcp receives, with holes to fill.
#[test]
fn upload_over_a_bad_link() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-upload"), Net::new());
    let engine = on_device(&lab, &net.server).set("UTCP_FAULTS", "loss=1%,reorder=1%,seed=8").run();
    let redis = Redis::start_with(&lab, |run| run.under(&engine)).at(&net.server.addr);
    engine.wait_for_listener(redis.port);
    let file = lab.random_file("value", 50_000_000);
    let set = redis.cli(&lab, &["-x", "set", "k"]).stdin(&file).inside(&net.client).ok();
    assert_eq!(set.text(), "OK\n");
    let got = redis.cli(&lab, &["--raw", "get", "k"]).inside(&net.client).ok().out;
    assert!(got.strip_suffix(b"\n") == Some(&std::fs::read(&file).expect("ours")[..]));
    engine.went_through(2);
}

fn ab_is_clean(report: &str, requests: usize) {
    assert!(report.contains(&format!("Complete requests:      {requests}\n")), "{report}");
    assert!(report.contains("Failed requests:        0\n") && !report.contains("Non-2xx"), "{report}");
}

#[test]
fn ten_thousand_keep_alive_requests() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-keepalive"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let ab = lab.run("ab").args(["-q", "-k", "-n", "10000", "-c", "32", &url(&net.server, &nginx, "hello")]);
    ab_is_clean(&ab.inside(&net.client).ok().text(), 10_000);
    engine.went_through(32);
    engine.wait_until_empty(WAIT);
}

#[test]
fn ten_thousand_connections() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-close"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let ab = lab.run("ab").args(["-q", "-n", "10000", "-c", "32", &url(&net.server, &nginx, "hello")]);
    ab_is_clean(&ab.inside(&net.client).ok().text(), 10_000);
    engine.went_through(10_000);
    engine.wait_until_empty(WAIT);
}

#[test]
fn wrk_without_an_error() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-wrk"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let wrk = lab.run("wrk").args(["-t1", "-c50", "-d2s", &url(&net.server, &nginx, "hello")]);
    let report = wrk.inside(&net.client).ok().text();
    assert!(!report.contains("Socket errors") && report.contains(" requests in "), "{report}");
    engine.went_through(50);
}

#[test]
fn redis_benchmark_to_the_end() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-redis"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let redis = Redis::start_with(&lab, |run| run.under(&engine)).at(&net.server.addr);
    engine.wait_for_listener(redis.port);
    let report = redis.benchmark(&lab, &["-q", "-n", "2000", "-c", "20"]).inside(&net.client).ok().text();
    assert!(report.contains("MSET (10 keys): ") && !report.contains("rror"), "{report}");
    engine.went_through(20 * 15);
}

/// Only the client is under utcp.
#[test]
fn a_client_of_a_kernel_server() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-client"), Net::new());
    let nginx = Nginx::start_on_kernel(&lab, Some(&net.server));
    let engine = on_device(&lab, &net.client).run();
    let page = curl(&lab, &net.client, &url(&net.server, &nginx, "hello")).under(&engine).ok();
    assert_eq!(page.text(), "hello\n");
    engine.went_through(1);
    same_file_arrives(&lab, 50_000_000, |run| run.under(&engine), &url(&net.server, &nginx, "big"));
    let ab = lab.run("ab").args(["-q", "-n", "3000", "-c", "16", &url(&net.server, &nginx, "hello")]);
    ab_is_clean(&ab.under(&engine).ok().text(), 3000);
    engine.went_through(3001);
}

/// Two engines, one on each end of the cable.
#[test]
fn both_ends_under_utcp() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-both"), Net::new());
    let servers = on_device(&lab, &net.server).run();
    let clients = on_device(&lab, &net.client).run();
    let nginx = Nginx::start(&lab, &servers);
    same_file_arrives(&lab, 50_000_000, |run| run.under(&clients), &url(&net.server, &nginx, "big"));
    let ab = lab.run("ab").args(["-q", "-k", "-n", "5000", "-c", "16", &url(&net.server, &nginx, "hello")]);
    ab_is_clean(&ab.under(&clients).ok().text(), 5000);
    servers.went_through(17);
    clients.went_through(17);
    servers.wait_until_empty(WAIT);
    clients.wait_until_empty(WAIT);
}

/// A port where nobody listens, an address where nobody is: the kernel's errors.
#[test]
fn nobody_there() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-nobody"), Net::new());
    let engine = on_device(&lab, &net.client).run();
    let script = |addr: &str| {
        format!(
            "import errno, socket
s = socket.socket()
s.settimeout(15)
try:
    s.connect(('{addr}', 5))
except OSError as error:
    print(errno.errorcode.get(error.errno, error))"
        )
    };
    assert_eq!(lab.python(&script(&net.server.addr)).under(&engine).ok().text(), "ECONNREFUSED\n");
    assert_eq!(
        lab.python(&script("10.77.0.99")).under(&engine).inside(&net.client).ok().text(),
        "EHOSTUNREACH\n"
    );
    assert_eq!(lab.python(&script("192.0.2.1")).under(&engine).ok().text(), "ENETUNREACH\n");
}

/// Twenty echo requests; prints how many were answered. (Debian has `ping` in a package of its own.)
fn ping(addr: &str) -> String {
    format!(
        "import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(2)
s.connect(('{addr}', 0))
answers = 0
for n in range(20):
    body = struct.pack('!HH', 77, n) + b'abcdefgh'
    total = 0x0800 + sum(struct.unpack('!6H', body))
    total = (total & 0xffff) + (total >> 16)
    s.send(struct.pack('!BBH', 8, 0, ~total & 0xffff) + body)
    answer = s.recv(100)[20:]
    answers += answer[0] == 0 and answer[4:] == body
print(answers)"
    )
}

/// While utcp serves a load on the address: a kernel server there, ping, and a kernel client from there go on.
#[test]
fn others_on_the_address_notice_nothing() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-others"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    // Long-lived like ssh: one line after the other on one connection, for as long as the load runs.
    let port = lab.port();
    let script = format!(
        "import socket
s = socket.create_server(('', {port}))
print('listens')
while True:
    c, _ = s.accept()
    while data := c.recv(100): c.sendall(data)"
    );
    let mut shell = lab.python(&script).inside(&net.server).spawn();
    shell.wait_for_output("listens");
    let script = format!(
        "import socket, time
s = socket.create_connection(('{}', {port}), timeout=5)
for n in range(150):
    s.sendall(b'line'); assert s.recv(100) == b'line'
    time.sleep(0.01)
print('same')",
        net.server.addr
    );
    let session = lab.python(&script).inside(&net.client).spawn();
    let wrk = lab.run("wrk").args(["-t1", "-c20", "-d2s", &url(&net.server, &nginx, "hello")]);
    let wrk = wrk.inside(&net.client).spawn();
    assert_eq!(lab.python(&ping(&net.server.addr)).inside(&net.client).ok().text(), "20\n");
    let other = Nginx::start_on_kernel(&Lab::new("dev-others-client"), Some(&net.client));
    let page = curl(&lab, &net.server, &url(&net.client, &other, "hello")).ok();
    assert_eq!(page.text(), "hello\n");
    assert!(session.finish().ok().text().contains("same"));
    let report = wrk.finish().ok().text();
    assert!(!report.contains("Socket errors"), "{report}");
    engine.went_through(20);
}

/// Killed servers: the peers on the other host hear of it within a second, nothing is left.
#[test]
fn killed_worker_closes_its_connections() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-kill"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let script = format!(
        "import socket
all = [socket.create_connection(('{}', {})) for _ in range(20)]
for s in all:
    s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    assert s.recv(1000).startswith(b'HTTP/1.1 200')
print('connected')
for s in all:
    try:
        assert s.recv(100) == b''
    except ConnectionResetError:
        pass
print('closed')",
        net.server.addr, nginx.port
    );
    let mut client = lab.python(&script).inside(&net.client).spawn();
    client.wait_for_output("connected");
    engine.went_through(20);
    for worker in nginx.workers() {
        utcp_tests::signal_pid(worker, libc::SIGKILL);
    }
    let _ = client.end_within(Duration::from_secs(1)).ok();
    wait_until("other workers come", WAIT, || {
        let page = curl(&lab, &net.client, &url(&net.server, &nginx, "hello")).finish();
        page.status.success().then_some(())
    });
    engine.wait_until_empty(WAIT);
}

/// `kill -9` of the engine: kernel clients of nginx are served by the kernel from then on.
#[test]
fn the_kernel_serves_when_the_engine_is_killed() {
    needs_root!();
    let (lab, net) = (Lab::new("dev-engine-kill"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    let get = || curl(&lab, &net.client, &url(&net.server, &nginx, "hello"));
    assert_eq!(get().ok().text(), "hello\n");
    engine.went_through(1);
    engine.kill();
    for _ in 0..5 {
        assert_eq!(get().ok().text(), "hello\n");
    }
}
