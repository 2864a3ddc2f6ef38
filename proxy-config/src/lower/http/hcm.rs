//! `envoy.filters.network.http_connection_manager`.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::http_connection_manager::{self as inner, RouteSpecifier, StripPortMode};

use super::filter::chain;
use super::header::plain;
use super::{hcm_parts as parts, options};
use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::http::hcm::{
    ClientAddress, Codec, EscapedSlashes, Hcm, HcmTimeouts, HostNormalization, Identity, LocalReplies,
    PathNormalization, RequestId, RouteSource, SchemeHeader, ServerHeader, StripPort,
};
use crate::model::http::{CommonHttpOptions, Http1Options, Http2Options};

registry! { pb::HttpConnectionManager }

const SERVER_NAME: &str = "envoy";
const REQUEST_HEADERS_KB: u32 = 60;
const MOST_KB: u32 = 8192;
const NO_SRDS: &str = "the discovery of scoped routes (SRDS) is not implemented: use rds or route_config";
const MILLISECOND: Duration = Duration::from_millis(1);

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    pb::HttpConnectionManager => Hcm, cx;
    read {
        codec_type, stat_prefix, http_filters, add_user_agent, tracing, common_http_protocol_options,
        http1_safe_max_connection_duration, http_protocol_options, http2_protocol_options, server_name,
        server_header_transformation, scheme_header_transformation, max_request_headers_kb, stream_idle_timeout,
        stream_flush_timeout, request_timeout, request_headers_timeout, drain_timeout, drain_timeout_jitter,
        delayed_close_timeout, access_log, access_log_flush_interval, flush_access_log_on_new_request,
        access_log_options, use_remote_address, xff_num_trusted_hops, original_ip_detection_extensions,
        early_header_mutation_extensions, internal_address_config, skip_xff_append, via, generate_request_id,
        preserve_external_request_id, always_set_request_id_in_response, forward_client_cert_details,
        set_current_client_cert_details, proxy_100_continue, represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs, normalize_path, merge_slashes, path_with_escaped_slashes_action, request_id_extension,
        local_reply_config, strip_matching_host_port, stream_error_on_invalid_http_message, strip_trailing_host_dot,
        proxy_status_config, append_x_forwarded_port, forward_proto_config, route_specifier, strip_port_mode
    }
    reject {
        forward_client_cert_matcher: "matching trees are not implemented: use forward_client_cert_details",
        path_normalization_options: "paths are normalized alike for filters and upstreams: use normalize_path and merge_slashes",
        typed_header_validation_config: "header validators by extension are not implemented",
    }
    warn {
        http3_protocol_options: "HTTP/3 is not implemented yet",
        append_local_overload: "nothing here refuses requests because of overload, so no response says so",
        add_proxy_protocol_connection_state: "the PROXY header of a client is not told to an upstream by itself",
    }
    {
        let stat_prefix: Option<Arc<str>> = cx.name("stat_prefix", stat_prefix);
        let codec = codec(cx, codec_type);
        let routes = routes(cx, route_specifier);
        let filters = chain(cx, "http_filters", http_filters);
        let outer = stream_error_on_invalid_http_message.map(|v| v.value);
        let common = match common_http_protocol_options {
            Some(options) => cx.lower("common_http_protocol_options", options),
            None => Some(CommonHttpOptions::default()),
        };
        let log = parts::Logs {
            interval: access_log_flush_interval,
            on_new_request: flush_access_log_on_new_request,
            options: access_log_options,
        }
        .lower(cx);
        let identity = Named {
            server_name,
            server_header_transformation,
            scheme_header_transformation,
            via,
            add_user_agent: flag(add_user_agent, false),
            append_x_forwarded_port,
            forward_proto_config,
        };
        let kb = number(max_request_headers_kb).unwrap_or(REQUEST_HEADERS_KB);
        let kb = cx.ranged("max_request_headers_kb", kb, 1..=MOST_KB);
        let timeouts = Timeouts {
            stream_idle_timeout,
            stream_flush_timeout,
            request_timeout,
            request_headers_timeout,
            drain_timeout,
            drain_timeout_jitter,
            delayed_close_timeout,
        };
        let http1 = http_protocol_options.and_then(|o| cx.lower("http_protocol_options", o)).unwrap_or_default();
        let http2 = http2_protocol_options.and_then(|o| cx.lower("http2_protocol_options", o)).unwrap_or_default();
        let client = ClientAddress {
            use_remote_address: flag(use_remote_address, false),
            xff_num_trusted_hops,
            skip_xff_append,
            represent_ipv4_as_mapped_ipv6: represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            internal: internal_address_config
                .and_then(|config| cx.lower("internal_address_config", config))
                .unwrap_or_default(),
            detection: parts::ip_detection(cx, original_ip_detection_extensions),
        };
        detection_fits(cx, &client);
        sizes_fit(cx, common.as_ref(), &http2, kb);
        let request_id = RequestId {
            generate: flag(generate_request_id, true),
            preserve_external: preserve_external_request_id,
            always_set_in_response: always_set_request_id_in_response,
            ..request_id_extension.and_then(|e| cx.lower("request_id_extension", e)).unwrap_or_default()
        };
        let escaped_slashes = escaped_slashes(cx, path_with_escaped_slashes_action);
        let upgrades = parts::upgrades(cx, upgrade_configs);
        Some(Hcm {
            client_cert: parts::client_cert(cx, forward_client_cert_details, set_current_client_cert_details)?,
            tracing: tracing.and_then(|tracing| cx.lower("tracing", tracing)).map(Box::new),
            access_log: cx.list("access_log", access_log).into_iter().flatten().collect(),
            access_log_flush_interval: log.interval,
            flush_access_log_on_new_request: log.on_new_request,
            flush_log_on_tunnel_successfully_established: log.on_tunnel,
            path: PathNormalization {
                normalize: flag(normalize_path, false),
                merge_slashes,
                escaped_slashes: escaped_slashes?,
            },
            host: HostNormalization {
                strip_port: strip_port(cx, strip_matching_host_port, strip_port_mode),
                strip_trailing_dot: strip_trailing_host_dot,
            },
            early_header_mutation: parts::early_mutations(cx, early_header_mutation_extensions),
            local_reply: local_reply_config
                .and_then(|config| cx.lower("local_reply_config", config))
                .unwrap_or_else(LocalReplies::default),
            proxy_status: proxy_status_config.and_then(|config| cx.lower("proxy_status_config", config)),
            http1: with_outer(http1, outer),
            http2,
            timeouts: timeouts.lower(cx),
            identity: identity.lower(cx)?,
            stat_prefix: stat_prefix?,
            codec: codec?,
            routes: routes?,
            filters,
            common: common?,
            http1_safe_max_connection_duration,
            max_request_headers_kb: kb?,
            client,
            request_id,
            proxy_100_continue,
            upgrades,
        })
    }
}

fn with_outer((options, own): options::Http1WithError, outer: Option<bool>) -> Http1Options {
    Http1Options { stream_error_on_invalid_http_message: options::stream_error(own, outer), ..options }
}

fn codec(cx: &mut Cx, codec: i32) -> Option<Codec> {
    match cx.variant("codec_type", codec)? {
        inner::CodecType::Auto => Some(Codec::Auto),
        inner::CodecType::Http1 => Some(Codec::Http1),
        inner::CodecType::Http2 => Some(Codec::Http2),
        inner::CodecType::Http3 => {
            cx.reject("codec_type", "HTTP3 is not implemented yet");
            None
        }
    }
}

fn routes(cx: &mut Cx, specifier: Option<RouteSpecifier>) -> Option<RouteSource> {
    match specifier {
        Some(RouteSpecifier::Rds(rds)) => cx.lower("rds", rds).map(RouteSource::Rds),
        Some(RouteSpecifier::RouteConfig(config)) => {
            cx.lower("route_config", config).map(Arc::new).map(RouteSource::Inline)
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            cx.reject("scoped_routes", NO_SRDS);
            None
        }
        None => {
            cx.reject("route_specifier", "rds or route_config is required");
            None
        }
    }
}

/// What [`Identity`] is made of.
struct Named {
    server_name: String,
    server_header_transformation: i32,
    scheme_header_transformation: Option<core::SchemeHeaderTransformation>,
    via: String,
    add_user_agent: bool,
    append_x_forwarded_port: bool,
    forward_proto_config: Option<pb::ForwardProtoConfig>,
}

impl Named {
    fn lower(self, cx: &mut Cx) -> Option<Identity> {
        plain(cx, "server_name", &self.server_name);
        plain(cx, "via", &self.via);
        let server_header =
            match cx.variant("server_header_transformation", self.server_header_transformation)? {
                inner::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
                inner::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
                inner::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
            };
        let scheme = match self.scheme_header_transformation {
            Some(scheme) => cx.lower("scheme_header_transformation", scheme)?,
            None => SchemeHeader::AsReceived,
        };
        let server_name =
            if self.server_name.is_empty() { SERVER_NAME.into() } else { self.server_name.into() };
        Some(Identity {
            server_name,
            server_header,
            via: self.via.into(),
            add_user_agent: self.add_user_agent,
            scheme,
            append_x_forwarded_port: self.append_x_forwarded_port,
            forward_proto: self
                .forward_proto_config
                .and_then(|config| cx.lower("forward_proto_config", config)),
        })
    }
}

type PbDuration = envoy_types::pb::google::protobuf::Duration;

/// What [`HcmTimeouts`] is made of.
struct Timeouts {
    stream_idle_timeout: Option<PbDuration>,
    stream_flush_timeout: Option<PbDuration>,
    request_timeout: Option<PbDuration>,
    request_headers_timeout: Option<PbDuration>,
    drain_timeout: Option<PbDuration>,
    drain_timeout_jitter: Option<envoy_types::pb::envoy::r#type::v3::Percent>,
    delayed_close_timeout: Option<PbDuration>,
}

impl Timeouts {
    fn lower(self, cx: &mut Cx) -> HcmTimeouts {
        let default = HcmTimeouts::default();
        let stream_idle = cx.timeout("stream_idle_timeout", self.stream_idle_timeout, default.stream_idle);
        HcmTimeouts {
            stream_idle,
            stream_flush: cx.timeout("stream_flush_timeout", self.stream_flush_timeout, stream_idle),
            request: cx.timeout("request_timeout", self.request_timeout, None),
            request_headers: cx.timeout(
                "request_headers_timeout",
                self.request_headers_timeout,
                default.request_headers,
            ),
            drain: cx.duration("drain_timeout", self.drain_timeout).unwrap_or(default.drain),
            drain_jitter: self
                .drain_timeout_jitter
                .and_then(|jitter| cx.lower("drain_timeout_jitter", jitter)),
            delayed_close: cx.timeout(
                "delayed_close_timeout",
                self.delayed_close_timeout,
                default.delayed_close,
            ),
        }
    }
}

/// In Envoy's words.
fn sizes_fit(cx: &mut Cx, common: Option<&CommonHttpOptions>, http2: &Http2Options, kb: Option<u32>) {
    if common.is_some_and(|common| common.max_response_headers_kb.is_some()) {
        let why = "cannot be set on http_connection_manager";
        cx.field("common_http_protocol_options", |cx| cx.reject("max_response_headers_kb", why));
    }
    let default = Http2Options::default().max_header_field_size_kb;
    let given = http2.max_header_field_size_kb != default;
    if given && kb.is_some_and(|kb| http2.max_header_field_size_kb > kb) {
        let why = "must not exceed max_request_headers_kb";
        cx.field("http2_protocol_options", |cx| cx.reject("max_header_field_size_kb", why));
    }
}

/// In Envoy's words.
fn detection_fits(cx: &mut Cx, client: &ClientAddress) {
    if client.detection.is_empty() {
        return;
    }
    let field = "original_ip_detection_extensions";
    if client.use_remote_address {
        cx.reject(field, "Original IP detection extensions and use_remote_address may not be mixed");
    }
    if client.xff_num_trusted_hops > 0 {
        cx.reject(field, "Original IP detection extensions and xff_num_trusted_hops may not be mixed");
    }
}

fn escaped_slashes(cx: &mut Cx, action: i32) -> Option<EscapedSlashes> {
    use inner::PathWithEscapedSlashesAction as Action;
    Some(match cx.variant("path_with_escaped_slashes_action", action)? {
        Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashes::KeepUnchanged,
        Action::RejectRequest => EscapedSlashes::RejectRequest,
        Action::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        Action::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    })
}

fn strip_port(cx: &mut Cx, matching: bool, mode: Option<StripPortMode>) -> StripPort {
    let any = matches!(mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (matching, any) {
        (true, true) => {
            cx.reject(
                "strip_matching_host_port",
                "Only one of `strip_matching_host_port` or `strip_any_host_port` can be set",
            );
            StripPort::Any
        }
        (false, true) => StripPort::Any,
        (true, false) => StripPort::Matching,
        (false, false) => StripPort::Never,
    }
}

/// `websocket`, `CONNECT`: whatever its case.
pub(super) fn upgrade_type(cx: &mut Cx, name: &str) -> Option<Arc<str>> {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "" => cx.warn("upgrade_type", "is empty, and no request asks for that"),
        "connect-udp" => cx.reject("upgrade_type", "CONNECT-UDP is not implemented: UDP is not"),
        "connect-ip" => cx.reject("upgrade_type", "CONNECT-IP is not implemented"),
        _ => {}
    }
    let known = !matches!(lower.as_str(), "connect-udp" | "connect-ip");
    known.then(|| lower.into())
}

/// Not less than what a timer can tell.
pub(super) fn flush_interval(
    cx: &mut Cx,
    field: &'static str,
    interval: Option<PbDuration>,
) -> Option<Duration> {
    cx.duration_from(field, interval, MILLISECOND)
}
