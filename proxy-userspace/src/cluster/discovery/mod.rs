//! Where endpoints come from.

pub(super) mod dns;
pub(super) mod eds_file;
pub(super) mod fixed;
pub(super) mod original_dst;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use proxy_config::model;
use proxy_config::model::cluster::Discovery;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Cluster, Env};

/// Starts the task that keeps a cluster's endpoints current, where there is one.
pub(super) fn start(cluster: &Arc<Cluster>, env: &Env) -> Option<JoinHandle<()>> {
    let weak = Arc::downgrade(cluster);
    match &cluster.model.discovery {
        Discovery::Static | Discovery::OriginalDst(_) => None,
        Discovery::StrictDns(dns) => Some(dns::start_strict(weak, dns, &cluster.model, env)),
        Discovery::LogicalDns(dns) => Some(dns::start_logical(weak, dns, &cluster.model, env)),
        Discovery::Eds(eds) => Some(eds_file::start(weak, eds, env)),
    }
}

/// What is still to come before a cluster is warm.
pub(super) struct Warm {
    missing: AtomicU8,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The first answer of discovery, also a failed one.
    Endpoints = 1,
    /// A first health check of every endpoint.
    Health = 2,
}

impl Warm {
    pub(super) fn of(model: &model::Cluster) -> Self {
        let endpoints = match model.discovery {
            Discovery::Static | Discovery::OriginalDst(_) => 0,
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => Part::Endpoints as u8,
        };
        let health = if model.health_checks.is_empty() { 0 } else { Part::Health as u8 };
        Self { missing: AtomicU8::new(endpoints | health), changed: Notify::new() }
    }

    pub(super) fn is_warm(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    pub(super) fn lacks(&self, part: Part) -> bool {
        self.missing.load(Ordering::Acquire) & part as u8 != 0
    }

    pub(super) fn done(&self, part: Part) {
        self.missing.fetch_and(!(part as u8), Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    pub(super) async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_warm() {
                return;
            }
            changed.await;
        }
    }
}
