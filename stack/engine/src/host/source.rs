//! Addresses of this host, and which of them a new connection comes from.

use utcp_proto::wire::IpAddr;

use super::prefix::{Prefix, PrefixTable};
use super::uapi::{
    IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_OPTIMISTIC, IFA_F_SECONDARY, IFA_F_TENTATIVE, RT_SCOPE_LINK,
};

/// One address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface that has it.
    pub ifindex: u32,
    /// The address.
    pub addr: IpAddr,
    /// The network on its link: its own, or the peer's on a point-to-point link.
    pub network: Prefix,
    /// `ifa_scope`: 0 universe … 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl Address {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Packets may carry it: it is not under duplicate address detection (RFC 4862 §5.4), nor failed that.
    pub fn usable(&self) -> bool {
        let tentative = self.has(IFA_F_TENTATIVE) && !self.has(IFA_F_OPTIMISTIC); // RFC 4429 §3.
        !tentative && !self.has(IFA_F_DADFAILED)
    }
}

/// All addresses, by interface and then in the kernel's order, which decides among equals.
#[derive(Debug, Default, PartialEq)]
pub struct Addresses {
    v4: Vec<Address>,
    v6: Vec<Address>,
    labels: PrefixTable<u32>,
}

impl Addresses {
    /// `all` in the kernel's order; `labels` of IPv6 prefixes (RFC 6724 §2.1, `ip addrlabel`).
    pub fn new(mut all: Vec<Address>, labels: Vec<(Prefix, u32)>) -> Self {
        all.sort_by_key(|address| address.ifindex); // Stable.
        let (v4, v6) = all.into_iter().partition(|address| address.addr.is_v4());
        Self { v4, v6, labels: PrefixTable::new(labels, |&label| label) }
    }

    /// Usable addresses of one interface.
    pub fn of(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        let all = on(&self.v4, ifindex).iter().chain(on(&self.v6, ifindex));
        all.filter(|address| address.usable()).map(|address| address.addr)
    }

    /// The kernel's choice (`inet_select_addr`) for a route of `scope` by `ifindex`: a primary address in the
    /// network of the gateway, any other primary one of the interface, one of another interface.
    pub fn source_v4(&self, ifindex: u32, gateway: Option<IpAddr>, scope: u8) -> Option<IpAddr> {
        let primary = |address: &&Address| !address.has(IFA_F_SECONDARY) && address.scope <= scope;
        let own = on(&self.v4, ifindex).iter().filter(primary);
        let near = gateway.and_then(|gateway| own.clone().find(|a| a.network.contains(gateway)));
        near.or_else(|| own.clone().next())
            .or_else(|| self.v4.iter().filter(primary).find(|address| address.scope != RT_SCOPE_LINK))
            .map(|address| address.addr)
    }

    fn label(&self, addr: IpAddr) -> Option<u32> {
        self.labels.matches(addr).find_map(|(_, labels)| labels.first().copied())
    }

    /// RFC 6724 §5 without home addresses (rule 4), for packets to `to` by `ifindex`. `temporary`: rule 7 prefers
    /// temporary addresses on that interface (`use_tempaddr` is 2), otherwise public ones.
    pub fn source_v6(&self, to: IpAddr, ifindex: u32, temporary: bool) -> Option<IpAddr> {
        // RFC 6724 §4: link-local destinations are reached from the outgoing interface only.
        let candidates = if scope_v6(to) <= SCOPE_LINK_LOCAL { on(&self.v6, ifindex) } else { &self.v6 };
        let label = self.label(to);
        let mut best: Option<(Merit, IpAddr)> = None;
        for address in candidates.iter().filter(|address| address.usable()) {
            let merit = Merit {
                same: address.addr == to,
                scope: appropriate(scope_v6(address.addr), scope_v6(to)),
                preferred: !address.has(IFA_F_DEPRECATED),
                outgoing: address.ifindex == ifindex,
                label: self.label(address.addr) == label,
                privacy: address.has(IFA_F_SECONDARY) == temporary,
                common_bits: common_bits(address, to),
            };
            // Among equals the first stays.
            if best.is_none_or(|(top, _)| merit > top) {
                best = Some((merit, address.addr));
            }
        }
        best.map(|(_, addr)| addr)
    }
}

/// How well a source suits a destination: RFC 6724 §5, the fields in the order of the rules, the greatest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit {
    /// Rule 1: prefer same address.
    same: bool,
    /// Rule 2: prefer appropriate scope. The smallest that is not smaller than the destination's, else the greatest.
    scope: i16,
    /// Rule 3: avoid deprecated addresses.
    preferred: bool,
    /// Rule 5: prefer outgoing interface.
    outgoing: bool,
    /// Rule 6: prefer matching label.
    label: bool,
    /// Rule 7: prefer temporary addresses, or public ones.
    privacy: bool,
    /// Rule 8: use longest matching prefix.
    common_bits: u8,
}

/// RFC 6724 §5, rule 2, as a number that is greater for the better scope.
fn appropriate(own: u8, wanted: u8) -> i16 {
    if own >= wanted { -i16::from(own) } else { i16::from(own) - 128 }
}

/// RFC 6724 §2.2: bits that both have in common, at most the length of the source's prefix.
fn common_bits(address: &Address, to: IpAddr) -> u8 {
    let equal = (u128::from_be_bytes(address.addr.0) ^ u128::from_be_bytes(to.0)).leading_zeros();
    address.network.len().min(u8::try_from(equal).unwrap_or(128))
}

const SCOPE_LINK_LOCAL: u8 = 0x2;

/// RFC 6724 §3.1: the scope of an address on the scale of multicast scopes.
fn scope_v6(addr: IpAddr) -> u8 {
    match addr.0 {
        [0xff, flags_scope, ..] => flags_scope & 0xf,
        [0xfe, second, ..] if second & 0xc0 == 0x80 => SCOPE_LINK_LOCAL,
        [0xfe, second, ..] if second & 0xc0 == 0xc0 => 0x5,
        _ if addr.is_loopback() => SCOPE_LINK_LOCAL,
        _ => 0xe,
    }
}

fn on(all: &[Address], ifindex: u32) -> &[Address] {
    let from = all.partition_point(|address| address.ifindex < ifindex);
    let until = all.partition_point(|address| address.ifindex <= ifindex);
    &all[from..until]
}
