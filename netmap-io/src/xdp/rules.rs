//! Rules of nftables at an interface's own hooks, by netlink. At the ingress hook a frame meets them behind programs of the tcx hook and
//! before packet sockets, so what they drop never comes to us there. (XDP programs stand before both.) At the egress hook it meets
//! them behind packet sockets. AF_XDP, and what a tcx program keeps, pass both by.
//!
//! ```text
//!  question:  nlmsghdr │ nfgenmsg
//!  answer:    nlmsghdr │ nfgenmsg (its family) │ table │ name │ hook ─► number │ interface, or several
//! ```

use std::io;
use std::os::fd::AsRawFd;

use super::hook::attribute;
use crate::sys::own;

/// `nlmsghdr`, and `nfgenmsg` behind it.
const HEADER: usize = 16;
const FAMILY: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x301;
/// `NFNL_SUBSYS_NFTABLES`, and of that `NFT_MSG_NEWCHAIN` and `NFT_MSG_GETCHAIN`.
const CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Families, and the numbers that they have for the ingress hook and for the egress hook.
const INGRESS: [(u8, u32); 2] = [(5, 0), (1, 5)];
const EGRESS: [(u8, u32); 1] = [(5, 1)];
/// Attributes of a chain, and of its hook.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
/// In the list of interfaces: a name, or what names begin with.
const DEVICE_NAME: u16 = 1;
const DEVICE_PREFIX: u16 = 2;
/// Answers that are read at most.
const ANSWERS_MAX: usize = 64;

/// Base chains at the ingress hook of an interface of this network namespace, each as "table chain".
pub(super) fn ingress_chains(interface: &str) -> io::Result<Vec<String>> {
    chains(interface, &INGRESS)
}

/// Whether chains stand at either of its hooks. Where that can't be known they do: nobody is to be passed by.
pub(super) fn filters(interface: &str) -> bool {
    [&INGRESS[..], &EGRESS].iter().any(|hooks| stands(chains(interface, hooks)))
}

fn stands(chains: io::Result<Vec<String>>) -> bool {
    match chains {
        Ok(all) => !all.is_empty(),
        // No such family of netlink, or no such subsystem of it: this kernel has no nftables.
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)),
    }
}

fn chains(interface: &str, hooks: &[(u8, u32)]) -> io::Result<Vec<String>> {
    // SAFETY: makes a descriptor.
    let socket = own(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    })?;
    let question = question();
    // SAFETY: the kernel reads as many bytes as there are.
    let sent = unsafe { libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    gather((interface, hooks), |answer| {
        // SAFETY: the kernel writes at most as many bytes as there are.
        let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    })
}

/// Reads answers up to the one that is the last. An end that does not come is an error: what it would have told is not known.
fn gather(
    place: (&str, &[(u8, u32)]),
    mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    let mut answer = vec![0_u8; 32 * 1024];
    for _ in 0..ANSWERS_MAX {
        let got = match receive(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read(&answer[..got.min(answer.len())], place, &mut all)? {
            return Ok(all);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EOVERFLOW))
}

fn question() -> [u8; HEADER + FAMILY] {
    let mut all = [0; HEADER + FAMILY];
    all[..4].copy_from_slice(&20_u32.to_ne_bytes());
    all[4..6].copy_from_slice(&GET_CHAIN.to_ne_bytes());
    all[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    all
}

/// Reads the messages of an answer; whether the last one was among them.
fn read(mut answer: &[u8], place: (&str, &[(u8, u32)]), all: &mut Vec<String>) -> io::Result<bool> {
    while let Some(head) = answer.first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, k0, k1, ..] = *head;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = answer.get(HEADER..len) else { break };
        match u16::from_ne_bytes([k0, k1]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            CHAIN => all.extend(chain(body, place)),
            _ => {}
        }
        let Some(rest) = answer.get(len.next_multiple_of(4)..) else { break };
        answer = rest;
    }
    Ok(false)
}

/// The chain that an answer tells of, if it stands at one of these hooks of the interface.
fn chain(body: &[u8], (interface, hooks): (&str, &[(u8, u32)])) -> Option<String> {
    let attributes = body.get(FAMILY..)?;
    let hook = attribute(attributes, CHAIN_HOOK)?;
    let number = u32::from_be_bytes(*attribute(hook, HOOK_NUMBER)?.first_chunk()?);
    let here = hooks.contains(&(*body.first()?, number));
    let one = || attribute(hook, HOOK_DEVICE).is_some_and(|name| text(name) == interface);
    let among = || attribute(hook, HOOK_DEVICES).is_some_and(|list| names(list, interface));
    if !here || !(one() || among()) {
        return None;
    }
    Some(format!(
        "{} {}",
        text(attribute(attributes, CHAIN_TABLE)?),
        text(attribute(attributes, CHAIN_NAME)?)
    ))
}

/// Whether an interface is in a list.
fn names(mut list: &[u8], interface: &str) -> bool {
    while let Some(&[l0, l1, k0, k1]) = list.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(body) = list.get(4..len) else { return false };
        let name = text(body);
        match u16::from_ne_bytes([k0, k1]) {
            DEVICE_NAME if name == interface => return true,
            DEVICE_PREFIX if interface.starts_with(&*name) => return true,
            _ => {}
        }
        list = list.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// A string with its zero.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Network, skip_without};

    #[test]
    fn answers_end_whatever_they_hold() {
        let mut all = Vec::new();
        for len in [0_u32, 1, 15, 16, 17, 40, u32::MAX] {
            let mut answer = vec![0xff_u8; 40];
            answer[..4].copy_from_slice(&len.to_ne_bytes());
            let _ = read(&answer, ("eth0", &INGRESS), &mut all);
        }
        assert_eq!(all, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_known_counts_as_a_filter() {
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        assert!(!stands(Ok(Vec::new())) && stands(Ok(vec!["guard early".to_owned()])));
        for (errno, want) in [(libc::EPROTONOSUPPORT, false), (libc::EINVAL, false), (libc::ENOBUFS, true)] {
            assert_eq!(stands(error(errno)), want, "{errno}");
        }
        // Messages without an end, an end after an interruption, and one that never comes.
        let mut other = [0_u8; 20];
        other[0] = 20;
        let mut end = other;
        end[4] = 3;
        let place = ("eth0", &INGRESS[..]);
        let give = |answer: &mut [u8], message: &[u8; 20]| {
            answer[..20].copy_from_slice(message);
            Ok(20)
        };
        assert!(gather(place, |answer| give(answer, &other)).is_err());
        let mut turn = 0;
        let twice = gather(place, |answer| {
            turn += 1;
            if turn == 1 { Err(io::ErrorKind::Interrupted.into()) } else { give(answer, &end) }
        });
        assert_eq!((twice.unwrap(), turn), (Vec::new(), 2));
        assert!(gather(place, |_| Err(io::ErrorKind::Interrupted.into())).is_err());
    }

    #[test]
    fn chains_of_the_interface_are_named() {
        skip_without!(namespaces);
        let net = Network::new(1, 1500);
        let chains = |name: &'static str| net.a.run(move || ingress_chains(name));
        if std::process::Command::new("nft").arg("-v").output().is_err() {
            return;
        }
        let nft = |words: &str| {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            net.a.run(move || {
                assert!(std::process::Command::new("nft").args(words).status().unwrap().success());
            });
        };
        assert_eq!(chains("nio-a").unwrap(), Vec::<String>::new());
        nft("add table netdev guard");
        nft("add chain netdev guard early { type filter hook ingress device nio-a priority 0 ; }");
        nft("add chain netdev guard late { type filter hook ingress device nio-a priority 9 ; }");
        nft("add chain netdev guard both { type filter hook ingress devices = { lo, nio-a } priority 9 ; }");
        nft("add table inet wall");
        nft("add chain inet wall first { type filter hook ingress device nio-a priority 9 ; }");
        nft("add chain inet wall input { type filter hook input priority 9 ; }");
        let mut all = chains("nio-a").unwrap();
        all.sort();
        assert_eq!(all, ["guard both", "guard early", "guard late", "wall first"]);
        assert_eq!(chains("lo").unwrap(), ["guard both"]);
        nft("flush ruleset");
        let filters = || net.a.run(|| filters("nio-a"));
        assert!(!filters());
        for hook in ["ingress", "egress"] {
            nft("add table netdev guard");
            nft(&format!(
                "add chain netdev guard one {{ type filter hook {hook} device nio-a priority 0 ; }}"
            ));
            assert!(filters(), "{hook}");
            nft("flush ruleset");
        }
    }
}
