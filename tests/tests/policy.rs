//! Whose way a connection goes: by the kernel's rules, tables, metrics and source hints, which utcp follows where it can
//! judge them, and leaves to the kernel where it can't.

use utcp_tests::mirror::{serve, visit, visit_marked};
use utcp_tests::{Engine, Lab, Net, WAIT, ip, is_root, not_run, on_kernel, wait_until};

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel follows its own rules");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

/// Two cables between the hosts, `first` being the net's own; 10.99.0.2 and 10.99.0.3 live behind both, as does fd99::2.
fn two_cables(lab: &Lab, net: &Net) {
    let (host, client) = (&net.server, &net.client);
    let cable = format!(
        "link add second netns {} type veth peer name second netns {}",
        host.namespace(),
        client.namespace()
    );
    ip(lab, host, &cable);
    for (end, last) in [(host, 1), (client, 2)] {
        ip(lab, end, &format!("addr add 10.78.0.{last}/24 dev second"));
        ip(lab, end, &format!("addr add fd00:78::{last}/64 dev second nodad"));
        ip(lab, end, "link set second up");
    }
    for addr in ["10.99.0.2/32", "10.99.0.3/32", "fd99::2/128"] {
        ip(lab, client, &format!("addr add {addr} dev lo"));
    }
    ip(lab, host, &format!("addr add 10.77.0.50/24 dev {}", host.interface));
}

/// A change of the host's rules or routes, a connection, the address that it comes from (or the error), and whether utcp serves it.
struct Case {
    change: &'static str,
    to: &'static str,
    from: &'static str,
    mark: u32,
    want: &'static str,
    ours: bool,
}

const fn case(
    change: &'static str,
    to: &'static str,
    from: &'static str,
    mark: u32,
    want: &'static str,
    ours: bool,
) -> Case {
    Case { change, to, from, mark, want, ours }
}

const CASES: &[Case] = &[
    case("route add 10.99.0.2 via 10.77.0.2", "10.99.0.2", "", 0, "10.77.0.1", true),
    // A source hint (RTA_PREFSRC).
    case("route replace 10.99.0.2 via 10.77.0.2 src 10.77.0.50", "10.99.0.2", "", 0, "10.77.0.50", true),
    // The smaller metric wins.
    case("route add 10.99.0.3 via 10.77.0.2 metric 100", "10.99.0.3", "", 0, "10.77.0.1", true),
    case("route add 10.99.0.3 via 10.78.0.2 metric 50", "10.99.0.3", "", 0, "10.78.0.1", true),
    // Rules: by the source that the program chose, by mark, by "from this host".
    case("route add unreachable 10.99.0.3 table 100", "10.99.0.3", "10.77.0.50", 0, "10.77.0.50", true),
    case(
        "rule add from 10.77.0.50 lookup 100 pref 1000",
        "10.99.0.3",
        "10.77.0.50",
        0,
        "EHOSTUNREACH",
        false,
    ),
    case("route replace 10.99.0.3 via 10.78.0.2 table 100", "10.99.0.3", "10.77.0.50", 0, "10.77.0.50", true),
    case("route add prohibit 10.99.0.2 table 200", "10.99.0.2", "", 7, "10.77.0.50", false),
    case("rule add fwmark 7 lookup 200 pref 900", "10.99.0.2", "", 7, "EACCES", false),
    case("route add 10.99.0.200 via 10.77.0.2", "10.99.0.2", "", 0, "10.77.0.50", true),
    case("-6 route add fd99::2 via fd00:77::2", "fd99::2", "", 0, "fd00:77::1", true),
    case("-6 route add fd99::2 via fd00:78::2 table 300", "fd99::2", "", 0, "fd00:77::1", true),
    case("-6 rule add to fd99::/64 lookup 300 pref 800", "fd99::2", "", 0, "fd00:78::1", true),
    // Rules about packets that come in by an interface: ours come from this host itself (`lo`).
    case("route add unreachable 10.99.0.2 table 400", "10.99.0.2", "", 0, "10.77.0.50", true),
    case("rule add iif second lookup 400 pref 600", "10.99.0.2", "", 0, "10.77.0.50", true),
    case("rule add iif lo to 10.99.0.2 lookup 400 pref 700", "10.99.0.2", "", 0, "EHOSTUNREACH", false),
    case("route replace 10.99.0.2 via 10.78.0.2 table 400", "10.99.0.2", "", 0, "10.78.0.1", true),
    Case { change: "rule del pref 700", to: "10.99.0.2", from: "", mark: 0, want: "10.77.0.50", ours: true },
    // The table "default" is asked last.
    case("route add default via 10.78.0.2 table default", "10.99.0.3", "", 0, "10.78.0.1", true),
];

#[test]
fn connections_go_where_the_kernel_would_send_them() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("policy"), Net::new());
    two_cables(&lab, &net);
    let host = &net.server;
    let port = lab.port();
    let _mirror = serve(&lab, &net.client, port, "");
    let devices = format!("xdp:{},xdp:second", host.interface);
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", devices).run();
    // Whatever way packets come back, they are taken (the kernel's own half of a check).
    for which in ["all", "default", "second"] {
        let setting = format!("net.ipv4.conf.{which}.rp_filter=0");
        let _ = lab.run("sysctl").args(["-qw", &setting]).inside(host).ok();
        let _ = lab.run("sysctl").args(["-qw", &setting]).inside(&net.client).ok();
    }
    for (n, Case { change, to, from, mark, want, ours }) in CASES.iter().enumerate() {
        ip(&lab, host, change);
        let script = visit_marked(to, port, from, *mark);
        let kernel = lab.python(&script).inside(host).ok().text();
        assert_eq!(kernel.trim(), *want, "the kernel, case {n}: {change}");
        // The engine hears of the change when the kernel tells it.
        let visit = || {
            let before = engine.counters();
            let said = lab.python(&script).under(&engine).ok().text().trim().to_owned();
            (said, engine.counters().since(&before, "connects") == 1)
        };
        let want = ((*want).to_owned(), *ours);
        let followed = (0..40).any(|_| visit() == want);
        let why = engine.ask(&format!("why {port}"));
        assert!(followed, "case {n}: {change}: {:?} instead of {want:?}: {why:?}", visit());
    }
}

/// A macvlan over the device has frames of its own, which XDP on the device below leaves to the kernel.
#[test]
fn a_macvlan_is_left_to_the_kernel() {
    needs_utcp_and_root!();
    let (lab, net) = (Lab::new("macvlan"), Net::new());
    let host = &net.server;
    ip(&lab, host, &format!("link add link {} name mac0 type macvlan mode bridge", host.interface));
    ip(&lab, host, "addr add 10.79.0.1/24 dev mac0");
    ip(&lab, host, "link set mac0 up");
    ip(&lab, &net.client, &format!("addr add 10.79.0.2/24 dev {}", net.client.interface));
    let port = lab.port();
    let _mirror = serve(&lab, &net.client, port, "");
    let device = format!("xdp:{}", host.interface);
    let engine = Engine::new(&lab).inside(host).set("UTCP_DEVICE", device).run();
    assert_eq!(lab.python(&visit("10.79.0.2", port, "")).under(&engine).ok().text(), "10.79.0.1\n");
    wait_until("`utcp why` says so", WAIT, || {
        let why = engine.ask(&format!("why {port}"))?;
        why.contains("its route leaves by mac0 (a virtual interface), which is no device of this engine")
            .then_some(())
    });
    assert_eq!(engine.counters().get("connects"), 0);
    // The device below is served as ever.
    assert_eq!(lab.python(&visit(&net.client.addr, port, "")).under(&engine).ok().text(), "10.77.0.1\n");
    engine.went_through(1);
}
