//! The descriptors, read where they lie: loading indexes the names, and a message is read when first asked for.
//! That keeps the start of the daemon below a few milliseconds, where decoding the set takes fifty.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use super::wire::{Fields, Malformed, Value};

/// A message type.
#[derive(Debug)]
pub(crate) struct Message {
    /// `envoy.config.cluster.v3.Cluster`.
    pub(crate) name: &'static str,
    pub(crate) fields: Vec<Field>,
    pub(crate) oneofs: Vec<&'static str>,
    pub(crate) map_entry: bool,
    pub(crate) special: Special,
    /// Both spellings of each field, sorted.
    lookup: Vec<(&'static str, usize)>,
}

/// How a message is written in JSON, where that is not as a mapping of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    No,
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    ListValue,
    /// `google.protobuf.UInt32Value` and its kin.
    Wrapper,
    TypedStruct,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) json_name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) repeated: bool,
    /// Into [`Message::oneofs`]; not the ones that stand for `optional`.
    pub(crate) oneof: Option<usize>,
    /// Whether "not given" differs from the default.
    pub(crate) presence: bool,
    pub(crate) sensitive: bool,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Bytes,
    Uint32,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    Message(Ref<Message>),
    Enum(Ref<Enum>),
}

#[derive(Debug)]
pub(crate) struct Enum {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<(&'static str, i32)>,
}

/// A type by its name, found when first used.
#[derive(Debug)]
pub(crate) struct Ref<T: 'static> {
    name: &'static str,
    found: OnceLock<Option<&'static T>>,
}

/// A message by its full name.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    let (key, slot) = SCHEMA.messages.get_key_value(name)?;
    slot.read.get_or_init(|| Message::read(key, slot.bytes).ok()).as_ref()
}

/// The names of all messages.
#[cfg(test)]
pub(crate) fn message_names() -> impl Iterator<Item = &'static str> {
    SCHEMA.messages.keys().map(|name| &**name)
}

/// The message that replaced one of the v2 API, by Envoy's own annotation.
pub(crate) fn successor(old: &str) -> Option<&'static str> {
    let replaces = |slot: &Slot<Message>| previous(slot.bytes).ok().flatten() == Some(old);
    SCHEMA.messages.iter().filter(|(_, slot)| replaces(slot)).map(|(name, _)| &**name).min()
}

impl Message {
    pub(crate) fn field(&self, name: &str) -> Option<(usize, &Field)> {
        let at = self.lookup.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
        let index = self.lookup.get(at)?.1;
        Some((index, self.fields.get(index)?))
    }

    pub(crate) fn number(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    /// `Cluster`.
    pub(crate) fn short(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    fn read(name: &'static str, bytes: &'static [u8]) -> Result<Self, Malformed> {
        let (mut fields, mut oneofs, mut map_entry) = (Vec::new(), Vec::new(), false);
        for field in Fields(bytes) {
            match field? {
                (2, Value::Bytes(field)) => fields.push(Field::read(field)?),
                (8, Value::Bytes(oneof)) => oneofs.push(text(oneof, 1)?),
                (7, Value::Bytes(options)) => map_entry = number(options, 7)? == Some(1),
                _ => {}
            }
        }
        let mut lookup = Vec::with_capacity(2 * fields.len());
        for (index, field) in fields.iter().enumerate() {
            lookup.push((field.name, index));
            if field.json_name != field.name {
                lookup.push((field.json_name, index));
            }
        }
        lookup.sort_unstable();
        Ok(Self { name, fields, oneofs, map_entry, special: Special::of(name), lookup })
    }
}

impl Special {
    fn of(name: &str) -> Self {
        match name {
            "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => return Self::TypedStruct,
            _ => {}
        }
        match name.strip_prefix("google.protobuf.") {
            Some("Any") => Self::Any,
            Some("Duration") => Self::Duration,
            Some("Timestamp") => Self::Timestamp,
            Some("Struct") => Self::Struct,
            Some("Value") => Self::Value,
            Some("ListValue") => Self::ListValue,
            Some(wrapper) if wrapper.ends_with("Value") => Self::Wrapper,
            Some(_) | None => Self::No,
        }
    }

    /// Whether an `Any` holds it under `value`.
    pub(crate) fn under_value(self) -> bool {
        !matches!(self, Self::No | Self::TypedStruct)
    }
}

impl Field {
    fn read(bytes: &'static [u8]) -> Result<Self, Malformed> {
        let (mut scalar, mut type_name, mut oneof, mut optional) = (0, "", None, false);
        let (mut field_number, mut repeated, mut sensitive) = (0, false, false);
        let (mut name, mut json_name) = ("", "");
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(v)) => name = utf8(v)?,
                (3, Value::Varint(v)) => field_number = u32::try_from(v).map_err(|_| Malformed)?,
                (4, Value::Varint(v)) => repeated = v == 3,
                (5, Value::Varint(v)) => scalar = v,
                (6, Value::Bytes(v)) => type_name = utf8(v)?.trim_start_matches('.'),
                (8, Value::Bytes(v)) => sensitive = number(v, SENSITIVE)? == Some(1),
                (9, Value::Varint(v)) => oneof = usize::try_from(v).ok(),
                (10, Value::Bytes(v)) => json_name = utf8(v)?,
                (17, Value::Varint(v)) => optional = v == 1,
                _ => {}
            }
        }
        let kind = Kind::of(scalar, type_name)?;
        let presence = oneof.is_some() || matches!(kind, Kind::Message(_));
        let oneof = oneof.filter(|_| !optional);
        Ok(Self { number: field_number, name, json_name, kind, repeated, oneof, presence, sensitive })
    }

    /// The entry type of a map.
    pub(crate) fn map(&self) -> Option<&'static Message> {
        let Kind::Message(entry) = &self.kind else { return None };
        entry.get().filter(|entry| self.repeated && entry.map_entry)
    }
}

/// `udpa.annotations.sensitive`.
const SENSITIVE: u32 = 76_569_463;
/// `udpa.annotations.versioning`, and its `previous_message_type`.
const VERSIONING: u32 = 7_881_811;
const PREVIOUS_MESSAGE_TYPE: u32 = 1;

impl Kind {
    fn of(scalar: u64, name: &'static str) -> Result<Self, Malformed> {
        Ok(match scalar {
            1 => Self::Double,
            2 => Self::Float,
            3 => Self::Int64,
            4 => Self::Uint64,
            5 => Self::Int32,
            6 => Self::Fixed64,
            7 => Self::Fixed32,
            8 => Self::Bool,
            9 => Self::String,
            11 => Self::Message(Ref { name, found: OnceLock::new() }),
            12 => Self::Bytes,
            13 => Self::Uint32,
            14 => Self::Enum(Ref { name, found: OnceLock::new() }),
            15 => Self::Sfixed32,
            16 => Self::Sfixed64,
            17 => Self::Sint32,
            18 => Self::Sint64,
            _ => return Err(Malformed),
        })
    }

    /// The least and the most that an integer of it can be.
    pub(crate) fn range(&self) -> (i128, i128) {
        match self {
            Self::Uint32 | Self::Fixed32 => (0, u32::MAX.into()),
            Self::Uint64 | Self::Fixed64 => (0, u64::MAX.into()),
            Self::Int64 | Self::Sint64 | Self::Sfixed64 => (i64::MIN.into(), i64::MAX.into()),
            Self::Int32 | Self::Sint32 | Self::Sfixed32 | Self::Enum(_) => (i32::MIN.into(), i32::MAX.into()),
            Self::Double | Self::Float | Self::Bool | Self::String | Self::Bytes | Self::Message(_) => (0, 0),
        }
    }

    /// Whether lists of it are written without a key for each.
    pub(crate) fn packs(&self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Message(_))
    }
}

impl Ref<Message> {
    pub(crate) fn get(&self) -> Option<&'static Message> {
        *self.found.get_or_init(|| message(self.name))
    }
}

impl Ref<Enum> {
    pub(crate) fn get(&self) -> Option<&'static Enum> {
        *self.found.get_or_init(|| {
            let (key, slot) = SCHEMA.enums.get_key_value(self.name)?;
            slot.read.get_or_init(|| Enum::read(key, slot.bytes).ok()).as_ref()
        })
    }
}

impl Enum {
    fn read(name: &'static str, bytes: &'static [u8]) -> Result<Self, Malformed> {
        let mut values = Vec::new();
        for field in Fields(bytes) {
            if let (2, Value::Bytes(value)) = field? {
                let number = number(value, 2)?.unwrap_or(0);
                // Negative numbers are written as 64 bits.
                values.push((text(value, 1)?, number as i32));
            }
        }
        Ok(Self { name, values })
    }
}

struct Schema {
    messages: HashMap<Box<str>, Slot<Message>>,
    enums: HashMap<Box<str>, Slot<Enum>>,
}

struct Slot<T> {
    bytes: &'static [u8],
    read: OnceLock<Option<T>>,
}

/// What the binary carries does not change, so all proxies of a process may share it.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut schema = Schema { messages: HashMap::with_capacity(4096), enums: HashMap::with_capacity(512) };
    for set in super::DESCRIPTORS {
        for (_, value) in Fields(set).flatten() {
            if let Value::Bytes(file) = value {
                schema.index(file);
            }
        }
    }
    schema
});

impl Schema {
    fn index(&mut self, file: &'static [u8]) {
        let package = text(file, 2).unwrap_or_default();
        self.types(package, file, 4, 5);
    }

    /// Indexes the messages and enums that a file or a message declares.
    fn types(&mut self, scope: &str, bytes: &'static [u8], message_tag: u32, enum_tag: u32) {
        for (tag, value) in Fields(bytes).flatten() {
            let Value::Bytes(bytes) = value else { continue };
            let full = || format!("{scope}.{}", text(bytes, 1).unwrap_or_default());
            if tag == message_tag {
                let name = full();
                self.types(&name, bytes, 3, 4);
                self.messages.insert(name.into(), Slot { bytes, read: OnceLock::new() });
            } else if tag == enum_tag {
                self.enums.insert(full().into(), Slot { bytes, read: OnceLock::new() });
            }
        }
    }
}

fn previous(message: &'static [u8]) -> Result<Option<&'static str>, Malformed> {
    for field in Fields(message) {
        let (7, Value::Bytes(options)) = field? else { continue };
        for option in Fields(options) {
            if let (VERSIONING, Value::Bytes(versioning)) = option? {
                return text(versioning, PREVIOUS_MESSAGE_TYPE).map(Some);
            }
        }
    }
    Ok(None)
}

fn utf8(bytes: &'static [u8]) -> Result<&'static str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// A string field; empty where it is not set.
fn text(message: &'static [u8], wanted: u32) -> Result<&'static str, Malformed> {
    for field in Fields(message) {
        if let (number, Value::Bytes(value)) = field?
            && number == wanted
        {
            return utf8(value);
        }
    }
    Ok("")
}

fn number(message: &[u8], wanted: u32) -> Result<Option<u64>, Malformed> {
    for field in Fields(message) {
        if let (number, Value::Varint(value)) = field?
            && number == wanted
        {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each message and field is what another reader of the same descriptors says.
    #[test]
    fn agrees_with_prost_reflect() {
        let pool = super::super::pool();
        assert_eq!(message_names().count(), pool.all_messages().count());
        for theirs in pool.all_messages() {
            let ours = message(theirs.full_name()).unwrap();
            assert_eq!(ours.fields.len(), theirs.fields().len());
            assert_eq!(ours.map_entry, theirs.is_map_entry());
            for field in theirs.fields() {
                let (_, mine) = ours.field(field.name()).unwrap();
                assert_eq!(mine.number, field.number(), "{field:?}");
                assert_eq!(ours.field(field.json_name()).unwrap().1.number, field.number());
                assert_eq!(mine.map().is_some(), field.is_map(), "{field:?}");
                assert_eq!(mine.repeated, field.is_list() || field.is_map());
                // No configuration is proto2, where all fields have presence.
                if theirs.parent_file().syntax() == prost_reflect::Syntax::Proto3 {
                    assert_eq!(mine.presence && !mine.repeated, field.supports_presence(), "{field:?}");
                }
                if let Kind::Message(kind) = &mine.kind {
                    assert_eq!(kind.get().unwrap().name, field.kind().as_message().unwrap().full_name());
                }
                if let Kind::Enum(kind) = &mine.kind {
                    assert_eq!(kind.get().unwrap().name, field.kind().as_enum().unwrap().full_name());
                }
            }
        }
    }

    #[test]
    fn private_keys_are_sensitive() {
        let certificate = message("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap();
        assert!(certificate.field("private_key").unwrap().1.sensitive);
        assert!(!certificate.field("certificate_chain").unwrap().1.sensitive);
    }

    #[test]
    fn an_old_name_leads_to_the_new_one() {
        let new = Some("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
        assert_eq!(successor("envoy.config.filter.network.tcp_proxy.v2.TcpProxy"), new);
        assert_eq!(successor("envoy.api.v2.Cluster"), Some("envoy.config.cluster.v3.Cluster"));
        assert_eq!(successor("envoy.api.v2.Nothing"), None);
    }
}
