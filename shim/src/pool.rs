//! Descriptors in stock: one end of a socket pair each, whose other end the engine holds.
//!
//! They come in batches over the control channel, `socket` and `accept` take the lowest, `close` puts
//! them back: in the steady state a connection costs no system call. Each has the token by which
//! the engine knows its end.

use core::ffi::c_int;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use utcp_abi::message::{Kind, Message};

use crate::attach::Attachment;
use crate::fd_table::{self, Entry};
use crate::sys::{self, Errno, Sys};

/// Descriptors that may wait at once.
const LEN: usize = 128;
/// Asked for at first: most programs have one or two sockets.
const FIRST: u64 = 4;
/// Asked for when those did not last.
const MORE: u64 = 32;

/// A stock of descriptors.
#[derive(Debug)]
pub struct Pool {
    /// Token in the upper half, descriptor + 1 in the lower; 0 = empty.
    places: [AtomicU64; LEN],
    refills: AtomicU64,
}

/// A descriptor and its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The number.
    pub fd: c_int,
    /// The engine's name for its end.
    pub token: u32,
}

fn pack(stand: Stand) -> u64 {
    u64::from(stand.token) << 32 | u64::from((stand.fd as u32).wrapping_add(1))
}

fn unpack(word: u64) -> Option<Stand> {
    let fd = (word as u32).checked_sub(1)?;
    Some(Stand { fd: fd as c_int, token: (word >> 32) as u32 })
}

impl Pool {
    /// An empty one.
    pub const fn new() -> Self {
        Self { places: [const { AtomicU64::new(0) }; LEN], refills: AtomicU64::new(0) }
    }

    /// Takes the lowest number, without asking the engine for more.
    fn try_take(&self) -> Option<Stand> {
        loop {
            let lowest = self
                .places
                .iter()
                .filter_map(|place| {
                    let word = place.load(Relaxed);
                    unpack(word).map(|stand| (stand.fd, word, place))
                })
                .min_by_key(|(fd, ..)| *fd);
            let (_, word, place) = lowest?;
            if place.compare_exchange(word, 0, AcqRel, Relaxed).is_ok() {
                return unpack(word);
            }
        }
    }

    /// Takes a descriptor; its entry in the table is still that of a waiting one.
    pub fn take(&self, attachment: &Attachment) -> Sys<Stand> {
        if let Some(stand) = self.try_take() {
            return Ok(stand);
        }
        self.refill(attachment)?;
        self.try_take().ok_or(Errno(libc::ENOBUFS))
    }

    /// Puts a descriptor back. False: there is no room.
    pub fn put(&self, stand: Stand) -> bool {
        fd_table::set(stand.fd, Entry::new(fd_table::Kind::Pool, 0, 0, 0));
        self.places.iter().any(|place| {
            place.load(Relaxed) == 0 && place.compare_exchange(0, pack(stand), AcqRel, Relaxed).is_ok()
        })
    }

    /// Takes `fd` out, if it waits here: the program is about to put something else at its number.
    pub fn remove(&self, fd: c_int) -> bool {
        self.places.iter().any(|place| {
            let word = place.load(Relaxed);
            unpack(word).is_some_and(|stand| stand.fd == fd)
                && place.compare_exchange(word, 0, AcqRel, Relaxed).is_ok()
        })
    }

    /// Closes every descriptor: in a forked child, or when the engine is gone.
    pub fn drain(&self) {
        for place in &self.places {
            if let Some(stand) = unpack(place.swap(0, AcqRel)) {
                fd_table::set(stand.fd, Entry::KERNEL);
                let _ = sys::close(stand.fd);
            }
        }
    }

    fn refill(&self, attachment: &Attachment) -> Sys<()> {
        let mut message = Message::new(Kind::Pool);
        message.a = if self.refills.fetch_add(1, Relaxed) == 0 { FIRST } else { MORE };
        let (reply, fds) = attachment.channel().request(&message, None)?;
        if reply.error != 0 {
            fds.close();
            return Err(Errno(reply.error));
        }
        for (fd, token) in fds.as_slice().iter().zip(reply.tokens) {
            let Some(fd) = off_the_standard_streams(*fd) else { continue };
            if !fd_table::covers(fd) || !self.put(Stand { fd, token }) {
                fd_table::set(fd, Entry::KERNEL);
                let _ = sys::close(fd);
            }
        }
        Ok(())
    }
}

/// Numbers below 3 mean standard input, output and error to whoever opens one by accident.
fn off_the_standard_streams(fd: c_int) -> Option<c_int> {
    if fd >= 3 {
        return Some(fd);
    }
    let moved = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3).ok();
    let _ = sys::close(fd);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_first_and_bounded() {
        let pool = Pool::new();
        for fd in [900_009, 900_003, 900_007] {
            assert!(pool.put(Stand { fd, token: fd as u32 * 2 }));
        }
        assert_eq!(pool.try_take(), Some(Stand { fd: 900_003, token: 1_800_006 }));
        assert!(pool.remove(900_009) && !pool.remove(900_009));
        assert_eq!(pool.try_take().map(|stand| stand.fd), Some(900_007));
        assert_eq!(pool.try_take(), None);
        for fd in 0..LEN as c_int {
            assert!(pool.put(Stand { fd: 900_100 + fd, token: 1 }));
        }
        assert!(!pool.put(Stand { fd: 900_200, token: 1 }));
    }
}
