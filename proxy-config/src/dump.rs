//! Encoded messages as JSON, the way Envoy's `/config_dump` shows them: proto field names, every `Any` opened, and
//! what is secret as `[redacted]`. One message at a time, so that a large configuration is never all text at once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::decode::scalar::{Seconds, timestamp_text};
use crate::proto::schema::{self, Field, Kind, Message, Special};
use crate::proto::wire::{self, Fields, Value};

/// A message by its full name, such as `envoy.config.cluster.v3.Cluster`.
pub fn json(message_name: &str, bytes: &[u8]) -> Result<Json, String> {
    let message = schema::message(message_name).ok_or_else(|| format!("no descriptor of {message_name}"))?;
    convert(message, bytes, false, 0).map_err(|why| format!("{message_name}: {why}"))
}

/// Whether a path of field names leads to something in a message: not through a list, and not into an `Any`. What
/// a `FieldMask` may name.
pub fn has_path(message_name: &str, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    let Some(message) = schema::message(message_name) else { return false };
    let Some((_, field)) = message.field(first).filter(|(_, field)| field.name == first) else {
        return false;
    };
    if rest.is_empty() {
        return true;
    }
    let Kind::Message(inner) = &field.kind else { return false };
    !field.repeated && inner.get().is_some_and(|inner| has_path(inner.name, rest))
}

/// A `google.protobuf.Struct`, with nothing left out.
pub(crate) fn structure(bytes: &[u8]) -> Result<Json, String> {
    json("google.protobuf.Struct", bytes)
}

/// Messages are read from the wire by recursion.
const MAX_DEPTH: u32 = 200;
const REDACTED: &str = "[redacted]";

fn convert(message: &'static Message, bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH} levels"));
    }
    match message.special {
        Special::No => fields(message, bytes, secret, depth).map(Json::Object),
        Special::TypedStruct => typed_struct(message, bytes, secret, depth),
        Special::Any => any(bytes, secret, depth),
        Special::Struct => structure_of(message, bytes, secret, depth),
        Special::Value => value(message, bytes, secret, depth),
        Special::ListValue => {
            let mut list = fields(message, bytes, secret, depth)?;
            Ok(list.remove("values").unwrap_or_else(|| json!([])))
        }
        Special::Duration => Ok(Json::String(seconds(bytes)?.text())),
        Special::Timestamp => Ok(Json::String(timestamp_text(seconds(bytes)?))),
        Special::Wrapper => {
            let field = message.number(1).ok_or("a wrapper without a value")?;
            let mut given = None;
            for part in Fields(bytes) {
                let (number, content) = part.map_err(|e| e.to_string())?;
                if number == 1 {
                    given = Some(single(field, content, secret, depth)?);
                }
            }
            Ok(given.unwrap_or_else(|| default_of(&field.kind)))
        }
    }
}

/// All fields that are set; a repeated or split message has been written as one.
fn fields(
    message: &'static Message,
    bytes: &[u8],
    secret: bool,
    depth: u32,
) -> Result<Map<String, Json>, String> {
    let mut object = Map::new();
    for part in Fields(bytes) {
        let (number, content) = part.map_err(|e| e.to_string())?;
        // A field that these descriptors do not have.
        let Some(field) = message.number(number) else { continue };
        let secret = secret || field.sensitive;
        if let Some(entry) = field.map() {
            let (key, value) = map_entry(entry, content, secret, depth)?;
            if let Json::Object(map) = object.entry(field.name).or_insert_with(|| json!({})) {
                map.insert(key, value);
            }
        } else if field.repeated {
            let values = elements(field, content, secret, depth)?;
            if let Json::Array(list) = object.entry(field.name).or_insert_with(|| json!([])) {
                list.extend(values);
            }
        } else {
            let value = single(field, content, secret, depth)?;
            forget_others_of_oneof(message, field, &mut object);
            let old = object.remove(field.name);
            if field.presence || value != default_of(&field.kind) {
                object.insert(field.name.to_owned(), merged(old, value));
            }
        }
    }
    Ok(object)
}

/// The same message given twice is one with the fields of both.
fn merged(old: Option<Json>, new: Json) -> Json {
    match (old, new) {
        (Some(Json::Object(mut old)), Json::Object(new)) => {
            for (name, value) in new {
                let value = match (old.remove(&name), value) {
                    (Some(Json::Array(mut list)), Json::Array(more)) => {
                        list.extend(more);
                        Json::Array(list)
                    }
                    (before, value) => merged(before, value),
                };
                old.insert(name, value);
            }
            Json::Object(old)
        }
        (_, new) => new,
    }
}

fn forget_others_of_oneof(message: &Message, field: &Field, object: &mut Map<String, Json>) {
    if field.oneof.is_some() {
        for other in message.fields.iter().filter(|f| f.oneof == field.oneof && f.number != field.number) {
            object.remove(other.name);
        }
    }
}

fn elements(
    field: &'static Field,
    content: Value<'_>,
    secret: bool,
    depth: u32,
) -> Result<Vec<Json>, String> {
    let Value::Bytes(mut packed) = content else { return Ok(vec![single(field, content, secret, depth)?]) };
    if !field.kind.packs() {
        return Ok(vec![single(field, content, secret, depth)?]);
    }
    let mut list = Vec::new();
    while !packed.is_empty() {
        let value = if matches!(field.kind, Kind::Double | Kind::Fixed64 | Kind::Sfixed64) {
            Value::Fixed64(u64::from_le_bytes(take(&mut packed).ok_or("a packed list that ends early")?))
        } else if matches!(field.kind, Kind::Float | Kind::Fixed32 | Kind::Sfixed32) {
            Value::Fixed32(u32::from_le_bytes(take(&mut packed).ok_or("a packed list that ends early")?))
        } else {
            Value::Varint(wire::varint(&mut packed).map_err(|e| e.to_string())?)
        };
        list.push(single(field, value, secret, depth)?);
    }
    Ok(list)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn map_entry(
    entry: &'static Message,
    content: Value<'_>,
    secret: bool,
    depth: u32,
) -> Result<(String, Json), String> {
    let Value::Bytes(bytes) = content else { return Err("a map entry that is no message".into()) };
    let (Some(key_field), Some(value_field)) = (entry.number(1), entry.number(2)) else {
        return Err("a map entry without a key".into());
    };
    let (mut key, mut value) = (default_of(&key_field.kind), None);
    for part in Fields(bytes) {
        match part.map_err(|e| e.to_string())? {
            (1, content) => key = single(key_field, content, false, depth)?,
            (2, content) => value = Some(single(value_field, content, secret, depth)?),
            _ => {}
        }
    }
    let value = match (value, &value_field.kind) {
        (Some(value), _) => value,
        (None, Kind::Message(kind)) => convert(kind.get().ok_or("no descriptor")?, &[], secret, depth + 1)?,
        (None, kind) => default_of(kind),
    };
    Ok((key.as_str().map_or_else(|| key.to_string(), str::to_owned), value))
}

fn single(field: &'static Field, content: Value<'_>, secret: bool, depth: u32) -> Result<Json, String> {
    let number = match content {
        Value::Varint(v) | Value::Fixed64(v) => v,
        Value::Fixed32(v) => v.into(),
        Value::Bytes(bytes) => return delimited(field, bytes, secret, depth),
    };
    Ok(match &field.kind {
        Kind::Double => float(f64::from_bits(number)),
        Kind::Float => float32(f32::from_bits(number as u32)),
        Kind::Int64 | Kind::Sfixed64 => Json::String((number as i64).to_string()),
        Kind::Uint64 | Kind::Fixed64 => Json::String(number.to_string()),
        Kind::Int32 | Kind::Sfixed32 => json!(number as i32),
        Kind::Uint32 | Kind::Fixed32 => json!(number as u32),
        Kind::Sint32 => json!(zigzag(number) as i32),
        Kind::Sint64 => Json::String(zigzag(number).to_string()),
        Kind::Bool => json!(number != 0),
        Kind::Enum(kind) => {
            let number = number as i32;
            let kind = kind.get().ok_or("no descriptor of an enum")?;
            match kind.values.iter().find(|(_, value)| *value == number) {
                _ if kind.name == "google.protobuf.NullValue" => Json::Null,
                Some((name, _)) => json!(name),
                None => json!(number),
            }
        }
        Kind::String | Kind::Bytes | Kind::Message(_) => {
            return Err(format!("{} is not a number", field.name));
        }
    })
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn delimited(field: &'static Field, bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    if let Kind::Message(kind) = &field.kind {
        return convert(kind.get().ok_or("no descriptor")?, bytes, secret, depth + 1);
    }
    let shown = if secret { REDACTED.as_bytes() } else { bytes };
    if matches!(field.kind, Kind::Bytes) {
        return Ok(Json::String(STANDARD.encode(shown)));
    }
    if matches!(field.kind, Kind::String) {
        return Ok(Json::String(String::from_utf8_lossy(shown).into_owned()));
    }
    Err(format!("{} is a number", field.name))
}

fn any(bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    let (mut url, mut inner) = ("", &[][..]);
    for part in Fields(bytes) {
        match part.map_err(|e| e.to_string())? {
            (1, Value::Bytes(v)) => url = std::str::from_utf8(v).map_err(|e| e.to_string())?,
            (2, Value::Bytes(v)) => inner = v,
            _ => {}
        }
    }
    if url.is_empty() {
        return Ok(json!({}));
    }
    let known = crate::decode::any::type_name(url).ok().and_then(schema::message);
    let Some(message) = known else {
        let shown = if secret { REDACTED.as_bytes() } else { inner };
        return Ok(json!({"@type": url, "value": STANDARD.encode(shown)}));
    };
    let inner = convert(message, inner, secret, depth + 1)?;
    let mut object = if message.special.under_value() {
        Map::from_iter([("value".to_owned(), inner)])
    } else {
        inner.as_object().cloned().unwrap_or_default()
    };
    object.insert("@type".to_owned(), json!(url));
    Ok(Json::Object(object))
}

/// Shown by its inner type where that is known: which of its fields are secret is said there only.
fn typed_struct(message: &'static Message, bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    let mut object = fields(message, bytes, secret, depth)?;
    let (name, inner) = crate::decode::any::unpack(message.name, bytes)?;
    if name != message.name
        && let Some(known) = schema::message(&name)
    {
        object.insert("value".to_owned(), convert(known, &inner, secret, depth + 1)?);
    }
    Ok(Json::Object(object))
}

fn structure_of(message: &'static Message, bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    let mut object = fields(message, bytes, secret, depth)?;
    Ok(object.remove("fields").unwrap_or_else(|| json!({})))
}

fn value(message: &'static Message, bytes: &[u8], secret: bool, depth: u32) -> Result<Json, String> {
    let kinds = fields(message, bytes, secret, depth)?;
    Ok(kinds.into_iter().next().map_or(Json::Null, |(_, value)| value))
}

fn seconds(bytes: &[u8]) -> Result<Seconds, String> {
    let mut found = Seconds { seconds: 0, nanos: 0 };
    for part in Fields(bytes) {
        match part.map_err(|e| e.to_string())? {
            (1, Value::Varint(v)) => found.seconds = v as i64,
            (2, Value::Varint(v)) => found.nanos = v as i32,
            _ => {}
        }
    }
    // A time of the year 292277026596 is nobody's, and its arithmetic would overflow.
    found.seconds = found.seconds.clamp(-315_576_000_000, 315_576_000_000);
    found.nanos = found.nanos.clamp(-999_999_999, 999_999_999);
    Ok(found)
}

fn float(number: f64) -> Json {
    match number {
        n if n.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        // Whole numbers are shown without a point, as protobuf does.
        n if n.fract() == 0.0 && n.abs() < 9e15 => json!(n as i64),
        n => json!(n),
    }
}

/// By the float's own shortest digits: 0.1 and not 0.10000000149011612.
fn float32(number: f32) -> Json {
    float(number.to_string().parse().unwrap_or_else(|_| f64::from(number)))
}

fn default_of(kind: &Kind) -> Json {
    match kind {
        Kind::Double | Kind::Float | Kind::Int32 | Kind::Uint32 => json!(0),
        Kind::Fixed32 | Kind::Sfixed32 | Kind::Sint32 => json!(0),
        Kind::Int64 | Kind::Uint64 | Kind::Fixed64 | Kind::Sfixed64 | Kind::Sint64 => json!("0"),
        Kind::Bool => json!(false),
        Kind::String | Kind::Bytes => json!(""),
        Kind::Message(_) => Json::Null,
        Kind::Enum(kind) => match kind.get().and_then(|kind| kind.values.first()) {
            Some((name, _)) => json!(name),
            None => json!(0),
        },
    }
}
