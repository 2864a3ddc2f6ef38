//! A tree into an encoded message, by its descriptor.
//!
//! Nothing is built in between: what is written goes to the wire as it is found. A problem is noted with its place and
//! the walk goes on, so that one reading finds all of them.

use super::document::{Content, Document, Id, Pairs};
use super::problem::Problems;
use super::suggest::nearest;
use crate::diagnostic::{Path, Segment, Severity};
use crate::proto::schema::{Field, Kind, Message, Special};
use crate::proto::wire::{self, Value};

/// Walks one document.
pub(crate) struct Encoder<'d> {
    pub(super) document: &'d Document<'d>,
    pub(super) problems: Problems,
    pub(super) out: Vec<u8>,
    /// Where the walk is, below `base`.
    pub(super) steps: Vec<Step>,
    base: Path,
    unknown_fields: Severity,
    /// Whether the walk is inside of what must not be shown.
    secret: bool,
    /// Fields that are set aside, by message and name.
    detach: &'static [(&'static str, &'static str)],
    detached: Vec<(&'static str, Id)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Field(&'static str),
    Index(usize),
    Key(Id),
    Type(&'static str),
}

/// The fields of the message at hand that have been set.
#[derive(Default)]
struct Seen {
    /// By index, with the spelling that set it.
    fields: Vec<(usize, Id)>,
}

impl<'d> Encoder<'d> {
    pub(crate) fn new(document: &'d Document<'d>, unknown_fields: Severity) -> Self {
        Self {
            document,
            problems: Problems::default(),
            out: Vec::new(),
            steps: Vec::new(),
            base: Path::default(),
            unknown_fields,
            secret: false,
            detach: &[],
            detached: Vec::new(),
        }
    }

    /// Sets the values of these fields, given by message and name, aside.
    pub(crate) fn detaching(mut self, fields: &'static [(&'static str, &'static str)]) -> Self {
        self.detach = fields;
        self
    }

    /// The fields that were set aside, by name, with their values.
    pub(crate) fn take_detached(&mut self) -> Vec<(&'static str, Id)> {
        std::mem::take(&mut self.detached)
    }

    /// What has been found so far.
    pub(crate) fn take_problems(&mut self) -> Problems {
        std::mem::take(&mut self.problems)
    }

    /// Encodes the message at `id`, which stands at `path`, and takes the result.
    pub(crate) fn encode(&mut self, message: &'static Message, id: Id, path: Path) -> Vec<u8> {
        self.base = path;
        self.message(message, id);
        // A copy is as long as it needs to be, and the buffer serves again.
        let encoded = self.out.as_slice().to_vec();
        self.out.clear();
        encoded
    }

    /// Appends the content of a message.
    pub(super) fn message(&mut self, message: &'static Message, id: Id) {
        if message.special != Special::No && message.special != Special::TypedStruct {
            return self.special(message, id);
        }
        match self.document.content(id) {
            Content::Mapping(pairs) => self.fields(message, pairs, false),
            _ if self.is_null(id) => {}
            Content::Plain(_) | Content::Quoted(_) | Content::Sequence(_) => {
                let found = self.describe(id);
                self.error(
                    id,
                    format!("expected a mapping with the fields of {}, found {found}", message.name),
                );
            }
        }
    }

    /// Appends the fields that a mapping gives.
    pub(super) fn fields(&mut self, message: &'static Message, pairs: Pairs<'d>, in_any: bool) {
        let mut seen = Seen::default();
        for (key, value) in pairs.iter() {
            let Some(name) = self.document.scalar(key) else { continue };
            if in_any && name == "@type" {
                continue;
            }
            let Some((index, field)) = self.known_field(message, key, name) else { continue };
            if self.is_null(value) && !takes_null(field) {
                continue;
            }
            if self.set(message, &mut seen, index, field, key) {
                let outside = self.secret;
                self.secret |= field.sensitive;
                self.steps.push(Step::Field(field.name));
                self.field(message, field, value);
                self.steps.pop();
                self.secret = outside;
            }
        }
    }

    fn known_field(
        &mut self,
        message: &'static Message,
        key: Id,
        name: &str,
    ) -> Option<(usize, &'static Field)> {
        if let Some(found) = message.field(name) {
            return Some(found);
        }
        if let Some(new) = super::old::field(message, name) {
            let found = message.field(new)?;
            self.warning(key, format!("{name:?} is a name of old; write {new}"));
            return Some(found);
        }
        let mut why = format!("unknown field {name:?}");
        if let Some(instead) = super::old::gone(message, name) {
            why = format!("{why}: {instead}");
        } else if !self.problems.full()
            && let Some(meant) = nearest(name, message.fields.iter().map(|f| f.name))
        {
            why = format!("{why} (did you mean {meant}?)");
        }
        match self.unknown_fields {
            Severity::Error => self.error(key, why),
            Severity::Warning => self.warning(key, why),
        }
        None
    }

    /// Notes that a field is set; false where that contradicts what has been set before.
    fn set(&mut self, message: &Message, seen: &mut Seen, index: usize, field: &Field, key: Id) -> bool {
        let clash = |(known, _): &&(usize, Id)| {
            *known == index
                || field.oneof.is_some() && message.fields.get(*known).is_some_and(|k| k.oneof == field.oneof)
        };
        let before = seen.fields.iter().find(clash).copied();
        let Some((known, place)) = before else {
            seen.fields.push((index, key));
            return true;
        };
        if self.document.scalar(place) == self.document.scalar(key) {
            // The document itself has said so.
            return false;
        }
        let place = self.document.position(place);
        let why = if known == index {
            format!("{} is set twice, first at line {}:{}", field.name, place.line, place.column)
        } else {
            let other = message.fields.get(known).map_or("", |f| f.name);
            let oneof = field.oneof.and_then(|o| message.oneofs.get(o)).copied().unwrap_or_default();
            format!("{} and {other} exclude each other (both are {oneof})", field.name)
        };
        self.error(key, why);
        false
    }

    fn field(&mut self, message: &'static Message, field: &'static Field, value: Id) {
        if self.detach.contains(&(message.name, field.name)) {
            self.detached.push((field.name, value));
        } else if let Some(entry) = field.map() {
            self.map(field.number, entry, value);
        } else if field.repeated {
            self.list(field, value);
        } else {
            self.single(field.number, &field.kind, value, field.presence);
        }
    }

    /// Appends one value; a default only where `explicit`.
    fn single(&mut self, number: u32, kind: &'static Kind, id: Id, explicit: bool) {
        if let Kind::Message(message) = kind {
            match message.get() {
                Some(message) => self.delimited(number, |encoder| encoder.message(message, id)),
                None => self.error(id, "a type without a descriptor"),
            }
        } else if let Some(value) = self.scalar(kind, id)
            && (explicit || !value.is_default())
        {
            wire::put(&mut self.out, number, value.as_wire());
        }
    }

    fn list(&mut self, field: &'static Field, id: Id) {
        let elements = if let Content::Sequence(elements) = self.document.content(id) {
            elements
        } else {
            // As Envoy, which says nothing.
            self.warning(
                id,
                format!("expected a list, found {}: taken as its one element", self.describe(id)),
            );
            std::slice::from_ref(&id)
        };
        if !field.kind.packs() {
            return self.each(elements, |encoder, element| {
                encoder.single(field.number, &field.kind, element, true);
            });
        }
        self.delimited(field.number, |encoder| {
            encoder.each(elements, |encoder, element| {
                if let Some(value) = encoder.scalar(&field.kind, element) {
                    wire::put_value(&mut encoder.out, value.as_wire());
                }
            });
        });
    }

    pub(super) fn each(&mut self, elements: &[Id], mut f: impl FnMut(&mut Self, Id)) {
        for (index, element) in elements.iter().enumerate() {
            self.steps.push(Step::Index(index));
            f(self, *element);
            self.steps.pop();
        }
    }

    fn map(&mut self, number: u32, entry: &'static Message, id: Id) {
        let Content::Mapping(pairs) = self.document.content(id) else {
            let found = self.describe(id);
            return self.error(id, format!("expected a mapping, found {found}"));
        };
        let (Some(key_field), Some(value_field)) = (entry.number(1), entry.number(2)) else { return };
        for (key, value) in pairs.iter() {
            self.steps.push(Step::Key(key));
            self.delimited(number, |encoder| {
                if let Some(key) = encoder.map_key(&key_field.kind, key) {
                    wire::put(&mut encoder.out, 1, key.as_wire());
                }
                encoder.single(2, &value_field.kind, value, true);
            });
            self.steps.pop();
        }
    }

    pub(super) fn delimited(&mut self, number: u32, f: impl FnOnce(&mut Self)) {
        let start = wire::begin(&mut self.out, number);
        f(self);
        wire::end(&mut self.out, start);
    }

    pub(super) fn put(&mut self, number: u32, value: Value<'_>) {
        wire::put(&mut self.out, number, value);
    }

    pub(super) fn is_null(&self, id: Id) -> bool {
        matches!(self.document.content(id), Content::Plain(text)
            if super::scalar::Plain::of(text) == super::scalar::Plain::Null)
    }

    /// A value in words. Somebody may have written a key where a mapping with the key belongs.
    pub(super) fn describe(&self, id: Id) -> String {
        match self.document.content(id) {
            Content::Plain(_) | Content::Quoted(_) if self.secret => "a text (not shown)".to_owned(),
            Content::Plain(_) | Content::Quoted(_) | Content::Sequence(_) | Content::Mapping(_) => {
                self.document.describe(id)
            }
        }
    }

    pub(super) fn error(&mut self, at: Id, why: impl Into<String>) {
        self.problems.error(Some(self.document.position(at)), self.path(), why);
    }

    pub(super) fn warning(&mut self, at: Id, why: impl Into<String>) {
        self.problems.warning(Some(self.document.position(at)), self.path(), why);
    }

    fn path(&self) -> Path {
        let mut path = self.base.clone();
        for step in &self.steps {
            path.push(match *step {
                Step::Field(name) => Segment::Field(name.into()),
                Step::Index(index) => Segment::Index(index),
                Step::Key(key) => Segment::Key(self.document.scalar(key).unwrap_or_default().to_owned()),
                Step::Type(name) => Segment::Type(name.to_owned()),
            });
        }
        path
    }
}

/// A null is "not given", but for the type that can say it.
fn takes_null(field: &Field) -> bool {
    if let Kind::Message(message) = &field.kind {
        return !field.repeated && message.get().is_some_and(|message| message.special == Special::Value);
    }
    matches!(&field.kind, Kind::Enum(kind) if kind.get().is_some_and(|kind| kind.name == "google.protobuf.NullValue"))
}
