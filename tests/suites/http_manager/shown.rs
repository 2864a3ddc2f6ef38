//! What the admin API shows of routes that connection managers bring with them.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{Cases, Pair, Proxy, lab};

use super::{backend, config};

fn routes(proxy: &Proxy, query: &str) -> Result<Value> {
    let dump = proxy.admin().json(&format!("/config_dump{query}"))?;
    let of_type = "type.googleapis.com/envoy.admin.v3.RoutesConfigDump";
    let sections = dump["configs"].as_array().context("no sections")?;
    let section = sections.iter().find(|section| section["@type"] == of_type).context("no routes")?;
    let mut routes = section["static_route_configs"].as_array().context("no static routes")?.clone();
    for route in &mut routes {
        let updated = route.as_object_mut().and_then(|route| route.remove("last_updated"));
        ensure!(updated.is_some(), "{route}");
    }
    // Envoy's order is that of its memory.
    routes.sort_by_key(Value::to_string);
    Ok(json!(routes))
}

#[test]
fn inline_routes_are_in_the_dump() -> Result<()> {
    lab(|lab| {
        let managers = [("one", String::new()), ("two", "server_name: two".to_owned())];
        let pair = Pair::start(lab, &config(&managers, backend::start()?))?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "http-shown-routes", |proxy| routes(proxy, ""));
        pair.same(&mut cases, "http-shown-routes-alone", |proxy| {
            let dump =
                proxy.admin().json("/config_dump?resource=static_route_configs&mask=route_config.name")?;
            Ok(json!(dump["configs"].as_array().map(Vec::len)))
        });
        cases.finish()
    })
}
