//! Readiness: what poll and epoll say of a socket, derived from its words at the moment of asking.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use utcp_abi::socket::{intent, status};

use crate::fd_table::Kind;
use crate::handle::Sock;
use crate::{fast_open, pair, recv, send, urgent, zerocopy};

/// EPOLLIN and its twin.
pub const IN: u32 = 0x1 | 0x40;
/// EPOLLOUT and its twin.
pub const OUT: u32 = 0x4 | 0x100;
/// EPOLLPRI.
pub const PRI: u32 = 0x2;
/// EPOLLERR.
pub const ERR: u32 = 0x8;
/// EPOLLHUP.
pub const HUP: u32 = 0x10;
/// EPOLLRDHUP.
pub const RDHUP: u32 = 0x2000;
/// What is reported without being asked for.
pub const ALWAYS: u32 = ERR | HUP;

/// Events of `sock` that are true now, as tcp_poll derives them.
pub fn of(sock: &Sock) -> u32 {
    if !sock.is_current() {
        return 0;
    }
    if sock.entry.kind() == Kind::Listener {
        return if accept_waits(sock) { IN } else { 0 };
    }
    let now = sock.status();
    let failed = sock.shared.error.load(Acquire) != 0 || zerocopy::waits(sock);
    let error = if failed { ERR } else { 0 };
    if now & status::DEAD != 0 && !sock.is_as_new(now) {
        return IN | OUT | RDHUP | HUP | error;
    }
    if now & status::CONNECTED == 0 {
        return match now & status::CONNECTING != 0 {
            // Its first `send` is what makes it connect.
            true if fast_open::is_deferred(sock) => OUT | error,
            true => error,
            // A `shutdown` that failed counts all the same (Linux inet_shutdown).
            false if sock.intends(intent::SHUT_RD) => IN | OUT | RDHUP | HUP | error,
            false => OUT | HUP | error,
        };
    }
    let rx_over = now & status::RX_FIN != 0 || sock.intends(intent::SHUT_RD);
    let tx_over = now & status::TX_FIN != 0 || sock.intends(intent::SHUT_WR);
    let mut events = error;
    if rx_over {
        events |= IN | RDHUP;
    } else if recv::has(sock, (sock.shared.options.rcvlowat.load(Relaxed) as usize).max(1)) {
        events |= IN;
    }
    if urgent::waits(sock) {
        events |= PRI;
    }
    if tx_over || send::is_writable(sock) {
        events |= OUT;
    }
    if rx_over && tx_over || now & status::HUP != 0 {
        events |= HUP;
    }
    events
}

/// As [`of`], but when `wanted` has OUT and there is no space, whoever makes some is told to say so.
pub fn watch(sock: &Sock, wanted: u32) -> u32 {
    let events = of(sock);
    if sock.entry.kind() == Kind::Listener {
        return events;
    }
    let end = pair::of(sock);
    if let Some(end) = end {
        end.adopt(sock);
    }
    if wanted & OUT == 0 || events & OUT != 0 {
        // One that has just said whom to tell may have missed what came before.
        return if end.is_some() { of(sock) } else { events };
    }
    if let Some(end) = end {
        end.wish();
        return of(sock);
    }
    if !sock.intends(intent::TX_FULL) && sock.was_connected() {
        sock.intend(intent::TX_FULL);
        return of(sock);
    }
    events
}

/// Whether a connection waits in one of a listener's queues.
pub fn accept_waits(sock: &Sock) -> bool {
    let Some(listener) = sock.queues() else { return false };
    listener.queues.iter().take(sock.att.shards() as usize).any(|queue| !queue.ring().is_empty())
}
