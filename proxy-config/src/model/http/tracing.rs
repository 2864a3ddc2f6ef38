//! Tracing: which requests are traced, what their spans say, and who is told.

use std::sync::Arc;
use std::time::Duration;

use super::action::MetadataSource;
use super::header::{Format, HeaderOption};
use crate::model::grpc::GrpcService;

/// `HttpConnectionManager.Tracing`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// In percent, of requests that their client has asked to trace (`x-client-trace-id`). Default 100.
    pub client_sampling: f64,
    /// Of all. Default 100.
    pub random_sampling: f64,
    /// Of those that are traced by what is above. Default 100.
    pub overall_sampling: f64,
    /// Default 256.
    pub max_path_tag_length: u32,
    pub custom_tags: Vec<CustomTag>,
    /// `None`: that of the bootstrap. Without any requests are marked, and nobody is told.
    pub provider: Option<TracingProvider>,
    /// A span of its own for each upstream request.
    pub spawn_upstream_span: bool,
    pub operation: Option<Format>,
    pub upstream_operation: Option<Format>,
    pub no_context_propagation: bool,
    /// Spans say when the first and the last bytes went each way.
    pub verbose: bool,
}

/// `type.tracing.v3.CustomTag`.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomTag {
    pub tag: Arc<str>,
    pub value: TagValue,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TagValue {
    Literal(Arc<str>),
    Environment { name: Arc<str>, default: Arc<str> },
    RequestHeader { name: Arc<str>, default: Arc<str> },
    Metadata { source: MetadataSource, filter: Arc<str>, path: Vec<Arc<str>>, default: Arc<str> },
    Format(Format),
}

#[derive(Clone, Debug, PartialEq)]
pub enum TracingProvider {
    Zipkin(Box<Zipkin>),
    OpenTelemetry(Box<OpenTelemetry>),
}

/// `ZipkinConfig`, whose spans are sent as JSON of version 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Zipkin {
    pub collector: HttpService,
    pub trace_id_128bit: bool,
    /// Client and server share one span. Default true.
    pub shared_span_context: bool,
    /// The server makes a span of its own.
    pub split_spans_for_request: bool,
    /// W3C headers are understood and sent beside B3's.
    pub w3c: bool,
    /// Trace identifiers begin with the time.
    pub timestamp_trace_ids: bool,
}

/// Where something is posted to.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpService {
    pub cluster: Arc<str>,
    /// `:path`.
    pub path: Arc<str>,
    /// `:authority`.
    pub host: Arc<str>,
    pub timeout: Option<Duration>,
    pub headers: Vec<HeaderOption>,
}

/// `OpenTelemetryConfig`: OTLP.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenTelemetry {
    pub exporter: OtlpExporter,
    /// Default `unknown_service:envoy`.
    pub service_name: Arc<str>,
    /// `resource_detectors`: attributes that are known when the configuration is read, and those of the environment.
    pub resource: Vec<ResourceDetector>,
    /// `None`: the connection manager's sampling.
    pub sampler: Option<Sampler>,
    /// Spans beyond that are dropped. Default 1,024.
    pub max_cache_size: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum OtlpExporter {
    Grpc(Box<GrpcService>),
    Http(HttpService),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceDetector {
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    Environment,
    Static(Vec<(Arc<str>, Arc<str>)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sampler {
    AlwaysOn,
}
