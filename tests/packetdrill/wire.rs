//! Packets as bytes: an encoder and a decoder of this runner's own, so that it shares no mistake with the stack.

use std::net::IpAddr;

use crate::script::{Flags, Tcp, TcpOption};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// "FOEX", the experimental number of Fast Open (RFC 7413 §4.1.1 has it as 254 with this magic).
const FAST_OPEN_MAGIC: [u8; 2] = [0xf9, 0x89];

/// Addresses and ports of a segment on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ends {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

/// What the IP header says besides.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub tos: u8,
    pub ttl: u8,
}

/// A segment that was received.
#[derive(Debug, Clone)]
pub struct Received {
    pub ends: Ends,
    pub header: Header,
    pub tcp: Tcp,
    /// All bytes of the payload are 0, as those are that a script's program writes.
    pub blank: bool,
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low))).sum()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    fold(sum(&octets(src)) + sum(&octets(dst)) + u32::from(protocol) + bytes.len() as u32 + sum(bytes))
}

/// The header that leads `payload` from one address to another.
fn ip(src: IpAddr, dst: IpAddr, header: Header, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut out;
    if src.is_ipv4() {
        out = vec![0; IPV4];
        out[0] = 0x45;
        out[1] = header.tos;
        out[2..4].copy_from_slice(&((IPV4 + payload.len()) as u16).to_be_bytes());
        out[6] = 0x40;
        (out[8], out[9]) = (header.ttl, protocol);
        out[12..16].copy_from_slice(&octets(src));
        out[16..20].copy_from_slice(&octets(dst));
        let check = fold(sum(&out));
        out[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        out = vec![0; IPV6];
        (out[0], out[1]) = (0x60 | header.tos >> 4, header.tos << 4);
        out[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        (out[6], out[7]) = (protocol, header.ttl);
        out[8..24].copy_from_slice(&octets(src));
        out[24..40].copy_from_slice(&octets(dst));
    }
    out.extend_from_slice(payload);
    out
}

/// The options of a segment as bytes, filled up to whole words.
pub fn options(list: &[TcpOption]) -> Vec<u8> {
    let mut out = Vec::new();
    for option in list {
        match option {
            TcpOption::Nop => out.push(1),
            TcpOption::Eol => out.push(0),
            TcpOption::Mss(mss) => {
                out.extend([2, 4]);
                out.extend(mss.to_be_bytes());
            }
            TcpOption::Wscale(shift) => out.extend([3, 3, *shift]),
            TcpOption::SackOk => out.extend([4, 2]),
            TcpOption::Sack(blocks) => {
                out.extend([5, 2 + 8 * blocks.len() as u8]);
                for (start, end) in blocks {
                    out.extend(start.to_be_bytes());
                    out.extend(end.to_be_bytes());
                }
            }
            TcpOption::Ts { val, ecr } => {
                out.extend([8, 10]);
                out.extend(val.to_be_bytes());
                out.extend(ecr.to_be_bytes());
            }
            TcpOption::FastOpen { cookie, experimental: false } => {
                out.extend([34, 2 + cookie.len() as u8]);
                out.extend(cookie);
            }
            TcpOption::FastOpen { cookie, experimental: true } => {
                out.extend([254, 4 + cookie.len() as u8]);
                out.extend(FAST_OPEN_MAGIC);
                out.extend(cookie);
            }
            TcpOption::Raw { kind, data } => {
                out.extend([*kind, 2 + data.len() as u8]);
                out.extend(data);
            }
        }
    }
    while out.len() % 4 != 0 {
        out.push(0);
    }
    out
}

/// An IP packet with a segment whose payload is zeros.
pub fn segment(ends: Ends, header: Header, tcp: &Tcp) -> Vec<u8> {
    let options = options(tcp.options.as_deref().unwrap_or_default());
    let mut out = vec![0; 20];
    out[0..2].copy_from_slice(&ends.src_port.to_be_bytes());
    out[2..4].copy_from_slice(&ends.dst_port.to_be_bytes());
    out[4..8].copy_from_slice(&tcp.seq.to_be_bytes());
    out[8..12].copy_from_slice(&tcp.ack.to_be_bytes());
    out[12] = ((20 + options.len()) / 4) as u8 * 16 + u8::from(tcp.flags.ae);
    out[13] = tcp.flags.bits;
    out[14..16].copy_from_slice(&tcp.win.unwrap_or(0).to_be_bytes());
    out[18..20].copy_from_slice(&tcp.urg.to_be_bytes());
    out.extend(options);
    out.resize(out.len() + tcp.len as usize, 0);
    let check = checksum(ends.src, ends.dst, TCP, &out);
    out[16..18].copy_from_slice(&check.to_be_bytes());
    ip(ends.src, ends.dst, header, TCP, &out)
}

/// An ICMP message from `from` that quotes a segment which `ends` describes as its sender saw it.
pub fn icmp(from: IpAddr, ends: Ends, kind: u8, code: u8, word: u32, quoted: &Tcp) -> Vec<u8> {
    let header = Header { tos: 0, ttl: 64 };
    let original = segment(ends, header, quoted);
    let keep = original.len() - quoted.len as usize;
    let mut out = vec![kind, code, 0, 0];
    out.extend(word.to_be_bytes());
    out.extend(&original[..keep]);
    let v4 = from.is_ipv4();
    let check = if v4 { fold(sum(&out)) } else { checksum(from, ends.src, ICMPV6, &out) };
    out[2..4].copy_from_slice(&check.to_be_bytes());
    ip(from, ends.src, header, if v4 { ICMP } else { ICMPV6 }, &out)
}

/// Puts a link header in front.
pub fn frame(dst: [u8; 6], src: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&dst[..], &src, &ethertype, packet].concat()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The segment in a frame; `None` for what carries none (ARP, neighbour discovery).
///
/// # Errors
/// A header or checksum is wrong.
pub fn received(frame: &[u8]) -> Result<Option<Received>, String> {
    let Some(packet) = frame.get(ETHERNET..) else { return Err("a frame without a link header".into()) };
    let (src, dst, header, protocol, payload): (IpAddr, IpAddr, _, _, _);
    match word(frame, 12) {
        0x0800 => {
            if packet.len() < IPV4 || fold(sum(&packet[..IPV4])) != 0 {
                return Err("the IPv4 header's checksum is wrong".into());
            }
            let total = usize::from(word(packet, 2));
            src = <[u8; 4]>::try_from(&packet[12..16]).map_err(|_| "short")?.into();
            dst = <[u8; 4]>::try_from(&packet[16..20]).map_err(|_| "short")?.into();
            header = Header { tos: packet[1], ttl: packet[8] };
            protocol = packet[9];
            payload = packet.get(IPV4..total).ok_or("the IPv4 packet is cut")?;
        }
        0x86dd => {
            let len = usize::from(word(packet, 4));
            src = <[u8; 16]>::try_from(&packet[8..24]).map_err(|_| "short")?.into();
            dst = <[u8; 16]>::try_from(&packet[24..40]).map_err(|_| "short")?.into();
            header = Header { tos: packet[0] << 4 | packet[1] >> 4, ttl: packet[7] };
            protocol = packet[6];
            payload = packet.get(IPV6..IPV6 + len).ok_or("the IPv6 packet is cut")?;
        }
        _ => return Ok(None),
    }
    if protocol != TCP {
        return Ok(None);
    }
    if checksum(src, dst, TCP, payload) != 0 {
        return Err("the TCP checksum is wrong".into());
    }
    let data_at = usize::from(payload[12] >> 4) * 4;
    let data = &payload[data_at..];
    let tcp = Tcp {
        flags: Flags { bits: payload[13], ae: payload[12] & 1 != 0, ace: false },
        seq: long(payload, 4),
        len: data.len() as u32,
        ack: long(payload, 8),
        win: Some(word(payload, 14)),
        urg: word(payload, 18),
        options: Some(parse_options(&payload[20..data_at])?),
    };
    let ends = Ends { src, dst, src_port: word(payload, 0), dst_port: word(payload, 2) };
    Ok(Some(Received { ends, header, tcp, blank: data.iter().all(|&byte| byte == 0) }))
}

fn parse_options(mut bytes: &[u8]) -> Result<Vec<TcpOption>, String> {
    let mut list = Vec::new();
    while let Some(&kind) = bytes.first() {
        if kind < 2 {
            list.push(if kind == 0 { TcpOption::Eol } else { TcpOption::Nop });
            bytes = &bytes[1..];
            continue;
        }
        let len = usize::from(*bytes.get(1).ok_or("an option without a length")?);
        let data = bytes.get(2..len).ok_or("an option is cut")?;
        bytes = &bytes[len..];
        list.push(match (kind, data.len()) {
            (2, 2) => TcpOption::Mss(word(data, 0)),
            (3, 1) => TcpOption::Wscale(data[0]),
            (4, 0) => TcpOption::SackOk,
            (5, _) => TcpOption::Sack(data.chunks_exact(8).map(|b| (long(b, 0), long(b, 4))).collect()),
            (8, 8) => TcpOption::Ts { val: long(data, 0), ecr: long(data, 4) },
            (34, _) => TcpOption::FastOpen { cookie: data.to_vec(), experimental: false },
            (254, 2..) if data[..2] == FAST_OPEN_MAGIC => {
                TcpOption::FastOpen { cookie: data[2..].to_vec(), experimental: true }
            }
            _ => TcpOption::Raw { kind, data: data.to_vec() },
        });
    }
    Ok(list)
}

/// A segment in a script's words.
pub fn show(tcp: &Tcp) -> String {
    let mut text = format!("{} {}:{}({})", tcp.flags, tcp.seq, tcp.seq.wrapping_add(tcp.len), tcp.len);
    if tcp.flags.has(Flags::ACK) {
        text += &format!(" ack {}", tcp.ack);
    }
    if let Some(win) = tcp.win {
        text += &format!(" win {win}");
    }
    if tcp.urg != 0 {
        text += &format!(" urg {}", tcp.urg);
    }
    let Some(options) = &tcp.options else { return text + " <...>" };
    if !options.is_empty() {
        let words: Vec<String> = options.iter().map(show_option).collect();
        text += &format!(" <{}>", words.join(","));
    }
    text
}

fn show_option(option: &TcpOption) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match option {
        TcpOption::Nop => "nop".into(),
        TcpOption::Eol => "eol".into(),
        TcpOption::Mss(mss) => format!("mss {mss}"),
        TcpOption::Wscale(shift) => format!("wscale {shift}"),
        TcpOption::SackOk => "sackOK".into(),
        TcpOption::Sack(blocks) => {
            let blocks: Vec<String> = blocks.iter().map(|(start, end)| format!("{start}:{end}")).collect();
            format!("sack {}", blocks.join(" "))
        }
        TcpOption::Ts { val, ecr } => format!("TS val {val} ecr {ecr}"),
        TcpOption::FastOpen { cookie, experimental } => {
            format!("FO{} {}", if *experimental { "EXP" } else { "" }, hex(cookie))
        }
        TcpOption::Raw { kind, data } => format!("option {kind} {}", hex(data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn there_and_back(src: IpAddr, dst: IpAddr) {
        let ends = Ends { src, dst, src_port: 1000, dst_port: 8080 };
        let tcp = Tcp {
            flags: Flags { bits: Flags::PSH | Flags::ACK | Flags::CWR, ae: true, ace: false },
            seq: 7,
            len: 5,
            ack: 9,
            win: Some(257),
            urg: 0,
            options: Some(vec![TcpOption::Nop, TcpOption::Nop, TcpOption::Ts { val: 1, ecr: 2 }]),
        };
        let bytes = frame([1; 6], [2; 6], &segment(ends, Header { tos: 0x12, ttl: 64 }, &tcp));
        let back = received(&bytes).expect("valid").expect("a segment");
        assert_eq!((back.ends, back.header.tos, back.blank), (ends, 0x12, true));
        assert_eq!(show(&back.tcp), "PWA. 7:12(5) ack 9 win 257 <nop,nop,TS val 1 ecr 2>");
        let mut spoilt = bytes;
        *spoilt.last_mut().expect("bytes") ^= 1;
        assert!(received(&spoilt).is_err());
    }

    #[test]
    fn segments_there_and_back() {
        there_and_back(Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(192, 168, 0, 1).into());
        there_and_back(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    }
}
