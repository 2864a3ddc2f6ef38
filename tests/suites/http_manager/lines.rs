//! Operators of access logs that read HTTP, and lines that are written before the end.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::{Bootstrap, extension, file_log};
use shunt_tests::{Cases, Pair, lab};

use super::{backend, config, exchange};

/// But for those whose values are each run's own.
const OPERATORS: &[&str] = &[
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "PROTOCOL",
    "UPSTREAM_PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "GRPC_STATUS(SNAKE_STRING)",
    "REQ(:PATH)",
    "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
    "REQ(HOST)",
    "REQ(USER-AGENT):4",
    "RESP(:STATUS)",
    "RESP(X-BACKEND)",
    "TRAILER(X-T)",
    "PATH(WQ:ORIG)",
    "PATH(NQ:PATH)",
    "PATH(NQ)",
    "QUERY_PARAM(a)",
    "QUERY_PARAMS(ORIG)",
    "ACCESS_LOG_TYPE",
    "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "REQUESTED_SERVER_NAME",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "METADATA(ROUTE:a:b)",
    "DYNAMIC_METADATA(a)",
    "FILTER_STATE(a)",
    "LOCAL_REPLY_BODY",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "TRACE_ID",
    "SPAN_ID",
];

const REQUESTS: &[(&str, &str)] = &[
    ("direct", "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("forwarded", "GET /x?a=b&c=d HTTP/1.1\r\nhost: a\r\nuser-agent: abcdefg\r\n\r\n"),
    ("posted", "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabcde"),
    ("chunked", "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ("trailers", "GET /trailers HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("refused", "GET /refused HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("empty", "GET /empty HTTP/1.1\r\nhost: a\r\n\r\n"),
    (
        "grpc",
        "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    ),
];

#[test]
fn operators_say_what_envoys_say() -> Result<()> {
    lab(|lab| {
        let format: Vec<_> = OPERATORS.iter().map(|operator| format!("%{operator}%")).collect();
        let log = file_log("l.log", &format.join(" | "));
        let more = format!("http_protocol_options: {{ enable_trailers: true }}, access_log: [ {log} ]");
        // How long an upstream takes is not the same in both, and a header of its own otherwise.
        let router = "envoy.extensions.filters.http.router.v3.Router";
        let router = extension("envoy.filters.http.router", router, "suppress_envoy_headers: true");
        let hcm = extension(
            "http",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            &format!("stat_prefix: l, http_filters: [ {router} ], {}, {more}", super::ROUTES),
        );
        let chain = shunt_tests::bootstrap::chain("", &[hcm]);
        let all = Bootstrap::new().listener("l", &format!("stat_prefix: l, filter_chains: [ {chain} ]"));
        let pair = Pair::start(lab, &super::clusters(all, backend::start()?).yaml())?;
        let mut cases = Cases::new();
        for (n, (request, bytes)) in REQUESTS.iter().enumerate() {
            pair.same(&mut cases, format!("http-operators-{request}"), |proxy| {
                exchange(proxy.at("l")?, bytes.as_bytes(), 1)?;
                let line = proxy.lines("l.log", n + 1)?.pop().unwrap_or_default();
                let values = line.split(" | ").map(|value| value.replace("127.0.0.1:1", "127.0.0.1"));
                Ok(OPERATORS.iter().map(|name| (*name).to_owned()).zip(values.map(|v| json!(v))).collect())
            });
        }
        cases.finish()
    })
}

const KINDS: &str = "%ACCESS_LOG_TYPE% %RESPONSE_CODE% %REQ(:PATH)% %BYTES_SENT%";

#[test]
fn lines_before_the_end() -> Result<()> {
    lab(|lab| {
        let log = |name: &str| format!("access_log: [ {} ]", file_log(&format!("{name}.log"), KINDS));
        let options =
            |name: &str, options: &str| format!("access_log_options: {{ {options} }}, {}", log(name));
        let managers = [
            ("start", options("start", "flush_access_log_on_new_request: true")),
            ("often", options("often", "access_log_flush_interval: 0.3s")),
        ];
        let pair = Pair::start(lab, &config(&managers, backend::start()?))?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "http-lines-start", |proxy| {
            exchange(proxy.at("start")?, b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n", 1)?;
            Ok(json!(proxy.lines("start.log", 2)?))
        });
        // The backend pauses for 0.7 s in the middle of its answer.
        pair.same(&mut cases, "http-lines-often", |proxy| {
            exchange(proxy.at("often")?, b"GET /pause HTTP/1.1\r\nhost: a\r\n\r\n", 1)?;
            std::thread::sleep(Duration::from_millis(100));
            Ok(json!(proxy.lines("often.log", 3)?))
        });
        cases.finish()
    })
}

/// A tunnel that is open has a line of its own.
#[test]
fn a_tunnel_has_a_line_when_it_is_open() -> Result<()> {
    lab(|lab| {
        let log = file_log("t.log", "%ACCESS_LOG_TYPE% %RESPONSE_CODE%");
        let routes = "route_config: { virtual_hosts: [ { name: v, domains: ['*'], routes: [ { match: { connect_matcher: {} }, \
            route: { cluster: echo, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] } } ] } ] }";
        let router = extension("r", "envoy.extensions.filters.http.router.v3.Router", "");
        let hcm = extension(
            "http",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            &format!(
                "stat_prefix: t, http_filters: [ {router} ], {routes}, access_log: [ {log} ], \
                 access_log_options: {{ flush_log_on_tunnel_successfully_established: true }}"
            ),
        );
        let chain = shunt_tests::bootstrap::chain("", &[hcm]);
        let all = Bootstrap::new().listener("t", &format!("filter_chains: [ {chain} ]"));
        let pair = Pair::start(lab, &super::clusters(all, backend::start()?).yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "http-lines-tunnel", |proxy| {
            exchange(proxy.at("t")?, b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 1)?;
            Ok(json!(proxy.lines("t.log", 1)?.remove(0)))
        });
        cases.finish()
    })
}
