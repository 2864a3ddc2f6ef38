//! HTTP filters whose configuration comes by ECDS.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::filter;
use crate::decode::any;
use crate::lower::Cx;
use crate::model::http::filter::{DiscoveredHttpFilter, FilterKind};

/// The same message as a network filter's, whose default is of another kind.
pub(super) fn filter(cx: &mut Cx, source: core::ExtensionConfigSource) -> Option<FilterKind> {
    let core::ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming,
        type_urls,
    } = source;
    let source = cx.required("config_source", config_source);
    if type_urls.is_empty() {
        cx.reject("type_urls", "must have at least one");
        return None;
    }
    let name = |url: &String| Arc::from(url.rsplit('/').next().unwrap_or(url));
    let types: Vec<Arc<str>> = type_urls.iter().map(name).collect();
    let mut discovered =
        DiscoveredHttpFilter { source: source?, default: None, apply_default_config_without_warming, types };
    if let Some(default) = default_config {
        let (type_name, _) = match any::unpack(&default.type_url, &default.value) {
            Ok(unpacked) => unpacked,
            Err(why) => {
                cx.reject("default_config", why);
                return None;
            }
        };
        let kind = cx.field("default_config", |cx| filter::kind(cx, "", Some(default)))?;
        if let Some(why) = discovered.refuses(&type_name, &kind) {
            cx.reject("default_config", why);
        }
        discovered.default = Some(kind);
    }
    Some(FilterKind::Discovered(Box::new(discovered)))
}
