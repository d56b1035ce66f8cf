//! `select` and `pselect`, by way of `poll`.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use libc::{fd_set, pollfd, sigset_t, timespec, timeval};

use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{errno, guard, poll, ready, tls, user};

/// Descriptors that fit into the list on the stack.
const SMALL: usize = 128;
/// What makes a descriptor readable, writable, exceptional to `select`.
const READABLE: u32 = ready::IN | 0x80 | ready::HUP | ready::ERR;
const WRITABLE: u32 = ready::OUT | 0x200 | ready::ERR;
const EXCEPTIONAL: u32 = 0x2;

/// The three sets of a call.
#[derive(Clone, Copy)]
struct Sets {
    list: [*mut u8; 3],
    count: c_int,
}

impl Sets {
    fn new(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set) -> Self {
        let list: [*mut u8; 3] = [read.cast(), write.cast(), except.cast()];
        let bytes = usize::try_from(count).unwrap_or(0).div_ceil(64) * 8;
        // What can't be read is the kernel's to refuse.
        let is_bad = |set: &*mut u8| !set.is_null() && user::probe(*set, bytes).is_err();
        let count = if !guard::stands() || list.iter().any(is_bad) { 0 } else { count };
        Self { list, count }
    }

    /// Whether `fd` is in `set`.
    fn has(set: *mut u8, fd: c_int) -> bool {
        // SAFETY: the program promises that each set that is not null has room for `count` numbers.
        !set.is_null() && unsafe { *set.add(fd as usize / 8) } >> (fd as usize % 8) & 1 == 1
    }

    /// What `fd` is asked for, as poll events.
    fn events(&self, fd: c_int) -> u16 {
        let [read, write, except] = self.list;
        let mut events = 0;
        for (set, bits) in [(read, 0x1), (write, 0x4), (except, 0x2)] {
            events |= if Self::has(set, fd) { bits } else { 0 };
        }
        events
    }

    /// The numbers that are in any set.
    fn numbers(&self) -> impl Iterator<Item = c_int> {
        let sets = *self;
        (0..self.count).filter(move |fd| sets.events(*fd) != 0)
    }

    /// Empties the sets.
    fn clear(&self) {
        // The kernel works in words of 8 bytes.
        let bytes = (self.count as usize).div_ceil(64) * 8;
        for set in self.list.iter().filter(|set| !set.is_null()) {
            // SAFETY: as in `has`; libc's sets are arrays of 8-byte words.
            unsafe { core::ptr::write_bytes(*set, 0, bytes) };
        }
    }

    /// Puts `fd` into `set`.
    fn put(set: *mut u8, fd: c_int) {
        // SAFETY: as in `has`.
        unsafe { *set.add(fd as usize / 8) |= 1 << (fd as usize % 8) };
    }
}

/// Runs one select; the number of bits set.
fn run(sets: Sets, timeout: Option<u64>, mask: *const sigset_t) -> Sys<usize> {
    let wanted = sets.numbers().count();
    let mut small = MaybeUninit::<[pollfd; SMALL]>::uninit();
    let bytes = wanted * size_of::<pollfd>();
    let mapped = if wanted > SMALL { Some(sys::map_private(bytes)?) } else { None };
    #[allow(clippy::cast_ptr_alignment, reason = "a page")]
    let base = mapped.map_or(small.as_mut_ptr().cast::<pollfd>(), <*mut u8>::cast::<pollfd>);
    for (at, fd) in sets.numbers().take(wanted).enumerate() {
        // SAFETY: `wanted` entries have room.
        unsafe { base.add(at).write(pollfd { fd, events: sets.events(fd) as i16, revents: 0 }) };
    }
    // SAFETY: just written.
    let list = unsafe { core::slice::from_raw_parts_mut(base, wanted) };
    let result = poll::wait(list, timeout, mask).and_then(|_| give_back(sets, list));
    if let Some(mapped) = mapped {
        sys::unmap(mapped, bytes);
    }
    result
}

fn give_back(sets: Sets, list: &[pollfd]) -> Sys<usize> {
    if list.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
        return Err(Errno(libc::EBADF));
    }
    sets.clear();
    let mut count = 0;
    for entry in list {
        let found = u32::from(entry.revents as u16);
        let asked = entry.events;
        let meanings = [(0x1, READABLE), (0x4, WRITABLE), (0x2, EXCEPTIONAL)];
        for ((bit, mask), set) in meanings.into_iter().zip(sets.list) {
            if asked & bit != 0 && found & mask != 0 {
                Sets::put(set, entry.fd);
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Whether a call with these sets is more than the kernel's alone. (libc's select reads the time itself: whoever calls by number must get
/// EFAULT for it.)
pub fn is_ours(count: c_int, read: usize, write: usize, except: usize) -> bool {
    concerns_us(&Sets::new(count, read as *mut fd_set, write as *mut fd_set, except as *mut fd_set))
}

/// `pselect6(2)`, of which only our half comes here: its mask stands in a pair with its length.
///
/// # Safety
/// As the system call.
pub unsafe fn pselect6(
    count: c_int,
    sets: [*mut fd_set; 3],
    timeout: *const timespec,
    mask: *const [usize; 2],
) -> c_int {
    let [read, write, except] = sets;
    let mask = if mask.is_null() {
        Ok([0; 2])
    } else {
        // SAFETY: the program's own structure; not null.
        unsafe { user::fetch(mask) }
    };
    match mask {
        // SAFETY: the program's own arguments.
        Ok([mask, _]) => unsafe { pselect(count, read, write, except, timeout, mask as *const sigset_t) },
        Err(error) => errno::fail(error),
    }
}

fn concerns_us(sets: &Sets) -> bool {
    sets.count > 0 && sets.numbers().any(poll::is_more) && !tls::thread().is_vfork_child()
}

/// `select(2)`. As Linux does, what is left of the time is written back.
///
/// # Safety
/// As `select`.
pub unsafe fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let sets = Sets::new(count, read, write, except);
    if !concerns_us(&sets) {
        // SAFETY: the program's own arguments.
        return unsafe { real::select(count, read, write, except, timeout) };
    }
    if timeout.is_null() {
        return errno::into_libc(run(sets, None, core::ptr::null()));
    }
    // SAFETY: the program's own structure; not null.
    let time = match unsafe { user::fetch(timeout) } {
        Ok(time) => time,
        Err(error) => return errno::fail(error),
    };
    let (Ok(s), Ok(us)) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec)) else {
        return errno::fail(Errno(libc::EINVAL));
    };
    let ns = s.saturating_mul(1_000_000_000).saturating_add(us.saturating_mul(1000));
    let start = sys::now_ns();
    let result = run(sets, Some(ns), core::ptr::null());
    let left = ns.saturating_sub(sys::now_ns().wrapping_sub(start));
    let left =
        timeval { tv_sec: (left / 1_000_000_000) as i64, tv_usec: (left % 1_000_000_000 / 1000) as i64 };
    // SAFETY: as above.
    unsafe { timeout.write_unaligned(left) };
    errno::into_libc(result)
}

/// `pselect(2)`.
///
/// # Safety
/// As `pselect`.
pub unsafe fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = Sets::new(count, read, write, except);
    if !concerns_us(&sets) {
        // SAFETY: the program's own arguments.
        return unsafe { real::pselect(count, read, write, except, timeout, mask) };
    }
    let limit = if timeout.is_null() {
        None
    } else {
        // SAFETY: the program's own structure; not null.
        match unsafe { user::fetch(timeout) }.and_then(poll::nanoseconds) {
            Ok(ns) => Some(ns),
            Err(error) => return errno::fail(error),
        }
    };
    errno::into_libc(run(sets, limit, mask))
}
