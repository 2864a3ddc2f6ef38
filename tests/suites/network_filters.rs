//! Network filters in front of tcp_proxy, or in its place.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, extension, says, tcp_proxy, tls_inspector};
use shunt_tests::hello::client_hello;
use shunt_tests::{Bootstrap, Cases, Client, Pair, Proxy, Upstream, lab};

fn filter(kind: &str, message: &str, fields: &str) -> String {
    let name = format!("envoy.filters.network.{kind}");
    extension(&name, &format!("envoy.extensions.filters.network.{kind}.v3.{message}"), fields)
}

fn rbac(prefix: &str, fields: &str) -> String {
    filter("rbac", "RBAC", &format!("stat_prefix: {prefix:?}, {fields}"))
}

/// A policy of one rule.
fn policy(action: &str, permission: &str, principal: &str) -> String {
    format!(
        "{{ action: {action}, policies: {{ p: {{ permissions: [ {{ {permission} }} ], principals: [ {{ {principal} }} ] }} }} }}"
    )
}

/// One line through a listener from an address; `closed` where there is no answer.
fn ask_from(proxy: &Proxy, listener: &str, last: u8) -> Result<String> {
    let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 1, last), 0, proxy.at(listener)?)?;
    // RBAC decides when the first byte comes; a refusal may reset what was sent.
    Ok(client.ask("hello").unwrap_or_else(|_| "closed".to_owned()))
}

#[test]
fn rbac_allows_and_denies() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let cidr = |kind: &str| format!("{kind}: {{ address_prefix: 127.0.1.8, prefix_len: 29 }}");
        let rules = [
            ("allow", format!("rules: {}", policy("ALLOW", "any: true", &cidr("direct_remote_ip")))),
            ("deny", format!("rules: {}", policy("DENY", "any: true", &cidr("remote_ip")))),
            ("old name", format!("rules: {}", policy("ALLOW", "any: true", &cidr("source_ip")))),
            ("nothing", "rules: { action: ALLOW, policies: {} }".to_owned()),
            ("no rules", String::new()),
            (
                "shadow",
                format!(
                    "shadow_rules: {}, shadow_rules_stat_prefix: sh_",
                    policy("ALLOW", "any: true", &cidr("source_ip"))
                ),
            ),
            (
                "not",
                format!(
                    "rules: {}",
                    policy("ALLOW", "any: true", &format!("not_id: {{ {} }}", cidr("source_ip")))
                ),
            ),
            ("port", format!("rules: {}", policy("ALLOW", "destination_port: 1", "any: true"))),
            (
                "or",
                format!(
                    "rules: {}",
                    policy(
                        "ALLOW",
                        "or_rules: { rules: [ { destination_port: 1 }, { destination_ip: { address_prefix: 127.0.0.0, prefix_len: 8 } } ] }",
                        "any: true"
                    )
                ),
            ),
            (
                "and",
                format!(
                    "rules: {}",
                    policy(
                        "ALLOW",
                        "and_rules: { rules: [ { destination_port: 1 }, { any: true } ] }",
                        "any: true"
                    )
                ),
            ),
            ("log", format!("rules: {}", policy("LOG", "any: true", &cidr("source_ip")))),
        ];
        let mut config = Bootstrap::new().static_cluster("up", &[upstream.address], "");
        for (name, fields) in &rules {
            let prefix = format!("r_{}.", name.replace(' ', "_"));
            let filters = [rbac(&prefix, fields), tcp_proxy(name, "cluster: up")];
            config = config.listener(name, &format!("filter_chains: [ {} ]", chain("", &filters)));
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (name, _) in &rules {
            let mut seen = Vec::new();
            let prefix = format!("r_{}.*", name.replace(' ', "_"));
            pair.same_stats(&mut cases, format_args!("rbac, stats: {name}"), &[&prefix], |proxy| {
                let [inside, outside] = [9, 99].map(|last| ask_from(proxy, name, last));
                seen.push([inside?, outside?]);
                Ok(())
            });
            let mut seen = seen.into_iter();
            pair.same(&mut cases, format_args!("rbac: {name}"), |_| Ok(json!(seen.next())));
        }
        cases.case("allow is by source", || {
            for proxy in pair.both() {
                ensure!(ask_from(proxy, "allow", 9)? == "up hello", "{}", proxy.kind.name());
                ensure!(ask_from(proxy, "allow", 99)? == "closed", "{}", proxy.kind.name());
            }
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn rbac_reads_server_names_and_sni_cluster_follows_them() -> Result<()> {
    lab(|lab| {
        let (a, b) = (Upstream::echo("a")?, Upstream::echo("b")?);
        let named = "requested_server_name: { suffix: \".example.com\" }";
        let filters = [
            rbac("names.", &format!("rules: {}", policy("ALLOW", named, "any: true"))),
            filter("sni_cluster", "SniCluster", ""),
            tcp_proxy("sni", "cluster: fallback"),
        ];
        let fields =
            format!("listener_filters: [ {} ], filter_chains: [ {} ]", tls_inspector(), chain("", &filters));
        let config = Bootstrap::new()
            .listener("sni", &fields)
            .static_cluster("a.example.com", &[a.address], "")
            .static_cluster("fallback", &[b.address], "");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for name in [Some("a.example.com"), Some("unknown.example.com"), Some("a.example.org"), None] {
            pair.same(&mut cases, format_args!("sni_cluster: {name:?}"), |proxy| {
                let mut client = Client::connect(proxy.at("sni")?)?;
                client.send(client_hello(name, &[]))?;
                // A ClientHello has the byte of a line's end.
                let answer = client.line().unwrap_or_else(|_| "closed".to_owned());
                ensure!(answer.starts_with("a ") == (name == Some("a.example.com")), "{answer}");
                Ok(json!(answer))
            });
        }
        cases.finish()
    })
}

#[test]
fn connection_limit() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let limited = |name: &str, more: &str| {
            let fields = format!("stat_prefix: {name}, max_connections: 2{more}");
            let filters =
                [filter("connection_limit", "ConnectionLimit", &fields), tcp_proxy(name, "cluster: up")];
            format!("filter_chains: [ {} ]", chain("", &filters))
        };
        let config = Bootstrap::new()
            .static_cluster("up", &[upstream.address], "")
            .listener("two", &limited("two", ""))
            .listener("late", &limited("late", ", delay: 0.6s"))
            .listener(
                "disabled",
                &limited("disabled", ", runtime_enabled: { default_value: false, runtime_key: limit }"),
            );
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for listener in ["two", "late", "disabled"] {
            let mut seen = Vec::new();
            let gauge = match listener {
                "disabled" => "tcp.disabled.downstream_cx_active".to_owned(),
                _ => format!("connection_limit.{listener}.active_connections"),
            };
            let stats = [format!("connection_limit.{listener}.limited_connections")];
            pair.same_stats(
                &mut cases,
                format_args!("connection_limit, stats: {listener}"),
                &[&stats[0]],
                |proxy| {
                    let mut open = Vec::new();
                    for _ in 0..2 {
                        let mut client = Client::connect(proxy.at(listener)?)?;
                        client.ask("hello")?;
                        open.push(client);
                    }
                    let start = Instant::now();
                    let mut third = Client::connect(proxy.at(listener)?)?;
                    let answer = third.ask("hello").unwrap_or_else(|_| "closed".to_owned());
                    let late = start.elapsed() > Duration::from_millis(400);
                    drop(open);
                    drop(third);
                    proxy.expect_stat(&gauge, 0)?;
                    let mut again = Client::connect(proxy.at(listener)?)?;
                    seen.push(json!([answer, late, again.ask("again")?]));
                    drop(again);
                    proxy.expect_stat(&gauge, 0)
                },
            );
            let mut seen = seen.into_iter();
            pair.same(&mut cases, format_args!("connection_limit: {listener}"), |_| Ok(json!(seen.next())));
        }
        cases.finish()
    })
}

#[test]
fn local_ratelimit() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let bucket = "token_bucket: { max_tokens: 3, tokens_per_fill: 1, fill_interval: 1000s }";
        let filters = [
            filter("local_ratelimit", "LocalRateLimit", &format!("stat_prefix: rl, {bucket}")),
            tcp_proxy("rl", "cluster: up"),
        ];
        let config = Bootstrap::new()
            .static_cluster("up", &[upstream.address], "")
            .listener("rl", &format!("filter_chains: [ {} ]", chain("", &filters)));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let mut seen = Vec::new();
        pair.same_stats(&mut cases, "local_ratelimit, stats", &["local_rate_limit.rl.*"], |proxy| {
            seen.push((1..=5).map(|n| ask_from(proxy, "rl", n)).collect::<Result<Vec<_>>>()?);
            Ok(())
        });
        let mut seen = seen.into_iter();
        pair.same(&mut cases, "local_ratelimit", |_| {
            let seen = seen.next();
            ensure!(
                seen.as_ref().is_some_and(|all| all.iter().filter(|a| *a == "closed").count() == 2),
                "{seen:?}"
            );
            Ok(json!(seen))
        });
        cases.finish()
    })
}

#[test]
fn direct_response_and_echo() -> Result<()> {
    lab(|lab| {
        let echo = filter("echo", "Echo", "");
        let config = Bootstrap::new()
            .listener("says", &format!("filter_chains: [ {} ]", chain("", &[says("a fixed text")])))
            .listener("echo", &format!("filter_chains: [ {} ]", chain("", &[echo])));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "direct_response", |proxy| {
            Ok(json!(Client::connect(proxy.at("says")?)?.rest()?))
        });
        pair.same(&mut cases, "echo", |proxy| {
            let mut client = Client::connect(proxy.at("echo")?)?;
            ensure!(client.ask("hello")? == "hello", "another text");
            ensure!(client.ask("again")? == "again", "another text");
            client.half_close()?;
            Ok(json!(client.rest()?))
        });
        cases.finish()
    })
}
