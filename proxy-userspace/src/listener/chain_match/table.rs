//! A level of the tables that find a chain.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

/// A map that takes little more than its entry while there is one: of most levels of most listeners there is no other.
///
/// What is in it the configuration decides, so that no peer can make its keys collide: the fast hash will do.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    first: Option<Box<(K, V)>>,
    #[expect(clippy::box_collection, reason = "most have none, and it is six words")]
    others: Option<Box<HashMap<K, V, RandomState>>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { first: None, others: None }
    }
}

impl<K: Eq + Hash, V> Table<K, V> {
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (known, value) = self.first.as_deref()?;
        if known.borrow() == key { Some(value) } else { self.others.as_ref()?.get(key) }
    }

    /// What is there, else what is made for it.
    pub(super) fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        match &mut self.first {
            Some(first) if first.0 != key => {
                self.others.get_or_insert_default().entry(key).or_insert_with(make)
            }
            Some(first) => &mut first.1,
            first @ None => &mut first.insert(Box::new((key, make()))).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_key_stays() {
        let mut table = Table::default();
        assert_eq!(table.get("a"), None);
        for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5)] {
            table.entry(key.to_owned(), || value);
        }
        let found = ["a", "b", "c", "d"].map(|key| table.get(key).copied());
        assert_eq!(found, [Some(1), Some(2), Some(4), None]);
    }
}
