//! Filters of gRPC, in front of a server that speaks HTTP/2.

use anyhow::Result;
use shunt_tests::{Script, Speaks};

use super::{Asked, Up, compare_with, filter};

const HTTP2: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http2_protocol_options: {} } } }";
/// One message, as it is framed, and as text.
const MESSAGE: &[u8] = b"\0\0\0\0\x02\x08\x01";
const TEXT: &[u8] = b"AAAAAAIIAQ==";

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const WEB: (&str, &str) = ("content-type", "application/grpc-web+proto");
const WEB_TEXT: (&str, &str) = ("content-type", "application/grpc-web-text");
const ACCEPTS_TEXT: (&str, &str) = ("accept", "application/grpc-web-text");
const TRAILERS: (&str, &str) = ("te", "trailers");

const FINE: (&str, &str) =
    ("x-do", "h:content-type=application/grpc message=0801 t:grpc-status=0 t:grpc-message=fine");
const AT_ONCE: (&str, &str) =
    ("x-do", "h:content-type=application/grpc h:grpc-status=5 h:grpc-message=nobody body=0");
const FAILS: (&str, &str) = ("x-do", "h:content-type=application/grpc message=0801 t:grpc-status=13");
const NO_GRPC: (&str, &str) = ("x-do", "h:content-type=text/html body=40");
const UNAVAILABLE: (&str, &str) = ("x-do", "status=503 body=30");

/// `said`: by the log, beside what it says of all filters.
fn compare(name: &str, said: &str, filters: &[String], asked: &[Asked<'_>]) -> Result<()> {
    let script = Script::new()?;
    let up = Up { at: script.backend("up", &Speaks::http2())?, cluster: HTTP2, said };
    compare_with(name, &up, filters, &[], asked, &["cluster.up.grpc*"])
}

#[test]
fn browsers() -> Result<()> {
    let method = "/pkg.Service/Method";
    let filters = [filter("grpc_web", "GrpcWeb", "")];
    compare(
        "grpc_web",
        "",
        &filters,
        &[
            ("POST", method, &[WEB, FINE], MESSAGE),
            ("POST", method, &[("content-type", "application/grpc-web"), FINE], MESSAGE),
            ("POST", method, &[WEB, AT_ONCE], MESSAGE),
            ("POST", method, &[WEB, FAILS], MESSAGE),
            ("POST", method, &[WEB, NO_GRPC], MESSAGE),
            ("POST", method, &[WEB, UNAVAILABLE], MESSAGE),
            ("POST", method, &[WEB, ACCEPTS_TEXT, FINE], MESSAGE),
            ("POST", method, &[WEB_TEXT, ACCEPTS_TEXT, FINE], TEXT),
            ("POST", method, &[WEB_TEXT, ACCEPTS_TEXT, AT_ONCE], TEXT),
            ("POST", method, &[WEB_TEXT, FINE], TEXT),
            ("POST", method, &[WEB_TEXT, ACCEPTS_TEXT, FINE], b"no base64!"),
            ("POST", method, &[("content-type", "application/json"), NO_GRPC], b"{}"),
            ("POST", method, &[GRPC, TRAILERS, AT_ONCE], MESSAGE),
        ],
    )?;
    compare("grpc_web status", " %GRPC_STATUS%", &filters, &[("POST", method, &[WEB, FINE], MESSAGE)])?;
    let twice = b"AAAAAAIIAQ==AAAAAAIIAQ==";
    compare("grpc_web each", "", &filters, &[("POST", method, &[WEB_TEXT, ACCEPTS_TEXT, FINE], twice)])
}

#[test]
fn calls_are_counted() -> Result<()> {
    let asked: &[Asked<'_>] = &[
        ("POST", "/pkg.Service/Method", &[GRPC, TRAILERS, FINE], MESSAGE),
        ("POST", "/pkg.Service/Method", &[GRPC, TRAILERS, AT_ONCE], MESSAGE),
        ("POST", "/pkg.Service/Other", &[GRPC, TRAILERS, FAILS], &[MESSAGE, MESSAGE].concat()),
        ("POST", "/other.Service/Method", &[GRPC, TRAILERS, FINE], b""),
        ("POST", "/pkg.Service/Method", &[GRPC, TRAILERS, UNAVAILABLE], MESSAGE),
        ("POST", "/pkg.Service/Method", &[GRPC, TRAILERS, ("x-do", "reset")], MESSAGE),
        ("POST", "/no-method", &[GRPC, TRAILERS, FINE], MESSAGE),
        ("POST", "/pkg.Service/Method", &[("content-type", "application/json"), NO_GRPC], b"{}"),
    ];
    let allowed = "individual_method_stats_allowlist: { services: [ { name: pkg.Service, method_names: [ Method ] } ] }";
    for (name, fields) in [
        ("all", "stats_for_all_methods: true"),
        ("none", "stats_for_all_methods: false"),
        ("allowed", allowed),
        ("dots", "stats_for_all_methods: true, replace_dots_in_grpc_service_name: true"),
        ("default", ""),
    ] {
        let filters = [filter("grpc_stats", "FilterConfig", fields)];
        compare(&format!("grpc_stats {name}"), " %GRPC_STATUS%", &filters, asked)?;
    }
    Ok(())
}
