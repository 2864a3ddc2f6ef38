//! `envoy.filters.http.health_check`: answers those who ask whether the proxy is well.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use proxy_config::model::http::filters::HealthCheckFilter as Config;

use super::FilterCx;
use super::common::matches;
use crate::clock::{self, Instant};
use crate::http::Stream;
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::telemetry::Flags;
use crate::telemetry::stats::stats_block;

const CHECKED: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

stats_block! {
    /// `http.<stat_prefix>.health_check.`
    pub struct HealthCheckStats {
        counter cached_response;
        counter degraded;
        counter failed;
        counter failed_cluster_empty;
        counter failed_cluster_not_found;
        counter failed_cluster_unhealthy;
        counter ok;
        counter request_total;
    }
}

pub(super) struct HealthCheck(Arc<Shared>);

struct Shared {
    config: Config,
    stats: Arc<HealthCheckStats>,
    failing: Arc<AtomicBool>,
    /// The node's own.
    cluster: HeaderValue,
    cache: Option<Cache>,
}

struct One {
    shared: Arc<Shared>,
    asks: bool,
}

/// What an answer is, in Envoy's words.
struct Verdict {
    status: StatusCode,
    details: &'static str,
    degraded: bool,
}

impl HealthCheck {
    pub(super) fn new(config: &Config, cx: &FilterCx<'_>) -> Self {
        let stats = cx.parts.cluster.stats.block(format!("{}.health_check", cx.prefix));
        let cache = config.cache_time.filter(|time| !time.is_zero()).map(Cache::new);
        let common = cx.parts.http;
        let cluster = HeaderValue::from_str(&common.node.cluster).unwrap_or(HeaderValue::from_static(""));
        Self(Arc::new(Shared {
            config: config.clone(),
            stats,
            failing: common.failing.clone(),
            cluster,
            cache,
        }))
    }
}

impl Filter for HealthCheck {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One { shared: self.0.clone(), asks: false }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.shared;
        if !shared.config.headers.iter().all(|matcher| matches(matcher, stream.request())) {
            return Step::Next;
        }
        self.asks = true;
        stream.http_mut().health_check = true;
        let failing = shared.failing.load(Ordering::Relaxed);
        let cached = shared.cache.as_ref().and_then(Cache::fresh);
        if shared.config.pass_through_mode && !failing && cached.is_none() {
            return Step::Next;
        }
        let verdict =
            if failing { verdict(503, "health_check_failed") } else { shared.judge(stream, cached) };
        Step::reply(shared.answer(verdict))
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.shared;
        let Some(head) = stream.response_mut() else { return Step::Next };
        if self.asks {
            if let Some(cache) = &shared.cache {
                cache.keep(head.status, head.headers.contains_key(DEGRADED));
            }
            head.headers.insert(CHECKED, shared.cluster.clone());
        } else if shared.failing.load(Ordering::Relaxed) {
            head.headers.insert(FAIL, HeaderValue::from_static("true"));
        }
        Step::Next
    }
}

fn verdict(status: u16, details: &'static str) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    Verdict { status, details, degraded: false }
}

impl Shared {
    fn judge(&self, stream: &Stream, cached: Option<(StatusCode, bool)>) -> Verdict {
        if let Some((status, degraded)) = cached {
            self.stats.cached_response.inc();
            return Verdict { status, details: "health_check_cached", degraded };
        }
        for (name, percentage) in &self.config.cluster_min_healthy_percentages {
            let Some(cluster) = stream.conn.cluster(name) else {
                self.stats.failed_cluster_not_found.inc();
                return verdict(503, "health_check_failed_no_cluster_found");
            };
            let total = cluster.stats.membership_total.value() as f64;
            let healthy = cluster.stats.membership_healthy.value() as f64;
            if total == 0.0 && *percentage > 0.0 {
                self.stats.failed_cluster_empty.inc();
                return verdict(503, "health_check_failed_cluster_empty");
            }
            if healthy < total * percentage / 100.0 {
                self.stats.failed_cluster_unhealthy.inc();
                return verdict(503, "health_check_failed_cluster_unhealthy");
            }
        }
        match self.config.cluster_min_healthy_percentages.is_empty() {
            true => verdict(200, "health_check_ok"),
            false => verdict(200, "health_check_ok_cluster_healthy"),
        }
    }

    fn answer(&self, verdict: Verdict) -> LocalReply {
        let ok = verdict.status.is_success();
        self.stats.request_total.inc();
        if ok {
            self.stats.ok.inc()
        } else {
            self.stats.failed.inc()
        }
        let flags = if ok { Flags::NONE } else { Flags::LH };
        let mut reply = LocalReply::new(verdict.status, "", flags, verdict.details);
        if verdict.degraded {
            self.stats.degraded.inc();
            reply.headers.insert(DEGRADED, HeaderValue::from_static(""));
        }
        reply
    }
}

/// The last answer of the upstream. All that is kept goes when the time is over, as Envoy's timer has it.
struct Cache {
    time: Duration,
    since: Instant,
    kept: Mutex<Option<(u128, StatusCode, bool)>>,
}

impl Cache {
    fn new(time: Duration) -> Self {
        Self { time, since: clock::now(), kept: Mutex::default() }
    }

    fn turn(&self) -> u128 {
        clock::now().saturating_duration_since(self.since).as_nanos() / self.time.as_nanos().max(1)
    }

    fn fresh(&self) -> Option<(StatusCode, bool)> {
        let kept = *self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.filter(|(turn, _, _)| *turn == self.turn()).map(|(_, status, degraded)| (status, degraded))
    }

    fn keep(&self, status: StatusCode, degraded: bool) {
        let kept = (self.turn(), status, degraded);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }
}
