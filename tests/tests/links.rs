//! The link below the engine goes down, comes back, and goes for good.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Engine, Host, Lab, Net, Running, WAIT, cpu_ticks, ip, is_root, not_run, on_kernel, wait_until,
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

/// A download that takes some seconds.
fn download(lab: &Lab, host: &Host, url: &str) -> Running {
    let curl = lab.run("curl").args(["-sS", "-m", "60", "--limit-rate", "8M", "-o"]).arg(lab.path("got"));
    curl.arg(url).inside(host).limit(Duration::from_secs(70)).spawn()
}

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
    let mut curl = download(lab, client, &format!("http://{addr}:{}/big", nginx.port));
    wait_for_state(engine, "ESTAB");
    ip(lab, host, &format!("link set {interface} down"));
    wait_for_state(engine, "link:down");
    let why = engine.ask(&format!("why {}", nginx.port)).expect("it answers");
    assert!(why.contains("(which is down)"), "{why}");
    std::thread::sleep(Duration::from_secs(1));
    ip(lab, host, &format!("link set {interface} up"));
    let _ = curl.end_within(Duration::from_secs(70)).ok();
    let same = std::fs::read(&file).expect("ours") == std::fs::read(lab.path("got")).expect("curl's");
    assert!(same, "the file arrived changed");
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
        let _curl = download(&lab, client, &format!("http://{addr}:{}/big", nginx.port));
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
