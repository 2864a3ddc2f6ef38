//! Extensions whose configuration comes by ECDS: where it is asked for, and what comes.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as pb;

use super::Cx;
use super::extension::{self, Extension};
use super::registry::registry;
use crate::decode::any;
use crate::model::discovered::{self as model, Discovered, ExtensionContent};
use crate::model::network_filter::{NetworkFilter, NetworkFilterConfig};
use crate::proto::schema;

registry! { pb::ExtensionConfigSource, pb::TypedExtensionConfig }

// Of a network filter: nothing else is discovered.
lower! { "envoy.config.core.v3.ExtensionConfigSource" pb::ExtensionConfigSource => Discovered, cx;
    read { config_source, default_config, apply_default_config_without_warming, type_urls }
    {
        let source = cx.required("config_source", config_source);
        if type_urls.is_empty() {
            cx.reject("type_urls", "must have at least one");
            return None;
        }
        let name = |url: &String| Arc::from(url.rsplit('/').next().unwrap_or(url));
        let types: Vec<Arc<str>> = type_urls.iter().map(name).collect();
        let default = match default_config {
            Some(any) => Some(cx.field("default_config", |cx| default_filter(cx, &types, any))?),
            None => None,
        };
        Some(Discovered { source: source?, default, apply_default_config_without_warming, types, last: false })
    }
}

fn default_filter(
    cx: &mut Cx,
    types: &[Arc<str>],
    any: envoy_types::pb::google::protobuf::Any,
) -> Option<Box<NetworkFilter>> {
    let Extension { type_name, .. } = Extension::unpack(cx, &any)?;
    if !types.iter().any(|known| **known == *type_name) {
        let types = types.join(" or ");
        cx.reject_here(format!("is of type {type_name}, and type_urls has {types}"));
        return None;
    }
    extension::network_filter(cx, "", Some(any)).map(Box::new)
}

/// Which of a chain's discovered filters ends it; and their defaults have to fit their places.
pub(super) fn places(cx: &mut Cx, filters: &mut [NetworkFilterConfig]) {
    let count = filters.len();
    for (index, NetworkFilterConfig { name, filter }) in filters.iter_mut().enumerate() {
        let NetworkFilter::Discovered(discovered) = filter else { continue };
        discovered.last = index + 1 == count;
        let type_name = discovered.types.first().cloned().unwrap_or_default();
        let fits = discovered.default.as_deref().map(|default| discovered.fits(name, &type_name, default));
        if let Some(Err(why)) = fits {
            cx.index(index, |cx| cx.field("config_discovery", |cx| cx.reject("default_config", why)));
        }
    }
}

lower! { "envoy.config.core.v3.TypedExtensionConfig" pb::TypedExtensionConfig => model::Extension, cx;
    read { name, typed_config }
    {
        let name = cx.name("name", name)?;
        let Some(any) = typed_config else {
            cx.reject("typed_config", "is required");
            return None;
        };
        let (type_name, _) = match any::unpack(&any.type_url, &any.value) {
            Ok(unpacked) => unpacked,
            Err(why) => {
                cx.reject("typed_config", why);
                return None;
            }
        };
        let content = if served_elsewhere(&type_name) {
            cx.warn("typed_config", format!("{type_name} is not implemented: it is kept to be shown"));
            ExtensionContent::Unserved
        } else {
            ExtensionContent::NetworkFilter(extension::network_filter(cx, &name, Some(any))?)
        };
        Some(model::Extension { name, type_name: type_name.into(), content })
    }
}

/// Known to Envoy, and no network filter: those who would ask for it are not served either.
fn served_elsewhere(type_name: &str) -> bool {
    !type_name.contains(".filters.network.")
        && schema::message(type_name).is_some()
        && !BUILT_IN.contains(&type_name)
}

/// Istio's own, which are network filters as well.
const BUILT_IN: [&str; 2] = ["stats.PluginConfig", "envoy.tcp.metadataexchange.config.MetadataExchange"];
