//! What a stranger can send: floods of SYNs, resets in every state.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Host, Lab, Net, WAIT, is_root, measured, not_run, on_kernel, wait_until};

const RAW_PEER: &str = include_str!("scripts/raw_peer.py");
/// An address of the client's link that its kernel does not have.
const STRANGER: &str = "10.77.0.50";

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's own defences are not our business");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface)).run()
}

fn mac(lab: &Lab, host: &Host) -> String {
    // `ip netns exec` shows the namespace's own /sys.
    let path = format!("/sys/class/net/{}/address", host.interface);
    lab.run("cat").arg(path).inside(host).ok().text().trim().to_owned()
}

/// SYNs from everywhere, faster than any SYN queue: no record for each, and who means it gets in.
#[test]
fn a_flood_of_syns() {
    needs_utcp_and_root!();
    if lab_lacks("hping3") {
        return not_run("hping3 is not installed (scripts/setup)");
    }
    let (lab, net) = (Lab::new("syn-flood"), Net::new());
    let host = &net.server;
    // The answers have to have a way out.
    let _ = lab.run("ip").args(["route", "add", "default", "via", &net.client.addr]).inside(host).ok();
    let engine = on_device(&lab, host);
    let nginx = Nginx::start(&lab, &engine);
    let url = format!("http://{}:{}/hello", host.addr, nginx.port);
    let before = engine.counters();
    let port = nginx.port.to_string();
    let flood = ["-q", "-S", "-i", "u20", "--rand-source", "-p", &port, &host.addr];
    let mut flood = lab.run("hping3").args(flood).inside(&net.client).spawn();
    wait_until("cookies are sent", WAIT, || {
        assert!(flood.is_alive(), "{}", flood.stderr());
        (engine.counters().since(&before, "syn_cookies") > 1_000).then_some(())
    });
    for _ in 0..50 {
        let page = lab.run("curl").args(["-sS", "-m", "20", &url]).inside(&net.client).ok();
        assert_eq!(page.text(), "hello\n");
    }
    let half_open = engine.sockets().iter().filter(|socket| socket.state == "SYN-RECV").count();
    drop(flood);
    let after = engine.counters();
    measured(&format!(
        "SYN flood: {} SYNs answered by a cookie, {half_open} half-open records, 50 of 50 pages meanwhile",
        after.since(&before, "syn_cookies")
    ));
    // nginx asks for a backlog of 511.
    assert!(half_open <= 2 * 511, "{half_open} half-open records");
    engine.went_through(50);
}

fn lab_lacks(program: &str) -> bool {
    !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into()])
        .any(|folder| folder.join(program).exists())
}

/// Follows the first byte of each connection: `e`, `l`: read to the end, and with `l` close then; `s`: end our side at
/// once.
const SERVICE: &str = "import socket, sys, threading, time
def serve(peer):
    try:
        command = peer.recv(1)
        if command == b's':
            peer.shutdown(socket.SHUT_WR)
        while peer.recv(100):
            pass
        if command != b'l':
            time.sleep(60)
    except OSError:
        pass
    peer.close()
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print('listening', flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

#[test]
fn a_reset_in_every_state() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("reset-states"), Net::new());
    let (host, stranger) = (&net.server, &net.client);
    let (own_mac, stranger_mac) = (mac(&lab, host), mac(&lab, stranger));
    let neighbour =
        ["neigh", "add", STRANGER, "lladdr", &stranger_mac, "dev", &host.interface, "nud", "permanent"];
    let _ = lab.run("ip").args(neighbour).inside(host).ok();
    let engine = on_device(&lab, host);
    let port = lab.port().to_string();
    let mut service = lab.python(SERVICE).args([&host.addr, &port]).under(&engine).spawn();
    service.wait_for_output("listening");
    let before = engine.counters();
    let peer = lab.python(RAW_PEER).args([&stranger.interface, STRANGER, &own_mac, &host.addr, &port]);
    let mut peer = peer.inside(stranger).spawn();
    peer.wait_for_output("connect now");
    let connect = format!(
        "import errno, socket
try:
    socket.create_connection(('{STRANGER}', 4000), timeout=15)
except OSError as error:
    print(errno.errorcode.get(error.errno, error))"
    );
    assert_eq!(lab.python(&connect).under(&engine).ok().text(), "ECONNREFUSED\n");
    let told = peer.finish().ok().text();
    let states = "SYN-RECEIVED ESTABLISHED FIN-WAIT-1 FIN-WAIT-2 CLOSING CLOSE-WAIT LAST-ACK TIME-WAIT connect now SYN-SENT";
    assert_eq!(told.split_whitespace().collect::<Vec<_>>().join(" "), states);
    let after = engine.counters();
    assert!(after.since(&before, "challenge_acks") >= 7, "one in each state");
    assert_eq!(after.since(&before, "challenge_acks_withheld"), 0);
    assert!(after.since(&before, "dropped_blind") >= 7);
    drop(service);
    engine.wait_until_empty(Duration::from_secs(20));
}
