//! The connection manager beside the real Envoy: what it does to requests, what it answers by itself, what it counts.
//!
//! Two things are compared nowhere. Envoy keeps a socket open for `delayed_close_timeout` before it says FIN, or closes
//! it at once; shunt says FIN at once and leaves the client that time. So who closed (`downstream_cx_destroy_local`,
//! `_remote`) is told apart in another way. And Envoy counts connections by worker.

mod backend;
mod certificates;
mod frames;
mod heads;
mod limits;
mod lines;
mod lives;
mod paths;
mod replies;
mod shown;
mod upgrades;

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use shunt_tests::Client;
use shunt_tests::bootstrap::{Bootstrap, chain, extension};

const ROUTES: &str = "route_config: { virtual_hosts: [ { name: v, domains: ['*'], routes: [ \
    { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: hello } } }, \
    { match: { path: /teapot }, direct_response: { status: 418 } }, \
    { match: { prefix: /nowhere }, route: { cluster: nowhere } }, \
    { match: { prefix: /refused }, route: { cluster: refused } }, \
    { match: { prefix: /empty }, route: { cluster: empty } }, \
    { match: { prefix: /slow }, route: { cluster: echo, timeout: 0.1s } }, \
    { match: { prefix: /flush }, route: { cluster: echo, flush_timeout: 0.3s } }, \
    { match: { prefix: /idle }, route: { cluster: echo, idle_timeout: 0.3s } }, \
    { match: { prefix: /none, headers: [ { name: x-none, present_match: true } ] }, non_forwarding_action: {} }, \
    { match: { prefix: / }, route: { cluster: echo } } ] } ], validate_clusters: false }";

const TRAILERS: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }";

/// A connection manager with further fields.
fn hcm(name: &str, more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!("stat_prefix: {name}, http_filters: [ {router} ], {ROUTES}, {more}"),
    )
}

/// A listener's fields: a connection manager with these further ones.
fn manager(name: &str, more: &str) -> String {
    format!("stat_prefix: {name}, filter_chains: [ {} ]", chain("", &[hcm(name, more)]))
}

/// A listener for each connection manager, and the clusters of its routes.
fn config(managers: &[(&str, String)], echo: SocketAddr) -> String {
    let all =
        managers.iter().fold(Bootstrap::new(), |all, (name, more)| all.listener(name, &manager(name, more)));
    clusters(all, echo).yaml()
}

fn clusters(config: Bootstrap, echo: SocketAddr) -> Bootstrap {
    config
        .top("node: { id: the-node, cluster: the-cluster }")
        .static_cluster("echo", &[echo], TRAILERS)
        // Nobody listens on the lab's port 1.
        .static_cluster("refused", &[SocketAddr::from(([127, 0, 0, 1], 1))], "")
        .static_cluster("empty", &[], "")
}

/// All that comes for some bytes: so many whole answers, or until the connection ends.
fn exchange(to: SocketAddr, bytes: &[u8], answers: usize) -> Result<String> {
    let mut client = Client::connect(to)?;
    client.send(bytes)?;
    let without_body = bytes.starts_with(b"HEAD") || bytes.starts_with(b"CONNECT");
    Ok(take(&client, Duration::from_secs(3), |text| whole(text, without_body, answers)))
}

/// What comes until the connection ends, or for so long.
fn rest(client: &Client, limit: Duration) -> String {
    take(client, limit, |_| false)
}

/// What comes, until it is enough.
fn take(client: &Client, limit: Duration, enough: impl Fn(&str) -> bool) -> String {
    let mut stream = client.stream();
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    let shown = |all: &[u8]| String::from_utf8_lossy(all).into_owned();
    if stream.set_read_timeout(Some(limit)).is_err() {
        return String::new();
    }
    while !enough(&shown(&all)) {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&buf[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(_) => {
                all.extend_from_slice(b" RESET");
                break;
            }
        }
    }
    shown(&all)
}

/// Whether so many final answers are there, each to its end.
fn whole(mut text: &str, without_body: bool, answers: usize) -> bool {
    let mut left = answers;
    while left > 0 {
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        text = body;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('1') && status != "101" {
            continue;
        }
        left -= 1;
        let head = head.to_ascii_lowercase();
        if without_body || ["101", "204", "304"].contains(&status) {
            continue;
        }
        let end = if head.contains("transfer-encoding: chunked") {
            text.find("0\r\n").and_then(|at| Some(at + 1 + text[at + 1..].find("\r\n\r\n")? + 4))
        } else {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            length.filter(|length| text.len() >= *length)
        };
        match end.and_then(|end| text.get(end..)) {
            Some(after) => text = after,
            None => return false,
        }
    }
    true
}

/// A response whose headers are sorted, without what is each run's own.
fn sorted(response: &str) -> String {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    if head.starts_with("HTTP/1.1 1") && !head.starts_with("HTTP/1.1 101") {
        return format!("{head}||{}", sorted(body));
    }
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let own = ["date:", "x-envoy-upstream-service-time:"];
    let is_own = |line: &str| own.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    let mut lines: Vec<_> = lines.filter(|line| !is_own(line)).collect();
    lines.sort_unstable();
    let body = match body.find("HTTP/1.1 ") {
        Some(next) if next > 0 => format!("{}||{}", &body[..next], sorted(&body[next..])),
        Some(_) | None => body.to_owned(),
    };
    format!("{first}|{}|{body}", lines.join("|"))
}

/// Of the connection managers' counters, what is compared.
fn compared(mut delta: Value) -> Value {
    const NOT: &[&str] = &[
        "downstream_cx_destroy_local",
        "downstream_cx_destroy_remote",
        "downstream_cx_delayed_close_timeout",
        "_bytes_total",
    ];
    if let Some(all) = delta.as_object_mut() {
        all.retain(|name, _| !name.contains(".worker_") && !NOT.iter().any(|not| name.ends_with(not)));
    }
    delta
}
