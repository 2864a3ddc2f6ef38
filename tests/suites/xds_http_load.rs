//! 200 updates under 64 clients of HTTP that never stop, HTTP/1.1 and HTTP/2, with and without TLS: no request fails,
//! no stream and no connection is reset. Clients obey `Connection: close` and GOAWAY, as real ones do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{DIR, chain, extension as typed, file_log};
use shunt_tests::http_client::{HttpClient, Version};
use shunt_tests::http_echo::HttpEcho;
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{ControlPlane, Kind, Leaf, Proxy, TlsContext, eventually, lab};

use crate::tls_common::{Mesh, SERVER};
use crate::xds_common::{LIMIT, Protocol, ads, cluster_with, endpoints, extension, listener_at};

const UPDATES: usize = 200;
/// A quarter of them of each sort.
const CLIENTS: usize = 64;
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// What is shown of a request that failed.
const LOG: &str = "%RESPONSE_CODE% %START_TIME% %DURATION% %PROTOCOL% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %CONNECTION_TERMINATION_DETAILS% %UPSTREAM_HOST% %REQUEST_DURATION%";
const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// What is replaced has so long: longer than a request takes on a loaded machine, and shorter than the test.
const ARGS: &[&str] = &["--concurrency", "2", "--drain-time-s", "4", "--drain-strategy", "immediate"];

fn secret(mesh: &Mesh<'_>, round: usize) -> Result<Resource> {
    let identity = mesh.middle.issue(&format!("round{round}"), &Leaf::spiffe(SERVER))?;
    let inline = |path| -> Result<_> { Ok(json!({ "inline_string": std::fs::read_to_string(path)? })) };
    let (chain, key) = (inline(&identity.chain)?, inline(&identity.key)?);
    let value =
        json!({ "name": "server", "tls_certificate": { "certificate_chain": chain, "private_key": key } });
    Resource::from_value(Type::Secret, value)
}

/// Of both listeners.
struct Fronts {
    /// The transport socket of one of them.
    tls: String,
    log: PathBuf,
}

impl Fronts {
    /// Its only chain; `hcm` makes it another one, `whole` all of the listener.
    fn of(&self, name: &str, hcm: usize, whole: usize) -> Result<Resource> {
        let ads = "{ ads: {}, resource_api_version: V3 }";
        let types = format!("type_urls: [ \"type.googleapis.com/{MUTATION}\" ]");
        let gate = format!("{{ name: gate, config_discovery: {{ config_source: {ads}, {types} }} }}");
        let log = file_log("log", LOG).replace(&format!("{DIR}/log"), &self.log.display().to_string());
        let fields = format!(
            "stat_prefix: {name}, server_name: \"n{hcm}\", http_filters: [ {gate}, {} ], \
             rds: {{ route_config_name: routes, config_source: {ads} }}, access_log: [ {log} ]",
            typed("envoy.filters.http.router", ROUTER, "")
        );
        let socket = if name == "secure" { self.tls.as_str() } else { "" };
        let chain = chain("", &[typed("http", HCM, &fields)]).replacen('{', &format!("{{ {socket}"), 1);
        let limit = format!("per_connection_buffer_limit_bytes: {}", 65_536 + whole);
        listener_at(name, place(name), &format!("filter_chains: [ {chain} ], {limit}"))
    }

    fn both(&self, hcm: usize, whole: usize) -> Result<[Resource; 2]> {
        Ok([self.of("plain", hcm, whole)?, self.of("secure", hcm, whole)?])
    }
}

/// An address for each: see `xds_load`.
fn place(name: &str) -> SocketAddr {
    ([127, 0, 0, if name == "plain" { 1 } else { 2 }], 0).into()
}

fn service(policy: &str) -> Result<Resource> {
    let eds = "eds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.1s }";
    cluster_with("service", &format!("type: EDS, lb_policy: {policy}, eds_cluster_config: {{ {eds} }}"))
}

fn routes(round: usize) -> Result<Resource> {
    let said = format!("response_headers_to_add: [ {{ header: {{ key: x-route, value: \"{round}\" }} }} ]");
    let route = format!("{{ match: {{ prefix: / }}, route: {{ cluster: service }}, {said} }}");
    let host = format!("{{ name: v, domains: [ \"*\" ], routes: [ {route} ] }}");
    Resource::new(Type::Route, &format!("{{ name: routes, virtual_hosts: [ {host} ] }}"))
}

fn gate(round: usize) -> Result<Resource> {
    let header = format!("header: {{ key: x-gate, value: \"{round}\" }}");
    let append = format!("append: {{ {header}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }}");
    extension(
        "gate",
        &format!(
            "{{ \"@type\": type.googleapis.com/{MUTATION}, mutations: {{ response_mutations: [ {{ {append} }} ] }} }}"
        ),
    )
}

/// What changes in a round, in turn.
fn update(
    plane: &ControlPlane,
    mesh: &Mesh<'_>,
    fronts: &Fronts,
    backends: &[HttpEcho],
    n: usize,
) -> Result<()> {
    let at = |n: usize| backends[n % backends.len()].address;
    match n % 8 {
        0 => plane.set(endpoints("service", &[at(n / 8)])?),
        1 => plane.set(endpoints("service", &[at(n / 8), at(n / 8 + 1)])?),
        2 => plane.set(service(if n % 16 == 2 { "RANDOM" } else { "ROUND_ROBIN" })?),
        // The chain is another one, and then all of the listener.
        3 => plane.set_all(fronts.both(n, n / 16)?),
        4 => plane.set(routes(n)?),
        5 => plane.set(gate(n)?),
        6 => plane.set_all([routes(n)?, gate(n)?, endpoints("service", &[at(n), at(n + 2)])?]),
        _ => plane.set(secret(mesh, n)?),
    }
    Ok(())
}

/// What all clients together have seen.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    requests: AtomicU64,
    connections: AtomicU64,
    /// The last update of routes, and of the filter.
    route: AtomicU64,
    gate: AtomicU64,
}

async fn keep_asking(mut client: HttpClient, seen: Arc<Seen>) -> Result<()> {
    while !seen.over.load(Ordering::Relaxed) {
        let reply = client.get("/x").await?;
        let said = || format!("{} {:?}", reply.status, String::from_utf8_lossy(&reply.body));
        ensure!(reply.status == 200 && reply.header("x-backend").is_some(), "{}", said());
        ensure!(reply.body.starts_with(b"GET /x "), "{}", said());
        for (name, last) in [("x-route", &seen.route), ("x-gate", &seen.gate)] {
            let now = reply.header(name).with_context(|| format!("no {name}: {}", said()))?;
            last.fetch_max(now.parse()?, Ordering::Relaxed);
        }
        seen.requests.fetch_add(1, Ordering::Relaxed);
    }
    seen.connections.fetch_add(client.connections as u64, Ordering::Relaxed);
    Ok(())
}

fn client(n: usize, plain: SocketAddr, secure: SocketAddr) -> Result<HttpClient> {
    match n % 4 {
        0 => Ok(HttpClient::new(plain, Version::Http1)),
        1 => Ok(HttpClient::new(plain, Version::Http2)),
        2 => HttpClient::new(secure, Version::Http1).tls(),
        _ => HttpClient::new(secure, Version::Http2).tls(),
    }
}

fn name(n: usize) -> &'static str {
    ["HTTP/1.1", "HTTP/2", "HTTP/1.1 over TLS", "HTTP/2 over TLS"][n % 4]
}

/// Requests that did not end well, by the proxy's own account; and what it waits for.
fn failed(proxy: &Proxy, log: &Path) -> String {
    std::thread::sleep(Duration::from_millis(300));
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let bad: Vec<_> = log.lines().filter(|line| !line.starts_with("200 ")).take(20).collect();
    let stats = proxy.stats().map(|stats| {
        let of = |name: &str| format!("{name}: {}", stats.of(&format!("cluster.service.{name}")));
        ["upstream_rq_pending_active", "upstream_rq_active", "upstream_cx_active"].map(of).join(", ")
    });
    format!("\n{}\n{stats:?}", bad.join("\n"))
}

#[test]
fn no_request_is_lost_in_200_updates() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let plane = ControlPlane::start()?;
        let backends =
            ["one", "two", "three"].map(HttpEcho::start).into_iter().collect::<Result<Vec<_>>>()?;
        let source = "{ name: server, sds_config: { ads: {}, resource_api_version: V3 } }";
        let context = TlsContext::new()
            .common(&format!("tls_certificate_sds_secret_configs: [ {source} ]"))
            .alpn(&["h2", "http/1.1"]);
        let tls = format!("transport_socket: {}, ", context.downstream());
        let fronts = Fronts { tls, log: lab.dir().join("requests.log") };
        plane.set_all([
            service("ROUND_ROBIN")?,
            endpoints("service", &[backends[0].address])?,
            fronts.of("plain", 0, 0)?,
            fronts.of("secure", 0, 0)?,
            routes(0)?,
            gate(0)?,
            secret(&mesh, 1_000)?,
        ]);
        let config = ads(&plane, Protocol::Delta).yaml();
        let proxy = Proxy::start_with(lab, Kind::Shunt, &config, ARGS)?;
        let (plain, secure) = (proxy.listening("plain")?, proxy.listening("secure")?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        for n in 0..4 {
            let mut client = client(n, plain, secure)?;
            eventually(&format!("an answer by {}", name(n)), LIMIT, || {
                let status = runtime.block_on(client.get("/x"))?.status;
                ensure!(status == 200, "{status}");
                Ok(())
            })?;
        }
        let seen = Arc::<Seen>::default();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| Ok(runtime.spawn(keep_asking(client(n, plain, secure)?, seen.clone()))))
            .collect::<Result<_>>()?;
        let updated = (1..=UPDATES).try_for_each(|n| {
            update(&plane, &mesh, &fronts, &backends, n)?;
            std::thread::sleep(Duration::from_millis(15));
            plane.settled(Kind::Shunt.name()).map(drop)
        });
        // What was replaced last is drained to its end, too.
        std::thread::sleep(Duration::from_millis(4_500));
        seen.over.store(true, Ordering::Relaxed);
        for (n, client) in clients.into_iter().enumerate() {
            let result = runtime.block_on(client)?;
            let requests = seen.requests.load(Ordering::Relaxed);
            result.with_context(|| {
                format!(
                    "client {n}, {}, after {requests} requests of all{}",
                    name(n),
                    failed(&proxy, &fronts.log)
                )
            })?;
        }
        updated?;
        plane.accepted(Kind::Shunt.name())?;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (requests, connections) = (of(&seen.requests), of(&seen.connections));
        ensure!(requests > 1_000, "no load: {requests} requests");
        ensure!(connections > CLIENTS as u64, "nothing was drained: {connections} connections");
        // The last of each kind.
        ensure!((of(&seen.route), of(&seen.gate)) == (198, 198), "{}, {}", of(&seen.route), of(&seen.gate));
        let stats = proxy.stats()?;
        for name in ["cluster.service.upstream_cx_connect_fail", "cluster.service.upstream_cx_none_healthy"] {
            ensure!(stats.of(name) == 0, "{name} is {}", stats.of(name));
        }
        let applied = stats.of("listener_manager.listener_modified");
        ensure!(applied >= 40, "only {applied} changes of listeners");
        Ok(())
    })
}
