//! Who a segment is for: four-tuple → flow, half-open record or TIME-WAIT record.

use std::sync::Arc;

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;
use utcp_proto::FourTuple;

use super::directory::Directory;

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

/// The table. Keyed by a random hash: a peer can't choose four-tuples that collide.
#[derive(Debug)]
pub struct FlowTable {
    entries: HashTable<(FourTuple, Entry)>,
    hasher: ahash::RandomState,
    /// Other shards look there for what is here, and our number.
    directory: Option<(Arc<Directory>, u32)>,
}

impl FlowTable {
    /// With room for `capacity` entries before it allocates.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashTable::with_capacity(capacity),
            hasher: ahash::RandomState::new(),
            directory: None,
        }
    }

    /// Enters what is put here into `directory`, too, as shard `own`'s.
    pub fn enter_into(&mut self, directory: Arc<Directory>, own: u32) {
        self.directory = Some((directory, own));
    }

    /// What stands at `tuple`.
    #[inline]
    #[must_use]
    pub fn get(&self, tuple: &FourTuple) -> Option<Entry> {
        let hash = hash(&self.hasher, tuple);
        self.entries.find(hash, |(t, _)| t == tuple).map(|&(_, entry)| entry)
    }

    /// Puts `entry` at `tuple`, replacing what was there.
    pub fn insert(&mut self, tuple: FourTuple, entry: Entry) {
        let own = hash(&self.hasher, &tuple);
        if let Some(found) = self.entries.find_mut(own, |(t, _)| *t == tuple) {
            found.1 = entry;
            return;
        }
        if let Some((directory, own)) = &self.directory {
            directory.enter(&tuple, *own);
        }
        self.entries.insert_unique(own, (tuple, entry), |(t, _)| hash(&self.hasher, t));
    }

    /// Removes `tuple` if `entry` stands there.
    pub fn remove(&mut self, tuple: &FourTuple, entry: Entry) {
        let hash = hash(&self.hasher, tuple);
        if let Ok(found) = self.entries.find_entry(hash, |(t, e)| t == tuple && *e == entry) {
            found.remove();
            if let Some((directory, own)) = &self.directory {
                directory.remove(tuple, *own);
            }
        }
    }
}

/// Three words and no lengths between them: a third of what the derived hash of the same fields takes.
#[inline]
fn hash(state: &ahash::RandomState, tuple: &FourTuple) -> u64 {
    let FourTuple { local, remote } = tuple;
    let mut hasher = state.build_hasher();
    hasher.write_u128(u128::from_ne_bytes(local.addr.0));
    hasher.write_u128(u128::from_ne_bytes(remote.addr.0));
    hasher.write_u32(u32::from(local.port) << 16 | u32::from(remote.port));
    hasher.finish()
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
