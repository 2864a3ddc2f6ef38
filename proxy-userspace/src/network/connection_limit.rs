//! `envoy.filters.network.connection_limit`: so many connections of a filter chain at a time.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proxy_config::model::network_filter::ConnectionLimit as Config;

use super::gates::{Close, Verdict};
use crate::telemetry::Flags;
use crate::telemetry::stats::{Held, Stats, stats_block};

stats_block! {
    /// `connection_limit.<stat_prefix>.`
    pub struct ConnectionLimitStats {
        gauge active_connections;
        counter limited_connections;
    }
}

/// One filter of one chain: the count is its own, the stats are shared by prefix.
#[derive(Debug)]
pub struct ConnectionLimit {
    config: Config,
    active: AtomicU64,
    stats: Arc<ConnectionLimitStats>,
}

/// A connection's place, refused ones included: they count until they are closed.
#[derive(Debug)]
pub struct Place {
    limit: Arc<ConnectionLimit>,
    _active: Held<ConnectionLimitStats>,
}

impl ConnectionLimit {
    pub fn new(config: &Config, stats: &Stats) -> Arc<Self> {
        let stats = stats.block(format!("connection_limit.{}", config.stat_prefix));
        Arc::new(Self { config: config.clone(), active: AtomicU64::new(0), stats })
    }

    /// No place is needed where the filter is off.
    pub fn enter(self: &Arc<Self>) -> (Option<Place>, Verdict) {
        if !self.config.runtime_enabled {
            return (None, Verdict::Continue);
        }
        let place = Place { limit: self.clone(), _active: Held::new(&self.stats, |s| &s.active_connections) };
        if self.active.fetch_add(1, Ordering::Relaxed) < self.config.max_connections {
            return (Some(place), Verdict::Continue);
        }
        self.stats.limited_connections.inc();
        let delay = self.config.delay.filter(|delay| !delay.is_zero());
        let close = Close {
            flags: Flags::NONE,
            details: Cow::Borrowed("over_connection_limit"),
            response_code_details: None,
            termination_details: None,
            delay,
            // Envoy reads while it waits, and else has not yet begun to.
            drain: delay.is_some(),
        };
        (Some(place), Verdict::Close(close))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limit.active.fetch_sub(1, Ordering::Relaxed);
    }
}
