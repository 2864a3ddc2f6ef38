//! Internal redirects, and what routes make of hosts and paths.

use anyhow::Result;
use shunt_tests::asked::{Ask, Body};
use shunt_tests::bootstrap::{Bootstrap, extension};
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, host, manager, manager_with, named_host, route, simple};

/// Each pass leaves a mark on the request, and would find what the one before has left beside it.
const COUNTING: &str = "function envoy_on_request(handle) \
    local headers, found = handle:headers(), handle:streamInfo():dynamicMetadata() \
    headers:replace('x-passes', (headers:get('x-passes') or '') .. '+') \
    if found:get('count') then headers:add('x-kept', 'yes') end \
    found:set('count', 'passes', 'some') \
    local body = handle:body() \
    headers = handle:headers() \
    headers:add('x-length', tostring(body and body:length() or 0)) \
    if headers:get(':path') == '/tea/' then handle:respond({ [':status'] = '418' }, 'tea') end end \
    function envoy_on_response(handle) handle:headers():add('x-back', '+') end";

const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const EARLY: &str = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";

fn append(name: &str, value: &str) -> String {
    format!("{{ append: {{ header: {{ key: {name}, value: {value:?} }} }} }}")
}

fn predicate(kind: &str, message: &str, fields: &str) -> String {
    let of_type = format!("envoy.extensions.internal_redirect.{kind}.v3.{message}");
    extension(&format!("envoy.internal_redirect_predicates.{kind}"), &of_type, fields)
}

#[test]
fn internal_redirects() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let follows = |prefix: &str, fields: &str| {
            route(prefix, "up", &format!("internal_redirect_policy: {{ {fields} }}"))
        };
        let previous = predicate("previous_routes", "PreviousRoutesConfig", "");
        let listed =
            predicate("allow_listed_routes", "AllowListedRoutesConfig", "allowed_route_names: [ listed ]");
        let safe = predicate("safe_cross_scheme", "SafeCrossSchemeConfig", "");
        let routes = [
            follows("/plain/", ""),
            follows("/many/", "max_internal_redirects: 3"),
            follows("/codes/", "redirect_response_codes: [ 301, 303, 307, 308 ]"),
            follows("/cross/", "allow_cross_scheme_redirect: true"),
            follows(
                "/safe/",
                &format!("allow_cross_scheme_redirect: true, predicates: [ {safe} ]"),
            ),
            follows("/previous/", &format!("max_internal_redirects: 5, predicates: [ {previous} ]")),
            follows("/allowed/", &format!("predicates: [ {listed} ]")),
            follows("/copy/", "response_headers_to_copy: [ x-copied, x-none ]"),
            route("/listed/", "up", ""),
            route("/retry/", "up", "internal_redirect_policy: {}, retry_policy: { retry_on: 5xx }"),
            route("/rewrite/", "up", "internal_redirect_policy: {}, prefix_rewrite: /rewritten/, host_rewrite_literal: other.test"),
            "{ name: direct, match: { prefix: /direct/ }, direct_response: { status: 418, body: { inline_string: tea } } }".to_owned(),
            route("/nowhere/", "nowhere", ""),
            "{ name: external, match: { prefix: /external/ }, redirect: { path_redirect: /else } }".to_owned(),
        ];
        let hosts = [
            named_host("a", "a.test", &routes, ""),
            named_host("b", "b.test", &[route("/b/", "up", "")], "include_request_attempt_count: true"),
        ];
        let config = Bootstrap::new().listener("l", &manager(&hosts, "")).static_cluster("up", &[up], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        let to = |location: &str| format!("status=302 h:location={location}|");
        let get = |path: &str, location: &str| Ask::get(path).plan(&to(location));
        rig.asks_by_any(
            "redirects: locations",
            &[
                get("/plain/", "http://a.test/listed/x?y=z"),
                get("/plain/?q", "http://b.test/b/"),
                get("/plain/", "http://c.test/"),
                get("/plain/", "http://a.test/none"),
                get("/plain/", "https://a.test/listed/"),
                get("/plain/", "/listed/relative"),
                get("/plain/", "//a.test/listed/"),
                get("/plain/", "listed"),
                get("/plain/", "ftp://a.test/listed/"),
                get("/plain/", "http://a.test"),
                get("/plain/", "http://a.test/listed/#fragment"),
                get("/plain/", "http://a.test:1234/listed/"),
                get("/plain/", "http://a.test/direct/"),
                get("/plain/", "http://a.test/external/"),
                get("/plain/", "http://a.test/nowhere/"),
                Ask::get("/plain/").plan("status=302|"),
                Ask::get("/plain/").plan("status=302 h:location=|"),
            ],
        );
        let there = "h:location=http://a.test/listed/";
        let code = |path: &str, code: u16| Ask::get(path).plan(&format!("status={code} {there}|"));
        let post =
            |path: &str, code: u16| Ask::post(path, Body::Sized(10)).plan(&format!("status={code} {there}|"));
        rig.asks_by_any(
            "redirects: codes and methods",
            &[
                code("/plain/", 301),
                code("/codes/", 301),
                code("/codes/", 302),
                code("/codes/", 303),
                code("/codes/", 304),
                code("/codes/", 307),
                Ask { method: "HEAD".into(), ..code("/codes/", 303) },
                Ask::post("/codes/", Body::Sized(2_000_000)).plan(&format!("status=307 {there}|")),
            ],
        );
        rig.asks(
            "redirects: bodies",
            &[
                post("/plain/", 302),
                post("/codes/", 303),
                post("/codes/", 308),
                Ask::post("/codes/", Body::Chunked(vec![5, 5])).plan(&format!("status=307 {there}|")),
            ],
        );
        // What is left of a response that is followed.
        rig.asks(
            "redirects: a response with a body",
            &[Ask::get("/plain/").plan(&format!("status=302 body=9 {there}|"))],
        );
        let again = "status=302 h:location=http://a.test";
        rig.asks_by_any(
            "redirects: how often, and what routes allow",
            &[
                Ask::get("/many/").plan(&format!("{again}/many/1|{again}/many/2|{again}/many/3|")),
                Ask::get("/many/")
                    .plan(&format!("{again}/many/1|{again}/many/2|{again}/many/3|{again}/many/4")),
                Ask::get("/plain/").plan(&format!("{again}/plain/1|{again}/plain/2")),
                Ask::get("/plain/").plan(&format!("{again}/many/1|{again}/many/2|{again}/many/3")),
                Ask::get("/previous/").plan(&format!("{again}/previous/1|{again}/previous/2")),
                Ask::get("/previous/").plan(&format!("{again}/many/1|{again}/previous/2|{again}/many/2")),
                get("/allowed/", "http://a.test/listed/"),
                get("/allowed/", "http://a.test/plain/"),
                get("/cross/", "https://a.test/listed/"),
                get("/safe/", "https://a.test/listed/"),
                get("/safe/", "http://a.test/listed/"),
                Ask::get("/copy/")
                    .header("x-copied", "old")
                    .header("x-none", "old")
                    .plan(&format!("status=302 {there} h:x-copied=new h:x-other=1|")),
                Ask::get("/retry/").plan(&format!("status=503|status=302 {there}|status=200")),
                get("/rewrite/", "http://a.test/listed/"),
                get("/plain/", "http://a.test/rewrite/x"),
            ],
        );
        rig.finish()
    })
}

/// A redirect that is followed is a new request to every filter, but not to what the manager does with clients.
#[test]
fn filters_run_again() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let follows = |prefix: &str, more: &str| {
            route(
                prefix,
                "up",
                &format!(
                    "internal_redirect_policy: {{ max_internal_redirects: 3, \
                redirect_response_codes: [ 302, 303, 307 ] }}, {more}"
                ),
            )
        };
        let lua = extension(
            "envoy.filters.http.lua",
            "envoy.extensions.filters.http.lua.v3.Lua",
            &format!("default_source_code: {{ inline_string: {COUNTING:?} }}"),
        );
        let mutations = format!(
            "mutations: {{ request_mutations: [ {} ], response_mutations: [ {} ] }}",
            append("x-mutated", "%REQ(:PATH)%"),
            append("x-mutated-back", "%REQ(:PATH)%")
        );
        let mutation = extension("envoy.filters.http.header_mutation", MUTATION, &mutations);
        let router =
            extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
        let of_route = format!(
            "typed_per_filter_config: {{ envoy.filters.http.header_mutation: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute, \
             mutations: {{ request_mutations: [ {} ] }} }} }}",
            append("x-of-route", "listed")
        );
        let without = "typed_per_filter_config: { envoy.filters.http.lua: { \"@type\": \
            type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute, disabled: true } }";
        let with = |prefix: &str, action: &str, more: &str| {
            format!(
                "{{ name: {}, match: {{ prefix: {prefix:?} }}, route: {{ cluster: up, {action} }}, {more} }}",
                prefix.trim_matches('/')
            )
        };
        let routes = [
            follows("/plain/", "timeout: 0s"),
            follows("/again/", "retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.001s } }"),
            with("/listed/", "", &of_route),
            with("/without/", "", without),
            route("/limited/", "up", "timeout: 0s, max_stream_duration: { max_stream_duration: 0.2s }"),
            with(
                "/remote/",
                "",
                "request_headers_to_add: [ { header: { key: x-remote, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\" } } ]",
            ),
            "{ name: direct, match: { prefix: /direct/ }, direct_response: { status: 418, body: { inline_string: tea } } }".to_owned(),
        ];
        let early = format!(
            "early_header_mutation_extensions: [ {{ name: e, typed_config: {{ \"@type\": type.googleapis.com/{EARLY}, \
             mutations: [ {} ] }} }} ], normalize_path: true, merge_slashes: true, \
             use_remote_address: true, xff_num_trusted_hops: 1, via: here",
            append("x-early", "%REQ(:PATH)%")
        );
        let listener = manager_with(&[lua, mutation, router], &[host(&routes, "")], &early);
        let config = Bootstrap::new().listener("l", &listener).static_cluster("up", &[up], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        let to = |path: &str| format!("status=302 h:location=http://a.test{path}|");
        let get = |path: &str, location: &str| Ask::get(path).plan(&to(location));
        rig.asks_by_any(
            "redirects: filters run again",
            &[
                Ask::get("/plain/"),
                get("/plain/", "/listed/x?y"),
                get("/plain/", "/without/"),
                get("/plain/", "/tea/"),
                get("/plain/", "/direct/"),
                get("/plain/", "/none/"),
                get("/plain/", "/plain/a/../../listed//b"),
                get("/plain/", "/listed/../plain/"),
                get("/listed/", "/plain/"),
                Ask::get("/plain/")
                    .plan(&(to("/plain/1") + &to("/again/2") + "status=503|" + &to("/listed/3"))),
                Ask::get("/plain/")
                    .plan(&(to("/plain/1") + &to("/plain/2") + &to("/plain/3") + &to("/plain/4"))),
                get("/plain/", "/limited/").plan(&(to("/limited/") + "silent")),
                Ask { method: "HEAD".into(), ..get("/plain/", "/listed/") },
            ],
        );
        let post = |code: u16| {
            let plan = format!("status={code} h:location=http://a.test/listed/|");
            Ask::post("/plain/", Body::Sized(10)).plan(&plan)
        };
        rig.asks_by_any("redirects: filters see the body again", &[post(303), post(307)]);
        rig.asks_by_any(
            "redirects: whose request it was",
            &[get("/plain/", "/remote/").header("x-forwarded-for", "9.8.7.6, 5.4.3.2")],
        );
        rig.finish()
    })
}

#[test]
fn hosts_and_paths() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let regex =
            |from: &str, to: &str| format!("{{ pattern: {{ regex: \"{from}\" }}, substitution: \"{to}\" }}");
        let routes = [
            route("/literal/", "up", "host_rewrite_literal: \"new.test\", append_x_forwarded_host: true"),
            route("/header/", "up", "host_rewrite_header: x-host"),
            route(
                "/path/",
                "up",
                &format!("host_rewrite_path_regex: {}", regex("^/path/([a-z.]+).*$", "\\\\1")),
            ),
            route("/auto/", "dns", "auto_host_rewrite: true, append_x_forwarded_host: true"),
            route("/auto-static/", "up", "auto_host_rewrite: true"),
            route("/auto-named/", "named", "auto_host_rewrite: true"),
            route("/prefix/", "up", "prefix_rewrite: /other"),
            route("/regex/", "up", &format!("regex_rewrite: {}", regex("^/regex/(.)(.*)$", "/\\\\2/\\\\1"))),
            "{ name: by-header, match: { prefix: /by-header/ }, route: { cluster_header: x-cluster } }"
                .to_owned(),
            route("/missing/", "nowhere", "cluster_not_found_response_code: NOT_FOUND"),
            route("/unavailable/", "nowhere", "cluster_not_found_response_code: INTERNAL_SERVER_ERROR"),
        ];
        let named = shunt_tests::bootstrap::endpoint(up, "");
        let named = named.replacen("endpoint: {", "endpoint: { hostname: by.name,", 1);
        let dns = shunt_tests::bootstrap::endpoint(up, "").replace("127.0.0.1", "localhost");
        let dns = shunt_tests::bootstrap::locality(&[dns], "");
        let config = simple(&routes)
            .static_cluster("up", &[up], "")
            .assigned("named", &[shunt_tests::bootstrap::locality(&[named], "")], "type: STATIC")
            .assigned("dns", &[dns], "type: STRICT_DNS, dns_lookup_family: V4_ONLY");
        let mut rig = Rig::start(lab, &script, &config)?;
        rig.asks(
            "hosts",
            &[
                Ask::get("/literal/x"),
                Ask::get("/literal/x").header("x-forwarded-host", "first.test"),
                Ask::get("/header/x"),
                Ask::get("/header/x").header("x-host", "h.test:99"),
                Ask::get("/header/x").header("x-host", ""),
                Ask::get("/path/some.host/more?x=y"),
                Ask::get("/path/"),
                Ask::get("/auto/x"),
                Ask::get("/auto-static/x"),
                Ask::get("/auto-named/x"),
                Ask::get("/prefix/a?b"),
                Ask::get("/regex/abc?d"),
            ],
        );
        rig.asks(
            "clusters by header",
            &[
                Ask::get("/by-header/"),
                Ask::get("/by-header/").header("x-cluster", "up"),
                Ask::get("/by-header/").header("x-cluster", "nowhere"),
                Ask::get("/by-header/").header("x-cluster", ""),
                Ask::get("/missing/"),
                Ask::get("/unavailable/"),
            ],
        );
        rig.finish()
    })
}

#[test]
fn attempts_are_counted_where_the_host_says_so() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let routes =
            [route("/", "up", "retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.001s } }")];
        let config = Bootstrap::new()
            .listener(
                "l",
                &manager(
                    &[host(
                        &routes,
                        "include_request_attempt_count: true, include_attempt_count_in_response: true",
                    )],
                    "",
                ),
            )
            .static_cluster("up", &[up], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        rig.asks(
            "attempts",
            &[
                Ask::get("/"),
                Ask::get("/").plan("status=500|"),
                Ask::get("/").plan("status=500"),
                Ask::get("/").plan("reset"),
                Ask::get("/").header("x-envoy-attempt-count", "7"),
                Ask::get("/").plan("h:x-envoy-attempt-count=9"),
            ],
        );
        rig.finish()
    })
}
