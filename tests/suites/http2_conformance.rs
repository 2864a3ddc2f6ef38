//! RFC 9113 and RFC 7541, case by case, asked by a client of other authors' frames and header blocks; and the same of
//! the real Envoy, so that what differs is known.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shunt_tests::{Cases, Kind, Place, Proxy, lab};

use crate::http2_common::{backend, config};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/suites/http2/conformance.py");

/// What Envoy does otherwise, and shunt does not.
const NOT_ENVOY: &[&str] = &[
    // It ignores these frames.
    "5.1: closed by our reset: DATA",
    "5.1: closed by our reset: HEADERS",
    "5.1: closed by both ends: DATA",
    "5.1: closed by both ends: HEADERS",
    "5.1.1: a stream with a lower number than an earlier one",
    "5.1.1: DATA of a stream that was left out",
    "6.3: PRIORITY on stream 0",
    // The connection ends.
    "5.4.2: after a stream error the others go on",
    // Only the stream ends.
    "6.9.2: SETTINGS that take a stream's window above 2^31-1",
    // It passes these on.
    "8.2.1: a value that begins with a space",
    "8.2.1: a value that begins with a tab",
    "8.2.1: a value that ends with a space",
    "8.2.1: a value that ends with a tab",
];

#[test]
fn http2_is_as_the_rfcs_have_it() -> Result<()> {
    lab(|lab| {
        let backend = backend()?;
        let config = config(backend, "http2_protocol_options: { max_concurrent_streams: 100 }");
        let mut cases = Cases::new();
        for kind in Kind::BOTH {
            let proxy = Proxy::start(lab, kind, &config)?;
            let address = proxy.at("h2")?.to_string();
            let python = lab.program("python", &Place::default())?.limit(Duration::from_secs(180));
            let out = python.args([SCRIPT, &address]).run()?;
            let results = out.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
            ensure!(results.len() >= 280, "only {} cases", results.len());
            let name = |result: &Value| result["name"].as_str().unwrap_or_default().to_owned();
            if kind == Kind::Envoy {
                let differs: BTreeSet<String> =
                    results.iter().filter(|result| result["ok"] == false).map(name).collect();
                let known = NOT_ENVOY.iter().map(|name| (*name).to_owned()).collect();
                cases.case("what Envoy does otherwise", || {
                    let other: Vec<_> = differs.symmetric_difference(&known).collect();
                    ensure!(other.is_empty(), "no longer, or newly: {other:?}");
                    Ok(())
                });
                continue;
            }
            for result in &results {
                cases.case(name(result), || {
                    ensure!(result["ok"] == true, "{}", result["seen"]);
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}
