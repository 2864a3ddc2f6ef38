//! When to try again, and how often to ask: without a clock of their own.

use std::time::Duration;

use proxy_config::model::config_source::RateLimit;
use proxy_config::model::grpc::Backoff;

use crate::clock::Instant;

/// Envoy's jittered exponential: anything below a limit that doubles with each failure.
#[derive(Debug)]
pub(super) struct Delays {
    terms: Backoff,
    limit: Duration,
}

impl Delays {
    pub(super) fn new(terms: Backoff) -> Self {
        Self { terms, limit: terms.base }
    }

    /// The next one. `chance`: any number.
    pub(super) fn next(&mut self, chance: u64) -> Duration {
        let limit = self.limit.min(self.terms.max);
        self.limit = limit.saturating_mul(2).min(self.terms.max);
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(chance % millis)
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.limit = self.terms.base;
    }
}

/// A bucket that fills with time, one token for each request.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: Option<RateLimit>,
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// Without a limit, everything passes.
    pub(super) fn new(limit: Option<RateLimit>, now: Instant) -> Self {
        Self { limit, tokens: limit.map_or(0, |limit| limit.max_tokens), filled: now }
    }

    /// `Err`: when to ask again.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(limit) = self.limit else { return Ok(()) };
        let interval = limit.fill_interval.max(Duration::from_millis(1));
        let passed = now.saturating_duration_since(self.filled).as_nanos() / interval.as_nanos();
        let new = u32::try_from(passed).unwrap_or(u32::MAX);
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(limit.max_tokens.max(1));
            self.filled = interval.checked_mul(new).and_then(|by| self.filled.checked_add(by)).unwrap_or(now);
        }
        match self.tokens.checked_sub(1) {
            Some(rest) => {
                self.tokens = rest;
                Ok(())
            }
            None => Err(self.filled.checked_add(interval).unwrap_or(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_again() {
        let terms = Backoff { base: Duration::from_millis(100), max: Duration::from_millis(350) };
        let mut delays = Delays::new(terms);
        let longest = |limit: u64| limit - 1;
        for limit in [100, 200, 350, 350] {
            assert_eq!(delays.next(longest(limit)), Duration::from_millis(limit - 1));
        }
        delays.reset();
        assert_eq!(delays.next(100), Duration::ZERO, "below the first limit again");
        let mut none = Delays::new(Backoff { base: Duration::ZERO, max: Duration::ZERO });
        assert_eq!(none.next(7), Duration::ZERO);
    }

    #[test]
    fn a_bucket_lets_through_what_is_in_it_and_says_when_there_is_more() {
        let start = clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let limit = RateLimit { max_tokens: 2, fill_interval: Duration::from_millis(100) };
        let mut bucket = Bucket::new(Some(limit), start);
        assert_eq!((bucket.take(start), bucket.take(at(10))), (Ok(()), Ok(())));
        assert_eq!(bucket.take(at(20)), Err(at(100)));
        assert_eq!(bucket.take(at(150)), Ok(()));
        assert_eq!(bucket.take(at(160)), Err(at(200)));
        // No more than it holds.
        assert_eq!((bucket.take(at(5_000)), bucket.take(at(5_000))), (Ok(()), Ok(())));
        assert!(bucket.take(at(5_000)).is_err());
        let mut open = Bucket::new(None, start);
        assert!((0..1_000).all(|_| open.take(start).is_ok()));
    }
}
