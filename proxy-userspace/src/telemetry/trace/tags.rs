//! What spans say of a request: Envoy's tags, and those of the configuration.

use std::sync::Arc;

use proxy_config::model::Metadata;
use proxy_config::model::access_log::LogFormat;
use proxy_config::model::http::action::MetadataSource;
use proxy_config::model::http::header;
use proxy_config::model::http::tracing::{CustomTag, TagValue, Tracing};

use super::Span;
use crate::http::BuildError;
use crate::telemetry::access_log::Format;
use crate::telemetry::access_log::http::{grpc_code, protocol};
use crate::telemetry::access_log::value;
use crate::telemetry::{Entry, Flags, HttpEntry};

/// One of `custom_tags`, compiled.
pub(super) struct Custom {
    tag: Arc<str>,
    value: Value,
}

enum Value {
    Fixed(String),
    Header { name: Arc<str>, default: Arc<str> },
    Metadata { source: MetadataSource, path: Vec<String>, default: Arc<str> },
    Format(Format),
}

impl Custom {
    pub(super) fn new(model: &CustomTag) -> Result<Self, BuildError> {
        let value = match &model.value {
            TagValue::Literal(text) => Value::Fixed(text.to_string()),
            TagValue::Environment { name, default } => {
                Value::Fixed(std::env::var(&**name).unwrap_or_else(|_| default.to_string()))
            }
            TagValue::RequestHeader { name, default } => {
                Value::Header { name: name.clone(), default: default.clone() }
            }
            TagValue::Metadata { source, filter, path, default } => {
                let path = std::iter::once(filter).chain(path).map(ToString::to_string).collect();
                Value::Metadata { source: *source, path, default: default.clone() }
            }
            TagValue::Format(format) => Value::Format(compile(format)?),
        };
        Ok(Self { tag: model.tag.clone(), value })
    }

    pub(super) fn name(&self) -> &str {
        &self.tag
    }

    /// Where there is nothing to say there is no tag.
    pub(super) fn apply(&self, span: &mut Span, entry: &Entry) {
        let text = match &self.value {
            Value::Fixed(text) => text.clone(),
            Value::Header { name, default } => entry
                .http
                .as_ref()
                .and_then(|http| http.request.header(name))
                .map_or_else(|| default.to_string(), |value| String::from_utf8_lossy(&value).into_owned()),
            Value::Metadata { source, path, default } => {
                let found = metadata(*source, entry, path.first().map_or("", String::as_str));
                value::metadata(found, path).to_text().map_or_else(|| default.to_string(), Into::into)
            }
            Value::Format(format) => format.text(entry),
        };
        if !text.is_empty() {
            span.tag(self.tag.to_string(), text);
        }
    }
}

/// The stream's own dynamic metadata goes before the connection's.
fn metadata<'a>(source: MetadataSource, entry: &'a Entry, namespace: &str) -> Option<&'a Metadata> {
    let http = entry.http.as_deref();
    match source {
        MetadataSource::Dynamic => {
            let of_stream = http.map(|http| &http.dynamic_metadata);
            let of_connection = entry.facts.extra.as_deref().map(|extra| &extra.dynamic_metadata);
            of_stream.filter(|metadata| metadata.of(namespace).is_some()).or(of_connection)
        }
        MetadataSource::Route => http?.route_metadata.as_deref(),
        MetadataSource::Cluster => {
            entry.upstream.cluster_model.as_deref().map(|cluster| cluster.metadata.get())
        }
        MetadataSource::Host => entry.upstream.host_metadata.as_deref(),
    }
}

pub(super) fn compile(format: &header::Format) -> Result<Format, BuildError> {
    let model = LogFormat::Text { format: format.as_str().into(), omit_empty_values: true };
    Format::new(&model).map_err(|error| BuildError(error.to_string()))
}

/// Of a request as its client sent it.
pub(super) fn of_request(span: &mut Span, entry: &Entry, model: &Tracing) {
    let Some(http) = entry.http.as_deref() else { return };
    let request = &http.request;
    let header = |name: &str| request.header(name).map(|value| String::from_utf8_lossy(&value).into_owned());
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    if let Some(id) = header("x-request-id") {
        span.tag("guid:x-request-id", id);
    }
    let path = header("x-envoy-original-path").unwrap_or_else(|| request.path.clone());
    let path: String = path.chars().take(model.max_path_tag_length as usize).collect();
    let scheme = header("x-forwarded-proto").unwrap_or_else(|| request.scheme.as_str().to_owned());
    span.tag("http.url", format!("{scheme}://{}{path}", request.authority));
    span.tag("http.method", request.method.as_str());
    span.tag("downstream_cluster", or_none(header("x-envoy-downstream-service-cluster")));
    span.tag("user_agent", or_none(header("user-agent")));
    span.tag("http.protocol", protocol(request.version));
    span.tag("peer.address", entry.facts.direct_remote.ip().to_string());
    if let Some(id) = header("x-client-trace-id") {
        span.tag("guid:x-client-trace-id", id);
    }
    if request.is_grpc() {
        span.tag("grpc.path", request.path.clone());
        span.tag("grpc.authority", request.authority.clone());
        for (tag, name) in [("grpc.content_type", "content-type"), ("grpc.timeout", "grpc-timeout")] {
            if let Some(value) = header(name) {
                span.tag(tag, value);
            }
        }
    }
    span.tag("request_size", entry.bytes.downstream_rx.to_string());
    span.tag("response_size", entry.bytes.downstream_tx.to_string());
}

/// What has become of a request, or of an attempt.
pub(super) struct Came {
    /// 0: no response.
    pub status: u16,
    pub flags: Flags,
    /// Why there is no response; may be empty.
    pub why: &'static str,
}

impl Came {
    pub(super) fn of(entry: &Entry) -> Self {
        let status = entry.http.as_deref().map_or(0, HttpEntry::response_code);
        Self { status, flags: entry.outcome.flags, why: "" }
    }
}

/// Of one attempt.
pub(super) fn of_attempt(span: &mut Span, entry: &Entry) {
    let Some(http) = entry.http.as_deref() else { return };
    span.tag("http.protocol", http.upstream_protocol.map_or("-", protocol));
    if let Some(host) = entry.upstream.host {
        span.tag("upstream_address", host.to_string());
        span.tag("peer.address", host.to_string());
    }
}

pub(super) fn common(span: &mut Span, entry: &Entry, came: &Came) {
    let Some(http) = entry.http.as_deref() else { return };
    span.tag("component", "proxy");
    if let Some(cluster) = &entry.upstream.cluster {
        span.tag("upstream_cluster", cluster.to_string());
        let alt = entry.upstream.cluster_model.as_deref().and_then(|model| model.alt_stat_name.as_deref());
        span.tag("upstream_cluster.name", alt.unwrap_or(cluster).to_owned());
    }
    span.tag("http.status_code", came.status.to_string());
    span.tag("response_flags", came.flags.to_string());
    if came.status != 0 {
        grpc(span, http);
    }
    if failed(http, came.status) {
        span.tag("error", "true");
    }
    if !came.why.is_empty() {
        span.tag("error.reason", came.why);
    }
}

fn grpc(span: &mut Span, http: &HttpEntry) {
    if !http.request.is_grpc() {
        return;
    }
    let Some(code) = grpc_code(http) else { return };
    span.tag("grpc.status_code", code.to_string());
    let head = http.response.as_ref().map(|response| &response.headers);
    let message = http.response_trailers.iter().chain(head).find_map(|headers| headers.get("grpc-message"));
    if let Some(message) = message.and_then(|message| message.to_str().ok()) {
        span.tag("grpc.message", message);
    }
}

/// No response, one of 5xx, or a gRPC status that is the server's fault.
fn failed(http: &HttpEntry, code: u16) -> bool {
    // Unknown, DeadlineExceeded, Unimplemented, Internal, Unavailable, DataLoss.
    let grpc = http.request.is_grpc() && matches!(grpc_code(http), Some(2 | 4 | 12..=15));
    code == 0 || code >= 500 || grpc
}
