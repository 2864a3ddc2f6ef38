//! Tracing: `HttpConnectionManager.Tracing`, its providers and tags.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::trace::v3 as trace;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use envoy_types::pb::envoy::extensions::tracers::opentelemetry as otel;
use envoy_types::pb::envoy::r#type::metadata::v3 as metadata;
use envoy_types::pb::envoy::r#type::tracing::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::Percent;
use otel::resource_detectors::v3::{EnvironmentResourceDetectorConfig, StaticConfigResourceDetectorConfig};
use otel::samplers::v3::AlwaysOnSamplerConfig;

use super::header::{added, format, header_name, optional_format, plain};
use crate::lower::Cx;
use crate::lower::extension::{Extension, by_name};
use crate::lower::refused::Dynamic;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::http::action::MetadataSource;
use crate::model::http::tracing::{
    CustomTag, HttpService, OpenTelemetry, OtlpExporter, ResourceDetector, Sampler, TagValue, Tracing,
    TracingProvider, Zipkin,
};

registry! {
    hcm::Tracing, pb::CustomTag, pb::custom_tag::Literal, pb::custom_tag::Environment, pb::custom_tag::Header,
    pb::custom_tag::Metadata, metadata::MetadataKind, trace::Tracing, trace::tracing::Http, trace::ZipkinConfig,
    trace::OpenTelemetryConfig, core::HttpService, core::HttpUri, EnvironmentResourceDetectorConfig,
    StaticConfigResourceDetectorConfig, AlwaysOnSamplerConfig,
}

const PATH_TAG: u32 = 256;
const CACHE: u32 = 1024;
const SERVICE_NAME: &str = "unknown_service:envoy";
/// Of a report to a collector, where nothing is said: Envoy's.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing"
    hcm::Tracing => Tracing, cx;
    read {
        client_sampling, random_sampling, overall_sampling, max_path_tag_length, custom_tags, provider,
        spawn_upstream_span, operation, upstream_operation, no_context_propagation, verbose
    }
    {
        Some(Tracing {
            client_sampling: sampling(cx, "client_sampling", client_sampling)?,
            random_sampling: sampling(cx, "random_sampling", random_sampling)?,
            overall_sampling: sampling(cx, "overall_sampling", overall_sampling)?,
            max_path_tag_length: number(max_path_tag_length).unwrap_or(PATH_TAG),
            custom_tags: cx.list("custom_tags", custom_tags),
            provider: provider.and_then(|provider| cx.lower("provider", provider)).flatten(),
            spawn_upstream_span: flag(spawn_upstream_span, false),
            operation: optional_format(cx, "operation", &operation),
            upstream_operation: optional_format(cx, "upstream_operation", &upstream_operation),
            no_context_propagation,
            verbose,
        })
    }
}

fn sampling(cx: &mut Cx, field: &'static str, percent: Option<Percent>) -> Option<f64> {
    match percent {
        Some(percent) => cx.lower(field, percent),
        None => Some(100.0),
    }
}

lower! { "envoy.type.tracing.v3.CustomTag" pb::CustomTag => CustomTag, cx;
    read { tag, r#type }
    {
        use pb::custom_tag::Type;
        let tag: Option<Arc<str>> = cx.name("tag", tag);
        let value = match r#type {
            Some(Type::Literal(literal)) => cx.lower("literal", literal)?,
            Some(Type::Environment(environment)) => cx.lower("environment", environment)?,
            Some(Type::RequestHeader(header)) => cx.lower("request_header", header)?,
            Some(Type::Metadata(metadata)) => cx.lower("metadata", metadata)?,
            Some(Type::Value(text)) => TagValue::Format(format(cx, "value", &text, &[])?),
            None => {
                cx.reject("type", "is required");
                return None;
            }
        };
        Some(CustomTag { tag: tag?, value })
    }
}

lower! { "envoy.type.tracing.v3.CustomTag.Literal" pb::custom_tag::Literal => TagValue, cx;
    read { value }
    {
        cx.name("value", value).map(TagValue::Literal)
    }
}

lower! { "envoy.type.tracing.v3.CustomTag.Environment" pb::custom_tag::Environment => TagValue, cx;
    read { name, default_value }
    {
        Some(TagValue::Environment { name: cx.name("name", name)?, default: default_value.into() })
    }
}

lower! { "envoy.type.tracing.v3.CustomTag.Header" pb::custom_tag::Header => TagValue, cx;
    read { name, default_value }
    {
        Some(TagValue::RequestHeader { name: header_name(cx, "name", &name)?, default: default_value.into() })
    }
}

lower! { "envoy.type.tracing.v3.CustomTag.Metadata" pb::custom_tag::Metadata => TagValue, cx;
    read { kind, metadata_key, default_value }
    {
        // As in Envoy: that of the request where nothing is said.
        let source = match kind {
            Some(kind) => cx.lower("kind", kind)?,
            None => MetadataSource::Dynamic,
        };
        let (filter, path) = cx.required("metadata_key", metadata_key)?;
        Some(TagValue::Metadata { source, filter, path, default: default_value.into() })
    }
}

lower! { "envoy.type.metadata.v3.MetadataKind" metadata::MetadataKind => MetadataSource, cx;
    read { kind }
    {
        use metadata::metadata_kind::{Cluster, Host, Kind, Request, Route};
        match kind {
            Some(Kind::Request(Request {})) => Some(MetadataSource::Dynamic),
            Some(Kind::Route(Route {})) => Some(MetadataSource::Route),
            Some(Kind::Cluster(Cluster {})) => Some(MetadataSource::Cluster),
            Some(Kind::Host(Host {})) => Some(MetadataSource::Host),
            None => {
                cx.reject("kind", "is required");
                None
            }
        }
    }
}

// `None`: there is none, or it is not implemented and left out.
lower! { "envoy.config.trace.v3.Tracing" trace::Tracing => Option<TracingProvider>, cx;
    read { http }
    {
        Some(http.and_then(|http| cx.lower("http", http)).flatten())
    }
}

lower! { "envoy.config.trace.v3.Tracing.Http" trace::tracing::Http => Option<TracingProvider>, cx;
    read { name, config_type }
    {
        let name = cx.non_empty("name", name)?;
        let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = config_type else {
            return by_name(cx, &name, None);
        };
        let e = Extension::unpack(cx, &any)?;
        match e.type_name.as_str() {
            trace::ZipkinConfig::NAME => {
                e.lower::<trace::ZipkinConfig>(cx).map(Box::new).map(TracingProvider::Zipkin).map(Some)
            }
            trace::OpenTelemetryConfig::NAME => {
                let lowered = e.lower::<trace::OpenTelemetryConfig>(cx);
                lowered.map(Box::new).map(TracingProvider::OpenTelemetry).map(Some)
            }
            _ if e.refused().is_some_and(|refused| refused.dynamic == Dynamic::LeftOut) => {
                cx.warn("typed_config", format!("{}; nobody is told of spans", e.why_not()));
                Some(None)
            }
            _ => e.refuse(cx),
        }
    }
}

lower! { "envoy.config.trace.v3.ZipkinConfig" trace::ZipkinConfig => Zipkin, cx;
    read {
        collector_cluster, collector_endpoint, trace_id_128bit, shared_span_context, collector_endpoint_version,
        collector_hostname, split_spans_for_request, trace_context_option, collector_service, timestamp_trace_ids
    }
    {
        use trace::zipkin_config::{CollectorEndpointVersion as Version, TraceContextOption};
        match cx.variant("collector_endpoint_version", collector_endpoint_version)? {
            Version::HttpJson => {}
            // Envoy has it so where nothing is said.
            Version::DeprecatedAndUnavailableDoNotUse => {
                cx.warn("collector_endpoint_version", "HTTP_JSON is taken for the version that is gone");
            }
            Version::HttpProto => cx.reject("collector_endpoint_version", "HTTP_PROTO is not implemented: use HTTP_JSON"),
            Version::Grpc => cx.reject("collector_endpoint_version", "GRPC is not implemented: use HTTP_JSON"),
        }
        let w3c = match cx.variant("trace_context_option", trace_context_option)? {
            TraceContextOption::UseB3 => false,
            TraceContextOption::UseB3WithW3cPropagation => true,
        };
        let collector = match collector_service {
            Some(service) => {
                for (name, given) in [
                    ("collector_cluster", !collector_cluster.is_empty()),
                    ("collector_endpoint", !collector_endpoint.is_empty()),
                    ("collector_hostname", !collector_hostname.is_empty()),
                ] {
                    if given {
                        cx.warn(name, "has no effect beside collector_service");
                    }
                }
                cx.lower("collector_service", service)
            }
            None => collector(cx, collector_cluster, collector_endpoint, collector_hostname),
        };
        Some(Zipkin {
            collector: collector?,
            trace_id_128bit,
            shared_span_context: flag(shared_span_context, true),
            split_spans_for_request,
            w3c,
            timestamp_trace_ids,
        })
    }
}

fn collector(cx: &mut Cx, cluster: String, endpoint: String, hostname: String) -> Option<HttpService> {
    let cluster: Option<Arc<str>> = cx.name("collector_cluster", cluster);
    let path: Option<Arc<str>> = cx.name("collector_endpoint", endpoint);
    plain(cx, "collector_endpoint", path.as_deref().unwrap_or_default());
    plain(cx, "collector_hostname", &hostname);
    let cluster = cluster?;
    let host = if hostname.is_empty() { cluster.clone() } else { hostname.into() };
    Some(HttpService { cluster, path: path?, host, timeout: Some(REPORT_TIMEOUT), headers: Vec::new() })
}

lower! { "envoy.config.core.v3.HttpService" core::HttpService => HttpService, cx;
    read { http_uri, request_headers_to_add }
    reject { formatters: "formatter extensions are not implemented here" }
    {
        let uri = cx.required("http_uri", http_uri);
        let headers = added(cx, "request_headers_to_add", request_headers_to_add);
        let HttpUri { cluster, timeout, uri } = uri?;
        let (host, path) = authority_and_path(&uri);
        Some(HttpService { cluster, path: path.into(), host: host.into(), timeout: Some(timeout), headers })
    }
}

/// `http://host/path`, or `host/path`.
fn authority_and_path(uri: &str) -> (&str, &str) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash))
}

/// `config.core.v3.HttpUri`.
#[derive(Debug)]
pub struct HttpUri {
    pub(in crate::lower) uri: Arc<str>,
    pub(in crate::lower) cluster: Arc<str>,
    pub(in crate::lower) timeout: Duration,
}

lower! { "envoy.config.core.v3.HttpUri" core::HttpUri => HttpUri, cx;
    read { uri, timeout, http_upstream_type }
    {
        let uri: Option<Arc<str>> = cx.name("uri", uri);
        plain(cx, "uri", uri.as_deref().unwrap_or_default());
        if timeout.is_none() {
            cx.reject("timeout", "is required");
        }
        let timeout = cx.duration("timeout", timeout);
        let cluster = match http_upstream_type {
            Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) => cx.name("cluster", cluster),
            None => {
                cx.reject("http_upstream_type", "cluster is required");
                None
            }
        };
        Some(HttpUri { uri: uri?, cluster: cluster?, timeout: timeout? })
    }
}

lower! { "envoy.config.trace.v3.OpenTelemetryConfig" trace::OpenTelemetryConfig => OpenTelemetry, cx;
    read { grpc_service, http_service, service_name, resource_detectors, sampler, max_cache_size }
    reject { exporter: "exporters by extension are not implemented: use grpc_service or http_service" }
    warn {
        set_telemetry_sdk_resource_attributes: "there is no SDK to be named",
        set_service_name_resource_attribute: "service.name is always told",
        set_instrumentation_scope: "the scope is always told",
    }
    {
        if grpc_service.is_some() && http_service.is_some() {
            cx.reject("http_service", "cannot be given with grpc_service");
        }
        let exporter = match (grpc_service, http_service) {
            (Some(service), _) => {
                let service = cx.for_calls(|cx| cx.lower("grpc_service", service));
                service.map(Box::new).map(OtlpExporter::Grpc)
            }
            (None, Some(service)) => cx.lower("http_service", service).map(OtlpExporter::Http),
            (None, None) => {
                cx.reject("grpc_service", "this or http_service is required");
                None
            }
        };
        let service_name = if service_name.is_empty() { SERVICE_NAME.into() } else { service_name.into() };
        let resource = each(cx, "resource_detectors", resource_detectors, |cx, e| match e.type_name.as_str() {
            EnvironmentResourceDetectorConfig::NAME => e.lower::<EnvironmentResourceDetectorConfig>(cx),
            StaticConfigResourceDetectorConfig::NAME => e.lower::<StaticConfigResourceDetectorConfig>(cx),
            _ => e.refuse(cx),
        });
        let sampler = each(cx, "sampler", sampler.into_iter().collect(), |cx, e| {
            if e.type_name == AlwaysOnSamplerConfig::NAME { e.lower::<AlwaysOnSamplerConfig>(cx) } else { e.refuse(cx) }
        });
        Some(OpenTelemetry {
            exporter: exporter?,
            service_name,
            resource,
            sampler: sampler.into_iter().next(),
            max_cache_size: number(max_cache_size).unwrap_or(CACHE),
        })
    }
}

fn each<T>(
    cx: &mut Cx,
    field: &'static str,
    extensions: Vec<core::TypedExtensionConfig>,
    lower: fn(&mut Cx, &Extension) -> Option<T>,
) -> Vec<T> {
    let mut lowered = Vec::new();
    for (index, extension) in extensions.into_iter().enumerate() {
        let one = cx.field(field, |cx| {
            cx.index(index, |cx| {
                let Some(any) = &extension.typed_config else {
                    return by_name(cx, &extension.name, None);
                };
                let e = Extension::unpack(cx, any)?;
                lower(cx, &e)
            })
        });
        lowered.extend(one);
    }
    lowered
}

lower! { "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig"
    EnvironmentResourceDetectorConfig => ResourceDetector, cx;
    read {}
    {
        let _ = cx;
        Some(ResourceDetector::Environment)
    }
}

lower! { "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig"
    StaticConfigResourceDetectorConfig => ResourceDetector, cx;
    read { attributes }
    {
        let _ = cx;
        let mut attributes: Vec<(Arc<str>, Arc<str>)> =
            attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        attributes.sort();
        Some(ResourceDetector::Static(attributes))
    }
}

lower! { "envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig"
    AlwaysOnSamplerConfig => Sampler, cx;
    read {}
    {
        let _ = cx;
        Some(Sampler::AlwaysOn)
    }
}
