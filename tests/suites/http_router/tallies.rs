//! What is counted of virtual clusters, and of routes with a `stat_prefix`.

use std::time::Duration;

use anyhow::Result;
use shunt_tests::asked::{Ask, Body};
use shunt_tests::bootstrap::Bootstrap;
use shunt_tests::{Proxy, Script, Speaks, lab, until};

use super::rig::{Rig, host, manager, named_host, route};

const RETRY: &str =
    "retry_policy: { retry_on: \"5xx\", num_retries: 1, retry_back_off: { base_interval: 0.001s } }";

fn counted_route(prefix: &str, cluster: &str, stat_prefix: &str, action: &str) -> String {
    format!(
        "{{ match: {{ prefix: {prefix:?} }}, stat_prefix: {stat_prefix:?}, \
         route: {{ cluster: {cluster:?}, {action} }} }}"
    )
}

fn virtual_cluster(name: &str, header: &str, matcher: &str) -> String {
    format!("{{ name: {name:?}, headers: [ {{ name: {header:?}, string_match: {{ {matcher} }} }} ] }}")
}

fn config(up: std::net::SocketAddr) -> Bootstrap {
    let clusters = [
        virtual_cluster("writes", ":method", "exact: POST"),
        virtual_cluster("slow", ":path", "prefix: /slow/"),
        virtual_cluster("all:slow", ":path", "prefix: /slow"),
    ];
    let routes = [
        route("/plain/", "up", ""),
        route("/retry/", "up", RETRY),
        route("/slow", "up", "timeout: 0.2s"),
        route(
            "/pause/",
            "up",
            "timeout: 0.2s, retry_policy: { retry_on: \"5xx\", retry_back_off: { base_interval: 60s } }",
        ),
        route("/full/", "full", RETRY),
        route("/empty/", "empty", ""),
        route("/nowhere/", "nowhere", ""),
        counted_route("/counted/", "up", "some", RETRY),
        counted_route("/other/", "up", "so:me", "timeout: 0.2s"),
        "{ match: { prefix: /direct/ }, stat_prefix: direct, direct_response: { status: 200 } }".to_owned(),
        "{ match: { prefix: /away/ }, redirect: { path_redirect: /else } }".to_owned(),
    ];
    let with = format!("virtual_clusters: [ {} ]", clusters.join(", "));
    let hosts = [
        named_host("with:1", "with.test", &routes, &with),
        named_host("without", "without.test", &routes, ""),
        host(&[route("/", "up", "")], ""),
    ];
    let none = "circuit_breakers: { thresholds: [ { max_retries: 0 } ] }";
    Bootstrap::new()
        .listener("l", &manager(&hosts, ""))
        .static_cluster("up", &[up], "")
        .static_cluster("full", &[up], none)
        .static_cluster("empty", &[], "")
}

#[test]
fn virtual_clusters_and_counted_routes() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let mut rig = Rig::start(lab, &script, &config(up))?;
        for to in ["with.test", "without.test", "else.test"] {
            let get = |path: &str, plan: &str| Ask::get(path).host(to).plan(plan);
            let name = |what: &str| format!("virtual clusters: {what}, {to}");
            rig.asks(
                &name("responses"),
                &[
                    get("/plain/", "status=200"),
                    get("/plain/", "status=404"),
                    get("/plain/", "status=503"),
                    Ask::post("/plain/", Body::Sized(5)).host(to),
                    Ask::post("/slow/", Body::Sized(5)).host(to),
                    Ask::post("/plain/", Body::Sized(5)).host(to).grpc().plan("h:grpc-status=14 body=0"),
                    get("/slow/", "status=201"),
                    get("/slower/", "status=204 body=0"),
                    get("/direct/", ""),
                    get("/away/", ""),
                    get("/nowhere/", ""),
                    get("/empty/", ""),
                    get("/none", ""),
                    get("/counted/", "status=202"),
                    get("/other/", "status=403"),
                ],
            );
            rig.asks(
                &name("retries"),
                &[
                    get("/retry/", "status=503|status=200"),
                    get("/retry/", "status=503|status=500"),
                    get("/full/", "status=503|status=200"),
                    get("/counted/", "status=503|status=200"),
                    get("/counted/", "status=503|status=500"),
                    get("/retry/", "reset|status=200"),
                ],
            );
            for path in ["/slow/", "/other/", "/plain/"] {
                let plan = if path == "/plain/" { "reset" } else { "stall" };
                rig.asks_by_any(&name(&format!("no response of {path}")), &[get(path, plan)]);
            }
            rig.asks_by_any(&name("late in a pause"), &[get("/pause/", "status=503|status=200")]);
        }
        rig.cases
            .case("http_router virtual clusters: names", || same_names(&rig.pair.envoy, &rig.pair.shunt));
        rig.finish()
    })
}

/// All that is counted of virtual hosts, with the tags that Prometheus sees.
fn same_names(envoy: &Proxy, shunt: &Proxy) -> Result<()> {
    let names = |proxy: &Proxy| -> Result<Vec<String>> {
        let text = proxy.admin().ok("/stats/prometheus?filter=vhost")?;
        let mut all: Vec<String> = text.lines().map(unnumbered).collect();
        all.extend(proxy.admin().ok("/stats?filter=vhost")?.lines().map(unnumbered));
        all.sort();
        Ok(all)
    };
    let expected = names(envoy)?;
    assert!(expected.iter().any(|name| name.contains("vcluster")), "{expected:?}");
    until("the same names", Duration::from_secs(3), || Ok((names(shunt)? == expected).then_some(()))).or_else(
        |_| {
            let found = names(shunt)?;
            let missing: Vec<_> = expected.iter().filter(|name| !found.contains(name)).collect();
            let more: Vec<_> = found.iter().filter(|name| !expected.contains(name)).collect();
            anyhow::bail!("missing: {missing:#?}, and too many: {more:#?}")
        },
    )
}

/// A line without its value.
fn unnumbered(line: &str) -> String {
    if line.starts_with('#') {
        return line.to_owned();
    }
    line.split_once(": ").or_else(|| line.rsplit_once(' ')).map_or(line, |(name, _)| name).to_owned()
}
