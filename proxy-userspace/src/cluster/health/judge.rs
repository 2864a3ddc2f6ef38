//! What results mean for a host.

use std::time::Duration;

use proxy_config::model::cluster::HealthCheck;

use super::HealthStats;
use crate::cluster::Random;
use crate::cluster::host::{HealthFlag, Host};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Healthy {
        degraded: bool,
    },
    /// An answer, but not the right one. Only `retriable` ones are given several chances.
    Wrong {
        retriable: bool,
    },
    /// No connection, or one that broke.
    Network,
    Timeout,
}

/// What a result did to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    Unchanged,
    Changed,
    /// It will change if a threshold is reached.
    Pending,
}

/// What happened, for the event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    AddHealthy { first_check: bool },
    EjectUnhealthy,
    Failure { first_check: bool },
    Success,
    Degraded,
    NoLongerDegraded,
}

/// Results of one host in a row.
pub(super) struct Judge {
    healthy: u32,
    unhealthy: u32,
    first: bool,
}

impl Judge {
    pub(super) fn new() -> Self {
        Self { healthy: 0, unhealthy: 0, first: true }
    }

    /// Counts a result, sets the host's flags, and says what that changed.
    pub(super) fn result(
        &mut self,
        verdict: Verdict,
        host: &Host,
        check: &HealthCheck,
        stats: &HealthStats,
    ) -> (Transition, Vec<Happening>) {
        let mut happened = Vec::new();
        let mut transition = match verdict {
            Verdict::Healthy { degraded } => {
                stats.success.inc();
                let transition = self.success(host, check, &mut happened);
                if check.always_log_health_check_success {
                    happened.push(Happening::Success);
                }
                if set_degraded(host, degraded, &mut happened) { Transition::Changed } else { transition }
            }
            Verdict::Wrong { .. } | Verdict::Network | Verdict::Timeout => {
                stats.failure.inc();
                self.failure(verdict, host, check, stats, &mut happened)
            }
        };
        if host.clear(HealthFlag::PENDING_ACTIVE_HC) {
            // The host counts from now on, whatever its health.
            transition = Transition::Changed;
        }
        self.first = false;
        (transition, happened)
    }

    fn success(&mut self, host: &Host, check: &HealthCheck, happened: &mut Vec<Happening>) -> Transition {
        self.unhealthy = 0;
        if !host.has(HealthFlag::FAILED_ACTIVE_HC) {
            return Transition::Unchanged;
        }
        self.healthy += 1;
        // One success is enough for a host that was never judged: a start should not wait for thresholds.
        if !self.first && self.healthy < check.healthy_threshold {
            return Transition::Pending;
        }
        self.healthy = 0;
        host.clear(HealthFlag::ACTIVE_HC_TIMEOUT);
        host.clear(HealthFlag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
        host.clear(HealthFlag::FAILED_ACTIVE_HC);
        happened.push(Happening::AddHealthy { first_check: self.first });
        Transition::Changed
    }

    fn failure(
        &mut self,
        verdict: Verdict,
        host: &Host,
        check: &HealthCheck,
        stats: &HealthStats,
        happened: &mut Vec<Happening>,
    ) -> Transition {
        self.healthy = 0;
        let network = matches!(verdict, Verdict::Network | Verdict::Timeout);
        if network {
            stats.network_failure.inc();
        }
        if verdict == Verdict::Timeout {
            host.set(HealthFlag::ACTIVE_HC_TIMEOUT);
        } else {
            host.clear(HealthFlag::ACTIVE_HC_TIMEOUT);
        }
        let mut transition = Transition::Unchanged;
        if !host.has(HealthFlag::FAILED_ACTIVE_HC) {
            self.unhealthy += 1;
            // A wrong answer is no accident.
            let certain = verdict == (Verdict::Wrong { retriable: false });
            transition = if certain || self.unhealthy >= check.unhealthy_threshold {
                self.unhealthy = 0;
                host.set(HealthFlag::FAILED_ACTIVE_HC);
                happened.push(Happening::EjectUnhealthy);
                Transition::Changed
            } else {
                Transition::Pending
            };
        }
        if self.first || check.always_log_health_check_failures {
            happened.push(Happening::Failure { first_check: self.first });
        }
        transition
    }
}

fn set_degraded(host: &Host, degraded: bool, happened: &mut Vec<Happening>) -> bool {
    if degraded && host.set(HealthFlag::DEGRADED_ACTIVE_HC) {
        happened.push(Happening::Degraded);
        return true;
    }
    if !degraded && host.clear(HealthFlag::DEGRADED_ACTIVE_HC) {
        happened.push(Happening::NoLongerDegraded);
        return true;
    }
    false
}

/// How long until the next check. `traffic`: the cluster has had a connection, ever.
pub(super) fn interval(
    check: &HealthCheck,
    healthy: bool,
    transition: Transition,
    traffic: bool,
    random: &dyn Random,
) -> Duration {
    let unhealthy = check.unhealthy_interval.unwrap_or(check.interval);
    let base = match (traffic, healthy, transition == Transition::Pending) {
        (false, true, _) => check.no_traffic_healthy_interval.unwrap_or(check.no_traffic_interval),
        (false, false, _) => check.no_traffic_interval,
        (true, false, true) => check.unhealthy_edge_interval.unwrap_or(unhealthy),
        (true, false, false) => unhealthy,
        (true, true, true) => check.healthy_edge_interval.unwrap_or(check.interval),
        (true, true, false) => check.interval,
    };
    let percent = base.saturating_mul(check.interval_jitter_percent) / 100;
    base.saturating_add(jitter(percent, random)).saturating_add(jitter(check.interval_jitter, random))
}

pub(super) fn jitter(of: Duration, random: &dyn Random) -> Duration {
    let millis = u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.next().checked_rem(millis).unwrap_or(0))
}
