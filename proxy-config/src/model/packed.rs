//! Metadata that is kept for the few who ask for it.

use std::fmt;
use std::sync::OnceLock;

use super::metadata::{Map, Metadata, Struct, Value};

/// Metadata in one allocation. Thousands of clusters have some, and few logs show it: as maps and strings it would be
/// the largest part of a cluster that does nothing.
#[derive(Default)]
pub struct Packed {
    bytes: Box<[u8]>,
    open: OnceLock<Box<Metadata>>,
}

impl Packed {
    /// The metadata; opened once.
    pub fn get(&self) -> &Metadata {
        self.open.get_or_init(|| {
            let read = Reader(&self.bytes).map(Reader::fields);
            Box::new(Metadata(read.unwrap_or_default()))
        })
    }
}

impl From<&Metadata> for Packed {
    fn from(metadata: &Metadata) -> Self {
        let mut out = Vec::new();
        if !metadata.0.is_empty() {
            write_map(&metadata.0, &mut out, write_struct);
        }
        Self { bytes: out.into(), open: OnceLock::new() }
    }
}

impl Clone for Packed {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), open: OnceLock::new() }
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const NUMBER: u8 = 3;
const STRING: u8 = 4;
const LIST: u8 = 5;
const STRUCT: u8 = 6;

fn write_len(len: usize, out: &mut Vec<u8>) {
    // A configuration is smaller than 4 GiB.
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    write_len(text.len(), out);
    out.extend(text.as_bytes());
}

fn write_map<V>(map: &Map<V>, out: &mut Vec<u8>, value: fn(&V, &mut Vec<u8>)) {
    write_len(map.len(), out);
    for (key, one) in map.iter() {
        write_text(key, out);
        value(one, out);
    }
}

fn write_struct(fields: &Struct, out: &mut Vec<u8>) {
    write_map(fields, out, write_value);
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Number(number) => {
            out.push(NUMBER);
            out.extend(number.to_bits().to_le_bytes());
        }
        Value::String(text) => {
            out.push(STRING);
            write_text(text, out);
        }
        Value::List(list) => {
            out.push(LIST);
            write_len(list.len(), out);
            list.iter().for_each(|one| write_value(one, out));
        }
        Value::Struct(fields) => {
            out.push(STRUCT);
            write_struct(fields, out);
        }
    }
}

/// What is left to read. `None` only at the end of an empty one: nobody else writes these bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn len(&mut self) -> Option<usize> {
        self.take().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn text(&mut self) -> Option<String> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn map<V>(&mut self, value: fn(&mut Self) -> Option<V>) -> Option<Map<V>> {
        let mut map = Map::new();
        for _ in 0..self.len()? {
            let key = self.text()?;
            map.insert(key, value(self)?);
        }
        Some(map)
    }

    fn fields(&mut self) -> Option<Struct> {
        self.map(Self::value)
    }

    fn value(&mut self) -> Option<Value> {
        Some(match self.take::<1>()? {
            [FALSE] => Value::Bool(false),
            [TRUE] => Value::Bool(true),
            [NUMBER] => Value::Number(f64::from_bits(u64::from_le_bytes(self.take()?))),
            [STRING] => Value::String(self.text()?),
            [LIST] => {
                let len = self.len()?;
                Value::List((0..len).map(|_| self.value()).collect::<Option<_>>()?)
            }
            [STRUCT] => Value::Struct(self.fields()?),
            [_] => Value::Null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_what_comes_out() {
        let mut inner = Struct::new();
        inner.insert("name".into(), Value::String("sérvice".into()));
        inner.insert("port".into(), Value::Number(9000.1));
        inner.insert("not".into(), Value::Number(f64::NAN));
        inner.insert("null".into(), Value::Null);
        let list = Value::List(vec![Value::Bool(true), Value::Bool(false), Value::Struct(inner)]);
        let mut outer = Struct::new();
        outer.insert("services".into(), list);
        let mut metadata = Metadata::default();
        metadata.0.insert("istio".into(), outer);
        metadata.0.insert("envoy.lb".into(), Struct::new());
        let packed = Packed::from(&metadata);
        assert_eq!(packed.get(), &metadata);
        assert_eq!(packed.clone(), packed);
        assert_ne!(packed, Packed::default());
        assert!(Packed::default().get().is_empty());
        assert_eq!(Packed::from(&Metadata::default()), Packed::default());
    }
}
