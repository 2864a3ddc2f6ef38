//! Scalars into wire values, as Envoy's JSON parser takes them: a number may be quoted, an enum value written in any
//! case or as a number, but a string is a string.

use std::borrow::Cow;

use super::document::{Content, Id};
use super::encode::Encoder;
use super::scalar::{self, Plain};
use super::suggest::nearest;
use crate::proto::schema::{Enum, Kind};
use crate::proto::wire::Value;

/// A value that may own its bytes.
pub(super) enum Scalar<'d> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Cow<'d, [u8]>),
}

impl Scalar<'_> {
    pub(super) fn as_wire(&self) -> Value<'_> {
        match self {
            Self::Varint(v) => Value::Varint(*v),
            Self::Fixed64(v) => Value::Fixed64(*v),
            Self::Fixed32(v) => Value::Fixed32(*v),
            Self::Bytes(v) => Value::Bytes(v),
        }
    }

    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Varint(v) | Self::Fixed64(v) => *v == 0,
            Self::Fixed32(v) => *v == 0,
            Self::Bytes(v) => v.is_empty(),
        }
    }
}

impl<'d> Encoder<'d> {
    /// `None` where an error was noted.
    pub(super) fn scalar(&mut self, kind: &Kind, id: Id) -> Option<Scalar<'d>> {
        match kind {
            Kind::Bool => self.boolean(id),
            Kind::String => self.string(id),
            Kind::Bytes => self.bytes(id),
            Kind::Double => Some(Scalar::Fixed64(self.float(id)?.to_bits())),
            Kind::Float => self.float32(id),
            Kind::Enum(kind) => self.enumerator(kind.get()?, id),
            Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => {
                Some(Scalar::Varint(self.integer(kind, id)? as u64))
            }
            Kind::Sint32 | Kind::Sint64 => {
                let number = self.integer(kind, id)? as i64;
                Some(Scalar::Varint(((number << 1) ^ (number >> 63)) as u64))
            }
            Kind::Fixed32 | Kind::Sfixed32 => Some(Scalar::Fixed32(self.integer(kind, id)? as u32)),
            Kind::Fixed64 | Kind::Sfixed64 => Some(Scalar::Fixed64(self.integer(kind, id)? as u64)),
            Kind::Message(_) => None,
        }
    }

    /// The key of a map, which is a string in JSON whatever its type.
    pub(super) fn map_key(&mut self, kind: &Kind, key: Id) -> Option<Scalar<'d>> {
        match (kind, self.document.content(key)) {
            (Kind::String, Content::Plain(text) | Content::Quoted(text)) => {
                Some(Scalar::Bytes(text.as_bytes().into()))
            }
            _ => self.scalar(kind, key),
        }
    }

    fn boolean(&mut self, id: Id) -> Option<Scalar<'d>> {
        let value = match self.document.content(id) {
            Content::Plain(text) => match Plain::of(text) {
                Plain::Bool(value) => Some(value),
                Plain::Text => scalar::quoted_boolean(text),
                Plain::Null | Plain::Int(_) => None,
            },
            Content::Quoted(text) => scalar::quoted_boolean(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        };
        value.map(|v| Scalar::Varint(v.into())).or_else(|| self.expected(id, "true or false"))
    }

    fn string(&mut self, id: Id) -> Option<Scalar<'d>> {
        match self.document.content(id) {
            Content::Quoted(text) => Some(Scalar::Bytes(text.as_bytes().into())),
            Content::Plain(text) if !self.document.json() && Plain::of(text) == Plain::Text => {
                Some(Scalar::Bytes(text.as_bytes().into()))
            }
            Content::Plain(_) | Content::Sequence(_) | Content::Mapping(_) => self.expected(id, "a string"),
        }
    }

    fn bytes(&mut self, id: Id) -> Option<Scalar<'d>> {
        let Scalar::Bytes(text) = self.string(id)? else { return None };
        let decoded = std::str::from_utf8(&text).ok().and_then(scalar::bytes);
        if decoded.is_none() {
            // Not shown: bytes are often secrets.
            self.error(id, "expected bytes in base64");
        }
        Some(Scalar::Bytes(decoded?.into()))
    }

    fn float(&mut self, id: Id) -> Option<f64> {
        let number = match self.document.content(id) {
            Content::Plain(text) => match Plain::of(text) {
                Plain::Int(number) if !self.document.json() => Some(number as f64),
                Plain::Int(_) | Plain::Text => scalar::float(text),
                Plain::Null | Plain::Bool(_) => None,
            },
            Content::Quoted(text) => scalar::float(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        };
        number.or_else(|| self.expected(id, "a number"))
    }

    fn float32(&mut self, id: Id) -> Option<Scalar<'d>> {
        let wide = self.float(id)?;
        let number = wide as f32;
        if number.is_infinite() && wide.is_finite() {
            return self.expected(id, "a number that a float can hold");
        }
        Some(Scalar::Fixed32(number.to_bits()))
    }

    /// In the range of its kind; the lower 64 bits are what goes to the wire.
    fn integer(&mut self, kind: &Kind, id: Id) -> Option<i128> {
        let number = match self.document.content(id) {
            Content::Plain(text) => match Plain::of(text) {
                Plain::Int(number) if !self.document.json() => Some(number.into()),
                Plain::Int(_) | Plain::Text => scalar::whole_number(text),
                Plain::Null | Plain::Bool(_) => None,
            },
            Content::Quoted(text) => scalar::whole_number(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        };
        let (least, most) = kind.range();
        let number = number.filter(|number: &i128| (least..=most).contains(number));
        number.or_else(|| self.expected(id, &format!("an integer from {least} to {most}")))
    }

    fn enumerator(&mut self, kind: &'static Enum, id: Id) -> Option<Scalar<'d>> {
        let text = self.document.scalar(id);
        let number = match self.document.content(id) {
            Content::Plain(text) => match Plain::of(text) {
                Plain::Int(number) => Some(i128::from(number)),
                Plain::Null if kind.name == "google.protobuf.NullValue" => Some(0),
                Plain::Null | Plain::Bool(_) | Plain::Text => scalar::whole_number(text),
            },
            Content::Quoted(text) => scalar::whole_number(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        };
        let found = kind.values.iter().find(|(name, value)| match number {
            Some(number) => i128::from(*value) == number,
            None => text.is_some_and(|text| text.eq_ignore_ascii_case(name)),
        });
        if let Some((_, value)) = found {
            return Some(Scalar::Varint(i64::from(*value) as u64));
        }
        let Some(text) = text else {
            return self.expected(id, &format!("a value of {}", kind.name));
        };
        let mut why = format!("unknown value {:?} of {}", scalar::shorten(text), kind.name);
        if let Some(meant) = nearest(text, kind.values.iter().map(|(name, _)| *name)) {
            why = format!("{why} (did you mean {meant}?)");
        } else if kind.values.len() <= 8 {
            let names: Vec<_> = kind.values.iter().map(|(name, _)| *name).collect();
            why = format!("{why} (one of {})", names.join(", "));
        }
        self.error(id, why);
        None
    }

    /// Notes what is wrong with a scalar.
    pub(super) fn expected<T>(&mut self, id: Id, what: &str) -> Option<T> {
        let found = self.describe(id);
        self.error(id, format!("expected {what}, found {found}"));
        None
    }
}
