//! Active health checks.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{Cluster, Env};
use crate::telemetry::stats::{Stats, stats_block};

stats_block! {
    /// `cluster.<name>.health_check.`
    pub struct HealthStats {
        counter attempt;
        counter success;
        counter failure;
        counter passive_failure;
        counter network_failure;
        counter verify_cluster;
        gauge healthy;
        gauge degraded;
    }
}

pub(super) struct Checkers {
    stats: Arc<HealthStats>,
}

impl Checkers {
    pub(super) fn new(stats: &Stats, prefix: &str) -> Self {
        Self { stats: stats.block(format!("{prefix}.health_check")) }
    }
}

pub(super) fn start(cluster: &Arc<Cluster>, env: &Env) -> JoinHandle<()> {
    let weak = Arc::downgrade(cluster);
    env.tasks.spawn("health_checks", async move {
        let _weak = weak;
    })
}
