//! Secrets and extensions from control planes, and control planes behind TLS.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, tcp_proxy};
use shunt_tests::pki::Identity;
use shunt_tests::proxy::Start;
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{
    Bootstrap, Cases, ControlPlane, Kind, Leaf, Pair, Place, Proxy, TlsClient, TlsContext, TlsOptions,
    TlsServer, Upstream, eventually, lab,
};

use crate::tls_common::{CLIENT, Mesh, SERVER, secure};
use crate::xds_common::{
    LIMIT, Protocol, ads, ads_with, answers, cluster, deny, discovered_with, extension, listener, named,
    relay, who,
};

fn certificate(name: &str, identity: &Identity) -> Result<Resource> {
    let inline =
        |path: &std::path::Path| -> Result<_> { Ok(json!({ "inline_string": fs::read_to_string(path)? })) };
    let (chain, key) = (inline(&identity.chain)?, inline(&identity.key)?);
    let value =
        json!({ "name": name, "tls_certificate": { "certificate_chain": chain, "private_key": key } });
    Resource::from_value(Type::Secret, value)
}

fn authority(name: &str, pem: &str) -> Result<Resource> {
    let value = json!({ "name": name, "validation_context": { "trusted_ca": { "inline_string": pem } } });
    Resource::from_value(Type::Secret, value)
}

/// As Istio's sidecars say it.
fn sds(name: &str) -> String {
    let source = "{ api_config_source: { api_type: GRPC, grpc_services: [ { envoy_grpc: { cluster_name: sds-grpc } } ], set_node_on_first_message_only: true, transport_api_version: V3 }, initial_fetch_timeout: 0s, resource_api_version: V3 }";
    format!("{{ name: {name:?}, sds_config: {source} }}")
}

fn by_ads(name: &str) -> String {
    format!("{{ name: {name:?}, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }}")
}

fn context(own: &str, roots: &str) -> TlsContext {
    TlsContext::new()
        .common(&format!("tls_certificate_sds_secret_configs: [ {own} ]"))
        .common(&format!("validation_context_sds_secret_config: {roots}"))
}

/// Who answers a new handshake, and what it says.
fn presented(client: &TlsClient, to: std::net::SocketAddr) -> Result<Vec<u8>> {
    let mut stream = client.connect(to)?;
    ensure!(stream.ask("hello")?.ends_with(" hello"));
    stream.agreed()?.chain.first().cloned().context("no certificate")
}

/// The cluster of Istio's agent.
fn with_agent(config: Bootstrap, plane: &ControlPlane) -> Bootstrap {
    config.cluster("sds-grpc", &plane.cluster())
}

#[test]
fn secrets_of_an_agent_behind_a_socket_of_the_file_system() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let plane = ControlPlane::start_unix(&lab.dir().join("sds.sock"))?;
        let other = mesh.middle.issue("other", &Leaf::spiffe(SERVER).dns("a.example.com"))?;
        plane.set_all([
            certificate("default", &mesh.server)?,
            authority("ROOTCA", mesh.root.pem())?,
            certificate("kubernetes://gateway-credential", &other)?,
            certificate("file-cert:/etc/certs/cert-chain.pem~/etc/certs/key.pem", &other)?,
        ]);
        let backend = TlsServer::echo("up", &TlsOptions::new(&mesh.server).clients(mesh.root.file()))?;
        let upstream = context(&sds("default"), &sds("ROOTCA"));
        let config = named().static_cluster("up", &[backend.address], &upstream.cluster());
        let mutual = context(&sds("default"), &sds("ROOTCA")).require_client();
        let config = secure(config, "first", &mutual, "up");
        let config = secure(config, "second", &mutual, "up");
        let simple = |name: &str| {
            TlsContext::new().common(&format!("tls_certificate_sds_secret_configs: [ {} ]", sds(name)))
        };
        let config = secure(config, "gateway", &simple("kubernetes://gateway-credential"), "up");
        let file = "file-cert:/etc/certs/cert-chain.pem~/etc/certs/key.pem";
        let config = secure(config, "file", &simple(file), "up");
        let pair = Pair::start(lab, &with_agent(config, &plane).yaml())?;
        let client = TlsClient::new().identity(&mesh.client);
        let mut cases = Cases::new();
        pair.same(&mut cases, "secrets of an agent: who is presented", |proxy| {
            let of = |name: &str| -> Result<&str> {
                let leaf = presented(&client, proxy.listening(name)?)?;
                Ok(if leaf == mesh.server.der() { "server" } else { "other" })
            };
            Ok(json!([of("first")?, of("second")?, of("gateway")?, of("file")?]))
        });
        pair.same(&mut cases, "secrets of an agent: a client without a certificate", |proxy| {
            TlsClient::new().refused(proxy.listening("first")?)?;
            Ok(json!(true))
        });
        pair.same(&mut cases, "secrets of an agent: each is asked for once", |proxy| {
            let asked = plane.requests(proxy.kind.name());
            let mut first: Vec<String> = asked
                .iter()
                .filter(|request| request.nonce.is_empty())
                .flat_map(|request| request.names.clone())
                .collect();
            first.sort();
            Ok(json!(first))
        });
        // One update, all users.
        plane.set(certificate("default", &other)?);
        pair.same(&mut cases, "secrets of an agent: one rotation for all who share it", |proxy| {
            for name in ["first", "second"] {
                eventually("the new certificate", LIMIT, || {
                    ensure!(
                        presented(&client, proxy.listening(name)?)? == other.der(),
                        "{name}: the old one"
                    );
                    Ok(())
                })?;
            }
            Ok(json!(proxy.stat("cluster.up.ssl.fail_verify_error")?))
        });
        cases.finish()
    })
}

#[test]
fn secrets_by_ads_rotate_under_live_connections() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
            let tls = context(&by_ads("server"), &by_ads("ROOTCA")).require_client();
            let socket = format!("transport_socket: {}, ", tls.downstream());
            let chain =
                chain("", &[tcp_proxy("in", "cluster: up")]).replacen('{', &format!("{{ {socket}"), 1);
            plane.set_all([
                cluster("up", one.address)?,
                listener("in", &format!("filter_chains: [ {chain} ]"))?,
                certificate("server", &mesh.server)?,
                authority("ROOTCA", mesh.root.pem())?,
            ]);
            let pair = Pair::start(lab, &ads(&plane, protocol).yaml())?;
            let client = TlsClient::new().identity(&mesh.client);
            let id = |what: &str| format!("{}: {what}", protocol.name());
            let mut live = Vec::new();
            for proxy in pair.both() {
                live.push(client.connect(proxy.listening("in")?)?);
            }
            for round in 0..3 {
                let next = mesh.middle.issue(&format!("s{round}"), &Leaf::spiffe(SERVER))?;
                plane.set(certificate("server", &next)?);
                pair.same(&mut cases, id(&format!("rotation {round}")), |proxy| {
                    eventually("the new certificate", LIMIT, || {
                        let leaf = presented(&client, proxy.listening("in")?)?;
                        ensure!(leaf == next.der(), "the old one");
                        Ok(())
                    })?;
                    plane.accepted(proxy.kind.name())?;
                    let live = &mut live[usize::from(proxy.kind == Kind::Shunt)];
                    Ok(json!(live.ask("still here")?))
                });
            }
            // What cannot be used leaves what there was.
            let stranger = mesh.middle.issue("stranger", &Leaf::spiffe(CLIENT))?;
            let mut mixed = certificate("server", &stranger)?.json();
            mixed["tls_certificate"]["private_key"]["inline_string"] =
                json!(fs::read_to_string(&mesh.client.key)?);
            if let Some(all) = mixed.as_object_mut() {
                all.remove("@type");
            }
            plane.set(Resource::from_value(Type::Secret, mixed)?);
            pair.same(&mut cases, id("a key of another certificate"), |proxy| {
                let node = proxy.kind.name();
                let refused = plane.settled(node)?;
                let live = &mut live[usize::from(proxy.kind == Kind::Shunt)];
                let leaf = presented(&client, proxy.listening("in")?)?;
                ensure!(leaf != stranger.der() && live.ask("still")? == "one still");
                Ok(json!(refused.contains_key(&Type::Secret)))
            });
        }
        cases.finish()
    })
}

#[test]
fn a_discovery_address_whose_certificate_is_of_another_name() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let wrong = mesh.middle.issue("wrong", &Leaf::new().dns("istiod-remote.istio-system.svc"))?;
        let right = mesh.middle.issue("right", &Leaf::new().dns("istiod-1-11-4.istio-system.svc"))?;
        let one = Upstream::echo("one")?;
        let options = |identity: &Identity| TlsOptions::new(identity).clients(mesh.root.file());
        let mut plane = ControlPlane::start_tls(&options(&wrong))?;
        plane.set_all([cluster("one", one.address)?, relay("in", "one")?]);
        let tls = TlsContext::new()
            .certificate(&mesh.client)
            .trust(mesh.root.file())
            .san("DNS", "exact: istiod-1-11-4.istio-system.svc")
            .field("sni: istiod-1-11-4.istio-system.svc");
        let retry = "retry_policy: { retry_back_off: { base_interval: 0.1s, max_interval: 0.3s } }";
        let api = format!(
            "{{ api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds, {retry} }} }} ] }}"
        );
        let config = ads_with(&plane, &api, &tls.cluster()).yaml();
        let start = |kind| {
            Proxy::start_unready(lab, &Start { kind, config: &config, args: &[], place: Place::default() })
        };
        let mut pair = Pair { envoy: start(Kind::Envoy)?, shunt: start(Kind::Shunt)? };
        let mut cases = Cases::new();
        for proxy in pair.both() {
            cases.case(format_args!("another name, {}", proxy.kind.name()), || {
                eventually("several attempts", LIMIT, || {
                    let failed = proxy.stat("cluster.xds.ssl.fail_verify_san")?;
                    ensure!(failed >= 2, "{failed} refusals of the name");
                    Ok(())
                })?;
                eventually("a reason in the log", LIMIT, || {
                    let log = proxy.log().to_lowercase();
                    ensure!(log.contains("certificate") && log.contains("san"), "{log}");
                    Ok(())
                })?;
                ensure!(proxy.stat("control_plane.connected_state")? == 0, "it is connected");
                ensure!(plane.streams(proxy.kind.name()).is_empty(), "it has asked");
                Ok(())
            });
        }
        ensure!(!plane.handshakes_failed().is_empty(), "no handshake has failed");
        plane.restart_tls(&options(&right))?;
        for proxy in [&mut pair.envoy, &mut pair.shunt] {
            cases.case(format_args!("the right name, {}", proxy.kind.name()), || {
                proxy.wait_ready()?;
                answers(proxy, "in", "one")
            });
        }
        cases.finish()
    })
}

#[test]
fn network_filters_that_are_discovered() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        let source = "{ ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.5s }";
        for protocol in Protocol::BOTH {
            let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
            let guarded = |name: &str, of: &str, fields: &str| {
                let filters = [discovered_with(of, source, fields), tcp_proxy(name, "cluster: one")];
                listener(name, &format!("filter_chains: [ {} ]", chain("", &filters)))
            };
            let default = format!("default_config: {}", deny(true));
            let at_once = format!("{default}, apply_default_config_without_warming: true");
            plane.set_all([
                cluster("one", one.address)?,
                guarded("in", "acl", "")?,
                guarded("same", "acl", "")?,
                guarded("default", "late", &at_once)?,
                extension("acl", &deny(false))?,
            ]);
            // A delta says at once that there is no such thing, and Envoy then waits for it for ever.
            let mut names = vec!["in", "same", "default"];
            if protocol == Protocol::Sotw {
                names.push("missing");
                plane.set(guarded("missing", "nobody", "")?);
            }
            let pair = Pair::start(lab, &ads(&plane, protocol).yaml())?;
            let id = |what: &str| format!("{}, ECDS: {what}", protocol.name());
            let all = |proxy: &Proxy| -> Result<serde_json::Value> {
                names.iter().map(|name| Ok(json!([name, who(proxy, name)?]))).collect()
            };
            pair.same(&mut cases, id("at first"), all);
            plane.set(extension("acl", &deny(true))?);
            pair.same(&mut cases, id("another configuration"), |proxy| {
                answers(proxy, "in", "closed")?;
                answers(proxy, "same", "closed")?;
                Ok(json!(proxy.stat("listener_manager.listener_modified")?))
            });
            plane.set_all([extension("acl", &deny(false))?, extension("late", &deny(false))?]);
            plane.set(extension("nobody", &deny(false))?);
            pair.same(&mut cases, id("all have come"), |proxy| {
                for name in &names {
                    answers(proxy, name, "one")?;
                }
                all(proxy)
            });
            let other = "{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: x, max_connections: 1 }";
            plane.set(extension("acl", other)?);
            pair.same(&mut cases, id("of a type that was not named"), |proxy| {
                let refused = plane.settled(proxy.kind.name())?;
                Ok(json!([refused.contains_key(&Type::Extension), who(proxy, "in")?]))
            });
        }
        cases.finish()
    })
}
