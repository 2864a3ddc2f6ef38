use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use super::*;
use crate::lower::Lower;
use crate::model::metadata;

fn lower(json: &Value) -> (Option<Bootstrap>, Vec<String>) {
    let descriptor = crate::proto::pool().get_message_by_name(pb::Bootstrap::NAME).unwrap();
    let message = DynamicMessage::deserialize(descriptor, json).unwrap_or_else(|e| panic!("{json}: {e}"));
    let mut cx = Cx::default();
    let model = pb::Bootstrap::decode(message.encode_to_vec().as_slice()).unwrap().lower(&mut cx);
    (model, cx.diagnostics.iter().map(ToString::to_string).collect())
}

#[test]
fn what_is_read() {
    let (model, said) = lower(&json!({
        "node": {"id": "n", "cluster": "c", "locality": {"zone": "z"}, "metadata": {"k": 1}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}},
            "access_log_path": "/dev/stdout", "allow_paths": [{"prefix": "/stats"}]},
        "cluster_manager": {"local_cluster_name": "local", "outlier_detection": {"event_log_path": "/e"}},
        "stats_flush_interval": "7s",
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"a": true}}]},
    }));
    let model = model.unwrap();
    let zones = "zone-aware routing is not implemented: the endpoints of all zones are taken alike";
    assert_eq!(
        said,
        [
            "at stats_flush_interval: stats are counted when they are read".to_owned(),
            format!("at cluster_manager.local_cluster_name: {zones}"),
            "at cluster_manager.outlier_detection: ejections are counted, and not logged to a file"
                .to_owned(),
            "at layered_runtime.layers[0].static_layer: a: shown by /runtime without effect: defaults hold"
                .to_owned(),
            "at admin.access_log_path: requests of the admin interface are not logged".to_owned(),
        ]
    );
    assert_eq!((model.node.id.as_str(), model.node.zone.as_str()), ("n", "z"));
    assert_eq!(model.node.metadata["k"], metadata::Value::Number(1.0));
    let admin = model.admin.unwrap();
    assert_eq!(admin.address, Address::Ip(([127, 0, 0, 1], 15000).into()));
    assert_eq!(admin.allow_paths.len(), 1);
    assert_eq!(model.runtime["static"]["a"], metadata::Value::Bool(true));
}

#[test]
fn reports_of_spans_by_the_runtime() {
    let (model, said) = lower(&json!({"layered_runtime": {"layers": [
        {"name": "a", "static_layer": {"tracing.zipkin.min_flush_spans": 1, "tracing.zipkin.request_timeout": 20}},
        {"name": "b", "static_layer": {"tracing": {"zipkin": {"min_flush_spans": "7"},
            "opentelemetry": {"flush_interval_ms": 9}}}}]}}));
    assert_eq!(said, [""; 0]);
    let reports = model.unwrap().reports;
    let millis = Duration::from_millis;
    assert_eq!((reports.zipkin.min_flush_spans, reports.zipkin.request_timeout), (7, millis(20)));
    assert_eq!(reports.zipkin.flush_interval, millis(5000));
    assert_eq!(reports.opentelemetry.flush_interval, millis(9));
}

#[test]
fn what_is_said() {
    let table = [
        (json!({"stats_flush_interval": "300s"}), "at stats_flush_interval: must be less than 300s"),
        (json!({"stats_flush_interval": "0s"}), "at stats_flush_interval: must be at least 1ms"),
        (json!({"admin": {}}), "at admin.address: is not given: there is no admin interface"),
        (
            json!({"layered_runtime": {"layers": [
                {"name": "a", "static_layer": {}}, {"name": "a", "static_layer": {}}]}}),
            "at layered_runtime.layers: duplicate layer name: a",
        ),
        (
            json!({"layered_runtime": {"layers": [{"name": "a", "disk_layer": {"symlink_root": "/r"}}]}}),
            "at layered_runtime.layers[0].disk_layer: runtime values from a directory are not implemented",
        ),
        (
            json!({"dynamic_resources": {"lds_resources_locator": "xdstp://x"}}),
            "at dynamic_resources.lds_resources_locator: xDS resource locators (xdstp) are not implemented: \
                use lds_config",
        ),
        (
            json!({"stats_config": {"stats_tags": [{"tag_name": "t", "regex": "("}]}}),
            "at stats_config.stats_tags[0].regex: regex parse error:\n    (\n    ^\nerror: unclosed group",
        ),
    ];
    for (json, why) in table {
        let said = lower(&json).1;
        assert_eq!(said.last().map(String::as_str), Some(why), "{json}: {said:?}");
    }
}
