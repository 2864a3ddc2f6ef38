//! Which upgrades there are, by the connection manager and by routes, and whose filters they pass.

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::{Bootstrap, chain, extension, file_log};
use shunt_tests::{Cases, Pair, lab};

use super::{backend, clusters, exchange, sorted};

const LINE: &str = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";

/// Adds a header to the request, which the backend tells.
fn marks(name: &str) -> String {
    let of_type = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
    let append = format!("append: {{ header: {{ key: x-passed, value: {name} }} }}");
    extension(name, of_type, &format!("mutations: {{ request_mutations: [ {{ {append} }} ] }}"))
}

/// By prefix, and what the route says of upgrades.
const ROUTES: &[(&str, &str)] = &[
    ("/on", "{ upgrade_type: websocket }"),
    ("/off", "{ upgrade_type: websocket, enabled: false }"),
    ("/Folded", "{ upgrade_type: WebSocket }"),
    ("/own-off", "{ upgrade_type: own, enabled: false }"),
    ("/bare-off", "{ upgrade_type: bare, enabled: false }"),
    ("/bare-on", "{ upgrade_type: bare }, { upgrade_type: other }"),
    ("/", ""),
];

fn manager(name: &str, upgrades: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let routes: Vec<String> = ROUTES
        .iter()
        .map(|(prefix, said)| {
            format!(
                "{{ match: {{ prefix: {prefix} }}, route: {{ cluster: echo, upgrade_configs: [ {said} ] }} }}"
            )
        })
        .collect();
    let upgrades = upgrades.replace("@OWN@", &format!("filters: [ {}, {router} ]", marks("own")));
    let log = file_log(&format!("{name}.log"), LINE);
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: {name}, access_log: [ {log} ], http_filters: [ {}, {router} ], upgrade_configs: [ {upgrades} ], \
             route_config: {{ virtual_hosts: [ {{ name: v, domains: ['*'], routes: [ {} ] }} ] }}, delayed_close_timeout: 0.1s",
            marks("all"),
            routes.join(", ")
        ),
    );
    format!("filter_chains: [ {} ]", chain("", &[hcm]))
}

const MANAGERS: &[(&str, &str)] = &[
    ("none", ""),
    (
        "several",
        "{ upgrade_type: own, @OWN@ }, { upgrade_type: bare }, { upgrade_type: never, enabled: false, @OWN@ }",
    ),
];

#[test]
fn upgrades_pass_filters_of_their_own_where_routes_let_them() -> Result<()> {
    lab(|lab| {
        let config = MANAGERS
            .iter()
            .fold(Bootstrap::new(), |all, (name, upgrades)| all.listener(name, &manager(name, upgrades)));
        let pair = Pair::start(lab, &clusters(config, backend::start()?).yaml())?;
        let mut cases = Cases::new();
        for (name, _) in MANAGERS {
            let mut logged = 0;
            for kind in ["websocket", "WEBSOCKET", "own", "bare", "never", "other", "nobody's", "own, bare"] {
                for (prefix, _) in ROUTES {
                    logged += 1;
                    let request = format!(
                        "GET {prefix} HTTP/1.1\r\nhost: a\r\nupgrade: {kind}\r\nconnection: upgrade\r\n\r\n"
                    );
                    pair.same(&mut cases, format!("http-upgrades-{name}-{kind}-{prefix}"), |proxy| {
                        let answer = exchange(proxy.at(name)?, request.as_bytes(), 1)?;
                        let mut shown: Vec<_> = sorted(answer.trim_end_matches(" RESET"))
                            .lines()
                            .filter(|line| !line.to_ascii_lowercase().starts_with("x-request-id: "))
                            .map(str::to_owned)
                            .collect();
                        shown.sort_unstable();
                        Ok(json!([shown, proxy.lines(&format!("{name}.log"), logged)?.pop()]))
                    });
                }
            }
        }
        cases.finish()
    })
}
