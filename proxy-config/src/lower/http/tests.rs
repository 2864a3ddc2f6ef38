//! Each case was shown to the real Envoy 1.40: `envoy` says what it did there.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use crate::diagnostic::Severity;
use crate::lower::{Cx, Lower};
use crate::model::http::action::{Action, ClusterSpecifier, PathRewrite};
use crate::model::http::hcm::HcmTimeouts;
use crate::model::http::istio::{PeerDiscovery, PeerPropagation};
use crate::model::http::options::StreamResetLimit;
use crate::model::http::{FilterKind, Hcm, HeaderOption, PerFilter, PerRoute, Route, RouteSource};

/// `name`, `hcm` (proto JSON), `envoy` (`accepts` or `refuses`), and `differs`, why we do not.
const CASES: &str = include_str!("cases.json");

fn from_json(json: &Value) -> HttpConnectionManager {
    let name = <HttpConnectionManager as Lower>::NAME;
    let descriptor = crate::proto::pool().get_message_by_name(name).unwrap();
    let message = DynamicMessage::deserialize(descriptor, json).unwrap_or_else(|e| panic!("{json}: {e}"));
    HttpConnectionManager::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn said(cx: &Cx) -> Vec<String> {
    let sign = |severity| if severity == Severity::Error { "error" } else { "warning" };
    cx.diagnostics.iter().map(|d| format!("{} {d}", sign(d.severity))).collect()
}

fn hcm(json: &Value) -> Hcm {
    let mut cx = Cx::default();
    let hcm = from_json(json).lower(&mut cx);
    assert!(!cx.failed(), "{:?}", said(&cx));
    hcm.unwrap()
}

fn route(json: &Value) -> Route {
    let hosts = json!([{"name": "v", "domains": ["*"], "routes": [json]}]);
    let hcm = hcm(&json!({"stat_prefix": "s", "route_config": {"virtual_hosts": hosts}}));
    let RouteSource::Inline(routes) = hcm.routes else { panic!() };
    routes.virtual_hosts[0].routes[0].clone()
}

#[test]
fn what_envoy_refuses_is_refused_and_nothing_else_unless_a_case_says_why() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 400);
    let mut wrong = Vec::new();
    for case in &cases {
        let mut cx = Cx::default();
        let model = from_json(&case["hcm"]).lower(&mut cx);
        assert!(model.is_some() || cx.failed(), "{}: refused without a reason", case["name"]);
        let same = cx.failed() == (case["envoy"] == "refuses");
        if same != case["differs"].is_null() {
            wrong.push(format!("{}, which Envoy {}: {:?}", case["name"], case["envoy"], said(&cx)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_part_that_is_refused_is_named_by_its_place() {
    for (name, place) in [
        ("headers kb 0", "max_request_headers_kb: must be from 1 to 8192"),
        (
            "vhost two stars",
            "route_config.virtual_hosts[1].domains: Only a single wildcard domain is permitted in route r",
        ),
        ("regex bad", "route_config.virtual_hosts[0].routes[0].match.safe_regex.regex: "),
        ("weights zero", "routes[0].route.weighted_clusters.clusters: the sum of their weights"),
        (
            "direct body over",
            "routes[0].direct_response.body: response body size is 4097 bytes; maximum is 4096",
        ),
        (
            "local limit often",
            "http_filters[0].typed_config<LocalRateLimit>.token_bucket.fill_interval: must be",
        ),
        ("jwt unknown provider", "rules[0].requires: Required provider ['q'] is not configured."),
        (
            "request header add bad format",
            "request_headers_to_add[0].header.value: unknown operator \"NOPE\"",
        ),
    ] {
        let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let mut cx = Cx::default();
        let _ = from_json(&case["hcm"]).lower(&mut cx);
        let said = said(&cx);
        assert!(
            said.iter().any(|line| line.starts_with("error") && line.contains(place)),
            "{name}: {said:?}"
        );
    }
}

// `config: {}`, which JSON of other libraries cannot say.
#[test]
fn an_empty_configuration_turns_a_filter_on() {
    let on = FilterConfig { config: Some(Any::default()), ..FilterConfig::default() };
    let mut cx = Cx::default();
    assert_eq!(on.lower(&mut cx), Some(Some(PerFilter { disabled: false, config: None })));
    assert!(cx.diagnostics.is_empty());
}

#[test]
fn defaults() {
    let plain = hcm(&json!({"stat_prefix": "s", "route_config": {}}));
    assert_eq!(plain.timeouts, HcmTimeouts::default());
    assert_eq!(plain.timeouts.request_headers, Some(Duration::from_secs(15)), "Envoy has none");
    assert_eq!(plain.timeouts.stream_flush, Some(Duration::from_secs(300)));
    assert_eq!((plain.max_request_headers_kb, plain.common.max_headers_count), (60, 100));
    assert_eq!(plain.common.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(&*plain.identity.server_name, "envoy");
    assert!(
        plain.request_id.generate && plain.request_id.pack_trace_reason && plain.http1.allow_absolute_url
    );
    assert_eq!(plain.http2.stream_reset, StreamResetLimit { burst: 1000, per_second: 33 });
    assert!(!plain.client.use_remote_address && plain.client.internal.ranges.is_empty());
}

#[test]
fn nothing_is_a_time_out_of_0s() {
    let none = "0s";
    let of = hcm(&json!({
        "stat_prefix": "s", "route_config": {}, "stream_idle_timeout": none, "request_timeout": none,
        "request_headers_timeout": none, "delayed_close_timeout": none, "drain_timeout": none,
        "common_http_protocol_options": {"idle_timeout": none},
    }));
    let timeouts = of.timeouts;
    assert_eq!(
        [timeouts.stream_idle, timeouts.stream_flush, timeouts.request, timeouts.delayed_close],
        [None; 4]
    );
    assert_eq!(
        (timeouts.request_headers, timeouts.drain, of.common.idle_timeout),
        (None, Duration::ZERO, None)
    );
}

#[test]
fn the_managers_word_about_bad_messages_holds_unless_a_protocol_has_its_own() {
    let ends_stream = |own: Value| {
        let of = hcm(&json!({
            "stat_prefix": "s", "route_config": {}, "stream_error_on_invalid_http_message": true,
            "http_protocol_options": own,
        }));
        of.http1.stream_error_on_invalid_http_message
    };
    assert!(ends_stream(json!({})));
    assert!(!ends_stream(json!({"override_stream_error_on_invalid_http_message": false})));
}

#[test]
fn time_outs_of_a_route() {
    let of = |route_action: Value| {
        let Action::Route(action) = route(&json!({"match": {"prefix": "/"}, "route": route_action})).action
        else {
            panic!()
        };
        (action.timeout, action.idle_timeout)
    };
    assert_eq!(of(json!({"cluster": "c"})), (Some(Duration::from_secs(15)), None));
    assert_eq!(of(json!({"cluster": "c", "timeout": "0s", "idle_timeout": "0s"})), (None, Some(None)));
    let two = Duration::from_secs(2);
    assert_eq!(
        of(json!({"cluster": "c", "timeout": "2s", "idle_timeout": "2s"})),
        (Some(two), Some(Some(two)))
    );
}

#[test]
fn a_weighted_cluster_has_the_routes_metadata_under_its_own() {
    let weighted = route(&json!({"match": {"prefix": "/"}, "route": {
        "metadata_match": {"filter_metadata": {"envoy.lb": {"a": "1", "b": "1"}}},
        "weighted_clusters": {"clusters": [
            {"name": "c", "weight": 6, "metadata_match": {"filter_metadata": {"envoy.lb": {"a": "2"}}}},
            {"name": "d", "weight": 4},
        ]},
    }}));
    let Action::Route(action) = weighted.action else { panic!() };
    let ClusterSpecifier::Weighted(clusters) = action.cluster else { panic!() };
    assert_eq!(clusters.clusters.iter().map(|cluster| cluster.weight).sum::<u32>(), 10);
    let own = format!("{:?}", clusters.clusters[0].metadata_match);
    assert!(own.contains("\"a\": String(\"2\")") && own.contains("\"b\": String(\"1\")"), "{own}");
}

#[test]
fn a_template_is_bound_to_its_match() {
    let of = route(&json!({
        "match": {"path_match_policy": {"name": "m", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
            "path_template": "/a/{b}/{c=**}"}}},
        "route": {"cluster": "c", "path_rewrite_policy": {"name": "r", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
            "path_template_rewrite": "/{c}/{b}"}}},
    }));
    let Action::Route(action) = of.action else { panic!() };
    let PathRewrite::Template(rewrite) = action.path_rewrite else { panic!() };
    assert_eq!(rewrite.apply(&["1", "2/3"]), "/2/3/1");
}

#[test]
fn what_an_older_field_says_of_cors_goes_to_the_filter() {
    let of = route(&json!({"match": {"prefix": "/"}, "route": {
        "cluster": "c", "cors": {"allow_methods": "GET", "max_age": "1"},
    }}));
    let cors = of.per_filter.get("envoy.filters.http.cors").and_then(|cors| cors.config.as_ref());
    assert!(matches!(cors, Some(PerRoute::Cors(policy)) if &*policy.allow_methods == "GET"), "{cors:?}");
}

#[test]
fn names_of_headers_are_in_lower_case_and_values_are_formats() {
    let of = route(&json!({"match": {"prefix": "/"}, "route": {"cluster": "c"},
        "request_headers_to_add": [{"header": {"key": "X-Who", "value": "%DOWNSTREAM_REMOTE_ADDRESS%"}}]}));
    let [HeaderOption { name, value, .. }] = of.headers.request.add.as_slice() else { panic!() };
    assert_eq!((&**name, value.as_str(), value.constant()), ("x-who", "%DOWNSTREAM_REMOTE_ADDRESS%", None));
}

#[test]
fn a_module_that_istio_has_built_in_is_its_filter() {
    let module = |name: &str| {
        json!({"name": name, "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {"vm_config": {"runtime": "envoy.wasm.runtime.null", "code": {"local": {"inline_string": name}}}}}})
    };
    let router = json!({"name": "envoy.filters.http.router"});
    let filters = json!([module("envoy.wasm.metadata_exchange"), module("envoy.wasm.stats"), router]);
    let of = hcm(&json!({"stat_prefix": "s", "route_config": {}, "http_filters": filters}));
    let kinds: Vec<_> = of.filters.iter().map(|filter| &filter.kind).collect();
    let [FilterKind::MetadataExchange(peer), FilterKind::IstioStats(_), FilterKind::Router(_)] =
        kinds.as_slice()
    else {
        panic!("{kinds:?}")
    };
    assert!(!peer.upstream_propagation.is_empty());
}

/// An expression that is not understood is nobody's harm, and is said; so is what Istio's proxy has beside ours.
#[test]
fn filters_of_requests_upstream_are_served_or_refused_by_name() {
    let typed = |name: &str, fields: &Value| {
        let mut config =
            json!({ "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{name}") });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "name": "f", "typed_config": config })
    };
    let codec = typed("upstream_codec.v3.UpstreamCodec", &json!({}));
    let mutation = typed("header_mutation.v3.HeaderMutation", &json!({ "mutations": {} }));
    for (filters, word) in [
        (json!([codec]), None),
        (json!([mutation, codec]), None),
        (json!([mutation]), Some("non-terminal filter named f is the last filter")),
        (
            json!([typed("buffer.v3.Buffer", &json!({ "max_request_bytes": 1 })), codec]),
            Some("upstream_http_filters[0]: f: is not implemented for requests upstream"),
        ),
        (
            json!([typed("cors.v3.Cors", &json!({})), codec]),
            Some("upstream_http_filters[0]: f: is no filter of requests upstream"),
        ),
    ] {
        let router = typed("router.v3.Router", &json!({ "upstream_http_filters": filters }));
        let mut cx = Cx::default();
        let manager = json!({ "stat_prefix": "s", "route_config": {}, "http_filters": [router] });
        let _ = from_json(&manager).lower(&mut cx);
        let said = said(&cx);
        match word {
            Some(word) => assert!(said.iter().any(|line| line.contains(word)), "{filters}: {said:?}"),
            None => assert!(!cx.failed(), "{filters}: {said:?}"),
        }
    }
}

#[test]
fn what_has_no_effect_in_istios_filters_is_said() {
    let lowered = |of_type: &str, fields: Value| {
        let mut any = fields;
        any["@type"] = format!("type.googleapis.com/{of_type}").into();
        let router = json!({"name": "envoy.filters.http.router"});
        let filters = json!([{"name": "f", "typed_config": any}, router]);
        let mut cx = Cx::default();
        let hcm = from_json(&json!({"stat_prefix": "s", "route_config": {}, "http_filters": filters}))
            .lower(&mut cx);
        let warnings: Vec<_> = said(&cx).into_iter().filter(|line| !line.contains("router")).collect();
        (hcm.unwrap().filters.swap_remove(0).kind, warnings)
    };
    let (kind, said) = lowered(
        "io.istio.http.peer_metadata.Config",
        json!({
            "downstream_discovery": [{"istio_headers": {"skip_external_clusters": true}}, {"baggage": {}}],
            "upstream_discovery": [
                {"istio_headers": {}}, {"workload_discovery": {}}, {"baggage": {}},
                {"upstream_filter_state": {"peer_metadata_key": "k"}},
            ],
            "upstream_propagation": [{"baggage": {}}, {"istio_headers": {"skip_external_clusters": true}}],
            "shared_with_upstream": true,
        }),
    );
    let FilterKind::MetadataExchange(peer) = kind else { panic!("{kind:?}") };
    assert_eq!(peer.downstream_discovery, [PeerDiscovery::IstioHeaders, PeerDiscovery::Baggage]);
    assert_eq!(peer.upstream_discovery, [PeerDiscovery::IstioHeaders]);
    let told = PeerPropagation::IstioHeaders { skip_external_clusters: true };
    assert_eq!(peer.upstream_propagation, [PeerPropagation::Baggage, told]);
    for what in [
        "shared_with_upstream",
        "workload_discovery",
        "baggage is only",
        "upstream_filter_state",
        "skip_external_clusters",
    ] {
        assert!(
            said.iter().any(|line| line.starts_with("warning") && line.contains(what)),
            "{what}: {said:?}"
        );
    }
    assert_eq!(said.len(), 5, "{said:?}");

    let (kind, said) = lowered(
        "stats.PluginConfig",
        json!({
            "metrics": [{
                "match": "true",
                "dimensions": {"host": "request.host", "odd": "no | such", "none": "cannot_evaluate", "call": "nothing(1)"},
            }],
            "definitions": [{"name": "bad", "value": "("}, {"name": "good", "value": "1"}],
            "tcp_reporting_duration": "0s",
            "rescoping_duration": "60s",
        }),
    );
    let FilterKind::IstioStats(stats) = kind else { panic!("{kind:?}") };
    assert_eq!(stats.tcp_reporting_duration, None);
    assert_eq!(stats.rotation.map(|rotation| rotation.grace_period), Some(Duration::from_secs(300)));
    assert_eq!(stats.definitions.len(), 1);
    let known: Vec<_> =
        stats.metrics[0].dimensions.iter().map(|(name, value)| (&**name, value.is_some())).collect();
    assert_eq!(known, [("call", false), ("host", true), ("none", true), ("odd", false)]);
    for what in ["match", "\"odd\"", "\"none\"", "\"call\"", "\"bad\""] {
        assert!(
            said.iter().any(|line| line.starts_with("warning") && line.contains(what)),
            "{what}: {said:?}"
        );
    }
    assert_eq!(said.len(), 5, "{said:?}");
}
