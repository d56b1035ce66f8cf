//! In which order the events of one `epoll_wait` stand.
//!
//! The kernel reports members in the order in which they became ready, so a program sees what a peer sent over two connections in the
//! order in which it was sent. Our bits have no order; the engine says of each socket when something last came to it while nothing
//! waited, as does the sender of each stream of a pair region, and the events of one call are sorted by that. A time that is a
//! program's word may be a lie, which puts the liar's own events elsewhere.

use core::sync::atomic::Ordering::Relaxed;

use libc::epoll_event;

use crate::handle::Sock;
use crate::pair;

/// Events of one call that are sorted; further ones follow as they are found.
const SORTED: usize = 64;

/// When what waits at `sock` came, in ticks.
#[inline]
pub fn of(sock: &Sock) -> u64 {
    let told = sock.shared.news_at.load(Relaxed);
    // The engine says when a connection ends at which no bytes wait: then it is later than the last of them.
    pair::of(sock).map_or(told, |end| told.max(end.other().sent_at.load(Relaxed)))
}

/// The times of the first events of ours.
pub struct Arrivals {
    times: [u64; SORTED],
    len: usize,
}

impl Arrivals {
    /// None yet.
    pub const fn new() -> Self {
        Self { times: [0; SORTED], len: 0 }
    }

    /// The last of ours in `events` came at `time`: it goes where it belongs.
    #[inline]
    pub fn put(&mut self, events: &mut [epoll_event], time: u64) {
        let Some(place) = self.times.get_mut(self.len) else { return };
        *place = time;
        let first = events.len().wrapping_sub(self.len).wrapping_sub(1);
        let mut at = self.len;
        self.len = self.len.wrapping_add(1);
        while let Some(before) = at.checked_sub(1)
            && self.times.get(before).is_some_and(|earlier| *earlier > time)
        {
            self.times.swap(before, at);
            let now = first.wrapping_add(at);
            if now >= events.len() || now == 0 {
                return;
            }
            events.swap(now.wrapping_sub(1), now);
            at = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stand_in_order_of_time() {
        let event = |data| epoll_event { events: 1, u64: data };
        // Two of the kernel's stand before ours.
        let mut events = vec![event(99), event(98)];
        let mut arrivals = Arrivals::new();
        for (data, time) in (0..).zip([5, 3, 9, 0, 3, 7]) {
            events.push(event(data));
            arrivals.put(&mut events, time);
        }
        let order = events.iter().map(|event| event.u64).collect::<Vec<_>>();
        assert_eq!(order, [99, 98, 3, 1, 4, 0, 5, 2]);
        // So many that the last are not sorted.
        for data in 1000..1100 {
            events.push(event(data));
            arrivals.put(&mut events, 0);
        }
        assert_eq!(events.len(), 108);
        assert_eq!(events.last().map(|event| event.u64), Some(1099));
    }
}
