//! Memory that a call reads and writes. It is leaked on purpose: a call that blocks may outlive whoever made it, and
//! the process lives for one script.

use std::net::SocketAddr;

use crate::calls::{self, Check};
use crate::script::Expr;

/// Bytes at a fixed place, or a place that leads nowhere.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    at: *mut u8,
    len: usize,
}

// SAFETY: leaked memory belongs to no thread; the runner looks at it only when no call is under way.
unsafe impl Send for Memory {}

impl Memory {
    /// A copy of `bytes`.
    pub fn bytes(bytes: &[u8]) -> Self {
        // Aligned for every structure of the calls.
        let words = vec![0u64; bytes.len().div_ceil(8) + 1].leak();
        let at = words.as_mut_ptr().cast::<u8>();
        // SAFETY: at least as many bytes, just made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Self { at, len: bytes.len() }
    }

    pub fn zeroed(len: usize) -> Self {
        Self::bytes(&vec![0; len])
    }

    /// No memory at all.
    pub fn null() -> Self {
        Self { at: std::ptr::null_mut(), len: 0 }
    }

    /// An address that the script made up.
    pub fn at(address: i64) -> Self {
        Self { at: address as usize as *mut u8, len: 0 }
    }

    pub fn ptr(&self) -> *mut u8 {
        self.at
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The first `len` bytes as they are now.
    pub fn read(&self, len: usize) -> Vec<u8> {
        let len = len.min(self.len);
        // SAFETY: within what was leaked; `null` and `at` have no length.
        (0..len).map(|i| unsafe { self.at.add(i).read_volatile() }).collect()
    }

    /// The int at `offset`.
    pub fn int(&self, offset: usize) -> i32 {
        let bytes = self.read(offset + 4);
        bytes.get(offset..).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes)
    }
}

/// A buffer argument of `len` bytes.
pub fn buffer(expr: Option<&Expr>, len: usize) -> Result<Memory, String> {
    match expr {
        None | Some(Expr::Ellipsis) => Ok(Memory::zeroed(len)),
        Some(Expr::Text(text)) => {
            let mut bytes = text.clone();
            bytes.resize(len.max(text.len()), 0);
            Ok(Memory::bytes(&bytes))
        }
        Some(other) => Ok(Memory::at(calls::number(other)?)),
    }
}

/// A socket address and its length.
pub fn address(addr: SocketAddr, mapped: bool) -> (Memory, u32) {
    let port = addr.port().to_be_bytes();
    let ip = match addr.ip() {
        std::net::IpAddr::V4(v4) if !mapped => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            return (Memory::bytes(&[&family[..], &port, &v4.octets(), &[0; 8]].concat()), 16);
        }
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let family = (libc::AF_INET6 as u16).to_ne_bytes();
    (Memory::bytes(&[&family[..], &port, &[0; 4], &ip.octets(), &[0; 4]].concat()), 28)
}

/// The value of a socket option: `[1]`, `{onoff=1, linger=0}`, `"reno"`, `NULL`.
pub fn option(expr: &Expr) -> Result<Memory, String> {
    let ints = |items: &[Expr]| {
        let numbers: Result<Vec<i64>, String> = items.iter().map(calls::number).collect();
        Ok::<_, String>(Memory::bytes(
            &numbers?.iter().flat_map(|n| (*n as i32).to_ne_bytes()).collect::<Vec<u8>>(),
        ))
    };
    match expr {
        Expr::List(items) => match items.as_slice() {
            [Expr::Braces(_)] => option(&items[0]),
            items => ints(items),
        },
        Expr::Braces(_) if expr.field("onoff").is_some() => {
            let part = |name| expr.field(name).map_or(Ok(0), calls::number);
            ints(&[Expr::Int(part("onoff")?), Expr::Int(part("linger")?)])
        }
        Expr::Text(text) => Ok(Memory::bytes(&[text.as_slice(), &[0; 16]].concat())),
        Expr::Ellipsis => Ok(Memory::zeroed(256)),
        other => Ok(Memory::at(calls::number(other)?)),
    }
}

/// `{events=…, fd=…}` or `ptr`, `u32`, `u64`.
pub fn epoll_event(expr: &Expr, fd: impl Fn(i64) -> i32) -> Result<Memory, String> {
    if matches!(expr, Expr::Word(_) | Expr::Int(_)) {
        return Ok(Memory::at(calls::number(expr)?));
    }
    let events = expr.field("events").map_or(Ok(0), calls::number)? as u32;
    let data = match expr.field("fd") {
        Some(script) => i64::from(fd(calls::number(script)?)),
        None => {
            ["ptr", "u32", "u64"].iter().find_map(|name| expr.field(name)).map_or(Ok(0), calls::number)?
        }
    };
    Ok(Memory::bytes(&[&events.to_ne_bytes()[..], &data.to_ne_bytes()].concat()))
}

/// `[{..., 40}, …]` as `struct iovec`s, and how many.
pub fn vectors(expr: &Expr) -> Result<(Memory, usize), String> {
    let Expr::List(items) = expr else { return Ok((Memory::at(calls::number(expr)?), 0)) };
    let mut bytes = Vec::new();
    for item in items {
        let Expr::Braces(parts) = item else { return Err("a vector is written {..., LENGTH}".into()) };
        let len = calls::number(parts.get(1).ok_or("a vector without a length")?)? as usize;
        bytes.extend((buffer(parts.first(), len)?.ptr() as usize).to_ne_bytes());
        bytes.extend(len.to_ne_bytes());
    }
    Ok((Memory::bytes(&bytes), items.len()))
}

/// A `struct msghdr`, and what is to be looked at behind the call.
pub fn message(expr: &Expr, to: Option<(Memory, u32)>, send: bool) -> Result<(Memory, Check), String> {
    let (list, count) = match expr.field("msg_iov") {
        Some(list) => vectors(list)?,
        None => (Memory::null(), 0),
    };
    let controls = match expr.field("msg_control") {
        Some(Expr::List(items)) if send && !items.is_empty() => {
            return Err(format!("control messages ({} of them) are not sent", items.len()));
        }
        Some(Expr::List(items)) => items.iter().map(control).collect::<Result<Vec<_>, _>>()?,
        _ => Vec::new(),
    };
    let room = Memory::zeroed(512);
    let wanted = expr.field("msg_flags").map_or(Ok(0), calls::number)?;
    let (name, name_len) = to.unwrap_or((Memory::null(), 0));
    let words = [
        name.ptr() as usize,
        name_len as usize,
        list.ptr() as usize,
        count,
        if send { 0 } else { room.ptr() as usize },
        if send { 0 } else { room.len() },
        0,
    ];
    let header = Memory::bytes(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    let check = move |value: i64| {
        if send || value < 0 {
            return Ok(());
        }
        let got = i64::from(header.int(48));
        if got != wanted {
            return Err(format!("msg_flags are {got:#x}"));
        }
        check_controls(&controls, &room.read(header.int(40) as usize))
    };
    Ok((header, Box::new(check)))
}

/// A control message: its level, its type, and how its data begins.
type Control = (i32, i32, Vec<u8>);

/// `{cmsg_level=…, cmsg_type=…, cmsg_data=…}`; the data is a number, or a `struct sock_extended_err`.
fn control(expr: &Expr) -> Result<Control, String> {
    let part = |name| expr.field(name).ok_or_else(|| format!("a control message without {name}"));
    let data = part("cmsg_data")?;
    let bytes = if data.field("ee_errno").is_some() {
        let field = |name| data.field(name).map_or(Ok(0), calls::number);
        let mut bytes = (field("ee_errno")? as u32).to_ne_bytes().to_vec();
        for name in ["ee_origin", "ee_type", "ee_code"] {
            bytes.push(field(name)? as u8);
        }
        bytes.push(0);
        for name in ["ee_info", "ee_data"] {
            bytes.extend((field(name)? as u32).to_ne_bytes());
        }
        bytes
    } else {
        (calls::number(data)? as i32).to_ne_bytes().to_vec()
    };
    Ok((calls::number(part("cmsg_level")?)? as i32, calls::number(part("cmsg_type")?)? as i32, bytes))
}

/// Whether the control messages in `got` are those that are wanted, in this order.
fn check_controls(wanted: &[Control], mut got: &[u8]) -> Result<(), String> {
    let mut found: Vec<Control> = Vec::new();
    // `struct cmsghdr`: its length, which counts these 16 bytes, level and type; each begins at a multiple of 8.
    while let Some((head, _)) = got.split_first_chunk::<16>() {
        let word = |at: usize| i32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = word(0) as usize;
        let data = got.get(16..len).ok_or_else(|| format!("a control message of {len} bytes"))?;
        found.push((word(8), word(12), data.to_vec()));
        got = got.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    let alike = |(wanted, found): (&Control, &Control)| {
        (wanted.0, wanted.1) == (found.0, found.1) && found.2.starts_with(&wanted.2)
    };
    if wanted.len() == found.len() && wanted.iter().zip(&found).all(alike) {
        return Ok(());
    }
    Err(format!("control messages are {found:?}, not {wanted:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_compared() {
        let message = |data: u8| {
            let (len, level, kind) = (20u64.to_ne_bytes(), 6u32.to_ne_bytes(), 36u32.to_ne_bytes());
            [&len[..], &level, &kind, &[data, 0, 0, 0]].concat()
        };
        let one = [message(7), vec![0; 4]].concat();
        let wanted = |data: u8| vec![(6, 36, vec![data, 0, 0, 0])];
        assert_eq!(check_controls(&wanted(7), &one), Ok(()));
        assert!(check_controls(&wanted(8), &one).is_err());
        assert!(check_controls(&[], &one).is_err());
        assert!(check_controls(&wanted(7), &[]).is_err());
        assert!(check_controls(&wanted(7), &one[..18]).is_err(), "cut");
        let two = [wanted(7), wanted(9)].concat();
        assert_eq!(check_controls(&two, &[one.clone(), message(9)].concat()), Ok(()));
    }
}
