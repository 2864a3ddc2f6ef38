//! Outlier detection: hosts that fail more than they may are ejected for a while.
//!
//! A [`Monitor`] is on each host and counts; the [`Detector`] is the cluster's and judges, at once for consecutive
//! failures, at each interval for rates.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proxy_config::model::cluster::OutlierDetection;
use tokio::time::sleep;

use super::host::{HealthFlag, Host};
use super::{Cluster, Env, Event};
use crate::clock::{self, Instant};
use crate::telemetry::stats::{Counter, Stats, stats_block};
use crate::watch::Group;

stats_block! {
    /// `cluster.<name>.outlier_detection.`
    pub(super) struct OutlierStats in "outlier_detection" {
        gauge ejections_active;
        counter ejections_overflow;
        counter ejections_total;
        counter ejections_consecutive_5xx;
        counter ejections_success_rate;
        counter ejections_enforced_total;
        counter ejections_detected_consecutive_5xx;
        counter ejections_enforced_consecutive_5xx;
        counter ejections_detected_consecutive_gateway_failure;
        counter ejections_enforced_consecutive_gateway_failure;
        counter ejections_detected_consecutive_local_origin_failure;
        counter ejections_enforced_consecutive_local_origin_failure;
        counter ejections_detected_success_rate;
        counter ejections_enforced_success_rate;
        counter ejections_detected_local_origin_success_rate;
        counter ejections_enforced_local_origin_success_rate;
        counter ejections_detected_failure_percentage;
        counter ejections_enforced_failure_percentage;
        counter ejections_detected_local_origin_failure_percentage;
        counter ejections_enforced_local_origin_failure_percentage;
    }
}

pub(super) struct Detector {
    stats: Arc<OutlierStats>,
    /// Ejections and their ends are decided one at a time.
    deciding: Mutex<()>,
}

/// What a host has done lately.
#[derive(Default)]
pub(super) struct Monitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    external: Rate,
    local: Rate,
    ejection: Mutex<Ejection>,
}

/// Requests and successes since the last interval, and the rate of the one before.
#[derive(Default)]
struct Rate {
    total: AtomicU64,
    success: AtomicU64,
    /// In percent, as bits, plus one; 0 is unknown.
    last: AtomicU64,
}

#[derive(Default)]
struct Ejection {
    at: Option<Instant>,
    backoff: u32,
    jitter: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    ConsecutiveLocalOriginFailure,
    SuccessRate { local: bool },
    FailurePercentage { local: bool },
}

/// The status that Envoy counts for what happened below HTTP, where the two are not told apart.
const OK: u16 = 200;
const CONNECT_FAILED: u16 = 503;
const TIMEOUT: u16 = 504;

/// Judges an event, where the cluster detects outliers.
pub(super) fn report(cluster: &Cluster, host: &Arc<Host>, event: Event) {
    let Some(detector) = cluster.active.as_ref().and_then(|active| active.outlier.as_ref()) else { return };
    let Some(monitor) = host.extra().and_then(|extra| extra.outlier.as_ref()) else { return };
    let Some(config) = cluster.model.outlier_detection.as_deref() else { return };
    let split = config.split_external_local_origin_errors;
    let reason = match event {
        Event::Status(status) => monitor.status(config, status),
        Event::Connected(_) if split => monitor.local_origin(config, true),
        Event::Connected(_) => monitor.status(config, OK),
        Event::ConnectedForRequests(_) if split => monitor.local_origin(config, true),
        // The request will say more.
        Event::ConnectedForRequests(_) => None,
        Event::ConnectFailed | Event::ConnectTimeout | Event::RequestFailed | Event::RequestTimeout
            if split =>
        {
            monitor.local_origin(config, false)
        }
        // Envoy takes a reset for a failure to connect.
        Event::ConnectFailed | Event::RequestFailed => monitor.status(config, CONNECT_FAILED),
        Event::ConnectTimeout | Event::RequestTimeout => monitor.status(config, TIMEOUT),
    };
    if let Some(reason) = reason {
        detector.consecutive(cluster, host, monitor, config, reason);
    }
}

/// What clusters of one timer have in common: its length, and in which tenth of a length they were started.
pub(super) type Interval = (Duration, u128);

/// Looks at every host once an interval.
pub(super) fn start(cluster: &Arc<Cluster>, env: &Env) -> Arc<Group<Cluster>> {
    let length = cluster.model.outlier_detection.as_ref().map_or(Duration::from_secs(10), |c| c.interval);
    let age = clock::now().saturating_duration_since(env.born);
    let tenth = 10 * age.as_nanos() / length.as_nanos().max(1);
    env.intervals.join((length, tenth), cluster, |group| {
        let task = env.tasks.spawn("outlier_detection", async move {
            loop {
                sleep(length).await;
                let Some(group) = group.upgrade() else { return };
                group.members().iter().for_each(|cluster| tick(cluster, clock::now()));
            }
        });
        task.abort_handle()
    })
}

/// What happens at each interval.
fn tick(cluster: &Cluster, now: Instant) {
    let Some(detector) = cluster.active.as_ref().and_then(|active| active.outlier.as_ref()) else { return };
    let Some(config) = cluster.model.outlier_detection.as_deref() else { return };
    let hosts = cluster.hosts();
    let mut changed = false;
    for (host, monitor) in monitored(&hosts) {
        changed |= detector.maybe_uneject(host, monitor, config, now);
    }
    for local in [false, true] {
        let rates: Vec<_> = monitored(&hosts)
            .filter_map(|(host, monitor)| {
                let (rate, volume) = monitor.rate(local).next_interval()?;
                (!host.has(HealthFlag::FAILED_OUTLIER_CHECK)).then_some((host, monitor, rate, volume))
            })
            .collect();
        changed |= detector.judge(cluster, config, &rates, local);
    }
    if changed {
        cluster.refresh();
    }
}

fn monitored(hosts: &[Arc<Host>]) -> impl Iterator<Item = (&Arc<Host>, &Monitor)> {
    hosts.iter().filter_map(|host| Some((host, host.extra()?.outlier.as_ref()?)))
}

/// A host, and how many of its requests in the last interval succeeded.
type Rated<'a> = (&'a Arc<Host>, &'a Monitor, f64, u64);

impl Detector {
    pub(super) fn new(stats: &Stats, prefix: &Arc<str>) -> Self {
        Self { stats: stats.block(prefix.clone()), deciding: Mutex::new(()) }
    }

    /// An active health check that succeeds ends an ejection, where the cluster wants that.
    pub(super) fn health_check_passed(&self, host: &Host) -> bool {
        let Some(monitor) = host.extra().and_then(|extra| extra.outlier.as_ref()) else { return false };
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        host.has(HealthFlag::FAILED_OUTLIER_CHECK) && self.uneject(host, monitor)
    }

    /// Ejected hosts that left with an update no longer count.
    pub(super) fn recount<'a>(&self, hosts: impl Iterator<Item = &'a Arc<Host>>) {
        let ejected = hosts.filter(|host| host.has(HealthFlag::FAILED_OUTLIER_CHECK)).count();
        self.stats.ejections_active.set(ejected as u64);
    }

    fn consecutive(
        &self,
        cluster: &Cluster,
        host: &Arc<Host>,
        monitor: &Monitor,
        config: &OutlierDetection,
        reason: Reason,
    ) {
        if host.has(HealthFlag::FAILED_OUTLIER_CHECK) {
            return;
        }
        reason.detected(&self.stats).inc();
        if reason == Reason::Consecutive5xx {
            self.stats.ejections_consecutive_5xx.inc();
        }
        let ejected = self.eject(cluster, host, monitor, config, reason);
        // Counted anew, also where nothing was ejected.
        match reason {
            Reason::Consecutive5xx => monitor.consecutive_5xx.store(0, Ordering::Relaxed),
            Reason::ConsecutiveGatewayFailure => monitor.consecutive_gateway.store(0, Ordering::Relaxed),
            Reason::ConsecutiveLocalOriginFailure => monitor.consecutive_local.store(0, Ordering::Relaxed),
            Reason::SuccessRate { .. } | Reason::FailurePercentage { .. } => {}
        }
        if ejected {
            cluster.refresh();
        }
    }

    /// By success rate against the mean, and by failure percentage.
    fn judge(&self, cluster: &Cluster, config: &OutlierDetection, rates: &[Rated<'_>], local: bool) -> bool {
        let (success, failure) = (config.success_rate, config.failure_percentage);
        let least = success.request_volume.min(failure.request_volume);
        for (_, monitor, rate, volume) in rates {
            if *volume >= least.into() {
                monitor.rate(local).publish(*rate);
            }
        }
        let of = |volume: u32| rates.iter().filter(move |(.., v)| *v >= volume.into());
        let mut changed = false;
        let rated: Vec<_> = of(success.request_volume).collect();
        if !rated.is_empty() && rated.len() >= success.minimum_hosts as usize {
            let threshold = success_rate_threshold(&rated, f64::from(success.stdev_factor) / 1000.0);
            for (host, monitor, ..) in rated.iter().filter(|(.., rate, _)| *rate < threshold) {
                self.stats.ejections_success_rate.inc();
                changed |= self.detect(cluster, host, monitor, config, Reason::SuccessRate { local });
            }
        }
        let rated: Vec<_> = of(failure.request_volume).collect();
        if !rated.is_empty() && rated.len() >= failure.minimum_hosts as usize {
            for (host, monitor, ..) in rated.iter().filter(|(.., r, _)| 100.0 - r >= failure.threshold.into())
            {
                changed |= self.detect(cluster, host, monitor, config, Reason::FailurePercentage { local });
            }
        }
        changed
    }

    fn detect(
        &self,
        cluster: &Cluster,
        host: &Arc<Host>,
        monitor: &Monitor,
        config: &OutlierDetection,
        reason: Reason,
    ) -> bool {
        reason.detected(&self.stats).inc();
        self.eject(cluster, host, monitor, config, reason)
    }

    fn eject(
        &self,
        cluster: &Cluster,
        host: &Arc<Host>,
        monitor: &Monitor,
        config: &OutlierDetection,
        reason: Reason,
    ) -> bool {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = cluster.hosts();
        if host.has(HealthFlag::FAILED_OUTLIER_CHECK) || !hosts.iter().any(|known| Arc::ptr_eq(known, host)) {
            return false;
        }
        let active = self.stats.ejections_active.value();
        if !may_eject_one_more(config, active, hosts.len()) {
            self.stats.ejections_overflow.inc();
            return false;
        }
        if matches!(reason, Reason::Consecutive5xx | Reason::SuccessRate { .. }) {
            self.stats.ejections_total.inc();
        }
        let enforced = cluster.random.next() % 100 < reason.enforcing(config).into();
        log::info!(
            "cluster {}: {host:?} is an outlier: {reason:?}, enforced: {enforced}",
            cluster.model.name
        );
        if !enforced {
            return false;
        }
        self.stats.ejections_active.set(active + 1);
        self.stats.ejections_enforced_total.inc();
        reason.enforced(&self.stats).inc();
        monitor.eject(config, cluster.random.next());
        host.set(HealthFlag::FAILED_OUTLIER_CHECK);
        if cluster.model.close_connections_on_host_health_failure {
            host.close_connections();
        }
        // What is idle closes, and what is busy is not used again.
        cluster.pools.keep(|other| !std::ptr::eq(other, &**host));
        true
    }

    fn maybe_uneject(&self, host: &Host, monitor: &Monitor, config: &OutlierDetection, now: Instant) -> bool {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        if !host.has(HealthFlag::FAILED_OUTLIER_CHECK) {
            let mut ejection = monitor.ejection.lock().unwrap_or_else(PoisonError::into_inner);
            // A quiet interval makes the next ejection shorter.
            ejection.backoff = ejection.backoff.saturating_sub(1);
            return false;
        }
        let over = {
            let ejection = monitor.ejection.lock().unwrap_or_else(PoisonError::into_inner);
            let time =
                config.base_ejection_time.saturating_mul(ejection.backoff).min(config.max_ejection_time);
            ejection.at.is_none_or(|at| now.saturating_duration_since(at) >= time + ejection.jitter)
        };
        over && self.uneject(host, monitor)
    }

    fn uneject(&self, host: &Host, monitor: &Monitor) -> bool {
        self.stats.ejections_active.set(self.stats.ejections_active.value().saturating_sub(1));
        for counter in [&monitor.consecutive_5xx, &monitor.consecutive_gateway, &monitor.consecutive_local] {
            counter.store(0, Ordering::Relaxed);
        }
        host.clear(HealthFlag::FAILED_OUTLIER_CHECK)
    }
}

impl Monitor {
    pub(super) fn success_rate(&self, local: bool) -> Option<f64> {
        let bits = self.rate(local).last.load(Ordering::Relaxed);
        bits.checked_sub(1).map(f64::from_bits)
    }

    fn rate(&self, local: bool) -> &Rate {
        if local { &self.local } else { &self.external }
    }

    /// A response, or what counts as one; says whether a threshold was just reached.
    fn status(&self, config: &OutlierDetection, status: u16) -> Option<Reason> {
        let failed = (500..600).contains(&status);
        self.external.count(!failed);
        let mut reached = None;
        if matches!(status, 502..=504) {
            let count = self.consecutive_gateway.fetch_add(1, Ordering::Relaxed) + 1;
            if count == config.consecutive_gateway_failure.threshold
                && config.consecutive_gateway_failure.enforcing > 0
            {
                reached = Some(Reason::ConsecutiveGatewayFailure);
            }
        } else {
            self.consecutive_gateway.store(0, Ordering::Relaxed);
        }
        if !failed {
            self.consecutive_5xx.store(0, Ordering::Relaxed);
            return None;
        }
        let count = self.consecutive_5xx.fetch_add(1, Ordering::Relaxed) + 1;
        if count == config.consecutive_5xx.threshold { Some(Reason::Consecutive5xx) } else { reached }
    }

    fn local_origin(&self, config: &OutlierDetection, success: bool) -> Option<Reason> {
        self.local.count(success);
        if success {
            self.consecutive_local.store(0, Ordering::Relaxed);
            return None;
        }
        let count = self.consecutive_local.fetch_add(1, Ordering::Relaxed) + 1;
        let reached = count == config.consecutive_local_origin_failure.threshold;
        reached.then_some(Reason::ConsecutiveLocalOriginFailure)
    }

    fn eject(&self, config: &OutlierDetection, random: u64) {
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        ejection.at = Some(clock::now());
        let jitter = u64::try_from(config.max_ejection_time_jitter.as_millis()).unwrap_or(u64::MAX);
        ejection.jitter = Duration::from_millis(random.checked_rem(jitter.saturating_add(1)).unwrap_or(0));
        let longest = config.max_ejection_time + config.base_ejection_time;
        if config.base_ejection_time.saturating_mul(ejection.backoff) < longest {
            ejection.backoff += 1;
        }
    }
}

impl Rate {
    fn count(&self, success: bool) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.success.fetch_add(success.into(), Ordering::Relaxed);
    }

    /// Success in percent and the number of requests since the last call; `None` where there were none.
    fn next_interval(&self) -> Option<(f64, u64)> {
        self.last.store(0, Ordering::Relaxed);
        let success = self.success.swap(0, Ordering::Relaxed);
        let total = self.total.swap(0, Ordering::Relaxed);
        (total > 0).then(|| (100.0 * success as f64 / total as f64, total))
    }

    fn publish(&self, rate: f64) {
        self.last.store(rate.to_bits() + 1, Ordering::Relaxed);
    }
}

fn may_eject_one_more(config: &OutlierDetection, active: u64, hosts: usize) -> bool {
    let percent = 100.0 * (active + 1) as f64 / hosts.max(1) as f64;
    percent <= f64::from(config.max_ejection_percent.min(100))
        || (config.always_eject_one_host && active == 0)
}

fn success_rate_threshold(rated: &[&Rated<'_>], stdev_factor: f64) -> f64 {
    let count = rated.len() as f64;
    let mean = rated.iter().map(|(.., rate, _)| rate).sum::<f64>() / count;
    let variance = rated.iter().map(|(.., rate, _)| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - stdev_factor * variance.sqrt()
}

impl Reason {
    fn enforcing(self, config: &OutlierDetection) -> u32 {
        match self {
            Self::Consecutive5xx => config.consecutive_5xx.enforcing,
            Self::ConsecutiveGatewayFailure => config.consecutive_gateway_failure.enforcing,
            Self::ConsecutiveLocalOriginFailure => config.consecutive_local_origin_failure.enforcing,
            Self::SuccessRate { local: false } => config.success_rate.enforcing,
            Self::SuccessRate { local: true } => config.success_rate.enforcing_local_origin,
            Self::FailurePercentage { local: false } => config.failure_percentage.enforcing,
            Self::FailurePercentage { local: true } => config.failure_percentage.enforcing_local_origin,
        }
    }

    fn detected(self, s: &OutlierStats) -> &Counter {
        match self {
            Self::Consecutive5xx => &s.ejections_detected_consecutive_5xx,
            Self::ConsecutiveGatewayFailure => &s.ejections_detected_consecutive_gateway_failure,
            Self::ConsecutiveLocalOriginFailure => &s.ejections_detected_consecutive_local_origin_failure,
            Self::SuccessRate { local: false } => &s.ejections_detected_success_rate,
            Self::SuccessRate { local: true } => &s.ejections_detected_local_origin_success_rate,
            Self::FailurePercentage { local: false } => &s.ejections_detected_failure_percentage,
            Self::FailurePercentage { local: true } => &s.ejections_detected_local_origin_failure_percentage,
        }
    }

    fn enforced(self, s: &OutlierStats) -> &Counter {
        match self {
            Self::Consecutive5xx => &s.ejections_enforced_consecutive_5xx,
            Self::ConsecutiveGatewayFailure => &s.ejections_enforced_consecutive_gateway_failure,
            Self::ConsecutiveLocalOriginFailure => &s.ejections_enforced_consecutive_local_origin_failure,
            Self::SuccessRate { local: false } => &s.ejections_enforced_success_rate,
            Self::SuccessRate { local: true } => &s.ejections_enforced_local_origin_success_rate,
            Self::FailurePercentage { local: false } => &s.ejections_enforced_failure_percentage,
            Self::FailurePercentage { local: true } => &s.ejections_enforced_local_origin_failure_percentage,
        }
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
