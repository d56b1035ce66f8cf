//! `epoll_wait` and its relatives: what a set has to report.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use libc::{epoll_event, sigset_t};
use utcp_abi::set::LANES;

use crate::arrival::{self, Arrivals};
use crate::epoll::{BELL, CHANNEL, ET, ONESHOT, older};
use crate::fd_table::{self, Entry, Kind};
use crate::handle::Sock;
use crate::set::{self, SetRef, Wanted};
use crate::signals::{self, Calm, Ending};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{death, epolls, errno, lane, nested, ready, relayed, sleep, tls, user};

/// Calls that report ours alone before the kernel's members are looked at.
const CALLS_MAX: u32 = 64;
/// … and time that may pass before they are.
const LOOK_NS: u64 = 250_000;
/// Descriptors of ours in the kernel's set that may stand before the program's, and one more look.
const OURS_MAX: usize = 3 + LANES;

/// How long a call waits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Timeout {
    /// Nanoseconds; `None` is for ever.
    ns: Option<u64>,
    /// The program's own call counts nanoseconds, so its kernel and its sandbox know that one.
    exact: bool,
}

impl Timeout {
    const NONE: Self = Self { ns: Some(0), exact: false };

    /// What `epoll_wait` is given: negative is for ever.
    fn milliseconds(ms: c_int) -> Self {
        Self { ns: u64::try_from(ms).ok().map(|ms| ms * 1_000_000), exact: false }
    }

    /// When it is over, by the monotonic clock.
    fn deadline(self) -> Option<u64> {
        self.ns.map(|ns| sys::now_ns().saturating_add(ns))
    }

    /// What is left of it until `deadline`.
    fn until(self, deadline: Option<u64>) -> Self {
        let ns = deadline.map(|deadline| deadline.saturating_sub(sys::now_ns()));
        Self { ns, ..self }
    }
}

/// `epoll_wait(2)`.
///
/// # Safety
/// As `epoll_wait`.
pub unsafe fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout_ms: c_int) -> c_int {
    let Some(set) = usable(epfd) else {
        // SAFETY: the program's own arguments.
        let wait_there = || unsafe { real::epoll_wait(epfd, events, max, timeout_ms) };
        // SAFETY: as above.
        return unsafe {
            kernels(epfd, events, max, Timeout::milliseconds(timeout_ms), core::ptr::null(), wait_there)
        };
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, Timeout::milliseconds(timeout_ms), core::ptr::null()) }
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
        let wait_there = || unsafe { real::epoll_pwait(epfd, events, max, timeout_ms, mask) };
        // SAFETY: as above.
        return unsafe { kernels(epfd, events, max, Timeout::milliseconds(timeout_ms), mask, wait_there) };
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, Timeout::milliseconds(timeout_ms), mask) }
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
    let ns = if timeout.is_null() {
        None
    } else {
        // SAFETY: the program's own structure; not null.
        match unsafe { user::fetch(timeout) }.and_then(crate::poll::nanoseconds) {
            Ok(ns) => Some(ns),
            Err(error) => return errno::fail(error),
        }
    };
    let limit = Timeout { ns, exact: true };
    let Some(set) = usable(epfd) else {
        // SAFETY: the program's own arguments.
        let wait_there = || unsafe { real::epoll_pwait2(epfd, events, max, timeout, mask) };
        // SAFETY: as above.
        return unsafe { kernels(epfd, events, max, limit, mask, wait_there) };
    };
    // SAFETY: the program's own arguments.
    unsafe { wait(epfd, &set, events, max, limit, mask) }
}

/// The wait of a set without utcp members, which may have sets with some among its members. Another thread may give it its first
/// one meanwhile, and the epoll file may have come by exec from a program that had: the bell, rung then, ends this sleep, and
/// is nothing that the program knows.
///
/// # Safety
/// As `epoll_pwait`.
#[inline]
unsafe fn kernels(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: Timeout,
    mask: *const sigset_t,
    wait_there: impl FnOnce() -> c_int,
) -> c_int {
    nested::settle(false);
    let deadline = timeout.deadline();
    let count = wait_there();
    if count <= 0 {
        return count;
    }
    nested::settle(true);
    // SAFETY: the kernel filled as many; they are plain data.
    let filled = unsafe { core::slice::from_raw_parts_mut(events, count as usize) };
    let kept = keep_foreign(usable(epfd).as_ref(), filled, count as usize);
    if kept > 0 {
        return kept as c_int;
    }
    loop {
        let left = timeout.until(deadline);
        if let Some(set) = usable(epfd) {
            // SAFETY: the caller's promise.
            return unsafe { wait(epfd, &set, events, max, left, mask) };
        }
        // SAFETY: the program promises room for `max` events, a number that the kernel took; they are plain data.
        let room = unsafe { core::slice::from_raw_parts_mut(events, max.max(0) as usize) };
        match kernel_wait(epfd, None, room, left, mask) {
            Ok(0) if left.ns != Some(0) => {}
            result => return errno::into_libc(result),
        }
    }
}

fn usable(epfd: c_int) -> Option<SetRef> {
    let entry = fd_table::get(epfd);
    if entry == Entry::KERNEL || tls::thread().is_vfork_child() { None } else { epolls::set_of(entry) }
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
    if let Err(error) = user::probe(events.cast(), size_of::<epoll_event>()) {
        return errno::fail(error);
    }
    // SAFETY: the program promises room for `max` events; they are plain data.
    let room = unsafe { core::slice::from_raw_parts_mut(events, max as usize) };
    signals::cancellation_point();
    errno::into_libc(collect(epfd, set, room, timeout, mask))
}

fn collect(
    epfd: c_int,
    set: &SetRef,
    room: &mut [epoll_event],
    timeout: Timeout,
    mask: *const sigset_t,
) -> Sys<usize> {
    if !nested::any() {
        return gather(epfd, set, room, timeout, mask);
    }
    nested::settle(false);
    let result = gather(epfd, set, room, timeout, mask);
    nested::settle(true);
    result
}

fn gather(
    epfd: c_int,
    set: &SetRef,
    room: &mut [epoll_event],
    timeout: Timeout,
    mask: *const sigset_t,
) -> Sys<usize> {
    let (mut set, calm) = (*set, Calm::now(Ending::Every));
    if !quiet(&set) || !set.att.is_alive() {
        set = living(epfd, set);
        let count = both(epfd, &set, room)?;
        if count > 0 {
            return Ok(count);
        }
    }
    if timeout.ns == Some(0) {
        return kernel_look(epfd, &set, room);
    }
    // Who put something else at the number may have signalled before we counted.
    if usable(epfd).is_none_or(|now| now.index != set.index) {
        return Err(Errno(libc::EINTR));
    }
    let deadline = timeout.deadline();
    sleep::spin(deadline, &mut || !quiet(&set));
    loop {
        if !quiet(&set) {
            let count = both(epfd, &set, room)?;
            if count > 0 {
                return Ok(count);
            }
        }
        set.waiters().fetch_add(1, Relaxed);
        if nested::is_watched(&set) {
            nested::refresh(&set, true); // Arms, and a bell that rang for nothing must not end the sleep.
        } else {
            lane::arm(&set);
        }
        if !quiet(&set) {
            let count = scan(&set, room, 0);
            if count > 0 {
                leave(&set);
                return Ok(count);
            }
        }
        set.say_asleep();
        let left = timeout.until(deadline);
        let slept = calm.asleep(&set, || kernel_wait(epfd, Some(&set), room, left, mask));
        let kernel = *slept.as_ref().unwrap_or(&0);
        lane::gather(&set);
        let count = if slept.is_ok() { scan(&set, room, kernel) } else { 0 };
        leave(&set);
        slept?;
        set = living(epfd, set);
        if count > 0 {
            return Ok(count);
        }
        if left.ns == Some(0) || deadline.is_some_and(|deadline| sys::now_ns() >= deadline) {
            return Ok(0);
        }
    }
}

/// Whether neither `set` nor those of dead engines behind it have news.
fn quiet(set: &SetRef) -> bool {
    lane::gather(set);
    set.is_quiet() && older(set).is_none_or(|older| quiet(&older))
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
        lane::arm(set);
        if !quiet(set) {
            set.ring();
            lane::arm(set);
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
            kernel = kernel_look(epfd, set, part)?;
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

fn kernel_look(epfd: c_int, set: &SetRef, room: &mut [epoll_event]) -> Sys<usize> {
    kernel_wait(epfd, Some(set), room, Timeout::NONE, core::ptr::null())
}

/// The kernel's wait, through libc: it is a cancellation point, as the program's call was. What is left are the
/// program's own members.
fn kernel_wait(
    epfd: c_int,
    set: Option<&SetRef>,
    room: &mut [epoll_event],
    left: Timeout,
    mask: *const sigset_t,
) -> Sys<usize> {
    let mut left = left;
    // Our own descriptors may have taken all the room: the kernel puts them behind the others then.
    for _ in 0..OURS_MAX {
        let count = kernel_wait_once(epfd, room, left, mask)?;
        let kept = keep_foreign(set, room, count);
        if kept > 0 || count < room.len() {
            return Ok(kept);
        }
        left = Timeout::NONE;
    }
    Ok(0)
}

/// To the nanosecond if the program's own call is. Else rounded up, as a wait must not end early: a program that never says
/// `epoll_pwait2` may run where a filter ends whoever does, or on a kernel before 5.11.
fn kernel_wait_once(
    epfd: c_int,
    room: &mut [epoll_event],
    left: Timeout,
    mask: *const sigset_t,
) -> Sys<usize> {
    let max = room.len().min(c_int::MAX as usize) as c_int;
    if let (true, Some(ns @ 1..)) = (left.exact, left.ns) {
        let time = sys::timespec(ns);
        // SAFETY: the room is valid for `max` events, the time lives through the call; the mask is the program's.
        let count = unsafe { real::epoll_pwait2(epfd, room.as_mut_ptr(), max, &raw const time, mask) };
        match usize::try_from(count).map_err(|_| errno::get()) {
            Err(Errno(libc::ENOSYS)) => {} // By number, where libc is older than 2.35.
            result => return result,
        }
    }
    let timeout_ms = left.ns.map_or(-1, |ns| ns.div_ceil(1_000_000).min(c_int::MAX as u64) as c_int);
    // SAFETY: the room is valid for `max` events; the mask is the program's.
    let count = unsafe { real::epoll_pwait(epfd, room.as_mut_ptr(), max, timeout_ms, mask) };
    usize::try_from(count).map_err(|_| errno::get())
}

/// Drops our own bell and channel from `count` events of the kernel; how many are left.
fn keep_foreign(set: Option<&SetRef>, room: &mut [epoll_event], count: usize) -> usize {
    let mut kept = 0;
    for at in 0..count.min(room.len()) {
        let Some(event) = room.get(at).copied() else { break };
        match event.u64 {
            BELL => set.into_iter().for_each(SetRef::drain_bell),
            CHANNEL => set.into_iter().for_each(|set| death::notice(set.att)),
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
    let mut arrivals = Arrivals::new();
    let mut count = scan_one(set, room, filled, &mut arrivals);
    let mut next = older(set);
    while let Some(dead) = next {
        count = scan_one(&dead, room, count, &mut Arrivals::new());
        next = older(&dead);
    }
    count
}

fn scan_one(set: &SetRef, room: &mut [epoll_event], filled: usize, arrivals: &mut Arrivals) -> usize {
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
        let Some((event, listens, time)) = visit(set, index) else { continue };
        let before = count;
        count = place(room, filled, count, event, listens);
        if count > before
            && let Some(events) = room.get_mut(..count)
        {
            arrivals.put(events, time);
        }
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

/// Whether some member of `set` has something to report; nothing is taken.
pub fn is_ready(set: &SetRef) -> bool {
    let Some(bits) = set.att.region().ready(set.index) else { return false };
    let mut at = 0;
    while let Some(index) = bits.next(at) {
        at = index.wrapping_add(1);
        if marked(set, index).is_some_and(|(wanted, sock)| true_now(set, index, &wanted, &sock, false) != 0) {
            return true;
        }
    }
    false
}

/// Interest `index`, whose bit is set, and its socket, unless one of them is over or a one-shot has fired.
fn marked(set: &SetRef, index: u32) -> Option<(Wanted, Sock)> {
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
    if relayed::is_moved(&sock) {
        bits.clear(index);
        let _ = crate::handle::ours(wanted.fd); // It notices, and the kernel's descriptor becomes the member.
        return None;
    }
    if wanted.events & 0xffff == 0 && wanted.events & ONESHOT != 0 {
        bits.clear(index);
        return None;
    }
    Some((wanted, sock))
}

/// Events of interest `index` that are true now. If there are none its bit goes, unless it is `taken` already.
fn true_now(set: &SetRef, index: u32, wanted: &Wanted, sock: &Sock, taken: bool) -> u32 {
    let mask = wanted.events & 0xffff | ready::ALWAYS;
    let found = ready::watch(sock, mask) & mask;
    if found != 0 || taken {
        return found;
    }
    let Some(bits) = set.att.region().ready(set.index) else { return 0 };
    bits.clear(index);
    // What came between the look and the clearing has a bit that is gone.
    let found = ready::watch(sock, mask) & mask;
    if found != 0 {
        bits.set(index);
    }
    found
}

/// What interest `index`, whose bit is set, has to report, whether it is a listener's, and when it came.
fn visit(set: &SetRef, index: u32) -> Option<(epoll_event, bool, u64)> {
    let bits = set.att.region().ready(set.index)?;
    let (wanted, sock) = marked(set, index)?;
    if wanted.events & ET != 0 && !bits.clear(index) {
        return None; // Another thread reports this edge.
    }
    let found = true_now(set, index, &wanted, &sock, wanted.events & ET != 0);
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
    Some((epoll_event { events: found, u64: wanted.data }, listens, arrival::of(&sock)))
}
