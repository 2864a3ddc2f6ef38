//! WebSocket by Python's `websockets`, through an upgrade of HTTP/1.1.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{Bootstrap, Cases, Lab, Pair, lab};

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
