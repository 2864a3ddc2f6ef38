//! The daemon's own log: one line each on standard error, at a level that may change while it runs.
//!
//! A line that is about one workload's configuration begins with that workload ([`task::Whose`]).
//!
//! Levels are kept per component, under Envoy's names of loggers; a component is one or more modules.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::clock;
use crate::task;

/// Envoy's loggers, in its order, each with the modules of ours that log under it.
const COMPONENTS: &[(&str, &[&str])] = &[
    ("admin", &["proxy_userspace::admin"]),
    ("client", &[]),
    ("config", &["proxy_config", "proxy_userspace::world", "proxy_userspace::xds"]),
    ("connection", &["proxy_userspace::net", "proxy_userspace::transport"]),
    ("conn_handler", &["proxy_userspace::net::accept", "proxy_userspace::listener"]),
    ("dns", &["hickory", "proxy_userspace::cluster::discovery"]),
    ("file", &["proxy_userspace::telemetry::access_log"]),
    ("filter", &["proxy_userspace::network"]),
    ("hc", &["proxy_userspace::cluster::health"]),
    ("http", &["hyper"]),
    ("init", &["proxy_userspace::app"]),
    ("main", &["proxy_userspace", "shunt"]),
    ("misc", &["aya"]),
    ("pool", &["proxy_userspace::cluster::connect"]),
    ("rbac", &["proxy_userspace::network::rbac"]),
    ("runtime", &["proxy_userspace::drain"]),
    ("stats", &["proxy_userspace::telemetry"]),
    ("upstream", &["proxy_userspace::cluster"]),
];

/// Envoy's other loggers: their names are taken, and have nothing to say here.
const SILENT: &[&str] = &[
    "assert",
    "aws",
    "backtrace",
    "compression",
    "decompression",
    "dubbo",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "forward_proxy",
    "golang",
    "grpc",
    "happy_eyeballs",
    "health_checker",
    "http2",
    "hystrix",
    "io",
    "json_rpc",
    "jwt",
    "kafka",
    "key_value_store",
    "local_rate_limit",
    "lua",
    "matcher",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "secret",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "wasm",
    "websocket",
    "dynamic_modules",
    "basic_auth",
    "cache_filter",
    "credential_injector",
    "geolocation",
    "alternate_protocols_cache",
    "a2a",
    "ai_protocol_manager",
    "mcp",
    "sse",
    "ip_tagging",
];

/// The process has one log, as it has one standard error.
static LEVELS: [AtomicU8; COMPONENTS.len()] =
    [const { AtomicU8::new(LevelFilter::Info as u8) }; COMPONENTS.len()];

/// What a request to change levels may get wrong; Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unknown logger name")]
    Name,
    #[error("unknown logger level")]
    Level,
}

/// Envoy's names of levels. We have nothing more severe than an error.
pub fn parse_level(name: &str) -> Result<LevelFilter, Error> {
    Ok(match name {
        "trace" => LevelFilter::Trace,
        "debug" => LevelFilter::Debug,
        "info" => LevelFilter::Info,
        "warning" | "warn" => LevelFilter::Warn,
        "error" | "critical" => LevelFilter::Error,
        "off" => LevelFilter::Off,
        _ => return Err(Error::Level),
    })
}

/// Sets all components.
pub fn set_all(level: LevelFilter) {
    LEVELS.iter().for_each(|slot| slot.store(level as u8, Ordering::Relaxed));
    publish();
}

/// Sets components by Envoy's names: all of them, or none where one is wrong.
pub fn set<'a>(changes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
    let parsed: Result<Vec<_>, Error> = changes
        .into_iter()
        .map(|(name, level)| {
            let at = COMPONENTS.iter().position(|(component, _)| *component == name);
            if at.is_none() && !SILENT.contains(&name) {
                return Err(Error::Name);
            }
            Ok((at, parse_level(level)?))
        })
        .collect();
    for (at, level) in parsed? {
        if let Some(slot) = at.and_then(|at| LEVELS.get(at)) {
            slot.store(level as u8, Ordering::Relaxed);
        }
    }
    publish();
    Ok(())
}

/// `--component-log-level upstream:debug,connection:trace`.
pub fn set_components(text: &str) -> Result<(), Error> {
    set(text
        .split(',')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once(':').unwrap_or((part, ""))))
}

/// Every component with its level, by name.
pub fn levels() -> Vec<(&'static str, &'static str)> {
    COMPONENTS
        .iter()
        .zip(&LEVELS)
        .map(|((name, _), slot)| (*name, level_name(slot.load(Ordering::Relaxed))))
        .collect()
}

/// `--log-path`: appends to this file instead of writing to standard error. The first call holds.
pub fn append_to(path: &Path) -> std::io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    // Fails only where there is one already.
    let _ = FILE.set(file);
    Ok(())
}

static FILE: OnceLock<File> = OnceLock::new();

/// Sends everything at `level` and above to standard error. A second call changes only the level.
pub fn start(level: LevelFilter) {
    // Fails only where a logger is set already: ours.
    let _ = log::set_logger(&Stderr);
    set_all(level);
}

/// The `log` macros look at one level before all else: the most verbose of all.
fn publish() {
    let most = LEVELS.iter().map(|slot| slot.load(Ordering::Relaxed)).max().unwrap_or(0);
    log::set_max_level(LevelFilter::iter().find(|level| *level as u8 == most).unwrap_or(LevelFilter::Info));
}

fn level_name(level: u8) -> &'static str {
    ["off", "error", "warning", "info", "debug", "trace"].get(usize::from(level)).copied().unwrap_or("info")
}

/// The component with the longest prefix of the module; modules of nobody are `main`'s.
fn component(target: &str) -> usize {
    let mut best = (0, COMPONENTS.iter().position(|(name, _)| *name == "main").unwrap_or(0));
    for (at, (_, modules)) in COMPONENTS.iter().enumerate() {
        for module in modules.iter().filter(|module| target.starts_with(**module)) {
            if module.len() > best.0 {
                best = (module.len(), at);
            }
        }
    }
    best.1
}

struct Stderr;

impl Log for Stderr {
    /// aya tells every relocation at debug level: only for those who ask for everything.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = LEVELS.get(component(metadata.target())).map_or(0, |slot| slot.load(Ordering::Relaxed));
        metadata.level() as usize <= usize::from(level)
            && (usize::from(level) == LevelFilter::Trace as usize
                || metadata.level() <= Level::Info
                || !metadata.target().starts_with("aya"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = clock::rfc3339(clock::wall());
        let level = record.level().as_str().to_lowercase();
        let line = match task::whose() {
            Some(whose) => format!("[{time}] {level} {whose}: {}\n", record.args()),
            None => format!("[{time}] {level} {}\n", record.args()),
        };
        // A log that cannot be written must not end the daemon.
        let _ = match FILE.get() {
            Some(mut file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_names_the_component() {
        let name = |target| COMPONENTS[component(target)].0;
        assert_eq!(name("proxy_userspace::net::copy"), "connection");
        assert_eq!(name("proxy_userspace::net::accept"), "conn_handler");
        assert_eq!(name("proxy_userspace::cluster::discovery::dns"), "dns");
        assert_eq!(name("somebody_else"), "main");
    }

    #[test]
    fn one_wrong_change_changes_nothing() {
        let before = levels();
        assert_eq!(set([("upstream", "trace"), ("nosuch", "info")]), Err(Error::Name));
        assert_eq!(set([("upstream", "loud")]), Err(Error::Level));
        assert_eq!(levels(), before);
        assert_eq!(set([("wasm", "info")]), Ok(()));
    }
}
