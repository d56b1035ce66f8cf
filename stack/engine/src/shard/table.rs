//! Who a segment is for: four-tuple → flow, half-open record or TIME-WAIT record.

use std::sync::Arc;

use std::hash::{BuildHasher, Hasher};

use utcp_proto::FourTuple;

use super::directory::Directory;
use crate::sys;

/// What stands at a four-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Index into the shard's flows.
    Flow(u32),
    /// Index into the half-open records.
    HalfOpen(u32),
    /// Index into the TIME-WAIT records.
    TimeWait(u32),
}

/// Places of a fresh table.
const FEW: usize = 4096;
/// The share of slots in use at which the table grows.
const FULL_NUMERATOR: usize = 3;
const FULL_DENOMINATOR: usize = 4;

/// One place of the table: in the upper half the hash, which also says where it belongs; in the lower one what stands
/// there, its kind in two bits and its index in the others. 0 = empty. (A plain number, so that a fresh table is
/// untouched memory.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const EMPTY: Self = Self(0);

    fn new(tag: u32, entry: Entry) -> Self {
        let (kind, index) = match entry {
            Entry::Flow(index) => (1, index),
            Entry::HalfOpen(index) => (2, index),
            Entry::TimeWait(index) => (3, index),
        };
        debug_assert!(index <= INDEX_MASK, "more records than the table can name");
        Self(u64::from(tag) << 32 | u64::from(kind << KIND_SHIFT | index & INDEX_MASK))
    }

    fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn entry(self) -> Option<Entry> {
        let index = self.0 as u32 & INDEX_MASK;
        match self.0 as u32 >> KIND_SHIFT {
            1 => Some(Entry::Flow(index)),
            2 => Some(Entry::HalfOpen(index)),
            3 => Some(Entry::TimeWait(index)),
            _ => None,
        }
    }
}

const KIND_SHIFT: u32 = 30;
const INDEX_MASK: u32 = (1 << KIND_SHIFT) - 1;

/// A four-tuple as it is hashed and compared: both addresses, both ports.
type Name = [u64; 5];

#[inline]
fn name_of(tuple: &FourTuple) -> Name {
    let FourTuple { local, remote } = tuple;
    let halves = |addr: [u8; 16]| {
        let whole = u128::from_ne_bytes(addr);
        [whole as u64, (whole >> 64) as u64]
    };
    let ([a, b], [c, d]) = (halves(local.addr.0), halves(remote.addr.0));
    [a, b, c, d, u64::from(local.port) << 16 | u64::from(remote.port)]
}

/// Word by word: `==` is a call that reads more at a time than was written, and waits until it is in the cache.
#[inline]
fn is_same(one: &Name, other: &Name) -> bool {
    one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// The table. Keyed by a random hash: a peer can't choose four-tuples that collide.
///
/// ```text
///  slots  [tag, what][tag, what] …   eight to a cache line; linear probing from `tag & mask`
///  names  [four-tuple][four-tuple] … beside them, read where a tag agrees
/// ```
///
/// A lookup costs one line of each, and both can be fetched as soon as the hash is known: see [`FlowTable::prefetch`].
#[derive(Debug)]
pub struct FlowTable {
    slots: Vec<u64>,
    names: Vec<Name>,
    len: usize,
    /// Places that it has when there are more than a few entries.
    reserve: usize,
    hasher: ahash::RandomState,
    /// Other shards look there for what is here, and our number.
    directory: Option<(Arc<Directory>, u32)>,
}

impl FlowTable {
    /// With room for a few entries; when they are more, for `capacity` of them at once.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let reserve = (capacity * FULL_DENOMINATOR / FULL_NUMERATOR + 1).next_power_of_two();
        let (slots, names) = empty(reserve.min(FEW));
        Self { slots, names, len: 0, reserve, hasher: ahash::RandomState::new(), directory: None }
    }

    /// Enters what is put here into `directory`, too, as shard `own`'s.
    pub fn enter_into(&mut self, directory: Arc<Directory>, own: u32) {
        self.directory = Some((directory, own));
    }

    /// The hash of `tuple`, for [`FlowTable::prefetch`] and [`FlowTable::guess`].
    #[inline]
    #[must_use]
    pub fn tag(&self, tuple: &FourTuple) -> u32 {
        tag(&self.hasher, &name_of(tuple))
    }

    /// Fetches what a lookup of this hash will read.
    #[inline]
    pub fn prefetch(&self, tag: u32) {
        let at = tag as usize & self.mask();
        sys::prefetch(self.slots.get(at));
        sys::prefetch(self.names.get(at));
    }

    /// The flow that a lookup of this hash will probably find: by the hash alone, a hint.
    #[inline]
    #[must_use]
    pub fn guess(&self, tag: u32) -> Option<u32> {
        let mut at = tag as usize & self.mask();
        loop {
            let slot = Slot(*self.slots.get(at)?);
            match slot.entry()? {
                Entry::Flow(index) if slot.tag() == tag => return Some(index),
                _ => at = (at + 1) & self.mask(),
            }
        }
    }

    /// What stands at `tuple`.
    #[inline]
    #[must_use]
    pub fn get(&self, tuple: &FourTuple) -> Option<Entry> {
        let name = name_of(tuple);
        self.place(tag(&self.hasher, &name), &name).and_then(|at| Slot(self.slots[at]).entry())
    }

    /// Puts `entry` at `tuple`, replacing what was there.
    pub fn insert(&mut self, tuple: FourTuple, entry: Entry) {
        let name = name_of(&tuple);
        let tag = tag(&self.hasher, &name);
        if let Some(at) = self.place(tag, &name) {
            self.slots[at] = Slot::new(tag, entry).0;
            return;
        }
        if let Some((directory, own)) = &self.directory {
            directory.enter(&tuple, *own);
        }
        if (self.len + 1) * FULL_DENOMINATOR > self.slots.len() * FULL_NUMERATOR {
            self.grow();
        }
        self.put(Slot::new(tag, entry), name);
        self.len += 1;
    }

    /// Removes `tuple` if `entry` stands there.
    pub fn remove(&mut self, tuple: &FourTuple, entry: Entry) {
        let name = name_of(tuple);
        let Some(at) = self.place(tag(&self.hasher, &name), &name) else { return };
        if Slot(self.slots[at]).entry() != Some(entry) {
            return;
        }
        self.close_gap(at);
        self.len -= 1;
        if let Some((directory, own)) = &self.directory {
            directory.remove(tuple, *own);
        }
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    /// Where `name` stands. The table is never full, so an empty slot ends every search.
    #[inline]
    fn place(&self, tag: u32, name: &Name) -> Option<usize> {
        let mut at = tag as usize & self.mask();
        loop {
            let slot = Slot(self.slots[at]);
            if slot == Slot::EMPTY {
                return None;
            }
            if slot.tag() == tag && is_same(&self.names[at], name) {
                return Some(at);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Into the first empty slot from where it belongs.
    fn put(&mut self, slot: Slot, name: Name) {
        let mut at = slot.tag() as usize & self.mask();
        while Slot(self.slots[at]) != Slot::EMPTY {
            at = (at + 1) & self.mask();
        }
        (self.slots[at], self.names[at]) = (slot.0, name);
    }

    /// Empties a slot and moves those behind it up that a search would not find past the gap.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.mask();
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let slot = Slot(self.slots[at]);
            if slot == Slot::EMPTY {
                break;
            }
            let home = slot.tag() as usize & mask;
            // It may move to the gap if its home does not lie behind it, going round.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                (self.slots[gap], self.names[gap]) = (slot.0, self.names[at]);
                gap = at;
            }
        }
        self.slots[gap] = Slot::EMPTY.0;
    }

    fn grow(&mut self) {
        let larger = empty((self.slots.len() * 2).max(self.reserve));
        let slots = std::mem::replace(&mut self.slots, larger.0);
        let names = std::mem::replace(&mut self.names, larger.1);
        for (slot, name) in slots.into_iter().zip(names).filter(|(slot, _)| *slot != Slot::EMPTY.0) {
            self.put(Slot(slot), name);
        }
    }
}

/// Untouched memory for `count` places; large pages where there are many, as they are touched in no order.
fn empty(count: usize) -> (Vec<u64>, Vec<Name>) {
    let (mut slots, mut names) = (vec![Slot::EMPTY.0; count], vec![[0; 5]; count]);
    sys::advise_large_pages(slots.as_mut_ptr().cast(), std::mem::size_of_val(&*slots));
    sys::advise_large_pages(names.as_mut_ptr().cast(), std::mem::size_of_val(&*names));
    (slots, names)
}

/// The upper half of the keyed hash.
#[inline]
fn tag(state: &ahash::RandomState, name: &Name) -> u32 {
    // Three words and no lengths between them: a third of what the derived hash of the same fields takes.
    let [a, b, c, d, ports] = *name;
    let mut hasher = state.build_hasher();
    hasher.write_u128(u128::from(b) << 64 | u128::from(a));
    hasher.write_u128(u128::from(d) << 64 | u128::from(c));
    hasher.write_u64(ports);
    (hasher.finish() >> 32) as u32
}

/// A vector with holes: indices stay valid, freed ones are used again.
#[derive(Debug)]
pub struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// With room for `capacity` items before it allocates.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { items: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    /// Adds an item and names it.
    #[inline(always)]
    pub fn insert(&mut self, item: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.items[index as usize] = Some(item);
            return index;
        }
        self.items.push(Some(item));
        (self.items.len() - 1) as u32
    }

    /// Removes an item.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let item = self.items.get_mut(index as usize)?.take();
        if item.is_some() {
            self.free.push(index);
        }
        item
    }

    /// Drops an item where it is: long ones are not moved for it.
    pub fn discard(&mut self, index: u32) {
        if let Some(place) = self.items.get_mut(index as usize).filter(|place| place.is_some()) {
            *place = None;
            self.free.push(index);
        }
    }

    /// The item `index`.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        self.items.get(index as usize)?.as_ref()
    }

    /// The item `index`, to change.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.items.get_mut(index as usize)?.as_mut()
    }

    /// Where item `index` is, or would be.
    #[inline]
    #[must_use]
    pub fn place(&self, index: u32) -> Option<&Option<T>> {
        self.items.get(index as usize)
    }

    /// Memory for the items from `first` on that are to come, in large pages where the kernel has them: what is spread over
    /// thousands of small ones costs a walk through the page tables each time.
    pub fn advise_large_pages(&mut self, first: usize) {
        let room = self.items.spare_capacity_mut().get_mut(first..).unwrap_or_default();
        sys::advise_large_pages(room.as_mut_ptr().cast(), std::mem::size_of_val(room));
    }

    /// Every item with its index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items.iter().enumerate().filter_map(|(i, item)| Some((i as u32, item.as_ref()?)))
    }

    /// Every index ever used is below this.
    #[must_use]
    pub fn capacity_used(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use utcp_proto::Endpoint;
    use utcp_proto::wire::IpAddr;

    use super::*;

    fn tuple(number: u32) -> FourTuple {
        let [a, b, c, d] = number.to_be_bytes();
        let end = |port| Endpoint { addr: IpAddr::v4([10, a, b, c]), port };
        FourTuple { local: end(80), remote: end(u16::from(d) + 1024) }
    }

    /// Against a map of the standard library, through growth, replacement and holes.
    #[test]
    fn it_agrees_with_a_map() {
        let mut table = FlowTable::new(8);
        let mut map: HashMap<FourTuple, Entry> = HashMap::new();
        let mut random = 1u64;
        for round in 0..200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = tuple((random >> 40) as u32 % 3000);
            let entry = match random >> 33 & 3 {
                0 => Entry::HalfOpen(round),
                1 => Entry::TimeWait(round),
                _ => Entry::Flow(round),
            };
            if random >> 35 & 1 == 0 {
                table.insert(name, entry);
                map.insert(name, entry);
            } else {
                let there = map.remove(&name);
                table.remove(&name, there.unwrap_or(entry));
            }
            assert_eq!(table.get(&name), map.get(&name).copied());
            assert_eq!(table.len, map.len());
        }
        for (name, entry) in &map {
            assert_eq!(table.get(name), Some(*entry));
            if let Entry::Flow(index) = entry {
                assert_eq!(table.guess(table.tag(name)), Some(*index));
            }
        }
        // What stands there is another's: it stays.
        let (name, entry) = map.iter().next().expect("some are left");
        table.remove(name, Entry::Flow(u32::MAX >> 2));
        assert_eq!(table.get(name), Some(*entry));
    }
}
