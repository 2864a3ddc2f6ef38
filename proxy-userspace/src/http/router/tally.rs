//! What is counted of requests beyond their cluster: of virtual clusters, and of routes with a `stat_prefix`.

use std::sync::Arc;
use std::time::Duration;

use super::charge::Codes;
use crate::telemetry::stats::{Block, Metric, stats_block};

stats_block! {
    /// Of `vhost.<name>.vcluster.<name>.` or `vhost.<name>.route.<stat_prefix>.`
    pub(crate) struct TallyStats {
        counter upstream_rq_retry;
        counter upstream_rq_retry_limit_exceeded;
        counter upstream_rq_retry_overflow;
        counter upstream_rq_retry_success;
        counter upstream_rq_timeout;
        counter upstream_rq_total;
    }
}

/// Those, and the codes of responses under the same prefix.
#[derive(Default)]
pub(crate) struct Tally {
    stats: TallyStats,
    codes: Codes,
}

/// Where one request is counted; for most of them, nowhere.
#[derive(Clone, Default)]
pub(crate) struct Tallies {
    pub(crate) virtual_cluster: Option<Arc<Tally>>,
    pub(crate) route: Option<Arc<Tally>>,
}

impl Block for Tally {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        self.stats.visit(visit);
        self.codes.visit(visit);
    }
}

impl Tallies {
    pub(super) fn each(&self, count: impl Fn(&TallyStats)) {
        self.all().for_each(|tally| count(&tally.stats));
    }

    /// Of a response, the proxy's own ones included.
    pub(super) fn charge(&self, code: u16) {
        self.all().for_each(|tally| tally.codes.charge(code));
    }

    pub(super) fn time(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.all().for_each(|tally| tally.codes.record(millis));
    }

    fn all(&self) -> impl Iterator<Item = &Tally> {
        self.virtual_cluster.iter().chain(&self.route).map(|tally| &**tally)
    }
}
