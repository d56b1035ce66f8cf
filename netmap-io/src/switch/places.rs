//! Registered tuples and whose they are, made for a question per frame.
//!
//! ```text
//!  places  [key 24 bytes, owner][key, owner] │ …   two to a cache line; linear probing, never more than half full
//! ```
//!
//! A question is put in two steps, so that those of a whole batch of frames wait for memory together:
//! [`Places::look`] hashes and fetches, [`Places::owner`] reads.

use std::hash::{BuildHasher, Hasher};

use super::table::Owner;
use crate::{Tuple, sys};

/// A tuple as it is hashed and compared: address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u64; 3]);

impl Key {
    /// Of an IPv4 address in its mapped form, a port and a protocol.
    #[inline]
    pub(super) fn v4(addr: u32, port: u16, proto: u8) -> Self {
        Self([0, 0xffff_0000_0000 | u64::from(addr), Self::end(port, proto)])
    }

    /// Of an IPv6 address, a port and a protocol.
    #[inline]
    pub(super) fn v6(addr: u128, port: u16, proto: u8) -> Self {
        Self([(addr >> 64) as u64, addr as u64, Self::end(port, proto)])
    }

    #[inline]
    fn end(port: u16, proto: u8) -> u64 {
        u64::from(port) << 8 | u64::from(proto)
    }

    fn tuple(self) -> Tuple {
        let [high, low, end] = self.0;
        let addr = u128::from(high) << 64 | u128::from(low);
        Tuple { addr: addr.into(), port: (end >> 8) as u16, proto: crate::Proto(end as u8) }
    }
}

impl From<Tuple> for Key {
    fn from(tuple: Tuple) -> Self {
        Self::v6(tuple.addr.to_bits(), tuple.port, tuple.proto.0)
    }
}

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    key: Key,
    hash: u64,
}

/// One place: a key and its owner plus one; 0 = empty.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
struct Place {
    key: Key,
    owner: u64,
}

const EMPTY: Place = Place { key: Key([0; 3]), owner: 0 };
const FEWEST: usize = 64;

/// The places. Keyed by a random hash: what is registered or asked for can't be chosen to collide.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
    len: usize,
    hasher: ahash::RandomState,
}

impl Default for Places {
    fn default() -> Self {
        Self { places: vec![EMPTY; FEWEST], len: 0, hasher: ahash::RandomState::new() }
    }
}

impl Places {
    /// Begins a question.
    #[inline]
    pub(super) fn look(&self, key: Key) -> Look {
        let hash = self.hash(key);
        sys::prefetch(self.places.get(hash as usize & self.mask()));
        Look { key, hash }
    }

    /// Its answer.
    #[inline]
    pub(super) fn owner(&self, look: Look) -> Option<Owner> {
        self.find(look).map(|at| (self.places[at].owner - 1) as Owner)
    }

    /// Whose `tuple` is.
    pub(super) fn get(&self, tuple: Tuple) -> Option<Owner> {
        self.owner(self.look(tuple.into()))
    }

    /// Makes `tuple` somebody's, whoever had it.
    pub(super) fn insert(&mut self, tuple: Tuple, owner: Owner) {
        let look = self.look(tuple.into());
        let owner = u64::from(owner) + 1;
        if let Some(at) = self.find(look) {
            self.places[at].owner = owner;
            return;
        }
        if (self.len + 1) * 2 > self.places.len() {
            let twice = vec![EMPTY; self.places.len() * 2];
            for place in std::mem::replace(&mut self.places, twice).into_iter().filter(|p| p.owner != 0) {
                self.put(place);
            }
        }
        self.put(Place { key: look.key, owner });
        self.len += 1;
    }

    /// Takes `tuple` out.
    pub(super) fn remove(&mut self, tuple: Tuple) {
        let Some(mut gap) = self.find(self.look(tuple.into())) else { return };
        let mask = self.mask();
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let place = self.places[at];
            if place.owner == 0 {
                break;
            }
            // It moves into the gap unless its own place lies behind the gap, going round.
            let home = self.hash(place.key) as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.places[gap] = place;
                gap = at;
            }
        }
        self.places[gap] = EMPTY;
        self.len -= 1;
    }

    /// Every tuple of `owner`, who gets `heir` in its stead.
    pub(super) fn inherit(&mut self, owner: Owner, heir: Owner) -> Vec<Tuple> {
        let of_owner = self.places.iter_mut().filter(|place| place.owner == u64::from(owner) + 1);
        let taken = of_owner.map(|place| {
            place.owner = u64::from(heir) + 1;
            place.key.tuple()
        });
        taken.collect()
    }

    /// How many tuples `owner` has.
    pub(super) fn count(&self, owner: Owner) -> usize {
        self.places.iter().filter(|place| place.owner == u64::from(owner) + 1).count()
    }

    #[inline]
    fn hash(&self, Key([high, low, end]): Key) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(u128::from(high) << 64 | u128::from(low));
        hasher.write_u64(end);
        hasher.finish()
    }

    #[inline]
    fn mask(&self) -> usize {
        self.places.len() - 1
    }

    /// Half of the places are empty, and an empty one ends every search.
    #[inline]
    fn find(&self, look: Look) -> Option<usize> {
        let mut at = look.hash as usize & self.mask();
        loop {
            let place = &self.places[at];
            if place.owner == 0 {
                return None;
            }
            if place.key == look.key {
                return Some(at);
            }
            at = (at + 1) & self.mask();
        }
    }

    fn put(&mut self, place: Place) {
        let mut at = self.hash(place.key) as usize & self.mask();
        while self.places[at].owner != 0 {
            at = (at + 1) & self.mask();
        }
        self.places[at] = place;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::Proto;

    /// Against a map of the standard library, through growth, replacement and holes.
    #[test]
    fn they_agree_with_a_map() {
        let mut places = Places::default();
        let mut map: HashMap<Tuple, Owner> = HashMap::new();
        let mut random = 1u64;
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (random >> 40) as u32 % 2000;
            let tuple = Tuple::new(Ipv4Addr::from(number / 7), (number % 7) as u16, Proto::TCP);
            let owner = (random >> 33) as u32 % 5;
            if random >> 36 & 1 == 0 {
                places.insert(tuple, owner);
                map.insert(tuple, owner);
            } else {
                places.remove(tuple);
                map.remove(&tuple);
            }
            assert_eq!(places.get(tuple), map.get(&tuple).copied());
            assert_eq!(places.len, map.len());
        }
        for (tuple, owner) in &map {
            assert_eq!(places.get(*tuple), Some(*owner), "{tuple}");
        }
        let of_three = map.values().filter(|owner| **owner == 3).count();
        assert_eq!(places.count(3), of_three);
        let taken = places.inherit(3, 0);
        assert!(taken.len() == of_three && taken.iter().all(|tuple| places.get(*tuple) == Some(0)));
        assert_eq!(places.count(3), 0);
    }
}
