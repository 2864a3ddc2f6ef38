//! What the router itself is told: which headers it checks, what it logs and counts of requests upstream.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::{chain, extension, file_log};
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Pair, lab};

use crate::http_filters::peer::{Message, ask, server};

/// Answers those requests alone that are sent again.
fn late() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answered(&stream));
        }
    });
    Ok(address)
}

fn answered(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = Message::read(&mut reader, None)? {
        if let Some(told) = request.header("x-envoy-is-timeout-retry") {
            let mut writer = stream;
            write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.len())?;
        }
    }
    Ok(())
}

fn site(name: &str, router: &str, host: &str) -> String {
    let router =
        extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", router);
    let log = file_log(
        &format!("log-{name}"),
        "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%",
    );
    let retry = "retry_policy: { retry_on: 5xx, num_retries: 1, per_try_timeout: 0.3s, \
        retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } }";
    let routes = format!(
        "{{ match: {{ prefix: /late }}, route: {{ cluster: late, timeout: 20s, {retry} }} }}, \
         {{ match: {{ prefix: /again }}, route: {{ cluster: up, {retry} }} }}, \
         {{ match: {{ prefix: /dead }}, route: {{ cluster: dead }} }}, \
         {{ match: {{ prefix: / }}, route: {{ cluster: up }} }}"
    );
    let manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: {name}, access_log: [ {log} ], http_filters: [ {router} ], route_config: {{ name: r, \
             virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {routes} ], {host} }} ] }}"
        ),
    );
    format!("filter_chains: [ {} ]", chain("", &[manager]))
}

#[test]
fn options_of_the_router() -> Result<()> {
    lab(|lab| {
        let (up, late) = (server()?, late()?);
        let dead = nobody()?;
        let strict = "strict_check_headers: [ x-envoy-upstream-rq-timeout-ms, x-envoy-max-retries, x-envoy-retry-on, \
            x-envoy-upstream-rq-per-try-timeout-ms, x-envoy-retry-grpc-on ]";
        let upstream = file_log(
            "log-upstream",
            "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_CLUSTER% \
             %RESP(content-type)% %ACCESS_LOG_TYPE%",
        );
        let codec = extension(
            "envoy.filters.http.upstream_codec",
            "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
            "",
        );
        let config = Bootstrap::new()
            .static_cluster("up", &[up], "")
            .static_cluster("late", &[late], "")
            .static_cluster("dead", &[dead], "")
            .listener("strict", &site("strict", strict, ""))
            .listener(
                "logs",
                &site(
                    "logs",
                    &format!("upstream_log: [ {upstream} ], upstream_http_filters: [ {codec} ]"),
                    "",
                ),
            )
            .listener("quiet", &site("quiet", "suppress_grpc_request_failure_code_stats: true", ""))
            .listener("told", &site("told", "", "include_is_timeout_retry_header: true"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let grpc = ("content-type", "application/grpc");
        let asked: &[(&str, &str, &[(&str, &str)])] = &[
            ("strict", "/a", &[("x-envoy-upstream-rq-timeout-ms", "100000")]),
            ("strict", "/a", &[("x-envoy-upstream-rq-timeout-ms", "1s")]),
            ("strict", "/a", &[("x-envoy-upstream-rq-per-try-timeout-ms", "x")]),
            ("strict", "/a", &[("x-envoy-max-retries", "many")]),
            ("strict", "/a", &[("x-envoy-retry-on", "5xx,reset")]),
            ("strict", "/a", &[("x-envoy-retry-on", "5xx,never")]),
            ("strict", "/a", &[("x-envoy-retry-on", "cancelled")]),
            ("strict", "/a", &[("x-envoy-retry-grpc-on", "cancelled")]),
            ("strict", "/a", &[("x-envoy-retry-grpc-on", "5xx")]),
            ("strict", "/a", &[("x-envoy-max-retries", "1"), ("x-envoy-retry-on", "oops"), grpc]),
            ("logs", "/a", &[]),
            ("logs", "/again", &[("x-want-status", "503")]),
            ("logs", "/dead", &[]),
            ("quiet", "/a", &[("x-want-status", "500"), grpc]),
            ("quiet", "/a", &[("x-want-status", "500")]),
            ("quiet", "/dead", &[grpc]),
            ("told", "/late", &[]),
            ("told", "/again", &[("x-want-status", "503")]),
        ];
        for (site, path, headers) in asked {
            let stats = [
                "cluster.up.upstream_rq_2*",
                "cluster.up.upstream_rq_5*",
                "cluster.up.upstream_rq_completed",
                "cluster.up.upstream_rq_retry*",
                "cluster.up.external.*",
                "cluster.dead.upstream_rq_5*",
                "cluster.dead.upstream_rq_completed",
                "cluster.dead.external.*",
            ];
            let id = format!("router: {site}: {path} {headers:?}");
            let mut answers = Vec::new();
            pair.same_stats(&mut cases, format_args!("{id}: stats"), &stats, |proxy| {
                answers.push(ask(proxy.at(site)?, "GET", path, headers, b"")?.compared());
                Ok(())
            });
            let mut each = answers.into_iter();
            pair.same(&mut cases, id, |_| Ok(each.next().unwrap_or_default()));
        }
        for (file, lines) in [("log-strict", 10), ("log-upstream", 4), ("log-told", 2)] {
            pair.same(&mut cases, format_args!("router: {file}"), |proxy| {
                Ok(json!(proxy.lines(file, lines)?))
            });
        }
        cases.finish()
    })
}
