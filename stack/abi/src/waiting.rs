//! A connection that no program has accepted yet, and who may decide about it.
//!
//! ```text
//!  token word:   UNTAKEN | generation ──┬── accept: compare-and-swap ──► the token of a descriptor: the program's
//!  queue entry:  generation | slot      └── engine: compare-and-swap ──► 0: taken back, whoever popped the entry has died
//! ```
//!
//! Popping an entry of an accept queue owns nothing: between that and standing the connection on a descriptor a process
//! can die, or be stopped for as long as somebody likes. The token word is what decides, once, and whoever comes late
//! learns it before it has written a word. From the swap on the kernel tells the engine (a hang-up) if the process dies.

use crate::layout::SOCKETS_MAX;
use crate::socket::Socket;
use crate::sync::Ordering;

/// Set in the token word of a connection that nobody has accepted. No descriptor has such a token.
const UNTAKEN: u32 = 1 << 31;
/// Largest token of a descriptor.
pub const TOKEN_MAX: u32 = UNTAKEN - 1;
/// Bits of a queue entry that name the slot; the rest are the low bits of its generation.
const SLOT_BITS: u32 = SOCKETS_MAX.trailing_zeros();

/// The token word of a connection that waits on a slot in its `generation`-th use.
#[must_use]
pub fn untaken(generation: u32) -> u32 {
    UNTAKEN | generation
}

/// Whether a token word says that nobody has accepted the connection.
#[must_use]
pub fn is_untaken(token: u32) -> bool {
    token & UNTAKEN != 0
}

/// What stands in the accept queue for slot `sock` in its `generation`-th use.
#[must_use]
pub fn entry(sock: u32, generation: u32) -> u32 {
    generation << SLOT_BITS | sock & (SOCKETS_MAX - 1)
}

/// The slot that an entry names.
#[must_use]
pub fn slot_of(entry: u32) -> u32 {
    entry & (SOCKETS_MAX - 1)
}

/// Takes the connection of a popped `entry` for the descriptor with `token`: the slot's generation, or `None` if it is not
/// to be had any more and the slot perhaps another's.
#[must_use]
pub fn take(socket: &Socket, entry: u32, token: u32) -> Option<u32> {
    let word = socket.token.load(Ordering::Acquire);
    if !is_untaken(word) || word << SLOT_BITS != entry & !(SOCKETS_MAX - 1) {
        return None;
    }
    // Acquire pairs with the engine's Release of the mark: the slot's words are the connection's.
    socket.token.compare_exchange(word, token, Ordering::AcqRel, Ordering::Relaxed).ok()?;
    Some(word & !UNTAKEN)
}

/// Takes back what nobody has taken; false: somebody has.
#[must_use]
pub fn take_back(socket: &Socket, generation: u32) -> bool {
    socket.token.compare_exchange(untaken(generation), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn socket(generation: u32) -> Box<Socket> {
        // SAFETY: plain words; all zero is what a fresh region has.
        let socket: Box<Socket> = unsafe { Box::new(std::mem::zeroed()) };
        socket.token.store(untaken(generation), Ordering::Relaxed);
        socket
    }

    #[test]
    fn one_decides() {
        let queued = entry(77, 0xf_1234);
        assert_eq!(slot_of(queued), 77);
        let taken = socket(0xf_1234);
        assert_eq!(take(&taken, queued, 9), Some(0xf_1234));
        assert_eq!(taken.token.load(Ordering::Relaxed), 9);
        assert_eq!(take(&taken, queued, 10), None, "taken before");
        assert!(!take_back(&taken, 0xf_1234), "too late");
        let lost = socket(0xf_1234);
        assert!(take_back(&lost, 0xf_1234));
        assert_eq!(take(&lost, queued, 9), None, "taken back before");
    }

    #[test]
    fn a_late_entry_does_not_get_the_next_connection() {
        let late = socket(5);
        assert_eq!(take(&late, entry(3, 4), 9), None);
        assert!(is_untaken(late.token.load(Ordering::Relaxed)), "and has touched nothing");
        assert!(!take_back(&late, 4));
    }
}
