//! Whether the interface below a switch is up, and its link address. While it is down, some ports may not be waited on ([`Port::set_up`](crate::Port::set_up)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::{Flags, check, own};

/// The group of rtnetlink that tells of links (`RTMGRP_LINK`).
const LINKS: u32 = 1;

/// Hears of changes.
#[derive(Debug)]
pub(super) struct Link {
    flags: Flags,
    socket: OwnedFd,
    up: bool,
    mac: [u8; 6],
}

impl Link {
    /// Of the interface with that number in this network namespace, which is taken to be up: so [`Self::changed`] tells at
    /// first if it is not.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: makes a descriptor.
        let socket = own(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: a structure of numbers, of which zero is one.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or(0);
        address.nl_groups = LINKS;
        let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
        // SAFETY: the kernel reads one address, which lives until the call returns.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        let flags = Flags::of(index)?;
        let mac = flags.mac().unwrap_or_default();
        Ok(Self { flags, socket, up: true, mac })
    }

    /// Readable when there is something to look at.
    pub(super) fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Whether it is up, if that is news since the last look. `first`: nobody has told of anything yet.
    pub(super) fn changed(&mut self, first: bool) -> Option<bool> {
        if !self.heard() && !first {
            return None;
        }
        // What was told may be old: it is asked. One that is gone is its port's business.
        self.mac = self.flags.mac().unwrap_or(self.mac);
        let up = self.flags.up()?;
        (std::mem::replace(&mut self.up, up) != up).then_some(up)
    }

    /// Its link address, as of the last look.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether anything was told, which is forgotten by that.
    fn heard(&self) -> bool {
        let mut heard = false;
        let mut bytes = [0_u8; 256];
        loop {
            // SAFETY: the kernel writes at most as many bytes as there are; of a longer message it drops the rest.
            let got =
                unsafe { libc::recv(self.socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            let error = io::Error::last_os_error().raw_os_error();
            match (got, error) {
                // Of the second: there was more than the socket could hold.
                (0.., _) | (_, Some(libc::ENOBUFS)) => heard = true,
                (_, Some(libc::EINTR)) => {}
                _ => return heard,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MAC_A, Network, skip_without};

    #[test]
    fn down_and_up_are_told_once() {
        skip_without!(namespaces);
        let net = Network::new(1, 1500);
        let interface = || crate::sys::interface("nio-a").unwrap().unwrap();
        let mut link = net.a.run(move || Link::new(interface().index).unwrap());
        assert_eq!((link.changed(true), link.changed(false)), (None, None));
        net.a.ip("link set nio-a down");
        assert_eq!((link.changed(false), link.changed(false)), (Some(false), None));
        net.a.ip("link set nio-a mtu 1400");
        assert_eq!(link.changed(false), None);
        assert_eq!(link.mac(), MAC_A);
        net.a.ip("link set nio-a address 02:00:00:00:00:77");
        assert_eq!((link.changed(false), link.mac()), (None, [2, 0, 0, 0, 0, 0x77]));
        net.a.ip("link set nio-a name nio-c");
        net.a.ip("link set nio-c up");
        assert_eq!((link.changed(false), link.changed(false)), (Some(true), None));
    }
}
