//! Addresses that no device of the engine has: those of `lo`, which come by every interface, and those of interfaces that are not
//! ours; and an interface that is not ours any more.

use utcp_tests::mirror::{mirror, serve, visit};
use utcp_tests::{Engine, Host, Lab, Net, WAIT, ip, is_root, not_run, on_kernel, wait_until};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel serves all of its addresses");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface))
}

/// The host's own address, as routers and machines behind a load balancer have it: on `lo`. What is sent there is ours, for servers and for
/// connections that come from there, by a source hint or because the program says so.
#[test]
fn an_address_of_lo_is_served() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("lo-address"), Net::new());
    let (host, client) = (&net.server, &net.client);
    let engine = on_device(&lab, host).run();
    let port = lab.port();
    let mut server = lab.python(&mirror(port, "ours")).under(&engine).spawn();
    server.wait_for_output("listens");
    let clients_port = lab.port();
    let _clients = serve(&lab, client, clients_port, "theirs");
    // Behind the engine's back, in the middle of its work.
    for (addr, gateway) in [("10.99.0.1/32", &host.addr), ("fd99::1/128", &host.addr6)] {
        ip(&lab, host, &format!("addr add {addr} dev lo"));
        ip(&lab, client, &format!("route add {addr} via {gateway}"));
    }
    for (addr, gateway, own) in
        [("10.98.0.2/32", &client.addr, "10.99.0.1"), ("fd98::2/128", &client.addr6, "fd99::1")]
    {
        ip(&lab, client, &format!("addr add {addr} dev lo"));
        ip(&lab, host, &format!("route add {addr} via {gateway} src {own}"));
    }
    for to in ["10.99.0.1", "fd99::1"] {
        let from = if to.contains(':') { &client.addr6 } else { &client.addr };
        wait_until("the engine has heard of the address", WAIT, || {
            let before = engine.counters();
            let said = lab.python(&visit(to, port, "")).inside(client).ok().text();
            assert_eq!(said, format!("{from} ours\n"));
            (engine.counters().since(&before, "accepts") == 1).then_some(())
        });
    }
    for (to, from, want) in [
        ("10.98.0.2", "", "10.99.0.1 theirs\n"),
        ("fd98::2", "", "fd99::1 theirs\n"),
        (&*client.addr, "10.99.0.1", "10.99.0.1 theirs\n"),
    ] {
        let before = engine.counters();
        let said = lab.python(&visit(to, clients_port, from)).under(&engine).ok().text();
        assert_eq!(said, want, "to {to}");
        assert_eq!(engine.counters().since(&before, "connects"), 1, "to {to}");
    }
}

/// A connection from the address of an interface that is not ours: the answers come to the kernel, so the connection is its, too.
#[test]
fn an_address_of_another_interface_is_the_kernels() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("other-address"), Net::new());
    let (host, client) = (&net.server, &net.client);
    ip(&lab, host, "link add other type veth peer name other2");
    ip(&lab, host, "addr add 10.97.0.1/24 dev other");
    for end in ["other", "other2"] {
        ip(&lab, host, &format!("link set {end} up"));
    }
    ip(&lab, client, &format!("route add 10.97.0.0/24 via {}", host.addr));
    ip(&lab, client, &format!("addr add 10.98.0.2/32 dev {}", client.interface));
    ip(&lab, host, &format!("route add 10.98.0.2 via {} src 10.97.0.1", client.addr));
    let port = lab.port();
    let _mirror = serve(&lab, client, port, "theirs");
    let engine = on_device(&lab, host).run();
    for (to, from) in [("10.98.0.2", ""), (&*client.addr, "10.97.0.1")] {
        let said = lab.python(&visit(to, port, from)).under(&engine).ok().text();
        assert_eq!(said, "10.97.0.1 theirs\n", "to {to}");
    }
    assert_eq!(engine.counters().get("connects"), 0);
    wait_until("`utcp why` says so", WAIT, || {
        let why = engine.ask(&format!("why {port}"))?;
        why.contains("it comes from an address of an interface that is no device of this engine")
            .then_some(())
    });
    assert_eq!(lab.python(&visit(&client.addr, port, "")).under(&engine).ok().text(), "10.77.0.1 theirs\n");
    engine.went_through(1);
}

/// The interface goes to another network namespace, where the same port is somebody else's: we take nothing there. It comes back, and
/// is ours again. By packet sockets, and by AF_XDP (to which faults force it).
#[test]
fn a_moved_interface_takes_no_steering_along() {
    needs_utcp_and_root!();
    for faults in [false, true] {
        let (lab, net, elsewhere) = (Lab::new("moved"), Net::new(), Net::new());
        let (host, client) = (&net.server, &net.client);
        let engine = on_device(&lab, host);
        let engine = if faults { engine.set("UTCP_FAULTS", "loss=0%") } else { engine }.run();
        let port = lab.port();
        let mut server = lab.python(&mirror(port, "ours")).under(&engine).spawn();
        server.wait_for_output("listens");
        let get = || lab.python(&visit(&host.addr, port, "")).inside(client).ok().text();
        let set_up = |at: &Host| {
            ip(&lab, at, &format!("addr add {}/24 dev {}", host.addr, host.interface));
            ip(&lab, at, &format!("link set {} up", host.interface));
        };
        assert_eq!(get(), "10.77.0.2 ours\n");
        // The client's end of another cable is a host with nothing of that name or address.
        let there = &elsewhere.client;
        ip(&lab, host, &format!("link set {} netns {}", host.interface, there.namespace()));
        wait_until("the engine has heard of it", WAIT, || {
            let why = engine.ask(&format!("why {port}"))?;
            why.contains("(which is gone").then_some(())
        });
        let theirs = serve(&lab, there, port, "theirs");
        ip(&lab, there, &format!("addr del {}/24 dev {}", there.addr, there.interface));
        set_up(there);
        assert_eq!(get(), "10.77.0.2 theirs\n", "faults {faults}");
        theirs.signal(libc::SIGKILL);
        ip(&lab, there, &format!("link set {} netns {}", host.interface, host.namespace()));
        set_up(host);
        wait_until("the engine has it again", WAIT, || {
            let before = engine.counters();
            assert_eq!(get(), "10.77.0.2 ours\n", "faults {faults}");
            (engine.counters().since(&before, "accepts") == 1).then_some(())
        });
    }
}

/// A host of many sites has hundreds of addresses on one interface. All are served, and connections come from any.
#[test]
fn hundreds_of_addresses_are_served() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("many-addresses"), Net::new());
    let (host, client) = (&net.server, &net.client);
    let device = &host.interface;
    let all = (1..=2).flat_map(|third| {
        (1..=200).map(move |last| format!("addr add 10.99.{third}.{last}/16 dev {device}\n"))
    });
    let batch = lab.file("batch", all.collect::<String>());
    ip(&lab, host, &format!("-batch {}", batch.display()));
    ip(&lab, client, &format!("addr add 10.99.9.9/16 dev {}", client.interface));
    let engine = on_device(&lab, host).run();
    let (port, clients_port) = (lab.port(), lab.port());
    let mut server = lab.python(&mirror(port, "ours")).under(&engine).spawn();
    server.wait_for_output("listens");
    let _clients = serve(&lab, client, clients_port, "theirs");
    for addr in [&*host.addr, "10.99.1.1", "10.99.1.57", "10.99.2.1", "10.99.2.200"] {
        let before = engine.counters();
        let said = lab.python(&visit(addr, port, "")).inside(client).ok().text();
        assert!(said.ends_with(" ours\n"), "{addr}: {said}");
        assert_eq!(engine.counters().since(&before, "accepts"), 1, "to {addr}");
        let said = lab.python(&visit(&client.addr, clients_port, addr)).under(&engine).ok().text();
        assert_eq!(said, format!("{addr} theirs\n"));
        assert_eq!(engine.counters().since(&before, "connects"), 1, "from {addr}");
    }
    assert!(!engine.log().contains("can't be steered"), "{}", engine.log());
}
