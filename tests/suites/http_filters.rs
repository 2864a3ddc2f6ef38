//! HTTP filters: the same requests through Envoy and through shunt.

mod grpc;
pub(crate) mod peer;

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::{DIR, chain, extension};
use shunt_tests::{Bootstrap, Cases, Pair, Proxy, lab};

use self::peer::{ask, server};

/// One request: method, path, headers, body.
type Asked<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

fn filter(kind: &str, message: &str, fields: &str) -> String {
    let name = format!("envoy.filters.http.{kind}");
    extension(&name, &format!("envoy.extensions.filters.http.{kind}.v3.{message}"), fields)
}

/// A route of a path, with what it says to one filter.
fn route(prefix: &str, kind: &str, message: &str, fields: &str) -> String {
    let of_type = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}.v3.{message}");
    let said = format!("envoy.filters.http.{kind}: {{ \"@type\": {of_type}, {fields} }}");
    format!(
        "{{ match: {{ prefix: {prefix} }}, route: {{ cluster: up }}, typed_per_filter_config: {{ {said} }} }}"
    )
}

/// `said`: what else its log has.
fn manager(filters: &[String], routes: &[String], said: &str) -> String {
    let log = extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        &format!(
            "path: {DIR}/log, log_format: {{ text_format_source: {{ inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% \
             %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.rbac)% \
             %DYNAMIC_METADATA(envoy.common)% %DYNAMIC_METADATA(envoy.filters.http.fault)% \
             %FILTER_STATE(my.key:PLAIN)%{said}\\n\" }} }}"
        ),
    );
    let mut routes = routes.to_vec();
    routes.push("{ match: { prefix: / }, route: { cluster: up } }".to_owned());
    let routes = format!(
        "{{ name: r, virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {} ] }} ] }}",
        routes.join(", ")
    );
    let mut filters = filters.to_vec();
    filters.push(filter("router", "Router", ""));
    let of_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let fields = format!(
        "stat_prefix: ing, access_log: [ {log} ], route_config: {routes}, http_filters: [ {} ]",
        filters.join(", ")
    );
    extension("envoy.filters.network.http_connection_manager", of_type, &fields)
}

/// Sends all of the requests to both; compares the answers, the log lines and the stats.
fn compare(
    name: &str,
    filters: &[String],
    routes: &[String],
    asked: &[Asked<'_>],
    stats: &[&str],
) -> Result<()> {
    let up = Up { at: server()?, cluster: "", said: "" };
    compare_with(name, &up, filters, routes, asked, stats)
}

/// The cluster's only host, what else the cluster has, and what else the log says.
struct Up<'a> {
    at: SocketAddr,
    cluster: &'a str,
    said: &'a str,
}

fn compare_with(
    name: &str,
    up: &Up<'_>,
    filters: &[String],
    routes: &[String],
    asked: &[Asked<'_>],
    stats: &[&str],
) -> Result<()> {
    lab(|lab| {
        let chain = chain("", &[manager(filters, routes, up.said)]);
        let config = Bootstrap::new()
            .static_cluster("up", &[up.at], up.cluster)
            .listener("http", &format!("filter_chains: [ {chain} ]"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let mut answers = Vec::new();
        let send = |proxy: &Proxy| {
            let to = proxy.at("http")?;
            asked
                .iter()
                .map(|(method, path, headers, body)| ask(to, method, path, headers, body))
                .collect::<Result<Vec<_>>>()
        };
        pair.same_stats(&mut cases, format_args!("http_filters, {name}: stats"), stats, |proxy| {
            answers.push(send(proxy)?);
            Ok(())
        });
        for (n, (method, path, headers, _)) in asked.iter().enumerate() {
            let mut each = answers.iter();
            let id = format!("http_filters, {name}: {n}: {method} {path} {headers:?}");
            pair.same(&mut cases, id, |_| {
                Ok(each.next().and_then(|all| all.get(n)).map_or(json!(null), peer::Message::compared))
            });
        }
        pair.same(&mut cases, format_args!("http_filters, {name}: log"), |proxy| {
            Ok(json!(proxy.lines("log", asked.len())?))
        });
        cases.finish()
    })
}

#[test]
fn cors_and_csrf() -> Result<()> {
    let policy = "allow_origin_string_match: [ { exact: \"http://a\" } ], allow_methods: \"GET, PUT\", \
        allow_headers: \"*\", expose_headers: x-e, max_age: \"10\", allow_credentials: true";
    let strict = format!("{policy}, forward_not_matching_preflights: false");
    let filters = [
        filter("cors", "Cors", ""),
        filter(
            "csrf",
            "CsrfPolicy",
            "filter_enabled: { default_value: { numerator: 100 } }, additional_origins: [ { exact: other } ]",
        ),
    ];
    let routes =
        [route("/strict", "cors", "CorsPolicy", &strict), route("/cors", "cors", "CorsPolicy", policy)];
    let preflight = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-q"),
        ]
    };
    compare(
        "origins",
        &filters,
        &routes,
        &[
            ("GET", "/cors", &[], b""),
            ("GET", "/cors", &[("origin", "http://a")], b""),
            ("GET", "/cors", &[("origin", "http://b")], b""),
            ("OPTIONS", "/cors", &preflight("http://a"), b""),
            ("OPTIONS", "/cors", &preflight("http://b"), b""),
            ("OPTIONS", "/strict", &preflight("http://b"), b""),
            ("OPTIONS", "/cors", &[("origin", "http://a")], b""),
            ("GET", "/none", &[("origin", "http://a")], b""),
            ("POST", "/none", &[], b"x"),
            ("POST", "/none", &[("origin", "http://test.example")], b"x"),
            ("PUT", "/none", &[("origin", "https://test.example:1")], b"x"),
            ("DELETE", "/none", &[("referer", "http://test.example/a")], b""),
            ("PATCH", "/none", &[("origin", "null")], b"x"),
            ("PATCH", "/none", &[("origin", "https://other/")], b"x"),
        ],
        &["http.ing.cors.*", "http.ing.csrf.*"],
    )
}

#[test]
fn faults() -> Result<()> {
    let own = "delay: { header_delay: {}, percentage: { numerator: 100 } }, \
        abort: { header_abort: {}, percentage: { numerator: 100 } }, \
        response_rate_limit: { header_limit: {}, percentage: { numerator: 100 } }";
    let routes = [
        route("/abort", "fault", "HTTPFault", "abort: { http_status: 418, percentage: { numerator: 100 } }"),
        route("/grpc", "fault", "HTTPFault", "abort: { grpc_status: 5, percentage: { numerator: 100 } }"),
        route(
            "/delay",
            "fault",
            "HTTPFault",
            "delay: { fixed_delay: 0.1s, percentage: { numerator: 100 } }, filter_metadata: { a: b }",
        ),
        route(
            "/header",
            "fault",
            "HTTPFault",
            "abort: { http_status: 500, percentage: { numerator: 100 } }, headers: [ { name: x-me, string_match: { exact: me } } ]",
        ),
        route(
            "/other",
            "fault",
            "HTTPFault",
            "abort: { http_status: 500, percentage: { numerator: 100 } }, upstream_cluster: other",
        ),
        route(
            "/up",
            "fault",
            "HTTPFault",
            "abort: { http_status: 500, percentage: { numerator: 100 } }, upstream_cluster: up, downstream_nodes: [ nobody ]",
        ),
    ];
    compare(
        "faults",
        &[filter("fault", "HTTPFault", own)],
        &routes,
        &[
            ("GET", "/abort", &[], b""),
            ("GET", "/abort", &[("x-envoy-downstream-service-cluster", "from")], b""),
            ("GET", "/grpc", &[("content-type", "application/grpc")], b""),
            ("GET", "/grpc", &[], b""),
            ("GET", "/delay", &[], b""),
            ("GET", "/header", &[], b""),
            ("GET", "/header", &[("x-me", "me")], b""),
            ("GET", "/other", &[], b""),
            ("GET", "/up", &[], b""),
            ("GET", "/up", &[("x-envoy-downstream-service-node", "n")], b""),
            (
                "GET",
                "/x",
                &[("x-envoy-fault-delay-request", "50"), ("x-envoy-fault-abort-request", "450")],
                b"",
            ),
            ("GET", "/x", &[("x-envoy-fault-abort-request", "600")], b""),
            (
                "GET",
                "/x",
                &[("x-envoy-fault-abort-request", "450"), ("x-envoy-fault-abort-request-percentage", "0")],
                b"",
            ),
            (
                "GET",
                "/x",
                &[("x-envoy-fault-abort-grpc-request", "7"), ("content-type", "application/grpc")],
                b"",
            ),
            ("GET", "/x", &[("x-envoy-fault-throughput-response", "1")], b""),
        ],
        &["http.ing.fault.*"],
    )
}

#[test]
fn rbac() -> Result<()> {
    let rules = |action: &str, permission: &str| {
        let policy = format!("{{ permissions: [ {{ {permission} }} ], principals: [ {{ any: true }} ] }}");
        format!("{{ action: {action}, policies: {{ \"my policy\": {policy} }} }}")
    };
    let path = "url_path: { path: { exact: /path } }";
    let per_route =
        |prefix: &str, fields: &str| route(prefix, "rbac", "RBACPerRoute", &format!("rbac: {{ {fields} }}"));
    let routes = [
        per_route("/path", &format!("rules: {}", rules("ALLOW", path))),
        per_route("/deny", &format!("rules: {}", rules("DENY", "any: true"))),
        per_route("/log", &format!("rules: {}", rules("LOG", "any: true"))),
        per_route("/shadow", &format!("shadow_rules: {}", rules("ALLOW", path))),
        route("/free", "rbac", "RBACPerRoute", ""),
    ];
    let own = format!(
        "shadow_rules_stat_prefix: sh_, rules: {}",
        rules("DENY", "header: { name: x-deny, string_match: { contains: a } }")
    );
    compare(
        "rbac",
        &[filter("rbac", "RBAC", &own)],
        &routes,
        &[
            ("GET", "/path?a=b", &[], b""),
            ("GET", "/path/more", &[], b""),
            ("GET", "/deny", &[], b""),
            ("GET", "/log", &[], b""),
            ("GET", "/shadow", &[], b""),
            ("GET", "/free", &[("x-deny", "a")], b""),
            ("GET", "/x", &[("x-deny", "a")], b""),
            ("GET", "/x", &[("x-deny", "b"), ("x-deny", "a")], b""),
            ("GET", "/x", &[("x-deny", "b")], b""),
            ("GET", "/x", &[("x-deny", "a"), ("content-type", "application/grpc")], b""),
        ],
        &["http.ing.rbac.*"],
    )
}

#[test]
fn mutations_and_state() -> Result<()> {
    let append = |name: &str, value: &str, action: &str| {
        format!("{{ append: {{ header: {{ key: {name}, value: \"{value}\" }}, append_action: {action} }} }}")
    };
    let request = [
        append("x-add", "%REQ(:PATH)%", "APPEND_IF_EXISTS_OR_ADD"),
        append("x-empty", "%REQ(x-none)%", "APPEND_IF_EXISTS_OR_ADD"),
        append("x-there", "new", "ADD_IF_ABSENT"),
        append("x-over", "new", "OVERWRITE_IF_EXISTS"),
        "{ remove: x-gone }".to_owned(),
    ];
    let response = [
        append("x-code", "%RESPONSE_CODE%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        "{ remove: content-type }".to_owned(),
    ];
    let query = "{ append: { record: { key: c, value: \"v %REQ(x-a)% &\" } } }, { remove: b }";
    let own = format!(
        "mutations: {{ request_mutations: [ {} ], response_mutations: [ {} ], query_parameter_mutations: [ {query} ] }}",
        request.join(", "),
        response.join(", ")
    );
    let said = format!(
        "mutations: {{ request_mutations: [ {} ] }}",
        append("x-add", "route", "OVERWRITE_IF_EXISTS_OR_ADD")
    );
    let state = "on_request_headers: [ { object_key: my.key, factory_key: envoy.string, \
        format_string: { text_format_source: { inline_string: \"p=%REQ(:PATH)%\" } } } ]";
    compare(
        "mutations",
        &[filter("header_mutation", "HeaderMutation", &own), filter("set_filter_state", "Config", state)],
        &[route("/route", "header_mutation", "HeaderMutationPerRoute", &said)],
        &[
            ("GET", "/a", &[], b""),
            ("GET", "/a?b=1&a=2&b=3", &[("x-a", "1/2")], b""),
            ("GET", "/a?c=9&c=8", &[("x-there", "old"), ("x-over", "old"), ("x-gone", "1")], b""),
            ("GET", "/route", &[("x-add", "1"), ("x-add", "2")], b""),
        ],
        &[],
    )
}

#[test]
fn limits() -> Result<()> {
    let limit = |prefix: &str, tokens: u32, more: &str| {
        format!(
            "stat_prefix: {prefix}, token_bucket: {{ max_tokens: {tokens}, tokens_per_fill: 1, fill_interval: 600s }}, \
             filter_enabled: {{ default_value: {{ numerator: 100 }} }}, {more}"
        )
    };
    let enforced = "filter_enforced: { default_value: { numerator: 100 } }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
        response_headers_to_add: [ { header: { key: x-lim, value: \"yes\" } } ]";
    let lenient = "request_headers_to_add_when_not_enforced: [ { header: { key: x-over, value: \"1\" } } ]";
    let descriptors = "rate_limits: [ { actions: [ { request_headers: { header_name: x-who, descriptor_key: who } } ] } ], \
        descriptors: [ { entries: [ { key: who, value: a } ], \
        token_bucket: { max_tokens: 1, tokens_per_fill: 1, fill_interval: 600s } } ]";
    let routes = [
        route("/two", "local_ratelimit", "LocalRateLimit", &limit("two", 2, enforced)),
        route("/lenient", "local_ratelimit", "LocalRateLimit", &limit("lenient", 1, lenient)),
        route(
            "/who",
            "local_ratelimit",
            "LocalRateLimit",
            &limit("who", 100, &format!("{enforced}, {descriptors}")),
        ),
    ];
    let (a, b): (&[_], &[_]) = (&[("x-who", "a")], &[("x-who", "b")]);
    compare(
        "limits",
        &[
            filter("local_ratelimit", "LocalRateLimit", "stat_prefix: own"),
            filter("buffer", "Buffer", "max_request_bytes: 20"),
        ],
        &routes,
        &[
            ("GET", "/two", &[], b""),
            ("GET", "/two", &[], b""),
            ("GET", "/two", &[], b""),
            ("POST", "/two", &[("content-type", "application/grpc")], b"\0\0\0\0\0"),
            ("GET", "/lenient", &[], b""),
            ("GET", "/lenient", &[], b""),
            ("GET", "/who", a, b""),
            ("GET", "/who", a, b""),
            ("GET", "/who", b, b""),
            ("POST", "/x", &[], b"twenty bytes are fine"),
            ("POST", "/x", &[], b"twenty bytes: fine!!"),
        ],
        &["own.*", "two.*", "lenient.*", "who.*"],
    )
}

#[test]
fn health_checks() -> Result<()> {
    let check = |path: &str, more: &str| {
        let fields = format!("headers: [ {{ name: \":path\", string_match: {{ exact: {path} }} }} ], {more}");
        filter("health_check", "HealthCheck", &fields)
    };
    let filters = [
        check("/plain", "pass_through_mode: false"),
        check("/up", "pass_through_mode: false, cluster_min_healthy_percentages: { up: { value: 50 } }"),
        check(
            "/nowhere",
            "pass_through_mode: false, cluster_min_healthy_percentages: { nowhere: { value: 50 } }",
        ),
        check("/through", "pass_through_mode: true"),
    ];
    // Filters of one name would be one another's in stats: Envoy counts them together, too.
    compare(
        "health",
        &filters,
        &[],
        &[
            ("GET", "/plain", &[], b""),
            ("GET", "/up", &[], b""),
            ("GET", "/nowhere", &[], b""),
            ("GET", "/through", &[], b""),
            ("GET", "/other", &[], b""),
        ],
        &["http.ing.health_check.*"],
    )
}

#[test]
fn compressor() -> Result<()> {
    let library = |kind: &str, message: &str, more: &str| {
        let of_type =
            format!("type.googleapis.com/envoy.extensions.compression.{kind}.compressor.v3.{message}");
        format!("compressor_library: {{ name: lib, typed_config: {{ \"@type\": {of_type} }} }}{more}")
    };
    let filters = [filter("compressor", "Compressor", &library("gzip", "Gzip", ""))];
    let off = route("/off", "compressor", "CompressorPerRoute", "disabled: true");
    let gzip: (&str, &str) = ("accept-encoding", "gzip");
    let many = ("x-want-times", "100");
    compare(
        "compressor",
        &filters,
        &[off],
        &[
            ("GET", "/a", &[gzip, many], b""),
            ("GET", "/a", &[many], b""),
            ("GET", "/a", &[("accept-encoding", "br"), many], b""),
            ("GET", "/a", &[("accept-encoding", "gzip;q=0, *"), many], b""),
            ("GET", "/a", &[("accept-encoding", "identity"), many], b""),
            ("GET", "/off", &[gzip, many], b""),
            ("GET", "/a", &[gzip, many, ("x-want-type", "image/png")], b""),
            ("GET", "/a", &[gzip, many, ("x-want-header", "cache-control: no-transform")], b""),
            ("GET", "/a", &[gzip, many, ("x-want-header", "etag: \"strong\"")], b""),
            ("GET", "/a", &[gzip, many, ("x-want-header", "etag: W/\"weak\"")], b""),
            ("GET", "/a", &[gzip, many, ("x-want-header", "vary: x-a")], b""),
            ("GET", "/a", &[gzip, many, ("x-want-header", "content-encoding: br")], b""),
            ("HEAD", "/a", &[gzip], b""),
        ],
        &[
            "http.ing.compressor.lib.gzip.compressed",
            "http.ing.compressor.lib.gzip.not_compressed",
            "http.ing.compressor.lib.gzip.no_accept_header",
            "http.ing.compressor.lib.gzip.header*",
            "http.ing.compressor.lib.gzip.total_uncompressed_bytes",
        ],
    )
}

#[test]
fn what_scripts_are_told() -> Result<()> {
    let script = "function envoy_on_request(h) local c = h:filterContext() \
        local of = c:get(\\\"of\\\") h:headers():add(\\\"x-of\\\", tostring(of)) \
        local inner = c:get(\\\"inner\\\") h:headers():add(\\\"x-inner\\\", inner and tostring(inner[\\\"n\\\"]) or \\\"none\\\") end";
    let own = format!(
        "default_source_code: {{ inline_string: \"{script}\" }}, filter_context: {{ of: filter, inner: {{ n: 1 }} }}"
    );
    compare(
        "lua",
        &[filter("lua", "Lua", &own)],
        &[
            route("/own", "lua", "LuaPerRoute", "filter_context: { of: route }"),
            route("/none", "lua", "LuaPerRoute", "filter_context: {}"),
            route("/off", "lua", "LuaPerRoute", "disabled: true"),
        ],
        &[
            ("GET", "/a", &[], b""),
            ("GET", "/own", &[], b""),
            ("GET", "/none", &[], b""),
            ("GET", "/off", &[], b""),
        ],
        &["http.ing.lua.*"],
    )
}
