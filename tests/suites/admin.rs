//! The admin: Envoy's endpoints with Envoy's shapes, and an answer whatever else is being read.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, address, chain, file_log, tcp_proxy, tls_inspector};
use shunt_tests::{Bootstrap, Cases, Client, Kind, Lab, Pair, Proxy, Upstream, eventually, lab};

/// A bit of everything, and one connection's traffic.
fn start(lab: &Lab, upstream: &Upstream) -> Result<Pair> {
    let log = file_log("access.log", "%BYTES_SENT%");
    let filter = tcp_proxy("relay", &format!("cluster: up, access_log: [ {log} ], idle_timeout: 60s"));
    let fields = format!(
        "traffic_direction: OUTBOUND, listener_filters: [ {} ], filter_chains: [ {} ]",
        tls_inspector(),
        chain("server_names: [ a.test ]", std::slice::from_ref(&filter))
            + ", "
            + &chain("", &[filter]).replacen('{', "{ name: rest, ", 1)
    );
    let breakers = "circuit_breakers: { thresholds: [ { max_connections: 7 } ] }, metadata: { filter_metadata: { m: { k: v } } }";
    let config = Bootstrap::new()
        .top("node: { id: node-1, cluster: c-1, locality: { zone: z } }")
        .listener("relay", &fields)
        .listener_at(
            "unbound",
            &address("10.1.1.1", 80),
            &format!(
                "bind_to_port: false, filter_chains: [ {} ]",
                chain("", &[tcp_proxy("unbound", "cluster: up")])
            ),
        )
        .static_cluster("up", &[upstream.address], breakers)
        .static_cluster("ring", &[upstream.address], "lb_policy: RING_HASH, outlier_detection: {}");
    let pair = Pair::start(lab, &config.yaml())?;
    for proxy in pair.both() {
        let mut client = Client::connect(proxy.at("relay")?)?;
        client.ask("hello")?;
        client.half_close()?;
        client.end()?;
        proxy.expect_stat("cluster.up.upstream_cx_active", 0)?;
    }
    Ok(pair)
}

/// The paths of all keys; an array stands for its entries.
fn keys(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let path = format!("{path}.{key}");
                walk(value, &path, into);
                into.insert(path);
            }),
            Value::Array(all) => all.iter().for_each(|value| walk(value, &format!("{path}[]"), into)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut all = BTreeSet::new();
    walk(value, "", &mut all);
    all
}

#[test]
fn shapes_are_envoys() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let pair = start(lab, &upstream)?;
        let mut cases = Cases::new();
        for path in ["/clusters?format=json", "/listeners?format=json"] {
            pair.same(&mut cases, format_args!("keys of {path}"), |proxy| {
                Ok(json!(keys(&proxy.admin().json(path)?)))
            });
        }
        pair.same(&mut cases, "keys of /server_info", |proxy| {
            let info = proxy.admin().json("/server_info")?;
            ensure!(info["state"] == "LIVE" && info["node"]["id"] == "node-1", "{info}");
            // Options and the extensions of a node are a list of the binary's own.
            let own = |key: &String| key.starts_with(".command_line_options.") || key.starts_with(".node.");
            Ok(json!(keys(&info).into_iter().filter(|key| !own(key)).collect::<Vec<_>>()))
        });
        pair.same(&mut cases, "command line options in /server_info", |proxy| {
            let options = proxy.admin().json("/server_info")?["command_line_options"].clone();
            let wanted = [
                "concurrency",
                "mode",
                "disable_hot_restart",
                "file_flush_interval",
                "drain_time",
                "admin_address_path",
                "config_path",
            ];
            let known = wanted.map(|key| match &options[key] {
                Value::String(text) if text.contains(&*proxy.dir().to_string_lossy()) => json!("a path"),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => options[key].clone(),
                Value::Array(_) | Value::Object(_) => json!("no scalar"),
            });
            Ok(json!(known))
        });
        for path in [
            "/config_dump",
            "/config_dump?include_eds=true",
            "/config_dump?resource=static_clusters",
            "/config_dump?resource=static_listeners&name_regex=rel.*",
            "/config_dump?resource=static_clusters&mask=cluster.name",
        ] {
            pair.same(&mut cases, format_args!("sections of {path}"), |proxy| {
                let dump = proxy.admin().json(path)?;
                let configs = dump["configs"].as_array().context("no configs")?.clone();
                let section = |config: &Value| {
                    let mut own: Vec<&String> =
                        config.as_object().into_iter().flat_map(|map| map.keys()).collect();
                    own.sort();
                    json!([config["@type"], own])
                };
                Ok(configs.iter().map(section).collect())
            });
        }
        pair.same(&mut cases, "the listeners and clusters of /config_dump", |proxy| {
            let mut dump = proxy.admin().json("/config_dump")?;
            strip(&mut dump);
            let of = |kind: &str| {
                let configs = dump["configs"].as_array().cloned().unwrap_or_default();
                configs.into_iter().find(|c| c["@type"].as_str().is_some_and(|t| t.ends_with(kind)))
            };
            let (listeners, mut clusters) = (of("ListenersConfigDump"), of("ClustersConfigDump"));
            // Envoy's order is that of a hash.
            if let Some(all) = clusters.as_mut().and_then(|dump| dump["static_clusters"].as_array_mut()) {
                all.sort_by_key(|entry| entry["cluster"]["name"].to_string());
            }
            let text = json!([listeners, clusters]).to_string();
            Ok(serde_json::from_str(&text.replace(&*proxy.dir().to_string_lossy(), DIR))?)
        });
        let used = |proxy: &Proxy| -> Result<BTreeSet<String>> {
            let text = proxy.admin().ok(
                "/stats?usedonly&filter=^(cluster\\.up|tcp\\.relay|listener\\.127|listener_manager|cluster_manager)",
            )?;
            // Envoy shows a histogram when it has merged its workers': some seconds later. A worker's own stats are a
            // matter of threads, and what is buffered one of the moment.
            let used = text.lines().filter_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let own = name.contains("worker_") || name.ends_with("_bytes_buffered");
                (value.parse::<u64>().is_ok() && !own).then(|| name.to_owned())
            });
            Ok(used.collect())
        };
        pair.same(&mut cases, "stats with a value", |proxy| Ok(json!(used(proxy)?)));
        cases.case("no stat of another name than Envoy's", || {
            let wanted = [
                "cluster.up.",
                "tcp.relay.",
                "listener.127.0.0.1_0.",
                "listener_manager.",
                "cluster_manager.",
            ];
            let names = |proxy: &Proxy| -> Result<BTreeSet<String>> {
                let stats = proxy.admin().ok("/stats")?;
                let names = stats.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned()));
                Ok(names.filter(|name| wanted.iter().any(|w| name.starts_with(w))).collect())
            };
            let envoy = names(&pair.envoy)?;
            let own: Vec<_> = names(&pair.shunt)?.into_iter().filter(|name| !envoy.contains(name)).collect();
            ensure!(own.is_empty(), "{own:?}");
            Ok(())
        });
        pair.same(&mut cases, "readiness as pilot-agent reads it", |proxy| {
            let path = "/stats?usedonly&filter=^(server\\.state|listener_manager\\.workers_started)";
            Ok(json!(proxy.admin().ok(path)?))
        });
        pair.same(&mut cases, "shape of /stats?format=json", |proxy| {
            let stats = proxy.admin().json("/stats?format=json&filter=cluster.up.(upstream_cx_total|upstream_cx_active|upstream_cx_length_ms)")?;
            let all = stats["stats"].as_array().context("no stats")?;
            let plain = all.iter().filter(|stat| stat["name"].is_string());
            let names: BTreeSet<_> =
                plain.map(|stat| (stat["name"].to_string(), stat["value"].is_number())).collect();
            let histograms = all.iter().find(|stat| stat["histograms"].is_object());
            Ok(json!([names, histograms.map(keys)]))
        });
        pair.same(&mut cases, "prometheus names", |proxy| {
            let text = proxy.admin().ok("/stats/prometheus?filter=^(cluster.up|tcp|listener.127)")?;
            // What only HTTP counts comes with HTTP.
            let of_tcp = [
                "_cx_total ",
                "_cx_active ",
                "_bytes_total ",
                "membership_total ",
                "_cx_length_ms ",
                "cx_open ",
            ];
            let of_types = text.lines().filter(|line| line.starts_with("# TYPE"));
            let kept =
                of_types.filter(|l| of_tcp.iter().any(|part| l.contains(part)) && !l.contains("_worker_"));
            Ok(json!(kept.map(str::to_owned).collect::<BTreeSet<_>>()))
        });
        pair.same(&mut cases, "a prometheus line", |proxy| {
            let text = proxy.admin().ok("/stats/prometheus")?;
            let wanted = [
                "envoy_cluster_upstream_cx_total{",
                "envoy_tcp_downstream_cx_total{",
                "envoy_listener_downstream_cx_total{",
            ];
            let lines = text.lines().filter(|line| wanted.iter().any(|w| line.starts_with(w)));
            Ok(json!(
                lines.filter(|line| !line.contains("admin")).map(str::to_owned).collect::<BTreeSet<_>>()
            ))
        });
        pair.same(&mut cases, "/clusters as text", |proxy| {
            let text = proxy.admin().ok("/clusters")?;
            Ok(json!(
                text.lines()
                    .filter(|line| !line.contains("rq_") && !line.contains("cx_"))
                    .collect::<BTreeSet<_>>()
            ))
        });
        pair.same(&mut cases, "/listeners as text", |proxy| {
            let text = proxy.admin().ok("/listeners")?;
            Ok(json!(text.replace(&proxy.at("relay")?.to_string(), "<relay>")))
        });
        cases.finish()
    })
}

/// Takes out what is each run's own.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("last_updated");
            map.values_mut().for_each(strip);
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn methods_and_actions() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let pair = start(lab, &upstream)?;
        let mut cases = Cases::new();
        let requests = [
            ("GET", "/"),
            ("GET", "/help"),
            ("GET", "/ready"),
            ("GET", "/memory"),
            ("GET", "/logging"),
            ("GET", "/nonsense"),
            ("GET", "/quitquitquit"),
            ("GET", "/drain_listeners"),
            ("GET", "/reset_counters"),
            ("GET", "/healthcheck/fail"),
            ("GET", "/healthcheck/ok"),
            ("POST", "/logging?level=info"),
            ("POST", "/logging?level=nonsense"),
            ("POST", "/logging?paths=upstream:debug"),
            ("POST", "/reset_counters"),
            ("GET", "/stats?filter=("),
            ("GET", "/stats?format=nonsense"),
            ("GET", "/config_dump?resource=nonsense"),
            ("GET", "/config_dump?name_regex=("),
            ("POST", "/healthcheck/fail"),
            ("GET", "/ready"),
            ("POST", "/healthcheck/ok"),
            ("GET", "/ready"),
        ];
        for (n, (method, path)) in requests.iter().enumerate() {
            pair.same(&mut cases, format_args!("admin status {n}: {method} {path}"), |proxy| {
                Ok(json!(proxy.admin().request(method, path, "")?.status))
            });
        }
        pair.same(&mut cases, "counters that were reset", |proxy| {
            Ok(json!(proxy.stat("cluster.up.upstream_cx_total")?))
        });
        pair.same(&mut cases, "keys of /memory", |proxy| Ok(json!(keys(&proxy.admin().json("/memory")?))));
        cases.finish()
    })
}

#[test]
fn listeners_are_drained_and_the_proxy_quits() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let mut pair = start(lab, &upstream)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "/drain_listeners", |proxy| {
            let at = proxy.at("relay")?;
            let mut open = Client::connect(at)?;
            open.ask("before")?;
            let status = proxy.admin().post("/drain_listeners", "")?.status;
            eventually("a refusal", Duration::from_secs(5), || {
                let refused = Client::connect(at).and_then(|mut client| client.ask("x")).is_err();
                ensure!(refused, "still served");
                Ok(())
            })?;
            Ok(json!([status, open.ask("after")?]))
        });
        for proxy in [&mut pair.envoy, &mut pair.shunt] {
            let name = proxy.kind.name();
            cases.case(format_args!("/quitquitquit, {name}"), || {
                let answer = proxy.admin().post("/quitquitquit", "")?;
                ensure!(answer.status == 200 && answer.body == "OK\n", "{answer:?}");
                let status = proxy.process().wait(Duration::from_secs(8))?;
                ensure!(status.code() == Some(0), "{status}");
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn ready_answers_while_a_dump_is_read_slowly() -> Result<()> {
    lab(|lab| {
        let mut text = String::from("static_resources:\n  clusters:\n");
        for n in 0..5_000 {
            let at = address("127.0.0.1", 9);
            let _ = writeln!(
                text,
                "  - {{ name: c{n}, type: STATIC, connect_timeout: 1s, load_assignment: {{ cluster_name: c{n}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {at} }} }} ] }} ] }} }}"
            );
        }
        let config = format!("admin: {{ address: {} }}\n{text}", address("127.0.0.1", 0));
        let proxy = Proxy::start(lab, Kind::Shunt, &config)?;
        let to = proxy.admin().address().context("no address")?;
        let dump = Client::connect_narrow(to)?;
        let mut stream = dump.stream();
        write!(stream, "GET /config_dump HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut first = [0; 512];
        stream.read_exact(&mut first)?;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            proxy.admin().ok("/ready")?;
            slowest = slowest.max(start.elapsed());
            stream.read_exact(&mut first)?;
        }
        ensure!(slowest < Duration::from_millis(50), "the slowest answer took {slowest:?}");
        Ok(())
    })
}
