//! Route and source choice against the kernel's own, over random tables, rules, addresses and silent gateways.

use std::collections::HashSet;
use std::fmt::Write as _;

use netlink_sys::protocols::NETLINK_ROUTE;
use utcp_proto::wire::IpAddr;

use super::{Net, Watch};
use crate::host::netlink::{ACK, Attributes, Channel, Request, u32_at};
use crate::host::parse;
use crate::host::tests::ip;
use crate::host::uapi::*;

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
                RTA_METRICS => mtu = parse::mtu(Attributes(value)),
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
