//! Picks among the hosts of one kind: round robin, least request, random.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proxy_config::model;
use proxy_config::model::cluster::{LbPolicy, SlowStart};

use super::edf::Edf;
use super::{Build, Random};
use crate::clock::{self, Instant};
use crate::cluster::Cluster;
use crate::cluster::host::{Health, Host};

pub(super) struct Pool {
    hosts: Arc<[Arc<Host>]>,
    order: Order,
}

enum Order {
    /// The next index. Least request and random have no use for it.
    Even(AtomicU64),
    /// Weights differ, or change with time.
    Weighted(Mutex<Box<Edf>>),
}

impl Pool {
    pub(super) fn new(build: &Build<'_>, hosts: Arc<[Arc<Host>]>) -> Self {
        let seed = build.random.next();
        let order = if needs_edf(build, &hosts) {
            let weights = hosts.iter().map(|host| weight(build.model, host, build.now));
            Order::Weighted(Mutex::new(Box::new(Edf::new(weights, seed))))
        } else {
            Order::Even(seed.into())
        };
        Self { hosts, order }
    }

    pub(super) fn pick(&self, cluster: &Cluster) -> Option<Arc<Host>> {
        let index = match &self.order {
            Order::Even(next) => self.even(next, &cluster.model.lb, cluster.random.as_ref())?,
            Order::Weighted(edf) => {
                let mut edf = edf.lock().unwrap_or_else(PoisonError::into_inner);
                let now = cluster.model.slow_start.as_ref().map(|_| clock::now());
                edf.pick(|index| match self.hosts.get(index as usize) {
                    Some(host) => weight_at(&cluster.model, host, now),
                    None => 1.0,
                })? as usize
            }
        };
        self.hosts.get(index).cloned()
    }

    fn even(&self, next: &AtomicU64, lb: &LbPolicy, random: &dyn Random) -> Option<usize> {
        let len = self.hosts.len() as u64;
        let any = || random.next().checked_rem(len);
        let index = match lb {
            LbPolicy::LeastRequest { choice_count, .. } => {
                let active = |index: &u64| {
                    self.hosts.get(*index as usize).map_or(0, |host| host.stats.rq_active.value())
                };
                // The first of equals stays, as in Envoy.
                (0..(*choice_count).max(1)).filter_map(|_| any()).min_by_key(active)
            }
            LbPolicy::Random => any(),
            LbPolicy::RoundRobin
            | LbPolicy::RingHash { .. }
            | LbPolicy::Maglev { .. }
            | LbPolicy::ClusterProvided => next.fetch_add(1, Ordering::Relaxed).checked_rem(len),
        };
        index.and_then(|index| usize::try_from(index).ok())
    }
}

/// Random heeds no weights; the others only where they differ, now or during slow start.
fn needs_edf(build: &Build<'_>, hosts: &[Arc<Host>]) -> bool {
    match build.model.lb {
        LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } => {}
        LbPolicy::Random
        | LbPolicy::RingHash { .. }
        | LbPolicy::Maglev { .. }
        | LbPolicy::ClusterProvided => {
            return false;
        }
    }
    let first = hosts.first().map(|host| host.weight());
    let starting = |slow: &SlowStart| hosts.iter().any(|host| age(host, build.now) < Some(slow.window));
    hosts.iter().any(|host| Some(host.weight()) != first)
        || build.model.slow_start.as_deref().is_some_and(starting)
}

/// For how long the host has been healthy; `None` counts as for ever.
fn age(host: &Host, now: Instant) -> Option<std::time::Duration> {
    let since = host.extra().filter(|_| host.health() == Health::Healthy)?.healthy_since()?;
    Some(now.saturating_duration_since(since))
}

fn weight(model: &model::Cluster, host: &Host, now: Instant) -> f64 {
    weight_at(model, host, Some(now))
}

/// A host's weight now: less with each active request under least request, less in slow start.
fn weight_at(model: &model::Cluster, host: &Host, now: Option<Instant>) -> f64 {
    let own = f64::from(host.weight());
    let weight = match model.lb {
        LbPolicy::LeastRequest { active_request_bias, .. } if active_request_bias > 0.0 => {
            own / ((host.stats.rq_active.value() + 1) as f64).powf(active_request_bias)
        }
        LbPolicy::LeastRequest { .. }
        | LbPolicy::RoundRobin
        | LbPolicy::Random
        | LbPolicy::RingHash { .. }
        | LbPolicy::Maglev { .. }
        | LbPolicy::ClusterProvided => own,
    };
    match (&model.slow_start, now) {
        (Some(slow), Some(now)) => weight * slow_start_factor(slow, host, now),
        (_, _) => weight,
    }
}

fn slow_start_factor(slow: &SlowStart, host: &Host, now: Instant) -> f64 {
    let Some(age) = age(host, now).filter(|age| *age < slow.window) else { return 1.0 };
    let part = (age.as_millis().max(1) as f64 / slow.window.as_millis().max(1) as f64).min(1.0);
    let aggression = if slow.aggression > 0.0 { slow.aggression } else { 1.0 };
    part.powf(1.0 / aggression).max(slow.min_weight_percent / 100.0)
}
