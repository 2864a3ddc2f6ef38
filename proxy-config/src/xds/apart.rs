//! Takes responses apart without a copy of each resource: what is large in them is looked at where it is.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use prost::Message;

use crate::proto::wire::{Fields, Malformed, Value, put};

/// `resources` of a `DiscoveryResponse` and of a `DeltaDiscoveryResponse`.
const RESOURCES: u32 = 2;
/// `resource` of a `Resource`.
const RESOURCE: u32 = 2;

/// An `Any` where it is.
#[derive(Clone, Debug)]
pub(super) struct Packed<'a> {
    pub(super) type_url: &'a str,
    pub(super) value: Bytes,
}

/// A response without its resources, and those.
pub(super) fn response<M: Message + Default>(whole: &Bytes) -> Result<(M, Vec<&[u8]>), String> {
    let (rest, resources) = without(whole, RESOURCES).map_err(|error| error.to_string())?;
    let message = M::decode(rest.as_slice()).map_err(|error| error.to_string())?;
    Ok((message, resources))
}

/// A `Resource` without the resource that it is around, and that.
pub(super) fn resource<'a>(
    bytes: &'a [u8],
    whole: &Bytes,
) -> Result<(pb::Resource, Option<Packed<'a>>), String> {
    let (rest, inner) = without(bytes, RESOURCE).map_err(|error| error.to_string())?;
    let wrapper = pb::Resource::decode(rest.as_slice()).map_err(|error| error.to_string())?;
    let inner = (!inner.is_empty()).then(|| any(&inner, whole)).transpose()?;
    Ok((wrapper, inner))
}

/// An `Any` that is a part of `whole`. Where it is said more than once, the last holds, as on all wires.
pub(super) fn any<'a>(parts: &[&'a [u8]], whole: &Bytes) -> Result<Packed<'a>, String> {
    let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
    for part in parts {
        for field in Fields(part) {
            match field.map_err(|error| error.to_string())? {
                (1, Value::Bytes(bytes)) => url = bytes,
                (2, Value::Bytes(bytes)) => value = bytes,
                (1 | 2, _) => return Err(Malformed.to_string()),
                _ => {}
            }
        }
    }
    let type_url = std::str::from_utf8(url).map_err(|_| "its type_url is not UTF-8")?;
    // An empty one has no place.
    let value = if value.is_empty() { Bytes::new() } else { shared(value, whole) };
    Ok(Packed { type_url, value })
}

/// Nearly all of a message is kept with it. Of a message of many, each has its own bytes: one that lives long does not
/// keep those of the others.
fn shared(part: &[u8], whole: &Bytes) -> Bytes {
    if part.len() >= whole.len() / 2 { whole.slice_ref(part) } else { Bytes::copy_from_slice(part) }
}

/// A message without a field, and its values.
fn without(bytes: &[u8], number: u32) -> Result<(Vec<u8>, Vec<&[u8]>), Malformed> {
    let (mut rest, mut values) = (Vec::new(), Vec::new());
    for field in Fields(bytes) {
        match field? {
            (found, Value::Bytes(value)) if found == number => values.push(value),
            (found, value) => put(&mut rest, found, value),
        }
    }
    Ok((rest, values))
}
