//! From the kernel's messages to what we keep. Every function gives `None` for a message that is not its business: of
//! another family, too short, or of a kind that can't concern a TCP connection.

use utcp_proto::wire::IpAddr;

use super::netlink::{Attributes, Message, i32_at, u16_at, u32_at};
use super::prefix::Prefix;
use super::routing::{Entry, Hop, Judged, RouteKind, Rule, RuleAction};
use super::source::Address;
use super::uapi::*;
use super::view::{Interface, Kind, Neighbour};

/// An address of `family` from its bytes.
pub fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::v4(bytes.try_into().ok()?)),
        AF_INET6 => Some(IpAddr::v6(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// The address that no bytes stand for: prefixes of length zero have no attribute.
fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::UNSPECIFIED_V4),
        AF_INET6 => Some(IpAddr::UNSPECIFIED_V6),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    u32_at(bytes, 0)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `RTM_NEWLINK`, `RTM_DELLINK`. Messages of the family `AF_BRIDGE` tell of a bridge's ports, not of interfaces.
pub fn interface(message: &Message<'_>) -> Option<Interface> {
    let body = message.body;
    if *body.first()? != 0 {
        return None;
    }
    let flags = u32_at(body, 8)?;
    let mut interface = Interface {
        index: u32_at(body, 4)?,
        name: String::new(),
        mtu: 0,
        mac: [0; 6],
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        ethernet: u16_at(body, 2)? == ARPHRD_ETHER,
        noarp: flags & (IFF_NOARP | IFF_LOOPBACK) != 0,
        master: None,
        kind: if flags & IFF_LOOPBACK != 0 { Kind::Loopback } else { Kind::Device },
        xdp: None,
        mtu_v6: None,
        temporary_addresses: false,
    };
    let mut link = None;
    let mut info = None;
    for (kind, value) in message.attributes(IFINFOMSG) {
        match kind {
            IFLA_ADDRESS => interface.mac = value.try_into().unwrap_or_default(),
            IFLA_IFNAME => interface.name = text(value),
            IFLA_MTU => interface.mtu = number(value)?,
            IFLA_LINK => link = number(value),
            IFLA_MASTER => interface.master = number(value).filter(|&master| master != 0),
            IFLA_LINKINFO => info = Some(Attributes(value)),
            IFLA_XDP => {
                let id = Attributes(value).find(|(kind, _)| *kind == IFLA_XDP_PROG_ID);
                interface.xdp = id.and_then(|(_, value)| number(value));
            }
            IFLA_AF_SPEC => ipv6_settings(Attributes(value), &mut interface),
            _ => {}
        }
    }
    if let Some(kind) = info.and_then(|info| link_kind(info, link)) {
        interface.kind = kind;
    }
    Some(interface)
}

/// `IFLA_LINKINFO`.
fn link_kind(info: Attributes<'_>, link: Option<u32>) -> Option<Kind> {
    let name = info.clone().find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, value)| text(value))?;
    let data = info.clone().find(|(kind, _)| *kind == IFLA_INFO_DATA).map(|(_, value)| Attributes(value));
    Some(match name.as_str() {
        "vlan" => {
            return Some(
                data.zip(link).and_then(|(data, parent)| vlan(data, parent)).unwrap_or(Kind::Virtual),
            );
        }
        "bond" | "team" => Kind::Bond,
        "bridge" => Kind::Bridge,
        "veth" => Kind::Veth,
        "tun" => Kind::Tun,
        "vrf" => Kind::Vrf,
        _ => Kind::Virtual,
    })
}

/// An 802.1Q VLAN; 802.1ad stays a [`Kind::Virtual`].
fn vlan(data: Attributes<'_>, parent: u32) -> Option<Kind> {
    let mut id = None;
    for (kind, value) in data {
        match kind {
            IFLA_VLAN_ID => id = u16_at(value, 0),
            IFLA_VLAN_PROTOCOL if value != [0x81, 0x00] => return None,
            _ => {}
        }
    }
    id.map(|id| Kind::Vlan { parent, id })
}

/// `IFLA_AF_SPEC`: attributes by family, of which IPv6's holds its settings as an array of numbers.
fn ipv6_settings(families: Attributes<'_>, interface: &mut Interface) {
    for (_, value) in families.filter(|(family, _)| *family == u16::from(AF_INET6)) {
        for (_, settings) in Attributes(value).filter(|(kind, _)| *kind == IFLA_INET6_CONF) {
            interface.mtu_v6 = u32_at(settings, DEVCONF_MTU6 * 4);
            interface.temporary_addresses =
                i32_at(settings, DEVCONF_USE_TEMPADDR * 4).is_some_and(|preference| preference >= 2);
        }
    }
}

/// `RTM_NEWADDR`.
pub fn address(message: &Message<'_>, family: u8) -> Option<Address> {
    let &[of, prefix_len, flags, scope, ..] = message.body else { return None };
    if of != family {
        return None;
    }
    let (mut local, mut peer, mut flags) = (None, None, u32::from(flags));
    for (kind, value) in message.attributes(IFADDRMSG) {
        match kind {
            IFA_LOCAL => local = Some(ip(family, value)?),
            IFA_ADDRESS => peer = Some(ip(family, value)?),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    let addr = local.or(peer)?;
    let network = Prefix::new(peer.unwrap_or(addr), prefix_len);
    Some(Address { ifindex: u32_at(message.body, 4)?, addr, network, scope, flags })
}

/// `RTM_NEWADDRLABEL`: prefix, label. Labels of single interfaces are left out.
pub fn label(message: &Message<'_>) -> Option<(Prefix, u32)> {
    let &[family, _, prefix_len, ..] = message.body else { return None };
    if u32_at(message.body, 4)? != 0 {
        return None;
    }
    let (mut addr, mut label) = (None, None);
    for (kind, value) in message.attributes(IFADDRLBLMSG) {
        match kind {
            IFAL_ADDRESS => addr = Some(ip(family, value)?),
            IFAL_LABEL => label = number(value),
            _ => {}
        }
    }
    // The prefix of IPv4 destinations is of no use: those have no IPv6 source.
    let addr = addr.filter(|addr| !addr.is_v4())?;
    Some((Prefix::new(addr, prefix_len), label?))
}

/// `RTM_NEWROUTE`: table, prefix, route.
pub fn route(message: &Message<'_>, family: u8) -> Option<(u32, Prefix, Entry)> {
    let &[of, to_len, from_len, tos, table, _protocol, scope, kind, ..] = message.body else { return None };
    let flags = u32_at(message.body, 8)?;
    // Our packets have no type of service, so that a route for one is not for us.
    if of != family || tos != 0 || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let kind = match kind {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_LOCAL => RouteKind::Local,
        RTN_THROW => RouteKind::Throw,
        RTN_BLACKHOLE | RTN_UNREACHABLE | RTN_PROHIBIT => RouteKind::Bar,
        _ => RouteKind::Refuse,
    };
    let mut to = unspecified(family)?;
    let mut table = u32::from(table);
    let mut entry = Entry {
        kind,
        metric: 0,
        preference: 1,
        scope,
        by_source: from_len > 0,
        source: None,
        mtu: None,
        hops: [].into(),
    };
    let mut single = hop(0, u8::try_from(flags & 0xff).unwrap_or_default(), 0);
    let mut several = Vec::new();
    for (kind, value) in message.attributes(RTMSG) {
        match kind {
            RTA_DST => to = ip(family, value)?,
            RTA_TABLE => table = number(value)?,
            RTA_PRIORITY => entry.metric = number(value)?,
            RTA_PREFSRC => entry.source = Some(ip(family, value)?),
            RTA_METRICS => entry.mtu = mtu(Attributes(value)),
            RTA_PREF => entry.preference = preference(value),
            RTA_OIF => single.ifindex = number(value)?,
            RTA_MULTIPATH => several = hops(value, family),
            _ => gateway((kind, value), family, &mut single),
        }
    }
    // The null entry that older kernels show: it stands for "no route here".
    if family == AF_INET6 && kind == RouteKind::Bar && entry.metric == u32::MAX {
        return None;
    }
    if single.ifindex != 0 {
        several.insert(0, single);
    }
    entry.hops = several.into();
    Some((table, Prefix::new(to, to_len), entry))
}

/// Whether a message about a route may concern connections: cached and multicast routes don't.
pub fn concerns_us(message: &Message<'_>) -> bool {
    let cloned = u32_at(message.body, 8).is_none_or(|flags| flags & RTM_F_CLONED != 0);
    let kind = message.body.get(7).copied();
    !cloned && kind != Some(RTN_MULTICAST)
}

fn hop(ifindex: u32, flags: u8, more_weight: u8) -> Hop {
    Hop {
        ifindex,
        gateway: None,
        weight: u16::from(more_weight) + 1,
        dead: flags & RTNH_F_DEAD != 0,
        linkdown: flags & RTNH_F_LINKDOWN != 0,
        encapsulated: false,
    }
}

/// Attributes that a route with one hop and each hop of a route with several have.
fn gateway((kind, value): (u16, &[u8]), family: u8, hop: &mut Hop) {
    match kind {
        RTA_GATEWAY => hop.gateway = ip(family, value),
        // `struct rtvia`: a gateway of another family (RFC 5549).
        RTA_VIA => {
            let via = u16_at(value, 0).and_then(|family| u8::try_from(family).ok());
            hop.gateway = via.and_then(|family| ip(family, value.get(2..)?));
            hop.encapsulated |= hop.gateway.is_none();
        }
        RTA_ENCAP => hop.encapsulated = true,
        _ => {}
    }
}

/// `RTA_MULTIPATH`: an array of `struct rtnexthop`, each with attributes.
fn hops(mut bytes: &[u8], family: u8) -> Vec<Hop> {
    let mut all = Vec::new();
    while let (Some(len), Some(ifindex)) = (u16_at(bytes, 0), u32_at(bytes, 4)) {
        let len = usize::from(len);
        let Some(attributes) = bytes.get(RTNEXTHOP..len) else { break };
        let mut hop = hop(ifindex, bytes[2], bytes[3]);
        Attributes(attributes).for_each(|attribute| gateway(attribute, family, &mut hop));
        all.push(hop);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// `RTAX_MTU` of `RTA_METRICS`.
pub fn mtu(metrics: Attributes<'_>) -> Option<u32> {
    let (_, value) = metrics.into_iter().find(|(kind, _)| *kind == RTAX_MTU)?;
    number(value).filter(|&mtu| mtu != 0)
}

/// RFC 4191 §2.1: 1 is high, 3 (−1 in two bits) is low, 0 is medium.
fn preference(value: &[u8]) -> u8 {
    match value.first() {
        Some(1) => 0,
        Some(3) => 2,
        _ => 1,
    }
}

/// `RTM_NEWRULE`.
pub fn rule(message: &Message<'_>, family: u8) -> Option<Rule> {
    let &[of, to_len, from_len, tos, table, _, _, action, ..] = message.body else { return None };
    if of != family {
        return None;
    }
    let mut table = u32::from(table);
    let mut target = None;
    let mut rule = Rule {
        priority: 0,
        invert: u32_at(message.body, 8)? & FIB_RULE_INVERT != 0,
        from: None,
        to: None,
        oif: None,
        others: Judged::from_bool(tos == 0),
        action: RuleAction::Refuse,
        suppress: None,
    };
    let (mut mark, mut mask) = (0, None);
    for (kind, value) in message.attributes(FIB_RULE_HDR) {
        match kind {
            FRA_DST => rule.to = Some(Prefix::new(ip(family, value)?, to_len)),
            FRA_SRC => rule.from = Some(Prefix::new(ip(family, value)?, from_len)),
            FRA_OIFNAME => rule.oif = Some(text(value)),
            FRA_TABLE => table = number(value)?,
            FRA_PRIORITY => rule.priority = number(value)?,
            FRA_GOTO => target = number(value),
            FRA_FWMARK => mark = number(value)?,
            FRA_FWMASK => mask = number(value),
            // −1 stands for "don't".
            FRA_SUPPRESS_PREFIXLEN => rule.suppress = number(value).and_then(|len| u8::try_from(len).ok()),
            _ => rule.others = rule.others.and(selector(kind, value)),
        }
    }
    // Our packets have mark zero; a rule with a mark but without mask compares all bits.
    let compared = mask.unwrap_or(if mark == 0 { 0 } else { u32::MAX });
    rule.others = rule.others.and(Judged::from_bool(mark & compared == 0));
    rule.action = match action {
        FR_ACT_TO_TBL => RuleAction::Table(table),
        FR_ACT_GOTO => target.map_or(RuleAction::Nop, RuleAction::Goto),
        FR_ACT_NOP => RuleAction::Nop,
        _ => RuleAction::Refuse,
    };
    Some(rule)
}

/// Selectors that are the same for all our sockets.
fn selector(kind: u16, value: &[u8]) -> Judged {
    let nothing = || Judged::from_bool(value.iter().all(|&byte| byte == 0));
    match kind {
        // What a host sends itself comes "from lo".
        FRA_IIFNAME => Judged::from_bool(text(value) == "lo"),
        // The table of a VRF: `HostView::route_by` leaves these to the kernel.
        FRA_L3MDEV | FRA_TUN_ID | FRA_DSCP => nothing(),
        FRA_IP_PROTO => Judged::from_bool(matches!(value, [0 | utcp_proto::wire::TCP])),
        FRA_SUPPRESS_IFGROUP if number(value) != Some(u32::MAX) => Judged::KernelOnly,
        FRA_UID_RANGE if (u32_at(value, 0), u32_at(value, 4)) != (Some(0), Some(u32::MAX)) => {
            Judged::KernelOnly
        }
        FRA_SUPPRESS_IFGROUP | FRA_UID_RANGE | FRA_FLOW | FRA_PAD | FRA_PROTOCOL | FRA_DSCP_MASK => {
            Judged::Yes
        }
        // Port ranges, flow labels, and what kernels will come up with.
        _ => Judged::KernelOnly,
    }
}

/// A neighbour as the mirror keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourRecord {
    /// What the shards see.
    pub neighbour: Neighbour,
    /// Set by hand or by nature, not by resolution: "use" would turn it into an ordinary one.
    pub fixed: bool,
}

/// `RTM_NEWNEIGH`, `RTM_DELNEIGH`: interface, address, neighbour.
pub fn neighbour(message: &Message<'_>) -> Option<((u32, IpAddr), NeighbourRecord)> {
    let family = *message.body.first()?;
    let state = u16_at(message.body, 8)?;
    if message.body.get(10)? & NTF_PROXY != 0 {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for (kind, value) in message.attributes(NDMSG) {
        match kind {
            NDA_DST => addr = Some(ip(family, value)?),
            NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    let addr = addr.filter(|addr| !addr.is_multicast())?;
    let valid = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT;
    let neighbour = Neighbour {
        mac: mac.unwrap_or_default(),
        usable: mac.is_some() && state & valid != 0,
        failed: state & NUD_FAILED != 0,
    };
    let record = NeighbourRecord { neighbour, fixed: state & (NUD_PERMANENT | NUD_NOARP) != 0 };
    Some(((u32_at(message.body, 4)?, addr), record))
}
