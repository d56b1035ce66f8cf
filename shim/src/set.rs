//! Sets of interests: what epoll descriptors and threads inside `poll` have of us in shared memory.
//!
//! An interest is found from two sides: from its socket, by a word in the socket's member list (so
//! that the engine can tell the set), and from its set, by its bit in the readiness bitmap. Its
//! `spare` word is a version, odd while the interest is being changed: who reads an interest whose
//! version moved meanwhile reads nothing of it.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, fence};

use utcp_abi::layout::SETS_MAX;
use utcp_abi::message::{Kind as Ask, Message};
use utcp_abi::set::{Interest, Member, Set};
use utcp_abi::socket::status;

use crate::attach::{ATTACHMENTS, Attachment};
use crate::channel::Quiet;
use crate::fd_table::{Entry, Kind};
use crate::handle::Sock;
use crate::sys::{self, Errno, Sys};
use crate::{channel, lane, numbers, poll_set, process, ready};

/// What this process knows of a set beside what is shared.
#[derive(Debug)]
pub struct Local {
    /// What we sleep on: an eventfd, or our end of a socket pair.
    pub bell: AtomicI32,
    /// The other end of that pair, to ring it ourselves; -1 for an eventfd.
    far: AtomicI32,
    /// The epoll descriptor, -1 for a poll set.
    pub epfd: AtomicI32,
    /// An older set of the same epoll descriptor, at an engine that died: its entry, or 0.
    pub older: AtomicU64,
    /// `epoll_wait` calls since the kernel's members were last looked at.
    pub calls: AtomicU32,
    /// When that was, nanoseconds.
    pub looked_ns: AtomicU64,
    /// Slots + 1 of listeners that were put into it, the first few, so that [`SetRef::say_asleep`] finds them.
    listeners: [AtomicU32; LISTENERS],
}

/// Listeners of a set whose other programs are thought of. Who has more shares them with nobody.
const LISTENERS: usize = 8;

impl Local {
    fn wake(&self) {
        let (bell, far) = (self.bell.load(Relaxed), self.far.load(Relaxed));
        if far >= 0 {
            sys::send_byte(far);
        } else if bell >= 0 {
            sys::eventfd_ring(bell);
        }
    }
}

static LOCALS: [[Local; SETS_MAX as usize]; ATTACHMENTS] = [const {
    [const {
        Local {
            bell: AtomicI32::new(-1),
            far: AtomicI32::new(-1),
            epfd: AtomicI32::new(-1),
            older: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            looked_ns: AtomicU64::new(0),
            listeners: [const { AtomicU32::new(0) }; LISTENERS],
        }
    }; SETS_MAX as usize]
}; ATTACHMENTS];

/// A set as a hook holds it.
#[derive(Debug, Clone, Copy)]
pub struct SetRef {
    /// The attachment whose region has it.
    pub att: &'static Attachment,
    /// Its slot.
    pub index: u32,
    /// The shared part.
    pub shared: &'static Set,
    /// Ours.
    pub local: &'static Local,
}

/// As [`SetRef::wake`], of set `number`.
pub fn wake(number: u32) {
    if let Some(local) = LOCALS.as_flattened().get(number as usize) {
        local.wake();
    }
}

/// Where the numbers of all bells are kept.
pub fn bells() -> impl Iterator<Item = &'static AtomicI32> {
    LOCALS.iter().flatten().flat_map(|local| [&local.bell, &local.far])
}

/// This process is about to fork: its sets may have more users from now on, so the engine must not take them back
/// when this process ends.
pub fn inherited(att: &'static Attachment) {
    let Some(locals) = LOCALS.get(att.index() as usize) else { return };
    for (index, _) in locals.iter().enumerate().filter(|(_, local)| local.bell.load(Relaxed) >= 0) {
        let Some(shared) = att.region().set(index as u32) else { continue };
        if shared.owner_pid.load(Relaxed) == process::pid() {
            shared.sharers.fetch_add(1, Relaxed);
        }
    }
}

/// A consistent copy of an interest.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The user's data.
    pub data: u64,
    /// The user's events.
    pub events: u32,
    /// The descriptor that was registered.
    pub fd: c_int,
    /// Socket slot.
    pub socket: u32,
    /// Its generation.
    pub generation: u32,
}

/// Set `index` of `att`.
pub fn at(att: &'static Attachment, index: u32) -> Option<SetRef> {
    let shared = att.region().set(index)?;
    let local = LOCALS.get(att.index() as usize)?.get(index as usize)?;
    Some(SetRef { att, index, shared, local })
}

impl SetRef {
    /// Makes a set with a bell of its own, known to the engine.
    pub fn create(att: &'static Attachment) -> Sys<Self> {
        // A handler that jumps away would leave a set without an owner, and numbers that nobody knows of.
        let _quiet = Quiet::new();
        att.channel().own_fd()?;
        let index = att.region().free_sets().claim().ok_or(Errno(libc::ENOSPC))?;
        let set = at(att, index).ok_or(Errno(libc::ENOSPC))?;
        // An engine of another user takes no eventfd from us: we could make its writes block.
        let result = set.hang_eventfd().or_else(|errno| {
            set.close_bell();
            if errno == Errno(libc::EPERM) { set.hang_pair() } else { Err(errno) }
        });
        if let Err(errno) = result {
            set.close_bell();
            att.region().free_sets().set(index);
            return Err(errno);
        }
        let shared = set.shared;
        for word in [&shared.count, &shared.cursor, &shared.kernel_members, &shared.sharers] {
            word.store(0, Relaxed);
        }
        for word in [set.waiters(), &shared.polls, set.watched(), set.lit()] {
            word.store(0, Relaxed);
        }
        for listener in &set.local.listeners {
            listener.store(0, Relaxed);
        }
        lane::close_all(&set);
        set.epoch().store(att.region().header().fork_epoch.load(Relaxed), Relaxed);
        shared.owner_pid.store(process::pid(), Release);
        set.local.epfd.store(-1, Relaxed);
        set.local.older.store(0, Relaxed);
        Ok(set)
    }

    fn hang_eventfd(&self) -> Sys<()> {
        let made = numbers::ours(|| sys::eventfd(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK));
        let bell = made.map(channel::hide)?;
        self.local.bell.store(bell, Relaxed);
        self.tell_bell(bell)
    }

    fn hang_pair(&self) -> Sys<()> {
        let [near, far] = sys::socketpair(libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)?;
        let far = channel::hide(far);
        self.local.bell.store(channel::hide(near), Relaxed);
        self.local.far.store(far, Relaxed);
        self.tell_bell(far)
    }

    fn tell_bell(&self, fd: c_int) -> Sys<()> {
        let mut message = Message::new(Ask::SetBell);
        message.a = u64::from(self.index);
        self.att.channel().ask(&message, Some(fd)).map(|_| ())
    }

    /// After a sleep: takes the rings out of a bell that would fill up.
    pub fn drain_bell(&self) {
        if self.local.far.load(Relaxed) >= 0 {
            sys::bell_reset(self.local.bell.load(Relaxed));
        }
    }

    /// Threads that sleep on it, in every process. Only a hint: a killed one stays counted.
    pub fn waiters(&self) -> &'static AtomicU32 {
        &self.shared.waiters
    }

    /// The fork epoch in which it was made.
    pub fn epoch(&self) -> &'static AtomicU32 {
        let [epoch, ..] = &self.shared.spare;
        epoch
    }

    /// 1: somebody watches it, see [`crate::nested`].
    pub fn watched(&self) -> &'static AtomicU32 {
        let [_, watched, ..] = &self.shared.spare;
        watched
    }

    /// 1: the bell of a watched set was left readable.
    pub fn lit(&self) -> &'static AtomicU32 {
        let [_, _, lit, ..] = &self.shared.spare;
        lit
    }

    fn close_bell(&self) {
        for number in [&self.local.bell, &self.local.far] {
            let fd = number.swap(-1, Relaxed);
            if fd >= 0 {
                crate::fd_table::set(fd, Entry::KERNEL);
                let _ = sys::close(fd);
            }
        }
    }

    /// Gives the set back. Its interests must be gone.
    pub fn destroy(&self) {
        self.close_bell();
        lane::close_all(self);
        self.shared.generation.fetch_add(1, AcqRel);
        self.shared.owner_pid.store(0, Relaxed);
        if let Some(ready) = self.att.region().ready(self.index) {
            ready.take_all(|_| {});
        }
        self.att.region().free_sets().set(self.index);
    }

    /// Says that interest `index` has news, and wakes who sleeps on the set.
    pub fn mark(&self, index: u32) {
        if let Some(ready) = self.att.region().ready(self.index) {
            ready.set(index);
        }
        self.ring();
    }

    /// Wakes who sleeps on the set.
    pub fn ring(&self) {
        if self.local.bell.load(Relaxed) >= 0 && self.shared.bell.ring() {
            self.wake();
        }
    }

    /// Wakes who sleeps on its epoll descriptor, whether he said so or not.
    pub fn wake(&self) {
        self.local.wake();
    }

    /// Its number among all, for [`wake`].
    pub fn number(&self) -> u32 {
        self.att.index() * SETS_MAX + self.index
    }

    /// Whether no interest has news.
    pub fn is_quiet(&self) -> bool {
        self.att.region().ready(self.index).is_none_or(|ready| ready.is_empty())
    }

    /// The interest of this set in `sock` under its number.
    pub fn find(&self, sock: &Sock) -> Option<(&'static AtomicU64, u32)> {
        members(sock).find_map(|cell| {
            let member = Member::unpack(cell.load(Acquire))?;
            let wanted = (member.set == self.index).then(|| read(self, member.interest)).flatten()?;
            (wanted.fd == sock.fd && wanted.generation == sock.entry.generation())
                .then_some((cell, member.interest))
        })
    }

    /// Adds an interest in `sock`.
    ///
    /// # Errors
    /// ENOSPC if the socket is in too many sets, or no interest is left.
    pub fn add(&self, sock: &Sock, events: u32, data: u64) -> Sys<u32> {
        let full = Errno(libc::ENOSPC);
        let free = self.att.region().free_interests();
        let index = free.claim().ok_or(full)?;
        let Some(interest) = self.att.region().interest(index) else { return Err(full) };
        interest.spare.fetch_add(1, AcqRel);
        interest.data.store(data, Relaxed);
        interest.socket.store(sock.slot(), Relaxed);
        interest.generation.store(sock.entry.generation(), Relaxed);
        interest.fd.store(sock.fd, Relaxed);
        interest.events.store(events, Relaxed);
        interest.set.store(self.index.wrapping_add(1), Relaxed);
        interest.spare.fetch_add(1, Release);
        let word = word(self.index, index, events);
        let take_free = || members(sock).any(|cell| cell.compare_exchange(0, word, SeqCst, Relaxed).is_ok());
        let placed = take_free() || members(sock).any(|cell| self.take_stale(cell, word)) || {
            poll_set::clear_out(self.att, self.index);
            take_free()
        };
        if !placed {
            interest.set.store(0, Relaxed);
            free.set(index);
            return Err(full);
        }
        self.shared.count.fetch_add(1, Relaxed);
        lane::refresh(sock);
        if sock.entry.kind() == Kind::Listener {
            let (slot, list) = (sock.slot().wrapping_add(1), &self.local.listeners);
            let known = list.iter().any(|listener| listener.load(Relaxed) == slot);
            let _ = known || list.iter().any(|free| free.compare_exchange(0, slot, Relaxed, Relaxed).is_ok());
        }
        tell_waiting(sock);
        self.look(sock, index, events);
        Ok(index)
    }

    /// Puts `word` where a member of a set that is over still stands.
    fn take_stale(&self, cell: &AtomicU64, word: u64) -> bool {
        let old = cell.load(Acquire);
        let Some(member) = Member::unpack(old) else { return false };
        let over = at(self.att, member.set).is_none_or(|set| {
            set.shared.owner_pid.load(Relaxed) == 0
                || self
                    .att
                    .region()
                    .interest(member.interest)
                    .is_none_or(|interest| interest.set.load(Acquire) != member.set.wrapping_add(1))
        });
        over && cell.compare_exchange(old, word, SeqCst, Relaxed).is_ok()
    }

    /// Changes what an interest wants.
    pub fn modify(&self, sock: &Sock, cell: &AtomicU64, index: u32, events: u32, data: u64) {
        let Some(interest) = self.att.region().interest(index) else { return };
        interest.spare.fetch_add(1, AcqRel);
        interest.data.store(data, Relaxed);
        interest.events.store(events, Relaxed);
        interest.spare.fetch_add(1, Release);
        cell.store(word(self.index, index, events), SeqCst);
        lane::refresh(sock);
        self.look(sock, index, events);
    }

    /// After an interest was added or changed: what the engine published before it could see that is found by a look
    /// of our own, and nobody is woken for nothing. (Whoever sleeps in `poll` looks himself.)
    fn look(&self, sock: &Sock, index: u32, events: u32) {
        fence(SeqCst);
        let wanted = events & 0xffff | ready::ALWAYS;
        if self.local.epfd.load(Relaxed) >= 0 && ready::watch(sock, wanted) & wanted != 0 {
            self.mark(index);
        }
    }

    /// A thread is about to sleep on the set, and has said so. Where other programs have one of its listeners, too, what waits at those that don't
    /// sleep may be had here.
    #[inline]
    pub fn say_asleep(&self) {
        for listener in &self.local.listeners {
            match listener.load(Relaxed) {
                0 => return,
                slot => self.say_asleep_at(slot.wrapping_sub(1)),
            }
        }
    }

    fn say_asleep_at(&self, slot: u32) {
        let Some(socket) = self.att.region().socket(slot) else { return };
        let both = status::LISTENING | status::SHARED;
        if socket.status.load(SeqCst) & both == both {
            for shard in 0..self.att.shards() {
                self.att.kick(shard, slot);
            }
        }
    }

    /// Removes an interest.
    pub fn remove(&self, sock: &Sock, cell: &AtomicU64, index: u32) {
        cell.store(0, SeqCst);
        lane::refresh(sock);
        tell_waiting(sock);
        self.release(index);
    }

    /// Gives an interest back whose member word is gone.
    pub fn release(&self, index: u32) {
        let Some(interest) = self.att.region().interest(index) else { return };
        let ours = self.index.wrapping_add(1);
        if interest.set.compare_exchange(ours, 0, AcqRel, Relaxed).is_err() {
            return;
        }
        interest.spare.fetch_add(2, AcqRel);
        if let Some(ready) = self.att.region().ready(self.index) {
            ready.clear(index);
        }
        self.shared.count.fetch_sub(1, Relaxed);
        self.att.region().free_interests().set(index);
    }
}

/// The member words of a socket or listener.
pub fn members(sock: &Sock) -> impl Iterator<Item = &'static AtomicU64> {
    let list: &'static [AtomicU64] = match sock.entry.kind() {
        Kind::Listener => sock.queues().map_or(&[], |listener| &listener.members),
        _ => &sock.shared.members,
    };
    list.iter()
}

/// Whether it is in an epoll set.
pub fn is_member(sock: &Sock) -> bool {
    members(sock).any(|cell| cell.load(Relaxed) != 0)
}

/// Somebody began or ceased to wait at `sock`: where other programs have the same listener, the engine shares its connections out anew.
fn tell_waiting(sock: &Sock) {
    if sock.entry.kind() == Kind::Listener && sock.shared.status.load(SeqCst) & status::SHARED != 0 {
        for shard in 0..sock.att.shards() {
            sock.att.kick(shard, sock.slot());
        }
    }
}

fn word(set: u32, interest: u32, events: u32) -> u64 {
    let exclusive = events & libc::EPOLLEXCLUSIVE as u32 != 0;
    // ERR and HUP are always wanted.
    let events = (events | crate::ready::ALWAYS) as u16;
    Member { set, interest, events, exclusive }.pack()
}

/// A consistent copy of interest `index`, if it is one of `set`.
pub fn read(set: &SetRef, index: u32) -> Option<Wanted> {
    let interest: &'static Interest = set.att.region().interest(index)?;
    for _ in 0..64 {
        let version = interest.spare.load(Acquire);
        let wanted = Wanted {
            data: interest.data.load(Relaxed),
            events: interest.events.load(Relaxed),
            fd: interest.fd.load(Relaxed),
            socket: interest.socket.load(Relaxed),
            generation: interest.generation.load(Relaxed),
        };
        let owner = interest.set.load(Relaxed);
        fence(Acquire);
        if interest.spare.load(Relaxed) != version || version & 1 == 1 {
            core::hint::spin_loop();
            continue;
        }
        return (owner == set.index.wrapping_add(1)).then_some(wanted);
    }
    None
}

/// The socket that an interest means.
pub fn socket_of(set: &SetRef, wanted: &Wanted) -> Option<Sock> {
    let shared = set.att.region().socket(wanted.socket)?;
    let listens = shared.status.load(Acquire) & status::LISTENING != 0;
    let kind = if listens { Kind::Listener } else { Kind::Socket };
    let entry = Entry::new(kind, set.att.index(), wanted.socket, wanted.generation);
    Some(Sock { fd: wanted.fd, entry, att: set.att, shared })
}
