//! The tables of configurations in proxy-config say what the real Envoy makes of each: here it is asked.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{Cases, Kind, Lab, lab, pki::Pki};

/// Of transport sockets, where `CERT` and `KEY` stand for a certificate and its key in PEM.
const TRANSPORT_SOCKETS: &str = include_str!("../../proxy-config/src/lower/transport/cases.json");

/// Of sources of dynamic resources, as whole bootstraps.
const SOURCES: &str = include_str!("../../proxy-config/src/lower/config_source/cases.json");

/// What Envoy does with a configuration, in the words of the tables.
fn verdict(lab: &Lab, config: &Value) -> Result<(&'static str, String)> {
    let out = Kind::Envoy.output(lab, &config.to_string(), &["--mode", "validate", "-l", "error"])?;
    let verdict = match out.code() {
        0 => "accepts",
        1 => "refuses",
        _ => "crashes",
    };
    Ok((verdict, out.stderr))
}

/// A bootstrap with the sockets of some cases, each in a cluster or a listener of its own.
fn bootstrap<'c>(cases: impl IntoIterator<Item = &'c Value>) -> Value {
    let (mut listeners, mut clusters, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
    for (index, case) in cases.into_iter().enumerate() {
        let name = format!("of case {index}");
        if case["side"] == "downstream" {
            let echo = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo";
            listeners.push(json!({
                "name": name,
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                "filter_chains": [{
                    "filters": [{"name": "echo", "typed_config": {"@type": echo}}],
                    "transport_socket": case["socket"],
                }],
            }));
        } else {
            clusters.push(json!({"name": name, "transport_socket": case["socket"]}));
        }
        secrets.extend(case["secrets"].as_array().into_iter().flatten().cloned());
    }
    json!({
        "node": {"id": "n", "cluster": "c"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters, "secrets": secrets},
    })
}

/// Puts the certificate and the key where the tables have their names.
fn filled(value: &Value, certificate: &str, key: &str) -> Value {
    let inside = |value: &Value| filled(value, certificate, key);
    match value {
        Value::String(text) if text == "CERT" => certificate.into(),
        Value::String(text) if text == "KEY" => key.into(),
        Value::Array(list) => list.iter().map(inside).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), inside(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[test]
fn envoy_does_what_the_table_of_transport_sockets_says() -> Result<()> {
    lab(|lab| {
        let ca = Pki::new(lab)?.root("x")?;
        let key = std::fs::read_to_string(ca.key_file())?;
        let table: Value = serde_json::from_str(TRANSPORT_SOCKETS)?;
        let table: Vec<Value> =
            table.as_array().context("no list")?.iter().map(|case| filled(case, ca.pem(), &key)).collect();
        // What is accepted is accepted together, which saves some hundred starts; secrets have names that clash.
        let together: Vec<_> =
            table.iter().filter(|case| case["envoy"] == "accepts" && case["secrets"].is_null()).collect();
        let (all, _) = verdict(lab, &bootstrap(together.iter().copied()))?;
        let mut cases = Cases::new();
        for case in &table {
            if all == "accepts" && together.iter().any(|other| std::ptr::eq(*other, case)) {
                continue;
            }
            cases.case(&case["name"], || {
                let (found, why) = verdict(lab, &bootstrap([case]))?;
                ensure!(case["envoy"] == found, "Envoy {found} it: {why:.600}");
                Ok(())
            });
        }
        ensure!(together.len() > 100, "the table has few that Envoy accepts: {}", together.len());
        cases.finish()
    })
}

#[test]
fn envoy_does_what_the_table_of_config_sources_says() -> Result<()> {
    lab(|lab| {
        let table: Value = serde_json::from_str(SOURCES)?;
        let mut cases = Cases::new();
        for case in table.as_array().context("no list")? {
            cases.case(&case["name"], || {
                let (found, why) = verdict(lab, &case["bootstrap"])?;
                ensure!(case["envoy"] == found, "Envoy {found} it: {why:.600}");
                Ok(())
            });
        }
        cases.finish()
    })
}
