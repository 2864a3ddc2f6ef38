//! Whether, and when, a request is sent again: Envoy's `RetryStateImpl`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, StatusCode};
use proxy_config::model::http::retry::{ResetFormat, RetryOn, RetryPriority};
use proxy_config::model::http::{Priority, RetryPolicy};
use rand::RngExt as _;

use super::tally::Tallies;
use crate::clock;
use crate::cluster::{Cluster, Host, PreviousPriorities, breaker};
use crate::http::message::joined;
use crate::http::{Reset, ResetReason, ResponseHead};
use crate::telemetry::stats::ClusterStats;

/// Of one request.
pub(super) struct Retry {
    pub(super) policy: Arc<RetryPolicy>,
    on: RetryOn,
    left: u32,
    priority: Priority,
    status_codes: Vec<u16>,
    /// By `x-envoy-retriable-header-names`.
    header_names: Vec<Box<str>>,
    /// The longest that the next one waits.
    backoff: Duration,
    rate_limited: Option<Duration>,
    /// The priorities that it has not tried.
    pub(super) untried: Option<Mutex<PreviousPriorities>>,
    tallies: Tallies,
    /// The retry that goes on.
    place: Option<breaker::Retry>,
}

/// What a look at a response or a reset comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may go again, and is counted as going.
    Again,
    /// There is no reason to.
    No,
    /// There is, and too often was.
    Exhausted,
    /// There is, and no place under the circuit breaker.
    Overflow,
}

const ON: &str = "x-envoy-retry-on";
const GRPC_ON: &str = "x-envoy-retry-grpc-on";
const MAX: &str = "x-envoy-max-retries";
const CODES: &str = "x-envoy-retriable-status-codes";
const NAMES: &str = "x-envoy-retriable-header-names";
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

impl Retry {
    /// Also takes from the request what it says of retries. None: it is sent once.
    pub(super) fn of(
        policy: Option<&Arc<RetryPolicy>>,
        headers: &mut HeaderMap,
        priority: Priority,
        tallies: &Tallies,
    ) -> Option<Box<Self>> {
        let asked = headers.keys().any(|name| [ON, GRPC_ON, MAX, CODES, NAMES].contains(&name.as_str()));
        if !asked && policy.is_none_or(|policy| policy.retry_on.is_empty()) {
            return None;
        }
        let mut on = policy.map_or(RetryOn::NONE, |policy| policy.retry_on);
        for name in [ON, GRPC_ON] {
            if let Some(list) = text(headers, name) {
                on = on.with(RetryOn::parse(&list).0);
            }
        }
        let policy = policy.cloned().unwrap_or_default();
        let limits = &policy.retriable_request_headers;
        if !limits.is_empty()
            && !limits.iter().any(|matcher| matcher.is_match(text(headers, &matcher.name).as_deref()))
        {
            on = RetryOn::NONE;
        }
        let most = text(headers, MAX).and_then(|most| most.parse().ok());
        let mut status_codes = policy.retriable_status_codes.clone();
        if let Some(list) = text(headers, CODES) {
            status_codes.extend(list.split(',').filter_map(|code| code.trim().parse::<u16>().ok()));
        }
        let list = text(headers, NAMES).unwrap_or_default();
        let names = list.split(',').map(|name| name.trim().to_ascii_lowercase());
        let header_names = names.filter(|name| !name.is_empty()).map(Into::into).collect();
        for name in [ON, GRPC_ON, MAX, CODES, NAMES, "x-envoy-hedge-on-per-try-timeout"] {
            headers.remove(name);
        }
        if on.is_empty() {
            return None;
        }
        let (left, backoff) = (most.unwrap_or(policy.num_retries), policy.backoff.base);
        let untried = policy.priority.map(|RetryPriority::Previous { update_frequency }| {
            Mutex::new(PreviousPriorities::new(update_frequency))
        });
        Some(Box::new(Self {
            policy,
            on,
            left,
            priority,
            status_codes,
            header_names,
            backoff,
            rate_limited: None,
            untried,
            tallies: tallies.clone(),
            place: None,
        }))
    }

    /// A host was chosen.
    pub(super) fn attempted(&mut self, host: &Host) {
        if let Some(untried) = &mut self.untried {
            untried.get_mut().unwrap_or_else(PoisonError::into_inner).attempted(host);
        }
    }

    pub(super) fn after_response(&mut self, head: &ResponseHead, cluster: &Cluster) -> Verdict {
        let wanted = self.wants_response(head);
        if wanted {
            self.rate_limited = self.reset_interval(&head.headers);
        }
        self.decide(wanted, cluster)
    }

    /// `sent`: some of the request has gone out.
    pub(super) fn after_reset(&mut self, reset: &Reset, sent: bool, cluster: &Cluster) -> Verdict {
        let wanted = self.wants_reset(reset.reason, sent);
        self.decide(wanted, cluster)
    }

    fn decide(&mut self, wanted: bool, cluster: &Cluster) -> Verdict {
        let stats: &ClusterStats = &cluster.stats;
        let retried = self.place.take().is_some();
        if !wanted {
            if retried {
                stats.upstream_rq_retry_success.inc();
                self.tallies.each(|stats| stats.upstream_rq_retry_success.inc());
            }
            return Verdict::No;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded.inc();
            self.tallies.each(|stats| stats.upstream_rq_retry_limit_exceeded.inc());
            return Verdict::Exhausted;
        }
        self.left -= 1;
        let Ok(place) = cluster.breaker().retry(self.priority) else {
            self.tallies.each(|stats| stats.upstream_rq_retry_overflow.inc());
            return Verdict::Overflow;
        };
        self.place = Some(place);
        Verdict::Again
    }

    fn wants_response(&self, head: &ResponseHead) -> bool {
        let (on, status) = (self.on, head.status);
        if head.headers.contains_key("x-envoy-ratelimited") {
            return on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        on.has(RetryOn::SERVER_ERROR) && status.is_server_error()
            || on.has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504)
            || on.has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT
            || on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.status_codes.contains(&status.as_u16())
            || on.has(RetryOn::RETRIABLE_HEADERS) && self.has_retriable_header(head)
            || grpc_status(&head.headers).is_some_and(|status| self.wants_grpc(status))
    }

    fn has_retriable_header(&self, head: &ResponseHead) -> bool {
        let value = |name: &str| head.header(name).map(|value| String::from_utf8_lossy(&value).into_owned());
        self.policy.retriable_headers.iter().any(|matcher| matcher.is_match(value(&matcher.name).as_deref()))
            || self.header_names.iter().any(|name| head.headers.contains_key(&**name))
    }

    fn wants_grpc(&self, status: u32) -> bool {
        let condition = match status {
            1 => RetryOn::GRPC_CANCELLED,
            4 => RetryOn::GRPC_DEADLINE_EXCEEDED,
            8 => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            13 => RetryOn::GRPC_INTERNAL,
            14 => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        self.on.has(condition)
    }

    fn wants_reset(&self, reason: ResetReason, sent: bool) -> bool {
        let on = self.on;
        let connecting = matches!(reason, ResetReason::ConnectionFailure | ResetReason::ConnectionTimeout);
        if reason == ResetReason::Overflow {
            return false;
        }
        on.has(RetryOn::RESET_BEFORE_REQUEST) && !sent
            || on.has(RetryOn::RESET.with(RetryOn::SERVER_ERROR).with(RetryOn::GATEWAY_ERROR))
            || on.has(RetryOn::CONNECT_FAILURE) && connecting
            || on.has(RetryOn::REFUSED_STREAM) && reason == ResetReason::RemoteRefused
    }

    /// What the upstream says of when to come again, within the policy's limits.
    fn reset_interval(&self, headers: &HeaderMap) -> Option<Duration> {
        let policy = self.policy.rate_limited_backoff.as_ref()?;
        let interval = policy.reset_headers.iter().find_map(|header| {
            let seconds: u64 = headers.get(&*header.name)?.to_str().ok()?.trim().parse().ok()?;
            match header.format {
                ResetFormat::Seconds => Some(Duration::from_secs(seconds)),
                ResetFormat::UnixTimestamp => {
                    let now: SystemTime = clock::wall();
                    let now = now.duration_since(UNIX_EPOCH).ok()?;
                    Duration::from_secs(seconds).checked_sub(now)
                }
            }
            .filter(|interval| *interval <= policy.max_interval)
        });
        interval.filter(|interval| interval.as_millis() > 1)
    }

    /// How long the next attempt waits.
    pub(super) fn pause(&mut self) -> Duration {
        let mut random = rand::rng();
        if let Some(least) = self.rate_limited {
            return least + least.mul_f64(random.random_range(0.0..0.5));
        }
        let most = self.backoff;
        self.backoff = most.saturating_mul(2).min(self.policy.backoff.max);
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(if millis == 0 { 0 } else { random.random_range(0..millis) })
    }

    /// It has waited: only now Envoy counts it.
    pub(super) fn waited(&mut self, stats: &ClusterStats) {
        match self.rate_limited.take() {
            Some(_) => stats.upstream_rq_retry_backoff_ratelimited.inc(),
            None => stats.upstream_rq_retry_backoff_exponential.inc(),
        }
        stats.upstream_rq_retry.inc();
        self.tallies.each(|stats| stats.upstream_rq_retry.inc());
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    joined(headers, name).map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// Of a response that is nothing but trailers.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Envoy's `grpcToHttpStatus`.
pub(super) fn grpc_to_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
