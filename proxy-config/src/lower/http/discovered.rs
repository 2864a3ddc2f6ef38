//! HTTP filters whose configuration comes by ECDS.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::filter;
use crate::decode::any;
use crate::lower::Cx;
use crate::lower::discovered::types;
use crate::model::http::filter::{DiscoveredHttpFilter, FilterKind, HttpFilter};
use crate::proto::schema;

/// The same message as a network filter's, whose default is of another kind.
pub(super) fn filter(cx: &mut Cx, source: core::ExtensionConfigSource) -> Option<FilterKind> {
    let core::ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming,
        type_urls,
    } = source;
    let source = cx.required("config_source", config_source);
    let types = types(cx, &type_urls)?;
    // Of network filters Envoy does not ask for either.
    if let Some(unknown) = types.iter().find(|name| schema::message(name).is_none()) {
        cx.reject("type_urls", format!("Error: no factory found for a required type URL {unknown}."));
    }
    if apply_default_config_without_warming && default_config.is_none() {
        cx.reject("apply_default_config_without_warming", "needs a default_config");
    }
    let default = match default_config {
        Some(any) => Some(cx.field("default_config", |cx| default(cx, &types, any))?),
        None => None,
    };
    let source = source?;
    let discovered =
        DiscoveredHttpFilter { source, default, apply_default_config_without_warming, types, last: false };
    Some(FilterKind::Discovered(Box::new(discovered)))
}

fn default(
    cx: &mut Cx,
    types: &[Arc<str>],
    config: envoy_types::pb::google::protobuf::Any,
) -> Option<FilterKind> {
    let type_name = match any::unpack(&config.type_url, &config.value) {
        Ok((type_name, _)) => type_name,
        Err(why) => {
            cx.reject_here(why);
            return None;
        }
    };
    if !types.iter().any(|known| **known == *type_name) {
        let types = types.join(" or ");
        cx.reject_here(format!("is of type {type_name}, and type_urls has {types}"));
        return None;
    }
    filter::kind(cx, "", Some(config))
}

/// Which of a chain's discovered filters ends it; and their defaults have to fit their places.
pub(super) fn places(cx: &mut Cx, field: &'static str, filters: &mut [HttpFilter]) {
    let count = filters.len();
    for (index, HttpFilter { name, kind, .. }) in filters.iter_mut().enumerate() {
        let FilterKind::Discovered(discovered) = kind else { continue };
        discovered.last = index + 1 == count;
        let type_name = discovered.types.first().cloned().unwrap_or_default();
        let fits = discovered.default.as_ref().map(|default| discovered.fits(name, &type_name, default));
        if let Some(Err(why)) = fits {
            cx.field(field, |cx| {
                cx.index(index, |cx| cx.field("config_discovery", |cx| cx.reject("default_config", why)));
            });
        }
    }
}
