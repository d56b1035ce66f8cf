//! Fragments that came before the first one of their packet, which alone says whose they are: they wait for it, within limits.
//! Nobody sees them meanwhile, since a stack is to see nothing of another's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::table::Owner;
use crate::frame::Fragmented;

/// Fragments that wait, and their bytes.
const FRAMES_MAX: usize = 64;
const BYTES_MAX: usize = 256 * 1024;
/// How long: what overtook a packet's first fragment did so by moments, and names come again.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Waiting {
    name: Fragmented,
    since: Instant,
    frame: Vec<u8>,
}

/// Fragments that wait.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Those whose first fragment came, and whose they are by that.
    found: Vec<(Owner, Vec<u8>)>,
}

impl Early {
    /// One more; the oldest make room.
    pub(super) fn put(&mut self, name: Fragmented, frame: &[u8]) {
        self.waiting.push_back(Waiting { name, since: Instant::now(), frame: frame.to_vec() });
        self.bytes += frame.len();
        while self.waiting.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.bytes -= oldest.frame.len();
        }
    }

    /// The first fragment of a packet came, and is somebody's or not: so are those that waited for it.
    pub(super) fn settle(&mut self, name: &Fragmented, owner: Option<Owner>) {
        let Self { waiting, bytes, found } = self;
        waiting.retain_mut(|one| {
            let (its, late) = (one.name == *name, one.since.elapsed() > PATIENCE);
            if its || late {
                *bytes -= one.frame.len();
            }
            if let (true, false, Some(owner)) = (its, late, owner) {
                found.push((owner, std::mem::take(&mut one.frame)));
            }
            !(its || late)
        });
    }

    /// What has found its owner since the last time.
    pub(super) fn take(&mut self) -> Vec<(Owner, Vec<u8>)> {
        std::mem::take(&mut self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Arriving, arriving};

    fn name(ident: u8) -> Fragmented {
        let mut frame = vec![0; 60];
        (frame[12], frame[14], frame[19], frame[21], frame[23]) = (8, 0x45, ident, 1, 6);
        match arriving(&frame) {
            Some(Arriving::Rest(name)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn they_wait_for_their_first_within_limits() {
        let mut early = Early::default();
        early.put(name(1), b"one");
        early.put(name(2), b"two");
        early.put(name(1), b"more of one");
        assert_eq!(early.take(), []);
        early.settle(&name(3), Some(9));
        early.settle(&name(1), Some(7));
        assert_eq!(early.take(), [(7, b"one".to_vec()), (7, b"more of one".to_vec())]);
        early.settle(&name(1), Some(7));
        assert_eq!(early.take(), []);
        assert_eq!((early.waiting.len(), early.bytes), (1, 3));
        early.settle(&name(2), None);
        assert_eq!((early.take(), early.waiting.len(), early.bytes), (vec![], 0, 0));
        for n in 0..200_u8 {
            early.put(name(n), &[0; 100]);
        }
        assert_eq!((early.waiting.len(), early.bytes), (FRAMES_MAX, FRAMES_MAX * 100));
        early.put(name(9), &vec![0; BYTES_MAX]);
        assert_eq!((early.waiting.len(), early.bytes), (1, BYTES_MAX));
        early.put(name(9), &vec![0; BYTES_MAX + 1]);
        assert_eq!((early.waiting.len(), early.bytes), (0, 0));
    }
}
