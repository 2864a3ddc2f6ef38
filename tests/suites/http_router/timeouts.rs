//! Limits of time: of routes, of headers, of gRPC, of streams.

use std::time::Duration;

use anyhow::Result;
use shunt_tests::asked::{Ask, Body};
use shunt_tests::{Script, Speaks, lab};

use super::retries::HTTP2;
use super::rig::{Rig, host, manager, route};

const MANY: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    common_http_protocol_options: { max_stream_duration: 0.2s }, explicit_http_config: { http_protocol_options: {} } } }";

fn every_limit(http2: bool) -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &if http2 { Speaks::http2() } else { Speaks::http1() })?;
        let routes = [
            route("/route/", "up", "timeout: 0.2s"),
            route("/never/", "up", "timeout: 0s"),
            route("/idle/", "up", "timeout: 0s, idle_timeout: 0.2s"),
            route("/stream/", "up", "max_stream_duration: { max_stream_duration: 0.2s }"),
            route(
                "/grpc/",
                "up",
                "timeout: 5s, max_stream_duration: { max_stream_duration: 1s, grpc_timeout_header_max: 0.3s }",
            ),
            route("/old/", "up", "timeout: 5s, max_grpc_timeout: 0.3s, grpc_timeout_offset: 0.05s"),
            route(
                "/offset/",
                "up",
                "max_stream_duration: { grpc_timeout_header_max: 0s, grpc_timeout_header_offset: 0.1s }",
            ),
            route("/cluster/", "short", "timeout: 5s"),
            route("/", "up", ""),
        ];
        let manager = manager(
            &[host(&routes, "")],
            "common_http_protocol_options: { max_stream_duration: 1.5s }, stream_idle_timeout: 1.2s",
        );
        let config = shunt_tests::Bootstrap::new()
            .listener("l", &manager)
            .static_cluster("up", &[up], if http2 { HTTP2 } else { "" })
            .static_cluster("short", &[up], if http2 { "" } else { MANY });
        let mut rig = Rig::start(lab, &script, &config)?;
        let name = if http2 { "h2" } else { "h1" };
        let plans = ["silent", "pause=500", "wait=20"];
        let mut paths = vec!["/route/", "/idle/", "/stream/"];
        if !http2 {
            paths.push("/cluster/");
        }
        for path in paths {
            let asks = plans.map(|plan| Ask::get(path).plan(plan));
            rig.asks(&format!("{name}: timeout of {path}"), &asks);
            let stall = Ask::post(path, Body::Stalls(5, 10, Duration::from_millis(400)));
            let both = [stall.clone(), stall.plan("early status=200 last")];
            // Of what is left of the request: each codec resets it, or has it end, in a way of its own.
            rig.case_but(
                &format!("{name}: timeout of {path}, a slow request"),
                &[
                    "upstream_cx_protocol_error",
                    "http2.rx_reset",
                    "http2.tx_reset",
                    "upstream_cx_close_notify",
                ],
                |run| both.iter().map(|ask| run.ask(ask)).collect(),
            );
        }
        let with =
            |path: &str, name: &str, value: &str, plan: &str| Ask::get(path).plan(plan).header(name, value);
        const UPSTREAM: &str = "x-envoy-upstream-rq-timeout-ms";
        const PER_TRY: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
        const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
        rig.asks(
            &format!("{name}: headers of timeouts"),
            &[
                Ask::get("/"),
                Ask::get("/never/"),
                with("/", UPSTREAM, "150", "silent"),
                with("/", UPSTREAM, "150", ""),
                with("/", UPSTREAM, "0", ""),
                with("/", UPSTREAM, "x", ""),
                with("/route/", UPSTREAM, "1000", "wait=300"),
                with("/", PER_TRY, "100", "silent"),
                with("/", PER_TRY, "100", "").header(UPSTREAM, "50"),
                with("/", EXPECTED, "77", ""),
                with("/", "x-envoy-upstream-alt-stat-name", "alt", ""),
                with("/", "x-envoy-upstream-rq-timeout-alt-response", "1", "silent").header(UPSTREAM, "100"),
            ],
        );
        let grpc = |path: &str, timeout: &str, plan: &str| {
            let ask = Ask::post(path, Body::Sized(5)).grpc().plan(plan);
            if timeout.is_empty() { ask } else { ask.header("grpc-timeout", timeout) }
        };
        rig.asks(
            &format!("{name}: timeouts of gRPC"),
            &[
                grpc("/grpc/", "", "h:grpc-status=0"),
                grpc("/grpc/", "100m", "silent"),
                grpc("/grpc/", "5S", "silent"),
                grpc("/grpc/", "5S", "h:grpc-status=0"),
                grpc("/grpc/", "x", "h:grpc-status=0"),
                grpc("/old/", "", "h:grpc-status=0"),
                grpc("/old/", "100m", "silent"),
                grpc("/old/", "5S", "silent"),
                grpc("/old/", "5S", "h:grpc-status=0"),
                grpc("/old/", "10m", "wait=20 h:grpc-status=0"),
                grpc("/offset/", "300m", "silent"),
                grpc("/offset/", "5S", "h:grpc-status=0"),
                grpc("/route/", "5S", "silent"),
                with("/grpc/", "grpc-timeout", "100m", "wait=200"),
            ],
        );
        rig.finish()
    })
}

#[test]
fn every_limit_of_http1() -> Result<()> {
    every_limit(false)
}

#[test]
fn every_limit_of_http2() -> Result<()> {
    every_limit(true)
}
