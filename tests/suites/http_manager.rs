//! The connection manager beside the real Envoy: what it does to paths.

mod paths;

use shunt_tests::bootstrap::{Bootstrap, chain, extension};
use shunt_tests::http_echo::HttpEcho;

const ROUTES: &str = "route_config: { virtual_hosts: [ { name: v, domains: ['*'], routes: [ \
    { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: hello } } }, \
    { match: { path: /teapot }, direct_response: { status: 418 } }, \
    { match: { prefix: /nowhere }, route: { cluster: nowhere } }, \
    { match: { prefix: /none, headers: [ { name: x-none, present_match: true } ] }, non_forwarding_action: {} }, \
    { match: { prefix: / }, route: { cluster: echo } } ] } ], validate_clusters: false }";

/// A listener's fields: a connection manager with these further ones.
fn manager(name: &str, more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!("stat_prefix: {name}, http_filters: [ {router} ], {ROUTES}, {more}"),
    );
    format!("stat_prefix: {name}, filter_chains: [ {} ]", chain("", &[hcm]))
}

/// A listener for each connection manager, and the cluster of the echoing backend.
fn config(managers: &[(&str, String)], echo: &HttpEcho) -> String {
    let all =
        managers.iter().fold(Bootstrap::new(), |all, (name, more)| all.listener(name, &manager(name, more)));
    all.top("node: { id: the-node, cluster: the-cluster }").static_cluster("echo", &[echo.address], "").yaml()
}
