//! The connection manager beside the real Envoy: what it does to requests, what it answers by itself, what it counts.

mod heads;
mod limits;
mod paths;
mod replies;

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use shunt_tests::Client;
use shunt_tests::bootstrap::{Bootstrap, chain, extension};
use shunt_tests::http_echo::HttpEcho;

const ROUTES: &str = "route_config: { virtual_hosts: [ { name: v, domains: ['*'], routes: [ \
    { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: hello } } }, \
    { match: { path: /teapot }, direct_response: { status: 418 } }, \
    { match: { prefix: /nowhere }, route: { cluster: nowhere } }, \
    { match: { prefix: /none, headers: [ { name: x-none, present_match: true } ] }, non_forwarding_action: {} }, \
    { match: { prefix: / }, route: { cluster: echo } } ] } ], validate_clusters: false }";

/// A listener's fields: a connection manager with these further ones.
fn manager(name: &str, more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!("stat_prefix: {name}, http_filters: [ {router} ], {ROUTES}, {more}"),
    );
    format!("stat_prefix: {name}, filter_chains: [ {} ]", chain("", &[hcm]))
}

/// A listener for each connection manager, and the cluster of the echoing backend.
fn config(managers: &[(&str, String)], echo: &HttpEcho) -> String {
    let all =
        managers.iter().fold(Bootstrap::new(), |all, (name, more)| all.listener(name, &manager(name, more)));
    all.top("node: { id: the-node, cluster: the-cluster }").static_cluster("echo", &[echo.address], "").yaml()
}

/// All that comes for some bytes: until the connection is closed, or nothing comes any more.
fn exchange(to: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut client = Client::connect(to)?;
    client.send(bytes)?;
    rest(&client, Duration::from_millis(400))
}

fn rest(client: &Client, quiet: Duration) -> Result<String> {
    let mut stream = client.stream();
    stream.set_read_timeout(Some(quiet))?;
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    loop {
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
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// A response whose headers are sorted, without those that are each run's own.
fn sorted(response: &str) -> String {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let own = ["date:", "x-envoy-upstream-service-time:"];
    let mut lines: Vec<_> = lines.filter(|line| !own.iter().any(|name| line.starts_with(name))).collect();
    lines.sort_unstable();
    format!("{first}|{}|{body}", lines.join("|"))
}
