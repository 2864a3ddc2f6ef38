//! Lines that Envoy 1.40 wrote, for the same connections.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use proxy_config::model::access_log::{
    AccessLogFilter, Comparison, ComparisonOp, JsonFormat, LogFormat, LogSink,
};
use proxy_config::model::metadata::{Map, Metadata, Value as Meta};
use serde_json::json;

use super::*;
use crate::net::facts::Facts;
use crate::telemetry::stats::Stats;
use crate::telemetry::{Bytes, ConnRecord, Flags, Origin, Outcome, Side};

pub(in crate::telemetry) fn entry() -> Entry {
    let client: SocketAddr = "127.0.0.1:43174".parse().unwrap();
    let log = AccessLog::start(None, 0, &Stats::new()).unwrap();
    let origin = Origin { connection_id: 7, workload: None, direction: None, listener: "l1".into() };
    let record = ConnRecord::new(log, origin, Facts::new(client, "127.0.0.1:10011".parse().unwrap()));
    let mut entry = Entry::clone(&record.entry);
    record.finish(Outcome::new(Side::Internal, Flags::NONE, ""));
    entry.start = UNIX_EPOCH + Duration::from_nanos(1_795_272_810_497_439_000);
    entry.duration = Duration::from_micros(52_400);
    entry.filter_chain = Some("fc1".into());
    entry.outcome = Outcome::new(Side::Upstream, Flags::NONE, "");
    entry
}

fn connected() -> Entry {
    let mut entry = entry();
    entry.bytes = Bytes { downstream_rx: 5, downstream_tx: 7, upstream_rx: 7, upstream_tx: 5 };
    let upstream = &mut entry.upstream;
    upstream.cluster = Some("ok".into());
    upstream.host = Some("127.0.0.1:10020".parse().unwrap());
    upstream.hostname = Some("foo.host".into());
    upstream.local = Some("127.0.0.1:34858".parse().unwrap());
    upstream.attempts = 1;
    upstream.connection_id = 1;
    upstream.connect_started = Some(Duration::from_micros(307));
    upstream.connected_after = Some(Duration::from_nanos(70_311));
    let text = |s: &str| Meta::String(s.into());
    let lb = Map::from([("canary".into(), Meta::Bool(true)), ("v".into(), text("x y"))]);
    upstream.host_metadata = Some(Arc::new(Metadata([("envoy.lb".into(), lb)].into())));
    let ns = Map::from([
        ("a".into(), Meta::Number(1.0)),
        ("b".into(), Meta::List(vec![text("x"), Meta::Bool(true)])),
        ("n".into(), Meta::Null),
    ]);
    let of = Map::from([("k".into(), Meta::Struct(ns))]);
    entry.listener_metadata = Some(Arc::new(Metadata([("ns".into(), of)].into())));
    entry
}

fn refused() -> Entry {
    let mut entry = entry();
    entry.upstream.cluster = Some("refused".into());
    entry.upstream.host = Some("127.0.0.1:1".parse().unwrap());
    entry.upstream.attempts = 1;
    let outcome = Outcome::new(Side::Upstream, Flags::UF | Flags::URX, "");
    entry.outcome =
        Outcome { upstream_failure: Some("delayed connect error: Connection refused".into()), ..outcome };
    entry
}

fn text(format: &str, omit: bool, entry: &Entry) -> String {
    let model = LogFormat::Text { format: format.into(), omit_empty_values: omit };
    String::from_utf8(Format::new(&model).unwrap().line(entry)).unwrap()
}

/// Operator, its value on a connection, and on one that was refused.
const OPERATORS: &[(&str, &str, &str)] = &[
    ("START_TIME(%s.%3f)", "1795272810.497", "1795272810.497"),
    ("BYTES_RECEIVED", "5", "0"),
    ("BYTES_SENT", "7", "0"),
    ("UPSTREAM_WIRE_BYTES_SENT", "5", "0"),
    ("UPSTREAM_HEADER_BYTES_SENT", "0", "0"),
    ("DURATION", "52", "52"),
    ("REQUEST_DURATION", "-", "-"),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", "0", "0"),
    ("COMMON_DURATION(DS_CX_BEG:US_CX_BEG:us)", "307", "-"),
    ("COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)", "-", "-"),
    ("COMMON_DURATION(US_CX_BEG:US_CX_END:ns)", "70311", "-"),
    ("CONNECTION_ID", "7", "7"),
    ("UPSTREAM_CONNECTION_ID", "1", "0"),
    ("RESPONSE_FLAGS", "-", "UF,URX"),
    ("RESPONSE_FLAGS_LONG", "-", "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
    ("RESPONSE_CODE", "0", "0"),
    ("RESPONSE_CODE_DETAILS", "-", "-"),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", "-", "delayed_connect_error:_Connection_refused"),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", "-", "tcp_initializion_failure:0"),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", "Normal", "Normal"),
    ("UPSTREAM_HOST", "127.0.0.1:10020", "127.0.0.1:1"),
    ("UPSTREAM_HOST_NAME", "foo.host", "127.0.0.1:1"),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", "127.0.0.1", "127.0.0.1"),
    ("UPSTREAM_CLUSTER", "ok", "refused"),
    ("UPSTREAM_LOCAL_ADDRESS", "127.0.0.1:34858", "-"),
    ("UPSTREAM_REMOTE_ADDRESS", "127.0.0.1:10020", "-"),
    ("UPSTREAM_REMOTE_PORT", "10020", "-"),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", "", "-"),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "1", "1"),
    ("DOWNSTREAM_LOCAL_ADDRESS", "127.0.0.1:10011", "127.0.0.1:10011"),
    ("DOWNSTREAM_LOCAL_PORT", "10011", "10011"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)", "127.0.0.0/8", "127.0.0.0/8"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "127.0.0.1:43174", "127.0.0.1:43174"),
    ("REQUESTED_SERVER_NAME", "-", "-"),
    ("ROUTE_NAME", "-", "-"),
    ("FILTER_CHAIN_NAME", "fc1", "fc1"),
    ("ACCESS_LOG_TYPE", "TcpConnectionEnd", "TcpConnectionEnd"),
    ("ENVIRONMENT(SHUNT_NO_SUCH_VARIABLE)", "-", "-"),
    ("METADATA(LISTENER:ns:k)", r#"{"a":1,"b":["x",true],"n":null}"#, "-"),
    ("METADATA(LISTENER:ns:k:b)", r#"["x",true]"#, "-"),
    ("METADATA(LISTENER:ns:k:n)", "-", "-"),
    ("METADATA(ROUTE:a)", "-", "-"),
    ("DYNAMIC_METADATA(ns:key:key)", "-", "-"),
    ("UPSTREAM_METADATA(envoy.lb:v)", "x y", "-"),
    ("FILTER_STATE(foo)", "-", "-"),
    ("REQ(X?Y):3", "-", "-"),
    ("CUSTOM_FLAGS", "", ""),
    ("DOWNSTREAM_PEER_SUBJECT", "-", "-"),
];

#[test]
fn operators_as_envoy() {
    for (operator, on_success, on_refusal) in OPERATORS {
        let format = format!("<%{operator}%>");
        assert_eq!(text(&format, false, &connected()), format!("<{on_success}>"), "{operator}");
        assert_eq!(text(&format, false, &refused()), format!("<{on_refusal}>"), "{operator}");
    }
}

#[test]
fn every_operator_that_the_configuration_takes_is_known() {
    for operator in proxy_config::format::operators() {
        let argument = match operator.name {
            "COMMON_DURATION" => Some("DS_CX_BEG:DS_CX_END:ms"),
            "METADATA" => Some("CLUSTER:a"),
            name if name.ends_with("WITHOUT_PORT") || name.contains("TIME") => None,
            _ => Some("a"),
        };
        assert!(operator::Operator::new(operator.name, argument).is_ok(), "{}", operator.name);
    }
    assert!(operator::Operator::new("NO_SUCH_OPERATOR", None).is_err());
}

#[test]
fn the_default_format() {
    let line = Format::new(&LogFormat::Default).unwrap().line(&connected());
    let want =
        "[2026-11-21T14:53:30.497Z] \"- - -\" 0 - 5 7 52 - \"-\" \"-\" \"-\" \"-\" \"127.0.0.1:10020\"\n";
    assert_eq!(String::from_utf8(line).unwrap(), want);
}

#[test]
fn missing_values_may_be_omitted_but_flags_keep_their_dash() {
    assert_eq!(text("<%PROTOCOL%|%RESPONSE_FLAGS%>%%", true, &connected()), "<|->%");
}

fn json_model(json: &serde_json::Value) -> JsonFormat {
    match json {
        serde_json::Value::Null => JsonFormat::Null,
        serde_json::Value::Bool(b) => JsonFormat::Bool(*b),
        serde_json::Value::Number(n) => JsonFormat::Number(n.as_f64().unwrap()),
        serde_json::Value::String(s) => JsonFormat::Text(s.as_str().into()),
        serde_json::Value::Array(list) => JsonFormat::List(list.iter().map(json_model).collect()),
        serde_json::Value::Object(fields) => {
            JsonFormat::Object(fields.iter().map(|(k, v)| (k.clone(), json_model(v))).collect())
        }
    }
}

#[test]
fn json_keeps_types_and_sorts_keys() {
    let format = json!({
        "z": "%PROTOCOL%", "a": "%BYTES_SENT%", "m": "x %BYTES_SENT% y %PROTOCOL%",
        "n": {"b": 1, "a": [1.5, true, null, "%DURATION%", "%REQ(x)%", {"q": "%ROUTE_NAME%"}]},
        "e": {}, "md": "%METADATA(LISTENER:ns:k)%", "port": "%UPSTREAM_REMOTE_PORT%", "lit": "%%",
        "l": ["%REQ(x)%"], "u": {"v": "%REQ(x)%"},
    });
    for (omit_empty_values, want) in [
        (
            false,
            concat!(
                r#"{"a":7,"e":{},"l":[null],"lit":"%","m":"x 7 y -","md":{"a":1,"b":["x",true],"n":null},"#,
                r#""n":{"a":[1.5,true,null,52,null,{"q":null}],"b":1},"port":10020,"u":{"v":null},"z":null}"#,
                "\n"
            ),
        ),
        (
            true,
            concat!(
                r#"{"a":7,"l":[],"lit":"%","m":"x 7 y ","md":{"a":1,"b":["x",true],"n":null},"#,
                r#""n":{"a":[1.5,true,52],"b":1},"port":10020}"#,
                "\n"
            ),
        ),
    ] {
        let model = LogFormat::Json { format: json_model(&format), omit_empty_values };
        let line = Format::new(&model).unwrap().line(&connected());
        assert_eq!(String::from_utf8(line).unwrap(), want);
    }
}

#[test]
fn filters() {
    let duration = |op, value| AccessLogFilter::Duration(Comparison { op, value });
    let at_least = |value| duration(ComparisonOp::AtLeast, value);
    let flags =
        |names: &[&str]| AccessLogFilter::ResponseFlag(names.iter().map(|n| (*n).to_owned()).collect());
    let log_type = |exclude| AccessLogFilter::LogType { types: vec!["TcpConnectionEnd".into()], exclude };
    let status = AccessLogFilter::StatusCode(Comparison { op: ComparisonOp::AtLeast, value: 400 });
    for (filter, on_success, on_refusal) in [
        (at_least(52), true, true),
        (at_least(53), false, false),
        (duration(ComparisonOp::NotEqual, 52), false, false),
        (flags(&[]), false, true),
        (flags(&["UH"]), false, false),
        (flags(&["UH", "UF"]), false, true),
        (log_type(false), true, true),
        (log_type(true), false, false),
        (status.clone(), false, false),
        (AccessLogFilter::NotHealthCheck, true, true),
        (AccessLogFilter::And(vec![at_least(1), flags(&["UF"])]), false, true),
        (AccessLogFilter::Or(vec![status, flags(&["UF"])]), false, true),
    ] {
        let compiled = Filter::new(&filter);
        assert_eq!(compiled.accepts(&connected()), on_success, "{filter:?}");
        assert_eq!(compiled.accepts(&refused()), on_refusal, "{filter:?}");
    }
}

fn logger(path: &std::path::Path, sinks: &Sinks) -> Logger {
    let format = LogFormat::Text { format: "%BYTES_SENT%\n".into(), omit_empty_values: false };
    let sink = LogSink::File(path.to_owned());
    Logger::new(&model::AccessLog { filter: None, sink, format }, sinks).unwrap()
}

#[test]
fn loggers_of_one_path_share_a_file_and_survive_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("old"));
    let stats = Stats::new();
    let sinks = Sinks::new(Duration::from_secs(3_600), &stats);
    let (one, two) = (logger(&path, &sinks), logger(&path, &sinks));
    assert!(Arc::ptr_eq(&one.file, &two.file));
    one.log(&connected());
    two.log(&connected());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "lines gather");
    assert!(sinks.flush(Duration::from_secs(30)));
    std::fs::rename(&path, &old).unwrap();
    sinks.reopen();
    one.log(&connected());
    assert!(sinks.flush(Duration::from_secs(30)));
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "7\n7\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "7\n");
    assert_eq!(stats.value("filesystem.write_buffered"), Some(3));
    assert_eq!(stats.value("filesystem.write_total_buffered"), Some(0));
}

#[test]
fn a_path_that_cannot_be_opened_is_named() {
    let sinks = Sinks::new(Duration::from_secs(1), &Stats::new());
    let sink = LogSink::File("/no/such/directory/log".into());
    let error = Logger::new(&model::AccessLog { filter: None, sink, format: LogFormat::Default }, &sinks);
    assert!(error.unwrap_err().to_string().contains("/no/such/directory/log"));
}
