//! The routes that connection managers bring with them.

use proxy_config::xds;
use serde_json::{Map, Value, json};

use super::super::view::ResourceView;
use super::elements::message;
use crate::clock;

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Of a listener: their names, and each as an element of `static_route_configs`.
pub(super) fn inline(listener: &ResourceView) -> Vec<(String, Value)> {
    let mut shown = message(xds::Kind::Listener.type_name(), &listener.raw.bytes(), false);
    let mut chains = array(field(&mut shown, "filter_chains"));
    chains.push(field(&mut shown, "default_filter_chain"));
    let filters = chains.into_iter().flat_map(|mut chain| array(field(&mut chain, "filters")));
    let routes = filters.filter_map(|mut filter| routes(field(&mut filter, "typed_config")));
    let updated = clock::rfc3339(listener.updated);
    let element = |routes: Map<String, Value>| {
        let name = routes.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut any = Map::new();
        let of_type = format!("type.googleapis.com/{}", xds::Kind::Route.type_name());
        any.insert("@type".to_owned(), of_type.into());
        any.extend(routes);
        (name, json!({"route_config": any, "last_updated": updated}))
    };
    routes.map(element).collect()
}

fn routes(mut manager: Value) -> Option<Map<String, Value>> {
    if manager["@type"] != MANAGER {
        return None;
    }
    let routes = field(&mut manager, "route_config");
    if let Value::Object(routes) = routes { Some(routes) } else { None }
}

fn field(of: &mut Value, name: &str) -> Value {
    of.get_mut(name).map(Value::take).unwrap_or_default()
}

fn array(value: Value) -> Vec<Value> {
    if let Value::Array(values) = value { values } else { Vec::new() }
}
