//! Active health checks: a session for each host asks it again and again.
//!
//! One task follows the cluster's hosts and keeps a session for each; [`Judge`] counts results against the
//! thresholds, `tcp`, `http` and `grpc` ask.

mod client;
mod event;
mod grpc;
mod http;
mod judge;
mod session;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

use super::discovery::Part;
use super::host::{HealthFlag, Host};
use super::{Cluster, Env};
use crate::telemetry::stats::{Stats, stats_block};

stats_block! {
    /// `cluster.<name>.health_check.`
    pub(super) struct HealthStats {
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
    shared: Arc<Shared>,
}

struct Shared {
    stats: Arc<HealthStats>,
    /// The hosts are others than before, or all are known for the first time.
    changed: Notify,
    /// Hosts without a first result.
    unjudged: AtomicUsize,
}

impl Checkers {
    pub(super) fn new(stats: &Stats, prefix: &str) -> Self {
        let stats = stats.block(format!("{prefix}.health_check"));
        Self { shared: Arc::new(Shared { stats, changed: Notify::new(), unjudged: 0.into() }) }
    }

    pub(super) fn hosts_changed(&self) {
        self.shared.changed.notify_one();
    }

    pub(super) fn recount<'a>(&self, hosts: impl Iterator<Item = &'a Arc<Host>>) {
        let (mut healthy, mut degraded) = (0, 0);
        for host in hosts.filter(|host| is_checked(host)) {
            healthy += u64::from(!host.has(HealthFlag::FAILED_ACTIVE_HC));
            degraded += u64::from(host.has(HealthFlag::DEGRADED_ACTIVE_HC));
        }
        self.shared.stats.healthy.set(healthy);
        self.shared.stats.degraded.set(degraded);
    }
}

fn is_checked(host: &Host) -> bool {
    host.extra().is_some_and(|extra| !extra.health_check.disabled)
}

/// Follows the cluster's hosts. Their sessions end with this task.
pub(super) fn start(cluster: &Arc<Cluster>, env: &Env) -> JoinHandle<()> {
    let (weak, env, secrets) = (Arc::downgrade(cluster), env.clone(), cluster.secrets.clone());
    let shared = cluster.active.as_ref().and_then(|active| active.health.as_ref()).map(|h| h.shared.clone());
    env.tasks.clone().spawn("health_checks", async move {
        let Some(shared) = shared else { return };
        // Envoy's order: nobody is found unhealthy for a secret that is on its way.
        super::settled(&secrets).await;
        let mut sessions = HashMap::new();
        loop {
            match weak.upgrade() {
                Some(cluster) => reconcile(&cluster, &shared, &mut sessions, &env),
                None => return,
            }
            shared.changed.notified().await;
        }
    })
}

/// Ends the session's task when dropped.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn reconcile(
    cluster: &Arc<Cluster>,
    shared: &Arc<Shared>,
    sessions: &mut HashMap<usize, (Arc<Host>, Running)>,
    env: &Env,
) {
    // Envoy has one health check for a cluster.
    let Some(check) = cluster.model.health_checks.first() else { return };
    let hosts = cluster.hosts();
    let mut kept = HashMap::new();
    for host in hosts.iter().filter(|host| is_checked(host)) {
        let key = Arc::as_ptr(host).addr();
        let session = sessions.remove(&key).unwrap_or_else(|| {
            let task = session::start(cluster, check, host, shared, env);
            (host.clone(), Running(task.abort_handle()))
        });
        kept.insert(key, session);
    }
    *sessions = kept;
    judged(cluster, shared);
}

/// Warm once every host of the first endpoints has a result.
fn judged(cluster: &Cluster, shared: &Shared) {
    let Some(active) = &cluster.active else { return };
    if shared.unjudged.load(Ordering::Acquire) == 0 && !active.warm.lacks(Part::Endpoints) {
        active.warm.done(Part::Health);
    }
}

/// Counts a host as unjudged until its first result, or its end.
struct Unjudged(Arc<Shared>);

impl Unjudged {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.unjudged.fetch_add(1, Ordering::AcqRel);
        Self(shared.clone())
    }
}

impl Drop for Unjudged {
    fn drop(&mut self) {
        self.0.unjudged.fetch_sub(1, Ordering::AcqRel);
        // Whoever was the last may have been removed: look again.
        self.0.changed.notify_one();
    }
}
