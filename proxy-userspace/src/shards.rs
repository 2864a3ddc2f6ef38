//! Large tables that change a little at a time: a changed one shares with the one before it all but the shards in which
//! something is another.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use foldhash::fast::RandomState;

/// A change of one among five thousand copies eighty.
const SHARDS: usize = 64;

/// A map of which a copy is cheap, and a change of a copy too. Its keys are the configuration's: no peer can make them
/// collide.
#[derive(Clone)]
pub struct Sharded<K, V> {
    shards: Arc<[Shard<K, V>]>,
    hasher: RandomState,
    len: usize,
}

type Shard<K, V> = Arc<HashMap<K, V, RandomState>>;

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let hasher = RandomState::default();
        // Those that are empty are one.
        let empty = Arc::new(HashMap::with_hasher(hasher.clone()));
        Self { shards: std::iter::repeat_n(empty, SHARDS).collect(), hasher, len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards.get(self.shard(key))?.get(key)
    }

    /// What there was before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.shard_mut(&key)?.insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // What is not there is no reason to copy anything.
        self.get(key)?;
        let before = self.shard_mut(key)?.remove(key);
        self.len -= usize::from(before.is_some());
        before
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Other bits of the hash than those by which a map finds its place.
    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % SHARDS
    }

    /// `None` never: there are as many shards as keys may be in.
    fn shard_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut HashMap<K, V, RandomState>> {
        let at = self.shard(key);
        Arc::make_mut(&mut self.shards).get_mut(at).map(Arc::make_mut)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for Sharded<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        let mut table = Self::default();
        for (key, value) in all {
            table.insert(key, value);
        }
        table
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sharded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shards.iter().flat_map(|shard| shard.iter())).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_change_copies_one_shard() {
        let before: Sharded<u32, u32> = (0..5000).map(|n| (n, n)).collect();
        let mut after = before.clone();
        assert_eq!(after.insert(7, 8), Some(7));
        let same = before.shards.iter().zip(after.shards.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(same, SHARDS - 1);
        assert_eq!((before.get(&7), after.get(&7)), (Some(&7), Some(&8)));
        assert_eq!(after.remove(&9999), None);
        assert!(before.shards.iter().all(|shard| shard.len() < 200), "they are spread");
    }

    proptest! {
        #[test]
        fn it_is_as_a_map(steps in prop::collection::vec((0_u8..40, prop::option::of(0_u8..9)), 0..200)) {
            let (mut table, mut map) = (Sharded::default(), HashMap::new());
            for (key, value) in steps {
                let kept = table.clone();
                let count = kept.len();
                match value {
                    Some(value) => prop_assert_eq!(table.insert(key, value), map.insert(key, value)),
                    None => prop_assert_eq!(table.remove(&key), map.remove(&key)),
                }
                prop_assert_eq!((table.len(), table.is_empty()), (map.len(), map.is_empty()));
                prop_assert!(map.iter().all(|(key, value)| table.get(key) == Some(value)));
                prop_assert_eq!(kept.values().count(), count, "a copy stays as it was");
            }
            let all: HashMap<_, _> = table.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(all, map);
        }
    }
}
