//! Loads a bootstrap, and says how long that took and how much memory:
//! `cargo run --release -p proxy-config --example load_bootstrap -- FILE [strict]`.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: load_bootstrap FILE [strict]");
        return ExitCode::from(2);
    };
    let strict = std::env::args().nth(2).is_some();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) => {
            eprintln!("{path}: {e}");
            return ExitCode::FAILURE;
        }
    };
    let before = memory("VmRSS:");
    let start = Instant::now();
    let options = proxy_config::load::Options { strict, allow_unknown_fields: false };
    let loaded = match proxy_config::decode::text(&bytes) {
        Ok(text) => proxy_config::load::bootstrap(text, None, options),
        Err(diagnostic) => Err(vec![diagnostic]),
    };
    let took = start.elapsed();
    drop(bytes);
    match loaded {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                println!("warning: {warning}");
            }
            let (clusters, listeners) = (loaded.bootstrap.clusters.len(), loaded.bootstrap.listeners.len());
            let raw: usize = loaded.bootstrap.clusters.iter().map(|c| c.raw.bytes().len()).sum();
            println!("{clusters} clusters ({raw} bytes encoded), {listeners} listeners in {took:?}");
            println!("memory before {before}, after {}, peak {}", memory("VmRSS:"), memory("VmHWM:"));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in errors {
                eprintln!("{error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn memory(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("unknown").trim().to_owned()
}
