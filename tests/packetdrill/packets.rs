//! How a script writes packets: `< [ect0] P. 1:1001(1000) ack 1 win 257 <nop,nop,TS val 100 ecr 200>`.

use crate::lexer::{Lexer, Token};
use crate::script::{Body, Ecn, Flags, Icmp, IpInfo, Packet, Tcp, TcpOption};

/// Words that begin something that no TCP stack is asked about.
const OTHERS: [&str; 8] = ["udp", "ipv4", "ipv6", "gre", "GREv0", "mpls", "raw", "encap"];

/// A packet, behind its `<` or `>`.
pub fn packet(lexer: &mut Lexer<'_>, inbound: bool) -> Result<Packet, String> {
    let ip = ip_info(lexer)?;
    if let Token::Word(word) = lexer.peek()?
        && OTHERS.contains(&word.as_str())
    {
        return Ok(Packet { ip, ports: None, body: Body::Other(word) });
    }
    if lexer.take_word("icmp") {
        return Ok(Packet { ip, ports: None, body: Body::Icmp(icmp(lexer)?) });
    }
    let ports = match lexer.peek()? {
        Token::Int(from) => {
            lexer.take()?;
            if !lexer.take_sign('>') {
                return Err("ports are written FROM > TO".into());
            }
            Some((narrow(from)?, narrow(int(lexer)?)?))
        }
        _ => None,
    };
    let flags = flags(lexer.take_raw())?;
    let (seq, len) = span(lexer)?;
    let mut tcp = Tcp { flags, seq, len, options: Some(Vec::new()), ..Tcp::default() };
    if lexer.take_word("ack") {
        tcp.ack = number(lexer)?;
    }
    if lexer.take_word("win") {
        tcp.win = Some(narrow(int(lexer)?)?);
    }
    if lexer.take_word("urg") {
        tcp.urg = narrow(int(lexer)?)?;
    }
    if lexer.take_sign('<') {
        tcp.options = options(lexer)?;
    }
    if inbound && tcp.options.is_none() {
        return Err("<...> can't be sent".into());
    }
    Ok(Packet { ip, ports, body: Body::Tcp(tcp) })
}

/// `[ect0]`, `(tos 0x4)`, `[ce,flowlabel 0x1]` …
fn ip_info(lexer: &mut Lexer<'_>) -> Result<IpInfo, String> {
    let mut info = IpInfo::default();
    let end = if lexer.take_sign('(') {
        ')'
    } else if lexer.take_sign('[') {
        ']'
    } else {
        return Ok(info);
    };
    while !lexer.take_sign(end) {
        let Token::Word(word) = lexer.take()? else {
            return Err("a word of the IP header is missing".into());
        };
        match word.as_str() {
            "noecn" => info.ecn = Some(Ecn::Is(0)),
            "ect1" => info.ecn = Some(Ecn::Is(1)),
            "ect0" => info.ecn = Some(Ecn::Is(2)),
            "ce" => info.ecn = Some(Ecn::Is(3)),
            "ect01" => info.ecn = Some(Ecn::Ect01),
            "tos" => info.tos = Some(narrow(int(lexer)?)?),
            "ttl" => info.ttl = Some(narrow(int(lexer)?)?),
            "flowlabel" => {
                int(lexer)?;
                info.flow_label = true;
            }
            _ => return Err(format!("{word} is no word of the IP header")),
        }
        lexer.take_sign(',');
    }
    Ok(info)
}

/// `unreachable frag_needed mtu 1200 [1:1461(1460)]`.
fn icmp(lexer: &mut Lexer<'_>) -> Result<Icmp, String> {
    let Token::Word(kind) = lexer.take()? else {
        return Err("the type of an ICMP message is missing".into());
    };
    let mut message = Icmp { kind, code: String::new(), mtu: None, quoted: None };
    if lexer.take_word("mtu") {
        message.mtu = Some(number(lexer)?);
    } else if let Token::Word(code) = lexer.peek()? {
        lexer.take()?;
        message.code = code;
        if lexer.take_word("mtu") {
            message.mtu = Some(number(lexer)?);
        }
    }
    if lexer.take_sign('[') {
        message.quoted = Some(span(lexer)?);
        if !lexer.take_sign(']') {
            return Err("a quoted segment ends with ]".into());
        }
    }
    Ok(message)
}

/// `P.`, `SEWA`, `.`, `-`, `.5`.
fn flags(text: &str) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        flags.bits |= match c {
            'F' => Flags::FIN,
            'S' => Flags::SYN,
            'R' => Flags::RST,
            'P' => Flags::PSH,
            '.' => Flags::ACK,
            'U' => Flags::URG,
            'E' => Flags::ECE,
            'W' => Flags::CWR,
            'A' | 'N' => {
                flags.ae = true;
                0
            }
            '-' if text == "-" => 0,
            '0'..='7' if flags.has(Flags::ACK) && chars.as_str().is_empty() => {
                let count = c as u8 - b'0';
                flags.ace = true;
                flags.ae = count & 4 != 0;
                (count & 3) << 6
            }
            _ => return Err(format!("{text:?} are no flags")),
        };
    }
    Ok(flags)
}

/// `1:1001(1000)`: sequence number and payload.
fn span(lexer: &mut Lexer<'_>) -> Result<(u32, u32), String> {
    let start = number(lexer)?;
    let sign = |lexer: &mut Lexer<'_>, sign| {
        if lexer.take_sign(sign) { Ok(()) } else { Err(format!("{sign:?} is missing in a sequence range")) }
    };
    sign(lexer, ':')?;
    let end = number(lexer)?;
    sign(lexer, '(')?;
    let len = number(lexer)?;
    sign(lexer, ')')?;
    if end != start.wrapping_add(len) {
        return Err(format!("{start}:{end} are not {len} bytes"));
    }
    Ok((start, len))
}

/// `mss 1460,nop,wscale 7>`; `None` for `...>`.
fn options(lexer: &mut Lexer<'_>) -> Result<Option<Vec<TcpOption>>, String> {
    if lexer.peek()? == Token::Ellipsis {
        lexer.take()?;
        return if lexer.take_sign('>') { Ok(None) } else { Err("<... has no >".into()) };
    }
    let mut list = Vec::new();
    while !lexer.take_sign('>') {
        let Token::Word(word) = lexer.take()? else {
            return Err("the name of a TCP option is missing".into());
        };
        list.push(match word.as_str() {
            "nop" => TcpOption::Nop,
            "eol" => TcpOption::Eol,
            "mss" => TcpOption::Mss(narrow(int(lexer)?)?),
            "wscale" => TcpOption::Wscale(narrow(int(lexer)?)?),
            "sackOK" => TcpOption::SackOk,
            "sack" => sack(lexer)?,
            "TS" => {
                let mut part = |name| {
                    if lexer.take_word(name) { number(lexer) } else { Err(format!("TS has no {name}")) }
                };
                TcpOption::Ts { val: part("val")?, ecr: part("ecr")? }
            }
            "FO" | "FOEXP" => TcpOption::FastOpen { cookie: hex(lexer)?, experimental: word == "FOEXP" },
            "md5" => TcpOption::Raw { kind: 19, data: hex(lexer)? },
            "ECN" => accurate_ecn(lexer)?,
            _ => return Err(format!("{word} is no TCP option")),
        });
        lexer.take_sign(',');
    }
    Ok(Some(list))
}

fn sack(lexer: &mut Lexer<'_>) -> Result<TcpOption, String> {
    let mut blocks = Vec::new();
    while let Token::Int(_) = lexer.peek()? {
        let start = number(lexer)?;
        if !lexer.take_sign(':') {
            return Err("a SACK block is written START:END".into());
        }
        blocks.push((start, number(lexer)?));
    }
    Ok(TcpOption::Sack(blocks))
}

/// The counters of accurate ECN in the order in which they stand: kind 172 begins with ECT(0), 174 with ECT(1).
fn accurate_ecn(lexer: &mut Lexer<'_>) -> Result<TcpOption, String> {
    let (mut kind, mut data) = (0, Vec::new());
    while let Token::Word(name) = lexer.peek()? {
        if !matches!(name.as_str(), "e0b" | "e1b" | "ceb") {
            break;
        }
        lexer.take()?;
        if kind == 0 {
            kind = if name == "e0b" { 172 } else { 174 };
        }
        data.extend_from_slice(&number(lexer)?.to_be_bytes()[1..]);
    }
    Ok(TcpOption::Raw { kind, data })
}

fn hex(lexer: &mut Lexer<'_>) -> Result<Vec<u8>, String> {
    let mut text = lexer.take_hex().to_owned();
    if text.is_empty() {
        // Perhaps a name for one.
        let mut ahead = lexer.clone();
        if let Token::Word(word) = ahead.take()?
            && word != "nop"
        {
            *lexer = ahead;
            text = word;
        }
    }
    if !text.len().is_multiple_of(2) {
        return Err(format!("{text} has half a byte too many"));
    }
    let byte =
        |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|error| format!("{text}: {error}"));
    (0..text.len()).step_by(2).map(byte).collect()
}

fn int(lexer: &mut Lexer<'_>) -> Result<i64, String> {
    match lexer.take()? {
        Token::Int(value) => Ok(value),
        other => Err(format!("{other:?} is no number")),
    }
}

fn number(lexer: &mut Lexer<'_>) -> Result<u32, String> {
    narrow(int(lexer)?)
}

fn narrow<T: TryFrom<i64>>(value: i64) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("{value} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn read(text: &str) -> Packet {
        packet(&mut Lexer::new(text, &HashMap::new()), false).expect("a packet")
    }

    fn tcp(text: &str) -> Tcp {
        let Body::Tcp(tcp) = read(text).body else { panic!("no segment") };
        tcp
    }

    #[test]
    fn segments() {
        let syn = tcp("S 0:0(0) win 32792 <mss 1000,sackOK,TS val 1 ecr 0,nop,wscale 7,FO 3021b9d8,nop>");
        assert_eq!((syn.flags.to_string().as_str(), syn.win), ("S", Some(32792)));
        let options = syn.options.expect("options");
        assert_eq!(options[2], TcpOption::Ts { val: 1, ecr: 0 });
        assert_eq!(
            options[5],
            TcpOption::FastOpen { cookie: vec![0x30, 0x21, 0xb9, 0xd8], experimental: false }
        );
        let data = tcp("P. 1:1001(1000) ack 5 <nop,nop,sack 3:4 7:9>");
        assert_eq!((data.seq, data.len, data.ack, data.win), (1, 1000, 5, None));
        assert_eq!(
            data.options,
            Some(vec![TcpOption::Nop, TcpOption::Nop, TcpOption::Sack(vec![(3, 4), (7, 9)])])
        );
        assert_eq!(tcp("> S. 0:0(0) ack 1 <...>".trim_start_matches("> ")).options, None);
    }

    #[test]
    fn flags_and_their_counters() {
        assert_eq!(tcp("SEWA 0:0(0)").flags.to_string(), "SEWA");
        assert_eq!(tcp("- 0:0(0)").flags, Flags::default());
        let counted = tcp("S.5 0:0(0) ack 1").flags;
        assert!(counted.ace && counted.ae && counted.has(Flags::ECE) && !counted.has(Flags::CWR));
        assert!(flags("PX").is_err());
    }

    #[test]
    fn addresses_and_errors() {
        assert_eq!(read("[ect0] . 1:1(0) ack 1").ip.ecn, Some(Ecn::Is(2)));
        assert_eq!(read("(tos 0x10) . 1:1(0) ack 1").ip.tos, Some(16));
        assert_eq!(read("[ttl 5] . 1:1(0) ack 1").ip.ttl, Some(5));
        let Body::Icmp(icmp) = read("icmp unreachable frag_needed mtu 1200 [1:1461(1460)]").body else {
            panic!()
        };
        assert_eq!((icmp.code.as_str(), icmp.mtu, icmp.quoted), ("frag_needed", Some(1200), Some((1, 1460))));
        assert_eq!(read("8080 > 1234 . 1:1(0) ack 1").ports, Some((8080, 1234)));
    }
}
