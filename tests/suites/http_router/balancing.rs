//! To which endpoint a request goes: by hashes, by metadata, by weights.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::asked::Ask;
use shunt_tests::bootstrap::{endpoint, locality};
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, route, simple};

/// Each by its policy: a name, and what a route says of it.
fn policies() -> Vec<(&'static str, String)> {
    let header = "header: { header_name: x-hash }";
    let session = "cookie: { name: session }";
    let terminal = format!("{{ {header}, terminal: true }}, {{ {session} }}");
    [
        ("header", format!("{{ {header} }}")),
        (
            "rewritten",
            "{ header: { header_name: x-hash, regex_rewrite: { pattern: { regex: \"[0-9]+\" }, substitution: \"x\" } } }".to_owned(),
        ),
        ("cookie", format!("{{ {session} }}")),
        ("query", "{ query_parameter: { name: key } }".to_owned()),
        ("source", "{ connection_properties: { source_ip: true } }".to_owned()),
        ("several", format!("{{ {header} }}, {{ {session} }}, {{ query_parameter: {{ name: key }} }}")),
        ("terminal", terminal),
    ]
    .map(|(name, policy)| (name, format!("hash_policy: [ {policy} ]")))
    .into()
}

fn five(script: &Script) -> Result<Vec<SocketAddr>> {
    (0..5).map(|n| script.backend(&format!("up{n}"), &Speaks::http1())).collect()
}

#[test]
fn hashes_choose_the_endpoints_that_they_choose_in_envoy() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let all = five(&script)?;
        let mut routes = Vec::new();
        for lb in ["ring", "maglev"] {
            for (name, policy) in policies() {
                routes.push(route(&format!("/{lb}/{name}/"), lb, &policy));
            }
        }
        let config = simple(&routes).static_cluster("ring", &all, "lb_policy: RING_HASH").static_cluster(
            "maglev",
            &all,
            "lb_policy: MAGLEV, maglev_lb_config: { table_size: 997 }",
        );
        let mut rig = Rig::start(lab, &script, &config)?;
        for lb in ["ring", "maglev"] {
            for (name, _) in policies() {
                if name == "source" {
                    rig.asks(&format!("hash: {lb}, {name}"), &[Ask::get(&format!("/{lb}/{name}/"))]);
                    continue;
                }
                let asks: Vec<Ask> = (0..8)
                    .map(|n| {
                        Ask::get(&format!("/{lb}/{name}/?a=b&key=k{n}"))
                            .header("x-hash", &format!("v{n}"))
                            .header("cookie", &format!("other=1; session=s{}", n / 2))
                    })
                    .chain(["b", "a"].map(|first| {
                        Ask::get(&format!("/{lb}/{name}/?key=k"))
                            .header("x-hash", first)
                            .header("x-hash", "ab")
                            .header("cookie", "session=s")
                    }))
                    .collect();
                rig.asks(&format!("hash: {lb}, {name}"), &asks);
            }
        }
        rig.finish()
    })
}

#[test]
fn cookies_are_made_and_kept() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let all = five(&script)?;
        let cookie = |fields: &str| format!("hash_policy: [ {{ cookie: {{ name: sticky, {fields} }} }} ]");
        let routes = [
            route("/ttl/", "ring", &cookie("ttl: 60s, path: /some")),
            route("/session/", "ring", &cookie("ttl: 0s")),
            route(
                "/more/",
                "ring",
                &cookie("ttl: 5s, attributes: [ { name: SameSite, value: Strict }, { name: Secure } ]"),
            ),
            route("/none/", "ring", &cookie("")),
        ];
        let config = simple(&routes).static_cluster("ring", &all, "lb_policy: RING_HASH");
        let rig = Rig::start(lab, &script, &config)?;
        let mut cases = rig.cases;
        for path in ["/ttl/", "/session/", "/more/", "/none/"] {
            rig.pair.same(&mut cases, format!("http_router cookie {path}"), |proxy| {
                let at = proxy.at("l")?;
                let first = Ask::get(path).send(at)?;
                let Some(set) = first["headers"]["set-cookie"].as_str() else { return Ok(json!("none")) };
                let (pair, rest) = set.split_once(';').unwrap_or((set, ""));
                let (name, value) = pair.split_once('=').context("no value")?;
                // Who brings it comes to the same endpoint, and gets no other one.
                script.clear();
                for _ in 0..5 {
                    let next = Ask::get(path).header("cookie", pair).send(at)?;
                    ensure!(next["headers"]["set-cookie"] == Value::Null, "{next}");
                }
                let came: BTreeSet<String> = script.seen().into_iter().map(|seen| seen.backend).collect();
                Ok(json!({ "name": name, "value": value.len(), "rest": rest, "endpoints": came.len() }))
            });
        }
        cases.finish()
    })
}

#[test]
fn metadata_and_weights_choose() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let all = five(&script)?;
        let with = |at: &SocketAddr, fields: &str| {
            endpoint(*at, &format!("metadata: {{ filter_metadata: {{ envoy.lb: {{ {fields} }} }} }}"))
        };
        let endpoints = locality(
            &[
                with(&all[0], "stage: prod, version: \"1\""),
                with(&all[1], "stage: prod, version: \"2\""),
                with(&all[2], "stage: dev, version: \"2\""),
                endpoint(all[3], ""),
            ],
            "",
        );
        let matching =
            |fields: &str| format!("metadata_match: {{ filter_metadata: {{ envoy.lb: {{ {fields} }} }} }}");
        let routes = [
            route("/prod/", "subsets", &matching("stage: prod")),
            route("/both/", "subsets", &matching("stage: prod, version: \"2\"")),
            route("/unknown/", "subsets", &matching("stage: other")),
            route("/keyless/", "subsets", &matching("color: red")),
            route("/strict/", "strict", &matching("stage: other")),
            route("/plain/", "subsets", ""),
            format!(
                "{{ name: weighted, match: {{ prefix: /weighted/ }}, route: {{ {}, weighted_clusters: {{ clusters: [ \
                 {{ name: subsets, weight: 1, {} }}, {{ name: strict, weight: 0 }} ] }} }} }}",
                matching("stage: prod"),
                matching("version: \"2\"")
            ),
            "{ name: weighted-headers, match: { prefix: /added/ }, route: { weighted_clusters: { clusters: [ \
             { name: one, weight: 5, request_headers_to_add: [ { header: { key: x-added, value: yes-%UPSTREAM_CLUSTER% } } ], \
             response_headers_to_add: [ { header: { key: x-said, value: here } } ], request_headers_to_remove: [ x-gone ], \
             host_rewrite_literal: weighted.test } ] } } }".to_owned(),
            "{ name: weighted-header, match: { prefix: /header/ }, route: { weighted_clusters: { clusters: [ \
             { cluster_header: x-cluster, weight: 5 } ] } } }".to_owned(),
        ];
        let subsets = |fallback: &str| {
            format!(
                "type: STATIC, lb_subset_config: {{ fallback_policy: {fallback}, subset_selectors: [ \
                 {{ keys: [ stage ] }}, {{ keys: [ stage, version ] }} ] }}"
            )
        };
        let config = simple(&routes)
            .assigned("subsets", std::slice::from_ref(&endpoints), &subsets("ANY_ENDPOINT"))
            .assigned("strict", &[endpoints], &subsets("NO_FALLBACK"))
            .static_cluster("one", &all[..1], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        // Where a round starts is each proxy's own: what matters is among whom it goes.
        for path in ["/prod/", "/both/", "/unknown/", "/keyless/", "/strict/", "/plain/", "/weighted/"] {
            let mut cases = rig.cases;
            rig.pair.same(&mut cases, format!("http_router subset {path}"), |proxy| {
                script.clear();
                let at = proxy.at("l")?;
                let before = proxy.stats()?;
                let mut said = BTreeSet::new();
                for _ in 0..12 {
                    said.insert(Ask::get(path).send(at)?.to_string());
                }
                let came: BTreeSet<String> = script.seen().into_iter().map(|seen| seen.backend).collect();
                let stats = ["cluster.subsets.lb_subsets_*", "cluster.strict.lb_subsets_*"];
                Ok(json!({ "said": said, "endpoints": came, "stats": proxy.stats()?.since(&before, &stats) }))
            });
            rig.cases = cases;
        }
        rig.asks(
            "weighted clusters",
            &[
                Ask::get("/added/").header("x-gone", "1"),
                Ask::get("/header/").header("x-cluster", "one"),
                Ask::get("/header/").header("x-cluster", "nowhere"),
                Ask::get("/header/"),
            ],
        );
        rig.finish()
    })
}
