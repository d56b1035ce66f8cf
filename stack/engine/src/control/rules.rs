//! News of nftables: rules at an interface's own hooks judge frames of packet sockets, so a device that has a shorter way is not to use
//! it while there are any.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Control;
use crate::host::netlink::{Channel, Read};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// A socket that tells of changes; a kernel without nftables has none.
pub(super) fn subscribe() -> io::Result<Channel> {
    Channel::subscribe(NETLINK_NETFILTER, &[GROUP])
}

impl Control {
    /// Some rule of some table has changed: which, the devices see for themselves.
    pub(super) fn on_rules(&mut self) {
        let Some(rules) = &mut self.rules else { return };
        // What waits is read first: what comes later rings again.
        while matches!(rules.read(), Ok(Read::Messages(_) | Read::Lost)) {}
        for steering in self.devices.iter().filter_map(|device| device.steering.as_ref()) {
            steering.look_again();
        }
    }
}
