//! What an update does to what is there: nothing where nothing changed, a drain where something did, and nothing at
//! all where it is refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, proxy_protocol, tcp_proxy};
use shunt_tests::xds::Type;
use shunt_tests::{Cases, Client, ControlPlane, Lab, Pair, Proxy, Upstream, eventually, lab};

use crate::xds_common::{
    Held, LIMIT, Protocol, ads, answers, bad_listener, cluster, cluster_with, eds_cluster, endpoints,
    listener, listener_at, relay, who, who_at,
};

/// What drains is gone soon.
const ARGS: &[&str] = &["--drain-time-s", "1", "--drain-strategy", "immediate"];

fn start(lab: &Lab, plane: &ControlPlane, protocol: Protocol) -> Result<Pair> {
    Pair::start_with(lab, &ads(plane, protocol).yaml(), ARGS)
}

fn accepted(plane: &ControlPlane, pair: &Pair) -> Result<()> {
    pair.both().into_iter().try_for_each(|proxy| plane.accepted(proxy.kind.name()))
}

fn counts(proxy: &Proxy, names: &[&str]) -> Result<Value> {
    let stats = proxy.stats()?;
    Ok(names.iter().map(|name| json!([name, stats.of(name)])).collect())
}

const LISTENER_STATS: &[&str] = &[
    "listener_manager.listener_added",
    "listener_manager.listener_modified",
    "listener_manager.listener_removed",
    "listener_manager.listener_in_place_updated",
    "listener_manager.listener_create_failure",
    "listener_manager.total_listeners_active",
    "listener_manager.total_listeners_warming",
    "listener_manager.total_listeners_draining",
    "listener_manager.total_filter_chains_draining",
];

#[test]
fn what_is_unchanged_is_left_alone_and_what_is_changed_drains() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            plane.set_all([
                cluster("one", one.address)?,
                cluster("two", two.address)?,
                relay("still", "one")?,
                relay("moved", "one")?,
            ]);
            let pair = start(lab, &plane, protocol)?;
            let (mut still, mut moved) = (Held::through(&pair, "still")?, Held::through(&pair, "moved")?);
            let ports: Vec<SocketAddr> =
                pair.both().iter().map(|proxy| proxy.listening("moved")).collect::<Result<_>>()?;
            let fields = "drain_type: MODIFY_ONLY, per_connection_buffer_limit_bytes: 32768";
            let chains = chain("", &[tcp_proxy("moved", "cluster: two")]);
            plane.set(listener("moved", &format!("filter_chains: [ {chains} ], {fields}"))?);
            accepted(&plane, &pair)?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            pair.same(&mut cases, id("a changed listener takes new connections"), |proxy| {
                answers(proxy, "moved", "two")?;
                ensure!(ports.contains(&proxy.listening("moved")?), "it is on another port");
                Ok(json!(who(proxy, "still")?))
            });
            pair.same(&mut cases, id("connections of a changed listener end with the drain"), |proxy| {
                let end = moved.end(proxy, LIMIT)?;
                proxy.expect_stat("listener_manager.total_listeners_draining", 0)?;
                Ok(json!(end))
            });
            pair.same(&mut cases, id("connections of the other live on"), |proxy| {
                Ok(json!(still.who(proxy)?))
            });
            pair.same(&mut cases, id("how it is counted"), |proxy| counts(proxy, LISTENER_STATS));
        }
        cases.finish()
    })
}

/// Two chains by the client's address.
fn by_source(name: &str, one: &str, two: &str) -> Result<shunt_tests::xds::Resource> {
    let of = |ip: &str, to: &str| {
        let matching = format!("source_prefix_ranges: [ {{ address_prefix: {ip}, prefix_len: 32 }} ]");
        chain(&matching, &[tcp_proxy(name, &format!("cluster: {to}"))])
    };
    listener(name, &format!("filter_chains: [ {}, {} ]", of("127.0.0.2", one), of("127.0.0.3", two)))
}

#[test]
fn a_changed_chain_cuts_nobody_of_the_others() -> Result<()> {
    lab(|lab| {
        let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
        plane.set_all([
            cluster("one", one.address)?,
            cluster("two", two.address)?,
            by_source("in", "one", "one")?,
        ]);
        let pair = start(lab, &plane, Protocol::Delta)?;
        let from = |proxy: &Proxy, last: u8| -> Result<Client> {
            let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 0, last), 0, proxy.listening("in")?)?;
            client.ask("first")?;
            Ok(client)
        };
        let mut kept = Held::open(&pair, |proxy| from(proxy, 2))?;
        let mut cut = Held::open(&pair, |proxy| from(proxy, 3))?;
        plane.set(by_source("in", "one", "two")?);
        accepted(&plane, &pair)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "a changed chain: new connections", |proxy| {
            eventually("the other cluster", LIMIT, || {
                let answer = from(proxy, 3)?.ask("x")?;
                ensure!(answer == "two x", "{answer}");
                Ok(())
            })?;
            Ok(json!(from(proxy, 2)?.ask("x")?))
        });
        pair.same(&mut cases, "a changed chain: its connections end", |proxy| {
            Ok(json!(cut.end(proxy, LIMIT)?))
        });
        pair.same(&mut cases, "a changed chain: those of the others live on", |proxy| {
            Ok(json!(kept.who(proxy)?))
        });
        pair.same(&mut cases, "a changed chain: how it is counted", |proxy| counts(proxy, LISTENER_STATS));
        cases.finish()
    })
}

#[test]
fn what_is_removed() -> Result<()> {
    lab(|lab| {
        let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
        plane.set_all([
            cluster("one", one.address)?,
            cluster("gone", two.address)?,
            eds_cluster("eds", "")?,
            endpoints("eds", &[one.address])?,
            relay("goes", "one")?,
            relay("stays", "gone")?,
            relay("endpoints", "eds")?,
        ]);
        let pair = start(lab, &plane, Protocol::Delta)?;
        let mut goes = Held::through(&pair, "goes")?;
        let mut stays = Held::through(&pair, "stays")?;
        let mut endpoint = Held::through(&pair, "endpoints")?;
        let ports: Vec<SocketAddr> =
            pair.both().iter().map(|proxy| proxy.listening("goes")).collect::<Result<_>>()?;
        let port = |proxy: &Proxy| ports[usize::from(proxy.kind == shunt_tests::Kind::Shunt)];
        plane.set(endpoints("eds", &[two.address])?);
        plane.remove(Type::Listener, "goes");
        plane.remove(Type::Cluster, "gone");
        accepted(&plane, &pair)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "a listener that goes: its connections", |proxy| {
            Ok(json!(goes.end(proxy, LIMIT)?))
        });
        pair.same(&mut cases, "a listener that goes: its port", |proxy| {
            eventually("a closed port", LIMIT, || {
                let who = who_at(port(proxy))?;
                ensure!(who == "refused", "{who}");
                Ok(json!(who))
            })
        });
        pair.same(&mut cases, "a cluster that goes: its connections", |proxy| Ok(json!(stays.who(proxy)?)));
        pair.same(&mut cases, "a cluster that goes: new connections", |proxy| {
            let stats = ["cluster_manager.cluster_removed", "tcp.stays.downstream_cx_no_route"];
            Ok(json!([who(proxy, "stays")?, counts(proxy, &stats)?]))
        });
        pair.same(&mut cases, "an endpoint that goes: its connections", |proxy| {
            answers(proxy, "endpoints", "two")?;
            Ok(json!(endpoint.who(proxy)?))
        });
        // It comes again.
        plane.set(cluster("gone", one.address)?);
        plane.set(relay("goes", "one")?);
        pair.same(&mut cases, "they come again", |proxy| {
            answers(proxy, "stays", "one")?;
            answers(proxy, "goes", "one")?;
            Ok(json!(true))
        });
        cases.finish()
    })
}

#[test]
fn an_update_that_is_refused_leaves_what_there_was() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            plane.set_all([cluster("up", one.address)?, relay("in", "up")?]);
            let pair = start(lab, &plane, protocol)?;
            let mut held = Held::through(&pair, "in")?;
            accepted(&plane, &pair)?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            // The good one beside it takes effect.
            plane.set_all([bad_listener("in")?, relay("new", "up")?]);
            pair.same(&mut cases, id("half of a set of listeners"), |proxy| {
                let refused = plane.settled(proxy.kind.name())?;
                answers(proxy, "new", "one")?;
                let stats = [
                    "listener_manager.lds.update_rejected",
                    "listener_manager.listener_create_failure",
                    "listener_manager.listener_added",
                ];
                Ok(json!([
                    refused.keys().map(|of| format!("{of:?}")).collect::<Vec<_>>(),
                    who(proxy, "in")?,
                    held.who(proxy)?,
                    counts(proxy, &stats)?
                ]))
            });
            plane.set(relay("in", "up")?);
            pair.same(&mut cases, id("made good again"), |proxy| {
                plane.accepted(proxy.kind.name())?;
                Ok(json!([held.who(proxy)?, counts(proxy, &["listener_manager.listener_modified"])?]))
            });
            let bad = cluster_with("up", "type: EDS")?;
            plane.set_all([bad, cluster("other", two.address)?, relay("other", "other")?]);
            pair.same(&mut cases, id("half of a set of clusters"), |proxy| {
                answers(proxy, "other", "two")?;
                let refused = plane.settled(proxy.kind.name())?;
                let stats = ["cluster_manager.cds.update_rejected", "cluster_manager.active_clusters"];
                Ok(json!([
                    refused.keys().map(|of| format!("{of:?}")).collect::<Vec<_>>(),
                    who(proxy, "in")?,
                    held.who(proxy)?,
                    counts(proxy, &stats)?
                ]))
            });
            for proxy in pair.both() {
                let name = proxy.kind.name();
                cases.case(id(&format!("the reason names the resource, {name}")), || {
                    let refused = plane.settled(name)?;
                    let why = refused.get(&Type::Cluster).map_or("", String::as_str);
                    ensure!(why.contains("up"), "{why:?}");
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn a_listener_that_moves_to_another_address() -> Result<()> {
    lab(|lab| {
        let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        let chains = format!("filter_chains: [ {} ]", chain("", &[tcp_proxy("in", "cluster: one")]));
        plane.set_all([cluster("one", one.address)?, listener("in", &chains)?]);
        let pair = start(lab, &plane, Protocol::Sotw)?;
        let mut held = Held::through(&pair, "in")?;
        let before: Vec<SocketAddr> =
            pair.both().iter().map(|proxy| proxy.listening("in")).collect::<Result<_>>()?;
        plane.set(listener_at("in", ([127, 0, 0, 5], 0).into(), &chains)?);
        accepted(&plane, &pair)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "a listener that moves: the new address", |proxy| {
            eventually("the new address", LIMIT, || {
                let at = proxy.listening("in")?;
                ensure!(at.ip().to_string() == "127.0.0.5", "it is at {at}");
                ensure!(who_at(at)? == "one", "nobody answers");
                Ok(json!(true))
            })
        });
        pair.same(&mut cases, "a listener that moves: the old connection", |proxy| {
            Ok(json!(held.end(proxy, LIMIT)?))
        });
        pair.same(&mut cases, "a listener that moves: the old address", |proxy| {
            let old = before[usize::from(proxy.kind == shunt_tests::Kind::Shunt)];
            eventually("a closed port", LIMIT, || {
                let who = who_at(old)?;
                ensure!(who == "refused", "{who}");
                Ok(json!(who))
            })
        });
        cases.finish()
    })
}

/// The last chain of an outbound listener: whatever is not known.
fn unknown(cluster: &str) -> Result<shunt_tests::xds::Resource> {
    let chain = chain("", &[tcp_proxy(cluster, &format!("cluster: {cluster}"))]);
    let filters = format!("listener_filters: [ {} ]", proxy_protocol(""));
    listener("virtualOutbound", &format!("{filters}, filter_chains: [ {chain} ]"))
}

#[test]
fn registry_only_and_allow_any_flip() -> Result<()> {
    lab(|lab| {
        let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        plane.set_all([
            cluster_with("PassthroughCluster", "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED")?,
            cluster_with("BlackHoleCluster", "type: STATIC")?,
            unknown("PassthroughCluster")?,
        ]);
        let pair = start(lab, &plane, Protocol::Delta)?;
        let header = format!("PROXY TCP4 127.0.0.9 127.0.0.1 4000 {}\r\n", one.address.port());
        let reach = |proxy: &Proxy| -> Result<String> {
            let mut client = Client::connect(proxy.listening("virtualOutbound")?)?;
            let _ = client.send(&header);
            Ok(client.ask("x").unwrap_or_else(|_| "closed".to_owned()))
        };
        let mut held = Held::open(&pair, |proxy| {
            let mut client = Client::connect(proxy.listening("virtualOutbound")?)?;
            client.send(&header)?;
            client.ask("first")?;
            Ok(client)
        })?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "ALLOW_ANY", |proxy| Ok(json!(reach(proxy)?)));
        for (mode, cluster, wanted) in [
            ("REGISTRY_ONLY", "BlackHoleCluster", "closed"),
            ("ALLOW_ANY again", "PassthroughCluster", "one x"),
        ] {
            plane.set(unknown(cluster)?);
            accepted(&plane, &pair)?;
            pair.same(&mut cases, mode, |proxy| {
                eventually(mode, LIMIT, || {
                    let found = reach(proxy)?;
                    ensure!(found == wanted, "{found}");
                    Ok(json!([found, counts(proxy, &["cluster.BlackHoleCluster.upstream_cx_none_healthy"])?]))
                })
            });
        }
        pair.same(&mut cases, "a connection from before the flips", |proxy| {
            Ok(json!(held.end(proxy, Duration::from_secs(4))?))
        });
        cases.finish()
    })
}
