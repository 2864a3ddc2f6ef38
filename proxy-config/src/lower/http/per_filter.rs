//! `typed_per_filter_config`: what routes, virtual hosts and weighted clusters say to filters.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http as hf;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use crate::decode::any;
use crate::diagnostic::Segment;
use crate::lower::extension::Extension;
use crate::lower::refused::{Dynamic, HTTP_FILTER, REFUSED, Refused};
use crate::lower::registry::registry;
use crate::lower::{Cx, Lower};
use crate::model::http::filter::{PerFilter, PerFilters, PerRoute};

registry! { pb::FilterConfig }

const FIELD: &str = "typed_per_filter_config";

/// By the filters' names.
pub(super) fn lower(cx: &mut Cx, configs: HashMap<String, Any>) -> PerFilters {
    let ordered: BTreeMap<String, Any> = configs.into_iter().collect();
    cx.field(FIELD, |cx| {
        let lowered = ordered.into_iter().filter_map(|(name, any)| {
            let config = cx.within(Segment::Key(name.clone()), |cx| one(cx, &any))?;
            Some((name, config))
        });
        lowered.collect()
    })
}

/// `None`: it is left out.
fn one(cx: &mut Cx, any: &Any) -> Option<PerFilter> {
    let e = unpack(cx, any)?;
    if e.type_name == pb::FilterConfig::NAME {
        return match pb::FilterConfig::decode(e.value.as_slice()) {
            Ok(config) => cx.within(Segment::Type("FilterConfig".into()), |cx| config.lower(cx)).flatten(),
            Err(error) => {
                cx.reject_here(format!("malformed {}: {error}", e.type_name));
                None
            }
        };
    }
    per_route(cx, &e).map(|config| PerFilter { disabled: false, config: Some(config) })
}

fn unpack(cx: &mut Cx, any: &Any) -> Option<Extension> {
    match any::unpack(&any.type_url, &any.value) {
        Ok((type_name, value)) => Some(Extension { type_name, value: value.into_owned() }),
        Err(why) => {
            cx.reject_here(why);
            None
        }
    }
}

// `None`: it is optional, and not known.
lower! { "envoy.config.route.v3.FilterConfig" pb::FilterConfig => Option<PerFilter>, cx;
    read { config, is_optional, disabled }
    {
        let config = match config {
            Some(any) => {
                let known = any::type_name(&any.type_url).is_ok_and(|name| crate::proto::schema::message(name).is_some());
                if is_optional && !known {
                    cx.warn("is_optional", format!("{} is not known, and left out", any.type_url));
                    return Some(None);
                }
                let e = cx.field("config", |cx| unpack(cx, &any))?;
                match cx.field("config", |cx| per_route(cx, &e)) {
                    Some(config) => Some(config),
                    None => return Some(None),
                }
            }
            // As in Envoy: it may turn a filter on, or off.
            None => None,
        };
        Some(Some(PerFilter { disabled, config }))
    }
}

/// What a type says to its filter.
fn per_route(cx: &mut Cx, e: &Extension) -> Option<PerRoute> {
    match e.type_name.as_str() {
        hf::cors::v3::CorsPolicy::NAME => {
            here::<hf::cors::v3::CorsPolicy>(cx, e).map(Box::new).map(PerRoute::Cors)
        }
        hf::lua::v3::LuaPerRoute::NAME => {
            here::<hf::lua::v3::LuaPerRoute>(cx, e).map(Box::new).map(PerRoute::Lua)
        }
        hf::fault::v3::HttpFault::NAME => {
            here::<hf::fault::v3::HttpFault>(cx, e).map(Box::new).map(PerRoute::Fault)
        }
        hf::rbac::v3::RbacPerRoute::NAME => here::<hf::rbac::v3::RbacPerRoute>(cx, e).map(PerRoute::Rbac),
        hf::ext_authz::v3::ExtAuthzPerRoute::NAME => {
            here::<hf::ext_authz::v3::ExtAuthzPerRoute>(cx, e).map(Box::new).map(PerRoute::ExtAuthz)
        }
        hf::jwt_authn::v3::PerRouteConfig::NAME => {
            here::<hf::jwt_authn::v3::PerRouteConfig>(cx, e).map(PerRoute::JwtAuthn)
        }
        hf::local_ratelimit::v3::LocalRateLimit::NAME => {
            here::<hf::local_ratelimit::v3::LocalRateLimit>(cx, e).map(Box::new).map(PerRoute::LocalRateLimit)
        }
        hf::header_mutation::v3::HeaderMutationPerRoute::NAME => {
            let lowered = here::<hf::header_mutation::v3::HeaderMutationPerRoute>(cx, e);
            lowered.map(Box::new).map(PerRoute::HeaderMutation)
        }
        hf::compressor::v3::CompressorPerRoute::NAME => {
            here::<hf::compressor::v3::CompressorPerRoute>(cx, e).map(PerRoute::Compressor)
        }
        hf::buffer::v3::BufferPerRoute::NAME => {
            here::<hf::buffer::v3::BufferPerRoute>(cx, e).map(PerRoute::Buffer)
        }
        hf::set_filter_state::v3::Config::NAME => {
            here::<hf::set_filter_state::v3::Config>(cx, e).map(Box::new).map(PerRoute::SetFilterState)
        }
        hf::csrf::v3::CsrfPolicy::NAME => {
            here::<hf::csrf::v3::CsrfPolicy>(cx, e).map(Box::new).map(PerRoute::Csrf)
        }
        _ => unserved(cx, e),
    }
}

/// Lowers it as the message `M`, at the place itself: the key of the map has the `Any`.
fn here<M: prost::Message + Default + Lower>(cx: &mut Cx, e: &Extension) -> Option<M::Model> {
    match M::decode(e.value.as_slice()) {
        Ok(message) => {
            let short = e.type_name.rsplit('.').next().unwrap_or_default().to_owned();
            cx.within(Segment::Type(short), |cx| message.lower(cx))
        }
        Err(error) => {
            cx.reject_here(format!("malformed {}: {error}", e.type_name));
            None
        }
    }
}

/// Of a filter that is not implemented: where that passes requests by, what is said to it is nothing.
fn unserved<T>(cx: &mut Cx, e: &Extension) -> Option<T> {
    match of_package(&e.type_name) {
        Some(refused) if cx.is_dynamic() && refused.dynamic != Dynamic::Refused => {
            cx.warn_here(format!("\"{}\": {}; it is left out", refused.name, refused.why));
        }
        Some(refused) => cx.reject_here(format!("\"{}\": {}", refused.name, refused.why)),
        None => cx.reject_here(e.why_not()),
    }
    None
}

/// Whose filter's own message is in the same package.
fn of_package(type_name: &str) -> Option<&'static Refused> {
    let (own, _) = type_name.rsplit_once('.')?;
    let same = |name: &str| name.rsplit_once('.').is_some_and(|(package, _)| package == own);
    REFUSED.iter().find(|refused| refused.category == HTTP_FILTER && same(refused.type_name))
}
