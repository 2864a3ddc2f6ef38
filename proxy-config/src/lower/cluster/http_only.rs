//! What has a meaning for HTTP only, or is an extension that TCP does without: checked, and named.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::cluster::v3::Filter;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterProtocolSelection, PreconnectPolicy};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::tcp::v3::TcpProtocolOptions;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::HTTP;
use crate::diagnostic::Segment;
use crate::lower::Cx;

/// The deprecated fields that chose HTTP/1 or HTTP/2.
pub fn protocols(cx: &mut Cx, selection: i32, http1: bool, http2: bool) {
    let selection = cx.variant("protocol_selection", selection);
    if selection == Some(ClusterProtocolSelection::UseDownstreamProtocol) {
        cx.warn("protocol_selection", HTTP);
    }
    if http1 {
        cx.warn("http_protocol_options", HTTP);
    }
    if http2 {
        cx.warn("http2_protocol_options", HTTP);
    }
    if http1 && http2 && selection == Some(ClusterProtocolSelection::UseConfiguredProtocol) {
        cx.reject(
            "http2_protocol_options",
            "both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values",
        );
    }
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_OPTIONS: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";

pub fn extension_options(cx: &mut Cx, options: HashMap<String, Any>) {
    let ordered: BTreeMap<_, _> = options.into_iter().collect();
    cx.field("typed_extension_protocol_options", |cx| {
        for (name, any) in ordered {
            cx.within(Segment::Key(name.clone()), |cx| extension_option(cx, &name, &any));
        }
    });
}

fn extension_option(cx: &mut Cx, name: &str, any: &Any) {
    if name != HTTP_OPTIONS && name != TCP_OPTIONS {
        cx.reject_here("is not a network filter, HTTP filter or protocol that has options here");
        return;
    }
    let (type_name, value) = match crate::decode::any::unpack(&any.type_url, &any.value) {
        Ok(unpacked) => unpacked,
        Err(why) => return cx.reject_here(why),
    };
    if type_name != name {
        return cx.reject_here(format!("must be a {name}, and is a {type_name}"));
    }
    let decoded = if name == HTTP_OPTIONS {
        HttpProtocolOptions::decode(&*value).map(|options| options.upstream_protocol_options.is_some())
    } else {
        TcpProtocolOptions::decode(&*value).map(|_| true)
    };
    match decoded {
        Ok(true) if name == HTTP_OPTIONS => cx.warn_here(HTTP),
        Ok(true) => {
            cx.warn_here("is about idle connections of a pool: TCP connections are not kept for reuse")
        }
        Ok(false) => cx.reject("upstream_protocol_options", "is required"),
        Err(why) => cx.reject_here(format!("cannot be decoded: {why}")),
    }
}

/// A TCP connection is made when it is needed; what Envoy refuses stays refused.
pub fn preconnect(cx: &mut Cx, policy: Option<PreconnectPolicy>) {
    let Some(policy) = policy else { return };
    let PreconnectPolicy { per_upstream_preconnect_ratio, predictive_preconnect_ratio, .. } = policy;
    cx.warn("preconnect_policy", "connections are made when they are needed");
    cx.field("preconnect_policy", |cx| {
        for (name, ratio) in [
            ("per_upstream_preconnect_ratio", per_upstream_preconnect_ratio),
            ("predictive_preconnect_ratio", predictive_preconnect_ratio),
        ] {
            if let Some(ratio) = ratio {
                cx.ranged(name, ratio.value, 1.0..=3.0);
            }
        }
    });
}

/// Network filters on the way upstream: istio's peer metadata exchange is known and does nothing here.
pub fn filters(cx: &mut Cx, filters: Vec<Filter>) {
    cx.field("filters", |cx| {
        for (i, filter) in filters.into_iter().enumerate() {
            cx.index(i, |cx| upstream_filter(cx, filter));
        }
    });
}

fn upstream_filter(cx: &mut Cx, filter: Filter) {
    let Filter { name, typed_config, config_discovery } = filter;
    if config_discovery.is_some() {
        return cx.reject("config_discovery", "the discovery of upstream filters is not implemented");
    }
    match name.as_str() {
        "" => cx.reject("name", "must not be empty"),
        "istio.metadata_exchange" | "envoy.filters.network.upstream.metadata_exchange" => {
            cx.warn_here(format!(
                "\"{name}\": peers' metadata is not exchanged, since it needs istio's ALPN over mTLS"
            ));
        }
        _ => {
            let type_url = typed_config.map(|any| any.type_url).unwrap_or_default();
            cx.reject_here(format!("\"{name}\": no such upstream filter is implemented ({type_url})"));
        }
    }
}
