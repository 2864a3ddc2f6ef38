//! Tracing: the same requests through Envoy and through shunt; a collector behind each says what spans it got.

mod fields;
mod reports;
mod rig;

use anyhow::Result;
use shunt_tests::collector::Speaks;
use shunt_tests::{Cases, lab};

use self::rig::{Config, Rig, get, otel, otel_http, zipkin};

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SHORT: &str = "48485a3953bb6124";
const SPAN: &str = "a2fb4a1d1a96d312";
const PARENT: &str = "0020000000000001";
const ID: &str = "00000001-0000-4000-8000-00000000abcd";
const W3C: (&str, &str) = ("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01");

/// What peers may send of a trace.
fn contexts() -> Vec<(&'static str, Vec<(&'static str, &'static str)>, usize)> {
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let with = |more: &[(&'static str, &'static str)]| ids.iter().chain(more).copied().collect::<Vec<_>>();
    vec![
        ("nothing", vec![], 1),
        ("an id", vec![("x-request-id", ID)], 1),
        ("b3", with(&[]), 1),
        ("b3, sampled", with(&[("x-b3-sampled", "1")]), 1),
        ("b3, not sampled", with(&[("x-b3-sampled", "0")]), 0),
        ("b3, sampled: true", with(&[("x-b3-sampled", "true")]), 1),
        ("b3, sampled: other", with(&[("x-b3-sampled", "x")]), 0),
        ("b3, flags", with(&[("x-b3-flags", "1")]), 1),
        ("b3, with a parent", with(&[("x-b3-parentspanid", PARENT), ("x-b3-sampled", "1")]), 1),
        ("b3, 64 bits", vec![("x-b3-traceid", SHORT), ("x-b3-spanid", SPAN)], 1),
        ("b3, only the decision, no", vec![("x-b3-sampled", "0")], 0),
        ("b3, only the decision, yes", vec![("x-b3-sampled", "1")], 1),
        ("b3, no trace", vec![("x-b3-spanid", SPAN)], 1),
        ("b3, broken", vec![("x-b3-traceid", "xyz"), ("x-b3-spanid", SPAN)], 0),
        ("b3, a broken span", vec![("x-b3-traceid", TRACE), ("x-b3-spanid", "q")], 0),
        ("b3, one header", vec![("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")], 1),
        (
            "b3, one header, a parent",
            vec![("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001")],
            1,
        ),
        ("b3, one header, debug", vec![("b3", "48485a3953bb6124-a2fb4a1d1a96d312-d")], 1),
        ("b3, one header, not sampled", vec![("b3", "48485a3953bb6124-a2fb4a1d1a96d312-0")], 0),
        ("b3, one header, no decision", vec![("b3", "48485a3953bb6124-a2fb4a1d1a96d312")], 1),
        ("b3, one header, no", vec![("b3", "0")], 0),
        ("b3, one header, yes", vec![("b3", "1")], 1),
        ("b3, one header, broken", vec![("b3", "zz-yy")], 0),
        ("b3, both forms", vec![("b3", "0"), ("x-b3-sampled", "1")], 0),
        ("w3c", vec![W3C, ("tracestate", "a=b,c=d")], 1),
        (
            "w3c, not sampled",
            vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-00")],
            0,
        ),
        (
            "w3c, a later version",
            vec![("traceparent", "01-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
            1,
        ),
        ("w3c, broken", vec![("traceparent", "00-xyz-a2fb4a1d1a96d312-01")], 0),
        (
            "w3c, no trace",
            vec![("traceparent", "00-00000000000000000000000000000000-a2fb4a1d1a96d312-01")],
            0,
        ),
        ("both", with(&[W3C, ("x-b3-sampled", "1")]), 1),
        ("forced", vec![("x-envoy-force-trace", "true"), ("x-request-id", ID)], 1),
        ("of a client", vec![("x-client-trace-id", "abc"), ("x-request-id", ID)], 1),
    ]
}

/// All of them by both ways; `spans`: those of a request that is not sampled are none for either provider, those of
/// headers that a provider does not read are one.
fn propagated(id: &str, config: &Config<'_>, reads: fn(&str) -> bool) -> Result<()> {
    lab(|lab| {
        let rig = Rig::start(lab, config)?;
        let mut cases = Cases::new();
        for (name, headers, spans) in contexts() {
            let spans = if reads(name) { spans } else { 1 };
            let asked = get("/a?b", &headers).makes(spans);
            rig.same(&mut cases, &format!("{id}, in: {name}"), asked);
            rig.same(&mut cases, &format!("{id}, out: {name}"), asked.out());
        }
        cases.finish()
    })
}

#[test]
fn zipkin_propagates() -> Result<()> {
    let tracing = zipkin("");
    propagated("zipkin", &Config { tracing: &tracing, ..Config::default() }, |name| name.starts_with("b3"))
}

#[test]
fn zipkin_of_128_bits_alone() -> Result<()> {
    let tracing = zipkin("trace_id_128bit: true, shared_span_context: false");
    propagated("zipkin, alone", &Config { tracing: &tracing, ..Config::default() }, |name| {
        name.starts_with("b3")
    })
}

#[test]
fn zipkin_with_w3c_split() -> Result<()> {
    let tracing = zipkin("trace_context_option: USE_B3_WITH_W3C_PROPAGATION, split_spans_for_request: true");
    propagated("zipkin, w3c", &Config { tracing: &tracing, ..Config::default() }, |_| true)
}

#[test]
fn opentelemetry_propagates() -> Result<()> {
    let tracing = otel("service_name: svc");
    let config = Config { tracing: &tracing, speaks: Speaks::Http2, ..Config::default() };
    propagated("opentelemetry", &config, |name| name.starts_with("w3c"))
}

#[test]
fn opentelemetry_by_http() -> Result<()> {
    let tracing = otel_http("");
    let config = Config { tracing: &tracing, ..Config::default() };
    propagated("opentelemetry, http", &config, |name| name.starts_with("w3c"))
}
