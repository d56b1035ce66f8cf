//! A script as it was read: times, packets, calls, commands and snippets of code.

use std::fmt;

/// Microseconds of script time.
pub type Us = i64;

/// A whole script.
#[derive(Debug, Default)]
pub struct Script {
    /// `--name=value` lines at its head.
    pub options: Vec<(String, String)>,
    /// Shell commands before the first event and behind the last.
    pub init: Vec<String>,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// One line with a time.
#[derive(Debug)]
pub struct Event {
    /// Line of the file, from 1.
    pub line: usize,
    pub time: Time,
    pub action: Action,
}

/// When an event happens, or is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Time {
    /// `*`
    Any,
    /// `1.5`, `1.5~1.6`: since the script's beginning.
    At(Us, Us),
    /// `+.5`, `+.5~+.6`: since the event before.
    After(Us, Us),
}

#[derive(Debug)]
pub enum Action {
    /// `<`: we send it to the stack.
    Inbound(Packet),
    /// `>`: the stack is expected to send it.
    Outbound(Packet),
    Call(Call),
    Command(String),
    Code(String),
}

/// An IP packet as a script writes it.
#[derive(Debug, Clone)]
pub struct Packet {
    pub ip: IpInfo,
    /// Ports other than those of the connection under test.
    pub ports: Option<(u16, u16)>,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub enum Body {
    Tcp(Tcp),
    Icmp(Icmp),
    /// UDP, GRE, MPLS …: nothing that a TCP stack answers for.
    Other(String),
}

/// `[ect0]`, `(tos 0x10, flowlabel …)`, `[ttl 5]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct IpInfo {
    pub ecn: Option<Ecn>,
    pub tos: Option<u8>,
    pub ttl: Option<u8>,
    pub flow_label: bool,
}

/// The ECN field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ecn {
    Is(u8),
    /// `[ect01]`: one of both.
    Ect01,
}

/// A segment.
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    pub flags: Flags,
    pub seq: u32,
    pub len: u32,
    pub ack: u32,
    pub win: Option<u16>,
    pub urg: u16,
    /// `None`: `<...>`, whatever they are.
    pub options: Option<Vec<TcpOption>>,
}

/// The control bits of a script's segment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flags {
    /// As in byte 13 of the header.
    pub bits: u8,
    /// The ninth bit: NS of old, AE of accurate ECN.
    pub ae: bool,
    /// A number behind the dot: AE, CWR and ECE as a counter, which is compared as a whole.
    pub ace: bool,
}

impl Flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    pub const ECE: u8 = 64;
    pub const CWR: u8 = 128;

    pub fn has(self, bits: u8) -> bool {
        self.bits & bits == bits
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [
            (Self::SYN, 'S'),
            (Self::FIN, 'F'),
            (Self::RST, 'R'),
            (Self::PSH, 'P'),
            (Self::URG, 'U'),
            (Self::ECE, 'E'),
            (Self::CWR, 'W'),
        ];
        let mut text: String = letters.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, c)| *c).collect();
        if self.ae {
            text.push('A');
        }
        if self.has(Self::ACK) {
            text.push('.');
        }
        f.write_str(if text.is_empty() { "-" } else { &text })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum TcpOption {
    Nop,
    Eol,
    Mss(u16),
    Wscale(u8),
    SackOk,
    Sack(Vec<(u32, u32)>),
    Ts {
        val: u32,
        ecr: u32,
    },
    /// Fast Open, by its number or in its experimental form.
    FastOpen {
        cookie: Vec<u8>,
        experimental: bool,
    },
    /// Anything else, as it is on the wire behind kind and length.
    Raw {
        kind: u8,
        data: Vec<u8>,
    },
}

/// An ICMP message about one of the stack's segments.
#[derive(Debug, Clone)]
pub struct Icmp {
    pub kind: String,
    pub code: String,
    pub mtu: Option<u32>,
    /// The segment that it quotes: sequence number and payload.
    pub quoted: Option<(u32, u32)>,
}

/// A call of the program.
#[derive(Debug)]
pub struct Call {
    pub name: String,
    pub args: Vec<Expr>,
    /// `...TIME`: it blocks, and returns then. Counted like the event's own time.
    pub until: Option<Us>,
    pub result: Expr,
    /// Name of an errno.
    pub errno: Option<String>,
}

/// An argument or a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Ellipsis,
    Int(i64),
    Word(String),
    Text(Vec<u8>),
    /// `a | b`
    Or(Box<Expr>, Box<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `{a, b}`, `{name=a}`
    Braces(Vec<Expr>),
    /// `name=a`, `name(...)=a`
    Field(String, Box<Expr>),
    /// `htons(80)`
    Apply(String, Vec<Expr>),
}

impl Expr {
    /// The value of field `name` of `{…}`.
    pub fn field(&self, name: &str) -> Option<&Expr> {
        let Self::Braces(items) = self else { return None };
        items.iter().find_map(|item| match item {
            Self::Field(found, value) if found == name => Some(&**value),
            _ => None,
        })
    }
}
