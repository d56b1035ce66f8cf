//! Ports that the kernel's sockets have, too: connections of ours come from ports where the kernel's programs listen and connect from, and
//! a server of ours listens where the kernel has connections still.

use utcp_tests::mirror::{mirror, serve, visit};
use utcp_tests::{
    Engine, Host, Lab, Net, Running, WAIT, is_root, not_run, on_kernel, release_file, wait_until,
};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel shares nothing there");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

/// By packet sockets, by AF_XDP (to which faults force a veth), and by a switch.
const WAYS: [&str; 3] = ["packets", "faults", "switch"];

/// An engine on the host's interface, and the switch that it may need.
fn shared<'l>(lab: &'l Lab, host: &Host, how: &str) -> (Engine<'l>, Option<Running>) {
    let device = &host.interface;
    let engine = Engine::new(lab).inside(host);
    let engine = match how {
        "packets" => engine.set("UTCP_DEVICE", format!("xdp:{device}")),
        "faults" => engine.set("UTCP_DEVICE", format!("xdp:{device}")).set("UTCP_FAULTS", "loss=0%"),
        _ => engine.set("UTCP_DEVICE", format!("switch:{device}")),
    };
    let switch = (how == "switch").then(|| {
        let switch = lab.run(release_file("utcp")).args(["switch", &format!("xdp:{device}")]);
        let switch = switch.inside(host).spawn();
        wait_until("the switch is there", WAIT, || {
            let ask = lab.run(release_file("utcp")).args(["switch", device, "--report"]);
            ask.inside(host).finish().status.success().then_some(())
        });
        switch
    });
    (engine.run(), switch)
}

/// The ports that connections of ours come from are nobody's alone: servers listen there, under utcp and beside it, and the kernel's
/// programs connect from there, too. By packet sockets, by AF_XDP, and by a switch.
#[test]
fn client_ports_are_shared_with_the_kernel() {
    needs_utcp_and_root!();
    for how in WAYS {
        let (lab, net) = (Lab::new("client-ports"), Net::new());
        let (host, client) = (&net.server, &net.client);
        let (engine, _switch) = shared(&lab, host, how);
        let port = lab.port();
        let _theirs = serve(&lab, client, port, "theirs");
        let mut ours = lab.python(&mirror(61_016, "ours")).under(&engine).spawn();
        ours.wait_for_output("listens");
        let mut also_ours = lab.python(&mirror(61_616, "ours")).under(&engine).spawn();
        also_ours.wait_for_output("listens");
        let _kernels = serve(&lab, host, 61_017, "kernels");
        for (addr, from) in [(&host.addr, &client.addr), (&host.addr6, &client.addr6)] {
            for (port, word) in [(61_016, "ours"), (61_616, "ours"), (61_017, "kernels")] {
                let said = lab.python(&visit(addr, port, "")).inside(client).ok().text();
                assert_eq!(said, format!("{from} {word}\n"), "{how}, port {port}");
            }
        }
        let bound = format!(
            "import socket
for port in range(61018, 61023):
    s = socket.create_connection(('{}', {port}), 5, source_address=('', port))
    print(s.makefile().read())",
            client.addr
        );
        let said = lab.python(&bound).inside(host).ok().text();
        assert_eq!(said, format!("{} theirs\n", host.addr).repeat(5), "{how}");
        let before = engine.counters();
        let said = lab.python(&visit(&client.addr, port, "")).under(&engine).ok().text();
        assert_eq!(said, format!("{} theirs\n", host.addr), "{how}");
        assert_eq!(engine.counters().since(&before, "connects"), 1, "{how}");
        if how != "switch" {
            assert_eq!(engine.counters().get("accepts"), 4, "{how}");
        }
    }
}

/// A server of the kernel's has connections when one under utcp takes its port (it was restarted, as sshd is): they go on where they are.
#[test]
fn connections_that_the_kernel_has_stay_its_own() {
    needs_utcp_and_root!();
    for how in WAYS {
        let (lab, net) = (Lab::new("kernels-connections"), Net::new());
        let (host, client) = (&net.server, &net.client);
        let (engine, _switch) = shared(&lab, host, how);
        let port = lab.port();
        // It listens no more, and echoes.
        let old = format!(
            "import socket, threading
s = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)
print('listens', flush=True)
both = [s.accept()[0] for _ in range(2)]
s.close()
print('has two', flush=True)
def echo(c):
    while True: c.sendall(c.recv(100))
threads = [threading.Thread(target=echo, args=(c,)) for c in both]
for t in threads: t.start()
for t in threads: t.join()"
        );
        let mut old = lab.python(&old).inside(host).spawn();
        old.wait_for_output("listens");
        let talk = format!(
            "import os, socket, time
both = [socket.create_connection((addr, {port}), 10) for addr in ('{}', '{}')]
print('connected', flush=True)
for n in range(2):
    while not os.path.exists('{}%d' % n): time.sleep(0.01)
    for s in both:
        s.sendall(b'%d' % n)
        print(s.recv(9).decode(), flush=True)
    print('end of round', n, flush=True)",
            host.addr,
            host.addr6,
            lab.path("round").display()
        );
        let mut talk = lab.python(&talk).inside(client).spawn();
        let say = |talk: &mut Running, round: u32| {
            let _ = lab.file(&format!("round{round}"), "");
            talk.wait_for_output(&format!("end of round {round}"));
        };
        talk.wait_for_output("connected");
        old.wait_for_output("has two");
        say(&mut talk, 0);
        let mut ours = lab.python(&mirror(port, "ours")).under(&engine).spawn();
        ours.wait_for_output("listens");
        let said = lab.python(&visit(&host.addr, port, "")).inside(client).ok().text();
        assert_eq!(said, format!("{} ours\n", client.addr), "{how}");
        assert_eq!(engine.counters().get("accepts"), 1, "{how}");
        say(&mut talk, 1);
        assert_eq!(
            talk.finish().ok().text(),
            "connected\n0\n0\nend of round 0\n1\n1\nend of round 1\n",
            "{how}"
        );
        assert_eq!(engine.counters().get("resets_sent"), 0, "{how}");
    }
}
