//! What each kind of field takes.

use serde_json::{Value, json};

use super::{ANY, CLUSTER, errors, read, warnings};

/// The value of `field` in a cluster that gives it as `written`.
fn cluster(field: &str, written: &str) -> Result<Value, Vec<String>> {
    read(CLUSTER, &format!("{field}: {written}\n")).map(|mut cluster| cluster[field].take())
}

#[test]
fn booleans() {
    for (written, expected) in [
        ("true", true),
        ("yes", true),
        ("On", true),
        ("Y", true),
        ("\"true\"", true),
        ("\"1\"", true),
        ("t", true),
        ("f", false),
        ("\"False\"", false),
        ("off", false),
        ("!!bool yes", true),
    ] {
        // A false that is not given is not shown.
        let shown = if expected { json!(true) } else { Value::Null };
        assert_eq!(cluster("respect_dns_ttl", written), Ok(shown), "{written}");
    }
    for wrong in ["1", "0", "maybe", "[true]", "{}", "tRUE1"] {
        let errors = cluster("respect_dns_ttl", wrong).unwrap_err();
        let expected = "line 1:18 at respect_dns_ttl: expected true or false, found ";
        assert!(errors[0].starts_with(expected), "{wrong}: {errors:?}");
    }
}

#[test]
fn integers() {
    let field = "per_connection_buffer_limit_bytes";
    for (written, expected) in [
        ("16", 16_u32),
        ("0x10", 16),
        ("010", 8),
        ("\"16\"", 16),
        ("1e3", 1000),
        ("5.0", 5),
        ("4294967295", u32::MAX),
        ("0", 0),
    ] {
        assert_eq!(cluster(field, written), Ok(json!(expected)), "{written}");
    }
    for wrong in ["-1", "4294967296", "1.5", "yes", "abc", "0o10", "\"0x10\"", "18446744073709551616", "[]"] {
        let errors = cluster(field, wrong).unwrap_err();
        let expected = format!("line 1:36 at {field}: expected an integer from 0 to 4294967295, found ");
        assert!(errors[0].starts_with(&expected), "{wrong}: {errors:?}");
    }
    // 64 bits, as numbers or strings: JSON has them as strings.
    let ring = |written: &str| {
        let text = format!("ring_hash_lb_config: {{maximum_ring_size: {written}}}");
        read(CLUSTER, &text).map(|mut c| c["ring_hash_lb_config"]["maximum_ring_size"].take())
    };
    for number in ["5", "\"18446744073709551615\"", "18446744073709551615"] {
        assert_eq!(ring(number), Ok(json!(number.trim_matches('"'))), "{number}");
    }
    assert!(ring("18446744073709551616").is_err());
}

#[test]
fn strings_are_what_is_quoted_or_nothing_else() {
    for (written, expected) in [
        ("abc", "abc"),
        ("0.5", "0.5"),
        ("0o10", "0o10"),
        ("'yes'", "yes"),
        ("\"123\"", "123"),
        ("!!str 123", "123"),
        ("|\n  12\n  34", "12\n34\n"),
        (">-\n  12\n  34", "12 34"),
        ("\"a\\tb\\u00e9\"", "a\tbé"),
    ] {
        assert_eq!(cluster("name", written), Ok(json!(expected)), "{written}");
    }
    assert_eq!(
        errors(CLUSTER, "name: yes"),
        ["line 1:7 at name: expected a string, found the boolean yes (quote it to make it a string)"]
    );
    assert_eq!(
        errors(CLUSTER, "{name: 0x10}"),
        ["line 1:8 at name: expected a string, found the number 0x10 (quote it to make it a string)"]
    );
    assert_eq!(cluster("name", "~"), Ok(Value::Null));
}

#[test]
fn enums() {
    for written in ["LEAST_REQUEST", "least_request", "1", "\"1\"", "1.0"] {
        assert_eq!(cluster("lb_policy", written), Ok(json!("LEAST_REQUEST")), "{written}");
    }
    assert_eq!(
        errors(CLUSTER, "lb_policy: RING_HASHED"),
        [
            "line 1:12 at lb_policy: unknown value \"RING_HASHED\" of envoy.config.cluster.v3.Cluster.LbPolicy \
          (did you mean RING_HASH?)"
        ]
    );
    assert_eq!(
        errors(CLUSTER, "protocol_selection: 7"),
        ["line 1:21 at protocol_selection: unknown value \"7\" of \
          envoy.config.cluster.v3.Cluster.ClusterProtocolSelection (one of USE_CONFIGURED_PROTOCOL, \
          USE_DOWNSTREAM_PROTOCOL)"]
    );
    assert_eq!(
        errors(CLUSTER, "lb_policy: [1]"),
        [
            "line 1:12 at lb_policy: expected a value of envoy.config.cluster.v3.Cluster.LbPolicy, found a list"
        ]
    );
}

#[test]
fn durations() {
    for (written, expected) in
        [("0.25s", "0.250s"), ("\"3600s\"", "3600s"), ("0s", "0s"), ("1.000001s", "1.000001s")]
    {
        assert_eq!(cluster("connect_timeout", written), Ok(json!(expected)));
        assert_eq!(warnings(CLUSTER, &format!("connect_timeout: {written}")), [""; 0]);
    }
    assert_eq!(cluster("connect_timeout", "1h"), Ok(json!("3600s")));
    assert_eq!(
        warnings(CLUSTER, "connect_timeout: 100ms"),
        ["line 1:18 at connect_timeout: \"100ms\" is no duration to Envoy; write \"0.100s\""]
    );
    for (wrong, found) in
        [("5", "the number 5 (quote it to make it a string)"), ("soon", "\"soon\""), ("{}", "a mapping")]
    {
        assert_eq!(
            errors(CLUSTER, &format!("connect_timeout: {wrong}")),
            [format!(
                "line 1:18 at connect_timeout: expected a duration in seconds such as \"0.25s\", found {found}"
            )]
        );
    }
}

#[test]
fn bytes_are_base64_and_not_repeated_in_errors() {
    let secret = "envoy.config.core.v3.DataSource";
    for written in ["aGk/aGk+", "aGk_aGk-", "\"aGk/aGk+\""] {
        assert_eq!(
            read(secret, &format!("inline_bytes: {written}")).unwrap(),
            json!({"inline_bytes": "aGk/aGk+"})
        );
    }
    assert_eq!(
        errors(secret, "inline_bytes: \"no base64!\""),
        ["line 1:15 at inline_bytes: expected bytes in base64"]
    );
}

#[test]
fn structs_take_what_envoy_takes() {
    let text = "
filter_metadata:
  envoy.lb: {float: 0.5, int: 5, big: 5000000000, hex: 0x10, oct: 010, yes: yes, quoted: \"5\", n: ~, 5: five,
    list: [1, a, null, {b: off}]}
";
    let expected = json!({"float": "0.5", "int": 5, "big": "5000000000", "hex": 16, "oct": 8, "yes": true,
        "quoted": "5", "n": null, "5": "five", "list": [1, "a", null, {"b": false}]});
    let read = read("envoy.config.core.v3.Metadata", text).unwrap();
    assert_eq!(read["filter_metadata"]["envoy.lb"], expected);
    // JSON says what is a number.
    let json = "{\"filter_metadata\": {\"x\": {\"float\": 0.5, \"big\": 5000000000}}}";
    let read = super::read("envoy.config.core.v3.Metadata", json).unwrap();
    assert_eq!(read["filter_metadata"]["x"], json!({"float": 0.5, "big": 5_000_000_000_i64}));
}

#[test]
fn well_known_types_inside_of_any() {
    for (name, value) in [
        ("StringValue", "\"a\""),
        ("UInt32Value", "7"),
        ("Int64Value", "\"7\""),
        ("BoolValue", "true"),
        ("Duration", "\"5s\""),
        ("Timestamp", "\"2024-02-29T12:00:00Z\""),
        ("Struct", "{\"a\":1}"),
        ("Value", "[1,null]"),
        ("ListValue", "[true]"),
        ("Any", "{\"@type\":\"type.googleapis.com/google.protobuf.Empty\"}"),
    ] {
        let text = format!("{{\"@type\":\"type.googleapis.com/google.protobuf.{name}\",\"value\":{value}}}");
        assert_eq!(read(ANY, &text).unwrap(), serde_json::from_str::<Value>(&text).unwrap(), "{name}");
    }
    assert_eq!(
        errors(ANY, "{\"@type\": type.googleapis.com/google.protobuf.StringValue, text: a}"),
        [
            "line 1:60 at <StringValue>: unknown field \"text\": google.protobuf.StringValue stands under \"value\""
        ]
    );
}

#[test]
fn any_takes_its_type_in_any_place_and_at_any_depth() {
    let text = "
name: envoy.transport_sockets.upstream_proxy_protocol
typedConfig:
  config: {version: V1}
  transportSocket:
    name: envoy.transport_sockets.raw_buffer
    typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}
  '@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport
";
    let read = read("envoy.config.core.v3.TransportSocket", text).unwrap();
    let inner = &read["typed_config"]["transport_socket"]["typed_config"]["@type"];
    assert_eq!(inner, "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer");
}

#[test]
fn a_typed_struct_is_what_it_holds() {
    for outer in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let text = format!(
            "'@type': type.googleapis.com/{outer}\ntype_url: envoy.config.core.v3.Node\nvalue: {{id: a, \
             metadata: {{b: 1}}}}"
        );
        let expected = json!({"@type": "type.googleapis.com/envoy.config.core.v3.Node", "id": "a", "metadata": {"b": 1}});
        assert_eq!(read(ANY, &text), Ok(expected));
        let unknown = text.replace("envoy.config.core.v3.Node", "type.googleapis.com/some.Thing");
        let read = read(ANY, &unknown).unwrap();
        assert_eq!(read["value"], json!({"id": "a", "metadata": {"b": 1}}));
        assert_eq!(read["type_url"], "type.googleapis.com/some.Thing");
    }
    assert_eq!(
        errors(
            ANY,
            "{'@type': x.io/udpa.type.v1.TypedStruct, type_url: x.io/envoy.config.core.v3.Node, value: {it: a}}"
        ),
        ["line 1:92 at <Node>: unknown field \"it\" (did you mean id?)"]
    );
}

#[test]
fn nulls_are_not_given() {
    let text = "{name: a, lb_policy: null, metadata: ~, health_checks: , connect_timeout: Null, load_assignment: null}";
    assert_eq!(read(CLUSTER, text).unwrap(), json!({"name": "a"}));
}

#[test]
fn one_value_is_a_list_of_one() {
    assert_eq!(cluster("health_checks", "{timeout: 1s}"), Ok(json!([{"timeout": "1s"}])));
    assert_eq!(
        warnings(CLUSTER, "health_checks: {timeout: 1s}"),
        ["line 1:16 at health_checks: expected a list, found a mapping: taken as its one element"]
    );
}

#[test]
fn old_field_names_mean_the_new_ones() {
    let listener = "envoy.config.listener.v3.Listener";
    for old in ["hidden_envoy_deprecated_use_original_dst", "hiddenEnvoyDeprecatedUseOriginalDst"] {
        let text = format!("{old}: true");
        assert_eq!(read(listener, &text).unwrap(), json!({"use_original_dst": true}));
        assert_eq!(
            warnings(listener, &text),
            [format!("line 1:1: \"{old}\" is a name of old; write use_original_dst")]
        );
    }
}
