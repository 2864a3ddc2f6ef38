//! The token bucket of both local rate limits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proxy_config::model::listener_filter::TokenBucket as Config;

use crate::clock::{self, Instant};

/// Full at first. Envoy's drips, so that a part of the interval gives its part of the tokens.
#[derive(Debug)]
pub struct TokenBucket {
    config: Config,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In nanoseconds of filling, so that no rounding loses any.
    level: u128,
    at: Instant,
}

impl TokenBucket {
    pub fn new(config: Config) -> Self {
        let state = State { level: capacity(&config), at: clock::now() };
        Self { config, state: Mutex::new(state) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self) -> bool {
        self.take_at(clock::now())
    }

    /// Takes so many at once, if there are as many.
    pub fn take_many(&self, tokens: u64) -> bool {
        self.take_many_at(tokens, clock::now())
    }

    pub fn max_tokens(&self) -> u32 {
        self.config.max_tokens
    }

    /// Whole tokens that there are.
    pub fn remaining(&self) -> u64 {
        u64::try_from(self.level() / token(&self.config)).unwrap_or(u64::MAX)
    }

    /// How long until there is one.
    pub fn until_next(&self) -> Duration {
        let missing = token(&self.config).saturating_sub(self.level());
        let rate = u128::from(self.config.tokens_per_fill.max(1));
        Duration::from_nanos(u64::try_from(missing.div_ceil(rate)).unwrap_or(u64::MAX))
    }

    fn level(&self) -> u128 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = clock::now().saturating_duration_since(state.at);
        let gained = nanos(since) * u128::from(self.config.tokens_per_fill);
        state.level.saturating_add(gained).min(capacity(&self.config))
    }

    fn take_at(&self, now: Instant) -> bool {
        self.take_many_at(1, now)
    }

    fn take_many_at(&self, tokens: u64, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = nanos(now.saturating_duration_since(state.at)) * u128::from(self.config.tokens_per_fill);
        state.level = state.level.saturating_add(gained).min(capacity(&self.config));
        state.at = state.at.max(now);
        match state.level.checked_sub(token(&self.config).saturating_mul(u128::from(tokens))) {
            Some(left) => {
                state.level = left;
                true
            }
            None => false,
        }
    }
}

/// One token is `fill_interval` of filling at one token a fill; a fill of more tokens fills that much faster.
fn token(config: &Config) -> u128 {
    nanos(config.fill_interval).max(1)
}

fn capacity(config: &Config) -> u128 {
    token(config) * u128::from(config.max_tokens)
}

fn nanos(duration: Duration) -> u128 {
    duration.as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_at_first_then_dripping() {
        let config = Config { max_tokens: 4, tokens_per_fill: 4, fill_interval: Duration::from_secs(4) };
        let bucket = TokenBucket::new(config);
        let start = clock::now();
        let taken: Vec<u64> = (0..=9_000u64)
            .step_by(250)
            .filter(|at| bucket.take_at(start + Duration::from_millis(*at)))
            .collect();
        // As the real Envoy: five in the first second (one dripped), then one a second.
        assert_eq!(taken, [0, 250, 500, 750, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 9_000]);
    }

    #[test]
    fn no_more_than_full_however_long_it_waits() {
        let config = Config { max_tokens: 2, tokens_per_fill: 1, fill_interval: Duration::from_millis(50) };
        let bucket = TokenBucket::new(config);
        let later = clock::now() + Duration::from_secs(1_000_000_000);
        assert_eq!((0..5).filter(|_| bucket.take_at(later)).count(), 2);
    }

    #[test]
    fn odd_configurations_are_survived() {
        let config =
            Config { max_tokens: u32::MAX, tokens_per_fill: u32::MAX, fill_interval: Duration::ZERO };
        assert!(TokenBucket::new(config).take());
        let config = Config { max_tokens: 0, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) };
        assert!(!TokenBucket::new(config).take());
        let config = Config { max_tokens: u32::MAX, tokens_per_fill: u32::MAX, fill_interval: Duration::MAX };
        let bucket = TokenBucket::new(config);
        assert!(bucket.take() && bucket.take());
    }
}
