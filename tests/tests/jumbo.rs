//! Frames that are longer than an AF_XDP buffer: jumbo frames, and what the kernel joins.

use std::time::Duration;

use utcp_tests::{Engine, Host, Lab, Net, ip, is_root, not_run, on_kernel};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's own buffers are not our business");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

const MEGABYTES: usize = 200;
/// Long enough for a machine that is busy, far too short for a peer that sends each frame again and again.
const LIMIT: Duration = Duration::from_secs(60);

/// 200 MB to the server and 200 MB back, whose digests both sides agree on; the engine's counters afterwards.
#[track_caller]
fn both_ways(lab: &Lab, engine: &Engine<'_>, client: &Host, addr: &str) {
    let port = lab.port();
    let serve = format!(
        "import hashlib, socket
block = hashlib.shake_256(b'server').digest(1 << 20)
with socket.create_server(('', {port}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print('listens', flush=True)
    c, _ = server.accept()
digest, left = hashlib.sha256(), {MEGABYTES} << 20
while left:
    data = c.recv(min(left, 1 << 18))
    assert data, left
    digest.update(data)
    left -= len(data)
c.sendall(digest.digest())
for _ in range({MEGABYTES}):
    c.sendall(block)
print('served')"
    );
    let ask = format!(
        "import hashlib, socket
block = hashlib.shake_256(b'client').digest(1 << 20)
c = socket.create_connection(('{addr}', {port}), 30)
sent, got = hashlib.sha256(), hashlib.sha256()
for _ in range({MEGABYTES}):
    sent.update(block)
    c.sendall(block)
assert c.recv(32, socket.MSG_WAITALL) == sent.digest(), 'changed on the way up'
while data := c.recv(1 << 18):
    got.update(data)
block = hashlib.shake_256(b'server').digest(1 << 20) * {MEGABYTES}
assert hashlib.sha256(block).digest() == got.digest(), 'changed on the way down'
print('same')"
    );
    let mut server = lab.python(&serve).under(engine).spawn();
    server.wait_for_output("listens");
    engine.wait_for_listener(port);
    let client = lab.python(&ask).inside(client).limit(LIMIT).spawn();
    assert_eq!(client.finish().ok().text(), "same\n");
    assert!(server.finish().ok().text().ends_with("served\n"));
    engine.went_through(1);
}

/// A veth of MTU 9000 with everything that a veth has on (GSO, GRO, TSO): the program runs in the driver, and frames are
/// jumbo both ways.
#[test]
fn jumbo_frames_of_a_kernel_peer() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("jumbo"), Net::new());
    for host in [&net.server, &net.client] {
        ip(&lab, host, &format!("link set {} mtu 9000", host.interface));
    }
    let device = format!("xdp:{}", net.server.interface);
    let engine = Engine::new(&lab).inside(&net.server).set("UTCP_DEVICE", device).run();
    both_ways(&lab, &engine, &net.client, &net.server.addr);
    both_ways(&lab, &engine, &net.client, &net.server.addr6);
    assert!(!engine.log().contains("generic mode"), "{}", engine.log());
    let (sent, got) = (engine.counters().get("tx_frames"), engine.counters().get("rx_frames"));
    // 400 MB in each direction make 47 000 frames of 8948 bytes; the rest are ACKs.
    assert!(sent < 110_000 && got < 110_000, "{sent} frames sent, {got} received: not jumbo ones");
}

/// A bridge takes programs in generic mode alone, behind what its members' kernel has joined: 64 KiB at a time.
#[test]
fn frames_that_the_kernel_has_joined() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("joined"), Net::new());
    let host = &net.server;
    for words in [
        "link add br0 type bridge".to_owned(),
        format!("addr flush dev {}", host.interface),
        format!("link set {} master br0", host.interface),
        format!("addr add {}/24 dev br0", host.addr),
        "link set br0 up".to_owned(),
    ] {
        ip(&lab, host, &words);
    }
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", "xdp:br0").run();
    both_ways(&lab, &engine, &net.client, &host.addr);
    assert!(engine.log().contains("generic mode"), "{}", engine.log());
    let got = engine.counters().get("rx_frames");
    // 200 MB in frames of an MTU's 1448 bytes would be 140 000.
    assert!(got < 120_000, "{got} frames received: none was joined");
}
