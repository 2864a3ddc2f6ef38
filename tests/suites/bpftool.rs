//! The pinned maps as bpftool prints them: named fields, by their BTF.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::probe::Connect;
use shunt_tests::{Cases, Daemon, Lab, Place, lab};

/// The entries of a map, decoded by bpftool.
fn dump(lab: &Lab, map: &str) -> Result<Vec<Value>> {
    let pin = lab.pins().map(map)?;
    let out =
        lab.program("bpftool", &Place::default())?.args(["-j", "map", "dump", "pinned"]).arg(&pin).run()?;
    let all: Vec<Value> =
        serde_json::from_str(&out.stdout).with_context(|| format!("bpftool printed {}", out.stdout))?;
    all.into_iter()
        .map(|entry| entry.get("formatted").cloned().context("no BTF: no formatted entry"))
        .collect()
}

#[test]
fn bpftool_prints_named_fields() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let _daemon = Daemon::start(lab, &[pod.entry("-o 7777 -x 10.88.0.0/16 --wait-for-proxy=5s")])?;
        Connect::new(pod.place(), server.address(pod.gateway4)).steps("echo:10").run(lab)?;
        let mut cases = Cases::new();
        cases.case("PODS", || {
            let pods = dump(lab, "PODS")?;
            let value = &pods.first().context("no entry")?["value"];
            let is = |key: &str, n: u64| value[key].as_u64() == Some(n);
            let good = is("out_port", 15_001) && is("in_port", 15_006) && is("hold_ms", 5_000);
            ensure!(good && value["proxy_cgroup"].as_u64() > Some(0), "{value}");
            Ok(())
        });
        cases.case("RULES", || {
            let rules = dump(lab, "RULES")?;
            ensure!(rules.iter().any(|rule| rule["key"]["value"] == 7_777), "{rules:?}");
            ensure!(
                rules.iter().all(|rule| rule["key"]["policy"].is_u64() && rule["key"]["kind"].is_u64()),
                "{rules:?}"
            );
            Ok(())
        });
        tables(lab, &mut cases);
        cases.finish()
    })
}

fn tables(lab: &Lab, cases: &mut Cases) {
    cases.case("CIDRS", || {
        let cidrs = dump(lab, "CIDRS")?;
        let text = serde_json::to_string(&cidrs)?;
        // ::ffff:10.88.0.0/112 behind 64 bits of policy and list.
        ensure!(text.contains("\"ip\"") && text.contains("\"list\"") && text.contains("176"), "{text}");
        Ok(())
    });
    cases.case("COUNTERS", || {
        let counters = dump(lab, "COUNTERS")?;
        let sum = |entry: &Value| -> u64 {
            entry["values"].as_array().into_iter().flatten().filter_map(|cpu| cpu["value"].as_u64()).sum()
        };
        ensure!(counters.iter().map(sum).sum::<u64>() > 0, "{counters:?}");
        Ok(())
    });
}
