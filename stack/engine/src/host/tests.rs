//! Route and source choice as tables. What the kernel itself does is asked in `live.rs`.

use std::net;
use std::sync::Arc;

use utcp_proto::wire::IpAddr;
use utcp_proto::wire::ethernet::Mac;

use super::netlink::{Messages, Request};
use super::parse;
use super::prefix::Prefix;
use super::routing::{Entry, Family, Hop, Judged, RouteKind, Routing, Rule, RuleAction};
use super::source::{Address, Addresses};
use super::uapi::*;
use super::view::{HostView, Interface, Kind, Neighbour, Route};

pub fn ip(text: &str) -> IpAddr {
    match text.parse().expect("an address") {
        net::IpAddr::V4(a) => IpAddr::v4(a.octets()),
        net::IpAddr::V6(a) => IpAddr::v6(a.octets()),
    }
}

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').expect("address/length");
    Prefix::new(ip(addr), len.parse().expect("a length"))
}

fn interface(index: u32, name: &str) -> Interface {
    Interface {
        index,
        name: name.into(),
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, u8::try_from(index).expect("few interfaces")],
        up: true,
        running: true,
        ethernet: true,
        noarp: index == 1,
        master: None,
        kind: if index == 1 { Kind::Loopback } else { Kind::Device },
        xdp: None,
        mtu_v6: Some(1500),
        temporary_addresses: false,
    }
}

/// "network scope flags ifindex": `10.0.0.2/24`, whose length is that of the network.
fn address(ifindex: u32, text: &str, scope: u8, flags: u32) -> Address {
    let addr = ip(text.split('/').next().expect("an address"));
    Address { ifindex, addr, network: prefix(text), scope, flags }
}

fn hop(ifindex: u32, gateway: Option<&str>) -> Hop {
    Hop { ifindex, gateway: gateway.map(ip), weight: 1, dead: false, linkdown: false, encapsulated: false }
}

fn entry(kind: RouteKind, metric: u32, hops: &[Hop]) -> Entry {
    let scope = if hops.iter().all(|hop| hop.gateway.is_some()) { 0 } else { RT_SCOPE_LINK };
    Entry { kind, metric, preference: 1, scope, by_source: false, source: None, mtu: None, hops: hops.into() }
}

fn unicast(ifindex: u32, gateway: Option<&str>) -> Entry {
    entry(RouteKind::Unicast, 0, &[hop(ifindex, gateway)])
}

fn rule(priority: u32, table: u32) -> Rule {
    Rule { priority, action: RuleAction::Table(table), ..Family::default_rules().remove(0) }
}

type Routes = Vec<(u32, &'static str, Entry)>;

/// lo, eth0 (10.0.0.2 and .3, 10.9.0.2, 2001:db8:a::2), eth1 (192.168.5.2, 2001:db8:b::2).
fn host(rules: Vec<Rule>, more: Routes) -> HostView {
    let local = |ifindex| entry(RouteKind::Local, 0, &[hop(ifindex, None)]);
    let mut routes = vec![
        (RT_TABLE_LOCAL, "127.0.0.0/8", Entry { source: Some(ip("127.0.0.1")), ..local(1) }),
        (RT_TABLE_LOCAL, "10.0.0.2/32", local(2)),
        (RT_TABLE_LOCAL, "10.0.0.255/32", entry(RouteKind::Refuse, 0, &[hop(2, None)])),
        (RT_TABLE_LOCAL, "192.168.5.2/32", local(3)),
        (RT_TABLE_MAIN, "10.0.0.0/24", Entry { source: Some(ip("10.0.0.2")), ..unicast(2, None) }),
        (RT_TABLE_MAIN, "192.168.5.0/24", Entry { source: Some(ip("192.168.5.2")), ..unicast(3, None) }),
        (RT_TABLE_LOCAL, "::1/128", local(1)),
        (RT_TABLE_LOCAL, "2001:db8:a::2/128", local(2)),
        (RT_TABLE_MAIN, "2001:db8:a::/64", unicast(2, None)),
        (RT_TABLE_MAIN, "2001:db8:b::/64", unicast(3, None)),
        (RT_TABLE_MAIN, "fe80::/64", unicast(2, None)),
        (RT_TABLE_MAIN, "fe80::/64", unicast(3, None)),
    ];
    routes.extend(more);
    let rules = [Family::default_rules(), rules].concat();
    let family = |v4: bool| {
        let of = routes.iter().filter(|(_, to, _)| to.contains('.') == v4);
        let of = of.map(|(table, to, entry)| (*table, prefix(to), entry.clone())).collect();
        Family::new(rules.clone(), of)
    };
    let addresses = vec![
        address(1, "127.0.0.1/8", 254, 0),
        address(1, "::1/128", 254, 0),
        address(2, "10.0.0.2/24", 0, 0),
        address(2, "10.0.0.3/24", 0, IFA_F_SECONDARY),
        address(2, "10.9.0.2/24", 0, 0),
        address(2, "2001:db8:a::2/64", 0, 0),
        address(2, "fe80::2/64", RT_SCOPE_LINK, 0),
        address(3, "192.168.5.2/24", 0, 0),
        address(3, "2001:db8:b::2/64", 0, 0),
        address(3, "fe80::3/64", RT_SCOPE_LINK, 0),
    ];
    HostView {
        epoch: 7,
        interfaces: Arc::new(vec![interface(1, "lo"), interface(2, "eth0"), interface(3, "eth1")]),
        addresses: Arc::new(Addresses::new(addresses, vec![])),
        routing: Arc::new(Routing::new(family(true), family(false))),
        neighbours: Arc::new(vec![(
            (2, ip("10.0.0.1")),
            Neighbour { mac: [9; 6], usable: true, failed: false },
        )]),
    }
}

/// The same with a default route by a router on interface 2 or 3, the only neighbour whose link address may be known.
pub(crate) fn behind_a_router(ifindex: u32, router: Option<Mac>) -> HostView {
    let gateway = if ifindex == 2 { "10.0.0.1" } else { "192.168.5.1" };
    let host = host(vec![], main_routes([("0.0.0.0/0", unicast(ifindex, Some(gateway)))]));
    let known = router.map(|mac| ((ifindex, ip(gateway)), Neighbour { mac, usable: true, failed: false }));
    HostView { neighbours: Arc::new(known.into_iter().collect()), ..host }
}

/// A route as text: `ifindex source next_hop`, or `-`.
fn shown(route: Option<Route>) -> String {
    route.map_or("-".into(), |r| {
        let mtu = r.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        format!("{} {} {}{mtu}", r.ifindex, r.source, r.next_hop)
    })
}

#[track_caller]
fn check(host: &HostView, to: &str, expected: &str) {
    assert_eq!(shown(host.route(ip(to), None)), expected, "to {to}");
}

#[track_caller]
fn check_from(host: &HostView, to: &str, from: &str, expected: &str) {
    assert_eq!(shown(host.route(ip(to), Some(ip(from)))), expected, "to {to} from {from}");
}

fn main_routes(routes: impl IntoIterator<Item = (&'static str, Entry)>) -> Routes {
    routes.into_iter().map(|(to, entry)| (RT_TABLE_MAIN, to, entry)).collect()
}

#[test]
fn no_route() {
    let host = host(vec![], vec![]);
    for to in ["10.1.0.1", "2001:db8:c::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
        check(&host, to, "-");
    }
    // Directed broadcasts are in the table `local`, as refusals for a stream socket.
    check(&host, "10.0.0.255", "-");
    // A source of the other family, and a link-local destination on no link.
    check_from(&host, "10.0.0.9", "2001:db8:a::2", "-");
    check(&host, "fe80::9", "-");
    let empty = HostView::default();
    check(&empty, "10.0.0.1", "-");
    assert!(!empty.is_local(ip("10.0.0.1")) && empty.is_local(ip("127.0.0.1")));
}

#[test]
fn on_the_link_and_by_a_gateway() {
    let host = host(
        vec![],
        main_routes([
            ("0.0.0.0/0", unicast(2, Some("10.0.0.1"))),
            ("172.16.0.0/12", unicast(3, Some("192.168.5.1"))),
            ("172.16.9.0/24", Entry { mtu: Some(1400), ..unicast(2, Some("10.9.0.1")) }),
            ("::/0", unicast(3, Some("fe80::1"))),
        ]),
    );
    check(&host, "10.0.0.9", "2 10.0.0.2 10.0.0.9");
    check(&host, "192.168.5.9", "3 192.168.5.2 192.168.5.9");
    check(&host, "8.8.8.8", "2 10.0.0.2 10.0.0.1");
    check(&host, "172.31.0.1", "3 192.168.5.2 192.168.5.1");
    // The longest prefix wins, and the source is the address in the gateway's network.
    check(&host, "172.16.9.1", "2 10.9.0.2 10.9.0.1 mtu 1400");
    check_from(&host, "8.8.8.8", "10.0.0.3", "2 10.0.0.3 10.0.0.1");
    check(&host, "2001:db8:a::9", "2 2001:db8:a::2 2001:db8:a::9");
    check(&host, "2a00::1", "3 2001:db8:b::2 fe80::1");
    check_from(&host, "2a00::1", "2001:db8:a::2", "3 2001:db8:a::2 fe80::1");
}

#[test]
fn this_host() {
    let host = host(vec![], vec![]);
    for (addr, local) in [("127.3.2.1", true), ("::1", true), ("10.0.0.2", true), ("10.0.0.9", false)] {
        assert_eq!(host.is_local(ip(addr)), local, "{addr}");
    }
    assert!(host.is_local(ip("2001:db8:a::2")) && !host.is_local(ip("2001:db8:a::9")));
    assert!(!host.is_local(ip("10.0.0.255")), "a broadcast address is nobody's");
    check(&host, "127.0.0.5", "1 127.0.0.1 127.0.0.5");
    check(&host, "10.0.0.2", "1 10.0.0.2 10.0.0.2");
    check(&host, "::1", "1 ::1 ::1");
    let of = |index| host.local_addresses_of(index).map(|addr| addr.to_string()).collect::<Vec<_>>();
    assert_eq!(of(2), ["10.0.0.2", "10.0.0.3", "10.9.0.2", "2001:db8:a::2", "fe80::2"]);
    assert_eq!(of(9), [""; 0]);
}

#[test]
fn metrics_refusals_and_throws() {
    let metric = |metric, ifindex, gateway| entry(RouteKind::Unicast, metric, &[hop(ifindex, Some(gateway))]);
    let host = host(
        vec![],
        main_routes([
            ("0.0.0.0/0", metric(200, 2, "10.0.0.1")),
            ("0.0.0.0/0", metric(100, 3, "192.168.5.1")),
            ("10.66.0.0/16", entry(RouteKind::Refuse, 0, &[])),
            ("10.66.1.0/24", unicast(2, Some("10.0.0.1"))),
            ("10.67.0.0/16", entry(RouteKind::Throw, 0, &[])),
            // The best one is dead: the next metric counts.
            ("10.68.0.0/16", entry(RouteKind::Unicast, 1, &[Hop { dead: true, ..hop(2, Some("10.0.0.1")) }])),
            ("10.68.0.0/16", metric(5, 3, "192.168.5.7")),
            // The only one is dead: the shorter prefix counts.
            ("10.69.0.0/16", entry(RouteKind::Unicast, 1, &[Hop { dead: true, ..hop(2, Some("10.0.0.1")) }])),
            // What we can't see through is the kernel's.
            ("10.70.0.0/16", entry(RouteKind::Unicast, 1, &[])),
            ("10.71.0.0/16", entry(RouteKind::Unicast, 1, &[Hop { encapsulated: true, ..hop(2, None) }])),
        ]),
    );
    check(&host, "8.8.8.8", "3 192.168.5.2 192.168.5.1");
    check(&host, "10.66.0.1", "-");
    check(&host, "10.66.1.1", "2 10.0.0.2 10.0.0.1");
    check(&host, "10.67.0.1", "-");
    check(&host, "10.68.0.1", "3 192.168.5.2 192.168.5.7");
    check(&host, "10.69.0.1", "3 192.168.5.2 192.168.5.1");
    check(&host, "10.70.0.1", "-");
    check(&host, "10.71.0.1", "-");
}

#[test]
fn several_hops_share_by_weight() {
    let hops = [
        Hop { weight: 3, ..hop(2, Some("10.0.0.1")) },
        hop(3, Some("192.168.5.1")),
        Hop { weight: 200, dead: true, ..hop(3, Some("192.168.5.6")) },
        Hop { weight: 200, linkdown: true, ..hop(3, Some("192.168.5.7")) },
    ];
    let host = host(vec![], main_routes([("0.0.0.0/0", entry(RouteKind::Unicast, 0, &hops))]));
    let mut by_first = 0;
    for n in 0..4000_u32 {
        let to = IpAddr::v4((0x0800_0000 + n).to_be_bytes());
        let route = host.route(to, None).expect("two hops are alive");
        assert_eq!(host.route(to, None), Some(route), "the same destination goes the same way");
        match route.ifindex {
            2 => by_first += 1,
            _ => assert_eq!(route.next_hop, ip("192.168.5.1")),
        }
    }
    assert!((2700..3300).contains(&by_first), "{by_first} of 4000 instead of 3000");
}

#[test]
fn without_carrier_is_better_than_nothing() {
    let hop = Hop { linkdown: true, ..hop(2, Some("10.0.0.1")) };
    let host = host(vec![], main_routes([("0.0.0.0/0", entry(RouteKind::Unicast, 0, &[hop]))]));
    check(&host, "8.8.8.8", "2 10.0.0.2 10.0.0.1");
}

#[test]
fn rules_choose_the_table() {
    let by_other = |table| (table, "0.0.0.0/0", unicast(3, Some("192.168.5.1")));
    let routes = || vec![(RT_TABLE_MAIN, "0.0.0.0/0", unicast(2, Some("10.0.0.1"))), by_other(100)];

    let view = host(vec![Rule { from: Some(prefix("10.9.0.0/16")), ..rule(10, 100) }], routes());
    check(&view, "8.8.8.8", "2 10.0.0.2 10.0.0.1");
    check_from(&view, "8.8.8.8", "10.9.0.2", "3 10.9.0.2 192.168.5.1");
    // The source that the first lookup finds is looked up again, as the kernel does.
    let view = host(vec![Rule { from: Some(prefix("10.0.0.2/32")), ..rule(10, 100) }], routes());
    check(&view, "8.8.8.8", "3 10.0.0.2 192.168.5.1");

    let view = host(vec![Rule { to: Some(prefix("8.0.0.0/8")), ..rule(10, 100) }], routes());
    check(&view, "8.8.8.8", "3 192.168.5.2 192.168.5.1");
    check(&view, "9.9.9.9", "2 10.0.0.2 10.0.0.1");

    // As WireGuard does: everything without its mark goes by its table, but for what main knows better than by default.
    let wireguard = vec![
        Rule { suppress: Some(0), ..rule(10, RT_TABLE_MAIN) },
        Rule { invert: true, others: Judged::No, ..rule(11, 100) },
    ];
    let view = host(wireguard, routes());
    check(&view, "8.8.8.8", "3 192.168.5.2 192.168.5.1");
    check(&view, "10.0.0.9", "2 10.0.0.2 10.0.0.9");

    let view = host(vec![Rule { action: RuleAction::Refuse, ..rule(10, 0) }], routes());
    check(&view, "8.8.8.8", "-");
    check(&view, "127.0.0.1", "1 127.0.0.1 127.0.0.1");
    let over = vec![
        Rule { action: RuleAction::Goto(20), ..rule(10, 0) },
        Rule { action: RuleAction::Refuse, ..rule(15, 0) },
        Rule { action: RuleAction::Nop, ..rule(20, 0) },
    ];
    check(&host(over, routes()), "8.8.8.8", "2 10.0.0.2 10.0.0.1");
    let view = host(vec![Rule { action: RuleAction::Goto(5), ..rule(10, 0) }], routes());
    check(&view, "8.8.8.8", "2 10.0.0.2 10.0.0.1");
}

/// A refusal is told from no route, and from what is the kernel's business.
#[test]
fn barred_is_what_is_refused() {
    let routes = || {
        main_routes([
            ("10.0.0.0/24", unicast(2, None)),
            ("10.0.0.7/32", entry(RouteKind::Bar, 0, &[])),
            ("10.66.0.0/16", entry(RouteKind::Bar, 0, &[])),
            ("10.66.1.0/24", unicast(2, Some("10.0.0.1"))),
            ("10.67.0.0/16", entry(RouteKind::Refuse, 0, &[])),
        ])
    };
    let barred = |view: &HostView, to| view.bars(ip(to), ip("10.0.0.2"), None);
    let view = host(vec![], routes());
    let all = ["10.0.0.7", "10.66.2.1", "10.0.0.9", "10.66.1.1", "10.67.0.1", "8.8.8.8"];
    assert_eq!(all.map(|to| barred(&view, to)), [true, true, false, false, false, false]);
    check(&view, "10.0.0.7", "-");
    let to = |text| Rule { to: Some(prefix(text)), action: RuleAction::Refuse, ..rule(10, 0) };
    let view = host(vec![to("10.0.0.0/24")], routes());
    assert_eq!(["10.0.0.9", "10.66.1.1"].map(|to| barred(&view, to)), [true, false]);
    // Whether this one is meant, the kernel alone can tell.
    let unsure = Rule { others: Judged::KernelOnly, ..to("10.0.0.0/24") };
    let view = host(vec![unsure], routes());
    assert!(!barred(&view, "10.0.0.9"));
    let view = host(vec![Rule { others: Judged::No, ..to("10.0.0.0/24") }], routes());
    assert!(!barred(&view, "10.0.0.9") && barred(&view, "10.0.0.7"));
}

#[test]
fn what_only_the_kernel_can_judge_decides_nothing() {
    let unsure = |rule| Rule { others: Judged::KernelOnly, ..rule };
    let routes = vec![
        (RT_TABLE_MAIN, "0.0.0.0/0", unicast(2, Some("10.0.0.1"))),
        (100, "8.0.0.0/8", unicast(3, Some("192.168.5.1"))),
    ];
    let view = host(vec![unsure(rule(10, 100))], routes.clone());
    check(&view, "8.8.8.8", "-");
    check(&view, "9.9.9.9", "2 10.0.0.2 10.0.0.1");
    let elsewhere = Rule { to: Some(prefix("9.0.0.0/8")), ..rule(10, 100) };
    check(&host(vec![unsure(elsewhere)], routes.clone()), "8.8.8.8", "2 10.0.0.2 10.0.0.1");
    check(&host(vec![Rule { invert: true, ..unsure(rule(10, 100)) }], routes.clone()), "8.8.8.8", "-");
    let jump = Rule { action: RuleAction::Goto(32766), ..unsure(rule(10, 0)) };
    check(&host(vec![jump], routes), "9.9.9.9", "-");
}

#[test]
fn bound_to_an_interface() {
    let both = [("0.0.0.0/0", unicast(2, Some("10.0.0.1"))), ("::/0", unicast(2, Some("fe80::1")))];
    let other = Entry { metric: 50, ..unicast(3, Some("192.168.5.1")) };
    let mut view = host(
        vec![Rule { oif: Some("eth1".into()), to: Some(prefix("9.0.0.0/8")), ..rule(10, 100) }],
        main_routes(both.into_iter().chain([("0.0.0.0/0", other)]))
            .into_iter()
            .chain([(100, "0.0.0.0/0", unicast(3, Some("192.168.5.66")))])
            .collect(),
    );
    let by = |view: &HostView, to, oif| shown(view.route_by(ip(to), None, Some(oif)));
    assert_eq!(by(&view, "8.8.8.8", 3), "3 192.168.5.2 192.168.5.1");
    assert_eq!(by(&view, "9.9.9.9", 3), "3 192.168.5.2 192.168.5.66");
    assert_eq!(by(&view, "9.9.9.9", 2), "2 10.0.0.2 10.0.0.1");
    assert_eq!(by(&view, "fe80::9", 3), "3 fe80::3 fe80::9");
    assert_eq!(by(&view, "fe80::9", 2), "2 fe80::2 fe80::9");
    assert_eq!(by(&view, "8.8.8.8", 77), "-");
    // A member of a VRF has tables of its own.
    let vrf = Interface { kind: Kind::Vrf, ..interface(4, "red") };
    let member = Interface { master: Some(4), ..interface(3, "eth1") };
    view.interfaces = Arc::new(vec![interface(1, "lo"), interface(2, "eth0"), member, vrf]);
    assert_eq!(by(&view, "8.8.8.8", 3), "-");
}

#[test]
fn ipv6_preferences_mtu_and_subtrees() {
    let subtree = Entry { by_source: true, ..unicast(3, Some("fe80::33")) };
    let mut view = host(
        vec![],
        main_routes([
            ("::/0", unicast(2, Some("fe80::11"))),
            ("2a02::/16", subtree),
            ("2a01::/16", Entry { preference: 2, ..unicast(2, Some("fe80::aa")) }),
            ("2a01::/16", Entry { preference: 0, ..unicast(3, Some("fe80::bb")) }),
        ]),
    );
    check(&view, "2a00::1", "2 2001:db8:a::2 fe80::11");
    check(&view, "2a02::1", "-");
    check(&view, "2a01::1", "3 2001:db8:b::2 fe80::bb");
    let tunnel = Interface { mtu_v6: Some(1280), ..interface(2, "eth0") };
    view.interfaces = Arc::new(vec![interface(1, "lo"), tunnel, interface(3, "eth1")]);
    check(&view, "2a00::1", "2 2001:db8:a::2 fe80::11 mtu 1280");
    check(&view, "10.0.0.9", "2 10.0.0.2 10.0.0.9");
}

#[track_caller]
fn check_source_v6(addresses: &[(u32, &str, u32)], to: &str, temporary: bool, expected: &str) {
    let all = addresses.iter().map(|&(ifindex, text, flags)| address(ifindex, text, 0, flags)).collect();
    let labels =
        [("::/0", 1), ("2002::/16", 2), ("fc00::/7", 5)].map(|(of, label)| (prefix(of), label)).to_vec();
    let source = Addresses::new(all, labels).source_v6(ip(to), 2, temporary);
    assert_eq!(source.map_or("-".into(), |source| source.to_string()), expected, "to {to}");
}

#[test]
fn source_selection_of_rfc_6724() {
    let both = [(2, "fe80::2/64", 0), (2, "2001:db8:a::2/64", 0)];
    // Rule 1: prefer same address.
    check_source_v6(
        &[(3, "2001:db8::7/64", 0), (2, "2001:db8::8/64", 0)],
        "2001:db8::7",
        false,
        "2001:db8::7",
    );
    // Rule 2: prefer appropriate scope.
    check_source_v6(&both, "2001:db8:ffff::1", false, "2001:db8:a::2");
    check_source_v6(&both, "fe80::9", false, "fe80::2");
    check_source_v6(&[(2, "fe80::2/64", 0)], "2001:db8::1", false, "fe80::2");
    // Rule 3: avoid deprecated addresses.
    let old = [(2, "2001:db8:a::2/64", IFA_F_DEPRECATED), (2, "fd00::2/64", 0)];
    check_source_v6(&old, "2001:db8:a::9", false, "fd00::2");
    check_source_v6(&old[..1], "2001:db8:a::9", false, "2001:db8:a::2");
    // Rule 5: prefer outgoing interface.
    let elsewhere = [(3, "2001:db8:a::2/64", 0), (2, "2a00::2/64", 0)];
    check_source_v6(&elsewhere, "2001:db8:a::9", false, "2a00::2");
    check_source_v6(&elsewhere[..1], "2001:db8:a::9", false, "2001:db8:a::2");
    // Rule 6: prefer matching label, though 2002 has more bits in common with 2001 than 2a00 has.
    let tunnelled = [(2, "2002:102:304::1/48", 0), (2, "2a00::1/64", 0)];
    check_source_v6(&tunnelled, "2001:db8::1", false, "2a00::1");
    check_source_v6(&tunnelled, "2002:506:708::1", false, "2002:102:304::1");
    // Rule 7: prefer temporary addresses, or public ones.
    let private = [(2, "2001:db8:a::2/64", 0), (2, "2001:db8:a::7/64", IFA_F_SECONDARY)];
    check_source_v6(&private, "2001:db8::1", false, "2001:db8:a::2");
    check_source_v6(&private, "2001:db8::1", true, "2001:db8:a::7");
    // Rule 8: use longest matching prefix; bits beyond the source's own prefix don't count.
    let two = [(2, "2001:db8:a::1/64", 0), (2, "2001:db8:b::1/64", 0)];
    check_source_v6(&two, "2001:db8:b:ffff::1", false, "2001:db8:b::1");
    check_source_v6(&two, "2001:db8:a:ffff::1", false, "2001:db8:a::1");
    let same = [(2, "2001:db8:a::1/64", 0), (2, "2001:db8:a::7/64", 0)];
    check_source_v6(&same, "2001:db8:a::6", false, "2001:db8:a::1");
    // Addresses that may not be used yet, or ever.
    let tentative = (2, "2001:db8:a::1/64", IFA_F_TENTATIVE);
    check_source_v6(&[tentative], "2001:db8:a::6", false, "-");
    check_source_v6(&[(2, "2001:db8:a::1/64", IFA_F_DADFAILED)], "2001:db8:a::6", false, "-");
    let optimistic = (2, "2001:db8:a::1/64", IFA_F_TENTATIVE | IFA_F_OPTIMISTIC);
    check_source_v6(&[optimistic], "2001:db8:a::6", false, "2001:db8:a::1");
    // Link-local destinations are not reached from another interface.
    check_source_v6(&[(3, "fe80::3/64", 0)], "fe80::9", false, "-");
}

#[test]
fn source_selection_of_ipv4() {
    let all = Addresses::new(
        vec![
            address(1, "127.0.0.1/8", 254, 0),
            address(2, "169.254.7.7/16", RT_SCOPE_LINK, 0),
            address(2, "10.0.0.2/24", 0, 0),
            address(2, "10.1.0.2/24", 0, 0),
            address(2, "10.1.0.3/24", 0, IFA_F_SECONDARY),
            address(3, "192.168.5.2/24", 0, 0),
        ],
        vec![],
    );
    let source = |ifindex, gateway: Option<&str>, scope| {
        all.source_v4(ifindex, gateway.map(ip), scope).map_or("-".into(), |source| source.to_string())
    };
    assert_eq!(source(2, None, 0), "10.0.0.2");
    assert_eq!(source(2, None, RT_SCOPE_LINK), "169.254.7.7");
    assert_eq!(source(2, Some("10.1.0.1"), 0), "10.1.0.2");
    assert_eq!(source(2, Some("10.77.0.1"), 0), "10.0.0.2");
    // An interface without an address borrows one, but neither a link's nor the loopback's.
    assert_eq!(source(9, None, 0), "10.0.0.2");
    assert_eq!(source(9, None, RT_SCOPE_LINK), "10.0.0.2");
    assert_eq!(Addresses::default().source_v4(2, None, 0), None);
}

#[test]
fn neighbours_and_interfaces() {
    let host = host(vec![], vec![]);
    let known = host.neighbour(2, ip("10.0.0.1")).expect("it is known");
    assert_eq!((known.mac, known.usable), ([9; 6], true));
    assert_eq!(host.neighbour(3, ip("10.0.0.1")), None);
    assert_eq!(host.neighbour(2, ip("10.0.0.9")), None);
    let own = host.neighbour(1, ip("127.0.0.1")).expect("needs no resolution");
    assert!(own.usable);
    assert_eq!(host.interface(3).map(|i| &*i.name), Some("eth1"));
    assert_eq!(host.interface_named("eth0").map(|i| i.index), Some(2));
    assert!(host.interface(9).is_none() && host.interface_named("eth9").is_none());
    assert_eq!((host.interfaces().count(), host.epoch()), (3, 7));
}

/// A link message with `IFLA_LINK` 5 and the link info of a kind with data.
#[track_caller]
fn check_kind(name: &str, data: &[u8], expected: Kind) {
    let attribute = |kind: u16, value: &[u8]| {
        let len = u16::try_from(value.len() + 4).expect("short");
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let info = [attribute(IFLA_INFO_KIND, name.as_bytes()), attribute(IFLA_INFO_DATA, data)].concat();
    let mut header = [0; IFINFOMSG];
    header[4] = 7;
    let request = Request::new(RTM_NEWLINK, 0, &header)
        .with(IFLA_IFNAME, b"x0\0")
        .with(IFLA_LINK, &5_u32.to_ne_bytes())
        .with(IFLA_LINKINFO | 0x8000, &info);
    let bytes = request.into_bytes();
    let message = Messages(&bytes).next().expect("one message");
    let interface = parse::interface(&message).expect("a link");
    assert_eq!((interface.kind, &*interface.name), (expected, "x0"), "{name}");
}

#[test]
fn kinds_of_interfaces() {
    let id = [6, 0, 1, 0, 9, 0, 0, 0];
    let tagged = |protocol: [u8; 2]| [&id[..], &[6, 0, 5, 0], &protocol, &[0, 0]].concat();
    check_kind("vlan", &tagged([0x81, 0x00]), Kind::Vlan { parent: 5, id: 9 });
    check_kind("vlan", &tagged([0x88, 0xa8]), Kind::Virtual);
    check_kind("vlan", &[], Kind::Virtual);
    for (name, kind) in [
        ("bond", Kind::Bond),
        ("team", Kind::Bond),
        ("bridge", Kind::Bridge),
        ("veth", Kind::Veth),
        ("tun", Kind::Tun),
        ("vrf", Kind::Vrf),
        ("wireguard", Kind::Virtual),
    ] {
        check_kind(name, &id, kind);
    }
}

/// The kernel is no attacker, but no message may take the engine down either.
#[test]
fn no_message_is_a_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..50_000 {
        let len = usize::try_from(next() % 120).expect("small");
        // Mostly small numbers: plausible families, lengths and attribute types.
        let mut body: Vec<u8> = (0..len)
            .map(|_| if next() % 3 == 0 { u8::try_from(next() & 0xff).expect("a byte") } else { 0 })
            .collect();
        if let Some(family) = body.first_mut() {
            *family = [0, AF_INET, AF_INET6][usize::try_from(next() % 3).expect("small")];
        }
        for at in (8..len.saturating_sub(2)).step_by(4) {
            if next() % 2 == 0 {
                body[at..at + 2].copy_from_slice(&u16::try_from(next() % 24).expect("small").to_ne_bytes());
            }
        }
        let mut bytes = u32::try_from(16 + len).expect("small").to_ne_bytes().to_vec();
        bytes.extend([0; 12]);
        bytes.extend(body);
        for message in Messages(&bytes) {
            let _ = (parse::interface(&message), parse::neighbour(&message), parse::concerns_us(&message));
            for family in [AF_INET, AF_INET6] {
                let _ = (parse::address(&message, family), parse::rule(&message, family));
                let _ = parse::route(&message, family);
            }
        }
    }
}
