//! When the engine dies: its sockets are told, and everybody who sleeps on them is woken.
//!
//! A connection that lost its stack is reset: ECONNRESET once, then end of file. Listeners go on with the
//! kernel's half. The region belongs to the program alone from then on, so we write the words that
//! the engine wrote before.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use utcp_abi::set::Member;
use utcp_abi::socket::{Socket, status};

use crate::attach::Attachment;
use crate::fd_table::{self, Kind};
use crate::handle;
use crate::sys;

/// The engine of `attachment` is dead (or threw us out): tells every socket of this process, once.
#[cold]
pub fn notice(attachment: &'static Attachment) {
    if attachment.is_alive() || !attachment.bury() {
        return;
    }
    // The kernel wakes one sleeper; he wakes the rest.
    sys::futex_wake_all(&attachment.page().life);
    for (fd, entry) in fd_table::used() {
        if entry.region() == attachment.index() && entry.kind() == Kind::Socket {
            announce(fd, entry, attachment);
        }
    }
    attachment.pool().drain();
}

fn announce(fd: c_int, entry: fd_table::Entry, attachment: &'static Attachment) {
    let Some(sock) = handle::at(fd, entry) else { return };
    tell(sock.shared);
    for word in &sock.shared.members {
        let Some(member) = Member::unpack(word.load(Acquire)) else { continue };
        if let Some(ready) = attachment.region().ready(member.set) {
            ready.set(member.interest);
        }
    }
}

/// Marks one socket of a dead engine as reset, and wakes who sleeps on it.
#[cold]
pub fn tell(socket: &Socket) {
    let before = socket.status.fetch_or(status::DEAD | status::HUP, AcqRel);
    if before & status::DEAD != 0 {
        return;
    }
    if before & (status::CONNECTED | status::CONNECTING) != 0 {
        let _ = socket.error.compare_exchange(0, libc::ECONNRESET, AcqRel, Relaxed);
    }
    for bell in [&socket.rx_bell, &socket.tx_bell, &socket.op_bell] {
        if bell.ring() {
            sys::futex_wake_all(bell.word());
        }
    }
}
