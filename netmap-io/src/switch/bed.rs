//! What a switch sleeps on.
//!
//! An epoll descriptor and not poll(2), which asks every descriptor when it begins and again when it ends, whoever woke it. To ask
//! netmap's is to sync, and that does not return while the interface is down: the very news of it would wake us into such
//! a wait. An epoll descriptor asks those alone that said something.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::Port;
use crate::sys::Epoll;

/// What woke it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Woken {
    /// Somebody wants it to end.
    pub(super) stop: bool,
    /// A port of the device says that it is broken.
    pub(super) broken: bool,
}

const OTHER: u64 = 0;
const STOP: u64 = 1;
const NIC: u64 = 2;

/// A set of descriptors. Whoever puts one in takes it out before it is closed: the other end may hold it open.
#[derive(Debug)]
pub(super) struct Bed(Epoll);

impl Bed {
    pub(super) fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    /// Wakes for a descriptor, from now on.
    pub(super) fn add(&self, fd: RawFd) -> io::Result<()> {
        self.0.add(fd, OTHER)
    }

    /// Wakes for the end.
    pub(super) fn add_stop(&self, fd: RawFd) -> io::Result<()> {
        self.0.add(fd, STOP)
    }

    /// Wakes for a stack's port.
    pub(super) fn add_port(&self, port: &dyn Port) -> io::Result<()> {
        port.poll_fds().iter().try_for_each(|poll| self.0.add(poll.fd, OTHER))
    }

    /// Wakes for a port of the device.
    pub(super) fn add_nic(&self, nic: &dyn Port) -> io::Result<()> {
        nic.poll_fds().iter().try_for_each(|poll| self.0.add(poll.fd, NIC))
    }

    pub(super) fn remove(&self, fd: RawFd) {
        self.0.remove(fd);
    }

    pub(super) fn remove_port(&self, port: &dyn Port) {
        port.poll_fds().iter().for_each(|poll| self.0.remove(poll.fd));
    }

    /// Sleeps until something happens, for `timeout` at most.
    pub(super) fn sleep(&self, timeout: Duration) -> Woken {
        let mut woken = Woken::default();
        self.0.wait(timeout, |whose, events| {
            woken.stop |= whose == STOP;
            // Only a removed interface says so without a frame.
            woken.broken |= whose == NIC && events & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
        });
        woken
    }

    /// The descriptors in it, as the kernel tells.
    #[cfg(test)]
    pub(super) fn watched(&self) -> Vec<RawFd> {
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.number())).unwrap();
        let fds = told.lines().filter_map(|line| line.strip_prefix("tfd:"));
        fds.map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap()).collect()
    }
}
