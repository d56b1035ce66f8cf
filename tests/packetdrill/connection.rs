//! The connection under test: how the script's sequence numbers, ports and timestamps map to those on the wire.
//!
//! Scripts count from each side's initial sequence number; only the SYNs themselves carry those as they are written.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::script::{Ecn, Flags, Icmp, Packet, Tcp, TcpOption};
use crate::settings::Settings;
use crate::wire::{self, Ends, Header, Received};

/// Who began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Role {
    /// The program connects; its SYN has not been seen yet.
    Connecting,
    /// Its SYN was seen.
    Connected,
    /// A SYN of the script's arrived.
    Arriving,
    /// Nothing began it.
    Stray,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    pub role: Role,
    local: SocketAddr,
    remote: SocketAddr,
    /// Initial sequence number of the stack, once seen: on the wire, and in the script.
    local_isn: Option<(u32, u32)>,
    /// Of the script's side; it is sent as it is written.
    remote_isn: Option<u32>,
    /// Script's TSval to the stack's.
    ts: HashMap<u32, u32>,
    /// The first pair of those.
    first_ts: Option<(u32, u32)>,
    sent: bool,
}

impl Connection {
    fn new(settings: &Settings, role: Role, local_port: u16, remote_port: u16) -> Self {
        Self {
            role,
            local: SocketAddr::new(settings.link.local, local_port),
            remote: SocketAddr::new(settings.remote, remote_port),
            local_isn: None,
            remote_isn: None,
            ts: HashMap::new(),
            first_ts: None,
            sent: false,
        }
    }

    /// The program connects.
    pub fn connecting(settings: &Settings) -> Self {
        Self::new(settings, Role::Connecting, 0, settings.port)
    }

    /// A SYN arrives at a listener.
    pub fn arriving(settings: &Settings, remote_port: u16, isn: u32) -> Self {
        Self { remote_isn: Some(isn), ..Self::new(settings, Role::Arriving, settings.port, remote_port) }
    }

    /// A segment for nothing.
    pub fn stray(settings: &Settings, remote_port: u16) -> Self {
        Self::new(settings, Role::Stray, settings.port, remote_port)
    }

    /// Whether nothing has been sent on it yet.
    pub fn is_new(&self) -> bool {
        !self.sent
    }

    /// Whether `segment` is one of its own. Learns ports and numbers from the stack's first SYN.
    pub fn owns(&mut self, segment: &Received, wanted: &Tcp) -> bool {
        let Ends { src, dst, src_port, dst_port } = segment.ends;
        let addresses = src == self.local.ip() && dst == self.remote.ip();
        let tcp = &segment.tcp;
        if self.role == Role::Connecting
            && addresses
            && dst_port == self.remote.port()
            && tcp.flags.has(Flags::SYN)
        {
            self.role = Role::Connected;
            self.local.set_port(src_port);
            self.local_isn = Some((tcp.seq, if wanted.flags.has(Flags::SYN) { wanted.seq } else { 0 }));
            return true;
        }
        if !(addresses && src_port == self.local.port() && dst_port == self.remote.port()) {
            return false;
        }
        let synced = tcp.flags.has(Flags::SYN | Flags::ACK);
        if synced && self.local_isn.is_none() {
            self.local_isn = Some((tcp.seq, if wanted.flags.has(Flags::SYN) { wanted.seq } else { 0 }));
        }
        true
    }

    /// What a number of the stack's is in the script, by adding.
    fn local_offset(&self, syn: bool) -> u32 {
        match self.local_isn {
            None => 0,
            Some((live, script)) if syn => script.wrapping_sub(live),
            Some((live, _)) => live.wrapping_neg(),
        }
    }

    fn remote_offset(&self, syn: bool) -> u32 {
        if syn { 0 } else { self.remote_isn.unwrap_or(0) }
    }

    /// A segment of the stack's in the script's numbers.
    pub fn told(&self, tcp: &Tcp) -> Tcp {
        let syn = tcp.flags.has(Flags::SYN);
        let theirs = self.remote_offset(syn);
        let mut told = tcp.clone();
        told.seq = tcp.seq.wrapping_add(self.local_offset(syn));
        told.ack = if tcp.flags.has(Flags::ACK) { tcp.ack.wrapping_sub(theirs) } else { 0 };
        for option in told.options.iter_mut().flatten() {
            match option {
                TcpOption::Sack(blocks) => {
                    for (start, end) in blocks {
                        (*start, *end) = (start.wrapping_sub(theirs), end.wrapping_sub(theirs));
                    }
                }
                TcpOption::Ts { val, .. } => {
                    if let Some((script, live)) = self.first_ts {
                        *val = val.wrapping_sub(live).wrapping_add(script);
                    }
                }
                _ => {}
            }
        }
        told
    }

    /// The bytes of a packet that the script sends.
    pub fn inbound(&mut self, packet: &Packet, script: &Tcp) -> Result<Vec<u8>, String> {
        let syn = script.flags.has(Flags::SYN);
        if syn && script.flags.has(Flags::ACK) && self.role == Role::Connected
            || syn && self.remote_isn.is_none()
        {
            self.remote_isn = Some(script.seq);
        }
        self.sent = true;
        let ours = self.local_offset(syn);
        let mut tcp = script.clone();
        tcp.seq = script.seq.wrapping_add(self.remote_offset(syn));
        if script.flags.has(Flags::ACK) {
            tcp.ack = script.ack.wrapping_sub(ours);
        }
        for option in tcp.options.iter_mut().flatten() {
            match option {
                TcpOption::Sack(blocks) => {
                    for (start, end) in blocks {
                        (*start, *end) = (start.wrapping_sub(ours), end.wrapping_sub(ours));
                    }
                }
                TcpOption::Ts { ecr, .. } if script.flags.has(Flags::ACK) => *ecr = self.live_ts(*ecr)?,
                _ => {}
            }
        }
        let (src_port, dst_port) = packet.ports.unwrap_or((0, 0));
        let or = |given, own| if given == 0 { own } else { given };
        let ends = Ends {
            src: self.remote.ip(),
            dst: self.local.ip(),
            src_port: or(src_port, self.remote.port()),
            dst_port: or(dst_port, self.local.port()),
        };
        Ok(wire::segment(ends, header(packet), &tcp))
    }

    /// The stack's TSval that the script's echo means.
    fn live_ts(&self, script: u32) -> Result<u32, String> {
        match (self.ts.get(&script), self.first_ts) {
            (Some(live), _) => Ok(*live),
            (None, Some((first, live))) => Ok(script.wrapping_sub(first).wrapping_add(live)),
            (None, None) => Err(format!("TS ecr {script}: the stack has sent no timestamp")),
        }
    }

    /// The bytes of an ICMP message about a segment of the stack's.
    pub fn icmp(&self, icmp: &Icmp) -> Result<Vec<u8>, String> {
        let v4 = self.local.is_ipv4();
        let (kind, code) = icmp_numbers(v4, &icmp.kind, &icmp.code)?;
        let word = icmp.mtu.unwrap_or(0);
        // One that does not say what it quotes is about the first segment.
        let (seq, len) = icmp.quoted.unwrap_or((0, 0));
        let quoted = Tcp {
            seq: seq.wrapping_sub(self.local_offset(false)),
            len,
            flags: Flags { bits: Flags::ACK, ..Flags::default() },
            options: Some(Vec::new()),
            ..Tcp::default()
        };
        let ends = Ends {
            src: self.local.ip(),
            dst: self.remote.ip(),
            src_port: self.local.port(),
            dst_port: self.remote.port(),
        };
        let from: IpAddr = self.remote.ip();
        Ok(wire::icmp(from, ends, kind, code, word, &quoted))
    }

    /// Compares what the stack sent with what the script expects.
    ///
    /// # Errors
    /// The field that differs.
    pub fn check(
        &mut self,
        packet: &Packet,
        wanted: &Tcp,
        segment: &Received,
        settings: &Settings,
    ) -> Result<(), String> {
        let ts = |tcp: &Tcp| {
            tcp.options.iter().flatten().find_map(|option| match option {
                TcpOption::Ts { val, .. } => Some(*val),
                _ => None,
            })
        };
        if let (Some(script), Some(live)) = (ts(wanted), ts(&segment.tcp)) {
            self.ts.insert(script, live);
            self.first_ts.get_or_insert((script, live));
        }
        let told = self.told(&segment.tcp);
        crate::compare::segments(wanted, &told, settings)?;
        crate::compare::headers(packet, segment)
    }
}

fn header(packet: &Packet) -> Header {
    let ecn = match packet.ip.ecn {
        Some(Ecn::Is(bits)) => bits,
        _ => 0,
    };
    Header { tos: packet.ip.tos.unwrap_or(ecn), ttl: packet.ip.ttl.unwrap_or(255) }
}

/// Type and code of an ICMP message by their names.
fn icmp_numbers(v4: bool, kind: &str, code: &str) -> Result<(u8, u8), String> {
    let unreachable_v4 = [
        "net_unreachable",
        "host_unreachable",
        "protocol_unreachable",
        "port_unreachable",
        "frag_needed",
        "source_route_failed",
        "net_unknown",
        "host_unknown",
        "source_host_isolated",
        "net_prohibited",
        "host_prohibited",
        "net_unreachable_for_tos",
        "host_unreachable_for_tos",
        "packet_filtered",
        "precedence_violation",
        "precedence_cutoff",
    ];
    let unreachable_v6 =
        ["no_route", "admin_prohibited", "not_neighbour", "address_unreachable", "port_unreachable"];
    let position = |list: &[&str]| list.iter().position(|name| *name == code).map(|at| at as u8);
    let number = match (v4, kind) {
        (_, "unreachable") if code.is_empty() => Some((if v4 { 3 } else { 1 }, 0)),
        (true, "unreachable") => position(&unreachable_v4).map(|code| (3, code)),
        (true, "source_quench") => Some((4, 0)),
        (true, "time_exceeded") => Some((11, 0)),
        (true, "parameter_problem") => Some((12, 0)),
        (false, "unreachable") if code == "net_unreachable" => Some((1, 0)),
        (false, "unreachable") => position(&unreachable_v6).map(|code| (1, code)),
        (false, "packet_too_big") => Some((2, 0)),
        (false, "time_exceeded") => Some((3, 0)),
        (false, "parameter_problem") => Some((4, 0)),
        _ => None,
    };
    number.ok_or_else(|| format!("icmp {kind} {code} is not known for this version of IP"))
}
