//! Extensions whose configuration comes by ECDS: where it is asked for, and what comes.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as pb;

use super::Cx;
use super::extension::{self, Extension};
use super::http;
use super::registry::registry;
use crate::decode::any;
use crate::model::discovered::{self as model, Discovered, ExtensionContent};
use crate::model::network_filter::{NetworkFilter, NetworkFilterConfig};
use crate::proto::schema;

registry! { pb::ExtensionConfigSource, pb::TypedExtensionConfig }

// Of a network filter; an HTTP filter's is read beside the other HTTP filters.
lower! { "envoy.config.core.v3.ExtensionConfigSource" pb::ExtensionConfigSource => Discovered, cx;
    read { config_source, default_config, apply_default_config_without_warming, type_urls }
    {
        let source = cx.required("config_source", config_source);
        let types = types(cx, &type_urls)?;
        let default = match default_config {
            Some(any) => Some(cx.field("default_config", |cx| default_filter(cx, &types, any))?),
            None => None,
        };
        Some(Discovered { source: source?, default, apply_default_config_without_warming, types, last: false })
    }
}

/// What may come, without the host.
pub(super) fn types(cx: &mut Cx, type_urls: &[String]) -> Option<Vec<Arc<str>>> {
    if type_urls.is_empty() {
        cx.reject("type_urls", "must have at least one");
        return None;
    }
    let name = |url: &String| Arc::from(url.rsplit('/').next().unwrap_or(url));
    Some(type_urls.iter().map(name).collect())
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
        let content = content(cx, &name, &type_name, any)?;
        Some(model::Extension { name, type_name: type_name.into(), content })
    }
}

fn content(
    cx: &mut Cx,
    name: &str,
    type_name: &str,
    any: envoy_types::pb::google::protobuf::Any,
) -> Option<ExtensionContent> {
    let network = |cx: &mut Cx, any| extension::network_filter(cx, name, Some(any));
    let http = |cx: &mut Cx, any| http::filter::kind(cx, name, Some(any)).map(Box::new);
    if type_name == BOTH {
        return Some(ExtensionContent::Both(network(cx, any.clone())?, http(cx, any)?));
    }
    if type_name.contains(".filters.http.") || HTTP.contains(&type_name) {
        return http(cx, any).map(ExtensionContent::HttpFilter);
    }
    if !type_name.contains(".filters.network.")
        && type_name != METADATA_EXCHANGE
        && schema::message(type_name).is_some()
    {
        cx.warn("typed_config", format!("{type_name} is not implemented: it is kept to be shown"));
        return Some(ExtensionContent::Unserved);
    }
    network(cx, any).map(ExtensionContent::NetworkFilter)
}

/// Istio's own, of which the names of their types do not tell what they are.
const BOTH: &str = "stats.PluginConfig";
const METADATA_EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";
const HTTP: [&str; 2] =
    ["istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", "io.istio.http.peer_metadata.Config"];
