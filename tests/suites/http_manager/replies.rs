//! What the connection manager answers by itself, what it logs, what it counts.

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::file_log;
use shunt_tests::http_echo::HttpEcho;
use shunt_tests::{Cases, Client, Pair, lab};

use super::{config, exchange, rest, sorted};

const LINE: &str = "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %BYTES_RECEIVED% %BYTES_SENT% %ROUTE_NAME% %UPSTREAM_CLUSTER% %REQ(:AUTHORITY)% %RESP(CONTENT-TYPE)% %GRPC_STATUS%";

/// Bytes of a client, by a name.
const REQUESTS: &[(&str, &str)] = &[
    ("direct", "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("forwarded", "GET /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("head", "HEAD /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("close", "GET /direct HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
    ("pipelined", "GET /direct HTTP/1.1\r\nhost: a\r\n\r\nGET /teapot HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("teapot", "GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("nowhere", "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("no-route", "GET /none HTTP/1.1\r\nhost: a\r\nx-none: 1\r\n\r\n"),
    ("http10", "GET /direct HTTP/1.0\r\nhost: a\r\n\r\n"),
    ("http10-kept", "GET /direct HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n"),
    ("no-host", "GET /direct HTTP/1.1\r\n\r\n"),
    ("two-hosts", "GET /direct HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    ("star", "GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("options-star", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("fragment", "GET /#a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("absolute", "GET http://b/direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("relative", "GET direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("method", "FOO /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("nonsense", "nonsense\r\n\r\n"),
    ("bare-lf", "GET /direct HTTP/1.1\nhost: a\n\n"),
    (
        "both-lengths",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("underscore", "GET /direct HTTP/1.1\r\nhost: a\r\nx_y: 1\r\n\r\n"),
    ("body", "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"),
    ("half-a-body", "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("expect", "POST /direct HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"),
    ("websocket", "GET /x HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"),
    ("connect", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n"),
    (
        "grpc",
        "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    ),
    (
        "grpc-direct",
        "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    ),
];

const STATS: &[&str] = &["http.*", "listener.*"];

/// Those that Envoy has of its own memory and of codecs, and what is not the connection manager's.
fn managers() -> Vec<(&'static str, String)> {
    let log = format!("access_log: [ {} ]", file_log("access.log", LINE));
    let mapped = "local_reply_config: { body_format: { json_format: { a: '%LOCAL_REPLY_BODY%', c: '%RESPONSE_CODE%' } }, \
        mappers: [ { filter: { status_code_filter: { comparison: { op: EQ, value: { default_value: 503, \
        runtime_key: x } } } }, status_code: 510, body: { inline_string: gone }, body_format: { text_format: \
        '<%LOCAL_REPLY_BODY%>', content_type: text/html }, headers_to_add: [ { header: { key: x-mapped, \
        value: '%RESPONSE_CODE_DETAILS%' } } ] } ] }";
    vec![
        ("plain", log.clone()),
        ("http10", format!("http_protocol_options: {{ accept_http_10: true }}, {log}")),
        ("mapped", format!("{mapped}, {log}")),
        (
            "named",
            format!("server_name: mine, via: one, server_header_transformation: APPEND_IF_ABSENT, {log}"),
        ),
        (
            "strict",
            format!(
                "common_http_protocol_options: {{ headers_with_underscores_action: REJECT_REQUEST, \
                 max_requests_per_connection: 1 }}, {log}"
            ),
        ),
    ]
}

#[test]
fn answers_lines_and_counts_are_envoys() -> Result<()> {
    lab(|lab| {
        let echo = HttpEcho::start("echo")?;
        let managers = managers();
        let pair = Pair::start(lab, &config(&managers, &echo))?;
        let mut cases = Cases::new();
        let mut logged = 0;
        for (name, _) in &managers {
            for (request, bytes) in REQUESTS {
                pair.same(&mut cases, format!("http-replies-{name}-{request}"), |proxy| {
                    let response = exchange(proxy.at(name)?, bytes.as_bytes())?;
                    let shown =
                        if *request == "forwarded" { "forwarded".to_owned() } else { sorted(&response) };
                    Ok(json!(shown))
                });
                logged += bytes.matches(" HTTP/1.").count().max(1);
                pair.same(&mut cases, format!("http-lines-{name}-{request}"), |proxy| {
                    Ok(json!(proxy.lines("access.log", logged)?.split_off(logged - 1)))
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn counts_are_envoys() -> Result<()> {
    lab(|lab| {
        let echo = HttpEcho::start("echo")?;
        let pair = Pair::start(lab, &config(&managers(), &echo))?;
        let mut cases = Cases::new();
        for (name, _) in &managers() {
            for (request, bytes) in REQUESTS {
                pair.same_stats(&mut cases, format!("http-stats-{name}-{request}"), STATS, |proxy| {
                    exchange(proxy.at(name)?, bytes.as_bytes()).map(drop)
                });
            }
        }
        pair.same_stats(&mut cases, "http-stats-gone", STATS, |proxy| {
            let mut client = Client::connect(proxy.at("plain")?)?;
            client.send("GET /direct HTTP/1.1\r\nho")?;
            rest(&client, std::time::Duration::from_millis(50)).map(drop)
        });
        cases.finish()
    })
}
