//! In which order things are asked for and put to use: nothing serves before what it needs is there, and what served
//! before serves until then.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::proxy::Start;
use shunt_tests::xds::Type;
use shunt_tests::{Cases, ControlPlane, Kind, Lab, Pair, Place, Proxy, Upstream, eventually, lab};

use crate::xds_common::{
    LIMIT, Protocol, ads, answers, cluster, cluster_with, eds_cluster, endpoints, relay, who,
};

/// Both, without waiting until they are ready.
fn start(lab: &Lab, config: &str) -> Result<Pair> {
    let start = |kind| Proxy::start_unready(lab, &Start { kind, config, args: &[], place: Place::default() });
    Ok(Pair { envoy: start(Kind::Envoy)?, shunt: start(Kind::Shunt)? })
}

/// When each type was asked for first.
fn order(plane: &ControlPlane, node: &str) -> Vec<String> {
    let mut seen = Vec::new();
    for request in plane.requests(node) {
        let of = request.type_url.rsplit('.').next().unwrap_or_default().to_owned();
        if !seen.contains(&of) {
            seen.push(of);
        }
    }
    seen
}

#[test]
fn clusters_then_endpoints_then_listeners() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
            plane.set_all([
                eds_cluster("service", "")?,
                endpoints("service", &[one.address])?,
                relay("in", "service")?,
            ]);
            plane.hold(Type::Endpoints);
            let mut pair = start(lab, &ads(&plane, protocol).yaml())?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            pair.same(&mut cases, id("while endpoints are awaited at the start"), |proxy| {
                let node = proxy.kind.name();
                plane.request(node, "for endpoints", 0, |request| request.is(Type::Endpoints))?;
                std::thread::sleep(std::time::Duration::from_millis(200));
                let listeners: Vec<String> = proxy.addresses()?.into_keys().collect();
                let ready = proxy.admin().get("/ready")?.status;
                Ok(json!([
                    ready,
                    listeners,
                    order(&plane, node),
                    proxy.stat("cluster_manager.warming_clusters")?
                ]))
            });
            pair.same(&mut cases, id("what the start waits for"), |proxy| {
                // Envoy shows what listeners wait for, with a mask and without.
                let dump = proxy.admin().json("/init_dump?mask=listener")?;
                let mut waits: BTreeMap<String, Value> = BTreeMap::new();
                for one in dump["unready_targets_dumps"].as_array().into_iter().flatten() {
                    waits.insert(
                        one["name"].as_str().unwrap_or_default().to_owned(),
                        one["target_names"].clone(),
                    );
                }
                Ok(json!(waits))
            });
            let dump = pair.shunt.admin().json("/init_dump")?;
            let cluster = dump["unready_targets_dumps"].as_array().into_iter().flatten();
            let mut cluster = cluster.filter(|one| one["target_names"] == json!(["target endpoints"]));
            ensure!(cluster.next().is_some(), "clusters wait for endpoints: {dump}");
            plane.release(Type::Endpoints);
            for proxy in [&mut pair.envoy, &mut pair.shunt] {
                proxy.wait_ready()?;
            }
            pair.same(&mut cases, id("once endpoints have come"), |proxy| {
                answers(proxy, "in", "one")?;
                Ok(json!(order(&plane, proxy.kind.name())))
            });
            pair.same(&mut cases, id("texts of /stats"), |proxy| {
                let all = proxy.admin().ok("/stats?type=TextReadouts")?;
                let used = proxy.admin().ok("/stats?type=TextReadouts&usedonly")?;
                let json = proxy.admin().json("/stats?type=TextReadouts&format=json")?;
                Ok(json!([all, used, json, proxy.admin().ok("/stats/prometheus?type=TextReadouts")?]))
            });
        }
        cases.finish()
    })
}

#[test]
fn nothing_comes_within_the_time_that_is_waited() -> Result<()> {
    lab(|lab| {
        let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        for of in [Type::Cluster, Type::Listener] {
            plane.hold(of);
        }
        let source = "{ ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.5s }";
        let api = Protocol::Delta.api();
        let config = crate::xds_common::named()
            .top(&format!(
                "dynamic_resources: {{ ads_config: {api}, lds_config: {source}, cds_config: {source} }}"
            ))
            .cluster("xds", &plane.cluster())
            .static_cluster("own", &[one.address], "")
            .relay("own", "own");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "initial_fetch_timeout passes", |proxy| {
            let stats = proxy.stats()?;
            let counted =
                ["cluster_manager.cds.init_fetch_timeout", "listener_manager.lds.init_fetch_timeout"];
            Ok(json!([who(proxy, "own")?, counted.map(|name| stats.of(name))]))
        });
        plane.set_all([cluster("late", one.address)?, relay("late", "late")?]);
        for of in [Type::Cluster, Type::Listener] {
            plane.release(of);
        }
        pair.same(&mut cases, "it comes later", |proxy| {
            answers(proxy, "late", "one")?;
            Ok(json!(true))
        });
        cases.finish()
    })
}

#[test]
fn a_changed_cluster_serves_as_before_until_it_is_warm() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            plane.set_all([
                eds_cluster("service", "")?,
                endpoints("service", &[one.address])?,
                relay("in", "service")?,
            ]);
            let pair = Pair::start(lab, &ads(&plane, protocol).yaml())?;
            for proxy in pair.both() {
                answers(proxy, "in", "one")?;
                plane.accepted(proxy.kind.name())?;
            }
            plane.hold(Type::Endpoints);
            plane.set(endpoints("next", &[two.address])?);
            let renamed = "type: EDS, lb_policy: RANDOM, eds_cluster_config: { service_name: next, eds_config: { ads: {}, resource_api_version: V3 } }";
            plane.set(cluster_with("service", renamed)?);
            let id = |what: &str| format!("{}: {what}", protocol.name());
            pair.same(&mut cases, id("a changed cluster warms"), |proxy| {
                let node = proxy.kind.name();
                plane.request(node, "for the new endpoints", 0, |request| {
                    request.is(Type::Endpoints) && request.names.contains(&"next".to_owned())
                })?;
                proxy.expect_stat("cluster_manager.warming_clusters", 1)?;
                Ok(json!([who(proxy, "in")?, proxy.stat("cluster_manager.active_clusters")?]))
            });
            plane.release(Type::Endpoints);
            pair.same(&mut cases, id("a changed cluster is warm"), |proxy| {
                answers(proxy, "in", "two")?;
                proxy.expect_stat("cluster_manager.warming_clusters", 0)?;
                eventually("what it asks for at last", LIMIT, || {
                    let all = plane.requests(proxy.kind.name());
                    let mut names: Vec<String> = Vec::new();
                    for request in all.into_iter().filter(|request| request.is(Type::Endpoints)) {
                        if protocol == Protocol::Sotw {
                            names = request.names;
                        } else {
                            names.extend(request.names);
                            names.retain(|name| !request.unsubscribe.contains(name));
                        }
                    }
                    ensure!(names == ["next"], "{names:?}");
                    Ok(json!(names))
                })
            });
        }
        cases.finish()
    })
}

#[test]
fn a_changed_cluster_of_the_same_endpoints() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
            // Envoy waits so long for an answer that a server does not owe.
            let eds = "eds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.5s }";
            let of = |policy: &str| {
                let fields = format!("type: EDS, lb_policy: {policy}, eds_cluster_config: {{ {eds} }}");
                cluster_with("service", &fields)
            };
            plane.set_all([
                of("ROUND_ROBIN")?,
                endpoints("service", &[one.address])?,
                relay("in", "service")?,
            ]);
            let pair = Pair::start(lab, &ads(&plane, protocol).yaml())?;
            for proxy in pair.both() {
                answers(proxy, "in", "one")?;
                plane.accepted(proxy.kind.name())?;
            }
            let marks = Kind::BOTH.map(|kind| plane.mark(kind.name()));
            plane.set(of("RANDOM")?);
            let id = format!("{}: a changed cluster of the same endpoints", protocol.name());
            // Whether a server answers the second question is its own affair: nobody may wait for it for ever.
            pair.same(&mut cases, id, |proxy| {
                let node = proxy.kind.name();
                proxy.expect_stat("cluster_manager.cluster_modified", 1)?;
                answers(proxy, "in", "one")?;
                plane.accepted(node)?;
                let mark = marks[usize::from(proxy.kind == Kind::Shunt)];
                Ok(crate::xds_common::shapes(&plane, node, mark))
            });
        }
        cases.finish()
    })
}
