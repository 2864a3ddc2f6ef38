//! What is inside a `google.protobuf.Any`.

use std::borrow::Cow;

use prost::Message as _;

use super::document::Document;
use super::encode::Encoder;
use super::problem::Problems;
use crate::diagnostic::{Path, Severity};
use crate::proto::pb::udpa::r#type::v1::TypedStruct;
use crate::proto::schema::{self, Message, Special};

/// The full message name and the encoded message of an `Any`.
///
/// A `TypedStruct` around a type that the descriptors have becomes that type, as in Envoy; around any other it stays.
pub fn unpack<'a>(type_url: &str, value: &'a [u8]) -> Result<(String, Cow<'a, [u8]>), String> {
    let name = type_name(type_url)?;
    let special = schema::message(name).map(|message| message.special);
    if special != Some(Special::TypedStruct) {
        return Ok((name.to_owned(), Cow::Borrowed(value)));
    }
    // Both TypedStructs have the same two fields.
    let outer = TypedStruct::decode(value).map_err(|e| format!("{name}: {e}"))?;
    let Some(inner) = inner_type(&outer.type_url)? else {
        return Ok((name.to_owned(), Cow::Borrowed(value)));
    };
    let bytes = from_struct(inner, outer.value.unwrap_or_default())?;
    Ok((inner.name.to_owned(), Cow::Owned(bytes)))
}

/// `type.googleapis.com/envoy.config.core.v3.Node` is `envoy.config.core.v3.Node`.
pub fn type_name(type_url: &str) -> Result<&str, String> {
    match type_url.rsplit('/').next() {
        Some(name) if !name.is_empty() => Ok(name),
        Some(_) | None => Err(format!("{type_url:?} names no type")),
    }
}

/// The type that `@type` names; JSON wants a host before it.
pub(super) fn known_type(url: &str) -> Result<&'static Message, String> {
    if !url.split_once('/').is_some_and(|(host, name)| !host.is_empty() && !name.is_empty()) {
        return Err(format!("the type {url:?} must be written as type.googleapis.com/NAME"));
    }
    let name = type_name(url)?;
    current(name)?.ok_or_else(|| format!("unknown type {url:?}"))
}

/// The type inside of a `TypedStruct`, where it is known; an error where it is of the v2 API.
pub(super) fn inner_type(url: &str) -> Result<Option<&'static Message>, String> {
    current(url.rsplit('/').next().unwrap_or(url))
}

/// With the host that Envoy gives to all types, where there is none.
pub(super) fn full_url(url: &str) -> Cow<'_, str> {
    if url.contains('/') { url.into() } else { format!("type.googleapis.com/{url}").into() }
}

fn current(name: &str) -> Result<Option<&'static Message>, String> {
    if let Some(message) = schema::message(name) {
        return Ok(Some(message));
    }
    match super::old::successor(name) {
        Some(new) => Err(format!("{name} is of the v2 API, which is gone; write {new}")),
        None => Ok(None),
    }
}

/// A message of a type from the JSON that a `Struct` is.
fn from_struct(
    message: &'static Message,
    value: envoy_types::pb::google::protobuf::Struct,
) -> Result<Vec<u8>, String> {
    let json = crate::dump::structure(&value.encode_to_vec())?.to_string();
    let mut problems = Problems::default();
    let bytes = Document::parse(&json, &mut problems).map(|document| {
        let mut encoder = Encoder::new(&document, Severity::Warning);
        let bytes = encoder.encode(message, document.root(), Path::default());
        problems.extend(encoder.take_problems());
        bytes
    });
    let (errors, _) = problems.finish();
    match (errors.first(), bytes) {
        // The places are those of a text that nobody has written.
        (Some(error), _) if error.path.segments().is_empty() => {
            Err(format!("{}: {}", message.name, error.why))
        }
        (Some(error), _) => Err(format!("{}: {}: {}", message.name, error.path, error.why)),
        (None, bytes) => Ok(bytes.unwrap_or_default()),
    }
}
