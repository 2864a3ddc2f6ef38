//! Envoy's configuration as text: what it becomes, and what is said where it is wrong.

mod errors;
mod json;
mod limits;
mod scalars;
mod snippets;

use proxy_config::decode;
use proxy_config::diagnostic::Diagnostic;
use proxy_config::load::Options;

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ANY: &str = "google.protobuf.Any";

/// A message as it is read, dumped as JSON.
fn read(name: &str, text: &str) -> Result<serde_json::Value, Vec<String>> {
    let encoded = decode::message(name, text, Options::default()).map_err(|errors| lines(&errors))?;
    proxy_config::dump::json(name, &encoded.bytes).map_err(|why| vec![why])
}

fn warnings(name: &str, text: &str) -> Vec<String> {
    lines(&decode::message(name, text, Options::default()).expect("it is accepted").warnings)
}

fn errors(name: &str, text: &str) -> Vec<String> {
    match decode::message(name, text, Options::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => lines(&errors),
    }
}

fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(Diagnostic::to_string).collect()
}
