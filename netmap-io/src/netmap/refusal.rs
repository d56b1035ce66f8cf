//! What the module says no to, in words that help.

use std::io;

use super::control::Dialect;
use super::open::Opener;
use crate::PortError;

impl Opener<'_> {
    /// The error of a request.
    pub(super) fn refused(&self, what: &'static str, error: io::Error) -> PortError {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV) if what.starts_with("opening") => PortError::Option {
                option: self.device(),
                reason: "the netmap module is not loaded (no /dev/netmap); `modprobe netmap`, or use xdp:"
                    .into(),
            },
            Some(libc::EPERM | libc::EACCES) => PortError::Privilege {
                what,
                need: "read and write access to /dev/netmap, and CAP_NET_ADMIN for interfaces",
                setcap: "cap_net_admin",
            },
            Some(libc::EINVAL) if what.starts_with("registering") && !self.is_virtual() => PortError::Option {
                option: self.device(),
                reason: "the module refuses it (EINVAL): there is no memory of that number, the driver has no host \
                         rings, or netmap's buffers are shorter than its MTU: write at least the MTU to \
                         /sys/module/netmap/parameters/buf_size"
                    .into(),
            },
            Some(libc::EIO) if what.starts_with("registering") => PortError::Option {
                option: self.device(),
                reason: "frames of that port begin with a virtio-net header, which was not asked for".into(),
            },
            Some(libc::ENXIO) => PortError::NoInterface { name: self.name.into() },
            Some(libc::EBUSY) => PortError::InUse {
                what: self.device(),
                detail: "another program has registered these rings; stop that one or name another ring"
                    .into(),
            },
            Some(libc::EOPNOTSUPP) if self.dialect != Dialect::Today => PortError::Option {
                option: self.device(),
                reason:
                    "a module of API 11 or 12 has neither options (@…) nor single host rings; build today's"
                        .into(),
            },
            Some(libc::EPROTONOSUPPORT) => PortError::Option {
                option: self.device(),
                reason: "the netmap module speaks neither API 14, 15 nor 11, 12; build today's".into(),
            },
            _ => PortError::io(format!("{what} for {}", self.name), error),
        }
    }
}
