//! Spans as Zipkin's JSON of version 2.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{Done, Kind};

/// The body of one POST.
pub(super) fn body(spans: &[Done], service: &str) -> Vec<u8> {
    Value::Array(spans.iter().map(|span| one(span, service)).collect()).to_string().into_bytes()
}

fn one(span: &Done, service: &str) -> Value {
    let tags: Map<String, Value> =
        span.tags.iter().map(|(name, value)| (name.clone().into_owned(), json!(value))).collect();
    let mut out = json!({
        "traceId": span.context.trace_id(),
        "id": span.context.span_id(),
        "name": span.name,
        "kind": match span.kind {
            Kind::Server => "SERVER",
            Kind::Client => "CLIENT",
        },
        "timestamp": micros(span.start),
        "duration": u64::try_from(span.took.as_micros()).unwrap_or(u64::MAX).max(1),
        "localEndpoint": endpoint(service, span.local),
        "tags": tags,
    });
    if let Some(parent) = span.context.parent {
        out["parentId"] = json!(format!("{parent:016x}"));
    }
    if span.shared {
        out["shared"] = json!(true);
    }
    out
}

fn endpoint(service: &str, address: Option<SocketAddr>) -> Value {
    let mut out = json!({ "serviceName": service });
    if let Some(address) = address {
        let family = match address.ip() {
            IpAddr::V4(_) => "ipv4",
            IpAddr::V6(_) => "ipv6",
        };
        out[family] = json!(address.ip().to_string());
        out["port"] = json!(address.port());
    }
    out
}

/// Since 1970; a clock before that is a broken one.
fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
