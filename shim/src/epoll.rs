//! epoll: the kernel's own descriptor for the kernel's members, a set in shared memory for ours. Who is a member here,
//! what they have to report in [`crate::epoll_wait`].
//!
//! ```text
//!  epoll_wait ── our set has news? ── yes ─► report (and look at the kernel's now and then)
//!                     │ no
//!                spin a little ── arm the set's bell ── news? ── no ─► the kernel's epoll_wait
//!                                                             (the bell is a member of it)
//! ```
//!
//! A utcp member costs no system call, neither to add nor to change nor to report. Listeners are both.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use libc::epoll_event;
use utcp_abi::region::LogCode;
use utcp_abi::set::Member;

use crate::attach::Attachment;
use crate::fd_table::{self, Entry, Kind};
use crate::handle::Sock;
use crate::listen::slot_kind;
use crate::ready::ALWAYS;
use crate::set::{self, SetRef};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{bound, death, epolls, errno, fdinfo, handle, listen, log, nested, process, tls, user};

/// What the kernel's epoll reports when a set's bell rings. No program's data looks like it.
pub const BELL: u64 = 0x7574_6370_9d1c_b317;
/// … and when the engine's end of the channel goes.
pub const CHANNEL: u64 = 0x7574_6370_9d1c_b318;

pub const ET: u32 = libc::EPOLLET as u32;
pub const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
/// All that may stand beside EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 = 0x1 | 0x4 | 0x8 | 0x10 | (1 << 29) | ET | EXCLUSIVE;

/// `epoll_ctl(2)`.
///
/// # Safety
/// As `epoll_ctl`.
pub unsafe fn epoll_ctl(epfd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    let stranger = || if operation == libc::EPOLL_CTL_ADD { listen::meet(fd) } else { None };
    let Some(mut sock) = handle::ours(fd).or_else(stranger) else {
        // SAFETY: the program's own arguments.
        return unsafe { kernel_member(epfd, operation, fd, event) };
    };
    let wanted = if operation == libc::EPOLL_CTL_DEL {
        epoll_event { events: 0, u64: 0 }
    } else {
        // SAFETY: the program's own structure.
        match unsafe { user::fetch(event) } {
            Ok(event) => event,
            Err(error) => return errno::fail(error),
        }
    };
    loop {
        let Some(now) = attended(epfd, operation, sock) else {
            // SAFETY: the program's own arguments.
            return unsafe { kernel_member(epfd, operation, fd, event) };
        };
        sock = now;
        let result = match operation {
            libc::EPOLL_CTL_ADD => add(epfd, &sock, wanted),
            libc::EPOLL_CTL_MOD => change(epfd, &sock, Some(wanted)),
            libc::EPOLL_CTL_DEL => change(epfd, &sock, None),
            _ => Err(Errno(libc::EINVAL)),
        };
        // An engine that dies while it is asked for a bell is no error of the program's.
        if result.is_ok() || operation != libc::EPOLL_CTL_ADD || sock.att.is_alive() {
            return errno::into_libc(result.map(|()| 0));
        }
    }
}

/// `sock`, unless its engine is dead and the kernel's epoll will do: a listener's descriptor is the kernel's, and
/// that of a connection hangs up, as it should.
fn attended(epfd: c_int, operation: c_int, sock: Sock) -> Option<Sock> {
    if sock.att.is_alive() {
        return Some(sock);
    }
    death::notice(sock.att);
    death::revive();
    let sock = handle::ours(sock.fd)?;
    let is_member = || {
        let mut set = epolls::set_of(fd_table::get(epfd));
        while let Some(found) = set {
            if found.att.index() == sock.att.index() {
                return found.find(&sock).is_some();
            }
            set = older(&found);
        }
        false
    };
    (sock.att.is_alive() || operation != libc::EPOLL_CTL_ADD && is_member()).then_some(sock)
}

/// A member of the kernel's: only its number is ours to keep.
///
/// # Safety
/// As `epoll_ctl`.
unsafe fn kernel_member(epfd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    if matches!(fd_table::get(fd).kind(), Kind::Internal | Kind::Pool) {
        return errno::fail(Errno(libc::EBADF));
    }
    if operation == libc::EPOLL_CTL_ADD
        && fd_table::get(fd).kind() == Kind::Epoll
        && !tls::thread().is_vfork_child()
    {
        nested::watch(fd);
    }
    // SAFETY: the program's own arguments.
    let result = unsafe { real::epoll_ctl(epfd, operation, fd, event) };
    if result == 0 && operation == libc::EPOLL_CTL_ADD {
        bound::settle(fd);
    }
    if result == 0
        && !tls::thread().is_vfork_child()
        && let Some(set) = epolls::set_of(fd_table::get(epfd))
    {
        count_kernel(&set, operation);
    }
    result
}

fn count_kernel(set: &SetRef, operation: c_int) {
    let members = &set.shared.kernel_members;
    match operation {
        libc::EPOLL_CTL_ADD => {
            members.fetch_add(1, Relaxed);
        }
        libc::EPOLL_CTL_DEL => {
            let _ = members.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        }
        _ => {}
    }
}

fn add(epfd: c_int, sock: &Sock, wanted: epoll_event) -> Sys<()> {
    if epfd == sock.fd {
        return Err(Errno(libc::EINVAL));
    }
    if wanted.events & EXCLUSIVE != 0 && wanted.events & !EXCLUSIVE_OK != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let set = set_for(epfd, sock.att)?;
    if set.find(sock).is_some() {
        return Err(Errno(libc::EEXIST));
    }
    if sock.entry.kind() == Kind::Listener {
        sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, sock.fd, &wanted)?;
        count_kernel(&set, libc::EPOLL_CTL_ADD);
    }
    // As Linux keeps them: an interest in nothing but EPOLLONESHOT is one in errors, and only one that fired is in nothing.
    match set.add(sock, wanted.events | ALWAYS, wanted.u64) {
        Ok(_) => Ok(()),
        // A listener is in the kernel's epoll at least.
        Err(_) if sock.entry.kind() == Kind::Listener => Ok(()),
        Err(error) => {
            log::record(sock.att, LogCode::Exhausted, slot_kind::INTERESTS);
            Err(error)
        }
    }
}

/// EPOLL_CTL_MOD (`wanted`) and EPOLL_CTL_DEL (none).
fn change(epfd: c_int, sock: &Sock, wanted: Option<epoll_event>) -> Sys<()> {
    let operation = if wanted.is_some() { libc::EPOLL_CTL_MOD } else { libc::EPOLL_CTL_DEL };
    let mut set = epolls::set_of(fd_table::get(epfd));
    while let Some(other) = set.filter(|set| set.att.index() != sock.att.index()) {
        set = older(&other);
    }
    let Some(set) = set else {
        // No set: the kernel says whether `epfd` is an epoll descriptor at all.
        let event = wanted.unwrap_or(epoll_event { events: 0, u64: 0 });
        return sys::epoll_ctl(epfd, operation, sock.fd, &event);
    };
    let exclusive = wanted.is_some_and(|wanted| wanted.events & EXCLUSIVE != 0);
    if exclusive {
        return Err(Errno(libc::EINVAL));
    }
    let found = set.find(sock);
    if sock.entry.kind() == Kind::Listener {
        let event = wanted.unwrap_or(epoll_event { events: 0, u64: 0 });
        sys::epoll_ctl(epfd, operation, sock.fd, &event)?;
        count_kernel(&set, operation);
    }
    match (found, wanted) {
        (None, _) if sock.entry.kind() == Kind::Listener => Ok(()),
        (None, _) => Err(Errno(libc::ENOENT)),
        (Some((cell, index)), Some(wanted)) => {
            let was = Member::unpack(cell.load(Acquire)).is_some_and(|member| member.exclusive);
            if was {
                return Err(Errno(libc::EINVAL));
            }
            set.modify(sock, cell, index, wanted.events | ALWAYS, wanted.u64);
            Ok(())
        }
        (Some((cell, index)), None) => {
            set.remove(sock, cell, index);
            Ok(())
        }
    }
}

/// The set of `epfd` at `att`, made if need be.
fn set_for(epfd: c_int, att: &'static Attachment) -> Sys<SetRef> {
    let entry = fd_table::get(epfd);
    match entry.kind() {
        Kind::Socket | Kind::Listener | Kind::Bound | Kind::Stranger | Kind::Kept => {
            return Err(Errno(libc::EINVAL));
        }
        Kind::Internal | Kind::Pool | Kind::Changing => return Err(Errno(libc::EBADF)),
        Kind::Epoll | Kind::Kernel => {}
    }
    let here = |set: &SetRef| set.att.index() == att.index();
    let old = epolls::object(entry).map_or(0, |(_, object)| object.word());
    if let Some(set) = epolls::unpack(old).filter(here) {
        return Ok(set);
    }
    if !fd_table::covers(epfd) {
        return Err(Errno(libc::EBADF));
    }
    let members = kernel_members(epfd);
    let set = SetRef::create(att).inspect_err(|_| log::record(att, LogCode::Exhausted, slot_kind::SETS))?;
    set.shared.kernel_members.store(members, Relaxed);
    set.local.epfd.store(epfd, Relaxed);
    set.local.older.store(old, Relaxed);
    // It may ring at once, and a thread that sleeps in the kernel's call must not hear of a bell before it can find the set: the bell is
    // there now, so that nothing can fail later, and counts from below on.
    let bell = epoll_event { events: 0, u64: BELL };
    if let Err(error) = sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, set.local.bell.load(Relaxed), &bell) {
        set.destroy(); // Not an epoll descriptor, say.
        return Err(error);
    }
    // One that was made behind our back (by exec, say) becomes known now.
    let known = if entry == Entry::KERNEL { epolls::adopt(epfd) } else { Some(entry) };
    let Some((_, object)) = known.and_then(epolls::object) else {
        set.destroy();
        log::record(att, LogCode::Exhausted, slot_kind::SETS);
        return Err(Errno(libc::ENOSPC));
    };
    if object.replace(old, &set) {
        nested::count_bell(&set);
        let channel = epoll_event { events: libc::EPOLLRDHUP as u32 | ET, u64: CHANNEL };
        let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, att.channel().fd(), &channel);
        if object.watched.load(SeqCst) == 0 {
            set.wake(); // A thread that sleeps on the kernel's members alone has armed nothing: it learns of the set.
        }
        nested::inherit(object);
        return Ok(set);
    }
    set.destroy(); // Another thread was faster.
    object.set().filter(here).ok_or(Errno(libc::EBADF))
}

/// This process is about to fork. The child shares its epoll descriptors; a set that one of the two makes for one later would
/// be unknown to the other, who would then see our bell among the kernel's members. So each has its set from now on.
pub fn before_fork(att: &'static Attachment) {
    for (epfd, entry) in fd_table::used() {
        if epolls::object(entry).is_some_and(|(_, object)| object.word() == 0) {
            let _ = set_for(epfd, att);
        }
    }
}

/// The set of a dead engine that `set` took the place of.
pub fn older(set: &SetRef) -> Option<SetRef> {
    match set.local.older.load(Relaxed) {
        0 => None,
        word => epolls::unpack(word),
    }
}

/// Makes `bell` wake whoever sleeps on the set.
pub fn add_bell(set: &SetRef, bell: c_int) -> Sys<()> {
    let event = epoll_event { events: libc::EPOLLIN as u32 | ET, u64: BELL };
    sys::epoll_ctl(set.local.epfd.load(Relaxed), libc::EPOLL_CTL_ADD, bell, &event)
}

/// How many members the kernel's epoll has already, by /proc; many, if it can't be read.
fn kernel_members(epfd: c_int) -> u32 {
    let mut count = 0u32;
    match fdinfo::each_member(epfd, |_| count = count.wrapping_add(1)) {
        Ok(()) => count,
        Err(_) => u32::MAX / 2,
    }
}

/// `sock`, the kernel's until now, listens: where a set of this process has it as the kernel's member (it was added before, or listened
/// before and ceased to), its connections are told of, too.
pub fn join(sock: &Sock) {
    let Ok((_, inode)) = sys::identity(sock.fd) else { return };
    for (epfd, entry) in fd_table::used() {
        // One of several numbers of an epoll file will do.
        let first = || !fd_table::used().take_while(|(fd, _)| *fd != epfd).any(|(_, e)| e.same_object(entry));
        if entry.kind() != Kind::Epoll || !first() {
            continue;
        }
        let mut found = None;
        let _ = fdinfo::each_member(epfd, |member| {
            if (member.fd, member.inode) == (sock.fd, inode) {
                found = Some(member);
            }
        });
        if let Some(member) = found {
            let _ = set_for(epfd, sock.att).and_then(|set| set.add(sock, member.events, member.data));
        }
    }
}

/// The socket's last number in this process is being closed: its interests here end.
pub fn forget(sock: &Sock) {
    for cell in set::members(sock) {
        let Some(member) = Member::unpack(cell.load(Acquire)) else { continue };
        let Some(set) = set::at(sock.att, member.set) else { continue };
        if set.shared.owner_pid.load(Relaxed) == process::pid() {
            set.remove(sock, cell, member.interest);
        }
    }
}

/// Something about the socket changed on our side: whoever watches it shall look.
pub fn touch(sock: &Sock) {
    for cell in set::members(sock) {
        let Some(member) = Member::unpack(cell.load(Acquire)) else { continue };
        if let Some(set) = set::at(sock.att, member.set) {
            set.mark(member.interest);
        }
    }
}

/// The number has become a kernel socket's: the sets that had the utcp one get it from the kernel.
pub fn hand_over(sock: &Sock) {
    for cell in set::members(sock) {
        let Some(member) = Member::unpack(cell.load(Acquire)) else { continue };
        let Some(set) = set::at(sock.att, member.set) else { continue };
        let Some(wanted) = set::read(&set, member.interest).filter(|wanted| wanted.fd == sock.fd) else {
            continue;
        };
        let epfd = set.local.epfd.load(Relaxed);
        if set.shared.owner_pid.load(Relaxed) != process::pid() || epfd < 0 {
            continue;
        }
        set.remove(sock, cell, member.interest);
        let event = epoll_event { events: wanted.events, u64: wanted.data };
        if sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, sock.fd, &event).is_ok() {
            count_kernel(&set, libc::EPOLL_CTL_ADD);
        }
    }
}

/// A listener has a new engine: the sets that watched it watch it there.
pub fn move_members(old: &Sock, new: &Sock) {
    for cell in set::members(old) {
        let Some(member) = Member::unpack(cell.load(Acquire)) else { continue };
        let Some(set) = set::at(old.att, member.set) else { continue };
        let epfd = set.local.epfd.load(Relaxed);
        let Some(wanted) = set::read(&set, member.interest) else { continue };
        if set.shared.owner_pid.load(Relaxed) != process::pid() || epfd < 0 {
            continue;
        }
        set.remove(old, cell, member.interest);
        // In the kernel's epoll it still is.
        let member = Sock { fd: wanted.fd, ..*new };
        let _ = set_for(epfd, new.att).and_then(|set| set.add(&member, wanted.events, wanted.data));
    }
}

/// The epoll descriptor `epfd` is being closed.
pub fn closing(epfd: c_int, entry: Entry) {
    let other = fd_table::used().find(|(fd, found)| *fd != epfd && found.same_object(entry));
    let mut next = epolls::set_of(entry);
    if let Some((other, _)) = other {
        while let Some(set) = next {
            let _ = set.local.epfd.compare_exchange(epfd, other, Relaxed, Relaxed);
            next = older(&set);
        }
        return;
    }
    epolls::retire(entry);
    while let Some(set) = next {
        next = older(&set);
        let shared_by_fork = set.epoch().load(Relaxed) != set.att.region().header().fork_epoch.load(Relaxed);
        if !shared_by_fork && set.shared.owner_pid.load(Relaxed) == process::pid() {
            disband(&set);
        }
    }
}

/// Ends every interest of `set`, and it.
fn disband(set: &SetRef) {
    empty(set);
    set.destroy();
}

/// Ends every interest of `set`.
pub fn empty(set: &SetRef) {
    for (fd, entry) in fd_table::used() {
        if !matches!(entry.kind(), Kind::Socket | Kind::Listener) || entry.region() != set.att.index() {
            continue;
        }
        let Some(sock) = handle::at(fd, entry) else { continue };
        for cell in set::members(&sock) {
            match Member::unpack(cell.load(Acquire)) {
                Some(member) if member.set == set.index => set.remove(&sock, cell, member.interest),
                _ => {}
            }
        }
    }
}
