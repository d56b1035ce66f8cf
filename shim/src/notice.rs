//! The only words that the library ever says by itself: one line on standard error when a program cannot
//! be served.
//!
//! Said at most once in a process and its forked children, and only while descriptor 2 is still the
//! file that it was when the program started: a server that put a client's socket there must not send
//! our words to that client.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::sys;
use crate::text::Text;

static DEVICE: AtomicU64 = AtomicU64::new(0);
static INODE: AtomicU64 = AtomicU64::new(0);
static KNOWN: AtomicU32 = AtomicU32::new(0);
static SAID: AtomicU32 = AtomicU32::new(0);

/// What a line is about; each is said once.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Topic {
    /// No engine.
    Engine = 1,
    /// A variable of the environment.
    Environment = 2,
    /// Devices of an engine that was there before.
    Device = 4,
    /// Rings of io_uring.
    Rings = 8,
}

/// Remembers what standard error is. In the constructor.
pub fn remember() {
    if let Ok((device, inode)) = sys::identity(2) {
        DEVICE.store(device, Relaxed);
        INODE.store(inode, Relaxed);
        KNOWN.store(1, Release);
    }
}

/// Says "utcp: " and `parts`.
pub fn say(topic: Topic, parts: &[&[u8]]) {
    if SAID.fetch_or(topic as u32, Relaxed) & topic as u32 != 0 || KNOWN.load(Acquire) == 0 {
        return;
    }
    if sys::identity(2) != Ok((DEVICE.load(Relaxed), INODE.load(Relaxed))) {
        return;
    }
    let mut line = Text::<512>::new();
    line.push(b"utcp: ");
    for part in parts {
        line.push(part);
    }
    line.push(b"\n");
    let _ = sys::write(2, line.bytes());
}
