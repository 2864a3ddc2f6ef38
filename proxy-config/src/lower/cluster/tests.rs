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

/// Something other than the default; messages are filled one level deep, so that they are not empty.
fn another(field: &FieldDescriptor) -> prost_reflect::Value {
    use prost_reflect::Value as V;
    let one = |kind: Kind| match kind {
        Kind::Message(message) => {
            let mut value = DynamicMessage::new(message.clone());
            if let Some(inner) =
                message.get_field_by_name("value").or_else(|| message.get_field_by_name("seconds"))
            {
                value.set_field(&inner, another(&inner));
            }
            V::Message(value)
        }
        Kind::Enum(e) => V::EnumNumber(e.values().map(|v| v.number()).max().unwrap_or(1)),
        Kind::String => V::String("changed".into()),
        Kind::Bytes => V::Bytes("x".into()),
        Kind::Bool => V::Bool(true),
        Kind::Uint32 | Kind::Fixed32 => V::U32(7),
        Kind::Uint64 | Kind::Fixed64 => V::U64(7),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => V::I32(7),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => V::I64(7),
        Kind::Double => V::F64(7.0),
        Kind::Float => V::F32(7.0),
    };
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { panic!("a map has entries") };
        return V::Map([(MapKey::String("k".into()), one(entry.map_entry_value_field().kind()))].into());
    }
    match field.cardinality() {
        Cardinality::Repeated => V::List(vec![one(field.kind())]),
        Cardinality::Optional | Cardinality::Required => one(field.kind()),
    }
}

fn sample(descriptor: &MessageDescriptor) -> DynamicMessage {
    let json =
        samples::SAMPLES.iter().find(|(name, _)| *name == descriptor.full_name()).map_or("{}", |(_, s)| s);
    let json: Value = serde_json::from_str(json).unwrap();
    DynamicMessage::deserialize(descriptor.clone(), &json).unwrap()
}

#[test]
fn each_scalar_changes_the_model_or_is_named() {
    let mut dead = Vec::new();
    for message in ALL_MESSAGES.iter().copied().flatten() {
        let descriptor = crate::proto::pool().get_message_by_name(message.name).expect(message.name);
        let base = sample(&descriptor);
        let mut cx = Cx::default();
        let before = (message.lower)(&base.encode_to_vec(), &mut cx);
        assert!(!cx.failed(), "{}: {:?}", message.name, said(&cx));
        for field in descriptor.fields().filter(|field| !matches!(field.kind(), Kind::Message(_))) {
            let mut changed = base.clone();
            changed.set_field(&field, another(&field));
            let mut cx = Cx::default();
            let after = (message.lower)(&changed.encode_to_vec(), &mut cx);
            let named = said(&cx).iter().any(|line| line.contains(field.name()));
            if before == after && !named {
                dead.push(format!("{}.{}", message.name, field.name()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
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
