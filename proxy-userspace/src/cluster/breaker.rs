//! Circuit breakers: how many connections a cluster, and each of its hosts, may have.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proxy_config::model::cluster::Thresholds;

use super::Cluster;
use super::host::Host;
use crate::telemetry::stats::{ClusterStats, Gauge, Held, Stats, stats_block};

stats_block! {
    /// `cluster.<name>.circuit_breakers.default.`, where `track_remaining` is set.
    pub(super) struct RemainingStats in "circuit_breakers.default" {
        gauge remaining_cx;
        gauge remaining_cx_pools;
        gauge remaining_pending;
        gauge remaining_retries;
        gauge remaining_rq;
    }
}

/// What is in use now of the default priority.
#[derive(Default)]
pub(super) struct Breaker {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    remaining: Option<Arc<RemainingStats>>,
}

/// No place under a breaker; counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    #[error("max_connections reached")]
    Connections,
    #[error("per-host max_connections reached")]
    HostConnections,
    #[error("max_pending_requests reached")]
    Pending,
}

/// One connection's place, with all gauges that count it; given back on drop.
///
/// It begins as a pending request, as Envoy's pools count it, and becomes an active one with [`Permit::attach`].
#[must_use = "the place is given back when this is dropped"]
pub struct Permit {
    cluster: Arc<Cluster>,
    request: Request,
    cx: Option<(Held<ClusterStats>, Held<Host>)>,
}

enum Request {
    Pending {
        _held: Held<ClusterStats>,
    },
    Active {
        _held: Held<ClusterStats>,
        _host: Held<Host>,
    },
    /// It failed with its connection.
    Failed,
}

impl Breaker {
    pub(super) fn new(thresholds: &Thresholds, stats: &Stats, prefix: &Arc<str>) -> Self {
        let remaining = thresholds.track_remaining.then(|| stats.block::<RemainingStats>(prefix.clone()));
        let breaker = Self { remaining, ..Self::default() };
        if let Some(remaining) = &breaker.remaining {
            remaining.remaining_cx.set(thresholds.max_connections.into());
            let unlimited = thresholds.max_connection_pools == u32::MAX;
            let pools = if unlimited { u64::MAX } else { thresholds.max_connection_pools.into() };
            remaining.remaining_cx_pools.set(pools);
            remaining.remaining_pending.set(thresholds.max_pending_requests.into());
            remaining.remaining_retries.set(thresholds.max_retries.into());
            remaining.remaining_rq.set(thresholds.max_requests.into());
        }
        breaker
    }

    /// The gauges that say which breakers are open, after a change.
    fn publish(&self, limits: &Thresholds, stats: &ClusterStats) {
        let (cx, pending, rq) = (
            self.connections.load(Ordering::Relaxed),
            self.pending.load(Ordering::Relaxed),
            self.requests.load(Ordering::Relaxed),
        );
        let show = |gauge: &Gauge, used: u32, limit: u32| gauge.set((used >= limit).into());
        show(&stats.circuit_breakers_default_cx_open, cx, limits.max_connections);
        show(&stats.circuit_breakers_default_rq_pending_open, pending, limits.max_pending_requests);
        show(&stats.circuit_breakers_default_rq_open, rq, limits.max_requests);
        if let Some(remaining) = &self.remaining {
            remaining.remaining_cx.set(limits.max_connections.saturating_sub(cx).into());
            remaining.remaining_pending.set(limits.max_pending_requests.saturating_sub(pending).into());
            remaining.remaining_rq.set(limits.max_requests.saturating_sub(rq).into());
        }
    }
}

/// Adds one where that stays within `limit`.
fn take(counter: &AtomicU32, limit: u32) -> bool {
    counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
}

impl Permit {
    pub(super) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<Self, Overflow> {
        let (breaker, stats) = (&cluster.breaker, &cluster.stats);
        let limits = &cluster.model.circuit_breakers;
        if !take(&breaker.connections, limits.default.max_connections) {
            stats.upstream_cx_overflow.inc();
            return Err(Overflow::Connections);
        }
        if !take(&breaker.pending, limits.default.max_pending_requests) {
            breaker.connections.fetch_sub(1, Ordering::AcqRel);
            stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow::Pending);
        }
        let per_host = u64::from(limits.per_host_max_connections.unwrap_or(u32::MAX));
        if host.stats.cx_active.value() >= per_host {
            breaker.connections.fetch_sub(1, Ordering::AcqRel);
            breaker.pending.fetch_sub(1, Ordering::AcqRel);
            stats.upstream_cx_overflow.inc();
            return Err(Overflow::HostConnections);
        }
        host.stats.cx_total.inc();
        stats.upstream_cx_total.inc();
        stats.upstream_rq_pending_total.inc();
        let permit = Self {
            cluster: cluster.clone(),
            request: Request::Pending { _held: Held::new(stats, |s| &s.upstream_rq_pending_active) },
            cx: Some((Held::new(stats, |s| &s.upstream_cx_active), Held::new(host, |h| &h.stats.cx_active))),
        };
        breaker.publish(&limits.default, stats);
        Ok(permit)
    }

    /// The connection is there: the pending request becomes an active one.
    pub fn attach(&mut self, host: &Arc<Host>) {
        if !matches!(self.request, Request::Pending { .. }) {
            return;
        }
        let (breaker, stats) = (&self.cluster.breaker, &self.cluster.stats);
        breaker.pending.fetch_sub(1, Ordering::AcqRel);
        breaker.requests.fetch_add(1, Ordering::AcqRel);
        stats.upstream_rq_total.inc();
        host.stats.rq_total.inc();
        self.request = Request::Active {
            _held: Held::new(stats, |s| &s.upstream_rq_active),
            _host: Held::new(host, |h| &h.stats.rq_active),
        };
        breaker.publish(&self.cluster.model.circuit_breakers.default, stats);
    }

    /// There will be no connection: the pending request fails with it.
    pub fn fail(&mut self) {
        if let Request::Pending { .. } = self.request {
            self.request = Request::Failed;
            self.cluster.breaker.pending.fetch_sub(1, Ordering::AcqRel);
            self.cluster.stats.upstream_rq_pending_failure_eject.inc();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (breaker, stats) = (&self.cluster.breaker, &self.cluster.stats);
        match std::mem::replace(&mut self.request, Request::Failed) {
            Request::Active { .. } => {
                breaker.requests.fetch_sub(1, Ordering::AcqRel);
            }
            Request::Pending { .. } => {
                breaker.pending.fetch_sub(1, Ordering::AcqRel);
                // Nobody waits for the connection any more.
                stats.upstream_rq_cancelled.inc();
            }
            Request::Failed => {}
        }
        self.cx = None;
        breaker.connections.fetch_sub(1, Ordering::AcqRel);
        breaker.publish(&self.cluster.model.circuit_breakers.default, stats);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
