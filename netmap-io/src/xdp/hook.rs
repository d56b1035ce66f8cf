//! What stands on an interface's XDP hook, by rtnetlink: the one place that knows it in this network namespace (numbers of
//! interfaces, which bpf(2) tells of a link, repeat from namespace to namespace).

use std::io;
use std::os::fd::AsRawFd;

use crate::sys::own;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr`, and `struct ifinfomsg` behind it.
const HEADER: usize = 16;
const IFINFO: usize = 16;
/// Attributes: the hook, and in it where a program is and which.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// The value of the second: in the driver.
const ATTACHED_DRV: u8 = 1;
const NESTED: u16 = 1 << 15;

/// A program on the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hooked {
    /// Its number.
    pub(super) program: u32,
    /// It runs in the driver, not on socket buffers.
    pub(super) native: bool,
}

/// Asks about an interface of this network namespace.
pub(super) fn hooked(ifindex: u32) -> io::Result<Option<Hooked>> {
    // SAFETY: makes a descriptor.
    let socket = own(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    })?;
    let mut question = Vec::with_capacity(HEADER + IFINFO);
    question.extend(u32::try_from(HEADER + IFINFO).unwrap_or(0).to_ne_bytes());
    question.extend(RTM_GETLINK.to_ne_bytes());
    question.extend(NLM_F_REQUEST.to_ne_bytes());
    question.resize(HEADER + 4, 0);
    question.extend(ifindex.to_ne_bytes());
    question.resize(HEADER + IFINFO, 0);
    // SAFETY: the kernel reads as many bytes as there are.
    let sent = unsafe { libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0_u8; 32 * 1024];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(got);
    Ok(read(&answer))
}

/// The program in the answer to the question.
fn read(answer: &[u8]) -> Option<Hooked> {
    let kind = answer.get(4..6)?.try_into().map(u16::from_ne_bytes).ok()?;
    if kind != RTM_NEWLINK {
        return None;
    }
    let hook = attribute(answer.get(HEADER + IFINFO..)?, IFLA_XDP)?;
    let program = attribute(hook, IFLA_XDP_PROG_ID)?.get(..4)?.try_into().map(u32::from_ne_bytes).ok()?;
    let native = attribute(hook, IFLA_XDP_ATTACHED)?.first() == Some(&ATTACHED_DRV);
    (program != 0).then_some(Hooked { program, native })
}

/// The bytes of the first attribute of a kind.
pub(super) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let half = |at: usize| bytes.get(at..at + 2)?.try_into().map(u16::from_ne_bytes).ok();
        let (len, kind) = (usize::from(half(0)?), half(2)? & !NESTED);
        let body = bytes.get(4..len)?;
        if kind == wanted {
            return Some(body);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
/// Puts a program there as `ip link set dev … xdp …` does, without a link that holds it; -1 takes it off.
pub(super) fn put(ifindex: u32, program: i32, native: bool) -> io::Result<()> {
    const RTM_SETLINK: u16 = 19;
    const NLM_F_ACK: u16 = 4;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;
    // SAFETY: makes a descriptor.
    let socket = own(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    })?;
    let mode: u32 = if native { 1 << 2 } else { 1 << 1 };
    let mut hook = Vec::new();
    for (kind, value) in [(IFLA_XDP_FD, program.to_ne_bytes()), (IFLA_XDP_FLAGS, mode.to_ne_bytes())] {
        hook.extend(8_u16.to_ne_bytes());
        hook.extend(kind.to_ne_bytes());
        hook.extend(value);
    }
    let mut question = vec![0; HEADER + IFINFO];
    question[4..6].copy_from_slice(&RTM_SETLINK.to_ne_bytes());
    question[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    question[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    question.extend(u16::try_from(4 + hook.len()).unwrap_or(0).to_ne_bytes());
    question.extend((IFLA_XDP | NESTED).to_ne_bytes());
    question.extend(hook);
    let len = u32::try_from(question.len()).unwrap_or(0);
    question[..4].copy_from_slice(&len.to_ne_bytes());
    let mut answer = [0_u8; 1024];
    // SAFETY: the kernel reads as many bytes as there are, and then writes at most as many.
    let got = unsafe {
        libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0);
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    // An NLMSG_ERROR: behind its header the negative errno, 0 for done.
    let errno = answer[HEADER..HEADER + 4].try_into().map(i32::from_ne_bytes).unwrap_or(0);
    match (got, errno) {
        (20.., 0) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(-errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + body.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + IFINFO];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn an_answer_is_understood_or_nothing() {
        let hook = [attr(IFLA_XDP_ATTACHED, &[1]), attr(IFLA_XDP_PROG_ID, &7_u32.to_ne_bytes())].concat();
        let whole = answer(RTM_NEWLINK, &[attr(3, b"eth0\0"), attr(IFLA_XDP | NESTED, &hook)].concat());
        assert_eq!(read(&whole), Some(Hooked { program: 7, native: true }));
        let generic = [attr(IFLA_XDP_ATTACHED, &[2]), attr(IFLA_XDP_PROG_ID, &9_u32.to_ne_bytes())].concat();
        let generic = answer(RTM_NEWLINK, &attr(IFLA_XDP, &generic));
        assert_eq!(read(&generic), Some(Hooked { program: 9, native: false }));
        assert_eq!(read(&answer(RTM_NEWLINK, &attr(IFLA_XDP, &attr(IFLA_XDP_ATTACHED, &[0])))), None);
        assert_eq!(read(&answer(2, &attr(IFLA_XDP, &hook))), None);
        for end in 0..whole.len() {
            let _ = read(&whole[..end]);
        }
        // A length of zero ends it.
        assert_eq!(read(&answer(RTM_NEWLINK, &[0; 64])), None);
    }

    #[test]
    fn the_loopback_device_has_no_program() {
        assert_eq!(hooked(1).unwrap(), None);
        assert_eq!(hooked(0x7fff_fff0).unwrap(), None);
    }
}
