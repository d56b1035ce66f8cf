//! SO_REUSEPORT groups in which a program chooses who gets a connection (SO_ATTACH_REUSEPORT_CBPF and _EBPF, socket(7)).
//!
//! The program belongs to the whole group, whoever set it, and the kernel alone can run it. So the listeners of such a group
//! get their connections by the kernel, all of them and those that join it later, until nobody of it listens any more. To their programs
//! they are what they were, and connections that they have by utcp go on.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use utcp_abi::message::Reply;
use utcp_abi::socket::Addr;

use super::report::LogLine;
use super::{Control, diag};
use crate::sys::{self, Bound};

/// So many groups are known before those in which nobody listens any more are looked for.
const GROUPS_CALM: usize = 1024;

/// The groups that are known. Those that live are as many as the kernel has listeners; the dead ones are at most as many again.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: HashSet<Addr>,
    /// How many lived at the last look.
    lived: usize,
}

impl Groups {
    fn insert(&mut self, addr: Addr, lives: impl Fn(&Addr) -> bool) {
        if self.all.len() >= GROUPS_CALM.max(2 * self.lived) && !self.all.contains(&addr) {
            self.all.retain(lives);
            self.lived = self.all.len();
        }
        self.all.insert(addr);
    }
}

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
        self.groups.insert(addr, |addr| diag::others_listen(addr.port, 0).unwrap_or(true));
        for (pid, port) in self.leave_to_kernel(|_, listener| listener.reuseport && listener.addr == addr) {
            self.note(LogLine { pid, port: u32::from(port), text: words(port) });
        }
        Reply::default()
    }

    /// Whether a program chooses in the group that a listener at `addr`, `inode` to the kernel, joins.
    pub(super) fn is_chosen_for(&mut self, addr: Addr, inode: u64) -> bool {
        if !self.groups.all.contains(&addr) {
            return false;
        }
        // If nobody else listens there the group is a new one.
        let lives = diag::others_listen(addr.port, inode).unwrap_or(true);
        if !lives {
            self.groups.all.remove(&addr);
        }
        lives
    }
}

fn words(port: u16) -> String {
    format!(
        "the listeners on port {port} run on the kernel alone: a BPF program chooses among them (SO_ATTACH_REUSEPORT_CBPF or _EBPF)."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many there are, one that lives stays: who joins it would be served by nobody's choice.
    #[test]
    fn the_dead_make_room_and_the_living_stay() {
        let mut groups = Groups::default();
        let addr = |number: u16| Addr { port: number, ..Addr::default() };
        let lives = |addr: &Addr| addr.port.is_multiple_of(10);
        for number in 1..=50_000 {
            groups.insert(addr(number), lives);
            assert!(groups.all.contains(&addr(number)));
        }
        assert!((1..=5000).all(|tenth| groups.all.contains(&addr(tenth * 10))));
        assert!(groups.all.len() <= 2 * 5000 + 1, "{}", groups.all.len());
    }
}
