//! When the engine dies: its sockets are told, and everybody who sleeps on them is woken.
//!
//! A connection that lost its stack is reset: ECONNRESET once, then end of file. Listeners go on with the
//! kernel's half. The region belongs to the program alone from then on, so we write the words that
//! the engine wrote before.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use utcp_abi::socket::{Socket, status};

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Kind};
use crate::{epoll, handle, listen, sys};

/// 1: listeners of this process lost their engine and may get another.
static ORPHANS: AtomicU32 = AtomicU32::new(0);

/// Registers the listeners that lost their engine with the one that runs now, or with a new one; while there is none they wait for one.
#[inline]
pub fn revive() {
    if ORPHANS.load(Relaxed) != 0 && attach::current().is_some() && ORPHANS.swap(0, AcqRel) != 0 {
        revive_listeners();
    }
}

#[cold]
fn revive_listeners() {
    for (fd, entry) in fd_table::used() {
        if entry.kind() != Kind::Listener {
            continue;
        }
        let Some(old) = handle::at(fd, entry).filter(|sock| !sock.att.is_alive()) else { continue };
        let _ = listen::register(fd, libc::SOMAXCONN);
        if let Some(new) = handle::listener(fd).filter(|sock| sock.att.is_alive()) {
            epoll::move_members(&old, &new);
        }
    }
}

/// The engine of `attachment` is dead (or threw us out): tells every socket of this process, once.
#[cold]
pub fn notice(attachment: &'static Attachment) {
    if attachment.is_alive() || !attachment.bury() {
        return;
    }
    // The kernel wakes one sleeper; he wakes the rest.
    sys::futex_wake_all(&attachment.page().life);
    for (fd, entry) in fd_table::used() {
        if entry.region() != attachment.index() {
            continue;
        }
        match entry.kind() {
            Kind::Socket => announce(fd, entry),
            Kind::Listener => ORPHANS.store(1, Relaxed),
            _ => {}
        }
    }
    attachment.pool().drain();
}

fn announce(fd: c_int, entry: fd_table::Entry) {
    let Some(sock) = handle::at(fd, entry) else { return };
    tell(sock.shared);
    // Threads in epoll hear of the death by themselves, but perhaps before we got here: they are rung.
    epoll::touch(&sock);
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
