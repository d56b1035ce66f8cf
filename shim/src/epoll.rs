//! epoll: the kernel's own descriptor for the kernel's members, a set in shared memory for ours.
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
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libc::{epoll_event, sigset_t};
use utcp_abi::region::LogCode;
use utcp_abi::set::Member;

use crate::attach::{self, Attachment};
use crate::fd_table::{self, Entry, Kind};
use crate::handle::{self, Sock};
use crate::listen::slot_kind;
use crate::set::{self, SetRef};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::text::Text;
use crate::{death, errno, listen, log, process, ready, sleep, tls};

/// What the kernel's epoll reports when a set's bell rings. No program's data looks like it.
const BELL: u64 = 0x7574_6370_9d1c_b317;
/// … and when the engine's end of the channel goes.
const CHANNEL: u64 = 0x7574_6370_9d1c_b318;
/// Calls that report ours alone before the kernel's members are looked at.
const CALLS_MAX: u32 = 64;
/// … and time that may pass before they are.
const LOOK_NS: u64 = 250_000;

const ET: u32 = libc::EPOLLET as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
/// All that may stand beside EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 = 0x1 | 0x4 | 0x8 | 0x10 | (1 << 29) | ET | EXCLUSIVE;

/// The set behind an epoll descriptor.
fn set_of(entry: Entry) -> Option<SetRef> {
    (entry.kind() == Kind::Epoll).then(|| set::at(attach::get(entry.region())?, entry.slot())).flatten()
}

/// `epoll_ctl(2)`.
///
/// # Safety
/// As `epoll_ctl`.
pub unsafe fn epoll_ctl(epfd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    let stranger = || if operation == libc::EPOLL_CTL_ADD { listen::meet(fd) } else { None };
    let Some(sock) = handle::ours(fd).or_else(stranger) else {
        // SAFETY: the program's own arguments.
        return unsafe { kernel_member(epfd, operation, fd, event) };
    };
    let Some(sock) = attended(epfd, operation, sock) else {
        // SAFETY: the program's own arguments.
        return unsafe { kernel_member(epfd, operation, fd, event) };
    };
    if event.is_null() && operation != libc::EPOLL_CTL_DEL {
        return errno::fail(Errno(libc::EFAULT));
    }
    let wanted = if operation == libc::EPOLL_CTL_DEL {
        epoll_event { events: 0, u64: 0 }
    } else {
        // SAFETY: the program's own structure; not null.
        unsafe { event.read_unaligned() }
    };
    let result = match operation {
        libc::EPOLL_CTL_ADD => add(epfd, &sock, wanted),
        libc::EPOLL_CTL_MOD => change(epfd, &sock, Some(wanted)),
        libc::EPOLL_CTL_DEL => change(epfd, &sock, None),
        _ => Err(Errno(libc::EINVAL)),
    };
    errno::into_libc(result.map(|()| 0))
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
        let mut set = set_of(fd_table::get(epfd));
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
    // SAFETY: the program's own arguments.
    let result = unsafe { real::epoll_ctl(epfd, operation, fd, event) };
    if result == 0
        && !tls::thread().is_vfork_child()
        && let Some(set) = set_of(fd_table::get(epfd))
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
    match set.add(sock, wanted.events, wanted.u64) {
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
    let mut set = set_of(fd_table::get(epfd));
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
            set.modify(sock, cell, index, wanted.events, wanted.u64);
            Ok(())
        }
        (Some((cell, index)), None) => {
            set.remove(cell, index);
            Ok(())
        }
    }
}

/// The set of `epfd` at `att`, made if need be.
fn set_for(epfd: c_int, att: &'static Attachment) -> Sys<SetRef> {
    let entry = fd_table::get(epfd);
    if matches!(entry.kind(), Kind::Socket | Kind::Listener) {
        return Err(Errno(libc::EINVAL));
    }
    if matches!(entry.kind(), Kind::Internal | Kind::Pool) {
        return Err(Errno(libc::EBADF));
    }
    if let Some(set) = set_of(entry).filter(|set| set.att.index() == att.index()) {
        return Ok(set);
    }
    if !fd_table::covers(epfd) {
        return Err(Errno(libc::EBADF));
    }
    let members = kernel_members(epfd);
    let set = SetRef::create(att).inspect_err(|_| log::record(att, LogCode::Exhausted, slot_kind::SETS))?;
    set.shared.kernel_members.store(members, Relaxed);
    set.local.epfd.store(epfd, Relaxed);
    if entry.kind() == Kind::Epoll {
        set.local.older.store(1 << 63 | u64::from(entry.region()) << 32 | u64::from(entry.slot()), Relaxed);
    }
    let bell = epoll_event { events: libc::EPOLLIN as u32 | ET, u64: BELL };
    if let Err(error) = sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, set.local.bell.load(Relaxed), &bell) {
        set.destroy(); // Not an epoll descriptor, say.
        return Err(error);
    }
    let channel = epoll_event { events: libc::EPOLLRDHUP as u32 | ET, u64: CHANNEL };
    let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, att.channel().fd(), &channel);
    let made = Entry::new(Kind::Epoll, att.index(), set.index, set.shared.generation.load(Relaxed));
    if entry == Entry::KERNEL {
        fd_table::set(epfd, Entry::KERNEL); // Within the table's high mark.
    }
    if fd_table::replace(epfd, entry, made) {
        return Ok(set);
    }
    set.destroy(); // Another thread was faster.
    set_of(fd_table::get(epfd)).filter(|set| set.att.index() == att.index()).ok_or(Errno(libc::EBADF))
}

/// How many members the kernel's epoll has already, by /proc; many, if it can't be read.
fn kernel_members(epfd: c_int) -> u32 {
    let mut path = Text::<48>::new();
    path.push(b"/proc/self/fdinfo/").push_number(epfd.max(0) as u64);
    let Some(path) = path.as_c_str() else { return u32::MAX / 2 };
    let opened =
        sys::call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
    let Ok(file) = opened else { return u32::MAX / 2 };
    let mut bytes = [0u8; 2048];
    let read = sys::read(file as c_int, &mut bytes).unwrap_or(0);
    let _ = sys::close(file as c_int);
    let text = bytes.get(..read).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"tfd:")).count() as u32
}

/// One timeout in whatever form the call had it: `None` is for ever.
pub type Timeout = Option<u64>;

/// `epoll_wait(2)`.
///
/// # Safety
/// As `epoll_wait`.
pub unsafe fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout_ms: c_int) -> c_int {
    let Some(set) = usable(epfd) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::epoll_wait(epfd, events, max, timeout_ms) };
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, milliseconds(timeout_ms), core::ptr::null()) }
}

/// `epoll_pwait(2)`.
///
/// # Safety
/// As `epoll_pwait`.
pub unsafe fn epoll_pwait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    let Some(set) = usable(epfd) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::epoll_pwait(epfd, events, max, timeout_ms, mask) };
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, milliseconds(timeout_ms), mask) }
}

/// `epoll_pwait2(2)`.
///
/// # Safety
/// As `epoll_pwait2`.
pub unsafe fn epoll_pwait2(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const libc::timespec,
    mask: *const sigset_t,
) -> c_int {
    let Some(set) = usable(epfd) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::epoll_pwait2(epfd, events, max, timeout, mask) };
    };
    let limit = if timeout.is_null() {
        None
    } else {
        // SAFETY: the program's own structure; not null.
        match crate::poll::nanoseconds(unsafe { timeout.read_unaligned() }) {
            Ok(ns) => Some(ns),
            Err(error) => return errno::fail(error),
        }
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, limit, mask) }
}

fn usable(epfd: c_int) -> Option<SetRef> {
    let entry = fd_table::get(epfd);
    if entry == Entry::KERNEL || tls::thread().is_vfork_child() { None } else { set_of(entry) }
}

fn milliseconds(timeout_ms: c_int) -> Timeout {
    u64::try_from(timeout_ms).ok().map(|ms| ms * 1_000_000)
}

/// # Safety
/// As `epoll_pwait`.
unsafe fn wait(
    epfd: c_int,
    set: &SetRef,
    events: *mut epoll_event,
    max: c_int,
    timeout: Timeout,
    mask: *const sigset_t,
) -> c_int {
    if max <= 0 || max as usize > c_int::MAX as usize / size_of::<epoll_event>() {
        return errno::fail(Errno(libc::EINVAL));
    }
    if events.is_null() {
        return errno::fail(Errno(libc::EFAULT));
    }
    // SAFETY: the program promises room for `max` events; they are plain data.
    let room = unsafe { core::slice::from_raw_parts_mut(events, max as usize) };
    errno::into_libc(collect(epfd, set, room, timeout, mask))
}

fn collect(
    epfd: c_int,
    set: &SetRef,
    room: &mut [epoll_event],
    timeout: Timeout,
    mask: *const sigset_t,
) -> Sys<usize> {
    let mut set = *set;
    if !quiet(&set) || !set.att.is_alive() {
        set = living(epfd, set);
        let count = both(epfd, &set, room)?;
        if count > 0 {
            return Ok(count);
        }
    }
    if timeout == Some(0) {
        return kernel_look(epfd, &set, room, 0);
    }
    sleep::spin(&mut || !quiet(&set));
    let deadline = timeout.map(|ns| sys::now_ns().saturating_add(ns));
    loop {
        if !quiet(&set) {
            let count = both(epfd, &set, room)?;
            if count > 0 {
                return Ok(count);
            }
        }
        set.waiters().fetch_add(1, Relaxed);
        set.shared.bell.arm();
        if !quiet(&set) {
            let count = scan(&set, room, 0);
            if count > 0 {
                leave(&set);
                return Ok(count);
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_sub(sys::now_ns()));
        let slept = real_wait(epfd, room, left, mask);
        let kernel = keep_foreign(&set, room, *slept.as_ref().unwrap_or(&0));
        let count = if slept.is_ok() { scan(&set, room, kernel) } else { 0 };
        leave(&set);
        slept?;
        set = living(epfd, set);
        if count > 0 {
            return Ok(count);
        }
        if left == Some(0) || deadline.is_some_and(|deadline| sys::now_ns() >= deadline) {
            return Ok(0);
        }
    }
}

/// Whether neither `set` nor those of dead engines behind it have news.
fn quiet(set: &SetRef) -> bool {
    set.is_quiet() && (set.local.older.load(Relaxed) == 0 || older(set).is_none_or(|older| quiet(&older)))
}

/// The set of a dead engine that `set` took the place of.
fn older(set: &SetRef) -> Option<SetRef> {
    let word = set.local.older.load(Relaxed);
    (word >> 63 == 1).then(|| set::at(attach::get((word >> 32) as u32 & 0xff)?, word as u32)).flatten()
}

/// The set of `epfd` now: another, if its engine died and listeners in it found a new one.
fn living(epfd: c_int, set: SetRef) -> SetRef {
    if set.att.is_alive() {
        return set;
    }
    death::notice(set.att);
    death::revive();
    usable(epfd).unwrap_or(set)
}

/// A sleeper is awake and has taken what it takes. If others still sleep on this set, the bell must stay armed for
/// them, and they are woken if there is more to do.
fn leave(set: &SetRef) {
    let others = set.waiters().fetch_sub(1, Relaxed).wrapping_sub(1);
    if others > 0 && others < u32::MAX / 2 {
        set.shared.bell.arm();
        if !set.is_quiet() {
            set.ring();
            set.shared.bell.arm();
        }
    }
}

/// Ours, and the kernel's when it is their turn.
fn both(epfd: c_int, set: &SetRef, room: &mut [epoll_event]) -> Sys<usize> {
    if !set.att.is_alive() {
        death::notice(set.att);
    }
    let mut kernel = 0;
    if set.shared.kernel_members.load(Relaxed) > 0 && is_due(set) {
        // At most half, so that neither side starves the other.
        let half = room.len().div_ceil(2);
        if let Some(part) = room.get_mut(..half) {
            kernel = kernel_look(epfd, set, part, 0)?;
        }
    }
    Ok(scan(set, room, kernel))
}

fn is_due(set: &SetRef) -> bool {
    let calls = set.local.calls.fetch_add(1, Relaxed);
    let now = sys::now_ns();
    if calls < CALLS_MAX && now.wrapping_sub(set.local.looked_ns.load(Relaxed)) < LOOK_NS {
        return false;
    }
    set.local.calls.store(0, Relaxed);
    set.local.looked_ns.store(now, Relaxed);
    true
}

fn kernel_look(epfd: c_int, set: &SetRef, room: &mut [epoll_event], timeout_ns: u64) -> Sys<usize> {
    let count = real_wait(epfd, room, Some(timeout_ns), core::ptr::null())?;
    Ok(keep_foreign(set, room, count))
}

/// The kernel's wait, through libc: it is a cancellation point, as the program's call was.
fn real_wait(epfd: c_int, room: &mut [epoll_event], left: Timeout, mask: *const sigset_t) -> Sys<usize> {
    let max = room.len().min(c_int::MAX as usize) as c_int;
    // Rounded up: a wait must not end early. (Not epoll_pwait2: older kernels lack it.)
    let timeout_ms = left.map_or(-1, |ns| ns.div_ceil(1_000_000).min(c_int::MAX as u64) as c_int);
    // SAFETY: the room is valid for `max` events; the mask is the program's.
    let count = unsafe { real::epoll_pwait(epfd, room.as_mut_ptr(), max, timeout_ms, mask) };
    usize::try_from(count).map_err(|_| errno::get())
}

/// Drops our own bell and channel from `count` events of the kernel; how many are left.
fn keep_foreign(set: &SetRef, room: &mut [epoll_event], count: usize) -> usize {
    let mut kept = 0;
    for at in 0..count.min(room.len()) {
        let Some(event) = room.get(at).copied() else { break };
        match event.u64 {
            BELL => set.drain_bell(),
            CHANNEL => death::notice(set.att),
            _ => {
                if let Some(to) = room.get_mut(kept) {
                    *to = event;
                    kept += 1;
                }
            }
        }
    }
    kept
}

/// Appends events of ours behind the first `filled` ones; the number of all.
fn scan(set: &SetRef, room: &mut [epoll_event], filled: usize) -> usize {
    let mut count = scan_one(set, room, filled);
    let mut next = older(set);
    while let Some(dead) = next {
        count = scan_one(&dead, room, count);
        next = older(&dead);
    }
    count
}

fn scan_one(set: &SetRef, room: &mut [epoll_event], filled: usize) -> usize {
    let Some(bits) = set.att.region().ready(set.index) else { return filled };
    let start = set.shared.cursor.load(Relaxed);
    let (mut at, mut wrapped, mut count) = (start, false, filled);
    while count < room.len() {
        let Some(index) = bits.next(at).filter(|index| !wrapped || *index < start) else {
            if wrapped || start == 0 {
                at = 0;
                break;
            }
            (wrapped, at) = (true, 0);
            continue;
        };
        at = index.wrapping_add(1);
        let Some((event, listens)) = visit(set, index) else { continue };
        count = place(room, filled, count, event, listens);
    }
    if at != start {
        set.shared.cursor.store(at, Relaxed);
    }
    count
}

/// Puts `event` behind the `count` others, or, for a listener that the kernel reported too, into that one.
fn place(room: &mut [epoll_event], filled: usize, count: usize, event: epoll_event, listens: bool) -> usize {
    let twin = if listens { room.iter_mut().take(filled).find(|other| other.u64 == event.u64) } else { None };
    if let Some(twin) = twin {
        twin.events |= event.events;
        return count;
    }
    match room.get_mut(count) {
        Some(to) => {
            *to = event;
            count + 1
        }
        None => count,
    }
}

/// What interest `index`, whose bit is set, has to report, and whether it is a listener's.
fn visit(set: &SetRef, index: u32) -> Option<(epoll_event, bool)> {
    let bits = set.att.region().ready(set.index)?;
    let sock = set::read(set, index).and_then(|wanted| Some((wanted, set::socket_of(set, &wanted)?)));
    let Some((wanted, sock)) = sock else {
        bits.clear(index);
        return None;
    };
    if !sock.is_current() {
        set.release(index); // The socket is gone, and its member list with it.
        bits.clear(index);
        return None;
    }
    let mask = wanted.events & 0xffff | ready::ALWAYS;
    let disarmed = wanted.events & 0xffff == 0 && wanted.events & ONESHOT != 0;
    if disarmed {
        bits.clear(index);
        return None;
    }
    if wanted.events & ET != 0 && !bits.clear(index) {
        return None; // Another thread reports this edge.
    }
    let mut found = ready::watch(&sock, mask) & mask;
    if found == 0 && wanted.events & ET == 0 {
        bits.clear(index);
        found = ready::watch(&sock, mask) & mask;
        if found != 0 {
            bits.set(index);
        }
    }
    if found == 0 {
        return None;
    }
    let listens = sock.entry.kind() == Kind::Listener;
    if wanted.events & ONESHOT != 0 {
        bits.clear(index);
        let interest = set.att.region().interest(index)?;
        let off = wanted.events & !0xffff;
        if interest.events.compare_exchange(wanted.events, off, AcqRel, Relaxed).is_err() {
            return None; // Another thread reports it.
        }
        if listens {
            let none = epoll_event { events: off, u64: wanted.data };
            let _ = sys::epoll_ctl(set.local.epfd.load(Relaxed), libc::EPOLL_CTL_MOD, sock.fd, &none);
        }
    }
    Some((epoll_event { events: found, u64: wanted.data }, listens))
}

/// The socket's last number in this process is being closed: its interests here end.
pub fn forget(sock: &Sock) {
    for cell in set::members(sock) {
        let Some(member) = Member::unpack(cell.load(Acquire)) else { continue };
        let Some(set) = set::at(sock.att, member.set) else { continue };
        if set.shared.owner_pid.load(Relaxed) == process::pid() {
            set.remove(cell, member.interest);
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
        set.remove(cell, member.interest);
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
        set.remove(cell, member.interest);
        // In the kernel's epoll it still is.
        let _ = set_for(epfd, new.att).and_then(|set| set.add(new, wanted.events, wanted.data));
    }
}

/// The epoll descriptor `epfd` is being closed.
pub fn closing(epfd: c_int, entry: Entry) {
    let Some(set) = set_of(entry) else { return };
    let shared_by_fork = set.epoch().load(Relaxed) != set.att.region().header().fork_epoch.load(Relaxed);
    let other = fd_table::used().any(|(fd, found)| fd != epfd && found.same_object(entry));
    if other || shared_by_fork || set.shared.owner_pid.load(Relaxed) != process::pid() {
        return;
    }
    for (fd, entry) in fd_table::used() {
        if !matches!(entry.kind(), Kind::Socket | Kind::Listener) || entry.region() != set.att.index() {
            continue;
        }
        let Some(sock) = handle::at(fd, entry) else { continue };
        for cell in set::members(&sock) {
            match Member::unpack(cell.load(Acquire)) {
                Some(member) if member.set == set.index => set.remove(cell, member.interest),
                _ => {}
            }
        }
    }
    set.destroy();
}
