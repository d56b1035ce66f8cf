//! Follows the kernel and makes new views.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use utcp_proto::wire::IpAddr;

use super::HostView;

/// Keeps a [`HostView`] up to date. Owned by the control thread.
#[derive(Debug)]
pub struct HostMirror {
    events: Socket,
}

impl HostMirror {
    /// Subscribes to changes and reads everything once, in the calling thread's network namespace.
    pub fn open() -> io::Result<(Self, Arc<HostView>)> {
        Ok((Self { events: Socket::new(NETLINK_ROUTE)? }, Arc::default()))
    }

    /// Readable (level-triggered) when [`Self::on_readable`] has work.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes in what the kernel told. `None`: nothing that matters changed. May leave work for the next call,
    /// the descriptor is readable then.
    pub fn on_readable(&mut self) -> Option<Arc<HostView>> {
        None
    }

    /// Asks the kernel to resolve the neighbour; the answer comes as a new view.
    pub fn resolve(&self, ifindex: u32, next_hop: IpAddr) {
        let _ = (ifindex, next_hop);
    }

    /// Tells the kernel that the neighbour is in use, so that it keeps it fresh instead of letting it expire under
    /// our traffic, which the kernel does not see. Every few seconds per neighbour is plenty.
    pub fn touch(&self, ifindex: u32, next_hop: IpAddr) {
        let _ = (ifindex, next_hop);
    }
}
