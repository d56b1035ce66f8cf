//! The mirror against the kernel, in network namespaces of its own (named `uh-…`, removed whatever happens).

mod agreement;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use utcp_proto::wire::IpAddr;

use super::HostMirror;
use super::tests::ip;
use super::view::{HostView, Kind};

/// Why the live tests can't run here, if they can't.
fn hindrance() -> Option<&'static str> {
    // SAFETY: no memory involved.
    if unsafe { libc::geteuid() } != 0 {
        return Some("network namespaces need root");
    }
    let ip = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ip.is_err().then_some("there is no `ip` command")
}

/// A network namespace.
struct Net(String);

impl Net {
    fn new() -> Option<Self> {
        if let Some(why) = hindrance() {
            eprintln!("skipped: {why}");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("uh-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        assert!(Command::new("ip").args(["netns", "add", &name]).status().expect("ip runs").success());
        let net = Self(name);
        net.ip("link set lo up");
        Some(net)
    }

    /// With a veth pair va–vb, both ends here and up: va has 10.0.0.2/24, vb 192.168.5.2/24, and both IPv6 addresses.
    fn with_links() -> Option<Self> {
        let net = Self::new()?;
        net.batch(
            "link add va type veth peer name vb
             link set va up
             link set vb up
             addr add 10.0.0.2/24 dev va
             addr add 192.168.5.2/24 dev vb
             addr add 2001:db8:a::2/64 dev va nodad
             addr add 2001:db8:b::2/64 dev vb nodad",
        );
        // Link-local addresses finish duplicate detection when they please; the tests bring their own.
        net.batch("addr flush dev va scope link\n addr flush dev vb scope link");
        net.batch("-6 addr add fe80::a/64 dev va nodad\n -6 addr add fe80::b/64 dev vb nodad");
        Some(net)
    }

    /// Runs `ip` with one line of arguments.
    fn ip(&self, line: &str) {
        let status = Command::new("ip").args(["-n", &self.0]).args(line.split_whitespace()).status();
        assert!(status.expect("ip runs").success(), "ip {line}");
    }

    /// Runs many lines at once; those that the kernel refuses are skipped. Lines that start with `-6` are of that family.
    fn batch(&self, lines: &str) {
        let (v6, others): (Vec<_>, Vec<_>) =
            lines.lines().map(str::trim).partition(|line| line.starts_with("-6 "));
        for (lines, family) in [(others, &[][..]), (v6, &["-6"][..])] {
            let mut child = Command::new("ip")
                .args(["-n", &self.0, "-force"])
                .args(family)
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("ip runs");
            let mut input = child.stdin.take().expect("it is piped");
            for line in lines {
                writeln!(input, "{}", line.trim_start_matches("-6 ")).expect("ip reads");
            }
            drop(input);
            child.wait().expect("ip ends");
        }
    }

    /// Runs `work` in a thread that lives in this namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let of = File::open(format!("/run/netns/{}", self.0)).expect("the namespace exists");
                // SAFETY: no memory involved; it concerns the calling thread alone.
                assert_eq!(unsafe { libc::setns(of.as_raw_fd(), libc::CLONE_NEWNET) }, 0, "setns");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn index(&self, view: &HostView, name: &str) -> u32 {
        view.interface_named(name).unwrap_or_else(|| panic!("{name} of {} is in the view", self.0)).index
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A mirror and its latest view.
struct Watch {
    mirror: HostMirror,
    view: Arc<HostView>,
}

impl Watch {
    fn new() -> Self {
        let (mirror, view) = HostMirror::open().expect("netlink works");
        Self { mirror, view }
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut fd = libc::pollfd { fd: self.mirror.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(timeout.as_millis()).expect("short");
        // SAFETY: one pollfd.
        unsafe { libc::poll(&raw mut fd, 1, timeout) == 1 }
    }

    /// Takes in everything until the kernel is silent for 30 ms; the number of new views.
    fn settle(&mut self) -> usize {
        let mut views = 0;
        while self.wait(Duration::from_millis(30)) {
            if let Some(view) = self.mirror.on_readable() {
                assert_ne!(view.epoch(), self.view.epoch(), "a new view has a new epoch");
                self.view = view;
                views += 1;
            }
        }
        views
    }

    /// Waits for a view of which `what` is true.
    #[track_caller]
    fn until(&mut self, what: impl Fn(&HostView) -> bool) {
        let start = Instant::now();
        while !what(&self.view) {
            assert!(start.elapsed() < Duration::from_secs(10), "the view did not come");
            if self.wait(Duration::from_millis(100)) {
                self.view = self.mirror.on_readable().unwrap_or_else(|| Arc::clone(&self.view));
            }
        }
    }

    /// Waits until the neighbour is usable; asks as the engine does, again and again. The first attempts do
    /// fail at times: for two seconds after a link comes up its own link-local address is still tentative (RFC 4862
    /// §5.4), and until then no solicitation leaves.
    #[track_caller]
    fn resolve(&mut self, ifindex: u32, addr: IpAddr) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            self.mirror.resolve(ifindex, addr);
            if self.wait(Duration::from_secs(1)) {
                self.view = self.mirror.on_readable().unwrap_or_else(|| Arc::clone(&self.view));
            }
            if self.view.neighbour(ifindex, addr).is_some_and(|n| n.usable) {
                return;
            }
        }
        panic!("{addr} was not resolved");
    }

    /// The view is what one read from scratch says.
    #[track_caller]
    fn check_against_a_fresh_one(&self) {
        let (_, fresh) = HostMirror::open().expect("netlink works");
        assert_eq!(self.view.interfaces, fresh.interfaces);
        assert_eq!(self.view.addresses, fresh.addresses);
        assert_eq!(self.view.routing, fresh.routing);
        assert_eq!(self.view.neighbours, fresh.neighbours);
    }
}

#[test]
fn follows_addresses() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        watch.settle();
        let a = net.index(&watch.view, "va");
        for (addr, len) in [("10.7.7.7", "24"), ("2001:db8:77::7", "64 nodad")] {
            assert!(!watch.view.is_local(ip(addr)));
            net.ip(&format!("addr add dev va {addr}/{len}"));
            watch.until(|view| view.is_local(ip(addr)));
            assert!(watch.view.local_addresses_of(a).any(|own| own == ip(addr)));
            net.ip(&format!("addr del dev va {addr}/{}", &len[..2]));
            watch.until(|view| !view.is_local(ip(addr)));
            assert!(watch.view.local_addresses_of(a).all(|own| own != ip(addr)));
        }
        // The first address goes, its secondary takes over; routes with it as their source go without a word.
        net.batch(
            "addr add 10.0.0.3/24 dev va
             route add 172.16.0.0/12 via 192.168.5.1 src 10.0.0.2",
        );
        watch.until(|view| view.route(ip("172.16.0.1"), None).is_some_and(|r| r.source == ip("10.0.0.2")));
        net.ip("addr del 10.0.0.2/24 dev va");
        watch.until(|view| view.route(ip("172.16.0.1"), None).is_none());
        watch.settle();
        watch.check_against_a_fresh_one();
    });
}

#[test]
fn an_address_counts_when_duplicate_detection_is_over() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        let a = net.index(&watch.view, "va");
        net.ip("addr add 2001:db8:77::7/64 dev va");
        let has = |view: &HostView| view.local_addresses_of(a).any(|own| own == ip("2001:db8:77::7"));
        watch.settle();
        // It may be over already; what matters is that its end is not missed.
        watch.until(has);
        // The other end of the cable has this one: detection fails.
        net.ip("addr add 2001:db8:b::2/64 dev va");
        thread::sleep(Duration::from_millis(50));
        watch.settle();
        assert!(
            watch.view.local_addresses_of(a).all(|own| own != ip("2001:db8:b::2")),
            "tentative or failed"
        );
    });
}

#[test]
fn follows_routes_and_rules() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        let (a, b) = (net.index(&watch.view, "va"), net.index(&watch.view, "vb"));
        let by = |view: &HostView, to| view.route(ip(to), None).map(|route| (route.ifindex, route.next_hop));
        assert_eq!(by(&watch.view, "8.8.8.8"), None);
        net.ip("route add default via 10.0.0.1");
        watch.until(|view| by(view, "8.8.8.8") == Some((a, ip("10.0.0.1"))));
        net.ip("route replace default via 192.168.5.1 mtu 1234");
        watch.until(|view| by(view, "8.8.8.8") == Some((b, ip("192.168.5.1"))));
        assert_eq!(watch.view.route(ip("8.8.8.8"), None).and_then(|route| route.mtu), Some(1234));
        net.ip("route add blackhole 8.8.0.0/16");
        watch.until(|view| by(view, "8.8.8.8").is_none() && by(view, "8.9.0.0").is_some());
        net.ip("route add 8.8.8.0/24 via 10.0.0.9 table 77");
        net.ip("rule add to 8.8.8.8 table 77");
        watch.until(|view| by(view, "8.8.8.8") == Some((a, ip("10.0.0.9"))));
        net.ip("rule del to 8.8.8.8 table 77");
        watch.until(|view| by(view, "8.8.8.8").is_none());
        net.ip("route add default via fe80::1 dev vb");
        watch.until(|view| by(view, "2a00::1") == Some((b, ip("fe80::1"))));
        net.ip("route add 172.20.0.0/16 via inet6 fe80::77 dev va");
        watch.until(|view| by(view, "172.20.0.1") == Some((a, ip("fe80::77"))));
        net.ip("route flush table main");
        watch.until(|view| by(view, "8.9.0.0").is_none() && by(view, "172.20.0.1").is_none());
        watch.settle();
        watch.check_against_a_fresh_one();
    });
}

#[test]
fn follows_interfaces() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        let a = net.index(&watch.view, "va");
        let interface = watch.view.interface(a).expect("it is there").clone();
        assert!(interface.ethernet && interface.up && interface.running && !interface.noarp);
        assert_eq!((interface.kind, interface.mtu, interface.master), (Kind::Veth, 1500, None));
        assert_eq!(watch.view.interface_named("lo").map(|lo| lo.kind), Some(Kind::Loopback));
        net.ip("route add default via 10.0.0.1");
        watch.until(|view| view.route(ip("8.8.8.8"), None).is_some());

        net.ip("link set vb down");
        watch.until(|view| view.interface(a).is_some_and(|a| a.up && !a.running));
        assert!(watch.view.route(ip("8.8.8.8"), None).is_some(), "the kernel keeps routes without carrier");
        net.ip("link set va down");
        // IPv4 routes go without a word of their own.
        watch.until(|view| view.interface(a).is_some_and(|a| !a.up));
        watch.until(|view| view.route(ip("8.8.8.8"), None).is_none());
        net.batch("link set va address 02:00:00:00:77:01\nlink set va mtu 1400\nlink set va name renamed");
        net.batch("link set renamed up\nlink set vb up\nroute add default via 10.0.0.1");
        watch.until(|view| view.route(ip("8.8.8.8"), None).is_some_and(|route| route.ifindex == a));
        watch.until(|view| view.interface(a).is_some_and(|a| a.running));
        let now = watch.view.interface_named("renamed").expect("under its new name");
        assert_eq!((now.mac, now.mtu, now.index), ([2, 0, 0, 0, 0x77, 1], 1400, a));
        assert!(watch.view.interface_named("va").is_none());

        net.ip("link add name bridge0 type bridge");
        net.ip("link set renamed master bridge0");
        watch.until(|view| view.interface(a).is_some_and(|a| a.master.is_some()));
        let bridge = watch.view.interface_named("bridge0").expect("it is there");
        assert_eq!(
            (bridge.kind, watch.view.interface(a).and_then(|a| a.master)),
            (Kind::Bridge, Some(bridge.index))
        );
        net.ip("link set renamed nomaster"); // Told by a DELLINK of the family AF_BRIDGE, too.
        watch.until(|view| view.interface(a).is_some_and(|a| a.master.is_none()));
        net.batch("link add link renamed name v7 type vlan id 7"); // Not every kernel has VLANs.
        thread::sleep(Duration::from_millis(50));
        watch.settle();
        if watch.view.interface_named("v7").is_some() {
            let vlan = watch.view.interface_named("v7").expect("just seen");
            assert_eq!(vlan.kind, Kind::Vlan { parent: a, id: 7 });
        }
        net.ip("tuntap add mode tap t0");
        watch.until(|view| view.interface_named("t0").is_some_and(|t0| t0.kind == Kind::Tun));
        watch.settle();
        watch.check_against_a_fresh_one();

        net.ip("link del renamed");
        watch.until(|view| view.interface(a).is_none());
        watch.until(|view| view.route(ip("8.8.8.8"), None).is_none() && !view.is_local(ip("10.0.0.2")));
        watch.settle();
        watch.check_against_a_fresh_one();
    });
}

/// The kernel tells that an interface goes down or an address goes before it removes their IPv4 routes, and of those
/// says nothing.
#[test]
fn silent_removals_are_not_missed() {
    let Some(net) = Net::with_links() else { return };
    net.batch("-6 addr flush dev va\n-6 addr flush dev vb");
    net.inside(|| {
        let mut watch = Watch::new();
        for round in 0..60 {
            let appear = "link set va up\naddr add 10.3.0.1/24 dev vb\nroute add 10.1.0.0/16 via 10.0.0.1";
            net.batch(&format!("{appear}\nroute add 10.2.0.0/16 via 192.168.5.1 src 10.3.0.1"));
            watch.until(|view| view.route(ip("10.2.0.1"), None).is_some());
            thread::scope(|scope| {
                let change = scope.spawn(|| {
                    net.batch(if round % 2 == 0 {
                        "link set va down"
                    } else {
                        "addr del 10.3.0.1/24 dev vb"
                    });
                });
                while !change.is_finished() {
                    if watch.wait(Duration::from_millis(1)) {
                        watch.view = watch.mirror.on_readable().unwrap_or_else(|| Arc::clone(&watch.view));
                    }
                }
            });
            watch.settle();
            watch.check_against_a_fresh_one();
        }
    });
}

#[test]
fn follows_neighbours_and_ignores_noise() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        let a = net.index(&watch.view, "va");
        let mac = |view: &HostView, addr| view.neighbour(a, ip(addr)).filter(|n| n.usable).map(|n| n.mac[5]);
        for addr in ["10.0.0.9", "2001:db8:a::9", "fe80::99"] {
            net.ip(&format!("neigh add {addr} dev va lladdr 02:00:00:00:00:01 nud reachable"));
            watch.until(|view| mac(view, addr) == Some(1));
            watch.settle();
            let epoch = watch.view.epoch();
            net.ip(&format!("neigh replace {addr} dev va lladdr 02:00:00:00:00:01 nud stale"));
            assert_eq!(watch.settle(), 0, "stale is as usable as reachable");
            assert_eq!(watch.view.epoch(), epoch);
            net.ip(&format!("neigh replace {addr} dev va lladdr 02:00:00:00:00:02 nud reachable"));
            watch.until(|view| mac(view, addr) == Some(2));
            net.ip(&format!("neigh del {addr} dev va"));
            watch.until(|view| mac(view, addr).is_none());
        }
        // Other noise: a forwarding entry of a bridge, a route of a cache.
        watch.settle();
        net.batch("link set va txqueuelen 500\nlink set va txqueuelen 1000");
        assert_eq!(watch.settle(), 0, "the queue's length is nobody's business");
        watch.check_against_a_fresh_one();
    });
}

/// Two namespaces joined by a cable: `va` with 10.0.0.2 here, `vb` with 10.0.0.1 and 2001:db8:a::1 there.
fn joined() -> Option<(Net, Net)> {
    let (here, there) = (Net::new()?, Net::new()?);
    here.ip(&format!("link add va type veth peer name vb netns {}", there.0));
    there.batch(
        "link set vb address 02:00:00:00:00:0b up
         addr add 10.0.0.1/24 dev vb
         addr add 2001:db8:a::1/64 dev vb nodad",
    );
    here.batch("link set va up\naddr add 10.0.0.2/24 dev va\naddr add 2001:db8:a::2/64 dev va nodad");
    Some((here, there))
}

fn check_resolution(net: &Net) {
    let mut watch = Watch::new();
    let a = net.index(&watch.view, "va");
    for addr in ["10.0.0.1", "2001:db8:a::1"] {
        assert_eq!(watch.view.neighbour(a, ip(addr)), None);
        watch.resolve(a, ip(addr));
        assert_eq!(watch.view.neighbour(a, ip(addr)).map(|n| n.mac), Some([2, 0, 0, 0, 0, 0xb]));
        watch.mirror.touch(a, ip(addr));
    }
    watch.mirror.resolve(a, ip("10.0.0.77"));
    watch.until(|view| view.neighbour(a, ip("10.0.0.77")).is_some_and(|n| n.failed && !n.usable));
}

#[test]
fn resolves_neighbours() {
    let Some((net, _peer)) = joined() else { return };
    net.inside(|| {
        check_resolution(&net);
        // Use makes a stale entry fresh again, after the kernel asked.
        let mut watch = Watch::new();
        let a = net.index(&watch.view, "va");
        net.ip("neigh replace 10.0.0.1 dev va lladdr 02:00:00:00:00:0b nud stale");
        std::fs::write("/proc/sys/net/ipv4/neigh/va/delay_first_probe_time", "1").ok();
        watch.settle();
        watch.mirror.touch(a, ip("10.0.0.1"));
        let start = Instant::now();
        while !shows(&net, "neigh show dev va nud reachable", "10.0.0.1") {
            assert!(start.elapsed() < Duration::from_secs(10), "it was not probed");
            thread::sleep(Duration::from_millis(50));
        }
        // A permanent entry stays one.
        net.ip("neigh replace 10.0.0.99 dev va lladdr 02:00:00:00:00:63 nud permanent");
        watch.until(|view| view.neighbour(a, ip("10.0.0.99")).is_some_and(|n| n.usable));
        watch.mirror.touch(a, ip("10.0.0.99"));
        assert!(shows(&net, "neigh show dev va nud permanent", "10.0.0.99"));
        // Nonsense is refused without harm.
        watch.mirror.resolve(9999, ip("10.0.0.1"));
        watch.mirror.resolve(1, ip("127.0.0.1"));
    });
}

fn shows(net: &Net, line: &str, what: &str) -> bool {
    let output = Command::new("ip").args(["-n", &net.0]).args(line.split_whitespace()).output();
    String::from_utf8_lossy(&output.expect("ip runs").stdout).contains(what)
}

#[test]
fn an_ordinary_user_sees_and_resolves_too() {
    let Some((net, _peer)) = joined() else { return };
    net.inside(|| {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: no memory involved; the raw call changes the calling thread alone and it drops the privileges.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(result, 0, "setresuid");
        check_resolution(&net);
    });
}

#[test]
fn a_flood_is_survived_by_reading_everything_anew() {
    let Some(net) = Net::with_links() else { return };
    net.inside(|| {
        let mut watch = Watch::new();
        watch.settle();
        // Nobody reads while this goes on; each of these is a message or two.
        let mut lines = String::new();
        for n in 0..6000 {
            let _ = writeln!(lines, "route add 172.16.{}.{}/32 via 10.0.0.1", n / 250, n % 250);
            if n % 3 == 0 {
                let _ = writeln!(lines, "route del 172.16.{}.{}/32 via 10.0.0.1", n / 250, n % 250);
            }
            let _ = writeln!(
                lines,
                "neigh replace 10.0.0.{} dev va lladdr 02:00:00:00:00:{:02x}",
                10 + n % 200,
                n % 256
            );
        }
        net.batch(&lines);
        assert!(watch.settle() < 40, "messages are taken in by the thousand");
        watch.check_against_a_fresh_one();
        assert!(watch.view.route(ip("172.16.0.1"), None).is_some());
        // Now for certain: with next to no buffer, interfaces and neighbours can't be known but by a resync.
        watch.mirror.shrink_buffer();
        net.batch(&lines);
        net.batch(
            "link set va mtu 1333\nneigh replace 10.0.0.250 dev va lladdr 02:00:00:00:00:77 nud permanent",
        );
        watch.settle();
        assert!(watch.mirror.resyncs() > 0, "the buffer overran");
        let a = net.index(&watch.view, "va");
        assert_eq!(watch.view.interface(a).map(|a| a.mtu), Some(1333));
        assert!(watch.view.neighbour(a, ip("10.0.0.250")).is_some_and(|n| n.usable));
        watch.check_against_a_fresh_one();
    });
}
