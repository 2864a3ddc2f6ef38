//! Each case was shown to the real Envoy 1.40: `envoy` says what it did there, and `ours` exactly what is said here.

use prost::Message as _;
use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor};
use serde_json::Value;

use super::*;
use crate::diagnostic::Severity;

/// The file of cases: `name`, `cluster` (proto JSON), `envoy` (`accepts`, `refuses`, `crashes`), `ours`.
const CASES: &str = include_str!("cases.json");

fn from_json(json: &Value) -> Cluster {
    let descriptor = crate::proto::pool().get_message_by_name(Cluster::NAME).unwrap();
    let message = DynamicMessage::deserialize(descriptor, json).unwrap_or_else(|e| panic!("{json}: {e}"));
    Cluster::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn said(cx: &Cx) -> Vec<String> {
    let sign = |severity| if severity == Severity::Error { "error" } else { "warning" };
    cx.diagnostics.iter().map(|d| format!("{} {d}", sign(d.severity))).collect()
}

#[test]
fn each_case_says_what_it_should() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 200);
    let mut wrong = Vec::new();
    for case in &cases {
        let mut cx = Cx::default();
        let model = from_json(&case["cluster"]).lower(&mut cx);
        let ours: Vec<&str> = case["ours"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert!(model.is_some() || cx.failed(), "{}: refused without a reason", case["name"]);
        if said(&cx) != ours {
            wrong.push(format!("{}: {:?}", case["name"], said(&cx)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_envoy_refuses_is_refused_unless_a_case_says_why() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    for case in &cases {
        let refused =
            case["ours"].as_array().unwrap().iter().any(|v| v.as_str().unwrap().starts_with("error"));
        let same = refused == (case["envoy"] != "accepts");
        assert_eq!(same, case["differs"].is_null(), "{}: {}", case["name"], case["differs"]);
    }
}

#[test]
fn equal_metadata_is_one_allocation() {
    let endpoint = |port: u32, version: &str| {
        serde_json::json!({
            "metadata": {"filter_metadata": {"envoy.lb": {"version": version}}},
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
        })
    };
    let cluster = from_json(&serde_json::json!({
        "name": "c",
        "load_assignment": {"cluster_name": "c", "endpoints": [
            {"lb_endpoints": [endpoint(1, "a"), endpoint(2, "b")]}, {"lb_endpoints": [endpoint(3, "a")]},
        ]},
    }));
    let lowered = cluster.lower(&mut Cx::default()).unwrap();
    let [first, second] = lowered.load_assignment.localities.as_slice() else { panic!() };
    assert!(Arc::ptr_eq(&first.endpoints[0].metadata, &second.endpoints[0].metadata));
    assert!(!Arc::ptr_eq(&first.endpoints[0].metadata, &first.endpoints[1].metadata));
}

proptest::proptest! {
    /// Bytes of the cases, changed here and there: what still decodes lowers without a panic, twice the same.
    #[test]
    fn lowering_is_total_and_deterministic(
        case in proptest::prelude::any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0_u8..=255), 0..4),
    ) {
        let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
        let mut bytes = from_json(&case.get(&cases)["cluster"]).encode_to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(cluster) = Cluster::decode(bytes.as_slice()) {
            let (mut once, mut again) = (Cx::default(), Cx::default());
            let (first, second) = (cluster.clone().lower(&mut once), cluster.lower(&mut again));
            proptest::prop_assert_eq!(format!("{first:?}"), format!("{second:?}"));
            proptest::prop_assert_eq!(said(&once), said(&again));
            proptest::prop_assert!(first.is_some() || once.failed());
        }
    }
}
