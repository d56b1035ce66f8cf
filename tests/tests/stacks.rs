//! Several engines on one device: each has tuples, memory and a process of its own.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Engine, Host, Lab, Net, Running, WAIT, ip, is_root, measured, not_run, on_kernel, release_file,
    wait_until,
};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel is one stack");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn start_switch(lab: &Lab, host: &Host) -> Running {
    let device = format!("xdp:{}", host.interface);
    let mut switch = lab.run(release_file("utcp")).args(["switch", &device]).inside(host).spawn();
    wait_until("the switch runs", WAIT, || {
        assert!(switch.is_alive(), "the switch ended:\n{}", switch.stderr());
        switch.stderr().contains("is shared").then_some(())
    });
    switch
}

fn stack<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("switch:{}", host.interface)).run()
}

/// A counter of a stack, as `utcp switch --report` has it.
#[track_caller]
fn count(lab: &Lab, host: &Host, stack: &str, what: &str) -> u64 {
    let run = lab.run(release_file("utcp")).args(["switch", &host.interface, "--report"]).inside(host);
    let text = run.ok().text();
    // A stack's name is cut off behind 32 bytes.
    let name: String = stack.chars().take(32).collect();
    let line = text.lines().find(|line| line.starts_with(&format!("stack \"{name}\"")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    let field = line.split(' ').find_map(|field| field.strip_prefix(what)?.strip_prefix(':'));
    field.expect("it is counted").parse().expect("a number")
}

fn url(host: &Host, nginx: &Nginx, page: &str) -> String {
    format!("http://{}:{}/{page}", host.addr, nginx.port)
}

fn get(lab: &Lab, host: &Host, url: &str) -> String {
    lab.run("curl").args(["-sS", "-m", "20", url]).inside(host).ok().text()
}

/// Servers of two stacks, and clients of both.
#[test]
fn two_stacks_on_one_device() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("two-stacks"), Net::new());
    let host = &net.server;
    let _switch = start_switch(&lab, host);
    let engines = [stack(&lab, host), stack(&lab, host)];
    let servers = engines.each_ref().map(|engine| Nginx::start(&lab, engine));
    let kernel = Nginx::start_on_kernel(&lab, Some(&net.client));
    for _ in 0..3 {
        for (engine, nginx) in engines.iter().zip(&servers) {
            assert_eq!(get(&lab, &net.client, &url(host, nginx, "hello")), "hello\n");
            engine.went_through(1);
            let out = lab.run("curl").args(["-sS", "-m", "20", &url(&net.client, &kernel, "hello")]);
            assert_eq!(out.under(engine).ok().text(), "hello\n");
            engine.went_through(1);
        }
    }
    for engine in &engines {
        assert!(count(&lab, host, engine.stack(), "rx_frames") > 0);
        assert_eq!(count(&lab, host, engine.stack(), "tx_spoofed"), 0);
    }
    // The port of one is not the other's, though the kernel would let them share it.
    let script = format!(
        "import errno, signal, socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(('', {}))
try:
    s.listen()
    print('listens', flush=True)
    signal.pause()
except OSError as error:
    print(errno.errorcode[error.errno])",
        lab.port()
    );
    let mut first = lab.python(&script).under(&engines[0]).spawn();
    first.wait_for_output("listens");
    assert_eq!(lab.python(&script).under(&engines[1]).ok().text(), "EADDRINUSE\n");
    // Everybody else on the address is the kernel's, as ever.
    let other = Nginx::start_on_kernel(&lab, Some(host));
    assert_eq!(get(&lab, &net.client, &url(host, &other, "hello")), "hello\n");
}

/// Eight stacks: one is killed, one is flooded, one floods with frames that it may not send; each of the other five sends its file,
/// and no frame of theirs is lost in the switch.
#[test]
fn eight_stacks_and_three_that_misbehave() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("eight-stacks"), Net::new());
    let host = &net.server;
    let _switch = start_switch(&lab, host);
    let _ = lab.random_file("www/big", 4_000_000);
    let engines: Vec<Engine<'_>> = (0..7).map(|_| stack(&lab, host)).collect();
    let servers: Vec<Nginx> = engines.iter().map(|engine| Nginx::start(&lab, engine)).collect();
    let device = format!("switch:{}", host.interface);
    let of_another = servers[2].port.to_string();
    let flooder = lab.run(release_file("utcp-flooder")).args([&device, &host.addr, &of_another]).inside(host);
    let mut flooder = flooder.spawn();
    flooder.wait_for_output("floods");
    let wrk = lab.run("wrk").args(["-t1", "-c100", "-d6s", &url(host, &servers[1], "big")]);
    let mut flood = wrk.inside(&net.client).spawn();
    let fetch = |n: usize| {
        let curl = lab.run("curl").args(["-sS", "-m", "60", "--limit-rate", "2M", "-o"]);
        let curl = curl.arg(lab.path(&format!("got{n}"))).arg(url(host, &servers[n], "big"));
        curl.inside(&net.client).limit(Duration::from_secs(70)).spawn()
    };
    let mut files: Vec<Running> = (2..7).map(fetch).collect();
    let _victim = fetch(0);
    wait_until("the victim serves", WAIT, || {
        engines[0].sockets().iter().any(|socket| socket.state == "ESTAB").then_some(())
    });
    engines[0].kill();
    for file in &mut files {
        let _ = file.end_within(Duration::from_secs(70)).ok();
    }
    let sent = std::fs::read(lab.path("www/big")).expect("ours");
    for (n, engine) in engines.iter().enumerate().skip(2) {
        assert!(std::fs::read(lab.path(&format!("got{n}"))).expect("curl's") == sent, "file {n} is changed");
        assert_eq!(count(&lab, host, engine.stack(), "rx_no_room"), 0, "stack {n}");
        assert_eq!(count(&lab, host, engine.stack(), "tx_spoofed"), 0, "stack {n}");
        engine.went_through(1);
    }
    // It goes on for as long as it takes: how many there were by now is a matter of time.
    let [spoofed, let_out] = wait_until("it has flooded", WAIT, || {
        let counts = ["tx_spoofed", "tx_frames"].map(|what| count(&lab, host, "flooder", what));
        (counts[0] > 100_000 && counts[1] > 0).then_some(counts)
    });
    measured(&format!("a flooder's frames: {spoofed} dropped, {let_out} of its own let out"));
    assert!(let_out <= spoofed / 1000, "{spoofed} {let_out}");
    let _ = flood.end_within(Duration::from_secs(30)).ok();
    flooder.signal(libc::SIGKILL);
    // What the dead one had is free: its server goes on over the kernel, and another stack takes its place.
    wait_until("its port is the kernel's", WAIT, || {
        let curl = lab.run("curl").args(["-sS", "-m", "1", &url(host, &servers[0], "hello")]);
        (curl.inside(&net.client).finish().text() == "hello\n").then_some(())
    });
    let heir = stack(&lab, host);
    let nginx = Nginx::start(&lab, &heir);
    assert_eq!(get(&lab, &net.client, &url(host, &nginx, "hello")), "hello\n");
    heir.went_through(1);
}

/// The switch ends: the stacks say so, their servers go on over the kernel; it is started again: they are served.
#[test]
fn a_switch_ends_and_comes_back() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("switch-ends"), Net::new());
    let host = &net.server;
    let mut switch = start_switch(&lab, host);
    let engine = stack(&lab, host);
    let nginx = Nginx::start(&lab, &engine);
    let page = url(host, &nginx, "hello");
    assert_eq!(get(&lab, &net.client, &page), "hello\n");
    engine.went_through(1);
    switch.signal(libc::SIGKILL);
    wait_until("the switch is dead", WAIT, || (!switch.is_alive()).then_some(()));
    wait_until("`utcp why` says so", WAIT, || {
        engine.ask(&format!("why {}", nginx.port))?.contains("(which is gone").then_some(())
    });
    assert_eq!(get(&lab, &net.client, &page), "hello\n");
    let _switch = start_switch(&lab, host);
    wait_until("it is served again", WAIT, || {
        let before = engine.counters().get("accepts");
        assert_eq!(get(&lab, &net.client, &page), "hello\n");
        (engine.counters().get("accepts") > before).then_some(())
    });
}

/// A switch is killed under a connection and started again: its engines kept the hook, so that no kernel answers with a reset,
/// and the connection goes on, also one that an engine made.
#[test]
fn a_switch_that_is_started_again_loses_no_connection() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("switch-again"), Net::new());
    let host = &net.server;
    let mut switch = start_switch(&lab, host);
    let [engine, other] = [stack(&lab, host), stack(&lab, host)];
    let port = lab.port();
    let echo = format!(
        "import socket
s = socket.create_server(('', {port}))
print('listens', flush=True)
while True:
    c, _ = s.accept()
    while data := c.recv(100): c.sendall(data)
    c.close()"
    );
    let mut ours = lab.python(&echo).under(&engine).spawn();
    ours.wait_for_output("listens");
    let mut theirs = lab.python(&echo).inside(&net.client).spawn();
    theirs.wait_for_output("listens");
    let talk = |to: &str| {
        format!(
            "import socket, time
s = socket.create_connection(('{to}', {port}), timeout=20)
for n in range(40):
    s.sendall(b'%02d' % n); assert s.recv(2) == b'%02d' % n
    if n in (5, 39): print(n, flush=True)
    time.sleep(0.05)"
        )
    };
    let mut incoming = lab.python(&talk(&host.addr)).inside(&net.client).spawn();
    let mut outgoing = lab.python(&talk(&net.client.addr)).under(&other).spawn();
    for talker in [&mut incoming, &mut outgoing] {
        talker.wait_for_output("5");
    }
    switch.signal(libc::SIGKILL);
    wait_until("the switch is dead", WAIT, || (!switch.is_alive()).then_some(()));
    let _switch = start_switch(&lab, host);
    for talker in [incoming, outgoing] {
        assert_eq!(talker.finish().ok().text(), "5\n39\n");
    }
    for engine in [engine, other] {
        engine.went_through(1);
    }
}

/// More addresses than one stack may have client ports of: both stacks start and serve all, and connections from the addresses that
/// found no room are the kernel's.
#[test]
fn hundreds_of_addresses_are_shared() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("many-shared"), Net::new());
    let (host, client) = (&net.server, &net.client);
    let add =
        |number| format!("addr add 10.99.{}.{}/16 dev {}\n", number / 100, 1 + number % 100, host.interface);
    let batch = lab.file("batch", (0..300).map(add).collect::<String>());
    ip(&lab, host, &format!("-batch {}", batch.display()));
    ip(&lab, client, &format!("addr add 10.99.9.9/16 dev {}", client.interface));
    let _switch = start_switch(&lab, host);
    let engines = [stack(&lab, host), stack(&lab, host)];
    let kernel = Nginx::start_on_kernel(&lab, Some(client));
    for engine in &engines {
        let nginx = Nginx::start(&lab, engine);
        for addr in [&*host.addr, "10.99.0.1", "10.99.1.100", "10.99.2.100"] {
            let page = format!("http://{addr}:{}/hello", nginx.port);
            assert_eq!(get(&lab, client, &page), "hello\n", "to {addr}");
            engine.went_through(1);
        }
        let from = |addr: &str| {
            let before = engine.counters();
            let run = lab.run("curl").args([
                "-sS",
                "-m",
                "20",
                "--interface",
                addr,
                &url(client, &kernel, "hello"),
            ]);
            assert_eq!(run.under(engine).ok().text(), "hello\n", "from {addr}");
            engine.counters().since(&before, "connects")
        };
        // In the order of their numbers.
        assert_eq!([from("10.99.0.1"), from("10.99.2.100")], [1, 0]);
        let told = engine.log().matches("are the kernel's").count();
        assert_eq!(told, 1, "{}", engine.log());
    }
}
