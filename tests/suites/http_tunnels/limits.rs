//! What ends tunnels, or keeps them from beginning: times and breakers, both proxies alike.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, extension, tcp_proxy};
use shunt_tests::wait::until;
use shunt_tests::{Bootstrap, Cases, Client, Kind, Pair, Proxy, Upstream, lab};

use super::rig::{Rig, Way, ends, fields, line, mark, opens, protocol_options};

#[test]
fn times() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let mut cases = Cases::new();
        for (what, limit, stat) in [
            ("idle", "idle_timeout: 1s", "idle_timeout"),
            (
                "the longest duration",
                "max_downstream_connection_duration: 1s",
                "max_downstream_connection_duration",
            ),
        ] {
            let rig = Rig::start(lab, up.address, "end", limit)?;
            for way in Way::SHARED {
                rig.same(&mut cases, way, what, |ends| {
                    let (name, start) = (way.name(), Instant::now());
                    let own = format!("{name}.log");
                    let before = mark(ends.start, &own);
                    let stats = ends.start.stats()?;
                    let mut client = Client::connect(ends.at(way)?)?;
                    client.ask("hello")?;
                    let (_, end) = client.end()?;
                    let after = start.elapsed();
                    ensure!((950..6_000).contains(&after.as_millis()), "after {after:?}");
                    let line = line(ends.start, &own, before)?;
                    let stat = format!("tcp.{name}.{stat}");
                    let more = ends.start.stats()?.since(&stats, &[&stat]);
                    Ok(json!([end.to_string(), fields(&line)[0], more]))
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn breakers() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let end = Proxy::start(lab, Kind::Shunt, &ends(up.address, ""))?;
        let mut cases = Cases::new();
        for (what, limits) in [
            ("one request", "max_requests: 1"),
            ("one connection", "max_connections: 1"),
            ("one connection, nobody waits", "max_connections: 1, max_pending_requests: 0"),
        ] {
            let breakers = format!("circuit_breakers: {{ thresholds: [ {{ {limits} }} ] }}");
            let config = opens(end.at("end")?, "", "", &breakers);
            let pair = Pair::start(lab, &config)?;
            for way in Way::SHARED {
                pair.same(&mut cases, format_args!("tunnels, {}, {what}", way.name()), |proxy| {
                    let own = format!("{}.log", way.name());
                    let stats = proxy.stats()?;
                    let mut first = Client::connect(proxy.at(way.name())?)?;
                    let opened = first.ask("hello").is_ok();
                    let (said, _) =
                        Client::connect(proxy.at(way.name())?)?.end_within(Duration::from_secs(3))?;
                    ensure!(said.is_empty(), "{said:?}");
                    let refused = fields(&line(proxy, &own, 0)?);
                    let overflow = format!("cluster.{}.upstream_cx_overflow", way.name());
                    let all = proxy.stats()?.since(&stats, &[&overflow]);
                    Ok(json!([opened, refused[0], all]))
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn gatekeepers_are_asked_before_a_byte_goes_through() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let end = Proxy::start(lab, Kind::Shunt, &ends(up.address, ""))?;
        let rbac = extension(
            "envoy.filters.network.rbac",
            "envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix: gate, rules: { action: DENY, policies: { all: { permissions: [ { any: true } ], \
             principals: [ { any: true } ] } } }",
        );
        let tunnel = tcp_proxy("gate", "cluster: next, tunneling_config: { hostname: \"a.example:443\" }");
        let config = Bootstrap::new()
            .static_cluster("next", &[end.at("end")?], &protocol_options("http2_protocol_options"))
            .listener("gate", &format!("filter_chains: [ {} ]", chain("", &[rbac, tunnel])));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "tunnels: a gatekeeper refuses", |proxy| {
            // The gatekeeper is asked about the first bytes; a tunnel that is not there yet when it
            // refuses never gets to the upstream in Envoy.
            let (seen, before) = (up.mark(), up.accepted());
            let mut client = Client::connect(proxy.at("gate")?)?;
            until("a tunnel", Duration::from_secs(10), || Ok((up.accepted() > before).then_some(())))?;
            client.send("hello\n")?;
            let (said, _) = client.end()?;
            ensure!(said.is_empty(), "{said:?}");
            proxy.expect_stat("gate.rbac.denied", 1)?;
            Ok(json!(up.ended(seen)?.bytes))
        });
        cases.finish()
    })
}
