//! `envoy.filters.http.router`, and the codec that ends a cluster's own filters.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::router::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter as HttpFilterPb;

use crate::lower::Cx;
use crate::lower::http::filter::chain;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::http::filter::{FilterKind, HttpFilter};
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
        if let Some(options) = upstream_log_options {
            let _: Option<()> = cx.lower("upstream_log_options", options);
        }
        if flag(reject_connect_request_early_data, false) {
            cx.reject("reject_connect_request_early_data", "what comes before the answer to CONNECT is kept for it");
        }
        let upstream_http_filters = upstream_chain(cx, "upstream_http_filters", upstream_http_filters);
        Some(Router {
            upstream_http_filters,
            dynamic_stats: flag(dynamic_stats, true),
            start_child_span,
            upstream_log: cx.list("upstream_log", upstream_log).into_iter().flatten().collect(),
            suppress_envoy_headers,
            strict_check_headers: strict(cx, strict_check_headers),
            respect_expected_rq_timeout,
            suppress_grpc_request_failure_code_stats,
        })
    }
}

/// What requests upstream go through. The codec ends it.
pub(in crate::lower) fn upstream_chain(
    cx: &mut Cx,
    field: &'static str,
    filters: Vec<HttpFilterPb>,
) -> Vec<HttpFilter> {
    let filters = chain(cx, field, filters);
    for (index, HttpFilter { name, kind, .. }) in filters.iter().enumerate() {
        let why = match kind {
            FilterKind::HeaderMutation(_) | FilterKind::UpstreamCodec => continue,
            FilterKind::Buffer(_)
            | FilterKind::Compressor(_)
            | FilterKind::Lua(_)
            | FilterKind::Rbac(_)
            | FilterKind::Discovered(_)
            | FilterKind::Unserved(_) => "is not implemented for requests upstream",
            FilterKind::Router(_)
            | FilterKind::Cors
            | FilterKind::Fault(_)
            | FilterKind::GrpcStats(_)
            | FilterKind::GrpcWeb
            | FilterKind::ExtAuthz(_)
            | FilterKind::JwtAuthn(_)
            | FilterKind::LocalRateLimit(_)
            | FilterKind::HealthCheck(_)
            | FilterKind::SetFilterState(_)
            | FilterKind::Csrf(_)
            | FilterKind::IstioAlpn(_)
            | FilterKind::MetadataExchange(_)
            | FilterKind::IstioStats(_) => "is no filter of requests upstream",
        };
        cx.field(field, |cx| cx.index(index, |cx| cx.reject_here(format!("{name}: {why}"))));
    }
    filters
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
    pb::router::UpstreamAccessLogOptions => (), cx;
    read {}
    warn {
        flush_upstream_log_on_upstream_stream: "a request upstream has one line, at its end",
        upstream_log_flush_interval: "a request upstream has one line, at its end",
    }
    {
        let _ = flush_upstream_log_on_upstream_stream;
        cx.duration_from("upstream_log_flush_interval", upstream_log_flush_interval, Duration::from_millis(1));
        Some(())
    }
}

lower! { "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec" UpstreamCodec => FilterKind, cx;
    read {}
    {
        let _ = cx;
        Some(FilterKind::UpstreamCodec)
    }
}
