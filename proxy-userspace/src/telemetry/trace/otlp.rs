//! Spans as OTLP's protobuf.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status};
use prost::Message as _;
use proxy_config::model::http::tracing::{OpenTelemetry, ResourceDetector};

use super::{Done, Kind, Origin};

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`, `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
const KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// Attributes of the process: what the configuration says, and `service.name`.
pub(super) fn resource(model: &OpenTelemetry) -> Vec<(String, String)> {
    let mut attributes = vec![
        ("service.name".to_owned(), model.service_name.to_string()),
        ("telemetry.sdk.language".to_owned(), "rust".to_owned()),
        ("telemetry.sdk.name".to_owned(), "shunt".to_owned()),
        ("telemetry.sdk.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    for detector in &model.resource {
        match detector {
            ResourceDetector::Static(pairs) => {
                attributes.extend(pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())));
            }
            ResourceDetector::Environment => {
                let text = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
                let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
                attributes.extend(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
            }
        }
    }
    attributes
}

/// The body of one export; of gRPC with its five bytes in front.
pub(super) fn body(spans: &[Done], resource: &[(String, String)], grpc: bool) -> Bytes {
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource.iter().map(|(key, value)| attribute(key, value)).collect(),
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "shunt".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans: spans.iter().map(one).collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    };
    if !grpc {
        return request.encode_to_vec().into();
    }
    let mut framed = BytesMut::with_capacity(5 + request.encoded_len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    framed.put_slice(&request.encode_to_vec());
    framed.freeze()
}

fn one(done: &Done) -> Span {
    let error = done.tags.iter().any(|(name, _)| name == "error");
    let status = error.then(|| Status { message: String::new(), code: status::StatusCode::Error.into() });
    let sampled = u32::from(done.context.sampled == Some(true));
    let remote = match done.origin {
        Origin::Remote => REMOTE,
        Origin::Root | Origin::Local => 0,
    };
    Span {
        trace_id: done.context.trace.to_be_bytes().to_vec(),
        span_id: done.context.span.to_be_bytes().to_vec(),
        parent_span_id: done.context.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        trace_state: done.context.state.as_ref().and_then(|s| s.to_str().ok()).unwrap_or_default().to_owned(),
        name: done.name.clone(),
        kind: match done.kind {
            Kind::Server => span::SpanKind::Server,
            Kind::Client => span::SpanKind::Client,
        }
        .into(),
        start_time_unix_nano: nanos(done.start),
        end_time_unix_nano: nanos(done.start)
            .saturating_add(u64::try_from(done.took.as_nanos()).unwrap_or(0)),
        events: done.notes.iter().map(|(at, name)| event(*at, name)).collect(),
        attributes: done.tags.iter().map(|(name, value)| attribute(name, value)).collect(),
        status,
        flags: sampled | KNOWN | remote,
        ..Span::default()
    }
}

fn event(at: SystemTime, name: &str) -> span::Event {
    span::Event { time_unix_nano: nanos(at), name: name.to_owned(), ..span::Event::default() }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(at: SystemTime) -> u64 {
    let since: Duration = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
