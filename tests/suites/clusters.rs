//! Clusters: which endpoint a connection meets, and what makes an endpoint unfit.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, assignment, chain, endpoint, locality, tcp_proxy};
use shunt_tests::name_server::NameServer;
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Client, Does, Pair, Proxy, Upstream, eventually, lab};

fn echoes<const N: usize>(names: [&str; N]) -> Result<[Upstream; N]> {
    let all = names.into_iter().map(Upstream::echo).collect::<Result<Vec<_>>>()?;
    all.try_into().ok().context("as many as names")
}

/// Who answers.
fn who(proxy: &Proxy, listener: &str) -> Result<String> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    let answer = client.ask("x").unwrap_or_else(|_| "closed x".to_owned());
    Ok(answer.trim_end_matches(" x").to_owned())
}

/// How many of `n` connections each met.
fn met(proxy: &Proxy, listener: &str, n: usize) -> Result<BTreeMap<String, usize>> {
    let mut met = BTreeMap::new();
    for _ in 0..n {
        *met.entry(who(proxy, listener)?).or_default() += 1;
    }
    Ok(met)
}

/// Fails unless every share is within five standard deviations of its probability.
fn shares(met: &BTreeMap<String, usize>, expected: &[(&str, f64)]) -> Result<()> {
    let all: usize = met.values().sum();
    for (name, probability) in expected {
        let n = all as f64;
        let (mean, deviation) = (n * probability, (n * probability * (1.0 - probability)).sqrt());
        let got = met.get(*name).copied().unwrap_or_default() as f64;
        ensure!(
            (got - mean).abs() <= 5.0 * deviation + 1.0,
            "{name} has {got} of {n}, expected {mean}: {met:?}"
        );
    }
    ensure!(met.keys().all(|name| expected.iter().any(|(e, _)| e == name)), "others, too: {met:?}");
    Ok(())
}

#[test]
fn policies_weights_priorities_localities() -> Result<()> {
    lab(|lab| {
        let [a, b, c] = echoes(["a", "b", "c"])?;
        let at = |upstream: &Upstream, fields: &str| endpoint(upstream.address, fields);
        let equal = [locality(&[at(&a, ""), at(&b, ""), at(&c, "")], "")];
        let weight = |n: u32| format!("load_balancing_weight: {n}");
        let weighted = [locality(&[at(&a, &weight(1)), at(&b, &weight(2)), at(&c, &weight(5))], "")];
        let zones = [
            locality(&[at(&a, "")], "locality: { zone: one }, load_balancing_weight: 1"),
            locality(&[at(&b, ""), at(&c, "")], "locality: { zone: two }, load_balancing_weight: 3"),
        ];
        let sick = "health_status: UNHEALTHY";
        let spill = [
            locality(&[at(&a, ""), at(&b, sick), at(&b, sick)], "priority: 0"),
            locality(&[at(&c, "")], "priority: 1"),
        ];
        let panic = [locality(&[at(&a, ""), at(&b, sick), at(&c, sick)], "")];
        let zone_config = "common_lb_config: { locality_weighted_lb_config: {} }";
        let third = 1.0 / 3.0;
        type Row<'a> = (&'a str, &'a [String], String, &'a [(&'a str, f64)]);
        let rows: [Row<'_>; 12] = [
            ("rr", &equal, "lb_policy: ROUND_ROBIN".to_owned(), &[("a", third), ("b", third), ("c", third)]),
            (
                "lr",
                &equal,
                "lb_policy: LEAST_REQUEST".to_owned(),
                &[("a", third), ("b", third), ("c", third)],
            ),
            ("random", &equal, "lb_policy: RANDOM".to_owned(), &[("a", third), ("b", third), ("c", third)]),
            (
                "rr weights",
                &weighted,
                "lb_policy: ROUND_ROBIN".to_owned(),
                &[("a", 0.125), ("b", 0.25), ("c", 0.625)],
            ),
            (
                "lr weights",
                &weighted,
                "lb_policy: LEAST_REQUEST".to_owned(),
                &[("a", 0.125), ("b", 0.25), ("c", 0.625)],
            ),
            (
                "random weights",
                &weighted,
                "lb_policy: RANDOM".to_owned(),
                &[("a", third), ("b", third), ("c", third)],
            ),
            (
                "zones",
                &zones,
                format!("lb_policy: ROUND_ROBIN, {zone_config}"),
                &[("a", 0.25), ("b", 0.375), ("c", 0.375)],
            ),
            // 1.4 x 1/3 of the first priority is healthy.
            (
                "spill",
                &spill,
                "lb_policy: ROUND_ROBIN, common_lb_config: { healthy_panic_threshold: { value: 0 } }"
                    .to_owned(),
                &[("a", 0.466), ("c", 0.534)],
            ),
            ("panic", &panic, "lb_policy: RANDOM".to_owned(), &[("a", third), ("b", third), ("c", third)]),
            (
                "no panic",
                &panic,
                "lb_policy: RANDOM, common_lb_config: { healthy_panic_threshold: { value: 20 } }".to_owned(),
                &[("a", 1.0)],
            ),
            (
                "hash without a policy",
                &equal,
                "lb_policy: RING_HASH".to_owned(),
                &[("a", third), ("b", third), ("c", third)],
            ),
            (
                "overprovisioned",
                &spill,
                "lb_policy: RANDOM, common_lb_config: { healthy_panic_threshold: { value: 0 } }".to_owned(),
                &[("a", 0.466), ("c", 0.534)],
            ),
        ];
        let mut config = Bootstrap::new();
        for (name, localities, fields, _) in &rows {
            config = config.relay(name, name).assigned(name, localities, &format!("type: STATIC, {fields}"));
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (name, _, _, expected) in &rows {
            for proxy in pair.both() {
                cases.case(format_args!("{name}, {}", proxy.kind.name()), || {
                    // The ports decide the ring's shares, which are not even.
                    let wide: Vec<(&str, f64)> = expected.to_vec();
                    let met = met(proxy, name, 300)?;
                    if name.starts_with("hash") {
                        ensure!(met.len() == 3 && met.values().all(|n| *n > 15), "{met:?}");
                        return Ok(());
                    }
                    shares(&met, &wide)
                });
            }
        }
        pair.same(&mut cases, "round robin visits all in turn", |proxy| {
            let turns = (0..9).map(|_| who(proxy, "rr")).collect::<Result<Vec<_>>>()?;
            Ok(json!(turns.chunks(3).all(|chunk| chunk == &turns[..3])))
        });
        cases.finish()
    })
}

#[test]
fn hashes_of_the_source() -> Result<()> {
    lab(|lab| {
        let [a, b, c] = echoes(["a", "b", "c"])?;
        let all = [a.address, b.address, c.address];
        let weighted: Vec<String> = [(&a, 1), (&b, 2), (&c, 5)]
            .iter()
            .map(|(up, n)| endpoint(up.address, &format!("load_balancing_weight: {n}")))
            .collect();
        let hashed = |name: &str| {
            let filter = tcp_proxy(name, &format!("cluster: {name}, hash_policy: [ {{ source_ip: {{}} }} ]"));
            format!("filter_chains: [ {} ]", chain("", &[filter]))
        };
        let config = Bootstrap::new()
            .listener("ring", &hashed("ring"))
            .listener("murmur", &hashed("murmur"))
            .listener("maglev", &hashed("maglev"))
            .listener("weighted_ring", &hashed("weighted_ring"))
            .listener("weighted_maglev", &hashed("weighted_maglev"))
            .static_cluster("ring", &all, "lb_policy: RING_HASH")
            .static_cluster("murmur", &all, "lb_policy: RING_HASH, ring_hash_lb_config: { hash_function: MURMUR_HASH_2, minimum_ring_size: 64 }")
            .static_cluster("maglev", &all, "lb_policy: MAGLEV")
            .assigned("weighted_ring", &[locality(&weighted, "")], "type: STATIC, lb_policy: RING_HASH")
            .assigned("weighted_maglev", &[locality(&weighted, "")], "type: STATIC, lb_policy: MAGLEV, maglev_lb_config: { table_size: 331 }");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for listener in ["ring", "murmur", "maglev", "weighted_ring", "weighted_maglev"] {
            pair.same(&mut cases, format_args!("the endpoint of each source: {listener}"), |proxy| {
                let ask = |n: u8| {
                    let source = Ipv4Addr::new(127, 0, 2, n);
                    Client::connect_from(source, 0, proxy.at(listener)?)?.ask("x")
                };
                let chosen = (1..=40).map(ask).collect::<Result<Vec<_>>>()?;
                ensure!(
                    (1..=5).all(|n| ask(n).is_ok_and(|again| again == chosen[usize::from(n) - 1])),
                    "it moves"
                );
                Ok(json!(chosen))
            });
        }
        cases.finish()
    })
}

#[test]
fn subsets() -> Result<()> {
    lab(|lab| {
        let [a, b, c] = echoes(["a", "b", "c"])?;
        let labelled = |up: &Upstream, labels: &str| {
            endpoint(up.address, &format!("metadata: {{ filter_metadata: {{ envoy.lb: {{ {labels} }} }} }}"))
        };
        let all = [locality(
            &[labelled(&a, "env: one, v: 1"), labelled(&b, "env: two, v: 1"), labelled(&c, "env: two, v: 2")],
            "",
        )];
        let fallbacks = [
            ("none", "fallback_policy: NO_FALLBACK"),
            ("any", "fallback_policy: ANY_ENDPOINT"),
            ("default", "fallback_policy: DEFAULT_SUBSET, default_subset: { env: one }"),
            ("own fallback", "fallback_policy: ANY_ENDPOINT, own: true"),
        ];
        let wanted = [
            ("env one", "env: one"),
            ("both", "env: two, v: 2"),
            ("unknown value", "env: three"),
            ("unknown key", "color: red"),
            ("v alone", "v: 1"),
            ("nothing", ""),
        ];
        let mut config = Bootstrap::new();
        let selectors = |own: bool| {
            let own = if own { ", fallback_policy: NO_FALLBACK" } else { "" };
            format!("subset_selectors: [ {{ keys: [ env ]{own} }}, {{ keys: [ env, v ] }} ]")
        };
        let mut listeners = Vec::new();
        for (n, (fallback, fields)) in fallbacks.iter().enumerate() {
            let cluster = format!("subset{n}");
            let own = fields.contains("own: true");
            let fields = fields.replace(", own: true", "");
            let subsets = format!("type: STATIC, lb_subset_config: {{ {fields}, {} }}", selectors(own));
            config = config.assigned(&cluster, &all, &subsets);
            for (m, (what, labels)) in wanted.iter().enumerate() {
                let listener = format!("l{n}{m}");
                let matching = if labels.is_empty() {
                    String::new()
                } else {
                    format!(", metadata_match: {{ filter_metadata: {{ envoy.lb: {{ {labels} }} }} }}")
                };
                let filter = tcp_proxy(&listener, &format!("cluster: {cluster}{matching}"));
                config = config.listener(&listener, &format!("filter_chains: [ {} ]", chain("", &[filter])));
                listeners.push((listener, format!("subsets: fallback {fallback}, {what}")));
            }
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (listener, id) in &listeners {
            pair.same(&mut cases, id, |proxy| {
                let met = met(proxy, listener, 24)?;
                Ok(json!(met.keys().collect::<Vec<_>>()))
            });
        }
        cases.finish()
    })
}

#[test]
fn circuit_breakers_and_connect_failures() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let config = Bootstrap::new()
            .relay("two", "two")
            .relay("timeout", "timeout")
            .listener(
                "retried",
                &format!(
                    "filter_chains: [ {} ]",
                    chain("", &[tcp_proxy("retried", "cluster: retried, max_connect_attempts: 4")])
                ),
            )
            .static_cluster(
                "two",
                &[up.address],
                "circuit_breakers: { thresholds: [ { max_connections: 2, track_remaining: true } ] }",
            )
            .static_cluster("retried", &[nobody()?, nobody()?], "")
            .static_cluster("timeout", &["192.0.2.1:9".parse()?], "")
            .yaml()
            .replace("name: \"timeout\", connect_timeout: 2s", "name: \"timeout\", connect_timeout: 0.3s");
        let pair = Pair::start(lab, &config)?;
        let mut cases = Cases::new();
        let stats = [
            "cluster.two.upstream_cx_overflow",
            "cluster.two.circuit_breakers.default.cx_open",
            "cluster.two.circuit_breakers.default.remaining_cx",
            "cluster.two.upstream_cx_total",
            "cluster.two.upstream_rq_pending_overflow",
        ];
        let mut held: Vec<Client> = Vec::new();
        pair.same_stats(&mut cases, "the third of two connections, stats", &stats, |proxy| {
            for _ in 0..2 {
                let mut client = Client::connect(proxy.at("two")?)?;
                client.ask("x")?;
                held.push(client);
            }
            let third = who(proxy, "two")?;
            ensure!(third == "closed", "{third}");
            Ok(())
        });
        drop(held);
        pair.same(&mut cases, "a place that is free again", |proxy| {
            eventually("an answer", Duration::from_secs(3), || {
                ensure!(who(proxy, "two")? == "up", "closed");
                Ok(json!(true))
            })
        });
        let stats = [
            "cluster.retried.upstream_cx_connect_fail",
            "cluster.retried.upstream_cx_connect_attempts_exceeded",
            "cluster.retried.upstream_cx_total",
            "cluster.retried.retry_or_shadow_abandoned",
        ];
        pair.same_stats(&mut cases, "four attempts, stats", &stats, |proxy| {
            Client::connect(proxy.at("retried")?)?.end().map(drop)
        });
        let stats = [
            "cluster.timeout.upstream_cx_connect_timeout",
            "cluster.timeout.upstream_cx_connect_fail",
            "cluster.timeout.upstream_cx_connect_attempts_exceeded",
        ];
        pair.same_stats(&mut cases, "a connect timeout, stats", &stats, |proxy| {
            Client::connect(proxy.at("timeout")?)?.end().map(drop)
        });
        cases.finish()
    })
}

#[test]
fn outliers_are_ejected() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let detection = "outlier_detection: { consecutive_5xx: 3, consecutive_local_origin_failure: 3, interval: 0.2s, base_ejection_time: 30s, max_ejection_percent: 60 }, lb_policy: ROUND_ROBIN";
        let config =
            Bootstrap::new().relay("o", "o").static_cluster("o", &[up.address, nobody()?], detection);
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "outlier detection: what is met before and after", |proxy| {
            let before = met(proxy, "o", 8)?;
            proxy.expect_stat("cluster.o.outlier_detection.ejections_active", 1)?;
            let after = met(proxy, "o", 8)?;
            ensure!(after.len() == 1 && after.contains_key("up"), "{after:?}");
            let stats = proxy.stats()?;
            let names = [
                "ejections_active",
                "ejections_enforced_total",
                "ejections_enforced_consecutive_5xx",
                "ejections_detected_consecutive_5xx",
                "ejections_enforced_consecutive_local_origin_failure",
                "ejections_overflow",
            ];
            let seen: Value = names
                .iter()
                .map(|name| json!([name, stats.of(&format!("cluster.o.outlier_detection.{name}"))]))
                .collect();
            Ok(json!([before.contains_key("closed"), stats.of("cluster.o.membership_healthy"), seen]))
        });
        cases.finish()
    })
}

#[test]
fn health_checks() -> Result<()> {
    lab(|lab| {
        let http = Upstream::start("http", Does::Http)?;
        let [good, other] = echoes(["good", "other"])?;
        let check = "timeout: 1s, interval: 0.2s, no_traffic_interval: 0.2s, unhealthy_threshold: 2, healthy_threshold: 1";
        let tcp = format!("health_checks: [ {{ {check}, tcp_health_check: {{}} }} ]");
        let asked = |expect: &str| {
            format!(
                "health_checks: [ {{ {check}, tcp_health_check: {{ send: {{ text: \"68690a\" }}, receive: [ {{ text: \"{expect}\" }} ] }} }} ]"
            )
        };
        let http_check = format!(
            "health_checks: [ {{ {check}, http_health_check: {{ path: /healthz, host: checked }} }} ]"
        );
        let config = Bootstrap::new()
            .relay("tcp", "tcp")
            .relay("http", "http")
            .relay("asked", "asked")
            .relay("wrong", "wrong")
            .static_cluster("tcp", &[good.address, nobody()?], &tcp)
            .static_cluster(
                "http",
                &[http.address],
                &format!("{http_check}, common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}"),
            )
            // "good hi"
            .static_cluster("asked", &[good.address], &asked("676f6f64206869"))
            .static_cluster(
                "wrong",
                &[other.address],
                &format!(
                    "{}, common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}",
                    asked("676f6f64206869")
                ),
            );
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (cluster, healthy) in [("tcp", 1), ("http", 1), ("asked", 1), ("wrong", 0)] {
            for proxy in pair.both() {
                cases.case(format_args!("healthy members of {cluster}, {}", proxy.kind.name()), || {
                    proxy.expect_stat(&format!("cluster.{cluster}.membership_healthy"), healthy)
                });
            }
        }
        pair.same(&mut cases, "only healthy endpoints are met", |proxy| {
            Ok(json!([met(proxy, "tcp", 6)?, met(proxy, "wrong", 2)?, met(proxy, "asked", 2)?]))
        });
        http.set_status(503);
        pair.same(&mut cases, "a server that says 503", |proxy| {
            proxy.expect_stat("cluster.http.membership_healthy", 0)?;
            Ok(json!(met(proxy, "http", 2)?))
        });
        http.set_status(200);
        pair.same(&mut cases, "a server that is well again", |proxy| {
            proxy.expect_stat("cluster.http.membership_healthy", 1)?;
            let stats = proxy.stats()?;
            let positive = ["attempt", "success", "failure"]
                .map(|s| stats.of(&format!("cluster.http.health_check.{s}")) > 0);
            Ok(json!(positive))
        });
        let head = http
            .seen()
            .iter()
            .map(|seen| String::from_utf8_lossy(&seen.head).into_owned())
            .collect::<Vec<_>>();
        cases.case("what a check asks", || {
            let well = |head: &&String| {
                head.starts_with("GET /healthz HTTP/1.1\r\n")
                    && head.to_lowercase().contains("host: checked\r\n")
            };
            let asked = head.iter().filter(|head| !head.is_empty());
            ensure!(asked.clone().count() > 4 && asked.clone().all(|head| well(&head)), "{head:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn names_are_resolved() -> Result<()> {
    lab(|lab| {
        let names = NameServer::start(60)?;
        // The same port at several addresses.
        let first = Upstream::start_at("one", Does::Echo, "127.0.3.1:0".parse()?)?;
        let port = first.address.port();
        let more = [("127.0.3.2", "two"), ("127.0.3.3", "three")];
        let _more = more.map(|(ip, name)| {
            Upstream::start_at(
                name,
                Does::Echo,
                (ip.parse::<Ipv4Addr>().unwrap_or(Ipv4Addr::LOCALHOST), port).into(),
            )
        });
        names.set("app.test", &["127.0.3.1", "127.0.3.2"])?;
        let resolver = |dns: &NameServer| {
            format!(
                "dns_refresh_rate: 0.25s, dns_lookup_family: V4_ONLY, typed_dns_resolver_config: {{ name: envoy.network.dns_resolver.cares, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [ {} ], dns_resolver_options: {{ no_default_search_domain: true }} }} }}",
                shunt_tests::bootstrap::address("127.0.0.1", dns.address.port())
            )
        };
        let named = |name: &str| {
            format!("{{ endpoint: {{ address: {} }} }}", shunt_tests::bootstrap::address(name, port))
        };
        let app = [locality(&[named("app.test")], "")];
        let config = Bootstrap::new()
            .relay("strict", "strict")
            .relay("logical", "logical")
            .relay("missing", "missing")
            .assigned(
                "strict",
                &app,
                &format!("type: STRICT_DNS, lb_policy: ROUND_ROBIN, {}", resolver(&names)),
            )
            .assigned("logical", &app, &format!("type: LOGICAL_DNS, {}", resolver(&names)))
            .assigned(
                "missing",
                &[locality(&[named("missing.test")], "")],
                &format!("type: STRICT_DNS, {}", resolver(&names)),
            );
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let who_all = |proxy: &Proxy, listener: &str| {
            Ok(json!(met(proxy, listener, 6)?.into_keys().collect::<Vec<_>>()))
        };
        pair.same(&mut cases, "STRICT_DNS: all addresses", |proxy| who_all(proxy, "strict"));
        pair.same(&mut cases, "LOGICAL_DNS: one address", |proxy| Ok(json!(met(proxy, "logical", 6)?.len())));
        pair.same(&mut cases, "a name that does not exist", |proxy| who_all(proxy, "missing"));
        pair.same(&mut cases, "membership", |proxy| {
            let stats = proxy.stats()?;
            Ok(json!(
                ["strict", "logical", "missing"].map(|c| stats.of(&format!("cluster.{c}.membership_total")))
            ))
        });
        names.set("app.test", &["127.0.3.3"])?;
        pair.same(&mut cases, "another address", |proxy| {
            eventually("the new address", Duration::from_secs(5), || {
                ensure!(who(proxy, "strict")? == "three" && who(proxy, "logical")? == "three", "not yet");
                Ok(())
            })?;
            let stats = proxy.stats()?;
            ensure!(stats.of("cluster.strict.update_success") > 0, "no update is counted");
            Ok(json!([met(proxy, "strict", 4)?, stats.of("cluster.strict.membership_total")]))
        });
        ensure!(names.asked() > 6, "only {} questions", names.asked());
        cases.finish()
    })
}

#[test]
fn endpoints_from_a_file() -> Result<()> {
    lab(|lab| {
        let [a, b] = echoes(["a", "b"])?;
        let file = |localities: &[String]| {
            let resource = assignment("service", localities, "").replacen(
                '{',
                "{ \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, ",
                1,
            );
            format!("version_info: \"1\"\nresources: [ {resource} ]\n")
        };
        let of = |up: &Upstream| locality(&[endpoint(up.address, "")], "");
        let shared = lab.dir().join("eds");
        std::fs::create_dir(&shared)?;
        let path = shared.join("eds.yaml");
        std::fs::write(&path, file(&[of(&a)]))?;
        let source =
            format!("path_config_source: {{ path: {path:?}, watched_directory: {{ path: {shared:?} }} }}");
        let eds = |source: &str| {
            format!(
                "type: EDS, eds_cluster_config: {{ service_name: service, eds_config: {{ resource_api_version: V3, {source} }} }}"
            )
        };
        let config = Bootstrap::new()
            .top("node: { id: test, cluster: test }")
            .relay("eds", "eds")
            .relay("old", "old")
            .cluster("eds", &eds(&source))
            // The deprecated field of one path.
            .cluster("old", &eds(&format!("path: {path:?}")));
        ensure!(!config.yaml().contains(DIR), "both read one file");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "EDS: the first file", |proxy| {
            Ok(json!([who(proxy, "eds")?, who(proxy, "old")?]))
        });
        let rename = |text: String| -> Result<()> {
            let new = shared.join("new");
            std::fs::write(&new, text)?;
            Ok(std::fs::rename(new, &path)?)
        };
        rename(file(&[of(&b)]))?;
        pair.same(&mut cases, "EDS: a renamed file", |proxy| {
            eventually("the new endpoint", Duration::from_secs(5), || {
                ensure!(who(proxy, "eds")? == "b" && who(proxy, "old")? == "b", "not yet");
                Ok(json!(true))
            })
        });
        rename("resources: [ { no".to_owned())?;
        for proxy in pair.both() {
            cases.case(
                format_args!("EDS: a broken file leaves what there is, {}", proxy.kind.name()),
                || {
                    eventually("a counted failure", Duration::from_secs(5), || {
                        let stats = proxy.stats()?;
                        let failed =
                            stats.of("cluster.eds.update_failure") + stats.of("cluster.eds.update_rejected");
                        ensure!(failed > 0, "no failure is counted");
                        Ok(())
                    })?;
                    ensure!(who(proxy, "eds")? == "b", "the endpoint is gone");
                    Ok(())
                },
            );
        }
        rename(file(&[of(&a), of(&b)]))?;
        pair.same(&mut cases, "EDS: a good file again", |proxy| {
            proxy.expect_stat("cluster.eds.membership_total", 2)?;
            Ok(json!(met(proxy, "eds", 8)?.into_keys().collect::<Vec<_>>()))
        });
        cases.finish()
    })
}
