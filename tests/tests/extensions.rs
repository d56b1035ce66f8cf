//! IPv6's extension headers on segments of ours: they are stepped over, from the first segment on or from the middle.

use utcp_tests::{Engine, Lab, Net, is_root, not_run, on_kernel};

/// Options for the destination: eight bytes of padding, which a kernel puts into every segment that a socket sends from then on
/// (RFC 3542 §9, sticky options).
const OPTIONS: &str = "IPPROTO_IPV6, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0])";

fn server(port: u16, options: &str) -> String {
    format!(
        "from socket import *
s = create_server(('::', {port}), family=AF_INET6)
print('listens', flush=True)
while True:
    c, _ = s.accept()
    {options}
    while data := c.recv(100): c.sendall(data)
    c.close()"
    )
}

/// Exchanges some bytes, then once more after `options`.
fn client(addr: &str, port: u16, before: &str, options: &str) -> String {
    format!(
        "from socket import *
s = socket(AF_INET6)
s.settimeout(10)
{before}
s.connect(('{addr}', {port}))
for n in range(20):
    if n == 10: {options}
    s.sendall(b'%02d' % n); assert s.recv(2) == b'%02d' % n
print('done')"
    )
}

#[test]
fn a_peer_may_send_options() {
    if on_kernel() {
        return not_run("the kernel's own options");
    }
    if !is_root() {
        return not_run("needs root for network namespaces");
    }
    let (lab, net) = (Lab::new("extensions"), Net::new());
    let host = &net.server;
    // Packet sockets, and AF_XDP.
    for faults in [None, Some("loss=0%")] {
        let mut engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface));
        if let Some(faults) = faults {
            engine = engine.set("UTCP_FAULTS", faults);
        }
        let engine = engine.run();
        let set = |socket: &str| format!("{socket}.setsockopt({OPTIONS})");
        let (ours, theirs) = (lab.port(), lab.port());
        let mut echo = lab.python(&server(ours, "pass")).under(&engine).spawn();
        echo.wait_for_output("listens");
        for (before, options) in [(set("s"), "pass".to_owned()), (String::new(), set("s"))] {
            let talk = client(&host.addr6, ours, &before, &options);
            assert_eq!(lab.python(&talk).inside(&net.client).ok().text(), "done\n");
            engine.went_through(1);
        }
        let mut kernels = lab.python(&server(theirs, &set("c"))).inside(&net.client).spawn();
        kernels.wait_for_output("listens");
        let talk = client(&net.client.addr6, theirs, "", "pass");
        assert_eq!(lab.python(&talk).under(&engine).ok().text(), "done\n");
        engine.went_through(1);
        assert_eq!(engine.counters().get("dropped_frames"), 0);
    }
}
