//! Rules and routes: which way a packet of ours leaves.
//!
//! The order is the kernel's: rules by priority, each naming a table; in a table the longest prefix, then the lowest
//! metric; a `throw` or no match goes on with the next rule. A rule that depends on what only the kernel knows of a
//! socket (its owner, its ports) makes the answer "the kernel's business" as soon as it would decide anything.

use utcp_proto::wire::IpAddr;

use super::prefix::{Prefix, PrefixTable};
use super::uapi::{RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN};

/// A route that is not one next hop of a unicast or local one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// By one of its hops.
    Unicast,
    /// To this host.
    Local,
    /// The lookup goes on with the next rule.
    Throw,
    /// Unreachable, blackhole, prohibit: the administrator wants nothing to go there.
    Bar,
    /// Broadcast …: no connection of ours goes there.
    Refuse,
}

/// One next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface to leave by.
    pub ifindex: u32,
    /// The gateway; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Its share among the hops of a route, 1 or more.
    pub weight: u16,
    /// The kernel does not use it (interface down).
    pub dead: bool,
    /// Its interface has no carrier: used only when no other hop is left.
    pub linkdown: bool,
    /// Packets would have to be encapsulated (MPLS, SRv6, …), which we can't.
    pub encapsulated: bool,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it does.
    pub kind: RouteKind,
    /// `RTA_PRIORITY`: the lowest wins.
    pub metric: u32,
    /// RFC 4191 §2.1 router preference as an order: 0 high, 1 medium, 2 low.
    pub preference: u8,
    /// `rtm_scope`: 0 universe … 253 link.
    pub scope: u8,
    /// It is for certain sources only (IPv6 subtrees).
    pub by_source: bool,
    /// `RTA_PREFSRC`.
    pub source: Option<IpAddr>,
    /// `RTAX_MTU`.
    pub mtu: Option<u32>,
    /// Its next hops.
    pub hops: Box<[Hop]>,
}

/// Whether something about our packet is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Only the kernel can tell.
    KernelOnly,
}

impl Judged {
    /// Yes or no.
    pub fn from_bool(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    /// Both; one `No` decides.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::KernelOnly,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::KernelOnly => Self::KernelOnly,
        }
    }
}

/// What a rule does with packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Look the destination up in this table.
    Table(u32),
    /// Go on with the rule of this priority.
    Goto(u32),
    /// Go on with the next rule.
    Nop,
    /// Blackhole, unreachable, prohibit.
    Refuse,
}

/// One rule of the policy database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Rules are tried by ascending priority.
    pub priority: u32,
    /// It matches what its selectors do not.
    pub invert: bool,
    /// Source selector. With a length of zero it also matches a source that is not chosen yet.
    pub from: Option<Prefix>,
    /// Destination selector.
    pub to: Option<Prefix>,
    /// Output interface selector: for sockets bound to that interface.
    pub oif: Option<String>,
    /// All other selectors, judged for a TCP socket without mark or TOS.
    pub others: Judged,
    /// What to do.
    pub action: RuleAction,
    /// Routes of this prefix length or shorter don't count (`suppress_prefixlength`).
    pub suppress: Option<u8>,
}

/// What is looked up.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// Destination.
    pub to: IpAddr,
    /// Source, once it is known.
    pub from: Option<IpAddr>,
    /// Number and name of the interface that the socket is bound to.
    pub oif: Option<(u32, &'a str)>,
    /// True for gateways on that interface that did not answer when the kernel asked for their link address.
    pub silent: &'a dyn Fn(u32, IpAddr) -> bool,
}

impl Query<'_> {
    fn may_use(&self, hop: &Hop, way: Way) -> bool {
        !hop.dead
            && self.oif.is_none_or(|(ifindex, _)| hop.ifindex == ifindex)
            && (way == Way::Any || hop.gateway.is_none_or(|gateway| !(self.silent)(hop.ifindex, gateway)))
    }
}

/// Which gateways a search admits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All but those known to be silent.
    Answering,
    /// All.
    Any,
}

/// Rules and tables of both families.
#[derive(Debug, PartialEq)]
pub struct Routing {
    v4: Family,
    v6: Family,
}

impl Default for Routing {
    fn default() -> Self {
        Self { v4: Family::new(Vec::new(), Vec::new()), v6: Family::new(Vec::new(), Vec::new()) }
    }
}

impl Routing {
    /// From the parts.
    pub fn new(v4: Family, v6: Family) -> Self {
        Self { v4, v6 }
    }

    fn family(&self, addr: IpAddr) -> &Family {
        if addr.is_v4() { &self.v4 } else { &self.v6 }
    }

    /// True if the table `local` delivers `addr` to this host.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        let Some(table) = self.family(addr).table(RT_TABLE_LOCAL) else { return false };
        let first = table.matches(addr).find_map(|(_, entries)| entries.first());
        first.is_some_and(|entry| entry.kind == RouteKind::Local)
    }

    /// The route and its hop, or `None`: no route, a refusal, or the kernel's business.
    pub fn lookup(&self, query: Query<'_>) -> Option<(&Entry, Hop)> {
        self.family(query.to).lookup(query)
    }

    /// Whether there is a refusal, and not only no route; what the kernel alone can judge is none.
    pub fn bars(&self, query: Query<'_>) -> bool {
        let family = self.family(query.to);
        family.bars && family.is_barred(query)
    }
}

/// Rules and tables of one address family.
#[derive(Debug, PartialEq)]
pub struct Family {
    rules: Vec<Rule>,
    tables: Vec<(u32, PrefixTable<Entry>)>,
    /// A rule or a route of them bars.
    bars: bool,
}

/// What one table says.
enum Verdict<'a> {
    Found(u8, &'a Entry, Hop),
    Barred,
    Refused,
    Thrown,
    Nothing,
}

impl Family {
    /// `rules` and `routes` (table, prefix, route) in the kernel's order.
    pub fn new(mut rules: Vec<Rule>, mut routes: Vec<(u32, Prefix, Entry)>) -> Self {
        rules.sort_by_key(|rule| rule.priority);
        let bars = rules.iter().any(|rule| rule.action == RuleAction::Refuse)
            || routes.iter().any(|(.., entry)| entry.kind == RouteKind::Bar);
        routes.sort_by_key(|(table, ..)| *table);
        let mut tables: Vec<(u32, Vec<(Prefix, Entry)>)> = Vec::new();
        for (id, prefix, entry) in routes {
            match tables.last_mut() {
                Some((last, entries)) if *last == id => entries.push((prefix, entry)),
                _ => tables.push((id, vec![(prefix, entry)])),
            }
        }
        let rank = |entry: &Entry| (entry.metric, entry.preference);
        let tables = tables.into_iter().map(|(id, entries)| (id, PrefixTable::new(entries, rank))).collect();
        Self { rules, tables, bars }
    }

    /// The rules of a kernel without policy routing.
    pub fn default_rules() -> Vec<Rule> {
        let rule = |(priority, table)| Rule {
            priority,
            invert: false,
            from: None,
            to: None,
            oif: None,
            others: Judged::Yes,
            action: RuleAction::Table(table),
            suppress: None,
        };
        [(0, RT_TABLE_LOCAL), (32766, RT_TABLE_MAIN), (32767, RT_TABLE_DEFAULT)].map(rule).to_vec()
    }

    fn table(&self, id: u32) -> Option<&PrefixTable<Entry>> {
        let at = self.tables.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.tables.get(at).map(|(_, table)| table)
    }

    fn lookup(&self, query: Query<'_>) -> Option<(&Entry, Hop)> {
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            let judged = rule.judge(query);
            if judged == Judged::No {
                continue;
            }
            // What the rule would do if it matched; when we can't tell whether it does, only a rule that changes
            // nothing may be passed.
            match (rule.action, judged) {
                (RuleAction::Table(id), _) => match (self.look_in(id, rule, query), judged) {
                    (Verdict::Nothing | Verdict::Thrown, _) => {}
                    (Verdict::Found(_, entry, hop), Judged::Yes) => return Some((entry, hop)),
                    _ => return None,
                },
                (RuleAction::Nop, _) => {}
                // Targets lie ahead, so that this ends; a target that does not exist is passed over.
                (RuleAction::Goto(target), Judged::Yes) => {
                    at = (at..self.rules.len()).find(|&i| self.rules[i].priority == target).unwrap_or(at);
                }
                (RuleAction::Goto(_), _) | (RuleAction::Refuse, _) => return None,
            }
        }
        None
    }

    fn is_barred(&self, query: Query<'_>) -> bool {
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            match (rule.judge(query), rule.action) {
                (Judged::No, _) | (_, RuleAction::Nop) => {}
                (judged, RuleAction::Table(id)) => match self.look_in(id, rule, query) {
                    Verdict::Nothing | Verdict::Thrown => {}
                    Verdict::Barred => return judged == Judged::Yes,
                    Verdict::Found(..) | Verdict::Refused => return false,
                },
                (Judged::Yes, RuleAction::Goto(target)) => {
                    at = (at..self.rules.len()).find(|&i| self.rules[i].priority == target).unwrap_or(at);
                }
                (judged, RuleAction::Refuse) => return judged == Judged::Yes,
                (_, RuleAction::Goto(_)) => return false,
            }
        }
        false
    }

    fn look_in(&self, id: u32, rule: &Rule, query: Query<'_>) -> Verdict<'_> {
        let Some(table) = self.table(id) else { return Verdict::Nothing };
        let mut verdict = Verdict::Nothing;
        // RFC 4861 §6.3.6: routers that are reachable (or may be) are preferred; IPv4 knows no such preference.
        if !query.to.is_v4() {
            verdict = search(table, query, Way::Answering);
        }
        if matches!(verdict, Verdict::Nothing) {
            verdict = search(table, query, Way::Any);
        }
        let short =
            |len| rule.suppress.is_some_and(|suppress| Prefix::len_in(len, query.to.is_v4()) <= suppress);
        match verdict {
            // As in the kernel, refusals are not suppressed.
            Verdict::Found(len, ..) if short(len) => Verdict::Nothing,
            verdict => verdict,
        }
    }
}

/// The best route of one table.
fn search<'a>(table: &'a PrefixTable<Entry>, query: Query<'_>, way: Way) -> Verdict<'a> {
    for (len, entries) in table.matches(query.to) {
        // Linux has surprising ways with prefixes that have routes for certain sources besides others: its business.
        if entries.iter().any(|entry| entry.by_source) {
            return Verdict::Refused;
        }
        for entry in entries {
            match entry.kind {
                RouteKind::Throw => return Verdict::Thrown,
                RouteKind::Bar => return Verdict::Barred,
                RouteKind::Refuse => return Verdict::Refused,
                RouteKind::Local | RouteKind::Unicast => match entry.pick(query, way) {
                    Some(hop) if hop.encapsulated => return Verdict::Refused,
                    Some(hop) => return Verdict::Found(len, entry, hop),
                    // Next hops that we can't see (nexthop objects, without the kernel's translation).
                    None if entry.hops.is_empty() => return Verdict::Refused,
                    None => {}
                },
            }
        }
    }
    Verdict::Nothing
}

impl Entry {
    /// One of its live hops by weight, the same for the same pair of addresses. As with the kernel's own hash, any is
    /// right; only that it stays the same matters.
    fn pick(&self, query: Query<'_>, way: Way) -> Option<Hop> {
        let alive = self.hops.iter().filter(|hop| query.may_use(hop, way));
        let carrier = alive.clone().any(|hop| !hop.linkdown);
        let alive = alive.filter(|hop| !carrier || !hop.linkdown);
        let total: u64 = alive.clone().map(|hop| u64::from(hop.weight)).sum();
        let mut point = hash(query.to).checked_rem(total)?;
        for hop in alive {
            match point.checked_sub(u64::from(hop.weight)) {
                Some(rest) => point = rest,
                None => return Some(*hop),
            }
        }
        None
    }
}

/// Spreads destinations: a multiplication by 2⁶⁴/φ, of which the upper half is well mixed.
fn hash(to: IpAddr) -> u64 {
    let [a, b, c, d, e, f, g, h, rest @ ..] = to.0;
    let folded = u64::from_be_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_be_bytes(rest);
    folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

impl Rule {
    fn judge(&self, query: Query<'_>) -> Judged {
        // A source selector does not match a packet whose source is not chosen yet.
        let from = self.from.is_none_or(|prefix| query.from.is_some_and(|from| prefix.contains(from)));
        let to = self.to.is_none_or(|prefix| prefix.contains(query.to));
        let oif = self.oif.as_deref().is_none_or(|name| query.oif.is_some_and(|(_, oif)| oif == name));
        let all = Judged::from_bool(from && to && oif).and(self.others);
        if self.invert { all.not() } else { all }
    }
}
