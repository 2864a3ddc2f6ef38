//! No field is silently ignored: each field of each message is set alone on a valid message, and either the model
//! changes or a diagnostic names the field.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::registry::{Message, messages};
use super::{Cx, Status};
use crate::diagnostic::{Diagnostic, Segment, Severity};

/// `message name: a valid message`, as proto JSON. A message that is not here is valid when empty.
const BASES: &str = include_str!("reflection/bases.json");

/// `message.field: reason`: fields that are read and do not change the model.
const EXCEPTIONS: &str = include_str!("reflection/exceptions.json");

/// How deep samples of nested messages vary.
const DEPTH: usize = 3;

#[test]
fn each_table_has_all_fields_of_its_message() {
    for message in messages() {
        let descriptor = descriptor(message.name);
        let plain = descriptor.fields().filter(|f| one_of(f).is_none()).map(|f| f.name().to_owned());
        let expected: BTreeSet<_> = plain.chain(descriptor.fields().filter_map(|f| one_of(&f))).collect();
        let listed: BTreeSet<_> = message.fields.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed, expected, "{}", message.name);
        assert_eq!(message.fields.len(), expected.len(), "{}: a field is listed twice", message.name);
    }
}

#[test]
fn each_field_changes_the_model_or_is_named() {
    let samples = Samples::new();
    let mut exceptions: BTreeMap<String, String> = serde_json::from_str(EXCEPTIONS).unwrap();
    let mut problems = Vec::new();
    for message in messages() {
        let base = samples.base(&descriptor(message.name));
        let (Some(model), cx) = lower(&message, &base) else {
            problems.push(format!("{}: its base is refused: {:?}", message.name, lower(&message, &base).1));
            continue;
        };
        let before = Seen { model, diagnostics: cx.diagnostics };
        for field in descriptor(message.name).fields() {
            let seen = samples.of(&field, DEPTH).into_iter().any(|sample| {
                let mut changed = base.clone();
                changed.set_field(&field, sample);
                before.differs(&message, &field, &changed)
            });
            let excused = exceptions.remove(&format!("{}.{}", message.name, field.name())).is_some();
            match (seen, excused) {
                (false, false) => problems.push(format!("{}.{} is ignored", message.name, field.name())),
                (true, true) => {
                    problems.push(format!("{}.{} needs no exception", message.name, field.name()))
                }
                (true, false) | (false, true) => {}
            }
        }
    }
    problems.extend(exceptions.into_keys().map(|key| format!("{key}: an exception for no field")));
    assert!(problems.is_empty(), "{}\n{} problems", problems.join("\n"), problems.len());
}

/// A `lower!` table that no registry names would escape the other tests.
#[test]
fn each_table_in_the_source_is_registered() {
    let registered: BTreeSet<_> = messages().map(|m| m.name.to_owned()).collect();
    let mut found = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lower"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.extend(tables(&std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert_eq!(found, registered);
}

fn tables(source: &str) -> Vec<String> {
    let starts = source.split("\nlower!").skip(1);
    let names = starts.filter_map(|table| table.split('"').nth(1));
    names.map(str::to_owned).collect()
}

#[test]
fn no_message_is_registered_twice() {
    let mut seen = BTreeSet::new();
    for message in messages() {
        assert!(seen.insert(message.name), "{}", message.name);
    }
}

#[test]
fn a_reason_is_given_for_what_is_not_read() {
    for message in messages() {
        for (field, status) in message.fields {
            match status {
                Status::Read => {}
                Status::Reject(why) | Status::Warn(why) => {
                    assert!(why.len() > 8 && !why.ends_with('.'), "{}.{field}: {why:?}", message.name);
                }
            }
        }
    }
}

fn descriptor(name: &str) -> MessageDescriptor {
    crate::proto::pool().get_message_by_name(name).unwrap_or_else(|| panic!("no message {name}"))
}

/// The name of the `oneof` that the field is in; `optional` makes none.
fn one_of(field: &FieldDescriptor) -> Option<String> {
    field.containing_oneof().filter(|o| !o.is_synthetic()).map(|o| o.name().to_owned())
}

fn lower(message: &Message, given: &DynamicMessage) -> (Option<String>, Cx) {
    let mut cx = Cx::default();
    let model = (message.lower)(&given.encode_to_vec(), &mut cx);
    (model.filter(|_| !cx.failed()), cx)
}

/// What a base gives.
struct Seen {
    model: String,
    diagnostics: Vec<Diagnostic>,
}

impl Seen {
    /// Whether the field that was `changed` has an effect.
    fn differs(&self, message: &Message, field: &FieldDescriptor, changed: &DynamicMessage) -> bool {
        let (model, cx) = lower(message, changed);
        let mut fresh = cx.diagnostics.iter().filter(|d| !self.diagnostics.contains(d));
        fresh.any(|diagnostic| names(diagnostic, field)) || model.is_some_and(|model| model != self.model)
    }
}

/// An error further inside may only say that the sample is a poor one; a warning is about what was given.
fn names(diagnostic: &Diagnostic, field: &FieldDescriptor) -> bool {
    let [Segment::Field(name), inside @ ..] = diagnostic.path.segments() else { return false };
    let whole = inside.iter().all(|s| matches!(s, Segment::Index(_) | Segment::Key(_)));
    (whole || diagnostic.severity == Severity::Warning)
        && (name == field.name() || Some(name.to_string()) == one_of(field))
}

struct Samples {
    bases: HashMap<String, serde_json::Value>,
}

impl Samples {
    fn new() -> Self {
        Self { bases: serde_json::from_str(BASES).unwrap() }
    }

    fn base(&self, descriptor: &MessageDescriptor) -> DynamicMessage {
        let Some(json) = self.bases.get(descriptor.full_name()) else {
            return DynamicMessage::new(descriptor.clone());
        };
        DynamicMessage::deserialize(descriptor.clone(), json)
            .unwrap_or_else(|e| panic!("{}: {e}", descriptor.full_name()))
    }

    /// Values to try, of which one must show.
    fn of(&self, field: &FieldDescriptor, depth: usize) -> Vec<Value> {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return Vec::new() };
            let values = entry.get_field_by_name("value").map(|f| self.one(&f, depth)).unwrap_or_default();
            let numbered = entry.map_entry_key_field().kind() == Kind::Int64;
            let key = if numbered { MapKey::I64(1) } else { MapKey::String("key".to_owned()) };
            let one = |value| Value::Map(HashMap::from([(key.clone(), value)]));
            return values.into_iter().map(one).collect();
        }
        let ones = self.one(field, depth);
        if !field.is_list() {
            return ones;
        }
        let twice = ones.clone().into_iter().map(|one| Value::List(vec![one.clone(), one]));
        ones.iter().cloned().map(|one| Value::List(vec![one])).chain(twice).collect()
    }

    fn one(&self, field: &FieldDescriptor, depth: usize) -> Vec<Value> {
        match field.kind() {
            Kind::Message(message) => self.messages(&message, depth),
            Kind::Enum(e) => e.values().map(|v| Value::EnumNumber(v.number())).collect(),
            Kind::String => {
                let texts = ["changed", "10.1.2.3", "V1", "UF"];
                texts.map(|t| Value::String(t.to_owned())).to_vec()
            }
            Kind::Bool => vec![Value::Bool(true), Value::Bool(false)],
            Kind::Uint32 | Kind::Fixed32 => vec![Value::U32(7), Value::U32(11), Value::U32(300)],
            Kind::Uint64 | Kind::Fixed64 => vec![Value::U64(7), Value::U64(11), Value::U64(3000)],
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => vec![Value::I32(7), Value::I32(11)],
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => vec![Value::I64(7), Value::I64(400)],
            Kind::Double => vec![Value::F64(7.0), Value::F64(0.5)],
            Kind::Float => vec![Value::F32(7.0), Value::F32(0.5)],
            Kind::Bytes => vec![Value::Bytes("x".into())],
        }
    }

    fn messages(&self, message: &MessageDescriptor, depth: usize) -> Vec<Value> {
        if message.full_name() == "google.protobuf.Any" {
            return self.anys();
        }
        let base = self.base(message);
        let mut samples = vec![Value::Message(base.clone())];
        if depth > 0 {
            for field in message.fields() {
                // Each of the extensions, and some of all else.
                let is_any =
                    matches!(field.kind(), Kind::Message(m) if m.full_name() == "google.protobuf.Any");
                let most = if is_any { usize::MAX } else { 12 };
                for value in self.of(&field, depth - 1).into_iter().take(most) {
                    let mut changed = base.clone();
                    changed.set_field(&field, value);
                    samples.push(Value::Message(changed));
                }
            }
        }
        samples
    }

    /// One of each category of extensions.
    fn anys(&self) -> Vec<Value> {
        let json =
            self.bases.get("google.protobuf.Any").and_then(|v| v.as_array()).cloned().unwrap_or_default();
        let any = descriptor("google.protobuf.Any");
        let sample =
            |json| DynamicMessage::deserialize(any.clone(), json).unwrap_or_else(|e| panic!("Any: {e}"));
        json.into_iter().map(|json| Value::Message(sample(json))).collect()
    }
}
