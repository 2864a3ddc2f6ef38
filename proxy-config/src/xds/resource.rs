//! A resource as it came, and out of what it came in.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;

use super::Kind;
use super::apart::{self, Packed};
use crate::decode::any;
use crate::proto::wire::{Fields, Value};

/// A resource as it came. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct RawResource {
    pub name: Arc<str>,
    /// Its own in delta xDS, else that of the whole response.
    pub version: Arc<str>,
    /// It is gone when this time has passed without news of it.
    pub ttl: Option<Duration>,
    pub type_url: Arc<str>,
    pub value: Bytes,
}

impl RawResource {
    /// One of the `resources` of a `DiscoveryResponse`: a `Resource` around it and a `TypedStruct` around that are
    /// opened. Its version is that of the response, as in Envoy, also where a `Resource` says another.
    pub fn open(kind: Kind, type_url: &str, value: Bytes, version: &Arc<str>) -> Result<Self, String> {
        if any::type_name(type_url)? != WRAPPER {
            return Self::message(kind, type_url, value, version);
        }
        let (wrapper, inner) = apart::resource(&value, &value)?;
        let Some(Packed { type_url, value }) = inner else {
            return Err(format!("{WRAPPER} {:?} has no resource", wrapper.name));
        };
        let mut opened = Self::message(kind, type_url, value, version)?;
        if !wrapper.name.is_empty() {
            opened.name = wrapper.name.into();
        }
        opened.ttl = wrapper.ttl.map(lifetime).transpose()?;
        Ok(opened)
    }

    fn message(kind: Kind, type_url: &str, value: Bytes, version: &Arc<str>) -> Result<Self, String> {
        let (name, bytes) = any::unpack(type_url, &value)?;
        if name != kind.type_name() {
            return Err(format!("{name} where {} is expected", kind.type_name()));
        }
        let other = match bytes {
            Cow::Borrowed(_) => None,
            Cow::Owned(bytes) => Some(bytes.into()),
        };
        let value = other.unwrap_or(value);
        Ok(Self {
            name: name_of(&value)?,
            version: version.clone(),
            ttl: None,
            type_url: url_of(kind),
            value,
        })
    }
}

pub(super) const WRAPPER: &str = "envoy.service.discovery.v3.Resource";

/// Field 1 of all types of resources. The last one holds, as on all wires.
fn name_of(message: &[u8]) -> Result<Arc<str>, String> {
    let mut name = "";
    for field in Fields(message) {
        if let (1, Value::Bytes(bytes)) = field.map_err(|error| error.to_string())? {
            name = std::str::from_utf8(bytes).map_err(|_| "its name is not UTF-8")?;
        }
    }
    Ok(name.into())
}

pub(super) fn lifetime(ttl: envoy_types::pb::google::protobuf::Duration) -> Result<Duration, String> {
    match (u64::try_from(ttl.seconds), u32::try_from(ttl.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => Err("ttl: must not be negative".into()),
    }
}

/// The URLs of all types are always the same, and thousands of resources share them.
fn url_of(kind: Kind) -> Arc<str> {
    static URLS: LazyLock<[(Kind, Arc<str>); 6]> =
        LazyLock::new(|| Kind::ALL.map(|kind| (kind, kind.type_url().into())));
    let known = URLS.iter().find(|(known, _)| *known == kind);
    known.map_or_else(|| kind.type_url().into(), |(_, url)| url.clone())
}
