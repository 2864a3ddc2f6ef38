//! `envoy.filters.http.local_ratelimit`, of a filter and of a route.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;

use crate::lower::Cx;
use crate::lower::http::header::added;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::http::filters::{HttpLocalRateLimit, LocalDescriptor, VhRateLimits};
use crate::model::listener_filter::TokenBucket;

registry! { pb::LocalRateLimit, common::LocalRateLimitDescriptor, common::rate_limit_descriptor::Entry }

/// Envoy refuses a bucket that is filled more often.
const LEAST_FILL: Duration = Duration::from_millis(50);
const TOO_MANY_REQUESTS: u16 = 429;
const DYNAMIC_DESCRIPTORS: u32 = 20;

lower! { "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" pb::LocalRateLimit => HttpLocalRateLimit, cx;
    read {
        stat_prefix, status, token_bucket, filter_enabled, filter_enforced, request_headers_to_add_when_not_enforced,
        response_headers_to_add, descriptors, stage, local_rate_limit_per_downstream_connection,
        enable_x_ratelimit_headers, vh_rate_limits, always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted, rate_limits, max_dynamic_descriptors, enable_retry_after_header
    }
    reject {
        local_cluster_rate_limit: "a limit that a cluster of proxies shares is not implemented",
    }
    {
        let stat_prefix: Option<Arc<str>> = cx.name("stat_prefix", stat_prefix);
        // Envoy takes an error only.
        let status = status.and_then(|status| cx.lower("status", status)).filter(|status| *status >= 400);
        let token_bucket = token_bucket.and_then(|bucket| cx.lower("token_bucket", bucket));
        fills_seldom(cx, token_bucket.as_ref());
        let enable_x_ratelimit_headers = match cx.variant("enable_x_ratelimit_headers", enable_x_ratelimit_headers)? {
            common::XRateLimitHeadersRfcVersion::Off => false,
            common::XRateLimitHeadersRfcVersion::DraftVersion03 => true,
        };
        let vh_rate_limits = match cx.variant("vh_rate_limits", vh_rate_limits)? {
            common::VhRateLimitsOptions::Override => VhRateLimits::Override,
            common::VhRateLimitsOptions::Include => VhRateLimits::Include,
            common::VhRateLimitsOptions::Ignore => VhRateLimits::Ignore,
        };
        let stage = cx.ranged("stage", stage, 0..=10);
        Some(HttpLocalRateLimit {
            status: status.unwrap_or(TOO_MANY_REQUESTS),
            token_bucket,
            filter_enabled: filter_enabled.and_then(|part| cx.lower("filter_enabled", part)),
            filter_enforced: filter_enforced.and_then(|part| cx.lower("filter_enforced", part)),
            request_headers_to_add_when_not_enforced: added(
                cx,
                "request_headers_to_add_when_not_enforced",
                request_headers_to_add_when_not_enforced,
            ),
            response_headers_to_add: added(cx, "response_headers_to_add", response_headers_to_add),
            descriptors: cx.list("descriptors", descriptors),
            stage: stage?,
            per_connection: local_rate_limit_per_downstream_connection,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket: flag(always_consume_default_token_bucket, true),
            rate_limited_as_resource_exhausted,
            rate_limits: cx.list("rate_limits", rate_limits),
            max_dynamic_descriptors: number(max_dynamic_descriptors).unwrap_or(DYNAMIC_DESCRIPTORS),
            enable_retry_after_header,
            stat_prefix: stat_prefix?,
        })
    }
}

fn fills_seldom(cx: &mut Cx, bucket: Option<&TokenBucket>) {
    if bucket.is_some_and(|bucket| bucket.fill_interval < LEAST_FILL) {
        cx.field("token_bucket", |cx| cx.reject("fill_interval", "must be at least 50ms"));
    }
}

lower! { "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor"
    common::LocalRateLimitDescriptor => LocalDescriptor, cx;
    read { entries, token_bucket, shadow_mode }
    {
        if entries.is_empty() {
            cx.reject("entries", "must have at least one");
        }
        let entries = cx.list("entries", entries);
        let token_bucket = cx.required("token_bucket", token_bucket);
        fills_seldom(cx, token_bucket.as_ref());
        Some(LocalDescriptor { entries, token_bucket: token_bucket?, shadow_mode })
    }
}

lower! { "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry"
    common::rate_limit_descriptor::Entry => (Arc<str>, Arc<str>), cx;
    read { key, value }
    {
        Some((cx.name("key", key)?, value.into()))
    }
}
