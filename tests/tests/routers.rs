//! A router between client and server whose links carry less than theirs: its fragments and its errors reach us.
//!
//! ```text
//!  far 10.99.0.2 ── 10.99.0.1 router 10.77.0.2 ── 10.77.0.1 server under utcp
//! ```
use utcp_tests::nginx::Nginx;
use utcp_tests::{Download, Engine, Host, Lab, Net, WAIT, ip, is_root, not_run, on_kernel, wait_until};

macro_rules! needs_root {
    () => {
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn sysctl(lab: &Lab, host: &Host, setting: &str) {
    let _ = lab.run("sysctl").args(["-qw", setting]).inside(host).ok();
}

/// Two pairs of hosts; the client of the first is the router, the client of the second is far away.
fn route(lab: &Lab) -> (Net, Net) {
    let (near, far) = (Net::new(), Net::new());
    let (server, router, client) = (&near.server, &near.client, &far.client);
    let cable = format!("link add far type veth peer name cable netns {}", client.namespace());
    ip(lab, router, &cable);
    ip(lab, router, "addr add 10.99.0.1/24 dev far");
    ip(lab, router, "link set far up");
    sysctl(lab, router, "net.ipv4.ip_forward=1");
    ip(lab, client, "addr add 10.99.0.2/24 dev cable");
    ip(lab, client, "link set cable up");
    // Its own interface has the server's network, too.
    ip(lab, client, &format!("link set {} down", client.interface));
    ip(lab, client, "route replace default via 10.99.0.1");
    ip(lab, server, &format!("route add 10.99.0.0/24 via {}", router.addr));
    (near, far)
}

fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run()
}

/// A client that lets routers fragment its packets: what they make of them arrives.
#[test]
fn fragments_are_put_together() {
    needs_root!();
    let lab = Lab::new("fragments");
    let (near, far) = route(&lab);
    let (server, router, client) = (&near.server, &near.client, &far.client);
    sysctl(&lab, client, "net.ipv4.ip_no_pmtu_disc=1");
    ip(&lab, router, &format!("link set {} mtu 1000", router.interface));
    let engine = on_device(&lab, server);
    let port = lab.port();
    let serve = format!(
        "import hashlib, socket
server = socket.create_server(('', {port}))
print('listens', flush=True)
c, _ = server.accept()
digest = hashlib.sha256()
while part := c.recv(65536): digest.update(part)
c.sendall(digest.hexdigest().encode())"
    );
    let mut serving = lab.python(&serve).under(&engine).spawn();
    serving.wait_for_output("listens");
    engine.wait_for_listener(port);
    let send = format!(
        "import hashlib, random, socket
data = random.Random(1).randbytes(3_000_000)
s = socket.create_connection(('{}', {port}), 20)
s.sendall(data)
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode() == hashlib.sha256(data).hexdigest())",
        server.addr
    );
    assert_eq!(lab.python(&send).inside(client).ok().text(), "True\n");
    let _ = serving.end_within(WAIT).ok();
    engine.went_through(1);
    if !on_kernel() {
        let counters = engine.counters();
        assert!(counters.get("fragments") > 1000, "nothing was fragmented");
        assert_eq!((counters.get("dropped_fragments"), counters.get("resets_sent")), (0, 0));
    }
}

/// A router says that a segment of ours is too long for its next link: segments get shorter.
#[test]
fn a_router_says_too_big() {
    needs_root!();
    let lab = Lab::new("too-big");
    let (near, far) = route(&lab);
    ip(&lab, &near.client, "link set far mtu 1000");
    let engine = on_device(&lab, &near.server);
    let nginx = Nginx::start(&lab, &engine);
    let file = lab.random_file("www/big", 8_000_000);
    let url = format!("http://{}:{}/big", near.server.addr, nginx.port);
    let download = Download::start(&lab, &far.client, &url, "got");
    if !on_kernel() {
        wait_until("segments are shorter", WAIT, || {
            engine.sockets().iter().any(|socket| socket.line.contains("mss:948")).then_some(())
        });
    }
    download.end(&file);
    engine.went_through(1);
    if !on_kernel() {
        assert!(engine.counters().get("icmp_errors") > 0);
    }
}
