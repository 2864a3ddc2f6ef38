//! Each case was shown to the real Envoy 1.40: `envoy` says what it did there, and `ours` exactly what is said here.

use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use super::*;
use crate::diagnostic::Severity;
use crate::lower::Lower;
use crate::model::address::Cidr;
use crate::model::listener_filter::TlsInspector;
use crate::model::metadata::Value as Meta;
use crate::model::network_filter::NetworkFilter;

/// `name`, `listener` (proto JSON), `envoy` (`accepts` or `refuses`), `ours`, and `differs` where the two disagree.
const CASES: &str = include_str!("cases.json");

fn from_json(json: &Value) -> pb::Listener {
    let descriptor = crate::proto::pool().get_message_by_name(pb::Listener::NAME).unwrap();
    let message = DynamicMessage::deserialize(descriptor, json).unwrap_or_else(|e| panic!("{json}: {e}"));
    pb::Listener::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn said(cx: &Cx) -> Vec<String> {
    let sign = |severity| if severity == Severity::Error { "error" } else { "warning" };
    cx.diagnostics.iter().map(|d| format!("{} {d}", sign(d.severity))).collect()
}

fn case(name: &str) -> Listener {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    let case = cases.iter().find(|c| c["name"] == name).unwrap();
    from_json(&case["listener"]).lower(&mut Cx::default()).unwrap()
}

#[test]
fn each_case_says_what_it_should() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    let mut wrong = serde_json::Map::new();
    for case in &cases {
        let mut cx = Cx::default();
        let model = from_json(&case["listener"]).lower(&mut cx);
        assert!(model.is_some() || cx.failed(), "{}: refused without a reason", case["name"]);
        let ours: Vec<&str> = case["ours"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        if said(&cx) != ours {
            wrong.insert(case["name"].as_str().unwrap().to_owned(), said(&cx).into());
        }
    }
    assert!(wrong.is_empty(), "said instead: {}", Value::Object(wrong));
}

#[test]
fn what_envoy_refuses_is_refused_and_nothing_else_unless_a_case_says_why() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    for case in &cases {
        let ours = case["ours"].as_array().unwrap();
        let refused = ours.iter().any(|v| v.as_str().unwrap().starts_with("error"));
        let same = refused == (case["envoy"] == "refuses");
        assert_eq!(same, case["differs"].is_null(), "{}", case["name"]);
    }
}

#[test]
fn defaults() {
    let listener = case("noname");
    assert_eq!(&*listener.name, "127.0.0.1:0");
    assert!(listener.bind_to_port && listener.reuse_port && !listener.use_original_dst);
    assert_eq!(listener.listener_filters_timeout, Some(Duration::from_secs(15)));
    assert_eq!(listener.per_connection_buffer_limit_bytes, 1024 * 1024);
    assert_eq!(case("timeout 0").listener_filters_timeout, None);
    assert!(!case("deprecated_v1").bind_to_port);
}

#[test]
fn filters_that_a_flag_implies() {
    let filters = |name| case(name).listener_filters.into_iter().map(|f| f.filter).collect::<Vec<_>>();
    assert_eq!(filters("use_original_dst"), [ListenerFilter::OriginalDst]);
    assert_eq!(filters("use_proxy_proto"), [ListenerFilter::ProxyProtocol(ProxyProtocol::default())]);
    let inspector = TlsInspector::default();
    assert_eq!(filters("tls_insp 60000"), [ListenerFilter::TlsInspector(inspector)]);
}

#[test]
fn conditions_are_normalised() {
    let chain = |name| case(name).filter_chains.swap_remove(0).filter_chain_match;
    assert_eq!(chain("upper").server_names, [Arc::from("a.com")]);
    assert_eq!(chain("prefix33").prefix_ranges, [Cidr::new([10, 0, 0, 1].into(), 32).unwrap()]);
    assert_eq!(chain("noprefixlen+none").prefix_ranges, [Cidr::new([0, 0, 0, 0].into(), 0).unwrap()]);
}

#[test]
fn a_weighted_cluster_has_the_filters_metadata_under_its_own() {
    let mut chain = case("tcp metadata merge").filter_chains.swap_remove(0);
    let NetworkFilter::TcpProxy(proxy) = chain.filters.swap_remove(0).filter else { panic!("no tcp_proxy") };
    let fields = proxy.clusters[0].metadata_match.of("envoy.lb").unwrap().clone();
    let expected = [("a", "2"), ("b", "1")].map(|(k, v)| (k.to_owned(), Meta::String(v.to_owned())));
    assert_eq!(fields, expected.into());
    assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(proxy.max_connect_attempts, 1);
}

#[test]
fn ten_thousand_chains_are_compared_quickly() {
    let chain = |i: u32| {
        serde_json::json!({
            "filter_chain_match": {"server_names": [format!("{i}.example.com"), format!("*.{i}.example.com")],
                "destination_port": 1 + i % 1000, "application_protocols": ["istio", "h2"]},
            "filters": [],
        })
    };
    let mut chains: Vec<Value> = (0..10_000).map(chain).collect();
    let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
    let lower = |chains: &[Value]| {
        let mut cx = Cx::default();
        let _ = from_json(&serde_json::json!({"address": address, "filter_chains": chains})).lower(&mut cx);
        said(&cx)
    };
    assert_eq!(lower(&chains), Vec::<String>::new());
    chains.push(chain(1234));
    assert_eq!(
        lower(&chains),
        ["error at filter_chains[10000].filter_chain_match: overlaps with that of \
        filter_chains[1234]: a connection could take either"]
    );
}
