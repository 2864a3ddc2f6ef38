//! Messages that JSON writes in their own way: `Any`, durations, structs, wrappers and the like.

use super::document::{Content, Id, Pairs};
use super::encode::{Encoder, Step};
use super::scalar::{self, Plain, Seconds};
use crate::proto::schema::{Message, Special};
use crate::proto::wire::Value;

impl<'d> Encoder<'d> {
    pub(super) fn special(&mut self, message: &'static Message, id: Id) {
        match message.special {
            Special::Any => self.any(id),
            Special::Duration => self.duration(id),
            Special::Timestamp => self.timestamp(id),
            Special::Struct => self.structure(id),
            Special::Value => self.any_value(id),
            Special::ListValue => self.list_value(id),
            Special::Wrapper => self.wrapper(message, id),
            Special::No | Special::TypedStruct => {}
        }
    }

    fn any(&mut self, id: Id) {
        let Content::Mapping(pairs) = self.document.content(id) else {
            if !self.is_null(id) {
                self.expected::<()>(id, "a mapping with \"@type\"");
            }
            return;
        };
        if pairs.is_empty() {
            return;
        }
        let Some(type_id) = pairs.value("@type") else {
            return self.error(id, "needs \"@type\", such as type.googleapis.com/envoy.config.core.v3.Node");
        };
        let Some((url, message)) = self.type_of(type_id) else { return };
        if message.special == Special::TypedStruct && self.typed_struct(pairs) {
            return;
        }
        self.put(1, Value::Bytes(url.as_bytes()));
        self.steps.push(Step::Type(message.short()));
        self.delimited(2, |encoder| {
            if message.special.under_value() {
                encoder.under_value(message, pairs);
            } else {
                encoder.fields(message, pairs, true);
            }
        });
        self.steps.pop();
    }

    /// The type that a URL names.
    fn type_of(&mut self, id: Id) -> Option<(&'d str, &'static Message)> {
        let Some(url) = self.document.scalar(id) else {
            return self.expected(id, "the URL of a type");
        };
        let found = super::any::known_type(url);
        match found {
            Ok(message) => Some((url, message)),
            Err(why) => {
                self.error(id, why);
                None
            }
        }
    }

    /// In an `Any`, what is not written as a mapping of fields stands under `value`.
    fn under_value(&mut self, message: &'static Message, pairs: Pairs<'d>) {
        for (key, value) in pairs.iter() {
            match self.document.scalar(key) {
                Some("@type") => {}
                Some("value") => self.message(message, value),
                Some(name) => {
                    let why = format!("unknown field {name:?}: {} stands under \"value\"", message.name);
                    self.error(key, why);
                }
                None => {}
            }
        }
    }

    /// A known type in a `TypedStruct` is that type; false where it is unknown.
    fn typed_struct(&mut self, pairs: Pairs<'d>) -> bool {
        let Some(type_id) = pairs.value("type_url").or_else(|| pairs.value("typeUrl")) else { return false };
        let Some(url) = self.document.scalar(type_id) else { return false };
        let inner = match super::any::inner_type(url) {
            Ok(Some(message)) => message,
            Ok(None) => return false,
            Err(why) => {
                self.error(type_id, why);
                return true;
            }
        };
        self.put(1, Value::Bytes(super::any::full_url(url).as_bytes()));
        self.steps.push(Step::Type(inner.short()));
        self.delimited(2, |encoder| {
            for (key, value) in pairs.iter() {
                match encoder.document.scalar(key) {
                    Some("value") => encoder.message(inner, value),
                    Some("@type" | "type_url" | "typeUrl") | None => {}
                    Some(name) => encoder.error(key, format!("unknown field {name:?} of a TypedStruct")),
                }
            }
        });
        self.steps.pop();
        true
    }

    fn duration(&mut self, id: Id) {
        const WANTED: &str = "a duration in seconds such as \"0.25s\"";
        let text = match self.document.content(id) {
            Content::Quoted(text) => text,
            Content::Plain(text) if Plain::of(text) == Plain::Text => text,
            _ if self.is_null(id) => return,
            Content::Plain(_) | Content::Sequence(_) | Content::Mapping(_) => {
                self.expected::<()>(id, WANTED);
                return;
            }
        };
        let duration = scalar::duration(text).or_else(|| {
            let duration = scalar::lenient_duration(text)?;
            self.warning(id, format!("{text:?} is no duration to Envoy; write {:?}", duration.text()));
            Some(duration)
        });
        match duration {
            Some(duration) => self.seconds(duration),
            None => {
                self.expected::<()>(id, WANTED);
            }
        }
    }

    fn timestamp(&mut self, id: Id) {
        match self.document.scalar(id).and_then(scalar::timestamp) {
            Some(time) => self.seconds(time),
            None if self.is_null(id) => {}
            None => {
                self.expected::<()>(id, "a time such as \"2024-02-29T12:00:00Z\"");
            }
        }
    }

    fn seconds(&mut self, Seconds { seconds, nanos }: Seconds) {
        for (number, value) in [(1, seconds), (2, nanos.into())] {
            if value != 0 {
                self.put(number, Value::Varint(value as u64));
            }
        }
    }

    fn wrapper(&mut self, message: &'static Message, id: Id) {
        if self.is_null(id) {
            return;
        }
        if let Some(field) = message.number(1)
            && let Some(value) = self.scalar(&field.kind, id)
            && !value.is_default()
        {
            self.put(1, value.as_wire());
        }
    }

    fn structure(&mut self, id: Id) {
        match self.document.content(id) {
            Content::Mapping(pairs) => {
                for (key, value) in pairs.iter() {
                    self.steps.push(Step::Key(key));
                    self.delimited(1, |encoder| {
                        let name = encoder.document.scalar(key).unwrap_or_default();
                        encoder.put(1, Value::Bytes(name.as_bytes()));
                        encoder.delimited(2, |encoder| encoder.any_value(value));
                    });
                    self.steps.pop();
                }
            }
            _ if self.is_null(id) => {}
            Content::Plain(_) | Content::Quoted(_) | Content::Sequence(_) => {
                self.expected::<()>(id, "a mapping");
            }
        }
    }

    fn list_value(&mut self, id: Id) {
        match self.document.content(id) {
            Content::Sequence(elements) => self.each(elements, |encoder, element| {
                encoder.delimited(1, |encoder| encoder.any_value(element));
            }),
            _ if self.is_null(id) => {}
            Content::Plain(_) | Content::Quoted(_) | Content::Mapping(_) => {
                self.expected::<()>(id, "a list");
            }
        }
    }

    /// A `google.protobuf.Value`, by Envoy's rules: of the plain scalars of YAML, integers of 32 bits are numbers,
    /// larger ones and fractions are strings.
    fn any_value(&mut self, id: Id) {
        match self.document.content(id) {
            Content::Quoted(text) => self.put(3, Value::Bytes(text.as_bytes())),
            Content::Plain(text) if self.document.json() => self.json_value(text),
            Content::Plain(text) => match Plain::of(text) {
                Plain::Null => self.put(1, Value::Varint(0)),
                Plain::Bool(value) => self.put(4, Value::Varint(value.into())),
                Plain::Int(number) => match i32::try_from(number) {
                    Ok(number) => self.put(2, Value::Fixed64(f64::from(number).to_bits())),
                    Err(_) => self.put(3, Value::Bytes(number.to_string().as_bytes())),
                },
                Plain::Text => self.put(3, Value::Bytes(text.as_bytes())),
            },
            Content::Mapping(_) => self.delimited(5, |encoder| encoder.structure(id)),
            Content::Sequence(_) => self.delimited(6, |encoder| encoder.list_value(id)),
        }
    }

    fn json_value(&mut self, word: &str) {
        match word {
            "null" => self.put(1, Value::Varint(0)),
            "true" => self.put(4, Value::Varint(1)),
            "false" => self.put(4, Value::Varint(0)),
            number => {
                let number: f64 = number.parse().unwrap_or_default();
                self.put(2, Value::Fixed64(number.to_bits()));
            }
        }
    }
}
