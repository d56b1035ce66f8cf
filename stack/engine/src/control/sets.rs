//! The epoll sets of a process that ended while others of its program live on.
//!
//! Its sets would stay armed for ever: a listener whose workers take turns (EPOLLEXCLUSIVE) would ring a dead one,
//! and the slots would be used up by and by. Words of the region are all atomics, so this needs no shard.

use std::sync::atomic::Ordering;

use utcp_abi::Region;
use utcp_abi::listener::Listener;
use utcp_abi::set::{Member, Set};

/// Takes back the sets of process `pid`; `listeners` are the client's listener slots. A set that a forked child may
/// still use stays, but no listener relies on it alone any more.
pub(super) fn reclaim(region: Region, listeners: &[u32], pid: u32) {
    let mut dead = Vec::new();
    region.free_sets().for_each_clear(|index| {
        let owner = region.set(index).map(|set| set.owner_pid.load(Ordering::Acquire));
        if owner == Some(pid) && pid != 0 {
            dead.push(index);
        }
    });
    let (inherited, unused): (Vec<u32>, Vec<u32>) = dead
        .into_iter()
        .partition(|&index| region.set(index).is_some_and(|set| set.sharers.load(Ordering::Acquire) > 0));
    for listener in listeners.iter().filter_map(|&slot| region.listener(slot)) {
        forget(region, listener, &unused);
        share(listener, &inherited);
    }
    for index in unused {
        let (Some(set), Some(ready)) = (region.set(index), region.ready(index)) else { continue };
        retire(set);
        ready.take_all(|_| {});
        region.free_sets().set(index);
    }
}

fn retire(set: &Set) {
    set.owner_pid.store(0, Ordering::Relaxed);
    set.generation.fetch_add(1, Ordering::AcqRel);
    set.bell.word().store(0, Ordering::Release);
}

/// Takes the interests of `sets` out of a listener.
fn forget(region: Region, listener: &Listener, sets: &[u32]) {
    for cell in &listener.members {
        let word = cell.load(Ordering::Acquire);
        let Some(member) = Member::unpack(word).filter(|member| sets.contains(&member.set)) else { continue };
        if cell.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        if let Some(interest) = region.interest(member.interest) {
            interest.set.store(0, Ordering::Release);
            region.free_interests().set(member.interest);
        }
    }
}

/// `sets` are rung beside the others from now on, not instead of them.
fn share(listener: &Listener, sets: &[u32]) {
    for cell in &listener.members {
        let word = cell.load(Ordering::Acquire);
        if let Some(member) = Member::unpack(word).filter(|m| m.exclusive && sets.contains(&m.set)) {
            let shared = Member { exclusive: false, ..member }.pack();
            let _ = cell.compare_exchange(word, shared, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::client::ClientRegion;

    const EXCLUSIVE: Member = Member { set: 0, interest: 0, events: 1, exclusive: true };

    /// Two workers' sets on one listener; the first worker dies.
    fn worker_dies(forked: bool) -> (ClientRegion, [u32; 2]) {
        let shared = ClientRegion::new(1, 1, 0, "test".to_owned(), 1).expect("region");
        let region = shared.region();
        let mut sets = [0; 2];
        for (worker, set) in sets.iter_mut().enumerate() {
            *set = region.free_sets().claim().expect("a set");
            let interest = region.free_interests().claim().expect("an interest");
            let slot = region.set(*set).expect("set");
            slot.owner_pid.store(100 + worker as u32, Ordering::Relaxed);
            slot.sharers.store(u32::from(forked), Ordering::Relaxed);
            slot.bell.arm();
            region.interest(interest).expect("interest").set.store(*set + 1, Ordering::Relaxed);
            let word = Member { set: *set, interest, ..EXCLUSIVE }.pack();
            region.listener(0).expect("listener").members[worker].store(word, Ordering::Relaxed);
        }
        reclaim(region, &[0], 100);
        (shared, sets)
    }

    #[test]
    fn a_dead_worker_is_out_of_the_turn() {
        let (shared, [dead, alive]) = worker_dies(false);
        let region = shared.region();
        let members = &region.listener(0).expect("listener").members;
        assert_eq!(members[0].load(Ordering::Relaxed), 0);
        assert_eq!(Member::unpack(members[1].load(Ordering::Relaxed)).map(|m| m.set), Some(alive));
        assert!(region.free_sets().is_set(dead) && !region.free_sets().is_set(alive));
        assert!(!region.set(dead).expect("set").bell.is_armed());
        assert!(region.set(alive).expect("set").bell.is_armed());
    }

    #[test]
    fn a_set_that_a_child_may_use_stays() {
        let (shared, [dead, _]) = worker_dies(true);
        let region = shared.region();
        assert!(!region.free_sets().is_set(dead));
        let member = Member::unpack(region.listener(0).expect("listener").members[0].load(Ordering::Relaxed));
        assert!(member.is_some_and(|m| m.set == dead && !m.exclusive));
    }
}
