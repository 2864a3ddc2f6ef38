//! The daemon's answers as a person reads them.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde_json::Value;

/// Lines of a list that are printed.
const MANY: usize = 50;
/// Characters of a value.
const LONG: usize = 100;

/// `/shunt/match`: the way of a connection, and then the endpoints of each cluster.
pub(super) fn way(found: &Value) -> String {
    let mut facts = table();
    let mut row = |name: &str, text: String| {
        if !text.is_empty() {
            facts.add_row([name.to_owned(), text]);
        }
    };
    row("destination", plain(&found["destination"]));
    row("source", plain(&found["source"]));
    row("enters by", plain(&found["entry"]));
    row("listener", listener(&found["listener"]));
    row("looks like", first(&found["facts"]));
    let chain = &found["chain"];
    if chain.is_object() {
        row("filter chain", chain_name(chain));
        row("because of", criteria(&chain["match"]));
        row("transport", plain(&chain["transport_socket"]));
        row("filters", filters(&chain["filters"]));
    }
    for cluster in list(&found["clusters"]) {
        row("cluster", cluster_text(cluster, list(&found["clusters"]).len() > 1));
    }
    for problem in list(&found["problems"]) {
        row("but", plain(problem));
    }
    let mut out = format!("{}\n", trimmed(&facts));
    for cluster in list(&found["clusters"]).iter().filter(|cluster| !list(&cluster["endpoints"]).is_empty()) {
        let _ = write!(out, "\n{}", endpoints(cluster));
    }
    out
}

fn listener(found: &Value) -> String {
    if !found.is_object() {
        return String::new();
    }
    let how = match found["found"].as_str() {
        Some("exact") => "of that address",
        Some("wildcard") => "of that port on every address",
        Some("passthrough") => "no listener has that address",
        Some(other) => other,
        None => "",
    };
    format!("{} ({how})", plain(&found["name"]))
}

fn first(facts: &Value) -> String {
    if !facts.is_object() {
        return String::new();
    }
    let mut text = plain(&facts["transport_protocol"]);
    if let Some(name) = facts["server_name"].as_str() {
        let _ = write!(text, ", server name {name}");
    }
    let protocols = joined(&facts["application_protocols"]);
    if !protocols.is_empty() {
        let _ = write!(text, ", protocols {protocols}");
    }
    text
}

fn chain_name(chain: &Value) -> String {
    match (plain(&chain["name"]).as_str(), chain["default"] == true) {
        ("", true) => "the default one".to_owned(),
        ("", false) => "without a name".to_owned(),
        (name, true) => format!("{name} (the default one)"),
        (name, false) => name.to_owned(),
    }
}

/// `server_names a.example; destination_port 80`, or that there are no conditions.
fn criteria(conditions: &Value) -> String {
    let text = |value: &Value| if value.is_array() { joined(value) } else { plain(value) };
    let all: Vec<_> = conditions.as_object().into_iter().flatten().collect();
    if all.is_empty() {
        return "no condition".to_owned();
    }
    all.into_iter().map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join("; ")
}

fn filters(filters: &Value) -> String {
    let one = |filter: &Value| match filter["unserved"].as_str() {
        Some(_) => format!("{} (not served)", plain(&filter["filter"])),
        None => plain(&filter["filter"]),
    };
    list(filters).iter().map(one).collect::<Vec<_>>().join(", ")
}

fn cluster_text(cluster: &Value, weighted: bool) -> String {
    let mut text = plain(&cluster["name"]);
    if weighted {
        let _ = write!(text, ", weight {}", cluster["weight"]);
    }
    if cluster["missing"] == true {
        return text + ", which is not there";
    }
    let _ = write!(text, ", {}, {}", plain(&cluster["type"]), plain(&cluster["transport_socket"]));
    match cluster["to"].as_str() {
        Some(to) => text + &format!(", to {to}"),
        None => text + &format!(", {} of {} endpoints healthy", cluster["healthy"], cluster["total"]),
    }
}

fn endpoints(cluster: &Value) -> String {
    let mut rows = table();
    rows.set_header(["ENDPOINT", "CLUSTER", "HEALTH", "WEIGHT", "PRIORITY", "LOCALITY", "TRANSPORT"]);
    let all = list(&cluster["endpoints"]);
    for endpoint in all.iter().take(MANY) {
        let health = joined(&endpoint["health"]);
        let transport = endpoint.get("transport_socket").unwrap_or(&cluster["transport_socket"]);
        let cells = [
            plain(&endpoint["address"]),
            plain(&cluster["name"]),
            if health.is_empty() { "healthy".to_owned() } else { health },
            plain(&endpoint["weight"]),
            plain(&endpoint["priority"]),
            plain(&endpoint["locality"]),
            plain(transport),
        ];
        rows.add_row(cells.map(or_dash));
    }
    let total = cluster["total"].as_u64().unwrap_or(0);
    let more = total.saturating_sub(all.len().min(MANY) as u64);
    let more = if more > 0 { format!("and {more} more\n") } else { String::new() };
    format!("{}\n{more}", trimmed(&rows))
}

/// `/shunt/listeners`: a line for each filter chain.
pub(super) fn listeners(found: &Value) -> String {
    let mut rows = table();
    rows.set_header(["LISTENER", "ADDRESS", "CHAIN", "MATCH", "TRANSPORT", "TO"]);
    for listener in list(&found["listeners"]) {
        let mut head = [plain(&listener["name"]), joined(&listener["addresses"])];
        if listener["bound"] != true {
            head[1] += " (not bound)";
        }
        for chain in list(&listener["chains"]) {
            let [name, address] = std::mem::take(&mut head);
            let chain_name =
                if chain["default"] == true { "default".to_owned() } else { plain(&chain["name"]) };
            let cells = [
                or_dash(chain_name),
                criteria(&chain["match"]),
                plain(&chain["transport_socket"]),
                target(chain),
            ];
            rows.add_row([name, address].into_iter().chain(cells));
        }
        if list(&listener["chains"]).is_empty() {
            let [name, address] = std::mem::take(&mut head);
            rows.add_row([name, address]);
        }
    }
    format!("{}\n", trimmed(&rows))
}

/// The clusters of a chain, or what ends it.
fn target(chain: &Value) -> String {
    let missing = list(&chain["missing"]);
    let cluster = |name: &Value| {
        if missing.contains(name) { format!("{} (missing)", plain(name)) } else { plain(name) }
    };
    let clusters: Vec<_> = list(&chain["clusters"]).iter().map(cluster).collect();
    if clusters.is_empty() { filters(&chain["filters"]) } else { clusters.join(", ") }
}

/// `/shunt/updates`: what each has changed.
pub(super) fn updates(found: &Value) -> String {
    let all = list(&found["updates"]);
    if all.is_empty() {
        return "no update has changed anything yet\n".to_owned();
    }
    all.iter().map(update).collect::<Vec<_>>().join("\n")
}

fn update(update: &Value) -> String {
    let version = |version: &Value| match version.as_str() {
        None | Some("") => "(none)".to_owned(),
        Some(text) => text.to_owned(),
    };
    let [from, to] = [version(&update["from"]), version(&update["to"])];
    let mut out = format!(
        "{} {from} -> {to}, {}, from {}, {}\n",
        plain(&update["type"]),
        plain(&update["time"]),
        plain(&update["source"]),
        verdict(update)
    );
    let sign = |sign: char, names: &Value| -> Vec<String> {
        list(names).iter().map(|name| format!("  {sign} {}\n", plain(name))).collect()
    };
    let changed = list(&update["changed"]).iter().map(changed).collect();
    let refused = list(&update["refused"]).iter();
    let refused =
        refused.map(|one| format!("  ! {}: {}\n", plain(&one["name"]), plain(&one["why"]))).collect();
    for lines in [sign('+', &update["added"]), sign('-', &update["removed"]), changed, refused] {
        out += &shortened(lines, "  ");
    }
    out
}

fn changed(changed: &Value) -> String {
    let mut out = format!("  ~ {}\n", plain(&changed["name"]));
    if let Some(note) = changed["note"].as_str() {
        let _ = writeln!(out, "      {note}");
    }
    let field = |field: &Value| {
        let path = plain(&field["path"]);
        let side = |name: &str| field.get(name).map(|value| short(&value.to_string()));
        match (side("before"), side("after")) {
            (Some(before), Some(after)) => format!("      {path}: {before} -> {after}\n"),
            (Some(before), None) => format!("    - {path}: {before}\n"),
            (None, Some(after)) => format!("    + {path}: {after}\n"),
            (None, None) => format!("      and {} more\n", field["more"]),
        }
    };
    out + &shortened(list(&changed["fields"]).iter().map(field).collect(), "      ")
}

fn shortened(mut lines: Vec<String>, indent: &str) -> String {
    let more = lines.len().saturating_sub(MANY);
    lines.truncate(MANY);
    if more > 0 {
        lines.push(format!("{indent}and {more} more\n"));
    }
    lines.concat()
}

/// A line of `/shunt/watch`.
pub(super) fn line(update: &Value) -> String {
    let count = |field: &str| list(&update[field]).len();
    format!(
        "{} {} {} {} +{} -{} ~{} {}",
        plain(&update["time"]),
        plain(&update["source"]),
        plain(&update["type"]),
        or_dash(plain(&update["to"])),
        count("added"),
        count("removed"),
        count("changed"),
        verdict(update)
    )
}

fn verdict(update: &Value) -> String {
    match update["nack"].as_str() {
        None => "ACK".to_owned(),
        Some(why) => format!("NACK {}", why.replace('\n', "; ")),
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// Without the blanks that fill the last column.
fn trimmed(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn joined(value: &Value) -> String {
    list(value).iter().map(plain).collect::<Vec<_>>().join(", ")
}

/// A value without a string's quotes; nothing for none.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LONG) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_way_with_its_endpoints() {
        let text = way(&json!({
            "destination": "10.0.0.1:443",
            "source": "192.0.2.1:1",
            "entry": "virtualOutbound",
            "listener": {"name": "10.0.0.1_443", "found": "exact"},
            "facts": {"transport_protocol": "tls", "server_name": "a.b", "application_protocols": ["istio", "h2"]},
            "chain": {
                "name": "", "default": true, "match": {}, "transport_socket": "raw_buffer",
                "filters": [{"name": "r", "filter": "rbac"}, {"name": "t", "filter": "tcp_proxy"}],
            },
            "clusters": [{
                "name": "app", "weight": 1, "type": "EDS", "transport_socket": "tls (default)", "healthy": 1,
                "total": 62, "endpoints": [
                    {"address": "10.1.0.1:80", "health": [], "weight": 2, "priority": 0, "locality": "r/z"},
                    {"address": "10.1.0.2:80", "health": ["failed_eds_health"], "weight": 1, "priority": 1,
                     "locality": "", "transport_socket": "raw_buffer"},
                ],
            }],
            "problems": ["filter r (rbac) is not asked here"],
        }));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "destination 10.0.0.1:443",
                "source 192.0.2.1:1",
                "enters by virtualOutbound",
                "listener 10.0.0.1_443 (of that address)",
                "looks like tls, server name a.b, protocols istio, h2",
                "filter chain the default one",
                "because of no condition",
                "transport raw_buffer",
                "filters rbac, tcp_proxy",
                "cluster app, EDS, tls (default), 1 of 62 endpoints healthy",
                "but filter r (rbac) is not asked here",
                "",
                "ENDPOINT CLUSTER HEALTH WEIGHT PRIORITY LOCALITY TRANSPORT",
                "10.1.0.1:80 app healthy 2 0 r/z tls (default)",
                "10.1.0.2:80 app failed_eds_health 1 1 - raw_buffer",
                "and 60 more",
            ]
        );
        let nowhere = way(&json!({"destination": "a", "source": "b", "entry": null, "problems": ["no"]}));
        assert_eq!(nowhere.lines().map(words).collect::<Vec<_>>(), ["destination a", "source b", "but no"]);
    }

    #[test]
    fn listeners_by_chain() {
        let chain = |name: &str, conditions: Value, clusters: &[&str]| {
            json!({
                "name": name, "default": false, "match": conditions, "transport_socket": "tls", "clusters": clusters,
                "filters": [{"filter": "http_connection_manager", "unserved": "no HTTP"}], "missing": ["gone"],
            })
        };
        let text = listeners(&json!({"listeners": [{
            "name": "l", "addresses": ["10.0.0.1:80"], "bound": false,
            "chains": [
                chain("one", json!({"server_names": ["a", "b"]}), &["up", "gone"]),
                chain("", json!({}), &[]),
            ],
        }]}));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            text.lines().map(words).collect::<Vec<_>>(),
            [
                "LISTENER ADDRESS CHAIN MATCH TRANSPORT TO",
                "l 10.0.0.1:80 (not bound) one server_names a, b tls up, gone (missing)",
                "- no condition tls http_connection_manager (not served)",
            ]
        );
    }

    #[test]
    fn updates_by_what_they_changed() {
        let update = json!({
            "type": "CDS", "time": "T", "source": "/a", "from": "", "to": "2", "added": ["n"], "removed": ["g"],
            "changed": [
                {"name": "c", "fields": [
                    {"path": "a.b", "before": 1, "after": "x".repeat(200)},
                    {"path": "d", "before": 1},
                    {"path": "e", "after": {}},
                ]},
                {"name": "s", "note": "what has changed is not shown"},
            ],
            "refused": [{"name": "r", "why": "bad"}], "nack": "r: bad\nand more",
        });
        assert_eq!(
            updates(&json!({"updates": [update]})),
            format!(
                "CDS (none) -> 2, T, from /a, NACK r: bad; and more\n  + n\n  - g\n  ~ c\n      a.b: 1 -> \"{}…\n    - d: 1\n    + e: {{}}\n  ~ s\n      what has changed is not shown\n  ! r: bad\n",
                "x".repeat(99)
            )
        );
        assert_eq!(line(&update), "T /a CDS 2 +1 -1 ~2 NACK r: bad; and more");
        assert_eq!(updates(&json!({"updates": []})), "no update has changed anything yet\n");
        let many: Vec<_> = (0..60).map(|n| n.to_string()).collect();
        let many = updates(&json!({"updates": [{"type": "EDS", "added": many}]}));
        assert!(many.lines().count() == 52 && many.ends_with("  + 49\n  and 10 more\n"), "{many}");
    }
}
