//! Chance, through a seam: tests decide what it says.

use rand::Rng as _;

pub trait Random: Send + Sync {
    fn next(&self) -> u64;
}

/// The thread's own generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadRandom;

impl Random for ThreadRandom {
    fn next(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// SplitMix64: the same sequence each time.
#[cfg(test)]
pub(crate) struct Seeded(std::sync::atomic::AtomicU64);

#[cfg(test)]
impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.into())
    }
}

#[cfg(test)]
impl Random for Seeded {
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let state = self.0.fetch_add(STEP, std::sync::atomic::Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
