//! Arithmetic of a byte stream: positions count bytes for ever, the buffer is a power of two.
//!
//! ```text
//!            head                         tail
//!             ▼                            ▼
//!  [ free     B B B B B B B B B B B B B B B      free ]     offset = position & (capacity − 1)
//! ```
//!
//! A range of positions is at most two slices of the buffer. Whoever owns `head` may read
//! `[head, tail)`, whoever owns `tail` may write `[tail, head + capacity)`.

use crate::PeerCorrupt;

/// A part of a buffer: offset and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    /// Offset from the start of the buffer.
    pub offset: usize,
    /// Length.
    pub len: usize,
}

/// The (at most) two pieces of a buffer of `capacity` bytes that hold `len` bytes from `position`.
/// `len` beyond the capacity is cut: no input leads out of the buffer.
#[must_use]
pub fn pieces(capacity: u64, position: u64, len: u64) -> [Piece; 2] {
    if capacity == 0 {
        return [Piece::default(); 2];
    }
    let len = len.min(capacity);
    let offset = position & (capacity - 1);
    let first = len.min(capacity - offset);
    [Piece { offset: offset as usize, len: first as usize }, Piece { offset: 0, len: (len - first) as usize }]
}

/// The engine's check of the program's consumer index: it may only move forward, up to `tail`.
///
/// # Errors
/// [`PeerCorrupt`] for any other value.
pub fn check_head(seen: u64, head: u64, tail: u64) -> Result<u64, PeerCorrupt> {
    if head.wrapping_sub(seen) <= tail.wrapping_sub(seen) {
        return Ok(head.wrapping_sub(seen));
    }
    Err(PeerCorrupt { what: "rx stream: head left [old head, tail]", value: head })
}

/// The engine's check of the program's producer index: it may only move forward, up to a full buffer.
///
/// # Errors
/// [`PeerCorrupt`] for any other value.
pub fn check_tail(seen: u64, tail: u64, head: u64, capacity: u64) -> Result<u64, PeerCorrupt> {
    let added = tail.wrapping_sub(seen);
    if added <= capacity.saturating_sub(seen.wrapping_sub(head)) {
        return Ok(added);
    }
    Err(PeerCorrupt { what: "tx stream: tail left [old tail, head + capacity]", value: tail })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn wraps_in_two_pieces() {
        let [a, b] = pieces(16, 14, 5);
        assert_eq!((a, b), (Piece { offset: 14, len: 2 }, Piece { offset: 0, len: 3 }));
        let [a, b] = pieces(16, 16, 16);
        assert_eq!((a.len, b.len), (16, 0));
        let [a, b] = pieces(16, 3, 1000);
        assert_eq!(a.len + b.len, 16, "never more than the buffer");
        assert_eq!(pieces(0, 3, 10), [Piece::default(); 2]);
    }

    #[test]
    fn hostile_indices_are_refused() {
        assert_eq!(check_head(10, 15, 20), Ok(5));
        assert_eq!(check_head(10, 10, 10), Ok(0));
        for head in [9, 21, 0, u64::MAX, 1 << 63] {
            assert!(check_head(10, head, 20).is_err(), "head {head}");
        }
        assert_eq!(check_tail(10, 26, 10, 16), Ok(16));
        assert_eq!(check_tail(10, 10, 0, 16), Ok(0));
        for tail in [9, 27, 0, u64::MAX] {
            assert!(check_tail(10, tail, 10, 16).is_err(), "tail {tail}");
        }
        assert!(check_tail(10, 17, 0, 16).is_err(), "ten bytes are not acknowledged yet");
    }
}
