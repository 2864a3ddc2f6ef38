//! How a control plane is called: by a cluster of the bootstrap, or by an address of its own, with metadata and a token.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use shunt_tests::{Cases, ControlPlane, Pair, Proxy, Upstream, lab};

use crate::xds_common::{answers, cluster, named, relay};

/// The metadata of the last stream that is of interest.
fn told(plane: &ControlPlane, proxy: &Proxy) -> Result<Value> {
    let stream = plane.streams(proxy.kind.name()).pop().context("no stream")?;
    let mut told: Vec<_> = stream
        .metadata
        .into_iter()
        .filter(|(key, _)| key.starts_with("x-mesh") || key == "authorization")
        .collect();
    told.sort();
    Ok(json!([stream.method, told]))
}

fn config(plane: &ControlPlane, service: &str) -> String {
    let api =
        format!("{{ api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [ {{ {service} }} ] }}");
    let ads = "{ ads: {}, resource_api_version: V3 }";
    named()
        .top(&format!("dynamic_resources: {{ ads_config: {api}, lds_config: {ads}, cds_config: {ads} }}"))
        .cluster("xds", &plane.cluster())
        .yaml()
}

#[test]
fn a_control_plane_is_told_what_the_bootstrap_says() -> Result<()> {
    lab(|lab| {
        let (plane, one) = (ControlPlane::start()?, Upstream::echo("one")?);
        // A token is sent where nobody else can read it.
        let path = lab.dir().join("xds.sock");
        let private = ControlPlane::start_unix(&path)?;
        for plane in [&plane, &private] {
            plane.set_all([cluster("one", one.address)?, relay("in", "one")?]);
        }
        let token = lab.dir().join("istio-token");
        std::fs::write(&token, "a-token")?;
        let metadata =
            "initial_metadata: [ { key: x-mesh, value: mesh1 }, { key: x-mesh-network, value: network1 } ]";
        let target = format!("target_uri: \"{}\", stat_prefix: xds", plane.address()?);
        let by_file = "envoy.grpc_credentials.file_based_metadata";
        let secret = format!(
            "secret_data: {{ filename: {token:?} }}, header_key: authorization, header_prefix: \"Bearer \""
        );
        let plugin = format!(
            "{{ from_plugin: {{ name: {by_file}, typed_config: {{ \"@type\": type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, {secret} }} }} }}"
        );
        let mut cases = Cases::new();
        let by_socket = format!("target_uri: \"unix:{}\", stat_prefix: xds", path.display());
        for (what, service) in [
            ("a cluster", format!("envoy_grpc: {{ cluster_name: xds }}, {metadata}")),
            (
                "a cluster, its authority",
                format!(
                    "envoy_grpc: {{ cluster_name: xds, authority: istiod.istio-system.svc }}, {metadata}"
                ),
            ),
            ("an address", format!("google_grpc: {{ {target} }}, {metadata}")),
        ] {
            let pair = Pair::start(lab, &config(&plane, &service)).context(what)?;
            pair.same(&mut cases, format!("called by {what}"), |proxy| {
                answers(proxy, "in", "one")?;
                told(&plane, proxy)
            });
        }
        // Envoy's own library makes an authority of the path, which no HTTP/2 server of Rust takes.
        let args = "channel_args: { args: { grpc.default_authority: { string_value: istiod } } }";
        let service = format!(
            "google_grpc: {{ {by_socket}, {args}, channel_credentials: {{ local_credentials: {{}} }}, call_credentials: [ {plugin} ], credentials_factory_name: {by_file} }}, {metadata}"
        );
        let pair = Pair::start(lab, &config(&private, &service))?;
        pair.same(&mut cases, "called by a socket, with a token", |proxy| {
            answers(proxy, "in", "one")?;
            told(&private, proxy)
        });
        cases.finish()
    })
}
