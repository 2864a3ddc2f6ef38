//! Fields of an encoded message that the descriptors do not have: a newer control plane says more than we know.

use std::collections::HashMap;

use crate::decode::any;
use crate::diagnostic::{Diagnostic, Path, Segment, Severity};
use crate::proto::schema::{self, Kind, Message, Special};
use crate::proto::wire::{Fields, Value};

/// So many are named.
const NAMED: usize = 20;
/// As deep as messages are decoded.
const DEEPEST: usize = 100;

/// A warning for each. What is no message at all is for its decoder to say.
pub(super) fn fields(message: &'static Message, bytes: &[u8]) -> Vec<Diagnostic> {
    let mut path = Path::default();
    path.push(Segment::Type(message.short().to_owned()));
    fields_at(path, message, bytes)
}

/// The same of a message that is at that place.
pub(super) fn fields_at(path: Path, message: &'static Message, bytes: &[u8]) -> Vec<Diagnostic> {
    let mut walk = Walk { path, found: Vec::new() };
    walk.message(message, bytes);
    walk.found
}

struct Walk {
    path: Path,
    found: Vec<Diagnostic>,
}

impl Walk {
    fn message(&mut self, message: &'static Message, bytes: &[u8]) {
        if message.special == Special::Any {
            return self.any(bytes);
        }
        let mut counts = HashMap::new();
        for (number, value) in Fields(bytes).flatten() {
            let Some(field) = message.number(number) else {
                self.unknown(number);
                continue;
            };
            let (Kind::Message(inner), Value::Bytes(bytes)) = (&field.kind, value) else { continue };
            let Some(inner) = inner.get().filter(|_| self.path.segments().len() < DEEPEST) else { continue };
            self.path.push(Segment::Field(field.name.into()));
            if field.repeated && field.map().is_none() {
                let count = counts.entry(number).or_insert(0);
                self.path.push(Segment::Index(*count));
                *count += 1;
                self.message(inner, bytes);
                self.path.pop();
            } else {
                self.message(inner, bytes);
            }
            self.path.pop();
        }
    }

    fn any(&mut self, bytes: &[u8]) {
        let (mut url, mut content): (&[u8], &[u8]) = (&[], &[]);
        for (number, value) in Fields(bytes).flatten() {
            match (number, value) {
                (1, Value::Bytes(bytes)) => url = bytes,
                (2, Value::Bytes(bytes)) => content = bytes,
                _ => {}
            }
        }
        let name = std::str::from_utf8(url).ok().and_then(|url| any::type_name(url).ok());
        let Some(message) = name.and_then(schema::message) else { return };
        self.path.push(Segment::Type(message.short().to_owned()));
        self.message(message, content);
        self.path.pop();
    }

    fn unknown(&mut self, number: u32) {
        if self.found.len() < NAMED {
            let why = format!("has a field of number {number}, which is not known");
            let path = self.path.clone();
            self.found.push(Diagnostic { severity: Severity::Warning, position: None, path, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::put;

    #[test]
    fn each_is_named_by_its_place() {
        let mut any = Vec::new();
        put(&mut any, 1, Value::Bytes(b"type.googleapis.com/envoy.config.core.v3.Node"));
        put(&mut any, 2, Value::Bytes(&[0xf8, 0x7f, 1]));
        let mut socket = Vec::new();
        put(&mut socket, 1, Value::Bytes(b"tls"));
        put(&mut socket, 3, Value::Bytes(&any));
        let mut matched = Vec::new();
        put(&mut matched, 3, Value::Bytes(&socket));
        let mut cluster = Vec::new();
        put(&mut cluster, 28, Value::Bytes(b"name"));
        put(&mut cluster, 43, Value::Bytes(&[]));
        put(&mut cluster, 43, Value::Bytes(&matched));
        put(&mut cluster, 9999, Value::Varint(1));
        let message = schema::message("envoy.config.cluster.v3.Cluster").unwrap();
        let found: Vec<_> = fields(message, &cluster).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "at <Cluster>.transport_socket_matches[1].transport_socket.typed_config<Node>: has a field of \
                 number 2047, which is not known",
                "at <Cluster>: has a field of number 9999, which is not known",
            ]
        );
        assert!(fields(message, b"\xff").is_empty());
    }

    #[test]
    fn no_more_than_some_are_named() {
        let mut cluster = Vec::new();
        for number in 5000..6000 {
            put(&mut cluster, number, Value::Varint(1));
        }
        let message = schema::message("envoy.config.cluster.v3.Cluster").unwrap();
        assert_eq!(fields(message, &cluster).len(), NAMED);
    }
}
