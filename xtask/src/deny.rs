//! The dependency rules: `cargo deny` where it is installed, and always the bans that hold the layers apart.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, find_program, run};

/// A crate and the only crates that may depend on it directly; `deny.toml` says the same to cargo-deny.
const WRAPPERS: &[(&str, &[&str])] = &[("envoy-types", &["proxy-config"])];

pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let breaches = breaches(&ws.metadata()?, WRAPPERS);
    if !breaches.is_empty() {
        bail!("{}\nfix: go through the wrapper; deny.toml has the reason", breaches.join("\n"));
    }
    if find_program("cargo-deny").is_some() {
        return run(&mut ws.cargo(&["deny", "check"]));
    }
    println!(
        "cargo-deny is not installed (it takes minutes to build), so licences and advisories were not checked;"
    );
    println!("the bans were, from cargo metadata");
    Ok(())
}

fn breaches(metadata: &Value, wrappers: &[(&str, &[&str])]) -> Vec<String> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        for dependency in dependencies.iter().filter_map(|d| d["name"].as_str()) {
            let rule = wrappers.iter().find(|(banned, _)| *banned == dependency);
            if let Some((banned, allowed)) = rule.filter(|(_, allowed)| !allowed.contains(&name)) {
                found.push(format!("{name} depends on {banned}, which only {} may", allowed.join(", ")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wrapper_may_depend() {
        let package =
            |name: &str| serde_json::json!({"name": name, "dependencies": [{"name": "envoy-types"}]});
        let metadata = serde_json::json!({"packages": [package("proxy-config"), package("proxy-userspace")]});
        let found = breaches(&metadata, WRAPPERS);
        assert_eq!(found, ["proxy-userspace depends on envoy-types, which only proxy-config may"]);
    }

    #[test]
    fn cargo_deny_has_the_same_rules() {
        let file = include_str!("../../deny.toml");
        for (banned, allowed) in WRAPPERS {
            let wrappers = allowed.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
            let rule = format!("crate = \"{banned}\", wrappers = [{wrappers}]");
            assert!(file.contains(&rule), "deny.toml lacks {rule}");
        }
    }
}
