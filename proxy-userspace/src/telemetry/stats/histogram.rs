//! Distributions of durations and sizes, binned as Envoy bins them: two significant digits.

use std::sync::{Mutex, PoisonError};

/// Takes no memory but a word until its first value.
#[derive(Debug, Default)]
pub struct Histogram(Mutex<Option<Box<Bins>>>);

/// Values by their two first digits and power of ten, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bins(Vec<(Bin, u64)>);

/// `digits × 10^power` up to the next such number; digits are 10 to 99, or 0 for the value zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bin {
    power: i8,
    digits: u8,
}

impl Histogram {
    pub fn record(&self, value: u64) {
        self.add(Bin::of(value));
    }

    /// A part of a whole, in millionths, which is shown as 0 to 1: Envoy's unit `Percent`.
    pub fn record_millionths(&self, value: u64) {
        self.add(Bin::of(value).millionth());
    }

    fn add(&self, bin: Bin) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_default().add(bin);
    }

    /// What was recorded, if anything was.
    pub fn bins(&self) -> Option<Bins> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }
}

impl Bin {
    fn of(value: u64) -> Self {
        let (mut digits, mut power) = (value, 0_i8);
        while digits >= 100 {
            digits /= 10;
            power += 1;
        }
        match u8::try_from(digits).unwrap_or(99) {
            0 => Self { power: i8::MIN, digits: 0 },
            small @ 1..10 => Self { power: -1, digits: small * 10 },
            digits => Self { power, digits },
        }
    }

    fn millionth(self) -> Self {
        Self { power: self.power.saturating_sub(6), digits: self.digits }
    }

    fn lower(self) -> f64 {
        if self.digits == 0 { 0.0 } else { f64::from(self.digits) * self.width() }
    }

    fn width(self) -> f64 {
        match (self.digits, self.power) {
            (0, _) => 0.0,
            (_, -1) => 0.1,
            (_, power) => 10_f64.powi(i32::from(power)),
        }
    }
}

impl Bins {
    fn add(&mut self, bin: Bin) {
        match self.0.binary_search_by_key(&bin, |entry| entry.0) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (bin, 1)),
        }
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// By the middle of each bin: the values themselves are not kept.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|(bin, count)| (bin.lower() + bin.width() / 2.0) * *count as f64).sum()
    }

    /// Values in bins that end at or below `bound`.
    pub fn below(&self, bound: f64) -> u64 {
        // A bin of 0.1 does not end on a round number.
        let fits = |bin: &Bin| bin.lower() + bin.width() <= bound * (1.0 + 1e-12);
        self.0.iter().take_while(|(bin, _)| fits(bin)).map(|(_, count)| count).sum()
    }

    /// Lower bound, width and count of each bin.
    pub fn each(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        self.0.iter().map(|(bin, count)| (bin.lower(), bin.width(), *count))
    }

    /// `q` from 0 to 1; a bin of one value is taken for its middle, another is taken as evenly filled.
    pub fn quantile(&self, q: f64) -> f64 {
        let wanted = q * self.count() as f64;
        let mut passed = 0.0;
        for (at, (bin, count)) in self.0.iter().enumerate() {
            let n = *count as f64;
            if passed + n >= wanted || at + 1 == self.0.len() {
                let part = if *count == 1 { 0.5 } else { ((wanted - passed) / n).clamp(0.0, 1.0) };
                return bin.lower() + bin.width() * part;
            }
            passed += n;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[u64]) -> Bins {
        let histogram = Histogram::default();
        values.iter().for_each(|v| histogram.record(*v));
        histogram.bins().unwrap()
    }

    /// What Envoy 1.40 showed for a single value: the middle of its bin.
    #[test]
    fn one_value_is_the_middle_of_its_bin() {
        for (value, want) in [(0, 0.0), (1, 1.05), (54, 54.5), (1_234, 1_250.0)] {
            for q in [0.0, 0.5, 0.999, 1.0] {
                assert!((of(&[value]).quantile(q) - want).abs() < 1e-9, "{value}");
            }
        }
        assert_eq!(of(&[54]).below(50.0), 0);
        assert_eq!(of(&[54]).below(100.0), 1);
        assert_eq!(of(&[1]).below(1.0), 0);
        assert_eq!(of(&[0]).below(0.5), 1);
    }

    #[test]
    fn parts_of_a_whole() {
        let histogram = Histogram::default();
        for value in [0, 1, 250_000, 1_000_000] {
            histogram.record_millionths(value);
        }
        let bins = histogram.bins().unwrap();
        let lowest: Vec<_> = bins.each().map(|bin| bin.0).collect();
        for (seen, want) in lowest.iter().zip([0.0, 1e-6, 0.25, 1.0]) {
            assert!((seen - want).abs() < 1e-12, "{lowest:?}");
        }
        assert_eq!((bins.count(), bins.below(0.5)), (4, 3));
    }

    #[test]
    fn many_values() {
        let bins = of(&(0..1_000).collect::<Vec<_>>());
        assert_eq!(bins.count(), 1_000);
        assert_eq!(bins.below(100.0), 100);
        assert!((bins.quantile(0.5) - 500.0).abs() < 10.0);
        assert!((bins.sum() / 499_500.0 - 1.0).abs() < 0.02);
        assert!(bins.each().map(|b| b.0).is_sorted());
        assert_eq!(of(&[u64::MAX]).count(), 1);
    }
}
