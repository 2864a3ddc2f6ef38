//! HTTP filters: from the `Any` of each to its model, and whether they fit their chain.

use envoy_types::pb::envoy::extensions::filters::http as hf;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, StatusCode};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use super::filters::istio;
use crate::lower::extension::{Extension, built_in_module, by_name};
use crate::lower::refused::Dynamic;
use crate::lower::registry::registry;
use crate::lower::{Cx, Lower};
use crate::model::http::filter::{FilterKind, HttpFilter, UnservedHttpFilter};
use crate::proto::pb::io::istio::http::peer_metadata;
use crate::proto::pb::istio::envoy::config::filter::http::alpn::v2alpha1 as alpn;
use crate::proto::pb::stats;

registry! { pb::HttpFilter, HttpStatus }

/// A chain that ends as it must. None at all are fine, as in Envoy.
pub(in crate::lower) fn chain(
    cx: &mut Cx,
    field: &'static str,
    filters: Vec<pb::HttpFilter>,
) -> Vec<HttpFilter> {
    let count = filters.len();
    let lowered: Vec<Option<HttpFilter>> = cx.list(field, filters);
    let complete = lowered.len() == count;
    let mut lowered: Vec<HttpFilter> = lowered.into_iter().flatten().collect();
    if complete {
        check_terminal(cx, field, &lowered);
        super::discovered::places(cx, field, &mut lowered);
    }
    lowered
}

fn check_terminal(cx: &mut Cx, field: &'static str, filters: &[HttpFilter]) {
    for (index, filter) in filters.iter().enumerate() {
        if let Some(why) = misplaced(filter, index + 1 == filters.len()) {
            cx.field(field, |cx| cx.index(index, |cx| cx.reject_here(why)));
        }
    }
}

/// In Envoy's words.
fn misplaced(filter: &HttpFilter, last: bool) -> Option<String> {
    let name = &filter.name;
    if matches!(filter.kind, FilterKind::Discovered(_)) {
        // Nobody knows before it comes, as in Envoy.
        return None;
    }
    match (filter.kind.is_terminal(), last) {
        (true, false) => Some(format!(
            "Error: terminal filter named {name} must be the last filter in a http filter chain."
        )),
        (false, true) => Some(format!(
            "Error: non-terminal filter named {name} is the last filter in a http filter chain."
        )),
        (true, true) if filter.disabled => Some(format!(
            "Error: the last (terminal) filter ({name}) in the chain cannot be disabled by default."
        )),
        (true, true) | (false, false) => None,
    }
}

// `None`: it is optional, and nobody knows it.
lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter" pb::HttpFilter => Option<HttpFilter>, cx;
    read { name, is_optional, disabled, config_type }
    {
        use pb::http_filter::ConfigType;
        let name = cx.name("name", name)?;
        let any = match config_type {
            Some(ConfigType::TypedConfig(any)) => Some(any),
            Some(ConfigType::ConfigDiscovery(source)) => {
                let kind = cx.field("config_discovery", |cx| super::discovered::filter(cx, source))?;
                return Some(Some(HttpFilter { name, disabled, kind }));
            }
            None => None,
        };
        let known = any.as_ref().is_none_or(|any| is_known(&any.type_url));
        if is_optional && !known {
            cx.warn("is_optional", format!("\"{name}\" is not known, and left out"));
            return Some(None);
        }
        let kind = kind(cx, &name, any)?;
        Some(Some(HttpFilter { name, disabled, kind }))
    }
}

fn is_known(type_url: &str) -> bool {
    crate::decode::any::type_name(type_url).is_ok_and(|name| crate::proto::schema::message(name).is_some())
}

/// The filter that an `Any` configures.
pub(in crate::lower) fn kind(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<FilterKind> {
    let Some(any) = any else {
        let known = match name {
            "envoy.filters.http.router" | "envoy.router" => Some(FilterKind::Router(Box::default())),
            "envoy.filters.http.cors" | "envoy.cors" => Some(FilterKind::Cors),
            "envoy.filters.http.grpc_web" | "envoy.grpc_web" => Some(FilterKind::GrpcWeb),
            _ => None,
        };
        return by_name(cx, name, known);
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        hf::router::v3::Router::NAME => {
            e.lower::<hf::router::v3::Router>(cx).map(Box::new).map(FilterKind::Router)
        }
        hf::cors::v3::Cors::NAME => e.lower::<hf::cors::v3::Cors>(cx),
        hf::lua::v3::Lua::NAME => e.lower::<hf::lua::v3::Lua>(cx).map(Box::new).map(FilterKind::Lua),
        hf::fault::v3::HttpFault::NAME => {
            e.lower::<hf::fault::v3::HttpFault>(cx).map(Box::new).map(FilterKind::Fault)
        }
        hf::rbac::v3::Rbac::NAME => e.lower::<hf::rbac::v3::Rbac>(cx).map(Box::new).map(FilterKind::Rbac),
        hf::grpc_stats::v3::FilterConfig::NAME => {
            e.lower::<hf::grpc_stats::v3::FilterConfig>(cx).map(FilterKind::GrpcStats)
        }
        hf::grpc_web::v3::GrpcWeb::NAME => e.lower::<hf::grpc_web::v3::GrpcWeb>(cx),
        hf::ext_authz::v3::ExtAuthz::NAME => {
            e.lower::<hf::ext_authz::v3::ExtAuthz>(cx).map(Box::new).map(FilterKind::ExtAuthz)
        }
        hf::jwt_authn::v3::JwtAuthentication::NAME => {
            e.lower::<hf::jwt_authn::v3::JwtAuthentication>(cx).map(Box::new).map(FilterKind::JwtAuthn)
        }
        hf::local_ratelimit::v3::LocalRateLimit::NAME => {
            let lowered = e.lower::<hf::local_ratelimit::v3::LocalRateLimit>(cx);
            lowered.map(Box::new).map(FilterKind::LocalRateLimit)
        }
        hf::header_mutation::v3::HeaderMutation::NAME => {
            let lowered = e.lower::<hf::header_mutation::v3::HeaderMutation>(cx);
            lowered.map(Box::new).map(FilterKind::HeaderMutation)
        }
        hf::health_check::v3::HealthCheck::NAME => {
            e.lower::<hf::health_check::v3::HealthCheck>(cx).map(Box::new).map(FilterKind::HealthCheck)
        }
        hf::compressor::v3::Compressor::NAME => {
            e.lower::<hf::compressor::v3::Compressor>(cx).map(Box::new).map(FilterKind::Compressor)
        }
        hf::buffer::v3::Buffer::NAME => e.lower::<hf::buffer::v3::Buffer>(cx).map(FilterKind::Buffer),
        hf::set_filter_state::v3::Config::NAME => {
            e.lower::<hf::set_filter_state::v3::Config>(cx).map(Box::new).map(FilterKind::SetFilterState)
        }
        hf::csrf::v3::CsrfPolicy::NAME => {
            e.lower::<hf::csrf::v3::CsrfPolicy>(cx).map(Box::new).map(FilterKind::Csrf)
        }
        alpn::FilterConfig::NAME => e.lower::<alpn::FilterConfig>(cx).map(FilterKind::IstioAlpn),
        peer_metadata::Config::NAME => {
            e.lower::<peer_metadata::Config>(cx).map(Box::new).map(FilterKind::MetadataExchange)
        }
        stats::PluginConfig::NAME => {
            e.lower::<stats::PluginConfig>(cx).map(Box::new).map(FilterKind::IstioStats)
        }
        WASM => built_in(cx, &e, name),
        hf::upstream_codec::v3::UpstreamCodec::NAME => e.lower::<hf::upstream_codec::v3::UpstreamCodec>(cx),
        _ => unserved(cx, &e, name),
    }
}

const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";

/// What Istio's older configurations name as a module is compiled into its proxy: no code is run.
fn built_in(cx: &mut Cx, e: &Extension, name: &str) -> Option<FilterKind> {
    let config = hf::wasm::v3::Wasm::decode(e.value.as_slice()).ok().and_then(|wasm| wasm.config);
    match config.and_then(built_in_module).as_deref() {
        Some("envoy.wasm.stats") => Some(FilterKind::IstioStats(Box::new(istio::default_stats()))),
        Some("envoy.wasm.metadata_exchange") => {
            Some(FilterKind::MetadataExchange(Box::new(istio::default_peer_metadata())))
        }
        Some(_) | None => unserved(cx, e, name),
    }
}

/// Known to Envoy and not implemented: of the bootstrap it is refused, and from a control plane where it decides who
/// may do what.
fn unserved(cx: &mut Cx, extension: &Extension, name: &str) -> Option<FilterKind> {
    let Some(refused) = extension.refused().filter(|_| cx.is_dynamic()) else {
        return extension.refuse_as(cx, name);
    };
    let fails = match refused.dynamic {
        Dynamic::Refused => return extension.refuse_as(cx, name),
        Dynamic::Closes => true,
        Dynamic::LeftOut => false,
    };
    let what = if fails { "requests that come to it are answered with 501" } else { "requests pass it by" };
    cx.warn("typed_config", format!("\"{}\": {}: {what}", refused.name, refused.why));
    let unserved = UnservedHttpFilter { extension: refused.name.into(), why: refused.why.into(), fails };
    Some(FilterKind::Unserved(Box::new(unserved)))
}

lower! { "envoy.type.v3.HttpStatus" HttpStatus => u16, cx;
    read { code }
    {
        let known: StatusCode = cx.variant("code", code)?;
        if known == StatusCode::Empty {
            cx.reject("code", "is required");
            return None;
        }
        u16::try_from(i32::from(known)).ok()
    }
}
