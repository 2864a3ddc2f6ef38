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

    fn take_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = nanos(now.saturating_duration_since(state.at)) * u128::from(self.config.tokens_per_fill);
        state.level = state.level.saturating_add(gained).min(capacity(&self.config));
        state.at = state.at.max(now);
        match state.level.checked_sub(token(&self.config)) {
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
