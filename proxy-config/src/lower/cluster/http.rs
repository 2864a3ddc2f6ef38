//! How HTTP is spoken to a cluster: its options as an extension, or the deprecated fields that were there before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Filter;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterProtocolSelection, PreconnectPolicy};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as pb;
use envoy_types::pb::envoy::extensions::upstreams::tcp::v3::TcpProtocolOptions;
use envoy_types::pb::google::protobuf::{Any, DoubleValue, UInt32Value};
use pb::http_protocol_options::{
    self as inner, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use prost::Message;

use crate::diagnostic::Segment;
use crate::lower::extension::Extension;
use crate::lower::http::filters::router::upstream_chain;
use crate::lower::http::header::optional_name;
use crate::lower::http::options::Http1WithError;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, Lower};
use crate::model::TransportSocket;
use crate::model::cluster::Preconnect;
use crate::model::http::istio::MetadataExchange;
use crate::model::http::options::UpstreamProtocol;
use crate::model::http::{CommonHttpOptions, Http2Options, HttpOptions};
use crate::proto::pb::envoy::tcp::metadataexchange::config as mx;

registry! {
    pb::HttpProtocolOptions, inner::ExplicitHttpConfig, inner::UseDownstreamHttpConfig, inner::AutoHttpConfig,
    core::UpstreamHttpProtocolOptions, PreconnectPolicy,
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_OPTIONS: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";
const NO_HTTP3: &str = "HTTP/3 is not implemented yet";

/// The deprecated fields of a cluster.
pub struct Old {
    pub selection: i32,
    pub http1: Option<core::Http1ProtocolOptions>,
    pub http2: Option<core::Http2ProtocolOptions>,
    pub common: Option<core::HttpProtocolOptions>,
    pub upstream: Option<core::UpstreamHttpProtocolOptions>,
    pub max_requests_per_connection: Option<UInt32Value>,
}

/// The extension's options hold where both are given, as in Envoy.
pub fn options(cx: &mut Cx, old: Old, extensions: HashMap<String, Any>) -> Option<Box<HttpOptions>> {
    let old = old.lower(cx);
    let new = extension_options(cx, extensions);
    new.or(old).map(Box::new)
}

impl Old {
    fn lower(self, cx: &mut Cx) -> Option<HttpOptions> {
        let Self { selection, http1, http2, common, upstream, max_requests_per_connection } = self;
        let given = http1.is_some()
            || http2.is_some()
            || common.is_some()
            || upstream.is_some()
            || max_requests_per_connection.is_some();
        let both = http1.is_some() && http2.is_some();
        let has_http2 = http2.is_some();
        let (http1, _) = http1.and_then(|o| cx.lower("http_protocol_options", o)).unwrap_or_default();
        let http2 = http2.and_then(|o| cx.lower("http2_protocol_options", o)).unwrap_or_default();
        let downstream = match cx.variant("protocol_selection", selection)? {
            ClusterProtocolSelection::UseConfiguredProtocol => false,
            ClusterProtocolSelection::UseDownstreamProtocol => true,
        };
        if both && !downstream {
            cx.reject(
                "http2_protocol_options",
                "both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values",
            );
        }
        if !given && !downstream {
            return None;
        }
        let protocol = match (downstream, has_http2) {
            (true, _) => UpstreamProtocol::UseDownstream { http1, http2: Some(http2) },
            (false, true) => UpstreamProtocol::Http2(http2),
            (false, false) => UpstreamProtocol::Http1(http1),
        };
        let mut common = match common {
            Some(options) => cx.lower("common_http_protocol_options", options)?,
            None => CommonHttpOptions::default(),
        };
        let most = number(max_requests_per_connection).filter(|max| *max > 0);
        common.max_requests_per_connection = common.max_requests_per_connection.or(most);
        let names = upstream.and_then(|o| cx.lower("upstream_http_protocol_options", o)).unwrap_or_default();
        Some(HttpOptions { protocol, common, ..names })
    }
}

fn extension_options(cx: &mut Cx, options: HashMap<String, Any>) -> Option<HttpOptions> {
    let ordered: BTreeMap<_, _> = options.into_iter().collect();
    let mut found = None;
    cx.field("typed_extension_protocol_options", |cx| {
        for (name, any) in ordered {
            let one = cx.within(Segment::Key(name.clone()), |cx| extension_option(cx, &name, &any));
            found = found.take().or(one);
        }
    });
    found
}

fn extension_option(cx: &mut Cx, name: &str, any: &Any) -> Option<HttpOptions> {
    if name != HTTP_OPTIONS && name != TCP_OPTIONS {
        cx.reject_here("is not a network filter, HTTP filter or protocol that has options here");
        return None;
    }
    let (type_name, value) = match crate::decode::any::unpack(&any.type_url, &any.value) {
        Ok(unpacked) => unpacked,
        Err(why) => {
            cx.reject_here(why);
            return None;
        }
    };
    if type_name != name {
        cx.reject_here(format!("must be a {name}, and is a {type_name}"));
        return None;
    }
    let decoded = if name == HTTP_OPTIONS {
        pb::HttpProtocolOptions::decode(&*value).map(Some)
    } else {
        TcpProtocolOptions::decode(&*value).map(|_| None)
    };
    match decoded {
        Ok(Some(options)) => options.lower(cx),
        Ok(None) => {
            cx.warn_here("is about idle connections of a pool: TCP connections are not kept for reuse");
            None
        }
        Err(why) => {
            cx.reject_here(format!("cannot be decoded: {why}"));
            None
        }
    }
}

lower! { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" pb::HttpProtocolOptions => HttpOptions, cx;
    read {
        common_http_protocol_options, upstream_http_protocol_options, http_filters, request_mirror_policies,
        hash_policy, retry_policy, upstream_protocol_options
    }
    reject {
        header_validation_config: "header validators by extension are not implemented",
        outlier_detection: "responses that count as errors by a matcher are not implemented",
    }
    {
        let protocol = match upstream_protocol_options {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => cx.lower("explicit_http_config", config),
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
                cx.lower("use_downstream_protocol_config", config)
            }
            Some(UpstreamProtocolOptions::AutoConfig(config)) => cx.lower("auto_config", config),
            None => {
                cx.reject("upstream_protocol_options", "is required");
                None
            }
        };
        let common = match common_http_protocol_options {
            Some(options) => cx.lower("common_http_protocol_options", options),
            None => Some(CommonHttpOptions::default()),
        };
        let names = upstream_http_protocol_options
            .and_then(|options| cx.lower("upstream_http_protocol_options", options))
            .unwrap_or_default();
        Some(HttpOptions {
            filters: upstream_chain(cx, "http_filters", http_filters),
            mirror: cx.list("request_mirror_policies", request_mirror_policies),
            hash_policy: cx.list("hash_policy", hash_policy).into_iter().flatten().collect(),
            retry_policy: retry_policy.and_then(|policy| cx.lower("retry_policy", policy)).map(Arc::new),
            protocol: protocol?,
            common: common?,
            ..names
        })
    }
}

fn http1(cx: &mut Cx, options: Option<core::Http1ProtocolOptions>) -> Http1WithError {
    options.and_then(|options| cx.lower("http_protocol_options", options)).unwrap_or_default()
}

fn http2(cx: &mut Cx, options: Option<core::Http2ProtocolOptions>) -> Http2Options {
    options.and_then(|options| cx.lower("http2_protocol_options", options)).unwrap_or_default()
}

lower! { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig"
    inner::ExplicitHttpConfig => UpstreamProtocol, cx;
    read { protocol_config }
    {
        match protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                cx.lower("http_protocol_options", options).map(|(options, _)| UpstreamProtocol::Http1(options))
            }
            Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                cx.lower("http2_protocol_options", options).map(UpstreamProtocol::Http2)
            }
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                cx.reject("http3_protocol_options", NO_HTTP3);
                None
            }
            None => {
                cx.reject("protocol_config", "is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig"
    inner::UseDownstreamHttpConfig => UpstreamProtocol, cx;
    read { http_protocol_options, http2_protocol_options }
    warn { http3_protocol_options: NO_HTTP3 }
    {
        let (http1, _) = http1(cx, http_protocol_options);
        // As in Envoy: a client's HTTP/2 goes on as HTTP/2 also where nothing is said of it.
        let http2 = http2(cx, http2_protocol_options);
        Some(UpstreamProtocol::UseDownstream { http1, http2: Some(http2) })
    }
}

lower! { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig"
    inner::AutoHttpConfig => UpstreamProtocol, cx;
    read { http_protocol_options, http2_protocol_options }
    warn {
        http3_protocol_options: NO_HTTP3,
        alternate_protocols_cache_options: NO_HTTP3,
    }
    {
        let (http1, _) = http1(cx, http_protocol_options);
        let http2 = http2(cx, http2_protocol_options);
        Some(UpstreamProtocol::Auto { http1, http2 })
    }
}

// With nothing else than these three.
lower! { "envoy.config.core.v3.UpstreamHttpProtocolOptions" core::UpstreamHttpProtocolOptions => HttpOptions, cx;
    read { auto_sni, auto_san_validation, override_auto_sni_header }
    {
        let override_auto_sni_header = optional_name(cx, "override_auto_sni_header", &override_auto_sni_header);
        Some(HttpOptions { auto_sni, auto_san_validation, override_auto_sni_header, ..HttpOptions::default() })
    }
}

/// In Envoy's words.
pub fn alpn_fits(cx: &mut Cx, name: &str, options: Option<&HttpOptions>, sockets: &[&TransportSocket]) {
    let by_alpn = options.is_some_and(|options| matches!(options.protocol, UpstreamProtocol::Auto { .. }));
    if by_alpn && !sockets.iter().all(|socket| has_alpn(socket)) {
        let why = format!("ALPN configured for cluster {name} which has a non-ALPN transport socket");
        cx.reject("typed_extension_protocol_options", why);
    }
}

fn has_alpn(socket: &TransportSocket) -> bool {
    matches!(socket, TransportSocket::UpstreamTls(_)) || socket.inner().is_some_and(has_alpn)
}

lower! { "envoy.config.cluster.v3.Cluster.PreconnectPolicy" PreconnectPolicy => Preconnect, cx;
    read { per_upstream_preconnect_ratio }
    warn {
        predictive_preconnect_ratio: "connections are made ahead for an endpoint, not for those that are next",
        preconnect_enabled_metadata: "connections are made ahead for all endpoints alike",
    }
    {
        let mut ratio = |name, given: Option<DoubleValue>| {
            cx.ranged(name, given.map_or(1.0, |ratio| ratio.value), 1.0..=3.0)
        };
        let per_upstream = ratio("per_upstream_preconnect_ratio", per_upstream_preconnect_ratio);
        // What Envoy refuses stays refused.
        ratio("predictive_preconnect_ratio", predictive_preconnect_ratio)?;
        if let Some(matcher) = preconnect_enabled_metadata {
            let _: Option<crate::model::matcher::MetadataMatcher> = cx.lower("preconnect_enabled_metadata", matcher);
        }
        Some(Preconnect { per_upstream: per_upstream? })
    }
}

/// The generic one is what a cluster has without it.
pub fn upstream_config(cx: &mut Cx, config: Option<core::TypedExtensionConfig>) {
    const GENERIC: [&str; 2] = [
        "envoy.extensions.upstreams.http.generic.v3.GenericConnectionPoolProto",
        "envoy.extensions.upstreams.http.http.v3.HttpConnectionPoolProto",
    ];
    let Some(config) = config else { return };
    let type_url = config.typed_config.map(|any| any.type_url).unwrap_or_default();
    if GENERIC.iter().any(|known| type_url.ends_with(known)) {
        cx.warn("upstream_config", "is what a cluster has without it");
    } else {
        cx.reject(
            "upstream_config",
            format!("\"{}\": connection pools by extension are not implemented", config.name),
        );
    }
}

/// Network filters on the way upstream: Istio's exchange of peer metadata is the one that is known, and one of it is
/// enough.
pub fn filters(cx: &mut Cx, filters: Vec<Filter>) -> Option<Arc<MetadataExchange>> {
    let mut exchange = None;
    cx.field("filters", |cx| {
        for (i, filter) in filters.into_iter().enumerate() {
            let lowered = cx.index(i, |cx| upstream_filter(cx, filter));
            if exchange.is_some() && lowered.is_some() {
                cx.index(i, |cx| cx.warn_here("peers are asked once: the first filter says how"));
            }
            exchange = exchange.take().or(lowered);
        }
    });
    exchange
}

fn upstream_filter(cx: &mut Cx, filter: Filter) -> Option<Arc<MetadataExchange>> {
    let Filter { name, typed_config, config_discovery } = filter;
    if config_discovery.is_some() {
        cx.reject("config_discovery", "the discovery of upstream filters is not implemented");
        return None;
    }
    if name.is_empty() {
        cx.reject("name", "must not be empty");
        return None;
    }
    let extension = match &typed_config {
        Some(any) => Some(Extension::unpack(cx, any)?),
        None => None,
    };
    if let Some(e) = extension.filter(|e| e.type_name == mx::MetadataExchange::NAME) {
        return e.lower::<mx::MetadataExchange>(cx).map(Arc::new);
    }
    let type_url = typed_config.map(|any| any.type_url).unwrap_or_default();
    cx.reject_here(format!("\"{name}\": no such upstream filter is implemented ({type_url})"));
    None
}
