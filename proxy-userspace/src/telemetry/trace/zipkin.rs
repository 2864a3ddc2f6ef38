//! Spans as Zipkin's JSON of version 2.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{Done, Kind};

/// The body of one POST.
pub(super) fn body(spans: &[Done], service: &str, shared: bool) -> Vec<u8> {
    Value::Array(spans.iter().map(|span| one(span, service, shared)).collect()).to_string().into_bytes()
}

fn one(span: &Done, service: &str, shared: bool) -> Value {
    // One that says nothing is none.
    let tags = span.tags.iter().filter(|(_, value)| !value.is_empty());
    let tags: Map<String, Value> =
        tags.map(|(name, value)| (name.clone().into_owned(), json!(value))).collect();
    let took = u64::try_from(span.took.as_micros()).unwrap_or(u64::MAX);
    // What of the old names of annotations is left: the beginning is in kind and timestamp.
    let (kind, end) = match span.kind {
        Kind::Server => ("SERVER", "ss"),
        Kind::Client => ("CLIENT", "cr"),
    };
    let notes = span.notes.iter().map(|(at, name)| json!({ "timestamp": micros(*at), "value": name }));
    let end = json!({ "timestamp": micros(span.start).saturating_add(took), "value": end });
    let annotations: Vec<Value> = notes.chain([end]).collect();
    let mut out = json!({
        "traceId": span.context.trace_id(),
        "id": span.context.span_id(),
        "name": span.name,
        "kind": kind,
        "timestamp": micros(span.start),
        "duration": took.max(1),
        "annotations": annotations,
        "localEndpoint": endpoint(service, span.local),
        "tags": tags,
    });
    if let Some(parent) = span.context.parent {
        out["parentId"] = json!(format!("{parent:016x}"));
    }
    // As Envoy says of each server's span, be its client traced or not.
    if shared && span.kind == Kind::Server {
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
