//! The engine's page: what every client may read of the engine, and how it hears of its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use utcp_abi::layout::MAGIC;
use utcp_abi::page::EnginePage;

use crate::sys;

const FUTEX_WAITERS: u32 = 0x8000_0000;

/// The page and the descriptor that clients map it from (read-only: the memory is sealed).
#[derive(Debug)]
pub struct Life {
    mapping: sys::Mapping,
    fd: OwnedFd,
}

impl Life {
    /// Makes the page; the calling thread is the one whose end it will announce.
    pub fn new(shards: u32) -> io::Result<Self> {
        let fd = sys::memfd(c"utcp-engine", size_of::<EnginePage>().next_multiple_of(4096))?;
        let mapping = sys::Mapping::new(&fd, size_of::<EnginePage>().next_multiple_of(4096))?;
        sys::seal(&fd, libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL)?;
        let life = Self { mapping, fd };
        let page = life.page();
        page.version.store(utcp_abi::ABI_VERSION, Ordering::Relaxed);
        page.shards.store(shards, Ordering::Relaxed);
        page.pid.store(std::process::id(), Ordering::Relaxed);
        page.life.store(sys::gettid() | FUTEX_WAITERS, Ordering::Relaxed);
        sys::mark_at_death(&page.life)?;
        page.magic.store(MAGIC, Ordering::Release);
        Ok(life)
    }

    /// The page.
    #[must_use]
    #[allow(clippy::cast_ptr_alignment, reason = "a mapping starts on a page")]
    pub fn page(&self) -> &EnginePage {
        // SAFETY: the mapping is at least as long as the page, aligned, zeroed at birth, and made of atomics.
        unsafe { &*self.mapping.base().cast::<EnginePage>() }
    }

    /// What clients map.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Says what listens on `port`: anything at all, something at 127.0.0.1, something at ::1.
    pub fn set_listening(&self, port: u16, any: bool, v4: bool, v6: bool) {
        let page = self.page();
        for (map, bit) in [(&page.listening, any), (&page.loopback_v4, v4), (&page.loopback_v6, v6)] {
            let word = &map[usize::from(port >> 6)];
            if bit {
                word.fetch_or(1 << (port & 63), Ordering::Release);
            } else {
                word.fetch_and(!(1 << (port & 63)), Ordering::Release);
            }
        }
    }
}
