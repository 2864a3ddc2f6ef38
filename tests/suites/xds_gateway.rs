//! The east-west gateway of the multi-cluster post, by ADS as there: the name in the ClientHello chooses chain and
//! cluster, and the bytes pass untouched.

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, extension, tcp_proxy, tls_inspector};
use shunt_tests::xds::Resource;
use shunt_tests::{
    Cases, ControlPlane, Kind, Pair, Proxy, TlsClient, TlsOptions, TlsServer, eventually, lab,
};

use crate::tls_common::Mesh;
use crate::xds_common::{LIMIT, Protocol, ads, eds_cluster, endpoints, listener};

const SERVICE: &str = "outbound_.5000_._.helloworld.sample.svc.cluster.local";
const ALPN: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// `0.0.0.0_15443` with a chain for each of these services.
fn gateway(services: &[&str]) -> Result<Resource> {
    let of = |service: &&str| {
        let alpn = ALPN.map(|name| format!("{name:?}")).join(", ");
        let matching = format!("server_names: [ {service:?} ], application_protocols: [ {alpn} ]");
        let sni = extension(
            "envoy.filters.network.sni_cluster",
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
            "",
        );
        chain(&matching, &[sni, tcp_proxy(service, &format!("cluster: {service:?}"))])
    };
    let chains = services.iter().map(of).collect::<Vec<_>>().join(", ");
    let fields = format!(
        "filter_chains: [ {chains} ], listener_filters: [ {} ], traffic_direction: OUTBOUND",
        tls_inspector()
    );
    listener("0.0.0.0_15443", &fields)
}

#[test]
fn services_of_the_other_cluster_by_their_names() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let options =
            TlsOptions::new(&mesh.server).clients(mesh.root.file()).alpn(&["istio-peer-exchange", "istio"]);
        let (v1, v2) = (TlsServer::echo("v1", &options)?, TlsServer::echo("v2", &options)?);
        let plane = ControlPlane::start()?;
        let other = "outbound_.9080_._.reviews.sample.svc.cluster.local";
        plane.set_all([eds_cluster(SERVICE, "")?, endpoints(SERVICE, &[v1.address])?, gateway(&[SERVICE])?]);
        let pair = Pair::start(lab, &ads(&plane, Protocol::Delta).yaml())?;
        let client =
            |name: &str, alpn: &[&str]| TlsClient::new().name(name).alpn(alpn).identity(&mesh.client);
        let hello = |proxy: &Proxy, name: &str| -> Result<String> {
            let at = proxy.listening("0.0.0.0_15443")?;
            let mut stream = client(name, &["istio-peer-exchange", "istio"]).connect(at)?;
            let who = stream.ask("hello")?;
            // The service's own certificate: nobody stands between.
            ensure!(stream.agreed()?.chain.first().is_some_and(|leaf| leaf == mesh.server.der()));
            stream.half_close()?;
            Ok(who)
        };
        let mut cases = Cases::new();
        pair.same(&mut cases, "15443: a service by its name", |proxy| {
            let mark = v1.mark();
            let who = hello(proxy, SERVICE)?;
            let seen = v1.ended(mark)?;
            Ok(json!([
                who,
                seen.server_name,
                seen.alpn,
                seen.chain.first() == Some(&mesh.client.der().to_vec())
            ]))
        });
        for (what, name, alpn) in [
            ("a name that no chain has", other, &["istio"][..]),
            ("protocols that are not Istio's", SERVICE, &["h2", "http/1.1"]),
            ("no protocols", SERVICE, &[]),
        ] {
            pair.same(&mut cases, format!("15443: {what}"), |proxy| {
                let end = client(name, alpn).refused(proxy.listening("0.0.0.0_15443")?)?;
                Ok(json!(end.to_string()))
            });
        }
        let mut held = Vec::new();
        for proxy in pair.both() {
            held.push(client(SERVICE, &["istio"]).connect(proxy.listening("0.0.0.0_15443")?)?);
        }
        // Another service comes, and the first one moves.
        plane.set_all([
            endpoints(SERVICE, &[v2.address])?,
            eds_cluster(other, "")?,
            endpoints(other, &[v1.address])?,
        ]);
        plane.set(gateway(&[SERVICE, other])?);
        pair.same(&mut cases, "15443: another service", |proxy| {
            eventually("both services", LIMIT, || {
                ensure!(hello(proxy, SERVICE)? == "v2 hello" && hello(proxy, other)? == "v1 hello");
                Ok(())
            })?;
            let held = &mut held[usize::from(proxy.kind == Kind::Shunt)];
            let counted = proxy.stat("listener_manager.listener_in_place_updated")?;
            Ok(json!([held.ask("still")?, counted]))
        });
        cases.finish()
    })
}
