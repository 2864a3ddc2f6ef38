//! Routes: which one a request finds, what it does to the request and to its response, beside the real Envoy.

mod changes;
mod matching;
mod updates;

use shunt_tests::bootstrap::{chain, extension};

/// A listener's fields: a connection manager with these routes (the fields of a `RouteConfiguration`).
pub(crate) fn inline(prefix: &str, routes: &str) -> String {
    manager(prefix, &format!("route_config: {{ {routes} }}"))
}

/// A listener's fields: a connection manager with these further fields.
pub(crate) fn manager(prefix: &str, more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!("stat_prefix: {prefix}, http_filters: [ {router} ], {more}"),
    );
    format!("filter_chains: [ {} ]", chain("", &[hcm]))
}

/// A route that answers with its name.
pub(crate) fn named(name: &str, matched: &str) -> String {
    format!(
        "{{ name: {name:?}, match: {{ {matched} }}, \
         direct_response: {{ status: 200, body: {{ inline_string: {name:?} }} }} }}"
    )
}

pub(crate) fn host(name: &str, domains: &[&str], routes: &[String], more: &str) -> String {
    format!("{{ name: {name:?}, domains: {domains:?}, routes: [ {} ], {more} }}", routes.join(", "))
}
