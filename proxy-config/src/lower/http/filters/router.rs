//! `envoy.filters.http.router`, and the codec that ends a cluster's own filters.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::router::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;

use crate::lower::Cx;
use crate::lower::http::filter::chain;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::http::filter::FilterKind;
use crate::model::http::filters::Router;

registry! { pb::Router, pb::router::UpstreamAccessLogOptions, UpstreamCodec }

/// Those that Envoy can check.
const STRICT: [&str; 7] = [
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-max-retries",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
];

lower! { "envoy.extensions.filters.http.router.v3.Router" pb::Router => Router, cx;
    read {
        dynamic_stats, start_child_span, upstream_log, upstream_log_options, suppress_envoy_headers,
        strict_check_headers, respect_expected_rq_timeout, suppress_grpc_request_failure_code_stats,
        upstream_http_filters, reject_connect_request_early_data
    }
    {
        let options = upstream_log_options.and_then(|o| cx.lower("upstream_log_options", o)).unwrap_or_default();
        Some(Router {
            dynamic_stats: flag(dynamic_stats, true),
            start_child_span,
            upstream_log: cx.list("upstream_log", upstream_log).into_iter().flatten().collect(),
            flush_upstream_log_on_upstream_stream: options.0,
            upstream_log_flush_interval: options.1,
            suppress_envoy_headers,
            strict_check_headers: strict(cx, strict_check_headers),
            respect_expected_rq_timeout,
            suppress_grpc_request_failure_code_stats,
            upstream_filters: chain(cx, "upstream_http_filters", upstream_http_filters),
            reject_connect_request_early_data: flag(reject_connect_request_early_data, false),
        })
    }
}

fn strict(cx: &mut Cx, names: Vec<String>) -> Vec<Arc<str>> {
    let mut lowered = Vec::with_capacity(names.len());
    for name in names {
        let name = name.to_ascii_lowercase();
        if !STRICT.contains(&name.as_str()) {
            cx.reject("strict_check_headers", format!("{name:?} is none of {}", STRICT.join(", ")));
        }
        lowered.push(name.into());
    }
    lowered
}

lower! { "envoy.extensions.filters.http.router.v3.Router.UpstreamAccessLogOptions"
    pb::router::UpstreamAccessLogOptions => (bool, Option<Duration>), cx;
    read { flush_upstream_log_on_upstream_stream, upstream_log_flush_interval }
    {
        let interval =
            cx.duration_from("upstream_log_flush_interval", upstream_log_flush_interval, Duration::from_millis(1));
        Some((flush_upstream_log_on_upstream_stream, interval))
    }
}

lower! { "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec" UpstreamCodec => FilterKind, cx;
    read {}
    {
        let _ = cx;
        Some(FilterKind::UpstreamCodec)
    }
}
