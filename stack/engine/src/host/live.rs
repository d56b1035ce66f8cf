//! The mirror against the kernel, in network namespaces of its own (named `uh-…`, removed whatever happens).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use utcp_proto::wire::IpAddr;

use super::netlink::{ACK, Channel, Request, u32_at};
use super::tests::ip;
use super::uapi::*;
use super::view::{HostView, Kind};
use super::{HostMirror, parse};

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
        assert!(self.try_ip(line), "ip {line}");
    }

    fn try_ip(&self, line: &str) -> bool {
        let status = Command::new("ip").args(["-n", &self.0]).args(line.split_whitespace()).status();
        status.expect("ip runs").success()
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
        if net.try_ip("link add link renamed name v7 type vlan id 7") {
            watch.until(|view| view.interface_named("v7").is_some());
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
        watch.mirror.resolve(a, ip(addr));
        watch.until(|view| view.neighbour(a, ip(addr)).is_some_and(|n| n.usable));
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

/// What the kernel itself would do: interface, source, next hop, MTU of the route.
fn ask_kernel(
    channel: &mut Channel,
    to: IpAddr,
    from: Option<IpAddr>,
) -> Option<(u32, Option<IpAddr>, IpAddr, Option<u32>)> {
    let (family, bits) = if to.is_v4() { (AF_INET, 32) } else { (AF_INET6, 128) };
    let mut header = [0; RTMSG];
    (header[0], header[1]) = (family, bits);
    let bytes = |addr: IpAddr| if addr.is_v4() { addr.v4_bytes().to_vec() } else { addr.0.to_vec() };
    let mut request = Request::new(RTM_GETROUTE, ACK, &header).with(RTA_DST, &bytes(to));
    if let Some(from) = from {
        header[2] = bits;
        request =
            Request::new(RTM_GETROUTE, ACK, &header).with(RTA_DST, &bytes(to)).with(RTA_SRC, &bytes(from));
    }
    let mut found = None;
    let result = channel.dump(request, |message| {
        let kind = message.body.get(7).copied();
        if message.kind != RTM_NEWROUTE || (kind != Some(RTN_UNICAST) && kind != Some(RTN_LOCAL)) {
            return;
        }
        let mut source = None;
        let mut next_hop = to;
        let (mut oif, mut mtu) = (0, None);
        for (kind, value) in message.attributes(RTMSG) {
            match kind {
                RTA_OIF => oif = u32_at(value, 0).unwrap_or(0),
                RTA_PREFSRC => source = parse::ip(family, value),
                RTA_GATEWAY => next_hop = parse::ip(family, value).unwrap_or(to),
                RTA_VIA => next_hop = parse::ip(AF_INET6, &value[2..]).unwrap_or(to),
                RTA_METRICS => mtu = parse::mtu(super::netlink::Attributes(value)),
                _ => {}
            }
        }
        found = Some((oif, from.or(source), next_hop, mtu));
    });
    result.ok().and(found)
}

/// Compares route choice with the kernel's for many destinations and sources; how often both found a route.
#[track_caller]
fn check_like_the_kernel(setup: &str, destinations: &[IpAddr], sources: &[Option<IpAddr>]) -> usize {
    let view = Watch::new().view;
    let mut channel = Channel::open(NETLINK_ROUTE).expect("netlink works");
    let mut decided = 0;
    for &to in destinations {
        for &from in sources {
            if from.is_some_and(|from| from.is_v4() != to.is_v4() || !view.is_local(from)) {
                continue;
            }
            let mut kernel = ask_kernel(&mut channel, to, from);
            if let (true, None, Some((_, Some(source), ..))) = (to.is_v4(), from, kernel) {
                // As connect does for IPv4: a second time, with the source.
                kernel = ask_kernel(&mut channel, to, Some(source));
            }
            let ours = view.route(to, from).map(|r| (r.ifindex, Some(r.source), r.next_hop, r.mtu));
            assert_eq!(ours, kernel, "to {to} from {from:?} with:\n{setup}");
            decided += usize::from(kernel.is_some());
        }
    }
    decided
}

/// What may be there besides: secondary, borrowed, point-to-point, deprecated ones, other scopes and labels.
const ADDRESSES: [&str; 14] = [
    "addr add 10.0.0.3/24 dev va",
    "addr add 10.1.0.1/16 dev vb",
    "addr add 169.254.1.1/16 dev va scope link",
    "addr add 172.16.0.9/32 dev lo",
    "addr add 10.9.9.9 peer 10.9.9.10/32 dev vb",
    "addr add 203.16.0.5/25 dev va",
    "addr add 2a00:8000:a::5/64 dev va nodad",
    "addr add fd00:77::5/64 dev vb nodad",
    "addr add 2001:db8:a::9/64 dev va preferred_lft 0 nodad",
    "addr add 2001:db8:b:8000::9/64 dev vb preferred_lft 0 nodad",
    "addr add 2a00:8000::77/128 dev lo",
    "addr add 2002:102:304::1/48 dev va nodad",
    "addr del fe80::b/64 dev vb",
    "addr del 10.0.0.2/24 dev va",
];

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 33).expect("31 bits") % n
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(u32::try_from(choices.len()).expect("few"))).expect("few")]
    }

    /// From a small space, so that prefixes nest and destinations meet them.
    fn v4(&mut self) -> String {
        let first = self.of(&["172", "10", "203"]);
        let parts =
            [self.of(&["0", "16", "255"]), self.of(&["0", "1", "128"]), self.of(&["0", "1", "2", "77"])];
        format!("{first}.{}", parts.join("."))
    }

    fn v6(&mut self) -> String {
        let first = self.of(&["2001:db8", "fd00:77", "2a00:8000", "2002:102"]);
        format!(
            "{first}:{}:{}::{}",
            self.of(&["0", "a", "b"]),
            self.of(&["0", "1", "8000"]),
            self.of(&["0", "1", "7"])
        )
    }

    fn route(&mut self, v6: bool) -> String {
        let addr = if v6 { self.v6() } else { self.v4() };
        let lengths = if v6 {
            ["0", "16", "32", "40", "48", "64", "96", "128"]
        } else {
            ["0", "5", "8", "12", "16", "20", "24", "32"]
        };
        let gateways = if v6 {
            [
                "via 2001:db8:a::1",
                "via 2001:db8:b::1",
                "via fe80::1 dev va",
                "dev vb",
                "via fe80::7 dev vb src 2001:db8:a::2",
                "via fe80::3 dev vb",
            ]
        } else {
            [
                "via 10.0.0.1",
                "via 192.168.5.1",
                "via 10.77.0.1 dev va onlink",
                "via inet6 fe80::9 dev va",
                "dev vb",
                "via 192.168.5.7 src 10.0.0.2",
            ]
        };
        let kind = self.of(&[
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "unreachable",
            "blackhole",
            "throw",
            "prohibit",
        ]);
        let hop = if kind == "unicast" { self.of(&gateways) } else { "" };
        let mtu = if kind == "unicast" { self.of(&["", "", "mtu 1400"]) } else { "" };
        let (len, table) = (self.of(&lengths), self.of(&["main", "main", "main", "default", "100", "101"]));
        let metric = self.of(&["10", "20", "4000"]);
        let family = if v6 { "-6 " } else { "" };
        format!("{family}route add {kind} {} {hop} metric {metric} {mtu} table {table}", masked(&addr, len))
    }

    fn rule(&mut self, v6: bool) -> String {
        let addr = if v6 { self.v6() } else { self.v4() };
        let len = if v6 { self.of(&["0", "16", "40", "64"]) } else { self.of(&["0", "5", "16", "24"]) };
        let own = if v6 { ["2001:db8:a::2", "2001:db8:b::/64"] } else { ["10.0.0.2", "192.168.5.0/24"] };
        let from = self.of(&["", "", "from"]);
        let from = if from.is_empty() { String::new() } else { format!("{from} {}", self.of(&own)) };
        let to = if self.below(2) == 0 { String::new() } else { format!("to {}", masked(&addr, len)) };
        let more =
            self.of(&["", "", "", "fwmark 7", "fwmark 0/3", "iif lo", "iif va", "oif va", "dsfield 0x10"]);
        let action = self.of(&[
            "table 100",
            "table 100",
            "table 101",
            "table 101",
            "table default",
            "table main",
            "unreachable",
            "nop",
            "goto 32766",
            "table main suppress_prefixlength 8",
        ]);
        let not = self.of(&["", "", "", "", "", "not"]);
        let family = if v6 { "-6 " } else { "" };
        format!("{family}rule add {not} {from} {to} {more} pref {} {action}", 100 + self.below(500))
    }
}

fn masked(addr: &str, len: &str) -> String {
    let (bytes, bits) = (ip(addr), len.parse::<u32>().expect("a length"));
    let mask = |all: u32| u128::MAX.checked_shl(all - bits).unwrap_or(0);
    let addr = if bytes.is_v4() {
        let kept = u128::from(u32::from_be_bytes(bytes.v4_bytes())) & mask(32);
        IpAddr::v4(u32::try_from(kept & u128::from(u32::MAX)).expect("32 bits").to_be_bytes())
    } else {
        IpAddr::v6((u128::from_be_bytes(bytes.0) & mask(128)).to_be_bytes())
    };
    format!("{addr}/{len}")
}

#[test]
fn chooses_as_the_kernel_does() {
    const SEEDS: u64 = 16;
    let mut decided = 0;
    for seed in 1..=SEEDS {
        let Some(net) = Net::with_links() else { return };
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut setup = format!("# seed {seed}\n");
        for address in ADDRESSES {
            if dice.below(3) == 0 {
                let _ = writeln!(setup, "{address}");
            }
        }
        for n in 0..240 {
            let _ = writeln!(setup, "{}", dice.route(n % 2 == 0));
        }
        for n in 0..(seed % 4) * 6 {
            let _ = writeln!(setup, "{}", dice.rule(n % 2 == 0));
        }
        for gateway in ["fe80::7 dev vb", "fe80::1 dev va", "2001:db8:b::1 dev vb", "10.0.0.1 dev va"] {
            if dice.below(3) == 0 {
                let _ = writeln!(setup, "neigh add {gateway} nud failed");
            }
        }
        if seed % 4 == 0 {
            setup += "link set vb down\n"; // And va loses its carrier.
        }
        net.batch(&setup);
        let mut to: HashSet<IpAddr> = (0..150).map(|_| ip(&dice.v4())).collect();
        to.extend((0..150).map(|_| ip(&dice.v6())));
        to.extend(["10.0.0.9", "10.0.0.2", "192.168.5.9", "2001:db8:a::9", "2001:db8:b::9", "::1"].map(ip));
        let to: Vec<_> = to.into_iter().collect();
        let own = ["10.0.0.2", "192.168.5.2", "2001:db8:a::2", "2001:db8:b::2"].map(|own| Some(ip(own)));
        decided += net.inside(|| check_like_the_kernel(&setup, &to, &[&[None][..], &own].concat()));
    }
    assert!(decided > 2000, "only {decided} lookups led somewhere");
}
