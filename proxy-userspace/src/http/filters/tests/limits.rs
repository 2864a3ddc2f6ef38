//! Filters that count.

use std::time::Duration;

use http::Method;
use proxy_config::model::http::action::{RateLimit, RateLimitAction};
use proxy_config::model::http::filters::{
    GrpcMethods, GrpcStats, HttpLocalRateLimit, LocalDescriptor, VhRateLimits,
};
use proxy_config::model::listener_filter::TokenBucket;

use super::*;
use crate::http::Stream;
use crate::http::testing::{frames, header_map, manager, request, routed, to};
use crate::net::Options;
use crate::telemetry::Flags;
use crate::world::builtin;

fn bucket(tokens: u32) -> TokenBucket {
    TokenBucket { max_tokens: tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(60) }
}

fn limit(tokens: Option<u32>) -> HttpLocalRateLimit {
    HttpLocalRateLimit {
        stat_prefix: "lim".into(),
        status: 429,
        token_bucket: tokens.map(bucket),
        filter_enabled: Some(ALL),
        filter_enforced: Some(ALL),
        request_headers_to_add_when_not_enforced: vec![option(
            "x-over",
            "1",
            AppendAction::OverwriteIfExistsOrAdd,
        )],
        response_headers_to_add: vec![option("x-lim", "yes", AppendAction::OverwriteIfExistsOrAdd)],
        descriptors: Vec::new(),
        stage: 0,
        per_connection: false,
        enable_x_ratelimit_headers: true,
        vh_rate_limits: VhRateLimits::Override,
        always_consume_default_token_bucket: true,
        rate_limited_as_resource_exhausted: false,
        rate_limits: Vec::new(),
        max_dynamic_descriptors: 2,
        enable_retry_after_header: false,
    }
}

fn filter(limit: HttpLocalRateLimit) -> FilterKind {
    FilterKind::LocalRateLimit(Box::new(limit))
}

#[tokio::test(start_paused = true)]
async fn so_many_requests() {
    let rig = rig(filter(limit(None)), Some(PerRoute::LocalRateLimit(Box::new(limit(Some(2))))));
    let mut told = Vec::new();
    for _ in 0..3 {
        let mut stream = rig.get("/");
        let sent = ask(&rig, &mut stream).await;
        let header = |name: &str| sent.header(&format!("x-ratelimit-{name}")).unwrap().to_owned();
        told.push((sent.status, header("limit"), header("remaining"), header("reset")));
        if sent.status == 429 {
            assert_eq!((sent.text(), sent.header("x-lim")), ("local_rate_limited", Some("yes")));
            assert_eq!(stream.entry.outcome.flags, Flags::RL);
            assert_eq!(stream.entry.outcome.response_code_details.as_deref(), Some("local_rate_limited"));
        }
    }
    let row = |status, remaining: &str, reset: &str| {
        (status, "2".to_owned(), remaining.to_owned(), reset.to_owned())
    };
    assert_eq!(told, [row(200, "1", "0"), row(200, "0", "60"), row(429, "0", "60")]);
    let stats = ["enabled", "ok", "rate_limited", "enforced"];
    assert_eq!(stats.map(|name| rig.stat(&format!("lim.http_local_rate_limit.{name}"))), [3, 2, 1, 1]);
}

#[tokio::test]
async fn not_enforced_and_not_enabled() {
    let lenient = HttpLocalRateLimit { filter_enforced: None, ..limit(Some(1)) };
    let rig_lenient = rig(filter(lenient), None);
    let off = HttpLocalRateLimit { filter_enabled: Some(NONE), ..limit(Some(1)) };
    let rig_off = rig(filter(off), None);
    let mut over = Vec::new();
    for rig in [&rig_lenient, &rig_off] {
        for _ in 0..2 {
            let mut stream = rig.get("/");
            assert_eq!(ask(rig, &mut stream).await.status, 200);
            over.push(stream.request().headers.contains_key("x-over"));
        }
    }
    assert_eq!(over, [false, true, false, false]);
}

#[tokio::test]
async fn each_connection_its_own() {
    let rig = rig(filter(HttpLocalRateLimit { per_connection: true, ..limit(Some(1)) }), None);
    let conn = rig.connection();
    let on_one = || Stream::new(conn.clone(), request(Method::GET, "/", &[]), crate::http::Body::empty());
    let mut statuses = Vec::new();
    for mut stream in [on_one(), on_one(), rig.get("/"), on_one()] {
        statuses.push(ask(&rig, &mut stream).await.status);
    }
    assert_eq!(statuses, [200, 429, 200, 429]);
}

#[tokio::test]
async fn descriptors() {
    let descriptor = |entries: &[(&str, &str)], tokens| LocalDescriptor {
        entries: entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        token_bucket: bucket(tokens),
        shadow_mode: false,
    };
    let header =
        RateLimitAction::RequestHeader { name: "x-who".into(), key: "who".into(), skip_if_absent: false };
    let generic = RateLimitAction::GenericKey { key: "k".into(), value: "v".into() };
    let rate = RateLimit {
        stage: 0,
        disable_key: "".into(),
        actions: vec![generic, header],
        hits_addend: None,
        apply_on_stream_done: false,
    };
    let config = HttpLocalRateLimit {
        descriptors: vec![
            descriptor(&[("k", "v"), ("who", "a")], 2),
            descriptor(&[("k", "v"), ("who", "")], 1),
        ],
        rate_limits: vec![rate],
        ..limit(Some(100))
    };
    let rig = rig(filter(config), None);
    let mut statuses = Vec::new();
    for who in ["a", "a", "a", "b", "b", "c", "d", "b", ""] {
        let headers: Vec<_> = (!who.is_empty()).then_some(("x-who", who)).into_iter().collect();
        statuses.push(ask(&rig, &mut rig.with("/", &headers)).await.status);
    }
    // Two values of their own are remembered: by then b is not.
    assert_eq!(statuses, [200, 200, 429, 200, 429, 200, 200, 200, 200]);
}

pub(super) fn clustered(kind: FilterKind, cluster: &str) -> Rig {
    let filter = proxy_config::model::http::HttpFilter { name: "f".into(), disabled: false, kind };
    let model =
        builtin::cluster(cluster, proxy_config::model::cluster::Discovery::Static, None, &Options::default());
    Rig::of(&manager(vec![filter], routed(to(cluster))), [model])
}

#[tokio::test]
async fn grpc_calls_are_counted() {
    let config = GrpcStats {
        emit_filter_state: true,
        enable_upstream_stats: true,
        replace_dots_in_grpc_service_name: false,
        methods: GrpcMethods::Listed(vec![("a.S".into(), vec!["Get".into()])]),
    };
    let rig = clustered(FilterKind::GrpcStats(config), "up");
    let message: &[u8] = &[0, 0, 0, 0, 1, 7];
    for (path, status) in [("/a.S/Get", "0"), ("/a.S/Get", "13"), ("/a.S/Other", "0"), ("/nothing", "0")] {
        let head = request(Method::POST, path, &[("content-type", "application/grpc")]);
        let mut stream = rig.stream(head, frames(&[message], None));
        let body = crate::http::testing::read;
        let sent = rig.exchange(&mut stream, |stream| {
            respond(stream, 200, &[("content-type", "application/grpc")], "");
            stream.response_body = frames(&[message, message], Some(header_map(&[("grpc-status", status)])));
        });
        assert_eq!(sent.await.unwrap().body.len(), 12);
        assert_eq!(body(stream.request_body.take()).await.unwrap().0.len(), 6);
    }
    for (name, value) in [
        ("a.S.Get.success", 1),
        ("a.S.Get.failure", 1),
        ("a.S.Get.total", 2),
        ("a.S.Get.0", 1),
        ("a.S.Get.13", 1),
        ("a.S.Get.request_message_count", 2),
        ("a.S.Get.response_message_count", 4),
        ("success", 1),
        ("response_message_count", 2),
    ] {
        assert_eq!(rig.stat(&format!("cluster.up.grpc.{name}")), value, "{name}");
    }
    assert_eq!(rig.stats.value("cluster.up.grpc.a.S.Other.total"), None);
}
