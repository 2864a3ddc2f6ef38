//! What routes do to requests, seen by a backend that tells, and what they answer.

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::http_echo::{HttpEcho, ask};
use shunt_tests::{Bootstrap, Cases, Pair, lab};

use super::{host, inline};

const TEMPLATE: &str =
    "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
const REWRITE: &str =
    "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";

/// A route to the backend.
fn to(matched: &str, action: &str, more: &str) -> String {
    let cluster = if action.contains("cluster") { "" } else { "cluster: echo, " };
    format!("{{ match: {{ {matched} }}, route: {{ {cluster}{action} }}, {more} }}")
}

fn add(name: &str, value: &str, action: &str) -> String {
    let action = if action.is_empty() { String::new() } else { format!(", append_action: {action}") };
    format!("{{ header: {{ key: {name}, value: {value:?} }}{action} }}")
}

fn rewrites() -> Vec<String> {
    let template = format!(
        "path_match_policy: {{ name: envoy.path.match.uri_template.uri_template_matcher, typed_config: \
         {{ \"@type\": {TEMPLATE}, path_template: '/template/{{a}}/{{b}}' }} }}"
    );
    let rewrite = format!(
        "path_rewrite_policy: {{ name: envoy.path.rewrite.uri_template.uri_template_rewriter, typed_config: \
         {{ \"@type\": {REWRITE}, path_template_rewrite: '/{{b}}/{{a}}' }} }}"
    );
    let regex = |name: &str, pattern: &str, by: &str| {
        format!("{name}: {{ pattern: {{ regex: '{pattern}' }}, substitution: '{by}' }}")
    };
    vec![
        to("prefix: /prefix", "prefix_rewrite: /new", ""),
        to("prefix: /Folded, case_sensitive: false", "prefix_rewrite: /new/", ""),
        to("path: /path", "prefix_rewrite: /index.html", ""),
        to("path_separated_prefix: /separated", "prefix_rewrite: /s", ""),
        to("safe_regex: { regex: '/whole/.*' }", "prefix_rewrite: /all", ""),
        to("prefix: /regex/", &regex("regex_rewrite", "/([a-z]+)/([0-9]+)", r"/\2/\1"), ""),
        to("safe_regex: { regex: '/r/.*' }", &regex("regex_rewrite", "^/r/(.*)$", r"/\1\\"), ""),
        to(&template, &rewrite, ""),
        to("prefix: /literal", "host_rewrite_literal: literal.example", ""),
        to("prefix: /kept", "host_rewrite_literal: kept.example, append_x_forwarded_host: true", ""),
        to("prefix: /header", "host_rewrite_header: x-new-host", ""),
        to("prefix: /host/", &regex("host_rewrite_path_regex", "^/host/([^/]+).*$", r"\1.example"), ""),
        to("prefix: /auto", "auto_host_rewrite: true, append_x_forwarded_host: true", ""),
        to("prefix: /format", "path_rewrite: '/f/%REQ(x-new-host)%%REQ(:PATH)%'", ""),
        to("prefix: /named-host", "host_rewrite: '%REQ(x-new-host)%.example'", ""),
        to("prefix: /both", "prefix_rewrite: /b, host_rewrite_literal: b.example", ""),
        to("prefix: /named", "cluster_header: x-cluster", ""),
        to("prefix: /missing", "cluster: missing, cluster_not_found_response_code: NOT_FOUND", ""),
        to("prefix: /gone", "cluster: missing", ""),
        to(
            "prefix: /nowhere",
            "cluster: missing, cluster_not_found_response_code: INTERNAL_SERVER_ERROR",
            "",
        ),
        format!("{{ match: {{ prefix: /filters }}, non_forwarding_action: {{}} }}"),
    ]
}

/// At each level alike.
fn level(name: &str) -> String {
    let edits = [
        add("x-level", name, ""),
        add("x-last", name, "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-first", name, "ADD_IF_ABSENT"),
        add("x-there", name, "OVERWRITE_IF_EXISTS"),
        add("x-not-there", name, "OVERWRITE_IF_EXISTS"),
        add("x-format", &format!("{name} %REQ(x-there)% %REQ(X-NONE)% 100%% %PROTOCOL%"), ""),
        add("x-none", "%REQ(X-NONE)%", ""),
        add("x-path", "%REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:METHOD)%", ""),
        add("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", ""),
        add("x-route", "%ROUTE_NAME%", ""),
        add("x-host", "%VIRTUAL_CLUSTER_NAME%", ""),
        "{ header: { key: x-kept, value: '' }, keep_empty_value: true }".to_string(),
        "{ header: { key: x-dropped, value: '' } }".to_string(),
    ]
    .join(", ");
    let after = add("x-of", "%RESP(x-backend)%", "");
    format!(
        "request_headers_to_add: [ {edits} ], request_headers_to_remove: [ x-removed-{name}, x-removed ], \
         response_headers_to_add: [ {edits}, {after} ], response_headers_to_remove: [ x-of-upstream ]"
    )
}

fn edits() -> String {
    let cluster =
        format!("{{ name: echo, weight: 1, host_rewrite_literal: weighted.example, {} }}", level("weighted"));
    let weighted = format!("weighted_clusters: {{ clusters: [ {cluster} ] }}");
    let routes = [
        to("prefix: /edited", "prefix_rewrite: /new", &format!("name: edited, {}", level("route"))),
        to("prefix: /weighted", &weighted, &format!("name: weighted, {}", level("route"))),
        format!(
            "{{ match: {{ prefix: /direct }}, direct_response: {{ status: 418, body: {{ inline_string: tea }} }}, {} }}",
            level("route")
        ),
        to("prefix: /gone", "cluster: missing", &level("route")),
    ];
    format!("virtual_hosts: [ {} ], {}", host("edits", &["*"], &routes, &level("host")), level("all"))
}

fn config(echo: &HttpEcho, other: &HttpEcho) -> String {
    let rewrites =
        format!("virtual_hosts: [ {} ], validate_clusters: false", host("r", &["*"], &rewrites(), ""));
    let edits = format!("{}, validate_clusters: false", edits());
    let split =
        "weighted_clusters: { clusters: [ { name: echo, weight: 60 }, { name: other, weight: 40 } ] }";
    let picked = "weighted_clusters: { header_name: x-pick, \
                  clusters: [ { name: echo, weight: 60 }, { name: other, weight: 40 } ] }";
    let routes = [to("prefix: /split", split, ""), to("prefix: /picked", picked, "")];
    let endpoint = format!(
        "load_assignment: {{ cluster_name: echo, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ \
         hostname: endpoint.example, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} \
         }} ] }} ] }}, type: STATIC",
        echo.address.port()
    );
    Bootstrap::new()
        .listener("rewrites", &inline("rewrites", &rewrites))
        .listener("edits", &inline("edits", &edits))
        .listener("wins", &inline("wins", &format!("most_specific_header_mutations_wins: true, {edits}")))
        .listener(
            "weights",
            &inline("weights", &format!("virtual_hosts: [ {} ]", host("w", &["*"], &routes, ""))),
        )
        .listener("redirects", &inline("redirects", &redirects()))
        .cluster("echo", &endpoint)
        .static_cluster("other", &[other.address], "")
        .yaml()
}

fn redirects() -> String {
    let redirect =
        |path: &str, fields: &str| format!("{{ match: {{ prefix: {path} }}, redirect: {{ {fields} }} }}");
    let direct = |path: &str, status: u16| {
        format!("{{ match: {{ prefix: {path} }}, direct_response: {{ status: {status} }} }}")
    };
    let format = "{ text_format_source: { inline_string: '%LOCAL_REPLY_BODY% of %REQ(:PATH)%' }, content_type: text/x }";
    let routes = [
        redirect("/https", "https_redirect: true"),
        redirect("/scheme", "scheme_redirect: ftp"),
        redirect("/host", "host_redirect: new.example, response_code: FOUND"),
        redirect("/port", "port_redirect: 8443, response_code: SEE_OTHER"),
        redirect("/path", "path_redirect: /new, response_code: TEMPORARY_REDIRECT"),
        redirect("/query", "path_redirect: '/new?a=b', strip_query: true, response_code: PERMANENT_REDIRECT"),
        redirect("/relative", "path_redirect: new"),
        redirect("/prefix", "prefix_rewrite: /p, host_redirect: new.example"),
        redirect("/regex", r"regex_rewrite: { pattern: { regex: '/regex/(.*)' }, substitution: '/\1/end' }"),
        redirect("/strip", "strip_query: true, https_redirect: true"),
        redirect(
            "/all",
            "https_redirect: true, host_redirect: new.example, port_redirect: 444, path_redirect: /x",
        ),
        direct("/created", 201),
        direct("/moved", 302),
        direct("/empty", 204),
        format!(
            "{{ match: {{ prefix: /formatted }}, direct_response: {{ status: 200, \
             body: {{ inline_string: body }}, body_format: {format} }} }}"
        ),
    ];
    let tls = |name: &str, require: &str| {
        host(name, &[name], &[direct("/", 200)], &format!("require_tls: {require}"))
    };
    let any = host("any", &["*"], &routes, "");
    format!(
        "virtual_hosts: [ {any}, {}, {} ]",
        tls("all.example", "ALL"),
        tls("external.example", "EXTERNAL_ONLY")
    )
}

/// What the backend has been asked, and what the client has got.
fn exchange(at: std::net::SocketAddr, line: &str, headers: &[(&str, &str)]) -> Result<serde_json::Value> {
    let answer = ask(at, line, headers)?;
    Ok(match answer.header("x-backend") {
        Some(_) => {
            let mut shown = answer.shown();
            shown["headers"]["content-length"] = "…".into();
            json!({ "asked": answer.echoed(), "status": shown["status"], "headers": shown["headers"] })
        }
        None => answer.shown(),
    })
}

#[test]
fn requests_and_responses_are_changed_as_envoy_changes_them() -> Result<()> {
    lab(|lab| {
        let (echo, other) = (HttpEcho::start("echo")?, HttpEcho::start("other")?);
        let pair = Pair::start(lab, &config(&echo, &other))?;
        let mut cases = Cases::new();
        let mut same = |listener: &str, line: &str, headers: &[(&str, &str)]| {
            let id = format!("http-routes-{listener} {line} {headers:?}");
            pair.same(&mut cases, id, |proxy| exchange(proxy.at(listener)?, line, headers));
        };
        let host = ("host", "h.example:8080");
        for path in [
            "/prefix",
            "/prefix/a?q=1",
            "/prefixed",
            "/FOLDED/x",
            "/path?x=/y",
            "/separated",
            "/separated/a?b",
            "/whole/a/b?c",
            "/regex/abc/12?/abc/12",
            "/regex/x",
            "/r/a?b",
            "/template/1/2?3",
            "/literal",
            "/kept",
            "/header",
            "/host/name/x?y",
            "/auto",
            "/both/x",
            "/named",
            "/missing",
            "/gone",
            "/nowhere",
            "/filters",
            "/nothing",
        ] {
            same("rewrites", &format!("GET {path}"), &[host]);
        }
        same("rewrites", "GET /header", &[host, ("x-new-host", "new.example"), ("x-new-host", "second")]);
        same("rewrites", "GET /kept", &[host, ("x-forwarded-host", "first.example")]);
        same("rewrites", "GET /kept", &[host, ("x-forwarded-host", "first.example, h.example:8080")]);
        for path in ["/format/a?b", "/named-host?a"] {
            same("rewrites", &format!("GET {path}"), &[host]);
            same("rewrites", &format!("GET {path}"), &[host, ("x-new-host", "n")]);
        }
        for cluster in ["echo", "other", "none", ""] {
            same("rewrites", "GET /named", &[host, ("x-cluster", cluster)]);
        }
        same("rewrites", "GET /named", &[host, ("x-cluster", "other"), ("x-cluster", "echo")]);
        for listener in ["edits", "wins"] {
            for path in ["/edited/x?y", "/weighted/x", "/direct", "/gone", "/nothing"] {
                let line = format!("GET {path}");
                same(listener, &line, &[host]);
                let there =
                    [("x-there", "before"), ("x-first", "before"), ("x-removed", "1"), ("x-level", "0")];
                same(listener, &line, &[&[host], &there[..]].concat());
                same(
                    listener,
                    &line,
                    &[host, ("x-removed-host", "1"), ("x-removed-other", "1"), ("x-there", "")],
                );
            }
        }
        for path in [
            "/https",
            "/https/a?b=c",
            "/scheme",
            "/host/x?y",
            "/port",
            "/path",
            "/path?q",
            "/query?q",
            "/relative?q",
            "/prefix/x?y",
            "/prefix",
            "/regex/x?y",
            "/strip?x",
            "/all/x?y",
            "/created/x?y",
            "/moved",
            "/empty",
            "/formatted?x",
        ] {
            for host in ["h.example", "h.example:80", "h.example:8080", "[::1]:80"] {
                same("redirects", &format!("GET {path}"), &[("host", host)]);
            }
        }
        for host in ["all.example", "external.example"] {
            same("redirects", "GET /x?y", &[("host", host)]);
            same("redirects", "GET /x?y", &[("host", host), ("x-forwarded-proto", "https")]);
            same("redirects", "GET /x?y", &[("host", host), ("x-envoy-internal", "true")]);
        }
        for pick in ["0", "59", "60", "99", "100", "159", "160", "x", "-1", "18446744073709551615"] {
            if pick.parse::<u64>().is_ok() {
                same("weights", "GET /picked", &[host, ("x-pick", pick)]);
            }
        }
        cases.finish()
    })
}

#[test]
fn weights_are_kept_roughly() -> Result<()> {
    lab(|lab| {
        let (echo, other) = (HttpEcho::start("echo")?, HttpEcho::start("other")?);
        let pair = Pair::start(lab, &config(&echo, &other))?;
        for proxy in pair.both() {
            let (at, mut first) = (proxy.at("weights")?, 0);
            for _ in 0..300 {
                let answer = ask(at, "GET /split", &[("host", "h")])?;
                first += u32::from(answer.header("x-backend") == Some("echo"));
            }
            // Six standard deviations of 180.
            ensure!((129..=231).contains(&first), "{first} of 300 by {}", proxy.kind.name());
        }
        Ok(())
    })
}
