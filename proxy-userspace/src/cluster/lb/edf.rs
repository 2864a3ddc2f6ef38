//! Earliest deadline first: weighted round robin without a table.
//!
//! Each entry is due again 1/weight after it was picked. Equal deadlines go by the order of insertion.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug, Default)]
pub(super) struct Edf {
    heap: BinaryHeap<Due>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Due {
    deadline: f64,
    order: u64,
    index: u32,
}

impl Edf {
    /// Of the entries 0, 1, … with these weights, after `picks` rounds of picking: proxies that start together do
    /// not all begin with the same endpoint.
    pub(super) fn new(weights: impl Iterator<Item = f64>, picks: u64) -> Self {
        let mut edf = Self::default();
        let weights: Vec<_> = weights.collect();
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            edf.add(u32::try_from(index).unwrap_or(u32::MAX), *weight);
        }
        let rounds = picks.checked_rem(edf.heap.len() as u64).unwrap_or(0);
        for _ in 0..rounds {
            edf.pick(|index| weights.get(index as usize).copied().unwrap_or(1.0));
        }
        edf
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The next entry, which is due again by the weight that it has now.
    pub(super) fn pick(&mut self, weight: impl FnOnce(u32) -> f64) -> Option<u32> {
        let due = self.heap.pop()?;
        self.now = due.deadline;
        self.add(due.index, weight(due.index));
        Some(due.index)
    }

    fn add(&mut self, index: u32, weight: f64) {
        // A weight of zero would never be due again, and may only be so for a moment.
        let deadline = self.now + 1.0 / weight.max(f64::MIN_POSITIVE);
        self.heap.push(Due { deadline, order: self.order, index });
        self.order += 1;
    }
}

impl Ord for Due {
    /// Reversed: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(weights: &[f64], skip: u64, picks: usize) -> Vec<u32> {
        let mut edf = Edf::new(weights.iter().copied(), skip);
        (0..picks).map(|_| edf.pick(|i| weights[i as usize]).unwrap()).collect()
    }

    #[test]
    fn the_known_sequences() {
        assert_eq!(order(&[1.0, 1.0, 1.0], 0, 6), [0, 1, 2, 0, 1, 2]);
        // Due at 1/2, 1, then 1 (the second of the heavy one, inserted later) and so on.
        assert_eq!(order(&[1.0, 2.0], 0, 6), [1, 0, 1, 1, 0, 1]);
        assert_eq!(order(&[3.0, 1.0], 0, 6), [0, 0, 1, 0, 0, 0]);
        assert_eq!(order(&[1.0, 2.0], 1, 5), [0, 1, 1, 0, 1]);
        assert_eq!(order(&[0.0, 0.0], 0, 0), Vec::<u32>::new());
        assert!(Edf::new([0.0, 0.0].into_iter(), 7).is_empty());
    }

    proptest! {
        #[test]
        fn every_round_is_exact(weights in prop::collection::vec(1_u32..20, 1..8), skip in any::<u64>()) {
            let total: u32 = weights.iter().sum();
            let floats: Vec<_> = weights.iter().map(|w| f64::from(*w)).collect();
            let picked = order(&floats, skip, 10 * total as usize);
            for (index, weight) in weights.iter().enumerate() {
                let times = picked.iter().filter(|i| **i as usize == index).count() as i64;
                let want = i64::from(10 * weight);
                prop_assert!((times - want).abs() <= 1 + i64::from(skip != 0), "{index}: {times} of {want}");
            }
        }
    }
}
