//! Several queues and several shards: frames reach the shard that has their flow, whatever the queue.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{Download, Engine, Host, Lab, Net, ip, is_root, not_run, on_kernel};

macro_rules! needs_utcp_root_and_two_cores {
    () => {
        if on_kernel() {
            return not_run("the kernel spreads its own frames");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
            return not_run("needs two cores");
        }
    };
}

/// A cable whose ends have `server` and `client` queues.
fn cable(lab: &Lab, net: &Net, server: u32, client: u32) {
    ip(lab, &net.server, &format!("link del {}", net.server.interface));
    let end = |host: &Host, queues| {
        format!("{} numtxqueues {queues} numrxqueues {queues} netns {}", host.interface, host.namespace())
    };
    let (one, other) = (end(&net.server, server), end(&net.client, client));
    ip(lab, &net.server, &format!("link add {one} type veth peer name {other}"));
    for host in [&net.server, &net.client] {
        ip(lab, host, &format!("addr add {}/24 dev {}", host.addr, host.interface));
        ip(lab, host, &format!("link set {} up", host.interface));
    }
}

/// All CPUs of the host send by this queue (XPS).
fn use_queue(lab: &Lab, host: &Host, queue: u32) {
    let folder = format!("/sys/class/net/{}/queues", host.interface);
    let other = 1 - queue;
    let all = "$(cat /sys/devices/system/cpu/possible | sed 's/.*-//')";
    let script = format!(
        "echo 0 > {folder}/tx-{other}/xps_cpus &&
         printf '%x' $(( (1 << ({all} + 1)) - 1 )) > {folder}/tx-{queue}/xps_cpus"
    );
    // `ip netns exec` brings the namespace's own /sys.
    let _ = lab.run("ip").args(["netns", "exec", host.namespace(), "sh", "-c", &script]).ok();
}

fn two_shards<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    let device = format!("xdp:{}", host.interface);
    Engine::new(lab).inside(host).set("UTCP_DEVICE", device).set("UTCP_CORES", "0,1").run()
}

/// Connects from eight threads (which spread over the shards) and exchanges some bytes on each connection.
fn talk(addr: &str, port: u16) -> String {
    format!(
        "import socket, threading
def work():
    for _ in range(16):
        s = socket.create_connection(('{addr}', {port}), 20)
        s.sendall(b'GET /hello HTTP/1.0\\r\\n\\r\\n')
        got = b''
        while part := s.recv(4096): got += part
        assert got.endswith(b'hello\\n'), got
        done.append(1)
done = []
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(done))"
    )
}

/// The kernel's answers come to the queue that its hash chooses, not to the shard that connected.
#[test]
fn answers_find_the_shard_that_connected() {
    needs_utcp_root_and_two_cores!();
    let (lab, net) = (Lab::new("two-queues"), Net::new());
    cable(&lab, &net, 2, 2);
    let nginx = Nginx::start_on_kernel(&lab, Some(&net.client));
    let engine = two_shards(&lab, &net.server);
    let end = lab.python(&talk(&net.client.addr, nginx.port)).under(&engine).ok();
    assert_eq!(end.text(), "128\n", "{}", end.err);
    engine.went_through(128);
    let counters = engine.counters();
    assert!(counters.get("frames_handed_over") > 0, "no answer came to the other shard's queue");
    assert_eq!((counters.get("handover_lost"), counters.get("connects_kernel")), (0, 0));
    // Two shards never choose the same port.
    assert_eq!(counters.get("resets_sent"), 0);
}

/// A shard without a queue has its connections taken on by the one with it.
#[test]
fn a_shard_without_a_queue_connects_by_another() {
    needs_utcp_root_and_two_cores!();
    let (lab, net) = (Lab::new("one-queue"), Net::new());
    let nginx = Nginx::start_on_kernel(&lab, Some(&net.client));
    let engine = two_shards(&lab, &net.server);
    let end = lab.python(&talk(&net.client.addr, nginx.port)).under(&engine).ok();
    assert_eq!(end.text(), "128\n", "{}", end.err);
    engine.went_through(128);
    let counters = engine.counters();
    assert_eq!(counters.get("connects_kernel"), 0);
    assert!(counters.get("connects_passed") > 0, "every thread was the first shard's");
}

/// A server on two queues: connections arrive at both, and a sender that changes its queue in the middle of a connection
/// does not break it.
#[test]
fn a_flow_that_changes_its_queue_goes_on() {
    needs_utcp_root_and_two_cores!();
    let (lab, net) = (Lab::new("hopping"), Net::new());
    cable(&lab, &net, 2, 2);
    let engine = two_shards(&lab, &net.server);
    let nginx = Nginx::start(&lab, &engine);
    let end = lab.python(&talk(&net.server.addr, nginx.port)).inside(&net.client).ok();
    assert_eq!(end.text(), "128\n", "{}", end.err);
    engine.went_through(128);
    let busy = engine.counters();
    let file = lab.random_file("www/big", 30_000_000);
    let fetch = |n: u32| {
        let url = format!("http://{}:{}/big", net.server.addr, nginx.port);
        Download::start(&lab, &net.client, &url, &format!("got{n}"))
    };
    let downloads: Vec<_> = (0..6).map(fetch).collect();
    utcp_tests::wait_until("all are served", utcp_tests::WAIT, || {
        (engine.sockets().iter().filter(|socket| socket.state == "ESTAB").count() >= 6).then_some(())
    });
    // Everything from there leaves by one queue only, then by the other: for each flow one of the two is the wrong one.
    for queue in [0, 1] {
        use_queue(&lab, &net.client, queue);
        std::thread::sleep(Duration::from_secs(1));
    }
    for download in downloads {
        download.end(&file);
    }
    engine.went_through(6);
    let now = engine.counters();
    assert!(now.since(&busy, "frames_handed_over") > 0, "no flow changed its queue");
    assert_eq!((now.since(&busy, "resets_sent"), now.get("handover_lost")), (0, 0));
}

/// A TAP device has a queue for each shard, and each shard is a station there: neighbours that one hears of, all know.
#[test]
fn a_tap_device_has_a_queue_for_each_shard() {
    needs_utcp_root_and_two_cores!();
    let (lab, net) = (Lab::new("queues-tap"), Net::new());
    let host = &net.server;
    let device = "tap:utcp0,addr=10.9.0.2/24,addr=fd00:9::2/64";
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", device).set("UTCP_CORES", "0,1").run();
    ip(&lab, host, "addr add 10.9.0.1/24 dev utcp0");
    ip(&lab, host, "addr add fd00:9::1/64 dev utcp0 nodad");
    let kernel = Nginx::start_on_kernel(&lab, Some(host));
    for addr in ["10.9.0.1", "fd00:9::1"] {
        assert_eq!(lab.python(&talk(addr, kernel.port)).under(&engine).ok().text(), "128\n");
    }
    let other_lab = Lab::new("queues-tap-server");
    let ours = Nginx::start(&other_lab, &engine);
    for addr in ["10.9.0.2", "fd00:9::2"] {
        assert_eq!(lab.python(&talk(addr, ours.port)).inside(host).ok().text(), "128\n");
    }
    engine.went_through(256);
    for queue in 0..2 {
        let (got, sent) = (format!("tap:utcp0-{queue}.rx_frames"), format!("tap:utcp0-{queue}.tx_frames"));
        assert!(engine.counters().get(&got) > 100 && engine.counters().get(&sent) > 100, "queue {queue}");
    }
}
