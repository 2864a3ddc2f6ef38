//! What streams and connections of HTTP/2 were on the wire: what logs and stats say of it.

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::asked::{Ask, Body, Http2};
use shunt_tests::bootstrap::{Bootstrap, chain, extension, file_log};
use shunt_tests::{Cases, Kind, Pair, Proxy, Script, Speaks, lab};

use super::rig::{host, options, route};

const OPERATORS: &[&str] = &[
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "BYTES_RECEIVED",
    "BYTES_SENT",
];

#[test]
fn streams_and_connections_are_counted_by_their_frames() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let pair = Pair::start(lab, &config(script.backend("h2", &Speaks::http2())?).yaml())?;
        // A date of its own stays, whatever the time is.
        let plan = |plan: &str| format!("h:date=now {plan}").trim_end().to_owned();
        let asks = [
            ("get", Ask::get("/h2/").plan(&plan(""))),
            ("head", Ask { method: "HEAD".into(), ..Ask::get("/h2/").plan(&plan("")) }),
            ("post", Ask::post("/h2/", Body::Sized(100)).plan(&plan(""))),
            ("frames", Ask::post("/h2/", Body::Chunked(vec![10, 20, 30])).plan(&plan(""))),
            ("trailers", Ask::get("/h2/").plan(&plan("t:x-trailer=1"))),
            ("long", Ask::post("/h2/", Body::Sized(20_000)).plan(&plan("body=20000"))),
            ("reset", Ask::get("/h2/").plan("half-reset=2")),
            ("direct", Ask::get("/direct")),
        ];
        let mut cases = Cases::new();
        for (n, (name, ask)) in asks.iter().enumerate() {
            pair.same(&mut cases, format!("http_router wire: {name}"), |proxy| {
                Http2::connect(proxy.at("l")?)?.send(ask)?;
                line(proxy, n + 1)
            });
        }
        // What connections begin with is each proxy's own.
        let client = |proxy: &Proxy| Http2::connect(proxy.at("l")?);
        let clients = [client(&pair.envoy)?, client(&pair.shunt)?];
        let of = |proxy: &Proxy| if proxy.kind == Kind::Envoy { &clients[0] } else { &clients[1] };
        let ask = Ask::post("/h2/", Body::Sized(100)).plan("h:date=now");
        for proxy in pair.both() {
            of(proxy).send(&ask)?;
        }
        pair.same_stats(
            &mut cases,
            "http_router wire: connections",
            &["http.ing.downstream_cx_*_bytes_total", "cluster.h2.upstream_cx_*_bytes_total"],
            |proxy| of(proxy).send(&ask).map(drop),
        );
        cases.finish()
    })
}

fn config(backend: std::net::SocketAddr) -> Bootstrap {
    let format: Vec<_> = OPERATORS.iter().map(|operator| format!("%{operator}%")).collect();
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let router = extension("r", router, "suppress_envoy_headers: true");
    let direct =
        "{ match: { path: /direct }, direct_response: { status: 200, body: { inline_string: hello } } }";
    let hosts = host(&[direct.to_owned(), route("/h2/", "h2", "")], "");
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: ing, access_log: [ {} ], http_filters: [ {router} ], generate_request_id: false, \
             route_config: {{ virtual_hosts: [ {hosts} ] }}",
            file_log("log", &format.join(" ")),
        ),
    );
    let http2 = options("explicit_http_config: { http2_protocol_options: {} }");
    Bootstrap::new()
        .listener("l", &format!("stat_prefix: l, filter_chains: [ {} ]", chain("", &[hcm])))
        .static_cluster("h2", &[backend], &http2)
}

/// What the last of so many lines says.
fn line(proxy: &Proxy, lines: usize) -> Result<Value> {
    let line = proxy.lines("log", lines)?.pop().unwrap_or_default();
    let values = line.split(' ').map(|value| json!(value));
    Ok(OPERATORS.iter().map(|name| (*name).to_owned()).zip(values).collect())
}
