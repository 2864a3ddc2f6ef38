//! What the connection manager answers by itself, what it logs, what it counts.

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::file_log;
use shunt_tests::{Cases, Pair, deviations, lab};

use super::{backend, compared, config, exchange, sorted};

const LINE: &str = "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %BYTES_RECEIVED% %BYTES_SENT% %ROUTE_NAME% %UPSTREAM_CLUSTER% %REQ(:AUTHORITY)% %RESP(CONTENT-TYPE)% %GRPC_STATUS%";

/// Bytes of a client, by a name.
const REQUESTS: &[(&str, &str)] = &[
    ("direct", "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("forwarded", "GET /x HTTP/1.1\r\nhost: a\r\nX-Mixed-Case: y\r\n\r\n"),
    ("head", "HEAD /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("close", "GET /direct HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
    ("pipelined", "GET /direct HTTP/1.1\r\nhost: a\r\n\r\nGET /teapot HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("teapot", "GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("nowhere", "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("refused", "GET /refused HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("empty", "GET /empty HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("slow", "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("no-route", "GET /none HTTP/1.1\r\nhost: a\r\nx-none: 1\r\n\r\n"),
    ("http10", "GET /direct HTTP/1.0\r\nhost: a\r\n\r\n"),
    ("http10-no-host", "GET /x HTTP/1.0\r\n\r\n"),
    ("http10-kept", "GET /direct HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n"),
    ("http10-forwarded", "GET /x HTTP/1.0\r\nhost: a\r\n\r\n"),
    ("no-host", "GET /direct HTTP/1.1\r\n\r\n"),
    ("empty-host", "GET /direct HTTP/1.1\r\nhost:\r\n\r\n"),
    ("star", "GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("options-star", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("fragment", "GET /#a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("absolute", "GET http://b/direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("absolute-port", "GET http://b:99/x?y HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("relative", "GET direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("method", "FOO /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("nonsense", "nonsense\r\n\r\n"),
    (
        "both-lengths",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunked", "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    (
        "trailers",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
    ),
    ("half-a-body", "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("expect", "POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"),
    ("early-hints", "GET /early HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("with-trailers", "GET /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n"),
    ("in-chunks", "GET /chunks HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("until-the-end", "GET /close HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("mixed-case", "GET /case HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("no-content", "GET /204 HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("not-modified", "GET /304 HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("websocket", "GET /x HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"),
    (
        "h2c",
        "GET /direct HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: x\r\n\r\n",
    ),
    ("connect", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n"),
    ("connect-without-port", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n"),
    (
        "grpc",
        "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    ),
    (
        "grpc-direct",
        "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    ),
    ("cut-off", "GET /cut HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("obs-text", "GET /x HTTP/1.1\r\nhost: a\r\nx-name: caf\u{e9}\r\n\r\n"),
    ("obs-text-path", "GET /x/caf\u{e9} HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("tab-in-value", "GET /x HTTP/1.1\r\nhost: a\r\nx-name: a\tb\r\n\r\n"),
    ("many", "GET /direct HTTP/1.1\r\nhost: a\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\nf: 1\r\n\r\n"),
];

/// In each of these the two differ on purpose.
const OTHERWISE: &[(&str, &str)] = &[
    ("two-hosts", "GET /direct HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    ("bare-lf", "GET /direct HTTP/1.1\nhost: a\n\n"),
    ("http09", "GET /direct\r\n\r\n"),
    ("bad-port", "GET /direct HTTP/1.1\r\nhost: a:x\r\n\r\n"),
    ("body", "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"),
];

const PRESERVE: &str = "http_protocol_options: { header_key_format: { stateful_formatter: { name: p, typed_config: { \"@type\": \
    type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig } } } }";
const MAPPED: &str = "local_reply_config: { body_format: { json_format: { a: '%LOCAL_REPLY_BODY%', c: '%RESPONSE_CODE%' } }, \
    mappers: [ { filter: { status_code_filter: { comparison: { op: EQ, value: { default_value: 503, runtime_key: x } } } }, \
    status_code: 510, body: { inline_string: gone }, body_format_override: { text_format_source: { inline_string: \
    '<%LOCAL_REPLY_BODY%>' }, content_type: text/html }, headers_to_add: [ { header: { key: x-mapped, value: \
    '%RESPONSE_CODE_DETAILS%' } } ] } ] }";

/// A connection manager's fields, and the requests that they concern; none: all.
const MANAGERS: &[(&str, &str, &[&str])] = &[
    ("plain", "", &[]),
    ("http10", "http_protocol_options: { accept_http_10: true }", HTTP10),
    (
        "http10-host",
        "http_protocol_options: { accept_http_10: true, default_host_for_http_10: dflt }",
        HTTP10,
    ),
    ("mapped", MAPPED, FAILING),
    ("named", "server_name: mine, via: one, server_header_transformation: APPEND_IF_ABSENT", HEADS),
    ("passed", "server_header_transformation: PASS_THROUGH", HEADS),
    (
        "once",
        "common_http_protocol_options: { max_requests_per_connection: 1 }",
        &["direct", "forwarded", "chunked", "early-hints", "head"],
    ),
    ("status", "proxy_status_config: {}", FAILING),
    (
        "status-named",
        "proxy_status_config: { set_recommended_response_code: true, literal_proxy_name: lit, \
         remove_response_flags: true }",
        FAILING,
    ),
    ("status-node", "proxy_status_config: { use_node_id: true, remove_details: true }", FAILING),
    (
        "streams",
        "stream_error_on_invalid_http_message: true",
        &["direct", "fragment", "no-host", "nonsense", "both-lengths", "star"],
    ),
    ("preserved", PRESERVE, HEADS),
    ("proper", "http_protocol_options: { header_key_format: { proper_case_words: {} } }", HEADS),
    (
        "trailers",
        "http_protocol_options: { enable_trailers: true }",
        &["trailers", "with-trailers", "chunked", "in-chunks"],
    ),
    ("informed", "proxy_100_continue: true", &["expect", "early-hints", "direct", "half-a-body"]),
    ("lengths", "http_protocol_options: { allow_chunked_length: true }", &["both-lengths", "chunked"]),
    ("few", "common_http_protocol_options: { max_headers_count: 5 }", &["many", "direct"]),
    (
        "not-upgraded",
        "upgrade_configs: [ { upgrade_type: websocket, enabled: false }, { upgrade_type: other } ]",
        &["websocket", "h2c", "connect"],
    ),
];

const HTTP10: &[&str] = &["http10", "http10-no-host", "http10-kept", "http10-forwarded", "no-host", "direct"];
const HEADS: &[&str] = &["direct", "forwarded", "mixed-case", "with-trailers", "nonsense", "chunked"];
const FAILING: &[&str] =
    &["direct", "nowhere", "refused", "empty", "slow", "no-route", "connect", "grpc", "cut-off", "nonsense"];

fn managers() -> Vec<(&'static str, String)> {
    let all = MANAGERS.iter().map(|(name, fields, _)| {
        let log = file_log(&format!("{name}.log"), LINE);
        let more = if fields.is_empty() { "" } else { ", " };
        (*name, format!("{fields}{more}delayed_close_timeout: 0.1s, access_log: [ {log} ]"))
    });
    all.collect()
}

/// Which are as many requests as there are first lines.
fn answers(bytes: &str) -> usize {
    bytes.matches(" HTTP/1.").count().max(1)
}

#[test]
fn answers_lines_and_counts_are_envoys() -> Result<()> {
    lab(|lab| {
        let pair = Pair::start(lab, &config(&managers(), backend::start()?))?;
        let mut cases = Cases::new();
        for (name, _, concerned) in MANAGERS {
            let before = [pair.envoy.stats()?, pair.shunt.stats()?];
            let mut logged = 0;
            let is_wanted = |request: &str| concerned.is_empty() || concerned.contains(&request);
            for (request, bytes) in REQUESTS.iter().filter(|(request, _)| is_wanted(request)) {
                let answers = answers(bytes);
                logged += answers;
                pair.same(&mut cases, format!("http-replies-{name}-{request}"), |proxy| {
                    let response = exchange(proxy.at(name)?, bytes.as_bytes(), answers)?;
                    let lines = proxy.lines(&format!("{name}.log"), logged)?.split_off(logged - answers);
                    let own = |line: &str| line.to_ascii_lowercase().starts_with("x-request-id: ");
                    // Here an answer that is not whole ends with a reset, so that nobody takes it for one that is.
                    let shown = sorted(response.trim_end_matches(" RESET"));
                    let mut shown: Vec<_> = shown.lines().filter(|line| !own(line)).collect();
                    // What the backend was told is in it, in either proxy's order.
                    shown.sort_unstable();
                    Ok(json!([shown, lines]))
                });
            }
            cases.case(format!("http-counts-{name}"), || {
                let names = [format!("http.{name}."), format!("listener.{name}.http.{name}.")];
                let names: Vec<_> = names.iter().map(|name| format!("{name}*")).collect();
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let mut deltas =
                    [&pair.envoy, &pair.shunt].into_iter().zip(&before).map(|(proxy, before)| {
                        proxy.expect_stat(&format!("http.{name}.downstream_cx_active"), 0)?;
                        Ok(compared(proxy.stats()?.since(before, &names)))
                    });
                let mut next = || deltas.next().unwrap_or_else(|| anyhow::bail!("two proxies"));
                let (envoy, shunt) = (next()?, next()?);
                deviations::check(&format!("http-counts-{name}"), &envoy, &shunt)
            });
        }
        cases.finish()
    })
}

#[test]
fn what_is_done_otherwise_on_purpose() -> Result<()> {
    lab(|lab| {
        let pair = Pair::start(lab, &config(&[("plain", String::new())], backend::start()?))?;
        let mut cases = Cases::new();
        for (request, bytes) in OTHERWISE {
            pair.same(&mut cases, format!("http-replies-otherwise-{request}"), |proxy| {
                Ok(json!(sorted(&exchange(proxy.at("plain")?, bytes.as_bytes(), 1)?)))
            });
        }
        cases.finish()
    })
}
