//! A flood that is not the engine's, through each kind of port: ping, ssh and ARP of the host go on, and so does what is served.
//!
//! At full speed two cores of one host are sender, cable and receiver, and which frames the queue of a veth pair loses is not
//! utcp's doing. So the flood here is one that the kernel alone takes without loss.

use std::path::Path;

use utcp_tests::nginx::Nginx;
use utcp_tests::{
    Engine, Host, Lab, Net, Running, WAIT, ip, is_installed, is_root, measured, not_run, on_kernel,
    release_file, wait_until,
};

/// Echo requests, one after the other, and how many may be lost: a flood fills queues of the kernel's own.
const PINGS: u32 = 100;
const LOST_MAX: u32 = 2;

macro_rules! needs_utcp_root_and_ssh {
    () => {
        if on_kernel() {
            return not_run("the kernel is not its own neighbour");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
        if !is_installed("ssh") || !is_installed("ssh-keygen") || !Path::new("/usr/sbin/sshd").exists() {
            return not_run("needs ssh");
        }
    };
}

/// Pings; prints how many were answered, and the microseconds of the slowest. An answer may be late on a busy machine; once too many are lost, no
/// more are sent.
fn ping(addr: &str) -> String {
    format!(
        "import socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
# Answers alone (ICMP_FILTER): refused datagrams would fill the socket.
s.setsockopt(255, 1, struct.pack('@I', ~1 & 0xffffffff))
s.settimeout(10)
s.connect(('{addr}', 0))
answers, slowest, lost = 0, 0, 0
for n in range({PINGS}):
    body = struct.pack('!HH', 77, n) + b'abcdefgh'
    total = 0x0800 + sum(struct.unpack('!6H', body))
    total = (total & 0xffff) + (total >> 16)
    begin = time.monotonic()
    s.send(struct.pack('!BBH', 8, 0, ~total & 0xffff) + body)
    try:
        while s.recv(100)[24:] != body: pass
        answers += 1
        slowest = max(slowest, time.monotonic() - begin)
    except TimeoutError:
        lost += 1
        if lost > {LOST_MAX}: break
    time.sleep(0.005)
print(answers, int(slowest * 1e6))"
    )
}

/// Whose host stands there, and how its address is reached.
struct Place<'a> {
    lab: &'a Lab,
    host: &'a Host,
    peer: &'a Host,
    addr: &'a str,
    /// The peer's interface.
    cable: &'a str,
    /// Datagrams a second. What leaves faster than this host's cores take it, any kernel's queues lose, and pings with it.
    rate: u32,
}

impl Place<'_> {
    /// Datagrams that the host's kernel got: nobody listens where the flood goes.
    fn datagrams(&self) -> u64 {
        let text = self.lab.run("cat").arg("/proc/net/snmp").inside(self.host).ok().text();
        let line = text.lines().rfind(|line| line.starts_with("Udp:")).expect("the kernel counts");
        // InDatagrams, NoPorts, InErrors.
        line.split(' ').skip(1).take(3).map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    /// sshd of the host's kernel; the port.
    fn sshd(&self) -> (u16, Running) {
        let (lab, port) = (self.lab, self.lab.port());
        for name in ["host", "user"] {
            let key = lab.run("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            let _ = key.arg(lab.path(name)).ok();
        }
        std::fs::create_dir_all("/run/sshd").expect("root makes folders");
        let words = format!(
            "Port {port}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nUseDNS no\n",
            self.addr,
            lab.path("host").display(),
            lab.path("user.pub").display()
        );
        let config = lab.file("sshd_config", words);
        let sshd = lab.run("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(config).inside(self.host).spawn();
        wait_until("sshd listens", WAIT, || sshd.stderr().contains("listening").then_some(()));
        (port, sshd)
    }

    fn ssh(&self, port: u16) {
        let ssh = self.lab.run("ssh").args(["-F", "none", "-p", &port.to_string(), "-i"]);
        let ssh = ssh.arg(self.lab.path("user")).args(["-o", "StrictHostKeyChecking=no"]);
        let ssh = ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]);
        let login = ssh.args([&format!("root@{}", self.addr), "head -c 2000000 /dev/zero | wc -c"]);
        assert_eq!(login.inside(self.peer).ok().text(), "2000000\n");
    }

    /// Everything of the host's while the flood runs. `served`: a page of the engine's.
    #[track_caller]
    fn goes_on(&self, what: &str, served: Option<&str>) {
        let (port, _sshd) = self.sshd();
        let flood = self.lab.run(release_file("utcp-flooder"));
        let flood = flood.args(["udp", self.addr, "9", &self.rate.to_string()]).inside(self.peer);
        let (before, begin) = (self.datagrams(), std::time::Instant::now());
        let mut flood = flood.spawn();
        flood.wait_for_output("floods");
        wait_until("the flood arrives", WAIT, || (self.datagrams() > before + 10_000).then_some(()));
        let pinged = self.lab.python(&ping(self.addr)).inside(self.peer).ok().text();
        self.ssh(port);
        ip(self.lab, self.peer, &format!("neigh del {} dev {}", self.addr, self.cable));
        self.ssh(port);
        if let Some(url) = served {
            for _ in 0..10 {
                let page = self.lab.run("curl").args(["-sS", "-m", "20", url]).inside(self.peer).ok();
                assert_eq!(page.text(), "hello\n", "{what}");
            }
        }
        let rate = (self.datagrams() - before) as f64 / begin.elapsed().as_secs_f64();
        flood.signal(libc::SIGKILL);
        let (answered, slowest) = pinged.trim().split_once(' ').expect("two numbers");
        measured(&format!(
            "{what}: {rate:.0} datagrams a second to the kernel; {answered} of {PINGS} pings, the slowest {slowest} us"
        ));
        let answered: u32 = answered.parse().expect("a number");
        assert!(answered + LOST_MAX >= PINGS, "{what}: {answered} of {PINGS} pings were answered");
    }
}

/// A host with a veth pair, and an engine on it.
fn over_a_veth_pair(name: &str, device: Option<&str>, faults: Option<&str>) {
    let (lab, net) = (Lab::new(name), Net::new());
    let (host, peer) = (&net.server, &net.client);
    let place = Place { lab: &lab, host, peer, addr: &host.addr, cable: &peer.interface, rate: 40_000 };
    let Some(device) = device else { return place.goes_on(name, None) };
    let _switch = device.starts_with("switch:").then(|| {
        let shared = format!("xdp:{}", host.interface);
        let switch = lab.run(release_file("utcp")).args(["switch", &shared]).inside(host).spawn();
        wait_until("the switch runs", WAIT, || switch.stderr().contains("is shared").then_some(()));
        switch
    });
    let mut engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", device);
    if let Some(faults) = faults {
        engine = engine.set("UTCP_FAULTS", faults);
    }
    let engine = engine.run();
    let nginx = Nginx::start(&lab, &engine);
    place.goes_on(name, Some(&format!("http://{}:{}/hello", host.addr, nginx.port)));
    engine.went_through(10);
    assert_eq!(engine.counters().get("dropped_frames"), 0, "{name}: what is the kernel's came to us");
}

#[test]
fn without_utcp() {
    needs_utcp_root_and_ssh!();
    over_a_veth_pair("flood-kernel", None, None);
}

#[test]
fn beside_packet_sockets() {
    needs_utcp_root_and_ssh!();
    over_a_veth_pair("flood-packets", Some("xdp:veths"), None);
}

#[test]
fn beside_af_xdp() {
    needs_utcp_root_and_ssh!();
    over_a_veth_pair("flood-xdp", Some("xdp:veths"), Some("loss=0%"));
}

#[test]
fn beside_a_switch() {
    needs_utcp_root_and_ssh!();
    over_a_veth_pair("flood-switch", Some("switch:veths"), None);
}

/// Through the engine itself: every frame of the flood passes its rings. TAP devices stand for the NIC, which lose what comes faster; what
/// comes while a busy machine lets the engine wait, waits in their queues.
#[test]
fn through_netmap() {
    needs_utcp_root_and_ssh!();
    let (lab, net) = (Lab::new("flood-netmap"), Net::new());
    let (host, peer) = (&net.server, &net.client);
    for device in ["nm0", "wire0"] {
        ip(&lab, host, &format!("tuntap add dev {device} mode tap"));
        ip(&lab, host, &format!("link set {device} txqueuelen 50000"));
    }
    ip(&lab, host, "addr add 10.88.0.1/24 dev nm0");
    ip(&lab, host, "link set nm0 up");
    let engine = Engine::new(&lab).inside(host).by(release_file("utcp-netmap-host"));
    let engine = engine.set("UTCP_DEVICE", "netmap:nm0").set("NETMAP_HOST_CABLE", "wire0");
    let engine = engine.set("NETMAP_HOST_PATIENT", "1").run();
    ip(&lab, host, &format!("link set wire0 netns {}", peer.namespace()));
    ip(&lab, peer, "addr add 10.88.0.2/24 dev wire0");
    ip(&lab, peer, "link set wire0 up");
    let nginx = Nginx::start(&lab, &engine);
    let place = Place { lab: &lab, host, peer, addr: "10.88.0.1", cable: "wire0", rate: 20_000 };
    place.goes_on("flood-netmap", Some(&format!("http://10.88.0.1:{}/hello", nginx.port)));
    engine.went_through(10);
    let counters = engine.counters();
    assert!(counters.get("netmap:nm0-0.to_host") > 10_000);
    assert_eq!(counters.get("netmap:nm0-0.to_host_dropped"), 0);
}
