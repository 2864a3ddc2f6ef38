//! Messages at random: as JSON they are what they were, by another implementation of the format.

use std::sync::LazyLock;

use proptest::prelude::*;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use proxy_config::decode;
use proxy_config::load::Options;
use serde_json::json;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::new();
    for set in proxy_config::proto::DESCRIPTORS {
        pool.decode_file_descriptor_set(set).unwrap();
    }
    pool
});

const ROOTS: [&str; 6] = [
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.listener.v3.Listener",
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
];

/// Numbers at will, until there are no more.
struct Dice<'a>(&'a [u32], usize);

impl Dice<'_> {
    fn roll(&mut self, sides: u32) -> u32 {
        self.1 += 1;
        self.0.get(self.1).copied().unwrap_or(0) % sides
    }
}

fn message(descriptor: &MessageDescriptor, dice: &mut Dice<'_>, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let integer = |dice: &mut Dice<'_>| dice.roll(1_000_000);
    match descriptor.full_name() {
        "google.protobuf.Duration" | "google.protobuf.Timestamp" => {
            message.set_field_by_name("seconds", Value::I64(integer(dice).into()));
            message.set_field_by_name("nanos", Value::I32(integer(dice) as i32));
        }
        "google.protobuf.Any" => {
            let name = ["envoy.config.core.v3.Node", "google.protobuf.UInt32Value", "google.protobuf.Struct"];
            let name = name[dice.roll(3) as usize];
            let inner = self::message(&POOL.get_message_by_name(name).unwrap(), dice, depth + 1);
            message.set_field_by_name("type_url", Value::String(format!("type.googleapis.com/{name}")));
            message.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
        }
        // Not numbers, which YAML and JSON do not mean alike here.
        "google.protobuf.Value" => match dice.roll(3) {
            0 => message.set_field_by_name("null_value", Value::EnumNumber(0)),
            1 => message.set_field_by_name("bool_value", Value::Bool(dice.roll(2) == 1)),
            _ => message.set_field_by_name("string_value", Value::String("yes".into())),
        },
        _ => {
            for field in descriptor.fields() {
                if depth < 6 && dice.roll(3) == 1 {
                    set(&mut message, &field, dice, depth);
                }
            }
        }
    }
    message
}

fn set(message: &mut DynamicMessage, field: &FieldDescriptor, dice: &mut Dice<'_>, depth: u32) {
    let value = if field.is_map() {
        let entry = field.kind().as_message().cloned().unwrap();
        let Kind::String = entry.map_entry_key_field().kind() else { return };
        let key = MapKey::String(["a", "b\"\n", "yes"][dice.roll(3) as usize].into());
        Value::Map([(key, single(&entry.map_entry_value_field(), dice, depth))].into())
    } else if field.is_list() {
        Value::List((0..=dice.roll(2)).map(|_| single(field, dice, depth)).collect())
    } else {
        single(field, dice, depth)
    };
    message.set_field(field, value);
}

fn single(field: &FieldDescriptor, dice: &mut Dice<'_>, depth: u32) -> Value {
    let number = dice.roll(u32::MAX);
    match field.kind() {
        Kind::Double => Value::F64(f64::from(number) / 16.0),
        Kind::Float => Value::F32((number % 10_000) as f32 / 10.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-i64::from(number) * 2_000_000_000),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::from(number) * 4_294_967_296),
        Kind::Bool => Value::Bool(number % 2 == 1),
        Kind::String => {
            Value::String(["", "a", "é\u{1F600}\t", "yes", "0x10", "~", "- \"'"][number as usize % 7].into())
        }
        Kind::Bytes => Value::Bytes(number.to_le_bytes().to_vec().into()),
        Kind::Message(inner) => Value::Message(message(&inner, dice, depth + 1)),
        Kind::Enum(kind) => {
            let values: Vec<_> = kind.values().collect();
            Value::EnumNumber(values[number as usize % values.len()].number())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_message_is_the_same_through_json(dice in prop::collection::vec(any::<u32>(), 0..600), root in 0..6_usize) {
        let descriptor = POOL.get_message_by_name(ROOTS[root]).unwrap();
        let message = message(&descriptor, &mut Dice(&dice, 0), 0);
        // Compared as JSON: what is inside of an `Any` may be encoded in more than one way.
        let meant = serde_json::to_value(&message).unwrap();
        let json = serde_json::to_string_pretty(&message).unwrap();
        let encoded = decode::message(ROOTS[root], &json, Options::default());
        let encoded = encoded.map_err(|errors| TestCaseError::fail(format!("{errors:?}\n{json}")))?;
        let decoded = DynamicMessage::decode(descriptor, encoded.bytes.clone()).unwrap();
        prop_assert_eq!(serde_json::to_value(&decoded).unwrap(), meant.clone());

        // The comment makes it YAML, which JSON is.
        let yaml = decode::message(ROOTS[root], &format!("# YAML\n{json}"), Options::default());
        prop_assert_eq!(yaml.unwrap().bytes, encoded.bytes.clone());

        // What we write is read to the same by the other implementation, where nothing is secret.
        let ours = proxy_config::dump::json(ROOTS[root], &encoded.bytes).unwrap().to_string();
        if !ours.contains("[redacted]") && !ours.contains("W3JlZGFjdGVkXQ==") {
            let mut reader = serde_json::Deserializer::from_str(&ours);
            let theirs = DynamicMessage::deserialize(decoded.descriptor(), &mut reader).unwrap();
            prop_assert_eq!(serde_json::to_value(&theirs).unwrap(), meant, "{}", ours);
        }
    }
}

#[test]
fn secrets_are_not_dumped() {
    let text = "
common_tls_context:
  tls_certificates:
  - certificate_chain: {filename: /cert}
    private_key: {inline_string: KEY}
    password: {inline_bytes: c2VjcmV0}
";
    let name = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let dumped = super::read(name, text).unwrap();
    let certificate = &dumped["common_tls_context"]["tls_certificates"][0];
    assert_eq!(
        *certificate,
        json!({
            "certificate_chain": {"filename": "/cert"},
            "private_key": {"inline_string": "[redacted]"},
            "password": {"inline_bytes": "W3JlZGFjdGVkXQ=="},
        })
    );
}

#[test]
fn a_secret_inside_of_a_typed_struct_is_not_dumped() {
    use proxy_config::proto::pb::udpa::r#type::v1::TypedStruct;
    let of_struct = "{tls_certificate: {private_key: {inline_string: KEY}}}";
    let inner = decode::message("google.protobuf.Struct", of_struct, Options::default()).unwrap();
    let secret = TypedStruct {
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".into(),
        value: Some(envoy_types::pb::google::protobuf::Struct::decode(inner.bytes).unwrap()),
    };
    let dumped = proxy_config::dump::json("udpa.type.v1.TypedStruct", &secret.encode_to_vec()).unwrap();
    let key = &dumped["value"]["tls_certificate"]["private_key"];
    assert_eq!(*key, json!({"inline_string": "[redacted]"}), "{dumped}");
}

#[test]
fn a_binary_typed_struct_is_opened() {
    let text = "{'@type': x.io/udpa.type.v1.TypedStruct, type_url: x.io/some.Thing, value: {id: a, metadata: {b: 1}}}";
    let any = decode::message("google.protobuf.Any", text, Options::default()).unwrap();
    let any = envoy_types::pb::google::protobuf::Any::decode(any.bytes).unwrap();
    // Its inner type is unknown to us, so that it stays.
    let (name, same) = decode::any::unpack(&any.type_url, &any.value).unwrap();
    assert_eq!((name.as_str(), &*same), ("udpa.type.v1.TypedStruct", &*any.value));

    let mut outer = proxy_config::proto::pb::udpa::r#type::v1::TypedStruct::decode(&*any.value).unwrap();
    outer.type_url = "type.googleapis.com/envoy.config.core.v3.Node".into();
    let (name, node) =
        decode::any::unpack(&any.type_url, &outer.encode_to_vec()).map(|(n, b)| (n, b.into_owned())).unwrap();
    let dumped = proxy_config::dump::json(&name, &node).unwrap();
    assert_eq!(dumped, json!({"id": "a", "metadata": {"b": 1}}));

    outer.type_url = "type.googleapis.com/envoy.config.core.v3.Address".into();
    // Fields that are unknown are left out, as dynamic configuration is lenient; wrong types are not.
    assert!(decode::any::unpack(&any.type_url, &outer.encode_to_vec()).is_ok());
    outer.type_url = "type.googleapis.com/envoy.api.v2.core.Node".into();
    let why = decode::any::unpack(&any.type_url, &outer.encode_to_vec()).unwrap_err();
    assert_eq!(
        why,
        "envoy.api.v2.core.Node is of the v2 API, which is gone; write envoy.config.core.v3.Node"
    );
}

#[test]
fn a_discovery_response_is_read_in_each_form() {
    let yaml = "
version_info: '1'
resources:
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: a
";
    let read = decode::resources(yaml, Options::default()).unwrap();
    assert_eq!((read.version_info.as_str(), read.resources.len()), ("1", 1));
    let resource = &read.resources[0];
    assert_eq!(resource.type_url, "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    let name = "envoy.service.discovery.v3.DiscoveryResponse";
    let encoded = decode::message(name, yaml, Options::default()).unwrap();
    assert_eq!(decode::resources_binary(&encoded.bytes).unwrap(), read);
    let json = proxy_config::dump::json(name, &encoded.bytes).unwrap().to_string();
    assert_eq!(decode::resources(&json, Options::default()).unwrap(), read);
    assert!(decode::resources_binary(b"\xff").is_err());
}
