//! What the real Envoy (1.40) wrote, and what is written here for the same.

use std::time::{Duration, UNIX_EPOCH};

use envoy_types::pb::envoy::data::tap::v3::TraceWrapper;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use super::*;
use crate::model::HostPort;
use crate::model::transport::TapSink;

const FORMATS: [TapFormat; 5] = [
    TapFormat::JsonBodyAsBytes,
    TapFormat::JsonBodyAsString,
    TapFormat::ProtoBinary,
    TapFormat::ProtoBinaryLengthDelimited,
    TapFormat::ProtoText,
];

fn connection() -> Connection {
    let ip = |text: &str| Some(Address::Ip(text.parse().unwrap()));
    Connection { local: ip("127.0.0.1:18104"), remote: ip("127.0.0.1:47198") }
}

fn at(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(1_795_283_114, 0) + Duration::from_nanos(nanos)
}

fn body(bytes: &[u8], truncated: bool) -> Body {
    Body { bytes: bytes.to_vec(), truncated }
}

fn event(nanos: u64, what: What, seq_num: u64) -> Event {
    Event { at: at(nanos), what, connection: None, seq_num }
}

fn whole() -> Trace {
    let events = vec![
        event(923_105_999, What::Read(body(b"world \"\xff\x01\n' there", false)), 0),
        event(923_433_000, What::Write { body: body(b"", true), end_stream: false }, 0),
        event(1_000_000_000, What::Write { body: body(b"bye", false), end_stream: true }, 0),
    ];
    let piece = Piece::Buffered(Buffered {
        connection: connection(),
        events,
        write_truncated: true,
        ..Buffered::default()
    });
    Trace { id: 8, piece, sample_rate: None }
}

fn text(trace: &Trace, format: TapFormat) -> String {
    String::from_utf8(encode(trace, format)).unwrap()
}

#[test]
fn a_buffered_trace_as_text() {
    let expected = r#"socket_buffered_trace {
  trace_id: 8
  connection {
    local_address {
      socket_address {
        address: "127.0.0.1"
        port_value: 18104
      }
    }
    remote_address {
      socket_address {
        address: "127.0.0.1"
        port_value: 47198
      }
    }
  }
  events {
    timestamp {
      seconds: 1795283114
      nanos: 923105000
    }
    read {
      data {
        as_bytes: "world \"\377\001\n\' there"
      }
    }
  }
  events {
    timestamp {
      seconds: 1795283114
      nanos: 923433000
    }
    write {
      data {
        as_bytes: ""
        truncated: true
      }
    }
  }
  events {
    timestamp {
      seconds: 1795283115
    }
    write {
      data {
        as_bytes: "bye"
      }
      end_stream: true
    }
  }
  write_truncated: true
}
"#;
    assert_eq!(text(&whole(), TapFormat::ProtoText), expected);
}

const JSON: &str = r#"{
 "socket_buffered_trace": {
  "trace_id": "8",
  "connection": {
   "local_address": {
    "socket_address": {
     "protocol": "TCP",
     "address": "127.0.0.1",
     "port_value": 18104,
     "resolver_name": "",
     "ipv4_compat": false,
     "network_namespace_filepath": ""
    }
   },
   "remote_address": {
    "socket_address": {
     "protocol": "TCP",
     "address": "127.0.0.1",
     "port_value": 47198,
     "resolver_name": "",
     "ipv4_compat": false,
     "network_namespace_filepath": ""
    }
   }
  },
  "events": [
   {
    "timestamp": "2026-11-21T17:45:14.923105Z",
    "read": {
     "data": {
      "as_bytes": "d29ybGQgIv8BCicgdGhlcmU=",
      "truncated": false
     }
    },
    "seq_num": "0"
   },
   {
    "timestamp": "2026-11-21T17:45:14.923433Z",
    "write": {
     "data": {
      "as_bytes": "",
      "truncated": true
     },
     "end_stream": false
    },
    "seq_num": "0"
   },
   {
    "timestamp": "2026-11-21T17:45:15Z",
    "write": {
     "data": {
      "as_bytes": "Ynll",
      "truncated": false
     },
     "end_stream": true
    },
    "seq_num": "0"
   }
  ],
  "read_truncated": false,
  "write_truncated": true
 }
}
"#;

#[test]
fn a_buffered_trace_as_json() {
    assert_eq!(text(&whole(), TapFormat::JsonBodyAsBytes), JSON);
    let strings = JSON
        .replace(r#""as_bytes": "d29ybGQgIv8BCicgdGhlcmU=""#, r#""as_string": "world \" \u0001\n' there""#)
        .replace(r#""as_bytes": "Ynll""#, r#""as_string": "bye""#)
        .replace(r#""as_bytes": """#, r#""as_string": """#);
    assert_eq!(text(&whole(), TapFormat::JsonBodyAsString), strings);
}

#[test]
fn a_streamed_trace_follows_itself() {
    let trace = |piece| Trace { id: 18, piece, sample_rate: None };
    let closed = trace(Piece::Event(event(783_940_000, What::Closed, 59)));
    let expected = "{\n \"socket_streamed_trace_segment\": {\n  \"trace_id\": \"18\",\n  \"event\": {\n   \"timestamp\": \
                    \"2026-11-21T17:45:14.783940Z\",\n   \"closed\": {},\n   \"seq_num\": \"59\"\n  }\n }\n}\n";
    assert_eq!(text(&closed, TapFormat::JsonBodyAsString), expected);
    let expected = "socket_streamed_trace_segment {\n  trace_id: 18\n  event {\n    timestamp {\n      seconds: \
                    1795283114\n      nanos: 783940000\n    }\n    closed {\n    }\n    seq_num: 59\n  }\n}\n";
    assert_eq!(text(&closed, TapFormat::ProtoText), expected);
    // Envoy loses the connection where bodies are strings.
    let first = trace(Piece::Connection(connection()));
    let expected = "{\n \"socket_streamed_trace_segment\": {\n  \"trace_id\": \"18\",\n  \"event\": {\n   \"seq_num\": \
                    \"0\"\n  }\n }\n}\n";
    assert_eq!(text(&first, TapFormat::JsonBodyAsString), expected);
    assert!(text(&first, TapFormat::JsonBodyAsBytes).contains("47198"));
}

#[test]
fn a_sample_rate_is_behind_the_trace() {
    let rate = FractionalPercent { numerator: 5_000, denominator: 10_000 };
    let trace = Trace { sample_rate: Some(rate), ..whole() };
    let expected = " },\n \"configured_sample_rate\": {\n  \"numerator\": 5000,\n  \"denominator\": \"TEN_THOUSAND\"\n }\n}\n";
    assert!(text(&trace, TapFormat::JsonBodyAsBytes).ends_with(expected));
    let of_hundred = FractionalPercent { numerator: 100, denominator: 100 };
    let trace = Trace { sample_rate: Some(of_hundred), ..whole() };
    assert!(
        text(&trace, TapFormat::ProtoText).ends_with("}\nconfigured_sample_rate {\n  numerator: 100\n}\n")
    );
}

/// Every kind of piece says the same in all formats, read by somebody else's reader.
#[test]
fn all_formats_say_the_same() {
    let pool = crate::proto::pool();
    let message = pool.get_message_by_name("envoy.data.tap.v3.TraceWrapper").unwrap();
    let mut read = event(5, What::Read(body(b"a", false)), 1);
    read.connection = Some(Connection {
        local: Some(Address::Pipe { path: "/run/a.sock".into(), mode: 0o600 }),
        remote: Some(Address::Host(HostPort { host: "a.example".into(), port: 1 })),
    });
    let ipv6 = Connection { local: None, remote: Some(Address::Ip("[::1]:80".parse().unwrap())) };
    let write = event(7, What::Write { body: body(b"b", true), end_stream: true }, 2);
    for piece in [
        whole().piece,
        Piece::Buffered(Buffered::default()),
        Piece::Connection(ipv6),
        Piece::Event(write.clone()),
        Piece::Events(vec![read, write, event(9, What::Closed, 3)]),
    ] {
        let rate = FractionalPercent { numerator: 1, denominator: 1_000_000 };
        let trace = Trace { id: u64::MAX, piece, sample_rate: Some(rate) };
        let [json, _, binary, delimited, _] = FORMATS.map(|format| encode(&trace, format));
        let theirs = DynamicMessage::decode(message.clone(), binary.as_slice()).unwrap();
        let options =
            prost_reflect::SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
        let theirs = theirs.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), without_nothing(theirs));
        let decoded = TraceWrapper::decode(binary.as_slice()).unwrap();
        assert_eq!(TraceWrapper::decode_length_delimited(delimited.as_slice()).unwrap(), decoded);
    }
}

/// Messages that are not there are no fields.
fn without_nothing(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let some = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(some.map(|(name, value)| (name, without_nothing(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nothing).collect()),
        scalar @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => scalar,
    }
}

#[test]
fn any_bytes_make_a_json_string() {
    let json = |bytes: &[u8]| {
        let write = What::Write { body: body(bytes, false), end_stream: false };
        let trace = Trace { id: 0, piece: Piece::Event(event(0, write, 1)), sample_rate: None };
        let parsed: Value = serde_json::from_slice(&encode(&trace, TapFormat::JsonBodyAsString)).unwrap();
        let event = &parsed["socket_streamed_trace_segment"]["event"];
        event["write"]["data"]["as_string"].as_str().unwrap().to_owned()
    };
    for (bytes, expected) in [
        (&b""[..], ""),
        (
            "<\u{e9}\u{1f600}\u{1d173}\0\u{8}\u{c}\t\r\\".as_bytes(),
            "<\u{e9}\u{1f600}\u{1d173}\0\u{8}\u{c}\t\r\\",
        ),
        // A sequence that ends early takes what ended it along.
        (b"a\xc3b", "a "),
        (b"a\xe2\x82b", "a "),
        (b"a\xf0\x9f", "a "),
        (b"\x80\xff", "  "),
        // A surrogate, and a slash in two bytes.
        (b"\xed\xa0\x80\xc0\xaf", "  "),
    ] {
        assert_eq!(json(bytes), expected, "{bytes:?}");
    }
    let every: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    assert!(!json(&every).is_empty());
}

#[test]
fn a_request_is_read_or_refused_with_the_place() {
    let text = r"
config_id: watched
tap_config:
  match: {any_match: true}
  output_config:
    streaming: true
    min_streamed_sent_bytes: 0
    sinks: [{format: PROTO_BINARY_LENGTH_DELIMITED, streaming_admin: {}}]
";
    let read = request(text).unwrap();
    assert_eq!(&*read.config_id, "watched");
    assert_eq!(read.config.output.format, TapFormat::ProtoBinaryLengthDelimited);
    assert_eq!(
        (read.config.output.min_streamed_sent_bytes, read.config.output.max_buffered_rx_bytes),
        (9, 1_024)
    );
    let json = r#"{"config_id": "a", "tap_config": {"match_config": {"any_match": true}, "output_config":
        {"sinks": [{"buffered_admin": {"max_traces": 2, "timeout": "1.5s"}}]}}}"#;
    let sink = TapSink::BufferedAdmin { max_traces: 2, timeout: Some(Duration::from_millis(1_500)) };
    assert_eq!(request(json).unwrap().config.output.sink, sink);
    for (from, to, place) in [
        ("config_id: watched", "config_id: ''", "config_id"),
        ("config_id: watched", "nosuch: 1", "nosuch"),
        ("match: {any_match: true}", "enabled: 1", "tap_config: unknown field"),
        ("any_match: true", "any_match: false", "tap_config.match.any_match"),
        ("streaming_admin: {}", "streaming_grpc: {}", "tap_config.output_config.sinks[0].streaming_grpc"),
        ("streaming_admin: {}", "buffered_admin: {}", "tap_config.output_config.sinks[0].buffered_admin"),
        (", streaming_admin: {}", "", "tap_config.output_config.sinks[0]"),
        ("PROTO_BINARY_LENGTH_DELIMITED", "XML", "tap_config.output_config.sinks[0].format"),
    ] {
        let found = request(&text.replace(from, to)).unwrap_err();
        let told = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(told.contains(place), "{to}: {told}");
    }
    assert!(request("config_id: [").is_err());
}
