//! SO_REUSEPORT groups in which a program chooses who gets a connection (SO_ATTACH_REUSEPORT_CBPF and _EBPF, socket(7)).
//!
//! The program belongs to the whole group, whoever set it, and the kernel alone can run it. So the listeners of such a group
//! get their connections by the kernel, all of them and those that join it later, until nobody of it listens any more. To their programs
//! they are what they were, and connections that they have by utcp go on.

use std::os::fd::{AsFd, OwnedFd};

use utcp_abi::message::Reply;
use utcp_abi::socket::Addr;

use super::report::LogLine;
use super::{Control, diag};
use crate::sys::{self, Bound};

/// Groups that are known at most; of the oldest one those who join later are utcp's again.
const GROUPS_MAX: usize = 1024;

impl Control {
    /// The group of a program's listener got such a program. What the group is, the kernel says.
    pub(super) fn on_group(&mut self, fd: &OwnedFd) -> Reply {
        let (bound, inode) = (sys::bound(fd.as_fd()), sys::inode(fd.as_fd()));
        let (Ok(Bound { addr, reuseport: true, .. }), Ok(inode)) = (bound, inode) else {
            return Reply { error: libc::EINVAL, ..Reply::default() };
        };
        if !matches!(diag::listening(addr.port, inode), Ok(true)) {
            return Reply { error: libc::EINVAL, ..Reply::default() };
        }
        if !self.groups.contains(&addr) {
            if self.groups.len() >= GROUPS_MAX {
                self.groups.remove(0);
            }
            self.groups.push(addr);
        }
        for (pid, port) in self.leave_to_kernel(|_, listener| listener.reuseport && listener.addr == addr) {
            self.note(LogLine { pid, port: u32::from(port), text: words(port) });
        }
        Reply::default()
    }

    /// Whether a program chooses in the group that a listener at `addr`, `inode` to the kernel, joins.
    pub(super) fn is_chosen_for(&mut self, addr: Addr, inode: u64) -> bool {
        if !self.groups.contains(&addr) {
            return false;
        }
        // If nobody else listens there the group is a new one.
        let lives = diag::others_listen(addr.port, inode).unwrap_or(true);
        if !lives {
            self.groups.retain(|known| *known != addr);
        }
        lives
    }
}

fn words(port: u16) -> String {
    format!(
        "the listeners on port {port} run on the kernel alone: a BPF program chooses among them (SO_ATTACH_REUSEPORT_CBPF or _EBPF)."
    )
}
