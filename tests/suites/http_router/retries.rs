//! Retries: why, how often, to whom, and when not.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use shunt_tests::asked::{Ask, Body};
use shunt_tests::bootstrap::{endpoint, extension, locality};
use shunt_tests::ports::nobody;
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Mute, Rig, hosted, route, simple};

const FAST: &str = "retry_back_off: { base_interval: 0.001s, max_interval: 0.002s }";

/// A route with a policy of its own.
fn retrying(prefix: &str, cluster: &str, policy: &str) -> String {
    route(prefix, cluster, &format!("retry_policy: {{ {FAST}, {policy} }}"))
}

fn on(reason: &str) -> String {
    retrying(&format!("/{reason}/"), "up", &format!("retry_on: {reason:?}, num_retries: 2"))
}

/// Of HTTP/1 and HTTP/2 alike.
const REASONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-headers",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// What a backend may do that some policy takes for a reason.
const ENDS: &[&str] = &[
    "status=500|",
    "status=503|",
    "status=504|status=504|status=504|",
    "status=409|",
    "status=429|",
    "status=418|",
    "reset|",
    "close|close|close|",
    "status=200 h:x-retry=yes body=0|",
    "status=503 h:x-envoy-ratelimited=true|",
    "garbage|",
    "half-reset|",
];

const GRPC: &[&str] = &["1", "2", "4", "8", "13", "14"];

fn every_reason(http2: bool) -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let speaks = if http2 { Speaks::http2() } else { Speaks::http1() };
        let up = script.backend("up", &speaks)?;
        let mut routes: Vec<String> = REASONS.iter().map(|reason| on(reason)).collect();
        routes.push(retrying(
            "/codes/",
            "up",
            "retry_on: retriable-status-codes, retriable_status_codes: [ 418, 410 ], num_retries: 1",
        ));
        routes.push(retrying(
            "/headers/",
            "up",
            "retry_on: retriable-headers, retriable_headers: [ { name: x-retry, string_match: { exact: \"yes\" } } ]",
        ));
        routes.push(route("/none/", "up", ""));
        let own = if http2 { HTTP2 } else { "" };
        let config = simple(&routes).static_cluster("up", &[up], own);
        let mut rig = Rig::start(lab, &script, &config)?;
        let name = if http2 { "h2" } else { "h1" };
        // How a connection of HTTP/2 ends under a stream is for its backend to say, in one way or another.
        let ends =
            ENDS.iter().filter(|plan| !http2 || !(plan.starts_with("close") || plan.starts_with("garbage")));
        let more: &[&str] = if http2 { &["reset=7|", "reset=8|", "reset=0|", "reset=1|"] } else { &[] };
        for reason in REASONS.iter().chain(&["codes", "headers", "none"]) {
            let asks: Vec<Ask> =
                ends.clone().chain(more).map(|plan| Ask::get(&format!("/{reason}/")).plan(plan)).collect();
            rig.asks(&format!("{name}: retry_on {reason}"), &asks);
            let asks: Vec<Ask> = GRPC
                .iter()
                .map(|status| {
                    let plan = format!(
                        "h:grpc-status={status} h:content-type=application/grpc body=0|h:grpc-status=0 body=0"
                    );
                    Ask::post(&format!("/{reason}/"), Body::Sized(5)).grpc().plan(&plan)
                })
                .collect();
            rig.asks(&format!("{name}: retry_on {reason}, gRPC"), &asks);
        }
        rig.finish()
    })
}

pub(super) const HTTP2: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http2_protocol_options: {} } } }";

#[test]
fn every_reason_of_http1() -> Result<()> {
    every_reason(false)
}

#[test]
fn every_reason_of_http2() -> Result<()> {
    every_reason(true)
}

#[test]
fn connections_that_fail() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let (refusing, mute) = (nobody()?, Mute::new()?);
        let mut routes = Vec::new();
        for reason in [
            "connect-failure",
            "reset-before-request",
            "reset",
            "5xx",
            "gateway-error",
            "retriable-4xx",
            "http3-post-connect-failure",
        ] {
            for cluster in ["refusing", "mixed", "mute"] {
                routes.push(retrying(
                    &format!("/{cluster}/{reason}/"),
                    cluster,
                    &format!("retry_on: {reason:?}, num_retries: 1"),
                ));
            }
        }
        for cluster in ["refusing", "mute", "empty", "nowhere", "mixed"] {
            routes.push(route(&format!("/{cluster}/"), cluster, ""));
        }
        let previous = "retry_on: connect-failure, num_retries: 3, host_selection_retry_max_attempts: 5, retry_host_predicate: [ \
            { name: envoy.retry_host_predicates.previous_hosts, typed_config: { \
            \"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } } ]";
        routes.insert(0, retrying("/previous/", "mixed", previous));
        let mute = endpoint(mute.address, "");
        let mute = shunt_tests::bootstrap::assignment("mute", &[locality(&[mute], "")], "");
        let config = simple(&routes)
            .static_cluster("refusing", &[refusing], "")
            .static_cluster("mixed", &[refusing, up], "")
            .slow_cluster("mute", "0.2s", &format!("type: STATIC, load_assignment: {mute}"))
            .static_cluster("empty", &[], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        for cluster in ["refusing", "mute", "empty", "nowhere"] {
            rig.asks(&format!("no connection: {cluster}"), &[Ask::get(&format!("/{cluster}/"))]);
        }
        for reason in [
            "connect-failure",
            "reset-before-request",
            "reset",
            "5xx",
            "gateway-error",
            "retriable-4xx",
            "http3-post-connect-failure",
        ] {
            let asks = [
                Ask::get(&format!("/refusing/{reason}/")),
                Ask::get(&format!("/mute/{reason}/")),
                Ask::post(&format!("/refusing/{reason}/"), Body::Sized(10)),
            ];
            rig.asks(&format!("no connection: {reason}"), &asks);
        }
        // With whom a round begins is each proxy's own: all that is sure is how it ends.
        for path in ["/mixed/connect-failure/", "/previous/"] {
            let mut cases = rig.cases;
            rig.pair.same(&mut cases, format!("http_router one of two refuses: {path}"), |proxy| {
                let at = proxy.at("l")?;
                (0..6).map(|_| Ok(Ask::get(path).send(at)?["status"].clone())).collect()
            });
            rig.cases = cases;
        }
        rig.finish()
    })
}

#[test]
fn headers_bodies_and_limits() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let routes = [
            route("/own/", "up", "retry_policy: { retry_on: gateway-error, num_retries: 1 }"),
            retrying("/slow/", "up", "retry_on: 5xx, num_retries: 2, per_try_timeout: 0.15s"),
            retrying("/idle/", "up", "retry_on: 5xx, num_retries: 1, per_try_idle_timeout: 0.15s"),
            route(
                "/limited/",
                "up",
                "retry_policy: { retry_on: 5xx, rate_limited_retry_back_off: { max_interval: 3s, \
                reset_headers: [ { name: Retry-After, format: SECONDS }, { name: X-RateLimit-Reset, format: UNIX_TIMESTAMP } ] } }",
            ),
            retrying(
                "/if/",
                "up",
                "retry_on: 5xx, retriable_request_headers: [ { name: x-may, present_match: true } ]",
            ),
            retrying("/zero/", "up", "retry_on: 5xx, num_retries: 0"),
            route("/host/", "up", ""),
        ];
        let of_host = format!(
            "retry_policy: {{ retry_on: 5xx, {FAST} }}, include_request_attempt_count: true, \
             include_attempt_count_in_response: true, per_request_buffer_limit_bytes: 1000"
        );
        let config = hosted(&routes, &of_host).static_cluster("up", &[up], "");
        let mut rig = Rig::start(lab, &script, &config)?;
        let twice = "status=503|status=503|status=200";
        let get = |path: &str| Ask::get(path).plan(twice);
        rig.asks("of the host", &[get("/host/"), Ask::get("/host/")]);
        rig.asks(
            "by headers",
            &[
                get("/own/"),
                get("/own/").header("x-envoy-max-retries", "3"),
                get("/own/").header("x-envoy-max-retries", "0"),
                get("/own/").header("x-envoy-max-retries", "many"),
                get("/own/").header("x-envoy-retry-on", "5xx"),
                Ask::get("/own/").plan("status=500|").header("x-envoy-retry-on", "5xx"),
                Ask::get("/own/").plan("status=409|").header("x-envoy-retry-on", "retriable-4xx,nonsense"),
                Ask::get("/own/")
                    .plan("status=410|")
                    .header("x-envoy-retry-on", "retriable-status-codes")
                    .header("x-envoy-retriable-status-codes", "410, 411"),
                Ask::get("/own/")
                    .plan("h:x-again=1|")
                    .header("x-envoy-retry-on", "retriable-headers")
                    .header("x-envoy-retriable-header-names", "x-other,X-Again"),
                Ask::get("/own/")
                    .plan("h:grpc-status=1|")
                    .grpc()
                    .header("x-envoy-retry-grpc-on", "cancelled"),
                Ask::get("/own/").plan("silent|").header("x-envoy-upstream-rq-per-try-timeout-ms", "100"),
                Ask::get("/if/").plan("status=500|"),
                Ask::get("/if/").plan("status=500|").header("x-may", "1"),
                Ask::get("/zero/").plan("status=500|"),
                get("/zero/").header("x-envoy-max-retries", "2"),
            ],
        );
        rig.asks(
            "times of a try",
            &[
                Ask::get("/slow/").plan("silent|wait=20"),
                Ask::get("/slow/").plan("silent|silent|silent"),
                Ask::get("/slow/").plan("pause=300"),
                Ask::get("/idle/").plan("silent|"),
                Ask::get("/idle/").plan("silent"),
                Ask::get("/idle/").plan("pause=400"),
                Ask::post("/slow/", Body::Stalls(5, 10, Duration::from_millis(300))),
            ],
        );
        let soon = "status=503 h:retry-after=1|";
        rig.asks(
            "times that upstreams say",
            &[
                Ask::get("/limited/").plan(soon),
                Ask::get("/limited/").plan("status=503 h:retry-after=4|"),
                Ask::get("/limited/").plan("status=503 h:retry-after=soon|"),
                Ask::get("/limited/").plan("status=503 h:x-ratelimit-reset=12345|"),
            ],
        );
        let post = |length: usize| Ask::post("/host/", Body::Sized(length)).plan("status=503|");
        rig.asks(
            "bodies",
            &[
                post(10),
                post(1000),
                post(1001),
                post(100_000),
                Ask::post("/host/", Body::Chunked(vec![400, 400])).plan("status=503|"),
                Ask::post("/host/", Body::Chunked(vec![400, 400, 400])).plan("status=503|"),
                Ask::post("/host/", Body::Sized(500)).plan("early status=503 last|"),
                Ask::post("/host/", Body::Stalls(5, 10, Duration::from_millis(200)))
                    .plan("early status=503 last|"),
                Ask::post("/host/", Body::Sized(500)).plan("early reset|"),
                Ask::post("/host/", Body::Sized(5_000)).plan("reset|"),
            ],
        );
        rig.finish()
    })
}

#[test]
fn breakers_of_retries() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let up = script.backend("up", &Speaks::http1())?;
        let routes = [
            retrying("/none/", "none", "retry_on: 5xx"),
            retrying("/one/", "one", "retry_on: 5xx"),
            retrying("/budget/", "budget", "retry_on: 5xx, num_retries: 2"),
            retrying("/least/", "least", "retry_on: 5xx, num_retries: 2"),
        ];
        let limit = |fields: &str| format!("circuit_breakers: {{ thresholds: [ {{ {fields} }} ] }}");
        let config = simple(&routes)
            .static_cluster("none", &[up], &limit("max_retries: 0, track_remaining: true"))
            .static_cluster("one", &[up], &limit("max_retries: 1"))
            .static_cluster(
                "budget",
                &[up],
                &limit("retry_budget: { budget_percent: { value: 20 }, min_retry_concurrency: 0 }"),
            )
            .static_cluster("least", &[up], &limit("retry_budget: { min_retry_concurrency: 1 }"));
        let mut rig = Rig::start(lab, &script, &config)?;
        for path in ["/none/", "/one/", "/budget/", "/least/"] {
            let get = Ask::get(path).plan("status=503|");
            rig.asks(&format!("breaker {path}"), std::slice::from_ref(&get));
            // The first holds the place of one retry while the second wants it.
            let held = Ask::get(path).plan("status=503|wait=300");
            rig.case(&format!("breaker {path}, two at a time"), |run| {
                run.together(&[held.clone(), get.clone()])
            });
        }
        rig.finish()
    })
}

#[test]
fn priorities_that_were_not_tried() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let [p0, p1, p2] = [(); 3].map(|()| script.backend("up", &Speaks::http1()));
        let (p0, p1, p2) = (p0?, p1?, p2?);
        let refusing = nobody()?;
        let levels = |ends: &[(SocketAddr, &str)]| -> Vec<String> {
            let level = |(priority, (at, more)): (usize, &(SocketAddr, &str))| {
                locality(&[endpoint(*at, more)], &format!("priority: {priority}"))
            };
            ends.iter().enumerate().map(level).collect()
        };
        let three = levels(&[(p0, ""), (p1, ""), (p2, "")]);
        let previous = |every: u32, more: &str| {
            let config = extension(
                "envoy.retry_priorities.previous_priorities",
                "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                &format!("update_frequency: {every}"),
            );
            format!("retry_on: \"5xx,connect-failure\", num_retries: 6, retry_priority: {config}, {more}")
        };
        let mut routes = vec![retrying("/none/", "three", "retry_on: 5xx, num_retries: 6")];
        for every in [1, 2, 3] {
            routes.push(retrying(&format!("/every-{every}/"), "three", &previous(every, "")));
        }
        for cluster in ["refusing", "degraded", "unhealthy", "hashing", "subsets", "alone"] {
            routes.push(retrying(&format!("/{cluster}/"), cluster, &previous(1, "")));
        }
        let again = "host_selection_retry_max_attempts: 3, retry_host_predicate: [ { name: \
            envoy.retry_host_predicates.previous_hosts, typed_config: { \"@type\": \
            type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } } ]";
        routes.push(retrying("/hosts/", "three", &previous(1, again)));
        let panics = "type: STATIC, common_lb_config: { healthy_panic_threshold: { value: 0 } }";
        let subsets = "type: STATIC, lb_subset_config: { fallback_policy: ANY_ENDPOINT, \
            subset_selectors: [ { keys: [ stage ] } ] }";
        let config = simple(&routes)
            .assigned("three", &three, "type: STATIC")
            .assigned("refusing", &levels(&[(refusing, ""), (p1, ""), (p2, "")]), "type: STATIC")
            .assigned(
                "degraded",
                &levels(&[(p0, ""), (p1, "health_status: DEGRADED"), (p2, "")]),
                "type: STATIC",
            )
            .assigned("unhealthy", &levels(&[(p0, ""), (p1, "health_status: UNHEALTHY"), (p2, "")]), panics)
            .assigned("hashing", &three, "type: STATIC, lb_policy: RING_HASH")
            .assigned("subsets", &three, subsets)
            .assigned("alone", &levels(&[(p0, "")]), "type: STATIC");
        let mut rig = Rig::start(lab, &script, &config)?;
        let fails = |times: usize| "status=503|".repeat(times);
        let paths = ["none", "every-1", "every-2", "every-3", "degraded", "unhealthy", "hashing", "subsets"];
        for path in paths.iter().chain(&["alone", "hosts"]) {
            let asks: Vec<Ask> = (0..=7).map(|n| Ask::get(&format!("/{path}/")).plan(&fails(n))).collect();
            rig.asks(&format!("retry priorities: {path}"), &asks);
        }
        rig.asks("retry priorities: nobody listens", &[Ask::get("/refusing/")]);
        rig.asks(
            "retry priorities: nobody listens, and others fail",
            &[Ask::get("/refusing/").plan(&fails(2))],
        );
        rig.finish()
    })
}
