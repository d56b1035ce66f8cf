//! SO_REUSEPORT groups in which a program chooses who gets a connection (SO_ATTACH_REUSEPORT_CBPF and _EBPF, socket(7)).
//!
//! The program belongs to the whole group, whoever set it, and the kernel alone can run it. So the listeners of such a group
//! get their connections by the kernel, all of them and those that join it later, until nobody of it listens any more. To their programs
//! they are what they were, and connections that they have by utcp go on.

use std::os::fd::{AsFd, OwnedFd};

use utcp_abi::message::{Message, Reply};
use utcp_abi::socket::Addr;

use super::listeners::Lingering;
use super::report::LogLine;
use super::{Control, diag};
use crate::shard::ToShard;
use crate::sys;

/// Groups that are known at most; of the oldest one those who join later are utcp's again.
const GROUPS_MAX: usize = 1024;

impl Control {
    /// The group of a program's listener got such a program. What the group is, the kernel says.
    pub(super) fn on_group(&mut self, message: &Message, fd: &OwnedFd) -> Reply {
        let addr = message.address();
        let inode = sys::inode(fd.as_fd()).ok();
        if inode.is_none_or(|inode| !matches!(diag::listening(addr.port, inode), Ok(true))) {
            return Reply { error: libc::EINVAL, ..Reply::default() };
        }
        if !self.groups.contains(&addr) {
            if self.groups.len() >= GROUPS_MAX {
                self.groups.remove(0);
            }
            self.groups.push(addr);
        }
        self.leave_to_kernel(addr);
        Reply::default()
    }

    fn leave_to_kernel(&mut self, addr: Addr) {
        let mut told = Vec::new();
        let listeners = self.clients.values_mut().flat_map(|client| {
            let pid = client.shared.pid;
            client.listeners.iter_mut().map(move |listener| (pid, listener))
        });
        for (pid, listener) in listeners.filter(|(_, l)| l.reuseport && l.addr == addr && !l.kernels) {
            listener.kernels = true;
            told.push(pid);
            let steered = std::mem::take(&mut listener.steered);
            if !steered.is_empty() {
                self.lingering_ports.push(Lingering { steered, port: addr.port });
            }
        }
        self.to_all(|| ToShard::Group(addr));
        self.publish_port(addr.port);
        for pid in told {
            self.note(LogLine { pid, port: u32::from(addr.port), text: words(addr.port) });
        }
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
