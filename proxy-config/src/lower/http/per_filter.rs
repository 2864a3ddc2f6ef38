//! `typed_per_filter_config`: what routes, virtual hosts and weighted clusters say to filters.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http as hf;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use crate::decode::any;
use crate::diagnostic::Segment;
use crate::lower::extension::Extension;
use crate::lower::refused::Dynamic;
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
    let left_out = cx.is_dynamic() && e.refused().is_some_and(|refused| refused.dynamic != Dynamic::Refused);
    if left_out {
        cx.warn_here(format!("{}; it is left out", e.why_not()));
    } else {
        cx.reject_here(e.why_not());
    }
    None
}
