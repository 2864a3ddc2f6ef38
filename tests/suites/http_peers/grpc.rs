//! gRPC's own client and server.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Pair, Proxy, lab};

use super::rig::{Keys, alike, fields, listeners, manager, route, script, server};

const SCRIPT: &str = "grpc_peer.py";

fn client(lab: &Lab, to: impl ToString, keys: Option<&Keys<'_>>) -> Result<Value> {
    let mut spawn = script(lab, SCRIPT)?.args(["client".to_owned(), to.to_string()]);
    if let Some(keys) = keys {
        spawn = spawn.args(keys.files(&keys.client));
    }
    spawn.json()
}

#[test]
fn each_kind_of_call() -> Result<()> {
    lab(|lab| {
        let keys = Keys::make(lab)?;
        let (_plain, plain) = server(lab, SCRIPT, &[])?;
        let (_secure, secure) = server(lab, SCRIPT, &keys.files(&keys.server))?;
        let direct = client(lab, plain, None).context("without a proxy")?;
        ensure!(direct["a large message"] == true && direct["a hundred at once"] == 100, "{direct}");
        let config = |cluster: &str| {
            let all = route("/", &format!("route: {{ cluster: {cluster}, timeout: 0s }}"));
            let manager = manager(&[all], "");
            let bootstrap = Bootstrap::new()
                .static_cluster("plain", &[plain], &fields(true, None))
                .static_cluster("secure", &[secure], &fields(true, Some(&keys)));
            listeners(bootstrap, &manager, &keys).yaml()
        };
        let mut cases = Cases::new();
        for (listener, cluster) in [("plain", "plain"), ("mtls", "secure")] {
            let proxy = Proxy::start(lab, Kind::Shunt, &config(cluster))?;
            cases.case(format_args!("{listener} to {cluster}"), || {
                let keys = (listener == "mtls").then_some(&keys);
                alike(&direct, &client(lab, proxy.at(listener)?, keys)?)?;
                // All but those that were given up.
                proxy.expect_stat("http.ing.downstream_rq_active", 0)?;
                proxy.expect_stat(&format!("cluster.{cluster}.upstream_rq_active"), 0)?;
                ensure!(proxy.stat("http.ing.downstream_rq_5xx")? == 0, "5xx");
                ensure!(proxy.stat("http.ing.downstream_cx_http2_total")? == 1, "connections");
                Ok(())
            });
        }
        cases.finish()
    })
}

/// What answers by HTTP alone is a status of gRPC's to the client: the same as behind Envoy.
#[test]
fn statuses_of_http() -> Result<()> {
    lab(|lab| {
        let keys = Keys::make(lab)?;
        let (_server, up) = server(lab, SCRIPT, &[])?;
        let mut routes = vec![
            route("/test.Http/Gone", "route: { cluster: gone }"),
            route("/test.Http/None", "route: { cluster: none }"),
            route("/test.Http/NoCluster", "route: { cluster_header: x-no }"),
        ];
        for status in [400, 401, 403, 404, 429, 500, 502, 503] {
            let answer = format!("direct_response: {{ status: {status}, body: {{ inline_string: why }} }}");
            routes.push(route(&format!("/test.Http/{status}"), &answer));
        }
        routes.push(route("/test.Service", "route: { cluster: up }"));
        let bootstrap = Bootstrap::new()
            .static_cluster("up", &[up], &fields(true, None))
            .static_cluster("gone", &[nobody()?], &fields(true, None))
            .static_cluster("none", &[], &fields(true, None));
        let pair = Pair::start(lab, &listeners(bootstrap, &manager(&routes, ""), &keys).yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "grpcio: statuses of HTTP", |proxy| {
            let mut found =
                script(lab, SCRIPT)?.args(["statuses".to_owned(), proxy.at("plain")?.to_string()]).json()?;
            ensure!(found["503"][0] == "UNAVAILABLE" && found["404"][0] == "UNIMPLEMENTED", "{found}");
            // The text has the reason in the words of the transport.
            let text = found["Gone"][1].as_str().unwrap_or_default();
            let begins = "upstream connect error or disconnect/reset before headers. ";
            ensure!(text.starts_with(begins), "{text}");
            found["Gone"][1] = begins.into();
            Ok(found)
        });
        cases.finish()
    })
}
