//! Filters that judge or change single requests.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use proxy_config::model::access_log::LogFormat;
use proxy_config::model::http::filters::{
    AbortKind, Buffer, CorsPolicy, CsrfPolicy, DelayKind, Fault, FaultAbort, FaultDelay, FaultRateLimit,
    FilterStateValue, HealthCheckFilter, HttpRbac, Mutations, MutationsFilter, QueryMutation, RateKind,
    SetFilterState,
};
use proxy_config::model::http::header::HeaderMutation;
use proxy_config::model::metadata::Value;
use proxy_config::model::network_filter::{Permission, Principal, RbacAction, RbacPolicy, RbacRules};

use super::*;
use crate::clock;
use crate::http::Body;
use crate::http::testing::{frames, header_map, read, request};
use crate::telemetry::Flags;

fn policy() -> CorsPolicy {
    CorsPolicy {
        allow_origin: vec![exact("http://a")],
        allow_methods: "GET, PUT".into(),
        allow_headers: "*".into(),
        expose_headers: "x-e".into(),
        max_age: "10".into(),
        allow_credentials: Some(true),
        allow_private_network_access: None,
        forward_not_matching_preflights: true,
        enabled: ALL,
        shadow_enabled: None,
    }
}

#[tokio::test]
async fn cors() {
    let preflight = [("access-control-request-method", "PUT"), ("access-control-request-headers", "x-q")];
    let strict = || CorsPolicy { forward_not_matching_preflights: false, ..policy() };
    let shadow = || CorsPolicy { enabled: NONE, shadow_enabled: Some(ALL), ..policy() };
    // Origin, preflight, policy: the body, the origin that is allowed, valid and invalid ones.
    let table = [
        (Some("http://a"), false, policy(), "upstream", Some("http://a"), [1, 0]),
        (Some("http://b"), false, policy(), "upstream", None, [0, 1]),
        (None, true, policy(), "upstream", None, [0, 0]),
        (Some("http://a"), true, policy(), "", Some("http://a"), [1, 0]),
        (Some("http://b"), true, policy(), "upstream", None, [0, 1]),
        (Some("http://b"), true, strict(), "", None, [0, 1]),
        (Some("http://a"), true, shadow(), "upstream", None, [1, 0]),
    ];
    for (origin, is_preflight, policy, body, allowed, counted) in table {
        let rig = rig(FilterKind::Cors, Some(PerRoute::Cors(Box::new(policy))));
        let mut headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        headers.extend(preflight.iter().filter(|_| is_preflight));
        let mut stream = rig.stream(request(Method::OPTIONS, "/", &headers), Body::empty());
        let sent = ask(&rig, &mut stream).await;
        assert_eq!((sent.status, sent.text()), (200, body), "{headers:?}");
        assert_eq!(sent.header("access-control-allow-origin"), allowed, "{headers:?}");
        let stats =
            ["valid", "invalid"].map(|what| rig.stats.value(&format!("http.test.cors.origin_{what}")));
        assert_eq!(stats, counted.map(Some), "{headers:?}");
        if body.is_empty() && allowed.is_some() {
            let names = ["allow-methods", "allow-headers", "max-age", "allow-credentials", "expose-headers"];
            let values = names.map(|name| sent.header(&format!("access-control-{name}")).unwrap());
            assert_eq!(values, ["GET, PUT", "x-q", "10", "true", "x-e"]);
        }
    }
}

fn abort(abort: AbortKind) -> FilterKind {
    let abort = FaultAbort { percentage: ALL, abort, body: "".into() };
    FilterKind::Fault(Box::new(Fault { abort: Some(abort), ..Fault::default() }))
}

#[tokio::test]
async fn aborts() {
    // What the filter has, what the request asks for: the status.
    let table = [
        (AbortKind::Http(418), vec![], 418),
        (AbortKind::Grpc(7), vec![], 200),
        (AbortKind::Header, vec![], 0),
        (AbortKind::Header, vec![("x-envoy-fault-abort-request", "450")], 450),
        (AbortKind::Header, vec![("x-envoy-fault-abort-request", "700")], 0),
        (AbortKind::Header, vec![("x-envoy-fault-abort-request", "x")], 0),
        (AbortKind::Header, vec![("x-envoy-fault-abort-grpc-request", "3")], 200),
        (
            AbortKind::Header,
            vec![("x-envoy-fault-abort-request", "450"), ("x-envoy-fault-abort-request-percentage", "0")],
            0,
        ),
    ];
    for (kind, headers, status) in table {
        let rig = rig(abort(kind), None);
        let mut headers = headers.clone();
        headers.push(("x-envoy-downstream-service-cluster", "from"));
        let mut stream = rig.with("/", &headers);
        let sent = ask(&rig, &mut stream).await;
        if status == 0 {
            assert_eq!((sent.status, sent.text()), (200, "upstream"), "{kind:?} {headers:?}");
            assert_eq!(rig.stat("http.test.fault.aborts_injected"), 0);
            continue;
        }
        assert_eq!((sent.status, sent.text()), (status, "fault filter abort"), "{kind:?} {headers:?}");
        assert_eq!(stream.entry.outcome.flags, Flags::FI);
        assert_eq!(stream.entry.outcome.response_code_details.as_deref(), Some("fault_filter_abort"));
        assert_eq!(rig.stat("http.test.fault.aborts_injected"), 1);
        assert_eq!(rig.stat("http.test.fault.from.aborts_injected"), 1);
        assert_eq!(rig.stat("http.test.fault.active_faults"), 0, "it is over");
    }
}

#[tokio::test(start_paused = true)]
async fn delays() {
    let delay = |delay| FaultDelay { percentage: ALL, delay };
    let fault = Fault {
        delay: Some(delay(DelayKind::Header)),
        headers: vec![header("x-me", "1")],
        filter_metadata: [("a".to_owned(), Value::Bool(true))].into(),
        ..Fault::default()
    };
    let rig = rig(FilterKind::Fault(Box::new(fault)), None);
    for (me, asked, expected) in [("1", "70", 70), ("0", "70", 0), ("1", "x", 0), ("1", "0", 0)] {
        let start = clock::now();
        let mut stream = rig.with("/", &[("x-me", me), ("x-envoy-fault-delay-request", asked)]);
        assert_eq!(ask(&rig, &mut stream).await.text(), "upstream");
        assert_eq!(start.elapsed().as_millis(), expected, "{me} {asked}");
        assert_eq!(stream.entry.outcome.flags == Flags::DI, expected > 0);
        let noted = stream.http().dynamic_metadata.of("envoy.filters.http.fault");
        assert_eq!(noted.is_some_and(|fields| fields.contains_key("a")), expected > 0);
    }
    assert_eq!(rig.stat("http.test.fault.delays_injected"), 1);
}

#[tokio::test]
async fn no_more_faults_than_allowed() {
    let delay = FaultDelay { percentage: ALL, delay: DelayKind::Fixed(Duration::from_secs(3_600)) };
    let fault = Fault { delay: Some(delay), max_active_faults: Some(1), ..Fault::default() };
    let rig = rig(FilterKind::Fault(Box::new(fault)), None);
    let (mut one, mut other) = (rig.get("/"), rig.get("/"));
    let waiting = ask(&rig, &mut one);
    tokio::pin!(waiting);
    assert!(futures_poll(&mut waiting).await.is_none(), "it waits");
    assert_eq!(ask(&rig, &mut other).await.text(), "upstream");
    assert_eq!(rig.stat("http.test.fault.faults_overflow"), 1);
    assert_eq!(rig.stat("http.test.fault.active_faults"), 1);
}

/// What a future has at once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
        std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn slow_responses() {
    let limit = FaultRateLimit { percentage: ALL, limit: RateKind::Kbps(1) };
    let fault = Fault { response_rate_limit: Some(limit), ..Fault::default() };
    let rig = rig(FilterKind::Fault(Box::new(fault)), None);
    let start = clock::now();
    let sent =
        rig.exchange(&mut rig.get("/"), |stream| respond(stream, 200, &[], vec![7; 2_048])).await.unwrap();
    assert_eq!(sent.body, vec![7; 2_048]);
    let took = start.elapsed().as_millis();
    assert!((1_900..2_100).contains(&took), "2 KiB by 1 KiB/s took {took} ms");
    assert_eq!(rig.stat("http.test.fault.response_rl_injected"), 1);
}

fn rules(action: RbacAction, permission: Permission) -> RbacRules {
    let policy = RbacPolicy { permissions: vec![permission], principals: vec![Principal::Any] };
    RbacRules { action, policies: [("a policy".into(), policy)].into() }
}

fn rbac(rules: Option<RbacRules>, shadow_rules: Option<RbacRules>) -> HttpRbac {
    HttpRbac {
        rules,
        rules_stat_prefix: "".into(),
        shadow_rules,
        shadow_rules_stat_prefix: "sh_".into(),
        track_per_rule_stats: true,
    }
}

#[tokio::test]
async fn who_may_ask_for_what() {
    let path = |path| Permission::UrlPath(exact(path));
    let table = [
        (RbacAction::Allow, path("/a"), 200),
        (RbacAction::Allow, path("/a?b"), 403),
        (RbacAction::Deny, path("/a"), 403),
        (RbacAction::Deny, path("/b"), 200),
        (RbacAction::Log, path("/b"), 200),
        (RbacAction::Allow, Permission::Header(header("x-h", "1,2")), 200),
        (RbacAction::Allow, Permission::Header(header(":method", "GET")), 200),
        (RbacAction::Allow, Permission::Header(header("x-none", "")), 403),
        (RbacAction::Allow, Permission::DestinationPort(80), 200),
        (RbacAction::Allow, Permission::DestinationPort(81), 403),
    ];
    for (action, permission, status) in table {
        let what = format!("{action:?} {permission:?}");
        let rig = rig(FilterKind::Rbac(Box::new(rbac(Some(rules(action, permission)), None))), None);
        let mut stream = rig.with("/a?b", &[("x-h", "1"), ("x-h", "2")]);
        let sent = ask(&rig, &mut stream).await;
        assert_eq!(sent.status, status, "{what}");
        let (allowed, denied) = (rig.stat("http.test.rbac.allowed"), rig.stat("http.test.rbac.denied"));
        assert_eq!((allowed, denied), (u64::from(status == 200), u64::from(status == 403)), "{what}");
        if status == 403 {
            assert_eq!(sent.text(), "RBAC: access denied");
            let policy = if action == RbacAction::Deny { "a_policy" } else { "none" };
            let details = format!("rbac_access_denied_matched_policy[{policy}]");
            assert_eq!(stream.entry.outcome.response_code_details.as_deref(), Some(&*details));
        }
    }
}

#[tokio::test]
async fn shadow_rules_only_tell() {
    let never = Permission::Not(Box::new(Permission::Any));
    let config = rbac(Some(rules(RbacAction::Allow, Permission::Any)), Some(rules(RbacAction::Allow, never)));
    let kind = || FilterKind::Rbac(Box::new(rbac(Some(rules(RbacAction::Deny, Permission::Any)), None)));
    let rig = rig(kind(), Some(PerRoute::Rbac(Some(Box::new(config)))));
    let mut stream = rig.get("/");
    assert_eq!(ask(&rig, &mut stream).await.status, 200, "the route's own rules hold");
    assert_eq!(rig.stat("http.test.rbac.sh_.shadow_denied"), 1);
    assert_eq!(rig.stat("http.test.rbac.policy.a policy.allowed"), 1);
    let fields = stream.http().dynamic_metadata.of("envoy.filters.http.rbac").unwrap();
    let text = |text: &str| Some(Value::String(text.to_owned()));
    assert_eq!(fields.get("sh_shadow_engine_result").cloned(), text("denied"));
    assert_eq!(fields.get("enforced_engine_result").cloned(), text("allowed"));
    assert_eq!(fields.get("enforced_effective_policy_id").cloned(), text("a policy"));
    let free = super::rig(kind(), Some(PerRoute::Rbac(None)));
    assert_eq!(ask(&free, &mut free.get("/")).await.status, 200, "a route without rules");
}

fn mutations() -> Mutations {
    let add = |name: &str, value: &str, append| HeaderMutation::Add(option(name, value, append));
    Mutations {
        request: vec![
            add("x-add", "%REQ(:PATH)%", AppendAction::AppendIfExistsOrAdd),
            add("x-empty", "%REQ(x-none)%", AppendAction::AppendIfExistsOrAdd),
            add("x-there", "new", AppendAction::AddIfAbsent),
            add("x-not-there", "new", AppendAction::OverwriteIfExists),
            HeaderMutation::Remove("x-gone".into()),
            HeaderMutation::RemoveOnMatch(exact("x-matched")),
            add(":path", "/new?b=2&a=%%251&b=3", AppendAction::OverwriteIfExistsOrAdd),
        ],
        query: vec![
            QueryMutation::Add {
                key: "c".into(),
                value: Format::new("%REQ(x-add)% &", &[]).unwrap(),
                append: AppendAction::AppendIfExistsOrAdd,
            },
            QueryMutation::Remove("b".into()),
        ],
        response: vec![add("x-code", "%RESPONSE_CODE%", AppendAction::OverwriteIfExistsOrAdd)],
        request_trailers: vec![add("x-t", "1", AppendAction::AppendIfExistsOrAdd)],
        response_trailers: vec![HeaderMutation::Remove("x-secret".into())],
    }
}

#[tokio::test]
async fn header_mutations() {
    let filter = MutationsFilter { mutations: mutations(), most_specific_wins: false };
    let own = HeaderMutation::Add(option("x-add", "route", AppendAction::OverwriteIfExistsOrAdd));
    let own = Mutations { request: vec![own], ..Mutations::default() };
    let rig =
        rig(FilterKind::HeaderMutation(Box::new(filter)), Some(PerRoute::HeaderMutation(Box::new(own))));
    let headers = [("x-there", "old"), ("x-gone", "1"), ("x-matched", "1")];
    let body = frames(&[b"body"], Some(header_map(&[("x-o", "0")])));
    let mut stream = rig.stream(request(Method::POST, "/old", &headers), body);
    let sent = rig.exchange(&mut stream, |stream| {
        respond(stream, 201, &[("x-code", "no")], "");
        stream.response_body = frames(&[b"x"], Some(header_map(&[("x-secret", "1"), ("x-open", "2")])));
    });
    let sent = sent.await.unwrap();
    let head = stream.request();
    let value = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(value("x-add").as_deref(), Some("route"));
    assert_eq!(value("x-there").as_deref(), Some("old"));
    for gone in ["x-empty", "x-not-there", "x-gone", "x-matched"] {
        assert_eq!(value(gone), None, "{gone}");
    }
    assert_eq!(head.path, "/new?a=%251&c=%2Fold%20%26");
    assert_eq!(sent.header("x-code"), Some("201"));
    assert_eq!(sent.trailers, Some(header_map(&[("x-open", "2")])));
    let (body, trailers) = read(stream.request_body.take()).await.unwrap();
    assert_eq!((&body[..], trailers), (&b"body"[..], Some(header_map(&[("x-o", "0"), ("x-t", "1")]))));
}

#[tokio::test]
async fn buffered_requests() {
    let trailers = || Some(header_map(&[("x-t", "1")]));
    let rig = rig(FilterKind::Buffer(Buffer { max_request_bytes: 6 }), None);
    for (body, status, length) in [
        (Body::empty(), 200, None),
        (Body::full("123456"), 200, Some("6")),
        (Body::full("1234567"), 413, None),
        (frames(&[b"123", b"456"], None), 200, Some("6")),
        (frames(&[b"123", b"456", b"7"], None), 413, None),
        (frames(&[b"123", b"456"], trailers()), 200, None),
    ] {
        let what = format!("{body:?}");
        let mut stream = rig.stream(request(Method::POST, "/", &[]), body);
        let sent = ask(&rig, &mut stream).await;
        assert_eq!(sent.status, status, "{what}");
        let told = stream.request().headers.get("content-length").map(|value| value.to_str().unwrap());
        assert_eq!(told, length, "{what}");
        if status == 413 {
            assert_eq!(sent.text(), "Payload Too Large");
            assert_eq!(
                stream.entry.outcome.response_code_details.as_deref(),
                Some("request_payload_too_large")
            );
        } else if !stream.request_body.is_end() {
            let (body, trailers) = read(stream.request_body.take()).await.unwrap();
            assert_eq!((&body[..], trailers.is_some()), (&b"123456"[..], length.is_none()), "{what}");
        }
    }
}

#[tokio::test]
async fn origins_of_changes() {
    let policy = CsrfPolicy { enabled: ALL, shadow_enabled: None, additional_origins: vec![exact("other")] };
    let rig = rig(FilterKind::Csrf(Box::new(policy)), None);
    for (method, header, status) in [
        (Method::GET, None, 200),
        (Method::POST, None, 403),
        (Method::PATCH, Some(("origin", "null")), 403),
        (Method::PUT, Some(("origin", "http://test.example")), 200),
        (Method::PUT, Some(("origin", "http://test.example:1")), 403),
        (Method::DELETE, Some(("referer", "https://test.example/a?b")), 200),
        (Method::POST, Some(("origin", "https://other")), 200),
        (Method::POST, Some(("origin", "test.example")), 200),
    ] {
        let headers: Vec<_> = header.into_iter().collect();
        let mut stream = rig.stream(request(method.clone(), "/", &headers), Body::empty());
        let sent = ask(&rig, &mut stream).await;
        assert_eq!(sent.status, status, "{method} {headers:?}");
        if status == 403 {
            assert_eq!(sent.text(), "Invalid origin");
            assert_eq!(stream.entry.outcome.response_code_details.as_deref(), Some("csrf_origin_mismatch"));
        }
    }
    let stats = ["missing_source_origin", "request_invalid", "request_valid"];
    assert_eq!(stats.map(|name| rig.stat(&format!("http.test.csrf.{name}"))), [2, 1, 4]);
}

#[tokio::test]
async fn health_checks() {
    let config = HealthCheckFilter {
        pass_through_mode: false,
        cache_time: None,
        cluster_min_healthy_percentages: BTreeMap::new(),
        headers: vec![header(":path", "/healthz")],
    };
    let missing = HealthCheckFilter {
        cluster_min_healthy_percentages: [("nowhere".into(), 10.0)].into(),
        ..config.clone()
    };
    let passing = HealthCheckFilter { pass_through_mode: true, ..config.clone() };
    for (config, status, details, body) in [
        (config, 200, Some("health_check_ok"), ""),
        (missing, 503, Some("health_check_failed_no_cluster_found"), ""),
        (passing, 200, None, "upstream"),
    ] {
        let rig = rig(FilterKind::HealthCheck(Box::new(config)), None);
        let mut stream = rig.get("/healthz");
        let sent = ask(&rig, &mut stream).await;
        assert_eq!((sent.status, sent.text()), (status, body));
        assert_eq!(stream.entry.outcome.response_code_details.as_deref(), details);
        assert_eq!(stream.entry.outcome.flags == Flags::LH, status == 503);
        assert_eq!(sent.header("x-envoy-upstream-healthchecked-cluster"), Some(""));
        assert!(stream.http().health_check);
        assert_eq!(ask(&rig, &mut rig.get("/other")).await.text(), "upstream");
        assert_eq!(rig.stat("http.test.health_check.request_total"), u64::from(details.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_to_health_checks_are_kept() {
    let config = HealthCheckFilter {
        pass_through_mode: true,
        cache_time: Some(Duration::from_secs(1)),
        cluster_min_healthy_percentages: BTreeMap::new(),
        headers: vec![header(":path", "/healthz")],
    };
    let rig = rig(FilterKind::HealthCheck(Box::new(config)), None);
    let mut answers = Vec::new();
    for (wait, status) in [(0, 500), (100, 200), (1_000, 201), (10, 500)] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let mut stream = rig.get("/healthz");
        let sent = rig.exchange(&mut stream, |stream| respond(stream, status, &[], "")).await.unwrap();
        answers.push(sent.status);
    }
    assert_eq!(answers, [500, 500, 201, 201]);
    assert_eq!(rig.stat("http.test.health_check.cached_response"), 2);
}

#[tokio::test]
async fn filter_state() {
    let value = |key: &str, format: &str, skip_if_empty| FilterStateValue {
        key: key.into(),
        value: LogFormat::Text { format: format.into(), omit_empty_values: true },
        skip_if_empty,
    };
    let values = vec![
        value("a", "p=%REQ(:PATH)%", false),
        value("b", "%REQ(x)%", true),
        value("c", "%REQ(x)%", false),
    ];
    let own = SetFilterState { on_request_headers: values, clear_route_cache: false };
    let route =
        SetFilterState { on_request_headers: vec![value("c", "route", false)], clear_route_cache: true };
    let said = PerRoute::SetFilterState(Box::new(route));
    let rig = rig(FilterKind::SetFilterState(Box::new(own)), Some(said));
    let mut stream = rig.get("/x");
    ask(&rig, &mut stream).await;
    let state: Vec<_> = stream.http().filter_state.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(state, [("a", "p=/x"), ("c", "route")]);
    assert!(stream.known_route().is_none(), "it is to be looked for again");
}
