//! Extra buffers: for what must outlive its slot.
//!
//! ```text
//!  netmap_if.bufs_head ─► 17 ─► 23 ─► 42 ─► 0        each buffer's first word is the number of the next
//! ```
//!
//! The module hands out the chain at registration, and frees at close whatever chain stands there then. So it is taken
//! apart here, and what is left is put together again in the end. The chain comes from the module's memory, which others
//! can write: a number outside the memory, or a circle, ends it.

use super::region::Region;
use crate::ring::Buffers;

/// The extra buffers of one registration that nobody uses now.
#[derive(Debug)]
pub(crate) struct ExtraBuffers {
    free: Vec<u32>,
    buffers: Buffers,
}

// SAFETY: numbers of buffers, and where they are; the memory has no thread affinity, and each buffer one user.
unsafe impl Send for ExtraBuffers {}

impl ExtraBuffers {
    /// Those that a registration brought, at most `granted` of them.
    pub(crate) fn new(region: &Region, buffers: Buffers, granted: u32) -> Self {
        let mut free: Vec<u32> = Vec::new();
        let mut next = region.bufs_head();
        while next != 0 && free.len() < granted as usize {
            let Some(link) = buffers.link(next).filter(|_| !free.contains(&next)) else { break };
            free.push(next);
            next = link;
        }
        // Until they are given back, a crash loses them, and no buffer is in two places.
        region.set_bufs_head(0);
        Self { free, buffers }
    }

    /// How many nobody uses.
    pub(crate) fn count(&self) -> usize {
        self.free.len()
    }

    /// One to use. In return another one is given back some time.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// See [`Self::take`].
    pub(crate) fn give(&mut self, buf: u32) {
        debug_assert!(self.buffers.contains(buf), "buffer {buf} is none of this memory");
        self.free.push(buf);
    }

    /// Before the handle is closed: chains them again, for the module to free.
    pub(crate) fn give_back(&mut self, region: &Region) {
        let mut head = 0;
        for buf in self.free.drain(..) {
            self.buffers.set_link(buf, head);
            head = buf;
        }
        region.set_bufs_head(head);
    }
}
