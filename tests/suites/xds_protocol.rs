//! What a control plane receives: the same from both proxies, in both protocols.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::xds::{Push, Resource, Type};
use shunt_tests::{Cases, ControlPlane, Kind, Lab, Pair, Proxy, Upstream, deviations, eventually, lab};

use crate::xds_common::{
    LIMIT, Protocol, ads, answers, bad_listener, cluster, eds_cluster, endpoints, relay, separate, shapes,
    speaker, who,
};

/// A control plane and both proxies on it, with a service behind a listener of each.
struct World {
    plane: ControlPlane,
    one: Upstream,
    two: Upstream,
}

impl World {
    fn new() -> Result<Self> {
        let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
        plane.set_all([
            eds_cluster("service", "")?,
            endpoints("service", &[one.address])?,
            relay("in", "service")?,
        ]);
        Ok(Self { plane, one, two })
    }

    fn pair(&self, lab: &Lab, protocol: Protocol) -> Result<Pair> {
        let pair = Pair::start(lab, &ads(&self.plane, protocol).yaml())?;
        for proxy in pair.both() {
            answers(proxy, "in", "one")?;
            self.plane.accepted(proxy.kind.name())?;
        }
        Ok(pair)
    }

    /// What each of them asked while something was done: the same.
    fn asked(
        &self,
        cases: &mut Cases,
        pair: &Pair,
        id: &str,
        mut step: impl FnMut(&ControlPlane) -> Result<()>,
        mut done: impl FnMut(&Proxy) -> Result<()>,
    ) {
        let marks = pair.both().map(|proxy| self.plane.mark(proxy.kind.name()));
        cases.case(id, || {
            step(&self.plane)?;
            let mut observed = Vec::new();
            for (proxy, mark) in pair.both().into_iter().zip(marks) {
                done(proxy).with_context(|| proxy.kind.name())?;
                self.plane.settled(proxy.kind.name())?;
                observed.push(shapes(&self.plane, proxy.kind.name(), mark));
            }
            deviations::check(id, &observed[0], &observed[1])
        });
    }
}

fn settled(plane: &ControlPlane) -> Result<()> {
    Kind::BOTH.iter().try_for_each(|kind| plane.settled(kind.name()).map(drop))
}

/// A life of updates; the requests of every step.
fn life(protocol: Protocol) -> Result<()> {
    lab(|lab| {
        let world = World::new()?;
        let pair = world.pair(lab, protocol)?;
        let mut cases = Cases::new();
        let id = |what: &str| format!("{}: {what}", protocol.name());
        let (one, two) = (world.one.address, world.two.address);
        world.asked(&mut cases, &pair, &id("the start"), |_| Ok(()), |_| Ok(()));
        let all = |proxy: &Proxy| Ok(shapes(&world.plane, proxy.kind.name(), 0));
        pair.same(&mut cases, id("all requests of the start"), all);
        world.asked(
            &mut cases,
            &pair,
            &id("endpoints that change"),
            |plane| {
                plane.set(endpoints("service", &[two])?);
                Ok(())
            },
            |proxy| answers(proxy, "in", "two"),
        );
        world.asked(
            &mut cases,
            &pair,
            &id("a cluster that comes"),
            |plane| {
                // Answers to be told before the next question: what crosses on the wire differs from run to run.
                plane.set(endpoints("more", &[one])?);
                settled(plane)?;
                plane.set_all([eds_cluster("more", "")?, relay("in2", "more")?]);
                Ok(())
            },
            |proxy| answers(proxy, "in2", "one"),
        );
        world.asked(
            &mut cases,
            &pair,
            &id("a listener that is refused"),
            |plane| {
                plane.set(bad_listener("in3")?);
                Ok(())
            },
            |proxy| {
                let refused = world.plane.settled(proxy.kind.name())?;
                let why = refused.get(&Type::Listener).context("it was not refused")?;
                ensure!(why.contains("in3"), "the reason does not name it: {why}");
                answers(proxy, "in", "two")
            },
        );
        world.asked(
            &mut cases,
            &pair,
            &id("a listener that is made good"),
            |plane| {
                plane.set(speaker("in3", "hello")?);
                Ok(())
            },
            |proxy| proxy.listening("in3").map(drop),
        );
        world.asked(
            &mut cases,
            &pair,
            &id("a cluster that goes"),
            |plane| {
                plane.remove(Type::Listener, "in2");
                plane.remove(Type::Cluster, "more");
                Ok(())
            },
            |proxy| {
                proxy.expect_stat("cluster_manager.active_clusters", 2)?;
                let node = proxy.kind.name();
                eventually("no more questions for it", LIMIT, || {
                    let mut asked = world.plane.requests(node);
                    asked.retain(|request| request.is(Type::Endpoints));
                    let over = match protocol {
                        Protocol::Sotw => asked.last().is_some_and(|last| last.names == ["service"]),
                        Protocol::Delta => asked.iter().any(|request| request.unsubscribe == ["more"]),
                    };
                    ensure!(over, "{asked:?}");
                    Ok(())
                })?;
                Ok(())
            },
        );
        pair.same(&mut cases, id("who answers at last"), |proxy| {
            let listeners: Vec<String> = proxy.addresses()?.into_keys().collect();
            Ok(json!([listeners, who(proxy, "in")?]))
        });
        pair.same(&mut cases, id("how updates are counted"), |proxy| {
            let stats = proxy.stats()?;
            let of = |name: &str| json!([name, stats.of(name)]);
            Ok(Value::from(UPDATE_STATS.map(of).to_vec()))
        });
        pair.same(&mut cases, id("who a node says it is"), |proxy| {
            let node = world.plane.node(proxy.kind.name())?;
            let said = |key: &str| node.get(key).is_some();
            Ok(json!([node["cluster"], said("user_agent_name"), said("extensions"), said("client_features")]))
        });
        cases.finish()
    })
}

const UPDATE_STATS: [&str; 14] = [
    "cluster_manager.cds.update_success",
    "cluster_manager.cds.update_rejected",
    "cluster_manager.cds.update_failure",
    "listener_manager.lds.update_success",
    "listener_manager.lds.update_rejected",
    "listener_manager.lds.update_failure",
    "cluster.service.update_success",
    "cluster.service.update_rejected",
    "listener_manager.listener_added",
    "listener_manager.listener_modified",
    "listener_manager.listener_removed",
    "cluster_manager.cluster_added",
    "cluster_manager.cluster_removed",
    "control_plane.connected_state",
];

#[test]
fn a_life_of_updates_sotw() -> Result<()> {
    life(Protocol::Sotw)
}

#[test]
fn a_life_of_updates_delta() -> Result<()> {
    life(Protocol::Delta)
}

#[test]
fn separate_streams() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one, two) = (ControlPlane::start()?, Upstream::echo("one")?, Upstream::echo("two")?);
            let source = format!("{{ api_config_source: {}, resource_api_version: V3 }}", protocol.api());
            let eds =
                format!("type: EDS, eds_cluster_config: {{ eds_config: {source}, service_name: apart }}");
            let service = crate::xds_common::cluster_with("service", &eds)?;
            plane.set_all([service, endpoints("apart", &[one.address])?, relay("in", "service")?]);
            let pair = Pair::start(lab, &separate(&plane, protocol).yaml())?;
            let id = |what: &str| format!("{}, separate streams: {what}", protocol.name());
            pair.same(&mut cases, id("the first answer"), |proxy| {
                answers(proxy, "in", "one")?;
                plane.accepted(proxy.kind.name())?;
                // Which stream is opened first is nobody's business.
                let mut shapes = shapes(&plane, proxy.kind.name(), 0);
                strip(&mut shapes, "stream");
                Ok(shapes)
            });
            plane.set(endpoints("apart", &[two.address])?);
            pair.same(&mut cases, id("another endpoint"), |proxy| {
                answers(proxy, "in", "two")?;
                let mut methods: Vec<String> =
                    plane.streams(proxy.kind.name()).into_iter().map(|stream| stream.method).collect();
                methods.sort();
                Ok(json!(methods))
            });
        }
        cases.finish()
    })
}

/// Without a field of all requests.
fn strip(shapes: &mut Value, field: &str) {
    for shape in shapes.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        for request in shape.as_array_mut().into_iter().flatten() {
            request.as_object_mut().and_then(|request| request.remove(field));
        }
    }
}

#[test]
fn odd_responses() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let world = World::new()?;
            let pair = world.pair(lab, protocol)?;
            let id = |what: &str| format!("{}: {what}", protocol.name());
            for of in [Type::Cluster, Type::Endpoints, Type::Listener] {
                world.plane.hold(of);
            }
            let mut pushed = |what: &str, push: Push| {
                let id = id(what);
                pair.same(&mut cases, &id, |proxy| {
                    let node = proxy.kind.name();
                    let mark = world.plane.mark(node);
                    let nonce = world.plane.push(node, &push)?;
                    world.plane.request(node, "an answer", mark, |request| request.nonce == nonce)?;
                    answers(proxy, "in", "one")?;
                    Ok(shapes(&world.plane, node, mark))
                });
            };
            let (cluster_of, listener_of) = (cluster("extra", world.one.address)?, relay("in", "service")?);
            let garbage = Resource::garbage(Type::Cluster, "service", vec![0xff; 40]);
            let good = eds_cluster("service", "")?;
            pushed("a resource that is garbage", Push::new(Type::Cluster).resource(garbage.clone()));
            pushed(
                "garbage beside a good one",
                Push::new(Type::Cluster).resource(good.clone()).resource(garbage),
            );
            let odd = cluster_of.clone().typed("type.googleapis.com/envoy.config.listener.v3.Listener");
            pushed(
                "a listener where a cluster should be",
                Push::new(Type::Cluster).resource(good.clone()).resource(odd),
            );
            pushed(
                "a cluster twice",
                Push::new(Type::Cluster)
                    .resource(good.clone())
                    .resource(cluster_of.clone())
                    .resource(cluster_of.clone()),
            );
            pushed("a listener twice", {
                Push::new(Type::Listener).resource(listener_of.clone()).resource(listener_of.clone())
            });
            pushed("the same version again", {
                Push::new(Type::Cluster).resource(good.clone()).version("same")
            });
            pushed("the same version, the same resources", {
                Push::new(Type::Cluster).resource(good.clone()).version("same")
            });
            pushed("a nonce that was there", Push::new(Type::Cluster).resource(good.clone()).nonce("1"));
            pushed("endpoints of nobody", Push::new(Type::Endpoints).resource(endpoints("nobody", &[])?));
            pushed("no endpoints at all", Push::new(Type::Endpoints));
        }
        cases.finish()
    })
}
