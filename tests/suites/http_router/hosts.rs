//! Endpoints that go, fail and are checked.

use std::fs;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use shunt_tests::asked::Ask;
use shunt_tests::bootstrap::{assignment, endpoint, locality};
use shunt_tests::{Kind, Proxy, Script, Speaks, lab, until};

use super::rig::{Rig, options, route, simple};

#[test]
fn statuses_eject() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let detect = |fields: &str| {
            format!(
                "outlier_detection: {{ max_ejection_percent: 100, base_ejection_time: 60s, interval: 30s, {fields} }}, \
                     common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}"
            )
        };
        let off = "enforcing_success_rate: 0, enforcing_failure_percentage: 0";
        let clusters = [
            ("any", format!("consecutive_5xx: 2, {off}")),
            (
                "gateway",
                format!(
                    "consecutive_5xx: 100, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100, {off}"
                ),
            ),
            ("unenforced", format!("consecutive_5xx: 2, enforcing_consecutive_5xx: 0, {off}")),
            (
                "local",
                format!(
                    "split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, consecutive_5xx: 2, {off}"
                ),
            ),
            ("grpc", format!("consecutive_5xx: 2, {off}")),
        ];
        let mut routes: Vec<String> =
            clusters.iter().map(|(name, _)| route(&format!("/{name}/"), name, "timeout: 0.2s")).collect();
        routes.push(route("/retry/", "any", "retry_policy: { retry_on: 5xx, num_retries: 5 }"));
        let mut config = simple(&routes);
        for (name, fields) in &clusters {
            config = config.static_cluster(name, &[up], &detect(fields));
        }
        let mut rig = Rig::start(lab, &script, &config)?;
        let asks = |path: &str, plans: &[&str]| -> Vec<Ask> {
            plans.iter().map(|plan| Ask::get(path).plan(plan)).collect()
        };
        rig.asks(
            "outliers: 5xx",
            &asks("/any/", &["status=500", "", "status=501", "status=404", "status=500", "status=503", ""]),
        );
        rig.asks(
            "outliers: gateways",
            &asks(
                "/gateway/",
                &["status=500", "status=500", "status=503", "status=500", "status=502", "status=504", ""],
            ),
        );
        rig.asks("outliers: not enforced", &asks("/unenforced/", &["status=500", "status=500", ""]));
        rig.asks("outliers: local origin", &asks("/local/", &["reset", "status=500", "close", "silent", ""]));
        let grpc: Vec<Ask> = ["h:grpc-status=13 body=0", "h:grpc-status=14 body=0", "h:grpc-status=0 body=0"]
            .iter()
            .map(|plan| Ask::get("/grpc/").grpc().plan(plan))
            .collect();
        rig.case("outliers: gRPC", |run| {
            let all = grpc.iter().map(|ask| {
                // Envoy's main thread ejects.
                sleep(Duration::from_millis(60));
                run.ask(ask)
            });
            all.collect()
        });
        rig.finish()
    })
}

const INTERVALS: &str =
    "interval: 0.1s, no_traffic_interval: 0.1s, timeout: 0.5s, unhealthy_threshold: 2, healthy_threshold: 2";

/// What `/clusters` says of each endpoint's health, and what its checks looked like.
fn health(proxy: &Proxy, cluster: &str, wanted: &str) -> Result<()> {
    until(&format!("{cluster}: {wanted} in {}", proxy.kind.name()), Duration::from_secs(8), || {
        let text = proxy.admin().ok("/clusters")?;
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{cluster}::")));
        let flags = lines.find_map(|line| line.split_once("::health_flags::"));
        Ok(flags.filter(|(_, flags)| *flags == wanted).map(drop))
    })
}

#[test]
fn hosts_are_checked() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (h1, h2) = (script.backend("h1", &Speaks::http1())?, script.backend("h2", &Speaks::http2())?);
        let explicit = options("explicit_http_config: { http2_protocol_options: {} }");
        let http = |fields: &str| {
            format!("health_checks: [ {{ {INTERVALS}, http_health_check: {{ path: /health, {fields} }} }} ]")
        };
        let plan = |plan: &str| {
            format!("request_headers_to_add: [ {{ header: {{ key: x-do, value: \"{plan}\" }} }} ]")
        };
        let grpc = |fields: &str, plan: &str| {
            let metadata = format!("initial_metadata: [ {{ header: {{ key: x-do, value: \"{plan}\" }} }} ]");
            format!(
                "{explicit}, health_checks: [ {{ {INTERVALS}, grpc_health_check: {{ {fields} {metadata} }} }} ]"
            )
        };
        let once =
            |fields: &str| format!("health_checks: [ {{ {INTERVALS}, reuse_connection: false, {fields} }} ]");
        const SERVING: &str = "h:content-type=application/grpc message=0801 t:grpc-status=0";
        let clusters: Vec<(&str, SocketAddr, String, &str)> = vec![
            ("plain", h1, http(""), "healthy"),
            ("host", h1, http("host: check.test, method: HEAD"), "healthy"),
            (
                "added",
                h1,
                http(
                    "request_headers_to_add: [ { header: { key: x-a, value: b } } ], request_headers_to_remove: [ user-agent ]",
                ),
                "healthy",
            ),
            (
                "teapot",
                h1,
                http(&format!("expected_statuses: [ {{ start: 418, end: 419 }} ], {}", plan("status=418"))),
                "healthy",
            ),
            ("wrong", h1, http(&plan("status=503")), "/failed_active_hc"),
            (
                "retriable",
                h1,
                http(&format!("retriable_statuses: [ {{ start: 503, end: 504 }} ], {}", plan("status=503"))),
                "/failed_active_hc",
            ),
            ("late", h1, http(&plan("silent")), "/failed_active_hc/active_hc_timeout"),
            ("closing", h1, http(&plan("close")), "/failed_active_hc"),
            ("once", h1, once("http_health_check: { path: /health }"), "healthy"),
            ("by2", h2, format!("{explicit}, {}", http("codec_client_type: HTTP2")), "healthy"),
            (
                "by2-host",
                h2,
                format!(
                    "{explicit}, {}",
                    http(
                        "codec_client_type: HTTP2, host: check.test, request_headers_to_add: [ { header: { key: x-a, value: b } } ]"
                    )
                ),
                "healthy",
            ),
            (
                "by2-wrong",
                h2,
                format!("{explicit}, {}", http(&format!("codec_client_type: HTTP2, {}", plan("status=500")))),
                "/failed_active_hc",
            ),
            ("grpc", h2, grpc("", SERVING), "healthy"),
            (
                "grpc-named",
                h2,
                grpc("service_name: some.Service, authority: check.test,", SERVING),
                "healthy",
            ),
            (
                "grpc-not",
                h2,
                grpc("", "h:content-type=application/grpc message=0802 t:grpc-status=0"),
                "/failed_active_hc",
            ),
            (
                "grpc-unknown",
                h2,
                grpc("", "h:content-type=application/grpc message=0803 t:grpc-status=0"),
                "/failed_active_hc",
            ),
            (
                "grpc-unimplemented",
                h2,
                grpc("", "h:content-type=application/grpc body=0 h:grpc-status=12"),
                "/failed_active_hc",
            ),
            ("grpc-missing", h2, grpc("", "status=404"), "/failed_active_hc"),
            (
                "grpc-plain",
                h2,
                grpc("", "h:content-type=text/plain message=0801 t:grpc-status=0"),
                "/failed_active_hc",
            ),
            ("grpc-silent", h2, grpc("", "silent"), "/failed_active_hc/active_hc_timeout"),
            ("grpc-reset", h2, grpc("", "reset=2"), "/failed_active_hc"),
            ("grpc-closing", h2, grpc("", "close"), "/failed_active_hc"),
        ];
        let routes: Vec<String> =
            clusters.iter().map(|(name, ..)| route(&format!("/{name}/"), name, "")).collect();
        let mut config = simple(&routes);
        for (name, at, fields, _) in &clusters {
            config = config.static_cluster(
                name,
                &[*at],
                &format!("common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}, {fields}"),
            );
        }
        let mut rig = Rig::start(lab, &script, &config)?;
        for (name, _, _, flags) in &clusters {
            let mut cases = rig.cases;
            rig.pair.same(&mut cases, format!("http_router health of {name}"), |proxy| {
                health(proxy, name, flags)?;
                let stat = |stat: &str| proxy.stat(&format!("cluster.{name}.health_check.{stat}"));
                until("three checks", Duration::from_secs(5), || Ok((stat("attempt")? >= 3).then_some(())))?;
                let some = |name: &str| Ok::<_, anyhow::Error>(stat(name)? > 0);
                Ok(json!({
                    "success": some("success")?, "failure": some("failure")?, "network": some("network_failure")?,
                    "passive": some("passive_failure")?, "healthy": stat("healthy")?, "degraded": stat("degraded")?,
                    "connections": proxy.stat(&format!("cluster.{name}.upstream_cx_total"))?,
                    "answer": Ask::get(&format!("/{name}/")).send(proxy.at("l")?)?,
                }))
            });
            rig.cases = cases;
        }
        rig.finish()
    })
}

#[test]
fn checks_look_alike() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let explicit = options("explicit_http_config: { http2_protocol_options: {} }");
        let http = |fields: &str| {
            format!("health_checks: [ {{ {INTERVALS}, http_health_check: {{ path: /health, {fields} }} }} ]")
        };
        let grpc = |fields: &str| {
            format!("{explicit}, health_checks: [ {{ {INTERVALS}, grpc_health_check: {{ {fields} }} }} ]")
        };
        let clusters = [
            ("plain", false, http("")),
            (
                "host",
                false,
                http(
                    "host: check.test, method: HEAD, request_headers_to_add: [ { header: { key: x-a, value: b } } ]",
                ),
            ),
            (
                "once",
                false,
                format!(
                    "health_checks: [ {{ {INTERVALS}, reuse_connection: false, http_health_check: {{ path: /health }} }} ]"
                ),
            ),
            ("by2", true, format!("{explicit}, {}", http("codec_client_type: HTTP2"))),
            ("grpc", true, grpc("")),
            (
                "grpc-named",
                true,
                grpc(
                    "service_name: some.Service, authority: check.test, initial_metadata: [ { header: { key: x-a, value: b } } ]",
                ),
            ),
        ];
        let mut seen = Vec::new();
        for kind in Kind::BOTH {
            let mut config = simple(&[route("/", "plain", "")]);
            for (name, http2, fields) in &clusters {
                let speaks = if *http2 { Speaks::http2() } else { Speaks::http1() };
                let at = script.backend(&format!("{}-{name}", kind.name()), &speaks)?;
                config = config.static_cluster(name, &[at], fields);
            }
            let proxy = Proxy::start(lab, kind, &config.yaml())?;
            for (name, ..) in &clusters {
                let backend = format!("{}-{name}", kind.name());
                let of =
                    || script.seen().into_iter().filter(|seen| seen.backend == backend).collect::<Vec<_>>();
                until("checks", Duration::from_secs(8), || Ok((of().len() >= 3).then_some(())))?;
            }
            drop(proxy);
            let all = clusters.iter().map(|(name, ..)| {
                let backend = format!("{}-{name}", kind.name());
                let all: Vec<_> = script.seen().into_iter().filter(|seen| seen.backend == backend).take(3).collect();
                let first = all.first().context("no check")?;
                let shared = all.iter().all(|one| one.connection == first.connection);
                Ok((*name, json!({ "line": first.line, "headers": first.headers, "body": first.body, "one connection": shared })))
            });
            seen.push(all.collect::<Result<Vec<_>>>()?);
        }
        let mut cases = shunt_tests::Cases::new();
        for ((name, envoy), (_, shunt)) in seen[0].iter().zip(&seen[1]) {
            let id = format!("http_router check of {name}");
            cases.case(&id, || shunt_tests::deviations::check(&id, envoy, shunt));
        }
        cases.finish()
    })
}

fn eds(endpoints: &[SocketAddr]) -> String {
    let all: Vec<String> = endpoints.iter().map(|at| endpoint(*at, "")).collect();
    let assignment = assignment("moving", &[locality(&all, "")], "");
    let of_type = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    format!("resources: [ {} ]", assignment.replacen('{', &format!("{{ \"@type\": {of_type}, "), 1))
}

#[test]
fn hosts_go_while_they_are_asked() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let one = script.backend("one", &Speaks::http1())?;
        let first = lab.dir().join("first-eds.yaml");
        fs::write(&first, eds(&[one]))?;
        let by_file = format!(
            "type: EDS, eds_cluster_config: {{ eds_config: {{ path_config_source: {{ path: {first:?} }}, resource_api_version: V3 }} }}"
        );
        let config = simple(&[route("/", "moving", "")])
            .top("node: { id: here, cluster: there }")
            .cluster("moving", &by_file);
        let mut rig = Rig::start(lab, &script, &config)?;
        let put = |endpoints: &[SocketAddr]| -> Result<()> {
            let new = lab.dir().join("new-eds.yaml");
            fs::write(&new, eds(endpoints))?;
            Ok(fs::rename(new, &first)?)
        };
        let members = |proxy: &Proxy, count: u64| proxy.expect_stat("cluster.moving.membership_total", count);
        rig.case_of("a host that goes", &["cluster.moving.upstream_*", "http.ing.*"], |run| {
            put(&[one])?;
            members(run.proxy, 1)?;
            let kept = run.ask(&Ask::get("/"))?;
            let at = run.at();
            let slow =
                std::thread::spawn(move || Ask::get("/").header("x-id", "slow").plan("wait=1500").send(at));
            sleep(Duration::from_millis(200));
            put(&[])?;
            members(run.proxy, 0)?;
            let none = run.ask(&Ask::get("/"))?;
            let slow = slow.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            run.logged(1);
            put(&[one])?;
            members(run.proxy, 1)?;
            Ok([kept, none, slow, run.ask(&Ask::get("/"))?].into_iter().collect::<Value>())
        });
        rig.finish()
    })
}
