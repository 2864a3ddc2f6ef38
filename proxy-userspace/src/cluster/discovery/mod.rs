//! Where endpoints come from.

mod dns;
mod eds;
pub(super) mod fixed;
pub(super) mod original_dst;
pub(super) mod resolver;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use proxy_config::model;
use proxy_config::model::cluster::Discovery;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub(super) use self::eds::Applied;
use super::{Cluster, Env, Running};

/// Starts the tasks that keep a cluster's endpoints current.
pub(super) fn start(cluster: &Arc<Cluster>, env: &Env) -> Running {
    match &cluster.model.discovery {
        Discovery::Static | Discovery::OriginalDst(_) => Running::default(),
        Discovery::StrictDns(dns) | Discovery::LogicalDns(dns) => {
            let own = dns::start(cluster, dns, env).iter().map(JoinHandle::abort_handle).collect();
            Running { own, ..Running::default() }
        }
        Discovery::Eds(eds) => {
            Running { _endpoints: Some(eds::start(cluster, eds, env)), ..Running::default() }
        }
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
