//! Circuit breakers: how many connections, requests and retries a cluster may have at once, for each priority, and how
//! many connections each of its hosts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proxy_config::model;
use proxy_config::model::cluster::Thresholds;
use proxy_config::model::http::Priority;

use super::Cluster;
use super::host::Host;
use crate::telemetry::stats::{ClusterStats, Gauge, Held, Stats, stats_block};

stats_block! {
    /// `cluster.<name>.circuit_breakers.<priority>.`, where `track_remaining` is set.
    pub(super) struct RemainingStats {
        gauge remaining_cx;
        gauge remaining_cx_pools;
        gauge remaining_pending;
        gauge remaining_retries;
        gauge remaining_rq;
    }
}

/// What is in use now. Shared with whatever holds a place: it may outlive its cluster.
pub struct Breaker {
    model: Arc<model::Cluster>,
    stats: Arc<ClusterStats>,
    default: Level,
    high: Level,
}

/// Of one priority.
#[derive(Default)]
struct Level {
    used: [AtomicU32; 5],
    remaining: Option<Arc<RemainingStats>>,
}

/// What there may be too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Connections,
    Pending,
    Requests,
    Retries,
    Pools,
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
    #[error("max_requests reached")]
    Requests,
    #[error("max_retries reached")]
    Retries,
    #[error("max_connection_pools reached")]
    Pools,
}

/// One of what a breaker counts; given back on drop.
#[must_use = "the place is given back when this is dropped"]
struct Place {
    breaker: Arc<Breaker>,
    what: What,
    priority: Priority,
}

/// A connection's place, with the gauges that count it.
#[must_use = "the place is given back when this is dropped"]
pub struct Connection {
    _place: Place,
    _held: (Held<ClusterStats>, Held<Host>),
}

/// Of a request that waits for a connection.
#[must_use = "the place is given back when this is dropped"]
pub struct Pending {
    _place: Place,
    _held: Held<ClusterStats>,
}

/// Of a request on a connection.
#[must_use = "the place is given back when this is dropped"]
pub struct Request {
    _place: Place,
    _held: (Held<ClusterStats>, Held<Host>),
}

/// Of a retry, while it goes on.
#[must_use = "the place is given back when this is dropped"]
pub struct Retry {
    _place: Place,
}

/// Of a pool of connections.
#[must_use = "the place is given back when this is dropped"]
pub struct Pool {
    _place: Place,
}

impl Breaker {
    pub(super) fn new(
        model: &Arc<model::Cluster>,
        cluster: &Arc<ClusterStats>,
        stats: &Stats,
        prefix: &Arc<str>,
    ) -> Arc<Self> {
        let limits = &model.circuit_breakers;
        let level = |limits: &Thresholds, name: &str| {
            let track = limits.track_remaining;
            let remaining = track.then(|| stats.block(format!("{prefix}.circuit_breakers.{name}")));
            Level { remaining, ..Level::default() }
        };
        let breaker = Self {
            default: level(&limits.default, "default"),
            high: level(&limits.high, "high"),
            model: model.clone(),
            stats: cluster.clone(),
        };
        for priority in [Priority::Default, Priority::High] {
            for what in What::ALL {
                breaker.show_remaining(what, priority, 0);
            }
        }
        Arc::new(breaker)
    }

    /// `first`: of a pool that has no other. Such a one is let through, so that no pool starves, as in Envoy; that the
    /// limit is reached is counted all the same.
    pub fn connection(
        self: &Arc<Self>,
        host: &Arc<Host>,
        priority: Priority,
        first: bool,
    ) -> Result<Connection, Overflow> {
        let full = self.is_full(host);
        let place = if full { None } else { self.take(What::Connections, priority) };
        let place = match place {
            Some(place) => place,
            None => {
                self.stats.upstream_cx_overflow.inc();
                if !first {
                    return Err(if full { Overflow::HostConnections } else { Overflow::Connections });
                }
                self.force(What::Connections, priority)
            }
        };
        Ok(self.connecting(host, place))
    }

    /// As Envoy's tcp_proxy asks before all else, also where a connection that is there would do; counted.
    pub fn refuses_connections(&self, priority: Priority) -> bool {
        let used = self.used(What::Connections, priority).load(Ordering::Acquire);
        let full = used >= self.limit(What::Connections, priority);
        if full {
            self.stats.upstream_cx_overflow.inc();
        }
        full
    }

    fn is_full(&self, host: &Host) -> bool {
        let per_host = self.model.circuit_breakers.per_host_max_connections;
        per_host.is_some_and(|most| host.stats.cx_active.value() >= most.into())
    }

    fn connecting(&self, host: &Arc<Host>, place: Place) -> Connection {
        host.stats.cx_total.inc();
        self.stats.upstream_cx_total.inc();
        let active = Held::new(&self.stats, |s| &s.upstream_cx_active);
        Connection { _place: place, _held: (active, Held::new(host, |h| &h.stats.cx_active)) }
    }

    pub fn pending(self: &Arc<Self>, priority: Priority) -> Result<Pending, Overflow> {
        let Some(place) = self.take(What::Pending, priority) else {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow::Pending);
        };
        Ok(self.waiting(place))
    }

    fn waiting(&self, place: Place) -> Pending {
        self.stats.upstream_rq_pending_total.inc();
        Pending { _place: place, _held: Held::new(&self.stats, |s| &s.upstream_rq_pending_active) }
    }

    /// A request is given a connection.
    pub fn request(self: &Arc<Self>, host: &Arc<Host>, priority: Priority) -> Result<Request, Overflow> {
        let Some(place) = self.take(What::Requests, priority) else {
            self.stats.upstream_rq_active_overflow.inc();
            return Err(Overflow::Requests);
        };
        Ok(self.begun(host, place))
    }

    /// As [`Self::request`], of what is not limited: a connection of TCP is one request.
    fn stream(self: &Arc<Self>, host: &Arc<Host>) -> Request {
        self.begun(host, self.force(What::Requests, Priority::Default))
    }

    fn begun(&self, host: &Arc<Host>, place: Place) -> Request {
        self.stats.upstream_rq_total.inc();
        host.stats.rq_total.inc();
        let active = Held::new(&self.stats, |s| &s.upstream_rq_active);
        Request { _place: place, _held: (active, Held::new(host, |h| &h.stats.rq_active)) }
    }

    pub fn retry(self: &Arc<Self>, priority: Priority) -> Result<Retry, Overflow> {
        match self.take(What::Retries, priority) {
            Some(place) => Ok(Retry { _place: place }),
            None => {
                self.stats.upstream_rq_retry_overflow.inc();
                Err(Overflow::Retries)
            }
        }
    }

    pub fn pool(self: &Arc<Self>, priority: Priority) -> Result<Pool, Overflow> {
        match self.take(What::Pools, priority) {
            Some(place) => Ok(Pool { _place: place }),
            None => {
                self.stats.upstream_cx_pool_overflow.inc();
                Err(Overflow::Pools)
            }
        }
    }

    fn take(self: &Arc<Self>, what: What, priority: Priority) -> Option<Place> {
        let limit = self.limit(what, priority);
        let used = self.used(what, priority);
        let add = |n: u32| (n < limit).then_some(n + 1);
        let before = used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add).ok()?;
        self.show(what, priority, before + 1, limit);
        Some(Place { breaker: self.clone(), what, priority })
    }

    fn force(self: &Arc<Self>, what: What, priority: Priority) -> Place {
        let before = self.used(what, priority).fetch_add(1, Ordering::AcqRel);
        self.show(what, priority, before + 1, self.limit(what, priority));
        Place { breaker: self.clone(), what, priority }
    }

    fn level(&self, priority: Priority) -> (&Level, &Thresholds) {
        match priority {
            Priority::Default => (&self.default, &self.model.circuit_breakers.default),
            Priority::High => (&self.high, &self.model.circuit_breakers.high),
        }
    }

    fn used(&self, what: What, priority: Priority) -> &AtomicU32 {
        let [connections, pending, requests, retries, pools] = &self.level(priority).0.used;
        match what {
            What::Connections => connections,
            What::Pending => pending,
            What::Requests => requests,
            What::Retries => retries,
            What::Pools => pools,
        }
    }

    fn limit(&self, what: What, priority: Priority) -> u32 {
        let limits = self.level(priority).1;
        match what {
            What::Connections => limits.max_connections,
            What::Pending => limits.max_pending_requests,
            What::Requests => limits.max_requests,
            What::Retries => self.retries(limits, priority),
            What::Pools => limits.max_connection_pools,
        }
    }

    /// A share of the requests that there are, where there is a budget; waiting ones count as well, as in Envoy.
    fn retries(&self, limits: &Thresholds, priority: Priority) -> u32 {
        let Some(budget) = &limits.retry_budget else { return limits.max_retries };
        let count = |what| self.used(what, priority).load(Ordering::Relaxed);
        let active = f64::from(count(What::Requests)) + f64::from(count(What::Pending));
        let share = (active * budget.budget_percent / 100.0).clamp(0.0, f64::from(u32::MAX));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was clamped")]
        let share = share as u32;
        share.max(budget.min_retry_concurrency)
    }

    /// The gauges that say whether a breaker is open, after a change to `used`.
    fn show(&self, what: What, priority: Priority, used: u32, limit: u32) {
        let gauge = self.gauge(what, priority);
        let open = u64::from(used >= limit);
        // All requests share it: it is written only where it changes.
        if gauge.value() != open || !gauge.used() {
            gauge.set(open);
        }
        if self.level(priority).0.remaining.is_some() {
            self.show_remaining(what, priority, used);
        }
    }

    fn show_remaining(&self, what: What, priority: Priority, used: u32) {
        let Some(remaining) = &self.level(priority).0.remaining else { return };
        let limit = self.limit(what, priority);
        let (gauge, left) = match what {
            What::Connections => (&remaining.remaining_cx, limit.saturating_sub(used).into()),
            What::Pending => (&remaining.remaining_pending, limit.saturating_sub(used).into()),
            What::Requests => (&remaining.remaining_rq, limit.saturating_sub(used).into()),
            What::Retries => (&remaining.remaining_retries, limit.saturating_sub(used).into()),
            What::Pools if limit == u32::MAX => (&remaining.remaining_cx_pools, u64::MAX),
            What::Pools => (&remaining.remaining_cx_pools, limit.saturating_sub(used).into()),
        };
        gauge.set(left);
    }

    fn gauge(&self, what: What, priority: Priority) -> &Gauge {
        let stats = &self.stats;
        match (priority, what) {
            (Priority::Default, What::Connections) => &stats.circuit_breakers_default_cx_open,
            (Priority::Default, What::Pending) => &stats.circuit_breakers_default_rq_pending_open,
            (Priority::Default, What::Requests) => &stats.circuit_breakers_default_rq_open,
            (Priority::Default, What::Retries) => &stats.circuit_breakers_default_rq_retry_open,
            (Priority::Default, What::Pools) => &stats.circuit_breakers_default_cx_pool_open,
            (Priority::High, What::Connections) => &stats.circuit_breakers_high_cx_open,
            (Priority::High, What::Pending) => &stats.circuit_breakers_high_rq_pending_open,
            (Priority::High, What::Requests) => &stats.circuit_breakers_high_rq_open,
            (Priority::High, What::Retries) => &stats.circuit_breakers_high_rq_retry_open,
            (Priority::High, What::Pools) => &stats.circuit_breakers_high_cx_pool_open,
        }
    }
}

impl What {
    const ALL: [Self; 5] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries, Self::Pools];
}

impl Drop for Place {
    fn drop(&mut self) {
        let breaker = &self.breaker;
        let before = breaker.used(self.what, self.priority).fetch_sub(1, Ordering::AcqRel);
        let limit = breaker.limit(self.what, self.priority);
        breaker.show(self.what, self.priority, before.saturating_sub(1), limit);
    }
}

/// The places of a connection that is one request: of TCP, or of a stream that is never another's.
///
/// It begins as a pending request, as Envoy's pools count it, and becomes an active one with [`Permit::attach`].
#[must_use = "the place is given back when this is dropped"]
pub struct Permit {
    breaker: Arc<Breaker>,
    request: State,
    _cx: Connection,
}

enum State {
    Pending {
        _place: Pending,
    },
    Active {
        _place: Request,
    },
    /// It failed with its connection.
    Failed,
}

impl Permit {
    pub(super) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<Self, Overflow> {
        let (breaker, priority) = (cluster.breaker(), Priority::Default);
        let stats = &breaker.stats;
        let Some(cx) = breaker.take(What::Connections, priority) else {
            stats.upstream_cx_overflow.inc();
            return Err(Overflow::Connections);
        };
        let Some(pending) = breaker.take(What::Pending, priority) else {
            stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow::Pending);
        };
        if breaker.is_full(host) {
            stats.upstream_cx_overflow.inc();
            return Err(Overflow::HostConnections);
        }
        let (cx, pending) = (breaker.connecting(host, cx), breaker.waiting(pending));
        Ok(Self { breaker: breaker.clone(), request: State::Pending { _place: pending }, _cx: cx })
    }

    /// The connection is there: the pending request becomes an active one.
    pub fn attach(&mut self, host: &Arc<Host>) {
        if matches!(self.request, State::Pending { .. }) {
            self.request = State::Failed;
            self.request = State::Active { _place: self.breaker.stream(host) };
        }
    }

    /// There will be no connection: the pending request fails with it.
    pub fn fail(&mut self) {
        if matches!(self.request, State::Pending { .. }) {
            self.request = State::Failed;
            self.breaker.stats.upstream_rq_pending_failure_eject.inc();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if matches!(self.request, State::Pending { .. }) {
            // Nobody waits for the connection any more.
            self.breaker.stats.upstream_rq_cancelled.inc();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
