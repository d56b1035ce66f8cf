//! The settings that come by the environment, each read once and without a lock.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::num::NonZeroUsize;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Every variable that utcp knows.
const KNOWN: [&[u8]; 16] = [
    b"UTCP_ENGINE",
    b"UTCP_STACK",
    b"UTCP_DISABLE",
    b"UTCP_DEVICE",
    b"UTCP_SPIN_US",
    b"UTCP_COALESCE_US",
    b"UTCP_CORES",
    b"UTCP_SHARDS",
    b"UTCP_FAULTS",
    b"UTCP_TRACE",
    b"UTCP_LOG",
    b"UTCP_LOCAL",
    b"UTCP_CUT_THROUGH",
    b"UTCP_BIN",
    b"UTCP_INHERIT",
    b"UTCP_IO_URING",
];

// With feature `std`, which other crates of a workspace build may turn on, `libc` leaves this to std.
#[link(name = "c")]
unsafe extern "C" {
    static environ: *const *const c_char;
}

/// A setting that whoever comes first reads. Two threads may read it at once and find the same, so nobody
/// waits, and a signal handler may be the first. (`once_cell::race` is this too, but a workspace
/// build gives it the feature `std` of other crates, and `std` may not come in here.)
struct Found(AtomicUsize);

impl Found {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn get_or_init(&self, read: impl FnOnce() -> NonZeroUsize) -> NonZeroUsize {
        if let Some(found) = NonZeroUsize::new(self.0.load(Acquire)) {
            return found;
        }
        let found = read();
        match self.0.compare_exchange(0, found.get(), Release, Relaxed) {
            Ok(_) => found,
            Err(first) => NonZeroUsize::new(first).unwrap_or(found),
        }
    }
}

/// The process's environment: pointers up to a null one.
pub fn environment() -> *const *const c_char {
    // SAFETY: libc's variable; it is read once.
    unsafe { environ }
}

/// The strings of a null-terminated array.
///
/// # Safety
/// `list` must be null or such an array, and stay so while the iterator is used.
pub unsafe fn strings<'a>(list: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
    let mut next = list;
    core::iter::from_fn(move || {
        if next.is_null() {
            return None;
        }
        // SAFETY: the array has a null at its end, where we stop, and strings before it.
        unsafe {
            let string = *next;
            if string.is_null() {
                return None;
            }
            next = next.add(1);
            Some(CStr::from_ptr(string))
        }
    })
}

/// Bytes of the environment that are remembered.
const REMEMBERED: usize = 8192;

/// What the constructor saw of the environment, one string behind the other: later the program may have
/// emptied it, or written its title over it.
struct Memory(UnsafeCell<[u8; REMEMBERED]>);

// SAFETY: written by the constructor alone, before `MEMORY_LEN` says that there is something.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; REMEMBERED]));
static MEMORY_LEN: AtomicUsize = AtomicUsize::new(0);

/// Whether an engine of ours may know of this variable. Not LD_PRELOAD: its own sockets are the kernel's.
fn is_remembered(entry: &[u8]) -> bool {
    [&b"UTCP_"[..], b"PATH=", b"HOME=", b"XDG_", b"RUST_LOG=", b"RUST_BACKTRACE="]
        .iter()
        .any(|name| entry.starts_with(name))
}

/// Remembers what concerns us of the environment. In the constructor.
pub fn remember() {
    // SAFETY: the constructor runs once, and nobody reads before the length is set.
    let memory = unsafe { &mut *MEMORY.0.get() };
    let mut len = 0usize;
    // SAFETY: the environment is an array of strings, or null.
    for entry in unsafe { strings(environment()) }.filter(|entry| is_remembered(entry.to_bytes())) {
        let bytes = entry.to_bytes_with_nul();
        // A PATH that is too long must not push out our own settings, nor they each other.
        let Some(room) = memory.get_mut(len..).and_then(|rest| rest.get_mut(..bytes.len())) else { continue };
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        len = len.wrapping_add(bytes.len());
    }
    MEMORY_LEN.store(len, Release);
}

/// The variables that concern us, as they were when the program started (or are, before the constructor ran).
pub fn settings() -> impl Iterator<Item = &'static CStr> {
    let len = MEMORY_LEN.load(Acquire);
    // SAFETY: written before the length, and never again.
    let memory: &'static [u8; REMEMBERED] = unsafe { &*MEMORY.0.get() };
    let mut rest = memory.get(..len).unwrap_or_default();
    let remembered = core::iter::from_fn(move || {
        let entry = CStr::from_bytes_until_nul(rest).ok()?;
        rest = rest.get(entry.count_bytes().wrapping_add(1)..).unwrap_or_default();
        Some(entry)
    });
    let now = if len == 0 { environment() } else { core::ptr::null() };
    // SAFETY: the environment is an array of strings, or null.
    remembered.chain(unsafe { strings(now) }.filter(|entry| is_remembered(entry.to_bytes())))
}

/// The value of variable `name`, one that [`settings`] has.
pub fn variable(name: &[u8]) -> Option<&'static CStr> {
    settings().find_map(|entry| value_of(entry, name))
}

/// The value in `entry` ("NAME=value") if its name is `name`.
pub fn value_of<'a>(entry: &'a CStr, name: &[u8]) -> Option<&'a CStr> {
    let rest = entry.to_bytes_with_nul().strip_prefix(name)?.strip_prefix(b"=")?;
    CStr::from_bytes_with_nul(rest).ok()
}

/// Whether the environment says that this program is to be left to the kernel.
pub fn disabled() -> bool {
    static DISABLED: Found = Found::new();
    let found = DISABLED.get_or_init(|| {
        let off = variable(b"UTCP_ENGINE").is_some_and(|value| value == c"off");
        let disabled = variable(b"UTCP_DISABLE").is_some_and(|v| !matches!(v.to_bytes(), b"" | b"0"));
        NonZeroUsize::MIN.saturating_add(usize::from(off || disabled))
    });
    found.get() == 2
}

/// UTCP_SPIN_US in nanoseconds, if it is set and a number.
pub fn spin_ns() -> Option<u64> {
    static SPIN: Found = Found::new();
    let found = SPIN.get_or_init(|| {
        let us = variable(b"UTCP_SPIN_US").and_then(|value| number(value.to_bytes()));
        // 1: not set; otherwise nanoseconds + 2.
        let coded = us.map_or(1, |us| us.min(1_000_000).wrapping_mul(1000).wrapping_add(2));
        NonZeroUsize::new(coded as usize).unwrap_or(NonZeroUsize::MIN)
    });
    (found.get() as u64).checked_sub(2)
}

/// How many CPUs this process may use.
pub fn cpus() -> usize {
    static CPUS: Found = Found::new();
    let found = CPUS.get_or_init(|| {
        let mut mask = [0u64; 64];
        let bytes = crate::sys::call!(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(&mask),
            crate::sys::at_mut(&mut mask)
        );
        let ones = mask.iter().map(|word| word.count_ones() as usize).sum();
        NonZeroUsize::new(if bytes.is_ok() { ones } else { 1 }).unwrap_or(NonZeroUsize::MIN)
    });
    found.get()
}

/// The (last) number of bytes in a file of /proc/sys, or Linux's default for a buffer.
fn limit(found: &Found, path: &CStr) -> u32 {
    let read = || {
        let mut text = [0u8; 64];
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let file = crate::sys::call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags).ok()?;
        let len = crate::sys::read(file as i32, &mut text).unwrap_or(0);
        let _ = crate::sys::close(file as i32);
        let last = text.get(..len)?.trim_ascii().split(u8::is_ascii_whitespace).next_back()?;
        number(last).and_then(|bytes| NonZeroUsize::new(bytes as usize))
    };
    let bytes = found.get_or_init(|| read().or(NonZeroUsize::new(212_992)).unwrap_or(NonZeroUsize::MIN));
    bytes.get().min(i32::MAX as usize / 2) as u32
}

/// Largest SO_SNDBUF, before it is doubled.
pub fn sndbuf_max() -> u32 {
    static FOUND: Found = Found::new();
    limit(&FOUND, c"/proc/sys/net/core/wmem_max")
}

/// Largest SO_RCVBUF, before it is doubled.
pub fn rcvbuf_max() -> u32 {
    static FOUND: Found = Found::new();
    limit(&FOUND, c"/proc/sys/net/core/rmem_max")
}

/// To what Linux lets a receive buffer grow that nobody set.
pub fn rcvbuf_limit() -> u32 {
    static FOUND: Found = Found::new();
    limit(&FOUND, c"/proc/sys/net/ipv4/tcp_rmem")
}

/// The bound of every backlog.
pub fn backlog_max() -> u32 {
    static FOUND: Found = Found::new();
    limit(&FOUND, c"/proc/sys/net/core/somaxconn")
}

/// `UTCP_IO_URING=refuse`.
pub fn refuses_rings() -> bool {
    variable(b"UTCP_IO_URING").is_some_and(|value| value.to_bytes() == b"refuse")
}

/// A decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// What is wrong with the environment: the first variable that utcp does not know, or whose value it
/// does not understand, as "NAME=value".
pub fn mistake() -> Option<&'static CStr> {
    settings().find(|entry| is_mistake(entry.to_bytes()))
}

fn is_mistake(entry: &[u8]) -> bool {
    if !entry.starts_with(b"UTCP_") {
        return false;
    }
    let mut parts = entry.splitn(2, |byte| *byte == b'=');
    let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match name {
        b"UTCP_SPIN_US" => number(value).is_none(),
        b"UTCP_IO_URING" => !matches!(value, b"" | b"kernel" | b"refuse"),
        b"UTCP_DISABLE" => !matches!(value, b"" | b"0" | b"1"),
        b"UTCP_ENGINE" => !(value == b"off" || value.starts_with(b"/") || value.starts_with(b"@")),
        name => !KNOWN.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"1500"), Some(1500));
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [&b""[..], b"-1", b"1 ", b"18446744073709551616", b"x"] {
            assert_eq!(number(wrong), None);
        }
    }

    #[test]
    fn mistakes_are_found() {
        for right in [
            &b"UTCP_SPIN_US=20"[..],
            b"UTCP_ENGINE=off",
            b"UTCP_ENGINE=/run/x.sock",
            b"PATH=/bin",
            b"UTCP_LOG=x",
        ] {
            assert!(!is_mistake(right), "{right:?}");
        }
        for wrong in
            [&b"UTCP_SPIN=20"[..], b"UTCP_SPIN_US=fast", b"UTCP_DISABLE=yes", b"UTCP_ENGINE=of", b"UTCP_"]
        {
            assert!(is_mistake(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn values_are_cut_at_the_name() {
        assert_eq!(value_of(c"A=b=c", b"A"), Some(c"b=c"));
        assert_eq!(value_of(c"AB=c", b"A"), None);
    }
}
