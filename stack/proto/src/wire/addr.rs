//! IP addresses of both versions in one shape.

use core::fmt;

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`, in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpAddr(pub [u8; 16]);

impl IpAddr {
    /// `::`.
    pub const UNSPECIFIED_V6: Self = Self([0; 16]);
    /// `0.0.0.0` as `::ffff:0.0.0.0`.
    pub const UNSPECIFIED_V4: Self = Self::v4([0; 4]);

    /// An IPv4 address.
    #[must_use]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    /// An IPv6 address.
    #[must_use]
    pub const fn v6(a: [u8; 16]) -> Self {
        Self(a)
    }

    /// True if this is an IPv4 address.
    #[inline]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }

    /// The last four bytes: the address itself if it is IPv4.
    #[inline]
    #[must_use]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// `0.0.0.0` or `::`.
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        let n = u128::from_be_bytes(self.0);
        n == 0 || n == 0xffff_0000_0000
    }

    /// 127.0.0.0/8 or `::1`.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        (self.is_v4() && self.0[12] == 127) || u128::from_be_bytes(self.0) == 1
    }

    /// 224.0.0.0/4 or ff00::/8.
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() { self.0[12] >> 4 == 0xe } else { self.0[0] == 0xff }
    }

    /// 255.255.255.255. Directed broadcasts need the interface's prefix and are the engine's business.
    #[must_use]
    pub const fn is_broadcast(&self) -> bool {
        self.is_v4() && u32::from_be_bytes(self.v4_bytes()) == u32::MAX
    }
}

impl fmt::Display for IpAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_v4() {
            core::net::Ipv4Addr::from(self.v4_bytes()).fmt(f)
        } else {
            core::net::Ipv6Addr::from(self.0).fmt(f)
        }
    }
}

impl fmt::Debug for IpAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
