//! TCP_FASTOPEN_KEY: one key of 16 bytes, or that and the one before it, in words of the socket where the engine reads them.
//!
//! The keys of a listener make the cookies of Fast Open for it. On any other socket they do nothing until it listens.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use libc::socklen_t;
use utcp_abi::info;

use crate::handle::Sock;
use crate::sys::{self, Errno, Sys};
use crate::user;

/// Two keys of two words.
const WORDS: usize = 4;
/// Bytes of one key, and of two.
const LEN: usize = 16;
const LEN_BOTH: usize = 2 * LEN;

/// What a socket has of its own.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// The key in use, and the one before it.
    pub words: [u64; WORDS],
    /// How many of them count: 1 or 2.
    pub count: u32,
}

/// Keeps `keys` for the engine.
fn put(sock: &Sock, keys: Keys) {
    let Some(info) = sock.att.region().info(sock.slot()) else { return };
    for (to, word) in info.words.iter().skip(info::FAST_OPEN_KEYS).zip(keys.words) {
        to.store(word, Relaxed);
    }
    // Release: the words before their number.
    sock.shared.options.fastopen_keys.store(keys.count, Release);
}

/// The keys that `sock` has of its own.
pub fn of(sock: &Sock) -> Option<Keys> {
    let count = sock.shared.options.fastopen_keys.load(Acquire);
    let info = sock.att.region().info(sock.slot()).filter(|_| count > 0)?;
    let mut words = [0; WORDS];
    for (word, from) in words.iter_mut().zip(info.words.iter().skip(info::FAST_OPEN_KEYS)) {
        *word = from.load(Relaxed);
    }
    Some(Keys { words, count })
}

/// `setsockopt`: 16 bytes, or 32.
///
/// # Safety
/// `value` has `len` readable bytes.
pub unsafe fn set(sock: &Sock, value: *const c_void, len: socklen_t) -> Sys<()> {
    let keys = match len as usize {
        LEN => {
            // SAFETY: the length was checked.
            let [a, b]: [u64; 2] = unsafe { user::fetch(value.cast()) }?;
            Keys { words: [a, b, 0, 0], count: 1 }
        }
        // SAFETY: as above.
        LEN_BOTH => Keys { words: unsafe { user::fetch(value.cast()) }?, count: 2 },
        _ => return Err(Errno(libc::EINVAL)),
    };
    put(sock, keys);
    Ok(())
}

/// Sets on kernel socket `fd` what was set on ours.
pub fn replay(sock: &Sock, fd: c_int) {
    match of(sock) {
        None => {}
        Some(Keys { words: [a, b, ..], count: 1 }) => {
            let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, &[a, b]);
        }
        Some(Keys { words, .. }) => {
            let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, &words);
        }
    }
}

/// Learns the keys that kernel socket `fd`, which listens, has of its own.
pub fn import(sock: &Sock, fd: c_int) {
    let mut words = [0u64; WORDS];
    let mut len = size_of_val(&words) as socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY);
    let asked =
        sys::call!(libc::SYS_getsockopt, fd, level, name, sys::at_mut(&mut words), sys::at_mut(&mut len));
    let count = (len as usize / LEN) as u32;
    if asked.is_ok() && count > 0 {
        put(sock, Keys { words, count });
    }
}

/// `new` takes the place of `old`.
pub fn carry(old: &Sock, new: &Sock) {
    if let Some(keys) = of(old) {
        put(new, keys);
    }
}
