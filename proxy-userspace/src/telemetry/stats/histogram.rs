//! Distributions of durations and sizes.

use std::sync::{Mutex, PoisonError};

/// Takes no memory but a word until its first value.
#[derive(Debug, Default)]
pub struct Histogram(Mutex<Option<Box<hdrhistogram::Histogram<u64>>>>);

/// The largest value that is told apart; larger ones count as this.
const HIGHEST: u64 = 24 * 3_600 * 1_000;

impl Histogram {
    pub fn record(&self, value: u64) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            // Two digits: Envoy's histograms keep as many. It cannot fail with these bounds.
            *slot = hdrhistogram::Histogram::new_with_bounds(1, HIGHEST, 2).ok().map(Box::new);
        }
        if let Some(histogram) = slot.as_mut() {
            histogram.saturating_record(value);
        }
    }

    /// Runs `f` on what was recorded, if anything was.
    pub fn read<T>(&self, f: impl FnOnce(&hdrhistogram::Histogram<u64>) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref().map(f)
    }
}
