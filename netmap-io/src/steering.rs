//! Which of a device's frames are ours.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use crate::PortError;

/// An IP protocol number that can be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proto(pub u8);

impl Proto {
    /// TCP, protocol 6.
    pub const TCP: Self = Self(6);
    /// UDP, protocol 17.
    pub const UDP: Self = Self(17);
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self(other) => write!(f, "protocol {other}"),
        }
    }
}

/// The 16-byte form of an address: IPv6 as it is, IPv4 mapped (`::ffff:a.b.c.d`).
#[must_use]
pub fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A local endpoint: frames sent *to* it are ours. Never a wildcard: a listener on `0.0.0.0` is
/// registered once per local address, so that forwarded traffic is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Local address, see [`mapped`].
    pub addr: Ipv6Addr,
    /// Local port, host byte order.
    pub port: u16,
    /// TCP or UDP.
    pub proto: Proto,
}

impl Tuple {
    /// A tuple of any address family.
    pub fn new(addr: impl Into<IpAddr>, port: u16, proto: Proto) -> Self {
        Self { addr: mapped(addr.into()), port, proto }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr.to_ipv4_mapped() {
            Some(v4) => write!(f, "{} {v4}:{}", self.proto, self.port),
            None => write!(f, "{} [{}]:{}", self.proto, self.addr, self.port),
        }
    }
}

/// A connected flow, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The local endpoint.
    pub local: Tuple,
    /// The peer's address, see [`mapped`].
    pub peer_addr: Ipv6Addr,
    /// The peer's port, host byte order.
    pub peer_port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer_addr.to_ipv4_mapped() {
            Some(v4) => write!(f, "{} from {v4}:{}", self.local, self.peer_port),
            None => write!(f, "{} from [{}]:{}", self.local, self.peer_addr, self.peer_port),
        }
    }
}

/// Where the frames of one registered [`Flow`] go. A flow outranks the tuple of its local endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVerdict {
    /// To us, although the local endpoint as a whole is not registered.
    Take,
    /// To the kernel, although the local endpoint is registered: a connection that the kernel's
    /// half of a dual listener had before we came.
    LeaveToKernel,
}

/// Decides which of a device's frames reach its ports; everything else reaches the kernel untouched.
///
/// ICMP errors that quote a packet from a registered tuple reach the ports, too, and the fragments of a TCP packet to
/// one; all other ICMP and fragments, and ARP, are the kernel's.
///
/// Shared by all shards of a device. Every call is one or two system calls, none is for the fast path.
pub trait Steering: Send + Sync {
    /// Takes frames for `tuple`. [`PortError::InUse`] when it is registered already.
    fn register(&self, tuple: Tuple) -> Result<(), PortError>;

    /// Gives `tuple` back to the kernel. Not an error when it is not registered.
    fn unregister(&self, tuple: Tuple) -> Result<(), PortError>;

    /// Takes frames for every port in `ports`: the range that client ports come from, so that a
    /// connect costs no system call. Nothing stays registered when one of them is in use.
    ///
    /// Where the steering can ask (not netmap's), connections of the kernel's on these ports stay the kernel's, and so do SYNs for its listeners.
    fn register_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        let start = *ports.start();
        for port in ports {
            if let Err(error) = self.register(Tuple { port, ..first }) {
                for done in start..port {
                    self.unregister(Tuple { port: done, ..first })?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives every port in `ports` back to the kernel.
    fn unregister_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        ports.into_iter().try_for_each(|port| self.unregister(Tuple { port, ..first }))
    }

    /// Makes an exception for one connected flow.
    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError>;

    /// Drops the exception again. Not an error when there is none.
    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError>;

    /// What keeps the steering alive when its process is gone, for whoever is to hold it as well: frames of ours are dropped
    /// then, and not the kernel's. `None`: nothing does.
    fn hold(&self) -> Option<OwnedFd> {
        None
    }

    /// Whether somebody before us is still steering, by what was held.
    fn is_inherited(&self) -> bool {
        false
    }

    /// Ends that: from now on our own registrations count.
    fn take_over(&self) -> Result<(), PortError> {
        Ok(())
    }

    /// The interface is not this network namespace's any more. One that was removed has taken everything with it; one that was moved to
    /// another namespace has not, and there no frame is ours.
    fn leave(&self) {}

    /// Rules of nftables have changed: those that stand at the interface may be for us.
    fn look_again(&self) {}

    /// What stands in the way of frames of ours, in words.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// How the frames are told apart, for people: `native XDP on eth0 (program 17)`.
    fn describe(&self) -> String;
}
