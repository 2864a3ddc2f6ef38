//! What the server says of itself: `/server_info`, `/memory`, `/runtime`, `/logging` and the small ones.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{Answer, pretty, text};
use super::clusters::fields_of;
use super::query::Params;
use super::view::{DrainListeners, Unready, UnreadyView, View};
use crate::logging;
use crate::telemetry::stats::Stats;

/// In the shape of Envoy's: revision, version, state, build, TLS library.
fn version() -> String {
    format!("shunt/{}/Clean/RELEASE/rustls", env!("CARGO_PKG_VERSION"))
}

pub(super) fn info(view: &dyn View) -> Answer {
    let uptime = format!("{}s", view.uptime().as_secs());
    let node = view.node();
    pretty(&json!({
        "version": version(),
        "state": view.state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": view.command_line(),
        "node": {
            "id": node.id,
            "cluster": node.cluster,
            "metadata": fields_of(&node.metadata),
            "locality": {"region": node.region, "zone": node.zone, "sub_zone": node.sub_zone},
            "user_agent_name": "shunt",
        },
        "hot_restart_initializing": false,
    }))
}

/// Bytes of `/proc/self/status`, as the fields of `envoy.admin.v3.Memory` that mean something here.
pub(super) fn memory() -> Answer {
    let memory = Memory::read();
    pretty(&json!({
        "allocated": memory.data.to_string(),
        "heap_size": memory.data.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.resident.to_string(),
    }))
}

/// What the kernel counts for this process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident and anonymous: the heap, as far as it is in memory.
    pub data: u64,
    pub resident: u64,
}

impl Memory {
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kilobytes.unwrap_or(0) * 1_024
        };
        Self { data: field("RssAnon:"), resident: field("VmRSS:") }
    }
}

pub(super) fn runtime(view: &dyn View) -> Answer {
    let layers = view.runtime();
    let mut entries: Map<String, Value> = Map::new();
    let names: Vec<_> = layers.keys().cloned().collect();
    for (at, fields) in layers.values().enumerate() {
        for (key, value) in fields {
            let shown = match super::clusters::meta(value) {
                Value::String(text) => text,
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_)) => other.to_string(),
            };
            let entry = entries.entry(key.clone());
            let entry =
                entry.or_insert_with(|| json!({"final_value": "", "layer_values": vec![""; names.len()]}));
            entry["final_value"] = json!(shown);
            entry["layer_values"][at] = json!(shown);
        }
    }
    pretty(&json!({"layers": names, "entries": entries}))
}

/// The levels; a change that is wrong changes nothing, and is answered by how to do it.
pub(super) fn logging(params: &Params) -> Answer {
    let pairs: Vec<_> = params.all().collect();
    let changed = match pairs.as_slice() {
        [] | [("level" | "paths", "")] => Ok(()),
        [("level", level)] => logging::parse_level(level).map(logging::set_all),
        [("paths", paths)] => logging::set_components(paths),
        [("group", change)] => logging::set_components(change),
        [change] => logging::set([*change]),
        _ => Err(logging::Error::Name),
    };
    let levels = logging::levels().into_iter().map(|(name, level)| format!("  {name}: {level}\n"));
    let listing = format!("active loggers:\n{}\n", levels.collect::<String>());
    match changed {
        Ok(()) => text(StatusCode::OK, listing),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("error: {why}\n\n{LOGGING_USAGE}{listing}")),
    }
}

const LOGGING_USAGE: &str = "\
usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
usage: /logging?group=<group_name>:<level> (change group of loggers)
levels: trace debug info warning error critical off\u{20}
";

/// `UnreadyTargetsDumps`: Envoy has a manager for each listener, which has a target for each thing that is to come.
fn unready(params: &Params, view: &dyn View) -> Value {
    let mask = params.get("mask");
    if mask.is_some_and(|mask| mask != "listener") {
        return json!({});
    }
    let dump = |unready: UnreadyView| {
        let name = match &unready.whose {
            Unready::Listener(name) => format!("init manager Listener-local-init-manager {name}"),
            Unready::Cluster(_) if mask.is_some() => return None,
            Unready::Cluster(name) => format!("init manager Cluster {name}"),
        };
        Some(json!({"name": name, "target_names": unready.targets}))
    };
    let dumps: Vec<_> = view.unready().into_iter().filter_map(dump).collect();
    if dumps.is_empty() { json!({}) } else { json!({"unready_targets_dumps": dumps}) }
}

/// Answers that do not depend on much.
pub(super) fn small(path: &str, params: &Params, view: &dyn View, stats: &Stats) -> Option<Answer> {
    let ok = || text(StatusCode::OK, "OK\n");
    let refused =
        |what: &str| text(StatusCode::NOT_IMPLEMENTED, format!("The current build does not support {what}"));
    Some(match path {
        "/certs" => super::certs::answer(view),
        "/contention" => text(StatusCode::OK, "Mutex contention is not traced.\n"),
        "/hot_restart_version" => text(StatusCode::OK, "disabled"),
        "/init_dump" => pretty(&unready(params, view)),
        "/stats/recentlookups" => text(StatusCode::OK, "Lookup tracking is not enabled.\n\ntotal: 0\n"),
        "/stats/recentlookups/clear" | "/stats/recentlookups/disable" => ok(),
        "/stats/recentlookups/enable" => refused("tracking of stat lookups"),
        "/cpuprofiler" => refused("cpu profiler"),
        "/heapprofiler" => refused("heap profiler"),
        "/allocprofiler" => refused("allocation profiler"),
        "/heap_dump" | "/peak_heap_dump" => refused("heap dump"),
        "/runtime_modify" => text(StatusCode::SERVICE_UNAVAILABLE, "No admin layer specified\n"),
        "/reset_counters" => {
            stats.reset_counters();
            ok()
        }
        "/reopen_logs" => {
            view.reopen_logs();
            ok()
        }
        "/healthcheck/fail" | "/healthcheck/ok" => {
            view.set_healthy(path.ends_with("ok"));
            ok()
        }
        "/drain_listeners" => {
            let (inbound_only, graceful) = (params.flag("inboundonly"), params.flag("graceful"));
            view.drain_listeners(DrainListeners {
                inbound_only,
                graceful,
                skip_exit: params.flag("skip_exit"),
            });
            ok()
        }
        "/quitquitquit" => {
            view.quit();
            ok()
        }
        _ => return None,
    })
}
