//! Filters of requests upstream: a cluster's, and the router's where a cluster has none.

use anyhow::Result;
use shunt_tests::asked::{Ask, Http2};
use shunt_tests::bootstrap::{Bootstrap, extension};
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, host, manager_with, options, route};

const CODEC: (&str, &str) =
    ("envoy.filters.http.upstream_codec", "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec");
const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const PER_ROUTE: &str =
    "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

/// Each appends to what is there.
fn mutation(name: &str) -> String {
    mutation_with(name, "%PROTOCOL%")
}

fn mutation_with(name: &str, said: &str) -> String {
    let append = |key: &str, value: &str| {
        format!(
            "{{ append: {{ header: {{ key: {key}, value: {value:?} }}, append_action: APPEND_IF_EXISTS_OR_ADD }} }}"
        )
    };
    extension(
        name,
        MUTATION,
        &format!(
            "mutations: {{ request_mutations: [ {}, {{ remove: x-gone }} ], \
             response_mutations: [ {}, {{ remove: x-secret }} ] }}",
            append("x-passed", &format!("{name} to %UPSTREAM_CLUSTER% of %REQ(:PATH)%")),
            append("x-returned", &format!("{name} with {said}")),
        ),
    )
}

#[test]
fn of_clusters_and_of_the_router() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (h1, h2) = (script.backend("h1", &Speaks::http1())?, script.backend("h2", &Speaks::http2())?);
        let codec = extension(CODEC.0, CODEC.1, "");
        let own = format!("http_filters: [ {}, {}, {codec} ]", mutation("first"), mutation("second"));
        let http1 = "explicit_http_config: { http_protocol_options: {} }";
        let http2 = "explicit_http_config: { http2_protocol_options: {} }";
        let coded = mutation_with("coded", "%RESPONSE_CODE%");
        let router = extension(
            "envoy.filters.http.router",
            "envoy.extensions.filters.http.router.v3.Router",
            &format!("upstream_http_filters: [ {}, {codec} ]", mutation("routers")),
        );
        let again = "retry_policy: { retry_on: 5xx, num_retries: 2 }";
        let said = format!(
            "typed_per_filter_config: {{ second: {{ \"@type\": {PER_ROUTE}, mutations: {{ request_mutations: [ \
             {{ append: {{ header: {{ key: x-route, value: said }} }} }} ] }} }}, \
             routers: {{ \"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true }} }}"
        );
        let mut routes =
            vec![format!("{{ name: said, match: {{ prefix: /said }}, route: {{ cluster: own }}, {said} }}")];
        routes.extend(
            ["own", "own2", "codec", "coded", "plain"].map(|name| route(&format!("/{name}/"), name, again)),
        );
        let config = Bootstrap::new()
            .listener("l", &manager_with(&[router], &[host(&routes, "")], ""))
            .static_cluster("own", &[h1], &options(&format!("{http1}, {own}")))
            .static_cluster("own2", &[h2], &options(&format!("{http2}, {own}")))
            .static_cluster("codec", &[h1], &options(&format!("{http1}, http_filters: [ {codec} ]")))
            .static_cluster("coded", &[h1], &options(&format!("{http1}, http_filters: [ {coded}, {codec} ]")))
            .static_cluster("plain", &[h1], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        let ask = |path: &str| Ask::get(path).header("x-gone", "1").header("x-passed", "0");
        let plan = "h:x-secret=1 h:x-returned=0";
        let asks: Vec<Ask> = ["/own/a", "/own2/b", "/codec/c", "/plain/d", "/said/e"]
            .iter()
            .map(|path| ask(path).plan(plan))
            .collect();
        rig.asks("upstream filters: by HTTP/1", &asks);
        rig.asks("upstream filters: the response's code", &[Ask::get("/coded/")]);
        rig.case("upstream filters: by HTTP/2", |run| {
            let client = Http2::connect(run.at())?;
            asks.iter().map(|ask| run.by_http2(&client, ask)).collect()
        });
        let again = ["/own/", "/plain/"].map(|path| ask(path).plan(&format!("{plan} status=503|{plan}")));
        rig.asks_by_any("upstream filters: tried again", &again);
        rig.finish()
    })
}
