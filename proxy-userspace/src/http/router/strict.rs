//! `strict_check_headers`: headers by which a client says how its request is sent must say something.

use std::sync::Arc;

use http::StatusCode;
use proxy_config::model::http::retry::RetryOn;

use crate::http::{LocalReply, RequestHead};
use crate::telemetry::Flags;

/// Conditions of gRPC have a header of their own.
const OF_GRPC: RetryOn = RetryOn::GRPC_CANCELLED
    .with(RetryOn::GRPC_DEADLINE_EXCEEDED)
    .with(RetryOn::GRPC_INTERNAL)
    .with(RetryOn::GRPC_RESOURCE_EXHAUSTED)
    .with(RetryOn::GRPC_UNAVAILABLE);

/// The answer to the first that says nothing, in Envoy's words.
pub(super) fn check(names: &[Arc<str>], head: &RequestHead) -> Option<LocalReply> {
    names.iter().find_map(|name| {
        let value = head.header(name)?;
        let text = String::from_utf8_lossy(&value);
        (!is_good(name, &text)).then(|| {
            let body = format!("invalid header '{name}' with value '{text}'");
            let details = format!("request_headers_failed_strict_check{{{name}}}");
            LocalReply::new(StatusCode::BAD_REQUEST, body, Flags::IH, details)
        })
    })
}

fn is_good(name: &str, value: &str) -> bool {
    match name {
        "x-envoy-retry-on" | "x-envoy-retry-grpc-on" => {
            let grpc = name == "x-envoy-retry-grpc-on";
            let of_it = |one: &str| {
                let (on, unknown) = RetryOn::parse(one);
                unknown.is_empty() && on.has(OF_GRPC) == grpc
            };
            value.split(',').map(str::trim).filter(|one| !one.is_empty()).all(of_it)
        }
        "x-envoy-upstream-rq-timeout-ms"
        | "x-envoy-upstream-rq-per-try-timeout-ms"
        | "x-envoy-max-retries" => value.trim().parse::<u64>().is_ok(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::is_good;

    #[test]
    fn what_headers_may_say() {
        for (name, value, good) in [
            ("x-envoy-max-retries", "3", true),
            ("x-envoy-max-retries", "-3", false),
            ("x-envoy-upstream-rq-timeout-ms", "1s", false),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "", false),
            ("x-envoy-retry-on", "5xx, reset", true),
            ("x-envoy-retry-on", "5xx,cancelled", false),
            ("x-envoy-retry-on", "6xx", false),
            ("x-envoy-retry-grpc-on", "cancelled", true),
            ("x-envoy-retry-grpc-on", "5xx", false),
            ("x-envoy-retriable-header-names", "?", true),
        ] {
            assert_eq!(is_good(name, value), good, "{name}: {value}");
        }
    }
}
