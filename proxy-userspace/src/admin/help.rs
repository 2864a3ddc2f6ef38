//! The table of endpoints: the help, the home page, and which of them change something.

use std::fmt::Write as _;

/// An endpoint of Envoy's admin API, or one of ours below `/shunt`.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    /// POST only.
    pub(super) mutates: bool,
    params: &'static [(&'static str, &'static str)],
}

const fn get(
    path: &'static str,
    help: &'static str,
    params: &'static [(&'static str, &'static str)],
) -> Endpoint {
    Endpoint { path, help, mutates: false, params }
}

const fn post(
    path: &'static str,
    help: &'static str,
    params: &'static [(&'static str, &'static str)],
) -> Endpoint {
    Endpoint { path, help, mutates: true, params }
}

const ENABLE: &[(&str, &str)] = &[("enable", "enable or disable; One of (y, n)")];

const STATS: &[(&str, &str)] = &[
    ("usedonly", "Only include stats that have been written to since the start"),
    ("filter", "Regular expression for filtering stats"),
    ("invert_filter", "Invert the filter regex"),
    ("format", "Format to use; One of (text, json, prometheus)"),
    ("type", "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
    ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)"),
];

const UPDATES: &[(&str, &str)] = &[
    ("type", "Only updates of that type; One of (CDS, EDS, LDS, RDS, SDS, ECDS)"),
    ("after", "Only updates with a greater number"),
    ("last", "Only the last one of each type; not with watch"),
];

pub(super) const ENDPOINTS: &[Endpoint] = &[
    get("/", "Admin home page", &[]),
    post("/allocprofiler", "enable/disable the allocation profiler (not supported)", ENABLE),
    get("/certs", "print certs on machine", &[]),
    get(
        "/clusters",
        "upstream cluster status",
        &[
            ("filter", "Regular expression for filtering clusters by name"),
            ("format", "File format to use; One of (text, json)"),
        ],
    ),
    get(
        "/config_dump",
        "dump current configs",
        &[
            ("resource", "The resource to dump"),
            ("mask", "The mask to apply, to every element where a resource is given too"),
            ("name_regex", "Dump only the configurations whose names match"),
            ("include_eds", "Dump endpoints too"),
        ],
    ),
    get("/contention", "dump current mutex contention stats (not recorded)", &[]),
    post("/cpuprofiler", "enable/disable the CPU profiler (not supported)", ENABLE),
    post(
        "/drain_listeners",
        "drain listeners",
        &[
            ("graceful", "Keep accepting for the drain time before listeners are closed"),
            ("skip_exit", "Drain the connections, but never stop the listeners"),
            ("inboundonly", "Only listeners with traffic_direction INBOUND"),
        ],
    ),
    post("/healthcheck/fail", "cause the server to fail health checks", &[]),
    post("/healthcheck/ok", "cause the server to pass health checks", &[]),
    get("/heap_dump", "dump the current heap (not supported)", &[]),
    post("/heapprofiler", "enable/disable the heap profiler (not supported)", ENABLE),
    get("/help", "print out list of admin commands", &[]),
    get("/hot_restart_version", "print the hot restart compatibility version", &[]),
    get("/init_dump", "dump what initialization waits for", &[("mask", "The component to dump")]),
    get("/listeners", "print listener info", &[("format", "File format to use; One of (text, json)")]),
    post(
        "/logging",
        "query/change logging levels",
        &[
            (
                "paths",
                "Change multiple levels: <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>",
            ),
            ("level", "Change all levels; One of (, trace, debug, info, warning, error, critical, off)"),
        ],
    ),
    get("/memory", "print current allocation/heap usage", &[]),
    get("/peak_heap_dump", "dump the peak heap (not supported)", &[]),
    post("/quitquitquit", "exit the server", &[]),
    get("/ready", "print server state, return 200 if LIVE, otherwise return 503", &[]),
    post("/reopen_logs", "reopen access logs", &[]),
    post("/reset_counters", "reset all counters to zero", &[]),
    get("/runtime", "print runtime values", &[]),
    post("/runtime_modify", "modify runtime values (there is no admin layer)", &[]),
    get("/server_info", "print server version/status information", &[]),
    get("/shunt/listeners", "every listener with its filter chains and clusters, as JSON", &[]),
    get(
        "/shunt/match",
        "which listener, filter chain, clusters and endpoints a connection would take, as JSON",
        &[
            ("destination", "Where it goes: IP:PORT"),
            ("source", "Where it comes from: IP:PORT or IP"),
            ("sni", "The server name of its ClientHello"),
            ("alpn", "The protocols of its ClientHello, by commas"),
            ("tls", "It begins with a ClientHello"),
            ("http", "It begins with a request of HTTP/1.1"),
            ("direction", "Whether it leaves the workload or comes to it; One of (outbound, inbound)"),
            ("entry", "The listener that it comes in by"),
        ],
    ),
    get("/shunt/updates", "what the last updates have changed, as JSON", UPDATES),
    get("/shunt/watch", "updates as they come, a line of JSON each", UPDATES),
    get("/stats", "print server stats", STATS),
    get("/stats/prometheus", "print server stats in prometheus format", STATS),
    get("/stats/recentlookups", "Show recent stat-name lookups (not recorded)", &[]),
    post("/stats/recentlookups/clear", "clear list of stat-name lookups and counter", &[]),
    post("/stats/recentlookups/disable", "disable recording of stat-name lookups", &[]),
    post("/stats/recentlookups/enable", "enable recording of stat-name lookups", &[]),
    post("/tap", "tap filter control", &[]),
];

/// Ours, on the unix socket and read only on TCP.
const WORKLOADS: &str = "\
  /workloads: every workload with its state, as JSON
  /workloads (POST): enrol or change one: {name, cgroup, netns, policy, bootstrap}, YAML or JSON (unix socket only)
  /workloads/NAME: one of them
  /workloads/NAME (DELETE): take one out (unix socket only)
  /workloads/NAME/PATH: any of the above, of the configuration that it has brought; changes on the unix socket only
";

pub(super) fn find(path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.path == path)
}

/// `/help`, and behind `invalid path. `.
pub(super) fn text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for endpoint in ENDPOINTS {
        let post = if endpoint.mutates { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", endpoint.path, endpoint.help);
        for (name, help) in endpoint.params {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out + WORKLOADS
}

/// `/`.
pub(super) fn html() -> String {
    let mut out =
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n  <title>shunt admin</title>\n</head>\n<body>\n<table>\n"
            .to_owned();
    for endpoint in ENDPOINTS {
        let path = endpoint.path.trim_start_matches('/');
        let link = if endpoint.mutates {
            format!("<form action='{path}' method='post'><button>{path}</button></form>")
        } else {
            format!("<a href='{path}'>{}</a>", if path.is_empty() { "/" } else { path })
        };
        let _ = writeln!(out, "<tr><td>{link}</td><td>{}</td></tr>", endpoint.help);
    }
    out + "</table>\n</body>\n</html>\n"
}
