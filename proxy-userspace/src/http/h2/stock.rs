//! What a peer may do at once, and what time gives back of it.

use std::time::Duration;

use crate::clock::{self, Instant};

/// Answers that a peer may ask for: a stock that other traffic and time fill again.
pub(super) struct Control {
    most: u64,
    left: u64,
    at: Instant,
}

/// What time gives back each second, of the whole stock: a tenth.
const PER_SECOND: u64 = 10;

impl Control {
    pub(super) fn new(most: u32) -> Self {
        let most = u64::from(most);
        Self { most, left: most, at: clock::now() }
    }

    pub(super) fn earn(&mut self, n: u64) {
        self.left = (self.left + n).min(self.most);
    }

    pub(super) fn take(&mut self) -> bool {
        if self.left == 0 {
            let now = clock::now();
            let millis = u64::try_from((now - self.at).as_millis()).unwrap_or(u64::MAX);
            self.left = (self.most.saturating_mul(millis) / 1000 / PER_SECOND).min(self.most);
            self.at = now;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// So many at once, and then so many in each second.
pub(super) struct Allowance {
    most: u64,
    per_second: u64,
    left: u64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(most: u64, per_second: u64) -> Self {
        Self { most, per_second, left: most, at: clock::now() }
    }

    pub(super) fn take(&mut self) -> bool {
        let seconds = (clock::now() - self.at).as_secs();
        if seconds > 0 {
            self.left = self.left.saturating_add(self.per_second.saturating_mul(seconds)).min(self.most);
            self.at += Duration::from_secs(seconds);
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}
