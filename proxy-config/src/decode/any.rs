//! What is inside an `Any`.

use std::borrow::Cow;

/// The full name of the message inside, and its bytes.
pub fn unpack<'a>(type_url: &str, value: &'a [u8]) -> Result<(String, Cow<'a, [u8]>), String> {
    match type_url.rsplit_once('/') {
        Some((_, name)) if !name.is_empty() => Ok((name.to_owned(), Cow::Borrowed(value))),
        Some(_) | None => Err(format!("malformed type URL {type_url:?}")),
    }
}
