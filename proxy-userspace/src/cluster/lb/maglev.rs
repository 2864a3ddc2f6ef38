//! Maglev's table, entry for entry as Envoy fills it.

use xxhash_rust::xxh64::xxh64;

use super::hashing::Entry;

const FREE: u32 = u32::MAX;

/// For each slot the index of its entry. `size` is a prime; with another one the table is still filled.
pub(super) fn table(entries: &[Entry], size: u64) -> Box<[u32]> {
    if entries.is_empty() || size < 2 {
        return Box::default();
    }
    let most = entries.iter().map(|entry| entry.weight).fold(0.0, f64::max);
    let mut rows: Vec<_> =
        (0_u32..).zip(entries).map(|(index, entry)| Row::new(index, entry, size)).collect();
    // The order of the configuration must not matter.
    rows.sort_by(|a, b| a.key.cmp(b.key));
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let mut free = table.len();
    let mut iteration = 1.0;
    while free > 0 {
        for row in &mut rows {
            // Whoever has the greatest weight is served in every iteration, the others as often as they weigh.
            if free == 0 || iteration * row.weight < row.target {
                continue;
            }
            row.target += most;
            if let Some(slot) = row.next_free(&table).and_then(|slot| table.get_mut(slot)) {
                *slot = row.index;
            }
            free -= 1;
        }
        iteration += 1.0;
    }
    table.into()
}

pub(super) fn find(table: &[u32], hash: u64, attempt: u32) -> Option<u32> {
    // Many bits change with each attempt, so that retries spread.
    let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
    let slot = usize::try_from(hash.checked_rem(table.len() as u64)?).ok()?;
    table.get(slot).copied()
}

struct Row<'a> {
    index: u32,
    key: &'a str,
    weight: f64,
    target: f64,
    size: u64,
    offset: u64,
    skip: u64,
    next: u64,
}

impl<'a> Row<'a> {
    fn new(index: u32, entry: &'a Entry, size: u64) -> Self {
        let hash = |seed| xxh64(entry.key.as_bytes(), seed);
        Self {
            index,
            key: &entry.key,
            weight: entry.weight,
            target: 0.0,
            size,
            offset: hash(0) % size,
            skip: hash(1) % (size - 1) + 1,
            next: 0,
        }
    }

    /// The next free slot of this row's permutation.
    fn next_free(&mut self, table: &[u32]) -> Option<usize> {
        for _ in 0..table.len() {
            let slot = (u128::from(self.skip) * u128::from(self.next) + u128::from(self.offset))
                .checked_rem(self.size.into())?;
            self.next += 1;
            let slot = usize::try_from(slot).ok()?;
            if table.get(slot) == Some(&FREE) {
                return Some(slot);
            }
        }
        // The size was no prime, and this permutation does not reach every slot.
        table.iter().position(|index| *index == FREE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(ports: &[u16], weights: &[u32]) -> Vec<Entry> {
        let sum: u32 = weights.iter().sum();
        let entry = |(port, weight): (&u16, &u32)| Entry {
            key: format!("127.0.0.1:{port}"),
            weight: f64::from(*weight) / f64::from(sum),
        };
        ports.iter().zip(weights).map(entry).collect()
    }

    /// The table of Envoy's own test: six equal hosts, seven slots.
    #[test]
    fn envoys_known_table() {
        let entries = entries(&[90, 91, 92, 93, 94, 95], &[1; 6]);
        let ports: Vec<_> =
            table(&entries, 7).iter().map(|i| entries[*i as usize].key[10..].to_owned()).collect();
        assert_eq!(ports, ["92", "94", "90", "91", "95", "90", "93"].map(str::to_owned));
    }

    #[test]
    fn sizes_that_are_no_primes_end_too() {
        for size in [0, 1, 2, 4, 6, 100] {
            let table = table(&entries(&[1, 2, 3], &[1, 5, 1]), size);
            assert!(table.iter().all(|slot| *slot < 3), "{size}");
        }
    }

    proptest! {
        #[test]
        fn weights_are_shares_of_the_table(weights in prop::collection::vec(1_u32..10, 1..6)) {
            let ports: Vec<u16> = (1..).take(weights.len()).collect();
            let table = table(&entries(&ports, &weights), 1021);
            let sum: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let slots = table.iter().filter(|i| **i as usize == index).count() as f64;
                let want = 1021.0 * f64::from(*weight) / f64::from(sum);
                prop_assert!((slots - want).abs() <= 2.0, "{slots} of {want}");
            }
        }

        #[test]
        fn who_leaves_moves_little_else(count in 3_usize..10) {
            let ports: Vec<u16> = (1..).take(count).collect();
            let before = entries(&ports, &vec![1; count]);
            let after = entries(&ports[..count - 1], &vec![1; count - 1]);
            let (a, b) = (table(&before, 65_537), table(&after, 65_537));
            let moved = a.iter().zip(&*b).filter(|(a, b)| (**a as usize) < count - 1 && a != b).count();
            prop_assert!(moved < 65_537 / 10, "{moved}");
        }

        #[test]
        fn the_order_of_hosts_does_not_matter(mut ports in prop::collection::hash_set(1_u16..999, 2..9).prop_map(Vec::from_iter)) {
            let named = |ports: &[u16]| -> Vec<String> {
                let entries = entries(ports, &vec![1; ports.len()]);
                table(&entries, 251).iter().map(|i| entries[*i as usize].key.clone()).collect()
            };
            let one = named(&ports);
            ports.reverse();
            prop_assert_eq!(one, named(&ports));
        }
    }
}
