//! `config.route.v3.RetryPolicy`.

use std::sync::Arc;
use std::time::Duration;

use super::header::HeaderMatcher;
use crate::model::metadata::Metadata;

#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Default 1.
    pub num_retries: u32,
    /// `None`: the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    /// How a retry's priority is chosen. `None`: as any request's.
    pub priority: Option<RetryPriority>,
    /// A host that one of them rejects is not chosen again.
    pub host_predicates: Vec<RetryHostPredicate>,
    /// How often another host is looked for. Default 1.
    pub host_selection_max_attempts: u32,
    pub retriable_status_codes: Vec<u16>,
    /// Default 25 ms, up to ten times as much.
    pub backoff: RetryBackoff,
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
    /// Of a response, any one of them.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Of a request, any one of them; none listed: any request.
    pub retriable_request_headers: Vec<HeaderMatcher>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retry_on: RetryOn::NONE,
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            priority: None,
            host_predicates: Vec::new(),
            host_selection_max_attempts: 1,
            retriable_status_codes: Vec::new(),
            backoff: RetryBackoff::default(),
            rate_limited_backoff: None,
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
        }
    }
}

/// `retry_on`, and `x-envoy-retry-on` with `x-envoy-retry-grpc-on`: a set of conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

/// The conditions by Envoy's names.
const CONDITIONS: &[(&str, RetryOn)] = &[
    ("5xx", RetryOn::SERVER_ERROR),
    ("gateway-error", RetryOn::GATEWAY_ERROR),
    ("reset", RetryOn::RESET),
    ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
    ("connect-failure", RetryOn::CONNECT_FAILURE),
    ("envoy-ratelimited", RetryOn::ENVOY_RATE_LIMITED),
    ("retriable-4xx", RetryOn::RETRIABLE_4XX),
    ("refused-stream", RetryOn::REFUSED_STREAM),
    ("retriable-status-codes", RetryOn::RETRIABLE_STATUS_CODES),
    ("retriable-headers", RetryOn::RETRIABLE_HEADERS),
    ("http3-post-connect-failure", RetryOn::HTTP3_POST_CONNECT_FAILURE),
    ("cancelled", RetryOn::GRPC_CANCELLED),
    ("deadline-exceeded", RetryOn::GRPC_DEADLINE_EXCEEDED),
    ("internal", RetryOn::GRPC_INTERNAL),
    ("resource-exhausted", RetryOn::GRPC_RESOURCE_EXHAUSTED),
    ("unavailable", RetryOn::GRPC_UNAVAILABLE),
];

impl RetryOn {
    pub const NONE: Self = Self(0);
    pub const SERVER_ERROR: Self = Self(1);
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    pub const RESET: Self = Self(1 << 2);
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    pub const ENVOY_RATE_LIMITED: Self = Self(1 << 5);
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    pub const REFUSED_STREAM: Self = Self(1 << 7);
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 8);
    pub const RETRIABLE_HEADERS: Self = Self(1 << 9);
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 10);
    pub const GRPC_CANCELLED: Self = Self(1 << 11);
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 12);
    pub const GRPC_INTERNAL: Self = Self(1 << 13);
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 14);
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 15);

    /// Any one of the conditions of `other`.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// A list with commas. What is unknown is passed over, and said in the second place, as Envoy does for headers.
    pub fn parse(list: &str) -> (Self, Vec<&str>) {
        let mut unknown = Vec::new();
        let mut all = Self::NONE;
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match CONDITIONS.iter().find(|(known, _)| *known == name) {
                Some((_, condition)) => all = all.with(*condition),
                None => unknown.push(name),
            }
        }
        (all, unknown)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBackoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// `RateLimitedRetryBackOff`: the upstream says when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitedBackoff {
    /// The first that is there and can be read.
    pub reset_headers: Vec<ResetHeader>,
    /// Default 300 s.
    pub max_interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    pub name: Arc<str>,
    pub format: ResetFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetFormat {
    Seconds,
    UnixTimestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryPriority {
    /// `envoy.retry_priorities.previous_priorities`: those that were not tried yet.
    Previous {
        /// After so many attempts they are found anew.
        update_frequency: u32,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum RetryHostPredicate {
    /// `envoy.retry_host_predicates.previous_hosts`.
    PreviousHosts,
    /// `envoy.retry_host_predicates.omit_canary_hosts`.
    OmitCanaryHosts,
    /// `envoy.retry_host_predicates.omit_host_metadata`: hosts whose metadata has all of this.
    OmitHostMetadata(Metadata),
}
