//! What spans say, which requests have one, and what they are called: by the fields of the connection manager, of routes
//! and of the provider.

use anyhow::Result;
use shunt_tests::bootstrap::extension;
use shunt_tests::collector::Speaks;
use shunt_tests::{Cases, Does, Upstream, lab};

use super::rig::{Asked, Config, Rig, get, otel, zipkin};

const LOW: (&str, &str) = ("x-request-id", "00000001-0000-4000-8000-00000000abcd");
/// 5,000 of 10,000; 0 of 100.
const HALF: (&str, &str) = ("x-request-id", "00001388-0000-4000-8000-00000000abcd");
const TRACED: (&str, &str) = ("x-request-id", "00001388-0000-9000-8000-00000000abcd");

fn with(config: &Config<'_>, id: &str, all: &[(&str, Asked<'_>)]) -> Result<()> {
    // What the cluster `other` says of each request.
    let moved = Upstream::start("moved", Does::Says(302, "Location: http://test.example/there".to_owned()))?;
    lab(|lab| {
        let rig = Rig::start_with(lab, config, moved.address)?;
        let mut cases = Cases::new();
        rig.all(&mut cases, id, all);
        cases.finish()
    })
}

/// A client's wish, by each listener of the route `/path`.
const CLIENT: (&str, &str) = ("x-client-trace-id", "abc");
const FORCE: (&str, &str) = ("x-envoy-force-trace", "true");

#[test]
fn sampling() -> Result<()> {
    let tracing = zipkin("") + "client_sampling: { value: 0 }, random_sampling: { value: 0.5 }";
    let routes = [
        "match: { prefix: /all }, route: { cluster: up }, tracing: {}",
        "match: { prefix: /none }, route: { cluster: up }, tracing: { client_sampling: { numerator: 0 }, \
         random_sampling: { numerator: 0 } }",
        "match: { prefix: /half }, route: { cluster: up }, tracing: { random_sampling: { numerator: 5001, denominator: \
         TEN_THOUSAND }, overall_sampling: { numerator: 1 } }",
        "match: { prefix: /never }, route: { cluster: up }, tracing: { overall_sampling: { numerator: 0 } }",
    ];
    let config = Config { tracing: &tracing, routes: &routes, ..Config::default() };
    with(
        &config,
        "sampling",
        &[
            ("a low id", get("/", &[LOW])),
            ("another id", get("/", &[HALF]).makes(0)),
            ("an id that says so", get("/", &[TRACED])),
            // Nobody outside may force it.
            ("forced", get("/", &[HALF, FORCE]).makes(0)),
            ("a client's wish", get("/", &[HALF, CLIENT]).makes(0)),
            ("no id of ours", get("/", &[("x-request-id", "mine")]).makes(0)),
            ("eight digits", get("/", &[("x-request-id", "00000001")])),
            ("36 letters", get("/", &[("x-request-id", "zzzzzzzz-0000-9000-8000-00000000abcd")]).makes(0)),
            ("another digit", get("/", &[("x-request-id", "00001388-0000-1000-8000-00000000abcd")]).makes(0)),
            ("the route's all", get("/all", &[HALF])),
            ("the route's all, a client's wish", get("/all", &[HALF, CLIENT])),
            ("the route's none", get("/none", &[LOW]).makes(0)),
            ("the route's none, a client's wish", get("/none", &[LOW, CLIENT]).makes(0)),
            ("the route's none, forced", get("/none", &[LOW, FORCE]).makes(0)),
            ("the route's half", get("/half", &[HALF])),
            ("the route's half, a low id", get("/half", &[LOW]).makes(0)),
            ("the route's never", get("/never", &[TRACED]).makes(0)),
            ("the route's never, forced", get("/never", &[LOW, FORCE]).makes(0)),
        ],
    )
}

#[test]
fn an_id_that_is_left_alone() -> Result<()> {
    let plain = "match: { prefix: / }, route: { cluster: up }";
    let id = |fields: &str| {
        format!(
            "request_id_extension: {{ typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.request_id.uuid.v3.\
             UuidRequestIdConfig, {fields} }} }},"
        )
    };
    for (name, fields, asked) in [
        ("without a digit", "pack_trace_reason: false", get("/", &[LOW])),
        ("traced whatever it says", "use_request_id_for_trace_sampling: false", get("/", &[LOW])),
    ] {
        let tracing = zipkin("") + "random_sampling: { value: 50 }";
        let manager = id(fields);
        let config = Config { tracing: &tracing, manager: &manager, routes: &[plain], ..Config::default() };
        let never = if name == "without a digit" { 0 } else { 1 };
        let (half, traced) =
            (get("/", &[("x-request-id", "00002328-0000-4000-8000-00000000abcd")]).makes(never), {
                get("/", &[("x-request-id", "00002328-0000-9000-8000-00000000abcd")]).makes(never)
            });
        with(&config, name, &[("low", asked), ("high", half), ("high, said to be traced", traced)])?;
    }
    Ok(())
}

/// Names of spans, and who is told of them.
#[test]
fn decorators() -> Result<()> {
    let routes = [
        "match: { prefix: /told }, decorator: { operation: mine }, route: { cluster: up }",
        "match: { prefix: /kept }, decorator: { operation: mine, propagate: false }, route: { cluster: up }",
        "match: { prefix: /back }, response_headers_to_add: [ { header: { key: x-envoy-decorator-operation, value: of-server } } \
         ], route: { cluster: up }",
        "match: { prefix: /direct }, decorator: { operation: mine }, direct_response: { status: 500 }",
        "match: { prefix: /op }, route: { cluster: up }, tracing: { operation: \"%REQ(:METHOD)% of the route\" }",
        "match: { prefix: /both }, decorator: { operation: mine }, route: { cluster: up }, tracing: { operation: of-route }",
    ];
    let other = [("x-envoy-decorator-operation", "theirs")];
    for (provider, tracing, speaks) in
        [("zipkin", zipkin(""), Speaks::Http1), ("opentelemetry", otel(""), Speaks::Http2)]
    {
        let config = Config { tracing: &tracing, routes: &routes, speaks, ..Config::default() };
        let mut all = Vec::new();
        for path in ["/none", "/told", "/kept", "/back", "/direct", "/op", "/both"] {
            all.push((path.to_owned(), get(path, &[])));
            all.push((format!("{path}, out"), get(path, &[]).out()));
            all.push((format!("{path}, told"), get(path, &other)));
            all.push((format!("{path}, out, told"), get(path, &other).out()));
        }
        let all: Vec<_> = all.iter().map(|(name, asked)| (name.as_str(), *asked)).collect();
        with(&config, &format!("decorators, {provider}"), &all)?;
    }
    let tracing = otel("") + "operation: \"%REQ(:METHOD)% %REQ(X-NO)% of all\"";
    let config = Config { tracing: &tracing, routes: &routes, speaks: Speaks::Http2, ..Config::default() };
    let all = [("none", get("/none", &[])), ("op", get("/op", &[])), ("told", get("/told", &[]).out())];
    with(&config, "operations", &all)
}

/// Tags of the configuration, and how long one may be.
#[test]
fn tags() -> Result<()> {
    let metadata = |tag: &str, kind: &str, path: &str, default: &str| {
        let path: String = path.split('.').map(|key| format!("{{ key: \"{key}\" }}, ")).collect();
        format!(
            "{{ tag: {tag}, metadata: {{ kind: {{ {kind}: {{}} }}, metadata_key: {{ key: of, path: [ {path} ] }}, \
             default_value: \"{default}\" }} }}"
        )
    };
    let all = [
        "{ tag: fixed, literal: { value: told } }".to_owned(),
        "{ tag: env, environment: { name: SHUNT_TESTS_NO_SUCH, default_value: none } }".to_owned(),
        "{ tag: env-none, environment: { name: SHUNT_TESTS_NO_SUCH } }".to_owned(),
        "{ tag: header, request_header: { name: x-tag, default_value: none } }".to_owned(),
        "{ tag: header-none, request_header: { name: x-tag } }".to_owned(),
        "{ tag: format, value: \"%REQ(:METHOD)% %RESPONSE_CODE%\" }".to_owned(),
        metadata("of-route", "route", "route", ""),
        metadata("of-cluster", "cluster", "cluster", ""),
        metadata("of-host", "host", "host", ""),
        metadata("of-request", "request", "deep.er", ""),
        metadata("number", "request", "number", ""),
        metadata("truth", "request", "truth", ""),
        metadata("list", "request", "list", ""),
        metadata("whole", "request", "deep", ""),
        metadata("none", "request", "no.such", ""),
        metadata("by-default", "route", "no", "default"),
        "{ tag: component, literal: { value: mine } }".to_owned(),
    ];
    let set = extension(
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
        "default_source_code: { inline_string: \"function envoy_on_request(handle) local all = \
         handle:streamInfo():dynamicMetadata() all:set('of', 'deep', { er = 'found' }) all:set('of', 'number', 1.5) \
         all:set('of', 'truth', true) all:set('of', 'list', { 'a', 'b' }) end\" }",
    );
    let routes = [
        "match: { prefix: /m }, metadata: { filter_metadata: { of: { route: the-route } } }, route: { cluster: up }, tracing: { \
         custom_tags: [ { tag: fixed, literal: { value: of-route } }, { tag: more, literal: { value: m } } ] }",
        "match: { prefix: /direct }, direct_response: { status: 503, body: { inline_string: sorry } }",
        "match: { prefix: /gone }, route: { cluster: gone }",
        "match: { prefix: /unknown }, route: { cluster_header: x-no }",
        "match: { prefix: /redirect }, redirect: { path_redirect: /x }",
        "match: { prefix: /rewrite }, route: { cluster: up, prefix_rewrite: /other }",
    ];
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "5S")];
    let own =
        [("x-tag", "a value"), ("x-envoy-downstream-service-cluster", "them"), ("x-client-trace-id", "cid")];
    for (provider, start, speaks) in
        [("zipkin", zipkin(""), Speaks::Http1), ("opentelemetry", otel(""), Speaks::Http2)]
    {
        let tracing = format!("{start} max_path_tag_length: 12, custom_tags: [ {} ]", all.join(", "));
        let filters = [set.clone()];
        let config =
            Config { tracing: &tracing, routes: &routes, speaks, filters: &filters, ..Config::default() };
        with(
            &config,
            &format!("tags, {provider}"),
            &[
                ("of the request", get("/m", &own)),
                ("of none", get("/", &[])),
                ("a long path", get("/m/0123456789?query", &own).out()),
                ("its own answer", get("/direct", &[])),
                ("its own answer to gRPC", Asked { line: "POST /direct", ..get("/direct", &grpc) }),
                ("no upstream", get("/gone", &[])),
                ("no cluster", get("/unknown", &[])),
                ("a redirect", get("/redirect", &[])),
                ("another path", get("/rewrite/a", &[])),
                ("gRPC", Asked { line: "POST /pack.Service/Method", ..get("", &grpc) }),
            ],
        )?;
    }
    Ok(())
}

/// Attempts with spans of their own.
#[test]
fn children() -> Result<()> {
    let routes = [
        "match: { prefix: /gone }, route: { cluster: gone, retry_policy: { retry_on: connect-failure, num_retries: 2, \
         retry_back_off: { base_interval: 0.001s } } }",
        "match: { prefix: /none }, route: { cluster: none }",
        "match: { prefix: /direct }, direct_response: { status: 200 }",
        "match: { prefix: /named }, route: { cluster: up }, tracing: { upstream_operation: \"to %UPSTREAM_CLUSTER%\" }",
    ];
    let b3 = [
        ("x-b3-traceid", super::TRACE),
        ("x-b3-spanid", super::SPAN),
        ("x-b3-sampled", "1"),
        super::W3C,
        ("tracestate", "a=b"),
    ];
    let off = [("x-b3-traceid", super::TRACE), ("x-b3-spanid", super::SPAN), ("x-b3-sampled", "0")];
    let one = [("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")];
    let spawned = "spawn_upstream_span: true, custom_tags: [ { tag: fixed, literal: { value: told } } ]";
    for (name, tracing, router, speaks) in [
        ("zipkin", zipkin("") + spawned, "", Speaks::Http1),
        ("zipkin, alone", zipkin("shared_span_context: false") + spawned, "", Speaks::Http1),
        ("zipkin, split", zipkin("split_spans_for_request: true") + spawned, "", Speaks::Http1),
        ("zipkin, split alone", zipkin("split_spans_for_request: true"), "", Speaks::Http1),
        ("zipkin, by the router", zipkin(""), "start_child_span: true", Speaks::Http1),
        ("opentelemetry", otel("") + spawned, "", Speaks::Http2),
        ("opentelemetry, by the router", otel(""), "start_child_span: true", Speaks::Http2),
    ] {
        let two = if name == "zipkin, split alone" { 1 } else { 2 };
        let gone = if two == 1 { 1 } else { 4 };
        let config = Config { tracing: &tracing, routes: &routes, router, speaks, ..Config::default() };
        let off = if speaks == Speaks::Http1 { get("/a", &off).makes(0) } else { get("/a", &off).makes(2) };
        with(
            &config,
            &format!("children, {name}"),
            &[
                ("in", get("/a", &[]).makes(two)),
                ("out", get("/a", &[]).out().makes(two)),
                ("of another, in", get("/a", &b3).makes(two)),
                ("of another, out", get("/a", &b3).out().makes(two)),
                ("one header", get("/a", &one).makes(two)),
                ("not sampled", off),
                ("tried again", get("/gone", &[]).makes(gone)),
                ("no endpoint", get("/none", &[])),
                ("its own answer", get("/direct", &[])),
                ("a name", get("/named", &[]).makes(two)),
            ],
        )?;
    }
    Ok(())
}

/// Copies of requests, whose spans are below those of the requests.
#[test]
fn mirrors() -> Result<()> {
    let to = |path: &str, policy: &str| {
        format!(
            "match: {{ prefix: {path} }}, route: {{ cluster: up, request_mirror_policies: [ {{ {policy} }} ] }}"
        )
    };
    let routes = [
        to("/plain", "cluster: up"),
        to("/sampled", "cluster: up, trace_sampled: true"),
        to("/not-sampled", "cluster: up, trace_sampled: false"),
        to("/gone", "cluster: gone"),
        to("/none", "cluster: none"),
    ];
    let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
    let off = [("x-b3-traceid", super::TRACE), ("x-b3-spanid", super::SPAN), ("x-b3-sampled", "0")];
    let told = "custom_tags: [ { tag: fixed, literal: { value: told } } ]";
    for (name, tracing, speaks) in [
        ("zipkin", zipkin("") + told, Speaks::Http1),
        ("zipkin, split", zipkin("split_spans_for_request: true"), Speaks::Http1),
        ("zipkin, verbose", zipkin("") + "verbose: true", Speaks::Http1),
        ("zipkin, no propagation", zipkin("") + "no_context_propagation: true", Speaks::Http1),
        ("opentelemetry", otel("") + told, Speaks::Http2),
        ("opentelemetry, verbose", otel("") + "verbose: true", Speaks::Http2),
    ] {
        let config = Config { tracing: &tracing, routes: &routes, speaks, ..Config::default() };
        let mut asked = vec![
            ("in", get("/plain", &[]).makes(2)),
            ("out", get("/plain", &[]).out().makes(2)),
            ("sampled", get("/sampled", &[]).makes(2)),
            ("not sampled", get("/not-sampled", &[]).makes(1)),
            ("nobody listens", get("/gone", &[]).makes(2)),
            ("no endpoint", get("/none", &[]).makes(2)),
            ("no mirror", get("/", &[]).makes(1)),
        ];
        if speaks == Speaks::Http1 {
            asked.push(("not traced", get("/plain", &off).makes(0)));
            asked.push(("only the copy", get("/sampled", &off).makes(1)));
        }
        with(&config, &format!("mirrors, {name}"), &asked)?;
    }
    Ok(())
}

/// A redirect that is followed begins a span anew; an answer that is not wanted is said to be cancelled.
#[test]
fn redirects() -> Result<()> {
    let routes = [
        "match: { prefix: /moved }, route: { cluster: other, internal_redirect_policy: {} }",
        "match: { prefix: /nowhere }, route: { cluster: other }",
        "match: { prefix: /there }, route: { cluster: up }, decorator: { operation: found }",
        "match: { prefix: /again }, route: { cluster: other, retry_policy: { retry_on: retriable-status-codes, \
         retriable_status_codes: [ 302 ], num_retries: 1, retry_back_off: { base_interval: 0.001s } } }",
    ];
    let off = [("x-b3-traceid", super::TRACE), ("x-b3-spanid", super::SPAN), ("x-b3-sampled", "0")];
    for (name, tracing, speaks) in [
        ("zipkin", zipkin(""), Speaks::Http1),
        ("zipkin, with attempts", zipkin("") + "spawn_upstream_span: true", Speaks::Http1),
        ("opentelemetry", otel(""), Speaks::Http2),
        ("opentelemetry, with attempts", otel("") + "spawn_upstream_span: true", Speaks::Http2),
    ] {
        let attempts = usize::from(tracing.contains("spawn"));
        let config = Config { tracing: &tracing, routes: &routes, speaks, ..Config::default() };
        // OpenTelemetry's of a request that begins anew is not sampled.
        let passes = if speaks == Speaks::Http1 { 2 } else { 1 };
        let mut asked = vec![
            ("in", get("/moved", &[]).makes(passes * (1 + attempts))),
            ("out", get("/moved", &[]).out().makes(passes * (1 + attempts))),
            ("not followed", get("/nowhere", &[]).makes(1 + attempts)),
            ("tried again", get("/again", &[]).makes(1 + 2 * attempts)),
        ];
        if speaks == Speaks::Http1 {
            asked.push(("not traced", get("/moved", &off).makes(0)));
        }
        with(&config, &format!("redirects, {name}"), &asked)?;
    }
    Ok(())
}

/// A filter sees to it that the request has another route, by whose tracing it goes on.
#[test]
fn other_routes() -> Result<()> {
    let moves = extension(
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
        "default_source_code: { inline_string: \"function envoy_on_request(handle) local to = \
         handle:headers():get('x-to') if to then handle:headers():add('x-there', to) end end\" }",
    );
    let there = |to: &str, more: &str| {
        format!(
            "match: {{ prefix: /, headers: [ {{ name: x-there, string_match: {{ exact: {to} }} }} ] }}, route: {{ cluster: \
             up }}, {more}"
        )
    };
    let routes = [
        there("named", "decorator: { operation: there }"),
        there("secret", "decorator: { operation: there, propagate: false }"),
        there("more", "tracing: { random_sampling: { numerator: 100 } }"),
        there("less", "tracing: { random_sampling: { numerator: 0 } }, decorator: { operation: there }"),
        there("never", "tracing: { overall_sampling: { numerator: 0 } }"),
        there("tags", "tracing: { custom_tags: [ { tag: other, literal: { value: there } } ] }"),
        there("operation", "tracing: { operation: \"to %REQ(x-there)%\" }"),
        "match: { prefix: /named }, route: { cluster: up }, decorator: { operation: here }".to_owned(),
        "match: { prefix: /off }, route: { cluster: up }, tracing: { random_sampling: { numerator: 0 } }"
            .to_owned(),
    ];
    let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
    let b3 = [("x-b3-traceid", super::TRACE), ("x-b3-spanid", super::SPAN)];
    for (name, tracing, speaks) in
        [("zipkin", zipkin(""), Speaks::Http1), ("opentelemetry", otel(""), Speaks::Http2)]
    {
        let config = Config {
            tracing: &tracing,
            routes: &routes,
            filters: std::slice::from_ref(&moves),
            speaks,
            ..Config::default()
        };
        let to = |to| [("x-to", to), LOW];
        let (named, secret, more, less, never, tags, operation) =
            (to("named"), to("secret"), to("more"), to("less"), to("never"), to("tags"), to("operation"));
        let not = [("x-to", "named"), b3[0], b3[1], ("x-b3-sampled", "0")];
        let told = [("x-to", "named"), ("x-envoy-decorator-operation", "told")];
        let mut asked = vec![
            ("a name", get("/", &named)),
            ("a name, out", get("/", &named).out()),
            ("another name", get("/named", &named)),
            ("another name, out", get("/named", &named).out()),
            ("a name that is not told", get("/named", &secret)),
            ("no name", get("/named", &more)),
            ("no name, out", get("/named", &more).out()),
            ("a name that was told", get("/named", &told)),
            ("a name that was told, out", get("/named", &told).out()),
            ("sampled there", get("/off", &more)),
            ("sampled here", get("/", &less)),
            ("not at all there", get("/", &never).makes(0)),
            ("tags", get("/", &tags)),
            ("an operation", get("/", &operation)),
            ("an operation, out", get("/named", &operation).out()),
        ];
        if speaks == Speaks::Http1 {
            asked.push(("not sampled by another", get("/", &not).makes(0)));
        }
        with(&config, &format!("other routes, {name}"), &asked)?;
    }
    Ok(())
}

/// When bytes came and went.
#[test]
fn verbose() -> Result<()> {
    let routes = [
        "match: { prefix: /gone }, route: { cluster: gone }",
        "match: { prefix: /direct }, direct_response: { status: 200 }",
    ];
    for (name, more) in [("alone", ""), ("with attempts", "spawn_upstream_span: true, ")] {
        let tracing = zipkin("") + more + "verbose: true";
        let config = Config { tracing: &tracing, routes: &routes, ..Config::default() };
        let two = if more.is_empty() { 1 } else { 2 };
        with(
            &config,
            &format!("verbose, {name}"),
            &[
                ("in", get("/a", &[]).makes(two)),
                ("out", get("/a", &[]).out().makes(two)),
                ("nobody listens", get("/gone", &[]).makes(two)),
                ("its own answer", get("/direct", &[])),
            ],
        )?;
    }
    Ok(())
}

/// Fields of the providers and of `tracing` that none of the above has.
#[test]
fn more_fields() -> Result<()> {
    for (name, tracing, speaks) in [
        ("no propagation, zipkin", zipkin("") + "no_context_propagation: true", Speaks::Http1),
        ("no propagation, opentelemetry", otel("") + "no_context_propagation: true", Speaks::Http2),
        ("few, opentelemetry", otel("") + "random_sampling: { value: 1 }", Speaks::Http2),
        ("no provider", "random_sampling: { value: 100 }".to_owned(), Speaks::Http1),
        (
            "a sampler",
            otel(
                "sampler: { name: envoy.tracers.opentelemetry.samplers.always_on, typed_config: { \"@type\": \
                 type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig } }, ",
            ) + "random_sampling: { value: 1 }",
            Speaks::Http2,
        ),
        (
            "a resource",
            otel(
                "resource_detectors: [ { name: envoy.tracers.opentelemetry.resource_detectors.static_config, typed_config: { \
                 \"@type\": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.\
                 StaticConfigResourceDetectorConfig, attributes: { key: value, other: more } } } ], service_name: svc",
            ),
            Speaks::Http2,
        ),
    ] {
        let config = Config { tracing: &tracing, speaks, ..Config::default() };
        let spans = usize::from(name != "no provider");
        let sampled = if matches!(name, "a sampler" | "few, opentelemetry") { 0 } else { spans };
        with(
            &config,
            name,
            &[
                ("in", get("/", &[LOW]).makes(spans)),
                ("out", get("/", &[HALF]).out().makes(sampled)),
                ("of another", get("/", &[super::W3C, LOW]).makes(spans)),
                ("of another that is not traced", get("/", &[super::W3C, HALF]).makes(sampled)),
            ],
        )?;
    }
    Ok(())
}
