//! What of `layered_runtime` is read: how spans are reported. Everything else has its default.

use std::time::Duration;

use crate::model::bootstrap::{Reports, TraceReports};
use crate::model::metadata::{Struct, Value};

const KEYS: [&str; 5] = [
    "tracing.zipkin.min_flush_spans",
    "tracing.zipkin.flush_interval_ms",
    "tracing.zipkin.request_timeout",
    "tracing.opentelemetry.min_flush_spans",
    "tracing.opentelemetry.flush_interval_ms",
];

/// Of all layers: a later one goes before an earlier one.
pub(super) fn reports<'a>(layers: impl Iterator<Item = &'a Struct>) -> TraceReports {
    let mut reports = TraceReports::default();
    for (key, value) in layers.flat_map(|layer| flat("", layer)) {
        let Some(number) = number(value) else { continue };
        let at_least_one = Duration::from_millis(number.max(1));
        let Some((of, field)) = key.rsplit_once('.') else { continue };
        let of = match of {
            "tracing.zipkin" => &mut reports.zipkin,
            "tracing.opentelemetry" => &mut reports.opentelemetry,
            _ => continue,
        };
        let Reports { min_flush_spans, flush_interval, request_timeout } = of;
        match field {
            "min_flush_spans" => *min_flush_spans = u32::try_from(number.max(1)).unwrap_or(u32::MAX),
            "flush_interval_ms" => *flush_interval = at_least_one,
            "request_timeout" => *request_timeout = at_least_one,
            _ => {}
        }
    }
    reports
}

/// Keys that change nothing.
pub(super) fn ignored(layer: &Struct) -> Vec<String> {
    flat("", layer).into_iter().map(|(key, _)| key).filter(|key| !KEYS.contains(&key.as_str())).collect()
}

/// Structs may be nested: `{tracing: {zipkin: {…}}}`.
fn flat<'a>(prefix: &str, fields: &'a Struct) -> Vec<(String, &'a Value)> {
    let mut all = Vec::new();
    for (key, value) in fields {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Struct(inner) => all.extend(flat(&key, inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => {
                all.push((key, value));
            }
        }
    }
    all
}

/// A number, or a string of one.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) if *number >= 0.0 && *number <= f64::from(u32::MAX) => Some(*number as u64),
        Value::String(text) => text.parse::<u32>().ok().map(u64::from),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Struct(_) => None,
    }
}
