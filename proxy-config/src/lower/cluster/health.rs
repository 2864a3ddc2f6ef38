//! `config.core.v3.HealthCheck`.

use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::scalars::positive;
use crate::lower::Cx;
use crate::lower::extension::Extension;
use crate::lower::http::header::{added, plain, removed};
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::cluster as model;
use crate::model::http::HeaderOption;
use crate::model::http::header::AppendAction;
use crate::model::http::options::UpstreamProtocol;

registry! {
    pb::HealthCheck, pb::health_check::TcpHealthCheck, pb::health_check::HttpHealthCheck,
    pb::health_check::GrpcHealthCheck, pb::health_check::Payload, Int64Range, HealthCheckEventFileSink,
}

lower! { "envoy.config.core.v3.HealthCheck" pb::HealthCheck => model::HealthCheck, cx;
    read {
        timeout, interval, initial_jitter, interval_jitter, interval_jitter_percent, unhealthy_threshold,
        healthy_threshold, alt_port, reuse_connection, no_traffic_interval, no_traffic_healthy_interval,
        unhealthy_interval, unhealthy_edge_interval, healthy_edge_interval, event_log_path, event_logger,
        always_log_health_check_failures, always_log_health_check_success, health_checker,
    }
    reject { event_service: "a service for health check events is not implemented; event_log_path is" }
    warn {
        tls_options: "a check offers the ALPN protocols of the cluster's transport socket",
        transport_socket_match_criteria: "health checks use the transport socket of their endpoint",
    }
    {
        for (name, missing) in [
            ("timeout", timeout.is_none()),
            ("interval", interval.is_none()),
            ("unhealthy_threshold", unhealthy_threshold.is_none()),
            ("healthy_threshold", healthy_threshold.is_none()),
        ] {
            if missing {
                cx.reject(name, "is required");
            }
        }
        let timeout = positive(cx, "timeout", timeout);
        let interval = positive(cx, "interval", interval);
        let no_traffic_interval = positive(cx, "no_traffic_interval", no_traffic_interval);
        let check = model::HealthCheck {
            timeout: timeout.unwrap_or_default(),
            interval: interval.unwrap_or_default(),
            initial_jitter: cx.duration("initial_jitter", initial_jitter).unwrap_or_default(),
            interval_jitter: cx.duration("interval_jitter", interval_jitter).unwrap_or_default(),
            interval_jitter_percent,
            unhealthy_threshold: number(unhealthy_threshold).unwrap_or_default(),
            healthy_threshold: number(healthy_threshold).unwrap_or_default(),
            alt_port: number(alt_port).and_then(|port| alternative_port(cx, port)),
            reuse_connection: flag(reuse_connection, true),
            no_traffic_interval: no_traffic_interval.unwrap_or(Duration::from_secs(60)),
            no_traffic_healthy_interval: positive(cx, "no_traffic_healthy_interval", no_traffic_healthy_interval),
            unhealthy_interval: positive(cx, "unhealthy_interval", unhealthy_interval),
            unhealthy_edge_interval: positive(cx, "unhealthy_edge_interval", unhealthy_edge_interval),
            healthy_edge_interval: positive(cx, "healthy_edge_interval", healthy_edge_interval),
            event_log: event_log(cx, event_log_path, event_logger),
            always_log_health_check_failures,
            always_log_health_check_success,
            checker: checker(cx, health_checker)?,
        };
        (timeout.is_some() && interval.is_some()).then_some(check)
    }
}

/// A gRPC check is for clusters that speak HTTP/2, as in Envoy.
pub(super) fn fits(cx: &mut Cx, cluster: &model::Cluster) {
    let http2 = cluster.http.as_deref().is_some_and(|http| match &http.protocol {
        UpstreamProtocol::Http1(_) => false,
        UpstreamProtocol::Http2(_) | UpstreamProtocol::Auto { .. } => true,
        UpstreamProtocol::UseDownstream { http2, .. } => http2.is_some(),
    });
    let grpc = |check: &model::HealthCheck| matches!(check.checker, model::HealthChecker::Grpc(_));
    if !http2 && cluster.health_checks.iter().any(grpc) {
        cx.reject("health_checks", "grpc_health_check: the cluster must support HTTP/2 for it");
    }
}

/// Envoy puts it into 16 bits as it is; 0 is no port of its own.
fn alternative_port(cx: &mut Cx, port: u32) -> Option<u16> {
    let lower_bits = u16::try_from(port & 0xffff).unwrap_or_default();
    if port != u32::from(lower_bits) {
        cx.warn("alt_port", format!("{port} is not a port: its lower 16 bits, {lower_bits}, are taken"));
    }
    (lower_bits != 0).then_some(lower_bits)
}

fn checker(cx: &mut Cx, checker: Option<pb::health_check::HealthChecker>) -> Option<model::HealthChecker> {
    use pb::health_check::HealthChecker as Kind;
    match checker {
        Some(Kind::TcpHealthCheck(check)) => cx.lower("tcp_health_check", check),
        Some(Kind::HttpHealthCheck(check)) => {
            cx.lower("http_health_check", check).map(model::HealthChecker::Http)
        }
        Some(Kind::GrpcHealthCheck(check)) => {
            cx.lower("grpc_health_check", check).map(model::HealthChecker::Grpc)
        }
        Some(Kind::CustomHealthCheck(custom)) => {
            let name = custom.name;
            cx.reject("custom_health_check", format!("no health checker \"{name}\" is built in"));
            None
        }
        None => {
            cx.reject(
                "health_checker",
                "one of tcp_health_check, http_health_check and grpc_health_check is required",
            );
            None
        }
    }
}

/// The deprecated path, or the file sink; one of them.
fn event_log(cx: &mut Cx, path: String, sinks: Vec<pb::TypedExtensionConfig>) -> Option<PathBuf> {
    const FILE: &str = "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink";
    let mut paths: Vec<PathBuf> = if path.is_empty() { vec![] } else { vec![path.into()] };
    cx.field("event_logger", |cx| {
        for (i, pb::TypedExtensionConfig { name, typed_config }) in sinks.into_iter().enumerate() {
            cx.index(i, |cx| {
                let Some(any) = typed_config else {
                    cx.reject_here(format!("\"{name}\": typed_config is required"));
                    return;
                };
                match Extension::unpack(cx, &any) {
                    Some(sink) if sink.type_name == FILE => {
                        paths.extend(sink.lower::<HealthCheckEventFileSink>(cx));
                    }
                    Some(sink) => {
                        cx.reject(
                            "typed_config",
                            format!("\"{name}\": {} is not implemented", sink.type_name),
                        );
                    }
                    None => {}
                }
            });
        }
    });
    if paths.len() > 1 {
        cx.reject("event_logger", "more than one log of health check events is not implemented");
    }
    paths.pop()
}

lower! { "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink"
    HealthCheckEventFileSink => PathBuf, cx;
    read { event_log_path }
    {
        cx.non_empty("event_log_path", event_log_path).map(PathBuf::from)
    }
}

lower! { "envoy.config.core.v3.HealthCheck.TcpHealthCheck"
    pb::health_check::TcpHealthCheck => model::HealthChecker, cx;
    read { send, receive }
    reject { proxy_protocol_config: "a PROXY header before a health check is not implemented" }
    {
        let send = match send {
            Some(payload) => cx.lower("send", payload)?,
            None => Vec::new(),
        };
        Some(model::HealthChecker::Tcp { send, receive: cx.list("receive", receive) })
    }
}

lower! { "envoy.config.core.v3.HealthCheck.Payload" pb::health_check::Payload => Vec<u8>, cx;
    read { payload }
    {
        use pb::health_check::payload::Payload;
        match payload {
            Some(Payload::Text(text)) => {
                let text = cx.non_empty("text", text)?;
                hex(cx, &text)
            }
            Some(Payload::Binary(bytes)) => Some(bytes),
            None => {
                cx.reject("payload", "text or binary is required");
                None
            }
        }
    }
}

fn hex(cx: &mut Cx, text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<Vec<u8>>>();
    let bytes = bytes.filter(|_| rest.is_empty());
    if bytes.is_none() {
        cx.reject("text", format!("invalid hex string '{text}'"));
    }
    bytes
}

lower! { "envoy.config.core.v3.HealthCheck.HttpHealthCheck"
    pb::health_check::HttpHealthCheck => model::HttpHealthCheck, cx;
    read {
        host, path, receive, request_headers_to_add, request_headers_to_remove, expected_statuses,
        retriable_statuses, codec_client_type, method, response_buffer_size,
    }
    reject {
        send: "a request body of a health check is not implemented",
        service_name_matcher: "checking x-envoy-upstream-healthchecked-cluster is not implemented",
    }
    {
        let path = cx.non_empty("path", path);
        plain(cx, "host", &host);
        plain(cx, "path", path.as_deref().unwrap_or_default());
        let headers_to_remove = removed(cx, "request_headers_to_remove", &request_headers_to_remove);
        if response_buffer_size.is_some() && receive.is_empty() {
            cx.warn("response_buffer_size", "has no effect: the body is looked at with receive only");
        } else if response_buffer_size.is_some() {
            cx.warn("response_buffer_size", "the body is looked at up to the default size");
        }
        let http2 = match cx.variant("codec_client_type", codec_client_type)? {
            CodecClientType::Http1 => false,
            CodecClientType::Http2 => true,
            CodecClientType::Http3 => {
                cx.reject("codec_client_type", "HTTP3 needs QUIC, which a TCP cluster has not");
                return None;
            }
        };
        Some(model::HttpHealthCheck {
            host,
            path: path?,
            method: method_name(cx, method)?.to_owned(),
            headers_to_add: headers_to_add(cx, "request_headers_to_add", request_headers_to_add),
            headers_to_remove: headers_to_remove.iter().map(ToString::to_string).collect(),
            expected_statuses: or_200(cx.list("expected_statuses", expected_statuses)),
            retriable_statuses: cx.list("retriable_statuses", retriable_statuses),
            receive: cx.list("receive", receive),
            http2,
            service_name: None,
        })
    }
}

lower! { "envoy.config.core.v3.HealthCheck.GrpcHealthCheck"
    pb::health_check::GrpcHealthCheck => model::GrpcHealthCheck, cx;
    read { service_name, authority, initial_metadata }
    {
        plain(cx, "authority", &authority);
        Some(model::GrpcHealthCheck {
            service_name,
            authority,
            initial_metadata: headers_to_add(cx, "initial_metadata", initial_metadata),
        })
    }
}

/// A healthy answer is 200 where nothing else is said.
fn or_200(statuses: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    if statuses.is_empty() { vec![(200, 201)] } else { statuses }
}

fn method_name(cx: &mut Cx, method: i32) -> Option<&'static str> {
    match cx.variant("method", method)? {
        pb::RequestMethod::MethodUnspecified | pb::RequestMethod::Get => Some("GET"),
        pb::RequestMethod::Connect => {
            cx.reject("method", "CONNECT is no health check");
            None
        }
        other @ (pb::RequestMethod::Head
        | pb::RequestMethod::Post
        | pb::RequestMethod::Put
        | pb::RequestMethod::Delete
        | pb::RequestMethod::Options
        | pb::RequestMethod::Trace
        | pb::RequestMethod::Patch) => Some(other.as_str_name()),
    }
}

/// Envoy formats them as those of any request; here nothing is known that a format could say.
fn headers_to_add(
    cx: &mut Cx,
    field: &'static str,
    headers: Vec<pb::HeaderValueOption>,
) -> Vec<(String, String, bool)> {
    let headers = added(cx, field, headers);
    let each = headers.into_iter().enumerate();
    cx.field(field, |cx| {
        each.filter_map(|(index, header)| cx.index(index, |cx| constant(cx, header))).collect()
    })
}

fn constant(cx: &mut Cx, header: HeaderOption) -> Option<(String, String, bool)> {
    let HeaderOption { name, value, append, keep_empty_value } = header;
    let Some(value) = value.constant() else {
        cx.reject("header", "formats are not implemented here: write %% for a percent sign");
        return None;
    };
    let append = match append {
        AppendAction::AppendIfExistsOrAdd => true,
        AppendAction::OverwriteIfExistsOrAdd => false,
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {
            cx.reject("append_action", "is not implemented here");
            return None;
        }
    };
    if value.is_empty() && !keep_empty_value {
        cx.warn("header", "an empty value adds nothing without keep_empty_value");
    }
    Some((name.to_string(), value, append))
}

lower! { "envoy.type.v3.Int64Range" Int64Range => (u32, u32), cx;
    read { start, end }
    {
        if start >= end {
            cx.reject_here(format!("expecting start < end, but found start={start} and end={end}"));
        }
        if start < 100 {
            cx.reject("start", format!("expecting start >= 100, but found start={start}"));
        }
        if end > 600 {
            cx.reject("end", format!("expecting end <= 600, but found end={end}"));
        }
        Some((u32::try_from(start).ok()?, u32::try_from(end).ok()?))
    }
}
