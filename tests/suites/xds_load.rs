//! 200 updates under 64 clients that never stop: no request fails, no connection is reset.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, tcp_proxy};
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{
    Client, ControlPlane, End, Kind, Leaf, Proxy, TlsClient, TlsContext, Upstream, lab, tls::TlsEnd,
};

use crate::tls_common::{Mesh, SERVER};
use crate::xds_common::{Protocol, ads, answers, cluster, cluster_with, endpoints, listener_at};

const UPDATES: usize = 200;
/// Half of them over TLS.
const CLIENTS: usize = 64;

fn secret(mesh: &Mesh<'_>, round: usize) -> Result<Resource> {
    let identity = mesh.middle.issue(&format!("round{round}"), &Leaf::spiffe(SERVER))?;
    let inline = |path| -> Result<_> { Ok(json!({ "inline_string": std::fs::read_to_string(path)? })) };
    let (chain, key) = (inline(&identity.chain)?, inline(&identity.key)?);
    let value =
        json!({ "name": "server", "tls_certificate": { "certificate_chain": chain, "private_key": key } });
    Resource::from_value(Type::Secret, value)
}

/// Its only chain; the number is seen by nobody but makes it another one.
fn front(name: &str, socket: &str, round: usize) -> Result<Resource> {
    let filters = [tcp_proxy(name, &format!("cluster: service, max_connect_attempts: {}", 1 + round))];
    let chain = chain("", &filters).replacen('{', &format!("{{ {socket}"), 1);
    listener_at(name, place(name), &format!("filter_chains: [ {chain} ]"))
}

/// An address for each: Envoy gives a new listener the socket of one that drains and had the same, also with port 0.
fn place(name: &str) -> SocketAddr {
    let last = match name {
        "plain" => 1,
        "secure" => 2,
        _ => 3,
    };
    ([127, 0, 0, last], 0).into()
}

fn beside() -> Result<Resource> {
    let chain = chain("", &[tcp_proxy("beside", "cluster: beside")]);
    listener_at("beside", place("beside"), &format!("filter_chains: [ {chain} ]"))
}

/// A changed one waits so long in Envoy for endpoints that it has already.
fn service(policy: &str) -> Result<Resource> {
    let eds = "eds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.1s }";
    cluster_with("service", &format!("type: EDS, lb_policy: {policy}, eds_cluster_config: {{ {eds} }}"))
}

/// What changes in a round: every resource that the clients' way goes through, in turn, and some beside it.
fn update(plane: &ControlPlane, mesh: &Mesh<'_>, tls: &str, backends: &[Upstream], n: usize) -> Result<()> {
    let at = |n: usize| backends[n % backends.len()].address;
    match n % 8 {
        0 => plane.set(endpoints("service", &[at(n / 8)])?),
        1 => plane.set(endpoints("service", &[at(n / 8), at(n / 8 + 1)])?),
        2 => plane.set(service(if n % 16 == 2 { "RANDOM" } else { "ROUND_ROBIN" })?),
        3 => plane.set(front("plain", "", n)?),
        4 => plane.set(front("secure", tls, n)?),
        5 => plane.set_all([cluster("beside", at(n))?, beside()?]),
        6 => {
            plane.remove(Type::Listener, "beside");
            plane.remove(Type::Cluster, "beside");
        }
        _ => plane.set(secret(mesh, n)?),
    }
    Ok(())
}

/// Connects, asks some things, hears the end of its connection, and begins again.
fn plain(at: SocketAddr, over: &AtomicBool, requests: &AtomicU64) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let mut client = Client::connect(at)?;
        for _ in 0..5 {
            ensure!(client.ask("x")?.ends_with(" x"), "another answer");
            requests.fetch_add(1, Ordering::Relaxed);
        }
        client.half_close()?;
        let (rest, end) = client.end()?;
        ensure!(rest.is_empty() && end == End::Eof, "{rest:?}, {end}");
    }
    Ok(())
}

fn secure(at: SocketAddr, over: &AtomicBool, requests: &AtomicU64) -> Result<()> {
    let client = TlsClient::new().ready()?;
    while !over.load(Ordering::Relaxed) {
        let mut stream = client.connect(at)?;
        for _ in 0..5 {
            ensure!(stream.ask("x")?.ends_with(" x"), "another answer");
            requests.fetch_add(1, Ordering::Relaxed);
        }
        stream.half_close()?;
        let (rest, end) = stream.end()?;
        ensure!(rest.is_empty() && matches!(end, TlsEnd::Notify | TlsEnd::Fin), "{rest:?}, {end}");
    }
    Ok(())
}

/// Never begins anew: what it is connected through is long gone from the configuration.
fn lasting(at: SocketAddr, over: &AtomicBool, requests: &AtomicU64) -> Result<()> {
    let mut client = Client::connect(at)?;
    while !over.load(Ordering::Relaxed) {
        ensure!(client.ask("x")?.ends_with(" x"), "another answer");
        requests.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn nothing_is_lost_in_200_updates() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let plane = ControlPlane::start()?;
        let backends = ["one", "two", "three"].map(Upstream::echo).into_iter().collect::<Result<Vec<_>>>()?;
        let source = "{ name: server, sds_config: { ads: {}, resource_api_version: V3 } }";
        let context = TlsContext::new().common(&format!("tls_certificate_sds_secret_configs: [ {source} ]"));
        let tls = format!("transport_socket: {}, ", context.downstream());
        plane.set_all([
            service("ROUND_ROBIN")?,
            endpoints("service", &[backends[0].address])?,
            front("plain", "", 0)?,
            front("secure", &tls, 0)?,
            secret(&mesh, 1_000)?,
        ]);
        let config = ads(&plane, Protocol::Delta).yaml();
        let proxy = Proxy::start_with(lab, Kind::Shunt, &config, &["--concurrency", "2"])?;
        answers(&proxy, "plain", "one")?;
        let (plain_at, secure_at) = (proxy.listening("plain")?, proxy.listening("secure")?);
        let (over, requests) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    let (over, requests) = (&over, &requests);
                    scope.spawn(move || match n % 8 {
                        0 => lasting(plain_at, over, requests),
                        1..4 => plain(plain_at, over, requests),
                        _ => secure(secure_at, over, requests),
                    })
                })
                .collect();
            let updated = (1..=UPDATES).try_for_each(|n| {
                update(&plane, &mesh, &tls, &backends, n)?;
                std::thread::sleep(Duration::from_millis(15));
                plane.settled(Kind::Shunt.name()).map(drop)
            });
            over.store(true, Ordering::Relaxed);
            for (n, client) in clients.into_iter().enumerate() {
                let result = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
                result.with_context(|| format!("client {n}, after {requests:?} requests"))?;
            }
            updated
        })?;
        plane.accepted(Kind::Shunt.name())?;
        let requests = requests.into_inner();
        ensure!(requests > 1_000, "no load: {requests} requests");
        let stats = proxy.stats()?;
        for name in ["cluster.service.upstream_cx_connect_fail", "cluster.service.upstream_cx_none_healthy"] {
            ensure!(stats.of(name) == 0, "{name} is {}", stats.of(name));
        }
        let applied = stats.of("listener_manager.listener_modified");
        ensure!(applied >= 40, "only {applied} changes of listeners");
        Ok(())
    })
}
