//! Each case was shown to the real Envoy 1.40, and is again by the suite `config`: `envoy` says what it does, and `ours`
//! exactly what is said here.

use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use super::*;
use crate::diagnostic::Severity;
use crate::lower::StaticSecrets;

/// The file of cases: `name`, `side`, `socket` (a `TransportSocket` as proto JSON), `secrets` of the bootstrap, `envoy`
/// (`accepts`, `refuses`, `crashes`), `ours`, and `differs`, the reason where the two are not of one mind.
const CASES: &str = include_str!("cases.json");

fn cases() -> Vec<Value> {
    serde_json::from_str(CASES).unwrap()
}

fn message<M: prost::Name + Default>(json: &Value) -> M {
    let descriptor = crate::proto::pool().get_message_by_name(&M::full_name()).unwrap();
    let message = DynamicMessage::deserialize(descriptor, json).unwrap_or_else(|e| panic!("{json}: {e}"));
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

/// The model of a case, and what was said about it.
fn lower(case: &Value) -> (Option<TransportSocket>, Vec<String>) {
    let mut cx = Cx::default();
    let given = case["secrets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let secrets: StaticSecrets = cx.field("secrets", |cx| {
        let lower = |(i, json)| cx.index(i, |cx| message::<ext::tls::v3::Secret>(json).lower(cx));
        given.iter().enumerate().filter_map(lower).map(Arc::new).collect()
    });
    let mut cx = Cx { diagnostics: cx.diagnostics, ..Cx::default() }.with_secrets(Some(Arc::new(secrets)));
    let side = if case["side"] == "downstream" { Side::Downstream } else { Side::Upstream };
    let model = cx.on(side, |cx| message::<core::TransportSocket>(&case["socket"]).lower(cx));
    let sign = |severity| if severity == Severity::Error { "error" } else { "warning" };
    let said = cx.diagnostics.iter().map(|d| format!("{} {d}", sign(d.severity))).collect();
    (model.filter(|_| !cx.failed()), said)
}

#[test]
fn each_case_says_what_it_should() {
    let cases = cases();
    assert!(cases.len() > 200);
    let mut wrong = Vec::new();
    for case in &cases {
        let (model, said) = lower(case);
        let ours: Vec<&str> = case["ours"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let refused = said.iter().any(|line| line.starts_with("error"));
        assert_eq!(model.is_none(), refused, "{}: refused without a reason", case["name"]);
        if said != ours {
            wrong.push(format!("{}: {}", case["name"], serde_json::to_string(&said).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "said instead:\n{}", wrong.join("\n"));
}

#[test]
fn what_envoy_refuses_is_refused_unless_a_case_says_why() {
    for case in cases() {
        let refused =
            case["ours"].as_array().unwrap().iter().any(|v| v.as_str().unwrap().starts_with("error"));
        let same = refused == (case["envoy"] != "accepts");
        assert_eq!(same, case["differs"].is_null(), "{}: {}", case["name"], case["differs"]);
    }
}
