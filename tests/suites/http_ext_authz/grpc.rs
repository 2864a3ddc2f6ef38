//! A service that is asked by gRPC.

use std::collections::HashMap;

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::authz::{Authz, Verdict, compared};
use shunt_tests::bootstrap::extension;
use shunt_tests::lab;
use shunt_tests::ports::nobody;

use super::{Asked, Site, bootstrap, compare, get, post, route};
use crate::http_filters::peer::server;

/// Of clusters that speak HTTP/2.
pub(super) const H2: &str = "typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http2_protocol_options: {} } } }";

fn service(fields: &str) -> String {
    format!("grpc_service: {{ envoy_grpc: {{ cluster_name: authz }}, timeout: 20s }}, {fields}")
}

/// `(key, value, append, append_action)`, as JSON has it.
fn header(key: &str, value: &str, how: &Value) -> Value {
    let mut option = json!({ "header": { "key": key, "value": value } });
    if let (Some(option), Some(how)) = (option.as_object_mut(), how.as_object()) {
        option.extend(how.clone());
    }
    option
}

fn ok(response: &Value) -> Value {
    json!({ "status": { "code": 0 }, "ok_response": response })
}

fn denied(response: &Value) -> Value {
    json!({ "status": { "code": 7 }, "denied_response": response })
}

const NOT_SAID: fn() -> Value = || json!({});

fn verdicts() -> Result<HashMap<String, Verdict>> {
    let append = |yes: bool| json!({ "append": yes });
    let action = |action: &str| json!({ "append_action": action });
    let several = |how: &Value| {
        json!([header("x-there", "1", how), header("x-new", "1", how), header("x-new", "2", how)])
    };
    let each = [
        ("unset", NOT_SAID()),
        ("append", append(true)),
        ("overwrite", append(false)),
        ("append-or-add", action("APPEND_IF_EXISTS_OR_ADD")),
        ("if-absent", action("ADD_IF_ABSENT")),
        ("overwrite-or-add", action("OVERWRITE_IF_EXISTS_OR_ADD")),
        ("if-exists", action("OVERWRITE_IF_EXISTS")),
    ];
    let mut all: HashMap<String, Verdict> = HashMap::new();
    let mut put = |path: &str, response: Value| -> Result<()> {
        all.insert(path.to_owned(), Verdict::answer(response)?);
        Ok(())
    };
    for (name, how) in &each {
        put(&format!("/request/{name}"), ok(&json!({ "headers": several(how) })))?;
        put(&format!("/response/{name}"), ok(&json!({ "response_headers_to_add": several(how) })))?;
        put(&format!("/denied/{name}"), denied(&json!({ "headers": several(how) })))?;
    }
    let set = append(false);
    put(
        "/pseudo",
        ok(&json!({ "headers": [
            header(":path", "/other?q", &set), header(":method", "PUT", &set), header("Host", "other.example", &set),
        ] })),
    )?;
    put("/pseudo/append", ok(&json!({ "headers": [header(":path", "/more", &append(true))] })))?;
    put(
        "/remove",
        ok(&json!({ "headers_to_remove": ["x-gone", "X-Gone-Too", "host", ":path", "x-never", "bad name"] })),
    )?;
    put(
        "/query",
        ok(&json!({
            "query_parameters_to_set": [{ "key": "set", "value": "1" }, { "key": "b", "value": "2" }],
            "query_parameters_to_remove": ["gone", "never"],
        })),
    )?;
    put("/bad/query", ok(&json!({ "query_parameters_to_set": [{ "key": "a b", "value": "1" }] })))?;
    put("/bad/response", ok(&json!({ "response_headers_to_add": [header("bad name", "1", &set)] })))?;
    put("/bad/request", ok(&json!({ "headers": [header("bad name", "1", &set)] })))?;
    put("/bad/action", ok(&json!({ "headers": [header("x-a", "1", &json!({ "append_action": 9 }))] })))?;
    put("/bad/denied", denied(&json!({ "headers": [header("bad name", "1", &set)] })))?;
    put("/metadata", json!({ "dynamic_metadata": { "a": "b", "n": 1 }, "ok_response": {} }))?;
    put("/denied/alone", json!({ "status": { "code": 16 } }))?;
    put("/denied/ok-status", json!({ "status": { "code": 0 }, "denied_response": { "body": "x" } }))?;
    put("/denied/with-ok", json!({ "status": { "code": 7 }, "ok_response": { "headers": several(&set) } }))?;
    put(
        "/denied/all",
        denied(&json!({
            "status": { "code": 401 },
            "body": "who are you?",
            "headers": [
                header("set-cookie", "a=1", &NOT_SAID()), header("set-cookie", "b=2", &NOT_SAID()),
                header("content-type", "text/html", &NOT_SAID()), header("content-length", "3", &NOT_SAID()),
                header("Location", "/login", &NOT_SAID()),
            ],
        })),
    )?;
    put("/denied/503", denied(&json!({ "status": { "code": 503 }, "body": "later" })))?;
    let said = json!({ "status": { "code": 502 }, "body": "broken", "headers": [header("x-why", "me", &NOT_SAID())] });
    put("/error/said", json!({ "status": { "code": 13 }, "error_response": said }))?;
    put("/error/unsaid", json!({ "status": { "code": 13 }, "error_response": {} }))?;
    put("/error/ok-status", json!({ "status": { "code": 0 }, "error_response": said }))?;
    put(
        "/rules",
        ok(&json!({
            "headers": [
                header("x-allowed", "1", &set), header("x-envoy-mine", "1", &set), header("x-no-this", "1", &set),
                header(":path", "/changed", &set), header(":method", "PUT", &set),
            ],
            "headers_to_remove": ["x-gone", "x-no-that", "x-envoy-gone"],
        })),
    )?;
    put("/rules/good", ok(&json!({ "headers": [header("x-allowed", "1", &set)] })))?;
    let many: Vec<Value> = (0..120).map(|n| header(&format!("x-{n}"), "1", &set)).collect();
    put("/many", ok(&json!({ "headers": many })))?;
    all.insert("/garbage".to_owned(), Verdict::Answer((&b"\xff\xff\xff"[..]).into()));
    all.insert("/fails".to_owned(), Verdict::Fails(shunt_tests::authz::Code::Unavailable));
    all.insert("/hangs".to_owned(), Verdict::Hangs);
    Ok(all)
}

fn sites() -> Vec<Site> {
    let rules = |more: &str| {
        format!("decoder_header_mutation_rules: {{ disallow_expression: {{ regex: \"x-no-.*\" }}, {more} }}")
    };
    let other = "grpc_service: { envoy_grpc: { cluster_name: other, authority: that }, timeout: 20s, \
        initial_metadata: [ { key: x-from, value: route } ] }";
    let shadow = "shadow_rules: { action: ALLOW, policies: { p: { permissions: [ { any: true } ], principals: [ { any: true } ] } } }";
    let rbac = || extension("envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBAC", shadow);
    let matcher = |value: &str| {
        format!(
            "filter_enabled_metadata: {{ filter: envoy.filters.http.rbac, path: [ {{ key: shadow_engine_result }} ], \
             value: {{ string_match: {{ exact: {value} }} }} }}"
        )
    };
    vec![
        Site::new("plain", service("clear_route_cache: true"))
            .whole_route("{ match: { prefix: /other }, route: { cluster: up, prefix_rewrite: /rerouted } }")
            .whole_route("{ match: { prefix: /direct }, direct_response: { status: 201 } }")
            .whole_route("{ match: { prefix: /redirect }, redirect: { path_redirect: /x } }"),
        Site::new("raw", service("")),
        Site::new("kept", service("")).whole_route(
            "{ match: { prefix: /other }, route: { cluster: up, prefix_rewrite: /rerouted } }",
        ),
        Site::new("body", service("with_request_body: { max_request_bytes: 10 }"))
            .route("/unread", "check_settings: { disable_request_body_buffering: true }")
            .route("/longer", "check_settings: { with_request_body: { max_request_bytes: 20, pack_as_bytes: true } }")
            .route(
                "/partial",
                "check_settings: { with_request_body: { max_request_bytes: 5, allow_partial_message: true } }",
            ),
        Site::new("partial", service("with_request_body: { max_request_bytes: 10, allow_partial_message: true }")),
        Site::new("bytes", service("with_request_body: { max_request_bytes: 100, pack_as_bytes: true }, encode_raw_headers: true")),
        Site::new(
            "listed",
            service(
                "allowed_headers: { patterns: [ { prefix: x- }, { exact: \":path\" } ] }, \
                 disallowed_headers: { patterns: [ { exact: x-secret } ] }",
            ),
        ),
        Site::new("unlisted", service("disallowed_headers: { patterns: [ { prefix: x-, ignore_case: true }, { exact: \":method\" } ] }")),
        Site::new("allow", service("failure_mode_allow: true, failure_mode_allow_header_add: true")),
        Site::new("status", service("status_on_error: { code: 503 }")),
        Site::new("strict", service("validate_mutations: true")),
        Site::new("rules", service(&rules(""))),
        Site::new("rules-more", service(&rules("allow_all_routing: true, allow_envoy: true, disallow_system: true"))),
        Site::new("rules-error", service(&rules("disallow_is_error: true"))),
        Site::new("off", service("filter_enabled: { default_value: { numerator: 0 } }")),
        Site::new(
            "off-deny",
            service(
                "filter_enabled: { default_value: { numerator: 0 } }, \
                 deny_at_disable: { runtime_key: none, default_value: true }, status_on_error: { code: 503 }",
            ),
        ),
        Site::new("on-meta", service(&matcher("allowed"))).before(rbac()),
        Site::new("off-meta", service(&matcher("denied"))).before(rbac()),
        Site::new(
            "told",
            service(
                "metadata_context_namespaces: [ envoy.filters.http.rbac, none ], \
                 route_metadata_context_namespaces: [ mine, none ], bootstrap_metadata_labels_key: labels",
            ),
        )
        .before(rbac())
        .whole_route(
            "{ match: { prefix: /route }, route: { cluster: up }, \
             metadata: { filter_metadata: { mine: { a: 1, b: [ x, true ] }, other: { c: d } } } }",
        ),
        Site::new("routes", service(""))
            .host("check_settings: { context_extensions: { a: host, b: host } }")
            .route("/free", "disabled: true")
            .route("/said", "check_settings: { context_extensions: { a: route, c: route } }")
            .route("/elsewhere", &format!("check_settings: {{ {other} }}"))
            .whole_route(&route("/free-direct", "disabled: true", "direct_response: { status: 202 }")),
        Site::new("named", service("stat_prefix: own, charge_cluster_response_stats: false")),
        Site::new("short", service("max_denied_response_body_bytes: 4, enable_dynamic_metadata_ingestion: false")),
        Site::new("late", "grpc_service: { envoy_grpc: { cluster_name: authz }, timeout: 0.3s }"),
        Site::new(
            "quiet",
            "grpc_service: { envoy_grpc: { cluster_name: authz, skip_envoy_headers: true }, timeout: 20s }",
        ),
        Site::new("dead", "grpc_service: { envoy_grpc: { cluster_name: dead }, timeout: 20s }"),
    ]
}

fn asked() -> Vec<Asked> {
    let grpc = ("content-type", "application/grpc");
    let mut all = vec![
        get("plain", "/a?b=c#d"),
        get("plain", "/a").with(&[
            ("x-dup", "1"),
            ("x-dup", "2"),
            ("x-envoy-downstream-service-cluster", "me"),
            ("x-envoy-auth-partial-body", "true"),
            ("x-text", "é"),
            ("te", "trailers"),
        ]),
        post("plain", "/a", b"not read"),
        get("plain", "/direct"),
        get("plain", "/redirect"),
        get("plain", "/pseudo"),
        get("plain", "/pseudo/append"),
        get("kept", "/pseudo"),
        get("plain", "/remove").with(&[("x-gone", "1"), ("x-gone-too", "1"), ("x-stays", "1")]),
        get("plain", "/query?z=1&gone=1&b=1&b=3&a="),
        get("plain", "/metadata"),
        get("raw", "/bad/query"),
        get("plain", "/bad/action"),
        get("plain", "/denied/alone"),
        get("plain", "/denied/alone").method("HEAD"),
        get("plain", "/denied/ok-status"),
        get("plain", "/denied/with-ok"),
        get("plain", "/denied/all"),
        get("plain", "/denied/all").method("HEAD"),
        get("plain", "/denied/503"),
        post("plain", "/denied/all", b"x").with(&[grpc]),
        get("plain", "/error/said"),
        get("plain", "/error/unsaid"),
        get("plain", "/error/ok-status"),
        get("plain", "/garbage"),
        get("plain", "/fails"),
        post("plain", "/fails", b"x").with(&[grpc]),
        get("plain", "/many"),
        get("body", "/a"),
        post("body", "/a", b"five5"),
        post("body", "/a", b"ten bytes!"),
        post("body", "/a", b"eleven byte"),
        post("body", "/unread", b"eleven byte"),
        post("body", "/longer", b"eleven byte"),
        post("body", "/partial", b"eleven byte"),
        post("body", "/denied/all", b"five5"),
        post("partial", "/a", b"five5"),
        post("partial", "/a", b"ten bytes!"),
        post("partial", "/a", b"more than ten bytes"),
        post("bytes", "/a", b"\x00\xff bytes").with(&[("x-dup", "1"), ("x-dup", "2")]),
        get("bytes", "/a"),
        get("listed", "/a").with(&[("x-a", "1"), ("x-secret", "1"), ("authorization", "me")]),
        get("unlisted", "/a").with(&[("x-a", "1"), ("authorization", "me")]),
        get("allow", "/fails").with(&[("x-envoy-auth-failure-mode-allowed", "mine")]),
        get("allow", "/garbage"),
        get("allow", "/error/said"),
        get("allow", "/denied/alone"),
        get("status", "/fails"),
        get("status", "/error/said"),
        get("status", "/error/unsaid"),
        get("status", "/denied/alone"),
        get("strict", "/bad/query"),
        get("strict", "/bad/request"),
        get("strict", "/bad/response"),
        get("strict", "/bad/action"),
        get("strict", "/bad/denied"),
        get("strict", "/remove").with(&[("x-gone", "1")]),
        get("strict", "/query?a=b"),
        get("off", "/denied/all"),
        get("off-deny", "/a"),
        get("on-meta", "/denied/alone"),
        get("off-meta", "/denied/alone"),
        get("told", "/a"),
        get("told", "/route"),
        get("routes", "/free"),
        get("routes", "/free-direct"),
        get("routes", "/said"),
        get("routes", "/elsewhere"),
        get("routes", "/a"),
        get("named", "/a"),
        get("named", "/denied/alone"),
        get("named", "/fails"),
        get("short", "/denied/all"),
        get("short", "/metadata"),
        get("late", "/hangs"),
        get("quiet", "/a"),
        get("dead", "/a"),
    ];
    for name in
        ["unset", "append", "overwrite", "append-or-add", "if-absent", "overwrite-or-add", "if-exists"]
    {
        for what in ["request", "response", "denied"] {
            let path: &'static str = Box::leak(format!("/{what}/{name}").into_boxed_str());
            let there = [("x-there", "0"), ("x-want-header", "x-there: 0")];
            all.push(get("plain", path).with(&there));
        }
    }
    for site in ["rules", "rules-more", "rules-error"] {
        all.push(get(site, "/rules").with(&[("x-gone", "1"), ("x-no-that", "1"), ("x-envoy-gone", "1")]));
        all.push(get(site, "/rules/good"));
    }
    all
}

#[test]
fn by_grpc() -> Result<()> {
    lab(|lab| {
        let (authz, other, up) = (Authz::start(verdicts()?)?, Authz::start(HashMap::new())?, server()?);
        let dead = nobody()?;
        let clusters = [("authz", authz.address, H2), ("other", other.address, H2), ("dead", dead, H2)];
        let sites = sites();
        let config = bootstrap(up, &sites, &clusters);
        compare(lab, &config, &sites, &asked(), || {
            let all: Vec<Value> = authz.taken().iter().map(compared).collect();
            let elsewhere: Vec<Value> = other.taken().iter().map(compared).collect();
            json!([all, elsewhere])
        })
    })
}
