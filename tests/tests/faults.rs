//! A bad link on purpose, by the environment alone (`UTCP_FAULTS`): each kind does what docs/faults.md says of it, and is counted.

use std::time::{Duration, Instant};

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Host, Lab, Net, is_root, not_run, on_kernel};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's links are as they are");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

const BIG: usize = 3_000_000;

fn with_faults<'l>(lab: &'l Lab, host: &Host, faults: &str) -> Engine<'l> {
    let device = format!("xdp:{}", host.interface);
    Engine::new(lab).inside(host).set("UTCP_DEVICE", device).set("UTCP_FAULTS", faults).run()
}

/// The file of nginx under `engine`, once; how long it took.
fn fetch(lab: &Lab, net: &Net, engine: &Engine<'_>) -> Duration {
    let nginx = Nginx::start(lab, engine);
    let file = lab.random_file("www/big", BIG);
    let got = lab.path("got");
    let url = format!("http://{}:{}/big", net.server.addr, nginx.port);
    let curl = lab.run("curl").args(["-sS", "-m", "60", "-o"]).arg(&got).arg(&url);
    let begin = Instant::now();
    let _ = curl.inside(&net.client).limit(Duration::from_secs(70)).ok();
    let took = begin.elapsed();
    assert!(
        std::fs::read(&got).expect("curl's") == std::fs::read(&file).expect("ours"),
        "it arrived changed"
    );
    engine.went_through(1);
    took
}

const ALL: [&str; 5] =
    ["fault_lost", "fault_duplicated", "fault_reordered", "fault_corrupted", "fault_queue_full"];

/// The file arrives whole over each kind of bad link, whose faults are in their own counter, and in no other.
#[test]
fn every_kind_is_had_from_the_environment_and_counted() {
    needs_utcp_and_root!();
    for (faults, counter) in [
        ("loss=2%", "fault_lost"),
        // A burst ends by frames, not by time: one of three frames on average would meet a lone segment's timeouts one after the
        // other, seven of ten times each, until they are a minute apart.
        ("burst=0.5%/60%,seed=3", "fault_lost"),
        ("duplicate=5%", "fault_duplicated"),
        ("reorder=5%", "fault_reordered"),
        ("corrupt=2%", "fault_corrupted"),
        ("rate=200mbit,queue=20", "fault_queue_full"),
    ] {
        let (lab, net) = (Lab::new("fault-kinds"), Net::new());
        // Its checksums have to be whole for it to notice.
        let off = lab.run("ethtool").args(["-K", &net.client.interface, "tx", "off"]).inside(&net.client);
        let _ = off.ok();
        let engine = with_faults(&lab, &net.server, faults);
        fetch(&lab, &net, &engine);
        let counters = engine.counters();
        let of = |name: &str| counters.get(&format!("xdp:{}-0.{name}", net.server.interface));
        for name in ALL {
            assert_eq!(of(name) > 0, name == counter, "{faults}: {name} is {}", of(name));
        }
        assert!(engine.log().contains("faults are injected on purpose"), "{faults}");
    }
}

/// Delay and jitter are in the round trip, and a rate is in the time that a file takes.
#[test]
fn delay_jitter_and_rate_are_kept() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("fault-delay"), Net::new());
    let engine = with_faults(&lab, &net.server, "delay=30ms,jitter=5ms");
    let nginx = Nginx::start(&lab, &engine);
    let ask = format!(
        "import socket, time
s = socket.create_connection(('{}', {}), 20)
for n in range(10):
    begin = time.monotonic()
    s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    assert b'hello' in s.recv(1000)
    print(int((time.monotonic() - begin) * 1000))",
        net.server.addr, nginx.port
    );
    let told = lab.python(&ask).inside(&net.client).ok().text();
    let trips: Vec<u64> = told.lines().map(|line| line.parse().expect("milliseconds")).collect();
    // Both ways are delayed. What is above that is the machine's, which may be busy: the best of ten tells.
    assert!(trips.iter().all(|ms| *ms >= 60), "{trips:?}");
    assert!(trips.iter().min().is_some_and(|ms| *ms < 90), "{trips:?}");
    engine.went_through(1);

    let (lab, net) = (Lab::new("fault-rate"), Net::new());
    let engine = with_faults(&lab, &net.server, "rate=16mbit,side=out");
    let took = fetch(&lab, &net, &engine);
    // Three megabytes are 24 Mbit: a second and a half.
    assert!(took >= Duration::from_millis(1450), "{took:?} for {BIG} bytes at 16 Mbit a second");
}

/// What suffers alone is what comes (the engine hears nothing), or what leaves (it hears, and its answers are lost).
#[test]
fn one_side_suffers_alone() {
    needs_utcp_and_root!();
    for (side, hears) in [("in", false), ("out", true)] {
        let (lab, net) = (Lab::new("fault-side"), Net::new());
        let engine = with_faults(&lab, &net.server, &format!("loss=100%,side={side}"));
        let nginx = Nginx::start(&lab, &engine);
        let url = format!("http://{}:{}/hello", net.server.addr, nginx.port);
        let curl = lab.run("curl").args(["-s", "-m", "2", &url]).inside(&net.client).finish();
        assert_eq!(curl.status.code(), Some(28), "{side}: it waits in vain");
        let counters = engine.counters();
        assert_eq!(counters.get("rx_frames") > 0, hears, "{side}: {} frames", counters.get("rx_frames"));
        assert!(counters.get(&format!("xdp:{}-0.fault_lost", net.server.interface)) > 0, "{side}");
    }
}
