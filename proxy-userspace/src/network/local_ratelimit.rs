//! `envoy.filters.network.local_ratelimit`: so many new connections in a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use proxy_config::model::listener_filter::LocalRateLimit as Config;

use super::gates::{Close, Verdict};
use crate::listener::TokenBucket;
use crate::telemetry::Flags;
use crate::telemetry::stats::{Stats, stats_block};

stats_block! {
    /// `local_rate_limit.<stat_prefix>.`
    pub struct LocalRateLimitStats {
        counter rate_limited;
    }
}

#[derive(Debug)]
pub struct LocalRateLimit {
    enabled: bool,
    bucket: Arc<TokenBucket>,
    stats: Arc<LocalRateLimitStats>,
}

/// The buckets that filters share by `share_key`, where they agree on the bucket's sizes. One per proxy; a bucket
/// lives as long as a filter that uses it.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<Key, Weak<TokenBucket>>>);

type Key = (Arc<str>, u32, u32, Duration);

impl LocalRateLimit {
    pub fn new(config: &Config, stats: &Stats, buckets: &Buckets) -> Self {
        Self {
            enabled: config.runtime_enabled,
            bucket: buckets.of(config),
            stats: stats.block(format!("local_rate_limit.{}", config.stat_prefix)),
        }
    }

    pub fn enter(&self) -> Verdict {
        if !self.enabled || self.bucket.take() {
            return Verdict::Continue;
        }
        self.stats.rate_limited.inc();
        Verdict::Close(Close {
            // Envoy's flag for it, odd as it is.
            flags: Flags::URX,
            details: Cow::Borrowed("local_ratelimit_close_over_limit"),
            response_code_details: None,
            termination_details: None,
            delay: None,
            drain: false,
        })
    }
}

impl Buckets {
    fn of(&self, config: &Config) -> Arc<TokenBucket> {
        let sizes = config.token_bucket;
        let Some(key) = config.share_key.clone().filter(|key| !key.is_empty()) else {
            return Arc::new(TokenBucket::new(sizes));
        };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        let key = (key, sizes.max_tokens, sizes.tokens_per_fill, sizes.fill_interval);
        if let Some(bucket) = buckets.get(&key).and_then(Weak::upgrade) {
            return bucket;
        }
        let bucket = Arc::new(TokenBucket::new(sizes));
        buckets.insert(key, Arc::downgrade(&bucket));
        bucket
    }
}
