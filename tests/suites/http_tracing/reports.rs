//! How spans reach their collector: the requests that carry them, what is counted, and what becomes of them where there is
//! none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::collector::Speaks;
use shunt_tests::http_echo::ask;
use shunt_tests::ports::nobody;
use shunt_tests::upstream::{Does, Upstream};
use shunt_tests::{Cases, Proxy, lab};

use super::rig::{Config, Rig, get, otel, otel_http, zipkin};

const LIMIT: Duration = Duration::from_secs(10);

fn request(proxy: &Proxy) -> Result<()> {
    let answer = ask(proxy.at("in")?, "GET /", &[("host", "test.example")])?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

/// The head of a report, without what differs from one run to the next, and what Envoy's own client adds to each of its
/// requests.
fn head(mut head: Value) -> Value {
    if let Some(headers) = head["headers"].as_object_mut() {
        for own in [
            "content-length",
            "transfer-encoding",
            "user-agent",
            "x-request-id",
            "grpc-timeout",
            "x-envoy-internal",
            "x-forwarded-for",
            "x-envoy-expected-rq-timeout-ms",
        ] {
            headers.remove(own);
        }
    }
    head
}

/// Two spans make a report; the requests that carry them.
#[test]
fn requests_of_reports() -> Result<()> {
    for (name, tracing, speaks) in [
        ("zipkin", zipkin(""), Speaks::Http1),
        ("zipkin, a name", zipkin("collector_hostname: zipkin.example"), Speaks::Http1),
        (
            "zipkin, a service",
            zipkin(
                "collector_service: { http_uri: { uri: \"http://of.service/api/v2/spans\", cluster: spans, timeout: 3s }, \
                 request_headers_to_add: [ { header: { key: x-key, value: secret } } ] }",
            ),
            Speaks::Http1,
        ),
        ("opentelemetry", otel(""), Speaks::Http2),
        ("opentelemetry, http", otel_http(""), Speaks::Http1),
    ] {
        lab(|lab| {
            let config = Config { tracing: &tracing, speaks, enough: 2, ..Config::default() };
            let rig = Rig::start(lab, &config)?;
            let mut cases = Cases::new();
            let id = format!("tracing, reports, {name}");
            rig.pair.same(&mut cases, &id, |proxy| {
                request(proxy)?;
                request(proxy)?;
                let reports = rig.collector(proxy).take(2, LIMIT)?;
                let told: Vec<_> = reports
                    .into_iter()
                    .map(|report| json!([head(report.head), report.spans.len()]))
                    .collect();
                Ok(json!(told))
            });
            // One is sent once it has waited.
            rig.pair.same(&mut cases, format!("{id}: by time"), |proxy| {
                request(proxy)?;
                Ok(json!(rig.collector(proxy).take(1, LIMIT)?.len()))
            });
            rig.pair.same(&mut cases, format!("{id}: stats"), |proxy| {
                let stat = if speaks == Speaks::Http2 || name.contains("telemetry") {
                    "tracing.opentelemetry.spans_sent"
                } else {
                    proxy.expect_stat("tracing.zipkin.reports_sent", 2)?;
                    "tracing.zipkin.spans_sent"
                };
                proxy.expect_stat(stat, 3)?;
                proxy.expect_stat("http.ing.tracing.random_sampling", 3)?;
                let stats = proxy.stats()?;
                let mut names: Vec<_> = stats.names().filter(|name| name.contains("tracing.")).collect();
                // Of OTLP, what became of reports is ours to say.
                let ours = |name: &str| {
                    name.ends_with("spans_dropped")
                        || name.ends_with("timer_flushed")
                        || name.starts_with("tracing.opentelemetry.reports_")
                };
                names.retain(|name| !ours(name));
                Ok(json!(names.into_iter().map(|name| (name, stats.of(name))).collect::<Vec<_>>()))
            });
            cases.finish()
        })?;
    }
    Ok(())
}

/// By what reason requests are traced.
#[test]
fn reasons_are_counted() -> Result<()> {
    lab(|lab| {
        let tracing = zipkin("") + "random_sampling: { value: 0 }";
        let rig = Rig::start(lab, &Config { tracing: &tracing, ..Config::default() })?;
        let mut cases = Cases::new();
        let names = ["http.ing.tracing.*"];
        rig.pair.same_stats(&mut cases, "tracing, reasons", &names, |proxy| {
            for headers in [
                &[] as &[_],
                &[("x-client-trace-id", "a")],
                &[("x-envoy-force-trace", "1")],
                &[("x-request-id", "00001388-0000-9000-8000-00000000abcd")],
            ] {
                let headers = [&[("host", "a")], headers].concat();
                ask(proxy.at("in")?, "GET /", &headers)?;
            }
            Ok(())
        });
        cases.finish()
    })
}

/// As Istio's old bootstraps have it (seed 001): the provider is the bootstrap's.
#[test]
fn the_bootstraps_provider() -> Result<()> {
    lab(|lab| {
        let top = "tracing: { http: { name: envoy.zipkin, typed_config: { \"@type\": \
            type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: spans, collector_endpoint: \
            /api/v2/spans, collector_endpoint_version: HTTP_JSON, trace_id_128bit: true, shared_span_context: false } } }";
        let config = Config { tracing: "random_sampling: { value: 100 }", top, ..Config::default() };
        let rig = Rig::start(lab, &config)?;
        let mut cases = Cases::new();
        rig.same(&mut cases, "the bootstrap's provider: in", get("/a", &[]));
        rig.same(&mut cases, "the bootstrap's provider: out", get("/a", &[]).out());
        // Who says of itself what it is: each its own.
        rig.pair.same(&mut cases, "tracing, whose spans", |proxy| {
            request(proxy)?;
            let spans = rig.collector(proxy).spans(1)?;
            Ok(spans.into_iter().map(|span| span["localEndpoint"].clone()).collect())
        });
        cases.finish()
    })
}

/// Of 128 bits and of 64: the first four bytes are the seconds of now.
#[test]
fn ids_with_the_time() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for (name, fields) in
            [("128", "timestamp_trace_ids: true, trace_id_128bit: true"), ("64", "timestamp_trace_ids: true")]
        {
            let tracing = zipkin(fields);
            let rig = Rig::start(lab, &Config { tracing: &tracing, ..Config::default() })?;
            rig.pair.same(&mut cases, format!("tracing, ids with the time: {name}"), |proxy| {
                request(proxy)?;
                let spans = rig.collector(proxy).spans(1)?;
                let id =
                    spans.first().and_then(|span| span["traceId"].as_str()).unwrap_or_default().to_owned();
                let span = spans.first().and_then(|span| span["id"].as_str()).unwrap_or_default().to_owned();
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
                let told = u64::from_str_radix(id.get(..8).unwrap_or_default(), 16)?;
                Ok(json!([
                    id.len(),
                    now.abs_diff(told) < 100,
                    id.ends_with(&span),
                    id.get(8..) == span.get(8..)
                ]))
            });
        }
        cases.finish()
    })
}

/// A collector that is gone, refuses, or never answers: requests are as quick as without, what is lost is counted, and
/// what waits has an end.
#[test]
fn no_collector() -> Result<()> {
    lab(|lab| {
        let refuses = Upstream::start("no", Does::Http)?;
        refuses.set_status(500);
        let silent = Upstream::start("silent", Does::Stall)?;
        let mut cases = Cases::new();
        for (name, at, stat) in [
            // A 503 of the proxy's own.
            ("gone", nobody()?, "tracing.zipkin.reports_dropped"),
            ("refuses", refuses.address, "tracing.zipkin.reports_dropped"),
            ("silent", silent.address, "tracing.zipkin.reports_dropped"),
            ("silent, and few may wait", silent.address, "tracing.opentelemetry.spans_dropped"),
        ] {
            cases.case(name, || {
                let tracing =
                    if stat.contains("zipkin") { zipkin("") } else { otel_http("max_cache_size: 10") };
                let tracing = tracing.replace("cluster: spans", "cluster: other");
                let rig = Rig::start_with(lab, &Config { tracing: &tracing, ..Config::default() }, at)?;
                let proxy = &rig.pair.shunt;
                let count = 50;
                let start = Instant::now();
                for _ in 0..count {
                    request(proxy)?;
                }
                let took = start.elapsed();
                ensure!(took < Duration::from_secs(5), "{count} requests took {took:?}");
                shunt_tests::eventually(stat, LIMIT, || {
                    ensure!(proxy.stat(stat)? > 0, "none yet");
                    Ok(())
                })?;
                proxy.expect_stat("http.ing.downstream_rq_2xx", count)
            });
        }
        cases.finish()
    })
}
