//! WebSocket by Python's `websockets`, through an upgrade of HTTP/1.1 and through one of HTTP/2 (RFC 8441).

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Pair, Proxy, lab};

use super::rig::{Keys, alike, fields, listeners, manager, route, script, server};

const SCRIPT: &str = "ws_peer.py";

fn client(lab: &Lab, url: String, keys: Option<&Keys<'_>>, more: &[&str]) -> Result<Value> {
    let mut spawn = script(lab, SCRIPT)?.args(["client", &url]);
    if let Some(keys) = keys {
        let [cert, key, ca] = keys.files(&keys.client);
        spawn = spawn.args([ca, cert, key]);
    }
    spawn.args(more).json()
}

#[test]
fn talks_through_an_upgrade() -> Result<()> {
    lab(|lab| {
        let keys = Keys::make(lab)?;
        let (_server, up) = server(lab, SCRIPT, &[])?;
        let direct = client(lab, format!("ws://{up}"), None, &[]).context("without a proxy")?;
        ensure!(direct["talk"]["big"] == true && direct["talk"]["at once"] == 30, "{direct}");
        let routes = [
            route("/ws", "route: { cluster: up, upgrade_configs: [ { upgrade_type: websocket } ] }"),
            route("/", "route: { cluster: up }"),
        ];
        let bootstrap = Bootstrap::new().static_cluster("up", &[up], &fields(false, None));
        let pair = Pair::start(lab, &listeners(bootstrap, &manager(&routes, ""), &keys).yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "websockets: plain", |proxy| {
            let found = client(lab, format!("ws://{}", proxy.at("plain")?), None, &["--refused"])?;
            alike(&direct["talk"], &found["talk"])?;
            proxy.expect_stat("http.ing.downstream_cx_upgrades_active", 0)?;
            let total = proxy.stat("http.ing.downstream_cx_upgrades_total")?;
            Ok(json!([found["refused"], total]))
        });
        pair.same(&mut cases, "websockets: mTLS", |proxy| {
            let found = client(lab, format!("wss://{}", proxy.at("mtls")?), Some(&keys), &[])?;
            alike(&direct["talk"], &found["talk"])?;
            Ok(json!(true))
        });
        cases.finish()
    })
}

const H2: &str = "ws_h2_peer.py";
const ALLOWED: &str = "http2_protocol_options: { allow_connect: true }";

/// What is upgraded, to a cluster.
fn upgraded(to: &str) -> [String; 2] {
    let upgrade = "upgrade_configs: [ { upgrade_type: websocket } ]";
    [
        route("/ws", &format!("route: {{ cluster: {to}, {upgrade} }}")),
        route("/", &format!("route: {{ cluster: {to} }}")),
    ]
}

#[test]
fn talks_over_http2() -> Result<()> {
    lab(|lab| {
        let keys = Keys::make(lab)?;
        let (_server, up) = server(lab, SCRIPT, &[])?;
        let bootstrap = Bootstrap::new().static_cluster("up", &[up], &fields(false, None));
        let end = listeners(bootstrap, &manager(&upgraded("up"), ALLOWED), &keys).yaml();
        let pair = Pair::start(lab, &end)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "websockets: of a client of HTTP/2", |proxy| {
            let found = script(lab, H2)?.arg(proxy.at("plain")?.to_string()).json()?;
            ensure!(found["talk"]["big"] == true && found["talk"]["at once"] == 20, "{found}");
            proxy.expect_stat("http.ing.downstream_cx_upgrades_active", 0)?;
            Ok(found)
        });
        // The client's upgrade is of HTTP/1.1, that between both proxies of HTTP/2.
        let direct = client(lab, format!("ws://{up}"), None, &[]).context("without a proxy")?;
        for (end, start) in
            [(&pair.shunt, Kind::Shunt), (&pair.shunt, Kind::Envoy), (&pair.envoy, Kind::Shunt)]
        {
            cases.case(format_args!("websockets: {} to {}", start.name(), end.kind.name()), || {
                let http2 = fields(true, None).replace("http2_protocol_options: {}", ALLOWED);
                let config = Bootstrap::new().static_cluster("end", &[end.at("plain")?], &http2);
                let config = listeners(config, &manager(&upgraded("end"), ""), &keys).yaml();
                let proxy = Proxy::start(lab, start, &config)?;
                let found = client(lab, format!("ws://{}", proxy.at("plain")?), None, &[])?;
                alike(&direct["talk"], &found["talk"])?;
                ensure!(proxy.stat("cluster.end.upstream_cx_http2_total")? > 0, "it was not by HTTP/2");
                Ok(())
            });
        }
        cases.finish()
    })
}
