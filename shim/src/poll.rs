//! `poll` over descriptors of both kinds.
//!
//! Ours are looked at in shared memory, the kernel's by a `ppoll` that does not wait. Only when nothing is
//! ready does the thread borrow a set, put its interests into it and sleep in a `ppoll` over the
//! kernel's descriptors, the set's bell and the channel (which hangs up when the engine dies). A single utcp
//! socket without company needs no set: its own bell will do.

use core::ffi::{c_int, c_short, c_ulong};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use libc::{nfds_t, pollfd, sigset_t, timespec};

use crate::fd_table::{self, Entry, Kind};
use crate::handle;
use crate::signals::{self, Calm, Ending};
use crate::sleep::{self, Woken};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{death, errno, guard, lane, nested, pair, poll_set, pool, ready, user};

/// Descriptors that fit into the scratch space on the stack.
const SMALL: usize = 128;
/// How often to look when a socket has no room for one more watcher.
const SLICE_NS: u64 = 2_000_000;
/// How long one with listeners that lost their engine sleeps before it asks again whether there is another.
const ORPHANS_NS: u64 = 100_000_000;
const NOT_WATCHED: u32 = u32::MAX;

/// A timeout as nanoseconds.
///
/// # Errors
/// EINVAL for a negative one, or nanoseconds beyond a second.
pub fn nanoseconds(time: timespec) -> Sys<u64> {
    match (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec)) {
        (Ok(s), Ok(ns)) if ns < 1_000_000_000 => Ok(s.saturating_mul(1_000_000_000).saturating_add(ns)),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Whether any of `fds` is more than the kernel's.
pub fn concerns_us(list: &[pollfd]) -> bool {
    list.iter().any(|entry| is_more(entry.fd))
}

/// Whether `fd` is more than the kernel's: not even an epoll descriptor without utcp members.
pub fn is_more(fd: c_int) -> bool {
    let entry = fd_table::get(fd);
    if entry.kind() == Kind::Stranger {
        return handle::ours(fd).is_some(); // It is being used.
    }
    entry != Entry::KERNEL
        && !matches!(entry.kind(), Kind::Bound | Kind::Kept)
        && !nested::is_plain(fd, entry)
}

/// # Safety
/// As `poll`: `fds` has `count` elements.
unsafe fn list_of<'a>(fds: *mut pollfd, count: nfds_t) -> &'a mut [pollfd] {
    let count = count as u32 as usize; // The kernel's is no longer.
    // What can't be read is the kernel's to refuse, and what is longer than a program may have descriptors.
    if fds.is_null()
        || !guard::stands()
        || count as u64 > pool::limit()
        || user::probe(fds.cast(), count.saturating_mul(size_of::<pollfd>())).is_err()
    {
        return &mut [];
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(fds, count) }
}

/// `poll(2)`.
///
/// # Safety
/// As `poll`.
pub unsafe fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    // SAFETY: the program's own list.
    let list = unsafe { list_of(fds, count) };
    if !concerns_us(list) || crate::tls::thread().is_vfork_child() {
        // SAFETY: the program's own arguments.
        return unsafe { real::poll(fds, count, timeout_ms) };
    }
    let timeout = u64::try_from(timeout_ms).ok().map(|ms| ms * 1_000_000);
    errno::into_libc(wait(list, timeout, core::ptr::null()))
}

/// `ppoll(2)`.
///
/// # Safety
/// As `ppoll`.
pub unsafe fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the program's own list.
    let list = unsafe { list_of(fds, count) };
    if !concerns_us(list) || crate::tls::thread().is_vfork_child() {
        // SAFETY: the program's own arguments.
        return unsafe { real::ppoll(fds, count, timeout, mask) };
    }
    let limit = if timeout.is_null() {
        None
    } else {
        // SAFETY: the program's own structure; not null.
        match unsafe { user::fetch(timeout) }.and_then(nanoseconds) {
            Ok(ns) => Some(ns),
            Err(error) => return errno::fail(error),
        }
    };
    errno::into_libc(wait(list, limit, mask))
}

/// `__poll_chk`: the compiler knew the size of the list.
///
/// # Safety
/// As `poll`.
pub unsafe fn poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, size: usize) -> c_int {
    if size / size_of::<pollfd>() < count as usize {
        // SAFETY: libc's own check ends the program.
        return unsafe { real::__poll_chk(fds, count, timeout_ms, size) };
    }
    // SAFETY: the program's own arguments.
    unsafe { poll(fds, count, timeout_ms) }
}

/// `__ppoll_chk`.
///
/// # Safety
/// As `ppoll`.
pub unsafe fn ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    size: usize,
) -> c_int {
    if size / size_of::<pollfd>() < count as usize {
        // SAFETY: libc's own check ends the program.
        return unsafe { real::__ppoll_chk(fds, count, timeout, mask, size) };
    }
    // SAFETY: the program's own arguments.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// Looks at our descriptors in `list`; how many are ready.
fn look(list: &mut [pollfd]) -> usize {
    let mut count = 0;
    for entry in list {
        entry.revents = 0;
        if entry.fd < 0 {
            continue;
        }
        let found = fd_table::get(entry.fd);
        if matches!(found.kind(), Kind::Internal | Kind::Pool) {
            entry.revents = libc::POLLNVAL;
        } else if let Some(sock) = handle::ours(entry.fd) {
            let wanted = u32::from(entry.events as u16) | ready::ALWAYS;
            entry.revents = (ready::watch(&sock, wanted) & wanted) as u16 as c_short;
        }
        count += usize::from(entry.revents != 0);
    }
    count
}

/// Scratch for one call: the kernel's view of the list, and our interests.
struct Scratch {
    base: *mut u8,
    mapped: usize,
    len: usize,
}

type Small = (MaybeUninit<[pollfd; SMALL + 2]>, MaybeUninit<[u32; SMALL]>);

impl Scratch {
    fn new(len: usize, small: &mut Small) -> Sys<Self> {
        if len <= SMALL {
            return Ok(Self { base: core::ptr::from_mut(small).cast(), mapped: 0, len });
        }
        let mapped = (len + 2) * size_of::<pollfd>() + len * size_of::<u32>();
        Ok(Self { base: sys::map_private(mapped)?, mapped, len })
    }

    /// The list for the kernel, with two places behind the program's.
    #[allow(
        clippy::cast_ptr_alignment,
        clippy::mut_from_ref,
        reason = "a page or a structure that starts with the list"
    )]
    fn kernel(&self) -> &mut [pollfd] {
        let list = self.base.cast::<pollfd>();
        let none = pollfd { fd: -1, events: 0, revents: 0 };
        for at in 0..self.len + 2 {
            // SAFETY: inside the space that `new` made for `len + 2` entries.
            unsafe { list.add(at).write(none) };
        }
        // SAFETY: as above, and written now; nobody else knows of it.
        unsafe { core::slice::from_raw_parts_mut(list, self.len + 2) }
    }

    /// One word per entry of the program's list.
    #[allow(clippy::cast_ptr_alignment, clippy::mut_from_ref, reason = "behind structures of eight bytes")]
    fn words(&self) -> &mut [u32] {
        let room = if self.mapped == 0 { SMALL } else { self.len };
        let list = self.base.wrapping_add((room + 2) * size_of::<pollfd>()).cast::<u32>();
        for at in 0..self.len {
            // SAFETY: behind the pollfds, where `new` (or `Small`, whose second part is words too) has room.
            unsafe { list.add(at).write(NOT_WATCHED) };
        }
        // SAFETY: as above, and written now.
        unsafe { core::slice::from_raw_parts_mut(list, self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mapped > 0 {
            sys::unmap(self.base, self.mapped);
        }
    }
}

/// Copies the kernel's part of `list`; whether there is any. An epoll descriptor among it shall be readable if
/// utcp members of its set are ready.
fn kernel_part(list: &[pollfd], kernel: &mut [pollfd]) -> bool {
    let mut any = false;
    for (to, from) in kernel.iter_mut().zip(list) {
        let kind = fd_table::get(from.fd).kind();
        // A listener is the kernel's too.
        let is_kernels = from.fd >= 0 && !matches!(kind, Kind::Socket | Kind::Internal | Kind::Pool);
        *to = pollfd { fd: if is_kernels { from.fd } else { -1 }, events: from.events, revents: 0 };
        any |= is_kernels;
        if kind == Kind::Epoll {
            nested::watch(from.fd);
        }
    }
    any
}

/// Adds what the kernel found to `list`; how many entries are ready in all.
fn merge(list: &mut [pollfd], kernel: &[pollfd]) -> usize {
    let mut count = 0;
    for (to, from) in list.iter_mut().zip(kernel) {
        to.revents |= from.revents;
        count += usize::from(to.revents != 0);
    }
    count
}

/// `ppoll` over a list of which some descriptors are ours.
pub fn wait(list: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t) -> Sys<usize> {
    signals::cancellation_point();
    wait_calmly(list, timeout, mask, &Calm::now(Ending::Every))
}

/// As [`wait`], until `calm` is over.
fn wait_calmly(
    list: &mut [pollfd],
    timeout: Option<u64>,
    mask: *const sigset_t,
    calm: &Calm<'_>,
) -> Sys<usize> {
    if let Some(result) = alone(list, timeout, mask) {
        return result;
    }
    let mut small: Small = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let scratch = Scratch::new(list.len(), &mut small)?;
    let kernel = scratch.kernel();
    let has_kernel = kernel_part(list, kernel);
    let count = look(list);
    if count > 0 || timeout == Some(0) {
        // Signals that this call alone lets in come when there is nothing to report, though it does not wait (Linux do_poll).
        let mask = if count > 0 { core::ptr::null() } else { mask };
        if !has_kernel && mask.is_null() {
            return Ok(count);
        }
        // Without the two places behind: a program may ask about as many as it may have.
        let kernel = kernel.get_mut(..list.len()).unwrap_or_default();
        kernel_poll(kernel, Some(0), mask)?;
        return Ok(merge(list, kernel));
    }
    let deadline = timeout.map(|ns| sys::now_ns().saturating_add(ns));
    // A spin can see ours alone; the kernel's descriptors get their look below.
    let has_ours = list.iter().any(|entry| handle::ours(entry.fd).is_some());
    let mut found = 0;
    let mut any = || {
        found = look(list);
        found > 0
    };
    // What was seen is told: a second look might see less, and nothing is what a timeout tells.
    if has_ours && sleep::spin(deadline, &mut any) && !has_kernel {
        return Ok(found);
    }
    loop {
        if let Some(count) = sleep_on(list, kernel, scratch.words(), deadline, mask, calm)? {
            return Ok(count);
        }
        // The engine died and nothing is ready for it: what listens goes on, with another engine if there is one.
        death::revive();
        kernel_part(list, kernel);
    }
}

/// One utcp socket without company.
fn alone(list: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t) -> Option<Sys<usize>> {
    let [only] = list else { return None };
    let sock = handle::stream(only.fd).filter(|_| mask.is_null())?;
    let calm = Calm::on(Ending::Every, &sock);
    let mut found = look(list);
    if found > 0 || timeout == Some(0) {
        return Some(Ok(found));
    }
    let [only] = list else { return None };
    let wants_in = u32::from(only.events as u16) & (ready::IN | ready::RDHUP) != 0;
    let wants_out = u32::from(only.events as u16) & ready::OUT != 0;
    if wants_in && wants_out {
        return None;
    }
    let bell = || {
        if !sock.was_connected() {
            return &sock.shared.tx_bell; // Before the handshake ends there is only its end to wait for.
        }
        let (rx_bell, tx_bell) = pair::bells(&sock);
        if wants_out { tx_bell } else { rx_bell }
    };
    let deadline = timeout.map(|ns| sys::now_ns().saturating_add(ns));
    let woken = sleep::until(sock.att, bell, deadline, &calm, || {
        found = look(list);
        found > 0 || !sock.is_current()
    });
    Some(match woken {
        Woken::Signal => Err(Errno(libc::EINTR)),
        // As above: between two looks a connection may go from a pair region to segments, and have no room for a moment.
        Woken::News | Woken::Timeout if found > 0 => Ok(found),
        Woken::News | Woken::Timeout => Ok(look(list)),
    })
}

/// Sleeps until something in `list` is ready, and tells how much; nothing if the engine died meanwhile.
fn sleep_on(
    list: &mut [pollfd],
    kernel: &mut [pollfd],
    interests: &mut [u32],
    deadline: Option<u64>,
    mask: *const sigset_t,
    calm: &Calm<'_>,
) -> Sys<Option<usize>> {
    if kernel.len() as u64 > pool::limit() {
        // The kernel takes no more than the program's own: we look now and then.
        let kernel = kernel.get_mut(..list.len()).unwrap_or_default();
        return sleep_loop(list, kernel, (deadline, calm), mask, None, Watch::Part);
    }
    // From a dead engine nothing comes any more; its channel would end every sleep.
    let mut atts = list.iter().filter_map(|entry| handle::ours(entry.fd)).map(|sock| sock.att);
    let has_orphans = atts.clone().next().is_some();
    let att = atts.find(|att| att.is_alive());
    if att.is_none() {
        kernel_part(list, kernel); // What was ours when the kernel's part was made is not any more.
    }
    let borrowed = att.and_then(|att| poll_set::borrow(att).ok());
    let watch = match &borrowed {
        Some(borrowed) => watch_all(list, interests, borrowed),
        None if att.is_some() => Watch::Part,
        None if has_orphans => Watch::Orphans,
        None => Watch::All,
    };
    if let Some([bell, channel]) = kernel.last_chunk_mut::<2>() {
        let of = |fd, events| pollfd { fd, events, revents: 0 };
        // Nothing, where those of an engine that died meanwhile stood.
        *bell =
            of(borrowed.as_ref().map_or(-1, |borrowed| borrowed.set.local.bell.load(Relaxed)), libc::POLLIN);
        *channel =
            of(borrowed.as_ref().map_or(-1, |borrowed| borrowed.set.att.channel().fd()), libc::POLLRDHUP);
    }
    let result = sleep_loop(list, kernel, (deadline, calm), mask, borrowed.as_ref(), watch);
    if let Some(borrowed) = &borrowed {
        for (entry, interest) in list.iter().zip(interests.iter()) {
            unwatch(entry.fd, *interest, borrowed);
        }
    }
    result
}

/// Who wakes a sleeper.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Whatever happens to a socket of the list.
    All,
    /// There was no room for some, which are looked at now and then.
    Part,
    /// Listeners whose engine died, and the kernel's part: another thread, or we, may find them another engine.
    Orphans,
}

impl Watch {
    /// The longest that a sleeper sleeps in one piece, ns.
    const fn patience(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Part => SLICE_NS,
            Self::Orphans => ORPHANS_NS,
        }
    }
}

/// Puts an interest in each of our sockets into the borrowed set.
fn watch_all(list: &[pollfd], interests: &mut [u32], borrowed: &poll_set::Borrowed) -> Watch {
    let mut watch = Watch::All;
    for (at, (entry, interest)) in list.iter().zip(interests.iter_mut()).enumerate() {
        let Some(sock) = handle::ours(entry.fd) else { continue };
        if sock.att.index() != borrowed.set.att.index() {
            watch = Watch::Part;
            continue;
        }
        let events = u32::from(entry.events as u16);
        match borrowed.set.add(&sock, events, at as u64) {
            Ok(index) => *interest = index,
            Err(_) => watch = Watch::Part,
        }
    }
    watch
}

fn unwatch(fd: c_int, interest: u32, borrowed: &poll_set::Borrowed) {
    if interest == NOT_WATCHED {
        return;
    }
    if let Some(sock) = handle::ours(fd) {
        for cell in crate::set::members(&sock) {
            let member = utcp_abi::set::Member::unpack(cell.load(Acquire));
            if member.is_some_and(|m| m.interest == interest && m.set == borrowed.set.index) {
                cell.store(0, SeqCst);
            }
        }
        lane::refresh(&sock);
    }
    borrowed.set.release(interest);
}

fn sleep_loop(
    list: &mut [pollfd],
    kernel: &mut [pollfd],
    (deadline, calm): (Option<u64>, &Calm<'_>),
    mask: *const sigset_t,
    borrowed: Option<&poll_set::Borrowed>,
    watch: Watch,
) -> Sys<Option<usize>> {
    loop {
        let mut is_orphaned = watch == Watch::Orphans;
        if let Some(borrowed) = borrowed {
            borrowed.set.shared.bell.arm();
        }
        let mut left = deadline.map(|deadline| deadline.saturating_sub(sys::now_ns()));
        let over = left == Some(0);
        if look(list) > 0 {
            left = Some(0);
        } else if watch != Watch::All {
            left = Some(left.unwrap_or(u64::MAX).min(watch.patience()));
        }
        match borrowed {
            Some(borrowed) => {
                calm.asleep(&borrowed.set, || kernel_poll(kernel, left, mask))?;
                if let Some([bell, channel]) = kernel.last_chunk::<2>() {
                    if bell.revents != 0 {
                        sys::bell_reset(bell.fd);
                    }
                    if channel.revents != 0 {
                        death::notice(borrowed.set.att);
                        is_orphaned = !borrowed.set.att.is_alive();
                    }
                }
            }
            // What is behind the program's entries, if there is anything, names nothing.
            None if calm.is_over() => return Err(Errno(libc::EINTR)),
            None => _ = kernel_poll(kernel, left, mask)?,
        }
        look(list);
        let count = merge(list, kernel);
        if count > 0 || over {
            return Ok(Some(count));
        }
        if is_orphaned {
            return Ok(None);
        }
    }
}

/// The kernel's poll of `list`. An epoll descriptor whose set rang for nothing is asked once more.
fn kernel_poll(list: &mut [pollfd], left: Option<u64>, mask: *const sigset_t) -> Sys<usize> {
    let count = kernel_poll_once(list, left, mask)?;
    let stale = nested::any() && {
        // Every one is looked at: what is not ready must not seem so.
        list.iter()
            .filter(|entry| entry.revents & libc::POLLIN != 0)
            .filter(|entry| nested::look(entry.fd))
            .count()
            > 0
    };
    if stale { kernel_poll_once(list, Some(0), core::ptr::null()) } else { Ok(count) }
}

/// The kernel's poll, through libc: it is a cancellation point, as the program's call was.
fn kernel_poll_once(list: &mut [pollfd], left: Option<u64>, mask: *const sigset_t) -> Sys<usize> {
    let time = left.map(sys::timespec);
    let time = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: our list, our timeout, the program's mask.
    let count = unsafe { real::ppoll(list.as_mut_ptr(), list.len() as c_ulong, time, mask) };
    usize::try_from(count).map_err(|_| errno::get())
}

/// Waits until `fd` can be read (or a connection accepted); false after `timeout_us` (0: for ever).
/// A handler that wants calls restarted does not end it if there is no timeout.
pub fn until_readable(fd: c_int, timeout_us: u64) -> Sys<bool> {
    let timeout = (timeout_us != 0).then(|| timeout_us.saturating_mul(1000));
    let calm = Calm::now(Ending::with_timeout(timeout));
    loop {
        let mut list = [pollfd { fd, events: libc::POLLIN, revents: 0 }];
        let counted = Calm::now(Ending::Every);
        match wait_calmly(&mut list, timeout, core::ptr::null(), &calm) {
            Err(Errno(libc::EINTR))
                if timeout.is_none() && !calm.is_over() && (counted.is_over() || signals::all_restart()) => {}
            result => return result.map(|count| count > 0),
        }
    }
}
