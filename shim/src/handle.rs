//! A utcp socket as a hook holds it: descriptor, entry, region and slot in one.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use utcp_abi::arbiter::Busy;
use utcp_abi::listener::Listener;
use utcp_abi::socket::{Socket, file, intent, status};

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry, Kind};
use crate::signals::{Calm, Ending};
use crate::sys::{self, Errno, Sys};
use crate::{close, death, pair, process, relayed, sleep, tls, user};
use utcp_abi::ticks;

/// How long the acknowledgement of a FIN may take within a host: longer, and something holds it up.
const LOCAL_FIN_US: u64 = 50_000;

/// A socket of ours behind a descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Sock {
    /// The program's descriptor.
    pub fd: c_int,
    /// What the table says of it.
    pub entry: Entry,
    /// The attachment whose region has the slot.
    pub att: &'static Attachment,
    /// The slot.
    pub shared: &'static Socket,
}

/// The socket behind `fd`, connected or listening, or `None` for the kernel's.
#[inline]
pub fn ours(fd: c_int) -> Option<Sock> {
    let entry = fd_table::get(fd);
    if entry == Entry::KERNEL { None } else { resolve(fd, entry) }
}

/// The utcp socket behind `fd`, except a listener, whose descriptor is the kernel's.
#[inline]
pub fn stream(fd: c_int) -> Option<Sock> {
    ours(fd).filter(|sock| sock.entry.kind() == Kind::Socket)
}

/// The listener behind `fd`.
#[inline]
pub fn listener(fd: c_int) -> Option<Sock> {
    ours(fd).filter(|sock| sock.entry.kind() == Kind::Listener)
}

/// Whether `fd` is the library's own, of which the program does not know.
#[inline]
pub fn is_hidden(fd: c_int) -> bool {
    matches!(fd_table::get(fd).kind(), Kind::Internal | Kind::Pool)
}

fn resolve(fd: c_int, entry: Entry) -> Option<Sock> {
    if tls::thread().is_vfork_child() {
        return None;
    }
    match entry.kind() {
        Kind::Socket | Kind::Listener => {}
        Kind::Stranger => return relayed::meet(fd, entry),
        Kind::Changing => return settle(fd),
        _ => return None,
    }
    process::notice_fork();
    let sock = at(fd, entry)?;
    if relayed::is_moved(&sock) && sock.is_current() {
        relayed::notice(&sock);
        return None;
    }
    if !sock.is_current() {
        relayed::let_go(fd, entry);
        return None;
    }
    Some(sock)
}

/// What another thread is just putting at `fd`, or has closed by then: whoever went to the kernel meanwhile would sleep on the descriptor that
/// stood under a socket of ours.
#[cold]
fn settle(fd: c_int) -> Option<Sock> {
    let now = close::settled(fd);
    if now == Entry::CHANGING { None } else { resolve(fd, now) }
}

/// The socket that `entry` names, whatever became of it.
pub fn at(fd: c_int, entry: Entry) -> Option<Sock> {
    let att = attach::get(entry.region())?;
    let shared = att.region().socket(entry.slot())?;
    Some(Sock { fd, entry, att, shared })
}

impl Sock {
    /// Its slot.
    #[inline]
    pub fn slot(&self) -> u32 {
        self.entry.slot()
    }

    /// Whether the slot still is this socket's.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.shared.generation.load(Acquire) == self.entry.generation()
    }

    /// Bits of [`status`]; tells the socket first if its engine is dead.
    #[inline]
    pub fn status(&self) -> u32 {
        if !self.att.is_alive() {
            death::notice(self.att);
            death::tell(self.shared);
        }
        self.shared.status.load(Acquire)
    }

    /// Whether every bit of `bits` is set in the program's intents.
    #[inline]
    pub fn intends(&self, bits: u32) -> bool {
        self.shared.intent.load(Relaxed) & bits == bits
    }

    /// Adds `bits` to the intents: what they were. `None`: another thread has closed the socket, and its slot may be another's.
    #[inline]
    pub fn want(&self, bits: u32) -> Option<u32> {
        self.shared.intend(self.entry.generation(), bits)
    }

    /// The opposite of [`Self::want`].
    #[inline]
    pub fn want_no_more(&self, bits: u32) -> Option<u32> {
        self.shared.renounce(self.entry.generation(), bits)
    }

    /// Adds `bits` to the intents and makes the engine look.
    pub fn intend(&self, bits: u32) {
        if self.want(bits).is_some() {
            self.kick();
        }
    }

    /// Takes the socket away from its descriptor, of whose end the engine hears nothing for it from now on: the token that it had. `None`: it
    /// had none, or the engine has heard already.
    pub fn detach(&self) -> Option<u32> {
        // Before the look at the generation: a slot that the engine took back is somebody else's, and so is this.
        let token = self.shared.token.load(Acquire);
        let ours = token != 0
            && self.is_current()
            && self.shared.token.compare_exchange(token, 0, AcqRel, Relaxed).is_ok();
        ours.then_some(token)
    }

    /// Makes the engine look at this socket.
    #[inline]
    pub fn kick(&self) {
        let (shard, slot) = (self.shared.shard.load(Relaxed), self.slot());
        // What was asked for before, and the engine has not looked at yet, keeps its place. (`socket` and `accept` set the bit without asking.)
        let asked_at = &self.shared.asked_at;
        if asked_at.load(Relaxed) == 0 || !self.att.region().dirty(shard).is_set(slot) {
            asked_at.store(ticks(), Relaxed);
        }
        self.att.kick(shard, slot);
    }

    /// O_NONBLOCK.
    #[inline]
    pub fn is_nonblocking(&self) -> bool {
        self.shared.file.load(Relaxed) & file::NONBLOCK != 0
    }

    /// AF_INET6.
    pub fn is_inet6(&self) -> bool {
        self.shared.file.load(Relaxed) & file::INET6 != 0
    }

    /// Whether another descriptor or process may refer to it too.
    pub fn is_shared(&self) -> bool {
        self.shared.file.load(Acquire) & file::SHARED != 0
            || self.shared.epoch.load(Relaxed) != self.att.region().header().fork_epoch.load(Relaxed)
    }

    /// The pending error, which is thereby taken.
    pub fn take_error(&self) -> Option<Errno> {
        if self.shared.error.load(Acquire) == 0 {
            return None;
        }
        match self.shared.error.swap(0, AcqRel) {
            0 => None,
            error => Some(Errno(error)),
        }
    }

    /// Whether there is, or was, a connection that has ended on both sides, as its status `now` says: what Linux calls TCP_CLOSE.
    pub fn is_over(&self, now: u32) -> bool {
        now & status::CONNECTED != 0 && now & (status::DEAD | status::CLOSED) != 0
    }

    /// As [`Self::is_over`]. Within a host the peer has our FIN as soon as we have sent it, on the kernel; here when the engine has
    /// looked, which is waited for.
    pub fn has_ended(&self) -> bool {
        let now = self.status();
        let over = status::DEAD | status::CLOSED;
        let finishes = now & (status::RX_FIN | over) == status::RX_FIN && self.intends(intent::SHUT_WR);
        let local = finishes
            && self.shared.tx_queued() == 0
            && (pair::of(self).is_some() || user::is_loopback(&self.shared.remote.load().ip));
        if !local {
            return self.is_over(now);
        }
        let done = || self.shared.status.load(Acquire) & over != 0 || !self.is_current();
        let calm = Calm::now(Ending::Every);
        let _ =
            sleep::until(self.att, || &self.shared.tx_bell, sleep::deadline_us(LOCAL_FIN_US), &calm, done);
        self.is_over(self.status())
    }

    /// Whether an attempt to connect has failed and a call has told of it: the socket is as new, by its status `now`.
    pub fn is_as_new(&self, now: u32) -> bool {
        now & (status::CONNECTED | status::CONNECTING | status::DEAD) == status::DEAD
            && self.shared.file.load(Acquire) & file::CONNECTING == 0
            && self.shared.error.load(Acquire) == 0
    }

    /// Whether a `shutdown` failed before there was a connection. The engine knows no connection that begins so: the kernel does.
    pub fn is_shut(&self) -> bool {
        self.shared.intent.load(Acquire) & (intent::SHUT_RD | intent::SHUT_WR) != 0
    }

    /// Whether streams exist or existed.
    pub fn was_connected(&self) -> bool {
        self.shared.status.load(Acquire) & status::CONNECTED != 0
    }

    /// The accept queues of a listener.
    pub fn queues(&self) -> Option<&'static Listener> {
        let queues = self.att.region().listener(self.shared.listener.load(Acquire));
        // In this order: one that listens no more has no number, and 0 is another listener's.
        queues.filter(|_| self.is_current())
    }

    /// Takes the right to write into the tx stream. Fails if the socket is gone, or if we are a signal
    /// handler of the thread that has it.
    pub fn take_tx(&self) -> Sys<TxRight> {
        let tid = tls::thread().tid();
        let arbiter = &self.shared.tx_arbiter;
        let mut round = 0u32;
        loop {
            match arbiter.try_take(tid) {
                Ok(()) => break,
                Err(Busy::Nested) => return Err(Errno(libc::EAGAIN)),
                Err(Busy::Other(owner)) => {
                    round = round.wrapping_add(1);
                    if round.is_multiple_of(256)
                        && !sys::thread_exists(owner)
                        && arbiter.take_over(owner, tid)
                    {
                        break;
                    }
                    if round.is_multiple_of(16) { sys::sched_yield() } else { core::hint::spin_loop() }
                }
            }
        }
        let right = TxRight(*self);
        // Closed and reused meanwhile? Then it is somebody else's stream.
        if self.is_current() && !self.intends(intent::CLOSE) && !relayed::is_moved(self) {
            Ok(right)
        } else {
            Err(Errno(libc::EBADF))
        }
    }
}

/// The right to write into a socket's tx stream, until dropped.
#[derive(Debug)]
pub struct TxRight(Sock);

impl Drop for TxRight {
    fn drop(&mut self) {
        self.0.shared.tx_arbiter.give();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    /// A call that comes while another thread puts something at its number is about what stands there then.
    #[test]
    fn a_call_waits_for_a_number_that_changes() {
        let fd = 700_001;
        for then in [Entry::KERNEL, Entry::new(Kind::Pool, 0, 0, 0), Entry::new(Kind::Kept, 0, 0, 1)] {
            fd_table::set(fd, Entry::CHANGING);
            let begun = AtomicU32::new(0);
            std::thread::scope(|scope| {
                let caller = scope.spawn(|| {
                    begun.store(1, SeqCst);
                    (stream(fd).is_some(), fd_table::get(fd))
                });
                while begun.load(SeqCst) == 0 {
                    std::thread::yield_now();
                }
                std::thread::sleep(std::time::Duration::from_millis(5)); // Time to do the wrong thing.
                fd_table::set(fd, then);
                assert_eq!(caller.join().expect("it ends"), (false, then));
            });
        }
        fd_table::set(fd, Entry::KERNEL);
    }
}
