//! Control planes that fail: away, back again, mute, garbled, slow, or of enormous answers. What was good stays.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::xds::{Push, Resource, Type};
use shunt_tests::{Bootstrap, Cases, ControlPlane, Kind, Lab, Pair, Proxy, Upstream, eventually, lab, until};

use crate::xds_common::{
    Held, LIMIT, Protocol, ads_with, answers, cluster, eds_cluster, endpoints, relay, shapes, speaker, who,
};

/// Tries again soon.
fn eager(plane: &ControlPlane, protocol: Protocol) -> Bootstrap {
    let retry = "retry_policy: { retry_back_off: { base_interval: 0.1s, max_interval: 0.3s } }";
    let api = format!(
        "{{ api_type: {}, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds, {retry} }} }} ] }}",
        protocol.name()
    );
    ads_with(plane, &api, "")
}

fn service(plane: &ControlPlane, up: &Upstream) -> Result<()> {
    plane.set_all([
        eds_cluster("service", "")?,
        endpoints("service", &[up.address])?,
        relay("in", "service")?,
        speaker("word", "hello")?,
    ]);
    Ok(())
}

fn start(lab: &Lab, plane: &ControlPlane, protocol: Protocol) -> Result<Pair> {
    let pair = Pair::start(lab, &eager(plane, protocol).yaml())?;
    for proxy in pair.both() {
        answers(proxy, "in", "one")?;
        plane.accepted(proxy.kind.name())?;
    }
    Ok(pair)
}

#[test]
fn a_server_that_goes_and_comes_back() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (mut plane, one, two) =
                (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            service(&plane, &one)?;
            let pair = start(lab, &plane, protocol)?;
            let mut held = Held::through(&pair, "in")?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            plane.stop();
            pair.same(&mut cases, id("the server is away"), |proxy| {
                proxy.expect_stat("control_plane.connected_state", 0)?;
                Ok(json!([who(proxy, "in")?, held.who(proxy)?]))
            });
            let marks = Kind::BOTH.map(|kind| plane.mark(kind.name()));
            // While nobody hears it.
            plane.set(endpoints("service", &[two.address])?);
            plane.remove(Type::Listener, "word");
            plane.restart()?;
            pair.same(&mut cases, id("what is asked of a server that is back"), |proxy| {
                answers(proxy, "in", "two")?;
                until("the end of a listener", LIMIT, || {
                    Ok((!proxy.addresses()?.contains_key("word")).then_some(()))
                })?;
                plane.accepted(proxy.kind.name())?;
                Ok(shapes(&plane, proxy.kind.name(), marks[usize::from(proxy.kind == Kind::Shunt)]))
            });
            pair.same(&mut cases, id("the server is back"), |proxy| {
                proxy.expect_stat("control_plane.connected_state", 1)?;
                let stats = proxy.stats()?;
                let counted = ["cluster_manager.cluster_modified", "listener_manager.listener_modified"];
                Ok(json!([held.who(proxy)?, counted.map(|name| stats.of(name))]))
            });
        }
        cases.finish()
    })
}

#[test]
fn attempts_are_spread() -> Result<()> {
    lab(|lab| {
        let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        service(&plane, &one)?;
        let pair = start(lab, &plane, Protocol::Delta)?;
        let mut cases = Cases::new();
        for proxy in pair.both() {
            let node = proxy.kind.name();
            cases.case(format_args!("streams that end at once, {node}"), || {
                let before = plane.streams(node).len();
                let start = std::time::Instant::now();
                while start.elapsed() < Duration::from_secs(2) {
                    let _ = plane.end(node, "go away");
                    std::thread::sleep(Duration::from_millis(5));
                }
                let opened = plane.streams(node).len() - before;
                // 100 to 300 ms, with jitter.
                ensure!((3..=60).contains(&opened), "{opened} streams in two seconds");
                answers(proxy, "in", "one")?;
                eventually("a stream that stays", LIMIT, || plane.accepted(node))
            });
        }
        cases.finish()
    })
}

#[test]
fn what_is_no_message() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            service(&plane, &one)?;
            let pair = start(lab, &plane, protocol)?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            pair.same(&mut cases, id("bytes that are no message"), |proxy| {
                let node = proxy.kind.name();
                let streams = plane.streams(node).len();
                plane.push_bytes(node, Type::Cluster, vec![0xff; 64])?;
                eventually("a new stream", LIMIT, || {
                    ensure!(plane.streams(node).len() > streams, "there is none");
                    plane.accepted(node)
                })?;
                Ok(json!([who(proxy, "in")?, plane.streams(node).len() - streams]))
            });
            plane.set(endpoints("service", &[two.address])?);
            pair.same(&mut cases, id("updates go on"), |proxy| {
                answers(proxy, "in", "two")?;
                Ok(json!(true))
            });
        }
        cases.finish()
    })
}

#[test]
fn a_type_that_stalls_holds_no_other_up() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            service(&plane, &one)?;
            let pair = start(lab, &plane, protocol)?;
            plane.hold(Type::Endpoints);
            plane.set_all([eds_cluster("slow", "")?, cluster("quick", two.address)?]);
            plane.set_all([relay("slow", "slow")?, relay("quick", "quick")?]);
            let id = |what: &str| format!("{}: {what}", protocol.name());
            pair.same(&mut cases, id("while endpoints are awaited"), |proxy| {
                answers(proxy, "quick", "two")?;
                plane.request(proxy.kind.name(), "for slow", 0, |r| {
                    r.is(Type::Endpoints) && r.names.contains(&"slow".to_owned())
                })?;
                let stats = ["cluster_manager.warming_clusters", "cluster_manager.active_clusters"];
                let stats = stats.map(|name| proxy.stat(name));
                let [warming, active] = stats;
                Ok(json!([who(proxy, "in")?, who(proxy, "slow")?, warming?, active?]))
            });
            plane.set(endpoints("slow", &[two.address])?);
            plane.release(Type::Endpoints);
            pair.same(&mut cases, id("once endpoints have come"), |proxy| {
                answers(proxy, "slow", "two")?;
                proxy.expect_stat("cluster_manager.warming_clusters", 0)?;
                Ok(json!(who(proxy, "in")?))
            });
        }
        cases.finish()
    })
}

/// So many endpoints, all of which are one backend's: each is an address of its own.
fn many(cluster: &str, count: u32, port: u16) -> Result<Resource> {
    let endpoint = |n: u32| {
        let ip = std::net::Ipv4Addr::from(u32::from_be_bytes([127, 1, 0, 0]) + n).to_string();
        json!({ "endpoint": { "address": { "socket_address": { "address": ip, "port_value": port } } } })
    };
    let all: Vec<_> = (1..=count).map(endpoint).collect();
    let value = json!({ "cluster_name": cluster, "endpoints": [ { "lb_endpoints": all } ] });
    Resource::from_value(Type::Endpoints, value)
}

#[test]
fn ten_thousand_endpoints_in_one_update() -> Result<()> {
    lab(|lab| {
        let plane = ControlPlane::start()?;
        let one = Upstream::start_at("one", shunt_tests::Does::Echo, "0.0.0.0:0".parse()?)?;
        let at = ([127, 0, 0, 1], one.address.port()).into();
        plane.set_all([eds_cluster("service", "")?, endpoints("service", &[at])?, relay("in", "service")?]);
        let pair = start(lab, &plane, Protocol::Delta)?;
        let mut held = Held::through(&pair, "in")?;
        let mut cases = Cases::new();
        for (what, resource) in [
            ("10,000 endpoints", many("service", 10_000, one.address.port())?),
            ("half of them", many("service", 5_000, one.address.port())?),
            ("one again", endpoints("service", &[at])?),
        ] {
            let count = match what {
                "10,000 endpoints" => 10_000,
                "half of them" => 5_000,
                _ => 1,
            };
            plane.set(resource);
            pair.same(&mut cases, what, |proxy| {
                proxy.expect_stat("cluster.service.membership_total", count)?;
                plane.accepted(proxy.kind.name())?;
                Ok(json!([who(proxy, "in")?, held.who(proxy)?]))
            });
        }
        cases.finish()
    })
}

#[test]
fn what_lives_for_a_while_only() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        let second = Duration::from_secs(1);
        for protocol in Protocol::BOTH {
            let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
            service(&plane, &one)?;
            let pair = start(lab, &plane, protocol)?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            for of in [Type::Cluster, Type::Listener, Type::Endpoints] {
                plane.hold(of);
            }
            let nodes = Kind::BOTH.map(Kind::name);
            let all = [
                Push::new(Type::Cluster)
                    .resource(eds_cluster("service", "")?)
                    .resource(cluster("brief", one.address)?.ttl(second)),
                Push::new(Type::Listener)
                    .resource(relay("in", "service")?)
                    .resource(relay("brief", "brief")?.ttl(second)),
            ];
            let say = |pushes: &[Push]| {
                nodes
                    .iter()
                    .try_for_each(|node| pushes.iter().try_for_each(|push| plane.push(node, push).map(drop)))
            };
            say(&all)?;
            pair.same(&mut cases, id("before its time is over"), |proxy| {
                answers(proxy, "brief", "one")?;
                Ok(json!(true))
            });
            // A state of the world without content would be one without these resources: Envoy takes it so.
            let again = match protocol {
                Protocol::Sotw => all,
                Protocol::Delta => {
                    [Type::Cluster, Type::Listener].map(|of| Push::new(of).heartbeat("brief", second))
                }
            };
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(300));
                say(&again)?;
            }
            pair.same(&mut cases, id("kept by heartbeats"), |proxy| {
                plane.accepted(proxy.kind.name())?;
                Ok(json!([who(proxy, "brief")?, who(proxy, "in")?]))
            });
            pair.same(&mut cases, id("once its time is over"), |proxy| {
                until("the end of a listener", LIMIT, || {
                    Ok((!proxy.addresses()?.contains_key("brief")).then_some(()))
                })?;
                proxy.expect_stat("cluster_manager.active_clusters", 2)?;
                Ok(json!(who(proxy, "in")?))
            });
        }
        cases.finish()
    })
}

/// Whether a proxy has a stream at all.
fn connected(plane: &ControlPlane, proxy: &Proxy) -> Result<()> {
    let streams = plane.streams(proxy.kind.name());
    streams.iter().find(|stream| stream.open).map(drop).context("no stream is open")
}

#[test]
fn a_server_that_is_not_there_at_first() -> Result<()> {
    lab(|lab| {
        let (mut plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        service(&plane, &one)?;
        plane.stop();
        let config =
            eager(&plane, Protocol::Delta).relay("own", "own").static_cluster("own", &[one.address], "");
        let config = config.yaml();
        let place = shunt_tests::Place::default;
        let start = |kind| {
            let start = shunt_tests::proxy::Start { kind, config: &config, args: &[], place: place() };
            Proxy::start_unready(lab, &start)
        };
        let mut pair = Pair { envoy: start(Kind::Envoy)?, shunt: start(Kind::Shunt)? };
        let mut cases = Cases::new();
        pair.same(&mut cases, "without its server", |proxy| {
            Ok(json!([proxy.admin().get("/ready")?.status, proxy.stat("control_plane.connected_state")?]))
        });
        plane.restart()?;
        for proxy in [&mut pair.envoy, &mut pair.shunt] {
            cases.case(format_args!("the server comes, {}", proxy.kind.name()), || {
                proxy.wait_ready()?;
                connected(&plane, proxy)?;
                answers(proxy, "own", "one")?;
                answers(proxy, "in", "one")
            });
        }
        cases.finish()
    })
}
